"""The secrets that sign what we send out: links for customers, and what the caller's system is told.

While a secret is replaced there are two: the first signs links, every one verifies them.
"""

import base64
import binascii
import hashlib
import hmac
from typing import Final

from shared.settings import Settings

PREFIX: Final = "whsec_"  # How Standard Webhooks marks a secret written in base64.
PURPOSE: Final = b"paidonce: signing secret, 1"  # Keeps what is derived apart from any other use of the API key.


def secrets_of(settings: Settings) -> tuple[bytes, ...]:
    """Return the secrets, the first one first: SIGNING_SECRETS, or else one that is derived from the API key.

    The derived one ends with the API key: roll that, and the links that are out die. Set SIGNING_SECRETS to keep them.
    """
    if settings.signing_secrets:
        return tuple(_bytes_of(text) for text in settings.signing_secrets)
    return (hmac.digest(settings.stripe_api_key.encode(), PURPOSE, hashlib.sha256),)


def as_text(secret: bytes) -> str:
    """Write a secret as receivers configure it."""
    return PREFIX + base64.b64encode(secret).decode()


def _bytes_of(text: str) -> bytes:
    """Read `whsec_` and base64; any other text stands for its own bytes."""
    if text.startswith(PREFIX):
        try:
            return base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except binascii.Error:
            pass
    return text.encode()

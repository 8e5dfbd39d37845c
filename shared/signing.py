"""The secrets that sign what we send out: links for customers, and what the caller's system is told.

While a secret is replaced there are two: the first signs links, every one verifies them. Each purpose has a key of its
own, made from the secret one way: links and forms in `links`, outcomes here. Who receives outcomes holds that key, and
can make nothing else with it.
"""

import base64
import binascii
import hashlib
import hmac
from typing import Final

from shared.settings import Settings

PREFIX: Final = "whsec_"  # How Standard Webhooks marks a secret written in base64.
PURPOSE: Final = b"paidonce: signing secret, 1"  # Keeps what is derived apart from any other use of the API key.
OUTCOMES: Final = b"paidonce: outcomes, 1"  # And this from the keys of links and forms, which are derived likewise.


def secrets_of(settings: Settings) -> tuple[bytes, ...]:
    """Return the secrets, the first one first: SIGNING_SECRETS, or else one that is derived from the API key.

    The derived one ends with the API key: roll that, and the links that are out die. Set SIGNING_SECRETS to keep them.
    Nobody outside the deployment is ever shown one.
    """
    if settings.signing_secrets:
        return tuple(_bytes_of(text) for text in settings.signing_secrets)
    return (hmac.digest(settings.stripe_api_key.encode(), PURPOSE, hashlib.sha256),)


def outcome_keys(settings: Settings) -> tuple[bytes, ...]:
    """Return the keys that sign outcomes, the first secret's first: all that a receiver is given."""
    return tuple(hmac.digest(secret, OUTCOMES, hashlib.sha256) for secret in secrets_of(settings))


def as_text(secret: bytes) -> str:
    """Write a key as receivers configure it."""
    return PREFIX + base64.b64encode(secret).decode()


def _bytes_of(text: str) -> bytes:
    """Read `whsec_` and base64; any other text stands for its own bytes."""
    if text.startswith(PREFIX):
        try:
            return base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except binascii.Error:
            pass
    return text.encode()

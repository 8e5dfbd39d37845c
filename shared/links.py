"""The links that lead a customer to their page, and the marks that its forms carry.

A link is all that a customer has to show: whoever holds it may choose. So it names one charge, cannot be guessed from
the charge's id, says nothing else, and ends.
"""

import base64
import binascii
import hashlib
from datetime import datetime, timedelta
from typing import Final

from itsdangerous import BadSignature, TimestampSigner

from shared.settings import Settings
from shared.signing import secrets_of

LINK_LIFE: Final = timedelta(days=30)  # As long as a charge waits for somebody, unless its caller said otherwise.
FORM_LIFE: Final = timedelta(hours=12)  # A page that was left open overnight is shown anew before it acts.
CHARGE_ID_BYTES: Final = 20

LINK: Final = "customer's page"
FORM: Final = "customer's form"


class LinkInvalid(Exception):
    """This was never a link or a mark of ours, or not for this."""


class LinkExpired(Exception):
    """It was one of ours; its time is over."""


class _Signer(TimestampSigner):
    """itsdangerous's signer, on a clock that is passed in."""

    def __init__(self, settings: Settings, purpose: str, now: datetime) -> None:
        oldest_first = list(reversed(secrets_of(settings)))  # It signs with the last one.
        super().__init__(oldest_first, salt=purpose, key_derivation="hmac", digest_method=hashlib.sha256)
        self._now = now

    def get_timestamp(self) -> int:
        """Return the time that goes into a signature."""
        return int(self._now.timestamp())

    def read(self, signed: str, life: timedelta) -> str:
        """Return what was signed. Raises LinkInvalid or LinkExpired.

        A signature from the future is good: another machine's clock may be ahead of ours.
        """
        try:
            value, at = self.unsign(signed, return_timestamp=True)
        except (BadSignature, ValueError, OverflowError, OSError) as error:
            raise LinkInvalid from error
        if self._now > at + life:
            raise LinkExpired
        return value.decode()


def customer_url(settings: Settings, charge_id: str, now: datetime) -> str | None:
    """Return a link to this charge's page; None where there is no page. All day it is the same one."""
    if settings.portal_url is None:
        return None
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    name = base64.urlsafe_b64encode(bytes.fromhex(charge_id)).rstrip(b"=")
    token = _Signer(settings, LINK, today).sign(name).decode()
    return f"{settings.portal_url}/{token}"


def read_token(settings: Settings, token: str, now: datetime) -> str:
    """Return the id of the charge that a link's token names. Raises LinkInvalid or LinkExpired."""
    name = _Signer(settings, LINK, now).read(token, LINK_LIFE)
    try:
        raw = base64.b64decode(name + "=", altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise LinkInvalid from error
    if len(raw) != CHARGE_ID_BYTES:
        raise LinkInvalid
    return raw.hex()


def form_mark(settings: Settings, seen: str, now: datetime) -> str:
    """Return the mark of a form on a page that showed `seen`: only our own page can make one."""
    return _Signer(settings, FORM, now).sign(seen).decode()


def read_form_mark(settings: Settings, mark: str, now: datetime) -> str:
    """Return what the page showed that this form was on. Raises LinkInvalid or LinkExpired."""
    return _Signer(settings, FORM, now).read(mark, FORM_LIFE)

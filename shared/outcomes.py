"""Tells the caller's system about a charge, as Standard Webhooks has it (www.standardwebhooks.com, 1.0.0).

Every secret signs, so that a receiver that knows one of two is content while they are replaced.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Protocol

import requests

CONNECT_TIMEOUT_SECONDS: Final = 5.0  # Part of the time limit.
TIMEOUT_SECONDS: Final = 10.0  # A receiver that needs longer answers first, and works afterwards.


class NotTaken(Exception):
    """The receiver did not answer 2xx in time. It may have heard all the same, and hears again."""


class Outcomes(Protocol):
    """A way to tell the caller's system (`SignedPost`)."""

    def tell(self, message_id: str, body: Mapping[str, Any], now: datetime) -> None:
        """Tell it. Raises NotTaken."""


class SignedPost:
    """A POST to one address. A redirect is not followed: what is signed goes where the operator said.

    secrets: each signs; there is at least one.
    """

    def __init__(self, url: str, secrets: tuple[bytes, ...], *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        assert secrets, "nothing is told unsigned"
        self._url = url
        self._secrets = secrets
        connect = min(CONNECT_TIMEOUT_SECONDS, timeout_seconds / 2)
        self._timeout = (connect, timeout_seconds - connect)

    def tell(self, message_id: str, body: Mapping[str, Any], now: datetime) -> None:
        """Post the body as JSON. Raises NotTaken."""
        raw = json.dumps(body, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json", **signed(message_id, raw, now, self._secrets)}
        try:
            with requests.Session() as session:
                session.trust_env = False  # No .netrc signs in for us.
                answer = session.post(
                    self._url, data=raw, headers=headers, timeout=self._timeout, allow_redirects=False, stream=True
                )  # Its body is not read: it may have no end.
        except requests.RequestException as error:
            raise NotTaken(type(error).__name__) from error
        if not 200 <= answer.status_code < 300:
            raise NotTaken(str(answer.status_code))


def signed(message_id: str, raw: bytes, now: datetime, secrets: tuple[bytes, ...]) -> dict[str, str]:
    """Return the headers that sign these bytes. The id holds no full stop, which parts what is signed."""
    assert "." not in message_id, "a full stop would let one message pass for another"
    timestamp = str(int(now.timestamp()))
    content = b".".join((message_id.encode(), timestamp.encode(), raw))
    signatures = (base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode() for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }

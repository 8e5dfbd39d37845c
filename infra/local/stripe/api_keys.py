"""API keys: who may ask, in which mode, for what. Only digests are kept."""

import base64
import binascii
import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Final

from infra.local.stripe.errors import Refusal, invalid_api_key, no_permission
from infra.local.stripe.store import Store

SANE: Final = re.compile(r"(sk|rk)_(test|live)_[A-Za-z0-9_]{1,240}")
SETTING: Final = "api_keys"


class ApiKeys:
    """Which API keys work: any of sane form, or those listed; less those revoked."""

    def __init__(self, store: Store, listed: Iterable[str] | None) -> None:
        self._store = store
        self._listed = None if listed is None else {_digest(key) for key in listed}
        # None: revoked. A list: the operations it may use, as patterns.
        self._rules: dict[str, list[str] | None] = json.loads(store.setting(SETTING) or "{}")

    def revoke(self, key: str) -> None:
        """Answer 401 to this key from now on."""
        self._put(key, None)

    def restrict(self, key: str, operations: list[str]) -> None:
        """Let this key use only operations that match one of the patterns; 403 to others."""
        self._put(key, operations)

    def restore(self, key: str) -> None:
        """Let this key do everything again."""
        self._rules.pop(_digest(key), None)
        self._save()

    def check(self, key: str) -> None:
        """Raise the 401 if this API key does not work."""
        digest = _digest(key)
        known = SANE.fullmatch(key) is not None and (self._listed is None or digest in self._listed)
        if not known or self._rules.get(digest, []) is None:
            raise invalid_api_key(key)

    def check_permission(self, key: str, operation: str) -> None:
        """Raise the 403 if this key may not do that."""
        patterns = self._rules.get(_digest(key))
        if patterns is not None and not any(fnmatch.fnmatchcase(operation, pattern) for pattern in patterns):
            raise no_permission(operation)

    def _put(self, key: str, rule: list[str] | None) -> None:
        self._rules[_digest(key)] = rule
        self._save()

    def _save(self) -> None:
        self._store.set(SETTING, json.dumps(self._rules))


def api_key_of(authorization: str | None) -> str:
    """Return the API key a request carries, as bearer or as the user name of basic authentication."""
    scheme, _, credentials = (authorization or "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(credentials, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    message = (
        "You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer "
        "auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY')."
    )
    raise Refusal(401, message, saved=False)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()

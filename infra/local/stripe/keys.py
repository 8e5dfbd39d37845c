"""Idempotency keys: the promise this double exists for.

A key's life, for one POST:

    unknown --claim--> running --save--> saved --24 hours--> unknown
                          |
                          +--release--> unknown        (nothing ran: 429 lock_timeout, or the process died)

    while running, the same key                     409, not saved
    while saved, the same request                   the saved status and body, byte for byte
    while saved, another endpoint or parameters     400 idempotency_error; what is saved stays saved
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from infra.local.stripe.errors import Refusal, key_in_use

KEY_LIFE_SECONDS: Final = 24 * 60 * 60.0  # Stripe says "at least"; a double that forgets at once finds more mistakes.
KEY_LENGTH: Final = 255


@dataclass(frozen=True, slots=True)
class Claim:
    """A key and what it is used for. `scope` is the account and mode, each with keys of its own."""

    scope: str
    key: str
    endpoint: str
    parameters: str

    @classmethod
    def of(cls, scope: str, key: str, endpoint: str, form: Mapping[str, Any]) -> "Claim":
        """Return the claim of one request. Parameters compare by value, whatever their order."""
        return cls(scope, key, endpoint, json.dumps(form, sort_keys=True))


@dataclass(frozen=True, slots=True)
class Saved:
    """An answer that endpoint execution produced."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    request_id: str


class KeyTable:
    """What is known about each key. Those running are known to this process only, and end with it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._running: set[tuple[str, str]] = set()

    def claim(self, claim: Claim, now: float) -> Saved | None:
        """Return the saved answer, or None: then the key is running until `release`. Raises Refusal."""
        name = (claim.scope, claim.key)
        if name in self._running:
            raise key_in_use(claim.key)
        row = self._db.execute(
            "SELECT endpoint, parameters, status, headers, body, request_id, created"
            " FROM idempotency_key WHERE scope = ? AND key = ?",
            name,
        ).fetchone()
        if row is None or now - row[6] >= KEY_LIFE_SECONDS:
            self._running.add(name)
            return None
        if row[0] != claim.endpoint:
            path = row[0].partition(" ")[2]
            raise _mismatch(f"for the same endpoint they were first used for ('{path}')", claim.key)
        if row[1] != claim.parameters:
            raise _mismatch("with the same parameters they were first used with", claim.key)
        return Saved(row[2], json.loads(row[3]), row[4], row[5])

    def save(self, claim: Claim, saved: Saved, now: float) -> None:
        """Keep an answer, in the transaction of what it reports."""
        self._db.execute(
            "INSERT OR REPLACE INTO idempotency_key VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                claim.scope,
                claim.key,
                claim.endpoint,
                claim.parameters,
                saved.status,
                json.dumps(dict(saved.headers)),
                saved.body,
                saved.request_id,
                now,
            ),
        )

    def release(self, claim: Claim) -> None:
        """Let the key be used again: its request has ended."""
        self._running.discard((claim.scope, claim.key))

    def prune(self, before: float) -> int:
        """Forget every key first used before then; return how many."""
        return self._db.execute("DELETE FROM idempotency_key WHERE created <= ?", (before,)).rowcount

    def listed(self) -> list[dict[str, Any]]:
        """Return all keys, oldest first."""
        rows = self._db.execute(
            "SELECT scope, key, endpoint, status, request_id, created FROM idempotency_key ORDER BY created, scope, key"
        )
        names = ("scope", "key", "endpoint", "status", "request_id", "created")
        saved = [dict(zip(names, row, strict=True)) | {"running": False} for row in rows]
        running = [{"scope": scope, "key": key, "running": True} for scope, key in sorted(self._running)]
        return saved + running


def _mismatch(where: str, key: str) -> Refusal:
    message = (
        f"Keys for idempotent requests can only be used {where}. "
        f"Try using a key other than '{key}' if you meant to execute a different request."
    )
    return Refusal(400, message, type="idempotency_error", saved=False)

"""Tasks that can never work: kept where a person finds them, since refusing one would repeat it until it is lost.

Nothing was charged for any of them, and nothing ever is by what is done here: whoever sent it mends it and sends it
again, under the same key. A letter is settled when that is arranged; then what the caller sent is erased. Datastore
itself may delete letters past `expires_at` (its TTL: `terraform output ttl`); nothing relies on it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from shared.clock import Clock
from shared.ledger import Conflict, Ledger

KIND: Final = "DeadLetter"
KEY_KEPT: Final = 1500  # Characters of what should be a key and may be anything.
BODY_KEPT: Final = 64 * 1024  # Bytes. No body that works is longer, and an entity holds 1 MiB.


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A task that was refused, and why."""

    problem: str
    detail: str
    at: datetime
    expires_at: datetime | None = None
    idempotency_key: str = ""
    body: str = ""
    settled_at: datetime | None = None
    settled_by: str = ""
    note: str = ""  # What became of it, by whoever settled it.


class DeadLetters:
    """The letters of a ledger. keep_for: how long one is kept that nobody settles, where Datastore deletes them."""

    def __init__(self, *, ledger: Ledger, clock: Clock, keep_for: timedelta) -> None:
        self._ledger = ledger
        self._clock = clock
        self._keep_for = keep_for

    def keep(self, *, idempotency_key: str, body: bytes, problem: str, detail: str) -> str:
        """Keep a task, and return the letter's name: the same task is one letter, however often it comes.

        One that was settled is open again. Raises LedgerUnavailable.
        """
        name = hashlib.sha256(idempotency_key.encode() + b"\n" + body).hexdigest()
        now = self._clock.now()
        letter = DeadLetter(
            problem=problem,
            detail=detail,
            at=now,
            expires_at=now + self._keep_for,
            idempotency_key=idempotency_key[:KEY_KEPT],
            body=body[:BODY_KEPT].decode(errors="replace"),
        )
        while not self._ledger.record_once(KIND, name, _written(letter)):
            stored = self._ledger.read(KIND, name)
            if stored is not None and "settled_at" not in stored.properties:
                return name
            if stored is not None and self._replace(name, letter, stored.version):
                return name
        return name

    def all(self) -> Iterator[tuple[str, DeadLetter]]:
        """Read all letters, by name. Raises LedgerUnavailable."""
        last = ""
        while names := self._ledger.names(KIND, after=last):
            for name in names:
                letter = self.read(name)
                if letter is not None:
                    yield name, letter
            last = names[-1]

    def read(self, name: str) -> DeadLetter | None:
        """Read a letter; None: there is none, or none any more. Raises LedgerUnavailable."""
        stored = self._ledger.read(KIND, name)
        return None if stored is None else msgspec.convert(dict(stored.properties), DeadLetter)

    def settle(self, name: str, note: str, actor: str) -> DeadLetter | None:
        """Say what became of a letter, and erase what its caller sent. None: there is no such letter.

        Settled again, it has the last note, and says whose that is. Raises LedgerUnavailable.
        """
        while True:
            stored = self._ledger.read(KIND, name)
            if stored is None:
                return None
            letter = msgspec.convert(dict(stored.properties), DeadLetter)
            settled = DeadLetter(
                problem=letter.problem,
                detail=letter.detail,
                at=letter.at,
                expires_at=letter.expires_at,
                settled_at=letter.settled_at or self._clock.now(),
                settled_by=actor,
                note=note,
            )
            if self._replace(name, settled, stored.version):
                return settled

    def _replace(self, name: str, letter: DeadLetter, base_version: int) -> bool:
        try:
            self._ledger.write(KIND, name, _written(letter), base_version)
        except Conflict:
            return False
        return True


def _written(letter: DeadLetter) -> dict[str, Any]:
    written: dict[str, Any] = msgspec.to_builtins(letter, builtin_types=(datetime,))
    return {name: value for name, value in written.items() if value is not None}

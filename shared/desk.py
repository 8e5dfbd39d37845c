"""What needs somebody, for the operator's page and the command line; and settling what only a person can.

Nothing here moves money. What does are the acts of `deliver.Charger`, the same that callers and customers have.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Generic, TypeVar

import msgspec

from shared import log, policy
from shared.charge import Charge, charge_id
from shared.clock import Clock
from shared.dead_letters import DeadLetter, DeadLetters
from shared.gate import Gate, LedgerClosed
from shared.ledger import Conflict, Ledger
from shared.reconcile import FINDING, Finding, Reconciler, Report
from shared.store import Stored, shard_of

T = TypeVar("T")

LATE_AFTER: Final = timedelta(hours=1)  # As the alert has it.
PER_SHARD: Final = 10  # Read of each: enough to fill a page, few enough to read it at once.
SHOWN: Final = 100  # Of each list.

CHARGE_ID: Final = re.compile(r"[0-9a-f]{40}")
PAYMENT_INTENT: Final = re.compile(r"pi_\w+", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Listed(Generic[T]):
    """What is shown of a list, the oldest first, and whether there is more than that."""

    shown: tuple[T, ...]
    more: bool = False


@dataclass(frozen=True, kw_only=True)
class Noted(Finding):
    """A Finding that no charge can keep, because it is about none that is recorded as it says."""

    name: str
    at: datetime
    note: str = ""  # What an operator said of it who settled it.
    settled_by: str = ""
    settled_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What needs somebody now."""

    closed: str  # Why nothing is charged; empty while the ledger is open.
    attention: Listed[Charge]  # Blocked, or with something that nobody explains.
    late: Listed[Charge]  # Waiting for us for longer than `LATE_AFTER`.
    findings: Listed[Noted]
    letters: Listed[tuple[str, DeadLetter]]
    report: Report | None  # Of the last audit.


class Desk:
    """The operator's. Every call may raise LedgerUnavailable."""

    def __init__(
        self, *, ledger: Ledger, gate: Gate, reconciler: Reconciler, letters: DeadLetters, clock: Clock
    ) -> None:
        self._ledger = ledger
        self._gate = gate
        self._reconciler = reconciler
        self._letters = letters
        self._clock = clock

    def overview(self) -> Overview:
        """Read what needs somebody: as much of it as fits on a page."""
        reports = self._reconciler.reports()
        unsettled = ((name, letter) for name, letter in self._letters.all() if letter.settled_at is None)
        return Overview(
            closed=self._closed(),
            attention=self._attention(),
            late=self._late(),
            findings=_listed(found for found in self.findings() if not found.settled),
            letters=_listed(unsettled),
            report=self._reconciler.report(reports[-1]) if reports else None,
        )

    def find(self, text: str, account: str | None = None) -> str | None:
        """Name the charge with this id, PaymentIntent or Idempotency-Key (of a connected account: with its id)."""
        text = text.strip()
        if CHARGE_ID.fullmatch(text) and self._ledger.get(text) is not None:
            return text
        if PAYMENT_INTENT.fullmatch(text):
            found = self._ledger.find(text)
            if found:
                return found[0]
        name = charge_id(account, text)
        return name if self._ledger.get(name) is not None else None

    def findings(self) -> Iterator[Noted]:
        """Read what an audit found and no charge can keep, by name."""
        last = ""
        while names := self._ledger.names(FINDING, after=last):
            for name in names:
                stored = self._ledger.read(FINDING, name)
                if stored is not None:
                    yield _noted(name, stored)
            last = names[-1]

    def settle(self, name: str, note: str, actor: str) -> Noted | None:
        """Say what became of such a finding. None: there is none of this name. Settled again, it has the last note."""
        while True:
            stored = self._ledger.read(FINDING, name)
            if stored is None:
                return None
            written = {
                **stored.properties,
                "settled": policy.BY_OPERATOR,
                "note": note,
                "settled_by": actor,
                "settled_at": self._clock.now(),
            }
            try:
                version = self._ledger.write(FINDING, name, written, stored.version)
            except Conflict:
                continue
            return _noted(name, Stored(written, version))

    def _closed(self) -> str:
        try:
            self._gate.check()
        except LedgerClosed as closed:
            return str(closed)
        return ""

    def _attention(self) -> Listed[Charge]:
        names = self._ledger.attention(PER_SHARD)
        return _listed(self._charges(names, policy.needs_person), more=_is_cut(names))

    def _late(self) -> Listed[Charge]:
        now = self._clock.now()
        names = self._ledger.due(now + policy.CLOSING_WAIT, PER_SHARD)

        def is_late(charge: Charge) -> bool:
            return policy.needs_us(charge) and charge.created_at <= now - LATE_AFTER

        return _listed(self._charges(names, is_late), more=_is_cut(names))

    def _charges(self, names: Iterable[str], shown: Callable[[Charge], bool]) -> Iterator[Charge]:
        for name in names:
            try:
                held = self._ledger.get(name)
            except msgspec.ValidationError:  # Written by a newer version, or by hand: the audit reports it.
                log.exception("a charge cannot be read", charge=name)
                continue
            if held is not None and shown(held.charge):
                yield held.charge


def _listed(found: Iterable[T], *, more: bool = False) -> Listed[T]:
    shown = tuple(itertools.islice(found, SHOWN + 1))
    return Listed(shown=shown[:SHOWN], more=more or len(shown) > SHOWN)


def _is_cut(names: Iterable[str]) -> bool:
    """Whether a shard has more charges than were named."""
    return max(Counter(map(shard_of, names)).values(), default=0) >= PER_SHARD


def _noted(name: str, stored: Stored) -> Noted:
    written: dict[str, Any] = {**stored.properties, "name": name}
    return msgspec.convert(written, Noted)

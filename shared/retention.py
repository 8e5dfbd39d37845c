"""Erases what is personal in charges that are long over, or of which somebody asked it.

Each charge is one write, conditional on the version that was read: whoever dies in the middle has erased some and not
the others, and two who run at once erase each charge once. What is open is never touched.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Final

import msgspec

from shared import log
from shared.charge import Charge
from shared.clock import Clock
from shared.erasure import erased, is_erased
from shared.gate import Gate
from shared.ledger import Conflict, Ledger

BATCH: Final = 10  # Charges of a shard and a run: with 16 shards, a few seconds.


class NotOver(Exception):
    """The charge is open, or something beside it is still to be done. The message says what to do."""


class Retention:
    """Erasing, over the adapters given. keep_for: how long an ended charge is kept whole, from when it last changed."""

    def __init__(self, *, ledger: Ledger, gate: Gate, clock: Clock, keep_for: timedelta) -> None:
        self._ledger = ledger
        self._gate = gate
        self._clock = clock
        self._keep_for = keep_for

    def run(self, has_time: Callable[[], bool]) -> int:
        """Erase charges whose time is over, the oldest of each shard. Returns how many; 0: none is left.

        Raises LedgerUnavailable, LedgerClosed.
        """
        self._gate.check()
        before, count = self._clock.now() - self._keep_for, 0
        for name in self._ledger.ended(before, BATCH):
            if not has_time():
                return max(count, 1)  # There is more.
            try:
                held = self._ledger.get(name)
                if held is not None and held.charge.done and held.charge.updated_at <= before:
                    self._ledger.update(held, erased(held.charge, self._clock.now()))
                    log.info("erased", charge=name)
                    count += 1
            except Conflict:  # Something has happened to it just now: its time begins anew.
                continue
            except msgspec.ValidationError:  # Written by a newer version, or by hand: the others cannot help it.
                log.exception("a charge cannot be read", charge=name)
        return count

    def erase(self, charge_id: str) -> Charge | None:
        """Erase one charge now, because a person asks for it. None: there is no such charge.

        Raises NotOver, LedgerUnavailable, LedgerClosed.
        """
        self._gate.check()
        while True:
            held = self._ledger.get(charge_id)
            if held is None or is_erased(held.charge):
                return None if held is None else held.charge
            if not held.charge.final:
                raise NotOver(f"The charge is {held.charge.status}. End it first: it may need what is to be erased.")
            if not held.charge.done:
                raise NotOver("Something is still to be done or told for this charge. Try again when due_at is gone.")
            try:
                after = self._ledger.update(held, erased(held.charge, self._clock.now()))
            except Conflict:
                continue
            log.info("erased", charge=charge_id)
            return after.charge

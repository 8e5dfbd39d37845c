"""Paidonce: the real functions, deployed as in `tests/world.py`, with the limits they come with.

The order's queue brings it as a task to the charge function, under the order's number. What the functions do by
themselves afterwards comes by their own task queue, whose backoff is that of the order's queue and which stops when
that does, and by the sweep, once a minute. No webhooks, as for everybody.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar
from urllib.parse import urlsplit

from shared.charge import FINAL, Charge, Status, charge_id
from shared.ledger import charge_of
from shared.policy import Limits, unheard
from shared.store import CHARGE
from tests.peers.storm import AGAIN, Call, Factory, Peer, Sky, Word, backoff_after, terms
from tests.world import SWEEP_EVERY, Told, Waiting, World

T = TypeVar("T")

SAYS: Final[Mapping[Status, Word]] = {
    Status.SUCCEEDED: Word.PAID,
    Status.PAID_OUT_OF_BAND: Word.PAID,
    Status.DECLINED: Word.FAILED,
    Status.CANCELED: Word.FAILED,
    Status.ACTION_REQUIRED: Word.ACTION_REQUIRED,
}
CALLS: Final[Mapping[str, Call]] = {
    "create": Call.POST,
    "confirm": Call.CHARGE,
    "cancel": Call.POST,
    "fetch": Call.GET,
    "list": Call.GET,
    "insert": Call.WRITE,
    "update": Call.WRITE,
    "create_task": Call.WRITE,
    "get": Call.READ,
    "by_payment_intent": Call.READ,
}


@dataclass(kw_only=True)
class _StormyWorld(World):
    """The world of the crash-point suite, whose calls across a boundary meet the storm's faults instead."""

    sky: Sky

    def __post_init__(self) -> None:
        super().__post_init__()
        self.engine.close()
        self.engine = self.sky.engine

    def cross(self, service: str, where: str, call: Callable[[], T], lost: Callable[[], Exception]) -> T:
        """Make a call, with whatever it meets."""
        kind = CALLS.get(where.partition(" ")[0])
        if kind is None or self._inside:  # A look for what is due, by the sweep: that comes every minute.
            return call()
        if service == "stripe":
            return self.sky.at_stripe(kind, call)  # type: ignore[arg-type,return-value]  # What the SDK's client answers.
        return (self.sky.read if kind is Call.READ else self.sky.write)(call, lost)


class Paidonce(Peer):
    """Hand the order to the charge function, and let the task queue and the scheduler do the rest."""

    def __init__(self, sky: Sky) -> None:
        super().__init__(sky)
        self.world = _StormyWorld(sky=sky, clock=sky.clock, limits=Limits(), webhooks_on=False)
        self.name = charge_id(None, sky.order.number)

    def deliver(self, tries: int) -> timedelta | None:
        """Bring the order to the charge function, as a task."""
        asked = terms(self.order, self.sky.customer)
        return self._again(self._post("/", asked, self.order.number, tries, key=self.order.number))

    def word(self) -> Word:
        """Read the ledger."""
        charge = self._charge()
        return Word.UNKNOWN if charge is None else SAYS.get(charge.status, Word.UNKNOWN)

    def due(self) -> datetime | None:
        """Say when the first task is due, or the next sweep that finds the charge due."""
        times = [self.sky.held(waiting.at) for waiting in self.world.queue.values()]
        charge = self._charge()
        if charge is not None and charge.due_at is not None:
            at = (
                self.sky.clock.now()
                if unheard(charge, self.sky.clock.now(), self.world.limits)
                else max(charge.due_at, self.sky.clock.now())
            )
            times.append(_next_sweep(at))
        return min(times, default=None)

    def work(self) -> None:
        """Dispatch the tasks that are due; if none is, sweep."""
        now = self.sky.clock.now()
        due = [name for name, waiting in self.world.queue.items() if self.sky.held(waiting.at) <= now]
        for name in due:
            self._dispatch(name, self.world.queue[name])
        if not due:
            self.world.sweep()

    def _dispatch(self, name: str, waiting: Waiting) -> None:
        path = urlsplit(waiting.task.url).path
        wait = self._again(self._post(path, json.loads(waiting.task.body), name, waiting.tries))
        if wait is None:
            del self.world.queue[name]
            return
        waiting.at = self.sky.clock.now() + max(wait, backoff_after(waiting.tries))
        waiting.tries += 1

    def _post(self, path: str, body: object, task: str, tries: int, **options: str) -> Told | None:
        """Dispatch a task, as Cloud Tasks does."""
        return self.world.post(path, body, by_task=task, **{"X-CloudTasks-TaskRetryCount": str(tries)}, **options)

    def _again(self, told: Told | None) -> timedelta | None:
        """Read an answer as Cloud Tasks does: 2xx is the end of it, and Retry-After is minded."""
        assert not self.world.violations, self.world.violations
        if told is None:
            return AGAIN
        if told.status // 100 == 2:
            return None
        return timedelta(seconds=float(told.headers.get("Retry-After", "0")))

    def _charge(self) -> Charge | None:
        stored = self.world.store._entities.get((CHARGE, self.name))
        return None if stored is None else charge_of(stored.properties)


def _next_sweep(at: datetime) -> datetime:
    """Return the first whole minute after that."""
    return at + SWEEP_EVERY - timedelta(seconds=at.timestamp() % SWEEP_EVERY.total_seconds())


@contextlib.contextmanager
def ready() -> Iterator[Factory]:
    """Keep the functions' log out of the table."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123 - it is no file.
        yield Paidonce


assert SAYS.keys() >= FINAL

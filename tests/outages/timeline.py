"""Virtual time for many things at once.

Each process is a thread, but only one runs at any moment: it has the baton until it sleeps or ends, and then the
timeline moves on to whatever is next. So a run takes as long as its computing, however long it lasts, and the same run
happens the same way again.
"""

import heapq
import itertools
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final


class Timeline:
    """A clock (`shared.clock.Clock`) that moves from event to event."""

    def __init__(self, start: datetime) -> None:
        self.start: Final = start
        self._now = start
        self._numbers = itertools.count()
        self._events: list[tuple[datetime, int, Callable[[], None]]] = []
        self._idle: list[_Worker] = []
        self._running: _Worker | None = None
        self._baton = threading.Lock()
        self._baton.acquire()
        self._failure: BaseException | None = None

    # --- As a clock ---------------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """Return the virtual time."""
        return self._now

    def monotonic(self) -> float:
        """Return the virtual seconds since the start."""
        return (self._now - self.start).total_seconds()

    def sleep(self, duration: timedelta) -> None:
        """Let others run until then; only within a process."""
        worker = self._running
        assert worker is not None, "only a process sleeps"
        self.at(self._now + duration, lambda: self._run(worker))
        self._pass_baton_back()
        worker.go.acquire()

    # --- As a stage ---------------------------------------------------------------------------------------------------

    def at(self, time: datetime, action: Callable[[], None]) -> None:
        """Do something at this time, or now if that is past. It does not sleep."""
        heapq.heappush(self._events, (max(time, self._now), next(self._numbers), action))

    def spawn(self, work: Callable[[], object]) -> None:
        """Begin a process now, once whatever runs now has slept or ended."""
        self.at(self._now, lambda: self._begin(work))

    def run(self, until: datetime, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Let everything happen until this time, or until `unless` says that it is over."""
        while self._events and self._events[0][0] <= until and not unless():
            self._now, _, action = heapq.heappop(self._events)
            action()
            if self._failure is not None:
                raise self._failure

    def _begin(self, work: Callable[[], object]) -> None:
        worker = self._idle.pop() if self._idle else _Worker(self)
        worker.work = work
        self._run(worker)

    def _run(self, worker: "_Worker") -> None:
        self._running = worker
        worker.go.release()
        self._baton.acquire()
        self._running = None

    def _pass_baton_back(self) -> None:
        self._baton.release()

    def _ended(self, worker: "_Worker", failure: BaseException | None) -> None:
        self._failure = failure or self._failure
        self._idle.append(worker)
        self._pass_baton_back()


class _Worker(threading.Thread):
    """A thread that does one process after another."""

    def __init__(self, timeline: Timeline) -> None:
        super().__init__(daemon=True)
        self._timeline = timeline
        self.work: Callable[[], object] = lambda: None
        self.go = threading.Lock()
        self.go.acquire()
        self.start()

    def run(self) -> None:
        """Do what there is to do, whenever it is this thread's turn."""
        while True:
            self.go.acquire()
            failure: BaseException | None = None
            try:
                self.work()
            except BaseException as error:  # noqa: BLE001 - it is raised again where the timeline runs.
                failure = error
            self._timeline._ended(self, failure)

"""Brings tasks to their workers: one thread waits for what is due, and each delivery has a thread of its own."""

import logging
import threading
import time
from typing import Final

from infra.local.tasks.delivery import Exchange, deadline_of, request_of
from infra.local.tasks.engine import Delivery, Engine
from infra.local.tasks.faults import Faults
from infra.local.tasks.identity import Identity

LONGEST_WAIT_SECONDS: Final = 60.0  # So that a clock that was set is noticed, and a lifetime that is over.
STOP_TIMEOUT_SECONDS: Final = 2.0  # Abandoned deliveries end at once, but for one that is still connecting.

log = logging.getLogger(__name__)


class Dispatcher:
    """Delivers what is due until it is stopped. A slow worker holds up its own delivery and nothing else."""

    def __init__(self, engine: Engine, identity: Identity, faults: Faults) -> None:
        self._engine = engine
        self._identity = identity
        self._faults = faults
        self._changed = threading.Event()
        self._stopping = False
        self._lock = threading.Lock()
        self._exchanges: dict[threading.Thread, Exchange] = {}
        self._waiter = threading.Thread(target=self._dispatch, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._waiter.start()

    def wake(self) -> None:
        """Look again, since something has changed."""
        self._changed.set()

    def run_task(self, name: str) -> Delivery:
        """Deliver a task now, whatever holds it back. Raises Refused."""
        delivery = self._engine.run_task(name)
        self._deliver(delivery)
        return delivery

    def stop(self) -> None:
        """Stop at once. What is on its way is abandoned, and is due again when the database is next opened."""
        with self._lock:
            self._stopping = True
            exchanges = dict(self._exchanges)
        self.wake()
        for exchange in exchanges.values():
            exchange.abandon()
        ends_at = time.monotonic() + STOP_TIMEOUT_SECONDS
        for thread in (self._waiter, *exchanges):
            thread.join(max(0.0, ends_at - time.monotonic()))

    def _dispatch(self) -> None:
        while not self._stopping:
            self._changed.clear()  # Before looking, so that a change while looking is not missed.
            wait_seconds = LONGEST_WAIT_SECONDS
            if not self._faults.strikes("dispatch_stopped"):
                due = self._engine.start_due()
                for delivery in due.deliveries:
                    self._deliver(delivery)
                if due.next_at is not None:
                    wait_seconds = min(wait_seconds, (due.next_at - self._engine.now()).total_seconds())
            self._changed.wait(max(0.0, wait_seconds))

    def _deliver(self, delivery: Delivery) -> None:
        self._send(delivery, recorded=True)
        if self._faults.strikes("delivered_twice"):
            self._send(delivery, recorded=False)

    def _send(self, delivery: Delivery, *, recorded: bool) -> None:
        exchange = Exchange(request_of(delivery, self._identity), deadline_of(delivery))
        thread = threading.Thread(
            target=self._await_end, args=(delivery, exchange, recorded), name=delivery.task.name, daemon=True
        )
        with self._lock:
            if self._stopping:
                return  # The database says that it is on its way, and forgets that when it is opened again.
            self._exchanges[thread] = exchange
            thread.start()

    def _await_end(self, delivery: Delivery, exchange: Exchange, recorded: bool) -> None:
        outcome = exchange.run()
        # An answer counts to the last moment; having stopped listening is no failure of the worker's.
        if recorded and (outcome.status is not None or not self._stopping):
            verdict = self._engine.finish(delivery, outcome)
            if verdict.became == "dead":
                log.warning("%s was given up: %s; last: %s", delivery.task.name, verdict.why, outcome.reason)
            self.wake()
        with self._lock:
            del self._exchanges[threading.current_thread()]

"""A DBOS workflow on SQLite: one step that charges, one that records.

Done as https://docs.dbos.dev/python/tutorials/workflow-tutorial and `step-tutorial` beside it say: the order's number
is the workflow's id, so that an order delivered twice runs once; what touches the world is a step; a step that calls an
API has retries with backoff. Steps are "tried at least once", so the call carries an idempotency key, of the order as
well. A decline is the step's result, not its exception. The retries go on for as long as Stripe keeps the key (33 of
them: up to an hour apart, 21 hours together; the tutorial's 10 would give up after 9 minutes), and what is not known by
then is recorded as unknown, not as failed.

The queue's message is done with once the workflow is durably started. The death of the process is an exception that
no handler of DBOS catches: nothing more of that run reaches the database. Five seconds later the process is back, and
what it left pending goes through DBOS's own recovery, whose queue is polled once, by DBOS's own code, in this thread.
The rest of the threads that DBOS starts have nothing to do here. A failing database is a transaction whose commit
raises, before or after it was done; DBOS itself repeats it.
"""

import contextlib
import contextvars
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar
from unittest import mock

import dbos._dbos as inside
import sqlalchemy
import stripe
from dbos import DBOS, DBOSConfig, SetWorkflowID, error
from dbos._queue import queue_worker_thread
from dbos._recovery import recover_pending_workflows

from tests.peers.storm import Factory, Peer, Sky, Word, charge_now, word_of, word_of_decline

T = TypeVar("T")

RESTART: Final = timedelta(seconds=5)  # Until the platform has started another process.
POLL: Final = timedelta(seconds=1)  # How often DBOS looks into its queues,
IDLE_POLL: Final = timedelta(minutes=1)  # and how seldom it does here, in the end, where it goes on finding nothing.
IDLE: Final = ("queue_thread", "background_jobs_thread", "dynamic_scheduler_loop")  # DBOS's threads.
ATTEMPTS: Final = 33  # 1, 2, 4, ... 2,048 s and then every hour: 21 hours.


@DBOS.step(retries_allowed=True, max_attempts=ATTEMPTS)
def charge(number: str) -> str:
    """Charge the order, under the workflow's id."""
    sky = Sky.here
    try:
        intent = sky.client().v1.payment_intents.create(charge_now(sky), {"idempotency_key": f"charge-{number}"})
    except stripe.CardError as declined:
        return word_of_decline(declined)
    return word_of(intent)


@DBOS.step(retries_allowed=True, max_attempts=ATTEMPTS)
def record(number: str, word: str) -> None:
    """Record what came of it."""
    assert number == Sky.here.order.number, "orders are charged one after the other"
    Sky.here.table.record(Word(word))


@DBOS.workflow()
def charge_order(number: str) -> None:
    """Charge, record."""
    try:
        word = charge(number)
    except error.DBOSMaxStepRetriesExceeded:
        word = Word.UNKNOWN
    record(number, word)


class DbosWorkflow(Peer):
    """Start the workflow of the order; let DBOS see to the rest."""

    def __init__(self, sky: Sky, inside_dbos: "_Inside") -> None:
        super().__init__(sky)
        self._dbos = inside_dbos
        self._restarts_at: datetime | None = None
        self._polls_at: datetime | None = None
        self._gap = POLL

    def deliver(self, tries: int) -> timedelta | None:  # noqa: ARG002 - every delivery is alike.
        """Start the workflow, unless it was started; the message is done with."""
        with SetWorkflowID(self.order.number):
            DBOS.start_workflow(charge_order, self.order.number)
        return None

    def word(self) -> Word:
        """Read the shop's table."""
        return self.sky.table.seen()

    def died(self) -> None:
        """Let the platform start another process."""
        self._restarts_at = self.sky.clock.now() + RESTART

    def due(self) -> datetime | None:
        """Say when the new process is there, or when DBOS next looks into its queue."""
        return self._restarts_at or self._polls_at

    def work(self) -> None:
        """Let DBOS recover what is pending, and run what that has put into its queue."""
        if self._restarts_at is not None:
            self._restarts_at, self._gap = None, POLL
            recover_pending_workflows(self._dbos.dbos, ["local"])
        queue_worker_thread(_OnePoll(), self._dbos.dbos, self._dbos.dbos._registry.get_internal_queue())
        self._polls_at = self.sky.clock.now() + self._gap if self._dbos.is_open(self.order.number) else None
        self._gap = min(2 * self._gap, IDLE_POLL)


class _OnePoll(threading.Event):
    """The event that ends DBOS's queue thread: not before its first poll, and then at once."""

    def __init__(self) -> None:
        super().__init__()
        self._polls = 0

    def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002 - the time is ours.
        """Say whether to end."""
        self._polls += 1
        return self._polls > 1


class _Inline:
    """The thread pool that DBOS runs workflows on, in this thread: a death passes through it."""

    def submit(self, run: Callable[..., T], *arguments: Any) -> Future[T]:
        """Run it now."""
        future: Future[T] = Future()
        try:
            future.set_result(contextvars.Context().run(run, *arguments))
        except Exception as failed:  # noqa: BLE001 - it is the future's, as with any pool.
            future.set_exception(failed)
        return future

    def shutdown(self, **_: Any) -> None:
        """Nothing runs."""


class _Database(sqlite3.Connection):
    """A connection whose commits meet the storm's faults."""

    ours: int = 0  # The thread that charges, once it does.

    def commit(self) -> None:
        """Commit what was written."""
        if threading.get_ident() != _Database.ours or not self.in_transaction:
            super().commit()
            return
        Sky.here.write(super().commit, lambda: sqlite3.OperationalError("database is locked"))


class _Inside:
    """DBOS, launched on a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "dbos.sqlite"
        engine = sqlalchemy.create_engine("sqlite://", creator=self._connect, poolclass=sqlalchemy.QueuePool)
        config: DBOSConfig = {"name": "peers", "system_database_engine": engine, "log_level": "CRITICAL"}
        self.dbos = DBOS(config=config)
        DBOS.launch()
        self.dbos._executor_field = _Inline()  # type: ignore[assignment]  # As much of a pool as it uses.
        self._past_faults = sqlite3.connect(self._file)

    def _connect(self) -> sqlite3.Connection:
        """Connect as DBOS does, and without waiting for the disk."""
        connection = sqlite3.connect(
            self._file, factory=_Database, check_same_thread=False, isolation_level="IMMEDIATE", timeout=30
        )
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=OFF")
        return connection

    def is_open(self, number: str) -> bool:
        """Whether the workflow is there and has not ended."""
        query = "SELECT status FROM workflow_status WHERE workflow_uuid = ?"
        row = self._past_faults.execute(query, (number,)).fetchone()
        return row is not None and row[0] in {"PENDING", "ENQUEUED"}


@contextlib.contextmanager
def ready() -> Iterator[Factory]:
    """Launch DBOS, without the threads that would look into its tables by the real clock."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for name in IDLE:
            stack.enter_context(mock.patch.object(inside, name, _nothing))
        launched = _Inside(Path(folder))
        _Database.ours = threading.get_ident()
        try:
            yield lambda sky: DbosWorkflow(sky, launched)
        finally:
            _Database.ours = 0
            DBOS.destroy()


def _nothing(*_: Any) -> None:
    """Stand in for a thread."""

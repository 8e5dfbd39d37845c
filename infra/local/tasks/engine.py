"""Queues and tasks: what is kept, and every decision about it. No network, no threads, no waiting.

Each public method is one SQLite transaction under one lock, so what it returned survives the end of the process,
however that ends. A task leaves the database when its success is recorded and not before, and what was on its way when
the process ended is due again: a crash in between delivers twice and never loses.
"""

import secrets
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from infra.local.tasks import rules
from infra.local.tasks.flow import Flow
from infra.local.tasks.messages import Queue, QueueMessage, State, Task, TaskMessage, View, moment
from infra.local.tasks.retries import backoff, reason_to_stop, retry_after
from infra.local.tasks.rules import Refused, Settings, invalid

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS queues (
    name TEXT PRIMARY KEY,
    message BLOB NOT NULL,
    deleted_us INTEGER,                       -- Set: nothing but a name that may not be used again yet.
    done INTEGER NOT NULL DEFAULT 0,          -- Tasks that succeeded.
    dead INTEGER NOT NULL DEFAULT 0           -- Tasks that were given up.
);
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,     -- Never used again, as a name may be.
    name TEXT NOT NULL UNIQUE,
    queue TEXT NOT NULL,
    message BLOB NOT NULL,
    created_us INTEGER NOT NULL,
    due_us INTEGER NOT NULL,
    in_flight INTEGER NOT NULL DEFAULT 0,     -- Deliveries that have not ended.
    executions INTEGER NOT NULL DEFAULT 0,    -- Answers but 5xx.
    previous_response INTEGER                 -- HTTP status of the last attempt, if it had one.
);
CREATE INDEX IF NOT EXISTS tasks_by_due ON tasks (queue, in_flight, due_us);
CREATE INDEX IF NOT EXISTS tasks_by_creation ON tasks (created_us);
CREATE TABLE IF NOT EXISTS reserved_names (name TEXT PRIMARY KEY, until_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS reserved_names_by_end ON reserved_names (until_us);
CREATE TABLE IF NOT EXISTS keys (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
MOST_TASKS_A_PAGE: Final = 1000
MOST_QUEUES_A_PAGE: Final = 9800

CODE_OF_STATUS: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one delivery ended: with an answer, or without one and a code that says why."""

    status: int | None = None
    retry_after: str | None = None
    no_answer: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE

    @property
    def succeeded(self) -> bool:
        """Whether the task is done: 2xx, and nothing else."""
        return self.status is not None and 200 <= self.status <= 299

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status by which the service shows it."""
        if self.status is None:
            return self.no_answer
        return CODE_OF_STATUS.get(self.status, grpc.StatusCode.UNKNOWN)

    @property
    def reason(self) -> str:
        """What the next attempt is told as X-CloudTasks-TaskRetryReason."""
        if self.status is None:
            return f"{self.code.name}: no answer"
        return f"{self.code.name}: HTTP status code {self.status}"


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One task on its way to its worker, as it was when it left."""

    task_id: int
    task: TaskMessage
    executions: int
    previous_response: int | None
    retry_reason: str  # Empty at first.
    started: datetime
    forced: bool  # By RunTask.

    @property
    def queue_name(self) -> str:
        """The full name of its queue."""
        return rules.queue_of(self.task.name)


@dataclass(frozen=True, kw_only=True)
class Round:
    """What is to be delivered now, and when to look again (None: when something changes)."""

    deliveries: list[Delivery]
    next_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a task after a delivery: done, dead, gone before, or due again."""

    became: str
    why: str = ""
    due: datetime | None = None


class Engine:
    """The state of the emulator.

    database: a file that only this process uses, or ":memory:".
    now: the clock, in UTC; a test may pass its own.

    Raises sqlite3.OperationalError if another process uses the file.
    """

    def __init__(
        self,
        database: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        settings: Settings | None = None,
    ) -> None:
        self.now = now
        self._settings = settings or Settings()
        self._lock = threading.RLock()
        self._flows: defaultdict[str, Flow] = defaultdict(lambda: Flow(first_hold=self._settings.first_hold))
        # One connection, its own transactions, its own lock.
        self._database = sqlite3.connect(database, isolation_level=None, check_same_thread=False, timeout=1.0)
        # Two emulators on one file would deliver everything twice.
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        # The log survives the end of this process, if not always that of the machine; a sync a task would cost 10 ms.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(SCHEMA)
        # What was on its way when the last process ended is due again.
        self._database.execute("UPDATE tasks SET in_flight = 0 WHERE in_flight > 0")

    def close(self) -> None:
        """Close the database. Nothing else may be called after it."""
        with self._lock:
            self._database.close()

    def key(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return the secret kept under a name, made on first use."""
        with self._transaction() as database:
            row = database.execute("SELECT value FROM keys WHERE name = ?", (name,)).fetchone()
            if row is not None:
                return bytes(row[0])
            value = make()
            database.execute("INSERT INTO keys (name, value) VALUES (?, ?)", (name, value))
            return value

    # Queues

    def create_queue(self, parent: str, queue: QueueMessage) -> QueueMessage:
        """Create a queue."""
        rules.check_name(rules.LOCATION, parent)
        rules.check_name(rules.QUEUE, queue.name)
        if not queue.name.startswith(f"{parent}/queues/"):
            raise invalid(f"the queue {queue.name!r} is not of {parent!r}")
        with self._transaction():
            if self._find_queue(queue.name) is not None:
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"the queue {queue.name!r} exists")
            return self._insert_queue(queue)

    def create_queue_if_absent(self, queue: QueueMessage) -> QueueMessage:
        """Create a queue, or return the one of that name as it is."""
        rules.check_name(rules.QUEUE, queue.name)
        with self._transaction():
            return self._find_queue(queue.name) or self._insert_queue(queue)

    def get_queue(self, name: str) -> QueueMessage:
        """Return a queue."""
        rules.check_name(rules.QUEUE, name)
        with self._transaction():
            return self._queue(name)

    def list_queues(self, parent: str, page_size: int, page_token: str) -> tuple[list[QueueMessage], str]:
        """Return a page of the queues of a location, by name, and the token of the next page."""
        rules.check_name(rules.LOCATION, parent)
        size = _page_size(page_size, MOST_QUEUES_A_PAGE)
        with self._transaction() as database:
            rows = database.execute(
                "SELECT name, message FROM queues WHERE name > ? AND name GLOB ? AND deleted_us IS NULL"
                " ORDER BY name LIMIT ?",
                (page_token, f"{parent}/queues/*", size + 1),
            ).fetchall()
        return [Queue.FromString(message) for _, message in rows[:size]], rows[size - 1][0] if len(rows) > size else ""

    def update_queue(self, queue: QueueMessage, mask: FieldMask | None = None) -> QueueMessage:
        """Change what the mask names of a queue (nothing named: everything), and create the queue if there is none."""
        rules.check_name(rules.QUEUE, queue.name)
        paths = list(mask.paths) if mask is not None else []
        chosen = FieldMask(paths=paths or [*rules.QUEUE_FIELDS, *rules.UNEMULATED_QUEUE_FIELDS])
        rules.check_update_mask(chosen)
        for field in ("rate_limits", "retry_config"):
            getattr(queue, field).SetInParent()  # Else a merge skips the zeros in it that the mask names.
        with self._transaction():
            existing = self._find_queue(queue.name)
            if existing is None:
                return self._insert_queue(queue, zero_doublings="retry_config.max_doublings" in paths)
            chosen.MergeMessage(queue, existing, replace_message_field=True, replace_repeated_field=True)
            rules.complete_queue(existing, zero_doublings="retry_config" not in chosen.paths)
            return self._save_queue(existing)

    def delete_queue(self, name: str) -> None:
        """Delete a queue and its tasks. Its name may be used again once the settings say so."""
        rules.check_name(rules.QUEUE, name)
        with self._transaction() as database:
            self._queue(name)
            self._remove_tasks("queue = ?", name)
            database.execute("UPDATE queues SET deleted_us = ? WHERE name = ?", (_us(self.now()), name))

    def purge_queue(self, name: str) -> QueueMessage:
        """Delete the tasks of a queue. Their names stay reserved."""
        rules.check_name(rules.QUEUE, name)
        with self._transaction():
            queue = self._queue(name)
            self._remove_tasks("queue = ?", name)
            queue.purge_time.FromDatetime(self.now())
            return self._save_queue(queue)

    def set_queue_state(self, name: str, state: int) -> QueueMessage:
        """Pause or resume a queue."""
        rules.check_name(rules.QUEUE, name)
        with self._transaction():
            queue = self._queue(name)
            queue.state = state
            return self._save_queue(queue)

    # Tasks

    def create_task(self, queue_name: str, task: TaskMessage) -> TaskMessage:
        """Create a task; named, at most once for as long as its name is remembered."""
        rules.check_name(rules.QUEUE, queue_name)
        now = self.now()
        rules.complete_task(queue_name, task, now, self._settings)
        task.create_time.FromSeconds(int(now.timestamp()))
        with self._transaction() as database:
            self._queue(queue_name)
            if not task.name:
                task.name = f"{queue_name}/tasks/{secrets.randbits(63)}"
            elif database.execute(
                "SELECT 1 FROM tasks WHERE name = ?"
                " UNION ALL SELECT 1 FROM reserved_names WHERE name = ? AND until_us > ?",
                (task.name, task.name, _us(now)),
            ).fetchone():
                message = f"the task {task.name!r} exists, or a task of that name existed too recently"
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, message)
            database.execute(
                "INSERT INTO tasks (name, queue, message, created_us, due_us) VALUES (?, ?, ?, ?, ?)",
                (task.name, queue_name, task.SerializeToString(), _us(now), task.schedule_time.ToMicroseconds()),
            )
        return task

    def get_task(self, name: str) -> TaskMessage:
        """Return a task that is neither done nor dead."""
        rules.check_name(rules.TASK, name)
        with self._transaction():
            return self._task(name)[1]

    def list_tasks(self, queue_name: str, page_size: int, page_token: str) -> tuple[list[TaskMessage], str]:
        """Return a page of a queue's tasks, by name, and the token of the next page."""
        rules.check_name(rules.QUEUE, queue_name)
        size = _page_size(page_size, MOST_TASKS_A_PAGE)
        with self._transaction() as database:
            self._queue(queue_name)
            rows = database.execute(
                "SELECT name, message FROM tasks WHERE queue = ? AND name > ? ORDER BY name LIMIT ?",
                (queue_name, page_token, size + 1),
            ).fetchall()
        return [Task.FromString(message) for _, message in rows[:size]], rows[size - 1][0] if len(rows) > size else ""

    def delete_task(self, name: str) -> None:
        """Delete a task. Its name stays reserved."""
        rules.check_name(rules.TASK, name)
        with self._transaction():
            self._task(name)
            self._remove_tasks("name = ?", name)

    # Dispatch

    def run_task(self, name: str) -> Delivery:
        """Start a delivery now, whatever the schedule, the queue's limits and its state say."""
        rules.check_name(rules.TASK, name)
        with self._transaction():
            task_id, task = self._task(name)
            return self._start(task_id, task, self.now(), forced=True)

    def start_due(self) -> Round:
        """Start a delivery of every task that is due and that its queue has room for."""
        now = self.now()
        deliveries: list[Delivery] = []
        next_times: list[datetime] = []
        with self._transaction() as database:
            self._expire(now)
            for (message,) in database.execute("SELECT message FROM queues WHERE deleted_us IS NULL").fetchall():
                queue = Queue.FromString(message)
                if queue.state != State.RUNNING:
                    continue
                flow, limits = self._flows[queue.name], rules.limits_of(queue)
                due = database.execute(
                    "SELECT id, message FROM tasks WHERE queue = ? AND in_flight = 0 AND due_us <= ?"
                    " ORDER BY due_us, id LIMIT ?",
                    (queue.name, _us(now), flow.room(limits, now)),
                ).fetchall()
                deliveries += [self._start(task_id, Task.FromString(task), now) for task_id, task in due]
                (next_due,) = database.execute(
                    "SELECT MIN(due_us) FROM tasks WHERE queue = ? AND in_flight = 0", (queue.name,)
                ).fetchone()
                opens_at = flow.opens_at(limits, now)
                if next_due is not None and opens_at is not None:
                    next_times.append(max(_from_us(next_due), opens_at))
        return Round(deliveries=deliveries, next_at=min(next_times, default=None))

    def finish(self, delivery: Delivery, outcome: Outcome) -> Verdict:
        """Record how a delivery ended, and decide what becomes of its task."""
        now = self.now()
        wait = retry_after(outcome.retry_after, now)
        with self._transaction() as database:
            flow = self._flows[delivery.queue_name]
            flow.ended(outcome.status, started=delivery.started, wait=wait, now=now)
            row = database.execute("SELECT message FROM tasks WHERE id = ?", (delivery.task_id,)).fetchone()
            if row is None:
                return Verdict(became="gone", why="deleted, purged or done while it was on its way")
            if outcome.succeeded:
                self._end(delivery, "done")
                return Verdict(became="done")

            task = Task.FromString(row[0])
            task.last_attempt.response_time.FromDatetime(now)
            task.last_attempt.response_status.code = outcome.code.value[0]
            task.last_attempt.response_status.message = outcome.reason
            if outcome.status is not None:
                task.response_count += 1
            policy = rules.retry_policy(self._queue(delivery.queue_name), task)
            since_first_attempt = now - moment(task.first_attempt.dispatch_time)
            stop = reason_to_stop(policy, attempts=task.dispatch_count, since_first_attempt=since_first_attempt)
            if stop is not None:
                self._end(delivery, "dead")
                return Verdict(became="dead", why=stop)

            # After RunTask the service counts from the call.
            failed_at = delivery.started if delivery.forced else now
            due = failed_at + max(backoff(policy, task.dispatch_count), wait)
            task.schedule_time.FromDatetime(due)
            executed = outcome.status is not None and outcome.status < 500
            database.execute(
                "UPDATE tasks SET message = ?, due_us = ?, in_flight = in_flight - 1, executions = executions + ?,"
                " previous_response = ? WHERE id = ?",
                (task.SerializeToString(), _us(due), executed, outcome.status, delivery.task_id),
            )
            return Verdict(became="due", why=outcome.reason, due=due)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many tasks of each queue wait, run, are done, and are dead."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT name, (SELECT COUNT(*) FROM tasks WHERE queue = queues.name AND in_flight = 0),"
                " (SELECT COUNT(*) FROM tasks WHERE queue = queues.name AND in_flight > 0), done, dead"
                " FROM queues WHERE deleted_us IS NULL ORDER BY name"
            ).fetchall()
        return {name: dict(zip(("waiting", "running", "done", "dead"), counts, strict=True)) for name, *counts in rows}

    # Steps of the above, within its transaction

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _find_queue(self, name: str) -> QueueMessage | None:
        row = self._database.execute(
            "SELECT message FROM queues WHERE name = ? AND deleted_us IS NULL", (name,)
        ).fetchone()
        return None if row is None else Queue.FromString(row[0])

    def _queue(self, name: str) -> QueueMessage:
        queue = self._find_queue(name)
        if queue is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"there is no queue {name!r}")
        return queue

    def _insert_queue(self, queue: QueueMessage, *, zero_doublings: bool = False) -> QueueMessage:
        row = self._database.execute("SELECT deleted_us FROM queues WHERE name = ?", (queue.name,)).fetchone()
        if row is not None and self.now() < _from_us(row[0]) + self._settings.queue_names_released_after:
            message = f"the queue {queue.name!r} was deleted too recently to be created again"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, message)
        queue.ClearField("purge_time")
        rules.complete_queue(queue, zero_doublings=zero_doublings)
        queue.state = State.RUNNING
        self._database.execute(
            "INSERT OR REPLACE INTO queues (name, message) VALUES (?, ?)", (queue.name, queue.SerializeToString())
        )
        return queue

    def _save_queue(self, queue: QueueMessage) -> QueueMessage:
        self._database.execute("UPDATE queues SET message = ? WHERE name = ?", (queue.SerializeToString(), queue.name))
        return queue

    def _task(self, name: str) -> tuple[int, TaskMessage]:
        row = self._database.execute("SELECT id, message FROM tasks WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"there is no task {name!r}, or it is done or was given up")
        return row[0], Task.FromString(row[1])

    def _start(self, task_id: int, task: TaskMessage, now: datetime, *, forced: bool = False) -> Delivery:
        retry_reason = task.last_attempt.response_status.message
        task.dispatch_count += 1
        task.last_attempt.Clear()
        task.last_attempt.schedule_time.CopyFrom(task.schedule_time)
        task.last_attempt.dispatch_time.FromDatetime(now)
        if not task.HasField("first_attempt"):
            task.first_attempt.dispatch_time.FromDatetime(now)
        executions, previous_response = self._database.execute(
            "UPDATE tasks SET message = ?, in_flight = in_flight + 1 WHERE id = ?"
            " RETURNING executions, previous_response",
            (task.SerializeToString(), task_id),
        ).fetchone()
        self._flows[rules.queue_of(task.name)].dispatched(forced=forced)
        return Delivery(
            task_id=task_id,
            task=task,
            executions=executions,
            previous_response=previous_response,
            retry_reason=retry_reason,
            started=now,
            forced=forced,
        )

    def _end(self, delivery: Delivery, column: str) -> None:
        self._remove_tasks("id = ?", delivery.task_id)
        self._database.execute(
            f"UPDATE queues SET {column} = {column} + 1 WHERE name = ?",  # noqa: S608 - one of two columns.
            (delivery.queue_name,),
        )

    def _remove_tasks(self, where: str, value: str | int) -> None:
        until = _us(self.now() + self._settings.names_released_after)
        self._database.execute(
            f"INSERT OR REPLACE INTO reserved_names SELECT name, ? FROM tasks WHERE {where}",  # noqa: S608 - our own.
            (until, value),
        )
        self._database.execute(f"DELETE FROM tasks WHERE {where}", (value,))  # noqa: S608 - our own.

    def _expire(self, now: datetime) -> None:
        born = _us(now - rules.LIFETIME)
        for (queue_name,) in self._database.execute(
            "SELECT queue FROM tasks WHERE created_us <= ?", (born,)
        ).fetchall():
            self._database.execute("UPDATE queues SET dead = dead + 1 WHERE name = ?", (queue_name,))
        self._remove_tasks("created_us <= ?", born)
        self._database.execute("DELETE FROM reserved_names WHERE until_us <= ?", (_us(now),))


def in_view(task: TaskMessage, view: int) -> TaskMessage:
    """Return what a caller sees of a task: without its body, unless the view is FULL."""
    seen = Task()
    seen.CopyFrom(task)
    seen.view = View.FULL if view == View.FULL else View.BASIC
    if seen.view == View.BASIC:
        seen.http_request.ClearField("body")
    return seen


def _page_size(asked: int, most: int) -> int:
    if asked < 0:
        raise invalid("page_size must not be negative")
    return min(asked or most, most)


def _us(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND


def _from_us(microseconds: int) -> datetime:
    return EPOCH + microseconds * MICROSECOND

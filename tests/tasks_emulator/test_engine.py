"""Queues and tasks with a clock of our own: what takes hours or days in the service."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.local.tasks.engine import Engine, Outcome
from infra.local.tasks.messages import Queue, State, Task
from infra.local.tasks.rules import Refused, Settings

LOCATION = "projects/demo/locations/europe-west1"
QUEUE = f"{LOCATION}/queues/charges"
DAY = timedelta(days=1)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.time = datetime(2026, 5, 4, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return what it shows."""
        return self.time

    def pass_(self, duration: timedelta | float) -> None:
        """Let time pass, in seconds if it is a number."""
        self.time += duration if isinstance(duration, timedelta) else timedelta(seconds=duration)


@pytest.fixture
def clock() -> Clock:
    """Return the clock."""
    return Clock()


@pytest.fixture
def engine(clock: Clock) -> Iterator[Engine]:
    """Return an engine with one queue."""
    engine = Engine(":memory:", now=clock)
    engine.create_queue(LOCATION, Queue(name=QUEUE))
    yield engine
    engine.close()


def new_task(name: str = "", **fields: Any) -> Any:
    """Return a task to create."""
    task = Task(name=f"{QUEUE}/tasks/{name}" if name else "", **fields)
    task.http_request.url = "http://127.0.0.1/"
    return task


def new_queue(engine: Engine, **retry_config: Any) -> None:
    """Give the queue another retry configuration; times in seconds."""
    queue = Queue(name=QUEUE)
    for field, value in retry_config.items():
        if isinstance(value, timedelta):
            getattr(queue.retry_config, field).FromTimedelta(value)
        else:
            setattr(queue.retry_config, field, value)
    engine.update_queue(queue)


def deliver(engine: Engine, outcome: Outcome) -> list[str]:
    """Deliver all that is due, let it end so, and return what became of it."""
    return [engine.finish(delivery, outcome).became for delivery in engine.start_due().deliveries]


def code_of(call: Callable[[], object]) -> grpc.StatusCode | None:
    """Return the status with which a call is refused, None if it is not."""
    try:
        call()
    except Refused as refused:
        return refused.code
    return None


DONE, FAILED = Outcome(status=200), Outcome(status=500)


@pytest.mark.parametrize("goes", ["done", "dead", "deleted", "purged"])
def test_a_name_stays_taken_for_24_hours_after_its_task_is_gone(engine: Engine, clock: Clock, goes: str) -> None:
    """However it went, a repeat within the day is refused, and a later one is another task."""
    new_queue(engine, max_attempts=1)
    engine.create_task(QUEUE, new_task("order-1"))
    clock.pass_(3600)
    match goes:
        case "done":
            assert deliver(engine, DONE) == ["done"]
        case "dead":
            assert deliver(engine, FAILED) == ["dead"]
        case "deleted":
            engine.delete_task(f"{QUEUE}/tasks/order-1")
        case _:
            engine.purge_queue(QUEUE)

    clock.pass_(DAY - timedelta(seconds=1))
    assert code_of(lambda: engine.create_task(QUEUE, new_task("order-1"))) is grpc.StatusCode.ALREADY_EXISTS
    clock.pass_(1)
    assert code_of(lambda: engine.create_task(QUEUE, new_task("order-1"))) is None


def test_a_name_stays_taken_while_its_task_waits(engine: Engine, clock: Clock) -> None:
    """For weeks, if need be: the day counts from the end."""
    task = new_task("order-1")
    task.schedule_time.FromDatetime(clock() + 29 * DAY)
    engine.create_task(QUEUE, task)
    clock.pass_(28 * DAY)
    engine.start_due()
    assert code_of(lambda: engine.create_task(QUEUE, new_task("order-1"))) is grpc.StatusCode.ALREADY_EXISTS


def test_when_names_are_released_can_be_chosen(clock: Clock) -> None:
    """A test need not wait a day."""
    engine = Engine(":memory:", now=clock, settings=Settings(names_released_after=timedelta(0)))
    engine.create_queue(LOCATION, Queue(name=QUEUE))
    engine.create_task(QUEUE, new_task("order-1"))
    deliver(engine, DONE)
    assert code_of(lambda: engine.create_task(QUEUE, new_task("order-1"))) is None


def test_a_deleted_queue_cannot_be_created_again_within_seven_days(engine: Engine, clock: Clock) -> None:
    """Until then there is no such queue, and there may not be one."""
    engine.delete_queue(QUEUE)
    clock.pass_(7 * DAY - timedelta(seconds=1))
    assert code_of(lambda: engine.get_queue(QUEUE)) is grpc.StatusCode.NOT_FOUND
    again = Queue(name=QUEUE)
    assert code_of(lambda: engine.create_queue(LOCATION, again)) is grpc.StatusCode.FAILED_PRECONDITION
    assert code_of(lambda: engine.update_queue(again)) is grpc.StatusCode.FAILED_PRECONDITION
    clock.pass_(1)
    assert code_of(lambda: engine.create_queue(LOCATION, again)) is None
    assert engine.counts()[QUEUE] == {"waiting": 0, "running": 0, "done": 0, "dead": 0}


def test_a_task_dies_31_days_after_its_creation(engine: Engine, clock: Clock) -> None:
    """Without limits of its own, nothing else ends it."""
    new_queue(engine, max_attempts=-1, max_backoff=20 * DAY, min_backoff=20 * DAY)
    engine.create_task(QUEUE, new_task("order-1"))
    assert deliver(engine, FAILED) == ["due"]
    clock.pass_(20 * DAY)
    assert deliver(engine, FAILED) == ["due"]
    clock.pass_(11 * DAY)
    assert engine.start_due().deliveries == []
    assert engine.counts()[QUEUE]["dead"] == 1


def test_retries_come_when_the_configuration_says(engine: Engine, clock: Clock) -> None:
    """10 s, 300 s and 3 doublings, as the service documents them."""
    new_queue(
        engine,
        min_backoff=timedelta(seconds=10),
        max_backoff=timedelta(seconds=300),
        max_doublings=3,
        max_attempts=-1,
    )
    engine.create_task(QUEUE, new_task())
    waits = []
    for _ in range(8):
        assert deliver(engine, FAILED) == ["due"]
        next_at = engine.start_due().next_at
        assert next_at is not None
        waits.append((next_at - clock()).total_seconds())
        clock.time = next_at
    assert waits == [10, 20, 40, 80, 160, 240, 300, 300]


def test_attempts_go_on_until_the_retry_duration_is_over_too(engine: Engine, clock: Clock) -> None:
    """Two attempts are allowed, and a minute: at 10 s each, it is tried until the minute is over."""
    new_queue(
        engine,
        max_attempts=2,
        max_retry_duration=timedelta(minutes=1),
        min_backoff=timedelta(seconds=10),
        max_backoff=timedelta(seconds=10),
    )
    engine.create_task(QUEUE, new_task())
    clock.pass_(0)
    became = []
    for _ in range(7):
        became += deliver(engine, FAILED)
        clock.pass_(10)
    assert became == ["due"] * 6 + ["dead"]


def test_the_retry_duration_counts_from_the_first_attempt(engine: Engine, clock: Clock) -> None:
    """Waiting for its schedule costs a task nothing."""
    new_queue(engine, max_attempts=1, max_retry_duration=timedelta(minutes=1))
    task = new_task()
    task.schedule_time.FromDatetime(clock() + DAY)
    engine.create_task(QUEUE, task)
    clock.pass_(DAY)
    assert deliver(engine, FAILED) == ["due"]


def test_a_tasks_own_retry_configuration_wins(engine: Engine, clock: Clock) -> None:
    """In what it says; in the rest the queue's holds."""
    new_queue(engine, max_attempts=1, min_backoff=timedelta(seconds=7))
    task = new_task()
    task.retry_config.max_attempts = 2
    engine.create_task(QUEUE, task)
    assert deliver(engine, FAILED) == ["due"]
    assert engine.start_due().next_at == clock() + timedelta(seconds=7)
    clock.pass_(7)
    assert deliver(engine, FAILED) == ["dead"]


@pytest.mark.parametrize("status", [409, 503])
def test_retry_after_delays_the_task_beyond_its_backoff(engine: Engine, clock: Clock, status: int) -> None:
    """In seconds or as a date, with any status but success."""
    engine.create_task(QUEUE, new_task())
    (delivery,) = engine.start_due().deliveries
    verdict = engine.finish(delivery, Outcome(status=status, retry_after="Mon, 04 May 2026 00:05:00 GMT"))
    assert verdict.due == clock() + timedelta(minutes=5)


def test_a_failed_run_is_due_again_counted_from_the_call(engine: Engine, clock: Clock) -> None:
    """As the service says of RunTask."""
    new_queue(engine, min_backoff=timedelta(seconds=30))
    engine.create_task(QUEUE, new_task("order-1"))
    delivery = engine.run_task(f"{QUEUE}/tasks/order-1")
    called_at = clock()
    clock.pass_(12)
    assert engine.finish(delivery, FAILED).due == called_at + timedelta(seconds=30)


def test_a_success_wins_over_a_failure_of_the_same_task(engine: Engine) -> None:
    """Two deliveries at once: whichever ends last, the task is done, and counted once."""
    engine.create_task(QUEUE, new_task("order-1"))
    first, second = engine.run_task(f"{QUEUE}/tasks/order-1"), engine.run_task(f"{QUEUE}/tasks/order-1")
    assert engine.finish(first, DONE).became == "done"
    assert engine.finish(second, FAILED).became == "gone"
    assert engine.counts()[QUEUE] == {"waiting": 0, "running": 0, "done": 1, "dead": 0}


def test_what_was_purged_on_its_way_never_comes_back(engine: Engine, clock: Clock) -> None:
    """Its failure is nobody's any more."""
    engine.create_task(QUEUE, new_task("order-1"))
    (delivery,) = engine.start_due().deliveries
    engine.purge_queue(QUEUE)
    assert engine.finish(delivery, FAILED).became == "gone"
    clock.pass_(DAY)
    assert engine.start_due().deliveries == []


def test_a_late_end_of_a_delivery_does_not_touch_the_next_task_of_that_name(clock: Clock) -> None:
    """Names are used again, deliveries are not."""
    engine = Engine(":memory:", now=clock, settings=Settings(names_released_after=timedelta(0)))
    engine.create_queue(LOCATION, Queue(name=QUEUE))
    engine.create_task(QUEUE, new_task("order-1"))
    (delivery,) = engine.start_due().deliveries
    engine.delete_task(f"{QUEUE}/tasks/order-1")
    engine.create_task(QUEUE, new_task("order-1"))
    assert engine.finish(delivery, DONE).became == "gone"
    assert engine.counts()[QUEUE]["waiting"] == 1


def test_what_was_on_its_way_when_the_process_ended_is_delivered_again(tmp_path: Path, clock: Clock) -> None:
    """At least once: a crash before the success is recorded costs a second delivery, never the task."""
    database = str(tmp_path / "tasks.db")
    engine = Engine(database, now=clock)
    engine.create_queue(LOCATION, Queue(name=QUEUE))
    engine.create_task(QUEUE, new_task("order-1"))
    assert len(engine.start_due().deliveries) == 1
    assert engine.start_due().deliveries == []
    engine.close()

    reopened = Engine(database, now=clock)
    (delivery,) = reopened.start_due().deliveries
    assert delivery.task.name == f"{QUEUE}/tasks/order-1"
    assert delivery.task.dispatch_count == 2
    reopened.close()


def test_a_clock_that_goes_back_stops_nothing(engine: Engine, clock: Clock) -> None:
    """Machines are set right now and then."""
    engine.create_task(QUEUE, new_task())
    deliver(engine, DONE)
    clock.pass_(-3600)
    engine.create_task(QUEUE, new_task())
    assert deliver(engine, DONE) == ["done"]


events = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.integers(0, 5)),
        st.tuples(st.just("deliver"), st.sampled_from([200, 409, 500, 503, None])),
        st.tuples(st.just("start"), st.none()),
        st.tuples(st.just("crash"), st.none()),
        st.tuples(st.just("pass"), st.sampled_from([0.1, 10.0, 4000.0])),
        st.tuples(st.just("pause"), st.booleans()),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(events=events)
def test_no_acknowledged_task_is_lost_and_none_is_accepted_twice(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, Any]]
) -> None:
    """Whatever is created, delivered, abandoned, paused and killed: a task is there until a 2xx to it was recorded."""
    database = str(tmp_path_factory.mktemp("engine") / "tasks.db")
    clock = Clock()
    engine = Engine(database, now=clock)
    queue = Queue(name=QUEUE)
    queue.retry_config.max_attempts = -1
    engine.create_queue(LOCATION, queue)
    created: set[str] = set()
    done: set[str] = set()

    for event, value in events:
        match event:
            case "create":
                refused = code_of(partial(engine.create_task, QUEUE, new_task(f"order-{value}")))
                name = f"{QUEUE}/tasks/order-{value}"
                assert (refused is grpc.StatusCode.ALREADY_EXISTS) == (name in created)
                created.add(name)
            case "deliver":
                for delivery in engine.start_due().deliveries:
                    assert delivery.task.name not in done
                    if engine.finish(delivery, Outcome(status=value)).became == "done":
                        done.add(delivery.task.name)
            case "start":
                engine.start_due()
            case "crash":
                engine._database.close()  # The file is as a kill leaves it: no commit is open.
                engine = Engine(database, now=clock)
            case "pass":
                clock.pass_(value)
            case "pause":
                engine.set_queue_state(QUEUE, State.PAUSED if value else State.RUNNING)
        assert {task.name for task in engine.list_tasks(QUEUE, 0, "")[0]} == created - done
    engine.close()

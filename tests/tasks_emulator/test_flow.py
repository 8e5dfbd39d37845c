"""How much one queue may dispatch, with a clock of our own."""

from datetime import UTC, datetime, timedelta

import pytest

from infra.local.tasks.flow import LONGEST_HOLD, Flow, Limits

START = datetime(2026, 5, 4, tzinfo=UTC)
NO_WAIT = timedelta(0)


def at(seconds: float) -> datetime:
    """Return the time so long after the start."""
    return START + timedelta(seconds=seconds)


def limits(rate: float = 500, burst: int = 100, concurrent: int = 1000) -> Limits:
    """Return limits, by default the service's."""
    return Limits(dispatches_per_second=rate, burst=burst, concurrent=concurrent)


def new_flow(first_hold_seconds: float = 1.0) -> Flow:
    """Return the flow of a new queue."""
    return Flow(first_hold=timedelta(seconds=first_hold_seconds))


def answered(flow: Flow, status: int | None, *, started: float, ended: float, wait: timedelta = NO_WAIT) -> None:
    """Dispatch one task, and have it answered."""
    flow.dispatched(forced=False)
    flow.ended(status, started=at(started), wait=wait, now=at(ended))


@pytest.mark.parametrize("rate", [0.1, 0.5, 1, 2, 7, 33, 499.9, 500])
def test_a_rate_is_kept_below_one_a_second_and_above(rate: float) -> None:
    """A full bucket at once, then one each time that a token is due, as `opens_at` said."""
    flow, chosen, now, dispatched = new_flow(), limits(rate=rate, burst=1), START, 0
    while dispatched < 50:
        if flow.room(chosen, now):
            flow.dispatched(forced=False)
            flow.running -= 1
            dispatched += 1
        opens_at = flow.opens_at(chosen, now)
        assert opens_at is not None
        now = max(opens_at, now)
    assert (now - START).total_seconds() == pytest.approx(50 / rate, rel=1e-3)


def test_a_bucket_holds_no_more_than_its_burst() -> None:
    """However long a queue was idle."""
    flow, chosen = new_flow(), limits(rate=10, burst=10)
    assert flow.room(chosen, at(0)) == 10
    assert flow.room(chosen, at(3600)) == 10


def test_nothing_opens_by_itself_while_all_that_may_run_runs() -> None:
    """Only an end makes room."""
    flow, chosen = new_flow(), limits(concurrent=2)
    flow.dispatched(forced=False)
    flow.dispatched(forced=False)
    assert flow.room(chosen, at(9)) == 0
    assert flow.opens_at(chosen, at(9)) is None


def test_a_forced_dispatch_takes_no_token() -> None:
    """RunTask does not slow down the others."""
    flow, chosen = new_flow(), limits(rate=1, burst=1)
    flow.dispatched(forced=True)
    assert flow.room(chosen, at(0)) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_worker_in_distress_holds_the_whole_queue(status: int) -> None:
    """Nothing for a second, then one to try."""
    flow, chosen = new_flow(), limits()
    answered(flow, status, started=0, ended=0)
    assert flow.room(chosen, at(0.9)) == 0
    assert flow.opens_at(chosen, at(0.9)) == at(1)
    assert flow.room(chosen, at(1)) == 1


@pytest.mark.parametrize("status", [200, 404, 409, 500, 502, None])
def test_no_other_answer_holds_the_queue(status: int | None) -> None:
    """That is the task's own trouble."""
    flow, chosen = new_flow(), limits(burst=50)
    answered(flow, status, started=0, ended=1)
    assert flow.room(chosen, at(1)) == 50


def test_holds_double_up_to_a_minute_and_end_with_the_first_good_answer() -> None:
    """A worker that recovers has all of its rate again."""
    flow, chosen, now, held = new_flow(), limits(burst=50), 0.0, []
    for _ in range(9):
        answered(flow, 503, started=now, ended=now)
        opens_at = flow.opens_at(chosen, at(now))
        assert opens_at is not None
        held.append((opens_at - at(now)).total_seconds())
        now = (opens_at - START).total_seconds()
    assert held == [1, 2, 4, 8, 16, 32, 60, 60, LONGEST_HOLD.total_seconds()]
    answered(flow, 200, started=now, ended=now)
    assert flow.room(chosen, at(now + 1)) == 50


def test_answers_to_what_left_before_a_hold_change_nothing() -> None:
    """A hundred that fail together are one sign of distress; one that succeeds among them is no recovery."""
    flow, chosen = new_flow(), limits()
    answered(flow, 503, started=0, ended=0.5)
    answered(flow, 503, started=0, ended=0.6)
    answered(flow, 200, started=0, ended=0.7)
    assert flow.opens_at(chosen, at(0.7)) == at(1.5)


def test_retry_after_makes_a_hold_longer_and_never_shorter() -> None:
    """The worker knows best when it is ready."""
    flow, chosen = new_flow(), limits()
    answered(flow, 503, started=0, ended=0, wait=timedelta(seconds=5))
    assert flow.opens_at(chosen, at(0)) == at(5)
    other = new_flow()
    answered(other, 503, started=0, ended=0, wait=timedelta(seconds=0.5))
    assert other.opens_at(chosen, at(0)) == at(1)


def test_holds_can_be_turned_off() -> None:
    """For tests that are about something else."""
    flow, chosen = new_flow(first_hold_seconds=0), limits(burst=50)
    answered(flow, 503, started=0, ended=1, wait=timedelta(seconds=5))
    assert flow.room(chosen, at(1)) == 50

"""When a failed task is tried again: the pure decisions."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.local.tasks.retries import LONGEST_RETRY_AFTER, RetryPolicy, backoff, reason_to_stop, retry_after

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)


def policy(
    min_backoff: float = 0.1,
    max_backoff: float = 3600,
    max_doublings: int = 16,
    max_attempts: int = 100,
    max_retry_duration: float = 0,
) -> RetryPolicy:
    """Return the service's defaults, but for what is given, in seconds."""
    return RetryPolicy(
        max_attempts=max_attempts,
        max_retry_duration=timedelta(seconds=max_retry_duration),
        min_backoff=timedelta(seconds=min_backoff),
        max_backoff=timedelta(seconds=max_backoff),
        max_doublings=max_doublings,
    )


@pytest.mark.parametrize(
    ("min_backoff", "max_backoff", "max_doublings", "waits"),
    [
        (10, 300, 3, [10, 20, 40, 80, 160, 240, 300, 300, 300]),
        (10, 300, 0, [10, 20, 30, 40, 50]),
        (1, 5, 16, [1, 2, 4, 5, 5]),
        (0.5, 2, 2, [0.5, 1, 2, 2]),
        (7, 7, 3, [7, 7, 7]),
        (0, 10, 3, [0, 0, 0]),
    ],
)
def test_a_wait_doubles_then_grows_by_the_last_doubling_then_stays(
    min_backoff: float, max_backoff: float, max_doublings: int, waits: list[float]
) -> None:
    """The first row is the example of the service's own documentation."""
    chosen = policy(min_backoff, max_backoff, max_doublings)
    assert [backoff(chosen, n).total_seconds() for n in range(1, len(waits) + 1)] == waits


durations = st.floats(min_value=0, max_value=1e7, allow_nan=False)


@given(shortest=durations, longest=durations, doublings=st.integers(0, 2**31 - 1), failures=st.integers(1, 10**9))
def test_waits_never_shrink_and_never_pass_the_longest(
    shortest: float, longest: float, doublings: int, failures: int
) -> None:
    """Whatever the configuration, and however often it failed."""
    shortest, longest = sorted((shortest, longest))
    chosen = policy(shortest, longest, doublings)
    assert chosen.min_backoff <= backoff(chosen, failures) <= backoff(chosen, failures + 1) <= chosen.max_backoff


@pytest.mark.parametrize(
    ("max_attempts", "max_retry_duration", "attempts", "elapsed", "stops"),
    [
        (3, 0, 2, 1e6, False),  # Attempts left, and no other limit.
        (3, 0, 3, 0, True),
        (1, 0, 1, 0, True),
        (3, 60, 3, 59, False),  # Attempts used up, time left.
        (3, 60, 2, 61, False),  # Time used up, attempts left.
        (3, 60, 3, 60, True),  # Both.
        (-1, 0, 10**6, 1e6, False),  # Neither is set.
        (-1, 60, 10**6, 59, False),
        (-1, 60, 1, 60, True),  # Only the time is.
    ],
)
def test_retrying_stops_only_when_every_limit_that_is_set_is_reached(
    max_attempts: int, max_retry_duration: float, attempts: int, elapsed: float, stops: bool
) -> None:
    """One limit reached ends nothing while the other is not."""
    chosen = policy(max_attempts=max_attempts, max_retry_duration=max_retry_duration)
    reason = reason_to_stop(chosen, attempts=attempts, since_first_attempt=timedelta(seconds=elapsed))
    assert (reason is not None) is stops


def test_the_reason_names_every_limit_that_was_reached() -> None:
    """There are no dead letters, so this line is all that is left of a task."""
    reason = reason_to_stop(
        policy(max_attempts=3, max_retry_duration=60), attempts=4, since_first_attempt=timedelta(seconds=61)
    )
    assert reason == "attempted 4 times of 3 and retried for 61 s of 60 s"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("3", 3),
        (" 3 ", 3),
        ("0", 0),
        ("Mon, 04 May 2026 12:00:09 GMT", 9),
        ("Mon, 04 May 2026 11:00:00 GMT", 0),
        ("Mon, 04 May 2026 12:00:09 -0000", 9),
        ("soon", 0),
        ("-5", 0),
        ("1.5", 0),
        ("", 0),
        ("Mon, 04 May 2026 12:00:09 +99999999999999999999", 0),
        ("9" * 9000, LONGEST_RETRY_AFTER.total_seconds()),
        ("Tue, 04 May 2027 12:00:00 GMT", LONGEST_RETRY_AFTER.total_seconds()),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header: str | None, seconds: float) -> None:
    """What makes no sense says nothing, and nothing parks a task for ever."""
    assert retry_after(header, NOW).total_seconds() == seconds


@given(st.text())
def test_no_retry_after_header_is_too_odd(header: str) -> None:
    """A worker may send anything."""
    assert timedelta(0) <= retry_after(header, NOW) <= LONGEST_RETRY_AFTER

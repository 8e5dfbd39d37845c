"""When a failed task is tried again, and when no longer: pure decisions, with their reasons."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

UNLIMITED_ATTEMPTS: Final = -1
UNLIMITED_DURATION: Final = timedelta(0)

MOST_DOUBLINGS: Final = 62  # A microsecond doubled so often outlasts every task; more would only cost arithmetic.
LONGEST_RETRY_AFTER: Final = timedelta(hours=1)  # One odd header parks nothing for ever.


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """A RetryConfig with nothing left open."""

    max_attempts: int
    max_retry_duration: timedelta
    min_backoff: timedelta
    max_backoff: timedelta
    max_doublings: int


def backoff(policy: RetryPolicy, failures: int) -> timedelta:
    """Return how long to wait after so many failures (1 or more) of one task.

    It starts at `min_backoff`, doubles `max_doublings` times, then grows by the last doubling each time, and stays at
    `max_backoff` once there: 10 s, 300 s and 3 doublings wait 10, 20, 40, 80, 160, 240, 300, 300 ... seconds.
    """
    doublings = min(failures - 1, policy.max_doublings, MOST_DOUBLINGS)
    steps = failures - doublings
    # In whole microseconds: a timedelta overflows long before an int does.
    microseconds = _microseconds(policy.min_backoff) * 2**doublings * steps
    return timedelta(microseconds=min(microseconds, _microseconds(policy.max_backoff)))


def reason_to_stop(policy: RetryPolicy, *, attempts: int, since_first_attempt: timedelta) -> str | None:
    """Return why a task that has just failed is given up, or None when it is tried again.

    Each limit that is set must be reached: attempts alone do not end what still has time, nor time alone what still has
    attempts. A limit that is not set (-1 attempts, a duration of 0) is none. Where neither is, only the task's lifetime
    ends it.
    """
    counted = policy.max_attempts != UNLIMITED_ATTEMPTS
    timed = policy.max_retry_duration != UNLIMITED_DURATION
    if counted and attempts < policy.max_attempts:
        return None
    if timed and since_first_attempt < policy.max_retry_duration:
        return None
    reasons = []
    if counted:
        reasons.append(f"attempted {attempts} times of {policy.max_attempts}")
    if timed:
        elapsed, allowed = since_first_attempt.total_seconds(), policy.max_retry_duration.total_seconds()
        reasons.append(f"retried for {elapsed:g} s of {allowed:g} s")
    return " and ".join(reasons) or None


def retry_after(header: str | None, now: datetime) -> timedelta:
    """Return the wait that a Retry-After header asks for, in seconds or until a date; zero where it says nothing."""
    if header is None:
        return timedelta(0)
    text = header.strip()
    if text.isascii() and text.isdigit():
        # Nine digits are decades, and Python refuses to read some thousands.
        return min(timedelta(seconds=int(text[:9])), LONGEST_RETRY_AFTER)
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return timedelta(0)
    if until.tzinfo is None:  # An HTTP date is in GMT, whatever it says.
        until = until.replace(tzinfo=UTC)
    return min(max(until - now, timedelta(0)), LONGEST_RETRY_AFTER)


def _microseconds(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)

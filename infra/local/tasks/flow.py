"""How much one queue may dispatch now: its rate, its concurrency, and throttling. No I/O."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

LONGEST_HOLD: Final = timedelta(minutes=1)  # A worker that has recovered is found out within a minute.
ROUNDING: Final = 1e-9  # Of a token: so little may be missing of a whole one by the arithmetic of floats alone.

LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)
NO_TIME: Final = timedelta(0)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A queue's RateLimits."""

    dispatches_per_second: float
    burst: int
    concurrent: int


class Flow:
    """What flows out of one queue.

    A token bucket limits the rate: full at first, emptied by one a dispatch, refilled at `dispatches_per_second` up to
    `burst`.

    Answers 429 and 503 throttle the whole queue: nothing is dispatched for `first_hold`, or for as long as Retry-After
    says; then one task at a time, to try. If that is answered so as well, the hold doubles, up to a minute. Any other
    answer below 500 ends it. Answers to what was dispatched before the hold say nothing new. A `first_hold` of zero
    turns all of this off.

    All of it is forgotten when the program ends: a new one starts with a full bucket.
    """

    def __init__(self, *, first_hold: timedelta) -> None:
        self.running = 0
        self._first_hold = first_hold
        self._hold = NO_TIME
        self._held_from = LONG_AGO
        self._held_until = LONG_AGO
        self._tokens = 0.0
        self._refilled_at = LONG_AGO

    def room(self, limits: Limits, now: datetime) -> int:
        """Return how many tasks may be dispatched now."""
        self._refill(limits, now)
        if now < self._held_until:
            return 0
        return max(0, min(int(self._tokens + ROUNDING), self._concurrent(limits) - self.running))

    def opens_at(self, limits: Limits, now: datetime) -> datetime | None:
        """Return when there is room again by the passing of time alone; None if something must end first."""
        if self.running >= self._concurrent(limits):
            return None
        self._refill(limits, now)
        missing = max(0.0, 1.0 - self._tokens)
        # Rounded up: a microsecond too early, and whoever waits for it would look again and again.
        microseconds = math.ceil(missing / limits.dispatches_per_second * 1e6)
        token_at = now + timedelta(microseconds=microseconds)
        return max(token_at, self._held_until)

    def dispatched(self, *, forced: bool) -> None:
        """Count a dispatch. One that was forced takes no token: the rate does not concern it."""
        self.running += 1
        if not forced:
            self._tokens -= 1.0

    def ended(self, status: int | None, *, started: datetime, wait: timedelta, now: datetime) -> None:
        """Count the end of a dispatch, and learn from the HTTP status of its answer (None: there was none)."""
        self.running -= 1
        if status is None or started < self._held_from:
            return
        if status in (429, 503):
            if self._first_hold:
                self._hold = min(max(self._first_hold, 2 * self._hold), LONGEST_HOLD)
                self._held_from = now
                self._held_until = now + max(self._hold, wait)
        elif status < 500:
            self._hold = NO_TIME
            self._held_until = LONG_AGO

    def _concurrent(self, limits: Limits) -> int:
        return 1 if self._hold else limits.concurrent

    def _refill(self, limits: Limits, now: datetime) -> None:
        elapsed = max(NO_TIME, now - self._refilled_at)
        earned = elapsed.total_seconds() * limits.dispatches_per_second
        self._tokens = min(float(limits.burst), self._tokens + earned)
        self._refilled_at = now

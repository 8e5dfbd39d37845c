"""How the durations relate: a limit on everything, and each shorter than what depends on it."""

import re
from datetime import timedelta
from typing import Any

import pytest

from shared import policy
from shared.policy import Limits
from tests.script import DAY, HOUR, MINUTE, SECOND


def test_the_defaults_nest() -> None:
    """Two calls to Stripe fit into the function, the function into the lease, the lease into the deadline."""
    limits = Limits()
    assert limits.stripe_timeout * 2 < limits.function_timeout < limits.lease < limits.dispatch_deadline
    assert limits.dispatch_deadline < policy.KEY_HORIZON < policy.KEY_LIFE
    assert (limits.lease, limits.function_timeout, limits.dispatch_deadline, limits.quarantine) == (
        90 * SECOND,
        75 * SECOND,
        105 * SECOND,
        15 * MINUTE,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"stripe_timeout": 40 * SECOND},
            "STRIPE_TIMEOUT x 2 (0:01:20) must be shorter than the function's timeout (5/6 of LEASE) (0:01:15)",
        ),
        (
            {"stripe_timeout": SECOND, "lease": 2 * SECOND},
            "STRIPE_TIMEOUT x 2 (0:00:02) must be shorter than the function's timeout (5/6 of LEASE) (0:00:01.666667)",
        ),
        ({"stripe_timeout": timedelta(), "lease": timedelta()}, "must be shorter than"),
        (
            {"lease": 20 * HOUR},
            "the dispatch deadline (23:20:00) must be shorter than the key horizon (23:00:00)",
        ),
        ({"quarantine": timedelta()}, "QUARANTINE (0:00:00) must be more than 0 and at most 1 day, 0:00:00"),
        ({"quarantine": -MINUTE}, "QUARANTINE (-1 day, 23:59:00) must be more than 0 and at most 1 day, 0:00:00"),
        ({"quarantine": DAY + SECOND}, "QUARANTINE (1 day, 0:00:01) must be more than 0 and at most 1 day, 0:00:00"),
        ({"retry_schedule": (DAY, DAY)}, "RETRY_SCHEDULE must rise"),
        ({"retry_schedule": (DAY, 31 * DAY)}, "RETRY_SCHEDULE must rise, each less than 30d"),
    ],
)
def test_limits_that_do_not_nest_are_refused_at_the_start_by_name(settings: dict[str, Any], message: str) -> None:
    """The operator reads which two, and how long they are."""
    with pytest.raises(ValueError, match=re.escape(message)):
        Limits(**settings)


@pytest.mark.parametrize("quarantine", [SECOND, DAY])
def test_an_operator_may_set_a_quarantine_of_up_to_a_day(quarantine: timedelta) -> None:
    """A key's whole life, and no more."""
    assert Limits(quarantine=quarantine).quarantine == quarantine


def test_cloud_tasks_takes_no_deadline_below_15_seconds() -> None:
    """Tests shorten the lease; the deadline stays one that Cloud Tasks takes."""
    assert Limits(lease=3 * SECOND, stripe_timeout=SECOND).dispatch_deadline == 15 * SECOND


def test_the_fixed_limits_are_what_they_are_for_a_reason() -> None:
    """Stripe keeps a key at least 24 hours; a charge that nobody ends lives shorter than a Cloud Tasks task."""
    assert policy.KEY_LIFE == DAY
    assert policy.KEY_HORIZON == 23 * HOUR
    assert policy.EXPIRES_AFTER == 30 * DAY < 31 * DAY
    assert (policy.FIRST_WAIT, policy.LAST_WAIT) == (SECOND, 10 * MINUTE)
    assert (policy.BLOCKED_WAIT, policy.LOOK_EVERY, policy.CLOSING_WAIT) == (10 * MINUTE, DAY, HOUR)
    assert policy.TRANSIENT_WAITS == (MINUTE, 10 * MINUTE, HOUR)
    assert (policy.ATTEMPTS_LIMIT, policy.CRASHES_LIMIT, policy.CALLS_PER_DELIVERY) == (20, 5, 2)

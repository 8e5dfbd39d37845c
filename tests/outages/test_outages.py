"""Outages with many open charges: nothing is lost or charged twice, nobody is hammered, and all of it closes soon.

Virtual time, so that every number repeats. `python -m tests.outages` measures the same with thousands of charges.
"""

import functools
import itertools
from datetime import timedelta
from typing import Final

import pytest

from infra.local.tasks.flow import LONGEST_HOLD
from infra.local.tasks.retries import RetryPolicy, backoff
from shared import policy
from shared.deliver import SWEEP_AGAIN, SWEEP_AGAIN_GROWS
from tests.outages.__main__ import scenarios
from tests.outages.deployment import CALLER_WAITS_AT_MOST, TICK, Down, QueueSettings, Scenario
from tests.outages.report import Report, simulated

CHARGES: Final = 40
LASTS: Final = timedelta(hours=2)
QUEUE: Final = QueueSettings()
SCENARIOS: Final = scenarios(CHARGES, LASTS, QUEUE)

AT_ONCE: Final = 5  # Sends in one delivery: it waits for up to two seconds itself, and the waits double.
CALLS_A_SEND: Final = 2  # A look may follow it.
BURST: Final = QUEUE.max_dispatches_per_second  # A queue that has rested may dispatch a second's worth at once.


@functools.cache
def report(name: str) -> Report:
    """Run each scenario once."""
    return simulated(SCENARIOS[name])


def retries(lasts: timedelta) -> int:
    """Count how often the queue brings a task that fails at once, for so long."""
    retry_policy = RetryPolicy(
        max_attempts=-1,
        max_retry_duration=timedelta(0),
        min_backoff=QUEUE.min_backoff,
        max_backoff=QUEUE.max_backoff,
        max_doublings=QUEUE.max_doublings,
    )
    waits = itertools.accumulate(backoff(retry_policy, failures) for failures in itertools.count(1))
    return 1 + sum(1 for _ in itertools.takewhile(lambda wait: wait <= lasts, waits))


def sweeps(lasts: timedelta) -> int:
    """Count how often the sweep makes a charge a task that brings nothing, for so long."""
    waits = itertools.accumulate(SWEEP_AGAIN * SWEEP_AGAIN_GROWS**number for number in itertools.count())
    return 1 + sum(1 for _ in itertools.takewhile(lambda wait: wait <= lasts, waits))


TASKS: Final = 2 + sweeps(LASTS)  # One made with the charge, one by its first delivery, and the sweep's.
SENDS: Final = AT_ONCE + retries(LASTS) + TASKS * retries(QUEUE.max_backoff)  # Each task begins its waits anew.

every_outage = pytest.mark.parametrize("name", SCENARIOS)


@every_outage
def test_every_charge_closes_and_no_customer_pays_twice(name: str) -> None:
    """Stripe's tally says so."""
    assert report(name).closed == CHARGES
    assert report(name).paid == CHARGES
    assert report(name).paid_twice == 0


@every_outage
def test_an_outage_makes_no_hot_loop(name: str) -> None:
    """What is sent follows from the queue's backoff alone: it would hold if Google did not slow the queue down.

    Besides, the sweep asks by one charge or two, each minute, whether Stripe answers again.
    """
    assert report(name).sends_of_a_key_at_most <= SENDS
    assert report(name).sends_of_a_key_by_sweep_at_most <= AT_ONCE + LASTS // TICK
    assert report(name).calls_of_a_charge <= CALLS_A_SEND * SENDS
    a_minute = CHARGES * (timedelta(minutes=1) / QUEUE.max_backoff)
    assert report(name).settled_rate <= CALLS_A_SEND * a_minute


@every_outage
def test_a_charge_has_few_tasks_and_they_do_not_pile_up(name: str) -> None:
    """They would wait in the queue before others, long after Stripe is back."""
    assert report(name).tasks_of_a_charge_at_most <= TASKS + 1  # One more once the sweep sees that Stripe answers,
    assert report(name).tasks_waiting_at_most <= 3 * CHARGES  # which then waits beside two.
    # Two a minute, and a slowed queue lets them wait in bursts: by chance (the seed) 28 to 65 for 40 charges.
    assert report(name).probe_tasks_at_most <= 2 * CHARGES


@every_outage
def test_the_recovery_meets_no_herd(name: str) -> None:
    """All that comes, comes through the queue, at its rate; and Stripe limits none of it."""
    assert report(name).of_one_endpoint_a_second_at_most <= QUEUE.max_dispatches_per_second + BURST
    assert report(name).limited == 0


@every_outage
def test_all_is_closed_soon_after_the_recovery(name: str) -> None:
    """The queue finds the recovery out, each task ends its wait, and then it is a matter of the queue's rate."""
    waits = LONGEST_HOLD + QUEUE.max_backoff
    if Down.TASKS in SCENARIOS[name].down:
        waits = policy.LAST_WAIT + TICK  # Until they are due, and swept.
    if Down.LEDGER in SCENARIOS[name].down:
        waits = CALLER_WAITS_AT_MOST  # Nobody knows of them but the callers.
    assert report(name).last_closed <= waits + timedelta(seconds=CHARGES / QUEUE.max_dispatches_per_second)


def test_while_cloud_tasks_is_down_the_sweep_alone_carries_every_charge() -> None:
    """No task is made nor delivered, and all is paid before it is back."""
    carried = report("Cloud Tasks")
    assert carried.dispatches == 0
    assert carried.swept == CHARGES
    assert carried.last_closed < timedelta(0)


def test_there_is_no_rush_after_an_outage() -> None:
    """Within no second more than Stripe allows one endpoint, of all calls together."""
    assert 0 < report("Stripe refuses").peak <= 25
    assert report("Stripe refuses").limited == 0


def test_a_queue_as_google_makes_it_would_run_into_stripes_limit() -> None:
    """500 a second: the tests above can fail, and the queue's rate is what keeps the herd away."""
    defaults = QueueSettings(max_dispatches_per_second=500, max_concurrent_dispatches=1000)
    herd = simulated(Scenario(charges=CHARGES, down={Down.STRIPE: timedelta(minutes=30)}, queue=defaults))
    assert herd.limited > 0
    assert herd.paid_twice == 0
    assert herd.closed == CHARGES


def test_the_same_outage_happens_the_same_way_again() -> None:
    """Virtual time, chance by seed."""
    scenario = Scenario(charges=5, down={Down.STRIPE: timedelta(minutes=10)})
    assert simulated(scenario) == simulated(scenario)

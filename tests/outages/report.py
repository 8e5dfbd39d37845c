"""What was measured of an outage."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from tests.outages.deployment import START, Deployment, Scenario


@dataclass(frozen=True, kw_only=True)
class Report:
    """The measures of one run. Rates are at Stripe, all instances together; times count from the recovery."""

    scenario: Scenario
    closed: int
    paid_twice: int
    paid: int
    sends_of_a_key_at_most: int  # By callers and tasks.
    sends_of_a_key_by_sweep_at_most: int
    calls_of_a_charge: float  # To Stripe, on average, while it was down.
    calls_a_minute: tuple[int, ...]  # Of each minute of the outage.
    tasks_of_a_charge_at_most: int  # Those of probes apart, here
    tasks_waiting_at_most: int  # and here.
    probe_tasks_at_most: int
    swept: int
    dispatches: int
    calls_a_second: tuple[int, ...]  # Of each second since the recovery.
    of_one_endpoint_a_second_at_most: int
    limited: int  # Calls that Stripe answered 429.
    last_closed: timedelta
    queue_empty: timedelta

    @property
    def settled_rate(self) -> float:
        """The mean of the calls a minute in the second half of the outage."""
        minutes = max(self.scenario.down.values()) // timedelta(minutes=1)
        return sum(self.calls_a_minute[minutes // 2 :]) / (minutes - minutes // 2)

    @property
    def peak(self) -> int:
        """The most calls a second since the recovery."""
        return max(self.calls_a_second, default=0)

    @property
    def mean(self) -> float:
        """The mean of the seconds since the first call after the recovery."""
        busy = self.calls_a_second[next((i for i, n in enumerate(self.calls_a_second) if n), 0) :]
        return sum(busy) / len(busy) if busy else 0.0


def simulated(scenario: Scenario) -> Report:
    """Run it, and measure."""
    deployment = Deployment(scenario)
    deployment.run()
    recovers_at = deployment.recovers_at
    during = [at for at, _ in deployment.arrivals if at < recovers_at]
    since = [(at, endpoint) for at, endpoint in deployment.arrivals if at >= recovers_at]
    by_charge = deployment.stripe.tally().by_metadata
    endpoint_seconds = Counter((endpoint, (at - recovers_at) // timedelta(seconds=1)) for at, endpoint in since)
    return Report(
        scenario=scenario,
        closed=len(deployment.closed),
        paid=len(by_charge),
        paid_twice=sum(one.count > 1 for one in by_charge.values()),
        sends_of_a_key_at_most=max((n for key, n in deployment.sends.items() if key), default=0),
        sends_of_a_key_by_sweep_at_most=max((n for key, n in deployment.sends_by_sweep.items() if key), default=0),
        calls_of_a_charge=len(during) / scenario.charges,
        calls_a_minute=_histogram(during, START, timedelta(minutes=1)),
        tasks_of_a_charge_at_most=max(deployment.tasks_by_charge.values(), default=0),
        tasks_waiting_at_most=deployment.most_tasks,
        probe_tasks_at_most=deployment.most_probe_tasks,
        swept=deployment.swept,
        dispatches=len(deployment.dispatches),
        calls_a_second=_histogram((at for at, _ in since), recovers_at, timedelta(seconds=1)),
        of_one_endpoint_a_second_at_most=max(endpoint_seconds.values(), default=0),
        limited=deployment.limited,
        last_closed=max(deployment.closed.values(), default=recovers_at) - recovers_at,
        queue_empty=deployment.ended_at - recovers_at,
    )


def _histogram(times: Iterable[datetime], start: datetime, width: timedelta) -> tuple[int, ...]:
    counts = Counter((at - start) // width for at in times)
    return tuple(counts[number] for number in range(max(counts, default=-1) + 1))

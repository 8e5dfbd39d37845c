"""Measures outages with many open charges, in virtual time.

python -m tests.outages --charges 3000 --hours 4
python -m tests.outages --charges 1000 --hours 4 --rate 5 --rate 10 --rate 50 --rate 500
"""

# ruff: noqa: T201 - it prints.

import argparse
from datetime import timedelta
from typing import Final

from infra.local.stripe.engine import Fault
from tests.outages.deployment import Down, QueueSettings, Scenario
from tests.outages.report import Report, simulated

COLUMNS: Final = (
    "outage",
    "rate",
    "closed",
    "twice",
    "calls/charge",
    "of a key",
    "a minute",
    "tasks/charge",
    "waiting",
    "peak/s",
    "mean/s",
    "endpoint/s",
    "429",
    "last closed",
)


def scenarios(charges: int, lasts: timedelta, queue: QueueSettings) -> dict[str, Scenario]:
    """Return the outages that are measured, by name."""

    def one(*down: Down, **more: object) -> Scenario:
        return Scenario(charges=charges, down=dict.fromkeys(down, lasts), queue=queue, **more)  # type: ignore[arg-type]

    return {
        "Stripe refuses": one(Down.STRIPE),
        "Stripe: 503": one(Down.STRIPE, stripe_fails_by=Fault.ERROR_503_BEFORE),
        "Stripe hangs": one(Down.STRIPE, stripe_hangs=True),
        "Stripe acts, in silence": one(Down.STRIPE, stripe_fails_by=Fault.DROP_AFTER),
        "Stripe acts, and saves a 500": one(Down.STRIPE, stripe_fails_by=Fault.ERROR_500_AFTER),
        "Stripe, queue not throttled": one(Down.STRIPE, queue_throttles=False),
        "Datastore": one(Down.LEDGER),
        "Stripe and Datastore": one(Down.STRIPE, Down.LEDGER),
        "Cloud Tasks": one(Down.TASKS, respond_async=True),
        "Stripe and Cloud Tasks": one(Down.STRIPE, Down.TASKS, respond_async=True),
    }


def row(name: str, report: Report) -> tuple[str, ...]:
    """Return what was measured, as COLUMNS has it."""
    return (
        name,
        f"{report.scenario.queue.max_dispatches_per_second:g}",
        f"{report.closed}/{report.scenario.charges}",
        str(report.paid_twice),
        f"{report.calls_of_a_charge:.1f}",
        str(report.sends_of_a_key_at_most),
        f"{report.settled_rate:.1f}",
        str(report.tasks_of_a_charge_at_most),
        str(report.tasks_waiting_at_most),
        str(report.peak),
        f"{report.mean:.1f}",
        str(report.of_one_endpoint_a_second_at_most),
        str(report.limited),
        f"{report.last_closed.total_seconds() / 60:.1f} min",
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.outages", description=__doc__.partition("\n")[0])
    parser.add_argument("--charges", type=int, default=300)
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--rate", type=float, action="append", help="max_dispatches_per_second; may be repeated")
    parser.add_argument("--concurrent", type=int, default=QueueSettings.max_concurrent_dispatches)
    parser.add_argument("--max-backoff", type=float, default=QueueSettings.max_backoff.total_seconds(), help="seconds")
    parser.add_argument("--only", help="part of the outage's name")
    asked = parser.parse_args()
    line = "{:29}{:>6}{:>11}{:>7}{:>14}{:>10}{:>10}{:>14}{:>9}{:>8}{:>8}{:>12}{:>6}{:>14}".format
    print(line(*COLUMNS))
    for rate in asked.rate or [QueueSettings.max_dispatches_per_second]:
        queue = QueueSettings(
            max_dispatches_per_second=rate,
            max_concurrent_dispatches=asked.concurrent,
            max_backoff=timedelta(seconds=asked.max_backoff),
        )
        for name, scenario in scenarios(asked.charges, timedelta(hours=asked.hours), queue).items():
            if asked.only is None or asked.only in name:
                print(line(*row(name, simulated(scenario))), flush=True)


if __name__ == "__main__":
    main()

"""The table of faults, and the bars that Paidonce must clear in it."""

import importlib
import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from shared.policy import Limits
from tests.peers.storm import Score, blow, orders, quantile

PEERS: Final[Mapping[str, str]] = {
    "plain_stripe": "stripe-python, its own retries",
    "stored_key": "a stored key, a 5xx is a failure",
    "powertools": "AWS Lambda Powertools",
    "dbos_workflow": "a DBOS workflow",
    "paidonce": "Paidonce",
}
NEVER: Final[Mapping[str, str]] = {
    "charged_twice": "charged twice",
    "lost": "lost",
    "told_failed_though_paid": "told failed though paid",
    "left_unknown": "left unknown",
}
HEADINGS: Final = ("", *NEVER.values(), "sends per charge", "seconds unknown: median, p99", "key burnt: median, p99")

# Paidonce's bars. The four above are 0; the seconds are those of an unknown outcome once Stripe answers again.
MEDIAN_SECONDS: Final = 10.0
P99_SECONDS: Final = 60.0
BURNT_SECONDS: Final = (Limits().quarantine + timedelta(seconds=60)).total_seconds()  # Where no answer can ever tell.


def measure(name: str, seed: int, charges: int) -> Score:
    """Let the storm blow over one peer."""
    peer = importlib.import_module(f"tests.peers.{name}")
    with peer.ready() as factory:
        return blow(name, factory, orders(seed, charges))


def table(scores: list[Score]) -> str:
    """Return the table, as Markdown."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(_row(score) for score in scores)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _row(score: Score) -> tuple[str, ...]:
    counts = (str(score.count(what)) for what in NEVER)
    seconds = (
        f"{_seconds(quantile(found, 0.5))}, {_seconds(quantile(found, 0.99))}"
        for found in (score.closings, score.burnt_closings)
    )
    return (PEERS[score.name], *counts, f"{score.sends:.2f}", *seconds)


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "never" if math.isinf(value) else f"{value:,.1f}"


def missed(score: Score) -> list[str]:
    """Return every bar of Paidonce's that is missed, in words."""
    found = [f"{name}: {score.count(what)}" for what, name in NEVER.items() if score.count(what)]
    bars = (
        ("the median outcome is unknown", quantile(score.closings, 0.5), MEDIAN_SECONDS),
        ("1 % of the outcomes are unknown", quantile(score.closings, 0.99), P99_SECONDS),
        ("1 % of those whose key is burnt are unknown", quantile(score.burnt_closings, 0.99), BURNT_SECONDS),
    )
    return found + [f"{what} for {_seconds(s)} s or longer, not {bar:,.0f}" for what, s, bar in bars if s >= bar]

# ruff: noqa: T201 - programs print.
"""Explore everything within each bound, and say what held: `python -m tests.model`. Takes minutes."""

import argparse
import sys

from tests.model.search import Explored, Search
from tests.model.stripe import BANK_DEBIT, CARD, FLAKY_CARD, STRICT_CARD
from tests.model.world import PROMISES, Bound, World

BOUNDS = (
    Bound(payment_method=CARD, faults=2, acts=0, runs=1),
    Bound(payment_method=CARD, faults=1, acts=1, runs=1),
    Bound(payment_method=CARD, faults=0, acts=1, runs=2),
    Bound(payment_method=CARD, faults=1, acts=0, runs=2),
    Bound(payment_method=CARD, faults=0, acts=0, runs=2, stranger=True),
    Bound(payment_method=BANK_DEBIT, faults=2, acts=0, runs=1),
    Bound(payment_method=BANK_DEBIT, faults=1, acts=1, runs=1),
    Bound(payment_method=STRICT_CARD, faults=2, acts=0, runs=1),
    Bound(payment_method=STRICT_CARD, faults=1, acts=1, runs=1),
    Bound(payment_method=FLAKY_CARD, faults=2, acts=0, runs=1),
    Bound(payment_method=FLAKY_CARD, faults=1, acts=1, runs=1),
)


def main() -> int:
    """Explore every bound. Returns 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, help="leave a bound once it has shown so many states")
    states_at_most = parser.parse_args().states
    print("states       steps  deep  seconds  of a charge, with")
    all_explored = []
    for bound in BOUNDS:
        explored = Search(World(bound)).run(states_at_most=states_at_most)
        all_explored.append(explored)
        print(line(explored), flush=True)
        for number, sentence in enumerate(explored.trace, 1):
            print(f"{number:4}. {sentence}")
    states = sum(one.states for one in all_explored)
    steps = sum(one.transitions for one in all_explored)
    seconds = sum(one.seconds for one in all_explored)
    deepest = max(one.depth for one in all_explored)
    print(f"{states:,} states, {steps:,} steps, {deepest} deep at most, in {seconds:,.0f} seconds\n")
    broken = {one.broken for one in all_explored}
    for promise in PROMISES:
        print(f"{'BROKEN' if promise in broken else 'held  '}  {promise}")
    return int(broken != {None})


def line(explored: Explored) -> str:
    """Say in a line what an exploration came to."""
    end = "" if explored.complete else f" (BROKEN: {explored.broken})" if explored.broken else " (not all)"
    size = f"{explored.states:9,} {explored.transitions:10,} {explored.depth:4} {explored.seconds:8.1f}"
    return f"{size}  {explored.bound}{end}"


if __name__ == "__main__":
    sys.exit(main())

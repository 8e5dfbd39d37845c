"""Every crash point: all single faults of every scenario, pairs of them, and storms by seed.

Pairs are drawn by seed, the same ones each time, so that the suite takes a minute; `CRASH_POINTS=all` runs every pair.
"""

import os
from collections.abc import Callable

import pytest

from tests.crash_points.explore import SCENARIOS, Exploration, Scenario, bank_debit, pairs, pay, singles, storm

STORMS = 160  # A scenario; the richest schedules, and the cheapest.
ALL = os.environ.get("CRASH_POINTS") == "all"
PARTS = 4  # So that several processes may share the work.
MAIN_SHARE = 1.0 if ALL else 0.08  # Of the pairs of the main job.
SHARE = 1.0 if ALL else 0.008  # Of the pairs of the other scenarios,
OTHER_PARTS = 1 if ALL else 4  # after every fourth of their single faults.
OTHERS = [s for s in SCENARIOS if s is not pay and (ALL or s is not bank_debit)]  # A debit takes days: many looks.


def _counted(exploration: Exploration, record: Callable[[str, object], None]) -> None:
    assert exploration.runs > 0
    record("schedules", len(exploration.schedules))


@pytest.mark.parametrize("webhooks", [True, False], ids=["webhooks", "no webhooks"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_no_single_fault_charges_twice_loses_a_charge_or_lies(
    scenario: Scenario, webhooks: bool, record_property: Callable[[str, object], None]
) -> None:
    """One fault anywhere, of any kind: the promises hold, with and without Stripe's webhooks."""
    exploration = Exploration()
    for _ in singles(exploration, scenario, webhooks=webhooks):
        pass
    _counted(exploration, record_property)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_pair_of_faults_charges_twice_loses_a_charge_or_lies(
    part: int, record_property: Callable[[str, object], None]
) -> None:
    """Any two faults in the main job, webhooks off: the ledger must find out by itself."""
    exploration = Exploration()
    pairs(exploration, pay, webhooks=False, share=MAIN_SHARE, part=part, parts=PARTS)
    _counted(exploration, record_property)


@pytest.mark.parametrize("scenario", OTHERS, ids=lambda scenario: scenario.__name__)
def test_no_drawn_pair_of_faults_breaks_a_promise(
    scenario: Scenario, record_property: Callable[[str, object], None]
) -> None:
    """A share of all pairs of every scenario, the same ones each time."""
    exploration = Exploration()
    pairs(exploration, scenario, webhooks=True, share=SHARE, parts=OTHER_PARTS)
    _counted(exploration, record_property)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_no_storm_breaks_a_promise(scenario: Scenario, record_property: Callable[[str, object], None]) -> None:
    """A fault at about every fifth call; a failing seed is printed and replays."""
    exploration = Exploration()
    for seed in range(STORMS // 8 if scenario is bank_debit else STORMS):
        storm(exploration, scenario, seed)
    _counted(exploration, record_property)

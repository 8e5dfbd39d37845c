"""The drill: charge, lose the database, restore it to before, reopen it; the customer has paid at most once.

The backup is taken before each call across a boundary; work goes on to each later call, where the process dies with the
call done or not, or goes on to the end. Then the database is restored, at once or after a day.
"""

import os
import random
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from shared import policy
from shared.charge import Status, charge_id
from tests.crash_points.explore import (
    Scenario,
    bank_debit,
    cancel,
    cash,
    decline_then_another_card,
    pay,
    pay_and_walk_away,
)
from tests.world import KEY, Fault, World

HOUR = timedelta(hours=1)
ALL = os.environ.get("CRASH_POINTS") == "all"
SHARE = 0.06
LATER = {"at once": timedelta(), "after 25 hours": 25 * HOUR, "after 40 days": timedelta(days=40)}


def drill(
    scenario: Scenario, *, backup: int, death: int | None, fault: Fault, later: timedelta, caller: bool
) -> World | None:
    """Run one drill to its end. None: there is no such call."""
    world = World(plan={} if death is None else {death: fault}, backups=[])
    scenario(world)
    backups = world.backups or []
    if backup >= len(backups) or (death is not None and death >= len(backups)):
        return None
    world.backups = None
    world.clock.sleep(later)
    world.engine.run_due()
    world.engine.prune_keys(policy.KEY_LIFE.total_seconds())
    world.restore(backups[backup])
    world.reopen(backups[backup].at)
    if caller:
        scenario(world)
    world.settle()
    if not later:
        world.audit(since=backups[backup].at - HOUR)
        world.settle()
    return world


def judged(world: World, what: str) -> None:
    """Assert every promise, Stripe's tally being the judge."""
    history = [
        f"{entry.at:%d %H:%M:%S} {entry.status} {entry.what}" for charge in world.charges() for entry in charge.history
    ]
    assert world.check() == [], "\n".join(
        [what, *world.trace, *(f"{t.request} {t.status}" for t in world.told), *history]
    )


def every(scenario: Scenario) -> Iterator[tuple[int, int | None, Fault]]:
    """List every backup, with every later death; a share of them, drawn by seed, unless CRASH_POINTS=all."""
    chance = random.Random(scenario.__name__)  # noqa: S311 - it chooses tests, not secrets.
    return (one for one in _every(scenario) if ALL or chance.random() < SHARE)


def _every(scenario: Scenario) -> Iterator[tuple[int, int | None, Fault]]:
    undisturbed = World(backups=[])
    scenario(undisturbed)
    calls = len(undisturbed.backups or [])
    for backup in range(calls):
        yield backup, None, Fault.DIE_AFTER
        for death in range(backup, calls):
            yield backup, death, Fault.DIE_BEFORE
            yield backup, death, Fault.DIE_AFTER


@pytest.mark.parametrize("later", LATER.values(), ids=LATER.keys())
@pytest.mark.parametrize(
    "scenario",
    [pay, pay_and_walk_away, decline_then_another_card, cancel, cash, bank_debit],
    ids=lambda one: one.__name__,
)
def test_a_restored_ledger_charges_nobody_twice(scenario: Callable[[World], None], later: timedelta) -> None:
    """From any point of the charge's way, with work in flight, within and beyond the life of its keys."""
    drills = 0
    for backup, death, fault in every(scenario):
        for caller in (True, False):
            world = drill(scenario, backup=backup, death=death, fault=fault, later=later, caller=caller)
            if world is not None:
                drills += 1
                judged(world, f"backup before call {backup}, {fault} at {death}, caller repeats: {caller}")
    assert drills > 1


def test_until_it_is_reopened_everything_but_reads_is_refused() -> None:
    """503, which says what to do; nothing is sent to Stripe."""
    world = World()
    world.create()
    backup = world.backup()
    world.restore(backup)
    asked = len(world.engine.logged())

    for told in (
        world.create(),
        world.create(key="order-1002"),
        world.post(f"/{world.charge().id}/deliver", {}, by_task="late"),
        world.post(f"/{world.charge().id}/cancel", {}),
        world.post("/cancel", {}, key="order-1003"),
    ):
        assert told is not None
        assert told.status == 503
        assert told.body["type"] == "urn:paidonce:ledger-closed"
        assert "paidonce ledger reopen" in told.body["detail"]
    read = world.get(f"/{world.charge().id}")
    assert read is not None
    assert read.status == 200
    assert read.body["status"] == Status.SUCCEEDED
    assert len(world.engine.logged()) == asked

    world.reopen(backup.at)
    world.clock.sleep(timedelta(seconds=2))
    again = world.create()
    assert again is not None
    assert again.status == 200
    assert world.money_moved(KEY) == [1999]


def test_a_copy_of_its_metadata_does_not_stand_for_a_forgotten_charge() -> None:
    """What was made for it and paid says what it is, not an older one for another amount that a script has made."""
    world = World()
    world.clock.sleep(24 * HOUR)
    backup = world.backup()
    form = f"amount=500&currency=usd&customer={world.customer}&payment_method=pm_card_visa"
    form += "&automatic_payment_methods[enabled]=true&automatic_payment_methods[allow_redirects]=never"
    world.at_stripe(
        "POST", "/v1/payment_intents", f"{form}&metadata[pio_charge]={charge_id(None, KEY)}&metadata[pio_key]={KEY}"
    )
    world.clock.sleep(HOUR)
    world.create()
    world.restore(backup)
    world.reopen(backup.at)
    world.clock.sleep(timedelta(seconds=2))
    again = world.create()
    assert again is not None
    assert (again.status, again.body["amount"]) == (200, 1999)
    world.settle()
    assert world.money_moved(KEY) == [1999]

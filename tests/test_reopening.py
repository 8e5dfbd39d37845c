"""A reopening that could not ask an account: what was charged there in the lost time is not in the ledger."""

from datetime import timedelta
from typing import Final

import pytest

from shared.charge import charge_id
from tests.world import KEY, World

MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)


def connected(world: World) -> tuple[str, str]:
    """Return a connected account, and a customer of its."""
    account = world.at_stripe("POST", "/v1/accounts", "type=standard")["id"]
    return account, world.at_stripe("POST", "/v1/customers", **{"Stripe-Account": account})["id"]


def amounts(world: World) -> list[int]:
    """Return what Stripe took, for whatever charge."""
    return [moved.amount for moved in world.engine.tally().moved]


@pytest.fixture
def forgotten() -> tuple[World, str, str]:
    """A charge that was paid and is in no ledger, on an account that was disconnected while that was reopened."""
    world = World()
    account, customer = connected(world)
    backup = world.backup()
    world.clock.sleep(5 * MINUTE)
    world.create(account=account, customer=customer)
    world.settle()
    world.clock.sleep(HOUR)
    world.restore(backup)
    world.engine.disconnect(account)
    assert world.reopen(backup.at).unreachable == [account]
    world.engine.connect(account)
    world.clock.sleep(10 * MINUTE)
    return world, account, customer


def test_nobody_is_told_the_definite_no_of_what_may_have_been_paid(forgotten: tuple[World, str, str]) -> None:
    """503, until the account has been asked."""
    world, account, _ = forgotten
    told = world.post("/cancel", {"account": account}, key=KEY)
    assert told is not None
    assert (told.status, told.body["type"]) == (503, "urn:paidonce:ledger-closed")
    assert account in told.body["detail"]


@pytest.mark.parametrize("days", [0, 2, 32, 400])
def test_a_key_that_is_repeated_there_is_looked_for_first_however_late(
    forgotten: tuple[World, str, str], days: int
) -> None:
    """Elsewhere that ends after 31 days."""
    world, account, customer = forgotten
    world.clock.sleep(timedelta(days=days))
    world.create(account=account, customer=customer)
    world.settle()
    assert amounts(world) == [1999]


@pytest.mark.parametrize("skipped", [False, True], ids=["asked", "not asked"])
def test_what_was_chosen_in_the_lost_time_is_looked_for_before_it_is_done_again(*, skipped: bool) -> None:
    """A refused create, tried again with another card: once before the restore point is lost, and once after."""
    world = World()
    account, customer = connected(world)
    name = charge_id(account, KEY)
    world.create(account=account, customer=customer, payment_method="pm_gone")
    world.settle()
    backup = world.backup()
    world.clock.sleep(5 * MINUTE)
    world.post(f"/{name}/payment-method", {"payment_method": "pm_card_visa"})
    world.settle()
    world.clock.sleep(HOUR)
    world.restore(backup)
    if skipped:
        world.engine.disconnect(account)
    world.reopen(backup.at)
    if skipped:
        world.engine.connect(account)
    world.clock.sleep(timedelta(days=3))
    world.post(f"/{name}/payment-method", {"payment_method": "pm_card_visa"})
    world.settle()
    assert amounts(world) == [1999]

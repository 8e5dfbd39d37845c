"""A reopening that could not ask an account: what was charged there in the lost time is not in the ledger."""

from collections.abc import Callable
from datetime import timedelta
from typing import Final

import pytest

from shared import policy
from shared.charge import Audience, LookFailed, Seen, Status, Topic, charge_id
from shared.policy import Limits
from tests.test_webhook_function import another
from tests.world import KEY, QUARANTINE, RETRY_SCHEDULE, Backup, World

MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)


def connected(world: World) -> tuple[str, str]:
    """Return a connected account, and a customer of its."""
    account = world.at_stripe("POST", "/v1/accounts", "type=standard")["id"]
    return account, world.at_stripe("POST", "/v1/customers", **{"Stripe-Account": account})["id"]


def amounts(world: World) -> list[int]:
    """Return what Stripe took, for whatever charge."""
    return [moved.amount for moved in world.engine.tally().moved]


Unlisted = Callable[[World], None]


def disconnected(world: World) -> None:
    """Have Stripe list no connected account: the one there is has been disconnected."""
    world.parts.gateway.accounts = lambda: ()  # type: ignore[method-assign]


def restricted(world: World) -> None:
    """Have an API key that may not list them."""
    world.parts.gateway.accounts = lambda: LookFailed(seen=Seen.UNAUTHORIZED)  # type: ignore[method-assign]


def forget(world: World) -> tuple[Backup, str, str]:
    """Forget a charge that was paid on a connected account: the database is restored, and not reopened yet."""
    account, customer = connected(world)
    backup = world.backup()
    world.clock.sleep(5 * MINUTE)
    world.create(account=account, customer=customer)
    world.settle()
    world.clock.sleep(HOUR)
    world.restore(backup)
    return backup, account, customer


def reopened_without(unlisted: Unlisted, world: World) -> tuple[str, str]:
    """Forget such a charge, and reopen the ledger without having asked its account."""
    backup, account, customer = forget(world)
    unlisted(world)
    done = world.reopen(backup.at)
    assert (done.unreachable, done.asked, done.unlisted) == ([], [], unlisted is restricted)
    world.parts = world._deploy()
    world.clock.sleep(10 * MINUTE)
    return account, customer


@pytest.mark.parametrize("unlisted", [disconnected, restricted])
@pytest.mark.parametrize("days", [0, 2, 32, 400])
def test_on_an_account_that_was_not_listed_a_key_is_looked_for_first_however_late(
    unlisted: Unlisted, days: int
) -> None:
    """Stripe lists the accounts that are connected now: others may have been, in the lost time."""
    world = World()
    account, customer = reopened_without(unlisted, world)
    world.clock.sleep(timedelta(days=days))
    world.create(account=account, customer=customer)
    world.settle()
    assert amounts(world) == [1999]
    assert world.check() == []


@pytest.mark.parametrize("unlisted", [disconnected, restricted])
def test_nobody_is_told_the_definite_no_of_what_may_have_been_paid_on_an_account_not_listed(unlisted: Unlisted) -> None:
    """503, for as long as a key of the lost time may be repeated."""
    world = World()
    account, _ = reopened_without(unlisted, world)
    told = world.post("/cancel", {"account": account}, key=KEY)
    assert told is not None
    assert told.status == 503
    world.clock.sleep(timedelta(days=32))
    told = world.post("/cancel", {"account": account}, key="order-2")
    assert told is not None
    assert told.status == 410


def test_an_account_that_was_not_asked_stays_so_over_the_next_reopening() -> None:
    """Until one asks it: then all that was forgotten there is found, however long ago."""
    world = World()
    account, customer = reopened_without(disconnected, world)
    for days in (40, 40):
        world.clock.sleep(timedelta(days=days))
        world.restore(world.backup())
        disconnected(world)
        world.reopen(world.clock.now())
        world.parts = world._deploy()
    world.clock.sleep(timedelta(days=40))
    world.create(account=account, customer=customer)
    world.settle()
    assert amounts(world) == [1999]


def test_an_account_that_was_unreachable_twice_is_not_forgotten(forgotten: tuple[World, str, str]) -> None:
    """The first time is what counts."""
    world, account, customer = forgotten
    world.clock.sleep(timedelta(days=40))
    world.restore(world.backup())
    disconnected(world)
    world.reopen(world.clock.now())
    world.parts = world._deploy()
    world.clock.sleep(timedelta(days=40))
    told = world.post("/cancel", {"account": account}, key=KEY)
    assert told is not None
    assert told.status == 503
    world.create(account=account, customer=customer)
    world.settle()
    assert amounts(world) == [1999]


# --- What people are told ---------------------------------------------------------------------------------------------


def reaching(*audiences: Audience) -> World:
    """Return a deployment that can tell these."""
    limits = Limits(quarantine=QUARANTINE, retry_schedule=RETRY_SCHEDULE, reaches=frozenset(audiences))
    return World(limits=limits)


def go_on(world: World) -> None:
    """Let charges be carried out, and nobody be told of it: there is no notify function here."""
    for _ in range(5):
        for name in [name for name, waiting in world.queue.items() if "notify" in waiting.task.url]:
            del world.queue[name]
        world.run_tasks()
        world.clock.sleep(2 * MINUTE)
        world.sweep()


def test_a_caller_who_was_promised_the_outcome_of_a_forgotten_charge_hears_it() -> None:
    """202 was the answer, and the charge was paid in the lost time."""
    world = reaching(Audience.CALLER)
    backup = world.backup()
    world.clock.sleep(MINUTE)
    body = {"amount": 1999, "currency": "usd", "customer": world.customer, "payment_method": "pm_card_visa"}
    told = world.post("/", body, key=KEY, Prefer="respond-async")
    assert told is not None
    assert told.status == 202
    go_on(world)
    assert world.charge().status is Status.SUCCEEDED
    world.clock.sleep(HOUR)
    world.restore(backup)
    assert world.reopen(backup.at).inserted == [world.charge().id]
    assert [(notice.audience, notice.topic) for notice in world.charge().untold] == [(Audience.CALLER, Topic.OUTCOME)]
    assert world.charge().due_at is not None


def test_what_is_told_after_a_restore_is_newer_than_all_that_was_told_in_the_lost_time() -> None:
    """A receiver drops what it has seen, and what is older than what it has seen."""
    world = reaching(Audience.CALLER)
    body = {"amount": 1999, "currency": "usd", "customer": world.customer}
    body["payment_method"] = "pm_card_chargeDeclinedInsufficientFunds"
    world.post("/", body, key=KEY, Prefer="respond-async")
    backup = world.backup()
    world.clock.sleep(MINUTE)
    go_on(world)
    lost = world.charge()
    assert lost.status is Status.DECLINED
    assert [notice.topic for notice in lost.outbox] == [Topic.OUTCOME]
    world.clock.sleep(HOUR)
    world.restore(backup)
    world.reopen(backup.at)
    world.clock.sleep(HOUR)
    (intent,) = world.engine.payment_intents()
    world.at_stripe("POST", f"/v1/payment_intents/{intent['id']}/confirm", "payment_method=pm_card_visa")
    world.deliver_webhooks()
    found = world.charge()
    assert found.status is Status.SUCCEEDED
    assert found.version > lost.version
    assert {notice.number for notice in found.outbox}.isdisjoint(notice.number for notice in lost.outbox)


@pytest.mark.parametrize("backup_at", ["before", "after"])
def test_a_charge_that_is_made_anew_after_a_restore_is_newer_too(backup_at: str) -> None:
    """Whether the ledger has forgotten the whole of it, or only what became of it."""
    world = reaching(Audience.CALLER)
    backup = world.backup()
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds")
    backup = backup if backup_at == "before" else world.backup()
    lost = world.charge().version
    world.clock.sleep(HOUR)
    world.restore(backup)
    world.reopen(backup.at)
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds")
    assert world.charge().version > max(lost, 1_000_000)


def test_twice_the_money_that_a_reopening_finds_is_told() -> None:
    """To the operator, by mail and by the command; the second is given back."""
    world = reaching(Audience.OPERATOR)
    backup = world.backup()
    world.clock.sleep(5 * MINUTE)
    world.create()
    another(world)
    world.engine.drop_deliveries()
    world.clock.sleep(HOUR)
    world.restore(backup)
    done = world.reopen(backup.at)
    assert {found.kind for _, found in done.discrepancies} == {"paid_twice", "paid_without_charge"}
    assert Topic.DISCREPANCY in {notice.topic for notice in world.charge().untold}
    go_on(world)
    (refund,) = world.charge().refunds
    assert refund.settled
    assert policy.unsettled(world.charge()) == ()


@pytest.fixture
def forgotten() -> tuple[World, str, str]:
    """A charge that was paid and is in no ledger, on an account that was disconnected while that was reopened."""
    world = World()
    backup, account, customer = forget(world)
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

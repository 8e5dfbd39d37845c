"""Backfill and audit: what Stripe says against the ledger, both ways, and what becomes of it."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from google.cloud.datastore_v1.types import Entity

from infra.local.stripe.engine import Fault as StripeFault
from infra.local.stripe.resources import refunds
from infra.local.stripe.store import World as StripeWorld
from infra.local.stripe.store import shown
from shared import gateway, policy, reconcile, wiring
from shared.api import view
from shared.charge import Happened, LookFailed, Seen, Status, charge_id
from shared.deliver import AccountGone, LookUnavailable
from shared.gateway import ACCOUNT_PAGES, PAGE_SIZE
from shared.ledger import properties_of
from shared.policy import DISCREPANCIES_KEPT
from shared.reconcile import (
    DOUBTS,
    ENTRIES_KEPT,
    PAGE,
    STEPS_A_WRITE,
    Backfilled,
    Doubt,
    Finding,
    Report,
    StripeUnavailable,
    Why,
    _written,
)
from shared.store import CHARGE, Stored, _fill
from tests.test_reopening import connected
from tests.test_webhook_function import deliver, event
from tests.world import KEY, Fault, Killed, World, _InProcessStripe

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture
def world() -> World:
    """A deployment, a day after its first request."""
    world = World()
    world.clock.sleep(DAY)
    return world


def pay_beside(world: World, key: str = KEY, *, digest: bool = True, **form: object) -> dict[str, Any]:
    """Let a script pay for a charge of this key, with its metadata, past the ledger."""
    name = charge_id(None, key)
    fields = {"amount": 1999, "currency": "usd", "customer": world.customer, "payment_method": "pm_card_visa", **form}
    fields |= {"confirm": "true", "automatic_payment_methods[enabled]": "true", "metadata[pio_charge]": name}
    fields["metadata[pio_key]"] = key
    fields["automatic_payment_methods[allow_redirects]"] = "never"
    if digest and world.store.all_names(CHARGE):
        fields["metadata[pio_body]"] = world.charge(key).body_digest
    return world.at_stripe("POST", "/v1/payment_intents", "&".join(f"{name}={value}" for name, value in fields.items()))


def audit(world: World) -> dict[str, Any]:
    """Audit the last two days, up to now."""
    world.clock.sleep(timedelta(minutes=1))
    return world.audit(since=world.clock.now() - 2 * DAY)


def findings(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was found, and how it was settled."""
    return [(found["kind"], found["settled"]) for found in report["findings"]]


def edited(world: World, **changes: Any) -> None:
    """Change what the ledger says, past the policy."""
    charge = replace(world.charge(), **changes)
    stored = world.store._entities[CHARGE, charge.id]
    world.store.update(CHARGE, charge.id, properties_of(charge), stored.version)


# --- The audit --------------------------------------------------------------------------------------------------------


def test_where_both_agree_nothing_is_found(world: World) -> None:
    """The counts say how much was compared."""
    world.create()
    world.create(key="order-1002")
    world.create(key="order-1003", payment_method="pm_card_chargeDeclinedInsufficientFunds")
    report = audit(world)
    assert (report["at_stripe"], report["in_ledger"], report["agreed"]) == (2, 2, 2)
    assert (report["corrected"], report["findings"]) == (0, [])
    assert report["finished_at"] is not None


def test_a_success_that_the_ledger_missed_is_recorded(world: World) -> None:
    """No answer, no event, no task: the audit alone finds it."""
    world.webhooks_on = False
    world.engine.fail_next(StripeFault.DROP_AFTER, "payment_intents.confirm")
    world.plan = {}
    told = world.create()
    assert told is not None
    if world.charge().status is Status.SUCCEEDED:
        edited(world, status=Status.UNKNOWN, succeeded_at=None, amount_received=0, due_at=world.clock.now() + DAY)
    world.queue.clear()
    report = audit(world)
    assert world.charge().status is Status.SUCCEEDED
    assert (report["corrected"], findings(report)) == (1, [])


def test_money_without_a_record_makes_a_charge(world: World) -> None:
    """So its key never charges again; the operator is told."""
    paid = pay_beside(world, "order-9")
    report = audit(world)
    assert findings(report) == [("paid_without_charge", "the charge was recovered")]
    assert world.charge("order-9").payment_intent == paid["id"]
    told = world.create(key="order-9")
    assert told is not None
    assert told.status == 200
    assert len(world.engine.tally().moved) == 1


def test_money_that_only_names_a_charge_does_not_pay_for_it(world: World) -> None:
    """Who asks for 19.99 is not told that 0.50 have paid it."""
    pay_beside(world, "order-9", amount=50)
    assert findings(audit(world)) == [("paid_without_charge", "the charge was recovered")]
    told = world.create(key="order-9")
    assert told is not None
    assert (told.status, told.body["type"]) == (422, "urn:paidonce:key-reused")
    assert "amount" in told.body["fields"]


def test_another_accounts_owner_can_neither_pay_for_a_key_nor_take_it(world: World) -> None:
    """They may write any metadata, the key included: a charge's id is the digest of its account, too."""
    abroad = {"Stripe-Account": world.at_stripe("POST", "/v1/accounts", "type=standard")["id"]}
    form = "amount=1999&currency=usd&payment_method=pm_card_visa&confirm=true&automatic_payment_methods[enabled]=true"
    form += f"&automatic_payment_methods[allow_redirects]=never&metadata[pio_charge]={charge_id(None, 'order-9')}"
    backup = world.backup()
    world.at_stripe("POST", "/v1/payment_intents", f"{form}&metadata[pio_key]=order-9", **abroad)
    assert findings(audit(world)) == [("unexplained_payment", "")]
    world.deliver_webhooks()
    world.restore(backup)
    assert world.reopen(backup.at).inserted == []
    world.clock.sleep(timedelta(seconds=2))
    told = world.create(key="order-9")
    world.settle()
    assert told is not None
    assert told.status in {200, 202}
    assert world.charge("order-9").status is Status.SUCCEEDED


def test_an_edited_charge_at_stripe_stops_no_audit_and_no_reopening(world: World) -> None:
    """A person has written a charge of ours into the metadata of somebody else's payment: it is shown to a person."""
    backup = world.backup()
    form = "amount=50&currency=usd&payment_method=pm_card_visa&confirm=true&automatic_payment_methods[enabled]=true"
    form += "&automatic_payment_methods[allow_redirects]=never"
    theirs = world.at_stripe("POST", "/v1/payment_intents", form)
    world.at_stripe("POST", f"/v1/charges/{theirs['latest_charge']}", f"metadata[pio_charge]={charge_id(None, KEY)}")
    report = audit(world)
    assert findings(report) == [("unexplained_payment", "")]
    assert report["finished_at"] is not None
    world.restore(backup)
    assert world.reopen(backup.at).inserted == []
    assert world.charges() == []


def test_twice_the_money_is_given_back_once(world: World) -> None:
    """The recorded PaymentIntent keeps it, the other one is refunded, whole, and never again."""
    world.create()
    extra = pay_beside(world)
    report = audit(world)
    assert findings(report) == [("paid_twice", "")]
    world.settle()
    refunded = {one.payment_intent: one.refunded for one in world.engine.tally().moved}
    assert refunded == {world.charge().payment_intent: 0, extra["id"]: 1999}
    (found,) = world.charge().discrepancies
    assert (found.kind, found.payment_intent, found.settled) == (
        "paid_twice",
        extra["id"],
        "what it took was given back",
    )
    assert world.check() == []
    audit(world)
    world.settle()
    assert len(world.engine.objects("refund")) == 1


@pytest.mark.parametrize("amount", [1999, 500])
def test_nothing_is_given_back_where_a_person_has_refunded_the_recorded_payment(world: World, amount: int) -> None:
    """They saw two payments and refunded one: the customer pays once, not never. It is shown to a person."""
    world.create()
    extra = pay_beside(world)
    world.at_stripe("POST", "/v1/refunds", f"payment_intent={world.charge().payment_intent}&amount={amount}")
    audit(world)
    world.settle()
    assert {one.payment_intent: one.refunded for one in world.engine.tally().moved}[extra["id"]] == 0
    assert "not_paid_at_stripe" in {found.kind for found in world.charge().discrepancies}
    assert world.charge().done


def test_what_a_person_has_given_back_in_part_is_given_back_in_full(world: World) -> None:
    """And no more than that."""
    world.create()
    extra = pay_beside(world)
    world.at_stripe("POST", "/v1/refunds", f"payment_intent={extra['id']}&amount=500")
    audit(world)
    world.settle()
    assert {one.payment_intent: one.refunded for one in world.engine.tally().moved}[extra["id"]] == 1999


@pytest.mark.parametrize("fault", [StripeFault.DROP_AFTER, StripeFault.ERROR_500_AFTER, StripeFault.ERROR_500_BEFORE])
def test_a_refund_whose_answer_is_lost_happens_once(world: World, fault: StripeFault) -> None:
    """A key that is burnt is replaced: Stripe gives back no more than was taken."""
    world.create()
    extra = pay_beside(world)
    world.engine.fail_next(fault, "refunds.create")
    audit(world)
    world.settle()
    assert {one.payment_intent: one.refunded for one in world.engine.tally().moved}[extra["id"]] == 1999
    assert len(world.engine.objects("refund")) == 1
    assert world.charge().done
    assert world.check() == []


def test_a_refund_that_may_not_be_asked_for_is_asked_for_again(world: World) -> None:
    """The API key lacks the permission; the charge stays paid, and comes back until it may."""
    world.create()
    extra = pay_beside(world)
    world.engine.fail_next(StripeFault.FORBIDDEN, "refunds.create", times=None)
    audit(world)
    for _ in range(5):
        world.clock.sleep(HOUR)
        world.run_tasks()
    assert world.charge().status is Status.SUCCEEDED
    assert not world.charge().done
    assert len(world.charge().refunds[0].idempotency_key.split("-")) > 3
    world.engine.faults.clear()
    world.clock.sleep(DAY)
    world.settle()
    assert world.charge().done
    assert {one.payment_intent: one.refunded for one in world.engine.tally().moved}[extra["id"]] == 1999


def test_nothing_is_given_back_unless_the_recorded_one_is_paid_indeed(world: World) -> None:
    """A ledger that somebody has edited: the only money there is stays where it is."""
    world.create()
    paid = world.charge().payment_intent
    edited(world, payment_intent="pi_nobody_knows")
    report = audit(world)
    world.settle()
    assert {kind for kind, _ in findings(report)} == {"paid_twice", "not_paid_at_stripe"}
    assert world.engine.objects("refund") == []
    assert [one.payment_intent for one in world.engine.tally().moved] == [paid]
    assert world.charge().status is Status.SUCCEEDED
    assert world.charge().done


def test_a_refund_made_at_stripe_is_recorded(world: World) -> None:
    """A person's, in Stripe's dashboard, for a part."""
    world.create()
    world.at_stripe("POST", "/v1/refunds", f"payment_intent={world.charge().payment_intent}&amount=700")
    report = audit(world)
    assert findings(report) == [("refunded_at_stripe", "recorded on the charge")]
    assert world.charge().amount_refunded == 700
    assert findings(audit(world)) == []
    world.at_stripe("POST", "/v1/refunds", f"payment_intent={world.charge().payment_intent}&amount=300")
    assert findings(audit(world)) == [("refunded_at_stripe", "recorded on the charge")]
    assert world.charge().amount_refunded == 1000


def test_another_currency_is_for_a_person(world: World) -> None:
    """19.99 of one money are not 19.99 of another."""
    world.create()
    edited(world, terms=replace(world.charge().terms, currency="eur"))
    report = audit(world)
    assert (report["agreed"], findings(report)) == (0, [("amount_differs", "")])


def test_a_bank_debit_that_was_paid_in_the_period_is_recorded(world: World) -> None:
    """Stripe's charge is of the day on which it was confirmed; only the event is of this one."""
    world.webhooks_on = False
    world.create(payment_method="pm_usBankAccount_success")
    world.queue.clear()
    world.clock.sleep(5 * DAY)
    world.engine.run_due()
    world.engine.drop_deliveries()
    assert world.charge().status is Status.PROCESSING
    report = audit(world)
    assert (report["at_stripe"], report["corrected"]) == (1, 1)
    assert world.charge().status is Status.SUCCEEDED


def test_another_amount_is_for_a_person(world: World) -> None:
    """The ledger says one thing, Stripe another."""
    world.create()
    edited(world, terms=replace(world.charge().terms, amount=1000))
    assert findings(audit(world)) == [("amount_differs", "")]
    assert findings(audit(world)) == []  # Once.


def test_a_payment_on_another_account_than_the_charges_is_for_a_person(world: World) -> None:
    """Its metadata was copied."""
    world.create()
    account = world.at_stripe("POST", "/v1/accounts", "type=standard")["id"]
    name = world.charge().id
    customer = world.at_stripe("POST", "/v1/customers", **{"Stripe-Account": account})["id"]
    form = (
        f"amount=1999&currency=usd&customer={customer}&payment_method=pm_card_visa&confirm=true&metadata[pio_charge]={name}"
        "&automatic_payment_methods[enabled]=true&automatic_payment_methods[allow_redirects]=never"
    )
    world.at_stripe("POST", "/v1/payment_intents", form, **{"Stripe-Account": account})
    report = audit(world)
    assert report["accounts"] == ["", account]
    assert findings(report) == [("account_differs", "")]
    assert world.charge().discrepancies == ()


def test_a_charge_on_a_connected_account_is_held_against_that_account(world: World) -> None:
    """And agrees."""
    account = world.at_stripe("POST", "/v1/accounts", "type=standard")["id"]
    customer = world.at_stripe("POST", "/v1/customers", **{"Stripe-Account": account})["id"]
    world.create(account=account, customer=customer)
    report = audit(world)
    assert (report["at_stripe"], report["in_ledger"], report["agreed"], report["findings"]) == (1, 1, 1, [])


def test_an_account_that_is_gone_is_said_and_the_rest_is_audited(world: World) -> None:
    """Disconnected: nobody can ask."""
    account = world.at_stripe("POST", "/v1/accounts", "type=standard")["id"]
    world.create()
    world.engine.disconnect(account)
    report = audit(world)
    assert report["agreed"] == 1
    assert {found["kind"] for found in report["findings"]} == {"account_unreachable"}
    assert report["finished_at"] is not None


def test_an_orphan_is_canceled_and_what_may_become_one_is_left_alone(world: World) -> None:
    """Rule 6: only one whose charge has another recorded, or is final, and not in its first hour."""
    world.create()
    digest, name = world.charge().body_digest, world.charge().id
    form = f"amount=1999&currency=usd&customer={world.customer}&metadata[pio_charge]={name}&metadata[pio_body]={digest}"
    orphan = world.at_stripe("POST", "/v1/payment_intents", form)["id"]
    assert audit(world)["orphans"] == 0
    world.clock.sleep(2 * HOUR)
    stranger = world.at_stripe("POST", "/v1/payment_intents", form.replace(digest, "0" * 64))["id"]
    world.clock.sleep(2 * HOUR)
    assert audit(world)["orphans"] == 1
    world.settle()
    states = {intent["id"]: intent["status"] for intent in world.engine.payment_intents()}
    assert (states[orphan], states[stranger]) == ("canceled", "requires_payment_method")


@pytest.mark.parametrize("gone", [False, True])
def test_a_payment_whose_key_is_given_up_while_it_is_recovered_is_shown_to_a_person(
    world: World, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """The definite no was recorded first; it says nothing of the money, which no later audit would come upon."""
    paid = pay_beside(world)
    read = world.parts.gateway.recover

    def overtaken(payment_intent: str, account: str | None) -> Any:
        found = read(payment_intent, account)
        world.post("/cancel", {}, key=KEY)
        return found

    monkeypatch.setattr(world.parts.gateway, "recover", overtaken)
    if gone:
        lost = LookFailed(seen=Seen.MISSING_OBJECT)
        monkeypatch.setattr(world.parts.gateway, "fetch", lambda *_, **__: lost)
        with pytest.raises(AccountGone):
            world.parts.charger.recover(paid["id"], None)
        return
    assert findings(audit(world)) == [("unexplained_payment", "")]
    assert [found.payment_intent for found in policy.unsettled(world.charge())] == [paid["id"]]


def forgotten(world: World) -> str:
    """Make a PaymentIntent for the charge that the ledger does not know: the answer to its create was lost, say."""
    charge = world.charge()
    form = f"amount=1999&currency=usd&customer={world.customer}&metadata[pio_charge]={charge.id}"
    form += f"&metadata[pio_body]={charge.body_digest}&metadata[pio_key]={KEY}"
    form += "&automatic_payment_methods[enabled]=true&automatic_payment_methods[allow_redirects]=never"
    return str(world.at_stripe("POST", "/v1/payment_intents", form)["id"])


def paid_before_its_cancel(world: World) -> str:
    """Let an audit find such an orphan, and a customer pay it before its cancel is sent."""
    orphan = forgotten(world)
    world.clock.sleep(2 * HOUR)
    world.audit(since=world.clock.now() - DAY)
    assert world.charge().orphans == (orphan,)
    world.acted_at.append(world.clock.now())
    world.at_stripe("POST", f"/v1/payment_intents/{orphan}/confirm", "payment_method=pm_card_visa")
    return orphan


@pytest.mark.parametrize("webhooks", [True, False], ids=["webhooks", "no webhooks"])
def test_an_orphan_that_is_paid_before_its_cancel_is_refunded_once(world: World, webhooks: bool) -> None:
    """Its cancel is refused, so it is read: the charge has been paid twice."""
    world.webhooks_on = webhooks
    world.create()
    world.settle()
    orphan = paid_before_its_cancel(world)
    world.run_tasks()
    world.settle()
    audit(world)
    world.settle()
    assert world.check() == []
    assert {one.payment_intent: one.refunded for one in world.engine.tally().moved} == {
        world.charge().payment_intent: 0,
        orphan: 1999,
    }
    assert len(world.engine.objects("refund")) == 1
    assert [(found.kind, bool(found.settled)) for found in world.charge().discrepancies] == [("paid_twice", True)]


@pytest.mark.parametrize("webhooks", [True, False], ids=["webhooks", "no webhooks"])
def test_an_open_charge_is_not_charged_on_top_of_an_orphan_that_is_paid(world: World, webhooks: bool) -> None:
    """Declined, and the customer gives another card after the orphan was paid: nothing is confirmed with it."""
    world.webhooks_on = webhooks
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds")
    world.settle()
    orphan = paid_before_its_cancel(world)
    told = world.post(f"/{world.charge().id}/payment-method", {"payment_method": "pm_card_mastercard"})
    assert told is not None
    assert (told.status, told.body["status"]) == (200, "paid_out_of_band")
    world.settle()
    audit(world)
    world.settle()
    assert world.check() == []
    assert [one.payment_intent for one in world.engine.tally().moved] == [orphan]
    assert [found.kind for found in world.charge().discrepancies] == ["paid_elsewhere"]


@pytest.mark.parametrize("webhooks", [True, False], ids=["webhooks", "no webhooks"])
def test_of_two_payments_beside_a_declined_charge_one_is_given_back(world: World, webhooks: bool) -> None:
    """The first pays for it, though not by the PaymentIntent that is recorded."""
    world.webhooks_on = webhooks
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds")
    world.settle()
    world.acted_at.append(world.clock.now())
    first = pay_beside(world)
    audit(world)
    world.settle()
    assert world.charge().status is Status.PAID_OUT_OF_BAND
    second = pay_beside(world)
    audit(world)
    world.settle()
    audit(world)
    world.settle()
    assert {one.payment_intent: one.refunded for one in world.engine.tally().moved} == {
        first["id"]: 0,
        second["id"]: 1999,
    }
    assert len(world.engine.objects("refund")) == 1
    assert world.check() == []


def refunds_become(world: World, status: str) -> None:
    """Let the bank take a refund, or not: Stripe then has the money again, and says that none was given back."""
    for refund in world.engine.store.all("refund"):
        world.engine.store.update({**refund, "status": status})
        for charge in world.engine.store.all("charge"):
            if charge["id"] == refund["charge"] and status == "failed":
                world.engine.store.update({**charge, "amount_refunded": 0, "refunded": False})


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        ("succeeded", [("paid_twice", "what it took was given back")]),
        ("failed", [("paid_twice", ""), ("refund_failed", "")]),
    ],
)
def test_a_pending_refund_is_settled_by_what_becomes_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch, ends: str, found: list[tuple[str, str]]
) -> None:
    """It is read until it has succeeded; where the bank sends it back, a person is told."""
    world.create()
    pay_beside(world)
    monkeypatch.setattr(refunds, "shown", lambda refund: {**shown(refund), "status": "pending"})
    audit(world)
    world.run_tasks()
    refunds_become(world, "pending")
    for _ in range(3):
        world.clock.sleep(DAY)
        world.sweep()
        world.run_tasks()
    charge = world.charge()
    assert not charge.done
    assert [(one.kind, one.settled) for one in charge.discrepancies] == [("paid_twice", "")]
    refunds_become(world, ends)
    world.clock.sleep(2 * DAY)
    world.sweep()
    world.run_tasks()
    assert [(one.kind, one.settled) for one in world.charge().discrepancies] == found
    assert world.charge().done
    assert len(world.engine.objects("refund")) == 1


def sent_back(world: World) -> None:
    """Let a bank send every refund back."""
    refunds_become(world, "failed")
    for refund in world.engine.store.all("refund"):
        world.engine._call(StripeWorld(world.engine.platform, livemode=False)).emit("refund.failed", refund)


def test_a_refund_that_the_bank_sends_back_is_unsettled_and_told(world: World) -> None:
    """Stripe had called it succeeded; the customer is without their money again."""
    world.create()
    pay_beside(world)
    audit(world)
    world.settle()
    assert [bool(one.settled) for one in world.charge().discrepancies] == [True]
    world.clock.sleep(20 * DAY)
    sent_back(world)
    for _ in range(2):
        audit(world)
        world.settle()
    assert [(one.kind, one.settled) for one in world.charge().discrepancies] == [
        ("paid_twice", ""),
        ("refund_failed", ""),
    ]
    assert world.charge().done
    assert len(world.engine.objects("refund")) == 1


def test_a_persons_refund_that_the_bank_sends_back_is_not_recorded_any_more(world: World) -> None:
    """Weeks after it was made."""
    world.create()
    world.at_stripe("POST", "/v1/refunds", f"payment_intent={world.charge().payment_intent}")
    audit(world)
    assert world.charge().amount_refunded == 1999
    world.clock.sleep(20 * DAY)
    sent_back(world)
    assert findings(audit(world)) == [("refunded_at_stripe", "recorded on the charge")]
    assert world.charge().amount_refunded == 0


@pytest.mark.parametrize("looks", [0, 1])
def test_an_account_that_is_gone_while_money_is_given_back_there_leaves_it_to_be_given_back(
    world: World, looks: int
) -> None:
    """It is connected again, and the customer has the second payment back: nobody was told that none was paid."""
    account = world.at_stripe("POST", "/v1/accounts", "type=standard")["id"]
    customer = world.at_stripe("POST", "/v1/customers", **{"Stripe-Account": account})["id"]
    world.create(account=account, customer=customer)
    (charge,) = world.charges()
    form = f"amount=1999&currency=usd&customer={customer}&payment_method=pm_card_visa&confirm=true"
    form += "&automatic_payment_methods[enabled]=true&automatic_payment_methods[allow_redirects]=never"
    form += f"&metadata[pio_charge]={charge.id}&metadata[pio_key]={KEY}&metadata[pio_body]={charge.body_digest}"
    extra = world.at_stripe("POST", "/v1/payment_intents", form, **{"Stripe-Account": account})["id"]
    audit(world)
    if looks:
        world.engine.fail_next(StripeFault.DROP_BEFORE, "refunds.create", times=None)
        world.run_tasks()
        world.engine.faults.clear()
    world.engine.disconnect(account)
    for _ in range(3):
        world.run_tasks()
        world.clock.sleep(DAY)
    (charge,) = world.charges()
    assert not charge.done
    assert [found.kind for found in charge.discrepancies] == ["paid_twice"]
    world.engine.connect(account)
    world.settle()
    assert {one.payment_intent: one.refunded for one in world.engine.tally().moved} == {
        charge.payment_intent: 0,
        extra: 1999,
    }
    assert world.charges()[0].done


def test_the_charges_of_an_account_that_is_gone_are_one_finding_and_nobodys_doubt(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its owner has left with Stripe's word on them; they were paid all the same."""
    account = world.at_stripe("POST", "/v1/accounts", "type=standard")["id"]
    customer = world.at_stripe("POST", "/v1/customers", **{"Stripe-Account": account})["id"]
    for key in ("order-1", "order-2", "order-3"):
        world.create(key=key, account=account, customer=customer)
    world.create()
    world.engine.disconnect(account)
    capsys.readouterr()
    report = audit(world)
    assert findings(report) == [("account_unreachable", "")]
    assert report["findings"][0]["account"] == account
    assert report["agreed"] == 1
    assert all(charge.discrepancies == () for charge in world.charges())
    assert capsys.readouterr().out.count('"severity": "ERROR"') == 1


@pytest.mark.parametrize("when", ["before its first audit", "later", "later, and is not listed meanwhile"])
def test_an_account_that_comes_back_is_audited_from_where_its_last_audit_ended(
    world: World, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was paid there before without a record is found all the same, and once."""
    account, customer = connected(world)
    other, _ = connected(world)
    reconciler = world.parts.reconciler
    reconciler._put("audit", {"at": world.clock.now()})

    def audited() -> Report:
        world.clock.sleep(DAY)
        report = reconciler.audit(lambda: True)
        assert report is not None
        return report

    if when.startswith("later"):
        assert audited().findings == ()
    world.clock.sleep(HOUR)
    name = charge_id(account, "order-9")
    form = f"amount=1999&currency=usd&customer={customer}&payment_method=pm_card_visa&confirm=true"
    form += "&automatic_payment_methods[enabled]=true&automatic_payment_methods[allow_redirects]=never"
    form += f"&metadata[pio_charge]={name}&metadata[pio_key]=order-9"
    world.at_stripe("POST", "/v1/payment_intents", form, **{"Stripe-Account": account})
    world.engine.disconnect(account)
    listed = world.parts.gateway.accounts
    if "not listed" in when:
        monkeypatch.setattr(world.parts.gateway, "accounts", lambda: ({"id": other},))
    for _ in range(5):
        report = audited()
        if "not listed" not in when:
            (found,) = report.findings
            assert (found.kind, found.account) == ("account_unreachable", account)
            assert f"what was paid there since 2026-11-2{6 if when == 'later' else 5}" in found.detail
    world.engine.connect(account)
    monkeypatch.setattr(world.parts.gateway, "accounts", listed)
    report = audited()
    assert [(found.kind, found.charge) for found in report.findings] == [("paid_without_charge", name)]
    assert report.at_stripe == 1
    assert audited().findings == ()
    assert reconciler._last(f"audit-{account}") == reconciler._last(f"audit-{other}")


def test_what_another_account_calls_ours_is_left_alone(world: World) -> None:
    """Its owner may write any metadata; the audit is not stopped by what is not on the charge's account."""
    account = world.at_stripe("POST", "/v1/accounts", "type=standard")["id"]
    world.create()
    form = f"amount=50&currency=usd&metadata[pio_charge]={world.charge().id}"
    theirs = world.at_stripe("POST", "/v1/payment_intents", form, **{"Stripe-Account": account})
    world.clock.sleep(2 * HOUR)
    report = audit(world)
    assert report["finished_at"] is not None
    assert (report["orphans"], report["findings"]) == (0, [])
    shown = world.at_stripe("GET", f"/v1/payment_intents/{theirs['id']}", **{"Stripe-Account": account})
    assert shown["status"] == "requires_payment_method"


def test_an_audit_of_another_period_skips_nothing(world: World) -> None:
    """Who audits the last day by hand leaves the days before it to the next audit by the clock."""
    world.parts.reconciler._mark("audit", world.clock.now())
    pay_beside(world, "order-9")
    world.clock.sleep(5 * DAY)
    assert world.audit(since=world.clock.now() - DAY)["findings"] == []
    world.clock.sleep(HOUR)
    world.sweep()
    world.sweep()
    assert world.charge("order-9").status is Status.SUCCEEDED


def test_an_audit_that_stripe_interrupts_goes_on_where_it_was(world: World) -> None:
    """503, and the next call takes it up."""
    world.create()
    world.engine.fail_next(StripeFault.ERROR_503_BEFORE, "refunds.list", times=None)
    body = json.dumps({"since": (world.clock.now() - DAY).isoformat(), "until": world.clock.now().isoformat()}).encode()
    told = world._ask("reconcile", "POST", "/audit", body, {})
    assert told is not None
    assert told.status == 503
    world.engine.faults.clear()
    told = world._ask("reconcile", "POST", "/audit", body, {})
    assert told is not None
    assert (told.status, told.body["finished_at"] is not None) == (200, True)
    assert len(wiring.parts("reconcile").reconciler.reports()) == 1


def test_an_audit_ends_with_its_time_and_the_next_call_goes_on(world: World) -> None:
    """As often as it takes; the report is one."""
    for number in range(5):
        world.create(key=f"order-{number}")
    world.clock.sleep(HOUR)
    reconciler = world.parts.reconciler
    calls, since = 0, world.clock.now() - DAY
    while True:
        report = reconciler.audit(iter([True] * 3 + [False] * STEPS_A_WRITE * 2).__next__, since=since)
        assert report is not None
        calls += 1
        if report.finished_at is not None:
            break
        assert calls < 50
    assert calls > 2
    assert (report.at_stripe, report.in_ledger, report.agreed) == (5, 5, 5)
    assert reconciler.reports() == [report.name]
    assert reconciler.report(report.name) == report


def test_another_period_is_refused_while_an_audit_is_in_hand(world: World) -> None:
    """It is said, and not taken for the one in hand; the same period goes on with it."""
    now = world.clock.now()
    world.parts.reconciler.audit(iter([True] + [False] * 9).__next__, since=now - 3 * DAY, until=now - DAY)
    other = json.dumps({"since": (now - DAY).isoformat()}).encode()
    told = world._ask("reconcile", "POST", "/audit", other, {})
    assert told is not None
    assert (told.status, told.body["type"]) == (409, "urn:paidonce:in-hand")
    assert "The audit of 2026-11-22 09:00 to 2026-11-24 09:00 UTC is not finished." in told.body["detail"]
    same = json.dumps({"since": (now - 3 * DAY).isoformat(), "until": (now - DAY).isoformat()}).encode()
    told = world._ask("reconcile", "POST", "/audit", same, {})
    assert told is not None
    assert (told.status, told.body["finished_at"] is not None) == (200, True)
    world.clock.sleep(timedelta(minutes=1))
    told = world._ask("reconcile", "POST", "/audit", other, {})
    assert told is not None
    assert (told.status, told.body["since"]) == (200, (now - DAY).isoformat().replace("+00:00", "Z"))


def test_more_charges_of_a_shard_than_a_page_are_all_held_against_stripe(world: World) -> None:
    """Page after page, each once."""
    world.create()
    paid = world.charge()
    assert paid.succeeded_at is not None
    for number in range(PAGE + 20):
        name = f"{paid.id[0]}{number:039d}"
        copy = replace(paid, id=name, succeeded_at=paid.succeeded_at + timedelta(microseconds=number))
        world.store.insert(CHARGE, name, properties_of(copy))
    world.clock.sleep(HOUR)
    report = audit(world)
    assert report["in_ledger"] == PAGE + 21


def refunded_in_one_day(world: World, refunds: int) -> None:
    """Give a part of this many older charges back, a few a second."""
    world.check_send = lambda *_: None  # type: ignore[method-assign]  # They cost more than all the rest here.
    world._note_money = lambda: None  # type: ignore[method-assign]
    for number in range(refunds):
        world.create(key=f"order-{number}")
    world.queue.clear()
    world.engine.drop_deliveries()
    world.clock.sleep(10 * DAY)
    world.parts.reconciler._mark("audit", world.clock.now() - 2 * HOUR)
    for charge in world.charges():
        world.at_stripe("POST", "/v1/refunds", f"payment_intent={charge.payment_intent}&amount=100")
        world.clock.sleep(timedelta(milliseconds=300))
    world.clock.sleep(HOUR)


def test_a_day_of_many_refunds_is_audited_over_some_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read at Stripe, which takes its time; the platform ends a run that takes too long, and no run does."""
    refunded_in_one_day(world, 300)
    ends_at = 0.0
    request = _InProcessStripe.request

    def slowly(stripe: _InProcessStripe, *arguments: Any, **named: Any) -> Any:
        world.clock.sleep(timedelta(milliseconds=300))
        if world.clock.monotonic() > ends_at:
            raise Killed
        return request(stripe, *arguments, **named)

    monkeypatch.setattr(_InProcessStripe, "request", slowly)
    body: Mapping[str, Any] = {"finished_at": None}
    for _ in range(10):
        ends_at = world.clock.monotonic() + world.limits.function_timeout.total_seconds()
        told = world._ask("reconcile", "POST", "/audit", b"", {})
        assert told is not None, "the platform ended it"
        assert told.status == 200
        body = told.body
        if body["finished_at"] is not None:
            break
        world.clock.sleep(timedelta(minutes=1))
    assert body["finished_at"] is not None
    assert (body["at_stripe"], body["corrected"], len(body["findings"])) == (300, 300, 300)
    assert len({found["charge"] for found in body["findings"]}) == 300


def test_what_is_too_much_for_one_step_is_held_against_the_ledger_second_by_second(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second is split, none is passed over, and none is counted twice."""
    monkeypatch.setattr(reconcile, "HELD", 3)
    monkeypatch.setattr(reconcile, "DOUBTS", 2)
    for number in range(8):
        world.create(key=f"order-{number}")
        world.clock.sleep(timedelta(milliseconds=400))
    for number in (1, 4, 5, 6):
        world.at_stripe("POST", "/v1/refunds", f"payment_intent={world.charge(f'order-{number}').payment_intent}")
    report = audit(world)
    assert report["at_stripe"] - 4 <= 8 <= report["at_stripe"], "a refund on another list page is looked at by itself"
    assert report["corrected"] == 4
    assert len(findings(report)) == 4
    assert report["in_ledger"] == 8


def much_to_find() -> World:
    """Return a deployment in which an audit finds one of each."""
    world = World(webhooks_on=False)
    world.clock.sleep(DAY)
    for key in ("agrees", "refunded", "twice", "missed", "orphan"):
        world.create(key=key)
    world.at_stripe("POST", "/v1/refunds", f"payment_intent={world.charge('refunded').payment_intent}&amount=700")
    pay_beside(world, "unrecorded", digest=False)
    pay_beside(world, "twice")
    missed = replace(
        world.charge("missed"), status=Status.UNKNOWN, succeeded_at=None, amount_received=0, due_at=world.clock.now()
    )
    stored = world.store._entities[CHARGE, missed.id]
    world.store.update(CHARGE, missed.id, properties_of(missed), stored.version)
    orphan = world.charge("orphan")
    form = f"amount=1999&currency=usd&customer={world.customer}&metadata[pio_charge]={orphan.id}"
    world.at_stripe("POST", "/v1/payment_intents", f"{form}&metadata[pio_body]={orphan.body_digest}")
    world.clock.sleep(2 * HOUR)
    return world


def found_by(world: World, kill: int | None) -> tuple[tuple[int, ...], list[tuple[str, str]]]:
    """Audit, with the process dying after that many calls; then as often as it takes."""
    now = world.clock.now()
    body = json.dumps({"since": (now - 5 * HOUR).isoformat(), "until": now.isoformat()}).encode()
    world.plan = {} if kill is None else {len(world.services) + kill: Fault.DIE_AFTER}
    for _ in range(5):
        world._ask("reconcile", "POST", "/audit", body, {})
        world.plan = {}
        for name in world.parts.reconciler.reports():
            found = world.parts.reconciler.report(name)
            if found is not None and found.finished_at is not None:
                about = sorted((one.kind, one.charge) for one in found.findings)
                return (found.at_stripe, found.in_ledger, found.agreed, found.corrected, found.orphans), about
        world.clock.sleep(world.limits.lease)  # Of what died with a charge in hand.
    pytest.fail("the audit does not end")


def test_an_audit_that_dies_anywhere_neither_loses_nor_doubles_what_it_found() -> None:
    """What it has changed by then is what it had found."""
    world = much_to_find()
    before = len(world.services)
    whole = found_by(world, None)
    calls = len(world.services) - before
    assert whole[0] == (7, 4, 3, 2, 1)
    assert {kind for kind, _ in whole[1]} == {"paid_twice", "paid_without_charge", "refunded_at_stripe"}
    for kill in range(calls):
        assert found_by(much_to_find(), kill) == whole, f"killed after call {kill} of {calls}"


def test_a_report_fits_into_an_entity(world: World) -> None:
    """With as many accounts, findings and doubts as there may be; Datastore takes 1 MiB."""
    account, name, payment_intent = "acct_1" + 15 * "x", "0" * 40, "pi_3" + 23 * "x"
    finding = Finding(
        kind="unexplained_payment", charge=name, payment_intent=payment_intent, account=account, detail=100 * "x"
    )
    doubt = Doubt(why=Why.AT_STRIPE, charge=name, payment_intent=payment_intent, account=account, status="succeeded")
    now = world.clock.now()
    report = Report(
        started_at=now,
        since=now,
        until=now,
        accounts=(account,) * PAGE_SIZE * ACCOUNT_PAGES,
        window=now,
        position=now,
        findings=(replace(finding, settled=40 * "x"),) * ENTRIES_KEPT,
        doubts=(doubt,) * 2 * DOUBTS,
    )
    entity = Entity.pb(Entity())
    _fill(entity.properties["report"], _written(report))
    assert entity.ByteSize() < 1024 * 1024


def test_a_discrepancy_for_which_a_charge_has_no_room_is_told_all_the_same(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the log, which rings, and in the report; the charge says how many there were."""
    world.create()
    for number in range(DISCREPANCIES_KEPT + 1):
        pay_beside(world, amount=100 + number)
    capsys.readouterr()
    report = audit(world)
    assert findings(report) == [("unexplained_payment", "")] * DISCREPANCIES_KEPT + [("left_out", "")]
    assert report["agreed"] == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (left_out,) = (line for line in lines if line["message"] == "a discrepancy found no room")
    assert left_out["severity"] == "ERROR"
    assert left_out["payment_intent"] == report["findings"][-1]["payment_intent"]
    charge = world.charge()
    assert (charge.status, len(charge.discrepancies)) == (Status.SUCCEEDED, DISCREPANCIES_KEPT)
    assert view(charge)["discrepancies_left_out"] == 1


# --- Backfill ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that has more than one event is too long: each is in a window of its own."""
    monkeypatch.setattr(gateway, "PAGE_SIZE", 1)
    monkeypatch.setattr(gateway, "RECONCILED_PAGES", 1)


def debits(world: World, count: int) -> None:
    """Have customers pay by bank debit, an hour apart, and let all events be lost: the ledger knows of no end."""
    for number in range(count):
        world.create(key=f"order-{number}", payment_method="pm_usBankAccount_success")
        world.clock.sleep(HOUR)
    world.engine.drop_deliveries()
    world.clock.sleep(HOUR)
    world.backfill()
    for _ in range(5 * 24):
        world.clock.sleep(HOUR)
        world.engine.run_due()
    world.engine.drop_deliveries()


def statuses(world: World, count: int) -> list[Status]:
    """Return how the debits stand."""
    return [world.charge(f"order-{number}").status for number in range(count)]


@contextlib.contextmanager
def not_to_be_applied(world: World, *keys: str) -> Iterator[None]:
    """Let the events of these charges meet what cannot be read just now."""
    names = {charge_id(None, key) for key in keys}
    observe = world.parts.charger.observe

    def observed(event: Happened) -> str:
        if event.payment_intent.charge_id in names:
            raise LookUnavailable(event.payment_intent.id)
        return observe(event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.parts.charger, "observe", observed)
        yield


@pytest.mark.usefixtures("one_by_one")
def test_an_event_that_cannot_be_applied_holds_up_no_other(world: World) -> None:
    """Those that come after it are applied in the same run; it is, once that works, however much later they are."""
    debits(world, 3)
    with not_to_be_applied(world, "order-0"):
        done = world.backfill()
        assert (done["put_off"], done["finished"], done["failed"]) == (1, True, [])
        for _ in range(3):
            world.clock.sleep(3 * HOUR)  # Beyond the hour that is read twice anyhow.
            assert (world.backfill()["put_off"], world.backfill()["events"]) == (1, 1)
    assert statuses(world, 3) == [Status.PROCESSING, Status.SUCCEEDED, Status.SUCCEEDED]
    assert (world.backfill()["put_off"], world.backfill()["events"]) == (0, 0)
    assert statuses(world, 3) == [Status.SUCCEEDED] * 3


@pytest.mark.usefixtures("one_by_one")
def test_an_account_waits_where_too_many_events_cannot_be_applied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is not this event or that: none is passed by, and all are taken up once that works."""
    monkeypatch.setattr(reconcile, "PUT_OFF_KEPT", 2)
    debits(world, 5)
    with not_to_be_applied(world, *(f"order-{number}" for number in range(5))):
        assert world.backfill()["put_off"] == 3
        world.clock.sleep(3 * HOUR)
        assert world.backfill()["put_off"] == 3
    world.backfill()
    assert statuses(world, 5) == [Status.SUCCEEDED] * 5


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_backfill_that_runs_out_of_time_goes_on_where_it_was(world: World, steps: int) -> None:
    """What was put off is not forgotten, and what was done is not done again."""
    debits(world, 3)
    with not_to_be_applied(world, "order-1"):
        events = world.backfill()["events"]
    calls = 0
    while not world.parts.reconciler.backfill(iter([True] * steps + [False]).__next__).finished:
        calls += 1
        assert calls < events * 10
    assert statuses(world, 3) == [Status.SUCCEEDED] * 3


def test_an_event_that_stripe_could_not_deliver_is_taken_up(world: World) -> None:
    """A bank debit ends, and its event is lost: known after an hour, not after a day."""
    world._meanwhile(lambda: world.parts.reconciler._put("backfill", {"at": world.clock.now()}))
    world.create(payment_method="pm_usBankAccount_success")
    assert world.charge().status is Status.PROCESSING
    world.clock.sleep(timedelta(days=5))
    world.engine.run_due()
    world.engine.drop_deliveries()
    done = world.backfill()
    assert world.charge().status is Status.SUCCEEDED
    assert done["events"] >= 1
    assert done["finished"] is True
    assert world.check() == []


def test_a_backfill_goes_on_from_where_it_was(world: World) -> None:
    """What it has been through is read once more, an hour's worth, since lists may lag; and then no more."""
    world.create(payment_method="pm_usBankAccount_success")
    world.engine.drop_deliveries()
    world.clock.sleep(timedelta(minutes=1))
    for events in (1, 1, 0):
        assert world.backfill()["events"] == events
        world.clock.sleep(HOUR)


def test_an_event_that_cannot_be_applied_is_tried_again_for_a_while(world: World) -> None:
    """It is tried again; after three days it is passed by, since the ledger looks by itself."""
    world.create(payment_method="pm_usBankAccount_success")
    world.engine.drop_deliveries()
    world.engine.fail_next(StripeFault.ERROR_503_BEFORE, "payment_intents.retrieve", times=None)
    assert world.backfill()["put_off"] == 1
    world.clock.sleep(HOUR)
    assert world.backfill()["put_off"] == 1
    world.clock.sleep(timedelta(days=4))
    world.backfill()
    world.clock.sleep(HOUR)
    world.backfill()
    assert world.backfill()["events"] == 0


def test_each_of_many_accounts_is_asked_for_its_events(world: World) -> None:
    """However few a run has time for: the next one goes on with those that were not asked, and ends the round."""
    accounts = sorted(world.at_stripe("POST", "/v1/accounts", "type=standard")["id"] for _ in range(5))
    reconciler = world.parts.reconciler
    world._meanwhile(lambda: reconciler._put("backfill", {"at": world.clock.now()}))
    began = reconciler._last("backfill")
    world.clock.sleep(HOUR)

    def run() -> Backfilled:
        world.clock.sleep(timedelta(minutes=1))
        return reconciler.backfill(iter([True] * 3 + [False] * 9).__next__)

    first = run()
    assert (first.accounts, first.finished, reconciler._last("backfill")) == (4, False, began)
    assert run().finished
    marked = reconciler._last("backfill")
    assert began + HOUR < marked < began + HOUR + timedelta(minutes=2), "when the round began"
    assert all(reconciler._last(f"backfill-{account}") > marked - timedelta(minutes=1) for account in accounts)
    assert run().accounts == 4, "the next round begins with the platform"


def test_of_backfill_and_audit_neither_takes_all_the_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With so many accounts that each could fill every run, they have every other run each."""
    reconciler = world.parts.reconciler
    for name in ("backfill", "audit"):
        reconciler._mark(name, world.clock.now() - 2 * DAY)
    world.clock.time = world.clock.time.replace(second=0)
    did: list[str] = []
    time: list[bool] = []

    def taking_all(name: str) -> Callable[[object], None]:
        def do(_: object) -> None:
            did.append(name)
            time.clear()

        return do

    for name in ("backfill", "audit"):
        monkeypatch.setattr(reconciler, name, taking_all(name))
    for _ in range(4):
        time.append(True)
        reconciler.run(lambda: bool(time))
        world.clock.sleep(timedelta(minutes=1))
    assert sorted(did) == ["audit", "audit", "backfill", "backfill"]


def test_accounts_are_listed_once_in_a_round(world: World) -> None:
    """Thousands of them take most of a run to list: the round goes on with those that are left."""
    for _ in range(3):
        connected(world)
    reconciler, time = world.parts.reconciler, [True]
    listed, accounts = [], world.parts.gateway.accounts

    def slow() -> object:
        listed.append(1)
        time.clear()
        return accounts()

    world.parts.gateway.accounts = slow  # type: ignore[method-assign, assignment]
    assert not reconciler.backfill(lambda: bool(time)).finished
    time.append(True)
    world.clock.sleep(timedelta(minutes=1))
    assert reconciler.backfill(lambda: bool(time)).finished
    assert len(listed) == 1


def test_an_event_on_a_connected_account_is_taken_up(world: World) -> None:
    """Not the platform's alone."""
    account, customer = connected(world)
    world.webhooks_on = False
    world.engine.add_webhook_endpoint("connect", secrets=["whsec_of_the_accounts"], connect=True)
    world.create(account=account, customer=customer, payment_method="pm_usBankAccount_success")
    world.queue.clear()
    world.clock.sleep(5 * DAY)
    world.engine.run_due()
    world.engine.drop_deliveries()
    assert world.backfill()["accounts"] == 2
    assert [charge.status for charge in world.charges()] == [Status.SUCCEEDED]


def test_events_that_were_delivered_are_not_asked_for(world: World) -> None:
    """Most of them were, and reading each again would leave no time for those that were not."""
    world.create(payment_method="pm_usBankAccount_success")
    world.deliver_webhooks()
    assert world.backfill()["events"] == 0


def test_a_sweep_does_what_else_is_due(world: World) -> None:
    """Backfill every hour, audit every day."""
    for name in ("backfill", "audit"):
        world.parts.reconciler._mark(name, world.clock.now())
    world.sweep()
    assert world.told[-1].body == {"swept": 0}
    world.clock.sleep(HOUR)
    world.sweep()
    assert world.told[-1].body["backfill"]["finished"] is True
    world.clock.sleep(DAY)
    world.sweep()
    assert world.told[-1].body["audit"] is not None


def test_each_sweep_says_how_far_the_audit_is_behind_even_if_stripe_does_not_answer(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that may not list payments would stop it without a sound: an alert counts on this line.

    And what is to be erased is erased.
    """
    for name in ("audit", "backfill"):
        world.parts.reconciler._put(name, {"at": world.clock.now()})
    world.clock.sleep(3 * DAY)
    world.engine.fail_next(StripeFault.ERROR_503_BEFORE, "refunds.list", times=None)
    world.parts.reconciler._mark("erasure", world.clock.now() - 2 * DAY)
    erased_until = world.parts.reconciler._last("erasure")
    capsys.readouterr()
    with pytest.raises(StripeUnavailable):
        world.parts.reconciler.run(lambda: True)
    assert world.parts.reconciler._last("erasure") > erased_until
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [round(line["behind_seconds"] / 60) for line in lines if line["message"] == "the audit stands"] == [
        3 * 24 * 60
    ]


# --- What stops neither of them ---------------------------------------------------------------------------------------


@pytest.fixture
def late(world: World) -> World:
    """A deployment in which nothing has been due for two days but the next sweep."""
    for name in ("backfill", "audit", "erasure"):
        world.parts.reconciler._mark(name, world.clock.now())
    return world


def swept(world: World) -> Mapping[str, Any]:
    """Let two days pass, and Cloud Scheduler call. Returns what was done."""
    world.clock.sleep(2 * DAY)
    world.sweep()
    told = world.told[-1]
    assert told.status == 200
    return dict(told.body)


@pytest.mark.parametrize("about", ["payment_intent", "checkout.session"])
def test_what_somebody_calls_a_charge_stops_nothing(late: World, about: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata may be longer than a name in Datastore, and an account's owner writes there what they like."""
    read = late.store.get

    def get(kind: str, name: str) -> Stored | None:
        assert len(name.encode()) <= 1500, "Datastore refuses it"
        return read(kind, name)

    monkeypatch.setattr(late.store, "get", get)
    long = "\N{GRINNING FACE}" * 500
    if about == "payment_intent":
        late.at_stripe("POST", "/v1/payment_intents", f"amount=50&currency=usd&metadata[pio_charge]={long}")
        body = late.engine.payment_intents()[0]
        assert deliver(late, event(body)).status == 200
    else:
        body = {"id": "cs_1", "object": "checkout.session", "metadata": {"pio_charge": long}}
        assert deliver(late, event(body, "checkout.session.completed")).status == 200
    assert swept(late)["audit"] is not None


def test_a_charge_that_cannot_be_read_stops_nothing_and_is_shown_to_a_person(late: World) -> None:
    """A newer version wrote it, or somebody by hand."""
    late.create()
    late.create(key="order-2")
    late.engine.drop_deliveries()
    key = (CHARGE, late.charge().id)
    stored = late.store._entities[key]
    late.store.update(*key, {**stored.properties, "status": "of tomorrow"}, stored.version)
    report = late.parts.reconciler.report(str(swept(late)["audit"]))
    assert report is not None
    assert [(found.kind, found.charge) for found in report.findings] == [("unreadable", key[1])]
    assert report.agreed == 1


# --- What would stop an audit -----------------------------------------------------------------------------------------


def test_an_account_that_goes_while_a_payment_there_is_looked_into_stops_no_audit(world: World) -> None:
    """The ledger knows nothing of the payment; the rest of the world is audited all the same."""
    account, customer = connected(world)
    form = (
        f"amount=1999&currency=usd&customer={customer}&payment_method=pm_card_visa&confirm=true"
        "&automatic_payment_methods[enabled]=true&automatic_payment_methods[allow_redirects]=never"
        f"&metadata[pio_charge]={charge_id(account, 'order-9')}&metadata[pio_key]=order-9"
    )
    world.at_stripe("POST", "/v1/payment_intents", form, **{"Stripe-Account": account})
    world.clock.sleep(timedelta(minutes=1))
    recover = world.parts.charger.recover

    def gone(payment_intent: str, of: str | None) -> Any:
        world.engine.disconnect(account)
        return recover(payment_intent, of)

    world.parts.charger.recover = gone  # type: ignore[method-assign, assignment]
    until = world.clock.now()
    report = world.parts.reconciler.audit(lambda: True, since=until - DAY, until=until)
    assert report is not None
    assert report.finished_at is not None
    assert ("account_unreachable", account) in {(found.kind, found.account) for found in report.findings}


@pytest.mark.parametrize("known", [True, False])
def test_a_refund_that_failed_and_names_no_payment_intent_stops_no_audit(world: World, *, known: bool) -> None:
    """Whoever made it wrote into it what they liked."""
    world.create()
    name = world.charge().id if known else "ab" * 20
    refund = {
        "id": "re_1",
        "object": "refund",
        "amount": 5,
        "currency": "usd",
        "status": "failed",
        "payment_intent": None,
        "charge": "ch_bare",
        "created": int(world.clock.now().timestamp()),
        "metadata": {"pio_refund_of": name},
    }
    world.engine._call(StripeWorld(world.engine.platform, livemode=False)).emit("refund.failed", refund)
    world.clock.sleep(timedelta(minutes=1))
    until = world.clock.now()
    report = world.parts.reconciler.audit(lambda: True, since=until - DAY, until=until)
    assert report is not None
    assert report.finished_at is not None

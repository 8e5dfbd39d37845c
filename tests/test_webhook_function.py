"""The webhook function: what Stripe's events prove, and when they are accepted."""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import pytest
import stripe

from infra.local.stripe.faults import Fault
from shared.charge import Status, charge_id
from tests import world as worlds
from tests.world import KEY, SECRET, Told, World

DECLINED_CARD: Final = "pm_card_chargeDeclinedInsufficientFunds"
CONFIRM: Final = "payment_intents.confirm"
HOUR: Final = timedelta(hours=1)


@pytest.fixture
def world() -> World:
    """A fresh deployment."""
    return World()


def told(answer: Told | None) -> Told:
    """Return an answer that did come."""
    assert answer is not None
    return answer


def signed(world: World, raw: bytes, *, secret: str = SECRET, age: timedelta = timedelta()) -> str:
    """Sign as Stripe does."""
    at = int((world.clock.now() - age).timestamp())
    header: str = stripe.WebhookSignature.generate_signature_header(raw.decode(errors="replace"), secret, at)
    return header


def post(world: World, raw: bytes, signature: str | None, *, method: str = "POST") -> Told:
    """Deliver these bytes."""
    headers = {} if signature is None else {"Stripe-Signature": signature}
    return told(world._ask("webhook", method, "/", raw, headers))


def event(intent: Mapping[str, Any], kind: str = "payment_intent.succeeded", **more: Any) -> dict[str, Any]:
    """Return an event of Stripe's about a PaymentIntent."""
    return {
        "id": "evt_1",
        "object": "event",
        "type": kind,
        "livemode": False,
        "data": {"object": dict(intent)},
        "request": {"id": None, "idempotency_key": None},
        **more,
    }


def deliver(world: World, about: Mapping[str, Any]) -> Told:
    """Deliver an event, signed now."""
    raw = json.dumps(about).encode()
    return post(world, raw, signed(world, raw))


def unknown_but_paid(world: World) -> dict[str, Any]:
    """Let Stripe take the money and the answer get lost, for as long as this lasts. Returns the PaymentIntent."""
    world.engine.fail_next(Fault.DROP_AFTER, CONFIRM)
    world.engine.fail_next(Fault.DROP_BEFORE, CONFIRM, nth=2, times=None)
    assert told(world.create()).body["status"] == "unknown"
    (intent,) = world.engine.payment_intents()
    return intent


def declined(world: World) -> dict[str, Any]:
    """Let a card be declined. Returns the PaymentIntent."""
    assert told(world.create(payment_method=DECLINED_CARD)).status == 402
    (intent,) = world.engine.payment_intents()
    return intent


def another(world: World, form: str = "", **headers: str) -> dict[str, Any]:
    """Let somebody else make and pay a PaymentIntent with this charge's metadata copied onto it."""
    return world.at_stripe(
        "POST",
        "/v1/payment_intents",
        f"amount=1999&currency=usd&customer={world.customer}&payment_method=pm_card_visa&confirm=true"
        "&automatic_payment_methods[enabled]=true&automatic_payment_methods[allow_redirects]=never"
        f"&metadata[pio_charge]={charge_id(None, KEY)}&metadata[pio_key]={KEY}{form}",
        **headers,
    )


# --- Signatures -------------------------------------------------------------------------------------------------------


def test_an_event_that_stripe_signed_closes_an_unknown_outcome(world: World) -> None:
    """S8 and S9: the answer never arrived, the event does."""
    unknown_but_paid(world)
    world.deliver_webhooks()
    assert world.charge().status is Status.SUCCEEDED
    assert {answer.status for answer in world.told if "webhook" in answer.request} == {200}
    assert world.money_moved() == [1999]


@pytest.mark.parametrize("header", [None, "", "nonsense", "t=1", "v1=00", "t=x,v1=00", "t=1,v0=00"])
def test_an_event_without_a_signature_is_400_and_proves_nothing(world: World, header: str | None) -> None:
    """Anybody may post; only Stripe can sign."""
    intent = unknown_but_paid(world)
    answer = post(world, json.dumps(event(intent)).encode(), header)
    assert answer.status == 400
    assert answer.body["type"] == "urn:paidonce:signature-invalid"
    assert world.charge().status is Status.UNKNOWN


def test_an_event_signed_with_another_secret_is_400(world: World) -> None:
    """Or one that is not configured any more."""
    raw = json.dumps(event(unknown_but_paid(world))).encode()
    assert post(world, raw, signed(world, raw, secret="whsec_stranger")).status == 400
    assert world.charge().status is Status.UNKNOWN


@pytest.mark.parametrize("secret", ["whsec_old", SECRET])
def test_either_of_two_secrets_is_good_while_one_is_being_replaced(world: World, secret: str) -> None:
    """Whichever comes first in the environment."""
    raw = json.dumps(event(unknown_but_paid(world))).encode()
    assert post(world, raw, signed(world, raw, secret=secret)).status == 200
    assert world.charge().status is Status.SUCCEEDED


def test_a_header_with_two_signatures_needs_one_that_is_good(world: World) -> None:
    """Stripe sends one for each secret while they are rolled."""
    raw = json.dumps(event(unknown_but_paid(world))).encode()
    good = signed(world, raw)
    time, _, signature = good.partition(",")
    assert post(world, raw, f"{time},v1={'0' * 64},{signature}").status == 200


@pytest.mark.parametrize(("age", "status"), [(timedelta(seconds=299), 200), (timedelta(seconds=302), 400)])
def test_a_signature_older_than_five_minutes_may_be_a_replay(world: World, age: timedelta, status: int) -> None:
    """By the deployment's own clock."""
    raw = json.dumps(event(unknown_but_paid(world))).encode()
    assert post(world, raw, signed(world, raw, age=age)).status == status


def test_an_old_signature_is_not_made_young_by_another_time_beside_it(world: World) -> None:
    """The time that counts is the one that was signed."""
    raw = json.dumps(event(unknown_but_paid(world))).encode()
    old = signed(world, raw, age=HOUR)
    now = int(world.clock.now().timestamp())
    assert post(world, raw, f"{old},t={now}").status == 400
    assert post(world, raw, f"t={now},{old}").status == 400


def test_a_body_changed_after_it_was_signed_is_400(world: World) -> None:
    """One byte is enough."""
    raw = json.dumps(event(unknown_but_paid(world))).encode()
    signature = signed(world, raw)
    assert post(world, raw.replace(b"1999", b"1998"), signature).status == 400
    assert post(world, raw + b" ", signature).status == 400


@pytest.mark.parametrize(
    "raw", [b"", b"not json", b"[]", b"{}", b'{"object": "event"}', b'{"object": "v2.core.event"}']
)
def test_a_signed_body_that_is_no_event_is_400(world: World, raw: bytes) -> None:
    """Shown to the operator at Stripe as failing, not lost in silence."""
    answer = post(world, raw, signed(world, raw))
    assert answer.status == 400
    assert answer.body["type"] == "urn:paidonce:event-unreadable"


def test_bytes_that_are_no_text_are_400(world: World) -> None:
    """No secret can have signed them."""
    assert post(world, b"\xff", signed(world, b"\xff")).status == 400


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_method_is_405(world: World, method: str) -> None:
    """Stripe posts."""
    answer = post(world, b"", None, method=method)
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")


# --- What an event proves ---------------------------------------------------------------------------------------------


def test_the_same_event_twice_writes_nothing_the_second_time(world: World) -> None:
    """Stripe delivers at least once; each repeat costs one look-up."""
    about = event(unknown_but_paid(world))
    deliver(world, about)
    recorded = world.charge()
    world.counts.clear()
    answer = deliver(world, about)
    assert (answer.status, answer.body["result"]) == (200, "nothing new")
    assert world.charge() == recorded
    assert world.counts == {"get": 1}


def test_events_out_of_order_change_nothing_that_is_paid(world: World) -> None:
    """`payment_failed` of an earlier try arrives after `succeeded`."""
    failed = declined(world)
    name = charge_id(None, KEY)
    world.post(f"/{name}/payment-method", {"payment_method": "pm_card_mastercard"})
    recorded = world.charge()
    for kind in ("payment_intent.payment_failed", "payment_intent.created", "payment_intent.processing"):
        assert deliver(world, event(failed, kind)).status == 200
    assert world.charge() == recorded
    assert recorded.status is Status.SUCCEEDED


def test_an_old_failure_is_only_a_reason_to_look(world: World) -> None:
    """It says that an attempt failed; the PaymentIntent itself says that it is paid."""
    intent = unknown_but_paid(world)
    stale = {**intent, "status": "requires_payment_method", "amount_received": 0}
    world.counts.clear()
    assert deliver(world, event(stale, "payment_intent.payment_failed")).status == 200
    assert world.counts["fetch"] == 1
    assert world.charge().status is Status.SUCCEEDED


def test_a_customer_who_pays_on_session_after_a_decline_is_recorded_as_paid(world: World) -> None:
    """It was told as declined, and is paid since: nothing beats that."""
    intent = declined(world)
    world.at_stripe("POST", f"/v1/payment_intents/{intent['id']}/confirm", "payment_method=pm_card_visa")
    world.deliver_webhooks()
    assert world.charge().status is Status.SUCCEEDED
    assert world.money_moved() == [1999]


def test_a_canceled_event_closes_the_charge(world: World) -> None:
    """Canceled at Stripe's dashboard is final."""
    intent = declined(world)
    world.at_stripe("POST", f"/v1/payment_intents/{intent['id']}/cancel")
    world.deliver_webhooks()
    assert (world.charge().status, world.charge().cancel_reason) == (Status.CANCELED, "by_stripe")
    assert world.charge().due_at is None


@pytest.mark.parametrize(
    "change",
    [
        {"amount_received": 1},
        {"currency": "eur"},
        {"livemode": True},
    ],
    ids=str,
)
def test_a_success_that_does_not_agree_marks_nothing_as_paid(world: World, change: dict[str, Any]) -> None:
    """It leads to a look at most; Stripe says that it is not paid."""
    intent = declined(world)
    recorded = world.charge()
    claimed = {**intent, "status": "succeeded", "amount_received": 1999, **change}
    assert deliver(world, event(claimed)).status == 200
    assert world.charge() == recorded
    assert recorded.status is Status.DECLINED


@pytest.mark.parametrize("account", ["acct_other"])
def test_an_event_of_another_account_changes_nothing(world: World, account: str) -> None:
    """Copied metadata is no proof."""
    intent = unknown_but_paid(world)
    recorded = world.charge()
    assert deliver(world, event(intent, account=account)).status == 200
    assert world.charge() == recorded


def test_an_event_of_a_connected_account_closes_its_charge(world: World) -> None:
    """`account` names it."""
    customer = world.at_stripe("POST", "/v1/customers", **{"Stripe-Account": "acct_shop"})["id"]
    world.engine.fail_next(Fault.DROP_AFTER, CONFIRM)
    world.engine.fail_next(Fault.DROP_BEFORE, CONFIRM, nth=2, times=None)
    answer = told(world.create(customer=customer, account="acct_shop"))
    assert answer.body["status"] == "unknown"
    (intent,) = world.engine.payment_intents()
    assert deliver(world, event(intent, account="acct_shop")).status == 200
    assert told(world.get(f"/{answer.body['id']}")).body["status"] == "succeeded"


def test_canceled_of_another_payment_intent_changes_nothing(world: World) -> None:
    """An orphan's end must not close a charge that then pays."""
    intent = declined(world)
    recorded = world.charge()
    orphan = {**intent, "id": "pi_orphan", "status": "canceled"}
    assert deliver(world, event(orphan, "payment_intent.canceled")).status == 200
    assert world.charge() == recorded


def test_succeeded_of_another_payment_intent_that_stripe_does_not_confirm_changes_nothing(world: World) -> None:
    """A claim about another one leads to a look, and the look decides."""
    declined(world)
    other = another(world, form="&metadata[foreign]=yes&capture_method=manual")
    assert other["status"] == "requires_capture"
    recorded = world.charge()
    claimed = {**other, "status": "succeeded", "amount_received": 1999}
    assert deliver(world, event(claimed)).status == 200
    assert world.charge() == recorded


def test_succeeded_of_another_payment_intent_stops_the_charge_and_is_shown(world: World) -> None:
    """Rule 4: the recorded one is canceled, so that nobody pays twice, and a person can see why."""
    recorded_intent = declined(world)
    another(world, form="&metadata[foreign]=yes")
    world.deliver_webhooks()
    world.settle()
    charge = world.charge()
    assert charge.status is Status.PAID_OUT_OF_BAND
    assert [found.kind for found in charge.discrepancies] == ["paid_elsewhere"]
    states = {intent["id"]: intent["status"] for intent in world.engine.payment_intents()}
    assert states[recorded_intent["id"]] == "canceled"


def test_succeeded_of_another_payment_intent_is_recorded_once(world: World) -> None:
    """Again and again the same event: one Discrepancy."""
    world.create()
    other = another(world, form="&metadata[foreign]=yes")
    for _ in range(3):
        assert deliver(world, event(other)).status == 200
    assert [found.kind for found in world.charge().discrepancies] == ["paid_twice"]
    assert world.charge().status is Status.SUCCEEDED


# --- Finding the charge -----------------------------------------------------------------------------------------------


def test_a_charge_is_found_by_the_key_of_the_request_without_metadata(world: World) -> None:
    """Somebody has edited the metadata away."""
    intent = {**unknown_but_paid(world), "metadata": {}}
    key = world.charge().attempts[0].idempotency_key
    answer = deliver(world, event(intent, request={"id": "req_1", "idempotency_key": key}))
    assert (answer.status, world.charge().status) == (200, Status.SUCCEEDED)


def test_a_charge_is_found_by_its_payment_intent_without_metadata_or_key(world: World) -> None:
    """As with what the bank or the customer caused; metadata that names nothing is passed over."""
    intent = {**unknown_but_paid(world), "metadata": {"pio_charge": "0" * 40}}
    request = {"id": None, "idempotency_key": "the-customers-own"}
    assert deliver(world, event(intent, request=request)).status == 200
    assert world.charge().status is Status.SUCCEEDED


def test_a_payment_intent_without_our_metadata_is_not_ours(world: World) -> None:
    """200, so that Stripe does not send it again; nothing is recorded."""
    intent = {**unknown_but_paid(world), "id": "pi_foreign", "metadata": {}}
    recorded = world.charge()
    answer = deliver(world, event(intent))
    assert (answer.status, answer.body["result"]) == (200, "not ours")
    assert world.charge() == recorded


def test_money_without_a_charge_makes_one_so_that_its_key_never_charges_again(world: World) -> None:
    """A restored ledger, an engineer's script: whoever repeats the key is told that it is paid."""
    paid = another(world)
    for _ in range(2):
        assert deliver(world, event(paid)).status == 200
    charge = world.charge()
    assert (charge.status, charge.payment_intent, charge.amount_received) == (Status.SUCCEEDED, paid["id"], 1999)
    assert [(found.kind, found.settled) for found in charge.discrepancies] == [
        ("paid_without_charge", "the charge was recovered")
    ]
    told = world.create()
    assert told is not None
    assert (told.status, told.body["payment_intent"]) == (200, paid["id"])
    assert len(world.engine.tally().moved) == 1


def test_metadata_that_cannot_be_ours_makes_no_charge(world: World) -> None:
    """Its name is no charge's."""
    paid = {**another(world), "metadata": {"pio_charge": "order-7"}}
    assert deliver(world, event(paid)).body["result"] == "not ours"
    assert world.charges() == []


def test_money_that_cannot_be_read_just_now_comes_again(world: World) -> None:
    """503, so that Stripe sends the event once more."""
    paid = another(world)
    world._down_until["stripe"] = world.clock.now() + HOUR
    assert deliver(world, event(paid)).status == 503
    assert world.charges() == []


def test_unpaid_without_a_charge_is_no_discrepancy(world: World) -> None:
    """No money moved."""
    unpaid = {**another(world), "status": "requires_payment_method"}
    assert deliver(world, event(unpaid, "payment_intent.payment_failed")).status == 200
    assert world.charges() == []


@pytest.mark.parametrize("kind", ["charge.succeeded", "charge.refunded", "customer.deleted", "invoice.paid"])
def test_an_event_about_something_else_is_200(world: World, kind: str) -> None:
    """An endpoint may be subscribed to more than is used."""
    about = event({"id": "ch_1", "object": kind.partition(".")[0]}, kind)
    assert deliver(world, about).status == 200
    assert world.counts == {}


# --- Only once it is durable ------------------------------------------------------------------------------------------


def test_503_while_the_ledger_is_down_so_that_stripe_sends_it_again(world: World) -> None:
    """And again, until it is recorded."""
    about = event(unknown_but_paid(world))
    world._down_until["store"] = world.clock.now() + HOUR
    answer = deliver(world, about)
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    world.clock.sleep(HOUR)
    assert world.charge().status is Status.UNKNOWN
    assert deliver(world, about).status == 200
    assert world.charge().status is Status.SUCCEEDED


def test_503_when_a_discrepancy_cannot_be_recorded(world: World) -> None:
    """It is the only word of that money."""
    about = event(another(world))
    world._down_until["store"] = world.clock.now() + HOUR
    assert deliver(world, about).status == 503


def test_503_when_the_look_fails_so_that_stripe_sends_it_again(world: World) -> None:
    """The event alone proves nothing, and Stripe could not be asked."""
    intent = unknown_but_paid(world)
    about = event({**intent, "status": "requires_payment_method"}, "payment_intent.payment_failed")
    world._down_until["stripe"] = world.clock.now() + HOUR
    recorded = world.charge()
    answer = deliver(world, about)
    assert (answer.status, answer.body["type"]) == (503, "urn:paidonce:stripe-unavailable")
    assert world.charge() == recorded
    world.clock.sleep(HOUR)
    assert deliver(world, about).status == 200
    assert world.charge().status is Status.SUCCEEDED


def test_an_event_does_not_wait_for_a_lease_whose_process_died(world: World) -> None:
    """Money that moved is recorded at once, whoever has the charge in hand; the customer pays once."""
    recorded = declined(world)
    world.plan = {len(world.services) + 2: worlds.Fault.DIE_BEFORE}
    assert world.post(f"/{charge_id(None, KEY)}/payment-method", {"payment_method": "pm_card_visa"}) is None
    world.plan = {}
    held = world.charge()
    assert held.lease_until is not None
    assert held.lease_until > world.clock.now()

    world.at_stripe("POST", f"/v1/payment_intents/{recorded['id']}/confirm", "payment_method=pm_card_visa")
    world.deliver_webhooks()

    assert world.charge().status is Status.SUCCEEDED
    assert world.charge().due_at is None
    world.settle()
    assert world.money_moved() == [1999]
    assert world.check() == []

"""Another card: given at Stripe, taken once, by whichever hears of it first: the way back, or the event."""

import dataclasses
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from infra.local.stripe.faults import Fault
from shared import gateway
from shared.answers import CardGiven, read_card_given
from shared.charge import Status
from shared.checkout import Checkout, Refused
from shared.deliver import Outcome
from tests.portal.portal import Portal, declined
from tests.test_webhook_function import deliver

CREATE: Final = "checkout.sessions.create"
RETRIEVE: Final = "checkout.sessions.retrieve"
CONFIRM: Final = "payment_intents.confirm"
ASKS: Final = "pm_card_authenticationRequired"
POOR: Final = "pm_card_chargeCustomerFail"  # Can be saved, and is declined.


@pytest.fixture
def world() -> Portal:
    """A charge whose card was declined."""
    world = Portal()
    declined(world)
    return world


def attempts(world: Portal) -> int:
    """Count the tries to pay."""
    return len(world.charge().attempts)


def events(world: Portal) -> list[Mapping[str, Any]]:
    """Return the events that tell of cards, and forget the others."""
    told = [(delivery, json.loads(delivery.body)) for delivery in world.engine.pending_deliveries()]
    return [body for delivery, body in told if body["type"] == "checkout.session.completed"]


def statuses(world: Portal) -> list[int]:
    """Return what the webhook function has answered."""
    return [told.status for told in world.told if "webhook" in told.request]


# --- The way there and back -------------------------------------------------------------------------------------------


def test_another_card_is_entered_at_stripe_and_pays(world: Portal) -> None:
    """S4 and S5: charged once, under a new key, with the card that was given."""
    answer = world.new_card()
    assert answer is not None
    assert (answer.status, answer.location) == (303, world.url())
    assert world.look().headline == "Paid. Thank you."
    assert world.money_moved() == [1999]
    assert world.charge().payment_method != "pm_card_chargeDeclinedInsufficientFunds"
    world.settle()
    assert world.check() == []


def test_the_session_is_for_this_customer_and_moves_no_money(world: Portal) -> None:
    """Setup mode, with the way back to the page that it was opened from, and no other."""
    world.pressed("card")
    (session,) = world.at_stripe("GET", "/v1/checkout/sessions")["data"]
    assert session["mode"] == "setup"
    assert session["customer"] == world.customer
    assert session["metadata"]["pio_charge"] == world.charge().id
    assert session["success_url"] == f"{world.url()}/back?session={{CHECKOUT_SESSION_ID}}"
    assert session["cancel_url"] == world.url()
    assert world.money_moved() == []


def test_a_card_that_is_declined_too_is_told_and_another_one_may_follow(world: Portal) -> None:
    """Each of them is tried once."""
    world.new_card(POOR)
    assert world.look().headline == "The payment did not go through"
    world.new_card()
    assert world.look().headline == "Paid. Thank you."
    assert attempts(world) == 3
    world.settle()
    assert world.check() == []


def test_a_card_that_the_bank_asks_about_leads_straight_to_the_bank(world: Portal) -> None:
    """The customer is here."""
    answer = world.new_card(ASKS)
    assert answer is not None
    assert "/_double/authenticate/" in answer.location
    world.at("GET", world.on_stripes_page(answer.location, answer="yes"))
    assert world.look().headline == "Paid. Thank you."
    assert world.money_moved() == [1999]


def test_a_card_for_a_charge_on_a_connected_account_is_entered_there() -> None:
    """S13: the customer, the session and the card are that account's."""
    world = Portal()
    account = "acct_1seller"
    made = world.at_stripe("POST", "/v1/customers", **{"Stripe-Account": account})
    world.create(account=account, customer=made["id"], payment_method="pm_card_chargeDeclined")
    (charge,) = world.charges()
    page = world.at("GET", world.url(charge))
    assert page is not None
    answer = world.at("POST", world.url(charge) + "/card", {"mark": page.mark})
    assert answer is not None
    world.at("GET", world.on_stripes_page(answer.location, card="pm_card_visa"))
    assert world.charges()[0].status is Status.SUCCEEDED


def test_the_address_that_stripe_leads_back_to_works_once_however_often_it_is_opened(world: Portal) -> None:
    """The back button, a reload, a second tab."""
    back = world.give_card(POOR)
    for _ in range(3):
        answer = world.at("GET", back)
        assert answer is not None
        assert answer.location == world.url()
    assert attempts(world) == 2


def test_whoever_only_asks_whether_the_way_back_is_there_takes_no_card(world: Portal) -> None:
    """HEAD is not a visit."""
    back = world.give_card()
    world.at("HEAD", back)
    assert attempts(world) == 1


def test_pressed_again_before_a_card_was_given_leads_to_the_same_session(world: Portal) -> None:
    """The customer went back without one."""
    first = world.pressed("card")
    assert world.pressed("card").location == first.location
    world.clock.sleep(timedelta(minutes=11))
    assert world.pressed("card").location != first.location  # That one may have ended.


def test_a_card_that_nobody_came_back_with_is_taken_when_another_one_is_asked_for(world: Portal) -> None:
    """It has been given: there is no need to enter it twice."""
    world.webhooks_on = False
    world.give_card()
    assert world.pressed("card").location == world.url()
    assert world.look().headline == "Paid. Thank you."
    assert world.money_moved() == [1999]


# --- Sessions that are not to be believed -----------------------------------------------------------------------------


@pytest.mark.parametrize("session", ["cs_test_nothing", "pi_1", "../payment_intents/pi_1", "x" * 500, "%00"])
def test_a_session_that_is_not_there_takes_nothing(world: Portal, session: str) -> None:
    """Anybody who has the link can write anything behind it."""
    answer = world.at("GET", f"{world.url()}/back?session={session}")
    assert answer is not None
    assert (answer.status, answer.location) == (303, world.url())
    assert attempts(world) == 1


def test_a_session_without_a_card_takes_nothing(world: Portal) -> None:
    """It was opened, and left."""
    session = world.pressed("card").location.rpartition("/")[2]
    world.at("GET", f"{world.url()}/back?session={session}")
    assert attempts(world) == 1


def test_a_card_that_was_given_for_another_charge_is_not_taken_for_this_one(world: Portal) -> None:
    """The same customer's, even: they agreed to pay something else with it."""
    world.create(key="order-2", payment_method="pm_card_chargeDeclined")
    back = world.give_card()
    session = urlsplit(back).query
    world.at("GET", f"{world.url(world.charge('order-2'))}/back?{session}")
    assert len(world.charge("order-2").attempts) == 1
    world.at("GET", back)
    assert world.charge().status is Status.SUCCEEDED


@pytest.mark.parametrize("field", ["customer", "metadata", "mode", "livemode", "status", "setup_intent"])
def test_a_session_that_disagrees_in_anything_takes_nothing(world: Portal, field: str) -> None:
    """Each of them is compared with the charge."""
    back = world.give_card()
    session = urlsplit(back).query.partition("=")[2]
    forged: dict[str, Any] = {
        "customer": "cus_somebody",
        "metadata": {},
        "mode": "payment",
        "livemode": True,
        "status": "open",
        "setup_intent": None,
    }
    found = world.engine.find(session)
    assert found is not None
    world.engine.store.update({**found, field: forged[field]})
    world.at("GET", back)
    assert attempts(world) == 1


@pytest.mark.parametrize(
    "url",
    [
        "https://stripe.com.example.net/x",
        "https://example.net/stripe.com",
        "https://notstripe.com/",
        "https://stripe.com@example.net/",
        "http://checkout.stripe.com/x",
        "//checkout.stripe.com/x",
        "javascript:alert(1)",
        "http://127.0.0.1/x",
        "",
    ],
)
def test_nobody_is_sent_to_a_page_that_is_not_stripes(world: Portal, url: str) -> None:
    """Wherever Stripe's answer comes from."""
    production = Checkout(world.parts.checkout._gateway, None)
    with pytest.raises(Refused):
        production._checked(url)


@pytest.mark.parametrize(
    "url", ["https://checkout.stripe.com/c/pay/cs_1#x", "https://hooks.stripe.com/3ds", "https://stripe.com/x"]
)
def test_stripes_own_pages_are_stripes(world: Portal, url: str) -> None:
    """By https."""
    assert Checkout(world.parts.checkout._gateway, None)._checked(url) == url
    assert world.parts.checkout._checked(url) == url


def test_checkout_on_a_domain_of_the_sellers_is_where_stripe_says_it_is(world: Portal) -> None:
    """By https alone; the bank's page is on no such domain."""
    production = Checkout(world.parts.checkout._gateway, None)
    assert production._of_checkout("https://pay.rides.example/c/pay/cs_1") == "https://pay.rides.example/c/pay/cs_1"
    for url in ("http://pay.rides.example/x", "javascript:alert(1)", "//pay.rides.example/x", "https://", None):
        with pytest.raises(Refused):
            production._of_checkout(url)


def test_a_page_of_somebody_elses_is_refused_on_the_way_there(world: Portal) -> None:
    """The customer stays here, and is told that it does not work."""
    world.parts = dataclasses.replace(world.parts, checkout=Checkout(world.parts.checkout._gateway, None))
    answer = world.pressed("card")  # The double names a page on this machine, which in production is nobody's.
    assert (answer.status, answer.headline) == (409, "A card cannot be added here")


# --- When Stripe cannot -----------------------------------------------------------------------------------------------


def deleted(world: Portal) -> None:
    """Somebody deletes the customer at Stripe."""
    world.at_stripe("DELETE", f"/v1/customers/{world.customer}")


def lost(**terms: Any) -> Portal:
    """A charge whose customer was gone before a PaymentIntent was made."""
    world = Portal()
    deleted(world)
    declined(world, **terms)
    return world


def test_s7_a_customer_who_is_gone_at_stripe_gives_a_card_as_a_new_one_and_pays() -> None:
    """The flow that gets a new card, to its end: under a new key, for the customer that Stripe made of them."""
    world = lost()
    asked = world.charge().terms
    assert world.look().headline == "Your saved card can no longer be used"
    world.new_card()
    assert world.look().headline == "Paid. Thank you."
    assert world.money_moved() == [1999]
    charge = world.charge()
    assert charge.create.idempotency_key.endswith("-create-2")
    assert charge.customer not in {world.customer, ""}
    assert charge.terms == asked
    assert world.at_stripe("GET", f"/v1/payment_intents/{charge.payment_intent}")["customer"] == charge.customer
    world.settle()
    assert world.check() == []


def test_s7_the_session_is_for_whoever_gives_a_card_and_knows_their_address() -> None:
    """Setup mode without a customer: Stripe makes one of them."""
    world = lost(receipt_email="jo@shop.example")
    world.pressed("card")
    (session,) = world.at_stripe("GET", "/v1/checkout/sessions")["data"]
    assert (session["mode"], session["customer"], session["customer_creation"]) == ("setup", None, "always")
    assert session["customer_email"] == "jo@shop.example"
    world.new_card()
    assert world.at_stripe("GET", f"/v1/customers/{world.charge().customer}")["email"] == "jo@shop.example"


def test_s7_a_session_that_stripe_has_made_no_customer_of_takes_nothing() -> None:
    """A card of nobody's can be charged once at most, and by nobody for sure."""
    world = lost()
    session = urlsplit(world.give_card()).query.partition("=")[2]
    found = world.engine.find(session)
    assert found is not None
    for customer in (None, "", 7):
        world.engine.store.update({**found, "customer": customer})
        world.at("GET", f"{world.url()}/back?session={session}")
        assert world.charge().status is Status.BLOCKED
    world.engine.store.update(found)
    world.at("GET", f"{world.url()}/back?session={session}")
    assert world.charge().status is Status.SUCCEEDED


@pytest.mark.parametrize("names", [True, False])
def test_s7_the_setup_intent_may_name_the_new_customer_or_nobody_and_never_another(names: bool) -> None:
    """Stripe does not say that it names one who was made on the page."""
    world = lost()
    session = urlsplit(world.give_card()).query.partition("=")[2]
    found = world.engine.find(session)
    assert found is not None
    intent = world.engine.find(found["setup_intent"])
    assert intent is not None
    world.engine.store.update({**intent, "customer": "cus_another"})
    world.at("GET", f"{world.url()}/back?session={session}")
    assert world.charge().status is Status.BLOCKED
    world.engine.store.update({**intent, "customer": found["customer"] if names else None})
    world.at("GET", f"{world.url()}/back?session={session}")
    assert world.charge().status is Status.SUCCEEDED


@pytest.mark.parametrize("first", ["the way back", "the event", "the backfill"])
def test_s7_one_session_makes_one_customer_and_one_attempt_however_often_it_is_heard_of(first: str) -> None:
    """By the way back, the webhook and the backfill."""
    world = lost()
    back = world.give_card(POOR)
    event = events_of(world, back)
    world.engine.drop_deliveries()
    ways = {
        "the way back": lambda: world.at("GET", back),
        "the event": lambda: redeliver(world, event),
        "the backfill": world.backfill,
    }
    for way in sorted(ways, key=lambda way: way != first):
        ways[way]()
        world.settle()
        assert attempts(world) == 1
        assert len(world.charge().customers) == 1
    assert world.charge().status is Status.DECLINED
    assert world.check() == []


@pytest.mark.parametrize("card", ["pm_card_visa", POOR])
def test_s7_of_two_sessions_the_first_to_be_heard_of_is_taken(card: str) -> None:
    """Two tabs, or two people with one link: the charge has one customer then, and one PaymentIntent."""
    world = lost()
    first = world.give_card(card)
    world.webhooks_on = False
    opened = world.parts.checkout.open(world.charge(), world.url(), world.clock.now() + timedelta(minutes=11))
    second = world.on_stripes_page(opened.url, card="pm_card_visa")
    world.at("GET", first)
    customer = world.charge().customer
    for _ in range(2):
        world.at("GET", second)
        world.deliver_webhooks()
    world.settle()
    assert world.charge().customers == (customer,)
    assert attempts(world) == 1
    assert world.money_moved() == ([1999] if card == "pm_card_visa" else [])
    assert world.check() == []


def test_s7_a_new_customer_whose_card_is_declined_gives_another_one_as_the_same() -> None:
    """From then on they are the charge's."""
    world = lost()
    world.new_card(POOR)
    assert world.look().headline == "The payment did not go through"
    customer = world.charge().customer
    world.new_card()
    assert world.charge().customer == customer
    assert world.money_moved() == [1999]


def test_s7_a_card_is_gone_and_its_customer_as_well() -> None:
    """Stripe says so where the card was to be given: then it is given as a new customer, at the same press."""
    world = Portal()
    declined(world, "pm_1Deleted")
    deleted(world)
    world.new_card()
    assert world.look().headline == "Paid. Thank you."
    assert world.money_moved() == [1999]


@pytest.mark.parametrize("choice", ["pay", "card"])
def test_s7_a_customer_deleted_after_a_decline_is_told_that_no_card_works_any_more(choice: str) -> None:
    """The PaymentIntent is theirs for ever. The page offers only what can work, and says why."""
    world = Portal()
    declined(world)
    deleted(world)
    answer = world.pressed(choice)
    page = world.look()
    assert answer.status in {303, 409}
    assert (page.headline, page.choices) == ("This can no longer be paid by card", ["cash", "cancel"])
    assert "Nothing was charged." in page.text
    assert (world.charge().blocked_on, world.charge().customers) == ("account_owner", ())
    world.settle()
    assert world.charge().status is Status.BLOCKED

    world.pressed("cash")
    page = world.look()
    assert (page.headline, page.choices) == ("You want to pay another way", ["cancel"])
    world.pressed("cancel")
    assert world.charge().status is Status.CANCELED
    assert world.money_moved() == []
    assert world.check() == []


def test_s7_a_card_that_was_given_before_its_customer_was_deleted_is_not_waited_for(world: Portal) -> None:
    """200: the event need not come again, for it can never be taken."""
    event = events_of(world, world.give_card())
    world.engine.drop_deliveries()
    deleted(world)
    world.pressed("pay")
    assert redeliver(world, event) == 200
    assert attempts(world) == 2
    assert world.money_moved() == []


def test_s7_who_wants_to_pay_in_cash_and_gives_a_card_as_a_new_customer_after_all_pays() -> None:
    """The card that is gone is not offered again."""
    world = lost()
    world.pressed("cash")
    assert world.look().choices == ["card", "cancel"]
    world.clock.sleep(timedelta(minutes=5))
    world.new_card()
    assert world.money_moved() == [1999]


def test_s7_a_customer_who_is_gone_on_the_account_of_somebody_else_is_replaced_there() -> None:
    """S13: the session, the new customer and the payment are that account's."""
    world, account = Portal(), "acct_1seller"
    world.create(account=account, customer="cus_deleted", payment_method="pm_card_visa")
    (charge,) = world.charges()
    page = world.at("GET", world.url(charge))
    assert page is not None
    answer = world.at("POST", world.url(charge) + "/card", {"mark": page.mark})
    assert answer is not None
    world.at("GET", world.on_stripes_page(answer.location, card="pm_card_visa"))
    (charge,) = world.charges()
    assert charge.status is Status.SUCCEEDED
    made = world.at_stripe("GET", f"/v1/customers/{charge.customer}", **{"Stripe-Account": account})
    assert made["object"] == "customer"


def test_a_session_that_stripe_refuses_for_another_reason_is_the_sellers_to_mend(
    world: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was charged, and the page says so."""

    def refuse(*_: object) -> None:
        raise Refused

    monkeypatch.setattr(world.parts.checkout, "open", refuse)
    answer = world.pressed("card")
    assert (answer.status, answer.headline) == (409, "A card cannot be added here")
    assert "get in touch with the seller" in answer.text
    assert f'href="{world.url()}"' in answer.html


def test_s7_a_card_that_is_gone_is_replaced_on_the_page() -> None:
    """The flow that gets a new card, to its end."""
    world = Portal()
    declined(world, "pm_1Deleted")
    assert world.look().headline == "Your saved card can no longer be used"
    world.new_card()
    assert world.look().headline == "Paid. Thank you."
    assert world.money_moved() == [1999]


@pytest.mark.parametrize(
    "fault",
    [
        Fault.DROP_BEFORE,
        Fault.DROP_AFTER,
        Fault.ERROR_500_BEFORE,
        Fault.RATE_LIMITED,
        Fault.UNAUTHORIZED,
        Fault.NOT_JSON,
    ],
)
def test_a_session_that_cannot_be_opened_now_can_be_later(world: Portal, fault: Fault) -> None:
    """503 and a page that says so; then the way there."""
    world.engine.fail_next(fault, CREATE)
    assert world.pressed("card").status == 503
    assert attempts(world) == 1
    world.clock.sleep(timedelta(minutes=11))  # A 500 is saved under its key for a day.
    assert "/_double/checkout/" in world.pressed("card").location


@pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.ERROR_500_BEFORE, Fault.RATE_LIMITED, Fault.UNAUTHORIZED])
def test_a_card_that_cannot_be_read_now_is_taken_by_the_event(world: Portal, fault: Fault) -> None:
    """Nothing is lost: not the card, and not the event while Stripe cannot be asked."""
    back = world.give_card()
    world.engine.fail_next(fault, RETRIEVE, times=2)
    answer = world.at("GET", back)
    assert answer is not None
    assert answer.status == 503
    world.deliver_webhooks()
    assert 503 in statuses(world)
    world.settle()
    assert world.charge().status is Status.SUCCEEDED
    assert world.money_moved() == [1999]
    assert world.check() == []


# --- The event --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["the way back", "the event"])
@pytest.mark.parametrize("card", ["pm_card_visa", POOR, ASKS])
def test_whichever_hears_of_the_card_first_makes_the_one_attempt(world: Portal, first: str, card: str) -> None:
    """The other finds it done, declined as well as paid."""
    back = world.give_card(card)
    ways = [lambda: world.at("GET", back), world.deliver_webhooks]
    for way in ways if first == "the way back" else reversed(ways):
        way()
    assert attempts(world) == 2
    assert world.money_moved() == ([1999] if card == "pm_card_visa" else [])
    world.settle()
    assert attempts(world) == 2
    assert world.check() == []


def test_two_that_hear_of_the_card_at_the_same_moment_make_one_attempt(
    world: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read the charge before either has written it; the later one finds the card taken, and declined."""
    back, before = world.give_card(POOR), world.charge()
    world.deliver_webhooks()
    monkeypatch.setattr(world.parts.charger, "read", lambda _name: before)
    answer = world.at("GET", back)
    assert answer is not None
    assert answer.location == world.url()
    assert attempts(world) == 2


def test_a_charge_that_is_written_all_the_time_is_in_hand(world: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    """No loop goes on for ever."""
    back = world.give_card()
    charger = world.parts.charger
    monkeypatch.setattr(charger, "act", lambda *_what, **_how: Outcome(charge=world.charge(), refusal="version"))
    answer = world.at("GET", back)
    assert answer is not None
    assert answer.status == 409
    assert world.pressed("cancel").status == 409
    assert attempts(world) == 1


def test_a_customer_who_never_comes_back_has_paid_all_the_same(world: Portal) -> None:
    """The event finishes what the way back did not."""
    world.give_card()
    world.settle()
    assert world.money_moved() == [1999]
    assert world.look().headline == "Paid. Thank you."
    assert '"off_session": true' in world.charge().attempts[1].parameters


def test_a_late_event_does_not_take_back_what_was_chosen_since(world: Portal) -> None:
    """Another card was given meanwhile, and declined: the first one is not charged behind the customer's back."""
    held = events_of(world, world.give_card(POOR))
    world.clock.sleep(timedelta(minutes=11))  # So that the next session is another one.
    world.at("GET", f"{world.url()}/back?session={_second_card(world)}")
    assert attempts(world) == 2
    world.engine.drop_deliveries()
    assert redeliver(world, held) == 200
    assert attempts(world) == 2


def _second_card(world: Portal) -> str:
    """Give another card, in another session than the one that was left."""
    charge = world.charge()
    opened = world.parts.checkout.open(charge, world.url(), world.clock.now())
    world.on_stripes_page(opened.url, card=POOR)
    return opened.session


def events_of(world: Portal, back: str) -> Mapping[str, Any]:
    """Return the event that tells of this session, as long as it is held back."""
    session = urlsplit(back).query.partition("=")[2]
    (found,) = [each for each in events(world) if each["data"]["object"]["id"] == session]
    return found


def redeliver(world: Portal, event: Mapping[str, Any]) -> int:
    """Deliver an event, signed now. Returns the status."""
    return deliver(world, event).status


@pytest.mark.parametrize("way", ["unknown", "in hand"])
def test_an_event_that_comes_while_another_attempt_is_out_comes_again(world: Portal, way: str) -> None:
    """503: the card is taken once that has ended, and is not forgotten."""
    event = events_of(world, world.give_card())
    world.engine.drop_deliveries()
    if way == "unknown":
        world.engine.fail_next(Fault.DROP_BEFORE, CONFIRM, times=None)
        world.post(f"/{world.charge().id}/retry", {})
        assert world.charge().status is Status.UNKNOWN
    else:
        held = world.parts.ledger.get(world.charge().id)
        assert held is not None
        until = world.clock.now() + timedelta(seconds=60)
        world.parts.ledger.update(held, dataclasses.replace(held.charge, lease_owner="another", lease_until=until))
    assert redeliver(world, event) == 503
    world.engine.faults.rules = []
    world.clock.sleep(timedelta(minutes=2))
    world.settle()
    assert redeliver(world, event) == 200
    assert world.charge().status is Status.SUCCEEDED
    assert world.money_moved() == [1999]


@pytest.mark.parametrize("end", ["cancel", "paid"])
def test_an_event_for_a_charge_that_has_ended_changes_nothing(world: Portal, end: str) -> None:
    """200: there is nothing to come again for."""
    event = events_of(world, world.give_card())
    world.engine.drop_deliveries()
    world.post(
        f"/{world.charge().id}/{'cancel' if end == 'cancel' else 'out-of-band'}",
        {"reference": "till"} if end == "paid" else {},
    )
    before = world.charge()
    assert redeliver(world, event) == 200
    assert world.charge() == before


def test_a_card_whose_event_could_not_be_delivered_is_taken_up_by_the_backfill(world: Portal) -> None:
    """Nobody came back, and the webhook was down: the card is asked for at Stripe, and tried once."""
    world.give_card()
    world.engine.drop_deliveries()
    for _ in range(2):
        assert world.backfill()["finished"] is True
        world.settle()
    assert attempts(world) == 2
    assert world.charge().status is Status.SUCCEEDED
    assert world.money_moved() == [1999]


def test_a_card_that_cannot_be_taken_now_holds_the_backfill_back(world: Portal) -> None:
    """Stripe does not show the session: the event comes again with the next backfill."""
    world.give_card()
    world.engine.drop_deliveries()
    world.engine.fail_next(Fault.ERROR_503_BEFORE, RETRIEVE)
    assert world.backfill()["put_off"] == 1
    assert world.backfill()["put_off"] == 0
    world.settle()
    assert world.charge().status is Status.SUCCEEDED


@pytest.mark.parametrize("way", ["webhook", "backfill", "the way back"])
def test_a_card_that_is_heard_of_late_does_not_charge_who_has_chosen_cash_since(world: Portal, way: str) -> None:
    """They would pay twice, once of it at the till."""
    back = world.give_card()
    event = events_of(world, back)
    world.engine.drop_deliveries()
    world.clock.sleep(timedelta(minutes=5))
    world.pressed("cash")
    world.clock.sleep(timedelta(minutes=5))
    if way == "webhook":
        assert redeliver(world, event) == 200
    elif way == "backfill":
        world.backfill()
    else:
        world.at("GET", back)
    world.settle()
    assert world.money_moved() == []


def test_a_card_that_is_asked_for_after_cash_was_chosen_is_taken(world: Portal) -> None:
    """They have changed their mind, and it is the last word."""
    world.pressed("cash")
    world.clock.sleep(timedelta(minutes=5))
    world.give_card()
    world.settle()
    assert world.money_moved() == [1999]


def test_an_event_for_no_charge_of_ours_is_accepted(world: Portal) -> None:
    """Another program's session, or another deployment's."""
    event = dict(events_of(world, world.give_card()))
    world.engine.drop_deliveries()
    session = event["data"]["object"]
    for metadata in ({}, {"pio_charge": "0" * 40}, {"pio_charge": ""}, None):
        assert redeliver(world, {**event, "data": {"object": {**session, "metadata": metadata}}}) == 200
    assert redeliver(world, {**event, "data": {"object": {**session, "id": "cs_test_gone"}}}) == 200
    assert redeliver(world, {**event, "type": "checkout.session.expired"}) == 200
    assert attempts(world) == 1


def test_a_card_for_a_charge_that_is_in_hand_is_backfilled_later_and_holds_up_no_other(
    world: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events were lost. One charge is worked on when its card is met, and another's event comes after it."""
    monkeypatch.setattr(gateway, "PAGE_SIZE", 1)
    monkeypatch.setattr(gateway, "RECONCILED_PAGES", 1)
    world.clock.sleep(timedelta(hours=1))
    world.give_card()
    world.clock.sleep(timedelta(hours=1))
    world.create(key="order-2", payment_method="pm_usBankAccount_success")
    world.engine.drop_deliveries()
    held = world.parts.ledger.get(world.charge().id)
    assert held is not None
    until = world.clock.now() + timedelta(minutes=1)
    world.parts.ledger.update(held, dataclasses.replace(held.charge, lease_owner="another", lease_until=until))
    done = world.backfill()
    assert (done["put_off"], done["finished"], done["failed"]) == (1, True, [])
    assert done["events"] == 3  # The decline before it, and the debit after it.
    assert (attempts(world), world.money_moved()) == (1, [])
    world.clock.sleep(timedelta(hours=3))
    assert world.backfill()["put_off"] == 0
    assert (attempts(world), world.money_moved()) == (2, [1999])


def test_what_an_event_says_of_a_card() -> None:
    """The session and the charge, and nothing that is believed."""
    body = {
        "type": "checkout.session.completed",
        "data": {"object": {"id": "cs_1", "metadata": {"pio_charge": "abc"}}},
    }
    assert read_card_given(body) == CardGiven(session="cs_1", charge_id="abc")
    for broken in ({}, {**body, "type": "x"}, {**body, "data": None}, {**body, "data": {"object": []}}):
        assert read_card_given(broken) is None

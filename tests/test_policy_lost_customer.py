"""S7, a customer who is gone at Stripe: another takes their place until a PaymentIntent is made, and nobody after."""

import json
from typing import Any

import pytest

from shared import policy
from shared.charge import Act, Audience, CustomerGone, Failure, Listed, Party, Seen, Status, Topic
from shared.policy import Fetch, Limits, Rest, Send, Then
from tests.script import DAY, HOUR, MINUTE, OURS, START, Script, answered, burnt, changed, declined, intent, recorded

GONE = Failure(type="invalid_request_error", code="resource_missing", param="customer")
NO_CARD = Failure(type="invalid_request_error", code="resource_missing", param="payment_method")
EVERYBODY = Limits(reaches=frozenset(Audience))
CASH_OR_CANCEL = {Act.OUT_OF_BAND, Act.CANCEL}


def refused(**terms: Any) -> Script:
    """Stripe knows no such customer, so no PaymentIntent was made."""
    script = Script(limits=EVERYBODY, **terms)
    script.reply(Seen.MISSING_OBJECT, error=GONE)
    return script


def refused_after_silence() -> Script:
    """The first send had no answer; the second was refused."""
    script = Script(limits=EVERYBODY)
    script.reply(Seen.NO_REPLY)
    script.reply(Seen.MISSING_OBJECT, error=GONE)
    return script


def beyond() -> Script:
    """The customer was deleted between the PaymentIntent and its confirm."""
    script = recorded()
    script.limits = EVERYBODY
    script.reply(Seen.MISSING_OBJECT, error=GONE)
    return script


def gone(script: Script, customer: str = "cus_1") -> None:
    """Stripe refuses to save a card for the customer."""
    script.observe(CustomerGone(customer=customer, error=GONE))


def told(script: Script) -> list[tuple[Audience, Topic]]:
    """Return who is told what, but for the caller."""
    return [(one.audience, one.topic) for one in script.charge.outbox if one.audience is not Audience.CALLER]


# --- Before a PaymentIntent is made -----------------------------------------------------------------------------------


def test_s7_the_charge_is_taken_up_with_the_new_customers_card_under_a_new_key() -> None:
    """What was asked for stays as it is: it is what a repeated key is compared with."""
    script = refused()
    terms = script.charge.terms
    script.choose(Act.PAYMENT_METHOD, customer="cus_2")

    request = script.send()
    sent = json.loads(request.parameters)
    assert request.idempotency_key.endswith("-create-2")
    assert (sent["customer"], sent["payment_method"]) == ("cus_2", "pm_other")
    assert (script.charge.customer, script.charge.terms) == ("cus_2", terms)
    script.answer(Seen.UNCONFIRMED, customer="cus_2")
    script.reply(Seen.SUCCEEDED, customer="cus_2")
    assert script.status() is Status.SUCCEEDED


def test_s7_both_parties_are_told_and_the_operator_has_nothing_to_mend() -> None:
    """The owner of the account, and the customer."""
    script = refused(account="acct_1")
    assert told(script) == [(Audience.ACCOUNT_OWNER, Topic.MISSING_OBJECT), (Audience.CUSTOMER, Topic.MISSING_OBJECT)]
    assert policy.needs_customer(script.charge)
    assert not policy.beyond_cards(script.charge)


@pytest.mark.parametrize("customer", [None, "cus_1"])
def test_a_card_of_a_customer_who_is_gone_is_not_tried(customer: str | None) -> None:
    """It could only be refused again."""
    script = refused()
    before = script.charge
    assert script.choose(Act.PAYMENT_METHOD, customer=customer).refusal == "customer_is_gone"
    assert script.charge == before


@pytest.mark.parametrize("where", [declined, lambda: answered(Seen.MISSING_OBJECT, customer="cus_1")])
def test_nobody_takes_the_place_of_a_customer_who_is_there(where: Any) -> None:
    """A PaymentIntent is recorded, which is for one customer for ever."""
    script = where()
    before = script.charge
    assert script.choose(Act.PAYMENT_METHOD, customer="cus_2").refusal == "customer_is_another"
    assert script.charge == before
    assert script.choose(Act.PAYMENT_METHOD, customer="cus_1").refusal is None


def test_a_card_that_is_gone_says_nothing_of_its_customer() -> None:
    """Another card of theirs does."""
    script = Script()
    script.reply(Seen.MISSING_OBJECT, error=NO_CARD)
    assert not script.charge.customer_gone
    assert script.choose(Act.PAYMENT_METHOD, customer="cus_2").refusal == "customer_is_another"
    script.choose(Act.PAYMENT_METHOD)
    assert json.loads(script.send().parameters)["customer"] == "cus_1"


def test_a_new_customer_who_is_gone_as_well_is_replaced_as_well() -> None:
    """Each under the next key."""
    script = refused()
    script.choose(Act.PAYMENT_METHOD, customer="cus_2")
    script.reply(Seen.MISSING_OBJECT, error=GONE)
    assert policy.needs_customer(script.charge)
    script.choose(Act.PAYMENT_METHOD, customer="cus_3")
    assert script.send().idempotency_key.endswith("-create-3")
    assert script.charge.every_customer == {"cus_1", "cus_2", "cus_3"}


def test_the_card_of_a_new_customer_that_is_gone_does_not_take_the_customer_with_it() -> None:
    """They give another one."""
    script = refused()
    script.choose(Act.PAYMENT_METHOD, customer="cus_2")
    script.reply(Seen.MISSING_OBJECT, error=NO_CARD)
    script.choose(Act.PAYMENT_METHOD, customer="cus_2")
    assert json.loads(script.send().parameters)["customer"] == "cus_2"


def test_what_an_earlier_send_may_have_made_is_looked_for_among_everybodys_first() -> None:
    """A customer who is gone may have no list any more."""
    script = refused_after_silence()
    script.choose(Act.PAYMENT_METHOD, customer="cus_2")
    assert script.step() == policy.List(since=START - policy.LIST_MARGIN, of_everybody=True)
    script.listed()
    assert json.loads(script.send().parameters)["customer"] == "cus_2"
    assert script.sends[-1][0].endswith("-create-2")


def test_a_payment_intent_that_an_earlier_send_made_for_the_old_customer_is_the_one() -> None:
    """It is recorded, as ever; no card can be charged on it any more, and that is said at once."""
    script = refused_after_silence()
    script.choose(Act.PAYMENT_METHOD, customer="cus_2")
    script.listed(intent(script.charge, customer="cus_1"))

    assert script.charge.payment_intent == OURS
    assert (script.status(), script.charge.blocked_on) == (Status.BLOCKED, Party.ACCOUNT_OWNER)
    assert script.charge.last_error == policy.NO_CUSTOMER
    assert policy.options(script.charge) == CASH_OR_CANCEL
    assert not script.charge.attempts


def test_a_stranger_who_may_be_ours_under_either_customer_stops_the_new_key() -> None:
    """Made by hand for the customer who is gone, say: a person must see it."""
    for customer in ("cus_1", "cus_2"):
        script = refused()
        script.choose(Act.PAYMENT_METHOD, customer="cus_2")
        script.send()
        script.answer(Seen.NO_REPLY)
        script.wake(policy.KEY_HORIZON)
        script.listed(intent(script.charge, name="pi_hand", charge_id=None, customer=customer))
        assert (script.status(), script.charge.blocked_on) == (Status.BLOCKED, Party.OPERATOR)


@pytest.mark.parametrize("customer", ["cus_1", "cus_2"])
def test_a_payment_under_either_customer_is_this_charges(customer: str) -> None:
    """A slow create of the first key, say, which somebody has confirmed by hand."""
    script = refused()
    script.choose(Act.PAYMENT_METHOD, customer="cus_2")
    script.event(Seen.SUCCEEDED, customer=customer)
    assert script.said.look == Fetch(payment_intent=OURS)
    script.fetched(Seen.SUCCEEDED, customer=customer)
    assert (script.status(), script.charge.payment_intent) == (Status.SUCCEEDED, OURS)
    assert script.charge.discrepancies == ()


def test_a_restored_ledger_that_forgot_the_new_customer_learns_of_them_with_the_payment_intent() -> None:
    """It is found among everybody's as the ledger is reopened, and whose it is comes with it."""
    script = refused()
    charge = policy.restored(script.charge, generation=2, lost_since=START, now=START + HOUR)
    script = changed(script, **{name: getattr(charge, name) for name in ("restored_at", "lost_since", "generation")})
    script.now += HOUR
    script.observe(Listed(payment_intents=(intent(script.charge, customer="cus_2"),)))

    assert (script.charge.customer, script.charge.customer_gone) == ("cus_2", False)
    assert script.charge.payment_intent == OURS
    assert not isinstance(script.step(), Send)  # Nothing is confirmed before what was lost is past.
    script.wake(policy.KEY_HORIZON)
    script.reply(Seen.SUCCEEDED, customer="cus_2")
    assert script.status() is Status.SUCCEEDED


def test_a_restored_ledger_lists_before_it_asks_for_the_new_customer() -> None:
    """Somebody may have taken one in the time that was lost."""
    script = refused()
    script = changed(script, restored_at=START, lost_since=START - DAY)
    script.choose(Act.PAYMENT_METHOD, customer="cus_2")
    assert script.step() == policy.List(since=START - DAY - policy.LIST_MARGIN, of_everybody=True)


def test_in_a_restored_ledger_an_intent_of_the_old_customer_waits_for_what_was_lost() -> None:
    """A confirm of that time may yet act: it is not said that nothing was charged."""
    script = changed(refused(), restored_at=START + HOUR, lost_since=START - DAY)
    script.now += HOUR
    script.choose(Act.PAYMENT_METHOD, customer="cus_2")
    script.listed(intent(script.charge, customer="cus_1"))
    assert script.status() is Status.UNKNOWN
    assert policy.options(script.charge) == CASH_OR_CANCEL


# --- Once a PaymentIntent is recorded ---------------------------------------------------------------------------------


def test_s7_a_payment_intent_whose_customer_is_gone_leaves_cash_and_cancel() -> None:
    """It is for that customer for ever, and never replaced."""
    script = beyond()
    assert (script.status(), script.charge.blocked_on) == (Status.BLOCKED, Party.ACCOUNT_OWNER)
    assert policy.beyond_cards(script.charge)
    assert policy.options(script.charge) == CASH_OR_CANCEL
    for act in (Act.RETRY, Act.PAYMENT_METHOD):
        assert script.choose(act).refusal == "act_does_not_fit"
    assert script.choose(Act.OUT_OF_BAND, wish=True).refusal is None


def test_s7_then_the_owner_the_customer_and_the_operator_are_told() -> None:
    """On the platform's own account the operator is the owner, and hears it once."""
    both = [(Audience.ACCOUNT_OWNER, Topic.MISSING_OBJECT), (Audience.CUSTOMER, Topic.MISSING_OBJECT)]
    assert told(beyond()) == both
    script = recorded(account="acct_1")
    script.limits = EVERYBODY
    script.reply(Seen.MISSING_OBJECT, error=GONE)
    assert told(script) == [*both, (Audience.OPERATOR, Topic.BLOCKED)]


def test_what_no_card_can_pay_is_looked_at_every_day_and_nothing_is_sent() -> None:
    """Until somebody chooses, or it expires."""
    script = beyond()
    assert policy.due_at(script.charge, script.now, None) == script.now + policy.NOTICE_AGAIN
    script.wake(DAY)
    script.look(Seen.UNCONFIRMED)
    assert script.status() is Status.BLOCKED
    assert script.said.then is Then.REST


def test_money_that_moves_in_spite_of_it_beats_it() -> None:
    """Stripe's word on the PaymentIntent beats everything."""
    script = beyond()
    script.event(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED
    assert policy.options(script.charge) == set()


@pytest.mark.parametrize("act", [Act.CANCEL, Act.OUT_OF_BAND])
def test_what_no_card_can_pay_can_be_ended(act: Act) -> None:
    """Its PaymentIntent is canceled, as ever."""
    script = beyond()
    script.choose(act)
    script.reply(Seen.CANCELED)
    assert script.charge.final


# --- Found out where a card was to be given ---------------------------------------------------------------------------


@pytest.mark.parametrize("was", [Seen.DECLINED, Seen.TRANSIENT_DECLINE, Seen.AUTHENTICATION_REQUIRED])
def test_a_customer_who_is_found_gone_as_they_want_to_give_a_card_stops_it(was: Seen) -> None:
    """What would be tried by itself is not: it would be refused."""
    script = answered(was)
    gone(script)
    assert (script.status(), script.charge.blocked_on) == (Status.BLOCKED, Party.ACCOUNT_OWNER)
    assert script.charge.history[-1].what == "the customer is gone"
    assert policy.options(script.charge) == CASH_OR_CANCEL
    assert script.charge.next_attempt_at is None
    for after in (MINUTE, DAY, DAY):
        script.wake(after)
        if not isinstance(script.step(), Rest):
            script.look(Seen.UNCONFIRMED)
        assert script.status() is Status.BLOCKED


def test_a_bank_that_still_asks_asks_in_vain() -> None:
    """The page of the bank may be open; what it brings is seen, and nobody is sent there any more."""
    script = answered(Seen.ACTION_REQUIRED)
    gone(script)
    script.wake(DAY)
    script.look(Seen.ACTION_REQUIRED)
    assert script.status() is Status.BLOCKED
    script.wake(DAY)
    script.look(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


def test_a_card_that_is_missing_may_turn_out_to_be_a_customer_who_is() -> None:
    """Then another one is asked for, and the owner is told of that."""
    script = Script(limits=EVERYBODY)
    script.reply(Seen.MISSING_OBJECT, error=NO_CARD)
    gone(script)
    assert policy.needs_customer(script.charge)
    assert told(script)[-2:] == [
        (Audience.ACCOUNT_OWNER, Topic.MISSING_OBJECT),
        (Audience.CUSTOMER, Topic.MISSING_OBJECT),
    ]


def test_what_is_said_of_a_customer_twice_or_of_another_or_while_something_is_out_changes_nothing() -> None:
    """The page may be old."""
    for script, customer in ((declined(), "cus_0"), (beyond(), "cus_1"), (burnt(), "cus_1"), (recorded(), "cus_1")):
        before = script.charge
        gone(script, customer)
        assert script.charge == before

"""Rule 5: a wish to end a charge is committed before it is sent, carried out at Stripe, and never lost."""

from typing import Any

import pytest

from shared import policy
from shared.charge import Act, Audience, CancelReason, Fetched, Seen, Status, Topic
from shared.policy import Fetch, List, Rest, Send, Then
from tests.script import (
    CARD_DECLINED,
    DAY,
    HOUR,
    MINUTE,
    OURS,
    START,
    Script,
    Ways,
    answered,
    burnt,
    changed,
    closing,
    confirming,
    declined,
    intent,
    recorded,
)

EITHER = pytest.mark.parametrize("act", [Act.CANCEL, Act.OUT_OF_BAND])


@EITHER
def test_cash_is_chosen_and_the_process_dies_and_nothing_is_confirmed_any_more(act: Act) -> None:
    """The retry task comes later: it cancels, and charges nobody."""
    script = answered(Seen.TRANSIENT_DECLINE)
    script.choose(act)
    script.wake(2 * DAY)
    assert len(script.charge.attempts) == 1
    request = script.send()
    assert (request.operation, request.payment_intent) == ("cancel", OURS)


@EITHER
@pytest.mark.parametrize("where", ["recorded", "confirming", "burnt", "declined", "processing", "blocked"])
def test_a_closing_is_recorded_before_anything_is_sent_and_final_only_after_stripe_has_agreed(
    act: Act, where: str
) -> None:
    """The decision itself sends nothing; the status becomes final with Stripe's word."""
    ways: Ways = {
        "recorded": recorded,
        "confirming": confirming,
        "burnt": burnt,
        "declined": declined,
        "processing": lambda: answered(Seen.PROCESSING),
        "blocked": lambda: answered(Seen.INVALID),
    }
    script = ways[where]()
    moving = where in {"confirming", "burnt", "processing"}
    script.choose(act)

    assert script.said.then is Then.GO_ON
    assert script.status() is (Status.UNKNOWN if moving else Status.PENDING)
    assert script.charge.blocked_on is None
    assert script.charge.closing is not None
    assert (script.charge.closing.actor, script.charge.closing.at) == ("customer", script.now)
    assert policy.options(script.charge) == frozenset()

    script.reply(Seen.CANCELED)

    assert script.status() is (Status.CANCELED if act is Act.CANCEL else Status.PAID_OUT_OF_BAND)
    assert script.charge.cancel_reason is (CancelReason.REQUESTED if act is Act.CANCEL else None)
    assert script.step() == Rest()


def test_a_closing_that_comes_too_late_finds_the_charge_paid() -> None:
    """The confirm had succeeded: that is recorded, and nobody is told that it was canceled."""
    script = closing(Act.CANCEL, confirming())
    script.reply(Seen.UNEXPECTED_STATE)
    script.look(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED
    assert script.charge.cancel_reason is None
    assert [found.kind for found in script.charge.discrepancies] == ["paid_after_cancel_asked"]
    assert script.choose(Act.CANCEL).refusal == "already_paid"


def test_cash_for_a_charge_that_was_paid_meanwhile_is_a_discrepancy() -> None:
    """Paid here and at the till: one is refunded."""
    script = closing(Act.OUT_OF_BAND, confirming())
    script.reply(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED
    assert [found.kind for found in script.charge.discrepancies] == ["paid_twice"]


@pytest.mark.parametrize("ends", ["cancel", "expire"])
def test_a_cancel_that_money_overtakes_is_told_to_the_customer_and_to_the_operator(ends: str) -> None:
    """Nobody had written to them before. They believe that it is canceled: it is to be delivered, or given back."""
    script = Script(limits=policy.Limits(reaches=frozenset(Audience)))
    script.reply(Seen.UNCONFIRMED)
    script.reply(Seen.NO_REPLY)
    if ends == "cancel":
        script.choose(Act.CANCEL)
    else:
        script.wake(policy.EXPIRES_AFTER)
    assert script.charge.closing is not None
    assert script.charge.closing.kind == ends
    assert not script.charge.outbox
    script.event(Seen.SUCCEEDED)

    assert script.status() is Status.SUCCEEDED
    assert [found.kind for found in script.charge.discrepancies] == ["paid_after_cancel_asked"]
    told = {(notice.audience, notice.topic) for notice in script.charge.outbox}
    assert told == {
        (Audience.CUSTOMER, Topic.PAID),
        (Audience.OPERATOR, Topic.DISCREPANCY),
        (Audience.CALLER, Topic.OUTCOME),
    }


@pytest.mark.parametrize("act", [Act.CANCEL, Act.OUT_OF_BAND])
def test_a_customer_is_told_of_money_that_comes_after_the_charge_was_closed(act: Act) -> None:
    """They may have been told that none will be taken; a closing that nothing overtakes is no news to them."""
    script = Script(limits=policy.Limits(reaches=frozenset({Audience.CUSTOMER})))
    script.reply(Seen.UNCONFIRMED)
    script.send()
    script.choose(act)
    script.reply(Seen.CANCELED)
    assert script.charge.final
    assert not script.charge.outbox
    script.event(Seen.SUCCEEDED)
    assert [notice.topic for notice in script.charge.outbox] == [Topic.PAID]


@pytest.mark.parametrize("seen", sorted(set(Seen) - {Seen.SUCCEEDED, Seen.CANCELED}))
def test_an_answer_to_the_confirm_says_nothing_once_the_charge_is_closing(seen: Seen) -> None:
    """A decline that comes in after the wish: the cancel is sent all the same, and no retry starts."""
    script = confirming()
    key = script.sends[-1][0]
    script.choose(Act.CANCEL)
    status = script.status()
    script.answer(seen, key=key)
    assert script.status() is status
    assert script.send().operation == "cancel"
    assert len(script.charge.attempts) == 1


@pytest.mark.parametrize("seen", [Seen.SUCCEEDED, Seen.CANCELED])
def test_what_can_never_be_untrue_counts_while_closing(seen: Seen) -> None:
    """The confirm's own answer says that it is paid, or canceled."""
    script = confirming()
    key = script.sends[-1][0]
    script.choose(Act.CANCEL)
    script.answer(seen, key=key)
    assert script.status() == str(seen)


def test_a_closing_while_the_bank_works_waits_for_the_bank() -> None:
    """An hour at a time; if the bank refuses, the cancel is sent again under a new key."""
    script = closing(Act.CANCEL, answered(Seen.PROCESSING))
    script.reply(Seen.PROCESSING)
    script.look(Seen.PROCESSING)
    assert (script.status(), script.said.wait) == (Status.PROCESSING, policy.CLOSING_WAIT)
    script.waited()
    script.look(Seen.PROCESSING)
    script.waited()
    script.look(Seen.UNCONFIRMED)
    script.waited()
    script.reply(Seen.CANCELED)
    assert script.status() is Status.CANCELED


@pytest.mark.parametrize("seen", [Seen.ACTION_REQUIRED, Seen.HELD, Seen.UNCONFIRMED])
def test_a_cancel_that_did_not_take_is_sent_again_after_a_while(seen: Seen) -> None:
    """The money is held, or the customer is asked: both can be canceled."""
    script = closing()
    script.reply(Seen.UNEXPECTED_STATE)
    script.look(seen)
    assert script.said.then is Then.LATER
    script.waited()
    assert script.send().idempotency_key == f"pio-{script.charge.id}-cancel-2"


@pytest.mark.parametrize("seen", [Seen.ACTION_REQUIRED, Seen.HELD, Seen.UNCONFIRMED])
def test_a_look_before_the_cancel_is_sent_changes_nothing(seen: Seen) -> None:
    """An event comes in between the wish and its execution, an attempt not sent among it."""
    script = closing(Act.CANCEL, recorded())
    before = script.charge
    script.fetched(seen)
    assert script.charge == before
    assert script.said.then is Then.GO_ON


# --- No PaymentIntent recorded --------------------------------------------------------------------------------------


@EITHER
@pytest.mark.parametrize("sent", [True, False])
def test_a_charge_without_a_payment_intent_is_closed_at_once(act: Act, sent: bool) -> None:
    """Nothing was ever confirmed; what a slow create still brings is an orphan."""
    script = Script()
    if sent:
        script.reply(Seen.NO_REPLY)
    script.choose(act)
    assert script.charge.final
    assert script.charge.due_at is None
    assert script.said.then is Then.REST


def test_a_charge_without_a_payment_intent_past_the_horizon_is_listed_before_it_is_closed() -> None:
    """A record that was behind may have lost a PaymentIntent that was confirmed."""
    script = Script()
    script.reply(Seen.NO_REPLY)
    script.now += policy.KEY_HORIZON
    script.choose(Act.CANCEL)
    assert not script.charge.final
    assert isinstance(script.step(), List)

    script.listed()

    assert script.status() is Status.CANCELED


@pytest.mark.parametrize(
    ("seen", "status"),
    [
        (Seen.UNCONFIRMED, Status.PENDING),
        (Seen.SUCCEEDED, Status.SUCCEEDED),
        (Seen.CANCELED, Status.CANCELED),
        (Seen.PROCESSING, Status.PROCESSING),
        (Seen.ACTION_REQUIRED, Status.PENDING),
    ],
)
def test_what_the_list_finds_is_canceled_or_wins(seen: Seen, status: Status) -> None:
    """It is recorded first; nothing is confirmed."""
    script = Script()
    script.reply(Seen.NO_REPLY)
    script.now += policy.KEY_HORIZON
    script.choose(Act.CANCEL)
    script.listed(intent(script.charge, seen))
    assert script.charge.payment_intent == OURS
    assert script.status() is status
    assert script.charge.attempts == ()
    if status is Status.PENDING:
        assert script.send().operation == "cancel"
    if status is Status.PROCESSING:
        script.waited()
        script.look(Seen.UNCONFIRMED)
        assert script.send().operation == "cancel"


def test_a_list_that_fails_while_closing_is_repeated_once_mended() -> None:
    """The wish stays; a retry by the operator carries it on."""
    script = Script()
    script.reply(Seen.NO_REPLY)
    script.now += policy.KEY_HORIZON
    script.choose(Act.CANCEL)
    script.look_failed(Seen.UNAUTHORIZED)
    assert script.status() is Status.BLOCKED
    assert policy.due_at(script.charge, script.now, None) == script.now + policy.BLOCKED_WAIT
    assert policy.options(script.charge) == {Act.RETRY}
    script.choose(Act.RETRY)
    assert script.status() is Status.PENDING
    script.listed()
    assert script.status() is Status.CANCELED


def test_a_slow_create_of_a_charge_that_is_closing_is_recorded_and_canceled() -> None:
    """It answers while the list is being asked for."""
    script = Script()
    first = script.send().idempotency_key
    script.answer(Seen.SERVER_ERROR, replayed=True)
    script.listed()
    script.send()
    script.now += policy.KEY_HORIZON
    script.choose(Act.CANCEL)
    script.answer(Seen.UNCONFIRMED, key=first, name="pi_slow")
    assert script.charge.payment_intent == "pi_slow"
    assert script.send().operation == "cancel"


# --- Refused closings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [Seen.INVALID, Seen.MISSING_OBJECT, Seen.MISSING_PAYMENT_INTENT])
def test_a_refused_cancel_waits_for_the_operator_and_the_wish_stays(seen: Seen) -> None:
    """Once a day it is looked at and tried; an operator's retry does so at once, under a new key."""
    script = closing()
    script.reply(seen)
    assert policy.options(script.charge) == {Act.RETRY}
    assert policy.due_at(script.charge, script.now, None) == script.now + policy.LOOK_EVERY
    script.choose(Act.RETRY)
    assert script.send().idempotency_key == f"pio-{script.charge.id}-cancel-2"
    script.answer(seen)
    script.waited()
    script.look(Seen.UNCONFIRMED)
    assert script.status() is Status.BLOCKED
    script.waited()
    script.reply(Seen.CANCELED)
    assert script.status() is Status.CANCELED


def test_an_operators_retry_repeats_a_cancel_whose_key_is_good() -> None:
    """The API key was bad: nothing ran."""
    script = closing(Act.CANCEL, confirming())
    script.reply(Seen.UNAUTHORIZED)
    script.choose(Act.RETRY)
    assert script.status() is Status.UNKNOWN
    assert script.send().idempotency_key == f"pio-{script.charge.id}-cancel-1"


# --- Two wishes -----------------------------------------------------------------------------------------------------


@EITHER
def test_the_same_wish_twice_is_one_wish(act: Act) -> None:
    """While it is carried out, and afterwards."""
    script = closing(act)
    before = script.charge
    assert script.choose(act).refusal is None
    assert script.charge == before
    script.reply(Seen.CANCELED)
    before = script.charge
    assert script.choose(act).refusal is None
    assert script.charge == before


@pytest.mark.parametrize(
    ("first", "then", "why"),
    [(Act.CANCEL, Act.OUT_OF_BAND, "already_canceled"), (Act.OUT_OF_BAND, Act.CANCEL, "already_paid")],
)
def test_another_wish_is_refused_and_the_first_one_stays(first: Act, then: Act, why: str) -> None:
    """Who brings cash for a charge that is being canceled hears so."""
    script = closing(first)
    before = script.charge
    assert script.choose(then).refusal == "already_closing"
    assert script.charge == before
    script.reply(Seen.CANCELED)
    assert script.choose(then).refusal == why


def test_a_caller_who_cancels_what_is_expiring_has_what_they_want() -> None:
    """It ends canceled either way: no 409 for a definite no."""
    script = declined()
    script.wake(31 * DAY)
    before = script.charge
    assert script.choose(Act.CANCEL).refusal is None
    assert script.charge == before
    assert script.choose(Act.OUT_OF_BAND).refusal == "already_closing"


def test_cash_for_what_another_payment_intent_has_paid_is_refused() -> None:
    """It would be paid twice."""
    script = declined()
    script.fetched(Seen.SUCCEEDED, name="pi_other")
    assert script.choose(Act.OUT_OF_BAND).refusal == "already_closing"


@pytest.mark.parametrize("act", [Act.RETRY, Act.PAYMENT_METHOD])
def test_nothing_is_tried_again_once_it_is_closing(act: Act) -> None:
    """The wish came first."""
    script = closing()
    before = script.charge
    assert script.choose(act).refusal == "act_does_not_fit"
    assert script.charge == before


@pytest.mark.parametrize(
    ("act", "kind", "status"),
    [
        (Act.CANCEL, "paid_elsewhere", Status.PAID_OUT_OF_BAND),
        (Act.OUT_OF_BAND, "paid_twice", Status.PAID_OUT_OF_BAND),
    ],
)
def test_money_by_another_payment_intent_while_closing_is_told(act: Act, kind: str, status: Status) -> None:
    """Whoever cancels a charge that was paid elsewhere is not told that it was never paid."""
    script = closing(act)
    script.fetched(Seen.SUCCEEDED, name="pi_other")
    assert [found.kind for found in script.charge.discrepancies] == [kind]
    script.reply(Seen.CANCELED)
    assert script.status() is status


# --- Expiry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["declined", "action required", "blocked", "unknown", "retrying", "pending"])
def test_a_charge_that_nobody_ends_is_canceled_at_its_expiry(where: str) -> None:
    """Thirty days by default: canceled at Stripe first, as everything else."""
    ways: Ways = {
        "declined": declined,
        "action required": lambda: answered(Seen.ACTION_REQUIRED),
        "blocked": lambda: answered(Seen.MISSING_OBJECT),
        "unknown": lambda: answered(Seen.NO_REPLY),
        "retrying": lambda: answered(Seen.TRANSIENT_DECLINE),
        "pending": recorded,
    }
    script = ways[where]()
    assert script.charge.expires_at == START + 30 * DAY
    script.now = START + 30 * DAY
    script.wake()
    script.reply(Seen.CANCELED)
    assert (script.status(), script.charge.cancel_reason) == (Status.CANCELED, CancelReason.EXPIRED)


def test_an_expiry_that_the_caller_set_counts() -> None:
    """An hour, and not a minute less."""
    script = declined()
    script.charge = changed(script, expires_at=Script(expires_at=START + HOUR).charge.expires_at).charge
    script.wake(HOUR - MINUTE)
    assert script.charge.closing is None
    script.wake(MINUTE)
    assert script.charge.closing is not None


def test_a_bank_debit_does_not_expire_while_money_moves() -> None:
    """The bank pays on day 40: paid; or comes back unpaid, and then it expires."""
    script = answered(Seen.PROCESSING)
    script.wake(40 * DAY)
    assert script.charge.closing is None
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.DECLINED
    script.waited()
    assert script.charge.closing is not None
    assert script.charge.closing.kind == "expire"


def test_an_expired_charge_that_had_paid_is_paid() -> None:
    """Its confirm had no answer for thirty days; the cancel finds out."""
    script = answered(Seen.NO_REPLY)
    script.wake(31 * DAY)
    script.reply(Seen.UNEXPECTED_STATE)
    assert isinstance(script.step(), Fetch)
    script.look(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED
    assert [found.kind for found in script.charge.discrepancies] == ["paid_after_cancel_asked"]


def test_a_closing_charge_waits_to_be_sent_again_not_to_be_decided_again() -> None:
    """A delivery begins: the same request, the same key."""
    script = closing()
    script.reply(Seen.NO_REPLY)
    script.wake(MINUTE)
    assert isinstance(script.step(), Send)
    assert script.send().idempotency_key == f"pio-{script.charge.id}-cancel-1"


def test_a_delivery_that_died_while_closing_an_unknown_charge_says_unknown() -> None:
    """The confirm that was out may have charged."""
    script = closing(Act.CANCEL, confirming())
    script.charge = changed(script, status=Status.PENDING).charge
    script.wake(MINUTE)
    assert script.status() is Status.UNKNOWN


def paid_elsewhere() -> Script:
    """Declined, and paid by another PaymentIntent; the recorded one is canceled."""
    script = declined()
    script.fetched(Seen.SUCCEEDED, name="pi_first")
    script.reply(Seen.CANCELED)
    assert script.status() is Status.PAID_OUT_OF_BAND
    return script


def kept(script: Script, name: str, **more: Any) -> None:
    """The look that is asked for before anything is given back shows that this one keeps its money."""
    step = script.step()
    assert isinstance(step, Fetch)
    assert (step.payment_intent, step.with_charges) == (name, True)
    shown = intent(script.charge, Seen.SUCCEEDED, name)
    script.observe(Fetched(payment_intent=shown, **{"amount_refunded": 0, **more}))


def test_of_two_that_paid_elsewhere_the_first_keeps_its_money() -> None:
    """And the second gives it back, once; a third does, too."""
    script = paid_elsewhere()
    for name in ("pi_second", "pi_third"):
        script.fetched(Seen.SUCCEEDED, name=name)
        kept(script, "pi_first")
        assert script.send().payment_intent == name
        script.answer(Seen.REFUNDED)
        script.fetched(Seen.SUCCEEDED, name=name)
    assert script.charge.done
    assert [(found.kind, found.payment_intent, bool(found.settled)) for found in script.charge.discrepancies] == [
        ("paid_elsewhere", "pi_first", False),
        ("paid_twice", "pi_second", True),
        ("paid_twice", "pi_third", True),
    ]


def test_two_that_pay_while_the_recorded_one_is_being_canceled_are_one_too_many() -> None:
    """The second is given back once the closing is done."""
    script = declined()
    script.fetched(Seen.SUCCEEDED, name="pi_first")
    script.fetched(Seen.SUCCEEDED, name="pi_second")
    assert script.charge.refunds == ()
    script.reply(Seen.CANCELED)
    kept(script, "pi_first")
    assert script.send().payment_intent == "pi_second"


def test_where_a_person_refunded_the_first_that_paid_elsewhere_the_second_keeps_its_money() -> None:
    """Which of them did what is for a person to see."""
    script = paid_elsewhere()
    script.fetched(Seen.SUCCEEDED, name="pi_second")
    kept(script, "pi_first", amount_refunded=1)
    assert script.charge.done
    assert ("not_paid_at_stripe", "pi_first") in {(d.kind, d.payment_intent) for d in script.charge.discrepancies}


def test_of_two_that_paid_for_a_canceled_charge_one_is_given_back() -> None:
    """What becomes of the first is for a person; nobody pays twice meanwhile."""
    script = closing(Act.CANCEL, declined())
    script.reply(Seen.CANCELED)
    script.fetched(Seen.SUCCEEDED, name="pi_first")
    assert script.charge.refunds == ()
    script.fetched(Seen.SUCCEEDED, name="pi_second")
    kept(script, "pi_first")
    assert script.reply(Seen.REFUNDED).charge.status is Status.CANCELED
    assert [(d.payment_intent, bool(d.settled)) for d in script.charge.discrepancies] == [
        ("pi_first", False),
        ("pi_second", True),
    ]


def test_once_the_recorded_one_is_paid_after_all_what_was_paid_elsewhere_is_given_back() -> None:
    """Nothing beats that: both others give it back."""
    script = paid_elsewhere()
    script.fetched(Seen.SUCCEEDED, name="pi_second")
    script.event(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED
    kept(script, OURS)
    given_back = []
    for _ in range(2):
        given_back.append(script.send().payment_intent)
        script.answer(Seen.REFUNDED)
    assert given_back == ["pi_second", "pi_first"]
    assert script.charge.done


def test_what_is_paid_beside_cash_is_for_a_person() -> None:
    """Whether the till or the card gives it back is not ours to say."""
    script = closing(Act.OUT_OF_BAND, declined())
    script.reply(Seen.CANCELED)
    script.fetched(Seen.SUCCEEDED, name="pi_other")
    assert script.charge.refunds == ()
    assert script.charge.done


def test_who_pays_twice_here_is_given_one_back_and_nobody_is_asked_to_refund_the_other() -> None:
    """The one that is not recorded is given back by itself; a person who refunds the other takes the price away."""
    script = confirming()
    script.fetched(Seen.SUCCEEDED, name="pi_extra")
    script.fetched(Seen.SUCCEEDED)
    script.observe(Fetched(payment_intent=intent(script.charge, Seen.SUCCEEDED), amount_refunded=0))
    script.reply(Seen.REFUNDED)
    assert [(found.payment_intent, found.settled) for found in script.charge.discrepancies] == [
        ("pi_extra", "what it took was given back")
    ]
    assert script.charge.done

"""The rules of DESIGN section 3, each by the shortest way it goes wrong without it."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from shared import policy
from shared.charge import Act, Answered, CancelReason, Fetched, Listed, Seen, Status
from shared.policy import Fetch, List, Rest, Send, Then
from tests.script import (
    AMOUNT,
    CARD_DECLINED,
    DAY,
    HOUR,
    LIMITS,
    MINUTE,
    OURS,
    SECOND,
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
    opened,
    recorded,
)

# --- Rule 1: key state decides, not the last answer ------------------------------------------------------------------


@pytest.mark.parametrize("last", [Seen.UNAUTHORIZED, Seen.KEY_IN_USE, Seen.LIMITED, Seen.INVALID, Seen.MISSING_OBJECT])
def test_rule_1_no_new_key_because_the_last_answer_never_reached_the_endpoint(last: Seen) -> None:
    """Sent, timed out, sent again, refused at the door: the first send may be charging under the one key there is."""
    script = answered(Seen.NO_REPLY)
    script.waited()
    script.reply(last)
    for _ in range(5):
        if isinstance(script.step(), Fetch):
            script.look(Seen.UNCONFIRMED)
        script.wake(MINUTE)

    assert len(script.charge.attempts) == 1
    assert not script.charge.attempts[0].settled
    assert policy.money_may_move(script.charge)


def test_rule_1_a_refusal_of_the_only_send_settles_it() -> None:
    """Nothing is unexplained: whoever mends it may have a new key."""
    script = answered(Seen.INVALID)
    assert script.charge.attempts[0].settled
    assert not policy.money_may_move(script.charge)


def test_rule_1_a_fresh_decline_settles_the_key_whatever_timed_out_before() -> None:
    """It would have been replayed, had an earlier send been carried out."""
    script = answered(Seen.NO_REPLY)
    script.reply(Seen.DECLINED, error=CARD_DECLINED)
    assert script.status() is Status.DECLINED
    assert script.charge.attempts[0].settled


# --- Rule 2: another attempt than the open one ----------------------------------------------------------------------


def second_attempt_out() -> Script:
    """Attempt 1 was declined, the customer gave another card, attempt 2 is out."""
    script = declined()
    script.choose(Act.PAYMENT_METHOD)
    script.send()
    return script


@pytest.mark.parametrize("seen", sorted(set(Seen) - {Seen.SUCCEEDED}))
def test_rule_2_a_late_answer_of_attempt_1_changes_nothing_while_attempt_2_charges(seen: Seen) -> None:
    """A late 402 of attempt 1 is not told to the customer."""
    script = second_attempt_out()
    before = script.charge
    script.answer(seen, key=before.attempts[0].idempotency_key)
    assert script.charge == before


@pytest.mark.parametrize("where", ["open", "declined", "canceled", "paid out of band"])
def test_rule_2_succeeded_of_the_recorded_payment_intent_beats_every_status(where: str) -> None:
    """Final ones included, then with a discrepancy that names what it beat."""
    ways: Ways = {
        "open": second_attempt_out,
        "declined": declined,
        "canceled": lambda: closing(Act.CANCEL),
        "paid out of band": lambda: closing(Act.OUT_OF_BAND),
    }
    script = ways[where]()
    if where in {"canceled", "paid out of band"}:
        script.reply(Seen.CANCELED)
    script.answer(Seen.SUCCEEDED, key=script.charge.attempts[0].idempotency_key)

    assert script.status() is Status.SUCCEEDED
    assert script.charge.succeeded_at == script.now
    assert script.charge.cancel_reason is None
    kinds = {"canceled": ["paid_after_canceled"], "paid out of band": ["paid_after_paid_out_of_band"]}.get(where, [])
    assert [found.kind for found in script.charge.discrepancies] == kinds


def test_rule_2_nothing_leaves_succeeded() -> None:
    """Not another success, not a cancel, a decline, an act, or time."""
    script = answered(Seen.SUCCEEDED)
    before = script.charge
    for seen in Seen:
        script.answer(seen, key=before.attempts[0].idempotency_key)
        if seen in policy.SHOWN:
            script.event(seen)
            script.fetched(seen)
    for act in Act:
        script.choose(act)
    script.wake(60 * DAY)
    script.crash()
    assert script.charge == before
    assert script.step() == Rest()


def test_rule_2_a_late_confirm_answer_about_an_unknown_payment_intent_changes_nothing() -> None:
    """Only a create of ours brings a PaymentIntent that is not recorded."""
    script = declined()
    before = script.charge
    script.answer(Seen.SUCCEEDED, key=before.attempts[0].idempotency_key, name="pi_other")
    assert script.charge == before


# --- Rule 3: unconfirmed settles nothing while an attempt is out ----------------------------------------------------


def test_rule_3_what_attempt_1_left_is_not_the_answer_to_attempt_2() -> None:
    """Attempt 1 left `requires_payment_method`; a GET reads it while attempt 2 is out, and attempt 2 pays."""
    script = second_attempt_out()
    script.answer(Seen.SERVER_ERROR)
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.UNKNOWN
    assert script.charge.open_attempt is not None

    script.reply(Seen.SUCCEEDED, replayed=True)

    assert script.status() is Status.SUCCEEDED


@pytest.mark.parametrize("seen", [Seen.ACTION_REQUIRED, Seen.UNCONFIRMED])
def test_rule_3_what_an_earlier_attempt_left_does_not_swallow_an_attempt_not_yet_sent(seen: Seen) -> None:
    """A retry was wished for; an event comes in before it is sent: it is still sent."""
    script = answered(Seen.ACTION_REQUIRED)
    script.choose(Act.RETRY)
    wished = script.charge.attempts[-1]
    script.fetched(seen)
    assert script.status() is Status.PENDING
    assert script.said.then is Then.GO_ON
    assert script.step() == Send(request=wished)


def test_rule_3_an_attempt_not_yet_sent_waits_for_the_bank() -> None:
    """The customer has just paid by bank debit on session: a confirm is sent only if that fails."""
    script = recorded()
    script.fetched(Seen.PROCESSING)
    assert script.status() is Status.PROCESSING
    script.waited()
    script.look(Seen.PROCESSING)
    assert len(script.sends) == 1
    script.waited()
    script.look(Seen.UNCONFIRMED)
    assert script.status() is Status.PENDING
    assert script.send().operation == "confirm"


# --- Rule 4: an event is evidence about the PaymentIntent that it names ---------------------------------------------


def test_rule_4_an_orphans_canceled_does_not_close_the_charge() -> None:
    """It then pays."""
    script = confirming()
    before = script.charge
    script.event(Seen.CANCELED, name="pi_orphan")
    assert script.charge == before
    script.answer(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


@pytest.mark.parametrize("what", ["account", "livemode"])
def test_rule_4_an_event_of_another_account_or_mode_marks_nothing_as_paid(what: str) -> None:
    """A test-mode event, or one of another connected account, that names our PaymentIntent."""
    script = declined()
    before = script.charge
    if what == "account":
        script.event(Seen.SUCCEEDED, account="acct_other")
    else:
        script.event(Seen.SUCCEEDED, livemode=True)
    assert script.charge == before
    assert script.said.look is None


@pytest.mark.parametrize(
    "shown", [{"amount_received": 1}, {"currency": "jpy"}, {"amount_received": 0}], ids=["amount", "currency", "none"]
)
def test_rule_4_succeeded_of_another_amount_is_looked_at_before_it_is_believed(shown: dict[str, Any]) -> None:
    """And then it is a discrepancy: the money did move."""
    script = confirming()
    script.event(Seen.SUCCEEDED, **shown)
    assert script.status() is Status.PENDING
    assert script.said.look == Fetch(payment_intent=OURS)

    script.fetched(Seen.SUCCEEDED, **shown)

    assert script.status() is Status.SUCCEEDED
    assert [found.kind for found in script.charge.discrepancies] == ["amount_differs"]


@pytest.mark.parametrize(
    "shown",
    [{"amount_received": 1}, {"currency": "jpy"}, {"customer": "cus_2"}],
    ids=["amount", "currency", "customer"],
)
def test_rule_4_money_that_names_a_charge_and_differs_is_only_shown_to_a_person(shown: dict[str, Any]) -> None:
    """Not worth a look by itself; where an audit has read it, somebody must see why."""
    script = declined()
    before = script.charge
    script.event(Seen.SUCCEEDED, name="pi_copy", **shown)
    assert script.said.look is None
    assert script.charge == before
    script.fetched(Seen.SUCCEEDED, name="pi_copy", **shown)
    assert [(found.kind, found.payment_intent) for found in script.charge.discrepancies] == [
        ("unexplained_payment", "pi_copy")
    ]
    assert dataclasses.replace(script.charge, discrepancies=()) == before


@pytest.mark.parametrize("shown", [{"charge_id": None}], ids=["metadata"])
def test_rule_4_copied_metadata_proves_nothing(shown: dict[str, Any]) -> None:
    """Another PaymentIntent succeeded and does not agree in everything: not ours, not even worth a look."""
    script = declined()
    before = script.charge
    script.event(Seen.SUCCEEDED, name="pi_copy", **shown)
    assert script.said.look is None
    script.fetched(Seen.SUCCEEDED, name="pi_copy", **shown)
    assert script.charge == before


def test_rule_4_copied_metadata_is_not_adopted_from_a_list() -> None:
    """Something else was paid with this charge's metadata copied onto it."""
    script = Script()
    script.reply(Seen.NO_REPLY)
    script.now += policy.KEY_HORIZON
    script.listed(intent(script.charge, Seen.SUCCEEDED, "pi_copy", amount=500, amount_received=500))
    assert script.charge.payment_intent is None
    assert script.status() is Status.PENDING


def test_rule_4_another_one_that_paid_is_adopted_where_none_is_recorded() -> None:
    """After a GET has confirmed it."""
    script = Script()
    script.reply(Seen.NO_REPLY)
    script.event(Seen.SUCCEEDED, name="pi_early")
    assert script.charge.payment_intent is None
    assert script.said.look == Fetch(payment_intent="pi_early")

    script.fetched(Seen.SUCCEEDED, name="pi_early")

    assert script.charge.payment_intent == "pi_early"
    assert script.status() is Status.SUCCEEDED


def test_rule_4_another_one_that_paid_stops_the_recorded_one_and_is_recorded_as_a_discrepancy() -> None:
    """Nothing more is sent that could pay; the recorded one is canceled; a person hears of it."""
    script = confirming()
    script.event(Seen.SUCCEEDED, name="pi_other")
    script.fetched(Seen.SUCCEEDED, name="pi_other")
    assert [(found.kind, found.payment_intent) for found in script.charge.discrepancies] == [
        ("paid_elsewhere", "pi_other")
    ]
    request = script.send()
    assert (request.operation, request.payment_intent) == ("cancel", OURS)

    script.answer(Seen.CANCELED)

    assert script.status() is Status.PAID_OUT_OF_BAND
    assert script.charge.payment_intent == OURS


def test_rule_4_the_same_discrepancy_is_recorded_once() -> None:
    """The event comes twice, and so does the look."""
    script = answered(Seen.SUCCEEDED)
    for _ in range(2):
        script.event(Seen.SUCCEEDED, name="pi_other")
        script.fetched(Seen.SUCCEEDED, name="pi_other")
    assert [found.kind for found in script.charge.discrepancies] == ["paid_twice"]
    assert script.status() is Status.SUCCEEDED
    assert script.said.then is Then.REST


def test_rule_4_money_by_another_one_after_a_canceled_charge_is_a_discrepancy() -> None:
    """The recorded one stays canceled; a person hears of the other."""
    script = closing()
    script.reply(Seen.CANCELED)
    script.fetched(Seen.SUCCEEDED, name="pi_other")
    assert script.status() is Status.CANCELED
    assert [found.kind for found in script.charge.discrepancies] == ["paid_elsewhere"]


def test_rule_4_money_for_a_charge_canceled_before_it_had_a_payment_intent_is_told() -> None:
    """None is recorded, so the one that took the money is: nobody is told that it was never paid."""
    script = Script()
    script.reply(Seen.NO_REPLY)
    script.choose(Act.CANCEL)
    assert script.status() is Status.CANCELED
    script.fetched(Seen.SUCCEEDED, name="pi_late")
    assert script.status() is Status.SUCCEEDED
    assert [found.kind for found in script.charge.discrepancies] == ["paid_after_canceled"]


@pytest.mark.parametrize("seen", [Seen.PROCESSING, Seen.ACTION_REQUIRED, Seen.HELD, Seen.UNCONFIRMED])
def test_rule_4_any_other_event_is_only_a_reason_to_look(seen: Seen) -> None:
    """Events arrive late, twice and out of order."""
    script = confirming()
    before = script.charge
    script.event(seen)
    assert script.charge == before
    assert script.said.look == Fetch(payment_intent=OURS)
    script.event(seen, name="pi_other")
    assert script.said.look is None


def test_rule_4_an_event_of_a_final_charge_changes_nothing() -> None:
    """But for `succeeded`, by rule 2."""
    script = closing()
    script.reply(Seen.CANCELED)
    before = script.charge
    for seen in (Seen.CANCELED, Seen.UNCONFIRMED, Seen.PROCESSING):
        script.event(seen)
        assert script.charge == before
        assert script.said.look is None
        script.fetched(seen)
        assert script.charge == before


def test_rule_4_stripes_own_cancel_is_final() -> None:
    """By Stripe, or by somebody at its dashboard."""
    script = declined()
    script.event(Seen.CANCELED)
    assert (script.status(), script.charge.cancel_reason) == (Status.CANCELED, CancelReason.BY_STRIPE)


# --- Rule 6: an orphan has a charge with another one recorded, or a final one ---------------------------------------


def test_rule_6_a_payment_intent_between_steps_2_and_3_is_no_orphan() -> None:
    """Two creates, because the first seemed dead: whichever answers first is recorded, not canceled."""
    script = Script()
    first = script.send().idempotency_key
    script.answer(Seen.SERVER_ERROR, replayed=True)
    script.listed()
    script.send()
    script.answer(Seen.UNCONFIRMED, key=first, name="pi_slow")
    assert script.charge.payment_intent == "pi_slow"
    assert list(script.charge.orphans) == []

    script.answer(Seen.UNCONFIRMED, key=f"pio-{script.charge.id}-create-2", name="pi_second")

    assert script.charge.payment_intent == "pi_slow"
    assert list(script.charge.orphans) == ["pi_second"]
    orphan = script.send()
    assert (orphan.operation, orphan.payment_intent) == ("cancel", "pi_second")
    script.answer(Seen.CANCELED)
    assert script.charge.orphans == ()
    assert script.send().payment_intent == "pi_slow"


def test_rule_6_the_same_create_answered_twice_makes_no_orphan() -> None:
    """Two deliveries asked; both got the one PaymentIntent there is."""
    script = recorded()
    before = script.charge
    script.answer(Seen.UNCONFIRMED, key=before.create.idempotency_key)
    assert script.charge == before


def test_rule_6_a_slow_create_of_a_canceled_charge_is_canceled() -> None:
    """It is final, so what still comes of it is an orphan; and it is one only once."""
    script = Script()
    script.send()
    script.choose(Act.CANCEL)
    for _ in range(2):
        script.answer(Seen.UNCONFIRMED, key=script.charge.create.idempotency_key, name="pi_slow")
        assert script.charge.orphans == ("pi_slow",)
    assert script.status() is Status.CANCELED
    assert script.send().payment_intent == "pi_slow"
    script.answer(Seen.CANCELED)
    assert script.charge.orphans == ()
    assert script.step() == Rest()


def test_rule_6_an_orphan_is_not_forgotten_when_another_one_is_adopted() -> None:
    """Canceled early, a slow create to clean up, and money that another PaymentIntent had taken."""
    script = Script()
    script.send()
    script.choose(Act.CANCEL)
    script.answer(Seen.UNCONFIRMED, key=script.charge.create.idempotency_key, name="pi_slow")
    script.fetched(Seen.SUCCEEDED, name="pi_paid")
    assert script.charge.payment_intent == "pi_paid"
    assert script.send().payment_intent == "pi_slow"


def test_rule_6_an_orphan_that_turns_out_to_have_been_paid_is_no_orphan() -> None:
    """It took the money of a charge that had none recorded: it is not canceled."""
    script = Script()
    script.send()
    script.choose(Act.CANCEL)
    script.answer(Seen.UNCONFIRMED, key=script.charge.create.idempotency_key, name="pi_slow")
    script.fetched(Seen.SUCCEEDED, name="pi_slow")
    assert script.charge.payment_intent == "pi_slow"
    assert script.charge.orphans == ()
    assert script.status() is Status.SUCCEEDED


@pytest.mark.parametrize("seen", [Seen.NO_REPLY, Seen.KEY_IN_USE, Seen.LIMITED, Seen.SERVER_ERROR, Seen.UNAUTHORIZED])
def test_rule_6_an_orphan_is_canceled_before_anything_is_confirmed(seen: Seen) -> None:
    """However often that takes."""
    script = orphaned()
    script.reply(seen)
    assert script.charge.orphans == ("pi_old",)
    assert (script.status() is Status.BLOCKED) == (seen is Seen.UNAUTHORIZED)
    script.waited()
    assert script.send().payment_intent == "pi_old"
    script.answer(Seen.CANCELED)
    assert script.send().operation == "confirm"


@pytest.mark.parametrize("shown", [Seen.UNCONFIRMED, Seen.ACTION_REQUIRED, Seen.HELD])
@pytest.mark.parametrize("seen", [Seen.UNEXPECTED_STATE, Seen.INVALID, Seen.SERVER_ERROR])
def test_rule_6_an_orphan_that_cannot_be_canceled_is_shown_to_a_person(seen: Seen, shown: Seen) -> None:
    """It is read first, for it may be paid. It is not: a discrepancy, not a loop; and then the charge goes on."""
    script = refused(seen)
    script.look(shown)
    assert script.charge.orphans == ()
    assert [(found.kind, found.payment_intent) for found in script.charge.discrepancies] == [
        ("orphan_not_canceled", "pi_old")
    ]
    assert (script.send().operation, script.charge.payment_intent) == ("confirm", "pi_new")


def test_rule_6_an_orphan_that_was_paid_before_its_cancel_ends_the_charge() -> None:
    """Nothing is confirmed on top of it; what there is to be told is not that somebody should cancel it."""
    script = refused()
    script.look(Seen.SUCCEEDED)
    assert (script.charge.orphans, script.charge.orphans_refused) == ((), ())
    assert script.charge.closing is not None
    assert script.charge.closing.kind == "paid_elsewhere"
    script.reply(Seen.CANCELED)
    assert script.status() is Status.PAID_OUT_OF_BAND
    assert [(found.kind, found.payment_intent) for found in script.charge.discrepancies] == [
        ("paid_elsewhere", "pi_old")
    ]
    assert not any("-confirm-" in key for key, _ in script.sends)


def test_rule_6_an_orphan_that_the_bank_works_on_holds_everything_up() -> None:
    """It is read again and again; nothing is confirmed meanwhile, and nothing is closed."""
    script = refused()
    for _ in range(3):
        assert script.look(Seen.PROCESSING).then is Then.LATER
        script.waited()
        script.choose(Act.CANCEL)
    assert not script.charge.final
    script.look(Seen.CANCELED)
    assert script.charge.discrepancies == ()
    assert script.send().payment_intent == "pi_new"


def test_rule_6_an_orphan_that_was_canceled_already_is_no_discrepancy() -> None:
    """The answer to the first cancel was lost, and Stripe refuses the second."""
    script = refused()
    script.look(Seen.CANCELED)
    assert script.charge.orphans == ()
    assert script.charge.discrepancies == ()
    assert script.send().operation == "confirm"


def test_rule_6_the_same_refusal_twice_is_one() -> None:
    """Two deliveries sent the same cancel."""
    script = refused()
    before = script.charge
    script.answer(Seen.UNEXPECTED_STATE)
    assert script.charge == before


@pytest.mark.parametrize("seen", [Seen.MISSING_PAYMENT_INTENT, Seen.INVALID])
def test_rule_6_an_orphan_that_stripe_does_not_know_is_shown_to_a_person(seen: Seen) -> None:
    """It cannot be paid, nor read again."""
    script = refused()
    script.look_failed(seen)
    assert script.charge.orphans == ()
    assert [found.kind for found in script.charge.discrepancies] == ["orphan_not_canceled"]
    assert script.send().operation == "confirm"


@pytest.mark.parametrize("seen", [Seen.NO_REPLY, Seen.SERVER_ERROR, Seen.LIMITED, Seen.MISSING_OBJECT])
def test_rule_6_an_orphan_that_cannot_be_read_is_read_before_anything_is_confirmed(seen: Seen) -> None:
    """However long that takes; where the account is gone, its owner is asked."""
    script = refused()
    script.look_failed(seen)
    assert (script.status() is Status.BLOCKED) == (seen is Seen.MISSING_OBJECT)
    script.waited()
    script.look(Seen.SUCCEEDED)
    assert script.charge.closing is not None


def test_rule_6_an_orphan_that_is_paid_after_it_was_shown_to_a_person_is_seen_all_the_same() -> None:
    """That its cancel was refused says nothing of its money; and nobody has to cancel it any more."""
    script = refused()
    script.look(Seen.UNCONFIRMED)
    assert script.event(Seen.SUCCEEDED, name="pi_old").look is not None
    script.fetched(Seen.SUCCEEDED, name="pi_old")
    assert [(found.kind, bool(found.settled)) for found in script.charge.discrepancies] == [
        ("orphan_not_canceled", True),
        ("paid_elsewhere", False),
    ]
    assert script.event(Seen.SUCCEEDED, name="pi_old").look is None


def test_rule_6_a_paid_orphan_is_canceled_no_more() -> None:
    """An event was quicker than its cancel."""
    script = orphaned()
    script.event(Seen.SUCCEEDED, name="pi_old")
    script.fetched(Seen.SUCCEEDED, name="pi_old")
    assert script.charge.orphans == ()
    assert script.send().payment_intent == "pi_new"


@pytest.mark.parametrize("late", [False, True])
def test_rule_6_a_paid_orphan_that_comes_back_late_is_left_at_once(late: bool) -> None:
    """A look that was under way for long calls it an orphan again; its money is known already."""
    script = refused()
    script.look(Seen.SUCCEEDED)
    found = script.charge.discrepancies
    script.fetched(Seen.UNCONFIRMED, name="pi_old", body_digest="digest")
    assert script.charge.orphans == ("pi_old",)
    if late:
        script.reply(Seen.UNEXPECTED_STATE)
        script.look(Seen.SUCCEEDED)
    else:
        script.fetched(Seen.SUCCEEDED, name="pi_old")
    assert list(script.charge.orphans) == []
    assert script.charge.discrepancies == found
    assert script.said.then is Then.GO_ON


def test_rule_6_a_paid_orphan_with_another_amount_is_shown_to_a_person() -> None:
    """Or that names no charge any more: somebody has edited it."""
    script = refused()
    script.look(Seen.SUCCEEDED, charge_id=None)
    assert script.charge.orphans == ()
    assert [found.kind for found in script.charge.discrepancies] == ["unexplained_payment"]


def test_rule_6_an_orphan_whose_account_is_gone_is_read_once_a_day() -> None:
    """A final charge waits for it as long as it takes."""
    script = Script()
    script.send()
    script.choose(Act.CANCEL)
    script.answer(Seen.UNCONFIRMED, key=script.charge.create.idempotency_key, name="pi_slow")
    script.reply(Seen.MISSING_OBJECT)
    assert script.look_failed(Seen.MISSING_OBJECT).wait == policy.LOOK_EVERY
    assert script.charge.orphans == ("pi_slow",)
    assert script.charge.discrepancies == ()


def test_rule_6_a_final_charge_comes_back_for_an_orphan_by_itself() -> None:
    """An unconfirmed orphan moves no money, so it has time; it is canceled all the same."""
    script = Script()
    script.send()
    script.choose(Act.CANCEL)
    script.answer(Seen.UNCONFIRMED, key=script.charge.create.idempotency_key, name="pi_slow")
    assert script.reply(Seen.NO_REPLY).then is Then.LATER
    assert policy.due_at(script.charge, script.now, None) is not None
    assert script.wake(HOUR).then is Then.GO_ON
    assert script.send().payment_intent == "pi_slow"


def orphaned() -> Script:
    """A list has shown two; the newer is recorded, the older waits to be canceled."""
    script = listing()
    script.listed(
        intent(script.charge, Seen.UNCONFIRMED, "pi_old"),
        intent(script.charge, Seen.UNCONFIRMED, "pi_new", created=START + SECOND),
    )
    return script


def refused(seen: Seen = Seen.UNEXPECTED_STATE) -> Script:
    """Its cancel has been refused."""
    script = orphaned()
    script.reply(seen, replayed=True)
    assert script.charge.orphans == ("pi_old",)
    return script


# --- Finding a PaymentIntent that no answer has named ---------------------------------------------------------------


def listing() -> Script:
    """The create had no answer, and its key is past its horizon."""
    script = Script()
    script.reply(Seen.NO_REPLY)
    script.now += policy.KEY_HORIZON
    assert isinstance(script.step(), List)
    return script


def test_past_the_horizon_a_create_is_never_sent_again_under_its_key() -> None:
    """The customer's PaymentIntents since the charge was made are listed; none is ours: create anew."""
    script = listing()
    script.listed()
    assert script.send().idempotency_key == f"pio-{script.charge.id}-create-2"


def test_a_payment_intent_that_a_list_finds_is_recorded_first_the_others_canceled_then_it_is_confirmed() -> None:
    """In this order, so that no crash in between leaves two that could pay."""
    script = orphaned()
    assert script.charge.payment_intent == "pi_new"
    assert script.charge.orphans == ("pi_old",)
    script.reply(Seen.CANCELED)
    request = script.send()
    assert (request.operation, request.payment_intent) == ("confirm", "pi_new")


def test_two_that_succeeded_are_a_discrepancy() -> None:
    """One is recorded, a person hears of the other."""
    script = listing()
    script.listed(
        intent(script.charge, Seen.SUCCEEDED, "pi_1"),
        intent(script.charge, Seen.SUCCEEDED, "pi_2", created=START + SECOND),
    )
    assert script.status() is Status.SUCCEEDED
    assert [(found.kind, found.payment_intent) for found in script.charge.discrepancies] == [("paid_twice", "pi_1")]


def test_one_that_our_closing_canceled_closes_the_charge_and_an_orphan_does_not() -> None:
    """The reason that Stripe keeps tells them apart."""
    script = listing()
    script.listed(intent(script.charge, Seen.CANCELED, cancellation_reason="duplicate"))
    assert script.charge.payment_intent is None
    assert script.status() is Status.PENDING

    script = listing()
    script.listed(intent(script.charge, Seen.CANCELED, cancellation_reason="requested_by_customer"))
    assert script.status() is Status.CANCELED


def test_a_paid_one_is_found_while_live_ones_are_canceled() -> None:
    """Succeeded, and still an orphan to cancel: it is final, and goes on."""
    script = listing()
    script.listed(
        intent(script.charge, Seen.SUCCEEDED, "pi_1"),
        intent(script.charge, Seen.UNCONFIRMED, "pi_2", created=START + SECOND),
    )
    assert script.status() is Status.SUCCEEDED
    assert script.said.then is Then.GO_ON
    assert script.send().payment_intent == "pi_2"


@pytest.mark.parametrize("shown", [{"livemode": True}, {"charge_id": "another"}], ids=["mode", "charge"])
def test_a_list_adopts_nothing_that_is_not_ours(shown: dict[str, Any]) -> None:
    """Another mode or another charge's."""
    script = listing()
    script.listed(intent(script.charge, Seen.SUCCEEDED, "pi_other", **shown))
    assert script.charge.payment_intent is None
    assert script.status() is Status.PENDING


def test_a_stranger_of_the_same_customer_and_amount_blocks_the_charge() -> None:
    """No metadata, the same customer, amount and currency: it may be the payment. A person looks, daily so do we."""
    script = listing()
    script.listed(intent(script.charge, Seen.SUCCEEDED, "pi_stranger", charge_id=None))
    assert script.status() is Status.BLOCKED
    assert [(found.kind, found.payment_intent) for found in script.charge.discrepancies] == [
        ("unexplained_payment_intent", "pi_stranger")
    ]
    assert script.said.wait == policy.LOOK_EVERY
    script.waited()
    script.listed(intent(script.charge, Seen.SUCCEEDED, "pi_stranger", charge_id=None))
    assert script.status() is Status.BLOCKED
    assert len(script.charge.discrepancies) == 1

    script.choose(Act.RETRY)

    assert script.send().idempotency_key == f"pio-{script.charge.id}-create-2"


@pytest.mark.parametrize(
    "shown", [{"amount": 1}, {"customer": "cus_2"}, {"currency": "jpy"}, {"seen": Seen.CANCELED}], ids=str
)
def test_a_stranger_that_cannot_be_the_payment_blocks_nothing(shown: dict[str, Any]) -> None:
    """Another amount, customer or currency, or canceled."""
    script = listing()
    seen = shown.pop("seen", Seen.SUCCEEDED)
    assert isinstance(seen, Seen)
    script.listed(intent(script.charge, seen, "pi_stranger", charge_id=None, **shown))
    assert script.status() is Status.PENDING


def test_a_stranger_matters_only_once_our_own_key_is_gone() -> None:
    """A replayed 500 an hour ago: the list is for what we made; what a stranger paid is its own affair."""
    script = Script()
    script.reply(Seen.SERVER_ERROR, replayed=True)
    script.listed(intent(script.charge, Seen.SUCCEEDED, "pi_stranger", charge_id=None))
    assert script.status() is Status.PENDING
    assert isinstance(script.step(), Send)


def test_a_list_that_an_older_record_asked_for_makes_no_new_key() -> None:
    """Another delivery has meanwhile sent the next create: its key may still answer."""
    script = Script()
    script.reply(Seen.SERVER_ERROR, replayed=True)
    script.listed()
    script.send()
    before = script.charge
    script.observe(nothing_listed())
    assert script.charge == before
    script.answer(Seen.UNCONFIRMED)
    script.observe(nothing_listed())
    assert script.charge.payment_intent == OURS


def nothing_listed() -> Listed:
    """An empty list."""
    return Listed(payment_intents=())


def test_a_refused_list_blocks_and_is_repeated_once_mended() -> None:
    """By itself, every ten minutes; and an operator's retry lists before it creates."""
    script = Script()
    script.reply(Seen.SERVER_ERROR, replayed=True)
    script.look_failed(Seen.UNAUTHORIZED)
    assert script.status() is Status.BLOCKED
    assert policy.due_at(script.charge, script.now, None) == script.now + policy.BLOCKED_WAIT
    script.waited()
    script.choose(Act.RETRY)
    script.listed(intent(script.charge))
    assert script.charge.payment_intent == OURS


def test_a_refused_create_waits_for_an_act_and_gets_the_next_key() -> None:
    """S7: the card is gone; the customer gives another one."""
    script = Script()
    script.reply(Seen.MISSING_OBJECT)
    assert script.step() == Rest()
    script.wake(HOUR)
    assert script.step() == Rest()
    script.choose(Act.PAYMENT_METHOD)
    request = script.send()
    assert request.idempotency_key == f"pio-{script.charge.id}-create-2"
    assert '"payment_method": "pm_other"' in request.parameters


def test_a_blocked_create_takes_no_other_card_before_its_key_is_settled() -> None:
    """What it may have made is found first."""
    script = Script()
    script.reply(Seen.UNAUTHORIZED)
    assert Act.PAYMENT_METHOD not in policy.options(script.charge)
    script.choose(Act.RETRY)
    assert script.send().idempotency_key == script.sends[0][0]


# --- Rule 7: the definite no ----------------------------------------------------------------------------------------


def test_rule_7_a_charge_given_up_before_it_existed_can_never_be_charged() -> None:
    """The insert was lost, the caller pays elsewhere: the key is taken, for ever."""
    charge = policy.never_charge(
        charge_id=opened().id, idempotency_key="order-1001", account=None, livemode=False, generation=2, now=START
    )
    assert (charge.id, charge.generation) == (opened().id, 2)
    assert charge.version > policy.GENERATION_APART  # Newer than all that was told of it before a restore.
    assert (charge.status, charge.cancel_reason, charge.due_at) == (Status.CANCELED, CancelReason.REQUESTED, None)
    script = Script(charge)
    assert script.step() == Rest()
    script.wake(DAY)
    assert script.step() == Rest()
    for act in (Act.RETRY, Act.PAYMENT_METHOD, Act.OUT_OF_BAND):
        assert script.choose(act).refusal is not None
    assert script.choose(Act.CANCEL).refusal is None
    assert script.charge == charge


# --- The same observation twice -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", list(Seen))
@pytest.mark.parametrize("replayed", [False, True], ids=["fresh", "replayed"])
def test_the_same_answer_twice_changes_nothing_the_second_time(seen: Seen, replayed: bool) -> None:
    """Two deliveries bring it."""
    script = confirming()
    key = script.sends[-1][0]
    script.answer(seen, key=key, replayed=replayed)
    after = script.charge
    script.answer(seen, key=key, replayed=replayed)
    assert script.charge == after


@pytest.mark.parametrize("seen", sorted(policy.SHOWN))
@pytest.mark.parametrize("where", ["confirming", "looking", "burnt", "declined", "processing", "closing"])
def test_the_same_event_twice_changes_nothing_the_second_time(seen: Seen, where: str) -> None:
    """Applied twice, written once; and so is the look that it calls for."""
    ways: Ways = {
        "confirming": confirming,
        "looking": lambda: answered(Seen.SERVER_ERROR),
        "burnt": burnt,
        "declined": declined,
        "processing": lambda: answered(Seen.PROCESSING),
        "closing": closing,
    }
    script = ways[where]()
    script.event(seen)
    script.fetched(seen)
    after = script.charge
    script.event(seen)
    script.fetched(seen)
    assert script.charge == after


def test_the_history_tells_each_change_of_status_once_and_by_whom() -> None:
    """What happened, in words, in order."""
    script = confirming()
    script.answer(Seen.NO_REPLY)
    script.answer(Seen.NO_REPLY)
    script.waited()
    script.reply(Seen.DECLINED, error=CARD_DECLINED)
    script.choose(Act.RETRY)
    script.reply(Seen.SERVER_ERROR)
    script.look_failed(Seen.UNAUTHORIZED)
    script.event(Seen.SUCCEEDED)
    key = f"pio-{script.charge.id}-g1-confirm"
    assert [(entry.what, str(entry.status), entry.actor) for entry in script.charge.history] == [
        ("created", "pending", "caller"),
        (f"{key}-1: no_reply", "unknown", "system"),
        (f"{key}-1: declined", "declined", "system"),
        ("retry", "pending", "customer"),
        (f"{key}-2: server_error", "unknown", "system"),
        ("look failed: unauthorized", "blocked", "system"),
        ("payment_intent.succeeded of pi_ours", "succeeded", "system"),
    ]


def test_the_history_names_looks_lists_time_and_exceptions_too() -> None:
    """Whatever moved the charge."""
    script = Script()
    script.reply(Seen.NO_REPLY)
    script.now += policy.KEY_HORIZON
    script.listed(intent(script.charge, Seen.PROCESSING))
    script.fetched(Seen.UNCONFIRMED)
    script.choose(Act.RETRY)
    script.send()
    script.wake(timedelta(0))
    for _ in range(policy.CRASHES_LIMIT):
        script.crash()
    assert [entry.what for entry in script.charge.history] == [
        "created",
        "listed: pi_ours",
        "pi_ours read: unconfirmed",
        "retry",
        "time passed",
        "exception: KeyError",
    ]
    assert LIMITS.lease < HOUR
    none = changed(Script(), closing=closing().charge.closing)
    none.listed()
    assert none.charge.history[-1].what == "listed: none"


# --- Three locks ----------------------------------------------------------------------------------------------------


def test_the_parameters_are_frozen_with_the_charge() -> None:
    """Every field that the caller agreed to, in the create; card and absence of the customer, in the confirm."""
    script = Script(
        description="order 1001",
        metadata={"order": "1001"},
        account="acct_1",
        application_fee_amount=100,
        transfer_data={"destination": "acct_2"},
        on_behalf_of="acct_3",
        statement_descriptor_suffix="ORDER",
        receipt_email="a@example.com",
    )
    create = script.send()
    assert create.parameters == (
        '{"amount": 1999, "currency": "usd", "customer": "cus_1", "payment_method": "pm_card",'
        ' "automatic_payment_methods": {"enabled": true, "allow_redirects": "never"},'
        ' "description": "order 1001", "application_fee_amount": 100, "transfer_data": {"destination": "acct_2"},'
        ' "on_behalf_of": "acct_3", "statement_descriptor_suffix": "ORDER", "receipt_email": "a@example.com",'
        f' "metadata": {{"order": "1001", "pio_charge": "{script.charge.id}", "pio_key": "order-1001",'
        ' "pio_body": "digest"}}'
    )
    assert "confirm" not in create.parameters
    script.answer(Seen.UNCONFIRMED)
    confirm = script.send()
    assert confirm.parameters == '{"payment_method": "pm_card", "off_session": true}'
    assert confirm.payment_intent == OURS
    assert (create.api_version, confirm.api_version) == ("2026-10-28.endive", "2026-10-28.endive")


@pytest.mark.parametrize("seen", [Seen.SUCCEEDED, Seen.PROCESSING, Seen.CANCELED, Seen.UNCONFIRMED])
@pytest.mark.parametrize("where", ["confirming", "declined", "succeeded", "closing"])
def test_a_list_that_comes_too_late_never_replaces_the_recorded_payment_intent(seen: Seen, where: str) -> None:
    """Two deliveries listed; the slower one finds another PaymentIntent recorded: that one, for ever."""
    ways: Ways = {
        "confirming": confirming,
        "declined": declined,
        "succeeded": lambda: answered(Seen.SUCCEEDED),
        "closing": closing,
    }
    script = ways[where]()
    before = script.charge
    script.observe(Listed(payment_intents=(intent(script.charge, seen, "pi_better", created=START + DAY),)))
    assert script.charge == before


def test_keys_are_derived_from_the_charge_and_never_random() -> None:
    """The same charge asks for the same keys, whichever process asks."""
    name = opened().id
    script = declined()
    assert [key for key, _ in script.sends] == [f"pio-{name}-create-1", f"pio-{name}-g1-confirm-1"]
    script = closing()
    assert script.send().idempotency_key == f"pio-{name}-cancel-1"
    assert orphaned().send().idempotency_key == f"pio-{name}-orphan-pi_old"


def test_a_charge_confirms_its_recorded_payment_intent_for_ever() -> None:
    """Ten attempts, one PaymentIntent: whatever the keys do, one of them can succeed."""
    script = recorded()
    for _ in range(10):
        script.reply(Seen.DECLINED)
        script.choose(Act.PAYMENT_METHOD)
    assert {attempt.payment_intent for attempt in script.charge.attempts} == {OURS}


def test_an_answer_to_a_key_that_no_charge_of_ours_has_changes_nothing() -> None:
    """It is no request of this charge."""
    script = confirming()
    before = script.charge
    script.observe(Answered(idempotency_key="somebody-elses", seen=Seen.DECLINED))
    assert script.charge == before


@pytest.mark.parametrize(
    ("more", "is_sent"),
    [({}, True), ({"amount_refunded": AMOUNT}, False), ({"amount_refunded": 1}, False), ({"disputed": True}, False)],
    ids=["kept", "refunded", "refunded in part", "disputed"],
)
def test_what_another_took_is_given_back_while_the_recorded_one_keeps_its_money(
    more: dict[str, Any], *, is_sent: bool
) -> None:
    """Who has had the one back, from us or from the bank, does not get the other as well."""
    script = answered(Seen.SUCCEEDED)
    script.fetched(Seen.SUCCEEDED, name="pi_extra")
    assert script.step() == Fetch(payment_intent=OURS, with_charges=True)
    paid = intent(script.charge, Seen.SUCCEEDED)
    script.observe(Fetched(payment_intent=paid))  # Somebody else's look, that did not read its charges.
    assert script.step() == Fetch(payment_intent=OURS, with_charges=True)
    script.observe(Fetched(payment_intent=paid, **{"amount_refunded": 0, **more}))
    assert isinstance(script.step(), Send) is is_sent
    assert script.charge.done is not is_sent


def test_a_try_a_day_is_a_try_a_day() -> None:
    """Each is sent a little late; the next one is not passed over for that, however strict live mode is."""
    charge = dataclasses.replace(opened(retry="schedule"), livemode=True)
    script = Script(charge, limits=policy.Limits(retry_schedule=(DAY, 2 * DAY, 3 * DAY)))
    script.reply(Seen.UNCONFIRMED)
    script.reply(Seen.DECLINED, error=CARD_DECLINED)
    while script.status() is Status.RETRYING:
        assert script.charge.next_attempt_at is not None
        script.wake(script.charge.next_attempt_at - script.now + MINUTE)
        script.reply(Seen.DECLINED, error=CARD_DECLINED)
    assert [(at - START) // DAY for key, at in script.sends if "-confirm-" in key] == [0, 1, 2, 3]


def test_an_orphan_of_a_declined_charge_is_not_left_until_the_charge_expires() -> None:
    """The task that is to cancel it may be lost; until then the customer may pay by it."""
    script = declined()
    script.fetched(Seen.ACTION_REQUIRED, name="pi_old", body_digest="digest")
    assert script.status() is Status.DECLINED
    assert script.charge.orphans == ("pi_old",)
    assert policy.due_at(script.charge, script.now, None) == script.now + policy.LAST_WAIT

"""Rule 9: what a charge of a restored ledger may do, and when."""

import dataclasses
from datetime import datetime, timedelta
from typing import Any

import pytest

from shared import policy
from shared.charge import (
    Act,
    Audience,
    Charge,
    Compared,
    Failure,
    Fetched,
    PaymentIntent,
    Seen,
    Standing,
    Status,
    Terms,
)
from shared.policy import Fetch, List, Send, Then
from tests.script import (
    AMOUNT,
    CARD_DECLINED,
    DAY,
    HOUR,
    OURS,
    Script,
    answered,
    confirming,
    declined,
    intent,
    opened,
    recorded,
)

GENERATION = 2


def restored(script: Script, after: timedelta = HOUR) -> Script:
    """Restore the ledger to where the script stands, and reopen it a while later."""
    script.now += after
    script.charge = policy.restored(script.charge, generation=GENERATION, lost_since=script.now - DAY, now=script.now)
    return script


def recover(*intents: PaymentIntent, lost_since: datetime | None = None, at: timedelta = HOUR) -> Charge:
    """Make the charge that Stripe shows and the ledger has forgotten."""
    terms = Terms(amount=AMOUNT, currency="usd", customer="cus_1", payment_method="pm_card")
    return policy.recovered(
        intents,
        terms=terms,
        generation=GENERATION,
        api_version="v",
        now=opened().created_at + at,
        reaches=frozenset(Audience),
        lost_since=lost_since,
    )


def test_a_key_of_the_lost_time_is_not_sent_again_to_explain_what_a_look_showed() -> None:
    """The customer fails at the bank: that is told once no key of that time can act any more."""
    script = confirming()
    script.answer(Seen.NO_REPLY)
    script.fetched(Seen.ACTION_REQUIRED)
    restored(script)
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.UNKNOWN
    assert isinstance(script.step(), Fetch)


def test_a_key_of_the_lost_time_is_never_sent_again() -> None:
    """What the record calls out may have been answered since, and another attempt been made."""
    script = restored(confirming())
    old = script.charge.attempts[0]
    assert old.standing is Standing.BURNT
    script.now += script.limits.quarantine
    script.look(Seen.UNCONFIRMED)
    new = script.charge.attempts[-1]
    assert new.idempotency_key.endswith("-g2-confirm-2")
    assert isinstance(script.step(), Fetch)


def test_nothing_is_confirmed_before_the_horizon_has_passed_since_the_restore() -> None:
    """Then the old keys are gone, and the new one is good."""
    script = restored(confirming())
    reopened = script.now
    script.now += script.limits.quarantine
    while script.now < reopened + policy.KEY_HORIZON:
        assert isinstance(script.step(), Fetch)
        script.look(Seen.UNCONFIRMED)
        script.now += HOUR
    step = script.step()
    assert isinstance(step, Send)
    assert step.request.operation == "confirm"


def test_no_decline_is_told_before_the_keys_life_is_over() -> None:
    """Another card may have been tried in the lost time, and may still pay."""
    script = restored(declined())
    reopened = script.now
    assert script.status() is Status.UNKNOWN
    while script.now < reopened + policy.KEY_LIFE:
        script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
        assert script.status() is Status.UNKNOWN
        script.wake(HOUR)
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.DECLINED


def test_what_was_declined_in_the_lost_time_is_not_tried_again_by_itself() -> None:
    """Somebody may have been told so: a success after that would make it a lie."""
    script = restored(confirming())
    script.now += policy.KEY_LIFE + HOUR
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.DECLINED
    assert len(script.charge.attempts) == 1


def test_money_that_moved_in_the_lost_time_is_recorded_at_once() -> None:
    """Stripe's word beats all waiting."""
    script = restored(confirming())
    script.fetched(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


def test_a_charge_without_a_payment_intent_is_looked_for_since_the_lost_time_began() -> None:
    """And created anew under another key if there is none; it may have been given up in the lost time, so it waits."""
    script = Script()
    script.send()
    restored(script, DAY)
    step = script.step()
    assert isinstance(step, List)
    assert step.since < script.charge.created_at
    script.listed()
    assert script.send().idempotency_key.endswith("-create-2")
    script.answer(Seen.UNCONFIRMED, created=script.now)
    assert script.status() is Status.UNKNOWN
    assert isinstance(script.step(), Fetch)
    script.now += policy.KEY_HORIZON
    assert isinstance(script.step(), Send)


def test_one_that_is_found_is_held_back() -> None:
    """It was made in the lost time, and may have been confirmed in it."""
    script = Script()
    script.send()
    restored(script, DAY)
    script.listed(intent(script.charge))
    assert script.charge.payment_intent == OURS
    assert script.status() is Status.UNKNOWN
    assert isinstance(script.step(), Fetch)


def test_one_that_is_found_declined_waits_for_the_doubt_to_end() -> None:
    """No attempt is opened for it by us."""
    script = Script()
    script.send()
    restored(script, DAY)
    script.listed(intent(script.charge, last_error=CARD_DECLINED))
    assert (script.status(), script.charge.attempts) == (Status.UNKNOWN, ())
    script.wake(policy.KEY_LIFE)
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.DECLINED
    assert script.charge.last_error == CARD_DECLINED


def test_a_closing_lists_first_once_the_ledger_was_restored() -> None:
    """Rule 5: without a PaymentIntent it is closed directly only if none can be there."""
    script = Script()
    script.send()
    restored(script)
    script.choose(Act.CANCEL)
    assert not script.charge.final
    assert isinstance(script.step(), List)
    script.listed()
    assert script.status() is Status.CANCELED


def test_a_new_charge_is_looked_for_before_it_is_created() -> None:
    """For 31 days: it may be one that the ledger has forgotten."""
    now = opened().created_at
    script = Script(policy.after_restore(opened(), restored_at=now - DAY, lost_since=now - 3 * DAY))
    step = script.step()
    assert isinstance(step, List)
    assert step.since < now - 3 * DAY
    script.listed()
    script.reply(Seen.UNCONFIRMED, created=script.now)
    assert script.charge.restored_at is None
    assert isinstance(script.step(), Send)


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.PAID_OUT_OF_BAND, Status.CANCELED])
def test_what_is_final_stays_as_it_is(status: Status) -> None:
    """But for the generation, and the version, which is above all that the lost time may have told."""
    script = recorded()
    script.charge = dataclasses.replace(script.charge, status=status, due_at=None)
    before = script.charge
    restored(script)
    lifted = policy.GENERATION_APART * (GENERATION - 1)
    assert script.charge == dataclasses.replace(before, generation=GENERATION, version=lifted)


def test_what_is_blocked_until_somebody_acts_stays_so() -> None:
    """Its last answer is known; whoever mends it says so."""
    script = restored(answered(Seen.INVALID))
    assert script.status() is Status.BLOCKED
    assert script.charge.attempts[0].standing is Standing.SETTLED


# --- Charges that the ledger has forgotten ----------------------------------------------------------------------------


def test_a_paid_payment_intent_makes_a_charge_that_is_paid() -> None:
    """With a Discrepancy that says where it came from."""
    charge = recover(intent(opened(), Seen.SUCCEEDED))
    assert (charge.status, charge.payment_intent, charge.amount_received) == (Status.SUCCEEDED, OURS, AMOUNT)
    assert [(one.kind, one.settled) for one in charge.discrepancies] == [
        ("paid_without_charge", "the charge was recovered")
    ]


def test_an_open_one_makes_a_charge_that_waits_for_the_lost_time_to_pass() -> None:
    """It was in hand; nobody has given it up."""
    now = opened().created_at
    charge = recover(intent(opened()), lost_since=now - DAY)
    assert charge.status is Status.UNKNOWN
    assert charge.restored_at == now + HOUR
    assert policy.next_step(charge, now + DAY - HOUR) == Fetch(payment_intent=OURS)
    assert isinstance(policy.next_step(charge, now + DAY), Send)


@pytest.mark.parametrize("reason", ["requested_by_customer", "duplicate", None])
def test_canceled_ones_make_a_charge_that_is_canceled(reason: str | None) -> None:
    """Whyever: it is not charged again."""
    charge = recover(intent(opened(), Seen.CANCELED, cancellation_reason=reason), lost_since=opened().created_at)
    assert charge.status is Status.CANCELED


def test_of_two_the_paid_one_is_recorded_and_the_other_is_an_orphan() -> None:
    """As from any list."""
    old: dict[str, Any] = {"created": opened().created_at - HOUR}
    charge = recover(intent(opened(), name="pi_old", **old), intent(opened(), Seen.SUCCEEDED))
    assert (charge.payment_intent, charge.orphans) == (OURS, ("pi_old",))
    assert not charge.done


# --- Corners of the refund and the audit ------------------------------------------------------------------------------


def twice_paid() -> Script:
    """Paid, and paid once more by another PaymentIntent; the recorded one has been looked at."""
    script = answered(Seen.SUCCEEDED)
    script.fetched(Seen.SUCCEEDED, name="pi_extra")
    script.observe(Fetched(payment_intent=intent(script.charge, Seen.SUCCEEDED), amount_refunded=0))
    return script


def test_a_refund_that_fails_is_for_a_person() -> None:
    """It is not asked for again."""
    script = twice_paid()
    script.reply(Seen.REFUND_FAILED, error=Failure(message="expired_or_canceled_card"))
    assert {one.kind for one in script.charge.discrepancies} == {"paid_twice", "refund_failed"}
    assert script.charge.done


@pytest.mark.parametrize("sent", [False, True], ids=["look", "refund"])
def test_an_account_that_is_gone_settles_no_refund(sent: bool) -> None:
    """It says nothing of any payment; once a day it is asked again, and once it is back, the money is given back."""
    script = twice_paid() if sent else answered(Seen.SUCCEEDED)
    if not sent:
        script.fetched(Seen.SUCCEEDED, name="pi_extra")
    said = script.reply(Seen.MISSING_OBJECT) if sent else script.look_failed(Seen.MISSING_OBJECT)
    assert (said.then, said.wait) == (Then.LATER, policy.LOOK_EVERY)
    assert not script.charge.done
    assert [one.kind for one in script.charge.discrepancies] == ["paid_twice"]
    script.waited()
    if not sent:
        script.observe(Fetched(payment_intent=intent(script.charge, Seen.SUCCEEDED), amount_refunded=0))
    assert script.send().payment_intent == "pi_extra"


def test_an_answer_to_a_settled_refund_changes_nothing() -> None:
    """Its twin."""
    script = twice_paid()
    script.reply(Seen.REFUNDED)
    before = script.charge
    script.answer(Seen.REFUND_FAILED)
    assert script.charge == before


def test_an_audit_of_what_is_not_paid_compares_nothing() -> None:
    """It has moved on since it was listed."""
    script = declined()
    before = script.charge
    script.observe(Compared(payment_intent=None))
    assert script.charge == before

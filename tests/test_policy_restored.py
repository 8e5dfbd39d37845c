"""A charge of a restored ledger: until no key of the lost time can act, it is looked at now and then, and not tried."""

import json

import pytest

from shared import policy
from shared.charge import Act, Failure, Seen, Status, Terms
from shared.policy import Send, Then
from tests.script import AMOUNT, CARD_DECLINED, DAY, HOUR, MINUTE, START, Script, answered, intent, opened


def restored(script: Script) -> Script:
    """Restore the ledger to where the charge stands, and reopen it an hour later."""
    lost_since = script.now - DAY
    script.now += HOUR
    script.charge = policy.restored(script.charge, generation=2, lost_since=lost_since, now=script.now)
    return script


def test_another_try_while_the_bank_asks_waits_for_the_lost_keys() -> None:
    """It was wished for at once; nothing asks Stripe again and again until it may be sent."""
    script = restored(answered(Seen.ACTION_REQUIRED))
    script.choose(Act.RETRY)
    said = script.look(Seen.ACTION_REQUIRED)
    assert (said.then, said.wait, script.status()) == (Then.LATER, policy.CLOSING_WAIT, Status.UNKNOWN)
    script.wake(policy.KEY_HORIZON)
    assert isinstance(script.step(), Send)
    script.reply(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


def test_a_charge_that_the_lost_time_may_have_canceled_is_not_charged_at_once() -> None:
    """It had no PaymentIntent, so Stripe knows of no cancel; the operator has a day to ask its caller."""
    script = restored(Script())
    script.listed()
    script.reply(Seen.UNCONFIRMED, created=script.now + MINUTE)
    said = script.look(Seen.UNCONFIRMED)
    assert (said.then, script.status()) == (Then.LATER, Status.UNKNOWN)
    script.wake(policy.KEY_HORIZON)
    assert script.reply(Seen.SUCCEEDED).charge.status is Status.SUCCEEDED


def test_a_charge_that_is_younger_than_the_restore_is_charged_at_once() -> None:
    """Once Stripe's list shows that it is no forgotten one."""
    script = Script(policy.after_restore(opened(), restored_at=START - HOUR, lost_since=START - DAY))
    script.listed()
    script.reply(Seen.UNCONFIRMED, created=script.now)
    assert script.reply(Seen.SUCCEEDED).charge.status is Status.SUCCEEDED


def test_a_try_that_a_customer_makes_meanwhile_is_sent_without_them() -> None:
    """When it may be sent they have left their page: their bank declines, or they are written to."""
    script = restored(answered(Seen.ACTION_REQUIRED))
    script.choose(Act.RETRY, return_url="https://pay.example.com/token")
    script.look(Seen.ACTION_REQUIRED)
    script.wake(policy.KEY_HORIZON)
    assert json.loads(script.send().parameters).keys() == {"payment_method", "off_session"}


@pytest.mark.parametrize("last_error", [CARD_DECLINED, None], ids=["declined", "never tried"])
def test_a_charge_that_was_recovered_without_a_card_asks_for_one(last_error: Failure | None) -> None:
    """Stripe's PaymentIntent names none: the customer is asked, rather than an operator shown that none cannot pay."""
    charge = policy.recovered(
        [intent(opened(), last_error=last_error)],
        terms=Terms(amount=AMOUNT, currency="usd", customer="cus_1", payment_method=""),
        generation=2,
        api_version="v",
        now=START + HOUR,
        reaches=frozenset(),
        lost_since=START,
    )
    script = Script(charge)
    script.now = START + HOUR
    while script.now < START + HOUR + policy.KEY_LIFE:
        script.look(Seen.UNCONFIRMED, last_error=last_error)
        assert script.status() is Status.UNKNOWN  # A card may have been tried in the lost time, and may still pay.
        script.waited()
    script.look(Seen.UNCONFIRMED, last_error=last_error)
    assert script.status() is Status.DECLINED
    assert script.sends == []
    assert policy.options(script.charge) == policy.EVERY_ACT - {Act.RETRY}
    assert script.choose(Act.RETRY).refusal == "act_does_not_fit"
    assert script.choose(Act.OUT_OF_BAND, wish=True).refusal is None
    script.choose(Act.PAYMENT_METHOD)
    script.reply(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED

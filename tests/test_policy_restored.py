"""A charge of a restored ledger: until no key of the lost time can act, it is looked at now and then, and not tried."""

from shared import policy
from shared.charge import Act, Seen, Status
from shared.policy import Send, Then
from tests.script import DAY, HOUR, MINUTE, START, Script, answered, opened


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

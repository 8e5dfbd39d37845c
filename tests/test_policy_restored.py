"""A charge of a restored ledger: until no key of the lost time can act, it is looked at now and then, and not tried."""

from shared import policy
from shared.charge import Act, Seen, Status
from shared.policy import Send, Then
from tests.script import DAY, HOUR, Script, answered


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

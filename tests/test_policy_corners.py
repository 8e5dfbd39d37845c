"""Corners of the outbox, the schedule and the refund that no other script turns."""

from shared import policy
from shared.charge import Act, Audience, Compared, LookFailed, Seen, Status, Topic
from shared.policy import Limits, Then
from tests.script import DAY, START, Script, answered, opened

EVERYBODY = Limits(reaches=frozenset(Audience))


def test_a_card_that_was_never_tried_has_no_schedule() -> None:
    """It begins with its first decline."""
    assert policy._next_scheduled(opened(retry="schedule"), START, (DAY,)) is None


def test_a_customer_who_is_here_is_not_written_to_that_their_bank_asks() -> None:
    """They are led there at once; while they were away, they were written to."""
    script = Script(limits=EVERYBODY)
    script.reply(Seen.UNCONFIRMED)
    script.reply(Seen.ACTION_REQUIRED)
    assert [one.topic for one in script.charge.outbox if one.audience is Audience.CUSTOMER] == [Topic.ACTION_REQUIRED]
    script.choose(Act.RETRY, return_url="https://pay.example.com/token")
    script.reply(Seen.ACTION_REQUIRED)
    assert script.status() is Status.ACTION_REQUIRED
    assert [one.topic for one in script.charge.outbox if one.audience is Audience.CUSTOMER] == [Topic.ACTION_REQUIRED]


def test_a_refund_waits_until_stripe_says_that_the_recorded_one_is_paid() -> None:
    """No answer is no word on it."""
    script = answered(Seen.SUCCEEDED)
    script.fetched(Seen.SUCCEEDED, name="pi_extra")
    before = script.charge
    script.observe(LookFailed(seen=Seen.NO_REPLY))
    assert (script.said.then, script.said.wait) == (Then.LATER, policy.LAST_WAIT)
    assert script.charge == before


def test_a_comparison_has_its_name_in_the_history() -> None:
    """Should it ever change a status."""
    assert policy._what(Compared(payment_intent=None), opened()) == "compared"

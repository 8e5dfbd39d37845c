"""Where two rules meet: each is right by itself, and what the one leaves behind the other must not undo."""

import dataclasses
from datetime import timedelta
from typing import Final
from unittest.mock import Mock

import pytest

from shared import policy
from shared.answers import CardGiven
from shared.charge import Act, Audience, Failure, Fetched, LookFailed, Party, Seen, Status, charge_id
from shared.checkout import Given, hear_of_card
from shared.policy import FetchRefunds, Limits, List
from shared.store import CHARGE, Stored
from tests.script import DAY, HOUR, KEY, MINUTE, START, Script, confirming, declined, intent
from tests.world import World

EVERYBODY: Final = Limits(reaches=frozenset(Audience))
TROUBLE: Final = Failure(type="card_error", code="processing_error")
GONE: Final = Failure(type="invalid_request_error", code="resource_missing", param="customer")


def orphan(script: Script, name: str = "pi_orphan") -> None:
    """Let another PaymentIntent of this charge be found, unpaid."""
    script.observe(Fetched(payment_intent=intent(script.charge, Seen.UNCONFIRMED, name, body_digest="digest")))


def wished() -> Script:
    """A card met the processor's trouble, and its customer chose to pay in cash."""
    script = Script(limits=EVERYBODY)
    script.reply(Seen.UNCONFIRMED)
    script.send()
    script.answer(Seen.TRANSIENT_DECLINE, error=TROUBLE)
    script.choose(Act.OUT_OF_BAND, wish=True)
    assert script.status() == Status.DECLINED
    return script


def test_a_card_is_left_alone_once_cash_was_chosen_though_an_orphan_was_held_up_meanwhile() -> None:
    """The few tries at once are no schedule, and end with the wish all the same."""
    script = wished()
    script.now += HOUR
    orphan(script)
    script.reply(Seen.UNAUTHORIZED)
    script.now += 10 * MINUTE
    script.wake()
    script.reply(Seen.CANCELED)
    script.look(Seen.UNCONFIRMED)
    assert (script.status(), script.charge.next_attempt_at) == (Status.DECLINED, None)
    assert script.charge.pays_elsewhere_since is not None


def test_a_card_is_left_alone_once_cash_was_chosen_though_a_bug_stopped_the_charge() -> None:
    """Likewise."""
    script = wished()
    for _ in range(policy.CRASHES_LIMIT):
        script.crash()
    script.now += HOUR
    script.wake()
    script.look(Seen.UNCONFIRMED)
    assert (script.status(), script.charge.next_attempt_at) == (Status.DECLINED, None)


def replaced() -> Script:
    """A customer was gone, another took their place, and the answer to their create is lost for good."""
    script = Script(limits=EVERYBODY)
    script.reply(Seen.MISSING_OBJECT, error=GONE)
    script.choose(Act.PAYMENT_METHOD, customer="cus_2")
    script.reply(Seen.SERVER_ERROR, replayed=True)
    assert isinstance(script.step(), List)
    return script


@pytest.mark.parametrize("seen", [Seen.SUCCEEDED, Seen.UNCONFIRMED])
def test_in_a_list_of_everybodys_a_third_customers_payment_is_not_taken_for_the_charges(seen: Seen) -> None:
    """Metadata may be copied; that of the old customer, and of the new, is taken."""
    script = replaced()
    script.listed(intent(script.charge, seen, "pi_copy", customer="cus_9", body_digest="other"))
    assert script.charge.payment_intent is None
    for customer in ("cus_1", "cus_2"):
        found = replaced()
        found.listed(intent(found.charge, seen, "pi_ours", customer=customer))
        assert found.charge.payment_intent == "pi_ours"


def test_a_list_that_is_too_long_is_shown_to_a_person() -> None:
    """It would be asked for until the end of days."""
    script = replaced()
    decision = script.observe(LookFailed(seen=Seen.SERVER_ERROR, error=Failure(type=policy.TOO_MANY)))
    assert decision.wait == policy.LOOK_EVERY
    assert (script.status(), script.charge.blocked_on) == (Status.BLOCKED, Party.OPERATOR)
    assert policy.needs_person(script.charge)


def test_a_customer_who_is_there_after_all_can_be_charged() -> None:
    """Somebody tried again, and Stripe made the PaymentIntent for them."""
    script = Script(limits=EVERYBODY)
    script.reply(Seen.MISSING_OBJECT, error=GONE)
    assert script.charge.customer_gone
    script.choose(Act.RETRY)
    script.reply(Seen.UNCONFIRMED)
    assert not script.charge.customer_gone
    script.reply(Seen.SUCCEEDED)
    assert script.status() == Status.SUCCEEDED


def test_an_orphan_that_a_bank_works_on_holds_no_other_orphan_up() -> None:
    """It waits at the end of the row."""
    script = confirming()
    script.answer(Seen.SUCCEEDED)
    orphan(script, "pi_slow")
    orphan(script, "pi_other")
    script.reply(Seen.UNEXPECTED_STATE)
    script.look(Seen.PROCESSING)
    assert script.send().payment_intent == "pi_other"
    script.answer(Seen.CANCELED)
    assert script.charge.orphans == ("pi_slow",)


def test_an_orphan_that_is_canceled_later_is_settled() -> None:
    """A person had been shown it."""
    script = declined()
    orphan(script)
    script.reply(Seen.UNEXPECTED_STATE)
    script.look(Seen.UNCONFIRMED)
    assert [found.kind for found in policy.unsettled(script.charge)] == [policy.NOT_CANCELED]
    script.now += DAY
    orphan(script)
    script.reply(Seen.CANCELED)
    assert policy.unsettled(script.charge) == ()


def test_a_pending_refund_that_cannot_be_read_ends_with_a_person() -> None:
    """An API key that may not read refunds, for longer than any refund takes."""
    script = Script(limits=EVERYBODY)
    script.reply(Seen.UNCONFIRMED)
    script.reply(Seen.SUCCEEDED)
    script.fetched(Seen.SUCCEEDED, name="pi_extra")
    script.observe(Fetched(payment_intent=intent(script.charge, Seen.SUCCEEDED), amount_refunded=0))
    script.reply(Seen.REFUND_PENDING)
    looks = 0
    while isinstance(script.step(), FetchRefunds) and script.now < START + timedelta(days=100):
        script.observe(LookFailed(seen=Seen.UNAUTHORIZED))
        script.waited()
        looks += 1
    assert looks < 100
    assert "refund_failed" in {found.kind for found in policy.unsettled(script.charge)}


def test_money_may_move_while_a_bank_works_on_it_whatever_stops_the_charge() -> None:
    """A look that an API key may not make stops nothing at the bank."""
    script = Script(limits=EVERYBODY)
    script.reply(Seen.UNCONFIRMED)
    script.send()
    script.answer(Seen.PROCESSING)
    script.now += DAY
    script.wake()
    script.look_failed(Seen.UNAUTHORIZED)
    assert script.status() == Status.BLOCKED
    assert policy.money_may_move(script.charge)
    declined_since = dataclasses.replace(script.charge, status=Status.DECLINED)
    assert not policy.money_may_move(declined_since)


def test_a_card_that_was_given_too_late_is_asked_about_no_more() -> None:
    """Twenty attempts are made: nothing that could change makes the event fit, so it is not to come again."""
    world = World()
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds")
    held = world.parts.ledger.get(charge_id(None, KEY))
    assert held is not None
    (first,) = held.charge.attempts
    attempts = tuple(
        dataclasses.replace(first, number=number, idempotency_key=f"{first.idempotency_key}{number}")
        for number in range(1, policy.ATTEMPTS_LIMIT + 1)
    )
    world.parts.ledger.update(held, dataclasses.replace(held.charge, attempts=attempts))
    given = Given(payment_method="pm_new", customer=world.customer, replaces=first.payment_method, asked_at=None)
    checkout = Mock(given=Mock(return_value=given))
    heard = CardGiven(charge_id=charge_id(None, KEY), session="cs_1")
    assert hear_of_card(world.parts.charger, checkout, heard) == "recorded: declined"
    assert len(world.charge().attempts) == policy.ATTEMPTS_LIMIT


def test_a_charge_that_cannot_be_read_keeps_no_other_caller_from_hearing() -> None:
    """A newer version wrote it."""
    world = World()
    world.create()
    world.create(key="order-2")
    name = charge_id(None, KEY)
    stored = world.store._entities[CHARGE, name]
    world.store._entities[CHARGE, name] = Stored({**stored.properties, "status": "of tomorrow"}, stored.version)
    world.parts.charger._unheard = [name, charge_id(None, "order-2")]
    world.services.clear()
    world.parts.charger._tell_unheard()
    assert world.parts.charger._unheard == []
    assert len(world.services) > 1

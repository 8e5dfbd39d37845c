"""What a customer chooses on their page: the bank may ask them, and who pays elsewhere has not paid yet."""

import json

import pytest

from shared import codes, policy
from shared.charge import Act, Audience, Failure, Party, Seen, Status, Topic
from shared.policy import Fetch, Rest, Then
from tests.script import (
    ASKS_FOR_THE_CUSTOMER,
    CARD_DECLINED,
    DAY,
    HOUR,
    Script,
    Ways,
    answered,
    burnt,
    closing,
    confirming,
    declined,
    recorded,
    tried_again_after_a_burnt_key,
)

BACK = "https://pay.example.com/token/back"
NOT_HANDLED = Failure(type="card_error", code="card_declined", decline_code="authentication_not_handled")
AUTHENTICATION_FAILED = Failure(type="card_error", code="payment_intent_authentication_failure")


def parameters(script: Script) -> dict[str, object]:
    """Return what the last attempt asks of Stripe."""
    asked: dict[str, object] = json.loads(script.charge.attempts[-1].parameters)
    return asked


# --- The customer is here ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [Act.RETRY, Act.PAYMENT_METHOD])
def test_a_customer_who_is_here_may_be_asked_by_the_bank_and_comes_back(act: Act) -> None:
    """The attempt says where to, and not that they are absent."""
    script = declined()
    script.choose(act, return_url=BACK)
    card = "pm_other" if act is Act.PAYMENT_METHOD else "pm_card"
    assert parameters(script) == {"payment_method": card, "return_url": BACK}
    assert script.send().idempotency_key.endswith("-confirm-2")


@pytest.mark.parametrize("act", [Act.RETRY, Act.PAYMENT_METHOD])
def test_a_customer_who_is_absent_is_never_sent_anywhere(act: Act) -> None:
    """As it was."""
    script = declined()
    script.choose(act)
    assert parameters(script).keys() == {"payment_method", "off_session"}


def test_an_attempt_with_the_customer_here_that_the_bank_asks_about_waits_for_them_and_is_paid() -> None:
    """requires_action: they answer on the bank's page, and the look on their way back finds it paid."""
    script = answered(Seen.AUTHENTICATION_REQUIRED)
    script.choose(Act.RETRY, return_url=BACK)
    script.reply(Seen.ACTION_REQUIRED)
    assert script.status() is Status.ACTION_REQUIRED
    script.wake()
    script.look(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


def test_a_second_authentication_that_fails_like_the_first_is_told_as_declined() -> None:
    """The same failure as before is a new one all the same: it is not taken for what the attempt set out from."""
    script = answered(Seen.AUTHENTICATION_REQUIRED)
    for _ in range(2):
        script.choose(Act.RETRY, return_url=BACK)
        script.reply(Seen.ACTION_REQUIRED)
        script.wake()
        script.look(Seen.UNCONFIRMED, last_error=AUTHENTICATION_FAILED)
        assert script.status() is Status.DECLINED
        assert script.charge.last_error == AUTHENTICATION_FAILED


@pytest.mark.parametrize("error", [ASKS_FOR_THE_CUSTOMER, NOT_HANDLED], ids=["code", "decline code"])
@pytest.mark.parametrize("how", ["answered", "looked at"])
def test_a_bank_that_asks_again_after_it_was_answered_is_told_as_a_decline(how: str, error: Failure) -> None:
    """They would be sent there for ever: their bank knows why, or another card does."""
    script = answered(Seen.AUTHENTICATION_REQUIRED, error=ASKS_FOR_THE_CUSTOMER)
    assert policy.reason(script.charge) == codes.AUTHENTICATE
    script.choose(Act.RETRY, return_url=BACK)
    if how == "answered":
        script.reply(Seen.AUTHENTICATION_REQUIRED, error=error)
    else:
        script.reply(Seen.ACTION_REQUIRED)
        script.wake()
        script.look(Seen.UNCONFIRMED, last_error=error)
    assert script.status() is Status.DECLINED
    assert script.charge.last_error == error
    assert policy.reason(script.charge) == codes.ASKED_IN_VAIN
    assert codes.ASKED_IN_VAIN.advice is codes.Advice.CONTACT_ISSUER
    assert policy.options(script.charge) == policy.EVERY_ACT


@pytest.mark.parametrize("error", [ASKS_FOR_THE_CUSTOMER, NOT_HANDLED], ids=["code", "decline code"])
def test_a_bank_that_asks_for_an_absent_customer_is_no_decline_whoever_finds_out(error: Failure) -> None:
    """The answer was lost, and a look shows that it wants them."""
    script = confirming()
    script.answer(Seen.SERVER_ERROR)
    script.now += policy.KEY_HORIZON + script.limits.quarantine
    script.look(Seen.UNCONFIRMED, last_error=error)
    assert script.status() is Status.ACTION_REQUIRED
    assert policy.reason(script.charge) == codes.AUTHENTICATE


def test_once_no_attempt_is_left_the_ways_out_without_a_card_are_open() -> None:
    """Nothing is sent for who asks for another, nothing waits for the operator, and the customer has two ways left."""
    script = declined()
    while len(script.charge.attempts) < policy.ATTEMPTS_LIMIT:
        assert policy.options(script.charge) == policy.EVERY_ACT
        script.choose(Act.RETRY, return_url=BACK)
        script.reply(Seen.DECLINED, error=CARD_DECLINED)
    assert policy.exhausted(script.charge)
    assert policy.waiting_on(script.charge) is Party.CUSTOMER
    assert policy.options(script.charge) == policy.CLOSINGS
    for act in (Act.RETRY, Act.PAYMENT_METHOD):
        before = script.charge
        assert script.choose(act).refusal == "act_does_not_fit"
        assert script.charge == before
    assert script.choose(Act.OUT_OF_BAND, wish=True).refusal is None


def test_the_last_attempt_that_is_still_out_can_be_carried_on() -> None:
    """It waits for an API key: what blocks it is mended, and it is sent as it is written."""
    script = declined()
    while len(script.charge.attempts) < policy.ATTEMPTS_LIMIT:
        script.choose(Act.RETRY)
        script.send()
        if len(script.charge.attempts) < policy.ATTEMPTS_LIMIT:
            script.answer(Seen.DECLINED, error=CARD_DECLINED)
    script.answer(Seen.UNAUTHORIZED)
    assert not policy.exhausted(script.charge)
    assert Act.RETRY in policy.options(script.charge)


def test_a_page_of_the_banks_that_nobody_has_answered_is_no_decline() -> None:
    """The PaymentIntent waits, and so does the charge."""
    script = answered(Seen.AUTHENTICATION_REQUIRED)
    script.choose(Act.RETRY, return_url=BACK)
    script.reply(Seen.ACTION_REQUIRED)
    script.wake(HOUR)
    script.look(Seen.ACTION_REQUIRED)
    assert script.status() is Status.ACTION_REQUIRED


# --- The customer pays elsewhere --------------------------------------------------------------------------------------


def retrying() -> Script:
    """It is tried again by itself."""
    return answered(Seen.TRANSIENT_DECLINE)


OPEN: Ways = {
    "declined": declined,
    "retrying": retrying,
    "action required": lambda: answered(Seen.AUTHENTICATION_REQUIRED),
    "a card that is gone": lambda: answered(Seen.MISSING_OBJECT),
}


@pytest.mark.parametrize("where", OPEN)
def test_s5_a_customer_who_wants_to_pay_in_cash_still_owes_and_is_not_charged(where: str) -> None:
    """Nobody marks their own debt as paid; but the card is left alone from then on."""
    script = OPEN[where]()
    sends = len(script.sends)
    script.choose(Act.OUT_OF_BAND, wish=True)

    assert script.said.then is Then.REST
    assert script.charge.pays_elsewhere_since == script.now
    assert not script.charge.final
    assert script.charge.closing is None
    assert (script.charge.history[-1].what, script.charge.history[-1].actor) == (policy.WISH, "customer")
    assert script.charge.next_attempt_at is None
    script.wake(2 * DAY)
    assert isinstance(script.step(), Rest | Fetch)
    assert len(script.sends) == sends


def test_s5_the_wish_to_pay_in_cash_stops_what_would_be_tried_by_itself() -> None:
    """It waits for somebody to choose."""
    script = retrying()
    script.choose(Act.OUT_OF_BAND, wish=True)
    assert script.status() is Status.DECLINED
    assert policy.waiting_on(script.charge) is Party.CUSTOMER
    assert len(script.charge.history) == len(retrying().charge.history) + 1


def test_the_cash_is_there_once_whoever_got_it_says_so() -> None:
    """The caller's or the operator's act, as ever."""
    script = declined()
    script.choose(Act.OUT_OF_BAND, wish=True)
    script.choose(Act.OUT_OF_BAND)
    script.reply(Seen.CANCELED)
    assert script.status() is Status.PAID_OUT_OF_BAND


def test_a_wish_that_is_made_twice_changes_nothing() -> None:
    """Pressed twice, or two tabs."""
    script = declined()
    script.choose(Act.OUT_OF_BAND, wish=True)
    first = script.charge
    script.wake(HOUR)
    assert script.choose(Act.OUT_OF_BAND, wish=True).refusal is None
    assert script.charge == first


@pytest.mark.parametrize("act", [Act.RETRY, Act.PAYMENT_METHOD])
def test_a_customer_may_change_their_mind_and_pay_by_card_after_all(act: Act) -> None:
    """The wish is over with the next attempt, also if that is declined."""
    script = declined()
    script.choose(Act.OUT_OF_BAND, wish=True)
    script.choose(act, return_url=BACK)
    assert script.charge.pays_elsewhere_since is None
    script.reply(Seen.DECLINED, error=CARD_DECLINED)
    assert script.charge.pays_elsewhere_since is None
    assert script.choose(Act.OUT_OF_BAND, wish=True).refusal is None


def _blocked_closing() -> Script:
    script = closing()
    script.reply(Seen.INVALID)
    return script


NOT_NOW: Ways = {
    "pending": recorded,
    "sent": confirming,
    "unknown": lambda: answered(Seen.NO_REPLY),
    "a burnt key": burnt,
    "processing": lambda: answered(Seen.PROCESSING),
    "blocked and going on by itself": lambda: answered(Seen.UNAUTHORIZED),
    "closing": closing,
    "blocked while closing": _blocked_closing,
    "succeeded": lambda: answered(Seen.SUCCEEDED),
    "canceled": lambda: answered(Seen.CANCELED),
}


@pytest.mark.parametrize("where", NOT_NOW)
def test_nobody_is_promised_that_a_card_is_left_alone_while_it_may_be_charged(where: str) -> None:
    """What is out may still pay; and what has ended has ended."""
    script = NOT_NOW[where]()
    before = script.charge
    refusal = script.choose(Act.OUT_OF_BAND, wish=True).refusal
    assert refusal == ("already_paid" if where == "succeeded" else "act_does_not_fit")
    assert script.charge == before


def test_no_cash_is_promised_while_an_earlier_try_is_in_doubt() -> None:
    """A burnt key may still pay until it is a day old: who pays in cash meanwhile may have paid twice."""
    script = tried_again_after_a_burnt_key()
    script.answer(Seen.AUTHENTICATION_REQUIRED, error=ASKS_FOR_THE_CUSTOMER)
    before = script.charge
    assert script.choose(Act.OUT_OF_BAND, wish=True).refusal == "act_does_not_fit"
    assert script.charge == before
    script.now += DAY
    assert script.choose(Act.OUT_OF_BAND, wish=True).refusal is None


def test_money_that_comes_after_the_wish_is_recorded_all_the_same() -> None:
    """The bank's page was open in another tab, and the customer answered it."""
    script = answered(Seen.AUTHENTICATION_REQUIRED)
    script.choose(Act.OUT_OF_BAND, wish=True)
    script.event(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


def test_who_pays_elsewhere_instead_of_by_the_next_try_is_not_told_of_a_decline() -> None:
    """It ends the tries, so the charge is declined; the caller hears of that, and the customer has chosen it."""
    limits = policy.Limits(reaches=frozenset(Audience), retry_schedule=(DAY,))
    script = Script(limits=limits, retry="schedule")
    script.reply(Seen.UNCONFIRMED)
    script.reply(Seen.DECLINED, error=CARD_DECLINED)
    assert script.status() is Status.RETRYING
    script.choose(Act.OUT_OF_BAND, wish=True)
    assert script.status() is Status.DECLINED
    assert [(notice.audience, notice.topic) for notice in script.charge.outbox] == [
        (Audience.CUSTOMER, Topic.RETRYING),
        (Audience.CALLER, Topic.OUTCOME),
        (Audience.ACCOUNT_OWNER, Topic.PAYS_ELSEWHERE),
    ]

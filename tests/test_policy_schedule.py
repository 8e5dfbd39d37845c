"""`retry: schedule`: a decline that is worth it is tried again by itself, as far as caller, bank and networks allow."""

import dataclasses
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import policy
from shared.charge import Act, Attempt, Chosen, Failure, Seen, Status
from shared.policy import Limits, Then
from tests.script import (
    ASKS_FOR_THE_CUSTOMER,
    CARD_DECLINED,
    DAY,
    HOUR,
    MINUTE,
    START,
    Script,
    intent,
    opened,
)

SCHEDULE = (DAY, 3 * DAY, 5 * DAY, 7 * DAY)
STOLEN = Failure(type="card_error", code="card_declined", decline_code="stolen_card")
STOP = dataclasses.replace(CARD_DECLINED, advice_code="do_not_try_again")


def scheduled(*, livemode: bool = False, schedule: tuple[timedelta, ...] = SCHEDULE, **terms: object) -> Script:
    """A charge that is tried again by itself; its first attempt is out."""
    charge = dataclasses.replace(opened(retry="schedule", **terms), livemode=livemode)
    script = Script(charge, limits=Limits(retry_schedule=schedule))
    script.reply(Seen.UNCONFIRMED)
    script.send()
    return script


def decline(script: Script, error: Failure = CARD_DECLINED) -> None:
    """Let the attempt that is out be declined."""
    script.answer(Seen.DECLINED, error=error)


def hiccup(script: Script) -> None:
    """Let the attempt that is out come to nothing by the processor's fault."""
    script.answer(Seen.TRANSIENT_DECLINE, error=Failure(type="card_error", code="processing_error"))


def ask(script: Script) -> None:
    """Let the bank want the customer for the attempt that is out."""
    script.answer(Seen.AUTHENTICATION_REQUIRED, error=ASKS_FOR_THE_CUSTOMER)


def test_a_decline_is_tried_again_by_the_schedule_on_the_same_payment_intent_under_new_keys() -> None:
    """Days after the first decline; then the customer has to choose."""
    script = scheduled()
    began = script.now
    keys = []
    for after in SCHEDULE:
        decline(script)
        assert script.status() is Status.RETRYING
        assert script.charge.next_attempt_at == began + after
        assert policy.due_at(script.charge, script.now, None) == began + after
        script.wake(began + after - script.now)
        keys.append(script.send().idempotency_key)
    decline(script)
    assert script.status() is Status.DECLINED
    assert [key.rsplit("-", 2)[1:] for key in keys] == [["confirm", str(number)] for number in (2, 3, 4, 5)]
    assert {attempt.payment_intent for attempt in script.charge.attempts} == {script.charge.payment_intent}


def test_it_pays_when_the_money_is_there() -> None:
    """And nothing is tried after that."""
    script = scheduled()
    decline(script)
    script.wake(DAY)
    script.reply(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED
    assert script.charge.next_attempt_at is None


@pytest.mark.parametrize("error", [STOLEN, STOP, Failure(type="card_error", code="expired_card"), Failure(code="new")])
def test_what_is_not_worth_it_is_not_tried_again(error: Failure) -> None:
    """A stolen card, the bank's own advice, a card that needs other data, a code that nobody knows."""
    script = scheduled()
    decline(script, error)
    assert script.status() is Status.DECLINED


def test_without_the_callers_word_nothing_is_tried_again() -> None:
    """`retry: none`, the default."""
    script = Script(limits=Limits(retry_schedule=SCHEDULE))
    script.reply(Seen.UNCONFIRMED)
    script.send()
    decline(script)
    assert script.status() is Status.DECLINED


def test_a_card_is_tried_at_most_once_a_day_in_live_mode() -> None:
    """Whatever the schedule says: what is too early for the card is done once it is not. Test mode may be quicker."""
    quick = (HOUR, 2 * HOUR, 26 * HOUR)
    script = scheduled(livemode=True, schedule=quick)
    began = script.now
    for after in (policy.CARD_REST, 2 * policy.CARD_REST):
        decline(script)
        assert script.charge.next_attempt_at == began + after
        script.wake(began + after - script.now)
        script.send()
    decline(script)
    assert script.status() is Status.DECLINED
    script = scheduled(schedule=quick)
    decline(script)
    assert script.charge.next_attempt_at == script.now + HOUR


@pytest.mark.parametrize("fail", [decline, hiccup])
def test_a_charge_is_tried_at_most_eight_times_by_itself(fail: Callable[[Script], None]) -> None:
    """The networks frown on more, whatever comes in between."""
    script = scheduled(schedule=tuple(DAY * number for number in range(1, 20)))
    tries = 1
    while True:
        fail(script)
        if script.status() is Status.DECLINED:
            break
        assert script.charge.next_attempt_at is not None
        script.wake(script.charge.next_attempt_at - script.now)
        script.send()
        tries += 1
    assert tries == policy.SCHEDULED_LIMIT


def test_nothing_is_planned_for_after_the_charge_expires() -> None:
    """It would never come to that."""
    script = scheduled()
    script.charge = dataclasses.replace(script.charge, expires_at=script.now + 2 * DAY)
    decline(script)
    assert script.status() is Status.RETRYING
    script.wake(DAY)
    script.send()
    decline(script)
    assert script.status() is Status.DECLINED


@pytest.mark.parametrize("act", [Act.CANCEL, Act.OUT_OF_BAND, Act.PAYMENT_METHOD, Act.RETRY])
def test_what_somebody_chooses_stops_it(act: Act) -> None:
    """A closing, a new card, or another try now."""
    script = scheduled()
    decline(script)
    script.choose(act)
    assert script.charge.next_attempt_at is None
    assert script.status() is not Status.RETRYING


def test_a_wish_to_pay_elsewhere_stops_it_and_it_stays_stopped() -> None:
    """Until somebody tries again."""
    script = scheduled()
    decline(script)
    script.choose(Act.OUT_OF_BAND, wish=True)
    assert script.status() is Status.DECLINED
    assert script.charge.next_attempt_at is None


def test_another_card_begins_the_schedule_anew() -> None:
    """From its own first decline."""
    script = scheduled()
    decline(script)
    script.now += 2 * DAY
    script.choose(Act.PAYMENT_METHOD)
    script.send()
    began = script.now
    decline(script)
    assert script.charge.next_attempt_at == began + DAY


def test_a_lost_task_does_not_make_two_tries() -> None:
    """The sweep comes late: one try, and the next by the schedule as it stands then."""
    script = scheduled()
    began = script.now
    decline(script)
    script.wake(4 * DAY)
    script.send()
    decline(script)
    assert script.charge.next_attempt_at == began + 5 * DAY


def test_before_its_time_nothing_is_done() -> None:
    """A task that comes early."""
    script = scheduled()
    decline(script)
    script.wake(MINUTE)
    assert script.said.then is Then.GO_ON
    assert isinstance(script.step(), policy.Rest)


def test_processing_errors_have_their_own_few_tries_before_the_schedule() -> None:
    """S6: minutes, then days."""
    script = scheduled()
    for wait in policy.TRANSIENT_WAITS:
        hiccup(script)
        assert script.charge.next_attempt_at == script.now + wait
        script.wake(wait)
        script.send()
    hiccup(script)
    assert script.status() is Status.RETRYING
    assert script.charge.next_attempt_at is not None
    assert script.charge.next_attempt_at > script.now + HOUR


def test_a_card_that_had_its_few_tries_at_once_is_tried_again_a_day_later() -> None:
    """The only day of the schedule is too early by then for the networks: it is moved, not lost."""
    script = scheduled(livemode=True, schedule=(DAY,))
    for wait in policy.TRANSIENT_WAITS:
        hiccup(script)
        script.wake(wait)
        script.send()
    last = script.now
    hiccup(script)
    assert script.status() is Status.RETRYING
    assert script.charge.next_attempt_at == last + policy.CARD_REST > START + DAY


def test_a_processing_error_of_a_later_try_is_not_tried_again_at_once() -> None:
    """The card has been judged before, and the customer has been told: what follows goes by the schedule."""
    script = scheduled(livemode=True)
    began = script.now
    decline(script)
    script.wake(DAY)
    script.send()
    hiccup(script)
    assert script.charge.next_attempt_at == began + 3 * DAY


def test_another_card_has_its_own_few_tries_at_once() -> None:
    """Whatever became of the one before."""
    script = scheduled()
    decline(script)
    script.choose(Act.PAYMENT_METHOD)
    script.send()
    hiccup(script)
    assert script.charge.next_attempt_at == script.now + MINUTE


@pytest.mark.parametrize("seen", [Seen.UNEXPECTED_STATE, Seen.INVALID])
def test_what_never_reached_the_card_takes_none_of_its_few_tries(seen: Seen) -> None:
    """Stripe refused the request itself, and somebody mended that."""
    script = scheduled()
    script.answer(seen, error=Failure(type="invalid_request_error"))
    if seen is Seen.UNEXPECTED_STATE:
        script.look(Seen.UNCONFIRMED)
        script.waited()
    else:
        script.choose(Act.RETRY)
    script.send()
    hiccup(script)
    assert script.charge.next_attempt_at == script.now + MINUTE


@given(st.data())
def test_whatever_a_bank_answers_a_card_is_tried_by_us_once_a_day_and_a_charge_eight_times(data: st.DataObject) -> None:
    """But for the few tries at once of a card that nobody has judged yet. Customers try again as they like."""
    days = st.lists(st.integers(1, 30 * 24 - 1), min_size=1, max_size=12, unique=True)
    schedule = tuple(HOUR * hour for hour in sorted(data.draw(days)))
    script = scheduled(livemode=True, schedule=schedule)
    before: list[Attempt] = []
    for _ in range(policy.ATTEMPTS_LIMIT - 1):
        data.draw(st.sampled_from([hiccup, decline, ask]))(script)
        planned = script.charge.next_attempt_at
        by_us = planned is not None and data.draw(st.booleans())
        before = list(script.charge.attempts)
        if by_us and planned is not None:
            script.wake(planned - script.now)
        else:
            script.now += data.draw(st.sampled_from([MINUTE, 5 * HOUR, 2 * DAY]))
            if script.now >= script.charge.expires_at:
                return
            card = data.draw(st.sampled_from(["pm_card", "pm_other"]))
            script.observe(Chosen(act=Act.PAYMENT_METHOD, actor="customer", payment_method=card))
        script.send()
        attempt = script.charge.attempts[-1]
        if not by_us:
            continue
        assert attempt.number <= policy.SCHEDULED_LIMIT
        earlier = [one for one in before if one.payment_method == attempt.payment_method]
        at_once = {one.outcome for one in earlier} == {Seen.TRANSIENT_DECLINE} and len(earlier) <= 3
        assert earlier[-1].first_sent_at is not None
        assert at_once or script.now - earlier[-1].first_sent_at >= policy.CARD_REST


def test_a_decline_in_doubt_is_planned_once_the_doubt_is_over() -> None:
    """A burnt key may still charge: until it is a day old nobody is told, and nothing is planned."""
    script = scheduled()
    script.answer(Seen.SERVER_ERROR, replayed=True)
    script.now += script.limits.quarantine
    script.look(Seen.UNCONFIRMED)
    script.send()
    decline(script)
    assert script.status() is Status.UNKNOWN
    script.wake(policy.KEY_LIFE)
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.RETRYING
    assert script.charge.next_attempt_at is not None


def test_a_decline_that_an_event_shows_is_planned_as_well() -> None:
    """A bank debit that came back."""
    script = scheduled()
    script.answer(Seen.PROCESSING)
    script.wake(3 * DAY)
    script.look(Seen.UNCONFIRMED, last_error=dataclasses.replace(CARD_DECLINED, code="insufficient_funds"))
    assert script.status() is Status.RETRYING
    assert intent(script.charge).id == script.charge.payment_intent

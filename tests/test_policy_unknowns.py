"""What is done when it may not be known whether money moved: DESIGN's table of "seen" and "next", row by row."""

from datetime import timedelta

import pytest

from shared import policy
from shared.charge import Act, Failure, LookFailed, Party, Seen, Standing, Status
from shared.policy import Fetch, List, Rest, Send, Then
from tests.script import (
    ASKS_FOR_THE_CUSTOMER,
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
    recorded,
    refused_while_an_earlier_send_is_unexplained,
    tried_again_after_a_burnt_key,
)

QUARANTINE = LIMITS.quarantine
AFTER_THE_HORIZON = policy.KEY_HORIZON + MINUTE


# --- No answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["create", "confirm"])
def test_a_request_without_an_answer_is_sent_again_as_written(operation: str) -> None:
    """The same key, the same bytes, for as long as the key is sure to live."""
    script = Script() if operation == "create" else recorded()
    first = script.send()
    for _ in range(5):
        script.answer(Seen.NO_REPLY)
        script.waited()
        again = script.send()
        assert (again.idempotency_key, again.parameters) == (first.idempotency_key, first.parameters)
        assert (again.api_version, again.payment_intent) == (first.api_version, first.payment_intent)
    script.answer(Seen.UNCONFIRMED if operation == "create" else Seen.SUCCEEDED)
    assert script.status() is (Status.PENDING if operation == "create" else Status.SUCCEEDED)


def test_a_delivery_that_died_after_sending_leaves_the_charge_unknown_and_repeats_the_key() -> None:
    """It looks as if nothing had been sent; the record says that it may have been."""
    script = confirming()
    assert script.status() is Status.PENDING

    script.wake(2 * MINUTE)

    assert script.status() is Status.UNKNOWN
    assert script.send().idempotency_key == script.charge.attempts[0].idempotency_key


def test_a_delivery_that_died_before_sending_leaves_the_charge_pending() -> None:
    """Nothing was sent that could move money."""
    script = recorded()
    script.wake(2 * MINUTE)
    assert script.status() is Status.PENDING
    assert isinstance(script.step(), Send)


# --- 5xx, 424, anything unlisted, on confirm ------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [Seen.SUCCEEDED, Seen.PROCESSING, Seen.HELD, Seen.ACTION_REQUIRED, Seen.CANCELED])
def test_after_a_5xx_what_stripe_shows_is_recorded(seen: Seen) -> None:
    """The GET is conclusive: no second send."""
    script = answered(Seen.SERVER_ERROR)
    script.look(seen)
    assert script.status() is policy.STATE[seen][0]
    assert len(script.sends) == 2  # The create and the one confirm.


def test_after_a_5xx_an_unconfirmed_payment_intent_gets_the_same_key_again_with_backoff() -> None:
    """It may have charged, and may yet."""
    script = answered(Seen.SERVER_ERROR)
    script.look(Seen.UNCONFIRMED)

    assert script.status() is Status.UNKNOWN
    assert script.said.then is Then.LATER
    assert script.said.wait > timedelta()
    script.waited()
    assert script.send().idempotency_key == script.charge.attempts[0].idempotency_key
    assert len(script.charge.attempts) == 1


def test_a_status_of_stripe_that_nobody_foresaw_settles_nothing() -> None:
    """It is looked at again, later."""
    script = answered(Seen.SERVER_ERROR)
    before = script.charge
    script.look(Seen.SERVER_ERROR)
    assert script.charge == before
    assert script.said.then is Then.LATER


# --- A 500 that comes back replayed ---------------------------------------------------------------------------------


def test_a_replayed_500_burns_the_key_and_it_is_never_sent_again() -> None:
    """Unknown; Stripe is read with its charges; more sends are pointless."""
    script = burnt()
    assert script.charge.attempts[0].standing is Standing.BURNT
    assert script.status() is Status.UNKNOWN
    for _ in range(20):
        assert script.step() == Fetch(payment_intent=OURS, with_charges=True)
        script.look(Seen.UNCONFIRMED)
        if len(script.charge.attempts) > 1:
            break
        assert script.status() is Status.UNKNOWN
        script.waited()
    assert script.now == START + QUARANTINE
    assert script.send().idempotency_key == script.charge.attempts[1].idempotency_key


def test_a_burnt_key_gets_no_successor_before_its_quarantine_is_over() -> None:
    """One microsecond is enough to be too early."""
    script = burnt()
    script.now += QUARANTINE - timedelta(microseconds=1)
    script.look(Seen.UNCONFIRMED)
    assert [attempt.number for attempt in script.charge.attempts] == [1]

    script.now += timedelta(microseconds=1)
    script.look(Seen.UNCONFIRMED)
    assert [attempt.number for attempt in script.charge.attempts] == [1, 2]
    assert {attempt.payment_intent for attempt in script.charge.attempts} == {script.charge.payment_intent} == {OURS}


def test_a_look_that_fails_at_the_end_of_the_quarantine_is_repeated_soon() -> None:
    """Before it the look could not have settled anything: the waits grow from then on, not from the first send."""
    script = burnt()
    script.now += QUARANTINE
    script.look_failed(Seen.NO_REPLY)
    assert script.said.wait <= SECOND
    script.now += MINUTE
    script.look_failed(Seen.NO_REPLY)
    assert MINUTE / 2 <= script.said.wait <= MINUTE


def test_what_waits_for_nothing_but_stripes_answer_is_known() -> None:
    """So that a sweep that finds Stripe answering again can take it up at once."""

    def unheard(script: Script) -> bool:
        return policy.unheard(script.charge, script.now, LIMITS)

    assert not unheard(recorded())
    assert unheard(answered(Seen.NO_REPLY))
    assert unheard(answered(Seen.SERVER_ERROR))
    assert not unheard(declined())
    assert not unheard(closing(script=answered(Seen.NO_REPLY)))
    script = burnt()
    assert not unheard(script)
    script.now += QUARANTINE
    assert unheard(script)


def test_a_charge_of_stripes_that_is_under_way_keeps_a_burnt_key_in_quarantine() -> None:
    """However long it takes; and it is not asked about every second meanwhile."""
    script = burnt()
    script.now += 3 * HOUR
    script.look(Seen.UNCONFIRMED, under_way=True)

    assert len(script.charge.attempts) == 1
    assert script.status() is Status.UNKNOWN
    assert script.said.wait >= policy.LAST_WAIT / 2


def test_a_burnt_key_that_had_charged_is_closed_by_the_webhook() -> None:
    """Stripe acted, answered 500, and answers 500 to this key for ever."""
    script = burnt()
    script.event(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED
    assert script.charge.amount_received == 1999


@pytest.mark.parametrize("decline", [Seen.DECLINED, Seen.TRANSIENT_DECLINE])
def test_a_decline_after_a_burnt_key_is_told_as_unknown_until_that_key_is_24_hours_old(decline: Seen) -> None:
    """What was sent under the burnt key may still charge; then it is told."""
    script = tried_again_after_a_burnt_key()
    script.answer(decline, error=CARD_DECLINED)
    assert script.status() is Status.UNKNOWN
    assert policy.options(script.charge) == {Act.CANCEL, Act.OUT_OF_BAND}

    while script.now < START + policy.KEY_LIFE - SECOND:
        assert script.status() is Status.UNKNOWN
        script.waited()
        if script.now < START + policy.KEY_LIFE:
            assert script.look(Seen.UNCONFIRMED).then is Then.LATER

    script.look(Seen.UNCONFIRMED)
    assert script.now == START + policy.KEY_LIFE
    assert script.status() is Status.DECLINED
    assert script.charge.last_error == CARD_DECLINED


def test_a_customer_whom_the_bank_asks_for_is_told_so_in_spite_of_a_burnt_key() -> None:
    """It is no failure, and the customer confirms the same PaymentIntent."""
    script = tried_again_after_a_burnt_key()
    script.answer(Seen.AUTHENTICATION_REQUIRED, error=ASKS_FOR_THE_CUSTOMER)
    assert script.status() is Status.ACTION_REQUIRED


def test_money_that_the_burnt_key_moved_wins_over_the_decline_of_its_successor() -> None:
    """The reason for telling it as unknown."""
    script = tried_again_after_a_burnt_key()
    script.answer(Seen.DECLINED, error=CARD_DECLINED)
    script.event(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


def test_an_operator_who_tries_again_does_not_cut_the_quarantine_short() -> None:
    """A look was refused, so the charge is blocked; the key that may charge is still in quarantine."""
    script = burnt()
    script.look_failed(Seen.UNAUTHORIZED)
    script.choose(Act.RETRY)
    assert script.status() is Status.UNKNOWN
    assert len(script.charge.attempts) == 1
    assert isinstance(script.step(), Fetch)


def test_a_burnt_key_behind_a_refused_look_moves_on_by_itself_once_that_is_mended() -> None:
    """A bad API key is mended centrally: nobody has to touch each charge."""
    script = burnt()
    script.look_failed(Seen.UNAUTHORIZED)
    assert script.status() is Status.BLOCKED

    script.now += QUARANTINE
    script.waited()
    script.look(Seen.UNCONFIRMED)

    assert script.status() is Status.UNKNOWN
    assert len(script.charge.attempts) == 2
    assert isinstance(script.step(), Send)


def test_a_late_answer_to_a_burnt_key_changes_nothing_unless_it_is_final() -> None:
    """The key can say no more."""
    script = burnt()
    before = script.charge
    for seen in (Seen.DECLINED, Seen.SERVER_ERROR, Seen.KEY_IN_USE, Seen.PROCESSING):
        script.answer(seen)
        assert script.charge == before
        assert isinstance(script.step(), Fetch)
    script.answer(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


# --- 5xx on create, replayed ----------------------------------------------------------------------------------------


def test_a_replayed_500_of_the_create_lists_and_adopts_what_is_ours() -> None:
    """It may have made the PaymentIntent before it failed."""
    script = Script()
    script.reply(Seen.SERVER_ERROR)
    script.waited()
    script.reply(Seen.SERVER_ERROR, replayed=True)
    assert script.step() == List(since=START - policy.LIST_MARGIN)

    script.listed(intent(script.charge))

    assert script.charge.payment_intent == OURS
    assert script.send().operation == "confirm"


def test_a_replayed_500_of_the_create_that_made_nothing_gets_the_next_create_key() -> None:
    """Nothing with our metadata: a new key creates one PaymentIntent, not two."""
    script = Script()
    script.reply(Seen.SERVER_ERROR, replayed=True)
    script.listed()
    assert script.send().idempotency_key == f"pio-{script.charge.id}-create-2"
    assert script.status() is Status.PENDING


# --- Older than the key horizon, PaymentIntent recorded -------------------------------------------------------------


def test_past_the_horizon_a_key_is_never_sent_again() -> None:
    """At 23 h the last send is over; from then on only looks."""
    script = answered(Seen.NO_REPLY)
    script.now = START + policy.KEY_HORIZON - timedelta(microseconds=1)
    assert isinstance(script.step(), Send)
    script.now = START + policy.KEY_HORIZON
    assert script.step() == Fetch(payment_intent=OURS, with_charges=True)


@pytest.mark.parametrize("under_way", [True, False])
def test_past_the_horizon_nothing_is_told_while_the_last_send_may_be_under_way(under_way: bool) -> None:
    """It may have left a second before the horizon: a quarantine's time, and longer while a charge is pending."""
    script = answered(Seen.NO_REPLY)
    script.now = START + policy.KEY_HORIZON + (QUARANTINE * 2 if under_way else SECOND)
    script.look(Seen.UNCONFIRMED, under_way=under_way, last_error=CARD_DECLINED)
    assert script.status() is Status.UNKNOWN
    assert len(script.charge.attempts) == 1
    assert script.said.then is Then.LATER
    assert script.said.wait >= SECOND / 2


def test_past_the_horizon_an_unconfirmed_attempt_counts_as_not_paid() -> None:
    """It is settled as unconfirmed, and tried again under a new key on the same PaymentIntent."""
    script = answered(Seen.NO_REPLY)
    script.now = START + policy.KEY_HORIZON + QUARANTINE
    script.look(Seen.UNCONFIRMED)

    assert script.charge.attempts[0].settled
    assert script.charge.attempts[0].outcome == "unconfirmed"
    assert script.charge.payment_intent == OURS
    assert script.send().idempotency_key == script.charge.attempts[1].idempotency_key


@pytest.mark.parametrize(
    ("error", "at_first", "status"),
    [
        (CARD_DECLINED, Status.UNKNOWN, Status.DECLINED),
        (ASKS_FOR_THE_CUSTOMER, Status.ACTION_REQUIRED, Status.ACTION_REQUIRED),
    ],
)
def test_past_the_horizon_what_the_bank_had_said_is_told(error: Failure, at_first: Status, status: Status) -> None:
    """The answer got lost; the PaymentIntent remembers it, and nobody's card is tried again unasked.

    A decline only once the key is past its life: until then Stripe may carry out what it had answered with a 500.
    """
    script = answered(Seen.NO_REPLY)
    script.now = START + policy.KEY_HORIZON + QUARANTINE
    script.look(Seen.UNCONFIRMED, last_error=error)
    assert script.status() is at_first
    script.now = START + policy.KEY_LIFE
    script.look(Seen.UNCONFIRMED, last_error=error)
    assert script.status() is status
    assert script.charge.last_error == error
    assert script.charge.open_attempt is None


@pytest.mark.parametrize("seen", [Seen.SUCCEEDED, Seen.PROCESSING, Seen.CANCELED])
def test_past_the_horizon_money_that_moved_is_found(seen: Seen) -> None:
    """One GET tells."""
    script = answered(Seen.NO_REPLY)
    script.now = START + 3 * DAY
    script.wake()
    script.look(seen)
    assert script.status() == str(seen)


# --- Marked as replayed ---------------------------------------------------------------------------------------------


def test_a_replayed_402_is_not_told_before_stripe_has_been_looked_at() -> None:
    """The customer may have paid on session since it was saved."""
    script = answered(Seen.NO_REPLY)
    script.reply(Seen.DECLINED, replayed=True, error=CARD_DECLINED)
    assert script.status() is Status.UNKNOWN

    script.look(Seen.SUCCEEDED)

    assert script.status() is Status.SUCCEEDED


def test_a_lost_reply_is_replayed_and_the_customer_pays_once() -> None:
    """No reply, then the saved answer of the very same send: `succeeded` needs no look."""
    script = answered(Seen.NO_REPLY)
    script.reply(Seen.SUCCEEDED, replayed=True)
    assert script.status() is Status.SUCCEEDED
    assert len(script.charge.attempts) == 1


def test_an_answer_that_is_being_checked_is_not_forgotten_over_one_that_teaches_nothing() -> None:
    """A twin's 409 comes in while a replayed decline waits for its look."""
    script = confirming()
    script.answer(Seen.DECLINED, replayed=True, error=CARD_DECLINED)
    before = script.charge
    script.answer(Seen.KEY_IN_USE)
    assert script.charge == before
    assert isinstance(script.step(), Fetch)
    script.look(Seen.UNCONFIRMED)
    assert script.status() is Status.DECLINED


def test_a_decline_without_its_reason_is_explained_by_the_payment_intent() -> None:
    """The replayed answer had no error in it; the object has."""
    script = confirming()
    script.answer(Seen.DECLINED, replayed=True)
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.charge.last_error == CARD_DECLINED


# --- 400 payment_intent_unexpected_state ----------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["confirm", "cancel"])
def test_an_unexpected_state_is_looked_at_and_found_paid(operation: str) -> None:
    """Often it has already succeeded."""
    script = recorded() if operation == "confirm" else closing()
    script.reply(Seen.UNEXPECTED_STATE)
    assert not script.charge.final
    script.look(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


def test_an_unexpected_state_that_is_over_gets_another_attempt_after_a_while() -> None:
    """It was refused then and is possible now; each attempt counts, so it ends with a person."""
    script = answered(Seen.UNEXPECTED_STATE)
    for number in range(2, policy.ATTEMPTS_LIMIT + 1):
        script.look(Seen.UNCONFIRMED)
        assert script.said.then is Then.LATER
        assert len(script.charge.attempts) == number
        script.waited()
        script.reply(Seen.UNEXPECTED_STATE)
    script.look(Seen.UNCONFIRMED)
    assert len(script.charge.attempts) == policy.ATTEMPTS_LIMIT
    assert policy.waiting_on(script.charge) is Party.OPERATOR
    assert script.said.then is Then.REST


# --- 409, 429 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [Seen.KEY_IN_USE, Seen.LIMITED])
@pytest.mark.parametrize("operation", ["create", "confirm", "cancel"])
def test_what_taught_nothing_is_sent_again_later_under_the_same_key(seen: Seen, operation: str) -> None:
    """409 and 429 say nothing about this send, nor about earlier ones."""
    ways: Ways = {"create": Script, "confirm": recorded, "cancel": closing}
    script = ways[operation]()
    script.reply(seen)
    assert script.said.then is Then.LATER
    script.waited()
    script.send()
    assert script.sends[-1][0] == script.sends[-2][0]


def test_a_limit_after_a_timeout_leaves_the_charge_unknown() -> None:
    """The limiter stands in front of the endpoint: the send that timed out may be charging."""
    script = answered(Seen.NO_REPLY)
    script.reply(Seen.LIMITED)
    assert script.status() is Status.UNKNOWN


def test_a_blocked_charge_that_meets_a_limit_is_no_longer_blocked() -> None:
    """The API key works again; what was sent before it broke may have charged."""
    script = answered(Seen.NO_REPLY)
    script.reply(Seen.UNAUTHORIZED)
    assert script.status() is Status.BLOCKED
    script.waited()
    script.reply(Seen.LIMITED)
    assert script.status() is Status.UNKNOWN
    assert script.charge.blocked_on is None


# --- 401, 403 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["create", "confirm", "cancel"])
def test_a_bad_api_key_blocks_and_the_same_key_goes_on_once_mended(operation: str) -> None:
    """Nothing ran. It is tried again every ten minutes, and by itself."""
    ways: Ways = {"create": Script, "confirm": recorded, "cancel": closing}
    script = ways[operation]()
    script.reply(Seen.UNAUTHORIZED)
    assert script.status() is Status.BLOCKED
    assert policy.waiting_on(script.charge) is Party.OPERATOR
    assert policy.due_at(script.charge, script.now, None) == script.now + policy.BLOCKED_WAIT

    script.waited()
    script.reply({"create": Seen.UNCONFIRMED, "confirm": Seen.SUCCEEDED, "cancel": Seen.CANCELED}[operation])

    assert script.sends[-1][0] == script.sends[-2][0]
    assert script.status() is not Status.BLOCKED


def test_a_bad_api_key_for_longer_than_the_horizon_is_looked_at_not_sent() -> None:
    """The key may be pruned: what was sent under it once, 23 h ago, is read at Stripe."""
    script = answered(Seen.UNAUTHORIZED)
    script.now += AFTER_THE_HORIZON
    script.wake()
    assert isinstance(script.step(), Fetch)


def test_an_operator_takes_up_a_blocked_charge_under_the_key_it_had() -> None:
    """What was sent may have charged: the same key tells."""
    script = answered(Seen.NO_REPLY)
    script.reply(Seen.UNAUTHORIZED)
    script.choose(Act.RETRY)
    assert script.status() is Status.UNKNOWN
    assert script.send().idempotency_key == script.sends[0][0].replace("create", "g1-confirm")
    assert len(script.charge.attempts) == 1


@pytest.mark.parametrize("seen", [Seen.PROCESSING, Seen.AUTHENTICATION_REQUIRED, Seen.DECLINED])
def test_a_charge_that_a_failed_look_blocked_comes_back_to_what_it_waits_for(seen: Seen) -> None:
    """A bank debit fails while the API key is broken: once mended the customer is told, not the operator for ever."""
    script = changed(answered(seen), status=Status.BLOCKED, blocked_on=Party.OPERATOR)
    assert policy.due_at(script.charge, script.now, None) == script.now + policy.BLOCKED_WAIT
    script.waited()
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.DECLINED
    assert script.charge.blocked_on is None
    assert script.charge.last_error == CARD_DECLINED


@pytest.mark.parametrize("seen", sorted(policy.LOOK_BLOCKED_ON))
@pytest.mark.parametrize("where", [Seen.DECLINED, Seen.TRANSIENT_DECLINE])
def test_a_look_that_nothing_hangs_on_blocks_nothing(seen: Seen, where: Seen) -> None:
    """An event called for it: the retry that is planned, and the customer's four ways out, stay."""
    script = answered(where)
    before = script.charge
    script.observe(LookFailed(seen=seen))
    assert script.charge == before


def test_a_planned_retry_survives_exceptions_of_ours() -> None:
    """Blocked after some, mended, looked at: it is planned again, not left to the customer."""
    script = answered(Seen.TRANSIENT_DECLINE)
    for _ in range(policy.CRASHES_LIMIT):
        script.crash()
    assert script.status() is Status.BLOCKED
    assert script.charge.next_attempt_at is None
    script.waited()
    script.look(Seen.UNCONFIRMED)
    assert script.status() is Status.RETRYING
    assert script.charge.next_attempt_at == script.now + MINUTE


# --- 404 ------------------------------------------------------------------------------------------------------------


def test_a_missing_payment_intent_is_the_operators() -> None:
    """Wrong account, mode or key: not the customer's business, and nothing is sent until somebody says so."""
    script = answered(Seen.MISSING_PAYMENT_INTENT)
    assert policy.waiting_on(script.charge) is Party.OPERATOR
    for _ in range(3):
        script.waited()
        script.look_failed(Seen.MISSING_PAYMENT_INTENT)
        assert policy.waiting_on(script.charge) is Party.OPERATOR
        assert len(script.sends) == 2


def test_a_refusal_stays_blocked_however_often_it_is_looked_at() -> None:
    """Unconfirmed is what a refused confirm leaves behind."""
    script = answered(Seen.MISSING_OBJECT)
    before = script.charge
    for _ in range(3):
        script.waited()
        script.look(Seen.UNCONFIRMED)
        assert script.charge == before
    assert policy.due_at(script.charge, script.now, None) == script.now + policy.LOOK_EVERY


def test_a_lost_404_that_is_replayed_explains_every_send() -> None:
    """What was saved under the key is the refusal: nothing is in doubt, and the customer may give another card."""
    script = answered(Seen.NO_REPLY)
    script.reply(Seen.MISSING_OBJECT, replayed=True)
    script.look(Seen.UNCONFIRMED)
    assert script.charge.attempts[0].settled
    script.choose(Act.PAYMENT_METHOD)
    script.reply(Seen.DECLINED, error=CARD_DECLINED)
    assert script.status() is Status.DECLINED


@pytest.mark.parametrize("seen", [Seen.INVALID, Seen.MISSING_OBJECT, Seen.MISSING_PAYMENT_INTENT])
def test_a_refusal_does_not_explain_an_earlier_send_that_timed_out(seen: Seen) -> None:
    """Blocked, and its key burnt: a decline of the next attempt is told as unknown until that key is 24 h old."""
    script = refused_while_an_earlier_send_is_unexplained(seen)
    assert script.charge.attempts[0].standing is Standing.BURNT
    assert script.status() is Status.BLOCKED
    script.wake(HOUR)
    script.look(Seen.UNCONFIRMED)
    assert script.status() is Status.BLOCKED

    script.choose(Act.RETRY)
    script.reply(Seen.DECLINED, error=CARD_DECLINED)
    assert script.status() is Status.UNKNOWN


def test_a_refused_create_is_looked_for_before_another_where_an_earlier_send_is_unexplained() -> None:
    """The copy that timed out may have made the PaymentIntent: it is adopted, and no second one is made."""
    script = Script()
    script.reply(Seen.NO_REPLY)
    script.reply(Seen.INVALID)
    assert script.status() is Status.BLOCKED

    script.choose(Act.RETRY)
    script.listed(intent(script.charge))

    assert script.charge.payment_intent == OURS
    assert script.send().operation == "confirm"


def test_a_refused_create_that_made_nothing_gets_the_next_create_key() -> None:
    """The list shows none; one that was refused at its first send needs no list."""
    script = Script()
    script.reply(Seen.NO_REPLY)
    script.reply(Seen.INVALID)
    script.choose(Act.RETRY)
    script.listed()
    assert script.send().idempotency_key == f"pio-{script.charge.id}-create-2"

    script = Script()
    script.reply(Seen.INVALID)
    script.choose(Act.RETRY)
    assert script.send().idempotency_key == f"pio-{script.charge.id}-create-2"


# --- idempotency_error ----------------------------------------------------------------------------------------------


def test_drifted_parameters_never_get_a_new_key_by_themselves() -> None:
    """The first request under the key may have charged: looked at, then blocked."""
    script = answered(Seen.PARAMETERS_DRIFTED)
    script.look(Seen.UNCONFIRMED)
    assert policy.waiting_on(script.charge) is Party.OPERATOR
    for _ in range(3):
        script.waited()
        script.look(Seen.UNCONFIRMED)
        assert len(script.charge.attempts) == 1
    script.waited()
    script.look(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


def test_drifted_parameters_that_had_charged_are_found_paid() -> None:
    """A success found is recorded."""
    script = answered(Seen.PARAMETERS_DRIFTED)
    script.look(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


def test_drifted_parameters_of_a_create_are_listed_and_blocked() -> None:
    """Never a new key unseen: what the first create made is found, today or on a later day."""
    script = Script()
    script.reply(Seen.PARAMETERS_DRIFTED)
    script.listed()
    assert policy.waiting_on(script.charge) is Party.OPERATOR
    assert policy.due_at(script.charge, script.now, None) == script.now + policy.LOOK_EVERY

    script.waited()
    script.listed(intent(script.charge))

    assert script.charge.payment_intent == OURS
    assert script.send().operation == "confirm"


def test_an_operator_may_give_a_drifted_create_a_new_key() -> None:
    """An explicit act, after the list."""
    script = Script()
    script.reply(Seen.PARAMETERS_DRIFTED)
    script.listed()
    script.choose(Act.RETRY)
    assert script.send().idempotency_key == f"pio-{script.charge.id}-create-2"


# --- 5xx on cancel --------------------------------------------------------------------------------------------------


def test_a_5xx_on_cancel_is_looked_at_and_canceled_again_under_a_new_key_after_a_while() -> None:
    """Harmless; but not as fast as Stripe can answer."""
    script = closing()
    for number in (1, 2, 3):
        assert script.send().idempotency_key == f"pio-{script.charge.id}-cancel-{number}"
        script.answer(Seen.SERVER_ERROR)
        script.look(Seen.UNCONFIRMED)
        assert script.said.then is Then.LATER
        script.waited()
    script.reply(Seen.SERVER_ERROR)
    script.look(Seen.CANCELED)
    assert script.status() is Status.CANCELED


def test_a_look_while_a_cancel_is_out_does_not_change_its_key() -> None:
    """A webhook comes in between: the request that is out is repeated as written."""
    script = closing()
    script.reply(Seen.NO_REPLY)
    script.fetched(Seen.UNCONFIRMED)
    assert script.send().idempotency_key == script.sends[-2][0]


def test_a_cancel_past_its_horizon_gets_a_new_key() -> None:
    """Its key may be pruned."""
    script = closing()
    script.reply(Seen.NO_REPLY)
    script.now += AFTER_THE_HORIZON
    script.look(Seen.UNCONFIRMED)
    script.waited()
    assert script.send().idempotency_key == f"pio-{script.charge.id}-cancel-2"


# --- What the PaymentIntent says while nothing of ours is out -------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [(CARD_DECLINED, Status.DECLINED), (ASKS_FOR_THE_CUSTOMER, Status.ACTION_REQUIRED), (None, Status.DECLINED)],
)
def test_a_bank_debit_that_comes_back_unpaid_is_told(error: Failure | None, status: Status) -> None:
    """Days later; and the customer has the ways out."""
    script = answered(Seen.PROCESSING)
    script.wake(DAY)
    script.look(Seen.UNCONFIRMED, last_error=error)
    assert script.status() is status
    assert Act.PAYMENT_METHOD in policy.options(script.charge)


def test_a_customer_who_fails_to_authenticate_is_told_and_one_who_has_not_yet_is_not() -> None:
    """The same error again is no news; another one is."""
    script = confirming()
    script.answer(Seen.AUTHENTICATION_REQUIRED, error=ASKS_FOR_THE_CUSTOMER)
    for _ in range(2):
        script.waited()
        script.look(Seen.UNCONFIRMED, last_error=ASKS_FOR_THE_CUSTOMER)
        assert script.status() is Status.ACTION_REQUIRED
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.DECLINED


def not_authenticated() -> Script:
    """The answer to the confirm got lost, a look showed the bank's page, and there the customer failed."""
    script = confirming()
    script.answer(Seen.NO_REPLY)
    script.fetched(Seen.ACTION_REQUIRED)
    assert script.status() is Status.ACTION_REQUIRED
    script.wake(MINUTE)
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.UNKNOWN
    return script


def test_a_failure_to_authenticate_is_told_once_the_answer_that_was_lost_has_been_heard() -> None:
    """The same key says that the bank's page was the confirm's own doing, so nothing else will come of it."""
    script = not_authenticated()
    assert script.send().idempotency_key == script.charge.attempts[0].idempotency_key
    script.answer(Seen.ACTION_REQUIRED, replayed=True)
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert (script.status(), script.charge.last_error) == (Status.DECLINED, CARD_DECLINED)
    assert script.now < START + HOUR
    assert len(script.charge.attempts) == 1


def test_a_page_shown_while_our_own_confirm_is_unexplained_is_not_its_answer() -> None:
    """What the PaymentIntent shows may be the customer's doing; our confirm may still arrive, and charge."""
    script = not_authenticated()
    script.reply(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED
    assert len(script.charge.attempts) == 1


def test_a_page_shown_by_a_confirm_that_stripe_answers_with_a_saved_500_stays_unknown() -> None:
    """That key can say no more: a quarantine, another attempt, and no decline is told before it is past its life."""
    script = not_authenticated()
    script.reply(Seen.SERVER_ERROR, replayed=True)
    script.now += QUARANTINE
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    script.reply(Seen.DECLINED, error=CARD_DECLINED)
    assert script.status() is Status.UNKNOWN


def test_a_bank_that_refuses_what_a_look_had_shown_with_it_is_told_once_the_confirm_is_explained() -> None:
    """As with the bank's page."""
    script = confirming()
    script.answer(Seen.NO_REPLY)
    script.fetched(Seen.PROCESSING)
    script.wake(HOUR)
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.UNKNOWN
    script.reply(Seen.PROCESSING, replayed=True)
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.DECLINED


def test_a_confirm_that_a_look_settled_is_not_sent_again_past_its_horizon() -> None:
    """Its key may be pruned: the failure is told once the key is past its life."""
    script = confirming()
    script.answer(Seen.NO_REPLY)
    script.fetched(Seen.ACTION_REQUIRED)
    script.now = START + policy.KEY_HORIZON
    for _ in range(2):
        script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
        assert script.status() is Status.UNKNOWN
    script.now = START + policy.KEY_LIFE
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.DECLINED


def test_the_answer_that_comes_after_a_look_explains_the_confirm_and_the_decline_is_told_at_once() -> None:
    """An event is often quicker than the answer: it was looked at, and that answer says the same a moment later."""
    script = confirming()
    script.fetched(Seen.ACTION_REQUIRED)
    script.answer(Seen.ACTION_REQUIRED)

    script.wake(MINUTE)
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.DECLINED


def test_a_declined_charge_is_left_alone_until_somebody_acts() -> None:
    """Nothing to send, nothing to look at."""
    script = declined()
    assert script.step() == Rest()
    script.wake(HOUR)
    assert script.status() is Status.DECLINED
    script.fetched(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.DECLINED


# --- Several attempts -----------------------------------------------------------------------------------------------


def test_transient_declines_are_tried_again_three_times_and_then_told() -> None:
    """S6: a minute, ten minutes, an hour, each under a new key; then the customer is asked."""
    script = recorded()
    for number, wait in enumerate([MINUTE, 10 * MINUTE, HOUR], start=1):
        script.reply(Seen.TRANSIENT_DECLINE)
        assert script.status() is Status.RETRYING
        assert script.charge.next_attempt_at == script.now + wait
        script.wake(wait - SECOND)
        assert script.step() == Rest()
        script.wake(SECOND)
        assert len(script.charge.attempts) == number + 1
    script.reply(Seen.TRANSIENT_DECLINE)
    assert script.status() is Status.DECLINED
    assert script.charge.next_attempt_at is None
    assert len({key for key, _ in script.sends}) == 5


def test_no_more_attempts_than_the_limit_are_made() -> None:
    """Stripe cancels a PaymentIntent that is confirmed too often."""
    script = recorded()
    for _ in range(policy.ATTEMPTS_LIMIT - 1):
        script.reply(Seen.DECLINED)
        script.choose(Act.RETRY)
    script.reply(Seen.DECLINED)
    assert script.choose(Act.RETRY).refusal == "act_does_not_fit"
    assert script.status() is Status.DECLINED
    assert len(script.charge.attempts) == policy.ATTEMPTS_LIMIT
    assert policy.due_at(script.charge, script.now, None) == script.charge.expires_at


def test_a_burnt_key_past_the_limit_waits_for_a_person() -> None:
    """The quarantine is over, but there is no attempt left."""
    script = recorded()
    for _ in range(policy.ATTEMPTS_LIMIT - 1):
        script.reply(Seen.DECLINED)
        script.choose(Act.RETRY)
    script.reply(Seen.SERVER_ERROR, replayed=True)
    script.now += QUARANTINE
    script.look(Seen.UNCONFIRMED)
    assert policy.waiting_on(script.charge) is Party.OPERATOR


# --- Our own mistakes -----------------------------------------------------------------------------------------------


def test_exceptions_of_ours_are_retried_and_then_shown_to_a_person() -> None:
    """Five in a row; a bug never ends a charge."""
    script = confirming()
    for number in range(1, policy.CRASHES_LIMIT):
        script.crash()
        assert script.charge.crashes == number
        assert script.status() is not Status.BLOCKED
        assert script.said.then is Then.LATER
        script.waited()
    script.crash()
    assert policy.waiting_on(script.charge) is Party.OPERATOR
    assert script.charge.last_error == Failure(type="internal_error")


def test_once_the_bug_is_mended_the_same_key_goes_on_by_itself() -> None:
    """S11: it was blocked, and nobody needs to touch it."""
    script = confirming()
    for _ in range(policy.CRASHES_LIMIT):
        script.crash()
    script.waited()
    script.reply(Seen.SUCCEEDED)
    assert script.sends[-1][0] == script.sends[-2][0]
    assert script.status() is Status.SUCCEEDED


def test_a_bug_after_the_end_changes_nothing() -> None:
    """Paid is paid."""
    script = answered(Seen.SUCCEEDED)
    before = script.charge
    script.crash()
    script.observe(nothing_seen())
    assert script.charge == before


def nothing_seen() -> LookFailed:
    """A look that brought nothing."""
    return LookFailed(seen=Seen.NO_REPLY)


# --- Waiting --------------------------------------------------------------------------------------------------------


def test_waits_double_within_bounds() -> None:
    """Each wait is half to all of what has been waited already: a second at first, ten minutes at most."""
    script = confirming()
    waits = []
    while script.now < START + 6 * HOUR:
        script.answer(Seen.NO_REPLY)
        assert SECOND / 2 <= script.said.wait <= policy.LAST_WAIT
        waited = max(script.now - START, SECOND)
        assert min(waited, policy.LAST_WAIT) / 2 <= script.said.wait <= min(waited, policy.LAST_WAIT)
        waits.append(script.said.wait)
        script.waited()
        script.send()
    assert waits[0] <= SECOND
    assert waits[-1] >= policy.LAST_WAIT / 2
    assert len(waits) < 90


def test_waits_are_spread_so_that_no_herd_forms() -> None:
    """A thousand charges that failed at the same moment do not come again at the same moment."""
    waits = set()
    for number in range(100):
        script = changed(confirming(), id=f"charge-{number}")
        script.now += HOUR
        script.answer(Seen.NO_REPLY, key=script.charge.attempts[0].idempotency_key)
        waits.add(script.said.wait)
    assert len(waits) > 60
    assert max(waits) - min(waits) > policy.LAST_WAIT / 3


@pytest.mark.parametrize("what", ["crash", "look failed", "orphan"])
def test_waits_grow_however_often_the_record_was_written_meanwhile(what: str) -> None:
    """Every delivery moves `updated_at`; an hour of trouble is still an hour of trouble."""
    script = answered(Seen.SERVER_ERROR)
    if what == "orphan":
        script.charge = changed(script, orphans=("pi_orphan",)).charge
    script.now += HOUR
    script.charge = changed(script, updated_at=script.now).charge
    if what == "crash":
        script.crash()
    elif what == "look failed":
        script.look_failed(Seen.NO_REPLY)
    else:
        script.reply(Seen.NO_REPLY)
    assert script.said.wait >= policy.LAST_WAIT / 2

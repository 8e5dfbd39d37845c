"""What each answer of Stripe means for the customer's money: the truth table, row by row.

Rows that are about HTTP and the SDK alone (which exception, which header) arrive here as the word of `Seen` that the
gateway makes of them.
"""

import pytest

from shared import policy
from shared.charge import Act, Party, Seen, Standing, Status
from shared.policy import Fetch, Send, Then
from tests.script import (
    ASKS_FOR_THE_CUSTOMER,
    CARD_DECLINED,
    DAY,
    HOUR,
    LIMITS,
    MINUTE,
    START,
    Script,
    answered,
    burnt,
    confirming,
    recorded,
    refused_while_an_earlier_send_is_unexplained,
)

REPLAYED = pytest.mark.parametrize("replayed", [False, True], ids=["fresh", "replayed"])


@REPLAYED
def test_row_01_succeeded_is_paid_once_also_when_replayed(replayed: bool) -> None:
    """Money moved once; nothing more is sent."""
    script = confirming()
    script.answer(Seen.SUCCEEDED, replayed=replayed)
    assert script.status() is Status.SUCCEEDED
    assert script.charge.amount_received == 1999
    assert script.charge.due_at is None


def test_row_02_requires_action_waits_for_the_customer_and_sends_nothing() -> None:
    """A 200 that is not "paid"."""
    script = answered(Seen.ACTION_REQUIRED)
    assert policy.waiting_on(script.charge) is Party.CUSTOMER
    script.waited()
    script.look(Seen.ACTION_REQUIRED)
    assert len(script.sends) == 2


@pytest.mark.parametrize(("seen", "party"), [(Seen.PROCESSING, Party.BANK), (Seen.HELD, Party.OPERATOR)])
def test_row_03_processing_and_held_are_not_paid_yet(seen: Seen, party: Party) -> None:
    """The bank works, or holds the money: the webhook or a daily look tells."""
    script = answered(seen)
    assert policy.waiting_on(script.charge) is party
    assert not script.charge.final
    script.event(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


def test_row_04_an_unreadable_200_is_no_reply_and_asked_again_with_the_same_key() -> None:
    """It may have charged."""
    script = answered(Seen.NO_REPLY)
    assert script.status() is Status.UNKNOWN
    script.waited()
    assert script.send().idempotency_key == script.sends[-2][0]


def test_row_05_a_validation_error_moved_nothing_and_waits_for_the_developer() -> None:
    """Not saved; the next attempt is somebody's decision."""
    script = answered(Seen.INVALID)
    assert policy.waiting_on(script.charge) is Party.OPERATOR
    assert not policy.money_may_move(script.charge)


def test_row_06_a_400_of_the_endpoint_is_replayed_and_gets_a_new_key_after_the_fix() -> None:
    """Saved: repeating the key would repeat the 400."""
    script = answered(Seen.NO_REPLY)
    script.reply(Seen.INVALID, replayed=True)
    script.look(Seen.UNCONFIRMED)
    assert policy.waiting_on(script.charge) is Party.OPERATOR
    assert script.charge.attempts[0].settled
    script.choose(Act.RETRY)
    assert script.send().idempotency_key != script.sends[-2][0]


@pytest.mark.parametrize("operation", ["create", "confirm"])
def test_row_07_other_parameters_under_the_key_never_get_a_new_key_unseen(operation: str) -> None:
    """The first request may have charged."""
    script = Script() if operation == "create" else recorded()
    script.reply(Seen.PARAMETERS_DRIFTED)
    assert not isinstance(script.step(), Send)
    if operation == "create":
        script.listed()
    else:
        script.look(Seen.UNCONFIRMED)
    assert policy.waiting_on(script.charge) is Party.OPERATOR
    script.wake(DAY)
    assert not isinstance(script.step(), Send)


def test_row_08_an_unexpected_state_is_looked_at_for_it_has_often_succeeded() -> None:
    """GET and branch."""
    script = answered(Seen.UNEXPECTED_STATE)
    assert script.status() is Status.UNKNOWN
    script.look(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


@pytest.mark.parametrize("earlier", [False, True])
def test_rows_09_and_10_a_bad_api_key_or_permission_leaves_the_key_good(earlier: bool) -> None:
    """Nothing ran; the operator mends it; the same key goes on."""
    script = answered(Seen.NO_REPLY) if earlier else recorded()
    script.reply(Seen.UNAUTHORIZED)
    assert policy.waiting_on(script.charge) is Party.OPERATOR
    script.waited()
    assert script.send().idempotency_key == script.sends[-2][0]


def test_rows_11_and_12_a_decline_is_final_for_its_key_and_waits_for_the_customer() -> None:
    """Saved; another try is another key, and never by itself."""
    script = answered(Seen.DECLINED)
    assert policy.waiting_on(script.charge) is Party.CUSTOMER
    assert script.charge.attempts[0].settled
    script.wake(DAY)
    assert script.status() is Status.DECLINED


def test_row_13_the_bank_asks_for_the_customer() -> None:
    """The same PaymentIntent is confirmed on session; no decline is told."""
    script = confirming()
    script.answer(Seen.AUTHENTICATION_REQUIRED, error=ASKS_FOR_THE_CUSTOMER)
    assert script.status() is Status.ACTION_REQUIRED
    script.fetched(Seen.ACTION_REQUIRED)
    assert script.status() is Status.ACTION_REQUIRED
    script.event(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


def test_row_14_a_processing_error_is_saved_so_the_retry_has_a_new_key() -> None:
    """Within minutes, a few times."""
    script = answered(Seen.TRANSIENT_DECLINE)
    assert script.status() is Status.RETRYING
    script.waited()
    assert script.now - START == MINUTE
    assert script.send().idempotency_key != script.sends[-2][0]


def test_row_16_a_missing_object_is_the_account_owners_a_missing_payment_intent_the_operators() -> None:
    """404 either way, and the customer hears only of the first."""
    assert policy.waiting_on(answered(Seen.MISSING_OBJECT).charge) is Party.ACCOUNT_OWNER
    assert policy.waiting_on(answered(Seen.MISSING_PAYMENT_INTENT).charge) is Party.OPERATOR


def test_row_17_the_twin_that_has_the_key_may_be_charging() -> None:
    """409: same key, in a second."""
    script = answered(Seen.KEY_IN_USE)
    assert script.status() is Status.UNKNOWN
    script.waited()
    script.reply(Seen.SUCCEEDED, replayed=True)
    assert script.status() is Status.SUCCEEDED


@pytest.mark.parametrize("row", [18, 22, 28])
def test_rows_18_22_and_28_whatever_no_table_lists_may_have_charged(row: int) -> None:
    """424, an HTML 502, a bug on the way: SERVER_ERROR. Looked at, then the same key."""
    assert row
    script = answered(Seen.SERVER_ERROR)
    script.look(Seen.UNCONFIRMED)
    script.waited()
    assert script.send().idempotency_key == script.sends[-2][0]


@pytest.mark.parametrize("row", [19, 20])
def test_rows_19_and_20_a_limit_says_nothing_about_earlier_sends(row: int) -> None:
    """429, by the limiter or by a lock: the same key later."""
    assert row
    script = answered(Seen.NO_REPLY)
    script.reply(Seen.LIMITED)
    assert script.status() is Status.UNKNOWN
    assert script.said.then is Then.LATER
    assert script.charge.attempts[0].unanswered == 1


def test_row_21_a_500_is_repeated_until_it_proves_saved_and_then_only_read() -> None:
    """A replayed 500 settles only that more sends are pointless."""
    script = answered(Seen.SERVER_ERROR)
    script.look(Seen.UNCONFIRMED)
    script.waited()
    script.reply(Seen.SERVER_ERROR, replayed=True)
    assert script.charge.attempts[0].standing is Standing.BURNT
    assert isinstance(script.step(), Fetch)
    assert policy.money_may_move(script.charge)


@pytest.mark.parametrize("row", [23, 24])
def test_rows_23_and_24_not_sent_and_not_answered_are_not_told_apart(row: int) -> None:
    """Connection refused or read timeout: the same key and parameters until a result arrives."""
    assert row
    script = answered(Seen.NO_REPLY)
    assert script.status() is Status.UNKNOWN
    script.waited()
    again = script.send()
    assert again.sends == 2
    assert again.unanswered == 2
    assert again.first_sent_at == START


def test_row_25_a_charge_that_was_not_recorded_as_sent_was_not_sent() -> None:
    """Recorded before it is sent: an unsent request has never reached Stripe."""
    script = recorded()
    attempt = script.charge.attempts[0]
    assert (attempt.sends, attempt.first_sent_at, attempt.standing) == (0, None, Standing.UNSENT)
    assert not policy.money_may_move(script.charge)


@pytest.mark.parametrize("row", [26, 27])
def test_rows_26_and_27_a_write_back_that_failed_or_a_killed_function_repeats_the_key(row: int) -> None:
    """Stripe may have charged, and will say so again."""
    assert row
    script = confirming()
    script.wake(2 * MINUTE)
    assert script.status() is Status.UNKNOWN
    script.reply(Seen.DECLINED, replayed=True, error=CARD_DECLINED)
    script.look(Seen.UNCONFIRMED)
    assert script.status() is Status.DECLINED


def test_row_30_a_redelivery_more_than_a_day_after_the_first_send_sends_nothing() -> None:
    """A send now could charge again: it is read."""
    script = answered(Seen.NO_REPLY)
    script.wake(DAY + HOUR)
    assert isinstance(script.step(), Fetch)
    script.look(Seen.UNCONFIRMED)
    assert {attempt.outcome for attempt in script.charge.attempts} == {"unconfirmed", None}
    assert script.charge.attempts[-1].payment_intent == script.charge.payment_intent


def test_what_settles_a_key_and_what_does_not() -> None:
    """2xx, 402 and the endpoint's own 4xx do; 401, 403, 409, 429, 5xx, 424 and silence do not."""
    settles = {seen for seen in Seen if answered(seen).charge.attempts[0].settled}
    assert settles == {
        *(Seen.SUCCEEDED, Seen.PROCESSING, Seen.ACTION_REQUIRED, Seen.HELD, Seen.CANCELED),
        *(Seen.DECLINED, Seen.AUTHENTICATION_REQUIRED, Seen.TRANSIENT_DECLINE),
        *(Seen.MISSING_OBJECT, Seen.MISSING_PAYMENT_INTENT, Seen.INVALID),
    }
    assert not refused_while_an_earlier_send_is_unexplained(Seen.INVALID).charge.attempts[0].settled
    assert not burnt().charge.attempts[0].settled
    assert LIMITS.quarantine < policy.KEY_LIFE

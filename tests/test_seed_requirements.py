"""What was asked for, row by row (S1 to S13; S12 is for subscriptions), as far as it is decided in the core."""

from datetime import timedelta

import pytest

from shared import policy
from shared.charge import Act, Failure, Party, Seen, Status, charge_id
from shared.policy import List, Send, Then
from tests.script import (
    CARD_DECLINED,
    DAY,
    HOUR,
    KEY,
    MINUTE,
    OURS,
    SECOND,
    START,
    Script,
    answered,
    confirming,
    declined,
    intent,
    recorded,
)

FOUR_WAYS_OUT = {Act.RETRY, Act.PAYMENT_METHOD, Act.OUT_OF_BAND, Act.CANCEL}


def test_s1_a_repeated_key_gets_the_saved_answer_and_the_customer_pays_once() -> None:
    """The reply got lost; the same key is sent within 24 hours and answers what it answered then."""
    script = answered(Seen.NO_REPLY)
    script.waited()
    script.reply(Seen.SUCCEEDED, replayed=True)
    assert script.status() is Status.SUCCEEDED
    assert script.charge.amount_received == script.charge.terms.amount
    assert script.sends[-1][0] == script.sends[-2][0]


def test_s1_no_key_is_sent_once_stripe_may_have_forgotten_it() -> None:
    """Past 23 hours a repeat could be a new charge."""
    script = answered(Seen.NO_REPLY)
    script.now = START + policy.KEY_HORIZON
    assert not isinstance(script.step(), Send)


def test_s2_a_bad_request_waits_for_the_developer_and_goes_out_again_with_a_new_key() -> None:
    """400: our code is wrong; once it is mended somebody says so."""
    script = answered(Seen.INVALID)
    assert policy.waiting_on(script.charge) is Party.OPERATOR
    script.wake(DAY)
    script.look(Seen.UNCONFIRMED)
    assert len(script.charge.attempts) == 1

    script.choose(Act.RETRY)
    script.reply(Seen.SUCCEEDED)

    assert script.status() is Status.SUCCEEDED
    assert [attempt.number for attempt in script.charge.attempts] == [1, 2]


def test_s3_a_bad_api_key_blocks_and_the_same_key_goes_on_by_itself_once_mended() -> None:
    """401: nothing ran, so today's Stripe lets the same key go on; that is the safer one."""
    script = answered(Seen.UNAUTHORIZED)
    assert policy.waiting_on(script.charge) is Party.OPERATOR
    script.waited()
    script.reply(Seen.SUCCEEDED)
    assert script.sends[-1][0] == script.sends[-2][0]
    assert script.status() is Status.SUCCEEDED


@pytest.mark.parametrize("way", ["another card", "cancel"])
def test_s4_a_wrong_card_waits_for_another_one_under_a_new_key_or_is_canceled(way: str) -> None:
    """402 for a number, expiry, CVC or postal code: the customer acts, nothing is retried by itself."""
    script = confirming()
    script.answer(Seen.DECLINED, error=Failure(type="card_error", code="expired_card"))
    assert policy.waiting_on(script.charge) is Party.CUSTOMER
    script.wake(DAY)
    assert len(script.sends) == 2

    script.choose(Act.PAYMENT_METHOD if way == "another card" else Act.CANCEL)
    request = script.send()

    if way == "another card":
        assert request.idempotency_key != script.sends[1][0]
        assert '"pm_other"' in request.parameters
        script.answer(Seen.SUCCEEDED)
        assert script.status() is Status.SUCCEEDED
    else:
        script.answer(Seen.CANCELED)
        assert script.status() is Status.CANCELED


def test_s5_card_declined_offers_four_ways_out_under_a_new_key() -> None:
    """Try again later, another card, pay in cash, cancel the order."""
    script = declined()
    assert script.status() is Status.DECLINED
    assert script.charge.last_error == CARD_DECLINED
    assert policy.waiting_on(script.charge) is Party.CUSTOMER
    assert policy.options(script.charge) == FOUR_WAYS_OUT

    for act, ends_as in [
        (Act.RETRY, Status.SUCCEEDED),
        (Act.PAYMENT_METHOD, Status.SUCCEEDED),
        (Act.OUT_OF_BAND, Status.PAID_OUT_OF_BAND),
        (Act.CANCEL, Status.CANCELED),
    ]:
        script = declined()
        script.choose(act)
        pays = act in {Act.RETRY, Act.PAYMENT_METHOD}
        script.reply(Seen.SUCCEEDED if pays else Seen.CANCELED)
        assert script.status() is ends_as
        assert len({key for key, _ in script.sends}) == len(script.sends)


def test_s6_a_processing_error_is_tried_a_few_times_before_the_customer_is_asked() -> None:
    """At once, then over hours, each under a new key."""
    script = recorded()
    tries = []
    while script.reply(Seen.TRANSIENT_DECLINE) and script.status() is Status.RETRYING:
        assert policy.waiting_on(script.charge) is Party.SYSTEM
        assert script.charge.next_attempt_at is not None
        tries.append(script.charge.next_attempt_at - script.now)
        script.waited()
    assert tries == [MINUTE, 10 * MINUTE, HOUR]
    assert policy.waiting_on(script.charge) is Party.CUSTOMER
    assert policy.options(script.charge) == FOUR_WAYS_OUT


@pytest.mark.parametrize("operation", ["create", "confirm"])
def test_s7_a_deleted_card_tells_the_account_owner_and_a_new_card_is_charged(operation: str) -> None:
    """404: nothing is tried again before there is another card."""
    script = Script() if operation == "create" else recorded()
    script.reply(Seen.MISSING_OBJECT)
    assert policy.waiting_on(script.charge) is Party.ACCOUNT_OWNER
    assert Act.PAYMENT_METHOD in policy.options(script.charge)
    sent = len(script.sends)
    script.wake(DAY)
    assert len(script.sends) == sent

    script.choose(Act.PAYMENT_METHOD)
    if operation == "create":
        script.reply(Seen.UNCONFIRMED)
    request = script.send()
    assert '"pm_other"' in request.parameters
    script.answer(Seen.SUCCEEDED)

    assert script.status() is Status.SUCCEEDED


def test_s7_a_deleted_customer_gives_a_new_card_as_a_new_customer_who_is_charged_under_a_new_key() -> None:
    """404 of the create: the flow that gets a new card works without the customer that it can no longer be for."""
    script = Script()
    script.reply(Seen.MISSING_OBJECT, error=policy.NO_CUSTOMER)
    assert policy.waiting_on(script.charge) is Party.ACCOUNT_OWNER
    script.wake(DAY)
    assert len(script.sends) == 1

    script.choose(Act.PAYMENT_METHOD, customer="cus_new")
    request = script.send()
    assert '"cus_new"' in request.parameters
    assert request.idempotency_key != script.sends[0][0]
    script.answer(Seen.UNCONFIRMED, customer="cus_new")
    script.reply(Seen.SUCCEEDED, customer="cus_new")

    assert script.status() is Status.SUCCEEDED


def test_s8_a_5xx_may_have_charged_so_it_is_looked_at_and_never_told_as_failed() -> None:
    """Same key at once and over hours with backoff; a look each time; and the webhook closes it."""
    script = recorded()
    while script.now < START + 12 * HOUR:
        script.reply(Seen.SERVER_ERROR)
        script.look(Seen.UNCONFIRMED)
        assert script.status() is Status.UNKNOWN
        script.waited()
    assert len(script.charge.attempts) == 1
    script.event(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


def test_s9_no_answer_is_asked_again_under_the_same_key_with_growing_and_spread_waits() -> None:
    """At once, then over hours."""
    script = recorded()
    waits = []
    while script.now < START + 2 * HOUR:
        script.reply(Seen.NO_REPLY)
        waits.append(script.said.wait)
        script.waited()
    assert waits[0] <= SECOND
    assert max(waits) > 5 * MINUTE
    assert len({key for key, _ in script.sends}) == 2  # The create's and the confirm's.
    script.reply(Seen.SUCCEEDED)
    assert script.status() is Status.SUCCEEDED


@pytest.mark.parametrize("outage", [timedelta(seconds=5), 3 * HOUR])
def test_s10_an_answer_that_could_not_be_written_back_is_asked_for_again(outage: timedelta) -> None:
    """To the code it looks as if the first request had never been answered."""
    script = confirming()
    script.wake(outage)
    assert script.status() is Status.UNKNOWN
    script.reply(Seen.SUCCEEDED, replayed=True)
    assert script.status() is Status.SUCCEEDED
    assert script.sends[-1][0] == script.sends[-2][0]


def test_s10_after_more_than_24_hours_the_customers_payments_are_listed_and_ours_found_by_its_metadata() -> None:
    """The create's answer was never written back, and its key is gone."""
    script = Script()
    script.send()
    script.wake(DAY + HOUR)
    step = script.step()
    assert isinstance(step, List)
    assert step.since < START

    script.listed(
        intent(script.charge, Seen.SUCCEEDED, "pi_unrelated", charge_id="somebody else's"),
        intent(script.charge, Seen.UNCONFIRMED),
    )

    assert script.charge.payment_intent == OURS


def test_s11_a_bug_is_repeated_with_the_same_key_and_then_shown_to_a_person() -> None:
    """Any other exception: once mended, the same key."""
    script = confirming()
    for _ in range(policy.CRASHES_LIMIT):
        script.crash()
        script.wake(MINUTE)
    assert policy.waiting_on(script.charge) is Party.OPERATOR
    script.choose(Act.RETRY)
    script.reply(Seen.SUCCEEDED)
    assert script.sends[-1][0] == script.sends[-2][0]
    assert script.status() is Status.SUCCEEDED


def test_s13_a_charge_is_one_per_connected_account_and_believes_only_its_own_account() -> None:
    """The same caller's key on two accounts is two charges; an event of the one says nothing of the other."""
    assert len({charge_id(account, KEY) for account in (None, "acct_1", "acct_2")}) == 3

    script = Script(account="acct_1")
    script.reply(Seen.UNCONFIRMED)
    script.send()
    script.event(Seen.SUCCEEDED, account="acct_2")
    script.event(Seen.SUCCEEDED, account=None)
    assert script.status() is Status.PENDING
    script.event(Seen.SUCCEEDED, account="acct_1")
    assert script.status() is Status.SUCCEEDED


def test_s13_the_accounts_owner_is_a_party_to_be_told() -> None:
    """What was deleted on the connected account is its owner's to mend."""
    script = Script(account="acct_1")
    script.reply(Seen.MISSING_OBJECT)
    assert policy.waiting_on(script.charge) is Party.ACCOUNT_OWNER
    assert script.said.then is Then.REST

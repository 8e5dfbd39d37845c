"""Who is to be told what, once: the outbox neither repeats itself nor grows for ever."""

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import pytest

from shared import policy
from shared.charge import Act, Audience, Failure, Happened, Notice, Seen, Status, Topic, Woken
from shared.policy import Limits
from tests.script import CARD_DECLINED, DAY, HOUR, MINUTE, START, Script, changed, intent

EVERYBODY: Final = Limits(reaches=frozenset(Audience))
REFUSED: Final = Failure(type="invalid_request_error", message="Invalid API Key provided")
TOLD: Final = (Audience.OPERATOR, Topic.BLOCKED)


def confirming() -> Script:
    """Its first attempt has been sent, and everybody can be told."""
    script = Script(limits=EVERYBODY)
    script.reply(Seen.UNCONFIRMED)
    script.send()
    return script


def declined() -> Script:
    """Its card was declined."""
    script = confirming()
    script.answer(Seen.DECLINED, error=CARD_DECLINED)
    return script


def about(script: Script, audience: Audience) -> list[Topic]:
    """Name what an audience was or is to be told, in order."""
    return [notice.topic for notice in script.charge.outbox if notice.audience is audience]


def tell(script: Script, *, dropped: bool = False) -> None:
    """Play the notify function: everything that is left is told."""
    outbox = tuple(
        notice if notice.told_at else dataclasses.replace(notice, told_at=script.now, dropped=dropped)
        for notice in script.charge.outbox
    )
    changed(script, outbox=outbox)


def refused(script: Script) -> None:
    """Send it again, to an API key that does not work."""
    script.waited()
    script.send()
    script.answer(Seen.UNAUTHORIZED, error=REFUSED)
    assert script.status() is Status.BLOCKED


def unheard(script: Script) -> None:
    """Send it again, to a Stripe that does not answer."""
    script.waited()
    script.send()
    script.answer(Seen.NO_REPLY)
    assert script.status() is Status.UNKNOWN


@pytest.mark.parametrize("are_told", [True, False], ids=["told", "nobody listens"])
def test_a_charge_that_goes_back_and_forth_is_told_of_once(*, are_told: bool) -> None:
    """An API key that works now and then, and a Stripe that does not answer in between."""
    script = confirming()
    script.answer(Seen.UNAUTHORIZED, error=REFUSED)
    for _ in range(50):
        if are_told:
            tell(script)
        unheard(script)
        refused(script)
    assert about(script, Audience.OPERATOR) == [Topic.BLOCKED]
    assert about(script, Audience.CALLER) == [Topic.OUTCOME]


def test_what_was_dropped_because_it_was_not_so_any_more_is_told_when_it_is_so_again() -> None:
    """A word that nobody has heard does not count."""
    script = confirming()
    script.answer(Seen.UNAUTHORIZED, error=REFUSED)
    unheard(script)
    tell(script, dropped=True)
    refused(script)
    assert about(script, Audience.OPERATOR) == [Topic.BLOCKED] * 2
    assert len(script.charge.untold) == 2


def test_the_same_status_for_another_reason_is_told_again() -> None:
    """The API key works again, and now our request is wrong."""
    script = confirming()
    script.answer(Seen.UNAUTHORIZED, error=REFUSED)
    tell(script)
    script.waited()
    script.send()
    script.answer(Seen.INVALID, error=Failure(type="invalid_request_error", code="parameter_unknown"))
    assert script.status() is Status.BLOCKED
    assert about(script, Audience.OPERATOR) == [Topic.BLOCKED] * 2
    assert about(script, Audience.CALLER) == [Topic.OUTCOME] * 2


def test_another_card_that_is_gone_as_well_is_told_again() -> None:
    """S7, before there is a PaymentIntent: the same answer, and another card."""
    gone = Failure(type="invalid_request_error", code="resource_missing", param="payment_method")
    script = Script(limits=EVERYBODY)
    script.reply(Seen.MISSING_OBJECT, error=gone)
    tell(script)
    script.choose(Act.PAYMENT_METHOD)
    script.reply(Seen.MISSING_OBJECT, error=gone)
    assert about(script, Audience.CUSTOMER) == [Topic.MISSING_OBJECT] * 2


def test_whoever_must_mend_a_charge_next_is_told_as_well() -> None:
    """S7: the operator has mended the API key, and now it shows that the card is gone."""
    script = confirming()
    script.answer(Seen.UNAUTHORIZED, error=REFUSED)
    tell(script)
    script.waited()
    script.send()
    script.answer(
        Seen.MISSING_OBJECT,
        error=Failure(type="invalid_request_error", code="resource_missing", param="payment_method"),
    )
    assert about(script, Audience.ACCOUNT_OWNER) == [Topic.MISSING_OBJECT]
    assert about(script, Audience.CUSTOMER) == [Topic.MISSING_OBJECT]


@pytest.mark.parametrize(
    ("terms", "error", "told"),
    [
        ({"account": "acct_shop"}, Failure(type="invalid_request_error", code="account_invalid"), "both"),
        (
            {"on_behalf_of": "acct_shop"},
            Failure(type="invalid_request_error", code="resource_missing", param="on_behalf_of"),
            "operator",
        ),
    ],
    ids=["disconnected", "on behalf of"],
)
def test_an_account_that_is_gone_is_told_to_the_operator_and_no_customer_is_asked_for_a_card(
    terms: dict[str, Any], error: Failure, told: str
) -> None:
    """The owner hears as well, where there is another than the operator."""
    script = Script(limits=EVERYBODY, **terms)
    script.reply(Seen.MISSING_OBJECT, error=error)
    assert about(script, Audience.OPERATOR) == [Topic.MISSING_OBJECT]
    assert about(script, Audience.ACCOUNT_OWNER) == [Topic.MISSING_OBJECT] * (told == "both")
    assert about(script, Audience.CUSTOMER) == []


def test_an_orphan_that_cannot_be_canceled_does_not_tell_the_customer_of_their_decline_again() -> None:
    """Declined, blocked for a while by an API key, declined still: one letter."""
    script = declined()
    tell(script)
    changed(script, orphans=("pi_orphan",))
    script.wake()
    script.send()
    script.answer(Seen.UNAUTHORIZED)
    assert script.status() is Status.BLOCKED
    script.waited()
    script.reply(Seen.CANCELED)
    script.look(Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    assert script.status() is Status.DECLINED
    assert about(script, Audience.CUSTOMER) == [Topic.DECLINED]
    assert about(script, Audience.OPERATOR) == [Topic.BLOCKED]


def test_each_decline_of_another_try_is_told() -> None:
    """That is news."""
    script = declined()
    for _ in range(3):
        tell(script)
        script.choose(Act.RETRY)
        script.reply(Seen.DECLINED, error=CARD_DECLINED)
    assert about(script, Audience.CUSTOMER) == [Topic.DECLINED] * 4
    assert [notice.number for notice in script.charge.outbox] == list(range(1, 9))


def test_news_take_the_place_of_what_nobody_has_heard_yet() -> None:
    """The caller's system is down: it hears how it stands, not how it stood."""
    script = declined()
    numbers = {notice.audience: notice.number for notice in script.charge.outbox}
    script.choose(Act.RETRY)
    script.reply(Seen.DECLINED, error=CARD_DECLINED)
    assert about(script, Audience.CALLER) == [Topic.OUTCOME]
    assert all(notice.number > numbers[notice.audience] for notice in script.charge.outbox)


def test_of_what_was_told_the_latest_is_kept() -> None:
    """And numbers are never given twice: the Message-ID is made of them."""
    script = declined()
    old = tuple(
        Notice(number=number, audience=Audience.CUSTOMER, topic=Topic.DECLINED, at=script.now, told_at=script.now)
        for number in range(1, 101)
    )
    changed(script, outbox=old)
    script.choose(Act.RETRY)
    script.reply(Seen.DECLINED, error=CARD_DECLINED)
    theirs = [notice for notice in script.charge.outbox if notice.audience is Audience.CUSTOMER]
    assert len(theirs) == policy.NOTICES_KEPT + 1
    assert [notice.number for notice in script.charge.outbox][-2:] == [101, 102]


def test_each_new_discrepancy_is_told_and_all_that_are_left_together() -> None:
    """One letter that nobody has had yet says both."""
    script = confirming()
    script.answer(Seen.SUCCEEDED)
    for name in ("pi_one", "pi_two"):
        script.fetched(Seen.SUCCEEDED, name=name, amount=5, amount_received=5)
    assert len(script.charge.discrepancies) == 2
    assert about(script, Audience.OPERATOR) == [Topic.DISCREPANCY]
    tell(script)
    script.fetched(Seen.SUCCEEDED, name="pi_three", amount=5, amount_received=5)
    assert about(script, Audience.OPERATOR) == [Topic.DISCREPANCY] * 2


@pytest.mark.parametrize("are_told", [True, False], ids=["told", "nobody listens"])
@pytest.mark.parametrize(
    ("seen", "error"),
    [
        (Seen.INVALID, Failure(type="invalid_request_error", code="parameter_unknown")),
        (Seen.MISSING_OBJECT, Failure(type="invalid_request_error", code="resource_missing", param="payment_method")),
    ],
)
def test_a_wish_to_pay_in_cash_does_not_tell_again_whoever_must_mend_the_charge(
    seen: Seen, error: Failure, *, are_told: bool
) -> None:
    """Nothing is new to them; it is to the caller, and to whoever is to get the cash."""
    script = confirming()
    script.answer(seen, error=error)
    menders = [(notice.audience, notice.topic) for notice in script.charge.outbox if notice.topic is not Topic.OUTCOME]
    assert menders
    before = script.charge.outbox
    if are_told:
        tell(script)
    script.choose(Act.OUT_OF_BAND, wish=True)
    assert script.status() is Status.BLOCKED
    new = [(notice.audience, notice.topic) for notice in script.charge.outbox if notice.number > before[-1].number]
    assert new == [(Audience.ACCOUNT_OWNER, Topic.PAYS_ELSEWHERE), (Audience.CALLER, Topic.OUTCOME)]
    kept = [(notice.audience, notice.topic) for notice in script.charge.outbox if notice.number <= before[-1].number]
    assert kept[: len(menders)] == menders


def test_a_word_beside_how_the_charge_stands_does_not_have_that_told_again() -> None:
    """The API key works now and then; in between somebody's copy of our metadata is found, and told of."""
    script = confirming()
    script.answer(Seen.UNAUTHORIZED, error=REFUSED)
    tell(script)
    script.fetched(Seen.SUCCEEDED, name="pi_other", amount=5, amount_received=5)
    tell(script)
    unheard(script)
    refused(script)
    assert about(script, Audience.OPERATOR) == [Topic.BLOCKED, Topic.DISCREPANCY]


# --- Again, less and less often ---------------------------------------------------------------------------------------


def canceled() -> Script:
    """Declined, then canceled: nothing is left but to tell so."""
    script = declined()
    tell(script)
    script.choose(Act.CANCEL)
    script.reply(Seen.CANCELED)
    return script


@pytest.mark.parametrize("reach", [declined, canceled])
def test_a_notice_that_nobody_takes_is_put_into_the_queue_less_and_less_often(reach: Callable[[], Script]) -> None:
    """Half an hour, then as long again as it has waited, a day at most."""
    script = reach()
    waits = []
    for _ in range(12):
        due_at = policy.due_at(script.charge, script.now, None)
        assert due_at is not None
        waits.append(due_at - script.now)
        script.now = due_at
    assert waits[:3] == [policy.NOTICE_AGAIN, policy.NOTICE_AGAIN, 2 * policy.NOTICE_AGAIN]
    assert waits[-1] == policy.NOTICE_AGAIN_AT_MOST
    assert sum(waits, timedelta()) > 4 * DAY


def test_who_was_answered_before_it_was_certain_hears_it_now() -> None:
    """Once; and not if they have heard it since."""
    script = changed(declined(), outbox=())
    for _ in range(2):
        script.observe(Woken(unheard=True))
        assert about(script, Audience.CALLER) == [Topic.OUTCOME]
        tell(script)
    assert about(script, Audience.CUSTOMER) == []
    assert policy.due_at(script.charge, script.now, None) == script.charge.expires_at


# --- The customer is here, or has left --------------------------------------------------------------------------------


def on_the_page() -> Script:
    """A customer tries the card on their page."""
    script = declined()
    script.choose(Act.RETRY, return_url="https://pay.example.com/token")
    return script


@pytest.mark.parametrize(("later", "told"), [(MINUTE, False), (HOUR, True)], ids=["at once", "an hour later"])
def test_a_customer_who_may_have_left_is_written_to_that_their_bank_asks(later: timedelta, *, told: bool) -> None:
    """Stripe did not answer for an hour, and then the bank asks whoever is not there any more."""
    script = on_the_page()
    script.send()
    script.answer(Seen.NO_REPLY)
    script.wake(later)
    script.reply(Seen.ACTION_REQUIRED)
    assert script.status() is Status.ACTION_REQUIRED
    assert (about(script, Audience.CUSTOMER)[-1] is Topic.ACTION_REQUIRED) is told


def test_a_wish_to_pay_in_cash_is_told_to_whoever_is_to_get_it() -> None:
    """The owner of the account (of ours: the operator), beside the caller's system; twice is once."""
    script = declined()
    tell(script)
    for _ in range(2):
        script.choose(Act.OUT_OF_BAND, wish=True)
    assert about(script, Audience.ACCOUNT_OWNER) == [Topic.PAYS_ELSEWHERE]
    assert about(script, Audience.CALLER) == [Topic.OUTCOME] * 2


def reminded(script: Script) -> list[Audience]:
    """Name who was reminded that nobody has noted the cash."""
    return [notice.audience for notice in script.charge.outbox if notice.topic is Topic.NOT_NOTED]


@pytest.mark.parametrize("account", ["acct_shop", None])
def test_cash_that_nobody_notes_is_called_to_mind_once_before_it_ends_unpaid(account: str | None) -> None:
    """To who gets it, and to who alone can note it; both heard of the wish. Then it ends as it would have."""
    script = Script(limits=EVERYBODY, account=account)
    script.reply(Seen.UNCONFIRMED)
    script.reply(Seen.DECLINED, error=CARD_DECLINED)
    script.choose(Act.OUT_OF_BAND, wish=True)
    assert about(script, Audience.OPERATOR) == [Topic.PAYS_ELSEWHERE] * (account is not None)
    tell(script)

    script.waited()

    assert script.now == script.charge.expires_at - policy.REMIND_BEFORE
    both = [Audience.ACCOUNT_OWNER, Audience.OPERATOR] if account else [Audience.ACCOUNT_OWNER]
    assert reminded(script) == both
    tell(script)
    script.waited()
    assert reminded(script) == both
    assert script.now == script.charge.expires_at
    assert script.charge.closing is not None


def test_who_has_little_time_left_is_reminded_halfway() -> None:
    """And not at once."""
    script = Script(limits=EVERYBODY, expires_at=START + DAY)
    script.reply(Seen.UNCONFIRMED)
    script.reply(Seen.DECLINED, error=CARD_DECLINED)
    script.choose(Act.OUT_OF_BAND, wish=True)
    assert reminded(script) == []
    tell(script)
    script.waited()
    assert script.now == START + DAY / 2
    assert reminded(script) == [Audience.ACCOUNT_OWNER]


def test_where_nobody_can_be_reminded_nothing_is_woken_for_it_again_and_again() -> None:
    """A deployment without mail."""
    script = Script()
    script.reply(Seen.UNCONFIRMED)
    script.reply(Seen.DECLINED, error=CARD_DECLINED)
    script.choose(Act.OUT_OF_BAND, wish=True)
    script.waited()
    assert (script.status(), script.charge.outbox) == (Status.DECLINED, ())
    script.waited()
    assert script.now == script.charge.expires_at


@pytest.mark.parametrize("later", [MINUTE, policy.REMIND_BEFORE], ids=["at the end", "in time"])
def test_who_pays_by_card_after_all_is_not_called_to_mind(later: timedelta) -> None:
    """They do not owe it in cash any more."""
    script = declined()
    script.choose(Act.OUT_OF_BAND, wish=True)
    script.choose(Act.RETRY)
    script.reply(Seen.DECLINED, error=CARD_DECLINED)
    script.wake(script.charge.expires_at - script.now - later)
    assert reminded(script) == []


def test_an_event_changes_nothing_that_is_told() -> None:
    """Late, of the decline that was told."""
    script = declined()
    before = script.charge
    late = intent(script.charge, Seen.UNCONFIRMED, last_error=CARD_DECLINED)
    script.observe(Happened(type="payment_intent.payment_failed", account=None, payment_intent=late))
    assert script.charge == before

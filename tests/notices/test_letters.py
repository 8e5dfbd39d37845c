"""What people read: complete, in their language, and to be looked at before it is sent."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from shared import letters, preview
from shared.charge import (
    Act,
    Audience,
    CancelReason,
    Charge,
    Closing,
    Discrepancy,
    Failure,
    Party,
    Seen,
    Status,
    Topic,
)
from shared.letters import LETTERS, Matter, Reader, mend, render, write
from shared.notices import STILL_TRUE
from shared.policy import ATTEMPTS_LIMIT, KEY_HORIZON, options
from shared.words import SUPPORTED
from tests.notices.office import Office
from tests.script import (
    ASKS_FOR_THE_CUSTOMER,
    CARD_DECLINED,
    DAY,
    Script,
    changed,
    closing,
    confirming,
    declined,
    intent,
    recorded,
    tried_again_after_a_burnt_key,
)

DECLINED: Final = (Audience.CUSTOMER, Topic.DECLINED)
WAYS: Final = ("/retry", "/cancel", "/out-of-band")  # Commands that operators are given, by the end of their address.
PLACEHOLDER: Final = re.compile(r"%\(|\{\{|\{%")


def text_of(charge: Charge, topic: Topic, *, audience: Audience = Audience.CUSTOMER, **reader: Any) -> str:
    """Return a letter as plain text, on one line."""
    matter = Matter(
        charge=charge, reader=Reader(audience=audience, **reader), url=None, charge_url="https://charge.rides.example"
    )
    return " ".join(render(write(matter, topic), matter.reader.locale)[0].split())


def test_every_letter_can_be_looked_at_before_anybody_gets_it(tmp_path: Path) -> None:
    """Each of them, in every language, with nothing left to be filled in."""
    folder = tmp_path / "letters"

    done = CliRunner().invoke(preview.notices, ["preview", str(folder)])

    assert done.exit_code == 0, done.output
    names = {path.name for path in folder.iterdir()}
    for locale in SUPPORTED:
        for ending in ("txt", "html"):
            for audience, topic in LETTERS:
                assert any(re.fullmatch(rf"{audience}-{topic}(-\w+)?\.{locale}\.{ending}", name) for name in names)
    for path in folder.iterdir():
        shown = path.read_text()
        assert not PLACEHOLDER.search(shown), path.name
        assert "None" not in shown, path.name
        assert max(map(len, shown.splitlines())) < 998, "as long as a line of a mail may be"


def test_whatever_a_letter_can_say_is_in_the_preview() -> None:
    """Each reason for which one is canceled or blocked, each discrepancy, each thing that is missing."""
    said = " ".join(" ".join(render(letter, "en")[0].split()) for _, letter in preview.samples("en"))
    blocks = [block for block in vars(letters).values() if isinstance(block, letters.Block) and block != letters.BUG]
    assert len(blocks) > 8
    assert [block.mend for block in blocks if block.mend not in said] == []
    assert [meaning for meaning in letters.MEANINGS.values() if meaning not in said] == []
    for sentence in (
        *("It was not paid in time.", "It was canceled on request.", "It was ended by the bank, or by Stripe"),
        *("The customer cus_Rk2Jd8xW is not there", "The card pm_1QkXyz is not there", "The account acct_1RocketRides"),
        *("This is explained nowhere.", "cannot be written to"),
    ):
        assert sentence in said


def test_one_language_can_be_asked_for(tmp_path: Path) -> None:
    """As before."""
    assert CliRunner().invoke(preview.notices, ["preview", str(tmp_path), "--locale", "de"]).exit_code == 0
    assert {path.name.split(".")[1] for path in tmp_path.iterdir()} == {"de", "json"}


def test_what_the_callers_system_hears_is_in_the_preview() -> None:
    """In each status of which it hears; cash is told as what was paid is."""
    heard = {body["status"] for _, body in preview.outcomes()}
    assert heard == STILL_TRUE[Topic.OUTCOME] - {Status.PAID_OUT_OF_BAND}


@pytest.mark.parametrize("topic", [Topic.DECLINED, Topic.PAID])
def test_a_german_customer_reads_german(topic: Topic) -> None:
    """Amounts and days, too."""
    english, german = (text_of(preview.sample(topic), topic, locale=locale) for locale in SUPPORTED)
    assert "€19.99" in english
    assert "19,99\xa0€".replace("\xa0", " ") in german
    assert "Zahlung" in german


@pytest.mark.parametrize(
    ("locales", "subject"),
    [
        ("de-AT", "Ihre Zahlung"),
        ("fr", "Your payment"),
        ("fr&preferred_locales[1]=de", "Ihre Zahlung"),
        (None, "Your payment"),
    ],
)
def test_a_customer_is_written_to_in_the_first_of_their_languages_that_we_know(
    locales: str | None, subject: str
) -> None:
    """As Stripe has them; else in English."""
    office = Office()
    more = {"preferred_locales[0]": locales} if locales else {}
    office.record(DECLINED, customer=office.customer(**more))
    office.answer()
    assert office.mails[0]["Subject"].startswith(subject)


def test_a_customer_whose_card_was_declined_reads_what_is_owed_to_whom_why_and_the_four_ways_out() -> None:
    """S5."""
    charge = preview.sample(Topic.DECLINED)
    text = text_of(charge, Topic.DECLINED, business="Rocket Rides")
    assert "Your payment of €19.99 did not go through" in text
    assert "Rocket Rides" in text
    assert "Ride from Vienna to Graz" in text
    assert options(charge) == set(Act)
    assert "There was not enough money on the account." in text
    for way in ("Try the same card again", "Use another card", "Pay in another way", "Cancel it"):
        assert way in text


def test_a_card_that_would_be_refused_again_is_not_offered_again() -> None:
    """It has expired; the other ways stay."""
    expired = Failure(type="card_error", code="expired_card", decline_code="expired_card")
    text = text_of(replace(preview.sample(Topic.DECLINED), last_error=expired), Topic.DECLINED)
    assert "The card has expired." in text
    assert "Try the same card again" not in text
    assert "Use another card" in text


def test_a_card_that_waits_to_be_confirmed_is_not_offered_as_another_try() -> None:
    """To confirm it is the way."""
    text = text_of(preview.sample(Topic.ACTION_REQUIRED), Topic.ACTION_REQUIRED)
    assert "Please confirm your payment of €19.99" in text
    assert "Try the same card again" not in text
    assert "Use another card" in text


def test_nobody_is_promised_that_no_money_is_taken_while_an_earlier_try_is_in_doubt() -> None:
    """Its key is burnt and less than a day old: it may have paid, so cash is no way out yet."""
    script = tried_again_after_a_burnt_key()
    script.answer(Seen.AUTHENTICATION_REQUIRED, error=ASKS_FOR_THE_CUSTOMER)
    charge = replace(script.charge, updated_at=script.now)
    text = text_of(charge, Topic.ACTION_REQUIRED)
    for promise in ("No money", "unpaid", "cash"):
        assert promise not in text
    assert "you will not be charged twice" in text
    assert "Use another card" in text
    certain = text_of(replace(charge, updated_at=script.now + DAY), Topic.ACTION_REQUIRED)
    for promise in ("No money is taken until", "ends unpaid on", "cash"):
        assert promise in certain


def test_a_card_that_is_gone_is_not_told_as_nothing_taken_while_an_earlier_try_is_in_doubt() -> None:
    """What was sent before the ledger was restored may have charged."""
    charge = preview.sample(Topic.MISSING_OBJECT)
    assert "No money was taken." in text_of(charge, Topic.MISSING_OBJECT)
    assert "No money" not in text_of(replace(charge, restored_at=charge.updated_at), Topic.MISSING_OBJECT)


def test_only_ways_that_are_open_are_offered() -> None:
    """While a closing is carried out there is nothing to choose."""
    charge = preview.sample(Topic.DECLINED)
    ended = Closing(kind="cancel", actor="caller", at=charge.created_at)
    text = text_of(replace(charge, closing=ended), Topic.DECLINED)
    assert "Use another card" not in text


def test_a_customer_whose_charge_is_tried_again_reads_when_and_that_they_need_do_nothing() -> None:
    """S5."""
    text = text_of(preview.sample(Topic.RETRYING), Topic.RETRYING)
    assert "tried again on November 27, 2026" in text
    assert "you need not do anything" in text
    assert "Use another card" in text


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (CancelReason.EXPIRED, "It was not paid in time."),
        (CancelReason.REQUESTED, "It was canceled on request."),
        (CancelReason.BY_STRIPE, "It was ended by the bank, or by Stripe"),
    ],
)
def test_a_customer_reads_why_it_was_canceled(reason: CancelReason, said: str) -> None:
    """As far as it is known."""
    text = text_of(replace(preview.sample(Topic.CANCELED), cancel_reason=reason), Topic.CANCELED)
    assert said in text
    assert ("on request" in text) == (reason is CancelReason.REQUESTED)
    assert "No money was taken, and none will be." in text


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cancel", "ask for the money back"),
        ("expire", "ask for the money back"),
        ("out_of_band", "ask for one of the two back"),
        ("paid_elsewhere", "Nothing is left for you to do"),  # That is given back by itself.
    ],
)
def test_a_customer_whose_closing_money_has_overtaken_reads_what_to_do_about_it(kind: str, said: str) -> None:
    """They believe that it was ended; it is paid, and nobody thanks them for that."""
    charge = preview.sample(Topic.PAID)
    closing = Closing(kind=kind, actor="customer", at=charge.created_at)
    assert said in text_of(replace(charge, closing=closing), Topic.PAID)
    as_asked = replace(charge, closing=closing, status=Status.PAID_OUT_OF_BAND)
    assert "Nothing is left for you to do" in text_of(as_asked, Topic.PAID)


@pytest.mark.parametrize(
    ("param", "missing"), [("customer", "The customer cus_Rk2Jd8xW is not"), ("payment_method", "The card pm_1QkXyz")]
)
def test_the_owner_reads_what_is_missing_how_that_came_about_and_what_not_to_do_again(param: str, missing: str) -> None:
    """S7."""
    gone = Failure(type="invalid_request_error", code="resource_missing", param=param)
    charge = replace(preview.sample(Topic.MISSING_OBJECT), last_error=gone)
    text = text_of(charge, Topic.MISSING_OBJECT, audience=Audience.ACCOUNT_OWNER)
    assert missing in text
    for title in ("How this may have come about", "What to do now", "What not to do again"):
        assert title in text


ACCOUNT_INVALID: Final = Failure(type="invalid_request_error", code="account_invalid")


@pytest.mark.parametrize(
    ("failure", "terms", "account", "field"),
    [
        (ACCOUNT_INVALID, {}, "acct_1RocketRides", "account"),
        (
            Failure(type="invalid_request_error", code="resource_missing", param="on_behalf_of"),
            {"on_behalf_of": "acct_seller"},
            "acct_seller",
            "on_behalf_of",
        ),
        (
            Failure(type="invalid_request_error", code="resource_missing", param="transfer_data[destination]"),
            {"transfer_data": {"destination": "acct_driver"}},
            "acct_driver",
            "transfer_data[destination]",
        ),
    ],
    ids=["disconnected", "on behalf of", "destination"],
)
def test_an_account_that_is_gone_is_named_to_the_operator_and_no_card_is_asked_for(
    failure: Failure, terms: dict[str, Any], account: str, field: str
) -> None:
    """It is connected again, or the request was wrong: the commands for both are there."""
    charge = preview.sample(Topic.MISSING_OBJECT)
    charge = replace(charge, last_error=failure, terms=replace(charge.terms, **terms))
    text = text_of(charge, Topic.MISSING_OBJECT, audience=Audience.OPERATOR)
    assert f"The account {account}, which the request names as {field}," in text
    assert "for another card" not in text
    assert "The card" not in text
    for act in ("retry", "cancel"):
        assert f"https://charge.rides.example/{charge.id}/{act}" in text
    owners = text_of(charge, Topic.MISSING_OBJECT, audience=Audience.ACCOUNT_OWNER)
    assert account in owners
    assert "curl" not in owners


def test_an_account_that_nothing_names_is_not_named() -> None:
    """Our own is meant then."""
    charge = preview.sample(Topic.MISSING_OBJECT)
    charge = replace(charge, last_error=ACCOUNT_INVALID, terms=replace(charge.terms, account=None))
    text = text_of(charge, Topic.MISSING_OBJECT, audience=Audience.OPERATOR)
    assert "An account that the request needs" in text


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("paid_twice", "one of the two is refunded"),
        ("paid_elsewhere", "Find out who made it"),
        ("paid_after_cancel_asked", "deliver what was paid for, or refund it"),
        ("paid_after_canceled", "refund it"),
        ("paid_after_paid_out_of_band", "one is refunded"),
        ("refund_failed", "refund it by hand"),
        ("not_paid_at_stripe", "deliver nothing"),
        ("amount_differs", "Find out why"),
        ("orphan_not_canceled", "cancel it by hand"),
        ("unexplained_payment_intent", "take it up again"),
        ("something_new", "Compare the charge with Stripe"),
    ],
)
def test_the_operator_reads_what_a_discrepancy_means_and_how_to_look_at_it(kind: str, advice: str) -> None:
    """With the command, for the account and the mode."""
    charge = preview.sample(Topic.DISCREPANCY)
    found = Discrepancy(kind=kind, at=charge.created_at, payment_intent="pi_other")
    text = text_of(replace(charge, discrepancies=(found,)), Topic.DISCREPANCY, audience=Audience.OPERATOR)
    assert kind in text
    assert advice in text
    assert "stripe payment_intents retrieve pi_other --stripe-account acct_1RocketRides --live" in text


def test_the_operator_reads_only_of_discrepancies_that_are_left() -> None:
    """What was given back is nobody's to look at."""
    charge = preview.sample(Topic.DISCREPANCY)
    left = Discrepancy(kind="unexplained_payment", at=charge.created_at, payment_intent="pi_left")
    settled = replace(left, kind="paid_twice", payment_intent="pi_settled", settled="what it took was given back")
    text = text_of(replace(charge, discrepancies=(settled, left)), Topic.DISCREPANCY, audience=Audience.OPERATOR)
    assert "pi_left" in text
    assert "pi_settled" not in text


def test_a_customer_whose_card_is_gone_is_offered_another_one_and_not_the_same() -> None:
    """S7: as the preview shows it, too."""
    text = text_of(preview.sample(Topic.MISSING_OBJECT), Topic.MISSING_OBJECT)
    assert "Use another card." in text
    assert "the same card" not in text


@pytest.mark.parametrize(
    ("topic", "said"),
    [
        (Topic.PAYS_ELSEWHERE, "the amount is still owed"),
        (Topic.NOT_NOTED, "If nobody does, it ends unpaid on December 24, 2026."),
    ],
)
def test_who_gets_the_cash_reads_how_to_note_it(topic: Topic, said: str) -> None:
    """The operator has a command for it; the owner of a connected account asks them."""
    charge = preview.sample(topic)
    owner, operator = (
        text_of(charge, topic, audience=audience) for audience in (Audience.ACCOUNT_OWNER, Audience.OPERATOR)
    )
    assert said in owner
    assert "curl" not in owner
    assert f"https://charge.rides.example/{charge.id}/out-of-band" in operator


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        (Failure(type="idempotency_error"), "a bug"),
        (Failure(type="invalid_request_error", code="resource_missing"), "wrong account"),
        (Failure(type="invalid_request_error", code="api_key_expired"), "Check STRIPE_API_KEY"),
        (Failure(type="invalid_request_error", code="parameter_unknown"), "Read what Stripe says"),
        (None, "Check STRIPE_API_KEY"),
    ],
)
def test_the_operator_reads_what_to_mend(failure: Failure | None, advice: str) -> None:
    """S2, S3, S7 and S11."""
    charge = replace(preview.sample(Topic.BLOCKED), last_error=failure)
    assert advice in text_of(charge, Topic.BLOCKED, audience=Audience.OPERATOR)


def _held() -> Script:
    script = declined()
    script.choose(Act.RETRY)
    script.reply(Seen.HELD)
    return script


def _spent() -> Script:
    script = declined()
    while len(script.charge.attempts) < ATTEMPTS_LIMIT:
        script.choose(Act.RETRY)
        script.reply(Seen.DECLINED, error=CARD_DECLINED)
    return changed(script, status=Status.BLOCKED, blocked_on=Party.OPERATOR)  # As after as many keys that were burnt.


def _drifted() -> Script:
    script = confirming()
    script.answer(Seen.NO_REPLY)
    script.reply(Seen.PARAMETERS_DRIFTED, error=Failure(type="idempotency_error"))
    script.look(Seen.UNCONFIRMED)
    return script


def _stranger() -> Script:
    script = Script()
    script.reply(Seen.NO_REPLY)
    script.wake(KEY_HORIZON)
    script.listed(intent(script.charge, Seen.SUCCEEDED, "pi_stranger", charge_id=None))
    return script


def _orphan() -> Script:
    script = changed(declined(), orphans=("pi_orphan",))
    script.wake()
    script.reply(Seen.UNAUTHORIZED)
    return script


def _closing_refused(error: Failure) -> Script:
    script = closing()
    script.reply(Seen.INVALID, error=error)
    return script


def _api_key() -> Script:
    script = confirming()
    script.answer(Seen.UNAUTHORIZED, error=Failure(type="invalid_request_error", code="api_key_expired"))
    return script


def _lost_then_refused() -> Script:
    script = confirming()
    script.answer(Seen.NO_REPLY)
    script.reply(Seen.UNAUTHORIZED, error=Failure(type="invalid_request_error", code="api_key_expired"))
    return script


def _crashed() -> Script:
    script = recorded()
    while script.status() is not Status.BLOCKED:
        script.crash()
    return script


def _account_of_a_closing() -> Script:
    return _closing_refused(Failure(type="invalid_request_error", code="account_invalid"))


@pytest.mark.parametrize(
    ("way", "said", "commands", "money"),
    [
        (_held, "held on the customer's card", ["capture pi_ours", "/cancel"], ""),
        (_spent, "as often as a charge may be", ["/out-of-band", "/cancel"], "No money was taken."),
        (_drifted, "a bug of ours", ["retrieve pi_ours", "/retry"], "may still charge the customer"),
        (_stranger, "If it is for the same sale", ["/retry", "/cancel"], ""),
        (_orphan, "Check STRIPE_API_KEY: whether", ["/retry"], "No money was taken."),
        (_api_key, "Check STRIPE_API_KEY: whether", ["/retry"], ""),
        (_lost_then_refused, "Check STRIPE_API_KEY: whether", ["/retry"], "may still charge the customer"),
        (_account_of_a_closing, "Have it connected again", ["/retry"], "No money was taken."),
        (_crashed, "read the stack trace", ["/retry"], "No money was taken."),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_the_operator_reads_what_blocks_a_charge_and_what_gets_it_on(
    way: Callable[[], Script], said: str, commands: list[str], money: str
) -> None:
    """By what is recorded of it, not by an older error; and no letter says what is not known of the money."""
    charge = way().charge
    assert charge.status is Status.BLOCKED
    text = text_of(charge, Topic.BLOCKED, audience=Audience.OPERATOR)
    assert said in text
    found = [command for command in ("capture pi_ours", "retrieve pi_ours", *WAYS) if f"{command} " in f"{text} "]
    assert sorted(found) == sorted(commands)
    for sentence in ("No money was taken.", "may still charge the customer"):
        assert (sentence in text) == (sentence == money)
    assert "Nothing is sent again" not in text
    assert ("keeps its key" in text) == (commands == ["/retry"])
    assert mend(charge) in text


def test_what_a_bank_said_before_the_money_was_held_is_not_told_as_the_reason() -> None:
    """That was another attempt."""
    assert "insufficient_funds" not in text_of(_held().charge, Topic.BLOCKED, audience=Audience.OPERATOR)


def test_a_long_description_does_not_swamp_the_letter() -> None:
    """A caller may send a page."""
    charge = preview.sample(Topic.PAID)
    long = replace(charge, terms=replace(charge.terms, description="word " * 200))
    assert "…" in text_of(long, Topic.PAID)
    assert len(text_of(long, Topic.PAID)) < 600
    assert charge.status is Status.SUCCEEDED


def test_without_a_secret_there_is_none_for_receivers_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1."""
    for name in ("STRIPE_API_KEY", "SIGNING_SECRETS"):
        monkeypatch.delenv(name, raising=False)
    done = CliRunner().invoke(preview.notices, ["secret"])
    assert (done.exit_code, "set SIGNING_SECRETS" in done.output) == (1, True)

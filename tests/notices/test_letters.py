"""What people read: complete, in their language, and to be looked at before it is sent."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from shared import preview
from shared.charge import Act, Audience, CancelReason, Charge, Closing, Discrepancy, Failure, Seen, Status, Topic
from shared.letters import LETTERS, Matter, Reader, render, write
from shared.policy import options
from shared.words import SUPPORTED
from tests.notices.office import Office
from tests.script import ASKS_FOR_THE_CUSTOMER, DAY, tried_again_after_a_burnt_key

DECLINED: Final = (Audience.CUSTOMER, Topic.DECLINED)
PLACEHOLDER: Final = re.compile(r"%\(|\{\{|\{%")


def text_of(charge: Charge, topic: Topic, *, audience: Audience = Audience.CUSTOMER, **reader: Any) -> str:
    """Return a letter as plain text, on one line."""
    matter = Matter(
        charge=charge, reader=Reader(audience=audience, **reader), url=None, charge_url="https://charge.rides.example"
    )
    return " ".join(render(write(matter, topic), matter.reader.locale)[0].split())


@pytest.mark.parametrize("locale", SUPPORTED)
def test_every_letter_can_be_looked_at_before_anybody_gets_it(tmp_path: Path, locale: str) -> None:
    """One of each, in every language, with nothing left to be filled in."""
    folder = tmp_path / "letters"

    done = CliRunner().invoke(preview.notices, ["preview", str(folder), "--locale", locale])

    assert done.exit_code == 0, done.output
    assert len(list(folder.iterdir())) == 2 * len(LETTERS)
    for path in folder.iterdir():
        shown = path.read_text()
        assert not PLACEHOLDER.search(shown), path.name
        assert "None" not in shown, path.name
        assert max(map(len, shown.splitlines())) < 998, "as long as a line of a mail may be"


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
    closing = Closing(kind="cancel", actor="caller", at=charge.created_at)
    text = text_of(replace(charge, closing=closing), Topic.DECLINED)
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
        (CancelReason.BY_STRIPE, ""),
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


def test_who_gets_the_cash_reads_how_to_note_it() -> None:
    """The operator has a command for it; the owner of a connected account asks them."""
    charge = preview.sample(Topic.PAYS_ELSEWHERE)
    owner, operator = (
        text_of(charge, Topic.PAYS_ELSEWHERE, audience=audience)
        for audience in (Audience.ACCOUNT_OWNER, Audience.OPERATOR)
    )
    assert "the amount is still owed" in owner
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


def test_a_long_description_does_not_swamp_the_letter() -> None:
    """A caller may send a page."""
    charge = preview.sample(Topic.PAID)
    long = replace(charge, terms=replace(charge.terms, description="word " * 200))
    assert "…" in text_of(long, Topic.PAID)
    assert len(text_of(long, Topic.PAID)) < 600
    assert charge.status is Status.SUCCEEDED


def test_the_secret_that_receivers_need_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the form that libraries take; and without one that is said."""
    for name in ("STRIPE_API_KEY", "SIGNING_SECRETS"):
        monkeypatch.delenv(name, raising=False)
    assert CliRunner().invoke(preview.notices, ["secret"]).exit_code == 1
    monkeypatch.setenv("SIGNING_SECRETS", "whsec_bmV3IG9uZQ==,whsec_b2xkIG9uZQ==")
    done = CliRunner().invoke(preview.notices, ["secret"])
    assert (done.exit_code, done.output) == (0, "whsec_bmV3IG9uZQ==\n")

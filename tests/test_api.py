"""Request bodies, digests and problem documents, where the functions' tests do not reach."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from shared import api
from shared.api import ChargeBody, Problem
from shared.charge import Status
from shared.policy import WAITING_ON

NOW: Final = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)


def terms(**fields: Any) -> Any:
    """Return the frozen terms of a body."""
    given: dict[str, Any] = {"amount": 1999, "currency": "usd", "customer": "cus_1", "payment_method": "pm_1", **fields}
    return api.terms_of(ChargeBody(**given))


def test_every_status_has_its_answer() -> None:
    """One that is added later must say how it is told."""
    assert api.HTTP_STATUS.keys() == set(Status) == WAITING_ON.keys()


def test_only_certain_ends_are_told_as_no() -> None:
    """Unknown is never failed: 402 and 410 belong to one status each."""
    assert {s for s, code in api.HTTP_STATUS.items() if code >= 400} == {Status.DECLINED, Status.CANCELED}


def test_the_digest_is_the_same_for_the_same_wish_and_another_for_each_other_field() -> None:
    """Every field counts."""
    assert api.body_digest(terms()) == api.body_digest(terms(retry="none", metadata={}, expires_at=None))
    others = [
        terms(),
        terms(amount=2000),
        terms(currency="eur"),
        terms(customer="cus_2"),
        terms(payment_method="pm_2"),
        terms(account="acct_1"),
        terms(description="d"),
        terms(metadata={"a": "b"}),
        terms(expires_at=NOW),
        terms(application_fee_amount=1),
        terms(transfer_data=api.TransferData(destination="acct_1")),
        terms(transfer_data=api.TransferData(destination="acct_1", amount=1)),
        terms(on_behalf_of="acct_1"),
        terms(statement_descriptor_suffix="S"),
        terms(receipt_email="a@b"),
    ]
    assert len({api.body_digest(other) for other in others}) == len(others)
    assert all(api.differing(others[0], other) for other in others[1:])


def test_the_order_of_metadata_does_not_count() -> None:
    """JSON objects have none."""
    one, other = terms(metadata={"a": "1", "b": "2"}), terms(metadata={"b": "2", "a": "1"})
    assert api.body_digest(one) == api.body_digest(other)
    assert api.differing(one, other) == []


def test_a_charge_expires_in_the_future_within_a_year() -> None:
    """The ends of the range."""
    assert api.expires_out_of_range(terms(), NOW) is None
    assert api.expires_out_of_range(terms(expires_at=NOW + timedelta(seconds=1)), NOW) is None
    assert api.expires_out_of_range(terms(expires_at=NOW + api.LATEST_EXPIRY), NOW) is None
    for wrong in (NOW, NOW - timedelta(days=1), NOW + api.LATEST_EXPIRY + timedelta(seconds=1)):
        problem = api.expires_out_of_range(terms(expires_at=wrong), NOW)
        assert problem is not None
        assert problem.status == 400


def test_a_transfer_without_an_amount_names_only_its_destination() -> None:
    """Stripe then transfers everything; null would be another request."""
    assert terms(transfer_data=api.TransferData(destination="acct_1")).transfer_data == {"destination": "acct_1"}


def test_a_problem_document_says_type_title_status_and_detail_and_what_else_is_known() -> None:
    """RFC 9457, with members of our own beside."""
    problem = Problem(422, "key-reused", "Another body.", fields=["amount"])
    assert problem.body() == {
        "type": "urn:paidonce:key-reused",
        "title": "Key reused",
        "status": 422,
        "detail": "Another body.",
        "fields": ["amount"],
    }
    assert str(problem) == "Another body."


@pytest.mark.parametrize("currency", ["bhd", "jod", "kwd", "omr", "tnd"])
def test_three_decimal_amounts_end_in_zero(currency: str) -> None:
    """Card networks carry two decimals of them."""
    assert terms(currency=currency, amount=5_120).amount == 5_120
    with pytest.raises(Problem, match="multiple of 10"):
        terms(currency=currency, amount=5_124)


@pytest.mark.parametrize(("if_match", "version"), [(None, None), ("*", None), ('"7"', 7), (" 7 ", 7)])
def test_if_match_names_a_version_or_any(if_match: str | None, version: int | None) -> None:
    """As `ETag` gave it."""
    assert api.read_version(if_match) == version

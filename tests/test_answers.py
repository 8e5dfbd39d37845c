"""What Stripe's answers amount to: only a paid PaymentIntent says paid, and only what is certain says no."""

import json
import typing
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import pytest
import stripe
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared import answers, codes, policy
from shared.answers import failure, read, read_event, read_payment_intent, told
from shared.charge import Answered, Failure, Happened, PaymentIntent, Seen, Terms

INTENT: Final[Mapping[str, Any]] = {
    "id": "pi_1",
    "object": "payment_intent",
    "status": "succeeded",
    "amount": 1999,
    "amount_received": 1999,
    "currency": "usd",
    "livemode": False,
    "created": 1_795_510_800,
    "customer": "cus_1",
    "metadata": {"pio_charge": "c1"},
    "cancellation_reason": None,
    "last_payment_error": None,
}
UNPAID: Final[Mapping[str, Any]] = {**INTENT, "status": "requires_payment_method", "amount_received": 0}


def seen(http_status: int, body: object) -> Seen:
    """What an answer amounts to."""
    return answered(http_status, body).seen


def answered(http_status: int, body: object, *, replayed: bool = False) -> Answered:
    """An answer, read."""
    return read(http_status, body, request_id="req_1", replayed=replayed, idempotency_key="k1")


def refusal(**error: object) -> dict[str, object]:
    """A refusal's body."""
    return {"error": {"type": "invalid_request_error", "message": "No.", **error}}


def decline(**error: object) -> dict[str, object]:
    """A 402's body: it shows the PaymentIntent that it left behind."""
    return refusal(type="card_error", payment_intent=UNPAID, **error)


# --- A PaymentIntent comes back ---------------------------------------------------------------------------------------

STATUSES: Final = {
    "succeeded": Seen.SUCCEEDED,
    "processing": Seen.PROCESSING,
    "requires_action": Seen.ACTION_REQUIRED,
    "requires_capture": Seen.HELD,
    "canceled": Seen.CANCELED,
    "requires_payment_method": Seen.UNCONFIRMED,
    "requires_confirmation": Seen.UNCONFIRMED,
    "requires_patience": Seen.SERVER_ERROR,  # Not Stripe's, or not yet.
}


@pytest.mark.parametrize(("status", "expected"), STATUSES.items())
def test_a_200_amounts_to_the_status_of_its_payment_intent(status: str, expected: Seen) -> None:
    """200 is not "paid"; and a status that Stripe adds later settles nothing."""
    answer = answered(200, {**INTENT, "status": status})

    assert answer.seen is expected
    assert answer.payment_intent is not None
    assert answer.payment_intent.seen is expected


def test_every_status_that_the_sdk_knows_has_its_row() -> None:
    """An upgrade that brings a status fails here, before it meets a customer."""
    assert known_to_the_sdk(stripe.PaymentIntent, "status") == answers.STATUS.keys()


def test_an_answer_keeps_what_support_asks_for() -> None:
    """The request id, the key, and whether it was replayed."""
    answer = answered(200, INTENT, replayed=True)

    assert (answer.request_id, answer.idempotency_key, answer.replayed) == ("req_1", "k1", True)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "ok",
        200,
        {},
        {"object": "charge", "id": "ch_1", "status": "succeeded"},
        {"status": "succeeded"},
        {"error": None},
        {**INTENT, "object": "setup_intent"},
        *({name: value for name, value in INTENT.items() if name != gone} for gone in list(INTENT)[:8]),
        {**INTENT, "amount": True},
        {**INTENT, "amount_received": "1999"},
        {**INTENT, "created": 10**30},
    ],
    ids=lambda body: json.dumps(body)[:60],
)
def test_a_200_without_a_whole_payment_intent_is_unknown(body: object) -> None:
    """`null`, a list, half an object: the money may have moved, and nothing here says so."""
    assert seen(200, body) is Seen.SERVER_ERROR


# --- Refusals ---------------------------------------------------------------------------------------------------------

REFUSALS: Final[Mapping[str, tuple[int, dict[str, object], Seen]]] = {
    "5 a parameter is missing": (400, refusal(code="parameter_missing", param="amount"), Seen.INVALID),
    "5 a parameter is unknown": (400, refusal(code="parameter_unknown", param="wow"), Seen.INVALID),
    "6 refused inside, without a code": (400, refusal(), Seen.INVALID),
    "7 other parameters under the key": (400, refusal(type="idempotency_error"), Seen.PARAMETERS_DRIFTED),
    "8 confirmed before": (400, refusal(code="payment_intent_unexpected_state"), Seen.UNEXPECTED_STATE),
    "8 by its other name": (400, refusal(code="intent_invalid_state"), Seen.UNEXPECTED_STATE),
    "9 no such API key": (401, refusal(), Seen.UNAUTHORIZED),
    "10 not permitted": (403, refusal(code="more_permissions_required"), Seen.UNAUTHORIZED),
    "16 what the path names": (404, refusal(code="resource_missing"), Seen.MISSING_PAYMENT_INTENT),
    "16 by its name": (404, refusal(code="resource_missing", param="intent"), Seen.MISSING_PAYMENT_INTENT),
    "16 by its other": (404, refusal(code="resource_missing", param="payment_intent"), Seen.MISSING_PAYMENT_INTENT),
    "16 the customer, in the body": (400, refusal(code="resource_missing", param="customer"), Seen.MISSING_OBJECT),
    "16 the customer, as a 404": (404, refusal(code="resource_missing", param="customer"), Seen.MISSING_OBJECT),
    "16 the card": (400, refusal(code="resource_missing", param="payment_method"), Seen.MISSING_OBJECT),
    "16 a connected account": (400, refusal(code="resource_missing", param="on_behalf_of"), Seen.MISSING_OBJECT),
    "16 something else that we named": (404, refusal(code="resource_missing", param="mandate"), Seen.INVALID),
    "16 the account of the header": (403, refusal(code="account_invalid"), Seen.MISSING_OBJECT),
    "17 the twin is running": (409, refusal(code="idempotency_key_in_use"), Seen.KEY_IN_USE),
    "17 of the other type": (409, refusal(type="idempotency_error", code="idempotency_key_in_use"), Seen.KEY_IN_USE),
    "17 without a code": (409, refusal(type="idempotency_error"), Seen.KEY_IN_USE),
    "18 an external dependency": (424, refusal(type="api_error"), Seen.SERVER_ERROR),
    "19 too many requests": (429, refusal(code="rate_limit"), Seen.LIMITED),
    "20 a lock": (429, refusal(code="lock_timeout"), Seen.LIMITED),
    "20 one PaymentIntent too often": (400, refusal(code="payment_intent_rate_limit_exceeded"), Seen.LIMITED),
    "21 an error of Stripe's": (500, refusal(type="api_error"), Seen.SERVER_ERROR),
    "21 whatever it calls itself": (500, refusal(code="api_key_expired"), Seen.SERVER_ERROR),
    "29 another product's": (400, refusal(code="customer_max_subscriptions"), Seen.INVALID),
}  # fmt: skip


@pytest.mark.parametrize(("http_status", "body", "expected"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_says_what_it_says_and_no_more(http_status: int, body: dict[str, object], expected: Seen) -> None:
    """The rows of Stripe's truth table that are answers, each by its number."""
    assert seen(http_status, body) is expected


@pytest.mark.parametrize("http_status", [400, 401, 402, 403, 404, 409, 429])
@pytest.mark.parametrize(
    "code",
    [
        "api_key_expired",
        "platform_api_key_expired",
        "livemode_mismatch",
        "secret_key_required",
        "testmode_charges_only",
        "tls_version_unsupported",
    ],
)
def test_a_deployment_that_is_not_let_in_is_never_taken_for_a_decline(code: str, http_status: int) -> None:
    """Whatever the HTTP status: nothing ran, and the same request is good once the operator has mended it."""
    assert seen(http_status, refusal(code=code)) is Seen.UNAUTHORIZED


@pytest.mark.parametrize(
    ("http_status", "expected"),
    [
        (400, Seen.SERVER_ERROR),
        (401, Seen.UNAUTHORIZED),
        (402, Seen.SERVER_ERROR),
        (403, Seen.UNAUTHORIZED),
        (404, Seen.SERVER_ERROR),
        (409, Seen.KEY_IN_USE),
        (424, Seen.SERVER_ERROR),
        (429, Seen.LIMITED),
        (502, Seen.SERVER_ERROR),
    ],
)
@pytest.mark.parametrize(
    "body", [None, {}, [], {"error": None}, {"error": "no"}, {"error": {"code": 400, "message": "Bad Request"}}]
)
def test_a_proxys_page_refuses_nothing(http_status: int, expected: Seen, body: object) -> None:
    """Row 22: without Stripe's error object a 400, 402 or 404 is not Stripe's word."""
    assert seen(http_status, body) is expected


@pytest.mark.parametrize("http_status", range(100, 600))
def test_every_http_status_lands_somewhere(http_status: int) -> None:
    """What no table lists is unknown, never failed and never paid."""
    listed = {
        200: Seen.SERVER_ERROR,  # It shows no PaymentIntent of its own.
        400: Seen.INVALID,
        401: Seen.UNAUTHORIZED,
        402: Seen.DECLINED,
        403: Seen.UNAUTHORIZED,
        404: Seen.MISSING_PAYMENT_INTENT,
        409: Seen.KEY_IN_USE,
        429: Seen.LIMITED,
    }

    assert seen(http_status, refusal(type="card_error")) is listed.get(http_status, Seen.SERVER_ERROR)
    if http_status != 200:
        assert seen(http_status, INTENT) is not Seen.SUCCEEDED
        assert answered(http_status, INTENT).payment_intent is None


# --- Declines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["card_declined", "amount_too_large", "a_code_of_next_year"])
@pytest.mark.parametrize("status", ["succeeded", "processing", "requires_capture", "canceled", "requires_patience"])
def test_a_decline_that_shows_a_payment_under_way_is_unknown(status: str, code: str) -> None:
    """It contradicts itself. "Declined" is only said of what is certain."""
    answer = answered(402, refusal(code=code, payment_intent={**INTENT, "status": status}))

    assert answer.seen is Seen.SERVER_ERROR
    assert answer.payment_intent is not None


def test_a_decline_tells_which_payment_intent_it_left_behind() -> None:
    """The next attempt is made on the same one."""
    answer = answered(402, decline(code="card_declined", decline_code="do_not_honor"))

    assert answer.payment_intent == read_payment_intent(UNPAID)


def test_a_refused_confirm_shows_a_payment_intent_that_may_be_paid_and_still_says_only_that_it_was_refused() -> None:
    """Row 8: the policy looks before it believes."""
    answer = answered(400, refusal(code="payment_intent_unexpected_state", payment_intent=INTENT))

    assert answer.seen is Seen.UNEXPECTED_STATE
    assert answer.payment_intent is not None
    assert answer.payment_intent.seen is Seen.SUCCEEDED


# --- Nothing that comes back breaks it --------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SPOILT_INTENTS = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.just(value) | JSON for name, value in INTENT.items()},
        "status": st.sampled_from([*STATUSES]) | JSON,
        "metadata": st.just({"pio_charge": "c1"}) | JSON,
    },
)
ERRORS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["card_error", "invalid_request_error", "idempotency_error", "api_error"]) | JSON,
        "code": st.sampled_from([*codes.ERRORS]) | JSON,
        "decline_code": st.sampled_from([*codes.DECLINES]) | JSON,
        "advice_code": st.sampled_from([*codes.ADVICE_CODES]) | JSON,
        "param": st.sampled_from([*codes.MISSING]) | JSON,
        "message": JSON,
        "payment_intent": SPOILT_INTENTS,
    },
)
BODIES = JSON | SPOILT_INTENTS | st.fixed_dictionaries({"error": ERRORS | JSON})


@settings(max_examples=300, deadline=None)
@given(http_status=st.sampled_from([200, 400, 401, 402, 403, 404, 409, 429, 500]) | st.integers(0, 999), body=BODIES)
@example(http_status=200, body=dict(INTENT))
@example(http_status=402, body={"error": {"type": "card_error", "payment_intent": dict(INTENT)}})
def test_whatever_comes_back_only_a_paid_payment_intent_says_paid(http_status: int, body: Any) -> None:
    """No body of any shape raises, and none but a 200 with a PaymentIntent that `succeeded` is a success."""
    answer = answered(http_status, body)

    if answer.seen is Seen.SUCCEEDED:
        assert http_status == 200
        assert (body["object"], body["status"]) == ("payment_intent", "succeeded")
        assert answer.payment_intent is not None
    if answer.seen in codes.DECLINED:
        assert answer.error is not None


# --- The parts --------------------------------------------------------------------------------------------------------


def test_a_payment_intent_is_read_whole() -> None:
    """Amounts in the smallest unit, times in UTC, the charge from the metadata."""
    error = {"type": "card_error", "code": "card_declined", "decline_code": "do_not_honor", "message": "No."}
    body = {**INTENT, "last_payment_error": error, "cancellation_reason": "duplicate", "customer": {"id": "cus_2"}}

    assert read_payment_intent(body) == PaymentIntent(
        id="pi_1",
        seen=Seen.SUCCEEDED,
        amount=1999,
        amount_received=1999,
        currency="usd",
        livemode=False,
        created=datetime.fromtimestamp(1_795_510_800, UTC),
        charge_id="c1",
        customer="cus_2",
        cancellation_reason="duplicate",
        last_error=Failure(type="card_error", code="card_declined", decline_code="do_not_honor", message="No."),
    )


@pytest.mark.parametrize("metadata", [None, [], {}, {"pio_charge": 7}])
def test_a_payment_intent_without_our_metadata_is_nobodys(metadata: object) -> None:
    """It may be anything that the account's owner does at Stripe."""
    assert read_payment_intent({**INTENT, "metadata": metadata}).charge_id is None


def test_what_the_policy_writes_into_metadata_is_what_is_read_from_it() -> None:
    """A charge is found again by it after everything else is lost."""
    now = datetime(2026, 11, 24, tzinfo=UTC)
    terms = Terms(amount=1999, currency="usd", customer="cus_1", payment_method="pm_1")
    charge = policy.open_charge(
        charge_id="c2", idempotency_key="k", body_digest="d", terms=terms, livemode=False, generation=1,
        api_version="v", now=now,
    )  # fmt: skip

    metadata = json.loads(charge.create.parameters)["metadata"]

    assert read_payment_intent({**INTENT, "metadata": metadata}).charge_id == "c2"


@pytest.mark.parametrize("body", [[], None, {}, {"object": "charge"}])
def test_what_is_no_payment_intent_is_not_read_as_one(body: Any) -> None:
    """ValueError, which nobody takes for an answer."""
    with pytest.raises(ValueError, match="not a PaymentIntent"):
        read_payment_intent(body)


def event(about: object, **more: object) -> dict[str, object]:
    """An event's body."""
    return {"object": "event", "id": "evt_1", "type": "payment_intent.succeeded", "data": {"object": about}, **more}


def test_an_event_is_about_the_payment_intent_that_it_shows() -> None:
    """With the account and the key that find the charge."""
    body = event(INTENT, account="acct_1", request={"id": None, "idempotency_key": "k1"})

    assert read_event(body) == Happened(
        type="payment_intent.succeeded",
        account="acct_1",
        payment_intent=read_payment_intent(INTENT),
        idempotency_key="k1",
    )


@pytest.mark.parametrize("request_field", [None, {"id": "req_1", "idempotency_key": None}, "req_1"])
def test_an_event_that_no_request_of_ours_caused_has_no_key(request_field: object) -> None:
    """Asynchronous results, and events of API versions before 2017."""
    happened = read_event(event(INTENT, request=request_field))

    assert happened is not None
    assert (happened.idempotency_key, happened.account) == (None, None)


@pytest.mark.parametrize(
    ("statuses", "seen"),
    [
        (["succeeded"], Seen.REFUNDED),
        (["failed", "succeeded"], Seen.REFUNDED),  # Asked for again.
        (["failed"], Seen.REFUND_FAILED),
        (["canceled"], Seen.REFUND_FAILED),
        ([], Seen.REFUND_FAILED),
        (["pending"], Seen.REFUND_PENDING),
        (["failed", "requires_action"], Seen.REFUND_PENDING),
        (["succeeded", "of a later version"], Seen.REFUND_PENDING),
    ],
)
def test_refunds_have_given_back_what_was_taken_once_one_of_ours_has_succeeded(statuses: list[str], seen: Seen) -> None:
    """Each asks for all that is left. A person's, for a part, say nothing of ours."""
    ours = [{"object": "refund", "status": status, "metadata": {"pio_refund_of": "charge"}} for status in statuses]
    theirs = {"object": "refund", "status": "succeeded", "metadata": {}}
    assert answers.read_refunds([theirs, *ours, {**theirs, "metadata": None}]) is seen


@pytest.mark.parametrize("kind", ["charge", "refund", "customer", "checkout.session", None])
def test_an_event_about_something_else_is_none_of_ours(kind: str | None) -> None:
    """Acknowledged, so that Stripe need not send it again."""
    assert read_event(event({"object": kind, "id": "x"}, type="charge.succeeded")) is None


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"object": "event"},
        {"object": "v2.core.event", "data": {"object": INTENT}},
        event(None),
        event({"object": "payment_intent"}),
        event(INTENT, type=7),
    ],
)
def test_what_is_no_event_is_never_acknowledged(body: Any) -> None:
    """ValueError: Stripe shall send it again until somebody looks."""
    with pytest.raises(ValueError, match=r"event|missing"):
        read_event(body)


def test_any_other_failure_is_told_as_it_is() -> None:
    """A developer needs Stripe's own words."""
    kept = failure(
        {"code": "expired_card", "message": "Your card has expired.", "param": "exp_month", "charge": "ch_1"}
    )

    assert told(kept) == kept == Failure(code="expired_card", message="Your card has expired.", param="exp_month")


def known_to_the_sdk(owner: type, field: str) -> set[str]:
    """The values that the SDK declares for a field: `Literal[...] | str`, or that or None."""
    pending, known = [owner.__annotations__[field]], set[str]()
    while pending:
        part = pending.pop()
        origin: object = typing.get_origin(part)
        if origin is typing.Literal:
            known.update(typing.get_args(part))
        else:
            pending.extend(typing.get_args(part))
    assert known, "the SDK declares values"
    return known

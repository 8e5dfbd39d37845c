"""What Stripe's answers amount to.

Pure: the standard library and the words of `charge`. Every answer of Stripe is read here and nowhere else, as tables:

    200 with a PaymentIntent   its status                                               STATUS
    200 with a refund          its status                                               REFUND_STATUS
    an error object            with 401, 403, 409, 429: nothing ran, whatever its code  NOTHING_RAN, but ANYWHERE
                               with 400, 402, 404: the row of its code (`codes`)
                               or what the status says by itself                        REFUSED
    everything else            SERVER_ERROR: unlisted is unknown, and unknown is never failed

Only a 200 says that a customer has paid, and only one with a PaymentIntent whose status is `succeeded`.
"""

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, TypeVar

from shared import codes
from shared.charge import Answered, Failure, Happened, PaymentIntent, Seen, Terms

Value = TypeVar("Value", str, int, bool)

CHARGE_ID_KEY: Final = "pio_charge"  # In a PaymentIntent's metadata: the id of our charge. The policy writes it.
CALLER_KEY: Final = "pio_key"  # Likewise: the caller's Idempotency-Key.
DIGEST_KEY: Final = "pio_body"  # Likewise: the digest of what was asked for.
FAILURE_TEXT_KEPT: Final = 500  # Characters. Stripe's messages are a sentence or two; a charge keeps many of them.

# fmt: off

# The `status` of a PaymentIntent. One that Stripe adds later is SERVER_ERROR: it settles nothing, so we look again.
STATUS: Final[Mapping[str, Seen]] = {
    "succeeded":               Seen.SUCCEEDED,
    "processing":              Seen.PROCESSING,       # A bank debit takes days.
    "requires_action":         Seen.ACTION_REQUIRED,
    "requires_capture":        Seen.HELD,
    "canceled":                Seen.CANCELED,
    "requires_payment_method": Seen.UNCONFIRMED,      # New, or come back unpaid: it does not say which.
    "requires_confirmation":   Seen.UNCONFIRMED,
}

# The `status` of a refund. The money is on its way back, unless it says that it is not.
REFUND_STATUS: Final[Mapping[str, Seen]] = {
    "succeeded":       Seen.REFUNDED,
    "pending":         Seen.REFUNDED,
    "requires_action": Seen.REFUNDED,         # Cash-like methods: the customer is asked where to.
    "failed":          Seen.REFUND_FAILED,
    "canceled":        Seen.REFUND_FAILED,
}

# HTTP statuses of what is answered before the request is carried out. They hold without an error object, too.
NOTHING_RAN: Final[Mapping[int, Seen]] = {
    401: Seen.UNAUTHORIZED,
    403: Seen.UNAUTHORIZED,
    409: Seen.KEY_IN_USE,               # Whatever its `type`: Stripe has used two.
    429: Seen.LIMITED,
}

# HTTP statuses of refusals, where no other row is nearer. Without an error object they are some proxy's: SERVER_ERROR.
REFUSED: Final[Mapping[int, Seen]] = {
    400: Seen.INVALID,                  # Codes of other products, too.
    402: Seen.DECLINED,
    404: Seen.MISSING_PAYMENT_INTENT,   # It is what our paths name.
}

# fmt: on

# What the row of a `code` may say in spite of a status of NOTHING_RAN: that nothing ran, and why; or what is there.
ANYWHERE: Final = frozenset(
    {Seen.UNAUTHORIZED, Seen.MISSING_OBJECT, Seen.KEY_IN_USE, Seen.LIMITED, Seen.UNEXPECTED_STATE}
)
LEFT_BY_A_DECLINE: Final = frozenset({Seen.UNCONFIRMED, Seen.ACTION_REQUIRED})  # What a declined PaymentIntent may be.

assert not NOTHING_RAN.keys() & REFUSED.keys(), "a status has one meaning"

GENERIC_MESSAGE: Final = "Your card was declined."  # Stripe's own words for a `generic_decline`.


def read(http_status: int, body: object, *, request_id: str | None, replayed: bool, idempotency_key: str) -> Answered:
    """Say what an answer amounts to. Never raises.

    body: the parsed JSON, of whatever shape; None if it was none. replayed: `Idempotent-Replayed` was true.
    A PaymentIntent comes along wherever Stripe showed one, in a refusal's error object too; `seen` is about the answer.
    """
    members = body if isinstance(body, Mapping) else {}
    refusal = _error_object(members)
    error = failure(refusal) if refusal else None
    intent = _shown(members if http_status == 200 else refusal.get("payment_intent"))
    if http_status == 200:
        seen = intent.seen if intent else _refund(members)
    else:
        seen = _refused(http_status, error)
        if (
            (http_status == 402 or seen in codes.DECLINED)
            and intent is not None
            and intent.seen not in LEFT_BY_A_DECLINE
        ):
            seen = Seen.SERVER_ERROR  # It contradicts itself. Nobody is told "declined" of what may be paid.
    return Answered(
        idempotency_key=idempotency_key,
        seen=seen,
        replayed=replayed,
        payment_intent=intent,
        error=error,
        request_id=request_id,
    )


def _refund(body: Mapping[str, object]) -> Seen:
    """Say what a 200 without a PaymentIntent amounts to."""
    status = _text(body.get("status")) if body.get("object") == "refund" else None
    return REFUND_STATUS.get(status or "", Seen.SERVER_ERROR)


def _refused(http_status: int, error: Failure | None) -> Seen:
    """Say what any answer but a 200 amounts to."""
    if error is None or http_status not in NOTHING_RAN.keys() | REFUSED.keys():
        return NOTHING_RAN.get(http_status, Seen.SERVER_ERROR)
    row = codes.ERRORS.get(error.code or "")
    if row is not None and row.seen in ANYWHERE:
        return row.seen
    if http_status in NOTHING_RAN:
        return NOTHING_RAN[http_status]
    if error.type == "idempotency_error":  # It has no code.
        return codes.DRIFTED.seen
    if http_status == 402:  # A failed payment, whatever `type` it calls itself.
        return codes.row(dataclasses.replace(error, type="card_error")).seen
    return REFUSED[http_status] if row is None else codes.row(error).seen


def failure(error_body: Mapping[str, object]) -> Failure:
    """Read an `error` or `last_payment_error` object. What is not text there is passed over.

    Stripe's message is kept for developers and operators, except where it may name a reason that must stay hidden; of
    any text `FAILURE_TEXT_KEPT` characters.
    """
    words = {field.name: _text(error_body.get(field.name)) for field in dataclasses.fields(Failure)}
    read = Failure(**{name: text and text[:FAILURE_TEXT_KEPT] for name, text in words.items()})
    return dataclasses.replace(read, message=None) if codes.hidden(read) else read


def told(failure: Failure) -> Failure:
    """Return a failure as callers and customers may see it. The ledger keeps the true one."""
    if not codes.hidden(failure):
        return failure
    return Failure(type=failure.type, code="card_declined", decline_code="generic_decline", message=GENERIC_MESSAGE)


def read_payment_intent(body: Mapping[str, object]) -> PaymentIntent:
    """Read a PaymentIntent. Raises ValueError if it is not one, or lacks what every PaymentIntent has."""
    if not isinstance(body, Mapping) or body.get("object") != "payment_intent":
        raise ValueError("this is not a PaymentIntent")
    metadata, last_error = body.get("metadata"), body.get("last_payment_error")
    return PaymentIntent(
        id=_required(body, "id", str),
        seen=STATUS.get(_required(body, "status", str), Seen.SERVER_ERROR),
        amount=_required(body, "amount", int),
        amount_received=_required(body, "amount_received", int),
        currency=_required(body, "currency", str),
        livemode=_required(body, "livemode", bool),
        created=_time(_required(body, "created", int)),
        charge_id=_text(metadata.get(CHARGE_ID_KEY)) if isinstance(metadata, Mapping) else None,
        caller_key=(_text(metadata.get(CALLER_KEY)) if isinstance(metadata, Mapping) else None) or "",
        body_digest=(_text(metadata.get(DIGEST_KEY)) if isinstance(metadata, Mapping) else None) or "",
        customer=_name(body.get("customer")),
        cancellation_reason=_text(body.get("cancellation_reason")),
        last_error=failure(last_error) if isinstance(last_error, Mapping) else None,
    )


def time_of(row: Mapping[str, object]) -> datetime:
    """Return when one of Stripe's objects was made. Raises ValueError if it does not say."""
    return _time(_required(row, "created", int))


def read_terms(body: Mapping[str, object], account: str | None) -> Terms:
    """Read what was asked for off the PaymentIntent that was made for it. Raises ValueError if it is none of ours.

    What Stripe is not told (`retry`, `expires_at`) has its default.
    """
    metadata, transfer = body.get("metadata"), body.get("transfer_data")
    last_error = body.get("last_payment_error")
    tried = last_error.get("payment_method") if isinstance(last_error, Mapping) else None
    destination = _name(transfer.get("destination")) if isinstance(transfer, Mapping) else None
    amount = transfer.get("amount") if isinstance(transfer, Mapping) else None
    fee = body.get("application_fee_amount")
    return Terms(
        amount=_required(body, "amount", int),
        currency=_required(body, "currency", str),
        customer=_name(body.get("customer")) or "",
        payment_method=_name(body.get("payment_method")) or _name(tried) or "",  # A decline detaches it.
        account=account,
        description=_text(body.get("description")),
        metadata={
            str(name): str(value)
            for name, value in (metadata.items() if isinstance(metadata, Mapping) else ())
            if not str(name).startswith("pio_")
        },
        application_fee_amount=fee if isinstance(fee, int) else None,
        transfer_data=None
        if destination is None
        else {"destination": destination, **({"amount": amount} if isinstance(amount, int) else {})},
        on_behalf_of=_name(body.get("on_behalf_of")),
        statement_descriptor_suffix=_text(body.get("statement_descriptor_suffix")),
        receipt_email=_text(body.get("receipt_email")),
    )


def _name(reference: object) -> str | None:
    """Return the id of an object that is named, or shown whole where it was expanded."""
    return _text(reference.get("id") if isinstance(reference, Mapping) else reference)


def read_event(body: Mapping[str, object]) -> Happened | None:
    """Read an event. None: it is about something else than a PaymentIntent. Raises ValueError if it is no event."""
    data = body.get("data") if isinstance(body, Mapping) else None
    about = data.get("object") if isinstance(data, Mapping) else None
    if not isinstance(about, Mapping) or body.get("object") != "event":
        raise ValueError("this is not an event with the object that it is about")  # A thin event is none.
    event_type = _required(body, "type", str)
    if about.get("object") != "payment_intent":
        return None
    request = body.get("request")
    return Happened(
        type=event_type,
        account=_text(body.get("account")),
        payment_intent=read_payment_intent(about),
        idempotency_key=_text(request.get("idempotency_key")) if isinstance(request, Mapping) else None,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardGiven:
    """What an event says of a Checkout Session: that a card was given in it, and for which charge of ours."""

    session: str
    charge_id: str


def read_card_given(body: Mapping[str, object]) -> CardGiven | None:
    """Read an event for which `read_event` had None. None: it is not about a card given for a charge of ours."""
    data = body.get("data")
    about = data.get("object") if isinstance(data, Mapping) else None
    if body.get("type") != "checkout.session.completed" or not isinstance(about, Mapping):
        return None
    session, metadata = _text(about.get("id")), about.get("metadata")
    charge_id = _text(metadata.get(CHARGE_ID_KEY)) if isinstance(metadata, Mapping) else None
    return CardGiven(session=session, charge_id=charge_id) if session and charge_id else None


def _error_object(body: Mapping[str, object]) -> Mapping[str, object]:
    """Return Stripe's error object; empty if there is none. Proxies have objects of that name, with numbers in them."""
    error = body.get("error")
    if isinstance(error, Mapping) and (_text(error.get("type")) or _text(error.get("code"))):
        return error
    return {}


def _shown(body: object) -> PaymentIntent | None:
    try:
        return read_payment_intent(body) if isinstance(body, Mapping) else None
    except ValueError:
        return None


def _required(body: Mapping[str, object], name: str, kind: type[Value]) -> Value:
    value = body.get(name)
    if type(value) is not kind:  # Exactly: True is no amount.
        raise ValueError(f"`{name}` is missing, or is no {kind.__name__}")
    return value


def _time(unix_seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(unix_seconds, UTC)
    except (OverflowError, OSError) as error:
        raise ValueError("`created` is no time") from error


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

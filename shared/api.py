"""What callers send and what they get: request bodies, the charge as JSON, problem details (RFC 9457)."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from shared import erasure, policy
from shared.answers import told
from shared.charge import Act, Charge, Chosen, Status, Terms, charge_id

BODY_LIMIT_BYTES: Final = 64 * 1024  # Fifty metadata values of 500 characters and everything else fit well.
LATEST_EXPIRY: Final = timedelta(days=365)
RETRY_AFTER_SECONDS: Final = 5  # For an answer that names no better time.

# What a POST answers, by where the charge stands. 402 and 410 are only ever said of what is certain.
HTTP_STATUS: Final[Mapping[Status, int]] = {
    Status.PENDING: 202,
    Status.UNKNOWN: 202,
    Status.PROCESSING: 202,
    Status.ACTION_REQUIRED: 202,
    Status.RETRYING: 202,
    Status.DECLINED: 402,
    Status.BLOCKED: 202,
    Status.SUCCEEDED: 200,
    Status.PAID_OUT_OF_BAND: 200,
    Status.CANCELED: 410,
}

# Stripe takes amounts of these in units of which the last digits must be zero. Source: docs.stripe.com/currencies.
LAST_DIGITS_ZERO: Final[Mapping[str, int]] = {
    **dict.fromkeys(("bhd", "jod", "kwd", "omr", "tnd"), 10),  # Three decimals, of which card networks carry two.
    **dict.fromkeys(("isk", "ugx"), 100),  # No decimals any more, but still written with two.
}

Account = Annotated[str, Meta(pattern=r"^acct_[A-Za-z0-9]{1,200}\Z")]
MetadataKey = Annotated[str, Meta(min_length=1, max_length=40, pattern=r"^(?!pio_)[^\[\]]+\Z")]
MetadataValue = Annotated[str, Meta(max_length=500)]
Customer = Annotated[str, Meta(pattern=r"^cus_[A-Za-z0-9_]{1,200}\Z")]
PaymentMethod = Annotated[str, Meta(pattern=r"^(pm|card|src|ba)_[A-Za-z0-9_]{1,200}\Z")]


Body = TypeVar("Body", bound=msgspec.Struct)


class Problem(Exception):
    """An answer that says what is wrong and what to do, as RFC 9457 has it."""

    def __init__(self, status: int, kind: str, detail: str, *, retry_after: int | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.retry_after = retry_after
        self.more = more

    def body(self) -> dict[str, Any]:
        """Return the problem document."""
        title = self.kind.replace("-", " ").capitalize()
        problem = {"type": f"urn:paidonce:{self.kind}", "title": title, "status": self.status, "detail": self.detail}
        return {**problem, **self.more}


class _Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A body that may hold nothing but its fields."""


class TransferData(_Strict, frozen=True, kw_only=True):
    """Where a destination charge sends the money."""

    destination: Account
    amount: Annotated[int, Meta(ge=1)] | None = None


class ChargeBody(_Strict, frozen=True, kw_only=True):
    """The body of `POST /`."""

    amount: Annotated[int, Meta(ge=1, le=999_999_999_999)]
    currency: Annotated[str, Meta(pattern=r"^[a-z]{3}\Z")]
    customer: Customer
    payment_method: PaymentMethod
    account: Account | None = None
    description: Annotated[str, Meta(max_length=1000)] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=47)] = {}
    retry: Literal["none", "schedule"] = "none"
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None
    application_fee_amount: Annotated[int, Meta(ge=0)] | None = None
    transfer_data: TransferData | None = None
    on_behalf_of: Account | None = None
    statement_descriptor_suffix: Annotated[str, Meta(min_length=1, max_length=22)] | None = None
    receipt_email: Annotated[str, Meta(max_length=512, pattern=r"^[^@\s]+@[^@\s]+\Z")] | None = None


class ActBody(_Strict, frozen=True, kw_only=True):
    """The body of an act; `POST /cancel` takes `account` as well."""

    actor: Annotated[str, Meta(min_length=1, max_length=200)] = "caller"
    reason: Annotated[str, Meta(max_length=1000)] = ""


class CancelByKeyBody(ActBody, frozen=True, kw_only=True):
    """The body of `POST /cancel`."""

    account: Account | None = None


class OutOfBandBody(_Strict, frozen=True, kw_only=True):
    """The body of `POST /{charge_id}/out-of-band`."""

    reference: Annotated[str, Meta(min_length=1, max_length=500)]
    actor: Annotated[str, Meta(min_length=1, max_length=200)] = "caller"


class PaymentMethodBody(_Strict, frozen=True, kw_only=True):
    """The body of `POST /{charge_id}/payment-method`."""

    payment_method: PaymentMethod
    customer: Customer | None = None  # Only where the charge's own is gone at Stripe.
    actor: Annotated[str, Meta(min_length=1, max_length=200)] = "caller"


ACT_BODIES: Final[Mapping[Act, type[ActBody] | type[OutOfBandBody] | type[PaymentMethodBody]]] = {
    Act.RETRY: ActBody,
    Act.PAYMENT_METHOD: PaymentMethodBody,
    Act.OUT_OF_BAND: OutOfBandBody,
    Act.CANCEL: ActBody,
}


def chosen(act: Act, body: ActBody | OutOfBandBody | PaymentMethodBody) -> Chosen:
    """Return what somebody chose, by the body of the act."""
    if isinstance(body, PaymentMethodBody):
        return Chosen(act=act, actor=body.actor, payment_method=body.payment_method, customer=body.customer)
    return Chosen(act=act, actor=body.actor, note=body.reference if isinstance(body, OutOfBandBody) else body.reason)


def filled_in(act: Act, fields: Mapping[str, str]) -> Chosen:
    """Return what somebody chose in a form, or on a command line. Raises Problem 400."""
    try:
        return chosen(act, msgspec.convert(dict(fields), ACT_BODIES[act]))
    except msgspec.ValidationError as error:
        raise Problem(400, "invalid-body", f"{error}. Nothing was done.") from error


def parse(raw: bytes, content_type: str, model: type[Body]) -> Body:
    """Read a JSON body. An empty one is `{}`. Raises Problem 400, 413 or 415."""
    if len(raw) > BODY_LIMIT_BYTES:
        raise Problem(413, "body-too-large", f"Send at most {BODY_LIMIT_BYTES} bytes.")
    if raw and content_type.partition(";")[0].strip().lower() != "application/json":
        raise Problem(415, "not-json", "Send Content-Type: application/json.")
    try:
        return msgspec.json.decode(raw or b"{}", type=model)
    except msgspec.ValidationError as error:
        raise Problem(400, "invalid-body", f"{error}. Nothing was sent to Stripe.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, "malformed-body", "The body is not JSON. Nothing was sent to Stripe.") from error


def read_idempotency_key(value: str | None) -> str:
    """Check the Idempotency-Key header: 1 to 255 visible ASCII characters. Raises Problem 400."""
    if not value:
        raise Problem(400, "idempotency-key-missing", "Send an Idempotency-Key header: one key, one charge, for ever.")
    if len(value) > 255 or not all("!" <= character <= "~" for character in value):
        raise Problem(400, "idempotency-key-invalid", "An Idempotency-Key is 1 to 255 visible ASCII characters.")
    return value


def read_version(if_match: str | None) -> int | None:
    """Read `If-Match: "<version>"`. Raises Problem 400."""
    if if_match is None or if_match.strip() == "*":
        return None
    version = if_match.strip().strip('"')
    if not (version.isdecimal() and len(version) < 20):
        raise Problem(400, "if-match-invalid", 'Send If-Match: "<version>", with the `version` of the charge you saw.')
    return int(version)


def terms_of(body: ChargeBody) -> Terms:
    """Check what types cannot, and freeze it. Raises Problem 400."""
    multiple = LAST_DIGITS_ZERO.get(body.currency, 1)
    if body.amount % multiple:
        raise Problem(400, "invalid-body", f"An amount in {body.currency} is a multiple of {multiple} - at `$.amount`.")
    fields = {name: getattr(body, name) for name in ChargeBody.__struct_fields__}
    if body.expires_at is not None:
        fields["expires_at"] = body.expires_at.astimezone(UTC)  # One moment, one digest, whatever the time zone.
    transfer = body.transfer_data
    fields["transfer_data"] = (
        None
        if transfer is None
        else {name: value for name, value in msgspec.structs.asdict(transfer).items() if value is not None}
    )
    return Terms(**fields)


def expires_out_of_range(terms: Terms, now: datetime) -> Problem | None:
    """Say what is wrong with when a new charge shall expire. A request that is repeated may well come later."""
    if terms.expires_at is None or now < terms.expires_at <= now + LATEST_EXPIRY:
        return None
    return Problem(400, "invalid-body", "`expires_at` lies in the future, within a year - at `$.expires_at`.")


def body_digest(terms: Terms) -> str:
    """Digest what was asked for, with defaults filled in: one wish, one digest, however it was written."""
    text = json.dumps(msgspec.to_builtins(terms), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differing(asked: Terms, recorded: Terms) -> list[str]:
    """Name the fields in which a repeated request differs from the first."""
    names = (field.name for field in dataclasses.fields(Terms))
    return [name for name in names if getattr(asked, name) != getattr(recorded, name)]


def key_reused(asked: Terms, recorded: Charge) -> Problem:
    """Say in which fields a repeated request differs from the first; of what was erased, nobody knows any more."""
    forgotten = erasure.ERASED[Terms] if recorded.erased_at is not None else {}
    fields = [name for name in differing(asked, recorded.terms) if name not in forgotten]
    what = ", ".join(fields) or "values of fields that were erased since"
    return Problem(422, "key-reused", f"This key belongs to a charge with other {what}.", fields=fields)


def opened(  # noqa: PLR0913 - what the charge is made of, each by its name.
    key: str, body: ChargeBody, *, livemode: bool, generation: int, api_version: str, now: datetime
) -> Charge:
    """Make the charge that a request asks for. Raises Problem 400."""
    terms = terms_of(body)
    return policy.open_charge(
        charge_id=charge_id(terms.account, key),
        idempotency_key=key,
        body_digest=body_digest(terms),
        terms=terms,
        livemode=livemode,
        generation=generation,
        api_version=api_version,
        now=now,
    )


def view(charge: Charge, customer_url: str | None = None) -> dict[str, Any]:
    """Return the charge as callers see it. Times are RFC 3339 UTC, amounts in the currency's smallest unit.

    customer_url: the link to the customer's page, while there is something to choose there.
    """
    terms = charge.terms
    body = {
        "id": charge.id,
        "object": "charge",
        "version": charge.version,
        "livemode": charge.livemode,
        "status": charge.status,
        "waiting_on": policy.waiting_on(charge),
        "amount": terms.amount,
        "amount_received": charge.amount_received,
        "amount_refunded": charge.amount_refunded,
        "currency": terms.currency,
        "customer": charge.customer,
        "payment_method": charge.payment_method,
        "account": terms.account,
        "payment_intent": charge.payment_intent,
        "due_at": charge.due_at,
        "next_attempt_at": charge.next_attempt_at,
        "expires_at": charge.expires_at,
        "last_error": _error(charge),
        "options": sorted(policy.options(charge)),
        "customer_url": None if charge.final else customer_url,
        "attempts": [
            {
                "number": attempt.number,
                "idempotency_key": attempt.idempotency_key,
                "payment_method": attempt.payment_method,
                "first_sent_at": attempt.first_sent_at,
                "sends": attempt.sends,
                "outcome": attempt.outcome,
                "request_id": attempt.request_id,
            }
            for attempt in charge.attempts
        ],
        "history": charge.history,
        "closing": charge.closing
        and {
            "kind": charge.closing.kind,
            "actor": charge.closing.actor,
            "at": charge.closing.at,
            "note": charge.closing.note,
        },
        "cancel_reason": charge.cancel_reason,
        "discrepancies": charge.discrepancies,
        "metadata": terms.metadata,
        "api_version": charge.create.api_version,
        "created_at": charge.created_at,
        "updated_at": charge.updated_at,
        "succeeded_at": charge.succeeded_at,
        **({} if charge.erased_at is None else {"erased_at": charge.erased_at}),
        **({"discrepancies_left_out": charge.discrepancies_left_out} if charge.discrepancies_left_out else {}),
    }
    shown: dict[str, Any] = msgspec.to_builtins(body)
    return shown


def _error(charge: Charge) -> dict[str, str | None] | None:
    if charge.last_error is None or charge.status is Status.SUCCEEDED:
        return None
    failure = told(charge.last_error)
    return {name: getattr(failure, name) for name in ("type", "code", "decline_code", "message")}

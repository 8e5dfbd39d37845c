"""What we know about one charge.

Pure: the standard library only, no clock, no I/O. `policy.py` decides with these words; every other module
translates them for Stripe, Datastore, Cloud Tasks or HTTP.

    Charge      our record of one thing to be paid once: one entity, one PaymentIntent
    Request     one thing asked of Stripe: one idempotency key, frozen parameters, how it stands
    Attempt     the Request of one try to confirm, numbered
    Status      where the charge stands, for the people who wait for it
    Closing     somebody's wish to end the charge without money
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Self

HISTORY_KEPT: Final = 200  # Entries. At about 200 bytes each far below Datastore's 1 MiB an entity.


class Status(StrEnum):
    """Where the charge stands."""

    PENDING = "pending"
    UNKNOWN = "unknown"
    PROCESSING = "processing"
    ACTION_REQUIRED = "action_required"
    RETRYING = "retrying"
    DECLINED = "declined"
    BLOCKED = "blocked"
    SUCCEEDED = "succeeded"
    PAID_OUT_OF_BAND = "paid_out_of_band"
    CANCELED = "canceled"


PAID: Final = frozenset({Status.SUCCEEDED, Status.PAID_OUT_OF_BAND})
FINAL: Final = PAID | {Status.CANCELED}


class Party(StrEnum):
    """Who must act before an open charge moves on."""

    SYSTEM = "system"
    CUSTOMER = "customer"
    BANK = "bank"
    OPERATOR = "operator"
    ACCOUNT_OWNER = "account_owner"


class Standing(StrEnum):
    """How one Request stands: what may be done with its key."""

    UNSENT = "unsent"  # Recorded, never sent.
    OUT = "out"  # Sent, nothing conclusive known: send again as written while the key lives.
    LOOK = "look"  # Something came back that is checked at Stripe before anything else is sent.
    BURNT = "burnt"  # The key can say no more, and what was sent under it may still move money.
    SETTLED = "settled"  # What was sent under the key did what `outcome` says, and nothing else will come of it.


class Audience(StrEnum):
    """Whom a notice is for."""

    CUSTOMER = "customer"
    ACCOUNT_OWNER = "account_owner"
    OPERATOR = "operator"
    CALLER = "caller"  # The system that asked for the charge, at OUTCOME_URL.


class Topic(StrEnum):
    """What a notice says."""

    DECLINED = "declined"
    RETRYING = "retrying"
    ACTION_REQUIRED = "action_required"
    PAID = "paid"
    CANCELED = "canceled"
    MISSING_OBJECT = "missing_object"
    BLOCKED = "blocked"
    DISCREPANCY = "discrepancy"
    PAYS_ELSEWHERE = "pays_elsewhere"
    NOT_NOTED = "not_noted"  # They wanted to pay elsewhere, it soon ends unpaid, and nobody has noted that it was paid.
    BUG = "bug"
    OUTCOME = "outcome"


class Act(StrEnum):
    """What a caller, customer or operator may do with an open charge."""

    RETRY = "retry"
    PAYMENT_METHOD = "payment-method"
    OUT_OF_BAND = "out-of-band"
    CANCEL = "cancel"


class CancelReason(StrEnum):
    """Why a canceled charge was canceled."""

    REQUESTED = "requested"
    EXPIRED = "expired"
    BY_STRIPE = "by_stripe"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why Stripe said no, in Stripe's words (its `error` object)."""

    type: str | None = None
    code: str | None = None
    decline_code: str | None = None
    advice_code: str | None = None
    param: str | None = None
    message: str | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """One thing asked of Stripe. Repeated only as written: same key, parameters, API version and account."""

    idempotency_key: str
    operation: str  # `create`, `confirm`, `cancel` or `refund`.
    parameters: str  # The exact JSON object sent, as text: Datastore's maps forget the order of their keys.
    api_version: str
    payment_intent: str | None = None  # On which it acts; None while it is the one that creates it.
    standing: Standing = Standing.UNSENT
    sends: int = 0
    unanswered: int = 0  # Sends whose effect nothing has explained: no reply, a 5xx, a crash.
    first_sent_at: datetime | None = None  # No later than the first time Stripe can have seen the key.
    burnt_at: datetime | None = None
    heard: str | None = None  # An answer (`Seen`) not believed before Stripe has been looked at.
    outcome: str | None = None  # The answer (`Seen`) that settled it, or that burnt its key for good.
    error: Failure | None = None
    request_id: str | None = None  # Of Stripe's last answer, for its support and its log.

    def sent(self, at: datetime) -> Self:
        """Return this as it stands once it is on its way; recorded before the bytes leave."""
        return dataclasses.replace(
            self,
            standing=Standing.OUT,
            sends=self.sends + 1,
            unanswered=self.unanswered + 1,
            first_sent_at=self.first_sent_at or at,
        )

    @property
    def settled(self) -> bool:
        """Whether nothing more can come of it."""
        return self.standing is Standing.SETTLED


@dataclass(frozen=True, kw_only=True)
class Attempt(Request):
    """One try to confirm the PaymentIntent, with the payment method it names."""

    number: int
    payment_method: str


@dataclass(frozen=True, kw_only=True)
class Closing:
    """A wish to end the charge without money. Committed before anything is sent; from then on nothing is confirmed."""

    kind: str  # `cancel`, `expire`, `out_of_band` or `paid_elsewhere`.
    actor: str
    at: datetime
    note: str = ""  # The caller's reason, or the reference of the payment that was made elsewhere.
    request: Request | None = None  # The cancel at Stripe; None while no PaymentIntent is known.
    number: int = 0  # Of `request`.


@dataclass(frozen=True, kw_only=True)
class Discrepancy:
    """Something that Stripe says and the ledger does not explain, or the other way round. Recorded once."""

    kind: str
    at: datetime
    payment_intent: str | None = None
    detail: str = ""
    settled: str = ""  # How it was settled; empty while somebody must look at it.
    settled_at: datetime | None = None
    note: str = ""  # What an operator said of it who settled it.


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that somebody must be told, once. With its charge's id, `number` names it for ever."""

    number: int
    audience: Audience
    topic: Topic
    at: datetime
    about: str = ""  # What of the charge it is about: the same is not told twice.
    told_at: datetime | None = None  # When it was accepted; or found to be true no longer (`dropped`).
    dropped: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a charge's history."""

    at: datetime
    what: str
    status: Status
    actor: str = "system"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the caller asked for, frozen with the charge. `amount` is in the currency's smallest unit."""

    amount: int
    currency: str
    customer: str
    payment_method: str
    account: str | None = None
    description: str | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    retry: str = "none"
    expires_at: datetime | None = None
    application_fee_amount: int | None = None
    transfer_data: Mapping[str, str | int] | None = None
    on_behalf_of: str | None = None
    statement_descriptor_suffix: str | None = None
    receipt_email: str | None = None

    @property
    def seller(self) -> str | None:
        """Return the account whose name the customer's statement shows; None: our own."""
        return self.on_behalf_of or self.account


@dataclass(frozen=True, kw_only=True)
class Charge:
    """One thing to be paid once. Open charges always have `due_at`; final ones never."""

    id: str
    idempotency_key: str  # The caller's.
    body_digest: str
    terms: Terms
    payment_method: str  # The one that the next attempt uses.
    livemode: bool
    status: Status
    create: Request
    created_at: datetime
    updated_at: datetime
    expires_at: datetime
    due_at: datetime | None
    version: int = 1
    generation: int = 1  # Of the ledger, when the charge was inserted: part of its confirm keys.
    epoch: int = 0  # Counts the tasks made for it: part of their names.
    sweeps: int = 0  # How often the sweep has made it a task since a delivery last got somewhere,
    swept_until: datetime | None = None  # and until when it waits for what the last of them brings.
    lease_owner: str = ""
    lease_until: datetime | None = None
    customers: tuple[str, ...] = ()  # Who took the place of `terms.customer`, one after the other.
    customer_gone: bool = False  # Stripe has said that the one it has now is not there any more.
    payment_intent: str | None = None
    attempts: tuple[Attempt, ...] = ()
    orphans: tuple[str, ...] = ()  # Other PaymentIntents of this charge, to be canceled before it is confirmed.
    orphans_refused: tuple[str, ...] = ()  # Those of them whose cancel was refused: each is read, it may be paid.
    refunds: tuple[Request, ...] = ()  # Of money that another PaymentIntent than the recorded one took for this charge.
    restored_at: datetime | None = None  # When a restored ledger was reopened, if the lost time may still act on this.
    lost_since: datetime | None = None  # From when on that ledger may have forgotten what was done.
    closing: Closing | None = None
    cancel_reason: CancelReason | None = None
    blocked_on: Party | None = None
    next_attempt_at: datetime | None = None
    pays_elsewhere_since: datetime | None = None  # So the customer says; nothing is tried until somebody chooses again.
    last_error: Failure | None = None
    amount_received: int = 0
    amount_refunded: int = 0
    crashes: int = 0  # Deliveries that ended in an exception of ours since the last that did not.
    discrepancies: tuple[Discrepancy, ...] = ()
    discrepancies_left_out: int = 0  # For which there was no room. The log says which.
    outbox: tuple[Notice, ...] = ()  # What anybody is to be told, and was told of late.
    history: tuple[Entry, ...] = ()
    succeeded_at: datetime | None = None
    erased_at: datetime | None = None  # When what is personal in it was erased.

    @property
    def customer(self) -> str:
        """Name the customer that it charges; once a PaymentIntent is recorded, that one's for ever."""
        return self.customers[-1] if self.customers else self.terms.customer

    @property
    def every_customer(self) -> frozenset[str]:
        """Name those for whom a PaymentIntent of this charge may have been made."""
        return frozenset({self.terms.customer, *self.customers})

    @property
    def final(self) -> bool:
        """Whether nothing is left to be decided."""
        return self.status in FINAL

    @property
    def tidy(self) -> bool:
        """Whether nothing beside the recorded PaymentIntent is left to be canceled or given back."""
        return not self.orphans and all(refund.settled for refund in self.refunds)

    @property
    def untold(self) -> tuple[Notice, ...]:
        """What somebody is still to be told."""
        return tuple(notice for notice in self.outbox if notice.told_at is None)

    @property
    def done(self) -> bool:
        """Whether nothing at all is left to do: only then is there no `due_at`."""
        return self.final and self.tidy and not self.untold

    @property
    def open_attempt(self) -> Attempt | None:
        """The attempt whose outcome is still open; there is at most one, the last."""
        last = self.attempts[-1] if self.attempts else None
        return None if last is None or last.settled else last

    def request(self, idempotency_key: str) -> Request | None:
        """Find the Request that has this key."""
        closing = self.closing.request if self.closing else None
        requests: tuple[Request | None, ...] = (self.create, *self.attempts, closing, *self.refunds)
        return next((r for r in requests if r is not None and r.idempotency_key == idempotency_key), None)

    def with_request(self, request: Request) -> Self:
        """Put a Request back in the place of the one that has the same key (of a refund: the same PaymentIntent)."""
        if request.idempotency_key == self.create.idempotency_key:
            return dataclasses.replace(self, create=request)
        if isinstance(request, Attempt):
            attempts = tuple(request if a.idempotency_key == request.idempotency_key else a for a in self.attempts)
            return dataclasses.replace(self, attempts=attempts)
        if request.operation == "refund":
            refunds = tuple(request if r.payment_intent == request.payment_intent else r for r in self.refunds)
            return dataclasses.replace(self, refunds=refunds)
        assert self.closing is not None, "only a closing has a request that is neither create nor attempt"
        return dataclasses.replace(self, closing=dataclasses.replace(self.closing, request=request))

    def noted(self, at: datetime, what: str, actor: str = "system") -> Self:
        """Add a line to the history; the oldest lines go once there are too many."""
        entry = Entry(at=at, what=what, status=self.status, actor=actor)
        return dataclasses.replace(self, history=(*self.history, entry)[-HISTORY_KEPT:])


def charge_id(account: str | None, idempotency_key: str) -> str:
    """Name the charge of a caller's Idempotency-Key on an account: the same for ever, spread evenly over Datastore."""
    text = json.dumps([account, idempotency_key], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:40]  # 160 bits, as git's: no two will meet.


def is_charge_of(account: str | None, intent: "PaymentIntent") -> bool:
    """Whether what this PaymentIntent says of its charge agrees with the account that it is on.

    No other account's owner can make it say so of this account's charge.
    """
    return intent.charge_id == charge_id(account, intent.caller_key)


# --- Observations ---------------------------------------------------------------------------------------------------
#
# What one look at the world told us, and about which Request or PaymentIntent. Adapters make them; `policy.decide`
# answers them.


class Seen(StrEnum):
    """What an answer of Stripe amounts to. `answers.py` reads it from the HTTP status and the body."""

    # A PaymentIntent came back: its status.
    SUCCEEDED = "succeeded"
    PROCESSING = "processing"
    ACTION_REQUIRED = "action_required"
    HELD = "held"  # `requires_capture`: authorised, not taken.
    CANCELED = "canceled"
    UNCONFIRMED = "unconfirmed"  # `requires_payment_method` and `requires_confirmation`.
    # The bank or Stripe declined (402).
    DECLINED = "declined"
    AUTHENTICATION_REQUIRED = "authentication_required"
    TRANSIENT_DECLINE = "transient_decline"
    DUPLICATE_TRANSACTION = "duplicate_transaction"
    # A refund came back; or there is nothing left to refund.
    REFUNDED = "refunded"
    REFUND_FAILED = "refund_failed"
    # The request was refused.
    UNEXPECTED_STATE = "unexpected_state"
    MISSING_OBJECT = "missing_object"  # The customer, the payment method or the account.
    MISSING_PAYMENT_INTENT = "missing_payment_intent"
    INVALID = "invalid"
    PARAMETERS_DRIFTED = "parameters_drifted"  # `idempotency_error`.
    UNAUTHORIZED = "unauthorized"
    # Nothing was learned.
    KEY_IN_USE = "key_in_use"
    LIMITED = "limited"
    # Anything may have happened.
    SERVER_ERROR = "server_error"  # 5xx, 424, and every answer that no table lists.
    NO_REPLY = "no_reply"


@dataclass(frozen=True, kw_only=True)
class PaymentIntent:
    """A PaymentIntent as Stripe showed it. Amounts in the currency's smallest unit."""

    id: str
    seen: Seen
    amount: int
    amount_received: int
    currency: str
    livemode: bool
    created: datetime
    charge_id: str | None = None  # Our charge's, from its metadata: finds a charge, proves nothing.
    caller_key: str = ""  # Its caller's Idempotency-Key, from its metadata likewise.
    customer: str | None = None
    body_digest: str = ""  # Our charge's, from its metadata likewise.
    cancellation_reason: str | None = None
    last_error: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What came of sending a Request: `seen` is NO_REPLY when nothing readable came back."""

    idempotency_key: str
    seen: Seen
    replayed: bool = False  # Stripe's `Idempotent-Replayed`: the answer of an earlier send.
    payment_intent: PaymentIntent | None = None
    error: Failure | None = None
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """One PaymentIntent, read now. `charge_under_way`: one of its charges succeeded or is pending."""

    payment_intent: PaymentIntent
    charge_under_way: bool = False
    amount_refunded: int | None = None  # Of its charges; None: they were not read.
    disputed: bool = False  # One of its charges is: the bank may give back, or has given back, what it took.


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What an audit read about a charge that the ledger calls succeeded. None: Stripe knows no such PaymentIntent."""

    payment_intent: PaymentIntent | None
    amount_refunded: int | None = None  # None: not read.


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Every PaymentIntent of the charge's customer (one is gone: of the account) since the charge was made."""

    payment_intents: tuple[PaymentIntent, ...]


@dataclass(frozen=True, kw_only=True)
class LookFailed:
    """A GET or a list that did not answer with what was asked for."""

    seen: Seen
    error: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class CustomerGone:
    """Stripe will do nothing more for this customer, who is not there: seen where something else was asked for them."""

    customer: str
    error: Failure


@dataclass(frozen=True, kw_only=True)
class Happened:
    """A webhook event that names a PaymentIntent: evidence about that one only."""

    type: str
    account: str | None
    payment_intent: PaymentIntent
    idempotency_key: str | None = None  # Of the request that caused it; finds a charge, proves nothing.


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a caller, customer or operator decided."""

    act: Act
    actor: str
    payment_method: str | None = None
    customer: str | None = None  # Whose payment method it is; None: the charge's customer's.
    return_url: str | None = (
        None  # The customer is here, and the bank may ask them; then they come back to this address.
    )
    wish: bool = False  # With OUT_OF_BAND: it is only intended. Whoever gets the money says when it is paid.
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Reviewed:
    """An operator has looked at every Discrepancy that stood unsettled, and says what became of it."""

    actor: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Woken:
    """A delivery began: time has passed."""

    unheard: bool = False  # The caller had its answer before it was certain what had become of the charge.


@dataclass(frozen=True, kw_only=True)
class Crashed:
    """A delivery ended in an exception of ours (its class; never its message, which may hold anything)."""

    exception: str


Observation = (
    Answered | Fetched | Compared | Listed | LookFailed | CustomerGone | Happened | Chosen | Reviewed | Woken | Crashed
)

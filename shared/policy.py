"""What every observation means for a charge. Everything that decides about money is in this file.

Pure: the standard library, `charge` and `codes`; the time is an argument. Three questions are answered here:

    decide(charge, observation, now)   the next charge, and what to do once it is durable
    next_step(charge, now)             what an open charge needs done: send, look, or nothing
    options(charge)                    which acts are open to a caller, customer or operator

The tables come first, then the time limits, then the functions that read them. An answer that no table lists is
SERVER_ERROR, so what nobody foresaw is `unknown`, never `failed`.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from shared import codes
from shared.charge import (
    PAID,
    Act,
    Answered,
    Attempt,
    Audience,
    CancelReason,
    Charge,
    Chosen,
    Closing,
    Compared,
    Crashed,
    CustomerGone,
    Discrepancy,
    Failure,
    Fetched,
    GivenBack,
    Happened,
    Listed,
    LookFailed,
    Notice,
    Observation,
    Party,
    PaymentIntent,
    Request,
    Reviewed,
    Seen,
    Standing,
    Status,
    Terms,
    Topic,
    Woken,
)


class Then(StrEnum):
    """What follows a decision."""

    GO_ON = "go_on"  # Ask `next_step` at once.
    LATER = "later"  # This charge comes again after `wait`.
    REST = "rest"  # Nothing is left for us to do until somebody acts or `due_at` has come.


@dataclass(frozen=True, kw_only=True)
class Send:
    """Send this Request, once it is recorded as sent."""

    request: Request


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Read a PaymentIntent."""

    payment_intent: str
    with_charges: bool = False


@dataclass(frozen=True, kw_only=True)
class FetchRefunds:
    """Read what has become of the refunds of a PaymentIntent."""

    payment_intent: str


@dataclass(frozen=True, kw_only=True)
class List:
    """List the customer's PaymentIntents since this time."""

    since: datetime
    of_everybody: bool = False  # The whole account's: a customer who is gone may have no list any more.


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Do nothing now."""


Step = Send | Fetch | FetchRefunds | List | Rest


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The answer to an observation."""

    charge: Charge
    then: Then
    wait: timedelta = timedelta()
    look: Fetch | None = None  # The look that the evidence calls for, where it is not the charge's own next step.
    refusal: str | None = None  # Why an act does not fit; the charge is then unchanged.


# --- What an answer means ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What an answer makes of its Request and of the charge. `status` None: stays as it is."""

    standing: Standing
    status: Status | None
    then: Then
    blocked_on: Party | None = None


# fmt: off
CONFIRM: Final[Mapping[Seen, Row]] = {
    # What came back                the Request is     the charge becomes        and then
    Seen.SUCCEEDED:               Row(Standing.SETTLED, Status.SUCCEEDED,       Then.REST),
    Seen.PROCESSING:              Row(Standing.SETTLED, Status.PROCESSING,      Then.REST),   # The bank says more later.
    Seen.ACTION_REQUIRED:         Row(Standing.SETTLED, Status.ACTION_REQUIRED, Then.REST),
    Seen.HELD:                    Row(Standing.SETTLED, Status.BLOCKED,         Then.REST, Party.OPERATOR),  # We never ask for a hold.
    Seen.CANCELED:                Row(Standing.SETTLED, Status.CANCELED,        Then.REST),   # Final at Stripe.
    Seen.UNCONFIRMED:             Row(Standing.LOOK,    Status.UNKNOWN,         Then.GO_ON),  # A 200 that decides nothing.
    Seen.DECLINED:                Row(Standing.SETTLED, Status.DECLINED,        Then.REST),   # Saved under the key: another try is another key.
    Seen.AUTHENTICATION_REQUIRED: Row(Standing.SETTLED, Status.ACTION_REQUIRED, Then.REST),
    Seen.TRANSIENT_DECLINE:       Row(Standing.SETTLED, Status.RETRYING,        Then.REST),   # S6: a few tries by ourselves, new key each.
    Seen.DUPLICATE_TRANSACTION:   Row(Standing.LOOK,    Status.UNKNOWN,         Then.GO_ON),  # The bank has just seen such a payment: look first.
    Seen.UNEXPECTED_STATE:        Row(Standing.LOOK,    Status.UNKNOWN,         Then.GO_ON),  # Often it has already succeeded.
    Seen.MISSING_OBJECT:          Row(Standing.SETTLED, Status.BLOCKED,         Then.REST, Party.ACCOUNT_OWNER),  # S7.
    Seen.MISSING_PAYMENT_INTENT:  Row(Standing.SETTLED, Status.BLOCKED,         Then.REST, Party.OPERATOR),  # Wrong account, mode or key.
    Seen.INVALID:                 Row(Standing.SETTLED, Status.BLOCKED,         Then.REST, Party.OPERATOR),  # S2: our request is wrong.
    Seen.PARAMETERS_DRIFTED:      Row(Standing.LOOK,    Status.UNKNOWN,         Then.GO_ON),  # The first request under this key may have charged.
    Seen.UNAUTHORIZED:            Row(Standing.OUT,     Status.BLOCKED,         Then.REST, Party.OPERATOR),  # S3: nothing ran, the key stays good.
    Seen.KEY_IN_USE:              Row(Standing.OUT,     Status.UNKNOWN,         Then.LATER),  # The twin may be charging right now.
    Seen.LIMITED:                 Row(Standing.OUT,     None,                   Then.LATER),  # Says nothing about earlier sends.
    Seen.SERVER_ERROR:            Row(Standing.LOOK,    Status.UNKNOWN,         Then.GO_ON),  # S8: it may have charged.
    Seen.NO_REPLY:                Row(Standing.OUT,     Status.UNKNOWN,         Then.LATER),  # S9: same key, so asking again is safe.
}

# A create moves no money, so whatever is open about it leaves the charge `pending`. An answer with a PaymentIntent
# in it is recorded (step 3), whatever its status; these are the others.
CREATE: Final[Mapping[Seen, Row]] = {
    Seen.DECLINED:                Row(Standing.OUT,     None,                   Then.LATER),  # Not a create's answer:
    Seen.AUTHENTICATION_REQUIRED: Row(Standing.OUT,     None,                   Then.LATER),  # unlisted, so unknown.
    Seen.TRANSIENT_DECLINE:       Row(Standing.OUT,     None,                   Then.LATER),
    Seen.DUPLICATE_TRANSACTION:   Row(Standing.OUT,     None,                   Then.LATER),
    Seen.UNEXPECTED_STATE:        Row(Standing.OUT,     None,                   Then.LATER),
    Seen.MISSING_OBJECT:          Row(Standing.SETTLED, Status.BLOCKED,         Then.REST, Party.ACCOUNT_OWNER),  # S7.
    Seen.MISSING_PAYMENT_INTENT:  Row(Standing.SETTLED, Status.BLOCKED,         Then.REST, Party.OPERATOR),
    Seen.INVALID:                 Row(Standing.SETTLED, Status.BLOCKED,         Then.REST, Party.OPERATOR),  # S2.
    Seen.PARAMETERS_DRIFTED:      Row(Standing.BURNT,   None,                   Then.GO_ON),  # List; never a new key unseen.
    Seen.UNAUTHORIZED:            Row(Standing.OUT,     Status.BLOCKED,         Then.REST, Party.OPERATOR),  # S3.
    Seen.KEY_IN_USE:              Row(Standing.OUT,     None,                   Then.LATER),
    Seen.LIMITED:                 Row(Standing.OUT,     None,                   Then.LATER),
    Seen.SERVER_ERROR:            Row(Standing.OUT,     None,                   Then.LATER),  # Replayed: BURNT, then the list.
    Seen.NO_REPLY:                Row(Standing.OUT,     None,                   Then.LATER),
}

# Cancelling twice is harmless, so an unusable key is replaced after one look.
CANCEL: Final[Mapping[Seen, Row]] = {
    Seen.SUCCEEDED:               Row(Standing.SETTLED, Status.SUCCEEDED,       Then.REST),   # Too late: it is paid.
    Seen.PROCESSING:              Row(Standing.LOOK,    Status.PROCESSING,      Then.GO_ON),
    Seen.ACTION_REQUIRED:         Row(Standing.LOOK,    None,                   Then.GO_ON),
    Seen.HELD:                    Row(Standing.LOOK,    None,                   Then.GO_ON),
    Seen.CANCELED:                Row(Standing.SETTLED, Status.CANCELED,        Then.REST),   # The closing's own final status.
    Seen.UNCONFIRMED:             Row(Standing.LOOK,    None,                   Then.GO_ON),
    Seen.DECLINED:                Row(Standing.LOOK,    Status.UNKNOWN,         Then.GO_ON),  # Not a cancel's answer.
    Seen.AUTHENTICATION_REQUIRED: Row(Standing.LOOK,    Status.UNKNOWN,         Then.GO_ON),
    Seen.TRANSIENT_DECLINE:       Row(Standing.LOOK,    Status.UNKNOWN,         Then.GO_ON),
    Seen.DUPLICATE_TRANSACTION:   Row(Standing.LOOK,    Status.UNKNOWN,         Then.GO_ON),
    Seen.UNEXPECTED_STATE:        Row(Standing.LOOK,    Status.UNKNOWN,         Then.GO_ON),  # Paid, under way, or canceled before.
    Seen.MISSING_OBJECT:          Row(Standing.SETTLED, Status.BLOCKED,         Then.REST, Party.OPERATOR),
    Seen.MISSING_PAYMENT_INTENT:  Row(Standing.SETTLED, Status.BLOCKED,         Then.REST, Party.OPERATOR),
    Seen.INVALID:                 Row(Standing.SETTLED, Status.BLOCKED,         Then.REST, Party.OPERATOR),
    Seen.PARAMETERS_DRIFTED:      Row(Standing.LOOK,    Status.UNKNOWN,         Then.GO_ON),
    Seen.UNAUTHORIZED:            Row(Standing.OUT,     Status.BLOCKED,         Then.REST, Party.OPERATOR),
    Seen.KEY_IN_USE:              Row(Standing.OUT,     Status.UNKNOWN,         Then.LATER),
    Seen.LIMITED:                 Row(Standing.OUT,     None,                   Then.LATER),
    Seen.SERVER_ERROR:            Row(Standing.LOOK,    Status.UNKNOWN,         Then.GO_ON),
    Seen.NO_REPLY:                Row(Standing.OUT,     Status.UNKNOWN,         Then.LATER),
}

# Refunding twice is harmless: Stripe gives back no more than was taken. So an unusable key is replaced at once, and a
# refund is asked for until there is nothing left to give back. It leaves the charge as it is.
REFUND: Final[Mapping[Seen, Standing]] = {
    Seen.REFUNDED:                Standing.SETTLED,
    Seen.REFUND_PENDING:          Standing.LOOK,      # It is read until it is one or the other.
    Seen.REFUND_FAILED:           Standing.SETTLED,   # These four: a person must settle it.
    Seen.MISSING_PAYMENT_INTENT:  Standing.SETTLED,
    Seen.INVALID:                 Standing.SETTLED,
    Seen.DECLINED:                Standing.SETTLED,
    Seen.PARAMETERS_DRIFTED:      Standing.BURNT,     # Another key.
}                                                     # Anything else, also that the account is gone: the same key again.

# What a look that failed blocks on; any other is tried again.
LOOK_BLOCKED_ON: Final[Mapping[Seen, Party]] = {
    Seen.UNAUTHORIZED:            Party.OPERATOR,
    Seen.MISSING_OBJECT:          Party.ACCOUNT_OWNER,
    Seen.MISSING_PAYMENT_INTENT:  Party.OPERATOR,
    Seen.INVALID:                 Party.OPERATOR,
}

# What a PaymentIntent says when it is read (or comes with its create) while no attempt of ours is out.
# UNCONFIRMED is not here: it settles nothing by itself (`_unconfirmed`).
STATE: Final[Mapping[Seen, tuple[Status, Party | None]]] = {
    Seen.SUCCEEDED:               (Status.SUCCEEDED,       None),
    Seen.PROCESSING:              (Status.PROCESSING,      None),
    Seen.ACTION_REQUIRED:         (Status.ACTION_REQUIRED, None),
    Seen.HELD:                    (Status.BLOCKED,         Party.OPERATOR),
    Seen.CANCELED:                (Status.CANCELED,        None),
}

# An answer that was heard but not believed (it was replayed, or an earlier send was still unexplained), once a look
# has shown the PaymentIntent unconfirmed: the answer stands after all, with these exceptions.
BELIEVED: Final[Mapping[Seen, Row]] = {
    **CONFIRM,
    Seen.DUPLICATE_TRANSACTION:   Row(Standing.SETTLED, Status.DECLINED,        Then.REST),
    Seen.PROCESSING:              Row(Standing.SETTLED, Status.DECLINED,        Then.REST),   # It was, and failed since.
    Seen.ACTION_REQUIRED:         Row(Standing.SETTLED, Status.DECLINED,        Then.REST),   # Likewise.
    Seen.HELD:                    Row(Standing.SETTLED, Status.DECLINED,        Then.REST),   # Likewise.
    Seen.UNCONFIRMED:             Row(Standing.OUT,     Status.UNKNOWN,         Then.LATER),
    Seen.UNEXPECTED_STATE:        Row(Standing.SETTLED, Status.PENDING,         Then.LATER),  # Refused then, possible now: another attempt.
    Seen.PARAMETERS_DRIFTED:      Row(Standing.BURNT,   Status.BLOCKED,         Then.REST, Party.OPERATOR),
}

WAITING_ON: Final[Mapping[Status, Party | None]] = {
    Status.PENDING:          Party.SYSTEM,
    Status.UNKNOWN:          Party.SYSTEM,
    Status.PROCESSING:       Party.BANK,
    Status.ACTION_REQUIRED:  Party.CUSTOMER,
    Status.RETRYING:         Party.SYSTEM,
    Status.DECLINED:         Party.CUSTOMER,
    Status.BLOCKED:          None,             # The charge itself says whom: `blocked_on`.
    Status.SUCCEEDED:        None,
    Status.PAID_OUT_OF_BAND: None,
    Status.CANCELED:         None,
}

# Whom a new status is told, in this order. The caller's system hears of these only if the answer did not say so.
NOTICES: Final[Mapping[Status, tuple[tuple[Audience, Topic], ...]]] = {
    Status.PENDING:          (),
    Status.UNKNOWN:          (),                                 # Nobody is told anything of what is not known.
    Status.PROCESSING:       (),
    Status.ACTION_REQUIRED:  ((Audience.CUSTOMER, Topic.ACTION_REQUIRED), (Audience.CALLER, Topic.OUTCOME)),
    Status.RETRYING:         ((Audience.CUSTOMER, Topic.RETRYING),),
    Status.DECLINED:         ((Audience.CUSTOMER, Topic.DECLINED), (Audience.CALLER, Topic.OUTCOME)),
    Status.BLOCKED:          ((Audience.CALLER, Topic.OUTCOME),),     # And whoever must mend it: `_mender`.
    Status.SUCCEEDED:        ((Audience.CUSTOMER, Topic.PAID), (Audience.CALLER, Topic.OUTCOME)),
    Status.PAID_OUT_OF_BAND: ((Audience.CUSTOMER, Topic.PAID), (Audience.CALLER, Topic.OUTCOME)),
    Status.CANCELED:         ((Audience.CUSTOMER, Topic.CANCELED), (Audience.CALLER, Topic.OUTCOME)),
}
CONCLUDES: Final = frozenset({Topic.PAID, Topic.CANCELED})   # Only said to a customer who was told of trouble before.
ASIDES: Final = frozenset({Topic.DISCREPANCY, Topic.PAYS_ELSEWHERE})  # Said beside how the charge stands: no word on that.

CLOSINGS: Final = frozenset({Act.OUT_OF_BAND, Act.CANCEL})
EVERY_ACT: Final = frozenset(Act)
OPTIONS: Final[Mapping[Status, frozenset[Act]]] = {
    Status.PENDING:          CLOSINGS,
    Status.UNKNOWN:          CLOSINGS,         # A wish: carried out, or overtaken by money that had moved.
    Status.PROCESSING:       CLOSINGS,         # Likewise.
    Status.ACTION_REQUIRED:  EVERY_ACT,
    Status.RETRYING:         EVERY_ACT,
    Status.DECLINED:         EVERY_ACT,        # S5: the four ways out.
    Status.BLOCKED:          EVERY_ACT,
    Status.SUCCEEDED:        frozenset(),
    Status.PAID_OUT_OF_BAND: frozenset(),
    Status.CANCELED:         frozenset(),
}

CLOSES_AS: Final[Mapping[str, tuple[Status, CancelReason | None]]] = {
    "cancel":         (Status.CANCELED,         CancelReason.REQUESTED),
    "expire":         (Status.CANCELED,         CancelReason.EXPIRED),
    "out_of_band":    (Status.PAID_OUT_OF_BAND, None),
    "paid_elsewhere": (Status.PAID_OUT_OF_BAND, None),   # Another PaymentIntent than the recorded one took the money.
}

OVERTAKEN: Final[Mapping[str, tuple[str, str]]] = {      # By money: what is then to be settled, and why.
    "cancel":      ("paid_after_cancel_asked", "paid before it could be canceled"),
    "expire":      ("paid_after_cancel_asked", "paid before it could be canceled"),
    "out_of_band": ("paid_twice", "paid here and elsewhere: refund one"),
}                                                        # Of `paid_elsewhere` it is known.

CANCELLATION_REASON: Final[Mapping[str, str]] = {        # Stripe's own words for why it was canceled.
    "cancel":         "requested_by_customer",
    "expire":         "abandoned",
    "out_of_band":    "requested_by_customer",
    "paid_elsewhere": "duplicate",
}
WISH: Final = "the customer wants to pay in cash or elsewhere"
ORPHAN_REASON: Final = "duplicate"             # Marks an orphan that we canceled: it closes nothing.

EXTRA: Final = frozenset({"paid_twice", "paid_elsewhere"})  # Discrepancies of money that another PaymentIntent took.

BY_OPERATOR: Final = "by an operator"  # How a Discrepancy is settled that a person has looked at.
UNEXPLAINED: Final = "unexplained_payment_intent"  # The kind of Discrepancy that blocks a create.
NOT_AS_AGREED: Final = "unexplained_payment"       # Of money that names this charge, and is not what was asked for.
NOT_CANCELED: Final = "orphan_not_canceled"
ANSWERS_FOR: Final = EXTRA | {NOT_AS_AGREED}       # Whoever took money that one of these is about is seen to already.

TOO_MANY: Final = "too_many_pages"  # The `type` of what a list answers that is longer than we read: ours, not Stripe's.
NO_CUSTOMER: Final = Failure(type="invalid_request_error", code="resource_missing", param="customer")

# Which of several PaymentIntents of one charge is the one to record: the first kind that is there.
PREFERENCE: Final[tuple[frozenset[Seen], ...]] = (
    frozenset({Seen.SUCCEEDED}),
    frozenset({Seen.PROCESSING, Seen.HELD, Seen.ACTION_REQUIRED, Seen.SERVER_ERROR}),  # A status nobody foresaw may be paying.
    frozenset({Seen.CANCELED}),                # By a closing (not as an orphan): the charge is closed.
    frozenset({Seen.UNCONFIRMED}),
)

RAN_NOTHING: Final = frozenset({               # This send did nothing. Of earlier sends such an answer says nothing.
    Seen.UNAUTHORIZED, Seen.KEY_IN_USE, Seen.LIMITED, Seen.INVALID, Seen.MISSING_OBJECT, Seen.MISSING_PAYMENT_INTENT,
})
REFUSED: Final = frozenset({Seen.INVALID, Seen.MISSING_OBJECT, Seen.MISSING_PAYMENT_INTENT})
SAVED: Final = frozenset({                     # What ran to its end under the key, and is its answer for every send.
    *STATE, Seen.DECLINED, Seen.AUTHENTICATION_REQUIRED, Seen.TRANSIENT_DECLINE, Seen.DUPLICATE_TRANSACTION,
    Seen.UNEXPECTED_STATE,
})
NEVER_JUDGED: Final = frozenset({*REFUSED, Seen.UNEXPECTED_STATE, Seen.TRANSIENT_DECLINE})  # No bank has looked at the card.
LEARNED_NOTHING: Final = frozenset({Seen.UNAUTHORIZED, Seen.KEY_IN_USE, Seen.LIMITED, Seen.NO_REPLY})
OF_A_REFUND: Final = frozenset({Seen.REFUNDED, Seen.REFUND_PENDING, Seen.REFUND_FAILED})
SHOWN: Final = frozenset({*STATE, Seen.UNCONFIRMED})             # Read off a PaymentIntent, so worth nothing without it.
BLOCKING: Final = frozenset({*REFUSED, Seen.PARAMETERS_DRIFTED, Seen.HELD})  # Outcomes that stay as they are until somebody acts.
ORPHANED: Final = frozenset({Seen.UNCONFIRMED, Seen.ACTION_REQUIRED})  # What an orphan may be that can be canceled.
CANCELABLE: Final = ORPHANED | {Seen.HELD}     # What takes no money unless somebody has it do so.
NEVER_STALE: Final = frozenset({Seen.SUCCEEDED, Seen.CANCELED})  # True for ever once true, so good even when replayed.
# fmt: on

# --- Limits -----------------------------------------------------------------------------------------------------------

KEY_LIFE: Final = timedelta(hours=24)  # Stripe keeps a key at least this long.
KEY_HORIZON: Final = timedelta(hours=23)  # After it a key is never sent again; the hour is for clocks and queues.
EXPIRES_AFTER: Final = timedelta(days=30)  # A charge that nobody ends is canceled; a Cloud Tasks task lives 31 days.
FIRST_WAIT: Final = timedelta(seconds=1)  # Most of Stripe's troubles are over in a second.
LAST_WAIT: Final = timedelta(minutes=10)  # A look every ten minutes is cheap, and nobody waits a whole hour for one.
BLOCKED_WAIT: Final = timedelta(
    minutes=10
)  # A bad API key is mended centrally; its charges then move on by themselves.
LOOK_EVERY: Final = timedelta(days=1)  # Banks take days; webhooks tell sooner.
REFUND_FOR: Final = timedelta(days=40)  # Refunds fail up to 30 days later; after this a person must look.
CLOSING_WAIT: Final = timedelta(hours=1)  # A closing that the bank's work holds up.
TRANSIENT_WAITS: Final = (
    timedelta(minutes=1),
    timedelta(minutes=10),
    timedelta(hours=1),
)  # S6: of a card that nobody has judged yet; then it goes by the schedule, or the customer is asked.
LIST_FOR: Final = timedelta(days=31)  # After a restore every new charge is looked for first; no task lives longer.
LOST_MARGIN: Final = KEY_LIFE  # What was begun before the restore point may have gone on after it.
LIST_MARGIN: Final = timedelta(minutes=10)  # Stripe's clock and ours may differ.
SCHEDULED_LIMIT: Final = 8  # Attempts of a charge, the first included, after which none is made by itself any more.
CARD_REST: Final = timedelta(
    hours=23
)  # Between two attempts by ourselves with a card that was judged: one a day, and none is on time.
NOTICE_AGAIN: Final = timedelta(minutes=30)  # When what was not told is put into the queue once more; then
NOTICE_AGAIN_AT_MOST: Final = timedelta(days=1)  # after as long again as it has waited: the tasks try more often.
NOTICE_FOR: Final = EXPIRES_AFTER  # After it what nobody takes is given up: who does not hear by then is gone.
GENERATION_APART: Final = 1_000_000  # Versions and notices of a generation: those of a lost time are not used again.
NOTICES_KEPT: Final = 20  # Told ones, for each audience: enough to see what was said, far below what an entity holds.
REMIND_BEFORE: Final = timedelta(days=3)  # Of cash that nobody noted, before it ends unpaid: a weekend, and a day.
DISCREPANCIES_KEPT: Final = 10  # Of each kind: whoever writes our metadata into much crowds out nothing else.
NOTE_KEPT: Final = 1000  # Characters of what an operator says who settles some; each of them keeps it.
ORPHANS_KEPT: Final = 100  # Found by events and audits, and not canceled yet.
HERE_FOR: Final = timedelta(minutes=15)  # After an attempt of theirs a customer is taken to be still on the page.
ATTEMPTS_LIMIT: Final = 20  # Stripe cancels a PaymentIntent that is confirmed too often; the networks frown far sooner.
CRASHES_LIMIT: Final = 5  # After so many exceptions of ours in a row a person must look.
CALLS_PER_DELIVERY: Final = 2  # Create and confirm; repeats happen only while the lease has time for them.

assert KEY_HORIZON < KEY_LIFE
assert FIRST_WAIT < LAST_WAIT < CLOSING_WAIT < KEY_HORIZON
assert LOOK_EVERY < EXPIRES_AFTER
assert NOTICE_AGAIN < NOTICE_AGAIN_AT_MOST < NOTICE_FOR
assert REMIND_BEFORE < EXPIRES_AFTER
assert sum(TRANSIENT_WAITS, timedelta()) < EXPIRES_AFTER


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a deployment may set. Raises ValueError when durations do not nest."""

    stripe_timeout: timedelta = timedelta(seconds=30)
    lease: timedelta = timedelta(seconds=90)
    quarantine: timedelta = timedelta(minutes=15)
    retry_schedule: tuple[timedelta, ...] = ()  # After a card's first decline; with `retry: schedule`.
    reaches: frozenset[Audience] = frozenset()  # Whom it can tell anything.

    def __post_init__(self) -> None:
        """Stripe call x sends < function < lease < dispatch deadline < horizon."""
        chain = {
            f"STRIPE_TIMEOUT x {CALLS_PER_DELIVERY}": self.stripe_timeout * CALLS_PER_DELIVERY,
            "the function's timeout (5/6 of LEASE)": self.function_timeout,
            "LEASE": self.lease,
            "the dispatch deadline": self.dispatch_deadline,
            "the key horizon": KEY_HORIZON,
        }
        for (shorter, duration), (longer, limit) in itertools.pairwise(chain.items()):
            if duration >= limit:
                raise ValueError(f"{shorter} ({duration}) must be shorter than {longer} ({limit})")
        if not timedelta() < self.quarantine <= KEY_LIFE:
            raise ValueError(f"QUARANTINE ({self.quarantine}) must be more than 0 and at most {KEY_LIFE}")
        in_order = all(one < other for one, other in itertools.pairwise(self.retry_schedule))
        if not in_order or not all(timedelta() < at < EXPIRES_AFTER for at in self.retry_schedule):
            raise ValueError(f"RETRY_SCHEDULE must rise, each less than {EXPIRES_AFTER.days}d")

    @property
    def function_timeout(self) -> timedelta:
        """How long one run of a function may take; the deployment sets the platform's timeout to it."""
        return self.lease * 5 / 6

    @property
    def dispatch_deadline(self) -> timedelta:
        """How long Cloud Tasks waits for an answer: longer than the lease, so that its repeat meets no live one."""
        return max(timedelta(seconds=15), self.lease * 7 / 6)  # Cloud Tasks takes no less than 15 s.


# --- Making a charge and its Requests ---------------------------------------------------------------------------------


def open_charge(  # noqa: PLR0913 - everything that is frozen at the start, each by its name.
    *,
    charge_id: str,
    idempotency_key: str,
    body_digest: str,
    terms: Terms,
    livemode: bool,
    generation: int,
    api_version: str,
    now: datetime,
) -> Charge:
    """Return the charge as it is first inserted: pending, nothing sent."""
    charge = Charge(
        id=charge_id,
        idempotency_key=idempotency_key,
        body_digest=body_digest,
        terms=terms,
        payment_method=terms.payment_method,
        livemode=livemode,
        status=Status.PENDING,
        create=Request(idempotency_key="", operation="create", parameters="", api_version=api_version),
        created_at=now,
        updated_at=now,
        expires_at=terms.expires_at or now + EXPIRES_AFTER,
        due_at=now,
        version=_before_all(generation) + 1,
        generation=generation,
    )
    return _with_new_create(charge, 1).noted(now, "created", "caller")


def never_charge(  # noqa: PLR0913 - what it is made of, each by its name.
    *, charge_id: str, idempotency_key: str, account: str | None, livemode: bool, generation: int, now: datetime
) -> Charge:
    """Return the definite no: a final charge that keeps its key from ever being charged."""
    nothing = Terms(amount=0, currency="", customer="", payment_method="", account=account)
    return Charge(
        id=charge_id,
        idempotency_key=idempotency_key,
        body_digest="",
        terms=nothing,
        payment_method="",
        livemode=livemode,
        status=Status.CANCELED,
        create=Request(
            idempotency_key=f"pio-{charge_id}-create-1", operation="create", parameters="{}", api_version=""
        ),
        created_at=now,
        updated_at=now,
        expires_at=now,
        due_at=None,
        version=_before_all(generation) + 1,
        generation=generation,
        cancel_reason=CancelReason.REQUESTED,
    ).noted(now, "canceled before it was ever charged", "caller")


def restored(charge: Charge, *, generation: int, lost_since: datetime, now: datetime) -> Charge:
    """Return a charge of a restored ledger as the ledger is reopened: what it says may be older than what was done.

    Keys of the lost time may still act, so none of them is sent again, nothing is confirmed before they are past the
    horizon, and no decline is told before they are past their life. What is not there yet is looked for first.
    """
    charge = dataclasses.replace(
        charge,
        version=max(charge.version, _before_all(generation)),
        generation=generation,
        lease_owner="",
        lease_until=None,
        sweeps=0,
        swept_until=None,
    )
    if charge.final:
        return charge
    charge = dataclasses.replace(charge, restored_at=now, lost_since=lost_since, due_at=now)
    if charge.payment_intent is None and not charge.create.settled:
        charge = _burn(charge, charge.create, now)
    attempt = charge.open_attempt
    if attempt is not None and attempt.outcome is None:
        charge = _unknown(_burn(charge, dataclasses.replace(attempt, first_sent_at=now), now))
    if charge.status in {Status.DECLINED, Status.RETRYING}:  # Another card may have been tried since.
        charge = _unknown(dataclasses.replace(charge, next_attempt_at=None))
    return charge.noted(now, "the ledger was restored", "operator")


def _before_all(generation: int) -> int:
    """Return the number below all versions and notices of a generation of the ledger.

    A receiver who has seen one of the lost time takes what comes now for newer, and for something else.
    """
    return GENERATION_APART * (generation - 1)


def after_restore(charge: Charge, *, restored_at: datetime, lost_since: datetime) -> Charge:
    """Return a new charge of a ledger that was restored not long ago: it may be one that the ledger has forgotten."""
    charge = dataclasses.replace(charge, restored_at=restored_at, lost_since=lost_since)
    return _burn(charge, charge.create, charge.created_at)


def original(intents: Iterable[PaymentIntent]) -> PaymentIntent:
    """Return the one of these that says what its charge is: metadata may be copied onto others, for other amounts."""
    return min(intents, key=lambda intent: (not intent.body_digest, intent.seen is not Seen.SUCCEEDED, intent.created))


def recovered(  # noqa: PLR0913 - everything that is known of it, each by its name.
    intents: Iterable[PaymentIntent],
    *,
    terms: Terms,
    generation: int,
    api_version: str,
    now: datetime,
    reaches: frozenset[Audience],
    lost_since: datetime | None = None,
) -> Charge:
    """Return the charge that these PaymentIntents, made for it, show: the ledger has none. terms: the original's.

    Its caller may have been promised to hear of it, and of twice the money the operator hears.
    """
    ours = tuple(intents)
    first = original(ours)
    name = first.charge_id
    assert name is not None, "they name their charge"
    charge = Charge(
        id=name,
        idempotency_key=first.caller_key,
        body_digest=first.body_digest,
        terms=terms,
        payment_method=terms.payment_method,
        livemode=first.livemode,
        status=Status.PENDING,
        create=Request(idempotency_key="", operation="create", parameters="", api_version=api_version),
        created_at=min(intent.created for intent in ours),
        updated_at=now,
        expires_at=now + EXPIRES_AFTER,
        due_at=now,
        version=_before_all(generation) + 1,
        generation=generation,
        restored_at=None if lost_since is None else now,
        lost_since=lost_since,
    )
    charge = _with_new_create(charge, 1).noted(now, "recovered from Stripe")
    charge = _burn(charge, charge.create, now)
    canceled = all(intent.seen is Seen.CANCELED for intent in ours)
    listed = Listed(payment_intents=ours)
    found = (_adopt(charge, first, now) if canceled else _listed(charge, listed, now)).charge
    if found.status is Status.SUCCEEDED and found.payment_intent is not None:
        how = "the charge was recovered"
        found = _discrepancy(found, "paid_without_charge", now, found.payment_intent, settled=how)
    return _with_notices(charge, found, now, reaches)


def _with_new_create(charge: Charge, number: int) -> Charge:
    terms = charge.terms
    optional = {
        "description": terms.description,
        "application_fee_amount": terms.application_fee_amount,
        "transfer_data": terms.transfer_data and dict(terms.transfer_data),
        "on_behalf_of": terms.on_behalf_of,
        "statement_descriptor_suffix": terms.statement_descriptor_suffix,
        "receipt_email": terms.receipt_email,
    }
    parameters = {
        "amount": terms.amount,
        "currency": terms.currency,
        "customer": charge.customer,
        "payment_method": charge.payment_method,
        # Whatever kind of payment method it is, and never one that sends an absent customer to another page.
        "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
        **{name: value for name, value in optional.items() if value is not None},
        "metadata": {
            **terms.metadata,
            "pio_charge": charge.id,
            "pio_key": charge.idempotency_key,
            "pio_body": charge.body_digest,
        },
    }
    create = Request(
        idempotency_key=f"pio-{charge.id}-create-{number}",
        operation="create",
        parameters=json.dumps(parameters),
        api_version=charge.create.api_version,
    )
    return dataclasses.replace(charge, create=create)


def _create_number(charge: Charge) -> int:
    return int(charge.create.idempotency_key.rsplit("-", 1)[1])


def _with_new_attempt(charge: Charge, now: datetime, return_url: str | None = None) -> Decision:
    """Open the next attempt, on the recorded PaymentIntent: the only one this charge ever confirms.

    return_url: the customer is here, and comes back to it if the bank asks them; None: they are absent.
    """
    assert charge.payment_intent is not None, "an attempt confirms a recorded PaymentIntent"
    assert charge.closing is None, "a closing charge confirms nothing"
    if not charge.payment_method:  # A charge that was recovered from Stripe, which had none: the customer gives one.
        return _declined(charge, Status.DECLINED, now)
    number = len(charge.attempts) + 1
    if number > ATTEMPTS_LIMIT:
        return _blocked(charge, Party.OPERATOR)
    if _held_back_until(charge, now) is not None:
        return_url = None  # When it is sent, hours from now, the customer has left: their bank would ask nobody.
    session = {"return_url": return_url} if return_url else {"off_session": True}
    attempt = Attempt(
        idempotency_key=f"pio-{charge.id}-g{charge.generation}-confirm-{number}",
        operation="confirm",
        parameters=json.dumps({"payment_method": charge.payment_method, **session}),
        api_version=charge.create.api_version,
        payment_intent=charge.payment_intent,
        number=number,
        payment_method=charge.payment_method,
    )
    status = Status.UNKNOWN if doubtful_until(charge, now) is not None else Status.PENDING
    charge = dataclasses.replace(
        charge,
        attempts=(*charge.attempts, attempt),
        status=status,
        blocked_on=None,
        next_attempt_at=None,
        pays_elsewhere_since=None,
        last_error=None if return_url else charge.last_error,  # So that the bank's next no is seen to be a new one.
    )
    return _go_on(charge)


def _with_new_cancel(charge: Charge) -> Charge:
    assert charge.closing is not None, "only a closing cancels"
    assert charge.payment_intent is not None, "only a recorded PaymentIntent is canceled by a closing"
    closing, number = charge.closing, charge.closing.number + 1
    request = Request(
        idempotency_key=f"pio-{charge.id}-cancel-{number}",
        operation="cancel",
        parameters=json.dumps({"cancellation_reason": CANCELLATION_REASON[closing.kind]}),
        api_version=charge.create.api_version,
        payment_intent=charge.payment_intent,
    )
    return dataclasses.replace(charge, closing=dataclasses.replace(closing, request=request, number=number))


def _orphan_key(charge: Charge, payment_intent: str) -> str:
    return f"pio-{charge.id}-orphan-{payment_intent}"


def _orphan_cancel(charge: Charge, payment_intent: str) -> Request:
    """Derived, not recorded: the charge's list of orphans is the record, and cancelling twice is harmless."""
    return Request(
        idempotency_key=_orphan_key(charge, payment_intent),
        operation="cancel",
        parameters=json.dumps({"cancellation_reason": ORPHAN_REASON}),
        api_version=charge.create.api_version,
        payment_intent=payment_intent,
    )


def _with_refund(charge: Charge, payment_intent: str, number: int = 1) -> Charge:
    """Record that what this PaymentIntent took is to be given back: all that is left of it.

    Before the first is sent, Stripe is asked whether the one that is to keep its money (`_keeper`) does so indeed.
    """
    refund = Request(
        idempotency_key=f"pio-{charge.id}-refund-{payment_intent}-{number}",
        operation="refund",
        parameters=json.dumps(
            {"payment_intent": payment_intent, "reason": "duplicate", "metadata": {"pio_refund_of": charge.id}}
        ),
        api_version=charge.create.api_version,
        payment_intent=payment_intent,
        standing=Standing.LOOK if number == 1 else Standing.UNSENT,
    )
    others = tuple(r for r in charge.refunds if r.payment_intent != payment_intent)
    return dataclasses.replace(charge, refunds=(*others, refund))


def _with_next_refund(charge: Charge, refund: Request) -> Charge:
    """Ask for it under another key: Stripe gives back no more than was taken, however often it is asked."""
    assert refund.payment_intent is not None, "a refund names what it gives back"
    return _with_refund(charge, refund.payment_intent, int(refund.idempotency_key.rsplit("-", 1)[1]) + 1)


# --- What to do next --------------------------------------------------------------------------------------------------


def next_step(charge: Charge, now: datetime) -> Step:
    """Say what this charge needs done now, from what is recorded alone: so every crash resumes here."""
    if charge.orphans:
        orphan = charge.orphans[0]
        refused = orphan in charge.orphans_refused
        return Fetch(payment_intent=orphan) if refused else Send(request=_orphan_cancel(charge, orphan))
    giving_back = _next_giving_back(charge, now)
    if giving_back is not None or charge.final:
        return giving_back or Rest()
    if charge.payment_intent is None:
        return _next_before_payment_intent(charge, now)
    request = charge.closing.request if charge.closing else charge.open_attempt
    look = Fetch(payment_intent=charge.payment_intent)
    if request is None or request.settled:
        # Nothing of ours is out. Only what waits for the bank, the customer or a doubt to pass has more to say.
        return Rest() if charge.status in {Status.DECLINED, Status.RETRYING} else look
    if request.standing is Standing.BURNT or _past_horizon(request, now):
        return Fetch(payment_intent=charge.payment_intent, with_charges=True)
    if request.standing is Standing.LOOK or charge.status is Status.PROCESSING:
        return look
    if request.operation == "confirm" and _held_back_until(charge, now) is not None:
        return look
    return Send(request=request)


def _next_giving_back(charge: Charge, now: datetime) -> Step | None:
    unsettled_refunds = [refund for refund in charge.refunds if not refund.settled]
    refund = next((r for r in unsettled_refunds if not _is_pending(r) and not _past_horizon(r, now)), None)
    if refund is not None and not _is_unchecked(refund):
        return Send(request=refund)
    if refund is not None:
        keeper = _keeper(charge)
        assert keeper is not None, "only what was taken beside another one is given back"
        return Fetch(payment_intent=keeper, with_charges=True)
    pending = next((r.payment_intent for r in unsettled_refunds if _is_pending(r)), None)
    return None if pending is None else FetchRefunds(payment_intent=pending)


def _next_before_payment_intent(charge: Charge, now: datetime) -> Step:
    since = min(charge.created_at, charge.lost_since or charge.created_at)
    of_everybody = charge.customer_gone or bool(charge.customers)
    create, listing = charge.create, List(since=since - LIST_MARGIN, of_everybody=of_everybody)
    if charge.closing is not None:
        return listing  # It is closed without a list only while that is certain: `_close`.
    if create.settled:
        return Rest()  # Refused: until somebody has mended it and says so.
    if create.standing is Standing.BURNT or _past_horizon(create, now):
        return listing
    return Send(request=create)


def _is_pending(refund: Request) -> bool:
    """Whether Stripe has taken it on, and does not know yet whether the bank takes it."""
    return refund.standing is Standing.LOOK and refund.sends > 0


def _is_unchecked(refund: Request) -> bool:
    """Whether it waits for a look at the PaymentIntent that is to keep its money."""
    return refund.standing is Standing.LOOK and refund.sends == 0


def _past_horizon(request: Request, now: datetime) -> bool:
    return request.first_sent_at is not None and now >= request.first_sent_at + KEY_HORIZON


def _held_back_until(charge: Charge, now: datetime) -> datetime | None:
    """Until when nothing is confirmed, because a key of the time that a restored ledger lost may still be good."""
    until = None if charge.restored_at is None else charge.restored_at + KEY_HORIZON
    return until if until is not None and now < until else None


def doubtful_until(charge: Charge, now: datetime) -> datetime | None:
    """Until when a decline must be told as unknown, because an earlier key without an answer may still charge."""
    ends = [
        attempt.first_sent_at + KEY_LIFE
        for attempt in charge.attempts
        if attempt.first_sent_at is not None and (attempt.standing is Standing.BURNT or _settled_by_a_look(attempt))
    ]
    if charge.restored_at is not None:
        ends.append(charge.restored_at + KEY_LIFE)
    last = max(ends, default=None)
    return last if last is not None and now < last else None


def _settled_by_a_look(attempt: Attempt) -> bool:
    """Whether it was settled by what the PaymentIntent showed, which may have been another's doing: the customer's."""
    return attempt.settled and attempt.unanswered > 0 and attempt.outcome in SHOWN - NEVER_STALE


def _can_be_explained(charge: Charge, attempt: Attempt, now: datetime) -> bool:
    """Whether its key may be sent again to learn if that was its own doing; of a time that was lost none is."""
    return _settled_by_a_look(attempt) and not _past_horizon(attempt, now) and charge.restored_at is None


def money_may_move(charge: Charge) -> bool:
    """Whether something that was sent may still charge the customer."""
    last = charge.attempts[-1] if charge.attempts else None
    at_the_bank = charge.status is Status.BLOCKED and last is not None and last.outcome == Seen.PROCESSING
    return (
        at_the_bank
        or charge.status in {Status.UNKNOWN, Status.PROCESSING}
        or any(attempt.sends > 0 and not attempt.settled for attempt in charge.attempts)
    )


def needs_us(charge: Charge) -> bool:
    """Whether there is something for us to do, or to look at, by ourselves."""
    return waiting_on(charge) is Party.SYSTEM or (charge.final and not charge.tidy)


def is_burnt(charge: Charge) -> bool:
    """Whether it waits for what a key without an answer may still do."""
    attempt = charge.open_attempt
    return attempt is not None and attempt.standing is Standing.BURNT


def unheard(charge: Charge, now: datetime, limits: Limits) -> bool:
    """Whether it waits for nothing but an answer of Stripe's: to what it has sent, or to a look."""
    request = charge.open_attempt if charge.payment_intent else charge.create
    waits = charge.status in {Status.PENDING, Status.UNKNOWN} and charge.closing is None
    if not waits or request is None:
        return False
    if request.standing is Standing.BURNT:
        return request.burnt_at is not None and now >= request.burnt_at + limits.quarantine
    return request.standing is Standing.LOOK or (request.standing is Standing.OUT and request.unanswered > 0)


def needs_customer(charge: Charge) -> bool:
    """Whether another customer may take the place of the one that is gone at Stripe (S7).

    Only while no PaymentIntent is recorded: that is for one customer, for ever, as the charge has one PaymentIntent.
    """
    return charge.customer_gone and charge.payment_intent is None and not charge.final and charge.closing is None


def beyond_cards(charge: Charge) -> bool:
    """Whether no card can pay it any more: its PaymentIntent is for a customer who is gone at Stripe."""
    return charge.customer_gone and charge.payment_intent is not None and not charge.final


def waiting_on(charge: Charge) -> Party | None:
    """Name who must act before the charge moves on; None once it is final."""
    return charge.blocked_on if charge.status is Status.BLOCKED else WAITING_ON[charge.status]


def unsettled(charge: Charge) -> tuple[Discrepancy, ...]:
    """Return what Stripe says and the ledger does not explain, as far as nobody has settled it."""
    return tuple(found for found in charge.discrepancies if not found.settled)


def needs_person(charge: Charge) -> bool:
    """Whether it waits for somebody who runs this, or an account: it is blocked, or holds what nobody explains."""
    return waiting_on(charge) in {Party.OPERATOR, Party.ACCOUNT_OWNER} or bool(unsettled(charge))


def new_card_helps(charge: Charge) -> bool:
    """Whether another card gets it past its last error: where one is gone, and not where an account is."""
    return charge.last_error is not None and codes.advice(charge.last_error) is codes.Advice.NEW_CARD


def exhausted(charge: Charge) -> bool:
    """Whether no card is tried any more, whoever asks for it."""
    return len(charge.attempts) >= ATTEMPTS_LIMIT and charge.open_attempt is None


def reason(charge: Charge) -> codes.Row | None:
    """Say what its last error means now, and to whom: a bank that asked the customer, and asks again, declines."""
    if charge.last_error is None:
        return None
    row = codes.row(charge.last_error)
    again = row == codes.AUTHENTICATE and charge.status is Status.DECLINED and _is_on_session(_last_request(charge))
    return codes.ASKED_IN_VAIN if again else row


def options(charge: Charge) -> frozenset[Act]:
    """Name the acts open now."""
    if charge.closing is not None:
        return frozenset({Act.RETRY}) if charge.status is Status.BLOCKED else frozenset()
    if exhausted(charge) or beyond_cards(charge):
        return OPTIONS[charge.status] & CLOSINGS
    if charge.status is Status.BLOCKED and _last_request(charge).outcome is None:
        return EVERY_ACT - {Act.PAYMENT_METHOD}  # What is out is settled first.
    return OPTIONS[charge.status] if charge.payment_method else OPTIONS[charge.status] - {Act.RETRY}


def due_at(charge: Charge, now: datetime, wait: timedelta | None) -> datetime | None:
    """Say when a charge must be looked at again; None once it is done. `wait` is the last decision's."""
    if charge.done:
        return None
    at, remind_at = _due_at(charge, now, wait), _remind_at(charge)
    if remind_at is not None and now < remind_at:
        at = min(at, remind_at)
    return min([at, *(now + _until_reminded(notice, now) for notice in charge.untold)])


def _remind_at(charge: Charge) -> datetime | None:
    """Say from when on those who get the money are reminded to note it; halfway, where little time is left."""
    since, end = charge.pays_elsewhere_since, charge.expires_at
    if since is None or charge.final or charge.closing is not None:
        return None
    return max(end - REMIND_BEFORE, since + (end - since) / 2)


def _until_reminded(notice: Notice, now: datetime) -> timedelta:
    return min(max(now - notice.at, NOTICE_AGAIN), NOTICE_AGAIN_AT_MOST)


def _due_at(charge: Charge, now: datetime, wait: timedelta | None) -> datetime:
    if wait is not None:
        return now + wait
    if charge.final and charge.tidy:  # Only people are left to be told.
        return now + NOTICE_AGAIN_AT_MOST
    by_status: Mapping[Status, datetime] = {
        Status.PROCESSING: now + (CLOSING_WAIT if charge.closing else LOOK_EVERY),
        Status.ACTION_REQUIRED: now + LOOK_EVERY,
        Status.RETRYING: charge.next_attempt_at or now,
        Status.DECLINED: charge.expires_at,
        Status.BLOCKED: now + (BLOCKED_WAIT if _resumes(charge) else LOOK_EVERY),
    }
    at = by_status.get(charge.status, now + FIRST_WAIT)
    if not charge.tidy:  # Whoever the charge waits for, an orphan waits for us.
        at = min(at, now + LAST_WAIT)
    if charge.closing or charge.status is Status.PROCESSING:  # Neither expires.
        return at
    return min(at, max(charge.expires_at, now + FIRST_WAIT))


def _resumes(charge: Charge) -> bool:
    """Whether a blocked charge goes on by itself, once what blocks it has been mended; else somebody must act."""
    if charge.closing is not None:
        return charge.closing.request is None or not charge.closing.request.settled
    gone = charge.customer_gone and _last_request(charge).settled
    return not gone and _last_request(charge).outcome not in BLOCKING and len(charge.attempts) < ATTEMPTS_LIMIT


def _last_request(charge: Charge) -> Request:
    return charge.attempts[-1] if charge.attempts else charge.create


def _since(charge: Charge) -> datetime:
    """Since when what is open now has been open: waits grow from there (not from `updated_at`: every look moves it)."""
    if charge.closing is not None:
        return charge.closing.at
    return _last_request(charge).first_sent_at or charge.create.first_sent_at or charge.created_at


def _again(charge: Charge, since: datetime | None, now: datetime) -> timedelta:
    """Wait as long again as we have waited already (so it doubles), within limits, spread so that no herd forms."""
    waited = min(max(now - (since or now), FIRST_WAIT), LAST_WAIT)
    digest = hashlib.sha256(f"{charge.id} {now.isoformat()}".encode()).digest()
    return waited * (0.5 + digest[0] / 512)  # Half to all of it.


# --- Deciding ---------------------------------------------------------------------------------------------------------


def decide(charge: Charge, observation: Observation, now: datetime, limits: Limits) -> Decision:  # noqa: C901, PLR0912 - an arm for each.
    """Answer an observation. The same observation again changes nothing."""
    match observation:
        case Answered():
            decision = _answered(charge, observation, now)
        case Fetched():
            decision = _fetched(charge, observation, now, limits)
        case GivenBack():
            decision = _given_back(charge, observation, now)
        case Compared():
            decision = _compared(charge, observation, now)
        case Listed():
            decision = _listed(charge, observation, now)
        case LookFailed():
            decision = _look_failed(charge, observation, now, limits)
        case CustomerGone():
            decision = _customer_gone(charge, observation)
        case Happened():
            decision = _happened(charge, observation, now)
        case Chosen():
            decision = _chosen(charge, observation, now)
        case Reviewed():
            decision = _reviewed(charge, observation, now)
        case Woken():
            decision = _woken(charge, now)
        case Crashed():  # pragma: no branch - there is no other: mypy sees to it.
            decision = _crashed(charge, now)
    decision = _scheduled(charge, decision, observation, now, limits)
    reviewed = isinstance(observation, Reviewed) and decision.refusal is None
    if decision.charge.status is not charge.status or reviewed:
        actor = observation.actor if isinstance(observation, Chosen | Reviewed) else "system"
        decision = dataclasses.replace(
            decision, charge=decision.charge.noted(now, _what(observation, decision.charge), actor)
        )
    unheard = isinstance(observation, Woken) and observation.unheard
    if decision.charge == charge and not unheard and not _unnoted(charge, now):
        return decision
    told = _with_notices(charge, decision.charge, now, limits.reaches, unheard=unheard)
    return dataclasses.replace(decision, charge=told)


# Trying a decline again by ourselves, and telling people.


def _scheduled(before: Charge, decision: Decision, observation: Observation, now: datetime, limits: Limits) -> Decision:
    """Turn a new decline into one that is tried again by itself, where the caller, the bank and the networks allow."""
    charge = decision.charge
    news = charge.status is Status.DECLINED and before.status is not Status.DECLINED
    if not news or isinstance(observation, Chosen) or charge.terms.retry != "schedule":
        return decision
    at = _next_scheduled(charge, now, limits.retry_schedule)
    if at is None or charge.last_error is None or not codes.worth_retrying(charge.last_error):
        return decision
    return dataclasses.replace(decision, charge=dataclasses.replace(charge, status=Status.RETRYING, next_attempt_at=at))


def _next_at_once(charge: Charge, now: datetime) -> datetime | None:
    """Say when a card that nobody has judged yet is tried again (S6); None: it was, or had its few tries."""
    card = charge.attempts[-1].payment_method
    outcomes = [attempt.outcome for attempt in charge.attempts if attempt.payment_method == card]
    tries = outcomes.count(Seen.TRANSIENT_DECLINE)
    judged = not NEVER_JUDGED.issuperset(outcomes)
    if charge.pays_elsewhere_since is not None:
        return None
    if judged or tries > len(TRANSIENT_WAITS) or len(charge.attempts) >= SCHEDULED_LIMIT:
        return None
    return now + TRANSIENT_WAITS[tries - 1]


def _next_scheduled(charge: Charge, now: datetime, schedule: tuple[timedelta, ...]) -> datetime | None:
    """Say when this card is tried again; None: not by ourselves."""
    tried = [attempt for attempt in charge.attempts if attempt.payment_method == charge.payment_method]
    first = tried[0].first_sent_at if tried else None
    last = tried[-1].first_sent_at if tried else None
    if first is None or last is None or charge.pays_elsewhere_since is not None:
        return None
    earliest = last + CARD_REST if charge.livemode else now
    slots = (first + after for after in schedule)
    at = next((max(slot, earliest) for slot in slots if slot > last and slot >= now), None)
    if at is None or len(charge.attempts) >= SCHEDULED_LIMIT or at >= charge.expires_at:
        return None
    return at


def _with_notices(
    before: Charge, after: Charge, now: datetime, reaches: frozenset[Audience], *, unheard: bool = False
) -> Charge:
    """Put into the outbox what is now to be told, to those whom the deployment reaches."""
    found: list[tuple[Audience, Topic]] = []
    is_blocked = after.status is Status.BLOCKED
    blocked_anew = is_blocked and _about(after, Topic.BLOCKED) != _about(before, Topic.BLOCKED)
    if after.status is not before.status or blocked_anew:  # Or by something else, which may be somebody else's to mend.
        found += _mender(after) if is_blocked else ()
        found += NOTICES[after.status]
    elif unheard:
        found += [about for about in NOTICES[after.status] if about[0] is Audience.CALLER]
    if after.pays_elsewhere_since is not None and before.pays_elsewhere_since is None:
        found += [*_payees(after, Topic.PAYS_ELSEWHERE), (Audience.CALLER, Topic.OUTCOME)]
    if _unnoted(after, now):
        found += _payees(after, Topic.NOT_NOTED)
    known = {(one.kind, one.payment_intent) for one in before.discrepancies}
    if any((one.kind, one.payment_intent) not in known for one in unsettled(after)):
        found.append((Audience.OPERATOR, Topic.DISCREPANCY))
    for audience, topic in dict.fromkeys(found):
        if audience in reaches and not _needless(after, audience, topic, now):
            after = dataclasses.replace(after, outbox=_outbox(after, audience, topic, now))
    if after.untold and after.due_at is None and after.final:
        return dataclasses.replace(after, due_at=now + NOTICE_AGAIN)
    return after


def _outbox(charge: Charge, audience: Audience, topic: Topic, now: datetime) -> tuple[Notice, ...]:
    """Return the outbox with one more notice, unless the last word of its sort to that audience says the same.

    It takes the place of what it says anew and nobody has been told yet. The outbox does not grow for ever, however a
    charge goes back and forth.
    """
    about, aside = _about(charge, topic), topic in ASIDES
    theirs = [notice for notice in charge.outbox if notice.audience is audience]
    alike = (notice for notice in reversed(theirs) if not notice.dropped and (notice.topic in ASIDES) is aside)
    last = next(alike, None)
    if last is not None and (last.topic, last.about) == (topic, about):
        return charge.outbox
    last_number = charge.outbox[-1].number if charge.outbox else 0
    number = max(last_number, _before_all(charge.generation)) + 1
    notice = Notice(number=number, audience=audience, topic=topic, at=now, about=about)
    gone = [one for one in theirs if one.told_at is not None][:-NOTICES_KEPT]
    gone += [one for one in theirs if one.told_at is None and one.topic is topic]
    return (*(one for one in charge.outbox if one not in gone), notice)


def _about(charge: Charge, topic: Topic) -> str:
    """Name what there is to be told of a charge as it stands: when that differs, it is told again."""
    error, closing = charge.last_error or Failure(), charge.closing and charge.closing.kind
    request = _last_request(charge).idempotency_key
    # A wish to pay elsewhere is no news to whoever must mend what blocks the charge.
    elsewhere = topic in {Topic.OUTCOME, Topic.PAYS_ELSEWHERE} and charge.pays_elsewhere_since is not None
    parts: tuple[object, ...] = (
        (charge.status, charge.blocked_on, closing, request, elsewhere),
        (error.type, error.code, error.decline_code, error.param),
    )
    if topic is Topic.DISCREPANCY:
        parts = tuple((one.kind, one.payment_intent) for one in unsettled(charge))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _mender(charge: Charge) -> tuple[tuple[Audience, Topic], ...]:
    """Name who must mend a blocked charge, and what they are told."""
    if charge.blocked_on is Party.ACCOUNT_OWNER:  # S7: both parties.
        owner, operator = (Audience.ACCOUNT_OWNER, Topic.MISSING_OBJECT), (Audience.OPERATOR, Topic.MISSING_OBJECT)
        customer = (Audience.CUSTOMER, Topic.MISSING_OBJECT)
        if beyond_cards(charge) and charge.terms.account is not None:  # Nothing is to be mended: they must know.
            return (owner, customer, (Audience.OPERATOR, Topic.BLOCKED))
        if new_card_helps(charge):
            return (owner, customer)
        return (operator,) if charge.terms.account is None else (owner, operator)  # No card brings an account back.
    internal = charge.last_error is not None and charge.last_error.type == "internal_error"
    return ((Audience.OPERATOR, Topic.BUG if internal else Topic.BLOCKED),)


def _payees(charge: Charge, topic: Topic) -> tuple[tuple[Audience, Topic], ...]:
    """Name who gets the money that is paid elsewhere, and who alone can note it: of our own account they are one."""
    owner, operator = (Audience.ACCOUNT_OWNER, topic), (Audience.OPERATOR, topic)
    return (owner,) if charge.terms.account is None else (owner, operator)


def _unnoted(charge: Charge, now: datetime) -> bool:
    """Whether it soon ends unpaid although the customer wanted to pay elsewhere, and nobody was reminded of that."""
    remind_at, since = _remind_at(charge), charge.pays_elsewhere_since
    if remind_at is None or since is None or now < remind_at:
        return False
    return not any(notice.topic is Topic.NOT_NOTED and notice.at >= since for notice in charge.outbox)


def _needless(charge: Charge, audience: Audience, topic: Topic, now: datetime) -> bool:
    """Whether it would be noise: a try that a customer need not know of, or good news about trouble never told."""
    if topic is Topic.RETRYING:  # S6: a few tries of what was the processor's trouble.
        return charge.next_attempt_at is not None and charge.next_attempt_at <= now + TRANSIENT_WAITS[-1]
    if audience is Audience.CUSTOMER and topic is Topic.ACTION_REQUIRED:  # Who is here is led to the bank at once.
        return _is_here(charge, now)
    if topic is Topic.DECLINED and audience is Audience.CUSTOMER and charge.pays_elsewhere_since is not None:
        return True  # They have chosen already.
    if charge.status is Status.SUCCEEDED and charge.closing is not None:
        return False  # It was to end without money: they may believe that it has.
    told = any(notice.audience is Audience.CUSTOMER and not notice.dropped for notice in charge.outbox)
    return audience is Audience.CUSTOMER and topic in CONCLUDES and not told


def _is_here(charge: Charge, now: datetime) -> bool:
    """Whether the customer made the last attempt themselves, and only just now."""
    last = charge.attempts[-1] if charge.attempts else None
    return last is not None and _is_on_session(last) and now < (last.first_sent_at or now) + HERE_FOR


def _is_on_session(request: Request) -> bool:
    """Whether it lets the bank ask the customer."""
    return "return_url" in json.loads(request.parameters)


def _what(observation: Observation, charge: Charge) -> str:  # noqa: C901 - one arm for each.
    match observation:
        case Answered(seen=seen, idempotency_key=key):
            return f"{key}: {seen}"
        case Fetched(payment_intent=intent):
            return f"{intent.id} read: {intent.seen}"
        case Compared() | GivenBack():
            return "compared"
        case Happened(type=event_type, payment_intent=intent):
            return f"{event_type} of {intent.id}"
        case Chosen(act=act, wish=wish):
            return WISH if wish else str(act)
        case Reviewed():
            return "reviewed"
        case LookFailed(seen=seen):
            return f"look failed: {seen}"
        case CustomerGone():
            return "the customer is gone"
        case Listed():
            return f"listed: {charge.payment_intent or 'none'}"
        case Woken():
            return "time passed"
        case Crashed(exception=exception):  # pragma: no branch - likewise.
            return f"exception: {exception}"


def _go_on(charge: Charge) -> Decision:
    return Decision(charge=charge, then=Then.GO_ON)


def _rest(charge: Charge) -> Decision:
    return Decision(charge=charge, then=Then.REST)


def _later(charge: Charge, wait: timedelta) -> Decision:
    return Decision(charge=charge, then=Then.LATER, wait=wait)


def _blocked(charge: Charge, party: Party | None) -> Decision:
    return _rest(dataclasses.replace(charge, status=Status.BLOCKED, blocked_on=party, next_attempt_at=None))


# An answer to a Request of ours.


def _answered(charge: Charge, answer: Answered, now: datetime) -> Decision:
    orphan = next((o for o in charge.orphans if _orphan_key(charge, o) == answer.idempotency_key), None)
    request = charge.request(answer.idempotency_key)
    answer = _as_fits(answer, "cancel" if request is None else request.operation)
    if orphan is not None:
        return _orphan_answered(charge, orphan, answer, now)
    if request is not None and request.operation == "refund":
        return _refund_answered(charge, request, answer, now)
    if request is None or request.settled or charge.final:
        if request is not None and not charge.final and answer.seen in SAVED and request.unanswered:
            charge = charge.with_request(dataclasses.replace(request, unanswered=0))  # A look was quicker.
        return _late_answer(charge, answer, now)
    if request.standing is Standing.BURNT and answer.seen not in NEVER_STALE:
        return _continue(charge)
    if request.standing is Standing.LOOK and answer.seen in LEARNED_NOTHING:
        return _continue(charge)
    request = _explained(request, answer)
    charge = charge.with_request(request)
    if request.operation == "create":
        return _create_answered(charge, request, answer, now)
    if request.operation == "cancel":
        return _cancel_answered(charge, request, answer, now)
    if charge.closing is not None and answer.seen not in NEVER_STALE:
        return _go_on(charge)  # From the closing on only Stripe's word on the PaymentIntent counts.
    return _confirm_answered(charge, request, answer, now)


def _as_fits(answer: Answered, operation: str) -> Answered:
    """Return an answer that is none to such a request as what it then is: unlisted."""
    senseless = answer.seen in (SHOWN if operation == "refund" else OF_A_REFUND)
    empty = answer.seen in SHOWN and answer.payment_intent is None
    return dataclasses.replace(answer, seen=Seen.SERVER_ERROR, replayed=False) if senseless or empty else answer


def _explained(request: Request, answer: Answered) -> Request:
    """Return the request with what an answer tells about its sends."""
    unanswered = request.unanswered - (1 if answer.seen in RAN_NOTHING and request.unanswered else 0)
    if answer.seen in SAVED or (answer.replayed and answer.seen in REFUSED):
        unanswered = 0  # It explains every send.
    error, request_id = answer.error or request.error, answer.request_id or request.request_id
    return dataclasses.replace(request, unanswered=unanswered, error=error, request_id=request_id)


def _continue(charge: Charge) -> Decision:
    """Go on unless everything is done; a final charge may still have something to cancel or to give back."""
    return _rest(charge) if charge.done else _go_on(charge)


def _late_answer(charge: Charge, answer: Answered, now: datetime) -> Decision:
    """Rule 2: it changes nothing, unless it says that the recorded PaymentIntent is paid."""
    intent = answer.payment_intent
    if intent is None:
        return _rest(charge)
    if intent.id == charge.payment_intent:
        return _paid(charge, intent, now) if intent.seen is Seen.SUCCEEDED else _rest(charge)
    if not answer.idempotency_key.startswith(f"pio-{charge.id}-create-") or intent.id in charge.orphans:
        return _rest(charge)
    if charge.payment_intent is None and not charge.final:  # A slow create of ours, and still the first to answer.
        return _adopt(charge, intent, now)
    return _go_on(dataclasses.replace(charge, orphans=(*charge.orphans, intent.id)))  # Rule 6.


def _create_answered(charge: Charge, create: Request, answer: Answered, now: datetime) -> Decision:
    if answer.payment_intent is not None:
        if not answer.replayed and answer.payment_intent.customer == charge.customer:
            charge = dataclasses.replace(charge, customer_gone=False)  # They are there, after all.
        return _adopt(charge, answer.payment_intent, now)
    if answer.replayed and answer.seen is Seen.SERVER_ERROR:
        return _go_on(_burn(charge, create, now))
    row = CREATE.get(answer.seen, CREATE[Seen.SERVER_ERROR])
    return _apply(charge, create, row, answer.seen, now)


def _cancel_answered(charge: Charge, cancel: Request, answer: Answered, now: datetime) -> Decision:
    if answer.seen in NEVER_STALE and answer.payment_intent is not None:
        return _by_state(charge, answer.payment_intent, now)
    if answer.replayed:
        return _go_on(charge.with_request(dataclasses.replace(cancel, standing=Standing.LOOK)))
    return _apply(charge, cancel, CANCEL[answer.seen], answer.seen, now)


def _confirm_answered(charge: Charge, attempt: Request, answer: Answered, now: datetime) -> Decision:
    if answer.seen in NEVER_STALE and answer.payment_intent is not None:
        return _by_state(charge, answer.payment_intent, now)
    if answer.replayed and answer.seen is Seen.SERVER_ERROR:
        return _go_on(_unknown(_burn(charge, attempt, now)))
    unexplained = answer.seen in REFUSED and attempt.unanswered > 0
    stale = answer.replayed and answer.seen not in LEARNED_NOTHING
    if unexplained or stale or CONFIRM[answer.seen].standing is Standing.LOOK:
        heard = None if answer.seen is Seen.SERVER_ERROR else answer.seen
        heard_attempt = dataclasses.replace(attempt, standing=Standing.LOOK, heard=heard)
        return _go_on(_unknown(charge.with_request(heard_attempt)))
    return _apply(charge, attempt, CONFIRM[answer.seen], answer.seen, now)


def _unknown(charge: Charge) -> Charge:
    return dataclasses.replace(charge, status=Status.UNKNOWN, blocked_on=None)


def _burn(charge: Charge, request: Request, now: datetime) -> Charge:
    burnt_at = request.burnt_at or now
    return charge.with_request(dataclasses.replace(request, standing=Standing.BURNT, burnt_at=burnt_at, heard=None))


def _apply(charge: Charge, request: Request, row: Row, seen: Seen, now: datetime) -> Decision:
    """Do to a Request and its charge what a table's row says."""
    outcome = seen if row.standing in {Standing.SETTLED, Standing.BURNT} else None
    if row.standing is Standing.BURNT:
        charge = _burn(charge, dataclasses.replace(request, outcome=outcome), now)
    else:
        charge = charge.with_request(dataclasses.replace(request, standing=row.standing, outcome=outcome, heard=None))
    error = request.error or charge.last_error
    if seen is Seen.MISSING_OBJECT and error is not None and error.param == NO_CUSTOMER.param:
        charge = dataclasses.replace(charge, customer_gone=True)
    if row.status is Status.BLOCKED:
        return _blocked(dataclasses.replace(charge, last_error=error), row.blocked_on)
    if row.status in {Status.DECLINED, Status.RETRYING, Status.ACTION_REQUIRED} and request.operation == "confirm":
        in_vain = seen is Seen.AUTHENTICATION_REQUIRED and _is_on_session(request)  # It has asked them already.
        status = Status.DECLINED if in_vain else row.status
        return _declined(dataclasses.replace(charge, last_error=error), status, now)
    if row.status is not None:
        charge = dataclasses.replace(charge, status=row.status, blocked_on=None)
    elif charge.status is Status.BLOCKED:
        charge = _resumed(charge)
    if row.then is Then.LATER:
        return _later(charge, _again(charge, request.first_sent_at, now))
    return Decision(charge=charge, then=row.then)


def _declined(charge: Charge, status: Status, now: datetime) -> Decision:
    """Tell a decline, or keep it as unknown while an earlier key without an answer may still charge."""
    until = doubtful_until(charge, now)
    if until is not None and status is not Status.ACTION_REQUIRED:
        return _later(_unknown(charge), min(until - now, CLOSING_WAIT))
    at = _next_at_once(charge, now) if status is Status.RETRYING else None
    if status is Status.RETRYING and at is None:
        status = Status.DECLINED
    return _rest(dataclasses.replace(charge, status=status, blocked_on=None, next_attempt_at=at))


def _orphan_answered(charge: Charge, orphan: str, answer: Answered, now: datetime) -> Decision:
    if answer.seen in LEARNED_NOTHING or (answer.seen is Seen.SERVER_ERROR and not answer.replayed):
        if charge.final:
            return _later(charge, LAST_WAIT)
        blocked = answer.seen is Seen.UNAUTHORIZED
        return _blocked(charge, Party.OPERATOR) if blocked else _later(charge, _again(charge, _since(charge), now))
    if answer.seen is Seen.CANCELED:
        return _orphan_canceled(charge, orphan, now)
    if orphan in charge.orphans_refused:
        return _continue(charge)
    return _go_on(dataclasses.replace(charge, orphans_refused=(*charge.orphans_refused, orphan)))


def _orphan_canceled(charge: Charge, orphan: str, now: datetime) -> Decision:
    settled = _settled(charge, frozenset({NOT_CANCELED}), orphan, "it is canceled", now)
    return _continue(_without_orphan(settled, orphan))


def _without_orphan(charge: Charge, orphan: str) -> Charge:
    left, refused = (tuple(o for o in orphans if o != orphan) for orphans in (charge.orphans, charge.orphans_refused))
    return dataclasses.replace(charge, orphans=left, orphans_refused=refused)


def _orphan_fetched(charge: Charge, intent: PaymentIntent, now: datetime) -> Decision:
    """Its cancel was refused: it is over, or it takes money yet, or a person must cancel it."""
    if intent.seen is Seen.CANCELED:
        return _orphan_canceled(charge, intent.id, now)
    if intent.seen in CANCELABLE:
        detail = f"its cancel was refused, and Stripe says {intent.seen}"
        return _continue(_without_orphan(_discrepancy(charge, NOT_CANCELED, now, intent.id, detail), intent.id))
    # The bank is working: nothing is confirmed before that is known; but what can be canceled is.
    others = tuple(orphan for orphan in charge.orphans if orphan != intent.id)
    charge = dataclasses.replace(charge, orphans=(*others, intent.id))
    more = any(orphan not in charge.orphans_refused for orphan in others)
    return _go_on(charge) if more else _later(charge, CLOSING_WAIT)


def _refund_answered(charge: Charge, refund: Request, answer: Answered, now: datetime) -> Decision:
    assert refund.payment_intent is not None, "a refund names what it gives back"
    if refund.settled:
        return _continue(charge)
    payment_intent = refund.payment_intent
    standing = REFUND.get(answer.seen, Standing.OUT)
    if answer.replayed and answer.seen is Seen.SERVER_ERROR:
        standing = Standing.BURNT
    if standing is Standing.BURNT:
        return _later(_with_next_refund(charge, refund), _again(charge, refund.first_sent_at, now))
    outcome = answer.seen if standing is Standing.SETTLED else None
    error, request_id = answer.error or refund.error, answer.request_id or refund.request_id
    refund = dataclasses.replace(refund, standing=standing, outcome=outcome, error=error, request_id=request_id)
    charge = charge.with_request(refund)
    if standing is Standing.LOOK:
        return _later(charge, _until_given_back(refund, now))
    if standing is Standing.OUT:
        gone = answer.seen is Seen.MISSING_OBJECT  # The account: it may be connected again.
        return _later(charge, LOOK_EVERY if gone else _again(charge, refund.first_sent_at, now))
    return _refund_over(charge, payment_intent, answer.seen, f"its refund answered {answer.seen}", now)


def _refund_over(charge: Charge, payment_intent: str, seen: Seen, detail: str, now: datetime) -> Decision:
    """It gave the money back, or a person must."""
    if seen is Seen.REFUNDED:
        return _continue(_settled(charge, EXTRA, payment_intent, "what it took was given back", now))
    return _continue(_discrepancy(charge, "refund_failed", now, payment_intent, detail))


def _sent_back(charge: Charge, fetched: Fetched, now: datetime) -> Charge:
    """Reopen what a refund had settled, where Stripe has its money again: banks send refunds back, for a month."""
    intent, left = fetched.payment_intent, fetched.amount_refunded
    refund = next((r for r in charge.refunds if (r.payment_intent, r.outcome) == (intent.id, Seen.REFUNDED)), None)
    if refund is None or left is None or left >= intent.amount_received:
        return charge
    if now < (refund.first_sent_at or now) + LAST_WAIT:  # That look may have been under way as it was sent.
        return charge
    charge = charge.with_request(dataclasses.replace(refund, outcome=Seen.REFUND_FAILED))
    charge = _settled(charge, EXTRA, intent.id, "", None)
    return _discrepancy(charge, "refund_failed", now, intent.id, "it had succeeded, and was sent back")


def _until_given_back(refund: Request, now: datetime) -> timedelta:
    """Wait as long again as it has been pending, at most a day."""
    return min(max(now - (refund.first_sent_at or now), LAST_WAIT), LOOK_EVERY)


def _given_back(charge: Charge, found: GivenBack, now: datetime) -> Decision:
    """A refund that was pending, read: only once it has succeeded has the customer their money."""
    refund = next((r for r in charge.refunds if r.payment_intent == found.payment_intent and _is_pending(r)), None)
    if refund is None:
        return _continue(charge)
    if found.seen is Seen.REFUND_PENDING and now < (refund.first_sent_at or now) + REFUND_FOR:
        others = tuple(r for r in charge.refunds if r is not refund)  # Next time it is another's turn.
        return _later(dataclasses.replace(charge, refunds=(*others, refund)), _until_given_back(refund, now))
    over = dataclasses.replace(refund, standing=Standing.SETTLED, outcome=found.seen)
    detail = f"Stripe says {found.seen}"
    return _refund_over(charge.with_request(over), found.payment_intent, found.seen, detail, now)


# A PaymentIntent, read.


def _fetched(charge: Charge, fetched: Fetched, now: datetime, limits: Limits) -> Decision:
    intent = fetched.payment_intent
    waits = any(_is_unchecked(refund) for refund in charge.refunds)
    if waits and intent.id == _keeper(charge) and fetched.amount_refunded is not None:
        keeps = fetched.amount_refunded == 0 and not fetched.disputed  # Else a person has settled it, or must.
        is_paid = intent.seen is Seen.SUCCEEDED and _same_money(charge, intent) and keeps
        detail = f"Stripe says {intent.seen}" + ("" if keeps else ", and it is refunded or disputed")
        return _refunds_checked(charge, is_paid=is_paid, detail=detail, now=now)
    if intent.id != charge.payment_intent:
        return _another_fetched(_sent_back(charge, fetched, now), intent, now)
    if intent.seen in STATE:
        return _by_state(charge, intent, now)
    if charge.final:
        return _rest(charge)
    if intent.seen is not Seen.UNCONFIRMED:
        return _later(charge, _again(charge, _since(charge), now))
    if charge.closing is not None:
        return _cancel_it(charge, now)
    attempt = charge.open_attempt
    if attempt is None:
        return _unconfirmed(charge, intent, now)
    return _unconfirmed_attempt(charge, attempt, fetched, now, limits)


def _unconfirmed_attempt(charge: Charge, attempt: Attempt, fetched: Fetched, now: datetime, limits: Limits) -> Decision:
    """Rule 3: unconfirmed settles nothing by itself while an attempt is out."""
    if attempt.standing is Standing.UNSENT:
        until = _held_back_until(charge, now)
        return _go_on(_resumed(charge)) if until is None else _later(_unknown(charge), min(until - now, CLOSING_WAIT))
    if attempt.outcome is not None:  # Burnt by an answer that blocks the charge until somebody acts.
        return _rest(charge)
    if attempt.heard is not None:
        return _believe(charge, attempt, Seen(attempt.heard), fetched.payment_intent, now)
    if attempt.standing is not Standing.BURNT and not _past_horizon(attempt, now):
        out = charge.with_request(dataclasses.replace(attempt, standing=Standing.OUT))
        return _later(_unknown(out), _again(charge, attempt.first_sent_at, now))
    since = attempt.burnt_at or (attempt.first_sent_at or now) + KEY_HORIZON
    left = since + limits.quarantine - now
    if fetched.charge_under_way or left > timedelta():  # The last send may have been moments ago.
        wait = _again(charge, since, now)
        return _later(_unknown(charge), wait if left <= timedelta() else min(wait, max(left, FIRST_WAIT)))
    told_no = charge.restored_at is not None and fetched.payment_intent.last_error is not None  # Perhaps, before it.
    if attempt.standing is Standing.BURNT and not told_no:
        return _with_new_attempt(charge, now)
    # The key is gone, and what was sent under it did not pay.
    charge = charge.with_request(dataclasses.replace(attempt, standing=Standing.SETTLED, outcome=Seen.UNCONFIRMED))
    if fetched.payment_intent.last_error is None:
        return _with_new_attempt(charge, now)
    return _came_back(charge, fetched.payment_intent, now)


def _believe(charge: Charge, attempt: Attempt, heard: Seen, intent: PaymentIntent, now: datetime) -> Decision:
    """The look agrees with the answer that was heard: it stands."""
    row = BELIEVED[heard]
    if heard in REFUSED and attempt.unanswered > 0:  # An earlier send stays unexplained for as long as its key lives.
        row = dataclasses.replace(row, standing=Standing.BURNT)
    if attempt.error is None:
        attempt = dataclasses.replace(attempt, error=intent.last_error)
    decision = _apply(charge, attempt, row, heard, now)
    if heard is not Seen.UNEXPECTED_STATE:
        return decision
    again = _with_new_attempt(decision.charge, now)
    return again if again.charge.status is Status.BLOCKED else _later(again.charge, decision.wait)


def _unconfirmed(charge: Charge, intent: PaymentIntent, now: datetime) -> Decision:
    """No attempt is out: a PaymentIntent that waited for the bank or the customer may have come back unpaid."""
    if charge.status is Status.UNKNOWN and charge.last_error is None:
        return _came_back(charge, intent, now)
    if charge.status is Status.UNKNOWN:
        return _declined(charge, Status.DECLINED, now)  # Unknown for as long as an earlier key is in doubt.
    failed_anew = charge.status is Status.ACTION_REQUIRED and intent.last_error not in {None, charge.last_error}
    mended = charge.status is Status.BLOCKED and _resumes(charge)
    if mended and _last_request(charge).outcome == Seen.TRANSIENT_DECLINE:
        return _declined(charge, Status.RETRYING, now)
    if charge.status is Status.PROCESSING or failed_anew or mended:
        return _came_back(charge, intent, now)
    return _rest(charge)


def _came_back(charge: Charge, intent: PaymentIntent, now: datetime) -> Decision:
    last = charge.attempts[-1] if charge.attempts else None
    if last is not None and _can_be_explained(charge, last, now):
        # Stripe runs a request once per key: it answers the same key with what got lost, and then nothing else will
        # come of it; or it has never run it, and what a look took for its doing was the customer's, so it is still out.
        out = dataclasses.replace(last, standing=Standing.OUT, outcome=None)
        return _go_on(_unknown(charge.with_request(out)))
    error = intent.last_error or _last_request(charge).error or charge.last_error
    asks = intent.last_error is not None and codes.row(intent.last_error) == codes.AUTHENTICATE  # Not: it failed.
    in_vain = _is_on_session(_last_request(charge))
    status = Status.ACTION_REQUIRED if asks and not in_vain else Status.DECLINED
    return _declined(dataclasses.replace(charge, last_error=error), status, now)


def _by_state(charge: Charge, intent: PaymentIntent, now: datetime) -> Decision:
    """The recorded PaymentIntent's own word, which beats whatever we believed."""
    status, party = STATE[intent.seen]
    if status is Status.SUCCEEDED:
        return _paid(charge, intent, now)
    if charge.final:
        return _rest(charge)
    attempt = charge.open_attempt
    unsent = charge.closing is None and attempt is not None and attempt.standing is Standing.UNSENT
    if status is Status.ACTION_REQUIRED and unsent:
        until = _held_back_until(charge, now)
        if until is not None:
            return _later(_unknown(charge), min(until - now, CLOSING_WAIT))
        return _go_on(_resumed(charge))  # That is what an earlier attempt left: this one was wished for in spite of it.
    charge = _settle_open_attempt(charge, intent.seen)
    if status is Status.CANCELED:
        return _closed(charge)
    if status is Status.ACTION_REQUIRED and charge.status is Status.BLOCKED and beyond_cards(charge):
        return _rest(charge)  # What an attempt has left; to ask the customer for it leads nowhere any more.
    if charge.closing is not None:
        return _closing_held_up(charge, status, now)
    if status is Status.BLOCKED:
        return _blocked(charge, party)
    return _rest(dataclasses.replace(charge, status=status, blocked_on=None, next_attempt_at=None))


def _closing_held_up(charge: Charge, status: Status, now: datetime) -> Decision:
    assert charge.closing is not None, "asked only of a closing charge"
    if status is not Status.PROCESSING:
        return _cancel_it(charge, now)
    if charge.closing.request is not None:  # The bank is working: it pays, or the cancel is sent once it does not.
        charge = charge.with_request(dataclasses.replace(charge.closing.request, standing=Standing.LOOK))
    return _later(dataclasses.replace(charge, status=status, blocked_on=None), CLOSING_WAIT)


def _cancel_it(charge: Charge, now: datetime) -> Decision:
    """It can be canceled: by the request that is recorded, or once that has had its answer by another, after a while."""
    assert charge.closing is not None, "asked only of a closing charge"
    closing, request = charge.closing, charge.closing.request
    if request is None or not request.settled:  # A refused one: blocked until the next is not.
        charge = _resumed(charge)
    if request is not None and request.standing in {Standing.UNSENT, Standing.OUT} and not _past_horizon(request, now):
        return _go_on(charge)
    waits = request is not None and request.sends > 0
    renewed = _with_new_cancel(charge)
    return _later(renewed, _again(charge, closing.at, now)) if waits else _go_on(renewed)


def _settle_open_attempt(charge: Charge, seen: Seen) -> Charge:
    attempt = charge.open_attempt
    if attempt is None or attempt.standing is Standing.UNSENT:
        return charge
    return charge.with_request(dataclasses.replace(attempt, standing=Standing.SETTLED, outcome=seen, heard=None))


def _paid(charge: Charge, intent: PaymentIntent, now: datetime) -> Decision:
    """The recorded PaymentIntent has taken the money: nothing beats that."""
    if charge.status is Status.SUCCEEDED:
        return _rest(charge)
    if charge.final:
        charge = _discrepancy(charge, f"paid_after_{charge.status}", now, intent.id)
    elif charge.closing is not None and charge.closing.kind in OVERTAKEN:
        kind, detail = OVERTAKEN[charge.closing.kind]
        charge = _discrepancy(charge, kind, now, intent.id, detail)
    if (intent.amount_received, intent.currency) != (charge.terms.amount, charge.terms.currency):
        charge = _discrepancy(charge, "amount_differs", now, intent.id, f"{intent.amount_received} {intent.currency}")
    charge = _settle_open_attempt(charge, Seen.SUCCEEDED)
    charge = dataclasses.replace(
        charge,
        status=Status.SUCCEEDED,
        amount_received=intent.amount_received,
        succeeded_at=now,
        due_at=None,
        blocked_on=None,
        next_attempt_at=None,
        cancel_reason=None,
    )
    return _continue(_giving_back(charge))


def _keeper(charge: Charge) -> str | None:
    """Name the PaymentIntent that keeps its money: the recorded one, or the first of those that paid elsewhere."""
    if charge.status is Status.SUCCEEDED:
        return charge.payment_intent
    elsewhere = (found.payment_intent for found in charge.discrepancies if found.kind == "paid_elsewhere")
    return next(elsewhere, None) if charge.final else None  # Beside cash a person must say what is given back.


def _giving_back(charge: Charge) -> Charge:
    """See to it that what other PaymentIntents took for a charge that is paid is given back, once each."""
    keeper = _keeper(charge)
    if keeper is None:
        return charge
    known = {keeper, *(refund.payment_intent for refund in charge.refunds)}
    for found in charge.discrepancies:
        if found.kind in EXTRA and found.payment_intent is not None and found.payment_intent not in known:
            charge = _with_refund(charge, found.payment_intent)
    return charge


def _refunds_checked(charge: Charge, *, is_paid: bool, detail: str, now: datetime) -> Decision:
    """The PaymentIntent that keeps its money is paid indeed, so what others took is given back; else a person must look at it."""
    keeper = _keeper(charge)
    assert keeper is not None, "it has been looked at"
    refunds = tuple(
        refund
        if not _is_unchecked(refund)
        else dataclasses.replace(refund, standing=Standing.UNSENT if is_paid else Standing.SETTLED)
        for refund in charge.refunds
    )
    charge = dataclasses.replace(charge, refunds=refunds)
    if not is_paid:
        charge = _discrepancy(charge, "not_paid_at_stripe", now, keeper, detail)
    return _continue(charge)


def _compared(charge: Charge, compared: Compared, now: datetime) -> Decision:
    """What the ledger calls paid, against what Stripe says of it: the differences are for a person to settle."""
    intent = compared.payment_intent
    if charge.status is not Status.SUCCEEDED or charge.payment_intent is None:
        return _rest(charge)
    if intent is None or intent.seen is not Seen.SUCCEEDED:
        detail = "Stripe knows no such PaymentIntent" if intent is None else f"Stripe says {intent.seen}"
        return _rest(_discrepancy(charge, "not_paid_at_stripe", now, charge.payment_intent, detail))
    if not _same_money(charge, intent):
        charge = _discrepancy(charge, "amount_differs", now, intent.id, f"{intent.amount_received} {intent.currency}")
    if compared.amount_refunded not in {None, charge.amount_refunded}:
        detail = f"{compared.amount_refunded} of {charge.amount_received} {charge.terms.currency} in all"
        charge = _discrepancy(charge, "refunded_at_stripe", now, intent.id, detail, settled="recorded on the charge")
        charge = dataclasses.replace(charge, amount_refunded=compared.amount_refunded or 0)
    return _continue(charge)


def _discrepancy(  # noqa: PLR0913 - what a Discrepancy is made of.
    charge: Charge, kind: str, now: datetime, payment_intent: str, detail: str = "", *, settled: str = ""
) -> Charge:
    """Record it, once: the same kind of the same PaymentIntent is new only if more has been refunded.

    Of each kind `DISCREPANCIES_KEPT` have room. The oldest that is settled goes first; of money that was given back the
    refund stays. Where all are still to be settled, one more is only counted, and the log says which it was: a person
    must look at so many anyhow, and an audit finds it again once there is room, and has its money given back.
    """
    found = Discrepancy(
        kind=kind,
        at=now,
        payment_intent=payment_intent,
        detail=detail,
        settled=settled,
        settled_at=now if settled else None,
    )
    same = [d for d in charge.discrepancies if (d.kind, d.payment_intent) == (kind, payment_intent)]
    if same and (kind != "refunded_at_stripe" or same[-1].detail == detail):
        return charge
    kept = charge.discrepancies
    if sum(d.kind == kind for d in kept) >= DISCREPANCIES_KEPT:
        given_back = {refund.payment_intent for refund in charge.refunds}
        settled_ones = (d for d in kept if d.kind == kind and d.settled)
        over = next((d for d in settled_ones if kind not in EXTRA or d.payment_intent in given_back), None)
        if over is None:
            return dataclasses.replace(charge, discrepancies_left_out=charge.discrepancies_left_out + 1)
        kept = tuple(d for d in kept if d is not over)
    return dataclasses.replace(charge, discrepancies=(*kept, found))


def _settled(charge: Charge, kinds: frozenset[str], payment_intent: str, how: str, now: datetime | None) -> Charge:
    """Say how the Discrepancies about a PaymentIntent were settled; or that they are not, after all."""
    settled = tuple(
        dataclasses.replace(d, settled=how, settled_at=now, note="")
        if d.kind in kinds and d.payment_intent == payment_intent
        else d
        for d in charge.discrepancies
    )
    return dataclasses.replace(charge, discrepancies=settled)


def _look_failed(charge: Charge, failed: LookFailed, now: datetime, limits: Limits) -> Decision:
    orphan = charge.orphans[0] if charge.orphans else None
    if orphan in charge.orphans_refused and failed.seen in {Seen.MISSING_PAYMENT_INTENT, Seen.INVALID}:
        assert orphan is not None, "it has been looked at"
        charge = _discrepancy(charge, NOT_CANCELED, now, orphan, "Stripe knows no such PaymentIntent")
        return _continue(_without_orphan(charge, orphan))
    if charge.final and not charge.tidy:
        if failed.seen is Seen.MISSING_OBJECT:  # The account is gone, which says nothing of any payment.
            return _later(charge, LOOK_EVERY)
        if failed.seen in REFUSED and any(_is_unchecked(refund) for refund in charge.refunds):
            return _refunds_checked(charge, is_paid=False, detail="Stripe knows no such PaymentIntent", now=now)
        pending = next((refund for refund in charge.refunds if _is_pending(refund)), None)
        if pending is not None and now >= (pending.first_sent_at or now) + REFUND_FOR:
            assert pending.payment_intent is not None, "a refund names what it gives back"
            charge = charge.with_request(dataclasses.replace(pending, standing=Standing.SETTLED, outcome=failed.seen))
            return _refund_over(charge, pending.payment_intent, failed.seen, "it could not be read", now)
        return _later(charge, LAST_WAIT if pending is None else _until_given_back(pending, now))
    if charge.final or charge.status in {Status.DECLINED, Status.RETRYING}:  # Nothing hangs on that look.
        return _rest(charge)
    if failed.error is not None and failed.error.type == TOO_MANY:  # It would be listed for ever.
        blocked = _blocked(dataclasses.replace(charge, last_error=failed.error), Party.OPERATOR).charge
        return _later(blocked, LOOK_EVERY)
    if failed.seen in LOOK_BLOCKED_ON:
        error = failed.error or charge.last_error
        return _blocked(dataclasses.replace(charge, last_error=error), LOOK_BLOCKED_ON[failed.seen])
    attempt, since = charge.open_attempt, _since(charge)
    if attempt is not None and attempt.burnt_at is not None and now >= attempt.burnt_at + limits.quarantine:
        since = attempt.burnt_at + limits.quarantine  # Until then the look could not have settled it.
    return _later(charge, _again(charge, since, now))


def _customer_gone(charge: Charge, gone: CustomerGone) -> Decision:
    """S7, found out where the customer wanted to give a card: the account's owner must know, and the page as well."""
    if gone.customer != charge.customer or charge.customer_gone or Act.PAYMENT_METHOD not in options(charge):
        return _rest(charge)
    return _blocked(dataclasses.replace(charge, customer_gone=True, last_error=gone.error), Party.ACCOUNT_OWNER)


# Finding the PaymentIntent of a charge that has none recorded.


def _listed(charge: Charge, listed: Listed, now: datetime) -> Decision:
    if charge.final or charge.payment_intent is not None:
        return _continue(charge)
    ours = [
        intent
        for intent in listed.payment_intents
        if intent.charge_id == charge.id  # Metadata may be copied: what we created is also for our amount.
        and (intent.amount, intent.currency) == (charge.terms.amount, charge.terms.currency)
        and intent.livemode is charge.livemode
        # Who takes another's place is recorded before the create is sent: only a lost time may have known more.
        and (charge.restored_at is not None or intent.customer in {None, *charge.every_customer})
        and not (intent.seen is Seen.CANCELED and intent.cancellation_reason == ORPHAN_REASON)
    ]
    ours.sort(key=lambda intent: intent.created, reverse=True)
    for preferred in PREFERENCE:
        chosen = next((intent for intent in ours if intent.seen in preferred), None)
        if chosen is not None:
            return _adopt(charge, chosen, now, others=ours)
    if charge.closing is not None:
        return _closed(charge)
    if charge.create.standing is not Standing.BURNT and not _past_horizon(charge.create, now):
        return _go_on(charge)  # Its key may still answer: this list was asked for by an older record.
    stranger = next((i for i in listed.payment_intents if _could_be_ours(charge, i)), None)
    if stranger is not None and _past_horizon(charge.create, now):
        charge = _discrepancy(charge, UNEXPLAINED, now, stranger.id, "same customer, amount, currency")
        charge = _blocked(_burn(charge, charge.create, now), Party.OPERATOR).charge
        return _later(charge, LOOK_EVERY)
    if charge.create.outcome == Seen.PARAMETERS_DRIFTED:
        return _blocked(dataclasses.replace(charge, last_error=charge.create.error), Party.OPERATOR)
    renewed = _with_new_create(charge, _create_number(charge) + 1)
    return _go_on(dataclasses.replace(renewed, status=Status.PENDING, blocked_on=None))


def _could_be_ours(charge: Charge, intent: PaymentIntent) -> bool:
    return (
        intent.charge_id is None
        and intent.seen is not Seen.CANCELED
        and intent.customer in charge.every_customer
        and (intent.amount, intent.currency) == (charge.terms.amount, charge.terms.currency)
    )


def _adopt(charge: Charge, intent: PaymentIntent, now: datetime, others: Iterable[PaymentIntent] = ()) -> Decision:
    """Record the PaymentIntent (step 3); its siblings become orphans, to be canceled before anything is confirmed."""
    rest = [other for other in others if other.id != intent.id]
    live = [other.id for other in rest if other.seen not in NEVER_STALE]
    create = dataclasses.replace(charge.create, standing=Standing.SETTLED, outcome=intent.seen, error=None)
    young = charge.restored_at is not None and min(charge.created_at, intent.created) >= charge.restored_at
    charge = dataclasses.replace(
        charge,
        create=create,
        payment_intent=intent.id,
        restored_at=None
        if young
        else charge.restored_at,  # Nothing was done in the time that was lost about a charge that is younger, too.
        orphans=tuple(o for o in dict.fromkeys((*charge.orphans, *live)) if o != intent.id),
    )
    if intent.customer not in {None, charge.customer}:
        # Made for one who was replaced, and so is gone; or for one of whom a restored ledger knows nothing.
        gone = intent.customer in charge.every_customer
        charge = dataclasses.replace(charge, customers=(*charge.customers, intent.customer or ""), customer_gone=gone)
    for other in rest:
        if other.seen is Seen.SUCCEEDED:
            charge = _discrepancy(charge, "paid_twice", now, other.id, "another PaymentIntent of this charge is paid")
    if intent.seen in STATE:
        return _by_state(charge, intent, now)
    if charge.closing is not None:
        return _go_on(_with_new_cancel(charge))
    if beyond_cards(charge) and charge.restored_at is None:  # Nothing but a refusal would come of an attempt.
        return _blocked(dataclasses.replace(charge, last_error=NO_CUSTOMER), Party.ACCOUNT_OWNER)
    if (
        charge.restored_at is not None and intent.last_error is not None
    ):  # It was declined, and that may have been told.
        return _go_on(_unknown(charge))
    return _with_new_attempt(charge, now)


# Events, and PaymentIntents that are not the recorded one.


def _happened(charge: Charge, event: Happened, now: datetime) -> Decision:
    """Rule 4: an event is evidence about the PaymentIntent that it names."""
    intent = event.payment_intent
    if event.account != charge.terms.account or intent.livemode is not charge.livemode:
        return _rest(charge)
    look = Fetch(payment_intent=intent.id)
    if intent.id != charge.payment_intent:
        paid = intent.seen is Seen.SUCCEEDED and _agrees(charge, intent)
        return Decision(charge=charge, then=Then.REST, look=look if paid and not _known(charge, intent) else None)
    if intent.seen is Seen.SUCCEEDED and charge.status is Status.SUCCEEDED:
        return _rest(charge)
    if intent.seen is Seen.SUCCEEDED and _same_money(charge, intent):
        return _paid(charge, intent, now)
    if charge.final and intent.seen is not Seen.SUCCEEDED:
        return _rest(charge)
    if intent.seen is Seen.CANCELED:
        return _by_state(charge, intent, now)
    return Decision(
        charge=charge, then=Then.REST, look=look
    )  # Late, twice or out of order: only the object itself tells.


def _same_money(charge: Charge, intent: PaymentIntent) -> bool:
    return (intent.amount_received, intent.currency) == (charge.terms.amount, charge.terms.currency)


def _agrees(charge: Charge, intent: PaymentIntent) -> bool:
    return (
        intent.charge_id == charge.id
        and intent.livemode is charge.livemode
        and intent.customer in charge.every_customer
        and _same_money(charge, intent)
    )


def _is_ours(charge: Charge, intent: PaymentIntent) -> bool:
    """Whether it was made for this charge, paid or not: metadata alone may have been copied."""
    return (
        (intent.charge_id, intent.body_digest) == (charge.id, charge.body_digest)
        and intent.livemode is charge.livemode
        and (intent.amount, intent.currency) == (charge.terms.amount, charge.terms.currency)
    )


def _known(charge: Charge, intent: PaymentIntent) -> bool:
    """Whether it has been seen already that it is paid. That its cancel was refused says nothing of that."""
    seen_to = {d.payment_intent for d in charge.discrepancies if d.kind in ANSWERS_FOR}
    return intent.id in seen_to | {refund.payment_intent for refund in charge.refunds}


def _another_fetched(charge: Charge, intent: PaymentIntent, now: datetime) -> Decision:
    """Money by another PaymentIntent than the recorded one, confirmed by reading it; or an orphan (rule 6)."""
    was_orphan = intent.id in charge.orphans
    if intent.seen is not Seen.SUCCEEDED and intent.id in charge.orphans_refused:
        return _orphan_fetched(charge, intent, now)
    if intent.seen in ORPHANED and _is_ours(charge, intent) and (charge.payment_intent is not None or charge.final):
        if intent.id in charge.orphans:
            return _continue(charge)
        if len(charge.orphans) >= ORPHANS_KEPT:
            return _continue(_discrepancy(charge, NOT_CANCELED, now, intent.id, "too many at once"))
        return _go_on(dataclasses.replace(charge, orphans=(*charge.orphans, intent.id)))
    if intent.seen is not Seen.SUCCEEDED or (intent.charge_id != charge.id and not was_orphan):
        return _rest(charge)
    charge = _settled(charge, frozenset({NOT_CANCELED}), intent.id, "it is paid", now)
    charge = _without_orphan(charge, intent.id)
    if _known(charge, intent):
        return _continue(charge) if was_orphan else _rest(charge)
    if not _agrees(charge, intent):  # It only says that it is this charge's: a person must see why.
        return _continue(_discrepancy(charge, NOT_AS_AGREED, now, intent.id, "names this charge, and differs"))
    if charge.payment_intent is None:
        return _adopt(charge, intent, now)
    return _another_paid(charge, intent, now)


def _another_paid(charge: Charge, intent: PaymentIntent, now: datetime) -> Decision:
    """The money is there: what is open ends as paid elsewhere, what is paid already gives it back."""
    closes_as = CLOSES_AS[charge.closing.kind][0] if charge.closing else None
    kind = "paid_twice" if charge.status in PAID or closes_as in PAID else "paid_elsewhere"
    charge = _discrepancy(charge, kind, now, intent.id, "a PaymentIntent that is not the recorded one is paid")
    if charge.final:
        return _continue(_giving_back(charge))
    if charge.closing is None:
        return _close(charge, "paid_elsewhere", "stripe", intent.id, now)
    if closes_as not in PAID:  # It was to be canceled: it ends as what it is.
        charge = dataclasses.replace(charge, closing=dataclasses.replace(charge.closing, kind="paid_elsewhere"))
    return _continue(charge)


# Closings and the other acts.


def _chosen(charge: Charge, choice: Chosen, now: datetime) -> Decision:
    if choice.wish:
        return _wished(charge, choice, now)
    if choice.act in CLOSINGS:
        kind = "cancel" if choice.act is Act.CANCEL else "out_of_band"
        return _close(charge, kind, choice.actor, choice.note, now)
    if choice.act not in options(charge):
        return _refused(charge, "already_paid" if charge.status is Status.SUCCEEDED else "act_does_not_fit")
    if choice.act is Act.PAYMENT_METHOD:
        assert choice.payment_method is not None, "the act names the payment method"
        other = choice.customer if choice.customer != charge.customer else None
        if needs_customer(charge) is (other is None):
            return _refused(charge, "customer_is_gone" if other is None else "customer_is_another")
        if other is not None:
            charge = dataclasses.replace(charge, customers=(*charge.customers, other), customer_gone=False)
        charge = dataclasses.replace(charge, payment_method=choice.payment_method)
    if charge.closing is not None:
        request = charge.closing.request
        gone = charge.payment_intent is not None and (request is None or request.settled)
        return _go_on(_resumed(_with_new_cancel(charge) if gone else charge))
    if charge.payment_intent is None:
        return _create_again(charge, now)
    attempt = charge.open_attempt
    if attempt is not None and attempt.outcome is None:  # What is out is settled first, under its own key.
        return _go_on(_resumed(charge))
    return _with_new_attempt(charge, now, choice.return_url)


def _create_again(charge: Charge, now: datetime) -> Decision:
    """Somebody has it tried again, and no PaymentIntent is recorded."""
    create = charge.create
    # Who tries again in the face of a PaymentIntent that nobody could explain has found it harmless.
    cleared = create.standing is Standing.BURNT and any(d.kind == UNEXPLAINED for d in charge.discrepancies)
    if create.settled and create.unanswered > 0:  # It was refused; an earlier send of it was perhaps not.
        return _go_on(_resumed(_burn(charge, dataclasses.replace(create, outcome=None), now)))
    if create.outcome is None and not cleared:
        return _go_on(_resumed(charge))  # As it is written.
    charge = _with_new_create(charge, _create_number(charge) + 1)
    if (
        charge.restored_at is not None
    ):  # In the time that was lost somebody may have chosen the same: it is listed first.
        charge = _burn(charge, charge.create, now)
    return _go_on(_resumed(charge))


def _wished(charge: Charge, choice: Chosen, now: datetime) -> Decision:
    """S5, pay in cash, as far as a customer can choose it: the card is left alone, and the debt stands.

    Nobody marks their own debt as paid: that is for the caller or the operator, once the money is there.
    """
    assert choice.act is Act.OUT_OF_BAND, "nothing else is only wished for"
    if charge.pays_elsewhere_since is not None and not charge.final and charge.closing is None:
        return _rest(charge)  # Chosen twice.
    goes_on = charge.status is Status.BLOCKED and _resumes(charge)  # By itself, once it is mended: not to be promised.
    doubtful = doubtful_until(charge, now) is not None  # An earlier key may pay, and then they would have paid twice.
    if OPTIONS[charge.status] != EVERY_ACT or charge.closing is not None or goes_on or doubtful:
        return _refused(charge, "already_paid" if charge.status in PAID else "act_does_not_fit")
    wished = dataclasses.replace(charge, next_attempt_at=None, pays_elsewhere_since=now)
    if charge.status is Status.RETRYING:
        return _rest(dataclasses.replace(wished, status=Status.DECLINED))
    return _rest(wished.noted(now, WISH, choice.actor))


def _resumed(charge: Charge) -> Charge:
    """Return a charge that was held up as one that goes on."""
    if charge.status in {Status.PENDING, Status.UNKNOWN}:
        return charge
    charge = dataclasses.replace(charge, status=Status.PENDING, blocked_on=None)
    return _unknown(charge) if money_may_move(charge) else charge


def _refused(charge: Charge, why: str) -> Decision:
    return Decision(charge=charge, then=Then.REST, refusal=why)


def _close(charge: Charge, kind: str, actor: str, note: str, now: datetime) -> Decision:
    """Rule 5: the closing is recorded; what is sent, and the final status, follow once it is durable."""
    closes_as = CLOSES_AS[kind][0]
    if charge.final:
        if charge.status is closes_as:
            return _rest(charge)  # Chosen twice.
        return _refused(charge, "already_canceled" if charge.status is Status.CANCELED else "already_paid")
    if charge.closing is not None:
        ends_alike = closes_as is Status.CANCELED is CLOSES_AS[charge.closing.kind][0]
        return _rest(charge) if ends_alike or charge.closing.kind == kind else _refused(charge, "already_closing")
    closing = Closing(kind=kind, actor=actor, at=now, note=note)
    moving = money_may_move(charge)
    charge = dataclasses.replace(charge, closing=closing, next_attempt_at=None, blocked_on=None)
    if charge.payment_intent is None:
        if _past_horizon(charge.create, now) or charge.restored_at is not None:
            return _go_on(
                dataclasses.replace(charge, status=Status.PENDING)
            )  # What an old create left is listed first.
        return _closed(charge)
    charge = _with_new_cancel(charge)
    return _go_on(dataclasses.replace(charge, status=Status.UNKNOWN if moving else Status.PENDING))


def _closed(charge: Charge) -> Decision:
    """Nothing can charge any more: give the final status that was asked for."""
    kind = charge.closing.kind if charge.closing else None
    status, reason = CLOSES_AS[kind] if kind else (Status.CANCELED, CancelReason.BY_STRIPE)
    if charge.closing is not None and charge.closing.request is not None:
        request = dataclasses.replace(charge.closing.request, standing=Standing.SETTLED, outcome=Seen.CANCELED)
        charge = charge.with_request(request)
    charge = dataclasses.replace(
        charge, status=status, cancel_reason=reason, due_at=None, blocked_on=None, next_attempt_at=None
    )
    return _continue(_giving_back(charge))


# Time, and our own mistakes.


def _reviewed(charge: Charge, review: Reviewed, now: datetime) -> Decision:
    """An operator has looked at what nobody explained. It moves no money, and reopens nothing."""
    if not unsettled(charge):
        return _refused(charge, "nothing_to_settle")
    note = review.note[:NOTE_KEPT]
    settled = tuple(
        found if found.settled else dataclasses.replace(found, settled=BY_OPERATOR, note=note, settled_at=now)
        for found in charge.discrepancies
    )
    return _rest(dataclasses.replace(charge, discrepancies=settled))


def _woken(charge: Charge, now: datetime) -> Decision:
    for refund in charge.refunds:
        if not refund.settled and not _is_pending(refund) and _past_horizon(refund, now):
            charge = _with_next_refund(charge, refund)
    if charge.final:
        return _continue(charge)
    if charge.closing is None and now >= charge.expires_at and charge.status is not Status.PROCESSING:
        return _close(charge, "expire", "system", "nobody ended it", now)
    if charge.status is Status.RETRYING and charge.next_attempt_at is not None and now >= charge.next_attempt_at:
        return _with_new_attempt(charge, now)
    attempt = charge.open_attempt
    if charge.status is Status.PENDING and attempt is not None and attempt.unanswered:
        return _go_on(_unknown(charge))  # A delivery died after it had sent this.
    return _go_on(charge)


def _crashed(charge: Charge, now: datetime) -> Decision:
    if charge.final:
        return _rest(charge)
    charge = dataclasses.replace(charge, crashes=charge.crashes + 1)
    if charge.crashes >= CRASHES_LIMIT:
        return _blocked(dataclasses.replace(charge, last_error=Failure(type="internal_error")), Party.OPERATOR)
    return _later(charge, _again(charge, _since(charge), now))

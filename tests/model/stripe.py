"""A small Stripe: what it promises about PaymentIntents and idempotency keys, and all that it leaves open.

Every function returns all the ways in which the thing may go, each with a sentence that says so. Nothing here knows
the policy. Sources: docs.stripe.com on idempotent requests, errors and the life of a PaymentIntent.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from shared import policy
from shared.charge import Answered, Failure, Happened, PaymentIntent, Request, Seen
from tests.model.moments import NOW, QUARANTINED, classed

AMOUNT: Final = 1999
CURRENCY: Final = "usd"
CUSTOMER: Final = "cus_1"
CHARGE_ID: Final = "order"

CARD: Final = "pm_card"  # Pays or is declined; it may do either each time.
OTHER_CARD: Final = "pm_other_card"  # Likewise.
BANK_DEBIT: Final = "pm_bank_debit"  # Processing, until the bank pays or refuses.
STRICT_CARD: Final = "pm_strict_card"  # Declined off session: the customer must authenticate.
FLAKY_CARD: Final = "pm_flaky_card"  # Pays, or cannot be asked just now.

DECLINED: Final = Failure(type="card_error", code="card_declined")
AUTHENTICATE: Final = Failure(type="card_error", code="authentication_required")
NOT_NOW: Final = Failure(type="card_error", code="processing_error")
DEBIT_FAILED: Final = Failure(type="card_error", code="payment_intent_payment_attempt_failed")
NOT_AUTHENTICATED: Final = Failure(type="card_error", code="payment_intent_authentication_failure")

US: Final = "us"
THE_CUSTOMER: Final = "customer"


@dataclass(frozen=True)
class Intent:
    """A PaymentIntent of the charge."""

    state: Seen = Seen.UNCONFIRMED
    mover: str = ""  # Who set off what it does or did last.
    error: Failure | None = None
    cancellation_reason: str | None = None
    late: bool = False  # Whoever looked in time may not have found it.

    @property
    def confirmable(self) -> bool:
        """Whether it may be paid."""
        return self.state in {Seen.UNCONFIRMED, Seen.ACTION_REQUIRED}


@dataclass(frozen=True)
class Key:
    """An idempotency key that was used."""

    name: str
    operation: str
    parameters: str
    payment_intent: str | None
    first_sent: datetime
    saved: Answered | None = None
    in_flight: int = 0  # Copies of the request that are still on their way, given up on by who sent them.
    later: bool = False  # A 500 was saved, and Stripe may still carry the request out.


@dataclass(frozen=True)
class Stripe:
    """All that Stripe knows about the charge."""

    intents: tuple[Intent, ...] = ()
    keys: tuple[Key, ...] = ()
    stranger: bool = False  # Another payment, of another amount, has a copy of the charge's metadata. It is paid.

    def key(self, name: str) -> Key | None:
        """Find a key."""
        return next((key for key in self.keys if key.name == name), None)

    def with_key(self, key: Key) -> "Stripe":
        """Put a key into the place of the one of its name, or add it."""
        if self.key(key.name) is None:
            return dataclasses.replace(self, keys=(*self.keys, key))
        return dataclasses.replace(self, keys=tuple(key if one.name == key.name else one for one in self.keys))

    def intent(self, name: str) -> Intent:
        """Find a PaymentIntent by its id."""
        return self.intents[int(name.removeprefix("pi_")) - 1]

    def with_intent(self, name: str, intent: Intent) -> "Stripe":
        """Put a PaymentIntent into its place."""
        at = int(name.removeprefix("pi_")) - 1
        return dataclasses.replace(self, intents=(*self.intents[:at], intent, *self.intents[at + 1 :]))

    @property
    def names(self) -> tuple[str, ...]:
        """The ids of the charge's PaymentIntents."""
        return tuple(f"pi_{number + 1}" for number in range(len(self.intents)))

    @property
    def paid(self) -> int:
        """How many times the customer's money has moved for the charge."""
        return sum(intent.state is Seen.SUCCEEDED for intent in self.intents)


class Way(NamedTuple):
    """One way in which something may go at Stripe."""

    says: str
    stripe: Stripe
    answer: Answered | None = None


STRANGER: Final = PaymentIntent(
    id="pi_stranger",
    seen=Seen.SUCCEEDED,
    amount=500,
    amount_received=500,
    currency=CURRENCY,
    livemode=False,
    created=NOW,
    charge_id=CHARGE_ID,
    customer=CUSTOMER,
)


def shown(stripe: Stripe, name: str) -> PaymentIntent:
    """Show a PaymentIntent as it stands."""
    if name == STRANGER.id:
        return STRANGER
    intent = stripe.intent(name)
    return PaymentIntent(
        id=name,
        seen=intent.state,
        amount=AMOUNT,
        amount_received=AMOUNT if intent.state is Seen.SUCCEEDED else 0,
        currency=CURRENCY,
        livemode=False,
        created=NOW - timedelta(days=60) + timedelta(seconds=int(name.removeprefix("pi_"))),
        charge_id=CHARGE_ID,
        customer=CUSTOMER,
        cancellation_reason=intent.cancellation_reason,
        last_error=intent.error,
    )


def short(name: str) -> str:
    """Call a key by its last words: `confirm-1`."""
    return "-".join(name.split("-")[-2:])


# --- A request arrives ------------------------------------------------------------------------------------------------


def used(stripe: Stripe, request: Request) -> Key:
    """Return the key of a request, as Stripe knows it or would first."""
    return stripe.key(request.idempotency_key) or Key(
        request.idempotency_key, request.operation, request.parameters, request.payment_intent, NOW
    )


def arrives(stripe: Stripe, request: Request) -> Iterator[Way]:
    """A request is carried out and answered; or its key's saved answer is replayed."""
    key = used(stripe, request)
    if key.saved is not None:
        yield Way("replays its saved answer", stripe, dataclasses.replace(key.saved, replayed=True))
        return
    for way in _runs(stripe, key):
        yield Way(way.says, way.stripe.with_key(dataclasses.replace(key, saved=way.answer)), way.answer)


def fails(stripe: Stripe, request: Request) -> Iterator[Way]:
    """All the ways in which a call may go wrong."""
    key = used(stripe, request)
    answer = Answered(idempotency_key=key.name, seen=Seen.NO_REPLY)
    on_its_way = stripe.with_key(dataclasses.replace(key, in_flight=min(key.in_flight + 1, 2)))
    yield Way("does not answer in time: the request may be on its way still", on_its_way, answer)
    known = stripe.with_key(key)
    for seen, says in (
        (Seen.LIMITED, "answers 429"),
        (Seen.UNAUTHORIZED, "answers 401: nobody told us that the API key was rolled"),
        (Seen.SERVER_ERROR, "answers 502 without having run it"),
    ):
        yield Way(says, known, dataclasses.replace(answer, seen=seen))
    invalid = dataclasses.replace(answer, seen=Seen.INVALID)
    yield Way("answers 400 before it runs anything: our new release sends it something wrong", known, invalid)
    if key.saved is not None:
        drifted = dataclasses.replace(answer, seen=Seen.PARAMETERS_DRIFTED)
        yield Way("answers 400 idempotency_error: our new release writes it otherwise", known, drifted)
        return
    broken = dataclasses.replace(answer, seen=Seen.SERVER_ERROR)
    saved = dataclasses.replace(key, saved=broken)
    yield Way("answers 500 and has done nothing", stripe.with_key(saved), broken)
    yield Way("answers 500 and may still do it", stripe.with_key(dataclasses.replace(saved, later=True)), broken)
    for way in _runs(stripe, key):
        yield Way(f"{way.says}, but answers 500", way.stripe.with_key(saved), broken)
        kept = dataclasses.replace(key, saved=way.answer)
        yield Way(f"{way.says}, but its edge answers 502", way.stripe.with_key(kept), broken)


def in_use(stripe: Stripe, request: Request) -> Way:
    """The twin is being carried out right now."""
    answer = Answered(idempotency_key=request.idempotency_key, seen=Seen.KEY_IN_USE)
    return Way("answers 409: an earlier copy of it is running", stripe.with_key(used(stripe, request)), answer)


# --- Stripe, the bank and the customer by themselves ------------------------------------------------------------------


def by_itself(stripe: Stripe, *, debit: bool) -> Iterator[Way]:
    """What may happen at any moment, without a word to us."""
    for key in stripe.keys:
        yield from _catches_up(stripe, key)
    for name in stripe.names:
        yield from _moves_on(stripe, name, debit=debit)


def _catches_up(stripe: Stripe, key: Key) -> Iterator[Way]:
    name = short(key.name)
    if key.in_flight:
        left = dataclasses.replace(key, in_flight=key.in_flight - 1)
        yield Way(f"The copy of {name} that was on its way is lost.", stripe.with_key(left))
        for way in _runs(stripe, key, late=True) if key.saved is None else ():
            kept = way.stripe.with_key(dataclasses.replace(left, saved=way.answer))
            yield Way(f"The copy of {name} that was on its way arrives: Stripe {way.says}.", kept)
    if key.later:
        done = dataclasses.replace(key, later=False)
        yield Way(f"Stripe rolls {name} back, which it had answered 500.", stripe.with_key(done))
        for way in _runs(stripe, key, late=True):
            says = f"Stripe carries out {name}, which it had answered 500: it {way.says}."
            yield Way(says, way.stripe.with_key(done))


def _moves_on(stripe: Stripe, name: str, *, debit: bool) -> Iterator[Way]:
    state = stripe.intent(name).state
    if state is Seen.PROCESSING:
        yield Way(f"The bank pays {name}.", _set(stripe, name, Seen.SUCCEEDED))
        yield Way(f"The bank refuses {name}.", _set(stripe, name, Seen.UNCONFIRMED, DEBIT_FAILED))
    if state is Seen.ACTION_REQUIRED:
        authenticated = _set(stripe, name, Seen.SUCCEEDED, mover=THE_CUSTOMER)
        yield Way(f"The customer authenticates, and {name} is paid.", authenticated)
        failed = _set(stripe, name, Seen.UNCONFIRMED, NOT_AUTHENTICATED, mover=THE_CUSTOMER)
        yield Way(f"The customer does not authenticate {name}.", failed)
    if state is Seen.ACTION_REQUIRED and debit:
        agreed = _set(stripe, name, Seen.PROCESSING, mover=THE_CUSTOMER)
        yield Way(f"The customer agrees to the debit, and the bank works on {name}.", agreed)


def customer_confirms(stripe: Stripe, name: str) -> Iterator[Way]:
    """The customer begins to pay on session, on the page for a PaymentIntent."""
    intent = stripe.intent(name)
    if intent.confirmable and (intent.state, intent.mover) != (Seen.ACTION_REQUIRED, THE_CUSTOMER):
        begun = Intent(state=Seen.ACTION_REQUIRED, mover=THE_CUSTOMER, late=intent.late)
        yield Way(f"The customer begins to pay {name} on the page.", stripe.with_intent(name, begun))


def canceled_by_hand(stripe: Stripe, name: str) -> Iterator[Way]:
    """Somebody cancels a PaymentIntent in Stripe's Dashboard."""
    if stripe.intent(name).confirmable:
        canceled = dataclasses.replace(stripe.intent(name), state=Seen.CANCELED, cancellation_reason="abandoned")
        yield Way(f"Somebody cancels {name} in Stripe's Dashboard.", stripe.with_intent(name, canceled))


def later(stripe: Stripe, by: timedelta) -> Stripe:
    """Let time pass: nothing stays on its way for so long, and keys that are a day old are forgotten."""
    assert by >= QUARANTINED, "a request may stay on its way for less"
    keys = [dataclasses.replace(key, in_flight=0, first_sent=classed(key.first_sent - by)) for key in stripe.keys]
    old = [NOW - key.first_sent >= policy.KEY_LIFE for key in keys]
    return dataclasses.replace(
        stripe,
        keys=tuple(
            dataclasses.replace(key, saved=None, later=False) if forgotten else key
            for key, forgotten in zip(keys, old, strict=True)
        ),
    )


def overlooked(stripe: Stripe) -> Stripe:
    """The newest PaymentIntent was not in a list that was asked for."""
    return dataclasses.replace(
        stripe, intents=(*stripe.intents[:-1], dataclasses.replace(stripe.intents[-1], late=True))
    )


def may_move_money(stripe: Stripe, key: Key | None) -> bool:
    """Whether a copy of this request that reaches Stripe, or is rolled forward, can still take money."""
    return (
        key is not None
        and key.operation == "confirm"
        and key.payment_intent is not None
        and stripe.intent(key.payment_intent).confirmable
        and (key.later or (key.saved is None and key.in_flight > 0))
    )


def events(stripe: Stripe) -> Iterator[Happened]:
    """Name every event that may come. Any that ever could be sent may come at any time: late, again, or never.

    Of `succeeded` and `canceled` there is one once the PaymentIntent is so, which it stays. All others say the same:
    look. So what was sent and when need not be kept.
    """
    for name in (*stripe.names, STRANGER.id) if stripe.stranger else stripe.names:
        intent = shown(stripe, name)
        if intent.seen in policy.NEVER_STALE:
            yield Happened(type=f"{intent.seen}", account=None, payment_intent=intent)
        if intent is not STRANGER and stripe.intent(name).mover:
            old = dataclasses.replace(intent, seen=Seen.UNCONFIRMED, amount_received=0, cancellation_reason=None)
            yield Happened(type="payment_failed", account=None, payment_intent=old)


# --- Carrying out -----------------------------------------------------------------------------------------------------


def _runs(stripe: Stripe, key: Key, *, late: bool = False) -> Iterator[Way]:
    """Carry a request out: all the ways it may go."""
    if key.operation == "create":
        made = dataclasses.replace(stripe, intents=(*stripe.intents, Intent(late=late)))
        yield Way(f"creates {made.names[-1]}", made, _answer(made, key, made.names[-1]))
        return
    assert key.payment_intent is not None, "it acts on a PaymentIntent"
    assert key.operation in {"confirm", "cancel"}, "no other PaymentIntent takes money, so none is refunded"
    name = key.payment_intent
    intent = stripe.intent(name)
    if not intent.confirmable:  # As in: canceling, too, is refused once it is paid, canceled or with the bank.
        refused = _answer(stripe, key, name, Seen.UNEXPECTED_STATE)
        yield Way(f"refuses it, since {name} is {intent.state} already", stripe, refused)
    elif key.operation == "cancel":
        reason = json.loads(key.parameters)["cancellation_reason"]
        canceled = dataclasses.replace(intent, state=Seen.CANCELED, cancellation_reason=reason)
        done = stripe.with_intent(name, canceled)
        yield Way(f"cancels {name}", done, _answer(done, key, name))
    else:
        yield from _confirms(stripe, key, name)


def _confirms(stripe: Stripe, key: Key, name: str) -> Iterator[Way]:
    parameters = json.loads(key.parameters)
    payment_method = parameters["payment_method"]
    if payment_method in {CARD, OTHER_CARD, FLAKY_CARD}:
        paid = _set(stripe, name, Seen.SUCCEEDED, mover=US)
        yield Way(f"takes the money by {name}", paid, _answer(paid, key, name))
    if payment_method in {CARD, OTHER_CARD}:
        declined = _set(stripe, name, Seen.UNCONFIRMED, DECLINED, mover=US)
        yield Way("declines it", declined, _answer(declined, key, name, Seen.DECLINED))
    if payment_method == FLAKY_CARD:
        failed = _set(stripe, name, Seen.UNCONFIRMED, NOT_NOW, mover=US)
        yield Way("declines it for now", failed, _answer(failed, key, name, Seen.TRANSIENT_DECLINE))
    if payment_method == STRICT_CARD:
        asked = _set(stripe, name, Seen.UNCONFIRMED, AUTHENTICATE, mover=US)
        yield Way("declines it without the customer", asked, _answer(asked, key, name, Seen.AUTHENTICATION_REQUIRED))
    if payment_method == STRICT_CARD or "return_url" in parameters:
        waits = _set(stripe, name, Seen.ACTION_REQUIRED, mover=US)
        yield Way("waits for the customer", waits, _answer(waits, key, name))
    if payment_method == BANK_DEBIT:
        begun = _set(stripe, name, Seen.PROCESSING, mover=US)
        yield Way("hands it to the bank", begun, _answer(begun, key, name))


def _set(stripe: Stripe, name: str, state: Seen, error: Failure | None = None, mover: str | None = None) -> Stripe:
    intent = stripe.intent(name)
    changed = dataclasses.replace(intent, state=state, error=error, mover=intent.mover if mover is None else mover)
    return stripe.with_intent(name, changed)


def _answer(stripe: Stripe, key: Key, name: str, seen: Seen | None = None) -> Answered:
    intent = shown(stripe, name)
    error = None if seen is None else intent.last_error
    return Answered(idempotency_key=key.name, seen=seen or intent.seen, payment_intent=intent, error=error)

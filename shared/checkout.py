"""What the customer's page asks of Stripe besides the charge itself: a place to enter a card, the bank's page, a name.

Card data never comes near us: the customer enters it on Stripe's page (Checkout in setup mode), which moves no money.
The card is then taken by the charge, once, by whichever of two hears of it first: the customer's way back, or the
webhook. Nothing here is believed but what Stripe answers now.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from shared import answers, log, policy
from shared.answers import CHARGE_ID_KEY, CardGiven
from shared.charge import Act, Charge, Chosen, Failure
from shared.deliver import CHARGE_ID, Charger, Outcome
from shared.gateway import STRIPE_API_VERSION, Gateway, Heard

REPLACES_KEY: Final = "pio_replaces"  # In a session's metadata: the payment method that the charge had when it began.
SESSION_PARAMETER: Final = "session"
TRIES: Final = 5  # When others write the charge at the same moment. Each of them ends soon.
NAME_KEPT: Final = timedelta(hours=1)  # Sellers seldom change their name,
NO_NAME_KEPT: Final = timedelta(minutes=1)  # and a page does not wait for it each time while Stripe does not answer.
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
PASSING: Final = frozenset({401, 403, 409, 429})  # Refusals that say nothing about the request.


class Unreachable(Exception):
    """Stripe did not answer, or not as it should, or the charge is in hand: later it may."""


class Refused(Exception):
    """Stripe will not do this for this charge; its account is gone, most likely."""


class CustomerMissing(Refused):
    """Stripe will not do this for this charge: its customer is gone."""

    def __init__(self, error: Failure) -> None:
        super().__init__()
        self.error = error


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A session in which the customer may enter a card."""

    session: str
    url: str
    replayed: bool  # It was opened before; so a card may have been given in it already.


@dataclass(frozen=True, kw_only=True)
class Given:
    """A card that was given in a session, and the one that it is to replace."""

    payment_method: str
    customer: str
    replaces: str | None
    asked_at: datetime | None = None  # When the session was opened, to the second.


class Checkout:
    """Stripe's own pages. Threads may share one.

    api_base: where Stripe is; None for its own address. It says which addresses a customer may be sent to.
    """

    def __init__(self, gateway: Gateway, api_base: str | None) -> None:
        self._gateway = gateway
        self.local: Final = urlsplit(api_base or "").hostname in LOOPBACK
        self._names: dict[str | None, tuple[str | None, datetime]] = {}
        self._lock = threading.Lock()

    def open(self, charge: Charge, page_url: str, now: datetime) -> Opened:
        """Open a session for another card: the same one again, if it is asked for again soon.

        Where the charge's customer is gone, Stripe makes another one of whoever gives a card there.
        page_url: where the customer comes back to. Raises Unreachable, CustomerMissing or Refused.
        """
        whom: dict[str, Any] = {"customer": charge.customer}
        if policy.needs_customer(charge):
            email = charge.terms.receipt_email
            whom = {"customer_creation": "always", **({"customer_email": email} if email else {})}
        parameters: dict[str, Any] = {
            "mode": "setup",
            **whom,
            "currency": charge.terms.currency,
            "metadata": {CHARGE_ID_KEY: charge.id, REPLACES_KEY: charge.payment_method},
            "success_url": f"{page_url}/back?{SESSION_PARAMETER}={{CHECKOUT_SESSION_ID}}",
            "cancel_url": page_url,
        }
        # For ten minutes it is one session, however often it is asked for; a 500 that is saved blocks it no longer.
        digest = hashlib.sha256(f"{now:%Y-%m-%dT%H:%M}"[:-1].encode() + json.dumps(parameters).encode()).hexdigest()
        key = f"card-{charge.id}-{digest[:32]}"
        heard = self._gateway.ask(
            partial(self._gateway.v1.checkout.sessions.create, parameters),  # type: ignore[arg-type]
            charge.terms.account,
            charge.create.api_version,
            idempotency_key=key,
        )
        error = _missing_customer(heard)
        if error is not None and "customer" in whom:
            raise CustomerMissing(error)
        session = _object(heard, "checkout.session")
        replayed = heard is not None and heard.headers.get("idempotent-replayed") == "true"
        return Opened(session=session["id"], url=self._of_checkout(session.get("url")), replayed=replayed)

    def given(self, charge: Charge, session_id: str) -> Given | None:
        """Return the card that was given in a session for this charge.

        None: none was, or the session is not for this charge, or not for its customer. While that one is gone, it is
        for another. Of several who gave a card, each in a session of their own, the first to be heard of is taken.
        Raises Unreachable.
        """
        retrieve = partial(self._gateway.v1.checkout.sessions.retrieve, session_id, {"expand": ["setup_intent"]})
        heard = self._gateway.ask(retrieve, charge.terms.account, charge.create.api_version)
        with contextlib.suppress(Refused):
            session = _object(heard, "checkout.session")
            metadata, intent = _map(session.get("metadata")), _map(session.get("setup_intent"))
            customer = session.get("customer")
            is_right = customer == charge.customer and not charge.customer_gone
            if policy.needs_customer(charge):
                is_right = customer not in charge.every_customer
            agrees = (
                session["id"] == session_id
                and session.get("mode") == "setup"
                and metadata.get(CHARGE_ID_KEY) == charge.id
                and session.get("livemode") is charge.livemode
                and isinstance(customer, str)
                and is_right
                and intent.get("customer") in _may_name(session, customer)
            )
            card = intent.get("payment_method")
            if agrees and session.get("status") == "complete" and intent.get("status") == "succeeded" and card:
                created = session.get("created")
                asked_at = datetime.fromtimestamp(created, UTC) if isinstance(created, int) else None
                replaces = metadata.get(REPLACES_KEY)
                return Given(payment_method=str(card), customer=str(customer), replaces=replaces, asked_at=asked_at)
        return None

    def bank_page(self, charge: Charge) -> str | None:
        """Return where the customer authenticates; None where nothing waits for that. Raises Unreachable or Refused.

        Read now and never stored: such a page is good for a short while only.
        """
        assert charge.payment_intent is not None, "only a PaymentIntent makes a bank ask"
        retrieve = partial(self._gateway.v1.payment_intents.retrieve, charge.payment_intent)
        intent = _object(self._gateway.ask(retrieve, charge.terms.account, charge.create.api_version), "payment_intent")
        if intent["id"] != charge.payment_intent or intent.get("status") != "requires_action":
            return None
        redirect = _map(_map(intent.get("next_action")).get("redirect_to_url"))
        return self._checked(redirect["url"]) if redirect.get("url") else None

    def seller(self, charge: Charge, now: datetime) -> str | None:
        """Return the name of whom the customer owes; None where Stripe does not tell. Never raises."""
        account = charge.terms.seller
        with self._lock:
            name, until = self._names.get(account, (None, now))
        if now < until:
            return name
        heard = self._gateway.ask(self._gateway.v1.accounts.retrieve_current, account, STRIPE_API_VERSION)
        try:
            found = _object(heard, "account")
        except (Unreachable, Refused):
            found = {}
        names = (
            _map(found.get("business_profile")).get("name"),
            _map(_map(found.get("settings")).get("dashboard")).get("display_name"),
        )
        name = next((str(each) for each in names if each), None)
        with self._lock:
            self._names[account] = (name, now + (NAME_KEPT if name else NO_NAME_KEPT))
        return name

    def _of_checkout(self, url: object) -> str:
        """Return the address of a page of Checkout. Raises Refused for what is none.

        It may be on a domain of the seller's, as an account can have it. It comes from nobody but Stripe, by TLS, and
        is made of nothing that a customer or a caller wrote.
        """
        parts = urlsplit(str(url or ""))
        return str(url) if parts.scheme == "https" and parts.hostname else self._checked(url)

    def _checked(self, url: object) -> str:
        """Return the address of a page of Stripe's. Raises Refused for any other: nobody is sent there."""
        parts = urlsplit(str(url or ""))
        host = parts.hostname or ""
        stripes = parts.scheme == "https" and (host == "stripe.com" or host.endswith(".stripe.com"))
        if stripes or (self.local and host in LOOPBACK):
            return str(url)
        log.error("Stripe names a page that is not its own", host=host)
        raise Refused


def take_card(
    charger: Charger, checkout: Checkout, charge_id: str, session_id: str, *, return_url: str | None
) -> Outcome | None:
    """Let the charge take the card that was given in a session, and try it: once, however often this is called.

    return_url: the customer is here; None: an event tells of it. Both may be late: neither takes back what the customer
    has chosen since. None: there is no such charge, or no card of its own. Raises Unreachable and LedgerUnavailable.
    """
    charge = charger.read(charge_id)
    given = checkout.given(charge, session_id) if charge is not None else None
    if charge is None or given is None:
        return None
    card = given.payment_method
    choice = Chosen(
        act=Act.PAYMENT_METHOD,
        actor="customer",
        payment_method=card,
        customer=given.customer,
        return_url=return_url,
    )
    for _ in range(TRIES):
        tried = charge.payment_method == card or any(attempt.payment_method == card for attempt in charge.attempts)
        wish = charge.pays_elsewhere_since
        overtaken = wish is not None and (given.asked_at is None or given.asked_at < wish.replace(microsecond=0))
        if tried or overtaken or (return_url is None and charge.payment_method != given.replaces):
            return Outcome(charge=charge, existed=True)
        # Only as it was read: otherwise two that hear of the card at once would make two attempts.
        outcome = charger.act(charge_id, choice, version=charge.version)
        if outcome is None or outcome.refusal != "version":
            return outcome
        charge = outcome.charge
    return Outcome(charge=charge, existed=True, busy=True)


def hear_of_card(charger: Charger, checkout: Checkout, given: CardGiven) -> str:
    """Let the charge take the card that an event tells of, if the customer's way back did not. Returns what came of it.

    Raises LedgerUnavailable; and Unreachable where Stripe does not answer, or what is under way has to end first: then
    the event is to come again.
    """
    if not CHARGE_ID.fullmatch(given.charge_id):  # Whoever made the session wrote what they liked.
        return "not ours"
    outcome = take_card(charger, checkout, given.charge_id, given.session, return_url=None)
    if outcome is None:
        return "not ours"
    charge = outcome.charge
    if policy.exhausted(charge):  # No card helps any more.
        return f"recorded: {charge.status}"
    if outcome.busy or (outcome.refusal is not None and not charge.final and charge.closing is None):
        raise Unreachable
    return f"recorded: {charge.status}"


def _object(heard: Heard | None, kind: str) -> Mapping[str, Any]:
    """Return the object that was asked for. Raises Unreachable or Refused."""
    if heard is None or heard.status >= 500 or heard.status in PASSING:
        raise Unreachable
    if heard.status != 200:
        raise Refused
    body = _map(heard.body)
    if body.get("object") != kind or not isinstance(body.get("id"), str):
        raise Unreachable
    return body


def _missing_customer(heard: Heard | None) -> Failure | None:
    """Return Stripe's error where it refuses because there is no such customer."""
    body = _map(heard.body) if heard is not None and heard.status in {400, 404} else {}
    error = answers.failure(_map(body.get("error")))
    return error if (error.code, error.param) == (policy.NO_CUSTOMER.code, policy.NO_CUSTOMER.param) else None


def _may_name(session: Mapping[str, Any], customer: str) -> tuple[str | None, ...]:
    """Return whom the session's SetupIntent may name: perhaps nobody, where the customer was made on its page."""
    return (customer, None) if session.get("customer_creation") == "always" else (customer,)


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

"""The one place that calls Stripe.

Every call is one HTTP request: nothing here repeats a request or follows a redirect (the lists ask for page after
page). What came back is judged by its HTTP status and body (`answers`), not by the SDK's exception: an answer that the
SDK cannot make sense of is an answer too, and keeps its request id. No answer at all is NO_REPLY.
"""

import hashlib
import json
import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any, Final, cast
from urllib.parse import urlsplit

import requests
import stripe

from shared import answers, log, telemetry
from shared.charge import Answered, Failure, Fetched, GivenBack, Listed, LookFailed, PaymentIntent, Request, Seen, Terms
from shared.policy import TOO_MANY

STRIPE_API_VERSION: Final = "2026-10-28.endive"
"""Frozen into every new charge. The SDK's own, which its types describe; an upgrade of the SDK changes both, here."""

CONNECT_TIMEOUT_SECONDS: Final = 5.0  # Part of the time limit. Stripe is connected to in far less than a second.
PAGE_SIZE: Final = 100  # Objects; the most that Stripe gives.
PAGES_LIMIT: Final = 50  # 5,000 PaymentIntents of one customer: a list that long is looked at by a person.
ACCOUNT_PAGES: Final = 100  # 10,000 connected accounts: that takes half a minute, and no run has much more.
RECONCILED_PAGES: Final = 10  # So that one step of an audit stays far below the function's timeout.
UNPAID: Final = "failed"  # The one status of a Charge of Stripe's that says that it neither took money nor may yet.
LIVE_KEYS: Final = ("sk_live_", "rk_live_")

ANY_ID: Final = re.compile(r"(?<=/)(?!v1/)[^/]*[0-9A-Z][^/]*")  # In a path. What is no id there has neither.


Call = Callable[[], object]
Row = Mapping[str, Any]
Rows = tuple[Row, ...]


class Kind(StrEnum):
    """What is listed for reconciling."""

    PAYMENT_INTENTS = "payment_intents"
    CHARGES = "charges"
    REFUNDS = "refunds"
    EVENTS = "events"


@dataclass(frozen=True, kw_only=True)
class Contact:
    """How to write to a customer, or to the owner of an account, as far as Stripe knows. Of one deleted: nothing."""

    email: str | None = field(default=None, repr=False)
    name: str | None = None  # What a customer knows the account as.
    locales: tuple[str, ...] = ()  # The customer's languages, the best first.


@dataclass(frozen=True)
class Heard:
    """An answer as it came: `headers` with names in lower case, `body` parsed, or None where it is no JSON."""

    status: int
    headers: Mapping[str, str]
    body: object

    def read(self, idempotency_key: str) -> Answered:
        """Say what it amounts to."""
        request_id = self.headers.get("request-id")
        return answers.read(
            self.status,
            self.body,
            request_id=request_id,
            replayed=self.headers.get("idempotent-replayed", "").lower() == "true",
            idempotency_key=idempotency_key,
        )


class RecordingClient(stripe.HTTPClient):
    """Another HTTP client of the SDK, whose last answer is kept for each thread."""

    def __init__(self, inner: stripe.HTTPClient) -> None:
        super().__init__()
        self.name = inner.name  # type: ignore[misc]  # The SDK reads it from the instance.
        self._inner = inner
        self._last = threading.local()

    def forget(self) -> None:
        """Start anew, in this thread."""
        self._last.sent, self._last.heard = False, None

    @property
    def sent(self) -> bool:
        """Whether this thread has begun to send since it forgot."""
        return cast("bool", self._last.sent)

    @property
    def heard(self) -> Heard | None:
        """What this thread was answered since it forgot."""
        return cast("Heard | None", self._last.heard)

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,
        *,
        _usage: Any = None,  # The SDK declares it and never passes it on.
    ) -> tuple[str, int, Mapping[str, str]]:
        """Send, and keep the answer."""
        self._last.sent = True
        operation = f"{method.upper()} {ANY_ID.sub('{id}', urlsplit(url).path)}"
        result = "no reply"
        with telemetry.span(f"stripe {operation}"):
            try:
                body, status, answer_headers = self._inner.request(method, url, headers, post_data)
                result = str(status)
            finally:
                telemetry.count("stripe_calls", operation=operation, result=result)
            lowered = {name.lower(): value for name, value in answer_headers.items()}
            telemetry.note(
                status=status, request=lowered.get("request-id"), replayed=lowered.get("idempotent-replayed")
            )
        self._last.heard = Heard(status, lowered, _parsed(body))
        return body, status, answer_headers

    def close(self) -> None:
        """Close the other client."""
        self._inner.close()  # type: ignore[no-untyped-call]


class Gateway:
    """Stripe, for as much as a charge needs of it. Threads may share one.

    api_key: a secret or restricted key. api_base: None for Stripe's own address. timeout_seconds: how long a call may
    wait to connect and then for an answer, together. http_client: another way to reach Stripe, for tests; it brings
    its own time limits.
    """

    def __init__(
        self,
        api_key: str,
        api_base: str | None,
        timeout_seconds: float,
        http_client: stripe.HTTPClient | None = None,
    ) -> None:
        stripe.enable_telemetry = False  # The SDK has no other switch: it would time our requests and write to disk.
        self.livemode: Final = api_key.startswith(LIVE_KEYS)
        self._wire = RecordingClient(http_client or _http_client(timeout_seconds))
        client = stripe.StripeClient(
            api_key,
            base_addresses={"api": api_base.rstrip("/")} if api_base else {},
            max_network_retries=0,
            http_client=self._wire,
        )
        self.v1: Final = client.v1  # For what is asked of Stripe besides the charge itself, by way of `ask`.
        self._payment_intents = client.v1.payment_intents
        self._charges = client.v1.charges
        self.key_digest: Final = hashlib.sha256(api_key.encode()).hexdigest()  # Names the key without telling it.

    def send(self, request: Request, account: str | None) -> Answered:
        """Send a Request exactly as it is written, once.

        Raises ValueError, before anything is sent, for one that cannot be sent. Raises nothing once it may be on its
        way: what is not known then is NO_REPLY or SERVER_ERROR.
        """
        heard = self._call(self._operation(request, account))
        if heard is None:
            return Answered(idempotency_key=request.idempotency_key, seen=Seen.NO_REPLY)
        answered = heard.read(request.idempotency_key)
        intent = answered.payment_intent
        if intent is not None and request.payment_intent not in {None, intent.id}:
            return replace(answered, seen=Seen.SERVER_ERROR, payment_intent=None)  # Of another: it answers nothing.
        return answered

    def _operation(self, request: Request, account: str | None) -> Call:
        """Return the call that a Request stands for. Raises ValueError."""
        if not request.idempotency_key:
            raise ValueError("a Request without an idempotency key: the SDK would make one up")
        parameters = json.loads(request.parameters)  # In the order in which they were written down.
        options = _options(account, request.api_version, idempotency_key=request.idempotency_key)
        service, intent = self._payment_intents, request.payment_intent
        match request.operation, intent:
            case "create", None:
                return partial(service.create, parameters, options)
            case "confirm", str():
                return partial(service.confirm, intent, parameters, options)
            case "cancel", str():
                return partial(service.cancel, intent, parameters, options)
            case "refund", str():
                return partial(self.v1.refunds.create, parameters, options)
        raise ValueError(f"cannot {request.operation!r} the PaymentIntent {intent!r}")

    def fetch(
        self, payment_intent: str, account: str | None, api_version: str, *, with_charges: bool = False
    ) -> Fetched | LookFailed:
        """Read a PaymentIntent; `with_charges`: and whether a charge of it has succeeded or may yet."""
        options = _options(account, api_version)
        heard = self._call(partial(self._payment_intents.retrieve, payment_intent, options=options))
        intent = heard.read("").payment_intent if heard is not None and heard.status == 200 else None
        if intent is None or intent.id != payment_intent:
            return _look_failed(heard)
        if not with_charges:
            return Fetched(payment_intent=intent)
        charges = self._pages(self._charges.list, {"payment_intent": payment_intent}, options)
        if isinstance(charges, LookFailed):
            return charges
        refunded = (row.get("amount_refunded") for row in charges)
        return Fetched(
            payment_intent=intent,
            charge_under_way=any(row.get("status") != UNPAID for row in charges),
            amount_refunded=sum(amount for amount in refunded if isinstance(amount, int)),
            disputed=any(row.get("disputed") is True for row in charges),
        )

    def list(
        self, customer: str | None, account: str | None, since: datetime, until: datetime, api_version: str
    ) -> Listed | LookFailed:
        """List the customer's PaymentIntents made from `since` to `until`, whole seconds; all, or it has failed.

        customer: None for everybody's. One that is gone has no list any more: the account's is read instead.
        """
        created = {"gte": math.floor(since.timestamp()), "lte": math.ceil(until.timestamp())}
        options = _options(account, api_version)
        of_whom = {} if customer is None else {"customer": customer}
        found = self._pages(self._payment_intents.list, {**of_whom, "created": created}, options)
        if (
            of_whom
            and isinstance(found, LookFailed)
            and found.error is not None
            and found.error.code == "resource_missing"
        ):
            found = self._pages(self._payment_intents.list, {"created": created}, options)
        if isinstance(found, LookFailed):
            return found
        try:
            return Listed(payment_intents=tuple(answers.read_payment_intent(row) for row in found))
        except ValueError:  # Not to be passed over: it may be the one that is looked for.
            return LookFailed(seen=Seen.SERVER_ERROR)

    def refunds(self, payment_intent: str, account: str | None, api_version: str) -> GivenBack | LookFailed:
        """Read what has become of the refunds of a PaymentIntent."""
        options = _options(account, api_version)
        rows = self._pages(self.v1.refunds.list, {"payment_intent": payment_intent}, options)
        if isinstance(rows, LookFailed):
            return rows
        return GivenBack(payment_intent=payment_intent, seen=answers.read_refunds(rows))

    # --- For reconciling ----------------------------------------------------------------------------------------------

    def platform(self) -> str | LookFailed:
        """Name the account that the API key belongs to."""
        heard = self._call(partial(self.v1.accounts.retrieve_current, options=_options(None, STRIPE_API_VERSION)))
        name = heard.body.get("id") if heard is not None and isinstance(heard.body, Mapping) else None
        if heard is None or heard.status != 200 or not isinstance(name, str):
            return _look_failed(heard)
        return name

    def recover(self, payment_intent: str, account: str | None) -> tuple[PaymentIntent, Terms] | LookFailed:
        """Read a PaymentIntent together with what was asked for when it was made."""
        options = _options(account, STRIPE_API_VERSION)
        heard = self._call(partial(self._payment_intents.retrieve, payment_intent, options=options))
        if heard is None or heard.status != 200 or not isinstance(heard.body, Mapping):
            return _look_failed(heard)
        try:
            return answers.read_payment_intent(heard.body), answers.read_terms(heard.body, account)
        except ValueError:
            return LookFailed(seen=Seen.SERVER_ERROR)

    def accounts(self) -> "Rows | LookFailed":
        """List the connected accounts."""
        return self._pages(self.v1.accounts.list, {}, _options(None, STRIPE_API_VERSION), ACCOUNT_PAGES)

    def rows(
        self, kind: "Kind", account: str | None, since: datetime, until: datetime, **more: object
    ) -> "Rows | LookFailed":
        """List what an account has of a kind, made from `since` to `until` (whole seconds); all, or it has failed."""
        listing: Callable[[Any, Any], object] = {
            Kind.PAYMENT_INTENTS: self._payment_intents.list,
            Kind.CHARGES: self._charges.list,
            Kind.REFUNDS: self.v1.refunds.list,
            Kind.EVENTS: self.v1.events.list,
        }[kind]
        created = {"gte": math.floor(since.timestamp()), "lte": math.ceil(until.timestamp())}
        asked = {"created": created, **more}
        return self._pages(listing, asked, _options(account, STRIPE_API_VERSION), RECONCILED_PAGES)

    def contact_of_customer(self, customer: str, account: str | None) -> Contact | LookFailed:
        """Read how to write to a customer."""
        options = _options(account, STRIPE_API_VERSION)
        return _contact(self._call(partial(self.v1.customers.retrieve, customer, options=options)))

    def contact_of_account(self, account: str | None) -> Contact | LookFailed:
        """Read how to write to the owner of a connected account; None: of our own."""
        options = _options(None, STRIPE_API_VERSION)
        if account is None:
            return _contact(self._call(partial(self.v1.accounts.retrieve_current, options=options)))
        heard = self._call(partial(self.v1.accounts.retrieve, account, options=options))
        return Contact() if heard is not None and heard.status == 403 else _contact(heard)  # Not ours to read, or gone.

    def ask(
        self,
        operation: Callable[..., object],
        account: str | None,
        api_version: str,
        *,
        idempotency_key: str | None = None,
    ) -> Heard | None:
        """Call an operation of the SDK's that moves no money. None: nothing came back."""
        options = _options(account, api_version, idempotency_key=idempotency_key)
        return self._call(partial(operation, options=options))

    def _pages(
        self,
        listing: Callable[[Any, Any], object],
        parameters: Mapping[str, object],
        options: stripe.RequestOptions,
        pages: int | None = None,
    ) -> "Rows | LookFailed":
        """Read a list from its newest object to its oldest, page after page: all of it, or it has failed."""
        rows: Rows = ()
        pages = pages or PAGES_LIMIT
        for _ in range(pages):
            cursor = {"starting_after": rows[-1]["id"]} if rows else {}
            asked = {**parameters, "limit": PAGE_SIZE, **cursor}
            heard = self._call(partial(listing, asked, options))
            page = _page(heard)
            if heard is None or page is None:
                return _look_failed(heard)
            rows += page.rows
            if not page.has_more:
                return rows
        return LookFailed(
            seen=Seen.SERVER_ERROR, error=Failure(type=TOO_MANY, message=f"more than {pages} pages to list")
        )

    def _call(self, call: Call) -> Heard | None:
        """Make one call, and return what was heard. None: it was sent, or may have been, and nothing came back."""
        self._wire.forget()
        try:
            call()
        except Exception as error:
            if not self._wire.sent:
                raise
            if self._wire.heard is None:
                log.warning("no reply from Stripe", reason=type(error.__cause__ or error).__name__)
        return self._wire.heard


@dataclass(frozen=True)
class _Page:
    rows: Rows
    has_more: bool


def _page(heard: Heard | None) -> _Page | None:
    """Return a page of a list; None if it is none, or one from which no next page could be asked for."""
    if heard is None or heard.status != 200 or not isinstance(heard.body, Mapping):
        return None
    rows, has_more = heard.body.get("data"), heard.body.get("has_more")
    if not isinstance(rows, list) or not isinstance(has_more, bool) or (has_more and not rows):
        return None
    if not all(isinstance(row, Mapping) and isinstance(row.get("id"), str) for row in rows):
        return None
    return _Page(tuple(rows), has_more)


def _contact(heard: Heard | None) -> Contact | LookFailed:
    """Read a customer or an account. One that is gone, or that is no longer ours to see, has no address."""
    if heard is not None and heard.status == 200 and isinstance(heard.body, Mapping):
        body = heard.body
        name = _text_at(body, "business_profile", "name") or _text_at(body, "settings", "dashboard", "display_name")
        locales = body.get("preferred_locales")
        return Contact(
            email=_text_at(body, "email"),
            name=name,
            locales=tuple(each for each in locales if isinstance(each, str)) if isinstance(locales, list) else (),
        )
    failed = _look_failed(heard)
    gone = heard is not None and (heard.status == 404 or failed.seen is Seen.MISSING_OBJECT)
    return Contact() if gone else failed


def _text_at(body: object, *path: str) -> str | None:
    """Return the text at this path of nested objects; None if there is none, or an empty one."""
    for name in path:
        body = body.get(name) if isinstance(body, Mapping) else None
    return body if isinstance(body, str) and body else None


def _look_failed(heard: Heard | None) -> LookFailed:
    if heard is None:
        return LookFailed(seen=Seen.NO_REPLY)
    if heard.status == 200:  # Something else than was asked for.
        return LookFailed(seen=Seen.SERVER_ERROR)
    answered = heard.read("")
    return LookFailed(seen=answered.seen, error=answered.error)


def _options(account: str | None, api_version: str, *, idempotency_key: str | None = None) -> stripe.RequestOptions:
    return {
        "idempotency_key": idempotency_key,
        "stripe_account": account,
        "stripe_version": api_version,
        "max_network_retries": 0,
    }


def _http_client(timeout_seconds: float) -> stripe.HTTPClient:
    """Return the SDK's client over `requests`. Its threads share a pool of connections."""
    connect = min(CONNECT_TIMEOUT_SECONDS, timeout_seconds / 2)
    return stripe.RequestsClient(timeout=(connect, timeout_seconds - connect), session=_Straight())


class _Straight(requests.Session):
    """A session that follows no redirect: that would be a second send."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002 - the name is theirs.
        """Say that there is none."""
        return None


def _parsed(body: str | bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None

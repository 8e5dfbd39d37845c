"""The portal function: the customer's page. What is owed, to whom, why it did not work, and what can be chosen.

Reached by a signed link that expires. It works without JavaScript and without cookies: a form carries a signed mark of
what its page showed, so that it works from our page only, and only for as long as what was seen there holds. A GET
chooses nothing; the two ways back from Stripe's pages carry out what was chosen there, once, however often they are
taken.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

import flask
import functions_framework
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.routing import BaseConverter, Map, Rule

from shared import answer, health, links, log, pages, wiring
from shared.charge import Act, Charge, Chosen, Status
from shared.checkout import SESSION_PARAMETER, CustomerMissing, Opened, Refused, Unreachable, take_card
from shared.deliver import Outcome, as_seen
from shared.gate import LedgerClosed
from shared.ledger import LedgerUnavailable
from shared.links import LinkExpired, LinkInvalid
from shared.pages import Page, Reader
from shared.policy import CLOSES_AS, needs_customer
from shared.wiring import Parts

BODY_LIMIT_BYTES: Final = 4096  # A form of ours has one field.

Answer = flask.Response


class _Token(BaseConverter):
    """A link's token in a path."""

    regex = r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"


ROUTES: Final = Map(
    [
        Rule("/<token:token>", methods=["GET"], endpoint="page"),
        Rule("/<token:token>/back", methods=["GET"], endpoint="back"),
        *(Rule(f"/<token:token>/{choice}", methods=["GET"], endpoint="confirm") for choice in pages.CONFIRMED),
        *(Rule(f"/<token:token>/{choice}", methods=["POST"], endpoint=choice) for choice in pages.CHOICES),
    ],
    converters={"token": _Token},
)


@functions_framework.http
@answer.contained
@health.told
def portal(request: flask.Request) -> Answer:
    """Show a charge to whoever owes it, and take what they choose."""
    parts = wiring.parts("portal")
    reader = Reader.of(request.headers.get("Accept-Language"))
    try:
        return _routed(request, parts, reader)
    except LinkExpired:
        page = pages.message(reader, "expired", 410)
    except LinkInvalid:
        page = pages.message(reader, "unknown_link", 404)
    except (LedgerUnavailable, LedgerClosed, Unreachable):
        log.warning("the customer's page is out of reach of what it shows")
        page = pages.message(reader, "unavailable", 503)
    return _answer(page, parts)


def _routed(request: flask.Request, parts: Parts, reader: Reader) -> Answer:
    try:
        endpoint, values = ROUTES.bind_to_environ(request.environ).match()
    except NotFound as error:
        raise LinkInvalid from error
    except MethodNotAllowed as error:
        refused = _answer(pages.message(reader, "unknown_link", 405), parts)
        refused.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return refused
    visit = Visit(request, parts, reader, values["token"])
    steps: Mapping[str, Callable[[], Answer]] = {
        "page": visit.show,
        "back": visit.come_back,
        "confirm": lambda: visit.confirm(request.path.rpartition("/")[2]),
        "pay": lambda: visit.choose("pay", visit.pay),
        "card": lambda: visit.choose("card", visit.give_card),
        "cash": lambda: visit.choose("cash", visit.pay_elsewhere),
        "cancel": lambda: visit.choose("cancel", visit.cancel),
    }
    return steps[endpoint]()


class Visit:
    """One request of a customer's, to the page of the charge that their link names.

    Raises LinkInvalid or LinkExpired.
    """

    def __init__(self, request: flask.Request, parts: Parts, reader: Reader, token: str) -> None:
        self._request = request
        self._parts = parts
        self._reader = reader
        self._now = parts.clock.now()
        self._name = links.read_token(parts.settings, token, self._now)
        self._url = f"{parts.settings.portal_url}/{token}"

    # --- Looking ------------------------------------------------------------------------------------------------------

    def show(self) -> Answer:
        """Show how the charge stands."""
        return self._shown(self._charge())

    def confirm(self, choice: str) -> Answer:
        """Ask once more, before what cannot be undone."""
        charge = self._charge()
        if choice not in pages.choices(charge, self._now):
            return self._shown(charge, notice="overtaken", status=409)
        return self._page(charge, f"confirm_{choice}.html", 200)

    def come_back(self) -> Answer:
        """Carry out what was chosen on Stripe's page, and show what came of it."""
        if self._request.method == "HEAD":  # Somebody only asks whether the address is good.
            return self._to_page()
        session = self._request.args.get(SESSION_PARAMETER, "")
        if session:
            return self._take(session)
        self._parts.charger.deliver(self._name, by_task=False)  # The bank has answered: it looks.
        return self._to_page()

    # --- Choosing -----------------------------------------------------------------------------------------------------

    def choose(self, choice: str, act: Callable[[Charge], Answer]) -> Answer:
        """Do what was chosen, if it was chosen on our page and still fits what that page showed."""
        charge = self._charge()
        try:
            seen = links.read_form_mark(self._parts.settings, self._field("mark"), self._now)
        except (LinkInvalid, LinkExpired):
            return self._shown(charge, notice="stale_form", status=403)
        if _chosen_before(charge, choice):
            return self._to_page()
        if choice not in pages.choices(charge, self._now) or seen != _seen(charge):
            return self._shown(charge, notice="overtaken", status=409)
        return act(charge)

    def pay(self, charge: Charge) -> Answer:
        """Try the card that the charge has, with the customer here for whatever the bank asks."""
        if charge.status is Status.ACTION_REQUIRED:
            page = self._parts.checkout.bank_page(charge)
            if page is not None:  # An attempt waits there already: no other is needed.
                return self._redirect(page)
        return self._after(self._act(charge, Chosen(act=Act.RETRY, actor="customer", return_url=f"{self._url}/back")))

    def give_card(self, charge: Charge) -> Answer:
        """Send the customer to Stripe's page for another card."""
        try:
            opened = self._opened(charge)
        except CustomerMissing:  # And a PaymentIntent is recorded, which is for them.
            return self._shown(self._charge(), status=409)
        except Refused:
            log.warning("a customer cannot give a card at Stripe", charge=charge.id)
            return _answer(pages.message(self._reader, "no_card_here", 409, back=self._url), self._parts)
        if opened.replayed and self._parts.checkout.given(charge, opened.session) is not None:
            return self._take(opened.session)  # It was given there before, and nobody came back with it.
        return self._redirect(opened.url)

    def pay_elsewhere(self, charge: Charge) -> Answer:
        """Leave the card alone, and tell the seller."""
        return self._after(self._act(charge, Chosen(act=Act.OUT_OF_BAND, actor="customer", wish=True)))

    def cancel(self, charge: Charge) -> Answer:
        """Cancel the order."""
        return self._after(self._act(charge, Chosen(act=Act.CANCEL, actor="customer")))

    def _opened(self, charge: Charge) -> Opened:
        checkout = self._parts.checkout
        try:
            return checkout.open(charge, self._url, self._now)
        except CustomerMissing as missing:
            found = self._parts.charger.customer_gone(charge.id, charge.customer, missing.error)
            if not needs_customer(found):
                raise
            return checkout.open(found, self._url, self._now)

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _take(self, session: str) -> Answer:
        back = f"{self._url}/back"
        outcome = take_card(self._parts.charger, self._parts.checkout, self._name, session, return_url=back)
        return self._to_page() if outcome is None else self._after(outcome)

    def _act(self, charge: Charge, choice: Chosen) -> Outcome:
        return as_seen(charge, _seen, lambda at: self._parts.charger.act(at.id, choice, version=at.version))

    def _after(self, outcome: Outcome) -> Answer:
        """Go on to where an act leads."""
        charge = outcome.charge
        log.info("a customer chose", charge=charge.id, status=charge.status, busy=outcome.busy, refusal=outcome.refusal)
        if outcome.busy or outcome.refusal is not None:
            return self._shown(charge, notice="in_hand" if outcome.busy else "overtaken", status=409)
        if charge.status is Status.ACTION_REQUIRED and charge.pays_elsewhere_since is None:
            try:
                page = self._parts.checkout.bank_page(charge)
            except (Unreachable, Refused):
                page = None  # Our own page has the button.
            if page is not None:
                return self._redirect(page)
        return self._to_page()

    def _charge(self) -> Charge:
        charge = self._parts.charger.read(self._name)
        if charge is None:
            raise LinkInvalid
        return charge

    def _field(self, name: str) -> str:
        if (self._request.content_length or BODY_LIMIT_BYTES) > BODY_LIMIT_BYTES:
            raise LinkInvalid
        return self._request.form.get(name, "")

    def _shown(self, charge: Charge, *, notice: str | None = None, status: int = 200) -> Answer:
        return self._page(charge, "charge.html", status, notice=notice)

    def _page(self, charge: Charge, template: str, status: int, **more: Any) -> Answer:
        page = pages.of_charge(
            self._reader,
            charge,
            template,
            status,
            now=self._now,
            url=self._url,
            seller=self._parts.checkout.seller(charge, self._now),
            mark=links.form_mark(self._parts.settings, _seen(charge), self._now),
            **more,
        )
        return _answer(page, self._parts)

    def _to_page(self) -> Answer:
        return self._redirect(self._url)

    def _redirect(self, url: str) -> Answer:
        """Redirect to Stripe's page, or back to ours: there is nowhere else to go."""
        answer = flask.Response(status=303)
        answer.headers["Location"] = url
        return _secured(answer, self._parts)


def _chosen_before(charge: Charge, choice: str) -> bool:
    """Say whether that has been done already, so that the page as it is now is the answer."""
    if choice == "cash":
        return charge.pays_elsewhere_since is not None
    canceling = charge.closing is not None and CLOSES_AS[charge.closing.kind][0] is Status.CANCELED
    return choice == "cancel" and (canceling or charge.status is Status.CANCELED)


def _seen(charge: Charge) -> str:
    """Name what a page of this charge shows: what is chosen there is chosen about that."""
    wish = charge.pays_elsewhere_since is not None
    return f"{charge.id} {charge.status} {len(charge.attempts)} {charge.closing is not None:d}{wish:d}"


def _answer(page: Page, parts: Parts) -> Answer:
    answer = flask.Response(page.html, status=page.status, content_type="text/html; charset=utf-8")
    answer.headers["Content-Language"] = page.language
    if page.status == 503:
        answer.headers["Retry-After"] = "30"
    return _secured(answer, parts)


def _secured(answer: Answer, parts: Parts) -> Answer:
    """Say what a browser may do with it: show it, and send its forms to us and on to Stripe; keep and tell nothing."""
    answer.headers["Content-Security-Policy"] = _policy(local=parts.checkout.local)
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["Referrer-Policy"] = "no-referrer"  # The address is the key to the page.
    answer.headers["Strict-Transport-Security"] = "max-age=31536000"
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["X-Robots-Tag"] = "noindex"
    answer.headers["Vary"] = "Accept-Language"
    return answer


@functools.cache
def _policy(*, local: bool) -> str:
    """Return the page's Content-Security-Policy. local: Stripe is a program on this machine."""
    stripes = "http://127.0.0.1:* http://localhost:*" if local else "https://*.stripe.com"
    return (
        f"default-src 'none'; style-src '{pages.STYLE_DIGEST}'; "
        f"form-action 'self' {stripes}; frame-ancestors 'none'; base-uri 'none'"
    )

"""The console function: the operator's page. What needs somebody, a charge in full, and what can be done about it.

Private: Cloud Run lets in whom IAM allows to invoke it, checks their ID token, and takes its signature away; so whose
it is can be read here, and is who acts. A form carries a signed mark of what its page showed, so that it works from our
page only, and only for as long as what was seen there holds. Without JavaScript and without cookies.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import flask
import functions_framework
import google.auth.jwt
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.routing import BaseConverter, Map, Rule

from shared import answer, api, desk_pages, health, links, log, wiring
from shared.api import Problem
from shared.charge import Act, Charge, Reviewed
from shared.deliver import Outcome, as_seen
from shared.desk_pages import Frame, Page
from shared.gate import LedgerClosed
from shared.ledger import LedgerUnavailable
from shared.links import LinkExpired, LinkInvalid
from shared.policy import NOTE_KEPT
from shared.settings import Settings, is_loopback
from shared.wiring import Parts

BODY_LIMIT_BYTES: Final = 16 * 1024  # A note of 1,000 characters, each of them encoded, fits.
NOTE_LIMIT: Final = NOTE_KEPT
TOKEN_HEADERS: Final = ("X-Serverless-Authorization", "Authorization")  # If both are sent, Cloud Run checks the first.
CHECKED: Final = "SIGNATURE_REMOVED_BY_GOOGLE"  # What Cloud Run puts in the place of a signature that it has checked.
NO_CHARGE: Final = "nothing"  # What a page showed that is about no charge.

Answer = flask.Response


class _Id(BaseConverter):
    """A charge's id in a path."""

    regex = "[0-9a-f]{40}"


class _Digest(BaseConverter):
    """A dead letter's name in a path."""

    regex = "[0-9a-f]{64}"


ROUTES: Final = Map(
    [
        Rule("/", methods=["GET"], endpoint="overview"),
        Rule("/find", methods=["POST"], endpoint="find"),  # What is looked for may be personal: not for request logs.
        Rule("/charges/<id:name>", methods=["GET"], endpoint="charge"),
        Rule("/charges/<id:name>/look", methods=["POST"], endpoint="look"),
        Rule("/charges/<id:name>/settle", methods=["POST"], endpoint="settle"),
        *(Rule(f"/charges/<id:name>/{act}", methods=["POST"], endpoint=act.value) for act in Act),
        Rule("/dead-letters/<digest:name>", methods=["GET"], endpoint="letter"),
        Rule("/dead-letters/<digest:name>/settle", methods=["POST"], endpoint="settle_letter"),
        Rule("/discrepancies/<name>/settle", methods=["POST"], endpoint="settle_finding"),
        Rule("/audits", methods=["GET"], endpoint="reports"),
        Rule("/audits/<name>", methods=["GET"], endpoint="report"),
    ],
    converters={"id": _Id, "digest": _Digest},
)


class NotAllowed(Exception):
    """Whoever asks is nobody we know, or asks from another page than ours."""


class NotThere(Exception):
    """There is no such thing."""


@functions_framework.http
@answer.contained
@health.told
def console(request: flask.Request) -> Answer:
    """Show an operator what needs somebody, and do what they choose."""
    parts = wiring.parts("console")
    try:
        actor = actor_of(request, parts.settings)
        _check_origin(request)
    except NotAllowed as refused:
        log.warning("the operator's page was refused to somebody", reason=str(refused))
        return _secured(flask.Response(f"{refused}\n", status=403, content_type="text/plain; charset=utf-8"))
    visit = Visit(request, parts, actor)
    try:
        return visit.answer()
    except NotThere as missing:
        page = visit.message("There is no such thing", str(missing), 404)
    except LedgerClosed as closed:
        page = visit.message("The ledger is closed", str(closed), 503)
    except LedgerUnavailable:
        log.error("the ledger is out of reach")
        detail = "It is not certain that what you chose was recorded. Look again in a minute: it is safe to repeat."
        page = visit.message("Datastore does not answer", detail, 503)
    return _answer(page)


def actor_of(request: flask.Request, settings: Settings) -> str:
    """Return who asks, by the ID token that Cloud Run has checked. Raises NotAllowed.

    On a machine of one's own, with the emulator, nobody is checked.
    """
    token = next((found for name in TOKEN_HEADERS if (found := request.headers.get(name))), "")
    if not token and settings.datastore_emulator_host is not None:
        return "operator"
    scheme, _, bearer = token.partition(" ")
    if scheme.lower() != "bearer" or not bearer.endswith(f".{CHECKED}"):
        raise NotAllowed("This page works behind IAM only: open it with `gcloud run services proxy`.")
    try:
        claims: Mapping[str, object] = google.auth.jwt.decode(bearer, verify=False)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise NotAllowed("The ID token cannot be read.") from error
    email = claims.get("email")
    if not isinstance(email, str) or not email:
        raise NotAllowed("The ID token does not say whose it is: it has no email.")
    return email[:200]


def _check_origin(request: flask.Request) -> None:
    """Raise NotAllowed for a form that another site's page sends, through the proxy on the operator's machine."""
    origin = request.headers.get("Origin")
    if request.method == "POST" and origin is not None:
        host = urlsplit(origin).hostname or ""
        if not is_loopback(host) and host != urlsplit(f"//{request.host}").hostname:
            raise NotAllowed("This form was sent from another site's page.")


class Visit:
    """One request of an operator's.

    Raises NotThere, LedgerClosed, LedgerUnavailable.
    """

    def __init__(self, request: flask.Request, parts: Parts, actor: str) -> None:
        self._request = request
        self._parts = parts
        self._actor = actor
        self._now = parts.clock.now()

    def answer(self) -> Answer:
        """Do what is asked for."""
        try:
            endpoint, values = ROUTES.bind_to_environ(self._request.environ).match()
        except NotFound as error:
            raise NotThere("There is nothing at this address.") from error
        except MethodNotAllowed as error:
            refused = _answer(self.message("That is not how this works", "Go to the page, and choose there.", 405))
            refused.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
            return refused
        if (self._request.content_length or 0) > BODY_LIMIT_BYTES:
            return _answer(self.message("That is too long", "Nothing was done.", 413))
        if endpoint in list(Act):
            return self._chosen(values["name"], partial(self._act, act=Act(endpoint)))
        steps: Mapping[str, Callable[[], Answer]] = {
            "overview": self._overview,
            "find": self._find,
            "charge": lambda: self._shown(self._charge(values["name"])),
            "look": lambda: self._chosen(values["name"], self._look),
            "settle": lambda: self._chosen(values["name"], self._settle),
            "letter": lambda: self._letter(values["name"]),
            "settle_letter": lambda: self._settled(values["name"], self._parts.letters.settle),
            "settle_finding": lambda: self._settled(values["name"], self._parts.desk.settle),
            "reports": lambda: _answer(desk_pages.reports(self._frame(), self._parts.reconciler.reports())),
            "report": lambda: self._report(values["name"]),
        }
        return steps[endpoint]()

    def message(self, title: str, detail: str, status: int) -> Page:
        """Return a page that only says something."""
        return desk_pages.message(self._frame(), title, detail, status)

    # --- Looking ------------------------------------------------------------------------------------------------------

    def _overview(self) -> Answer:
        return _answer(desk_pages.overview(self._frame(), self._parts.desk.overview()))

    def _find(self) -> Answer:
        text = self._request.form.get("text", "")
        account = self._request.form.get("account", "").strip() or None
        name = self._parts.desk.find(text, account)
        if name is None:
            where = f" on {account}" if account else ""
            raise NotThere(f"No charge has this id, PaymentIntent or Idempotency-Key{where}.")
        return _to(f"/charges/{name}")

    def _letter(self, name: str) -> Answer:
        letter = self._parts.letters.read(name)
        if letter is None:
            raise NotThere("There is no such task, or none any more.")
        return _answer(desk_pages.of_letter(self._frame(), name, letter))

    def _report(self, name: str) -> Answer:
        report = self._parts.reconciler.report(name)
        if report is None:
            raise NotThere("There is no such audit, or none any more.")
        return _answer(desk_pages.of_report(self._frame(), self._parts.reconciler.as_of_now(report)))

    # --- Choosing -----------------------------------------------------------------------------------------------------

    def _chosen(self, name: str, act: Callable[[Charge], Outcome]) -> Answer:
        """Do what was chosen, if it was chosen on our page and still fits what that page showed."""
        charge = self._charge(name)
        seen = self._mark()
        if seen is None:
            return self._shown(charge, notice="stale_form", status=403)
        if seen != _seen(charge):
            return self._shown(charge, notice="version", status=409)
        try:
            outcome = act(charge)
        except Problem as wrong:
            return self._shown(charge, wrong=wrong.detail, status=wrong.status)
        after = outcome.charge
        log.info("an operator chose", charge=name, path=self._request.path.rpartition("/")[2], refusal=outcome.refusal)
        if outcome.busy or outcome.refusal is not None:
            return self._shown(after, notice="in_hand" if outcome.busy else outcome.refusal, status=409)
        return _to(f"/charges/{name}")

    def _act(self, charge: Charge, *, act: Act) -> Outcome:
        fields = {name: value.strip() for name, value in self._request.form.items() if name != "mark" and value.strip()}
        choice = api.filled_in(act, {**fields, "actor": self._actor})
        return as_seen(charge, _seen, lambda at: self._parts.charger.act(at.id, choice, version=at.version))

    def _settle(self, charge: Charge) -> Outcome:
        review = Reviewed(actor=self._actor, note=self._note())
        return as_seen(charge, _seen, lambda at: self._parts.charger.review(at.id, review, version=at.version))

    def _look(self, charge: Charge) -> Outcome:
        outcome = self._parts.charger.deliver(charge.id, by_task=False)
        assert outcome is not None, "charges are never deleted"
        return outcome

    def _settled(self, name: str, settle: Callable[[str, str, str], object]) -> Answer:
        """Settle something that is no charge."""
        if self._mark() != NO_CHARGE:
            return _answer(self.message("Nothing was done", desk_pages.NOTICES["stale_form"], 403))
        try:
            note = self._note()
        except Problem as wrong:
            return _answer(self.message("Nothing was done", wrong.detail, wrong.status))
        if settle(name, note, self._actor) is None:
            raise NotThere("There is no such thing to settle, or none any more.")
        return _to("/")

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _charge(self, name: str) -> Charge:
        charge = self._parts.charger.read(name)
        if charge is None:
            raise NotThere("There is no such charge.")
        return charge

    def _note(self) -> str:
        """Return what was written about it. Raises Problem 400."""
        note = self._request.form.get("note", "").strip()
        if not 0 < len(note) <= NOTE_LIMIT:
            raise Problem(400, "invalid-note", f"Say what became of it, in at most {NOTE_LIMIT} characters.")
        return note

    def _mark(self) -> str | None:
        """Return what the page showed that this form was on; None: it is not ours, or was open for too long."""
        try:
            return links.read_form_mark(self._parts.settings, self._request.form.get("mark", ""), self._now)
        except (LinkInvalid, LinkExpired):
            return None

    def _frame(self) -> Frame:
        parts = self._parts
        return Frame(
            actor=self._actor,
            now=self._now,
            livemode=parts.livemode,
            mark=links.form_mark(parts.settings, NO_CHARGE, self._now),
            settings=parts.settings,
        )

    def _shown(
        self, charge: Charge, *, notice: str | None = None, wrong: str | None = None, status: int = 200
    ) -> Answer:
        settings = self._parts.settings
        page = desk_pages.of_charge(
            self._frame(),
            charge,
            mark=links.form_mark(settings, _seen(charge), self._now),
            customer_url=links.customer_url(settings, charge.id, self._now),
            status=status,
            notice=notice,
            wrong=wrong,
        )
        return _answer(page)


def _seen(charge: Charge) -> str:
    """Name what a page of this charge shows: what is chosen there is chosen about that."""
    unsettled = sum(not found.settled for found in charge.discrepancies)
    return f"console {charge.id} {charge.status} {len(charge.attempts)} {charge.closing is not None:d} {unsettled}"


def _to(path: str) -> Answer:
    answer = flask.Response(status=303)
    answer.headers["Location"] = path
    answer.autocorrect_location_header = False
    return _secured(answer)


def _answer(page: Page) -> Answer:
    return _secured(flask.Response(page.html, status=page.status, content_type="text/html; charset=utf-8"))


def _secured(answer: Answer) -> Answer:
    """Say what a browser may do with it: show it, and send its forms to us; keep it, and frame it, never."""
    answer.headers["Content-Security-Policy"] = (
        f"default-src 'none'; style-src '{desk_pages.STYLE_DIGEST}'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    answer.headers["Referrer-Policy"] = "same-origin"  # With none at all, a form's Origin would be null.
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["X-Robots-Tag"] = "noindex"
    return answer

"""The operator's page: it says what needs somebody, shows a charge in full, and does each thing once, by name."""

import base64
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

import pytest

from infra.local.stripe.faults import Fault as StripeFault
from shared import policy
from shared.charge import Act, Status, charge_id
from shared.desk_pages import NOTICES, WAITS
from shared.ledger import LedgerUnavailable
from shared.reconcile import REPORT, Finding, _written
from tests.console.console import (
    DECLINED,
    FINDING_NAME,
    NAME,
    OPERATOR,
    Console,
    disagree,
    find_at_stripe,
    mark_of,
    token,
)
from tests.portal.portal import Portal, Seen
from tests.world import KEY, Fault

CONFIRM: Final = "payment_intents.confirm"
PAGE: Final = f"/charges/{NAME}"
CHOICES: Final[Mapping[str, Mapping[str, str]]] = {  # What can be done with a charge, and what is filled in.
    "look": {},
    "retry": {},
    "payment-method": {"payment_method": "pm_card_visa"},
    "out-of-band": {"reference": "receipt 17"},
    "cancel": {"reason": "ordered by mistake"},
}


@pytest.fixture
def world() -> Console:
    """A deployment with a declined charge."""
    world = Console()
    world.create(payment_method=DECLINED, description="Order 1001: two tickets")
    return world


def unchanged(world: Console, ask: Callable[[], Any]) -> Any:
    """Ask something that must not change the charge, nor reach for the money."""
    before, moved = world.charge(), world.money_moved()
    answer = ask()
    assert (world.charge(), world.money_moved()) == (before, moved)
    return answer


# --- Who it is for ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic bWU6c2VjcmV0",
        "Bearer",
        "Bearer not.a.token",
        "Bearer e30.e30.SIGNATURE_REMOVED_BY_GOOGLE",  # No email.
        "Bearer !.!.SIGNATURE_REMOVED_BY_GOOGLE",
        token(signature="c2lnbmVk"),  # Of a service that is public by mistake: nobody has checked it.
        token(email=""),
        token(email=["me@example.com"]),
    ],
)
def test_who_did_not_come_through_iam_is_refused(world: Console, header: str, method: str) -> None:
    """403, and nothing of any charge."""
    path = PAGE if method == "GET" else f"{PAGE}/retry"
    answer = unchanged(world, lambda: world.at(method, path, {"mark": world.look().mark}, Authorization=header))
    assert answer.status == 403
    assert NAME[:12] not in answer.html


def test_the_token_that_cloud_run_checks_is_the_one_that_is_read(world: Console) -> None:
    """Of two it checks the first: the other is whatever its sender likes."""
    forged, checked = token(email="boss@example.com"), token(email="me@example.com")
    answer = world.look(Authorization=forged, X_Serverless_Authorization=checked)
    assert "You act as me@example.com" in answer.text


def test_on_a_machine_of_ones_own_nobody_is_checked(world: Console) -> None:
    """Where the emulator is."""
    settings = dataclasses.replace(world.parts.settings, datastore_emulator_host="127.0.0.1:8081")
    world.parts = dataclasses.replace(world.parts, settings=settings)
    assert "You act as operator" in world.look(Authorization="").text


@pytest.mark.parametrize("origin", ["https://evil.example.com", "http://rebound.example.com:8080", "null"])
def test_a_form_of_another_sites_page_does_nothing(world: Console, origin: str) -> None:
    """The proxy on the operator's machine lends their identity to whatever their browser sends it."""
    mark = mark_of(world.look(), f"{PAGE}/retry")
    answer = unchanged(world, lambda: world.at("POST", f"{PAGE}/retry", {"mark": mark}, Origin=origin))
    assert answer.status == 403


@pytest.mark.parametrize("origin", ["http://localhost:8080", "http://127.0.0.1:8080", "http://localhost"])
def test_a_form_of_our_own_page_works_through_the_proxy(world: Console, origin: str) -> None:
    """Its address there is the operator's own machine; without one it is the service's own."""
    mark = mark_of(world.look(), f"{PAGE}/cancel")
    form = {"mark": mark, "reason": "x"}
    answer = world.at("POST", f"{PAGE}/cancel", form, Origin=origin, Host="console-1.a.run.app")
    assert answer is not None
    assert answer.status == 303


def test_a_health_check_needs_no_identity_of_a_person(world: Console) -> None:
    """Cloud Run's own check, or a monitor's, behind IAM as well."""
    answer = world.look("/health", Authorization="")
    assert (answer.status, '"status": "ok"' in answer.html) == (200, True)


# --- What it shows ----------------------------------------------------------------------------------------------------


def test_where_all_is_well_it_says_so(world: Console) -> None:
    """A declined charge waits for its customer."""
    assert "Nothing does." in world.look("/").text


def test_everything_that_needs_somebody_is_on_the_first_page(world: Console) -> None:
    """Until it is settled."""
    disagree(world)
    find_at_stripe(world)
    world.engine.fail_next(StripeFault.UNAUTHORIZED, CONFIRM)
    world.create(key="order-2")
    world.engine.fail_next(StripeFault.DROP_BEFORE, CONFIRM, times=None)
    world.create(key="order-3")
    world.clock.sleep(timedelta(hours=2))
    letter = world.parts.letters.keep(idempotency_key="k", body=b"{}", problem="invalid-body", detail="no amount")
    page = world.look("/")

    for path in (PAGE, f"/charges/{charge_id(None, 'order-2')}", f"/charges/{charge_id(None, 'order-3')}"):
        assert f'href="{path}"' in page.html
    assert f'href="/dead-letters/{letter}"' in page.html
    assert f'action="/discrepancies/{FINDING_NAME}/settle"' in page.html
    assert "paid after canceled" in page.text
    assert "Nothing does." not in page.text


def test_a_closed_ledger_is_said_first(world: Console) -> None:
    """With what to do; what it holds can still be read, and nothing be done."""
    world.restore(world.backup())
    assert "The ledger is closed: nothing is charged." in world.look("/").text
    assert world.look().status == 200
    answer = unchanged(world, lambda: world.press(f"{PAGE}/retry"))
    assert (answer.status, "reopen" in answer.text) == (503, True)


@pytest.mark.parametrize("status", Status)
def test_every_status_is_said_in_words(status: Status) -> None:
    """Beside its name."""
    assert WAITS[status].endswith(".")


def test_a_charge_is_shown_in_full(world: Console) -> None:
    """What callers see of it, and more."""
    world.create(key="order-2", payment_method=DECLINED, metadata={"order": "2"}, retry="schedule")
    charge = world.charge("order-2")
    page = world.look(f"/charges/{charge.id}")
    (attempt,) = charge.attempts
    shown = [charge.id, "order-2", "$19.99", "retrying", charge.payment_intent, charge.terms.customer, DECLINED]
    shown += [attempt.idempotency_key, attempt.request_id, "insufficient_funds", "by schedule"]
    for each in shown:
        assert str(each) in page.text
    assert "https://dashboard.stripe.com/test/payments/" in page.html
    assert "https://console.cloud.google.com/logs/query" in page.html


def test_a_live_charge_of_a_connected_account_leads_to_that_account(world: Console) -> None:
    """In Stripe's dashboard."""
    held = world.parts.ledger.get(NAME)
    assert held is not None
    terms = dataclasses.replace(held.charge.terms, account="acct_shop")
    world.parts.ledger.update(held, dataclasses.replace(held.charge, livemode=True, terms=terms))
    assert f"https://dashboard.stripe.com/acct_shop/payments/{held.charge.payment_intent}" in world.look().html


def test_what_others_wrote_is_shown_as_text(world: Console) -> None:
    """A caller's description, key and metadata, and what a task sent."""
    evil = "<script>alert(1)</script>"
    world.create(key="<b>2</b>", payment_method=DECLINED, description=evil, metadata={"<i>": evil})
    letter = world.parts.letters.keep(idempotency_key=evil, body=evil.encode(), problem="x", detail=evil)
    for path in (f"/charges/{charge_id(None, '<b>2</b>')}", f"/dead-letters/{letter}", "/"):
        assert not re.search(r"<script|<b>|<i>", world.look(path).html)


@pytest.mark.parametrize("text", [NAME, KEY, f" {KEY} ", "pi"])
def test_a_charge_is_found(world: Console, text: str) -> None:
    """By its id, its key or its PaymentIntent; what is looked for is in no address."""
    text = str(world.charge().payment_intent) if text == "pi" else text
    answer = world.at("POST", "/find", {"text": text})
    assert answer is not None
    assert (answer.status, answer.location) == (303, PAGE)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/find"),
        ("GET", f"/charges/{'0' * 40}"),
        ("POST", f"/charges/{'0' * 40}/retry"),
        ("GET", f"/dead-letters/{'0' * 64}"),
        ("GET", "/audits/none"),
        ("GET", "/charges"),
        ("GET", "/../etc"),
    ],
)
def test_what_is_not_there_is_404(world: Console, method: str, path: str) -> None:
    """A page that says so."""
    answer = world.at(method, path, {"text": "nothing", "account": "acct_1"})
    assert answer is not None
    assert answer.status == 404
    assert "There is no such thing" in answer.text


@pytest.mark.parametrize("path", ["/", "/find", *(f"{PAGE}/{choice}" for choice in CHOICES)])
def test_another_method_is_405_and_does_nothing(world: Console, path: str) -> None:
    """A link, or a browser that fetches ahead, chooses nothing."""
    answer = unchanged(world, lambda: world.at("POST" if path == "/" else "GET", path))
    assert (answer.status, bool(answer.headers["Allow"])) == (405, True)


def test_audits_are_listed_and_shown(world: Console) -> None:
    """With what they found."""
    assert "Nothing has been audited yet." in world.look("/audits").text
    world.create(key="order-2")
    world.at_stripe("POST", "/v1/refunds", f"payment_intent={world.charge('order-2').payment_intent}&amount=700")
    world.clock.sleep(timedelta(hours=1))
    world.parts.reconciler._mark("audit", world.clock.now() - timedelta(days=1))
    report = world.parts.reconciler.audit(lambda: True)
    assert report is not None
    (link,) = re.findall(r'href="(/audits/[^"]+)"', world.look("/audits").html)
    assert f'href="{link}"' in world.look("/").html
    page = world.look(link)
    assert "refunded at stripe" in page.text
    assert f"Paid at Stripe {report.at_stripe}, of which {report.agreed} agree" in page.text


def test_an_audit_shows_what_has_been_settled_since(world: Console) -> None:
    """By a person here, or by Paidonce itself."""
    find_at_stripe(world)
    world.parts.reconciler._mark("audit", world.clock.now() - timedelta(days=1))
    report = world.parts.reconciler.audit(lambda: True)
    assert report is not None
    found = Finding(kind="account_differs", charge=NAME, payment_intent="pi_1")
    later = dataclasses.replace(report, started_at=world.clock.now() + timedelta(minutes=1), findings=(found,))
    world.parts.ledger.write(REPORT, later.name, _written(later), None)
    assert "<td>no</td></tr>" in world.look(f"/audits/{later.name}").html
    world.parts.desk.settle(FINDING_NAME, "a mistake", OPERATOR)
    assert f"<td>{policy.BY_OPERATOR}</td></tr>" in world.look(f"/audits/{later.name}").html


# --- What it does -----------------------------------------------------------------------------------------------------


def test_trying_again_charges_once_under_a_new_key_and_by_name(world: Console) -> None:
    """As the act of the API does."""
    answer = world.done(f"{PAGE}/payment-method", CHOICES["payment-method"])
    assert (answer.status, answer.location) == (303, PAGE)
    assert world.charge().status is Status.SUCCEEDED
    assert world.money_moved() == [1999]
    assert OPERATOR in {entry.actor for entry in world.charge().history}
    assert world.check() == []


def test_s7_who_takes_the_place_of_a_customer_who_is_gone_is_asked_for_and_shown() -> None:
    """Only where one can; a payment method of the one who is gone is refused."""
    world = Console()
    world.at_stripe("DELETE", f"/v1/customers/{world.customer}")
    world.create()
    assert 'name="customer"' in world.look().html
    assert world.done(f"{PAGE}/payment-method", CHOICES["payment-method"]).status == 409
    new = str(world.at_stripe("POST", "/v1/customers")["id"])
    world.done(f"{PAGE}/payment-method", {**CHOICES["payment-method"], "customer": new})
    assert world.charge().status is Status.SUCCEEDED
    assert world.money_moved() == [1999]
    assert new in world.look().text


def test_no_other_customer_is_asked_for_where_there_is_one(world: Console) -> None:
    """The card was declined, and that is all."""
    assert 'name="customer"' not in world.look().html


def test_closing_says_why_and_who(world: Console) -> None:
    """The note is kept with the wish."""
    world.done(f"{PAGE}/cancel", CHOICES["cancel"])
    closing = world.charge().closing
    assert closing is not None
    assert (closing.kind, closing.actor, closing.note) == ("cancel", OPERATOR, "ordered by mistake")
    assert world.charge().status is Status.CANCELED
    assert world.money_moved() == []


def test_paid_in_another_way_needs_a_reference(world: Console) -> None:
    """And is closed with it."""
    answer = unchanged(world, lambda: world.press(f"{PAGE}/out-of-band", {"reference": "  "}))
    assert (answer.status, "reference" in answer.text) == (400, True)
    world.done(f"{PAGE}/out-of-band", {"reference": "receipt 17"})
    assert world.charge().status is Status.PAID_OUT_OF_BAND


def test_a_payment_method_that_is_none_is_refused_with_what_is_wrong(world: Console) -> None:
    """Nothing is sent."""
    answer = unchanged(world, lambda: world.press(f"{PAGE}/payment-method", {"payment_method": "4242"}))
    assert (answer.status, "payment_method" in answer.text) == (400, True)


@pytest.mark.parametrize("field", ["actor", "wish", "act"])
def test_a_field_that_no_form_has_cannot_be_smuggled_in(world: Console, field: str) -> None:
    """Nobody acts in another's name."""
    answer = world.done(f"{PAGE}/cancel", {"reason": "x", field: "boss@example.com"})
    if field == "actor":
        assert "boss@example.com" not in str(world.charge())
    else:
        assert answer.status == 400


def test_looking_again_asks_stripe_and_closes_what_was_unknown(world: Console) -> None:
    """Without a new attempt."""
    world.engine.fail_next(StripeFault.DROP_AFTER, CONFIRM)
    world.engine.fail_next(StripeFault.DROP_BEFORE, CONFIRM, nth=2, times=None)
    world.create(key="order-2")
    name = charge_id(None, "order-2")
    assert world.charge("order-2").status is Status.UNKNOWN
    world.engine.faults.clear()
    world.clock.sleep(timedelta(minutes=5))
    page = world.look(f"/charges/{name}")
    assert "Try again now" not in page.text
    assert world.done(f"/charges/{name}/look", page=page).status == 303
    assert world.charge("order-2").status is Status.SUCCEEDED
    assert world.money_moved("order-2") == [1999]


def test_an_act_against_what_has_happened_since_changes_nothing_and_says_so(world: Console) -> None:
    """The customer was quicker."""
    page = world.look()
    world.done(f"{PAGE}/payment-method", {"payment_method": "pm_card_visa"}, page)
    for choice, fields in CHOICES.items():
        answer = unchanged(world, lambda: world.press(f"{PAGE}/{choice}", fields, page))  # noqa: B023 - asked at once.
        assert (answer.status, NOTICES["version"] in answer.text) == (409, True)


def test_what_others_write_without_changing_what_was_seen_does_not_stop_an_act(world: Console) -> None:
    """A look of the sweep's, a notice that was told."""
    page = world.look()
    held = world.parts.ledger.get(NAME)
    assert held is not None
    world.parts.ledger.update(held, dataclasses.replace(held.charge, sweeps=1))
    assert world.done(f"{PAGE}/cancel", {"reason": "x"}, page).status == 303
    assert world.charge().status is Status.CANCELED


@pytest.mark.parametrize("choice", [*CHOICES, "settle"])
@pytest.mark.parametrize(
    "mark", ["", "made up", "of another page", "of another charge", "of yesterday", "a customer's"]
)
def test_a_form_that_is_not_of_this_charges_page_does_nothing(world: Console, choice: str, mark: str) -> None:
    """Another site can have an operator's browser post here."""
    world.create(key="order-2", payment_method=DECLINED)
    other = world.look(f"/charges/{charge_id(None, 'order-2')}")
    marks = {
        "": "",
        "made up": "a.b.c",
        "of another page": mark_of_search(world),
        "of another charge": other.mark,
        "of yesterday": world.look().mark,
        "a customer's": Portal.look(_as_customer(world)).mark,
    }
    if mark == "of yesterday":
        world.clock.sleep(timedelta(hours=13))
    form = {"mark": marks[mark], "note": "x", **CHOICES.get(choice, {})}
    answer = unchanged(world, lambda: world.at("POST", f"{PAGE}/{choice}", form))
    assert answer.status in {403, 409}
    assert "Nothing was done" in answer.text


def mark_of_search(world: Console) -> str:
    """Return the mark of a form that is about no charge."""
    find_at_stripe(world)
    return mark_of(world.look("/"), f"/discrepancies/{FINDING_NAME}/settle")


def _as_customer(world: Console) -> Portal:
    customer = Portal()
    customer.create(payment_method=DECLINED)
    customer.parts = dataclasses.replace(customer.parts, settings=world.parts.settings)
    return customer


def test_a_charge_in_hand_is_left_alone(world: Console) -> None:
    """A delivery holds it."""
    held = world.parts.ledger.get(NAME)
    assert held is not None
    until = world.clock.now() + timedelta(minutes=1)
    world.parts.ledger.update(held, dataclasses.replace(held.charge, lease_owner="another#1", lease_until=until))
    answer = unchanged(world, lambda: world.press(f"{PAGE}/retry"))
    assert (answer.status, NOTICES["in_hand"] in answer.text) == (409, True)


def test_a_cancel_that_money_overtook_says_that_it_is_paid() -> None:
    """The lost answer was a yes."""
    world = Console()
    world.engine.fail_next(StripeFault.DROP_AFTER, CONFIRM)
    world.engine.fail_next(StripeFault.DROP_BEFORE, CONFIRM, nth=2, times=None)
    world.create()
    answer = world.done(f"{PAGE}/cancel", {"reason": "too slow"})
    assert (answer.status, NOTICES["already_paid"] in answer.text) == (409, True)
    assert world.charge().status is Status.SUCCEEDED
    world.settle()
    assert world.check() == []


def test_what_nobody_explains_is_settled_with_a_note_and_by_name(world: Console) -> None:
    """It moves no money; settled twice it says so."""
    disagree(world)
    page = world.look()
    assert unchanged(world, lambda: world.press(f"{PAGE}/settle", {"note": " "}, page)).status == 400
    assert unchanged(world, lambda: world.press(f"{PAGE}/settle", {"note": "x" * 1001}, page)).status == 400
    sent = len(world.stripe_asked)
    assert world.done(f"{PAGE}/settle", {"note": "refunded by hand"}, page).status == 303
    (found,) = world.charge().discrepancies
    assert (found.settled, found.note) == (policy.BY_OPERATOR, "refunded by hand")
    assert len(world.stripe_asked) == sent
    assert "refunded by hand" in world.look().text
    assert unchanged(world, lambda: world.press(f"{PAGE}/settle", {"note": "again"}, page)).status == 409
    assert "Nothing does." in world.look("/").text


def test_a_task_that_can_never_work_is_shown_and_settled(world: Console) -> None:
    """What was sent is erased then."""
    name = world.parts.letters.keep(idempotency_key="k", body=b'{"amount": "x"}', problem="bad", detail="no amount")
    path = f"/dead-letters/{name}"
    page = world.look(path)
    assert '{"amount": "x"}' in page.text
    assert world.done(f"{path}/settle", {"note": "the shop sends it anew"}, page).location == "/"
    page = world.look(path)
    assert '{"amount": "x"}' not in page.text
    assert f"by {OPERATOR}: the shop sends it anew" in page.text


def test_what_an_audit_found_is_settled_on_the_first_page(world: Console) -> None:
    """With a note; and only from our page."""
    find_at_stripe(world)
    path = f"/discrepancies/{FINDING_NAME}/settle"
    page = world.look("/")
    for form, status in (({"note": "x"}, 403), ({"note": "", "mark": page.mark}, 400)):
        answer = world.at("POST", path, form)
        assert answer is not None
        assert answer.status == status
    assert f'action="{path}"' in world.look("/").html
    assert world.done(path, {"note": "a mistake"}, page).status == 303
    assert f'action="{path}"' not in world.look("/").html
    assert world.done(path.replace("pi_1", "pi_2"), {"note": "x"}, page).status == 403  # It has no form on that page.


def test_a_form_that_is_far_too_large_is_not_read(world: Console) -> None:
    """Ours have one line."""
    answer = unchanged(world, lambda: world.press(f"{PAGE}/cancel", {"reason": "x" * 20_000}))
    assert answer.status == 413


def test_a_ledger_that_does_not_answer_is_a_page_that_promises_nothing(
    world: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503."""

    def lost(*_: object, **__: object) -> None:
        raise LedgerUnavailable

    mark = world.look().mark
    monkeypatch.setattr(world.parts.charger, "act", lost)
    answer = world.at("POST", f"{PAGE}/retry", {"mark": mark})
    assert answer is not None
    assert (answer.status, "not certain" in answer.text) == (503, True)


# --- Whatever dies ----------------------------------------------------------------------------------------------------


def schedules() -> Iterator[tuple[str, int, Fault]]:
    """Name every call of every choice, and every way of dying there."""
    for choice in CHOICES:
        world, page = deployed()
        before = len(world.services)
        world.press(f"{PAGE}/{choice}", CHOICES[choice], page)
        for at in range(len(world.services) - before):
            for fault in (Fault.DIE_BEFORE, Fault.DIE_AFTER, Fault.LOSE_REPLY):
                yield choice, at, fault


def deployed() -> tuple[Console, Seen]:
    """Return a deployment with a declined charge, and the operator's page of it, open."""
    world = Console()
    world.create(payment_method=DECLINED)
    return world, world.look()


ENDS: Final = {"payment-method": Status.SUCCEEDED, "out-of-band": Status.PAID_OUT_OF_BAND, "cancel": Status.CANCELED}


@pytest.mark.parametrize(("choice", "at", "fault"), list(schedules()))
def test_an_act_that_died_half_way_is_finished_or_can_be_done_again(choice: str, at: int, fault: Fault) -> None:
    """First the webhooks, the tasks and the sweep; then the operator, who looks again and presses again."""
    world, page = deployed()
    world.plan = {len(world.services) + at: fault}
    world.press(f"{PAGE}/{choice}", CHOICES[choice], page)
    world.plan = {}
    world.settle()
    assert world.check() == []
    if choice in ENDS and world.charge().status is not ENDS[choice]:
        world.done(f"{PAGE}/{choice}", CHOICES[choice])
        world.settle()
    assert world.charge().status is ENDS.get(choice, Status.DECLINED)
    assert world.money_moved() == ([1999] if choice == "payment-method" else [])
    assert world.check() == []


# --- What a browser may do with it ------------------------------------------------------------------------------------


def every_answer(world: Console) -> list[Seen]:
    """Return an answer of each kind."""
    page = world.look()
    paths = ["/", PAGE, "/audits", "/nowhere", f"{PAGE}/retry"]
    asked = [
        *(world.at("GET", path) for path in paths),
        world.at("POST", f"{PAGE}/retry", {"mark": ""}),
        world.at("GET", "/", Authorization=""),
        world.press(f"{PAGE}/cancel", {"reason": "x"}, page),
        world.press(f"{PAGE}/cancel", {"reason": "x"}, page),
    ]
    return [answer for answer in asked if answer is not None]


def test_every_answer_tells_the_browser_to_keep_nothing_and_frame_nothing(world: Console) -> None:
    """Pages, redirects and errors alike."""
    answers = every_answer(world)
    assert {answer.status for answer in answers} == {200, 303, 403, 404, 405, 409}
    for answer in answers:
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        for part in ("default-src 'none'", "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
            assert part in answer.headers["Content-Security-Policy"]
        assert "Set-Cookie" not in answer.headers


def test_the_only_style_is_the_one_that_the_policy_names(world: Console) -> None:
    """And there is no script, no picture, no font, nothing from elsewhere."""
    for answer in every_answer(world):
        if not answer.html.startswith("\n<!doctype") and "<html" not in answer.html:
            continue
        (style,) = re.findall(r"<style>(.*?)</style>", answer.html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert f"style-src 'sha256-{digest}';" in answer.headers["Content-Security-Policy"]
        assert not re.search(r"<script|<img|<link|<iframe|\sstyle=|\son\w+=|src=|url\(|@import", answer.html)


def test_nothing_personal_of_it_reaches_a_log(world: Console, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither who acts, nor what they wrote, nor what they looked for."""
    capsys.readouterr()
    world.at("POST", "/find", {"text": "jenny-rosen-order"})
    world.done(f"{PAGE}/cancel", {"reason": "Jenny Rosen called"})
    logged = capsys.readouterr().out
    assert "an operator chose" in logged
    assert "enny" not in logged
    assert OPERATOR not in logged


def test_every_act_of_the_policy_can_be_chosen_here() -> None:
    """Whoever adds one adds it to the page."""
    assert {act.value for act in Act} <= set(CHOICES)

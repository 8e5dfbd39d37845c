"""The customer's page: it says how the charge stands, offers what fits, and does each thing once."""

import base64
import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import pytest

from infra.local.stripe.faults import Fault
from shared import charge as charges
from shared import links, pages, policy
from shared.charge import CancelReason, Party, Status
from shared.checkout import Checkout
from shared.gateway import Gateway
from shared.ledger import LedgerUnavailable
from tests.portal.portal import Portal, Seen, declined
from tests.portal.states import CONFIRM, PAGES, STATES
from tests.script import DAY, START, Script, answered, tried_again_after_a_burnt_key
from tests.world import KEY

ASKS: Final = "pm_card_authenticationRequired"
ALL_FOUR: Final = ["pay", "card", "cash", "cancel"]

# fmt: off
EXPECTED: Final = {
    # state              the heading                                what can be chosen, the advice first
    "declined":          ("The payment did not go through",          ALL_FOUR),
    "hidden_reason":     ("The payment did not go through",          ALL_FOUR),
    "another_card":      ("Another card is needed",                  ["card", "cash", "cancel"]),
    "authenticate":      ("Your bank asks whether it is you",        ALL_FOUR),
    "asked_of_the_bank": ("Your bank asks whether it is you",        ALL_FOUR),
    "retrying":          ("The payment has not gone through yet",    ALL_FOUR),
    "unknown":           ("We do not know yet whether this is paid", ["cancel"]),
    "processing":        ("Your bank is working on it",              ["cancel"]),
    "paid":              ("Paid. Thank you.",                        []),
    "settled":           ("Settled. Thank you.",                     []),
    "canceled":          ("Canceled",                                []),
    "expired":           ("This payment has expired",                []),
    "closing":           ("This is being canceled",                  []),
    "elsewhere":         ("You want to pay another way",             ["pay", "card", "cancel"]),
    "gone":              ("Your saved card can no longer be used",   ["card", "cash", "cancel"]),
    "no_card":           ("This can no longer be paid by card",      ["cash", "cancel"]),
    "blocked":           ("Something has to be put right first",     ["cancel"]),
}
# fmt: on


def in_state(state: str) -> Portal:
    """Return a world whose charge has got there."""
    world = Portal()
    STATES[state](world)
    return world


def shown(script: Script, template: str = "charge.html") -> Seen:
    """Return the page of a charge that only a script leads to."""
    page = pages.of_charge(
        pages.Reader("en"),
        script.charge,
        template,
        200,
        now=script.now,
        url="https://pay.example.com/token",
        mark="",
        seller=None,
    )
    return Seen(status=200, headers={}, html=page.html)


def unchanged(world: Portal, ask: Callable[[], Any]) -> Any:
    """Ask something that must not change the charge, nor reach for the money."""
    before, moved = world.charge(), world.money_moved()
    answer = ask()
    assert (world.charge(), world.money_moved()) == (before, moved)
    return answer


# --- What the page says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
def test_the_page_says_how_the_charge_stands_and_offers_what_fits(state: str) -> None:
    """What is owed, to whom, and the choices that are open; a look changes nothing."""
    world = in_state(state)
    page = unchanged(world, world.look)
    assert page.status == 200
    assert (page.headline, page.choices) == EXPECTED[state]
    assert "$19.99" in page.text
    assert "Test business" in page.text


@pytest.mark.parametrize("status", Status)
def test_every_status_has_a_page(status: Status) -> None:
    """None is forgotten when one is added."""
    assert pages.FACES[status] in pages.OFFERED


@pytest.mark.parametrize("state", ["unknown", "processing", "closing"])
def test_nothing_is_called_failed_and_nothing_can_be_paid_while_money_may_move(state: str) -> None:
    """Promise 3, in words a person understands."""
    page = in_state(state).look()
    assert not re.search(r"fail|declin|not go through|was not charged|nothing was charged", page.text, re.IGNORECASE)
    assert not {"pay", "card", "cash"} & set(page.choices)
    assert "Look again" in page.text


def test_a_customer_whom_the_bank_asks_for_while_an_earlier_try_is_in_doubt_is_not_led_to_pay_twice() -> None:
    """Its key is burnt and may still charge: no word of nothing paid, and no cash. Once it is a day old: both."""
    script = tried_again_after_a_burnt_key()
    asks = charges.Failure(type="card_error", code="authentication_required")
    script.answer(charges.Seen.AUTHENTICATION_REQUIRED, error=asks)
    page = shown(script)
    assert (page.headline, page.choices) == ("Your bank asks whether it is you", ["pay", "card", "cancel"])
    assert "not been paid" not in page.text
    assert "You will not be charged twice" in page.text
    assert "If your bank has paid already" in shown(script, "confirm_cancel.html").text
    script.now += DAY
    page = shown(script)
    assert page.choices == ALL_FOUR
    assert "It has not been paid yet" in page.text
    assert "If your bank has paid already" not in shown(script, "confirm_cancel.html").text


@pytest.mark.parametrize("tried", [1, policy.ATTEMPTS_LIMIT], ids=["once", "for the last time"])
def test_a_card_that_is_gone_while_an_earlier_try_is_in_doubt_is_not_told_as_nothing_charged(tried: int) -> None:
    """What was sent before the ledger was restored may have charged."""
    gone = charges.Failure(type="invalid_request_error", code="resource_missing", param="payment_method")
    script = answered(charges.Seen.MISSING_OBJECT, error=gone)
    attempts = script.charge.attempts * tried
    restored = dataclasses.replace(script.charge, attempts=attempts, restored_at=script.now)
    assert pages.face(restored, script.now) == "blocked"
    assert pages.choices(restored, script.now) == ("cancel",)
    later = pages.face(restored, script.now + DAY)
    assert later == ("gone" if tried == 1 else "exhausted")


def test_an_account_that_is_gone_while_the_card_may_be_charged_is_not_told_as_nothing_charged() -> None:
    """The confirm is out, and the look finds no account any more."""
    script = answered(charges.Seen.SERVER_ERROR)
    script.look_failed(charges.Seen.MISSING_OBJECT)
    assert policy.waiting_on(script.charge) is Party.ACCOUNT_OWNER
    assert pages.face(script.charge, script.now) == "blocked"
    assert pages.choices(script.charge, script.now) == ("cancel",)


@pytest.mark.parametrize("code", ["account_invalid", "resource_missing"])
def test_an_account_that_is_gone_asks_the_customer_for_no_card(code: str) -> None:
    """None helps: it is not theirs to mend."""
    param = "on_behalf_of" if code == "resource_missing" else None
    script = Script(on_behalf_of="acct_gone")
    error = charges.Failure(type="invalid_request_error", code=code, param=param)
    script.reply(charges.Seen.MISSING_OBJECT, error=error)
    assert policy.waiting_on(script.charge) is Party.ACCOUNT_OWNER
    assert (pages.face(script.charge, script.now), pages.choices(script.charge, script.now)) == ("blocked", ("cancel",))


def test_a_charge_without_a_card_asks_for_one_and_says_who_pays_elsewhere() -> None:
    """It was recovered from Stripe, which had none."""
    charge, now = dataclasses.replace(answered(charges.Seen.DECLINED).charge, payment_method=""), START
    assert (pages.face(charge, now), pages.choices(charge, now)) == ("another_card", ("card", "cash", "cancel"))
    elsewhere = dataclasses.replace(charge, pays_elsewhere_since=charge.created_at)
    assert (pages.face(elsewhere, now), pages.choices(elsewhere, now)) == ("elsewhere", ("card", "cancel"))


def test_the_reason_is_told_in_words_that_a_person_understands() -> None:
    """And never as a code."""
    page = in_state("declined").look()
    assert "There was not enough money on the account." in page.text
    assert "_" not in page.text


def test_a_reason_that_must_stay_hidden_is_told_like_any_other() -> None:
    """Whoever holds a lost card must not learn that it is known to be lost."""
    texts = set()
    for card in ("pm_card_chargeDeclinedLostCard", "pm_card_radarBlock", "pm_card_chargeDeclined"):
        world = Portal()
        declined(world, card)
        page = world.look()
        texts.add((page.headline, page.text, tuple(page.choices)))
        assert not re.search(r"lost|stolen|fraud|block", page.text, re.IGNORECASE)
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("language", "currency", "shown"),
    [
        ("en-US,en;q=0.9", "eur", "€19.99"),
        ("de-DE", "eur", "19,99\xa0€"),
        ("fr", "usd", "$19.99"),
        ("", "jpy", "¥1,999"),
    ],
)
def test_language_and_amount_follow_the_browser(language: str, currency: str, shown: str) -> None:
    """By Accept-Language; English for whoever reads none of ours."""
    world = Portal()
    declined(world, currency=currency)
    page = world.look(Accept_Language=language)
    assert shown in page.html
    expected = "de" if language.startswith("de") else "en"
    assert f'<html lang="{expected}">' in page.html
    assert page.headers["Content-Language"] == expected
    assert ("Nichts" in page.text or "nicht" in page.text) == (expected == "de")


def test_a_test_says_that_it_is_one() -> None:
    """And a payment with real money does not."""
    world = in_state("declined")
    assert "no real money" in world.look().text
    held = world.parts.ledger.get(world.charge().id)
    assert held is not None
    world.parts.ledger.update(held, dataclasses.replace(held.charge, livemode=True))
    assert "no real money" not in world.look().text


def test_a_description_is_shown_as_text() -> None:
    """Whatever the caller wrote into it."""
    world = Portal()
    declined(world, description="<script>alert(1)</script> & 'more'")
    page = world.look()
    assert "<script" not in page.html
    assert "<script>alert(1)</script> & 'more'" in page.text


def test_the_definite_no_has_a_page_without_an_amount() -> None:
    """Canceled before anything was known of it."""
    world = Portal()
    world.post("/cancel", {}, key=KEY)
    page = world.look()
    assert (page.headline, page.choices) == ("Canceled", [])
    assert "Amount" not in page.text


def test_a_charge_that_stripe_canceled_says_where_to_go_on() -> None:
    """Nobody chose that."""
    world = Portal()
    charge = declined(world)
    world.at_stripe("POST", f"/v1/payment_intents/{charge.payment_intent}/cancel")
    world.settle()
    assert world.charge().cancel_reason is CancelReason.BY_STRIPE
    assert "please ask the seller" in world.look().text


def test_a_seller_whose_name_stripe_does_not_tell_has_none_on_the_page() -> None:
    """And Stripe is not asked again at each look."""
    world = in_state("declined")
    world.engine.fail_next(Fault.DROP_BEFORE, "accounts.*", times=1)
    for _ in range(2):
        assert "To" not in world.look().text.split()
    world.clock.sleep(timedelta(minutes=2))
    assert "Test business" in world.look().text
    asked = len(world.services)
    world.look()
    assert world.services[asked:] == ["store"]


def test_the_page_names_the_seller_that_the_mail_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The account on whose behalf it is charged: its name is on the card's statement."""
    world = in_state("declined")
    charge = world.charge()
    terms = dataclasses.replace(charge.terms, account="acct_platform", on_behalf_of="acct_seller")
    asked = []
    monkeypatch.setattr(Gateway, "ask", lambda _gateway, _operation, account, *_more: asked.append(account))
    world.parts.checkout.seller(dataclasses.replace(charge, terms=terms), world.clock.now())
    assert asked == [terms.seller] == ["acct_seller"]


def test_when_it_is_tried_again_is_told() -> None:
    """So that who does nothing knows what happens."""
    world = in_state("retrying")
    assert "try again by ourselves in 1 minute" in world.look().text
    world.clock.sleep(timedelta(minutes=2))
    assert "about to try again" in world.look().text


# --- Links ------------------------------------------------------------------------------------------------------------


def test_an_expired_link_says_so_and_shows_nothing_of_the_charge() -> None:
    """Not the amount either."""
    world = in_state("declined")
    url = world.url()
    world.clock.sleep(timedelta(days=31))
    for method, suffix in (("GET", ""), ("GET", "/cancel"), ("POST", "/pay"), ("POST", "/cancel"), ("GET", "/back")):
        page = unchanged(world, functools.partial(world.at, method, url + suffix))
        assert page.status == 410
        assert page.headline == "This link has expired"
        assert "19.99" not in page.text


@pytest.mark.parametrize(
    "path", ["/", "/index.html", "/a.b.c", "/a.b.c/cancel", "/{token}/", "/{token}x", "/{token}/nothing"]
)
def test_what_is_no_link_leads_nowhere(path: str) -> None:
    """404, and a page that says what may have happened."""
    world = in_state("declined")
    token = world.url().rpartition("/")[2]
    page = unchanged(world, lambda: world.at("GET", path.replace("{token}", token)))
    assert (page.status, page.headline) == (404, "This link does not work")


def test_a_link_to_a_charge_that_is_not_there_leads_nowhere() -> None:
    """Signed by us, for an id that nothing has."""
    world = in_state("declined")
    url = links.customer_url(world.parts.settings, "0" * 40, world.clock.now())
    assert url is not None
    page = world.at("GET", url)
    assert page is not None
    assert page.status == 404


@pytest.mark.parametrize(
    ("method", "suffix", "allowed"),
    [
        ("POST", "", "GET, HEAD, OPTIONS"),
        ("GET", "/pay", "OPTIONS, POST"),
        ("DELETE", "/cancel", "GET, HEAD, OPTIONS, POST"),
    ],
)
def test_other_methods_are_refused_and_do_nothing(method: str, suffix: str, allowed: str) -> None:
    """405, with Allow."""
    world = in_state("declined")
    page = unchanged(world, lambda: world.at(method, world.url() + suffix))
    assert page.status == 405
    assert set(page.headers["Allow"].split(", ")) <= set(allowed.split(", "))


@pytest.mark.parametrize("suffix", ["", "/cancel", "/cash", "/back", "/back?session=cs_test_1"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_look_changes_nothing_however_often(method: str, suffix: str) -> None:
    """Whoever fetches links before a person does: mail scanners, previews."""
    world = in_state("declined")
    for _ in range(3):
        page = unchanged(world, lambda: world.at(method, world.url() + suffix))
        assert page.status in {200, 303}
        assert method == "GET" or page.html == ""


# --- What a browser is told -------------------------------------------------------------------------------------------


def _every_answer(world: Portal) -> list[Seen]:
    page = world.look()
    answers = [
        page,
        world.look("/cancel"),
        world.look("/cash"),
        world.at("GET", "/nothing"),
        world.at("POST", world.url()),
        world.at("POST", world.url() + "/pay"),
        world.pressed("card"),
        world.pressed("cash"),
        world.pressed("cash", page),
        world.pressed("cancel"),
        world.pressed("pay", page),
    ]
    url = world.url()
    world.clock.sleep(timedelta(days=31))
    answers.append(world.at("GET", url))
    return [answer for answer in answers if answer is not None]


def test_every_answer_tells_the_browser_to_keep_and_tell_nothing() -> None:
    """Pages, redirects and errors alike."""
    answers = _every_answer(in_state("declined"))
    assert {answer.status for answer in answers} == {200, 303, 403, 404, 405, 409, 410}
    for answer in answers:
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Strict-Transport-Security"].startswith("max-age=31536000")
        directives = dict(each.strip().split(" ", 1) for each in answer.headers["Content-Security-Policy"].split(";"))
        assert directives.keys() == {"default-src", "style-src", "form-action", "frame-ancestors", "base-uri"}
        assert directives["default-src"] == directives["frame-ancestors"] == directives["base-uri"] == "'none'"
        assert "Set-Cookie" not in answer.headers


def test_the_only_style_is_the_one_that_the_policy_names() -> None:
    """And there is no script, no picture, no font, nothing from elsewhere."""
    for answer in _every_answer(in_state("declined")):
        if answer.status == 303:
            continue
        (style,) = re.findall(r"<style>(.*?)</style>", answer.html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert f"style-src 'sha256-{digest}';" in answer.headers["Content-Security-Policy"]
        assert not re.search(r"<script|<img|<link|<iframe|\sstyle=|\son\w+=|src=|url\(|@import", answer.html)


def test_forms_lead_to_us_and_to_stripe_only() -> None:
    """On this machine to the double; in production to nothing but Stripe, by https."""
    world = in_state("declined")
    world.parts = dataclasses.replace(world.parts, checkout=Checkout(world.parts.checkout._gateway, None))
    assert "form-action 'self' https://*.stripe.com;" in world.look().headers["Content-Security-Policy"]


def test_no_link_and_no_secret_reaches_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the token, nor what Stripe appends on the way back."""
    world = in_state("declined")
    world.at("GET", world.url() + "/back?payment_intent=pi_1&payment_intent_client_secret=pi_1_secret_abc")
    world.new_card()
    logged = capsys.readouterr().out
    assert "a customer chose" in logged
    assert world.url().rpartition("/")[2] not in logged
    assert "secret_abc" not in logged


# --- Forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", pages.CHOICES)
@pytest.mark.parametrize("mark", ["", "made up", "of another charge", "of yesterday"])
def test_a_form_that_is_not_from_our_page_does_nothing(choice: str, mark: str) -> None:
    """Another site can have a customer's browser post here, even to an address that it has learned."""
    world = in_state("declined")
    marks = {"": "", "made up": "a.b.c", "of yesterday": world.look().mark, "of another charge": ""}
    if mark == "of another charge":
        other = Portal()
        other.create(key="order-2", payment_method="pm_card_chargeDeclined")
        marks[mark] = other.at("GET", other.url(other.charge("order-2"))).mark  # type: ignore[union-attr]
    if mark == "of yesterday":
        world.clock.sleep(timedelta(hours=13))
    page = unchanged(world, lambda: world.at("POST", f"{world.url()}/{choice}", {"mark": marks[mark]}))
    assert page.status == (409 if mark == "of another charge" else 403)
    assert page.choices == ALL_FOUR  # On the page as it stands, to choose again.
    assert "nothing" in page.text


def test_a_form_that_is_far_too_large_is_not_read() -> None:
    """Ours have one short field."""
    world = in_state("declined")
    page = unchanged(world, lambda: world.at("POST", f"{world.url()}/pay", {"mark": "x" * 100_000}))
    assert page.status == 403


def test_pressed_twice_is_done_once() -> None:
    """The second press is about a page that has been overtaken; the customer sees how it stands."""
    world = in_state("declined")
    page = world.look()
    assert world.pressed("pay", page).status == 303
    again = unchanged(world, lambda: world.pressed("pay", page))
    assert again.status == 409
    assert again.headline == "The payment did not go through"
    assert "nothing more was done" in again.text
    assert len(world.charge().attempts) == 2


def test_two_presses_at_the_same_moment_make_one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read the charge as it was; one of them finds that it has moved on."""
    world = in_state("declined")
    page, before = world.look(), world.charge()
    world.pressed("pay", page)
    monkeypatch.setattr(world.parts.charger, "read", lambda _name: before)
    again = world.pressed("pay", page)
    assert again.status == 409
    assert len(world.charge().attempts) == 2


def test_what_others_write_without_changing_what_was_seen_does_not_stop_a_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A notice that was sent meanwhile, say."""
    world = in_state("declined")
    page, before = world.look(), world.charge()
    held = world.parts.ledger.get(before.id)
    assert held is not None
    world.parts.ledger.update(held, held.charge.noted(world.clock.now(), "something else"))
    monkeypatch.setattr(world.parts.charger, "read", lambda _name: before)
    world.pressed("cancel", page)
    assert world.charge().status is Status.CANCELED


def test_a_choice_while_a_delivery_has_the_charge_in_hand_says_so() -> None:
    """Nothing is done beside it."""
    world = in_state("declined")
    held = world.parts.ledger.get(world.charge().id)
    assert held is not None
    until = world.clock.now() + timedelta(seconds=60)
    world.parts.ledger.update(held, dataclasses.replace(held.charge, lease_owner="another", lease_until=until))
    page = unchanged(world, lambda: world.pressed("pay"))
    assert page.status == 409
    assert "at this very moment" in page.text
    assert "Look again" in page.text


@pytest.mark.parametrize("choice", ["cash", "cancel"])
def test_a_confirmed_choice_that_is_made_twice_is_answered_like_the_first(choice: str) -> None:
    """Back button, two tabs."""
    world = in_state("declined")
    page = world.look(f"/{choice}")
    first = world.pressed(choice, page)
    second = unchanged(world, lambda: world.pressed(choice, page))
    assert first.status == second.status == 303
    assert first.location == second.location == world.url()


@pytest.mark.parametrize("late", ["pay", "card", "cash"])
def test_a_choice_against_an_order_that_is_canceled_changes_nothing(late: str) -> None:
    """The page in the other tab is old."""
    world = in_state("declined")
    page = world.look()
    world.pressed("cancel")
    answer = unchanged(world, lambda: world.pressed(late, page))
    assert (answer.status, answer.headline) == (409, "Canceled")
    confirming = world.at("GET", world.url() + "/cash")
    assert confirming is not None
    assert (confirming.status, confirming.headline) == (409, "Canceled")


@pytest.mark.parametrize("late", ["pay", "card", "cash", "cancel"])
def test_a_choice_after_it_was_paid_shows_that_it_is_paid(late: str) -> None:
    """By the other tab, or by a retry."""
    world = in_state("declined")
    page = world.look()
    world.new_card()
    answer = unchanged(world, lambda: world.pressed(late, page))
    assert (answer.status, answer.headline) == (409, "Paid. Thank you.")
    assert world.money_moved() == [1999]


def test_a_cancel_that_comes_too_late_says_that_it_is_paid() -> None:
    """S5 against money that has moved without our knowing: that wins, and is told."""
    world = Portal()
    world.engine.fail_next(Fault.DROP_AFTER, CONFIRM)
    world.engine.fail_next(Fault.DROP_BEFORE, CONFIRM, nth=2, times=None)
    declined(world, "pm_card_visa")
    assert world.look().headline == "We do not know yet whether this is paid"
    answer = world.pressed("cancel")
    assert (answer.status, answer.headline) == (409, "Paid. Thank you.")
    assert world.money_moved() == [1999]


# --- Trying again -----------------------------------------------------------------------------------------------------


def test_s5_try_again_now_charges_the_same_card_under_a_new_key() -> None:
    """The customer is here, so the bank may ask them."""
    world = in_state("retrying")
    assert world.pressed("pay").location == world.url()
    charge = world.charge()
    assert [attempt.payment_method for attempt in charge.attempts] == ["pm_card_chargeDeclinedProcessingError"] * 2
    assert '"return_url"' in charge.attempts[1].parameters
    assert charge.history[-1].actor in {"customer", "system"}


# --- The bank asks ----------------------------------------------------------------------------------------------------


def test_a_customer_whom_the_bank_asks_goes_there_and_comes_back_paid() -> None:
    """3-D Secure, on the bank's page."""
    world = in_state("authenticate")
    bank = world.pressed("pay").location
    assert "/_double/authenticate/" in bank
    back = world.on_stripes_page(bank, answer="yes")
    answer = world.at(
        "GET", f"{back}?payment_intent=pi_1&payment_intent_client_secret=secret&redirect_status=succeeded"
    )
    assert answer is not None
    assert (answer.status, answer.location) == (303, world.url())
    assert world.look().headline == "Paid. Thank you."
    assert world.money_moved() == [1999]
    world.settle()
    assert world.check() == []


def test_a_customer_who_fails_at_the_bank_sees_that_and_can_choose_anew() -> None:
    """As often as it takes, and each time the page says what happened."""
    world = in_state("authenticate")
    for _ in range(2):
        back = world.on_stripes_page(world.pressed("pay").location, answer="no")
        world.at("GET", back)
        assert world.look().headline == "The payment did not go through"
        assert world.look().choices == ALL_FOUR
    back = world.on_stripes_page(world.pressed("pay").location, answer="yes")
    world.at("GET", back)
    assert world.look().headline == "Paid. Thank you."
    assert world.money_moved() == [1999]


def test_a_customer_who_fails_at_the_bank_after_a_lost_answer_hears_of_it_within_minutes() -> None:
    """The confirm's answer was lost and an event told of the bank's page; the same key then says that all is heard."""
    world = in_state("authenticate")
    world.engine.fail_next(Fault.DROP_AFTER, "payment_intents.confirm", times=None)
    world.pressed("pay")
    assert world.charge().status is Status.UNKNOWN
    world.deliver_webhooks()
    assert world.charge().status is Status.ACTION_REQUIRED
    began = world.clock.now()
    world.on_stripes_page(world.pressed("pay").location, answer="no")
    world.deliver_webhooks()
    assert world.charge().status is Status.UNKNOWN
    world.engine.faults.clear()
    while world.charge().status is Status.UNKNOWN:
        world.clock.sleep(timedelta(seconds=10))
        world.run_tasks()
    assert world.charge().status is Status.DECLINED
    assert world.clock.now() < began + timedelta(minutes=5)
    assert len(world.charge().attempts) == 2
    assert world.money_moved() == []
    world.settle()
    assert world.check() == []


def test_a_card_that_is_declined_after_the_bank_was_satisfied_says_so() -> None:
    """It is the customer, and there is no money."""
    world = Portal()
    declined(world, "pm_card_authenticationRequiredChargeDeclinedInsufficientFunds")
    world.at("GET", world.on_stripes_page(world.pressed("pay").location, answer="yes"))
    assert world.look().headline == "The payment did not go through"
    assert world.money_moved() == []


def test_a_customer_whose_bank_asks_again_after_they_answered_reads_that_it_declined() -> None:
    """To be sent there once more would lead them round in a circle."""
    asks = charges.Failure(type="card_error", code="authentication_required")
    script = answered(charges.Seen.AUTHENTICATION_REQUIRED, error=asks)
    assert shown(script).headline == "Your bank asks whether it is you"
    script.choose(charges.Act.RETRY, return_url="https://pay.example.com/back")
    script.reply(charges.Seen.ACTION_REQUIRED)
    script.wake()
    script.look(charges.Seen.UNCONFIRMED, last_error=asks)
    page = shown(script)
    assert (page.headline, page.choices) == ("The payment did not go through", ALL_FOUR)
    assert "Your bank asked whether it is you, and declined all the same." in page.text


def test_once_no_attempt_is_left_the_page_says_so_and_leaves_the_ways_without_a_card() -> None:
    """The customer has pressed the button twenty times, and is not left to somebody who mends something."""
    world = in_state("declined")
    for _ in range(policy.ATTEMPTS_LIMIT - 1):
        world.pressed("pay")
    page = world.look()
    assert (page.headline, page.choices) == ("No card is tried any more", ["cash", "cancel"])
    assert "There was not enough money on the account." in page.text
    world.pressed("cash")
    assert (world.look().headline, world.look().choices) == ("You want to pay another way", ["cancel"])
    assert len(world.charge().attempts) == policy.ATTEMPTS_LIMIT


def test_the_banks_page_that_is_open_already_needs_no_other_attempt() -> None:
    """The customer went away from it and comes back later."""
    world = in_state("asked_of_the_bank")
    bank = unchanged(world, lambda: world.pressed("pay")).location
    assert "/_double/authenticate/" in bank
    world.at("GET", world.on_stripes_page(bank, answer="yes"))
    assert world.money_moved() == [1999]
    assert len(world.charge().attempts) == 2


def test_an_event_tells_of_the_banks_answer_if_the_customer_never_comes_back() -> None:
    """They closed the window."""
    world = in_state("authenticate")
    world.on_stripes_page(world.pressed("pay").location, answer="yes")
    world.settle()
    assert world.look().headline == "Paid. Thank you."


@pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.ERROR_500_BEFORE, Fault.RATE_LIMITED])
def test_the_banks_page_that_cannot_be_asked_for_now_can_be_later(fault: Fault) -> None:
    """Nothing is sent instead: 503, then the way there."""
    world = in_state("asked_of_the_bank")
    page = world.look()
    world.engine.fail_next(fault, "payment_intents.retrieve")
    answer = unchanged(world, lambda: world.pressed("pay", page))
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert "/_double/authenticate/" in world.pressed("pay", page).location


def test_an_attempt_whose_bank_page_cannot_be_asked_for_leaves_the_customer_on_ours() -> None:
    """Which has the button."""
    world = in_state("authenticate")
    page = world.look()
    world.engine.fail_next(Fault.DROP_BEFORE, "payment_intents.retrieve", nth=2)
    assert world.pressed("pay", page).location == world.url()
    assert "/_double/authenticate/" in world.pressed("pay").location
    assert len(world.charge().attempts) == 2


# --- Paying elsewhere -------------------------------------------------------------------------------------------------


def test_s5_a_customer_who_pays_in_cash_still_owes_until_the_seller_says_that_it_is_paid() -> None:
    """Nobody marks their own debt as paid."""
    world = in_state("retrying")
    assert "owed until the seller" in world.look("/cash").text
    world.pressed("cash")
    charge = world.charge()
    assert charge.status is Status.DECLINED
    assert charge.history[-1].actor == "customer"
    world.settle()
    assert world.money_moved() == []
    assert len(world.charge().attempts) == 1  # What was to be tried by itself was not.
    world.post(f"/{charge.id}/out-of-band", {"reference": "till 7"})
    assert world.look().headline == "Settled. Thank you."


def test_a_customer_may_pay_by_card_after_all() -> None:
    """They had said that they pay elsewhere."""
    world = in_state("elsewhere")
    world.new_card()
    assert world.look().headline == "Paid. Thank you."


def test_cash_that_no_longer_fits_is_not_promised() -> None:
    """The charge is about to go on by itself: the page offers nothing of the kind, nor does it do it."""
    world = in_state("blocked")
    page = world.look("/cancel")
    answer = unchanged(world, lambda: world.pressed("cash", page))
    assert answer.status == 409


# --- Canceling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["declined", "another_card", "authenticate", "retrying", "elsewhere", "gone"])
def test_s4_and_s5_the_order_can_be_canceled_after_one_more_question(state: str) -> None:
    """It is final, and is Stripe's word, too."""
    world = in_state(state)
    question = unchanged(world, lambda: world.look("/cancel"))
    assert question.headline == "Cancel the order?"
    assert "cannot be undone" in question.text
    assert world.pressed("cancel", question).location == world.url()
    assert world.charge().status is Status.CANCELED
    assert world.look().headline == "Canceled"
    world.settle()
    assert world.check() == []


def test_a_cancel_while_the_outcome_is_unknown_is_a_wish_that_is_carried_out() -> None:
    """And the question says that money which has moved stays moved."""
    world = in_state("unknown")
    question = world.look("/cancel")
    assert "If your bank has paid already" in question.text
    world.pressed("cancel", question)
    world.settle()
    assert world.look().headline == "Canceled"
    assert world.money_moved() == []


# --- When something is down -------------------------------------------------------------------------------------------


def test_a_ledger_that_does_not_answer_is_a_page_that_promises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was chosen may have been recorded, or not."""
    world = in_state("declined")
    page = world.look()

    def down(*_arguments: object, **_named: object) -> None:
        raise LedgerUnavailable

    monkeypatch.setattr(world.parts.ledger, "get", down)
    for answer in (world.look(), world.pressed("pay", page)):
        assert answer.status == 503
        assert answer.headers["Retry-After"]
        assert "may or may not have been noted" in answer.text


def test_every_kind_of_page_is_listed_for_the_browsers_tests() -> None:
    """A page that is added is looked at, too."""
    assert set(pages.CONFIRMED) == {path.strip("/") for _, path in PAGES.values()}
    assert EXPECTED.keys() == STATES.keys()

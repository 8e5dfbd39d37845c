"""The customer's page in a real browser: to the end of each way, by keyboard, on a phone, without scripts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, Route, expect

from tests.portal.browser import DESKTOP, PHONE, Theme, opened, served
from tests.portal.portal import Portal, declined
from tests.portal.states import PAGES, STATES

pytestmark = pytest.mark.browser

NARROWEST: Final = (320, 640)
THEMES: Final[tuple[Theme, ...]] = ("light", "dark")
EVERY_PAGE: Final = {**{state: (state, "") for state in STATES}, **PAGES}


@contextmanager
def visited(browser: Browser, world: Portal, path: str = "", **look: Any) -> Iterator[Page]:
    """Open the customer's page; what the browser complains of in it is a failure (not: that there is no icon)."""
    with served(world), opened(browser, **look) as page:
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(world.url() + path)
        yield page
        assert [each for each in complaints if not each.startswith("Failed to load resource")] == []


def heading(page: Page) -> str:
    """Read the one heading."""
    return page.get_by_role("heading", level=1).inner_text()


# --- To the end of each way -------------------------------------------------------------------------------------------


def test_from_a_decline_over_another_card_to_paid(browser: Browser, world: Portal) -> None:
    """Our page, Stripe's page, our page."""
    declined(world)
    world.acted_at.append(world.clock.now())
    with visited(browser, world) as page:
        assert heading(page) == "The payment did not go through"
        page.get_by_role("button", name="Use another card").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Your card")
        page.get_by_role("combobox", name="Card").select_option("pm_card_mastercard")
        page.get_by_role("button", name="Save card").click()
        assert heading(page) == "Paid. Thank you."
        assert page.url == world.url()
    assert world.money_moved() == [1999]
    world.settle()
    assert world.check() == []


def test_from_the_banks_question_to_paid(browser: Browser, world: Portal) -> None:
    """3-D Secure without a script of ours; the first answer is wrong."""
    declined(world, "pm_card_authenticationRequired")
    with visited(browser, world) as page:
        assert heading(page) == "Your bank asks whether it is you"
        page.get_by_role("button", name="Confirm with your bank").click()
        page.get_by_role("button", name="Fail").click()
        assert heading(page) == "The payment did not go through"
        page.get_by_role("button", name="Try again now").click()
        page.get_by_role("button", name="Complete").click()
        assert heading(page) == "Paid. Thank you."
        assert page.url == world.url()
    assert world.money_moved() == [1999]


def test_a_card_that_the_bank_asks_about_is_one_way_without_a_stop(browser: Browser, world: Portal) -> None:
    """Stripe's page, the bank's page, ours."""
    declined(world)
    with visited(browser, world) as page:
        page.get_by_role("button", name="Use another card").click()
        page.get_by_role("combobox", name="Card").select_option("pm_card_threeDSecure2Required")
        page.get_by_role("button", name="Save card").click()
        page.get_by_role("button", name="Complete").click()
        assert heading(page) == "Paid. Thank you."
    assert world.money_moved() == [1999]


def test_back_from_stripe_without_a_card(browser: Browser, world: Portal) -> None:
    """Nothing has happened, and the page can be used as before."""
    declined(world)
    with visited(browser, world) as page:
        page.get_by_role("button", name="Use another card").click()
        page.go_back()
        assert heading(page) == "The payment did not go through"
        page.get_by_role("button", name="Try again now").click()
        assert heading(page) == "The payment did not go through"
    assert len(world.charge().attempts) == 2


def test_the_order_is_canceled_after_one_more_question(browser: Browser, world: Portal) -> None:
    """No is the other way out of it; going back in the browser afterwards shows how it stands."""
    declined(world)
    with visited(browser, world) as page:
        page.get_by_role("link", name="Cancel the order").click()
        page.get_by_role("link", name="No, go back").click()
        assert heading(page) == "The payment did not go through"
        page.get_by_role("link", name="Cancel the order").click()
        page.get_by_role("button", name="Yes, cancel the order").click()
        assert heading(page) == "Canceled"
        page.go_back()
        assert heading(page) == "Canceled"  # Nothing is kept by the browser.
    assert world.money_moved() == []


def test_paying_in_cash_is_said_and_taken_back(browser: Browser, world: Portal) -> None:
    """The debt stands in between."""
    declined(world, "pm_card_chargeDeclinedProcessingError")
    with visited(browser, world) as page:
        page.get_by_role("link", name="Pay in cash or another way").click()
        page.get_by_role("button", name="Yes, I pay another way").click()
        assert heading(page) == "You want to pay another way"
        page.get_by_role("button", name="Pay by card after all").click()
        assert heading(page) == "The payment has not gone through yet"


def test_everything_can_be_done_by_keyboard(browser: Browser, world: Portal) -> None:
    """Tab goes through the choices in their order, what has the focus shows it, Enter presses."""
    declined(world)
    with visited(browser, world) as page:
        for name in ("Try again now", "Use another card", "Pay in cash or another way", "Cancel the order"):
            page.keyboard.press("Tab")
            focused = page.locator(":focus")
            expect(focused).to_have_accessible_name(name)
            assert focused.evaluate("it => getComputedStyle(it).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        assert heading(page) == "Cancel the order?"
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        expect(page.locator(":focus")).to_have_accessible_name("Yes, cancel the order")
        page.keyboard.press("Enter")
        assert heading(page) == "Canceled"


# --- For everybody ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_PAGE)
def test_no_page_keeps_anybody_out(browser: Browser, world: Portal, name: str) -> None:
    """Axe finds nothing (names, headings, landmarks, contrast), in light and dark; narrow screens and thumbs fit."""
    state, path = EVERY_PAGE[name]
    STATES[state](world)
    for language in ("en-US", "de-DE"):
        with visited(browser, world, path, size=NARROWEST, language=language, javascript=True) as page:
            for theme in THEMES:
                page.emulate_media(color_scheme=theme)
                found = Axe().run(page)  # A script itself: the only one that ever runs here.
                assert found.response["violations"] == [], found.generate_report()
                passed = {each["id"] for each in found.response["passes"]}
                assert passed >= {"color-contrast", "html-has-lang", "document-title", "landmark-one-main"}
            assert page.evaluate("document.documentElement.scrollWidth") <= NARROWEST[0]
            for pressed in page.locator("a, button").all():
                box = pressed.bounding_box()
                assert box is not None
                assert box["height"] >= 44


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_the_advice_is_seen_without_scrolling(browser: Browser, world: Portal, size: tuple[int, int]) -> None:
    """The amount, what happened, and what to do about it."""
    STATES["declined"](world)
    with visited(browser, world, size=size) as page:
        for seen in (page.locator(".amount"), page.get_by_role("heading", level=1), page.locator(".primary")):
            box = seen.bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= size[1]


def test_the_style_that_the_page_brings_is_in_force(browser: Browser, world: Portal) -> None:
    """The policy's digest is the style's: a browser that enforces it applies the style, and loads nothing else."""
    declined(world)
    with served(world), opened(browser) as page:
        loaded: list[str] = []
        page.on("request", lambda request: loaded.append(request.url))
        page.goto(world.url())
        assert page.locator(".amount").evaluate("it => getComputedStyle(it).fontSize") == "40px"
        assert [url for url in loaded if not url.endswith("/favicon.ico")] == [world.url()]


def test_a_style_of_anybody_elses_is_not(browser: Browser, world: Portal) -> None:
    """Nor would be a script: what is not named by the policy has no effect."""
    declined(world)
    with served(world), opened(browser) as page:
        page.route(world.url(), _with_a_style)
        page.goto(world.url())
        assert "font-size:7px" in page.content()
        assert page.locator(".amount").evaluate("it => getComputedStyle(it).fontSize") == "40px"


def _with_a_style(route: Route) -> None:
    answer = route.fetch()
    body = answer.text().replace("</head>", "<style>.amount{font-size:7px}</style></head>")
    route.fulfill(response=answer, body=body)

"""The operator's page in a real browser: to the end of each way, readable by all, without scripts."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, expect

from infra.local.stripe.faults import Fault
from shared import policy, wiring
from shared.charge import Status, charge_id
from tests.console.console import DECLINED, FINDING_NAME, NAME, Console, disagree, find_at_stripe, token
from tests.portal.browser import DESKTOP, PHONE, Theme, listening, opened
from tests.world import _client

pytestmark = pytest.mark.browser

NARROWEST: Final = (320, 640)
THEMES: Final[tuple[Theme, ...]] = ("light", "dark")
CONFIRM: Final = "payment_intents.confirm"
NAMES: Final = ("overview", "not explained", "retrying", "blocked", "unknown", "task", "audits", "audit", "missing")


def busy() -> Console:
    """Return a deployment with something of everything."""
    world = Console()
    disagree(world)
    find_at_stripe(world)
    world.create(key="order-2", payment_method=DECLINED, retry="schedule", metadata={"order": "2"})
    world.engine.fail_next(Fault.UNAUTHORIZED, CONFIRM)
    world.create(key="order-3", description="Order 3: " + "a very long name " * 12)
    world.engine.fail_next(Fault.DROP_BEFORE, CONFIRM, times=None)
    world.create(key="order-4")
    world.clock.sleep(timedelta(hours=2))
    world.parts.letters.keep(idempotency_key="k", body=b'{"amount": "x"}', problem="invalid-body", detail="no amount")
    world.parts.reconciler._mark("audit", world.clock.now() - timedelta(days=1))
    world.parts.reconciler.audit(lambda: True)
    return world


def pages_of(world: Console) -> Mapping[str, str]:
    """Name the pages, each by its address."""
    (letter, _) = next(iter(world.parts.letters.all()))
    return {
        "overview": "/",
        "not explained": f"/charges/{NAME}",
        "retrying": f"/charges/{charge_id(None, 'order-2')}",
        "blocked": f"/charges/{charge_id(None, 'order-3')}",
        "unknown": f"/charges/{charge_id(None, 'order-4')}",
        "task": f"/dead-letters/{letter}",
        "audits": "/audits",
        "audit": f"/audits/{world.parts.reconciler.reports()[-1]}",
        "missing": "/nowhere",
    }


@contextmanager
def visited(browser: Browser, world: Console, path: str, **look: Any) -> Iterator[Page]:
    """Open a page as through the proxy, which says who it is; what the browser complains of is a failure."""
    app = _client("console").application
    wiring.use(world.parts)

    def behind_iam(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answered: Iterable[bytes] = app({**environ, "HTTP_AUTHORIZATION": token()}, start_response)
        return answered

    with listening(behind_iam) as url, opened(browser, **look) as page:
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(url + path)
        yield page
        assert [each for each in complaints if not each.startswith("Failed to load resource")] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_page_keeps_anybody_out(browser: Browser, name: str) -> None:
    """Axe finds nothing, in light and dark, wide and narrow; nothing is cut off at the side."""
    world = busy()
    for size in (NARROWEST, DESKTOP):
        with visited(browser, world, pages_of(world)[name], size=size, javascript=True) as page:
            for theme in THEMES:
                page.emulate_media(color_scheme=theme)
                found = Axe().run(page)  # A script itself: the only one that ever runs here.
                assert found.response["violations"] == [], found.generate_report()
                passed = {each["id"] for each in found.response["passes"]}
                assert passed >= {"color-contrast", "html-has-lang", "document-title", "landmark-one-main"}
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_from_the_first_page_to_settled(browser: Browser) -> None:
    """What nobody explained is opened, read, settled, and gone; the browser's own form, through the proxy's address."""
    world = busy()
    with visited(browser, world, "/", size=DESKTOP) as page:
        page.get_by_role("link", name=NAME[:12]).first.click()
        expect(page.get_by_role("heading", name="Stripe and the ledger disagree")).to_be_visible()
        page.get_by_label("Once you have: what became of it").fill("refunded by hand, re_1")
        page.get_by_role("button", name="Settle").click()
        expect(page.get_by_text("refunded by hand, re_1")).to_be_visible()
        assert policy.unsettled(world.charge()) == ()
        page.get_by_role("link", name="What needs somebody").click()
        page.get_by_label("What became of it").fill("a mistake")
        page.get_by_role("button", name="Settle").click()
        expect(page.get_by_text("Found at Stripe")).to_have_count(0)
        assert [found.note for found in world.parts.desk.findings() if found.name == FINDING_NAME] == ["a mistake"]


def test_from_a_search_to_a_charge_that_is_paid(browser: Browser) -> None:
    """By the caller's key; then another payment method."""
    world = Console()
    world.create(payment_method=DECLINED)
    world.acted_at.append(world.clock.now())
    with visited(browser, world, "/", size=DESKTOP) as page:
        page.get_by_label("Find a charge").fill("order-1001")
        page.get_by_role("button", name="Find").click()
        page.get_by_label("Another payment method of this customer").fill("pm_card_visa")
        page.get_by_role("button", name="Charge that one").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("$19.99 succeeded")
    assert world.money_moved() == [1999]
    assert world.check() == []


def test_everything_can_be_done_by_keyboard(browser: Browser) -> None:
    """What has the focus shows it; Enter presses."""
    world = Console()
    world.create(payment_method=DECLINED)
    with visited(browser, world, f"/charges/{NAME}", size=PHONE) as page:
        page.get_by_label("It is not wanted any more: reason").focus()
        page.keyboard.type("ordered by mistake")
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        expect(focused).to_have_accessible_name("Cancel the charge")
        assert focused.evaluate("it => getComputedStyle(it).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("$19.99 canceled")
    assert world.charge().status is Status.CANCELED


def test_a_reason_that_is_missing_is_asked_for_by_the_browser(browser: Browser) -> None:
    """Nothing is sent."""
    world = Console()
    world.create(payment_method=DECLINED)
    with visited(browser, world, f"/charges/{NAME}", size=DESKTOP) as page:
        page.get_by_role("button", name="Cancel the charge").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("$19.99 declined")
    assert world.charge().closing is None

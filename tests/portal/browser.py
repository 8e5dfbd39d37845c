"""A real browser before the customer's page: Debian's Chromium, headless, with JavaScript off."""

import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from infra.local.stripe import pages as stripes_pages
from shared import wiring
from shared.checkout import Checkout
from tests.portal.portal import Portal
from tests.world import _client

Theme = Literal["light", "dark"]

PHONE: Final = (360, 740)
DESKTOP: Final = (1280, 860)
FLAGS: Final = (
    "--no-sandbox",  # CI is root, in a container.
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class ChromiumMissing(Exception):
    """There is no browser to test with."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser. Raises ChromiumMissing."""
    program = shutil.which("chromium")
    if program is None:
        raise ChromiumMissing("install Chromium: `make setup` as root, or `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_said: object) -> None:
        """Say nothing of requests."""


@contextmanager
def served(world: Portal) -> Iterator[str]:
    """Serve a world's page, and Stripe's pages beside it."""
    with listening(_site(world)) as url:
        world.portal_url = url
        world.engine.settings = dataclasses.replace(world.engine.settings, public_url=url)
        world.parts = dataclasses.replace(
            world.parts,
            settings=dataclasses.replace(world.parts.settings, portal_url=url),
            checkout=Checkout(world.parts.checkout._gateway, url),
        )
        wiring.use(world.parts)
        yield url


@contextmanager
def listening(site: Callable[..., Iterable[bytes]]) -> Iterator[str]:
    """Serve a WSGI application on a free port of the loopback interface."""
    server = make_server("127.0.0.1", 0, site, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _site(world: Portal) -> Callable[..., Iterable[bytes]]:
    portal = _client("portal").application

    def site(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ)
        if not stripes_pages.is_page(request.path):
            world._note_money()
            answered: Iterable[bytes] = portal(environ, start_response)
            return answered
        found = stripes_pages.handle(world.engine, request.method, request.path, request.get_data())
        world._note_money()
        return Response(found.body, status=found.status, headers=dict(found.headers))(environ, start_response)

    return site


@contextmanager
def opened(
    browser: Browser,
    *,
    size: tuple[int, int] = PHONE,
    theme: Theme = "light",
    language: str = "en-US",
    javascript: bool = False,
) -> Iterator[Page]:
    """Open a page of a certain size and look. javascript: for the checker, which is a script itself."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=theme,
        locale=language,
        java_script_enabled=javascript,
        bypass_csp=javascript,
    )
    page = context.new_page()
    page.set_default_timeout(10_000)
    try:
        yield page
    finally:
        context.close()


def path_of(page: Page) -> str:
    """Return where the browser is, on our site or Stripe's."""
    return urlsplit(page.url).path

"""A world with a customer's page: the portal function on the world's parts, and a customer who has no browser."""

import dataclasses
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from infra.local.stripe import pages as stripes_pages
from shared import links, wiring
from shared.charge import Charge
from shared.checkout import Checkout
from tests.world import KEY, Killed, World, _client

PORTAL_URL: Final = "https://pay.example.com"
STRIPES: Final = "http://127.0.0.1:12111"  # Where the double says that its pages are.


@dataclass(frozen=True)
class Seen:
    """A page as the customer got it."""

    status: int
    headers: Mapping[str, str]
    html: str

    @property
    def text(self) -> str:
        """What a person reads, without the markup."""
        body = re.sub(r"<style>.*?</style>|<title>.*?</title>", "", self.html, flags=re.DOTALL)
        return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())

    @property
    def headline(self) -> str:
        """The one heading."""
        (found,) = re.findall(r"<h1[^>]*>(.*?)</h1>", self.html, re.DOTALL)
        return html.unescape(found)

    @property
    def choices(self) -> list[str]:
        """What can be chosen, in order: by a form, or by a link to a page that asks once more."""
        found = re.findall(r'(?:action|href)="[^"]*/(pay|card|cash|cancel)"', self.html)
        return list(dict.fromkeys(found))

    @property
    def mark(self) -> str:
        """What the page's forms carry."""
        found = re.findall(r'name="mark" value="([^"]*)"', self.html)
        return html.unescape(found[0]) if found else ""

    @property
    def location(self) -> str:
        """Where it sends the customer."""
        return self.headers["Location"]


class PageLost(Exception):
    """The process died while the page was being made."""


class Portal(World):
    """A world whose customers have a page."""

    def __post_init__(self) -> None:
        """Deploy the page, too."""
        super().__post_init__()
        gateway = self.parts.checkout._gateway
        self.portal_url = PORTAL_URL
        self.parts = dataclasses.replace(
            self.parts,
            settings=dataclasses.replace(self.parts.settings, portal_url=PORTAL_URL),
            checkout=Checkout(gateway, STRIPES),
        )

    def url(self, charge: Charge | None = None) -> str:
        """Return the link to a charge's page."""
        charge = charge or self.charge()
        found = links.customer_url(self.parts.settings, charge.id, self.clock.now())
        assert found is not None
        return found

    def at(self, method: str, url: str, form: Mapping[str, str] | None = None, **headers: str) -> Seen | None:
        """Ask the portal function. None: the process died, and nothing came back."""
        wiring.use(self.parts)
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            answer = _client("portal").open(path, method=method, data=form, headers=sent)
        except Killed:
            return None
        finally:
            self._note_money()
        if answer.status_code == 500:
            self.violations.append(f"{method} {parts.path} ended in an exception that nobody took care of")
        return Seen(answer.status_code, dict(answer.headers), answer.get_data(as_text=True))

    def look(self, suffix: str = "", **headers: str) -> Seen:
        """Open the customer's page."""
        seen = self.at("GET", self.url() + suffix, None, **headers)
        if seen is None:
            raise PageLost
        return seen

    def choose(self, choice: str, page: Seen | None = None) -> Seen | None:
        """Press a button of the page that is open, or of the page as it is now."""
        page = page or self.look("" if choice in {"pay", "card"} else f"/{choice}")
        if choice in {"pay", "card"}:
            self.acted_at.append(self.clock.now())
        return self.at("POST", f"{self.url()}/{choice}", {"mark": page.mark})

    def pressed(self, choice: str, page: Seen | None = None) -> Seen:
        """Press a button, and get an answer."""
        seen = self.choose(choice, page)
        assert seen is not None
        return seen

    def on_stripes_page(self, url: str, **form: str) -> str:
        """Fill in a page of Stripe's, and return where it sends the customer."""
        answer = stripes_pages.handle(self.engine, "POST", urlsplit(url).path, urlencode(form).encode())
        assert answer.status == 303, answer.body
        self._note_money()
        return str(answer.headers["Location"])

    def give_card(self, card: str = "pm_card_visa") -> str:
        """Press "another card", enter one at Stripe, and return the address that Stripe leads back to."""
        return self.on_stripes_page(self.pressed("card").location, card=card)

    def new_card(self, card: str = "pm_card_visa") -> Seen | None:
        """Give a card and come back."""
        back = self.give_card(card)
        self.acted_at.append(self.clock.now())
        return self.at("GET", back)


def declined(world: Portal, card: str = "pm_card_chargeDeclinedInsufficientFunds", **terms: Any) -> Charge:
    """Let a card be declined."""
    world.create(payment_method=card, **terms)
    return world.charge(KEY)

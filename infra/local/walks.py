"""One charge of each kind, walking its way out of trouble: what `make demo` shows after the storm.

The caller charges, the customer opens the page that they were written about, and the tally says what was paid.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import requests

from infra.local.stack import Stack, ask

DECLINES: Final = "pm_card_chargeDeclinedInsufficientFunds"
SETTLE_TIMEOUT_SECONDS: Final = 30.0


@dataclass(kw_only=True)
class Walk:
    """One charge and its way."""

    name: str
    way: str
    ends: str  # The status that it ends with, if all is well.
    stack: Stack
    key: str
    charge: dict[str, Any] = field(default_factory=dict)
    mails: tuple[str, ...] = ()
    moved: int = 0

    @property
    def is_right(self) -> bool:
        """Whether it ended as it should, and the money moved as the ledger says."""
        return self.charge["status"] == self.ends and self.moved == (self.ends == "succeeded")

    @property
    def address(self) -> str:
        """The customer's, one for each walk."""
        return f"{self.key}@example.com"

    def begin(self, payment_method: str, **terms: Any) -> None:
        """Charge a customer."""
        customer = self.stack.at_stripe("POST", "/v1/customers", email=self.address)["id"]
        body = {"amount": 1999, "currency": "usd", "customer": customer, "payment_method": payment_method, **terms}
        self.charge = self._post("/", body)

    def act(self, path: str, body: dict[str, Any] | None = None) -> None:
        """Do what a caller or an operator may."""
        self.charge = self._post(f"/{self.charge['id']}/{path}", body or {})

    def press(self, choice: str, page: str = "") -> requests.Response:
        """Open the customer's page, and press a button of it."""
        url = self._read()["customer_url"]
        found = re.search(r'name="mark" value="([^"]+)"', ask("GET", f"{url}{page}").text)
        assert found is not None, "the page offers no choice"
        return requests.post(f"{url}/{choice}", data={"mark": found[1]}, allow_redirects=False, timeout=30)

    def at_stripe(self, led: requests.Response, **form: str) -> None:
        """Fill in the page of Stripe's that we were led to, and come back."""
        back = requests.post(led.headers["Location"], data=form, allow_redirects=False, timeout=30)
        ask("GET", back.headers["Location"])

    def end(self, *, mails: int) -> None:
        """Wait until everything that somebody is to be told is told, and ask Stripe's tally."""
        ends_at = time.monotonic() + SETTLE_TIMEOUT_SECONDS
        while time.monotonic() < ends_at:
            self._read()
            sent = ask("GET", f"{self.stack.mail_url}/messages").json()
            mine = [mail for mail in sent if self.address in mail["to"]]
            self.mails = tuple(mail["subject"] for mail in sorted(mine, key=lambda mail: mail["received_at"]))
            if len(self.mails) >= mails and self.charge["waiting_on"] != "system":
                break
            time.sleep(0.2)
        tally = self.stack.double("GET", "tally")["by_metadata"]
        self.moved = tally.get(self.charge["id"], {"count": 0})["count"]

    def _read(self) -> dict[str, Any]:
        self.charge = ask("GET", f"{self.stack.charge_url}/{self.charge['id']}").json()
        return self.charge

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        while True:
            answer = ask("POST", self.stack.charge_url + path, json=body, headers={"Idempotency-Key": self.key})
            if answer.status_code not in {409, 503}:
                return dict(answer.json())
            time.sleep(1)


def _another_card(walk: Walk) -> None:
    walk.begin(DECLINES)
    walk.at_stripe(walk.press("card"), card="pm_card_visa")
    walk.end(mails=2)


def _authenticated(walk: Walk) -> None:
    walk.begin("pm_card_authenticationRequired")
    walk.at_stripe(walk.press("pay"), answer="yes")
    walk.end(mails=2)


def _cash(walk: Walk) -> None:
    walk.begin(DECLINES)
    walk.end(mails=1)
    walk.act("out-of-band", {"reference": "till 4"})
    walk.end(mails=2)


def _canceled(walk: Walk) -> None:
    walk.begin(DECLINES)
    walk.end(mails=1)
    walk.press("cancel", page="/cancel")
    walk.end(mails=2)


def _scheduled(walk: Walk) -> None:
    walk.begin(DECLINES, retry="schedule")
    walk.end(mails=1)


def _card_gone(walk: Walk) -> None:
    walk.begin("pm_gone")
    walk.at_stripe(walk.press("card"), card="pm_card_mastercard")
    walk.end(mails=2)


WALKS: Final[tuple[tuple[str, str, str, Callable[[Walk], None]], ...]] = (
    ("declined", "another card, on Stripe's page", "succeeded", _another_card),
    ("the bank asks", "the customer confirms", "succeeded", _authenticated),
    ("declined", "paid in cash, noted by the seller", "paid_out_of_band", _cash),
    ("declined", "the customer cancels", "canceled", _canceled),
    ("declined, retry: schedule", "tomorrow, by itself", "retrying", _scheduled),
    ("the card is gone (404)", "another card, under a new key", "succeeded", _card_gone),
)


def walk(stack: Stack) -> Iterator[Walk]:
    """Let one charge of each kind walk its way out."""
    for number, (name, way, ends, go) in enumerate(WALKS, start=1):
        one = Walk(name=name, way=way, ends=ends, stack=stack, key=f"walk-{number}")
        go(one)
        yield one

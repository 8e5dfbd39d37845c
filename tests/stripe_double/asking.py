"""How the tests ask the double: in-process on a clock of their own, or as stripe-python over a socket."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

import stripe

from infra.local.stripe.engine import Engine

START: Final = 1_795_510_800.0  # 2026-11-24, 09:00 UTC.
DAY: Final = 86_400.0
API_KEY: Final = "sk_test_of_the_tests"
SECRET: Final = "whsec_of_the_tests"


@dataclass
class VirtualClock:
    """A clock that moves when told to; sleeping moves it."""

    time: float = START

    def __call__(self) -> float:
        """Return the time."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Let the time pass at once."""
        self.time += seconds


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """The body, parsed."""
        return json.loads(self.raw)

    @property
    def error(self) -> Any:
        """The error in it."""
        return self.body["error"]

    @property
    def replayed(self) -> bool:
        """Whether it says that it was answered before."""
        return self.headers.get("Idempotent-Replayed") == "true"


@dataclass
class Asker:
    """A client without a socket."""

    engine: Engine
    clock: VirtualClock
    headers: dict[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {API_KEY}"})

    def ask(
        self, method: str, path: str, params: Mapping[str, Any] | None = None, *, key: str | None = None, **headers: Any
    ) -> Answer:
        """Send a request; `Stripe_Account` and the like are headers."""
        sent = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if key is not None:
            sent["Idempotency-Key"] = key
        answer = self.engine.handle(method, f"/v1/{path}", sent, urlencode(flat(params or {})).encode())
        return Answer(answer.status, answer.headers, answer.body)

    def post(
        self, path: str, params: Mapping[str, Any] | None = None, key: str | None = None, **headers: Any
    ) -> Answer:
        """POST."""
        return self.ask("POST", path, params, key=key, **headers)

    def get(self, path: str, params: Mapping[str, Any] | None = None, **headers: Any) -> Answer:
        """GET."""
        query = urlencode(flat(params or {}))
        return self.ask("GET", f"{path}?{query}" if query else path, **headers)

    def customer(self, **headers: Any) -> str:
        """Make a customer."""
        return str(self.post("customers", **headers).body["id"])

    def intent(self, **params: Any) -> str:
        """Make a PaymentIntent that moves no money yet."""
        return str(self.post("payment_intents", {"amount": 1999, "currency": "usd", **params}).body["id"])

    def confirm(self, intent: str, card: str = "pm_card_visa", key: str | None = None, **params: Any) -> Answer:
        """Confirm off session, as a charge in the background does."""
        path = f"payment_intents/{intent}/confirm"
        return self.post(path, {"payment_method": card, "off_session": "true", **params}, key)

    def status(self, intent: str) -> str:
        """Read where a PaymentIntent stands."""
        return str(self.get(f"payment_intents/{intent}").body["status"])

    def moved(self, intent: str) -> list[int]:
        """Ask the judge."""
        return self.engine.money_moved_by(intent)

    def events(self) -> list[str]:
        """Return the types of all events, oldest first."""
        return [event["type"] for event in self.engine.objects("event")]


def flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Write nested parameters in Stripe's brackets."""
    found: dict[str, str] = {}
    for name, value in params.items():
        path = f"{prefix}[{name}]" if prefix else name
        if isinstance(value, Mapping):
            found |= flat(value, path)
        elif isinstance(value, list):
            found |= flat({str(position): item for position, item in enumerate(value)}, path)
        else:
            found[path] = str(value)
    return found


def official(url: str, api_key: str = API_KEY) -> stripe.StripeClient:
    """Return stripe-python itself; it never retries here, so that each call is one request."""
    return stripe.StripeClient(api_key, base_addresses={"api": url}, max_network_retries=0)


def wait_until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for something that other threads do; fail if they do not."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)


def wait_until_running(engine: Engine) -> None:
    """Wait until some request holds its key."""
    wait_until(lambda: any(record["running"] for record in engine.key_records()))

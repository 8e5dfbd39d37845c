"""One double for each test."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import stripe

from infra.local.stripe.engine import Engine
from infra.local.stripe.server import Server
from tests.stripe_double.asking import Asker, VirtualClock, official


@pytest.fixture
def clock() -> VirtualClock:
    """A clock that stands still."""
    return VirtualClock()


@pytest.fixture
def double(clock: VirtualClock) -> Iterator[Asker]:
    """A double in this process."""
    engine = Engine(clock=clock, sleep=clock.sleep, seed=1)
    yield Asker(engine, clock)
    engine.close()


@dataclass
class Served:
    """A double behind a socket, on real time."""

    engine: Engine
    url: str
    client: stripe.StripeClient


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A double on a free port of loopback, and stripe-python to ask it."""
    monkeypatch.setattr(stripe, "enable_telemetry", False)
    with Server(Engine(seed=1)) as server:
        yield Served(server.engine, server.url, official(server.url))

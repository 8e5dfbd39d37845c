"""Datastore goes away and comes back, seen through the ledger and one client that lives on."""

import contextlib
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from infra.local.datastore import DatastoreEmulator, Engine
from shared.charge import Charge, Request, Status, Terms, charge_id
from shared.clock import SystemClock
from shared.ledger import Ledger, LedgerUnavailable
from shared.store import DatastoreStore, StoreUnavailable

BUDGET = timedelta(seconds=1)
CALL_TIMEOUT_SECONDS = 0.5
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def new_charge() -> Charge:
    """Make a charge that nobody has recorded."""
    key = uuid.uuid4().hex
    return Charge(
        id=charge_id(None, key),
        idempotency_key=key,
        body_digest="d",
        terms=Terms(amount=1999, currency="usd", customer="cus_1", payment_method="pm_1"),
        payment_method="pm_1",
        livemode=False,
        status=Status.PENDING,
        create=Request(idempotency_key="pio-1-create-1", operation="create", parameters="{}", api_version="v"),
        created_at=NOW,
        updated_at=NOW,
        expires_at=NOW + timedelta(days=30),
        due_at=NOW,
    )


@dataclass
class World:
    """An emulator on disk, and a ledger with little patience."""

    emulator: DatastoreEmulator
    ledger: Ledger

    def is_unavailable(self, charge: Charge) -> bool:
        """Try to write and to read; tell whether both were given up in time."""
        calls: Sequence[Callable[[], object]] = (
            lambda: self.ledger.insert(charge),
            lambda: self.ledger.get(charge.id),
        )
        for call in calls:
            began = time.monotonic()
            with pytest.raises(LedgerUnavailable):
                call()
            # A second of grace: the machine may be busy.
            assert time.monotonic() - began < BUDGET.total_seconds() + CALL_TIMEOUT_SECONDS + 1
        return True

    def seconds_until_it_answers(self) -> float:
        """Ask until the ledger answers."""
        began = time.monotonic()
        while time.monotonic() - began < 30:
            try:
                self.ledger.get("absent")
            except LedgerUnavailable:
                continue
            return time.monotonic() - began
        pytest.fail("Datastore is back, and the client is not")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Start an emulator that may be stopped without disturbing other tests."""
    folder = tmp_path_factory.mktemp("datastore")
    with DatastoreEmulator(Engine.DATASTORE, folder=folder) as emulator:
        store = DatastoreStore("down", emulator_host=emulator.host, timeout_seconds=CALL_TIMEOUT_SECONDS)
        patient = DatastoreStore("down", emulator_host=emulator.host)
        patient.get("Charge", "the first call of an emulator is slow")
        patient.close()
        yield World(emulator, Ledger(store, SystemClock(), commit_budget=BUDGET, read_budget=BUDGET))
        store.close()


def test_a_datastore_that_hangs_is_given_up_in_time_and_used_again_once_it_goes_on(world: World) -> None:
    """Connected and silent: the worst sort, because what was sent may still be carried out."""
    held = world.ledger.insert(new_charge())
    assert held is not None
    uncertain = new_charge()

    world.emulator.pause()
    try:
        assert world.is_unavailable(uncertain)
        with pytest.raises(LedgerUnavailable, match="not certain"):
            world.ledger.update(held, replace(held.charge, payment_intent="pi_1"))
    finally:
        world.emulator.resume()

    assert world.seconds_until_it_answers() < 5
    again = world.ledger.get(uncertain.id) or world.ledger.insert(uncertain)
    assert again is not None
    assert again.charge == uncertain


def test_a_datastore_that_is_down_is_given_up_in_time_and_used_again_once_it_is_back(world: World) -> None:
    """The same client, and what was committed is still there at the version that was answered."""
    held = world.ledger.insert(new_charge())
    assert held is not None

    world.emulator.stop()
    assert world.is_unavailable(new_charge())
    world.emulator.start()

    assert world.seconds_until_it_answers() < 5
    assert world.ledger.get(held.charge.id) == held
    updated = world.ledger.update(held, replace(held.charge, payment_intent="pi_1"))
    assert world.ledger.find("pi_1") == [updated.charge.id]


def test_a_client_tries_again_to_connect_within_a_second() -> None:
    """Left to itself, gRPC waits 1, 1.6, 2.6 s and so on up to two minutes: an outage that outlives the restart."""
    connections = 0
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(0.02)
        store = DatastoreStore("down", emulator_host=f"127.0.0.1:{door.getsockname()[1]}", timeout_seconds=0.1)
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            with pytest.raises(StoreUnavailable):
                store.get("Charge", "a1")
            with contextlib.suppress(TimeoutError):
                door.accept()[0].close()
                connections += 1
        store.close()

    assert connections > 4

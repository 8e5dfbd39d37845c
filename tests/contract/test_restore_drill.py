"""The drill of a restore on Google's own emulator: a database that is put back beside the one that goes on.

What `tests/crash_points/test_restore.py` does from every point of a charge's way over a store in memory is done here
from a few, over the real adapter: charge, restore to before, try to charge, reopen, repeat, ask Stripe's tally.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import pytest

from infra.local.datastore import DatastoreEmulator
from infra.local.stripe.faults import Fault
from shared import policy
from shared.charge import Charge, Status
from shared.gate import KIND
from shared.ledger import charge_of
from shared.store import CHARGE, DatastoreStore, Store, Stored
from tests.world import World

HOUR: Final = timedelta(hours=1)
KINDS: Final = (CHARGE, KIND, "Progress", "AuditReport", "Discrepancy", "DeadLetter")
CONFIRM: Final = "payment_intents.confirm"
numbers: Final = itertools.count(1)

Scenario = Callable[["Emulated"], None]


@dataclass(frozen=True)
class Copy:
    """A database as it was once."""

    at: datetime
    entities: Mapping[tuple[str, str], Mapping[str, Any]]


class Emulated(World):
    """A world whose ledger is in an emulator. Each database has a name of its own."""

    emulator: DatastoreEmulator
    database: DatastoreStore

    def _new_store(self) -> Store:
        return self.database

    def charges(self) -> list[Charge]:
        """Read the ledger."""
        return [charge_of(stored.properties) for _, stored in self._entities(CHARGE)]

    def copy(self) -> Copy:
        """Take a backup of the database."""
        entities = {(kind, name): stored.properties for kind in KINDS for name, stored in self._entities(kind)}
        return Copy(at=self.clock.now(), entities=entities)

    def put_beside(self, copy: Copy) -> None:
        """Restore it into a new database, and deploy anew with the next generation, as the operator is told to."""
        self.database = _database(self.emulator)
        for (kind, name), properties in copy.entities.items():
            self.database.insert(kind, name, properties)
        self.restored = True
        self.generation += 1
        self.parts = self._deploy()

    def _entities(self, kind: str) -> Iterator[tuple[str, Stored]]:
        for name in self.database.names(kind, "", 1000):
            stored = self.database.get(kind, name)
            assert stored is not None
            yield name, stored


def _database(emulator: DatastoreEmulator) -> DatastoreStore:
    # The emulator's queries take no notice of a database's name; they do of a project's.
    return DatastoreStore(f"drill-{next(numbers)}", emulator_host=emulator.host)


@pytest.fixture
def world(datastore_emulator: DatastoreEmulator) -> Emulated:
    """A deployment on an empty database."""
    Emulated.emulator, Emulated.database = datastore_emulator, _database(datastore_emulator)
    return Emulated()


def paid(world: Emulated) -> None:
    """Charge a customer."""
    world.create()


def unknown(world: Emulated) -> None:
    """Let Stripe take the money, and the answer get lost."""
    world.engine.fail_next(Fault.DROP_AFTER, CONFIRM)
    world.engine.fail_next(Fault.DROP_BEFORE, CONFIRM, nth=2, times=None)
    world.create()
    world.engine.faults.clear()


def declined_then_paid(world: Emulated) -> None:
    """Let a card be declined, and another one be charged."""
    world.create(payment_method="pm_card_chargeDeclined")
    world.acted_at.append(world.clock.now())
    world.post(f"/{world.charges()[0].id}/payment-method", {"payment_method": "pm_card_visa"})


@pytest.mark.parametrize("scenario", [paid, unknown, declined_then_paid])
@pytest.mark.parametrize("later", [timedelta(), 25 * HOUR, timedelta(days=40)], ids=["at once", "25 h", "40 days"])
def test_nobody_pays_twice_after_a_restore(world: Emulated, scenario: Scenario, later: timedelta) -> None:
    """Within the life of the keys and beyond it; what was in the queue comes after the restore, too."""
    before = world.copy()
    world.clock.sleep(HOUR)
    scenario(world)
    assert world.queue  # What is in flight while the database is put back.
    world.clock.sleep(later)
    world.engine.prune_keys(policy.KEY_LIFE.total_seconds())
    world.put_beside(before)

    refused = world.create()
    assert refused is not None
    assert (refused.status, refused.body["type"]) == (503, "urn:paidonce:ledger-closed")
    assert world.charges() == []

    world.reopen(before.at)
    for after in (timedelta(), timedelta(days=2), timedelta(days=40)):
        world.clock.sleep(after)
        world.run_tasks()
        scenario(world)
        world.settle()
        assert [moved.amount for moved in world.engine.tally().moved] == [1999]
    assert [charge.status for charge in world.charges()] == [Status.SUCCEEDED]
    assert world.check() == []

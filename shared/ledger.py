"""The one place that writes a charge down.

Every write is one RPC when all is well. When its answer is an error or is lost, the entity is read back before
anything is decided: each write carries a token of its own (`writer`), so what is found there says whose write it was.
Nothing else in the product retries a call to Datastore.

    LedgerUnavailable   nobody can say now whether it was recorded (a write), or what is recorded (a read)
    Conflict            somebody else wrote the charge since it was read: read it again and decide again
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from random import Random, SystemRandom
from typing import Any, Final, NoReturn, TypeVar, cast

import msgspec

from shared import policy
from shared.charge import Charge
from shared.clock import Clock
from shared.erasure import is_erased
from shared.store import (
    CHARGE,
    SHARDS,
    AlreadyExists,
    Conflict,
    Store,
    Stored,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    Value,
    shard_of,
    time_key,
)

__all__ = ["AlreadyExists", "Conflict", "Held", "Ledger", "LedgerUnavailable", "charge_of", "properties_of"]

T = TypeVar("T")

COMMIT_BUDGET: Final = timedelta(seconds=10)
"""How long a write may be tried. Outlives a reconnection and the blips of a failover; the lease outlives it."""

READ_BUDGET: Final = timedelta(seconds=5)
"""How long a read may be tried. Shorter: giving a read up leaves nothing uncertain."""

SHORTEST_WAIT: Final = timedelta(milliseconds=10)  # As long as a commit takes.
FIRST_WAIT: Final = timedelta(milliseconds=100)  # At most. It doubles each time,
LONGEST_WAIT: Final = timedelta(seconds=2)  # up to this, so that several tries fit into the budget.
assert SHORTEST_WAIT < FIRST_WAIT < LONGEST_WAIT < READ_BUDGET < COMMIT_BUDGET

FREE_MAPS: Final = ("metadata", "transfer_data")
"""Maps whose keys are the caller's own, kept as JSON text: Datastore refuses the names "" and `__like_this__`."""


class LedgerUnavailable(Exception):
    """Datastore did not answer, or refused, within the budget. After a write: not certain that it was recorded."""


@dataclass(frozen=True)
class Held:
    """A charge as it was read or written, and the version (Datastore's) that an update of it is conditional on."""

    charge: Charge
    base_version: int


class Ledger:
    """The charges. Threads may share one.

    A call ends within its budget, plus the time limit of the one store call that is under way when the budget ends.
    chance: makes the waits and the tokens of writes. A seeded one makes a run repeat exactly; ledgers of one store
    then share it, since from equal seeds each would take the other's writes for its own. The default is the system's.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        commit_budget: timedelta = COMMIT_BUDGET,
        read_budget: timedelta = READ_BUDGET,
        chance: Random | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._commit_budget = commit_budget
        self._read_budget = read_budget
        self._chance = chance or SystemRandom()

    def insert(self, charge: Charge) -> Held | None:
        """Record a new charge. None: the key has one already, somebody else's. Raises LedgerUnavailable."""
        try:
            return Held(charge, self._write(CHARGE, charge.id, properties_of(charge), base_version=None))
        except AlreadyExists:
            return None

    def update(self, held: Held, charge: Charge) -> Held:
        """Record what the charge has become, as its next `version` (or the one after what is given) and of this time.

        Raises Conflict when somebody else wrote it since `held`, and LedgerUnavailable.
        """
        assert charge.id == held.charge.id, "an update is of the charge that is held"
        version = max(charge.version, held.charge.version) + 1
        charge = replace(charge, version=version, updated_at=self._clock.now())
        return Held(charge, self._write(CHARGE, charge.id, properties_of(charge), base_version=held.base_version))

    def get(self, charge_id: str) -> Held | None:
        """Read a charge; None if none is recorded. Raises LedgerUnavailable."""
        patience = self._patience(self._read_budget, f"{CHARGE} {charge_id} could not be read")
        stored = patience.call(partial(self._store.get, CHARGE, charge_id))
        return None if stored is None else Held(charge_of(stored.properties), stored.version)

    def due(self, before: datetime, limit_per_shard: int) -> list[str]:
        """Name the open charges whose `due_at` is no later than `before`: each shard's oldest, then the next of each.

        Raises LedgerUnavailable.
        """
        patience = self._patience(self._read_budget, "the charges that are due could not be read")
        shards = [patience.call(partial(self._store.due, shard, before, limit_per_shard)) for shard in range(SHARDS)]
        return _in_turn(shards)

    def paid(self, shard: int, since: datetime, until: datetime, limit: int) -> list[str]:
        """Name charges of a shard that succeeded in that time, the earliest first. Raises LedgerUnavailable."""
        patience = self._patience(self._read_budget, "the charges that were paid could not be read")
        return patience.call(partial(self._store.paid, shard, since, until, limit))

    def ended(self, before: datetime, limit_per_shard: int) -> list[str]:
        """Name charges with something to erase that are done, and were last written no later than `before`.

        Raises LedgerUnavailable.
        """
        patience = self._patience(self._read_budget, "the charges that have ended could not be read")
        shards = [patience.call(partial(self._store.ended, shard, before, limit_per_shard)) for shard in range(SHARDS)]
        return [name for row in shards for name in row]

    def attention(self, limit_per_shard: int) -> list[str]:
        """Name the charges that a person must look at: each shard's oldest, then the next of each.

        Raises LedgerUnavailable.
        """
        patience = self._patience(self._read_budget, "the charges that need somebody could not be read")
        shards = [patience.call(partial(self._store.attention, shard, limit_per_shard)) for shard in range(SHARDS)]
        return _in_turn(shards)

    def names(self, kind: str, *, after: str = "", limit: int = 1000) -> list[str]:
        """Name the first entities of a kind whose names come after `after`. Raises LedgerUnavailable."""
        patience = self._patience(self._read_budget, f"the names of kind {kind} could not be read")
        return patience.call(partial(self._store.names, kind, after, limit))

    def read(self, kind: str, name: str) -> Stored | None:
        """Read an entity that is no charge. Raises LedgerUnavailable."""
        patience = self._patience(self._read_budget, f"{kind} {name} could not be read")
        return patience.call(partial(self._store.get, kind, name))

    def write(self, kind: str, name: str, properties: Mapping[str, Value], base_version: int | None) -> int:
        """Write an entity that is no charge: insert it, or replace what is at `base_version`. Returns its version.

        Raises AlreadyExists (insert), Conflict (replace), LedgerUnavailable.
        """
        return self._write(kind, name, properties, base_version=base_version)

    def find(self, payment_intent: str) -> list[str]:
        """Name the charges that recorded this PaymentIntent; more than one is a defect. Raises LedgerUnavailable."""
        patience = self._patience(self._read_budget, f"the charges of {payment_intent} could not be read")
        return patience.call(partial(self._store.by_payment_intent, payment_intent))

    def record_once(self, kind: str, name: str, properties: Mapping[str, Value]) -> bool:
        """Record something that never changes (a dead letter, a discrepancy). False: that name was recorded before.

        Raises LedgerUnavailable.
        """
        try:
            self._write(kind, name, properties, base_version=None)
        except AlreadyExists:
            return False
        return True

    def _write(self, kind: str, name: str, properties: Mapping[str, Value], *, base_version: int | None) -> int:
        """Insert (no `base_version`) or update, and return the new version once it is certain that this write stands.

        Raises AlreadyExists (insert) or Conflict (update) once it is certain that another's stands, LedgerUnavailable.
        """
        writer = f"{self._chance.getrandbits(128):032x}"
        written = {**properties, "writer": writer}
        patience = self._patience(self._commit_budget, f"it is not certain that {kind} {name} was recorded")
        while True:
            failure: StoreError
            try:
                if base_version is None:
                    return self._store.insert(kind, name, written)
                return self._store.update(kind, name, written, base_version)
            except StoreRefused as error:
                patience.end(error)
            except StoreUnavailable as error:
                failure = error
                patience.wait(failure)
            except (AlreadyExists, Conflict) as error:
                failure = error  # By another's write, or by an earlier try of this one whose answer was lost.
            stored = patience.call(partial(self._store.get, kind, name))
            if stored is not None and stored.properties.get("writer") == writer:
                return stored.version
            if base_version is None and stored is not None:
                raise AlreadyExists(f"{kind} {name} was recorded by another") from failure
            if base_version is not None and (stored is None or stored.version != base_version):
                raise Conflict(f"{kind} {name} has been written since it was read") from failure
            # Nothing is written yet. An earlier try may still arrive: it meets the version or the name, as any other.
            if not isinstance(failure, StoreUnavailable):
                patience.wait(failure)  # A lock that was not had in time.

    def _patience(self, budget: timedelta, complaint: str) -> "_Patience":
        return _Patience(self._clock, budget, self._chance, complaint)


class _Patience:
    """How long one call of the ledger goes on. `complaint` says what is not known if it ends in vain."""

    def __init__(self, clock: Clock, budget: timedelta, chance: Random, complaint: str) -> None:
        self._clock = clock
        self._deadline_seconds = clock.monotonic() + budget.total_seconds()
        self._chance = chance
        self._longest = FIRST_WAIT
        self._complaint = complaint

    def call(self, read: Callable[[], T]) -> T:
        """Repeat a read until it is answered."""
        while True:
            try:
                return read()
            except StoreUnavailable as error:
                self.wait(error)
            except StoreRefused as error:
                self.end(error)

    def wait(self, error: StoreError) -> None:
        """Wait before the next try, each time longer, and by chance: who failed together shall not return together."""
        pause = SHORTEST_WAIT + (self._longest - SHORTEST_WAIT) * self._chance.random()
        if self._clock.monotonic() + pause.total_seconds() >= self._deadline_seconds:
            self.end(error)
        self._clock.sleep(pause)
        self._longest = min(2 * self._longest, LONGEST_WAIT)

    def end(self, error: StoreError) -> NoReturn:
        """Give up."""
        raise LedgerUnavailable(f"{self._complaint}: {error}") from error


def properties_of(charge: Charge) -> dict[str, Value]:
    """Write a charge as an entity's properties: its own fields under their own names, None left out, and the indexes.

    A field that is added to Charge later needs a default, with which older entities are read.
    """
    properties: dict[str, Any] = _without_none(msgspec.to_builtins(charge, builtin_types=(datetime,)))
    for name in FREE_MAPS:
        if name in properties["terms"]:
            properties["terms"][name] = json.dumps(properties["terms"][name])
    if charge.due_at is not None:
        properties["due"] = time_key(shard_of(charge.id), charge.due_at)
    if charge.succeeded_at is not None:
        properties["paid"] = time_key(shard_of(charge.id), charge.succeeded_at)
    if charge.done and not is_erased(charge):
        properties["ended"] = time_key(shard_of(charge.id), charge.updated_at)
    if policy.needs_person(charge):
        properties["attention"] = time_key(shard_of(charge.id), charge.created_at)
    return properties


def charge_of(properties: Mapping[str, Value]) -> Charge:
    """Read a charge from an entity's properties; those that are no field of it are passed over."""
    terms = dict(cast("Mapping[str, Any]", properties["terms"]))
    for name in FREE_MAPS:
        if name in terms:
            terms[name] = json.loads(terms[name])
    return msgspec.convert({"due_at": None, **properties, "terms": terms}, Charge)


def _in_turn(shards: Sequence[Sequence[str]]) -> list[str]:
    return [name for row in itertools.zip_longest(*shards) for name in row if name is not None]


def _without_none(value: Any) -> Any:
    """Leave None out of maps, however deep: a property that is absent takes no room and is in no index."""
    if isinstance(value, dict):
        return {name: _without_none(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_none(inner) for inner in value]
    return value

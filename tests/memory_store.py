"""A Store in memory, with a seam for faults. `contract/test_store.py` holds it to the contract of Datastore's."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from shared.store import CHARGE, MATCHES, AlreadyExists, Conflict, Store, Stored, StoreError, Value, time_key

T = TypeVar("T")


@dataclass(frozen=True)
class StoreCall:
    """One call as the hooks see it. `operation` is the method's name; a query names its shard or PaymentIntent."""

    operation: str
    kind: str
    name: str


Hook = Callable[[StoreCall], None]


def _nothing(_call: StoreCall) -> None:
    """Let the call pass."""


class MemoryStore(Store):
    """Entities in a dict. Threads may share one.

    `before` runs before a call has done anything, `after` when it is done and not yet answered; both may be replaced at
    any time. What they raise is what the caller gets: StoreUnavailable from `before` is a request that was lost, from
    `after` an answer that was lost, and a BaseException of a test's own is the death of the process there.
    """

    def __init__(self, before: Hook = _nothing, after: Hook = _nothing) -> None:
        self.before = before
        self.after = after
        self._entities: dict[tuple[str, str], Stored] = {}
        self._version = 0
        self._lock = threading.Lock()

    def insert(self, kind: str, name: str, properties: Mapping[str, Value]) -> int:
        """Create the entity and return its version; AlreadyExists if there is one, whoever wrote it."""

        def insert() -> int:
            if (kind, name) in self._entities:
                raise AlreadyExists(f"{kind} {name} exists")
            return self._put(kind, name, properties)

        return self._call(StoreCall("insert", kind, name), insert)

    def update(self, kind: str, name: str, properties: Mapping[str, Value], base_version: int) -> int:
        """Replace all properties if the entity is still at `base_version`, else Conflict. Return the new version."""

        def update() -> int:
            stored = self._entities.get((kind, name))
            if stored is None or stored.version != base_version:
                raise Conflict(f"{kind} {name} is not at version {base_version}")
            return self._put(kind, name, properties)

        return self._call(StoreCall("update", kind, name), update)

    def get(self, kind: str, name: str) -> Stored | None:
        """Read one entity; None if there is none."""

        def get() -> Stored | None:
            stored = self._entities.get((kind, name))
            return None if stored is None else Stored(_copy_of_map(stored.properties), stored.version)

        return self._call(StoreCall("get", kind, name), get)

    def due(self, shard: int, before: datetime, limit: int) -> list[str]:
        """Name at most `limit` charges of the shard whose `due` is no later than `before`, the oldest first."""

        def due() -> list[str]:
            found = [
                (key, name)
                for name, key in self._charges_by("due")
                if f"{shard:02d}|" <= key <= time_key(shard, before)
            ]
            return [name for _, name in sorted(found)[:limit]]

        return self._call(StoreCall("due", CHARGE, str(shard)), due)

    def paid(self, shard: int, since: datetime, until: datetime, limit: int) -> list[str]:
        """Name at most `limit` charges of the shard that succeeded from `since` to `until`, the earliest first."""

        def paid() -> list[str]:
            lowest, highest = time_key(shard, since), time_key(shard, until)
            found = [(key, name) for name, key in self._charges_by("paid") if lowest <= key <= highest]
            return [name for _, name in sorted(found)[:limit]]

        return self._call(StoreCall("paid", CHARGE, str(shard)), paid)

    def ended(self, shard: int, before: datetime, limit: int) -> list[str]:
        """Name at most `limit` charges of the shard whose `ended` is no later than `before`, the oldest first."""

        def ended() -> list[str]:
            lowest, highest = f"{shard:02d}|", time_key(shard, before)
            found = [(key, name) for name, key in self._charges_by("ended") if lowest <= key <= highest]
            return [name for _, name in sorted(found)[:limit]]

        return self._call(StoreCall("ended", CHARGE, str(shard)), ended)

    def attention(self, shard: int, limit: int) -> list[str]:
        """Name at most `limit` charges of the shard that have `attention`, the oldest first."""

        def attention() -> list[str]:
            found = [(key, name) for name, key in self._charges_by("attention") if key.startswith(f"{shard:02d}|")]
            return [name for _, name in sorted(found)[:limit]]

        return self._call(StoreCall("attention", CHARGE, str(shard)), attention)

    def names(self, kind: str, after: str, limit: int) -> list[str]:
        """Name at most `limit` entities of a kind, in order, from the first whose name comes after `after`."""

        def names() -> list[str]:
            found = sorted(name for stored_kind, name in self._entities if stored_kind == kind)
            return [name for name in found if name > after][:limit]

        return self._call(StoreCall("names", kind, after), names)

    def by_payment_intent(self, payment_intent: str) -> list[str]:
        """Name the charges that have recorded this PaymentIntent; at most `MATCHES`."""

        def by_payment_intent() -> list[str]:
            return sorted(name for name, value in self._charges_by("payment_intent") if value == payment_intent)[
                :MATCHES
            ]

        return self._call(StoreCall("by_payment_intent", CHARGE, payment_intent), by_payment_intent)

    def all_names(self, kind: str) -> list[str]:
        """Name all entities of a kind, for a test to look at; no hook runs."""
        with self._lock:
            return sorted(name for stored_kind, name in self._entities if stored_kind == kind)

    def _call(self, call: StoreCall, apply: Callable[[], T]) -> T:
        self.before(call)
        try:
            with self._lock:
                answer = apply()
        except StoreError:
            self.after(call)  # A refusal can be lost on its way, too.
            raise
        self.after(call)
        return answer

    def _put(self, kind: str, name: str, properties: Mapping[str, Value]) -> int:
        written = _copy_of_map(properties)
        stored = self._entities.get((kind, name))
        if stored is not None and stored.properties == written:
            return stored.version  # As Datastore does: what changes nothing is no new version.
        self._version += 1
        self._entities[kind, name] = Stored(written, self._version)
        return self._version

    def _charges_by(self, property_name: str) -> list[tuple[str, str]]:
        """List (name, value) of the charges that have the property as a string."""
        return [
            (name, value)
            for (kind, name), stored in self._entities.items()
            if kind == CHARGE and isinstance(value := stored.properties.get(property_name), str)
        ]


def _copy_of_map(properties: Mapping[str, Value]) -> dict[str, Value]:
    return {name: _copy(value) for name, value in properties.items()}


def _copy(value: Value) -> Value:
    """Copy a value as Datastore would hand it back: lists as lists, times in UTC, and nothing that it cannot hold."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case datetime():
            return value.astimezone(UTC)
        case Mapping():
            return _copy_of_map(value)
        case Sequence():
            return [_copy(inner) for inner in value]
    raise TypeError(f"Datastore holds no {type(value).__name__}")

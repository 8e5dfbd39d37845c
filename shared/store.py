"""The seam to Datastore: a handful of calls, each one RPC, none retried.

    StoreError
    ├── StoreUnavailable   the call failed or its answer was lost: it may have been applied, even later. Read back.
    ├── AlreadyExists      insert: the entity is there. This call wrote nothing; an earlier try of it may have.
    ├── Conflict           update: the entity is not as it was read. This call wrote nothing; an earlier try may have.
    └── StoreRefused       this call wrote nothing, nor will it by being repeated: somebody must mend something.

Retrying and reading back belong to the ledger, which knows what it meant to write (`ledger.py`).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final, Protocol, TypeAlias

import grpc
from google.api_core.exceptions import GoogleAPICallError
from google.cloud.datastore_v1 import DatastoreClient
from google.cloud.datastore_v1.services.datastore.transports import DatastoreGrpcTransport
from google.cloud.datastore_v1.types import (
    CommitRequest,
    CompositeFilter,
    Entity,
    Filter,
    Key,
    KindExpression,
    LookupRequest,
    Mutation,
    PartitionId,
    Projection,
    PropertyFilter,
    PropertyOrder,
    PropertyReference,
    Query,
    QueryResultBatch,
    RunQueryRequest,
)
from google.cloud.datastore_v1.types import Value as ValueMessage

from shared import telemetry

Value: TypeAlias = "bool | int | float | str | datetime | Sequence[Value] | Mapping[str, Value] | None"
"""What a property may hold: integers of 64 bits, datetimes with a zone to the microsecond, no list within a list."""

CHARGE: Final = "Charge"  # The kind of the entities that are queried.

INDEXED: Final = frozenset({"attention", "due", "ended", "paid", "payment_intent"})
"""The properties that are queried. Every other one is excluded from indexes: an index costs each write time, and an
index on anything that rises with time makes all writers meet in one place."""

SHARDS: Final = 16  # One for each first hex digit of a charge's id, which is a digest: as even as can be.

MATCHES: Final = 10
"""How many charges one PaymentIntent may lead to: one is right, two are a defect, and ten say no more than two."""

CALL_TIMEOUT_SECONDS: Final = 5.0
"""A commit takes some 10 ms. Five seconds outlive a slow start of the channel, and leave time to read back."""

CHANNEL_OPTIONS: Final = (
    # gRPC waits 1, 1.6, ... up to 120 s before it connects again. Calls in between fail at once, so a long wait would
    # turn a restart of a second into an outage of many.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # As Google's own channel has it: Datastore limits the size of a request, and it says so better than gRPC.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)


def shard_of(charge_id: str) -> int:
    """Tell in which of the `SHARDS` a charge is looked for when it is due."""
    return int(charge_id[0], base=16)


def time_key(shard: int, at: datetime) -> str:
    """Write the `attention`, `due`, `paid` or `ended` property: `"<shard, two digits>|<RFC 3339 UTC, microseconds>"`.

    One string, in order of time within a shard, so that the index that Datastore keeps of every property serves, and no
    composite index is needed. The shard leads, because an index that leads with the time is a hot spot: each new entry
    would go to its end, all writers to one server. An entity without the property is not in the index: that of `due`
    is as small as the backlog.
    """
    timestamp = at.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00")
    return f"{shard:02d}|{timestamp}Z"


class StoreError(Exception):
    """A call that did not do what was asked."""


class StoreUnavailable(StoreError):
    """The call failed or its answer was lost: it may have been applied, or may still be. Read back before deciding."""


class AlreadyExists(StoreError):
    """An insert found the entity there. This call wrote nothing; an earlier one, whose answer was lost, may have."""


class Conflict(StoreError):
    """An update found the entity missing, locked, or at another version than `base_version`. It wrote nothing."""


class StoreRefused(StoreError):
    """The call wrote nothing, and never will by being repeated: the message says what somebody must mend."""


@dataclass(frozen=True)
class Stored:
    """An entity as it was read. `version` is Datastore's: it rises, by any step, with every write that changes it."""

    properties: Mapping[str, Value]
    version: int


class Store(Protocol):
    """Entities named by (kind, name). Reads see earlier writes. Any call may raise StoreUnavailable or StoreRefused."""

    def insert(self, kind: str, name: str, properties: Mapping[str, Value]) -> int:
        """Create the entity and return its version; AlreadyExists if there is one, whoever wrote it."""

    def update(self, kind: str, name: str, properties: Mapping[str, Value], base_version: int) -> int:
        """Replace all properties if the entity is still at `base_version`, else Conflict. Return the new version."""

    def get(self, kind: str, name: str) -> Stored | None:
        """Read one entity; None if there is none."""

    def due(self, shard: int, before: datetime, limit: int) -> list[str]:
        """Name at most `limit` charges of the shard whose `due` is no later than `before`, the oldest first."""

    def paid(self, shard: int, since: datetime, until: datetime, limit: int) -> list[str]:
        """Name at most `limit` charges of the shard that succeeded from `since` to `until`, the earliest first."""

    def ended(self, shard: int, before: datetime, limit: int) -> list[str]:
        """Name at most `limit` charges of the shard whose `ended` is no later than `before`, the oldest first."""

    def attention(self, shard: int, limit: int) -> list[str]:
        """Name at most `limit` charges of the shard that have `attention`, the oldest first."""

    def by_payment_intent(self, payment_intent: str) -> list[str]:
        """Name the charges that have recorded this PaymentIntent; at most `MATCHES`."""

    def names(self, kind: str, after: str, limit: int) -> list[str]:
        """Name at most `limit` entities of a kind, in order, from the first whose name comes after `after`."""


class Call(IntEnum):
    """What was asked for: the columns of `MEANING`."""

    INSERT = 0
    UPDATE = 1
    READ = 2


_Meaning = tuple[type[StoreError], type[StoreError], type[StoreError]]

# fmt: off
MEANING: Final[Mapping[grpc.StatusCode, _Meaning]] = {
    # code                                 insert             update             get, due, by_payment_intent
    grpc.StatusCode.ALREADY_EXISTS:      (AlreadyExists,    StoreRefused,      StoreRefused),
    # `base_version` is not the current one. Datastore documents neither which of the two codes it is, nor that it
    # means nothing else (ABORTED is a lock not had in time, too): the ledger reads the entity and sees.
    grpc.StatusCode.ABORTED:             (StoreUnavailable, Conflict,          StoreUnavailable),
    grpc.StatusCode.FAILED_PRECONDITION: (StoreRefused,     Conflict,          StoreRefused),
    # The entity to be updated, or else the whole database.
    grpc.StatusCode.NOT_FOUND:           (StoreRefused,     Conflict,          StoreRefused),
    # Anything may have happened. An insert or update may have been applied, or may be applied after this.
    grpc.StatusCode.UNAVAILABLE:         (StoreUnavailable, StoreUnavailable,  StoreUnavailable),
    grpc.StatusCode.DEADLINE_EXCEEDED:   (StoreUnavailable, StoreUnavailable,  StoreUnavailable),
    grpc.StatusCode.CANCELLED:           (StoreUnavailable, StoreUnavailable,  StoreUnavailable),
    grpc.StatusCode.INTERNAL:            (StoreUnavailable, StoreUnavailable,  StoreUnavailable),
    grpc.StatusCode.UNKNOWN:             (StoreUnavailable, StoreUnavailable,  StoreUnavailable),
    grpc.StatusCode.DATA_LOSS:           (StoreUnavailable, StoreUnavailable,  StoreUnavailable),
    # Nothing happened, and it may work in a moment: a quota.
    grpc.StatusCode.RESOURCE_EXHAUSTED:  (StoreUnavailable, StoreUnavailable,  StoreUnavailable),
    # Nothing happened, and nothing will until somebody acts.
    grpc.StatusCode.PERMISSION_DENIED:   (StoreRefused,     StoreRefused,      StoreRefused),
    grpc.StatusCode.UNAUTHENTICATED:     (StoreRefused,     StoreRefused,      StoreRefused),
    grpc.StatusCode.INVALID_ARGUMENT:    (StoreRefused,     StoreRefused,      StoreRefused),
    grpc.StatusCode.OUT_OF_RANGE:        (StoreRefused,     StoreRefused,      StoreRefused),
    grpc.StatusCode.UNIMPLEMENTED:       (StoreRefused,     StoreRefused,      StoreRefused),
}
# fmt: on

MEND: Final[Mapping[grpc.StatusCode, str]] = {
    grpc.StatusCode.PERMISSION_DENIED: "let the function's service account create, get, list and update entities of "
    "this database: infra/terraform makes such a role, which deletes nothing",
    grpc.StatusCode.UNAUTHENTICATED: "run the function as a service account, or log in with "
    "`gcloud auth application-default login`",
    grpc.StatusCode.NOT_FOUND: "create the database, or correct DATASTORE_DATABASE",
    grpc.StatusCode.FAILED_PRECONDITION: "the database must be Firestore in Datastore mode, with its built-in indexes",
    grpc.StatusCode.INVALID_ARGUMENT: "this is a defect of the caller, or an entity beyond Datastore's limits (1 MiB)",
}
"""What to do about a StoreRefused."""


def error_of(error: GoogleAPICallError, call: Call) -> StoreError:
    """Say in the store's own words what an error of Google's client means. An unlisted code may mean anything."""
    code = error.grpc_status_code
    if code is None or code not in MEANING:
        return StoreUnavailable(f"Datastore answered {error}")
    meaning = MEANING[code][call]
    mend = f"; {MEND[code]}" if meaning is StoreRefused and code in MEND else ""
    return meaning(f"Datastore answered {error}{mend}")


class DatastoreStore:
    """A database of Datastore (Firestore in Datastore mode), over gRPC. Threads may share one.

    project: its id. database: its name, empty for the default one.
    emulator_host: `host:port`. By default DATASTORE_EMULATOR_HOST, as in Google's own clients; if that is unset too,
    the service itself with Application Default Credentials.
    timeout_seconds: how long each call may take. It fails sooner if there is no connection.
    """

    def __init__(
        self,
        project: str,
        database: str = "",
        *,
        emulator_host: str | None = None,
        timeout_seconds: float = CALL_TIMEOUT_SECONDS,
    ) -> None:
        self._project = project
        self._database = database
        self._timeout_seconds = timeout_seconds
        self._partition = PartitionId(project_id=project, database_id=database)
        self._client = _client(emulator_host or os.environ.get("DATASTORE_EMULATOR_HOST"))

    def close(self) -> None:
        """Give the connection back. The store is of no use afterwards."""
        self._client.transport.close()  # type: ignore[no-untyped-call]

    def insert(self, kind: str, name: str, properties: Mapping[str, Value]) -> int:
        """Create the entity and return its version; AlreadyExists if there is one, whoever wrote it."""
        return self._commit(Mutation(insert=self._entity(kind, name, properties)), Call.INSERT)

    def update(self, kind: str, name: str, properties: Mapping[str, Value], base_version: int) -> int:
        """Replace all properties if the entity is still at `base_version`, else Conflict. Return the new version."""
        mutation = Mutation(
            update=self._entity(kind, name, properties),
            base_version=base_version,
            # Otherwise Datastore keeps its own entity and answers OK.
            conflict_resolution_strategy=Mutation.ConflictResolutionStrategy.FAIL,
        )
        return self._commit(mutation, Call.UPDATE)

    def get(self, kind: str, name: str) -> Stored | None:
        """Read one entity; None if there is none."""
        request = LookupRequest(project_id=self._project, database_id=self._database, keys=[self._key(kind, name)])
        try:
            answer = self._client.lookup(request, retry=None, timeout=self._timeout_seconds)
        except GoogleAPICallError as error:
            raise error_of(error, Call.READ) from error
        if answer.deferred:
            raise StoreUnavailable("Datastore put the look-up off")
        if not answer.found:
            return None
        found = answer.found[0]
        return Stored(properties=_properties(Entity.pb(found.entity)), version=found.version)

    def due(self, shard: int, before: datetime, limit: int) -> list[str]:
        """Name at most `limit` charges of the shard whose `due` is no later than `before`, the oldest first."""
        return self._between("due", f"{shard:02d}|", time_key(shard, before), limit)

    def paid(self, shard: int, since: datetime, until: datetime, limit: int) -> list[str]:
        """Name at most `limit` charges of the shard that succeeded from `since` to `until`, the earliest first."""
        return self._between("paid", time_key(shard, since), time_key(shard, until), limit)

    def ended(self, shard: int, before: datetime, limit: int) -> list[str]:
        """Name at most `limit` charges of the shard whose `ended` is no later than `before`, the oldest first."""
        return self._between("ended", f"{shard:02d}|", time_key(shard, before), limit)

    def attention(self, shard: int, limit: int) -> list[str]:
        """Name at most `limit` charges of the shard that have `attention`, the oldest first."""
        return self._between("attention", f"{shard:02d}|", f"{shard:02d}|~", limit)

    def by_payment_intent(self, payment_intent: str) -> list[str]:
        """Name the charges that have recorded this PaymentIntent; at most `MATCHES`."""
        recorded = PropertyReference(name="payment_intent")
        condition = _filter(recorded, PropertyFilter.Operator.EQUAL, ValueMessage(string_value=payment_intent))
        return self._names(CHARGE, condition, MATCHES)

    def names(self, kind: str, after: str, limit: int) -> list[str]:
        """Name at most `limit` entities of a kind, in order, from the first whose name comes after `after`."""
        name = PropertyReference(name="__key__")
        condition = None
        if after:
            value = ValueMessage(key_value=self._key(kind, after))
            condition = _filter(name, PropertyFilter.Operator.GREATER_THAN, value)
        return self._names(kind, condition, limit, order=[PropertyOrder(property=name)])

    def _between(self, index: str, lowest: str, highest: str, limit: int) -> list[str]:
        """Name charges by an indexed string, both ends included, in its order."""
        indexed = PropertyReference(name=index)
        at_least = PropertyFilter.Operator.GREATER_THAN_OR_EQUAL
        at_most = PropertyFilter.Operator.LESS_THAN_OR_EQUAL
        both = CompositeFilter(
            op=CompositeFilter.Operator.AND,
            filters=[
                _filter(indexed, at_least, ValueMessage(string_value=lowest)),
                _filter(indexed, at_most, ValueMessage(string_value=highest)),
            ],
        )
        ascending = PropertyOrder(property=indexed, direction=PropertyOrder.Direction.ASCENDING)
        return self._names(CHARGE, Filter(composite_filter=both), limit, order=[ascending])

    @telemetry.span("datastore commit")
    def _commit(self, mutation: Mutation, call: Call) -> int:
        result = "ok"
        try:
            return self._committed(mutation, call)
        except StoreError as error:
            result = type(error).__name__
            raise
        finally:
            telemetry.count("commits", call=call.name.lower(), result=result)

    def _committed(self, mutation: Mutation, call: Call) -> int:
        request = CommitRequest(
            project_id=self._project,
            database_id=self._database,
            mode=CommitRequest.Mode.NON_TRANSACTIONAL,  # One RPC. One entity is written whole or not at all anyway.
            mutations=[mutation],
        )
        try:
            answer = self._client.commit(request, retry=None, timeout=self._timeout_seconds)
        except GoogleAPICallError as error:
            raise error_of(error, call) from error
        result = answer.mutation_results[0]
        if result.conflict_detected:
            raise Conflict("Datastore kept its own version of the entity")
        version: int = result.version
        return version

    def _names(self, kind: str, condition: Filter | None, limit: int, order: Sequence[PropertyOrder] = ()) -> list[str]:
        """Query for names only: that is answered from the index alone."""
        names: list[str] = []
        cursor = b""
        while True:
            query = Query(
                kind=[KindExpression(name=kind)],
                projection=[Projection(property=PropertyReference(name="__key__"))],
                filter=condition,
                order=order,
                start_cursor=cursor,
                limit=limit - len(names),
            )
            request = RunQueryRequest(
                project_id=self._project, database_id=self._database, partition_id=self._partition, query=query
            )
            try:
                batch = self._client.run_query(request, retry=None, timeout=self._timeout_seconds).batch
            except GoogleAPICallError as error:
                raise error_of(error, Call.READ) from error
            names += [result.entity.key.path[-1].name for result in batch.entity_results]
            # Datastore may stop wherever it likes and say that there is more.
            if batch.more_results != QueryResultBatch.MoreResultsType.NOT_FINISHED or len(names) >= limit:
                return names
            cursor = batch.end_cursor

    def _key(self, kind: str, name: str) -> Key:
        return Key(partition_id=self._partition, path=[Key.PathElement(kind=kind, name=name)])

    def _entity(self, kind: str, name: str, properties: Mapping[str, Value]) -> Entity:
        entity = Entity(key=self._key(kind, name))
        for property_name, value in properties.items():
            _fill(Entity.pb(entity).properties[property_name], value, indexed=property_name in INDEXED)
        return entity


def _client(emulator_host: str | None) -> DatastoreClient:
    # Calls fail at once while there is no connection (gRPC's `wait_for_ready` is off unless asked for): how long to
    # wait, and for what, is the ledger's to say.
    if emulator_host:
        channel = grpc.insecure_channel(emulator_host, options=CHANNEL_OPTIONS)
        return DatastoreClient(transport=DatastoreGrpcTransport(channel=channel))
    return DatastoreClient(transport=DatastoreGrpcTransport(channel=_service_channel))


def _service_channel(host: str, *, options: object, **arguments: Any) -> grpc.Channel:
    """Open Google's own channel, with our options in place of the transport's."""
    del options
    return DatastoreGrpcTransport.create_channel(host, options=CHANNEL_OPTIONS, **arguments)


def _filter(reference: PropertyReference, operator: int, value: ValueMessage) -> Filter:
    return Filter(property_filter=PropertyFilter(property=reference, op=operator, value=value))


# Both ways work on the protobuf beneath Google's wrapper, which takes seven times as long for a long history.


def _fill(message: Any, value: Value, *, indexed: bool = False) -> None:
    """Write a value into Datastore's message.

    What lies within a map or a list is excluded from indexes too, each value for itself: Datastore holds an indexed
    string to 1,500 bytes wherever it is, and the parameters of a request are longer.
    """
    match value:
        case None:
            message.null_value = 0
        case bool():
            message.boolean_value = value
        case int():
            message.integer_value = value
        case float():
            message.double_value = value
        case str():
            message.string_value = value
        case datetime():
            message.timestamp_value.FromDatetime(value.astimezone(UTC))
        case Mapping():
            message.entity_value.SetInParent()
            for name, inner in value.items():
                _fill(message.entity_value.properties[name], inner)
        case _:
            message.array_value.SetInParent()
            for inner in value:
                _fill(message.array_value.values.add(), inner)
            return  # Datastore takes the mark on the values of a list, not on the list.
    message.exclude_from_indexes = not indexed


def _properties(entity: Any) -> dict[str, Value]:
    """Read an entity's properties from Datastore's message."""
    return {name: _value(message) for name, message in entity.properties.items()}


def _value(message: Any) -> Value:
    kind = message.WhichOneof("value_type")
    match kind:
        case None | "null_value":
            return None
        case "timestamp_value":
            timestamp: datetime = message.timestamp_value.ToDatetime(tzinfo=UTC)
            return timestamp
        case "entity_value":
            return _properties(message.entity_value)
        case "array_value":
            return [_value(inner) for inner in message.array_value.values]
        case _:
            scalar: Value = getattr(message, kind)
            return scalar

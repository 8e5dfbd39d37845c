"""What every Store promises: the one in memory, which other tests rest on, and Google's two engines."""

import re
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import grpc
import pytest
from google.api_core.exceptions import GoogleAPICallError, from_grpc_status
from google.auth.credentials import AnonymousCredentials

from shared.store import (
    CHARGE,
    MATCHES,
    MEANING,
    SHARDS,
    AlreadyExists,
    Call,
    Conflict,
    DatastoreStore,
    Store,
    StoreRefused,
    StoreUnavailable,
    Value,
    error_of,
    shard_of,
    time_key,
)
from tests.memory_store import MemoryStore

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)

Databases = Callable[[str], DatastoreStore]


def answered(code: grpc.StatusCode) -> GoogleAPICallError:
    """Make the error that Google's client raises for a code."""
    error: GoogleAPICallError = from_grpc_status(code, "because")  # type: ignore[no-untyped-call]
    return error


@pytest.fixture(params=["datastore", "firestore"])
def databases(request: pytest.FixtureRequest) -> Iterator[Databases]:
    """Open a named database of a project that no other test sees, on either engine."""
    host: str = request.getfixturevalue(f"{request.param}_emulator").host
    project = f"test-{uuid.uuid4().hex[:12]}"
    opened: list[DatastoreStore] = []

    def open_database(name: str) -> DatastoreStore:
        opened.append(DatastoreStore(project, name, emulator_host=host))
        return opened[-1]

    yield open_database
    for store in opened:
        store.close()


@pytest.fixture(params=["memory", "datastore", "firestore"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Open an empty store of each sort."""
    if request.param == "memory":
        yield MemoryStore()
        return
    host: str = request.getfixturevalue(f"{request.param}_emulator").host
    opened = DatastoreStore(f"test-{uuid.uuid4().hex[:12]}", emulator_host=host)
    yield opened
    opened.close()


def test_what_was_inserted_is_read_at_the_version_that_the_insert_answered(store: Store) -> None:
    """The version is what the next update is conditional on, so no read is needed in between."""
    version = store.insert(CHARGE, "a1", {"amount": 1999})

    stored = store.get(CHARGE, "a1")

    assert stored is not None
    assert (stored.properties, stored.version) == ({"amount": 1999}, version)


def test_a_second_insert_is_refused_and_changes_nothing(store: Store) -> None:
    """Lock one: one charge, one entity."""
    version = store.insert(CHARGE, "a1", {"amount": 1999})

    with pytest.raises(AlreadyExists):
        store.insert(CHARGE, "a1", {"amount": 5})

    stored = store.get(CHARGE, "a1")
    assert stored is not None
    assert (stored.properties, stored.version) == ({"amount": 1999}, version)


def test_of_twenty_inserts_at_once_one_wins(store: Store) -> None:
    """And what is kept is the winner's."""

    def insert(number: int) -> int | None:
        try:
            store.insert(CHARGE, "a1", {"number": number})
        except AlreadyExists:
            return None
        return number

    with ThreadPoolExecutor(20) as threads:
        winners = [number for number in threads.map(insert, range(20)) if number is not None]

    stored = store.get(CHARGE, "a1")
    assert stored is not None
    assert [stored.properties["number"]] == winners


def test_an_update_at_the_version_read_replaces_all_properties(store: Store) -> None:
    """What the new state lacks is gone: a final charge must leave the index of those that are due."""
    before = store.insert(CHARGE, "a1", {"status": "pending", "note": "x"})

    after = store.update(CHARGE, "a1", {"status": "succeeded"}, before)

    stored = store.get(CHARGE, "a1")
    assert stored is not None
    assert (stored.properties, stored.version) == ({"status": "succeeded"}, after)
    assert after > before


def test_an_update_at_a_stale_version_is_refused_and_changes_nothing(store: Store) -> None:
    """Lock two rests on it: the PaymentIntent is recorded by one and never replaced by a straggler."""
    first = store.insert(CHARGE, "a1", {"payment_intent": ""})
    second = store.update(CHARGE, "a1", {"payment_intent": "pi_1"}, first)

    with pytest.raises(Conflict):
        store.update(CHARGE, "a1", {"payment_intent": "pi_2"}, first)

    stored = store.get(CHARGE, "a1")
    assert stored is not None
    assert (stored.properties, stored.version) == ({"payment_intent": "pi_1"}, second)


def test_of_ten_updates_at_once_from_one_version_one_wins(store: Store) -> None:
    """Whoever loses learns it: no write is silently overtaken."""
    base_version = store.insert(CHARGE, "a1", {"number": -1})

    def update(number: int) -> int | None:
        try:
            store.update(CHARGE, "a1", {"number": number}, base_version)
        except Conflict:
            return None
        return number

    with ThreadPoolExecutor(10) as threads:
        winners = [number for number in threads.map(update, range(10)) if number is not None]

    stored = store.get(CHARGE, "a1")
    assert stored is not None
    assert [stored.properties["number"]] == winners


def test_an_update_of_what_does_not_exist_is_a_conflict_and_creates_nothing(store: Store) -> None:
    """An update never brings back what is not there."""
    version = store.insert(CHARGE, "a1", {})

    with pytest.raises(Conflict):
        store.update(CHARGE, "a2", {}, version)

    assert store.get(CHARGE, "a2") is None


def test_an_update_that_changes_nothing_keeps_the_version(store: Store) -> None:
    """So a version alone does not tell whether a write arrived: the ledger puts a token into each."""
    version = store.insert(CHARGE, "a1", {"amount": 1999})

    assert store.update(CHARGE, "a1", {"amount": 1999}, version) == version


def test_what_is_absent_is_none(store: Store) -> None:
    """Not an error: the caller's key may be new."""
    assert store.get(CHARGE, "a1") is None


def test_kinds_do_not_share_names(store: Store) -> None:
    """A dead letter may bear the name of a charge."""
    store.insert(CHARGE, "a1", {"amount": 1999})
    store.insert("DeadLetter", "a1", {"body": "?"})

    stored = store.get(CHARGE, "a1")
    assert stored is not None
    assert stored.properties == {"amount": 1999}


def test_every_type_of_value_comes_back_as_it_went(store: Store) -> None:
    """To the microsecond, to the 64th bit, nested, empty, and too long for an index."""
    properties: dict[str, Value] = {
        "none": None,
        "true": True,
        "false": False,
        "zero": 0,
        "most": 2**63 - 1,
        "least": -(2**63),
        "half": 0.5,
        "empty": "",
        "text": "Zoë\n\x00€😀",
        "long": "x" * 10_000,
        "moment": NOON.replace(microsecond=123_456),
        "no_list": [],
        "no_map": {},
        "list": [1, "two", None, True, {"long": "y" * 10_000, "at": NOON}],
        "map": {"a.b": {"deeper": [{"deepest": 1}]}, "none": None},
    }

    store.insert(CHARGE, "a1", properties)

    stored = store.get(CHARGE, "a1")
    assert stored is not None
    assert stored.properties == properties
    assert {name: type(value) for name, value in stored.properties.items()} == {
        name: type(value) for name, value in properties.items()
    }


def test_a_time_comes_back_in_utc(store: Store) -> None:
    """The moment is kept, the zone is not."""
    tokyo = timezone(timedelta(hours=9))
    store.insert(CHARGE, "a1", {"at": NOON.astimezone(tokyo)})

    stored = store.get(CHARGE, "a1")
    assert stored is not None
    at = stored.properties["at"]
    assert at == NOON
    assert isinstance(at, datetime)
    assert at.utcoffset() == timedelta(0)


def test_neither_what_was_given_nor_what_was_read_is_tied_to_what_is_stored(store: Store) -> None:
    """A test that changes what it holds must not change the store in memory."""
    given: dict[str, Value] = {"list": [1]}
    store.insert(CHARGE, "a1", given)
    given["list"] = [2]
    read = store.get(CHARGE, "a1")
    assert read is not None
    numbers = read.properties["list"]
    assert isinstance(numbers, list)
    numbers.append(3)

    again = store.get(CHARGE, "a1")
    assert again is not None
    assert again.properties == {"list": [1]}


def test_charges_that_are_due_are_named_oldest_first_up_to_the_limit(store: Store) -> None:
    """At the very moment counts as due; a microsecond later does not."""
    for name, seconds in {"a3": -1, "a1": -3, "a2": -2.5, "a4": 0, "a5": 0.000_001, "a6": 60}.items():
        store.insert(CHARGE, name, {"due": time_key(7, NOON + timedelta(seconds=seconds))})

    assert store.due(7, NOON, 10) == ["a1", "a2", "a3", "a4"]
    assert store.due(7, NOON, 2) == ["a1", "a2"]


def test_a_shard_names_only_its_own(store: Store) -> None:
    """Neighbours in the index stay apart."""
    for shard in range(SHARDS):
        store.insert(CHARGE, f"{shard:x}1", {"due": time_key(shard, NOON)})

    assert [store.due(shard, NOON, 10) for shard in range(SHARDS)] == [[f"{shard:x}1"] for shard in range(SHARDS)]


def test_a_charge_that_is_final_is_not_due(store: Store) -> None:
    """Without the property there is no entry in the index, however old the charge."""
    version = store.insert(CHARGE, "a1", {"due": time_key(10, NOON)})
    store.insert("DeadLetter", "a2", {"due": time_key(10, NOON)})
    assert store.due(10, NOON, 10) == ["a1"]

    store.update(CHARGE, "a1", {"status": "succeeded"}, version)

    assert store.due(10, NOON, 10) == []


def test_more_charges_than_one_answer_holds_are_all_named(store: Store) -> None:
    """Datastore answers a query in batches of its own size."""
    names = [f"a{number:03d}" for number in range(350)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: store.insert(CHARGE, name, {"due": time_key(10, NOON)}), names))

    assert sorted(store.due(10, NOON, 1000)) == names
    assert len(store.due(10, NOON, 340)) == 340


def test_charges_paid_in_a_period_are_named_earliest_first_up_to_the_limit(store: Store) -> None:
    """Both ends belong to it."""
    for hour in (3, 1, 0, 2, 4):
        store.insert(CHARGE, f"0{hour}", {"paid": time_key(0, NOON + timedelta(hours=hour))})
    store.insert(CHARGE, "10", {"paid": time_key(1, NOON + timedelta(hours=2))})

    assert store.paid(0, NOON + timedelta(hours=1), NOON + timedelta(hours=3), 10) == ["01", "02", "03"]
    assert store.paid(0, NOON, NOON + timedelta(hours=9), 2) == ["00", "01"]


def test_charges_that_have_ended_are_named_oldest_first_up_to_the_limit(store: Store) -> None:
    """Of one shard, up to a time."""
    for hour in (3, 1, 0, 2):
        store.insert(CHARGE, f"0{hour}", {"ended": time_key(0, NOON + timedelta(hours=hour))})
    store.insert(CHARGE, "10", {"ended": time_key(1, NOON)})

    assert store.ended(0, NOON + timedelta(hours=2), 10) == ["00", "01", "02"]
    assert store.ended(0, NOON + timedelta(hours=2), 2) == ["00", "01"]
    assert store.ended(2, NOON, 10) == []


def test_charges_that_need_somebody_are_named_oldest_first_up_to_the_limit(store: Store) -> None:
    """Of one shard, however old; those that need nobody are not among them."""
    for hour in (3, 1, 2):
        store.insert(CHARGE, f"0{hour}", {"attention": time_key(0, NOON + timedelta(hours=hour))})
    store.insert(CHARGE, "00", {"due": time_key(0, NOON)})
    store.insert(CHARGE, "10", {"attention": time_key(1, NOON)})

    assert store.attention(0, 10) == ["01", "02", "03"]
    assert store.attention(0, 2) == ["01", "02"]
    assert store.attention(2, 10) == []


def test_the_names_of_a_kind_are_read_in_order_from_any_of_them_on(store: Store) -> None:
    """Other kinds are not among them."""
    for name in ("b", "a", "c"):
        store.insert("AuditReport", name, {"at": NOON})
    store.insert(CHARGE, "aa", {"amount": 1})

    assert store.names("AuditReport", "", 10) == ["a", "b", "c"]
    assert store.names("AuditReport", "a", 10) == ["b", "c"]
    assert store.names("AuditReport", "", 2) == ["a", "b"]
    assert store.names("Ledger", "", 1) == []


def test_a_charge_is_found_by_its_payment_intent(store: Store) -> None:
    """Only its own, only charges, and two if two claim it."""
    store.insert(CHARGE, "a1", {"payment_intent": "pi_1"})
    store.insert(CHARGE, "a2", {"payment_intent": "pi_2"})
    store.insert(CHARGE, "a3", {"payment_intent": "pi_2"})
    store.insert(CHARGE, "a4", {"other": "pi_1"})
    store.insert("Discrepancy", "a5", {"payment_intent": "pi_1"})

    assert store.by_payment_intent("pi_1") == ["a1"]
    assert sorted(store.by_payment_intent("pi_2")) == ["a2", "a3"]
    assert store.by_payment_intent("pi_3") == []


def test_the_charges_of_one_payment_intent_are_bounded(store: Store) -> None:
    """A limit on everything."""
    for number in range(MATCHES + 2):
        store.insert(CHARGE, f"a{number:02d}", {"payment_intent": "pi_1"})

    assert len(store.by_payment_intent("pi_1")) == MATCHES


def test_named_databases_are_apart(databases: Databases) -> None:
    """Live and test charges may lie in one project."""
    live, test = databases("live"), databases("")
    live.insert(CHARGE, "a1", {"amount": 1999})

    assert live.get(CHARGE, "a1") is not None
    assert test.get(CHARGE, "a1") is None
    test.insert(CHARGE, "a1", {"amount": 5})


@pytest.mark.parametrize("databases", ["firestore"], indirect=True)
def test_queries_of_named_databases_are_apart(databases: Databases) -> None:
    """As in the service. The Datastore emulator's queries see every database of the project: there, use one only."""
    live, test = databases("live"), databases("")
    live.insert(CHARGE, "a1", {"due": time_key(10, NOON), "payment_intent": "pi_1"})

    assert test.due(10, NOON, 10) == []
    assert test.by_payment_intent("pi_1") == []
    assert live.due(10, NOON, 10) == live.by_payment_intent("pi_1") == ["a1"]


def test_what_datastore_cannot_hold_is_refused_with_what_to_do(databases: Databases) -> None:
    """Repeating it would not help, so it does not look like an outage."""
    with pytest.raises(StoreRefused, match="1 MiB"):
        databases("").insert(CHARGE, "a1", {"due": "x" * 1501})


def test_a_host_where_nobody_listens_is_unavailable_at_once() -> None:
    """No connection is no reason to wait for the whole time limit."""
    store = DatastoreStore("nowhere", emulator_host="127.0.0.1:1", timeout_seconds=30)
    began = datetime.now(UTC)

    with pytest.raises(StoreUnavailable):
        store.get(CHARGE, "a1")

    assert datetime.now(UTC) - began < timedelta(seconds=10)
    store.close()


def test_without_an_emulator_it_is_the_service_with_the_credentials_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing to configure in production but the project."""
    monkeypatch.delenv("DATASTORE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr("google.auth.default", lambda **_: (AnonymousCredentials(), "some-project"))  # type: ignore[no-untyped-call]

    store = DatastoreStore("some-project", "live")

    assert store._client.transport.host == "datastore.googleapis.com:443"
    store.close()


@pytest.mark.parametrize("call", Call)
def test_every_error_code_of_grpc_has_a_meaning(call: Call) -> None:
    """A code without a row would be read as an outage; a refusal is one only where nothing can have been written."""
    for code in set(grpc.StatusCode) - {grpc.StatusCode.OK}:
        assert code in MEANING
        assert type(error_of(answered(code), call)) is MEANING[code][call]


def test_a_permission_that_is_missing_is_named() -> None:
    """The message is for whoever deploys, and asks for what the deployment gives: no role that can delete."""
    said = str(error_of(answered(grpc.StatusCode.PERMISSION_DENIED), Call.INSERT))
    roles = (Path(__file__).parents[2] / "infra" / "terraform" / "identities.tf").read_text()
    given = re.findall(r'"datastore\.entities\.(\w+)"', roles)
    assert sorted(given) == ["create", "get", "list", "update"]
    assert all(verb in said for verb in given)
    assert "roles/datastore" not in said


def test_time_keys_sort_as_their_times_whatever_the_zone() -> None:
    """Text is compared character by character, so every one has the same width."""
    tokyo = timezone(timedelta(hours=9))
    times = [NOON, NOON + timedelta(microseconds=1), NOON + timedelta(seconds=1), NOON + timedelta(days=400)]

    keys = [time_key(3, time.astimezone(tokyo)) for time in times]

    assert keys == sorted(keys)
    assert keys[0] == "03|2026-11-24T12:00:00.000000Z"
    assert len({len(key) for key in keys}) == 1
    assert [shard_of(f"{digit:x}0") for digit in range(SHARDS)] == list(range(SHARDS))

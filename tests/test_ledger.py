"""What the ledger makes of a Datastore that loses requests and answers: nothing is written twice, or in vain."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.charge import (
    Attempt,
    CancelReason,
    Charge,
    Closing,
    Discrepancy,
    Entry,
    Failure,
    Party,
    Request,
    Standing,
    Status,
    Terms,
    charge_id,
)
from shared.ledger import (
    COMMIT_BUDGET,
    FIRST_WAIT,
    LONGEST_WAIT,
    READ_BUDGET,
    SHORTEST_WAIT,
    Conflict,
    Held,
    Ledger,
    LedgerUnavailable,
    charge_of,
    properties_of,
)
from shared.store import CHARGE, SHARDS, StoreRefused, StoreUnavailable, Value
from tests.memory_store import Hook, MemoryStore, StoreCall

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)

Act = Callable[[], object]


class Waiting:
    """A clock that only waiting moves, and that remembers how long each wait was."""

    def __init__(self) -> None:
        self.waits: list[timedelta] = []

    def now(self) -> datetime:
        """Return noon and what has been waited since."""
        return NOON + sum(self.waits, timedelta())

    def monotonic(self) -> float:
        """Return the seconds waited."""
        return sum(self.waits, timedelta()).total_seconds()

    def sleep(self, duration: timedelta) -> None:
        """Let the time pass."""
        self.waits.append(duration)


def chance(seed: int) -> Random:
    """Make chance that repeats."""
    return Random(seed)  # noqa: S311 - tokens and waits are no secrets.


class Death(BaseException):
    """The process is killed."""


def unavailable(call: StoreCall) -> None:
    """Lose it."""
    raise StoreUnavailable(f"{call.operation} got lost")


def on(operation: str, hook: Hook, *, times: int) -> Hook:
    """Let a hook see only the first calls of one operation."""
    seen = 0

    def only(call: StoreCall) -> None:
        nonlocal seen
        if call.operation == operation:
            seen += 1
            if seen <= times:
                hook(call)

    return only


def in_turn(first: Hook, second: Hook) -> Hook:
    """Let both hooks see a call."""

    def both(call: StoreCall) -> None:
        first(call)
        second(call)

    return both


def counting(calls: list[str]) -> Hook:
    """Note what is called."""
    return lambda call: calls.append(call.operation)


def new_charge(idempotency_key: str = "order-1") -> Charge:
    """Make a charge as it is first recorded."""
    return Charge(
        id=charge_id(None, idempotency_key),
        idempotency_key=idempotency_key,
        body_digest="d",
        terms=Terms(amount=1999, currency="usd", customer="cus_1", payment_method="pm_1"),
        payment_method="pm_1",
        livemode=False,
        status=Status.PENDING,
        create=Request(idempotency_key="pio-1-create-1", operation="create", parameters="{}", api_version="v"),
        created_at=NOON,
        updated_at=NOON,
        expires_at=NOON + timedelta(days=30),
        due_at=NOON + timedelta(seconds=90),
    )


@pytest.fixture
def store() -> MemoryStore:
    """Return an empty store that works."""
    return MemoryStore()


@pytest.fixture
def clock() -> Waiting:
    """Return a clock that stands at noon."""
    return Waiting()


@pytest.fixture
def ledger(store: MemoryStore, clock: Waiting) -> Ledger:
    """Return a ledger whose chance repeats."""
    return Ledger(store, clock, chance=chance(1))


def inserted(ledger: Ledger, charge: Charge | None = None) -> Held:
    """Record a charge that was not there."""
    held = ledger.insert(charge or new_charge())
    assert held is not None
    return held


# When all is well.


def test_an_insert_and_an_update_are_one_call_each(store: MemoryStore, ledger: Ledger) -> None:
    """The happy path costs three commits and nothing else."""
    calls: list[str] = []
    store.before = counting(calls)

    held = ledger.update(inserted(ledger), new_charge())
    ledger.update(held, held.charge)

    assert calls == ["insert", "update", "update"]


def test_what_was_written_is_what_is_read(ledger: Ledger) -> None:
    """With the version that the next update is conditional on."""
    held = inserted(ledger)
    assert ledger.get(held.charge.id) == held

    held = ledger.update(held, replace(held.charge, status=Status.SUCCEEDED, due_at=None))
    assert ledger.get(held.charge.id) == held


def test_an_update_is_the_next_version_and_of_this_time(ledger: Ledger, clock: Waiting) -> None:
    """Whatever the caller put there."""
    held = inserted(ledger)
    clock.sleep(timedelta(seconds=7))

    charge = ledger.update(held, replace(held.charge, version=40, status=Status.UNKNOWN)).charge

    assert (charge.version, charge.updated_at) == (2, NOON + timedelta(seconds=7))
    assert charge.status is Status.UNKNOWN


def test_a_charge_that_is_absent_is_none(ledger: Ledger) -> None:
    """A key may be new."""
    assert ledger.get(charge_id(None, "new")) is None


def test_a_key_has_one_charge_whoever_records_it(store: MemoryStore, ledger: Ledger, clock: Waiting) -> None:
    """Also when both would record the very same."""
    other = Ledger(store, clock, chance=chance(2))
    first = inserted(ledger)

    assert other.insert(new_charge()) is None
    assert ledger.insert(new_charge()) is None
    assert ledger.get(first.charge.id) == first
    assert clock.waits == []


def test_a_record_is_kept_once(store: MemoryStore, ledger: Ledger) -> None:
    """A dead letter that comes again is the same dead letter."""
    assert ledger.record_once("DeadLetter", "t1", {"body": "?"})
    assert not ledger.record_once("DeadLetter", "t1", {"body": "!"})

    stored = store.get("DeadLetter", "t1")
    assert stored is not None
    assert stored.properties["body"] == "?"


def test_the_charges_that_are_due_are_named_each_shards_oldest_first(ledger: Ledger) -> None:
    """No shard waits for another's backlog; final charges are not there."""
    for number in range(3 * SHARDS):
        due_at = NOON - timedelta(seconds=number // SHARDS)
        inserted(ledger, replace(new_charge(), id=f"{number % SHARDS:x}{number}", due_at=due_at))
    inserted(ledger, replace(new_charge(), id="aaa", due_at=NOON + timedelta(seconds=1)))
    inserted(ledger, replace(new_charge(), id="abb", status=Status.SUCCEEDED, due_at=None))

    expected = [
        f"{number % SHARDS:x}{number}" for row in (2, 1, 0) for number in range(row * SHARDS, (row + 1) * SHARDS)
    ]
    assert ledger.due(NOON, 10) == expected
    assert ledger.due(NOON, 1) == expected[:SHARDS]


def test_a_charge_is_found_by_its_payment_intent(ledger: Ledger) -> None:
    """Once it is recorded."""
    held = inserted(ledger)
    assert ledger.find("pi_1") == []

    ledger.update(held, replace(held.charge, payment_intent="pi_1"))

    assert ledger.find("pi_1") == [held.charge.id]


# When requests and answers get lost.


@pytest.mark.parametrize("losses", [1, 2, 5])
@pytest.mark.parametrize("where", ["before", "after"])
def test_an_insert_whose_answers_are_lost_is_known_as_our_own(
    store: MemoryStore, ledger: Ledger, where: str, losses: int
) -> None:
    """Whether or not it had been applied; otherwise nobody would go on with the charge."""
    setattr(store, where, on("insert", unavailable, times=losses))

    held = inserted(ledger)

    assert ledger.get(held.charge.id) == held


@pytest.mark.parametrize("losses", [1, 2, 5])
@pytest.mark.parametrize("where", ["before", "after"])
def test_an_update_whose_answers_are_lost_is_known_as_our_own(
    store: MemoryStore, ledger: Ledger, where: str, losses: int
) -> None:
    """What Stripe answered is not thrown away as if somebody else had written."""
    held = inserted(ledger)
    setattr(store, where, on("update", unavailable, times=losses))

    held = ledger.update(held, replace(held.charge, payment_intent="pi_1"))

    assert ledger.get(held.charge.id) == held
    assert (held.charge.payment_intent, held.charge.version) == ("pi_1", 2)


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_read_back_that_is_lost_too_is_repeated(store: MemoryStore, ledger: Ledger, where: str) -> None:
    """Both directions fail for a while, as they do in an outage."""
    held = inserted(ledger)
    setattr(store, where, on("update", unavailable, times=1))
    store.before = in_turn(store.before, on("get", unavailable, times=3))

    held = ledger.update(held, replace(held.charge, payment_intent="pi_1"))

    assert ledger.get(held.charge.id) == held


def test_an_insert_that_arrives_late_is_known_as_our_own(store: MemoryStore, ledger: Ledger) -> None:
    """The first try is applied only after the read-back found nothing; the second meets it."""
    late: list[Act] = []
    insert = store.insert

    def insert_late(kind: str, name: str, properties: dict[str, Value]) -> int:
        if not late:
            late.append(lambda: insert(kind, name, properties))
            raise StoreUnavailable("still under way")
        late[0]()
        return insert(kind, name, properties)

    store.insert = insert_late  # type: ignore[method-assign, assignment]

    held = inserted(ledger)

    assert ledger.get(held.charge.id) == held


def test_an_update_that_arrives_late_is_known_as_our_own(store: MemoryStore, ledger: Ledger) -> None:
    """The first try is applied only after the read-back found nothing changed; the second meets it."""
    held = inserted(ledger)
    late: list[Act] = []
    update = store.update

    def update_late(kind: str, name: str, properties: dict[str, Value], base_version: int) -> int:
        if not late:
            late.append(lambda: update(kind, name, properties, base_version))
            raise StoreUnavailable("still under way")
        late[0]()
        return update(kind, name, properties, base_version)

    store.update = update_late  # type: ignore[method-assign, assignment]

    held = ledger.update(held, replace(held.charge, payment_intent="pi_1"))

    assert ledger.get(held.charge.id) == held


def test_a_lock_that_is_not_had_in_time_is_no_conflict(store: MemoryStore, ledger: Ledger, clock: Waiting) -> None:
    """Datastore answers ABORTED though nobody has written: the read-back finds the version unchanged."""
    held = inserted(ledger)

    def locked(_call: StoreCall) -> None:
        raise Conflict("Transaction lock timeout.")

    store.before = on("update", locked, times=2)

    held = ledger.update(held, replace(held.charge, payment_intent="pi_1"))

    assert ledger.get(held.charge.id) == held
    assert len(clock.waits) == 2


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_record_whose_answer_is_lost_counts_as_recorded_by_us(store: MemoryStore, ledger: Ledger, where: str) -> None:
    """So its alert is sent once."""
    setattr(store, where, on("insert", unavailable, times=1))

    assert ledger.record_once("DeadLetter", "t1", {"body": "?"})


# When somebody else writes.


def test_an_update_of_what_another_has_written_is_a_conflict(
    store: MemoryStore, ledger: Ledger, clock: Waiting
) -> None:
    """And the other's word stands."""
    held = inserted(ledger)
    others = Ledger(store, clock, chance=chance(2)).update(held, replace(held.charge, payment_intent="pi_other"))

    with pytest.raises(Conflict):
        ledger.update(held, replace(held.charge, payment_intent="pi_1"))

    assert ledger.get(held.charge.id) == others


@pytest.mark.parametrize("where", ["before", "after"])
def test_an_update_that_is_lost_while_another_writes_is_a_conflict(
    store: MemoryStore, ledger: Ledger, clock: Waiting, where: str
) -> None:
    """Ours may lie beneath the other's or not at all: whoever reads again decides on what stands now."""
    held = inserted(ledger)
    other = Ledger(store, clock, chance=chance(2))

    def lose_while_another_writes(call: StoreCall) -> None:
        store.before = store.after = lambda _call: None
        now_held = other.get(held.charge.id)
        assert now_held is not None
        other.update(now_held, now_held.charge)
        unavailable(call)

    setattr(store, where, on("update", lose_while_another_writes, times=1))

    with pytest.raises(Conflict):
        ledger.update(held, replace(held.charge, payment_intent="pi_1"))


def test_an_insert_that_is_lost_while_another_inserts_is_the_others(
    store: MemoryStore, ledger: Ledger, clock: Waiting
) -> None:
    """Two callers with one key: the loser of the race must not go on."""
    other = Ledger(store, clock, chance=chance(2))

    def lose_while_another_inserts(call: StoreCall) -> None:
        store.before = lambda _call: None
        inserted(other)
        unavailable(call)

    store.before = lose_while_another_inserts

    assert ledger.insert(new_charge()) is None


# When it does not come back.


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_write_that_stays_unanswered_is_given_up_as_uncertain_within_its_budget(
    store: MemoryStore, ledger: Ledger, clock: Waiting, where: str
) -> None:
    """Neither recorded nor not recorded: nobody may be told either."""
    held = inserted(ledger)
    setattr(store, where, unavailable)

    with pytest.raises(LedgerUnavailable, match="not certain"):
        ledger.insert(new_charge("order-2"))
    assert clock.monotonic() < COMMIT_BUDGET.total_seconds()

    clock.waits.clear()
    with pytest.raises(LedgerUnavailable):
        ledger.update(held, held.charge)
    assert clock.monotonic() < COMMIT_BUDGET.total_seconds()


def test_a_write_is_tried_more_than_once_however_short_its_budget_looks(store: MemoryStore, clock: Waiting) -> None:
    """The budget is of time, and it is the given one."""
    calls: list[str] = []

    def count_and_lose(call: StoreCall) -> None:
        calls.append(call.operation)
        unavailable(call)

    store.before = count_and_lose

    with pytest.raises(LedgerUnavailable):
        Ledger(store, clock, commit_budget=timedelta(seconds=1), chance=chance(1)).insert(new_charge())

    assert len(calls) > 2
    assert clock.monotonic() < 1


def test_reads_are_repeated_and_given_up_within_their_budget(
    store: MemoryStore, ledger: Ledger, clock: Waiting
) -> None:
    """A blip is not seen; an outage is told."""
    held = inserted(ledger)
    store.before = on("get", unavailable, times=3)
    assert ledger.get(held.charge.id) == held
    store.before = on("due", unavailable, times=3)
    assert ledger.due(NOON + timedelta(days=1), 10) == [held.charge.id]
    store.before = on("by_payment_intent", unavailable, times=3)
    assert ledger.find("pi_1") == []

    store.before = unavailable
    reads: tuple[Act, ...] = (
        lambda: ledger.get(held.charge.id),
        lambda: ledger.due(NOON, 10),
        lambda: ledger.find("pi_1"),
    )
    for read in reads:
        clock.waits.clear()
        with pytest.raises(LedgerUnavailable, match="could not be read"):
            read()
        assert 0 < clock.monotonic() < READ_BUDGET.total_seconds()


def test_a_refusal_is_told_at_once_with_its_reason(store: MemoryStore, ledger: Ledger, clock: Waiting) -> None:
    """Repeating what can never work only holds up whoever waits."""

    def refuse(_call: StoreCall) -> None:
        raise StoreRefused("create the database")

    store.before = refuse

    with pytest.raises(LedgerUnavailable, match="create the database"):
        ledger.insert(new_charge())
    with pytest.raises(LedgerUnavailable, match="create the database"):
        ledger.get("a1")
    assert clock.waits == []


def test_waits_grow_by_chance_within_their_bounds(store: MemoryStore, clock: Waiting) -> None:
    """Those who failed together come back apart, none before a commit could have ended, none after two seconds."""
    store.before = unavailable
    for seed in range(50):
        with pytest.raises(LedgerUnavailable):
            Ledger(store, clock, commit_budget=timedelta(minutes=1), chance=chance(seed)).insert(new_charge())
        longest = FIRST_WAIT
        for wait in clock.waits:
            assert SHORTEST_WAIT <= wait <= longest
            longest = min(2 * longest, LONGEST_WAIT)
        clock.waits.clear()


def test_two_ledgers_never_share_a_token(store: MemoryStore, clock: Waiting) -> None:
    """Otherwise one would take the other's write for its own, and two would work on one charge."""
    tokens = set()
    for number in range(100):
        held = inserted(Ledger(store, clock), new_charge(f"order-{number}"))
        stored = store.get(CHARGE, held.charge.id)
        assert stored is not None
        tokens.add(stored.properties["writer"])

    assert len(tokens) == 100


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("operation", ["insert", "update", "get"])
def test_a_death_passes_through_and_nothing_more_is_called(
    store: MemoryStore, ledger: Ledger, operation: str, where: str
) -> None:
    """The dead write nothing on their way out."""
    held = inserted(ledger)
    calls: list[str] = []

    def die(call: StoreCall) -> None:
        calls.append(call.operation)
        raise Death

    setattr(store, where, die)
    acts: dict[str, Act] = {
        "insert": lambda: ledger.insert(new_charge("order-2")),
        "update": lambda: ledger.update(held, held.charge),
        "get": lambda: ledger.get(held.charge.id),
    }

    with pytest.raises(Death):
        acts[operation]()

    assert calls == [operation]


# How a charge is written.

NUMBERS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(max_size=20)
TIMES = st.timedeltas(timedelta(), timedelta(days=100_000)).map(lambda since: datetime(1970, 1, 1, tzinfo=UTC) + since)
MAPS = st.dictionaries(TEXTS | st.sampled_from(["", "__key__", "a.b"]), TEXTS, max_size=3)

FAILURES = st.builds(Failure, type=st.none() | TEXTS, message=st.none() | TEXTS, code=st.none() | TEXTS)
REQUEST = {
    "idempotency_key": TEXTS,
    "operation": TEXTS,
    "parameters": TEXTS,
    "api_version": TEXTS,
    "payment_intent": st.none() | TEXTS,
    "standing": st.sampled_from(Standing),
    "sends": NUMBERS,
    "first_sent_at": st.none() | TIMES,
    "burnt_at": st.none() | TIMES,
    "outcome": st.none() | TEXTS,
    "error": st.none() | FAILURES,
}
REQUESTS = st.builds(Request, **REQUEST)
ATTEMPTS = st.builds(Attempt, **REQUEST, number=NUMBERS, payment_method=TEXTS)
CLOSINGS = st.builds(Closing, kind=TEXTS, actor=TEXTS, at=TIMES, note=TEXTS, request=st.none() | REQUESTS)
TERMS = st.builds(
    Terms,
    amount=NUMBERS,
    currency=TEXTS,
    customer=TEXTS,
    payment_method=TEXTS,
    description=st.none() | TEXTS,
    metadata=MAPS,
    expires_at=st.none() | TIMES,
    application_fee_amount=st.none() | NUMBERS,
    transfer_data=st.none() | st.dictionaries(TEXTS, TEXTS | NUMBERS, max_size=3),
)
CHARGES = st.builds(
    Charge,
    id=st.text("0123456789abcdef", min_size=40, max_size=40),
    idempotency_key=TEXTS,
    body_digest=TEXTS,
    terms=TERMS,
    payment_method=TEXTS,
    livemode=st.booleans(),
    status=st.sampled_from(Status),
    create=REQUESTS,
    created_at=TIMES,
    updated_at=TIMES,
    expires_at=TIMES,
    due_at=st.none() | TIMES,
    version=NUMBERS,
    lease_until=st.none() | TIMES,
    payment_intent=st.none() | TEXTS,
    attempts=st.lists(ATTEMPTS, max_size=2).map(tuple),
    orphans=st.lists(TEXTS, max_size=2).map(tuple),
    orphans_refused=st.lists(TEXTS, max_size=2).map(tuple),
    closing=st.none() | CLOSINGS,
    cancel_reason=st.none() | st.sampled_from(CancelReason),
    blocked_on=st.none() | st.sampled_from(Party),
    next_attempt_at=st.none() | TIMES,
    last_error=st.none() | FAILURES,
    amount_received=NUMBERS,
    discrepancies=st.lists(st.builds(Discrepancy, kind=TEXTS, at=TIMES), max_size=2).map(tuple),
    history=st.lists(st.builds(Entry, at=TIMES, what=TEXTS, status=st.sampled_from(Status)), max_size=2).map(tuple),
    succeeded_at=st.none() | TIMES,
)


@given(charge=CHARGES)
@settings(max_examples=100, deadline=None)
def test_every_charge_is_read_as_it_was_written(charge: Charge) -> None:
    """Whatever its maps' keys, and to the microsecond."""
    store = MemoryStore()
    held = inserted(Ledger(store, Waiting()), charge)

    assert held.charge == charge
    assert charge_of(properties_of(charge)) == charge
    read = Ledger(store, Waiting()).get(charge.id)
    assert read == held


@given(charge=CHARGES)
@settings(max_examples=50, deadline=None)
def test_a_charge_is_in_the_indexes_as_long_as_it_is_looked_for_there(charge: Charge) -> None:
    """`due` while it is open, `payment_intent` once it is known, and no None anywhere."""
    properties = properties_of(charge)

    assert ("due" in properties) == (charge.due_at is not None)
    assert ("payment_intent" in properties) == (charge.payment_intent is not None)
    assert None not in properties.values()


def test_a_field_that_this_version_does_not_know_is_passed_over() -> None:
    """While a new version is being deployed, both read the same charges."""
    charge = new_charge()

    assert charge_of({**properties_of(charge), "field_of_tomorrow": 1}) == charge


def test_scalars_stay_readable_in_the_console() -> None:
    """An operator who looks at the database sees the charge, not a blob."""
    properties = properties_of(new_charge())

    assert properties["status"] == "pending"
    assert properties["created_at"] == NOON
    assert isinstance(properties["terms"], dict)
    assert properties["terms"]["amount"] == 1999

"""A ledger that may be behind, or that is another's, does not charge (rule 9)."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from shared import policy
from shared.api import ChargeBody, opened
from shared.charge import Charge, LookFailed, Seen, Standing
from shared.gate import KIND, NAME, Gate, LedgerClosed, LedgerIdentity
from shared.ledger import Ledger
from tests.memory_store import MemoryStore
from tests.world import VirtualClock

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Stripe:
    """Whose API key it is."""

    def __init__(self, platform: str | LookFailed = "acct_ours", *, livemode: bool = True, key: str = "digest") -> None:
        self.livemode = livemode
        self.key_digest = key
        self._platform = platform
        self.asked = 0

    def platform(self) -> str | LookFailed:
        """Say so."""
        self.asked += 1
        return self._platform


class Place:
    """A database and the gates before it."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = MemoryStore()
        self.ledger = Ledger(self.store, self.clock)

    def gate(self, stripe: Stripe | None = None, *, database: str = "p/money", generation: int = 1) -> Gate:
        """Start an instance."""
        return Gate(
            ledger=self.ledger,
            stripe=stripe or Stripe(),
            clock=self.clock,
            database=database,
            generation=generation,
        )

    def identity(self) -> LedgerIdentity:
        """Read what is recorded."""
        stored = self.ledger.read(KIND, NAME)
        assert stored is not None
        return LedgerIdentity.of(stored)


@pytest.fixture
def place() -> Place:
    """An empty database."""
    return Place()


def test_an_empty_database_becomes_a_ledger(place: Place) -> None:
    """Of this account, mode and generation; asked once per instance."""
    stripe = Stripe()
    gate = place.gate(stripe)
    assert gate.check() is gate.check()
    found = place.identity()
    assert (found.database, found.platform, found.livemode, found.generation) == ("p/money", "acct_ours", True, 1)
    assert stripe.asked == 1


def test_a_key_that_is_known_is_not_asked_about_again(place: Place) -> None:
    """So an instance can start while Stripe is down."""
    place.gate().check()
    down = Stripe(LookFailed(seen=Seen.NO_REPLY))
    assert place.gate(down).check().platform == "acct_ours"
    assert down.asked == 0


def test_another_key_of_the_same_account_is_remembered(place: Place) -> None:
    """A key was rolled."""
    place.gate().check()
    place.gate(Stripe(key="rolled")).check()
    assert place.identity().api_keys == ("digest", "rolled")


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        (lambda place: place.gate(Stripe(livemode=False)), "is for live mode; STRIPE_API_KEY is a test key"),
        (lambda place: place.gate(Stripe("acct_theirs", key="k")), "is a key of acct_theirs"),
        (lambda place: place.gate(database="p/restored"), "run `paidonce ledger reopen`"),
        (lambda place: place.gate(generation=2), "run `paidonce ledger reopen`"),
        (lambda place: place.gate(Stripe(LookFailed(seen=Seen.NO_REPLY), key="k")), "does not say whose"),
        (lambda place: place.gate(Stripe(LookFailed(seen=Seen.UNAUTHORIZED), key="k")), "read access to Accounts"),
    ],
    ids=["test key", "foreign key", "another database", "raised generation", "stripe down", "no permission"],
)
def test_a_ledger_that_does_not_agree_is_closed(place: Place, gate: Callable[[Place], Gate], says: str) -> None:
    """And the message says what to do."""
    place.gate().check()
    with pytest.raises(LedgerClosed, match=says):
        gate(place).check()


def test_an_older_instance_is_shut_out_once_the_generation_is_raised(place: Place) -> None:
    """An old revision that still starts instances."""
    place.ledger.write(KIND, NAME, replace(_identity(), generation=2).properties(), None)
    with pytest.raises(LedgerClosed, match="generation 2"):
        place.gate(generation=1).check()


def test_an_empty_database_under_a_raised_generation_was_restored(place: Place) -> None:
    """To before its first charge."""
    with pytest.raises(LedgerClosed, match="reopen"):
        place.gate(generation=2).check()


def test_charges_without_an_identity_were_restored(place: Place) -> None:
    """From a time before there was one."""
    place.ledger.insert(_charge())
    with pytest.raises(LedgerClosed, match="does not say which ledger"):
        place.gate().check()


def test_a_closed_ledger_opens_without_a_new_instance(place: Place) -> None:
    """It is looked at again, though not more than once a second."""
    gate = place.gate(generation=2)
    with pytest.raises(LedgerClosed):
        gate.check()
    place.ledger.write(KIND, NAME, replace(_identity(), generation=2).properties(), None)
    with pytest.raises(LedgerClosed):
        gate.check()
    place.clock.sleep(timedelta(seconds=2))
    assert gate.check().generation == 2


@pytest.mark.parametrize(
    ("seen", "says"), [(Seen.NO_REPLY, "asked again at once"), (Seen.UNAUTHORIZED, "read access to Accounts")]
)
def test_a_new_ledger_does_not_begin_before_stripe_says_whose_key_it_is(place: Place, seen: Seen, says: str) -> None:
    """Else the first key that can tell would make it its own, whoever's that is."""
    with pytest.raises(LedgerClosed, match=says):
        place.gate(Stripe(LookFailed(seen=seen))).check()
    assert place.ledger.read(KIND, NAME) is None
    assert place.gate().check().platform == "acct_ours"
    with pytest.raises(LedgerClosed, match="is a key of acct_theirs"):
        place.gate(Stripe("acct_theirs", key="k")).check()


def test_two_first_instances_make_one_ledger(place: Place) -> None:
    """Whoever comes second reads the first one's."""
    first = place.gate()

    class Slow(Stripe):
        def platform(self) -> str | LookFailed:
            first.check()  # Meanwhile.
            return super().platform()

    assert place.gate(Slow()).check() == first.check()


def test_two_instances_that_learn_a_key_at_once_both_open(place: Place) -> None:
    """One writes it, the other reads it."""
    place.gate().check()

    class Slow(Stripe):
        def platform(self) -> str | LookFailed:
            place.gate(Stripe(key="other")).check()
            return super().platform()

    place.gate(Slow(key="rolled")).check()
    assert set(place.identity().api_keys) == {"digest", "other", "rolled"}


def test_for_31_days_after_a_restore_a_new_charge_is_looked_for_first(place: Place) -> None:
    """It may be one that the ledger has forgotten."""
    restored = replace(_identity(), restored_at=place.clock.now(), lost_since=place.clock.now() - timedelta(days=2))
    place.ledger.write(KIND, NAME, restored.properties(), None)
    gate = place.gate()
    charge = gate.new(_charge())
    assert charge.create.standing is Standing.BURNT
    step = policy.next_step(charge, place.clock.now())
    assert isinstance(step, policy.List)
    assert step.since < restored.lost_since  # type: ignore[operator]
    place.clock.sleep(policy.LIST_FOR)
    assert gate.new(_charge()).create.standing is Standing.UNSENT


def _identity() -> LedgerIdentity:
    return LedgerIdentity(
        database="p/money",
        platform="acct_ours",
        livemode=True,
        generation=1,
        api_keys=("digest",),
        opened_at=NOON,
    )


def _charge() -> Charge:
    body = ChargeBody(amount=1999, currency="usd", customer="cus_1", payment_method="pm_1")
    return opened("order-1", body, livemode=True, generation=1, api_version="v", now=NOON)

"""A charge that lies still until Stripe has forgotten its keys is paid once, and told truthfully.

Stripe keeps a key for 24 hours at least; the product sends none from its 23rd hour on. Here every point of a charge's
way meets every such age. Stripe's tally says what was paid, Stripe's log which key was sent when.
"""

# ruff: noqa: E501 - a row of a table stays one row.

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.local.stripe.engine import Fault as StripeFault
from infra.local.stripe.engine import Rule
from shared import policy
from shared.charge import Charge, Status
from shared.policy import EXPIRES_AFTER
from shared.store import CHARGE
from tests.world import KEY, Fault, VirtualClock, World

MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
WEEK: Final = timedelta(weeks=1)
KEY_HORIZON: Final = 23 * HOUR  # Written out, so that a change of the product's fails here.
KEY_LIFE: Final = 24 * HOUR  # Stripe's promise, and the double's.

INSERT, MAKE_TASK, CREATE, RECORD_INTENT, CONFIRM, RECORD_OUTCOME = range(6)
"""The calls across a boundary of a charge that goes well, in their order (`test_the_calls_are_in_this_order`)."""

RECORD_CANCEL, CANCEL = 4, 5
"""Likewise of a `POST /cancel`: after the closing is recorded, its cancel is recorded as sent, and sent."""

VISA: Final = "pm_card_visa"
DECLINES: Final = "pm_card_chargeDeclinedInsufficientFunds"
TRANSIENT: Final = "pm_card_chargeDeclinedProcessingError"
ASKS: Final = "pm_card_authenticationRequired"
BANK: Final = "pm_usBankAccount_success"
BANK_SAYS_NO: Final = "pm_usBankAccount_insufficientFunds"


# --- The points of a charge's way -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a charge's way: how it comes to be there, and how it ends when it is taken up late.

    `ends` is its status if it is taken up before it expires (30 days). After that money that moved is still money;
    everything else is canceled.
    """

    plan: Mapping[int, Fault]
    ends: Status = Status.SUCCEEDED
    paid: bool = False  # The money has moved, or is with the bank, before anybody takes it up again.
    card: str = VISA
    then: Callable[[World], None] | None = None


def cancel_and_die(fault: Fault, after: int) -> Callable[[World], None]:
    """Let the caller cancel; the process dies at this call of the cancel."""

    def act(world: World) -> None:
        world.plan = {len(world.services) + after: fault}
        world.post("/cancel", {}, key=KEY)
        world.plan = {}

    return act


DIES: Final = Fault.DIE_BEFORE

# fmt: off
POINTS: Final[Mapping[str, Point]] = {
    "inserted, nothing sent":                     Point(plan={MAKE_TASK: DIES}),
    "create sent, and lost on its way":           Point(plan={CREATE: DIES}),
    "create sent, its answer lost":               Point(plan={CREATE: Fault.DIE_AFTER}),
    "create answered 500 without effect":         Point(plan={CREATE: Fault.ERROR_500, RECORD_INTENT: DIES}),
    "create answered 500 with effect":            Point(plan={CREATE: Fault.ERROR_500_ACTED, RECORD_INTENT: DIES}),
    "PaymentIntent recorded, nothing confirmed":  Point(plan={RECORD_INTENT: Fault.DIE_AFTER}),
    "confirm sent, and lost on its way":          Point(plan={CONFIRM: DIES}),
    "confirm sent, its answer lost":              Point(plan={CONFIRM: Fault.DIE_AFTER}, paid=True),
    "confirm's decline lost":                     Point(plan={CONFIRM: Fault.DIE_AFTER}, card=DECLINES, ends=Status.DECLINED),
    "confirm sent, Stripe down after it acted":   Point(plan={CONFIRM: Fault.ERROR_502_ACTED, RECORD_OUTCOME: DIES}, paid=True),
    "confirm answered 500 without effect":        Point(plan={CONFIRM: Fault.ERROR_500, RECORD_OUTCOME: DIES}),
    "confirm answered 500 with effect":           Point(plan={CONFIRM: Fault.ERROR_500_ACTED, RECORD_OUTCOME: DIES}, paid=True),
    "confirm answered 500, and acted later":      Point(plan={CONFIRM: Fault.ERROR_500_LATER, RECORD_OUTCOME: DIES}, paid=True),
    "no reply to confirm, recorded":              Point(plan={CONFIRM: Fault.DOWN}),
    "confirm answered 401":                       Point(plan={CONFIRM: Fault.UNAUTHORIZED}),
    "paid, recorded":                             Point(plan={}, paid=True),
    "declined, recorded":                         Point(plan={}, card=DECLINES, ends=Status.DECLINED),
    "declined for a while, recorded":             Point(plan={}, card=TRANSIENT, ends=Status.DECLINED),
    "the bank asks, recorded":                    Point(plan={}, card=ASKS, ends=Status.ACTION_REQUIRED),
    "bank debit, its confirm's answer lost":      Point(plan={CONFIRM: Fault.DIE_AFTER}, card=BANK, paid=True),
    "bank debit, recorded":                       Point(plan={}, card=BANK, paid=True),
    "bank debit that comes back":                 Point(plan={}, card=BANK_SAYS_NO, ends=Status.DECLINED),
    "closing recorded, its cancel not sent":      Point(plan={}, card=DECLINES, ends=Status.CANCELED, then=cancel_and_die(DIES, RECORD_CANCEL)),
    "closing recorded, its cancel lost":          Point(plan={}, card=DECLINES, ends=Status.CANCELED, then=cancel_and_die(DIES, CANCEL)),
    "closing recorded, its cancel's answer lost": Point(plan={}, card=DECLINES, ends=Status.CANCELED, then=cancel_and_die(Fault.DIE_AFTER, CANCEL)),
    "closing while a confirm is out, and lost":   Point(plan={CONFIRM: DIES}, ends=Status.CANCELED, then=cancel_and_die(DIES, CANCEL)),
    "closing while a confirm is out, and paid":   Point(plan={CONFIRM: Fault.DIE_AFTER}, paid=True, then=cancel_and_die(DIES, CANCEL)),
}
# fmt: on

GAPS: Final = {  # How long after the last first send somebody takes it up.
    "just within the horizon": KEY_HORIZON - MINUTE,
    "at the horizon": KEY_HORIZON,
    "at the end of the key's life": KEY_LIFE,
    "once it has expired": EXPIRES_AFTER,
}


def reached(point: Point, world: World | None = None) -> World:
    """Bring a charge to this point, in a world of its own."""
    world = world or World()
    assert world.customer, "made before the faults are counted"
    world.plan = point.plan
    world.create(payment_method=point.card)
    world.plan = {}
    if point.then is not None:
        point.then(world)
    return world


# --- Who takes it up --------------------------------------------------------------------------------------------------


def by_task(world: World) -> None:
    """Its task comes at last."""
    world.run_tasks()


def by_sweep(world: World) -> None:
    """Its task is lost, and the sweep finds it."""
    world.queue.clear()
    world.sweep()
    world.run_tasks()


def by_caller(world: World) -> None:
    """The caller repeats the request, before all else that was waiting comes."""
    told = world.create(payment_method=world.charge().terms.payment_method)
    assert told is not None
    assert told.status < 500


WAYS: Final[Mapping[str, Callable[[World], None]]] = {
    "its task": by_task,
    "the sweep": by_sweep,
    "the caller": by_caller,
}


# --- What must hold ---------------------------------------------------------------------------------------------------


def sent_too_late(world: World) -> list[str]:
    """Ask Stripe's log which keys came 23 hours or more after they first came."""
    first: dict[str, float] = {}
    late = []
    for entry in world.engine.log:
        if entry.idempotency_key is None:
            continue
        age = timedelta(seconds=entry.at - first.setdefault(entry.idempotency_key, entry.at))
        if age >= KEY_HORIZON:
            late.append(f"{entry.idempotency_key} came again after {age}")
    return late


def at_rest(world: World, expected: Iterable[Status]) -> None:
    """Let everything come to rest, and judge."""
    world.settle()
    assert world.check() == []
    assert sent_too_late(world) == []
    assert world.charge().status in expected
    assert len(world.money_moved()) == (world.charge().status is Status.SUCCEEDED)


def ending(point: Point, gap: timedelta) -> Status:
    """Say how a charge ends that is taken up after this time."""
    if gap < EXPIRES_AFTER or point.ends is Status.CANCELED:
        return point.ends
    return Status.SUCCEEDED if point.paid else Status.CANCELED


def last_first_send(world: World) -> datetime:
    """Return when the newest of the charge's requests was first sent."""
    charge = world.charge()
    closing = charge.closing.request if charge.closing else None
    requests = [charge.create, *charge.attempts, *([closing] if closing else [])]
    return max((request.first_sent_at for request in requests if request.first_sent_at), default=charge.created_at)


def test_the_calls_are_in_this_order() -> None:
    """The table's points are where their names say."""
    world = World()
    assert world.customer
    world.create()
    assert world.trace == [
        "insert Charge",
        "create_task",
        "create",
        "update Charge",
        "confirm",
        "update Charge",
    ]

    world = reached(POINTS["declined, recorded"])
    calls = len(world.trace)
    world.post("/cancel", {}, key=KEY)
    assert world.trace[calls + RECORD_CANCEL - 1 :] == ["update Charge", "update Charge", "cancel", "update Charge"]


# --- The tables, one test each ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("name", POINTS)
def test_a_charge_that_lay_still_is_paid_at_most_once_and_no_key_is_sent_past_its_horizon(
    name: str, gap: str, way: str
) -> None:
    """Nothing runs from the first send on, neither task nor sweep nor event; then one of them takes it up."""
    point = POINTS[name]
    world = reached(point)
    world.events_lost = way == "the sweep"  # It alone must do.
    world.clock.time = last_first_send(world) + GAPS[gap]

    WAYS[way](world)

    at_rest(world, {ending(point, GAPS[gap])})
    if point.card == DECLINES:
        assert len(world.charge().attempts) == 1, "a bank that said no is not asked again by itself"


@pytest.mark.parametrize("after", [timedelta(0), KEY_HORIZON - MINUTE], ids=["at once", "just within the horizon"])
@pytest.mark.parametrize("name", POINTS)
def test_a_key_that_stripe_forgets_early_still_charges_once(name: str, after: timedelta) -> None:
    """Stripe's word about keys is progress, not safety: the one PaymentIntent is what keeps the customer from harm."""
    point = POINTS[name]
    world = reached(point)
    world.clock.sleep(world.limits.lease)
    world.clock.time = max(world.clock.time, last_first_send(world) + after)
    world.engine.prune_keys()

    by_task(world)

    at_rest(world, {point.ends})


@dataclass(kw_only=True)
class LedgerOut(World):
    """A world whose ledger is out from this call on, for so long."""

    out_from: int
    lasts: timedelta
    back_at: datetime | None = None

    def cross(self, service: str, where: str, call: Callable[[], Any], lost: Callable[[], Exception]) -> Any:
        """Make a call; the ledger's meet the outage."""
        if self.back_at is None and len(self.services) >= self.out_from:
            self.back_at = self.clock.now() + self.lasts
            self._down_until["store"] = self.back_at
        return super().cross(service, where, call, lost)


@pytest.mark.parametrize("lost", [Fault.FAIL, Fault.LOSE_REPLY], ids=["the write is lost", "the write arrived"])
@pytest.mark.parametrize("at", [INSERT, RECORD_INTENT, RECORD_OUTCOME], ids=["insert", "intent", "outcome"])
@pytest.mark.parametrize("card", [VISA, DECLINES, BANK])
def test_s10_a_ledger_that_is_out_for_two_days_charges_once_and_tells_the_truth(
    card: str, at: int, lost: Fault
) -> None:
    """Stripe works on, tasks and events keep coming and find no ledger; the caller keeps asking with the same key."""
    reads_back = at + 1  # It meets the outage, and so does all that follows.
    world = LedgerOut(plan={at: lost}, out_from=reads_back, lasts=2 * DAY)
    assert world.customer
    told = world.create(payment_method=card)
    world.plan = {}
    assert told is not None
    assert told.status in {202, 503}, "nothing certain is known"

    assert world.back_at is not None
    while world.clock.now() < world.back_at:
        world.clock.sleep(HOUR)
        world.run_tasks()
        world.deliver_webhooks()
        world.sweep()
        told = world.create(payment_method=card)
        assert told is not None
        assert told.status == 503 or world.clock.now() >= world.back_at
    told = world.create(payment_method=card)
    assert told is not None
    assert told.status < 500

    at_rest(world, {Status.DECLINED if card == DECLINES else Status.SUCCEEDED})


@pytest.mark.parametrize("sweeps", [False, True], ids=["nothing runs", "only the sweep runs"])
@pytest.mark.parametrize("name", POINTS)
def test_a_queue_that_is_paused_for_a_week_charges_once(name: str, *, sweeps: bool) -> None:
    """Whatever the sweep enqueues meanwhile waits with the rest, and all of it comes at once in the end."""
    point = POINTS[name]
    world = reached(point)
    resumes = world.clock.now() + WEEK
    while world.clock.now() < resumes:
        world.clock.sleep(HOUR)
        if sweeps:
            world.sweep()

    world.run_tasks()

    at_rest(world, {point.ends})


# --- Wrong clocks -----------------------------------------------------------------------------------------------------


@dataclass
class WrongClock(VirtualClock):
    """The clock of a machine that is wrong about the time. Sleeping takes as long as it takes."""

    right: VirtualClock
    wall: timedelta = timedelta()
    monotonically: timedelta = timedelta()

    def now(self) -> datetime:
        """Return what the wall clock shows."""
        return self.right.now() + self.wall

    def monotonic(self) -> float:
        """Return what the other clock shows."""
        return self.right.monotonic() + self.monotonically.total_seconds()

    def sleep(self, duration: timedelta) -> None:
        """Wait."""
        self.right.sleep(duration)


@dataclass(kw_only=True)
class WronglyTimed(World):
    """A world whose functions run on a wrong clock; Stripe and the queue have the right one.

    `jumps`: at which call the machine's clocks jump, wall and monotonic, and by how much.
    """

    jumps: Mapping[int, tuple[timedelta, timedelta]] = field(default_factory=dict)

    def _deploy(self) -> Any:
        right = self.clock
        self.ours = WrongClock(right)
        self.clock = self.ours
        try:
            return super()._deploy()
        finally:
            self.clock = right

    def cross(self, service: str, where: str, call: Callable[[], Any], lost: Callable[[], Exception]) -> Any:
        """Let the clocks jump, then make the call."""
        at = len(self.services) if self._inside == 0 else -1
        wall, monotonically = self.jumps.get(at, (timedelta(), timedelta()))
        self.ours.wall += wall
        self.ours.monotonically += monotonically
        return super().cross(service, where, call, lost)

    def mend(self) -> None:
        """Set the wall clock right, as NTP does; nobody sets a monotonic clock."""
        self.ours.wall = timedelta()


JUMPS: Final = {
    "both ahead by a day": (DAY, DAY),
    "both ahead by the lease": (timedelta(seconds=95), timedelta(seconds=95)),
    "only the wall, ahead by a day": (DAY, timedelta()),
    "only the wall, back by a day": (-DAY, timedelta()),
    "only the other, ahead by a day": (timedelta(), DAY),
}


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("gap", [MINUTE, KEY_LIFE], ids=str)
def test_clocks_that_jump_within_a_delivery_never_charge_twice(gap: timedelta, jump: str, at: int) -> None:
    """A machine that slept, or whose clock was set, at any call: what it goes on to do is safe, and is taken up."""
    world = WronglyTimed(jumps={at: JUMPS[jump]})
    assert world.customer
    world.create()
    world.clock.sleep(gap)
    world.run_tasks()
    world.mend()

    at_rest(world, {Status.SUCCEEDED})


@pytest.mark.parametrize("jump", ["both ahead by a day", "only the wall, ahead by a day"])
def test_a_machine_that_slept_past_its_lease_sends_nothing_when_it_wakes(jump: str) -> None:
    """Rule 8: another may have the charge in hand by then."""
    world = WronglyTimed(jumps={RECORD_INTENT: JUMPS[jump]})
    assert world.customer

    world.create()

    assert [entry.operation for entry in world.engine.log if entry.idempotency_key] == ["payment_intents.create"]


@pytest.mark.parametrize("name", POINTS)
def test_a_clock_that_is_a_day_slow_resends_a_forgotten_key_and_still_charges_once(name: str) -> None:
    """It takes a dead key for a young one. That the horizon cannot help, and the one PaymentIntent can."""
    point = POINTS[name]
    world = reached(point, WronglyTimed())
    assert isinstance(world, WronglyTimed)
    world.clock.time = last_first_send(world) + KEY_LIFE
    world.ours.wall = -KEY_LIFE + 2 * MINUTE
    for charge in world.charges():
        world.post(f"/{charge.id}/deliver", {}, by_task="late")
        world.post(f"/{charge.id}/deliver", {}, by_task="late")
    world.mend()
    world.settle()

    assert world.check() == []
    assert world.charge().status is point.ends


# --- Anything, in any order -------------------------------------------------------------------------------------------

MOVES: Final[Mapping[str, Callable[[World], object]]] = {
    **WAYS,
    "the caller": lambda world: world.create(),
    "the operator delivers": lambda world: [
        world.post(f"/{name}/deliver", {}) for name in world.store.all_names(CHARGE)
    ],
    "somebody retries": lambda world: [world.post(f"/{name}/retry", {}) for name in world.store.all_names(CHARGE)],
    "another card": lambda world: [
        world.post(f"/{name}/payment-method", {"payment_method": "pm_card_mastercard"})
        for name in world.store.all_names(CHARGE)
    ],
    "the caller cancels": lambda world: world.post("/cancel", {}, key=KEY),
    "events arrive": lambda world: world.deliver_webhooks(),
    "Stripe forgets": lambda world: world.engine.prune_keys(KEY_LIFE.total_seconds()),
    "Stripe answers nothing": lambda world: world.engine.faults.add(
        Rule(fault=StripeFault.DROP_AFTER, times=2, method="POST")
    ),
}
WAITS: Final = (timedelta(seconds=2), 2 * MINUTE, HOUR, 11 * HOUR, KEY_HORIZON - MINUTE, KEY_HORIZON, KEY_LIFE, WEEK)

points = st.sampled_from(sorted(POINTS))
steps = st.lists(st.tuples(st.sampled_from(WAITS), st.sampled_from(sorted(MOVES))), min_size=1, max_size=8)
faults = st.dictionaries(st.integers(6, 40), st.sampled_from(sorted(Fault)), max_size=3)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(name=points, moves=steps, plan=faults)
def test_whatever_comes_whenever_with_whatever_faults_the_customer_pays_at_most_once(
    name: str, moves: list[tuple[timedelta, str]], plan: dict[int, Fault]
) -> None:
    """Long waits, everybody who may take a charge up, and faults at any call of theirs."""
    world = reached(POINTS[name])
    world.plan = plan
    for wait, move in moves:
        world.clock.sleep(wait)
        MOVES[move](world)
    world.plan = {}
    world.settle()

    assert world.check() == []
    assert sent_too_late(world) == []


# --- The tests can fail -----------------------------------------------------------------------------------------------


def test_without_the_horizon_a_key_would_be_sent_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripe's log tells."""
    monkeypatch.setattr(policy, "_past_horizon", lambda _request, _now: False)
    world = reached(POINTS["confirm's decline lost"])
    world.clock.time = last_first_send(world) + KEY_HORIZON

    by_task(world)

    assert len(sent_too_late(world)) == 1


def test_starting_over_once_the_key_is_gone_would_charge_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripe's tally tells."""

    def anew(charge: Charge, _now: datetime) -> policy.Decision:
        return policy._go_on(policy._with_new_create(dataclasses.replace(charge, payment_intent=None, attempts=()), 2))

    world = reached(POINTS["confirm sent, its answer lost"])
    world.clock.time = last_first_send(world) + KEY_LIFE
    monkeypatch.setattr(policy, "_woken", anew)

    by_task(world)

    assert world.money_moved() == [1999, 1999]
    assert "charged 2 times" in world.check()

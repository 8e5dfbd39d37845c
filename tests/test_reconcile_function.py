"""The reconcile function: the sweep finds what nothing redelivers."""

from datetime import timedelta
from typing import Final

import pytest

from shared import wiring
from shared.charge import Status, charge_id
from shared.deliver import PROBE_TASK, STRIPE_DOWN_AFTER, SWEEP_AGAIN, SWEEP_BATCH, UNHEARD_PROBES
from shared.store import CHARGE, Stored
from tests import world as worlds
from tests.world import KEY, Told, World

SECOND: Final = timedelta(seconds=1)
MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)


@pytest.fixture
def world() -> World:
    """A fresh deployment."""
    return World()


def told(answer: Told | None) -> Told:
    """Return an answer that did come."""
    assert answer is not None
    return answer


def sweep(world: World) -> Told:
    """Let Cloud Scheduler call."""
    return told(world._ask("reconcile", "POST", "/", b"", {}))


def abandoned(world: World, key: str = KEY) -> None:
    """Record a charge whose task is lost, and let its time pass."""
    body = {"amount": 1999, "currency": "usd", "customer": world.customer, "payment_method": "pm_card_visa"}
    told(world.post("/", body, key=key, Prefer="respond-async"))
    world.queue.clear()
    world.clock.sleep(HOUR)


def test_an_overdue_charge_gets_a_new_task_under_a_new_epoch_and_is_paid_once(world: World) -> None:
    """Cloud Tasks has lost its task: `due_at` makes promise 2 true."""
    abandoned(world)
    before = world.charge()

    answer = sweep(world)

    after = world.charge()
    assert (answer.status, answer.body) == (200, {"swept": 1})
    assert after.epoch == before.epoch + 1
    assert list(world.queue) == [f"{after.id}-g1-e{after.epoch}"]
    world.run_tasks()
    assert world.charge().status is Status.SUCCEEDED
    assert world.money_moved() == [1999]


def test_the_sweep_moves_due_at_so_that_the_next_one_leaves_the_charge_alone(world: World) -> None:
    """Until the task has had its time; if it brings nothing, the sweep comes back."""
    abandoned(world)
    sweep(world)
    due_at = world.charge().due_at
    assert due_at is not None
    assert timedelta() < due_at - world.clock.now() <= SWEEP_AGAIN
    assert sweep(world).body == {"swept": 0}
    world.queue.clear()
    world.clock.sleep(SWEEP_AGAIN)
    assert sweep(world).body == {"swept": 1}


@pytest.mark.parametrize(
    "card", ["pm_card_visa", "pm_card_chargeDeclinedInsufficientFunds", "pm_usBankAccount_success"]
)
def test_a_charge_that_is_not_due_is_left_alone(world: World, card: str) -> None:
    """Paid, declined, or with the bank: nothing is overdue."""
    world.create(payment_method=card)
    before = world.charge()
    assert sweep(world).body == {"swept": 0}
    assert world.charge() == before


def test_a_sweep_of_nothing_is_200(world: World) -> None:
    """An empty ledger."""
    assert sweep(world).body == {"swept": 0}


def test_every_overdue_charge_is_swept_and_no_other(world: World) -> None:
    """Whatever shard it is in."""
    keys = [f"order-{number}" for number in range(12)]
    for key in keys:
        abandoned(world, key)
    world.create(key="paid")
    assert sweep(world).body == {"swept": 12}
    world.run_tasks()
    assert [world.money_moved(key) for key in [*keys, "paid"]] == [[1999]] * 13


def test_two_sweeps_at_once_make_one_task(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cloud Scheduler may call twice: who comes second finds the version moved, and leaves it."""
    abandoned(world)
    ledger = world.parts.ledger
    get = ledger.get
    inner: list[int] = []

    def get_after_another_sweep(name: str) -> object:
        held = get(name)
        if not inner:
            inner.append(0)
            inner[0] = world.parts.charger.sweep()
        return held

    wiring.use(world.parts)
    monkeypatch.setattr(ledger, "get", get_after_another_sweep)
    assert sweep(world).body == {"swept": 0}
    assert inner == [1]
    assert len(world.queue) == 1
    assert world.charge().epoch == 2


def test_a_charge_that_was_taken_up_since_the_query_is_left_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The query names it; when it is read, it is done."""
    abandoned(world)
    due = world.parts.ledger.due
    name = charge_id(None, KEY)

    def due_and_then_delivered(*arguments: object) -> list[str]:
        names = due(*arguments)  # type: ignore[arg-type]
        world.parts.charger.deliver(name, by_task=False)
        return [*names, "0" * 40]

    monkeypatch.setattr(world.parts.ledger, "due", due_and_then_delivered)
    assert sweep(world).body == {"swept": 0}
    assert world.charge().status is Status.SUCCEEDED


def test_while_the_queue_takes_no_task_the_sweep_carries_the_charge_itself(world: World) -> None:
    """Cloud Tasks is down: nothing else would come for it."""
    abandoned(world)
    world._down_until["tasks"] = world.clock.now() + HOUR
    answer = sweep(world)
    assert (answer.status, answer.body) == (200, {"swept": 1})
    assert world.queue == {}
    assert world.charge().status is Status.SUCCEEDED
    assert world.money_moved() == [1999]


def test_a_queue_that_takes_no_task_is_asked_once_a_sweep(world: World) -> None:
    """It lets each asker wait for ten seconds, and a sweep has many charges and less than a minute."""
    for number in range(5):
        abandoned(world, f"order-{number}")
    world._down_until["tasks"] = world.clock.now() + HOUR
    world.trace.clear()
    assert sweep(world).body == {"swept": 5}
    assert world.trace.count("create_task") == 1
    assert [world.money_moved(f"order-{number}") for number in range(5)] == [[1999]] * 5


def test_with_queue_and_stripe_down_the_sweep_stops_at_once_and_comes_again(world: World) -> None:
    """Three calls without an answer say enough; what is left is taken up by later sweeps."""
    for number in range(5):
        abandoned(world, f"order-{number}")
    for service in ("tasks", "stripe"):
        world._down_until[service] = world.clock.now() + HOUR
    sweep(world)
    assert [charge.create.sends >= STRIPE_DOWN_AFTER for charge in world.charges()].count(True) == 1
    assert [charge.create.sends for charge in world.charges()].count(0) == 4
    world.clock.sleep(HOUR)
    sweep(world)
    world.run_tasks()
    assert [world.money_moved(f"order-{number}") for number in range(5)] == [[1999]] * 5


def test_one_charge_that_cannot_be_read_does_not_hold_up_the_others(world: World) -> None:
    """A version that is newer than this one wrote it, and was rolled back since."""
    for number in range(3):
        abandoned(world, f"order-{number}")
    oldest = (CHARGE, charge_id(None, "order-0"))
    stored = world.store._entities[oldest]
    world.store._entities[oldest] = Stored({**stored.properties, "status": "of_the_future"}, stored.version)
    assert sweep(world).body["swept"] == 2
    world.store._entities[oldest] = stored
    world.run_tasks()
    assert [world.money_moved(f"order-{number}") for number in range(3)] == [[], [1999], [1999]]


def test_many_that_cannot_be_read_do_not_starve_their_shard(world: World) -> None:
    """After a rollback: as many as a run takes of a shard, and all older than the one that can be read."""
    abandoned(world)
    name = world.charge().id
    stored = world.store._entities[CHARGE, name]
    for number in range(SWEEP_BATCH + 20):
        older = {**stored.properties, "status": "of_the_future", "due": f"{stored.properties['due']}"[:3] + "2026"}
        world.store.insert(CHARGE, f"{name[0]}{number:039d}", older)
    assert sweep(world).body["swept"] == 1


def test_a_charge_that_the_sweep_carries_is_carried_every_minute_that_it_is_due(world: World) -> None:
    """It waits for no task, as none was made."""
    abandoned(world)
    world._down_until["tasks"] = world.clock.now() + HOUR
    world._down_until["stripe"] = world.clock.now() + 10 * MINUTE
    sends = []
    for _ in range(15):
        sweep(world)
        sends.append(world.charge().create.sends)
        world.clock.sleep(MINUTE)
    assert len(set(sends)) > 3
    assert world.charge().status is Status.SUCCEEDED


def test_a_sweep_begins_nothing_in_the_second_half_of_its_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a ledger this slow a run would be ended by the platform; the next one takes up what is left."""
    for number in range(5):
        abandoned(world, f"order-{number}")
    get = world.parts.ledger.get

    def slowly(name: str) -> object:
        world.clock.sleep(world.limits.function_timeout / 5)
        return get(name)

    monkeypatch.setattr(world.parts.ledger, "get", slowly)
    assert sweep(world).body == {"swept": 3}
    assert sweep(world).body == {"swept": 2}


def test_tasks_that_wait_in_a_slowed_queue_do_not_pile_up(world: World) -> None:
    """A day without a delivery: 7 tasks a charge, and not one every five minutes; success starts anew."""
    abandoned(world)
    waits: list[timedelta] = []
    while len(waits) < 6:
        assert sweep(world).body == {"swept": 1}
        charge = world.charge()
        assert charge.due_at is not None
        waits.append(charge.due_at - charge.updated_at)
        world.clock.sleep(waits[-1])
    assert waits == [5 * MINUTE, 20 * MINUTE, 80 * MINUTE, 320 * MINUTE, 6 * HOUR, 6 * HOUR]
    world._down_until["stripe"] = world.clock.now() + MINUTE
    world.run_tasks()
    assert world.charge().sweeps == 6, "that brought nothing"
    world.clock.sleep(HOUR)
    world.run_tasks()
    assert world.charge().sweeps == 0


def test_a_swept_charge_whose_delivery_was_no_wiser_keeps_its_one_task(world: World) -> None:
    """The task comes again by itself, as slowly as its queue has it: another would only start the waits anew."""
    abandoned(world)
    sweep(world)
    world._down_until["stripe"] = world.clock.now() + HOUR
    world.run_tasks()
    before = list(world.queue)
    world.clock.sleep(4 * MINUTE)
    assert world._due(world.charge())

    assert sweep(world).body == {"swept": 0}

    assert list(world.queue) == before
    assert not world._due(world.charge())
    world.clock.sleep(MINUTE)
    assert sweep(world).body == {"swept": 1}


def test_a_swept_charges_older_tasks_end_at_once(world: World) -> None:
    """One task comes again and again, and not one for every sweep; the newest is the one."""
    abandoned(world)
    for _ in range(3):
        sweep(world)
        world.clock.sleep(6 * HOUR)
    name = world.charge().id
    world._down_until["stripe"] = world.clock.now() + HOUR

    world.run_tasks()

    assert list(world.queue) == [f"{name}-g1-e4"]
    assert world.trace.count("create") == world.charge().create.sends


def waiting_for_stripe(world: World, lasts: timedelta) -> None:
    """Ask for four charges while Stripe is down for so long; half of that passes, with tasks and sweeps."""
    began = world.clock.now()
    world._down_until["stripe"] = began + lasts
    for number in range(4):
        world.create(key=f"order-{number}")
    while world.clock.now() < began + lasts / 2:
        world.clock.sleep(MINUTE)
        world.run_tasks()
        sweep(world)


def test_once_stripe_answers_again_the_next_sweep_finds_out(world: World) -> None:
    """By itself a charge would wait as long again as it has waited; each sweep asks by one charge or two."""
    waiting_for_stripe(world, 20 * MINUTE)
    while world.clock.now() < world._down_until["stripe"]:
        asked = world.trace.count("create")
        sweep(world)
        assert world.trace.count("create") - asked <= UNHEARD_PROBES
        world.clock.sleep(MINUTE)
    sweep(world)
    assert Status.SUCCEEDED in {charge.status for charge in world.charges()}
    world.clock.sleep(SECOND)
    world.run_tasks()
    assert {charge.status for charge in world.charges()} == {Status.SUCCEEDED}


@pytest.mark.parametrize("calls", range(1, 12))
def test_a_sweep_that_dies_over_a_charge_leaves_it_to_a_task(world: World, calls: int) -> None:
    """Not to the end of the lease: the sweep delivers in the name of a task that comes soon."""
    waiting_for_stripe(world, 20 * MINUTE)
    world.clock.time = world._down_until["stripe"]
    world.queue.clear()
    world.plan = {len(world.services) + calls: worlds.Fault.DIE_AFTER}
    assert world._ask("reconcile", "POST", "/", b"", {}) is None
    world.plan = {}
    has_task = bool(world.queue)
    world.clock.sleep(PROBE_TASK + SECOND)
    world.run_tasks()
    assert (Status.SUCCEEDED in {charge.status for charge in world.charges()}) is has_task
    world.settle()
    assert world.check() == []
    assert [world.money_moved(f"order-{number}") for number in range(4)] == [[1999]] * 4


def test_a_charge_whose_process_died_is_found_once_its_lease_is_over(world: World) -> None:
    """Recorded, its task never made, nobody left who knows of it."""
    world.plan = {len(world.services): worlds.Fault.DIE_AFTER}
    assert world.create() is None
    world.plan = {}
    assert sweep(world).body == {"swept": 0}
    world.clock.sleep(world.limits.lease)
    assert sweep(world).body == {"swept": 1}
    world.run_tasks()
    assert world.money_moved() == [1999]


def test_503_while_the_ledger_is_down(world: World) -> None:
    """Cloud Scheduler comes again by itself."""
    world._down_until["store"] = world.clock.now() + HOUR
    answer = sweep(world)
    assert (answer.status, answer.body["type"]) == (503, "urn:paidonce:ledger-unavailable")
    assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("path", ["/nowhere", "/sweep"])
def test_another_address_is_404(world: World, path: str) -> None:
    """A problem document."""
    answer = told(world._ask("reconcile", "POST", path, b"", {}))
    assert (answer.status, answer.body["type"]) == (404, "urn:paidonce:not-found")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_method_is_405(world: World, method: str) -> None:
    """A browser that opens the address sweeps nothing."""
    abandoned(world)
    answer = told(world._ask("reconcile", method, "/", b"", {}))
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert world.queue == {}

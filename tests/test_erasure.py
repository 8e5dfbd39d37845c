"""What is personal goes, and what stops a second charge stays."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from shared import policy
from shared.charge import (
    Attempt,
    Audience,
    Charge,
    Closing,
    Discrepancy,
    Entry,
    Failure,
    Notice,
    Party,
    Request,
    Standing,
    Status,
    Terms,
    Topic,
    charge_id,
)
from shared.erasure import ERASED, RETENTION, erased, is_erased
from shared.gate import LedgerClosed
from shared.ledger import charge_of, properties_of
from shared.retention import BATCH, NotOver
from shared.store import CHARGE, SHARDS, StoreUnavailable
from tests.memory_store import Hook, StoreCall
from tests.world import KEY, STORE_FAULTS, Fault, Told, World

NOW: Final = datetime(2026, 11, 24, 12, tzinfo=UTC)
DAY: Final = timedelta(days=1)
JANE: Final = "jane@example.com"
PERSONAL: Final[Mapping[str, Any]] = {
    "description": f"Shoes for {JANE}",
    "metadata": {"name": JANE},
    "receipt_email": JANE,
    "statement_descriptor_suffix": JANE[:22],
}

NOT_PERSONAL: Final[Mapping[type, str]] = {  # Of each part of a charge, what an erasure leaves, and why it may.
    Charge: "id body_digest terms payment_method livemode status create created_at updated_at expires_at due_at "
    "version generation epoch sweeps swept_until lease_until payment_intent attempts orphans orphans_refused refunds "
    "restored_at lost_since closing cancel_reason blocked_on next_attempt_at pays_elsewhere_since last_error "
    "amount_received amount_refunded crashes discrepancies discrepancies_left_out outbox history succeeded_at "
    "erased_at",
    Terms: "amount currency customer payment_method account retry expires_at application_fee_amount transfer_data "
    "on_behalf_of",  # Ids of Stripe's objects.
    Request: "idempotency_key operation api_version payment_intent standing sends unanswered first_sent_at burnt_at "
    "heard outcome error request_id",  # Keys of ours.
    Attempt: "idempotency_key operation api_version payment_intent standing sends unanswered first_sent_at burnt_at "
    "heard outcome error request_id number payment_method",
    Failure: "type code decline_code advice_code param",
    Closing: "kind at request number",
    Discrepancy: "kind at payment_intent detail settled settled_at",  # Amounts and ids, in words of ours.
    Notice: "number audience topic at told_at dropped about",  # No address is in it; `about` is a digest.
    Entry: "at what status",  # Ids and codes, in words of ours.
}


@pytest.fixture
def world() -> World:
    """A fresh deployment."""
    return World()


def told(answer: Told | None) -> Told:
    """Return an answer that did come."""
    assert answer is not None
    return answer


def run(world: World) -> dict[str, Any]:
    """Let Cloud Scheduler call, with nothing but the erasure due."""
    world.parts.reconciler._mark("erasure", world.clock.now() - 2 * DAY)
    for name in ("backfill", "audit"):
        world.parts.reconciler._mark(name, world.clock.now())
    done: dict[str, Any] = told(world._ask("reconcile", "POST", "/", b"", {})).body
    return done


def interrupt(world: World, *, before: Hook = lambda _: None, after: Hook = lambda _: None) -> None:
    """Have something happen before, or after, each call to the store."""
    store: Any = world.parts.ledger._store
    call = type(store)._call

    def interrupted(what: StoreCall, apply: Callable[[], Any]) -> Any:
        before(what)
        answer = call(store, what, apply)
        after(what)
        return answer

    store._call = interrupted


def stored(world: World) -> str:
    """Return all that the database says about charges."""
    return str([entity.properties for (kind, _), entity in world.store._entities.items() if kind == CHARGE])


# --- What is personal -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", NOT_PERSONAL)
def test_of_every_field_it_is_decided_whether_it_is_personal(part: type) -> None:
    """Whoever adds a field says it here, or in the table of what is erased."""
    kept, gone = set(NOT_PERSONAL[part].split()), set(ERASED.get(part, {}))
    assert not kept & gone
    assert kept | gone == {field.name for field in dataclasses.fields(part)}


def test_every_part_of_a_charge_is_looked_at() -> None:
    """The parts are those that a charge is made of."""
    assert set(ERASED) <= set(NOT_PERSONAL)
    named = " ".join(str(field.type) for part in NOT_PERSONAL for field in dataclasses.fields(part))
    for part in NOT_PERSONAL:
        assert part is Charge or part.__name__ in named


def full() -> Charge:
    """A paid charge with something personal wherever there may be."""
    charge = policy.open_charge(
        charge_id=charge_id(None, JANE),
        idempotency_key=JANE,
        body_digest="digest",
        terms=Terms(amount=1999, currency="usd", customer="cus_1", payment_method="pm_1", **PERSONAL),
        livemode=False,
        generation=1,
        api_version="2026-01-01",
        now=NOW,
    )
    failure = Failure(type="card_error", code="card_declined", decline_code="generic", message=f"{JANE}: no")
    attempt = Attempt(
        idempotency_key="pio-1",
        operation="confirm",
        parameters=json.dumps({"payment_method": "pm_1", "return_url": f"https://pay.example.com/{JANE}"}),
        api_version="2026-01-01",
        number=1,
        payment_method="pm_1",
        error=failure,
    )
    cancel = Request(idempotency_key="pio-2", operation="cancel", parameters="{}", api_version="2026-01-01")
    refund = replace(cancel, operation="refund", parameters='{"metadata": {"pio_refund_of": "1"}}', error=failure)
    return replace(
        charge,
        status=Status.CANCELED,
        due_at=None,
        attempts=(attempt,),
        refunds=(replace(refund, standing=Standing.SETTLED),),
        closing=Closing(kind="cancel", actor=JANE, at=NOW, note=JANE, request=cancel),
        last_error=failure,
        lease_owner=f"{JANE}#1",
        blocked_on=Party.OPERATOR,
        discrepancies=(Discrepancy(kind="paid_twice", at=NOW, settled="by an operator", settled_at=NOW, note=JANE),),
    ).noted(NOW, "cancel", JANE)


def test_nothing_personal_is_left_and_all_else_is() -> None:
    """Wherever the caller, the customer, the operator or a bank wrote something."""
    before = full()
    assert str(before).count(JANE) > 10
    after = erased(before, NOW)
    assert JANE not in str(after)
    assert (after.id, after.body_digest, after.status) == (before.id, "digest", Status.CANCELED)
    assert (after.terms.amount, after.terms.currency, after.terms.customer) == (1999, "usd", "cus_1")
    assert json.loads(after.create.parameters)["metadata"] == {"pio_charge": before.id, "pio_body": "digest"}
    assert json.loads(after.create.parameters)["amount"] == 1999
    assert after.refunds[0].parameters == before.refunds[0].parameters
    assert after.last_error == replace(before.last_error or Failure(), message=None)
    assert [(found.settled, found.note) for found in after.discrepancies] == [("by an operator", "")]
    assert [entry.actor for entry in after.history] == ["caller", ""]
    assert [entry.what for entry in after.history] == ["created", "cancel"]


def test_erasing_twice_changes_nothing() -> None:
    """It says for ever when it was first done."""
    once = erased(full(), NOW)
    assert erased(once, NOW + DAY) == once
    assert is_erased(once)
    assert not is_erased(full())
    learned = replace(once, last_error=Failure(message=JANE))
    assert not is_erased(learned)
    assert erased(learned, NOW + DAY) == replace(once, last_error=Failure())


def test_what_is_open_is_never_erased() -> None:
    """Its create may have to be sent again as it was written."""
    with pytest.raises(AssertionError):
        erased(replace(full(), status=Status.PENDING, due_at=NOW), NOW)


def test_the_index_names_what_there_is_to_erase() -> None:
    """Charges that are done; no open one, and none twice."""
    assert properties_of(full())["ended"].endswith("|2026-11-24T12:00:00.000000Z")  # type: ignore[union-attr]
    assert "ended" not in properties_of(replace(full(), status=Status.DECLINED, due_at=NOW))
    gone = erased(full(), NOW)
    assert "ended" not in properties_of(gone)
    assert charge_of(properties_of(gone)) == gone


# --- By time ----------------------------------------------------------------------------------------------------------


def test_a_charge_is_erased_once_it_is_old_enough_and_not_before(world: World) -> None:
    """By default 400 days after it last changed."""
    world.create(**PERSONAL)
    world.settle()
    world.clock.sleep(RETENTION - DAY)
    assert run(world)["erased"] == 0
    assert JANE in stored(world)
    world.clock.sleep(2 * DAY)
    assert run(world) == {"swept": 0, "erased": 1}
    assert JANE not in stored(world)
    assert world.charge().erased_at is not None
    assert run(world)["erased"] == 0
    assert world.money_moved() == [1999]


def test_a_run_a_day_is_enough_once_nothing_is_left(world: World) -> None:
    """Until then each call of Cloud Scheduler's erases some."""
    world.create(**PERSONAL)
    world.settle()
    world.clock.sleep(RETENTION + DAY)
    assert run(world)["erased"] == 1
    for name in ("backfill", "audit"):
        world.parts.reconciler._mark(name, world.clock.now())
    assert told(world._ask("reconcile", "POST", "/", b"", {})).body == {"swept": 0, "erased": 0}
    assert told(world._ask("reconcile", "POST", "/", b"", {})).body == {"swept": 0}


def test_an_open_charge_is_never_touched_however_old(world: World) -> None:
    """Declined, it waits for its customer; it may yet be charged."""
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds", **PERSONAL)
    before = world.charge()
    assert before.status is Status.DECLINED
    world.clock.sleep(2 * RETENTION)
    assert world.parts.reconciler.retention.run(lambda: True) == 0
    assert world.charge() == before


def test_a_charge_that_is_not_what_the_index_said_is_left_alone(world: World) -> None:
    """Whatever names it: the entity itself is asked whether it is over, and for how long."""
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds", **PERSONAL)
    before = world.parts.ledger.get(world.charge().id)
    assert before is not None
    store: Any = world.parts.ledger._store
    store.ended = lambda *_: [before.charge.id]
    world.clock.sleep(RETENTION + DAY)
    assert world.parts.reconciler.retention.run(lambda: True) == 0
    assert world.parts.ledger.get(before.charge.id) == before


def test_a_charge_that_changed_since_the_index_was_read_is_kept_for_as_long_again(world: World) -> None:
    """A refund on its last day: somebody still deals with it."""
    world.create(**PERSONAL)
    world.settle()
    world.clock.sleep(RETENTION + DAY)
    held = world.parts.ledger.get(world.charge().id)
    assert held is not None
    after = world.parts.ledger.update(held, replace(held.charge, amount_refunded=700))
    store: Any = world.parts.ledger._store
    store.ended = lambda *_: [held.charge.id]
    assert world.parts.reconciler.retention.run(lambda: True) == 0
    assert world.parts.ledger.get(held.charge.id) == after


def test_it_dies_in_the_middle_and_the_next_run_does_the_rest(world: World) -> None:
    """Each charge is erased or it is not."""
    for number in range(3):
        world.create(key=f"order-{number}", **PERSONAL)
    world.settle()
    world.clock.sleep(RETENTION + DAY)
    writes = iter(range(3))

    def die(call: StoreCall) -> None:
        if call.operation == "update" and call.kind == CHARGE and next(writes) == 1:
            raise KeyboardInterrupt

    interrupt(world, after=die)
    with pytest.raises(KeyboardInterrupt):
        world.parts.reconciler.retention.run(lambda: True)
    interrupt(world)
    assert sum(is_erased(charge) for charge in world.charges()) == 2
    assert world.parts.reconciler.retention.run(lambda: True) == 1
    assert all(is_erased(charge) for charge in world.charges())
    assert world.check() == []


def test_a_lost_answer_is_no_second_erasure(world: World) -> None:
    """The write is read back, as any other."""
    world.create(**PERSONAL)
    world.settle()
    world.clock.sleep(RETENTION + DAY)
    lost = iter([True])  # The first one's.

    def lose(call: StoreCall) -> None:
        if call.operation == "update" and next(lost, False):
            raise StoreUnavailable("lost")

    version = world.charge().version
    interrupt(world, after=lose)
    assert world.parts.reconciler.retention.run(lambda: True) == 1
    assert world.charge().version == version + 1


def test_two_runs_at_once_erase_a_charge_once(world: World) -> None:
    """The second one's write meets another version."""
    world.create(**PERSONAL)
    world.settle()
    world.clock.sleep(RETENTION + DAY)
    retention, others = world.parts.reconciler.retention, iter([True])

    def meanwhile(call: StoreCall) -> None:
        if call.operation == "update" and next(others, False):
            assert retention.run(lambda: True) == 1

    version = world.charge().version
    interrupt(world, before=meanwhile)
    assert retention.run(lambda: True) == 0
    assert world.charge().version == version + 1


def test_a_run_is_small(world: World) -> None:
    """It ends when its time does, and takes no more than a batch of each shard."""
    for number in range(3):
        world.create(key=f"order-{number}", **PERSONAL)
    world.settle()
    world.clock.sleep(RETENTION + DAY)
    time = iter([True, False])
    assert world.parts.reconciler.retention.run(lambda: next(time)) == 1
    assert sum(is_erased(charge) for charge in world.charges()) == 1
    assert world.parts.reconciler.retention.run(lambda: False) == 1  # It says that there is more.
    asked: list[str] = []
    interrupt(world, before=lambda call: asked.append(call.operation))
    world.parts.reconciler.retention.run(lambda: True)
    assert asked.count("ended") == SHARDS
    assert BATCH * SHARDS < 200


def test_one_that_cannot_be_read_keeps_nobody_from_being_erased(world: World) -> None:
    """Written by a newer version, say."""
    world.create(**PERSONAL)
    world.settle()
    name = "0" * 40
    old = world.store._entities[CHARGE, world.charge().id].properties
    world.store.insert(CHARGE, name, {**old, "status": "of tomorrow", "ended": "00|2026-11-24T08:00:00.000000Z"})
    world.clock.sleep(RETENTION + DAY)
    assert world.parts.reconciler.retention.run(lambda: True) == 1


# --- What an erased charge still is -----------------------------------------------------------------------------------


def erase(world: World, **terms: Any) -> Charge:
    """A charge that is paid and erased."""
    world.create(**{**PERSONAL, **terms})
    world.settle()
    world.clock.sleep(timedelta(minutes=1))
    after = world.parts.reconciler.retention.erase(world.charge().id)
    assert after is not None
    assert is_erased(after)
    return after


def body(world: World, **changes: Any) -> dict[str, Any]:
    """Return the request that `World.create` made."""
    asked = {"amount": 1999, "currency": "usd", "customer": world.customer, "payment_method": "pm_card_visa"}
    return {**asked, **PERSONAL, **changes}


def test_the_same_request_is_answered_by_the_charge_and_nobody_pays_again(world: World) -> None:
    """Its digest is kept. What was erased is absent."""
    erase(world)
    answer = told(world.post("/", body(world), key=KEY))
    assert (answer.status, answer.body["status"], answer.body["amount"]) == (200, "succeeded", 1999)
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert (answer.body["metadata"], answer.body["erased_at"] is None) == ({}, False)
    assert JANE not in json.dumps(answer.body)
    assert world.money_moved() == [1999]


@pytest.mark.parametrize(
    ("changes", "fields", "says"),
    [
        ({"amount": 5}, ["amount"], "with other amount."),
        ({"amount": 5, "receipt_email": "joe@example.com"}, ["amount"], "with other amount."),
        ({"receipt_email": "joe@example.com"}, [], "with other values of fields that were erased since."),
    ],
)
def test_another_request_under_its_key_is_422_and_named_as_far_as_it_is_known(
    world: World, changes: dict[str, Any], fields: list[str], says: str
) -> None:
    """Nobody knows any more what the others were; that they differ is known by the digest."""
    erase(world)
    answer = told(world.post("/", body(world, **changes), key=KEY))
    assert (answer.status, answer.body["fields"]) == (422, fields)
    assert answer.body["detail"].endswith(says)
    assert world.money_moved() == [1999]


def test_neither_backfill_nor_audit_finds_anything_amiss(world: World) -> None:
    """Both ways; and its events come once more, as late as they may, or are fetched."""
    world.webhooks_on = False
    before = erase(world)
    report = world.audit(since=world.clock.now() - DAY)
    assert (report["findings"], report["agreed"], report["corrected"]) == ([], 1, 0)
    world.deliver_webhooks()
    world.settle()
    assert world.charge() == before
    assert is_erased(world.charge())
    assert world.charge().discrepancies == ()
    assert world.check() == []
    assert world.money_moved() == [1999]


def test_a_backfill_after_an_erasure_has_nothing_to_add(world: World) -> None:
    """Of events that never came."""
    world.events_lost = True
    before = erase(world)
    assert world.backfill()["events"] > 0
    assert world.charge() == before


def test_a_refund_at_stripe_is_still_noticed(world: World) -> None:
    """And leaves it erased."""
    charge = erase(world)
    world.at_stripe("POST", "/v1/refunds", f"payment_intent={charge.payment_intent}&amount=700")
    world.clock.sleep(timedelta(minutes=1))
    report = world.audit(since=world.clock.now() - DAY)
    assert [found["kind"] for found in report["findings"]] == ["refunded_at_stripe"]
    assert world.charge().amount_refunded == 700
    assert is_erased(world.charge())


def test_a_second_payment_for_it_is_still_given_back(world: World) -> None:
    """Somebody's script pays with its metadata: promise 1 holds as before."""
    charge = erase(world)
    form = {"amount": 1999, "currency": "usd", "customer": world.customer, "payment_method": "pm_card_visa"}
    form |= {"confirm": "true", "off_session": "true", "metadata[pio_charge]": charge.id}
    form |= {"metadata[pio_body]": charge.body_digest}
    world.at_stripe("POST", "/v1/payment_intents", "&".join(f"{name}={value}" for name, value in form.items()))
    world.settle()
    assert [found.kind for found in world.charge().discrepancies] == ["paid_twice"]
    assert sum(world.money_moved()) == 1999


def test_the_definite_no_stays_one(world: World) -> None:
    """A key that was given up before it was used is never charged, erased or not."""
    told(world.post("/cancel", {"actor": JANE, "reason": JANE}, key=KEY))
    assert world.parts.reconciler.retention.erase(world.charge().id) is not None
    assert JANE not in stored(world)
    assert told(world.post("/", body(world), key=KEY)).status == 410
    assert world.money_moved() == []


def test_a_charge_is_erased_on_request_only_when_it_is_over(world: World) -> None:
    """An open one is refused, and stays whole; one that does not exist is nobody's."""
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds", **PERSONAL)
    before = world.charge()
    with pytest.raises(NotOver, match="declined"):
        world.parts.reconciler.retention.erase(before.id)
    assert world.charge() == before
    assert world.parts.reconciler.retention.erase("0" * 40) is None


def test_a_charge_of_which_somebody_is_still_to_be_told_is_not_erased(world: World) -> None:
    """The letter may need its address."""
    world.create(**PERSONAL)
    held = world.parts.ledger.get(world.charge().id)
    assert held is not None
    untold = Notice(number=1, audience=Audience.CUSTOMER, topic=Topic.PAID, at=NOW)
    world.parts.ledger.update(held, replace(held.charge, outbox=(untold,), due_at=NOW))
    with pytest.raises(NotOver, match="still to be done or told"):
        world.parts.reconciler.retention.erase(held.charge.id)
    assert JANE in stored(world)


def test_a_charge_that_is_written_meanwhile_is_read_again_and_erased(world: World) -> None:
    """A person who asked is not told no because an audit ran."""
    world.create(**PERSONAL)
    world.settle()
    others = iter([True])

    def meanwhile(call: StoreCall) -> None:
        if call.operation == "update" and next(others, False):
            held = world.parts.ledger.get(world.charge().id)
            assert held is not None
            world.parts.ledger.update(held, replace(held.charge, amount_refunded=700))

    interrupt(world, before=meanwhile)
    assert world.parts.reconciler.retention.erase(world.charge().id) == world.charge()
    assert is_erased(world.charge())
    assert world.charge().amount_refunded == 700


# --- Whatever happens meanwhile ---------------------------------------------------------------------------------------


def aged(world: World) -> int:
    """Age a charge that is paid until only an erasure is due; return the number of the next call to anything."""
    world.create(**PERSONAL)
    world.settle()
    world.clock.sleep(RETENTION + DAY)
    for name in ("backfill", "audit"):
        world.parts.reconciler._mark(name, world.clock.now())
    world.parts.reconciler._mark("erasure", world.clock.now() - 2 * DAY)
    return next(world._crossings) + 1


def calls_of_a_run() -> int:
    """Count the calls to Datastore that one run makes, sweep and all."""
    world = World()
    first = aged(world)
    told(world._ask("reconcile", "POST", "/", b"", {}))
    assert is_erased(world.charge())
    return next(world._crossings) - first


@pytest.mark.parametrize("fault", STORE_FAULTS)
def test_one_fault_at_any_call_of_the_run_and_the_charge_is_erased_in_the_end_and_paid_once(fault: Fault) -> None:
    """The process dies, Datastore fails or is down, an answer is lost, another delivery or its caller comes between."""
    calls = calls_of_a_run()
    assert calls > 5
    for number in range(calls):
        world = World()
        first = aged(world)
        world.plan = {first + number: fault}
        world._ask("reconcile", "POST", "/", b"", {})
        world.plan = {}
        for _ in range(3):
            world.clock.sleep(timedelta(minutes=3))
            world._ask("reconcile", "POST", "/", b"", {})
        assert is_erased(world.charge()), number
        answer = told(world.post("/", body(world), key=KEY))
        assert (answer.status, answer.body["status"]) == (200, "succeeded"), number
        world.settle()
        assert world.money_moved() == [1999]
        assert world.check() == []


@pytest.mark.parametrize("asks_again", [True, False])
def test_a_restored_ledger_forgets_again_and_charges_nobody_twice(world: World, asks_again: bool) -> None:
    """The backup is of before the erasure, so it comes back whole; and its time is as over as it was."""
    world.create(**PERSONAL)
    world.settle()
    world.clock.sleep(RETENTION + DAY)
    backup = world.backup()
    assert world.parts.reconciler.retention.run(lambda: True) == 1
    world.restore(backup)
    with pytest.raises(LedgerClosed):
        world.parts.reconciler.retention.run(lambda: True)
    assert JANE in stored(world)
    world.reopen(backup.at)
    world.clock.sleep(timedelta(minutes=1))
    if asks_again:
        assert told(world.post("/", body(world), key=KEY)).status == 200
    assert world.parts.reconciler.retention.run(lambda: True) == 1
    assert JANE not in stored(world)
    assert told(world.post("/", body(world), key=KEY)).body["status"] == "succeeded"
    world.settle()
    assert world.money_moved() == [1999]

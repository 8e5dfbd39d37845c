"""Tries every fault at every call across a boundary, alone and in pairs, and judges by Stripe's tally."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from infra.local.stripe.engine import Fault as StripeFault
from shared import policy
from shared.charge import Charge, Status, charge_id
from shared.checkout import Unreachable, take_card
from shared.deliver import LookUnavailable
from shared.ledger import LedgerUnavailable
from tests.world import FAULTS, KEY, OUTAGE, RETRY_SCHEDULE, Fault, Killed, World

Scenario = Callable[[World], None]
Plan = Mapping[int, Fault]

PAY_NOW: Final = "payment_method=pm_card_visa&confirm=true"


def pay(world: World) -> None:
    """A caller charges a good card, and repeats the request until it is answered."""
    world.create(patient=True)


def pay_and_walk_away(world: World) -> None:
    """A caller charges a good card, and never asks again."""
    world.create()


def pay_later(world: World) -> None:
    """A caller leaves the charge to the task queue."""
    world.post("/", _body(world), key="order-1001", Prefer="respond-async")


def pay_by_task(world: World) -> None:
    """A caller enqueues the request itself; the queue repeats it until it is accepted."""
    for _ in range(5):
        told = world.post("/", _body(world), key="order-1001", by_task="caller")
        if told is not None and told.status == 200:
            return


def decline_then_another_card(world: World) -> None:
    """A card is declined, and the customer gives another one."""
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds", patient=True)
    world.settle()
    for charge in world.charges():
        world.post(f"/{charge.id}/payment-method", {"payment_method": "pm_card_mastercard"})


def cancel(world: World) -> None:
    """A caller charges, then cancels the order."""
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds")
    for charge in world.charges():
        world.post(f"/{charge.id}/cancel", {"reason": "changed my mind"})


def cash(world: World) -> None:
    """A card is declined, and the customer pays in cash."""
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds")
    for charge in world.charges():
        world.post(f"/{charge.id}/out-of-band", {"reference": "till 4"})


def bank_debit(world: World) -> None:
    """A bank debit takes days."""
    world.create(payment_method="pm_usBankAccount_success", patient=True)


def stranger_with_copied_metadata(world: World) -> None:
    """A card is declined, and a script pays something else with this charge's metadata copied onto it."""
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds", patient=True)
    for charge in world.charges():
        form = (
            f"amount=500&currency=usd&customer={world.customer}&payment_method=pm_card_visa&confirm=true"
            f"&automatic_payment_methods[enabled]=true&automatic_payment_methods[allow_redirects]=never"
            f"&metadata[pio_charge]={charge.id}&metadata[foreign]=yes"
        )
        world.at_stripe("POST", "/v1/payment_intents", form)


def decline_while_the_customer_pays(world: World) -> None:
    """A decline's answer is lost; `Fault.CUSTOMER_PAYS` lets the customer confirm with another card at any moment."""
    world.engine.fail_next(StripeFault.DROP_AFTER, "payment_intents.confirm")
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds", patient=True)


def paid_twice(world: World) -> None:
    """A script pays once more, beside the recorded PaymentIntent; an event tells, or the audit finds out."""
    _pay_beside(world, payments=1)
    if world.webhooks_on:
        world.deliver_webhooks()
    world.audit_patiently()


def paid_three_times(world: World) -> None:
    """A script pays twice more, at the same moment; events tell, or the audit finds out."""
    _pay_beside(world, payments=2)
    if world.webhooks_on:
        world.deliver_webhooks()
    else:
        world.audit_patiently()


def _pay_beside(world: World, *, payments: int) -> None:
    world.create(patient=True)
    for charge in world.charges() * payments:
        if charge.status is Status.SUCCEEDED:
            world.at_stripe("POST", "/v1/payment_intents", f"{_made_for(world, charge)}&{PAY_NOW}")


def paid_without_a_record(world: World) -> None:
    """A script pays for a key that no ledger knows; an event tells, or the audit; then a caller comes with that key."""
    name = charge_id(None, KEY)
    world.scripted = True
    metadata = f"metadata[pio_charge]={name}&metadata[pio_key]={KEY}"
    world.at_stripe("POST", "/v1/payment_intents", f"{_for_the_price(world)}&{metadata}&{PAY_NOW}")
    if world.webhooks_on:
        world.deliver_webhooks()
    world.audit_patiently()
    world.create(patient=True)


def paid_before_one_is_recorded(world: World) -> None:
    """Stripe hears no create of ours for a while; meanwhile a script pays for the charge."""
    world.engine.fail_next(StripeFault.DROP_BEFORE, "payment_intents.create", times=3)
    world.create()
    for charge in world.charges():
        if charge.payment_intent is None and not charge.final:
            world.acted_at.append(world.clock.now())
            world.scripted = world.paid_past_the_ledger = True
            world.at_stripe("POST", "/v1/payment_intents", f"{_made_for(world, charge)}&{PAY_NOW}")
    _let_it_be_found(world)


def paid_elsewhere(world: World) -> None:
    """A card is declined, and a script pays twice, by other PaymentIntents than the recorded one."""
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds", patient=True)
    for charge in world.charges() * 2:
        if charge.status is not Status.CANCELED:
            world.acted_at.append(world.clock.now())
            world.scripted = world.paid_past_the_ledger = True
            paid = world.at_stripe("POST", "/v1/payment_intents", f"{_made_for(world, charge)}&{PAY_NOW}")
            _let_it_be_seen(world, charge, paid["id"])


def an_orphan_is_paid(world: World) -> None:
    """An audit finds an orphan of a declined charge; it is paid before it is canceled, and then a card is given."""
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds", patient=True)
    forms = [_made_for(world, charge) for charge in world.charges()]
    orphans = [world.at_stripe("POST", "/v1/payment_intents", form)["id"] for form in forms]
    world.clock.sleep(timedelta(hours=2))
    for charge, orphan in zip(world.charges(), orphans, strict=True):
        _let_it_be_seen(world, charge, orphan, by_event=False)
        if charge.status is not Status.CANCELED:
            world.acted_at.append(world.clock.now())
            world.scripted = True
            world.at_stripe("POST", f"/v1/payment_intents/{orphan}/confirm", "payment_method=pm_card_visa")
            world.post(f"/{charge.id}/payment-method", {"payment_method": "pm_card_mastercard"})
        _let_it_be_seen(world, charge, orphan)


def _let_it_be_found(world: World) -> None:
    if world.webhooks_on:
        world.deliver_webhooks()
    else:
        world.audit_patiently()


def _let_it_be_seen(world: World, charge: Charge, payment_intent: str, *, by_event: bool = True) -> None:
    """Let an event tell of a PaymentIntent, or do what an audit does that comes upon it: a whole one is slow."""
    if by_event and world.webhooks_on:
        world.deliver_webhooks()
        return
    for _ in range(20):
        with suppress(Killed, LedgerUnavailable, LookUnavailable):
            world.parts.charger.examine(charge.id, payment_intent)
            return
        world.clock.sleep(OUTAGE)


def _for_the_price(world: World) -> str:
    return (
        f"amount=1999&currency=usd&customer={world.customer}"
        "&automatic_payment_methods[enabled]=true&automatic_payment_methods[allow_redirects]=never"
    )


def _made_for(world: World, charge: Charge) -> str:
    return f"{_for_the_price(world)}&metadata[pio_charge]={charge.id}&metadata[pio_body]={charge.body_digest}"


def scheduled_and_its_tasks_are_lost(world: World) -> None:
    """A decline is to be tried again by itself; its tasks are lost, and meanwhile money comes onto the card."""
    card = _card_without_money(world)
    world.create(payment_method=card, retry="schedule", patient=True)
    world.queue.clear()
    world.top_up(card)


def customer_gone_and_a_card_is_given(world: World) -> None:
    """The customer is gone at Stripe; on their page they give a card, of which Stripe makes a new customer."""
    world.at_stripe("DELETE", f"/v1/customers/{world.customer}")
    world.create(patient=True)

    def give(charge: Charge) -> None:
        form = (
            "mode=setup&currency=usd&customer_creation=always&success_url=https://pay.example.com/back"
            f"&metadata[pio_charge]={charge.id}&metadata[pio_replaces]={charge.payment_method}"
        )
        session = str(world.at_stripe("POST", "/v1/checkout/sessions", form)["id"])
        world.engine.complete_checkout(session)
        if world.webhooks_on:
            world.deliver_webhooks()
        for _ in range(3):  # The way back, until it leads somewhere.
            with suppress(Killed, Unreachable, LedgerUnavailable):
                take_card(world.parts.charger, world.parts.checkout, charge.id, session, return_url="https://back")
                return
            world.clock.sleep(OUTAGE)

    _as_a_new_customer(world, give)


def customer_deleted_while_it_is_made(world: World) -> None:
    """No create has an answer, the customer is deleted, a repeat is refused, and the caller names another customer."""
    world.engine.fail_next(StripeFault.DROP_BEFORE, "payment_intents.create", times=None)
    world.create()
    world.at_stripe("DELETE", f"/v1/customers/{world.customer}")
    world.engine.faults.rules = []

    def give(charge: Charge) -> None:
        new = world.at_stripe("POST", "/v1/customers")["id"]
        world.post(f"/{charge.id}/payment-method", {"payment_method": "pm_card_visa", "customer": new})

    _as_a_new_customer(world, give)


def _as_a_new_customer(world: World, give: Callable[[Charge], None]) -> None:
    """Let another customer give a card, as often as one is asked for: then it can be paid."""
    for _ in range(6):
        world.settle()
        waiting = [charge for charge in world.charges() if policy.needs_customer(charge)]
        if not waiting:
            break
        for charge in waiting:
            world.acted_at.append(world.clock.now())
            give(charge)
        world.clock.sleep(2 * OUTAGE)
    world.settle()
    # A PaymentIntent that was made for the customer before they were deleted is theirs for ever.
    if any(not charge.final and not policy.beyond_cards(charge) for charge in world.charges()):
        world.violations.append("whoever gave a card could not pay")


def scheduled_then_another_card(world: World) -> None:
    """A decline is to be tried again by itself, and the customer gives another card first."""
    world.create(payment_method=_card_without_money(world), retry="schedule", patient=True)
    _each(world, "payment-method", payment_method="pm_card_mastercard")


def scheduled_then_canceled(world: World) -> None:
    """A decline is canceled in the very minute in which it is tried again by itself."""
    card = _card_without_money(world)
    world.create(payment_method=card, retry="schedule", patient=True)
    world.top_up(card)
    world.clock.sleep(RETRY_SCHEDULE[0] - timedelta(seconds=1))
    _each(world, "cancel", reason="changed my mind")


def tried_again_with_the_same_card(world: World) -> None:
    """A card is declined, money comes onto it, and the customer tries it again."""
    card = _card_without_money(world)
    world.create(payment_method=card, patient=True)
    world.top_up(card)
    _each(world, "retry")


def trouble_of_the_processor(world: World) -> None:
    """A decline that passes, perhaps: a few tries by ourselves."""
    world.create(payment_method="pm_card_chargeDeclinedProcessingError", patient=True)


def card_gone_then_another(world: World) -> None:
    """S7: the card was deleted, and the customer gives another one."""
    world.create(payment_method="pm_gone", patient=True)
    _each(world, "payment-method", payment_method="pm_card_visa")


def nobody_chooses(world: World) -> None:
    """A card is declined, nobody does anything, and the charge expires."""
    world.create(payment_method="pm_card_chargeDeclinedInsufficientFunds", patient=True)
    world.clock.sleep(policy.EXPIRES_AFTER + timedelta(days=1))
    world.sweep()


def expired_while_unknown(world: World) -> None:
    """The answer to a payment is lost, and nothing runs before the charge expires."""
    world.engine.fail_next(StripeFault.DROP_AFTER, "payment_intents.confirm", times=2)
    world.create()
    world.queue.clear()
    world.clock.sleep(policy.EXPIRES_AFTER + timedelta(days=1))
    world.sweep()


def cash_while_unknown(world: World) -> None:
    """The answer to a payment is lost, and the customer pays in cash meanwhile."""
    world.engine.fail_next(StripeFault.DROP_AFTER, "payment_intents.confirm", times=2)
    world.create()
    _each(world, "out-of-band", reference="till 4")


def _card_without_money(world: World) -> str:
    path, form = "/v1/payment_methods/pm_card_chargeCustomerFail/attach", f"customer={world.customer}"
    return str(world.at_stripe("POST", path, form)["id"])


def _each(world: World, act: str, **fields: str) -> None:
    for charge in world.charges():
        world.post(f"/{charge.id}/{act}", fields)


def _body(world: World) -> dict[str, str | int]:
    return {"amount": 1999, "currency": "usd", "customer": world.customer, "payment_method": "pm_card_visa"}


SCENARIOS: Final[tuple[Scenario, ...]] = (
    pay,
    pay_and_walk_away,
    pay_later,
    pay_by_task,
    decline_then_another_card,
    cancel,
    cash,
    bank_debit,
    stranger_with_copied_metadata,
    decline_while_the_customer_pays,
    paid_twice,
    paid_three_times,
    paid_without_a_record,
    paid_before_one_is_recorded,
    paid_elsewhere,
    an_orphan_is_paid,
    scheduled_and_its_tasks_are_lost,
    customer_gone_and_a_card_is_given,
    customer_deleted_while_it_is_made,
    scheduled_then_another_card,
    scheduled_then_canceled,
    tried_again_with_the_same_card,
    trouble_of_the_processor,
    card_gone_then_another,
    nobody_chooses,
    expired_while_unknown,
    cash_while_unknown,
)


@dataclass(kw_only=True)
class Exploration:
    """What was tried."""

    schedules: set[tuple[str, ...]] = field(default_factory=set)
    runs: int = 0

    def run(self, scenario: Scenario, plan: Plan, *, webhooks: bool = True) -> World:
        """Run one schedule to its end; AssertionError, with how to repeat it, when a promise is broken."""
        world = World(plan=plan, webhooks_on=webhooks)
        scenario(world)
        world.settle()
        self.runs += 1
        self.schedules.add((scenario.__name__, str(webhooks), *world.trace))
        broken = world.check()
        if broken:
            raise AssertionError(report(scenario, plan, world, broken, webhooks=webhooks))
        return world


def report(scenario: Scenario, plan: Plan, world: World, broken: list[str], *, webhooks: bool) -> str:
    """Tell what broke, and the shortest way to see it again."""
    lines = [f"{scenario.__name__}, plan {dict(plan)}, webhooks {webhooks}: {broken}"]
    lines += [f"  {number:3} {call}" for number, call in enumerate(world.trace)]
    lines += [f"  told {told.request} {told.status}" for told in world.told]
    for charge in world.charges():
        lines += [f"  {charge.id} {entry.at:%d %H:%M:%S} {entry.status}: {entry.what}" for entry in charge.history]
    return "\n".join(lines)


def faults_after(world: World, index: int) -> Iterator[tuple[int, Fault]]:
    """List every fault that can befall the calls of a run from this one on."""
    for number, service in enumerate(world.services[index:], start=index):
        for fault in FAULTS[service]:
            yield number, fault


def singles(exploration: Exploration, scenario: Scenario, *, webhooks: bool) -> Iterator[tuple[Plan, World]]:
    """Run the scenario undisturbed, then with each single fault."""
    undisturbed = exploration.run(scenario, {}, webhooks=webhooks)
    for index, fault in faults_after(undisturbed, 0):
        plan = {index: fault}
        yield plan, exploration.run(scenario, plan, webhooks=webhooks)


def pairs(
    exploration: Exploration, scenario: Scenario, *, webhooks: bool, share: float = 1.0, part: int = 0, parts: int = 1
) -> None:
    """Run one of so many parts of the single faults, and after each a share, drawn by seed, of all second ones."""
    chance = random.Random(f"{scenario.__name__} {part}")  # noqa: S311 - it chooses tests, not secrets.
    undisturbed = exploration.run(scenario, {}, webhooks=webhooks)
    for first, one in list(faults_after(undisturbed, 0))[part::parts]:
        world = exploration.run(scenario, {first: one}, webhooks=webhooks)
        for index, fault in faults_after(world, first + 1):
            if chance.random() < share:
                exploration.run(scenario, {first: one, index: fault}, webhooks=webhooks)


def storm(exploration: Exploration, scenario: Scenario, seed: int) -> World:
    """Run with a fault at about every fifth call, drawn by seed."""
    chance = random.Random(seed)  # noqa: S311
    plan = {index: chance.choice([*FAULTS["stripe"]]) for index in range(60) if chance.random() < 0.2}
    return exploration.run(scenario, plan, webhooks=chance.random() < 0.5)

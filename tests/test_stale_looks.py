"""A look that others have overtaken is not laid over what they recorded."""

import json

import pytest
import stripe

from infra.local.stripe.engine import Fault as StripeFault
from shared import deliver
from shared.charge import Status
from tests.world import SECRET, Fault, Told, World


class TwiceOvertaken(World):
    """What stalls is overtaken by two deliveries: the first looks, the second confirms."""

    def _overtake(self) -> None:
        super()._overtake()
        super()._overtake()


def overtaken_webhook() -> tuple[World, Told]:
    """Let a webhook read a bank debit's PaymentIntent unconfirmed, and others confirm it meanwhile."""
    world = TwiceOvertaken(webhooks_on=False)
    confirmed_in_vain = world.engine.fail_next(StripeFault.ERROR_502_BEFORE, "payment_intents.confirm")
    unreadable = world.engine.fail_next(StripeFault.ERROR_502_BEFORE, "payment_intents.retrieve", times=None)
    world.create(payment_method="pm_usBankAccount_success")
    assert confirmed_in_vain.fired == 1
    assert world.charge().status is Status.UNKNOWN
    world.engine.faults.remove(unreadable.id)

    intent = world.engine.payment_intents()[0]
    event = {
        "id": "evt_1",
        "object": "event",
        "type": "payment_intent.payment_failed",
        "api_version": "2026-10-28.endive",
        "created": int(world.clock.now().timestamp()),
        "livemode": False,
        "data": {"object": intent},
        "request": {"id": None, "idempotency_key": None},
    }
    body = json.dumps(event)
    signature = stripe.WebhookSignature.generate_signature_header(
        body, SECRET, timestamp=int(world.clock.now().timestamp())
    )
    looked_up_then_read_then = len(world.trace) + 2
    world.plan = {looked_up_then_read_then: Fault.OVERTAKE}
    told = world._ask("webhook", "POST", "/", body.encode(), {"Stripe-Signature": signature})
    assert told is not None
    return world, told


def test_a_look_from_before_a_confirm_does_not_decline_what_the_bank_is_working_on() -> None:
    """The event is refused, so that Stripe sends it again, and the record of the newer delivery stands."""
    world, told = overtaken_webhook()

    assert told.status == 503
    assert world.charge().status is Status.PROCESSING
    world.settle()
    assert world.charge().status is Status.SUCCEEDED
    assert world.check() == []


def test_without_that_rule_it_would_be_told_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    monkeypatch.setattr(deliver, "_may_be_stale", lambda _: False)

    world, _ = overtaken_webhook()

    assert world.charge().status is Status.DECLINED

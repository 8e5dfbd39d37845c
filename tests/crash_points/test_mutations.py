"""Break the code on purpose, one rule at a time: the crash-point suite must notice each."""

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final

import pytest

from shared import policy
from shared.charge import Act, Charge, Chosen, Happened, Request, Seen, Standing, Status
from shared.deliver import Charger, LookUnavailable, Run
from shared.ledger import Conflict, Held, Ledger, LedgerUnavailable, properties_of
from shared.policy import Decision, Row, Send, Step, Then
from shared.store import CHARGE, AlreadyExists, StoreUnavailable
from tests.crash_points.explore import (
    Exploration,
    Scenario,
    an_orphan_is_paid,
    cancel,
    customer_gone_and_a_card_is_given,
    decline_then_another_card,
    decline_while_the_customer_pays,
    pairs,
    pay,
    pay_and_walk_away,
    singles,
    stranger_with_copied_metadata,
)

Mutation = Callable[[pytest.MonkeyPatch], None]


def unknown_is_stored_as_failed(patch: pytest.MonkeyPatch) -> None:
    """No reply is taken for a decline."""
    failed = Row(Standing.SETTLED, Status.DECLINED, Then.REST)
    patch.setattr(policy, "CONFIRM", {**policy.CONFIRM, Seen.NO_REPLY: failed, Seen.SERVER_ERROR: failed})


def the_key_is_regenerated_on_redelivery(patch: pytest.MonkeyPatch) -> None:
    """A request that is sent again gets a new key."""
    real = policy.next_step

    def next_step(charge: Charge, now: datetime) -> Step:
        step = real(charge, now)
        if isinstance(step, Send) and step.request.sends:
            key = f"{step.request.idempotency_key}-again-{step.request.sends}"
            return Send(request=dataclasses.replace(step.request, idempotency_key=key))
        return step

    patch.setattr(policy, "next_step", next_step)


def the_payment_intent_is_confirmed_before_it_is_recorded(patch: pytest.MonkeyPatch) -> None:
    """Step 4 comes before step 3."""
    real = Charger._record_and_send

    def record_and_send(self: Charger, run: Run, request: Request) -> Decision:
        if request.operation == "confirm" and request.sends == 0:
            return self._send(run, request.sent(self._clock.now()))
        return real(self, run, request)

    patch.setattr(Charger, "_record_and_send", record_and_send)


def step_three_is_unconditional(patch: pytest.MonkeyPatch) -> None:
    """What somebody else wrote meanwhile is overwritten."""
    real = Ledger.update

    def update(self: Ledger, held: Held, charge: Charge) -> Held:
        try:
            return real(self, held, charge)
        except Conflict:
            fresh = self.get(charge.id)
            assert fresh is not None
            return real(self, fresh, charge)

    patch.setattr(Ledger, "update", update)


def the_webhook_answers_200_after_a_failed_write(patch: pytest.MonkeyPatch) -> None:
    """An event that could not be recorded is acknowledged."""
    real = Charger.observe

    def observe(self: Charger, event: Happened) -> str:
        with suppress(LedgerUnavailable, LookUnavailable):
            return real(self, event)
        return "recorded"

    patch.setattr(Charger, "observe", observe)


def an_open_charge_has_no_due_at(patch: pytest.MonkeyPatch) -> None:
    """A charge that stays unknown is not looked at again."""
    real = policy.due_at

    def due_at(charge: Charge, now: datetime, wait: timedelta | None) -> datetime | None:
        return None if charge.status in {Status.UNKNOWN, Status.DECLINED} else real(charge, now, wait)

    patch.setattr(policy, "due_at", due_at)


def an_event_of_another_payment_intent_is_believed(patch: pytest.MonkeyPatch) -> None:
    """Metadata alone makes an event count."""

    def happened(charge: Charge, event: Happened, now: datetime) -> Decision:
        if event.payment_intent.seen is Seen.SUCCEEDED:
            return policy._paid(charge, event.payment_intent, now)
        return policy._rest(charge)

    patch.setattr(policy, "_happened", happened)


def a_replayed_402_is_believed(patch: pytest.MonkeyPatch) -> None:
    """An old decline is told as if it were news."""
    real = policy._confirm_answered

    def confirm_answered(charge: Charge, attempt: Request, answer: Any, now: datetime) -> Decision:
        return real(charge, attempt, dataclasses.replace(answer, replayed=False), now)

    patch.setattr(policy, "_confirm_answered", confirm_answered)


def requires_payment_method_is_taken_for_a_decline(patch: pytest.MonkeyPatch) -> None:
    """What an earlier attempt left behind is read as the answer to the one that is out."""

    def unconfirmed_attempt(charge: Charge, attempt: Any, _fetched: Any, now: datetime, _limits: Any) -> Decision:
        settled = charge.with_request(dataclasses.replace(attempt, standing=Standing.SETTLED))
        return policy._declined(settled, Status.DECLINED, now)

    patch.setattr(policy, "_unconfirmed_attempt", unconfirmed_attempt)


def a_closing_is_sent_before_it_is_committed(patch: pytest.MonkeyPatch) -> None:
    """The PaymentIntent is canceled first, and the wish recorded after."""
    real = Charger.act

    def act(self: Charger, charge_id: str, choice: Chosen, *, version: int | None) -> Any:
        held = self._ledger.get(charge_id)
        if held is not None and choice.act is Act.CANCEL and held.charge.payment_intent:
            decision = policy.decide(held.charge, choice, self._clock.now(), self._limits)
            if decision.charge.closing is not None and decision.charge.closing.request is not None:
                self._gateway.send(decision.charge.closing.request, None)
        return real(self, charge_id, choice, version=version)

    patch.setattr(Charger, "act", act)


def an_errored_insert_is_not_read_back(patch: pytest.MonkeyPatch) -> None:
    """An insert without an answer is taken for done."""
    real = Ledger.insert

    def insert(self: Ledger, charge: Charge) -> Held | None:
        try:
            return Held(charge, self._store.insert(CHARGE, charge.id, properties_of(charge)))
        except StoreUnavailable:
            return Held(charge, 1)
        except AlreadyExists:
            return real(self, charge)

    patch.setattr(Ledger, "insert", insert)


def an_orphan_whose_cancel_is_refused_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """It is shown to a person, unread, and from then on what it takes is overlooked."""
    real = policy._orphan_answered

    def orphan_answered(charge: Charge, orphan: str, answer: Any, now: datetime) -> Decision:
        decision = real(charge, orphan, answer, now)
        if orphan not in decision.charge.orphans_refused:
            return decision
        found = policy._discrepancy(decision.charge, policy.NOT_CANCELED, now, orphan)
        return policy._continue(policy._without_orphan(found, orphan))

    patch.setattr(policy, "_orphan_answered", orphan_answered)
    patch.setattr(policy, "ANSWERS_FOR", policy.ANSWERS_FOR | {policy.NOT_CANCELED})


def the_new_customer_is_not_recorded_before_the_create_is_sent(patch: pytest.MonkeyPatch) -> None:
    """Only the request names them."""
    real = policy._create_again

    def create_again(charge: Charge, now: datetime) -> Decision:
        decision = real(charge, now)
        return dataclasses.replace(decision, charge=dataclasses.replace(decision.charge, customers=()))

    patch.setattr(policy, "_create_again", create_again)


def a_new_customer_is_charged_under_the_old_key(patch: pytest.MonkeyPatch) -> None:
    """It answers as it did before, or that the parameters differ."""
    real = policy._with_new_create
    patch.setattr(policy, "_with_new_create", lambda charge, _number: real(charge, 1))


def explore(scenario: Scenario, *, both: bool) -> None:
    """Run what the crash-point suite runs of this scenario."""
    for webhooks in (True, False):
        if both:
            pairs(Exploration(), scenario, webhooks=webhooks)
        else:
            for _ in singles(Exploration(), scenario, webhooks=webhooks):
                pass


MUTATIONS: Final[tuple[tuple[Mutation, Scenario, bool], ...]] = (
    (unknown_is_stored_as_failed, pay, False),
    (the_key_is_regenerated_on_redelivery, pay, False),
    (the_payment_intent_is_confirmed_before_it_is_recorded, pay, False),
    (step_three_is_unconditional, pay, False),
    (the_webhook_answers_200_after_a_failed_write, pay, True),
    (an_open_charge_has_no_due_at, pay, False),
    (an_event_of_another_payment_intent_is_believed, stranger_with_copied_metadata, False),
    (a_replayed_402_is_believed, decline_while_the_customer_pays, False),
    (requires_payment_method_is_taken_for_a_decline, decline_then_another_card, False),
    (a_closing_is_sent_before_it_is_committed, cancel, False),
    (an_errored_insert_is_not_read_back, pay_and_walk_away, False),
    (an_orphan_whose_cancel_is_refused_is_forgotten, an_orphan_is_paid, False),
    (the_new_customer_is_not_recorded_before_the_create_is_sent, customer_gone_and_a_card_is_given, False),
    (a_new_customer_is_charged_under_the_old_key, customer_gone_and_a_card_is_given, False),
)


@pytest.mark.parametrize(("mutation", "scenario", "both"), MUTATIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_suite_notices_when(
    mutation: Mutation, scenario: Scenario, both: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same exploration that passes on the real code fails on this one."""
    mutation(monkeypatch)
    with pytest.raises(AssertionError, match="plan"):
        explore(scenario, both=both)

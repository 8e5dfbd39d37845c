"""Switch off one rule at a time, as tests/crash_points/test_mutations.py does, to see that the model notices."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import pytest

from shared import deliver, policy
from shared.charge import Answered, Attempt, Charge, Fetched, Happened, PaymentIntent, Request, Seen, Standing, Status
from shared.policy import Decision, Limits, Row, Send, Step, Then
from tests.model import world
from tests.model.stripe import BANK_DEBIT, CARD
from tests.model.world import Bound, Kept, Recording, Run, Sending, State, World

Switch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A rule switched off, the least that must happen for it to matter, and the promise that breaks then."""

    off: Switch
    bound: Bound
    breaks: str
    despite: frozenset[str] = frozenset()  # What it leads to as well, seen sooner.


def no_reply_is_taken_for_a_decline(patch: pytest.MonkeyPatch) -> None:
    """Promise 3: unknown is never failed."""
    _confirm(patch, Seen.NO_REPLY, Row(Standing.SETTLED, Status.DECLINED, Then.REST))


def a_500_is_taken_for_a_decline(patch: pytest.MonkeyPatch) -> None:
    """Promise 3: it may have charged."""
    _confirm(patch, Seen.SERVER_ERROR, Row(Standing.SETTLED, Status.DECLINED, Then.REST))


def a_409_is_taken_for_a_decline(patch: pytest.MonkeyPatch) -> None:
    """Rule 1: what did not run says nothing of what was sent before it."""
    _confirm(patch, Seen.KEY_IN_USE, Row(Standing.SETTLED, Status.DECLINED, Then.REST))


def a_429_is_taken_for_a_decline(patch: pytest.MonkeyPatch) -> None:
    """Rule 1."""
    _confirm(patch, Seen.LIMITED, Row(Standing.SETTLED, Status.DECLINED, Then.REST))


def the_last_answer_decides(patch: pytest.MonkeyPatch) -> None:
    """Rule 1: a refusal settles the key, whatever an earlier send of it may do."""
    real = policy._confirm_answered

    def confirm_answered(charge: Charge, attempt: Request, answer: Answered, now: datetime) -> Decision:
        explained = dataclasses.replace(attempt, unanswered=0)
        return real(charge.with_request(explained), explained, answer, now)

    patch.setattr(policy, "_confirm_answered", confirm_answered)


def another_attempts_decline_counts(patch: pytest.MonkeyPatch) -> None:
    """Rule 2."""
    real = policy._late_answer

    def late_answer(charge: Charge, answer: Answered, now: datetime) -> Decision:
        if answer.seen is Seen.DECLINED and not charge.final:
            return policy._declined(charge, Status.DECLINED, now)
        return real(charge, answer, now)

    patch.setattr(policy, "_late_answer", late_answer)


def unconfirmed_is_taken_for_a_decline(patch: pytest.MonkeyPatch) -> None:
    """Rule 3."""

    def unconfirmed_attempt(
        charge: Charge, attempt: Attempt, _fetched: Fetched, now: datetime, _limits: Limits
    ) -> Decision:
        settled = charge.with_request(dataclasses.replace(attempt, standing=Standing.SETTLED, outcome=Seen.DECLINED))
        return policy._declined(settled, Status.DECLINED, now)

    patch.setattr(policy, "_unconfirmed_attempt", unconfirmed_attempt)


def a_payment_with_copied_metadata_counts(patch: pytest.MonkeyPatch) -> None:
    """Rule 4."""
    real = policy._happened

    def happened(charge: Charge, event: Happened, now: datetime) -> Decision:
        if event.payment_intent.seen is Seen.SUCCEEDED:
            return policy._paid(charge, event.payment_intent, now)
        return real(charge, event, now)

    patch.setattr(policy, "_happened", happened)


def an_orphans_cancellation_counts(patch: pytest.MonkeyPatch) -> None:
    """Rule 4."""
    real = policy._happened

    def happened(charge: Charge, event: Happened, now: datetime) -> Decision:
        if event.payment_intent.seen is Seen.CANCELED and not charge.final:
            return policy._closed(charge)
        return real(charge, event, now)

    patch.setattr(policy, "_happened", happened)


def a_closing_charge_is_confirmed(patch: pytest.MonkeyPatch) -> None:
    """Rule 5."""
    real = policy.next_step

    def next_step(charge: Charge, now: datetime) -> Step:
        attempt = charge.open_attempt
        if charge.closing is not None and attempt is not None and not charge.final:
            return Send(request=attempt)
        return real(charge, now)

    patch.setattr(policy, "next_step", next_step)


def a_closing_ends_at_once(patch: pytest.MonkeyPatch) -> None:
    """Rule 5: the final status is committed before the PaymentIntent is canceled."""
    real = policy._close

    def close(charge: Charge, kind: str, actor: str, note: str, now: datetime) -> Decision:
        decision = real(charge, kind, actor, note, now)
        closing = decision.charge.closing is not None and not decision.charge.final
        return policy._closed(decision.charge) if closing and decision.refusal is None else decision

    patch.setattr(policy, "_close", close)


def the_recorded_payment_intent_is_taken_for_an_orphan(patch: pytest.MonkeyPatch) -> None:
    """Rule 6."""
    real = policy._adopt

    def adopt(charge: Charge, intent: PaymentIntent, now: datetime, others: Any = ()) -> Decision:
        decision = real(charge, intent, now, others)
        return dataclasses.replace(decision, charge=dataclasses.replace(decision.charge, orphans=(intent.id,)))

    patch.setattr(policy, "_adopt", adopt)


def a_key_lives_for_ever(patch: pytest.MonkeyPatch) -> None:
    """The horizon."""
    patch.setattr(policy, "_past_horizon", lambda _request, _now: False)


def a_burnt_key_is_replaced_at_once(patch: pytest.MonkeyPatch) -> None:
    """The quarantine."""
    real = policy._unconfirmed_attempt

    def unconfirmed_attempt(
        charge: Charge, attempt: Attempt, fetched: Fetched, now: datetime, _limits: Limits
    ) -> Decision:
        limits = Limits(quarantine=timedelta(microseconds=1))
        if attempt.burnt_at is not None:
            attempt = dataclasses.replace(attempt, burnt_at=now - timedelta(seconds=1))
        return real(charge, attempt, fetched, now, limits)

    patch.setattr(policy, "_unconfirmed_attempt", unconfirmed_attempt)


def a_decline_is_told_while_a_burnt_key_is_in_doubt(patch: pytest.MonkeyPatch) -> None:
    """The doubt of 24 hours."""
    patch.setattr(policy, "doubtful_until", lambda _charge, _now: None)


def what_a_look_shows_is_taken_for_an_answer(patch: pytest.MonkeyPatch) -> None:
    """What the PaymentIntent showed may be the customer's doing, and our confirm be on its way still."""
    patch.setattr(policy, "_settled_by_a_look", lambda _attempt: False)


def a_confirm_that_a_look_settled_is_replaced_and_not_sent_again(patch: pytest.MonkeyPatch) -> None:
    """The same key tells what became of it; another may come beside it."""
    real = policy._came_back

    def came_back(charge: Charge, intent: PaymentIntent, now: datetime) -> Decision:
        last = charge.attempts[-1]
        if policy._can_be_explained(charge, last, now):
            return policy._with_new_attempt(charge, now)
        return real(charge, intent, now)

    patch.setattr(policy, "_came_back", came_back)


def a_burnt_create_is_replaced_without_a_list(patch: pytest.MonkeyPatch) -> None:
    """The list before a new create."""
    real = policy._create_answered

    def create_answered(charge: Charge, create: Request, answer: Answered, now: datetime) -> Decision:
        if answer.replayed and answer.seen is Seen.SERVER_ERROR:
            return policy._go_on(policy._with_new_create(charge, policy._create_number(charge) + 1))
        return real(charge, create, answer, now)

    patch.setattr(policy, "_create_answered", create_answered)


def a_burnt_key_means_a_new_payment_intent(patch: pytest.MonkeyPatch) -> None:
    """One charge, one PaymentIntent, for ever."""
    real = policy._unconfirmed_attempt

    def unconfirmed_attempt(
        charge: Charge, attempt: Attempt, fetched: Fetched, now: datetime, limits: Limits
    ) -> Decision:
        decision = real(charge, attempt, fetched, now, limits)
        if len(decision.charge.attempts) == len(charge.attempts):
            return decision
        anew = policy._with_new_create(charge, policy._create_number(charge) + 1)
        return policy._go_on(dataclasses.replace(anew, payment_intent=None))

    patch.setattr(policy, "_unconfirmed_attempt", unconfirmed_attempt)


def a_replayed_402_is_believed(patch: pytest.MonkeyPatch) -> None:
    """An answer marked `Idempotent-Replayed` is old news."""
    real = policy._confirm_answered

    def confirm_answered(charge: Charge, attempt: Request, answer: Answered, now: datetime) -> Decision:
        return real(charge, attempt, dataclasses.replace(answer, replayed=False), now)

    patch.setattr(policy, "_confirm_answered", confirm_answered)


def what_is_unknown_is_left_alone(patch: pytest.MonkeyPatch) -> None:
    """Promise 2."""
    real = policy.next_step

    def next_step(charge: Charge, now: datetime) -> Step:
        return policy.Rest() if charge.status is Status.UNKNOWN else real(charge, now)

    patch.setattr(policy, "next_step", next_step)


def an_unknown_charge_has_no_due_at(patch: pytest.MonkeyPatch) -> None:
    """Promise 2."""
    real = policy.due_at

    def due_at(charge: Charge, now: datetime, wait: timedelta | None) -> datetime | None:
        return None if charge.status is Status.UNKNOWN else real(charge, now, wait)

    patch.setattr(policy, "due_at", due_at)


def an_old_look_is_laid_over_a_newer_record(patch: pytest.MonkeyPatch) -> None:
    """`deliver._may_be_stale`."""
    patch.setattr(deliver, "_may_be_stale", lambda _: False)


def a_write_is_unconditional(patch: pytest.MonkeyPatch) -> None:
    """Step 3 and step 5 of the protocol, in the model's ledger."""
    patch.setattr(World, "overwrites", lambda _self, _run: True)


def a_confirm_is_sent_before_it_is_recorded(patch: pytest.MonkeyPatch) -> None:
    """Step 4 comes before step 3, in the model's deliveries."""
    real = World._records_as_sent

    def records_as_sent(self: World, state: State, kept: Kept[Run]) -> Iterator[world.Step]:
        assert isinstance(kept.it.following, Recording)
        request = kept.it.following.request
        if request.operation == "confirm":
            sending = dataclasses.replace(kept.it, following=Sending(request))
            yield self._step("{run} goes on without recording anything.", state, kept, sending)
        else:
            yield from real(self, state, kept)

    patch.setattr(World, "_records_as_sent", records_as_sent)


def a_request_is_not_recorded_as_sent(patch: pytest.MonkeyPatch) -> None:
    """The record before a send says nothing of it, in the model's deliveries."""
    patch.setattr(World, "_as_sent", lambda self, record, _request: World._as_leased(self, record))


def _confirm(patch: pytest.MonkeyPatch, seen: Seen, row: Row) -> None:
    patch.setattr(policy, "CONFIRM", {**policy.CONFIRM, seen: row})


def _card(*, faults: int = 0, acts: int = 0, runs: int = 1, stranger: bool = False) -> Bound:
    return Bound(payment_method=CARD, faults=faults, acts=acts, runs=runs, stranger=stranger)


_debit: Final = Bound(payment_method=BANK_DEBIT, faults=1, acts=0, runs=2)

_sooner: Final = frozenset({world.FOUND, world.ALIVE})

MUTANTS: Final = (
    Mutant(off=no_reply_is_taken_for_a_decline, bound=_card(faults=1), breaks=world.UNPAID),
    Mutant(off=a_500_is_taken_for_a_decline, bound=_card(faults=1), breaks=world.BELIEVED),
    Mutant(off=a_409_is_taken_for_a_decline, bound=_card(faults=1), breaks=world.UNPAID),
    Mutant(off=a_429_is_taken_for_a_decline, bound=_card(faults=2), breaks=world.UNPAID),
    Mutant(off=the_last_answer_decides, bound=_card(faults=2, acts=1), breaks=world.ONE_KEY),
    Mutant(off=another_attempts_decline_counts, bound=_card(acts=1, runs=2), breaks=world.UNPAID),
    Mutant(off=unconfirmed_is_taken_for_a_decline, bound=_card(faults=1), breaks=world.UNPAID),
    Mutant(off=a_payment_with_copied_metadata_counts, bound=_card(stranger=True), breaks=world.TRUE),
    Mutant(off=an_orphans_cancellation_counts, bound=_card(faults=1, acts=1), breaks=world.UNPAID),
    Mutant(off=a_closing_charge_is_confirmed, bound=_card(acts=1, runs=2), breaks=world.CLOSED, despite=_sooner),
    Mutant(off=a_closing_ends_at_once, bound=_card(acts=1), breaks=world.UNPAID),
    Mutant(off=the_recorded_payment_intent_is_taken_for_an_orphan, bound=_card(), breaks=world.CLOSING_FIRST),
    Mutant(off=a_key_lives_for_ever, bound=_card(faults=1), breaks=world.HORIZON),
    Mutant(off=a_burnt_key_is_replaced_at_once, bound=_card(faults=1), breaks=world.ONE_KEY),
    Mutant(off=a_decline_is_told_while_a_burnt_key_is_in_doubt, bound=_card(faults=1), breaks=world.UNPAID),
    Mutant(off=what_a_look_shows_is_taken_for_an_answer, bound=_card(faults=1, acts=1), breaks=world.UNPAID),
    Mutant(
        off=a_confirm_that_a_look_settled_is_replaced_and_not_sent_again,
        bound=_card(faults=1, acts=1),
        breaks=world.ONE_KEY,
    ),
    Mutant(off=a_burnt_create_is_replaced_without_a_list, bound=_card(faults=1), breaks=world.FOUND),
    Mutant(off=a_burnt_key_means_a_new_payment_intent, bound=_card(faults=1), breaks=world.ONCE, despite=_sooner),
    Mutant(off=a_replayed_402_is_believed, bound=_card(faults=1, acts=1), breaks=world.BELIEVED),
    Mutant(off=what_is_unknown_is_left_alone, bound=_card(faults=1), breaks=world.ALIVE),
    Mutant(off=an_unknown_charge_has_no_due_at, bound=_card(faults=1), breaks=world.DUE, despite=_sooner),
    Mutant(off=an_old_look_is_laid_over_a_newer_record, bound=_debit, breaks=world.UNPAID),
    Mutant(off=a_write_is_unconditional, bound=_card(acts=1, runs=2), breaks=world.CLOSED),
    Mutant(off=a_confirm_is_sent_before_it_is_recorded, bound=_card(), breaks=world.ONLY_RECORDED),
    Mutant(off=a_request_is_not_recorded_as_sent, bound=_card(), breaks=world.AS_SENT),
)

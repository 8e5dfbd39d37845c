"""One run of our code for a charge: the protocol, step by step.

`policy` decides; this module makes things durable, in the right order, and nothing else:

    a Request is recorded as sent before it is sent          (so a crash is always "it may have been")
    what an answer taught is recorded before the next send   (so every send follows from what is durable)
    whoever finds the record changed reads it again, adds what it has learned, and decides anew

The lease is economy: two deliveries of one charge are safe, merely wasteful.
"""

import contextlib
import dataclasses
import functools
import itertools
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Protocol, Self

import msgspec

from shared import codes, log, policy, telemetry
from shared.charge import (
    Act,
    Answered,
    Audience,
    Charge,
    Chosen,
    Compared,
    Crashed,
    CustomerGone,
    Failure,
    Fetched,
    GivenBack,
    Happened,
    Listed,
    LookFailed,
    Notice,
    Observation,
    Party,
    PaymentIntent,
    Request,
    Reviewed,
    Seen,
    Status,
    Terms,
    Woken,
    charge_id,
    is_charge_of,
)
from shared.clock import Clock
from shared.gate import Gate, LedgerClosed
from shared.gateway import STRIPE_API_VERSION
from shared.ledger import Conflict, Held, Ledger, LedgerUnavailable
from shared.policy import Decision, Limits, Then
from shared.tasks import Task, TaskQueue, task_name

STEPS_LIMIT: Final = 24  # Sends and looks in one delivery: far more than any charge needs, so a loop is a bug.
SHORT_WAIT: Final = timedelta(seconds=2)  # Worth waiting for inside a delivery; longer waits are for the task queue.
TWIN_WAIT: Final = timedelta(seconds=10)  # How long a repeated request waits for the one in hand before it answers 409.
TWIN_LOOK: Final = timedelta(milliseconds=100)  # When it first looks again; then after twice as long, each time.
STRIPE_DOWN_AFTER: Final = 3  # Calls in a row without an answer: no longer one charge's bad luck.
CHARGE_ID: Final = re.compile(r"[0-9a-f]{40}")
OUR_KEY: Final = re.compile(r"pio-([0-9a-f]{40})-")
SWEEP_AGAIN: Final = timedelta(minutes=5)  # When the sweep takes up a charge again if its task brought nothing; then
SWEEP_AGAIN_GROWS: Final = 4  # each time so much later: a task that does not come most often waits in a slowed queue,
SWEEP_AGAIN_AT_MOST: Final = timedelta(hours=6)  # where one more of them only keeps others waiting.
UNHEARD_PROBES: Final = 2  # One may wait for what Stripe itself waits for.
BURNT_FAR: Final = timedelta(seconds=30)  # Whose key is burnt waits for a moment that is known: a task hits that.
PROBE_TASK: Final = timedelta(seconds=15)  # After a probe, that which goes on where it died.
UNHEARD_APART: Final = timedelta(milliseconds=100)  # Ten a second: Stripe has only just come back.
UNHEARD_KEPT: Final = 1000  # Callers that a process remembers. More have an outage long enough for them to ask.
TRIES: Final = 5  # Of an act on a charge that others write at the same moment.
SWEEP_BATCH: Final = 100  # Charges a shard and run: a run stays far below the function's timeout.


class Gateway(Protocol):
    """What is asked of Stripe (`gateway.Gateway`)."""

    def send(self, request: Request, account: str | None) -> Observation:
        """Send a Request as written."""

    def fetch(
        self, payment_intent: str, account: str | None, api_version: str, *, with_charges: bool = False
    ) -> Fetched | LookFailed:
        """Read a PaymentIntent."""

    def list(
        self, customer: str | None, account: str | None, since: datetime, until: datetime, api_version: str
    ) -> Listed | LookFailed:
        """List PaymentIntents."""

    def refunds(self, payment_intent: str, account: str | None, api_version: str) -> GivenBack | LookFailed:
        """Read what has become of the refunds of a PaymentIntent."""

    def recover(self, payment_intent: str, account: str | None) -> tuple[PaymentIntent, Terms] | LookFailed:
        """Read a PaymentIntent together with what was asked for when it was made."""


class TaskBody(msgspec.Struct, frozen=True):
    """The body of the tasks that we make. Everything that matters is in the charge; this is for lost ones."""

    enqueued_at: float | None = None  # Unix seconds.
    epoch: int | None = None  # The charge's, when the task was made.
    unheard: bool = False  # The caller had its answer before it was certain what had become of the charge.

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Read a body; one that is not ours says nothing."""
        try:
            return msgspec.json.decode(raw, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return cls()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a delivery came to."""

    charge: Charge
    existed: bool = False  # The charge was there before this call.
    busy: bool = False  # Another delivery has it in hand.
    again: bool = False  # It waits for us, and not for long: the task that brought it shall come again.
    durable: bool = True  # False: Stripe may have said more than the ledger could be told.
    crashed: bool = False  # An exception of ours; counted on the charge.
    stripe_down: bool = False  # Stripe has not answered several calls in a row, whichever charge they were for.
    refusal: str | None = None  # Why an act does not fit; nothing was changed.


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The time in which one delivery may send, on two clocks: one of them notices a machine that slept."""

    owner: str
    until: datetime
    until_monotonic: float

    def has(self, duration: timedelta, clock: Clock) -> bool:
        """Say whether this much of it is left on both clocks."""
        return (
            clock.now() + duration < self.until and clock.monotonic() + duration.total_seconds() < self.until_monotonic
        )


@dataclass(kw_only=True)
class Run:
    """One delivery under way: what is durable, what has been learned since, and under which lease."""

    held: Held
    charge: Charge
    lease: Lease
    learned: list[Observation] = field(default_factory=list)
    overtaken: bool = False  # Another delivery has taken the lease.
    limits: Limits
    look_lost: bool = False  # A look was older than what others recorded, and was dropped.


class Charger:
    """Everything that moves a charge forward, over the adapters given."""

    def __init__(  # noqa: PLR0913 - the adapters, each by its name.
        self,
        *,
        ledger: Ledger,
        gate: Gate,
        gateway: Gateway,
        tasks: TaskQueue,
        clock: Clock,
        limits: Limits,
        charge_url: str,
        notices: TaskQueue | None = None,
        notify_url: str = "",
        generation: int,
        beside: Callable[[Callable[[], object]], object],
        ending: Callable[[], bool] = lambda: False,
        new_owner: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._ledger = ledger
        self._gate = gate
        self._gateway = gateway
        self._tasks = tasks
        self._clock = clock
        self._limits = limits
        self._charge_url = charge_url.rstrip("/")
        self._notices = notices
        self._notify_url = notify_url.rstrip("/")
        self._generation = generation
        self._beside = beside
        self._ending = ending
        self._new_owner = new_owner
        self._silence = 0  # Calls in a row that Stripe did not answer, in this process.
        self._unheard: list[str] = []  # Charges whose callers wait to hear, and the queue took no task for it.

    # --- What callers ask for -----------------------------------------------------------------------------------------

    @telemetry.span("charge")
    def create(self, charge: Charge, *, at_once: bool, task: str | None = None) -> Outcome:
        """Record the charge and carry it out; or answer for the one that has its key.

        `at_once` False: the task queue carries it out, after this has returned. `task`: the one that brought it.
        Raises LedgerUnavailable when it is not certain that the charge was recorded: nothing has been sent then, but it
        may be later.
        Raises LedgerClosed, as everything here that may lead to a send.
        """
        charge = dataclasses.replace(self._gate.new(charge), epoch=1)
        if self._unheard:
            self._beside(self._tell_unheard)
        lease = self._new_lease(task)
        began = self._clock.now()
        known_new = charge.restored_at is None
        if at_once:
            charge = self._leased(charge, lease)
            charge = charge.with_request(charge.create.sent(began)) if known_new else charge
        else:
            charge = dataclasses.replace(charge, due_at=began + policy.FIRST_WAIT)
        held = self._insert(charge)
        if held is None:
            return self._answer_for(charge, task)
        if not at_once:
            self._make_task(held.charge, None)
            return Outcome(charge=held.charge)
        self._beside(lambda: self._make_task(held.charge, lease.until))
        # Who asked for it hears what becomes of it now by the answer; a queue does not listen.
        unheard = set() if task else {Audience.CALLER}
        limits = dataclasses.replace(self._limits, reaches=self._limits.reaches - unheard)
        run = Run(held=held, charge=held.charge, lease=lease, limits=limits)

        def work() -> Outcome:
            recorded = Decision(charge=held.charge, then=Then.GO_ON)
            return self._work(run, self._send(run, held.charge.create) if known_new else recorded)

        outcome = self._guarded(run, work)
        if Audience.CALLER in self._limits.reaches - limits.reaches and (outcome.crashed or not outcome.durable):
            # What was learned may be recorded all the same, and is not what the answer says.
            self._beside(lambda: self._let_hear(held.charge, lease.until))
        return outcome

    def _let_hear(self, charge: Charge, at: datetime) -> None:
        """Have the caller told how the charge stands by then. While the queue takes no task, this process remembers it.

        A record that stands says nothing of the answer that was given, so there is nobody else who could know.
        """
        if not self._make_task(charge, at, unheard=True):
            log.error("a caller may have to ask how a charge stands", charge=charge.id)
            if len(self._unheard) < UNHEARD_KEPT:
                self._unheard.append(charge.id)

    def _tell_unheard(self) -> None:
        """Record that callers are to be told, of whom only this process knows; from then on the sweep sees to it."""
        names, self._unheard = self._unheard, []
        for name in names:
            try:
                outcome = self.deliver(name, by_task=True, unheard=True)
                later = outcome is not None and (outcome.busy or not outcome.durable)
            except (LedgerUnavailable, LedgerClosed):
                later = True
            except Exception:  # noqa: BLE001 - a bug of any kind, or a charge that cannot be read: the others go on.
                log.exception("a caller cannot be told", charge=name)
                later = False
            if later:
                self._unheard.append(name)

    def deliver(
        self,
        charge_id: str,
        *,
        by_task: bool,
        epoch: int | None = None,
        task: str | None = None,
        unheard: bool = False,
    ) -> Outcome | None:
        """Take up a charge where it stands. None: there is no such charge. Raises LedgerUnavailable.

        A task of an older epoch ends at once: a newer one was made since, or else `due_at` covers it. So a charge has
        one task that comes again and again, and not one for every time that it was swept. A task (`task`: its name)
        that comes again has ended before: what it holds the lease for is dead.
        unheard: the caller has had an answer that may not say how the charge stands, so they hear it now.
        """
        self._gate.check()
        held = self._ledger.get(charge_id)
        if held is None:
            return None
        if unheard:  # While the charge is on its way, whoever brings it there tells the caller.
            is_stale = policy.waiting_on(held.charge) is Party.SYSTEM
        else:
            is_stale = epoch is not None and epoch < held.charge.epoch and not _holds(held.charge, task)
        if is_stale:
            return Outcome(charge=held.charge, existed=True)
        return self._take_up(held, by_task=by_task, task=task, unheard=unheard)

    def read(self, charge_id: str) -> Charge | None:
        """Return the charge as recorded. Raises LedgerUnavailable."""
        held = self._ledger.get(charge_id)
        return None if held is None else held.charge

    @telemetry.span("act")
    def act(self, charge_id: str, choice: Chosen, *, version: int | None) -> Outcome | None:
        """Do what somebody chose. None: there is no such charge, or (`refusal` "version") it has moved on."""
        self._gate.check()
        while True:
            held = self._ledger.get(charge_id)
            if held is None:
                return None
            if version is not None and held.charge.version != version:
                return Outcome(charge=held.charge, existed=True, refusal="version")
            in_hand = self._busy(held.charge) and choice.act not in policy.CLOSINGS
            if in_hand and choice.act in policy.options(held.charge):
                return Outcome(charge=held.charge, existed=True, busy=True)
            decision = policy.decide(held.charge, choice, self._clock.now(), self._limits)
            if decision.refusal is not None:
                log.info(
                    "refused", charge=charge_id, act=choice.act, refusal=decision.refusal, status=held.charge.status
                )
                return Outcome(charge=held.charge, existed=True, refusal=decision.refusal)
            self._log(decision.charge, choice, decision)
            if decision.charge == held.charge:
                return Outcome(charge=held.charge, existed=True)
            run = Run(held=held, charge=decision.charge, lease=self._new_lease(), limits=self._limits)
            rests = decision.then is Then.REST
            prepared = self._settled(run.charge, None, run.lease) if rests else self._leased(run.charge, run.lease)
            try:
                run.held = self._update(held, prepared)  # Rule 5: durable before anything is sent on its behalf.
            except Conflict:
                continue
            run.charge = run.held.charge
            outcome = self._guarded(run, functools.partial(self._work, run, decision))
            if outcome.charge.status is Status.SUCCEEDED and choice.act in policy.CLOSINGS:
                return dataclasses.replace(outcome, existed=True, refusal="already_paid")
            return dataclasses.replace(outcome, existed=True)

    def review(self, charge_id: str, reviewed: Reviewed, *, version: int | None) -> Outcome | None:
        """Record what an operator says of what nobody explained; nothing is sent. Returns and raises as `act`."""
        self._gate.check()
        while True:
            held = self._ledger.get(charge_id)
            if held is None:
                return None
            if version is not None and held.charge.version != version:
                return Outcome(charge=held.charge, existed=True, refusal="version")
            decision = policy.decide(held.charge, reviewed, self._clock.now(), self._limits)
            if decision.refusal is not None:
                return Outcome(charge=held.charge, existed=True, refusal=decision.refusal)
            self._log(decision.charge, reviewed, decision)
            try:
                return Outcome(charge=self._update(held, decision.charge).charge, existed=True)
            except Conflict:
                continue

    def give_up(self, account: str | None, idempotency_key: str, *, livemode: bool, actor: str, note: str) -> Outcome:
        """Rule 7, the definite no: cancel the charge of this key, or see to it that there never will be one."""
        self._gate.check_account(account)
        name = charge_id(account, idempotency_key)
        never = policy.never_charge(
            charge_id=name,
            idempotency_key=idempotency_key,
            account=account,
            livemode=livemode,
            generation=self._generation,
            now=self._clock.now(),
        )
        held = self._insert(never)
        if held is not None:
            return Outcome(charge=held.charge)
        outcome = self.act(name, Chosen(act=Act.CANCEL, actor=actor, note=note), version=None)
        assert outcome is not None, "charges are never deleted"
        return outcome

    # --- What Stripe and the clock bring ------------------------------------------------------------------------------

    @telemetry.span("event")
    def observe(self, event: Happened) -> str:
        """Apply what an event proves, durably. Returns what became of it, for the log.

        Raises LedgerUnavailable or LookUnavailable when it could not be made durable: Stripe shall send it again.
        """
        self._gate.check()
        held = self._find(event)
        if held is None:
            return self._unowned(event)
        run = Run(held=held, charge=held.charge, lease=self._new_lease(), limits=self._limits)
        decision = self._learn(run, event)
        if decision.look is not None:
            looked = self._gateway.fetch(
                decision.look.payment_intent, held.charge.terms.account, held.charge.create.api_version
            )
            if isinstance(looked, LookFailed):
                raise LookUnavailable(decision.look.payment_intent)
            decision = self._learn(run, looked)
        if run.charge == held.charge:
            return "nothing new"
        more = decision.then is Then.GO_ON
        self._save(run, lambda charge: self._with_epoch(self._settled(charge, None, run.lease), more=more))
        if run.look_lost:
            raise LookUnavailable(event.payment_intent.id)
        if more:
            self._make_task(run.charge, None)
        return f"recorded: {run.charge.status}"

    @telemetry.span("sweep")
    def sweep(self) -> int:
        """See to every open charge that is overdue: make it a new task, or deliver it here while the queue takes none.

        Safe to overlap. Begins nothing in the second half of the function's time. Returns how many it has seen to.
        """
        self._gate.check()
        swept, queue_works, oldest = 0, True, timedelta()
        ends_at = self._clock.monotonic() + self._limits.function_timeout.total_seconds() / 2
        for overdue in self._due_until(self._clock.now(), ends_at):
            held, now = overdue, self._clock.now()
            if policy.needs_us(held.charge):
                oldest = max(oldest, now - held.charge.created_at)
            if queue_works:
                has_task = self._is_swept(held.charge)
                try:
                    held = self._ledger.update(held, _swept(held.charge, now, has_task=has_task))
                except Conflict:  # Somebody is at it: the better for it.
                    continue
                if has_task:
                    continue
                queue_works = self._make_task(held.charge, None)
            if not queue_works:  # It waits for no task, then.
                held = dataclasses.replace(held, charge=dataclasses.replace(held.charge, swept_until=None))
                if self._take_up(held, by_task=True).stripe_down:
                    break
            swept += 1
        swept += self._sweep_unheard(ends_at, queue_works=queue_works)
        log.info("swept", charges=swept, oldest_seconds=round(oldest.total_seconds()))
        return swept

    def _due_until(self, until: datetime, ends_at: float) -> Iterator[Held]:
        """Read the charges that are due until then, the oldest first, for as long as there is time."""
        seen: set[str] = set()
        unreadable, before = 0, -1
        while unreadable > before:  # They stay due, and must not take the place of the others.
            before = unreadable
            for name in self._ledger.due(until, SWEEP_BATCH + unreadable):
                if name in seen:
                    continue
                if self._clock.monotonic() >= ends_at or self._ending():
                    return  # Those left are the oldest next time.
                seen.add(name)
                try:
                    held = self._ledger.get(name)
                except msgspec.ValidationError:  # Written by a newer version, or by hand: the others cannot help it.
                    log.exception("a charge cannot be read", charge=name)
                    unreadable += 1
                    continue
                if held is not None and held.charge.due_at is not None and held.charge.due_at <= until:
                    yield held

    def _sweep_unheard(self, ends_at: float, *, queue_works: bool) -> int:
        """See whether Stripe answers again, with one charge or two; then see to the others that wait for nothing else.

        By themselves they would wait as long again as they have waited already.
        """
        swept, in_vain = 0, 0
        for held in self._due_until(self._clock.now() + policy.LAST_WAIT, ends_at):
            charge, now = held.charge, self._clock.now()
            has_task = self._is_swept(charge) and charge.due_at == charge.swept_until  # It is still to come.
            if has_task or not policy.unheard(charge, now, self._limits) or self._busy(charge):
                continue
            if swept > 0:
                self._make_another_task(held, now + swept * UNHEARD_APART)
            elif not self._probe(held, queue_works=queue_works):
                in_vain += 1
                if in_vain == UNHEARD_PROBES:
                    break
                continue
            swept += 1
        return swept

    def _probe(self, held: Held, *, queue_works: bool) -> bool:
        """Deliver a charge, and say whether Stripe answers.

        That is done in the name of a task that comes soon, and does nothing but what this process died over.
        """
        charge, now = held.charge, self._clock.now()
        name = f"{task_name(charge.id, self._generation, charge.epoch)}-probe-{now:%H%M%S}" if queue_works else None
        if name is not None:
            self._make_task(charge, now + PROBE_TASK, probe=name)
        after = self._take_up(held, by_task=True, task=name).charge
        soon = self._clock.now() + PROBE_TASK
        is_soon = policy.needs_us(after) and after.due_at is not None and after.due_at < soon
        got_on = after.payment_intent != charge.payment_intent
        if queue_works and is_soon and got_on and (latest := self._ledger.get(after.id)) is not None:
            self._make_another_task(latest, soon)  # Its own may have been put off by as long as Stripe was away.
        return not policy.unheard(after, self._clock.now(), self._limits)

    def _make_another_task(self, held: Held, at: datetime) -> None:
        """Make a task beside those that there may be: theirs is an older epoch, so they end at once."""
        again = dataclasses.replace(held.charge, epoch=held.charge.epoch + 1, due_at=at + SWEEP_AGAIN)
        with contextlib.suppress(Conflict):  # Somebody is at it: the better for it.
            self._make_task(self._ledger.update(held, again).charge, at)

    def _is_swept(self, charge: Charge) -> bool:
        """Whether the sweep has made it a task, and waits for what that brings."""
        return charge.swept_until is not None and self._clock.now() < charge.swept_until

    # --- What an audit finds ------------------------------------------------------------------------------------------

    def recover(self, payment_intent: str, account: str | None) -> Charge:
        """Record the charge of a PaymentIntent of ours that is paid, and of which the ledger knows nothing.

        So whoever repeats its key is told that it is paid.

        Raises LedgerUnavailable, LookUnavailable, AccountGone or NotOurs.
        """
        read = self._gateway.recover(payment_intent, account)
        if isinstance(read, LookFailed):
            if read.seen is Seen.MISSING_OBJECT:  # That says nothing of the payment.
                raise AccountGone(account)
            raise LookUnavailable(payment_intent)
        intent, terms = read
        if not is_charge_of(account, intent):
            raise NotOurs(payment_intent)
        found = policy.recovered(
            [intent],
            terms=terms,
            generation=self._generation,
            api_version=STRIPE_API_VERSION,
            now=self._clock.now(),
            reaches=self._limits.reaches,
        )
        held = self._insert(self._settled(found, None, self._new_lease()))
        if held is None:  # Somebody has recorded it meanwhile, and knows nothing of this payment.
            return self.examine(found.id, payment_intent)
        log.error(
            "a discrepancy was recorded", charge=found.id, kind="paid_without_charge", payment_intent=payment_intent
        )
        return held.charge

    def examine(self, charge_id: str, payment_intent: str, *, with_charges: bool = True) -> Charge:
        """Read a PaymentIntent that an audit wonders about, and record what that shows about this charge.

        with_charges: what was refunded is read, too.

        Raises LedgerUnavailable, LookUnavailable or AccountGone.
        """
        held = self._ledger.get(charge_id)
        assert held is not None, "charges are never deleted"
        terms, run = held.charge.terms, Run(held=held, charge=held.charge, lease=self._new_lease(), limits=self._limits)
        looked: Observation = self._gateway.fetch(
            payment_intent, terms.account, held.charge.create.api_version, with_charges=with_charges
        )
        if isinstance(looked, LookFailed) and looked.seen is Seen.MISSING_OBJECT:  # That says nothing of the payment.
            raise AccountGone(terms.account)
        if payment_intent == held.charge.payment_intent and held.charge.status is Status.SUCCEEDED:
            looked = _comparison(looked)
        if isinstance(looked, LookFailed):
            raise LookUnavailable(payment_intent)
        decision = self._learn(run, looked)
        if run.charge != held.charge:
            more = decision.then is Then.GO_ON
            self._save(run, lambda charge: self._with_epoch(self._settled(charge, None, run.lease), more=more))
            if more:
                self._make_task(run.charge, None)
        return run.charge

    def customer_gone(self, charge_id: str, customer: str, error: Failure) -> Charge:
        """Record that Stripe does nothing more for the charge's customer. Raises LedgerUnavailable."""
        self._gate.check()
        held = self._ledger.get(charge_id)
        assert held is not None, "charges are never deleted"
        run = Run(held=held, charge=held.charge, lease=self._new_lease(), limits=self._limits)
        self._learn(run, CustomerGone(customer=customer, error=error))
        if run.charge != held.charge:
            self._save(run, lambda charge: self._settled(charge, None, run.lease))
        return run.charge

    # --- One delivery -------------------------------------------------------------------------------------------------

    def _answer_for(self, asked: Charge, task: str | None) -> Outcome:
        """Answer a repeated request: wait a while for the one in hand, take up what nobody works on.

        A request that asks for something else under the same key changes nothing; nor does one after the definite no,
        which has no body to differ from.
        """
        patience, look_again = self._clock.now() + TWIN_WAIT, TWIN_LOOK
        while True:
            held = self._ledger.get(asked.id)
            assert held is not None, "charges are never deleted"
            if not _same_request(held.charge, asked):
                return Outcome(charge=held.charge, existed=True, refusal="key_reused")
            if held.charge.final or not self._busy(held.charge, but_for=task):
                break  # What is still in hand of a final one, a refund say, changes nothing for the caller.
            if self._clock.now() >= patience:
                return Outcome(charge=held.charge, existed=True, busy=True)
            self._clock.sleep(look_again)
            look_again *= 2
        if held.charge.status in {Status.PENDING, Status.UNKNOWN}:
            return self._take_up(held, by_task=False, task=task)
        return Outcome(charge=held.charge, existed=True)

    @telemetry.span("deliver")
    def _take_up(self, held: Held, *, by_task: bool, task: str | None = None, unheard: bool = False) -> Outcome:
        if self._busy(held.charge, but_for=task):
            telemetry.note(charge=held.charge.id, result="busy")
            telemetry.count("deliveries", result="busy")
            return Outcome(charge=held.charge, existed=True, busy=True)
        run = Run(held=held, charge=held.charge, lease=self._new_lease(task), limits=self._limits)
        self._remind(held.charge)
        decision = self._learn(run, Woken(unheard=unheard))
        outcome = self._guarded(run, lambda: self._work(run, decision, by_task=by_task))
        return dataclasses.replace(outcome, existed=True)

    def _guarded(self, run: Run, work: Callable[[], Outcome]) -> Outcome:
        """Do the work, and tell the traces and metrics what it came to."""
        outcome = self._done(run, work)
        result = _result(outcome)
        telemetry.note(charge=outcome.charge.id, status=outcome.charge.status, result=result)
        telemetry.count("deliveries", result=result)
        return outcome

    def _done(self, run: Run, work: Callable[[], Outcome]) -> Outcome:
        """Do the work; an exception of ours is counted on the charge, retried, and then shown to a person."""
        try:
            return work()
        except LedgerUnavailable:
            return Outcome(charge=self._as_far_as_known(run), durable=False)
        except Exception as exception:  # noqa: BLE001 - a bug of any kind; death (BaseException) passes.
            log.exception("a delivery ended in an exception", charge=run.charge.id)
            crashed = Crashed(exception=type(exception).__name__)
            with contextlib.suppress(LedgerUnavailable):
                decision = self._learn(run, crashed)
                self._finish(run, decision.wait if decision.then is Then.LATER else None, by_task=True)
            return Outcome(charge=self._as_far_as_known(run), crashed=True)

    def _as_far_as_known(self, run: Run) -> Charge:
        """Return the last durable record; what may have happened since is unknown, never failed."""
        charge = run.held.charge
        sent = policy.money_may_move(charge) and not charge.final
        return dataclasses.replace(charge, status=Status.UNKNOWN) if sent else charge

    def _work(self, run: Run, decision: Decision, *, by_task: bool = False) -> Outcome:
        """Send and look until there is nothing to do now; then record how the charge stands."""
        for _ in range(STEPS_LIMIT):
            if decision.then is Then.REST or run.overtaken:
                break
            if decision.then is Then.LATER and not self._waited(run, decision.wait):
                break
            step = policy.next_step(run.charge, self._clock.now())
            if isinstance(step, policy.Rest):
                decision = Decision(charge=run.charge, then=Then.REST)
            elif isinstance(step, policy.Send):
                decision = self._record_and_send(run, step.request)
            else:
                decision = self._learn(run, self._look(run.charge, step))
        wait = decision.wait if decision.then is Then.LATER else None
        run.charge = dataclasses.replace(run.charge, crashes=0)
        self._finish(run, wait, by_task=by_task)
        return Outcome(
            charge=run.charge,
            again=policy.needs_us(run.charge) and not self._is_far(run.charge),
            stripe_down=wait is not None and self._silence >= STRIPE_DOWN_AFTER,
        )

    def _waited(self, run: Run, wait: timedelta) -> bool:
        """Wait here if that is short and leaves time for another call."""
        if (
            self._ending()
            or wait > SHORT_WAIT
            or not run.lease.has(wait + self._limits.stripe_timeout * 2, self._clock)
        ):
            return False
        self._clock.sleep(wait)
        return True

    def _record_and_send(self, run: Run, request: Request) -> Decision:
        """Record that the request is on its way, and send it: in this order."""
        sent = request.sent(self._clock.now())
        recorded = run.charge.request(request.idempotency_key) is not None  # An orphan's cancel is derived instead.

        def as_sent(charge: Charge) -> Charge:
            return self._leased(charge.with_request(sent) if recorded else charge, run.lease)

        try:
            run.held = self._update(run.held, as_sent(run.charge))
        except Conflict:
            self._read_again(run)
            return Decision(charge=run.charge, then=Then.GO_ON)
        run.charge = run.held.charge
        run.learned.clear()
        return self._send(run, sent)

    def _send(self, run: Run, request: Request) -> Decision:
        """Send what is recorded as sent, unless the lease, or the instance, has no time for it (rule 8)."""
        if self._ending() or not run.lease.has(self._limits.stripe_timeout, self._clock):
            return Decision(charge=run.charge, then=Then.LATER, wait=policy.FIRST_WAIT)
        return self._learn(run, self._gateway.send(request, run.charge.terms.account))

    def _look(self, charge: Charge, step: policy.Fetch | policy.FetchRefunds | policy.List) -> Observation:
        account, api_version = charge.terms.account, charge.create.api_version
        if isinstance(step, policy.FetchRefunds):
            return self._gateway.refunds(step.payment_intent, account, api_version)
        if isinstance(step, policy.Fetch):
            return self._gateway.fetch(step.payment_intent, account, api_version, with_charges=step.with_charges)
        customer = None if step.of_everybody else charge.customer
        return self._gateway.list(customer, account, step.since, self._clock.now(), api_version)

    def _learn(self, run: Run, observation: Observation) -> Decision:
        decision = policy.decide(run.charge, observation, self._clock.now(), run.limits)
        if decision.charge.discrepancies_left_out > run.charge.discrepancies_left_out:
            log.error(
                "a discrepancy found no room",
                charge=run.charge.id,
                payment_intent=getattr(getattr(observation, "payment_intent", None), "id", None),
                left_out=decision.charge.discrepancies_left_out,
            )
        run.charge = decision.charge
        run.learned.append(observation)
        if isinstance(observation, Answered | Fetched | Listed | LookFailed):
            silent = getattr(observation, "seen", None) in {Seen.NO_REPLY, Seen.SERVER_ERROR, Seen.LIMITED}
            self._silence = self._silence + 1 if silent else 0
        self._log(run.charge, observation, decision)
        return decision

    def _log(self, charge: Charge, observation: Observation, decision: Decision) -> None:
        """Log a decision: one line each, without who chose."""
        log.info(
            "decided",
            charge=charge.id,
            observation=type(observation).__name__,
            seen=str(getattr(observation, "seen", "")),
            act=str(getattr(observation, "act", "")),
            status=charge.status,
            then=decision.then,
            age_seconds=round((self._clock.now() - charge.created_at).total_seconds()),
        )

    def _finish(self, run: Run, wait: timedelta | None, *, by_task: bool) -> None:
        """Record what was learned, give the lease back, and see that the charge comes again."""

        def finished(charge: Charge) -> Charge:
            charge = self._settled(charge, wait, run.lease)
            return self._with_epoch(charge, more=self._needs_task(charge, by_task=by_task))

        if self._save(run, finished) and self._needs_task(run.charge, by_task=by_task) and not run.overtaken:
            self._make_task(run.charge, run.charge.due_at)

    def _needs_task(self, charge: Charge, *, by_task: bool) -> bool:
        """Whether a task must be made: not by one that comes again by itself, unless that would be far too often."""
        return policy.needs_us(charge) and (not by_task or self._is_far(charge))

    def _is_far(self, charge: Charge) -> bool:
        limit = BURNT_FAR if policy.is_burnt(charge) else policy.LAST_WAIT
        return charge.due_at is not None and charge.due_at - self._clock.now() > limit

    def _save(self, run: Run, prepare: Callable[[Charge], Charge]) -> bool:
        """Make durable what was learned, on top of what others have recorded. False: there was nothing to record."""
        while True:
            prepared = prepare(run.charge)
            if dataclasses.replace(prepared, epoch=run.held.charge.epoch) == run.held.charge:
                return False
            try:
                run.held = self._update(run.held, prepared)
            except Conflict:
                self._read_again(run)
                continue
            run.charge = run.held.charge
            run.learned.clear()
            return True

    def _insert(self, charge: Charge) -> Held | None:
        """Record a new charge. None: there is one of its key."""
        held = self._ledger.insert(charge)
        if held is not None:
            log.info("recorded", charge=charge.id, status=charge.status)
            telemetry.count("charges", status=charge.status)
        return held

    def _update(self, held: Held, charge: Charge) -> Held:
        """Record a charge; what has been found out about it that nobody explains is told to the operator."""
        updated = self._ledger.update(held, charge)
        if charge.status is not held.charge.status:
            telemetry.count("charges", status=charge.status)
            if held.charge.status is Status.UNKNOWN and charge.status is not Status.PENDING:
                seconds = (self._clock.now() - _unknown_since(held.charge)).total_seconds()
                telemetry.measure(telemetry.UNKNOWN_SECONDS, seconds, status=charge.status)
        failure = charge.last_error
        if failure is not None and failure != held.charge.last_error and not codes.listed(failure):
            log.error(
                "a code that no table lists",
                charge=charge.id,
                code=failure.code,
                decline_code=failure.decline_code,
                advice_code=failure.advice_code,
            )
        known = {(found.kind, found.payment_intent, found.detail) for found in held.charge.discrepancies}
        for found in charge.discrepancies:
            if (found.kind, found.payment_intent, found.detail) not in known:
                log.error(
                    "a discrepancy was recorded",
                    charge=charge.id,
                    kind=found.kind,
                    payment_intent=found.payment_intent,
                    settled=found.settled,
                )
        last = held.charge.outbox[-1].number if held.charge.outbox else 0
        for notice in (one for one in charge.outbox if one.number > last):
            self._make_notice_task(charge, notice, f"{charge.id}-g{self._generation}-n{notice.number}")
        return updated

    def _remind(self, charge: Charge) -> None:
        """Make new tasks for what should have been told by now."""
        for notice in charge.untold:
            if notice.at + policy.NOTICE_AGAIN <= self._clock.now():
                name = f"{charge.id}-g{self._generation}-n{notice.number}-e{charge.epoch}"
                self._make_notice_task(charge, notice, name)

    def _make_notice_task(self, charge: Charge, notice: Notice, name: str) -> None:
        """Ask the queue for a notice to be told; `due_at` covers it, if that does not work."""
        if self._notices is not None:
            body = msgspec.json.encode(TaskBody(enqueued_at=self._clock.now().timestamp()))
            task = Task(name=name, url=f"{self._notify_url}/{charge.id}/{notice.number}", body=body)
            queue = self._notices
            self._beside(lambda: queue.create(task))

    def _read_again(self, run: Run) -> None:
        held = self._ledger.get(run.charge.id)
        assert held is not None, "charges are never deleted"
        run.held, run.charge = held, held.charge
        now = self._clock.now()
        for observation in run.learned:
            if _may_be_stale(observation):
                run.look_lost = True
                continue
            run.charge = policy.decide(run.charge, observation, now, run.limits).charge
        run.overtaken = held.charge.lease_owner != run.lease.owner and self._busy(held.charge)

    # --- Leases, tasks, and finding charges ---------------------------------------------------------------------------

    def _new_lease(self, task: str | None = None) -> Lease:
        return Lease(
            owner=f"{task or ''}#{self._new_owner()}",
            until=self._clock.now() + self._limits.lease,
            until_monotonic=self._clock.monotonic() + self._limits.lease.total_seconds(),
        )

    def _busy(self, charge: Charge, *, but_for: str | None = None) -> bool:
        """Whether a delivery has it in hand, other than an earlier one of this task."""
        if _holds(charge, but_for):
            return False
        return not charge.done and charge.lease_until is not None and self._clock.now() < charge.lease_until

    def _leased(self, charge: Charge, lease: Lease) -> Charge:
        due_at = None if charge.done else lease.until
        return dataclasses.replace(charge, lease_owner=lease.owner, lease_until=lease.until, due_at=due_at)

    def _settled(self, charge: Charge, wait: timedelta | None, lease: Lease) -> Charge:
        """Give the lease back, if it is ours, and say when the charge is due; another's lease keeps both."""
        if self._busy(charge) and charge.lease_owner != lease.owner:
            return dataclasses.replace(charge, due_at=None) if charge.done else charge
        due_at = policy.due_at(charge, self._clock.now(), wait)
        charge = dataclasses.replace(charge, lease_owner="", lease_until=None, due_at=due_at)
        return charge if wait is not None else dataclasses.replace(charge, sweeps=0, swept_until=None)

    def _with_epoch(self, charge: Charge, *, more: bool) -> Charge:
        return dataclasses.replace(charge, epoch=charge.epoch + 1) if more else charge

    def _make_task(
        self, charge: Charge, at: datetime | None, *, unheard: bool = False, probe: str | None = None
    ) -> bool:
        """Ask the queue for a delivery. Whether that works never matters to the charge: `due_at` covers it.

        probe: the name of a task that ends at once, but where it holds the lease.
        """
        enqueued_at = self._clock.now().timestamp()
        epoch = charge.epoch if probe is None else -1
        body = msgspec.json.encode(TaskBody(enqueued_at=enqueued_at, epoch=epoch, unheard=unheard))
        return self._tasks.create(
            Task(
                name=probe or task_name(charge.id, self._generation, charge.epoch) + ("-unheard" if unheard else ""),
                url=f"{self._charge_url}/{charge.id}/deliver",
                body=body,
                at=at,
            )
        )

    def _find(self, event: Happened) -> Held | None:
        """Find the charge an event is about: by metadata, by key, by PaymentIntent. None of them proves anything."""
        key = OUR_KEY.match(event.idempotency_key or "")
        names: Sequence[str | None] = (event.payment_intent.charge_id, key.group(1) if key else None)
        for name in dict.fromkeys(name for name in names if CHARGE_ID.fullmatch(name or "")):
            held = self._ledger.get(str(name))
            if held is not None:
                return held
        for name in self._ledger.find(event.payment_intent.id):
            return self._ledger.get(name)
        return None

    def _unowned(self, event: Happened) -> str:
        intent = event.payment_intent
        if intent.seen is not Seen.SUCCEEDED or not CHARGE_ID.fullmatch(intent.charge_id or ""):
            return "not ours"
        try:
            return f"recovered: {self.recover(intent.id, event.account).status}"
        except NotOurs:
            return "not ours any more"
        except AccountGone as gone:
            raise LookUnavailable(intent.id) from gone


def as_seen(charge: Charge, seen: Callable[[Charge], str], act: Callable[[Charge], Outcome | None]) -> Outcome:
    """Act on a charge as it was shown: whatever else is written meanwhile, if it shows the same still (`seen`)."""
    for _ in range(TRIES):
        outcome = act(charge)
        assert outcome is not None, "charges are never deleted"
        if outcome.refusal != "version" or seen(outcome.charge) != seen(charge):
            return outcome
        charge = outcome.charge
    return Outcome(charge=charge, existed=True, busy=True)


def _result(outcome: Outcome) -> str:
    """Say in a word what a delivery came to."""
    if outcome.crashed:
        return "crashed"
    if not outcome.durable:
        return "not recorded"
    return "again" if outcome.again else "done"


def _holds(charge: Charge, task: str | None) -> bool:
    """Whether an earlier delivery of this task has the lease: it comes again, so that one is dead."""
    return task is not None and charge.lease_owner.startswith(f"{task}#")


def _unknown_since(charge: Charge) -> datetime:
    """Return since when a charge is unknown, as far as its history goes back."""
    lines = itertools.takewhile(lambda entry: entry.status is Status.UNKNOWN, reversed(charge.history))
    return min((entry.at for entry in lines), default=charge.updated_at)


def _swept(charge: Charge, now: datetime, *, has_task: bool) -> Charge:
    """Give it another epoch, and its task time: each time more, until a delivery gets somewhere."""
    if has_task:  # A delivery was no wiser, and that task comes again by itself.
        return dataclasses.replace(charge, due_at=charge.swept_until)
    growth = SWEEP_AGAIN_GROWS ** min(charge.sweeps, 10)  # Far beyond the most.
    until = now + min(SWEEP_AGAIN * growth, SWEEP_AGAIN_AT_MOST)
    return dataclasses.replace(
        charge, epoch=charge.epoch + 1, due_at=until, sweeps=charge.sweeps + 1, swept_until=until
    )


def _same_request(recorded: Charge, asked: Charge) -> bool:
    """Whether a charge is of the request that is made now; one that was recovered may not know its digest.

    Its id is what some PaymentIntent's metadata said, and anybody on a connected account may write that.
    """
    one, other = recorded.terms, asked.terms
    if one.account != other.account:
        return False
    if recorded.body_digest or not one.amount:  # No amount: it was given up before anybody asked for it.
        return recorded.body_digest in {asked.body_digest, ""}
    return (one.amount, one.currency, one.customer) == (other.amount, other.currency, other.customer)


def _may_be_stale(observation: Observation) -> bool:
    """Say whether a look must not be laid over a record that is newer than it."""
    if isinstance(observation, Fetched):
        return observation.payment_intent.seen not in policy.NEVER_STALE
    return isinstance(observation, Listed | GivenBack | LookFailed)


def _comparison(looked: Observation) -> Observation:
    """Return what an audit has read as what it is compared with; what Stripe does not know is a finding, too."""
    if isinstance(looked, Fetched):
        return Compared(payment_intent=looked.payment_intent, amount_refunded=looked.amount_refunded)
    gone = isinstance(looked, LookFailed) and looked.seen in policy.REFUSED
    return Compared(payment_intent=None) if gone else looked


class LookUnavailable(Exception):
    """Stripe could not be asked about a PaymentIntent just now."""


class AccountGone(Exception):
    """Stripe lets us ask about nothing on a connected account any more."""


class NotOurs(Exception):
    """A PaymentIntent names no charge of its account, whatever was said of it."""

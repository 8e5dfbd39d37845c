"""Deliveries of one charge, a ledger and the small Stripe: everything that may happen next in a state.

The policy is the product's own (`shared/policy.py`), and so is the rule about stale looks (`deliver._may_be_stale`).
The rest of `shared/deliver.py` is re-stated here, cut where something may come between; each part names its original.
What is put together cannot be told apart: reading the ledger and starting; learning an answer and choosing what to do
next; a write that goes on until no other comes between (`_save`, `act`, `observe`).

Modelled: calls and answers that are lost, late, or end in any error; keys saved, replayed, running and forgotten;
events lost, late, twice and out of order; a process that dies or stalls between any two steps; a write whose answer is
lost (as a death before or after it); deliveries at once, without the help of the lease; callers who repeat; every act;
the bank; the customer on the page; somebody in Stripe's Dashboard; a list that lags.

Not modelled: the insert, and a charge given up before it; restores; refunds, for no other PaymentIntent takes money
here; reads by id that lag, which Stripe rules out; exceptions of our own; notices; a schedule of retries; holds. There
is no audit to help, either.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Generic, NamedTuple, TypeVar

from shared import deliver, policy
from shared.charge import (
    Act,
    Charge,
    Chosen,
    Fetched,
    Happened,
    Listed,
    LookFailed,
    Observation,
    Request,
    Seen,
    Standing,
    Status,
    Terms,
    Woken,
)
from shared.policy import Fetch, List, Send, Then
from tests.model import stripe
from tests.model.moments import JUMPS, JUST_NOW, LIMITS, NOW, passed
from tests.model.stripe import CHARGE_ID, CUSTOMER, OTHER_CARD, STRANGER, US, Stripe, Way, short

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Kept(Generic[T_co]):
    """The one holder of a value. Equal values have the same holder, so states are compared and hashed at once."""

    __slots__ = ("it", "number")

    def __init__(self, it: T_co, number: int) -> None:
        self.it: Final = it
        self.number: Final = number


Record = Kept[Charge]


# --- A run: one delivery under way ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """It is about to record a request as sent."""

    request: Request


@dataclass(frozen=True)
class Sending:
    """It has recorded the request as sent, and is about to send it."""

    request: Request


@dataclass(frozen=True)
class Looking:
    """It is about to ask Stripe."""

    step: Fetch | List


@dataclass(frozen=True)
class Saving:
    """It is about to record what it has learned, and to end."""

    wait: timedelta | None


@dataclass(frozen=True)
class Run:
    """`deliver.Run`, and what it does next."""

    following: Recording | Sending | Looking | Saving
    charge: Record
    held: Record
    fresh: bool = True  # Nobody has written the ledger since `held`: a conditional write would succeed.
    learned: tuple[Kept[Observation], ...] = ()
    late: bool = False  # Its lease is over: it sends nothing any more (rule 8).
    webhook: bool = False  # It works for an event: it looks once, and sends nothing (`Charger.observe`).


class State(NamedTuple):
    """Where everything stands."""

    ledger: Record
    stripe: Kept[Stripe]
    runs: tuple[Kept[Run], ...]  # In the order of their numbers: which was first makes no difference.
    faults: int  # So many have happened.
    acts: int


class Step(NamedTuple):
    """One thing that may happen. `says` has `{run}` where the run is named that goes from `before` to `after`."""

    says: str
    state: State
    before: Kept[Run] | None = None
    after: Kept[Run] | None = None
    broken: str | None = None  # The promise that it breaks.


class Decided(NamedTuple):
    """`policy.Decision`, with its charge kept."""

    charge: Record
    then: Then
    wait: timedelta
    look: Fetch | None
    refusal: str | None


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How much may go wrong, and from where it starts."""

    payment_method: str
    faults: int
    acts: int
    runs: int = 2
    stranger: bool = False

    def __str__(self) -> str:
        stranger = ", a payment with copied metadata" if self.stranger else ""
        return f"{self.payment_method}: {self.faults} faults, {self.acts} acts, {self.runs} at once{stranger}"


# --- The promises -----------------------------------------------------------------------------------------------------

ONCE: Final = "money moves at most once for the charge"
UNPAID: Final = "nothing is called unpaid while something that was sent has moved money, or may still"
BELIEVED: Final = "nothing Stripe says makes a charge declined that is paid at that moment"
TRUE: Final = "a charge is succeeded only if Stripe moved the money by its recorded PaymentIntent"
ONLY_RECORDED: Final = "only the recorded PaymentIntent is ever confirmed, and never before it is recorded"
AS_SENT: Final = "nothing is sent that is not recorded as sent"
HORIZON: Final = "a key is never sent again past the horizon"
ONE_KEY: Final = (
    "a new key is used only once earlier ones can do no more, or a quarantine later, or by somebody's choice"
)
CLOSED: Final = "once a closing is recorded nothing is confirmed"
CLOSING_FIRST: Final = "the recorded PaymentIntent is canceled only after a closing was recorded"
DUE: Final = "a charge of which something is left to do has a due_at, and no other"
ALIVE: Final = "left alone, every charge becomes final, or waits for somebody who is named"
FOUND: Final = "money that we moved is found, and no PaymentIntent that a list had shown is left open"

PROMISES: Final = (
    ONCE,
    UNPAID,
    BELIEVED,
    TRUE,
    ONLY_RECORDED,
    AS_SENT,
    HORIZON,
    ONE_KEY,
    CLOSED,
    CLOSING_FIRST,
    DUE,
    ALIVE,
    FOUND,
)

NONE: Final[frozenset[str]] = frozenset()
UNPAID_STATUSES: Final = frozenset({Status.DECLINED, Status.CANCELED, Status.PAID_OUT_OF_BAND})

CHOICES: Final = {
    Chosen(act=Act.RETRY, actor="operator"): "Somebody has it tried again",
    Chosen(act=Act.PAYMENT_METHOD, actor="customer", payment_method=OTHER_CARD): "The customer gives another card",
    Chosen(
        act=Act.PAYMENT_METHOD, actor="customer", payment_method=OTHER_CARD, return_url="https://page.test"
    ): "The customer gives another card on the page",
    Chosen(act=Act.CANCEL, actor="caller"): "Somebody cancels the charge",
    Chosen(act=Act.OUT_OF_BAND, actor="operator"): "The customer pays in cash",
}


class _NoMetadata(dict[str, str]):
    """A mapping that can be hashed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return 0


NO_METADATA: Final = _NoMetadata()


class World:
    """All that may happen within a bound. Remembers what the policy answered: it is asked the same again and again."""

    def __init__(self, bound: Bound) -> None:
        self.bound: Final = bound
        self._kept: dict[object, Kept[object]] = {}
        self._decided: dict[tuple[Record, Kept[Observation]], Decided] = {}
        self._written: dict[tuple[object, ...], Record] = {}
        self._nothing: Record  # In place of what a run knows no longer.
        self._later: dict[tuple[Kept[Stripe], timedelta], Kept[Stripe]] = {}
        self._ways: dict[tuple[object, ...], tuple[Way, ...]] = {}
        self._may_come: dict[Kept[Stripe], tuple[Kept[Happened], ...]] = {}

    # --- The start ----------------------------------------------------------------------------------------------------

    def start(self) -> State:
        """The charge has been inserted, its create recorded as sent, and is about to be sent (`Charger.create`)."""
        terms = Terms(
            amount=stripe.AMOUNT,
            currency=stripe.CURRENCY,
            customer=CUSTOMER,
            payment_method=self.bound.payment_method,
            metadata=NO_METADATA,
        )
        charge = policy.open_charge(
            charge_id=CHARGE_ID,
            idempotency_key=CHARGE_ID,
            body_digest="",
            terms=terms,
            livemode=False,
            generation=1,
            api_version="",
            now=NOW,
        )
        sent = charge.create.sent(NOW)
        ledger = self._record(self._leased(charge.with_request(sent)))
        run = Run(Sending(ledger.it.create), ledger, ledger)
        at_stripe = Stripe(stranger=self.bound.stranger)
        self._nothing = ledger
        return State(ledger, self._keep(at_stripe), (self._keep(run),), 0, 0)

    # --- What may happen ----------------------------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[Step]:
        """Everything that may happen next."""
        for run in dict.fromkeys(state.runs):
            yield from self._run_goes_on(state, run)
            if state.faults < self.bound.faults:
                yield from self._run_fails(state, run)
        if len(state.runs) < self.bound.runs:
            yield from self._delivery_starts(state)
        yield from self._events(state)
        yield from self._stripe_by_itself(state)
        if state.acts < self.bound.acts:
            yield from self._acts(state)
        if state.runs:
            yield from self._short_time_passes(state)
        else:
            for by in JUMPS:
                yield Step(JUMPS[by], self.after(state, by))

    def after(self, state: State, by: timedelta) -> State:
        """Let time pass; no run lives so long."""
        key = (state.ledger, by)
        if key not in self._written:
            self._written[key] = self._keep(passed(state.ledger.it, by))
        then = (state.stripe, by)
        if then not in self._later:
            self._later[then] = self._keep(stripe.later(state.stripe.it, by))
        return state._replace(ledger=self._written[key], stripe=self._later[then], runs=())

    def calm_steps(self, state: State) -> Iterator[Step]:
        """What one delivery, or time alone, may bring when nothing fails any more."""
        if state.runs:
            yield from self._run_goes_on(state, state.runs[0])
        else:
            yield from self._delivery_starts(state)

    # --- One run ------------------------------------------------------------------------------------------------------

    def _delivery_starts(self, state: State) -> Iterator[Step]:
        """`Charger._take_up`: by a task, by the sweep, or by a caller who repeats the request."""
        if state.ledger.it.done:
            return
        decided = self._decide(state.ledger, self._keep(Woken()))
        run = Run(Saving(None), decided.charge, state.ledger, learned=(self._keep(Woken()),))
        for started in self._following(run, decided.then, decided.wait):
            if not isinstance(started.following, Saving) or self._saved(started, state.ledger) is not state.ledger:
                yield self._step("{run} starts.", state, None, started)

    def _following(self, run: Run, then: Then, wait: timedelta) -> Iterator[Run]:
        """`Charger._work`, up to the next call across a boundary."""
        if run.webhook or then is Then.REST:
            yield dataclasses.replace(run, following=Saving(None))
            return
        if then is Then.LATER:
            yield dataclasses.replace(run, following=Saving(wait))
            if run.late or wait > deliver.SHORT_WAIT:
                return  # Else it may also wait here: how long it has waited already, the model does not tell.
        step = policy.next_step(run.charge.it, NOW)
        match step:
            case Send(request=request):
                yield dataclasses.replace(run, following=Recording(request))
            case Fetch() | List():
                yield dataclasses.replace(run, following=Looking(step))
            case _:
                yield dataclasses.replace(run, following=Saving(None))

    def _run_goes_on(self, state: State, kept: Kept[Run]) -> Iterator[Step]:
        run = kept.it
        match run.following:
            case Recording():
                yield from self._records_as_sent(state, kept)
            case Sending(request=request):
                if run.late:
                    for after in self._following(run, Then.LATER, policy.FIRST_WAIT):
                        yield self._step("{run} sends nothing: its lease is over.", state, kept, after)
                    return
                yield from self._sends(state, kept, self._arrives(state.stripe, request))
                if self._twin_runs(state, kept, request):
                    yield from self._sends(state, kept, (stripe.in_use(state.stripe.it, request),))
            case Looking(step=step):
                yield from self._looks(state, kept, step)
            case Saving():
                yield self._saves(state, kept)

    def _records_as_sent(self, state: State, kept: Kept[Run]) -> Iterator[Step]:
        """`Charger._record_and_send`, first half."""
        run = kept.it
        assert isinstance(run.following, Recording), "asked only then"
        name = short(run.following.request.idempotency_key)
        if not run.fresh and not self.overwrites(run):
            again = self._read_again(run, state.ledger)
            for after in self._following(again, Then.GO_ON, timedelta()):
                says = f"{{run}} would record {name} as sent, but the record has changed: it reads it again."
                yield self._step(says, state, kept, after)
            return
        request = run.following.request.sent(NOW)
        ledger = self._as_sent(run.charge, request)
        written = ledger.it.request(request.idempotency_key) or request  # An orphan's cancel is not recorded.
        after = Run(Sending(written), ledger, ledger, late=run.late)
        closing = request.operation == "confirm" and (state.ledger.it.closing is not None or state.ledger.it.final)
        yield self._write(
            f"{{run}} records {name} as sent.", state, kept, after, ledger, broken=CLOSED if closing else None
        )

    def _sends(self, state: State, kept: Kept[Run], ways: tuple[Way, ...], faults: int = 0) -> Iterator[Step]:
        """`Charger._send`."""
        run = kept.it
        assert isinstance(run.following, Sending), "asked only then"
        request = run.following.request
        broken = self._broken_by_sending(state, request)
        for way in ways:
            assert way.answer is not None, "a send has an answer, if only that there is none"
            says = f"{{run}} sends {short(request.idempotency_key)}: Stripe {way.says}."
            changed = state._replace(stripe=self._keep(way.stripe), faults=state.faults + faults)
            yield from self._learns(says, changed, kept, self._keep(way.answer), broken)

    def _looks(self, state: State, kept: Kept[Run], step: Fetch | List) -> Iterator[Step]:
        """`Charger._look`."""
        if isinstance(step, Fetch):
            intent = stripe.shown(state.stripe.it, step.payment_intent)
            under_way = step.with_charges and intent.seen in {Seen.SUCCEEDED, Seen.PROCESSING}
            fetched = Fetched(payment_intent=intent, charge_under_way=under_way)
            says = f"{{run}} reads {intent.id}: it is {intent.seen}."
            yield from self._learns(says, state, kept, self._keep(fetched))
            return
        yield from self._learns("{run} lists the PaymentIntents.", state, kept, self._keep(self._list(state)))

    def _list(self, state: State, *, lagging: int = 0) -> Listed:
        names = state.stripe.it.names[: len(state.stripe.it.names) - lagging]
        found = tuple(stripe.shown(state.stripe.it, name) for name in names)
        return Listed(payment_intents=(*found, STRANGER) if state.stripe.it.stranger else found)

    def _learns(
        self, says: str, state: State, kept: Kept[Run], seen: Kept[Observation], broken: str | None = None
    ) -> Iterator[Step]:
        """`Charger._learn`, and on to what follows."""
        run = kept.it
        decided = self._decide(run.charge, seen)
        if decided.charge.it.status is Status.DECLINED is not run.charge.it.status and self._is_paid(state):
            broken = broken or BELIEVED
        if run.webhook and decided.charge is run.held:  # `observe`: nothing new.
            yield self._step(says, state, kept, None, broken)
            return
        known = run.learned if seen in run.learned else (*run.learned, seen)  # Twice says no more than once.
        learned = dataclasses.replace(run, charge=decided.charge, learned=known)
        for after in self._following(learned, decided.then, decided.wait):
            yield self._step(says, state, kept, after, broken)

    def _saves(self, state: State, kept: Kept[Run]) -> Step:
        """`Charger._save`."""
        ledger = self._saved(kept.it, state.ledger)
        if ledger is state.ledger:
            return self._step("{run} ends.", state, kept, None)
        says = f"{{run}} records what it has learned ({_told(ledger.it)}), and ends."
        return self._write(says, state, kept, None, ledger)

    def _saved(self, run: Run, ledger: Record) -> Record:
        """Return what the ledger holds once the run has recorded what it learned."""
        assert isinstance(run.following, Saving), "asked only then"
        prepared = self._settled(run.charge, run.following.wait)
        if prepared is run.held:
            return ledger
        if run.fresh or self.overwrites(run):
            return prepared
        return self._settled(self._read_again(run, ledger).charge, run.following.wait)

    def _read_again(self, run: Run, ledger: Record) -> Run:
        """`Charger._read_again`."""
        charge, look_lost = ledger, False
        for seen in run.learned:
            if deliver._may_be_stale(seen.it):
                look_lost = True
                continue
            charge = self._decide(charge, seen).charge
        del look_lost  # Then a webhook is refused, and Stripe sends it again: here it may always come again.
        return dataclasses.replace(run, charge=charge, held=ledger, fresh=True)

    def overwrites(self, run: Run) -> bool:  # noqa: ARG002 - of whichever run.
        """Whether the ledger takes a write although others have written since. It never does: a mutant does."""
        return False

    # --- What goes wrong ----------------------------------------------------------------------------------------------

    def _run_fails(self, state: State, kept: Kept[Run]) -> Iterator[Step]:
        """A crash between any two steps stands, too, for a write whose answer was lost, before or after it was done."""
        run = kept.it
        worse = state._replace(faults=state.faults + 1)
        yield self._step("{run} dies.", worse, kept, None)
        match run.following:
            case Sending(request=request) if not run.late:
                ways = self._fails(state.stripe, request)
                yield from self._sends(state, kept, ways, faults=1)
                says = f"{{run}} dies as it sends {short(request.idempotency_key)}, which may be on its way."
                died = worse._replace(stripe=self._keep(ways[0].stripe))
                yield self._step(says, died, kept, None, self._broken_by_sending(state, request))
            case Looking(step=step):
                for seen in (Seen.NO_REPLY, Seen.UNAUTHORIZED):
                    says = f"{{run}} asks Stripe in vain ({seen})."
                    yield from self._learns(says, worse, kept, self._keep(LookFailed(seen=seen)))
                if isinstance(step, List) and state.stripe.it.intents:
                    says = "{run} lists the PaymentIntents; the newest is not there yet."
                    missed = self._keep(stripe.overlooked(state.stripe.it))
                    lagging = self._keep(self._list(state, lagging=1))
                    yield from self._learns(says, worse._replace(stripe=missed), kept, lagging)

    def _short_time_passes(self, state: State) -> Iterator[Step]:
        """Two minutes, in which the leases end. Or the sweep makes a task, which is a write and nothing else."""
        if state.faults < self.bound.faults and not all(run.it.late for run in state.runs):
            late = _sorted(tuple(self._keep(dataclasses.replace(run.it, late=True)) for run in state.runs))
            stalled = state._replace(runs=late, faults=state.faults + 1)
            yield Step("Whoever is at work stalls until the lease is over.", stalled)
        due_at = state.ledger.it.due_at
        if due_at is not None and due_at <= NOW:
            key = ("swept", state.ledger)
            if key not in self._written:
                swept = dataclasses.replace(state.ledger.it, due_at=NOW + deliver.SWEEP_AGAIN)
                self._written[key] = self._record(swept)
            yield self._write("The sweep makes a task.", state, None, None, self._written[key])

    def _events(self, state: State) -> Iterator[Step]:
        if state.stripe not in self._may_come:
            self._may_come[state.stripe] = tuple(self._keep(event) for event in stripe.events(state.stripe.it))
        for event in self._may_come[state.stripe]:
            yield from self._event(state, event)

    def _event(self, state: State, seen: Kept[Happened]) -> Iterator[Step]:
        """`Charger.observe`."""
        decided = self._decide(state.ledger, seen)
        says = f"The event {seen.it.type} of {seen.it.payment_intent.id} comes"
        if decided.look is not None:
            if len(state.runs) < self.bound.runs:
                run = Run(Looking(decided.look), decided.charge, state.ledger, learned=(seen,), webhook=True)
                yield self._step(f"{says}: {{run}} is to look.", state, None, run)
        elif decided.charge is not state.ledger:
            ledger = self._settled(decided.charge, None)
            yield self._write(f"{says} and is recorded ({_told(ledger.it)}).", state, None, None, ledger)

    def _stripe_by_itself(self, state: State) -> Iterator[Step]:
        key = ("by itself", state.stripe)
        if key not in self._ways:
            debit = self.bound.payment_method == stripe.BANK_DEBIT
            self._ways[key] = tuple(stripe.by_itself(state.stripe.it, debit=debit))
        for way in self._ways[key]:
            yield Step(way.says, state._replace(stripe=self._keep(way.stripe)))

    # --- What people do -----------------------------------------------------------------------------------------------

    def _acts(self, state: State) -> Iterator[Step]:
        more = state._replace(acts=state.acts + 1)
        for choice, says in CHOICES.items():
            yield from self._act(more, choice, says)
        for name in state.stripe.it.names:
            ways = tuple(stripe.canceled_by_hand(state.stripe.it, name))
            if name == state.ledger.it.payment_intent:  # The page shows no other.
                ways = (*ways, *stripe.customer_confirms(state.stripe.it, name))
            for way in ways:
                yield Step(way.says, more._replace(stripe=self._keep(way.stripe)))

    def _act(self, state: State, choice: Chosen, says: str) -> Iterator[Step]:
        """`Charger.act`: it reads and writes until no other write comes between, then goes on as a delivery does."""
        decided = self._decide(state.ledger, self._keep(choice))
        if decided.refusal is not None or decided.charge is state.ledger:
            return
        if decided.then is Then.REST:
            ledger = self._settled(decided.charge, None)
            yield self._write(f"{says} ({_told(ledger.it)}).", state, None, None, ledger)
        elif len(state.runs) < self.bound.runs:
            ledger = self._as_leased(decided.charge)
            for run in self._following(Run(Saving(None), ledger, ledger), decided.then, decided.wait):
                yield self._write(f"{says}; {{run}} has recorded that.", state, None, run, ledger)

    # --- Judging ------------------------------------------------------------------------------------------------------

    def broken_in(self, state: State) -> str | None:
        """Name the promise that is broken in a state."""
        ledger, at_stripe = state.ledger.it, state.stripe.it
        if at_stripe.paid > 1:
            return ONCE
        if ledger.done != (ledger.due_at is None):
            return DUE
        recorded = ledger.payment_intent
        if ledger.status is Status.SUCCEEDED and (
            recorded not in at_stripe.names or at_stripe.intent(recorded).state is not Seen.SUCCEEDED
        ):
            return TRUE
        if ledger.status in UNPAID_STATUSES and self._money_moves(state):
            return UNPAID
        return None

    def _money_moves(self, state: State) -> bool:
        """Whether money has moved, or may by what has been sent. What the customer does is no decline's fault."""
        at_stripe, declined = state.stripe.it, state.ledger.it.status is Status.DECLINED
        if any(
            intent.state in {Seen.SUCCEEDED, Seen.PROCESSING} and (intent.mover == US or not declined)
            for intent in at_stripe.intents
        ):
            return True
        about_to_send = [
            dataclasses.replace(stripe.used(at_stripe, run.it.following.request), in_flight=1)
            for run in state.runs
            if isinstance(run.it.following, Sending) and not run.it.late
        ]
        return any(stripe.may_move_money(at_stripe, key) for key in (*at_stripe.keys, *about_to_send))

    def _broken_by_sending(self, state: State, request: Request) -> str | None:
        """Name the promise that is broken as a request leaves."""
        ledger, at_stripe = state.ledger.it, state.stripe.it
        known, recorded = at_stripe.key(request.idempotency_key), ledger.request(request.idempotency_key)
        if request.operation == "cancel" and request.payment_intent == ledger.payment_intent and not ledger.closing:
            return CLOSING_FIRST
        if request.payment_intent in ledger.orphans or (recorded is None and request.operation == "cancel"):
            return None  # An orphan's cancel is derived, not recorded, and may be repeated for ever: it moves nothing.
        if known is not None and NOW - known.first_sent >= policy.KEY_HORIZON:
            return HORIZON
        if known is not None and known.saved is not None:
            return None  # It is only answered once more.
        if request.operation != "confirm":
            return None
        if request.payment_intent != ledger.payment_intent:
            return ONLY_RECORDED
        if recorded is None or recorded.sends < 1:
            return AS_SENT
        return ONE_KEY if self._another_key_is_live(state, request) else None

    def _another_key_is_live(self, state: State, request: Request) -> bool:
        """Whether an earlier key may still take money although nothing allows a new one."""
        ledger = state.ledger.it
        for key in state.stripe.it.keys:
            young = NOW - key.first_sent < policy.KEY_HORIZON
            other = key.name != request.idempotency_key
            if other and young and stripe.may_move_money(state.stripe.it, key):
                earlier = ledger.request(key.name)
                burnt_at = earlier.burnt_at if earlier is not None and earlier.standing is Standing.BURNT else None
                chosen = earlier is not None and earlier.outcome is not None  # It stood blocked until somebody acted.
                if burnt_at is None or (NOW - burnt_at < LIMITS.quarantine and not chosen):
                    return True
        return False

    def _is_paid(self, state: State) -> bool:
        name = state.ledger.it.payment_intent
        return name is not None and state.stripe.it.intent(name).state in {Seen.SUCCEEDED, Seen.PROCESSING}

    # --- Records ------------------------------------------------------------------------------------------------------

    def _decide(self, record: Record, seen: Kept[Observation]) -> Decided:
        key = (record, seen)
        if key not in self._decided:
            decision = policy.decide(record.it, seen.it, NOW, LIMITS)
            charge = record if decision.charge is record.it else self._record(decision.charge)
            self._decided[key] = Decided(charge, decision.then, decision.wait, decision.look, decision.refusal)
        return self._decided[key]

    def _settled(self, record: Record, wait: timedelta | None) -> Record:
        """`Charger._settled`."""
        key = ("settled", record, wait)
        if key not in self._written:
            due_at = policy.due_at(record.it, NOW, wait)
            self._written[key] = self._record(dataclasses.replace(record.it, due_at=due_at))
        return self._written[key]

    def _as_sent(self, record: Record, request: Request) -> Record:
        key = ("as sent", record, request.idempotency_key)
        if key not in self._written:
            recorded = record.it.request(request.idempotency_key) is not None
            charge = record.it.with_request(request) if recorded else record.it
            self._written[key] = self._record(self._leased(charge))
        return self._written[key]

    def _as_leased(self, record: Record) -> Record:
        key = ("leased", record)
        if key not in self._written:
            self._written[key] = self._record(self._leased(record.it))
        return self._written[key]

    def _leased(self, charge: Charge) -> Charge:
        """`Charger._leased`, but for the lease itself."""
        return dataclasses.replace(charge, due_at=None if charge.done else NOW + LIMITS.lease)

    def _record(self, charge: Charge) -> Record:
        return self._keep(passed(charge, JUST_NOW))

    def _keep(self, value: T) -> Kept[T]:
        kept = self._kept.get(value)
        if kept is None:
            kept = self._kept[value] = Kept(value, len(self._kept))
        return kept  # type: ignore[return-value]  # What is kept under a value is that value.

    # --- Stripe's ways, remembered ------------------------------------------------------------------------------------

    def _arrives(self, at_stripe: Kept[Stripe], request: Request) -> tuple[Way, ...]:
        return self._remembered(stripe.arrives, at_stripe, request)

    def _fails(self, at_stripe: Kept[Stripe], request: Request) -> tuple[Way, ...]:
        return self._remembered(stripe.fails, at_stripe, request)

    def _remembered(
        self, ways: Callable[[Stripe, Request], Iterator[Way]], at_stripe: Kept[Stripe], request: Request
    ) -> tuple[Way, ...]:
        key = (ways, at_stripe, request.idempotency_key)
        if key not in self._ways:
            self._ways[key] = tuple(ways(at_stripe.it, request))
        return self._ways[key]

    def _twin_runs(self, state: State, kept: Kept[Run], request: Request) -> bool:
        """Whether another copy of the request may be running at Stripe just now."""
        known = state.stripe.it.key(request.idempotency_key)
        if known is not None and known.in_flight > 0 and known.saved is None:
            return True
        others = [run.it.following for run in state.runs if run is not kept]
        return any(isinstance(o, Sending) and o.request.idempotency_key == request.idempotency_key for o in others)

    # --- Steps --------------------------------------------------------------------------------------------------------

    def _step(
        self, says: str, state: State, before: Kept[Run] | None, after: Run | None, broken: str | None = None
    ) -> Step:
        became = None if after is None else self._keep(after)
        left = list(state.runs)
        if before is not None:
            left.remove(before)
        runs = _sorted((*left, became)) if became is not None else tuple(left)
        here = State(state.ledger, state.stripe, runs, state.faults, state.acts)
        return Step(says, here, before, became, broken)

    def _write(
        self,
        says: str,
        state: State,
        before: Kept[Run] | None,
        after: Run | None,
        ledger: Record,
        *,
        broken: str | None = None,
    ) -> Step:
        """Write the ledger: whoever else has read it is no longer fresh."""
        step = self._step(says, state._replace(ledger=ledger), before, after, broken)
        if len(step.state.runs) == (step.after is not None):
            return step
        mine = step.after
        others = list(step.state.runs)
        if mine is not None:
            others.remove(mine)
        stale = [self._keep(self._overtaken(run.it)) for run in others]
        return step._replace(state=step.state._replace(runs=_sorted((*stale, *([mine] if mine else [])))))

    def _overtaken(self, run: Run) -> Run:
        """Somebody else wrote the ledger. Who is about to record a request has only what it has learned to go on."""
        if isinstance(run.following, Recording) and not self.overwrites(run):
            following = Recording(dataclasses.replace(run.following.request, first_sent_at=None, error=None))
            return dataclasses.replace(run, following=following, charge=self._nothing, held=self._nothing, fresh=False)
        return dataclasses.replace(run, fresh=False)


def _sorted(runs: tuple[Kept[Run], ...]) -> tuple[Kept[Run], ...]:
    return tuple(sorted(runs, key=lambda run: run.number))


def _told(charge: Charge) -> str:
    closing = f", to be closed: {charge.closing.kind}" if charge.closing and not charge.final else ""
    return f"{charge.status}{closing}"

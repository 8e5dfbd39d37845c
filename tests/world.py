"""A whole deployment in memory: the real functions, on a virtual clock, with a fault at any call across a boundary.

The functions are the product's own, run by functions-framework's own app. Datastore is `MemoryStore`, Cloud Tasks a
list, Stripe the double's engine behind the real stripe-python. What the money did is asked of Stripe's tally alone.
"""

import functools
import itertools
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

import functions_framework
import stripe
from werkzeug.test import Client, TestResponse

from infra.local.stripe.engine import ConnectionDropped, Engine, Rule
from infra.local.stripe.engine import Fault as StripeFault
from shared import policy, wiring
from shared.charge import FINAL, Charge, Party, Standing, Status, charge_id
from shared.checkout import Checkout
from shared.deliver import Charger
from shared.gate import Gate
from shared.gateway import Gateway
from shared.ledger import Ledger, charge_of
from shared.policy import Limits
from shared.reconcile import Reconciler
from shared.reopen import Reopened, Reopening
from shared.settings import Settings
from shared.store import CHARGE, Store, Stored, StoreUnavailable, shard_of
from shared.tasks import Task
from tests.memory_store import MemoryStore, StoreCall

T = TypeVar("T")

START: Final = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
API_KEY: Final = "sk_test_in_memory_world"
SECRET: Final = "whsec_in_memory_world"
EVENTS: Final = (  # What a deployment subscribes to.
    *(
        f"payment_intent.{change}"
        for change in ("succeeded", "canceled", "processing", "payment_failed", "requires_action")
    ),
    "checkout.session.completed",
)
KEY: Final = "order-1001"
OUTAGE: Final = timedelta(minutes=2)
QUARANTINE: Final = timedelta(minutes=3)  # Longer than what Stripe does later takes; a quarter of an hour only repeats.
RETRY_SCHEDULE: Final = (timedelta(hours=1), timedelta(hours=20))
SWEEP_EVERY: Final = timedelta(minutes=1)
QUIET_AFTER: Final = timedelta(days=8)  # A world that has not come to rest by then is stuck.


class Killed(BaseException):
    """The process died here."""


class Fault(StrEnum):
    """What may go wrong at one call across a boundary."""

    DIE_BEFORE = "die before"
    DIE_AFTER = "die after"
    FAIL = "fail"  # Nothing arrived there.
    LOSE_REPLY = "lose the reply"  # It was done, and the answer got lost.
    DOWN = "down"  # That service fails from now on, for two minutes.
    OVERTAKE = "overtake"  # The process stalls beyond its lease, and another delivery runs meanwhile.
    CUSTOMER_PAYS = "the customer pays"  # On session, at Stripe, with a good card.
    CANCEL = "cancel"  # The caller cancels the charge at this moment.
    ERROR_500 = "500"  # Stripe: no effect, and the answer is saved under the key.
    ERROR_500_ACTED = "500 acted"  # Stripe: effect, and the 500 is saved under the key.
    ERROR_502_ACTED = "502 acted"  # Stripe: effect, saved; the edge answers HTML.
    ERROR_500_LATER = "500 acting later"  # Stripe: the 500 is saved, and the effect comes two minutes after.
    LIMITED = "429"
    UNAUTHORIZED = "401"


STORE_FAULTS: Final = (
    Fault.DIE_BEFORE,
    Fault.DIE_AFTER,
    Fault.FAIL,
    Fault.LOSE_REPLY,
    Fault.DOWN,
    Fault.OVERTAKE,
    Fault.CANCEL,
    Fault.CUSTOMER_PAYS,
)
STRIPE_FAULTS: Final = (
    *STORE_FAULTS,
    Fault.ERROR_500,
    Fault.ERROR_500_ACTED,
    Fault.ERROR_502_ACTED,
    Fault.ERROR_500_LATER,
    Fault.LIMITED,
    Fault.UNAUTHORIZED,
)
STRIPES: Final[Mapping[Fault, StripeFault]] = {
    Fault.ERROR_500: StripeFault.ERROR_500_BEFORE,
    Fault.ERROR_500_ACTED: StripeFault.ERROR_500_AFTER,
    Fault.ERROR_502_ACTED: StripeFault.ERROR_502_AFTER,
    Fault.ERROR_500_LATER: StripeFault.ERROR_500_ROLLED_FORWARD,
    Fault.LIMITED: StripeFault.RATE_LIMITED,
    Fault.UNAUTHORIZED: StripeFault.UNAUTHORIZED,
}
TASK_FAULTS: Final = (Fault.DIE_BEFORE, Fault.DIE_AFTER, Fault.FAIL, Fault.LOSE_REPLY)
FAULTS: Final[Mapping[str, tuple[Fault, ...]]] = {
    "store": STORE_FAULTS,
    "stripe": STRIPE_FAULTS,
    "tasks": TASK_FAULTS,
    "mail": TASK_FAULTS,  # And whatever else tells somebody something.
}


class VirtualClock:
    """A clock that moves when told to, or when somebody sleeps."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> datetime:
        """Return the virtual time."""
        return self.time

    def monotonic(self) -> float:
        """Return the virtual seconds since the start."""
        return (self.time - START).total_seconds()

    def sleep(self, duration: timedelta) -> None:
        """Let the time pass at once."""
        self.time += duration


@dataclass(kw_only=True)
class Told:
    """One answer that somebody got."""

    at: datetime
    request: str
    status: int
    body: Any
    headers: Mapping[str, str]


@dataclass(kw_only=True)
class Waiting:
    """A task in the queue."""

    task: Task
    at: datetime
    tries: int = 0


@dataclass(frozen=True, kw_only=True)
class Backup:
    """The database as it was at a moment."""

    at: datetime
    entities: Mapping[tuple[str, str], Stored]


@functools.cache
def _client(function: str) -> Client:
    """Return a client of one function's app: the app is the same for all worlds, its parts are the world's."""
    source = Path(__file__).parent.parent / "functions" / f"{function}.py"
    return Client(functions_framework.create_app(function, str(source)))  # type: ignore[no-untyped-call]


@dataclass(kw_only=True)
class World:
    """One deployment and everything around it."""

    plan: Mapping[int, Fault] = field(default_factory=dict)
    limits: Limits = field(default_factory=lambda: Limits(quarantine=QUARANTINE, retry_schedule=RETRY_SCHEDULE))
    clock: VirtualClock = field(default_factory=VirtualClock)
    trace: list[str] = field(default_factory=list)
    services: list[str] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    queue: dict[str, Waiting] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)
    generation: int = 1
    backups: list["Backup"] | None = None  # A list: take one before each call across a boundary.
    restored: bool = False
    webhooks_on: bool = True
    events_lost: bool = False
    paid_at: dict[str, datetime] = field(default_factory=dict)  # When Stripe moved money, by charge.
    stripe_asked: list[datetime] = field(default_factory=list)  # When we confirmed or read a PaymentIntent.
    scripted: bool = False  # A script pays past the ledger: of a charge that was canceled a person is shown that.
    paid_past_the_ledger: bool = False  # By a script: whoever cancels is told that, as far as the ledger can know.
    acted_at: list[datetime] = field(default_factory=list)  # When somebody did what may move money after a no.

    def __post_init__(self) -> None:
        """Connect it all."""
        self._crossings = itertools.count()
        self._down_until: dict[str, datetime] = {}
        self._inside = 0
        self._moved = 0
        self.counts: dict[str, int] = {}
        self.store = MemoryStore()
        self.engine = Engine(database=":memory:", clock=self._unix_time, seed=1)
        self.engine.add_webhook_endpoint("in-process", secrets=[SECRET], enabled_events=EVENTS)
        self._owners = itertools.count(1)
        self.parts = self._deploy()
        if self.generation == 1:
            self._meanwhile(self._first_request)  # Before anything that is counted.

    def _first_request(self) -> None:
        """Do what is done once per instance. A sweep is then only a sweep: the rest is asked for where it is tested."""
        self.parts.gate.check()
        for name in ("backfill", "audit", "erasure"):
            self.parts.reconciler._mark(name, self.clock.now() + timedelta(days=3650))
        self.counts.clear()

    def _new_store(self) -> Store:
        return _CrossedStore(self)

    def _unix_time(self) -> float:
        return self.clock.time.timestamp()

    def _deploy(self) -> wiring.Parts:
        ledger = Ledger(self._new_store(), self.clock, chance=random.Random(1))  # noqa: S311 - so that runs replay.
        gateway = Gateway(API_KEY, None, timeout_seconds=30, http_client=_InProcessStripe(self))
        settings = Settings.from_environment(
            {
                "GOOGLE_CLOUD_PROJECT": "world",
                "STRIPE_API_KEY": API_KEY,
                "STRIPE_WEBHOOK_SECRETS": f"whsec_old,{SECRET}",
                "TASKS_LOCATION": "nowhere",
                "CHARGE_URL": "http://charge",
                "NOTIFY_URL": "http://notify",
                "LEDGER_GENERATION": str(self.generation),
            },
            function="charge",
        )
        gate = Gate(ledger=ledger, stripe=gateway, clock=self.clock, database="world/", generation=self.generation)
        charger = Charger(
            ledger=ledger,
            gate=gate,
            gateway=gateway,
            tasks=_MemoryQueue(self),
            notices=_MemoryQueue(self),
            notify_url=settings.notify_url or "",
            clock=self.clock,
            limits=self.limits,
            charge_url=settings.charge_url,
            generation=self.generation,
            beside=_at_once,
            new_owner=lambda: f"owner-{next(self._owners)}",
        )
        checkout = Checkout(gateway, None)
        return wiring.Parts(
            settings=settings,
            clock=self.clock,
            ledger=ledger,
            livemode=gateway.livemode,
            gate=gate,
            gateway=gateway,
            charger=charger,
            limits=self.limits,
            reconciler=Reconciler(
                charger=charger, ledger=ledger, gate=gate, gateway=gateway, checkout=checkout, clock=self.clock
            ),
            checkout=checkout,
        )

    # --- Boundaries ---------------------------------------------------------------------------------------------------

    def cross(  # noqa: C901 - a table of what each fault does.
        self, service: str, where: str, call: Callable[[], T], lost: Callable[[], Exception]
    ) -> T:
        """Make a call across a boundary, with whatever the plan has for it."""
        name = where.partition(" ")[0]
        self.counts[name] = self.counts.get(name, 0) + 1
        fault = self.plan.get(next(self._crossings)) if self._inside == 0 else None
        applies = fault if fault in FAULTS[service] else None
        self.clock.sleep(timedelta(milliseconds=1))  # So that what came first can be told.
        if self._inside == 0:
            if self.backups is not None:
                self.backups.append(self.backup())
            self.services.append(service)
            self.trace.append(f"{where}: {applies}" if applies else where)
        if self._down_until.get(service, START) > self.clock.now():
            raise lost()
        match applies:
            case Fault.DIE_BEFORE:
                raise Killed
            case Fault.DIE_AFTER:
                call()
                raise Killed
            case Fault.FAIL:
                raise lost()
            case Fault.LOSE_REPLY:
                call()
                raise lost()
            case Fault.DOWN:
                self._down_until[service] = self.clock.now() + OUTAGE
                raise lost()
            case Fault.OVERTAKE:
                self._meanwhile(self._overtake)
            case Fault.CANCEL:
                self._meanwhile(self._cancel)
            case Fault.CUSTOMER_PAYS:
                self._meanwhile(self._customer_pays)
            case Fault():
                return self._with_stripe_failing(STRIPES[applies], call)
        return call()

    def _with_stripe_failing(self, fault: StripeFault, call: Callable[[], T]) -> T:
        before = list(self.engine.faults.rules)
        self.engine.faults.add(Rule(fault=fault, seconds=OUTAGE.total_seconds()))
        try:
            return call()
        finally:
            self.engine.faults.rules = before  # It befalls this call or none.

    def _meanwhile(self, happens: Callable[[], object]) -> None:
        """Let something else run to its end while this call waits; it meets no faults of its own."""
        self._inside += 1
        try:
            happens()
        finally:
            self._inside -= 1

    def _overtake(self) -> None:
        self.clock.sleep(self.limits.lease + timedelta(seconds=1))
        for name in self.store.all_names(CHARGE):
            self.post(f"/{name}/deliver", {}, by_task="overtaking")

    def _cancel(self) -> None:
        self.post("/cancel", {}, key=KEY)

    def _customer_pays(self) -> None:
        for charge in self.charges():
            if charge.payment_intent is not None and self.webhooks_on:  # Nothing else tells of it so soon.
                self.acted_at.append(self.clock.now())
                path = f"/v1/payment_intents/{charge.payment_intent}/confirm"
                self.at_stripe("POST", path, "payment_method=pm_card_visa")

    # --- Disaster -----------------------------------------------------------------------------------------------------

    def backup(self) -> Backup:
        """Take a backup of the database."""
        return Backup(at=self.clock.now(), entities=dict(self.store._entities))

    def restore(self, backup: Backup) -> None:
        """Put it in place, and deploy anew with the next generation, as the operator is told to."""
        self.plan = {}  # What comes now meets no faults.
        self.store._entities.clear()
        self.store._entities.update(backup.entities)
        self.restored = True
        self.generation += 1
        self.parts = self._deploy()

    def reopen(self, restore_point: datetime) -> Reopened:
        """Run `paidonce ledger reopen`."""
        reopening = Reopening(
            ledger=self.parts.ledger,
            stripe=self.parts.gateway,
            clock=self.clock,
            limits=self.limits,
            database="world/",
            generation=self.generation,
        )
        return reopening.run(restore_point)

    # --- What people and platforms do ---------------------------------------------------------------------------------

    def post(
        self, path: str, body: Any = None, *, key: str | None = None, by_task: str | None = None, **headers: str
    ) -> Told | None:
        """Send a POST to the charge function. None: the process died, and nobody got an answer."""
        if path.endswith(("/retry", "/payment-method")):
            self.acted_at.append(self.clock.now())
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["Idempotency-Key"] = key
        if by_task is not None:
            sent |= {"X-CloudTasks-QueueName": "charges", "X-CloudTasks-TaskName": by_task}
        return self._ask("charge", "POST", path, json.dumps(body or {}).encode(), sent)

    def get(self, path: str, **headers: str) -> Told | None:
        """Send a GET to the charge function."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._ask("charge", "GET", path, b"", sent)

    def create(self, *, key: str = KEY, patient: bool = False, **terms: Any) -> Told | None:
        """Ask for a charge; a patient caller repeats the request until it is answered, as ours are told to."""
        body = {"amount": 1999, "currency": "usd", "customer": self.customer, "payment_method": "pm_card_visa", **terms}
        told = self.post("/", body, key=key)
        for _ in range(5 if patient else 0):
            if told is not None and told.status not in {409, 503}:
                break
            self.clock.sleep(timedelta(seconds=10))
            told = self.post("/", body, key=key)
        return told

    @functools.cached_property
    def customer(self) -> str:
        """Return a customer at Stripe."""
        return str(self.at_stripe("POST", "/v1/customers")["id"])

    def at_stripe(self, method: str, path: str, form: str = "", **headers: str) -> dict[str, Any]:
        """Do something at Stripe directly, as an engineer or a customer might."""
        sent = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/x-www-form-urlencoded", **headers}
        planned, self.engine.faults.rules = self.engine.faults.rules, []  # The faults are for us.
        answer = self.engine.handle(method, path, sent, form.encode())
        self.engine.faults.rules = planned
        self._note_money()
        found: dict[str, Any] = json.loads(answer.body)
        return found

    def top_up(self, card: str) -> None:
        """Let there be money on a card that had none."""
        for found in self.engine.store.all("payment_method"):
            if found["id"] == card:
                found["_"]["behaviour"] = "pm_card_visa"
                self.engine.store.update(found)

    def _ask(self, function: str, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Told | None:
        wiring.use(self.parts)
        sent = {"Content-Type": "application/json", **headers}
        try:
            answer: TestResponse = _client(function).open(path, method=method, data=body, headers=sent)
        except Killed:
            return None
        told = Told(
            at=self.clock.now(),
            request=f"{method} {function}{path}",
            status=answer.status_code,
            body=answer.get_json(silent=True, force=True),
            headers=dict(answer.headers),
        )
        self.told.append(told)
        if told.status == 500:
            self.violations.append(f"{told.request} ended in an exception that nobody took care of")
        return told

    def run_tasks(self) -> None:
        """Dispatch what is due, as Cloud Tasks would: 2xx ends a task, anything else brings it again."""
        due = [name for name, waiting in self.queue.items() if waiting.at <= self.clock.now()]
        for name in due:
            waiting = self.queue[name]
            parts = urlsplit(waiting.task.url)
            headers = {"X-CloudTasks-QueueName": "charges", "X-CloudTasks-TaskName": name}
            told = self._ask(str(parts.hostname), "POST", parts.path, waiting.task.body, headers)
            if told is not None and 200 <= told.status < 300:
                self.queue.pop(name, None)
                continue
            waiting.tries += 1
            waiting.at = self.clock.now() + timedelta(seconds=min(2**waiting.tries, 300))

    def deliver_webhooks(self) -> None:
        """Deliver what Stripe has to tell; what is refused comes again later."""
        if self.events_lost:
            self.engine.drop_deliveries()
        for delivery in self.engine.pending_deliveries():
            headers = dict(delivery.headers)
            told = self._ask("webhook", "POST", "/", delivery.body, headers)
            accepted = told is not None and 200 <= told.status < 300
            self.engine.delivered(delivery, accepted)
            if accepted:
                self._check_event_is_durable(json.loads(delivery.body))

    def sweep(self) -> None:
        """Let Cloud Scheduler call the reconcile function."""
        self._ask("reconcile", "POST", "/", b"", {})

    def audit(self, since: datetime | None = None) -> dict[str, Any]:
        """Audit up to now, and return the report."""
        body = {"until": self.clock.now().isoformat(), **({"since": since.isoformat()} if since else {})}
        told = self._ask("reconcile", "POST", "/audit", json.dumps(body).encode(), {})
        assert told is not None
        assert told.status == 200, told.body
        report: dict[str, Any] = told.body
        return report

    def audit_patiently(self) -> None:
        """Audit up to now, as often as that takes."""
        since, until = self.clock.now() - timedelta(hours=1), self.clock.now()
        period = json.dumps({"since": since.isoformat(), "until": until.isoformat()}).encode()
        for _ in range(20):
            told = self._ask("reconcile", "POST", "/audit", period, {})
            if told is not None and told.status == 200 and told.body["finished_at"]:
                return
            self.clock.sleep(timedelta(seconds=30))

    def backfill(self) -> dict[str, Any]:
        """Take up the events that Stripe could not deliver, and return what was done."""
        told = self._ask("reconcile", "POST", "/backfill", b"", {})
        assert told is not None
        assert told.status == 200, told.body
        done: dict[str, Any] = told.body
        return done

    def settle(self) -> None:
        """Let time pass until everything is quiet."""
        end = self.clock.now() + QUIET_AFTER
        while self.clock.now() < end:
            self._note_money()
            if self.webhooks_on:
                self.deliver_webhooks()
            self.run_tasks()
            following = self._next_event()
            if following is None:
                return
            self.clock.time = max(self.clock.time, following)
            if any(self._due(charge) for charge in self.charges()):
                self.sweep()
        self.violations.append(f"not quiet after {QUIET_AFTER}: {[c.status for c in self.charges()]}")

    def _next_event(self) -> datetime | None:
        times = [waiting.at for waiting in self.queue.values()]
        times += [datetime.fromtimestamp(at, UTC) for at in self.engine.later_times()]
        if self.webhooks_on:
            times += [datetime.fromtimestamp(d, UTC) for d in self.engine.delivery_times()]
        for charge in self.charges():
            others = policy.waiting_on(charge) in {Party.OPERATOR, Party.BANK}
            moves = policy.needs_us(charge) or others or bool(charge.untold)
            soon = charge.due_at is not None and charge.due_at < self.clock.now() + timedelta(hours=26)
            if charge.due_at is not None and (self._due(charge) or (moves and soon)):
                times.append(max(charge.due_at, self.clock.now()) + SWEEP_EVERY)
        blocked = [c for c in self.charges() if c.status is Status.BLOCKED]
        if blocked and len(times) == len(blocked) and all(not policy._resumes(c) for c in blocked):
            return None
        return min(times, default=None)

    def _due(self, charge: Charge) -> bool:
        return charge.due_at is not None and charge.due_at <= self.clock.now()

    # --- What came of it ----------------------------------------------------------------------------------------------

    def charges(self) -> list[Charge]:
        """Read the ledger, past all faults."""
        names = self.store.all_names(CHARGE)
        return [charge_of(self.store._entities[CHARGE, name].properties) for name in names]

    def charge(self, key: str = KEY) -> Charge:
        """Read one charge."""
        return charge_of(self.store._entities[CHARGE, charge_id(None, key)].properties)

    def money_moved(self, key: str = KEY) -> list[int]:
        """Ask Stripe's tally which amounts this charge has taken."""
        return self.money_of(self.charge(key))

    def money_of(self, charge: Charge) -> list[int]:
        """Ask Stripe's tally which amounts were taken for a charge, by whichever PaymentIntent, and not given back."""
        return [
            one.amount - one.refunded
            for one in self.engine.tally().moved
            if one.metadata.get("pio_charge") == charge.id
            and "foreign" not in one.metadata
            and one.refunded < one.amount
        ]

    def _check_event_is_durable(self, event: Mapping[str, Any]) -> None:
        intent = event["data"]["object"]
        if event["type"] != "payment_intent.succeeded":
            return
        for charge in self.charges():
            if charge.payment_intent == intent["id"] and charge.status is not Status.SUCCEEDED:
                self.violations.append("an event was answered 2xx and what it proves is not recorded")

    def check_send(self, path: str, key: str | None, form: str) -> None:
        """Check, as a request of ours arrives at Stripe, that it was recorded first, and for whom."""
        if key is None or not key.startswith("pio-") or "-orphan-" in key:
            return
        recorded = [charge for charge in self.charges() if key.startswith(f"pio-{charge.id}-")]
        request = recorded[0].request(key) if recorded else None
        if request is None or request.sends < 1:
            if not recorded or not recorded[0].final:
                self.violations.append(f"{key.split('-', 2)[2]} was sent before it was recorded")
            return
        charge = recorded[0]
        if request.operation == "create" and parse_qs(form)["customer"] != [charge.customer]:
            self.violations.append("a create was sent for a customer of whom the ledger does not know")
        if request.operation == "confirm" and f"/{charge.payment_intent}/" not in path:
            self.violations.append("a PaymentIntent was confirmed that is not the recorded one")
        if request.operation == "cancel" and charge.closing is None:
            self.violations.append("a cancel was sent before the closing was recorded")

    def check(self) -> list[str]:
        """Return every promise that is broken."""
        found = list(self.violations)
        for charge in self.charges():
            moved = self.money_of(charge)
            if len(moved) > 1:
                found.append(f"charged {len(moved)} times")
            if charge.done != (charge.due_at is None):
                found.append(f"{charge.status} with due_at {charge.due_at}")
            elsewhere = charge.closing is not None and charge.closing.kind == "paid_elsewhere"
            is_paid = charge.status is Status.SUCCEEDED or elsewhere
            if is_paid != (len(moved) == 1) and not self._is_for_a_person(charge):
                found.append(f"the ledger says {charge.status}, Stripe moved {moved}")
            if moved and moved != [charge.terms.amount] and charge.terms.amount:
                found.append(f"moved {moved} instead of {charge.terms.amount}")
            if policy.waiting_on(charge) is Party.SYSTEM:
                found.append(f"left {charge.status}")
            found += self._lies(charge)
            if any(not a.settled and a.standing is not Standing.BURNT for a in charge.attempts[:-1]):
                found.append("a new key while the last one was open")
        found += self._check_stripe()
        return found

    def _is_for_a_person(self, charge: Charge) -> bool:
        """Whether a canceled charge was paid past the ledger, and a person has been shown by what."""
        if not self.scripted:
            return False
        shown = {one.payment_intent for one in policy.unsettled(charge) if one.kind in policy.ANSWERS_FOR}
        return charge.status is Status.CANCELED and bool(shown - {charge.payment_intent})

    def _lies(self, charge: Charge) -> list[str]:
        """Return every "no" that was told although money had moved, or moved later without anybody's doing."""
        paid_at = self.paid_at.get(charge.id)
        if paid_at is None or self._is_for_a_person(charge):
            return []
        lies = []
        for told in self.told:
            if told.status not in {402, 410} or (told.body or {}).get("id") != charge.id:
                continue
            if told.status == 410 and self.paid_past_the_ledger:
                continue
            could_know = any(paid_at <= asked <= told.at for asked in self.stripe_asked)
            moved_by_itself = told.at < paid_at and not any(told.at <= act <= paid_at for act in self.acted_at)
            if could_know or moved_by_itself:
                lies.append(f"told {told.status} at {told.at:%H:%M:%S}, paid at {paid_at:%H:%M:%S}")
        return lies

    def _note_money(self) -> None:
        self.engine.run_due()
        moved = len(self.engine.tally().moved)
        if moved == self._moved:
            return
        self._moved = moved
        for charge in self.charges():
            if charge.id not in self.paid_at and self.money_of(charge):
                self.paid_at[charge.id] = self.clock.now()

    def _check_stripe(self) -> list[str]:
        """Check that Stripe knows nothing of ours that the ledger does not."""
        found = []
        charges = {charge.id: charge for charge in self.charges()}
        # A PaymentIntent that came to be after the ledger had looked is found by nobody here, and moves no money.
        late = any(call.startswith("create:") and call.endswith("later") for call in self.trace)
        for intent in self.engine.payment_intents():
            name = intent["metadata"].get("pio_charge")
            if name is None or intent["metadata"].get("foreign"):
                continue
            charge = charges.get(name)
            if charge is None:
                found.append("a PaymentIntent of ours has no charge")
            elif (
                intent["id"] != charge.payment_intent and intent["status"] != "canceled" and not (charge.final or late)
            ):
                found.append("an orphan is left open")
        if self.restored:
            return found  # The ledger has forgotten keys.
        for key in self.engine.keys():  # noqa: SIM118 - it is no dict.
            owner = next((c for c in charges.values() if key.startswith(f"pio-{c.id}-")), None)
            known = owner is not None and (owner.request(key) is not None or "-orphan-" in key or "-refund-" in key)
            if key.startswith("pio-") and not known and "-create-" not in key and "-cancel-" not in key:
                found.append(f"the ledger does not know the key {key}")
        return found


def _at_once(work: Callable[[], object]) -> None:
    work()


class _CrossedStore(MemoryStore):
    """The world's store, behind its boundary."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._entities = world.store._entities

    def _put(self, kind: str, name: str, properties: Mapping[str, Any]) -> int:
        odd = kind == CHARGE and (properties["status"] in FINAL) == ("due" in properties)
        if odd and charge_of(properties).done == ("due" in properties):
            self._world.violations.append(
                f"recorded {properties['status']}, {'with' if 'due' in properties else 'without'} due_at"
            )
        return self._world.store._put(kind, name, properties)

    def _call(self, call: StoreCall, apply: Callable[[], T]) -> T:
        if call.operation in {"attention", "due", "ended", "paid"} and int(call.name) != shard_of(charge_id(None, KEY)):
            return apply()  # An empty shard: one fault there would be like another.
        return self._world.cross(
            "store", f"{call.operation} {call.kind}", apply, lambda: StoreUnavailable("the answer got lost")
        )


class _InProcessStripe(stripe.HTTPClient):
    """stripe-python's transport, calling the double's engine without a socket."""

    name = "in-process"

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None, *, _usage: Any = None
    ) -> tuple[str, int, Mapping[str, str]]:
        """Hand the request to the engine."""
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        sent = dict(headers or {})
        body = post_data.encode() if isinstance(post_data, str) else post_data or b""
        operation = _operation(method, parts.path)

        def call() -> tuple[str, int, Mapping[str, str]]:
            if method.upper() == "POST":
                self._world.check_send(parts.path, sent.get("Idempotency-Key"), body.decode())
            if operation in {"confirm", "fetch"}:
                self._world.stripe_asked.append(self._world.clock.now())
            try:
                answer = self._world.engine.handle(method.upper(), path, sent, body)
            except ConnectionDropped as error:
                raise stripe.APIConnectionError("dropped") from error  # type: ignore[no-untyped-call]
            finally:
                self._world._note_money()
            return answer.body.decode(), answer.status, answer.headers

        return self._world.cross("stripe", operation, call, _no_answer)

    def close(self) -> None:
        """Nothing is open."""


def _no_answer() -> Exception:
    return stripe.APIConnectionError("no answer")  # type: ignore[no-untyped-call]


def _operation(method: str, path: str) -> str:
    last = path.rstrip("/").rsplit("/", 1)[-1]
    if not path.startswith(("/v1/payment_intents", "/v1/charges")):
        return "checkout"  # Or who the seller is: nothing that a charge is made of.
    if method.upper() == "GET":
        return "list" if last in {"payment_intents", "charges"} else "fetch"
    return last if last in {"confirm", "cancel"} else "create"


class _MemoryQueue:
    """Cloud Tasks as a dict: a name is taken for ever."""

    def __init__(self, world: World) -> None:
        self._world = world

    def create(self, task: Task) -> bool:
        """Add a task; as the adapter, never raise for a queue that does not answer."""

        def add() -> bool:
            if task.name not in self._world.names:
                self._world.names.add(task.name)
                self._world.queue[task.name] = Waiting(task=task, at=task.at or self._world.clock.now())
            return True

        try:
            return self._world.cross("tasks", "create_task", add, lambda: ConnectionError("the queue did not answer"))
        except ConnectionError:
            return False

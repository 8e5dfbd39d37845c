"""A deployment and its outages, in virtual time: the real functions, the emulator's queue, the double's Stripe.

What is simulated is what lies between them: how long calls take, callers who ask and ask again, Cloud Scheduler's
minute, several instances of a function, and Stripe's limit of requests a second. No events arrive: what closes a charge
is the queue and the sweep alone.
"""

import contextlib
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import functions_framework
import stripe
from google.api_core.exceptions import AlreadyExists, ServiceUnavailable
from google.cloud import tasks_v2
from werkzeug.test import Client

from infra.local.stripe.engine import ConnectionDropped, Fault, Rule
from infra.local.stripe.engine import Engine as StripeEngine
from infra.local.tasks.engine import Delivery, Outcome
from infra.local.tasks.engine import Engine as TasksEngine
from infra.local.tasks.messages import Queue
from infra.local.tasks.rules import Refused, short_id
from infra.local.tasks.rules import Settings as TasksSettings
from shared import wiring
from shared.charge import FINAL
from shared.checkout import Checkout
from shared.deliver import Charger
from shared.gate import Gate
from shared.gateway import Gateway
from shared.ledger import Ledger
from shared.policy import Limits
from shared.reconcile import Reconciler
from shared.settings import Settings
from shared.store import CHARGE, StoreUnavailable
from shared.tasks import CloudTasks
from tests.memory_store import MemoryStore, StoreCall
from tests.outages.timeline import Timeline

START: Final = datetime(2026, 11, 27, 9, 0, tzinfo=UTC)  # A Friday after Thanksgiving.
API_KEY: Final = "sk_test_in_virtual_time"
QUEUE: Final = "projects/virtual/locations/time/queues/charges"
FUNCTIONS: Final = Path(__file__).parents[2] / "functions"

LEDGER_TAKES: Final = timedelta(milliseconds=10)
STRIPE_TAKES: Final = timedelta(milliseconds=600)
REFUSAL_TAKES: Final = timedelta(milliseconds=50)  # A connection refused, a 503 from the edge.
WARMING_UP: Final = timedelta(minutes=1)  # Before the outage each instance has served its first request.
PROBE: Final = "-probe-"  # In the names of tasks that end at once, but where a sweep has died.
TICK: Final = timedelta(minutes=1)  # Cloud Scheduler's.
CALLER_WAITS: Final = timedelta(seconds=10)  # Before it repeats its request; then twice as long, each time,
CALLER_WAITS_AT_MOST: Final = timedelta(minutes=5)  # up to this.


class Down(StrEnum):
    """What may be down."""

    STRIPE = "stripe"
    LEDGER = "ledger"
    TASKS = "tasks"


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    """A queue's, as Terraform names them."""

    max_dispatches_per_second: float = 10
    max_concurrent_dispatches: int = 50
    min_backoff: timedelta = timedelta(seconds=1)
    max_backoff: timedelta = timedelta(minutes=5)
    max_doublings: int = 16

    def message(self) -> Any:
        """Return the queue as Cloud Tasks has it."""
        queue = Queue(name=QUEUE)
        queue.rate_limits.max_dispatches_per_second = self.max_dispatches_per_second
        queue.rate_limits.max_concurrent_dispatches = self.max_concurrent_dispatches
        queue.retry_config.max_attempts = -1
        queue.retry_config.min_backoff.FromTimedelta(self.min_backoff)
        queue.retry_config.max_backoff.FromTimedelta(self.max_backoff)
        queue.retry_config.max_doublings = self.max_doublings
        return queue


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens: so many charges are asked for, evenly, from the start of an outage on."""

    charges: int
    down: Mapping[Down, timedelta]  # What is down, and for how long.
    asked_within: timedelta = timedelta(minutes=10)
    stripe_fails_by: Fault = Fault.DROP_BEFORE
    stripe_hangs: bool = False  # Each call waits for its time limit, instead of failing at once.
    respond_async: bool = False  # Callers leave the charge to the queue.
    queue: QueueSettings = field(default_factory=QueueSettings)
    queue_throttles: bool = (
        True  # On 429 and 503, as Google says and as the emulator does; how far, Google does not say.
    )
    instances: int = 4
    operations_a_second: int = 25  # Stripe's limit for each endpoint.
    watched: timedelta = timedelta(hours=12)  # How long after the outage it is given up.


class Deployment:
    """Everything, connected."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.timeline = Timeline(START - WARMING_UP)
        self.limits = Limits()
        self.recovers_at = START + max(scenario.down.values())
        self.arrivals: list[tuple[datetime, str]] = []  # At Stripe, on behalf of charges: when, and what for.
        self.sends: Counter[str] = Counter()  # By idempotency key; those of callers and tasks,
        self.sends_by_sweep: Counter[str] = Counter()  # and those of the sweep.
        self.sweeping = threading.local()  # Whether this process is one.
        self.limited = 0
        self.dispatches: list[datetime] = []
        self.tasks_by_charge: Counter[str] = Counter()
        self.most_tasks = 0  # Without those of probes.
        self.probe_tasks = 0
        self.most_probe_tasks = 0
        self.swept = 0
        self.closed: dict[str, datetime] = {}
        self._chance = random.Random(1)  # noqa: S311 - so that runs repeat.
        self._buckets: dict[str, tuple[float, datetime]] = {}
        self._next_look: datetime | None = None
        self._over = False
        self._clients = {
            name: Client(
                functions_framework.create_app(name, str(FUNCTIONS / f"{name}.py")),  # type: ignore[no-untyped-call]
                use_cookies=False,
            )
            for name in ("charge", "reconcile")
        }
        self._connect()

    def _connect(self) -> None:
        self.stripe = StripeEngine(clock=lambda: self.timeline.now().timestamp(), seed=1)
        if Down.STRIPE in self.scenario.down:
            fails = Rule(fault=self.scenario.stripe_fails_by, times=None, method="*")
            self.timeline.at(START, lambda: self.stripe.faults.rules.append(fails))
            self.timeline.at(START + self.scenario.down[Down.STRIPE], self.stripe.faults.clear)
        settings = TasksSettings() if self.scenario.queue_throttles else TasksSettings(first_hold=timedelta(0))
        self.tasks = TasksEngine(":memory:", now=self.timeline.now, settings=settings)
        self.tasks.create_queue_if_absent(self.scenario.queue.message())
        self.store = _Store(self)
        self._instances = [self._instance(number) for number in range(self.scenario.instances)]

    def is_down(self, what: Down) -> bool:
        """Whether this is down just now."""
        return START <= self.timeline.now() < START + self.scenario.down.get(what, timedelta())

    def _instance(self, number: int) -> wiring.Parts:
        settings = Settings.from_environment(
            {
                "GOOGLE_CLOUD_PROJECT": "virtual",
                "STRIPE_API_KEY": API_KEY,
                "TASKS_LOCATION": "time",
                "CHARGE_URL": "http://charge",
            },
            function="charge",
        )
        ledger = Ledger(self.store, self.timeline, chance=self._chance)
        tasks = CloudTasks(
            project=settings.project,
            location=settings.tasks_location,
            queue=settings.charge_queue,
            invoker=None,
            emulator_host=None,
            dispatch_deadline=self.limits.dispatch_deadline,
        )
        tasks._client = _TasksClient(self)  # type: ignore[assignment]
        seconds = self.limits.stripe_timeout.total_seconds()
        gateway = Gateway(API_KEY, None, timeout_seconds=seconds, http_client=_StripeClient(self))
        owners = random.Random(number)  # noqa: S311 - so that runs repeat.
        gate = Gate(ledger=ledger, stripe=gateway, clock=self.timeline, database="virtual/", generation=1)
        charger = Charger(
            ledger=ledger,
            gate=gate,
            gateway=gateway,
            tasks=tasks,
            clock=self.timeline,
            limits=self.limits,
            charge_url=settings.charge_url,
            generation=1,
            beside=self.timeline.spawn,
            new_owner=lambda: f"{owners.getrandbits(64):016x}",
        )
        checkout = Checkout(gateway, None)
        return wiring.Parts(
            settings=settings,
            clock=self.timeline,
            ledger=ledger,
            livemode=gateway.livemode,
            gate=gate,
            gateway=gateway,
            charger=charger,
            limits=self.limits,
            reconciler=Reconciler(
                charger=charger, ledger=ledger, gate=gate, gateway=gateway, checkout=checkout, clock=self.timeline
            ),
            checkout=checkout,
        )

    # --- What happens -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Let the outage pass, and all that follows, until every task has gone that was ever made."""
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):  # The functions log a lot.
            self._customer = self._new_customer()
            gap = self.scenario.asked_within / self.scenario.charges
            for number in range(self.scenario.charges):
                self.timeline.at(START + number * gap, lambda n=number: self.timeline.spawn(lambda: self._ask(n)))  # type: ignore[misc]
            self.timeline.spawn(self._warm_up)
            self.timeline.at(START, self._tick)
            self.timeline.run(self.recovers_at)
            self.timeline.run(self.recovers_at + self.scenario.watched, unless=lambda: self._over)
            self.ended_at = self.timeline.now()

    def _warm_up(self) -> None:
        """Serve each instance's first request, one after another: a gate that opens holds a real lock."""
        for instance in self._instances:
            instance.gate.check()

    def _new_customer(self) -> str:
        held, self.stripe.faults.rules = self.stripe.faults.rules, []
        answer = self.stripe.handle("POST", "/v1/customers", {"Authorization": f"Bearer {API_KEY}"})
        self.stripe.faults.rules = held
        return str(json.loads(answer.body)["id"])

    def _call(self, function: str, path: str, body: bytes, headers: Mapping[str, str]) -> Any:
        """Call a function, on any of its instances: it takes its parts before it first waits."""
        wiring.use(self._chance.choice(self._instances))
        return self._clients[function].post(path, data=body, headers={"Content-Type": "application/json", **headers})

    def _ask(self, number: int) -> None:
        """Be a caller: ask until it is certain that the charge is recorded."""
        body = {"amount": 1999, "currency": "usd", "customer": self._customer, "payment_method": "pm_card_visa"}
        headers = {"Idempotency-Key": f"order-{number}"}
        if self.scenario.respond_async:
            headers["Prefer"] = "respond-async"
        wait = CALLER_WAITS
        while self._call("charge", "/", json.dumps(body).encode(), headers).status_code in {409, 500, 503}:
            self.timeline.sleep(wait * (0.5 + self._chance.random() / 2))
            wait = min(2 * wait, CALLER_WAITS_AT_MOST)

    def _tick(self) -> None:
        """Be Cloud Scheduler."""

        def sweep() -> None:
            self.sweeping.on = True
            answer = self._call("reconcile", "/", b"", {})
            self.sweeping.on = False
            self.swept += (answer.get_json() or {}).get("swept", 0)

        self.timeline.spawn(sweep)
        counts = self.tasks.counts()[QUEUE]
        self.most_tasks = max(self.most_tasks, counts["waiting"] - self.probe_tasks)
        self.most_probe_tasks = max(self.most_probe_tasks, self.probe_tasks)
        self._over = len(self.closed) == self.scenario.charges and not counts["waiting"] + counts["running"]
        self.timeline.at(self.timeline.now() + TICK, self._tick)

    # --- Cloud Tasks --------------------------------------------------------------------------------------------------

    def look_at_queue(self, at: datetime) -> None:
        """See at this time what is to be dispatched, unless that is seen to before."""
        at = max(at, self.timeline.now())
        if self._next_look is None or at < self._next_look:
            self._next_look = at
            self.timeline.at(at, lambda: self._dispatch(at))

    def _dispatch(self, at: datetime) -> None:
        if self._next_look != at:
            return
        self._next_look = None
        if self.is_down(Down.TASKS):
            self.look_at_queue(START + self.scenario.down[Down.TASKS])
            return
        due = self.tasks.start_due()
        for delivery in due.deliveries:
            self.dispatches.append(self.timeline.now())
            self.timeline.spawn(lambda d=delivery: self._deliver(d))  # type: ignore[misc]
        if due.next_at is not None:
            self.look_at_queue(due.next_at)

    def _deliver(self, delivery: Delivery) -> None:
        task = delivery.task
        headers = {
            "X-CloudTasks-QueueName": short_id(delivery.queue_name),
            "X-CloudTasks-TaskName": short_id(task.name),
            "X-CloudTasks-TaskETA": f"{task.schedule_time.ToMicroseconds() / 1e6:.6f}",
        }
        answer = self._call("charge", urlsplit(task.http_request.url).path, task.http_request.body, headers)
        self.tasks.finish(delivery, Outcome(status=answer.status_code, retry_after=answer.headers.get("Retry-After")))
        self.probe_tasks -= PROBE in task.name and answer.status_code // 100 == 2
        self.look_at_queue(self.timeline.now())

    # --- Stripe's limiter ---------------------------------------------------------------------------------------------

    def take_token(self, endpoint: str) -> bool:
        """Whether Stripe's limiter lets one more request through."""
        now, rate = self.timeline.now(), self.scenario.operations_a_second
        tokens, then = self._buckets.get(endpoint, (float(rate), now))
        tokens = min(float(rate), tokens + (now - then).total_seconds() * rate)
        passes = tokens >= 1
        self._buckets[endpoint] = (tokens - passes, now)
        return passes


class _Store(MemoryStore):
    """The ledger's store: it takes its time, may be down, and tells when a charge is closed."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(before=self._arrive)
        self._deployment = deployment
        self._due: dict[str, str] = {}

    def _arrive(self, _call: StoreCall) -> None:
        self._deployment.timeline.sleep(LEDGER_TAKES)
        if self._deployment.is_down(Down.LEDGER):
            raise StoreUnavailable("down")

    def _put(self, kind: str, name: str, properties: Mapping[str, Any]) -> int:
        if kind == CHARGE:
            if "due" in properties:
                self._due[name] = properties["due"]
            else:
                self._due.pop(name, None)
            if properties["status"] in FINAL:
                self._deployment.closed.setdefault(name, self._deployment.timeline.now())
        return super()._put(kind, name, properties)

    def _charges_by(self, property_name: str) -> list[tuple[str, str]]:
        """As the parent's, for `due` from an index: thousands of charges are asked for every minute."""
        return list(self._due.items()) if property_name == "due" else super()._charges_by(property_name)


class _TasksClient:
    """Cloud Tasks' client, for as much as the adapter asks of it."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def create_task(self, *, parent: str, task: tasks_v2.Task, retry: None, timeout: float) -> None:
        """Make a task; a queue that is down lets one wait for all of the time limit."""
        del retry
        deployment = self._deployment
        if deployment.is_down(Down.TASKS):
            deployment.timeline.sleep(timedelta(seconds=timeout))
            raise ServiceUnavailable("down")  # type: ignore[no-untyped-call]
        deployment.timeline.sleep(LEDGER_TAKES)
        try:
            deployment.tasks.create_task(parent, tasks_v2.Task.pb(task))
        except Refused as refused:
            raise AlreadyExists(refused.message) from refused  # type: ignore[no-untyped-call]
        is_probe = PROBE in task.name
        deployment.probe_tasks += is_probe
        deployment.tasks_by_charge[short_id(task.name).partition("-")[0]] += not is_probe
        deployment.look_at_queue(deployment.timeline.now())


class _StripeClient(stripe.HTTPClient):
    """stripe-python's transport: it takes its time, and Stripe's limiter lets only so much through."""

    name = "virtual"

    def __init__(self, deployment: Deployment) -> None:
        super().__init__()
        self._deployment = deployment

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None, *, _usage: Any = None
    ) -> tuple[str, int, Mapping[str, str]]:
        """Hand the request to the engine."""
        deployment, sent = self._deployment, dict(headers or {})
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        endpoint = _endpoint(method, parts.path)
        if endpoint != "other":
            deployment.arrivals.append((deployment.timeline.now(), endpoint))
        by_sweep = getattr(deployment.sweeping, "on", False)
        sends = deployment.sends_by_sweep if by_sweep else deployment.sends
        sends[sent.get("Idempotency-Key", "")] += 1
        body = post_data.encode() if isinstance(post_data, str) else post_data or b""
        down = deployment.is_down(Down.STRIPE)
        with self._limiter(endpoint, down=down):
            try:
                answer = deployment.stripe.handle(method.upper(), path, sent, body)
            except ConnectionDropped as error:
                hangs = deployment.scenario.stripe_hangs
                deployment.timeline.sleep(deployment.limits.stripe_timeout if hangs else REFUSAL_TAKES)
                raise stripe.APIConnectionError("dropped") from error  # type: ignore[no-untyped-call]
        deployment.timeline.sleep(REFUSAL_TAKES if answer.status in {429, 503} else STRIPE_TAKES)
        return answer.body.decode(), answer.status, answer.headers

    @contextlib.contextmanager
    def _limiter(self, endpoint: str, *, down: bool) -> Iterator[None]:
        deployment = self._deployment
        if down or deployment.take_token(endpoint):
            yield
            return
        deployment.limited += 1
        before = list(deployment.stripe.faults.rules)
        deployment.stripe.faults.add(Rule(fault=Fault.RATE_LIMITED, reason="endpoint-rate"))
        yield
        deployment.stripe.faults.rules = before

    def close(self) -> None:
        """Nothing is open."""


def _endpoint(method: str, path: str) -> str:
    """Name what is asked for on behalf of a charge; what backfill and audit ask each minute is "other"."""
    last = path.rstrip("/").rsplit("/", 1)[-1]
    if method.upper() == "GET":
        return "fetch" if last.startswith("pi_") else "list" if last in {"payment_intents", "charges"} else "other"
    return last if last in {"confirm", "cancel"} else "create"

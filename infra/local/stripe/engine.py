"""The double without a socket: every request goes through `Engine.handle`.

    engine = Engine(clock=lambda: now, seed=1)
    answer = engine.handle("POST", "/v1/customers", {"Authorization": "Bearer sk_test_x"}, b"name=Jenny")

A request passes, in this order: the edge, the API key, the limiter, the check of its parameters, its idempotency key,
the endpoint, and the edge again. Faults sit in between (`faults.Layer`). Only what the endpoint answers is saved under
the key.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

from infra.local.stripe import errors
from infra.local.stripe.api_keys import ApiKeys, api_key_of
from infra.local.stripe.call import Call, Lag, Settings
from infra.local.stripe.errors import Refusal
from infra.local.stripe.faults import FAULTS, Fault, FaultPlan, Layer, Rule, Target
from infra.local.stripe.keys import KEY_LENGTH, Claim, KeyTable, Saved
from infra.local.stripe.resources import checkout, payment_intents, setup_intents
from infra.local.stripe.routes import Route, endpoint_of, find_route
from infra.local.stripe.schema import read_parameters
from infra.local.stripe.store import Later, Object, Store, World, shown
from infra.local.stripe.tally import DEFAULT_METADATA_KEY, Tally, moved_by
from infra.local.stripe.webhooks import Delivery, Disturbance, Endpoint, Outbox
from infra.local.stripe.wire import API_VERSION, ConnectionDropped, Headers, Request, Response

__all__ = ["ConnectionDropped", "Delivery", "Endpoint", "Engine", "Fault", "Response", "Rule", "Settings"]

LOGGED_AT_MOST: Final = 10_000
EDGE_PAGE: Final = "<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>"


@dataclass(frozen=True, slots=True)
class Logged:
    """One request that came, and how it went. `status` is None where the connection was dropped."""

    at: float
    method: str
    path: str
    operation: str | None
    idempotency_key: str | None
    request_id: str
    status: int | None
    replayed: bool


@dataclass
class _Exchange:
    """One request on its way through the layers."""

    engine: "Engine"
    request: Request
    request_id: str
    route: Route | None
    ids: tuple[str, ...]
    claim: Claim | None = None
    replayed: bool = False

    @property
    def idempotency_key(self) -> str | None:
        """The key, where it means anything: GET and DELETE ignore it."""
        return self.request.headers.get("Idempotency-Key") or None if self.request.method == "POST" else None

    @property
    def payment_intent(self) -> str | None:
        """The PaymentIntent that the path names."""
        return self.ids[0] if self.ids and self.ids[0].startswith("pi_") else None

    @property
    def held(self) -> str | None:
        """The PaymentIntent that this request changes, which nobody else may change meanwhile."""
        return self.payment_intent if self.request.method == "POST" else None

    @cached_property
    def target(self) -> Target:
        """What fault rules see of it: what it says, or what the PaymentIntent it names says."""
        form = self.request.form
        intent = self.engine.find(self.payment_intent) if self.payment_intent else None
        about = intent or {}
        return Target(
            self.request.method,
            self.request.path,
            self.route.operation if self.route else None,
            self.idempotency_key,
            form.get("customer", about.get("customer")),
            form["metadata"] if isinstance(form.get("metadata"), dict) else about.get("metadata", {}),
        )


class Engine:
    """One Stripe: all accounts, both modes.

    database: a file, or `:memory:`.
    clock: seconds since 1970. Everything that takes time takes it by this clock.
    sleep: how a slow fault waits.
    seed: makes ids and chance repeat; without it they are random.
    api_keys: those that work; None: any of sane form (`sk_test_…`, `sk_live_…`, `rk_…`).
    webhook_endpoints: where events go.
    webhook_compression: divides the time between redeliveries.
    settings: how long things take, and other particulars.
    keys_scoped_by_api_key: Stripe does not say whether a rolled API key still sees the old one's idempotency keys.
        By default here it does.
    """

    def __init__(  # noqa: PLR0913 - each with a default, each independent of the others.
        self,
        database: str = ":memory:",
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        seed: int | str | None = None,
        api_keys: Iterable[str] | None = None,
        webhook_endpoints: Iterable[Endpoint] = (),
        webhook_compression: float = 1.0,
        settings: Settings | None = None,
        keys_scoped_by_api_key: bool = False,
        platform: str = "acct_platform",
    ) -> None:
        self.store = Store(database, seed)
        self.settings = settings or Settings()
        self.platform = platform
        self.faults = FaultPlan(seed)
        self.lag = Lag()
        self.api_keys = ApiKeys(self.store, api_keys)
        self.log: deque[Logged] = deque(maxlen=LOGGED_AT_MOST)
        self._clock = clock
        self._clock_offset = float(self.store.setting("clock_offset") or 0.0)
        self._sleep = sleep
        self._lock = threading.RLock()
        self._keys = KeyTable(self.store.db)
        self._keys_scoped_by_api_key = keys_scoped_by_api_key
        self._held: set[str] = set()
        self._outbox = Outbox(self.store, platform, seed, webhook_compression)
        for endpoint in webhook_endpoints:
            self._outbox.add(endpoint)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self.store.close()

    # --- One request --------------------------------------------------------------------------------------------------

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Response:
        """Answer one request; `path` may carry a query. Raises ConnectionDropped where a fault says so."""
        request = Request.read(method, path, headers, body)
        route, ids = find_route(request.method, request.path) or (None, ())
        with self._lock:
            self.run_due()
            exchange = _Exchange(self, request, self.store.new_id("req"), route, ids)
        status = None
        try:
            response = self._answer(exchange)
            status = response.status
            return response
        finally:
            self.log.append(
                Logged(
                    self.now(),
                    request.method,
                    request.path,
                    route.operation if route else None,
                    exchange.idempotency_key,
                    exchange.request_id,
                    status,
                    exchange.replayed,
                )
            )

    def _answer(self, exchange: _Exchange) -> Response:
        rule = self._fault(Layer.ARRIVING, exchange)
        if rule is not None:
            return self._edge(rule.fault)
        try:
            with self._lock:
                call = self._admit(exchange)
                saved = self._claim(exchange, call)
            exchange.replayed = saved is not None
            if saved is None:
                saved = self._run(exchange, call)
        except Refusal as refusal:
            return self._refused(exchange, refusal)
        return self._leave(exchange, saved)

    def _admit(self, exchange: _Exchange) -> Call:
        """Check everything that is checked before the endpoint runs. Raises Refusal, which nothing remembers."""
        request = exchange.request
        api_key = api_key_of(request.headers.get("Authorization"))
        rule = self._fault(Layer.AUTHENTICATION, exchange)
        if rule is not None and rule.fault is Fault.UNAUTHORIZED:
            raise errors.invalid_api_key(api_key)
        self.api_keys.check(api_key)
        operation = exchange.route.operation if exchange.route else request.path
        if rule is not None:
            raise errors.no_permission(operation)
        self.api_keys.check_permission(api_key, operation)
        limited = self._fault(Layer.LIMITER, exchange)
        if limited is not None:
            raise errors.rate_limited(limited.reason)
        if exchange.route is None:
            raise Refusal(404, f"Unrecognized request URL ({request.method}: {request.path}).")
        version = request.headers.get("Stripe-Version", "")
        params = read_parameters(exchange.route.parameters, request.form, older_version=version != API_VERSION)
        world = World(request.headers.get("Stripe-Account") or self.platform, "_live_" in api_key[:8])
        self._check_account(world)
        if exchange.idempotency_key is not None:
            exchange.claim = self._claim_of(exchange, world, api_key)
        return self._call(
            world,
            request_id=exchange.request_id,
            idempotency_key=exchange.idempotency_key,
            api_version=version or API_VERSION,
            params=params,
            ids=exchange.ids,
        )

    def _check_account(self, world: World) -> None:
        if not world.account.startswith("acct_") or self.store.setting(f"disconnected {world.account}"):
            message = (
                f"The provided key does not have access to account '{world.account}' (or that account does not exist). "
                "Application access may have been revoked."
            )
            raise Refusal(403, message, code="account_invalid", saved=False)

    def _claim_of(self, exchange: _Exchange, world: World, api_key: str) -> Claim:
        key = exchange.idempotency_key or ""
        if len(key) > KEY_LENGTH:
            raise Refusal(400, f"An idempotency key can have at most {KEY_LENGTH} characters; this has {len(key)}.")
        scope = f"{world.name} {api_key}" if self._keys_scoped_by_api_key else world.name
        return Claim.of(scope, key, f"{exchange.request.method} {exchange.request.path}", exchange.request.form)

    def _claim(self, exchange: _Exchange, call: Call) -> Saved | None:
        """Take the key and the object, or return what was answered before."""
        if exchange.claim is not None:
            if self._fault(Layer.KEY, exchange) is not None:
                raise errors.key_in_use(exchange.claim.key)
            saved = self._keys.claim(exchange.claim, call.now)
            if saved is not None:
                return saved
        if exchange.held in self._held:
            if exchange.claim is not None:
                self._keys.release(exchange.claim)
            raise errors.lock_timeout()
        if exchange.held is not None:
            self._held.add(exchange.held)
        return None

    def _run(self, exchange: _Exchange, call: Call) -> Saved:
        """Run the endpoint, holding the key and the object until it is over; nobody else waits meanwhile."""
        try:
            self._wait(Layer.WAITING, exchange)
            with self._lock:
                call.now = self.now()
                saved = self._execute(exchange, call)
            self._wait(Layer.LINGERING, exchange)
            return saved
        finally:
            with self._lock:
                if exchange.claim is not None:
                    self._keys.release(exchange.claim)
                if exchange.held is not None:
                    self._held.discard(exchange.held)

    def _wait(self, layer: Layer, exchange: _Exchange) -> None:
        rule = self._fault(layer, exchange)
        if rule is not None:
            self._sleep(rule.seconds)

    def _execute(self, exchange: _Exchange, call: Call) -> Saved:
        """Do it, and save the answer in the same transaction."""
        rule = self._fault(Layer.EXECUTION, exchange)
        if rule is not None and rule.fault is Fault.LOCK_TIMEOUT:
            raise errors.lock_timeout()
        with self.store.transaction():
            status, headers, body = self._act(exchange, call, rule)
            encoded = json.dumps(body).encode()
            saved = Saved(status, headers, encoded, exchange.request_id)
            if exchange.claim is not None:
                self._keys.save(exchange.claim, saved, call.now)
        return saved

    def _act(self, exchange: _Exchange, call: Call, rule: Rule | None) -> tuple[int, dict[str, str], Object]:
        assert exchange.route is not None, "an unknown path was refused"
        failure = None
        if rule is not None:
            failure = errors.dependency_failed() if "424" in rule.fault else errors.server_error()
        acts = "yes" if rule is None else FAULTS[rule.fault].acts
        answer: tuple[int, dict[str, str], Object] = (200, {}, {})
        if acts == "yes":
            answer = self._endpoint(exchange.route, call)
        elif acts == "later":
            assert rule is not None, "only a fault acts later"
            detail = {"operation": exchange.route.operation, "params": call.params, "ids": call.ids}
            self.store.add_later(call.now + rule.seconds, "roll_forward", call.world, detail)
        return answer if failure is None else (failure.status, failure.headers, failure.body(call.request_id))

    def _endpoint(self, route: Route, call: Call) -> tuple[int, dict[str, str], Object]:
        try:
            return 200, {}, route.endpoint(call)
        except Refusal as refusal:
            if not refusal.saved:
                raise
            if not refusal.keeps_effects:
                self.store.rollback()
                self.store.begin()
            return refusal.status, refusal.headers, refusal.body(call.request_id)

    # --- Answers ------------------------------------------------------------------------------------------------------

    def _leave(self, exchange: _Exchange, saved: Saved) -> Response:
        rule = self._fault(Layer.LEAVING, exchange)
        fault = None if rule is None else rule.fault
        headers = self._headers(exchange, saved.headers)
        if exchange.claim is not None:
            headers["Original-Request"] = saved.request_id
        if exchange.replayed:
            headers["Idempotent-Replayed"] = "true"
        match fault:
            case None:
                return Response(saved.status, headers, saved.body)
            case Fault.CUT_BODY:
                return Response(saved.status, headers, saved.body[: len(saved.body) // 2], len(saved.body))
            case Fault.NOT_JSON:
                return Response(200, headers, b"<html>This is not JSON.</html>")
            case Fault.NULL_BODY:
                return Response(200, headers, b"null")
            case _:
                return self._edge(fault)

    def _refused(self, exchange: _Exchange, refusal: Refusal) -> Response:
        body = json.dumps(refusal.body(exchange.request_id)).encode()
        return Response(refusal.status, self._headers(exchange, refusal.headers), body)

    def _headers(self, exchange: _Exchange, more: Mapping[str, str]) -> Headers:
        sent = exchange.request.headers
        headers = Headers({"Content-Type": "application/json", "Request-Id": exchange.request_id, **more})
        headers["Stripe-Version"] = sent.get("Stripe-Version") or API_VERSION
        for name in ("Idempotency-Key", "Stripe-Account"):
            if sent.get(name):
                headers[name] = sent[name]
        return headers

    def _edge(self, fault: Fault) -> Response:
        """Answer from in front of the API: nobody there knows of requests or keys."""
        if fault in {Fault.DROP_BEFORE, Fault.DROP_AFTER}:
            raise ConnectionDropped("The connection was closed without an answer.")
        status = int(fault[:3])
        return Response(status, Headers({"Content-Type": "text/html"}), EDGE_PAGE.format(status=status).encode())

    # --- Faults -------------------------------------------------------------------------------------------------------

    def fail_next(self, fault: Fault | str, operation: str | None = None, **criteria: Any) -> Rule:
        """Let the next request fail (or the next of an operation); `criteria` are a Rule's other fields."""
        with self._lock:
            return self.faults.add(Rule(fault=Fault(fault), operation=operation, **criteria))

    def _fault(self, layer: Layer, exchange: _Exchange) -> Rule | None:
        if not self.faults.rules:
            return None
        with self._lock:
            return self.faults.take(layer, exchange.target)

    # --- Time ---------------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return the double's time."""
        return self._clock() + self._clock_offset

    def advance(self, seconds: float) -> None:
        """Move the double's time, and do what falls due by it."""
        with self._lock:
            self._clock_offset += seconds
            self.store.set("clock_offset", str(self._clock_offset))
            self.run_due()

    def run_due(self) -> int:
        """Do what Stripe and banks do by themselves and is due: return how much that was. `handle` does so too."""
        done = 0
        with self._lock:
            while (later := self.store.next_later(self.now())) is not None:
                with self.store.transaction():
                    self.store.forget_later(later)
                    self._do_later(later)
                done += 1
        return done

    def later_times(self) -> list[float]:
        """Return when `run_due` has something to do."""
        with self._lock:
            return [later.due for later in self.store.later()]

    def _do_later(self, later: Later) -> None:
        call = self._call(later.world, now=later.due)
        try:
            if later.kind == "roll_forward":
                call.params, call.ids = later.detail["params"], tuple(later.detail["ids"])
                endpoint_of(later.detail["operation"])(call)
                return
            call.ids = (later.detail["id"],)
            self._end_of_time(call, later.kind)
        except Refusal as refusal:
            if not refusal.keeps_effects:  # It no longer fits: somebody was there first.
                self.store.rollback()
                self.store.begin()
                self.store.forget_later(later)

    def _end_of_time(self, call: Call, kind: str) -> None:
        if kind == "settle":
            payment_intents.settle(call)
        elif kind == "expire_hold":
            intent = call.in_path("payment_intent")
            if intent["status"] == "requires_capture":
                payment_intents.end(call, intent, "automatic")
        elif kind == "expire_session":
            checkout.expire(call)

    # --- Keys ---------------------------------------------------------------------------------------------------------

    def keys(self) -> list[str]:
        """Return the idempotency keys that are known, oldest first."""
        return [record["key"] for record in self.key_records()]

    def key_records(self) -> list[dict[str, Any]]:
        """Return what is known about each idempotency key."""
        with self._lock:
            return self._keys.listed()

    def prune_keys(self, older_than_seconds: float = 0.0) -> int:
        """Forget keys at once, where Stripe would once they are 24 h old; return how many."""
        with self._lock:
            return self._keys.prune(self.now() - older_than_seconds)

    # --- Accounts -----------------------------------------------------------------------------------------------------

    def disconnect(self, account: str) -> None:
        """Let an account's owner end its connection: 403 to whoever asks in its name."""
        with self._lock:
            self.store.set(f"disconnected {account}", "yes")

    def connect(self, account: str) -> None:
        """Connect it again."""
        with self._lock:
            self.store.set(f"disconnected {account}", "")

    # --- Webhooks -----------------------------------------------------------------------------------------------------

    @property
    def disturbance(self) -> Disturbance:
        """How deliveries go wrong: change it in place."""
        return self._outbox.disturbance

    def add_webhook_endpoint(
        self, url: str, secrets: Iterable[str], *, connect: bool = False, enabled_events: Iterable[str] = ("*",)
    ) -> None:
        """Send events there, signed with each of the secrets."""
        with self._lock:
            self._outbox.add(Endpoint(url, tuple(secrets), connect, tuple(enabled_events)))

    def pending_deliveries(self) -> list[Delivery]:
        """Return what is to be delivered now, signed now; say of each how it went by `delivered`."""
        with self._lock:
            self.run_due()
            return self._outbox.due(self.now())

    def delivered(self, delivery: Delivery, accepted: bool) -> None:
        """Say whether the endpoint answered 2xx. If not, the delivery comes again later, for three days."""
        with self._lock:
            self._outbox.delivered(delivery, self.now(), accepted=accepted)

    def deliver(self, send: Callable[[Delivery], bool]) -> int:
        """Deliver what is due now; `send` says whether it was accepted. Return how many attempts that were."""
        due = self.pending_deliveries()
        for delivery in due:
            self.delivered(delivery, send(delivery))
        return len(due)

    def delivery_times(self) -> list[float]:
        """Return when each pending delivery is due."""
        with self._lock:
            return self._outbox.times()

    def deliveries(self) -> list[dict[str, Any]]:
        """Return every delivery and where it stands."""
        with self._lock:
            return self._outbox.states()

    def flush_deliveries(self) -> int:
        """Make every pending delivery due now, and end a pause; return how many."""
        with self._lock:
            return self._outbox.flush(self.now())

    def drop_deliveries(self) -> int:
        """Lose every pending delivery; return how many."""
        with self._lock:
            return self._outbox.drop()

    def resend(self, event: str) -> int:
        """Deliver an event again to where it went; return to how many endpoints."""
        with self._lock:
            return self._outbox.resend(event, self.now())

    # --- What customers, banks and operators do -----------------------------------------------------------------------

    def authenticate(self, intent: str, *, succeeds: bool = True) -> Object:
        """Let the customer answer the bank's question about a PaymentIntent or SetupIntent that requires action."""
        act = setup_intents.authenticate if intent.startswith("seti_") else payment_intents.authenticate
        return self._by_itself(intent, lambda call: act(call, succeeds=succeeds))

    def settle(self, payment_intent: str, *, succeeds: bool | None = None) -> Object:
        """Let the bank end a debit: as told, or as the test account's name says."""
        return self._by_itself(payment_intent, lambda call: payment_intents.settle(call, succeeds=succeeds))

    def complete_checkout(self, session: str, card: str = "pm_card_visa") -> Object:
        """Let the customer enter a card on a Checkout Session's page."""
        return self._by_itself(session, lambda call: checkout.complete(call, card))

    def _by_itself(self, name: str, act: Callable[[Call], Object]) -> Object:
        with self._lock:
            self.run_due()
            world = self.store.world_of(name)
            if world is None:
                raise errors.not_found("object", name)
            call = self._call(world)
            call.ids = (name,)
            with self.store.transaction():
                return act(call)

    # --- What there is, and what money moved --------------------------------------------------------------------------

    def find(self, name: str) -> Object | None:
        """Return any object, whatever its account and mode."""
        with self._lock:
            world = self.store.world_of(name)
            found = None if world is None else self.store.find(world, name)
            return None if found is None else shown(found)

    def objects(self, kind: str) -> list[Object]:
        """Return every object of a kind (`payment_intent`, `charge`, …), oldest first."""
        with self._lock:
            return [shown(thing) for thing in self.store.all(kind)]

    def payment_intents(self) -> list[Object]:
        """Return every PaymentIntent, oldest first."""
        return self.objects("payment_intent")

    def tally(self, metadata_key: str = DEFAULT_METADATA_KEY) -> Tally:
        """Return all money moved."""
        with self._lock:
            charges = self.store.all("charge", status="succeeded")
            accounts = {charge["id"]: self.store.world_of(charge["id"]) for charge in charges}
        moved = [
            moved_by(charge, world.account)
            for charge in charges
            if charge["captured"] and (world := accounts[charge["id"]]) is not None
        ]
        return Tally(metadata_key, moved)

    def money_moved(self, value: str, metadata_key: str = DEFAULT_METADATA_KEY) -> list[int]:
        """Return each amount taken by charges whose metadata say this."""
        return [one.amount for one in self.tally(metadata_key).moved if one.metadata.get(metadata_key) == value]

    def money_moved_by(self, payment_intent: str) -> list[int]:
        """Return each amount taken by one PaymentIntent."""
        return [one.amount for one in self.tally().moved if one.payment_intent == payment_intent]

    def logged(self) -> list[dict[str, Any]]:
        """Return the last requests and how they went, oldest first."""
        return [asdict(entry) for entry in list(self.log)]

    def reset(self) -> None:
        """Forget all objects, keys, deliveries and faults."""
        with self._lock:
            self.store.reset()
            self.faults.clear()
            self._outbox.disturbance = Disturbance()
            self._outbox.reload()
            self.lag = Lag()
            self.log.clear()

    def _call(self, world: World, **details: Any) -> Call:
        return Call(
            self.store,
            self._outbox,
            self.settings,
            self.lag,
            self.platform,
            world,
            details.pop("now", None) or self.now(),
            **details,
        )

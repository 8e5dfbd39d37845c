"""Events, and their delivery to webhook endpoints: signed, repeated until accepted, and disturbed on command."""

import hashlib
import hmac
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from infra.local.stripe.store import PRIVATE, Object, Store, World, shown
from infra.local.stripe.wire import API_VERSION

GIVEN_UP_AFTER_SECONDS: Final = 3 * 24 * 3600.0  # Stripe's word; how it spaces the tries is not published.
BACKOFF_SECONDS: Final = (60.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0)  # The last one repeats.


@dataclass(frozen=True)
class Endpoint:
    """Where events go. While a secret is rolled there are two, and each signs."""

    url: str
    secrets: Sequence[str]
    connect: bool = False  # Gets the events of connected accounts, live and test, instead of the platform's own.
    enabled_events: Sequence[str] = ("*",)
    livemode: bool | None = None  # None: both.
    id: str = ""

    def wants(self, world: World, platform: str, kind: str) -> bool:
        """Whether such an event goes here."""
        return (
            self.connect == (world.account != platform)
            and (self.livemode is None or self.livemode == world.livemode or (self.connect and self.livemode))
            and ("*" in self.enabled_events or kind in self.enabled_events)
        )


@dataclass
class Disturbance:
    """How deliveries go wrong. `lose`, `duplicate` and `delay_seconds` befall events emitted from now on."""

    paused: bool = False
    lose: int = 0  # So many of the next deliveries never arrive; -1: all.
    duplicate: int = 0  # So many of the next are made twice; -1: all.
    delay_seconds: float = 0.0
    shuffle: bool = False  # What is due together is sent in any order.
    types: Sequence[str] = ()  # Only these types of event are lost, duplicated or delayed; empty: all.

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt to deliver one event, signed now."""

    id: int
    event: str
    type: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    attempt: int


def sign(body: bytes, secrets: Sequence[str], timestamp: int) -> str:
    """Return the `Stripe-Signature` of a body: one v1 for each secret."""
    signed = f"{timestamp}.".encode() + body
    signatures = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    return ",".join([f"t={timestamp}", *(f"v1={signature}" for signature in signatures)])


class Outbox:
    """Every event, and where each stands with each endpoint.

    A delivery is `pending` until it is `delivered`, `failed` (three days over) or `lost` (on command, and Stripe does
    not know that it must come again).
    """

    def __init__(self, store: Store, platform: str, seed: int | str | None, compression: float) -> None:
        self._store = store
        self._platform = platform
        self._random = random.Random(seed)  # noqa: S311 - chance that replays, not secrecy.
        self._compression = compression
        self._fixed: list[Endpoint] = []
        self._endpoints: list[Endpoint] = []
        self.disturbance = Disturbance()
        self.reload()

    # --- Endpoints ----------------------------------------------------------------------------------------------------

    def add(self, endpoint: Endpoint) -> None:
        """Add an endpoint for as long as this process runs; those made by the API are kept in the database."""
        self._fixed.append(endpoint)
        self.reload()

    def reload(self) -> None:
        """Read again which endpoints there are."""
        kept = []
        for thing in self._store.all("webhook_endpoint"):
            ours = thing[PRIVATE]
            kept.append(
                Endpoint(
                    thing["url"],
                    ours["secrets"],
                    ours["connect"],
                    thing["enabled_events"],
                    thing["livemode"],
                    thing["id"],
                )
            )
        self._endpoints = [*self._fixed, *kept]

    # --- Events -------------------------------------------------------------------------------------------------------

    def emit(  # noqa: PLR0913, PLR0917 - an event says that much.
        self,
        world: World,
        kind: str,
        thing: Object,
        now: float,
        request_id: str | None,
        idempotency_key: str | None,
    ) -> None:
        """Record an event and what is to be delivered of it."""
        event: Object = {
            "id": self._store.new_id("evt"),
            "object": "event",
            "api_version": API_VERSION,
            "created": int(now),
            "data": {"object": thing},
            "livemode": world.livemode,
            "request": {"id": request_id, "idempotency_key": idempotency_key},
            "type": kind,
        }
        if world.account != self._platform:
            event["account"] = world.account
        self._store.insert(world, event)
        for endpoint in self._endpoints:
            if endpoint.wants(world, self._platform, kind):
                self._schedule(event, endpoint, now)

    def _schedule(self, event: Object, endpoint: Endpoint, now: float) -> None:
        disturbance = self.disturbance
        disturbed = not disturbance.types or event["type"] in disturbance.types
        lost = disturbed and self._one_of("lose")
        copies = 2 if disturbed and not lost and self._one_of("duplicate") else 1
        due = now + (disturbance.delay_seconds if disturbed else 0.0)
        for _ in range(copies):
            self._store.db.execute(
                "INSERT INTO delivery (event, endpoint, state, attempts, due, created) VALUES (?, ?, ?, 0, ?, ?)",
                (event["id"], endpoint.url, "lost" if lost else "pending", due, now),
            )

    def _one_of(self, name: str) -> bool:
        left = getattr(self.disturbance, name)
        if left > 0:
            setattr(self.disturbance, name, left - 1)
        return bool(left)

    def rendered(self, event: Object) -> Object:
        """Return an event as it is shown and sent."""
        pending = self._store.db.execute(
            "SELECT COUNT(*) FROM delivery WHERE event = ? AND state = 'pending'", (event["id"],)
        ).fetchone()[0]
        return {**shown(event), "pending_webhooks": pending}

    # --- Delivery -----------------------------------------------------------------------------------------------------

    def due(self, now: float) -> list[Delivery]:
        """Return what is to be sent now, in order of its time, signed now."""
        if self.disturbance.paused:
            return []
        rows = self._store.db.execute(
            "SELECT delivery.id, delivery.endpoint, delivery.attempts, object.body FROM delivery"
            " JOIN object ON object.id = delivery.event"
            " WHERE delivery.state = 'pending' AND delivery.due <= ? ORDER BY delivery.due, delivery.id",
            (now,),
        ).fetchall()
        endpoints = {endpoint.url: endpoint for endpoint in self._endpoints}
        found = [
            self._signed(row_id, json.loads(body), endpoints[url], attempts, now)
            for row_id, url, attempts, body in rows
            if url in endpoints  # To a deleted endpoint nothing is sent any more.
        ]
        if self.disturbance.shuffle:
            self._random.shuffle(found)
        return found

    def _signed(self, row_id: int, event: Object, endpoint: Endpoint, attempts: int, now: float) -> Delivery:
        body = json.dumps(self.rendered(event)).encode()
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
            "Stripe-Signature": sign(body, endpoint.secrets, int(now)),
        }
        return Delivery(row_id, event["id"], event["type"], endpoint.url, headers, body, attempts + 1)

    def delivered(self, delivery: Delivery, now: float, *, accepted: bool) -> None:
        """Record how an attempt went. Accepted is any 2xx; whatever else comes again, for three days."""
        row = self._store.db.execute("SELECT created FROM delivery WHERE id = ?", (delivery.id,)).fetchone()
        if row is None:
            return
        wait = BACKOFF_SECONDS[min(delivery.attempt, len(BACKOFF_SECONDS)) - 1] / self._compression
        given_up = now + wait > row[0] + GIVEN_UP_AFTER_SECONDS
        state = "delivered" if accepted else "failed" if given_up else "pending"
        self._store.db.execute(
            "UPDATE delivery SET state = ?, attempts = ?, due = ? WHERE id = ? AND state = 'pending'",
            (state, delivery.attempt, now + wait, delivery.id),
        )

    def times(self) -> list[float]:
        """Return when each pending delivery is due."""
        return [
            due for (due,) in self._store.db.execute("SELECT due FROM delivery WHERE state = 'pending' ORDER BY due")
        ]

    def flush(self, now: float) -> int:
        """Make every pending delivery due now; return how many."""
        self.disturbance.paused = False
        return self._store.db.execute("UPDATE delivery SET due = ? WHERE state = 'pending'", (now,)).rowcount

    def drop(self) -> int:
        """Lose every pending delivery; return how many."""
        return self._store.db.execute("UPDATE delivery SET state = 'lost' WHERE state = 'pending'").rowcount

    def resend(self, event: str, now: float) -> int:
        """Send an event again, as Stripe's dashboard and CLI do; return to how many endpoints."""
        return self._store.db.execute(
            "INSERT INTO delivery (event, endpoint, state, attempts, due, created)"
            " SELECT DISTINCT event, endpoint, 'pending', 0, ?, ? FROM delivery WHERE event = ?",
            (now, now, event),
        ).rowcount

    def states(self) -> list[dict[str, Any]]:
        """Return every delivery, oldest first."""
        rows = self._store.db.execute("SELECT id, event, endpoint, state, attempts, due FROM delivery ORDER BY id")
        return [dict(zip(("id", "event", "endpoint", "state", "attempts", "due"), row, strict=True)) for row in rows]

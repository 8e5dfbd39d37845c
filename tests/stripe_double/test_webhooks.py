"""Events and their delivery."""

import itertools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import stripe

from infra.local.stripe.engine import Delivery, Engine
from infra.local.stripe.server import Server
from tests.stripe_double.asking import DAY, SECRET, START, Asker, VirtualClock, official, wait_until

OTHER_SECRET = "whsec_that_is_being_rolled_in"
NEVER_TOO_OLD = 0  # The clock of these tests is not that of stripe-python.


@pytest.fixture
def subscribed(double: Asker) -> Asker:
    """A double with one endpoint."""
    double.engine.add_webhook_endpoint("http://shop.example/webhook", [SECRET])
    return double


def _types(deliveries: list[Delivery]) -> list[str]:
    return [delivery.type for delivery in deliveries]


def test_a_signature_verifies_with_every_active_secret(double: Asker) -> None:
    """While a secret is rolled, both sign; stripe-python accepts either, and no third."""
    double.engine.add_webhook_endpoint("http://shop.example/webhook", [SECRET, OTHER_SECRET])
    double.customer()
    (delivery,) = double.engine.pending_deliveries()
    signature = delivery.headers["Stripe-Signature"]

    assert signature.count("v1=") == 2
    for secret in (SECRET, OTHER_SECRET):
        event = stripe.Webhook.construct_event(delivery.body, signature, secret, tolerance=NEVER_TOO_OLD)
        assert event.type == "customer.created"
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(delivery.body, signature, "whsec_of_somebody_else", tolerance=NEVER_TOO_OLD)
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(delivery.body + b" ", signature, SECRET, tolerance=NEVER_TOO_OLD)


def test_an_event_names_the_request_and_key_that_caused_it(subscribed: Asker) -> None:
    """The snapshot is of the moment; what Stripe does by itself names no request."""
    intent = subscribed.intent()
    answer = subscribed.confirm(intent, "pm_usBankAccount_success", key="k")
    subscribed.clock.time += 4 * DAY
    events = [json.loads(delivery.body) for delivery in subscribed.engine.pending_deliveries()]
    by_type = {event["type"]: event for event in events}

    processing, paid = by_type["payment_intent.processing"], by_type["payment_intent.succeeded"]
    assert processing["request"] == {"id": answer.headers["Request-Id"], "idempotency_key": "k"}
    assert processing["data"]["object"]["status"] == "processing"
    assert paid["request"] == {"id": None, "idempotency_key": None}
    assert (paid["livemode"], paid["api_version"], "account" in paid) == (False, "2026-10-28.endive", False)


def test_what_is_accepted_does_not_come_again(subscribed: Asker) -> None:
    """And the list of events knows that it was delivered."""
    subscribed.customer()
    assert subscribed.engine.deliver(lambda _: True) == 1

    subscribed.clock.time += 3 * DAY
    assert subscribed.engine.pending_deliveries() == []
    assert len(subscribed.get("events", {"delivery_success": "true"}).body["data"]) == 1
    assert subscribed.get("events", {"delivery_success": "false"}).body["data"] == []


def test_what_is_refused_comes_again_with_backoff_for_three_days(subscribed: Asker) -> None:
    """Each time with a new signature; then it is given up, and the list of events says so."""
    subscribed.customer()
    attempts = []
    while subscribed.engine.delivery_times():
        subscribed.clock.time = max(subscribed.clock.time, subscribed.engine.delivery_times()[0])
        (delivery,) = subscribed.engine.pending_deliveries()
        attempts.append((subscribed.clock.time - START, delivery.headers["Stripe-Signature"]))
        subscribed.engine.delivered(delivery, accepted=False)

    times = [time for time, _ in attempts]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert waits == sorted(waits)
    assert 2 * DAY < times[-1] <= 3 * DAY
    assert len({signature for _, signature in attempts}) == len(attempts) > 5
    (event,) = subscribed.get("events", {"delivery_success": "false"}).body["data"]
    assert event["type"] == "customer.created"


def test_deliveries_come_in_the_order_of_what_happened(subscribed: Asker) -> None:
    """Unless told otherwise; Stripe itself does not promise it."""
    subscribed.confirm(subscribed.intent())

    assert _types(subscribed.engine.pending_deliveries()) == [
        "payment_intent.created",
        "charge.succeeded",
        "payment_intent.succeeded",
    ]


def test_deliveries_are_shuffled_on_command(subscribed: Asker) -> None:
    """The same ones, in another order."""
    for _ in range(4):
        subscribed.confirm(subscribed.intent())
    in_order = [delivery.event for delivery in subscribed.engine.pending_deliveries()]
    subscribed.engine.disturbance.shuffle = True
    shuffled = [delivery.event for delivery in subscribed.engine.pending_deliveries()]

    assert shuffled != in_order
    assert sorted(shuffled) == sorted(in_order)


def test_deliveries_come_twice_late_or_never_on_command(subscribed: Asker) -> None:
    """Twice with the same event id; lost ones are never sent, and listed as not delivered."""
    disturbance = subscribed.engine.disturbance
    disturbance.duplicate = 1
    subscribed.customer()
    twice = subscribed.engine.pending_deliveries()
    subscribed.engine.deliver(lambda _: True)
    disturbance.lose = 1
    subscribed.customer()
    assert subscribed.engine.pending_deliveries() == []
    disturbance.delay_seconds = 60
    subscribed.customer()
    assert subscribed.engine.pending_deliveries() == []
    subscribed.clock.time += 60

    assert len(twice) == 2
    assert twice[0].event == twice[1].event
    assert len(subscribed.engine.pending_deliveries()) == 1
    assert len(subscribed.get("events", {"delivery_success": "false"}).body["data"]) == 2


def test_deliveries_pause_and_flush(subscribed: Asker) -> None:
    """What was held back is sent at once."""
    subscribed.engine.disturbance.paused = True
    subscribed.customer()
    assert subscribed.engine.pending_deliveries() == []

    assert subscribed.engine.flush_deliveries() == 1
    assert len(subscribed.engine.pending_deliveries()) == 1


def test_only_some_types_are_disturbed(subscribed: Asker) -> None:
    """To lose the news of the payment and nothing else."""
    subscribed.engine.disturbance.lose = -1
    subscribed.engine.disturbance.types = ["payment_intent.succeeded"]
    subscribed.confirm(subscribed.intent())

    assert _types(subscribed.engine.pending_deliveries()) == ["payment_intent.created", "charge.succeeded"]


def test_a_delivered_event_can_be_sent_again(subscribed: Asker) -> None:
    """As from Stripe's dashboard."""
    subscribed.customer()
    (delivery,) = subscribed.engine.pending_deliveries()
    subscribed.engine.delivered(delivery, accepted=True)

    assert subscribed.engine.resend(delivery.event) == 1
    assert [again.event for again in subscribed.engine.pending_deliveries()] == [delivery.event]


def test_connected_accounts_are_told_of_at_connect_endpoints_only(double: Asker) -> None:
    """With the account's name on the event."""
    double.engine.add_webhook_endpoint("http://shop.example/own", [SECRET])
    double.engine.add_webhook_endpoint("http://shop.example/connect", [SECRET], connect=True)
    double.customer()
    double.customer(Stripe_Account="acct_one")
    told = [(d.url, json.loads(d.body).get("account")) for d in double.engine.pending_deliveries()]

    assert told == [("http://shop.example/own", None), ("http://shop.example/connect", "acct_one")]


def test_an_endpoint_made_by_the_api_gets_what_it_asked_for(double: Asker) -> None:
    """Signed with the secret that only its creation shows; deleted, it gets nothing more."""
    params = {"url": "http://shop.example/webhook", "enabled_events": ["payment_intent.succeeded"]}
    endpoint = double.post("webhook_endpoints", params).body
    double.confirm(double.intent())
    (delivery,) = double.engine.pending_deliveries()

    assert delivery.type == "payment_intent.succeeded"
    signature = delivery.headers["Stripe-Signature"]
    stripe.Webhook.construct_event(delivery.body, signature, endpoint["secret"], tolerance=NEVER_TOO_OLD)
    assert "secret" not in double.get("webhook_endpoints").body["data"][0]
    double.ask("DELETE", f"webhook_endpoints/{endpoint['id']}")
    assert double.engine.pending_deliveries() == []


def test_events_are_listed_by_type_and_time(double: Asker) -> None:
    """As a backfill asks: several types, patterns, since when; oldest first with `ending_before`."""
    first = double.intent()
    double.clock.time += 100
    double.confirm(first)
    everything = [event["type"] for event in double.get("events").body["data"]]
    some = double.get("events", {"types": ["payment_intent.succeeded", "payment_intent.created"]}).body["data"]
    since = double.get("events", {"created": {"gte": int(START + 100)}, "type": "charge.*"}).body["data"]
    after = double.get("events", {"ending_before": some[-1]["id"]}).body["data"]

    assert everything == ["payment_intent.succeeded", "charge.succeeded", "payment_intent.created"]
    assert [event["type"] for event in some] == ["payment_intent.succeeded", "payment_intent.created"]
    assert [event["type"] for event in since] == ["charge.succeeded"]
    assert [event["type"] for event in after] == ["payment_intent.succeeded", "charge.succeeded"]
    assert double.get(f"events/{some[0]['id']}").body == some[0]


@pytest.fixture
def shop() -> Iterator[tuple[str, list[tuple[bytes, str]], list[int]]]:
    """An endpoint on a real socket: its address, what it got, and what it will answer (then 200)."""
    got: list[tuple[bytes, str]] = []
    answers: list[int] = []

    class Shop(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((body, self.headers["Stripe-Signature"]))
            self.send_response(answers.pop(0) if answers else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Shop)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/webhook?from=stripe", got, answers
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_program_delivers_and_repeats_what_was_refused(
    shop: tuple[str, list[tuple[bytes, str]], list[int]],
) -> None:
    """Over sockets, in real time: a 500 and a redirect are no acceptance, and the event comes a third time."""
    url, got, answers = shop
    answers += [500, 302]
    engine = Engine(webhook_compression=1000)  # A minute becomes 60 ms.
    engine.add_webhook_endpoint(url, [SECRET])
    with Server(engine) as server:
        official(server.url).v1.customers.create()
        wait_until(lambda: len(got) == 3 and not engine.delivery_times())

    assert len(got) == 3
    assert {stripe.Webhook.construct_event(body, signature, SECRET).id for body, signature in got} == {
        engine.objects("event")[0]["id"]
    }
    assert engine.deliveries()[0]["state"] == "delivered"


def test_signatures_are_those_of_the_doubles_own_time(clock: VirtualClock) -> None:
    """So that a test with its own clock sees them in time."""
    engine = Engine(clock=clock)
    engine.add_webhook_endpoint("x", [SECRET])
    Asker(engine, clock).customer()

    assert f"t={int(START)}," in engine.pending_deliveries()[0].headers["Stripe-Signature"]

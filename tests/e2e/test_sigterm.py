"""An instance that is told to end, with a charge under way: it is carried to its end, once, and its traces arrive."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from infra.local.stack import Stack
from shared.charge import charge_id
from shared.policy import Limits
from tests import otlp
from tests.e2e.test_charges import money_moved, post, read, requests_at_stripe, soon
from tests.otlp import Receiver, attributes

LIMITS: Final = Limits(
    stripe_timeout=timedelta(seconds=6), lease=timedelta(seconds=20), quarantine=timedelta(seconds=5)
)
SLOW_SECONDS: Final = 2.0  # Time for the signal, and less than our patience: half of the time limit is for connecting.


class Observed(Stack):
    """The stack, whose functions send traces and metrics to a receiver of the test's."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self._receiver = receiver
        super().__init__(folder=folder, limits=LIMITS, sweep_every=timedelta(seconds=1))

    def environment(self) -> dict[str, str]:
        """Return the environment, with the address to send to."""
        return {**super().environment(), "OTEL_EXPORTER_OTLP_ENDPOINT": self._receiver.url}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Who takes traces and metrics."""
    with otlp.receiving() as running:
        yield running


@pytest.fixture(scope="module")
def stack(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that sends them there."""
    with Observed(tmp_path_factory.mktemp("stack"), receiver) as stack:
        yield stack


def test_a_charge_is_one_trace_with_its_commits_its_calls_of_stripe_and_its_task(
    stack: Stack, receiver: Receiver
) -> None:
    """All that it waited for. The task is made beside it, and may be sent with the next request's."""
    post(stack, "first")  # What is done once an instance is done then.
    receiver.wait(lambda: "charge" in receiver.names, "the first charge's trace")
    assert post(stack, "traced").status_code == 200

    def names() -> list[str]:
        traces = {
            span.trace_id for span in receiver.spans if attributes(span).get("charge") == charge_id(None, "traced")
        }
        return sorted(span.name for span in receiver.spans if span.trace_id in traces and span.name != "event")

    def task_is_there() -> bool:
        read(stack, "traced")
        return "create_task" in names()

    receiver.wait(task_is_there, "the task's span")
    assert names() == [
        "charge",
        "create_task",
        *["datastore commit"] * 3,
        "stripe POST /v1/payment_intents",
        "stripe POST /v1/payment_intents/{id}/confirm",
    ]


def test_a_request_under_way_when_the_instance_ends_is_finished_and_recorded(stack: Stack, receiver: Receiver) -> None:
    """Stripe is slow to answer the confirm. The caller hears that it is paid, and what was counted still goes out."""
    stack.double("POST", "faults", fault="slow_after", operation="payment_intents.confirm", seconds=SLOW_SECONDS)
    (ending,) = receiver.instances("charge")
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(post, stack, "finished")
        soon(lambda: money_moved(stack, "finished") == [1999], "Stripe has charged")
        stack.restart("charge")
        answer = call.result()

    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert read(stack, "finished")["status"] == "succeeded"
    assert money_moved(stack, "finished") == [1999]
    assert len(requests_at_stripe(stack, "finished")) == 2
    receiver.wait(
        lambda: receiver.values("paidonce.charges", of=ending).get(("pending",)) == 3, "what the instance had counted"
    )


def newest_at_stripe(stack: Stack) -> str:
    """Name the charge that the newest PaymentIntent is for."""
    (newest,) = stack.at_stripe("GET", "/v1/payment_intents?limit=1")["data"]
    return str(newest["metadata"]["pio_charge"])


def test_nothing_new_is_sent_by_an_instance_that_ends_and_the_redelivery_charges_once(
    stack: Stack, receiver: Receiver
) -> None:
    """Stripe is slow to make the PaymentIntent: it is recorded, and confirmed by the next instance."""
    stack.double("POST", "faults", fault="slow_after", operation="payment_intents.create", seconds=SLOW_SECONDS)
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(post, stack, "carried-on")
        soon(lambda: newest_at_stripe(stack) == charge_id(None, "carried-on"), "Stripe has made it")
        stack.restart("charge")
        answer = call.result()

    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    assert answer.json()["payment_intent"] is not None
    soon(lambda: read(stack, "carried-on")["status"] == "succeeded", "the next instance carries it on")
    assert money_moved(stack, "carried-on") == [1999]
    assert [one["idempotency_key"].rpartition("-")[0][-7:] for one in requests_at_stripe(stack, "carried-on")] == [
        "-create",
        "confirm",
    ]
    receiver.wait(lambda: "deliver" in receiver.names, "the delivery's trace")

"""Charges on real processes. The judge is Stripe's own tally."""

import hashlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from google.cloud import tasks_v2

from infra.local.stack import PROJECT, QUEUE, Stack, ask
from shared.charge import charge_id
from shared.ledger import COMMIT_BUDGET
from shared.store import CALL_TIMEOUT_SECONDS, DatastoreStore

SOON_SECONDS = 20.0  # Longer than any lease and any doubling wait here.


def post(stack: Stack, key: str, **headers: str) -> requests.Response:
    """Ask for a charge of 19.99 as a newcomer does."""
    sent = {"Idempotency-Key": key, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return ask("POST", stack.charge_url, json=body(stack), headers=sent)


def body(stack: Stack) -> dict[str, Any]:
    """The same body whenever it is asked for."""
    [customer] = stack.at_stripe("GET", "/v1/customers?limit=1")["data"] or [{"id": stack.new_customer()}]
    return {"amount": 1999, "currency": "usd", "customer": customer["id"], "payment_method": "pm_card_visa"}


def read(stack: Stack, key: str) -> dict[str, Any]:
    """Read the charge of a key."""
    answer = ask("GET", stack.charge_url, headers={"Idempotency-Key": key})
    return dict(answer.json())


def money_moved(stack: Stack, key: str) -> list[int]:
    """Ask Stripe which amounts the charge of this key has taken."""
    found = stack.double("GET", "tally")["by_metadata"].get(charge_id(None, key), {"amounts": []})
    return list(found["amounts"])


def requests_at_stripe(stack: Stack, key: str) -> list[dict[str, Any]]:
    """Ask Stripe what it was sent for the charge of this key."""
    requests_seen = stack.double("GET", "requests")["requests"]
    return [one for one in requests_seen if charge_id(None, key) in (one["idempotency_key"] or "")]


def soon(happens: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + SOON_SECONDS
    while not happens():
        assert time.monotonic() < deadline, f"{what}: not within {SOON_SECONDS:g} s"
        time.sleep(0.1)


def test_a_newcomer_charges_and_reads_the_charge_at_the_address_given(stack: Stack) -> None:
    """One POST, one answer, and where it can be read."""
    answer = post(stack, "newcomer")

    assert answer.status_code == 200
    assert answer.json()["status"] == "succeeded"
    assert ask("GET", answer.headers["Location"]).json()["id"] == answer.json()["id"]
    assert money_moved(stack, "newcomer") == [1999]


def test_the_same_request_twenty_times_at_once_is_one_charge_and_twenty_answers_that_agree(stack: Stack) -> None:
    """An impatient caller, or a proxy that repeats."""
    wanted = body(stack)
    headers = {"Idempotency-Key": "impatient"}
    with ThreadPoolExecutor(20) as callers:
        answers = list(callers.map(lambda _: ask("POST", stack.charge_url, json=wanted, headers=headers), range(20)))

    assert {answer.status_code for answer in answers} == {200}
    assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) == 1
    assert {answer.json()["payment_intent"] for answer in answers} == {read(stack, "impatient")["payment_intent"]}
    assert money_moved(stack, "impatient") == [1999]


def test_a_worker_that_is_killed_while_stripe_charges_charges_once(stack: Stack) -> None:
    """The money has moved, and nobody is left who knows."""
    stack.double("POST", "faults", fault="slow_after", operation="payment_intents.confirm", seconds=2)
    stack.disturb_events(lose=-1)
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(post, stack, "killed")
        soon(lambda: money_moved(stack, "killed") == [1999], "Stripe has charged")
        stack.kill_worker("charge")

        assert isinstance(call.exception(), requests.ConnectionError)

    soon(lambda: read(stack, "killed")["status"] == "succeeded", "the charge is known to be paid")
    assert money_moved(stack, "killed") == [1999]


def test_with_datastore_down_the_caller_is_told_in_time_and_stripe_has_seen_nothing(stack: Stack) -> None:
    """What cannot be recorded is not sent; the same request, once it can, is one charge."""
    wanted = body(stack)
    stack.pause_datastore()
    began = time.monotonic()

    answer = ask("POST", stack.charge_url, json=wanted, headers={"Idempotency-Key": "unrecorded"})

    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert time.monotonic() - began < COMMIT_BUDGET.total_seconds() + CALL_TIMEOUT_SECONDS + 1
    assert requests_at_stripe(stack, "unrecorded") == []

    stack.resume_datastore()
    soon(lambda: post(stack, "unrecorded").status_code == 200, "the repeated request is carried out")
    assert money_moved(stack, "unrecorded") == [1999]


def test_a_task_that_comes_twice_at_once_is_one_charge(stack: Stack) -> None:
    """Cloud Tasks promises at least once, and no more."""
    stack.disturb_tasks(delivered_twice=2)
    enqueue(stack, "twice", body(stack))

    soon(lambda: read(stack, "twice").get("status") == "succeeded", "the task is carried out")
    assert money_moved(stack, "twice") == [1999]


def test_a_task_that_can_never_work_ends_as_a_dead_letter_and_charges_nobody(stack: Stack) -> None:
    """Refused, it would come again for 31 days and then be lost."""
    raw = b'{"amount": "a lot"}'
    enqueue(stack, "hopeless", raw)

    store = DatastoreStore(PROJECT, emulator_host=f"127.0.0.1:{stack.ports.datastore}")
    name = hashlib.sha256(b"hopeless\n" + raw).hexdigest()
    soon(lambda: store.get("DeadLetter", name) is not None, "a dead letter is kept")
    store.close()
    assert requests_at_stripe(stack, "hopeless") == []
    with stack.tasks_client() as client:
        soon(lambda: not any("hopeless" in task.name for task in client.list_tasks(parent=QUEUE)), "the task ends")


def enqueue(stack: Stack, key: str, wanted: dict[str, Any] | bytes) -> None:
    """Leave a charge to Cloud Tasks."""
    request = tasks_v2.HttpRequest(
        url=stack.charge_url,
        headers={"Content-Type": "application/json", "Idempotency-Key": key},
        body=wanted if isinstance(wanted, bytes) else json.dumps(wanted).encode(),
    )
    with stack.tasks_client() as client:
        client.create_task(parent=QUEUE, task=tasks_v2.Task(name=f"{QUEUE}/tasks/{key}", http_request=request))


def test_an_event_alone_closes_what_was_left_unknown(stack: Stack) -> None:
    """No task runs, no sweep, and Stripe answers nothing: its own word is enough."""
    stack.scheduler.pause()
    stack.disturb_tasks(dispatch_stopped=True)
    stack.disturb_events(paused=True)
    stack.double("POST", "faults", fault="drop_after", operation="payment_intents.confirm", times=None)
    stack.double("POST", "faults", fault="503_before", operation="payment_intents.retrieve", times=None)
    assert post(stack, "unheard").json()["status"] == "unknown"

    stack.disturb_events(paused=False)

    soon(lambda: read(stack, "unheard")["status"] == "succeeded", "the event closes it")
    assert money_moved(stack, "unheard") == [1999]


def test_the_sweep_alone_finds_a_charge_that_the_task_queue_has_lost(stack: Stack) -> None:
    """Accepted, its task never made, and no event to come: `due_at` is what is left."""
    stack.scheduler.pause()
    stack.disturb_tasks(create_task_unavailable=1)
    stack.disturb_events(lose=-1)
    assert post(stack, "forgotten", Prefer="respond-async").status_code == 202
    time.sleep(2)
    assert read(stack, "forgotten")["status"] == "pending"

    soon(lambda: (stack.scheduler.call() or 0) > 0, "the sweep finds it")

    soon(lambda: read(stack, "forgotten")["status"] == "succeeded", "it is carried out")
    assert money_moved(stack, "forgotten") == [1999]

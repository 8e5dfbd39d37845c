"""Faults on command, and the counts, as another project's tests would use them."""

import time
from typing import Any

import pytest
import requests
from google.api_core import exceptions
from google.cloud import tasks_v2

from infra.local.tasks.emulator import Emulator
from tests.tasks_emulator.conftest import NewTask, await_counts
from tests.tasks_emulator.receiver import Receiver, Reply

Client = tasks_v2.CloudTasksClient


def arm(emulator: Emulator, **faults: Any) -> dict[str, Any]:
    """Ask for faults over HTTP, and return the state."""
    answer = requests.post(f"{emulator.control_url}/faults", json=faults, timeout=5)
    answer.raise_for_status()
    state: dict[str, Any] = answer.json()
    return state


def create(client: Client, receiver: Receiver, queue: str, name: str) -> tasks_v2.Task:
    """Create a task, and wait for the answer for half a second."""
    task = tasks_v2.Task({"name": f"{queue}/tasks/{name}", "http_request": {"url": receiver.url}})
    return client.create_task(parent=queue, task=task, timeout=0.5)


def test_a_creation_can_be_refused_so_many_times(
    client: Client, queue: str, receiver: Receiver, emulator: Emulator
) -> None:
    """Nothing is created, and the name is free."""
    arm(emulator, create_task_unavailable=2)
    for _ in range(2):
        with pytest.raises(exceptions.ServiceUnavailable):
            create(client, receiver, queue, "order-1")
    create(client, receiver, queue, "order-1")
    await_counts(emulator, queue, done=1)
    assert len(receiver.arrivals) == 1


def test_a_creation_can_hang_and_create_nothing(
    client: Client, queue: str, receiver: Receiver, emulator: Emulator
) -> None:
    """The caller learns nothing."""
    arm(emulator, create_task_hangs=1)
    with pytest.raises(exceptions.DeadlineExceeded):
        create(client, receiver, queue, "order-1")
    assert receiver.arrivals == []
    create(client, receiver, queue, "order-1")


def test_a_creation_can_be_carried_out_and_its_reply_lost(
    client: Client, queue: str, receiver: Receiver, emulator: Emulator
) -> None:
    """The caller learns nothing, the task runs, and a repeat is told that it exists."""
    arm(emulator, create_task_loses_reply=1)
    with pytest.raises(exceptions.DeadlineExceeded):
        create(client, receiver, queue, "order-1")
    receiver.await_arrivals(1)
    with pytest.raises(exceptions.AlreadyExists):
        create(client, receiver, queue, "order-1")


def test_a_task_can_be_delivered_twice_at_the_same_time(
    queue: str, new_task: NewTask, receiver: Receiver, emulator: Emulator
) -> None:
    """The next one only, and both look the same."""
    receiver.answers(Reply(after_seconds=0.2))
    arm(emulator, delivered_twice=1)
    new_task(queue, "doubled")
    first, second = receiver.await_arrivals(2)
    assert receiver.most_at_once == 2
    assert first.headers == second.headers
    await_counts(emulator, queue, done=1, running=0)
    new_task(queue, "single")
    assert [arrival.task for arrival in receiver.await_arrivals(3)] == ["doubled", "doubled", "single"]


def test_dispatch_can_be_stopped_and_go_on(
    client: Client, queue: str, new_task: NewTask, receiver: Receiver, emulator: Emulator
) -> None:
    """Tasks are taken meanwhile, and one may be run by hand."""
    arm(emulator, dispatch_stopped=True)
    new_task(queue, "waits")
    client.run_task(name=new_task(queue, "by-hand").name)
    await_counts(emulator, queue, done=1, waiting=1)
    time.sleep(0.1)  # In which it would have come.
    assert [arrival.task for arrival in receiver.arrivals] == ["by-hand"]
    arm(emulator, dispatch_stopped=False)
    receiver.await_arrivals(2)


def test_all_faults_can_be_taken_back(client: Client, queue: str, receiver: Receiver, emulator: Emulator) -> None:
    """All is well again at once."""
    arm(emulator, create_task_unavailable=9, dispatch_stopped=True)
    state = requests.delete(f"{emulator.control_url}/faults", timeout=5).json()
    assert not any(state["faults"].values())
    create(client, receiver, queue, "order-1")
    receiver.await_arrivals(1)


def test_the_state_counts_tasks_and_shows_what_is_armed(
    client: Client, queue: str, new_task: NewTask, receiver: Receiver, emulator: Emulator
) -> None:
    """For each queue: waiting, running, done and dead."""
    receiver.behaviour = lambda arrival: Reply(after_seconds=1.0 if arrival.path == "/slow" else 0.0)
    new_task(queue)
    await_counts(emulator, queue, done=1)
    new_task(queue, path="/slow")
    receiver.await_arrivals(2)
    client.pause_queue(name=queue)
    new_task(queue)
    arm(emulator, delivered_twice=3)
    state = requests.get(f"{emulator.control_url}/", timeout=5).json()
    assert state["queues"][queue] == {"waiting": 1, "running": 1, "done": 1, "dead": 0}
    assert state["faults"] == {
        "create_task_unavailable": 0,
        "create_task_hangs": 0,
        "create_task_loses_reply": 0,
        "delivered_twice": 3,
        "dispatch_stopped": False,
    }


@pytest.mark.parametrize(
    "body",
    [
        b'{"create_task_explodes": 1}',
        b'{"delivered_twice": -1}',
        b'{"delivered_twice": true}',
        b'{"delivered_twice": "1"}',
        b'{"dispatch_stopped": 1}',
        b"[]",
        b"{",
        b"",
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(emulator: Emulator, body: bytes) -> None:
    """A test with a typing error fails, and does not pass for want of a fault."""
    answer = requests.post(f"{emulator.control_url}/faults", data=body, timeout=5)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert not any(emulator.faults.armed().values())


def test_an_unknown_path_says_which_there_are(emulator: Emulator) -> None:
    """And the keys are served to those who ask for them in either form."""
    answer = requests.get(f"{emulator.control_url}/fault", timeout=5)
    assert answer.status_code == 404
    assert "POST /faults" in answer.json()["error"]
    (key,) = requests.get(f"{emulator.certs_url}/jwks", timeout=5).json()["keys"]
    assert key["kid"] in requests.get(f"{emulator.certs_url}/certs", timeout=5).json()

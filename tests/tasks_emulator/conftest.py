"""An emulator, the real client, and a worker."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.cloud import tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport

from infra.local.tasks.emulator import Emulator
from infra.local.tasks.rules import Settings
from tests.tasks_emulator.receiver import PATIENCE_SECONDS, Receiver

LOCATION = "projects/demo/locations/europe-west1"

QUICK = Settings(shortest_dispatch_deadline=timedelta(seconds=0.1), first_hold=timedelta(seconds=0.3))
"""As the service, but for what a test would wait long for."""

NewQueue = Callable[..., str]
NewTask = Callable[..., Any]


def connect(address: str) -> tasks_v2.CloudTasksClient:
    """Return the real client, pointed at an emulator."""
    return tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=grpc.insecure_channel(address)))


@pytest.fixture(scope="session")
def shared_emulator() -> Iterator[Emulator]:
    """Return one emulator for all tests that are content with a queue of their own."""
    with Emulator(certs_port=0, control_port=0, settings=QUICK) as running:
        yield running


@pytest.fixture
def emulator(shared_emulator: Emulator) -> Iterator[Emulator]:
    """Return the shared emulator, without faults before and after."""
    yield shared_emulator
    shared_emulator.faults.clear()


@pytest.fixture(scope="session")
def client(shared_emulator: Emulator) -> tasks_v2.CloudTasksClient:
    """Return the real client."""
    return connect(shared_emulator.address)


def await_counts(emulator: Emulator, queue: str, **expected: int) -> None:
    """Wait until a queue has so many tasks."""
    ends_at = time.monotonic() + PATIENCE_SECONDS
    while (counts := emulator.engine.counts()[queue]) | expected != counts:
        assert time.monotonic() < ends_at, f"{counts}, and not {expected}"
        time.sleep(0.01)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return a worker."""
    with Receiver() as running:
        yield running


numbers = itertools.count(1)


@pytest.fixture
def new_queue(client: tasks_v2.CloudTasksClient) -> Iterator[NewQueue]:
    """Return a function that makes a queue; whatever is left in it does not run into the next test."""
    names = []

    def make(*, rate_limits: dict[str, Any] | None = None, **retry_config: Any) -> str:
        retries = {name: timedelta(seconds=value) if _is_time(name) else value for name, value in retry_config.items()}
        name = f"{LOCATION}/queues/queue-{next(numbers)}"
        queue = tasks_v2.Queue({"name": name, "rate_limits": rate_limits or {}, "retry_config": retries})
        client.create_queue(parent=LOCATION, queue=queue)
        names.append(name)
        return name

    yield make
    for name in names:
        with contextlib.suppress(exceptions.NotFound):  # The test was about deleting it.
            client.pause_queue(name=name)
            client.purge_queue(name=name)


@pytest.fixture
def queue(new_queue: NewQueue) -> str:
    """Return a queue that retries at once, nearly."""
    return new_queue(min_backoff=0.05, max_backoff=0.2)


@pytest.fixture
def new_task(client: tasks_v2.CloudTasksClient, receiver: Receiver) -> NewTask:
    """Return a function that creates a task for the worker."""

    def make(queue: str, name: str = "", *, path: str = "/", request: dict[str, Any] | None = None, **task: Any) -> Any:
        if name:
            task["name"] = f"{queue}/tasks/{name}"
        http_request = {"url": receiver.url + path} | (request or {})
        return client.create_task(parent=queue, task=tasks_v2.Task({"http_request": http_request, **task}))

    return make


def _is_time(name: str) -> bool:
    return name in ("min_backoff", "max_backoff", "max_retry_duration")

"""The real client against a Cloud Tasks of our own: what a task carries, and that no trouble of the queue gets out."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
import pytest
from google.cloud import tasks_v2

from shared import log
from shared.tasks import CloudTasks, Task, task_name

QUEUE: Final = "projects/p/locations/l/queues/charges"
TIMEOUT_SECONDS: Final = 0.5
NOON: Final = datetime(2026, 11, 24, 12, tzinfo=UTC)
TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
TASK: Final = Task(name="c1-g1-e1", url="https://charge-x.run.app/some/c1/deliver", body=b'{"enqueued_at": 1.5}')


class Queue:
    """The service, by a script: `behave` is called with each request's context."""

    def __init__(self) -> None:
        self.created: list[Any] = []
        self.behave: Callable[[grpc.ServicerContext], None] = lambda _: None
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4))
        create = grpc.unary_unary_rpc_method_handler(
            self._create,
            request_deserializer=tasks_v2.CreateTaskRequest.deserialize,
            response_serializer=tasks_v2.Task.serialize,
        )
        service = grpc.method_handlers_generic_handler("google.cloud.tasks.v2.CloudTasks", {"CreateTask": create})
        self._server.add_generic_rpc_handlers((service,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _create(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.created.append(request)
        self.behave(context)
        return request.task

    def close(self) -> None:
        """End it."""
        self._server.stop(None).wait()


@pytest.fixture
def queue() -> Iterator[Queue]:
    """A queue that takes everything."""
    running = Queue()
    yield running
    running.close()


def tasks(address: str, *, invoker: str | None = None) -> CloudTasks:
    """The adapter, pointed at it."""
    return CloudTasks(
        project="p",
        location="l",
        queue="charges",
        invoker=invoker,
        emulator_host=address,
        dispatch_deadline=timedelta(seconds=105),
        timeout_seconds=TIMEOUT_SECONDS,
    )


def test_a_task_says_where_to_deliver_what(queue: Queue) -> None:
    """By its own name, which is what makes a second one of the same epoch impossible."""
    assert tasks(queue.address).create(TASK)

    (request,) = queue.created
    assert request.parent == QUEUE
    assert request.task.name == f"{QUEUE}/tasks/c1-g1-e1"
    assert request.task.dispatch_deadline == timedelta(seconds=105)
    assert "schedule_time" not in request.task
    sent = request.task.http_request
    assert (sent.http_method, sent.url, sent.body) == (tasks_v2.HttpMethod.POST, TASK.url, TASK.body)
    assert dict(sent.headers) == {"Content-Type": "application/json"}
    assert "oidc_token" not in sent


def test_a_task_may_wait_for_its_time(queue: Queue) -> None:
    """A retry lies ahead."""
    tasks(queue.address).create(Task(name="n", url=TASK.url, body=b"", at=NOON, headers={"X-Reason": "retry"}))

    (request,) = queue.created
    assert request.task.schedule_time == NOON
    assert dict(request.task.http_request.headers) == {"X-Reason": "retry"}


@pytest.mark.parametrize(
    ("header", "passed_on"),
    [
        ({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}, f"00-{TRACE}-b7ad6b7169203331-01"),
        ({"traceparent": f"00-{TRACE}-b7ad6b7169203331-00"}, f"00-{TRACE}-b7ad6b7169203331-00"),
        ({"traceparent": f"cc-{TRACE}-b7ad6b7169203331-01-of another version"}, f"00-{TRACE}-b7ad6b7169203331-01"),
        ({"X-Cloud-Trace-Context": f"{TRACE}/10;o=1"}, f"00-{TRACE}-000000000000000a-01"),
        ({"X-Cloud-Trace-Context": TRACE}, None),
        ({"traceparent": f"00-{TRACE}-{'0' * 16}-01"}, None),
        ({"traceparent": f"00-{'0' * 32}-b7ad6b7169203331-01"}, None),
        ({"traceparent": "00-\r\nX-Evil: 1"}, None),
        ({}, None),
    ],
)
def test_a_task_belongs_to_the_trace_of_the_request_that_made_it(
    queue: Queue, header: dict[str, str], passed_on: str | None
) -> None:
    """Written anew from what was read, and nothing where nothing was: so logs of a redelivery are found with it."""
    with log.request(header):
        assert tasks(queue.address).create(TASK)
        made_in = log.trace()

    sent = dict(queue.created[0].task.http_request.headers)
    assert sent.pop("traceparent", None) == passed_on
    assert sent == {"Content-Type": "application/json"}
    if passed_on is not None:
        with log.request({"traceparent": passed_on}):
            assert log.trace() == made_in


def test_a_task_proves_who_sends_it_to_the_service_that_it_is_for(queue: Queue) -> None:
    """The audience is the service's own address, whatever the path: that is what Cloud Run compares."""
    tasks(queue.address, invoker="tasks@p.iam.gserviceaccount.com").create(TASK)

    token = queue.created[0].task.http_request.oidc_token
    assert token.service_account_email == "tasks@p.iam.gserviceaccount.com"
    assert token.audience == "https://charge-x.run.app/"


def abort(code: grpc.StatusCode) -> Callable[[grpc.ServicerContext], None]:
    """Refuse a call."""

    def refuse(context: grpc.ServicerContext) -> None:
        context.abort(code, "refused")

    return refuse


def test_a_task_that_exists_is_as_good_as_one_that_was_made(queue: Queue) -> None:
    """It was made by a call whose answer got lost, or by another delivery."""
    queue.behave = abort(grpc.StatusCode.ALREADY_EXISTS)

    assert tasks(queue.address).create(TASK)


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.INTERNAL,
    ],
    ids=lambda code: code.name,
)
def test_a_queue_that_refuses_is_logged_and_never_raises(
    queue: Queue, code: grpc.StatusCode, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked once: the sweep comes by later anyway."""
    queue.behave = abort(code)

    assert not tasks(queue.address).create(TASK)

    assert len(queue.created) == 1
    assert '"severity": "ERROR"' in capsys.readouterr().out


def test_a_queue_that_hangs_is_given_up_in_time(queue: Queue) -> None:
    """A charge does not wait for its own safety net."""
    held = threading.Event()

    def hang(_: grpc.ServicerContext) -> None:
        held.wait()

    queue.behave = hang
    began = time.monotonic()

    made = tasks(queue.address).create(TASK)

    waited_seconds = time.monotonic() - began
    held.set()
    assert not made
    assert waited_seconds < TIMEOUT_SECONDS + 1


def test_a_queue_that_is_not_there_is_given_up_in_time() -> None:
    """Nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        began = time.monotonic()

        assert not tasks(f"127.0.0.1:{closed.getsockname()[1]}").create(TASK)

        assert time.monotonic() - began < TIMEOUT_SECONDS + 1


def test_a_task_that_cannot_be_written_never_raises(queue: Queue) -> None:
    """A bug of ours costs the task, and not the charge."""
    assert not tasks(queue.address).create(Task(name="n", url=7, body=b""))  # type: ignore[arg-type]
    assert queue.created == []


def test_threads_share_one_connection(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many first requests at once make one client."""
    opened = []
    real = grpc.insecure_channel

    def slow(*args: Any, **options: Any) -> grpc.Channel:
        opened.append(args)
        time.sleep(0.05)
        return real(*args, **options)

    monkeypatch.setattr(grpc, "insecure_channel", slow)
    shared = tasks(queue.address)

    with ThreadPoolExecutor(max_workers=8) as pool:
        made = list(pool.map(lambda number: shared.create(Task(name=f"t{number}", url=TASK.url, body=b"")), range(16)))

    assert all(made)
    assert len({request.task.name for request in queue.created}) == 16
    assert len(opened) == 1


def test_a_name_begins_with_the_digest_and_changes_with_the_epoch() -> None:
    """A hash first spreads the names; an old epoch's name may stay blocked for a day."""
    assert task_name("0a1b", 1, 2) == "0a1b-g1-e2"
    assert len({task_name("0a1b", generation, epoch) for generation in (1, 2) for epoch in (1, 2)}) == 4


def test_a_process_that_makes_no_task_does_not_pay_for_the_client() -> None:
    """Half a second of a cold start."""
    script = "import sys, shared.tasks; sys.exit('google.cloud.tasks_v2' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_death_is_not_taken_for_a_queue_in_trouble(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is being ended ends."""
    monkeypatch.setattr(CloudTasks, "_create", lambda *_: sys.exit())

    with contextlib.closing(queue), pytest.raises(SystemExit):
        tasks(queue.address).create(TASK)

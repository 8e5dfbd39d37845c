"""The program itself: its command line, how it ends, and what it still knows when it is started again."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import google.auth.transport.requests
import pytest
import requests
from google.api_core import exceptions
from google.cloud import tasks_v2
from google.oauth2 import id_token

from infra.local.tasks.__main__ import main
from infra.local.tasks.declaration import parse_queue
from infra.local.tasks.emulator import CannotStart, Emulator
from tests.tasks_emulator.conftest import LOCATION, NewQueue, NewTask, connect
from tests.tasks_emulator.receiver import PATIENCE_SECONDS, Receiver, Reply

QUEUE = f"{LOCATION}/queues/charges"
READY = re.compile(r"Cloud Tasks emulator ready on (\S+?)(?:, certs (\S+?))?(?:, control (\S+?))?\n")


class Program:
    """The program, running."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infra.local.tasks", *arguments], stdout=subprocess.PIPE, stderr=None, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        ready = READY.fullmatch(line)
        assert ready, line
        self.address, self.certs_url, self.control_url = ready.groups()
        self.client = connect(self.address)

    def end(self, number: signal.Signals) -> int:
        """Send it a signal, and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def create(self, receiver: Receiver, name: str, **fields: Any) -> None:
        """Create a task in its queue."""
        task = {"name": f"{QUEUE}/tasks/{name}", "http_request": {"url": receiver.url}} | fields
        self.client.create_task(parent=QUEUE, task=tasks_v2.Task(task))


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts the program on one database; in the end none is left running."""
    with ExitStack() as started:

        def run(*arguments: str) -> Program:
            program = Program("--port=0", f"--database={tmp_path / 'tasks.db'}", f"--queue={QUEUE}", *arguments)
            started.callback(_kill, program.process)
            return program

        yield run


def _kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_that_was_acknowledged_is_lost(start: Start, receiver: Receiver, number: signal.Signals) -> None:
    """Ended in order or killed: queues, their settings and state, waiting tasks, counts and names are all there."""
    program = start()
    program.create(receiver, "done")
    receiver.await_arrivals(1)
    paused = program.client.pause_queue(name=QUEUE)
    for count in range(20):
        program.create(receiver, f"waits-{count}")
    program.client.delete_task(name=f"{QUEUE}/tasks/waits-7")
    program.end(number)

    again = start()
    assert again.client.get_queue(name=QUEUE) == paused
    waiting = {task.name.rpartition("/")[2] for task in again.client.list_tasks(parent=QUEUE)}
    assert waiting == {f"waits-{count}" for count in range(20) if count != 7}
    for name in ("done", "waits-0", "waits-7"):
        with pytest.raises(exceptions.AlreadyExists):
            again.create(receiver, name)
    again.client.resume_queue(name=QUEUE)
    assert {arrival.task for arrival in receiver.await_arrivals(20)} == waiting | {"done"}


def test_a_task_that_was_on_its_way_when_the_program_was_killed_comes_again(start: Start, receiver: Receiver) -> None:
    """Twice, that is: its success was never recorded."""
    receiver.answers(Reply(after_seconds=0.5))
    program = start()
    program.create(receiver, "order-1")
    receiver.await_arrivals(1)
    program.end(signal.SIGKILL)
    start()
    _, again = receiver.await_arrivals(2)
    assert again.headers["X-CloudTasks-TaskRetryCount"] == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_when_told_to(start: Start, receiver: Receiver, number: signal.Signals) -> None:
    """Though a worker hangs and a caller waits. What was on its way comes again next time."""
    receiver.answers(Reply(after_seconds=5), Reply())
    program = start("--certs-port=0", "--control-port=0")
    program.create(receiver, "order-1")
    receiver.await_arrivals(1)
    requests.post(f"{program.control_url}/faults", json={"create_task_hangs": 1}, timeout=5)
    task = tasks_v2.Task({"http_request": {"url": receiver.url}})
    with suppress(exceptions.DeadlineExceeded):
        program.client.create_task(parent=QUEUE, task=task, timeout=0.1)
    before = time.monotonic()
    assert program.end(number) == 0
    assert time.monotonic() - before < 1.5
    start()
    assert receiver.await_arrivals(2)[1].task == "order-1"


def test_a_terminal_and_a_parent_may_both_end_it(start: Start) -> None:
    """Two signals are one wish."""
    program = start()
    program.process.send_signal(signal.SIGINT)
    assert program.end(signal.SIGTERM) == 0


def test_tokens_verify_after_a_restart(start: Start, receiver: Receiver) -> None:
    """The key is kept: what was signed before is good after."""
    program = start()
    request = {"url": receiver.url, "oidc_token": {"service_account_email": "a@b", "audience": "charge"}}
    program.create(receiver, "order-1", http_request=request)
    (arrival,) = receiver.await_arrivals(1)
    program.end(signal.SIGKILL)
    again = start("--certs-port=0")
    token = arrival.headers["Authorization"].removeprefix("Bearer ")
    fetch = google.auth.transport.requests.Request()
    assert id_token.verify_token(token, fetch, "charge", f"{again.certs_url}/certs")["email"] == "a@b"


def test_a_queue_is_declared_on_the_command_line(start: Start) -> None:
    """Created at the first start; changed at the next in what is said, and in nothing else."""
    program = start(f"--queue={LOCATION}/queues/notify,max_attempts=5,min_backoff=0.25,max_doublings=0")
    queue = program.client.get_queue(name=f"{LOCATION}/queues/notify")
    assert (queue.retry_config.max_attempts, queue.retry_config.max_doublings) == (5, 0)
    assert queue.retry_config.min_backoff == timedelta(seconds=0.25)
    program.end(signal.SIGTERM)
    again = start(f"--queue={LOCATION}/queues/notify,max_dispatches_per_second=0.5,max_concurrent_dispatches=2")
    changed = again.client.get_queue(name=f"{LOCATION}/queues/notify")
    assert changed.retry_config == queue.retry_config
    assert (changed.rate_limits.max_dispatches_per_second, changed.rate_limits.max_concurrent_dispatches) == (0.5, 2)


@pytest.mark.parametrize("option", ["max_atempts=5", "max_attempts", "max_attempts=many", "min_backoff=soon"])
def test_a_queue_that_is_declared_wrongly_is_refused(option: str) -> None:
    """A typing error is no default."""
    with pytest.raises(ValueError, match=r".+"):
        parse_queue(f"{QUEUE},{option}")


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that starts the program, which ends with status 2, and returns its one line of complaint."""

    def refuse(*arguments: str) -> str:
        assert main(["--port=0", *arguments]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        return said.err

    return refuse


@pytest.fixture
def taken_port() -> Iterator[int]:
    """Return a port on which somebody else listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_ends_the_program_with_status_2_and_one_line(taken_port: int) -> None:
    """GRPC would have more to say, or share the port and take half of the calls."""
    command = [sys.executable, "-m", "infra.local.tasks", f"--port={taken_port}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"cannot start: {taken_message(taken_port)}\n"


@pytest.mark.parametrize("option", ["--port", "--certs-port", "--control-port"])
def test_every_port_that_is_taken_is_named(complaint: Callable[..., str], taken_port: int, option: str) -> None:
    """So that one knows which to change."""
    assert complaint(f"{option}={taken_port}") == f"cannot start: {taken_message(taken_port)}\n"


def test_a_port_of_another_emulator_is_taken() -> None:
    """Two on one port would each get half of the calls."""
    with Emulator() as one, pytest.raises(CannotStart, match="is taken"):
        Emulator(port=int(one.address.rpartition(":")[2]))


def test_a_database_has_one_emulator(complaint: Callable[..., str], tmp_path: Path) -> None:
    """Two would deliver everything twice."""
    database = str(tmp_path / "tasks.db")
    with Emulator(database=database):
        assert "is another emulator using it?" in complaint(f"--database={database}")
    Emulator(database=database).stop()


def test_an_impossible_queue_is_one_clear_message(complaint: Callable[..., str]) -> None:
    """The service would refuse it, too."""
    assert "cannot start: the name 'charges' is not" in complaint("--queue=charges")


def taken_message(port: int) -> str:
    """Return what is said of a port that is taken."""
    return f"port 127.0.0.1:{port} is taken: end what listens there, or choose another port"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.com", ""])  # noqa: S104 - it is refused.
def test_it_listens_on_the_loopback_interface_only(host: str) -> None:
    """Whoever can reach it can make it call anything."""
    with pytest.raises(CannotStart, match="loopback"):
        Emulator(host=host)


def test_in_memory_it_keeps_nothing_and_stops_twice_in_peace(receiver: Receiver) -> None:
    """Two may run side by side in one process."""
    with Emulator() as one, Emulator() as other:
        connect(one.address).create_queue(parent=LOCATION, queue=tasks_v2.Queue(name=QUEUE))
        with pytest.raises(exceptions.NotFound):
            connect(other.address).get_queue(name=QUEUE)
        one.stop()
    assert receiver.arrivals == []


def test_many_creators_at_once_make_one_task_of_one_name(
    new_queue: NewQueue, new_task: NewTask, receiver: Receiver
) -> None:
    """One is acknowledged, the others are told that it exists."""
    queue = new_queue()
    with futures.ThreadPoolExecutor(8) as pool:
        made = [pool.submit(new_task, queue, "order-1") for _ in range(16)]
    errors = [future.exception() for future in made]
    assert errors.count(None) == 1
    assert all(isinstance(error, exceptions.AlreadyExists) for error in errors if error)
    receiver.await_arrivals(1)

"""How a task reaches its worker, and what becomes of it."""

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import google.auth.transport.requests
import pytest
from google.api_core import exceptions
from google.auth import jwt
from google.cloud import tasks_v2
from google.oauth2 import id_token

from infra.local.tasks.emulator import Emulator
from tests.tasks_emulator.conftest import NewQueue, NewTask, await_counts
from tests.tasks_emulator.receiver import PATIENCE_SECONDS, Receiver, Reply

Client = tasks_v2.CloudTasksClient
SLACK_SECONDS = 0.3  # A busy machine is late, and never early: what must be exact is tested with a clock of its own.


def test_a_task_arrives_as_it_was_created(queue: str, new_task: NewTask, receiver: Receiver) -> None:
    """Method, path with query, headers, body."""
    request = {
        "http_method": tasks_v2.HttpMethod.PUT,
        "body": b"\x00\xff{}",
        "headers": {"Content-Type": "text/x", "X-Own": "é"},
    }
    new_task(queue, path="/charges/1?a=b%20c&d=%C3%A9;e", request=request)
    (arrival,) = receiver.await_arrivals(1)
    assert (arrival.method, arrival.path) == ("PUT", "/charges/1?a=b%20c&d=%C3%A9;e")
    assert arrival.body == b"\x00\xff{}"
    assert arrival.headers["Content-Type"] == "text/x"
    assert arrival.headers["X-Own"].encode("latin-1").decode() == "é"


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_every_method_is_delivered(queue: str, new_task: NewTask, receiver: Receiver, method: str) -> None:
    """With what the service sets, and no content type of its own making."""
    new_task(queue, request={"http_method": method})
    (arrival,) = receiver.await_arrivals(1)
    assert arrival.method == method
    assert arrival.headers["User-Agent"] == "Google-Cloud-Tasks"
    assert "Content-Type" not in arrival.headers


def test_headers_that_belong_to_the_service_are_replaced_or_dropped(
    queue: str, new_task: NewTask, receiver: Receiver
) -> None:
    """A creator cannot make a task look like another."""
    forged = ["Host", "user-agent", "Content-Length", "x-google-foo", "X-AppEngine-TaskName", "x-cloudtasks-taskname"]
    new_task(queue, "order-1", request={"headers": dict.fromkeys(forged, "999")})
    (arrival,) = receiver.await_arrivals(1)
    assert "999" not in arrival.headers.values()
    assert arrival.task == "order-1"
    assert arrival.headers["Host"] == receiver.url.removeprefix("http://")


def test_retries_tell_the_worker_what_happened_before(queue: str, new_task: NewTask, receiver: Receiver) -> None:
    """5xx and silence count as retries, and not as executions."""
    receiver.answers(500, 409, 503, Reply(None), 418, 204)
    task = new_task(queue, "order-1")
    arrivals = receiver.await_arrivals(6)

    def told(header: str) -> list[str | None]:
        return [arrival.headers.get(f"X-CloudTasks-{header}") for arrival in arrivals]

    assert told("QueueName") == [queue.rpartition("/")[2]] * 6
    assert told("TaskName") == ["order-1"] * 6
    assert told("TaskRetryCount") == ["0", "1", "2", "3", "4", "5"]
    assert told("TaskExecutionCount") == ["0", "0", "1", "1", "1", "2"]
    assert told("TaskPreviousResponse") == [None, "500", "409", "503", None, "418"]
    assert told("TaskRetryReason") == [
        None,
        "INTERNAL: HTTP status code 500",
        "ABORTED: HTTP status code 409",
        "UNAVAILABLE: HTTP status code 503",
        "UNAVAILABLE: no answer",
        "UNKNOWN: HTTP status code 418",
    ]
    etas = [float(eta or 0) for eta in told("TaskETA")]
    assert etas[0] == pytest.approx(task.schedule_time.timestamp(), abs=1e-5)
    assert all(eta <= arrival.at for eta, arrival in zip(etas, arrivals, strict=True))
    assert etas == sorted(set(etas))


def test_a_task_shows_its_attempts(
    client: Client, new_queue: NewQueue, new_task: NewTask, receiver: Receiver, emulator: Emulator
) -> None:
    """When the first and the last were, how the last ended, and when the next is."""
    queue = new_queue(min_backoff=60)
    receiver.answers(404)
    name = new_task(queue).name
    receiver.await_arrivals(1)
    await_counts(emulator, queue, waiting=1)
    task = client.get_task(name=name)
    assert (task.dispatch_count, task.response_count) == (1, 1)
    assert task.first_attempt.dispatch_time == task.last_attempt.dispatch_time
    assert "response_time" not in task.first_attempt
    assert (task.last_attempt.response_status.code, task.last_attempt.response_status.message) == (
        5,
        "NOT_FOUND: HTTP status code 404",
    )
    assert task.schedule_time == task.last_attempt.response_time + timedelta(seconds=60)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_every_2xx_is_success(
    queue: str, new_task: NewTask, receiver: Receiver, emulator: Emulator, status: int
) -> None:
    """It is not delivered again."""
    receiver.answers(status)
    new_task(queue)
    await_counts(emulator, queue, done=1, waiting=0, running=0)
    assert len(receiver.arrivals) == 1


@pytest.mark.parametrize(
    "reply", [Reply(300), Reply(304), Reply(400), Reply(404), Reply(429), Reply(500), Reply(None), Reply(cut_off=True)]
)
def test_everything_else_is_retried(
    queue: str, new_task: NewTask, receiver: Receiver, emulator: Emulator, reply: Reply
) -> None:
    """No answer and half an answer, too."""
    receiver.answers(reply, 200)
    new_task(queue)
    receiver.await_arrivals(2)
    await_counts(emulator, queue, done=1, waiting=0, dead=0)
    assert len(receiver.arrivals) == 2


def test_a_worker_that_is_not_there_is_tried_until_it_is(
    client: Client, queue: str, receiver: Receiver, emulator: Emulator
) -> None:
    """Refused connections are failures like others."""
    client.create_task(parent=queue, task=tasks_v2.Task({"http_request": {"url": "http://127.0.0.1:1/"}}))
    ends_at = time.monotonic() + PATIENCE_SECONDS
    while (task := next(iter(client.list_tasks(parent=queue)))).dispatch_count < 3:
        assert time.monotonic() < ends_at, f"{task.dispatch_count} attempts"
    assert task.response_count == 0
    assert receiver.arrivals == []
    assert emulator.engine.counts()[queue]["dead"] == 0


def test_a_task_is_given_up_after_its_last_attempt(
    client: Client, new_queue: NewQueue, new_task: NewTask, receiver: Receiver, emulator: Emulator
) -> None:
    """It is deleted, and no dead letter tells of it."""
    queue = new_queue(min_backoff=0.01, max_attempts=3)
    receiver.answers(500)
    name = new_task(queue).name
    await_counts(emulator, queue, dead=1, waiting=0, running=0)
    assert len(receiver.arrivals) == 3
    with pytest.raises(exceptions.NotFound):
        client.get_task(name=name)


def test_unlimited_attempts_are_unlimited(new_queue: NewQueue, new_task: NewTask, receiver: Receiver) -> None:
    """-1 is not one."""
    queue = new_queue(min_backoff=0.01, max_backoff=0.01, max_attempts=-1)
    receiver.answers(*[500] * 30, 200)
    new_task(queue)
    assert len(receiver.await_arrivals(31)) == 31


def test_waits_double_then_grow_then_stay(new_queue: NewQueue, new_task: NewTask, receiver: Receiver) -> None:
    """0.1 s, 0.5 s and one doubling: 0.1, 0.2, 0.4, 0.5."""
    queue = new_queue(min_backoff=0.1, max_backoff=0.5, max_doublings=1)
    receiver.answers(500, 500, 500, 500, 200)
    new_task(queue)
    arrivals = receiver.await_arrivals(5)
    gaps = [later.at - earlier.at for earlier, later in pairwise(arrivals)]
    for gap, wait in zip(gaps, [0.1, 0.2, 0.4, 0.5], strict=True):
        assert wait <= gap < wait + SLACK_SECONDS


def test_a_task_comes_at_its_time(queue: str, new_task: NewTask, receiver: Receiver) -> None:
    """Not at the next tick of some clock, and not before."""
    at = datetime.now(UTC) + timedelta(seconds=0.437)
    new_task(queue, schedule_time=at)
    (arrival,) = receiver.await_arrivals(1)
    assert 0 <= arrival.at - at.timestamp() < SLACK_SECONDS


def test_redirects_are_followed_and_not_counted(
    queue: str, new_task: NewTask, receiver: Receiver, emulator: Emulator
) -> None:
    """307 repeats the request, 302 only reads; the last answer is the answer."""
    script = {
        "/": Reply(307, {"Location": "/moved"}),
        "/moved": Reply(302, {"Location": f"{receiver.url}/found?x=1"}),
        "/found?x=1": Reply(200),
    }
    receiver.behaviour = lambda arrival: script[arrival.path]
    new_task(queue, request={"body": b"once"})
    await_counts(emulator, queue, done=1)
    assert [(arrival.method, arrival.path, arrival.body) for arrival in receiver.arrivals] == [
        ("POST", "/", b"once"),
        ("POST", "/moved", b"once"),
        ("GET", "/found?x=1", b""),
    ]
    assert {arrival.headers["X-CloudTasks-TaskRetryCount"] for arrival in receiver.arrivals} == {"0"}


def test_redirects_in_a_circle_are_one_failure(
    client: Client, new_queue: NewQueue, new_task: NewTask, receiver: Receiver, emulator: Emulator
) -> None:
    """They end."""
    queue = new_queue(min_backoff=60)
    receiver.answers(Reply(307, {"Location": "/"}))
    name = new_task(queue).name
    await_counts(emulator, queue, waiting=1)
    assert client.get_task(name=name).dispatch_count == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(queue: str, new_task: NewTask, receiver: Receiver, form: str) -> None:
    """Though the queue would try again at once. A date has whole seconds only."""
    until = datetime.now(UTC) + timedelta(seconds=2)
    header = "1" if form == "seconds" else format_datetime(until, usegmt=True)
    receiver.answers(Reply(409, {"Retry-After": header}), 200)
    new_task(queue)
    first, second = receiver.await_arrivals(2)
    wait = 1.0 if form == "seconds" else until.replace(microsecond=0).timestamp() - first.at
    assert wait <= second.at - first.at < wait + SLACK_SECONDS


def test_past_the_deadline_the_task_is_retried_while_the_worker_runs_on(
    client: Client, new_queue: NewQueue, new_task: NewTask, receiver: Receiver, emulator: Emulator
) -> None:
    """Two deliveries of one task are under way at the same time; the late answer of the first is nobody's."""
    queue = new_queue(min_backoff=0.05)
    receiver.answers(Reply(200, after_seconds=0.8), Reply(418))
    name = new_task(queue, dispatch_deadline=timedelta(seconds=0.3)).name
    first, second, *_ = receiver.await_arrivals(2)
    assert 0.3 <= second.at - first.at < 0.8
    assert receiver.most_at_once == 2
    assert second.headers["X-CloudTasks-TaskRetryReason"] == "DEADLINE_EXCEEDED: no answer"
    assert second.headers["X-CloudTasks-TaskExecutionCount"] == "0"
    receiver.await_finished(first)
    time.sleep(0.1)  # Were its answer listened to, the task would be gone by now.
    assert client.get_task(name=name).response_count >= 1
    assert emulator.engine.counts()[queue]["done"] == 0


def test_a_task_that_is_run_ignores_its_schedule(
    client: Client, queue: str, new_task: NewTask, receiver: Receiver, emulator: Emulator
) -> None:
    """And is done then."""
    task = new_task(queue, schedule_time=datetime.now(UTC) + timedelta(days=1))
    running = client.run_task(name=task.name)
    assert running.dispatch_count == 1
    receiver.await_arrivals(1)
    await_counts(emulator, queue, done=1, waiting=0)


def test_a_token_verifies_against_the_served_keys(
    queue: str, new_task: NewTask, receiver: Receiver, emulator: Emulator
) -> None:
    """By Google's own library, as a worker would do it."""
    email = "invoker@demo.iam.gserviceaccount.com"
    new_task(queue, path="/charges", request={"oidc_token": {"service_account_email": email}})
    (arrival,) = receiver.await_arrivals(1)
    token = arrival.headers["Authorization"].removeprefix("Bearer ")
    claims = id_token.verify_token(
        token,
        google.auth.transport.requests.Request(),
        audience=f"{receiver.url}/charges",
        certs_url=f"{emulator.certs_url}/certs",
    )
    assert claims["email"] == email
    assert claims["email_verified"] is True
    assert claims["iss"] == "https://accounts.google.com"
    assert claims["sub"].isdigit()
    assert claims["exp"] - claims["iat"] == 3600
    assert jwt.decode_header(token)["alg"] == "RS256"  # type: ignore[no-untyped-call]


def test_a_token_is_for_the_audience_that_was_asked_for(
    queue: str, new_task: NewTask, receiver: Receiver, emulator: Emulator
) -> None:
    """And it replaces what the creator put in its place."""
    oidc_token = {"service_account_email": "a@b", "audience": "https://charge.example"}
    new_task(queue, request={"oidc_token": oidc_token, "headers": {"authorization": "Basic forged"}})
    (arrival,) = receiver.await_arrivals(1)
    token = arrival.headers["Authorization"].removeprefix("Bearer ")
    request = google.auth.transport.requests.Request()
    certs_url = f"{emulator.certs_url}/certs"
    verify = id_token.verify_token
    assert verify(token, request, "https://charge.example", certs_url)
    with pytest.raises(ValueError, match="audience"):
        verify(token, request, "https://other.example", certs_url)


def test_a_rate_below_one_a_second_is_kept(new_queue: NewQueue, new_task: NewTask, receiver: Receiver) -> None:
    """One at once, and the next when its time has come."""
    queue = new_queue(rate_limits={"max_dispatches_per_second": 0.8})
    for _ in range(2):
        new_task(queue)
    first, second = receiver.await_arrivals(2)
    assert 1.15 <= second.at - first.at < 1.25 + SLACK_SECONDS


def test_a_rate_is_kept_over_many_tasks(new_queue: NewQueue, new_task: NewTask, receiver: Receiver) -> None:
    """A burst of ten, then ten a second."""
    queue = new_queue(rate_limits={"max_dispatches_per_second": 10})
    for _ in range(20):
        new_task(queue)
    arrivals = receiver.await_arrivals(20)
    assert 0.85 <= arrivals[-1].at - arrivals[0].at < 1.0 + SLACK_SECONDS


def test_no_more_run_at_once_than_the_queue_allows(new_queue: NewQueue, new_task: NewTask, receiver: Receiver) -> None:
    """And as many as it does."""
    queue = new_queue(rate_limits={"max_concurrent_dispatches": 3})
    receiver.answers(Reply(after_seconds=0.05))
    for _ in range(12):
        new_task(queue)
    receiver.await_arrivals(12)
    assert receiver.most_at_once == 3


def test_a_worker_that_hangs_holds_up_nobody_else(
    queue: str, new_queue: NewQueue, new_task: NewTask, receiver: Receiver
) -> None:
    """Neither its own queue nor another."""
    receiver.behaviour = lambda arrival: Reply(after_seconds=2.0 if arrival.path == "/hangs" else 0.0)
    for _ in range(5):
        new_task(queue, path="/hangs")
    receiver.await_arrivals(5)
    before = time.monotonic()
    new_task(queue)
    new_task(new_queue())
    receiver.await_arrivals(7)
    assert time.monotonic() - before < 1.5


@pytest.mark.parametrize("status", [429, 503])
def test_a_worker_in_distress_slows_its_whole_queue_and_no_other(
    emulator: Emulator, new_queue: NewQueue, new_task: NewTask, receiver: Receiver, status: int
) -> None:
    """Every other task of the queue waits; once one succeeds, they all come."""
    queue = new_queue(min_backoff=0.05)
    receiver.answers(status, 200)
    new_task(queue, "fails-first")
    receiver.await_arrivals(1)
    await_counts(emulator, queue, waiting=1)
    for number in range(3):
        new_task(queue, f"same-queue-{number}")
    new_task(new_queue(), "other-queue")
    first, other, *held = receiver.await_arrivals(6)
    assert other.task == "other-queue"
    assert all(arrival.at - first.at >= 0.3 for arrival in held)
    assert held[-1].at - held[0].at < SLACK_SECONDS


def test_one_delivery_at_a_time_tries_a_worker_in_distress(
    client: Client, queue: str, new_task: NewTask, receiver: Receiver, emulator: Emulator
) -> None:
    """While it answers 503 it is asked ever more seldom, whatever waits."""
    receiver.answers(503, 503, 503, 200)
    client.pause_queue(name=queue)
    for _ in range(4):
        new_task(queue, schedule_time=datetime.now(UTC))
    new_task(queue, "probe")
    client.run_task(name=f"{queue}/tasks/probe")
    receiver.await_arrivals(1)
    await_counts(emulator, queue, waiting=5)
    client.resume_queue(name=queue)
    arrivals = receiver.await_arrivals(4)
    gaps = [later.at - earlier.at for earlier, later in pairwise(arrivals[:4])]
    for gap, hold in zip(gaps, [0.3, 0.6, 1.2], strict=True):
        assert hold <= gap < hold + SLACK_SECONDS


def test_every_task_of_many_is_delivered_once(
    new_queue: NewQueue, new_task: NewTask, receiver: Receiver, emulator: Emulator
) -> None:
    """Without faults, at least once is exactly once."""
    queue = new_queue()
    names = [new_task(queue).name.rpartition("/")[2] for _ in range(150)]
    await_counts(emulator, queue, done=150, waiting=0, running=0)
    assert Counter(arrival.task for arrival in receiver.arrivals) == Counter(names)

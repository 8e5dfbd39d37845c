"""Tasks at rest, through the real client."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import tasks_v2

from tests.tasks_emulator.conftest import LOCATION, NewQueue, NewTask
from tests.tasks_emulator.receiver import Receiver

Client = tasks_v2.CloudTasksClient
View = tasks_v2.Task.View


@pytest.fixture
def paused(client: Client, queue: str) -> str:
    """Return a queue in which tasks stay."""
    client.pause_queue(name=queue)
    return queue


def test_a_new_task_has_the_defaults_of_the_service(client: Client, paused: str, new_task: NewTask) -> None:
    """POST, 10 minutes, due now, never dispatched."""
    before = datetime.now(UTC)
    task = new_task(paused, "order-1")
    assert task.name == f"{paused}/tasks/order-1"
    assert task.http_request.http_method == tasks_v2.HttpMethod.POST
    assert task.dispatch_deadline == timedelta(minutes=10)
    assert before <= task.schedule_time <= datetime.now(UTC)
    assert task.create_time == before.replace(microsecond=0)
    assert (task.dispatch_count, task.response_count) == (0, 0)
    assert "first_attempt" not in task
    assert client.get_task(name=task.name) == task


def test_a_schedule_in_the_past_is_now(paused: str, new_task: NewTask) -> None:
    """As the service sets it."""
    before = datetime.now(UTC)
    assert new_task(paused, schedule_time=before - timedelta(days=9)).schedule_time >= before


def test_an_unnamed_task_gets_a_name_of_its_own(paused: str, new_task: NewTask) -> None:
    """And so is never a duplicate."""
    assert len({new_task(paused).name for _ in range(20)}) == 20


def test_a_name_is_taken_while_the_task_waits(paused: str, new_task: NewTask) -> None:
    """The second creation is refused."""
    new_task(paused, "order-1")
    with pytest.raises(exceptions.AlreadyExists):
        new_task(paused, "order-1")


def test_a_name_stays_taken_after_the_task_is_done(
    client: Client, queue: str, new_task: NewTask, receiver: Receiver
) -> None:
    """It runs once, though it is created again and again."""
    name = new_task(queue, "order-1").name
    receiver.await_arrivals(1)
    _await_gone(client, name)
    for _ in range(3):
        with pytest.raises(exceptions.AlreadyExists):
            new_task(queue, "order-1")
    assert len(receiver.arrivals) == 1


def test_a_name_stays_taken_after_the_task_is_deleted(client: Client, paused: str, new_task: NewTask) -> None:
    """It cannot be deleted twice, either."""
    name = new_task(paused, "order-1").name
    client.delete_task(name=name)
    with pytest.raises(exceptions.AlreadyExists):
        new_task(paused, "order-1")
    with pytest.raises(exceptions.NotFound):
        client.delete_task(name=name)


def test_the_same_name_in_another_queue_is_another_task(
    client: Client, paused: str, new_queue: NewQueue, new_task: NewTask
) -> None:
    """Names are full names."""
    other = new_queue()
    client.pause_queue(name=other)
    assert new_task(paused, "order-1").name != new_task(other, "order-1").name


@pytest.mark.parametrize(
    "name",
    [
        "order-1",
        "{queue}/tasks/",
        "{queue}/tasks/a.b",
        "{queue}/tasks/é",
        "{queue}/tasks/" + "x" * 501,
        "{queue}/tasks/a/b",
        f"{LOCATION}/queues/other/tasks/a",
    ],
)
def test_a_task_with_an_impossible_name_is_refused(client: Client, paused: str, name: str) -> None:
    """Or with that of another queue."""
    task = tasks_v2.Task({"name": name.format(queue=paused), "http_request": {"url": "http://127.0.0.1/"}})
    with pytest.raises(exceptions.InvalidArgument):
        client.create_task(parent=paused, task=task)


def test_a_task_may_have_a_name_of_500_characters(paused: str, new_task: NewTask) -> None:
    """Letters, digits, hyphens and underscores."""
    task = new_task(paused, "aZ09-_" + "x" * 494)
    assert task.name.endswith("x" * 494)


@pytest.mark.parametrize(
    ("request_fields", "task_fields"),
    [
        ({"url": ""}, {}),
        ({"url": "ftp://127.0.0.1/"}, {}),
        ({"url": "127.0.0.1/"}, {}),
        ({"url": "http:///path"}, {}),
        ({"url": "http://127.0.0.1:port/"}, {}),
        ({"url": "http://127.0.0.1/a b"}, {}),
        ({"url": "http://127.0.0.1/" + "x" * 2083}, {}),
        ({"url": "http://127.0.0.1/" + "é" * 400}, {}),  # Six characters each, once encoded.
        ({"http_method": tasks_v2.HttpMethod.GET, "body": b"x"}, {}),
        ({"http_method": tasks_v2.HttpMethod.DELETE, "body": b"x"}, {}),
        ({"body": b"x" * 102_400}, {}),
        ({"headers": {"X-Long": "x" * 82_000}}, {}),
        ({"headers": {"X-Split": "a\r\nX-Other: b"}}, {}),
        ({"headers": {"no name": "a"}}, {}),
        ({"oidc_token": {"service_account_email": ""}}, {}),
        ({}, {"dispatch_deadline": timedelta(seconds=0.05)}),  # The shortest is 0.1 s in this emulator.
        ({}, {"dispatch_deadline": timedelta(minutes=30, seconds=1)}),
        ({}, {"retry_config": {"max_attempts": -2}}),
    ],
)
def test_a_task_that_the_service_would_refuse_is_refused(
    paused: str, new_task: NewTask, request_fields: dict[str, Any], task_fields: dict[str, Any]
) -> None:
    """Here, and not first in production."""
    with pytest.raises(exceptions.InvalidArgument):
        new_task(paused, request=request_fields, **task_fields)


def test_a_task_further_ahead_than_30_days_is_refused(paused: str, new_task: NewTask) -> None:
    """Counted from when it is asked for: five minutes more are left for clocks that differ."""
    with pytest.raises(exceptions.InvalidArgument):
        new_task(paused, schedule_time=datetime.now(UTC) + timedelta(days=30, minutes=5))


def test_a_task_needs_something_to_do(client: Client, paused: str) -> None:
    """An HTTP request; App Engine is not emulated."""
    with pytest.raises(exceptions.InvalidArgument):
        client.create_task(parent=paused, task=tasks_v2.Task())
    with pytest.raises(exceptions.MethodNotImplemented):
        client.create_task(parent=paused, task=tasks_v2.Task({"app_engine_http_request": {"relative_uri": "/"}}))


def test_a_task_at_the_limits_is_taken(client: Client, paused: str, new_task: NewTask) -> None:
    """The limits are themselves allowed."""
    url = "http://127.0.0.1/" + "x" * 2066
    far = datetime.now(UTC) + timedelta(days=29.99)
    new_task(paused, "long", request={"url": url}, dispatch_deadline=timedelta(minutes=30))
    new_task(paused, "late", request={"body": b"x" * 102_000}, schedule_time=far)

    late, long = client.list_tasks(request={"parent": paused, "response_view": View.FULL})
    assert long.http_request.url == url
    assert long.dispatch_deadline == timedelta(minutes=30)
    assert len(late.http_request.body) == 102_000
    assert late.schedule_time == far


def test_bodies_are_shown_only_to_those_who_ask_for_them(client: Client, paused: str, new_task: NewTask) -> None:
    """BASIC is the default, and says so."""
    created = new_task(paused, "order-1", request={"body": b"secret"})
    full = client.get_task(request={"name": created.name, "response_view": View.FULL})
    (listed,) = client.list_tasks(request={"parent": paused, "response_view": View.FULL})
    assert (created.view, created.http_request.body) == (View.BASIC, b"")
    assert (full.view, full.http_request.body) == (View.FULL, b"secret")
    assert listed == full
    assert client.get_task(name=created.name).http_request.body == b""


def test_tasks_are_listed_in_pages_by_name(client: Client, paused: str, new_task: NewTask) -> None:
    """Each once, of this queue only."""
    names = [new_task(paused, f"order-{number}").name for number in (5, 3, 1, 4, 2)]
    pages = list(client.list_tasks(request={"parent": paused, "page_size": 2}).pages)
    assert [[task.name for task in page.tasks] for page in pages] == [
        sorted(names)[:2],
        sorted(names)[2:4],
        sorted(names)[4:],
    ]


def test_tasks_of_a_queue_that_there_is_not_are_not_found(client: Client, new_task: NewTask) -> None:
    """Neither listed nor created."""
    with pytest.raises(exceptions.NotFound):
        list(client.list_tasks(parent=f"{LOCATION}/queues/never-created"))
    with pytest.raises(exceptions.NotFound):
        new_task(f"{LOCATION}/queues/never-created")


@pytest.mark.parametrize("call", ["get_task", "delete_task", "run_task"])
def test_a_task_that_is_done_is_not_found(
    client: Client, queue: str, new_task: NewTask, receiver: Receiver, call: str
) -> None:
    """It has left the queue."""
    name = new_task(queue).name
    receiver.await_arrivals(1)
    _await_gone(client, name)
    assert list(client.list_tasks(parent=queue)) == []
    with pytest.raises(exceptions.NotFound):
        getattr(client, call)(name=name)


def _await_gone(client: Client, name: str) -> None:
    for _ in range(1000):
        try:
            client.get_task(name=name)
        except exceptions.NotFound:
            return
    raise AssertionError(f"{name} is still there")

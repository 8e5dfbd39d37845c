"""Queues, through the real client."""

from datetime import timedelta
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import tasks_v2
from google.protobuf.field_mask_pb2 import FieldMask

from tests.tasks_emulator.conftest import LOCATION, NewQueue, NewTask
from tests.tasks_emulator.receiver import Receiver

Client = tasks_v2.CloudTasksClient


def change(client: Client, name: str, *mask: str, **fields: Any) -> tasks_v2.Queue:
    """Update what the mask names of a queue."""
    return client.update_queue(queue=tasks_v2.Queue({"name": name, **fields}), update_mask=FieldMask(paths=mask))


def test_a_new_queue_has_the_defaults_of_the_service(client: Client, new_queue: NewQueue) -> None:
    """As `gcloud tasks queues describe` shows them."""
    queue = client.get_queue(name=new_queue())
    assert queue.state == tasks_v2.Queue.State.RUNNING
    assert queue.rate_limits == tasks_v2.RateLimits(
        max_dispatches_per_second=500, max_burst_size=100, max_concurrent_dispatches=1000
    )
    assert queue.retry_config == tasks_v2.RetryConfig(
        {
            "max_attempts": 100,
            "max_retry_duration": timedelta(0),
            "min_backoff": timedelta(seconds=0.1),
            "max_backoff": timedelta(hours=1),
            "max_doublings": 16,
        }
    )
    assert "purge_time" not in queue


def test_a_burst_follows_the_rate(client: Client, new_queue: NewQueue) -> None:
    """It is output only: what a caller says of it is ignored."""
    queue = client.get_queue(name=new_queue(rate_limits={"max_dispatches_per_second": 2.5, "max_burst_size": 77}))
    assert queue.rate_limits.max_burst_size == 3


def test_a_queue_cannot_be_created_twice(client: Client, queue: str) -> None:
    """It is said so, and nothing changes."""
    with pytest.raises(exceptions.AlreadyExists):
        client.create_queue(parent=LOCATION, queue=tasks_v2.Queue(name=queue))


@pytest.mark.parametrize(
    "name",
    [
        "charges",
        f"{LOCATION}/queues/",
        f"{LOCATION}/queues/under_score",
        f"{LOCATION}/queues/{'x' * 101}",
        f"{LOCATION}/queues/a/tasks/b",
        f"{LOCATION}/queues/a\n",
        "projects/other/locations/europe-west1/queues/charges",
        "projects//locations/europe-west1/queues/charges",
    ],
)
def test_a_queue_with_an_impossible_name_is_refused(client: Client, name: str) -> None:
    """Or with one of another location."""
    with pytest.raises(exceptions.InvalidArgument):
        client.create_queue(parent=LOCATION, queue=tasks_v2.Queue(name=name))


@pytest.mark.parametrize(
    "fields",
    [
        {"rate_limits": {"max_dispatches_per_second": 501}},
        {"rate_limits": {"max_dispatches_per_second": -1}},
        {"rate_limits": {"max_dispatches_per_second": float("nan")}},
        {"rate_limits": {"max_concurrent_dispatches": 5001}},
        {"rate_limits": {"max_concurrent_dispatches": -1}},
        {"retry_config": {"max_attempts": -2}},
        {"retry_config": {"max_doublings": -1}},
        {"retry_config": {"min_backoff": timedelta(seconds=-1)}},
        {"retry_config": {"min_backoff": timedelta(seconds=9), "max_backoff": timedelta(seconds=8)}},
    ],
)
def test_limits_that_the_service_does_not_have_are_refused(client: Client, fields: dict[str, Any]) -> None:
    """Here, and not first in production."""
    with pytest.raises(exceptions.InvalidArgument):
        client.create_queue(parent=LOCATION, queue=tasks_v2.Queue({"name": f"{LOCATION}/queues/refused", **fields}))


def test_what_is_not_emulated_is_said_to_be(client: Client, queue: str) -> None:
    """Never silently ignored."""
    target = {"http_method": tasks_v2.HttpMethod.PUT}
    with pytest.raises(exceptions.MethodNotImplemented):
        change(client, queue, http_target=target)
    with pytest.raises(exceptions.MethodNotImplemented):
        change(client, queue, "http_target.http_method", http_target=target)
    with pytest.raises(exceptions.MethodNotImplemented):
        list(client.list_queues(request={"parent": LOCATION, "filter": "state: PAUSED"}))
    with pytest.raises(exceptions.MethodNotImplemented):
        client.get_iam_policy(request={"resource": queue})


def test_queues_are_listed_in_pages_by_name(client: Client, new_queue: NewQueue) -> None:
    """Each once, and of one location only."""
    names = sorted(new_queue() for _ in range(5))
    listed = [queue.name for queue in client.list_queues(request={"parent": LOCATION, "page_size": 2})]
    assert listed == sorted(set(listed))
    assert set(names) <= set(listed)
    assert list(client.list_queues(parent="projects/other/locations/europe-west1")) == []


def test_an_update_changes_what_its_mask_names_and_nothing_else(client: Client, new_queue: NewQueue) -> None:
    """The rest of what it carries is not looked at."""
    name = new_queue(max_attempts=7, min_backoff=3)
    changed = change(client, name, "retry_config.max_attempts", retry_config={"max_attempts": 9, "max_doublings": 1})
    assert changed.retry_config.max_attempts == 9
    assert changed.retry_config.max_doublings == 16
    assert changed.retry_config.min_backoff == timedelta(seconds=3)
    assert client.get_queue(name=name) == changed


def test_an_update_without_a_mask_sets_everything(client: Client, new_queue: NewQueue) -> None:
    """What it leaves out has the default again."""
    name = new_queue(max_attempts=7, rate_limits={"max_concurrent_dispatches": 3})
    changed = change(client, name, retry_config={"max_doublings": 5})
    assert changed.retry_config.max_attempts == 100
    assert changed.retry_config.max_doublings == 5
    assert changed.rate_limits.max_concurrent_dispatches == 1000


def test_no_doublings_can_be_asked_for_by_naming_them(client: Client, queue: str) -> None:
    """Zero is the same as nothing on the wire: the mask says that it is meant."""
    assert change(client, queue, "retry_config.max_doublings").retry_config.max_doublings == 0


def test_an_update_creates_the_queue_that_there_is_not(client: Client) -> None:
    """As in the service."""
    name = f"{LOCATION}/queues/updated-into-being"
    created = change(client, name, "retry_config.max_attempts", retry_config={"max_attempts": 9})
    assert created.retry_config.max_attempts == 9
    assert client.get_queue(name=name) == created


@pytest.mark.parametrize("path", ["state", "name", "purge_time", "retry_config.min_backof", "nonsense"])
def test_a_mask_that_names_what_cannot_be_set_is_refused(client: Client, queue: str, path: str) -> None:
    """A typing error is no update."""
    with pytest.raises(exceptions.InvalidArgument):
        change(client, queue, path)


def test_an_update_does_not_resume_a_queue(client: Client, queue: str) -> None:
    """The state has calls of its own."""
    client.pause_queue(name=queue)
    assert change(client, queue, state=tasks_v2.Queue.State.RUNNING).state == tasks_v2.Queue.State.PAUSED


@pytest.mark.parametrize("call", ["get_queue", "delete_queue", "purge_queue", "pause_queue", "resume_queue"])
def test_a_queue_that_was_never_created_is_not_found(client: Client, call: str) -> None:
    """Whatever is asked of it."""
    with pytest.raises(exceptions.NotFound):
        getattr(client, call)(name=f"{LOCATION}/queues/never-created")


def test_a_deleted_queue_is_gone_with_its_tasks(
    client: Client, new_queue: NewQueue, new_task: NewTask, receiver: Receiver
) -> None:
    """Not found, not listed, not created again so soon, and nothing of it is delivered."""
    name = new_queue()
    client.pause_queue(name=name)
    task = new_task(name)
    client.delete_queue(name=name)
    for call in (
        lambda: client.get_queue(name=name),
        lambda: client.get_task(name=task.name),
        lambda: new_task(name),
        lambda: client.delete_queue(name=name),
    ):
        with pytest.raises(exceptions.NotFound):
            call()
    assert name not in [queue.name for queue in client.list_queues(parent=LOCATION)]
    with pytest.raises(exceptions.FailedPrecondition):
        client.create_queue(parent=LOCATION, queue=tasks_v2.Queue(name=name))
    assert receiver.arrivals == []


def test_a_paused_queue_takes_tasks_and_delivers_none_until_resumed(
    client: Client, queue: str, new_task: NewTask, receiver: Receiver
) -> None:
    """Then all that waited come."""
    assert client.pause_queue(name=queue).state == tasks_v2.Queue.State.PAUSED
    for _ in range(3):
        new_task(queue)
    marker = new_task(queue)
    client.run_task(name=marker.name)
    assert [arrival.task for arrival in receiver.await_arrivals(1)] == [marker.name.rpartition("/")[2]]
    assert client.resume_queue(name=queue).state == tasks_v2.Queue.State.RUNNING
    receiver.await_arrivals(4)


def test_what_is_purged_or_deleted_from_a_paused_queue_never_runs(
    client: Client, queue: str, new_task: NewTask, receiver: Receiver
) -> None:
    """Not after it is resumed, either."""
    client.pause_queue(name=queue)
    for number in range(5):
        new_task(queue, f"purged-{number}")
    purged = client.purge_queue(name=queue)
    assert purged.purge_time is not None
    assert list(client.list_tasks(parent=queue)) == []
    client.delete_task(name=new_task(queue, "deleted").name)
    new_task(queue, "kept")
    client.resume_queue(name=queue)
    assert [arrival.task for arrival in receiver.await_arrivals(1)] == ["kept"]
    assert client.get_queue(name=queue).purge_time == purged.purge_time
    with pytest.raises(exceptions.AlreadyExists):
        new_task(queue, "purged-0")

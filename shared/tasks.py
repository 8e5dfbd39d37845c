"""Cloud Tasks: asks for a delivery, now or later.

A task that could not be made is logged and otherwise of no consequence: every open charge has a `due_at`, by which the
sweep finds it. So nothing here raises, and nothing here is repeated.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from shared import log, telemetry

if TYPE_CHECKING:
    from google.cloud import tasks_v2

CREATE_TIMEOUT_SECONDS: Final = 10.0  # It takes some 10 ms. Ten seconds outlive a slow start of the channel.
JSON: Final[Mapping[str, str]] = {"Content-Type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A POST for Cloud Tasks to make. `at` None: as soon as it can."""

    name: str
    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    at: datetime | None = None


class TaskQueue(Protocol):
    """A queue of tasks (`CloudTasks`)."""

    def create(self, task: Task) -> bool:
        """Add a task. True: it is there, or one of its name was before. False: nobody knows. Never raises."""


def task_name(charge_id: str, generation: int, epoch: int) -> str:
    """Name the task of a charge's epoch: the same name twice makes one task. The digest comes first: no hot spot."""
    return f"{charge_id}-g{generation}-e{epoch}"


class CloudTasks:
    """A queue of Cloud Tasks. Threads may share one.

    invoker: the e-mail of the service account whose OIDC token the tasks carry; None: they carry none.
    emulator_host: `host:port` of an emulator; None: the service itself, with Application Default Credentials.
    dispatch_deadline: how long Cloud Tasks waits for a delivery to answer, 15 s to 30 min.
    timeout_seconds: how long the making of a task may take.
    """

    def __init__(  # noqa: PLR0913 - a queue's place and ways, each by its name.
        self,
        *,
        project: str,
        location: str,
        queue: str,
        invoker: str | None,
        emulator_host: str | None,
        dispatch_deadline: timedelta,
        timeout_seconds: float = CREATE_TIMEOUT_SECONDS,
    ) -> None:
        self._queue = f"projects/{project}/locations/{location}/queues/{queue}"
        self._invoker = invoker
        self._emulator_host = emulator_host
        self._dispatch_deadline = dispatch_deadline
        self._timeout_seconds = timeout_seconds
        self._connecting = threading.Lock()
        self._client: tasks_v2.CloudTasksClient | None = None

    def create(self, task: Task) -> bool:
        """Add a task, once. True: it is there, or one of its name was before. False: nobody knows. Never raises."""
        try:
            self._create(task)
        except Exception as error:  # noqa: BLE001 - whatever it is, the charge's `due_at` covers it.
            log.error("a task could not be made; the sweep will see to it", task=task.name, reason=type(error).__name__)
            return False
        return True

    @telemetry.span("create_task")
    def _create(self, task: Task) -> None:
        # Imported here: it takes half a second, and many a process never makes a task.
        from google.api_core.exceptions import AlreadyExists  # noqa: PLC0415
        from google.cloud import tasks_v2  # noqa: PLC0415

        request = tasks_v2.HttpRequest(
            http_method=tasks_v2.HttpMethod.POST, url=task.url, headers={**task.headers, **_trace()}, body=task.body
        )
        if self._invoker is not None:
            request.oidc_token = tasks_v2.OidcToken(service_account_email=self._invoker, audience=_service(task.url))
        message = tasks_v2.Task(
            name=f"{self._queue}/tasks/{task.name}",
            http_request=request,
            schedule_time=task.at,
            dispatch_deadline=self._dispatch_deadline,
        )
        try:
            self._connected().create_task(parent=self._queue, task=message, retry=None, timeout=self._timeout_seconds)
        except AlreadyExists:
            log.info("this task was made before", task=task.name)

    def _connected(self) -> "tasks_v2.CloudTasksClient":
        """Return the client, made on first use: after a server has forked, and only where tasks are made."""
        import grpc  # noqa: PLC0415
        from google.cloud import tasks_v2  # noqa: PLC0415
        from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport  # noqa: PLC0415

        with self._connecting:
            if self._client is None:
                transport = None
                if self._emulator_host is not None:
                    no_proxy = (("grpc.enable_http_proxy", 0),)  # An emulator is near; a proxy would not find it.
                    channel = grpc.insecure_channel(self._emulator_host, options=no_proxy)
                    transport = CloudTasksGrpcTransport(channel=channel)
                self._client = tasks_v2.CloudTasksClient(transport=transport)
            return self._client


def _trace() -> Mapping[str, str]:
    """Return the header that makes a delivery a part of the trace in which its task was made; none where none is.

    Cloud Tasks passes it on. Cloud Run keeps the trace, and puts its own span between. It is for logs and traces alone.
    """
    traceparent = log.traceparent()
    return {} if traceparent is None else {"traceparent": traceparent}


def _service(url: str) -> str:
    """Return the address of the service that a URL belongs to: the audience that it expects."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/"

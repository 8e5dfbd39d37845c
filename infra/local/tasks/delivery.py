"""One delivery over HTTP: the request that a worker gets, and how its answer is taken."""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from urllib.parse import urljoin, urlsplit

import grpc

from infra.local.tasks import rules
from infra.local.tasks.engine import Delivery, Outcome
from infra.local.tasks.identity import Identity
from infra.local.tasks.messages import HttpMethod, length

USER_AGENT: Final = "Google-Cloud-Tasks"
REPLACED_HEADERS: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "user-agent"})
REPLACED_PREFIXES: Final = ("x-google-", "x-appengine-", "x-cloudtasks-")

MOST_REDIRECTS: Final = 5  # Enough for a moved page behind a moved host; a loop ends.
CHUNK_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Request:
    """What is sent to a worker."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes

    def redirected(self, status: int, location: str) -> "Request":
        """Return the request that follows a redirect, as browsers do: 307 and 308 repeat it, the others only read."""
        url = urljoin(self.url, location)
        headers = dict(self.headers)
        if urlsplit(url).netloc != urlsplit(self.url).netloc:
            headers.pop("Authorization", None)  # It was meant for the other host.
        if status in (307, 308) or self.method in ("GET", "HEAD"):
            return Request(self.method, url, headers, self.body)
        return Request("GET", url, {k: v for k, v in headers.items() if k.lower() != "content-type"}, b"")


def request_of(delivery: Delivery, identity: Identity) -> Request:
    """Return the request of a delivery, with the headers that the service sets."""
    task, asked = delivery.task, delivery.task.http_request
    headers = {
        name: value
        for name, value in asked.headers.items()
        if name.lower() not in REPLACED_HEADERS and not name.lower().startswith(REPLACED_PREFIXES)
    }
    headers |= {
        "User-Agent": USER_AGENT,
        "X-CloudTasks-QueueName": rules.short_id(delivery.queue_name),
        "X-CloudTasks-TaskName": rules.short_id(task.name),
        "X-CloudTasks-TaskRetryCount": str(task.dispatch_count - 1),
        "X-CloudTasks-TaskExecutionCount": str(delivery.executions),
        "X-CloudTasks-TaskETA": f"{task.schedule_time.ToMicroseconds() / 1e6:.6f}",
    }
    if delivery.previous_response is not None:
        headers["X-CloudTasks-TaskPreviousResponse"] = str(delivery.previous_response)
    if delivery.retry_reason:
        headers["X-CloudTasks-TaskRetryReason"] = delivery.retry_reason
    if asked.HasField("oidc_token"):
        token = identity.token(
            email=asked.oidc_token.service_account_email,
            audience=asked.oidc_token.audience or asked.url,
            now=delivery.started,
        )
        headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        headers["Authorization"] = f"Bearer {token}"
    return Request(HttpMethod(asked.http_method).name, rules.encoded_url(asked.url), headers, asked.body)


class Exchange:
    """One request on its way. Another thread may abandon it.

    Abandoned, or past its deadline, nobody listens any longer; the worker does not hear of it and runs on.
    """

    def __init__(self, request: Request, deadline: timedelta) -> None:
        self._request = request
        self._deadline_seconds = deadline.total_seconds()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._abandoned = False

    def run(self) -> Outcome:
        """Send it, follow redirects, and return how it ended. It raises nothing: no answer is an outcome, too."""
        request = self._request
        ends_at = time.monotonic() + self._deadline_seconds
        try:
            for _ in range(MOST_REDIRECTS + 1):
                status, location, retry_after = self._send(request, ends_at)
                if not (300 <= status <= 399 and location):
                    break
                request = request.redirected(status, location)
        except TimeoutError:
            return Outcome(no_answer=grpc.StatusCode.DEADLINE_EXCEEDED)
        except (OSError, http.client.HTTPException, ValueError):
            return Outcome(no_answer=grpc.StatusCode.UNAVAILABLE)
        return Outcome(status=status, retry_after=retry_after)

    def abandon(self) -> None:
        """Stop listening. `run` returns at once."""
        with self._lock:
            self._abandoned = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # It may have ended by itself.
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _send(self, request: Request, ends_at: float) -> tuple[int, str | None, str | None]:
        parts = urlsplit(request.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=_remaining_seconds(ends_at))
        try:
            connection.connect()
            line = connection.sock
            with self._lock:
                self._socket = line
                if self._abandoned:
                    raise ConnectionAbortedError
            line.settimeout(_remaining_seconds(ends_at))
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.putrequest(request.method, target, skip_accept_encoding=True)
            for name, value in request.headers.items():
                connection.putheader(name, value.encode())
            if request.body or request.method in ("POST", "PUT", "PATCH"):
                connection.putheader("Content-Length", str(len(request.body)))
            connection.endheaders(request.body or None)
            response = connection.getresponse()
            # An answer counts once all of it is there: a worker that dies while it writes has not answered.
            line.settimeout(_remaining_seconds(ends_at))
            while response.read(CHUNK_BYTES):
                line.settimeout(_remaining_seconds(ends_at))
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
            return response.status, response.getheader("Location"), response.getheader("Retry-After")
        finally:
            with self._lock:
                self._socket = None
            connection.close()


def deadline_of(delivery: Delivery) -> timedelta:
    """Return how long a delivery is listened to."""
    return length(delivery.task.dispatch_deadline)


def _remaining_seconds(ends_at: float) -> float:
    remaining = ends_at - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining

"""A worker on the loopback interface that does as it is told and remembers what reached it."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

PATIENCE_SECONDS = 8.0  # Enough on a busy machine; what takes longer does not happen.


@dataclass(frozen=True)
class Arrival:
    """One request that reached the worker."""

    at: float
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def task(self) -> str:
        """The short name of the task."""
        return self.headers["X-CloudTasks-TaskName"]


@dataclass(frozen=True)
class Reply:
    """What the worker answers. A status of None hangs up without a word."""

    status: int | None = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after_seconds: float = 0.0
    cut_off: bool = False


class Receiver:
    """Answers by `behaviour`, which sees each arrival. Keeps the arrivals, and how many ran at once at the most."""

    def __init__(self) -> None:
        self.behaviour: Callable[[Arrival], Reply] = lambda _: Reply()
        self.most_at_once = 0
        self._finished: list[Arrival] = []
        self._arrivals: list[Arrival] = []
        self._at_once = 0
        self._changed = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def answers(self, *replies: Reply | int) -> None:
        """Answer so in turn, and the last for ever."""
        script = [reply if isinstance(reply, Reply) else Reply(reply) for reply in replies]
        count = iter(range(1_000_000))
        self.behaviour = lambda _: script[min(next(count), len(script) - 1)]

    @property
    def arrivals(self) -> list[Arrival]:
        """What has reached the worker until now."""
        with self._changed:
            return list(self._arrivals)

    def await_arrivals(self, count: int, *, within_seconds: float = PATIENCE_SECONDS) -> list[Arrival]:
        """Wait until so many requests have come in, and return all that have."""
        with self._changed:
            came = self._changed.wait_for(lambda: len(self._arrivals) >= count, within_seconds)
            assert came, f"{len(self._arrivals)} arrivals of {count} within {within_seconds} s"
            return list(self._arrivals)

    def await_finished(self, arrival: Arrival, *, within_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the worker is through with a request, whether or not anybody listens."""
        with self._changed:
            assert self._changed.wait_for(lambda: arrival in self._finished, within_seconds)

    def take(self, arrival: Arrival) -> Reply:
        """Note an arrival, and say what to answer."""
        with self._changed:
            self._arrivals.append(arrival)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            reply = self.behaviour(arrival)
            self._changed.notify_all()
        time.sleep(reply.after_seconds)
        with self._changed:
            self._at_once -= 1
            self._finished.append(arrival)
            self._changed.notify_all()
        return reply

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        """Say nothing: that nobody listens any longer is what some tests are about."""


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            reply = receiver.take(Arrival(time.time(), self.command, self.path, dict(self.headers.items()), body))
            if reply.status is None:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "10" if reply.cut_off else "0")
            self.end_headers()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler

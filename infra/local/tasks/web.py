"""What is served over plain HTTP: the public keys, and the controls for tests."""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, TypeAlias

from infra.local.tasks.dispatcher import Dispatcher
from infra.local.tasks.engine import Engine
from infra.local.tasks.faults import Faults
from infra.local.tasks.identity import Identity

Answer: TypeAlias = Callable[[bytes], Any]
"""Takes a body and returns what is answered as JSON. Raises ValueError for a body that makes no sense: 400."""

MOST_BODY_BYTES: Final = 64 * 1024


class JsonServer:
    """A few paths that answer JSON, on a thread of their own. Raises OSError if the port is taken."""

    def __init__(self, host: str, port: int, answers: Mapping[tuple[str, str], Answer]) -> None:
        self._server = _Server((host, port), _handler(answers))
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="http", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def certificates(identity: Identity) -> dict[tuple[str, str], Answer]:
    """Return the answers by which a worker checks OIDC tokens."""
    return {
        ("GET", "/certs"): lambda _: identity.certificates(),
        ("GET", "/jwks"): lambda _: identity.key_set(),
    }


def controls(engine: Engine, dispatcher: Dispatcher, faults: Faults) -> dict[tuple[str, str], Answer]:
    """Return the answers by which a test looks at queues and makes things go wrong."""

    def state(_: bytes = b"") -> Any:
        return {"queues": engine.counts(), "faults": faults.armed()}

    def arm(body: bytes) -> Any:
        changes = json.loads(body)
        if not isinstance(changes, dict):
            raise ValueError("a JSON object is wanted")  # noqa: TRY004 - it is answered with 400.
        faults.arm(changes)
        dispatcher.wake()
        return state()

    def clear(_: bytes) -> Any:
        faults.clear()
        dispatcher.wake()
        return state()

    return {("GET", "/"): state, ("POST", "/faults"): arm, ("DELETE", "/faults"): clear}


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # A caller that keeps its connection open does not keep the program.
    block_on_close = False


def _handler(answers: Mapping[tuple[str, str], Answer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            answer = answers.get((self.command, self.path))
            if answer is None:
                known = ", ".join(" ".join(known) for known in answers)
                self._send(404, {"error": f"there is no {self.command} {self.path}: there are {known}"})
                return
            body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), MOST_BODY_BYTES))
            try:
                self._send(200, answer(body))
            except ValueError as problem:
                self._send(400, {"error": str(problem)})

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names are the library's.

        def _send(self, status: int, content: Any) -> None:
            body = json.dumps(content, indent=2).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: it is no news that somebody asked."""

    return Handler

"""The double as an HTTP server on loopback, with a thread that delivers webhooks."""

import http.client
import json
import socket
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from infra.local.stripe import control, pages
from infra.local.stripe.engine import Engine
from infra.local.stripe.webhooks import Delivery
from infra.local.stripe.wire import ConnectionDropped, Headers, Response

DELIVERY_TIMEOUT_SECONDS: Final = 10.0  # Stripe does not say how long it waits.
DELIVERY_PAUSE_SECONDS: Final = 0.2  # How late a redelivery may be; new events are delivered at once.
WAITING_CONNECTIONS: Final = 128


class Server:
    """One engine behind one socket. `with Server(engine) as server: ... server.url`."""

    def __init__(self, engine: Engine, host: str = "127.0.0.1", port: int = 0) -> None:
        self.engine = engine
        self._ended = threading.Event()
        self._news = threading.Event()
        self._http = _Listener((host, port), engine, self._news)
        self._threads = [
            threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True),
            threading.Thread(target=self._deliver_webhooks, daemon=True),
        ]

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._http.server_address[:2]
        return f"http://{host!s}:{port}"

    def start(self) -> None:
        """Answer requests and deliver webhooks, in threads of its own."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, leaving what is in the database."""
        self._ended.set()
        self._news.set()
        self._http.shutdown()
        self._http.server_close()
        self._threads[1].join(DELIVERY_TIMEOUT_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _deliver_webhooks(self) -> None:
        while not self._ended.is_set():
            self._news.wait(DELIVERY_PAUSE_SECONDS)
            self._news.clear()
            for delivery in self.engine.pending_deliveries():
                if self._ended.is_set():
                    return
                self.engine.delivered(delivery, send(delivery))


def send(delivery: Delivery) -> bool:
    """Deliver once; return whether it was accepted: any 2xx, and a redirect is none."""
    address = urlsplit(delivery.url)
    secure = address.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = connect(address.netloc, timeout=DELIVERY_TIMEOUT_SECONDS)
    try:
        path = (address.path or "/") + (f"?{address.query}" if address.query else "")
        connection.request("POST", path, delivery.body, dict(delivery.headers))
        return 200 <= connection.getresponse().status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = WAITING_CONNECTIONS

    def __init__(self, address: tuple[str, int], engine: Engine, news: threading.Event) -> None:
        super().__init__(address, _Handler)
        self.engine = engine
        self.news = news

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # Head and body in one packet.
    disable_nagle_algorithm = True
    server: _Listener

    def do_GET(self) -> None:
        """Answer."""
        self._serve()

    def do_POST(self) -> None:
        """Answer."""
        self._serve()

    def do_DELETE(self) -> None:
        """Answer."""
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called.
        """Say nothing: `/_double/requests` tells."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            response = self._answer(body)
        except ConnectionDropped:
            self._hang_up()
            return
        except Exception:  # noqa: BLE001 - a bug of the double must not look like a fault that was asked for.
            traceback.print_exc()
            message = "The double itself failed; its output says where."
            failure = {"error": {"type": "api_error", "message": message}}
            response = Response(500, Headers({"Content-Type": "application/json"}), json.dumps(failure).encode())
        finally:
            self.server.news.set()
        self._send(response)

    def _answer(self, body: bytes) -> Response:
        engine, path = self.server.engine, self.path.partition("?")[0]
        if path == "/":
            return Response(200, Headers({"Content-Type": "text/plain"}), b"The Stripe double. Control: /_double/\n")
        if pages.is_page(path):
            return pages.handle(engine, self.command, path, body)
        if path.startswith(control.PREFIX):
            return control.handle(engine, self.command, self.path, body)
        return engine.handle(self.command, self.path, Headers(self.headers.items()), body)

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(response.content_length))
        self.end_headers()
        self.wfile.write(response.body)
        if response.cut:
            self.wfile.flush()
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

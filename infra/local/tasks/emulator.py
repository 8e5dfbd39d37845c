"""The emulator as a whole, to run in a process of its own or inside a test.

with Emulator(port=0) as emulator:
    channel = grpc.insecure_channel(emulator.address)
"""

import ipaddress
import socket
import sqlite3
from concurrent import futures
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from infra.local.tasks import web
from infra.local.tasks.dispatcher import Dispatcher
from infra.local.tasks.engine import Engine
from infra.local.tasks.faults import Faults
from infra.local.tasks.identity import Identity
from infra.local.tasks.messages import QueueMessage
from infra.local.tasks.rules import Settings
from infra.local.tasks.service import CloudTasksService
from infra.local.tasks.web import JsonServer

LOOPBACK: Final = "127.0.0.1"
CONCURRENT_CALLS: Final = 32  # Each call takes a millisecond; a call that hangs on command keeps one of these.

STOP_TIMEOUT_SECONDS: Final = 2.0  # Calls are cut off at once; this is for gRPC to notice.


class CannotStart(Exception):
    """The emulator cannot run as asked: the message says why."""


class Emulator:
    """A running emulator, from the moment it is made until it is stopped. Raises CannotStart.

    A port of 0 takes a free one; None serves nothing. `address`, `certs_url` and `control_url` say where it listens.
    """

    def __init__(  # noqa: PLR0913 - each is an option of the program.
        self,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        database: str = ":memory:",
        certs_port: int | None = None,
        control_port: int | None = None,
        settings: Settings | None = None,
    ) -> None:
        _check_loopback(host)
        with ExitStack() as undo:
            try:
                self.engine = Engine(database, settings=settings)
            except sqlite3.Error as problem:
                message = f"the database {database} cannot be used: {problem} (is another emulator using it?)"
                raise CannotStart(message) from None
            undo.callback(self.engine.close)
            identity = Identity(self.engine)
            self.faults = Faults()
            self._dispatcher = dispatcher = Dispatcher(self.engine, identity, self.faults)

            self.certs_url = self.control_url = None
            certificates, controls = web.certificates(identity), web.controls(self.engine, dispatcher, self.faults)
            if certs_port is not None:
                self.certs_url = _serve(host, certs_port, certificates, undo)
            if control_port is not None:
                self.control_url = _serve(host, control_port, controls, undo)

            service = CloudTasksService(self.engine, dispatcher, self.faults)
            server, bound_port = _listen(host, port, service)
            self.address = f"{host}:{bound_port}"
            undo.callback(dispatcher.stop)
            dispatcher.start()
            undo.callback(lambda: server.stop(grace=None).wait(STOP_TIMEOUT_SECONDS))
            server.start()
            self._stop = undo.pop_all()

    def declare_queue(self, queue: QueueMessage, mask: FieldMask) -> None:
        """Create a queue unless there is one, and set what the mask names and nothing else. Raises Refused."""
        if mask.paths:
            self.engine.update_queue(queue, mask)
        else:
            self.engine.create_queue_if_absent(queue)
        self._dispatcher.wake()

    def stop(self) -> None:
        """Stop answering, then stop delivering, then close the database. Again: nothing happens."""
        self._stop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _check_loopback(host: str) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise CannotStart(
            f"{host} is not on the loopback interface: whoever reaches this program may make it call anything"
        )


def _serve(host: str, port: int, answers: dict[tuple[str, str], web.Answer], undo: ExitStack) -> str:
    try:
        server = JsonServer(host, port, answers)
    except OSError:
        raise _taken(host, port) from None
    undo.callback(server.stop)
    server.start()
    return server.url


def _listen(host: str, port: int, service: CloudTasksService) -> tuple[grpc.Server, int]:
    if port and not _is_free(host, port):  # Asked first, since gRPC prints pages about it.
        raise _taken(host, port)
    # Without this, gRPC shares a port that another emulator has, and each gets half of the calls.
    options = [("grpc.so_reuseport", 0)]
    pool = futures.ThreadPoolExecutor(max_workers=CONCURRENT_CALLS, thread_name_prefix="grpc")
    server = grpc.server(pool, handlers=[service.handler()], options=options)
    try:
        return server, server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        raise _taken(host, port) from None


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # One that has just ended takes no port.
        try:
            listener.bind((host, port))
        except OSError:
            return False
        return True


def _taken(host: str, port: int) -> CannotStart:
    return CannotStart(f"port {host}:{port} is taken: end what listens there, or choose another port")

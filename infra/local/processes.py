"""The programs of the local stack: each in a session of its own, its output in a file, awaited, and never left behind.

LocalStackError
├── PortTaken        somebody listens already where one of our programs wants to
└── ProgramFailed    a program was not ready in time, or ended by itself: the message ends with its log
"""

import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from infra.local import tether
from infra.local.tether import Tether

LOOPBACK: Final = "127.0.0.1"

READY_TIMEOUT_SECONDS: Final = 60.0  # Usually 2 s; a cold disk and a busy machine have taken 22.
POLL_SECONDS: Final = 0.05
LOG_LINES_SHOWN: Final = 20  # A Python traceback from its end, with the cause.


class LocalStackError(Exception):
    """The local stack cannot run; the message says why."""


class PortTaken(LocalStackError):
    """Somebody listens on a port that one of our programs wants."""


class ProgramFailed(LocalStackError):
    """A program of ours is not running as it should."""


class Program:
    """One program, which may be started and stopped any number of times.

    title: what messages call it.
    ready: says whether it answers; asked again and again until it does, so it must not wait long.
    """

    def __init__(  # noqa: PLR0913 - what makes a program, each by its name.
        self,
        name: str,
        command: Sequence[str],
        *,
        title: str,
        environment: Mapping[str, str],
        log: Path,
        ready: Callable[[], bool],
        tether: Tether,
    ) -> None:
        self.name = name
        self.title = title
        self.log = log
        self._command = command
        self._environment = environment
        self._ready = ready
        self._tether = tether
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `await_ready` waits for it."""
        assert self._process is None, f"{self.title} is started once"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        self._tether.hold(self._process.pid)

    def await_ready(self) -> None:
        """Return once it answers. Raises ProgramFailed."""
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            self.check()
            if self._ready():
                return
            time.sleep(POLL_SECONDS)
        raise ProgramFailed(f"{self.title} was not ready in {READY_TIMEOUT_SECONDS:g} s:\n{end_of(self.log)}")

    def check(self) -> None:
        """Raise ProgramFailed if it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            status = self._process.returncode
            raise ProgramFailed(f"{self.title} ended by itself with status {status}:\n{end_of(self.log)}")

    def terminate(self) -> None:
        """Ask it to end; `stop` waits for that."""
        if self._process is not None:
            tether.terminate([self._process.pid])

    def stop(self) -> None:
        """End it: ask, wait, and kill what does not. Again: nothing happens."""
        process, self._process = self._process, None
        if process is None:
            return
        tether.terminate([process.pid])
        if not _ended(process, tether.GRACE_SECONDS):
            tether.kill([process.pid])
            process.wait()
        self._tether.release(process.pid)

    def kill_child(self) -> int:
        """Kill a process that it started, which it shall then replace; returns that one's id. Raises ProgramFailed."""
        assert self._process is not None, f"{self.title} is running"
        children = children_of(self._process.pid)
        if not children:
            raise ProgramFailed(f"{self.title} has no process to kill just now")
        os.kill(children[0], signal.SIGKILL)
        return children[0]


def _ended(process: subprocess.Popen[bytes], timeout_seconds: float) -> bool:
    """Wait for a process and all others of its group, and say whether they have ended."""
    deadline = time.monotonic() + timeout_seconds
    while process.poll() is None or tether.lives(process.pid):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def children_of(process: int) -> list[int]:
    """Name the living processes that a process started."""
    command = ["ps", "-A", "-o", "pid=,ppid=,stat="]  # As POSIX has it.
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in listing.splitlines())
    return [int(pid) for pid, parent, state in rows if int(parent) == process and not state.startswith("Z")]


def end_of(log: Path) -> str:
    """Return the last lines of a log, indented, under its name."""
    try:
        with log.open(errors="replace") as lines:
            last = deque(lines, maxlen=LOG_LINES_SHOWN)
    except OSError:
        last = deque()
    return "\n".join([f"  {log}:", *(f"    {line.rstrip()}" for line in last or ["(empty)"])])


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on just now, all different."""
    with ExitStack() as held:
        listeners = [held.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind((LOOPBACK, 0))
        return [listener.getsockname()[1] for listener in listeners]


def is_free(port: int) -> bool:
    """Say whether a program could listen on this port of the loopback interface."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # One that has just ended takes no port.
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            return False
        return True

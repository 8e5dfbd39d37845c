"""Ends what a supervisor that was killed has left running.

A supervisor starts this as a program, with a pipe to its standard input, and tells it what there is to end:

    hold 4711       the processes of group 4711 belong to the supervisor
    release 4711    they have ended

End of file means that the supervisor is gone, however it went: SIGKILL spares nobody's clean-up code but this one's.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Final

GRACE_SECONDS: Final = 5.0  # Emulators save within half a second; whoever takes longer is stuck.
POLL_SECONDS: Final = 0.02


class Tether:
    """The supervisor's side."""

    def __init__(self) -> None:
        self._program: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the program."""
        self._program = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def hold(self, group: int) -> None:
        """Have this process group ended should we die."""
        self._tell(f"hold {group}")

    def release(self, group: int) -> None:
        """Forget this process group: it has ended, and the system may give its number to others."""
        self._tell(f"release {group}")

    def close(self) -> None:
        """End whatever is still held, and the program itself."""
        program = self._running()
        with contextlib.suppress(BrokenPipeError):
            program.communicate()

    def _tell(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # It was killed: the stack still ends in order by itself.
            print(line, file=self._running().stdin, flush=True)

    def _running(self) -> "subprocess.Popen[str]":
        assert self._program is not None, "the tether has been started"
        return self._program


def terminate(groups: Iterable[int]) -> None:
    """Ask process groups to end. A paused process hears nothing until it goes on, so they are all told to."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
            os.killpg(group, signal.SIGCONT)


def lives(group: int) -> bool:
    """Say whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def kill(groups: Iterable[int]) -> None:
    """End process groups at once."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def main() -> None:
    """Keep the list until the supervisor is gone, then end what is on it."""
    held: set[int] = set()
    for line in sys.stdin:
        word, group = line.split()
        if word == "hold":
            held.add(int(group))
        else:
            held.discard(int(group))
    terminate(held)
    deadline = time.monotonic() + GRACE_SECONDS
    while any(map(lives, held)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    kill(held)


if __name__ == "__main__":
    main()

"""Programs of the local stack are awaited, explained when they fail, and never left behind."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local import tether
from infra.local.processes import Program, ProgramFailed
from infra.local.stack import REPOSITORY
from infra.local.tether import Tether

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


@pytest.fixture
def held() -> Iterator[Tether]:
    """What ends the programs should the test die."""
    tethered = Tether()
    tethered.start()
    yield tethered
    tethered.close()


def python(script: str, log: Path, held: Tether) -> Program:
    """A program that is ready once it has said that it is up."""
    command = [sys.executable, "-c", script]

    return Program(
        "test",
        command,
        title="the test's program",
        environment={},
        log=log,
        ready=lambda: "up" in log.read_text(),
        tether=held,
    )


def test_a_program_that_ends_by_itself_shows_the_end_of_its_log(tmp_path: Path, held: Tether) -> None:
    """Nobody should have to look for the reason."""
    program = python("raise SystemExit('no such database')", tmp_path / "log", held)
    program.start()

    with pytest.raises(ProgramFailed, match=r"(?s)the test's program ended by itself with status 1.*no such database"):
        program.await_ready()

    program.stop()


def test_a_program_that_never_answers_is_given_up_in_time(
    tmp_path: Path, held: Tether, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting has an end."""
    monkeypatch.setattr("infra.local.processes.READY_TIMEOUT_SECONDS", 0.2)
    program = python("import time; time.sleep(60)", tmp_path / "log", held)
    program.start()

    with pytest.raises(ProgramFailed, match=r"not ready in 0.2 s"):
        program.await_ready()

    program.stop()


def test_a_program_that_does_not_listen_is_killed_with_all_that_it_started(
    tmp_path: Path, held: Tether, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM is a request; the wait for it is bounded."""
    monkeypatch.setattr("infra.local.tether.GRACE_SECONDS", 0.2)
    program = python(f"import os; os.fork(); {STUBBORN}", tmp_path / "log", held)
    program.start()
    program.await_ready()
    group = program._process.pid if program._process else 0
    assert tether.lives(group)

    program.stop()

    _await_end(group)


def test_a_supervisor_that_is_killed_leaves_nothing_even_of_what_is_paused(tmp_path: Path) -> None:
    """SIGKILL leaves it no time to clean up; its tether does."""
    script = f"""
import os, signal, subprocess, sys, time
from infra.local.tether import Tether
tether = Tether()
tether.start()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
tether.hold(child.pid)
os.kill(child.pid, signal.SIGSTOP)
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
time.sleep(60)
"""
    supervisor = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY)
    group = int(_eventually_written(tmp_path / "pid"))

    supervisor.kill()
    supervisor.wait()

    _await_end(group)


def _eventually_written(file: Path) -> str:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if file.exists() and file.read_text():
            return file.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{file} was never written")


def _await_end(group: int) -> None:
    deadline = time.monotonic() + tether.GRACE_SECONDS + 5
    while tether.lives(group):
        assert time.monotonic() < deadline, f"process group {group} was left running"
        time.sleep(0.02)

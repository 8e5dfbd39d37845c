"""The local stack ends as a whole: by Ctrl-C, by SIGTERM, and when it is killed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from infra.local.processes import children_of, is_free
from infra.local.stack import REPOSITORY, Ports, ask

END_TIMEOUT_SECONDS = 15.0


@pytest.fixture
def first_port() -> int:
    """A port that is free, as are those after it, and stay so: systems give other ones to outgoing connections."""
    candidates = range(20_000, 30_000, 10)
    return next(
        port
        for port in random.sample(candidates, len(candidates))
        if all(map(is_free, range(port, port + len(fields(Ports)))))
    )


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """What a test has started, ended whatever happens."""
    programs: list[subprocess.Popen[str]] = []
    yield programs
    for program in programs:
        program.kill()
        program.wait()


def start(first_port: int, folder: Path, started: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Run `python -m infra.local` until it has said what runs where."""
    command = [sys.executable, "-m", "infra.local", "--first-port", str(first_port), "--folder", str(folder)]
    program = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    started.append(program)
    assert program.stdout is not None
    for line in program.stdout:
        if "Ctrl-C" in line:
            break
    return program


def await_end(groups: list[int], first_port: int) -> None:
    """Wait until every process of these groups has ended and every port is free."""
    deadline = time.monotonic() + END_TIMEOUT_SECONDS
    while True:
        command = ["ps", "-A", "-o", "pgid=,stat=,args="]
        listing = subprocess.run(command, capture_output=True, text=True, check=True)
        rows = [line.split(maxsplit=2) for line in listing.stdout.splitlines()]
        left = [row for row in rows if int(row[0]) in groups and not row[1].startswith("Z")]
        if not left and all(map(is_free, range(first_port, first_port + len(fields(Ports))))):
            return
        assert time.monotonic() < deadline, f"left running: {left}"
        time.sleep(0.1)


def test_started_twice_it_names_the_port_and_killed_or_ended_it_leaves_nothing_but_its_data(
    first_port: int, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    """One story, since each start takes seconds."""
    stack = start(first_port, tmp_path, started)
    charge = {"amount": 1999, "currency": "usd", "customer": "cus_nobody", "payment_method": "pm_card_visa"}
    address, key = f"http://127.0.0.1:{first_port}", {"Idempotency-Key": "order-1"}
    assert ask("POST", address, json=charge, headers=key).json()["status"] == "blocked"

    second = start(first_port, tmp_path, started)
    assert second.wait(10) == 2
    assert second.stderr is not None
    assert f"port {first_port} is taken, and the local stack wants it for the charge function" in second.stderr.read()

    groups = children_of(stack.pid)
    assert len(groups) == 11, "ten programs and the tether"
    stack.kill()
    await_end(groups, first_port)

    stack = start(first_port, tmp_path, started)
    assert ask("GET", address, headers=key).json()["status"] == "blocked"
    groups = children_of(stack.pid)
    os.kill(stack.pid, signal.SIGTERM)
    assert stack.wait(END_TIMEOUT_SECONDS) == 0
    await_end(groups, first_port)

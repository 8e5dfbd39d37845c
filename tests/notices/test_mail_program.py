"""The local mail server as a program: its command line, its page, its faults, and how it ends."""

import re
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Final

import pytest
import requests

from infra.local.mail import Fault, main

READY: Final = re.compile(r"Mail server ready on 127\.0\.0\.1:(\d+), web page (\S+)\n")
PATIENCE_SECONDS: Final = 10.0


class Program:
    """The program, running."""

    def __init__(self, folder: Path, *more: str) -> None:
        arguments = ["--port", "0", "--web-port", "0", "--folder", str(folder), *more]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infra.local.mail", *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        ready = READY.fullmatch(line)
        assert ready, line
        self.port, self.web_url = int(ready[1]), ready[2]

    def ask(self, method: str, path: str, **sent: Any) -> requests.Response:
        """Ask its web page for something."""
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, self.web_url + path, timeout=PATIENCE_SECONDS, **sent)

    def send(self, subject: str = "Hello <b>", html: str = "<p>Hello</p>") -> None:
        """Send it a mail."""
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = "pay@rides.example", "jo@example.com", subject
        message["Message-ID"] = "<1@rides.example>"
        message.set_content("Hello")
        message.add_alternative(html, subtype="html")
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE_SECONDS) as server:
            server.send_message(message)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal, and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """One that runs."""
    running = Program(tmp_path / "mails")
    yield running
    if running.process.poll() is None:
        running.end(signal.SIGKILL)


def test_a_mail_that_was_caught_is_listed_and_kept_as_a_file(program: Program, tmp_path: Path) -> None:
    """As it came."""
    program.send()

    (listed,) = program.ask("GET", "/messages").json()
    assert listed["subject"] == "Hello <b>"
    assert (listed["from"], listed["to"]) == ("pay@rides.example", "jo@example.com")
    assert listed["message_id"] == "<1@rides.example>"
    (path,) = (tmp_path / "mails").glob("*.eml")
    assert program.ask("GET", f"/{path.name}").content == path.read_bytes()
    assert b"Subject: Hello <b>" in path.read_bytes()


def test_the_page_shows_mails_and_lets_them_run_nothing(program: Program) -> None:
    """Whatever a mail brings along."""
    program.send(html="<script>alert(1)</script><p>Hello</p>")

    page = program.ask("GET", "/").text
    (listed,) = program.ask("GET", "/messages").json()
    shown = program.ask("GET", f"/{listed['name']}.html")
    assert "Hello &lt;b&gt;" in page
    assert f'src="/{listed["name"]}.html"' in page
    assert "<p>Hello</p>" in shown.text
    assert "default-src 'none'" in shown.headers["Content-Security-Policy"]
    assert "sandbox" in shown.headers["Content-Security-Policy"]


def test_mails_are_forgotten_on_request_and_kept_over_a_restart(program: Program, tmp_path: Path) -> None:
    """They are files."""
    program.send()
    assert program.end() == 0
    again = Program(tmp_path / "mails")
    try:
        assert len(again.ask("GET", "/messages").json()) == 1
        assert again.ask("DELETE", "/messages").status_code == 200
        assert again.ask("GET", "/messages").json() == []
        assert "None yet" in again.ask("GET", "/").text
    finally:
        assert again.end() == 0


def test_faults_come_and_go_on_command(program: Program) -> None:
    """`times`: with so many mails."""
    assert program.ask("POST", "/faults", json={"fault": Fault.REFUSE_TEMPORARILY, "times": 1}).status_code == 200
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        program.send()
    program.send()

    program.ask("POST", "/faults", json={"fault": Fault.DOWN})
    with pytest.raises(ConnectionRefusedError):
        program.send()
    program.ask("DELETE", "/faults")
    program.send()

    assert len(program.ask("GET", "/messages").json()) == 2


@pytest.mark.parametrize("body", ['{"fault": "nonsense"}', "[]", "{", '{"fault": "hang", "times": "x"}', "{}"])
def test_a_fault_that_there_is_not_is_400(program: Program, body: str) -> None:
    """And names those that there are."""
    answer = program.ask("POST", "/faults", data=body)
    assert answer.status_code == 400
    assert "refuse_permanently" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nothing"), ("GET", "/../pyproject.eml"), ("POST", "/"), ("DELETE", "/")]
)
def test_another_address_is_404(program: Program, method: str, path: str) -> None:
    """Nothing but mails can be read."""
    assert program.ask(method, path).status_code == 404


def test_it_ends_in_order_even_while_it_hangs(program: Program) -> None:
    """By SIGINT as by SIGTERM."""
    program.ask("POST", "/faults", json={"fault": Fault.HANG})
    with socket.create_connection(("127.0.0.1", program.port), timeout=PATIENCE_SECONDS) as connection:
        assert connection.recv(100).startswith(b"220")
        assert program.end(signal.SIGINT) == 0


def test_a_port_that_is_taken_is_said(program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line."""
    assert main(["--port", str(program.port), "--folder", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("cannot start: ")

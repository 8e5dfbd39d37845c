"""Parts are built once, lazily, from the environment; importing a function costs nothing and needs nothing."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from shared import log, wiring
from shared.settings import NEEDS, SettingsError

ROOT: Final = Path(__file__).parent.parent
ENVIRONMENT: Final[Mapping[str, str]] = {
    "GOOGLE_CLOUD_PROJECT": "local",
    "DATASTORE_EMULATOR_HOST": "127.0.0.1:1",
    "CLOUD_TASKS_EMULATOR_HOST": "127.0.0.1:1",
    "STRIPE_API_KEY": "sk_test_wiring",
    "STRIPE_API_BASE": "http://127.0.0.1:1",
    "STRIPE_WEBHOOK_SECRETS": "whsec_one,whsec_two",
    "TASKS_LOCATION": "nowhere",
    "CHARGE_URL": "http://127.0.0.1:1/charge/",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A complete environment, and nothing built before or after."""
    for name in {*ENVIRONMENT, "LEASE", "STRIPE_TIMEOUT", "QUARANTINE", "LEDGER_GENERATION"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    wiring.use(None)
    yield
    wiring.use(None)


def test_the_parts_are_built_once_and_shared() -> None:
    """One connection pool a process, whichever request comes first."""
    assert wiring.parts("charge") is wiring.parts("charge")


def test_two_first_requests_at_once_build_one_deployment() -> None:
    """Threads of one worker."""
    start, built = threading.Barrier(8), []

    def first() -> None:
        start.wait()
        built.append(wiring.parts("charge"))

    threads = [threading.Thread(target=first) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(parts) for parts in built}) == 1


def test_the_parts_are_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent while they are built: nothing listens at these addresses."""
    monkeypatch.setenv("LEDGER_GENERATION", "3")
    parts = wiring.parts("webhook")
    assert parts.settings.stripe_webhook_secrets == ("whsec_one", "whsec_two")
    assert parts.settings.ledger_generation == 3
    assert parts.livemode is False


def test_a_live_key_makes_a_live_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charges carry it, and events must agree with it."""
    monkeypatch.setenv("STRIPE_API_KEY", "rk_live_wiring")
    assert wiring.parts("charge").livemode is True


@pytest.mark.parametrize("function", NEEDS)
def test_missing_variables_are_one_error_that_names_them_all(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one a deployment."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name)
    with pytest.raises(SettingsError) as error:
        wiring.parts(function)
    assert all(name in str(error.value) for name in NEEDS[function])


def test_once_it_is_mended_the_next_request_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is not kept."""
    monkeypatch.delenv("CHARGE_URL")
    with pytest.raises(SettingsError):
        wiring.parts("charge")
    monkeypatch.setenv("CHARGE_URL", "http://127.0.0.1:1")
    assert wiring.parts("charge").settings.charge_url == "http://127.0.0.1:1"


def test_durations_that_do_not_nest_are_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is charged under a lease that is too short."""
    monkeypatch.setenv("LEASE", "40s")
    with pytest.raises(ValueError, match="STRIPE_TIMEOUT"):
        wiring.parts("charge")


def test_only_the_notify_function_is_built_to_tell_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others need not load mail, templates and languages to start."""
    monkeypatch.setenv("SMTP_URL", "smtp://user:secret@127.0.0.1:1")
    monkeypatch.setenv("MAIL_FROM", "pay@rides.example")
    monkeypatch.setenv("OUTCOME_URL", "http://127.0.0.1:1")
    assert wiring.parts("charge").notifier is None
    wiring.use(None)
    notifier = wiring.parts("notify").notifier
    assert notifier is not None
    assert notifier._mail is not None
    assert notifier._outcomes is not None


def test_the_task_is_made_beside_the_request() -> None:
    """A queue that hangs must not make the caller wait."""
    hangs, began = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        hangs.wait(10)

    wiring._in_thread(work)
    assert began.wait(10)
    assert not hangs.is_set()
    hangs.set()


def test_what_is_logged_beside_the_request_has_its_trace() -> None:
    """A task that could not be made is one of the lines that an operator looks for."""
    trace, found = log.Trace(trace_id="0af7651916cd43dd8448eb211c80319c"), queue.Queue[log.Trace | None]()
    with log.within(trace):
        wiring._in_thread(lambda: found.put(log.trace()))
    assert found.get(timeout=10) == trace


def test_what_goes_wrong_beside_the_request_is_a_line_of_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    """Without what it says; Python's own would be plain text, with it."""
    says = "of jane"  # Not where it is raised: a stack quotes the code.

    def fail() -> None:
        raise LookupError(says)

    before = set(threading.enumerate())
    wiring._in_thread(fail)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    written = capfd.readouterr()
    assert (written.err, json.loads(written.out)["exception"]) == ("", "LookupError")
    assert "jane" not in written.out


@pytest.mark.parametrize("function", NEEDS)
def test_importing_a_function_reads_no_environment_and_opens_no_connection(function: str) -> None:
    """In a process of its own, with an empty environment, and sockets that refuse to be opened."""
    program = f"""
import os, socket, sys
# What these do at their own import is theirs.
import functions_framework, flask, stripe, google.cloud, babel.dates, babel.messages.pofile, babel.numbers, jinja2
class Refuses(dict):
    def __getitem__(self, name): raise AssertionError("read " + name)
    def get(self, name, default=None): raise AssertionError("read " + name)
def refuse(*arguments, **named): raise AssertionError("opened a connection")
import shared.store, shared.tasks, shared.gateway
for name in [name for name in sys.modules if name.split(".")[0] == "shared"]:
    del sys.modules[name]
socket.socket.connect = refuse
socket.create_connection = refuse
os.environ = Refuses()
import functions.{function}
"""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(  # Its own interpreter: this one has imported everything already.
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# fmt: off
LIBRARIES: Final = frozenset(
    {"flask", "functions_framework", "google", "grpc", "itsdangerous", "msgspec", "requests", "stripe", "werkzeug"}
)
MAY_IMPORT: Final[Mapping[str, frozenset[str]]] = {
    # the function   what our modules import at its start, of the packages that are installed
    "charge":        LIBRARIES,
    "webhook":       LIBRARIES,
    "reconcile":     LIBRARIES,
    "notify":        LIBRARIES | {"jinja2", "babel"},
    "portal":        LIBRARIES | {"jinja2", "babel"},
    "console":       LIBRARIES | {"jinja2", "babel"},
}
# fmt: on


@pytest.mark.parametrize("function", NEEDS)
def test_a_function_imports_what_it_needs_and_no_other(function: str) -> None:
    """A cold start pays for each import: in a process of its own, by what our modules ask for, from main.py on."""
    program = f"""
import builtins, importlib.metadata, sys
packages, asked, real = importlib.metadata.packages_distributions(), set(), builtins.__import__
def noting(name, globals=None, locals=None, fromlist=(), level=0):
    asker = (globals or {{}}).get("__name__", "").partition(".")[0]
    if level == 0 and asker in ("functions", "shared"):
        asked.add(name.partition(".")[0])
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = noting
import infra.main
infra.main.{function}
ours = [name for name in sys.modules if name.startswith("functions.")]
tasks = [name for name in sys.modules if name.startswith("google.cloud.tasks")]
print(*sorted(asked & packages.keys()), *ours, *tasks)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert imported == MAY_IMPORT[function] | {f"functions.{function}"}

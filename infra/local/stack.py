"""The local stack: everything that a deployment is made of, on the loopback interface of one machine.

    with Stack(folder=Path(".local/stack")) as stack:
        requests.post(stack.charge_url, headers={"Idempotency-Key": "order-1001"}, json={...})

Datastore and Cloud Tasks are emulators, Stripe is a double; the functions are the product's own, served as in
production by functions-framework under gunicorn. Cloud Scheduler is a thread that posts to reconcile. When the
`with` block ends, nothing is left running; should this process be killed, `tether.py` sees to the same.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any, Final, Self

import grpc
import requests
from google.cloud import tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcTransport

from infra.local.datastore import DatastoreEmulator
from infra.local.processes import LOOPBACK, PortTaken, Program, ProgramFailed, end_of, free_ports, is_free
from infra.local.tether import Tether
from shared.policy import Limits

REPOSITORY: Final = Path(__file__).parents[2]
PROJECT: Final = "paidonce-local"
LOCATION: Final = "local"
NOTICES: Final = f"projects/{PROJECT}/locations/{LOCATION}/queues/notices"
QUEUE: Final = f"projects/{PROJECT}/locations/{LOCATION}/queues/charges"
INVOKER: Final = f"tasks@{PROJECT}.iam.gserviceaccount.com"  # Whom the tasks' OIDC tokens name.

STRIPE_API_KEY: Final = "sk_test_paidonce_local"
WEBHOOK_SECRETS: Final = ("whsec_paidonce_local_new", "whsec_paidonce_local_old")  # Two, as while one is replaced.

WEBHOOK_COMPRESSION: Final = 20  # An event that was refused comes again after 3 s, not after Stripe's minute.
BANK_DEBIT_SECONDS: Final = 5  # Not days.

FUNCTION_THREADS: Final = 32  # A delivery mostly waits for Stripe; too few threads would make callers queue for them.

QUEUE_OPTIONS: Final = (  # As deployed (infra/terraform/queues.tf), of the queue of charges.
    "max_dispatches_per_second=10",
    "max_concurrent_dispatches=50",
    "min_backoff=1",  # Most of what a delivery waits for is over in a second.
    "max_backoff=300",  # A charge may be in trouble for a day, and a try every five minutes is cheap.
    "max_doublings=16",  # 1, 2, 4, ... 256, 300 s.
    "max_attempts=-1",  # As long as a task lives, 31 days: only a charge that has ended ends its task.
)
NOTICE_OPTIONS: Final = QUEUE_OPTIONS[2:]  # At the service's own rate, and not days later: somebody is watching.

SWEEP_EVERY: Final = timedelta(seconds=10)  # In production every minute; nobody wants to watch that pass.
CALL_TIMEOUT_SECONDS: Final = 60.0
READY_CHECK_TIMEOUT_SECONDS: Final = 2.0

INHERITED: Final = ("HOME", "LANG", "PATH", "TMPDIR")
"""What our programs see of our own environment: no proxy, no credentials, and above all no live API key."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where each program listens.

    In development always at the same ports, so that a command found in the shell's history works. Systems do not give
    these to outgoing connections, hardly any is registered with IANA, and the crowd is at 8080.
    """

    charge: int = 8740  # First, as the one that callers call.
    webhook: int = 8741
    reconcile: int = 8742
    stripe: int = 8743
    tasks: int = 8744
    tasks_control: int = 8745
    datastore: int = 8746
    notify: int = 8747
    portal: int = 8748
    mail_page: int = 8749
    mail: int = 8750
    console: int = 8751

    @classmethod
    def free(cls) -> Self:
        """Choose ports that are free just now: for tests, any number of which may run at once."""
        return cls._of(free_ports(len(fields(cls))))

    @classmethod
    def following(cls, first: int) -> Self:
        """Choose a port and those after it."""
        return cls._of(range(first, first + len(fields(cls))))

    @classmethod
    def _of(cls, ports: Sequence[int]) -> Self:
        return cls(**{field.name: port for field, port in zip(fields(cls), ports, strict=True)})


TITLES: Final = {
    "charge": "the charge function",
    "webhook": "the webhook function",
    "reconcile": "the reconcile function",
    "stripe": "the Stripe double",
    "tasks": "the Cloud Tasks emulator",
    "tasks_control": "the Cloud Tasks emulator's controls",
    "datastore": "the Datastore emulator",
    "notify": "the notify function",
    "portal": "the customer's page",
    "mail_page": "the page of the mail that was caught",
    "mail": "the mail server",
    "console": "the operator's page",
}


class Stack:
    """The stack, started by `with`. Raises PortTaken, ProgramFailed or EmulatorUnavailable, and then leaves nothing.

    folder: for the logs, and for the data where that is kept.
    keep_data: keep charges, tasks and Stripe's memory on disk; by default all is forgotten with the processes.
    ports: by default free ones.
    limits: the functions' durations.
    sweep_every: how often reconcile is called; None: only by `scheduler.call()`.
    """

    def __init__(
        self,
        *,
        folder: Path,
        keep_data: bool = False,
        ports: Ports | None = None,
        limits: Limits | None = None,
        sweep_every: timedelta | None = SWEEP_EVERY,
    ) -> None:
        self.folder = folder
        self.ports = ports or Ports.free()
        self.charge_url = _url(self.ports.charge)
        self.webhook_url = _url(self.ports.webhook)
        self.reconcile_url = _url(self.ports.reconcile)
        self.notify_url = _url(self.ports.notify)
        self.portal_url = _url(self.ports.portal)
        self.console_url = _url(self.ports.console)
        self.mail_url = _url(self.ports.mail_page)
        self.stripe_url = _url(self.ports.stripe)
        self.tasks_host = f"{LOOPBACK}:{self.ports.tasks}"
        self.tasks_control_url = _url(self.ports.tasks_control)
        self.scheduler = Scheduler(self.reconcile_url, sweep_every)
        self._keep_data = keep_data
        self._limits = limits or Limits()
        self._tether = Tether()
        self._datastore = _TetheredDatastore(
            self._tether, port=self.ports.datastore, folder=self._data("datastore"), log=self.log("datastore")
        )
        self._programs = {program.name: program for program in self._define()}
        self._ending = ExitStack()

    # --- Starting and ending ------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start everything, and return once everything answers."""
        for field in fields(self.ports):
            port = getattr(self.ports, field.name)
            if not is_free(port):
                raise PortTaken(f"port {port} is taken, and the local stack wants it for {TITLES[field.name]}")
        with self._ending as undo:
            self._start(undo)
            self._ending = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.close()

    def _start(self, undo: ExitStack) -> None:
        """Start all programs at once, as none connects to another before its first use, and then wait for each."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._tether.start()
        undo.callback(self._tether.close)
        undo.callback(self._datastore.stop)  # Last of the programs, when nobody writes to it any more.
        undo.callback(self.scheduler.stop)  # After whom it calls: it need not wait for an answer then.
        for program in self._programs.values():
            undo.callback(program.stop)
            program.start()
        undo.callback(self._terminate)  # Ask all at once, since each may take a while, and then wait for each.
        self._datastore.start()
        for program in self._programs.values():
            program.await_ready()
        self.scheduler.start()

    def _terminate(self) -> None:
        for program in self._programs.values():
            program.terminate()

    def check(self) -> None:
        """Raise ProgramFailed if a program has ended by itself."""
        for program in self._programs.values():
            program.check()
        if not self._datastore.running:
            raise ProgramFailed(f"{TITLES['datastore']} ended by itself:\n{end_of(self.log('datastore'))}")

    # --- What the programs are ----------------------------------------------------------------------------------------

    def log(self, name: str) -> Path:
        """Return where a program's output goes."""
        return self.folder / f"{name}.log"

    def _data(self, name: str) -> Path | None:
        return self.folder / f"{name}-data" if self._keep_data else None

    def _define(self) -> list[Program]:
        secrets = [word for secret in WEBHOOK_SECRETS for word in ("--webhook-secret", secret)]
        times = ["--webhook-compression", WEBHOOK_COMPRESSION, "--bank-debit-seconds", BANK_DEBIT_SECONDS]
        ports = ["--port", self.ports.tasks, "--control-port", self.ports.tasks_control]
        options = {QUEUE: QUEUE_OPTIONS, NOTICES: NOTICE_OPTIONS}
        queues = [word for queue, said in options.items() for word in ("--queue", ",".join((queue, *said)))]
        mail = ["--port", self.ports.mail, "--web-port", self.ports.mail_page, "--folder", self.folder / "mail"]
        return [
            self._program(
                "stripe",
                ["infra.local.stripe", "--port", self.ports.stripe, "--webhook", self.webhook_url, *secrets, *times],
                database=True,
                ready=(f"{self.stripe_url}/_double/clock", 200),
            ),
            self._program(
                "tasks", ["infra.local.tasks", *ports, *queues], database=True, ready=(self.tasks_control_url, 200)
            ),
            self._function("charge", ready=(f"{self.charge_url}/{'0' * 40}", 404)),  # It has looked for that charge.
            self._function("webhook", ready=(self.webhook_url, 405)),
            self._function("reconcile", ready=(self.reconcile_url, 405)),
            self._function("notify", ready=(self.notify_url, 404)),
            self._function("portal", ready=(f"{self.portal_url}/x", 404)),
            self._function("console", ready=(f"{self.console_url}/health", 200)),
            self._program("mail", ["infra.local.mail", *mail], ready=(f"{self.mail_url}/messages", 200)),
        ]

    def _function(self, name: str, *, ready: tuple[str, int]) -> Program:
        source, port = REPOSITORY / "functions" / f"{name}.py", getattr(self.ports, name)
        arguments = ["--source", source, "--target", name, "--host", LOOPBACK, "--port", port]
        return self._program(name, ["functions_framework", *arguments], ready=ready)

    def _program(
        self, name: str, module: Sequence[object], *, ready: tuple[str, int], database: bool = False
    ) -> Program:
        kept = ["--database", self._data(name) or ":memory:"] if database else []
        return Program(
            name,
            [sys.executable, "-m", *map(str, (*module, *kept))],
            title=TITLES[name],
            environment=self.environment(),
            log=self.log(name),
            ready=functools.partial(_answers, *ready),
            tether=self._tether,
        )

    def environment(self) -> dict[str, str]:
        """Return the environment of our programs: the contract's variables, and of the caller's as little as works."""
        return {
            **{name: os.environ[name] for name in INHERITED if name in os.environ},
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",  # So that a log is complete when its program is killed.
            "THREADS": str(FUNCTION_THREADS),
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "DATASTORE_EMULATOR_HOST": f"{LOOPBACK}:{self.ports.datastore}",
            "CLOUD_TASKS_EMULATOR_HOST": self.tasks_host,
            "STRIPE_API_KEY": STRIPE_API_KEY,
            "STRIPE_API_BASE": self.stripe_url,
            "STRIPE_WEBHOOK_SECRETS": ",".join(WEBHOOK_SECRETS),
            "TASKS_LOCATION": LOCATION,
            "TASKS_INVOKER": INVOKER,
            "CHARGE_QUEUE": QUEUE.rpartition("/")[2],
            "CHARGE_URL": self.charge_url,
            "NOTIFY_QUEUE": NOTICES.rpartition("/")[2],
            "NOTIFY_URL": self.notify_url,
            "PORTAL_URL": self.portal_url,
            "SMTP_URL": f"smtp://{LOOPBACK}:{self.ports.mail}",
            "MAIL_FROM": "Paidonce <billing@example.com>",
            "OPERATOR_EMAIL": "operator@example.com",
            "LEASE": f"{self._limits.lease.total_seconds():g}s",
            "QUARANTINE": f"{self._limits.quarantine.total_seconds():g}s",
            "STRIPE_TIMEOUT": f"{self._limits.stripe_timeout.total_seconds():g}s",
        }

    # --- Talking to it ------------------------------------------------------------------------------------------------

    def at_stripe(self, method: str, path: str, **form: Any) -> dict[str, Any]:
        """Do something in the Stripe account, as its owner does."""
        answer = ask(method, self.stripe_url + path, data=form, auth=(STRIPE_API_KEY, ""))
        answer.raise_for_status()
        return dict(answer.json())

    def new_customer(self) -> str:
        """Return the id of a new customer."""
        return str(self.at_stripe("POST", "/v1/customers")["id"])

    def double(self, method: str, command: str, **body: Any) -> dict[str, Any]:
        """Tell the Stripe double something that no client of Stripe's could, or ask it: above all for its tally."""
        answer = ask(method, f"{self.stripe_url}/_double/{command}", json=body)
        answer.raise_for_status()
        return dict(answer.json())

    def tasks_client(self) -> tasks_v2.CloudTasksClient:
        """Return a client for the Cloud Tasks emulator."""
        channel = grpc.insecure_channel(self.tasks_host, options=[("grpc.enable_http_proxy", 0)])
        return tasks_v2.CloudTasksClient(transport=CloudTasksGrpcTransport(channel=channel))

    # --- What may happen to it ----------------------------------------------------------------------------------------

    def pause_datastore(self) -> None:
        """Have Datastore answer nothing, its connections open: the worst way of being down."""
        self._datastore.pause()

    def resume_datastore(self) -> None:
        """Have Datastore go on, with all that was asked of it meanwhile."""
        self._datastore.resume()

    def disturb_events(self, **disturbance: Any) -> None:
        """Have Stripe's events go astray, as the double's README says."""
        self.double("POST", "webhooks", **disturbance)

    def disturb_tasks(self, **faults: Any) -> None:
        """Have tasks go astray, as the emulator's README says."""
        ask("POST", f"{self.tasks_control_url}/faults", json=faults).raise_for_status()

    def calm(self) -> None:
        """Let all be well again at Stripe, Cloud Tasks and Datastore. What is lost stays lost."""
        self.double("DELETE", "faults")
        self.disturb_events(lose=0, duplicate=0, delay_seconds=0, shuffle=False, paused=False)
        ask("DELETE", f"{self.tasks_control_url}/faults").raise_for_status()
        self.resume_datastore()

    def kill_worker(self, function: str) -> None:
        """Kill the process that serves a function, in the midst of whatever it does; another takes over at once."""
        self._programs[function].kill_child()

    def restart(self, name: str) -> None:
        """End a program in order, as a deployment does, and start it again."""
        program = self._programs[name]
        program.stop()
        program.start()
        program.await_ready()


class Scheduler:
    """Cloud Scheduler, with one job: to call reconcile again and again."""

    def __init__(self, url: str, every: timedelta | None) -> None:
        self._url = url
        self._every = every
        self._running = Event()
        self._ended = Event()
        self._thread = Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin; with no interval, wait to be asked."""
        if self._every is not None:
            self._running.set()
            self._thread.start()

    def stop(self) -> None:
        """Call no more."""
        self._ended.set()
        self._running.set()
        if self._thread.is_alive():
            self._thread.join()

    def pause(self) -> None:
        """Let the times pass without a call."""
        self._running.clear()

    def resume(self) -> None:
        """Call again."""
        self._running.set()

    def call(self) -> int | None:
        """Call reconcile now, and return how many charges it swept; None: it did not answer as it should."""
        try:
            answer = ask("POST", self._url)
            return int(answer.json()["swept"]) if answer.ok else None
        except requests.RequestException:
            return None

    def _run(self) -> None:
        assert self._every is not None, "the thread is started for an interval"
        while not self._ended.wait(self._every.total_seconds()):
            if self._running.is_set():
                self.call()


class _TetheredDatastore(DatastoreEmulator):
    """The Datastore emulator, which does not outlive us either."""

    def __init__(self, tether: Tether, *, port: int, folder: Path | None, log: Path) -> None:
        super().__init__(port=port, folder=folder, log=log)
        self._tether = tether

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        self._tether.hold(process.pid)
        super()._await_ready(process)

    def stop(self) -> None:
        """End it as ever."""
        process = self._process
        super().stop()
        if process is not None:
            self._tether.release(process.pid)


def ask(method: str, url: str, *, timeout_seconds: float = CALL_TIMEOUT_SECONDS, **sent: Any) -> requests.Response:
    """Send one HTTP request on this machine. Raises requests.RequestException if nothing came back."""
    with requests.Session() as session:
        session.trust_env = False  # No proxy has a part in this.
        return session.request(method, url, timeout=timeout_seconds, **sent)


def _answers(url: str, status: int) -> bool:
    try:
        return ask("GET", url, timeout_seconds=READY_CHECK_TIMEOUT_SECONDS).status_code == status
    except requests.RequestException:
        return False


def _url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"

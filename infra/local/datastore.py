"""Google's Datastore emulators, started as programs of our own.

    with DatastoreEmulator(Engine.DATASTORE, folder=Path(".local/datastore")) as emulator:
        store = DatastoreStore("demo", emulator_host=emulator.host)

Java is started directly: ended through `gcloud`, an emulator stays behind.
"""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Final, Self

LOOPBACK: Final = "127.0.0.1"

READY_TIMEOUT_SECONDS: Final = 60.0  # Usually 2 s; 22 s were seen while a package was being installed.
STOP_TIMEOUT_SECONDS: Final = 10.0  # Usually 0.4 s, in which an emulator on disk saves.
POLL_SECONDS: Final = 0.05

SDK_FOLDERS: Final = (
    "/usr/lib/google-cloud-sdk",
    "/usr/share/google-cloud-sdk",
    "/opt/google-cloud-sdk",
    "~/google-cloud-sdk",
    "/snap/google-cloud-cli/current",
    "/opt/homebrew/share/google-cloud-sdk",
)
"""Where the Google Cloud SDK is usually installed."""


class EmulatorUnavailable(Exception):
    """The emulator cannot run here: the message says why, and what to do."""


@dataclass(frozen=True)
class Program:
    """One of Google's emulators: its jar, and how to get that and start it."""

    variable: str  # Names the jar's path, where it is set.
    component: str  # Of the Google Cloud SDK.
    jar: str  # Within the SDK's `platform` folder.
    main_class: str


class Engine(Enum):
    """What answers for Datastore."""

    # Optimistic: the first to commit wins. In memory or on disk.
    DATASTORE = Program(
        variable="PAIDONCE_DATASTORE_JAR",
        component="cloud-datastore-emulator",
        jar="cloud-datastore-emulator/CloudDatastore.jar",
        main_class="com.google.cloud.datastore.emulator.CloudDatastore",
    )
    # Pessimistic: reads lock, as in the service by default. In memory only.
    FIRESTORE = Program(
        variable="PAIDONCE_FIRESTORE_JAR",
        component="cloud-firestore-emulator",
        jar="cloud-firestore-emulator/cloud-firestore-emulator.jar",
        main_class="com.google.cloud.datastore.emulator.firestore.CloudFirestore",
    )


def find_jar(engine: Engine, environment: Mapping[str, str] = os.environ) -> Path:
    """Find the emulator's jar: where its variable says, else in the SDK of `gcloud`, else in the usual folders.

    Raises EmulatorUnavailable, which says how to get it.
    """
    program = engine.value
    if named := environment.get(program.variable):
        if Path(named).is_file():
            return Path(named)
        raise EmulatorUnavailable(f"{program.variable} names {named}, and there is no such file")
    for folder in _sdk_folders(environment):
        jar = folder / "platform" / program.jar
        if jar.is_file():
            return jar
    raise EmulatorUnavailable(
        f"{Path(program.jar).name} was not found: install it with `gcloud components install {program.component}` "
        f"(or as the package google-cloud-cli-{program.component.removeprefix('cloud-')}), "
        f"or set {program.variable} to its path"
    )


def find_java(environment: Mapping[str, str] = os.environ) -> str:
    """Find Java on the path. Raises EmulatorUnavailable."""
    java = shutil.which("java", path=environment.get("PATH", ""))
    if java is None:
        raise EmulatorUnavailable("Google's emulators need Java 17 or later, and there is no `java` on the PATH")
    return java


class DatastoreEmulator:
    """One emulator on the loopback interface, as a process and process group of its own.

    port: to listen on; by default a free one, kept when started again.
    folder: where to keep the data (DATASTORE only). By default nothing is kept. What was committed in the last 30 s is
    lost when the process is killed, and kept when it is stopped.
    log: a file for its output, appended to. By default that is discarded.
    """

    def __init__(
        self,
        engine: Engine = Engine.DATASTORE,
        *,
        port: int | None = None,
        folder: Path | None = None,
        log: Path | None = None,
        ready_timeout_seconds: float = READY_TIMEOUT_SECONDS,
    ) -> None:
        if folder is not None and engine is not Engine.DATASTORE:
            raise ValueError(f"{engine.name} keeps nothing on disk")
        self._engine = engine
        self.port = port or _free_port()
        self._folder = folder
        self._log = log
        self._ready_timeout_seconds = ready_timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """Return `host:port`, as DATASTORE_EMULATOR_HOST wants it."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the process lives, paused or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it and wait until it answers. Raises EmulatorUnavailable, and then leaves nothing running."""
        if self.running:
            return self
        command = [find_java(), *self._arguments(find_jar(self._engine))]
        if not _is_free(self.port):
            raise EmulatorUnavailable(f"port {self.host} is taken: end what listens there, or choose another port")
        output = subprocess.DEVNULL if self._log is None else self._log.open("ab")
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        finally:
            if not isinstance(output, int):
                output.close()
        try:
            self._await_ready(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it: ask, wait, and kill it if it does not. Nothing is left running. Again: nothing happens."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGCONT)  # A paused process hears nothing until it goes on.
        try:
            process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def pause(self) -> None:
        """Stop it in its tracks: connections stay open and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on, and answer what has waited."""
        self._signal(signal.SIGCONT)

    def reset(self) -> None:
        """Forget everything. In memory only."""
        assert self._folder is None, "an emulator on disk refuses to be reset: remove its folder"
        status = _status(self.port, "POST", "/reset", timeout_seconds=10)
        if status != 200:
            raise EmulatorUnavailable(f"the emulator at {self.host} did not reset: it answered {status}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _arguments(self, jar: Path) -> list[str]:
        # A quarter GiB and the simple collector: half the memory, no slower.
        java = ["-Xmx256m", "-XX:+UseSerialGC", "-Duser.language=en", "-cp", str(jar), self._engine.value.main_class]
        address = [f"--host={LOOPBACK}", f"--port={self.port}"]
        if self._engine is Engine.FIRESTORE:
            return [*java, *address, "--database-mode=datastore-mode"]
        kept = "--testing" if self._folder is None else str(self._folder)
        return [*java, "start", *address, "--firestore_in_datastore_mode", kept]

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._ready_timeout_seconds
        hint = "give it a log to see why" if self._log is None else f"see {self._log}"
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise EmulatorUnavailable(f"the emulator ended by itself with status {process.returncode}: {hint}")
            if _status(self.port, "GET", "/", timeout_seconds=1) == 200:
                return
            time.sleep(POLL_SECONDS)
        raise EmulatorUnavailable(f"the emulator was not ready in {self._ready_timeout_seconds:g} s: {hint}")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise EmulatorUnavailable("the emulator is not running")
        os.killpg(self._process.pid, number)


def _sdk_folders(environment: Mapping[str, str]) -> list[Path]:
    folders = []
    if gcloud := shutil.which("gcloud", path=environment.get("PATH", "")):
        folders.append(Path(gcloud).resolve().parent.parent)
    if root := environment.get("CLOUDSDK_ROOT_DIR"):
        folders.append(Path(root))
    return folders + [Path(folder).expanduser() for folder in SDK_FOLDERS]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        # A connection that has just ended takes no port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _status(port: int, method: str, path: str, *, timeout_seconds: float) -> int | None:
    """Ask the emulator over HTTP and return the status; None if there was no answer."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout_seconds)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()

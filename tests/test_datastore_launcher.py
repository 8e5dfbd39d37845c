"""The emulators start, say why they cannot, and leave nothing behind."""

import os
import socket
from pathlib import Path

import pytest

from infra.local.datastore import DatastoreEmulator, EmulatorUnavailable, Engine, find_jar, find_java
from shared.store import DatastoreStore


@pytest.mark.parametrize("engine", Engine)
def test_a_missing_jar_says_how_to_get_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear message, with the command."""
    monkeypatch.setattr("infra.local.datastore.SDK_FOLDERS", ("/nowhere",))

    with pytest.raises(EmulatorUnavailable, match=rf"gcloud components install {engine.value.component}"):
        find_jar(engine, {"PATH": "/nowhere"})


def test_a_variable_that_names_no_file_is_not_passed_over() -> None:
    """Whoever set it meant it."""
    with pytest.raises(EmulatorUnavailable, match="PAIDONCE_DATASTORE_JAR names /nowhere"):
        find_jar(Engine.DATASTORE, {"PAIDONCE_DATASTORE_JAR": "/nowhere"})


def test_the_jar_is_found_where_it_is_named_then_with_gcloud_then_in_the_sdk(tmp_path: Path) -> None:
    """`gcloud` on the path may be a link into the SDK that it belongs to."""
    jars = []
    for sdk in ("named", "linked", "root"):
        jars.append(tmp_path / sdk / "platform" / Engine.DATASTORE.value.jar)
        jars[-1].parent.mkdir(parents=True)
        jars[-1].touch()
    named, linked, root = jars
    gcloud = tmp_path / "linked" / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.touch(mode=0o755)
    (tmp_path / "gcloud").symlink_to(gcloud)
    environment = {"CLOUDSDK_ROOT_DIR": str(tmp_path / "root"), "PATH": str(tmp_path)}

    assert find_jar(Engine.DATASTORE, {**environment, "PAIDONCE_DATASTORE_JAR": str(named)}) == named
    assert find_jar(Engine.DATASTORE, environment) == linked
    assert find_jar(Engine.DATASTORE, {**environment, "PATH": "/nowhere"}) == root


def test_a_missing_java_is_told() -> None:
    """The jar alone does not run."""
    with pytest.raises(EmulatorUnavailable, match="Java"):
        find_java({"PATH": "/nowhere"})


def test_a_port_that_is_taken_is_told_before_anything_is_started() -> None:
    """Java's own account of it is a stack trace."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port: int = listener.getsockname()[1]
        emulator = DatastoreEmulator(port=port)

        with pytest.raises(EmulatorUnavailable, match=f"{port} is taken"):
            emulator.start()

    assert not emulator.running


def test_an_emulator_that_is_not_ready_in_time_is_ended_and_its_log_named(tmp_path: Path) -> None:
    """No test leaves a stray Java behind."""
    emulator = DatastoreEmulator(log=tmp_path / "log", ready_timeout_seconds=0)

    with pytest.raises(EmulatorUnavailable, match=str(tmp_path / "log")):
        emulator.start()

    assert not emulator.running


def test_a_paused_emulator_is_stopped_and_nothing_is_left_running(tmp_path: Path) -> None:
    """Also twice."""
    log = tmp_path / "log"
    with DatastoreEmulator(log=log) as emulator:
        process = emulator._process
        assert process is not None
        assert os.getpgid(process.pid) == process.pid
        emulator.pause()

    assert not emulator.running
    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert log.stat().st_size > 0
    emulator.stop()


@pytest.mark.parametrize("engine", Engine)
def test_a_reset_forgets_everything(engine: Engine) -> None:
    """So that one emulator serves many runs."""
    with DatastoreEmulator(engine) as emulator:
        store = DatastoreStore("reset", emulator_host=emulator.host)
        store.insert("Charge", "a1", {})

        emulator.reset()

        assert store.get("Charge", "a1") is None
        store.close()

"""The caller's system, played over a real socket: down, slow, forgetful; and the verifier that its docs give it."""

import ast
import contextlib
import dataclasses
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from click.testing import CliRunner

from infra.local.processes import free_ports
from shared import preview, wiring
from shared.charge import Audience, Status, Topic
from shared.outcomes import SignedPost, signed
from shared.settings import Settings
from shared.signing import as_text
from tests.notices.office import CHARGE_ID, Office

OUTCOME: Final = (Audience.CALLER, Topic.OUTCOME)
NEW: Final = b"the new secret of thirty-two bytes"
OLD: Final = b"the old secret of thirty-two bytes"
PATIENCE_SECONDS: Final = 10.0
SHORT_SECONDS: Final = 0.3

ReadOutcome = Callable[[Mapping[str, str], bytes, str], Any]


@dataclass
class Receiver:
    """A caller's system. `statuses`: what it answers, one after another, then 204. `waits`: before it does."""

    url: str = ""
    heard: list[tuple[Mapping[str, str], bytes]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    waits: threading.Event | None = None


@contextlib.contextmanager
def listening(running: Receiver, port: int = 0) -> Iterator[Receiver]:
    """Let a receiver hear."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            running.heard.append(({name.lower(): value for name, value in self.headers.items()}, raw))
            if running.waits is not None:
                running.waits.wait(PATIENCE_SECONDS)
            self.send_response(running.statuses.pop(0) if running.statuses else 204)
            self.send_header("Location", f"{running.url}/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # Of clients that have gone away.
    running.url = f"http://127.0.0.1:{server.server_port}/outcomes"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """One that is well."""
    with listening(Receiver()) as running:
        yield running


def office_for(receiver: Receiver, *, secrets: tuple[bytes, ...] = (NEW,), timeout: float = PATIENCE_SECONDS) -> Office:
    """Return a deployment that tells it, and a charge that it should hear of."""
    office = Office(outcomes=SignedPost(receiver.url, secrets, timeout_seconds=timeout))
    office.record(OUTCOME, status=Status.SUCCEEDED, due_at=None)
    return office


def documented(office: Office) -> ReadOutcome:
    """Return the verifier out of the notify function's own documentation, on this deployment's clock."""
    source = (Path(__file__).parents[2] / "functions" / "notify.py").read_text()
    words = ast.get_docstring(ast.parse(source))
    assert words is not None
    namespace: dict[str, Any] = {}
    exec(textwrap.dedent(words[words.index("    import base64") :]), namespace)  # noqa: S102 - it is ours.
    namespace["time"] = SimpleNamespace(time=lambda: office.world.clock.now().timestamp())
    found: ReadOutcome = namespace["read_outcome"]
    return found


# --- Heard ------------------------------------------------------------------------------------------------------------


def test_the_caller_hears_the_charge_and_can_tell_that_it_is_from_us(receiver: Receiver) -> None:
    """By the few lines that the documentation gives."""
    office = office_for(receiver)

    assert office.answer().body["result"] == "told"

    ((headers, raw),) = receiver.heard
    heard = documented(office)(headers, raw, as_text(NEW))
    assert (heard["id"], heard["object"], heard["status"], heard["version"]) == (CHARGE_ID, "charge", "succeeded", 1)
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == f"{CHARGE_ID}-1"


@pytest.mark.parametrize("known", [NEW, OLD], ids=["new", "old"])
def test_a_receiver_that_knows_either_secret_is_content_while_they_are_replaced(
    receiver: Receiver, known: bytes
) -> None:
    """So nobody needs to change both ends at once."""
    office = office_for(receiver, secrets=(NEW, OLD))
    office.answer()
    ((headers, raw),) = receiver.heard
    assert documented(office)(headers, raw, as_text(known))["id"] == CHARGE_ID


@pytest.mark.parametrize("known", ["whsec_bmV3IG9uZQ==", "whsec_b2xkIG9uZQ==", "whsec_b2xkIG9uZQ==, whsec_eA=="])
def test_what_the_command_prints_is_what_a_receiver_checks_with(
    receiver: Receiver, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, while and after one secret takes the other's place; a function is wired with all that it has."""
    office = Office()
    settings = Settings(
        datastore_emulator_host="127.0.0.1:1",
        cloud_tasks_emulator_host="127.0.0.1:1",
        stripe_api_key="sk_test_a",
        outcome_url=receiver.url,
        signing_secrets=("whsec_bmV3IG9uZQ==", "whsec_b2xkIG9uZQ=="),
    )
    outcomes = wiring._notifier(wiring.build(settings))._outcomes
    assert outcomes is not None
    outcomes.tell("msg-1", {"id": CHARGE_ID}, office.world.clock.now())
    monkeypatch.setenv("SIGNING_SECRETS", known)
    printed = CliRunner().invoke(preview.notices, ["secret"]).output.strip()
    ((headers, raw),) = receiver.heard
    assert documented(office)(headers, raw, printed) == {"id": CHARGE_ID}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"raw": b'{"status": "succeeded"}'}, "not signed"),
        ({"webhook-id": "another-1"}, "not signed"),
        ({"webhook-timestamp": "1790000000"}, "not signed"),
        ({"webhook-signature": "v1,AAAA"}, "not signed"),
        ({"webhook-signature": ""}, "not signed"),
        ({"secret": as_text(OLD)}, "not signed"),
        ({"age": timedelta(seconds=301)}, "too old"),
    ],
    ids=str,
)
def test_what_is_not_from_us_or_is_played_back_is_refused(
    receiver: Receiver, change: dict[str, Any], complaint: str
) -> None:
    """By the same lines."""
    office = office_for(receiver)
    office.answer()
    ((headers, raw),) = receiver.heard
    office.world.clock.sleep(change.pop("age", timedelta()))
    raw, secret = change.pop("raw", raw), change.pop("secret", as_text(NEW))
    with pytest.raises(ValueError, match=complaint):
        documented(office)({**headers, **change}, raw, secret)


def test_the_signature_is_the_one_that_libraries_check() -> None:
    """Calculated apart: openssl dgst -sha256 -hmac, over `msg-1.1700000000.{"a":1}`."""
    office = Office()
    at = office.world.clock.now().replace(year=2023, month=11, day=14, hour=22, minute=13, second=20)
    headers = signed("msg-1", b'{"a":1}', at, (b"key",))
    assert headers == {
        "webhook-id": "msg-1",
        "webhook-timestamp": "1700000000",
        "webhook-signature": "v1,cyav/Cm5diVb76qsprxLSkNWoyHe8EmExmmhnorkKCs=",
    }


# --- Not heard --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 307, 400, 404, 410, 429, 500, 503])
def test_whatever_is_not_2xx_is_told_again(receiver: Receiver, status: int) -> None:
    """Under the same id; a redirect is not followed, and it is not given up."""
    receiver.statuses = [status, status]
    office = office_for(receiver)

    assert [office.answer().status for _ in range(4)] == [409, 409, 200, 200]

    assert [headers["webhook-id"] for headers, _ in receiver.heard] == [f"{CHARGE_ID}-1"] * 3


def test_a_receiver_that_is_down_hears_once_it_is_up() -> None:
    """Nothing is lost meanwhile."""
    (port,) = free_ports(1)
    receiver = Receiver(url=f"http://127.0.0.1:{port}/outcomes")
    office = office_for(receiver)
    assert [office.answer().status for _ in range(2)] == [409, 409]
    assert office.notice().told_at is None

    with listening(receiver, port):
        assert office.answer().body["result"] == "told"

    assert len(receiver.heard) == 1


def test_a_receiver_that_is_slow_hears_twice_and_knows_it_by_the_id_and_the_version(receiver: Receiver) -> None:
    """It had taken the first one in, and its answer came too late."""
    receiver.waits = threading.Event()
    office = office_for(receiver, timeout=SHORT_SECONDS)
    assert office.answer().status == 409
    receiver.waits.set()
    office.world.clock.sleep(timedelta(minutes=10))

    assert office.answer().body["result"] == "told"

    read = documented(office)
    (first, first_raw), (second, second_raw) = receiver.heard
    assert first["webhook-id"] == second["webhook-id"]
    assert read(second, second_raw, as_text(NEW))["version"] == 1
    assert first_raw == second_raw
    with pytest.raises(ValueError, match="too old"):  # Each try is signed anew, for the time when it is made.
        read(first, first_raw, as_text(NEW))


def test_messages_out_of_order_are_put_in_order_by_their_version(receiver: Receiver) -> None:
    """A receiver that keeps the highest one ends with what is so."""
    office = Office(outcomes=SignedPost(receiver.url, (NEW,)))
    office.record(OUTCOME, status=Status.DECLINED)
    receiver.statuses = [500]
    assert office.answer(1).status == 409  # It heard of the decline, and did not say so.
    outbox = (office.notice(), dataclasses.replace(office.notice(), number=2))
    office.change(status=Status.SUCCEEDED, due_at=None, outbox=outbox)
    assert [office.answer(number).body["result"] for number in (2, 1)] == ["told", "dropped"]  # It says the same.

    known: dict[str, Any] = {}
    read = documented(office)
    for headers, raw in (receiver.heard[1], receiver.heard[0]):
        told = read(headers, raw, as_text(NEW))
        if told["version"] > known.get("version", 0):
            known = told
    assert known["status"] == "succeeded"

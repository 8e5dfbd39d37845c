"""Traces and metrics, as a receiver gets them: what happened, in which trace, and nothing about anybody."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from shared import __version__, telemetry
from shared.settings import NEEDS, Settings
from shared.tasks import CloudTasks, Task
from shared.telemetry import Telemetry
from tests import otlp
from tests.otlp import Receiver, attributes
from tests.test_log import PERSONAL, SECRETS
from tests.test_wiring import ENVIRONMENT, ROOT
from tests.world import KEY, Fault, Told, World

TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
PARENT: Final = "b7ad6b7169203331"
SAMPLED: Final = f"00-{TRACE}-{PARENT}-01"
NOT_SAMPLED: Final = f"00-{TRACE}-{PARENT}-00"
CREATE: Final = "stripe POST /v1/payment_intents"
CONFIRM: Final = "stripe POST /v1/payment_intents/{id}/confirm"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Somebody who takes it."""
    with otlp.receiving() as running:
        yield running


@pytest.fixture
def world() -> World:
    """A deployment, which has done before what is done once an instance."""
    return World()


@pytest.fixture
def gathered(receiver: Receiver, world: World) -> Iterator[Telemetry]:
    """A process that sends it there."""
    assert world.counts == {}
    gathering = Telemetry(receiver.url, "my-project")
    telemetry.use(gathering)
    yield gathering
    telemetry.use(None)


def charged(world: World, *, key: str = KEY, traceparent: str = SAMPLED, **terms: Any) -> Told:
    """Ask for a charge as Cloud Run passes it on: as a part of a trace."""
    body = {"amount": 1999, "currency": "usd", "customer": world.customer, "payment_method": "pm_card_visa", **terms}
    told = world.post("/", body, key=key, traceparent=traceparent)
    assert told is not None
    return told


# --- What is told -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gathered")
def test_a_charge_and_what_it_asked_of_stripe_are_one_trace_under_the_requests_span(
    world: World, receiver: Receiver
) -> None:
    """Sent before the answer: the instance may get no CPU after it."""
    told = charged(world)

    assert {span.trace_id.hex() for span in receiver.spans} == {TRACE}
    charge = receiver.span("charge")
    assert charge.parent_span_id.hex() == PARENT
    assert attributes(charge) == {"charge": told.body["id"], "status": "succeeded", "result": "done"}
    assert [receiver.span(name).parent_span_id for name in (CREATE, CONFIRM)] == [charge.span_id] * 2
    assert attributes(receiver.span(CONFIRM)) == {
        "status": 200,
        "request": told.body["attempts"][0]["request_id"],
    }


@pytest.mark.usefixtures("gathered")
def test_googles_own_header_names_the_trace_as_well(world: World, receiver: Receiver) -> None:
    """Its span is decimal."""
    name = charged(world, traceparent="").body["id"]
    world.post(f"/{name}/cancel", {}, X_Cloud_Trace_Context=f"{TRACE}/{int(PARENT, 16)};o=1")
    assert (receiver.span("act").trace_id.hex(), receiver.span("act").parent_span_id.hex()) == (TRACE, PARENT)
    assert receiver.span("charge").trace_id.hex() != TRACE


def test_lines_are_logged_under_the_span_in_which_they_are(
    gathered: Telemetry,
    world: World,
    receiver: Receiver,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So Cloud Trace shows them there."""
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-project")
    charged(world)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    decided = [line for line in lines if line["message"] == "decided"]
    assert decided
    for line in decided:
        assert line["logging.googleapis.com/trace"] == f"projects/my-project/traces/{TRACE}"
        assert line["logging.googleapis.com/spanId"] == receiver.span("charge").span_id.hex()
        assert line["logging.googleapis.com/trace_sampled"] is True
    assert gathered._given_up_until == 0


@pytest.mark.usefixtures("gathered")
def test_a_trace_that_nobody_records_is_not_recorded_and_is_counted_all_the_same(
    world: World, receiver: Receiver
) -> None:
    """Cloud Run records one request in ten seconds an instance; what is paid for is up to it."""
    charged(world, traceparent=NOT_SAMPLED)
    assert receiver.spans == []
    assert receiver.values("paidonce.charges") == {("pending",): 1, ("succeeded",): 1}


def test_a_redelivery_by_a_task_is_a_part_of_the_trace_that_made_the_task(
    gathered: Telemetry, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the span in which it was made, whenever it comes."""
    made: list[Any] = []
    queue = CloudTasks(
        project="p",
        location="l",
        queue="charges",
        invoker=None,
        emulator_host="127.0.0.1:1",
        dispatch_deadline=timedelta(seconds=105),
    )
    client = SimpleNamespace(create_task=lambda *, task, **_: made.append(task))
    monkeypatch.setattr(queue, "_connected", lambda: client)
    with telemetry.request({"traceparent": SAMPLED}), telemetry.span("charge"):
        assert queue.create(Task(name="n", url="https://charge.example.com/c1/deliver", body=b"{}"))
    with telemetry.request(dict(made[0].http_request.headers)), telemetry.span("deliver"):
        pass
    gathered.end()

    assert {span.trace_id.hex() for span in receiver.spans} == {TRACE}
    assert receiver.span("deliver").parent_span_id == receiver.span("create_task").span_id
    assert receiver.span("create_task").parent_span_id == receiver.span("charge").span_id


def test_what_is_counted(gathered: Telemetry, receiver: Receiver) -> None:
    """Charges by outcome, calls of Stripe by result, deliveries, and how long an unknown stayed one."""
    world = World(plan={4: Fault.DOWN})  # Stripe, from the confirm on, for two minutes.
    charged(world)
    unknown_at = world.clock.now()
    world.settle()
    charged(world, key="order-2", payment_method="pm_card_chargeDeclinedInsufficientFunds")
    gathered.end()

    statuses = receiver.values("paidonce.charges")
    assert statuses == {("pending",): 2, ("unknown",): 1, ("succeeded",): 1, ("declined",): 1}
    assert receiver.values("paidonce.deliveries")["done",] >= 2
    calls = receiver.values("paidonce.stripe_calls")
    confirm = CONFIRM.removeprefix("stripe ")
    assert calls[confirm, "402"] == 1
    assert calls[confirm, "200"] == 1
    assert calls[confirm, "no reply"] >= 1
    ((labels, seconds),) = receiver.values("paidonce.unknown_seconds").items()
    paid_at = world.charge().succeeded_at
    assert paid_at is not None
    assert labels == ("succeeded",)
    assert seconds == pytest.approx((paid_at - unknown_at).total_seconds(), abs=5)


def test_metrics_go_out_once_a_minute_and_at_the_end(gathered: Telemetry, world: World, receiver: Receiver) -> None:
    """Cloud Monitoring refuses a series that is written more often."""
    for number in range(3):
        charged(world, key=f"order-{number}")
    assert len(receiver.metrics) == 1
    gathered.end()
    assert len(receiver.metrics) == 2
    assert receiver.values("paidonce.charges")["succeeded",] == 3
    gathered.end()
    assert len(receiver.metrics) == 2, "nothing was counted since"


@pytest.mark.usefixtures("gathered")
def test_it_is_told_who_tells_it(world: World, receiver: Receiver) -> None:
    """Which project, which version, which instance: Google files it by these."""
    charged(world)
    for resource in (receiver.traces[0].resource_spans[0].resource, receiver.metrics[0].resource_metrics[0].resource):
        told = attributes(resource)
        assert (told["gcp.project_id"], told["service.version"]) == ("my-project", __version__)
        assert len(told["service.instance.id"]) == 36


# --- What must not be told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_no_secret_is_told(gathered: Telemetry, receiver: Receiver, secret: str) -> None:
    """Blacked out as in the log."""
    with telemetry.span("s", detail=f"it is {secret}."):
        telemetry.note(more=secret, whole={"email": secret})
        telemetry.count("deliveries", result=secret)
    gathered.end()

    kept = secret.partition("_secret_")[2] or secret
    assert receiver.names == ["s"]
    assert kept not in receiver.everything
    assert attributes(receiver.span("s"))["whole"] == "<dict>"


def test_of_an_exception_only_its_class_is_told(gathered: Telemetry, receiver: Receiver) -> None:
    """Its message may hold anything."""

    def fail() -> None:
        with telemetry.span("s"):
            raise ValueError(PERSONAL)

    with pytest.raises(ValueError, match=PERSONAL):
        fail()
    gathered.end()
    assert attributes(receiver.span("s")) == {"error.type": "ValueError"}
    assert receiver.span("s").status.code == 2
    assert PERSONAL not in receiver.everything


def test_nothing_that_a_caller_sends_is_told(gathered: Telemetry, world: World, receiver: Receiver) -> None:
    """No address, no description, no customer, no card, no key, no link, whatever is asked of Stripe."""
    private: dict[str, Any] = {
        "description": "Chemotherapy, second course",
        "receipt_email": "jenny.rosen@example.com",
        "metadata": {"patient": "Jenny Rosen"},
    }
    charged(world, payment_method="pm_card_chargeDeclinedInsufficientFunds", **private)
    name = world.charge().id
    world.post(f"/{name}/payment-method", {"payment_method": "pm_card_visa", "actor": "jenny@example.com"})
    world.post(f"/{name}/out-of-band", {"actor": "jenny@example.com", "reference": "paid by Jenny"})
    world.settle()
    world.sweep()
    world.audit(since=world.clock.now() - timedelta(hours=1))
    gathered.end()

    assert {"charge", "act", "sweep", CONFIRM, "stripe GET /v1/charges"} <= set(receiver.names)
    for told in ("Chemo", "Jenny", "jenny", "example.com", world.customer, "pm_card", KEY, "sk_test", "pi_"):
        assert told not in receiver.everything, told


# --- When nobody takes it ---------------------------------------------------------------------------------------------


def refuses(receiver: Receiver, _: Telemetry) -> None:
    """It has no permission."""
    receiver.refuses = grpc.StatusCode.PERMISSION_DENIED


def hangs(receiver: Receiver, _: Telemetry) -> None:
    """It answers nothing."""
    receiver.hangs.clear()


class Raises:
    """An exporter with a defect."""

    def export(self, _: object) -> Any:
        """Raise what an SDK should not."""
        raise RuntimeError


def has_a_defect(_: Receiver, gathered: Telemetry) -> None:
    """The SDK raises."""
    gathered._exporters = cast("telemetry.Exporters", (Raises(), Raises()))


@pytest.mark.parametrize("broken", [refuses, hangs, has_a_defect])
def test_a_charge_is_answered_as_ever_and_nothing_is_tried_again_for_a_minute(
    broken: Callable[[Receiver, Telemetry], None],
    gathered: Telemetry,
    world: World,
    receiver: Receiver,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One answer a minute waits for half a second, no other one at all; one line tells of it."""
    broken(receiver, gathered)
    plain = World()
    telemetry.use(None)
    expected = [charged(plain, key=f"order-{number}").body["status"] for number in range(4)]
    telemetry.use(gathered)

    told = [charged(world, key=f"order-{number}") for number in range(4)]

    assert [(answer.status, answer.body["status"]) for answer in told] == [(200, status) for status in expected]
    assert world.violations == []
    assert receiver.asked <= 1
    assert receiver.spans == []
    if broken is not hangs:  # It is logged once it has failed, which takes seconds.
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        failed = [line for line in lines if line["message"] == "traces and metrics could not be sent"]
        assert [line["severity"] for line in failed] == ["WARNING"]


def test_a_receiver_that_is_well_again_gets_what_comes_then(
    gathered: Telemetry, world: World, receiver: Receiver
) -> None:
    """What it refused is lost; counts are sums, and lose nothing."""
    receiver.refuses = grpc.StatusCode.PERMISSION_DENIED
    charged(world, key="order-1")
    receiver.refuses = None
    gathered._given_up_until = 0.0  # A minute later.

    charged(world, key="order-2")

    assert receiver.names.count("charge") == 1
    gathered.end()
    assert receiver.values("paidonce.charges")["succeeded",] == 2


def test_what_nobody_takes_is_not_kept_for_ever(gathered: Telemetry) -> None:
    """The oldest goes."""
    for _ in range(telemetry.SPANS_KEPT + 5):
        with telemetry.span("s"):
            pass
    assert len(gathered._ended) == telemetry.SPANS_KEPT
    gathered._ended.clear()


def test_a_start_that_fails_is_logged_and_charges_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The SDK may be broken, or missing."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    telemetry.start(Settings(otlp_endpoint="http://127.0.0.1:1"))
    assert "traces and metrics could not be started" in capsys.readouterr().out
    assert charged(world).status == 200


# --- Where it goes, and where not -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("https://telemetry.googleapis.com", True),
        ("https://telemetry.googleapis.com:443", True),
        ("https://collector.example.com", False),
        ("https://evil-googleapis.com", False),
        ("http://127.0.0.1:4317", False),
        ("http://telemetry.googleapis.com", False),
    ],
)
def test_who_we_are_is_shown_to_google_alone_and_not_in_the_clear(
    endpoint: str, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the token is us."""
    asked = []

    def credentials() -> grpc.ChannelCredentials:
        asked.append(endpoint)
        return grpc.ssl_channel_credentials()

    monkeypatch.setattr(telemetry, "_google_credentials", credentials)
    for exporter in telemetry._exporters(endpoint):
        exporter.shutdown()
    assert bool(asked) == shown


def test_who_we_are_is_what_the_platform_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Application Default Credentials; nothing is asked of anybody before something is sent."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "project_id": "p",
        "private_key": key.decode(),
        "client_email": "charge@p.iam.gserviceaccount.com",
        "token_uri": "http://127.0.0.1:1",
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    assert isinstance(telemetry._google_credentials(), grpc.ChannelCredentials)


@pytest.mark.parametrize("function", NEEDS)
def test_without_an_address_nothing_of_the_sdk_is_even_imported(function: str) -> None:
    """A function that is not told to send pays nothing for it, when it starts or later."""
    program = f"""
import sys
import functions.{function}
from shared import telemetry, wiring
wiring.parts({function!r})
with telemetry.request({{}}), telemetry.span("s", a=1):
    telemetry.note(b=2)
    telemetry.count("deliveries", result="done")
    telemetry.measure("unknown_seconds", 1.0)
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**environment, **ENVIRONMENT, "PORTAL_URL": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_sdk_is_not_imported_by_any_module_when_it_is_loaded() -> None:
    """Only within the functions that need it."""
    for path in [*Path(ROOT, "shared").glob("*.py"), *Path(ROOT, "functions").glob("*.py")]:
        for line in path.read_text().splitlines():
            assert not line.startswith(("import opentelemetry", "from opentelemetry")), path


def test_where_no_thread_is_to_be_had_the_answer_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was gathered goes with a later request."""
    world = World()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if "_send" in str(getattr(thread, "_target", None)):
            raise RuntimeError("can't start new thread")
        start(thread)

    telemetry.use(telemetry.Telemetry("http://127.0.0.1:1", "p"))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    try:
        told = world.create()
    finally:
        telemetry.use(None)
    assert told is not None
    assert told.status == 200

"""A log that a payment engineer may read aloud: one JSON object a line, and no secret, card or address in it."""

import io
import json
import sys
import threading
from typing import Any, Final, NoReturn
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from shared import log
from shared.charge import Status
from shared.settings import SettingsError
from tests.world import World

TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
CHARGE_ID: Final = "9e107d9d372bb6826bd81d3542a419d60a1b2c3d"


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Any:
    """What was logged since, each line parsed."""
    return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_is_what_cloud_logging_reads(lines: Any) -> None:
    """Severity, message, and the fields beside them."""
    log.info("decided", charge=CHARGE_ID, status=Status.UNKNOWN, sends=2, replayed=False, look=None, seconds=0.5)

    assert lines() == [
        {
            "severity": "INFO",
            "message": "decided",
            "charge": CHARGE_ID,
            "status": "unknown",
            "sends": 2,
            "replayed": False,
            "look": None,
            "seconds": "0.5",
        }
    ]


def test_each_severity_has_its_name(lines: Any) -> None:
    """Alerts are made of them; a field cannot pretend to be another one."""
    log.warning("w", severity="DEBUG")
    log.error("e")

    assert [line["severity"] for line in lines()] == ["WARNING", "ERROR"]


@pytest.mark.parametrize(
    "headers",
    [{"X-Cloud-Trace-Context": f"{TRACE}/123;o=1"}, {"Traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}],
    ids=["Google's", "W3C's"],
)
def test_lines_of_one_request_share_its_trace(headers: dict[str, str], lines: Any, monkeypatch: Any) -> None:
    """And no other line has it."""
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")

    log.info("before")
    with log.request(Headers(headers)):
        log.info("within")
        other = threading.Thread(target=lambda: log.info("another request's"))
        other.start()
        other.join()
    log.info("after")

    traces = [line.get("logging.googleapis.com/trace") for line in lines()]
    assert traces == [None, f"projects/p/traces/{TRACE}", None, None]


@pytest.mark.parametrize(
    ("headers", "span", "sampled"),
    [
        ({"X-Cloud-Trace-Context": f"{TRACE}/74;o=1"}, "000000000000004a", True),
        ({"X-Cloud-Trace-Context": f"{TRACE}/74;o=0"}, "000000000000004a", False),
        ({"X-Cloud-Trace-Context": f"{TRACE}/74"}, "000000000000004a", False),
        ({"X-Cloud-Trace-Context": f"{TRACE}/{2**64}"}, None, False),
        ({"X-Cloud-Trace-Context": TRACE}, None, False),
        ({"Traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}, "b7ad6b7169203331", True),
        ({"Traceparent": f"00-{TRACE}-b7ad6b7169203331-02"}, "b7ad6b7169203331", False),
        ({"Traceparent": f"00-{TRACE}-{'0' * 16}-01"}, None, True),
    ],
)
def test_a_line_names_the_span_that_it_belongs_to(
    headers: dict[str, str], span: str | None, sampled: bool, lines: Any, monkeypatch: Any
) -> None:
    """In hex, whichever header brought it; and whether anybody records the trace."""
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")

    with log.request(Headers(headers)):
        log.info("within")

    (line,) = lines()
    assert line["logging.googleapis.com/trace"] == f"projects/p/traces/{TRACE}"
    assert line.get("logging.googleapis.com/spanId") == span
    assert line["logging.googleapis.com/trace_sampled"] is sampled


@pytest.mark.parametrize("header", [None, "", "no trace", f"{TRACE}0", "../../x", f"{'0' * 32}/1;o=1"])
def test_what_is_no_trace_is_not_logged_as_one(header: str | None, lines: Any, monkeypatch: Any) -> None:
    """Anyone may send the header."""
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")

    with log.request(Headers({} if header is None else {"X-Cloud-Trace-Context": header})):
        log.info("within")

    assert "logging.googleapis.com/trace" not in lines()[0]


def test_a_trace_without_a_project_is_left_out(lines: Any, monkeypatch: Any) -> None:
    """Cloud Logging could not place it."""
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)

    with log.request({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}):
        log.info("within")

    assert "logging.googleapis.com/trace" not in lines()[0]


# --- What must not be there -------------------------------------------------------------------------------------------

SECRETS: Final = {
    "a secret key": "sk_live_51HqLyjWDarjtT1zdp7dc",
    "a restricted key": "rk_test_51HqLyjWDarjtT1zdp7dc",
    "a signing secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "a client secret": "pi_3MtwBw_secret_YrKJUKribcBjcG8HVhfZluoGH",
    "an e-mail address": "jenny.rosen+shop@example.co.uk",
    "an encoded address": "jenny.rosen%40example.com",
    "a card number": "4242424242424242",
    "a card number in groups": "4242 4242 4242 4242",
    "a card number with dashes": "3782-822463-10005",
    "a long card number": "6304000000000000000",
}
FRAMES: Final = ("{}", "No such thing: '{}'.", "key={};next", '{{"value":"{}"}}', "Bearer {}\n", "<{}>", "x,{},y")


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_no_secret_is_logged(secret: str, frame: str, lines: Any) -> None:
    """Not in a message, not in a field, not in the text around it."""
    log.error(frame.format(secret), detail=frame.format(secret))

    (line,) = lines()
    kept = secret.partition("_secret_")[2] or secret
    assert kept not in json.dumps(line)
    assert "[" in line["message"]
    assert "[" in line["detail"]


def test_a_card_number_that_is_a_number_is_not_logged(lines: Any) -> None:
    """Nor one that is part of a larger one."""
    log.info("m", number=4242424242424242, amount=1999)

    assert lines()[0] == {"severity": "INFO", "message": "m", "number": "[number]", "amount": 1999}


@pytest.mark.parametrize(
    "text",
    [
        CHARGE_ID,
        "1234567890123456789012345678901234567abc",
        f"{CHARGE_ID}-g1-e12",
        f"pio-{CHARGE_ID}-create-1",
        "pi_3MtwBwLkdIwHu7ix28a3tqPa",
        "req_3MtwBwLkdIwHu7",
        "2026-11-24T10:27:30.123456+00:00",
        "1795510800.123456",
        "task_sk and risk_level",
        "999999999999",
    ],
)
def test_what_an_operator_searches_for_is_not_blacked_out(text: str) -> None:
    """Ids, keys of requests, times and amounts."""
    assert log.redacted(text) == text


def test_an_object_is_never_logged_whole(lines: Any) -> None:
    """Its repr may hold anything; only what kind of thing it is is written."""
    log.info("m", body={"email": "x"}, items=["y"], raw=b"z", key=object())

    (line,) = lines()
    assert line == {
        "severity": "INFO",
        "message": "m",
        "body": "<dict>",
        "items": "<list>",
        "raw": "<bytes>",
        "key": "<object>",
    }


PERSONAL: Final = "Jenny Rosen, 27 Fredrick Ave"


def fail(error: Exception, because_of: Exception | None = None) -> NoReturn:
    """Raise it here, where the source says nothing of what is in it."""
    raise error from because_of


def test_an_exception_of_other_peoples_is_logged_without_what_it_says(lines: Any) -> None:
    """A message may quote a row or a body. Its class and the place are what a developer needs."""
    try:
        fail(ValueError(PERSONAL), because_of=KeyError(PERSONAL))
    except ValueError:
        log.exception("a delivery ended in an exception", charge=CHARGE_ID)

    (line,) = lines()
    assert PERSONAL not in json.dumps(line)
    assert (line["severity"], line["exception"], line["charge"]) == ("ERROR", "ValueError", CHARGE_ID)
    first, second = line["stack_trace"].split("\n\n")
    assert first == "Traceback (most recent call last):\nKeyError"
    assert second.startswith(f'Traceback (most recent call last):\n  File "{__file__}"')
    assert second.endswith("\nValueError")


def test_an_exception_of_ours_is_logged_with_what_it_says(lines: Any) -> None:
    """We have written it ourselves; it is blacked out all the same."""
    try:
        fail(SettingsError("LEASE: set it, sk_live_1"))
    except SettingsError:
        log.exception("m")

    stack = lines()[0]["stack_trace"]
    assert stack.endswith("\nSettingsError: LEASE: set it, [key]")


def test_exceptions_that_caused_one_another_in_a_circle_are_logged(lines: Any) -> None:
    """Python allows it, and prints it."""
    first, second = ValueError(), KeyError()
    second.__cause__ = first
    try:
        fail(first, because_of=second)
    except ValueError:
        log.exception("m")

    assert lines()[0]["exception"] == "ValueError"


def test_no_exception_is_no_reason_for_another(lines: Any) -> None:
    """Logged as what it is."""
    log.exception("m")

    assert lines() == [{"severity": "ERROR", "message": "m"}]


@pytest.mark.parametrize("broken", [ValueError("I/O operation on closed file."), BrokenPipeError()])
@pytest.mark.parametrize("call", ["write", "flush"])
def test_a_log_that_cannot_be_written_does_not_stop_a_payment(
    call: str, broken: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stdout is closed, or its reader is gone: the customer is charged, and the caller told so."""
    world, refused = World(), Mock(side_effect=broken)
    stdout = Mock(spec=io.StringIO, **{call: refused})
    monkeypatch.setattr(sys, "stdout", stdout)

    answer = world.create()

    assert refused.called
    assert answer is not None
    assert (answer.status, answer.body["status"]) == (200, "succeeded")
    assert world.money_moved() == [1999]


@settings(max_examples=200, deadline=None)
@given(
    message=st.text(), fields=st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.floats() | st.none())
)
def test_whatever_is_logged_is_one_line_of_json(message: str, fields: dict[str, Any]) -> None:
    """Newlines, lone surrogates, infinities: a line in the log is a line of ours."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        log._write("INFO", message, fields)

    (line,) = out.getvalue().splitlines()
    parsed = json.loads(line, parse_constant=pytest.fail)
    assert parsed["severity"] == "INFO"

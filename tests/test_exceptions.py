"""Whatever goes wrong in a function: one line of the log, a 500, and nothing of what was asked or said."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import flask
import pytest
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.test import TestResponse

from shared import answer, health, links, wiring
from shared.charge import charge_id
from shared.settings import NEEDS
from tests.console.console import token
from tests.portal.portal import Portal
from tests.test_webhook_function import event, signed
from tests.world import KEY, Killed, _client

NAME: Final = charge_id(None, KEY)
DECLINED: Final = "pm_card_chargeDeclinedInsufficientFunds"
NEWER: Final = "waiting_for_the_moon"  # A status that only a later version knows.


@pytest.fixture
def world() -> Iterator[Portal]:
    """A deployment with a declined charge, and a customer who has its link."""
    world = Portal()
    world.create(payment_method=DECLINED)
    yield world
    wiring.use(None)


@pytest.fixture
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function without its environment."""
    for name in {name for names in NEEDS.values() for name in names}:
        monkeypatch.delenv(name, raising=False)
    wiring.use(None)


def link(world: Portal) -> str:
    """Return the token of the customer's link."""
    return str(links.customer_url(world.parts.settings, NAME, world.clock.now())).rpartition("/")[2]


def ask(world: Portal, function: str) -> TestResponse:
    """Ask a function for something about the charge. An event is signed; the operator is let in."""
    raw = json.dumps(event(world.engine.store.all("payment_intent")[0])).encode()
    asked: Mapping[str, tuple[str, str, bytes, Mapping[str, str]]] = {
        "charge": ("GET", f"/{NAME}", b"", {}),
        "webhook": ("POST", "/", raw, {"Stripe-Signature": signed(world, raw)}),
        "reconcile": ("POST", "/", b"", {}),
        "notify": ("POST", f"/{NAME}/1", b"{}", {}),
        "portal": ("GET", f"/{link(world)}", b"", {}),
        "console": ("GET", f"/charges/{NAME}", b"", {"Authorization": token()}),
    }
    method, path, body, headers = asked[function]
    return _client(function).open(path, method=method, data=body, headers=headers)


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the errors that were logged. Nothing else was written than the log's own lines."""
    written = capfd.readouterr()
    assert written.err == ""
    return [line for line in map(json.loads, written.out.splitlines()) if line["severity"] == "ERROR"]


def is_logged(capfd: pytest.CaptureFixture[str], exception: str) -> str:
    """Expect one error with this class and its stack; return the stack."""
    (error,) = lines(capfd)
    assert error["exception"] == exception
    assert error["stack_trace"].startswith("Traceback (most recent call last):\n  File ")
    return str(error["stack_trace"])


@pytest.mark.parametrize("function", sorted(NEEDS))
def test_a_fault_that_nobody_foresaw_is_a_line_of_the_log_without_what_it_says(
    world: Portal, function: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flask would write the message, and the address: in the portal that is the customer's link."""
    says = f"of jane, who came by /{link(world)}"
    wiring.use(world.parts)

    def fail(*_: object, **__: object) -> None:
        raise LookupError(says)

    monkeypatch.setattr(wiring, "parts", fail)
    capfd.readouterr()
    answered = ask(world, function)

    assert answered.status_code == 500
    written = capfd.readouterr()
    assert (written.err, written.out.count("\n")) == ("", 1)
    error = json.loads(written.out)
    assert (error["severity"], error["exception"], error["function"]) == ("ERROR", "LookupError", function)
    assert "in fail" in error["stack_trace"]
    for told in (written.out, answered.text):
        assert link(world) not in told
        assert "jane" not in told


@pytest.mark.parametrize("function", ["charge", "webhook", "portal", "console"])
def test_a_charge_that_a_newer_version_wrote_shows_nothing_of_itself(
    world: Portal, function: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """After a release was taken back. Whoever asks comes again, and it is read once the release is there anew."""
    stored = world.store._entities["Charge", NAME]
    world.store._entities["Charge", NAME] = dataclasses.replace(
        stored, properties={**stored.properties, "status": NEWER}
    )
    wiring.use(world.parts)
    capfd.readouterr()
    answered = ask(world, function)

    assert answered.status_code == 500
    assert NEWER not in answered.text
    stack = is_logged(capfd, "ValidationError")
    assert NEWER not in stack
    assert link(world) not in stack


@pytest.mark.usefixtures("_nothing_set")
@pytest.mark.parametrize("function", sorted(NEEDS))
def test_a_variable_that_is_missing_is_named_in_the_log_and_to_nobody_else(
    function: str, world: Portal, capfd: pytest.CaptureFixture[str]
) -> None:
    """The message is ours. The health of a function says so, too."""
    wiring.use(None)
    capfd.readouterr()
    answered = ask(world, function)

    assert answered.status_code == 500
    assert "STRIPE_API_KEY" not in answered.text
    stack = is_logged(capfd, "SettingsError")
    assert all(f"{name}: set it" in stack for name in NEEDS[function])
    assert link(world) not in stack


def test_programs_get_a_document_and_people_a_sentence(world: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which no browser keeps; both say that it is safe to try again."""
    monkeypatch.setattr(wiring, "parts", lambda _: 1 / 0)
    for function in NEEDS:
        answered = ask(world, function)
        if function in answer.PAGES:
            assert answered.mimetype == "text/plain"
            assert (answered.headers["Cache-Control"], answered.headers["Referrer-Policy"]) == (
                "no-store",
                "no-referrer",
            )
        else:
            assert answered.mimetype == "application/problem+json"
            assert answered.get_json()["status"] == 500
            assert "Retry-After" in answered.headers
        assert "that is safe" in answered.text


@pytest.mark.parametrize("function", sorted(NEEDS))
def test_asking_for_its_health_lets_nothing_out_either(
    function: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a kind that it does not know as an illness."""
    monkeypatch.setattr(wiring, "parts", lambda _: 1 / 0)
    assert _client(function).get(health.PATH).status_code == 500
    is_logged(capfd, "ZeroDivisionError")


def test_what_ends_the_process_is_not_held_up() -> None:
    """It is no Exception."""

    def handle(_: flask.Request) -> flask.Response:
        raise Killed

    with pytest.raises(Killed):
        answer.contained(handle)(flask.Request({}))


def test_what_werkzeug_refuses_is_its_own_answer(capfd: pytest.CaptureFixture[str]) -> None:
    """It is no fault of ours."""

    def handle(_: flask.Request) -> flask.Response:
        raise RequestEntityTooLarge

    with pytest.raises(RequestEntityTooLarge):
        answer.contained(handle)(flask.Request({}))
    assert lines(capfd) == []

"""The double as a program: its start, its end, what survives a restart, its control API and its pages."""

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import stripe

from infra.local.stripe import control
from infra.local.stripe.cards import BEHAVIOURS
from infra.local.stripe.engine import Engine, Fault
from infra.local.stripe.faults import FAULTS
from infra.local.stripe.routes import ROUTES
from infra.local.stripe.schema import read_parameters
from tests.stripe_double.asking import DAY, Asker, VirtualClock, official
from tests.stripe_double.conftest import Served

README = (Path(__file__).parents[2] / "infra/local/stripe/README.md").read_text()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _command(*arguments: object) -> Sequence[str]:
    return [sys.executable, "-m", "infra.local.stripe", *map(str, arguments)]


@contextmanager
def _running(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = _free_port()
    process = subprocess.Popen(
        _command("--port", port, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith(f"Stripe double ready at http://127.0.0.1:{port} "), ready
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def _ask(url: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.request(method, path, json.dumps(body) if body is not None else None)
    answer = connection.getresponse()
    raw = answer.read()
    connection.close()
    is_json = answer.getheader("Content-Type") == "application/json"
    return answer.status, json.loads(raw) if is_json else (answer.getheader("Location") or raw.decode())


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_keeps_keys_and_money(tmp_path: Path, end: signal.Signals) -> None:
    """Ended in order or killed: the saved answer is replayed, and nobody is charged again."""
    database = tmp_path / "stripe.sqlite"
    with _running("--database", database) as (process, url):
        client = official(url)
        intent = client.v1.payment_intents.create({"amount": 1999, "currency": "usd"}).id
        first = client.v1.payment_intents.confirm(intent, {"payment_method": "pm_card_visa"}, {"idempotency_key": "k"})
        process.send_signal(end)
        assert process.wait(10) == (0 if end is signal.SIGTERM else -signal.SIGKILL)
    with _running("--database", database) as (_, url):
        client = official(url)
        again = client.v1.payment_intents.confirm(intent, {"payment_method": "pm_card_visa"}, {"idempotency_key": "k"})
        assert again.last_response is not None
        assert again.last_response.headers["Idempotent-Replayed"] == "true"
        assert (again.id, again.latest_charge) == (first.id, first.latest_charge)
        _, tally = _ask(url, "GET", "/_double/tally")
        assert [charge["amount"] for charge in tally["charges"]] == [1999]
        assert client.v1.payment_intents.create({"amount": 50, "currency": "jpy"}).id != intent


def test_a_restart_keeps_the_clock_the_api_keys_and_what_is_due(tmp_path: Path, clock: VirtualClock) -> None:
    """A bank debit begun before it is settled after it."""
    database = str(tmp_path / "stripe.sqlite")
    asker = Asker(Engine(database, clock=clock), clock)
    intent = asker.intent()
    asker.confirm(intent, "pm_usBankAccount_success")
    asker.engine.advance(DAY)
    asker.engine.api_keys.revoke("sk_test_gone")
    asker.engine.close()
    asker = Asker(Engine(database, clock=clock), clock)
    assert asker.engine.now() == clock() + DAY
    assert asker.get("balance", Authorization="Bearer sk_test_gone").status == 401
    clock.time += 3 * DAY

    assert asker.status(intent) == "succeeded"


def test_after_a_restart_no_id_is_given_again(tmp_path: Path, clock: VirtualClock) -> None:
    """Not even with a seed, which makes ids repeat from one database to another."""
    database = str(tmp_path / "stripe.sqlite")
    made = []
    for _ in range(3):
        asker = Asker(Engine(database, clock=clock, seed=1), clock)
        made += [asker.intent(), asker.intent()]
        asker.engine.close()

    assert len(set(made)) == 6


def test_a_taken_port_is_one_clear_message() -> None:
    """And the exit code is 2."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ended = subprocess.run(_command("--port", port), capture_output=True, text=True, check=False, timeout=20)

    assert ended.returncode == 2
    assert ended.stderr == f"Port {port} on 127.0.0.1 is taken: give another with --port.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--host", "0.0.0.0"), "no loopback address"),  # noqa: S104 - that it is refused is the point.
        (("--webhook", "http://127.0.0.1:1/"), "--webhook-secret"),
        (("--database", "/nonexistent/folder/file"), "cannot be used"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(arguments: Sequence[str], message: str) -> None:
    """One message, exit code 2."""
    command = _command("--port", _free_port(), *arguments)
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)

    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_everything_can_be_controlled_over_http(served: Served) -> None:
    """Clock, keys, API keys, accounts, webhooks, lag, banks, customers, tally, reset."""
    url, client = served.url, served.client
    client.v1.customers.create({}, {"idempotency_key": "k"})
    assert [key["key"] for key in _ask(url, "GET", "/_double/keys")[1]["keys"]] == ["k"]
    assert _ask(url, "POST", "/_double/prune", {})[1] == {"pruned": 1}

    before = _ask(url, "GET", "/_double/clock")[1]["now"]
    assert _ask(url, "POST", "/_double/clock", {"advance": 3600})[1]["now"] >= before + 3600
    assert _ask(url, "POST", "/_double/clock", {"set": 2_000_000_000})[1]["now"] == pytest.approx(2e9, abs=5)

    _ask(url, "POST", "/_double/api_keys/revoke", {"key": "sk_test_gone"})
    with pytest.raises(stripe.AuthenticationError):
        official(url, "sk_test_gone").v1.balance.retrieve()
    _ask(url, "POST", "/_double/accounts/disconnect", {"account": "acct_one"})
    with pytest.raises(stripe.PermissionError):
        client.v1.balance.retrieve({}, {"stripe_account": "acct_one"})

    intent = client.v1.payment_intents.create({"amount": 1999, "currency": "usd", "metadata": {"order": "7"}}).id
    client.v1.payment_intents.confirm(intent, {"payment_method": "pm_usBankAccount_processing"})
    assert _ask(url, "POST", "/_double/settle", {"payment_intent": intent})[1]["status"] == "succeeded"
    tally = _ask(url, "GET", "/_double/tally?metadata_key=order")[1]
    assert tally["by_metadata"]["7"]["amounts"] == [1999]

    assert _ask(url, "POST", "/_double/webhooks", {"paused": True})[1]["paused"] is True
    assert _ask(url, "POST", "/_double/webhooks/flush")[1] == {"due": 0}
    assert _ask(url, "POST", "/_double/lag", {"list_seconds": 60})[1]["list_seconds"] == 60
    assert _ask(url, "GET", "/_double/objects?kind=charge")[1]["data"][0]["payment_intent"] == intent
    operations = [request["operation"] for request in _ask(url, "GET", "/_double/requests")[1]["requests"]]
    assert operations[-2:] == ["payment_intents.create", "payment_intents.confirm"]
    _ask(url, "POST", "/_double/reset")
    assert _ask(url, "GET", "/_double/tally")[1]["charges"] == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("nonsense", {}, 404),
        ("clock", {"forward": 1}, 400),
        ("settle", {"payment_intent": "pi_none"}, 404),
        ("webhooks", {"explode": True}, 400),
        ("api_keys/shout", {"key": "x"}, 400),
    ],
)
def test_a_wrong_command_is_refused(served: Served, path: str, body: object, status: int) -> None:
    """And says what is wrong."""
    answer = _ask(served.url, "POST", f"/_double/{path}", body)

    assert answer[0] == status
    assert "error" in answer[1]


def test_a_customer_authenticates_on_a_page(served: Served) -> None:
    """The redirect leads to the double's page, and from there back to the shop."""
    engine, client = served.engine, served.client
    intent = client.v1.payment_intents.create({"amount": 1999, "currency": "usd"}).id
    params: stripe.params.PaymentIntentConfirmParams = {
        "payment_method": "pm_card_threeDSecure2Required",
        "return_url": "https://shop.example/back",
    }
    asked = client.v1.payment_intents.confirm(intent, params)
    assert asked.next_action is not None
    assert asked.next_action.redirect_to_url is not None
    path = urlsplit(asked.next_action.redirect_to_url.url or "").path
    assert "Is it you who pays?" in _ask(served.url, "GET", path)[1]

    assert _submit(served.url, path, "answer=yes") == (303, "https://shop.example/back")
    assert engine.money_moved_by(intent) == [1999]
    assert _submit(served.url, path, "answer=yes")[0] == 400


def test_a_customer_enters_a_card_on_a_page(served: Served) -> None:
    """The session's url is the double's page; a card that cannot be saved leaves it open."""
    customer = served.client.v1.customers.create().id
    params: Any = {
        "mode": "setup",
        "customer": customer,
        "currency": "usd",
        "success_url": "https://shop.example/done?session={CHECKOUT_SESSION_ID}",
    }
    session = served.client.v1.checkout.sessions.create(params)
    path = urlsplit(session.url or "").path
    assert "pm_card_visa" in _ask(served.url, "GET", path)[1]

    assert _submit(served.url, path, "card=pm_card_chargeDeclined")[0] == 402
    back = f"https://shop.example/done?session={session.id}"
    assert _submit(served.url, path, "card=pm_card_visa") == (303, back)
    assert len(served.client.v1.payment_methods.list({"customer": customer}).data) == 1


def _submit(url: str, path: str, form: str) -> tuple[int, str | None]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.request("POST", path, form, {"Content-Type": "application/x-www-form-urlencoded"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.getheader("Location")


def test_stripe_python_pages_through_a_list(served: Served) -> None:
    """Auto-paging follows `has_more`."""
    for _ in range(5):
        served.client.v1.payment_intents.create({"amount": 1999, "currency": "usd"})

    assert len(list(served.client.v1.payment_intents.list({"limit": 2}).auto_paging_iter())) == 5


# --- What is written about it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
def test_every_operation_knows_its_parameters(route: Any) -> None:
    """The SDK has a class for each, and each refuses what is not in it."""
    with pytest.raises(Exception, match="unknown parameter"):
        read_parameters(route.parameters, {"no_such_parameter": "1"})


@pytest.mark.parametrize("fault", Fault)
def test_the_readme_has_every_fault_as_it_is(fault: Fault) -> None:
    """Row by row the code's own table."""
    effect = FAULTS[fault]

    assert f"| `{fault}` | {effect.seen} | {effect.acts} | {effect.key} |" in README


def test_the_readme_has_every_command() -> None:
    """The control API, complete."""
    missing = [f"{method} {name}" for method, name in control.COMMANDS if f"`{method} /_double/{name}" not in README]

    assert missing == []


def test_the_readme_has_every_operation_and_the_families_of_cards() -> None:
    """By path."""
    assert [r.path for r in ROUTES if r.path.split("/")[2] not in README] == []
    assert all(prefix in README for prefix in ("pm_card_decline_", "pm_card_error_", "pm_usBankAccount_success"))
    assert "pm_card_visa" in BEHAVIOURS

"""Stripe's own command line as an independent client: requests that none of us wrote."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stripe_double.conftest import Served

BINARY = Path(__file__).parents[2] / ".cache/stripe-cli/node_modules/@stripe/cli-linux-x64/bin/stripe"
API_KEY = "sk_test_of_the_command_line"

Cli = Callable[..., str]


@pytest.fixture
def cli(served: Served, tmp_path: Path) -> Cli:
    """The Stripe CLI, talking to the double."""
    if not BINARY.exists():
        pytest.fail("The Stripe CLI is not installed: run `make setup`.")

    def run(*arguments: str) -> str:
        environment = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        environment["STRIPE_CLI_TELEMETRY_OPTOUT"] = "1"
        ended = subprocess.run(
            [BINARY, *arguments, "--api-base", served.url, "--api-key", API_KEY],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            env=environment,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return run


@pytest.mark.parametrize(
    ("event", "moved"),
    [
        ("payment_intent.succeeded", [2000]),
        ("payment_intent.payment_failed", []),
        ("payment_intent.created", []),
        ("payment_intent.canceled", []),
        ("payment_intent.requires_action", []),
        ("payment_intent.amount_capturable_updated", []),
        ("charge.succeeded", [100]),
        ("charge.failed", []),
        ("charge.captured", [2000]),
        ("charge.refunded", [100]),
        ("customer.created", []),
        ("customer.updated", []),
        ("customer.deleted", []),
        ("payment_method.attached", []),
        ("payment_method.detached", []),
        ("setup_intent.succeeded", []),
        ("setup_intent.setup_failed", []),
        ("setup_intent.canceled", []),
    ],
)
def test_trigger_makes_its_event_and_moves_that_money(served: Served, cli: Cli, event: str, moved: list[int]) -> None:
    """Stripe's own fixtures are accepted as they are, and the tally agrees with what they are about."""
    cli("trigger", event)

    assert event in [happened["type"] for happened in served.engine.objects("event")]
    assert [charge.amount for charge in served.engine.tally().moved] == moved
    assert sum(charge.refunded for charge in served.engine.tally().moved) == (100 if event == "charge.refunded" else 0)


def test_resource_commands_work(served: Served, cli: Cli) -> None:
    """Create, confirm, read and list, as somebody at a keyboard would; its keys are kept like any."""
    customer = _json(cli("customers", "create", "--name", "Jenny Rosen"))
    created = _json(
        cli(
            *("payment_intents", "create", "--amount", "1999", "--currency", "usd", "--customer", customer["id"]),
            *("--idempotency", "from-the-keyboard", "-d", "metadata[pio_charge]=c1"),
        )
    )
    paid = _json(cli("payment_intents", "confirm", created["id"], "--payment-method", "pm_card_visa"))
    listed = _json(cli("payment_intents", "list", "--customer", customer["id"]))
    shown = _json(cli("get", created["id"]))

    assert paid["status"] == shown["status"] == "succeeded"
    assert [intent["id"] for intent in listed["data"]] == [created["id"]]
    assert served.engine.money_moved("c1") == [1999]
    assert served.engine.keys().count("from-the-keyboard") == 1


def _json(printed: str) -> Any:
    return json.loads(printed)

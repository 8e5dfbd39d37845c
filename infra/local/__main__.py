"""The local stack for development: `python -m infra.local`, until Ctrl-C."""

import argparse
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from infra.local.datastore import EmulatorUnavailable
from infra.local.processes import LocalStackError, PortTaken
from infra.local.stack import REPOSITORY, Ports, Stack

CHECK_EVERY_SECONDS: Final = 1.0  # How soon a program that ended by itself is told.


def main() -> int:
    """Run the stack until somebody ends it. Returns 2 if a port is taken, 1 if a program fails."""
    parser = argparse.ArgumentParser(prog="python -m infra.local", description="The local stack, for development.")
    add = parser.add_argument
    add("--first-port", type=int, default=Ports().charge, help="listen on this port and those after it (%(default)s)")
    add("--folder", type=Path, default=REPOSITORY / ".local" / "stack", help="for data and logs (.local/stack)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ended in order, as by Ctrl-C.
    console = Console(highlight=False, soft_wrap=True)
    stack = Stack(folder=options.folder, keep_data=True, ports=Ports.following(options.first_port))
    try:
        with ExitStack() as running:
            with console.status("Starting the local stack"):
                running.enter_context(stack)
            welcome(console, stack)
            watch(stack)
    except KeyboardInterrupt:
        console.print("\nStopped. Charges, tasks and what Stripe knows are kept for the next time.")
    except (LocalStackError, EmulatorUnavailable) as error:
        return failed(error)
    return 0


def welcome(console: Console, stack: Stack) -> None:
    """Say what runs where, and how to charge a customer."""
    addresses = Table(box=None, padding=(0, 2), show_header=False)
    for url, what in (
        (stack.charge_url, "charge: what callers call"),
        (stack.webhook_url, "webhook: where Stripe's events go"),
        (stack.reconcile_url, "reconcile: called every few seconds"),
        (stack.notify_url, "notify: tells what is in a charge's outbox"),
        (stack.portal_url, "portal: the customer's page, by the `customer_url` of a charge"),
        (stack.console_url, "console: the operator's page"),
        (stack.mail_url, "Mail: what was sent, to look at"),
        (stack.stripe_url, "Stripe: the double, its controls under /_double/"),
        (stack.tasks_host, "Cloud Tasks: the emulator (gRPC)"),
        (stack.tasks_control_url, "Cloud Tasks: its controls"),
        (f"{stack.ports.datastore}", "Datastore: the emulator"),
    ):
        addresses.add_row(url, what)
    console.print(addresses)
    body = f'{{"amount": 1999, "currency": "usd", "customer": "{customer(stack)}", "payment_method": "pm_card_visa"}}'
    console.print(f"""
Charge a customer (again: the same charge; another key: another charge)

  curl -s {stack.charge_url} -H 'Idempotency-Key: order-1001' -H 'Content-Type: application/json' -d '{body}'

Read the charge

  curl -s {stack.charge_url} -H 'Idempotency-Key: order-1001'

What money moved, by Stripe's own account

  curl -s {stack.stripe_url}/_double/tally

Logs and data are in {shown(stack.folder)}. Ctrl-C ends it all.""")


def customer(stack: Stack) -> str:
    """Return a customer: the one there is, so that a command from yesterday still means the same."""
    known = stack.at_stripe("GET", "/v1/customers?limit=1")["data"]
    return str(known[0]["id"]) if known else stack.new_customer()


def watch(stack: Stack) -> None:
    """Wait until somebody ends this, or a program ends by itself. Raises ProgramFailed."""
    while True:
        stack.check()
        time.sleep(CHECK_EVERY_SECONDS)


def failed(error: Exception) -> int:
    """Say why the stack cannot run, and return the exit code."""
    print(f"The local stack cannot run: {error}", file=sys.stderr)
    return 2 if isinstance(error, PortTaken) else 1


def shown(path: Path) -> Path:
    """Return a path as somebody would write it who stands here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())

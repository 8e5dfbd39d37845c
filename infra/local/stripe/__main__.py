"""The double as a program: `python -m infra.local.stripe --help`."""

import argparse
import ipaddress
import signal
import socket
import sqlite3
import sys
import threading
from collections.abc import Sequence

from infra.local.stripe.call import Settings
from infra.local.stripe.engine import Endpoint, Engine
from infra.local.stripe.server import Server

CANNOT_START = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.webhook and not options.webhook_secret:
        parser.error("--webhook needs at least one --webhook-secret")
    if options.connect_webhook and not (options.connect_webhook_secret or options.webhook_secret):
        parser.error("--connect-webhook needs at least one --connect-webhook-secret")
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    if _taken(options.host, options.port):
        print(f"Port {options.port} on {options.host} is taken: give another with --port.", file=sys.stderr)
        return CANNOT_START
    try:
        engine = _engine(options)
    except sqlite3.Error as error:
        print(f"The database {options.database} cannot be used: {error}.", file=sys.stderr)
        return CANNOT_START
    with Server(engine, options.host, options.port) as server:
        print(f"Stripe double ready at {server.url} (database: {options.database}).", flush=True)
        stop.wait()
    engine.close()
    return 0


def _engine(options: argparse.Namespace) -> Engine:
    endpoints = [Endpoint(url, options.webhook_secret) for url in options.webhook]
    connect_secrets = options.connect_webhook_secret or options.webhook_secret
    endpoints += [Endpoint(url, connect_secrets, connect=True) for url in options.connect_webhook]
    settings = Settings(
        bank_debit_seconds=options.bank_debit_seconds,
        public_url=options.public_url or f"http://{options.host}:{options.port}",
    )
    return Engine(
        options.database,
        seed=options.seed,
        api_keys=options.api_key or None,
        webhook_endpoints=endpoints,
        webhook_compression=options.webhook_compression,
        settings=settings,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.local.stripe", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--host", default="127.0.0.1", type=_loopback, help="a loopback address (default: %(default)s)")
    add("--port", default=12111, type=int, help="default: %(default)s")
    add("--database", default=":memory:", metavar="FILE", help="where everything is kept (default: %(default)s)")
    add("--webhook", action="append", default=[], metavar="URL", help="send events there; may be given several times")
    add("--webhook-secret", action="append", default=[], metavar="whsec_…", help="sign them; each one given signs")
    add("--connect-webhook", action="append", default=[], metavar="URL", help="send connected accounts' events there")
    add("--connect-webhook-secret", action="append", default=[], metavar="whsec_…", help="default: --webhook-secret")
    add("--webhook-compression", default=1.0, type=float, metavar="N", help="make redeliveries come N times sooner")
    add("--api-key", action="append", default=[], metavar="sk_test_…", help="accept only these (default: any)")
    add("--bank-debit-seconds", default=Settings.bank_debit_seconds, type=float, help="how long a bank debit takes")
    add("--public-url", default=None, metavar="URL", help="where customers reach the double's pages")
    add("--seed", default=None, help="make ids and chance repeat")
    return parser


def _loopback(host: str) -> str:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise argparse.ArgumentTypeError(f"{host} is no loopback address: nothing here is meant for a network")
    return host


def _taken(host: str, port: int) -> bool:
    """Whether somebody listens there, asked before a database is opened."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())

"""The program: `python -m infra.local.tasks --help`."""

import argparse
import logging
import signal
import sys
from datetime import timedelta
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from infra.local.tasks.declaration import OPTIONS, parse_queue
from infra.local.tasks.emulator import LOOPBACK, CannotStart, Emulator
from infra.local.tasks.messages import QueueMessage
from infra.local.tasks.rules import Refused, Settings

DEFAULT_PORT: Final = 8123
DEFAULTS: Final = Settings()
ENDING: Final = (signal.SIGTERM, signal.SIGINT)


def _queue_option(text: str) -> tuple[QueueMessage, FieldMask]:
    try:
        return parse_queue(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.local.tasks", description="An emulator of Cloud Tasks.")
    add = parser.add_argument
    add("--host", default=LOOPBACK, help="a loopback address to listen on (%(default)s)")
    add("--port", type=int, default=DEFAULT_PORT, help="for gRPC; 0 takes a free one (%(default)s)")
    add("--database", default=":memory:", metavar="FILE", help="where everything is kept (in memory only)")
    add(
        "--queue",
        type=_queue_option,
        action="append",
        default=[],
        metavar="NAME[,OPTION=VALUE...]",
        help=f"a queue to create, or to change if there is one; options: {', '.join(OPTIONS)}",
    )
    add("--certs-port", type=int, help="serve the keys that OIDC tokens verify against, over HTTP")
    add("--control-port", type=int, help="serve counts of tasks and faults on command, over HTTP")
    for option, what, default in (
        ("--names-released-after", "the name of a task that is gone may be used again", DEFAULTS.names_released_after),
        (
            "--queue-names-released-after",
            "the name of a deleted queue may be used again",
            DEFAULTS.queue_names_released_after,
        ),
        ("--shortest-dispatch-deadline", "that a task may ask for", DEFAULTS.shortest_dispatch_deadline),
        ("--first-hold", "for a queue after a 429 or 503; 0: none", DEFAULTS.first_hold),
    ):
        add(option, type=_seconds, default=default, metavar="SECONDS", help=f"{what} ({default.total_seconds():g})")
    add("--most-task-bytes", type=int, default=DEFAULTS.most_task_bytes, help="that a task may have (%(default)s)")
    return parser


def _seconds(text: str) -> timedelta:
    return timedelta(seconds=float(text))


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT, which the caller has blocked. Returns 2 if it cannot start as asked."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    settings = Settings(
        names_released_after=options.names_released_after,
        queue_names_released_after=options.queue_names_released_after,
        shortest_dispatch_deadline=options.shortest_dispatch_deadline,
        most_task_bytes=options.most_task_bytes,
        first_hold=options.first_hold,
    )
    try:
        with Emulator(
            host=options.host,
            port=options.port,
            database=options.database,
            certs_port=options.certs_port,
            control_port=options.control_port,
            settings=settings,
        ) as emulator:
            for queue, mask in options.queue:
                emulator.declare_queue(queue, mask)
            served = {"certs": emulator.certs_url, "control": emulator.control_url}
            also = "".join(f", {what} {url}" for what, url in served.items() if url is not None)
            print(f"Cloud Tasks emulator ready on {emulator.address}{also}", flush=True)
            signal.sigwait(ENDING)
    except (CannotStart, Refused) as problem:
        print(f"cannot start: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # Blocked before there is any other thread, and so in every one: only `sigwait` gets them, and a second one, of a
    # terminal and a parent that both say so, interrupts nothing.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    sys.exit(main())

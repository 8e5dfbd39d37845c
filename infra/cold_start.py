"""What a cold start takes, `make bench`: each function's imports, beside those that it cannot do without.

Each measurement is a process of its own, from the bundle, with bytecode as the buildpack makes it. They take turns, so
that a busy moment of the machine falls on all alike; shown are medians.

    empty        a function that does nothing
    libraries    the packages that the function needs to do its work, imported as the product imports them
    import       the function's entry point
    first use    what it is built of, on its first request: here, what was put off must be paid. Nothing is sent
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from infra import bundle
from shared.settings import NEEDS

BAR: Final = 1.5  # What a function's import may take, as a multiple of its libraries' alone.

LIBRARIES: Final = """
import functions_framework, flask, werkzeug.routing, msgspec, requests, stripe, grpc
from stripe import HTTPClient, StripeClient
from google.api_core.exceptions import GoogleAPICallError
from google.cloud.datastore_v1 import DatastoreClient
from google.cloud.datastore_v1.services.datastore.transports import DatastoreGrpcTransport
from google.cloud.datastore_v1.types import CommitRequest, LookupRequest, RunQueryRequest
"""
LANGUAGES: Final = """
import itsdangerous, jinja2, babel.dates, babel.numbers, babel.messages.mofile, babel.messages.pofile
"""
MAIL: Final = """
import smtplib, ssl, email.headerregistry, email.message
"""
NEEDED: Final[Mapping[str, str]] = {  # To do each function's work at all.
    "charge": LIBRARIES,
    "webhook": LIBRARIES,
    "reconcile": LIBRARIES,
    "notify": LIBRARIES + LANGUAGES + MAIL,
    "portal": LIBRARIES + LANGUAGES,
    "console": LIBRARIES + LANGUAGES,
}
EMPTY: Final = """
import functions_framework

@functions_framework.http
def empty(request):
    return ""
"""
FUNCTION: Final = "import main; main.{name}"
FIRST_USE: Final = "from shared import wiring; wiring.parts({name!r})"

MEASURED: Final = """
import json, resource, sys, time
began = time.perf_counter()
exec(compile(sys.argv[1], "measured", "exec"), {})
took = time.perf_counter() - began
began = time.perf_counter()
exec(compile(sys.argv[2], "measured", "exec"), {})
used = time.perf_counter() - began
print(json.dumps([took * 1000, used * 1000, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""
ENVIRONMENT: Final[Mapping[str, str]] = {  # Nothing listens there.
    "PATH": os.environ.get("PATH", ""),
    "GOOGLE_CLOUD_PROJECT": "local",
    "DATASTORE_EMULATOR_HOST": "127.0.0.1:1",
    "CLOUD_TASKS_EMULATOR_HOST": "127.0.0.1:1",
    "STRIPE_API_KEY": "sk_test_bench",
    "STRIPE_WEBHOOK_SECRETS": "whsec_bench",
    "TASKS_LOCATION": "local",
    "CHARGE_URL": "http://127.0.0.1:1",
    "NOTIFY_URL": "http://127.0.0.1:1",
    "PORTAL_URL": "http://127.0.0.1:1",
    "SMTP_URL": "smtp://127.0.0.1:1",
    "MAIL_FROM": "billing@example.com",
}

Times = tuple[float, float, float]  # Import and first use in ms, the largest resident set in MiB.


def main() -> int:
    """Measure, and print a table. 1: a function misses the bar."""
    parser = argparse.ArgumentParser(prog="python -m infra.cold_start", description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="processes of each kind (%(default)s)")
    runs = parser.parse_args().runs
    programs = {"empty": (EMPTY, "")}
    for name in NEEDS:
        programs[f"{name}'s libraries"] = (NEEDED[name], "")
        programs[name] = (FUNCTION.format(name=name), FIRST_USE.format(name=name))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        unpack(source)
        for program in programs.values():  # Unmeasured: the first one reads the files from the disk.
            measure(program, source)
        taken: dict[str, list[Times]] = {name: [] for name in programs}
        for _ in range(runs):
            for name, program in programs.items():
                taken[name].append(measure(program, source))
    return show({name: medians(times) for name, times in taken.items()}, runs)


def unpack(source: Path) -> None:
    """Put the bundle into a folder and compile it, as the buildpack does."""
    bundle.write(source / "bundle.zip")
    with zipfile.ZipFile(source / "bundle.zip") as written:
        written.extractall(source)
    subprocess.run([sys.executable, "-m", "compileall", "-f", "-q", source], check=True)  # noqa: S603 - ours.


def measure(program: tuple[str, str], source: Path) -> Times:
    """Run a program in a process of its own."""
    command = [sys.executable, "-c", MEASURED, *program]
    done = subprocess.run(command, cwd=source, env=ENVIRONMENT, capture_output=True, text=True, check=True)  # noqa: S603
    took, used, resident = json.loads(done.stdout)
    return took, used, resident


def medians(times: list[Times]) -> Times:
    """Return the median of each column."""
    took, used, resident = (statistics.median(column) for column in zip(*times, strict=True))
    return took, used, resident


def show(median: Mapping[str, Times], runs: int) -> int:
    """Print the table, and say whether each function keeps to the bar."""
    empty, _, empty_resident = median["empty"]
    sys.stdout.write(
        f"Medians of {runs} processes each. An empty function: {empty:.0f} ms, {empty_resident:.0f} MiB.\n\n"
    )
    heads = ("function", "libraries", "import", "of empty", "of libraries", "first use", "memory", "libraries'")
    sys.stdout.write("{:10}{:>10}{:>10}{:>10}{:>14}{:>11}{:>10}{:>12}\n".format(*heads))
    missed = False
    for name in NEEDS:
        libraries, _, libraries_resident = median[f"{name}'s libraries"]
        took, used, resident = median[name]
        missed |= took > BAR * libraries
        sys.stdout.write(
            f"{name:10}{libraries:>7.0f} ms{took:>7.0f} ms{took / empty:>9.2f}x{took / libraries:>13.2f}x"
            f"{used:>8.0f} ms{resident:>6.0f} MiB{libraries_resident:>8.0f} MiB\n"
        )
    sys.stdout.write(f"\nThe bar, {BAR} times the libraries alone: {'missed' if missed else 'kept by all'}.\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

"""The runbook and the security page name what there is, and nothing else."""

import ast
import re
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Final

import click
import pytest
from werkzeug.routing import RequestRedirect

from functions.charge import ROUTES
from shared import api, desk, erasure, gateway, health, links, policy, reconcile, telemetry
from shared.charge import charge_id
from shared.cli import main

REPOSITORY: Final = Path(__file__).parent.parent
RUNBOOK: Final = (REPOSITORY / "infra" / "RUNBOOK.md").read_text()
SECURITY: Final = (REPOSITORY / "infra" / "SECURITY.md").read_text()
DEPLOYING: Final = (REPOSITORY / "infra" / "terraform" / "README.md").read_text()
TERRAFORM: Final = {path.stem: path.read_text() for path in (REPOSITORY / "infra" / "terraform").glob("*.tf")}
CODE: Final = "".join(
    path.read_text() for folder in ("shared", "functions") for path in (REPOSITORY / folder).glob("*.py")
)
SETTINGS: Final = (REPOSITORY / "shared" / "settings.py").read_text()

COMMANDS: Final = [line.strip() for line in RUNBOOK.splitlines() if line.startswith("    ")]
NAME: Final = charge_id(None, "order-1001")


def _sections(text: str, level: str) -> list[str]:
    return re.findall(rf"^{level} (.+)$", text, re.MULTILINE)


# --- The runbook ------------------------------------------------------------------------------------------------------


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    """Under the alert's own title, which is what rings."""
    monitoring = TERRAFORM["monitoring"]
    many = monitoring.partition("  alerts = {")[2].partition('resource "google_monitoring_alert_policy"')[0]
    titles = re.findall(r'^      title +=\s"(.+)"$', many, re.MULTILINE)
    titles += re.findall(r'display_name +=\s"\$\{var\.name\}: ([^$"]+)"', monitoring)
    assert len(re.findall(r"^      todo ", many, re.MULTILINE)) == len(titles) - 1
    assert monitoring.count('resource "google_monitoring_alert_policy"') == 2  # One of the many, one of silence.
    assert _sections(RUNBOOK, "###") == titles


PAIDONCE: Final = [
    (place, found.group(1))
    for place, text in [
        *(("line", line) for line in COMMANDS),
        *(("prose", word) for word in re.findall("`([^`\n]+)`", RUNBOOK)),
    ]
    if (found := re.match(r"(?:[A-Z_]+=\S+ )*paidonce (.+)$", text))
]


@pytest.mark.parametrize(("place", "text"), PAIDONCE)
def test_every_paidonce_command_exists_with_its_options(place: str, text: str) -> None:
    """A line to be typed is parsed by the command itself; in prose the command is only named."""
    words = shlex.split(text.replace('"$charge_id"', NAME), comments=True)
    command: click.Command = main
    while isinstance(command, click.Group):
        assert words, f"`paidonce {text}` ends at a group"
        name = words.pop(0)
        found = command.commands.get(name)
        assert found is not None, f"there is no {name!r} in `paidonce {text}`"
        command = found
    if place == "line":
        command.make_context(command.name, words)  # Parses, checks and converts; runs nothing.


def test_the_commands_that_only_an_operator_has_are_in_the_runbook() -> None:
    """Whoever adds one says when it is used."""
    named = {" ".join(shlex.split(text, comments=True)[:2]) for _, text in PAIDONCE}
    assert "erase" in {text.partition(" ")[0] for _, text in PAIDONCE}
    for group in ("ledger", "audit", "dead-letters"):
        commands = main.commands[group]
        assert isinstance(commands, click.Group)
        assert {f"{group} {name}" for name in commands.commands} <= named


@pytest.mark.parametrize("page", [RUNBOOK, SECURITY], ids=["runbook", "security"])
def test_every_variable_is_one_of_the_contract(page: str) -> None:
    """Or a constant of the code's that says where it is."""
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", page))
    assert named
    for name in named:
        assert f'"{name}"' in SETTINGS or hasattr(gateway, name), name


def test_every_variable_of_terraform_is_one() -> None:
    """As it is said: `name = value`, or by its name alone."""
    declared = set(re.findall(r'^variable "(\w+)"', TERRAFORM["variables"], re.MULTILINE))
    named = set(re.findall(r"`(\w+) = [^`]+`", RUNBOOK))
    named |= {word for word in re.findall(r"`(\w+)`", RUNBOOK) if re.fullmatch(r"[a-z]+(_[a-z]+)+", word)}
    of_a_charge = {"receipt_email", "last_error", "waiting_on", "api_version", "expires_at"}
    assert of_a_charge <= set(re.findall(r'^        "(\w+)":', CODE, re.MULTILINE))
    assert {"jobs_paused", "ledger_generation", "deletion_protection", "secret_versions"} <= named
    assert named - of_a_charge <= declared


def test_every_http_path_is_answered_by_the_charge_function() -> None:
    """With that method."""
    asked = [
        (method or "GET", path)
        for method, path in re.findall(r'^ +say (?:-X (\w+) )?"\$CHARGE_URL([^"]*)"', RUNBOOK, re.MULTILINE)
    ]
    asked += re.findall(r"`(GET|POST|PUT|PATCH|DELETE) (/[^`\s]*)`", RUNBOOK)
    assert len(asked) >= RUNBOOK.count("CHARGE_URL/") > 5
    adapter = ROUTES.bind("charge")
    for method, path in asked:
        if (method, path) == ("GET", health.PATH):
            continue
        here = path.replace("$charge_id", NAME).replace("{charge_id}", NAME)
        try:
            adapter.match(here, method=method)
        except RequestRedirect:  # pragma: no cover - a path that is not quite one.
            pytest.fail(f"{method} {path}")


def test_every_queue_job_function_and_secret_is_deployed() -> None:
    """Under the module's default name."""
    functions = re.findall(r"^    (\w+) = \{", TERRAFORM["functions"].partition("  functions = {")[2], re.MULTILINE)
    queues = re.findall(r"^    (\w+) = \{", TERRAFORM["queues"].partition("  jobs = {")[0], re.MULTILINE)
    jobs = re.findall(r"^    (\w+) += \{ path", TERRAFORM["queues"], re.MULTILINE)
    secrets = [
        name.lower().replace("_", "-") for name in ("STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRETS", "SIGNING_SECRETS")
    ]
    places = {"tasks queues": queues, "scheduler jobs": jobs, "secrets": secrets, "service_name": functions}
    places["services proxy"] = functions
    seen = set()
    for line in COMMANDS:
        for place, names in places.items():
            if place in line:
                for named in re.findall(r"paidonce-([a-z-]*[a-z])", line):
                    assert named in names, line
                    seen.add(place)
    assert seen == set(places)
    (loop,) = re.findall(r"for job in ([a-z ]+);", RUNBOOK)
    assert loop.split() == jobs


@pytest.mark.parametrize("folder", [".", "examples/small", "examples/production"])
def test_every_output_of_terraform_is_said_by_the_module_and_by_the_examples(folder: str) -> None:
    """Whichever of them somebody began with; and the operator's page is where the command that opens it puts it."""
    files = (REPOSITORY / "infra" / "terraform" / folder).glob("*.tf")
    said = {name for path in files for name in re.findall(r'^output "(\w+)"', path.read_text(), re.MULTILINE)}
    named = set(re.findall(r"terraform output (?:-raw )?(\w+)", RUNBOOK + SECURITY))
    if folder != ".":  # Where the quick start is carried out. In the module `urls` has it.
        named |= set(re.findall(r"terraform output (?:-raw )?(\w+)", DEPLOYING))
        assert "charge_url" in named
    assert {"console", "environment", "ttl"} <= named <= said
    (port,) = set(re.findall(r"--port=(\d+)", RUNBOOK + TERRAFORM["outputs"]))
    assert set(re.findall(r"http://localhost:(\d+)", RUNBOOK + TERRAFORM["outputs"])) == {port}


def test_a_terminal_has_the_functions_environment_before_paidonce_is_called() -> None:
    """All of it at once, and the secrets from where they are: what paidonce writes it writes as a function would."""
    first = COMMANDS[: next(n for n, line in enumerate(COMMANDS) if line.startswith("paidonce "))]
    assert first[0].startswith('eval "$(terraform output -raw environment)"')
    exported = [line.removeprefix("export ").partition("=") for line in COMMANDS if line.startswith("export ")]
    assert {name: "secrets versions access" in value for name, _, value in exported} == {
        "STRIPE_API_KEY": True,
        "SIGNING_SECRETS": True,
    }


def test_a_line_without_fields_of_ours_is_shown_as_well() -> None:
    """What Python, gunicorn and Cloud Run write is text, or a request."""
    (lines,) = (line for line in COMMANDS if line.startswith("lines() "))
    (shown,) = re.findall(r"--format='value\(([^)]+)\)'", lines)
    assert set(shown.split(", ")) == {"timestamp", "jsonPayload", "textPayload", "httpRequest.status"}


def test_every_log_line_that_is_looked_for_is_logged() -> None:
    """With the fields that it is picked by."""
    looked_for = [line for line in COMMANDS if "jsonPayload." in line and line.startswith("lines ")]
    assert len(looked_for) > 3
    for line in looked_for:
        (message,) = re.findall(r'jsonPayload\.message="([^"]+)"', line)
        calls = re.findall(rf'log\.\w+\(\s*"{re.escape(message)}"(.*?)\n\n', CODE, re.DOTALL)
        fields = set(re.findall(r"jsonPayload\.(\w+)", line)) - {"message"}
        assert any(all(re.search(rf"\b{field}=", call) for field in fields) for call in calls), line


def test_every_metric_is_explained() -> None:
    """In the table, and no other."""
    told = set(re.findall(r"^\| `paidonce\.(\w+)` \|", RUNBOOK, re.MULTILINE))
    assert told == telemetry.COUNTERS.keys() | telemetry.DURATIONS.keys()


# --- Security ---------------------------------------------------------------------------------------------------------


TESTS: Final = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", SECURITY)


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_every_test_that_shows_something_is_there(path: str, name: str) -> None:
    """And is collected: a function of its module, not one that a text mentions."""
    module = ast.parse((REPOSITORY / path).read_text())
    assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}


def test_every_claim_names_its_tests() -> None:
    """A section without one is what is open, and says so."""
    parts = re.split(r"^## (.+)$", SECURITY, flags=re.MULTILINE)[1:]
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert [title for title, text in sections.items() if "::test_" not in text] == ["Open"]
    assert SECURITY.count("::") == len(TESTS), "a test is named in another way"


def test_every_dependency_is_locked_by_hash() -> None:
    """Each package has one version and at least one hash."""
    packages = re.split(
        r"\n(?=\S)",
        "\n".join(
            line
            for line in (REPOSITORY / "requirements.lock").read_text().splitlines()
            if not line.lstrip().startswith("#")
        ),
    )
    assert len(packages) > 20
    for package in packages:
        assert re.match(r"[\w.\-\[\]]+==\S+ (; .+ )?\\\n", package), package.partition("\n")[0]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", package), package.partition("\n")[0]


def test_what_is_installed_beside_the_lock_is_named() -> None:
    """Whatever `make` gets by a version alone is not covered by the lock, and the page says so."""
    tools = re.findall(r" ([@\w/-]+)(?:==|@)\$\(\w+_VERSION\)", (REPOSITORY / "Makefile").read_text())
    assert len(tools) > 3
    dependencies = SECURITY.partition("## Dependencies")[2].partition("\n## ")[0]
    for tool in tools:
        assert re.search(rf"\s{tool}[\s,.]", dependencies), tool


def test_every_check_that_is_skipped_says_why() -> None:
    """At the resource; checkov shows the reason beside what it left out."""
    skipped = re.findall(r"checkov:skip=(\w+):?(.*)", "".join(TERRAFORM.values()))
    assert len(skipped) == 4
    for check, reason in skipped:
        assert len(reason) > 40, check


def test_the_times_that_are_promised_are_the_codes() -> None:
    """Whoever changes one changes the page."""
    assert (timedelta(hours=23), timedelta(hours=24)) == (policy.KEY_HORIZON, policy.KEY_LIFE)
    assert (timedelta(days=30), timedelta(days=31)) == (policy.EXPIRES_AFTER, policy.LIST_FOR)
    assert timedelta(days=1) == policy.LOST_MARGIN
    assert timedelta(minutes=10) == policy.BLOCKED_WAIT
    assert timedelta(hours=1) == desk.LATE_AFTER
    assert timedelta(days=365) == api.LATEST_EXPIRY
    assert reconcile.EVENTS_KEPT == links.LINK_LIFE == timedelta(days=30)
    assert timedelta(hours=12) == links.FORM_LIFE
    assert (timedelta(days=120), timedelta(days=400)) == (erasure.SHORTEST_RETENTION, erasure.RETENTION)
    assert timedelta(days=1) == reconcile.AUDIT_EVERY  # Late is twice that.
    for said in (
        "23 hours",
        "for 24 no decline",
        "31 days",
        "30 days",
        "a day before",
        "ten minutes",
        "a year at most",
        "400 by default, never less than 120",
        "for two days",
        "waited for us for an hour",
    ):
        assert said in RUNBOOK, said
    for said in ("400 days after", "for 30 days", "twelve hours", "98 days", "five minutes"):
        assert said in SECURITY, said
    assert "8467200s" in TERRAFORM["database"]  # 98 days.

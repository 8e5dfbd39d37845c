"""What the deployment would make agrees with the code: variables, secrets, roles, durations, queries, log lines."""

import ast
import dataclasses
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from google.cloud.datastore_v1.types import CompositeFilter, Filter, PropertyFilter, PropertyOrder, PropertyReference
from google.cloud.datastore_v1.types import Value as ValueMessage

from infra.local.datastore import DatastoreEmulator
from infra.local.stack import NOTICE_OPTIONS, QUEUE_OPTIONS
from infra.local.tasks.declaration import parse_queue
from infra.local.tasks.rules import LIFETIME
from shared import dead_letters, erasure, policy, reconcile, tasks
from shared.charge import Status
from shared.deliver import SWEEP_AGAIN
from shared.policy import Limits
from shared.settings import NEEDS, Settings
from shared.store import INDEXED, DatastoreStore, StoreRefused
from tests.outages.deployment import QueueSettings
from tests.terraform.conftest import CALLER, DEPLOYMENT, OPERATOR, REPOSITORY, TASK_CALLER, Plan, Workspace

FUNCTIONS: Final = ("charge", "webhook", "reconcile", "notify", "portal", "console")

NOT_SET: Final = {  # Of the contract's variables, those that no deployment sets.
    "CLOUD_TASKS_EMULATOR_HOST",
    "DATASTORE_EMULATOR_HOST",
    "STRIPE_API_BASE",  # Stripe's own.
}
OF_THE_PLATFORM: Final = {
    *("LOG_EXECUTION_ID", "THREADS"),  # Read by functions-framework.
    *("OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"),  # Read by OpenTelemetry's SDK.
}
ONLY_FOR: Final[Mapping[str, set[str]]] = {  # What not every function that reads it from the environment makes use of.
    "PORTAL_URL": {"charge", "notify", "portal", "console"},
    "RETENTION": {"charge", "reconcile"},
    "SIGNING_SECRETS": {"charge", "notify", "portal", "console"},
    "SMTP_URL": {"notify"},
    "STRIPE_WEBHOOK_SECRETS": {"webhook"},
}


# --- The quick start --------------------------------------------------------------------------------------------------


def test_the_quick_start_names_what_there_is(small: Plan) -> None:
    """Eleven commands; the events are those that the webhook reads, the secrets and the addresses the deployment's."""
    text = (DEPLOYMENT / "README.md").read_text().partition("## Quick start")[2].partition("\n## ")[0]
    commands = re.findall(r"^    (.+)$", text, re.MULTILINE)
    assert len(commands) == 11
    assert "has not" in text  # Been tried: what takes a cloud.
    (endpoint,) = (command for command in commands if command.startswith("stripe "))
    events = set(re.findall(r"enabled_events\[\]=([\w.]+)", endpoint))
    assert events == {*reconcile.EVENT_TYPES, "checkout.session.completed"}
    assert "checkout.session.completed" in (REPOSITORY / "shared" / "answers.py").read_text()
    secrets = {each["secret_id"] for each in small.all("google_secret_manager_secret").values()}
    assert set(re.findall(r"secrets versions add ([\w-]+)", text)) == secrets
    assert set(re.findall(r"output -raw (\w+)", text)) <= set(small.outputs)
    shown = re.sub(r"\$\(gcloud projects describe .*?'\)", "123456789012", endpoint)
    assert f'"url={small.outputs["webhook_url"]}"' in shown
    assert "small" in text
    assert "--live" in endpoint
    assert "`-d connect=true`" in text
    assert "connect=true" in (REPOSITORY / "infra" / "RUNBOOK.md").read_text()
    webhook_url = (DEPLOYMENT / "outputs.tf").read_text().partition('output "webhook_url"')[2].partition("}")[0]
    assert "connect=true" in webhook_url
    assert "checkout.session.completed" in webhook_url


# --- Variables and secrets --------------------------------------------------------------------------------------------


def _variables(plan: Plan, function: str) -> dict[str, str]:
    return dict(plan.function(function)["environment_variables"])


def _secrets(plan: Plan, function: str) -> set[str]:
    return {each["key"] for each in plan.function(function)["secret_environment_variables"]}


def _environment(plan: Plan, function: str) -> dict[str, str]:
    """Return a function's whole environment, with made-up secrets."""
    made_up = {"STRIPE_API_KEY": "sk_test_made_up", "SMTP_URL": "smtp://mail.example.com"}
    return _variables(plan, function) | {name: made_up.get(name, "made up") for name in _secrets(plan, function)}


class _Noted(dict[str, str]):
    """An environment that notes what is read."""

    def get(self, name: str, default: Any = None) -> Any:
        self.setdefault("", "")
        self[""] += f"{name} "
        return default


def _contract() -> set[str]:
    """Name every variable that the code reads."""
    noted = _Noted()
    Settings.from_environment(noted)
    return set(noted[""].split())


def test_each_function_starts_with_what_it_is_given(production: Plan, small: Plan) -> None:
    """Nothing that it needs is missing, and nothing is written in a way that it cannot read."""
    for plan in (production, small):
        assert set(plan.all("google_cloudfunctions2_function")) == set(FUNCTIONS) == set(NEEDS)
        for function in FUNCTIONS:
            settings = Settings.from_environment(_environment(plan, function), function=function)
            assert settings.project == "my-project"
            assert settings.database == plan.one("google_firestore_database")["name"]


def test_every_variable_of_the_contract_is_set_and_no_other(production: Plan) -> None:
    """Nothing is set that nobody reads; what is read is set somewhere."""
    given = {name for function in FUNCTIONS for name in _environment(production, function)}
    assert given - OF_THE_PLATFORM == _contract() - NOT_SET


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_is_given_what_its_own_code_reads(production: Plan, function: str) -> None:
    """All that its entry point reads; and, where it moves charges, all that the wiring reads to build what does so."""
    names = dict(re.findall(r'(\w+)=reader\.read\(\s*"(\w+)"', (REPOSITORY / "shared" / "settings.py").read_text()))
    assert set(names.values()) == _contract()
    sources = [REPOSITORY / "functions" / f"{function}.py"]
    if "CHARGE_URL" in NEEDS[function]:
        sources.append(REPOSITORY / "shared" / "wiring.py")
    text = "\n".join(path.read_text() for path in sources if path.exists())
    reads = {names[attribute] for attribute in re.findall(r"\bsettings\.(\w+)", text) if attribute in names}
    for_others = {name for name, functions in ONLY_FOR.items() if function not in functions}

    assert reads - NOT_SET - for_others <= set(_environment(production, function))
    assert not for_others & set(_environment(production, function))
    assert ONLY_FOR.keys() - for_others <= set(_environment(production, function))


def test_a_secret_is_read_by_those_who_are_given_it_and_by_nobody_else(production: Plan) -> None:
    """Of each secret that exists, one version by its number; and no value of any in the state."""
    readers = set(production.all("google_secret_manager_secret_iam_member"))
    assert readers == {f"{function}/{secret}" for function in FUNCTIONS for secret in _secrets(production, function)}
    secrets = production.all("google_secret_manager_secret")
    for function in FUNCTIONS:
        for given in production.function(function)["secret_environment_variables"]:
            assert given["secret"] == secrets[given["key"]]["secret_id"]
            assert re.fullmatch("[1-9][0-9]*", given["version"])
        assert not set(_variables(production, function)) & set(secrets)
    assert "google_secret_manager_secret_version" not in production.kinds
    assert set(production.outputs["put_secrets"]) == set(secrets)


def test_without_mail_there_is_no_secret_for_it(small: Plan) -> None:
    """A secret without a value would keep the functions from being deployed."""
    assert "SMTP_URL" not in small.all("google_secret_manager_secret")
    assert not {"MAIL_FROM", "OPERATOR_EMAIL", "SMTP_URL", "OUTCOME_URL"} & set(_environment(small, "notify"))


def test_a_new_version_of_a_secret_reaches_those_who_read_it(workspace: Workspace) -> None:
    """Raising its number deploys them anew."""
    plan = workspace.plan("production", secret_versions={"SIGNING_SECRETS": 3})
    versions = {
        (function, given["key"]): given["version"]
        for function in FUNCTIONS
        for given in plan.function(function)["secret_environment_variables"]
    }
    assert {function for (function, secret), number in versions.items() if number == "3"} == ONLY_FOR["SIGNING_SECRETS"]
    assert {number for (_, secret), number in versions.items() if secret != "SIGNING_SECRETS"} == {"1"}


def test_a_shell_is_told_what_the_functions_are(production: Plan, small: Plan, workspace: Workspace) -> None:
    """So that what an operator does from there is enqueued and told like everything else. No secret is among it."""
    name = "Bob's Shop at $HOME <pay@example.com>"
    mail = f'  mail = {{ from = "{name}", operator = "ops@example.com" }}'
    workspace.spoil("examples/small/main.tf", "^  charge_ingress = .*", mail)
    quoted = workspace.plan("small")
    but_for_traces = _contract() - {"OTEL_EXPORTER_OTLP_ENDPOINT"}
    for plan in (production, small, quoted):
        command = f"{plan.outputs['environment']}\nexec /usr/bin/env -0"
        told = subprocess.run(["/bin/sh", "-c", command], env={}, capture_output=True, text=True, check=True).stdout
        read = dict(line.split("=", 1) for line in told.split("\0") if line)
        given = {name: value for name, value in _variables(plan, "reconcile").items() if name in but_for_traces}
        assert {name: value for name, value in read.items() if name in _contract()} == given
    assert _variables(quoted, "reconcile")["MAIL_FROM"] == name


# --- Who may do what --------------------------------------------------------------------------------------------------


def _who(member: str) -> str:
    ours = re.fullmatch(r"serviceAccount:paidonce-(\w+)@my-project\.iam\.gserviceaccount\.com", member)
    named = {CALLER: "callers", TASK_CALLER: "task_callers", OPERATOR: "operators"}
    return ours[1] if ours else named.get(member, member)


def _granted(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Name who has which role on what, in the words of the README."""
    accounts = {each["name"]: each["account_id"].removeprefix("paidonce-") for each in _accounts(plan)}
    for values in plan.all("google_project_iam_member").values():
        condition = "".join(each["expression"] for each in values["condition"])
        role = values["role"].replace("projects/my-project/roles/paidonce_", "")
        places = {"databases/paidonce": "database", "gcf-v2-sources-": "gcf-v2-sources", "": "project"}
        yield _who(values["member"]), role, next(name for found, name in places.items() if found in condition)
    for key, values in plan.all("google_secret_manager_secret_iam_member").items():
        yield _who(values["member"]), values["role"], key.partition("/")[2]
    for values in plan.all("google_cloud_tasks_queue_iam_member").values():
        yield _who(values["member"]), values["role"], values["name"].removeprefix("paidonce-")
    for values in plan.all("google_service_account_iam_member").values():
        yield _who(values["member"]), values["role"], accounts[values["service_account_id"]]
    for values in plan.all("google_cloud_run_service_iam_member").values():
        yield _who(values["member"]), values["role"], values["service"].removeprefix("paidonce-")
    for values in plan.all("google_artifact_registry_repository_iam_member").values():
        yield _who(values["member"]), values["role"], "images"


def _accounts(plan: Plan) -> Iterable[Mapping[str, Any]]:
    return plan.all("google_service_account").values()


def test_nobody_may_do_more_or_less_than_the_readme_says(production: Plan) -> None:
    """Its table, row by row, is what is granted; and every kind of grant is looked at."""
    table = (DEPLOYMENT / "README.md").read_text().partition("## Who may do what")[2].partition("\n## ")[0]
    rows = [row.split("|")[1:4] for row in re.findall(r"^\| `.*$", table, re.MULTILINE)]
    cells = [[re.findall("`([^`]+)`", cell) for cell in row] for row in rows]
    said = {(who, role, what) for whos, roles, whats in cells for who in whos for role in roles for what in whats}
    granted = list(_granted(production))
    assert set(granted) == said
    assert (
        len(granted) == len(said) == sum(len(production.all(kind)) for kind in production.kinds if "_iam_" in kind) - 1
    )
    assert {kind for kind in production.kinds if re.search("_(binding|policy)$", kind)} == {
        "google_monitoring_alert_policy"
    }


def test_traces_and_metrics_are_sent_only_if_that_is_asked_for(production: Plan, small: Plan) -> None:
    """To Google, with the place that metrics are refused without; otherwise there is no variable, no role, no API."""
    for function in FUNCTIONS:
        given = _variables(production, function)
        assert given["OTEL_EXPORTER_OTLP_ENDPOINT"] == "https://telemetry.googleapis.com"
        assert given["OTEL_SERVICE_NAME"] == f"paidonce-{function}"
        assert "cloud.region=europe-west1" in given["OTEL_RESOURCE_ATTRIBUTES"].split(",")
        assert not any(name.startswith("OTEL") for name in _environment(small, function))
    writes = {
        "roles/telemetry.tracesWriter",
        "roles/telemetry.metricsWriter",
        "roles/serviceusage.serviceUsageConsumer",
    }
    granted = {(who, role) for who, role, what in _granted(production) if what == "project" and who != "builder"}
    assert granted == {(function, role) for function in FUNCTIONS for role in writes}
    assert {who for who, _, what in _granted(small) if what == "project"} == {"builder"}
    apis = {"telemetry.googleapis.com", "cloudtrace.googleapis.com"}
    assert apis <= set(production.all("google_project_service"))
    assert not apis & set(small.all("google_project_service"))


def test_every_account_is_used(production: Plan) -> None:
    """Each has a role, and a function or a caller that it is for."""
    assert {each["account_id"].removeprefix("paidonce-") for each in _accounts(production)} == {
        *FUNCTIONS,
        "tasks",
        "scheduler",
        "builder",
    }
    for function in FUNCTIONS:
        assert _who(f"serviceAccount:{production.function(function)['service_account_email']}") == function
        assert _who(f"serviceAccount:{_variables(production, function).get('TASKS_INVOKER', '')}") in {
            "tasks",
            "serviceAccount:",
        }


def test_no_function_can_delete_a_charge(production: Plan) -> None:
    """Charges are what stops a second charge."""
    role = production.one("google_project_iam_custom_role")
    assert sorted(role["permissions"]) == [f"datastore.entities.{verb}" for verb in ("create", "get", "list", "update")]
    assert not any("datastore" in role or "editor" in role or "owner" in role for _, role, _ in _granted(production))


def test_only_the_webhook_and_the_portal_are_open_to_the_public(production: Plan, small: Plan) -> None:
    """Charges are reached from where `charge_ingress` says, the console from anywhere, and IAM decides at both.

    The rest only by Cloud Tasks and Cloud Scheduler.
    """
    for plan in (production, small):
        public = {what for who, _, what in _granted(plan) if who.startswith("all")}
        assert public == {"webhook", "portal"}
        ingress = {function: plan.function(function)["ingress_settings"] for function in FUNCTIONS}
        open_to_all = {function for function in FUNCTIONS if ingress[function] == "ALLOW_ALL"}
        assert open_to_all == {"charge", "console", *public}
        assert ingress["reconcile"] == ingress["notify"] == "ALLOW_INTERNAL_ONLY"


def test_only_operators_open_the_console(production: Plan, small: Plan) -> None:
    """No caller, no function and nobody else: who comes with a token of another identity is refused by Cloud Run.

    Without operators it is deployed, and nobody can call it.
    """
    roles = {"roles/run.invoker", "roles/run.viewer"}  # The second for `gcloud run services proxy`.
    given = {(who, role) for who, role, what in _granted(production) if what == "console"}
    assert given == {("operators", role) for role in roles}
    assert {role for who, role, _ in _granted(production) if who == "operators"} == roles
    assert "console" in small.all("google_cloudfunctions2_function")
    assert not [who for who, _, what in _granted(small) if what == "console"]


def test_the_console_is_opened_by_a_proxy_to_its_own_address(production: Plan, small: Plan) -> None:
    """From anywhere, by a command that the deployment says; it costs nothing while nobody has it open."""
    for plan in (production, small):
        service = plan.all("google_cloudfunctions2_function")["console"]["name"]
        assert plan.outputs["console"] == (
            f"gcloud run services proxy {service} --project=my-project --region=europe-west1 --port=8080"
        )
        console = plan.function("console")
        assert (console["ingress_settings"], console["min_instance_count"]) == ("ALLOW_ALL", 0)
        assert console["max_instance_count"] < plan.function("portal")["max_instance_count"]


def test_by_default_charges_are_asked_for_from_within_the_project(workspace: Workspace) -> None:
    """Who wants more says so."""
    workspace.spoil("examples/small/main.tf", "^  callers        = .*\n  operators .*\n  charge_ingress = .*\n", "")
    plan = workspace.plan("small")
    assert plan.function("charge")["ingress_settings"] == "ALLOW_INTERNAL_ONLY"
    assert {what for who, role, what in _granted(plan) if role == "roles/run.invoker" and what == "charge"} == {
        "charge"
    }
    assert {who for who, role, what in _granted(plan) if (role, what) == ("roles/run.invoker", "charge")} == {"tasks"}


# --- Addresses --------------------------------------------------------------------------------------------------------


def test_tokens_name_the_address_that_cloud_run_expects(production: Plan) -> None:
    """A service's own run.app address, and nothing behind it: in the tasks' tokens, and in the jobs'."""
    services = {each["name"] for each in production.all("google_cloudfunctions2_function").values()}
    for function in FUNCTIONS:
        url = production.outputs["urls"][function]
        host = re.fullmatch(r"https://([\w-]+)-123456789012\.europe-west1\.run\.app", url)
        assert host is not None
        assert host[1] in services
        assert tasks._service(f"{url}/{'0' * 40}/deliver") == f"{url}/"
    given = _variables(production, "charge")
    urls = {name.lower().removesuffix("_url"): url for name, url in given.items() if name.endswith("_URL")}
    assert {name: url for name, url in urls.items() if name != "outcome"} == {
        name: production.outputs["urls"][name] for name in ("charge", "notify", "portal")
    }
    assert production.outputs["charge_url"] == production.outputs["urls"]["charge"]
    assert production.outputs["webhook_url"] == f"{production.outputs['urls']['webhook']}/"


def test_a_task_goes_to_the_function_of_its_queue_whatever_it_asks_for(production: Plan) -> None:
    """Who may add tasks cannot have a token of the tasks' account sent anywhere else, nor one for anything else.

    A task of ours goes where it would go by itself. Its path, by which the function knows the charge, is its own.
    """
    given = _variables(production, "charge")
    goes_to = {"charges": given["CHARGE_URL"], "notices": given["NOTIFY_URL"]}
    for name, queue in production.all("google_cloud_tasks_queue").items():
        (target,) = queue["http_target"]
        (override,), (token,) = target["uri_override"], target["oidc_token"]
        assert f"{override['scheme'].lower()}://{override['host']}" == goes_to.pop(name)
        assert override["uri_override_enforce_mode"] == "ALWAYS"
        assert override["path_override"] == override["query_override"] == target["header_overrides"] == []
        assert override["port"] is None
        assert token["audience"] == tasks._service(f"https://{override['host']}/{'0' * 40}/deliver")
        assert token["service_account_email"] == given["TASKS_INVOKER"]
    assert goes_to == {}


def test_cloud_scheduler_calls_reconcile_and_is_let_in(production: Plan) -> None:
    """Sweep each minute, backfill each hour, audit each day; each at its own address, with the same audience."""
    url = production.outputs["urls"]["reconcile"]
    jobs = production.all("google_cloud_scheduler_job")
    called = {}
    for name, job in jobs.items():
        (target,) = job["http_target"]
        (token,) = target["oidc_token"]
        assert (target["http_method"], token["audience"]) == ("POST", f"{url}/")
        assert _who(f"serviceAccount:{token['service_account_email']}") == "scheduler"
        called[name] = (target["uri"], job["schedule"])
        timeout = production.function("reconcile")["timeout_seconds"]
        assert _seconds(job["attempt_deadline"]) > timedelta(seconds=timeout)
    assert called == {
        "sweep": (f"{url}/", "* * * * *"),
        "backfill": (f"{url}/backfill", "23 * * * *"),
        "audit": (f"{url}/audit", "41 4 * * *"),
    }
    assert not any(job["paused"] for job in jobs.values())


# --- Durations and rates ----------------------------------------------------------------------------------------------


def _seconds(written: str) -> timedelta:
    return timedelta(seconds=float(written.removesuffix("s")))


def _limits(plan: Plan) -> Limits:
    settings = Settings.from_environment(_environment(plan, "charge"))
    return Limits(stripe_timeout=settings.stripe_timeout, lease=settings.lease, quarantine=settings.quarantine)


def _check_durations(plan: Plan) -> Limits:
    limits = _limits(plan)
    for function in FUNCTIONS:
        timeout = timedelta(seconds=plan.function(function)["timeout_seconds"])
        assert limits.function_timeout - timedelta(seconds=1) < timeout <= limits.function_timeout
        assert limits.stripe_timeout * policy.CALLS_PER_DELIVERY < timeout < limits.lease
    assert limits.lease < limits.dispatch_deadline < policy.KEY_HORIZON
    return limits


def test_the_durations_nest_in_what_is_deployed(small: Plan, production: Plan) -> None:
    """Two calls to Stripe < function < lease < dispatch deadline < the key horizon."""
    assert _check_durations(small) == _check_durations(production) == Limits()


@pytest.mark.parametrize(("lease", "stripe_timeout"), [(120, 45), (18, 7), (1500, 600)])
def test_the_durations_nest_for_another_lease(workspace: Workspace, lease: int, stripe_timeout: int) -> None:
    """What is derived from it follows it."""
    settings = f"  lease_seconds = {lease}\n  stripe_timeout_seconds = {stripe_timeout}\n"
    workspace.spoil("examples/small/main.tf", r'^  source = "\.\./\.\."$', f'  source = "../.."\n{settings}')
    assert _check_durations(workspace.plan("small")).lease == timedelta(seconds=lease)


def _last_attempt(retry: Mapping[str, Any]) -> timedelta:
    """Say when at the latest a task has had all its attempts, each answered at once: it doubles, then stays."""
    backoff, at = _seconds(retry["min_backoff"]), timedelta()
    for _ in range(retry["max_attempts"] - 1):
        at += backoff
        backoff = min(backoff * 2, _seconds(retry["max_backoff"]))
    return at


def test_a_charge_ends_before_its_task_does(production: Plan) -> None:
    """A task that is given up is dropped without a word, and a caller's may be of a charge that nobody has recorded.

    So it comes for as long as Cloud Tasks keeps one, and the charge is canceled first; and after a restore new charges
    are looked for first until no task is left of before.
    """
    retry = production.all("google_cloud_tasks_queue")["charges"]["retry_config"][0]
    assert (retry["max_attempts"], retry.get("max_retry_duration")) == (-1, None)
    assert policy.EXPIRES_AFTER < LIFETIME <= policy.LIST_FOR
    assert _seconds(retry["min_backoff"]) == policy.FIRST_WAIT
    assert _seconds(retry["max_backoff"]) <= min(policy.LAST_WAIT, SWEEP_AGAIN)
    doubled = _seconds(retry["min_backoff"]) * 2 ** retry["max_doublings"]
    assert doubled >= _seconds(retry["max_backoff"])  # Beyond its doublings it would grow in equal steps.


def test_the_queue_is_the_one_that_was_measured_and_the_local_one(production: Plan, small: Plan) -> None:
    """What outages were simulated with (tests/outages), what is deployed, and what `make local` runs."""
    local, _ = parse_queue(",".join(("projects/p/locations/l/queues/q", *QUEUE_OPTIONS)))
    measured = QueueSettings().message()
    assert local.rate_limits == measured.rate_limits
    assert local.retry_config == measured.retry_config
    assert not any("dispatches" in option for option in NOTICE_OPTIONS)
    for plan in (production, small):
        queue = plan.all("google_cloud_tasks_queue")["charges"]
        (rates,), (retry,) = queue["rate_limits"], queue["retry_config"]
        assert rates["max_dispatches_per_second"] == measured.rate_limits.max_dispatches_per_second
        assert rates["max_concurrent_dispatches"] == measured.rate_limits.max_concurrent_dispatches
        assert retry["max_attempts"] == measured.retry_config.max_attempts
        assert retry["max_doublings"] == measured.retry_config.max_doublings
        for field in ("min_backoff", "max_backoff"):
            assert _seconds(retry[field]) == getattr(measured.retry_config, field).ToTimedelta()


def test_a_notice_is_tried_for_days_and_then_no_more(production: Plan) -> None:
    """A weekend without a mail server loses nothing; last month's news is not sent."""
    retry = production.all("google_cloud_tasks_queue")["notices"]["retry_config"][0]
    assert timedelta(days=2) < _last_attempt(retry) + _seconds(retry["max_backoff"]) < timedelta(days=3)
    assert _seconds(retry["max_retry_duration"]) == timedelta(days=3)


def test_the_queues_never_ask_for_more_than_the_functions_can_take(production: Plan, small: Plan) -> None:
    """Half of the charge function's room is left to callers; no request waits for a thread of its instance."""
    for plan in (production, small):
        room = {}
        for function in FUNCTIONS:
            service = plan.function(function)
            room[function] = service["max_instance_count"] * service["max_instance_request_concurrency"]
            assert _variables(plan, function)["THREADS"] == str(service["max_instance_request_concurrency"])
            assert service["available_cpu"] == "1"  # With less, Cloud Run allows one request at a time.
        rates = {name: queue["rate_limits"][0] for name, queue in plan.all("google_cloud_tasks_queue").items()}
        assert rates["charges"]["max_concurrent_dispatches"] <= room["charge"] // 2
        assert rates["notices"]["max_concurrent_dispatches"] <= room["notify"]
        assert all(0 < rate["max_dispatches_per_second"] <= 500 for rate in rates.values())
    assert production.function("charge")["max_instance_count"] == 20
    assert small.function("charge")["max_instance_count"] == 10


def test_a_small_charge_function_is_left_half_to_its_callers(workspace: Workspace) -> None:
    """One instance takes 32 at a time: 16 of them by task."""
    setting = "  scaling = { charge = { max_instances = 1 } }"
    workspace.spoil("examples/small/main.tf", "^  charge_ingress = .*", setting)
    (rates,) = workspace.plan("small").all("google_cloud_tasks_queue")["charges"]["rate_limits"]
    assert rates["max_concurrent_dispatches"] == 16


def test_the_queues_are_those_that_the_functions_add_to(production: Plan) -> None:
    """By name and place, and the pausing commands name both."""
    queues = {name: queue["name"] for name, queue in production.all("google_cloud_tasks_queue").items()}
    given = _variables(production, "charge")
    assert queues == {"charges": given["CHARGE_QUEUE"], "notices": given["NOTIFY_QUEUE"]}
    assert {queue["location"] for queue in production.all("google_cloud_tasks_queue").values()} == {
        given["TASKS_LOCATION"]
    }
    assert production.outputs["pause"] == [
        f"gcloud tasks queues pause {name} --project=my-project --location=europe-west1"
        for name in sorted(queues.values())
    ]


# --- The source -------------------------------------------------------------------------------------------------------


def test_new_code_has_a_new_name(workspace: Workspace) -> None:
    """Under one name, Cloud Functions would not notice that there is new code."""
    before = workspace.plan("small").one("google_storage_bucket_object")["name"]
    (workspace.deployment.parents[1] / "dist" / "paidonce.zip").write_bytes(b"other source")
    plan = workspace.plan("small")
    after = plan.one("google_storage_bucket_object")["name"]
    assert before != after
    for name, function in plan.all("google_cloudfunctions2_function").items():
        (build,) = function["build_config"]
        assert build["entry_point"] == name
        assert build["source"][0]["storage_source"][0]["object"] == after


# --- The database -----------------------------------------------------------------------------------------------------


def test_the_ledger_is_kept(production: Plan) -> None:
    """Named, recoverable to the minute, backed up, and not deleted by a slip."""
    database = production.one("google_firestore_database")
    assert (database["type"], database["name"], database["location_id"]) == ("DATASTORE_MODE", "paidonce", "eur3")
    assert database["concurrency_mode"] == "OPTIMISTIC"
    assert database["point_in_time_recovery_enablement"] == "POINT_IN_TIME_RECOVERY_ENABLED"
    assert database["delete_protection_state"] == "DELETE_PROTECTION_ENABLED"
    assert database["deletion_policy"] == "ABANDON"
    backups = production.all("google_firestore_backup_schedule")
    kept = {name: _seconds(backup["retention"]) for name, backup in backups.items()}
    assert kept == {"daily": timedelta(days=7), "weekly": timedelta(weeks=14)}
    assert all(backup["database"] == database["name"] for backup in backups.values())
    assert all(secret["deletion_protection"] for secret in production.all("google_secret_manager_secret").values())


def test_only_what_may_be_deleted_is_ever_deleted_by_time(production: Plan) -> None:
    """Kinds and the property are the code's; a charge, the ledger's identity and open discrepancies stay for ever."""
    commands = production.outputs["ttl"]
    kinds = {kind for command in commands for kind in re.findall(r"--collection-group=(\w+) ", command)}
    assert kinds == {dead_letters.KIND, reconcile.REPORT}
    assert all(command.startswith("gcloud firestore fields ttls update expires_at ") for command in commands)
    assert all("--database=paidonce " in command for command in commands)
    assert "expires_at" in {field.name for field in dataclasses.fields(dead_letters.DeadLetter)}
    assert "expires_at" in {field.name for field in dataclasses.fields(reconcile.Report)}
    assert "expires_at" not in INDEXED  # An index on it would be a hot spot.
    assert "google_firestore_field" not in production.kinds
    given = Settings.from_environment(_environment(production, "reconcile"))
    assert given.retention == erasure.RETENTION


def test_a_restored_ledger_stands_beside_the_one_that_it_was_restored_from(workspace: Workspace) -> None:
    """Under a name of its own, that every function is told and may reach; the old one is left where it is."""
    restored = '  database = "paidonce-2"\n  ledger_generation = 2'
    workspace.spoil("examples/small/main.tf", "^  charge_ingress = .*", restored)
    plan = workspace.plan("small")
    database = plan.one("google_firestore_database")
    assert (database["name"], database["deletion_policy"]) == ("paidonce-2", "ABANDON")
    backups = plan.all("google_firestore_backup_schedule").values()
    assert {backup["database"] for backup in backups} == {"paidonce-2"}  # And none of the old one: the runbook says so.
    restoring = (REPOSITORY / "infra" / "RUNBOOK.md").read_text().partition("## Restoring")[2].partition("\n## ")[0]
    assert "of the old ledger no more backups are made" in restoring
    for function in FUNCTIONS:
        given = _variables(plan, function)
        assert (given["DATASTORE_DATABASE"], given["LEDGER_GENERATION"]) == ("paidonce-2", "2")
    members = json.dumps(list(plan.all("google_project_iam_member").values()))
    assert members.count("/databases/paidonce-2") == len(FUNCTIONS) == members.count("/databases/")


class _StrictDatastore(DatastoreEmulator):
    """Google's emulator, which refuses a query whose index is not among those given."""

    def __init__(self, index_file: Path) -> None:
        super().__init__()
        self._index_file = index_file

    def _arguments(self, jar: Path) -> list[str]:
        return [*super()._arguments(jar), "--require_indexes", f"--index_file={self._index_file}"]


NOON: Final = datetime.fromisoformat("2026-11-24T12:00:00Z")
QUERIES: Final[
    Mapping[str, Callable[[DatastoreStore], list[str]]]
] = {  # Every query that the code makes, by the method that makes it.
    "due": lambda store: store.due(3, NOON, 10),
    "paid": lambda store: store.paid(3, NOON, NOON, 10),
    "ended": lambda store: store.ended(3, NOON, 10),
    "attention": lambda store: store.attention(3, 10),
    "by_payment_intent": lambda store: store.by_payment_intent("pi_1"),
    "names": lambda store: [*store.names("AuditReport", "", 10), *store.names("AuditReport", "a", 10)],
}


def test_every_query_has_its_index_and_every_index_its_query(production: Plan, tmp_path: Path) -> None:
    """On Google's own emulator, which is given the indexes of the deployment and told to require them."""
    source = ast.parse((REPOSITORY / "shared" / "store.py").read_text())
    methods = [node for node in ast.walk(source) if isinstance(node, ast.FunctionDef)]
    querying = {
        node.name for node in methods if re.search(r"_client\.run_\w*query|self\._(names|between)\(", ast.unparse(node))
    }
    assert querying - {"_names", "_between"} == set(QUERIES)

    indexes = production.all("google_firestore_index").values()
    lines = ["indexes:"]
    for index in indexes:
        lines += [f"- kind: {index['collection']}", "  properties:"]
        for field in index["fields"]:
            lines += [
                f"  - name: {field['field_path']}",
                f"    direction: {field['order'].removesuffix('ENDING').lower()}",
            ]
    index_file = tmp_path / "index.yaml"
    index_file.write_text("\n".join(lines) + "\n")
    with _StrictDatastore(index_file) as emulator:
        store = DatastoreStore("my-project", emulator_host=emulator.host)
        for query in QUERIES.values():
            assert query(store) == []
        with pytest.raises(StoreRefused, match="index"):  # It does refuse: two properties, one of them in order.
            _query_by_two_properties(store)
        store.close()

    store_source = (REPOSITORY / "shared" / "store.py").read_text()
    queried = set(re.findall(r'(?:PropertyReference\(name=|_between\()"([a-z_]+)"', store_source))
    assert queried == INDEXED | {"__key__"}  # Which names the entity, and is in every index.
    assert {field["field_path"] for index in indexes for field in index["fields"]} <= INDEXED


def _query_by_two_properties(store: DatastoreStore) -> None:
    due, payment_intent = PropertyReference(name="due"), PropertyReference(name="payment_intent")
    one = ValueMessage(string_value="pi_1")
    filters = [
        Filter(property_filter=PropertyFilter(property=payment_intent, op=PropertyFilter.Operator.EQUAL, value=one)),
        Filter(property_filter=PropertyFilter(property=due, op=PropertyFilter.Operator.LESS_THAN, value=one)),
    ]
    both = CompositeFilter(op=CompositeFilter.Operator.AND, filters=filters)
    order = [PropertyOrder(property=due, direction=PropertyOrder.Direction.ASCENDING)]
    store._names("Charge", Filter(composite_filter=both), 10, order=order)


# --- Metrics and alerts -----------------------------------------------------------------------------------------------


def _logged() -> dict[str, set[str]]:
    """Return every line that the code logs: its message, and the fields that it may have."""
    lines: dict[str, set[str]] = {}
    for path in [*REPOSITORY.glob("shared/*.py"), *REPOSITORY.glob("functions/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr="info" | "warning" | "error" | "exception"),
                    args=[ast.Constant(value=str(message))],
                ):
                    lines.setdefault(message, set()).update(each.arg for each in node.keywords if each.arg)
    return lines


def test_the_links_of_customers_are_not_kept_by_the_default_sink(production: Plan) -> None:
    """Cloud Run would write the address of each request of the portal, and that is the link. Others are kept."""
    exclusion = production.one("google_logging_project_exclusion")
    conditions = exclusion["filter"].split(" AND ")
    assert sorted(conditions) == [
        'logName="projects/my-project/logs/run.googleapis.com%2Frequests"',
        'resource.labels.service_name="paidonce-portal"',
        'resource.type="cloud_run_revision"',
    ]
    assert production.all("google_cloudfunctions2_function")["portal"]["name"] == "paidonce-portal"
    assert not exclusion.get("disabled")


def test_the_lines_of_every_function_are_counted(production: Plan) -> None:
    """One that is left out would fail without a sound."""
    services = {each["name"] for each in production.all("google_cloudfunctions2_function").values()}
    for metric in production.all("google_logging_metric").values():
        (named,) = re.findall(r"resource\.labels\.service_name=\((.*?)\)", metric["filter"])
        assert set(re.findall('"(.*?)"', named)) == services


def test_every_metric_counts_a_line_that_is_logged(production: Plan) -> None:
    """Its message and its fields are the code's, but for what is still awaited."""
    logged = _logged()
    awaited: dict[str, set[str]] = {}
    for metric in production.all("google_logging_metric").values():
        read = json.dumps([metric["filter"], metric["value_extractor"], metric["label_extractors"]]).replace(
            '\\\\\\"', '"'
        )
        fields = set(re.findall(r"jsonPayload\.(\w+)", read)) - {"message"}
        for told in re.findall(r"jsonPayload\.message=\((.*?)\)", metric["filter"]):
            for message in re.findall('"(.*?)"', told):
                missing = fields - logged.get(message, set())
                if message not in logged or missing:
                    awaited.setdefault(message, set()).update(missing)
    assert awaited == {}


def _conditions(plan: Plan) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return each alert's only condition: its type and what it says."""
    found = {}
    for name, alert in plan.all("google_monitoring_alert_policy").items():
        (condition,) = alert["conditions"]
        (only,) = [
            (kind, each) for kind, blocks in condition.items() if kind.startswith("condition_") for each in blocks
        ]
        found[name] = only
    return found


def test_the_statuses_that_are_counted_exist(production: Plan) -> None:
    """A status that is renamed would silence its alert."""
    filters = [metric["filter"] for metric in production.all("google_logging_metric").values()]
    filters += [said.get("filter") or said["query"] for _, said in _conditions(production).values()]
    told = [re.findall(r'\bstatus=\(?((?:"\w+"(?: OR )?)+)', each) for each in filters]
    named = {status for each in told for group in each for status in re.findall(r'"(\w+)"', group)}
    assert named == {Status.PENDING, Status.UNKNOWN, Status.BLOCKED}


def test_every_metric_is_seen_and_nothing_is_looked_for_that_does_not_exist(production: Plan) -> None:
    """On the dashboard; each alert says what to do, and goes to somebody."""
    metrics = {metric["name"] for metric in production.all("google_logging_metric").values()}
    alerts = production.all("google_monitoring_alert_policy")
    dashboard = production.one("google_monitoring_dashboard")["dashboard_json"]
    assert set(re.findall(r"logging\.googleapis\.com/user/([\w/]+)", dashboard)) == metrics
    counted = set(re.findall(r"logging_googleapis_com:(\w+)", json.dumps(alerts)))  # As PromQL writes their names.
    assert counted <= {f"user_{name.replace('/', '_')}" for name in metrics}
    assert {name.removeprefix("user_paidonce_") for name in counted} == {
        "sweeps",
        "decisions",
        "bad_signatures",
        "errors",
    }
    assert len(alerts) == 12
    assert "twelve alerts" in (DEPLOYMENT / "README.md").read_text()
    for alert in alerts.values():
        assert len(alert["documentation"][0]["content"]) > 40
        assert len(alert["notification_channels"]) == 1
    tiles = json.loads(dashboard)["mosaicLayout"]["tiles"]
    assert len({(tile["xPos"], tile["yPos"]) for tile in tiles}) == len(tiles) == 14


def test_an_alert_is_made_though_its_metric_is_new(production: Plan) -> None:
    """Cloud Monitoring refuses others with 404 for minutes: hashicorp/terraform-provider-google#11102.

    A line that rings by itself must have a limit of notifications, and a count must not.
    """
    policies = production.all("google_monitoring_alert_policy")
    for name, (kind, said) in _conditions(production).items():
        (strategy,) = policies[name]["alert_strategy"] or [{"notification_rate_limit": []}]
        if kind == "condition_prometheus_query_language":
            assert said["disable_metric_validation"] is True
            assert strategy["notification_rate_limit"] == []
        else:
            assert kind == "condition_matched_log"
            assert _seconds(strategy["notification_rate_limit"][0]["period"]) == timedelta(hours=1)


def _matches(log_filter: str, entry: Mapping[str, object]) -> bool:
    """Say whether a log entry is one of those that a filter asks for, in as much of the language as is used here."""

    def holds(field: str, operator: str, wanted: str) -> bool:
        if field not in entry:
            return False
        if operator == "=":
            return entry[field] in re.findall('"(.*?)"', wanted)
        number = float(str(entry[field]))
        return number > float(wanted) or (operator == ">=" and number == float(wanted))

    compared = r'([\w.]+)(=|>=|>)(\([^()]*\)|"[^"]*"|[\d.]+)'
    return all(any(holds(*each) for each in re.findall(compared, clause)) for clause in log_filter.split(" AND "))


@pytest.mark.parametrize(
    ("alert", "message", "field", "fields"),
    [
        ("old_charge", "decided", "age_seconds", {"status": "unknown"}),
        ("overdue_charge", "swept", "oldest_seconds", {}),
        ("late_audit", "the audit stands", "behind_seconds", {}),
    ],
)
def test_one_that_is_old_rings_among_any_number_of_young_ones(
    small: Plan, alert: str, message: str, field: str, fields: Mapping[str, str]
) -> None:
    """Every ordinary charge is `pending` at the age of 0: the age of most says nothing about the oldest."""
    limit = {"late_audit": 2 * 24 * 3600}.get(alert, 3600)
    kind, said = _conditions(small)[alert]
    assert kind == "condition_matched_log"  # Line by line. A percentile of all of them would be that of the young.

    def rings(age: int, **changed: str) -> bool:
        payload = {"message": message, field: age, **fields, **changed}
        entry = {f"jsonPayload.{name}": value for name, value in payload.items()}
        of_ours = {"resource.type": "cloud_run_revision", "resource.labels.service_name": "paidonce-charge"}
        return _matches(said["filter"], {**entry, **of_ours})

    assert rings(limit + 1)
    assert not any(rings(age) for age in (0, 59, 60, limit))
    if fields:
        assert rings(limit + 1, status="pending")
        assert not any(rings(limit + 1, status=status) for status in ("declined", "action_required", "succeeded"))


def test_one_charge_that_is_blocked_rings_and_one_that_is_unknown_does_not(small: Plan) -> None:
    """The first waits for somebody; of the second there must be many."""
    conditions = _conditions(small)
    of_ours = {"resource.type": "cloud_run_revision", "resource.labels.service_name": "paidonce-charge"}
    decided = {**of_ours, "jsonPayload.message": "decided", "jsonPayload.age_seconds": 0}
    assert _matches(conditions["blocked"][1]["filter"], {**decided, "jsonPayload.status": "blocked"})
    assert not _matches(conditions["blocked"][1]["filter"], {**decided, "jsonPayload.status": "unknown"})
    query = conditions["unknown"][1]["query"]
    decisions = (
        'logging_googleapis_com:user_paidonce_decisions{monitored_resource="cloud_run_revision",status="unknown"}'
    )
    assert query == f"sum(increase({decisions}[10m])) > 20"


@pytest.mark.parametrize(
    "message",
    [
        "a charge cannot be read",
        "a code that no table lists",
        "a discrepancy was recorded",
        "a notice reaches nobody",
        "a notice waits for long",
        "a task can never work and was kept as a dead letter",
        "an account cannot be audited",
    ],
)
def test_what_is_logged_once_rings_by_that_one_line(small: Plan, message: str) -> None:
    """A count of errors in ten minutes never comes to its limit by what is said once, or once an hour."""
    of_ours = {"resource.type": "cloud_run_revision", "resource.labels.service_name": "paidonce-notify"}
    filters = [said["filter"] for kind, said in _conditions(small).values() if kind == "condition_matched_log"]
    assert any(_matches(each, {**of_ours, "jsonPayload.message": message}) for each in filters)


def test_a_sweep_that_has_never_run_rings(small: Plan) -> None:
    """A condition for absence waits for a first line; and a count that is below 1 has no value before there is one."""
    (kind, said) = _conditions(small)["no_sweep"]
    assert kind == "condition_prometheus_query_language"
    sweeps = 'logging_googleapis_com:user_paidonce_sweeps{monitored_resource="cloud_run_revision"}'
    assert said["query"] == f"(sum(increase({sweeps}[10m])) or vector(0)) < 1"
    assert timedelta(minutes=1) < _seconds(said["duration"]) < timedelta(minutes=10)  # The first sweep comes in one.


def test_a_count_finds_its_metric_under_any_name_of_the_deployment(workspace: Workspace) -> None:
    """PromQL's names have no hyphens and no slashes."""
    workspace.spoil("examples/small/main.tf", "^  charge_ingress = .*", '  name = "my-pay-2"')
    query = _conditions(workspace.plan("small"))["errors"][1]["query"]
    assert "logging_googleapis_com:user_my_pay_2_errors{" in query


def test_an_old_charge_rings_before_its_key_is_too_old_to_repeat(production: Plan, small: Plan) -> None:
    """There is time left to do something, and no alarm for what a redelivery settles."""
    for plan, minutes in ((small, 60), (production, 30)):
        (age,) = re.findall(r"age_seconds>(\d+)$", _conditions(plan)["old_charge"][1]["filter"])
        assert timedelta(seconds=int(age)) == timedelta(minutes=minutes)
        assert policy.LAST_WAIT < timedelta(minutes=minutes) < policy.KEY_HORIZON

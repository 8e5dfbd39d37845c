"""The deployment is what Google's provider understands: Terraform says so, holding it against the provider's schema."""

import re
import shutil
import subprocess
from typing import Final

import pytest

from tests.terraform import extract_schema
from tests.terraform.conftest import CALLER, DEPLOYMENT, VARIABLES, Plan, Workspace
from tests.terraform.provider import Schema


@pytest.mark.parametrize("example", VARIABLES)
def test_terraform_has_nothing_against_the_deployment(workspace: Workspace, example: str) -> None:
    """No argument or block that the provider does not know, none missing, no reference that leads nowhere."""
    assert workspace.complaints(example) == ""
    assert workspace.complaints(example, plan=True) == ""


def test_it_is_formatted() -> None:
    """`terraform fmt` would change nothing."""
    terraform = shutil.which("terraform")
    if terraform is None:
        pytest.skip("Terraform 1.9 or later is not installed, and only it knows its own format")
    ran = subprocess.run(
        [terraform, "fmt", "-check", "-recursive", "-diff", str(DEPLOYMENT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "")


def test_the_schema_is_of_what_is_used_and_of_the_version_asked_for(production: Plan) -> None:
    """Whoever uses another resource makes the schema anew."""
    schema = Schema.read()
    assert sorted(schema.resources) == extract_schema.used("resource")
    assert sorted(schema.data_sources) == extract_schema.used("data")
    assert production.kinds <= set(schema.resources)
    (wanted,) = re.findall(r'version = "~> ([\d.]+)"', (DEPLOYMENT / "versions.tf").read_text())
    assert schema.version.startswith(f"{wanted}.")


@pytest.mark.parametrize(
    ("file", "pattern", "replacement", "complaint"),
    [
        # Names that the provider does not know.
        (
            "queues.tf",
            "max_dispatches_per_second",
            "max_dispatch_per_second",
            'An argument named "max_dispatch_per_sec',
        ),
        ("queues.tf", "^  rate_limits {", "  rate_limit {", 'Blocks of type "rate_limit" are not expected here'),
        (
            "queues.tf",
            '"google_cloud_tasks_queue" "queue"',
            '"google_cloud_task_queue" "queue"',
            "Invalid resource type",
        ),
        ("functions.tf", '^data "google_project" "this"', 'data "google_projekt" "this"', "Invalid data source"),
        (
            "database.tf",
            "      order      = fields",
            "      sorting = fields",
            'An argument named "sorting" is not expected',
        ),
        ("functions.tf", 'dynamic "secret_environment_var', 'dynamic "secret_env_var', "Unsupported block type"),
        # What the provider requires.
        ("database.tf", "^  location_id = .*\n", "", 'The argument "location_id" is required'),
        ("functions.tf", "^ +version    = .*\n", "", 'The argument "version" is required'),
        ("database.tf", '^  retention = "604800s".*\n', "", 'The argument "retention" is required'),
        ("database.tf", r"^  dynamic \"fields\" \{\n(.*\n)*?  \}\n", "", 'At least 1 "fields" blocks are required'),
        # One block too many.
        (
            "queues.tf",
            "^  retry_config {\n    min",
            "  retry_config {}\n  retry_config {\n    min",
            'No more than 1 "retry_con',
        ),
        # References that lead nowhere.
        ("identities.tf", r"images\.name$", "images.nam", 'attribute named "nam"'),
        (
            "outputs.tf",
            r"= google_firestore_database\.ledger",
            "= google_firestore_database.leger",
            "has not been declared",
        ),
        ("functions.tf", r"var\.outcome_url", "var.outcome_uri", "Reference to undeclared input variable"),
        # Values of the wrong kind.
        ("queues.tf", r"each\.value\.retries", '"often"', 'Inappropriate value for attribute "retry_count": a number'),
        # A function that waits for its own address.
        (
            "functions.tf",
            r"CHARGE_URL           = local\.urls\.charge",
            'CHARGE_URL = google_cloudfunctions2_function.function["charge"].url',
            "Cycle:",
        ),
    ],
)
def test_a_planted_mistake_is_found(
    workspace: Workspace, file: str, pattern: str, replacement: str, complaint: str
) -> None:
    """The check is no formality: a mistake of every kind, each in turn, is told."""
    workspace.spoil(file, pattern, replacement)
    assert complaint in workspace.complaints()


def _blocks(file: str) -> dict[str, str]:
    """Return a file's blocks by their names."""
    text = (DEPLOYMENT / file).read_text()
    return dict(re.findall(r'^\w+ "(\w+)" \{\n(.*?)^\}', text, re.MULTILINE | re.DOTALL))


REFUSED: Final = [  # What cannot work, and what is said about it.
    ('name = "pay"', "5 to 19 lower-case letters"),
    ('labels = { Team = "payments" }', "Keys and values are lower-case letters"),
    ('bundle = "paidonce.tar"', "Write the path of a zip file"),
    ('runtime = "python310"', "The code needs Python 3.11 or later"),
    (
        "scaling = { checkout = {}, portal = { concurrency = 1001 } }",
        "Write the names of functions",
        "concurrency is 1 to 1000",
    ),
    ('callers = ["allUsers"]', "may not charge anybody"),
    ('task_callers = ["allAuthenticatedUsers"]', "may not charge anybody"),
    ('operators = ["allUsers"]', "allAuthenticatedUsers are no operators"),
    ('charge_ingress = "ALLOW_SOME"', "Write ALLOW_INTERNAL_ONLY"),
    ("lease_seconds = 12", "18 to 1500 whole seconds"),
    ("quarantine_seconds = 90000", "at most a day"),
    ('retry_schedule = "tomorrow"', "Write durations such as 1d,3d,5d,7d"),
    ("ledger_generation = 0", "A whole number from 1 on"),
    ('mail = { from = "nobody", operator = "ops@example.com" }', "Both are mail addresses"),
    ('outcome_url = "http://shop.example.com"', "An address that begins with https://"),
    ("secret_versions = { STRIPE_KEY = 0 }", "Write STRIPE_API_KEY", "Versions are numbered from 1 on"),
    ("retention_days = 119.5", "120 whole days or more"),
    ('database_location = "Europe"', "Write a region such as europe-west1, or"),
    ("charge_dispatches_per_second = 501", "charge_dispatches_per_second is 501"),
    ("notice_dispatches_per_second = 0", "notice_dispatches_per_second is 0"),
    ('notification_channels = ["1234"]', "Write names such as projects/"),
    ("alert_thresholds = { errors = -1 }", "Thresholds are not negative"),
]


def test_settings_that_cannot_work_are_refused(workspace: Workspace) -> None:
    """Before anything is made, all at once, and with words that say what to write."""
    settings = "".join(f"  {setting}\n" for setting, *_ in REFUSED)
    workspace.spoil(
        "examples/small/main.tf",
        r"^  project        = .*\n(  .*\n)*?\}",
        f'  project = "P"\n  region = "Europe"\n{settings}}}',
    )
    said = workspace.complaints(plan=True)
    for _, *complaints in REFUSED:
        for complaint in complaints:
            assert complaint in said
    assert "Write the project's id" in said
    assert "Write a region such as europe-west1." in said
    refused = set(re.findall(r"var\.(\w+) is", said))
    checked = {name for name, block in _blocks("variables.tf").items() if "validation {" in block}
    assert checked - refused == {"stripe_timeout_seconds", "database"}  # Held against others.


@pytest.mark.parametrize(("stripe_timeout", "refused"), [(37, False), (38, True)])
def test_durations_that_do_not_nest_are_refused(workspace: Workspace, stripe_timeout: int, refused: bool) -> None:
    """Twice 37 s is less than the 75 s that a function may run by default; twice 38 s is not."""
    workspace.spoil("examples/small/main.tf", "^  charge_ingress = .*", f"  stripe_timeout_seconds = {stripe_timeout}")
    assert ("Two calls to Stripe must fit into one run" in workspace.complaints(plan=True)) is refused


@pytest.mark.parametrize(
    ("database", "generation", "complaint"),
    [
        ("paidonce", 1, ""),
        ("paidonce-2", 2, ""),
        ("paidonce", 3, ""),
        ("paidonce-2", 1, "Only a restored ledger has another name"),  # Empty, it would have forgotten every key.
        ("(default)", 2, "4 to 63 lower-case letters"),
        ("paidonce-", 2, "4 to 63 lower-case letters"),
    ],
)
def test_an_empty_database_never_takes_the_place_of_a_ledger(
    workspace: Workspace, database: str, generation: int, complaint: str
) -> None:
    """Of a generation above the first it stays closed until it has been reopened."""
    setting = f'  database = "{database}"\n  ledger_generation = {generation}'
    workspace.spoil("examples/small/main.tf", "^  charge_ingress = .*", setting)
    said = workspace.complaints(plan=True)
    assert complaint in said
    assert bool(said) is bool(complaint)


@pytest.mark.parametrize(("function", "refused"), [("charge", False), ("notify", True), ("console", True)])
def test_more_instances_kept_than_there_may_be_are_refused(workspace: Workspace, function: str, refused: bool) -> None:
    """Four are within the charge function's budget, and beyond the notify function's and the console's."""
    setting = f"  scaling = {{ {function} = {{ min_instances = 4 }} }}"
    workspace.spoil("examples/small/main.tf", "^  charge_ingress = .*", setting)
    complaint = f"{function}: max_instances must not be less than min_instances"
    assert (complaint in workspace.complaints(plan=True)) is refused


def test_every_variable_is_described_typed_and_validated() -> None:
    """A yes or no is validated by its type. What the module says in the end is described too."""
    for block in _blocks("variables.tf").values():
        assert re.search(r"^  type +=", block, re.MULTILINE)
        assert "= bool" in block or re.search(r"^  validation \{", block, re.MULTILINE)
    for block in (_blocks("variables.tf") | _blocks("outputs.tf")).values():
        assert re.search(r'^  description = ".{20,}"$', block, re.MULTILINE)


def test_secrets_can_be_put_in_before_the_functions_are_made(workspace: Workspace) -> None:
    """As the README says it: the secrets first, since a function is not deployed without their values."""
    targeted = workspace.plan("small", project="my-project")
    assert "google_cloudfunctions2_function" in targeted.kinds

    command = [
        "plan",
        "-no-color",
        "-var=project=my-project",
        f'-var=callers=["{CALLER}"]',
        "-target=module.paidonce.google_secret_manager_secret.secret",
    ]
    ran = workspace.terraform(workspace.deployment / "examples" / "small", *command)

    assert ran.returncode == 0, ran.stderr
    assert set(re.findall(r"# module\.paidonce\.(google_\w+(?:\.builder)?)", ran.stdout)) == {
        "google_project_service",
        "google_secret_manager_secret",
        # What the build may do takes minutes to arrive: it is given here, and the builds come with the second apply.
        "google_service_account.builder",
        "google_project_iam_member.builder",
        "google_artifact_registry_repository",
        "google_artifact_registry_repository_iam_member.builder",
    }
    assert "gcloud secrets versions add paidonce-stripe-api-key --project=my-project --data-file=-" in ran.stdout


def test_a_bare_apply_keeps_the_callers(workspace: Workspace) -> None:
    """The quick start writes them down, and every later apply reads them; without them none is made at all."""
    readme = (DEPLOYMENT / "README.md").read_text()
    (written,) = re.findall(r"^    (printf .*) > terraform\.tfvars", readme, re.MULTILINE)
    words = written.replace("$(gcloud config get-value project)", "my-project")
    words = words.replace("$(gcloud config get-value account)", "me@example.com")
    tfvars = subprocess.run(["/bin/sh", "-c", words], capture_output=True, text=True, check=True).stdout
    folder = workspace.deployment / "examples" / "small"
    workspace.terraform(folder, "init").check_returncode()

    bare = workspace.terraform(folder, "plan", "-no-color", "-lock=false", "-var=project=my-project")
    assert 'The root module input variable "callers" is not set' in bare.stderr

    (folder / "terraform.tfvars").write_text(tfvars)
    bare = workspace.terraform(folder, "plan", "-no-color", "-lock=false")
    assert bare.returncode == 0, bare.stderr
    assert 'google_cloud_run_service_iam_member.invoker["charge/user:me@example.com"]' in bare.stdout
    assert not [line for line in readme.splitlines() if "terraform apply" in line and "-var" in line]

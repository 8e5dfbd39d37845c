"""Terraform itself, over a copy of the deployment and a stand-in for Google's provider."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pytest

from tests.terraform.provider import Schema, StandIn

REPOSITORY: Final = Path(__file__).parents[2]
DEPLOYMENT: Final = REPOSITORY / "infra" / "terraform"
CALLER: Final = "serviceAccount:shop@my-project.iam.gserviceaccount.com"
TASK_CALLER: Final = "serviceAccount:billing@my-project.iam.gserviceaccount.com"
OPERATOR: Final = "group:payments@example.com"
VARIABLES: Final[Mapping[str, Mapping[str, object]]] = {  # What must be said to plan an example.
    "small": {"project": "my-project", "callers": [CALLER]},
    "production": {
        "project": "my-project",
        "callers": [CALLER],
        "task_callers": [TASK_CALLER],
        "operators": [OPERATOR],
        "bundle": "paidonce.zip",
    },
}


@dataclass(frozen=True)
class Plan:
    """What Terraform would make."""

    document: Mapping[str, Any]

    @cached_property
    def _planned(self) -> list[Mapping[str, Any]]:
        root = self.document["planned_values"]["root_module"]
        return [*root.get("resources", []), *(each for child in root["child_modules"] for each in child["resources"])]

    def all(self, kind: str) -> dict[str, Mapping[str, Any]]:
        """Return the resources of a type, by their keys in `for_each`, or else by their names."""
        return {each.get("index", each["name"]): each["values"] for each in self._planned if each["type"] == kind}

    def one(self, kind: str) -> Mapping[str, Any]:
        """Return the only resource of a type."""
        (only,) = self.all(kind).values()
        return only

    @property
    def kinds(self) -> set[str]:
        """Name the types of all resources."""
        return {each["type"] for each in self._planned}

    @property
    def outputs(self) -> dict[str, Any]:
        """Return what the example says in the end."""
        return {name: each.get("value") for name, each in self.document["planned_values"]["outputs"].items()}

    def function(self, name: str) -> Mapping[str, Any]:
        """Return a function's service."""
        (service,) = self.all("google_cloudfunctions2_function")[name]["service_config"]
        return dict(service)


class Workspace:
    """A copy of the deployment, to be planned and spoilt."""

    def __init__(self, folder: Path, stand_in: StandIn) -> None:
        self.deployment = folder / "infra" / "terraform"
        shutil.copytree(
            DEPLOYMENT, self.deployment, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars")
        )
        for example in VARIABLES:  # Their states stay here.
            self._example(example).joinpath("backend_override.tf").write_text('terraform {\n  backend "local" {}\n}\n')
        for bundle in (folder / "dist" / "paidonce.zip", self._example("production") / "paidonce.zip"):
            bundle.parent.mkdir(exist_ok=True)
            bundle.write_bytes(b"the source")
        self._environment = {
            **{name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ},
            **stand_in.environment,
            "CHECKPOINT_DISABLE": "1",
            "TF_CLI_CONFIG_FILE": os.devnull,
            "TF_IN_AUTOMATION": "1",
            "TF_INPUT": "0",
        }

    def _example(self, name: str) -> Path:
        return self.deployment / "examples" / name

    def spoil(self, file: str, pattern: str, replacement: str) -> None:
        """Change a file, in one place exactly."""
        path = self.deployment / file
        text, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
        assert count == 1, f"{pattern!r} is in {file} {count} times"
        path.write_text(text)

    def terraform(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Terraform in a folder."""
        command = ["terraform", f"-chdir={folder}", *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)

    def complaints(self, example: str = "small", *, plan: bool = False, **variables: object) -> str:
        """Validate an example, or even plan it, and return what Terraform has against it: mostly nothing, or one error.

        Without the frame and the line breaks that Terraform puts around its words.
        """
        ran = self._init(example)
        if ran.returncode == 0 and not plan:
            ran = self.terraform(self._example(example), "validate", "-no-color")
        elif ran.returncode == 0:
            ran = self._plan(example, variables)
        assert bool(ran.returncode) == bool(ran.stderr.strip()), ran
        return " ".join(ran.stderr.replace("│", " ").split())

    def plan(self, example: str, **variables: object) -> Plan:
        """Plan an example."""
        self._init(example).check_returncode()
        ran = self._plan(example, variables)
        assert ran.returncode == 0, ran.stderr
        shown = self.terraform(self._example(example), "show", "-json", "plan")
        return Plan(json.loads(shown.stdout))

    def _init(self, example: str) -> subprocess.CompletedProcess[str]:
        return self.terraform(self._example(example), "init", "-no-color")

    def _plan(self, example: str, variables: Mapping[str, object]) -> subprocess.CompletedProcess[str]:
        said = {**VARIABLES[example], **variables}
        values = [
            f"-var={name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in said.items()
        ]
        return self.terraform(self._example(example), "plan", "-no-color", "-lock=false", "-out=plan", *values)


@pytest.fixture(scope="session")
def stand_in() -> Iterator[StandIn]:
    """Provide the stand-in for Google's provider."""
    if shutil.which("terraform") is None:
        pytest.skip("Terraform 1.9 or later is not installed, and nothing else reads its language as it does")
    with StandIn(Schema.read()) as running:
        yield running


@pytest.fixture
def workspace(tmp_path: Path, stand_in: StandIn) -> Workspace:
    """A copy of the deployment."""
    return Workspace(tmp_path, stand_in)


@pytest.fixture(scope="session")
def production(tmp_path_factory: pytest.TempPathFactory, stand_in: StandIn) -> Plan:
    """What the production example makes: everything there is."""
    return Workspace(tmp_path_factory.mktemp("production"), stand_in).plan("production")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, stand_in: StandIn) -> Plan:
    """What the small example makes."""
    return Workspace(tmp_path_factory.mktemp("small"), stand_in).plan("small")

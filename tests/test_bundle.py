"""What is deployed is the bundle alone: it runs as it is unpacked, with the packages that it names and no others."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from infra import bundle
from infra.local.demo import LIMITS
from infra.local.processes import LOOPBACK, Program
from infra.local.stack import Stack, ask
from shared import health
from shared.charge import charge_id
from shared.settings import NEEDS

UV: Final = Path(sys.executable).with_name("uv")
TEMPLATES: Final = bundle.REPOSITORY / "shared" / "templates"


class Deployed(Stack):
    """The stack, with the functions of an unpacked bundle, started as the platform starts them.

    They see nothing of the repository: not their path, not their environment.
    """

    def __init__(self, *, folder: Path, source: Path, programs: Path) -> None:
        self._source = source
        self._installed = programs
        super().__init__(folder=folder, limits=LIMITS, sweep_every=None)

    def _function(self, name: str, *, ready: tuple[str, int]) -> Program:
        program = super()._function(name, ready=ready)
        program._command = [str(self._installed / "functions-framework")]
        program._environment = {
            **{variable: value for variable, value in self.environment().items() if variable != "PYTHONPATH"},
            "FUNCTION_SOURCE": str(self._source / "main.py"),
            "FUNCTION_TARGET": name,
            "HOST": LOOPBACK,
            "PORT": str(getattr(self.ports, name)),
        }
        return program


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, written and unpacked."""
    folder = tmp_path_factory.mktemp("bundle")
    bundle.write(folder / "paidonce.zip")
    with zipfile.ZipFile(folder / "paidonce.zip") as written:
        written.extractall(folder / "source")
    return folder / "source"


@pytest.fixture(scope="module")
def programs(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the bundle's requirements and nothing else."""
    environment = tmp_path_factory.mktemp("environment") / "venv"
    _uv("venv", "--quiet", "--python", sys.executable, str(environment))
    python = str(environment / "bin" / "python")
    _uv("pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", str(unpacked / "requirements.txt"))
    _uv("pip", "check", "--quiet", "--python", python)
    return environment / "bin"


@pytest.fixture(scope="module")
def deployed(unpacked: Path, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """All functions of the bundle, with everything around them."""
    with Deployed(folder=tmp_path_factory.mktemp("stack"), source=unpacked, programs=programs) as stack:
        yield stack


def test_each_function_starts_from_the_bundle_and_a_charge_is_charged_once(deployed: Deployed) -> None:
    """Asked for twice. Each function has answered with its own status before (`Stack`): the map is not mixed up."""
    body = {"amount": 1999, "currency": "usd", "customer": deployed.new_customer(), "payment_method": "pm_card_visa"}
    answers = [ask("POST", deployed.charge_url, json=body, headers={"Idempotency-Key": "order-1"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert deployed.double("GET", "tally")["by_metadata"][charge_id(None, "order-1")]["amounts"] == [1999]


def test_the_bundles_own_templates_and_languages_are_read(deployed: Deployed) -> None:
    """The customer's page in German, from a file that is no Python."""
    page = ask("GET", f"{deployed.portal_url}/x", headers={"Accept-Language": "de"})
    assert page.status_code == 404
    assert '<html lang="de"' in page.text
    assert "This " not in page.text


def test_the_operators_page_starts_from_the_bundle(deployed: Deployed) -> None:
    """And reads the ledger."""
    told = ask("GET", f"{deployed.console_url}{health.PATH}")
    assert (told.status_code, told.json()["status"]) == (200, "ok")


def test_the_same_source_makes_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the time: Terraform deploys what differs."""
    bundle.write(tmp_path / "one.zip")
    bundle.write(tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as written:
        entries = written.infolist()
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    assert {(entry.date_time, entry.compress_type, entry.external_attr >> 16) for entry in entries} == {
        (bundle.OLDEST, zipfile.ZIP_STORED, bundle.PLAIN_FILE)
    }


def test_the_bundle_holds_the_product_and_nothing_else(tmp_path: Path) -> None:
    """No tests, no emulators, no bytecode."""
    bundle.write(tmp_path / "paidonce.zip")
    with zipfile.ZipFile(tmp_path / "paidonce.zip") as written:
        names = set(written.namelist())
    assert {name.partition("/")[0] for name in names} == {"main.py", "requirements.txt", "functions", "shared"}
    assert {f"functions/{name}.py" for name in NEEDS} == {name for name in names if name.startswith("functions/")}
    templates = {str(path.relative_to(bundle.REPOSITORY)) for path in TEMPLATES.rglob("*.*")}
    assert templates == {name for name in names if name.startswith("shared/templates/")}  # Git knows them all.
    assert {Path(name).suffix for name in names} == {".py", ".txt", ".po", ".html", ".css", ".j2"}


def test_the_requirements_are_what_uv_derives_from_the_project(unpacked: Path) -> None:
    """In the versions of the lock, under the same conditions, each with its hashes, from no index of ours."""
    resolved = _uv(
        "pip", "compile", "--quiet", "--universal", "--no-header", "--no-annotate", "--constraint", "requirements.lock",
        "pyproject.toml",
    )  # fmt: skip
    text = (unpacked / "requirements.txt").read_text()
    entries = [line.removesuffix(" \\") for line in text.splitlines() if not line.startswith(" ")]
    assert entries == resolved.splitlines()
    assert all("--hash=sha256:" in entry for entry in re.split(r"\n(?=\S)", text.strip()))
    assert "index-url" not in text


def test_no_developers_package_is_installed(programs: Path) -> None:
    """Of the groups in pyproject.toml, but for what the product needs as well."""
    groups = tomllib.loads((bundle.REPOSITORY / "pyproject.toml").read_text())["dependency-groups"]
    named = {re.split(r"[\[>=]", each)[0] for group in groups.values() for each in group if isinstance(each, str)}
    listed = _uv("pip", "list", "--format", "freeze", "--python", str(programs / "python"))
    installed = {line.split("==")[0] for line in listed.splitlines()}
    assert named & installed == {"cryptography"}  # Google's own authentication needs it.


def _uv(*words: str) -> str:
    done = subprocess.run(
        [UV, *words],
        cwd=bundle.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "UV_LINK_MODE": "copy"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

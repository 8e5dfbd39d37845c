"""`GET /health`: whether a function could work, and which version it is. Stripe is not asked."""

import dataclasses
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from werkzeug.test import TestResponse

from shared import __version__, health, wiring
from shared.gateway import STRIPE_API_VERSION
from shared.settings import NEEDS
from tests.world import START, World, _client

PRIVATE: Final = sorted(NEEDS.keys() - health.PUBLIC)


@pytest.fixture
def world() -> World:
    """A fresh deployment, in place."""
    world = World()
    wiring.use(world.parts)
    return world


@pytest.fixture
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function without its environment."""
    for name in {name for names in NEEDS.values() for name in names}:
        monkeypatch.delenv(name, raising=False)
    wiring.use(None)


def ask(function: str, method: str = "GET", path: str = health.PATH) -> TestResponse:
    """Ask a function how it is."""
    return _client(function).open(path, method=method)


def test_the_version_is_the_projects() -> None:
    """The bundle has no pyproject.toml: so the code says it, and is held to it."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert __version__ == project["version"]


def test_the_path_is_one_that_cloud_run_lets_through() -> None:
    """It keeps /eventlog, /_ah/ and some paths that end with z, /healthz among them."""
    assert not health.PATH.endswith("z")
    assert not health.PATH.startswith(("/_ah/", "/eventlog"))


@pytest.mark.parametrize("function", PRIVATE)
def test_a_function_that_can_work_says_which_version_it_is(world: World, function: str) -> None:
    """Of the code, of the ledger, of Stripe's API; and asks nothing of Stripe."""
    before = list(world.services)
    told = ask(function)
    assert (told.status_code, told.headers["Cache-Control"]) == (200, "no-store")
    assert told.get_json() == {
        "status": "ok",
        "version": __version__,
        "ledger_generation": 1,
        "stripe_api_version": STRIPE_API_VERSION,
    }
    assert world.services[len(before) :] == ["store"]
    assert ask(function, "HEAD").status_code == 200


@pytest.mark.parametrize("function", PRIVATE)
def test_a_ledger_out_of_reach_is_no_health(world: World, function: str) -> None:
    """It would answer 503 to a charge, too."""
    world._down_until["store"] = START + timedelta(hours=1)
    told = ask(function)
    assert (told.status_code, told.get_json()["status"]) == (503, "unavailable")


@pytest.mark.parametrize("function", PRIVATE)
def test_a_closed_ledger_is_no_health_and_says_what_to_do(world: World, function: str) -> None:
    """After a restore, before it is reopened."""
    world.restore(world.backup())
    wiring.use(world.parts)
    told = ask(function)
    assert (told.status_code, told.get_json()["ledger_generation"]) == (503, 2)
    assert "paidonce ledger reopen" in told.get_json()["detail"]


@pytest.mark.usefixtures("_nothing_set")
@pytest.mark.parametrize("function", PRIVATE)
def test_a_variable_that_is_missing_is_named(function: str) -> None:
    """By its name."""
    told = ask(function)
    assert told.status_code == 503
    assert all(name in told.get_json()["detail"] for name in NEEDS[function])


@pytest.mark.parametrize("function", sorted(health.PUBLIC))
def test_the_public_is_told_ok_and_nothing_is_read_for_it(world: World, function: str) -> None:
    """No version, no generation, no cost."""
    before = list(world.services)
    world._down_until["store"] = START + timedelta(hours=1)
    told = ask(function)
    assert (told.status_code, told.text, told.mimetype) == (200, "ok\n", "text/plain")
    assert world.services == before


@pytest.mark.usefixtures("_nothing_set")
@pytest.mark.parametrize("function", sorted(health.PUBLIC))
def test_the_public_is_not_told_what_is_missing(function: str) -> None:
    """Only that it is not ok."""
    told = ask(function)
    assert (told.status_code, told.text) == (503, "not ok\n")


@pytest.mark.parametrize("function", sorted(NEEDS))
def test_nothing_else_is_changed_by_it(world: World, function: str) -> None:
    """Another method, or another path, is answered as ever."""
    settings = dataclasses.replace(
        world.parts.settings,
        portal_url="http://p",
        datastore_emulator_host="127.0.0.1:1",  # Where the console asks nobody who they are.
    )
    wiring.use(dataclasses.replace(world.parts, settings=settings))
    assert ask(function, "DELETE").status_code in {404, 405}
    assert ask(function, "GET", "/healthy").status_code in {404, 405}

"""The README says what the code does."""

import re
from pathlib import Path

import pytest

from shared import policy
from shared.api import HTTP_STATUS
from shared.charge import Status

README = (Path(__file__).parent.parent / "README.md").read_text()
MAKEFILE = (Path(__file__).parent.parent / "Makefile").read_text()


@pytest.mark.parametrize("status", Status)
def test_the_outcome_table_is_the_policys(status: Status) -> None:
    """Each status waits for whom the policy says, answers what the API answers, and opens the acts of the policy."""
    (row,) = re.findall(rf"^\| `{status}` \| (.*) \|$", README, re.MULTILINE)
    waits_for, answers, acts = (cell.strip() for cell in row.split("|"))
    party = policy.WAITING_ON[status]
    expected = "whom `waiting_on` names" if status is Status.BLOCKED else party or "nobody"
    assert waits_for == expected
    assert int(answers) == HTTP_STATUS[status]
    assert [act for act in acts.split(", ") if act] == sorted(policy.OPTIONS[status])


def test_every_command_in_the_readme_exists() -> None:
    """`make` has each target that the README names."""
    named = set(re.findall(r"`?make (\w+)", README))
    assert {"demo", "test", "local", "check"} <= named
    for target in named:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_every_path_in_the_readme_exists() -> None:
    """A link or a file named in the README is there."""
    paths = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(
        r"`((?:shared|infra|tests|functions)/[^`]*)`", README
    )
    assert paths
    for path in paths:
        assert (Path(__file__).parent.parent / path).exists(), path


def test_the_durations_in_the_readme_are_the_codes() -> None:
    """90 s, 15 minutes, 23 and 24 hours, ten minutes: as the policy has them."""
    limits = policy.Limits()
    assert limits.lease.total_seconds() == 90
    assert limits.quarantine.total_seconds() == 15 * 60
    assert policy.KEY_HORIZON.total_seconds() == 23 * 3600
    assert policy.KEY_LIFE.total_seconds() == 24 * 3600
    assert policy.BLOCKED_WAIT.total_seconds() == 10 * 60
    for said in ("(90 s)", "15 minutes", "23 hours", "24 h old", "ten minutes"):
        assert said in README

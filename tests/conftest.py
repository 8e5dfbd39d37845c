"""What all tests share."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.portal import browser as browsers


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests of a module: it runs a loop of events, beside which no other can be run."""
    with browsers.chromium() as started:
        yield started


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many schedules the crash-point suite explored."""
    explored = sum(
        int(str(value))
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "schedules"
    )
    if explored:
        terminalreporter.write_line(f"crash points: {explored:,} distinct schedules explored")

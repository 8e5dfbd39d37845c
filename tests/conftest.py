"""What all tests share."""

import pytest


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

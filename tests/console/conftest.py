"""What the tests of the operator's page share."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.portal import browser as browsers


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests of a process."""
    with browsers.chromium() as started:
        yield started

"""What the tests of the customer's page share."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.portal import browser as browsers
from tests.portal.portal import Portal


@pytest.fixture
def world() -> Portal:
    """A fresh deployment with a page."""
    return Portal()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests of a process."""
    with browsers.chromium() as started:
        yield started

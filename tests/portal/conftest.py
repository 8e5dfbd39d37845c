"""What the tests of the customer's page share."""

import pytest

from tests.portal.portal import Portal


@pytest.fixture
def world() -> Portal:
    """A fresh deployment with a page."""
    return Portal()

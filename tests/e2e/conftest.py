"""One local stack for the tests that leave it as they found it."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from infra.local.demo import LIMITS
from infra.local.stack import Stack


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack, in memory, with short durations."""
    with Stack(folder=tmp_path_factory.mktemp("stack"), limits=LIMITS, sweep_every=timedelta(seconds=1)) as stack:
        yield stack


@pytest.fixture
def stack(running: Stack) -> Iterator[Stack]:
    """The stack with all well, before and after."""
    yield running
    running.calm()
    running.scheduler.resume()

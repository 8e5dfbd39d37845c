"""The ways out of a decline, on the real stack: the caller, the customer's page, Stripe's pages and the mail."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from infra.local.demo import LIMITS, SWEEP_EVERY
from infra.local.stack import Ports, Stack
from infra.local.walks import WALKS, Walk, walk


def test_every_way_out_ends_as_it_should_and_the_customer_reads_it(tmp_path: Path) -> None:
    """As the demo shows them."""
    with Stack(folder=tmp_path, ports=Ports.free(), limits=LIMITS, sweep_every=SWEEP_EVERY) as stack:
        walked = list(walk(stack))
    assert all(one.is_right for one in walked)
    assert [(one.charge["status"], one.moved, len(one.mails)) for one in walked] == [
        ("succeeded", 1, 2),
        ("succeeded", 1, 2),
        ("paid_out_of_band", 0, 2),
        ("canceled", 0, 2),
        ("retrying", 0, 1),
        ("succeeded", 1, 2),
    ]
    assert len(walked) == len(WALKS)


@pytest.mark.parametrize(("status", "moved"), [("declined", 0), ("succeeded", 0), ("succeeded", 2), ("unknown", 1)])
def test_a_way_out_that_does_not_work_is_not_called_right(status: str, moved: int) -> None:
    """It would be red in the demo, which fails then."""
    way = Walk(name="declined", way="another card", ends="succeeded", stack=Mock(), key="walk-1", moved=moved)
    way.charge = {"status": status}
    assert not way.is_right

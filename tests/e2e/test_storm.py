"""A storm on real processes breaks no promise, and a broken promise would be seen."""

import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest

from infra.local.demo import LIMITS
from infra.local.stack import Stack
from infra.local.storm import Order, Payer, Storm, Story, Told, Way, forecast
from infra.local.stripe.faults import Fault

ORDER = Order(key="order-1", amount=1999, payer=Payer.GOOD_CARD, way=Way.WAIT, at_seconds=0)
PAID = {"status": "succeeded", "waiting_on": None}


@pytest.mark.parametrize("seed", [7])
def test_after_a_storm_everybody_has_paid_once_and_nothing_is_left_unknown(tmp_path: Path, seed: int) -> None:
    """Workers killed, functions deployed, Datastore stalled, Stripe failing, events and tasks lost and doubled."""
    with Stack(folder=tmp_path, limits=LIMITS, sweep_every=timedelta(seconds=2)) as stack:
        storm = Storm(stack, forecast(charges=60, seed=seed, seconds=9))
        storm.blow()
        storm.settle()

    assert {story.order.key: story.broken_promises for story in storm.stories if story.broken_promises} == {}
    assert storm.stray == []
    assert storm.happened["the charge worker is killed"] > 1
    assert storm.happened["Datastore stalls"] == 2
    assert sum(story.struck > 0 for story in storm.stories) > 20


def test_a_forecast_comes_again_by_its_seed_and_holds_every_fault() -> None:
    """What failed once can be looked at again."""
    plan = forecast(charges=300, seed=3, seconds=30)

    assert forecast(charges=300, seed=3, seconds=30).orders == plan.orders
    assert forecast(charges=300, seed=4, seconds=30).orders != plan.orders
    assert {order.trouble.fault for order in plan.orders if order.trouble} == set(Fault)
    assert {order.payer for order in plan.orders} == set(Payer)


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, []),
        ({"moved": [1999, 1999]}, ["charged twice", "ledger and Stripe disagree"]),
        ({"moved": [1998]}, ["ledger and Stripe disagree"]),
        ({"moved": []}, ["lost", "ledger and Stripe disagree"]),
        ({"charge": {"status": "canceled", "waiting_on": None}, "moved": []}, []),
        ({"charge": {"status": "canceled", "waiting_on": None}}, ["ledger and Stripe disagree"]),
        ({"charge": None, "moved": []}, ["lost", "left not recorded"]),
        ({"charge": {"status": "unknown", "waiting_on": "system"}, "moved": []}, ["lost", "left unknown"]),
        ({"told": [Told(1.0, 402)]}, ["told failed though paid"]),
        ({"told": [Told(1.0, 402)], "paid_anew_at": 2.0}, []),
        ({"told": [Told(3.0, 402)], "paid_anew_at": 2.0}, ["told failed though paid"]),
        ({"told": [Told(1.0, 500)]}, ["answered [500]"]),
    ],
)
def test_a_broken_promise_is_seen(changes: dict[str, object], broken: list[str]) -> None:
    """The judge itself, on stories that must not happen and on some that may."""
    story = Story(order=ORDER, charge=PAID, moved=[1999], told=[Told(0.0, 200)])

    assert dataclasses.replace(story, **changes).broken_promises == broken  # type: ignore[arg-type]

"""A customer's choice, with the process dying before and after every call that it makes.

Whatever dies: the money moves at most once, ledger and Stripe agree, nothing is left behind, and the page says how it
stands; and a choice that got lost can be made again.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import pytest

from shared.charge import Status
from tests.portal.portal import PageLost, Portal, Seen, declined
from tests.world import Fault

DIES: Final = (Fault.DIE_BEFORE, Fault.DIE_AFTER, Fault.LOSE_REPLY)
ASKS: Final = "pm_card_authenticationRequired"

Choice = Callable[[Portal], Seen | None]


def _pay(world: Portal) -> Seen | None:
    return world.choose("pay", world.look())


def _authenticate(world: Portal) -> Seen | None:
    answer = world.choose("pay", world.look())
    if answer is None or "authenticate" not in answer.headers.get("Location", ""):
        return answer
    return world.at("GET", world.on_stripes_page(answer.location, answer="yes"))


def _card(world: Portal) -> Seen | None:
    answer = world.choose("card", world.look())
    if answer is None or "checkout" not in answer.headers.get("Location", ""):
        return answer
    return world.at("GET", world.on_stripes_page(answer.location, card="pm_card_visa"))


def _cash(world: Portal) -> Seen | None:
    return world.choose("cash", world.look("/cash"))


def _cancel(world: Portal) -> Seen | None:
    return world.choose("cancel", world.look("/cancel"))


GONE: Final = "the customer is deleted first"
DELETED: Final = "the customer is deleted after a decline"

CHOICES: Final[Mapping[str, tuple[str, Choice, Status]]] = {
    # choice          the card that the charge has    what is done         how it ends
    "pay": ("pm_card_chargeDeclined", _pay, Status.DECLINED),
    "authenticate": (ASKS, _authenticate, Status.SUCCEEDED),
    "card": ("pm_card_chargeDeclined", _card, Status.SUCCEEDED),
    "card of a new customer": (GONE, _card, Status.SUCCEEDED),
    "card, and the customer is gone": (DELETED, _card, Status.BLOCKED),
    "cash": ("pm_card_chargeDeclined", _cash, Status.DECLINED),
    "cancel": ("pm_card_chargeDeclined", _cancel, Status.CANCELED),
}


def fresh(card: str) -> Portal:
    """Return a world whose charge waits for its customer; the name of the seller is known already."""
    world = Portal()
    if card == GONE:
        world.at_stripe("DELETE", f"/v1/customers/{world.customer}")
    declined(world, "pm_card_chargeDeclined" if card in {GONE, DELETED} else card)
    if card == DELETED:
        world.at_stripe("DELETE", f"/v1/customers/{world.customer}")
    world.look()
    return world


def crossings(choice: str) -> int:
    """Count the calls that a choice makes when nothing goes wrong."""
    card, do, _ = CHOICES[choice]
    world = fresh(card)
    before = len(world.services)
    do(world)
    return len(world.services) - before


def schedules() -> Iterator[tuple[str, int, Fault]]:
    """Name every call of every choice, and every way of dying there."""
    for choice in CHOICES:
        for at in range(crossings(choice)):
            for fault in DIES:
                yield choice, at, fault


@pytest.mark.parametrize(("choice", "at", "fault"), list(schedules()))
def test_a_choice_that_died_half_way_is_finished_or_can_be_made_again(choice: str, at: int, fault: Fault) -> None:
    """First the webhooks, the tasks and the sweep; then the customer, who looks again and presses again."""
    card, do, ends = CHOICES[choice]
    world = fresh(card)
    world.plan = {len(world.services) + at: fault}
    with contextlib.suppress(PageLost):
        do(world)
    world.plan = {}
    world.settle()
    assert world.check() == []
    assert len(world.money_moved()) <= 1

    if not _done(world, choice):
        do(world)
        world.settle()

    assert world.charge().status is ends
    assert world.check() == []
    assert len(world.money_moved()) == (ends is Status.SUCCEEDED)
    assert _done(world, choice)
    assert len(world.charge().attempts) <= 3


def _done(world: Portal, choice: str) -> bool:
    """Say whether what was chosen has come about, as the customer sees it."""
    charge = world.charge()
    if choice == "pay":
        return len(charge.attempts) > 1
    if choice == "cash":
        return charge.pays_elsewhere_since is not None
    return charge.status is CHOICES[choice][2]

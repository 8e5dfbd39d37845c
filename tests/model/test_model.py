"""The model holds every promise within its bounds, and notices each rule that is switched off."""

from typing import Final

import pytest

from tests.model import world
from tests.model.mutants import MUTANTS, Mutant
from tests.model.search import Search
from tests.model.stripe import BANK_DEBIT, CARD, STRICT_CARD
from tests.model.world import Bound, World

SPACES: Final = (  # Each with how many states it has at least.
    (Bound(payment_method=CARD, faults=1, acts=1, runs=1), 86_000),
    (Bound(payment_method=CARD, faults=0, acts=1, runs=2), 104_000),
    (Bound(payment_method=CARD, faults=0, acts=0, runs=2, stranger=True), 1),
    (Bound(payment_method=BANK_DEBIT, faults=1, acts=0, runs=1), 1),
    (Bound(payment_method=STRICT_CARD, faults=1, acts=0, runs=1), 1),
)


@pytest.mark.parametrize(("bound", "states"), SPACES, ids=[f"{n}" for n in range(len(SPACES))])
def test_every_promise_holds_whatever_happens(bound: Bound, states: int) -> None:
    """All that may happen within the bound is explored, to its end."""
    explored = Search(World(bound)).run()

    assert explored.broken is None, "\n".join([explored.broken or "", *explored.trace])
    assert explored.complete
    assert explored.states >= states


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.off.__name__)
def test_a_rule_that_is_switched_off_is_missed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The promise that the rule is there for breaks, and the way there is told."""
    mutant.off(monkeypatch)

    explored = Search(World(mutant.bound), despite=mutant.despite).run(states_at_most=100_000)

    assert explored.broken == mutant.breaks
    assert explored.trace


def test_every_promise_can_be_broken() -> None:
    """A promise that no mutant breaks would prove nothing."""
    assert {mutant.breaks for mutant in MUTANTS} == set(world.PROMISES)

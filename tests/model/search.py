"""Explores everything that may happen, breadth first: the first broken promise found has a shortest way to it."""

import gc
import string
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from shared import deliver, policy
from shared.charge import Party, Seen, Status
from tests.model.moments import JUMPS, NOW
from tests.model.stripe import US
from tests.model.world import ALIVE, FOUND, Bound, Kept, Run, State, Step, World


@dataclass(kw_only=True)
class Explored:
    """What an exploration came to."""

    bound: Bound
    states: int = 0
    transitions: int = 0
    depth: int = 0
    seconds: float = 0.0
    complete: bool = False
    broken: str | None = None
    trace: list[str] = field(default_factory=list)


class Search:
    """One exploration."""

    def __init__(self, world: World, *, despite: frozenset[str] = frozenset()) -> None:
        """`despite`: promises that are not looked at."""
        self.world = world
        self._despite = despite
        self._came_by: dict[State, tuple[State, Step] | None] = {}
        self._at_rest: dict[tuple[object, object], str | None] = {}

    def run(self, *, states_at_most: int | None = None) -> Explored:
        """Explore until a promise is broken, all is explored, or there are so many states."""
        gc.disable()  # There is no garbage: every state is kept. Looking for it takes a fifth of the time.
        try:
            return self._explore(states_at_most)
        finally:
            gc.enable()

    def _explore(self, states_at_most: int | None) -> Explored:
        began = time.monotonic()
        explored = Explored(bound=self.world.bound)
        start = self.world.start()
        self._came_by[start] = None
        layer = deque([start])
        while layer and explored.broken is None:
            following: deque[State] = deque()
            for state in layer:
                explored.transitions += self._expand(state, following, explored)
                if explored.broken is not None or self._full(states_at_most):
                    break
            if self._full(states_at_most):
                break
            layer = following
            explored.depth += bool(following)
        explored.complete = not layer and explored.broken is None
        explored.states = len(self._came_by)
        explored.seconds = time.monotonic() - began
        return explored

    def _full(self, states_at_most: int | None) -> bool:
        return states_at_most is not None and len(self._came_by) >= states_at_most

    def _expand(self, state: State, following: deque[State], explored: Explored) -> int:
        taken = 0
        for step in self.world.steps(state):
            taken += 1
            if step.broken is not None and step.broken not in self._despite:
                self._found(explored, step.broken, [*self._way_to(state), step])
                return taken
            if step.state in self._came_by:
                continue
            self._came_by[step.state] = (state, step)
            following.append(step.state)
            broken = self.world.broken_in(step.state)
            if broken is not None and broken not in self._despite:
                self._found(explored, broken, self._way_to(step.state))
                return taken
            broken = self._left_alone(step.state)
            if broken is not None and broken not in self._despite:
                self._at_rest.clear()  # To go that way once more, and tell it.
                self._found(explored, broken, [*self._way_to(step.state), *self._calm_way(step.state)])
                return taken
        return taken

    def _found(self, explored: Explored, broken: str, way: list[Step]) -> None:
        explored.broken = broken
        explored.trace = told(self.world.start(), way)

    def _way_to(self, state: State) -> list[Step]:
        way: list[Step] = []
        came = self._came_by[state]
        while came is not None:
            way.append(came[1])
            came = self._came_by[came[0]]
        return way[::-1]

    # --- Left alone ---------------------------------------------------------------------------------------------------

    def _left_alone(self, state: State) -> str | None:
        """Say which promise a charge breaks if whoever works on it now dies, and nothing fails any more."""
        key = (state.ledger, state.stripe)
        if key not in self._at_rest:
            for _ in self._calm_way(state):
                pass
        return self._at_rest[key]

    def _calm_way(self, state: State) -> Iterator[Step]:
        """Go on as the sweep does, without webhooks: one delivery whenever the charge is due."""
        here = state._replace(runs=(), faults=0, acts=0)
        yield Step("From here on all is calm: whoever was at work has died, and nothing else fails.", here)
        stood: dict[tuple[object, object], int] = {}
        while True:
            key = (here.ledger, here.stripe)
            if key in self._at_rest:
                broken = self._at_rest[key]
                break
            again = stood[key] = stood.get(key, -1) + 1
            if self._rests(here, again=again > 0):
                broken = self._not_found(here)
                break
            if again >= len(JUMPS):
                broken = ALIVE
                break
            for step in self._due_and_delivered(here, again):
                yield step
                here = step.state
        self._at_rest |= dict.fromkeys(stood, broken)

    def _rests(self, state: State, *, again: bool) -> bool:
        """Whether nothing more is to come. `again`: it stood like this before the last delivery, too."""
        charge = state.ledger.it
        if charge.final:
            return charge.tidy
        return policy.waiting_on(charge) is not Party.SYSTEM and (again or charge.status is Status.DECLINED)

    def _not_found(self, state: State) -> str | None:
        charge, at_stripe = state.ledger.it, state.stripe.it
        ours = any(intent.state is Seen.SUCCEEDED and intent.mover == US for intent in at_stripe.intents)
        if ours and charge.status is not Status.SUCCEEDED:
            return FOUND
        if charge.final or charge.payment_intent is None:
            return None  # What is left then, the audit cancels; it was never confirmed.
        for name in at_stripe.names:
            intent = at_stripe.intent(name)
            if name != charge.payment_intent and intent.state is not Seen.CANCELED and not intent.late:
                return FOUND
        return None

    def _due_and_delivered(self, state: State, longer: int) -> Iterator[Step]:
        """Wait until it is due, longer if it has stood like this before: nothing is waited for in vain. Deliver it."""
        due_at = state.ledger.it.due_at
        waits = [by for by in JUMPS if due_at is not None and due_at <= NOW + by]
        if waits and (due_at != NOW or longer):
            by = waits[min(longer, len(waits) - 1)]
            state = self.world.after(state, by)
            yield Step(JUMPS[by], state)
        for _ in range(deliver.STEPS_LIMIT):
            step = next(iter(self.world.calm_steps(state)), None)
            if step is None:
                return
            yield step
            state = step.state
            if not state.runs:
                return
        yield Step("It goes in a circle, and is stopped.", state._replace(runs=()))


def told(start: State, way: list[Step]) -> list[str]:
    """Tell a way as sentences, in which each run has a letter of its own."""
    letters = iter(string.ascii_uppercase)
    named = [(run, f"delivery {next(letters)}") for run in start.runs]
    sentences = []
    for step in way:
        name = ""
        if step.before is not None:
            name = next(name for run, name in named if run is step.before)
            named.remove((step.before, name))
        elif "{run}" in step.says:
            name = f"delivery {next(letters)}" if step.after is None or not step.after.it.webhook else "the webhook"
        others = list(step.state.runs)
        if step.after is not None:
            others.remove(step.after)
        still = []
        for run, other in named:
            found = next((one for one in others if _same(one, run)), None)
            if found is not None:
                others.remove(found)
                still.append((found, other))
        named = still
        if step.after is not None:
            named.append((step.after, name))
        says = step.says.format(run=name)
        sentences.append(says[:1].upper() + says[1:])
    return sentences


def _same(one: Kept[Run], other: Kept[Run]) -> bool:
    """Whether these are one run, whatever has happened to it meanwhile."""
    return (type(one.it.following), one.it.webhook, one.it.learned) == (
        type(other.it.following),
        other.it.webhook,
        other.it.learned,
    )

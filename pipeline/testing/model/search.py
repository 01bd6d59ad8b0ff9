"""Breadth-first search of a model: every state that can be reached, the shortest way to the first that is wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)
S_contra = TypeVar("S_contra", bound=Hashable, contravariant=True)


@dataclass(frozen=True, slots=True)
class Step(Generic[S]):
    """One thing that happens: what a person calls it, where it leads, and whether it is a fault."""

    label: str
    state: S
    fault: bool = False


class Model(Protocol[S]):
    """A protocol: where it starts, what can happen next, and what must always hold."""

    def start(self) -> S:
        """The first state."""
        ...

    def steps(self, state: S) -> Iterable[Step[S]]:
        """All that can happen next, faults among them as long as the state has some left."""
        ...

    def wrong(self, state: S) -> str:
        """Which invariant the state breaks, and how; empty when none."""
        ...

    def settled(self, state: S) -> bool:
        """Whether everything is done, or has halted for a reason that an operator must see."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found. `problem` is empty when every state is right and can settle."""

    states: int
    steps: int
    problem: str = ""
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.problem:
            return f"{self.states:,} states and {self.steps:,} steps, nothing wrong"
        numbered = "\n".join(f"  {number:2}. {label}" for number, label in enumerate(self.trace, 1))
        return f"{self.problem}, after {len(self.trace)} steps:\n{numbered}"


def search(model: Model[S], states_max: int) -> Outcome:
    """Visit every state once, the nearest first. Raises OverflowError beyond `states_max` states.

    Besides `wrong`, a state is a problem from which no sequence of steps without a fault leads to a settled one: then
    something is lost or waits for ever.
    """
    first = model.start()
    came_from: dict[S, tuple[S, str] | None] = {first: None}
    before: dict[S, list[S]] = {}
    settled: list[S] = []
    queue: deque[S] = deque([first])
    taken = 0
    while queue:
        state = queue.popleft()
        if problem := model.wrong(state):
            return Outcome(len(came_from), taken, problem, _trace(came_from, state))
        settled += [state] if model.settled(state) else []
        for step in model.steps(state):
            taken += 1
            if not step.fault:
                before.setdefault(step.state, []).append(state)
            if step.state not in came_from:
                came_from[step.state] = (state, step.label)
                queue.append(step.state)
        if len(came_from) > states_max:
            raise OverflowError(f"the model has more than {states_max:,} states")
    stuck = _first_stuck(came_from, before, settled)
    if stuck is not None:
        return Outcome(len(came_from), taken, "I9: nothing that can happen now ends it", _trace(came_from, stuck))
    return Outcome(len(came_from), taken)


def _first_stuck(came_from: Iterable[S], before: dict[S, list[S]], settled: Sequence[S]) -> S | None:
    """The nearest state that cannot settle without a further fault; `came_from` is in the order of distance."""
    can = set(settled)
    queue = deque(settled)
    while queue:
        for earlier in before.get(queue.popleft(), ()):
            if earlier not in can:
                can.add(earlier)
                queue.append(earlier)
    return next((state for state in came_from if state not in can), None)


def _trace(came_from: dict[S, tuple[S, str] | None], state: S) -> tuple[str, ...]:
    labels: list[str] = []
    while (link := came_from[state]) is not None:
        state, label = link
        labels.append(label)
    return tuple(reversed(labels))

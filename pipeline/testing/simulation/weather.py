"""What goes wrong in one course of events, drawn from its seed.

Each seed switches on some kinds of faults and leaves the others out ("swarm testing", Groce et al. 2012): with all of
them at once, the rare meetings of two would drown.
"""

from __future__ import annotations

import random
from typing import Final

from pipeline.testing.network import Request
from pipeline.testing.simulation.story import Story
from pipeline.testing.simulation.wire import Fate

KINDS: Final = ("refused", "lost", "cut", "slow there", "slow back", "dies before", "dies after")
SLOW_S: Final = (0.2, 1.0, 4.5, 7.0, 10.5, 13.0, 20.0)
"""Around every time-out: 2 s of an etcd call, 4 s of a socket, 5 s of a statement, 10 s of a commit, 12 s of a
transaction."""

RESET_S: Final = (0.05, 0.5, -1.0)
QUIET: Final = frozenset(
    {
        "Fetch",
        "ConsumerGroupHeartbeat",
        "ListOffsets",
        "LeaseKeepAlive",
        "any_after",
        "rows_after",
        "positions",
        "assignments",
    }
)
"""Asked over and over; a story names them only when something befalls them."""


class Weather:
    """Fulfils simulation.wire.Fates."""

    def __init__(self, rng: random.Random, story: Story) -> None:
        self._rng = rng
        self._story = story
        self._kinds = [kind for kind in KINDS if rng.random() < 0.5]
        self._share = rng.choice([0.003, 0.01, 0.03]) if self._kinds else 0.0
        self.calm = True  #: nothing goes wrong

    def of(self, client: str, request: Request) -> Fate:
        """See simulation.wire.Fates."""
        rng = self._rng
        there_s, back_s = 0.0005 + rng.random() * 0.002, 0.0005 + rng.random() * 0.002
        if self.calm or client == "world" or rng.random() >= self._share:
            return Fate(there_s, back_s)
        kind = rng.choice(self._kinds)
        self._story.fault(f"request {kind}", client, f"{request.server} {request.name}: fault: {kind}")
        return self._fault(kind, there_s, back_s)

    def _fault(self, kind: str, there_s: float, back_s: float) -> Fate:
        fate, reset_s = Fate(there_s, back_s), self._rng.choice(RESET_S)
        match kind:
            case "lost":
                return fate._replace(lost=True, reset_s=reset_s)
            case "cut":
                return fate._replace(cut=True, reset_s=reset_s)
            case "slow there":
                return fate._replace(there_s=self._rng.choice(SLOW_S), reset_s=reset_s)
            case "slow back":
                return fate._replace(back_s=self._rng.choice(SLOW_S), reset_s=reset_s)
        return fate._replace(**{kind.replace(" ", "_"): True})

    def met(self, client: str, request: Request, outcome: str) -> None:
        """See simulation.wire.Fates."""
        if self._story.kept and (request.name not in QUIET or outcome != "done"):
            self._story.tell(client, f"{request.server} {request.name}: {outcome}")

"""One course of events: a cluster, rows, faults, a calm in which everything must come to its end, and the verdict."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from pipeline.testing.simulation import evidence
from pipeline.testing.simulation.cluster import Cluster, Shape
from pipeline.testing.simulation.loop import SimulatedLoop
from pipeline.testing.simulation.nemesis import Nemesis
from pipeline.testing.simulation.story import Event, Story
from pipeline.testing.simulation.wire import Fates
from pipeline.testing.simulation.workload import insert

ROWS: Final = 6
STORM_S: Final = 2.0
"""How long things go wrong."""

RESUME_MAX_S: Final = 60.0
"""I9: everything is settled so long after the last fault, the longest time-outs included."""

DISASTER_S: Final = 15.0
"""How long is waited for what halts or is lost."""

LOOK_S: Final = 0.5


class Weathering(Fates, Protocol):
    """Fates that can be told to do no more harm."""

    calm: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one course of events came to."""

    breaches: list[str]
    rows: int
    virtual_s: float
    resumed_s: float  #: from the last fault until everything was settled
    faults: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)


def run_calmly(
    fates: Weathering,
    story: Story,
    loop: SimulatedLoop,
    incident: Callable[[Cluster], Coroutine[Any, Any, None]] | None = None,
) -> Verdict:
    """The one course of events in which nothing goes wrong but what these fates, and an incident, bring."""
    rng = random.Random(0)  # noqa: S311 - not for secrets
    cluster = Cluster(loop, fates, Shape(), story)
    if incident is not None:
        loop.create_task(incident(cluster))
    return loop.run(unfold(cluster, fates, rng, None))


async def unfold(cluster: Cluster, fates: Weathering, rng: random.Random, nemesis: Nemesis | None) -> Verdict:
    """Start, storm, calm, verdict."""
    fates.calm = False
    supervising = asyncio.ensure_future(cluster.supervise())
    await cluster.start()
    inserting = asyncio.ensure_future(insert(cluster.source, rng, cluster.story, ROWS, STORM_S))
    await (nemesis.rage(STORM_S) if nemesis is not None else asyncio.sleep(STORM_S))
    await inserting
    fates.calm = nemesis is not None
    if nemesis is not None:
        nemesis.end()
        cluster.story.tell("world", "nothing goes wrong from here on")
    disasters = nemesis.disasters if nemesis is not None else 0
    calm_s = cluster.loop.time()
    settled = await settle(cluster, calm_s + (DISASTER_S if disasters else RESUME_MAX_S))
    resumed_s = cluster.loop.time() - calm_s
    supervising.cancel()
    breaches = [*found_wrong(cluster, settled=settled, disasters=disasters)]
    story = cluster.story
    return Verdict(breaches, len(cluster.source.rows), cluster.loop.time(), resumed_s, story.faults, story.events)


async def settle(cluster: Cluster, until_s: float) -> bool:
    """Wait until everything is settled; whether it is."""
    while cluster.loop.time() < until_s:
        await asyncio.sleep(LOOK_S)
        if evidence.is_settled(cluster):
            return True
    return False


def found_wrong(cluster: Cluster, *, settled: bool, disasters: int) -> Iterator[str]:
    """Every invariant that broke, of those that hold after so many disasters."""
    yield from evidence.breaches_always(cluster)
    if disasters:
        return  # halting is right
    if not settled:
        yield f"I9: not settled {RESUME_MAX_S:.0f} s after the last fault: {evidence.unsettled(cluster)}"
    yield from evidence.stuck(cluster)
    if settled:
        yield from evidence.breaches_when_settled(cluster)

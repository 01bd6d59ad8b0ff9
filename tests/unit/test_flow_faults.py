"""Readers, two consumers and a sweeper at work while requests get lost or late and processes die: each row once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from pipeline.errors import ProducerFenced
from pipeline.testing.network import Moment
from tests.unit.flow_world import A, B, Fault, Flow, Running

SEEDS = range(16)
STEPS = 30
ROWS = 60
REQUESTS = (
    "Produce",
    "TxnOffsetCommit",
    "EndTxn",
    "InitProducerId",
    "OffsetFetch",
    "Fetch",
    "ConsumerGroupHeartbeat",
    "ListOffsets",
)
CALM_S = 200


class Storm:
    """One seed's course of events."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)  # noqa: S311 - not for secrets
        self.flow = Flow()
        self.ids: list[int] = []
        self.consumers: dict[int, Running] = {}
        self.readers = {A: self.started(), B: self.started()}
        self.sweeping = self.started()

    @staticmethod
    def started() -> asyncio.Task[None]:
        """Nothing yet; `supervise` starts it."""
        return asyncio.create_task(asyncio.sleep(0))

    async def begin(self) -> None:
        await self.flow.start(self.rng.choice([1, 2, 5]))
        self.ids += self.flow.stock(ROWS, self.seed)
        self.consumers = {slot: self.flow.consume(slot) for slot in (0, 1)}
        await self.supervise()

    async def supervise(self) -> None:
        """Start again what has ended; only a fence may end it."""
        for stream, task in self.readers.items():
            if ended(task):
                [self.readers[stream]] = self.flow.read(stream)
        for slot, running in self.consumers.items():
            if ended(running.task):
                await self.flow.kill(running)
                self.consumers[slot] = self.flow.consume(slot)
        if ended(self.sweeping):
            self.sweeping = asyncio.create_task(self.flow.sweeper().run(asyncio.Event()))

    async def step(self) -> None:
        if self.rng.random() < 0.8:
            self.plan_faults()
        event: Callable[[], object] = self.rng.choice(
            [self.kill_consumer, self.kill_reader, self.kill_sweeper, self.hold_markers, self.outage, self.stock]
        )
        if self.rng.random() < 0.4:
            happening = event()
            if asyncio.iscoroutine(happening):
                await happening
        await self.flow.clock.advance(self.rng.choice([0.05, 0.1, 0.3, 1]))
        await self.supervise()

    def plan_faults(self) -> None:
        for _ in range(self.rng.randint(1, 6)):
            self.flow.faults.planned.append(
                Fault(
                    self.rng.choice(REQUESTS),
                    self.rng.choice(list(Moment)),
                    self.rng.choice([0, 0, 0.5, 4.5, 10.5]),
                    self.rng.choice(["consumer", "reader", "sweeper", ""]),
                )
            )

    async def kill_consumer(self) -> None:
        slot = self.rng.choice([0, 1])
        await self.flow.kill(self.consumers[slot])
        await self.flow.clock.advance(self.rng.choice([0, 0.1, 3]))
        self.consumers[slot] = self.flow.consume(slot)

    def kill_reader(self) -> None:
        self.readers[self.rng.choice([A, B])].cancel()

    def kill_sweeper(self) -> None:
        self.sweeping.cancel()

    def hold_markers(self) -> None:
        self.flow.broker.markers_held = not self.flow.broker.markers_held
        if not self.flow.broker.markers_held:
            self.flow.broker.write_markers()

    async def outage(self) -> None:
        self.flow.broker.down = True
        await self.flow.clock.advance(self.rng.choice([1, 6, 16]))
        self.flow.broker.down = False

    def stock(self) -> None:
        self.ids += self.flow.stock(self.rng.randint(1, 30), self.rng.randint(0, 10**6))

    async def calm(self) -> None:
        """No more faults; what is under way comes to its end."""
        self.flow.faults.planned.clear()
        self.flow.broker.markers_held = False
        self.flow.broker.write_markers()
        for _ in range(CALM_S):
            await self.flow.clock.advance(1)
            await self.supervise()
            if len(self.flow.signed_ids()) >= len(self.ids) and not await self.flow.assignments():
                return

    async def end(self) -> None:
        self.flow.tasks += [*self.readers.values(), self.sweeping]
        await self.flow.end()


def ended(task: asyncio.Task[None]) -> bool:
    """Raises what it ended with, unless that was a kill or a fence."""
    if task.done() and not task.cancelled() and not isinstance(task.exception(), ProducerFenced):
        task.result()
    return task.done()


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_row_is_signed_once_whatever_happens(seed: int) -> None:
    storm = Storm(seed)
    try:
        await storm.begin()
        for _ in range(STEPS):
            await storm.step()
        await storm.calm()
        await storm.flow.check_all_done(storm.ids)
        assert not [r.halted for r in (await storm.flow.stream(A), await storm.flow.stream(B)) if r.halted]
    finally:
        await storm.end()

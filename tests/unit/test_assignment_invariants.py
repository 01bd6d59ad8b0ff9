"""Whatever happens, in any order: no nonce twice, none left out, the longest free key first, one answer a batch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.assignment.records import Assignment, KeyState
from pipeline.errors import NotLeader, StoreUnavailable
from pipeline.ports import Assigned, Published, Waiting
from pipeline.stream import Stream
from pipeline.testing.store import Fault
from tests.unit.assignment_records import A, B, request
from tests.unit.manager_world import Node, World

T = TypeVar("T")

STREAMS = (A, B, Stream("payouts", 2))
KEYS = 3

streams = st.sampled_from(STREAMS)
counts = st.integers(0, 5)
faults = st.lists(st.sampled_from([None, Fault.LOST_REPLY, Fault.LOST_REQUEST, Fault.LATE, Fault.NOT_SENT]), max_size=3)


class Assignments(RuleBasedStateMachine):
    """Consumers that ask, ask again, publish and forget; key managers that die; a network that loses things."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.made: dict[tuple[Stream, int], Assignment] = {}  # every answer ever given
        self.counts: dict[tuple[Stream, int], int] = {}  # a batch is the same for ever
        self.open: list[tuple[Stream, int]] = []  # not published yet
        self.published: set[tuple[Stream, int]] = set()

    def run(self, awaitable: Awaitable[T]) -> T:
        """What waits for time to move."""
        return self.do(self.world.clock.until(awaitable))

    def do(self, coroutine: Coroutine[None, None, T]) -> T:
        """What moves time itself."""
        return self.loop.run_until_complete(coroutine)

    def teardown(self) -> None:
        for node in self.world.nodes:
            self.run(node.manager.stop())
        self.loop.close()

    @initialize()
    def start(self) -> None:
        self.do(self.world.opened(keys=KEYS, streams=STREAMS))

    @property
    def node(self) -> Node:
        return self.world.nodes[-1]

    def next_seq(self, stream: Stream) -> int:
        return 1 + max((seq for made, seq in self.made if made == stream), default=0)

    # ── what happens ─────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(wanted=st.lists(st.tuples(streams, counts), min_size=1, max_size=4), lost=faults, worker=st.integers(0, 3))
    def ask_for_new_batches(self, wanted: list[tuple[Stream, int]], lost: list[Fault | None], worker: int) -> None:
        """In the order of each chain, as a consumer does."""
        seqs = {stream: self.next_seq(stream) for stream in STREAMS}
        requests = []
        for stream, count in wanted:
            batch = stream, seqs[stream]
            seqs[stream] += 1
            requests.append(request(*batch, self.counts.setdefault(batch, count), worker=f"consumer-{worker}"))
        free, inherited = self.free(), {(a.stream, a.seq) for a in self.untold()}
        self.node.store.faults.extend(lost)
        replies = self.run(self.node.manager.assign(requests, 0.5))
        self.node.store.faults.clear()
        lent = []
        for asked, reply in zip(requests, replies, strict=True):
            assert isinstance(reply, Assigned | Waiting), reply
            if isinstance(reply, Assigned):
                assert reply.assignment.count == asked.count
                self.take(reply.assignment)
                if reply.assignment.address and (asked.stream, asked.seq) not in inherited:
                    lent.append(reply.assignment.address)
        assert lent == free[: len(lent)], "the key that is free for longest comes first"

    def free(self) -> list[str]:
        keys = self.run(self.node.manager.list_keys())
        return [key.address for key in keys if key.state is KeyState.FREE]

    def take(self, assignment: Assignment) -> None:
        batch = assignment.stream, assignment.seq
        assert batch not in self.made
        self.made[batch] = assignment
        self.open.append(batch)
        self.run(self.world.sign(assignment))  # the ledger refuses whatever is wrong

    @precondition(lambda self: self.open)
    @rule(data=st.data(), lost=faults, worker=st.integers(0, 3))
    def ask_again(self, data: st.DataObject, lost: list[Fault | None], worker: int) -> None:
        batch = data.draw(st.sampled_from(self.open))
        self.node.store.faults.extend(lost)
        wanted = request(*batch, self.counts[batch], worker=f"consumer-{worker}")
        [reply] = self.run(self.node.manager.assign([wanted], 0.5))
        self.node.store.faults.clear()
        assert isinstance(reply, Assigned)
        before, after = self.made[batch], reply.assignment
        assert after.worker == f"consumer-{worker}"
        assert (after.address, after.first_nonce, after.count, after.fence, after.digest) == (
            before.address, before.first_nonce, before.count, before.fence, before.digest,
        )  # fmt: skip

    @precondition(lambda self: self.open)
    @rule(data=st.data(), lost=faults)
    def publish(self, data: st.DataObject, lost: list[Fault | None]) -> None:
        batches = data.draw(st.lists(st.sampled_from(self.open), min_size=1, unique=True))
        self.node.store.faults.extend(lost)
        self.run(self.node.manager.release(batches, "consumer-0"))
        self.node.store.faults.clear()
        self.open = [batch for batch in self.open if batch not in batches]
        self.published.update(batches)

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def a_published_batch_comes_again(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(sorted(self.published)))
        self.run(self.node.manager.release([batch], "consumer-0"))
        [reply] = self.run(self.node.manager.assign([request(*batch, self.counts[batch])], 0.5))
        assert reply == Published()

    @rule()
    def the_key_manager_is_killed(self) -> None:
        self.do(self.world.kill(self.node))
        self.do(self.world.started())

    @rule()
    def late_transactions_arrive(self) -> None:
        self.world.etcd.deliver()

    @rule(stream=streams, lost=st.sampled_from([Fault.LATE, Fault.LOST_REPLY, Fault.LOST_REQUEST]))
    def the_key_manager_is_killed_in_the_middle(self, stream: Stream, lost: Fault) -> None:
        """The answer is never seen; what was written is found by whoever comes next."""
        batch = stream, self.next_seq(stream)
        self.node.store.faults.extend([lost, *[Fault.LOST_REQUEST] * 300])
        call = self.node.manager.assign([request(*batch, self.counts.setdefault(batch, 2))], 60.0)
        self.do(self.interrupted(call))

    async def interrupted(self, call: Awaitable[object]) -> None:
        task = asyncio.ensure_future(call)
        await self.world.clock.advance(1.0)
        await self.world.kill(self.node)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self.world.started()

    @rule(seconds=st.integers(1, 3))
    def time_passes(self, seconds: int) -> None:
        self.do(self.world.clock.advance(seconds))

    @rule(hours=st.integers(-48, 48))
    def the_wall_clock_jumps(self, hours: int) -> None:
        self.world.clock.set_unix_ms(self.world.clock.unix_ms() + hours * 3_600_000)

    @rule(stream=streams)
    def etcd_is_away(self, stream: Stream) -> None:
        self.node.store.down = True
        with contextlib.suppress(StoreUnavailable, NotLeader):
            self.run(self.node.manager.assign([request(stream, self.next_seq(stream), 1)], 0.5))
        self.node.store.down = False
        self.do(self.world.kill(self.node))
        self.do(self.world.started())

    # ── what holds ───────────────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def nonces_are_lent_once_and_without_a_gap(self) -> None:
        """Of etcd's own records: what nobody was told of yet is among them."""
        for number in range(1, KEYS + 1):
            if not self.world.nodes:
                return
            key = self.world.key(number)
            lent = [a for a in self.made.values() if a.address == key.address]
            expected = 0
            for a in sorted(lent, key=lambda a: a.first_nonce):
                assert a.first_nonce == expected
                expected += a.count
            untold = [a for a in self.untold() if a.address == key.address]
            assert key.next_nonce == expected + sum(a.count for a in untold)
            assert (key.state is KeyState.LOCKED) == (key.holder is not None)

    def untold(self) -> list[Assignment]:
        prefix = "/oncesign/local/assignments/"
        stored = [s.kv for key, s in self.world.etcd.stored.items() if key.startswith(prefix)]
        found = [Assignment.from_json(kv.value) for kv in stored]
        return [a for a in found if (a.stream, a.seq) not in self.made]


Assignments.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAssignments = Assignments.TestCase

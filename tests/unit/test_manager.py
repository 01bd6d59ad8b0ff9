"""The key manager on twins: lost answers, lost leaders, starved pools, restored backups."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from pipeline.assignment.manager import GROUP_MAX, QUEUE_MAX, RESEND_DEADLINE_S, KeyManager
from pipeline.assignment.records import Assignment, KeyRecord, KeyState, StreamRecord
from pipeline.errors import (
    DatabaseUnavailable,
    DeploymentHalted,
    NotLeader,
    OncesignError,
    StoreUnavailable,
    StreamHalted,
    UsageError,
)
from pipeline.ports import Assigned, AssignReply, AssignRequest, LedgerEntry, Published, Refused, Waiting
from pipeline.settings import Settings
from pipeline.stream import Stream
from pipeline.testing.clock import TwinClock, settle
from pipeline.testing.ledger import TwinLedger
from pipeline.testing.store import Fault, TwinEtcd, TwinStore
from tests.unit.assignment_records import CHAIN, PATHS, SYSTEM, A, B, address, digest, request

DEADLINE_S = 1.0


@dataclass
class Node:
    """One key manager with its own connection to etcd."""

    manager: KeyManager
    store: TwinStore
    fence_lost: list[bool]


@dataclass
class World:
    """etcd, the ledger and time, which outlive every key manager."""

    clock: TwinClock = field(default_factory=TwinClock)
    etcd: TwinEtcd = field(init=False)
    ledger: TwinLedger = field(default_factory=TwinLedger)
    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.etcd = TwinEtcd(self.clock)

    def node(self) -> Node:
        store, lost = TwinStore(self.etcd), list[bool]()
        settings = Settings(deployment=PATHS.deployment, node=f"node-{len(self.nodes)}")
        manager = KeyManager(store, self.ledger, self.clock, settings, lambda: lost.append(True))
        self.nodes.append(Node(manager, store, lost))
        return self.nodes[-1]

    async def started(self) -> Node:
        node = self.node()
        await self.clock.until(node.manager.start())
        return node

    async def opened(self, keys: int = 2, streams: Sequence[Stream] = (A, B)) -> Node:
        """Started, with keys 1 … n and streams."""
        node = await self.started()
        await self.clock.until(
            node.manager.import_keys([(CHAIN, address(i), b"sealed", 0) for i in range(1, keys + 1)])
        )
        for stream in streams:
            await self.clock.until(node.manager.open_stream(StreamRecord(stream, CHAIN, SYSTEM)))
        return node

    async def assign(self, node: Node, *requests: AssignRequest, deadline_s: float = DEADLINE_S) -> list[AssignReply]:
        return list(await self.clock.until(node.manager.assign(requests, deadline_s)))

    async def assigned(self, node: Node, *requests: AssignRequest) -> list[Assignment]:
        replies = await self.assign(node, *requests)
        assert all(isinstance(reply, Assigned) for reply in replies), replies
        return [reply.assignment for reply in replies if isinstance(reply, Assigned)]

    async def sign(self, assignment: Assignment) -> None:
        """What a signer swears before it signs."""
        a = assignment
        await self.ledger.record(
            LedgerEntry(a.stream, a.seq, a.digest, a.chain_id, a.address, a.first_nonce, a.count, a.fence, "signer-0")
        )

    async def publish(self, node: Node, *made: Assignment) -> None:
        for assignment in made:
            await self.sign(assignment)
        await self.clock.until(node.manager.release([(a.stream, a.seq) for a in made], "consumer-0.1"))

    async def kill(self, node: Node) -> None:
        """As by `kill -9`: nothing is given up."""
        self.nodes.remove(node)
        for task in node.manager._tasks:
            task.cancel()
        await settle()

    async def written(self, path: str) -> None:
        """The very moment in which etcd has it."""
        for _ in range(1000):
            if self.etcd.get(path):
                return
            await asyncio.sleep(0)
        raise AssertionError(path)

    def key(self, number: int) -> KeyRecord:
        kv = self.etcd.get(PATHS.key(CHAIN, address(number)))
        assert kv is not None
        return KeyRecord.from_json(kv.value)

    def stream(self, stream: Stream) -> StreamRecord:
        kv = self.etcd.get(PATHS.stream(stream))
        assert kv is not None
        return StreamRecord.from_json(kv.value)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    for node in made.nodes:
        node.store.down = False
        await made.clock.until(node.manager.stop())


# ── the normal course ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_batch_is_assigned_and_released(world: World) -> None:
    node = await world.opened()
    [made] = await world.assigned(node, request(A, 1))
    assert (made.address, made.first_nonce) == (address(1), 0)
    assert world.key(1).state is KeyState.LOCKED
    assert await node.manager.list_assignments() == [made]
    await world.publish(node, made)
    assert world.key(1).state is KeyState.FREE
    assert world.key(1).next_nonce == 10
    assert await node.manager.list_assignments() == []
    assert await world.assign(node, request(A, 1)) == [Published()]


async def test_requests_at_once_share_transactions(world: World) -> None:
    node = await world.opened(keys=8)
    before = world.etcd.applied
    calls = [node.manager.assign([request(stream, seq) for seq in (1, 2)], DEADLINE_S) for stream in (A, B)]
    replies = await world.clock.until(asyncio.gather(*calls))
    assert all(isinstance(reply, Assigned) for call in replies for reply in call)
    assert world.etcd.applied - before == 1


async def test_a_call_larger_than_a_transaction_is_answered_and_the_writer_goes_on(world: World) -> None:
    node = await world.opened(keys=60)
    replies = await world.assign(node, *(request(A, seq) for seq in range(1, 61)))
    served = sum(isinstance(reply, Assigned) for reply in replies)
    assert 30 < served < 60
    assert all(isinstance(reply, Waiting) for reply in replies[served:])
    rest = await world.assigned(node, *(request(A, seq) for seq in range(served + 1, 61)))
    assert len(rest) == 60 - served


async def test_nothing_is_asked_for(world: World) -> None:
    node = await world.opened()
    assert await world.assign(node) == []


async def test_keys_are_listed_as_they_will_be_lent(world: World) -> None:
    node = await world.opened(keys=3)
    [first] = await world.assigned(node, request(A, 1))
    await world.clock.advance(1)
    await world.publish(node, first)
    assert [key.address for key in await node.manager.list_keys()] == [address(2), address(3), address(1)]


async def test_a_key_that_is_in_the_pool_is_not_imported_again_by_two_at_once(world: World) -> None:
    node = await world.opened(keys=0)
    both = [node.manager.import_keys([(CHAIN, address(1), b"sealed", nonce)]) for nonce in (0, 500)]
    results = await world.clock.until(asyncio.gather(*both, return_exceptions=True))
    assert [type(result) for result in results] == [type(None), UsageError]
    assert world.key(1).next_nonce == 0


async def test_a_stream_of_another_chain_or_postgres_is_refused(world: World) -> None:
    node = await world.opened()
    for other in (StreamRecord(A, 5, SYSTEM), StreamRecord(A, CHAIN, "other")):
        with pytest.raises(StreamHalted):
            await world.clock.until(node.manager.open_stream(other))


async def test_disabled_keys_are_not_lent(world: World) -> None:
    node = await world.opened(keys=1)
    await world.clock.until(node.manager.disable(CHAIN, address(1)))
    assert await world.assign(node, request(A, 1)) == [Waiting()]
    await world.clock.until(node.manager.enable(CHAIN, address(1)))
    await world.assigned(node, request(A, 1))
    with pytest.raises(UsageError):
        await world.clock.until(node.manager.disable(CHAIN, address(9)))


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_no_key_means_waiting_until_the_deadline(world: World) -> None:
    node = await world.opened(keys=0)
    started_s = world.clock.monotonic_s()
    call = asyncio.ensure_future(node.manager.assign([request(A, 1)], 2.0))
    await world.clock.advance(1.0)
    assert not call.done()
    assert node.manager.status()["queue"] == 1
    assert node.manager.status()["queue_oldest_s"] == 1.0
    assert node.manager.status()["no_keys"] == [CHAIN]
    assert await world.clock.until(call) == [Waiting()]
    assert 2.0 <= world.clock.monotonic_s() - started_s < 3.0
    assert node.manager.status()["queue"] == 0


async def test_a_freed_key_goes_to_who_waited_longest(world: World) -> None:
    streams = [Stream("payouts", shard) for shard in range(4)]
    node = await world.opened(keys=1, streams=streams)
    [held] = await world.assigned(node, request(streams[0], 1))
    calls = []
    for stream in streams[1:]:
        calls.append(asyncio.ensure_future(node.manager.assign([request(stream, 1)], 60.0)))
        await world.clock.advance(0.1)
    for turn, call in enumerate(calls):
        await world.publish(node, held)
        [reply] = await world.clock.until(call)
        assert isinstance(reply, Assigned)
        held = reply.assignment
        assert held.stream == streams[turn + 1]
        assert not any(later.done() for later in calls[turn + 1 :])


async def test_what_is_assigned_does_not_wait_for_what_is_not(world: World) -> None:
    node = await world.opened(keys=1)
    replies = await world.assign(node, request(A, 1), request(B, 1), deadline_s=60.0)
    assert [type(reply) for reply in replies] == [Assigned, Waiting]
    assert world.clock.monotonic_s() < 5
    assert node.manager.status()["queue"] == 0


async def test_a_waiter_answered_early_while_another_group_is_written_harms_nobody(world: World) -> None:
    node = await world.opened(keys=1)
    first = asyncio.ensure_future(node.manager.assign([request(A, 1), request(B, 1)], 60.0))
    second = asyncio.ensure_future(_later(world, node, request(A, 2, count=0)))
    assert [type(reply) for reply in await world.clock.until(first)] == [Assigned, Waiting]
    assert [type(reply) for reply in await world.clock.until(second)] == [Assigned]
    await world.assigned(node, request(A, 3, count=0))
    assert not node.fence_lost


async def _later(world: World, node: Node, wanted: AssignRequest) -> Sequence[AssignReply]:
    await world.written(PATHS.assignment(A, 1))  # and the first group's answer is on its way
    return await node.manager.assign([wanted], 60.0)


async def test_the_queue_is_bounded(world: World) -> None:
    node = await world.opened(keys=0)
    filler = asyncio.ensure_future(node.manager.assign([request(A, 1)] * QUEUE_MAX, 30.0))
    await world.clock.advance(0.1)
    assert node.manager.status()["queue"] == QUEUE_MAX
    assert await world.assign(node, request(B, 1), deadline_s=30.0) == [Waiting()]
    assert world.clock.monotonic_s() < 5, "it is told at once"
    assert not filler.done()
    assert set(await world.clock.until(filler)) == {Waiting()}


async def test_a_caller_that_goes_away_leaves_the_line(world: World) -> None:
    node = await world.opened(keys=0)
    call = asyncio.ensure_future(node.manager.assign([request(A, 1)], 60.0))
    await world.clock.advance(0.1)
    call.cancel()
    await world.clock.advance(0.5)
    assert node.manager.status()["queue"] == 0
    await world.clock.until(node.manager.import_keys([(CHAIN, address(1), b"sealed", 0)]))
    await world.clock.advance(0.5)
    assert world.key(1).state is KeyState.FREE


async def test_a_caller_that_goes_away_while_it_is_served_is_inherited_from(world: World) -> None:
    node = await world.opened()
    call = asyncio.ensure_future(node.manager.assign([request(A, 1)], 60.0))
    await world.written(PATHS.assignment(A, 1))
    call.cancel()
    await settle()
    [made] = await world.assigned(node, request(A, 1, worker="consumer-1.9"))
    assert (made.address, made.first_nonce, made.worker) == (address(1), 0, "consumer-1.9")
    assert world.key(1).next_nonce == 10


# ── answers that get lost ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "faults",
    [
        [Fault.LOST_REPLY],
        [Fault.LOST_REQUEST],
        [Fault.NOT_SENT],
        [Fault.LATE],
        [Fault.LOST_REPLY, Fault.LOST_REPLY, Fault.NOT_SENT],
        [Fault.LOST_REQUEST, Fault.LOST_REPLY, Fault.LOST_REQUEST],
        [Fault.LATE, Fault.LOST_REPLY],
    ],
    ids=lambda faults: "+".join(fault.name for fault in faults),
)
async def test_a_lost_answer_never_lends_nonces_twice(world: World, faults: list[Fault]) -> None:
    node = await world.opened(keys=3)
    node.store.faults.extend(faults)
    sent = len(node.store.sent)
    made = await world.assigned(node, request(A, 1), request(B, 1))
    transactions = node.store.sent[sent:]
    assert len(transactions) == len(faults) + 1
    assert len(set(transactions)) == 1, "the identical transaction is sent again"
    world.etcd.deliver()
    node.store.faults.extend(faults)
    await world.publish(node, *made)
    world.etcd.deliver()
    following = await world.assigned(node, request(A, 2), request(B, 2), request(A, 3))
    ranges = {(a.address, a.first_nonce) for a in [*made, *following]}
    assert len(ranges) == 5
    for number in (1, 2, 3):
        lent = sorted(a.first_nonce for a in [*made, *following] if a.address == address(number))
        assert lent == [10 * i for i in range(len(lent))]
        assert world.key(number).next_nonce == 10 * len(lent)


async def test_no_answer_for_long_is_told_and_the_late_write_is_inherited(world: World) -> None:
    node = await world.opened()
    node.store.faults.extend([Fault.LATE, *[Fault.LOST_REQUEST] * 200])
    with pytest.raises(StoreUnavailable, match="no answer"):
        await world.assign(node, request(A, 1))
    assert world.clock.monotonic_s() > RESEND_DEADLINE_S
    node.store.faults.clear()
    await world.clock.advance(1.0)
    world.etcd.deliver()
    [made] = await world.assigned(node, request(A, 1, worker="consumer-1.9"))
    assert (made.first_nonce, made.worker) == (0, "consumer-1.9")
    assert world.key(1).next_nonce + world.key(2).next_nonce == 10


async def test_etcd_away_and_back(world: World) -> None:
    node = await world.opened()
    node.store.down = True
    with pytest.raises(StoreUnavailable):
        await world.assign(node, request(A, 1))
    node.store.down = False
    # The lease ran out meanwhile; whether it did is etcd's to say, and then nothing is written any more.
    with pytest.raises(NotLeader):
        await world.assign(node, request(A, 1))
    assert node.fence_lost == [True]
    assert world.etcd.get(PATHS.assignment(A, 1)) is None


async def test_a_short_absence_of_etcd_costs_nothing(world: World) -> None:
    node = await world.opened()
    call = asyncio.ensure_future(node.manager.assign([request(A, 1)], 60.0))
    node.store.down = True
    await world.clock.advance(3.0)
    node.store.down = False
    [reply] = await world.clock.until(call)
    assert isinstance(reply, Assigned)
    assert not node.fence_lost


async def test_the_ledger_away_is_told(world: World) -> None:
    node = await world.opened()
    [made] = await world.assigned(node, request(A, 1))
    await world.publish(node, made)
    world.ledger.down = True
    with pytest.raises(DatabaseUnavailable):
        await world.assign(node, request(A, 1))
    world.ledger.down = False
    await world.clock.advance(1.0)
    assert await world.assign(node, request(A, 1)) == [Published()]
    assert not node.fence_lost


async def test_a_writer_that_breaks_ends_the_key_manager(world: World, caplog: pytest.LogCaptureFixture) -> None:
    node = await world.opened()

    async def broken(_stream: Stream, _seq: int) -> None:
        raise ValueError("a defect")

    [made] = await world.assigned(node, request(A, 1))
    await world.publish(node, made)
    world.ledger.entry = broken  # type: ignore[assignment] # the defect
    with pytest.raises(NotLeader):
        await world.assign(node, request(A, 1))
    assert node.fence_lost == [True]
    assert "a defect" in caplog.text


# ── leaders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_second_key_manager_is_told_who_leads(world: World) -> None:
    await world.opened()
    second = world.node()
    with pytest.raises(NotLeader, match="on node-0"):
        await world.clock.until(second.manager.start())
    with pytest.raises(NotLeader):
        await second.manager.assign([request(A, 1)], DEADLINE_S)


async def test_a_second_key_manager_takes_over_from_a_dead_one(world: World) -> None:
    first = await world.opened()
    [made] = await world.assigned(first, request(A, 1))
    await world.kill(first)
    died_s = world.clock.monotonic_s()
    second = await world.started()
    assert world.clock.monotonic_s() - died_s < 10
    [inherited] = await world.assigned(second, request(A, 1))
    assert inherited == made
    [after] = await world.assigned(second, request(A, 2))
    assert after.address == address(2)
    assert after.fence > made.fence


async def test_one_that_stops_gives_way_at_once(world: World) -> None:
    first = await world.opened()
    await world.clock.until(first.manager.stop())
    with pytest.raises(NotLeader):
        await first.manager.assign([request(A, 1)], DEADLINE_S)
    stopped_s = world.clock.monotonic_s()
    await world.started()
    assert world.clock.monotonic_s() - stopped_s < 1


async def test_a_zombie_can_write_nothing(world: World) -> None:
    zombie = await world.opened(keys=3)
    [made] = await world.assigned(zombie, request(A, 1))
    zombie.manager._tasks[0].cancel()  # it is paused: its lease runs out, and it does not know
    second = await world.started()
    before = dict(world.etcd.stored)
    attempts = [
        zombie.manager.assign([request(B, 1)], DEADLINE_S),
        zombie.manager.release([(A, 1)], "zombie"),
    ]
    for result in await world.clock.until(asyncio.gather(*attempts, return_exceptions=True)):
        assert isinstance(result, NotLeader)
    assert zombie.fence_lost == [True]
    assert world.etcd.stored == before
    for attempt in (zombie.manager.halt(B, "no"), zombie.manager.import_keys([(CHAIN, address(9), b"", 0)])):
        with pytest.raises(NotLeader):
            await world.clock.until(attempt)
    assert world.etcd.stored == before
    [inherited] = await world.assigned(second, request(A, 1))
    assert inherited == made


async def test_what_a_zombie_sent_before_arrives_too_late(world: World) -> None:
    first = await world.opened(keys=3)
    first.store.faults.extend([Fault.LATE, *[Fault.LOST_REQUEST] * 200])
    call = asyncio.ensure_future(first.manager.assign([request(A, 1)], 60.0))
    await settle()
    await world.kill(first)
    call.cancel()
    second = await world.started()
    [made] = await world.assigned(second, request(A, 1))
    before = dict(world.etcd.stored)
    assert [result.succeeded for result in world.etcd.deliver()] == [False]
    assert world.etcd.stored == before
    assert made.fence == second.manager.status()["fence"]


async def test_a_lost_lease_ends_the_key_manager(world: World) -> None:
    node = await world.opened(keys=0)
    call = asyncio.ensure_future(node.manager.assign([request(A, 1)], 60.0))
    await settle()
    for lease in list(world.etcd.leases):
        world.etcd.revoke(lease)
    with pytest.raises(NotLeader):
        await world.clock.until(call)
    assert node.fence_lost == [True]


async def test_a_lost_answer_to_the_claim_itself(world: World) -> None:
    node = world.node()
    node.store.faults.extend([Fault.LOST_REPLY, None, Fault.LOST_REPLY])
    await world.clock.until(node.manager.start())
    leader, genesis = world.etcd.get(PATHS.leader), world.etcd.get(PATHS.genesis)
    assert leader is not None
    assert genesis is not None
    assert node.manager.status()["fence"] == leader.create_revision
    await world.clock.until(node.manager.open_stream(StreamRecord(A, CHAIN, SYSTEM)))


# ── fail closed ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_restart_finds_everything_as_it_was(world: World) -> None:
    first = await world.opened(keys=3)
    made = await world.assigned(first, request(A, 1), request(B, 1), request(A, 2, count=0))
    await world.publish(first, made[0])
    keys = await first.manager.list_keys()
    await world.clock.until(first.manager.stop())
    second = await world.started()
    assert await second.manager.list_keys() == keys
    assert {(a.stream, a.seq) for a in await second.manager.list_assignments()} == {(B, 1), (A, 2)}
    assert [s.seq for s in await second.manager.list_streams()] == [2, 1]
    await world.publish(second, *made[1:])
    assert await second.manager.list_assignments() == []


async def test_a_restored_backup_is_refused(world: World) -> None:
    first = await world.opened()
    [early] = await world.assigned(first, request(A, 1))
    await world.publish(first, early)
    backup = world.etcd.backup()
    [late] = await world.assigned(first, request(A, 2))
    await world.publish(first, late)
    await world.clock.until(first.manager.stop())
    world.etcd.restore(backup)
    with pytest.raises(DeploymentHalted, match="etcd and the ledger disagree"):
        await world.started()
    assert world.etcd.get(PATHS.leader) is None, "it does not stay in the way"


async def test_an_empty_etcd_is_refused_when_the_ledger_has_rows(world: World) -> None:
    first = await world.opened()
    [made] = await world.assigned(first, request(A, 1))
    await world.publish(first, made)
    await world.clock.until(first.manager.stop())
    world.etcd.stored.clear()
    with pytest.raises(DeploymentHalted, match="holds nothing"):
        await world.started()
    assert world.etcd.get(PATHS.genesis) is None


async def test_each_way_of_being_behind_is_found(world: World) -> None:
    first = await world.opened()
    [made] = await world.assigned(first, request(A, 1))
    await world.sign(made)
    await world.clock.until(first.manager.stop())
    sound = dict(world.etcd.stored)
    stream, key = PATHS.stream(A), PATHS.key(CHAIN, address(1))
    locked, assignment = world.key(1), PATHS.assignment(A, 1)
    defects: dict[str, tuple[str, object]] = {
        "would lend 3": (key, replace(locked, next_nonce=3)),
        "does not know the key": (key, None),
        "etcd has come to batch 0": (stream, replace(world.stream(A), seq=0)),
        "which has no assignment": (assignment, None),
        "not locked for it": (key, replace(locked, state=KeyState.FREE, holder=None)),
        "would lend another": (key, replace(locked, next_nonce=11)),
    }
    for reason, (path, record) in defects.items():
        world.etcd.stored = dict(sound)
        if record is None:
            del world.etcd.stored[path]
        else:
            stored = world.etcd.stored[path]
            assert isinstance(record, KeyRecord | StreamRecord)
            world.etcd.stored[path] = replace(stored, kv=replace(stored.kv, value=record.to_json()))
        with pytest.raises(DeploymentHalted, match=reason):
            await world.started()
    world.etcd.stored = dict(sound)
    await world.started()


async def test_a_genesis_that_is_changed_under_it_stops_everything(world: World) -> None:
    node = await world.opened()
    stored = world.etcd.stored[PATHS.genesis]
    world.etcd.stored[PATHS.genesis] = replace(stored, kv=replace(stored.kv, value=b"{}"))
    with pytest.raises(DeploymentHalted, match="genesis"):
        await world.assign(node, request(A, 1))
    assert world.etcd.get(PATHS.assignment(A, 1)) is None


async def test_a_stranger_who_writes_is_noticed_and_never_overwritten(world: World) -> None:
    node = await world.opened(keys=1)
    stored = world.etcd.stored[PATHS.key(CHAIN, address(1))]
    world.etcd.revision += 1
    changed = replace(stored.kv, value=replace(world.key(1), next_nonce=77).to_json(), mod_revision=world.etcd.revision)
    world.etcd.stored[PATHS.key(CHAIN, address(1))] = replace(stored, kv=changed)
    [made] = await world.assigned(node, request(A, 1))
    assert made.first_nonce == 77


@pytest.mark.parametrize("how", ["digest", "ledger", "signer"])
async def test_one_stream_halts_for_good_and_others_go_on(world: World, how: str) -> None:
    node = await world.opened(keys=4)
    [made] = await world.assigned(node, request(A, 1))
    if how == "digest":
        [reply] = await world.assign(node, request(A, 1, digest="ff" * 32))
        assert isinstance(reply, Refused)
    elif how == "ledger":
        await world.publish(node, made)
        [reply] = await world.assign(node, request(A, 1, digest="ff" * 32))
        assert isinstance(reply, Refused)
    else:
        await world.clock.until(node.manager.halt(A, "the ledger refused it"))
    assert world.stream(A).halted
    assert list(node.manager.status()["halted"]) == [str(A)]
    assert isinstance((await world.assign(node, request(A, 2)))[0], Refused)
    await world.assigned(node, request(B, 1))
    await world.clock.until(node.manager.stop())
    second = await world.started()
    assert isinstance((await world.assign(second, request(A, 2)))[0], Refused)
    await world.clock.until(second.manager.unhalt(A))
    await world.assigned(second, request(A, 2))


async def test_many_releases_go_in_parts(world: World) -> None:
    count = GROUP_MAX + 8
    node = await world.opened(keys=count)
    made = [a for seq in range(1, count + 1) for a in await world.assigned(node, request(A, seq))]
    await world.publish(node, *made)
    await world.publish(node)
    assert {key.state for key in await node.manager.list_keys()} == {KeyState.FREE}


async def test_every_error_is_one_of_ours(world: World) -> None:
    node = await world.opened()
    node.store.down = True
    results = await world.clock.until(
        asyncio.gather(
            node.manager.assign([request(A, 1), request(B, 1)], 60.0),
            node.manager.release([(A, 1)], "w"),
            node.manager.halt(A, "why"),
            return_exceptions=True,
        )
    )
    assert all(isinstance(result, OncesignError) or result is None for result in results)
    assert isinstance(results[0], OncesignError)


def test_the_digest_of_the_tests_differs_by_batch() -> None:
    assert len({digest(stream, seq) for stream in (A, B) for seq in range(5)}) == 10

"""Key managers on twins of etcd, the ledger and time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.assignment.manager import KeyManager
from pipeline.assignment.records import Assignment, KeyRecord, StreamRecord
from pipeline.ports import Assigned, AssignReply, AssignRequest, LedgerEntry
from pipeline.settings import Settings
from pipeline.stream import Stream
from pipeline.testing.clock import TwinClock, settle
from pipeline.testing.ledger import TwinLedger
from pipeline.testing.store import TwinEtcd, TwinStore
from tests.unit.assignment_records import CHAIN, PATHS, SYSTEM, A, B, address

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
        await self.add_keys(node, keys)
        for stream in streams:
            await self.clock.until(node.manager.open_stream(StreamRecord(stream, CHAIN, SYSTEM)))
        return node

    async def add_keys(self, node: Node, count: int) -> None:
        """1 … n."""
        keys = [(CHAIN, address(i), b"sealed", 0) for i in range(1, count + 1)]
        await self.clock.until(node.manager.import_keys(keys))

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

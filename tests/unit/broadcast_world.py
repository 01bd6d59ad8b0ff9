"""Signed batches of some senders, a node and a broadcaster, all in memory, with time that is told to pass."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.custody.generation import address_of
from pipeline.ethereum import kernel
from pipeline.ethereum.signed import SignedColumns, SignedHeader, SignedRecord
from pipeline.ports import LedgerEntry, Place
from pipeline.settings import BroadcastSettings, SourceSettings
from pipeline.stages.broadcaster import Broadcaster, BroadcasterPorts
from pipeline.stages.inspection import Finding, Sighting
from pipeline.stream import Stream
from pipeline.testing.batch_log import TwinBatchLog
from pipeline.testing.blobs import TwinBlobs
from pipeline.testing.broadcasts import TwinBroadcasts
from pipeline.testing.broker import Broker
from pipeline.testing.clock import TwinClock
from pipeline.testing.ledger import TwinLedger
from pipeline.testing.network import InstantNetwork
from pipeline.testing.node import TwinNode
from pipeline.testing.outcomes import TwinOutcomes
from pipeline.testing.source import TwinSource
from tests.ethereum_rows import batch, row, wei

CHAIN = 1
SIGNED = "tx.signed"
PARTITIONS = 2
SOURCE = SourceSettings(name="payouts", chain_id=CHAIN, shards=1)
STREAM = Stream("payouts", 0)
TICK_S = 1.0
AT_ONCE = BroadcastSettings(confirmations=0)


def secret(number: int) -> bytes:
    return number.to_bytes(32, "big")


@dataclass
class World:
    """Senders are numbers from 1 on."""

    settings: BroadcastSettings = field(default_factory=lambda: AT_ONCE)
    node: TwinNode = field(default_factory=TwinNode)
    clock: TwinClock = field(default_factory=TwinClock)
    blobs: TwinBlobs = field(default_factory=TwinBlobs)

    def __post_init__(self) -> None:
        self.broker = Broker(self.clock, InstantNetwork())
        self.broker.create_topic(SIGNED, PARTITIONS)
        self.ledger = TwinLedger()
        self.outcomes = TwinOutcomes({"payouts": TwinSource(1)}, self.ledger)
        self.broadcasts = TwinBroadcasts(self.ledger, self.outcomes)
        self.seq = 0
        self.hashes: dict[int, list[bytes]] = {}
        self.broadcaster = self.started()

    def started(self) -> Broadcaster:
        """Another one, which knows nothing."""
        ports = BroadcasterPorts(self.node, self.blobs, TwinBatchLog(self.broker), self.broadcasts, self.clock)
        self.broadcaster = Broadcaster(ports, CHAIN, self.settings)
        return self.broadcaster

    async def sign(self, sender: int, rows: int, *, verified: bool = True) -> Sighting:
        """A batch of this sender, as the pipeline leaves it: ledger, record, sighting."""
        ids = range((self.seq + 1) * 1_000, (self.seq + 1) * 1_000 + rows)
        unsigned = batch([row(tx_id=tx_id, value=wei(self.seq + 1)) for tx_id in ids])
        signed = kernel.sign(unsigned, np.ones(rows, np.bool_), secret(sender), self.next_nonce(sender))
        return await self.publish(sender, signed, verified=verified)

    def next_nonce(self, sender: int) -> int:
        return self.ledger.next_nonces.get((CHAIN, address_of(secret(sender))), 0)

    async def publish(self, sender: int, signed: SignedColumns, *, verified: bool = True) -> Sighting:
        self.seq += 1
        address, first, rows = address_of(secret(sender)), self.next_nonce(sender), len(signed.nonce)
        header = SignedHeader(STREAM, self.seq, CHAIN, address, first, rows, "aa" * 32, 1, "signer-0")
        await self.ledger.record(LedgerEntry(STREAM, self.seq, "aa" * 32, CHAIN, address, first, rows, 1, "signer-0"))
        record = SignedRecord.build(header, signed)
        place: Place = self.broker.append(SIGNED, sender % PARTITIONS, bytes.fromhex(address[2:]), record.encode())
        self.hashes.setdefault(sender, []).extend(value.as_py() for value in record.rows.column("hash"))
        seen = Sighting(header, place, 0)
        if verified:
            await self.verify(seen)
        return seen

    async def verify(self, seen: Sighting, **finding: Any) -> None:
        await self.outcomes.save(Finding(sightings=[seen], **finding), SIGNED, 0, 0)

    async def tick(self, times: int = 1, *, mine: bool = True) -> None:
        """A block, and what the broadcaster does about it."""
        for _ in range(times):
            while await self.clock.until(self.broadcaster.step()):
                pass
            if mine:
                self.node.mine()
            await self.clock.advance(TICK_S)
        while await self.clock.until(self.broadcaster.step()):
            pass

    async def until_mined(self) -> None:
        """`run` to its end, with a block each second."""
        ends = asyncio.create_task(self.broadcaster.run(asyncio.Event(), until_mined=True))
        for _ in range(2_000):
            await self.clock.advance(TICK_S)
            self.node.mine()
            if ends.done():
                return ends.result()
        raise AssertionError(self.broadcaster.count)

    def mined(self) -> list[tuple[str, int]]:
        return [(tx.sender, tx.nonce) for block in self.node.blocks for tx in block]

    def statuses(self) -> dict[str, int]:
        found = {"sent": 0, "mined": 0, "failed": 0}
        for fate in self.broadcasts.fates.values():
            found["mined" if fate.receipt else "failed" if fate.reason else "sent"] += 1
        return found

"""The real stages on twins of everything: etcd, the ledger, a source, Kafka and time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.assignment.manager import KeyManager
from pipeline.assignment.records import Assignment, KeyRecord, KeyState, StreamRecord
from pipeline.custody.generation import address_of
from pipeline.custody.sealing import Kek
from pipeline.custody.unsealed import UnsealedKey
from pipeline.errors import OncesignError, ProducerFenced
from pipeline.ethereum import kernel
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.policy import Policy
from pipeline.ethereum.signed import SignedColumns, SignedRecord
from pipeline.ports import Assigned, AssignReply, AssignRequest, Message, SignedBatch
from pipeline.settings import PoolSettings, ReaderSettings, Settings, SigningSettings
from pipeline.stages.admission import Admission
from pipeline.stages.consumer import BatchConsumer, ConsumerPorts, Worker
from pipeline.stages.publication import Outlets
from pipeline.stages.reader import BatchReader
from pipeline.stages.signer import Signer
from pipeline.stages.sweeper import Sweeper, SweeperPorts
from pipeline.stock.mix import Mix
from pipeline.stream import Stream
from pipeline.testing.batch_log import TwinBatchLog
from pipeline.testing.batch_subscription import TwinBatchSubscription
from pipeline.testing.broker import Broker
from pipeline.testing.clock import TwinClock, settle
from pipeline.testing.group import Committed, Generation
from pipeline.testing.ledger import TwinLedger
from pipeline.testing.network import HookedNetwork, Moment, Request, Unanswered
from pipeline.testing.policies import TwinPolicies
from pipeline.testing.round_writer import TwinRoundWriter
from pipeline.testing.source import TwinSource
from pipeline.testing.store import TwinEtcd, TwinStore
from pipeline.testing.stream_writer import TwinStreamWriter
from pipeline.testing.telemetry import TwinTelemetry

CHAIN = 1
SOURCE = "payouts"
SHARDS = 2
A, B = Stream(SOURCE, 0), Stream(SOURCE, 1)
BATCHES, SIGNED, REJECTED = "tx.batches.payouts", "tx.signed", "tx.rejected"
GROUP = "local-consumers"
SECRETS = [bytes([n]) * 32 for n in range(1, 9)]
READER = ReaderSettings(batch_rows_max=10)
KEK = Kek(b"k" * 32)
STEP_S = 0.25
PATIENCE_S = 120.0


class InlineKernel:
    """The real one, without a thread: time stands still while it signs."""

    async def sign(self, batch: Batch, signable: NDArray[np.bool_], key: UnsealedKey, nonce: int) -> SignedColumns:
        signed: SignedColumns = kernel.sign(batch, signable, key.reveal(), nonce)
        return signed


class Pool:
    """A real signer behind a gate; it remembers what it made of each batch."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0
        self.made: dict[tuple[Stream, int], list[bytes]] = defaultdict(list)
        self.failures: list[OncesignError] = []

    async def sign(self, batch: bytes, assigned: Assigned) -> SignedBatch:
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        if self.failures:
            raise self.failures.pop(0)
        signed = await self._signer.sign(batch, assigned)
        a = assigned.assignment
        self.made[a.stream, a.seq].append(signed.record)
        return signed

    def slots(self) -> int:
        return 4


class Desk(KeyManager):
    """A key manager as its clients call it, and what was asked of it."""

    released: list[tuple[Stream, int]]

    async def assignments(self) -> Sequence[Assignment]:
        return await self.list_assignments()

    async def assign(self, requests: Sequence[AssignRequest], deadline_s: float) -> Sequence[AssignReply]:
        return await super().assign(requests, deadline_s)

    async def release(self, batches: Sequence[tuple[Stream, int]], worker: str) -> None:
        self.released = [*getattr(self, "released", []), *batches]
        await super().release(batches, worker)


@dataclass
class Fault:
    """What happens to the next request of this name, of a client whose name has `client` in it."""

    name: str
    moment: Moment
    delay_s: float = 0.0  #: 0 = it is lost here
    client: str = ""
    skip: int = 0  #: so many that would fit are let through first


class Faults:
    """The broker's hook: each fault is met once, in order."""

    def __init__(self, clock: TwinClock) -> None:
        self._clock = clock
        self.planned: list[Fault] = []
        self.seen: Counter[str] = Counter()

    async def __call__(self, request: Request, moment: Moment) -> None:
        self.seen[request.name] += moment is Moment.BEFORE
        for fault in self.planned:
            if (fault.name, fault.moment) == (request.name, moment) and fault.client in request.client:
                if fault.skip:
                    fault.skip -= 1
                    continue
                self.planned.remove(fault)
                if not fault.delay_s:
                    raise Unanswered("lost on the way")
                await self._clock.sleep(fault.delay_s)
                return


@dataclass
class Running:
    """A consumer at work."""

    consumer: BatchConsumer
    subscription: TwinBatchSubscription
    stop: asyncio.Event
    task: asyncio.Task[None]


@dataclass
class Flow:
    """Everything that outlives a stage, and the stages that run."""

    clock: TwinClock = field(default_factory=TwinClock)
    source: TwinSource = field(default_factory=lambda: TwinSource(SHARDS))
    ledger: TwinLedger = field(default_factory=TwinLedger)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    settings: PoolSettings = field(default_factory=PoolSettings)
    telemetry: TwinTelemetry = field(default_factory=TwinTelemetry)
    policies: TwinPolicies = field(default_factory=TwinPolicies)
    policy: Policy | None = None  #: of readers that are made from here on
    ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.faults = Faults(self.clock)
        self.network = HookedNetwork(self.clock, self.faults)
        self.broker = Broker(self.clock, self.network)
        for topic, partitions in ((BATCHES, SHARDS), (SIGNED, 2), (REJECTED, 1)):
            self.broker.create_topic(topic, partitions)
        begin = {(BATCHES, shard): Committed(0, "0") for shard in range(SHARDS)}
        self.broker.group(GROUP).commit(Generation(GROUP), begin)
        self.log = TwinBatchLog(self.broker, GROUP)
        self.etcd = TwinEtcd(self.clock)
        self.desk = Desk(TwinStore(self.etcd), self.ledger, self.clock, Settings(), lambda: None)
        signer = Signer("signer-0", self.ledger, KEK, InlineKernel(), self.clock, SigningSettings())
        self.pool = Pool(signer)
        self._members = 0

    async def start(self, keys: int = 2) -> None:
        await self.clock.until(self.desk.start())
        await self.add_keys(*SECRETS[:keys])

    async def add_keys(self, *secrets: bytes) -> None:
        rows = [(CHAIN, address_of(secret), KEK.seal(secret, address_of(secret)), 0) for secret in secrets]
        await self.clock.until(self.desk.import_keys(rows))

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await settle()
        await self.clock.until(self.desk.stop())
        await self.network.close()

    # ── stages ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def stock(self, count: int, seed: int = 1) -> list[int]:
        return self.source.insert(*Mix(seed, CHAIN).rows(count))

    def reader(self, stream: Stream, settings: ReaderSettings = READER) -> BatchReader:
        writer = TwinStreamWriter(self.broker, "local", stream, BATCHES)
        desk, clock = self.desk, self.clock
        made = partial(BatchReader, stream, CHAIN, self.source, writer, desk, clock, settings)
        return made(policy=self.policy, telemetry=self.telemetry)

    def read(self, *streams: Stream, settings: ReaderSettings = READER) -> list[asyncio.Task[None]]:
        """Readers at work; all streams unless told."""
        readers = [self.reader(stream, settings) for stream in streams or (A, B)]
        made = [asyncio.create_task(reader.run(asyncio.Event())) for reader in readers]
        self.tasks += made
        return made

    def consume(self, slot: int = 0) -> Running:
        """A consumer at work, as a new process on a slot."""
        self._members += 1
        name = f"consumer-{slot}.{self._members}"
        subscription = TwinBatchSubscription(self.broker, GROUP, name, [BATCHES])
        writer = TwinRoundWriter(self.broker, f"local-consumer-{slot}")
        ports = ConsumerPorts(subscription, writer, self.desk, self.pool, self.log, self.clock, self.telemetry)
        admission = Admission({SOURCE: CHAIN}, {BATCHES: SOURCE})
        worker = Worker(name, "here")
        consumer = BatchConsumer(worker, ports, admission, Outlets(SIGNED, REJECTED, 2), self.settings)
        stop = asyncio.Event()
        task = asyncio.create_task(consumer.run(stop))
        self.tasks.append(task)
        return Running(consumer, subscription, stop, task)

    def sweeper(self) -> Sweeper:
        writer = TwinRoundWriter(self.broker, "local-sweeper")
        sources, topics = {SOURCE: self.source}, {SOURCE: BATCHES}
        ports = SweeperPorts(self.desk, self.pool, self.log, writer, sources, self.policies, topics, self.clock)
        return Sweeper(Worker("sweeper", "here"), ports, Outlets(SIGNED, REJECTED, 2))

    async def sweep(self) -> Sweeper:
        made = self.sweeper()
        await self.clock.until(made.sweep())
        return made

    def sweep_for(self, seconds: float) -> None:
        """A sweeper at work, and its end."""

        async def work() -> None:
            stop = asyncio.Event()
            task = asyncio.create_task(self.sweeper().run(stop))
            await self.clock.sleep(seconds)
            stop.set()
            with contextlib.suppress(ProducerFenced):
                await task

        self.tasks.append(asyncio.create_task(work()))

    async def kill(self, running: Running) -> None:
        """As by kill -9, and its session is over."""
        running.task.cancel()
        await settle()
        self.broker.group(GROUP).leave(running.subscription._who.member, self.broker.existing)

    # ── what came of it ──────────────────────────────────────────────────────────────────────────────────────────────

    async def until(self, holds: Any) -> None:
        """Let time pass until it holds."""
        end_s = self.clock.monotonic_s() + PATIENCE_S
        while not holds():
            for task in self.tasks:
                if task.done() and not task.cancelled() and task.exception():
                    task.result()
            assert self.clock.monotonic_s() < end_s, "it never came"
            await self.clock.advance(STEP_S)

    def seen(self, topic: str) -> list[Message]:
        """Everything committed on a topic."""
        return [m for log in self.broker.topics[topic] for m in log.read(log.start, 10**6)[0]]

    def signed(self) -> list[SignedRecord]:
        return [SignedRecord.decode(message.value) for message in self.seen(SIGNED)]

    def signed_ids(self) -> list[int]:
        return sorted(row["tx_id"] for record in self.signed() for row in record.rows.to_pylist())

    def batches(self, stream: Stream) -> list[Batch]:
        return [Batch.decode(m.value) for m in self.seen(BATCHES) if m.place.partition == stream.shard]

    async def keys(self) -> list[KeyRecord]:
        return await self.clock.until(self.desk.list_keys())

    async def assignments(self) -> list[Assignment]:
        return await self.clock.until(self.desk.list_assignments())

    async def stream(self, stream: Stream) -> StreamRecord:
        [record] = [r for r in await self.clock.until(self.desk.list_streams()) if r.stream == stream]
        return record

    async def check_once(self) -> None:
        """No row twice, no nonce twice and none left out, on tx.signed and in the ledger alike."""
        ids = self.signed_ids()
        assert len(ids) == len(set(ids))
        nonces: dict[str, list[int]] = defaultdict(list)
        for record in self.signed():
            nonces[record.header.sender] += [row["nonce"] for row in record.rows.to_pylist()]
        for sender, used in nonces.items():
            assert used == list(range(len(used))), sender  # one sender is on one partition, in order
        for made in self.pool.made.values():
            assert len(set(made)) == 1

    async def check_all_done(self, ids: Sequence[int]) -> None:
        """All of these rows were signed once, and every key is free again."""
        await self.check_once()
        assert self.signed_ids() == sorted(ids)
        assert await self.assignments() == []
        assert {key.state for key in await self.keys()} == {KeyState.FREE}


def other_digest(batch: Batch) -> bytes:
    """The same place in the stream, other rows."""
    return Batch.build(batch.header, batch.rows.slice(1)).encode()


def elsewhere(batch: Batch) -> bytes:
    """A batch that says it belongs to a stream that nobody knows."""
    return Batch.build(replace(batch.header, stream=Stream("strange", 0)), batch.rows).encode()

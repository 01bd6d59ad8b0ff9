"""The real stages on real servers in one process, without Ray: the quickest way to see a whole run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from actors import composition
from actors.composition import bus, consuming, reading, sweeping, tables
from actors.composition.budgets import budgets
from pipeline.adapters.etcd import EtcdStore
from pipeline.adapters.ledger import PostgresLedger
from pipeline.assignment.manager import KeyManager
from pipeline.assignment.records import Assignment, StreamRecord
from pipeline.clock import SystemClock
from pipeline.custody.generation import address_of, new_secret
from pipeline.custody.kek_ring import KekRing
from pipeline.custody.sealing import Kek
from pipeline.ports import Assigned, SignedBatch
from pipeline.settings import Settings
from pipeline.stages.consumer import BatchConsumer, Worker
from pipeline.stages.reader import BatchReader
from pipeline.stages.signer import NativeKernel, Signer
from pipeline.stages.sweeper import Sweeper
from pipeline.stock.mix import Mix
from pipeline.stock.row import insert

CLOCK = SystemClock()
SLOTS = 4


class Manager(KeyManager):
    """The key manager under the names that the actor gives its methods."""

    async def streams(self) -> Sequence[StreamRecord]:
        return await self.list_streams()

    async def assignments(self) -> Sequence[Assignment]:
        return await self.list_assignments()


class OneSigner:
    """A pool of one."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def slots(self) -> int:
        return SLOTS

    async def sign(self, batch: bytes, assigned: Assigned) -> SignedBatch:
        return await self._signer.sign(batch, assigned)


@dataclass
class Run:
    """A running pipeline."""

    settings: Settings
    manager: Manager
    consumer: BatchConsumer
    sweeper: Sweeper
    readers: list[BatchReader]
    signers: OneSigner
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def until(self, rows: int, timeout_s: float = 60.0) -> None:
        """Wait until that many rows were signed or rejected and everything is released."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            for task in self.tasks:
                if task.done():
                    task.result()
            count = self.consumer.count
            if count.signed + count.rejected >= rows and not await self.manager.list_assignments():
                return
            assert asyncio.get_running_loop().time() < deadline, (count, self.consumer.halted, self.manager.status())
            await asyncio.sleep(0.05)


async def add_keys(manager: KeyManager, kek: Kek | KekRing, count: int, chain_id: int = 1) -> list[str]:
    """New keys in the pool."""
    keys = []
    for _ in range(count):
        secret = new_secret()
        keys.append((chain_id, address_of(secret), kek.seal(secret, address_of(secret)), 0))
    await manager.import_keys(keys)
    return [address for _, address, _, _ in keys]


def stock(settings: Settings, count: int, seed: int = 1, invalid: float = 0.0) -> None:
    """Mocked rows in the first source."""
    source = settings.sources[0]
    insert(settings.postgres, source.table, Mix(seed, source.chain_id).rows(count, invalid))


@asynccontextmanager
async def running(settings: Settings, kek: Kek | KekRing, keys: int = 4) -> AsyncIterator[Run]:
    """Everything but Ray; the pool gets `keys` keys when it is empty."""
    async with AsyncExitStack() as stack:
        store = EtcdStore(settings.etcd)
        stack.push_async_callback(store.close)
        ledger = PostgresLedger(settings.postgres)
        stack.push_async_callback(ledger.close)
        manager = Manager(store, ledger, CLOCK, settings, budgets=budgets(settings))
        await manager.start()
        stack.push_async_callback(manager.stop)
        if not await manager.list_keys():
            await add_keys(manager, kek, keys, settings.sources[0].chain_id)
        admin = await stack.enter_async_context(bus.topics(settings))
        await tables.prepare(settings, manager, admin)
        signers = OneSigner(Signer("signer-0", ledger, kek, NativeKernel(), CLOCK, settings.signing))
        [place] = composition.reader_places(settings)
        readers = await stack.enter_async_context(reading.readers(settings, place.source, place.shards, manager))
        worker = Worker("consumer-0.1", "here")
        consumer = await stack.enter_async_context(consuming.consumer(settings, 0, worker, manager, signers))
        sweeper = await stack.enter_async_context(
            sweeping.sweeper(settings, Worker("sweeper.1", "here"), manager, signers)
        )
        run = Run(settings, manager, consumer, sweeper, readers, signers)
        stop = asyncio.Event()
        run.tasks = [asyncio.create_task(reader.run(stop)) for reader in readers]
        run.tasks += [asyncio.create_task(consumer.run(stop)), asyncio.create_task(sweeper.run(stop))]
        try:
            yield run
        finally:
            stop.set()
            await asyncio.wait(run.tasks, timeout=20)
            for task in run.tasks:
                task.cancel()
            await asyncio.gather(*run.tasks, return_exceptions=True)

"""What an honest pipeline publishes for the rows of a source, and the means to publish something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.clock import SystemClock
from pipeline.custody.generation import address_of
from pipeline.ethereum import kernel
from pipeline.ethereum.batch import Batch, BatchHeader
from pipeline.ethereum.signed import COLUMNS as SIGNED_COLUMNS
from pipeline.ethereum.signed import SignedColumns, SignedHeader, SignedRecord
from pipeline.ethereum.validity import judge
from pipeline.ports import Clock, LedgerEntry
from pipeline.settings import SourceSettings
from pipeline.stages.policies import Policies
from pipeline.stages.reader import judged, lane_of
from pipeline.stages.signer import rejections
from pipeline.stages.verifier import Outcomes, Verifier, VerifierPorts
from pipeline.stages.violation import Violation, ViolationKind
from pipeline.stock.mix import Mix
from pipeline.stream import START, Cursor, Stream
from pipeline.testing.batch_log import TwinBatchLog
from pipeline.testing.broker import Broker
from pipeline.testing.ledger import TwinLedger
from pipeline.testing.network import InstantNetwork
from pipeline.testing.outcomes import TwinOutcomes
from pipeline.testing.policies import TwinPolicies
from pipeline.testing.source import TwinSource

SIGNED: Final = "tx.signed"
REJECTED: Final = "tx.rejected"
SOURCE: Final = SourceSettings(name="payouts", chain_id=1, shards=2)
SECRETS: Final = (bytes([0x46]) * 32, bytes([0x47]) * 32)


@dataclass
class Publisher:
    """A batch, its ledger row and its records, one step at a time; every step can be replaced by a wrong one."""

    source: TwinSource = field(default_factory=lambda: TwinSource(SOURCE.shards))
    ledger: TwinLedger = field(default_factory=TwinLedger)
    broker: Broker = field(default_factory=lambda: Broker(SystemClock(), InstantNetwork()))
    next_nonce: dict[bytes, int] = field(default_factory=dict)
    seqs: dict[int, int] = field(default_factory=dict)
    cursors: dict[int, Cursor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.broker.create_topic(SIGNED, 2)
        self.broker.create_topic(REJECTED, 2)

    def stock(self, count: int, invalid_share: float = 0.0, seed: int = 1) -> None:
        self.source.insert(*Mix(seed, SOURCE.chain_id).rows(count, invalid_share))

    async def batch(self, shard: int, rows: int) -> Batch:
        """The next of a stream."""
        prev = self.cursors.get(shard, START)
        table = await self.source.rows_after(shard, prev, rows)
        end = table.slice(table.num_rows - 1)
        cursor = Cursor(end.column("created_xid")[0].as_py(), end.column("id")[0].as_py())
        seq = self.seqs.get(shard, 0) + 1
        self.cursors[shard], self.seqs[shard] = cursor, seq
        header = BatchHeader(Stream(SOURCE.name, shard), seq, prev, cursor, SOURCE.chain_id, self.source.system)
        [made] = table.combine_chunks().to_batches()
        return judged(lane_of(header, made), made, None)

    def sign(self, batch: Batch, secret: bytes, first_nonce: int | None = None) -> SignedRecord:
        """As a signer does."""
        signable = judge(batch) == 0
        count = int(np.count_nonzero(signable))
        nonce = self.next_nonce.get(secret, 0) if first_nonce is None else first_nonce
        signed = kernel.sign(batch, signable, secret, nonce) if count else SignedColumns.empty()
        self.next_nonce[secret] = max(self.next_nonce.get(secret, 0), nonce + count)
        h = batch.header
        sender = address_of(secret) if count else ""
        header = SignedHeader(h.stream, h.seq, h.chain_id, sender, nonce, count, batch.digest, 5, "signer-0")
        return SignedRecord.build(header, signed)

    async def swear(self, record: SignedRecord) -> None:
        """The ledger row of a record."""
        h = record.header
        await self.ledger.record(
            LedgerEntry(h.stream, h.seq, h.digest, h.chain_id, h.sender, h.first_nonce, h.count, h.fence, h.worker)
        )

    def publish(self, record: SignedRecord, partition: int = 0) -> None:
        self.broker.append(SIGNED, partition, b"", record.encode())

    def reject(self, batch: Batch) -> None:
        """The rejected rows of a batch, on tx.rejected."""
        for value in rejections(batch, judge(batch), SystemClock().unix_ms()):
            self.broker.append(REJECTED, batch.header.stream.shard % 2, b"", value)

    async def honest(self, shard: int, rows: int, secret: bytes = SECRETS[0]) -> SignedRecord:
        """One batch, as it should be."""
        batch = await self.batch(shard, rows)
        record = self.sign(batch, secret)
        await self.swear(record)
        self.publish(record, shard % 2)
        self.reject(batch)
        return record


async def all_but_last(publisher: Publisher) -> SignedRecord:
    """All of 60 rows honest, but for one batch of 10 that is signed and sworn, and not yet published."""
    await publisher.honest(0, 30)
    await publisher.honest(1, 20, SECRETS[1])
    record = publisher.sign(await publisher.batch(1, 10), SECRETS[0])
    await publisher.swear(record)
    return record


async def rebuilt(publisher: Publisher) -> Batch:
    """The last batch of all_but_last once more."""
    before = (await publisher.source.rows_after(1, START, 20)).to_pylist()[19]
    publisher.cursors[1], publisher.seqs[1] = Cursor(before["created_xid"], before["id"]), 1
    return await publisher.batch(1, 10)


def tables(publisher: Publisher) -> TwinOutcomes:
    """The verifier's, in the database that has the publisher's rows and ledger."""
    return TwinOutcomes({SOURCE.name: publisher.source}, publisher.ledger)


def verifier(
    publisher: Publisher,
    outcomes: Outcomes | None = None,
    clock: Clock | None = None,
    policies: Policies | None = None,
) -> Verifier:
    """Over a publisher's twins."""
    kept = outcomes or tables(publisher)
    sources = {SOURCE.name: publisher.source}
    log = TwinBatchLog(publisher.broker)
    ports = VerifierPorts(log, sources, publisher.ledger, kept, policies or TwinPolicies(), clock or SystemClock())
    return Verifier(ports, [SOURCE], (SIGNED, REJECTED))


async def findings(publisher: Publisher, made: Verifier | None = None) -> list[Violation]:
    """What a verifier that starts now finds."""
    made = made or verifier(publisher)
    await made.catch_up()
    return await made.reconcile()


def kinds(found: list[Violation]) -> set[ViolationKind]:
    return {violation.kind for violation in found}


def with_header(record: SignedRecord, **changes: Any) -> SignedRecord:
    return SignedRecord(replace(record.header, **changes), record.rows)


def with_rows(record: SignedRecord, rows: Sequence[dict[str, Any]]) -> SignedRecord:
    """Other rows under the same header, but for their number."""
    made = pa.RecordBatch.from_pylist(list(rows), schema=SIGNED_COLUMNS)
    return SignedRecord(replace(record.header, count=len(rows)), made)

"""What the real Postgres, Kafka and etcd hold when all is at rest, as the invariants take it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Final

import psycopg
from psycopg import sql

from actors.composition import bus
from jobs.desk import etcd_view
from pipeline.adapters.kafka import Topics
from pipeline.adapters.postgres import connection_string
from pipeline.assignment.records import KeyState
from pipeline.assignment.view import View
from pipeline.errors import MalformedBatch
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.rejected import Rejection
from pipeline.ethereum.signed import SignedRecord
from pipeline.ports import Message
from pipeline.settings import Settings, SourceSettings
from pipeline.testing.invariants import Lent, Rest, Signature, breaches_at_rest, breaches_of_order

LEDGER: Final = """
SELECT source, shard, seq, digest, chain_id, sender, first_nonce, count FROM signing_ledger ORDER BY source, shard, seq
"""
OUTCOMES: Final = "SELECT source, tx_id, status FROM outcomes"
BREACHES_MAX: Final = 1_000


async def breaches(settings: Settings, violations: list[str]) -> list[str]:
    """Every breach of I1 to I8 that can be seen at rest; `violations` are what the verifier found.

    Raises DependencyDown, MalformedBatch.
    """
    topics = Topics(settings.kafka.topic_prefix)
    source = settings.sources[0]
    signed = [SignedRecord.decode(m.value) for m in await bus.records(settings, topics.signed)]
    rejected = [Rejection.from_json(m.value) for m in await bus.records(settings, topics.rejected)]
    batches = await bus.records(settings, topics.batches(source.name))
    async with etcd_view(settings) as view:
        rest = _rest(settings, source, view, (signed, rejected), violations)
    lines = [*breaches_at_rest(rest), *_breaches_of_chains(rest, batches)]
    return lines[:BREACHES_MAX]


def _rest(
    settings: Settings,
    source: SourceSettings,
    view: View,
    published: tuple[list[SignedRecord], list[Rejection]],
    violations: list[str],
) -> Rest:
    signed, rejected = published
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        ids = connection.execute(sql.SQL("SELECT id FROM {}").format(sql.Identifier(source.table))).fetchall()
        ledger = connection.execute(LEDGER).fetchall()
        outcomes = connection.execute(OUTCOMES).fetchall()
    keys = {(chain_id, address): held.record for (chain_id, address), held in view.keys.items()}
    return Rest(
        committed=[(source.name, row[0]) for row in ids],
        signatures=[made for record in signed for made in _signatures(record)],
        rejected=[(rejection.source, rejection.tx_id) for rejection in rejected],
        published=[_published(record) for record in signed],
        ledger=[_sworn(row) for row in ledger],
        assigned=[f"{stream} {seq}" for stream, seq in view.assignments],
        locked=[key for key, record in keys.items() if record.state is KeyState.LOCKED],
        next_nonces={key: record.next_nonce for key, record in keys.items()},
        first_nonces=dict.fromkeys(keys, 0),
        heads={str(stream): held.record.seq for stream, held in view.streams.items()},
        ledger_heads=_heads(ledger),
        outcomes={(row[0], row[1]): row[2] for row in outcomes},
        violations=violations,
    )


def _signatures(record: SignedRecord) -> Iterator[Signature]:
    header, columns = record.header, record.rows
    key = (header.chain_id, header.sender)
    for k, (tx_id, nonce, raw) in enumerate(
        zip(*(columns.column(name).to_pylist() for name in ("tx_id", "nonce", "raw")), strict=True)
    ):
        row = tx_id if tx_id is not None else f"filler {k} of {header.stream} {header.seq}"
        yield Signature(key, nonce, (header.stream.source, row), raw)


def _published(record: SignedRecord) -> Lent:
    h = record.header
    key = (h.chain_id, h.sender) if h.count else None
    return Lent((str(h.stream), h.seq), h.digest, key, h.first_nonce if h.count else 0, h.count)


def _sworn(row: Any) -> Lent:
    source, shard, seq, digest, chain_id, sender, first_nonce, count = row
    key = (chain_id, "0x" + sender.hex()) if count else None
    return Lent((f"{source}/{shard}", seq), digest.hex(), key, int(first_nonce) if count else 0, count)


def _heads(ledger: list[Any]) -> dict[Hashable, int]:
    heads: dict[Hashable, int] = {}
    for source, shard, seq, *_ in ledger:
        heads[f"{source}/{shard}"] = max(seq, heads.get(f"{source}/{shard}", 0))
    return heads


def _breaches_of_chains(rest: Rest, batches: list[Message]) -> Iterator[str]:
    """I8: the ledger has every batch of a stream up to its head; what is left on the topic is one chain."""
    yield from breaches_of_order((lent.batch[0], lent.batch[1], lent) for lent in rest.ledger)  # type: ignore[index]
    digests = {lent.batch: lent.digest for lent in rest.ledger}
    last: dict[str, Any] = {}
    for message in batches:
        try:
            batch = Batch.decode(message.value)
        except MalformedBatch as error:
            yield f"I5: {message.place}: {error}"
            continue
        header, stream = batch.header, str(batch.header.stream)
        before = last.get(stream)
        if before is not None and (header.seq, header.prev) != (before.seq + 1, before.cursor):
            yield f"I8: batch {header.seq} of {stream} follows batch {before.seq} on the topic"
        if digests.get((stream, header.seq), batch.digest) != batch.digest:
            yield f"I5: batch {header.seq} of {stream} on the topic is not the one in the ledger"
        last[stream] = header

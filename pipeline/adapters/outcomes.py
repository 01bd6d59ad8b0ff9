"""Outcomes, sightings and violations in Postgres; the tables' own keys are the last proof of once-only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Final

import psycopg
from psycopg import sql

from pipeline.adapters.postgres import connection_string, unavailable
from pipeline.effects import Effect, effect
from pipeline.ports import Outcome, Place
from pipeline.settings import PostgresSettings, SourceSettings
from pipeline.stages.inspection import Finding, Sighting
from pipeline.stages.violation import Violation, ViolationKind
from pipeline.stream import Stream

DETAIL_MAX: Final = 500
"""Characters of text from a record; an index entry has room for about 2,700 bytes."""

TEMPORARY: Final = """
CREATE TEMPORARY TABLE IF NOT EXISTS arriving (LIKE outcomes INCLUDING DEFAULTS) ON COMMIT DELETE ROWS
"""
ARRIVING: Final = """
COPY arriving (source, tx_id, status, chain_id, shard, seq, sender, nonce, hash, reason, detail, topic, partition,
               kafka_offset) FROM STDIN
"""
SETTLE: Final = "INSERT INTO outcomes SELECT DISTINCT ON (source, tx_id) * FROM arriving ON CONFLICT DO NOTHING"
CONFLICTS: Final = """
SELECT a.source, a.shard, a.seq, a.tx_id, a.sender, a.nonce, mine.tx_id IS NOT NULL
FROM arriving a
LEFT JOIN outcomes o ON (o.source, o.tx_id, o.topic, o.partition, o.kafka_offset)
                      = (a.source, a.tx_id, a.topic, a.partition, a.kafka_offset)
                    AND o.nonce IS NOT DISTINCT FROM a.nonce
LEFT JOIN outcomes mine ON (mine.source, mine.tx_id) = (a.source, a.tx_id)
WHERE o.tx_id IS NULL
"""
SIGHTING: Final = """
INSERT INTO verified_batches (source, shard, seq, chain_id, sender, fillers, topic, partition, kafka_offset)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""
SIGHTED: Final = """
SELECT topic, partition, kafka_offset FROM verified_batches WHERE (source, shard, seq) = (%s, %s, %s)
"""
AMONG: Final = """
SELECT source, shard, seq FROM verified_batches
WHERE (source, shard, seq) IN (SELECT * FROM unnest(%s::text[], %s::smallint[], %s::bigint[]))
"""
POSITION: Final = """
INSERT INTO verifier_positions (topic, partition, next_offset) VALUES (%s, %s, %s)
ON CONFLICT (topic, partition) DO UPDATE SET next_offset = EXCLUDED.next_offset
"""
VIOLATION: Final = """
INSERT INTO violations (kind, detail, source, shard, seq, tx_id) VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""


class PostgresOutcomes:
    """Fulfils stages.verifier.Outcomes. Not for two tasks at once."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None

    async def positions(self) -> Mapping[tuple[str, int], int]:
        """See stages.verifier.Outcomes."""
        query = "SELECT topic, partition, next_offset FROM verifier_positions"
        rows = await self._fetch(effect("postgres", "positions"), query)
        return {(topic, partition): offset for topic, partition, offset in rows}

    async def counts(self) -> Mapping[str, int]:
        """See stages.verifier.Outcomes; `violations` among them."""
        counts = effect("postgres", "counts")
        rows = await self._fetch(counts, "SELECT status, count(*) FROM outcomes GROUP BY status")
        [[violations]] = await self._fetch(counts, "SELECT count(*) FROM violations")
        return {"signed": 0, "rejected": 0} | dict(rows) | {"violations": violations}

    async def sighted(self, batches: Sequence[tuple[Stream, int]]) -> frozenset[tuple[Stream, int]]:
        """See stages.remains.Sightings."""
        columns = [s.source for s, _ in batches], [s.shard for s, _ in batches], [seq for _, seq in batches]
        rows = await self._fetch(effect("postgres", "sighted"), AMONG, columns)
        return frozenset((Stream(source, shard), seq) for source, shard, seq in rows)

    async def find(self, source: str, tx_id: int) -> Mapping[str, Any] | None:
        """One outcome with its column names."""
        query = (
            "SELECT status, reason, detail, chain_id, shard, seq, sender, nonce, hash, topic, partition, kafka_offset,"
            " decided_at FROM outcomes WHERE source = %s AND tx_id = %s"
        )
        try:
            async with await psycopg.AsyncConnection.connect(connection_string(self._settings)) as connection:
                with effect("postgres", "find"):
                    cursor = await connection.execute(query, [source, tx_id])
                    row = await cursor.fetchone()
        except psycopg.Error as error:
            raise unavailable(self._settings, error) from error
        names = [column.name for column in cursor.description or ()]
        return dict(zip(names, row, strict=True)) if row else None

    async def save(self, finding: Finding, topic: str, partition: int, next_offset: int) -> Sequence[Violation]:
        """See stages.verifier.Outcomes."""
        try:
            connection = await self._connect()
            with effect("postgres", "save"):
                found = await _save(connection, finding, (topic, partition, next_offset))
        except psycopg.Error as error:
            await self.close()
            if isinstance(error, psycopg.IntegrityError | psycopg.DataError):
                raise  # a fault of ours, which trying again does not mend
            raise unavailable(self._settings, error) from error
        return found

    async def reconcile(
        self, source: SourceSettings, limit: int, heads: Mapping[Stream, int] | None = None
    ) -> Sequence[Violation]:
        """See stages.verifier.Outcomes; what was found while following is part of it."""
        table = sql.SQL(".").join(map(sql.Identifier, source.table.split("."))).as_string(None)
        template = (resources.files("pipeline") / "sql" / "reconcile.sql").read_text(encoding="utf-8")
        streams = list(heads or ())
        parameters = {
            "source": source.name,
            "limit": limit,
            "running": heads is not None,
            "sources": [stream.source for stream in streams],
            "shards": [stream.shard for stream in streams],
            "seqs": [(heads or {})[stream] for stream in streams],
        }
        rows = await self._fetch(effect("postgres", "reconcile"), template.replace(":table", table), parameters)
        return [
            Violation(
                ViolationKind(kind), detail, Stream(source.name, shard) if shard is not None else None, seq, tx_id
            )
            for kind, detail, shard, seq, tx_id in rows
        ]

    async def close(self) -> None:
        """Drop the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _connect(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            connection = await psycopg.AsyncConnection.connect(connection_string(self._settings), autocommit=True)
            await connection.execute(TEMPORARY)
            self._connection = connection
        return self._connection

    async def _fetch(self, asked: Effect, query: str, parameters: Any = None) -> list[Any]:
        try:
            connection = await self._connect()
            with asked:
                cursor = await connection.execute(query, parameters)
                return await cursor.fetchall()
        except psycopg.Error as error:
            await self.close()
            raise unavailable(self._settings, error) from error


async def _save(
    connection: psycopg.AsyncConnection[Any], finding: Finding, position: tuple[str, int, int]
) -> list[Violation]:
    """In one transaction."""
    async with connection.transaction(), connection.cursor() as cursor:
        found = await _settle(cursor, finding.outcomes)
        found += [twice for seen in finding.sightings if (twice := await _sight(cursor, seen)) is not None]
        if violations := [*finding.violations, *found]:
            await cursor.executemany(VIOLATION, list(map(_violation_row, violations)))
        await cursor.execute(POSITION, position)
    return found


async def _settle(cursor: psycopg.AsyncCursor[Any], outcomes: Sequence[Outcome]) -> list[Violation]:
    """Write outcomes; one violation for each that the keys would not take."""
    if not outcomes:
        return []
    async with cursor.copy(ARRIVING) as copy:
        for outcome in outcomes:
            await copy.write_row(_outcome_row(outcome))
    await cursor.execute(SETTLE)
    if cursor.rowcount == len(outcomes):
        return []
    await cursor.execute(CONFLICTS)
    return [_conflict(row) for row in await cursor.fetchall()]


def _conflict(row: Any) -> Violation:
    source, shard, seq, tx_id, sender, nonce, known = row
    stream = Stream(source, shard)
    if known:
        return Violation(ViolationKind.TRANSACTION_TWICE, "the row has an outcome already", stream, seq, tx_id)
    detail = f"nonce {nonce} of 0x{sender.hex()} was given to another row"
    return Violation(ViolationKind.NONCE_TWICE, detail, stream, seq, tx_id)


async def _sight(cursor: psycopg.AsyncCursor[Any], seen: Sighting) -> Violation | None:
    """Remember where a batch was seen; a violation when that was elsewhere before."""
    header, place = seen.header, seen.place
    sender = bytes.fromhex(header.sender.removeprefix("0x")) or None
    stream = header.stream
    await cursor.execute(
        SIGHTING,
        (
            stream.source, stream.shard, header.seq, header.chain_id, sender, seen.fillers,
            place.topic, place.partition, place.offset,
        ),
    )  # fmt: skip
    if cursor.rowcount == 1:
        return None
    await cursor.execute(SIGHTED, (stream.source, stream.shard, header.seq))
    [first] = [Place(*row) for row in await cursor.fetchall()]
    if first == place:
        return None  # another verifier, or this one before it was interrupted, has seen the same record
    return Violation(ViolationKind.BATCH_TWICE, f"published at {first} and again at {place}", stream, header.seq)


def _outcome_row(outcome: Outcome) -> tuple[Any, ...]:
    stream, place = outcome.stream, outcome.place
    if stream is None or place is None:
        raise ValueError("an outcome of the verifier has a stream and a place")
    sender = bytes.fromhex(outcome.sender.removeprefix("0x")) or None
    return (
        outcome.source, outcome.tx_id, outcome.status, outcome.chain_id, stream.shard, outcome.seq, sender,
        outcome.nonce, outcome.tx_hash or None, _text(outcome.reason), _text(outcome.detail),
        place.topic, place.partition, place.offset,
    )  # fmt: skip


def _violation_row(violation: Violation) -> tuple[Any, ...]:
    stream = violation.stream
    source, shard = (stream.source, stream.shard) if stream else (None, None)
    return violation.kind.value, _text(violation.detail), source, shard, violation.seq, violation.tx_id


def _text(said: str) -> str:
    """As a text column takes it."""
    return said.replace("\0", "\\0")[:DETAIL_MAX]

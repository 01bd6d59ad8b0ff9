"""A source: every committed row exactly once, in whatever order transactions commit."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import orjson
import psycopg
import pyarrow as pa
import pytest
from psycopg import sql

from pipeline.adapters.postgres import connection_string
from pipeline.adapters.postgres_source import PostgresSource
from pipeline.errors import DatabaseUnavailable, InputFileError
from pipeline.ethereum.batch import WIDE, BatchHeader
from pipeline.ports import Source
from pipeline.settings import PostgresSettings, SourceSettings
from pipeline.stages.reader import judged, lane_of
from pipeline.stock.mix import Mix
from pipeline.stock.row import COLUMNS as ROW_COLUMNS
from pipeline.stock.row import OPTIONAL, Row, insert
from pipeline.stream import START, Cursor, Stream
from pipeline.testing.source import TwinSource

SHARDS = 8
INSERT = sql.SQL("INSERT INTO transactions ({}) VALUES ({}) RETURNING id").format(
    sql.SQL(", ").join(map(sql.Identifier, ROW_COLUMNS)), sql.SQL(", ").join(sql.Placeholder() * len(ROW_COLUMNS))
)
[ROW] = Mix(1, 1).rows(1)


class Transaction(Protocol):
    def insert(self, row: Row) -> int: ...
    def commit(self) -> object: ...
    def rollback(self) -> None: ...


class PostgresTransaction:
    """One of several that run at once, each on a connection of its own."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self.commit = connection.commit
        self.rollback = connection.rollback

    def insert(self, row: Row) -> int:
        [[new]] = self._connection.execute(INSERT, row).fetchall()
        return int(new)


class Place:
    """A source, and a way to insert into it."""

    def __init__(
        self, source: Source, twin: TwinSource | None, settings: PostgresSettings | None, stack: ExitStack
    ) -> None:
        self.source = source
        self.twin = twin
        self._settings = settings
        self._stack = stack

    def begin(self) -> Transaction:
        if self.twin is not None:
            return self.twin.begin()
        assert self._settings is not None
        return PostgresTransaction(self._stack.enter_context(psycopg.connect(connection_string(self._settings))))

    def insert(self, *rows: Row) -> list[int]:
        transaction = self.begin()
        ids = [transaction.insert(row) for row in rows]
        transaction.commit()
        return ids


@pytest.fixture(params=["twin", pytest.param("postgres", marks=pytest.mark.integration)])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    settings: Any = request.getfixturevalue("postgres") if request.param == "postgres" else None
    twin = None if settings else TwinSource(SHARDS)
    source: Any = PostgresSource(settings, SourceSettings(chain_id=1, shards=SHARDS)) if twin is None else twin.client()
    with ExitStack() as stack:
        yield Place(source, twin, settings, stack)
        await source.close()


def ids(table: pa.Table) -> list[int]:
    found: Any = table.column("id").to_pylist()
    return list(found)


def last(table: pa.Table) -> Cursor:
    end = table.slice(table.num_rows - 1)
    return Cursor(end.column("created_xid")[0].as_py(), end.column("id")[0].as_py())


class Reading:
    """What the reader stage does with a source: on from the last row of each shard, page by page."""

    def __init__(self, source: Source, page: int) -> None:
        self._source = source
        self._page = page
        self.cursors = dict.fromkeys(range(SHARDS), START)
        self.seen: list[int] = []

    async def look(self) -> None:
        for shard in range(SHARDS):
            table = await self._source.rows_after(shard, self.cursors[shard], self._page)
            if table.num_rows:
                assert all(row % SHARDS == shard for row in ids(table))
                self.seen += ids(table)
                self.cursors[shard] = last(table)


async def test_an_empty_source_has_no_rows(place: Place) -> None:
    table = await place.source.rows_after(0, START, 10)
    assert table.num_rows == 0
    assert table.schema.names == ["created_xid", "id", "sender", *WIDE.names]
    assert await place.source.count() == 0
    assert not await place.source.any_after(0, START)
    assert (await place.source.rows_of([1, 2])).num_rows == 0


async def test_rows_come_as_they_were_inserted(place: Place) -> None:
    rows = list(Mix(7, 1).rows(200, invalid_share=0.2))
    inserted = place.insert(*rows)
    table = pa.concat_tables([await place.source.rows_after(shard, START, 1_000) for shard in range(SHARDS)])
    assert sorted(ids(table)) == inserted == list(range(1, 201))
    by_id = {row["id"]: row for row in table.to_pylist()}
    for row, tx_id in zip(rows, inserted, strict=True):
        found = by_id[tx_id]
        assert found["tx_id"] == tx_id
        if found["defect"]:
            continue
        assert found["to"] == row.to
        assert int.from_bytes(found["value"], "big") == row.value
        assert found["gas_limit"] == row.gas_limit
        assert found["max_fee_per_gas"] == row.max_fee_per_gas
        assert found["max_priority_fee_per_gas"] == row.max_priority_fee_per_gas
        assert found["data"] == row.data
        assert (found["access_list"] is None) == (row.access_list is None)


async def test_pages_follow_each_other(place: Place) -> None:
    inserted = [place.insert(*[ROW] * 7)[0] for _ in range(20)]
    reading = Reading(place.source, page=3)
    for _ in range(10):
        await reading.look()
    assert sorted(reading.seen) == list(range(1, inserted[-1] + 7))


async def test_a_row_that_commits_late_is_not_lost(place: Place) -> None:
    early, late = place.begin(), place.begin()
    first = early.insert(ROW)
    shard = first % SHARDS
    others = [late.insert(ROW) for _ in range(SHARDS)]
    second = others[-1]
    assert second % SHARDS == shard
    late.commit()
    assert ids(await place.source.rows_after(shard, START, 10)) == []  # `early` could still commit before it
    assert await place.source.any_after(shard, START)
    early.commit()
    assert ids(await place.source.rows_after(shard, START, 10)) == [first, second]


async def test_order_is_by_transaction_and_then_by_id(place: Place) -> None:
    older, younger = place.begin(), place.begin()
    first = older.insert(ROW)
    small = [younger.insert(ROW) for _ in range(2 * SHARDS - 1)][SHARDS - 1]
    large = older.insert(ROW)
    assert first % SHARDS == small % SHARDS == large % SHARDS
    younger.commit()
    older.commit()
    table = await place.source.rows_after(first % SHARDS, START, 10)
    assert ids(table) == [first, large, small]
    assert ids(await place.source.rows_after(first % SHARDS, last(table.slice(0, 2)), 10)) == [small]


async def test_what_was_rolled_back_never_was(place: Place) -> None:
    gone = place.begin()
    lost = [gone.insert(ROW) for _ in range(SHARDS)]
    gone.rollback()
    kept = place.insert(*[ROW] * SHARDS)
    reading = Reading(place.source, page=10)
    await reading.look()
    assert sorted(reading.seen) == kept
    assert not set(lost) & set(reading.seen)
    assert await place.source.count() == SHARDS


def interleaved(place: Place, seed: int) -> Iterator[list[int]]:
    """Transactions that begin, insert, commit and roll back in a random order; yields the committed ids so far."""
    rng = random.Random(seed)  # noqa: S311 - a test's schedule
    running: list[tuple[Transaction, list[int]]] = [(place.begin(), []) for _ in range(5)]
    committed: list[int] = []
    for _ in range(150):
        at = rng.randrange(len(running))
        transaction, inserted = running[at]
        inserted += [transaction.insert(ROW) for _ in range(rng.randint(1, 6))]
        if rng.random() < 0.3:
            keep = rng.random() < 0.8
            transaction.commit() if keep else transaction.rollback()
            committed += inserted if keep else []
            running[at] = (place.begin(), []) if place.twin is not None else (transaction, [])
        yield committed
    for transaction, inserted in running:
        transaction.commit()
        committed += inserted
    yield committed


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_committed_row_is_seen_exactly_once(place: Place, seed: int) -> None:
    reading, committed = Reading(place.source, page=4), []
    plain_seen, plain_last = set[int](), 0
    for step, so_far in enumerate(interleaved(place, seed)):
        committed = so_far
        if step % 3 == 0:
            await reading.look()
            fresh = [row for row in so_far if row > plain_last]
            plain_seen.update(fresh)
            plain_last = max([plain_last, *fresh])
    for _ in range(40):
        await reading.look()
    assert sorted(reading.seen) == sorted(committed)
    plain_seen.update(row for row in committed if row > plain_last)
    assert plain_seen < set(committed)  # what a cursor over ids alone would have lost on the way


async def test_a_batch_can_be_built_again_from_its_bounds(place: Place) -> None:
    place.insert(*Mix(3, 1).rows(400, invalid_share=0.1))
    first = await place.source.rows_after(3, START, 20)
    second = await place.source.rows_after(3, last(first), 20)
    again = await place.source.rows_between(3, last(first), last(second))
    assert second.num_rows == 20
    header = BatchHeader(Stream("payouts", 3), 2, last(first), last(second), 1, "x")
    parts = [table.combine_chunks().to_batches()[0] for table in (second, again)]
    batches = [judged(lane_of(header, part), part, None) for part in parts]
    assert batches[0].digest == batches[1].digest
    assert batches[0].encode() == batches[1].encode()


async def test_what_newer_rows_have_comes_as_it_was_inserted(place: Place) -> None:
    authorization = {"chainId": 1, "address": "0x" + "44" * 20, "nonce": 7, "yParity": 1, "r": "0x5", "s": "0x6"}
    row = ROW._replace(
        sender=b"\x77" * 20,
        max_fee_per_blob_gas=2**64 - 1,
        blob_hashes=orjson.dumps(["0x" + "01" * 32]).decode(),
        authorization_list=orjson.dumps([authorization]).decode(),
    )
    [tx_id] = place.insert(row)
    [found] = (await place.source.rows_of([tx_id])).to_pylist()
    assert (found["sender"], found["max_fee_per_blob_gas"]) == (b"\x77" * 20, 2**64 - 1)
    assert found["blob_hashes"] == [b"\1" * 32]
    [signed] = found["authorization_list"]
    assert (signed["chain_id"], signed["nonce"], signed["y_parity"]) == (1, 7, 1)
    assert (found["defect"], found["type"]) == (0, ROW.type)


@pytest.mark.integration
async def test_a_table_from_before_there_were_senders_is_read_and_stocked(postgres: PostgresSettings) -> None:
    with psycopg.connect(connection_string(postgres), autocommit=True) as connection:
        connection.execute("SELECT oncesign_create_source_v1('older', 2)")
        for name in OPTIONAL:
            connection.execute(sql.SQL("ALTER TABLE older DROP COLUMN {}").format(sql.Identifier(name)))
    settings = SourceSettings(name="older", table="older", shards=2)
    assert insert(postgres, "older", [ROW] * 4) == 4
    with pytest.raises(InputFileError, match="older has no column sender"):
        insert(postgres, "older", [ROW, ROW._replace(sender=b"\1" * 20)])
    source = PostgresSource(postgres, settings)
    await source.check()
    found = await source.rows_after(0, START, 10)
    assert (found.num_rows, found.column("sender").null_count, found.column("blob_hashes").null_count) == (2, 2, 2)
    await source.close()


async def test_rows_can_be_looked_up_by_id(place: Place) -> None:
    inserted = place.insert(*[ROW] * 20)
    assert sorted(ids(await place.source.rows_of([inserted[3], inserted[11], 999]))) == [inserted[3], inserted[11]]


async def test_whether_any_row_follows_a_cursor(place: Place) -> None:
    place.insert(*[ROW] * 40)
    assert await place.source.any_after(2, START)
    assert await place.source.any_after(2, last(await place.source.rows_after(2, START, 4)))
    assert not await place.source.any_after(2, last(await place.source.rows_after(2, START, 5)))


async def test_the_system_is_known_and_does_not_change(place: Place) -> None:
    system = await place.source.system_id()
    assert system.isdecimal()
    assert system == await place.source.system_id()


async def test_a_client_of_the_twin_reads_from_the_server_that_it_came_to_first() -> None:
    twin = TwinSource(SHARDS)
    client = twin.client()
    assert await client.count() == 0
    twin.system = "7000000000000000002"
    with pytest.raises(DatabaseUnavailable, match="another server answers"):
        await client.rows_after(0, START, 1)
    assert await twin.client().system_id() == twin.system

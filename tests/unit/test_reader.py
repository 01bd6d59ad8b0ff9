"""The reader over twins: every committed row in one batch, whatever becomes of a transaction or of a reader."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pipeline.assignment.records import StreamRecord
from pipeline.errors import ProducerFenced, StreamHalted
from pipeline.ethereum.batch import Batch
from pipeline.ports import ReaderPosition
from pipeline.settings import ReaderSettings
from pipeline.stages.reader import QUIET_AFTER_S, QUIET_POLL_S, check_position
from pipeline.stream import START, Cursor
from pipeline.testing.network import Moment
from tests.unit.flow_world import BATCHES, CHAIN, GROUP, SHARDS, A, B, Fault, Flow

ROWS = 60


def rows_of(batches: list[Batch]) -> list[int]:
    return [int(tx_id) for batch in batches for tx_id in batch.columns.tx_id]


async def check_chain(flow: Flow, ids: list[int]) -> None:
    """Each stream is one chain without a gap, and holds each of its rows once."""
    for stream in (A, B):
        batches = flow.batches(stream)
        assert [batch.header.seq for batch in batches] == list(range(1, len(batches) + 1))
        prev = START
        for batch in batches:
            assert (batch.header.prev, batch.header.chain_id) == (prev, CHAIN)
            prev = batch.header.cursor
        assert rows_of(batches) == [i for i in ids if i % SHARDS == stream.shard]


def all_read(flow: Flow, count: int) -> bool:
    return len(rows_of(flow.batches(A) + flow.batches(B))) >= count


async def test_rows_become_a_chain_of_batches(flow: Flow) -> None:
    ids = flow.stock(ROWS)
    flow.read()
    await flow.until(lambda: all_read(flow, ROWS))
    await check_chain(flow, ids)
    assert all(batch.rows.num_rows == 10 for batch in flow.batches(A))
    ids += flow.stock(7, seed=2)
    await flow.until(lambda: all_read(flow, ROWS + 7))
    await check_chain(flow, ids)


async def test_another_reader_goes_on_where_the_last_one_ended(flow: Flow) -> None:
    ids = flow.stock(ROWS)
    first = flow.read()
    await flow.until(lambda: all_read(flow, ROWS))
    for task in first:
        task.cancel()
    ids += flow.stock(ROWS, seed=2)
    flow.read()
    await flow.until(lambda: all_read(flow, 2 * ROWS))
    await check_chain(flow, ids)


async def test_a_quiet_stream_is_only_asked_whether_it_has_a_row(flow: Flow) -> None:
    flow.source.database.network = flow.network
    ids = flow.stock(ROWS)
    flow.read(A)
    await flow.until(lambda: len(flow.batches(A)) == ROWS // SHARDS // 10)
    await flow.clock.advance(QUIET_AFTER_S + QUIET_POLL_S)
    flow.faults.seen.clear()
    await flow.clock.advance(5 * QUIET_POLL_S)
    assert flow.faults.seen["rows_after"] == 0
    assert 4 <= flow.faults.seen["any_after"] <= 6
    ids += flow.stock(ROWS, seed=2)
    await flow.until(lambda: len(rows_of(flow.batches(A))) == len(ids) // SHARDS)


async def test_told_to_stop_a_reader_ends(flow: Flow) -> None:
    flow.stock(ROWS)
    stop = asyncio.Event()
    task = asyncio.create_task(flow.reader(A).run(stop))
    await flow.until(lambda: len(flow.batches(A)) == ROWS // SHARDS // 10)
    stop.set()
    await flow.clock.until(task)


@pytest.mark.parametrize("name", ["Produce", "TxnOffsetCommit", "EndTxn"])
@pytest.mark.parametrize("moment", Moment)
async def test_a_transaction_that_gets_no_answer_loses_and_repeats_nothing(
    flow: Flow, name: str, moment: Moment
) -> None:
    ids = flow.stock(ROWS)
    flow.faults.planned = [Fault(name, moment, client="reader-payouts-0"), Fault(name, moment, client="payouts-1")]
    flow.read()
    await flow.until(lambda: all_read(flow, ROWS))
    await flow.clock.advance(5)
    assert flow.faults.planned == []
    await check_chain(flow, ids)


async def test_an_aborted_batch_is_made_again_of_the_same_bytes(flow: Flow) -> None:
    flow.stock(10)
    flow.faults.planned = [Fault("EndTxn", Moment.BEFORE, client="reader")]
    flow.read(A)
    await flow.until(lambda: len(flow.batches(A)) == 1)
    partition = flow.broker.partition(BATCHES, A.shard)
    written = [entry.message.value for entry in partition.entries if entry.message is not None]
    assert len(written) == 2
    assert written[0] == written[1]


async def test_a_commit_that_arrives_late_meets_a_new_epoch(flow: Flow) -> None:
    ids = flow.stock(ROWS)
    flow.faults.planned = [Fault("EndTxn", Moment.BEFORE, delay_s=10.2, client="reader")]
    flow.read()
    await flow.until(lambda: all_read(flow, ROWS))
    await flow.clock.advance(20)
    await check_chain(flow, ids)


async def test_a_slow_commit_is_followed_by_a_new_client(flow: Flow) -> None:
    ids = flow.stock(ROWS)
    flow.faults.planned = [Fault("EndTxn", Moment.AFTER, delay_s=6.0, client="reader-payouts-0")]
    flow.read(settings=ReaderSettings(batch_rows_max=2))
    await flow.until(lambda: all_read(flow, ROWS))
    await check_chain(flow, ids)
    assert flow.broker.producers["local-reader-payouts-0"].epoch == 2
    assert flow.broker.producers["local-reader-payouts-1"].epoch == 1


async def test_a_second_reader_of_a_stream_fences_the_first(flow: Flow) -> None:
    ids = flow.stock(ROWS)
    [first] = flow.read(A)
    await flow.until(lambda: bool(flow.batches(A)))
    flow.read()
    await flow.clock.advance(1)
    flow.tasks.remove(first)
    ids += flow.stock(ROWS, seed=2)
    with pytest.raises(ProducerFenced):
        await flow.clock.until(first)
    await flow.until(lambda: all_read(flow, 2 * ROWS))
    await check_chain(flow, ids)


async def test_rows_of_another_database_are_refused(flow: Flow) -> None:
    flow.stock(ROWS)
    [first] = flow.read(A)
    await flow.until(lambda: bool(flow.batches(A)))
    first.cancel()
    before = len(flow.seen(BATCHES))
    flow.source.system = "7999000000000000001"
    with pytest.raises(StreamHalted):
        await flow.clock.until(flow.reader(A).run(asyncio.Event()))
    assert len(flow.seen(BATCHES)) == before


async def test_a_cursor_that_is_behind_what_was_assigned_is_refused(flow: Flow) -> None:
    ids = flow.stock(ROWS)
    readers = flow.read()
    flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    for task in readers:
        task.cancel()
    # As if Kafka had come back from a backup: the position is that of an earlier batch.
    group = flow.broker.group("local-reader-payouts-0")
    group.offsets.clear()
    flow.broker.partition(BATCHES, A.shard).entries[:] = flow.broker.partition(BATCHES, A.shard).entries[:1]
    with pytest.raises(StreamHalted):
        await flow.clock.until(flow.reader(A).run(asyncio.Event()))
    assert flow.signed_ids() == sorted(ids)


async def test_without_its_offset_the_reader_goes_on_from_the_last_batch(flow: Flow) -> None:
    ids = flow.stock(ROWS)
    readers = flow.read()
    await flow.until(lambda: all_read(flow, ROWS))
    for task in readers:
        task.cancel()
    for shard in range(SHARDS):
        del flow.broker.groups[f"local-reader-payouts-{shard}"]
    ids += flow.stock(ROWS, seed=2)
    flow.read()
    await flow.until(lambda: all_read(flow, 2 * ROWS))
    await check_chain(flow, ids)


async def test_with_nothing_in_kafka_the_reader_goes_on_from_what_was_assigned(flow: Flow) -> None:
    ids = flow.stock(ROWS)
    readers = flow.read()
    running = flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(1)
    await flow.kill(running)
    for task in readers:
        task.cancel()
    for shard in range(SHARDS):
        del flow.broker.groups[f"local-reader-payouts-{shard}"]
        flow.broker.partition(BATCHES, shard).trim(flow.broker.group(GROUP).offsets[BATCHES, shard].offset)
    assert flow.seen(BATCHES) == []
    ids += flow.stock(ROWS, seed=2)
    flow.read()
    flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == 2 * ROWS)
    await flow.clock.advance(1)
    await flow.check_all_done(ids)


async def test_a_reader_holds_back_until_the_consumers_have_come_closer(flow: Flow) -> None:
    ids = flow.stock(ROWS)
    few = ReaderSettings(batch_rows_max=1, lag_records_max=4)
    flow.read(A, settings=few)
    await flow.clock.advance(5)
    held = len(flow.batches(A))
    assert 4 <= held < ROWS // SHARDS
    assert flow.broker.group(GROUP).offsets[BATCHES, 0].metadata == "0"
    flow.consume()
    await flow.until(lambda: len(flow.batches(A)) == ROWS // SHARDS)
    assert rows_of(flow.batches(A)) == [i for i in ids if i % SHARDS == 0]


async def test_a_source_or_a_broker_that_is_away_is_waited_for(flow: Flow) -> None:
    ids = flow.stock(ROWS)
    flow.source.database.down = True
    flow.read()
    await flow.clock.advance(3)
    flow.source.database.down, flow.broker.down = False, True
    await flow.clock.advance(3)
    assert flow.batches(A) == []
    flow.broker.down = False
    await flow.until(lambda: all_read(flow, ROWS))
    await check_chain(flow, ids)


async def test_rows_that_commit_late_are_not_passed_over(flow: Flow) -> None:
    late = flow.source.begin()
    ids = [late.insert(flow.source.rows[i].row) for i in flow.stock(4, seed=3)]
    early = flow.stock(20)
    flow.read()
    await flow.clock.advance(2)
    assert not set(early) & set(rows_of(flow.batches(A) + flow.batches(B)))
    late.commit()
    await flow.until(lambda: all_read(flow, 28))
    read = rows_of(flow.batches(A) + flow.batches(B))
    assert set(read) >= {*ids, *early}
    assert len(read) == len(set(read)) == 28


POSITION = ReaderPosition(3, Cursor(700, 1), "aa", "7001")
RECORD = StreamRecord(A, CHAIN, "7001", 3, Cursor(700, 1), "aa")


async def test_a_reader_does_not_wait_for_batches_that_a_topic_made_anew_does_not_hold(flow: Flow) -> None:
    ids = flow.stock(ROWS)
    few = ReaderSettings(batch_rows_max=1, lag_records_max=4)
    readers = flow.read(settings=few)
    running = flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(1)
    await flow.kill(running)
    for task in readers:
        task.cancel()
    offsets = flow.broker.group(GROUP).offsets
    for shard in range(SHARDS):
        del flow.broker.groups[f"local-reader-payouts-{shard}"]
        flow.broker.partition(BATCHES, shard).trim(offsets[BATCHES, shard].offset)
        offsets[BATCHES, shard] = replace(offsets[BATCHES, shard], metadata="0")  # as `recover --from-start` sets it
    ids += flow.stock(ROWS, seed=2)
    flow.read(settings=few)
    flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == 2 * ROWS)
    await flow.clock.advance(1)
    await flow.check_all_done(ids)


def test_a_position_fits_what_was_assigned_or_is_ahead_of_it() -> None:
    check_position(A, POSITION, RECORD, "7001")
    check_position(A, replace(POSITION, seq=4, digest="bb"), RECORD, "7001")


@pytest.mark.parametrize(
    ("position", "system_id", "said"),
    [
        (POSITION, "7002", "belongs to Postgres 7001"),
        (replace(POSITION, system_id="7002"), "7001", "belongs to Postgres 7002"),
        (replace(POSITION, seq=2), "7001", "batch 3 has been assigned"),
        (replace(POSITION, digest="bb"), "7001", "not the one that was assigned"),
    ],
)
def test_a_position_that_cannot_be_right_is_refused(position: ReaderPosition, system_id: str, said: str) -> None:
    with pytest.raises(StreamHalted, match=said):
        check_position(A, position, RECORD, system_id)

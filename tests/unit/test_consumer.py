"""The consumer over twins: whatever happens to a round, every row is signed and published once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from pipeline.assignment.records import KeyState
from pipeline.errors import (
    DatabaseUnavailable,
    LedgerRefused,
    NotLeader,
    OncesignError,
    ProducerFenced,
    StoreUnavailable,
)
from pipeline.ethereum.batch import Batch
from pipeline.settings import PoolSettings
from pipeline.stages.consumer import ASSIGN_DEADLINE_S
from pipeline.stages.sweeper import SWEEP_AGE_S
from pipeline.stream import Stream
from pipeline.testing.network import Moment
from tests.unit.flow_world import (
    BATCHES,
    GROUP,
    SECRETS,
    SHARDS,
    SIGNED,
    A,
    B,
    Fault,
    Flow,
    elsewhere,
    other_digest,
)

ROWS = 100


@pytest.fixture
async def flow() -> AsyncIterator[Flow]:
    made = Flow()
    yield made
    await made.end()


async def read(flow: Flow, keys: int = 2, rows: int = ROWS) -> list[int]:
    """Keys, and rows in batches of ten on both streams."""
    await flow.start(keys)
    ids = flow.stock(rows)
    flow.read()
    await flow.until(lambda: sum(batch.rows.num_rows for batch in flow.batches(A) + flow.batches(B)) == rows)
    return ids


async def test_every_row_is_signed_once_and_every_key_comes_back(flow: Flow) -> None:
    ids = await read(flow)
    flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(1)
    await flow.check_all_done(ids)
    progress = await flow.clock.until(flow.log.progress(BATCHES))
    assert {shard: at.seq for shard, at in progress.items()} == {0: 5, 1: 5}


@pytest.mark.parametrize("name", ["Produce", "TxnOffsetCommit"])
@pytest.mark.parametrize("moment", Moment)
async def test_an_aborted_round_is_read_again_and_gives_the_same_bytes(flow: Flow, name: str, moment: Moment) -> None:
    ids = await read(flow)
    flow.faults.planned = [Fault(name, moment, client="consumer")]
    running = flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(1)
    assert running.consumer.count.rounds_aborted == 1
    assert max(len(made) for made in flow.pool.made.values()) > 1
    await flow.check_all_done(ids)


@pytest.mark.parametrize("moment", Moment)
async def test_a_commit_without_an_answer_is_settled_by_reading_again(flow: Flow, moment: Moment) -> None:
    ids = await read(flow)
    flow.faults.planned = [Fault("EndTxn", moment, client="consumer")]
    flow.consume()
    await flow.until(lambda: not flow.faults.planned)
    await flow.clock.advance(SWEEP_AGE_S + 1)
    # What was published by the commit that nobody heard of is for the sweeper to release.
    happened = moment is Moment.AFTER
    assert len(await flow.assignments()) == (2 if happened else 0)
    assert (await flow.sweep()).count.released == (2 if happened else 0)
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(1)
    await flow.check_all_done(ids)


async def test_a_commit_that_arrives_late_meets_a_new_epoch(flow: Flow) -> None:
    ids = await read(flow)
    flow.faults.planned = [Fault("EndTxn", Moment.BEFORE, delay_s=10.5, client="consumer")]
    flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(20)
    await flow.sweep()
    await flow.check_all_done(ids)


async def test_after_a_slow_commit_nothing_is_released_by_the_consumer(flow: Flow) -> None:
    ids = await read(flow, rows=20)
    flow.faults.planned = [Fault("EndTxn", Moment.AFTER, delay_s=5.0, client="consumer")]
    flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == 20)
    await flow.clock.advance(SWEEP_AGE_S + 6)
    left = await flow.assignments()
    assert left
    assert not {(a.stream, a.seq) for a in left} & set(getattr(flow.desk, "released", []))
    assert KeyState.LOCKED in {key.state for key in await flow.keys()}
    assert (await flow.sweep()).count.released == len(left)
    await flow.check_all_done(ids)


async def test_a_second_member_takes_over_and_nothing_is_signed_twice(flow: Flow) -> None:
    ids = await read(flow)
    flow.pool.gate.clear()
    first = flow.consume(0)
    await flow.until(lambda: flow.pool.waiting == 2)
    second = flow.consume(1)
    await flow.until(lambda: all(len(r.subscription.assigned()) == SHARDS // 2 for r in (first, second)))
    flow.pool.gate.set()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(1)
    assert first.consumer.count.batches + second.consumer.count.batches == 10
    assert min(first.consumer.count.batches, second.consumer.count.batches) > 0
    await flow.check_all_done(ids)


async def test_work_of_an_older_generation_is_thrown_away(flow: Flow) -> None:
    ids = await read(flow)
    flow.pool.gate.clear()
    first = flow.consume(0)
    await flow.until(lambda: flow.pool.waiting == 2)
    before = {(a.stream, a.seq): a for a in await flow.assignments()}
    second = flow.consume(1)
    await flow.until(lambda: bool(second.subscription.assigned()))
    await flow.kill(second)  # so that the first has everything again, under a later epoch
    flow.pool.gate.set()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(1)
    assert first.consumer.count.rounds_aborted <= 1
    for record in flow.signed():
        made = before.get((record.header.stream, record.header.seq))
        assert made is None or (made.address, made.first_nonce) == (record.header.sender, record.header.first_nonce)
    await flow.check_all_done(ids)


async def test_a_consumer_that_dies_in_the_middle_of_a_round_is_replaced(flow: Flow) -> None:
    ids = await read(flow)
    flow.faults.planned = [Fault("EndTxn", Moment.BEFORE, delay_s=3.0, client="consumer")]
    first = flow.consume()
    await flow.until(lambda: flow.faults.seen["EndTxn"] > 2 and not flow.faults.planned)
    await flow.kill(first)
    flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(SWEEP_AGE_S + 1)
    await flow.sweep()
    await flow.check_all_done(ids)


async def test_a_consumer_whose_slot_was_taken_over_ends(flow: Flow) -> None:
    await read(flow)
    flow.pool.gate.clear()
    running = flow.consume()
    await flow.until(lambda: flow.pool.waiting > 0)
    flow.tasks.remove(running.task)
    flow.broker.init_producer("local-consumer-0", 10.0)
    flow.pool.gate.set()
    with pytest.raises(ProducerFenced):
        await flow.clock.until(running.task)
    assert flow.signed() == []


# ── halts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda _: b"not arrow", "rrow"),
        (elsewhere, "unknown stream strange/0"),
        (other_digest, "digest"),
    ],
    ids=["not Arrow", "unknown stream", "other digest"],
)
async def test_a_record_that_is_no_batch_halts_its_stream_alone(
    flow: Flow, spoil: Callable[[Batch], bytes], said: str
) -> None:
    ids = await read(flow, rows=40)
    [first, *_] = flow.batches(A)
    running = flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == 40)
    flow.broker.append(BATCHES, A.shard, b"", spoil(first))
    more = flow.stock(40, seed=2)
    await flow.until(lambda: {more[i] for i in range(40) if more[i] % SHARDS == B.shard} <= set(flow.signed_ids()))
    await flow.clock.advance(2)
    assert (BATCHES, A.shard) in running.consumer.halted
    assert said in (await flow.stream(A)).halted
    assert not (await flow.stream(B)).halted
    await flow.check_all_done([*ids, *(i for i in more if i % SHARDS == B.shard)])


@pytest.mark.parametrize("error", [NotLeader(), StoreUnavailable("connection refused")], ids=["no leader", "no etcd"])
async def test_a_halt_that_cannot_be_written_down_is_tried_again(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, error: OncesignError
) -> None:
    await read(flow, rows=40)
    flow.broker.append(BATCHES, A.shard, b"", b"not arrow")
    failures = [error] * 3
    halt = flow.desk.halt

    async def fails_first(stream: Stream, reason: str) -> None:
        if failures:
            raise failures.pop()
        await halt(stream, reason)

    monkeypatch.setattr(flow.desk, "halt", fails_first)
    running = flow.consume()
    await flow.until(lambda: (BATCHES, A.shard) in running.consumer.halted and not failures)
    await flow.until(lambda: {i for i in range(1, 41) if i % SHARDS == B.shard} <= set(flow.signed_ids()))
    await flow.clock.advance(1)
    assert "Arrow" in (await flow.stream(A)).halted
    assert not running.task.done()
    await flow.check_once()


async def test_what_is_ahead_of_a_bad_record_and_has_a_key_is_finished(flow: Flow) -> None:
    ids = await read(flow, keys=8, rows=40)
    flow.pool.gate.clear()
    running = flow.consume()
    await flow.until(lambda: flow.pool.waiting == 4)
    flow.broker.append(BATCHES, A.shard, b"", b"not arrow")
    await flow.until(lambda: bool(running.consumer.halted))
    flow.pool.gate.set()
    await flow.until(lambda: len(flow.signed_ids()) == 40)
    await flow.clock.advance(1)
    await flow.check_all_done(ids)
    end = flow.broker.partition(BATCHES, A.shard).end
    progress = await flow.clock.until(flow.log.progress(BATCHES))
    assert progress[A.shard].offset < end - 1  # the bad record was not passed


async def test_a_refusing_ledger_halts_the_stream_and_no_key_is_freed(flow: Flow) -> None:
    await read(flow, rows=40)
    flow.pool.failures = [LedgerRefused("payouts/0", 1, "somebody signed this")]
    running = flow.consume()
    await flow.until(lambda: bool(running.consumer.halted))
    await flow.clock.advance(2)
    [halted] = running.consumer.halted_streams()
    assert "somebody signed this" in (await flow.stream(halted)).halted
    other = B if halted == A else A
    assert {record.header.stream for record in flow.signed()} == {other}
    assert {a.stream for a in await flow.assignments()} == {halted}
    await flow.check_once()


async def test_an_offset_that_kafka_lost_halts_its_partition_alone(flow: Flow) -> None:
    ids = await read(flow)
    flow.broker.partition(BATCHES, A.shard).trim(4)
    running = flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS / 2 and bool(running.consumer.halted))
    await flow.clock.advance(1)
    assert running.consumer.halted.keys() == {(BATCHES, A.shard)}
    await flow.check_all_done([i for i in ids if i % SHARDS == B.shard])


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_without_a_free_key_it_waits_and_goes_on_polling(flow: Flow) -> None:
    flow.settings = PoolSettings(buffered_batches_max=2)
    ids = await read(flow, keys=0)
    running = flow.consume()
    await flow.clock.advance(5)
    assert flow.signed() == []
    assert running.consumer.count.waiting_for_key > 0
    polls, fetches = flow.faults.seen["ConsumerGroupHeartbeat"], flow.faults.seen["Fetch"]
    await flow.clock.advance(5)
    assert flow.faults.seen["ConsumerGroupHeartbeat"] > polls + 5
    assert flow.faults.seen["Fetch"] == fetches  # both partitions are full, so they are paused
    await flow.add_keys(SECRETS[0])
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(1)
    await flow.check_all_done(ids)
    assert len({record.header.sender for record in flow.signed()}) == 1


async def test_a_signer_that_fails_is_asked_again(flow: Flow) -> None:
    ids = await read(flow)
    flow.pool.failures = [DatabaseUnavailable("gone for a moment") for _ in range(3)]
    flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(1)
    await flow.check_all_done(ids)


async def test_a_broker_that_is_away_is_waited_for(flow: Flow) -> None:
    ids = await read(flow)
    flow.pool.gate.clear()
    flow.consume()
    await flow.until(lambda: flow.pool.waiting > 0)
    flow.broker.down = True
    flow.pool.gate.set()
    await flow.clock.advance(8)
    assert flow.signed() == []
    flow.broker.down = False
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(SWEEP_AGE_S + 1)
    await flow.sweep()
    await flow.check_all_done(ids)


@pytest.mark.parametrize("skip", range(4))
@pytest.mark.parametrize("name", ["InitProducerId", "OffsetFetch"])
async def test_a_broker_that_is_away_at_any_moment_of_joining_is_waited_for(flow: Flow, name: str, skip: int) -> None:
    ids = await read(flow)
    flow.faults.planned = [Fault(name, Moment.BEFORE, client="consumer", skip=skip)]
    flow.consume(0)
    flow.consume(1)
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(1)
    assert flow.faults.planned == []
    await flow.check_all_done(ids)


# ── ending ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_told_to_stop_it_finishes_what_has_a_key(flow: Flow) -> None:
    await read(flow)
    flow.pool.gate.clear()
    running = flow.consume()
    await flow.until(lambda: flow.pool.waiting == 2)
    running.stop.set()
    await flow.clock.advance(ASSIGN_DEADLINE_S + 1)  # what was asked for before is not given a key any more
    assert not running.task.done()
    assert len(await flow.assignments()) == 2
    flow.pool.gate.set()
    await flow.clock.until(running.task)
    assert len(flow.signed()) == 2
    assert await flow.assignments() == []
    assert {key.state for key in await flow.keys()} == {KeyState.FREE}
    await flow.check_once()
    await flow.clock.advance(5)
    assert len(flow.signed()) == 2  # nothing new was begun


async def test_an_idle_consumer_stops_at_once(flow: Flow) -> None:
    await flow.start()
    running = flow.consume()
    await flow.clock.advance(2)
    running.stop.set()
    await flow.clock.until(running.task)
    assert flow.signed() == []
    assert flow.broker.group(GROUP).offsets[BATCHES, 0].offset == 0
    assert SIGNED in flow.broker.topics


async def test_a_stop_is_not_awaited_for_ever(flow: Flow) -> None:
    await read(flow)
    flow.pool.gate.clear()
    running = flow.consume()
    await flow.until(lambda: flow.pool.waiting == 2)
    running.stop.set()
    await asyncio.wait_for(flow.clock.until(running.task), 30)
    assert flow.signed() == []
    assert len(await flow.assignments()) == 2  # bound for ever; the next consumer inherits them
    flow.pool.gate.set()
    await flow.kill(running)
    flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.check_once()

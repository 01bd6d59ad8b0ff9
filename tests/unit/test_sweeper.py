"""The sweeper over twins: what was published is released, what Kafka lost is published again, the rest left alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from pipeline.assignment.records import KeyState
from pipeline.ethereum.signed import SignedRecord
from pipeline.stages.sweeper import SWEEP_AGE_S
from pipeline.testing.group import Committed, Generation
from pipeline.testing.network import Moment
from pipeline.testing.transactions import TRANSACTION_TIMEOUT_S
from tests.unit.flow_world import BATCHES, GROUP, SIGNED, A, B, Fault, Flow

ROWS = 20


@pytest.fixture
async def flow() -> AsyncIterator[Flow]:
    """A batch on each stream."""
    made = Flow()
    await made.start()
    made.ids = made.stock(ROWS)
    made.read()
    await made.until(lambda: len(made.seen(BATCHES)) == 2)
    yield made
    await made.end()


async def unreleased(flow: Flow) -> None:
    """Published by a commit that was too slow to be certain."""
    flow.faults.planned = [Fault("EndTxn", Moment.AFTER, delay_s=5.0, client="consumer")]
    running = flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS and not flow.faults.planned)
    await flow.clock.advance(6)
    await flow.kill(running)
    assert len(await flow.assignments()) == 2


async def unpublished(flow: Flow) -> None:
    """Assigned and signed, and the process died before it could publish."""
    flow.faults.planned = [Fault("TxnOffsetCommit", Moment.BEFORE, delay_s=3.0, client="consumer")]
    running = flow.consume()
    await flow.until(lambda: len(flow.pool.made) == 2 and not flow.faults.planned)
    await flow.kill(running)
    await flow.clock.advance(20)
    assert flow.signed() == []
    assert len(await flow.assignments()) == 2


def passed_over(flow: Flow) -> None:
    """The consumers' offsets are set forward by hand, or by a Kafka that came back from a backup."""
    ends = {(BATCHES, s.shard): Committed(flow.broker.partition(BATCHES, s.shard).end, "1") for s in (A, B)}
    flow.broker.group(GROUP).commit(Generation(GROUP), ends)


async def test_what_was_published_is_released(flow: Flow) -> None:
    await unreleased(flow)
    made = await flow.sweep()
    assert (made.count.released, made.count.signed_again) == (2, 0)
    await flow.check_all_done(flow.ids)


async def test_what_is_young_is_left_alone(flow: Flow) -> None:
    await unreleased(flow)
    flow.clock.set_unix_ms((await flow.assignments())[0].since_unix_ms + int(SWEEP_AGE_S * 500))
    assert (await flow.sweep()).count.released == 0
    assert len(await flow.assignments()) == 2


async def test_what_kafka_delivers_again_is_left_alone(flow: Flow) -> None:
    await unpublished(flow)
    made = await flow.sweep()
    assert (made.count.released, made.count.signed_again) == (0, 0)
    assert flow.signed() == []
    flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(1)
    await flow.check_all_done(flow.ids)


@pytest.mark.parametrize("kept", [True, False], ids=["as Kafka has it", "as Postgres has it"])
async def test_what_kafka_lost_is_signed_again_to_the_same_bytes(flow: Flow, *, kept: bool) -> None:
    await unpublished(flow)
    passed_over(flow)
    if not kept:
        for stream in (A, B):
            flow.broker.partition(BATCHES, stream.shard).trim(10**6)
    first = {batch: set(made) for batch, made in flow.pool.made.items()}
    made = await flow.sweep()
    assert made.count.signed_again == 2
    for message in flow.seen(SIGNED):
        header = SignedRecord.decode(message.value).header
        assert first[header.stream, header.seq] == {message.value}
    await flow.check_all_done(flow.ids)
    assert (await flow.sweep()).count.signed_again == 0


async def test_a_batch_that_nobody_has_any_more_halts_its_stream(flow: Flow) -> None:
    await unpublished(flow)
    passed_over(flow)
    flow.broker.partition(BATCHES, A.shard).trim(10**6)
    del flow.source.rows[next(i for i in flow.ids if i % 2 == A.shard)]
    assert (await flow.sweep()).count.signed_again == 1
    assert "no longer in Kafka or Postgres" in (await flow.stream(A)).halted
    assert not (await flow.stream(B)).halted
    assert {record.header.stream for record in flow.signed()} == {B}
    assert KeyState.LOCKED in {key.state for key in await flow.keys()}


async def test_what_an_open_transaction_may_still_publish_is_not_signed_again(flow: Flow) -> None:
    flow.faults.planned = [Fault("TxnOffsetCommit", Moment.BEFORE, delay_s=60.0, client="consumer")]
    flow.pool.gate.clear()
    running = flow.consume()
    await flow.until(lambda: flow.pool.waiting == 2)
    flow.pool.gate.set()
    await flow.until(lambda: not flow.faults.planned)
    await flow.kill(running)
    passed_over(flow)
    await flow.clock.advance(SWEEP_AGE_S + 1)
    assert (await flow.sweep()).count.signed_again == 0
    await flow.clock.advance(TRANSACTION_TIMEOUT_S)  # then the broker aborts it
    await flow.sweep()
    await flow.check_all_done(flow.ids)


async def test_what_was_committed_and_is_not_yet_marked_is_not_signed_again(flow: Flow) -> None:
    flow.broker.markers_held = True
    flow.faults.planned = [Fault("EndTxn", Moment.AFTER, delay_s=3.0, client="consumer")]
    running = flow.consume()
    await flow.until(lambda: not flow.faults.planned)
    await flow.kill(running)
    sworn = await flow.assignments()
    assert sworn
    flow.faults.seen.clear()
    flow.sweep_for(60)
    await flow.clock.advance(SWEEP_AGE_S + 20)
    assert flow.faults.seen["Produce"] == 0
    assert await flow.assignments() == sworn
    flow.broker.write_markers()
    await flow.clock.advance(30)
    flow.broker.markers_held = False
    flow.consume()
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(1)
    await flow.check_all_done(flow.ids)


@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize("name", ["Produce", "EndTxn"])
async def test_a_sweep_that_fails_is_made_good_by_the_next(flow: Flow, name: str, moment: Moment) -> None:
    await unpublished(flow)
    passed_over(flow)
    flow.faults.planned = [Fault(name, moment, client="sweeper")]
    flow.sweep_for(10)
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(10)
    await flow.check_all_done(flow.ids)


async def test_a_second_sweeper_does_not_sign_what_the_first_has_under_way(flow: Flow) -> None:
    await unpublished(flow)
    passed_over(flow)
    flow.faults.planned = [Fault("EndTxn", Moment.BEFORE, delay_s=3.0, client="sweeper")]
    flow.sweep_for(10)
    await flow.until(lambda: flow.faults.seen["Produce"] > 4)
    flow.sweep_for(10)
    await flow.until(lambda: len(flow.signed_ids()) == ROWS)
    await flow.clock.advance(10)
    await flow.check_all_done(flow.ids)


async def test_what_the_last_sweeper_published_meanwhile_is_not_published_again(flow: Flow) -> None:
    await unpublished(flow)
    passed_over(flow)
    flow.faults.planned = [
        Fault("Produce", Moment.BEFORE, delay_s=1.0, client="sweeper"),
        Fault("EndTxn", Moment.AFTER, client="sweeper"),  # published, and the first sweeper does not know
        Fault("InitProducerId", Moment.BEFORE, delay_s=3.0, client="sweeper", skip=1),
    ]
    flow.sweep_for(1.5)
    await flow.clock.advance(0.25)
    flow.sweep_for(20)
    await flow.until(lambda: len(flow.signed_ids()) >= ROWS)
    await flow.clock.advance(20)
    assert flow.faults.planned == []
    await flow.check_all_done(flow.ids)


async def test_what_tx_signed_no_longer_tells_is_left_alone_and_stops_no_other(flow: Flow) -> None:
    """Without the records since it was assigned, nobody can say that a batch was not published."""
    await unpublished(flow)
    passed_over(flow)
    left, swept = sorted(await flow.assignments(), key=lambda a: a.stream)
    number = int(left.address[-8:], 16) % 2
    assert number != int(swept.address[-8:], 16) % 2
    flow.broker.partition(SIGNED, number).trim(1)  # what the dead process wrote there was aborted
    assert (await flow.sweep()).count.signed_again == 1
    assert await flow.assignments() == [left]
    await flow.check_once()


async def test_a_record_of_another_digest_halts_the_stream(flow: Flow) -> None:
    await unpublished(flow)
    [a] = [a for a in await flow.assignments() if a.stream == A]
    wrong = SignedRecord.decode(flow.pool.made[A, 1][0])
    header = type(wrong.header)(**{**{n: getattr(wrong.header, n) for n in wrong.header.__slots__}, "digest": "f" * 64})
    partition = int(a.address[-8:], 16) % 2
    flow.broker.append(SIGNED, partition, b"", SignedRecord(header, wrong.rows).encode())
    await flow.sweep()
    assert "another digest" in (await flow.stream(A)).halted
    assert a in await flow.assignments()  # its own record is not there: the key stays with it
    assert KeyState.LOCKED in {key.state for key in await flow.keys()}

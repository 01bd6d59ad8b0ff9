"""The verifier as it follows the topics: goes on, looks again, waits, and notices what Kafka lost."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.errors import BusUnavailable, DatabaseUnavailable
from pipeline.stages.violation import ViolationKind
from pipeline.testing.clock import TwinClock
from tests.published import SECRETS, SIGNED, Publisher, all_but_last, findings, kinds, tables, verifier


@pytest.fixture
def publisher() -> Publisher:
    made = Publisher()
    made.stock(60)
    return made


async def test_it_goes_on_where_it_ended(publisher: Publisher) -> None:
    await publisher.honest(0, 30)
    kept = tables(publisher)
    first = verifier(publisher, kept)
    await first.catch_up()
    await publisher.honest(1, 30, SECRETS[1])
    second = verifier(publisher, kept)
    assert await findings(publisher, second) == []
    assert (first.count.signed, second.count.signed) == (30, 30)


async def test_looking_again_from_the_start_finds_nothing_new(publisher: Publisher) -> None:
    publisher.publish(await all_but_last(publisher))
    kept = tables(publisher)
    assert await findings(publisher, verifier(publisher, kept)) == []
    kept.next_offsets.clear()
    assert await findings(publisher, verifier(publisher, kept)) == []


async def test_catching_up_does_not_wait_for_what_comes_meanwhile(publisher: Publisher) -> None:
    await publisher.honest(0, 10)
    made = verifier(publisher)

    task = asyncio.create_task(made.catch_up())
    for _ in range(6):  # it has asked where the topics end, and has not looked at a record yet
        await asyncio.sleep(0)
    assert made.count.signed == 0
    await publisher.honest(0, 10)
    await task
    assert made.count.signed == 10
    await made.catch_up()
    assert made.count.signed == 20


async def test_records_that_kafka_dropped_unseen_are_a_finding(publisher: Publisher) -> None:
    await publisher.honest(0, 10)
    await publisher.honest(0, 20)
    await publisher.honest(1, 30, SECRETS[1])
    publisher.broker.partition(SIGNED, 0).trim(2)
    found = kinds(await findings(publisher))
    assert {ViolationKind.RECORDS_GONE, ViolationKind.ROW_WITHOUT_OUTCOME} <= found


async def test_a_topic_that_was_made_anew_is_a_finding(publisher: Publisher) -> None:
    await publisher.honest(0, 30)
    await publisher.honest(1, 30, SECRETS[1])
    kept = tables(publisher)
    assert await findings(publisher, verifier(publisher, kept)) == []
    publisher.broker.delete_topic(SIGNED)
    publisher.broker.create_topic(SIGNED, 2)
    assert kinds(await findings(publisher, verifier(publisher, kept))) == {ViolationKind.RECORDS_GONE}


async def test_beside_a_running_pipeline_what_is_under_way_is_no_finding(publisher: Publisher) -> None:
    await publisher.honest(0, 10)
    made = verifier(publisher, clock=TwinClock())
    assert await made.reconcile_running() == []


async def test_beside_a_running_pipeline_a_sworn_batch_has_time_to_appear(publisher: Publisher) -> None:
    record = await all_but_last(publisher)
    clock = TwinClock()
    looking = asyncio.create_task(verifier(publisher, clock=clock).reconcile_running())
    await clock.advance(5)
    assert not looking.done()
    publisher.publish(record)
    await clock.until(looking)
    assert looking.result() == []


async def test_beside_a_running_pipeline_a_sworn_batch_that_never_appears_is_a_finding(publisher: Publisher) -> None:
    await all_but_last(publisher)
    clock = TwinClock()
    looking = asyncio.create_task(verifier(publisher, clock=clock).reconcile_running())
    await clock.until(looking)
    assert kinds(looking.result()) == {ViolationKind.BATCH_NOT_PUBLISHED, ViolationKind.NONCE_GAP}


async def test_it_waits_out_a_server_that_is_away(publisher: Publisher) -> None:
    publisher.publish(await all_but_last(publisher))
    clock, stop = TwinClock(), asyncio.Event()
    made = verifier(publisher, clock=clock)
    publisher.source.database.down = True
    task = asyncio.create_task(made.run(stop))
    await clock.advance(5)
    assert made.count.signed == 0
    publisher.source.database.down = False
    publisher.broker.down = True
    await clock.advance(5)
    publisher.broker.down = False
    await clock.advance(10)
    assert made.count.signed == 60
    stop.set()
    await clock.until(task)
    assert await made.reconcile() == []


@pytest.mark.parametrize("part", ["broker", "source", "ledger"])
async def test_it_gives_up_with_the_name_of_what_is_away(publisher: Publisher, part: str) -> None:
    publisher.publish(await all_but_last(publisher))
    clock = TwinClock()
    made = verifier(publisher, clock=clock)
    server = publisher.broker if part == "broker" else getattr(publisher, part).database
    server.down = True
    with pytest.raises(BusUnavailable if part == "broker" else DatabaseUnavailable):
        await clock.until(made.run(asyncio.Event()))

"""Topics as whoever reads them outside any group sees them: what is committed, where it ends, how far others came."""

from __future__ import annotations

import pytest

from pipeline.errors import BusUnavailable
from pipeline.ports import Outgoing, Progress
from tests.bus import Bus, scanned, stable


async def test_an_empty_topic_begins_and_ends_at_nothing(bus: Bus) -> None:
    log = bus.log()
    assert await log.ends(bus.signed) == (0, 0)
    assert await log.starts(bus.signed) == (0, 0)
    assert await scanned(log, bus.signed, 0) == []


async def test_every_committed_record_is_found_in_order(bus: Bus) -> None:
    for i in range(5):
        await bus.append(bus.signed, 1, b"%d" % i)
    log = bus.log()
    assert await scanned(log, bus.signed, 1) == [b"0", b"1", b"2", b"3", b"4"]
    assert await scanned(log, bus.signed, 0) == []


async def test_the_marker_of_a_transaction_takes_an_offset(bus: Bus) -> None:
    await bus.append(bus.signed, 0, b"a")
    assert await stable(bus.log(), bus.signed) == (2, 0)


async def test_a_scan_keeps_to_its_bounds(bus: Bus) -> None:
    for value in (b"a", b"b", b"c"):
        await bus.append(bus.signed, 0, value)  # at 0, 2 and 4
    log = bus.log()
    assert await scanned(log, bus.signed, 0, 0, 2) == [b"a"]
    assert await scanned(log, bus.signed, 0, 1, 3) == [b"b"]
    assert await scanned(log, bus.signed, 0, 2, 3) == [b"b"]
    assert await scanned(log, bus.signed, 0, 3, 4) == []
    assert await scanned(log, bus.signed, 0, 4, 4) == []
    assert await scanned(log, bus.signed, 0, 0, 6) == [b"a", b"b", b"c"]


async def test_a_scan_that_was_left_early_does_not_disturb_the_next(bus: Bus) -> None:
    for value in (b"a", b"b", b"c"):
        await bus.append(bus.signed, 0, value)
    log = bus.log()
    async for message in log.scan(bus.signed, 0, 0, 6):
        assert message.value == b"a"
        break
    assert await scanned(log, bus.signed, 0, 2) == [b"b", b"c"]


async def test_an_open_transaction_is_seen_by_the_ends_alone(bus: Bus) -> None:
    await bus.append(bus.signed, 0, b"before")
    opened = await bus.begin([Outgoing(bus.signed, 0, b"", b"maybe")], "other")
    await bus.append(bus.signed, 0, b"after")
    log = bus.log()
    assert await log.ends(bus.signed, committed=True) == (2, 0)
    assert await log.ends(bus.signed, committed=False) == (5, 0)
    assert await scanned(log, bus.signed, 0, 0, 2) == [b"before"]
    await opened.end(commit=True)
    assert await stable(log, bus.signed) == (6, 0)
    assert await scanned(log, bus.signed, 0) == [b"before", b"maybe", b"after"]


async def test_an_aborted_transaction_leaves_nothing_to_read(bus: Bus) -> None:
    opened = await bus.begin([Outgoing(bus.signed, 0, b"", b"never"), Outgoing(bus.signed, 0, b"", b"ever")])
    await opened.end(commit=False)
    await bus.append(bus.signed, 0, b"good")
    log = bus.log()
    assert await stable(log, bus.signed) == (5, 0)
    assert await scanned(log, bus.signed, 0) == [b"good"]
    assert await scanned(log, bus.signed, 0, 0, 3) == []


async def test_what_retention_took_is_gone(bus: Bus) -> None:
    for value in (b"a", b"b", b"c"):
        await bus.append(bus.signed, 0, value)
    await bus.trim(bus.signed, 0, 2)
    log = bus.log()
    assert await log.starts(bus.signed) == (2, 0)
    assert await scanned(log, bus.signed, 0, 2) == [b"b", b"c"]
    with pytest.raises(BusUnavailable):
        await scanned(log, bus.signed, 0, 0)


async def test_progress_is_the_consumers_offset_and_seq(bus: Bus) -> None:
    log = bus.log()
    assert await log.progress(bus.batches) == {}
    await bus.set_offsets(bus.batches, {0: 7, 2: 0})
    assert await log.progress(bus.batches) == {0: Progress(7, 0), 2: Progress(0, 0)}


async def test_a_topic_that_is_not_there_is_an_error(bus: Bus) -> None:
    log = bus.log()
    with pytest.raises(BusUnavailable):
        await log.ends(f"{bus.signed}.none")
    with pytest.raises(BusUnavailable):
        await log.progress(f"{bus.signed}.none")

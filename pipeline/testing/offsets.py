"""What a client asks about a group's offsets and a partition's ends, over the in-memory broker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pipeline.errors import BusUnavailable
from pipeline.testing.broker import REQUEST_TIMEOUT_S, Broker
from pipeline.testing.group import Committed, TopicPartition
from pipeline.testing.network import Request
from pipeline.testing.refusal import Code, Refused

ASK_AGAIN_S: Final = 0.1


async def committed(
    broker: Broker, client: str, group: str, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, Committed]:
    """Offsets that no open transaction is changing; waited for. Raises BusUnavailable."""
    wanted = list(partitions)
    deadline_s = broker.clock.monotonic_s() + REQUEST_TIMEOUT_S
    while True:
        try:
            return await broker.call(Request("OffsetFetch", client), lambda: broker.group(group).stable(wanted))
        except Refused as refused:
            if refused.code is not Code.UNSTABLE or broker.clock.monotonic_s() >= deadline_s:
                raise BusUnavailable(str(refused)) from refused
        await broker.clock.sleep(ASK_AGAIN_S)


async def ends(broker: Broker, client: str, topic: str, *, stable: bool) -> tuple[int, ...]:
    """Last stable offsets, or high watermarks. Raises BusUnavailable."""

    def look() -> tuple[int, ...]:
        return tuple(log.last_stable if stable else log.end for log in broker.partitions(topic))

    try:
        return await broker.call(Request("ListOffsets", client), look)
    except Refused as refused:
        raise BusUnavailable(str(refused)) from refused


async def starts(broker: Broker, client: str, topic: str) -> tuple[int, ...]:
    """Log start offsets. Raises BusUnavailable."""

    def look() -> tuple[int, ...]:
        return tuple(log.start for log in broker.partitions(topic))

    try:
        return await broker.call(Request("ListOffsets", client), look)
    except Refused as refused:
        raise BusUnavailable(str(refused)) from refused

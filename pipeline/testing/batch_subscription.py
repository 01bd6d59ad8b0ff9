"""A member of the consumer group on tx.batches.*, over the in-memory broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.ports import Message
from pipeline.testing import offsets
from pipeline.testing.broker import Broker
from pipeline.testing.group import Generation, TopicPartition
from pipeline.testing.network import Request
from pipeline.testing.refusal import Code, Refused

HEARTBEAT_S: Final = 0.5
"""How often a member hears of a rebalance. A real one has 5 s, and is told sooner by a refused commit."""

NO_OFFSET: Final = -1001
"""How librdkafka writes "none"."""


class TwinBatchSubscription:
    """Fulfils ports.BatchSubscription. `member` is its id in the group, never used twice."""

    def __init__(self, broker: Broker, group: str, member: str, topics: Sequence[str]) -> None:
        self._broker = broker
        self._topics = list(topics)
        self._who = Generation(group, member, 0)
        self._owned: frozenset[TopicPartition] = frozenset()  #: by the group's word
        self._positions: dict[TopicPartition, int] = {}  #: of those that can be read
        self._paused: frozenset[TopicPartition] = frozenset()
        self._halted: dict[TopicPartition, str] = {}
        self._turn = 0
        self._heartbeat_at_s = 0.0

    async def poll(self, max_messages: int, timeout_s: float) -> Sequence[Message]:
        """See ports.BatchSubscription."""
        messages = await self._poll(max_messages, self._who)
        if not messages:
            await self._broker.clock.sleep(timeout_s)
        return messages

    def assigned(self) -> frozenset[tuple[str, int]]:
        """See ports.BatchSubscription."""
        return frozenset(self._positions)

    def halted(self) -> Mapping[tuple[str, int], str]:
        """See ports.BatchSubscription."""
        return dict(self._halted)

    async def pause(self, partitions: frozenset[tuple[str, int]]) -> None:
        """See ports.BatchSubscription."""
        self._paused = partitions & self.assigned()

    async def rewind(self, partitions: frozenset[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """See ports.BatchSubscription."""
        wanted = sorted(partitions & self.assigned())
        if not wanted:
            return {}
        found = await offsets.committed(self._broker, self._who.member, self._who.group, wanted)
        places = {p: found[p].offset if p in found else NO_OFFSET for p in wanted}
        self._positions |= {p: offset for p, offset in places.items() if offset >= 0 and p in self._positions}
        return places

    async def close(self) -> None:
        """See ports.BatchSubscription."""
        self._lose()
        try:
            await self._broker.call(Request("Leave", self._who.member), lambda: self._broker.leave(self._who))
        except Refused:
            return  # the group misses it after a while

    async def _poll(self, max_messages: int, generation: Generation) -> list[Message]:
        messages: list[Message] = []
        try:
            if self._broker.clock.monotonic_s() >= self._heartbeat_at_s:
                await self._serve_rebalance()
                self._heartbeat_at_s = self._broker.clock.monotonic_s() + HEARTBEAT_S
            for partition in self._in_turn():
                if len(messages) < max_messages and self._has_news(partition):
                    messages += await self._fetch(partition, max_messages - len(messages), generation)
        except Refused as refused:
            if refused.code is not Code.NO_ANSWER:
                raise
            # A client whose broker is away goes on asking, and its user sees no messages.
        return messages

    async def _fetch(self, partition: TopicPartition, most: int, generation: Generation) -> list[Message]:
        position = self._positions[partition]
        try:
            found, after = await self._broker.call(
                Request("Fetch", self._who.member), lambda: self._broker.fetch(*partition, position, most)
            )
        except Refused as refused:
            if refused.code is Code.OUT_OF_RANGE:
                self._halted[partition] = f"its next offset is gone from Kafka ({refused})"
            elif refused.code is Code.UNKNOWN_TOPIC:
                self._halted[partition] = "its topic is gone from Kafka"
            else:
                raise
            return []
        if self._positions.get(partition) != position:
            return []  # rewound or lost meanwhile
        self._positions[partition] = after
        return [Message(m.place, m.key, m.value, generation) for m in found]

    def _has_news(self, partition: TopicPartition) -> bool:
        """Whether a fetch would be answered before its time is up: with records, or an error."""
        logs = self._broker.topics.get(partition[0])
        return logs is None or logs[partition[1]].last_stable != self._positions[partition]

    def _in_turn(self) -> list[TopicPartition]:
        """What may be fetched from, another one first each time."""
        ready = sorted(self.assigned() - self._paused - self._halted.keys())
        self._turn += 1
        at = self._turn % len(ready) if ready else 0
        return ready[at:] + ready[:at]

    # ── the group ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _serve_rebalance(self) -> None:
        given = await self._heartbeat()
        gone = self._owned - given
        if gone:
            self._give_up(gone)
            await self._report_deleted(gone)
            given = await self._heartbeat()
        fresh = given - self._owned
        if fresh:
            # Only what has an offset of its own is read; the first one of a stream is set explicitly.
            found = await offsets.committed(self._broker, self._who.member, self._who.group, sorted(fresh))
            self._owned |= fresh
            self._positions |= {partition: at.offset for partition, at in found.items()}
            self._halted = {partition: reason for partition, reason in self._halted.items() if partition not in found}
            self._halted |= dict.fromkeys(fresh - found.keys(), "the consumer group has no offset for it")

    async def _report_deleted(self, gone: frozenset[TopicPartition]) -> None:
        topics = await self._broker.call(Request("Metadata", self._who.member), lambda: set(self._broker.topics))
        self._halted |= {p: "its topic is gone from Kafka" for p in gone if p[0] not in topics}

    async def _heartbeat(self) -> frozenset[TopicPartition]:
        for _ in range(2):
            who, owned = self._who, self._owned
            try:
                epoch, given = await self._broker.call(
                    Request("ConsumerGroupHeartbeat", who.member),
                    lambda: self._broker.heartbeat(who, self._topics, owned),  # noqa: B023 - awaited here
                )
            except Refused as refused:
                if refused.code not in (Code.UNKNOWN_MEMBER, Code.STALE_MEMBER):
                    raise
                self._lose()
            else:
                self._who = Generation(who.group, who.member, epoch)
                return given
        return frozenset()

    def _lose(self) -> None:
        """Everything is somebody else's now."""
        self._give_up(self._owned)
        self._who = Generation(self._who.group, self._who.member, 0)

    def _give_up(self, partitions: frozenset[TopicPartition]) -> None:
        self._owned -= partitions
        self._paused -= partitions
        for partition in partitions:
            self._positions.pop(partition, None)
            self._halted.pop(partition, None)

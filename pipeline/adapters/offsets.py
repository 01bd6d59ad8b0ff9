"""Committed group offsets, read and set from outside the group through the admin API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.adapters.kafka import CALL_TIMEOUT_S, ClientThread, client_config, unavailable
from pipeline.ports import Progress
from pipeline.settings import KafkaSettings


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed offset with its metadata."""

    offset: int
    metadata: str


def progress_of(committed: Committed) -> Progress:
    """A consumer's offset with the seq that it carries as metadata."""
    return Progress(committed.offset, int(committed.metadata or 0))


class GroupOffsets:
    """One admin client for the offsets of any group and the ends of any topic."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._admin = AdminClient(client_config(settings))
        self._thread = ClientThread("kafka-offsets")

    async def committed(self, group: str, topic: str, partitions: int) -> Mapping[int, Committed]:
        """Offsets that no open transaction is changing. Raises BusUnavailable."""
        return await self._thread.call(self._committed, group, topic, partitions)

    async def commit(self, group: str, topic: str, offsets: Mapping[int, Committed]) -> None:
        """Set the offsets of a group that has no members. Raises BusUnavailable."""
        await self._thread.call(self._commit, group, topic, offsets)

    async def ends(self, topic: str, *, committed: bool) -> tuple[int, ...]:
        """Last stable offsets, or high watermarks. Raises BusUnavailable."""
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        return await self._thread.call(self._offsets, topic, OffsetSpec.latest(), level)

    async def starts(self, topic: str) -> tuple[int, ...]:
        """Log start offsets. Raises BusUnavailable."""
        return await self._thread.call(self._starts, topic)

    async def close(self) -> None:
        """Let the client go."""
        self._thread.end()

    def _committed(self, group: str, topic: str, partitions: int) -> Mapping[int, Committed]:
        wanted = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, p) for p in range(partitions)])
        answer = self._result(
            self._admin.list_consumer_group_offsets([wanted], require_stable=True, request_timeout=CALL_TIMEOUT_S)[
                group
            ],
            missing=None,
        )
        found = answer.topic_partitions if answer is not None else []
        return {tp.partition: Committed(tp.offset, tp.metadata or "") for tp in found if tp.offset >= 0}

    def _commit(self, group: str, topic: str, offsets: Mapping[int, Committed]) -> None:
        wanted = ConsumerGroupTopicPartitions(
            group, [TopicPartition(topic, p, at.offset, at.metadata) for p, at in offsets.items()]
        )
        answer = self._result(self._admin.alter_consumer_group_offsets([wanted], request_timeout=CALL_TIMEOUT_S)[group])
        for tp in answer.topic_partitions:
            if tp.error is not None:
                raise unavailable(self._settings, tp.error)

    def _starts(self, topic: str) -> tuple[int, ...]:
        return self._offsets(topic, OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED)

    def _offsets(self, topic: str, spec: Any, level: IsolationLevel) -> tuple[int, ...]:
        count = self.partitions(topic)
        futures = self._admin.list_offsets(
            {TopicPartition(topic, p): spec for p in range(count)},
            isolation_level=level,
            request_timeout=CALL_TIMEOUT_S,
        )
        by_partition = {tp.partition: self._result(future).offset for tp, future in futures.items()}
        return tuple(by_partition[p] for p in range(count))

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has. Raises BusUnavailable, also when there is no such topic."""
        try:
            described = self._admin.list_topics(topic, timeout=CALL_TIMEOUT_S).topics[topic]
        except KafkaException as error:
            raise unavailable(self._settings, error) from error
        if described.error is not None:
            raise unavailable(self._settings, described.error)
        return len(described.partitions)

    def _result(self, future: Any, **missing: Any) -> Any:
        try:
            return future.result(CALL_TIMEOUT_S * 2)
        except KafkaException as error:
            if missing and error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return missing["missing"]
            raise unavailable(self._settings, error) from error

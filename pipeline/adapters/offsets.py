"""Committed group offsets, read and set from outside the group through the admin API."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.adapters.kafka import CALL_TIMEOUT_S, BrokerWatch, ClientThread, client_config, unavailable
from pipeline.effects import Effect, effect
from pipeline.errors import BusUnavailable
from pipeline.ports import Progress
from pipeline.settings import KafkaSettings

PASSING: Final = frozenset(
    {
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError._TIMED_OUT,  # noqa: SLF001 - a public code with an odd name
        KafkaError._TRANSPORT,  # noqa: SLF001 - as above
    }
)
"""Answers of a broker that is still on its way up, or of a topic that was made a moment ago."""

ASK_AGAIN_S: Final = 0.1
ASK_TIMEOUT_S: Final = 3.0
"""Of one request. A client that was connected when its broker died may wait for the coordinator's old connection for
ever, so after each time-out a new client asks."""

ANSWER_TIMEOUT_S: Final = 30.0
"""A broker that has just started takes some seconds to find its coordinators."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed offset with its metadata."""

    offset: int
    metadata: str


def progress_of(committed: Committed) -> Progress:
    """A consumer's offset with the seq that it carries as metadata."""
    return Progress(committed.offset, int(committed.metadata or 0))


class GroupOffsets:
    """One admin client for the ends of any topic, and a client per group for its offsets.

    Not the admin client for those too: when the coordinator has moved, its ListConsumerGroupOffsets ends the process
    (https://github.com/confluentinc/librdkafka/issues/5040).
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._admin = AdminClient(client_config(settings))
        self._outsiders: dict[str, tuple[Consumer, BrokerWatch]] = {}
        self._thread = ClientThread("kafka-offsets", settings.bootstrap_servers)

    async def committed(self, group: str, topic: str, partitions: int) -> Mapping[int, Committed]:
        """Offsets that no open transaction is changing. Raises BusUnavailable."""
        return await self._thread.call(self._committed, group, topic, partitions)

    async def commit(self, group: str, topic: str, offsets: Mapping[int, Committed]) -> None:
        """Set the offsets of a group that has no members. Raises BusUnavailable."""
        await self._thread.call(self._commit, group, topic, offsets)

    async def members(self, group: str) -> int:
        """How many members a group has; none when there is no such group. Raises BusUnavailable."""
        return await self._thread.call(self._members, group)

    async def ends(self, topic: str, *, committed: bool) -> tuple[int, ...]:
        """Last stable offsets, or high watermarks. Raises BusUnavailable."""
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        return await self._thread.call(self._offsets, topic, OffsetSpec.latest(), level)

    async def starts(self, topic: str) -> tuple[int, ...]:
        """Log start offsets. Raises BusUnavailable."""
        return await self._thread.call(self._starts, topic)

    async def close(self) -> None:
        """Let the clients go."""
        await self._thread.call(self._close)
        self._thread.end()

    def _committed(self, group: str, topic: str, partitions: int) -> Mapping[int, Committed]:
        wanted = [TopicPartition(topic, p) for p in range(partitions)]
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            found: list[TopicPartition] = []
            try:
                with effect("kafka", "OffsetFetch"):
                    found = self._outsider(group).committed(wanted, timeout=ASK_TIMEOUT_S)
                # An offset that an open transaction is about to change is neither the old nor the new one: wait.
                unclear = next((tp.error for tp in found if tp.error is not None), None)
            except KafkaException as error:
                unclear = error.args[0]
            if unclear is None:
                return {tp.partition: Committed(tp.offset, tp.metadata or "") for tp in found if tp.offset >= 0}
            if unclear.code() not in PASSING or time.monotonic() > deadline_s:
                raise unavailable(self._settings, unclear)
            if unclear.code() == KafkaError._TIMED_OUT:  # noqa: SLF001 - a public code with an odd name
                self._outsiders.pop(group)[0].close()
            time.sleep(ASK_AGAIN_S)

    def _outsider(self, group: str) -> Consumer:
        """A client that knows the group's coordinator and never joins the group."""
        if group in self._outsiders:
            outsider, watch = self._outsiders[group]
            outsider.poll(0)
            if not watch.lost:
                return outsider
            outsider.close()
        watch = BrokerWatch()
        outsider = Consumer(
            client_config(self._settings)
            | watch.config()
            | {"group.id": group, "enable.auto.commit": False, "isolation.level": "read_committed"}
        )
        self._outsiders[group] = outsider, watch
        return outsider

    def _close(self) -> None:
        for outsider, _watch in self._outsiders.values():
            outsider.close()
        self._outsiders.clear()

    def _commit(self, group: str, topic: str, offsets: Mapping[int, Committed]) -> None:
        wanted = ConsumerGroupTopicPartitions(
            group, [TopicPartition(topic, p, at.offset, at.metadata) for p, at in offsets.items()]
        )
        self._result(
            effect("kafka", "OffsetCommit"),
            lambda: _Altered(self._admin.alter_consumer_group_offsets([wanted], request_timeout=ASK_TIMEOUT_S)[group]),
        )

    def _members(self, group: str) -> int:
        try:
            described = self._result(
                effect("kafka", "ConsumerGroupDescribe"),
                lambda: self._admin.describe_consumer_groups([group], request_timeout=ASK_TIMEOUT_S)[group],
            )
        except BusUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, KafkaException) and cause.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return 0
            raise
        return len(described.members)

    def _starts(self, topic: str) -> tuple[int, ...]:
        return self._offsets(topic, OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED)

    def _offsets(self, topic: str, spec: Any, level: IsolationLevel) -> tuple[int, ...]:
        count = self.partitions(topic)
        wanted = [TopicPartition(topic, p) for p in range(count)]

        def ask() -> _Together:
            asked = dict.fromkeys(wanted, spec)
            return _Together(
                self._admin.list_offsets(asked, isolation_level=level, request_timeout=ASK_TIMEOUT_S), wanted
            )

        return tuple(int(found.offset) for found in self._result(effect("kafka", "ListOffsets"), ask))

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has. Raises BusUnavailable, also when there is no such topic."""
        try:
            with effect("kafka", "Metadata"):
                described = self._admin.list_topics(topic, timeout=CALL_TIMEOUT_S).topics[topic]
        except KafkaException as error:
            raise unavailable(self._settings, error) from error
        if described.error is not None:
            raise unavailable(self._settings, described.error)
        return len(described.partitions)

    def _result(self, asked: Effect, ask: Callable[[], Any]) -> Any:
        """The answer; asked again while a coordinator is on its way. Raises BusUnavailable."""
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            try:
                with asked:
                    return ask().result(ASK_TIMEOUT_S * 2)
            except KafkaException as error:
                if error.args[0].code() not in PASSING or time.monotonic() > deadline_s:
                    raise unavailable(self._settings, error) from error
            except TimeoutError as error:
                if time.monotonic() > deadline_s:
                    raise BusUnavailable(address=self._settings.bootstrap_servers) from error
            self._admin = AdminClient(client_config(self._settings))
            time.sleep(ASK_AGAIN_S)


@dataclass(frozen=True, slots=True)
class _Altered:
    """Offsets that were set; a coordinator that is only starting says so of each partition."""

    future: Any

    def result(self, timeout_s: float) -> None:
        for tp in self.future.result(timeout_s).topic_partitions:
            if tp.error is not None:
                raise KafkaException(tp.error)


@dataclass(frozen=True, slots=True)
class _Together:
    """Several answers that are of use only together.

    A leader that dies in the middle can leave a partition without error and without offset (-1001). Taken for the end
    of tx.signed, that would be a topic from which everything is gone.
    """

    futures: Mapping[TopicPartition, Any]
    order: Sequence[TopicPartition]

    def result(self, timeout_s: float) -> list[Any]:
        found = [self.futures[partition].result(timeout_s) for partition in self.order]
        if any(answer.offset < 0 for answer in found):
            raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE))
        return found

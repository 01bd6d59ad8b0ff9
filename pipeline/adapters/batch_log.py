"""Reads of topics outside any group, read_committed, in bounded stretches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.adapters.kafka import ClientThread, client_config, consumer_group, take, unavailable
from pipeline.adapters.offsets import GroupOffsets, progress_of
from pipeline.effects import Moment, effect
from pipeline.errors import BusUnavailable
from pipeline.ports import Message, Place, Progress
from pipeline.settings import KafkaSettings
from pipeline.tracing import HEADER

FETCH_MESSAGES_MAX: Final = 64
FETCH: Final = effect("kafka", "Fetch")
POLL_S: Final = 0.2
SILENCE_MAX_S: Final = 30.0
"""A scan that gets neither a record nor the end of the partition for this long names the broker as down."""


class KafkaBatchLog:
    """A consumer that assigns itself what it is asked for and commits nothing."""

    def __init__(self, settings: KafkaSettings, deployment: str) -> None:
        self._settings = settings
        self._deployment = deployment
        self._offsets = GroupOffsets(settings)
        self._thread = ClientThread("kafka-log", settings.bootstrap_servers)
        self._consumer: Consumer | None = None

    async def ends(self, topic: str, *, committed: bool = True) -> tuple[int, ...]:
        """Last stable offsets, or high watermarks. Raises BusUnavailable."""
        return await self._offsets.ends(topic, committed=committed)

    async def starts(self, topic: str) -> tuple[int, ...]:
        """Log start offsets. Raises BusUnavailable."""
        return await self._offsets.starts(topic)

    async def progress(self, topic: str) -> Mapping[int, Progress]:
        """How far the consumers have committed, by partition. Raises BusUnavailable."""
        partitions = len(await self._offsets.ends(topic, committed=False))
        found = await self._offsets.committed(consumer_group(self._deployment), topic, partitions)
        return {p: progress_of(at) for p, at in found.items()}

    async def members(self) -> int:
        """See stages.remains.GroupLog."""
        return await self._offsets.members(consumer_group(self._deployment))

    async def scan(self, topic: str, partition: int, start: int, end: int) -> AsyncGenerator[Message, None]:
        """Committed records in [start, end). Raises BusUnavailable.

        Not for use by two tasks at once: one consumer serves the scans in turn.
        """
        if start >= end:
            return
        await self._thread.call(self._seek, topic, partition, start)
        silent_s = 0.0
        while silent_s < SILENCE_MAX_S:
            messages, reached = await self._thread.call(self._fetch)
            silent_s = 0.0 if messages else silent_s + POLL_S
            for message in messages:
                if message.place.offset >= end:
                    return
                yield message
                if message.place.offset == end - 1:
                    return
            if reached >= end:
                return
        raise BusUnavailable(
            f"no record and no end of {topic}[{partition}] in {SILENCE_MAX_S:.0f} s",
            address=self._settings.bootstrap_servers,
        )

    async def close(self) -> None:
        """Let the clients go."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await self._thread.call(consumer.close)
        self._thread.end()
        await self._offsets.close()

    def _seek(self, topic: str, partition: int, start: int) -> None:
        if self._consumer is None:
            self._consumer = Consumer(
                outsider_config(self._settings, self._deployment) | {"enable.partition.eof": True}
            )
        try:
            self._consumer.assign([TopicPartition(topic, partition, start)])
        except KafkaException as error:
            raise unavailable(self._settings, error) from error

    def _fetch(self) -> tuple[list[Message], int]:
        """Records, and the offset up to which the partition is known to hold nothing more."""
        assert self._consumer is not None  # noqa: S101 - scan() seeks first
        reached = -1
        messages = []
        FETCH.reached(Moment.BEFORE)
        for raw in take(self._consumer, FETCH_MESSAGES_MAX, POLL_S):
            error = raw.error()
            if error is None:
                messages.append(message_of(raw))
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - a public code with an odd name
                reached = int(raw.offset() or 0)
            elif not error.retriable():
                raise unavailable(self._settings, error)
        if messages:
            FETCH.reached(Moment.AFTER)
        return messages, reached


def outsider_config(settings: KafkaSettings, deployment: str) -> dict[str, Any]:
    """Of a consumer outside any group, read_committed. Raises SecretFileError."""
    return client_config(settings) | {
        "group.id": f"{deployment}-log",  # librdkafka wants one; nothing is subscribed to or committed
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "fetch.wait.max.ms": 100,
        "message.max.bytes": settings.message_max_bytes,
    }


def message_of(raw: Any, generation: Any = None) -> Message:
    """Our view of librdkafka's message."""
    kind, unix_ms = raw.timestamp()
    return Message(
        Place(raw.topic(), raw.partition(), raw.offset()),
        raw.key() or b"",
        raw.value() or b"",
        generation,
        None if kind == TIMESTAMP_NOT_AVAILABLE else unix_ms,
        next((value.decode(errors="replace") for name, value in raw.headers() or () if name == HEADER and value), ""),
    )

"""Topics followed outside any group, read_committed, from given places on and without an end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.adapters.batch_log import FETCH, message_of, outsider_config
from pipeline.adapters.kafka import ClientThread, take, unavailable
from pipeline.adapters.offsets import PASSING
from pipeline.effects import Moment
from pipeline.errors import BusUnavailable, OncesignError
from pipeline.ports import Message, Place
from pipeline.settings import KafkaSettings

MESSAGES_MAX: Final = 64
QUEUED_KIB: Final = 16 * 1024
"""What librdkafka reads ahead, of all partitions together about."""


class KafkaFollower:
    """A consumer that assigns itself what it is given and commits nothing."""

    def __init__(self, settings: KafkaSettings, deployment: str) -> None:
        self._settings = settings
        self._deployment = deployment
        self._thread = ClientThread("kafka-follower", settings.bootstrap_servers)
        self._consumer: Consumer | None = None

    async def begin(self, places: Sequence[Place]) -> None:
        """From these on. Raises BusUnavailable."""
        await self._thread.call(self._begin, places)

    async def poll(self, timeout_s: float) -> Sequence[Message]:
        """What has come since, in the order of each partition, as soon as there is something.

        Raises BusUnavailable, also when Kafka deletes records before they were read.
        """
        return await self._thread.call(self._poll, timeout_s)

    async def close(self) -> None:
        """Let the client go."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await self._thread.call(consumer.close)
        self._thread.end()

    def _begin(self, places: Sequence[Place]) -> None:
        self._consumer = Consumer(
            outsider_config(self._settings, self._deployment) | {"queued.max.messages.kbytes": QUEUED_KIB}
        )
        try:
            self._consumer.assign([TopicPartition(place.topic, place.partition, place.offset) for place in places])
        except KafkaException as error:
            raise unavailable(self._settings, error) from error

    def _poll(self, timeout_s: float) -> list[Message]:
        assert self._consumer is not None  # noqa: S101 - begin() comes first
        messages = []
        FETCH.reached(Moment.BEFORE)
        for raw in take(self._consumer, MESSAGES_MAX, timeout_s):
            error = raw.error()
            if error is None:
                messages.append(message_of(raw))
            elif error.code() not in PASSING:
                raise self._stopped(raw, error)
        if messages:
            FETCH.reached(Moment.AFTER)
        return messages

    def _stopped(self, raw: Any, error: KafkaError) -> OncesignError:
        if error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001 - a public code with an odd name
            return BusUnavailable(
                f"{raw.topic()}[{raw.partition()}] has deleted records that were not read yet",
                address=self._settings.bootstrap_servers,
                hint="What is left of them: oncesign tail --from start",
            )
        return unavailable(self._settings, error)

"""One Kafka transaction: records first, offsets last, then the commit.

After an abort, or a commit that took longer than socket.timeout.ms, a producer must not be used again: librdkafka
may have sent EndTxn twice with one epoch, and the late one could end the next transaction (KAFKA-17754). So
`KafkaTransactions` refuses to go on until `open` has built a new client, whose init_transactions settles what the old
one left.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from pipeline.adapters.kafka import CALL_TIMEOUT_S, client_config, fenced, producer_fenced, unavailable
from pipeline.errors import AmbiguousRound, OncesignError, RoundAborted
from pipeline.ports import Outgoing
from pipeline.settings import KafkaSettings

ABORT_TIMEOUT_S: Final = 5.0
OPEN_TIMEOUT_S: Final = 5.0
"""A client that met a dead broker looks for its coordinator at long intervals; a new one finds it at once."""

LINGER_MS: Final = 0
"""A round hands over all its records at once; waiting for more would only add latency."""


class KafkaTransactions:
    """A transactional producer, used from one thread. Blocking."""

    def __init__(self, settings: KafkaSettings, transactional_id: str) -> None:
        self._settings = settings
        self._id = transactional_id
        self._producer: Producer | None = None

    def open(self) -> None:
        """Build a client and fence every earlier one. Raises BusUnavailable."""
        self.close()
        producer = Producer(
            client_config(self._settings)
            | {
                "transactional.id": self._id,
                "transaction.timeout.ms": int(self._settings.transaction_timeout_s * 1000),
                "delivery.timeout.ms": int(self._settings.transaction_timeout_s * 1000),
                "message.max.bytes": self._settings.message_max_bytes,
                "acks": "all",
                "linger.ms": LINGER_MS,
                "compression.type": "none",
                "queue.buffering.max.kbytes": 256 * 1024,
            }
        )
        try:
            producer.init_transactions(OPEN_TIMEOUT_S)
        except KafkaException as error:
            raise self._settled(error) from error
        self._producer = producer

    def run(self, records: Sequence[Outgoing], offsets: Sequence[TopicPartition], group: Any) -> bool:
        """Commit records and offsets together; whether the commit was fast enough to be certain.

        Raises RoundAborted, AmbiguousRound, ProducerFenced, BusUnavailable. After anything but True, `open` again.
        """
        producer = self._producer
        if producer is None:
            raise RoundAborted(f"{self._id} was not opened.")
        self._producer = None  # until this round has ended well
        try:
            producer.begin_transaction()
            for record in records:
                producer.produce(
                    record.topic, value=record.value, key=record.key, partition=record.partition, on_delivery=_ignore
                )
            if offsets:
                producer.send_offsets_to_transaction(list(offsets), group, CALL_TIMEOUT_S)
        except (KafkaException, BufferError) as error:
            raise self._aborted(producer, error) from error
        return self._commit(producer)

    def _commit(self, producer: Producer) -> bool:
        started = time.monotonic()
        try:
            producer.commit_transaction(CALL_TIMEOUT_S)
        except KafkaException as error:
            if fenced(error):
                raise producer_fenced(self._id) from error
            if error.args[0].txn_requires_abort():
                raise self._aborted(producer, error) from error
            raise AmbiguousRound(f"{self._id}: the commit got no answer: {error.args[0].str()}.") from error
        if time.monotonic() - started > self._settings.socket_timeout_s:
            return False
        self._producer = producer
        return True

    def _aborted(self, producer: Producer, error: KafkaException | BufferError) -> OncesignError:
        if isinstance(error, KafkaException) and fenced(error):
            return producer_fenced(self._id)
        try:
            producer.abort_transaction(ABORT_TIMEOUT_S)
        except KafkaException as late:
            if fenced(late):
                return producer_fenced(self._id)
            # Not aborted here: the next open() settles it, as does the broker after transaction.timeout.ms.
        return RoundAborted(f"{self._id}: {error}")

    def _settled(self, error: KafkaException) -> OncesignError:
        return producer_fenced(self._id) if fenced(error) else unavailable(self._settings, error)

    def close(self) -> None:
        """Drop the client. What it left open is settled by the next open()."""
        self._producer = None


def _ignore(_error: KafkaError | None, _message: Any) -> None:
    """A record that could not be delivered makes commit_transaction fail; that is where it is handled."""

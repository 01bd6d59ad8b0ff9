"""One Kafka transaction: records first, offsets last, then the commit.

After a failure, or a commit that took longer than socket.timeout.ms, a producer must not be used again: librdkafka
may have sent EndTxn twice with one epoch, and the late one could end the next transaction (KAFKA-17754). So
`KafkaTransactions` refuses to go on until `open` has built a new client, whose init_transactions aborts or finishes
what the old one left, and fences it. That also makes it safe to leave a client behind whose call never returns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from pipeline.adapters.kafka import BrokerWatch, ClientThread, client_config, fenced, producer_fenced, unavailable
from pipeline.effects import Moment, effect
from pipeline.errors import AmbiguousRound, OncesignError, RoundAborted, SettingError
from pipeline.ports import Outgoing
from pipeline.settings import KafkaSettings
from pipeline.tracing import HEADER

OPEN_TIMEOUT_S: Final = 5.0
"""A client that met a dead broker looks for its coordinator at long intervals; a new one finds it at once."""

OFFSETS_TIMEOUT_S: Final = 4.0
COMMIT_TIMEOUT_S: Final = 10.0
PRODUCE: Final = effect("kafka", "Produce")
LIMIT_MARGIN_S: Final = 0.5
"""How much longer than its time-out a call may take before its client is left behind."""

RETRY_BACKOFF_MS: Final = 10
"""A transaction that follows at once is told CONCURRENT_TRANSACTIONS while the last one's markers are written, for some
milliseconds; librdkafka's 100 would be spent on every round."""

LINGER_MS: Final = 0
"""A round hands over all its records at once; waiting for more would only add latency."""


class KafkaTransactions:
    """A transactional producer under one transactional.id, and the thread it blocks in."""

    def __init__(self, settings: KafkaSettings, transactional_id: str) -> None:
        self._settings = settings
        self._id = transactional_id
        self._thread = ClientThread(f"kafka-{transactional_id}", settings.bootstrap_servers)
        self._client: _Client | None = None

    async def open(self) -> None:
        """Build a client and fence every earlier one. Raises BusUnavailable."""
        self._let_go()
        client = _Client(self._settings, self._id)
        try:
            await self._thread.call(client.open, within_s=OPEN_TIMEOUT_S + LIMIT_MARGIN_S)
        except BaseException:
            client.discard()
            raise
        self._client = client

    async def run(self, records: Sequence[Outgoing], offsets: Sequence[TopicPartition], group: Any) -> bool:
        """Commit records and offsets together; whether the commit was fast enough to be certain.

        Raises RoundAborted, AmbiguousRound, ProducerFenced, BusUnavailable. After anything but True, `open` again.
        """
        client, self._client = self._client, None  # until this round has ended well
        if client is None:
            raise RoundAborted(f"{self._id} was not opened.")
        certain = False
        try:
            limit_s = OFFSETS_TIMEOUT_S + LIMIT_MARGIN_S
            await self._thread.call(client.write, records, offsets, group, within_s=limit_s)
            certain = await self._thread.call(client.commit, within_s=COMMIT_TIMEOUT_S + LIMIT_MARGIN_S)
        finally:
            if certain:
                self._client = client
            else:
                client.discard()
        return certain

    def close(self) -> None:
        """Let the client go. What it left open is settled by the next `open`."""
        self._let_go()
        self._thread.end()

    def _let_go(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.discard()


class _Client:
    """One librdkafka producer, from its first transaction to its first failure. Blocking."""

    def __init__(self, settings: KafkaSettings, transactional_id: str) -> None:
        self._settings = settings
        self._id = transactional_id
        self._watch = BrokerWatch()
        self._producer = Producer(
            client_config(settings)
            | self._watch.config()
            | {
                "transactional.id": transactional_id,
                "transaction.timeout.ms": int(settings.transaction_timeout_s * 1000),
                "delivery.timeout.ms": int(settings.transaction_timeout_s * 1000),
                "message.max.bytes": settings.message_max_bytes,
                "acks": "all",
                "linger.ms": LINGER_MS,
                "retry.backoff.ms": RETRY_BACKOFF_MS,
                "compression.type": "none",
                "queue.buffering.max.kbytes": 256 * 1024,
            }
        )

    def open(self) -> None:
        """Settle what an earlier producer of this id left. Raises ProducerFenced, BusUnavailable."""
        try:
            with effect("kafka", "InitProducerId"):
                self._producer.init_transactions(OPEN_TIMEOUT_S)
        except KafkaException as error:
            if fenced(error):
                raise producer_fenced(self._id) from error
            raise unavailable(self._settings, error) from error
        self._producer.poll(0)
        self._watch.lost = False  # until it was open, that only says that the broker was not up yet

    def write(self, records: Sequence[Outgoing], offsets: Sequence[TopicPartition], group: Any) -> None:
        """Begin, hand over the records, add the offsets. Raises RoundAborted, ProducerFenced."""
        producer = self._producer
        producer.poll(0)
        if self._watch.lost:
            raise RoundAborted(f"{self._id}: a broker went away; a new client asks anew.")
        try:
            producer.begin_transaction()
            for record in records:
                PRODUCE.reached(Moment.BEFORE)
                producer.produce(
                    record.topic,
                    value=record.value,
                    key=record.key,
                    partition=record.partition,
                    headers=[(HEADER, record.traceparent)] if record.traceparent else None,
                    on_delivery=_delivered,
                )
            if offsets:
                with effect("kafka", "TxnOffsetCommit"):
                    producer.send_offsets_to_transaction(list(offsets), group, OFFSETS_TIMEOUT_S)
        except (KafkaException, BufferError) as error:
            raise self._not_committed(error) from error

    def commit(self) -> bool:
        """Whether it was fast enough to be certain. Raises RoundAborted, AmbiguousRound, ProducerFenced."""
        started = time.monotonic()
        try:
            with effect("kafka", "EndTxn"):
                self._producer.commit_transaction(COMMIT_TIMEOUT_S)
        except KafkaException as error:
            if fenced(error) or error.args[0].txn_requires_abort():
                raise self._not_committed(error) from error
            raise AmbiguousRound(f"{self._id}: the commit got no answer: {error.args[0].str()}.") from error
        return time.monotonic() - started <= self._settings.socket_timeout_s

    def discard(self) -> None:
        """Give the producer back without waiting: destroying it joins its threads, which may hang with a lost call."""
        threading.Thread(target=self._destroy, name=f"kafka-discard-{self._id}", daemon=True).start()

    def _destroy(self) -> None:
        del self._producer

    def _not_committed(self, error: KafkaException | BufferError) -> OncesignError:
        # Not aborted here: the next open() does it, as does the broker after transaction.timeout.ms.
        if isinstance(error, KafkaException) and fenced(error):
            return producer_fenced(self._id)
        if isinstance(error, KafkaException) and error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return SettingError(
                "ONCESIGN_KAFKA__MESSAGE_MAX_BYTES",
                f"{self._settings.message_max_bytes}, or max.message.bytes of the topic, is too small for a record",
                hint="Nothing of it was published. Raise it, and max.message.bytes of the topics.",
            )
        return RoundAborted(f"{self._id}: {error}")


def _delivered(error: KafkaError | None, _message: Any) -> None:
    """A record that could not be delivered makes commit_transaction fail; that is where it is handled."""
    if error is None:
        PRODUCE.reached(Moment.AFTER)

"""The transactional writer of one stream: batches and the reader's next position, or neither.

The position is the metadata of the one offset of a group that nobody joins, committed by the same Kafka transaction as
the batches (KIP-98, TxnOffsetCommit). Its offset is the seq, which makes it visible to Kafka's own tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson
from confluent_kafka import Consumer, TopicPartition

from pipeline.adapters.batch_log import KafkaBatchLog
from pipeline.adapters.kafka import Topics, client_config, consumer_group, reader_group
from pipeline.adapters.offsets import GroupOffsets
from pipeline.adapters.transactions import KafkaTransactions
from pipeline.errors import MalformedBatch
from pipeline.ethereum.batch import Batch
from pipeline.ports import Outgoing, ReaderPosition
from pipeline.settings import KafkaSettings
from pipeline.stream import Cursor, Stream

TAIL_OFFSETS: Final = 64
"""How far before the end the last batch is looked for; every batch is followed by at most a few control records."""


class KafkaStreamWriter:
    """Fulfils ports.StreamWriter."""

    def __init__(self, settings: KafkaSettings, deployment: str, stream: Stream, shards: int) -> None:
        self._settings = settings
        self._deployment = deployment
        self._stream = stream
        self._shards = shards
        self._topic = Topics(settings.topic_prefix).batches(stream.source)
        self._group = reader_group(deployment, stream)
        self._offsets = GroupOffsets(settings)
        self._transactions = KafkaTransactions(settings, f"{deployment}-reader-{stream.source}-{stream.shard}")
        self._metadata = self._outsider()

    async def open(self) -> ReaderPosition | None:
        """Fence earlier writers; the position they committed. Raises BusUnavailable, MalformedBatch."""
        await self._transactions.open()
        return await self.position()

    async def position(self) -> ReaderPosition | None:
        """The same, fencing nobody. Raises BusUnavailable, MalformedBatch."""
        committed = await self._offsets.committed(self._group, self._topic, self._shards)
        at = committed.get(self._stream.shard)
        return _position(at.metadata) if at is not None else await self._last_batch()

    async def publish(self, batches: Sequence[bytes], position: ReaderPosition, traces: Sequence[str] = ()) -> None:
        """One Kafka transaction. Raises ProducerFenced, RoundAborted, AmbiguousRound, BusUnavailable."""
        shard = self._stream.shard
        key = str(self._stream).encode()
        pairs = zip(batches, traces or [""] * len(batches), strict=True)
        records = [Outgoing(self._topic, shard, key, batch, traceparent) for batch, traceparent in pairs]
        offset = TopicPartition(self._topic, shard, position.seq, _text(position))
        if not await self._transactions.run(records, [offset], self._metadata):
            await self._transactions.open()

    async def consumed(self) -> int:
        """Seq of the last batch that the consumers committed. Raises BusUnavailable."""
        committed = await self._offsets.committed(consumer_group(self._deployment), self._topic, self._shards)
        at = committed.get(self._stream.shard)
        return int(at.metadata or 0) if at is not None else 0

    async def close(self) -> None:
        """Let the clients go."""
        self._transactions.close()
        await self._offsets.close()

    async def _last_batch(self) -> ReaderPosition | None:
        # Kafka forgot the offset (offsets.retention.minutes) but may still hold batches after the assigned ones; going
        # on from etcd would then publish rows a second time under other bounds.
        log = KafkaBatchLog(self._settings, self._deployment)
        try:
            end = (await log.ends(self._topic))[self._stream.shard]
            start = max((await log.starts(self._topic))[self._stream.shard], end - TAIL_OFFSETS)
            last = None
            async for message in log.scan(self._topic, self._stream.shard, start, end):
                last = message
        finally:
            await log.close()
        if last is None:
            return None
        batch = Batch.decode(last.value)
        header = batch.header
        return ReaderPosition(header.seq, header.cursor, batch.digest, header.system_id)

    def _outsider(self) -> Any:
        """Group metadata of a client that is in no group (generation -1, no member id)."""
        client = Consumer(client_config(self._settings) | {"group.id": self._group})
        metadata = client.consumer_group_metadata()
        client.close()
        return metadata


def _text(position: ReaderPosition) -> str:
    return orjson.dumps(
        {
            "seq": position.seq,
            "cursor": str(position.cursor),
            "digest": position.digest,
            "system_id": position.system_id,
        }
    ).decode()


def _position(text: str) -> ReaderPosition:
    try:
        fields = orjson.loads(text)
        return ReaderPosition(fields["seq"], Cursor.parse(fields["cursor"]), fields["digest"], fields["system_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedBatch(f"the reader's position {text!r} cannot be read: {error}") from error

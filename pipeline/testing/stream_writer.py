"""The transactional writer of one stream, over the in-memory broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from pipeline.ethereum.batch import Batch
from pipeline.ports import Message, Outgoing, ReaderPosition
from pipeline.stream import Cursor, Stream
from pipeline.testing import offsets
from pipeline.testing.batch_log import TwinBatchLog
from pipeline.testing.broker import Broker
from pipeline.testing.group import Committed, Generation
from pipeline.testing.transactions import TwinTransactions

TAIL_OFFSETS: Final = 64


class TwinStreamWriter:
    """Fulfils ports.StreamWriter. `topic` holds the stream's batches; names are those of adapters.kafka."""

    def __init__(self, broker: Broker, deployment: str, stream: Stream, topic: str) -> None:
        self._broker = broker
        self._stream = stream
        self._place = topic, stream.shard
        self._id = f"{deployment}-reader-{stream.source}-{stream.shard}"
        self._consumers = f"{deployment}-consumers"
        self._transactions = TwinTransactions(broker, self._id)

    async def open(self) -> ReaderPosition | None:
        """See ports.StreamWriter."""
        await self._transactions.open()
        return await self.position()

    async def position(self) -> ReaderPosition | None:
        """See stages.remains.PositionedWriter."""
        found = await offsets.committed(self._broker, self._id, self._id, [self._place])
        at = found.get(self._place)
        return _position(at.metadata) if at is not None else await self._last_batch()

    async def publish(self, batches: Sequence[bytes], position: ReaderPosition, traces: Sequence[str] = ()) -> None:
        """See ports.StreamWriter."""
        key = str(self._stream).encode()
        pairs = zip(batches, traces or [""] * len(batches), strict=True)
        records = [Outgoing(*self._place, key, batch, traceparent) for batch, traceparent in pairs]
        at = {self._place: Committed(position.seq, _text(position))}
        if not await self._transactions.run(records, at, Generation(self._id)):
            await self._transactions.open()

    async def consumed(self) -> int:
        """See ports.StreamWriter."""
        found = await offsets.committed(self._broker, self._id, self._consumers, [self._place])
        return int(found[self._place].metadata or 0) if self._place in found else 0

    async def close(self) -> None:
        """See ports.StreamWriter."""
        self._transactions.close()

    async def _last_batch(self) -> ReaderPosition | None:
        topic, shard = self._place
        log = TwinBatchLog(self._broker)
        end = (await log.ends(topic))[shard]
        start = max((await log.starts(topic))[shard], end - TAIL_OFFSETS)
        last: Message | None = None
        async for message in log.scan(topic, shard, start, end):
            last = message
        if last is None:
            return None
        batch = Batch.decode(last.value)
        header = batch.header
        return ReaderPosition(header.seq, header.cursor, batch.digest, header.system_id)


def _text(position: ReaderPosition) -> str:
    fields = position.seq, str(position.cursor), position.digest, position.system_id
    return orjson.dumps(fields).decode()


def _position(text: str) -> ReaderPosition:
    seq, cursor, digest, system_id = orjson.loads(text)
    return ReaderPosition(seq, Cursor.parse(cursor), digest, system_id)

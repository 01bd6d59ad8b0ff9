"""The transactional producer of one consumer slot: signed records, rejected rows, and the batches' offsets last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import TopicPartition

from pipeline.adapters.transactions import KafkaTransactions
from pipeline.ports import Outgoing, Progress
from pipeline.settings import KafkaSettings


class KafkaRoundWriter:
    """Fulfils ports.RoundWriter. `transactional_id` is stable over restarts, so that a restart fences a zombie."""

    def __init__(self, settings: KafkaSettings, transactional_id: str) -> None:
        self._transactions = KafkaTransactions(settings, transactional_id)

    async def open(self) -> None:
        """Build a new client. Raises BusUnavailable."""
        await self._transactions.open()

    async def commit(
        self, records: Sequence[Outgoing], progress: Mapping[tuple[str, int], Progress], generation: Any
    ) -> bool:
        """See ports.RoundWriter."""
        offsets = [TopicPartition(topic, p, at.offset, str(at.seq)) for (topic, p), at in progress.items()]
        return await self._transactions.run(records, offsets, generation)

    async def close(self) -> None:
        """Let the client go."""
        self._transactions.close()

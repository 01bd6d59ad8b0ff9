"""The transactional producer of one consumer slot, over the in-memory broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.ports import Outgoing, Progress
from pipeline.testing.broker import Broker
from pipeline.testing.group import Committed
from pipeline.testing.transactions import TwinTransactions


class TwinRoundWriter:
    """Fulfils ports.RoundWriter."""

    def __init__(self, broker: Broker, transactional_id: str) -> None:
        self._transactions = TwinTransactions(broker, transactional_id)

    async def open(self) -> None:
        """See ports.RoundWriter."""
        await self._transactions.open()

    async def commit(
        self, records: Sequence[Outgoing], progress: Mapping[tuple[str, int], Progress], generation: Any
    ) -> bool:
        """See ports.RoundWriter."""
        offsets = {partition: Committed(at.offset, str(at.seq)) for partition, at in progress.items()}
        return await self._transactions.run(records, offsets, generation)

    async def close(self) -> None:
        """See ports.RoundWriter."""
        self._transactions.close()

"""A client's side of transactions, by the rules of adapters.transactions: after any failure, `open` again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.errors import AmbiguousRound, BusUnavailable, OncesignError, ProducerFenced, RoundAborted, SettingError
from pipeline.ports import Outgoing
from pipeline.testing.broker import Broker
from pipeline.testing.group import Committed, Generation, TopicPartition
from pipeline.testing.network import Request
from pipeline.testing.refusal import Code, Refused

SOCKET_TIMEOUT_S: Final = 4.0
"""As KafkaSettings.socket_timeout_s; a commit that takes longer is not certain to be the only one sent."""

TRANSACTION_TIMEOUT_S: Final = 12.0
OPEN_TIMEOUT_S: Final = 5.0
OFFSETS_TIMEOUT_S: Final = 4.0
COMMIT_TIMEOUT_S: Final = 10.0


class TwinTransactions:
    """A transactional producer."""

    def __init__(self, broker: Broker, transactional_id: str) -> None:
        self._broker = broker
        self._id = transactional_id
        self._epoch: int | None = None  #: None = to be opened

    async def open(self) -> None:
        """A new client. Raises ProducerFenced, BusUnavailable."""
        self._epoch = None
        try:
            self._epoch = await self._broker.call(
                Request("InitProducerId", self._id),
                lambda: self._broker.init_producer(self._id, TRANSACTION_TIMEOUT_S),
                OPEN_TIMEOUT_S,
            )
        except Refused as refused:
            raise BusUnavailable(str(refused)) from refused

    async def run(
        self, records: Sequence[Outgoing], offsets: Mapping[TopicPartition, Committed], who: Generation | None
    ) -> bool:
        """See adapters.transactions.KafkaTransactions.run."""
        epoch, self._epoch = self._epoch, None  # until this round has ended well
        if epoch is None:
            raise RoundAborted(f"{self._id} was not opened.")
        certain = True
        if records or offsets:
            await self._write(epoch, records, offsets, who)
            certain = await self._commit(epoch)
        if certain:
            self._epoch = epoch
        return certain

    def close(self) -> None:
        """What it left open is settled by the next `open`, or by the broker in its time."""
        self._epoch = None

    async def _write(
        self,
        epoch: int,
        records: Sequence[Outgoing],
        offsets: Mapping[TopicPartition, Committed],
        who: Generation | None,
    ) -> None:
        parts: dict[TopicPartition, list[Outgoing]] = defaultdict(list)
        for record in records:
            parts[record.topic, record.partition].append(record)
        try:
            for (topic, number), part in parts.items():
                await self._produce(epoch, topic, number, part)
            if offsets:
                assert who is not None  # noqa: S101 - offsets are some member's
                await self._broker.call(
                    Request("TxnOffsetCommit", self._id),
                    lambda: self._broker.commit_in_transaction(self._id, epoch, who, offsets),
                    OFFSETS_TIMEOUT_S,
                )
        except Refused as refused:
            raise self._not_committed(refused) from refused

    async def _produce(self, epoch: int, topic: str, number: int, part: Sequence[Outgoing]) -> None:
        await self._broker.call(
            Request("Produce", self._id),
            lambda: self._broker.produce(self._id, epoch, topic, number, part),
            TRANSACTION_TIMEOUT_S,
        )

    async def _commit(self, epoch: int) -> bool:
        started_s = self._broker.clock.monotonic_s()
        try:
            await self._broker.call(
                Request("EndTxn", self._id),
                lambda: self._broker.end_transaction(self._id, epoch, commit=True),
                COMMIT_TIMEOUT_S,
            )
        except Refused as refused:
            if refused.code is Code.NO_ANSWER:
                raise AmbiguousRound(f"{self._id}: the commit got no answer: {refused}.") from refused
            raise self._not_committed(refused) from refused
        return self._broker.clock.monotonic_s() - started_s <= SOCKET_TIMEOUT_S

    def _not_committed(self, refused: Refused) -> OncesignError:
        if refused.code is Code.TOO_LARGE:
            return SettingError("ONCESIGN_KAFKA__MESSAGE_MAX_BYTES", f"a record of {self._id} is larger than it")
        if refused.code is Code.FENCED:
            return ProducerFenced(f"another process has taken over {self._id}.")
        return RoundAborted(f"{self._id}: {refused}")

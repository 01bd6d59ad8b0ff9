"""From a Kafka record to a request for a key: decode, check that it is ours, count what can be signed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MalformedBatch
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.rules import BLOB_GAS
from pipeline.ethereum.validity import judge, rules_version
from pipeline.ports import AssignRequest, Message
from pipeline.stream import Stream


class Admission:
    """What this deployment takes from tx.batches.*."""

    def __init__(self, chain_ids: Mapping[str, int], source_of_topic: Mapping[str, str]) -> None:
        """`chain_ids` by source name; `source_of_topic` names the one source each topic is for."""
        self._chain_ids = chain_ids
        self._source_of_topic = source_of_topic

    def stream(self, topic: str, partition: int) -> Stream:
        """The stream that a partition carries, whatever its records say."""
        return Stream(self._source_of_topic[topic], partition)

    def topic(self, source: str) -> str:
        """The topic that is for a source."""
        return next(topic for topic, name in self._source_of_topic.items() if name == source)

    def request(self, message: Message, worker: str, node: str, signed_from: tuple[int, ...]) -> AssignRequest:
        """Decode and validate. Raises MalformedBatch for anything that must not be assigned."""
        batch = Batch.decode(message.value)
        header = batch.header
        if header.stream != self.stream(message.place.topic, message.place.partition):
            raise MalformedBatch(f"{message.place} holds a batch of unknown stream {header.stream}.")
        if header.chain_id != self._chain_ids[header.stream.source]:
            raise MalformedBatch(
                f"{message.place} is for chain {header.chain_id}, but source {header.stream.source} is for chain "
                f"{self._chain_ids[header.stream.source]}."
            )
        signable = judge(batch) == 0
        return AssignRequest(
            stream=header.stream,
            seq=header.seq,
            prev=header.prev,
            cursor=header.cursor,
            digest=batch.digest,
            chain_id=header.chain_id,
            system_id=header.system_id,
            rows=batch.rows.num_rows,
            count=int(np.count_nonzero(signable)),
            rules_version=rules_version(batch),
            worker=worker,
            node=node,
            batch_offset=message.place.offset,
            signed_from=signed_from,
            spend=cost_of(batch, signable),
            sender=header.sender,
            blobs=batch.blobs,
        )


def cost_of(batch: Batch, rows: NDArray[np.bool_]) -> int:
    """Wei that these rows of a batch may cost together: value + gas limit · fee cap + blob gas · blob fee."""
    c, extras = batch.columns, batch.extras
    words = c.value[rows].reshape(-1, 32).view(">u4").astype(np.uint64).sum(axis=0)  # far below 2^32 rows
    values: int = sum(int(word) << (32 * (7 - at)) for at, word in enumerate(words.tolist()))
    fees = zip(c.gas_limit[rows].tolist(), c.max_fee[rows].tolist(), strict=True)
    cost = values + sum(int(gas) * int(fee) for gas, fee in fees)
    if not batch.blobs:
        return cost
    blobs = zip(np.diff(extras.blob_offsets)[rows].tolist(), extras.blob_fee[rows].tolist(), strict=True)
    return cost + sum(int(count) * BLOB_GAS * int(fee) for count, fee in blobs)

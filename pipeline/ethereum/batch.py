"""A batch of unsigned transactions as it travels on `tx.batches.{source}`.

The value of a record is an Arrow IPC stream of one record batch. Identity is the digest over the columns' content,
never over IPC bytes, which differ between Arrow versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from pipeline.stream import Cursor, Stream

CODEC: Final = 1

ACCESS_LIST: Final = pa.list_(
    pa.struct([pa.field("address", pa.binary(20), nullable=False),
               pa.field("storage_keys", pa.list_(pa.field("item", pa.binary(32), nullable=False)), nullable=False)])
)

COLUMNS: Final = pa.schema(
    [
        pa.field("tx_id", pa.int64(), nullable=False),
        pa.field("type", pa.uint8(), nullable=False),
        pa.field("chain_id", pa.uint64(), nullable=False),
        pa.field("to", pa.binary(20)),  # null = contract creation
        pa.field("value", pa.binary(32), nullable=False),  # wei, big-endian
        pa.field("gas_limit", pa.uint64(), nullable=False),
        pa.field("max_fee_per_gas", pa.uint64(), nullable=False),  # the gas price of legacy and access-list rows
        pa.field("max_priority_fee_per_gas", pa.uint64()),  # null for legacy and access-list rows
        pa.field("data", pa.binary(), nullable=False),
        pa.field("access_list", ACCESS_LIST),  # null = none
        pa.field("defect", pa.uint8(), nullable=False),  # a Reason, when the source's value fits no column; else 0
    ]
)


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """Which batch of which stream this is: rows in `(prev, cursor]`, numbered `seq` = 1, 2, 3 …"""

    stream: Stream
    seq: int
    prev: Cursor
    cursor: Cursor
    chain_id: int
    system_id: str

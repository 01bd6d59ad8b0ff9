"""Closing the nonce of a row that libsecp256k1 would not sign: a transfer of nothing from the sender to itself.

libsecp256k1 fails only when RFC 6979 finds no nonce, which nobody has ever seen; but a hole in a sender's nonces would
hold up every transaction after it, so there is an answer.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import SigningRefused
from pipeline.ethereum import kernel
from pipeline.ethereum.batch import COLUMNS, Batch
from pipeline.ethereum.kernel import SignedColumns
from pipeline.ethereum.signed import with_fillers
from pipeline.ethereum.validity import TX_GAS


def fill(
    signed: SignedColumns, batch: Batch, rows: NDArray[np.int64], sender: str, secret: bytes | bytearray
) -> SignedColumns:
    """Put a filler, with the fee of the row that failed, in the place of each. Raises SigningRefused.

    `rows` are the rows of `batch` that `signed` is about.
    """
    fillers = {}
    for k in np.flatnonzero(signed.failed):
        fee = int(batch.columns.max_fee[rows[k]])
        one = Batch.build(batch.header, _transfer_to_self(batch.header.chain_id, sender, fee))
        fillers[int(k)] = made = kernel.sign(one, np.ones(1, np.bool_), secret, int(signed.nonce[k]))
        if made.failed.any():
            raise SigningRefused(f"nonce {signed.nonce[k]} of {sender} can neither be signed nor filled.")
    return with_fillers(signed, fillers)


def _transfer_to_self(chain_id: int, sender: str, fee: int) -> pa.RecordBatch:
    row = {
        "tx_id": 0,
        "type": 2,
        "chain_id": chain_id,
        "to": bytes.fromhex(sender.removeprefix("0x")),
        "value": bytes(32),
        "gas_limit": TX_GAS,
        "max_fee_per_gas": fee,
        "max_priority_fee_per_gas": fee,
        "data": b"",
        "access_list": None,
        "defect": 0,
    }
    return pa.RecordBatch.from_pylist([row], schema=COLUMNS)

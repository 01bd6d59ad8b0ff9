"""Closing the nonce of a row that libsecp256k1 would not sign: a transfer of nothing from the sender to itself.

libsecp256k1 fails only when RFC 6979 finds no nonce, which nobody has ever seen; but a hole in a sender's nonces would
hold up every transaction after it, so there is an answer.

It is the same for rows of all types: the fee cap of a blob row is enough for a transfer, which pays for no blob. But
go-ethereum keeps blob transactions in a pool of their own and an account in one pool at a time (core/txpool), so it
takes such a filler only once the sender's blob transactions before it are mined.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import SigningRefused
from pipeline.ethereum import kernel
from pipeline.ethereum.batch import COLUMNS, Batch, BatchHeader
from pipeline.ethereum.rules import TX_GAS
from pipeline.ethereum.signed import SignedColumns, with_fillers
from pipeline.stream import START, Stream


def fill(
    signed: SignedColumns, batch: Batch, rows: NDArray[np.int64], sender: str, secret: bytes | bytearray
) -> SignedColumns:
    """Put a filler, with the fee of the row that failed, in the place of each. Raises SigningRefused.

    `rows` are the rows of `batch` that `signed` is about.
    """
    header = dataclasses.replace(batch.header, wide=False, sender="")  # a transfer needs no more
    fillers = {}
    for k in np.flatnonzero(signed.failed):
        fee = int(batch.columns.max_fee[rows[k]])
        one = Batch.build(header, _transfers(header.chain_id, sender, (fee, fee)))
        fillers[int(k)] = made = kernel.sign(one, np.ones(1, np.bool_), secret, int(signed.nonce[k]))
        if made.failed.any():
            raise SigningRefused(f"nonce {signed.nonce[k]} of {sender} can neither be signed nor filled.")
    return with_fillers(signed, fillers)


def transfers_to_self(
    chain_id: int, sender: str, first_nonce: int, count: int, fees: tuple[int, int], secret: bytes | bytearray
) -> list[tuple[str, bytes]]:
    """Hash and raw bytes of `count` transfers of nothing, nonces from `first_nonce`; fees are fee cap and priority fee.

    Raises SigningRefused.
    """
    header = BatchHeader(Stream("fill", 0), 1, START, START, chain_id, "")
    signed = kernel.sign(
        Batch.build(header, _transfers(chain_id, sender, fees, count)), np.ones(count, np.bool_), secret, first_nonce
    )
    if signed.failed.any():
        raise SigningRefused(f"a transfer that closes a nonce of {sender} cannot be signed.")
    bounds = signed.raw_offsets
    return [
        ("0x" + signed.hashes[k].tobytes().hex(), signed.raw[bounds[k] : bounds[k + 1]].tobytes()) for k in range(count)
    ]


def _transfers(chain_id: int, sender: str, fees: tuple[int, int], count: int = 1) -> pa.RecordBatch:
    row = {
        "tx_id": 0,
        "type": 2,
        "chain_id": chain_id,
        "to": bytes.fromhex(sender.removeprefix("0x")),
        "value": bytes(32),
        "gas_limit": TX_GAS,
        "max_fee_per_gas": fees[0],
        "max_priority_fee_per_gas": fees[1],
        "data": b"",
        "access_list": None,
        "defect": 0,
    }
    return pa.RecordBatch.from_pylist([row] * count, schema=COLUMNS)

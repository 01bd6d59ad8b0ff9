"""Which rows can be signed: rules that depend on the batch alone, so that every process comes to the same answer.

RULES_VERSION is pinned in the assignment. A change of any rule is a new version; old assignments keep theirs.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from pipeline.ethereum.batch import Batch
from pipeline.ethereum.columns import U8
from pipeline.ethereum.reasons import Reason

RULES_VERSION: Final = 1

TX_GAS: Final = 21_000  # Yellow Paper, G_transaction
CREATE_GAS: Final = 32_000  # G_txcreate, EIP-2
ZERO_BYTE_GAS: Final = 4
NONZERO_BYTE_GAS: Final = 16  # EIP-2028
INIT_WORD_GAS: Final = 2  # EIP-3860
ADDRESS_GAS: Final = 2_400  # EIP-2930
STORAGE_KEY_GAS: Final = 1_900  # EIP-2930
FLOOR_TOKEN_GAS: Final = 10  # EIP-7623
TOKENS_PER_NONZERO_BYTE: Final = 4  # EIP-7623
INIT_CODE_MAX_BYTES: Final = 49_152  # EIP-3860
DATA_MAX_BYTES: Final = 131_072
"""The size that go-ethereum's transaction pool takes at the most."""

OK: Final = int(Reason.SIGNABLE)
CHAIN: Final = int(Reason.CHAIN_ID_MISMATCH)
TYPE: Final = int(Reason.UNKNOWN_TYPE)
FEE: Final = int(Reason.FEE_OUT_OF_RANGE)
PRIORITY: Final = int(Reason.PRIORITY_FEE_ABOVE_FEE_CAP)
NO_PRIORITY: Final = int(Reason.PRIORITY_FEE_NOT_ALLOWED)
GAS: Final = int(Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT)
INIT: Final = int(Reason.INIT_CODE_TOO_LARGE)
DATA: Final = int(Reason.DATA_TOO_LARGE)
NO_LIST: Final = int(Reason.ACCESS_LIST_NOT_ALLOWED)
NO_INIT: Final = int(Reason.CREATE_WITHOUT_INIT_CODE)
COST: Final = int(Reason.COST_OUT_OF_RANGE)


def judge(batch: Batch) -> U8:
    """A Reason per row, (n,); 0 = signable. The first rule that a row breaks names it."""
    c = batch.columns
    reasons = np.zeros(len(c.tx_id), np.uint8)
    _judge(
        np.uint64(batch.header.chain_id), c.type, c.chain_id, c.to_valid, c.value, c.gas_limit, c.max_fee, c.priority,
        c.priority_valid, c.data_offsets, c.data, c.list_valid, c.list_offsets, c.key_offsets, c.defect, reasons,
    )  # fmt: skip
    return reasons


def intrinsic_gas(batch: Batch, row: int) -> int:
    """The least gas limit with which a node takes the row."""
    c = batch.columns
    return int(_intrinsic_gas(row, c.to_valid, c.data_offsets, c.data, c.list_offsets, c.key_offsets))


def explain(batch: Batch, row: int, reason: Reason) -> str:
    """What is wrong with a row, with its numbers, for a person."""
    c = batch.columns
    size = int(c.data_offsets[row + 1] - c.data_offsets[row])
    details = {
        Reason.CHAIN_ID_MISMATCH: f"chain id {c.chain_id[row]}, but the source is for chain {batch.header.chain_id}",
        Reason.UNKNOWN_TYPE: f"type {c.type[row]}; known are 0 legacy, 1 access list, 2 fee market",
        Reason.TO_MALFORMED: "the recipient is not 20 bytes",
        Reason.VALUE_OUT_OF_RANGE: "the value is not in 0 … 2^256 - 1 wei",
        Reason.FEE_OUT_OF_RANGE: "a fee is missing or not in 0 … 2^64 - 1 wei per gas",
        Reason.GAS_LIMIT_OUT_OF_RANGE: "the gas limit is not in 0 … 2^63 - 1",
        Reason.PRIORITY_FEE_ABOVE_FEE_CAP: f"priority fee {c.priority[row]} is above the fee cap {c.max_fee[row]}",
        Reason.PRIORITY_FEE_NOT_ALLOWED: f"type {c.type[row]} has no priority fee",
        Reason.INIT_CODE_TOO_LARGE: f"init code of {size} bytes; at most {INIT_CODE_MAX_BYTES} (EIP-3860)",
        Reason.DATA_TOO_LARGE: f"data above {DATA_MAX_BYTES} bytes",
        Reason.ACCESS_LIST_MALFORMED: "the access list is not [{address, storageKeys}, …] of 20- and 32-byte hex",
        Reason.ACCESS_LIST_NOT_ALLOWED: "a legacy transaction has no access list",
        Reason.CREATE_WITHOUT_INIT_CODE: "neither a recipient nor init code",
        Reason.COST_OUT_OF_RANGE: "gas limit · fee + value is 2^256 wei or more",
        Reason.SIGNING_FAILED: "libsecp256k1 gave no signature; a transfer of 0 to the sender filled the nonce",
    }
    if reason is Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT:
        return f"gas limit {c.gas_limit[row]} is below the intrinsic gas {intrinsic_gas(batch, row)}"
    return details[reason]


@njit(nogil=True, cache=True)
def _intrinsic_gas(row, to_valid, data_offsets, data, list_offsets, key_offsets):  # type: ignore[no-untyped-def] # numba infers the types  # noqa: ANN001, ANN202, PLR0913, PLR0917
    """The larger of the intrinsic gas and the calldata floor of EIP-7623."""
    start, end = data_offsets[row], data_offsets[row + 1]
    nonzero = 0
    for i in range(start, end):
        nonzero += data[i] != 0
    size = end - start
    gas = TX_GAS + ZERO_BYTE_GAS * (size - nonzero) + NONZERO_BYTE_GAS * nonzero
    if to_valid[row] == 0:
        gas += CREATE_GAS + INIT_WORD_GAS * ((size + 31) // 32)
    first, last = list_offsets[row], list_offsets[row + 1]
    gas += ADDRESS_GAS * (last - first) + STORAGE_KEY_GAS * (key_offsets[last] - key_offsets[first])
    floor = TX_GAS + FLOOR_TOKEN_GAS * (size - nonzero + TOKENS_PER_NONZERO_BYTE * nonzero)
    return max(gas, floor)


@njit(nogil=True, cache=True)
def _cost_overflows(value, row, gas_limit, fee):  # type: ignore[no-untyped-def] # as above  # noqa: ANN001, ANN202
    """Whether value + gas_limit · fee is 2^256 or more; 32-bit limbs, so that nothing overflows on the way."""
    mask = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    g0, g1, f0, f1 = gas_limit & mask, gas_limit >> half, fee & mask, fee >> half
    low, mid1, mid2, high = g0 * f0, g0 * f1, g1 * f0, g1 * f1
    middle = (low >> half) + (mid1 & mask) + (mid2 & mask)
    product = np.zeros(8, np.uint64)
    product[0] = low & mask
    product[1] = middle & mask
    upper = high + (mid1 >> half) + (mid2 >> half) + (middle >> half)
    product[2] = upper & mask
    product[3] = upper >> half
    carry = np.uint64(0)
    for limb in range(8):
        word = np.uint64(0)
        for i in range(4):
            word = (word << np.uint64(8)) | np.uint64(value[row, 28 - 4 * limb + i])
        carry = (word + product[limb] + carry) >> half
    return carry > np.uint64(0)


@njit(nogil=True, cache=True)
def _fees(row, kind, max_fee, priority, priority_valid):  # type: ignore[no-untyped-def] # as above  # noqa: ANN001, ANN202
    if kind != 2:
        return NO_PRIORITY if priority_valid[row] else OK
    if not priority_valid[row]:
        return FEE
    return PRIORITY if priority[row] > max_fee[row] else OK


@njit(nogil=True, cache=True)
def _payload(row, to_valid, data_offsets):  # type: ignore[no-untyped-def] # as above  # noqa: ANN001, ANN202
    size = data_offsets[row + 1] - data_offsets[row]
    if size > DATA_MAX_BYTES:
        return DATA
    if to_valid[row]:
        return OK
    if size == 0:
        return NO_INIT
    return INIT if size > INIT_CODE_MAX_BYTES else OK


@njit(nogil=True, cache=True)
def _judge(
    chain_id, kinds, chain_ids, to_valid, value, gas_limit, max_fee, priority, priority_valid,
    data_offsets, data, list_valid, list_offsets, key_offsets, defect, reasons,
):  # type: ignore[no-untyped-def] # as above  # fmt: skip  # noqa: ANN001, ANN202, PLR0913, PLR0917
    for row in range(len(reasons)):
        kind = kinds[row]
        if defect[row] != 0:
            reasons[row] = defect[row]
        elif chain_ids[row] != chain_id:
            reasons[row] = CHAIN
        elif kind > 2:
            reasons[row] = TYPE
        elif kind == 0 and list_offsets[row + 1] > list_offsets[row]:
            reasons[row] = NO_LIST
        else:
            reason = _fees(row, kind, max_fee, priority, priority_valid)
            if reason == OK:
                reason = _payload(row, to_valid, data_offsets)
            if reason == OK:
                gas = _intrinsic_gas(row, to_valid, data_offsets, data, list_offsets, key_offsets)
                if np.uint64(gas) > gas_limit[row]:
                    reason = GAS
                elif _cost_overflows(value, row, gas_limit[row], max_fee[row]):
                    reason = COST
            reasons[row] = reason

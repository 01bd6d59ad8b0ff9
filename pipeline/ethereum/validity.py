"""Which rows can be signed: rules that depend on the batch alone, so that every process comes to the same answer.

RULES_VERSION is pinned in the assignment. A change of any rule is a new version; old assignments keep theirs.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipeline.ethereum.batch import Batch, specimen
from pipeline.ethereum.columns import U8
from pipeline.ethereum.compiled import compiled
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
"""go-ethereum's pool takes transactions of up to 128 KiB; this bounds the data alone, so a few bytes less may still be
too much for it."""
GAS_LIMIT_BITS: Final = 63
"""What fits the signed 64-bit integers of nodes' databases and explorers."""

OK: Final = int(Reason.SIGNABLE)
CHAIN: Final = int(Reason.CHAIN_ID_MISMATCH)
TYPE: Final = int(Reason.UNKNOWN_TYPE)
FEE: Final = int(Reason.FEE_OUT_OF_RANGE)
PRIORITY: Final = int(Reason.PRIORITY_FEE_ABOVE_FEE_CAP)
NO_PRIORITY: Final = int(Reason.PRIORITY_FEE_NOT_ALLOWED)
GAS_RANGE: Final = int(Reason.GAS_LIMIT_OUT_OF_RANGE)
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
    _judge(np.uint64(batch.header.chain_id), c, reasons)
    return reasons


def warm() -> None:
    """Compile the rules, or load them from numba's cache."""
    judge(specimen())


def intrinsic_gas(batch: Batch, row: int) -> int:
    """The least gas limit with which a node takes the row."""
    c = batch.columns
    first, last = int(c.list_offsets[row]), int(c.list_offsets[row + 1])
    keys = int(c.key_offsets[last] - c.key_offsets[first])
    payload = c.data[c.data_offsets[row] : c.data_offsets[row + 1]]
    return int(_intrinsic_gas(payload, c.to_valid[row], last - first, keys))


def explain(batch: Batch, row: int, reason: Reason) -> str:
    """What is wrong with a row, with its numbers, for a person."""
    c = batch.columns
    size = int(c.data_offsets[row + 1] - c.data_offsets[row])
    policy = batch.header.policy
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
        Reason.COST_OUT_OF_RANGE: "gas limit x fee + value is 2^256 wei or more",
        Reason.POLICY_RECIPIENT: f"policy {policy} does not list the recipient",
        Reason.POLICY_CREATION: f"policy {policy} allows no contract creation",
        Reason.POLICY_VALUE: f"the value is above what policy {policy} allows",
        Reason.POLICY_FEE_CAP: f"fee cap {c.max_fee[row]} is above what policy {policy} allows",
        Reason.POLICY_GAS_LIMIT: f"gas limit {c.gas_limit[row]} is above what policy {policy} allows",
        Reason.POLICY_SELECTOR: f"policy {policy} does not list the first four bytes of the data",
        Reason.SIGNING_FAILED: "libsecp256k1 gave no signature; a transfer of 0 to the sender filled the nonce",
    }
    if reason is Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT:
        return (
            f"gas limit {c.gas_limit[row]} is below the intrinsic gas {intrinsic_gas(batch, row)} "
            "(EIP-2028, EIP-2930, EIP-3860, EIP-7623)"
        )
    return details[reason]


@compiled
def _judge(chain_id: Any, c: Any, reasons: Any) -> None:
    """Rule by rule over all rows: a row that broke one is passed over by the next."""
    for row in range(len(reasons)):
        reasons[row] = c.defect[row]
    _judge_envelope(chain_id, c, reasons)
    _judge_fees(c, reasons)
    _judge_payload(c, reasons)
    _judge_gas(c, reasons)
    _judge_cost(c, reasons)


@compiled
def _judge_envelope(chain_id: Any, c: Any, reasons: Any) -> None:
    kinds, chain_ids, gas_limits, list_offsets = c.type, c.chain_id, c.gas_limit, c.list_offsets
    for row in range(len(reasons)):
        if reasons[row] != OK:
            continue
        if chain_ids[row] != chain_id:
            reasons[row] = CHAIN
        elif kinds[row] > 2:
            reasons[row] = TYPE
        elif gas_limits[row] >> np.uint64(GAS_LIMIT_BITS) != np.uint64(0):
            reasons[row] = GAS_RANGE
        elif kinds[row] == 0 and list_offsets[row + 1] > list_offsets[row]:
            reasons[row] = NO_LIST


@compiled
def _judge_fees(c: Any, reasons: Any) -> None:
    kinds, priorities, priority_valid, max_fees = c.type, c.priority, c.priority_valid, c.max_fee
    for row in range(len(reasons)):
        if reasons[row] != OK:
            continue
        if kinds[row] != 2:
            reasons[row] = NO_PRIORITY if priority_valid[row] else OK
        elif not priority_valid[row]:
            reasons[row] = FEE
        elif priorities[row] > max_fees[row]:
            reasons[row] = PRIORITY


@compiled
def _judge_payload(c: Any, reasons: Any) -> None:
    to_valid, offsets = c.to_valid, c.data_offsets
    for row in range(len(reasons)):
        if reasons[row] != OK:
            continue
        size = offsets[row + 1] - offsets[row]
        if size > DATA_MAX_BYTES:
            reasons[row] = DATA
        elif not to_valid[row] and size == 0:
            reasons[row] = NO_INIT
        elif not to_valid[row] and size > INIT_CODE_MAX_BYTES:
            reasons[row] = INIT


@compiled
def _judge_gas(c: Any, reasons: Any) -> None:
    to_valid, gas_limits, offsets, data = c.to_valid, c.gas_limit, c.data_offsets, c.data
    list_offsets, key_offsets = c.list_offsets, c.key_offsets
    for row in range(len(reasons)):
        if reasons[row] == OK:
            first, last = list_offsets[row], list_offsets[row + 1]
            keys = key_offsets[last] - key_offsets[first]
            payload = data[offsets[row] : offsets[row + 1]]
            if np.uint64(_intrinsic_gas(payload, to_valid[row], last - first, keys)) > gas_limits[row]:
                reasons[row] = GAS


@compiled
def _intrinsic_gas(payload: Any, to_valid: Any, entries: Any, keys: Any) -> Any:
    """The larger of the intrinsic gas and the calldata floor of EIP-7623."""
    size = len(payload)
    nonzero = 0
    for byte in payload:
        nonzero += byte != 0
    gas = TX_GAS + ZERO_BYTE_GAS * (size - nonzero) + NONZERO_BYTE_GAS * nonzero
    if not to_valid:
        gas += CREATE_GAS + INIT_WORD_GAS * ((size + 31) // 32)
    gas += ADDRESS_GAS * entries + STORAGE_KEY_GAS * keys
    floor = TX_GAS + FLOOR_TOKEN_GAS * (size - nonzero + TOKENS_PER_NONZERO_BYTE * nonzero)
    return max(gas, floor)


@compiled
def _judge_cost(c: Any, reasons: Any) -> None:
    values, gas_limits, max_fees = c.value, c.gas_limit, c.max_fee
    for row in range(len(reasons)):
        # Only a value whose upper half is full can overflow: the product is below 2^128.
        if (
            reasons[row] == OK
            and values[row, 0] == 0xFF
            and _cost_overflows(values[row], gas_limits[row], max_fees[row])
        ):
            reasons[row] = COST


@compiled
def _cost_overflows(value: Any, gas_limit: Any, fee: Any) -> Any:
    """Whether value + gas_limit · fee is 2^256 or more; 32-bit limbs, so that nothing overflows on the way."""
    for i in range(16):
        if value[i] != 0xFF:
            return False
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    g0, g1, f0, f1 = gas_limit & mask, gas_limit >> half, fee & mask, fee >> half
    low, mid1, mid2, high = g0 * f0, g0 * f1, g1 * f0, g1 * f1
    middle = (low >> half) + (mid1 & mask) + (mid2 & mask)
    upper = high + (mid1 >> half) + (mid2 >> half) + (middle >> half)
    carry = np.uint64(0)
    for limb, product in enumerate((low & mask, middle & mask, upper & mask, upper >> half)):
        word = np.uint64(0)
        for i in range(4):
            word = (word << np.uint64(8)) | np.uint64(value[28 - 4 * limb + i])
        carry = (word + product + carry) >> half
    return carry > np.uint64(0)

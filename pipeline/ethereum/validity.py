"""Which rows can be signed: rules that depend on the batch alone, so that every process comes to the same answer.

The version of the rules is pinned in the assignment: RULES_VERSION for a narrow batch, in which blob and set-code
transactions are unknown, WIDE_RULES_VERSION for a wide one (pipeline.ethereum.rules). A change of any rule is a new
version; old assignments keep theirs.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipeline.ethereum.batch import BLOB_TYPE, SET_CODE_TYPE, Batch, specimen
from pipeline.ethereum.columns import U8
from pipeline.ethereum.compiled import compiled
from pipeline.ethereum.reasons import Reason
from pipeline.ethereum.rules import (
    ADDRESS_GAS,
    AUTHORIZATION_GAS,
    AUTHORIZATION_NONCE_END,
    BLOB_GAS,
    BLOB_HASH_VERSION,
    BLOBS_MAX,
    CREATE_GAS,
    DATA_MAX_BYTES,
    FLOOR_TOKEN_GAS,
    GAS_LIMIT_BITS,
    INIT_CODE_MAX_BYTES,
    INIT_WORD_GAS,
    NONZERO_BYTE_GAS,
    ORDER,
    RULES_VERSION,
    STORAGE_KEY_GAS,
    TOKENS_PER_NONZERO_BYTE,
    TX_GAS,
    WIDE_RULES_VERSION,
    ZERO_BYTE_GAS,
)

R_END: Final[U8] = np.frombuffer(ORDER.to_bytes(32, "big"), np.uint8)
S_END: Final[U8] = np.frombuffer((ORDER // 2 + 1).to_bytes(32, "big"), np.uint8)  # EIP-2

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
NO_CREATION: Final = int(Reason.CREATION_NOT_ALLOWED)
BLOBS: Final = int(Reason.BLOBS_MALFORMED)
NO_BLOBS: Final = int(Reason.BLOBS_NOT_ALLOWED)
AUTHORIZATIONS: Final = int(Reason.AUTHORIZATIONS_MALFORMED)
NO_AUTHORIZATIONS: Final = int(Reason.AUTHORIZATIONS_NOT_ALLOWED)
NO_EFFECT: Final = int(Reason.AUTHORIZATION_WITHOUT_EFFECT)


def judge(batch: Batch) -> U8:
    """A Reason per row, (n,); 0 = signable. The first rule that a row breaks names it."""
    c = batch.columns
    reasons = np.zeros(len(c.tx_id), np.uint8)
    _judge(np.uint64(batch.header.chain_id), batch.header.wide, c, batch.extras, reasons)
    return reasons


def rules_version(batch: Batch) -> int:
    """Of the rules by which `judge` decides on this batch."""
    return WIDE_RULES_VERSION if batch.header.wide else RULES_VERSION


def warm() -> None:
    """Compile the rules, or load them from numba's cache."""
    judge(specimen())


def intrinsic_gas(batch: Batch, row: int) -> int:
    """The least gas limit with which a node takes the row."""
    c = batch.columns
    first, last = int(c.list_offsets[row]), int(c.list_offsets[row + 1])
    keys = int(c.key_offsets[last] - c.key_offsets[first])
    payload = c.data[c.data_offsets[row] : c.data_offsets[row + 1]]
    authorizations = int(batch.extras.auth_offsets[row + 1] - batch.extras.auth_offsets[row])
    return int(_intrinsic_gas(payload, c.to_valid[row], last - first, keys, authorizations))


def explain(batch: Batch, row: int, reason: Reason) -> str:
    """What is wrong with a row, with its numbers, for a person."""
    c = batch.columns
    size = int(c.data_offsets[row + 1] - c.data_offsets[row])
    policy = batch.header.policy
    known = "0 legacy, 1 access list, 2 fee market" + (", 3 blob, 4 set code" if batch.header.wide else "")
    blobs = "blob gas x blob fee + " if c.type[row] == BLOB_TYPE else ""
    details = {
        Reason.CHAIN_ID_MISMATCH: f"chain id {c.chain_id[row]}, but the source is for chain {batch.header.chain_id}",
        Reason.UNKNOWN_TYPE: f"type {c.type[row]}; known are {known}",
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
        Reason.COST_OUT_OF_RANGE: f"gas limit x fee + {blobs}value is 2^256 wei or more",
        Reason.POLICY_RECIPIENT: f"policy {policy} does not list the recipient",
        Reason.POLICY_CREATION: f"policy {policy} allows no contract creation",
        Reason.POLICY_VALUE: f"the value is above what policy {policy} allows",
        Reason.POLICY_FEE_CAP: f"fee cap {c.max_fee[row]} is above what policy {policy} allows",
        Reason.POLICY_GAS_LIMIT: f"gas limit {c.gas_limit[row]} is above what policy {policy} allows",
        Reason.POLICY_SELECTOR: f"policy {policy} does not list the first four bytes of the data",
        Reason.SIGNING_FAILED: "libsecp256k1 gave no signature; a transfer of 0 to the sender filled the nonce",
    }
    if reason is Reason.INTRINSIC_GAS_ABOVE_GAS_LIMIT:
        eips = "EIP-2028, EIP-2930, EIP-3860, EIP-7623" + (", EIP-7702" if c.type[row] == SET_CODE_TYPE else "")
        return f"gas limit {c.gas_limit[row]} is below the intrinsic gas {intrinsic_gas(batch, row)} ({eips})"
    if reason is Reason.AUTHORIZATION_WITHOUT_EFFECT:
        return _without_effect(batch, row)
    return details[reason] if reason in details else _explain_wide(batch, row, reason)


def _explain_wide(batch: Batch, row: int, reason: Reason) -> str:
    """The same, of what only a row of a wide batch can have."""
    kind, x = batch.columns.type[row], batch.extras
    blobs = int(x.blob_offsets[row + 1] - x.blob_offsets[row])
    blob_fee = x.blob_fee[row] if x.blob_fee_valid[row] else "none"
    authorizations = int(x.auth_offsets[row + 1] - x.auth_offsets[row])
    sender = batch.header.sender
    return {
        Reason.SENDER_MALFORMED: "the sender is not 20 bytes",
        Reason.SENDER_UNKNOWN: f"the key manager has no key of the sender {sender} for this chain",
        Reason.SENDER_DISABLED: f"the key of the sender {sender} is disabled",
        Reason.SENDER_SET_APART: "the sender's key is set apart for blob transactions, or this is one and it is not",
        Reason.CREATION_NOT_ALLOWED: f"type {kind} has a recipient: it creates no contract (EIP-4844, EIP-7702)",
        Reason.BLOBS_MALFORMED: (
            f"blob hashes: {blobs}, blob fee: {blob_fee}; a blob transaction has 1 … {BLOBS_MAX} hashes of 32 bytes, "
            "each beginning with 0x01, and a fee in 0 … 2^64 - 1 wei per blob gas (EIP-4844, EIP-7594)"
        ),
        Reason.BLOBS_NOT_ALLOWED: f"type {kind} has no blobs; blob hashes: {blobs}, blob fee: {blob_fee}",
        Reason.AUTHORIZATIONS_MALFORMED: (
            "the authorization list is empty or not [{chainId, address, nonce, yParity, r, s}, …] of hex (EIP-7702)"
        ),
        Reason.AUTHORIZATIONS_NOT_ALLOWED: f"type {kind} has no authorizations; here are {authorizations}",
    }[reason]


def _without_effect(batch: Batch, row: int) -> str:
    """Of the first authorization that can take none, what it says."""
    x, chain_id = batch.extras, np.uint64(batch.header.chain_id)
    first, last = int(x.auth_offsets[row]), int(x.auth_offsets[row + 1])
    for at in range(first, last):
        of_chain, nonce, parity = x.auth_chain_ids[at], x.auth_nonces[at], x.auth_parities[at]
        if not _takes_effect(chain_id, of_chain, nonce, parity, x.auth_r[at], x.auth_s[at]):
            return (
                f"authorization {at - first + 1} of {last - first} is for chain id {of_chain} and nonce {nonce}, with "
                f"y parity {parity}; a node skips one that is not for chain 0 or {chain_id}, whose nonce is 2^64 - 1, "
                "or whose y parity, r or s is out of range (EIP-2, EIP-7702)"
            )
    return "a node would skip an authorization (EIP-7702)"


@compiled
def _judge(chain_id: Any, wide: Any, c: Any, x: Any, reasons: Any) -> None:
    """Rule by rule over all rows: a row that broke one is passed over by the next."""
    for row in range(len(reasons)):
        reasons[row] = c.defect[row]
    _judge_envelope(chain_id, np.uint8(4) if wide else np.uint8(2), c, reasons)
    _judge_fees(c, reasons)
    if wide:
        _judge_blobs(c, x, reasons)
        _judge_authorizations(chain_id, c, x, reasons)
    _judge_payload(c, reasons)
    _judge_gas(c, x, reasons)
    _judge_cost(c, x, reasons)


@compiled
def _judge_envelope(chain_id: Any, last_kind: Any, c: Any, reasons: Any) -> None:
    kinds, chain_ids, gas_limits, list_offsets = c.type, c.chain_id, c.gas_limit, c.list_offsets
    to_valid = c.to_valid
    for row in range(len(reasons)):
        if reasons[row] != OK:
            continue
        if chain_ids[row] != chain_id:
            reasons[row] = CHAIN
        elif kinds[row] > last_kind:
            reasons[row] = TYPE
        elif gas_limits[row] >> np.uint64(GAS_LIMIT_BITS) != np.uint64(0):
            reasons[row] = GAS_RANGE
        elif kinds[row] == 0 and list_offsets[row + 1] > list_offsets[row]:
            reasons[row] = NO_LIST
        elif kinds[row] > 2 and not to_valid[row]:
            reasons[row] = NO_CREATION


@compiled
def _judge_fees(c: Any, reasons: Any) -> None:
    kinds, priorities, priority_valid, max_fees = c.type, c.priority, c.priority_valid, c.max_fee
    for row in range(len(reasons)):
        if reasons[row] != OK:
            continue
        if kinds[row] < 2:
            reasons[row] = NO_PRIORITY if priority_valid[row] else OK
        elif not priority_valid[row]:
            reasons[row] = FEE
        elif priorities[row] > max_fees[row]:
            reasons[row] = PRIORITY


@compiled
def _judge_blobs(c: Any, x: Any, reasons: Any) -> None:
    kinds, fee_valid, offsets, hashes = c.type, x.blob_fee_valid, x.blob_offsets, x.blob_hashes
    for row in range(len(reasons)):
        if reasons[row] != OK:
            continue
        first, last = offsets[row], offsets[row + 1]
        if kinds[row] != 3:
            reasons[row] = NO_BLOBS if fee_valid[row] or last > first else OK
        elif not fee_valid[row] or not 1 <= last - first <= BLOBS_MAX:
            reasons[row] = BLOBS
        else:
            for blob in range(first, last):
                if hashes[blob, 0] != BLOB_HASH_VERSION:
                    reasons[row] = BLOBS


@compiled
def _judge_authorizations(chain_id: Any, c: Any, x: Any, reasons: Any) -> None:
    kinds, offsets, chain_ids, nonces = c.type, x.auth_offsets, x.auth_chain_ids, x.auth_nonces
    parities, r, s = x.auth_parities, x.auth_r, x.auth_s
    for row in range(len(reasons)):
        if reasons[row] != OK:
            continue
        first, last = offsets[row], offsets[row + 1]
        if kinds[row] != 4:
            reasons[row] = NO_AUTHORIZATIONS if last > first else OK
        elif last == first:
            reasons[row] = AUTHORIZATIONS
        for entry in range(first, last):
            if reasons[row] == OK and not _takes_effect(
                chain_id, chain_ids[entry], nonces[entry], parities[entry], r[entry], s[entry]
            ):
                reasons[row] = NO_EFFECT


@compiled
def _takes_effect(chain_id: Any, of_chain: Any, nonce: Any, parity: Any, r: Any, s: Any) -> Any:
    """Whether an authorization can: a node skips any other without a word, and still takes its gas (EIP-7702)."""
    here = of_chain == np.uint64(0) or of_chain == chain_id
    used_up = nonce == np.uint64(AUTHORIZATION_NONCE_END)
    return here and not used_up and parity <= 1 and _is_within(r, R_END) and _is_within(s, S_END)


@compiled
def _is_within(number: Any, end: Any) -> Any:
    """Whether 0 < number < end; both of 32 bytes, big-endian."""
    some = False
    for i in range(32):
        some = some or number[i] != 0
    for i in range(32):
        if number[i] != end[i]:
            return some and number[i] < end[i]
    return False


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
def _judge_gas(c: Any, x: Any, reasons: Any) -> None:
    to_valid, gas_limits, offsets, data = c.to_valid, c.gas_limit, c.data_offsets, c.data
    list_offsets, key_offsets, auth_offsets = c.list_offsets, c.key_offsets, x.auth_offsets
    for row in range(len(reasons)):
        if reasons[row] == OK:
            first, last = list_offsets[row], list_offsets[row + 1]
            keys = key_offsets[last] - key_offsets[first]
            authorizations = auth_offsets[row + 1] - auth_offsets[row]
            payload = data[offsets[row] : offsets[row + 1]]
            gas = _intrinsic_gas(payload, to_valid[row], last - first, keys, authorizations)
            if np.uint64(gas) > gas_limits[row]:
                reasons[row] = GAS


@compiled
def _intrinsic_gas(payload: Any, to_valid: Any, entries: Any, keys: Any, authorizations: Any) -> Any:
    """The larger of the intrinsic gas and the calldata floor of EIP-7623."""
    size = len(payload)
    nonzero = 0
    for byte in payload:
        nonzero += byte != 0
    gas = TX_GAS + ZERO_BYTE_GAS * (size - nonzero) + NONZERO_BYTE_GAS * nonzero
    if not to_valid:
        gas += CREATE_GAS + INIT_WORD_GAS * ((size + 31) // 32)
    gas += ADDRESS_GAS * entries + STORAGE_KEY_GAS * keys + AUTHORIZATION_GAS * authorizations
    floor = TX_GAS + FLOOR_TOKEN_GAS * (size - nonzero + TOKENS_PER_NONZERO_BYTE * nonzero)
    return max(gas, floor)


@compiled
def _judge_cost(c: Any, x: Any, reasons: Any) -> None:
    values, gas_limits, max_fees = c.value, c.gas_limit, c.max_fee
    blob_offsets, blob_fees = x.blob_offsets, x.blob_fee
    for row in range(len(reasons)):
        # Only a value whose upper half is full can overflow: what is paid for gas and blobs is below 2^128.
        if reasons[row] == OK and values[row, 0] == 0xFF:
            blob_gas = np.uint64(blob_offsets[row + 1] - blob_offsets[row]) * np.uint64(BLOB_GAS)
            if _cost_overflows(values[row], gas_limits[row], max_fees[row], blob_gas, blob_fees[row]):
                reasons[row] = COST


@compiled
def _cost_overflows(value: Any, gas_limit: Any, fee: Any, blob_gas: Any, blob_fee: Any) -> Any:
    """Whether value + gas_limit · fee + blob_gas · blob_fee is 2^256 or more.

    32-bit limbs, so that nothing overflows on the way; blob_gas fits one.
    """
    for i in range(16):
        if value[i] != 0xFF:
            return False
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    g0, g1, f0, f1 = gas_limit & mask, gas_limit >> half, fee & mask, fee >> half
    low, mid1, mid2, high = g0 * f0, g0 * f1, g1 * f0, g1 * f1
    middle = (low >> half) + (mid1 & mask) + (mid2 & mask)
    upper = high + (mid1 >> half) + (mid2 >> half) + (middle >> half)
    blob_low = blob_gas * (blob_fee & mask)
    blob_high = blob_gas * (blob_fee >> half) + (blob_low >> half)
    products = (low & mask, middle & mask, upper & mask, upper >> half)
    blobs = (blob_low & mask, blob_high & mask, blob_high >> half, np.uint64(0))
    carry = np.uint64(0)
    for limb in range(4):
        word = np.uint64(0)
        for i in range(4):
            word = (word << np.uint64(8)) | np.uint64(value[28 - 4 * limb + i])
        carry = (word + products[limb] + blobs[limb] + carry) >> half
    return carry > np.uint64(0)

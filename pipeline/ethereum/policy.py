"""What rows of a source may be signed, beyond what a chain would take: rules of its owner, in numbered versions.

A policy is applied once, by the reader, when it fixes a batch: a denied row carries its Reason in the batch's `defect`
column, and the batch names the version, both under its digest. So every redelivery and every repeat denies the same
rows, whatever the policy is by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.ethereum.columns import U8, Columns
from pipeline.ethereum.reasons import Reason

NO_POLICY: Final = 0
"""The version of a batch that no policy was applied to."""

ADDRESS_BYTES: Final = 20
SELECTOR_BYTES: Final = 4
LIMBS: Final = 4
"""64-bit words of a value."""

CODES: Final = (
    Reason.POLICY_RECIPIENT,
    Reason.POLICY_CREATION,
    Reason.POLICY_VALUE,
    Reason.POLICY_FEE_CAP,
    Reason.POLICY_GAS_LIMIT,
    Reason.POLICY_SELECTOR,
)
"""In the order in which a row is judged: the first that applies names it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One version of a source's policy. None = not bounded."""

    version: int
    recipients: frozenset[bytes] | None = None  #: the only ones, 20 bytes each
    creations: bool = True  #: whether a contract may be created
    value_max: int | None = None  #: wei per transaction
    fee_cap_max: int | None = None  #: wei per gas
    gas_limit_max: int | None = None
    selectors: frozenset[bytes] | None = None  #: the only first four bytes that data may have, when there is data
    budget: int | None = None  #: wei that all rows together may cost in a period; see assignment.budget
    period_s: int | None = None  #: of the budget

    def verdict(self, to: bytes | None, value: int, fee_cap: int, gas_limit: int, data: bytes) -> Reason:
        """Of one row, by plain comparisons: what the verifier says, with eyes of its own."""
        denied = {
            Reason.POLICY_RECIPIENT: to is not None and self.recipients is not None and to not in self.recipients,
            Reason.POLICY_CREATION: to is None and not self.creations,
            Reason.POLICY_VALUE: _above(value, self.value_max),
            Reason.POLICY_FEE_CAP: _above(fee_cap, self.fee_cap_max),
            Reason.POLICY_GAS_LIMIT: _above(gas_limit, self.gas_limit_max),
            Reason.POLICY_SELECTOR: to is not None and bool(data) and not self._allows(data[:SELECTOR_BYTES]),
        }
        return next((code for code in CODES if denied[code]), Reason.SIGNABLE)

    def _allows(self, selector: bytes) -> bool:
        return self.selectors is None or selector in self.selectors


def _above(number: int, most: int | None) -> bool:
    return most is not None and number > most


def applied(policy: Policy, rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows of a batch (schema batch.COLUMNS) with the defect of each that the policy denies and that has none."""
    columns = Columns.of(rows)
    defect = columns.defect.copy()
    for code in CODES:
        defect[(defect == 0) & _denied(policy, columns, code)] = int(code)
    at = rows.schema.get_field_index("defect")
    return rows.set_column(at, rows.schema.field(at), pa.array(defect))


def _denied(policy: Policy, c: Columns, code: Reason) -> NDArray[np.bool_]:
    calls = c.to_valid == 1
    match code:
        case Reason.POLICY_RECIPIENT:
            return _none(c) if policy.recipients is None else calls & ~_in(c.to, policy.recipients)
        case Reason.POLICY_CREATION:
            return _none(c) if policy.creations else ~calls
        case Reason.POLICY_VALUE:
            return _none(c) if policy.value_max is None else _values_above(c.value, policy.value_max)
        case Reason.POLICY_FEE_CAP:
            return _none(c) if policy.fee_cap_max is None else c.max_fee > np.uint64(policy.fee_cap_max)
        case Reason.POLICY_GAS_LIMIT:
            return _none(c) if policy.gas_limit_max is None else c.gas_limit > np.uint64(policy.gas_limit_max)
    return _none(c) if policy.selectors is None else calls & ~_selected(c, policy.selectors)


def _none(c: Columns) -> NDArray[np.bool_]:
    return np.zeros(len(c.tx_id), np.bool_)


def _in(values: U8, allowed: frozenset[bytes]) -> NDArray[np.bool_]:
    width = values.shape[1]
    listed = np.frombuffer(b"".join(sorted(allowed)), f"V{width}")
    found: NDArray[np.bool_] = np.isin(np.ascontiguousarray(values).view(f"V{width}").reshape(-1), listed)
    return found


def _values_above(values: U8, most: int) -> NDArray[np.bool_]:
    """Big-endian numbers, compared word by word from the highest."""
    words: Any = np.ascontiguousarray(values).view(">u8").reshape(len(values), LIMBS).astype(np.uint64)
    limit = np.frombuffer(most.to_bytes(8 * LIMBS, "big"), ">u8").astype(np.uint64)
    above, equal = np.zeros(len(values), np.bool_), np.ones(len(values), np.bool_)
    for limb in range(LIMBS):
        above |= equal & (words[:, limb] > limit[limb])
        equal &= words[:, limb] == limit[limb]
    return above


def _selected(c: Columns, allowed: frozenset[bytes]) -> NDArray[np.bool_]:
    """Rows without data, and those whose data begins with one of these."""
    starts, sizes = c.data_offsets[:-1].astype(np.int64), np.diff(c.data_offsets)
    good: NDArray[np.bool_] = sizes == 0
    whole = np.flatnonzero(sizes >= SELECTOR_BYTES)
    if len(whole) and allowed:
        first = c.data[starts[whole, None] + np.arange(SELECTOR_BYTES)]
        good[whole] = _in(first, allowed)
    return good

"""Decimal text to 256-bit numbers: what Postgres' `numeric` comes as."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.ethereum.compiled import compiled


@compiled
def _push(limbs: Any, digit: Any) -> Any:
    """Times ten plus the ASCII digit; whether it is a digit, and the result below 2^256."""
    if digit < 48 or digit > 57:
        return False
    carry = np.uint64(digit - 48)
    for limb in range(8):
        word = limbs[limb] * np.uint64(10) + carry
        limbs[limb] = word & np.uint64(0xFFFFFFFF)
        carry = word >> np.uint64(32)
    return carry == np.uint64(0)


@compiled
def parse(offsets: Any, digits: Any, out: Any, ok: Any) -> None:
    """Decimal numbers one after the other, row k in digits[offsets[k] : offsets[k + 1]], to row k of `out`, (n, 32).

    Big-endian; `ok` becomes 1 where it is a whole number below 2^256. Schoolbook: eight 32-bit limbs, times ten plus
    the digit; a carry out of the last limb is 2^256 or more.
    """
    limbs = np.zeros(8, np.uint64)
    for row in range(len(ok)):
        limbs[:] = 0
        good = offsets[row + 1] > offsets[row]
        for i in range(offsets[row], offsets[row + 1]):
            good = good and _push(limbs, digits[i])
        if good:
            ok[row] = 1
            for limb in range(8):
                for byte in range(4):
                    out[row, 31 - 4 * limb - byte] = (limbs[limb] >> np.uint64(8 * byte)) & np.uint64(0xFF)

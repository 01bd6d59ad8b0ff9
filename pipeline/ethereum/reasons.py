"""Why a row cannot be signed. The codes are a public contract: numbers and names are never reused."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Reason(IntEnum):
    """0 is signable. The number travels in a batch's `defect` column, the name on `tx.rejected` and in `outcomes`."""

    SIGNABLE = 0
    CHAIN_ID_MISMATCH = 1
    UNKNOWN_TYPE = 2
    TO_MALFORMED = 3
    VALUE_OUT_OF_RANGE = 4
    FEE_OUT_OF_RANGE = 5
    GAS_LIMIT_OUT_OF_RANGE = 6
    PRIORITY_FEE_ABOVE_FEE_CAP = 7
    PRIORITY_FEE_NOT_ALLOWED = 8
    INTRINSIC_GAS_ABOVE_GAS_LIMIT = 9
    INIT_CODE_TOO_LARGE = 10
    DATA_TOO_LARGE = 11
    ACCESS_LIST_MALFORMED = 12
    ACCESS_LIST_NOT_ALLOWED = 13
    CREATE_WITHOUT_INIT_CODE = 14
    COST_OUT_OF_RANGE = 15
    SIGNING_FAILED = 16
    POLICY_RECIPIENT = 17
    POLICY_CREATION = 18
    POLICY_VALUE = 19
    POLICY_FEE_CAP = 20
    POLICY_GAS_LIMIT = 21
    POLICY_SELECTOR = 22
    SENDER_MALFORMED = 23
    SENDER_UNKNOWN = 24
    SENDER_DISABLED = 25
    SENDER_SET_APART = 26
    CREATION_NOT_ALLOWED = 27
    BLOBS_MALFORMED = 28
    BLOBS_NOT_ALLOWED = 29
    AUTHORIZATIONS_MALFORMED = 30
    AUTHORIZATIONS_NOT_ALLOWED = 31
    AUTHORIZATION_WITHOUT_EFFECT = 32

    @property
    def is_of_row(self) -> bool:
        """Whether a batch may carry it: not what only assigning or signing finds out."""
        return self not in {Reason.SIGNING_FAILED, *OF_SENDER}

    @property
    def code(self) -> str:
        """The stable name, such as `intrinsic_gas_above_gas_limit`."""
        return self.name.lower()


OF_SENDER: Final = frozenset({Reason.SENDER_UNKNOWN, Reason.SENDER_DISABLED, Reason.SENDER_SET_APART})
"""Why a pinned sender is not lent; decided, for a whole batch, where it would be."""

"""What the verifier can find wrong. The names are a public contract."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pipeline.stream import Stream


class ViolationKind(StrEnum):
    """One word for each way in which exactly-once, or the signature itself, can fail."""

    UNREADABLE = "unreadable"  #: a record or a transaction that cannot be decoded
    WRONG_SENDER = "wrong_sender"  #: another key signed than the record says
    WRONG_NONCE = "wrong_nonce"
    WRONG_ORDER = "wrong_order"  #: nonces of a batch do not follow the order of its rows
    WRONG_HASH = "wrong_hash"
    CHANGED_FIELD = "changed_field"  #: the signed transaction differs from the source row
    UNKNOWN_ROW = "unknown_row"  #: no such row in the source
    WRONG_VERDICT = "wrong_verdict"  #: signed although it breaks a rule, or rejected for another reason
    TRANSACTION_TWICE = "transaction_twice"
    NONCE_TWICE = "nonce_twice"
    BATCH_TWICE = "batch_twice"
    LEDGER_MISMATCH = "ledger_mismatch"  #: the ledger knows the batch otherwise, or not at all
    NONCE_GAP = "nonce_gap"
    ROW_WITHOUT_OUTCOME = "row_without_outcome"
    BATCH_NOT_PUBLISHED = "batch_not_published"
    FILLER_MISMATCH = "filler_mismatch"  #: rows that failed to sign and nonces that were filled are not the same number
    RECORDS_GONE = "records_gone"  #: Kafka no longer has records that were not looked at


DUPLICATES: Final = frozenset({ViolationKind.TRANSACTION_TWICE, ViolationKind.NONCE_TWICE, ViolationKind.BATCH_TWICE})
LOSSES: Final = frozenset(
    {ViolationKind.ROW_WITHOUT_OUTCOME, ViolationKind.NONCE_GAP, ViolationKind.BATCH_NOT_PUBLISHED}
)


@dataclass(frozen=True, slots=True)
class Violation:
    """One finding, with what is needed to look it up."""

    kind: ViolationKind
    detail: str
    stream: Stream | None = None
    seq: int | None = None
    tx_id: int | None = None

    def __str__(self) -> str:
        where = f" {self.stream} batch {self.seq}" if self.stream else ""
        row = f" row {self.tx_id}" if self.tx_id is not None else ""
        return f"{self.kind}{where}{row}: {self.detail}"

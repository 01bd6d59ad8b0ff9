"""A rejected row as it travels on `tx.rejected`: one JSON object per record."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final, Self

import orjson

from pipeline.errors import MalformedBatch

TEXTS: Final = frozenset({"source", "reason", "detail"})
"""The fields that are text; the others are whole numbers."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Which row, why, by which version of the rules, and when (unix ms)."""

    tx_id: int
    source: str
    shard: int
    seq: int
    chain_id: int
    reason: str
    detail: str
    rules_version: int
    rejected_at: int
    policy: int = 0  #: version of the policy that was applied to its batch, 0 = there was none

    def to_json(self) -> bytes:
        """The value of its record."""
        return orjson.dumps(dataclasses.asdict(self), option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_json(cls, value: bytes) -> Self:
        """Raises MalformedBatch."""
        try:
            rejection = cls(**orjson.loads(value))
        except (ValueError, TypeError) as error:
            raise MalformedBatch(f"the record is not a rejection: {error}") from error
        for field in dataclasses.fields(cls):
            if type(getattr(rejection, field.name)) is not (str if field.name in TEXTS else int):
                raise MalformedBatch(f"the record is not a rejection: {field.name} is of another type.")
        return rejection

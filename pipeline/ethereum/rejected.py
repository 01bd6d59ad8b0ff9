"""A rejected row as it travels on `tx.rejected`: one JSON object per record."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import orjson

from pipeline.errors import MalformedBatch


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

    def to_json(self) -> bytes:
        """The value of its record."""
        return orjson.dumps(dataclasses.asdict(self), option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_json(cls, value: bytes) -> Self:
        """Raises MalformedBatch."""
        try:
            return cls(**orjson.loads(value))
        except (ValueError, TypeError) as error:
            raise MalformedBatch(f"the record is not a rejection: {error}") from error

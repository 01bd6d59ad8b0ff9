"""Which chain of batches a row belongs to, and how far that chain has come."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pipeline.errors import MalformedBatch

SOURCE_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,47}")
"""A source's name is part of topic names, etcd keys and transactional ids, so its alphabet is small."""


@dataclass(frozen=True, slots=True, order=True)
class Stream:
    """One shard of a source: one Kafka partition of `tx.batches.{source}`, one chain of batches."""

    source: str
    shard: int

    def __str__(self) -> str:
        return f"{self.source}/{self.shard}"

    @classmethod
    def parse(cls, text: str) -> Stream:
        """Read `source/shard`. Raises MalformedBatch."""
        source, _, shard = text.rpartition("/")
        if not SOURCE_NAME.fullmatch(source) or not shard.isdecimal():
            raise MalformedBatch(f"{text!r} is not a stream; expected source/shard")
        return cls(source, int(shard))


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """`(xid8, id)` of the last row of a batch in its stream; rows after it compare greater."""

    xid: int
    id: int

    def __str__(self) -> str:
        return f"{self.xid}:{self.id}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read `xid:id`. Raises MalformedBatch."""
        xid, _, row = text.partition(":")
        if not xid.isdecimal() or not row.lstrip("-").isdecimal():
            raise MalformedBatch(f"{text!r} is not a cursor; expected xid:id")
        return cls(int(xid), int(row))


START: Final = Cursor(0, -(2**63))
"""The cursor before the first row of any stream (xid8 starts at 3, id may be any bigint)."""

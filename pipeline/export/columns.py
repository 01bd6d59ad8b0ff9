"""The columns of an exported row, and how a format without binary columns writes them."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

_FIELDS: Final[list[pa.Field[Any]]] = [
    pa.field("source", pa.string(), nullable=False),
    pa.field("tx_id", pa.int64(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("chain_id", pa.int64(), nullable=False),
    pa.field("sender", pa.binary(20)),
    pa.field("nonce", pa.uint64()),
    pa.field("hash", pa.binary(32)),
    pa.field("raw", pa.binary()),  # null when rejected, and when Kafka has deleted the record
    pa.field("reason", pa.string()),
    pa.field("detail", pa.string()),
    pa.field("decided_at", pa.timestamp("us", "UTC"), nullable=False),
]

COLUMNS: Final = pa.schema(_FIELDS)

IN_HEX: Final = frozenset({"sender", "hash", "raw"})
TIME: Final = "decided_at"

AS_TEXT: Final = pa.schema(
    [field.with_type(pa.string()) if field.name in {*IN_HEX, TIME} else field for field in COLUMNS]
)


def as_text(rows: pa.Table) -> pa.Table:
    """Bytes as 0x and hex, times by RFC 3339."""
    return pa.table([_text(name, rows.column(name)) for name in COLUMNS.names], schema=AS_TEXT)


def _text(name: str, column: Any) -> Any:
    if name in IN_HEX:
        return pa.array([None if value is None else "0x" + value.hex() for value in column.to_pylist()], pa.string())
    if name == TIME:
        # Without its zone, which is UTC: Arrow would look for a database of zones.
        return pc.strftime(column.cast(pa.timestamp("us")), "%Y-%m-%dT%H:%M:%SZ")
    return column

"""Whether a table or view can be a source; asked before the first row is read, as a rejected row stays rejected."""

from __future__ import annotations

import re
from typing import Any, Final

import psycopg

from pipeline.errors import SettingError
from pipeline.settings import SourceSettings

WHOLE: Final = frozenset({"smallint", "integer", "bigint"})
AMOUNT: Final = WHOLE | {"numeric"}
TYPES: Final = {
    "id": WHOLE,
    "type": WHOLE,
    "chain_id": WHOLE,
    "to": frozenset({"bytea"}),
    "value": AMOUNT,
    "gas_limit": WHOLE,
    "max_fee_per_gas": AMOUNT,
    "max_priority_fee_per_gas": AMOUNT,
    "data": frozenset({"bytea"}),
    "access_list": frozenset({"jsonb", "json", "text"}),
    "created_xid": frozenset({"xid8"}),
    "shard": WHOLE,
}
OPTIONAL_TYPES: Final = {
    "sender": TYPES["to"],
    "max_fee_per_blob_gas": AMOUNT,
    "blob_hashes": TYPES["access_list"],
    "authorization_list": TYPES["access_list"],
}
"""Hex text in `to`, or a number that bigint does not hold, would have every row rejected or the stream stuck."""

COLUMNS: Final = """
SELECT a.attname::text, format_type(coalesce(nullif(t.typbasetype, 0), t.oid), NULL)
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
"""
GUARDED: Final = """
SELECT c.relkind NOT IN ('r', 'p') OR count(g.oid) >= 3
FROM pg_class c LEFT JOIN (pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid AND p.proname LIKE 'oncesign\\_%%')
    ON g.tgrelid = c.oid
WHERE c.oid = to_regclass(%s) GROUP BY c.oid, c.relkind
"""
DIVISOR: Final = """
SELECT pg_get_expr(d.adbin, d.adrelid)
FROM pg_attrdef d JOIN pg_attribute a ON (a.attrelid, a.attnum) = (d.adrelid, d.adnum)
WHERE d.adrelid = to_regclass(%s) AND a.attname = 'shard' AND a.attgenerated <> ''
"""
MODULO: Final = re.compile(r"id\)* % \(*'?(\d+)")


async def check_shape(cursor: psycopg.AsyncCursor[Any], table: str, source: SourceSettings) -> None:
    """`table` is quoted. Raises SettingError: what is wrong with it, and what to do."""
    await cursor.execute(COLUMNS, [table])
    present = dict(await cursor.fetchall())
    if not present:
        raise _unfit(source, "does not exist", "Run `oncesign migrate`, or see docs/formats.md.")
    if missing := sorted(TYPES.keys() - present.keys()):
        raise _unfit(source, f"lacks {', '.join(missing)}", "Give it these columns (docs/formats.md).")
    for name, allowed in (TYPES | {name: OPTIONAL_TYPES[name] for name in OPTIONAL_TYPES & present.keys()}).items():
        if present[name] not in allowed:
            why = f"has column {name} of type {present[name]} instead of {' or '.join(sorted(allowed))}"
            raise _unfit(source, why, "A view can cast it (docs/formats.md).")
    await cursor.execute(GUARDED, [table])
    [guarded] = await cursor.fetchone() or (True,)
    if not guarded:
        hint = f"Run in Postgres: SELECT oncesign_guard_v1('{source.table}')"
        raise _unfit(source, "lets rows be changed after they were read", hint)
    await _check_shards(cursor, table, source)


async def _check_shards(cursor: psycopg.AsyncCursor[Any], table: str, source: SourceSettings) -> None:
    """A shard that no reader reads would be rows that nobody signs."""
    await cursor.execute(DIVISOR, [table])
    row = await cursor.fetchone()
    found = MODULO.search(row[0]) if row else None
    if found is not None and int(found[1]) != source.shards:
        raise _unfit(source, f"has {found[1]} shards, the settings say {source.shards}", _SHARDS_HINT)
    await cursor.execute(f"SELECT min(shard), max(shard) FROM {table}")  # noqa: S608 - a quoted identifier
    [[low, high]] = await cursor.fetchall()
    if low is not None and (low < 0 or high >= source.shards):
        raise _unfit(source, f"has rows of shards {low} to {high}, the settings say {source.shards}", _SHARDS_HINT)


_SHARDS_HINT: Final = "Set `shards` of the source in ONCESIGN_SOURCES to what the table was made with."


def _unfit(source: SourceSettings, why: str, hint: str) -> SettingError:
    return SettingError("ONCESIGN_SOURCES", f"table {source.table} of source {source.name} {why}", hint=hint)

"""What `oncesign status`, `assignments` and `tx` read out of etcd, Postgres and Kafka."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from actors.composition import bus, tables
from actors.composition.budgets import budgets
from jobs.checks import outcome_counts
from jobs.desk import etcd_view
from jobs.output import moment
from pipeline.adapters.broadcasts import PostgresBroadcasts
from pipeline.adapters.ledger import PostgresLedger
from pipeline.adapters.outcomes import PostgresOutcomes
from pipeline.adapters.postgres_source import PostgresSource
from pipeline.assignment.budget import Budget
from pipeline.assignment.records import Assignment, StreamRecord
from pipeline.errors import UsageError
from pipeline.ethereum.decoding import decode
from pipeline.ethereum.signed import SignedRecord
from pipeline.settings import Settings
from pipeline.stream import Stream


async def overview(settings: Settings) -> dict[str, Any]:
    """Keys by state, assignments, streams, halts, budgets, and rows by outcome. Raises DependencyDown."""
    async with etcd_view(settings) as view:
        states = Counter(held.record.state.value for held in view.keys.values())
        streams = {str(stream): held.record for stream, held in sorted(view.streams.items())}
        waiting = len(view.assignments)
    return {
        "keys": dict(states),
        "assignments": waiting,
        "streams": {name: record.seq for name, record in streams.items()},
        "halted": {name: record.halted for name, record in streams.items() if record.halted},
        "rows": await tables.total(settings),
        "outcomes": await outcome_counts(settings),
    } | spending(budgets(settings), streams.values(), time.time_ns() // 1_000_000)


def spending(budgets: Mapping[str, Budget], records: Iterable[StreamRecord], now_ms: int) -> dict[str, Any]:
    """Of each source with a budget, what it has spent in this period; nothing where there is no budget."""
    streams = list(records)
    told = {
        name: {
            "spent_wei": str(budget.spent([record for record in streams if record.stream.source == name], now_ms)),
            "of_wei": str(budget.wei),
            "until": moment(budget.since(now_ms) + budget.period_ms),
        }
        for name, budget in budgets.items()
    }
    return {"budgets": told} if told else {}


async def assignments(settings: Settings) -> list[dict[str, Any]]:
    """What was lent and not released, the oldest first."""
    return [
        {
            "stream": str(a.stream),
            "seq": a.seq,
            "address": a.address or None,
            "first_nonce": a.first_nonce,
            "count": a.count,
            "worker": a.worker,
            "node": a.node,
            "since": moment(a.since_unix_ms),
            "fence": a.fence,
        }
        for a in await read_assignments(settings)
    ]


async def read_assignments(settings: Settings) -> list[Assignment]:
    """The records behind it. Raises StoreUnavailable."""
    async with etcd_view(settings) as view:
        return sorted((held.record for held in view.assignments.values()), key=lambda a: a.since_unix_ms)


async def life_of(settings: Settings, source_name: str, tx_id: int) -> dict[str, Any]:
    """One source row from insertion to outcome. Raises UsageError when there is no such row."""
    source = settings.source(source_name)
    table = PostgresSource(settings.postgres, source)
    try:
        rows = (await table.rows_of([tx_id])).to_pylist()
    finally:
        await table.close()
    if not rows:
        raise UsageError(f"source {source_name} has no row {tx_id}.", hint="Ids start at 1; see: oncesign status")
    life: dict[str, Any] = {"row": _row(rows[0])}
    outcomes = PostgresOutcomes(settings.postgres)
    outcome = await outcomes.find(source_name, tx_id)
    if outcome is None:
        return life | {"outcome": "none yet; the verifier writes it"}
    life["outcome"] = {name: _plain(value) for name, value in outcome.items()}
    life["ledger"] = await _ledger_row(settings, Stream(source_name, outcome["shard"]), outcome["seq"])
    if outcome["status"] == "signed":
        life["signed"] = await _signed(settings, outcome, tx_id)
    if sent := await _broadcast(settings, source_name, tx_id):
        life["broadcast"] = sent
    return life


async def _ledger_row(settings: Settings, stream: Stream, seq: int) -> dict[str, Any] | None:
    ledger = PostgresLedger(settings.postgres)
    try:
        entry = await ledger.entry(stream, seq)
    finally:
        await ledger.close()
    if entry is None:
        return None
    nonces = f"{entry.first_nonce} … {entry.first_nonce + entry.count - 1}" if entry.count else "none"
    return {
        "batch": f"{entry.stream} {entry.seq}",
        "digest": entry.digest,
        "sender": entry.sender or None,
        "nonces": nonces,
        "fence": entry.fence,
        "worker": entry.worker,
    }


async def _signed(settings: Settings, outcome: Any, tx_id: int) -> dict[str, Any] | None:
    offset = outcome["kafka_offset"]
    async with bus.batch_log(settings) as log:
        async for message in log.scan(outcome["topic"], outcome["partition"], offset, offset + 1):
            for row in SignedRecord.decode(message.value).rows.to_pylist():
                if row["tx_id"] == tx_id:
                    tx = decode(row["raw"])
                    return {"key": tx.sender, "nonce": tx.nonce, "hash": _plain(tx.hash), "raw": _plain(row["raw"])}
    return None


async def _broadcast(settings: Settings, source: str, tx_id: int) -> dict[str, Any] | None:
    broadcasts = PostgresBroadcasts(settings.postgres)
    try:
        return {name: _plain(value) for name, value in (await broadcasts.find(source, tx_id) or {}).items()} or None
    finally:
        await broadcasts.close()


def _row(row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: _plain(value) for name, value in row.items() if name not in ("created_xid", "id", "defect")}
    return kept | {"value": str(int.from_bytes(row["value"], "big"))}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return value if isinstance(value, int | str | type(None)) else str(value)

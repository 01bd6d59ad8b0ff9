"""`oncesign bench policy`: what a policy, or senders that rows name, cost: the ratio of two rates measured in turn."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import orjson

from jobs.bench_pipeline import bench as drain
from jobs.desk import etcd_view
from jobs.signing import ensure_keys
from pipeline.adapters import migrations
from pipeline.assignment.records import KeyState
from pipeline.settings import ENV_PREFIX, Settings
from pipeline.stock.row import Row

SOURCES: Final = ENV_PREFIX + "SOURCES"


def bench(settings: Settings, policy_file: Path | None, count: int, rounds: int, *, pinned: bool) -> dict[str, Any]:
    """Drain `count` rows without and with the policy, `rounds` times each; `pinned`: the latter name their senders.

    Raises what `bench pipeline` raises.
    """
    migrations.migrate(settings.postgres)
    ensure_keys(settings)
    written = partial(name_senders, senders=asyncio.run(senders_of(settings)), run=run_of(settings))
    ways = (("without", None, iter), ("with", policy_file and policy_file.resolve(), written if pinned else iter))
    rates: dict[str, list[float]] = {"without": [], "with": []}
    cpu: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(rounds):
        for name, file, rows in ways:
            with source_with(settings, file) as changed:
                found = drain(changed, count, verify=False, written=rows)
            rates[name].append(found["tx_per_s"])
            cpu[name].append(found["cpu_us_per_tx"])
    return {
        "count": count,
        "rounds": rounds,
        "tx_per_s": {name: round(median(values)) for name, values in rates.items()},
        "cpu_us_per_tx": {name: round(median(values), 1) for name, values in cpu.items()},
        "rate_ratio": round(median(rates["with"]) / median(rates["without"]), 3),
        "cpu_ratio": round(median(cpu["with"]) / median(cpu["without"]), 3),
    }


async def senders_of(settings: Settings) -> list[bytes]:
    """Keys of the first source's chain that may be lent. Raises StoreUnavailable."""
    async with etcd_view(settings) as view:
        keys = [key for key in view.oldest_first() if key.chain_id == settings.sources[0].chain_id]
    return [bytes.fromhex(key.address[2:]) for key in keys if key.state in (KeyState.FREE, KeyState.LOCKED)]


def run_of(settings: Settings) -> int:
    """Rows of one sender in a row, so that each shard has a full batch of them."""
    return settings.reader.batch_rows_max * settings.sources[0].shards


def name_senders(rows: Iterator[Row], senders: list[bytes], run: int) -> Iterator[Row]:
    """The rows, each run of them with the next sender."""
    for at, row in enumerate(rows):
        yield row._replace(sender=senders[at // run % len(senders)])


@contextmanager
def source_with(settings: Settings, policy_file: Path | None) -> Iterator[Settings]:
    """Settings, and the variable that a job takes them from, whose first source has this policy."""
    first, *others = settings.sources
    sources = [first.model_copy(update={"policy_file": policy_file}), *others]
    before = os.environ.get(SOURCES)
    os.environ[SOURCES] = orjson.dumps([source.model_dump(mode="json") for source in sources]).decode()
    try:
        yield settings.model_copy(update={"sources": sources})
    finally:
        if before is None:
            del os.environ[SOURCES]
        else:
            os.environ[SOURCES] = before

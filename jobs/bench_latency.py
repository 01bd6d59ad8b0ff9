"""`oncesign bench latency`: rows committed at a steady rate, from commit in Postgres to read-committed on tx.signed.

The inserter and the reader of tx.signed run in this process and share its clock: a row's start is the moment its COMMIT
returned, its end the moment a read_committed consumer was handed the record that holds it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import psycopg
from confluent_kafka import Consumer, TopicPartition

from actors import cluster
from jobs import submission
from jobs.loading import load_settings
from jobs.servers import bring_up
from jobs.signing import ensure_keys, warm_kernel
from pipeline.adapters import migrations
from pipeline.adapters.kafka import Topics, client_config
from pipeline.adapters.postgres import connection_string
from pipeline.errors import RuntimeFault, UsageError
from pipeline.ethereum.signed import SignedRecord
from pipeline.local.resolve import embedded, resolve
from pipeline.local.stack import SERVERS, Stack
from pipeline.settings import ENV_PREFIX, Settings, SourceSettings
from pipeline.stock.mix import Mix
from pipeline.stock.row import copy_rows

COMMIT_EVERY_S: Final = 0.01
JOIN_S: Final = 10.0
LOOK_S: Final = 0.1
SEED: Final = 1
WARM_UP_SHARE: Final = 0.2
"""The first rows, in which caches fill and the broker's code is compiled, are signed but not counted."""


@dataclass(slots=True)
class Race:
    """When each row was committed and when it was seen signed, by id."""

    committed_s: dict[int, float] = field(default_factory=dict)
    seen_s: dict[int, float] = field(default_factory=dict)
    go: threading.Event = field(default_factory=threading.Event)
    inserted: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)

    def latencies_ms(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Of the rows after the warm-up that were seen."""
        ids = sorted(self.committed_s)
        counted = ids[int(len(ids) * WARM_UP_SHARE) :]
        return np.array([(self.seen_s[i] - self.committed_s[i]) * 1000 for i in counted if i in self.seen_s])


@contextmanager
def own_stack(settings: Settings, shards: int) -> Iterator[Settings]:
    """Embedded servers for one source of so many shards, below the data directory; gone afterwards.

    A deployment cannot forget a source again, so the user's own is left alone. Raises UsageError when the settings
    name servers, and what jobs.servers.bring_up raises.
    """
    if len(embedded(settings)) < len(SERVERS):
        raise UsageError(
            "the latency is measured on embedded servers, but the settings name others.",
            hint="Give --shards 0 to measure on those.",
        )
    data_dir = settings.data_dir.resolve() / "bench-latency"
    source = SourceSettings(name="latency", table="latency", chain_id=settings.sources[0].chain_id, shards=shards)
    # The job reads its settings from the environment.
    os.environ |= {ENV_PREFIX + "DATA_DIR": str(data_dir), ENV_PREFIX + "SOURCES": f"[{source.model_dump_json()}]"}
    own = load_settings()
    try:
        bring_up(own)
        own = resolve(own)
        migrations.migrate(own.postgres)
        with psycopg.connect(connection_string(own.postgres)) as connection:
            connection.execute("SELECT oncesign_create_source_v1(%s, %s)", [source.table, shards])
        yield own
    finally:
        cluster.stop(data_dir)
        Stack(data_dir).down()
        shutil.rmtree(data_dir, ignore_errors=True)


async def bench(settings: Settings, rate: int, seconds: int) -> dict[str, Any]:
    """Raises RuntimeFault when rows were not signed in time."""
    migrations.migrate(settings.postgres)
    await asyncio.to_thread(ensure_keys, settings)
    warm_kernel()
    race = Race()
    threads = [
        threading.Thread(target=_insert, args=(settings, rate, seconds, race), daemon=True),
        threading.Thread(target=_watch, args=(settings, race), daemon=True),
    ]
    for thread in threads:
        thread.start()

    def follow(fields: dict[str, Any]) -> None:
        if fields["ready"]:
            race.go.set()

    summary = await asyncio.to_thread(
        lambda: submission.sign(settings, until_drained=True, verify=False, progress=follow, expect=rate * seconds)
    )
    race.stop.set()
    for thread in threads:
        await asyncio.to_thread(thread.join, JOIN_S)
    submission.check(summary)
    latencies = race.latencies_ms()
    if len(latencies) == 0:
        raise RuntimeFault("no row was seen signed.", hint="See: oncesign status")
    spent = max(race.committed_s.values()) - min(race.committed_s.values())
    return {
        "offered_tx_per_s": round(len(race.committed_s) / spent),
        "p50_ms": round(float(np.percentile(latencies, 50)), 1),
        "p99_ms": round(float(np.percentile(latencies, 99)), 1),
        "max_ms": round(float(latencies.max()), 1),
        "counted": len(latencies),
        "shards": settings.sources[0].shards,
        "unseen": len(race.committed_s) - len(race.seen_s),
    }


def _insert(settings: Settings, rate: int, seconds: int, race: Race) -> None:
    """Commit rate · COMMIT_EVERY_S rows at a time, on a schedule that does not drift."""
    source = settings.sources[0]
    rows = Mix(SEED, source.chain_id).rows(rate * seconds)
    race.go.wait()
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        started_s = time.monotonic()
        sent = 0
        while sent < rate * seconds and not race.stop.is_set():
            due = min(rate * seconds, int((time.monotonic() - started_s + COMMIT_EVERY_S) * rate))
            chunk = [next(rows) for _ in range(due - sent)]
            if chunk:
                copy_rows(connection, source.table, chunk)
                last = _last_id(connection, source.table)
                connection.commit()
                now_s = time.time()
                race.committed_s.update((tx_id, now_s) for tx_id in range(last - len(chunk) + 1, last + 1))
                sent += len(chunk)
            time.sleep(COMMIT_EVERY_S)
    race.inserted.set()


def _last_id(connection: psycopg.Connection[tuple[Any, ...]], table: str) -> int:
    """Of the rows just copied: nobody else inserts, so theirs are the highest ids, without a gap."""
    row = connection.execute(f"SELECT max(id) FROM {table}").fetchone()  # noqa: S608 - the operator's own setting
    return int(row[0]) if row else 0


def _watch(settings: Settings, race: Race) -> None:
    """Note when each row is first seen on tx.signed, from its end at the start on."""
    race.go.wait()
    topic = Topics(settings.kafka.topic_prefix).signed
    consumer = Consumer(
        client_config(settings.kafka)
        | {
            "group.id": f"{settings.deployment}-latency",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "latest",
        }
    )
    partitions = [TopicPartition(topic, p) for p in range(settings.kafka.signed_partitions)]
    ends = [consumer.get_watermark_offsets(tp, timeout=10)[1] for tp in partitions]
    consumer.assign([TopicPartition(topic, tp.partition, end) for tp, end in zip(partitions, ends, strict=True)])
    while not race.stop.is_set():
        message = consumer.poll(LOOK_S)
        now_s = time.time()
        if message is not None and message.error() is None:
            ids = SignedRecord.decode(message.value() or b"").rows.column("tx_id").to_pylist()
            race.seen_s.update((tx_id, now_s) for tx_id in ids if tx_id is not None and tx_id not in race.seen_s)
    consumer.close()

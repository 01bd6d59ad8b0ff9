"""Rows all the time: several transactions open at once, some rolled back, some that commit late, some rows invalid."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from pipeline.adapters.postgres import connection_string
from pipeline.settings import PostgresSettings, SourceSettings
from pipeline.stock.mix import Mix
from pipeline.stock.row import COLUMNS, Row

WRITERS: Final = 4
COMMITS_PER_S: Final = 4
"""Of one writer."""

INVALID_SHARE: Final = 0.03
ROLLED_BACK_SHARE: Final = 0.1
LATE_SHARE: Final = 0.05
LATE_S_MAX: Final = 2.0
RECONNECT_S: Final = 0.3
ROWS_MAX: Final = 10_000_000
COMMITS_KEPT: Final = 4_096
JOIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Commit:
    """Rows whose COMMIT has returned."""

    at_s: float
    rows: tuple[tuple[int, int], ...]  #: (id, shard)


class Load:
    """Writers, each in a thread with a connection of its own."""

    def __init__(self, postgres: PostgresSettings, source: SourceSettings, seed: int, rate: int) -> None:
        self._postgres = postgres
        self._source = source
        self._rows_per_commit = max(1, rate // (WRITERS * COMMITS_PER_S))
        self._stop = threading.Event()
        self._commits: deque[Commit] = deque(maxlen=COMMITS_KEPT)
        self._threads = [
            threading.Thread(target=self._write, args=(seed * WRITERS + k,), name=f"writer-{k}", daemon=True)
            for k in range(WRITERS)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Every writer ends with the transaction that it has."""
        self._stop.set()
        for thread in self._threads:
            thread.join(JOIN_S)

    def first_after(self, at_s: float) -> tuple[int, ...] | None:
        """Ids of the first rows that were committed after this moment, one in every shard; None until there are."""
        found: dict[int, int] = {}
        for commit in list(self._commits):
            if commit.at_s > at_s:
                for row, shard in commit.rows:
                    found.setdefault(shard, row)
        return tuple(sorted(found.values())) if len(found) == self._source.shards else None

    def _write(self, seed: int) -> None:
        source = random.Random(seed)  # noqa: S311 - chaos, not keys
        rows = Mix(seed, self._source.chain_id).rows(ROWS_MAX, INVALID_SHARE)
        while not self._stop.is_set():
            try:
                with psycopg.connect(connection_string(self._postgres), autocommit=True) as connection:
                    while not self._stop.is_set():
                        chunk = [next(rows) for _ in range(self._rows_per_commit)]
                        self._transact(connection, chunk, source)
                        self._stop.wait(source.uniform(0, 2 / COMMITS_PER_S))
            except psycopg.Error:
                self._stop.wait(RECONNECT_S)

    def _transact(
        self, connection: psycopg.Connection[tuple[Any, ...]], rows: list[Row], source: random.Random
    ) -> None:
        rolled_back = source.random() < ROLLED_BACK_SHARE
        late_s = source.uniform(0, LATE_S_MAX) if source.random() < LATE_SHARE else 0.0
        with connection.transaction(force_rollback=rolled_back), connection.cursor() as cursor:
            made = []
            cursor.executemany(self._insertion(), rows, returning=True)
            more: bool | None = True
            while more:
                made += cursor.fetchall()
                more = cursor.nextset()
            self._stop.wait(late_s)
        if not rolled_back:
            self._commits.append(Commit(time.monotonic(), tuple((int(row), int(shard)) for row, shard in made)))

    def _insertion(self) -> sql.Composed:
        return sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING id, shard").format(
            sql.Identifier(self._source.table),
            sql.SQL(", ").join(map(sql.Identifier, COLUMNS)),
            sql.SQL(", ").join(sql.Placeholder() * len(COLUMNS)),
        )

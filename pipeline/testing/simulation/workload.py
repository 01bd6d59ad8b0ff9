"""Clients that insert rows: several transactions at once, which commit in any order, late, or not at all."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from pipeline.stock.mix import Mix
from pipeline.stock.row import Row
from pipeline.testing.simulation.story import Story
from pipeline.testing.source import TwinSource

ROW_BYTES_MAX: Final = 256
POOL: Final[list[Row]] = [row for row in Mix(7, 1).rows(400, 0.2) if len(row.data) <= ROW_BYTES_MAX][:48]
"""The rows of every course; a row's content follows from its id."""

ROLLBACK_SHARE: Final = 0.15


async def insert(source: TwinSource, rng: random.Random, story: Story, rows: int, over_s: float) -> None:
    """About so many rows in small transactions, spread over a time."""
    tasks = []
    while source.used_ids < rows:
        tasks.append(asyncio.ensure_future(_transact(source, rng, story)))
        await asyncio.sleep(rng.random() * over_s * 2 / rows)
    await asyncio.gather(*tasks)


async def _transact(source: TwinSource, rng: random.Random, story: Story) -> None:
    transaction = source.begin()
    ids = []
    for _ in range(rng.randint(1, 3)):
        ids.append(transaction.insert(POOL[source.used_ids % len(POOL)]))
        if rng.random() < 0.3:
            await asyncio.sleep(rng.random() * 0.5)
    if rng.random() < ROLLBACK_SHARE:
        transaction.rollback()
        story.tell("client", f"rolls back rows {ids}")
    elif transaction.commit():
        story.tell("client", f"commits rows {ids}")
    else:
        story.tell("client", f"cannot commit rows {ids}: their server is gone")

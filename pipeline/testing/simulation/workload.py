"""Clients that insert rows: several transactions at once, which commit in any order, late, or not at all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from copy import copy
from typing import Final

from pipeline.custody.generation import address_of
from pipeline.stock.mix import Mix
from pipeline.stock.row import Row
from pipeline.testing.simulation.story import Story
from pipeline.testing.source import TwinSource

ROW_BYTES_MAX: Final = 256
POOL: Final[list[Row]] = [row for row in Mix(7, 1).rows(400, 0.2) if len(row.data) <= ROW_BYTES_MAX][:48]
"""The rows of every course; a row's content follows from its id."""

PINNED_SHARE: Final = 0.25
"""Of courses in which rows name their senders."""

SENDERS: Final = [bytes.fromhex(address_of(bytes([n]) * 32)[2:]) for n in (1, 2, 9)]
"""Of the first keys of every cluster, and of none; a cluster of one key does not know the second."""

NAMED: Final = (SENDERS[0], None, SENDERS[1], SENDERS[2])
PINNED: Final = [row._replace(sender=NAMED[(at + at // 5) % len(NAMED)]) for at, row in enumerate(POOL)]

ROLLBACK_SHARE: Final = 0.15


async def insert(source: TwinSource, rng: random.Random, story: Story, rows: int, over_s: float) -> None:
    """About so many rows in small transactions, spread over a time."""
    tasks = []
    pool = PINNED if _drawn_aside(rng) < PINNED_SHARE else POOL
    while source.used_ids < rows:
        tasks.append(asyncio.ensure_future(_transact(source, rng, story, pool)))
        await asyncio.sleep(rng.random() * over_s * 2 / rows)
    await asyncio.gather(*tasks)


def _drawn_aside(rng: random.Random) -> float:
    """A number that follows from the seed, and leaves what is drawn afterwards as it would be without it."""
    return random.Random(copy(rng).getrandbits(64) + 1).random()  # noqa: S311 - not for secrets


async def _transact(source: TwinSource, rng: random.Random, story: Story, pool: Sequence[Row]) -> None:
    transaction = source.begin()
    ids = []
    for _ in range(rng.randint(1, 3)):
        ids.append(transaction.insert(pool[source.used_ids % len(pool)]))
        if rng.random() < 0.3:
            await asyncio.sleep(rng.random() * 0.5)
    if rng.random() < ROLLBACK_SHARE:
        transaction.rollback()
        story.tell("client", f"rolls back rows {ids}")
    elif transaction.commit():
        story.tell("client", f"commits rows {ids}")
    else:
        story.tell("client", f"cannot commit rows {ids}: their server is gone")

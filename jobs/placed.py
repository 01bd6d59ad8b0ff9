"""What `oncesign up | down | status | doctor` do on a cluster with node groups: ONCESIGN_POOL__PLACED.

There the servers are somebody else's, and only the key manager reaches etcd and the key-encryption key.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pipeline.settings import Settings


async def lead(settings: Settings) -> dict[str, Any]:
    """See that the key manager runs and leads; its counts. Raises its refusal, RayUnavailable."""
    from jobs.desk import placed_desk

    status = await placed_desk(settings).status()
    if status.error is not None:
        raise status.error
    counts: dict[str, Any] = status.counts
    return counts


def end(settings: Settings) -> list[str]:
    """Drain the pipeline and end its actors, the key manager last; their names. Raises RayUnavailable, RuntimeFault."""
    from actors import names, takeover
    from jobs.desk import connect

    connect(settings)
    ended = names.running(settings.deployment)
    asyncio.run(takeover.end(settings))
    return ended


def actors(settings: Settings) -> list[str]:
    """The names of those that are there. Raises RayUnavailable."""
    from actors import names
    from jobs.desk import connect

    connect(settings)
    return names.running(settings.deployment)


async def etcd(settings: Settings) -> str:
    """The key manager leads."""
    counts = await lead(settings)
    return f"the key manager leads, under fence {counts['fence']}"


async def key_encryption_key(settings: Settings) -> str:
    """The key manager's KEK opens the pool's keys."""
    from jobs.desk import placed_desk

    opened: str = await placed_desk(settings).examine_kek()
    return opened

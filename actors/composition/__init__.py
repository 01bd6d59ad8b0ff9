"""Where stages meet adapters: the only place that turns settings into clients.

Each function opens what a stage needs and closes it again, so that an actor is a name, a status and one of these. There
is a module per stage, so that a process loads what its own stage needs; here is what several of them share.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Final

from pipeline import journal, tracing
from pipeline.clock import SystemClock
from pipeline.settings import ENV_PREFIX, Settings, SourceSettings

CLOCK: Final = SystemClock()


def start_logging() -> None:
    """Logs of an actor go to its stderr, which Ray keeps per process and shows in the dashboard; spans if configured.

    Raises UsageError.
    """
    journal.start()
    tracing.start()


def here(settings: Settings) -> Settings:
    """Settings that a job made elsewhere, with the name of this node."""
    node = os.environ.get(ENV_PREFIX + "NODE") or socket.gethostname()
    return settings.model_copy(update={"node": node})


def signer_count(settings: Settings) -> int:
    """How many signers the settings ask for."""
    return settings.pool.signers or len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class ReaderPlace:
    """Which streams one reader actor reads."""

    name: str
    source: SourceSettings
    shards: list[int]


def reader_places(settings: Settings) -> list[ReaderPlace]:
    """The shards of every source, dealt out over `pool.readers` actors for each."""
    places = []
    for source in settings.sources:
        actors = min(settings.pool.readers, source.shards)
        for index in range(actors):
            name = f"reader-{source.name}-{index}"
            places.append(ReaderPlace(name, source, list(range(index, source.shards, actors))))
    return places

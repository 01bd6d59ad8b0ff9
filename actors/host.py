"""How an actor carries a stage: start it, say how it is, let it drain."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import ray

from pipeline.errors import ActorBroken, DeploymentHalted, NotLeader, OncesignError, ProducerFenced, UsageError
from pipeline.journal import Journal

journal = Journal(__name__, "actor")

DRAIN_TIMEOUT_S: Final = 25.0

FATAL: Final = (DeploymentHalted, ProducerFenced, NotLeader, UsageError, ActorBroken)
"""What another start would not mend."""


def ray_node() -> str:
    """Ray's id of the node that this process runs on."""
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


class StageState(StrEnum):
    """What an actor's stage is doing."""

    IDLE = "idle"
    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"


@dataclass(slots=True)
class StageStatus:
    """How a stage is, as the supervisor and the command line see it."""

    state: StageState
    pid: int
    error: OncesignError | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    ray_node: str = field(default_factory=ray_node)

    @property
    def process(self) -> tuple[str, int]:
        """Two pods may each have one of the same pid."""
        return self.ray_node, self.pid

    @property
    def fatal(self) -> bool:
        """Whether starting again cannot help."""
        return isinstance(self.error, FATAL)


class StageHost:
    """One stage in one actor process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, run: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        """Run the stage in the background; does nothing while it runs."""
        if self._task is not None and not self._task.done():
            return
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(_carry(self.name, run, self._stop), name=self.name)

    def status(self, counts: dict[str, Any] | None = None) -> StageStatus:
        """Never raises."""
        state, error = StageState.IDLE, None
        if self._task is not None:
            state = StageState.RUNNING
            if self._task.done():
                error = _error_of(self._task)
                state = StageState.FAILED if error else StageState.ENDED
        return StageStatus(state, os.getpid(), error, counts or {})

    async def drain(self) -> None:
        """Tell the stage to finish and wait for it, for DRAIN_TIMEOUT_S at the most."""
        self._stop.set()
        if self._task is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(asyncio.shield(self._task), DRAIN_TIMEOUT_S)


async def _carry(name: str, run: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event) -> None:
    try:
        await run(stop)
    except OncesignError as error:
        journal.ended("stage", actor=name, error=error)
        raise
    except Exception as error:
        journal.ended("stage", frames=error, actor=name, error=error)
        raise


def _error_of(task: asyncio.Task[None]) -> OncesignError | None:
    if task.cancelled():
        return OncesignError("the stage was cancelled.")
    error = task.exception()
    if error is None or isinstance(error, OncesignError):
        return error
    return OncesignError(f"{type(error).__name__}: {error}")

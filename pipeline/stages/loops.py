"""Tasks of one stage that live and end together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from pipeline.errors import OncesignError


async def first_end(loops: Iterable[asyncio.Task[None]], stop: asyncio.Event) -> None:
    """Until told to stop, or until a loop failed; then its error is raised."""
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        done, _ = await asyncio.wait([*loops, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await cancel([stopping])


async def together(*loops: Coroutine[Any, Any, None]) -> None:
    """Until all have ended, or one failed; then the others are cancelled, and its error is raised."""
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    try:
        await asyncio.gather(*tasks)
    finally:
        await cancel(tasks)


async def again(
    work: Callable[[], Awaitable[None]], stop: asyncio.Event, pause_s: float, goes_on: Callable[[OncesignError], bool]
) -> None:
    """Do it, and once more after a pause for as long as it fails with an error that `goes_on`, until told to stop."""
    while not stop.is_set():
        try:
            await work()
        except OncesignError as error:
            if not goes_on(error):
                raise
            await wait(stop, pause_s)
        else:
            return


async def wait(stop: asyncio.Event, longest_s: float) -> bool:
    """Until told to stop, or for so long; whether to stop."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), longest_s)
    return stop.is_set()


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """End tasks and wait until they have ended; their errors have been dealt with elsewhere."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)

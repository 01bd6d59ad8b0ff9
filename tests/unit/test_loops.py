"""Loops that live together, and work that is done again."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.errors import BusUnavailable, DeploymentHalted, OncesignError
from pipeline.stages.loops import again, together


async def fails(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


async def test_loops_end_with_the_first_that_fails() -> None:
    ended = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(BusUnavailable):
        await together(endless(), fails(BusUnavailable("away")))
    assert ended.is_set()


async def test_work_is_done_again_until_it_ends() -> None:
    done: list[int] = []

    async def work() -> None:
        done.append(len(done))
        if len(done) < 4:
            raise BusUnavailable("away")

    await again(work, asyncio.Event(), 0.0, lambda error: isinstance(error, BusUnavailable))
    assert len(done) == 4


async def test_what_cannot_go_on_is_raised() -> None:
    asked: list[OncesignError] = []

    def goes_on(error: OncesignError) -> bool:
        asked.append(error)
        return False

    with pytest.raises(DeploymentHalted):
        await again(lambda: fails(DeploymentHalted("no")), asyncio.Event(), 0.0, goes_on)
    assert len(asked) == 1


async def test_nothing_is_done_again_once_it_is_to_stop() -> None:
    stop, done = asyncio.Event(), []

    async def work() -> None:
        done.append(True)
        stop.set()
        raise BusUnavailable("away")

    await again(work, stop, 60.0, lambda _: True)
    assert done == [True]

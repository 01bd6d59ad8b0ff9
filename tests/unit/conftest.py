"""A key manager's world, and a whole flow's, for the tests that ask for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.flow_world import Flow
from tests.unit.manager_world import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    for node in made.nodes:
        node.store.down = False
        await made.clock.until(node.manager.stop())


@pytest.fixture
async def flow() -> AsyncIterator[Flow]:
    made = Flow()
    await made.start()
    yield made
    await made.end()

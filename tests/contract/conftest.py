"""A Kafka, in memory and real."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.bus import SHARDS, Bus, KafkaBus, TwinBus


@pytest.fixture(params=["twin", pytest.param("kafka", marks=pytest.mark.integration)])
async def bus(request: pytest.FixtureRequest, deployment: str) -> AsyncIterator[Bus]:
    settings = request.getfixturevalue("kafka") if request.param == "kafka" else None
    made: Bus = KafkaBus(settings, deployment) if settings else TwinBus(deployment)
    if isinstance(made, KafkaBus):
        await made.hasten()
    await made.create(made.batches, SHARDS)
    await made.create(made.signed, 2)
    try:
        yield made
    finally:
        await made.close()

"""The versions of policies: numbered from 1, for ever, one more for each other text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from pipeline.adapters.policies import PostgresPolicies
from pipeline.adapters.postgres import connection_string
from pipeline.errors import InputFileError
from pipeline.settings import PostgresSettings
from pipeline.testing.policies import TwinPolicies

Tested = PostgresPolicies | TwinPolicies
NONE, SMALL, LARGE = "", "value_max_wei = 1", "value_max_wei = 2"


@pytest.fixture(params=["twin", pytest.param("postgres", marks=pytest.mark.integration)])
async def policies(request: pytest.FixtureRequest) -> AsyncIterator[Tested]:
    made: Tested = TwinPolicies()
    if request.param == "postgres":
        made = PostgresPolicies(request.getfixturevalue("postgres"))
    yield made
    await made.close()


async def test_another_text_is_another_version(policies: Tested) -> None:
    found = [await policies.version("payouts", text) for text in (SMALL, SMALL, LARGE, SMALL, NONE)]
    assert [(policy.version, policy.value_max) for policy in found] == [(1, 1), (1, 1), (2, 2), (3, 1), (4, None)]
    kept = await policies.versions("payouts")
    assert [(version, policy.value_max) for version, policy in kept.items()] == [(4, None), (3, 1), (2, 2), (1, 1)]
    assert all(policy.version == version for version, policy in kept.items())


async def test_sources_have_their_own(policies: Tested) -> None:
    await policies.version("payouts", SMALL)
    assert (await policies.version("refunds", LARGE)).version == 1
    assert await policies.versions("nobody") == {}


async def test_nothing_is_kept_that_cannot_be_read(policies: Tested) -> None:
    with pytest.raises(InputFileError, match="payouts:1: colour is none of"):
        await policies.version("payouts", "colour = 1")
    assert await policies.versions("payouts") == {}


@pytest.mark.integration
async def test_two_at_once_make_one_version(postgres: PostgresSettings) -> None:
    made = [PostgresPolicies(postgres) for _ in range(4)]
    found = await asyncio.gather(*(policies.version("payouts", SMALL) for policies in made))
    assert {policy.version for policy in found} == {1}
    for policies in made:
        await policies.close()


@pytest.mark.integration
async def test_no_version_ever_changes(postgres: PostgresSettings) -> None:
    policies = PostgresPolicies(postgres)
    await policies.version("payouts", SMALL)
    [entry] = await policies.history()
    assert (entry.source, entry.version, entry.text) == ("payouts", 1, SMALL)
    await policies.close()
    with psycopg.connect(connection_string(postgres), autocommit=True) as stranger:
        for statement in ("DELETE FROM policies", "UPDATE policies SET text = ''", "TRUNCATE policies"):
            with pytest.raises(psycopg.errors.RestrictViolation, match="immutable"):
                stranger.execute(statement)

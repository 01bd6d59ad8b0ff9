"""Whole runs of the real stages on real etcd, Postgres and Kafka, without Ray."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from actors.composition import verifying
from pipeline.adapters.postgres import connection_string
from pipeline.assignment.records import KeyState, StreamRecord
from pipeline.custody.sealing import Kek
from pipeline.errors import DeploymentHalted, NotLeader, StreamHalted
from pipeline.settings import ReaderSettings, Settings
from pipeline.stages.violation import ViolationKind
from pipeline.stream import Stream
from tests.pipeline_run import running, stock

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

ROWS = 3_000
KEK = Kek(bytes(range(32)))


@pytest.fixture
def settings(deployed: Settings) -> Settings:
    etcd = deployed.etcd.model_copy(update={"lease_ttl_s": 6})
    return deployed.model_copy(update={"etcd": etcd, "reader": ReaderSettings(batch_rows_max=200)})


async def verified(settings: Settings) -> dict[str, int]:
    """Counts after a full verification that found nothing wrong."""
    async with verifying.verifier(settings) as verifier:
        await verifier.catch_up()
        assert await verifier.reconcile() == []
        return {"signed": verifier.count.signed, "rejected": verifier.count.rejected}


async def test_every_row_is_signed_or_rejected_once(settings: Settings) -> None:
    stock(settings, ROWS, invalid=0.1)
    async with running(settings, KEK) as run:
        await run.until(ROWS)
        keys = await run.manager.list_keys()
    counts = await verified(settings)
    assert counts["signed"] + counts["rejected"] == ROWS
    assert counts["rejected"] > ROWS * 0.05
    assert sum(key.next_nonce for key in keys) == counts["signed"]
    assert all(key.state is KeyState.FREE for key in keys)


async def test_a_second_run_goes_on_where_the_first_was_killed(settings: Settings) -> None:
    stock(settings, ROWS)
    async with running(settings, KEK) as run:
        while run.consumer.count.signed < 500:
            await asyncio.sleep(0.01)
        for task in run.tasks:
            task.cancel()
    stock(settings, 500, seed=2)
    async with running(settings, KEK) as run:
        while sum(reader.count.seq for reader in run.readers) == 0 or await run.manager.list_assignments():
            await asyncio.sleep(0.1)
        while await settle(run.settings) < ROWS + 500:
            await asyncio.sleep(0.1)
        while await run.manager.list_assignments():
            await asyncio.sleep(0.1)
    assert (await verified(settings))["signed"] == ROWS + 500


async def settle(settings: Settings) -> int:
    """Rows that the ledger has."""
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        row = connection.execute("SELECT coalesce(sum(count), 0) FROM signing_ledger").fetchone()
    assert row is not None
    return int(row[0])


async def test_an_empty_source_is_no_work(settings: Settings) -> None:
    async with running(settings, KEK) as run:
        await asyncio.sleep(1)
        assert run.consumer.count.batches == 0
        assert await run.manager.list_assignments() == []


async def test_a_second_pipeline_on_the_deployment_is_refused(settings: Settings) -> None:
    async with running(settings, KEK):
        with pytest.raises(NotLeader, match="another key manager"):
            async with running(settings, KEK):
                pass


async def test_an_etcd_without_the_deployment_is_refused_once_the_ledger_has_rows(settings: Settings) -> None:
    stock(settings, 400)
    async with running(settings, KEK) as run:
        await run.until(400)
    forgotten = settings.model_copy(update={"deployment": settings.deployment + "x"})
    with pytest.raises(DeploymentHalted, match="the ledger has rows"):
        async with running(forgotten, KEK):
            pass


async def test_another_postgres_halts_the_stream(settings: Settings) -> None:
    async with running(settings, KEK) as run:
        with pytest.raises(StreamHalted, match="was read from Postgres"):
            await run.manager.open_stream(StreamRecord(Stream("payouts", 0), 1, "another"))


async def test_a_planted_violation_is_found(settings: Settings) -> None:
    stock(settings, 400)
    async with running(settings, KEK) as run:
        await run.until(400)
    with psycopg.connect(connection_string(settings.postgres), autocommit=True) as connection:
        connection.execute("ALTER TABLE transactions DISABLE TRIGGER ALL")
        connection.execute("UPDATE transactions SET value = value + 1 WHERE id = 7")
        connection.execute("INSERT INTO transactions (chain_id, gas_limit, max_fee_per_gas) VALUES (1, 21000, 1)")
    async with verifying.verifier(settings) as verifier:
        await verifier.catch_up()
        kinds = {violation.kind for violation in await verifier.reconcile()}
    assert kinds == {ViolationKind.CHANGED_FIELD, ViolationKind.ROW_WITHOUT_OUTCOME}

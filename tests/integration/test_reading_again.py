"""A topic of batches that is read again from its start: what was published is recognised, never published again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors import composition
from jobs.recovery import let_go_on
from pipeline.custody.sealing import Kek
from pipeline.errors import UsageError
from pipeline.settings import EtcdSettings, KafkaSettings, PostgresSettings, ReaderSettings, Settings, SourceSettings
from pipeline.stream import Stream
from tests.pipeline_run import Manager, Run, running, stock

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROWS = 800
SHARDS = 8
WAIT_S = 30.0


@pytest.fixture
def settings(
    etcd_server: EtcdSettings, postgres: PostgresSettings, kafka: KafkaSettings, deployment: str, tmp_path: Path
) -> Settings:
    made = Settings(
        deployment=deployment,
        data_dir=tmp_path,
        etcd=etcd_server,
        postgres=postgres,
        kafka=kafka,
        sources=[SourceSettings(shards=SHARDS)],
        reader=ReaderSettings(batch_rows_max=50),
    )
    made.kek_path.write_bytes(bytes(range(32)))
    made.kek_path.chmod(0o600)
    return made


async def assigned(run: Run, rows: int) -> None:
    """Wait until so many rows have a nonce and nothing is under way."""
    deadline = asyncio.get_running_loop().time() + WAIT_S
    while sum(key.next_nonce for key in await run.manager.list_keys()) < rows:
        assert asyncio.get_running_loop().time() < deadline, run.consumer.count
        await asyncio.sleep(0.05)
    await run.until(0)


async def test_a_published_batch_that_was_not_released(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forget(*_: object) -> None:
        """The releases of a consumer that dies right after its commits."""

    kek = Kek.load(settings.kek_path)
    stock(settings, ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(Manager, "release", forget)
        async with running(settings, kek) as run:
            deadline = asyncio.get_running_loop().time() + WAIT_S
            while not run.consumer.count.batches:
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.05)
            assert await run.manager.list_assignments()
            with pytest.raises(UsageError, match="a pipeline runs"):
                await let_go_on(settings, Stream("payouts", 0), from_start=True)
    for shard in range(SHARDS):
        await let_go_on(settings, Stream("payouts", shard), from_start=True)
    async with running(settings, kek) as run:
        await assigned(run, ROWS)
        assert run.consumer.count.skipped > 0
        assert run.sweeper.count.signed_again == 0
    async with composition.verifier(settings) as verifier:
        await verifier.catch_up()
        assert await verifier.reconcile() == []

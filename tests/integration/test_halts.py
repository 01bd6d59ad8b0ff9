"""Faults that oncesign must not mend by itself: what halts, what goes on, how an operator brings it back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from pydantic import SecretStr

from actors.composition import bus, verifying
from jobs.recovery import let_go_on
from pipeline.adapters.batch_log import KafkaBatchLog
from pipeline.adapters.etcd import EtcdStore
from pipeline.adapters.kafka import Topics, consumer_group
from pipeline.adapters.migrations import migrate
from pipeline.adapters.offsets import Committed, GroupOffsets
from pipeline.assignment.paths import Paths
from pipeline.custody.sealing import Kek
from pipeline.errors import DeploymentHalted, SecretFileError, SettingError, StreamHalted, UsageError
from pipeline.local.stack import Stack
from pipeline.ports import Assigned, KeyValue, SignedBatch, Txn
from pipeline.settings import PostgresSettings, ReaderSettings, Settings, SourceSettings
from pipeline.stages.violation import ViolationKind
from pipeline.stream import Stream
from tests.command_line import Oncesign
from tests.pipeline_run import Manager, Run, running, stock

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROWS = 800
SHARDS = 8
SECRET = bytes(range(32))
WAIT_S = 30.0


@pytest.fixture
def settings(deployed: Settings) -> Settings:
    deployed.kek_path.write_bytes(SECRET)
    deployed.kek_path.chmod(0o600)
    changes = {"sources": [SourceSettings(shards=SHARDS)], "reader": ReaderSettings(batch_rows_max=50)}
    return deployed.model_copy(update=changes)


async def violations(settings: Settings) -> set[ViolationKind]:
    async with verifying.verifier(settings) as verifier:
        await verifier.catch_up()
        return {violation.kind for violation in await verifier.reconcile()}


async def halted(run: Run, streams: set[Stream]) -> None:
    """Wait until exactly these are halted, for good."""
    deadline = asyncio.get_running_loop().time() + WAIT_S
    while {record.stream for record in await run.manager.list_streams() if record.halted} != streams:
        assert asyncio.get_running_loop().time() < deadline, run.consumer.halted
        await asyncio.sleep(0.05)


# ── etcd and Postgres ────────────────────────────────────────────────────────────────────────────────────────────────


async def kept(settings: Settings) -> list[KeyValue]:
    store = EtcdStore(settings.etcd)
    found = await store.list(f"{Paths(settings.deployment).root}/")
    await store.close()
    return found


async def restore(settings: Settings, old: Sequence[KeyValue]) -> None:
    """What a restored backup of etcd looks like from outside."""
    store = EtcdStore(settings.etcd)
    for kv in await store.list(f"{Paths(settings.deployment).root}/"):
        await store.commit(Txn((), deletes=(kv.key,)))
    for kv in old:
        await store.commit(Txn((), puts=((kv.key, kv.value),)))
    await store.close()


@pytest.mark.parametrize("command", [["sign", "--until-drained"], ["keys", "create"]])
async def test_an_old_etcd_halts_everything(
    settings: Settings, kek: Kek, oncesign: Oncesign, command: list[str]
) -> None:
    stock(settings, ROWS)
    async with running(settings, kek) as run:
        await run.until(ROWS)
    old = await kept(settings)
    stock(settings, ROWS, seed=2)
    async with running(settings, kek) as run:
        await run.until(ROWS)
    newest = await kept(settings)
    await restore(settings, old)
    ended = await asyncio.to_thread(oncesign, *command)
    assert ended.code == 5
    assert ended.error.startswith("etcd and the ledger disagree: ")
    assert "docs/operations.md, 'etcd is behind the ledger'" in ended.error
    await restore(settings, newest)
    async with running(settings, kek) as run:
        assert await run.manager.list_assignments() == []
    assert await violations(settings) == set()


async def test_an_emptied_etcd_halts_everything(settings: Settings, kek: Kek, oncesign: Oncesign) -> None:
    stock(settings, ROWS)
    async with running(settings, kek) as run:
        await run.until(ROWS)
    await restore(settings, [])
    for command in (["sign", "--until-drained"], ["keys", "create"]):
        ended = await asyncio.to_thread(oncesign, *command)
        assert ended.code == 5
        assert ended.error.startswith(f"etcd holds nothing of {settings.deployment}, but the ledger has rows.")
    assert await kept(settings) == []


async def test_another_postgres_halts_the_streams(settings: Settings, kek: Kek, tmp_path: Path) -> None:
    stock(settings, ROWS)
    async with running(settings, kek) as run:
        await run.until(ROWS)
    stack = Stack(tmp_path / "other")
    try:
        addresses = (await asyncio.to_thread(stack.up, servers=("postgres",))).addresses
        moved = settings.model_copy(deep=True)
        moved.postgres = PostgresSettings(
            dsn=SecretStr(addresses["postgres.dsn"]), password_file=Path(addresses["postgres.password_file"])
        )
        await asyncio.to_thread(migrate, moved.postgres)
        stock(moved, 50)
        with pytest.raises(StreamHalted, match="was read from Postgres") as refused:
            async with running(moved, kek):
                pass
        assert refused.value.exit_code == 5
    finally:
        await asyncio.to_thread(stack.down)
    assert await violations(settings) == set()


async def test_a_signer_that_cannot_open_a_key_ends_the_consumer(settings: Settings, kek: Kek) -> None:
    """The batch has a key: it must neither be forgotten nor wait without a word."""
    stock(settings, ROWS)
    async with running(settings, kek) as run:
        run.signers._signer._keks = Kek(b"\x02" * 32)
        with pytest.raises(SecretFileError, match="was sealed by KEK"):
            await run.until(ROWS, WAIT_S)
        assert len(await run.manager.list_assignments()) > 0
    async with running(settings, kek) as run:
        await run.until(ROWS)
    assert await violations(settings) == set()


# ── deleted topics ───────────────────────────────────────────────────────────────────────────────────────────────────


def delete_topic(settings: Settings, name: str) -> None:
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
    admin.delete_topics([name], operation_timeout=WAIT_S)[name].result(WAIT_S)


async def cut_off(settings: Settings, kek: Kek, monkeypatch: pytest.MonkeyPatch) -> set[tuple[Stream, int]]:
    """Sign ROWS, then go away while batches have a key and nothing of them is published; those batches."""
    stock(settings, ROWS)
    async with running(settings, kek) as run:
        await run.until(ROWS)
        monkeypatch.setattr(run.signers, "sign", _never)  # a signer that died with its batch
        stock(settings, ROWS, seed=2)
        deadline = asyncio.get_running_loop().time() + WAIT_S
        while not (left := await run.manager.list_assignments()):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
        for task in run.tasks:
            task.cancel()
        return {(a.stream, a.seq) for a in left}


async def _never(_batch: bytes, _assigned: Assigned) -> SignedBatch:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_deleted_topic_of_batches_comes_back(
    settings: Settings, kek: Kek, oncesign: Oncesign, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await cut_off(settings, kek, monkeypatch)
    topic = Topics(settings.kafka.topic_prefix).batches("payouts")
    await asyncio.to_thread(delete_topic, settings, topic)
    ended = await asyncio.to_thread(oncesign, "sign", "--until-drained")
    assert ended.code == 5
    assert ended.error.startswith(f"topic {topic} is gone, but batches were assigned. Nothing was signed.")
    for shard in range(SHARDS):
        ended = await asyncio.to_thread(oncesign, "recover", "--stream", f"payouts/{shard}", "--from-start")
        assert ended.code == 0, ended.err
    async with running(settings, kek) as run:
        await all_lent_and_released(run, 2 * ROWS)
        assert run.sweeper.count.signed_again > 0
    assert await violations(settings) == set()


async def all_lent_and_released(run: Run, nonces: int) -> None:
    """Wait until that many nonces were given, and everything that has one is published."""
    deadline = asyncio.get_running_loop().time() + 2 * WAIT_S
    while await run.manager.list_assignments() or sum(key.next_nonce for key in await run.manager.list_keys()) < nonces:
        for task in run.tasks:
            assert not task.done(), task
        assert asyncio.get_running_loop().time() < deadline, (run.consumer.count, run.sweeper.count)
        await asyncio.sleep(0.1)
    assert sum(key.next_nonce for key in await run.manager.list_keys()) == nonces


async def test_a_published_batch_that_was_not_released_is_not_published_again(
    settings: Settings, kek: Kek, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its topic is read again from the start while the batch still has its assignment."""

    async def forget(*_: object) -> None:
        """The releases of a consumer that dies right after its commits."""

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
        await all_lent_and_released(run, ROWS)
        assert run.consumer.count.skipped > 0
        assert run.sweeper.count.signed_again == 0
    assert await violations(settings) == set()


async def test_a_deleted_topic_of_signed_batches_is_never_made_anew(
    settings: Settings, kek: Kek, oncesign: Oncesign
) -> None:
    stock(settings, ROWS)
    async with running(settings, kek) as run:
        await run.until(ROWS)
    assert await violations(settings) == set()
    signed = Topics(settings.kafka.topic_prefix).signed
    await asyncio.to_thread(delete_topic, settings, signed)
    for command, code in (
        (["sign", "--until-drained"], 5),
        (["recover", "--stream", "payouts/0", "--from-start"], 5),
        (["verify"], 4),
    ):
        ended = await asyncio.to_thread(oncesign, *command)
        assert ended.code == code
        assert ended.error.startswith(f"topic {signed} is gone, but ")
        assert "'A deleted topic'" in ended.error
    with pytest.raises(DeploymentHalted, match="is gone"):
        async with running(settings, kek):
            pass
    async with bus.topics(settings) as topics:
        assert signed not in await topics.names()


async def test_lost_signed_batches_cost_no_nonce_once_the_topic_is_back(
    settings: Settings, kek: Kek, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator without a mirror makes it by hand: what was under way is published, the loss stays a finding."""
    await cut_off(settings, kek, monkeypatch)
    await violations(settings)
    signed = Topics(settings.kafka.topic_prefix).signed
    await asyncio.to_thread(delete_topic, settings, signed)
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
    made = admin.create_topics([NewTopic(signed, num_partitions=2, replication_factor=1)])[signed]
    await asyncio.to_thread(made.result, WAIT_S)
    async with running(settings, kek) as run:
        await all_lent_and_released(run, 2 * ROWS)
    found = await violations(settings)
    assert found
    assert not found & {ViolationKind.NONCE_TWICE, ViolationKind.TRANSACTION_TWICE, ViolationKind.LEDGER_MISMATCH}


# ── foreign records ──────────────────────────────────────────────────────────────────────────────────────────────────


def write(settings: Settings, shard: int, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    producer.produce(Topics(settings.kafka.topic_prefix).batches("payouts"), value=value, partition=shard)
    assert producer.flush(WAIT_S) == 0


async def first_record(settings: Settings, shard: int) -> bytes:
    log = KafkaBatchLog(settings.kafka, settings.deployment)
    try:
        async for message in log.scan(Topics(settings.kafka.topic_prefix).batches("payouts"), shard, 0, 1):
            return message.value
    finally:
        await log.close()
    raise AssertionError("the partition is empty")


async def test_foreign_records_halt_their_stream_alone(settings: Settings, kek: Kek, oncesign: Oncesign) -> None:
    stock(settings, ROWS)
    async with running(settings, kek) as run:
        await run.until(ROWS)
    write(settings, 3, b"not an Arrow stream")
    write(settings, 5, await first_record(settings, 4))  # a batch of another stream
    foreign = {Stream("payouts", 3), Stream("payouts", 5)}
    stock(settings, ROWS, seed=2)
    async with running(settings, kek) as run:
        await halted(run, foreign)
        await run.until(ROWS * (SHARDS - 2) // SHARDS)
        reasons = {record.stream.shard: record.halted for record in await run.manager.list_streams() if record.halted}
        assert "Arrow" in reasons[3]
        assert "unknown stream payouts/4" in reasons[5]
    status = await asyncio.to_thread(oncesign, "status", "--json")
    assert '"payouts/3":' in status.out.partition('"halted"')[2]
    await step_over(settings, foreign)
    for stream in sorted(foreign):
        assert (await asyncio.to_thread(oncesign, "recover", "--stream", str(stream))).code == 0
    async with running(settings, kek) as run:
        await run.until(ROWS * 2 // SHARDS)
    assert await violations(settings) == set()


async def step_over(settings: Settings, streams: set[Stream]) -> None:
    """What an operator does with Kafka's own tools: the group's next offset is the one after the foreign record."""
    offsets = GroupOffsets(settings.kafka)
    topic, group = Topics(settings.kafka.topic_prefix).batches("payouts"), consumer_group(settings.deployment)
    at = await offsets.committed(group, topic, SHARDS)
    wanted = {s.shard: Committed(at[s.shard].offset + 2, at[s.shard].metadata) for s in streams}
    await offsets.commit(group, topic, wanted)
    await offsets.close()


async def test_a_record_larger_than_allowed_is_named(settings: Settings, kek: Kek) -> None:
    async with running(settings, kek):  # makes the topics
        pass
    stock(settings, ROWS)
    narrow = settings.model_copy(deep=True)
    narrow.kafka.message_max_bytes = 2_000  # the settings themselves refuse one that a batch does not fit
    with pytest.raises(SettingError, match=r"MESSAGE_MAX_BYTES: 2000, .* too small for a record") as refused:
        async with running(narrow, kek) as run:
            await run.until(ROWS, WAIT_S)
    assert refused.value.exit_code == 2
    async with running(settings, kek) as run:
        await run.until(ROWS)
    assert await violations(settings) == set()

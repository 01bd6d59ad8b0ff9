"""etcd is lost, or an older copy of its data is put back: everything halts until `oncesign recover` has rebuilt it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from actors.composition import verifying
from pipeline.adapters.etcd import EtcdStore
from pipeline.adapters.ledger import PostgresLedger
from pipeline.assignment.paths import Paths
from pipeline.assignment.records import Assignment, KeyState
from pipeline.custody.sealing import Kek
from pipeline.local.stack import Stack
from pipeline.ports import Assigned, KeyValue, SignedBatch
from pipeline.settings import EtcdSettings, KafkaSettings, PostgresSettings, ReaderSettings, Settings, SourceSettings
from pipeline.stages import recovery
from pipeline.stages.violation import Violation
from tests.command_line import Ended, Oncesign
from tests.pipeline_run import OneSigner, Run, running, stock

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

ROWS = 600
SHARDS = 8
KEYS = 6
WAIT_S = 60.0
SECRET = bytes(range(32))


class OwnEtcd:
    """A server whose data can be taken away."""

    def __init__(self, folder: Path) -> None:
        self._stack = Stack(folder / "now")
        self._now, self._copy = folder / "now", folder / "copy"

    def up(self) -> EtcdSettings:
        return EtcdSettings(endpoints=self._stack.up(servers=("etcd",)).addresses["etcd.endpoints"])

    def down(self) -> None:
        self._stack.down()

    def copy(self) -> None:
        """Of its data, while it is down."""
        shutil.copytree(self._now, self._copy)

    def put_back(self, *, lost: bool) -> None:
        """The copy, or nothing, is all that is left, while it is down."""
        shutil.rmtree(self._now)
        if not lost:
            shutil.copytree(self._copy, self._now)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[OwnEtcd]:
    made = OwnEtcd(tmp_path / "etcd")
    try:
        yield made
    finally:
        made.down()


@pytest.fixture
def settings(
    etcd: OwnEtcd, postgres: PostgresSettings, kafka: KafkaSettings, deployment: str, tmp_path: Path
) -> Settings:
    made = Settings(
        deployment=deployment,
        data_dir=tmp_path,
        etcd=etcd.up(),
        postgres=postgres,
        kafka=kafka,
        sources=[SourceSettings(shards=SHARDS)],
        reader=ReaderSettings(batch_rows_max=25),
    )
    made.kek_path.write_bytes(SECRET)
    made.kek_path.chmod(0o600)
    return made


async def held(settings: Settings) -> list[KeyValue]:
    """What etcd has, the leader apart."""
    store, paths = EtcdStore(settings.etcd), Paths(settings.deployment)
    found = await store.list(f"{paths.root}/")
    await store.close()
    return [kv for kv in found if kv.key != paths.leader]


async def violations(settings: Settings) -> list[Violation]:
    async with verifying.verifier(settings) as verifier:
        await verifier.catch_up()
        return await verifier.reconcile()


class Stuck(OneSigner):
    """Every second batch is signed and never comes back; the others are not even sworn."""

    sworn = 0

    async def sign(self, batch: bytes, assigned: Assigned) -> SignedBatch:
        if assigned.assignment.seq % 2 == 0:
            await super().sign(batch, assigned)
            self.sworn += 1
        await asyncio.Event().wait()
        raise AssertionError


@asynccontextmanager
async def stuck(settings: Settings, kek: Kek, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Assignment]]:
    """A pipeline in the middle of its work: batches have a key, some are sworn, none of them is published."""
    async with running(settings, kek, KEYS) as run:
        signers = Stuck(run.signers._signer)
        monkeypatch.setattr(run.consumer, "_signers", signers)
        deadline = asyncio.get_running_loop().time() + WAIT_S
        while signers.sworn < 2:
            assert asyncio.get_running_loop().time() < deadline, run.consumer.count
            await asyncio.sleep(0.05)
        yield await run.manager.assignments()  # type: ignore[misc] # a list
        for task in run.tasks:
            task.cancel()


async def all_done(run: Run, nonces: int) -> None:
    """Every nonce of the rows was given once, and everything that has one is published."""
    deadline = asyncio.get_running_loop().time() + WAIT_S
    while True:
        keys = await run.manager.list_keys()
        if sum(key.next_nonce for key in keys) >= nonces and not await run.manager.list_assignments():
            assert sum(key.next_nonce for key in keys) == nonces
            assert {key.state for key in keys} == {KeyState.FREE}
            return
        for task in run.tasks:
            assert not task.done(), task
        assert asyncio.get_running_loop().time() < deadline, (run.consumer.count, run.consumer.halted)
        await asyncio.sleep(0.1)


def told(ended: Ended) -> list[dict[str, Any]]:
    assert ended.code == 0, ended.err
    return [json.loads(line) for line in ended.out.splitlines()]


@pytest.mark.parametrize("left", ["an older copy", "nothing"])
async def test_signing_goes_on_after_a_recovery(
    settings: Settings, kek: Kek, etcd: OwnEtcd, oncesign: Oncesign, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    lost = left == "nothing"
    stock(settings, ROWS)
    async with running(settings, kek, KEYS) as run:
        await all_done(run, ROWS)
    await asyncio.to_thread(etcd.down)
    etcd.copy()
    settings.etcd = await asyncio.to_thread(etcd.up)
    assert told(await asyncio.to_thread(oncesign, "recover", "--dry-run", "--json")) == []
    stock(settings, ROWS, seed=2)
    async with stuck(settings, kek, monkeypatch) as under_way:
        assert len(under_way) > 2
    await asyncio.to_thread(etcd.down)
    etcd.put_back(lost=lost)
    settings.etcd = await asyncio.to_thread(etcd.up)
    found = await held(settings)

    refused = await asyncio.to_thread(oncesign, "sign", "--until-drained")
    assert refused.code == 5
    assert refused.error.startswith("etcd holds nothing" if lost else "etcd and the ledger disagree: ")
    assert "`oncesign recover` rebuilds etcd" in refused.error
    shown = told(await asyncio.to_thread(oncesign, "recover", "--dry-run", "--json"))
    assert {"key", "stream", "assignment"} <= {difference["what"] for difference in shown}
    assert ("genesis" in {difference["what"] for difference in shown}) is lost
    assert await held(settings) == found, "a dry run changes nothing"

    changed = told(await asyncio.to_thread(oncesign, "recover", "--json"))
    assert [d["name"] for d in changed] == [d["name"] for d in shown]
    assert told(await asyncio.to_thread(oncesign, "recover", "--dry-run", "--json")) == []
    async with running(settings, kek) as run:
        assert len(await run.manager.list_keys()) == KEYS
        await all_done(run, 2 * ROWS)
    assert await violations(settings) == []


async def test_keys_that_never_signed_come_back_too(settings: Settings, etcd: OwnEtcd, oncesign: Oncesign) -> None:
    assert told(await asyncio.to_thread(oncesign, "recover", "--dry-run", "--json")) == []
    assert told(await asyncio.to_thread(oncesign, "recover", "--json")) == []
    ended = await asyncio.to_thread(oncesign, "keys", "create", "--count", "2", "--json")
    created = set(json.loads(ended.out)["created"])
    before = {kv.key: kv.value for kv in await held(settings) if "/sealed/" in kv.key}
    await asyncio.to_thread(etcd.down)
    etcd.put_back(lost=True)
    settings.etcd = await asyncio.to_thread(etcd.up)
    shown = told(await asyncio.to_thread(oncesign, "recover", "--dry-run", "--json"))
    assert [difference["what"] for difference in shown] == ["genesis", "sealed key", "sealed key", "key", "key"]
    assert await held(settings) == []
    ended = await asyncio.to_thread(oncesign, "recover")
    assert ended.code == 0, ended.err
    assert "if it was disabled, disable it again" in ended.out
    assert {kv.key: kv.value for kv in await held(settings) if "/sealed/" in kv.key} == before
    listed = told(await asyncio.to_thread(oncesign, "keys", "list", "--json"))
    assert {key["address"] for key in listed} == created
    assert {(key["state"], key["next_nonce"]) for key in listed} == {("free", 0)}


async def test_nothing_is_rebuilt_while_anything_could_sign(
    settings: Settings, kek: Kek, oncesign: Oncesign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "ALONE_S", 2.0)
    stock(settings, ROWS)
    async with running(settings, kek, KEYS) as run:
        await all_done(run, ROWS)
        before = await held(settings)
        ended = await asyncio.to_thread(oncesign, "recover")
        assert ended.code == 5
        assert ended.error.startswith("another key manager holds this deployment")
    signer = PostgresLedger(settings.postgres)
    await signer.enlist()
    ended = await asyncio.to_thread(oncesign, "recover")
    assert ended.code == 5
    assert ended.error.startswith("something could still sign: a signer is connected to the ledger.")
    await signer.close()
    ended = await asyncio.to_thread(oncesign, "recover")
    assert ended.code == 0, ended.err
    assert await held(settings) == before


@pytest.mark.parametrize(
    "arguments", [["--stream", "payouts/0", "--dry-run"], ["--from-start"], ["--stream", "payouts/0", "--json"]]
)
def test_options_that_do_not_go_together_are_refused(oncesign: Oncesign, arguments: list[str]) -> None:
    assert oncesign("recover", *arguments).code == 2

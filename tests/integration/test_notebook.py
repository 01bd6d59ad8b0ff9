"""What notebooks read, on what a real pipeline signed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jobs import notebook
from jobs.notebook import BEGINNING, Mark
from pipeline.adapters.etcd import EtcdStore
from pipeline.assignment.paths import Paths
from pipeline.custody.sealing import Kek
from pipeline.errors import RuntimeFault, StoreUnavailable
from pipeline.ethereum.ipc import read_ipc
from pipeline.settings import ReaderSettings, Settings
from tests.command_line import environment
from tests.pipeline_run import running, stock

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROWS = 120
KEYS = 3
DEPLOYMENT = "notebook"
KEK = Kek(bytes(range(32)))


@pytest.fixture(scope="module")
def settings(deployed_for_all: Settings) -> Settings:
    return deployed_for_all.model_copy(update={"reader": ReaderSettings(batch_rows_max=10)})


@pytest.fixture(scope="module")
def revision(settings: Settings) -> int:
    """Of etcd, before a pipeline signed `ROWS` rows there."""
    stock(settings, ROWS)

    async def sign() -> int:
        store = EtcdStore(settings.etcd)
        before = await store.revision(Paths(settings.deployment).root)
        await store.close()
        async with running(settings, KEK, keys=KEYS) as run:
            await run.until(ROWS)
        return before

    return asyncio.run(sign())


@pytest.fixture(autouse=True)
def _settings(settings: Settings, revision: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert revision
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)


def test_a_query_gives_rows_and_cannot_change_any() -> None:
    source = notebook.source()
    found = notebook.query(f"SELECT id, type FROM {source.table} WHERE id > $1 ORDER BY id", ROWS - 3)
    assert found["id"].tolist() == [ROWS - 2, ROWS - 1, ROWS]
    with pytest.raises(Exception, match="read-only transaction"):
        notebook.query("INSERT INTO violations (kind, detail) VALUES ('none', 'none') RETURNING id")


def test_records_and_their_headers_are_those_of_the_topic() -> None:
    published = notebook.records("signed")
    batches = notebook.headers(published)
    assert batches["count"].sum() == ROWS
    assert set(batches["source"]) == {"payouts"}
    assert published["time"].notna().all()
    ids = [tx_id for value in published["value"] for tx_id in read_ipc(value)[0].column("tx_id").to_pylist()]
    assert len(ids) == ROWS
    assert set(ids) == set(range(1, ROWS + 1))


def test_only_what_comes_after_a_mark_is_read() -> None:
    now = notebook.mark()
    assert now.tx_id == ROWS
    assert notebook.records("signed", now).empty
    assert not notebook.records("signed", BEGINNING).empty
    assert notebook.changes("assignments", now).empty


def test_every_change_of_keys_and_assignments_is_told(revision: int) -> None:
    before = Mark(revision=revision)
    moves = notebook.changes("assignments", before)
    made, deleted = moves[~moves["deleted"].astype(bool)], moves[moves["deleted"].astype(bool)]
    assert set(made["path"]) == set(deleted["path"])
    assert made["count"].sum() == ROWS
    assert (made.groupby("path")["revision"].min() < deleted.groupby("path")["revision"].max()).all()
    keys = notebook.changes("keys", before)
    assert (keys["state"] == "locked").sum() == len(made)
    assert len(notebook.present("keys")) == KEYS
    assert notebook.present("assignments").empty


async def test_a_revision_that_etcd_has_not_is_an_error(settings: Settings) -> None:
    store = EtcdStore(settings.etcd)
    try:
        now = await store.revision("/")
        with pytest.raises(StoreUnavailable, match="future revision"):
            await store.list("/", revision=now + 1000)
    finally:
        await store.close()


def test_a_command_is_shown_and_its_failure_raised(capsys: pytest.CaptureFixture[str]) -> None:
    notebook.command("assignments")
    assert "$ oncesign assignments\nNothing is under way." in capsys.readouterr().out
    with pytest.raises(RuntimeFault, match="ended with 2"):
        notebook.command("nonsense")


def test_objects_are_what_json_has() -> None:
    keys = notebook.objects("keys", "list")
    assert sum(key["next_nonce"] for key in keys) == ROWS


def test_nothing_is_made_twice_where_all_is_there(capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    notebook.prepare(KEYS + 1)
    assert settings.etcd.endpoints in capsys.readouterr().out
    assert len(notebook.objects("keys", "list")) == KEYS
    assert not (Path(settings.data_dir) / "etcd").exists()  # nothing embedded

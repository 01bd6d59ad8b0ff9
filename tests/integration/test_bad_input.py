"""What a user can get wrong, against real servers: one line, an exit code, and nothing changed."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import psycopg
import pytest
from eth_keyfile.keyfile import create_keyfile_json

from jobs.desk import etcd_view, key_desk
from pipeline.adapters.postgres import connection_string
from pipeline.custody.generation import address_of
from pipeline.settings import Settings
from tests.command_line import Ended, Oncesign

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

NOBODY = "127.0.0.1:1"
SECRET = b"\x11" * 32


@pytest.fixture
def settings(deployed: Settings) -> Settings:
    return deployed


@pytest.fixture
def oncesign(oncesign: Oncesign, monkeypatch: pytest.MonkeyPatch) -> Oncesign:
    monkeypatch.setattr("pipeline.adapters.topics.CALL_TIMEOUT_S", 1.5)
    monkeypatch.setattr("pipeline.adapters.offsets.CALL_TIMEOUT_S", 1.5)
    return oncesign


def keys_of(settings: Settings) -> list[str]:
    async def read() -> list[str]:
        async with etcd_view(settings) as view:
            return [key.address for key in view.oldest_first()]

    return asyncio.run(read())


def rows_in(settings: Settings, table: str = "transactions") -> int:
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        [[count]] = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(count)


def kek_file(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    path.chmod(0o600)
    return str(path)


# ── servers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def dsn(settings: Settings, database: str) -> str:
    return settings.postgres.dsn.get_secret_value().rpartition("/")[0] + "/" + database


@pytest.mark.parametrize("command", [["migrate"], ["stock", "--count", "10"], ["verify"]])
def test_a_dsn_that_is_none(oncesign: Oncesign, command: list[str]) -> None:
    for bad in ("hello world", "postgresql://x@:bad:port/db"):
        ended = oncesign(*command, env={"ONCESIGN_POSTGRES__DSN": bad})
        assert ended.code == 2
        assert ended.error.startswith("ONCESIGN_POSTGRES__DSN: ")


def test_a_dsn_with_a_password_is_not_shown(oncesign: Oncesign) -> None:
    ended = oncesign("migrate", env={"ONCESIGN_POSTGRES__DSN": "postgresql://me:hunter2@127.0.0.1/x"})
    assert ended.code == 2
    assert "ONCESIGN_POSTGRES__PASSWORD_FILE" in ended.error
    assert "hunter2" not in ended.err


def test_postgres_says_no(oncesign: Oncesign, settings: Settings, tmp_path: Path) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("wrong")
    ended = oncesign("migrate", env={"ONCESIGN_POSTGRES__PASSWORD_FILE": str(wrong)})
    assert ended.code == 3
    assert "password authentication failed" in ended.error
    assert "ONCESIGN_POSTGRES__PASSWORD_FILE" in ended.error
    ended = oncesign("migrate", env={"ONCESIGN_POSTGRES__PASSWORD_FILE": str(tmp_path / "none")})
    assert (ended.code, "none: No such file" in ended.error) == (2, True)
    ended = oncesign("migrate", env={"ONCESIGN_POSTGRES__DSN": dsn(settings, "nodb")})
    assert ended.code == 3
    assert 'database "nodb" does not exist. Create it in Postgres' in ended.error
    ended = oncesign("stock", "--count", "10", env={"ONCESIGN_POSTGRES__DSN": f"postgresql://x@{NOBODY}/x"})
    assert ended.code == 3
    assert ended.error.startswith(f"Postgres at {NOBODY}/x: Connection refused. Start it with `oncesign up`")


def test_kafka_is_away(oncesign: Oncesign, settings: Settings) -> None:
    assert oncesign("keys", "create").code == 0
    for command in (["verify"], ["sign", "--until-drained"], ["demo", "--count", "10"]):
        ended = oncesign(*command, env={"ONCESIGN_KAFKA__BOOTSTRAP_SERVERS": NOBODY})
        assert ended.code == 3
        assert ended.error.startswith(f"Kafka at {NOBODY}: ")
        assert "ONCESIGN_KAFKA__BOOTSTRAP_SERVERS" in ended.error
    assert rows_in(settings) == 0  # demo looked before it inserted


@pytest.mark.parametrize(
    "command", [["sign"], ["keys", "create"], ["keys", "list"], ["assignments"], ["recover", "--stream", "payouts/0"]]
)
def test_etcd_is_away(oncesign: Oncesign, command: list[str]) -> None:
    ended = oncesign(*command, env={"ONCESIGN_ETCD__ENDPOINTS": f"http://{NOBODY}"})
    assert ended.code == 3
    assert ended.error.startswith(f"etcd at http://{NOBODY}: ")
    assert "ONCESIGN_ETCD__ENDPOINTS" in ended.error


# ── key-encryption key and keystores ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", [["keys", "create"], ["sign", "--until-drained"]])
def test_a_kek_that_is_none(oncesign: Oncesign, settings: Settings, tmp_path: Path, command: list[str]) -> None:
    assert oncesign("keys", "create").code == 0
    pool = keys_of(settings)
    bad = kek_file(tmp_path / "bad", b"abc\n")
    for named, says in ((str(tmp_path / "none"), "No such file"), (bad, "holds 4 bytes"), (str(tmp_path), "directory")):
        ended = oncesign(*command, env={"ONCESIGN_KEK_FILE": named})
        assert ended.code == 2
        assert ended.error.startswith(f"{named}: ")
        assert says in ended.error
    assert keys_of(settings) == pool


@pytest.mark.parametrize("command", [["keys", "create"], ["sign", "--until-drained"]])
def test_a_kek_that_does_not_open_the_pool(
    oncesign: Oncesign, settings: Settings, tmp_path: Path, command: list[str]
) -> None:
    assert oncesign("keys", "create").code == 0
    pool = keys_of(settings)
    other = kek_file(tmp_path / "other", os.urandom(32))
    ended = oncesign(*command, env={"ONCESIGN_KEK_FILE": other})
    assert ended.code == 2
    assert f"the key of {pool[0]} was sealed by KEK" in ended.error
    assert "ONCESIGN_KEK_FILE" in ended.error
    assert keys_of(settings) == pool


def test_a_lost_kek_is_not_made_anew(oncesign: Oncesign, settings: Settings) -> None:
    assert oncesign("keys", "create").code == 0
    pool = keys_of(settings)
    settings.kek_path.unlink()
    for command in (["keys", "create"], ["sign", "--until-drained"]):
        ended = oncesign(*command)
        assert ended.code == 2
        assert ended.error.startswith(f"{settings.kek_path}: No such file or directory.")
    assert not settings.kek_path.exists()
    assert keys_of(settings) == pool


def test_a_keystore_that_does_not_open_imports_nothing(oncesign: Oncesign, settings: Settings, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    keystore = json.dumps(create_keyfile_json(SECRET, b"right", iterations=1000, kdf="pbkdf2"))
    contents = {"good.json": keystore, "bad.json": '{"a": 1}', "right": "right\n", "wrong": "wrong\n"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)
    right, wrong = ["--password-file", str(tmp_path / "right")], ["--password-file", str(tmp_path / "wrong")]
    for arguments, says in (
        ([str(good), *wrong], f"{good}: wrong password. Nothing was imported."),
        ([str(good), str(bad), *right], f"{bad}: not a keystore V3 file. Nothing was imported."),
        ([str(tmp_path / "none"), *right], "No such file or directory. Nothing was imported."),
        ([str(good), "--password-file", str(tmp_path / "none")], "It should hold the keystore password."),
    ):
        ended = oncesign("keys", "import", *arguments)
        assert ended.code == 2
        assert ended.error.endswith(says)
    assert keys_of(settings) == []
    assert oncesign("keys", "import", str(good), *right).code == 0
    again = oncesign("keys", "import", str(good), *right)
    assert again.code == 2
    assert again.error == f"{address_of(SECRET)} is in the pool of chain 1 already. Nothing was imported."
    assert keys_of(settings) == [address_of(SECRET)]


# ── keys, rows, tables ───────────────────────────────────────────────────────────────────────────────────────────────


def test_no_key_to_lend(oncesign: Oncesign, settings: Settings) -> None:
    ended = oncesign("sign", "--until-drained")
    assert ended.code == 2
    assert ended.error == (
        "the pool has no key for chain 1 (source payouts). Run: oncesign keys create --count 16 --source payouts"
    )
    assert oncesign("keys", "create", "--count", "2").code == 0
    for address in keys_of(settings):
        assert oncesign("keys", "disable", address).code == 0
    ended = oncesign("sign", "--until-drained")
    assert ended.code == 2
    assert "all 2 are disabled. Run: oncesign keys enable ADDRESS" in ended.error
    ended = oncesign("keys", "disable", "0x123")
    assert (ended.code, ended.error) == (2, "0x123 is not in the pool of chain 1. See: oncesign keys list")


def test_nothing_to_verify_yet(oncesign: Oncesign) -> None:
    ended = oncesign("verify", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["signed"] == 0


def test_rows_that_were_never_signed_are_found(oncesign: Oncesign) -> None:
    assert oncesign("stock", "--count", "5").code == 0
    ended = oncesign("verify")
    assert ended.code == 4
    assert ended.error.startswith("5 violation(s). Rows that were never signed: run `oncesign sign")


@pytest.mark.parametrize(("table", "says"), [("nope", "does not exist"), ("outcomes", "lacks access_list")])
@pytest.mark.parametrize("command", ["verify", "sign"])
def test_a_table_that_is_no_source(oncesign: Oncesign, command: str, table: str, says: str) -> None:
    assert oncesign("keys", "create").code == 0
    ended = oncesign(command, env={"ONCESIGN_SOURCES": f'[{{"name":"payouts","table":"{table}"}}]'})
    assert ended.code == 2
    assert f"ONCESIGN_SOURCES: table {table} of source payouts {says}" in ended.error


@pytest.mark.parametrize("stream", ["foo", "payouts/x", "payouts/99"])
def test_recover_wants_a_stream_that_is_there(oncesign: Oncesign, stream: str) -> None:
    ended = oncesign("recover", "--stream", stream)
    assert ended.code == 2
    assert stream in ended.error


def test_the_same_command_twice(oncesign: Oncesign, settings: Settings) -> None:
    for _ in range(2):
        again = oncesign("migrate")
        assert (again.code, again.out) == (0, "")  # the database of a test is migrated
        assert oncesign("keys", "create", "--count", "2").code == 0
        assert oncesign("stock", "--count", "10").code == 0
    assert len(set(keys_of(settings))) == 4
    assert rows_in(settings) == 20


def test_a_leader_that_cannot_be_asked(oncesign: Oncesign, settings: Settings) -> None:
    async def while_another_leads() -> Ended:
        async with key_desk(settings):
            return await asyncio.to_thread(oncesign, "keys", "create")

    ended = asyncio.run(while_another_leads())
    assert ended.code == 5
    assert ended.error.startswith("another key manager holds this deployment: process ")
    assert "ONCESIGN_DEPLOYMENT" in ended.error

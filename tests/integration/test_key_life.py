"""A key from its coming to its end, by the command line and real servers."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from eth_account import Account
from eth_keyfile.keyfile import create_keyfile_json

from jobs.desk import etcd_view
from jobs.rotation import Rotation
from pipeline.adapters.postgres import connection_string
from pipeline.assignment.view import View
from pipeline.custody.generation import address_of
from pipeline.custody.kek_ring import KekRing, next_of, previous_of
from pipeline.custody.sealing import Kek
from pipeline.settings import PostgresSettings, Settings
from pipeline.stages import intake
from tests.command_line import Oncesign
from tests.databases import fresh
from tests.dev_node import CHAIN_ID, anvil
from tests.pipeline_run import running, stock

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

KEYS = 1_000
ROWS = 40_000
ROTATION_S = 60.0
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def settings(deployed: Settings) -> Settings:
    Kek.create(deployed.kek_path)
    return deployed


def secret() -> bytes:
    """A new one: the tests share one etcd, and a key there belongs to one deployment."""
    return os.urandom(32)


def private(path: Path, content: str) -> str:
    path.write_text(content)
    path.chmod(0o600)
    return str(path)


def view_of(settings: Settings) -> View:
    async def read() -> View:
        async with etcd_view(settings) as view:
            return view

    return asyncio.run(read())


def listed(oncesign: Oncesign) -> dict[str, Any]:
    rows = (json.loads(line) for line in oncesign("keys", "list", "--json").out.splitlines())
    return {row["address"]: row for row in rows}


def kept_copies(settings: Settings) -> set[str]:
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        rows = connection.execute("SELECT DISTINCT address FROM kept_keys").fetchall()
    return {"0x" + address.hex() for (address,) in rows}


# ── coming ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_kind_of_file_is_imported(oncesign: Oncesign, tmp_path: Path) -> None:
    secrets = [secret() for _ in range(4)]
    hex_ = private(tmp_path / "hex", "\n".join("0x" + each.hex() for each in secrets[:2]))
    made = [create_keyfile_json(secrets[2], b"horse", kdf="pbkdf2", iterations=2)]
    made += [create_keyfile_json(secrets[3], b"horse", kdf="scrypt", iterations=2)]
    keystores = [private(tmp_path / f"{n}.json", json.dumps(each)) for n, each in enumerate(made)]
    Account.enable_unaudited_hdwallet_features()
    _, words = Account.create_with_mnemonic()
    mnemonic, password = private(tmp_path / "words", words), private(tmp_path / "password", "horse\n")
    imported = [
        oncesign("keys", "import", hex_, "--format", "hex", "--nonce", "7", "--json"),
        oncesign("keys", "import", *keystores, "--password-file", password, "--json"),
        oncesign("keys", "import", mnemonic, "--format", "mnemonic", "--count", "3", "--json"),
    ]
    assert [ended.code for ended in imported] == [0, 0, 0], [ended.err for ended in imported]
    derived = [Account.from_mnemonic(words, account_path=f"m/44'/60'/0'/0/{n}").address.lower() for n in range(3)]
    assert [json.loads(ended.out)["imported"] for ended in imported] == [
        [address_of(each) for each in secrets[:2]], [address_of(each) for each in secrets[2:]], derived,
    ]  # fmt: skip
    found = listed(oncesign)
    assert {found[address_of(each)]["next_nonce"] for each in secrets[:2]} == {7}
    assert len(found) == 7


def test_what_cannot_be_imported_imports_nothing(oncesign: Oncesign, settings: Settings, tmp_path: Path) -> None:
    good, bad = private(tmp_path / "good", secret().hex()), private(tmp_path / "bad", "0x12")
    (tmp_path / "open").write_text(secret().hex())
    (tmp_path / "open").chmod(0o644)
    refused = {
        ("keys", "import", good, bad, "--format", "hex"): "bad:1: is not a private key in hex. Nothing was imported.",
        ("keys", "import", good, str(tmp_path / "open"), "--format", "hex"): "others could read or change it.",
        ("keys", "import", good, good, "--format", "hex"): "holds the same key as",
        ("keys", "import", good): "keystores need --password-file.",
        ("keys", "import", good, "--format", "mnemonic"): "holds no BIP-39 mnemonic.",
        ("keys", "import", good, "--format", "mnemonic", "--path", "44/60"): "is not a derivation path.",
        (
            "keys",
            "import",
            good,
            "--format",
            "hex",
            "--nonce",
            "1",
            "--rpc",
            "http://127.0.0.1:1",
        ): "exclude each other",
        ("keys", "import", good, "--format", "hex", "--with-pending"): "--with-pending needs --rpc.",
        ("keys", "import", good, "--format", "hex", "--rpc", "ftp://x"): "is not an http:// or https:// URL",
    }
    for command, said in refused.items():
        ended = oncesign(*command)
        assert ended.code == 2, (command, ended.err)
        assert said in ended.error
    down = oncesign("keys", "import", good, "--format", "hex", "--rpc", NOBODY)
    assert (down.code, "127.0.0.1:1" in down.error) == (3, True)
    assert not view_of(settings).keys
    assert oncesign("keys", "import", str(tmp_path / "open"), "--format", "hex", "--force").code == 0


def test_a_key_of_another_deployment_is_refused(
    oncesign: Oncesign, settings: Settings, postgres_server: PostgresSettings, tmp_path: Path
) -> None:
    with fresh(postgres_server) as database:
        dsn = database.dsn.get_secret_value()
        other = {"ONCESIGN_DEPLOYMENT": settings.deployment + "-2", "ONCESIGN_POSTGRES__DSN": dsn}
        refused_until_it_is_retired(oncesign, settings, other, tmp_path)


def refused_until_it_is_retired(oncesign: Oncesign, settings: Settings, other: dict[str, str], tmp_path: Path) -> None:
    file = private(tmp_path / "key", secret().hex())
    assert oncesign("keys", "import", file, "--format", "hex").code == 0
    ended = oncesign("keys", "import", file, "--format", "hex", env=other)
    assert ended.code == 2
    assert f"belongs to the deployment {settings.deployment}. Nothing was imported. Retire it there" in ended.error
    [address] = listed(oncesign)
    assert oncesign("keys", "drain", address).code == 0
    assert oncesign("keys", "retire", address, "--yes").code == 0
    assert oncesign("keys", "import", file, "--format", "hex", env=other).code == 0


# ── the chain's nonces ───────────────────────────────────────────────────────────────────────────────────────────────


def test_nonces_are_those_of_the_chain(oncesign: Oncesign, tmp_path: Path) -> None:
    chain = {"ONCESIGN_SOURCES": json.dumps([{"name": "payouts", "chain_id": CHAIN_ID}])}
    used, fresh = Account.from_key(secret()), Account.from_key(secret())

    def send(nonce: int) -> None:
        payment = {"to": fresh.address, "value": 1, "gas": 21_000, "nonce": nonce, "chainId": CHAIN_ID}
        signed = used.sign_transaction(payment | {"gasPrice": 2 * 10**9})
        node.call("eth_sendRawTransaction", "0x" + signed.raw_transaction.hex())

    with anvil(tmp_path, [used.address.lower()]) as node:
        for nonce in range(3):
            send(nonce)
        until(lambda: int(node.call("eth_getTransactionCount", used.address, "latest"), 16) == 3)
        hex_ = private(tmp_path / "hex", f"{used.key.hex()}\n{fresh.key.hex()}")
        wrong = oncesign("keys", "import", hex_, "--format", "hex", "--rpc", node.url)
        assert (wrong.code, wrong.error) == (2, f"the node is on chain {CHAIN_ID}, the keys are for chain 1.")
        ended = oncesign("keys", "import", hex_, "--format", "hex", "--rpc", node.url, env=chain)
        assert ended.code == 0, ended.err
        nonces = {address: key["next_nonce"] for address, key in listed(oncesign).items()}
        assert nonces == {used.address.lower(): 3, fresh.address.lower(): 0}
        checked = oncesign("keys", "check", "--rpc", node.url, "--json", env=chain)
        assert checked.code == 0, checked.err
        assert {json.loads(line)["verdict"] for line in checked.out.splitlines()} == {"in step"}
        send(3)
        until(lambda: int(node.call("eth_getTransactionCount", used.address, "latest"), 16) == 4)
        elsewhere = oncesign("keys", "check", "--rpc", node.url, env=chain)
        assert elsewhere.code == 1
        assert f"{used.address.lower()} was used elsewhere" in elsewhere.error


def test_a_gap_is_closed(oncesign: Oncesign, settings: Settings, tmp_path: Path) -> None:
    chain = {"ONCESIGN_SOURCES": json.dumps([{"name": "payouts", "chain_id": CHAIN_ID}])}
    key = Account.from_key(secret())
    address, hex_ = key.address.lower(), private(tmp_path / "hex", key.key.hex())
    with anvil(tmp_path, [address]) as node:
        assert oncesign("keys", "import", hex_, "--format", "hex", "--nonce", "5", env=chain).code == 0
        gap = oncesign("keys", "check", "--rpc", node.url, env=chain)
        assert (gap.code, f"{address} has a gap before its first nonce" in gap.error) == (1, True)
        in_use = oncesign("keys", "fill", address, "--rpc", node.url, env=chain)
        assert (in_use.code, in_use.error) == (2, f"{address} is free. Run: oncesign keys drain {address}")
        assert oncesign("keys", "drain", address, env=chain).code == 0
        done = oncesign("keys", "fill", address, "--rpc", node.url, "--json", env=chain)
        assert done.code == 0, done.err
        hashes = json.loads(done.out)["hashes"]
        mined = node.calls("eth_getTransactionByHash", [[each] for each in hashes])
        assert [(int(tx["nonce"], 16), tx["from"], tx["to"], int(tx["value"], 16)) for tx in mined] == [
            (nonce, address, address, 0) for nonce in range(5)
        ]
        again = oncesign("keys", "fill", address, "--rpc", node.url, env=chain)
        assert (again.code, "there is no gap before nonce 5" in again.error) == (1, True)
        assert oncesign("keys", "check", "--rpc", node.url, env=chain).code == 0
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        watermarks = connection.execute("SELECT next_nonce FROM key_watermarks").fetchall()
    assert watermarks == [(5,)]


def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


# ── a new key-encryption key ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_thousand_keys_are_sealed_anew_while_they_sign(settings: Settings) -> None:
    keks = KekRing(settings.kek_path)
    stock(settings, ROWS)
    async with running(settings, keks, KEYS) as run:
        while run.consumer.count.signed < ROWS // 10:
            await asyncio.sleep(0.01)
        Kek.create(next_of(settings.kek_path))
        began_s = time.monotonic()
        stale = intake.resealed(run.manager.view(), KekRing(settings.kek_path))
        await run.manager.reseal(stale)
        took_s = time.monotonic() - began_s
        signed_meanwhile = run.consumer.count.signed
        await run.until(ROWS)
        assert run.consumer.count.signed == ROWS
        assert not run.consumer.halted
        assert intake.resealed(run.manager.view(), KekRing(settings.kek_path)) == []
    assert (len(stale), signed_meanwhile < ROWS) == (KEYS, True)
    assert took_s < ROTATION_S


def test_the_command_turns_the_files(oncesign: Oncesign, settings: Settings) -> None:
    assert oncesign("keys", "create", "--count", "40").code == 0
    before = Kek.load(settings.kek_path)
    done = oncesign("keys", "rotate-kek", "--json")
    assert done.code == 0, done.err
    after = Kek.load(settings.kek_path)
    assert json.loads(done.out) == {"kek": after.id.hex(), "before": before.id.hex(), "resealed": 40}
    assert Kek.load(previous_of(settings.kek_path)).id == before.id
    assert not next_of(settings.kek_path).exists()
    again = oncesign("keys", "rotate-kek")
    assert (again.code, "kek.previous is still there." in again.error) == (2, True)
    previous_of(settings.kek_path).unlink()
    assert oncesign("keys", "create").code == 0  # opens every key by the new one alone
    assert oncesign("keys", "rotate-kek").code == 0


class Killed(BaseException):
    """Nothing of the command sees it."""


@pytest.mark.parametrize("step", ["_await_signers", "_reseal", "_turn", "replace"])
def test_a_rotation_that_was_interrupted_goes_on(
    oncesign: Oncesign, settings: Settings, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    assert oncesign("keys", "create", "--count", "3").code == 0

    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path if step == "replace" else Rotation, step, dies)
        with pytest.raises(Killed):
            oncesign("keys", "rotate-kek")
    assert oncesign("keys", "create").code == 0  # opens every key that there is
    done = oncesign("keys", "rotate-kek", "--json")
    assert done.code == 0, done.err
    previous_of(settings.kek_path).unlink()
    intake.load_keks(settings.kek_path, view_of(settings))


# ── its end ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_drained_and_retired(oncesign: Oncesign, settings: Settings) -> None:
    first, second, third = oncesign("keys", "create", "--count", "3").out.split()
    in_use = oncesign("keys", "retire", first, "--yes")
    assert (in_use.code, in_use.error) == (2, f"{first} is free. Run: oncesign keys drain {first}")
    assert oncesign("keys", "drain", first.upper().replace("0X", "0x"), second).code == 0
    unsaid = oncesign("keys", "retire", first)
    assert (unsaid.code, unsaid.error) == (2, "nothing was retired. Answer y, or give --yes.")
    assert oncesign("keys", "retire", first, "--yes").code == 0
    assert oncesign("keys", "retire", second, "--destroy", "--yes").code == 0
    assert {a: key["state"] for a, key in listed(oncesign).items()} == {
        first: "retired", second: "retired", third: "free",
    }  # fmt: skip
    assert set(view_of(settings).sealed) == {first, third}
    assert kept_copies(settings) == {first, third}
    for command in ("enable", "disable", "drain"):
        assert f"{second} was retired." in oncesign("keys", command, second).error
    assert oncesign("keys", "drain", "0x" + "00" * 20).code == 2


def test_the_database_lets_no_copy_go_of_a_key_in_use(oncesign: Oncesign, settings: Settings) -> None:
    [address] = oncesign("keys", "create").out.split()
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        with pytest.raises(psycopg.Error, match="immutable until their key is retired"):
            connection.execute("DELETE FROM kept_keys")
        connection.rollback()
        with pytest.raises(psycopg.Error, match="immutable"):
            connection.execute("UPDATE kept_keys SET sealed = ''")
    assert kept_copies(settings) == {address}

"""What the etcd client makes of requests refused, forbidden or not answered, on a real etcd."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pipeline.adapters.etcd import EtcdStore
from pipeline.assignment.manager import KeyManager
from pipeline.assignment.records import StreamRecord
from pipeline.clock import SystemClock
from pipeline.errors import AmbiguousTxn, StoreUnavailable
from pipeline.local.server import free_port
from pipeline.ports import Assigned, Compare, Txn
from pipeline.settings import EtcdSettings, Settings
from pipeline.testing.ledger import TwinLedger
from tests.etcd_process import EtcdProcess
from tests.unit.assignment_records import CHAIN, SYSTEM, A, B, address, request

pytestmark = pytest.mark.integration

KEY = "/oncesign/test/a"


def put(value: bytes, *compares: Compare) -> Txn:
    return Txn(compares=compares, puts=((KEY, value),), gets=(KEY,))


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    process = EtcdProcess(tmp_path)
    process.start()
    yield process
    process.kill()


@pytest.fixture
async def store(etcd: EtcdProcess) -> AsyncIterator[EtcdStore]:
    made = EtcdStore(etcd.settings)
    yield made
    await made.close()


async def ask(settings: EtcdSettings, path: str, body: dict[str, Any], token: str = "") -> dict[str, Any]:
    headers = {"Authorization": token} if token else {}
    url = f"{settings.endpoints}/v3/{path}"
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as response:
        answer: dict[str, Any] = await response.json(content_type=None)
        assert response.ok, answer
        return answer


async def test_an_etcd_that_is_not_there_did_certainly_nothing() -> None:
    nobody = EtcdStore(EtcdSettings(endpoints=f"http://127.0.0.1:{free_port()}"))
    started_s = time.monotonic()
    for attempt in (nobody.commit(put(b"1")), nobody.get(KEY), nobody.list("/"), nobody.grant_lease(5)):
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
            await attempt
    assert time.monotonic() - started_s < 10
    await nobody.close()


async def test_the_next_endpoint_is_asked(etcd: EtcdProcess) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    store = EtcdStore(etcd.settings.model_copy(update={"endpoints": f"{dead}, {etcd.settings.endpoints}/"}))
    assert (await store.commit(put(b"1"))).succeeded
    assert await store.get(KEY) is not None
    await store.close()


async def test_a_frozen_etcd_leaves_a_transaction_ambiguous(etcd: EtcdProcess, store: EtcdStore) -> None:
    await store.commit(put(b"1"))
    found = await store.get(KEY)
    assert found is not None
    txn = put(b"2", Compare(KEY, mod_revision=found.mod_revision))
    etcd.freeze()
    with pytest.raises(AmbiguousTxn):
        await store.commit(txn)
    with pytest.raises(StoreUnavailable):
        await store.get(KEY)
    etcd.thaw()
    again = await store.commit(txn)
    kv = await store.get(KEY)
    assert kv is not None
    assert kv.value == b"2"
    if not again.succeeded:  # the first one was applied, and the ELSE branch shows it
        assert again.reads[KEY] == kv


async def test_a_killed_etcd_keeps_what_it_acknowledged(etcd: EtcdProcess, store: EtcdStore) -> None:
    acknowledged, ambiguous = 0, 0

    async def write() -> None:
        nonlocal acknowledged, ambiguous
        for number in range(1, 5000):
            try:
                await store.commit(put(str(number).encode()))
                acknowledged = number
            except AmbiguousTxn:
                ambiguous = number
                return
            except StoreUnavailable:
                return

    writing = asyncio.create_task(write())
    await asyncio.sleep(0.5)
    await asyncio.to_thread(etcd.kill)
    await writing
    assert acknowledged > 10
    await asyncio.to_thread(etcd.start)
    kv = await store.get(KEY)
    assert kv is not None
    assert int(kv.value) in {acknowledged, ambiguous}


async def test_a_full_etcd_says_what_to_do(tmp_path: Path) -> None:
    etcd = EtcdProcess(tmp_path, "--quota-backend-bytes=1")
    etcd.start()
    store = EtcdStore(etcd.settings)
    try:
        with pytest.raises(StoreUnavailable, match=r"space exceeded.*defragment"):
            await asyncio.gather(*(store.commit(put(b"x" * 100_000)) for _ in range(3)))
        assert await store.get("/oncesign/test/nothing") is None, "reading goes on"
    finally:
        await store.close()
        etcd.kill()


async def test_something_else_than_etcd_is_not_believed() -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = EtcdStore(EtcdSettings(endpoints=f"http://127.0.0.1:{port}"))
    with pytest.raises(AmbiguousTxn, match="502"):
        await store.commit(put(b"1"))
    with pytest.raises(StoreUnavailable, match="502"):
        await store.get(KEY)
    await store.close()
    server.close()


# ── users ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def with_users(etcd: EtcdProcess) -> None:
    """root, and `signer` who may use /oncesign/ only."""
    settings = etcd.settings
    grant = {"permType": "READWRITE", "key": "L29uY2VzaWduLw==", "range_end": "L29uY2VzaWduMA=="}  # /oncesign/
    await ask(settings, "auth/user/add", {"name": "root", "password": "root"})
    await ask(settings, "auth/user/grant", {"user": "root", "role": "root"})
    await ask(settings, "auth/role/add", {"name": "signer"})
    await ask(settings, "auth/role/grant", {"name": "signer", "perm": grant})
    await ask(settings, "auth/user/add", {"name": "signer", "password": "secret"})
    await ask(settings, "auth/user/grant", {"user": "signer", "role": "signer"})
    await ask(settings, "auth/enable", {})


async def test_a_user_signs_in_again_when_the_token_is_gone(etcd: EtcdProcess, tmp_path: Path) -> None:
    await with_users(etcd)
    password = tmp_path / "password"
    password.write_text("secret\n")
    user = etcd.settings.model_copy(update={"username": "signer", "password_file": password})
    store = EtcdStore(user)
    assert (await store.commit(put(b"1"))).succeeded
    await asyncio.to_thread(etcd.kill)
    await asyncio.to_thread(etcd.start)  # simple tokens are in memory only
    assert (await store.commit(put(b"2"))).succeeded
    root = (await ask(etcd.settings, "auth/authenticate", {"name": "root", "password": "root"}))["token"]
    await ask(etcd.settings, "auth/role/add", {"name": "another"}, root)  # the token's revision is old now
    assert (await store.commit(put(b"3"))).succeeded
    with pytest.raises(StoreUnavailable, match="permission denied"):
        await store.commit(Txn((), ((("/elsewhere"), b"1"),)))
    await store.close()


async def test_a_wrong_user_is_told_so_and_no_password_is_printed(etcd: EtcdProcess, tmp_path: Path) -> None:
    await with_users(etcd)
    password = tmp_path / "password"
    password.write_text("wrong-guess")
    wrong = EtcdStore(etcd.settings.model_copy(update={"username": "signer", "password_file": password}))
    nobody = EtcdStore(etcd.settings)
    with pytest.raises(StoreUnavailable, match="invalid user ID or password") as caught:
        await wrong.commit(put(b"1"))
    assert "wrong-guess" not in str(caught.value)
    with pytest.raises(StoreUnavailable, match="user name is empty"):
        await nobody.commit(put(b"1"))
    await wrong.close()
    await nobody.close()


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")
async def test_tls_with_a_client_certificate(tmp_path: Path) -> None:
    made = certificates(tmp_path)
    flags = (
        f"--cert-file={made / 'server.pem'}", f"--key-file={made / 'server.key'}",
        f"--trusted-ca-file={made / 'ca.pem'}", "--client-cert-auth",
    )  # fmt: skip
    etcd = EtcdProcess(tmp_path / "data", *flags, tls=True)
    etcd.start()
    files = {"ca_file": made / "ca.pem", "cert_file": made / "client.pem", "key_file": made / "client.key"}
    trusted = EtcdStore(etcd.settings.model_copy(update=files))
    stranger = EtcdStore(etcd.settings.model_copy(update={"ca_file": made / "ca.pem"}))
    doubter = EtcdStore(etcd.settings)
    try:
        assert (await trusted.commit(put(b"1"))).succeeded
        for other in (stranger, doubter):
            with pytest.raises((StoreUnavailable, AmbiguousTxn)):
                await other.commit(put(b"2"))
        kv = await trusted.get(KEY)
        assert kv is not None
        assert kv.value == b"1"
    finally:
        for store in (trusted, stranger, doubter):
            await store.close()
        etcd.kill()


def certificates(folder: Path) -> Path:
    """A CA, and a server and a client that it signed."""

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True, env=os.environ)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    ca_extension = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl(*new, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test CA", *ca_extension)
    for name, usage in (("server", "serverAuth,clientAuth"), ("client", "clientAuth")):
        leaf: tuple[str, ...] = ("-addext", f"extendedKeyUsage={usage}", "-addext", "subjectAltName=IP:127.0.0.1")
        leaf += ("-addext", "basicConstraints=critical,CA:FALSE", "-addext", "authorityKeyIdentifier=keyid")
        signed_by = ("-x509", "-CA", "ca.pem", "-CAkey", "ca.key")
        openssl(*new, *signed_by, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", *leaf)
    return folder


# ── the key manager on it ────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_key_manager_rides_through_a_restart_of_etcd(etcd: EtcdProcess) -> None:
    store, ledger = EtcdStore(etcd.settings), TwinLedger()
    manager = KeyManager(store, ledger, SystemClock(), Settings(deployment="test", etcd=etcd.settings))
    await manager.start()
    await manager.import_keys([(CHAIN, address(i), b"sealed", 0) for i in range(1, 5)])
    for stream in (A, B):
        await manager.open_stream(StreamRecord(stream, CHAIN, SYSTEM))
    [first] = await manager.assign([request(A, 1)], 5.0)
    await asyncio.to_thread(etcd.kill)
    calls = [asyncio.create_task(_patiently(manager, request(stream, seq))) for stream, seq in ((A, 2), (B, 1))]
    await asyncio.sleep(0.3)
    await asyncio.to_thread(etcd.start)
    made = [first, *await asyncio.gather(*calls)]
    assert all(isinstance(reply, Assigned) for reply in made)
    assert len({reply.assignment.address for reply in made if isinstance(reply, Assigned)}) == 3
    await manager.release([(A, 1), (A, 2), (B, 1)], "w")
    assert await manager.list_assignments() == []
    await manager.stop()
    await store.close()


async def _patiently(manager: KeyManager, wanted: Any) -> Any:
    for _ in range(20):
        try:
            [reply] = await manager.assign([wanted], 5.0)
        except StoreUnavailable:
            await asyncio.sleep(0.1)
        else:
            return reply
    raise AssertionError(wanted)

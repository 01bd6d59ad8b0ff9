"""A signer outside: it signs over HTTP, dies holding a key, and the next worker inherits key, nonces and bytes."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from pipeline.adapters.etcd import EtcdStore
from pipeline.adapters.ledger import PostgresLedger
from pipeline.assignment.manager import KeyManager
from pipeline.assignment.records import StreamRecord
from pipeline.clock import SystemClock
from pipeline.custody.sealing import Kek
from pipeline.ethereum.batch import Batch, BatchHeader
from pipeline.ethereum.signed import SignedRecord
from pipeline.service.server import Server
from pipeline.settings import EtcdSettings, PostgresSettings, ServiceSettings, Settings
from pipeline.stream import START, Cursor, Stream
from tests.ethereum_rows import record_batch, row
from tests.unit.service_world import TOKEN

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
STREAM = Stream("payouts", 0)
SYSTEM = "7400000000000000001"
CHAIN = 1
ROWS = 5
CLIENT_S = 120.0


@pytest.fixture
def settings(
    etcd_server: EtcdSettings, postgres: PostgresSettings, deployment: str, tmp_path: Path, service: ServiceSettings
) -> Settings:
    Kek.create(tmp_path / "kek")
    return Settings(deployment=deployment, data_dir=tmp_path, etcd=etcd_server, postgres=postgres, service=service)


@dataclass
class Desk:
    """The service, and clients of it as processes."""

    settings: Settings
    url: str

    async def ask(self, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        content = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, content, headers)  # noqa: S310 - our own address

        def answer() -> Any:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - as above
                return json.load(response)

        return await asyncio.to_thread(answer)

    async def client(self, worker: str, *seqs: int, hold: bool = False) -> Process:
        folder = self.settings.data_dir
        job = {
            "url": self.url,
            "token_file": str(folder / "token"),
            "kek_file": str(folder / "kek"),
            "dsn": self.settings.postgres.dsn.get_secret_value(),
            "password_file": str(self.settings.postgres.password_file),
            "worker": worker,
            "batches": [str(self.write(seq)) for seq in seqs],
            "out": str(folder),
            "hold": hold,
        }
        argv = [sys.executable, "-m", "tests.integration.external_client", json.dumps(job)]
        return await asyncio.create_subprocess_exec(*argv, cwd=ROOT, stdout=PIPE, stderr=PIPE)

    async def signed(self, worker: str, *seqs: int) -> None:
        client = await self.client(worker, *seqs)
        _, said = await asyncio.wait_for(client.communicate(), CLIENT_S)
        assert client.returncode == 0, said.decode()

    def write(self, seq: int) -> Path:
        """The batch of this number, as on tx.batches."""
        prev, cursor = (Cursor(100, n * ROWS) if n else START for n in (seq - 1, seq))
        rows = record_batch([row(tx_id=seq * ROWS + n) for n in range(ROWS)])
        file = self.settings.data_dir / f"batch-{seq}"
        file.write_bytes(Batch.build(BatchHeader(STREAM, seq, prev, cursor, CHAIN, SYSTEM), rows).encode())
        return file

    def record(self, worker: str, seq: int) -> SignedRecord:
        """What this client published of a batch."""
        return SignedRecord.decode((self.settings.data_dir / f"{worker}-batch-{seq}").read_bytes())


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Desk]:
    store, ledger = EtcdStore(settings.etcd), PostgresLedger(settings.postgres)
    manager = KeyManager(store, ledger, SystemClock(), settings)

    async def leading() -> KeyManager:
        return manager

    server = Server(leading, settings)
    await manager.start()
    await server.start()
    try:
        await manager.open_stream(StreamRecord(STREAM, CHAIN, SYSTEM))
        yield Desk(settings, server.address)
    finally:
        await manager.stop()
        await server.stop()
        await store.close()
        await ledger.close()


async def test_a_client_dies_holding_a_key_and_the_next_inherits_it(settings: Settings) -> None:
    async with serving(settings) as desk:
        [address] = (await desk.ask("/v1/keys/create", {"chain_id": CHAIN}))["addresses"]
        await desk.signed("desk-1", 1, 2)
        for seq in (1, 2):
            rows = desk.record("desk-1", seq).rows
            assert rows.column("nonce").to_pylist() == list(range((seq - 1) * ROWS, seq * ROWS))
            for raw in rows.column("raw").to_pylist():
                assert Account.recover_transaction(raw).lower() == address
        before_ms = time.time_ns() // 1_000_000
        dying = await desk.client("desk-2", 3, hold=True)
        assert dying.stdout is not None
        assert await asyncio.wait_for(dying.stdout.readline(), CLIENT_S) == b"holding\n"
        dying.kill()
        await dying.communicate()
        [key] = (await desk.ask("/v1/keys"))["keys"]
        assert (key["address"], key["state"]) == (address, "locked")
        assert before_ms <= key["since_unix_ms"] <= time.time_ns() // 1_000_000
        holder = {name: key["holder"][name] for name in ("stream", "seq", "worker", "node")}
        assert holder == {"stream": str(STREAM), "seq": 3, "worker": "desk-2", "node": "outside"}
        await desk.signed("desk-3", 3)
        assert desk.record("desk-3", 3).rows.equals(desk.record("desk-2", 3).rows)
        [key] = (await desk.ask("/v1/keys"))["keys"]
        assert (key["state"], key["next_nonce"], key["holder"]) == ("free", 3 * ROWS, None)
        ledger = PostgresLedger(settings.postgres)
        entry = await ledger.entry(STREAM, 3)
        await ledger.close()
        assert entry is not None
        assert (entry.worker, entry.first_nonce, entry.count) == ("desk-2", 2 * ROWS, ROWS)

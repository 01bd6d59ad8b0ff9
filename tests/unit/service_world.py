"""The service on a port of its own, over the real key manager on twins of etcd and the ledger."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from pipeline.assignment.manager import KeyManager
from pipeline.assignment.records import Assignment, StreamRecord
from pipeline.clock import SystemClock
from pipeline.custody.generation import address_of, new_secret
from pipeline.custody.sealing import Kek
from pipeline.errors import OncesignError
from pipeline.ports import AssignRequest, LedgerEntry
from pipeline.service.application import Service
from pipeline.service.token import Token
from pipeline.settings import ServiceSettings, Settings, SourceSettings
from pipeline.testing.ledger import TwinLedger
from pipeline.testing.store import TwinEtcd, TwinStore
from tests.unit.assignment_records import CHAIN, PATHS, SYSTEM, A, B, request

TOKEN = "correct-horse-battery-staple"
WORKER = "desk-7"
BODY_MAX = 64 * 1024


@dataclass
class Office:
    """A key manager, and a client that has the token."""

    manager: KeyManager
    etcd: TwinEtcd
    ledger: TwinLedger
    kek: Kek
    settings: Settings
    client: TestClient[Any, Any] = field(init=False)
    refusal: OncesignError | None = None  #: raised instead of leading
    fence_lost: list[bool] = field(default_factory=list)

    async def leading(self) -> KeyManager:
        if self.refusal is not None:
            raise self.refusal
        return self.manager

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and parsed body; header names with _ for -."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        given = {"Authorization": f"Bearer {TOKEN}"} | named
        async with self.client.request(method, path, json=body, headers=given) as response:
            return response.status, await response.json(content_type=None)

    async def post(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        return await self.ask("POST", path, body, **headers)

    async def get(self, path: str) -> Any:
        status, found = await self.ask("GET", path)
        assert status == 200, found
        return found

    async def add_keys(self, count: int) -> None:
        secrets = [new_secret() for _ in range(count)]
        addresses = [address_of(secret) for secret in secrets]
        await self.manager.import_keys(
            [(CHAIN, a, self.kek.seal(secret, a), 0) for a, secret in zip(addresses, secrets, strict=True)]
        )

    async def swear(self, assignment: Assignment) -> None:
        """What a signer writes before it signs."""
        a = assignment
        await self.ledger.record(
            LedgerEntry(a.stream, a.seq, a.digest, a.chain_id, a.address, a.first_nonce, a.count, a.fence, WORKER)
        )

    async def swear_all(self) -> None:
        for assignment in await self.manager.list_assignments():
            await self.swear(assignment)


@contextlib.asynccontextmanager
async def opened(folder: Path, keys: int = 2) -> AsyncIterator[Office]:
    """It leads, with keys and the streams A and B."""
    clock, ledger = SystemClock(), TwinLedger()
    etcd = TwinEtcd(clock)
    token_file = folder / "token"
    token_file.write_text(TOKEN + "\n")
    settings = Settings(
        deployment=PATHS.deployment,
        node="node-0",
        kek_file=folder / "kek",
        sources=[SourceSettings(chain_id=CHAIN, shards=2)],
        service=ServiceSettings(port=8080, token_file=token_file, body_max_bytes=BODY_MAX),
    )
    lost: list[bool] = []
    manager = KeyManager(TwinStore(etcd), ledger, clock, settings, lambda: lost.append(True))
    office = Office(manager, etcd, ledger, Kek.create(folder / "kek"), settings, fence_lost=lost)
    await manager.start()
    service = Service(office.leading, Token(token_file, clock), clock, settings)
    server = TestServer(service.application())
    async with TestClient(server) as office.client:
        await office.add_keys(keys)
        for stream in (A, B):
            await manager.open_stream(StreamRecord(stream, CHAIN, SYSTEM))
        yield office
    await manager.stop()


def batch(made: AssignRequest, **fields: Any) -> dict[str, Any]:
    """A batch as a client names it."""
    return {
        "stream": str(made.stream),
        "seq": made.seq,
        "prev": str(made.prev),
        "cursor": str(made.cursor),
        "digest": made.digest,
        "chain_id": made.chain_id,
        "system_id": made.system_id,
        "rows": made.rows,
        "count": made.count,
        "rules_version": made.rules_version,
        "batch_offset": made.batch_offset,
        "signed_from": list(made.signed_from),
    } | fields


def asking(*batches: dict[str, Any], worker: str = WORKER, deadline_s: float = 0.0) -> dict[str, Any]:
    """The body of an assign."""
    return {"batches": list(batches), "worker": worker, "node": "outside", "deadline_s": deadline_s}


def first(deadline_s: float = 0.0, **fields: Any) -> dict[str, Any]:
    """An assign of the first batch of A."""
    return asking(batch(request(A, 1), **fields), deadline_s=deadline_s)


async def until_queued(office: Office, length: int) -> None:
    """Somebody waits for a key."""
    async with asyncio.timeout(5):
        while office.manager.status()["queue"] != length:
            await asyncio.sleep(0.01)

"""A signer that knows nothing of Ray: it asks the key manager over HTTP, and signs with the public parts.

`python -m tests.integration.external_client JOB` with a JSON job: url, token_file, kek_file, dsn, password_file,
worker, batches (files with batches as on tx.batches), out (folder for signed records), hold (true = wait before the
release).
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import SecretStr

from pipeline.adapters.ledger import PostgresLedger
from pipeline.assignment.records import Assignment
from pipeline.clock import SystemClock
from pipeline.custody.sealing import Kek
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.rules import RULES_VERSION
from pipeline.ethereum.validity import judge
from pipeline.ports import Assigned
from pipeline.settings import PostgresSettings, SigningSettings
from pipeline.stages.signer import NativeKernel, Signer

DEADLINE_S = 20.0
HOLD_S = 120.0


class Client:
    """The routes that a signer needs."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._url = job["url"]
        self._worker = job["worker"]
        self._token = Path(job["token_file"]).read_text().strip()

    def assign(self, batch: Batch) -> Assigned:
        header = batch.header
        wanted = {
            "stream": str(header.stream),
            "seq": header.seq,
            "prev": str(header.prev),
            "cursor": str(header.cursor),
            "digest": batch.digest,
            "chain_id": header.chain_id,
            "system_id": header.system_id,
            "rows": batch.rows.num_rows,
            "count": int(np.count_nonzero(judge(batch) == 0)),
            "rules_version": RULES_VERSION,
            "batch_offset": header.seq - 1,
            "signed_from": [0],
        }
        body = {"batches": [wanted], "worker": self._worker, "node": "outside", "deadline_s": DEADLINE_S}
        [reply] = self._post("/v1/assign", body)["replies"]
        assert reply["status"] == "assigned", reply
        return Assigned(Assignment.from_fields(reply["assignment"]), base64.b64decode(reply["sealed"]))

    def release(self, assignment: Assignment) -> None:
        batch = {"stream": str(assignment.stream), "seq": assignment.seq}
        self._post("/v1/release", {"batches": [batch], "worker": self._worker})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/json",
            "Idempotency-Key": f'"{uuid.uuid4()}"',
        }
        request = urllib.request.Request(self._url + path, json.dumps(body).encode(), headers)  # noqa: S310 - ours
        with urllib.request.urlopen(request, timeout=DEADLINE_S + 10) as response:  # noqa: S310 - as above
            return json.load(response)


async def work(job: dict[str, Any]) -> None:
    """Assign, ledger row and signature, publication (a file), release: one batch after the other."""
    client, ledger = Client(job), PostgresLedger(_postgres(job))
    await ledger.enlist()
    kek = Kek.load(Path(job["kek_file"]))
    signer = Signer(job["worker"], ledger, kek, NativeKernel(), SystemClock(), SigningSettings(check_all=True))
    for file in map(Path, job["batches"]):
        value = file.read_bytes()
        assigned = client.assign(Batch.decode(value))
        signed = await signer.sign(value, assigned)
        (Path(job["out"]) / f"{job['worker']}-{file.name}").write_bytes(signed.record)
        if job["hold"]:
            sys.stdout.write("holding\n")
            sys.stdout.flush()
            time.sleep(HOLD_S)  # noqa: ASYNC251 - until it is killed
        client.release(assigned.assignment)
    assert "ray" not in sys.modules
    await ledger.close()


def _postgres(job: dict[str, Any]) -> PostgresSettings:
    return PostgresSettings(dsn=SecretStr(job["dsn"]), password_file=Path(job["password_file"]))


if __name__ == "__main__":
    asyncio.run(work(json.loads(sys.argv[1])))

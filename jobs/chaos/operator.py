"""Faults after which somebody has to repair something, and the repair as docs/operations.md says it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Final

import psutil
from confluent_kafka.admin import AdminClient

from actors import cluster
from jobs.chaos import members
from jobs.chaos.ground import Ground
from jobs.chaos.signing import Signing, oncesign
from jobs.output import say
from pipeline.adapters.kafka import Topics, client_config
from pipeline.adapters.ledger import PostgresLedger
from pipeline.errors import RuntimeFault
from pipeline.testing.chaos.fault import BACKUP, HEAD, TOPIC, Fault

HALTED: Final = 5
BATCHES_SINCE_BACKUP: Final = 8
BATCHES_TIMEOUT_S: Final = 60.0
LEFT_ALONE_S_MAX: Final = 15.0
"""How long a pipeline goes on beside an etcd that was restored, or a topic that is gone, before it is stopped."""

LEASE_S: Final = 20.0
LOOK_S: Final = 0.3
ADMIN_TIMEOUT_S: Final = 30.0


class Operator:
    """Breaks what has to be repaired by hand, and repairs it. `findings` are promises that were not kept."""

    def __init__(self, ground: Ground, signing: Signing, over: threading.Event) -> None:
        self._ground = ground
        self._signing = signing
        self._over = over
        self.findings: list[str] = []

    def carry_out(self, fault: Fault) -> None:
        """From its beginning to the moment when the pipeline was started again. Raises OncesignError."""
        deeds = {HEAD: self._head, TOPIC: self._topic, BACKUP: self._backup}
        deeds[fault.kind](fault)

    def _head(self, fault: Fault) -> None:
        """The head's first process alone, or all that it started; `oncesign sign` starts another one."""
        head = cluster.running(self._ground.data_dir)
        process = head.head.process() if head is not None else None
        if process is None:
            raise RuntimeFault("no Ray head runs.")
        victims = [process, *(process.children(recursive=True) if fault.pick % 2 else [])]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        psutil.wait_procs(victims, timeout=ADMIN_TIMEOUT_S)

    # ── a deleted topic ──────────────────────────────────────────────────────────────────────────────────────────────

    def _topic(self, fault: Fault) -> None:
        source = self._ground.source
        topic = Topics(self._ground.settings.kafka.topic_prefix).batches(source.name)
        admin = AdminClient(client_config(self._ground.direct.kafka))
        admin.delete_topics([topic], operation_timeout=ADMIN_TIMEOUT_S)[topic].result(ADMIN_TIMEOUT_S)
        self._over.wait(min(fault.hold_s, LEFT_ALONE_S_MAX))
        self._signing.stop()
        self._must_halt("the topic of batches was deleted")
        for shard in range(source.shards):
            self._must_work("recover", "--stream", f"{source.name}/{shard}", "--from-start")
        self._signing.start()

    # ── a restored etcd ──────────────────────────────────────────────────────────────────────────────────────────────

    def _backup(self, fault: Fault) -> None:
        stopped = fault.pick % 2 == 0
        members.back_up(self._ground)
        self._await_batches()
        if stopped:
            self._signing.stop()
        members.restore(self._ground)
        if not stopped:
            self._over.wait(min(fault.hold_s, LEFT_ALONE_S_MAX))
            self._signing.stop()
        self._must_halt("etcd was restored from a backup")
        self._must_work("recover", "--dry-run")
        self._must_work("recover", within_s=LEASE_S)
        self._signing.start()

    def _await_batches(self) -> None:
        """Until the ledger has more than the backup knows. Raises RuntimeFault."""
        before = self._sworn()
        deadline_s = time.monotonic() + BATCHES_TIMEOUT_S
        while self._sworn() < before + BATCHES_SINCE_BACKUP:
            if time.monotonic() > deadline_s:
                raise RuntimeFault(f"nothing was signed in {BATCHES_TIMEOUT_S:.0f} s after a backup was taken.")
            time.sleep(LOOK_S)

    def _sworn(self) -> int:
        async def read() -> int:
            ledger = PostgresLedger(self._ground.direct.postgres)
            try:
                return sum((await ledger.heads()).values())
            finally:
                await ledger.close()

        return asyncio.run(read())

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _must_halt(self, cause: str) -> None:
        done = oncesign("sign", "--until-drained")
        if done.returncode != HALTED:
            self.findings.append(f"I9: {cause}, and `oncesign sign` ended with {done.returncode}: {done.stderr[-300:]}")
        say(f"  sign after {cause}: {done.returncode} {_last(done.stderr)}")

    def _must_work(self, *arguments: str, within_s: float = 0.0) -> None:
        """`within_s`: a backup has the leader of its time in it, until that one's lease has run out."""
        deadline_s = time.monotonic() + within_s
        done = oncesign(*arguments)
        while done.returncode == HALTED and time.monotonic() < deadline_s:
            time.sleep(LOOK_S)
            done = oncesign(*arguments)
        if done.returncode != 0:
            said = f"`oncesign {' '.join(arguments)}` ended with {done.returncode}"
            self.findings.append(f"I9: {said}: {done.stderr[-300:]}")
        say(f"  {' '.join(arguments)}: {done.returncode} {_last(done.stderr)}")


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]

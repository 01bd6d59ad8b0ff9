"""The driver of a signing job: `python -m jobs.sign` on a Ray cluster.

It holds the supervisor, prints one JSON line of progress a second, drains on SIGTERM, and ends with one JSON line of
summary. Nothing that matters lives here: when the driver is killed, its actors die with it, and the next job goes on
from Kafka, etcd and Postgres. On a cluster with node groups the actors go on, and the next job follows them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

import orjson
import ray

from actors import crew, names, takeover
from actors.clients import ask
from actors.composition import tables
from actors.host import StageState, StageStatus
from actors.names import START_TIMEOUT_S, namespace
from actors.stamp import stamp
from actors.supervisor import NAME as SUPERVISOR
from actors.supervisor import PipelineStatus, SupervisorActor
from pipeline.adapters.ledger import PostgresLedger
from pipeline.adapters.outcomes import PostgresOutcomes
from pipeline.errors import DependencyDown, Halted, NotLeader, OncesignError, RuntimeFault, ViolationFound
from pipeline.settings import Settings

PROGRESS_EVERY_S: Final = 1.0
LOOK_S: Final = 1.0
COUNT_EVERY_S: Final = 10.0
STATUS_TIMEOUT_S: Final = 60.0
DRAIN_TIMEOUT_S: Final = 60.0
SUPERVISORS_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller wants of the run."""

    until_drained: bool
    verify: bool
    expect: int = 0  #: rows that must have been signed or rejected before it counts as drained


class Driver:
    """One run of the pipeline."""

    def __init__(self, settings: Settings, wish: Wish, job: str) -> None:
        """`job` is its id in Ray."""
        self._settings = settings
        self._wish = wish
        self._stop = asyncio.Event()
        self._crew: crew.Crew | None = None
        self._supervisor: Any = None
        self._job = job
        self._supervisors = 0
        self._started_s = time.monotonic()
        self._ready_s: float | None = None
        self._first_s: float | None = None
        self._last_s: float | None = None
        self._signed_before = 0
        self._signed = 0
        self._total = 0
        self._counted_s = -COUNT_EVERY_S
        self._uncounted = False
        self._rejected = 0
        self._rejected_before = 0
        self._drained_ms = 0
        self._last_unix_s = 0.0

    async def run(self) -> dict[str, Any]:
        """Until drained or stopped; the summary. Raises what ended the pipeline."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        ledger = PostgresLedger(self._settings.postgres)
        self._signed_before = self._signed = await ledger.signed()
        try:
            await self._create()
            status = await self._follow(ledger)
        finally:
            await self._drain()
            await ledger.close()
        return await self._summary(status)

    # ── the supervisor ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _create(self) -> None:
        self._supervisors += 1
        if self._supervisors > SUPERVISORS_MAX:
            raise RuntimeFault(f"the supervisor ended {SUPERVISORS_MAX} times.", hint="Its logs are in the dashboard.")
        if self._settings.pool.placed:
            self._supervisor = await takeover.supervisor(self._settings, self._job, verify=self._wish.verify)
        else:
            self._crew = self._crew or await crew.create(self._settings, verify=self._wish.verify)
            self._supervisor = SupervisorActor.options(  # type: ignore[attr-defined] # ray's decorator hides the class
                num_cpus=takeover.CPUS, max_concurrency=takeover.CONCURRENCY
            ).remote(self._settings, self._crew, stamp(self._settings))
        await ask(self._supervisor.start.remote(), START_TIMEOUT_S, "the supervisor")

    async def _status(self, *, look: bool) -> PipelineStatus:
        """Whether it is drained, too, if `look`. A dead supervisor is replaced; the crew stays at work meanwhile."""
        try:
            await ask(self._supervisor.follow.remote(self._job), STATUS_TIMEOUT_S, "the supervisor")
            status: PipelineStatus = await ask(
                self._supervisor.status.remote(look=look), STATUS_TIMEOUT_S, "the supervisor"
            )
        except RuntimeFault as error:
            _say(f"{error} A new one is started.")
            await self._create()
            return PipelineStatus()
        except NotLeader:
            self._supervisor = None  # another job's by now, and not ours to drain
            raise
        if status.error is not None:
            raise status.error
        return status

    async def _drain(self) -> None:
        if self._supervisor is None:
            return
        try:
            await ask(self._supervisor.drain.remote(), DRAIN_TIMEOUT_S, "the supervisor")
        except OncesignError as error:
            _say(f"the pipeline did not drain: {error}")
            return  # where it outlives its job, it goes on, and the next job follows it
        if self._settings.pool.placed:
            names.end(SUPERVISOR, self._settings.deployment)

    # ── following it ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _follow(self, ledger: PostgresLedger) -> PipelineStatus:
        said_s = 0.0
        while True:
            status = await self._status(look=self._wish.until_drained)
            await self._count(ledger, status)
            now_s = time.monotonic()
            ended = self._wish.until_drained and self._ended(status)
            if ended or self._stop.is_set() or now_s - said_s >= PROGRESS_EVERY_S:
                _print({"progress": self._progress(status)})
                said_s = now_s
            if ended:
                return status
            if self._stop.is_set():
                return await self._stopped(status)
            await asyncio.wait([asyncio.create_task(self._stop.wait())], timeout=LOOK_S)

    async def _stopped(self, status: PipelineStatus) -> PipelineStatus:
        """With what a second look says of the rest: nothing is drained that is seen but once."""
        for _ in range(0 if self._wish.until_drained else 2):
            status = await self._status(look=True)
        return status

    def _ended(self, status: PipelineStatus) -> bool:
        """Drained, and looked at by the verifier since."""
        if not status.drained or self._signed - self._signed_before + self._rejected < self._wish.expect:
            self._drained_ms = 0
            return False
        self._drained_ms = self._drained_ms or time.time_ns() // 1_000_000
        verifier = status.members.get("tx-verifier")
        if not self._wish.verify:
            return True
        return verifier is not None and int(verifier.counts.get("caught_up_ms", 0)) > self._drained_ms

    async def _count(self, ledger: PostgresLedger, status: PipelineStatus) -> None:
        """For the progress report; a Postgres that is away for a while ends no pipeline whose actors wait for it."""
        try:
            await self._count_rows(ledger, status)
            self._uncounted = False
        except DependencyDown as error:
            if not self._uncounted:
                _say(f"rows cannot be counted now: {error}")
            self._uncounted = True

    async def _count_rows(self, ledger: PostgresLedger, status: PipelineStatus) -> None:
        now_s = time.monotonic()
        if self._ready_s is None and status.members:
            self._ready_s = now_s
            self._rejected_before = _sum(status, "consumer", "rejected")  # of a pipeline that ran before
        signed = await ledger.signed()
        if signed != self._signed:
            self._first_s = self._first_s or now_s
            self._last_s = now_s
            self._last_unix_s = time.time()
        self._signed = signed
        self._rejected = max(self._rejected, _sum(status, "consumer", "rejected") - self._rejected_before)
        if now_s - self._counted_s >= COUNT_EVERY_S:
            self._total = await tables.total(self._settings)
            self._counted_s = now_s

    def _progress(self, status: PipelineStatus) -> dict[str, Any]:
        manager = status.members.get("key-manager")
        seconds = time.monotonic() - (self._ready_s or time.monotonic())
        signed = self._signed - self._signed_before
        return {
            "stages": {
                "read": _sum(status, "reader", "rows"),
                "signed": _sum(status, "signer", "signed"),
                "published": _sum(status, "consumer", "signed") + _sum(status, "consumer", "rejected"),
                "verified": _sum(status, "tx-verifier", "verified") + _sum(status, "tx-verifier", "rejected"),
            },
            "rounds": _sum(status, "consumer", "rounds"),
            "rounds_aborted": _sum(status, "consumer", "rounds_aborted"),
            "queue": _sum(status, "key-manager", "queue"),
            "queue_oldest_s": manager.counts.get("queue_oldest_s", 0.0) if manager else 0.0,
            "signed": signed,
            "rejected": self._rejected,
            "verified": _sum(status, "tx-verifier", "verified"),
            "violations": _sum(status, "tx-verifier", "violations"),
            "total": self._total,
            "done_before": self._signed_before,
            "tx_per_s": round(signed / seconds) if seconds else 0,
            "batches_in_flight": _sum(status, "consumer", "in_flight"),
            "waiting_for_key": _sum(status, "consumer", "waiting_for_key"),
            "keys": manager.counts.get("keys", {}) if manager else {},
            "over_budget": manager.counts.get("over_budget", []) if manager else [],
            "no_keys": manager.counts.get("no_keys", []) if manager else [],
            "no_blob_keys": manager.counts.get("no_blob_keys", []) if manager else [],
            "halted": status.halted,
            "restarts": status.restarts,
            "ready": bool(status.members) and all(_runs(member) for member in status.members.values()),
            "pids": {name: member.pid for name, member in status.members.items() if member is not None}
            | {"driver": os.getpid(), "supervisor": status.pid},
        }

    async def _summary(self, status: PipelineStatus) -> dict[str, Any]:
        end_s = self._last_s or time.monotonic()
        seconds = end_s - (self._ready_s or end_s)
        signed = self._signed - self._signed_before
        summary: dict[str, Any] = {
            "signed": signed,
            "rejected": self._rejected,
            "seconds": round(seconds, 2),
            "tx_per_s": round((signed + self._rejected) / seconds) if seconds else 0,
            "start_up_seconds": round((self._ready_s or end_s) - self._started_s, 2),
            "last_signed_s": self._last_unix_s,
            "drained": status.drained,
            "halted": status.halted,
        }
        if self._wish.verify:
            outcomes = PostgresOutcomes(self._settings.postgres)
            summary["outcomes"] = dict(await outcomes.counts())
            await outcomes.close()
        return summary


def _runs(member: StageStatus | None) -> bool:
    return member is not None and member.state is StageState.RUNNING


def _sum(status: PipelineStatus, prefix: str, count: str) -> int:
    members = [member for name, member in status.members.items() if name.startswith(prefix) and member is not None]
    return sum(int(member.counts.get(count, 0)) for member in members)


def _print(line: dict[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(line).decode() + "\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def run(settings: Settings, wish: Wish) -> int:
    """Carry the run; print the summary line; the exit code."""
    ray.init(
        address=os.environ.get("RAY_ADDRESS", "auto"),
        namespace=namespace(settings.deployment),
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    try:
        summary = asyncio.run(Driver(settings, wish, ray.get_runtime_context().get_job_id()).run())
        error = _verdict(summary)
    except OncesignError as raised:
        summary, error = {}, raised
    summary["exit_code"] = error.exit_code if error else 0
    if error is not None:
        summary["error"] = str(error)
        _say(f"error: {error}")
    _print(summary)
    return int(summary["exit_code"])


def _verdict(summary: dict[str, Any]) -> OncesignError | None:
    if summary.get("outcomes", {}).get("violations"):
        return ViolationFound(
            f"the verifier found {summary['outcomes']['violations']} violation(s).", hint="Run: oncesign verify"
        )
    if summary["halted"]:
        stream, reason = next(iter(summary["halted"].items()))
        return Halted(f"stream {stream} is halted: {reason}.", hint="See docs/operations.md, 'A halted stream'.")
    return None

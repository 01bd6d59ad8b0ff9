"""Submitting the signing job to a Ray cluster, one of our own or another, and watching it until it ends."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import orjson
from ray.job_submission import JobStatus, JobSubmissionClient

from actors import cluster
from actors.cluster import Cluster
from actors.composition import signer_count
from pipeline.errors import NotLeader, OncesignError, RayUnavailable, RuntimeFault
from pipeline.settings import ENV_PREFIX, Settings
from pipeline.stages.loops import cancel

LOOK_S: Final = 0.5
SUBMISSIONS_MAX: Final = 6
"""A driver that was killed is submitted again this often, with growing pauses."""

ERROR: Final = "error: "
ADDRESS: Final = "It is the dashboard's, as in http://127.0.0.1:8265; a token is taken from RAY_AUTH_TOKEN_PATH."
PAUSE_FIRST_S: Final = 0.5
OTHER_ACTORS_CPUS: Final = 4
STOP_TIMEOUT_S: Final = 90.0
LOST: Final = (OSError, RuntimeError, aiohttp.ClientError)
"""What Ray's client raises when Ray does not answer."""

ENDED: Final = frozenset({JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED})


@dataclass(frozen=True, slots=True)
class Place:
    """Where jobs are submitted to, and what they are given."""

    dashboard: str
    token: str
    python: str  #: that has the code
    runtime_env: dict[str, Any]


@dataclass(slots=True)
class JobLog:
    """What has come of a job's log. Ray gives it in pieces, always from its beginning, and it grows without an end."""

    length: int = 0
    _rest: str = ""

    def lines(self, piece: str) -> list[str]:
        """Those that this piece completes."""
        self.length += len(piece)
        *lines, self._rest = (self._rest + piece).split("\n")
        return lines


@dataclass(slots=True)
class Watch:
    """What is known of a submitted job."""

    progress: Callable[[dict[str, Any]], None]
    summary: dict[str, Any] = field(default_factory=dict)
    log: JobLog = field(default_factory=JobLog)

    def take(self, piece: str) -> None:
        """What the driver said next: progress, the summary, and everything else for stderr."""
        for line in self.log.lines(piece):
            fields = json_of(line)
            if fields is None:
                if line.strip() and not line.startswith(ERROR):  # the summary has it too
                    sys.stderr.write(line + "\n")
            elif "progress" in fields:
                self.progress(fields["progress"])
            elif "exit_code" in fields:
                self.summary = fields


def json_of(line: str) -> dict[str, Any] | None:
    """The object that a line is, if it is one."""
    if not line.startswith("{"):
        return None
    try:
        fields: dict[str, Any] = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return fields


def sign(
    settings: Settings,
    *,
    until_drained: bool,
    verify: bool,
    progress: Callable[[dict[str, Any]], None],
    expect: int = 0,
    address: str = "",
) -> dict[str, Any]:
    """Run the job to its end and return its summary; Ctrl-C drains it.

    `expect` rows must have been signed or rejected before it counts as drained. `address` is the dashboard of a cluster
    that has the code and settings of its own; without it a head of the data directory is started.

    A driver or a Ray head that was killed is started again, and the pipeline goes on where it was.
    Raises RuntimeFault when that happens too often, NotLeader when a job of this deployment runs there already,
    RayUnavailable when the head was stopped.
    """
    pause_s = PAUSE_FIRST_S
    for submission in range(SUBMISSIONS_MAX):
        place = there(address) if address else here(settings, again=submission > 0)
        if submission == 0:
            _require_alone(client_of(place), settings.deployment)
        watch = Watch(progress)
        try:
            _run(place, _flags(until_drained=until_drained, verify=verify, expect=expect), settings, watch)
        except LOST as error:
            sys.stderr.write(f"Ray does not answer ({type(error).__name__})\n")
        if watch.summary:
            return watch.summary
        sys.stderr.write("the job ended without a summary; it goes on\n")
        time.sleep(pause_s)
        pause_s *= 2
    logs = "the cluster's dashboard" if address else f"{settings.data_dir}/logs"
    raise RuntimeFault(f"the job ended {SUBMISSIONS_MAX} times without a summary.", hint=f"See {logs}.")


def run(address: str, arguments: str, timeout_s: float) -> dict[str, Any]:
    """Run `python -m ARGUMENTS` on the cluster of that dashboard; its last line, JSON. Raises RuntimeFault."""
    place = there(address)
    client = client_of(place)
    job = client.submit_job(entrypoint=f"{place.python} -m {arguments}", runtime_env=place.runtime_env)
    _follow(client, job, Watch(lambda _: None), timeout_s)
    status = client.get_job_status(job)
    said = (client.get_job_logs(job).strip().splitlines() or [""])[-1]
    if status is not JobStatus.SUCCEEDED:
        raise RuntimeFault(f"`python -m {arguments}` is {status}: {said.removeprefix(ERROR)}", hint=f"See {address}.")
    return json_of(said) or {}


def _flags(*, until_drained: bool, verify: bool, expect: int) -> str:
    return " --until-drained" * until_drained + " --no-verify" * (not verify) + f" --expect={expect}" * bool(expect)


def here(settings: Settings, *, again: bool = False) -> Place:
    """The Ray of the data directory, started unless it runs; `again` after it was lost. Raises RayUnavailable."""
    head = cluster.start(settings.data_dir, signer_count(settings) + OTHER_ACTORS_CPUS, again=again)
    os.environ |= cluster.environment(head.token_file)
    environment = _job_environment(settings, head)
    return Place(head.dashboard, cluster.token(head), sys.executable, {"env_vars": environment})


def there(address: str) -> Place:
    """A cluster of somebody's, whose nodes have the code and the settings."""
    return Place(address, cluster.token_at_hand(), "python", {})


def client_of(place: Place) -> JobSubmissionClient:
    """Raises RayUnavailable."""
    headers = {"Authorization": f"Bearer {place.token}"} if place.token else None
    try:
        return JobSubmissionClient(place.dashboard, headers=headers)
    except LOST as error:
        raise RayUnavailable(first_line(error), address=place.dashboard, hint=ADDRESS) from error


def first_line(error: Exception) -> str:
    """Of what it says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _require_alone(client: JobSubmissionClient, deployment: str) -> None:
    """Raises NotLeader."""
    for job in client.list_jobs():
        if job.status not in ENDED and (job.metadata or {}).get("deployment") == deployment:
            raise NotLeader(
                f"deployment {deployment} is being signed already, by job {job.submission_id}.",
                hint="Press Ctrl-C where it was started, or stop all of it with `oncesign down`.",
            )


def _run(place: Place, flags: str, settings: Settings, watch: Watch) -> None:
    client = client_of(place)
    job = client.submit_job(
        entrypoint=f"{place.python} -m jobs.sign{flags}",
        runtime_env=place.runtime_env,
        metadata=_metadata(settings, flags),
    )
    try:
        _follow(client, job, watch, None)
    except KeyboardInterrupt:
        sys.stderr.write("draining: batches with a key are finished (Ctrl-C again to leave it to itself)\n")
        client.stop_job(job)
        _follow(client, job, watch, STOP_TIMEOUT_S)
        watch.summary = watch.summary or {"exit_code": 0, "stopped": True}


def _metadata(settings: Settings, flags: str) -> dict[str, str]:
    """What Ray's dashboard shows beside the job."""
    sources = ", ".join(source.name for source in settings.sources)
    return {"deployment": settings.deployment, "sources": sources, "flags": flags.strip() or "none"}


def _job_environment(settings: Settings, head: Cluster) -> dict[str, str]:
    """Our own settings, none of which holds a secret, for a head that was started with others."""
    ours = {name: value for name, value in os.environ.items() if name.startswith(ENV_PREFIX)}
    return ours | {
        ENV_PREFIX + "DATA_DIR": str(settings.data_dir.resolve()),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": head.token_file,
    }


def _follow(client: JobSubmissionClient, job: str, watch: Watch, timeout_s: float | None) -> None:
    try:
        asyncio.run(asyncio.wait_for(_until_ended(client, job, watch), timeout_s))
    except TimeoutError:
        return
    watch.take(client.get_job_logs(job)[watch.log.length :])


async def _until_ended(client: JobSubmissionClient, job: str, watch: Watch) -> None:
    tailing = asyncio.create_task(_tail(client, job, watch), name="tail")
    try:
        while client.get_job_status(job) not in ENDED:
            if tailing.done():
                tailing.result()
            await asyncio.sleep(LOOK_S)
    finally:
        await cancel([tailing])


async def _tail(client: JobSubmissionClient, job: str, watch: Watch) -> None:
    """Only what is new, however long the log is; Ray looks for it every two seconds."""
    known = watch.log.length
    async for piece in client.tail_job_logs(job):
        watch.take(piece[known:])
        known = max(0, known - len(piece))


def check(summary: dict[str, Any]) -> None:
    """Raises the error that a summary reports."""
    code = int(summary.get("exit_code", 0))
    if code:
        error = OncesignError(str(summary.get("error", "the job failed.")), hint="")
        error.exit_code = code  # type: ignore[misc] # the class's own code is only the default
        raise error

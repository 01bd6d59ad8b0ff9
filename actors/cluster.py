"""A local Ray cluster for one data directory: one head on loopback, found again and ended by its own pid."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson
import psutil

from pipeline.errors import RayUnavailable, RuntimeFault
from pipeline.local.cache import progress
from pipeline.local.record import ProcessRecord
from pipeline.local.server import LOOPBACK, free_ports, log_tail
from pipeline.settings import ENV_PREFIX

START_TIMEOUT_S: Final = 90.0
START_TRIES: Final = 3
"""Its ports are free when they are chosen; another process may listen on one before Ray does."""

STOP_TIMEOUT_S: Final = 30.0
LOOK_S: Final = 0.2
REPORT_EVERY_MS: Final = 15_000
"""How often the dashboard's agent measures every process; at 5 s, Ray's default, it takes 1 % of two cores."""

SOCKET_PATH_MAX: Final = 40
"""Ray adds about 65 characters to its temporary directory for its sockets, and a socket's path ends at 107."""

INLINE_BYTES_MAX: Final = 5 * 1024**2
"""Arguments and results up to this size, more than any batch has, travel in the call itself: half the CPU time of a way
through the object store."""

OBJECT_STORE_BYTES: Final = 512 * 1024**2
STOPPED: Final = "Nothing is lost: after `oncesign up` the next `oncesign sign` goes on where this one ended."
STOP_WAIT_S: Final = 30
"""How long Ray waits between SIGTERM and SIGKILL for the driver of a stopped job to drain."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running head."""

    address: str  #: of the GCS
    dashboard: str
    token_file: str
    head: ProcessRecord


def environment(token_file: str) -> dict[str, str]:
    """What every Ray process of a cluster, and every client of it, has in its environment."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": token_file,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_COLOR_PREFIX": "0",
        "RAY_DEDUP_LOGS": "0",
        "PYTHONFAULTHANDLER": "1",  # a crash leaves its stack, without locals, in the worker's log
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "REPORTER_UPDATE_INTERVAL_MS": str(REPORT_EVERY_MS),
        "RAY_prestart_worker_first_driver": "0",  # workers for tasks, of which there are none
        "RAY_max_direct_call_object_size": str(INLINE_BYTES_MAX),
    }


def running(data_dir: Path) -> Cluster | None:
    """The head of a data directory, if it runs."""
    try:
        fields = orjson.loads(_file(data_dir).read_bytes())
    except FileNotFoundError:
        return None
    cluster = Cluster(**fields | {"head": ProcessRecord(**fields["head"])})
    return cluster if cluster.head.process() is not None else None


def start(data_dir: Path, cpus: int, *, again: bool = False) -> Cluster:
    """The head of a data directory, started if it does not run.

    With `again` only one that was not stopped since. Raises RuntimeFault, RayUnavailable.
    """
    data_dir = data_dir.resolve()
    with _alone(data_dir):
        if again and not _file(data_dir).exists():
            raise RayUnavailable("it was stopped.", hint=STOPPED)
        return _start(data_dir, cpus)


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Commands take turns, or one would end the head that another is starting."""
    (data_dir / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data_dir / "ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start(data_dir: Path, cpus: int) -> Cluster:
    found = running(data_dir)
    if found is not None and _serves(found):
        return found
    log = data_dir / "logs" / "ray.log"
    deadline_s = time.monotonic() + START_TIMEOUT_S
    with progress("starting Ray"):
        for _ in range(START_TRIES):
            _stop(data_dir)
            cluster, head = _launch(data_dir, cpus, log)
            if _await(cluster, head, deadline_s):
                return cluster
    raise RuntimeFault(f"Ray does not start. Its log {log} ends with:\n    {log_tail(log)}")


def _launch(data_dir: Path, cpus: int, log: Path) -> tuple[Cluster, subprocess.Popen[bytes]]:
    ports = dict(zip(PORT_FLAGS, free_ports(len(PORT_FLAGS)), strict=True))
    token_file = _token(data_dir)
    with log.open("ab") as output:
        head = subprocess.Popen(
            _argv(_temp_dir(data_dir), ports, cpus),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Not our settings: every job brings its own, and what it leaves out must not come from an earlier one.
            env={name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
            | environment(token_file),
            start_new_session=True,  # Ctrl-C in our terminal is not for Ray
        )
    cluster = Cluster(
        f"{LOOPBACK}:{ports['--port']}",
        f"http://{LOOPBACK}:{ports['--dashboard-port']}",
        token_file,
        ProcessRecord.of(head.pid),
    )
    _file(data_dir).write_bytes(orjson.dumps(asdict(cluster)))
    return cluster, head


def stop(data_dir: Path) -> bool:
    """End the head and everything that it started; whether there was one."""
    data_dir = data_dir.resolve()
    with _alone(data_dir):
        return _stop(data_dir)


def _stop(data_dir: Path) -> bool:
    try:
        fields = orjson.loads(_file(data_dir).read_bytes())
    except FileNotFoundError:
        return False
    head = ProcessRecord(**fields["head"]).process()
    ours = head.children(recursive=True) if head else []
    ours += _left_over(_temp_dir(data_dir), ours)
    if head is not None:
        head.terminate()
        psutil.wait_procs([head], timeout=STOP_TIMEOUT_S)
    alive = [process for process in [head, *ours] if process is not None and process.is_running()]
    for process in alive:
        _kill(process)
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)
    _file(data_dir).unlink(missing_ok=True)
    return head is not None


PORT_FLAGS: Final = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
    "--node-manager-port",
    "--object-manager-port",
    "--ray-client-server-port",
)
"""Ray has a fixed default for most of these; two clusters on one machine would collide."""

HEAD_WITHOUT: Final = ("--no-monitor",)
"""The autoscaler, a process to load: there is no node that it could start."""


def _argv(temp_dir: Path, ports: dict[str, int], cpus: int) -> list[str]:
    ray = Path(sys.executable).with_name("ray")
    argv = [str(ray), "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true"]
    argv += [f"--node-ip-address={LOOPBACK}", f"--dashboard-host={LOOPBACK}", f"--temp-dir={temp_dir}"]
    argv += [f"--num-cpus={cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
    argv += ["--min-worker-port=0", "--max-worker-port=0"]
    # It would send the workers' logs to drivers, which ours do not ask for; the dashboard reads the files itself.
    argv += ["--include-log-monitor=false"]
    argv += HEAD_WITHOUT
    return argv + [f"{flag}={port}" for flag, port in ports.items()]


def _await(cluster: Cluster, head: subprocess.Popen[bytes], deadline_s: float) -> bool:
    """Whether it serves, rather than that it has ended, or the time is over."""
    while time.monotonic() < deadline_s and head.poll() is None:
        if _serves(cluster):
            return True
        time.sleep(LOOK_S)
    return False


def _serves(cluster: Cluster) -> bool:
    """Whether the dashboard's job API answers; a demand for a token is an answer."""
    request = urllib.request.Request(f"{cluster.dashboard}/api/version")  # noqa: S310 - our own http address
    try:
        with urllib.request.urlopen(request, timeout=2):  # noqa: S310 - as above
            return True
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return False


def token(cluster: Cluster) -> str:
    """The bearer token of the cluster. Raises RayUnavailable."""
    return _token_in(cluster.token_file, f"its token file {cluster.token_file}")


def token_at_hand() -> str:
    """The bearer token of a cluster that others started, from where Ray's own clients take it; empty without one.

    Raises RayUnavailable when RAY_AUTH_TOKEN_PATH names a file that cannot be read.
    """
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if not path:
        return os.environ.get("RAY_AUTH_TOKEN", "")
    return _token_in(path, f"RAY_AUTH_TOKEN_PATH names {path}, which")


def _token_in(path: str, called: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError as error:
        raise RayUnavailable(f"{called} cannot be read: {error.strerror}") from error


def _token(data_dir: Path) -> str:
    """A file with the token that Ray's processes and clients share; readable by its owner only."""
    path = data_dir / "ray.token"
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return str(path)


def _temp_dir(data_dir: Path) -> Path:
    """DATA_DIR/ray, by a short link where its path is too long for Ray's sockets."""
    folder = data_dir / "ray"
    folder.mkdir(parents=True, exist_ok=True)
    if len(str(folder)) <= SOCKET_PATH_MAX:
        return folder
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:10]
    link = Path(tempfile.gettempdir()) / f"oncesign-{os.getuid()}-{name}"
    if not link.is_symlink():
        link.symlink_to(folder)
    return link


def _left_over(temp_dir: Path, known: list[psutil.Process]) -> list[psutil.Process]:
    """Processes of a head that was killed: their command line names our own temporary directory."""
    found = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        argv = process.info["cmdline"] or []
        if process not in known and any(f"{temp_dir}/session_" in part for part in argv):
            found.append(process)
    return found


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _file(data_dir: Path) -> Path:
    return data_dir / "ray.json"

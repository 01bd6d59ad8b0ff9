"""`oncesign up | down | status | doctor`: the embedded servers, and whether everything can be reached."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from jobs import placed
from jobs.loading import load_settings
from jobs.output import Json, emit, emit_fields, say
from pipeline.errors import DependencyDown, DiskFull, OncesignError, SettingError, UsageError
from pipeline.local.cache import progress
from pipeline.local.resolve import embedded, resolve
from pipeline.local.stack import Stack
from pipeline.settings import Settings

MEMBERS: Final = (1, 3)
PLACED_EXAMINATIONS: Final = {"etcd": placed.etcd, "key-encryption key": placed.key_encryption_key}
FREE_BYTES_MIN: Final = 1024**3


def up(
    members: Annotated[
        int | None, typer.Option(help="etcd members: 1 or 3; default: as the data directory has them, else 1.")
    ] = None,
    json: Json = False,
) -> None:
    """Start etcd, PostgreSQL and Kafka in the data directory, those that no setting replaces.

    On a cluster with node groups (ONCESIGN_POOL__PLACED): start the key manager, and wait until it leads.
    """
    settings = load_settings()
    if settings.pool.placed:
        emit_fields(asyncio.run(placed.lead(settings)), as_json=json)
        say("Next: oncesign migrate, then oncesign keys create --count 16, oncesign stock, python -m jobs.sign")
        return
    if members is not None and members not in MEMBERS:
        raise UsageError(f"--members is {members}; it can be 1 or 3.")
    bring_up(settings, members)
    resolved = resolve(settings)
    emit_fields(addresses(resolved), as_json=json)
    say("Next: oncesign migrate, then oncesign keys create --count 16, oncesign stock, oncesign sign")


def bring_up(settings: Settings, members: int | None = None) -> None:
    """Raises SettingError, RuntimeFault, DiskFull."""
    require_room(settings.data_dir)
    servers = embedded(settings)
    if servers:
        Stack(settings.data_dir).up(members, servers)


def require_room(data_dir: Path) -> None:
    """Raises DiskFull before a server finds out the hard way, SettingError when it cannot be made."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("no space left", address=str(data_dir)) from error
        raise SettingError(
            "ONCESIGN_DATA_DIR", f"{data_dir} cannot be made ({error.strerror})", hint="Name a directory of yours."
        ) from error
    free = shutil.disk_usage(data_dir).free
    if free < FREE_BYTES_MIN:
        raise DiskFull(f"only {free // 1024**2} MiB are free, at least 1024 are needed", address=str(data_dir))


def addresses(settings: Settings) -> dict[str, Any]:
    """Where the three servers are."""
    return {
        "etcd": settings.etcd.endpoints,
        "postgres": settings.postgres.dsn.get_secret_value(),
        "kafka": settings.kafka.bootstrap_servers,
    }


def down() -> None:
    """Stop Ray and the embedded servers of the data directory; the data stays.

    On a cluster with node groups: drain the pipeline and end its actors, the key manager last.
    """
    from actors import cluster

    settings = load_settings()
    if settings.pool.placed:
        say(f"ended: {', '.join(placed.end(settings)) or 'nothing was running'}")
        return
    if not settings.data_dir.exists():
        say("nothing was running")
        return
    with progress("stopping Ray and the servers (a pipeline that runs may take a minute)"):
        ray_stopped = cluster.stop(settings.data_dir)
        stopped = ["ray"] * ray_stopped + Stack(settings.data_dir).down()
    say(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def status(json: Json = False) -> None:
    """Show what runs: servers, the pipeline, its keys, streams and halts."""
    settings = load_settings()
    if settings.pool.placed:
        found = {"deployment": settings.deployment, "actors": placed.actors(settings)}
        emit_fields(found | _overview(settings), as_json=json)
        return
    record = Stack(settings.data_dir).status()
    running = sorted(record.running())
    fields: dict[str, Any] = {
        "deployment": settings.deployment,
        "data_dir": str(settings.data_dir.resolve()),
        "servers": {name: "running" if name in running else "stopped" for name in record.processes or {}},
        "daemon": "running" if record.daemon_process() else "stopped",
    }
    fields |= _pipeline_fields(settings)
    emit_fields(fields, as_json=json)


def _pipeline_fields(settings: Settings) -> dict[str, Any]:
    from actors import cluster

    head = cluster.running(settings.data_dir)
    return {"dashboard": head.dashboard if head else None} | _overview(settings)


def _overview(settings: Settings) -> dict[str, Any]:
    from jobs.overview import overview

    try:
        return asyncio.run(overview(resolve(settings)))
    except OncesignError as error:
        return {"pipeline": f"cannot be read: {error}"}


def doctor(json: Json = False) -> None:
    """Try every dependency and say, for each, whether it serves and what to do if not; exit 3 when one does not."""
    from jobs.examination import EXAMINATIONS

    settings = load_settings()
    failures = []
    for name, examine in (EXAMINATIONS | (PLACED_EXAMINATIONS if settings.pool.placed else {})).items():
        verdict = _examined(examine, settings)
        if verdict["verdict"] != "ok":
            failures.append(name)
        if json:
            emit({"check": name} | verdict)
        else:
            say(f"{'ok    ' if verdict['verdict'] == 'ok' else 'FAILED'}  {name}: {verdict['detail']}")
    if failures:
        raise DependencyDown(f"{len(failures)} of {len(EXAMINATIONS)} checks failed: {', '.join(failures)}", hint="")


def _examined(examine: Callable[[Settings], Awaitable[str]], settings: Settings) -> dict[str, str]:
    async def run() -> str:
        return await examine(settings)

    try:
        return {"verdict": "ok", "detail": asyncio.run(run())}
    except OncesignError as error:
        return {"verdict": "failed", "detail": str(error)}

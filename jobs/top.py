"""`oncesign top`: a pipeline that runs, as its job reports it once a second."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jobs.loading import load_settings
from jobs.output import emit, piped
from pipeline.errors import RayUnavailable, UsageError
from pipeline.settings import Settings

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

RATE_S: Final = 10.0
"""Rates are taken over so long."""

REPORTS_MAX: Final = 64

ENTRY_POINT: Final = "jobs.sign"
STAGES: Final = {"read": "reader", "signed": "signers", "published": "consumer", "verified": "verifier"}
"""What is counted → who does it, in the order of the flow."""


def top(
    address: Annotated[
        str, typer.Option(help="The dashboard of a cluster, as in http://127.0.0.1:8265; default: the one of our own.")
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="Show the next report, and end.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print each report as one JSON object.")] = False,
) -> None:
    """Watch a pipeline that runs: rates by stage, keys, what waits, halts; Ctrl-C ends the view, not the pipeline."""
    settings = load_settings()
    with piped():
        asyncio.run(_show(settings, address, once=once, as_json=json))


@dataclass(slots=True)
class Rates:
    """Transactions per second by stage, over the last reports."""

    seen: deque[tuple[float, dict[str, int]]] = field(default_factory=lambda: deque(maxlen=REPORTS_MAX))

    def add(self, now_s: float, counts: dict[str, int]) -> dict[str, int]:
        """The rates with these counts; an actor that was started again counts from 0, which is no rate below 0."""
        self.seen.append((now_s, counts))
        while len(self.seen) > 1 and now_s - self.seen[0][0] > RATE_S:
            self.seen.popleft()
        then_s, before = self.seen[0]
        seconds = now_s - then_s
        return {
            stage: round(max(0, count - before[stage]) / seconds) if seconds else 0 for stage, count in counts.items()
        }


async def _show(settings: Settings, address: str, *, once: bool, as_json: bool) -> None:
    console, rates = Console(), Rates()
    live = Live(console=console, screen=console.is_terminal and not once, auto_refresh=False)
    with contextlib.ExitStack() as stack:
        if console.is_terminal and not as_json and not once:
            stack.enter_context(live)
        async with contextlib.aclosing(reports(settings, address)) as frames:
            async for report in frames:
                fresh = rates.add(time.monotonic(), report["stages"])
                if as_json:
                    emit(report | {"per_second": fresh})
                elif live.is_started:
                    live.update(page(report, fresh), refresh=True)
                else:
                    console.print(page(report, fresh))
                if once:
                    return


async def reports(settings: Settings, address: str) -> AsyncGenerator[dict[str, Any], None]:
    """Of the job that signs this deployment, from now on until it ends.

    Raises UsageError when there is none, RayUnavailable.
    """
    from jobs import submission

    place = submission.there(address) if address else _own(settings)
    client = submission.client_of(place)
    job = _job(client, settings.deployment)
    log = submission.JobLog()
    try:
        before = len(client.get_job_logs(job))
        async for piece in client.tail_job_logs(job):
            found = [submission.json_of(line) or {} for line in log.lines(piece)]
            said = [fields["progress"] for fields in found if "progress" in fields]
            if said and log.length >= before:
                yield said[-1]
    except submission.LOST as error:
        raise RayUnavailable(submission.first_line(error), address=place.dashboard) from error


def _own(settings: Settings) -> Any:
    from actors import cluster
    from jobs import submission

    head = cluster.running(settings.data_dir)
    if head is None:
        raise UsageError(
            f"no Ray cluster runs in {settings.data_dir}.", hint="Start `oncesign sign`, or name one with --address."
        )
    os.environ |= cluster.environment(head.token_file)
    return submission.Place(head.dashboard, cluster.token(head), "", {})


def _job(client: JobSubmissionClient, deployment: str) -> str:
    from jobs.submission import ENDED

    for job in client.list_jobs():
        named = (job.metadata or {}).get("deployment")
        if job.status not in ENDED and (named == deployment or (not named and ENTRY_POINT in job.entrypoint)):
            return str(job.submission_id)
    raise UsageError(
        f"no job signs deployment {deployment} there.", hint="Start `oncesign sign`, or set ONCESIGN_DEPLOYMENT."
    )


# ── a page ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def page(report: dict[str, Any], per_second: dict[str, int]) -> Group:
    """One screen of it."""
    return Group(_stages(report, per_second), "", _waits(report), *_alarms(report))


def _stages(report: dict[str, Any], per_second: dict[str, int]) -> Table:
    table = Table("stage", "by", box=None, pad_edge=False, header_style="bold")
    for title in ("tx/s", "tx"):
        table.add_column(title, justify="right")
    for stage, actor in STAGES.items():
        table.add_row(stage, actor, f"{per_second[stage]:,}", f"{report['stages'][stage]:,}")
    return table


def _waits(report: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    keys = report["keys"]
    left = max(0, report["total"] - report["done_before"] - report["signed"] - report["rejected"])
    rows = {
        "rows left": f"{left:,}",
        "rejected": f"{report['rejected']:,}",
        "batches being signed": f"{report['batches_in_flight']:,}",
        "batches that wait for a key": f"{report['waiting_for_key']:,}",
        "requests in the key manager's queue": f"{report['queue']:,}, the oldest {report['queue_oldest_s']:.1f} s",
        "keys": ", ".join(f"{count:,} {state}" for state, count in keys.items()) or "-",
        "rounds": f"{report['rounds']:,}, aborted {report['rounds_aborted']:,}",
        "actors": f"{len(report['pids'])}, started again {report['restarts']:,}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _alarms(report: dict[str, Any]) -> list[Text]:
    lines = [f"stream {stream} is halted: {reason}" for stream, reason in report["halted"].items()]
    lines += [f"no key for chain {chain_id}" for chain_id in report["no_keys"]]
    lines += [f"no key for blob transactions on chain {chain_id}" for chain_id in report.get("no_blob_keys", [])]
    if report["violations"]:
        lines.append(f"{report['violations']} VIOLATIONS; run: oncesign verify")
    return [Text(line, style="bold red") for line in lines]

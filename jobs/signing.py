"""`oncesign sign | demo`: run the pipeline; run everything."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Annotated, Any, Final, Self

import orjson
import typer
from rich.console import Console
from rich.live import Live

from jobs.checks import examine, outcome_counts
from jobs.keys import create_keys
from jobs.loading import load_settings
from jobs.output import Json, emit, say
from jobs.rows import stock_mocked
from jobs.servers import bring_up
from pipeline.errors import ViolationFound
from pipeline.local.cache import progress
from pipeline.local.resolve import resolve
from pipeline.settings import Settings

DEMO_KEYS: Final = 32
DEMO_INVALID_SHARE: Final = 0.01
PLAIN_EVERY_S: Final = 5.0


def sign(
    until_drained: Annotated[
        bool, typer.Option("--until-drained", help="End when all that was committed is signed.")
    ] = False,
    verify: Annotated[bool, typer.Option(help="Follow and check what is signed, and write outcomes.")] = True,
    address: Annotated[
        str, typer.Option(help="The dashboard of a cluster that has code and settings; default: one of our own.")
    ] = "",
    json: Json = False,
) -> None:
    """Run the pipeline on Ray until it is drained or stopped; Ctrl-C finishes what has a key."""
    if address:
        settings = load_settings()
        summary = submit(settings, until_drained=until_drained, verify=verify, as_json=json, address=address)
    else:
        settings = resolve(load_settings())
        summary = run_pipeline(settings, until_drained=until_drained, verify=verify, as_json=json)
    if json:
        emit(summary)
    _raise_for(summary)
    if not json:
        _tell(summary)
    if until_drained:
        _require_drained(summary)


def run_pipeline(settings: Settings, *, until_drained: bool, verify: bool, as_json: bool = False) -> dict[str, Any]:
    """Look first whether it can work; then as `submit`. Raises UsageError, SecretFileError, Halted, too."""
    check_first(settings)
    return submit(settings, until_drained=until_drained, verify=verify, as_json=as_json)


def submit(
    settings: Settings, *, until_drained: bool, verify: bool, as_json: bool = False, address: str = ""
) -> dict[str, Any]:
    """Submit the job, show its progress, and return its summary. Raises DependencyDown, RuntimeFault."""
    from jobs import submission

    if not address:
        warm_kernel()
    with ProgressView(as_json=as_json) as view:
        return submission.sign(
            settings, until_drained=until_drained, verify=verify, progress=view.show, address=address
        )


def warm_kernel() -> None:
    """Compile the kernel here, once, where its progress can be seen, instead of in every signer at once."""
    with progress("loading the signing kernel (compiled once, for a minute)"):
        from pipeline.ethereum import kernel

        kernel.warm()


def check_first(settings: Settings) -> None:
    """What can be known before Ray is started. Raises UsageError, SecretFileError, Halted, DependencyDown."""
    from jobs.preflight import before_signing

    asyncio.run(before_signing(settings))


class ProgressView:
    """A live line on a terminal, a plain line now and then elsewhere, every report as JSON when asked; on stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._lively = self._console.is_terminal and not as_json  # FORCE_COLOR makes a terminal of a pipe
        self._said_s = -PLAIN_EVERY_S
        self._halted: set[str] = set()

    def __enter__(self) -> Self:
        if self._lively:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lively:
            self._live.stop()

    def show(self, fields: dict[str, Any]) -> None:
        """One report of the driver."""
        if self._as_json:
            say(orjson.dumps({"progress": fields}).decode())
            return
        for stream, reason in fields["halted"].items():
            if stream not in self._halted:
                self._halted.add(stream)
                say(f"stream {stream} is halted: {reason}")
        line = progress_line(fields)
        if self._lively:
            self._live.update(line)
        elif time.monotonic() - self._said_s >= PLAIN_EVERY_S:
            self._said_s = time.monotonic()
            say("  " + line)


def progress_line(fields: dict[str, Any]) -> str:
    """Signed, rejected, verified, rate, what is left, and the keys in use."""
    left = max(0, fields["total"] - fields["done_before"] - fields["signed"] - fields["rejected"])
    rate = fields["tx_per_s"]
    keys = fields["keys"]
    parts = [
        f"signed {fields['signed']:,}",
        f"rejected {fields['rejected']:,}",
        f"verified {fields['verified']:,}",
        f"{rate:,} tx/s",
        f"left {left:,}" + (f" (about {left / rate:.0f} s)" if rate else ""),
        f"keys {keys.get('locked', 0)} of {sum(keys.values())} in use",
    ]
    if fields["no_keys"]:
        parts.append(f"no key for chain {fields['no_keys'][0]}")
    if fields["no_blob_keys"]:
        parts.append(f"no key for blob transactions on chain {fields['no_blob_keys'][0]}")
    if fields["violations"]:
        parts.append(f"{fields['violations']} VIOLATIONS")
    return " · ".join(parts)


def demo(
    count: Annotated[int, typer.Option(min=1, help="How many mocked transactions.")] = 100_000,
) -> None:
    """Do everything once: servers, tables, keys, mocked rows, sign, verify; the last line is JSON."""
    from pipeline.adapters import migrations

    settings = load_settings()
    bring_up(settings)
    settings = resolve(settings)
    migrations.migrate(settings.postgres)
    ensure_keys(settings)
    check_first(settings)  # before rows are there that cannot be signed
    before = asyncio.run(outcome_counts(settings))
    stock_mocked(settings, settings.sources[0], count, int(time.time()), DEMO_INVALID_SHARE)
    started_s = time.monotonic()
    summary = submit(settings, until_drained=True, verify=True)
    seconds = time.monotonic() - started_s
    _raise_for(summary)
    _require_drained(summary)
    _conclude(settings, before, summary, seconds)


def ensure_keys(settings: Settings) -> None:
    """Make DEMO_KEYS keys when the pool is empty."""
    from jobs.desk import has_keys

    if not asyncio.run(has_keys(settings)):
        with progress(f"making {DEMO_KEYS} keys"):
            asyncio.run(create_keys(settings, DEMO_KEYS))


def _conclude(settings: Settings, before: dict[str, int], summary: dict[str, Any], seconds: float) -> None:
    from actors import cluster
    from pipeline.stages.violation import DUPLICATES, LOSSES

    with progress("looking for gaps, repeats and missing rows"):
        report = asyncio.run(examine(settings))
    after = report.counts
    kinds = [violation.kind for violation in report.violations]
    duplicates = sum(kind in DUPLICATES for kind in kinds)
    lost = sum(kind in LOSSES for kind in kinds)
    signed, rejected = after["signed"] - before["signed"], after["rejected"] - before["rejected"]
    head = cluster.running(settings.data_dir)
    say(
        f"\n{signed:,} signed, {rejected:,} rejected, all of them verified; duplicates {duplicates}, lost {lost}."
        f"\nSigning took {summary['seconds']} s; with start-up and verification {seconds:.1f} s."
        f"\n\nLook further:\n  {head.dashboard if head else ''}  the Ray dashboard; its token is in "
        f"{settings.data_dir}/ray.token"
        f"\n  oncesign tx 42           the life of one row\n  oncesign keys list       who held which key"
        f"\n  oncesign status          what runs\n  oncesign down            stop all of it\n"
    )
    emit(
        {
            "signed": signed,
            "rejected": rejected,
            "duplicates": duplicates,
            "lost": lost,
            "seconds": round(seconds, 2),
            "tx_per_s": round((signed + rejected) / seconds),
        }
    )
    if report.violations:
        raise ViolationFound(f"the verifier found {len(report.violations)} violation(s).", hint="Run: oncesign verify")


def _tell(summary: dict[str, Any]) -> None:
    if "signed" in summary:
        sys.stdout.write(
            f"signed {summary['signed']:,}, rejected {summary['rejected']:,} in {summary['seconds']} s "
            f"({summary['tx_per_s']:,} tx/s)\n"
        )
    say("Next: oncesign verify")


def _require_drained(summary: dict[str, Any]) -> None:
    """A run that was to drain, and ended well before it did, was stopped with Ctrl-C."""
    if not summary.get("drained"):
        raise KeyboardInterrupt


def _raise_for(summary: dict[str, Any]) -> None:
    from jobs import submission

    submission.check(summary)

"""`oncesign bench kernel | pipeline | latency | policy`: figures that can be measured again."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from jobs.loading import load_settings
from jobs.output import Json, emit_fields
from pipeline.errors import UsageError
from pipeline.local.resolve import resolve

app = typer.Typer(no_args_is_help=True, help="Measure: the kernel, the pipeline, the latency, a policy.")


@app.command()
def kernel(
    count: Annotated[int, typer.Option(min=100, help="Transactions in a round.")] = 1_000,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds; medians over them are printed.")] = 31,
    json: Json = False,
) -> None:
    """Compare the signing kernel with bare libsecp256k1 calls and with eth-account, in interleaved rounds."""
    from jobs.bench_kernel import bench

    emit_fields(bench(count, rounds), as_json=json)


@app.command()
def pipeline(
    count: Annotated[int, typer.Option(min=1, help="Rows to drain.")] = 200_000,
    verify: Annotated[bool, typer.Option("--verify", help="Let the verifier follow.")] = False,
    json: Json = False,
) -> None:
    """Insert rows, drain them, and say what each group of processes took for it."""
    from jobs.bench_pipeline import bench

    settings = resolve(load_settings())
    emit_fields(bench(settings, count, verify=verify), as_json=json)


@app.command()
def policy(
    file: Annotated[Path | None, typer.Argument(help="A policy, TOML; default: none.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Rows to drain each time.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How often each; medians are printed.")] = 3,
    pinned: Annotated[bool, typer.Option("--pinned", help="Let those rows name their senders, too.")] = False,
    json: Json = False,
) -> None:
    """Drain rows without and with a policy (and named senders), in turn, and compare the rates."""
    from jobs.bench_policy import bench
    from pipeline.adapters.policies import policy_of

    if file is not None:
        policy_of(file)
    elif not pinned:
        raise UsageError("there is nothing to compare.", hint="Give a policy's FILE, --pinned, or both.")
    emit_fields(bench(resolve(load_settings()), file, count, rounds, pinned=pinned), as_json=json)


@app.command()
def latency(
    rate: Annotated[int, typer.Option(min=1, help="Rows committed per second.")] = 2_000,
    seconds: Annotated[int, typer.Option(min=1, max=600, help="For how long.")] = 20,
    shards: Annotated[
        int,
        typer.Option(
            min=0, max=64, help="Shards of the source, on servers of its own; 0 = the first source of the settings."
        ),
    ] = 1,
    json: Json = False,
) -> None:
    """Commit rows at a steady rate; from commit in Postgres to read-committed on tx.signed."""
    from jobs.bench_latency import bench, own_stack

    settings = load_settings()
    with own_stack(settings, shards) if shards else nullcontext(resolve(settings)) as stack:
        emit_fields(asyncio.run(bench(stack, rate, seconds)), as_json=json)

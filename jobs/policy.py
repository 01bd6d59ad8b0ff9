"""`oncesign policy`: what rows of a source may be signed."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.loading import load_settings
from jobs.output import Json, emit_list, say
from pipeline.local.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.adapters.policies import PolicyVersion
    from pipeline.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Which rows of a source may be signed: check a file, list what applied.")
TITLES = ("source", "version", "set_at", "text")


@app.command()
def check(file: Annotated[Path, typer.Argument(help="A policy, TOML.")]) -> None:
    """Read a policy as `sign` does, and say what is wrong with it, by line."""
    from pipeline.adapters.policies import policy_of

    policy_of(file)
    say(f"{file} is a policy. Next: name it as policy_file of a source in ONCESIGN_SOURCES")


@app.command()
def history(json: Json = False) -> None:
    """List every version of each source's policy, as batches name them."""
    found = asyncio.run(_history(resolve(load_settings(), ["postgres"])))
    emit_list([dataclasses.asdict(version) for version in found], TITLES, as_json=json)
    if not found:
        say("No source had a policy. See docs/custody.md, 'Policies'.")


async def _history(settings: Settings) -> Sequence[PolicyVersion]:
    from pipeline.adapters.policies import PostgresPolicies

    policies = PostgresPolicies(settings.postgres)
    try:
        return await policies.history()
    finally:
        await policies.close()

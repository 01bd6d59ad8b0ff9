"""`oncesign broadcast`: send what was signed to an Ethereum node, and see it mined."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from pydantic import SecretStr

from jobs.loading import load_settings
from jobs.output import Json, emit, emit_fields, say
from pipeline.errors import NotMined
from pipeline.local.resolve import resolve
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.stages.broadcaster import Broadcaster

SAY_EVERY_S: Final = 5.0
SHOWN_MAX: Final = 10


def broadcast(
    rpc: Annotated[
        str,
        typer.Option(metavar="URL", help="JSON-RPC of a node; default: the one in ONCESIGN_BROADCAST__RPC_FILE."),
    ] = "",
    until_mined: Annotated[
        bool, typer.Option("--until-mined", help="End when all that is verified is mined, or nothing can move.")
    ] = False,
    confirmations: Annotated[
        int | None, typer.Option(min=0, max=64, help="Blocks on top of a transaction's before it counts as mined.")
    ] = None,
    blobs: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="The blobs of transactions of type 3 (docs/broadcast.md); default: ONCESIGN_BROADCAST__BLOBS_DIR.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Send verified transactions to an Ethereum node, each sender's in nonce order, until they are mined."""
    settings = resolve(load_settings(), ["postgres", "kafka"])
    told = {"confirmations": confirmations, "blobs_dir": blobs}
    chosen = settings.broadcast.model_copy(update={name: value for name, value in told.items() if value is not None})
    settings = settings.model_copy(update={"broadcast": chosen})
    summary = asyncio.run(_broadcast(settings, SecretStr(rpc), until_mined=until_mined))
    refused = summary.pop("refused")
    if json:
        emit(summary | {"refused": refused})
    else:
        emit_fields(summary, as_json=False)
    for sender, reason in [*refused.items()][:SHOWN_MAX]:
        say(f"{sender} {reason}")
    if summary["not_verified"]:
        say(f"{summary['not_verified']:,} signed transactions wait for the verifier. Run: oncesign verify")
    if refused or summary["failed"]:
        raise NotMined(f"{summary['failed']} nonces are lost, {len(refused)} senders do not move.")
    if until_mined and summary["interrupted"]:
        raise KeyboardInterrupt


async def _broadcast(settings: Settings, url: SecretStr, *, until_mined: bool) -> dict[str, Any]:
    from actors.composition import broadcasting

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with broadcasting.broadcaster(settings, url) as broadcaster:
        telling = asyncio.create_task(_tell(broadcaster))
        try:
            await broadcaster.run(stop, until_mined=until_mined)
        finally:
            telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await telling
        undecided = await broadcaster.undecided()
    refused = broadcaster.refusals()
    waits = undecided if until_mined and not stop.is_set() and not refused else 0
    count = dataclasses.asdict(broadcaster.count)
    return count | {"not_verified": waits, "interrupted": stop.is_set(), "refused": refused}


async def _tell(broadcaster: Broadcaster) -> None:
    while True:
        await asyncio.sleep(SAY_EVERY_S)
        count = broadcaster.count
        stuck = f", {len(refusals)} senders do not move" if (refusals := broadcaster.refusals()) else ""
        say(
            f"block {count.block:,}: sent {count.sent:,}, mined {count.mined:,}, in flight {count.in_flight:,}, "
            f"sent again {count.sent_again:,}{stuck}"
        )

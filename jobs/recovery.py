"""`oncesign recover`: let a halted stream go on once its cause is gone."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from jobs.loading import load_settings
from jobs.output import say
from pipeline.errors import UsageError
from pipeline.local.resolve import resolve
from pipeline.settings import Settings
from pipeline.stream import Stream


def recover(
    stream: Annotated[str, typer.Option(help="SOURCE/SHARD, as `oncesign status` names it.")],
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Read its partition from the start; for a lost offset or a new topic.")
    ] = False,
) -> None:
    """Take the halt off one stream. Batches that were published are recognised and skipped, never signed anew."""
    settings = resolve(load_settings())
    asyncio.run(_recover(settings, Stream.parse(stream), from_start=from_start))
    say(f"stream {stream} may go on. Next: oncesign sign")


async def _recover(settings: Settings, stream: Stream, *, from_start: bool) -> None:
    from jobs.desk import etcd_view, key_desk
    from pipeline.adapters.topics import TopicAdmin

    source = settings.source(stream.source)
    async with etcd_view(settings) as view:
        if stream not in view.streams:
            raise UsageError(f"there is no stream {stream}.", hint="See: oncesign status")
    if from_start:
        topics = TopicAdmin(settings.kafka)
        try:
            await topics.prepare(settings.deployment, settings.sources, frozenset())
            await topics.begin(settings.deployment, source, [stream.shard])
        finally:
            await topics.close()
    async with key_desk(settings) as desk:
        await desk.unhalt(stream)

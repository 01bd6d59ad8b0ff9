"""`oncesign recover`: let a halted stream go on once its cause is gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, cast

import typer

from jobs.loading import load_settings
from jobs.output import say
from pipeline.errors import MalformedBatch, UsageError
from pipeline.local.resolve import resolve
from pipeline.settings import Settings
from pipeline.stream import Stream

if TYPE_CHECKING:
    from jobs.desk import KeyDesk
    from pipeline.stages.sweeper import Desk


def recover(
    stream: Annotated[str, typer.Option(help="SOURCE/SHARD, as `oncesign status` names it.")],
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Make its topic anew if it is gone, and read it from the start.")
    ] = False,
) -> None:
    """Take the halt off one stream. Batches that were published are recognised and skipped, never signed anew."""
    settings = resolve(load_settings())
    asyncio.run(let_go_on(settings, _named(stream), from_start=from_start))
    say(f"stream {stream} may go on. Next: oncesign sign")


def _named(stream: str) -> Stream:
    try:
        return Stream.parse(stream)
    except MalformedBatch as error:
        raise UsageError(error.message, hint="For example: --stream payouts/3") from None


async def let_go_on(settings: Settings, stream: Stream, *, from_start: bool) -> None:
    """Take the halt off; with `from_start` its topic is read again. Raises UsageError, NotLeader, DependencyDown."""
    from jobs.desk import etcd_view, key_desk, leads

    settings.source(stream.source)
    async with etcd_view(settings) as view:
        if stream not in view.streams:
            raise UsageError(f"there is no stream {stream}.", hint="See: oncesign status")
    if from_start and await leads(settings):
        raise UsageError("a pipeline runs on this deployment.", hint="Stop it, then run the same command again.")
    async with key_desk(settings) as desk:
        if from_start:
            await desk.lose(stream, await _from_start(settings, stream, desk))
        await desk.unhalt(stream)


async def _release_published(settings: Settings, stream: Stream, desk: KeyDesk) -> None:
    """A batch that is read again while it still has its assignment would be published a second time."""
    from actors import composition
    from actors.clients import SignerPool
    from jobs.overview import read_assignments
    from pipeline.stages.consumer import Worker

    found = [a for a in await read_assignments(settings) if a.stream == stream]
    if found:
        nobody = SignerPool([], 0)  # nothing is signed here
        worker = Worker("recover", settings.node)
        async with composition.sweeper(settings, worker, cast("Desk", desk), nobody) as sweeper:
            await sweeper.release_published(found)


async def _from_start(settings: Settings, stream: Stream, desk: KeyDesk) -> int:
    """See that the topic is there, and set the consumers' next offset to its first; where the partition ends."""
    from pipeline.adapters.topics import TopicAdmin

    source = settings.source(stream.source)
    topics = TopicAdmin(settings.kafka)
    try:
        await topics.remake(source)
        await _release_published(settings, stream, desk)
        await topics.begin(settings.deployment, source, [stream.shard])
        return await topics.end(source, stream.shard)
    finally:
        await topics.close()

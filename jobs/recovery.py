"""`oncesign recover`: rebuild etcd after it was lost or restored; let a halted stream go on once its cause is gone."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from jobs.loading import load_settings
from jobs.output import Json, emit, say
from pipeline.errors import MalformedBatch, UsageError
from pipeline.local.resolve import resolve
from pipeline.settings import Settings
from pipeline.stream import Stream

if TYPE_CHECKING:
    from jobs.desk import KeyDesk
    from pipeline.assignment.rebuilding import Difference
    from pipeline.stages.sweeper import Desk

NOTHING: Final = "nothing"


def recover(
    stream: Annotated[
        str, typer.Option(help="Take the halt off this one: SOURCE/SHARD, as `oncesign status` names it.")
    ] = "",
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Make its topic anew if it is gone, and read it from the start.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show how etcd differs; change nothing.")] = False,
    json: Json = False,
) -> None:
    """Rebuild etcd from the ledger, Kafka and Postgres after it was lost or restored from a backup.

    With --stream instead: take the halt off one stream. Batches that were published are recognised and skipped, never
    signed anew.
    """
    if stream and (dry_run or json):
        raise UsageError("--dry-run and --json go without --stream.")
    if from_start and not stream:
        raise UsageError("--from-start needs --stream.", hint="For example: --stream payouts/3 --from-start")
    settings = resolve(load_settings())
    if stream:
        asyncio.run(let_go_on(settings, _named(stream), from_start=from_start))
        say(f"stream {stream} may go on. Next: oncesign sign")
    elif dry_run:
        asyncio.run(_show(settings, as_json=json))
    else:
        _tell(asyncio.run(rebuild(settings)), as_json=json)
        say("etcd is as the ledger has it. Next: oncesign sign")


async def rebuild(settings: Settings) -> list[Difference]:
    """Make etcd as it must be; what was changed. Raises NotLeader, DeploymentHalted, DependencyDown."""
    from actors.composition import bus, recovering

    used = await _used(settings)
    async with bus.topics(settings) as topics:
        await topics.prepare(settings.deployment, settings.sources, used)
    async with recovering.recovery(settings) as recovery:
        return await recovery.repair()


async def _show(settings: Settings, *, as_json: bool) -> None:
    from actors.composition import recovering
    from jobs.desk import leads
    from pipeline.stages.recovery import cannot

    if await leads(settings):
        say("a pipeline runs, or ran some seconds ago: what is under way is shown as a difference")
    settings, has_topics = await _with_topics(settings)
    async with recovering.recovery(settings) as recovery:
        found = await recovery.look(has_topics=has_topics)
    _tell(found.differences, as_json=as_json)
    if found.problems:
        raise cannot(found.problems)
    say("Nothing was changed. Next: oncesign recover" if found.differences else "etcd is as it must be.")


async def _used(settings: Settings) -> frozenset[str]:
    """The sources that the ledger has rows of; their topics must be there."""
    from pipeline.adapters.ledger import PostgresLedger

    ledger = PostgresLedger(settings.postgres)
    try:
        used = {stream.source for stream in await ledger.heads()}
    finally:
        await ledger.close()
    return frozenset(used & {source.name for source in settings.sources})


async def _with_topics(settings: Settings) -> tuple[Settings, bool]:
    """Without the sources that were never signed for; and whether anything ever was. Raises DeploymentHalted."""
    from actors.composition import bus
    from pipeline.adapters.kafka import Topics

    used = await _used(settings)
    names = Topics(settings.kafka.topic_prefix)
    async with bus.topics(settings) as topics:
        await topics.require(used)
        present = await topics.names()
    known = [source for source in settings.sources if names.batches(source.name) in present]
    return settings.model_copy(update={"sources": known}), names.signed in present


def _tell(differences: Sequence[Difference], *, as_json: bool) -> None:
    for d in differences:
        if as_json:
            emit(dataclasses.asdict(d))
        else:
            sys.stdout.write(f"{d.what} {d.name}: {d.found or NOTHING} -> {d.wanted or NOTHING} ({d.why})\n")


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
    from actors.clients import SignerPool
    from actors.composition import sweeping
    from jobs.overview import read_assignments
    from pipeline.stages.consumer import Worker

    found = [a for a in await read_assignments(settings) if a.stream == stream]
    if found:
        nobody = SignerPool({}, 0)  # nothing is signed here
        worker = Worker("recover", settings.node)
        async with sweeping.sweeper(settings, worker, cast("Desk", desk), nobody) as sweeper:
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

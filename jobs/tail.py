"""`oncesign tail`: what is published, as it is published."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import orjson
import typer

from jobs.loading import load_settings
from jobs.output import Status, piped, require_reader, say
from pipeline.errors import MalformedBatch, UsageError
from pipeline.local.resolve import resolve
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.adapters.batch_log import KafkaBatchLog
    from pipeline.adapters.follower import KafkaFollower
    from pipeline.ports import Message, Place

BACK: Final = re.compile(r"end-([0-9]{1,18})")
POLL_S: Final = 0.25
SILENCE_S: Final = 10.0
"""After this long without a record the broker is asked whether it is there; a client that waits would not tell."""

FirstOffset: TypeAlias = Callable[[int, int], int]
"""Of a partition's start and end, where to begin."""


@dataclass(frozen=True, slots=True)
class View:
    """What is shown, and how."""

    first_offset: FirstOffset
    status: Status
    as_events: bool
    limit: int | None


def tail(
    begin: Annotated[
        str, typer.Option("--from", help="start, now, or end-N: N Kafka offsets before the end of each partition.")
    ] = "now",
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many lines.")] = None,
    status: Annotated[Status, typer.Option(help="Which rows.")] = Status.ALL,
    json: Annotated[
        bool, typer.Option("--json", help="Print a CloudEvent per transaction, one per line (docs/formats.md).")
    ] = False,
) -> None:
    """Follow tx.signed and tx.rejected: a line for each batch or rejection as it is published, until Ctrl-C.

    Reads what is committed, belongs to no consumer group and changes nothing. Lines are in order within a partition.
    """
    view = View(first_offset(begin), status, json, limit)
    settings = resolve(load_settings(), ["kafka"])
    with piped():
        asyncio.run(follow(settings, view))


def first_offset(begin: str) -> FirstOffset:
    """What --from means. Raises UsageError."""
    if begin == "start":
        return lambda start, _end: start
    if begin == "now":
        return lambda _start, end: end
    if back := BACK.fullmatch(begin.lower()):
        return lambda start, end: max(start, end - int(back[1]))
    raise UsageError(f"--from {begin}: there is no such place.", hint="Give start, now, or for example end-100.")


async def follow(settings: Settings, view: View) -> None:
    """Print until the limit. Raises UsageError without topics, BusUnavailable, BrokenPipeError."""
    from actors.composition import bus
    from pipeline.adapters.follower import KafkaFollower

    outlets = bus.outlets(settings)
    chosen = {Status.SIGNED: [outlets.signed], Status.REJECTED: [outlets.rejected]}
    topics = chosen.get(view.status, [outlets.signed, outlets.rejected])
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(bus.topics(settings))
        if missing := set(topics) - set(await admin.names()):
            raise UsageError(f"topic {min(missing)} is not there.", hint="The first `oncesign sign` makes it.")
        log = await stack.enter_async_context(bus.batch_log(settings))
        follower = KafkaFollower(settings.kafka, settings.deployment)
        stack.push_async_callback(follower.close)
        await follower.begin([place for topic in topics for place in await _places(log, topic, view.first_offset)])
        say(f"following {' and '.join(topics)}; Ctrl-C ends")
        lines = partial(lines_of, signed_topic=outlets.signed, deployment=settings.deployment, as_events=view.as_events)
        await _print(follower, lines, view.limit, partial(log.ends, topics[0]))


async def _places(log: KafkaBatchLog, topic: str, first: FirstOffset) -> list[Place]:
    from pipeline.ports import Place

    bounds = zip(await log.starts(topic), await log.ends(topic), strict=True)
    return [Place(topic, partition, first(start, end)) for partition, (start, end) in enumerate(bounds)]


async def _print(
    follower: KafkaFollower,
    lines: Callable[[Message], Iterator[str]],
    limit: int | None,
    ask: Callable[[], Awaitable[object]],
) -> None:
    """Print what comes. `ask` is asked of a broker that is silent."""
    shown, silent_s = 0, 0.0
    while True:
        messages = await follower.poll(POLL_S)
        wanted = chain.from_iterable(map(lines, messages))
        for line in islice(wanted, None if limit is None else limit - shown):
            sys.stdout.write(line + "\n")
            shown += 1
        sys.stdout.flush()
        if shown == limit:
            return
        require_reader()
        silent_s = 0.0 if messages else silent_s + POLL_S
        if silent_s >= SILENCE_S:
            await ask()
            silent_s = 0.0


def lines_of(message: Message, *, signed_topic: str, deployment: str, as_events: bool) -> Iterator[str]:
    """What a record is shown as."""
    from pipeline.export.events import cloud_events, read, sentence

    try:
        what = read(message, signed_topic)
    except MalformedBatch as error:
        say(f"{message.place} is left out, it is no record of oncesign's: {error}")
        return
    if not as_events:
        yield sentence(message, what)
        return
    for event in cloud_events(message, what, deployment):
        yield orjson.dumps(event).decode()

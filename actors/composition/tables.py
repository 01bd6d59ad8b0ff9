"""The tables of unsigned transactions, and what stages must find before they read them."""

from __future__ import annotations

from contextlib import AsyncExitStack

from pipeline.adapters.postgres_source import PostgresSource, driver
from pipeline.adapters.topics import TopicAdmin
from pipeline.ethereum.rows import parser
from pipeline.settings import Settings, SourceSettings
from pipeline.stages import preparation


def warm_source() -> None:
    """Load what the first rows would wait for."""
    driver()
    parser()


async def prepare(settings: Settings, streams: preparation.StreamList, admin: TopicAdmin) -> None:
    """Topics, stream records and first offsets. Raises what stages.preparation.prepare raises."""
    async with AsyncExitStack() as stack:
        tables = await tables_of(stack, settings)
        await preparation.prepare(settings.deployment, settings.sources, tables, streams, admin)


async def total(settings: Settings) -> int:
    """Committed rows of all sources. Raises DatabaseUnavailable."""
    async with AsyncExitStack() as stack:
        tables = await tables_of(stack, settings)
        return sum([await table.count() for table in tables.values()])


async def tables_of(stack: AsyncExitStack, settings: Settings) -> dict[str, PostgresSource]:
    """The table of every source by its name, as `table_of` opens it."""
    return {source.name: await table_of(stack, settings, source) for source in settings.sources}


async def table_of(stack: AsyncExitStack, settings: Settings, source: SourceSettings) -> PostgresSource:
    """The table of a source, closed with the stack. Raises DatabaseUnavailable, SettingError."""
    opened = PostgresSource(settings.postgres, source)
    stack.push_async_callback(opened.close)
    await opened.check()
    return opened

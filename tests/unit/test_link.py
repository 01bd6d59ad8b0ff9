"""A link carries what it is given, and every fault does what its name says, in its direction only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from pipeline.local.server import LOOPBACK
from pipeline.testing.chaos.link import DELAY_MAX_S, Direction, Link
from pipeline.testing.chaos.links import Links

SOON_S = 5.0
A_WHILE_S = 0.15


@dataclass
class Server:
    """Notes what arrives and answers every piece with itself."""

    port: int = 0
    got: bytearray = field(default_factory=bytearray)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(1 << 16):
                self.got += piece
                writer.write(piece)
                await writer.drain()
        writer.close()


@dataclass
class World:
    link: Link
    server: Server

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.wait_for(asyncio.open_connection(LOOPBACK, self.link.port), SOON_S)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    server = Server()
    listening = await asyncio.start_server(server.serve, LOOPBACK, 0)
    server.port = listening.sockets[0].getsockname()[1]
    link = Link("a server")
    await link.start(server.port)
    yield World(link, server)
    await link.close()
    listening.close()
    await asyncio.sleep(0)


async def read(reader: asyncio.StreamReader, count: int) -> bytes:
    return await asyncio.wait_for(reader.readexactly(count), SOON_S)


async def silent(reader: asyncio.StreamReader) -> bool:
    """Whether nothing comes for a while."""
    try:
        await asyncio.wait_for(reader.read(1), A_WHILE_S)
    except TimeoutError:
        return True
    return False


async def until_got(server: Server, expected: bytes) -> None:
    async with asyncio.timeout(SOON_S):
        while bytes(server.got) != expected:
            await asyncio.sleep(0.01)


async def test_what_goes_in_comes_out_and_the_end_too(world: World) -> None:
    reader, writer = await world.connect()
    message = bytes(range(256)) * 2_000
    writer.write(message)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(-1), SOON_S) == message
    assert world.link.carried_bytes == {Direction.THERE: len(message), Direction.BACK: len(message)}
    writer.close()


async def test_a_paused_direction_holds_what_it_has_and_loses_nothing(world: World) -> None:
    reader, writer = await world.connect()
    world.link.pause(Direction.THERE)
    writer.write(b"one")
    assert await silent(reader)
    assert world.server.got == b""
    writer.write(b"two")
    await world.link.heal()
    assert await read(reader, 6) == b"onetwo"
    writer.close()


async def test_answers_can_be_held_while_requests_arrive(world: World) -> None:
    reader, writer = await world.connect()
    world.link.pause(Direction.BACK)
    writer.write(b"request")
    await until_got(world.server, b"request")
    assert await silent(reader)
    await world.link.heal()
    assert await read(reader, 7) == b"request"
    writer.close()


async def test_a_cut_resets_connections_and_new_ones_are_served(world: World) -> None:
    reader, writer = await world.connect()
    writer.write(b"x")
    assert await read(reader, 1) == b"x"
    world.link.cut()
    with pytest.raises(ConnectionResetError):
        await read(reader, 1)
    reader, writer = await world.connect()
    writer.write(b"y")
    assert await read(reader, 1) == b"y"
    writer.close()


async def test_what_a_cut_catches_while_paused_never_arrives(world: World) -> None:
    _, writer = await world.connect()
    world.link.pause()
    writer.write(b"lost")
    await asyncio.sleep(A_WHILE_S)
    world.link.cut()
    await world.link.heal()
    reader, writer = await world.connect()
    writer.write(b"new")
    assert await read(reader, 3) == b"new"
    assert world.server.got == b"new"
    writer.close()


async def test_a_link_that_refuses_keeps_its_port_and_serves_again_when_healed(world: World) -> None:
    await world.link.refuse()
    with pytest.raises(ConnectionRefusedError):
        await world.connect()
    with pytest.raises(OSError, match="in use"):
        await asyncio.start_server(world.server.serve, LOOPBACK, world.link.port, reuse_address=False)
    await world.link.heal()
    reader, writer = await world.connect()
    writer.write(b"z")
    assert await read(reader, 1) == b"z"
    writer.close()


async def test_a_slow_link_is_late_in_both_directions(world: World) -> None:
    reader, writer = await world.connect()
    world.link.delay(A_WHILE_S)
    loop = asyncio.get_running_loop()
    began = loop.time()
    writer.write(b"slow")
    assert await read(reader, 4) == b"slow"
    assert loop.time() - began >= 2 * A_WHILE_S * 0.9
    with pytest.raises(ValueError, match="between"):
        world.link.delay(DELAY_MAX_S + 1)
    writer.close()


async def test_without_its_server_a_link_resets(world: World) -> None:
    await world.link.start(world.link.port + 1 if world.link.port < 65_535 else 1)
    reader, writer = await world.connect()
    with pytest.raises(ConnectionResetError):
        await read(reader, 1)
    writer.close()


async def test_links_are_set_from_any_thread_and_named_by_part() -> None:
    server = Server()
    listening = await asyncio.start_server(server.serve, LOOPBACK, 0)
    port = listening.sockets[0].getsockname()[1]
    links = await asyncio.to_thread(Links, ["etcd-0.client", "etcd-1.client", "kafka-0", "postgres"])
    try:
        await asyncio.to_thread(links.start, dict.fromkeys(links.ports(), port))
        assert links.named("etcd") == ["etcd-0.client", "etcd-1.client"]
        assert links.named("kafka") == ["kafka-0"]
        await asyncio.to_thread(links.refuse, links.named("kafka"))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(LOOPBACK, links.ports()["kafka-0"])
        reader, writer = await asyncio.open_connection(LOOPBACK, links.ports()["postgres"])
        writer.write(b"x")
        assert await read(reader, 1) == b"x"
        writer.close()
    finally:
        await asyncio.to_thread(links.close)
        listening.close()

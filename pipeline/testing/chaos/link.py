"""A TCP proxy in front of a server: one link, whose two directions can be paused, slowed, cut and refused.

What is paused is held, not lost: TCP would send it again too, once the network is whole. A link that is cut resets its
connections; a link that refuses accepts no new ones, as if nobody listened. The port stays ours meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from enum import StrEnum
from typing import Final

from pipeline.local.server import LOOPBACK

CHUNK_BYTES: Final = 64 * 1024
CONNECT_TIMEOUT_S: Final = 5.0
BACKLOG: Final = 256
DELAY_MAX_S: Final = 5.0
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: on, for 0 s."""


class Direction(StrEnum):
    """Seen from the client."""

    THERE = "there"
    BACK = "back"


class Link:
    """One listening port of ours, and the server's port behind it. Belongs to one event loop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._reserved = _bound(0)
        self.port: int = self._reserved.getsockname()[1]
        self._server_port = 0
        self._server: asyncio.Server | None = None
        self._open = {direction: asyncio.Event() for direction in Direction}
        self._delay_s = dict.fromkeys(Direction, 0.0)
        self._connections: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.carried_bytes = dict.fromkeys(Direction, 0)

    async def start(self, server_port: int) -> None:
        """Carry connections to this port from now on."""
        self._server_port = server_port
        await self.heal()

    async def close(self) -> None:
        """Reset everything and give the port back."""
        await self.refuse()
        self.cut()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        self._reserved.close()

    # ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def pause(self, *directions: Direction) -> None:
        """Hold what goes in these directions; both when none is named."""
        for direction in directions or Direction:
            self._open[direction].clear()

    def delay(self, seconds: float, *directions: Direction) -> None:
        """Hand over every piece so much later. Raises ValueError for a time that is no delay any more."""
        if not 0 <= seconds <= DELAY_MAX_S:
            raise ValueError(f"a delay of {seconds} s is not between 0 and {DELAY_MAX_S}")
        for direction in directions or Direction:
            self._delay_s[direction] = seconds

    def cut(self) -> None:
        """Reset every connection."""
        for pair in self._connections:
            for writer in pair:
                _reset(writer)

    async def refuse(self) -> None:
        """Accept no new connection."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def heal(self) -> None:
        """All as it should be; what was held goes on."""
        for direction in Direction:
            self._open[direction].set()
            self._delay_s[direction] = 0.0
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, sock=_bound(self.port), backlog=BACKLOG)

    # ── carrying ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:  # a callback of asyncio's server is always one
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        try:
            await self._open[Direction.THERE].wait()  # a connection attempt crosses the network too
            opening = asyncio.open_connection(LOOPBACK, self._server_port)
            back, there = await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError):
            _reset(writer)
            return
        pair = (writer, there)
        self._connections.add(pair)
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._carry(reader, there, Direction.THERE))
                ways.create_task(self._carry(back, writer, Direction.BACK))
        except* OSError:
            for end in pair:
                _reset(end)
        finally:
            self._connections.discard(pair)
            for end in pair:
                end.close()

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: Direction) -> None:
        while piece := await source.read(CHUNK_BYTES):
            if self._delay_s[direction]:
                await asyncio.sleep(self._delay_s[direction])
            await self._open[direction].wait()
            sink.write(piece)
            self.carried_bytes[direction] += len(piece)
            await sink.drain()
        await self._open[direction].wait()
        with contextlib.suppress(OSError):
            sink.write_eof()


def _bound(port: int) -> socket.socket:
    """Bound and not listening; a second one to the same port may listen, and only that one is connected to."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((LOOPBACK, port))
    return made


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset, so that the peer sees an error and not an end."""
    if (raw := writer.get_extra_info("socket")) is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()

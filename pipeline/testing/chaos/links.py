"""All links of a stack, in a thread of their own, so that blocking code can set faults on them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar

from pipeline.testing.chaos.link import Direction, Link

T = TypeVar("T")
ANSWER_TIMEOUT_S: Final = 10.0


class Links:
    """Links by the name of the server's port; every method may be called from any thread."""

    def __init__(self, names: Iterable[str]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._thread.start()
        self._links: dict[str, Link] = self._run(_make(list(names)))

    def ports(self) -> dict[str, int]:
        """What clients connect to."""
        return {name: link.port for name, link in self._links.items()}

    def start(self, server_ports: dict[str, int]) -> None:
        """Carry to these ports."""
        for name, link in self._links.items():
            self._run(link.start(server_ports[name]))

    def named(self, part: str) -> list[str]:
        """The links of a part: of etcd, say, one for each member."""
        return [name for name in self._links if name.split("-")[0].split(".")[0] == part]

    def carried_bytes(self) -> dict[str, int]:
        """By link, both directions together."""
        return {name: sum(link.carried_bytes.values()) for name, link in self._links.items()}

    def pause(self, names: Iterable[str], *directions: Direction) -> None:
        """See Link."""
        self._each(names, lambda link: link.pause(*directions))

    def delay(self, names: Iterable[str], seconds: float) -> None:
        """See Link; both directions."""
        self._each(names, lambda link: link.delay(seconds))

    def cut(self, names: Iterable[str]) -> None:
        """See Link."""
        self._each(names, Link.cut)

    def refuse(self, names: Iterable[str]) -> None:
        """Refuse new connections and reset those there are: to its clients the server is dead."""
        for name in names:
            self._run(self._links[name].refuse())
        self.cut(names)

    def heal(self, names: Iterable[str]) -> None:
        """See Link."""
        for name in names:
            self._run(self._links[name].heal())

    def close(self) -> None:
        """End the thread."""
        for link in self._links.values():
            self._run(link.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_TIMEOUT_S)
        self._loop.close()

    def _each(self, names: Iterable[str], change: Callable[[Link], None]) -> None:
        async def apply() -> None:
            for name in names:
                change(self._links[name])

        self._run(apply())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_TIMEOUT_S)


async def _make(names: list[str]) -> dict[str, Link]:
    """In the loop, which their events belong to."""
    return {name: Link(name) for name in names}

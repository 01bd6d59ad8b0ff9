"""The boundaries of external effects: every request to etcd, Kafka and Postgres, by its name, before and after it.

A proof that survives a crash anywhere needs a word for "anywhere". The adapters mark the places where a request leaves
and where its answer has come; the twins in pipeline.testing call the same requests by the same names
(testing.network.Request), so that a crash point of the simulation is one of the real stack, too.

Nobody watches in production: then a boundary costs two comparisons. There is no setting for it, on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import Final, TypeAlias


class Moment(StrEnum):
    """On which side of an effect."""

    BEFORE = "before"  #: nothing has left
    AFTER = "after"  #: the answer has come, and nobody has acted on it


class Effect:
    """A request by the protocol's own name for it, and of which server it is asked. `with` marks both boundaries."""

    __slots__ = ("request", "server")

    def __init__(self, server: str, request: str) -> None:
        self.server: Final = server
        self.request: Final = request

    def __repr__(self) -> str:
        return f"{self.server} {self.request}"

    def reached(self, moment: Moment) -> None:
        """Mark one boundary."""
        if _watchers:
            _watchers[-1](self, moment)

    def __enter__(self) -> None:
        if _watchers:
            _watchers[-1](self, Moment.BEFORE)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if _watchers and kind is None:
            _watchers[-1](self, Moment.AFTER)


Watcher: TypeAlias = Callable[[Effect, Moment], None]
"""Called at every boundary, in the thread that reached it. A request that got no answer has no AFTER."""

_watchers: Final[list[Watcher]] = []


def effect(server: str, request: str) -> Effect:
    """The effect of this name."""
    return Effect(server, request)


def watch(watcher: Watcher | None) -> None:
    """Tell it of every boundary from now on, instead of an earlier one; None: nobody."""
    _watchers[:] = [] if watcher is None else [watcher]

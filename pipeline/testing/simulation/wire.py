"""The network of a simulated cluster: every request of a process has a fate, which somebody decides.

Requests to servers (Kafka, etcd, Postgres) carry their effect; requests to other processes run there as tasks, as Ray's
actor calls do: at most once, and whoever asked a process that died is told so.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from pipeline.errors import OncesignError, RuntimeFault
from pipeline.testing.network import Request, Unanswered
from pipeline.testing.simulation.loop import OWNER, Process, SimulatedLoop

T = TypeVar("T")

LATENCY_S: Final = 0.001
DEATH_SEEN_S: Final = 0.2
"""How long it takes until a caller is told that the process it asked is dead."""


class Fate(NamedTuple):
    """What happens to one request. With `lost`, `cut` or a death there is no answer."""

    there_s: float = LATENCY_S
    back_s: float = LATENCY_S
    refused: bool = False  #: no connection: it certainly has no effect
    lost: bool = False  #: it never arrives
    cut: bool = False  #: it has its effect, and the answer never arrives
    reset_s: float = -1.0  #: the client learns of a broken connection after this long; negative = only by its time-out
    dies_before: bool = False  #: the client dies before it sends
    dies_after: bool = False  #: the client dies when it has had its effect, before the answer


@dataclass(frozen=True, slots=True)
class Callee(Generic[T]):
    """A process, and what it is asked to do."""

    process: Process
    work: Callable[[], Coroutine[Any, Any, T]]


class Fates(Protocol):
    """Who decides."""

    def of(self, client: str, request: Request) -> Fate:
        """The fate of this request of that process."""
        ...

    def met(self, client: str, request: Request, outcome: str) -> None:
        """What became of it, for a story."""
        ...


@dataclass(slots=True)
class _Journey:
    """A request under way: whose, to what end, and where its answer is awaited."""

    request: Request
    fate: Fate
    client: Process | None
    answer: asyncio.Future[Any]

    def succeed(self, result: Any) -> None:
        """Unless it has an answer already."""
        if not self.answer.done():
            self.answer.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Unless it has an answer already."""
        if not self.answer.done():
            self.answer.set_exception(error)


class SimulatedNetwork:
    """Fulfils testing.network.Network, and carries calls between processes."""

    def __init__(self, loop: SimulatedLoop, fates: Fates) -> None:
        self._loop = loop
        self._fates = fates
        self._world = contextvars.Context()
        self.last_arrival_s = 0.0  #: when the last request to a server, of those sent so far, arrives

    def later(self, delay_s: float, function: Callable[..., None], *args: Any) -> Any:
        """Call a function of the world."""
        return self._loop.call_later(delay_s, function, *args, context=self._world)

    # ── to servers ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def call(self, request: Request, effect: Callable[[], T], within_s: float) -> T:
        """See testing.network.Network."""
        going = self._sent(request)
        fate = going.fate
        if fate.refused:
            self.later(fate.there_s, going.fail, Unanswered("connection refused", sent=False))
        elif not fate.dies_before:
            if not fate.lost:
                self._send(fate.there_s, going, effect)
            if fate.reset_s >= 0:
                self.later(fate.reset_s, going.fail, Unanswered(f"{request.name}: connection reset"))
            elif fate.lost or fate.cut or fate.there_s + fate.back_s > within_s:
                self.later(within_s, going.fail, Unanswered(f"{request.name} in {within_s:g} s"))
        answer: T = await going.answer
        return answer

    def _send(self, there_s: float, going: _Journey, effect: Callable[[], Any]) -> None:
        arrival = self.later(there_s, self._arrive, going, effect)
        self.last_arrival_s = max(self.last_arrival_s, arrival.when_s)

    def _arrive(self, going: _Journey, effect: Callable[[], Any]) -> None:
        try:
            result = effect()
        except Exception as error:  # noqa: BLE001 - it is the answer
            self._answer(going, f"{type(error).__name__}: {error}", partial(going.fail, error))
        else:
            self._answer(going, "done", partial(going.succeed, result))

    # ── between processes ────────────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, request: Request, callee: Callable[[], Callee[T] | None], within_s: float) -> T:
        """Run the work of whom `callee` names when the request arrives.

        Raises what it raises, and RuntimeFault when that process is dead, dies, or does not answer in time. Ray tells
        the caller when the connection to an actor breaks; only an actor that stands still is waited for.
        """
        going = self._sent(request)
        fate = going.fate
        broken = RuntimeFault(f"{request.server}: unavailable.")
        timer = self.later(within_s, going.fail, RuntimeFault(f"{request.server} gave no answer."))
        if fate.lost or fate.refused or fate.cut:
            self.later(max(fate.reset_s, DEATH_SEEN_S), going.fail, broken)
        if not (fate.lost or fate.refused or fate.dies_before):
            self.later(fate.there_s, self._begin, going, callee)
        try:
            answer: T = await going.answer
            return answer
        finally:
            timer.cancel()

    def _begin(self, going: _Journey, callee: Callable[[], Callee[Any] | None]) -> None:
        found = callee()
        died = partial(self.later, DEATH_SEEN_S, going.fail, RuntimeFault(f"{going.request.server} is down."))
        if found is None or found.process.dead:
            died()
            return
        process = found.process
        process.ended.append(died)
        task = process.spawn(found.work())
        task.add_done_callback(lambda _: process.ended.remove(died), context=self._world)
        task.add_done_callback(partial(self._done, going), context=self._world)

    def _done(self, going: _Journey, task: asyncio.Task[Any]) -> None:
        server = going.request.server
        error = RuntimeFault(f"{server} was cancelled.") if task.cancelled() else task.exception()
        if error is None:
            self._answer(going, "done", partial(going.succeed, task.result()))
        else:
            told = error if isinstance(error, OncesignError) else RuntimeFault(f"{server} failed: {error!r}.")
            self._answer(going, f"{type(error).__name__}: {error}", partial(going.fail, told))

    # ── both ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _sent(self, request: Request) -> _Journey:
        client = OWNER.get()
        fate = self._fates.of(_name(client), request)
        going = _Journey(request, fate, client, self._loop.create_future())
        if fate.dies_before:
            self._die(going, "its client dies before it is sent")
        elif fate.lost:
            self._fates.met(_name(client), request, "lost on its way")
        return going

    def _answer(self, going: _Journey, outcome: str, tell: Callable[[], None]) -> None:
        """It has had its effect."""
        self._fates.met(_name(going.client), going.request, outcome)
        if going.fate.dies_after:
            self._die(going, "its client dies before the answer")
        elif going.fate.cut:
            self._fates.met(_name(going.client), going.request, "the answer is lost")
        else:
            self.later(going.fate.back_s, tell)

    def _die(self, going: _Journey, how: str) -> None:
        self._fates.met(_name(going.client), going.request, how)
        if going.client is not None:
            going.client.kill()


def _name(client: Process | None) -> str:
    return client.name if client is not None else "world"

"""An event loop whose time is virtual, and whose tasks belong to processes that can be killed or stand still.

Time moves only when nothing else is left to do, straight to the next timer, so an hour of waiting costs nothing and one
seed gives one course of events. Every callback runs in a context; the context says whose process it is:

    dead     it never runs again, not even its `finally` blocks, as after SIGKILL
    frozen   it runs after the thaw, as after SIGSTOP and SIGCONT; timers and answers that came meanwhile do so at once
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

STEPS_MAX: Final = 2_000_000
"""A course of events that takes longer is one that spins."""


class Process:
    """What a kill -9 ends: tasks that share nothing with any other process."""

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.name = name
        self.dead = False
        self.ended: list[Callable[[], None]] = []  #: called when it dies
        self._loop = loop
        self._frozen: list[_Step] | None = None
        self._fuse = -1  #: steps until its death; negative = none is planned
        self._context = contextvars.copy_context()
        self._context.run(OWNER.set, self)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task of this process."""
        return self._loop.create_task(work, context=self._context)

    def call(self, function: Callable[..., object], *args: object) -> None:
        """A callback of this process, soon."""
        self._loop.call_soon(function, *args, context=self._context)

    def kill(self) -> None:
        """Now, wherever it is."""
        if self.dead:
            return
        self.dead = True
        self._frozen = None
        for tell in self.ended:
            tell()

    def kill_after(self, steps: int) -> None:
        """At that await from now, unless it ends before."""
        self._fuse = steps

    @property
    def frozen(self) -> bool:
        """Whether it stands still."""
        return self._frozen is not None

    def freeze(self) -> None:
        """Stand still."""
        if not self.dead and self._frozen is None:
            self._frozen = []

    def thaw(self) -> None:
        """Go on, with what has come meanwhile."""
        waiting, self._frozen = self._frozen or [], None
        if not self.dead:
            self._loop.requeue(waiting)

    def takes(self, step: _Step) -> bool:
        """Whether it may take this step now."""
        if self.dead:
            return False
        if self._frozen is not None:
            self._frozen.append(step)
            return False
        if self._fuse >= 0:
            self._fuse -= 1
            if self._fuse < 0:
                self.kill()
                return False
        return True


OWNER: Final[contextvars.ContextVar[Process | None]] = contextvars.ContextVar("process", default=None)
"""Whose context this is; None = the world's."""


class _Step:
    """Fulfils what callers need of asyncio.Handle and asyncio.TimerHandle."""

    __slots__ = ("args", "callback", "context", "gone", "when_s")

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context, when_s: float
    ) -> None:
        self.callback, self.args, self.context, self.when_s = callback, args, context, when_s
        self.gone = False

    def cancel(self) -> None:
        self.gone = True

    def cancelled(self) -> bool:
        return self.gone

    def when(self) -> float:
        return self.when_s


class SimulatedLoop(asyncio.AbstractEventLoop):
    """As much of an event loop as coroutines, futures, tasks and time-outs need; there is no I/O and no thread."""

    def __init__(self) -> None:
        self._ready: deque[_Step] = deque()
        self._timers: list[tuple[float, int, _Step]] = []
        self._now_s = 0.0
        self._order = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self.steps = 0
        self.errors: list[str] = []  #: what no task has dealt with

    # ── what asyncio calls ───────────────────────────────────────────────────────────────────────────────────────────

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> _Step:
        """See asyncio."""
        step = _Step(callback, args, contextvars.copy_context() if context is None else context, 0.0)
        self._ready.append(step)
        return step

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> _Step:
        """See asyncio."""
        when_s = self._now_s + delay
        step = _Step(callback, args, contextvars.copy_context() if context is None else context, when_s)
        self._order += 1
        heapq.heappush(self._timers, (when_s, self._order, step))
        return step

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> _Step:
        """See asyncio."""
        return self.call_later(when - self._now_s, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """See asyncio."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """See asyncio."""
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        return task

    def get_debug(self) -> bool:
        """See asyncio."""
        return False

    def is_running(self) -> bool:
        """See asyncio."""
        return True

    def is_closed(self) -> bool:
        """See asyncio."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """See asyncio."""
        self.errors.append(str(context.get("exception") or context.get("message")))

    # ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Until this is done. Raises what it raises, and RuntimeError when it can never be done."""
        outer = asyncio._get_running_loop()  # noqa: SLF001 - there is no public way
        asyncio._set_running_loop(self)  # noqa: SLF001
        try:
            task = self.create_task(work)
            self._run_until(task)
            return task.result()
        finally:
            self._close()
            asyncio._set_running_loop(outer)  # noqa: SLF001

    def requeue(self, steps: list[_Step]) -> None:
        """Steps that were held back."""
        self._ready.extend(steps)

    def _run_until(self, task: asyncio.Task[Any]) -> None:
        ready = self._ready
        while not task.done():
            if not ready:
                self._advance()
            step = ready.popleft()
            if step.gone:
                continue
            context = step.context
            owner = context.get(OWNER)
            if owner is None or owner.takes(step):
                self.steps += 1
                if self.steps > STEPS_MAX:
                    raise RuntimeError(f"it spins: {STEPS_MAX} steps, and no end")
                context.run(step.callback, *step.args)

    def _advance(self) -> None:
        timers, ready = self._timers, self._ready
        while timers:
            when_s, _, step = heapq.heappop(timers)
            if not step.gone:
                break
        else:
            raise RuntimeError("nothing is left to do, and it is not done")
        self._now_s = now_s = max(self._now_s, when_s)
        ready.append(step)
        while timers and timers[0][0] <= now_s:
            ready.append(heapq.heappop(timers)[2])

    def _close(self) -> None:
        """Forget every task without a word; the processes they belonged to are gone."""
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001 - meant to be pending
                _forget(task)
        self._tasks.clear()
        self._ready.clear()
        self._timers.clear()


def _forget(task: asyncio.Task[Any]) -> None:
    # It may wait in a `finally` block for something that nobody answers any more.
    with contextlib.suppress(RuntimeError):
        task.get_coro().close()

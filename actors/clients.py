"""Actors as ports: the key manager and the signer pool as the stages see them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline.assignment.records import Assignment, StreamRecord
from pipeline.errors import ActorBroken, OncesignError, RuntimeFault
from pipeline.ports import Assigned, AssignReply, AssignRequest, SignedBatch
from pipeline.stages.loops import cancel
from pipeline.stream import Stream

ANSWER_MARGIN_S: Final = 10.0
"""How much longer than its own deadline an actor may take to answer."""

SIGN_TIMEOUT_S: Final = 120.0
SILENT_S: Final = 3.0
"""A signer that has not answered for so long is asked how it is, and is silent when it does not answer that either."""

LET_GO_TIMEOUT_S: Final = 20.0
LOOK_S: Final = 0.5


async def ask(reference: Any, timeout_s: float, who: str) -> Any:
    """Wait for an actor's answer.

    Raises the actor's own OncesignError, else ActorBroken when it will never answer, RuntimeFault when it does not now.
    """
    try:
        return await asyncio.wait_for(reference, timeout_s)
    except TimeoutError as error:
        raise RuntimeFault(f"{who} gave no answer in {timeout_s:.0f} s.") from error
    except RayTaskError as error:
        if isinstance(error.cause, OncesignError):
            raise error.cause from None
        raise RuntimeFault(f"{who} failed: {error.cause}") from error
    except RayActorError as error:
        if error.actor_init_failed:
            raise ActorBroken(f"{who} cannot be made: {str(error).strip().splitlines()[-1]}.") from error
        raise RuntimeFault(f"{who} is down.") from error
    except RayError as error:
        raise RuntimeFault(f"{who} could not be asked: {type(error).__name__}.") from error


class RemoteKeyManager:
    """Fulfils ports.Assigner, stages.reader.Streams and stages.sweeper.Desk over the key manager actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def assign(self, requests: Sequence[AssignRequest], deadline_s: float) -> Sequence[AssignReply]:
        """See ports.Assigner."""
        replies: Sequence[AssignReply] = await self._ask("assign", deadline_s, list(requests), deadline_s)
        return replies

    async def release(self, batches: Sequence[tuple[Stream, int]], worker: str) -> None:
        """See ports.Assigner."""
        await self._ask("release", 0.0, list(batches), worker)

    async def halt(self, stream: Stream, reason: str) -> None:
        """See ports.Assigner."""
        await self._ask("halt", 0.0, stream, reason)

    async def open_stream(self, record: StreamRecord) -> StreamRecord:
        """See stages.reader.Streams."""
        opened: StreamRecord = await self._ask("open_stream", 0.0, record)
        return opened

    async def assignments(self) -> Sequence[Assignment]:
        """See stages.sweeper.Desk."""
        found: Sequence[Assignment] = await self._ask("assignments", 0.0)
        return found

    async def streams(self) -> Sequence[StreamRecord]:
        """See stages.preparation.StreamList."""
        found: Sequence[StreamRecord] = await self._ask("streams", 0.0)
        return found

    async def _ask(self, method: str, deadline_s: float, *args: Any) -> Any:
        reference = getattr(self._actor, method).remote(*args)
        return await ask(reference, deadline_s + ANSWER_MARGIN_S, "the key manager")


class SignerPool:
    """Fulfils ports.Signers: the signer with the fewest batches gets the next, up to a bound for each.

    One that is down, or silent, gets nothing until it answers again: Ray keeps what is asked of an actor whose node is
    gone, until there is another node for it.
    """

    def __init__(self, actors: Mapping[str, Any], batches_per_signer: int) -> None:
        """`actors` by their names."""
        self._actors = dict(actors)
        self._busy: Counter[str] = Counter()
        self._silent: dict[str, asyncio.Task[None]] = {}
        self._bound = batches_per_signer
        self._changed = asyncio.Event()

    def slots(self) -> int:
        """Batches that the pool works on at once."""
        return len(self._actors) * self._bound

    def use(self, actors: Mapping[str, Any]) -> None:
        """These from here on."""
        self._actors = dict(actors)
        self._changed.set()

    async def let_go(self, names: Collection[str]) -> None:
        """Returns when these, which are no longer used, are done with what they have, or after LET_GO_TIMEOUT_S."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LET_GO_TIMEOUT_S):
                while any(self._busy[name] for name in names):
                    await self._change()

    async def sign(self, batch: bytes, assigned: Assigned) -> SignedBatch:
        """See ports.Signers. A dead signer answers RuntimeFault; the caller signs again, perhaps elsewhere."""
        name, actor = await self._chosen()
        self._busy[name] += 1
        try:
            return await self._signed(name, actor, batch, assigned)
        except RuntimeFault:
            if name not in self._silent:
                self._silent[name] = asyncio.create_task(self._await_answer(name))
            raise
        finally:
            self._busy[name] -= 1
            self._changed.set()

    async def close(self) -> None:
        """Wait for nobody any more."""
        await cancel(self._silent.values())

    async def _signed(self, name: str, actor: Any, batch: bytes, assigned: Assigned) -> SignedBatch:
        call = asyncio.create_task(ask(actor.sign.remote(batch, assigned), SIGN_TIMEOUT_S, name))
        try:
            while not (await asyncio.wait([call], timeout=SILENT_S))[0]:
                await _answers(actor, SILENT_S, name)
            signed: SignedBatch = await call
            return signed
        finally:
            call.cancel()

    async def _await_answer(self, name: str) -> None:
        """As long as it is in use: where its node is gone, until there is another."""
        while (actor := self._actors.get(name)) is not None:
            try:
                await _answers(actor, SIGN_TIMEOUT_S, name)
            except RuntimeFault:
                await asyncio.sleep(LOOK_S)
            else:
                break
        del self._silent[name]
        self._changed.set()

    async def _chosen(self) -> tuple[str, Any]:
        while True:
            name = min(self._actors.keys() - self._silent.keys(), key=self._load, default="")
            if name and self._busy[name] < self._bound:
                return name, self._actors[name]
            await self._change()

    def _load(self, name: str) -> tuple[int, str]:
        return self._busy[name], name

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


async def _answers(actor: Any, timeout_s: float, name: str) -> None:
    """Raises RuntimeFault when it does not."""
    try:
        await ask(actor.status.remote(), timeout_s, name)
    except RuntimeFault:
        raise
    except OncesignError:
        return  # it cannot sign, and says so

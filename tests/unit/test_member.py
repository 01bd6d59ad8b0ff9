"""What the supervisor makes of an actor that does not answer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from actors.host import StageState, StageStatus
from actors.member import Member, nothing
from pipeline.errors import ActorBroken, OncesignError

RUNS = StageStatus(StageState.RUNNING, 1, ray_node="")


class Actor:
    """Answers, or not, as the test says."""

    def __init__(self, answer: StageStatus | RayError) -> None:
        self.answer = answer
        self.status = SimpleNamespace(remote=self._status)

    def _status(self) -> Any:
        answered: asyncio.Future[StageStatus] = asyncio.get_running_loop().create_future()
        if isinstance(self.answer, RayError):
            answered.set_exception(self.answer)
        else:
            answered.set_result(self.answer)
        return answered


def constructor_failed() -> RayError:
    """As Ray tells it: with the stack of the constructor."""
    error = ActorDiedError()
    error.error_msg = "The actor died because of an error raised in its creation task\nImportError: no numba"
    error._actor_init_failed = True
    return error


async def looked_at(answer: StageStatus | RayError) -> tuple[Member, Actor]:
    actor = Actor(answer)
    member = Member("signer-0", actor, nothing)
    await member.look(0.0)
    return member, actor


async def test_one_whose_constructor_fails_ends_the_pipeline() -> None:
    member, _ = await looked_at(constructor_failed())
    assert member.status is not None
    assert member.status.fatal
    assert isinstance(member.status.error, ActorBroken)
    assert "signer-0 cannot be made: ImportError: no numba." in str(member.status.error)
    assert not member.answered


@pytest.mark.parametrize("error", [ActorDiedError(), ActorUnavailableError("its node is gone", None)])
async def test_one_that_is_down_is_asked_again(error: RayError) -> None:
    member, actor = await looked_at(error)
    assert member.status is None
    assert member.is_due(0.1)
    actor.answer = RUNS
    await member.look(0.1)
    assert member.status == RUNS
    assert member.answered


async def test_one_that_ran_and_cannot_be_made_again_ends_the_pipeline() -> None:
    member, actor = await looked_at(RUNS)
    actor.answer = constructor_failed()
    await member.look(10.0)
    assert member.status is not None
    assert isinstance(member.status.error, OncesignError)
    assert member.status.fatal

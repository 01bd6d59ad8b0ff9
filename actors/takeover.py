"""How a job on a cluster finds the pipeline of an earlier one, and replaces it when it is of another kind.

A pipeline with the same stamp is followed as it is. One of other code or other settings is drained and ended, the key
manager last, and made anew: a batch that has a key keeps it, whoever signs it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from actors import crew, names
from actors.clients import ask
from actors.key_manager import NAME as KEY_MANAGER
from actors.names import CALL_TIMEOUT_S, START_TIMEOUT_S, Group
from actors.stamp import stamp
from actors.supervisor import CLAIM_S, NAME, SupervisorActor
from pipeline.errors import NotLeader, RuntimeFault
from pipeline.journal import Journal
from pipeline.settings import Settings

journal = Journal(__name__, "takeover")

DRAIN_TIMEOUT_S: Final = 90.0
FOLLOW_TIMEOUT_S: Final = CLAIM_S + 5.0
RETURN_TIMEOUT_S: Final = 120.0
"""A pod that takes the place of a lost one is there after 20 to 60 s, on a busy machine."""

LOOK_S: Final = 1.0
CPUS: Final = 0.25
CONCURRENCY: Final = 16


async def supervisor(settings: Settings, job: str, *, verify: bool) -> Any:
    """The supervisor of the deployment, found or made, which this job follows from here on.

    Raises NotLeader while another job follows it, RuntimeFault.
    """
    wanted = f"{stamp(settings)}-{'verified' if verify else 'unverified'}"
    if NAME in names.running(settings.deployment):
        found = names.find(NAME, settings.deployment)
        await _follow(found, job)
        if await ask(found.stamp.remote(), CALL_TIMEOUT_S, NAME) == wanted:
            return found
        await _drain(found)
    await _end_all(settings, keep_own_kind=True)
    members = await crew.create(settings, verify=verify)
    shape = names.options(settings, NAME, Group.IO, cpus=CPUS, concurrency=CONCURRENCY)
    made = SupervisorActor.options(**shape).remote(settings, members, wanted)  # type: ignore[attr-defined] # as in crew
    await ask(made.follow.remote(job), START_TIMEOUT_S, NAME)
    return made


async def _follow(found: Any, job: str) -> None:
    """Wait for one whose node is gone to come back, and for the claim of a job that is gone to end."""
    began_s = time.monotonic()
    while True:
        try:
            await ask(found.follow.remote(job), START_TIMEOUT_S, NAME)
        except (RuntimeFault, NotLeader) as error:
            limit_s = FOLLOW_TIMEOUT_S if isinstance(error, NotLeader) else RETURN_TIMEOUT_S
            if time.monotonic() - began_s > limit_s:
                raise
            await asyncio.sleep(LOOK_S)
        else:
            return


async def end(settings: Settings) -> None:
    """Drain the pipeline and end every actor of the deployment, the key manager included. Raises RuntimeFault."""
    if NAME in names.running(settings.deployment):
        await _drain(names.find(NAME, settings.deployment))
    await _end_all(settings, keep_own_kind=False)


async def _drain(found: Any) -> None:
    """As far as it gets: what a pipeline that does not answer leaves behind is taken up like after a crash."""
    try:
        await ask(found.drain.remote(), DRAIN_TIMEOUT_S, NAME)
    except RuntimeFault as error:
        journal.failed("the pipeline is ended without being drained", error=error)


async def _end_all(settings: Settings, *, keep_own_kind: bool) -> None:
    """The key manager last, and drained; one of our own code and settings goes on if `keep_own_kind`."""
    present = names.running(settings.deployment)
    keeps = False
    if KEY_MANAGER in present and keep_own_kind:
        manager = names.find(KEY_MANAGER, settings.deployment)
        keeps = await ask(manager.stamp.remote(), START_TIMEOUT_S, KEY_MANAGER) == stamp(settings)
    for name in present:
        if name != KEY_MANAGER:
            names.end(name, settings.deployment)
    if KEY_MANAGER in present and not keeps:
        manager = names.find(KEY_MANAGER, settings.deployment)
        await ask(manager.drain.remote(), CALL_TIMEOUT_S, KEY_MANAGER)
        names.end(KEY_MANAGER, settings.deployment)

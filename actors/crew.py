"""The actors of one pipeline, made all at once and before anything else, so that their processes start side by side.

They belong to the driver that makes them: a supervisor that dies leaves them at work, and the next one goes on with
them. The key manager is detached: it may outlive the driver, and the next driver finds it. On a cluster with node
groups (ONCESIGN_POOL__PLACED) all of them are, so that signing goes on when the driver and the head are gone; the next
driver finds the supervisor, and takes it over if it has the same stamp.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from actors import composition
from actors.batch_consumer import BatchConsumerActor
from actors.batch_reader import BatchReaderActor
from actors.broadcaster import NAME as BROADCASTER
from actors.broadcaster import BroadcasterActor
from actors.key_manager import NAME as KEY_MANAGER
from actors.key_manager import KeyManagerActor
from actors.names import Group, options
from actors.signer import SignerActor
from actors.stamp import stamp
from actors.tx_verifier import TxVerifierActor
from pipeline.errors import RuntimeFault
from pipeline.settings import Settings

NAME_TRIES: Final = 60
NAME_WAIT_S: Final = 0.5

SIGNER_CPUS: Final = 1.0
OTHER_CPUS: Final = 0.25
KEY_MANAGER_CONCURRENCY: Final = 1000
"""Consumers that wait for a key each hold a call."""


@dataclass(frozen=True, slots=True)
class Crew:
    """Handles. Signers by name, readers in the order of composition.reader_places, consumers in that of their slots."""

    key_manager: Any
    signers: dict[str, Any]
    readers: list[Any]
    consumers: list[Any]
    verifier: Any | None
    broadcaster: Any | None


async def create(settings: Settings, *, verify: bool) -> Crew:
    """Make the actors; none has work yet. Raises RuntimeFault when those of another job do not go away."""
    slots = range(composition.signer_count(settings))
    signers = {signer_name(slot): await signer(settings, slot) for slot in slots}
    readers = [
        await _actor(settings, BatchReaderActor, place.name, Group.IO, place.name)
        for place in composition.reader_places(settings)
    ]
    consumers = [
        await _actor(settings, BatchConsumerActor, f"consumer-{slot}", Group.IO, slot)
        for slot in range(settings.pool.consumers)
    ]
    verifier = await _actor(settings, TxVerifierActor, "tx-verifier", Group.IO) if verify else None
    broadcaster = None
    if settings.broadcast.rpc_file is not None:
        broadcaster = await _actor(settings, BroadcasterActor, BROADCASTER, Group.IO)
    return Crew(key_manager(settings), signers, readers, consumers, verifier, broadcaster)


def signer_name(slot: int) -> str:
    """Of the signer in that slot."""
    return f"signer-{slot}"


async def signer(settings: Settings, slot: int) -> Any:
    """Make one. Raises RuntimeFault."""
    return await _actor(settings, SignerActor, signer_name(slot), Group.SIGNERS, slot, settings)


def key_manager(settings: Settings) -> Any:
    """The key manager of the deployment, made if there is none."""
    shape = options(settings, KEY_MANAGER, Group.KEY_MANAGER, cpus=OTHER_CPUS, concurrency=KEY_MANAGER_CONCURRENCY)
    shape |= {"lifetime": "detached", "get_if_exists": True}
    made = KeyManagerActor.options(**shape)  # type: ignore[attr-defined] # ray's decorator hides it
    return made.remote(settings, stamp(settings))


async def _actor(settings: Settings, kind: Any, name: str, group: Group, *args: Any) -> Any:
    """Make a named actor; the name may still belong to one of a job that has just died."""
    cpus = SIGNER_CPUS if group is Group.SIGNERS else OTHER_CPUS
    for _ in range(NAME_TRIES):
        try:
            return kind.options(**options(settings, name, group, cpus=cpus)).remote(*args)
        except ValueError:
            await asyncio.sleep(NAME_WAIT_S)
    raise RuntimeFault(f"an actor called {name} of another job still runs.", hint="Stop that job, or wait for it.")

"""The actors of one pipeline, made all at once and before anything else, so that their processes start side by side.

They belong to the driver that makes them: a supervisor that dies leaves them at work, and the next one goes on with
them. Only the key manager is detached: it may outlive the driver, and the next driver finds it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from actors import composition
from actors.batch_consumer import BatchConsumerActor
from actors.batch_reader import BatchReaderActor
from actors.key_manager import NAME as KEY_MANAGER
from actors.key_manager import KeyManagerActor
from actors.names import namespace, options
from actors.signer import SignerActor
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
    """Handles. Readers in the order of composition.reader_places, signers and consumers in that of their slots."""

    key_manager: Any
    signers: list[Any]
    readers: list[Any]
    consumers: list[Any]
    verifier: Any | None


async def create(settings: Settings, *, verify: bool) -> Crew:
    """Make the actors; none has work yet. Raises RuntimeFault when those of another job do not go away."""
    signers = [
        await _actor(settings, SignerActor, f"signer-{slot}", SIGNER_CPUS, slot, settings)
        for slot in range(composition.signer_count(settings))
    ]
    readers = [
        await _actor(settings, BatchReaderActor, place.name, OTHER_CPUS, place.name)
        for place in composition.reader_places(settings)
    ]
    consumers = [
        await _actor(settings, BatchConsumerActor, f"consumer-{slot}", OTHER_CPUS, slot)
        for slot in range(settings.pool.consumers)
    ]
    verifier = await _actor(settings, TxVerifierActor, "tx-verifier", OTHER_CPUS) if verify else None
    return Crew(_key_manager(settings), signers, readers, consumers, verifier)


def _key_manager(settings: Settings) -> Any:
    detached = options(KEY_MANAGER, cpus=OTHER_CPUS, concurrency=KEY_MANAGER_CONCURRENCY) | {
        "lifetime": "detached",
        "get_if_exists": True,
        "namespace": namespace(settings.deployment),
    }
    return KeyManagerActor.options(**detached).remote(settings)  # type: ignore[attr-defined] # ray's decorator hides it


async def _actor(settings: Settings, kind: Any, name: str, cpus: float, *args: Any) -> Any:
    """Make a named actor; the name may still belong to one of a job that has just died."""
    for _ in range(NAME_TRIES):
        try:
            return kind.options(**options(name, cpus=cpus), namespace=namespace(settings.deployment)).remote(*args)
        except ValueError:
            await asyncio.sleep(NAME_WAIT_S)
    raise RuntimeFault(f"an actor called {name} of another job still runs.", hint="Stop that job, or wait for it.")

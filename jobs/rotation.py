"""The pool moves from one key-encryption key to another, while signing goes on.

    1. FILE.next is there, or is made         new keys are sealed by it, what FILE sealed still opens
    2. every signer has it                     asked of each, so that none meets a key which it cannot open
    3. every key is sealed by it               a copy to Postgres, then etcd; both KEKs open their own meanwhile
    4. FILE becomes FILE.previous, FILE.next becomes FILE

A crash at any point leaves every key readable by what is in the three files; the same command goes on. On a cluster the
files are a Secret that only an operator can change: there the command does 2 and 3.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from jobs.desk import connect, etcd_view, key_desk, placed_desk, running_head
from jobs.output import say
from pipeline.custody.kek_ring import KekRing, next_of, previous_of
from pipeline.custody.sealing import Kek
from pipeline.errors import RuntimeFault, UsageError
from pipeline.settings import Settings
from pipeline.stages import intake

SIGNERS_WAIT_S: Final = 120.0
"""A kubelet brings a changed Secret to its pods within a minute or two."""

LOOK_S: Final = 1.0
PASSES_MAX: Final = 5


class Rotation:
    """One command."""

    def __init__(self, settings: Settings, store: str = "", key: str = "") -> None:
        """A new KEK is wrapped by `key` of a key store, if one is named."""
        self._settings = settings
        self._store, self._key = store, key
        self._path = settings.kek_path

    async def run(self) -> dict[str, Any]:
        """What was done. Raises UsageError, SecretFileError, RuntimeFault, DependencyDown."""
        return await (self._on_cluster() if self._settings.pool.placed else self._here())

    async def _here(self) -> dict[str, Any]:
        before = Kek.load(self._path)
        self._require_room(before)
        if not next_of(self._path).exists():
            made = make_kek(next_of(self._path), self._store, self._key)
            say(f"made KEK {made.id.hex()} in {next_of(self._path)}; keep a copy of it")
        keks = KekRing(self._path)
        await self._await_signers(keks.id.hex())
        resealed = await _until_none(partial(self._reseal, keks))
        self._turn()
        say(f"KEK {keks.id.hex()} is in {self._path} now, the one from before in {previous_of(self._path)}")
        return {"kek": keks.id.hex(), "before": before.id.hex(), "resealed": resealed}

    async def _on_cluster(self) -> dict[str, Any]:
        desk = placed_desk(self._settings)
        known = await desk.keks()
        if len(known) == 1:
            raise UsageError(
                "the key manager has one KEK only.", hint="Add the new one to the Secret: see docs/operations.md"
            )
        await self._await_signers(known[0])
        resealed = await _until_none(desk.reseal_all)
        say(f"every key is sealed by KEK {known[0]}. Next: make it the Secret's `kek`: see docs/operations.md")
        return {"kek": known[0], "before": known[1], "resealed": resealed}

    def _require_room(self, current: Kek) -> None:
        """The KEK of the last rotation is not overwritten; one that was interrupted has left the current one there."""
        previous = previous_of(self._path)
        if previous.exists() and Kek.load(previous).id != current.id:
            raise UsageError(
                f"{previous} is still there.",
                hint="Backups from before the last rotation need it: move it to where you keep such, then run this.",
            )

    async def _reseal(self, keks: KekRing) -> int:
        async with etcd_view(self._settings) as view:
            keys = intake.resealed(view, keks)
        if keys:
            async with key_desk(self._settings) as desk:
                await desk.reseal(keys)
        return len(keys)

    def _turn(self) -> None:
        """At no moment is there no FILE."""
        previous = previous_of(self._path)
        if not previous.exists():
            os.link(self._path, previous)
        next_of(self._path).replace(self._path)
        _sync(self._path.parent)

    async def _await_signers(self, kek: str) -> None:
        deadline_s = time.monotonic() + SIGNERS_WAIT_S
        while without := await self._signers_without(kek):
            if time.monotonic() > deadline_s:
                raise RuntimeFault(f"{without[0]} does not have KEK {kek} after {SIGNERS_WAIT_S:.0f} s.")
            say(f"waits for {len(without)} signers to have KEK {kek}")
            await asyncio.sleep(LOOK_S)

    async def _signers_without(self, kek: str) -> list[str]:
        if self._settings.pool.placed:
            connect(self._settings)
        elif not running_head(self._settings):
            return []
        from actors import names
        from actors.clients import ask

        found = [name for name in names.running(self._settings.deployment) if name.startswith("signer")]
        asked = {name: names.find(name, self._settings.deployment).keks.remote() for name in found}
        known = {name: await ask(reference, names.CALL_TIMEOUT_S, name) for name, reference in asked.items()}
        return [name for name, keks in known.items() if kek not in keks]


def make_kek(path: Path, store: str, key: str) -> Kek:
    """A new KEK in a file that must not exist. Raises UsageError, SecretFileError, KeyStoreUnavailable."""
    if bool(store) != bool(key):
        raise UsageError("--store and --key belong together.")
    return Kek.wrapped(path, store, key) if store else Kek.create(path)


async def _until_none(reseal: Callable[[], Awaitable[int]]) -> int:
    """How many keys were sealed anew, by the time that a pass found none. Raises RuntimeFault."""
    resealed = 0
    for _ in range(PASSES_MAX):
        found = await reseal()
        if not found:
            return resealed
        resealed += found
    raise RuntimeFault("keys keep being sealed by the KEK from before.", hint="Who else imports keys?")


def _sync(folder: Path) -> None:
    """Make renames in it durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

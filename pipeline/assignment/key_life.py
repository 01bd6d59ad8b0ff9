"""What an operator does with the keys of a pool: import, disable, enable, seal anew, retire.

Each is one etcd transaction per group, written by the key manager beside its assignments. Postgres has its copy of a
sealed key, and knows of a retirement, before etcd does: etcd may be lost, with what it alone has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from pipeline.assignment.administration import (
    Resealed,
    can_sign,
    disabled,
    enabled,
    placed_apart,
    plan_change,
    plan_import,
    plan_reseal,
    plan_retire,
    require_importable,
    require_retirable,
    retired_error,
)
from pipeline.assignment.archive import KeptKey
from pipeline.assignment.kept import kept_of
from pipeline.assignment.paths import Paths
from pipeline.assignment.plan import Plan
from pipeline.assignment.view import Guard, View
from pipeline.errors import KeyNotInPool, UsageError
from pipeline.ports import Clock, Ledger

GROUP_MAX: Final = 32
"""Keys changed, or batches released, in one etcd transaction: at most three writes each."""


class KeyLife(ABC):
    """The part of the key manager that changes its pool."""

    _ledger: Ledger
    _clock: Clock
    _paths: Paths

    @abstractmethod
    def view(self) -> View:
        """All that etcd holds, as it is believed to be. Raises NotLeader."""

    @abstractmethod
    async def _do(self, plan: Callable[[View, Guard], Plan]) -> None:
        """Plan and write, in turn with everything else."""

    async def import_keys(self, keys: Sequence[tuple[int, str, bytes, int]]) -> None:
        """(chain id, address, sealed key, start nonce) each, in groups.

        Raises UsageError for a key that is there, was retired, or is another deployment's.
        """
        require_importable(self.view(), keys, self._paths.deployment, await self._ledger.retired_keys())
        await self._ledger.keep_keys([KeptKey(*key) for key in keys])
        for start in range(0, len(keys), GROUP_MAX):
            part, now_ms = keys[start : start + GROUP_MAX], self._clock.unix_ms()
            await self._do(partial(plan_import, keys=part, now_ms=now_ms))

    async def disable(self, chain_id: int, address: str) -> None:
        """Lend this key no more; one that is locked now, after its release. Raises UsageError."""
        now_ms = self._clock.unix_ms()
        await self._do(partial(plan_change, chain_id=chain_id, address=address, change=disabled, now_ms=now_ms))

    async def enable(self, chain_id: int, address: str) -> None:
        """Lend this key again. Raises UsageError."""
        view, now_ms = self.view(), self._clock.unix_ms()
        if (chain_id, address) in await self._ledger.retired_keys():
            raise retired_error(address)
        if (chain_id, address) in view.keys and not can_sign(view, address):
            raise UsageError(f"the private key of {address} was lost.", hint="Run: oncesign keys import")
        await self._do(partial(plan_change, chain_id=chain_id, address=address, change=enabled, now_ms=now_ms))

    async def set_apart(self, chain_id: int, address: str, *, apart: bool) -> None:
        """Lend this key for blob transactions alone; with `apart` False, for all others alone. Raises UsageError."""
        if (chain_id, address) not in self.view().keys:
            raise KeyNotInPool(chain_id, address)
        await self._ledger.set_apart(chain_id, address, apart=apart)
        change, now_ms = partial(placed_apart, apart=apart), self._clock.unix_ms()
        await self._do(partial(plan_change, chain_id=chain_id, address=address, change=change, now_ms=now_ms))

    async def reseal(self, keys: Sequence[Resealed]) -> None:
        """Put other sealed bytes in the place of those that are there; what has changed since is left as it is."""
        after = {key.address: key.after for key in keys}
        copies = [KeptKey(k.chain_id, k.address, after[k.address], k.start_nonce) for k in kept_of(self.view(), after)]
        await self._ledger.keep_keys(copies)
        for start in range(0, len(keys), GROUP_MAX):
            await self._do(partial(plan_reseal, keys=keys[start : start + GROUP_MAX]))

    async def retire(self, chain_id: int, address: str, *, destroy: bool) -> None:
        """Lend a disabled key never again; with `destroy`, delete its sealed private key from etcd and Postgres.

        Raises KeyNotInPool, UsageError for a key that is not disabled.
        """
        require_retirable(self.view(), chain_id, address, destroy=destroy)
        await self._ledger.retire_key(chain_id, address)
        if destroy:
            await self._ledger.destroy_key(chain_id, address)
        now_ms = self._clock.unix_ms()
        await self._do(partial(plan_retire, chain_id=chain_id, address=address, destroy=destroy, now_ms=now_ms))

"""Who may write: the leader record, its lease for liveness, its create_revision as the fence for safety.

A lease can run out while its holder is paused, so it proves nothing by itself; every write compares the fence
(etcd docs: "lock and lease"; design rule 4).
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final

from pipeline.assignment.paths import Paths
from pipeline.assignment.records import Leader
from pipeline.errors import AmbiguousTxn, NotLeader, StoreUnavailable
from pipeline.journal import Journal
from pipeline.ports import Clock, Compare, KeyValue, Store, Txn
from pipeline.settings import EtcdSettings

journal = Journal(__name__, "key-manager")

CLAIM_PAUSE_S: Final = 0.25
CLAIM_MARGIN_S: Final = 3.0
"""How much longer than a dead leader's lease a claim waits."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A won leadership."""

    value: bytes
    fence: int
    lease: int


class Leadership:
    """Claims, keeps and gives up the leader record."""

    def __init__(self, store: Store, paths: Paths, clock: Clock, settings: EtcdSettings) -> None:
        self._store = store
        self._paths = paths
        self._clock = clock
        self._settings = settings

    async def claim(self, me: Leader) -> Claim:
        """Wait for a dead leader's lease, then lead. Raises NotLeader when another lives, StoreUnavailable."""
        deadline_s = self._clock.monotonic_s() + self._settings.lease_ttl_s + CLAIM_MARGIN_S
        lease = await self._store.grant_lease(self._settings.lease_ttl_s)
        while True:
            claim, other = await self._try(me, lease)
            if claim is not None:
                return claim
            if self._clock.monotonic_s() > deadline_s:
                await self._store.revoke_lease(lease)
                raise _other_leads(other)
            await self._clock.sleep(CLAIM_PAUSE_S)
            if not await self._store.keep_alive(lease):
                lease = await self._store.grant_lease(self._settings.lease_ttl_s)

    async def _try(self, me: Leader, lease: int) -> tuple[Claim | None, KeyValue | None]:
        value = me.to_json()
        txn = Txn(
            compares=(Compare(self._paths.leader, create_revision=0),),
            puts=((self._paths.leader, value),),
            gets=(self._paths.leader,),
            lease=lease,
        )
        try:
            result = await self._store.commit(txn)
        except AmbiguousTxn:
            return None, None  # the next try sees whether it was applied
        if result.succeeded:
            return Claim(value, result.revision, lease), None
        found = result.reads[self._paths.leader]
        if found is not None and found.value == value:  # an earlier try of ours, whose answer was lost
            return Claim(value, found.create_revision, lease), None
        return None, found

    async def keep(self, claim: Claim) -> None:
        """Keep the lease alive; returns when it is certainly lost.

        While etcd does not answer nothing can be written either, so only its own word ends the leadership.
        """
        while True:
            await self._clock.sleep(self._settings.keep_alive_s)
            try:
                if not await self._store.keep_alive(claim.lease):
                    return
            except StoreUnavailable as error:
                journal.failed("lease not kept alive", error=error)

    async def resign(self, claim: Claim) -> None:
        """Let the next one lead at once; an etcd that is away will let the lease run out instead."""
        try:
            await self._store.revoke_lease(claim.lease)
        except StoreUnavailable as error:
            journal.failed("not resigned", error=error)


def _other_leads(found: KeyValue | None) -> NotLeader:
    if found is None:
        return NotLeader("the leader record could not be claimed.")
    leader = Leader.from_json(found.value)
    since = dt.datetime.fromtimestamp(leader.since_unix_ms / 1000, dt.UTC).isoformat(timespec="seconds")
    return NotLeader(
        f"another key manager holds this deployment: process {leader.pid} on {leader.node}, since {since}.",
        hint="One pipeline runs per deployment. Stop the other, or set ONCESIGN_DEPLOYMENT.",
    )

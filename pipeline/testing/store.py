"""etcd in memory: revisions, transactions, leases on a clock that a test owns, and the faults of a network.

One `TwinEtcd` is the server; every `TwinStore` is a client of it, so that two key managers can meet on one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, TypeVar

from pipeline.errors import AmbiguousTxn, OncesignError, StoreUnavailable
from pipeline.ports import Clock, Compare, KeyValue, Txn, TxnResult
from pipeline.testing.network import InstantNetwork, Network, Request, Unanswered

T = TypeVar("T")

OPS_MAX: Final = 128
"""etcd's own default for --max-txn-ops, for each of a transaction's three lists."""


TIMEOUT_S: Final = 6.0
"""For one call, its tries against other members included."""


class Fault(StrEnum):
    """What happens to one transaction on its way."""

    LOST_REPLY = "applied, and the answer is lost"
    LOST_REQUEST = "sent, and it never arrives"
    LATE = "sent, no answer in time; applied when the server is told to `deliver`"
    NOT_SENT = "no connection"


@dataclass(frozen=True, slots=True)
class _Stored:
    kv: KeyValue
    lease: int


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    ends_s: float


@dataclass(slots=True)
class TwinEtcd:
    """The server. A copy made by `backup` can be put back by `restore`."""

    clock: Clock
    revision: int = 1
    stored: dict[str, _Stored] = field(default_factory=dict)
    leases: dict[int, _Lease] = field(default_factory=dict)
    late: deque[Txn] = field(default_factory=deque)
    applied: int = 0  #: transactions whose THEN branch ran
    down: bool = False
    restores: int = 0

    def commit(self, txn: Txn) -> TxnResult:
        """Apply a transaction at once. Raises OncesignError for one that etcd refuses."""
        _refuse_malformed(txn)
        self.expire()
        if txn.lease and txn.lease not in self.leases:
            raise StoreUnavailable("etcdserver: requested lease not found")
        if not all(self._holds(compare) for compare in txn.compares):
            reads = {key: self.get(key) for key in txn.gets}
            return TxnResult(succeeded=False, revision=self.revision, reads=reads)
        self._write(txn)
        return TxnResult(succeeded=True, revision=self.revision)

    def get(self, key: str) -> KeyValue | None:
        """One key."""
        found = self.stored.get(key)
        return found.kv if found else None

    def under(self, prefix: str) -> list[KeyValue]:
        """All keys below a prefix, in order."""
        return [self.stored[key].kv for key in sorted(self.stored) if key.startswith(prefix)]

    def grant(self, ttl_s: int) -> int:
        """A new lease."""
        lease = max(self.leases, default=0) + 1 + self.revision
        self.leases[lease] = _Lease(ttl_s, self.clock.monotonic_s() + ttl_s)
        return lease

    def keep_alive(self, lease: int) -> bool:
        """Its time starts anew, unless it is over."""
        held = self.leases.get(lease)
        if held is None:
            return False
        held.ends_s = self.clock.monotonic_s() + held.ttl_s
        return True

    def expire(self) -> None:
        """Drop the leases whose time is over, and their keys with them."""
        for lease in [lease for lease, held in self.leases.items() if held.ends_s <= self.clock.monotonic_s()]:
            self.revoke(lease)

    def revoke(self, lease: int) -> None:
        """Drop one lease and its keys, at one revision."""
        self.leases.pop(lease, None)
        keys = [key for key, stored in self.stored.items() if stored.lease == lease]
        self.revision += bool(keys)
        for key in keys:
            del self.stored[key]

    def deliver(self) -> list[TxnResult]:
        """The transactions that were late arrive now."""
        results = []
        while self.late:
            results.append(self.commit(self.late.popleft()))
        return results

    def backup(self) -> TwinEtcd:
        """As it is now."""
        leases = {lease: replace(held) for lease, held in self.leases.items()}
        return replace(self, stored=dict(self.stored), leases=leases, late=deque())

    def restore(self, backup: TwinEtcd) -> None:
        """Go back to a backup: revisions too; leases start anew (etcd docs: disaster recovery)."""
        self.restores += 1
        self.revision, self.stored = backup.revision, dict(backup.stored)
        now_s = self.clock.monotonic_s()
        self.leases = {lease: replace(held, ends_s=now_s + held.ttl_s) for lease, held in backup.leases.items()}

    def _holds(self, compare: Compare) -> bool:
        kv = self.get(compare.key)
        if compare.value is not None:
            return kv is not None and kv.value == compare.value
        if compare.mod_revision is not None:
            return (kv.mod_revision if kv else 0) == compare.mod_revision
        return (kv.create_revision if kv else 0) == compare.create_revision

    def _write(self, txn: Txn) -> None:
        deleted = [key for key in txn.deletes if key in self.stored]
        if not txn.puts and not deleted:
            return
        self.revision += 1
        self.applied += 1
        for key in deleted:
            self.stored.pop(key, None)
        for key, value in txn.puts:
            before = self.get(key)
            created = before.create_revision if before else self.revision
            self.stored[key] = _Stored(KeyValue(key, value, created, self.revision), txn.lease)


class TwinStore:
    """Fulfils ports.Store. `faults` are met by the next commits, one each; None is no fault."""

    def __init__(self, server: TwinEtcd, network: Network | None = None) -> None:
        self.server = server
        self._network = network or InstantNetwork()
        self.faults: deque[Fault | None] = deque()
        self.down = False
        self.sent: list[Txn] = []

    async def commit(self, txn: Txn) -> TxnResult:
        """See ports.Store."""
        try:
            return await self._network.call(Request("Txn", server="etcd"), lambda: self._commit(txn), TIMEOUT_S)
        except Unanswered as error:
            raise (AmbiguousTxn() if error.sent else StoreUnavailable(str(error))) from error

    def _commit(self, txn: Txn) -> TxnResult:
        self._connect()
        self.sent.append(txn)
        fault = self.faults.popleft() if self.faults else None
        match fault:
            case Fault.NOT_SENT:
                raise StoreUnavailable("connection refused")
            case Fault.LATE:
                self.server.late.append(txn)
            case Fault.LOST_REPLY | None:
                result = self.server.commit(txn)
        if fault is not None:
            raise AmbiguousTxn
        return result

    async def get(self, key: str) -> KeyValue | None:
        """See ports.Store."""
        return await self._ask("Range", lambda: self.server.get(key))

    async def list(self, prefix: str) -> list[KeyValue]:
        """See ports.Store."""
        return await self._ask("Range", lambda: self.server.under(prefix))

    async def grant_lease(self, ttl_s: int) -> int:
        """See ports.Store."""
        return await self._ask("LeaseGrant", lambda: self.server.grant(ttl_s))

    async def keep_alive(self, lease: int) -> bool:
        """See ports.Store."""
        return await self._ask("LeaseKeepAlive", lambda: self.server.keep_alive(lease))

    async def revoke_lease(self, lease: int) -> None:
        """See ports.Store."""
        await self._ask("LeaseRevoke", lambda: self.server.revoke(lease))

    async def close(self) -> None:
        """Nothing is held open."""

    async def _ask(self, name: str, effect: Callable[[], T]) -> T:
        try:
            return await self._network.call(Request(name, server="etcd"), lambda: self._serve(effect), TIMEOUT_S)
        except Unanswered as error:
            raise StoreUnavailable(str(error)) from error

    def _serve(self, effect: Callable[[], T]) -> T:
        self._connect()
        self.server.expire()
        return effect()

    def _connect(self) -> None:
        if self.down or self.server.down:
            raise StoreUnavailable("connection refused")


def _refuse_malformed(txn: Txn) -> None:
    """What etcd answers InvalidArgument to: too many operations, or one key written twice."""
    if max(len(txn.compares), len(txn.puts) + len(txn.deletes), len(txn.gets)) > OPS_MAX:
        raise OncesignError(f"an etcd transaction of more than {OPS_MAX} operations was planned.")
    puts = [key for key, _ in txn.puts]
    if len(set(puts)) < len(puts) or set(puts) & set(txn.deletes):
        raise OncesignError("etcdserver: duplicate key given in txn request")

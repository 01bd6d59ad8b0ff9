"""What etcd held before: it keeps every revision of a key until it is compacted, so that an incident can be read."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from pipeline.adapters.etcd import EtcdStore
from pipeline.settings import EtcdSettings


@dataclass(frozen=True, slots=True)
class Change:
    """What a revision made of a key; `value` is None where it deleted it."""

    revision: int
    key: str
    value: bytes | None


class EtcdHistory:
    """Reads past revisions, one request for each. Belongs to one event loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._store = EtcdStore(settings)

    async def revision(self, key: str) -> int:
        """The present one, told to who may read that key. Raises StoreUnavailable."""
        return await self._store.revision(key)

    async def changes(self, prefix: str, after: int, until: int) -> AsyncGenerator[Change, None]:
        """Those of the keys below a prefix in (after, until], in order.

        Raises StoreUnavailable, also when `after` was compacted.
        """
        known = {kv.key: kv.mod_revision for kv in await self._store.list(prefix, revision=after)} if after else {}
        for revision in range(after + 1, until + 1):
            found = {kv.key: kv for kv in await self._store.list(prefix, revision=revision)}
            for key in known.keys() - found.keys():
                yield Change(revision, key, None)
            for kv in found.values():
                if kv.mod_revision == revision:
                    yield Change(revision, kv.key, kv.value)
            known = {kv.key: kv.mod_revision for kv in found.values()}

    async def close(self) -> None:
        """Drop the connections."""
        await self._store.close()

"""Closing the gap before a key's first nonce, by the command line."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from jobs.desk import etcd_view
from jobs.keys import pool_keks
from pipeline.adapters.ledger import PostgresLedger
from pipeline.assignment.records import KeyState
from pipeline.clock import SystemClock
from pipeline.errors import KeyNotInPool, UsageError
from pipeline.fill import Fill
from pipeline.settings import Settings
from pipeline.stages.gap import close, gap_of
from pipeline.stages.nonces import require_chain


async def filled(
    settings: Settings, chain_id: int, address: str, rpc: SecretStr, fee_cap: int | None
) -> dict[str, Any]:
    """What was closed, once it is mined. Raises OncesignError."""
    from actors.composition import broadcasting

    keks = await pool_keks(settings)
    async with etcd_view(settings) as view:
        held, sealed = view.keys.get((chain_id, address)), view.sealed.get(address, b"")
    if held is None:
        raise KeyNotInPool(chain_id, address)
    if held.record.state is not KeyState.DISABLED:  # what it gives out next could change meanwhile
        raise UsageError(f"{address} is {held.record.state.value}.", hint=f"Run: oncesign keys drain {address}")
    ledger = PostgresLedger(settings.postgres)
    node = broadcasting.node(settings, rpc)
    key = keks.unseal(sealed, address)
    try:
        await require_chain(node, chain_id)
        first = (await ledger.first_nonces(chain_id)).get(address, held.record.next_nonce)
        [(latest, pending)] = await node.counts([address])
        nonce, count = gap_of(latest, pending, first)
        asked, priority = await node.fees()
        cap = asked if fee_cap is None else fee_cap
        fill = Fill(chain_id, address, nonce, count, cap, min(priority, cap))
        hashes = await close(fill, held.record.next_nonce, key, ledger, node, SystemClock())
        return {"address": address, "first_nonce": nonce, "count": count, "hashes": hashes}
    finally:
        key.wipe()
        await node.close()
        await ledger.close()

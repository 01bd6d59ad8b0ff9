"""The pool's nonces beside the chain's."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import SecretStr

from jobs.desk import etcd_view
from pipeline.adapters.ledger import PostgresLedger
from pipeline.assignment.records import KeyState
from pipeline.errors import NonceMismatch
from pipeline.settings import Settings
from pipeline.stages.nonces import Comparison, Verdict, compare


async def compared(settings: Settings, chain_id: int, rpc: SecretStr) -> list[Comparison]:
    """Every key of a chain that is not retired. Raises UsageError, DependencyDown."""
    from actors.composition import broadcasting

    async with etcd_view(settings) as view:
        records = [held.record for (chain, _), held in sorted(view.keys.items()) if chain == chain_id]
    keys = [key for key in records if key.state is not KeyState.RETIRED]
    ledger = PostgresLedger(settings.postgres)
    node = broadcasting.node(settings, rpc)
    try:
        return await compare(node, chain_id, keys, await ledger.first_nonces(chain_id))
    finally:
        await node.close()
        await ledger.close()


def require_agreement(found: Sequence[Comparison]) -> None:
    """Raises NonceMismatch for keys that were used elsewhere, or have a gap."""
    elsewhere = [key for key in found if key.verdict is Verdict.USED_ELSEWHERE]
    gaps = [key for key in found if key.verdict is Verdict.GAP]
    if elsewhere:
        raise NonceMismatch(
            f"{elsewhere[0].address} was used elsewhere ({len(elsewhere)} keys are like that).",
            hint="Drain it: what this pool signs with it from here on is never mined.",
        )
    if gaps:
        raise NonceMismatch(
            f"{gaps[0].address} has a gap before its first nonce ({len(gaps)} keys are like that).",
            hint="Nothing of it is mined until the gap is closed. Run: oncesign keys fill",
        )

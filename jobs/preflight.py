"""What is looked at before Ray is started or a key is made: whatever would fail later is said at once, in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.assignment.records import KeyState
from pipeline.errors import UsageError
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.assignment.view import View


async def before_signing(settings: Settings) -> None:
    """Kafka, Postgres and etcd serve and agree, nothing in use is gone, and every chain has a key that the KEK opens.

    Raises UsageError, SecretFileError, InputFileError, SettingError, DeploymentHalted, DependencyDown.
    """
    from actors.composition import bus, tables
    from jobs.desk import etcd_client
    from pipeline.adapters.policies import policy_of
    from pipeline.assignment import startup
    from pipeline.assignment.paths import Paths
    from pipeline.stages import intake

    paths = Paths(settings.deployment)
    await tables.total(settings)
    async with etcd_client(settings) as store:
        leader, genesis = await store.get(paths.leader), await store.get(paths.genesis)
        view = await startup.load(store, paths)
    if leader is None:  # what a leader writes meanwhile would look like a contradiction
        await _require_agreement(settings, view, known=genesis is not None)
    require_keys(settings, view)
    for source in settings.sources:
        if source.policy_file is not None:
            policy_of(source.policy_file)
    intake.load_keks(settings.kek_path, view)
    used = frozenset(stream.source for stream, held in view.streams.items() if held.record.seq > 0)
    async with bus.topics(settings) as topics:
        await topics.require(used)


async def _require_agreement(settings: Settings, view: View, *, known: bool) -> None:
    """`known` says whether etcd has the deployment. Raises DeploymentHalted when it is behind the ledger."""
    from pipeline.adapters.ledger import PostgresLedger
    from pipeline.assignment import startup
    from pipeline.assignment.paths import Paths

    ledger = PostgresLedger(settings.postgres)
    try:
        if not known:
            await startup.require_new(ledger, Paths(settings.deployment))
        await startup.check(view, ledger)
    finally:
        await ledger.close()


def require_keys(settings: Settings, view: View) -> None:
    """Every chain that has rows to sign has a key that may be lent. Raises UsageError."""
    for source in settings.sources:
        states = [held.record.state for (chain_id, _), held in view.keys.items() if chain_id == source.chain_id]
        where = f"the pool has no key for chain {source.chain_id} (source {source.name})"
        if not states:
            raise UsageError(f"{where}.", hint=f"Run: oncesign keys create --count 16 --source {source.name}")
        kept = [state for state in states if state is not KeyState.RETIRED]
        if not kept:
            raise UsageError(f"{where}: all {len(states)} are retired.", hint="Run: oncesign keys create --count 16")
        if all(state is KeyState.DISABLED for state in kept):
            raise UsageError(
                f"{where}: all {len(kept)} are disabled.",
                hint=f"Run: oncesign keys enable ADDRESS --source {source.name}",
            )

"""What the verifier works with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from actors.composition import CLOCK
from actors.composition.bus import batch_log
from actors.composition.tables import tables_of
from pipeline.adapters.kafka import Topics
from pipeline.adapters.ledger import PostgresLedger
from pipeline.adapters.outcomes import PostgresOutcomes
from pipeline.adapters.policies import PostgresPolicies
from pipeline.settings import Settings
from pipeline.stages.verifier import Verifier, VerifierPorts
from pipeline.telemetry import SILENT, Telemetry


@asynccontextmanager
async def verifier(settings: Settings, telemetry: Telemetry = SILENT) -> AsyncIterator[Verifier]:
    """The verifier with its log, tables, ledger and outcomes."""
    names = Topics(settings.kafka.topic_prefix)
    async with AsyncExitStack() as stack:
        tables = await tables_of(stack, settings)
        ledger = PostgresLedger(settings.postgres)
        stack.push_async_callback(ledger.close)
        outcomes = PostgresOutcomes(settings.postgres)
        stack.push_async_callback(outcomes.close)
        policies = PostgresPolicies(settings.postgres)
        stack.push_async_callback(policies.close)
        log = await stack.enter_async_context(batch_log(settings))
        ports = VerifierPorts(log, tables, ledger, outcomes, policies, CLOCK, telemetry)
        yield Verifier(ports, settings.sources, (names.signed, names.rejected))

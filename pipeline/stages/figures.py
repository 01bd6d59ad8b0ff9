"""What each stage's counts are to Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline import telemetry as t

if TYPE_CHECKING:  # the stage of one process should not load those of the others
    from pipeline.stages.consumer import ConsumerCount
    from pipeline.stages.reader import ReaderCount
    from pipeline.stages.signer import SignerCount
    from pipeline.stages.sweeper import SweepCount
    from pipeline.stages.verifier import VerifierCount


def of_readers(growth: t.Growth, source: str, counts: Iterable[ReaderCount]) -> None:
    """Of one source, together."""
    read = list(counts)
    growth.tell(t.READ, sum(count.rows for count in read), source=source)
    growth.tell(t.BATCHES, sum(count.batches for count in read), stage="read")


def of_consumer(growth: t.Growth, count: ConsumerCount) -> None:
    """Of one slot."""
    growth.tell(t.SIGNED, count.signed)
    growth.tell(t.REJECTED, count.rejected)
    growth.tell(t.BATCHES, count.batches, stage="commit")
    growth.tell(t.SKIPPED, count.skipped)
    growth.tell(t.ROUNDS, count.rounds)
    growth.tell(t.ROUNDS_ABORTED, count.rounds_aborted)


def of_signer(growth: t.Growth, count: SignerCount) -> None:
    """Of one signer."""
    growth.tell(t.BATCHES, count.batches, stage="sign")
    growth.tell(t.FILLERS, count.fillers)


def of_verifier(growth: t.Growth, count: VerifierCount) -> None:
    """Of the deployment's one verifier."""
    growth.tell(t.VERIFIED, count.signed, result="signed")
    growth.tell(t.VERIFIED, count.rejected, result="rejected")
    growth.tell(t.VIOLATIONS, count.violations)


def of_sweeper(growth: t.Growth, count: SweepCount) -> None:
    """Of the deployment's one sweeper."""
    growth.tell(t.SWEPT, count.released, result="released")
    growth.tell(t.SWEPT, count.signed_again, result="signed_again")


def of_key_manager(telemetry: t.Telemetry, status: Mapping[str, Any]) -> None:
    """`status` as of assignment.manager.KeyManager."""
    for state, keys in status["keys"].items():
        telemetry.set(t.KEYS, keys, state=state)
    telemetry.set(t.LOCK_OLDEST, status["lock_oldest_s"])
    telemetry.set(t.QUEUE, status["queue"])
    telemetry.set(t.ASSIGNMENTS, status["assignments"])

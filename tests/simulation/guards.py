"""All mutants. Their names are those of the guards that they take away."""

from __future__ import annotations

from typing import Final

from tests.simulation import guards_of_assignment, guards_of_flow
from tests.simulation.mutation import Edit, Mutant

MUTANTS: Final[tuple[Mutant, ...]] = (*guards_of_assignment.MUTANTS, *guards_of_flow.MUTANTS)

LEASE_ONLY: Final = (
    guards_of_assignment.FENCE,
    guards_of_assignment.UUID,
    Edit(guards_of_assignment.PLAN, f", {guards_of_assignment.COMPARES})", ",)"),
)
NO_LEDGER: Final = (guards_of_assignment.LEDGER_ROW, guards_of_assignment.WATERMARK)
REDISCOVERED: Final[tuple[Mutant, ...]] = (
    Mutant(
        "a lock past its lease",
        "Whoever had the leader's lease writes what it has in mind, and there is no ledger.",
        (*LEASE_ONLY, *NO_LEDGER),
        deed="pause_manager",
        breaks=("I1", "I2"),
    ),
    Mutant(
        "a lock past its lease, and a ledger",
        "The same before the ledger, which is the second guard.",
        LEASE_ONLY,
        deed="pause_manager",
        breaks=("I1", "I2"),
    ),
    Mutant(
        "a restored etcd, and a ledger",
        "Nobody compares a restored etcd with the ledger, which is the second guard.",
        (guards_of_assignment.START_CHECK,),
        deed="restore_etcd",
        breaks=("I1", "I2"),
    ),
)
"""What test_rediscovery.py needs beside the others. Those with a ledger survive: it prevents the worst."""

NOT_ALONE: Final = {
    "fence compare": "the leader's uuid differs whenever its create_revision does; mutant: fence and uuid compare",
    "genesis compare": "an etcd with our leader record under our revision has our genesis record, too",
    "key compare": "a write of a key writes its stream or deletes its assignment; mutant: all compares of records",
    "assignment compare": "as above; where there is an assignment its stream has come to it",
    "is it ours": "what was not ours is planned anew after all of etcd is read, or it has nothing to do",
    "digest of what was published": "what is skipped was signed; the verifier names the rows of the other batch",
    "replies of an older epoch": "their batches are in no queue any more, so nothing of them is committed",
    "sweeper: second look": "an earlier sweeper must commit between look and fence: tests/unit/test_sweeper.py",
    "signed_from stays": "it takes a zombie that asks between a publication and a release that is lost, too",
}
"""Guards without a mutant of their own, and why taking them away alone breaks nothing here. The model of
tests/simulation/test_model.py breaks without the key compare and without the digest."""

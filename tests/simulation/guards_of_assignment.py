"""Mutants of the key manager, of what it writes to etcd, and of the ledger behind it."""

from __future__ import annotations

from typing import Final

from tests.simulation.mutation import Edit, Mutant

VIEW: Final = "pipeline.assignment.view"
PLAN: Final = "pipeline.assignment.plan"
RULES: Final = "pipeline.assignment.rules"
MANAGER: Final = "pipeline.assignment.manager"
WRITING: Final = "pipeline.assignment.writing"
STARTUP: Final = "pipeline.assignment.startup"
LEADERSHIP: Final = "pipeline.assignment.leadership"
SIGNER: Final = "pipeline.stages.signer"
LEDGER: Final = "pipeline.testing.ledger"
STREAM_WRITER: Final = "pipeline.testing.stream_writer"

LAST_BATCH: Final = Edit(
    STREAM_WRITER, "if at is not None else await self._last_batch()", "if at is not None else None"
)
CHAIN: Final = Edit(
    RULES, "    if request.seq != stream.seq + 1 or request.prev != stream.cursor:\n", "    if False:\n"
)
FENCE: Final = Edit(VIEW, "            Compare(self.paths.leader, create_revision=self.fence),\n", "")
UUID: Final = Edit(VIEW, "            Compare(self.paths.leader, value=self.leader_value),\n", "")
COMPARES: Final = "*(Compare(path, mod_revision=at) for path, at in revisions.items())"
START_CHECK: Final = Edit(STARTUP, "    if problems:\n", "    if False:\n")
LEDGER_ROW: Final = Edit(
    LEDGER, "if known is not None and replace(known, worker=entry.worker) == entry:", "if known is not None:"
)
WATERMARK: Final = Edit(LEDGER, "        if watermark != entry.first_nonce:\n", "        if False:\n")


def _uncompared(prefix: str) -> Edit:
    return Edit(PLAN, COMPARES, COMPARES[:-1] + f" if not path.startswith(self.guard.paths.{prefix}))")


MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "uuid compare",
        "On a restored etcd that gives out the same revisions again, two lead under one fence.",
        (UUID,),
        deed="repeat_revision",
    ),
    Mutant("fence and uuid compare", "Whoever has led goes on writing.", (FENCE, UUID)),
    Mutant("stream compare", "A write does not compare the stream's mod_revision.", (_uncompared("streams"),)),
    Mutant("all compares of records", "A write compares the leader alone.", (Edit(PLAN, f", {COMPARES})", ",)"),)),
    Mutant(
        "compares of what is relied on",
        "A reply that writes nothing is given without asking etcd.",
        (Edit(PLAN, "        return self.size() > 0\n", "        return not self.writes_nothing()\n"),),
    ),
    Mutant(
        "chain check",
        "A batch need not continue its stream.",
        (CHAIN,),
        deed="skip_batch",
    ),
    Mutant(
        "same batch, same assignment",
        "A batch that is asked for again is not looked for among the assignments.",
        (Edit(RULES, "        if existing is not None:\n", "        if False:\n"),),
    ),
    Mutant(
        "digest on repeat",
        "A reader that forgot its place publishes a batch again with other rows, and it gets the same nonces.",
        (
            LAST_BATCH,
            Edit(RULES, "        if existing.digest != request.digest:\n", "        if False:\n"),
            Edit(SIGNER, "        check_job(batch, assignment, int(np.count_nonzero(reasons == 0)))\n", ""),
        ),
        deed="reread",
        breaks=("I1", "I2"),
    ),
    Mutant(
        "published means skip",
        "A batch whose assignment is gone is taken for a new one.",
        (Edit(RULES, "        if request.seq <= stream.seq:\n", "        if False:\n"),),
        deed="pause_consumer",
    ),
    Mutant(
        "free keys only",
        "A locked key is lent once more.",
        (
            Edit(RULES, "key for key in held if key.state is KeyState.FREE", "key for key in held"),
            Edit(RULES, " and self._is_free(key))", ")"),
        ),
    ),
    Mutant(
        "free in this group",
        "A key that one request of a group has pinned is chosen for another one.",
        (Edit(RULES, " and self._is_free(key))", ")"),),
    ),
    Mutant(
        "pinned sender",
        "A batch that names its sender gets the key whose turn it is, and the signer does not mind.",
        (
            Edit(RULES, "        if request.sender:\n            pinned =", "        if False:\n            pinned ="),
            Edit(SIGNER, '        "pinned sender": (sender or assignment.address, assignment.address),\n', ""),
        ),
        breaks=("I6",),
    ),
    Mutant(
        "pinned and free",
        "A sender that a batch names is lent although another batch has it.",
        (
            Edit(
                RULES,
                "return pinned if pinned is not None and pinned.state is KeyState.FREE else None",
                "return pinned",
            ),
        ),
    ),
    Mutant(
        "next nonce",
        "The key's next nonce stays where it was.",
        (Edit(RULES, "next_nonce=key.next_nonce + request.count,", "next_nonce=key.next_nonce,"),),
        calm=True,
    ),
    Mutant(
        "later batches wait",
        "A batch is lent a key although the one before it waits for one.",
        (Edit(RULES, "Waiting() if request.stream in self._held_back else self._next", "self._next"),),
    ),
    Mutant(
        "lost answer",
        "A transaction without an answer is taken for done.",
        (
            Edit(
                WRITING,
                "            if clock.monotonic_s() > deadline_s:\n",
                "            if isinstance(error, AmbiguousTxn):\n"
                "                return TxnResult(succeeded=True, revision=0)\n"
                "            if clock.monotonic_s() > deadline_s:\n",
            ),
        ),
    ),
    Mutant(
        "reply after the write",
        "An assignment is told before etcd has it.",
        (
            Edit(
                MANAGER,
                "        await self._carry_out(plan)\n",
                "        asyncio.ensure_future(self._carry_out(plan))\n        await asyncio.sleep(0)\n",
            ),
        ),
        calm=True,
    ),
    Mutant(
        "one leader at a time",
        "A key manager leads without waiting for the one before it.",
        (
            Edit(
                LEADERSHIP,
                "            compares=(Compare(self._paths.leader, create_revision=0),),\n",
                "            compares=(),\n",
            ),
        ),
    ),
    Mutant(
        "exit without the fence",
        "A key manager that leads no more stays.",
        (Edit(MANAGER, "        self._fence_lost()\n", ""),),
    ),
    Mutant(
        "fail-closed start",
        "A key manager starts on an etcd that is behind the ledger.",
        (START_CHECK,),
        deed="leave_etcd_behind",
    ),
    Mutant(
        "ledger row",
        "A batch may be sworn twice, differently, on an etcd that is behind the ledger.",
        (LEDGER_ROW, START_CHECK),
        twin=True,
        deed="leave_etcd_behind",
        breaks=("I1", "I2", "I5"),
        real="tests/contract/test_ledger.py::test_a_second_answer_for_a_batch_is_refused",
    ),
    Mutant(
        "watermark",
        "A nonce may be sworn twice, on an etcd that is behind the ledger.",
        (WATERMARK, START_CHECK),
        twin=True,
        deed="restore_etcd",
        breaks=("I1", "I2", "I5"),
        real="tests/contract/test_ledger.py::test_only_the_next_nonce_of_a_sender_is_taken",
    ),
    Mutant(
        "ledger at all",
        "Signatures leave without a ledger row.",
        (Edit(SIGNER, "        await self._ledger.record(entry_of(assignment, self._worker))\n", ""),),
        calm=True,
    ),
    Mutant(
        "ledger before the signature",
        "The ledger row is written after signing.",
        (
            Edit(SIGNER, "        await self._ledger.record(entry_of(assignment, self._worker))\n", ""),
            Edit(
                SIGNER,
                "        reasons = _with_failures(reasons, signed)\n",
                "        await self._ledger.record(entry_of(assignment, self._worker))\n"
                "        reasons = _with_failures(reasons, signed)\n",
            ),
        ),
        calm=True,
    ),
)

"""Mutants of reader, consumer, signer and sweeper, and of what Kafka and Postgres promise them."""

from __future__ import annotations

from typing import Final

from pipeline.testing.simulation.crashes import Boundary, CrashPoint, Plan
from tests.simulation.guards_of_assignment import CHAIN, LAST_BATCH
from tests.simulation.mutation import Edit, Mutant

CONSUMER: Final = "pipeline.stages.consumer"
ADMISSION: Final = "pipeline.stages.admission"
WORK: Final = "pipeline.stages.work"
SWEEPER: Final = "pipeline.stages.sweeper"
READER: Final = "pipeline.stages.reader"
SIGNER: Final = "pipeline.stages.signer"
PUBLICATION: Final = "pipeline.stages.publication"
KERNEL: Final = "pipeline.ethereum.kernel"
MANAGER: Final = "pipeline.assignment.manager"
RULES: Final = "pipeline.assignment.rules"
SOURCE: Final = "pipeline.testing.source"
TRANSACTIONS: Final = "pipeline.testing.transactions"
STREAM_WRITER: Final = "pipeline.testing.stream_writer"
SUBSCRIPTION: Final = "pipeline.testing.batch_subscription"
BROKER: Final = "pipeline.testing.broker"

REUSED: Final = Edit(
    TRANSACTIONS, "        epoch, self._epoch = self._epoch, None  #", "        epoch = self._epoch  #"
)
"""A client that does not insist on being opened after a failure."""

COMMIT: Final = "            certain = await self._writer.commit(records, done.progress(), done.generation)\n"
OPEN: Final = "            await self._writer.open()\n            await self._subscription.rewind"
RELEASE: Final = "(w.request.stream, w.request.seq) for w in done.works if w.assignment is not None"
GENERATION: Final = Edit(
    CONSUMER, "        if messages and messages[0].generation != self._generation:\n", "        if False:\n"
)

END: Final = Boundary("consumer", "kafka", "EndTxn")
LATE_END: Final = tuple(
    Plan(
        (
            CrashPoint(END, "arrives in the next", nth),
            CrashPoint(Boundary("consumer", "kafka", "TxnOffsetCommit"), "is lost"),
        )
    )
    for nth in (1, 2, 3)
)
"""An EndTxn that is given up arrives in the next transaction, which fails before its offsets are in it."""

MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "horizon of xid8",
        "Rows are read although older transactions still run.",
        (Edit(SOURCE, " and at > after and at.xid < horizon)", " and at > after)"),),
        twin=True,
        real="tests/contract/test_source.py::test_a_row_that_commits_late_is_not_lost",
    ),
    Mutant(
        "position with its batch",
        "The reader's position is committed in a transaction after the batch's.",
        (
            Edit(
                STREAM_WRITER,
                "        if not await self._transactions.run(records, at, Generation(self._id)):\n",
                "        certain = await self._transactions.run(records, {}, None)\n"
                "        if not (certain and await self._transactions.run([], at, Generation(self._id))):\n",
            ),
        ),
        twin=True,
        real="tests/contract/test_stream_writer.py::test_open_settles_what_a_writer_left_in_the_middle",
    ),
    Mutant(
        "fencing of producers",
        "A new producer of the same transactional.id leaves the old one alone.",
        (
            Edit(
                BROKER,
                "        producer.timeout_s = timeout_s\n        producer.epoch += 1\n",
                "        producer.timeout_s = timeout_s\n",
            ),
        ),
        twin=True,
        real="tests/contract/test_stream_writer.py::test_a_second_writer_fences_the_first",
        deed="double",
    ),
    Mutant(
        "last batch tells the position",
        "When Kafka has forgotten the reader's position, the reader goes on from etcd's stream record.",
        (LAST_BATCH,),
        deed="forget_position",
        twin=True,
        real="tests/contract/test_stream_writer.py::test_without_its_offset_the_last_batch_tells_the_position",
    ),
    Mutant(
        "system identifier",
        "A stream is read on from another Postgres.",
        (
            Edit(READER, "    if position.system_id != system_id:\n", "    if False:\n"),
            Edit(MANAGER, "        if found.system_id != record.system_id:\n", "        if False:\n"),
        ),
        deed="replace_postgres",
    ),
    Mutant(
        "offset-reset error",
        "A consumer whose offset is gone goes on at the end, and no batch need continue its stream.",
        (
            CHAIN,
            Edit(
                SUBSCRIPTION,
                '                self._halted[partition] = f"its next offset is gone from Kafka ({refused})"\n',
                "                self._positions[partition] = self._broker.topics[partition[0]][partition[1]].end\n",
            ),
        ),
        twin=True,
        deed="trim_topic",
        breaks=("I8",),
        real="tests/contract/test_batch_subscription.py::"
        "test_what_has_no_offset_or_lost_it_to_retention_is_halted_not_skipped",
    ),
    Mutant(
        "validate before assign",
        "Every row of a batch gets a nonce, whatever the rules say of it.",
        (Edit(ADMISSION, "int(np.count_nonzero(signable))", "batch.rows.num_rows"),),
        calm=True,
    ),
    Mutant(
        "metadata at poll",
        "Offsets are committed under the generation of the moment.",
        (
            GENERATION,
            Edit(CONSUMER, COMMIT, COMMIT.replace("done.generation", "self._subscription._who")),
        ),
        twin=True,
        real="tests/contract/test_round_writer.py::test_a_stale_generation_cannot_commit",
    ),
    Mutant(
        "offsets in the same transaction",
        "The offsets are committed in a transaction after the records'.",
        (
            Edit(
                CONSUMER,
                COMMIT,
                "            certain = await self._writer.commit(records, {}, None)\n"
                "            certain = await self._writer.commit([], done.progress(), done.generation) and certain\n",
            ),
        ),
    ),
    Mutant(
        "rejections in the same transaction",
        "The rejected rows are published in a transaction after that of the offsets.",
        (
            Edit(
                CONSUMER,
                COMMIT,
                "            signed = [r for r in records if r.topic == self._outlets.signed]\n"
                "            others = [r for r in records if r.topic != self._outlets.signed]\n"
                "            certain = await self._writer.commit(signed, done.progress(), done.generation)\n"
                "            certain = await self._writer.commit(others, {}, None) and certain\n",
            ),
        ),
    ),
    Mutant(
        "rebuild after abort",
        "A producer is used again after a round that failed.",
        (REUSED, Edit(CONSUMER, OPEN, OPEN.replace("await", "if self._epoch == 1:\n                await", 1))),
        twin=True,
        real="tests/contract/test_round_writer.py::test_a_round_needs_an_open_writer",
    ),
    Mutant(
        "rebuild after a slow commit",
        "A producer is used again after a commit that took longer than socket.timeout.ms.",
        (
            Edit(CONSUMER, "        if certain:\n            self._rel", "        if True:\n            self._rel"),
            REUSED,
        ),
        twin=True,
        plans=LATE_END,
    ),
    Mutant(
        "go back after abort",
        "What a failed round held is not read again.",
        (Edit(CONSUMER, "            await self._subscription.rewind(self._subscription.assigned())\n", ""),),
        calm=True,
    ),
    Mutant(
        "drop after abort",
        "What a failed round held is kept, and read again.",
        (
            Edit(
                CONSUMER,
                "        self._signing.clear()\n        self._queues.clear()\n",
                "        self._signing.clear()\n",
            ),
        ),
    ),
    Mutant(
        "release after commit",
        "A key is given back before its batch is published.",
        (
            Edit(
                CONSUMER,
                "        try:\n" + COMMIT,
                f"        self._releases.add({RELEASE})\n        try:\n" + COMMIT,
            ),
        ),
    ),
    Mutant(
        "no release without an answer",
        "A commit that got no answer is taken for done.",
        (
            Edit(
                CONSUMER,
                "            self.count.rounds_aborted += 1\n",
                "            self.count.rounds_aborted += 1\n"
                "            if isinstance(error, AmbiguousRound):\n"
                f"                self._releases.add({RELEASE})\n",
            ),
        ),
        deed="lose_commit",
    ),
    Mutant(
        "order of a partition",
        "A batch is committed although one before it is still being signed.",
        (
            Edit(
                WORK,
                "size + work.size > bytes_max):\n                    break\n",
                "size + work.size > bytes_max):\n                    continue\n",
            ),
        ),
    ),
    Mutant(
        "sample recovery check",
        "The kernel signs a wrong byte, and no signer looks at its own work.",
        (
            Edit(SIGNER, "        check(signed, batch, signable, assignment.address, rows)\n", ""),
            Edit(
                KERNEL,
                "        return _sign(batch, chosen, key, first_nonce)\n",
                "        made = _sign(batch, chosen, key, first_nonce)\n"
                "        made.raw[-1] ^= 1\n"
                "        return made\n",
            ),
        ),
        calm=True,
    ),
    Mutant(
        "sweeper: existence",
        "The sweeper releases what it does not find on tx.signed.",
        (Edit(SWEEPER, "for a in group if (a.stream, a.seq) in found]\n", "for a in group]\n"),),
    ),
    Mutant(
        "sweeper: past",
        "The sweeper publishes what the consumers have still to publish.",
        (
            Edit(
                SWEEPER,
                "(a.stream, a.seq) not in found and (a.stream, a.seq) in past]",
                "(a.stream, a.seq) not in found]",
            ),
        ),
    ),
    Mutant(
        "sweeper: no open transaction",
        "The sweeper looks at tx.signed up to where a transaction is open, and takes that for the end.",
        (
            Edit(
                SWEEPER,
                "        marks = await self._ports.log.ends(self._outlets.signed, committed=False)\n",
                "        marks = await self._ports.log.ends(self._outlets.signed, committed=True)\n",
            ),
        ),
        deed="tear_commit",
    ),
    Mutant(
        "sweeper: from the assignment on",
        "The sweeper looks at the end of tx.signed only.",
        (Edit(SWEEPER, "min(a.signed_from[partition] for a in assignments))", "end)"),),
    ),
)

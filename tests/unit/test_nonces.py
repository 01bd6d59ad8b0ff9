"""The pool's nonces beside a chain's: every way in which they can differ, and how an imported key begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from jobs.key_check import require_agreement
from pipeline.assignment.records import KeyRecord, KeyState
from pipeline.errors import NonceMismatch, UsageError
from pipeline.stages.nonces import Comparison, Verdict, compare, start_nonces

ADDRESS, OTHER = "0x" + "11" * 20, "0x" + "22" * 20


@dataclass
class Node:
    """Answers what a test says."""

    answers: dict[str, tuple[int, int]]
    chain: int = 1

    async def chain_id(self) -> int:
        return self.chain

    async def counts(self, senders: Sequence[str]) -> Sequence[tuple[int, int]]:
        return [self.answers[sender] for sender in senders]


def key(next_nonce: int) -> KeyRecord:
    return KeyRecord(1, ADDRESS, KeyState.FREE, next_nonce, 0, 0)


@pytest.mark.parametrize(
    ("next_nonce", "first", "latest", "pending", "verdict", "detail"),
    [
        (0, None, 0, 0, Verdict.IN_STEP, ""),
        (10, 0, 10, 10, Verdict.IN_STEP, ""),
        (10, None, 10, 10, Verdict.IN_STEP, ""),
        (10, 0, 4, 10, Verdict.IN_POOL, "6 wait to be mined"),
        (10, 0, 4, 4, Verdict.STUCK, "nonce 4 was given out, and the node has no transaction for it"),
        (10, 0, 4, 7, Verdict.STUCK, "nonce 7 was given out, and the node has no transaction for it"),
        (10, 0, 11, 11, Verdict.USED_ELSEWHERE, "nonces 10 to 10 were used by somebody else"),
        (10, 0, 10, 12, Verdict.USED_ELSEWHERE, "nonces 10 to 11 were used by somebody else"),
        (10, None, 7, 7, Verdict.GAP, "nonces 7 to 9 were never given out"),
        (30, 20, 7, 8, Verdict.GAP, "nonces 8 to 19 were never given out"),
        (30, 20, 20, 20, Verdict.STUCK, "nonce 20 was given out, and the node has no transaction for it"),
        (10, 0, 10, 9, Verdict.IN_STEP, ""),  # a node that has just begun says less of `pending`
    ],
)
async def test_every_difference_has_a_name(
    next_nonce: int, first: int | None, latest: int, pending: int, verdict: Verdict, detail: str
) -> None:
    firsts = {} if first is None else {ADDRESS: first}
    found = await compare(Node({ADDRESS: (latest, pending)}), 1, [key(next_nonce)], firsts)
    assert found == [Comparison(ADDRESS, next_nonce, latest, pending, verdict, detail)]


@pytest.mark.parametrize(
    ("verdict", "said"),
    [(Verdict.USED_ELSEWHERE, "was used elsewhere"), (Verdict.GAP, "has a gap before its first nonce")],
)
def test_what_cannot_mend_itself_fails(verdict: Verdict, said: str) -> None:
    good = [Comparison(OTHER, 1, 1, 1, each, "") for each in (Verdict.IN_STEP, Verdict.IN_POOL, Verdict.STUCK)]
    require_agreement(good)
    with pytest.raises(NonceMismatch, match=f"{ADDRESS} {said}"):
        require_agreement([*good, Comparison(ADDRESS, 1, 2, 2, verdict, "")])


async def test_a_key_begins_where_its_chain_is() -> None:
    node = Node({ADDRESS: (5, 5), OTHER: (0, 0)})
    assert list(await start_nonces(node, 1, [ADDRESS, OTHER], with_pending=False)) == [5, 0]


async def test_what_waits_in_the_node_must_be_spoken_of() -> None:
    node = Node({ADDRESS: (5, 8), OTHER: (0, 1)})
    with pytest.raises(
        NonceMismatch, match=rf"{ADDRESS} has transactions that wait in the node \(and 1 more\)"
    ) as caught:
        await start_nonces(node, 1, [ADDRESS, OTHER], with_pending=False)
    assert "--with-pending" in str(caught.value)
    assert list(await start_nonces(node, 1, [ADDRESS, OTHER], with_pending=True)) == [8, 1]


async def test_a_node_of_another_chain_is_refused() -> None:
    node = Node({ADDRESS: (0, 0)}, chain=5)
    with pytest.raises(UsageError, match="the node is on chain 5, the keys are for chain 1"):
        await start_nonces(node, 1, [ADDRESS], with_pending=False)
    with pytest.raises(UsageError, match="the node is on chain 5"):
        await compare(node, 1, [key(0)], {})

"""The queues of a consumer: what may be asked for, what may be committed, and in which order."""

from __future__ import annotations

from pipeline.ports import AssignRequest, Message, Place, Progress, SignedBatch
from pipeline.stages.work import Queues, State, Work
from pipeline.stream import Cursor, Stream

TOPIC = "tx.batches.payouts"


def work(partition: int, seq: int, generation: str = "g1") -> Work:
    request = AssignRequest(
        stream=Stream("payouts", partition), seq=seq, prev=Cursor(1, seq - 1), cursor=Cursor(1, seq), digest="d",
        chain_id=1, system_id="s", rows=1, count=1, rules_version=1, worker="w", node="n", batch_offset=seq,
        signed_from=(0,),
    )  # fmt: skip
    return Work(Message(Place(TOPIC, partition, seq * 2), b"", b"", generation), request)


def filled(*places: tuple[int, int]) -> tuple[Queues, dict[tuple[int, int], Work]]:
    queues = Queues()
    works = {place: work(*place) for place in places}
    for made in works.values():
        queues.add(made)
    return queues, works


def seqs(works: list[Work]) -> list[tuple[int, int]]:
    return [(made.request.stream.shard, made.request.seq) for made in works]


def done(made: Work, size: int = 10) -> None:
    made.state = State.DONE
    made.signed = SignedBatch(bytes(size), ())


def test_partitions_are_asked_for_in_turn_and_each_in_order() -> None:
    queues, _ = filled((0, 1), (0, 2), (0, 3), (1, 1))
    assert seqs(queues.to_assign(3)) == [(0, 1), (1, 1), (0, 2)]


def test_a_partition_with_much_to_do_keeps_no_other_waiting() -> None:
    queues, _ = filled(*((partition, seq) for partition in range(3) for seq in (1, 2, 3)))
    asked = []
    for _ in range(5):
        [made] = queues.to_assign(1)
        made.state = State.SIGNING
        asked.append(made)
    assert seqs(asked) == [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2)]


def test_a_partition_with_an_unanswered_request_gives_nothing() -> None:
    queues, works = filled((0, 1), (0, 2), (1, 1))
    works[0, 1].state = State.ASKED
    assert seqs(queues.to_assign(9)) == [(1, 1)]


def test_only_finished_heads_are_committed() -> None:
    queues, works = filled((0, 1), (0, 2), (0, 3), (1, 1))
    done(works[0, 2])
    assert queues.next_round(100) is None
    done(works[0, 1])
    found = queues.next_round(100)
    assert found is not None
    assert seqs(found.works) == [(0, 1), (0, 2)]
    assert found.progress() == {(TOPIC, 0): Progress(5, 2)}
    queues.remove(found)
    assert seqs(list(queues.all())) == [(0, 3), (1, 1)]


def test_a_round_is_bounded_but_never_empty() -> None:
    queues, works = filled((0, 1), (0, 2))
    done(works[0, 1], 1_000)
    done(works[0, 2], 1_000)
    found = queues.next_round(100)
    assert found is not None
    assert seqs(found.works) == [(0, 1)]


def test_a_round_is_of_one_generation() -> None:
    queues = Queues()
    old, new = work(0, 1, "g1"), work(1, 1, "g2")
    for made in (old, new):
        done(made)
        queues.add(made)
    found = queues.next_round(100)
    assert found is not None
    assert (seqs(found.works), found.generation) == ([(0, 1)], "g1")


def test_a_batch_that_was_published_before_moves_the_offset_and_adds_nothing() -> None:
    queues, works = filled((0, 1))
    works[0, 1].state = State.DONE
    found = queues.next_round(1)
    assert found is not None
    assert found.works[0].size == 0
    assert found.progress() == {(TOPIC, 0): Progress(3, 1)}


def test_full_partitions_are_named() -> None:
    queues, _ = filled((0, 1), (0, 2), (1, 1))
    assert queues.full(2) == frozenset({(TOPIC, 0)})
    queues.drop({(TOPIC, 0)})
    assert seqs(list(queues.all())) == [(1, 1)]

"""What a finished batch puts on Kafka, and where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pipeline.assignment.records import Assignment
from pipeline.ports import Outgoing, SignedBatch
from pipeline.stages.work import Round
from pipeline.stream import Stream
from pipeline.tracing import span


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where signed and rejected go."""

    signed: str
    rejected: str
    signed_partitions: int


def partition_of(address: str, shard: int, partitions: int) -> int:
    """The partition of tx.signed for a sender, so that one sender's nonces stay in order on one partition.

    A batch without a signable row has no sender; its shard decides.
    """
    return int(address[-8:], 16) % partitions if address else shard % partitions


def records_of(assignment: Assignment, signed: SignedBatch, outlets: Outlets, traceparent: str = "") -> list[Outgoing]:
    """The signed record and one record per rejected row."""
    partition = partition_of(assignment.address, assignment.stream.shard, outlets.signed_partitions)
    sender = bytes.fromhex(assignment.address.removeprefix("0x"))
    stream_key = key_of(assignment.stream)
    return [Outgoing(outlets.signed, partition, sender, signed.record, traceparent)] + [
        Outgoing(outlets.rejected, 0, stream_key, row, traceparent) for row in signed.rejections
    ]


@contextmanager
def traced(done: Round) -> Iterator[None]:
    """A span for the publication of each batch of a round."""
    with ExitStack() as stack:
        for work in done.works:
            work.traceparent = stack.enter_context(
                span("publish", work.request.stream, work.request.seq, work.message.traceparent)
            )
        yield


def key_of(stream: Stream) -> bytes:
    """The key of a record that belongs to a stream and to no sender."""
    return str(stream).encode()

"""What is published, as CloudEvents 1.0 (JSON format, structured mode) or as a line for people."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from pipeline.errors import MalformedBatch
from pipeline.ethereum.rejected import Rejection
from pipeline.ethereum.signed import SignedRecord
from pipeline.ports import Message
from pipeline.stages.inspection import unsound
from pipeline.stream import Stream

SPEC_VERSION: Final = "1.0"
SIGNED: Final = "oncesign.transaction.signed.v1"
REJECTED: Final = "oncesign.transaction.rejected.v1"
CONTENT_TYPE: Final = "application/json"
NO_TIME: Final = "-"

Published: TypeAlias = SignedRecord | Rejection


def read(message: Message, signed_topic: str) -> Published:
    """Raises MalformedBatch for a record that is not one of ours."""
    what = (
        SignedRecord.decode(message.value)
        if message.place.topic == signed_topic
        else Rejection.from_json(message.value)
    )
    if problem := unsound(what.header if isinstance(what, SignedRecord) else what):
        raise MalformedBatch(f"{problem}.")
    return what


def cloud_events(message: Message, what: Published, deployment: str) -> Iterator[dict[str, Any]]:
    """One for each transaction, the fillers of nonces among them; those have no row and so no subject."""
    if isinstance(what, Rejection):
        fields = dataclasses.asdict(what)
        yield _event(message, 0, deployment, Stream(what.source, what.shard), REJECTED, fields)
        return
    header = what.header
    columns: list[list[Any]] = [what.rows.column(name).to_pylist() for name in ("tx_id", "nonce", "hash", "raw")]
    for row, (tx_id, nonce, tx_hash, raw) in enumerate(zip(*columns, strict=True)):
        fields = {
            "tx_id": tx_id,
            "source": header.stream.source,
            "shard": header.stream.shard,
            "seq": header.seq,
            "chain_id": header.chain_id,
            "sender": header.sender,
            "nonce": nonce,
            "hash": "0x" + tx_hash.hex(),
            "raw": "0x" + raw.hex(),
        }
        yield _event(message, row, deployment, header.stream, SIGNED, fields)


def sentence(message: Message, what: Published) -> str:
    """A batch or a rejection in a line."""
    time = time_of(message) or NO_TIME
    if isinstance(what, Rejection):
        reason = f"{what.reason}: {what.detail}" if what.detail else what.reason
        return f"{time} rejected {Stream(what.source, what.shard)} batch {what.seq}, row {what.tx_id}: {reason}"
    header = what.header
    start = f"{time} signed   {header.stream} batch {header.seq}"
    if not header.count:
        return f"{start}: no row to sign"
    nonces = f"{header.first_nonce} … {header.first_nonce + header.count - 1}"
    return f"{start}: {header.count:,} transactions of {header.sender}, nonces {nonces}, at {message.place}"


def time_of(message: Message) -> str | None:
    """The record's own timestamp by RFC 3339."""
    if message.unix_ms is None:
        return None
    moment = dt.datetime.fromtimestamp(message.unix_ms / 1000, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _event(
    message: Message, row: int, deployment: str, stream: Stream, kind: str, fields: dict[str, Any]
) -> dict[str, Any]:
    place, time, tx_id = message.place, time_of(message), fields["tx_id"]
    return {
        "specversion": SPEC_VERSION,
        "id": f"{place.topic}/{place.partition}/{place.offset}/{row}",
        "source": f"/oncesign/{deployment}/{stream}",
        "type": kind,
        **({"time": time} if time else {}),
        **({} if tx_id is None else {"subject": str(tx_id)}),
        "datacontenttype": CONTENT_TYPE,
        "data": fields,
    }

"""Looking at what was published with eyes of its own: pure functions from records, rows and ledger to findings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final, cast

import pyarrow as pa

from pipeline.assignment.records import Assignment
from pipeline.errors import MalformedBatch
from pipeline.ethereum.batch import BLOB_TYPE, COLUMNS, WIDE, Batch, BatchHeader
from pipeline.ethereum.columns import U8
from pipeline.ethereum.decoding import AccessList, SignedTx, decode
from pipeline.ethereum.policy import Policy
from pipeline.ethereum.reasons import OF_SENDER, Reason
from pipeline.ethereum.rejected import Rejection
from pipeline.ethereum.rows import needs_wide
from pipeline.ethereum.rules import RULES_VERSION, WIDE_RULES_VERSION
from pipeline.ethereum.signed import SignedHeader, SignedRecord
from pipeline.ethereum.validity import judge
from pipeline.ports import LedgerEntry, Outcome, Place
from pipeline.stages.violation import Violation, ViolationKind
from pipeline.stream import SOURCE_NAME, START, Cursor, Stream

ADDRESS: Final = re.compile(r"0x[0-9a-f]{40}")
BIGINT_MAX: Final = 2**63 - 1
SMALLINT_MAX: Final = 2**15 - 1
NONCE_END: Final = 2**64


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row of the source, as plain values, with what the rules say of it."""

    cursor: Cursor
    type: int
    to: bytes | None
    value: int
    gas_limit: int
    max_fee: int
    priority: int | None
    data: bytes
    access_list: AccessList
    sender: str  #: who must sign it; empty = anybody of the pool
    blob_fee: int | None
    blob_hashes: tuple[bytes, ...]
    authorizations: tuple[tuple[int, bytes, int, int, int, int], ...]
    defect: Reason
    verdicts: Mapping[int, Reason]  #: by the rules alone, of each version

    def under(self, policy: Policy | None, rules_version: int = WIDE_RULES_VERSION) -> Reason:
        """What becomes of it in a batch to which a policy was applied: a defect counts first, then the policy."""
        verdict = self.verdicts.get(rules_version, self.verdicts[WIDE_RULES_VERSION])
        if self.defect is not Reason.SIGNABLE or policy is None:
            return verdict
        denied = policy.verdict(self.to, self.value, self.max_fee, self.gas_limit, self.data)
        return verdict if denied is Reason.SIGNABLE else denied


@dataclass(slots=True)
class Finding:
    """What a look at some records gave."""

    outcomes: list[Outcome] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A batch that was seen on tx.signed."""

    header: SignedHeader
    place: Place
    fillers: int


def source_rows(table: pa.Table, source: str, chain_id: int) -> dict[int, SourceRow]:
    """By tx_id; `table` has the columns that ports.Source gives."""
    if table.num_rows == 0:
        return {}
    rows = table.combine_chunks().to_batches()[0]
    found: list[Any] = list(zip(rows.to_pylist(), *_verdicts(rows, source, chain_id), strict=True))
    return {
        row["tx_id"]: SourceRow(
            cursor=Cursor(row["created_xid"], row["tx_id"]),
            type=row["type"],
            to=row["to"],
            value=int.from_bytes(row["value"], "big"),
            gas_limit=row["gas_limit"],
            max_fee=row["max_fee_per_gas"],
            priority=row["max_priority_fee_per_gas"],
            data=row["data"],
            access_list=tuple((e["address"], tuple(e["storage_keys"])) for e in row["access_list"] or ()),
            sender="0x" + row["sender"].hex() if row["sender"] else "",
            blob_fee=row["max_fee_per_blob_gas"],
            blob_hashes=tuple(row["blob_hashes"] or ()),
            authorizations=tuple(_authorization(entry) for entry in row["authorization_list"] or ()),
            defect=Reason(row["defect"]),
            verdicts={RULES_VERSION: Reason(int(narrow)), WIDE_RULES_VERSION: Reason(int(wide))},
        )
        for row, narrow, wide in found
    }


def _verdicts(rows: pa.RecordBatch, source: str, chain_id: int) -> tuple[U8, U8]:
    """By the rules of narrow batches, and of wide ones."""
    header = BatchHeader(Stream(source, 0), 1, START, START, chain_id, "")
    narrow = judge(Batch.build(header, rows.select(COLUMNS.names)))
    if not needs_wide(rows):
        return narrow, narrow
    wide, kinds = narrow.copy(), cast("pa.UInt8Array", rows.column("type")).to_numpy()
    for lane in (kinds == BLOB_TYPE, kinds != BLOB_TYPE):
        part = rows.filter(pa.array(lane)).select(WIDE.names)
        if part.num_rows:
            wide[lane] = judge(Batch.build(replace(header, wide=True), part))
    return narrow, wide


def _authorization(entry: Mapping[str, Any]) -> tuple[int, bytes, int, int, int, int]:
    r, s = (int.from_bytes(entry[name], "big") for name in ("r", "s"))
    return entry["chain_id"], entry["address"], entry["nonce"], entry["y_parity"], r, s


def inspect_record(
    record: SignedRecord,
    place: Place,
    rows: Mapping[int, SourceRow],
    ledger: LedgerEntry | None,
    policy: Policy | None = None,
) -> Finding:
    """One signed record, whose header is sound, against its source rows, its policy and its ledger row."""
    header = record.header
    finding = Finding()
    if ledger is None or promised(ledger) != _kept(header):
        detail = "the ledger has no row" if ledger is None else f"the ledger has {promised(ledger)}"
        finding.violations.append(_violation(header, ViolationKind.LEDGER_MISMATCH, detail))
    fillers = 0
    columns: list[list[Any]] = [record.rows.column(name).to_pylist() for name in ("tx_id", "nonce", "hash", "raw")]
    for index, (tx_id, nonce, tx_hash, raw) in enumerate(zip(*columns, strict=True)):
        fillers += tx_id is None
        wrong = _wrong(header, index, tx_id, (nonce, tx_hash, raw), rows, policy)
        if wrong is not None:
            finding.violations.append(wrong)
        if tx_id is not None:
            finding.outcomes.append(_signed(header, place, tx_id, nonce, tx_hash))
    finding.violations += _out_of_order(header, columns[0], rows)
    finding.sightings.append(Sighting(header, place, fillers))
    return finding


def unsound(said: SignedHeader | Rejection) -> str:
    """What is impossible in what a record says of itself, or empty. Only sound records are compared and kept."""
    if isinstance(said, Rejection):
        numbers = (said.shard, said.seq, said.chain_id, said.tx_id, said.rules_version, said.rejected_at)
        texts = (said.source, said.reason, said.detail)
        if any(type(number) is not int for number in numbers) or any(type(text) is not str for text in texts):
            return "a field has the wrong type"
        stream, nonces = Stream(said.source, said.shard), (0, 0)
    else:
        stream, nonces = said.stream, (said.first_nonce, said.count)
        if not (ADDRESS.fullmatch(said.sender) if said.count else said.sender == ""):
            return f"the sender is {said.sender[:64]!r}"
    if not SOURCE_NAME.fullmatch(stream.source) or not 0 <= stream.shard <= SMALLINT_MAX:
        return f"the stream is {str(stream)[:64]!r}"
    if not 0 < said.seq <= BIGINT_MAX or not 0 <= said.chain_id <= BIGINT_MAX:
        return f"the batch is number {said.seq} on chain {said.chain_id}"
    if min(nonces) < 0 or sum(nonces) > NONCE_END:
        return f"the nonces are {nonces[0]} and {nonces[1]} from there"
    return ""


def inspect_rejection(
    rejection: Rejection, place: Place, rows: Mapping[int, SourceRow], policy: Policy | None = None
) -> Finding:
    """One rejected row, whose rejection is sound, against what the rules and the policy say of it."""
    stream = Stream(rejection.source, rejection.shard)
    row = rows.get(rejection.tx_id)
    finding = Finding()
    if row is None:
        detail = "a row was rejected that the source does not have"
        finding.violations.append(Violation(ViolationKind.UNKNOWN_ROW, detail, stream, rejection.seq, rejection.tx_id))
    elif rejection.reason != (verdict := row.under(policy, rejection.rules_version)).code and (
        verdict is not Reason.SIGNABLE or rejection.reason not in _found_later(row)
    ):
        detail = f"rejected as {rejection.reason}, the rules say {verdict.code}"
        finding.violations.append(
            Violation(ViolationKind.WRONG_VERDICT, detail, stream, rejection.seq, rejection.tx_id)
        )
    finding.outcomes.append(
        Outcome(
            source=rejection.source,
            tx_id=rejection.tx_id,
            status="rejected",
            chain_id=rejection.chain_id,
            stream=stream,
            seq=rejection.seq,
            place=place,
            reason=rejection.reason,
            detail=rejection.detail,
        )
    )
    return finding


def _found_later(row: SourceRow) -> set[str]:
    """Why a row may be rejected that no rule is against."""
    return {Reason.SIGNING_FAILED.code} | ({reason.code for reason in OF_SENDER} if row.sender else set())


def _wrong(
    header: SignedHeader,
    index: int,
    tx_id: int | None,
    signed: tuple[int, bytes, bytes],
    rows: Mapping[int, SourceRow],
    policy: Policy | None,
) -> Violation | None:
    """The first thing that is wrong with one signed row."""
    nonce, tx_hash, raw = signed
    try:
        tx = decode(raw)
    except MalformedBatch as error:
        return _violation(header, ViolationKind.UNREADABLE, str(error), tx_id)
    if tx.sender != header.sender:
        return _violation(header, ViolationKind.WRONG_SENDER, f"{tx.sender} signed, not {header.sender}", tx_id)
    if not tx.nonce == nonce == header.first_nonce + index:
        detail = f"nonce {tx.nonce} is signed, {header.first_nonce + index} was assigned"
        return _violation(header, ViolationKind.WRONG_NONCE, detail, tx_id)
    if tx.hash != tx_hash:
        return _violation(header, ViolationKind.WRONG_HASH, "the hash is not the transaction's", tx_id)
    return _wrong_filler(header, tx) if tx_id is None else _wrong_content(header, tx_id, tx, rows.get(tx_id), policy)


def _out_of_order(header: SignedHeader, tx_ids: Sequence[int | None], rows: Mapping[int, SourceRow]) -> list[Violation]:
    known = [(rows[tx_id].cursor, tx_id) for tx_id in tx_ids if tx_id is not None and tx_id in rows]
    return [
        _violation(header, ViolationKind.WRONG_ORDER, f"signed after row {before}, which follows it", tx_id)
        for (earlier, before), (later, tx_id) in pairwise(known)
        if earlier >= later
    ]


def _wrong_content(
    header: SignedHeader, tx_id: int, tx: SignedTx, row: SourceRow | None, policy: Policy | None
) -> Violation | None:
    if row is None:
        return _violation(header, ViolationKind.UNKNOWN_ROW, "signed, but the source has no such row", tx_id)
    if (verdict := row.under(policy)) is not Reason.SIGNABLE:
        detail = f"signed, although the rules say {verdict.code}"
        return _violation(header, ViolationKind.WRONG_VERDICT, detail, tx_id)
    if row.sender not in ("", header.sender):
        return _violation(header, ViolationKind.WRONG_SENDER, f"{header.sender} signed, not {row.sender}", tx_id)
    compared = {
        "type": (tx.type, row.type),
        "chain_id": (tx.chain_id, header.chain_id),
        "to": (tx.to, row.to),
        "value": (tx.value, row.value),
        "gas_limit": (tx.gas_limit, row.gas_limit),
        "max_fee_per_gas": (tx.max_fee, row.max_fee),
        "max_priority_fee_per_gas": (tx.priority, row.priority),
        "data": (tx.data, row.data),
        "access_list": (tx.access_list, row.access_list),
        "max_fee_per_blob_gas": (tx.blob_fee, row.blob_fee),
        "blob_hashes": (tx.blob_hashes, row.blob_hashes),
        "authorization_list": (tx.authorizations, row.authorizations),
    }
    changed = [name for name, (found, expected) in compared.items() if found != expected]
    if not changed:
        return None
    return _violation(header, ViolationKind.CHANGED_FIELD, f"{', '.join(changed)} differ from the source row", tx_id)


def _wrong_filler(header: SignedHeader, tx: SignedTx) -> Violation | None:
    to = "0x" + tx.to.hex() if tx.to else ""
    if (to, tx.value, tx.data, tx.chain_id) == (header.sender, 0, b"", header.chain_id):
        return None
    return _violation(header, ViolationKind.CHANGED_FIELD, "a nonce filler is not a transfer of 0 to its sender")


def promised(entry: LedgerEntry) -> tuple[object, ...]:
    """What a signer swore: digest, chain, sender, first nonce, count, fence."""
    return entry.digest, entry.chain_id, entry.sender, entry.first_nonce, entry.count, entry.fence


def lent(assignment: Assignment) -> tuple[object, ...]:
    """The same of an assignment."""
    a = assignment
    return a.digest, a.chain_id, a.address, a.first_nonce, a.count, a.fence


def _kept(header: SignedHeader) -> tuple[object, ...]:
    return header.digest, header.chain_id, header.sender, header.first_nonce, header.count, header.fence


def _signed(header: SignedHeader, place: Place, tx_id: int, nonce: int, tx_hash: bytes) -> Outcome:
    return Outcome(
        source=header.stream.source,
        tx_id=tx_id,
        status="signed",
        chain_id=header.chain_id,
        stream=header.stream,
        seq=header.seq,
        sender=header.sender,
        nonce=nonce,
        tx_hash=tx_hash,
        place=place,
    )


def _violation(header: SignedHeader, kind: ViolationKind, detail: str, tx_id: int | None = None) -> Violation:
    return Violation(kind, detail, header.stream, header.seq, tx_id)


def merged(findings: Sequence[Finding]) -> Finding:
    """All of them as one."""
    whole = Finding()
    for finding in findings:
        whole.outcomes += finding.outcomes
        whole.violations += finding.violations
        whole.sightings += finding.sightings
    return whole

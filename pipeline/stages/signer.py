"""The signer: the only place where a private key is open, and the only path to a signature.

    batch, assignment → same batch? same signable rows? → ledger row (durable) → sign → check → signed record

Everything that could make a second, different answer is refused before the ledger row; nothing after it depends on
anything but the batch, the assignment and the key (RFC 6979), so a repeat gives the same bytes.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.assignment.records import Assignment
from pipeline.custody.unsealed import KeyCache, UnsealedKey
from pipeline.errors import SigningRefused
from pipeline.ethereum import kernel
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.check import check, sample_rows
from pipeline.ethereum.columns import U8
from pipeline.ethereum.filler import fill
from pipeline.ethereum.reasons import OF_SENDER, Reason
from pipeline.ethereum.rejected import Rejection
from pipeline.ethereum.signed import SignedColumns, SignedHeader, SignedRecord
from pipeline.ethereum.validity import explain, judge, rules_version
from pipeline.ports import Assigned, Clock, Ledger, LedgerEntry, SignedBatch
from pipeline.settings import SigningSettings

DENIALS: Final = frozenset(reason.code for reason in OF_SENDER)


class Kernel(Protocol):
    """What turns columns into signatures."""

    async def sign(self, batch: Batch, signable: NDArray[np.bool_], key: UnsealedKey, nonce: int) -> SignedColumns:
        """The signable rows, with consecutive nonces from `nonce`."""
        ...


class Opener(Protocol):
    """The key-encryption keys of the pool: custody.kek_ring.KekRing, or one Kek."""

    def unseal(self, sealed: bytes, address: str) -> UnsealedKey:
        """Raises SecretFileError."""
        ...


class NativeKernel:
    """ethereum.kernel in a thread of its own, so that the event loop goes on while it signs."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="signing")

    async def sign(self, batch: Batch, signable: NDArray[np.bool_], key: UnsealedKey, nonce: int) -> SignedColumns:
        """See Kernel."""
        signed: SignedColumns = await self._run(kernel.sign, batch, signable, key.reveal(), nonce)
        return signed

    async def warm(self) -> None:
        """Compile, or load what was compiled before, so that the first batch does not wait for it."""
        await self._run(kernel.warm)

    async def _run(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


@dataclass(slots=True)
class SignerCount:
    """What a signer has done since it started."""

    batches: int = 0
    signed: int = 0
    fillers: int = 0


class Signer:
    """Signs batches, one after the other or several at once."""

    def __init__(
        self, worker: str, ledger: Ledger, keks: Opener, kernel_: Kernel, clock: Clock, settings: SigningSettings
    ) -> None:
        self._worker = worker
        self._ledger = ledger
        self._keks = keks
        self._kernel = kernel_
        self._clock = clock
        self._settings = settings
        self._keys = KeyCache()
        self.count = SignerCount()

    async def sign(self, value: bytes, assigned: Assigned) -> SignedBatch:
        """Raises SigningRefused, LedgerRefused, SecretFileError, DatabaseUnavailable."""
        assignment = assigned.assignment
        batch = Batch.decode(value)
        reasons = judge(batch)
        check_job(batch, assignment, int(np.count_nonzero(reasons == 0)))
        if assignment.denied:
            reasons = np.where(reasons == 0, np.uint8(Reason[assignment.denied.upper()]), reasons)
        await self._ledger.record(entry_of(assignment, self._worker))
        signed = SignedColumns.empty()
        if assignment.count:
            signed = await self._signed(batch, reasons == 0, assigned)
        reasons = _with_failures(reasons, signed)
        record = SignedRecord.build(header_of(assignment, self._worker, batch.header.policy), signed)
        self.count.batches += 1
        self.count.signed += assignment.count
        return SignedBatch(record.encode(), rejections(batch, reasons, self._clock.unix_ms()))

    async def _signed(self, batch: Batch, signable: NDArray[np.bool_], assigned: Assigned) -> SignedColumns:
        assignment = assigned.assignment
        key = self._key(assignment.address, assigned.sealed)
        signed = await self._kernel.sign(batch, signable, key, assignment.first_nonce)
        if signed.failed.any():
            # Nonces after a hole would never be mined: a transfer of nothing to the sender itself takes its place.
            self.count.fillers += int(signed.failed.sum())
            signed = fill(signed, batch, np.flatnonzero(signable), assignment.address, key.reveal())
        rows = sample_rows(
            assignment.digest, assignment.count, self._settings.check_rows, every=self._settings.check_all
        )
        check(signed, batch, signable, assignment.address, rows)
        return signed

    def _key(self, address: str, sealed: bytes) -> UnsealedKey:
        key = self._keys.get(address)
        if key is None:
            key = self._keks.unseal(sealed, address)
            self._keys.put(key)
        return key


def check_job(batch: Batch, assignment: Assignment, signable: int) -> None:
    """Refuse to sign unless batch and assignment belong together. Raises SigningRefused."""
    header = batch.header
    if assignment.denied and (not header.sender or assignment.denied not in DENIALS):
        raise SigningRefused(f"batch {header.seq} of {header.stream} cannot be denied as {assignment.denied[:64]!r}.")
    sender = header.sender if assignment.count else ""
    is_so = {
        "stream": (header.stream, assignment.stream),
        "seq": (header.seq, assignment.seq),
        "prev": (header.prev, assignment.prev),
        "cursor": (header.cursor, assignment.cursor),
        "digest": (batch.digest, assignment.digest),
        "chain id": (header.chain_id, assignment.chain_id),
        "rules version": (rules_version(batch), assignment.rules_version),
        "rows": (batch.rows.num_rows, assignment.rows),
        "signable rows": (0 if assignment.denied else signable, assignment.count),
        "pinned sender": (sender or assignment.address, assignment.address),
    }
    for what, (found, assigned) in is_so.items():
        if found != assigned:
            raise SigningRefused(f"batch {header.seq} of {header.stream}: {what} is {found}, assigned was {assigned}.")


def entry_of(assignment: Assignment, worker: str) -> LedgerEntry:
    """What the ledger remembers of an assignment."""
    return LedgerEntry(
        stream=assignment.stream,
        seq=assignment.seq,
        digest=assignment.digest,
        chain_id=assignment.chain_id,
        sender=assignment.address,
        first_nonce=assignment.first_nonce,
        count=assignment.count,
        fence=assignment.fence,
        worker=worker,
    )


def header_of(assignment: Assignment, worker: str, policy: int) -> SignedHeader:
    """The header of the signed record of an assignment."""
    return SignedHeader(
        stream=assignment.stream,
        seq=assignment.seq,
        chain_id=assignment.chain_id,
        sender=assignment.address,
        first_nonce=assignment.first_nonce,
        count=assignment.count,
        digest=assignment.digest,
        fence=assignment.fence,
        worker=worker,
        policy=policy,
    )


def _with_failures(reasons: U8, signed: SignedColumns) -> U8:
    """Mark the rows whose nonces were filled."""
    fillers = signed.tx_id_valid == 0
    if fillers.any():
        reasons[np.flatnonzero(reasons == 0)[fillers]] = int(Reason.SIGNING_FAILED)
    return reasons


def rejections(batch: Batch, reasons: U8, now_ms: int) -> tuple[bytes, ...]:
    """One JSON record per rejected row, in the order of the rows."""
    header = batch.header
    return tuple(
        Rejection(
            tx_id=int(batch.columns.tx_id[row]),
            source=header.stream.source,
            shard=header.stream.shard,
            seq=header.seq,
            chain_id=header.chain_id,
            reason=Reason(reasons[row]).code,
            detail=explain(batch, int(row), Reason(reasons[row])),
            rules_version=rules_version(batch),
            rejected_at=now_ms,
            policy=header.policy,
        ).to_json()
        for row in np.flatnonzero(reasons)
    )

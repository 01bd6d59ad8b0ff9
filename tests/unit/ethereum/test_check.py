from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from jobs.bench_kernel import mixed_rows
from pipeline.errors import SigningRefused
from pipeline.ethereum.batch import Batch
from pipeline.ethereum.check import check, sample_rows
from pipeline.ethereum.decoding import ORDER, decode
from pipeline.ethereum.filler import fill
from pipeline.ethereum.kernel import sign
from pipeline.ethereum.signed import SignedColumns, SignedRecord
from tests import ethereum_rows as rows_
from tests.unit.ethereum.test_signed import HEADER

COUNT = 60
ALL = np.arange(COUNT)
EVERY = np.ones(COUNT, np.bool_)


@pytest.fixture(scope="module")
def batch() -> Batch:
    listed = rows_.row(access_list=[{"address": b"\x11" * 20, "storage_keys": [b"\x22" * 32]}])
    return rows_.batch(
        [*mixed_rows(COUNT - 3), listed, listed | {"type": 1, "max_priority_fee_per_gas": None}, rows_.row()]
    )


@pytest.fixture
def signed(batch: Batch) -> SignedColumns:
    return sign(batch, EVERY, rows_.SECRET, 5)


def test_what_the_kernel_signed_passes(batch: Batch, signed: SignedColumns) -> None:
    check(signed, batch, EVERY, rows_.ADDRESS, ALL)


def test_rows_that_were_left_out_are_stepped_over(batch: Batch) -> None:
    some = EVERY.copy()
    some[::3] = False
    check(sign(batch, some, rows_.SECRET, 5), batch, some, rows_.ADDRESS, np.arange(int(some.sum())))
    with pytest.raises(SigningRefused):
        check(sign(batch, some, rows_.SECRET, 5), batch, EVERY, rows_.ADDRESS, np.arange(int(some.sum())))


def test_every_bit_of_a_row_matters(batch: Batch, signed: SignedColumns) -> None:
    last = COUNT - 1
    start, end = int(signed.raw_offsets[last]), int(signed.raw_offsets[last + 1])
    for place in range(start, end):
        for bit in (1, 0x80):
            signed.raw[place] ^= bit
            with pytest.raises(SigningRefused):
                check(signed, batch, EVERY, rows_.ADDRESS, np.array([last]))
            signed.raw[place] ^= bit
    check(signed, batch, EVERY, rows_.ADDRESS, np.array([last]))


def test_a_row_that_is_not_looked_at_is_not_checked(batch: Batch, signed: SignedColumns) -> None:
    signed.raw[-1] ^= 1
    check(signed, batch, EVERY, rows_.ADDRESS, ALL[:-1])
    with pytest.raises(SigningRefused):
        check(signed, batch, EVERY, rows_.ADDRESS, ALL)


def test_another_sender_is_refused(batch: Batch) -> None:
    with pytest.raises(SigningRefused, match="sender"):
        check(sign(batch, EVERY, bytes(31) + b"\1", 5), batch, EVERY, rows_.ADDRESS, ALL[:1])


def test_another_nonce_is_refused(batch: Batch, signed: SignedColumns) -> None:
    moved = dataclasses.replace(signed, nonce=signed.nonce + np.uint64(1))
    with pytest.raises(SigningRefused, match="nonce"):
        check(moved, batch, EVERY, rows_.ADDRESS, ALL[:1])


def test_another_hash_is_refused(batch: Batch, signed: SignedColumns) -> None:
    signed.hashes[0, 31] ^= 1
    with pytest.raises(SigningRefused, match="hash"):
        check(signed, batch, EVERY, rows_.ADDRESS, ALL[:1])


def test_another_chain_is_refused(batch: Batch, signed: SignedColumns) -> None:
    other = rows_.batch(batch.rows.to_pylist(), 5)
    with pytest.raises(SigningRefused, match="chain id"):
        check(signed, other, EVERY, rows_.ADDRESS, ALL[:1])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"type": 1}, "type"),
        ({"to": None}, "recipient"),
        ({"to": b"\x36" * 20}, "recipient"),
        ({"value": rows_.wei(10**18 + 1)}, "value"),
        ({"gas_limit": 21_001}, "gas limit"),
        ({"max_fee_per_gas": 20 * 10**9 + 1}, "fee cap"),
        ({"max_priority_fee_per_gas": 10**9 + 1}, "priority fee"),
        ({"data": b"\0"}, "data"),
        ({"access_list": [{"address": b"\x11" * 20, "storage_keys": []}]}, "access list"),
    ],
)
def test_another_field_than_was_asked_for_is_refused(change: dict[str, Any], word: str) -> None:
    asked, made = rows_.batch([rows_.row()]), rows_.batch([rows_.row(**change)])
    signed = sign(made, EVERY[:1], rows_.SECRET, 5)
    check(signed, made, EVERY[:1], rows_.ADDRESS, ALL[:1])
    with pytest.raises(SigningRefused, match=word):
        check(signed, asked, EVERY[:1], rows_.ADDRESS, ALL[:1])


@pytest.mark.parametrize(
    ("kind", "change", "word"),
    [
        (3, {"max_fee_per_blob_gas": 1}, "blob fee"),
        (3, {"blob_hashes": [rows_.BLOB_HASH] * 2}, "blob hashes"),
        (3, {"blob_hashes": [rows_.BLOB_HASH[:-1] + b"\0"]}, "blob hashes"),
        (4, {"authorization_list": [rows_.authorization()] * 2}, "authorizations"),
        *(
            (4, {"authorization_list": [rows_.authorization(**change)]}, "authorizations")
            for change in (
                {"chain_id": 0},
                {"address": bytes(20)},
                {"nonce": 4},
                {"y_parity": 0},
                {"r": rows_.wei(1)},
                {"s": rows_.wei(1)},
            )
        ),
    ],
)
def test_another_field_of_a_wide_batch_is_refused(kind: int, change: dict[str, Any], word: str) -> None:
    asked, made = rows_.wide_batch([rows_.row(type=kind)]), rows_.wide_batch([rows_.row(type=kind, **change)])
    signed = sign(made, EVERY[:1], rows_.SECRET, 5)
    check(signed, made, EVERY[:1], rows_.ADDRESS, ALL[:1])
    with pytest.raises(SigningRefused, match=f"another {word} than"):
        check(signed, asked, EVERY[:1], rows_.ADDRESS, ALL[:1])


@pytest.mark.parametrize("kind", [3, 4])
def test_every_bit_of_a_wide_row_matters(kind: int) -> None:
    batch = rows_.wide_batch([rows_.row(type=kind)], sender=rows_.ADDRESS)
    signed = sign(batch, EVERY[:1], rows_.SECRET, 5)
    for place in range(len(signed.raw)):
        for bit in (1, 0x80):
            signed.raw[place] ^= bit
            with pytest.raises(SigningRefused):
                check(signed, batch, EVERY[:1], rows_.ADDRESS, ALL[:1])
            signed.raw[place] ^= bit
    check(signed, batch, EVERY[:1], rows_.ADDRESS, ALL[:1])


def test_a_high_s_is_refused(batch: Batch, signed: SignedColumns) -> None:
    raw = signed.raw[signed.raw_offsets[COUNT - 1] :]
    assert raw[-33] == 0xA0  # s fills its 32 bytes
    raw[-32:] = np.frombuffer((ORDER - int.from_bytes(raw[-32:].tobytes(), "big")).to_bytes(32, "big"), np.uint8)
    with pytest.raises(SigningRefused, match="upper half"):
        check(signed, batch, EVERY, rows_.ADDRESS, np.array([COUNT - 1]))


def test_a_message_holds_no_transaction(batch: Batch) -> None:
    with pytest.raises(SigningRefused) as caught:
        check(sign(batch, EVERY, bytes(31) + b"\1", 5), batch, EVERY, rows_.ADDRESS, ALL[:1])
    assert len(str(caught.value)) < 120


def test_the_sample_has_the_first_the_last_and_some_others() -> None:
    rows = sample_rows(rows_.DIGEST, 1000, 8, every=False).tolist()
    assert rows[0] == 0
    assert rows[-1] == 999
    assert 3 <= len(rows) <= 10
    assert rows == sorted(set(rows))
    assert rows == sample_rows(rows_.DIGEST, 1000, 8, every=False).tolist()
    assert rows != sample_rows("ab" * 32, 1000, 8, every=False).tolist()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_small_batches_are_sampled(count: int) -> None:
    assert sample_rows(rows_.DIGEST, count, 0, every=False).tolist() == sorted({0, count - 1} if count else set())
    assert sample_rows(rows_.DIGEST, count, 0, every=True).tolist() == list(range(count))


def test_every_row_can_be_asked_for() -> None:
    assert sample_rows(rows_.DIGEST, 50, 1, every=True).tolist() == list(range(50))


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_a_key_of_another_length_is_refused(batch: Batch, length: int) -> None:
    with pytest.raises(SigningRefused) as caught:
        sign(batch, EVERY, b"\x5e" * length, 0)
    assert "5e5e" not in str(caught.value)


@pytest.mark.parametrize("nonce", [-1, 2**64 - COUNT, 2**64 - 1, 2**64])
def test_nonces_out_of_range_are_refused(batch: Batch, nonce: int) -> None:
    with pytest.raises(SigningRefused):
        sign(batch, EVERY, rows_.SECRET, nonce)


def test_the_last_nonce_there_is_can_be_used(batch: Batch) -> None:
    signed = sign(batch, EVERY, rows_.SECRET, 2**64 - 1 - COUNT)
    assert int(signed.nonce[-1]) == 2**64 - 2  # EIP-2681
    check(signed, batch, EVERY, rows_.ADDRESS, ALL)


@pytest.mark.parametrize("secret", [bytes(32), ORDER.to_bytes(32, "big"), b"\xff" * 32])
def test_a_key_that_signs_nothing_fails_every_row(batch: Batch, secret: bytes) -> None:
    signed = sign(batch, EVERY, secret, 5)
    assert signed.failed.all()
    assert len(signed.raw) == 0
    assert not signed.raw_offsets.any()
    assert not signed.hashes.any()
    with pytest.raises(SigningRefused):
        fill(signed, batch, ALL, rows_.ADDRESS, secret)
    with pytest.raises(SigningRefused):
        check(signed, batch, EVERY, rows_.ADDRESS, ALL[:1])


def failing(signed: SignedColumns, rows: list[int]) -> SignedColumns:
    """As if libsecp256k1 had not signed these rows."""
    pieces = [b"" if k in rows else rows_.raw_of(signed, k) for k in range(len(signed.nonce))]
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int32)
    hashes, failed = signed.hashes.copy(), signed.failed.copy()
    hashes[rows], failed[rows] = 0, 1
    raw = np.frombuffer(b"".join(pieces), np.uint8).copy()
    return dataclasses.replace(signed, hashes=hashes, failed=failed, raw=raw, raw_offsets=offsets)


@pytest.mark.parametrize("rows", [[0], [COUNT - 1], [3, 4, 17], list(range(COUNT))])
def test_a_nonce_without_a_signature_is_filled(batch: Batch, signed: SignedColumns, rows: list[int]) -> None:
    filled = fill(failing(signed, rows), batch, ALL, rows_.ADDRESS, rows_.SECRET)
    check(filled, batch, EVERY, rows_.ADDRESS, ALL)
    assert filled.nonce.tolist() == signed.nonce.tolist()
    for k in range(COUNT):
        if k not in rows:
            assert rows_.raw_of(filled, k) == rows_.raw_of(signed, k)
            continue
        tx = decode(rows_.raw_of(filled, k))
        assert (tx.sender, tx.nonce, tx.chain_id) == (rows_.ADDRESS, 5 + k, 1)
        assert (tx.to, tx.value, tx.data, tx.gas_limit) == (bytes.fromhex(rows_.ADDRESS[2:]), 0, b"", 21_000)
        assert tx.max_fee == batch.columns.max_fee[k]
    header = dataclasses.replace(HEADER, count=COUNT, first_nonce=5)
    record = SignedRecord.decode(SignedRecord.build(header, filled).encode())
    expected = [None if k in rows else tx_id for k, tx_id in enumerate(batch.columns.tx_id.tolist())]
    assert record.rows.column("tx_id").to_pylist() == expected


@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("rows", [[0], [1, 2]])
def test_a_nonce_of_a_wide_batch_is_filled_by_a_plain_transfer(kind: int, rows: list[int]) -> None:
    asked = [rows_.row(type=kind, max_fee_per_gas=10**9 + k, max_priority_fee_per_gas=1) for k in range(3)]
    batch = rows_.wide_batch(asked, sender=rows_.ADDRESS)
    signed = sign(batch, EVERY[:3], rows_.SECRET, 5)
    filled = fill(failing(signed, rows), batch, ALL[:3], rows_.ADDRESS, rows_.SECRET)
    check(filled, batch, EVERY[:3], rows_.ADDRESS, ALL[:3])
    assert filled.tx_id_valid.tolist() == [k not in rows for k in range(3)]
    for k in rows:
        tx = decode(rows_.raw_of(filled, k))
        assert (tx.type, tx.sender, tx.nonce, tx.chain_id) == (2, rows_.ADDRESS, 5 + k, 1)
        assert (tx.to, tx.value, tx.data, tx.gas_limit) == (bytes.fromhex(rows_.ADDRESS[2:]), 0, b"", 21_000)
        assert tx.max_fee == tx.priority == 10**9 + k


def test_a_filler_of_another_sender_is_refused(batch: Batch, signed: SignedColumns) -> None:
    filled = fill(failing(signed, [3]), batch, ALL, rows_.ADDRESS, bytes(31) + b"\1")
    with pytest.raises(SigningRefused, match="sender"):
        check(filled, batch, EVERY, rows_.ADDRESS, np.array([3]))

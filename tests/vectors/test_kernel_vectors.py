"""The kernel against published vectors and against eth-account, byte for byte."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.bench_kernel import mixed_rows
from pipeline.ethereum.decoding import HALF_ORDER, decode
from pipeline.ethereum.kernel import sign
from pipeline.ethereum.signed import SignedColumns
from tests import ethereum_rows as rows_

EIP_155_EXAMPLE = (
    "f86c098504a817c800825208943535353535353535353535353535353535353535880de0b6b3a76400008025a028ef61340bd939bc2195fe53"
    "7567866003e1a15d3c71ff63e1590620aa636276a067cbe9d8997f761aecb703304b3800ccf555c9f3dc64214b297fb1966a3b6d83"
)
"""The signed transaction that EIP-155 spells out: key 0x46…46, nonce 9, 20 gwei, 1 ether to 0x35…35, chain 1."""

MANY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def signed_alone(row: rows_.Row, nonce: int, secret: bytes = rows_.SECRET) -> tuple[bytes, bytes]:
    batch = rows_.batch_for([row], row["chain_id"])
    signed = sign(batch, np.ones(1, np.bool_), secret, nonce)
    assert not signed.failed.any()
    return rows_.raw_of(signed, 0), signed.hashes[0].tobytes()


def test_the_example_of_eip_155() -> None:
    raw, _ = signed_alone(rows_.row(type=0, max_fee_per_gas=20 * 10**9), 9)
    assert raw.hex() == EIP_155_EXAMPLE


def test_the_oracle_gives_the_example_too() -> None:
    assert rows_.expected(rows_.row(type=0), 9)[0].hex() == EIP_155_EXAMPLE


@MANY
@given(st.data())
def test_one_row_is_byte_identical_to_eth_account(data: st.DataObject) -> None:
    # 2^63 - 37 is the largest chain id whose v fits 64 bits (EIP-2294).
    chain_id = data.draw(rows_.integers((1, 0x7F, 0x80, 137, 11_155_111, 2**32, 2**63 - 37), 2**63 - 37))
    row, nonce = data.draw(rows_.rows(max(chain_id, 1), range(5))), data.draw(rows_.nonces)
    secret = data.draw(rows_.secrets)
    assert signed_alone(row, nonce, secret) == rows_.expected(row, nonce, secret)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.sampled_from([(0, 1, 2), (0, 1, 2, 4), (3,)]), st.data())
def test_rows_of_one_batch_do_not_touch_each_other(kinds: tuple[int, ...], data: st.DataObject) -> None:
    rows = data.draw(st.lists(rows_.rows(kinds=kinds), min_size=1, max_size=20))
    signable = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), np.bool_)
    signed = sign(rows_.batch_for(rows), signable, rows_.SECRET, 300)
    left = [row for row, take in zip(rows, signable, strict=True) if take]
    assert signed.tx_id.tolist() == [row["tx_id"] for row in left]
    assert signed.nonce.tolist() == list(range(300, 300 + len(left)))
    for k, row in enumerate(left):
        assert (rows_.raw_of(signed, k), signed.hashes[k].tobytes()) == rows_.expected(row, 300 + k)


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize("length", rows_.LENGTHS)
def test_every_header_length_of_data(kind: int, length: int) -> None:
    to = None if kind <= 2 else bytes(20)
    for row in (rows_.row(type=kind, data=b"\x7f" * length), rows_.row(type=kind, data=b"\x80" * length, to=to)):
        assert signed_alone(row, 0) == rows_.expected(row, 0)


@pytest.mark.parametrize(
    ("entries", "keys"),
    [(0, 0), (1, 0), (2, 0), (3, 0), (40, 0), (1, 1), (2, 1), (1, 2), (3, 7), (3, 8), (40, 8), (1, 2_000), (2, 2_000)],
)
def test_every_header_length_of_an_access_list(entries: int, keys: int) -> None:
    lists = [
        {"address": bytes([e]) * 20, "storage_keys": [bytes([k % 251]) * 32 for k in range(keys)]}
        for e in range(entries)
    ]
    for kind in (1, 2, 3, 4):
        row = rows_.row(type=kind, access_list=lists)
        assert signed_alone(row, 5) == rows_.expected(row, 5)


@pytest.mark.parametrize("count", [1, 2, 6, 7, 8, 300, 2_000])
def test_every_header_length_of_blob_hashes(count: int) -> None:
    row = rows_.row(type=3, blob_hashes=[rows_.BLOB_HASH] * count)
    assert signed_alone(row, 5) == rows_.expected(row, 5)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 700])
@pytest.mark.parametrize("size", [1, 15, 16, 32])
def test_every_header_length_of_authorizations(count: int, size: int) -> None:
    # r and s of 15 bytes make an entry of 55, the longest with a short header; from 16 on it is a long one.
    number = rows_.wei(0x81 << 8 * (size - 1))
    entry = rows_.authorization(r=number, s=number, nonce=0x80 if size < 32 else 2**64 - 1)
    row = rows_.row(type=4, authorization_list=[entry] * count)
    assert signed_alone(row, 5) == rows_.expected(row, 5)


def test_the_room_of_a_row_is_enough_for_the_longest_fields() -> None:
    # The rows are of one batch: what went beyond its room would be in the next.
    most = {"gas_limit": 2**64 - 1, "max_fee_per_gas": 2**64 - 1, "value": b"\xff" * 32, "data": b"\xff" * 65_536}
    most |= {
        "max_priority_fee_per_gas": 2**64 - 1,
        "access_list": [{"address": b"\xff" * 20, "storage_keys": []}] * 700,
    }
    full = dict.fromkeys(("chain_id", "nonce"), 2**64 - 1) | {"r": b"\xff" * 32, "s": b"\xff" * 32}
    kinds: list[rows_.Row] = [
        {"type": 3, "max_fee_per_blob_gas": 2**64 - 1, "blob_hashes": [rows_.BLOB_HASH] * 700},
        {"type": 4, "authorization_list": [rows_.authorization(**full)] * 700},
    ]
    chain_id, nonce = 2**63 - 37, 2**64 - 10
    for extras in kinds:
        rows = [rows_.row(**most, **extras, chain_id=chain_id)] * 4
        signed = sign(rows_.wide_batch(rows, chain_id), np.ones(4, np.bool_), rows_.SECRET, nonce)
        for k, row in enumerate(rows):
            assert (rows_.raw_of(signed, k), signed.hashes[k].tobytes()) == rows_.expected(row, nonce + k)


def test_signatures_whose_r_or_s_is_short() -> None:
    # One in 128 or so has a leading zero byte in r or s, which RLP must drop.
    rows = [rows_.row(tx_id=i, type=i % 3) for i in range(600)]
    signed = sign(rows_.batch(rows), np.ones(600, np.bool_), rows_.SECRET, 0)
    short = 0
    for k, row in enumerate(rows):
        raw, transaction_hash = rows_.expected(row, k)
        assert (rows_.raw_of(signed, k), signed.hashes[k].tobytes()) == (raw, transaction_hash)
        short += raw[-66:-33][:1] != b"\xa0" or raw[-33:][:1] != b"\xa0"
    assert short > 0


def test_a_repeat_gives_the_same_bytes_and_s_is_low() -> None:
    rows = mixed_rows(300)
    first, second = (sign(rows_.batch(rows), np.ones(300, np.bool_), rows_.SECRET, 17) for _ in range(2))
    for name in SignedColumns.__slots__:
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    for k in range(300):
        raw = rows_.raw_of(first, k)
        assert int.from_bytes(raw[-32:], "big") <= HALF_ORDER or raw[-33] != 0xA0
        assert decode(raw).sender == rows_.ADDRESS


def test_threads_sign_at_the_same_time() -> None:
    batches = [rows_.batch(mixed_rows(200 + 10 * i)) for i in range(6)]

    def run(i: int) -> bytes:
        signed = sign(batches[i], np.ones(200 + 10 * i, np.bool_), rows_.SECRET, i)
        return signed.raw.tobytes() + signed.hashes.tobytes()

    alone = [run(i) for i in range(6)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, [*range(6)] * 4)) == alone * 4

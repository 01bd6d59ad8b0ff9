"""Rows of batches for tests: builders, hypothesis strategies, and eth-account as the oracle of what must come out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
from coincurve import PrivateKey
from eth_account import Account
from hypothesis import strategies as st
from sha3 import keccak_256

from jobs.bench_kernel import eth_account_request
from pipeline.ethereum.batch import COLUMNS, WIDE, Batch, BatchHeader
from pipeline.ethereum.decoding import HALF_ORDER, ORDER
from pipeline.ethereum.signed import SignedColumns
from pipeline.stream import Cursor, Stream

Row = dict[str, Any]

SECRET: Final = bytes.fromhex("4646464646464646464646464646464646464646464646464646464646464646")
ADDRESS: Final = "0x9d8a62f656a8d1615c1294fd71e9cfb3e4855a4f"
CHAIN_ID: Final = 1
DIGEST: Final = "5b" * 32

BOUNDARIES: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 2**32 - 1, 2**32, 2**63 - 1, 2**64 - 1)
WEI: Final = (*BOUNDARIES, 2**64, 2**128 - 1, 2**248 - 1, 2**255, 2**256 - 1)
LENGTHS: Final = (0, 1, 2, 31, 32, 54, 55, 56, 57, 68, 135, 136, 137, 255, 256, 257, 1000, 65_535, 65_536)


BLOB_HASH: Final = b"\x01" + b"\x77" * 31


def authorization(**changes: Any) -> Row:
    """An entry of an authorization list that breaks no rule; nobody signed it."""
    plain: Row = {
        "chain_id": CHAIN_ID,
        "address": b"\x55" * 20,
        "nonce": 3,
        "y_parity": 1,
        "r": wei(ORDER - 1),
        "s": wei(HALF_ORDER),
    }
    return plain | changes


def row(**changes: Any) -> Row:
    """A plain transfer that breaks no rule. Of types 3 and 4 it has what those need: it fits a wide batch only."""
    plain: Row = {
        "tx_id": 1,
        "type": 2,
        "chain_id": CHAIN_ID,
        "to": bytes.fromhex("35" * 20),
        "value": wei(10**18),
        "gas_limit": 21_000,
        "max_fee_per_gas": 20 * 10**9,
        "max_priority_fee_per_gas": 10**9,
        "data": b"",
        "access_list": None,
        "defect": 0,
    }
    kind = changes.get("type", 2)
    if kind not in {2, 3, 4}:
        plain["max_priority_fee_per_gas"] = None
    if kind == 3:
        plain |= {"max_fee_per_blob_gas": 10**9, "blob_hashes": [BLOB_HASH]}
    if kind == 4:
        plain |= {"authorization_list": [authorization()], "gas_limit": 46_000}
    return plain | changes


def wei(amount: int) -> bytes:
    """As the value column has it."""
    return amount.to_bytes(32, "big")


def header(chain_id: int = CHAIN_ID, seq: int = 7) -> BatchHeader:
    return BatchHeader(Stream("payouts", 3), seq, Cursor(740, 11), Cursor(755, 90), chain_id, "7423")


def record_batch(rows: Sequence[Row]) -> pa.RecordBatch:
    arrays = [pa.array([row[field.name] for row in rows], field.type) for field in COLUMNS]
    return pa.RecordBatch.from_arrays(arrays, schema=COLUMNS)


def wide_record_batch(rows: Sequence[Row]) -> pa.RecordBatch:
    """What a row does not have is null."""
    arrays = [pa.array([row.get(field.name) for row in rows], field.type) for field in WIDE]
    return pa.RecordBatch.from_arrays(arrays, schema=WIDE)


def batch(rows: Sequence[Row], chain_id: int = CHAIN_ID) -> Batch:
    return Batch.build(header(chain_id), record_batch(rows))


def wide_batch(rows: Sequence[Row], chain_id: int = CHAIN_ID, sender: str = "") -> Batch:
    """Of types 0, 1, 2 and 4, or of type 3 alone."""
    wide = dataclasses.replace(header(chain_id), wide=True, sender=sender)
    return Batch.build(wide, wide_record_batch(rows))


def batch_for(rows: Sequence[Row], chain_id: int = CHAIN_ID) -> Batch:
    """A wide batch if one of the rows needs it."""
    return (wide_batch if any(row["type"] > 2 for row in rows) else batch)(rows, chain_id)


def address_of(secret: bytes) -> str:
    public = PrivateKey(secret).public_key.format(compressed=False)
    return f"0x{keccak_256(public[1:]).hexdigest()[24:]}"


def raw_of(signed: SignedColumns, k: int) -> bytes:
    """The signed bytes of one row."""
    raw: bytes = signed.raw[signed.raw_offsets[k] : signed.raw_offsets[k + 1]].tobytes()
    return raw


def expected(row: Row, nonce: int, secret: bytes = SECRET) -> tuple[bytes, bytes]:
    """What eth-account makes of a row: the signed bytes and the hash."""
    signed = Account.sign_transaction(eth_account_request(row, nonce), secret)
    return bytes(signed.raw_transaction), bytes(signed.hash)


def integers(boundaries: Sequence[int], largest: int) -> st.SearchStrategy[int]:
    return st.one_of(st.sampled_from([edge for edge in boundaries if edge <= largest]), st.integers(0, largest))


addresses: Final = st.one_of(
    st.sampled_from([bytes(20), b"\0" * 19 + b"\1", b"\xff" * 20]), st.binary(min_size=20, max_size=20)
)
storage_keys: Final = st.one_of(st.sampled_from([bytes(32), b"\xff" * 32]), st.binary(min_size=32, max_size=32))
access_lists: Final = st.lists(
    st.fixed_dictionaries({"address": addresses, "storage_keys": st.lists(storage_keys, max_size=9)}), max_size=9
)
payloads: Final = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda size, byte: bytes([byte]) * size, st.sampled_from(LENGTHS), st.integers(0, 255)),
)
nonces: Final = integers(BOUNDARIES, 2**64 - 3)
blob_hashes: Final = st.lists(
    st.binary(min_size=31, max_size=31).map(lambda rest: b"\x01" + rest), min_size=1, max_size=6
)
authorizations: Final = st.fixed_dictionaries(
    {
        "chain_id": integers(BOUNDARIES, 2**64 - 1),
        "address": addresses,
        "nonce": integers(BOUNDARIES, 2**64 - 1),
        "y_parity": st.integers(0, 1),
        "r": integers(WEI, 2**256 - 1).map(wei),
        "s": integers(WEI, 2**256 - 1).map(wei),
    }
)
secrets: Final = st.integers(1, 2**252).map(lambda number: number.to_bytes(32, "big"))


@st.composite
def rows(draw: st.DrawFn, chain_id: int = CHAIN_ID, kinds: Sequence[int] = (0, 1, 2)) -> Row:
    """Anything that the columns can hold and a node could parse; not all of it is worth sending."""
    kind = draw(st.sampled_from(kinds))
    extras: Row = {}
    if kind == 3:
        extras = {"max_fee_per_blob_gas": draw(integers(BOUNDARIES, 2**64 - 1)), "blob_hashes": draw(blob_hashes)}
    if kind == 4:
        extras = {"authorization_list": draw(st.lists(authorizations, min_size=1, max_size=4))}
    return row(
        tx_id=draw(st.integers(-(2**63), 2**63 - 1)),
        type=kind,
        chain_id=chain_id,
        to=draw(st.one_of(st.none(), addresses) if kind <= 2 else addresses),
        value=wei(draw(integers(WEI, 2**256 - 1))),
        gas_limit=draw(integers(BOUNDARIES, 2**64 - 1)),
        max_fee_per_gas=draw(integers(BOUNDARIES, 2**64 - 1)),
        max_priority_fee_per_gas=draw(integers(BOUNDARIES, 2**64 - 1)) if kind >= 2 else None,
        data=draw(payloads),
        access_list=draw(st.one_of(st.none(), access_lists)) if kind != 0 else None,
        **extras,
    )

from __future__ import annotations

from typing import Any

import pytest
import rlp
from coincurve import PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sha3 import keccak_256

from pipeline.errors import MalformedBatch
from pipeline.ethereum.decoding import ORDER, SignedTx, decode
from tests import ethereum_rows as rows_

LISTS = [{"address": b"\x11" * 20, "storage_keys": [b"\x22" * 32, b"\x33" * 32]}]


def raw(**changes: Any) -> bytes:
    return rows_.expected(rows_.row(**changes), 9)[0]


def items(raw: bytes) -> list[Any]:
    """An RLP list as nested lists, by another library."""
    decoded: list[Any] = rlp.decode(raw[1:] if raw[0] < 0x80 else raw)
    return decoded


def packed(kind: int, fields: list[Any]) -> bytes:
    encoded: bytes = rlp.encode(fields)
    return encoded if kind == 0 else bytes([kind]) + encoded


def signed_by_hand(kind: int, fields: list[Any], chain_id: int = 1) -> bytes:
    """A transaction of any fields with a true signature, so that only its form can be at fault."""
    message = packed(kind, fields if kind else [*fields, _scalar(chain_id), b"", b""])
    signature = PrivateKey(rows_.SECRET).sign_recoverable(keccak_256(message).digest(), hasher=None)
    y = signature[64] + (35 + 2 * chain_id if kind == 0 else 0)
    parts = (y, int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"))
    return packed(kind, [*fields, *map(_scalar, parts)])


def _scalar(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


PLACE_OF_TO = {0: 3, 1: 4, 2: 5, 3: 5, 4: 5}


def fields(kind: int) -> list[Any]:
    return items(raw(type=kind, access_list=LISTS if kind else None))[:-3]


def authorization_of(entry: rows_.Row) -> tuple[int, bytes, int, int, int, int]:
    r, s = int.from_bytes(entry["r"], "big"), int.from_bytes(entry["s"], "big")
    return entry["chain_id"], entry["address"], entry["nonce"], entry["y_parity"], r, s


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(rows_.rows(kinds=range(5)), rows_.nonces, rows_.secrets)
def test_it_reads_what_eth_account_signed(row: rows_.Row, nonce: int, secret: bytes) -> None:
    signed, transaction_hash = rows_.expected(row, nonce, secret)
    assert decode(signed) == SignedTx(
        type=row["type"],
        chain_id=row["chain_id"],
        nonce=nonce,
        priority=row["max_priority_fee_per_gas"],
        max_fee=row["max_fee_per_gas"],
        gas_limit=row["gas_limit"],
        to=row["to"],
        value=int.from_bytes(row["value"], "big"),
        data=row["data"],
        access_list=tuple((entry["address"], tuple(entry["storage_keys"])) for entry in row["access_list"] or []),
        blob_fee=row.get("max_fee_per_blob_gas"),
        blob_hashes=tuple(row.get("blob_hashes") or []),
        authorizations=tuple(authorization_of(entry) for entry in row.get("authorization_list") or []),
        sender=rows_.address_of(secret),
        hash=transaction_hash,
    )


@pytest.mark.parametrize("kind", range(5))
def test_signatures_by_hand_are_good(kind: int) -> None:
    # The tests below change one thing each; this shows that nothing else is at fault.
    assert signed_by_hand(kind, fields(kind)) == raw(type=kind, access_list=LISTS if kind else None)


@pytest.mark.parametrize("kind", range(5))
def test_a_byte_behind_the_list_is_refused(kind: int) -> None:
    with pytest.raises(MalformedBatch):
        decode(raw(type=kind) + b"\0")


@pytest.mark.parametrize("kind", range(5))
def test_every_truncation_is_refused(kind: int) -> None:
    whole = raw(type=kind, data=b"\1" * 60)
    for length in range(len(whole)):
        with pytest.raises(MalformedBatch):
            decode(whole[:length])


@pytest.mark.parametrize("first", [0x00, 0x05, 0x06, 0x7F, 0x80, 0xB8, 0xBF])
def test_an_unknown_type_is_refused(first: int) -> None:
    with pytest.raises(MalformedBatch, match="unknown type"):
        decode(bytes([first]) + raw()[1:])


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize(
    "change", [lambda parts: parts[1:], lambda parts: [*parts, b""], lambda parts: [parts], lambda _: []]
)
def test_another_number_of_items_is_refused(kind: int, change: Any) -> None:
    with pytest.raises(MalformedBatch):
        decode(packed(kind, change(items(raw(type=kind)))))


@pytest.mark.parametrize("kind", range(5))
def test_a_scalar_with_a_leading_zero_is_refused(kind: int) -> None:
    h = (0, 1, 2, 3, 4, 6)
    scalars = {0: (0, 1, 2, 4), 1: (0, 1, 2, 3, 5), 2: h, 3: (*h, 9), 4: h}[kind]
    for place in scalars:
        padded = fields(kind)
        padded[place] = b"\0" + padded[place]
        with pytest.raises(MalformedBatch):
            decode(signed_by_hand(kind, padded))


@pytest.mark.parametrize("kind", range(5))
def test_a_scalar_that_is_a_list_is_refused(kind: int) -> None:
    for place in range(len(fields(kind))):
        nested = fields(kind)
        nested[place] = [[b"\1"]] if isinstance(nested[place], list) else [b"\1"]
        with pytest.raises(MalformedBatch):
            decode(signed_by_hand(kind, nested))


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize("to", [b"\1", b"\1" * 19, b"\1" * 21, bytes(32)])
def test_a_recipient_of_another_length_is_refused(kind: int, to: bytes) -> None:
    changed = fields(kind)
    changed[PLACE_OF_TO[kind]] = to
    with pytest.raises(MalformedBatch, match="recipient"):
        decode(signed_by_hand(kind, changed))


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "entries",
    [
        b"",
        [b"\1"],
        [[b"\1" * 20]],
        [[b"\1" * 20, b""]],
        [[b"\1" * 19, []]],
        [[b"\1" * 20, [b"\1" * 31]]],
        [[b"\1" * 20, [[b"\1" * 32]]]],
        [[b"\1" * 20, [], []]],
        [[[b"\1" * 20], []]],
    ],
)
def test_a_malformed_access_list_is_refused(kind: int, entries: Any) -> None:
    with pytest.raises(MalformedBatch):
        decode(signed_by_hand(kind, with_item(kind, 7 if kind == 1 else 8, entries)))


def with_item(kind: int, place: int, item: Any) -> list[Any]:
    changed = fields(kind)
    changed[place] = item
    return changed


@pytest.mark.parametrize("kind", [3, 4])
def test_a_blob_or_set_code_transaction_without_a_recipient_is_refused(kind: int) -> None:
    with pytest.raises(MalformedBatch, match="recipient"):
        decode(signed_by_hand(kind, with_item(kind, PLACE_OF_TO[kind], b"")))


@pytest.mark.parametrize(
    "hashes",
    [
        b"",
        rows_.BLOB_HASH,
        [],
        [[]],
        [[rows_.BLOB_HASH]],
        [rows_.BLOB_HASH[:31]],
        [rows_.BLOB_HASH + b"\1"],
        [rows_.BLOB_HASH, bytes(32)],
        [rows_.BLOB_HASH, b"\2" * 32],
        [b""],
    ],
)
def test_malformed_blob_hashes_are_refused(hashes: Any) -> None:
    with pytest.raises(MalformedBatch, match=r"blob hash|byte string"):
        decode(signed_by_hand(3, with_item(3, 10, hashes)))


ENTRY = [b"\1", b"\x55" * 20, b"\3", b"\1", b"\1" * 32, b"\1" * 32]


def test_every_number_that_an_authorization_may_have_is_read() -> None:
    most = [b"\xff" * 32, b"\xff" * 20, b"\xff" * 8, b"\xff", b"\xff" * 32, b"\xff" * 32]
    least = [b"", bytes(20), b"", b"", b"", b""]
    full = 2**256 - 1
    found = decode(signed_by_hand(4, with_item(4, 9, [most, least]))).authorizations
    assert found == ((full, b"\xff" * 20, 2**64 - 1, 255, full, full), (0, bytes(20), 0, 0, 0, 0))


@pytest.mark.parametrize(
    "entries",
    [
        b"",
        [],
        [b"\1"],
        [[]],
        [ENTRY[:5]],
        [[*ENTRY, b""]],
        [[ENTRY]],
        *([ENTRY, [*ENTRY[:place], [ENTRY[place]], *ENTRY[place + 1 :]]] for place in range(6)),  # a list
        *([[*ENTRY[:place], b"\0" + ENTRY[place], *ENTRY[place + 1 :]]] for place in range(6)),  # a leading zero
        *([[*ENTRY[:place], b"\1" * 33, *ENTRY[place + 1 :]]] for place in range(6)),  # too long
        [[*ENTRY[:2], b"\1" + bytes(8), *ENTRY[3:]]],  # a nonce of 2^64
        [[*ENTRY[:3], b"\1\0", *ENTRY[4:]]],  # a y parity of 2^8
        [[ENTRY[0], b"\x55" * 19, *ENTRY[2:]]],
    ],
)
def test_malformed_authorizations_are_refused(entries: Any) -> None:
    with pytest.raises(MalformedBatch):
        decode(signed_by_hand(4, with_item(4, 9, entries)))


def test_a_blob_transaction_with_its_blobs_is_refused() -> None:
    wrapped = [items(raw(type=3)), b"\1", [b""], [b""], [b""]]  # as a pool takes it, EIP-7594
    with pytest.raises(MalformedBatch):
        decode(packed(3, wrapped))


def flipped(signed: bytes, kind: int) -> bytes:
    """The other signature of the same message by the same key: n - s and the other parity."""
    parts = items(signed)
    y = int.from_bytes(parts[-3], "big")
    y = (1 - y) if kind else (y + 1 if y % 2 else y - 1)
    return packed(kind, [*parts[:-3], _scalar(y), parts[-2], _scalar(ORDER - int.from_bytes(parts[-1], "big"))])


@pytest.mark.parametrize("kind", range(5))
def test_a_high_s_is_refused(kind: int) -> None:
    high = flipped(raw(type=kind), kind)
    with pytest.raises(MalformedBatch, match="upper half"):
        decode(high)
    assert decode(flipped(high, kind)).sender == rows_.ADDRESS


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize(
    ("place", "number"), [(-1, 0), (-2, 0), (-2, ORDER), (-2, 2**256 - 1), (-1, ORDER - 1), (-2, 2**256)]
)
def test_r_and_s_out_of_range_are_refused(kind: int, place: int, number: int) -> None:
    parts = items(raw(type=kind))
    parts[place] = _scalar(number)
    with pytest.raises(MalformedBatch):
        decode(packed(kind, parts))


@pytest.mark.parametrize(
    ("kind", "v"), [(0, 0), (0, 27), (0, 28), (0, 34), (1, 2), (2, 2), (2, 27), (2, 37), (3, 2), (4, 2)]
)
def test_v_that_names_no_chain_and_y_that_is_no_bit_are_refused(kind: int, v: int) -> None:
    parts = items(raw(type=kind))
    parts[-3] = _scalar(v)
    with pytest.raises(MalformedBatch):
        decode(packed(kind, parts))


def test_an_r_that_is_no_point_is_refused() -> None:
    parts = items(raw())
    parts[-2] = _scalar(5)  # there is no point with x = 5 on the curve
    with pytest.raises(MalformedBatch, match="no key"):
        decode(packed(2, parts))


@pytest.mark.parametrize("kind", range(5))
def test_a_changed_field_changes_the_sender(kind: int) -> None:
    for place in [place for place, item in enumerate(fields(kind)) if isinstance(item, bytes)]:
        parts = items(raw(type=kind, data=b"abcd", gas_limit=30_000))
        last = parts[place]
        parts[place] = last[:-1] + bytes([last[-1] ^ 1]) if last[-1] ^ 1 else last[:-1] + b"\x02"
        try:
            assert decode(packed(kind, parts)).sender != rows_.ADDRESS
        except MalformedBatch:
            continue


def long_form(length: int, width: int, short: int) -> bytes:
    return bytes([short + 55 + width]) + length.to_bytes(width, "big")


@pytest.mark.parametrize(
    "text",
    [
        long_form(20, 1, 0xC0) + b"\1" * 20,  # a short list in the long form
        long_form(60, 2, 0xC0) + b"\1" * 60,  # a length with a leading zero
        b"\xc2\x81\x01",  # a small byte with a header
        b"\xc1\xb8",  # a length that is not there
        b"\xff" + b"\xff" * 8,  # a length beyond all memory
        b"\xc3\x82\x01",  # an item that leaves its list
        b"\xc4\xc2\x82\x01\x01",  # an inner list that ends inside its item
    ],
)
def test_rlp_that_is_not_canonical_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedBatch):
        decode(text)


def test_deep_nesting_is_refused() -> None:
    nested = b"\xc0"
    for _ in range(5_000):
        size = len(nested)
        head = bytes([0xC0 + size]) if size < 56 else long_form(size, (size.bit_length() + 7) // 8, 0xC0)
        nested = head + nested
    with pytest.raises(MalformedBatch, match="nested deeper"):
        decode(nested)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    with pytest.raises(MalformedBatch):
        decode(text)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_goes_unseen(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(range(5)))
    whole = bytearray(raw(type=kind, data=b"abc" * 30, access_list=LISTS if kind else None))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert decode(bytes(whole)).sender != rows_.ADDRESS
    except MalformedBatch:
        return

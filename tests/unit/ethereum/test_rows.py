from __future__ import annotations

import json
from typing import Any, Final

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.ethereum.batch import EXTRA_COLUMNS, WIDE
from pipeline.ethereum.reasons import Reason
from pipeline.ethereum.rows import ACCESS_LIST_KEYS_MAX, RAW, access_list, batch_columns
from pipeline.ethereum.validity import judge
from pipeline.stages.reader import judged, lane_of
from tests import ethereum_rows as rows_

RAW_TYPES: Final[dict[str, Any]] = {
    "created_xid": pa.int64(),
    "id": pa.int64(),
    "type": pa.int64(),
    "chain_id": pa.int64(),
    "to": pa.binary(),
    "value": pa.string(),
    "gas_limit": pa.int64(),
    "max_fee_per_gas": pa.string(),
    "max_priority_fee_per_gas": pa.string(),
    "data": pa.binary(),
    "access_list": pa.string(),
    "sender": pa.binary(),
    "max_fee_per_blob_gas": pa.string(),
    "blob_hashes": pa.string(),
    "authorization_list": pa.string(),
}

ENTRY = {"address": "0x" + "11" * 20, "storageKeys": ["0x" + "22" * 32]}

HASH = "0x" + "01" * 32
AUTHORIZATION: dict[str, Any] = {
    "chainId": "0x1",
    "address": "0x" + "44" * 20,
    "nonce": hex(2**64 - 1),
    "yParity": "0x0",
    "r": "0x" + "ff" * 32,
    "s": "0xA",
}
BAD_HASHES = ["?", "{}", '"0x01"', "[1]", json.dumps([HASH[:-2]]), json.dumps([HASH[2:]]), json.dumps([HASH] * 65)]
BAD_AUTHORIZATIONS = [
    "0",
    "[[]]",
    json.dumps([AUTHORIZATION] * 1_025),
    json.dumps([{name: value for name, value in AUTHORIZATION.items() if name != "s"}]),
    json.dumps([AUTHORIZATION | {"v": 27}]),
    *(
        json.dumps([AUTHORIZATION | {name: value}])
        for name, value in [
            ("chainId", 2**64),
            ("chainId", -1),
            ("chainId", True),
            ("chainId", "1"),
            ("chainId", "0x"),
            ("chainId", None),
            ("address", None),
            ("address", "0x44"),
            ("nonce", hex(2**64)),
            ("nonce", 1.5),
            ("yParity", 256),
            ("r", "0x1" + "00" * 32),
            ("s", []),
        ]
    ),
]


def source(**changes: Any) -> dict[str, Any]:
    """A row as Postgres gives it."""
    return {
        "created_xid": 750,
        "id": 1,
        "type": 2,
        "chain_id": 1,
        "to": b"\x35" * 20,
        "value": str(10**18),
        "gas_limit": 30_000_000,
        "max_fee_per_gas": str(20 * 10**9),
        "max_priority_fee_per_gas": str(10**9),
        "data": b"",
        "access_list": None,
    } | changes


def table(rows: list[dict[str, Any]], chunks: int = 1) -> pa.Table:
    pieces = [rows[start::chunks] for start in range(chunks)] if chunks > 1 else [rows]
    schema = pa.schema([pa.field(name, RAW_TYPES[name]) for name in RAW])
    return pa.concat_tables(pa.Table.from_pylist(piece, schema=schema) for piece in pieces)


def converted(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = batch_columns(table([source(**changes)])).to_pylist()[0]
    return row


def verdict(**changes: Any) -> Reason:
    [made] = batch_columns(table([source(**changes)])).to_batches()
    return Reason(judge(judged(lane_of(rows_.header(), made), made, None))[0])


def test_the_schema_is_that_of_a_batch_behind_the_cursor() -> None:
    made = batch_columns(table([source()]))
    assert made.schema.names[:3] == ["created_xid", "id", "sender"]
    assert pa.schema(list(made.schema)[3:]).equals(WIDE)


def test_no_rows_give_no_rows() -> None:
    assert batch_columns(table([])).num_rows == 0


def test_a_plain_row() -> None:
    assert converted(id=77, data=b"abc", access_list=json.dumps([ENTRY])) == {
        "created_xid": 750,
        "id": 77,
        "tx_id": 77,
        "type": 2,
        "chain_id": 1,
        "to": b"\x35" * 20,
        "value": rows_.wei(10**18),
        "gas_limit": 30_000_000,
        "max_fee_per_gas": 20 * 10**9,
        "max_priority_fee_per_gas": 10**9,
        "data": b"abc",
        "access_list": [{"address": b"\x11" * 20, "storage_keys": [b"\x22" * 32]}],
        "defect": 0,
    } | dict.fromkeys(("sender", *EXTRA_COLUMNS.names))


def test_a_row_with_all_that_newer_types_have() -> None:
    made = converted(
        sender=b"\x77" * 20,
        max_fee_per_blob_gas=str(2**64 - 1),
        blob_hashes=json.dumps([HASH, HASH]),
        authorization_list=json.dumps([AUTHORIZATION, AUTHORIZATION | {"chainId": 0, "yParity": 1, "r": "0x7"}]),
    )
    assert (made["sender"], made["max_fee_per_blob_gas"], made["defect"]) == (b"\x77" * 20, 2**64 - 1, 0)
    assert made["blob_hashes"] == [b"\1" * 32] * 2
    one = {"chain_id": 1, "address": b"\x44" * 20, "nonce": 2**64 - 1, "y_parity": 0}
    one |= {"r": b"\xff" * 32, "s": (10).to_bytes(32, "big")}
    other = one | {"chain_id": 0, "y_parity": 1, "r": (7).to_bytes(32, "big")}
    assert made["authorization_list"] == [one, other]


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        (Reason.UNKNOWN_TYPE, {"type": None}),
        (Reason.UNKNOWN_TYPE, {"type": -1}),
        (Reason.UNKNOWN_TYPE, {"type": 5}),
        (Reason.UNKNOWN_TYPE, {"type": 256}),
        (Reason.UNKNOWN_TYPE, {"type": 2**40}),
        (Reason.CHAIN_ID_MISMATCH, {"chain_id": None}),
        (Reason.CHAIN_ID_MISMATCH, {"chain_id": -1}),
        (Reason.CHAIN_ID_MISMATCH, {"chain_id": 2}),
        (Reason.TO_MALFORMED, {"to": b""}),
        (Reason.TO_MALFORMED, {"to": b"\1" * 19}),
        (Reason.TO_MALFORMED, {"to": b"\1" * 32}),
        (Reason.VALUE_OUT_OF_RANGE, {"value": None}),
        (Reason.VALUE_OUT_OF_RANGE, {"value": ""}),
        (Reason.VALUE_OUT_OF_RANGE, {"value": "-1"}),
        (Reason.VALUE_OUT_OF_RANGE, {"value": "1.5"}),
        (Reason.VALUE_OUT_OF_RANGE, {"value": "NaN"}),
        (Reason.VALUE_OUT_OF_RANGE, {"value": "1 "}),
        (Reason.VALUE_OUT_OF_RANGE, {"value": str(2**256)}),
        (Reason.VALUE_OUT_OF_RANGE, {"value": "9" * 78}),
        (Reason.VALUE_OUT_OF_RANGE, {"value": "9" * 5000}),
        (Reason.FEE_OUT_OF_RANGE, {"max_fee_per_gas": None}),
        (Reason.FEE_OUT_OF_RANGE, {"max_fee_per_gas": str(2**64)}),
        (Reason.FEE_OUT_OF_RANGE, {"max_priority_fee_per_gas": str(2**64)}),
        (Reason.FEE_OUT_OF_RANGE, {"max_priority_fee_per_gas": None}),
        (Reason.FEE_OUT_OF_RANGE, {"type": 0, "max_priority_fee_per_gas": "-1"}),
        (Reason.PRIORITY_FEE_NOT_ALLOWED, {"type": 0}),
        (Reason.GAS_LIMIT_OUT_OF_RANGE, {"gas_limit": None}),
        (Reason.GAS_LIMIT_OUT_OF_RANGE, {"gas_limit": -1}),
        (Reason.DATA_TOO_LARGE, {"data": b"\0" * 131_073}),
        (Reason.CREATE_WITHOUT_INIT_CODE, {"to": None, "data": None}),
        (Reason.ACCESS_LIST_MALFORMED, {"access_list": "not json"}),
        (Reason.ACCESS_LIST_MALFORMED, {"access_list": "{}"}),
        (Reason.ACCESS_LIST_MALFORMED, {"type": 0, "max_priority_fee_per_gas": None, "access_list": "[1]"}),
        (Reason.SENDER_MALFORMED, {"sender": b""}),
        (Reason.SENDER_MALFORMED, {"sender": b"\1" * 21}),
        (Reason.FEE_OUT_OF_RANGE, {"type": 3, "max_fee_per_blob_gas": str(2**64), "blob_hashes": json.dumps([HASH])}),
        (Reason.BLOBS_MALFORMED, {"type": 3, "max_fee_per_blob_gas": "1"}),
        *((Reason.BLOBS_MALFORMED, {"blob_hashes": text}) for text in BAD_HASHES),
        (Reason.AUTHORIZATIONS_MALFORMED, {"type": 4}),
        *((Reason.AUTHORIZATIONS_MALFORMED, {"authorization_list": text}) for text in BAD_AUTHORIZATIONS),
    ],
)
def test_what_fits_no_column_is_a_defect_of_its_row(reason: Reason, changes: dict[str, Any]) -> None:
    assert verdict(**changes) is reason


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"to": None, "data": b"\0"},
        {"type": 0, "max_priority_fee_per_gas": None},
        {"value": "0"},
        {"value": "000"},
        {"value": str(2**256 - 1), "max_fee_per_gas": "0", "max_priority_fee_per_gas": "0"},
        {"max_fee_per_gas": str(2**64 - 1)},
        {"access_list": "[]"},
        {"data": None},
        {"data": b"\0" * 131_072},
    ],
)
def test_what_fits_is_signable(changes: dict[str, Any]) -> None:
    assert verdict(**changes) is Reason.SIGNABLE


def test_a_defect_leaves_its_neighbours_alone() -> None:
    good, bad = (
        source(access_list=json.dumps([ENTRY])),
        source(to=b"\1", value="x", data=b"\1" * 200_000, access_list="?"),
    )
    made = batch_columns(table([good, bad, good | {"to": None}, bad, good])).to_pylist()
    assert [row["defect"] for row in made] == [0, 3, 0, 3, 0]
    alone = converted(access_list=json.dumps([ENTRY]))
    assert made[0] == made[4] == alone
    assert made[2] == alone | {"to": None}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "id": st.integers(-(2**63), 2**63 - 1),
                "to": st.one_of(st.none(), st.binary(max_size=24), rows_.addresses),
                "value": st.one_of(st.none(), st.text(max_size=5), rows_.integers(rows_.WEI, 2**256 + 1).map(str)),
                "max_fee_per_gas": st.one_of(st.none(), rows_.integers(rows_.BOUNDARIES, 2**65).map(str)),
                "data": st.one_of(st.none(), st.binary(max_size=80)),
            },
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_every_row_comes_out_whatever_the_chunks(changes: list[dict[str, Any]], chunks: int, before: int) -> None:
    rows = [source(**change) for change in changes]
    rows = [row for start in range(chunks) for row in rows[start::chunks]]
    framed = pa.concat_tables([table([source(value="7")] * before), table(rows, 1)]).slice(before)
    made = batch_columns(framed).to_pylist()
    assert made == [batch_columns(table([row])).to_pylist()[0] for row in rows]
    for row, out in zip(rows, made, strict=True):
        text = row["value"] or ""
        fits = text.isascii() and text.isdigit() and int(text) < 2**256
        assert out["value"] == rows_.wei(int(text) if fits else 0)
        assert (out["defect"] == 0) <= fits


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "7",
        "[null]",
        "[[]]",
        json.dumps([ENTRY | {"more": 1}]),
        json.dumps([{"address": ENTRY["address"]}]),
        json.dumps([ENTRY | {"storageKeys": "0x" + "22" * 32}]),
        json.dumps([ENTRY | {"storageKeys": ["0x" + "22" * 31]}]),
        json.dumps([ENTRY | {"storageKeys": ["0x" + "22" * 31 + "  "]}]),
        json.dumps([ENTRY | {"storageKeys": [None]}]),
        json.dumps([ENTRY | {"storageKeys": {}}]),
        json.dumps([ENTRY | {"address": "11" * 20}]),
        json.dumps([ENTRY | {"address": "0x" + "1g" * 20}]),
        json.dumps([ENTRY | {"address": "0x" + "1 " * 20}]),
        json.dumps([ENTRY | {"address": 7}]),
        json.dumps([ENTRY | {"storageKeys": []}] * (ACCESS_LIST_KEYS_MAX + 1)),
        "[" * 3000 + "]" * 3000,
    ],
)
def test_an_access_list_of_another_form_is_refused(text: str) -> None:
    assert access_list(text) is None


def test_access_lists_are_read_in_any_case_of_hex() -> None:
    entry = {"address": "0x" + "aB" * 20, "storageKeys": ["0x" + "Cd" * 32] * 2}
    assert access_list(json.dumps([entry])) == [{"address": b"\xab" * 20, "storage_keys": [b"\xcd" * 32] * 2}]
    assert access_list("[]") == []
    assert access_list(json.dumps([ENTRY | {"storageKeys": []}] * ACCESS_LIST_KEYS_MAX)) is not None

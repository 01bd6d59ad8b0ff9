"""A user's own rows: read as written, or refused with file, row and column."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.errors import InputFileError
from pipeline.stock.files import from_csv, from_parquet
from pipeline.stock.mix import Mix
from pipeline.stock.row import COLUMNS, Row

TO = "0x" + "35" * 20
CHECKSUMMED = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"  # from EIP-55
HEAD = "chain_id,to,gas_limit,max_fee_per_gas"
LIST = '[{"address": "0x%s", "storageKeys": ["0x%s"]}]' % ("11" * 20, "22" * 32)  # noqa: UP031 - braces


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


def read(path: Path, text: str, encoding: str = "utf-8") -> list[Row]:
    path.write_text(text, encoding=encoding)
    return list(from_csv(path))


def test_the_least_that_a_row_needs(csv: Path) -> None:
    [row] = read(csv, f"{HEAD}\n1,{TO},21000,5\n")
    assert row == Row(2, 1, bytes.fromhex("35" * 20), 0, 21000, 5, None, b"", None)


def test_all_columns_in_any_order_and_large_amounts(csv: Path) -> None:
    quoted = LIST.replace('"', '""')
    text = (
        "value,data,type,to,chain_id,gas_limit,max_fee_per_gas,access_list,max_priority_fee_per_gas\n"
        f'{2**256 - 1},0xa9059cBB,2,{TO},137,65000,{10**12},"{quoted}",7\n'
    )
    [row] = read(csv, text)
    to = bytes.fromhex("35" * 20)
    assert row == Row(2, 137, to, 2**256 - 1, 65000, 10**12, 7, bytes.fromhex("a9059cbb"), LIST)


def test_an_empty_recipient_creates_a_contract(csv: Path) -> None:
    [row] = read(csv, f"{HEAD},data\n1,,500000,5,0x6000\n")
    assert (row.to, row.data) == (None, b"\x60\x00")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_does_no_harm(csv: Path, encoding: str) -> None:
    assert len(read(csv, f"value,{HEAD}\n{10**20},1,{TO},21000,5\r\n", encoding)) == 1


@pytest.mark.parametrize("to", [CHECKSUMMED, CHECKSUMMED.lower(), "0x" + CHECKSUMMED[2:].upper()])
def test_addresses_with_and_without_a_checksum(csv: Path, to: str) -> None:
    [row] = read(csv, f"{HEAD}\n1,{to},21000,5\n")
    assert row.to == bytes.fromhex(CHECKSUMMED[2:])


@pytest.mark.parametrize(
    ("column", "cell", "says"),
    [
        ("value", "1e18", "is not a whole number"),
        ("value", "1.5", "is not a whole number"),
        ("value", "-1", "is not a whole number"),
        ("value", "1_000", "is not a whole number"),
        ("value", " 5", "is not a whole number"),
        ("value", "NaN", "is not a whole number"),
        ("value", "null", "is not a whole number"),
        ("value", "٣", "is not a whole number"),
        ("value", str(10**78), "is above"),
        ("value", "9" * 9_000, "is above"),
        ("type", "32768", "is above 32767"),
        ("chain_id", "", "is empty"),
        ("chain_id", str(2**63), "is above"),
        ("gas_limit", "", "is empty"),
        ("max_fee_per_gas", "", "is empty"),
        ("to", "0x1234", "has 2 bytes instead of 20"),
        ("to", "35" * 20, "is not 0x"),
        ("to", "0x" + "35" * 19 + " 1", "is not 0x"),
        ("to", "vitalik.eth", "is not 0x"),
        ("to", CHECKSUMMED.replace("A", "a", 1), "wrong checksum"),
        ("to", CHECKSUMMED[:-1] + "e", "wrong checksum"),
        ("data", "0x123", "is not 0x"),
        ("data", "hello", "is not 0x"),
        ("access_list", "[1]", "is not JSON like"),
        ("access_list", "{", "is not JSON like"),
    ],
)
def test_a_bad_cell_is_named(csv: Path, column: str, cell: str, says: str) -> None:
    good = {"chain_id": "1", "to": TO, "gas_limit": "21000", "max_fee_per_gas": "5", column: ""} | {}
    if column in ("chain_id", "to", "gas_limit", "max_fee_per_gas"):
        good = {"chain_id": "1", "to": TO, "gas_limit": "21000", "max_fee_per_gas": "5"}
    lines = [",".join(good), ",".join(good.values()), ",".join((good | {column: cell}).values())]
    with pytest.raises(InputFileError, match=says) as caught:
        read(csv, "\n".join(lines) + "\n")
    assert f"{csv}: row 2, column {column}: " in str(caught.value)
    assert "Nothing was inserted." in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Empty CSV file"),
        (f"{HEAD},amount\n1,{TO},21000,5,9\n", "unknown column amount"),
        ("chain_id,to,gas_limit\n", "column max_fee_per_gas is missing"),
        ("chain_id,gas_limit,max_fee_per_gas\n1,21000,5\n", "column to is missing"),
        (f"{HEAD},to\n1,{TO},21000,5,{TO}\n", "column to is there twice"),
        (f"{HEAD}\n1,{TO},21000\n", "Expected 4 columns, got 3"),
    ],
    ids=["empty", "unknown", "missing", "no recipient", "twice", "ragged"],
)
def test_a_bad_file_is_named(csv: Path, text: str, says: str) -> None:
    with pytest.raises(InputFileError, match=says) as caught:
        read(csv, text)
    assert str(csv) in str(caught.value)


@pytest.mark.parametrize("load", [from_csv, from_parquet])
def test_a_file_that_is_not_there(tmp_path: Path, load: Any) -> None:
    with pytest.raises(InputFileError, match=r"none\.file"):
        list(load(tmp_path / "none.file"))


def test_a_file_with_nothing_but_a_header_has_no_rows(csv: Path) -> None:
    assert read(csv, HEAD + "\n") == []


def test_a_large_file_is_read_piece_by_piece(csv: Path) -> None:
    with csv.open("w") as file:
        file.write(HEAD + ",data\n")
        for i in range(300):
            file.write(f"{i + 1},{TO},21000,5,0x{'ab' * 60_000}\n")
    rows = from_csv(csv)
    assert next(rows).chain_id == 1
    assert [row.chain_id for row in rows] == list(range(2, 301))


# ── Parquet ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(path: Path, columns: dict[str, Any]) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def test_mocked_rows_come_back_from_parquet(tmp_path: Path) -> None:
    rows = list(Mix(2, 1).rows(3_000))
    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    for name in ("value", "max_fee_per_gas"):
        columns[name] = [str(amount) for amount in columns[name]]
    assert list(from_parquet(write(tmp_path / "rows.parquet", columns))) == rows


def test_decimals_are_whole_numbers(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"chain_id": [1], "to": [TO], "gas_limit": [21_000], "max_fee_per_gas": [5]}
    columns["value"] = pa.array([Decimal(10**30)], pa.decimal128(38, 0))
    [row] = from_parquet(write(tmp_path / "rows.parquet", columns))
    assert row.value == 10**30


@pytest.mark.parametrize(
    ("column", "cell"),
    [("value", 1.0), ("value", True), ("chain_id", None), ("to", b"\x01" * 19), ("to", 5), ("access_list", ["x"])],
    ids=str,
)
def test_a_bad_cell_of_parquet_is_named(tmp_path: Path, column: str, cell: Any) -> None:
    columns: dict[str, Any] = {"chain_id": [1], "to": [TO], "gas_limit": [21_000], "max_fee_per_gas": [5]}
    with pytest.raises(InputFileError, match=f"row 1, column {column}: "):
        list(from_parquet(write(tmp_path / "rows.parquet", columns | {column: [cell]})))


def test_what_is_no_parquet(csv: Path) -> None:
    csv.write_text("not parquet, not at all")
    with pytest.raises(InputFileError, match=csv.name):
        list(from_parquet(csv))

"""A user's own rows from Parquet or CSV; a file with one bad cell is refused as a whole.

Columns: `type` (default 2), `chain_id`, `to` (0x hex, empty or null = create), `value` (wei, default 0), `gas_limit`,
`max_fee_per_gas`, `max_priority_fee_per_gas` (empty for types 0 and 1), `data` (0x hex, default empty), `access_list`
(JSON, default none). Amounts may be integers or decimal text. Other columns are refused, so that a misspelt one shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet

from pipeline.errors import InputFileError
from pipeline.stock.row import COLUMNS, Row

REQUIRED: Final = ("chain_id", "gas_limit", "max_fee_per_gas")
FEE_MARKET: Final = "2"


def from_parquet(path: Path) -> list[Row]:
    """Raises InputFileError naming file, row and column."""
    try:
        return list(_rows(path, arrow_parquet.read_table(path)))
    except (pa.ArrowException, OSError) as error:
        raise InputFileError(f"{path}: {str(error).splitlines()[0]}", hint="Nothing was inserted.") from error


def from_csv(path: Path) -> list[Row]:
    """Raises InputFileError naming file, row and column."""
    try:
        with path.open("rb") as file:
            names = file.readline().decode().strip().replace('"', "").split(",")
        options = arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True)
        return list(_rows(path, arrow_csv.read_csv(path, convert_options=options)))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path}: {str(error).splitlines()[0]}", hint="Nothing was inserted.") from error


def _rows(path: Path, table: pa.Table) -> Iterator[Row]:
    unknown = sorted(set(table.column_names) - set(COLUMNS))
    missing = sorted(set(REQUIRED) - set(table.column_names))
    if unknown or missing:
        problem = f"unknown column {unknown[0]}" if unknown else f"column {missing[0]} is missing"
        raise InputFileError(f"{path}: {problem}.", hint=f"Columns are: {', '.join(COLUMNS)}.")
    for number, fields in enumerate(table.to_pylist(), start=1):
        yield _row(path, number, fields)


def _row(path: Path, number: int, fields: dict[str, Any]) -> Row:
    def cell(name: str, read: Any, default: Any) -> Any:
        value = fields.get(name)
        if value is None or value == "":
            if default is None and name in REQUIRED:
                raise InputFileError(f"{path}: row {number}, column {name}: is empty.", hint="Nothing was inserted.")
            return default
        try:
            return read(value)
        except (ValueError, TypeError) as error:
            raise InputFileError(
                f"{path}: row {number}, column {name}: {error}.", hint="Nothing was inserted."
            ) from None

    return Row(
        type=cell("type", _integer(2**15 - 1), 2),
        chain_id=cell("chain_id", _integer(2**63 - 1), None),
        to=cell("to", _address, None),
        value=cell("value", _integer(10**78 - 1), 0),
        gas_limit=cell("gas_limit", _integer(2**63 - 1), None),
        max_fee_per_gas=cell("max_fee_per_gas", _integer(10**78 - 1), None),
        max_priority_fee_per_gas=cell("max_priority_fee_per_gas", _integer(10**78 - 1), None),
        data=cell("data", _hex, b""),
        access_list=cell("access_list", _json, None),
    )


def _integer(high: int) -> Any:
    def read(value: Any) -> int:
        number = int(str(value))
        if not 0 <= number <= high:
            raise ValueError(f"{number} is not in 0 … {high}")
        return number

    return read


def _hex(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not str(value).startswith("0x"):
        raise ValueError("is not hex with 0x")
    return bytes.fromhex(str(value)[2:])


def _address(value: Any) -> bytes:
    address = _hex(value)
    if len(address) != 20:
        raise ValueError(f"has {len(address)} bytes instead of 20")
    return address


def _json(value: Any) -> str:
    orjson.loads(value)
    return str(value)

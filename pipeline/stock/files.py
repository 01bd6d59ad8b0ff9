"""A user's own rows from Parquet or CSV, read as they are needed; one bad cell spoils the file as a whole.

Columns: `type` (default 2), `chain_id`, `to` (0x hex; empty or null creates a contract), `value` (wei, default 0),
`gas_limit`, `max_fee_per_gas`, `max_priority_fee_per_gas` (empty for types 0 and 1), `data` (0x hex, default empty),
`access_list` (JSON, default none), `sender` (0x hex, default any key), `max_fee_per_blob_gas` and `blob_hashes` (JSON)
of type 3, `authorization_list` (JSON) of type 4. Amounts may be integers or decimal text. An address in mixed case must
have its EIP-55 checksum. Other columns are refused, so that a misspelt one shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet
from sha3 import keccak_256

from pipeline.errors import InputFileError
from pipeline.ethereum.rows import access_list, authorization_list, blob_hashes
from pipeline.stock.row import COLUMNS, Row

REQUIRED: Final = ("chain_id", "to", "gas_limit", "max_fee_per_gas")
NEVER_EMPTY: Final = ("chain_id", "gas_limit", "max_fee_per_gas")
BATCH_ROWS: Final = 1_000
CSV_BLOCK_BYTES: Final = 8 * 1024 * 1024
"""A row must fit one block; the longest that can be signed has about 0.4 MB of hex."""

DIGITS: Final = re.compile(r"[0-9]+")
HEX: Final = re.compile(r"0x([0-9a-fA-F]{2})*")
AUTHORIZATION_LIKE: Final = '[{"chainId": 1, "address": "0x…", "nonce": 0, "yParity": 0, "r": "0x…", "s": "0x…"}]'
NOTHING_INSERTED: Final = "Nothing was inserted."


def from_parquet(path: Path) -> Iterator[Row]:
    """Raises InputFileError naming file, row and column, when the row is reached."""
    try:
        with arrow_parquet.ParquetFile(path) as file:
            yield from _rows(path, file.schema_arrow.names, file.iter_batches(BATCH_ROWS))
    except (pa.ArrowException, OSError) as error:
        raise InputFileError(f"{path}: {str(error).splitlines()[0]}", hint=NOTHING_INSERTED) from error


def from_csv(path: Path) -> Iterator[Row]:
    """Raises InputFileError naming file, row and column, when the row is reached."""
    # Everything is text, and only an empty cell is null: a NaN must not become the default of its column.
    convert = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(COLUMNS, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    read = arrow_csv.ReadOptions(block_size=CSV_BLOCK_BYTES)
    try:
        with arrow_csv.open_csv(path, read_options=read, convert_options=convert) as reader:
            yield from _rows(path, reader.schema.names, reader)
    except (pa.ArrowException, OSError) as error:
        raise InputFileError(f"{path}: {str(error).splitlines()[0]}", hint=NOTHING_INSERTED) from error


def _rows(path: Path, names: list[str], batches: Iterable[Any]) -> Iterator[Row]:
    problem = next((f"unknown column {name}" for name in sorted(set(names) - set(COLUMNS))), None)
    problem = problem or next((f"column {name} is missing" for name in REQUIRED if name not in names), None)
    problem = problem or next((f"column {name} is there twice" for name in names if names.count(name) > 1), None)
    if problem:
        raise InputFileError(f"{path}: {problem}.", hint=f"Columns are: {', '.join(COLUMNS)}.")
    number = 0
    for batch in batches:
        for fields in batch.to_pylist():
            number += 1
            yield _row(path, number, fields)


def _row(path: Path, number: int, fields: dict[str, Any]) -> Row:
    def cell(name: str, read: Any, default: Any = None) -> Any:
        value = fields.get(name)
        if value in (None, "") and name not in NEVER_EMPTY:
            return default
        try:
            return read(value)
        except ValueError as error:
            problem = f"{path}: row {number}, column {name}: {error}."
            raise InputFileError(problem, hint=NOTHING_INSERTED) from None

    return Row(
        type=cell("type", _integer(2**15 - 1), 2),
        chain_id=cell("chain_id", _integer(2**63 - 1)),
        to=cell("to", _address),
        value=cell("value", _integer(10**78 - 1), 0),
        gas_limit=cell("gas_limit", _integer(2**63 - 1)),
        max_fee_per_gas=cell("max_fee_per_gas", _integer(10**78 - 1)),
        max_priority_fee_per_gas=cell("max_priority_fee_per_gas", _integer(10**78 - 1)),
        data=cell("data", _hex, b""),
        access_list=cell("access_list", _json(access_list, '[{"address": "0x…", "storageKeys": ["0x…"]}]')),
        sender=cell("sender", _address),
        max_fee_per_blob_gas=cell("max_fee_per_blob_gas", _integer(10**78 - 1)),
        blob_hashes=cell("blob_hashes", _json(blob_hashes, '["0x…"]')),
        authorization_list=cell("authorization_list", _json(authorization_list, AUTHORIZATION_LIKE)),
    )


def _integer(high: int) -> Any:
    def read(value: Any) -> int:
        text = str(value)
        if value in (None, ""):
            raise ValueError("is empty")
        if not DIGITS.fullmatch(text):
            raise ValueError(f"{_shown(text)} is not a whole number")
        if len(text) > len(str(high)) or int(text) > high:
            raise ValueError(f"{_shown(text)} is above {high}")
        return int(text)

    return read


def _hex(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not HEX.fullmatch(str(value)):
        raise ValueError(f"{_shown(str(value))} is not 0x and pairs of hex digits")
    return bytes.fromhex(str(value)[2:])


def _address(value: Any) -> bytes:
    address = _hex(value)
    if len(address) != 20:
        raise ValueError(f"has {len(address)} bytes instead of 20")
    digits = "" if isinstance(value, bytes) else str(value)[2:]
    if digits not in (digits.lower(), digits.upper()) and digits != _checksummed(address):
        raise ValueError(f"{value} has a wrong checksum (EIP-55); a letter was changed")
    return address


def _checksummed(address: bytes) -> str:
    """EIP-55: a letter is a capital where the digest of the lower-case digits has a nibble of 8 or more."""
    digits = address.hex()
    nibbles = keccak_256(digits.encode()).hexdigest()
    return "".join(d.upper() if nibble >= "8" else d for d, nibble in zip(digits, nibbles, strict=False))


def _json(parse: Callable[[str], Any], like: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or parse(value) is None:
            raise ValueError(f"is not JSON like {like}")
        return value

    return read


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "…")

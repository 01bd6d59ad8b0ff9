"""Arrow IPC streams of exactly one record batch, with `oncesign.*` schema metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pyarrow as pa

from pipeline.errors import MalformedBatch

PREFIX: Final = "oncesign."


def write_ipc(rows: pa.RecordBatch, fields: Mapping[str, str]) -> bytes:
    """One schema message, one record batch, end of stream."""
    schema = rows.schema.with_metadata({PREFIX + name: value for name, value in fields.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(rows)
    return bytes(sink.getvalue())


def read_ipc(value: bytes) -> tuple[pa.RecordBatch, dict[str, str]]:
    """The record batch and the fields of its schema. Raises MalformedBatch."""
    try:
        reader = pa.ipc.open_stream(value)
        fields = _fields(reader.schema)
        batches = list(reader)
        if len(batches) != 1:
            raise MalformedBatch(f"the record holds {len(batches)} Arrow batches instead of one.")
        batches[0].validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MalformedBatch(f"the record is not an Arrow IPC stream of ours: {error}") from error
    return batches[0], fields


def read_fields(value: bytes) -> dict[str, str]:
    """The fields alone, without reading the rows. Raises MalformedBatch."""
    try:
        return _fields(pa.ipc.open_stream(value).schema)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MalformedBatch(f"the record is not an Arrow IPC stream of ours: {error}") from error


def _fields(schema: pa.Schema) -> dict[str, str]:
    return {
        name.decode().removeprefix(PREFIX): text.decode()
        for name, text in (schema.metadata or {}).items()
        if name.startswith(PREFIX.encode())
    }

"""`oncesign config`: every setting, its value, where it came from, and what it means."""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel, SecretStr

from jobs.loading import load_settings
from jobs.output import Json, emit_list
from pipeline.settings import ENV_PREFIX


def config(json: Json = False) -> None:
    """Print the settings in force, secrets masked, with the source of each."""
    rows = _rows(load_settings(), ENV_PREFIX)
    emit_list(rows, ("setting", "value", "source"), as_json=json)


def _rows(model: BaseModel, prefix: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        variable = f"{prefix}{name.upper()}"
        if isinstance(value, BaseModel):
            rows += _rows(value, f"{variable}__")
        else:
            given = any(value and name.upper() == variable for name, value in os.environ.items())
            source = "environment" if given else "default"
            rows.append(
                {"setting": variable, "value": _shown(value), "source": source, "meaning": field.description or ""}
            )
    return rows


def _shown(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return "**********" if value.get_secret_value() else ""
    if isinstance(value, list):
        return [item.model_dump() if isinstance(item, BaseModel) else item for item in value]
    return value if isinstance(value, int | float | str | bool | type(None)) else str(value)

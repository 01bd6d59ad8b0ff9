"""The rules of CloudEvents 1.0 and its JSON format for an event in structured mode, as a JSON Schema."""

from __future__ import annotations

import json
from typing import Any, Final

from jsonschema import Draft202012Validator

TEXT: Final = {"type": "string", "minLength": 1}
URI_REFERENCE: Final = r"^(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+$"
RFC_3339: Final = r"^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$"
MEDIA_TYPE: Final = r"^[\w!#$&^.+-]+/[\w!#$&^.+-]+(\s*;.*)?$"

SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "source", "specversion", "type"],
    "properties": {
        "id": TEXT,
        "source": TEXT | {"pattern": URI_REFERENCE},
        "specversion": {"const": "1.0"},
        "type": TEXT,
        "datacontenttype": {"type": "string", "pattern": MEDIA_TYPE},
        "dataschema": TEXT | {"format": "uri"},
        "subject": TEXT,
        "time": {"type": "string", "pattern": RFC_3339},
        "data": {},
        "data_base64": {"type": "string", "contentEncoding": "base64"},
    },
    "not": {"required": ["data", "data_base64"]},
    # Other members are extension attributes: lower-case names, and no value but text, whole numbers and truth values.
    "patternProperties": {"^(?!data$)[a-z0-9]+$": {"type": ["string", "integer", "boolean"]}},
    "propertyNames": {"pattern": "^([a-z0-9]+|data_base64)$"},
}

_VALIDATOR: Final = Draft202012Validator(SCHEMA)


def checked(line: str) -> dict[str, Any]:
    """The event in a line of JSON."""
    event: dict[str, Any] = json.loads(line)
    _VALIDATOR.validate(event)
    assert "\n" not in line.rstrip("\n")
    return event

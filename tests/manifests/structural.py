"""OpenAPI schemas of Kubernetes as its API server takes them: defaults, unknown fields, types, keys of lists.

A structural schema prunes a field that it does not know: a misspelt one would vanish without a word, so it is an error
here. See https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/ for
pruning and defaults, and https://kubernetes.io/docs/reference/using-api/server-side-apply/ for the keys of lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final

import jsonschema

Schema = dict[str, Any]

REFERENCE: Final = "#/definitions/"
OPEN: Final = "x-kubernetes-preserve-unknown-fields"
KEYS: Final = "x-kubernetes-list-map-keys"
NUMBER_OR_TEXT: Final = ("int-or-string", "quantity")
PROBLEM_CHARS_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class Structure:
    """A schema, and what it refers to."""

    schema: Schema
    definitions: dict[str, Schema] = field(default_factory=dict)

    def with_defaults(self, value: Any) -> Any:
        """A copy of the value with every default that applies to it."""
        return self._filled(deepcopy(value), self.schema)

    def problems(self, value: Any) -> list[str]:
        """What the API server would refuse or drop, each with its path."""
        whole = self.with_defaults(value)
        closed = {name: _closed(schema) for name, schema in self.definitions.items()}
        validator = jsonschema.Draft202012Validator(_closed(self.schema) | {"definitions": closed})
        found = [f"{error.json_path}: {error.message[:PROBLEM_CHARS_MAX]}" for error in validator.iter_errors(whole)]
        return found + list(self._repeated(whole, self.schema, "$"))

    def _meant(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            schema = self.definitions[schema["$ref"].removeprefix(REFERENCE)]
        return schema

    def _filled(self, value: Any, schema: Schema) -> Any:
        schema = self._meant(schema)
        if isinstance(value, dict):
            for name, inner in schema.get("properties", {}).items():
                if name not in value and "default" in inner:
                    value[name] = deepcopy(inner["default"])
        return _mapped(value, schema, self._filled)

    def _repeated(self, value: Any, schema: Schema, path: str) -> Iterator[str]:
        schema = self._meant(schema)
        if isinstance(value, list) and KEYS in schema:
            seen = [tuple(str(item.get(key)) for key in schema[KEYS]) for item in value if isinstance(item, dict)]
            yield from (f"{path}: {', '.join(key)} is there twice" for key in sorted(set(seen)) if seen.count(key) > 1)
        for name, item, inner in _inside(value, schema):
            yield from self._repeated(item, inner, f"{path}.{name}" if isinstance(name, str) else f"{path}[{name}]")


def _inside(value: Any, schema: Schema) -> Iterator[tuple[str | int, Any, Schema]]:
    if isinstance(value, dict):
        others = schema.get("additionalProperties")
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name, others)
            if isinstance(inner, dict):
                yield name, item, inner
    elif isinstance(value, list) and "items" in schema:
        yield from ((index, item, schema["items"]) for index, item in enumerate(value))


def _mapped(value: Any, schema: Schema, change: Any) -> Any:
    for name, item, inner in list(_inside(value, schema)):
        value[name] = change(item, inner)
    return value


def _closed(schema: Schema) -> Schema:
    """As JSON Schema, with no field but those that it names."""
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") in NUMBER_OR_TEXT:
        return {"type": ["integer", "number", "string"]} | {key: schema[key] for key in ("pattern",) if key in schema}
    made = {
        key: value for key, value in schema.items() if not key.startswith("x-") and key not in ("default", "format")
    }
    if "properties" in schema:
        made["properties"] = {name: _closed(inner) for name, inner in schema["properties"].items()}
    if schema.get("type") == "object" and "additionalProperties" not in schema and not schema.get(OPEN):
        made["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = _closed(schema["additionalProperties"])
    if "items" in schema:
        made["items"] = _closed(schema["items"])
    if schema.get("nullable"):
        made["type"] = [schema["type"], "null"]
    return made

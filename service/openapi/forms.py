"""The forms that schemas are made of (JSON Schema 2020-12, as in OpenAPI 3.1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]
BOOLEAN: Schema = {"type": "boolean"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
STRING: Schema = {"type": "string"}
ANY: Schema = {}


def ref(name: str) -> Schema:
    """Returns a reference to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Schema, **more: Any) -> Schema:
    """Returns the schema of a list."""
    return {"type": "array", "items": items, **more}


def record(properties: dict[str, Schema], optional: Iterable[str] = (), *, closed: bool = False, **more: Any) -> Schema:
    """Returns the schema of an object; all properties but the optional ones are required.

    Args:
        closed: whether other properties are refused, as in the body of a request.
    """
    required = [name for name in properties if name not in set(optional)]
    schema: Schema = {"type": "object", "properties": properties, **more}
    if required:
        schema["required"] = required
    return schema | ({"additionalProperties": False} if closed else {})


def map_of(values: Schema) -> Schema:
    """Returns the schema of an object whose names are not known."""
    return {"type": "object", "additionalProperties": values}


def any_one_of(*names: str) -> Schema:
    """Returns the schema of a value that fits exactly one of several schemas."""
    return {"oneOf": [ref(name) for name in names]}


def described(schema: Schema, text: str) -> Schema:
    """Returns a schema with a description."""
    return {**schema, "description": text}


def nullable(schema: Schema) -> Schema:
    """Returns the schema that also allows null."""
    return {**schema, "type": [schema["type"], "null"]}

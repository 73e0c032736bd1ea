"""Checks JSON against the part of JSON Schema that the OpenAPI document uses; a keyword that it does not know is an error."""

from collections.abc import Iterator, Mapping
from typing import Any

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": int | float,
    "null": type(None),
}
NOTES = {"description", "format"}


def is_of(value: Any, kind: str) -> bool:
    """Whether a value is of a type of JSON Schema: a boolean is no number, and 2.0 is an integer."""
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int | float) and float(value).is_integer()
    return isinstance(value, TYPES[kind])


def faults(value: Any, schema: Mapping[str, Any], schemas: Mapping[str, Any], where: str = "body") -> Iterator[str]:
    """Describes what is wrong with a value; nothing if it is valid.

    Args:
        schemas: those that `$ref` names.
    """
    for keyword, rule in schema.items():
        match keyword:
            case "$ref":
                yield from faults(value, schemas[rule.removeprefix("#/components/schemas/")], schemas, where)
            case "type":
                kinds = rule if isinstance(rule, list) else [rule]
                if not any(is_of(value, kind) for kind in kinds):
                    yield f"{where}: expected {rule}, found {value!r}"
            case "anyOf":
                if all(any(faults(value, one, schemas)) for one in rule):
                    yield f"{where}: expected any of {rule}, found {value!r}"
            case "oneOf":
                fitting = sum(not any(faults(value, one, schemas)) for one in rule)
                if fitting != 1:
                    yield f"{where}: expected exactly one of {rule}, found {fitting} for {value!r}"
            case "enum":
                if value not in rule:
                    yield f"{where}: expected one of {rule}, found {value!r}"
            case "const":
                if value != rule:
                    yield f"{where}: expected {rule!r}, found {value!r}"
            case "required" if isinstance(value, dict):
                yield from (f"{where}: no key {key!r}" for key in rule if key not in value)
            case "properties" if isinstance(value, dict):
                for key in rule.keys() & value.keys():
                    yield from faults(value[key], rule[key], schemas, f"{where}.{key}")
            case "additionalProperties" if isinstance(value, dict):
                for key in value.keys() - schema.get("properties", {}).keys():
                    if rule is False:
                        yield f"{where}: unknown key {key!r}"
                    elif rule is not True:
                        yield from faults(value[key], rule, schemas, f"{where}.{key}")
            case "items" if isinstance(value, list):
                for at, item in enumerate(value):
                    yield from faults(item, rule, schemas, f"{where}[{at}]")
            case "minItems" | "maxItems" if isinstance(value, list):
                if (len(value) < rule) if keyword == "minItems" else (len(value) > rule):
                    yield f"{where}: {keyword} {rule}, found {len(value)}"
            case "uniqueItems" if isinstance(value, list):
                if len({*map(str, value)}) < len(value):
                    yield f"{where}: expected different items"
            case "maxLength" if isinstance(value, str):
                if len(value) > rule:
                    yield f"{where}: longer than {rule}"
            case "exclusiveMinimum" | "exclusiveMaximum" if is_of(value, "number"):
                if (value <= rule) if keyword == "exclusiveMinimum" else (value >= rule):
                    yield f"{where}: {keyword} {rule}, found {value}"
            case "required" | "properties" | "additionalProperties" | "items" | "minItems" | "maxItems":
                pass  # of another type
            case "uniqueItems" | "maxLength" | "exclusiveMinimum" | "exclusiveMaximum":
                pass
            case _ if keyword not in NOTES:
                raise AssertionError(f"a keyword without a check: {keyword}")

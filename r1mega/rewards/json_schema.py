"""JSON in a model's text, JSON values compared, and JSON checked against a schema (the keywords of draft 2020-12 that such benchmarks use).

A keyword that is not understood is refused when the schema is read, never passed over: a schema that was half checked would call wrong output right.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from r1mega.errors import nearest

_FENCE = re.compile(r"```[a-zA-Z0-9_+-]*[ \t]*\n(.*?)```", re.DOTALL)
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_WITHOUT_EFFECT = ("title", "description", "default", "examples", "$schema", "$id", "$comment", "format", "deprecated", "readOnly", "writeOnly", "$defs",
                   "definitions")
_COUNTS = ("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_CHECKED = ("type", "enum", "const", "properties", "required", "additionalProperties", "patternProperties", "items", "prefixItems", "uniqueItems", "pattern",
            "anyOf", "oneOf", "allOf", "not", "$ref", *_COUNTS, *_NUMBERS)
_DEPTH = 64
_CONTAINERS: Mapping[type, str] = {str: "string", list: "array", dict: "object"}


class SchemaError(ValueError):
    """A schema with a keyword or value that is not understood."""


def json_in(text: str, *, whole: bool = False) -> str:
    """The JSON text in a reply: the last fenced block if there is one, else all of it. With `whole` nothing may stand outside the block."""
    text = text.strip()
    blocks = list(_FENCE.finditer(text))
    if not blocks or (whole and blocks[0].span() != (0, len(text))):
        return text
    return blocks[-1][1].strip()


def parse_json(text: str) -> Any:
    """JSON as the standard has it. Raises `ValueError`, also for NaN, infinities and nesting that is too deep."""
    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")
    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def same_json(left: Any, right: Any) -> bool:
    """Equality of JSON values: the order of keys does not count, 1 equals 1.0, and true does not equal 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    return type(left) is type(right) and bool(left == right)


def check_schema(schema: Any, root: Any = None, where: str = "$") -> None:
    """Raise `SchemaError` for a keyword that `schema_fault` does not know, or a malformed one, with its place."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise SchemaError(f"{where}: expected an object or a boolean, got {type(schema).__name__}")
    for key, value in schema.items():
        if key not in (*_CHECKED, *_WITHOUT_EFFECT):
            raise SchemaError(f"{where}: the schema keyword '{key}' is not supported.{nearest(key, _CHECKED)}")
        _check_keyword(key, value, f"{where}.{key}", root)


def _check_keyword(key: str, value: Any, where: str, root: Any) -> None:
    names = [value] if isinstance(value, str) else value
    if key == "type" and not (isinstance(names, list) and names and all(name in _TYPES for name in names)):
        raise SchemaError(f"{where}: expected {', '.join(_TYPES)}, got {value!r}")
    if key in ("properties", "patternProperties", "$defs", "definitions", "anyOf", "oneOf", "allOf", "prefixItems"):
        wanted: type = dict if key in ("properties", "patternProperties", "$defs", "definitions") else list
        below: Any = value
        if not isinstance(value, wanted):
            raise SchemaError(f"{where}: expected {'an object' if wanted is dict else 'a list'} of schemas")
        for name in below if wanted is dict else range(len(below)):
            check_schema(below[name], root, f"{where}.{name}")
    if key in ("items", "additionalProperties", "not"):
        check_schema(value, root, where)
    if key in _COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise SchemaError(f"{where}: expected a whole number of at least 0, got {value!r}")
    if key in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float) or (key == "multipleOf" and value <= 0)):
        raise SchemaError(f"{where}: expected a number{' above 0' * (key == 'multipleOf')}, got {value!r}")
    if key == "enum" and not isinstance(value, list):
        raise SchemaError(f"{where}: expected a list, got {value!r}")
    if key == "required" and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise SchemaError(f"{where}: expected a list of names, got {value!r}")
    for pattern in [value] if key == "pattern" else value if key == "patternProperties" else ():
        _compiled(pattern, where)
    if key == "$ref":
        _referred(value, root, where)


def _compiled(pattern: Any, where: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise SchemaError(f"{where}: not a regular expression: {pattern!r}") from error


def _referred(reference: Any, root: Any, where: str) -> Any:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise SchemaError(f"{where}: only references within the schema (#/...) are supported, got {reference!r}")
    here = root
    for part in reference[2:].split("/") if len(reference) > 2 else ():
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(here, Mapping) or part not in here:
            raise SchemaError(f"{where}: {reference!r} leads nowhere")
        here = here[part]
    return here


def schema_fault(value: Any, schema: Any, root: Any = None, where: str = "$", depth: int = 0) -> str:
    """The first way in which `value` does not follow the (checked) schema, with its place; empty when it does."""
    root = schema if root is None else root
    if depth > _DEPTH:
        return f"{where}: nested too deeply"
    if isinstance(schema, bool):
        return "" if schema else f"{where}: nothing is allowed here"
    faults = (_of_type(value, schema, where), _of_number(value, schema, where), _of_text(value, schema, where), _of_array(value, schema, root, where, depth),
              _of_object(value, schema, root, where, depth), _combined(value, schema, root, where, depth))
    return next((fault for fault in faults if fault), "")


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool) or value is None:
        return name == ("null" if value is None else "boolean")
    if isinstance(value, int | float):
        return name == "number" or (name == "integer" and float(value).is_integer())
    return _CONTAINERS.get(type(value)) == name


def _of_type(value: Any, schema: Mapping[str, Any], where: str) -> str:
    names = schema.get("type", [])
    names = [names] if isinstance(names, str) else names
    if names and not any(_is(value, name) for name in names):
        return f"{where}: expected {' or '.join(names)}"
    if "enum" in schema and not any(same_json(value, one) for one in schema["enum"]):
        return f"{where}: not one of the values of enum"
    return f"{where}: not the constant" if "const" in schema and not same_json(value, schema["const"]) else ""


def _of_number(value: Any, schema: Mapping[str, Any], where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    bad = (("minimum" in schema and value < schema["minimum"]) or ("maximum" in schema and value > schema["maximum"])
           or ("exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"])
           or ("exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"]))
    if "multipleOf" in schema:
        ratio = value / schema["multipleOf"]
        bad = bad or not math.isclose(ratio, round(ratio), rel_tol=1e-12, abs_tol=1e-12)
    return f"{where}: the number {value} is out of bounds" if bad else ""


def _of_text(value: Any, schema: Mapping[str, Any], where: str) -> str:
    if not isinstance(value, str):
        return ""
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
        return f"{where}: a text of {len(value)} characters is too short or too long"
    return f"{where}: the text does not match the pattern" if "pattern" in schema and not re.search(schema["pattern"], value) else ""


def _of_array(value: Any, schema: Mapping[str, Any], root: Any, where: str, depth: int) -> str:
    if not isinstance(value, list):
        return ""
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
        return f"{where}: {len(value)} items are too few or too many"
    if schema.get("uniqueItems") and any(same_json(one, other) for place, one in enumerate(value) for other in value[:place]):
        return f"{where}: an item is repeated"
    first: Sequence[Any] = schema.get("prefixItems", ())
    for place, item in enumerate(value):
        fault = schema_fault(item, first[place] if place < len(first) else schema.get("items", True), root, f"{where}[{place}]", depth + 1)
        if fault:
            return fault
    return ""


def _of_object(value: Any, schema: Mapping[str, Any], root: Any, where: str, depth: int) -> str:
    if not isinstance(value, dict):
        return ""
    if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", math.inf):
        return f"{where}: {len(value)} properties are too few or too many"
    missing = [name for name in schema.get("required", ()) if name not in value]
    if missing:
        return f"{where}: the property '{missing[0]}' is missing"
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, item in value.items():
        rules = ([known[name]] if name in known else []) + [rule for pattern, rule in patterns.items() if re.search(pattern, name)]
        for rule in rules or [schema.get("additionalProperties", True)]:
            fault = schema_fault(item, rule, root, f"{where}.{name}", depth + 1)
            if fault:
                return fault
    return ""


def _combined(value: Any, schema: Mapping[str, Any], root: Any, where: str, depth: int) -> str:
    def fits(part: Any) -> bool:
        return not schema_fault(value, part, root, where, depth + 1)

    if "$ref" in schema and (fault := schema_fault(value, _referred(schema["$ref"], root, where), root, where, depth + 1)):
        return fault
    if not all(map(fits, schema.get("allOf", ()))) or ("anyOf" in schema and not any(map(fits, schema["anyOf"]))):
        return f"{where}: does not fit anyOf or allOf"
    if "oneOf" in schema and sum(map(fits, schema["oneOf"])) != 1:
        return f"{where}: does not fit exactly one of oneOf"
    return f"{where}: fits what 'not' forbids" if "not" in schema and fits(schema["not"]) else ""

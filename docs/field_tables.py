"""Tables of request fields and of settings, from the models that check them."""

import inspect
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs.tables import code, table
from finlora.api import admin_protocol, protocol
from finlora.api.protocol import messages, sampling, structured, tokenization
from finlora.config import Settings

MODULES = (protocol, messages, sampling, structured, tokenization, admin_protocol)
Schema = dict[str, Any]
INNER = {"propertyNames": "keys", "items": "each", "additionalProperties": "each"}


def fields_table(model_name: str) -> str:
    """Every field of a request, and those that are refused by name."""
    model = documented_models()[model_name]
    schema = model.model_json_schema(by_alias=True)
    required, definitions = schema.get("required", []), schema.get("$defs", {})
    rows = []
    for name, field in model.model_fields.items():
        name = field.alias or name
        part = _resolved(schema["properties"][name], definitions)
        default = "required" if name in required else _default(field)
        meaning = field.description or ""
        rows.append((code(name), _kind(part, definitions), default, _bounds(part), meaning))
    refused: dict[str, str] = getattr(model, "refused", {})
    rows += [(code(name), "", "", "", f"refused: {why}") for name, why in refused.items()]
    return table(("Field", "Type", "Default", "Bounds", ""), rows)


def documented_models() -> dict[str, type[BaseModel]]:
    """Every model of a body, by name."""
    return {
        name: model
        for module in MODULES
        for name, model in inspect.getmembers(module, inspect.isclass)
        if issubclass(model, BaseModel) and model.model_fields and model is not BaseModel
    }


def settings_table() -> str:
    """Every setting with its flag and its variable."""
    properties = Settings.model_json_schema()["properties"]
    definitions = Settings.model_json_schema().get("$defs", {})
    rows = []
    for name, field in Settings.model_fields.items():
        part = _resolved(properties[name], definitions)
        rows.append(
            (
                code(f"--{name.replace('_', '-')}"),
                code(f"FINLORA_{name.upper()}"),
                _default(field),
                ", ".join(part.get("enum", [])) or _bounds(part),
                field.description or "",
            )
        )
    return table(("Flag", "Variable", "Default", "Bounds", ""), rows)


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None or default == [] or default == {}:
        return ""
    if isinstance(default, Enum):
        default = default.value
    if isinstance(default, str | Path):
        return code(default) if str(default) else "empty"
    return json.dumps(default)


def _resolved(part: Schema, definitions: Schema) -> Schema:
    """A property without `null` and references: null means that the field was not sent."""
    if "anyOf" in part:
        options = [option for option in part["anyOf"] if option.get("type") != "null"]
        if len(options) == 1:
            part = {**part, **options[0]}
            part.pop("anyOf")
    if "$ref" in part:
        name = part["$ref"].rsplit("/", 1)[-1]
        return {**definitions[name], "title": name}
    return part


def _kind(part: Schema, definitions: Schema) -> str:
    if "enum" in part or "const" in part:
        return ", ".join(code(json.dumps(value)) for value in _values(part))
    if "anyOf" in part or "oneOf" in part:
        options = part.get("anyOf") or part["oneOf"]
        kinds = [_kind(_resolved(option, definitions), definitions) for option in options]
        return " or ".join(dict.fromkeys(kinds))
    kind = part.get("type", "any")
    if kind == "array":
        return f"list of {_kind(_resolved(part.get('items', {}), definitions), definitions)}"
    if kind == "object" and "properties" in part:
        return code(part["title"])
    return str(kind)


def _values(part: Schema) -> list[Any]:
    values: list[Any] = part.get("enum", [part.get("const")])
    return values


def _bounds(part: Schema) -> str:
    return "; ".join(_all_bounds(part))


def _all_bounds(part: Schema) -> Iterator[str]:
    holds_entries = part.get("type") in ("array", "object")
    yield from _range(part, "minimum", "maximum", "")
    yield from _range(
        part, "minLength", "maxLength", " entries" if holds_entries else " characters"
    )
    yield from _range(part, "minItems", "maxItems", " entries")
    yield from _range(part, "minProperties", "maxProperties", " entries")
    for key, word in INNER.items():
        if isinstance(inner := part.get(key), dict):
            yield from (f"{word} {bound}" for bound in _all_bounds(inner))


def _range(part: Schema, least: str, most: str, unit: str) -> Iterator[str]:
    if least in part and most in part:
        yield f"{_number(part[least])} to {_number(part[most])}{unit}"
        return
    words = (
        ("at least", least),
        ("above", f"exclusive{least.capitalize()}"),
        ("at most", most),
        ("below", f"exclusive{most.capitalize()}"),
    )
    found = [f"{word} {_number(part[key])}" for word, key in words if key in part]
    if found:
        yield f"{', '.join(found)}{unit}"


def _number(value: float) -> str:
    for power in (31, 63):
        if value == 2**power:
            return f"2^{power}"
        if value == -(2**power):
            return f"-2^{power}"
    return f"{value:,g}" if isinstance(value, float) else f"{value:,}"

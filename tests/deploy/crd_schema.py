"""The schema of a custom resource as an API server applies it: defaults first, then strictly.

An API server drops unknown fields in silence unless asked to be strict; here they are always mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Schema = Mapping[str, Any]
_OPEN = "x-kubernetes-preserve-unknown-fields"
_INT_OR_STRING = "x-kubernetes-int-or-string"
_KEPT = {"type", "required", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern", "minItems", "maxItems"}


def crd_schema(path: Path, version: str) -> Schema:
    """The schema that the definition in `path` gives `version`."""
    definition = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    versions = {each["name"]: each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"]}
    schema: Schema = versions[version]
    return schema


def mistakes(manifest: Mapping[str, Any], schema: Schema) -> list[str]:
    """One line for each field that the API server would refuse, with its path."""
    validator = jsonschema.Draft202012Validator(_strict(schema))
    return list(_lines(validator, _defaulted(manifest, schema)))


def _lines(validator: jsonschema.Draft202012Validator, manifest: object) -> Iterator[str]:
    for error in validator.iter_errors(manifest):
        yield f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message}"


def _defaulted(value: Any, schema: Schema) -> Any:
    if isinstance(value, Mapping):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
        filled = {name: each["default"] for name, each in known.items() if "default" in each} | dict(value)
        return {name: _defaulted(each, known.get(name, rest or {})) for name, each in filled.items()}
    if isinstance(value, list):
        return [_defaulted(each, schema.get("items", {})) for each in value]
    return value


def _strict(schema: Schema) -> dict[str, Any]:
    if schema.get(_INT_OR_STRING):
        return {"type": ["integer", "string"]}
    strict: dict[str, Any] = {key: value for key, value in schema.items() if key in _KEPT}
    if schema.get("nullable"):
        strict["type"] = [strict["type"], "null"]
    if "items" in schema:
        strict["items"] = _strict(schema["items"])
    if "properties" in schema:
        strict["properties"] = {name: _property(name, each) for name, each in schema["properties"].items()}
        strict["additionalProperties"] = bool(schema.get(_OPEN))
    if isinstance(schema.get("additionalProperties"), Mapping):
        strict["additionalProperties"] = _strict(schema["additionalProperties"])
    return strict


def _property(name: str, schema: Schema) -> dict[str, Any]:
    """`metadata` is the API server's own and stands in a custom resource's schema without its fields."""
    return {"type": "object"} if name == "metadata" and "properties" not in schema else _strict(schema)

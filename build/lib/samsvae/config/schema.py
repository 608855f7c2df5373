"""The JSON schema of a configuration, for editors and readers (config/schema.json)."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal

from samsvae.config.study import Study
from samsvae.config.validate import ANCHORS, type_hints


def schema(cls: type = Study) -> dict[str, Any]:
    """The JSON schema of a configuration class, as in config/schema.json."""
    top = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Configuration of samsvae"}
    return top | _schema_of(cls)


def _schema_of(hint: Any) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema_of(option) for option in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple:
        items = {"type": "array", "items": _schema_of(args[0])}
        return {"anyOf": [items, {"type": "string"}]} if args[0] is str else items
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(args[1])}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        properties, required = {}, []
        for item in dataclasses.fields(hint):
            properties[item.name] = _schema_of(type_hints(hint)[item.name])
            if "schema" in item.metadata:  # the classes that a plain dict is checked against
                properties[item.name] = {"anyOf": [_schema_of(kind) for kind in item.metadata["schema"]()]}
            if item.default is not dataclasses.MISSING:
                default = item.default
                properties[item.name]["default"] = list(default) if isinstance(default, tuple) else default
            elif item.default_factory is dataclasses.MISSING:
                required.append(item.name)
        text = {"description": " ".join((hint.__doc__ or "").split())}
        keys = {"properties": properties, "patternProperties": {f"^{ANCHORS}": {}}, "required": required}
        found = {"type": "object", **text, **keys, "additionalProperties": False}
        return {"anyOf": [{"type": "string"}, found]} if hasattr(hint, "SHORT") else found
    names = {int: "integer", float: "number", str: "string", bool: "boolean", types.NoneType: "null"}
    return {"type": names[hint]}

"""Turns plain dicts (from YAML) into validated dataclasses. This module knows no class by name."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from samsvae.errors import ConfigError, nearest


def plain(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as a dict, one level deep."""
    return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}


@cache
def type_hints(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    return typing.get_type_hints(cls)


def build(cls: type, data: Any, where: str = "config") -> Any:
    """Build a dataclass from a dict; ConfigError names the key, the value and what is allowed."""
    values = checked_fields(cls, data, where)
    for item in dataclasses.fields(cls):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and item.name not in data:
            raise ConfigError(f"{where}: the key {item.name!r} is missing.")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def checked_fields(cls: type, data: Any, where: str) -> dict[str, Any]:
    """Check a dict with some fields of a dataclass, value by value."""
    if not isinstance(data, typing.Mapping):
        raise ConfigError(
            f"{where}: {data!r} is not allowed. Needed: keys with values. "
            f"Allowed keys: {', '.join(sorted(field_names(cls)))}."
        )
    hints, names = type_hints(cls), field_names(cls)
    for key in data:
        if key not in names:
            raise ConfigError(f"{where}: unknown key {key!r}.{nearest(key, sorted(names))}")
    return {key: checked(value, hints[key], f"{where}.{key}") for key, value in data.items()}


def checked(value: Any, hint: Any, where: str) -> Any:
    """Check a value against the type of its field; ConfigError names the key, the value and what is allowed."""
    if type(value).__module__ == "numpy":  # recognised by name: this module must not load numpy
        value = value.tolist()  # numbers of numpy as plain numbers, an array as a list
    origin = typing.get_origin(hint) or hint
    if origin in HOOKS:
        return HOOKS[origin](value, hint, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    raise TypeError(
        f"{where}: fields of type {hint!r} are not supported. Allowed: dataclasses and {', '.join(map(str, HOOKS))}."
    )


def _not_allowed(value: Any, hint: Any, where: str) -> ConfigError:
    return ConfigError(f"{where}: {value!r} is not allowed. Allowed: {_describe(hint)}.")


def _union(value: Any, hint: Any, where: str) -> Any:
    for option in typing.get_args(hint):
        try:
            return checked(value, option, where)
        except ConfigError as error:
            if dataclasses.is_dataclass(option) and isinstance(value, typing.Mapping):
                raise error
    raise _not_allowed(value, hint, where)


def _literal(value: Any, hint: Any, where: str) -> Any:
    if value not in typing.get_args(hint):
        raise ConfigError(f"{where}: {value!r} is not allowed.{nearest(value, typing.get_args(hint))}")
    return value


def _tuple(value: Any, hint: Any, where: str) -> tuple:
    item = typing.get_args(hint)[0]
    if not isinstance(value, list | tuple):
        if item is str and isinstance(value, str):
            return (value,)
        raise ConfigError(f"{where}: {value!r} is not a list.")
    return tuple(checked(each, item, f"{where}[{i}]") for i, each in enumerate(value))


def _dict(value: Any, hint: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, typing.Mapping):
        raise ConfigError(f"{where}: {value!r} is not allowed. Needed: keys with values.")
    return {str(key): checked(item, typing.get_args(hint)[1], f"{where}.{key}") for key, item in value.items()}


def _float(value: Any, hint: Any, where: str) -> float:
    if isinstance(value, str):  # YAML reads 1e-4 (without a point) as text
        try:
            value = float(value)
        except ValueError:
            raise ConfigError(f"{where}: {value!r} is not a number.") from None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise _not_allowed(value, hint, where)


def _instance(value: Any, hint: Any, where: str) -> Any:
    """Check an int, str, bool or None. True is not accepted as an int, although bool is a subclass of int."""
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _not_allowed(value, hint, where)


#: Check for each type of field (for a generic type, its origin): (value, type, key) -> value.
HOOKS: dict[Any, Callable[[Any, Any, str], Any]] = {
    Any: lambda value, hint, where: value,
    typing.Union: _union,
    types.UnionType: _union,
    Literal: _literal,
    tuple: _tuple,
    dict: _dict,
    float: _float,
    **dict.fromkeys((int, str, bool, types.NoneType), _instance),
}

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    types.NoneType: "nothing (null)",
}


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in args)
    if origin is tuple:
        return f"a list of {_describe(args[0])}"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def field_names(cls: type) -> set[str]:
    """The names of the fields of a dataclass."""
    return {item.name for item in dataclasses.fields(cls)}


def at_least(least: int, settings: object, *names: str) -> None:
    """ConfigError if one of these settings is below ``least``; a setting that is None is allowed."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ConfigError(f"{name}: {value} is not allowed; it must be {least} or more.")

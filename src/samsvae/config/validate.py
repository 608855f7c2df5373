"""Turns plain dicts (from YAML) into validated dataclasses. This module knows no class by name."""

from __future__ import annotations

import dataclasses
import datetime
import math
import numbers
import re
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from samsvae.errors import ConfigError, nearest, quoted

#: Keys with this beginning hold anchors of YAML, which other keys refer to, and are ignored.
ANCHORS = "x-"

#: The largest whole number, which files can hold, and the largest seed, which every random generator takes.
MOST, MOST_SEED = 2**63 - 1, 2**32 - 1

#: No number of a configuration is larger: float32 ends there.
LARGE = 3.4e38


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
            f"{where}: {quoted(data)} is not allowed. Needed: keys with values. "
            f"Allowed keys: {', '.join(sorted(field_names(cls)))}."
        )
    hints, names = type_hints(cls), field_names(cls)
    given = {key: value for key, value in data.items() if not str(key).startswith(ANCHORS)}
    for key in given:
        if key not in names:
            raise ConfigError(f"{where}: unknown key {quoted(key)}.{nearest(key, sorted(names))}")
    return {key: checked(value, hints[key], f"{where}.{key}") for key, value in given.items()}


def checked(value: Any, hint: Any, where: str) -> Any:
    """Check a value against the type of its field; ConfigError names the key, the value and what is allowed."""
    if type(value).__module__ == "numpy":  # recognised by name: this module must not load numpy
        value = value.tolist()  # numbers of numpy as plain numbers, an array as a list
    origin = typing.get_origin(hint) or hint
    if origin in HOOKS:
        return HOOKS[origin](value, hint, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, str) and (short := getattr(hint, "SHORT", None)):
            value = {short: value}  # a text stands for one of the keys
        return value if isinstance(value, hint) else build(hint, value, where)
    raise TypeError(
        f"{where}: fields of type {hint!r} are not supported. Allowed: dataclasses and {', '.join(map(str, HOOKS))}."
    )


def _not_allowed(value: Any, hint: Any, where: str) -> ConfigError:
    allowed = _describe(hint)
    listed = isinstance(value, list | tuple)
    advice = "".join(_advice(value)[:1]) if ("a list of text" if listed else "text") in allowed else ""
    return ConfigError(f"{where}: {quoted(value)} is not allowed. Allowed: {allowed}.{advice}")


def _advice(value: Any) -> list[str]:
    """What to do about each value that is no text where a text is allowed: YAML reads some names as other values."""
    if isinstance(value, list | tuple):
        return [advice for each in value for advice in _advice(each)]
    if isinstance(value, bool):
        return [" Write names such as NO, ON and YES in quotes: YAML reads them as true or false without."]
    if isinstance(value, int | float | datetime.date):
        return [' Write names that are numbers or dates in quotes ("0417"): YAML reads them as other values without.']
    return [] if value is not None else [' Nothing is no text: write "", or the text in quotes ("#").']


def _union(value: Any, hint: Any, where: str) -> Any:
    options = typing.get_args(hint)
    lists = [option for option in options if typing.get_origin(option) is tuple]
    if isinstance(value, list | tuple) and options == (*lists, types.NoneType):
        return checked(value, lists[0], where)  # its message names the item
    for option in options:
        try:
            return checked(value, option, where)
        except ConfigError as error:
            if dataclasses.is_dataclass(option) and isinstance(value, typing.Mapping | str):
                raise error
    raise _not_allowed(value, hint, where)


def _literal(value: Any, hint: Any, where: str) -> Any:
    if value not in typing.get_args(hint):
        raise ConfigError(f"{where}: {quoted(value)} is not allowed.{nearest(value, typing.get_args(hint))}")
    return value


def _tuple(value: Any, hint: Any, where: str) -> tuple:
    item = typing.get_args(hint)[0]
    if not isinstance(value, list | tuple):
        if item is str and isinstance(value, str):
            return (value,)
        raise _not_allowed(value, hint, where)
    return tuple(checked(each, item, f"{where}[{i}]") for i, each in enumerate(value))


def _dict(value: Any, hint: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, typing.Mapping):
        raise ConfigError(f"{where}: {quoted(value)} is not allowed. Needed: keys with values.")
    for key in value:
        if not isinstance(key, str) and type(key) is not int:
            raise ConfigError(f"{where}: the key {quoted(key)} is not text.{''.join(_advice(key)[:1])}")
    return {str(key): checked(item, typing.get_args(hint)[1], f"{where}.{key}") for key, item in value.items()}


def _float(value: Any, hint: Any, where: str) -> float:
    number = value
    if isinstance(value, str):  # YAML reads 1e-4 (without a point) as text
        try:
            number = float(value)
        except ValueError:
            raise ConfigError(f"{where}: {quoted(value)} is not a number.") from None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _not_allowed(value, hint, where)
    if not -LARGE < number < LARGE:
        raise ConfigError(f"{where}: {quoted(value)} is not allowed; it must be a number below {LARGE}.")
    return float(number)


def _instance(value: Any, hint: Any, where: str) -> Any:
    """Check an int, str, bool or None. True is not accepted as an int, although bool is a subclass of int."""
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise _not_allowed(value, hint, where)
    if hint is int and abs(value) > MOST:
        raise ConfigError(f"{where}: {quoted(value)} is not allowed; it must be {MOST:,} or less.")
    return value


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
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return f"{'text or ' if hasattr(hint, 'SHORT') else ''}keys with values"
    return _WORDS.get(hint, str(hint))


def field_names(cls: type) -> set[str]:
    """The names of the fields of a dataclass."""
    return {item.name for item in dataclasses.fields(cls)}


def at_least(least: int, settings: object, *names: str) -> None:
    """ConfigError if one of these settings is below ``least``, or a seed too large; None is allowed."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ConfigError(f"{name}: {quoted(value)} is not allowed; it must be {least} or more.")
        if value is not None and name.endswith("seed") and value > MOST_SEED:
            raise ConfigError(f"{name}: {quoted(value)} is not allowed; a seed is {MOST_SEED:,} at most.")


def check_positive(**values: object) -> None:
    """ConfigError unless each value is a number above 0; numpy's numbers are allowed, True is not."""
    for name, value in values.items():
        if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 < float(value) < math.inf:
            raise ConfigError(f"{name}: {value!r} is not allowed; it must be a number above 0.")


def check_whole(**values: object) -> None:
    """ConfigError unless each value is a whole number above 0."""
    check_positive(**values)
    for name, value in values.items():
        if not isinstance(value, numbers.Integral):
            raise ConfigError(f"{name}: {value!r} is not allowed; it must be a whole number.")


def check_path(name: str, path: str | None, *, refused: str = "{}") -> None:
    """ConfigError if a path is empty, begins with ``~`` or has line breaks or characters in ``refused``."""
    if path is None:
        return
    if not path.strip():
        raise ConfigError(f"{name}: {path!r} is not allowed; it must name a file or a folder.")
    if path.startswith("~"):
        raise ConfigError(f"{name}: {quoted(path)} is not allowed, as '~' is not replaced. Write the complete path.")
    if max(len(part.encode(errors="replace")) for part in path.split("/")) > 255:
        raise ConfigError(f"{name}: {quoted(path)} is not allowed: the names in a path have 255 bytes at most.")
    if bad := re.search(rf"[\x00-\x1f\x7f\u2028\u2029{re.escape(refused)}]", path):
        raise ConfigError(
            f"{name}: {quoted(path)} is not allowed: a path must not have the character {bad.group()!r}"
            + (f" (nor any other of {' '.join(refused)})." if bad.group() in refused else ".")
        )

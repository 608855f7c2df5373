"""The truth of a split as a file, so that the runs that read the split do not each compute it again.

Every field of `Truth` is one or several arrays of an npz file: those of a field that is itself a record or a dictionary
have names like ``test.delta``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from samsvae.errors import DataError
from samsvae.evaluation.truth import Truth
from samsvae.files import atomic, verify

#: The name of the only array of a file that says why a split has no effects to score.
REASON = "reason"


def write_truth(truth: Truth | str, path: str | Path) -> None:
    """Write the truth of a split, or the reason why it has no effects to score. Equal truths give equal bytes."""
    arrays = {REASON: np.array(truth)} if isinstance(truth, str) else dict(_arrays(truth, Truth, ""))
    with atomic(path) as aside, open(aside, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_truth(path: str | Path) -> Truth | str:
    """What `write_truth` wrote. DataError if the file is missing, damaged or of another version."""
    verify([path])
    try:
        # opened here, because numpy leaves a damaged archive open
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            return str(arrays[REASON]) if REASON in arrays else _built(Truth, arrays, "")
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not a file with the truth of a split ({error}). Delete it to write it again."
        ) from None


def _arrays(value: Any, kind: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a value and their names, by the type that its field declares."""
    if fields := _fields(kind):
        for field, its in fields.items():
            yield from _arrays(getattr(value, field), its, f"{name}.{field}".lstrip("."))
    elif get_origin(kind) is dict:
        yield from ((f"{name}.{key}", each) for key, each in value.items())
    elif get_origin(kind) is list:
        yield f"{name}.sizes", np.array([len(each) for each in value], int)
        yield f"{name}.values", np.concatenate(value)
    elif isinstance(value, str) or not get_args(kind):
        yield name, np.asarray(value)
    else:  # a record, or a word instead of it
        yield from _arrays(value, get_args(kind)[0], name)


def _built(kind: Any, arrays: Mapping[str, np.ndarray], name: str) -> Any:
    """The value of a field from its arrays."""
    if fields := _fields(kind):
        return kind(**{field: _built(its, arrays, f"{name}.{field}".lstrip(".")) for field, its in fields.items()})
    if get_origin(kind) is dict:
        return {key.removeprefix(f"{name}."): each for key, each in arrays.items() if key.startswith(f"{name}.")}
    if get_origin(kind) is list:
        return np.split(arrays[f"{name}.values"], np.cumsum(arrays[f"{name}.sizes"])[:-1])
    if get_args(kind) and name not in arrays:
        return _built(get_args(kind)[0], arrays, name)
    return arrays[name] if kind is np.ndarray else arrays[name].item()


def _fields(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass or named tuple with their types, in order; {} for other types."""
    is_record = is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"))
    return get_type_hints(kind) if is_record else {}

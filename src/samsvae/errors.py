"""Errors that the user can fix, each with a message of one sentence.

A message names the file (or configuration key), the column, the offending value and what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SamsvaeError(ValueError):
    """Base of every error that the user can fix."""


class ConfigError(SamsvaeError):
    """A configuration key or value that is not allowed."""


class DataError(SamsvaeError):
    """A data file with missing or invalid content."""


class DownloadError(SamsvaeError):
    """A source that cannot be downloaded, or whose file is not the expected one."""


class CheckpointError(SamsvaeError):
    """A checkpoint that is damaged or belongs to another model."""


class NumericalError(SamsvaeError):
    """A loss or gradient that is not finite."""


class Interrupted(SamsvaeError):
    """A training that was stopped by a signal. If its state was ``saved``, a rerun continues from there."""

    def __init__(self, message: str, *, saved: bool):
        super().__init__(f"{message}; {'a rerun continues from there' if saved else 'its state was not saved'}.")


def nearest(value: object, allowed: Iterable[object]) -> str:
    """The end of an error message: the closest allowed value, then all allowed values (at most 30)."""
    names = [str(a) for a in allowed]
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    shown = ", ".join(names[:30]) + (f", ... ({len(names)} in all)" if len(names) > 30 else "")
    return f"{hint} Allowed: {shown}."


def some(values: Iterable[object], most: int = 5) -> str:
    """The first few of many offending values, quoted, and the number of those left out."""
    values = list(values)
    shown = ", ".join(repr(str(v)) for v in values[:most])
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"

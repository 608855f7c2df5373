"""What can go wrong through the user's input, each said in one sentence.

A message names the file (or config key), the column, the offending value and what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SamsvaeError(ValueError):
    """Base of every error that the user can mend."""


class ConfigError(SamsvaeError):
    """A configuration key or value that is not allowed."""


class DataError(SamsvaeError):
    """A data file that does not hold what it should."""


class DownloadError(SamsvaeError):
    """A source that could not be fetched or is not the file it should be."""


class CheckpointError(SamsvaeError):
    """A file of weights that is damaged or belongs to another model."""


class NumericalError(SamsvaeError):
    """A loss or gradient that is not finite."""


class Interrupted(SamsvaeError):
    """A training that a signal has stopped; started again, it goes on where it was."""

    def __init__(self, message: str, *, kept: bool):
        super().__init__(f"{message}; {'started again, it goes on from there' if kept else 'nothing was kept'}.")


def nearest(value: object, allowed: Iterable[object]) -> str:
    """The end of an error message: the nearest allowed value, then all of them (at most 30)."""
    names = [str(a) for a in allowed]
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    shown = ", ".join(names[:30]) + (f", ... ({len(names)} in all)" if len(names) > 30 else "")
    return f"{hint} Allowed: {shown}."


def some(values: Iterable[object], most: int = 5) -> str:
    """The first few of many offending values, quoted, with the number left out."""
    values = list(values)
    shown = ", ".join(repr(str(v)) for v in values[:most])
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"

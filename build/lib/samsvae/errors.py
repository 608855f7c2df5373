"""Errors that the user can fix, each with a message of one sentence.

A message names the file (or configuration key), the column, the offending value and what is allowed.
"""

from __future__ import annotations

import difflib
import itertools
import reprlib
from collections.abc import Iterable

#: Letters of a name that are compared, and of a list that one message shows.
_LONGEST, _READ = 100, 600


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


class _Short(reprlib.Repr):
    """The repr of a value, cut in the middle if it is long: files hold labels of 4,000 letters."""

    def __init__(self):
        super().__init__()
        self.maxstring, self.maxother, self.maxlist, self.maxtuple, self.maxdict = 80, 80, 8, 8, 8

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**30 else f"a number of about {int(x.bit_length() * 0.30103) + 1} digits"


_short = _Short()


def quoted(value: object) -> str:
    """A value as a message shows it: its repr, cut in the middle if it is long."""
    text = " ".join(_short.repr(value).splitlines())
    return text if len(text) <= _READ // 2 else f"{text[: _READ // 4]}...{text[-_READ // 4 :]}"


def nearest(value: object, allowed: Iterable[object]) -> str:
    """The end of an error message: the closest allowed value, then the allowed values (at most 30, shortened)."""
    names = [str(a) for a in allowed]
    if not names:
        return " There are none to choose from."
    begins = dict(zip((name[:_LONGEST] for name in names), names, strict=True))  # long texts are slow to compare
    close = difflib.get_close_matches(str(value)[:_LONGEST], begins, n=1, cutoff=0.5)
    hint = f" Did you mean {quoted(begins[close[0]])}?" if close else ""
    shown = _few([_bare(name) for name in names[:30]])
    more = f", ... ({len(names)} in all)" if len(names) > len(shown) else ""
    return f"{hint} Allowed: {', '.join(shown)}{more}."


def some(values: Iterable[object], most: int = 5) -> str:
    """The first few of many offending values, quoted and shortened, and the number of those left out."""
    values = list(values)
    shown = _few([quoted(str(v)) for v in values[:most]])
    return ", ".join(shown) + (f" and {len(values) - len(shown)} more" if len(values) > len(shown) else "")


def _few(texts: list[str]) -> list[str]:
    """The first texts, as many as are read in one message."""
    lengths = itertools.accumulate(len(text) for text in texts)
    return [text for n, (text, length) in enumerate(zip(texts, lengths, strict=True)) if n == 0 or length <= _READ]


def _bare(name: str) -> str:
    """A name without quotes, unless it is empty, long or has characters that cannot be printed."""
    text = quoted(name)
    return name if name and text[1:-1] == name else text

"""One figure, from files to files: read its tables, draw it, and write picture and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from samsvae.figures.style import save


def write_figure(
    name: str, inputs: Mapping[str, str | Sequence[str]], settings: Mapping[str, object], picture: str | Path
) -> None:
    """Draw the figure ``name`` (a row of the registry) and write ``picture`` (PNG), its PDF and its tables.

    ``inputs`` and ``settings``: the arguments of the figure's ``tables``. DataError if a file does not hold what the
    figure needs.
    """
    module: ModuleType = import_module(f"samsvae.figures.{name}")
    files = {key: value if isinstance(value, str) else [str(path) for path in value] for key, value in inputs.items()}
    shown = module.tables(**files, **settings)
    data = {suffix: shown[key] for suffix, key in module.SAVED.items()}
    save(module.draw(**shown), Path(picture).with_suffix(""), data)

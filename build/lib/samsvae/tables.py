"""Read and write the tables that rules exchange."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from samsvae.errors import DataError, some
from samsvae.files import DIGITS, LINE_END, SEPARATOR, verify, write_frame

#: Columns that are read as text, also if labels look like numbers or missing values ('000', 'NA').
TEXT = ("condition", "perturbation", "cell", "gene", "run", "model", "dataset", "split_name", "rules")

#: Digits of the tables of the honest protocol, whose scores can be recalculated to 1e-9.
PRECISE = 12


def read(path: str | Path) -> pd.DataFrame:
    """Read a TSV. Columns in TEXT are text; elsewhere an empty field is NaN.

    DataError if it cannot be read, or differs from what was written (`files.verify`).
    """
    verify([path])
    try:
        content = Path(path).read_bytes()
        if b"\0" in content or not content.endswith(LINE_END.encode()):
            raise ValueError("a zero byte, or no line end at its end")  # pandas would read it without a word
        types = dict.fromkeys(TEXT, str)
        return pd.read_csv(io.BytesIO(content), sep=SEPARATOR, dtype=types, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise damaged(path, f"not a readable table ({error})") from None


def read_rows(path: str | Path, key: Sequence[str], number: str) -> pd.DataFrame:
    """Read a TSV whose rows are identified by the columns ``key``, with numbers (or gaps) in the column ``number``.

    DataError as for `read`, and if a column is missing, a field of the key is empty or two rows have the same key.
    """
    table = read(path)
    if missing := [name for name in (*key, number) if name not in table]:
        raise damaged(path, f"no column {missing[0]!r} (its columns are {some(table.columns, 20)})")
    if gaps := [name for name in key if table[name].isna().any()]:
        raise damaged(path, f"column {gaps[0]!r} has empty fields")
    if (twice := table.duplicated(list(key))).any():
        row = table.loc[twice, list(key)].iloc[0]
        raise damaged(path, f"two rows have {', '.join(f'{name} {value!r}' for name, value in row.items())}")
    values = pd.to_numeric(table[number], errors="coerce")
    if (wrong := values.isna() & table[number].notna()).any():
        raise damaged(path, f"column {number!r} must hold numbers, not {some(table.loc[wrong, number])}")
    return table


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; DataError as for `read`."""
    verify([path])
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, f"not a readable JSON file ({error})") from None
    if not isinstance(content, dict):
        raise damaged(path, f"it must hold an object, not {type(content).__name__!r}")
    return content


def damaged(path: str | Path, what: str) -> DataError:
    """The error for a file that a rule wrote, and that no longer holds what it should."""
    return DataError(f"{path}: {what}; delete it and rerun the rule that writes it.")


def write(table: pd.DataFrame, path: str | Path, *, digits: int = DIGITS, index_label: str | None = None) -> None:
    """Write a TSV in the one format of all tables (`files.write_frame`); by default floats have 9 digits."""
    write_frame(table, path, digits=digits, index_label=index_label)


def of_experiments(paths: Iterable[str]) -> pd.DataFrame:
    """Tables of several experiments as one, with a column experiment from the paths (``.../EXPERIMENT/file``)."""
    return pd.concat([read(path).assign(experiment=Path(path).parent.name) for path in paths], ignore_index=True)

"""The published numbers as tidy tables with the names of this package: model, metric, split, mean, sd, n.

They are read from resources/published, whose README names the source of each table. ``n`` counts runs.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from samsvae.config.zoo import ROWS, TABLE_1
from samsvae.errors import DataError, nearest

_KEYS = {(ROWS[key].method, ROWS[key].inference): key for key in TABLE_1}

# (model, whether q(z) reads the cell alone) in the released tables of Norman -> row of the zoo
_NORMAN_KEYS = {
    ("conditional_vae", None): "cond_vae",
    ("svae+", None): "svae_plus",
    ("cpa_vae", True): "cpa_vae_mf",
    ("cpa_vae", False): "cpa_vae_corr",
    ("sams_vae_mean_field", True): "sams_vae_mf",
    ("sams_vae_mean_field", False): "sams_vae_corr_z",
    ("sams_vae_correlated", True): "sams_vae_corr_e",
    ("sams_vae_correlated", False): "sams_vae_corr",
}

_NORMAN_METRICS = {
    "val/IWELBO": ("iwelbo", "val"),
    "val/IWELBO_relative": ("iwelbo_relative", "val"),
    "test/IWELBO": ("iwelbo", "test"),
    "test/IWELBO_relative": ("iwelbo_relative", "test"),
    "ATE_pearsonr-test": ("ate_pearson", "test"),
    "ATE_pearsonr_top20-test": ("ate_pearson_top20", "test"),
}

_NORMAN_FILES = {  # task: file, its column of the fraction
    "ood": ("norman_ood.csv", "frac_combinations_train"),
    "efficiency": ("norman_data_efficiency.csv", "frac_combination_cells_train"),
}

#: The columns of `numbers`; the first five identify a number.
NUMBERS = ("model", "encoding", "fraction", "metric", "split", "mean", "sd", "n")

# Table 1: five training seeds; the ATE column is that of one checkpoint, the one with the best test IWELBO
_TABLE1_METRICS = {
    "test_iwelbo": ("iwelbo", "test", 5),
    "mask_pathway_accuracy": ("mask_pathway_accuracy", "all", 5),
    "ate_pearson": ("ate_pearson", "all", 1),
}


def replogle_table1(folder: str | Path) -> pd.DataFrame:
    """Table 1 of Bereket & Karaletsos (2023): columns model, metric, split, mean, sd, n.

    Metrics iwelbo (test), mask_pathway_accuracy and ate_pearson (all); sd is NaN for the last, which the paper
    takes from one checkpoint. Rows are in the order of the paper; its empty cells have no row. DataError for a missing
    file or column, or an unknown model.
    """
    path = Path(folder) / "replogle_table1.tsv"
    table = _read(path, sep="\t", columns=["model", "inference", *_TABLE1_METRICS])
    table["model"] = [_key(pair, _KEYS, path) for pair in zip(table["model"], table["inference"], strict=True)]
    rows = [
        (row["model"], metric, split, row[column], row.get(f"{column}_sd", float("nan")), n)
        for row in table.to_dict("records")
        for column, (metric, split, n) in _TABLE1_METRICS.items()
    ]
    tidy = pd.DataFrame(rows, columns=["model", "metric", "split", "mean", "sd", "n"])
    return _ordered(tidy.dropna(subset="mean"), ["model"])


def numbers(path: str | Path) -> pd.DataFrame:
    """Every number of one published table, by its path: the columns of `norman`, which Table 1 fills in.

    Table 1 has one perturbation per cell, so its encoding is ``sum``, and no fraction. DataError for an unknown file.
    """
    path = Path(path)
    if path.name == "replogle_table1.tsv":
        table = replogle_table1(path.parent)
        return table.assign(encoding="sum", fraction=float("nan"))[list(NUMBERS)]
    tasks = {name: task for task, (name, _) in _NORMAN_FILES.items()}
    if path.name not in tasks:
        raise DataError(f"{path}: not a table of published numbers.{nearest(path.name, tasks)}")
    return norman(path.parent, tasks[path.name])[list(NUMBERS)]


def norman(folder: str | Path, task: str) -> pd.DataFrame:
    """The released tables of Norman: columns model, encoding, fraction, metric, split, mean, sd, n.

    ``task``: ``ood`` or ``efficiency``. encoding: ``unique`` makes a pair a perturbation of its own, ``sum`` does
    not. fraction: of the pairs (ood) or of the cells of pairs (efficiency) in training. n: split seeds. Metrics
    iwelbo and iwelbo_relative (test, val), ate_pearson and ate_pearson_top20 (test). DataError for an unknown task or
    model, or a missing file or column.
    """
    if task not in _NORMAN_FILES:
        raise DataError(f"published tables of Norman: no task {task!r}.{nearest(task, _NORMAN_FILES)}")
    name, fraction = _NORMAN_FILES[task]
    path = Path(folder) / name
    plain = ["encode_unique", "mean_field_encoder", "model", fraction]
    table = _read(path, sep=",", columns=[*plain, *(f"{m}|mean" for m in _NORMAN_METRICS)])
    reads_cell = table["mean_field_encoder"].astype(object).where(table["mean_field_encoder"].notna(), None)
    table["model"] = [_key(pair, _NORMAN_KEYS, path) for pair in zip(table["model"], reads_cell, strict=True)]
    table["encoding"] = table["encode_unique"].map({True: "unique", False: "sum"})
    rows = table[["model", "encoding"]].assign(fraction=table[fraction].astype(float))
    parts = [
        rows.assign(metric=metric, split=split, mean=table[f"{c}|mean"], sd=table[f"{c}|std"], n=table[f"{c}|count"])
        for c, (metric, split) in _NORMAN_METRICS.items()
    ]
    return _ordered(pd.concat(parts, ignore_index=True), ["model", "encoding", "metric", "split", "fraction"])


def _read(path: Path, sep: str, columns: list[str]) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: no such file; it is a table of published numbers.")
    table = pd.read_csv(path, sep=sep)
    for column in columns:
        if column not in table:
            raise DataError(f"{path}: no column {column!r}.{nearest(column, table.columns)}")
    return table


def _key(pair: tuple, known: dict, path: Path) -> str:
    if pair not in known:
        raise DataError(f"{path}: {pair!r} is no row of the zoo.{nearest(pair, known)}")
    return known[pair]


def _ordered(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Sorted, with models in the order of the paper."""
    rank = {model: i for i, model in enumerate(TABLE_1)}
    return table.sort_values(
        by, key=lambda c: c.map(rank) if c.name == "model" else c, kind="stable", ignore_index=True
    )

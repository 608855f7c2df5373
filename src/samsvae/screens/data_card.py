"""The data card of a processed screen: its content, its split, and what the filter dropped and why.

The screen is read block by block, so it may have any size. Letters: n cells, G genes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae.config.vocabulary import SPLIT_LABELS, UNPERTURBED
from samsvae.data.arrays import read_split
from samsvae.errors import some
from samsvae.screens.counts import count_blocks, matrix_shape, real_blocks
from samsvae.screens.hdf5 import open_h5ad
from samsvae.screens.screen import covariates_of, members, read_tables, require, text_of

KINDS = ("control", "single", "combination")

#: The kinds of cells in a screen without a control.
DOSAGES = ("no perturbation", "one perturbation", "several perturbations")

#: A gene with a larger share of all counts, and a screen with a lower median of counts per cell, are findings.
MOST_OF_ONE_GENE, FEW_COUNTS = 0.2, 50

#: So are fewer control cells than this number or this share of all cells, and conditions with fewer cells.
FEW_CONTROLS, FEW_CONTROLS_SHARE, FEW_CELLS = 100, 0.05, 20

#: Entries of the provenance that the data card states in other words or leaves out.
OMITTED = ("versions", "parameters", "source_cells", "source_genes", "kept_cells", "kept_genes", "dropped_cells",
          "dropped_genes")  # fmt: skip


@dataclass(frozen=True)
class DataCard:
    """The tables of a data card, each tidy.

    facts: item, value (text, in reading order). conditions: condition, kind (of KINDS), cells; without a control, a row
    of the kind 'perturbation' for each, with the cells that received it. counts: low, high, cells (a histogram of the
    total counts of a cell, or of the sums of its values in a real-valued screen). genes: gene, mean, detected (the
    share of cells in which the gene is not 0). splits: split, kind (of KINDS, or DOSAGES without a control), cells.
    findings: finding (sentences on what may spoil a fit, and what to do about it; often no rows).
    """

    facts: pd.DataFrame
    conditions: pd.DataFrame
    counts: pd.DataFrame
    genes: pd.DataFrame
    splits: pd.DataFrame
    findings: pd.DataFrame


def data_card(screen: str | Path, split: str | Path, *, name: str = "", split_name: str = "") -> DataCard:
    """The data card of a screen's h5ad and one split of its cells.

    `name` and `split_name`: their names in the study. DataError if a file is damaged or the split is for other cells.
    """
    tables = read_tables(screen)
    with open_h5ad(screen) as file:
        shape = matrix_shape(file["X"])
        require(shape == tables.shape, screen, f"X is {shape}, but obs and var are {tables.shape} (cells, genes).")
        total, mean, detected = _sums(file["X"], tables, screen)
    conditions = _conditions(tables)
    splits = _splits(tables, conditions, read_split(split, tables.obs_names))
    genes = pd.DataFrame({"gene": tables.var_names.astype(str), "mean": mean, "detected": detected})
    found = findings(conditions, total, genes, compared=not _by_dosage(tables))
    return DataCard(
        facts=_facts(tables, conditions, total, detected, splits, {"data set": name, "split": split_name}),
        conditions=conditions,
        counts=_histogram(total),
        genes=genes,
        splits=splits,
        findings=pd.DataFrame({"finding": found}, dtype=object),
    )


def findings(conditions: pd.DataFrame, total: np.ndarray, genes: pd.DataFrame, *, compared: bool = True) -> list[str]:
    """What may spoil a fit to this screen, and what to do about it: a sentence or two each.

    ``conditions``, ``genes``: as in a `DataCard`. ``total`` (n): the total counts of the cells. Real-valued screens are
    only checked for cells of conditions. ``compared``: whether cells are compared with controls.
    """
    found, n = [], len(total)
    if total.min() >= 0 and total.sum() > 0:
        share = genes["mean"].to_numpy() * n / total.sum()
        top = int(share.argmax())
        if share[top] > MOST_OF_ONE_GENE:
            found.append(
                f"The gene {genes['gene'].iloc[top]!r} holds {share[top]:.0%} of all counts, so every other proportion "
                "depends on it. If it is a marker or a contaminant, leave it out (option genes)."
            )
        if (median := float(np.median(total))) < FEW_COUNTS:
            found.append(
                f"The median cell has {median:,.0f} counts in the genes kept, too few to measure small effects. Keep "
                "more genes if the file has them."
            )
    control = int(conditions.loc[conditions["kind"] == "control", "cells"].sum())
    if compared and control < max(FEW_CONTROLS, FEW_CONTROLS_SHARE * n):
        found.append(
            f"Only {control:,} of {n:,} cells are controls. Every effect is measured against them and contains their "
            "noise; add control cells if there are any. If most cells received several perturbations, set "
            "control: none."
        )
    few = conditions.loc[conditions["cells"] < FEW_CELLS, "condition"]
    if len(few):
        found.append(
            f"Conditions with fewer than {FEW_CELLS} cells: {some(few)}. Leave them out (min_cells: {FEW_CELLS}, "
            "rare: drop), or do not read much into their effects."
        )
    return found


def _sums(x: h5py.Group | h5py.Dataset, tables: ad.AnnData, what: str | Path) -> tuple[np.ndarray, ...]:
    """Sum of every cell (n), mean of every gene (G), share of cells in which the gene is not 0 (G)."""
    totals, mean, detected = [], np.zeros(tables.n_vars), np.zeros(tables.n_vars)
    for block in _blocks(x, tables, what):
        totals.append(np.asarray(block.sum(1)).ravel())
        mean += np.asarray(block.sum(0)).ravel()
        detected += np.asarray((block != 0).sum(0)).ravel()
    return np.concatenate(totals), mean / tables.n_obs, detected / tables.n_obs


def _blocks(x: h5py.Group | h5py.Dataset, tables: ad.AnnData, what: str | Path) -> Iterator[sp.csr_matrix | np.ndarray]:
    """Blocks of rows, in order: CSR counts, or dense real values."""
    if isinstance(x, h5py.Dataset):  # the real values of a simulation
        for block in real_blocks(x, tables.n_obs, tables.n_vars, f"{what}: X"):
            yield block.astype(float)
        return
    rows, cols = np.arange(tables.n_obs), np.arange(tables.n_vars)
    yield from count_blocks(x, rows, cols, cells=tables.obs_names, genes=tables.var_names, what=f"{what}: X")


def _by_dosage(tables: ad.AnnData) -> bool:
    """Whether effects are those of single perturbations, relative to the zero dosage."""
    return tables.uns.get("reference") == UNPERTURBED


def _conditions(tables: ad.AnnData) -> pd.DataFrame:
    """One row per condition, the one with most cells first; per perturbation if there is no control to compare with."""
    if _by_dosage(tables):
        each = tables.uns["perturbations"]["n_cells"].sort_values(ascending=False, kind="stable")
        return pd.DataFrame({"condition": each.index.astype(str), "kind": "perturbation", "cells": each.to_numpy()})
    control, separator = tables.uns["control"], tables.uns["separator"]
    sizes = tables.obs["condition"].value_counts()
    sizes = sizes[sizes > 0]
    kinds = [KINDS[min(len(members(str(name), separator, control)), 2)] for name in sizes.index]
    return pd.DataFrame({"condition": sizes.index.astype(str), "kind": kinds, "cells": sizes.to_numpy()})


def _received(tables: ad.AnnData) -> np.ndarray:
    """How many perturbations each cell received (n)."""
    label, control, separator = text_of(tables.obs["condition"]), tables.uns["control"], tables.uns["separator"]
    return label.map({name: len(members(name, separator, control)) for name in label.unique()}).to_numpy(int)


def _splits(tables: ad.AnnData, conditions: pd.DataFrame, split: np.ndarray) -> pd.DataFrame:
    """Number of cells of each split and kind of condition."""
    kinds = DOSAGES if _by_dosage(tables) else KINDS
    if _by_dosage(tables):
        kind = np.array(kinds)[np.minimum(_received(tables), 2)]
    else:
        kind = conditions.set_index("condition")["kind"].loc[text_of(tables.obs["condition"])].to_numpy()
    sizes = pd.crosstab(split, kind).reindex(index=list(SPLIT_LABELS), columns=list(kinds), fill_value=0)
    return sizes.rename_axis(index="split", columns="kind").stack().rename("cells").reset_index()


def _histogram(total: np.ndarray, bins: int = 50) -> pd.DataFrame:
    """Number of cells by total, in bins of equal ratio, or of equal width if a total is not above 0."""
    low, high = float(total.min()), float(total.max())
    edges = np.geomspace(low, high, bins + 1) if 0 < low < high else np.linspace(low, max(high, low + 1), bins + 1)
    edges[-1] = max(edges[-1], high)  # rounding may exclude the largest total
    cells, _ = np.histogram(total, edges)
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "cells": cells})


def _facts(
    tables: ad.AnnData,
    conditions: pd.DataFrame,
    total: np.ndarray,
    detected: np.ndarray,
    splits: pd.DataFrame,
    names: Mapping[str, str],
) -> pd.DataFrame:
    """Items and values in reading order: numbers of the screen, its split, its provenance, its options."""
    by_split = splits.groupby("split", sort=False)["cells"].sum()
    origin = dict(tables.uns["provenance"])
    facts: dict[str, object] = {
        **names,
        "cells": f"{tables.n_obs:,}",
        "genes": f"{tables.n_vars:,}",
        "perturbations": f"{len(tables.uns['perturbations']):,}",
        **_facts_of_conditions(tables, conditions),
        **{f"covariate: {name}": _levels(tables.obs[name]) for name in covariates_of(tables)},
        "counts per cell" if total.min() >= 0 else "sum of values per cell": _range(total),
        "share of zeros": f"{1 - detected.mean():.1%}",
        **{f"split: {split}": f"{cells:,} cells" for split, cells in by_split.items() if cells},
    }
    for what in ("cells", "genes"):
        if f"source_{what}" in origin:
            facts[f"{what} dropped"] = f"{int(origin[f'dropped_{what}']):,} of {int(origin[f'source_{what}']):,}"
    facts |= {
        key.replace("_", " "): _text(value)
        for key, value in origin.items()
        if key not in OMITTED and _text(value) != "0"
    }
    if isinstance(origin.get("parameters"), str):
        facts |= {f"option: {key}": _text(value) for key, value in json.loads(origin["parameters"]).items()}
    stated = {key: value for key, value in facts.items() if value not in ("", "None")}
    return pd.DataFrame({"item": list(stated), "value": list(stated.values())})


def _facts_of_conditions(tables: ad.AnnData, conditions: pd.DataFrame) -> dict[str, str]:
    if _by_dosage(tables):
        received = _received(tables)
        return {
            "perturbations per cell": _range(received),
            "cells without perturbation": f"{(received == 0).sum():,}",
            "cells per perturbation": _range(conditions["cells"]),
        }
    cells = conditions.groupby("kind")["cells"]
    return {
        "combinations": f"{cells.size().get('combination', 0):,}",
        "control cells": f"{cells.sum().get('control', 0):,}",
        "cells per condition": _range(conditions.loc[conditions["kind"] != "control", "cells"]),
    }


def _levels(column: pd.Series) -> str:
    """The levels of a covariate with their cells, the largest first."""
    sizes = column.value_counts()
    return f"{len(sizes)} levels: {_text([f'{level} ({cells:,})' for level, cells in sizes.items()])}"


def _range(values: np.ndarray | pd.Series) -> str:
    """Median, smallest and largest value as text."""
    low, middle, high = np.quantile(np.asarray(values, float), [0, 0.5, 1])
    return f"median {middle:,.0f}, from {low:,.0f} to {high:,.0f}"


def _text(value: object) -> str:
    """A value of the provenance as text; at most five items of a list."""
    if isinstance(value, Mapping):
        stated = {key: _text(item) for key, item in value.items()}
        return ", ".join(f"{key}: {text}" for key, text in stated.items() if text not in ("", "None"))
    if isinstance(value, list | tuple | np.ndarray):
        shown = [str(item) for item in list(value)[:5]]
        return ", ".join(shown) + (f" and {len(value) - 5} more" if len(value) > 5 else "")
    return f"{value:,}" if isinstance(value, int | np.integer) and not isinstance(value, bool) else str(value)

"""Norman et al. 2019, CRISPRa of single genes and pairs in K562: the filter to 5,000 highly variable genes.

Two files of the same cells, told apart by their columns. The sc-pert collection's (processed): counts in a layer, one
0/1 column of obs for each targeted gene, the 5,000 genes marked in var. scPerturb's: counts in X, the targeted genes
in one label, no genes marked, so that they are chosen here. The condition of a cell is its targeted genes, sorted and
joined by '+'.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from samsvae.errors import DataError, nearest, some
from samsvae.screens.counts import BLOCK_BYTES, Counts, named, open_h5ad, read_names
from samsvae.screens.screen import assemble, provenance, write_screen

log = logging.getLogger(__name__)

CONTROL, SEPARATOR = "control", "+"

NOT_INDICATORS = ("guide_identity", "guide_ids")

TRUTH = ("miniature_truth", "miniature_effects")  # of a made source; see miniature.py

N_GENES, MIN_CELLS = 5_000, 20  # of the sc-pert collection: so many genes, of those seen in at least so many cells

FORMS = (
    "the sc-pert collection's (obs columns guide_identity and guide_<gene>, layers['counts']) and "
    "scPerturb's (obs columns guide_id and perturbation, counts in X)"
)

OTHER_GENES = "the genes were chosen here, so that they may differ from the published 5,000"

OTHER_CELLS = (
    "the cells are not quite the published ones, nor in their order, so that splits follow the published rule "
    "but put single cells elsewhere"
)


def guide_conditions(obs: pd.DataFrame, what: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """condition (n) and number of targeted genes (n), from the columns `guide_<gene>` of 0s and 1s."""
    columns = _indicators(obs)
    if not columns:
        raise DataError(f"{what}: obs has no column guide_<gene>.{nearest('guide_AHR', obs.columns)}")
    dosage = obs[columns].to_numpy(float)
    if bad := [c for c, odd in zip(columns, ~np.isin(dosage, (0, 1)).all(0), strict=True) if odd]:
        raise DataError(f"{what}: obs columns {some(bad)} must hold 0 or 1 only.")
    genes = np.array([c.split("guide_", 1)[1] for c in columns], dtype=object)
    order = np.argsort(genes)
    # Few rows of the table differ: name each once.
    patterns, pattern = np.unique(dosage[:, order].astype(bool), axis=0, return_inverse=True)
    labels = np.array([SEPARATOR.join(genes[order][row]) or CONTROL for row in patterns], dtype=object)
    return labels[pattern.ravel()], patterns.sum(1)[pattern.ravel()]


def label_conditions(label: pd.Series, what: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """condition (n) and number of targeted genes (n), from labels such as 'KLF1_AHR' (or 'KLF1+AHR'), 'control'."""
    if label.isna().any():
        missing = label.index[label.isna()]
        raise DataError(f"{what}: obs column 'perturbation' has no label in {len(missing)} cells: {some(missing)}.")
    label = label.astype(str)
    genes_of = {name: sorted(set(re.split("[_+]", name)) - {CONTROL}) for name in label.unique()}
    if odd := sorted(name for name, genes in genes_of.items() if "" in genes):
        raise DataError(f"{what}: obs column 'perturbation' has labels with an empty part: {some(odd)}.")
    condition = label.map({name: SEPARATOR.join(genes) or CONTROL for name, genes in genes_of.items()})
    return condition.to_numpy(object), label.map({name: len(genes) for name, genes in genes_of.items()}).to_numpy(int)


def filter_screen(
    source: str | Path,
    target: str | Path,
    *,
    genes: str | Path | None = None,
    n_genes: int = N_GENES,
    min_cells: int = MIN_CELLS,
    block_bytes: int = BLOCK_BYTES,
    checksum: str = "",
) -> ad.AnnData:
    """Filter a source of either form to the screen `target`; the screen without its counts is returned.

    All cells. The genes: those in the file `genes` (a name on each line); else those that var['highly_variable']
    marks; else, where nothing is marked, the `n_genes` most variable of those seen in `min_cells` cells (scanpy's
    default, on log1p of counts per 10,000). obs keeps guide_identity (the splits need it) and gains `n_targets`; the
    indicator columns are dropped, the condition says the same. The library size is the sum over the genes kept.
    """
    with open_h5ad(source) as file:
        obs, var = read_elem(file["obs"]), read_elem(file["var"])
        place, obs, condition, n_targets = _form(file, obs, source)
        if not (n_targets == 0).any():
            raise DataError(f"{source}: no control cell, every cell has a targeting guide.")
        data = Counts(file[place], obs.index, var.index, f"{source}: {place}", block_bytes)
        data.check()
        rows, chosen = np.arange(len(obs)), False
        if genes is not None:
            cols = named(read_names(genes), var.index, source)
        elif place != "X":
            cols = _marked(var, source)
        else:
            cols, chosen = _most_variable(data, rows, n_genes, min_cells), True
        truth = {key: read_elem(file[f"uns/{key}"]) for key in TRUTH if f"uns/{key}" in file}
        obs["n_targets"] = n_targets.astype(np.int32)
        unlike = [OTHER_GENES] * chosen + [OTHER_CELLS] * (place == "X")
        for sentence in unlike:
            log.warning("%s: not as published: %s", source, sentence)
        facts = provenance(
            source,
            checksum=checksum,
            filter="norman",
            parameters={"counts": place, "genes": "chosen" if chosen else "file" if genes else "highly_variable"},
            source_shape=(len(obs), len(var)),
            kept_shape=(len(rows), len(cols)),
            kept_control_cells=int((n_targets == 0).sum()),
            cells_of_more_than_two_targets=int((n_targets > 2).sum()),
            not_as_published="; ".join(unlike),
        )
        screen = assemble(
            None,
            obs,
            var.iloc[cols],
            condition=condition,
            control=CONTROL,
            separator=SEPARATOR,
            provenance=facts,
            uns={key: table[var.index[cols]] for key, table in truth.items()},
        )
        write_screen(screen, target, blocks=data.blocks(rows, cols))
    return screen


def _form(file: h5py.File, obs: pd.DataFrame, source: str | Path) -> tuple[str, pd.DataFrame, np.ndarray, np.ndarray]:
    """Where the counts are, obs with guide_identity and without indicators, condition and number of targets (n)."""
    if "guide_identity" in obs:
        condition, n_targets = guide_conditions(obs, source)
        if "layers/counts" not in file:
            raise DataError(f"{source}: no layer 'counts'.{nearest('counts', file.get('layers', []))}")
        return "layers/counts", obs.drop(columns=_indicators(obs)), condition, n_targets
    if {"guide_id", "perturbation"} <= set(obs):
        condition, n_targets = label_conditions(obs["perturbation"], source)
        return "X", obs.rename(columns={"guide_id": "guide_identity"}), condition, n_targets
    here = some(obs.columns, 12)
    raise DataError(f"{source}: obs is of neither known form of Norman's file. Known: {FORMS}. Columns here: {here}.")


def _indicators(obs: pd.DataFrame) -> list[str]:
    return [c for c in obs.columns if "guide_" in c and c not in NOT_INDICATORS]


def _marked(var: pd.DataFrame, source: str | Path) -> np.ndarray:
    """Numbers of the genes that the collection marks as highly variable."""
    if "highly_variable" not in var:
        raise DataError(f"{source}: var has no column 'highly_variable'.{nearest('highly_variable', var.columns)}")
    cols = np.flatnonzero(var["highly_variable"].to_numpy(bool))
    if not len(cols):
        raise DataError(f"{source}: var column 'highly_variable' marks no gene.")
    return cols


def _most_variable(data: Counts, rows: np.ndarray, n: int, min_cells: int) -> np.ndarray:
    """Sorted numbers of the n most variable genes, chosen as the sc-pert collection marks its own.

    Memory: the counts of all genes, some 12 bytes for each that is not 0, and as much again while scanpy works.
    """
    import scanpy  # slow to import, and needed by this form alone

    counts = data.read(rows, np.arange(len(data.genes)))
    seen = np.flatnonzero(counts.getnnz(0) >= min_cells)
    if len(seen) < n:
        raise DataError(f"{data.what}: {n} genes are needed, but only {len(seen)} are in {min_cells} cells or more.")
    counts = counts[:, seen].astype(np.float32)
    small = ad.AnnData(counts, obs=pd.DataFrame(index=data.cells), var=pd.DataFrame(index=data.genes[seen]))
    scanpy.pp.normalize_total(small, target_sum=1e4)
    scanpy.pp.log1p(small)
    return seen[scanpy.pp.highly_variable_genes(small, n_top_genes=n, inplace=False)["highly_variable"].to_numpy()]

"""Filter for Norman et al. 2019, CRISPRa of single genes and pairs in K562, to 5,000 highly variable genes.

It reads two files with the same cells and distinguishes them by their columns. The (processed) file of the sc-pert
collection has the counts in a layer, one 0/1 column of obs per targeted gene, and the 5,000 genes marked in var. The
file of scPerturb has the counts in X, the targeted genes in one label, and no marked genes, so they are chosen here.
The condition of a cell is its targeted genes, sorted and joined by '+'.
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
from samsvae.screens.counts import BLOCK_BYTES, Counts
from samsvae.screens.genes import gene_positions, read_names
from samsvae.screens.hdf5 import open_h5ad, reading
from samsvae.screens.screen import assemble, provenance, text_of, write_screen
from samsvae.screens.sources import read_frame

log = logging.getLogger(__name__)

CONTROL, SEPARATOR = "control", "+"

NOT_INDICATORS = ("guide_identity", "guide_ids")

TRUTH = ("miniature_truth", "miniature_effects")  # of a synthetic source; see miniature.py

N_GENES, MIN_CELLS = 5_000, 20  # as in sc-pert: number of genes, least cells in which a candidate is seen

FORMS = (
    "that of the sc-pert collection (obs columns guide_identity and guide_<gene>, layers['counts']) and "
    "that of scPerturb (obs columns guide_id and perturbation, counts in X)"
)

OTHER_GENES = "the genes were chosen here and may differ from the published 5,000"

OTHER_CELLS = (
    "some cells differ from the published ones, and so does their order, so the splits follow the published rule "
    "but assign individual cells differently"
)


def guide_conditions(obs: pd.DataFrame, what: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """condition (n) and number of targeted genes (n), from the 0/1 columns `guide_<gene>`.

    DataError if there is no such column or if one holds another value.
    """
    columns = _indicators(obs)
    if not columns:
        raise DataError(f"{what}: obs has no column guide_<gene>.{nearest('guide_AHR', obs.columns)}")
    dosage = obs[columns].to_numpy(float)
    wrong = np.flatnonzero((~np.isin(dosage, (0, 1))).any(axis=0))
    if bad := [columns[i] for i in wrong]:
        raise DataError(f"{what}: obs columns {some(bad)} must hold only 0 and 1.")
    genes = np.array([c.split("guide_", 1)[1] for c in columns], dtype=object)
    order = np.argsort(genes)
    # Only a few rows are distinct: name each of them once.
    patterns, pattern = np.unique(dosage[:, order].astype(bool), axis=0, return_inverse=True)
    labels = np.array([SEPARATOR.join(genes[order][row]) or CONTROL for row in patterns], dtype=object)
    return labels[pattern.ravel()], patterns.sum(1)[pattern.ravel()]


def label_conditions(label: pd.Series, what: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """condition (n) and number of targeted genes (n), from labels such as 'KLF1_AHR', 'KLF1+AHR' or 'control'.

    DataError for a missing label or one with an empty part.
    """
    if label.isna().any():
        missing = label.index[label.isna()]
        raise DataError(f"{what}: obs column 'perturbation' has no label in {len(missing)} cells: {some(missing)}.")
    label = text_of(label)
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
    """Filter a source in either format to the screen `target`; return the screen without its counts.

    All cells are kept. The genes are those in the file `genes` (one name per line) if it is given, otherwise those
    marked in var['highly_variable']. In the scPerturb format, where nothing is marked, they are the `n_genes` most
    variable of the genes seen in at least `min_cells` cells (scanpy's default method, on log1p of counts per 10,000).
    obs keeps guide_identity, which the splits need, and gains `n_targets`; the indicator columns are dropped because
    the condition holds the same information. The library size is the sum over the kept genes. `checksum`: the verified
    one of the source. DataError names the file, column and values; ConfigError if there is no file `genes`.
    """
    with open_h5ad(source) as file:
        obs, var = (read_frame(file[table], source) for table in ("obs", "var"))
        place, obs, condition, n_targets = _recognise(file, obs, source)
        if not (n_targets == 0).any():
            raise DataError(f"{source}: no control cell: every cell has a targeting guide.")
        data = Counts(file[place], obs.index, var.index, f"{source}: {place}", block_bytes)
        data.check()
        rows = np.arange(len(obs))
        if genes is None and place == "X":
            origin, cols = "chosen", _most_variable(data, rows, n_genes, min_cells)
        else:
            origin, cols = _listed_genes(var, genes, source)
        with reading(f"{source}: uns"):
            truth = {key: read_elem(file[f"uns/{key}"]) for key in TRUTH if f"uns/{key}" in file}
        obs["n_targets"] = n_targets.astype(np.int32)
        differences = [OTHER_GENES] * (origin == "chosen") + [OTHER_CELLS] * (place == "X")
        for difference in differences:
            log.warning("%s: differs from the published data: %s", source, difference)
        facts = provenance(
            source,
            checksum=checksum,
            filter="norman",
            parameters={"counts": place, "genes": origin},
            source_shape=(len(obs), len(var)),
            kept_shape=(len(rows), len(cols)),
            kept_control_cells=int((n_targets == 0).sum()),
            cells_of_more_than_two_targets=int((n_targets > 2).sum()),
            not_as_published="; ".join(differences),
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


def _recognise(
    file: h5py.File, obs: pd.DataFrame, source: str | Path
) -> tuple[str, pd.DataFrame, np.ndarray, np.ndarray]:
    """The place of the counts, obs (with guide_identity, without indicators), condition (n) and number of targets (n).

    DataError if the file has neither of the two known formats.
    """
    if "guide_identity" in obs:
        condition, n_targets = guide_conditions(obs, source)
        if "layers/counts" not in file:
            raise DataError(f"{source}: no layer 'counts'.{nearest('counts', file.get('layers', []))}")
        return "layers/counts", obs.drop(columns=_indicators(obs)), condition, n_targets
    if {"guide_id", "perturbation"} <= set(obs):
        condition, n_targets = label_conditions(obs["perturbation"], source)
        return "X", obs.rename(columns={"guide_id": "guide_identity"}), condition, n_targets
    found = some(obs.columns, 12)
    raise DataError(
        f"{source}: obs has neither known format of the Norman file. Known: {FORMS}. Columns found: {found}."
    )


def _indicators(obs: pd.DataFrame) -> list[str]:
    """The 0/1 columns `guide_<gene>` of obs."""
    return [c for c in obs.columns if "guide_" in c and c not in NOT_INDICATORS]


def _listed_genes(var: pd.DataFrame, genes: str | Path | None, source: str | Path) -> tuple[str, np.ndarray]:
    """The origin of the genes and their sorted column positions: from the file `genes`, else as marked in var."""
    if genes is not None:
        return "file", gene_positions(read_names(genes), var.index, source)
    return "highly_variable", _marked_genes(var, source)


def _marked_genes(var: pd.DataFrame, source: str | Path) -> np.ndarray:
    """Column positions of the genes that the collection marks as highly variable; DataError if there are none."""
    if "highly_variable" not in var:
        raise DataError(f"{source}: var has no column 'highly_variable'.{nearest('highly_variable', var.columns)}")
    cols = np.flatnonzero(var["highly_variable"].to_numpy(bool))
    if not len(cols):
        raise DataError(f"{source}: var column 'highly_variable' marks no gene.")
    return cols


def _most_variable(data: Counts, rows: np.ndarray, n: int, min_cells: int) -> np.ndarray:
    """Sorted column positions of the n most variable genes, chosen as the sc-pert collection chose its marked genes.

    Memory: the counts of all genes, about 12 bytes per nonzero count, and the same again while scanpy works. DataError
    if fewer than n genes are seen in at least `min_cells` cells.
    """
    import scanpy  # slow to import, used only for this format

    counts = data.read(rows, np.arange(len(data.genes)))
    seen = np.flatnonzero(counts.getnnz(0) >= min_cells)
    if len(seen) < n:
        raise DataError(
            f"{data.what}: {n} genes are needed, but only {len(seen)} are seen in {min_cells} cells or more."
        )
    counts = counts[:, seen].astype(np.float32)
    small = ad.AnnData(counts, obs=pd.DataFrame(index=data.cells), var=pd.DataFrame(index=data.genes[seen]))
    scanpy.pp.normalize_total(small, target_sum=1e4)
    scanpy.pp.log1p(small)
    return seen[scanpy.pp.highly_variable_genes(small, n_top_genes=n, inplace=False)["highly_variable"].to_numpy()]

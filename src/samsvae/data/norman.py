"""Norman et al. 2019, CRISPRa of single genes and pairs in K562: the filter to the highly variable genes.

The processed file of the sc-pert collection: counts in a layer, one 0/1 column of obs for each targeted gene.
The condition of a cell is its targeted genes, sorted and joined by '+'.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from anndata.io import read_elem

from samsvae.data.counts import BLOCK_BYTES, open_h5ad, read_counts
from samsvae.data.screen import assemble, provenance, write_screen
from samsvae.errors import DataError, nearest, some

CONTROL, SEPARATOR = "control", "+"
NOT_INDICATORS = ("guide_identity", "guide_ids")
TRUTH = ("miniature_truth", "miniature_effects")  # of a made source; see miniature.py


def guide_conditions(obs: pd.DataFrame, what: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """condition (n) and number of targeted genes (n), from the columns `guide_<gene>` of 0s and 1s."""
    columns = [c for c in obs.columns if "guide_" in c and c not in NOT_INDICATORS]
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


def filter_screen(
    source: str | Path,
    target: str | Path,
    *,
    layer: str = "counts",
    gene_column: str = "highly_variable",
    block_bytes: int = BLOCK_BYTES,
    checksum: str = "",
) -> ad.AnnData:
    """Filter the source to the screen `target`, which is returned as well.

    All cells; the genes that the var column `gene_column` marks; counts from layers[`layer`] (dense or CSR).
    obs keeps guide_identity (the splits need it) and gains `n_targets`; the indicator columns are dropped,
    the condition says the same. The library size is the sum over the genes kept.
    """
    with open_h5ad(source) as file:
        obs, var = read_elem(file["obs"]), read_elem(file["var"])
        layers = list(file["layers"]) if "layers" in file else []
        if layer not in layers:
            raise DataError(f"{source}: no layer {layer!r}.{nearest(layer, layers)}")
        if gene_column not in var:
            hint = nearest(gene_column, var.columns)
            raise DataError(f"{source}: var has no column {gene_column!r}.{hint}")
        if "guide_identity" not in obs:
            hint = nearest("guide_identity", obs.columns)
            raise DataError(f"{source}: obs has no column 'guide_identity'.{hint}")
        shape = len(obs), len(var)
        condition, n_targets = guide_conditions(obs, source)
        rows, cols = np.arange(len(obs)), np.flatnonzero(var[gene_column].to_numpy(bool))
        if not len(cols):
            raise DataError(f"{source}: var column {gene_column!r} marks no gene.")
        if not (n_targets == 0).any():
            raise DataError(f"{source}: no control cell, every cell has a targeting guide.")
        obs = obs.drop(columns=[c for c in obs.columns if "guide_" in c and c not in NOT_INDICATORS])
        obs["n_targets"] = n_targets.astype(np.int32)
        var = var.iloc[cols]
        counts = read_counts(
            file[f"layers/{layer}"],
            rows,
            cols,
            cells=obs.index,
            genes=var.index,
            what=f"{source}: layers[{layer!r}]",
            block_bytes=block_bytes,
        )
        truth = {key: read_elem(file[f"uns/{key}"]) for key in TRUTH if f"uns/{key}" in file}

    facts = provenance(
        source,
        checksum=checksum,
        filter="norman",
        parameters={"layer": layer, "gene_column": gene_column},
        source_shape=shape,
        kept_shape=counts.shape,
        kept_control_cells=int((n_targets == 0).sum()),
        cells_of_more_than_two_targets=int((n_targets > 2).sum()),
    )
    screen = assemble(
        counts,
        obs,
        var,
        condition=condition,
        control=CONTROL,
        separator=SEPARATOR,
        provenance=facts,
        uns={key: table[var.index] for key, table in truth.items()},
    )
    write_screen(screen, target)
    return screen

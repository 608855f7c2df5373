"""Replogle et al. 2022, genome-scale CRISPRi in K562: the filter that gives 'replogle-filtered'.

1,989,578 x 8,248 -> 118,641 cells x 1,187 genes: the strong perturbations of Table S3, 2,000 of the
non-targeting cells, and the genes of its expression clusters. A perturbation is a guide pair (obs.sgID_AB).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from anndata.io import read_elem

from samsvae.data.counts import BLOCK_BYTES, open_h5ad, read_counts
from samsvae.data.screen import assemble, provenance, write_screen
from samsvae.errors import DataError, nearest, some

log = logging.getLogger(__name__)

CONTROL = "non-targeting"

# The counts that the papers state for the filtered file.
PUBLISHED_SOURCE = (1_989_578, 8_248)
PUBLISHED = {
    "cells": 118_641,
    "genes": 1_187,
    "control cells": 2_000,
    "non-targeting cells in the source": 75_328,
    "guide pairs": 722,
    "guide pairs with a pathway": 345,
}
PUBLISHED_PAIRS = {
    "S40_RIBOSOMAL_UNIT": 101,
    "S60_RIBOSOMAL_UNIT": 56,
    "S39_RIBOSOMAL_UNIT": 44,
    "SPLICEOSOME": 38,
    "MT_PROTEIN_TRANSLOCATION": 37,
    "MEDIATOR_COMPLEX": 26,
    "NUCLEOTIDE_EXCISION_REPAIR": 23,
    "EXOSOME": 20,
}
PUBLISHED_CELLS = {
    "PSMG3": 791,
    "CCNK": 746,
    "GPS1": 671,
    "FBXL14": 648,
    "CPSF2": 28,
    "UMPS": 27,
    "PDCD11": 26,
    "RPS27A": 26,
    "PRPF4": 25,
}


def read_genes(path: str | Path) -> list[str]:
    """The distinct symbols in the column `gene` of a TSV, in file order."""
    return list(dict.fromkeys(_table(path, "gene")["gene"]))


def read_pathways(path: str | Path) -> dict[str, list[str]]:
    """pathway -> its distinct gene symbols, of a TSV with the columns `pathway` and `gene`."""
    table = _table(path, "pathway", "gene")
    return {name: list(dict.fromkeys(genes)) for name, genes in table.groupby("pathway", sort=False)["gene"]}


def _table(path: str | Path, *columns: str) -> pd.DataFrame:
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file.")
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    for column in columns:
        if column not in table:
            raise DataError(f"{path}: no column {column!r}.{nearest(column, table.columns)}")
    return table


def choose_cells(gene: np.ndarray, perturbed: Collection[str], n_controls: int, control_seed: int) -> np.ndarray:
    """Sorted row numbers of the cells to keep, from the target gene of every cell (n).

    All cells of a perturbed gene; and the first `n_controls` of the non-targeting rows, shuffled from file
    order by numpy's legacy generator (the papers' choice).
    """
    controls = np.flatnonzero(gene == CONTROL)
    np.random.RandomState(control_seed).shuffle(controls)
    kept = np.isin(gene, list(perturbed))
    kept[controls[:n_controls]] = True
    return np.flatnonzero(kept)


def gene_names(var: pd.DataFrame) -> pd.Index:
    """var.gene_name, with the gene id appended to every symbol that occurs more than once."""
    name = var["gene_name"].astype(str)
    return pd.Index(np.where(name.duplicated(keep=False), name + "_" + var.index.astype(str), name))


def filter_screen(
    source: str | Path,
    target: str | Path,
    *,
    perturbed_genes: Collection[str],
    measured_genes: Collection[str],
    pathways: Mapping[str, Collection[str]],
    n_controls: int = 2000,
    control_seed: int = 0,
    block_bytes: int = BLOCK_BYTES,
    checksum: str = "",
) -> ad.AnnData:
    """Filter the source (dense or CSR counts) to the screen `target`, which is returned as well.

    Listed genes that the source does not have are counted in uns['provenance'], not refused (the demo's
    source is small). `checksum` is that of the source, as verified by its download. DataError names what is
    missing.
    """
    with open_h5ad(source) as file:
        obs, var = read_elem(file["obs"]), read_elem(file["var"])
        for table, name, columns in ((obs, "obs", ("gene", "sgID_AB")), (var, "var", ("gene_name",))):
            for column in columns:
                if column not in table:
                    hint = nearest(column, table.columns)
                    raise DataError(f"{source}: {name} has no column {column!r}.{hint}")
        shape = len(obs), len(var)
        gene = obs["gene"].astype(str).to_numpy()
        measured = var["gene_name"].astype(str)
        rows = choose_cells(gene, perturbed_genes, n_controls, control_seed)
        cols = np.flatnonzero(measured.isin(measured_genes))
        in_source = int((gene == CONTROL).sum())
        missing_perturbed = sorted(set(perturbed_genes) - set(gene))
        missing_measured = sorted(set(measured_genes) - set(measured))
        if not in_source:
            raise DataError(f"{source}: obs column 'gene' has no cell {CONTROL!r}.")
        if len(rows) <= min(in_source, n_controls):
            raise DataError(
                f"{source}: obs column 'gene' has none of the {len(set(perturbed_genes))} perturbed genes "
                f"({some(sorted(perturbed_genes))})."
            )
        if not len(cols):
            raise DataError(
                f"{source}: var column 'gene_name' has none of the measured genes ({some(measured_genes)})."
            )
        obs, var = obs.iloc[rows].copy(), var.iloc[cols].copy()
        var["gene_id"] = var.index.astype(str)
        var.index = gene_names(var)
        counts = read_counts(
            file["X"],
            rows,
            cols,
            cells=obs.index,
            genes=var.index,
            what=f"{source}: X",
            block_bytes=block_bytes,
        )

    pair = obs["sgID_AB"].astype(str)
    condition = np.where(pair.str.contains(CONTROL, regex=False), CONTROL, pair)
    for column in obs.select_dtypes("category"):
        obs[column] = obs[column].cat.remove_unused_categories()
    facts = provenance(
        source,
        checksum=checksum,
        filter="replogle",
        parameters={"n_controls": n_controls, "control_seed": control_seed},
        source_shape=shape,
        kept_shape=counts.shape,
        source_control_cells=in_source,
        kept_control_cells=int((condition == CONTROL).sum()),
        missing_perturbed_genes=len(missing_perturbed),
        missing_measured_genes=len(missing_measured),
    )
    screen = assemble(
        counts,
        obs,
        var,
        condition=condition,
        control=CONTROL,
        separator="",
        provenance=facts,
        gene_of=dict(zip(pair, obs["gene"].astype(str), strict=True)),
        pathway_of={gene: name for name, genes in pathways.items() for gene in genes},
        uns={"pathways": {name: np.array(list(genes), dtype=object) for name, genes in pathways.items()}},
    )
    write_screen(screen, target)
    return screen


def filter_published(source: str | Path, target: str | Path, *, published_counts: bool, **settings) -> ad.AnnData:
    """``filter_screen``, and where the source is the published file a comparison with the published counts.

    A difference is a warning in the log: the papers'
    numbers are then not to be expected.
    """
    screen = filter_screen(source, target, **settings)
    if published_counts:
        differences = published_differences(screen)
        for sentence in differences:
            log.warning("%s: not as published: %s", target, sentence)
        log.info("%s: %s", target, "differs from the published counts" if differences else "all counts as published")
    return screen


def published_differences(screen: ad.AnnData) -> list[str]:
    """Where a filtered screen differs from the published counts, a sentence each; [] if nowhere.

    Only for the published source: any other has other counts.
    """
    table, facts = screen.uns["perturbations"], screen.uns["provenance"]
    found = {
        "cells": screen.n_obs,
        "genes": screen.n_vars,
        "control cells": int((screen.obs["condition"] == CONTROL).sum()),
        "non-targeting cells in the source": facts["source_control_cells"],
        "guide pairs": len(table),
        "guide pairs with a pathway": int((table["pathway"] != "").sum()),
    }
    pairs, cells = table["pathway"].value_counts(), table.groupby("gene")["n_cells"].sum()
    compared = [
        (f"{axis} of the source", published, facts[f"source_{axis}"])
        for axis, published in zip(("cells", "genes"), PUBLISHED_SOURCE, strict=True)
    ]
    compared += [(name, published, found[name]) for name, published in PUBLISHED.items()]
    compared += [(f"guide pairs of {name}", n, pairs.get(name, 0)) for name, n in PUBLISHED_PAIRS.items()]
    compared += [(f"cells of {gene}", n, cells.get(gene, 0)) for gene, n in PUBLISHED_CELLS.items()]
    return [f"{name}: {there:,} published, {here:,} here" for name, there, here in compared if there != here]

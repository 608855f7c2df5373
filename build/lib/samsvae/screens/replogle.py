"""Filter for Replogle et al. 2022, CRISPRi in K562 and RPE1: the papers' 'replogle-filtered', or a complete file.

The published filter reduces 1,989,578 cells x 8,248 genes to 118,641 x 1,187: the strong perturbations of Table S3,
2,000 of the non-targeting cells, and the genes of its expression clusters. A perturbation is a guide pair
(obs.sgID_AB). The counts are read and written in blocks of rows, never held in memory as one matrix.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.errors import DataError, nearest, some
from samsvae.screens.counts import BLOCK_BYTES, count_blocks, matrix_shape, read_labels, read_table
from samsvae.screens.hdf5 import open_h5ad
from samsvae.screens.screen import assemble, provenance, read_screen, write_screen

log = logging.getLogger(__name__)

CONTROL = "non-targeting"

# Columns of obs that the scPerturb collection renames: its name, the published name.
SCPERTURB = {"guide_id": "sgID_AB", "batch": "gem_group", "percent_mito": "mitopercent"}

Keep = Literal["listed", "all"]

# (cells, genes) of the published source file; below, the numbers that the papers state for the filtered file.
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
    """Read the distinct symbols in the column `gene` of a TSV, in file order; DataError if it has no such column."""
    return list(dict.fromkeys(_read_table(path, "gene")["gene"]))


def read_pathways(path: str | Path) -> dict[str, list[str]]:
    """Read pathway -> its distinct gene symbols from a TSV with the columns `pathway` and `gene`."""
    table = _read_table(path, "pathway", "gene")
    return {name: list(dict.fromkeys(genes)) for name, genes in table.groupby("pathway", sort=False)["gene"]}


def _read_table(path: str | Path, *columns: str) -> pd.DataFrame:
    """A TSV as text; DataError unless it has these columns."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file.")
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    for column in columns:
        if column not in table:
            raise DataError(f"{path}: no column {column!r}.{nearest(column, table.columns)}")
    return table


def choose_cells(gene, perturbed: Collection[str], n_controls: int, control_seed: int) -> np.ndarray:
    """Sorted positions of the cells to keep, from the target gene of every cell (n labels, or a Categorical).

    Keeps all cells of the perturbed genes, and the first `n_controls` non-targeting cells after a shuffle from file
    order by numpy's legacy generator, as in the papers.
    """
    gene = pd.Categorical(gene)
    controls = np.flatnonzero(gene == CONTROL)
    np.random.RandomState(control_seed).shuffle(controls)
    kept = np.asarray(gene.isin(list(perturbed)))
    kept[controls[:n_controls]] = True
    return np.flatnonzero(kept)


def gene_names(var: pd.DataFrame) -> pd.Index:
    """var.gene_name (G), with the gene id appended to each symbol that occurs more than once."""
    name = var["gene_name"].astype(str)
    return pd.Index(np.where(name.duplicated(keep=False), name + "_" + var.index.astype(str), name))


def conditions(pair: pd.Categorical) -> pd.Categorical:
    """The condition of each cell (n) from its guide pair; every label that contains 'non-targeting' is the control."""
    pair = pair.remove_unused_categories()
    label = np.array([CONTROL if CONTROL in name else name for name in pair.categories], dtype=object)
    names, place = np.unique(label, return_inverse=True)
    return pd.Categorical.from_codes(place[pair.codes], names)


def filter_tables(
    source: str | Path,
    target: str | Path,
    *,
    perturbed_genes: Collection[str],
    measured_genes: Collection[str],
    pathways: Mapping[str, Collection[str]],
    keep: Keep = "listed",
    n_controls: int = 2000,
    control_seed: int = 0,
    block_bytes: int = BLOCK_BYTES,
    checksum: str = "",
) -> ad.AnnData:
    """Filter the source (dense or CSR counts) to the screen `target`; return the screen without its counts.

    keep: 'listed' for the cells, controls and genes of the papers, or 'all'. Listed genes that the source lacks are
    counted in uns['provenance'] and are no error, because other cell lines have other genes and the demo's source is
    small. Columns of a scPerturb file get the published names. `checksum`: that of the source, as its download verified
    it. Memory: the tables of the kept cells and genes, and one block of counts.

    DataError names a missing column, cells without a label, a gene list that shares no gene with the source, or damage.
    """
    with open_h5ad(source) as file:
        gene, var = read_labels(file["obs"], "gene"), _published_var(read_table(file["var"]), source)
        shape = len(gene), len(var)
        if matrix_shape(file["X"]) != shape:
            raise DataError(f"{source}: X is {matrix_shape(file['X'])}, but obs and var are {shape} (cells, genes).")
        in_source = int((gene == CONTROL).sum())
        if not in_source:
            raise DataError(f"{source}: obs column 'gene' has no cell {CONTROL!r}.")
        rows, cols = np.arange(shape[0]), np.arange(shape[1])
        parameters: dict[str, object] = {"keep": keep}
        missing: dict[str, int] = {}
        if keep == "listed":
            rows = choose_cells(gene, perturbed_genes, n_controls, control_seed)
            cols = np.flatnonzero(var["gene_name"].isin(measured_genes))
            parameters |= {"n_controls": n_controls, "control_seed": control_seed}
            missing = {
                "missing_perturbed_genes": _count_missing(perturbed_genes, gene, f"{source}: obs column 'gene'"),
                "missing_measured_genes": _count_missing(
                    measured_genes, var["gene_name"], f"{source}: var column 'gene_name'"
                ),
            }
        obs, var = _published_obs(read_table(file["obs"], rows), source), var.iloc[cols]
        condition = conditions(obs["sgID_AB"].array)
        facts = provenance(
            source,
            checksum=checksum,
            filter="replogle",
            parameters=parameters,
            source_shape=shape,
            kept_shape=(len(obs), len(var)),
            source_control_cells=in_source,
            kept_control_cells=int((condition == CONTROL).sum()),
            **missing,
        )
        screen = _assemble(obs, var, condition, pathways, facts)
        names = {"cells": screen.obs_names, "genes": screen.var_names, "what": f"{source}: X"}
        write_screen(screen, target, blocks=count_blocks(file["X"], rows, cols, block_bytes=block_bytes, **names))
    return screen


def _assemble(
    obs: pd.DataFrame,
    var: pd.DataFrame,
    condition: pd.Categorical,
    pathways: Mapping[str, Collection[str]],
    facts: Mapping,
) -> ad.AnnData:
    """The screen without its counts, from the tables of the kept cells and genes."""
    pairs = obs.loc[~obs["sgID_AB"].duplicated(), ["sgID_AB", "gene"]].astype(str)
    for column in obs.select_dtypes("category"):
        obs[column] = obs[column].cat.remove_unused_categories()
    return assemble(
        None,
        obs,
        var.assign(gene_id=var.index.astype(str)).set_index(gene_names(var)),
        condition=condition,
        control=CONTROL,
        separator="",
        provenance=facts,
        gene_of=dict(zip(pairs["sgID_AB"], pairs["gene"], strict=True)),
        pathway_of={gene: name for name, genes in pathways.items() for gene in genes},
        uns={"pathways": {name: np.array(list(genes), dtype=object) for name, genes in pathways.items()}},
    )


def _published_obs(obs: pd.DataFrame, source: str | Path) -> pd.DataFrame:
    """obs with the column names of the published file; the two columns that the filter reads become categorical."""
    names = {new: old for new, old in SCPERTURB.items() if old not in obs}
    obs.columns = [names.get(column, column) for column in obs]
    if "sgID_AB" not in obs:
        raise DataError(f"{source}: obs has no column 'sgID_AB'.{nearest('sgID_AB', obs.columns)}")
    if empty := list(obs.index[obs["gene"].isna() | obs["sgID_AB"].isna()]):
        raise DataError(
            f"{source}: obs columns 'gene' and 'sgID_AB' have no label in {len(empty)} cells: {some(empty)}."
        )
    return obs.astype({"gene": "category", "sgID_AB": "category"}, copy=False)


def _published_var(var: pd.DataFrame, source: str | Path) -> pd.DataFrame:
    """var with the column names of the published file; scPerturb indexes it by symbols, unique through the gene id."""
    if "gene_name" not in var and "ensembl_id" in var:
        ids = var["ensembl_id"].astype(str)
        symbols = [name.removesuffix(f"_{id}") for name, id in zip(var.index, ids, strict=True)]
        var = var.drop(columns="ensembl_id").assign(gene_name=symbols).set_index(pd.Index(ids, name="gene_id"))
    if "gene_name" not in var:
        raise DataError(f"{source}: var has no column 'gene_name'.{nearest('gene_name', var.columns)}")
    return var


def _count_missing(listed: Collection[str], labels: pd.Series | pd.Categorical, where: str) -> int:
    """The number of listed genes that are not among the labels; DataError if none of them is."""
    missing = sorted(set(listed) - set(pd.unique(labels)))
    if len(missing) == len(set(listed)):
        raise DataError(f"{where} has none of the {len(missing)} listed genes ({some(missing)}).")
    if missing:
        log.info("%s lacks %d of the %d listed genes: %s", where, len(missing), len(set(listed)), some(missing))
    return len(missing)


def filter_screen(source: str | Path, target: str | Path, **settings) -> ad.AnnData:
    """``filter_tables``, then read the complete screen: for a notebook, if it fits in memory."""
    filter_tables(source, target, **settings)
    return read_screen(target)


def filter_published(
    source: str | Path, target: str | Path, *, published_counts: bool, keep: Keep = "listed", **settings
) -> None:
    """``filter_tables``, then a comparison with the published counts if the source is the published file.

    Each difference is logged as a warning: results will then differ from the papers.
    """
    screen = filter_tables(source, target, keep=keep, **settings)
    if published_counts:
        differences = published_differences(screen, keep)
        for sentence in differences:
            log.warning("%s: differs from the published data: %s", target, sentence)
        log.info(
            "%s: %s",
            target,
            "differs from the published counts" if differences else "all counts equal the published ones",
        )


def published_differences(screen: ad.AnnData, keep: Keep = "listed") -> list[str]:
    """The differences of a filtered screen (its counts are not needed) from the published counts, one text each.

    Use it only for the published source, as other sources have other counts. For a screen that keeps 'all', only the
    counts of the source are compared.
    """
    table, facts = screen.uns["perturbations"], screen.uns["provenance"]
    non_targeting = "non-targeting cells in the source"
    found = {
        "cells": screen.n_obs,
        "genes": screen.n_vars,
        "control cells": int((screen.obs["condition"] == CONTROL).sum()),
        non_targeting: facts["source_control_cells"],
        "guide pairs": len(table),
        "guide pairs with a pathway": int((table["pathway"] != "").sum()),
    }
    compared = [
        (f"{axis} of the source", published, facts[f"source_{axis}"])
        for axis, published in zip(("cells", "genes"), PUBLISHED_SOURCE, strict=True)
    ]
    compared += [(name, n, found[name]) for name, n in PUBLISHED.items() if keep == "listed" or name == non_targeting]
    if keep == "listed":
        pairs, cells = table["pathway"].value_counts(), table.groupby("gene")["n_cells"].sum()
        compared += [(f"guide pairs of {name}", n, pairs.get(name, 0)) for name, n in PUBLISHED_PAIRS.items()]
        compared += [(f"cells of {gene}", n, cells.get(gene, 0)) for gene, n in PUBLISHED_CELLS.items()]
    return [
        f"{name}: {expected:,} published, {actual:,} here" for name, expected, actual in compared if expected != actual
    ]

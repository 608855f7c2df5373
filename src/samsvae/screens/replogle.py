"""Replogle et al. 2022, CRISPRi in K562 and RPE1: the filter that gives 'replogle-filtered', or all of a file.

1,989,578 x 8,248 -> 118,641 cells x 1,187 genes: the strong perturbations of Table S3, 2,000 of the
non-targeting cells, and the genes of its expression clusters. A perturbation is a guide pair (obs.sgID_AB).
Nothing here holds the counts of a file in memory: they pass in blocks of rows.
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
from samsvae.screens.counts import BLOCK_BYTES, count_blocks, matrix_shape, open_h5ad, read_labels, read_table
from samsvae.screens.screen import assemble, provenance, read_screen, write_screen

log = logging.getLogger(__name__)

CONTROL = "non-targeting"

# What the scPerturb collection calls the columns of obs that it renames.
SCPERTURB = {"guide_id": "sgID_AB", "batch": "gem_group", "percent_mito": "mitopercent"}

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


def choose_cells(gene, perturbed: Collection[str], n_controls: int, control_seed: int) -> np.ndarray:
    """Sorted row numbers of the cells to keep, from the target gene of every cell (n labels, or a Categorical).

    All cells of a perturbed gene; and the first `n_controls` of the non-targeting rows, shuffled from file
    order by numpy's legacy generator (the papers' choice).
    """
    gene = pd.Categorical(gene)
    controls = np.flatnonzero(gene == CONTROL)
    np.random.RandomState(control_seed).shuffle(controls)
    kept = np.asarray(gene.isin(list(perturbed)))
    kept[controls[:n_controls]] = True
    return np.flatnonzero(kept)


def gene_names(var: pd.DataFrame) -> pd.Index:
    """var.gene_name, with the gene id appended to every symbol that occurs more than once."""
    name = var["gene_name"].astype(str)
    return pd.Index(np.where(name.duplicated(keep=False), name + "_" + var.index.astype(str), name))


def conditions(pair: pd.Categorical) -> pd.Categorical:
    """The conditions of cells, from their guide pairs: every label with 'non-targeting' in it is the one control."""
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
    keep: Literal["listed", "all"] = "listed",
    n_controls: int = 2000,
    control_seed: int = 0,
    block_bytes: int = BLOCK_BYTES,
    checksum: str = "",
) -> ad.AnnData:
    """Filter the source (dense or CSR counts) to the screen `target`; the screen without its counts is returned.

    keep: 'listed' cells, controls and genes as in the papers, or 'all'. Listed genes that the source does not
    have are counted in uns['provenance'], not refused (another cell line has others; the demo's source is
    small). A file of the scPerturb collection gets the names of the published one. `checksum` is that of the
    source, as verified by its download. Memory: the tables of what is kept and one block of counts. DataError
    names what is missing.
    """
    with open_h5ad(source) as file:
        gene, var = read_labels(file["obs"], "gene"), _named_var(read_table(file["var"]), source)
        shape = len(gene), len(var)
        if matrix_shape(file["X"]) != shape:
            raise DataError(f"{source}: X is {matrix_shape(file['X'])}, obs and var are {shape} (cells, genes).")
        in_source = int((gene == CONTROL).sum())
        if not in_source:
            raise DataError(f"{source}: obs column 'gene' has no cell {CONTROL!r}.")
        rows, cols, parameters, missing = np.arange(shape[0]), np.arange(shape[1]), {"keep": keep}, {}
        if keep == "listed":
            rows = choose_cells(gene, perturbed_genes, n_controls, control_seed)
            cols = np.flatnonzero(var["gene_name"].isin(measured_genes))
            parameters |= {"n_controls": n_controls, "control_seed": control_seed}
            missing = {
                "missing_perturbed_genes": _missing(perturbed_genes, gene, f"{source}: obs column 'gene'"),
                "missing_measured_genes": _missing(
                    measured_genes, var["gene_name"], f"{source}: var column 'gene_name'"
                ),
            }
        obs, var = _named_obs(read_table(file["obs"], rows), source), var.iloc[cols]
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
        screen = _described(obs, var, condition, pathways, facts)
        names = {"cells": screen.obs_names, "genes": screen.var_names, "what": f"{source}: X"}
        write_screen(screen, target, blocks=count_blocks(file["X"], rows, cols, block_bytes=block_bytes, **names))
    return screen


def _described(
    obs: pd.DataFrame,
    var: pd.DataFrame,
    condition: pd.Categorical,
    pathways: Mapping[str, Collection[str]],
    facts: Mapping,
) -> ad.AnnData:
    """The screen without its counts, from the tables of what is kept."""
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


def _named_obs(obs: pd.DataFrame, source: str | Path) -> pd.DataFrame:
    """obs in the names of the published file; what the filter reads is categorical."""
    names = {new: old for new, old in SCPERTURB.items() if old not in obs}
    obs.columns = [names.get(column, column) for column in obs]
    if "sgID_AB" not in obs:
        raise DataError(f"{source}: obs has no column 'sgID_AB'.{nearest('sgID_AB', obs.columns)}")
    if empty := list(obs.index[obs["gene"].isna() | obs["sgID_AB"].isna()]):
        raise DataError(
            f"{source}: obs columns 'gene' and 'sgID_AB' have no label in {len(empty)} cells: {some(empty)}."
        )
    return obs.astype({"gene": "category", "sgID_AB": "category"}, copy=False)


def _named_var(var: pd.DataFrame, source: str | Path) -> pd.DataFrame:
    """var in the names of the published file; scPerturb's is indexed by symbols, made unique by the gene id."""
    if "gene_name" not in var and "ensembl_id" in var:
        ids = var["ensembl_id"].astype(str)
        symbols = [name.removesuffix(f"_{id}") for name, id in zip(var.index, ids, strict=True)]
        var = var.drop(columns="ensembl_id").assign(gene_name=symbols).set_index(pd.Index(ids, name="gene_id"))
    if "gene_name" not in var:
        raise DataError(f"{source}: var has no column 'gene_name'.{nearest('gene_name', var.columns)}")
    return var


def _missing(listed: Collection[str], there, where: str) -> int:
    """How many of the listed genes are not among some labels; DataError if none of them is."""
    lost = sorted(set(listed) - set(pd.unique(there)))
    if len(lost) == len(set(listed)):
        raise DataError(f"{where} has none of the {len(lost)} listed genes ({some(lost)}).")
    if lost:
        log.info("%s has not %d of the %d listed genes: %s", where, len(lost), len(set(listed)), some(lost))
    return len(lost)


def filter_screen(source: str | Path, target: str | Path, **settings) -> ad.AnnData:
    """``filter_tables``, and the whole screen read back: for a notebook, where it fits in memory."""
    filter_tables(source, target, **settings)
    return read_screen(target)


def filter_published(
    source: str | Path, target: str | Path, *, published_counts: bool, keep: str = "listed", **settings
) -> None:
    """``filter_tables``, and where the source is the published file a comparison with the published counts.

    A difference is a warning in the log: the papers' numbers are then not to be expected.
    """
    screen = filter_tables(source, target, keep=keep, **settings)
    if published_counts:
        differences = published_differences(screen, keep)
        for sentence in differences:
            log.warning("%s: not as published: %s", target, sentence)
        log.info("%s: %s", target, "differs from the published counts" if differences else "all counts as published")


def published_differences(screen: ad.AnnData, keep: str = "listed") -> list[str]:
    """Where a filtered screen (counts not needed) differs from the published counts, a sentence each; [] if nowhere.

    Only for the published source: any other has other counts. Of a screen that keeps 'all', only the source's.
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
    return [f"{name}: {there:,} published, {here:,} here" for name, there, here in compared if there != here]

"""The one form in which a screen travels through the workflow, and the arrays that training reads.

X is CSR int32 counts (or dense float32 in a real-valued simulation); obs has `condition` and `library_size`;
uns has `control`, `separator`, `perturbations` (gene, pathway, n_cells; sorted by name) and `provenance`.
Letters: n cells, G genes, T single perturbations, C conditions, P most perturbations in one condition.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem

from samsvae.data.counts import integer_counts, open_h5ad
from samsvae.errors import DataError, some
from samsvae.files import atomic


def members(condition: str, separator: str, control: str) -> tuple[str, ...]:
    """The single perturbations of a condition, in its own order; () for the control.

    >>> members("AHR+KLF1", "+", "control"), members("AHR+KLF1", "", "control"), members("ctrl", "+", "ctrl")
    (('AHR', 'KLF1'), ('AHR+KLF1',), ())
    """
    if condition == control:
        return ()
    parts = condition.split(separator) if separator else [condition]
    return tuple(part for part in parts if part != control)


def provenance(
    source: str | Path,
    *,
    checksum: str = "",
    filter: str,
    parameters: Mapping,
    source_shape: tuple[int, int],
    kept_shape: tuple[int, int],
    **facts,
) -> dict:
    """What a processed file came from: for uns['provenance']. `facts`: further numbers or sentences.

    `source` is kept by name, not by folder, so that the same input gives the same bytes anywhere.
    """
    packages = ("anndata", "h5py", "numpy", "pandas", "scipy")
    return {
        "source": Path(source).name,
        "checksum": checksum,
        "filter": filter,
        "parameters": json.dumps(parameters, sort_keys=True, default=str),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "source_cells": int(source_shape[0]),
        "source_genes": int(source_shape[1]),
        "kept_cells": int(kept_shape[0]),
        "kept_genes": int(kept_shape[1]),
        "dropped_cells": int(source_shape[0] - kept_shape[0]),
        "dropped_genes": int(source_shape[1] - kept_shape[1]),
    } | facts


def assemble(
    counts,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    *,
    condition,
    control: str,
    separator: str,
    provenance: Mapping,
    library_size=None,
    gene_of: Mapping[str, str] | None = None,
    pathway_of: Mapping[str, str] | None = None,
    real_valued: bool = False,
    uns: Mapping | None = None,
) -> ad.AnnData:
    """A screen that keeps the contract of this module (checked again by `write_screen`).

    counts (n, G): dense or sparse; float32 is kept as it is where `real_valued`.
    condition (n): labels. library_size (n): default the sum of a cell's counts (1 where real-valued).
    gene_of: perturbation -> target gene (default: itself). pathway_of: gene or perturbation -> pathway.
    Columns `condition` and `library_size` that obs already has are kept as `source_condition`,
    `source_library_size`.
    """
    gene_of, pathway_of = gene_of or {}, pathway_of or {}
    if real_valued:
        counts = np.asarray(counts, np.float32)
    elif not (sp.issparse(counts) and counts.format == "csr" and counts.dtype == np.int32):
        counts = integer_counts(counts, obs.index, var.index, "the counts")
    if library_size is None:
        library_size = np.ones(len(obs)) if real_valued else np.asarray(counts.sum(1)).ravel()
    obs = obs.rename(columns={name: f"source_{name}" for name in ("condition", "library_size")})
    obs["condition"] = pd.Categorical(np.asarray(condition, str).astype(object))
    obs["library_size"] = np.asarray(library_size, float)

    cells_of: dict[str, int] = {}
    for label, cells in obs["condition"].value_counts().items():
        for name in members(label, separator, control):
            cells_of[name] = cells_of.get(name, 0) + int(cells)
    names = sorted(cells_of)
    genes = [gene_of.get(name, name) for name in names]
    pathways = [pathway_of.get(gene, pathway_of.get(name, "")) for name, gene in zip(names, genes, strict=True)]
    columns = {"gene": genes, "pathway": pathways, "n_cells": [cells_of[name] for name in names]}
    table = pd.DataFrame(columns, index=pd.Index(names, dtype=object))
    facts = {"control": control, "separator": separator, "perturbations": table}
    return ad.AnnData(counts, obs, var, uns=facts | {"provenance": dict(provenance)} | dict(uns or {}))


def check_screen(screen: ad.AnnData, what: str | Path, *, real_valued: bool = False) -> None:
    """DataError if `screen` breaks the contract; `what` is the file that the message names."""

    def need(held: bool, sentence: str) -> None:
        if not held:
            raise DataError(f"{what}: {sentence}")

    for names, kind in ((screen.obs_names, "cell"), (screen.var_names, "gene")):
        twice = names[names.duplicated()].unique()
        need(not len(twice), f"{kind} names must be unique, but these occur more than once: {some(twice)}.")
    for column in ("condition", "library_size"):
        need(column in screen.obs, f"obs has no column {column!r}, which a screen needs.")
    for key in ("control", "separator", "perturbations", "provenance"):
        need(key in screen.uns, f"uns has no {key!r}, which a screen needs.")

    x = screen.X
    if real_valued:
        fits = isinstance(x, np.ndarray) and x.dtype == np.float32
        need(fits, "X must be a dense float32 array, as the screen is declared real-valued.")
        need(bool(np.isfinite(x).all()), "X has values that are not finite.")
    else:
        fits = sp.issparse(x) and x.format == "csr" and x.dtype == np.int32
        need(fits, "X must be CSR int32 counts (real values have to be declared: real_valued=True).")
        need(not (x.data < 0).any(), "X has negative counts.")
        empty = screen.obs_names[np.asarray(x.sum(1)).ravel() == 0]
        need(not len(empty), f"{len(empty)} cells have zero counts in the genes kept: {some(empty)}.")

    size = screen.obs["library_size"].to_numpy(float)
    bad = screen.obs_names[~(np.isfinite(size) & (size > 0))]
    need(not len(bad), f"obs column 'library_size' is not above 0 in {len(bad)} cells: {some(bad)}.")
    condition = screen.obs["condition"]
    need(not (condition.isna() | (condition == "")).any(), "obs column 'condition' has empty labels.")
    control, table = screen.uns["control"], screen.uns["perturbations"]
    present = condition.astype("category").cat.remove_unused_categories().cat.categories
    need(not control or control in present, f"obs column 'condition' has no control cell ({control!r}).")
    singles = {name for label in present for name in members(label, screen.uns["separator"], control)}
    need(bool(singles), "obs column 'condition' has no perturbed cell.")
    need(list(table.index) == sorted(singles), "uns['perturbations'] does not list those in obs, sorted.")


def write_screen(screen: ad.AnnData, path: str | Path, *, real_valued: bool = False) -> None:
    """Check and write a screen: the same screen gives the same bytes."""
    check_screen(screen, path, real_valued=real_valued)
    with atomic(path) as aside:
        screen.write_h5ad(aside, compression="gzip", compression_opts=1)


def read_screen(path: str | Path) -> ad.AnnData:
    """A screen from its h5ad, checked; dense X means that it is real-valued."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        screen = ad.read_h5ad(path)
    except Exception as error:  # anndata and h5py raise many kinds on a damaged file
        raise DataError(f"{path}: not a readable h5ad file ({error}).") from error
    check_screen(screen, path, real_valued=isinstance(screen.X, np.ndarray))
    return screen


def write_arrays(h5ad: str | Path, npz: str | Path) -> None:
    """The training arrays of a screen, readable with numpy alone.

    counts (n, G) in the smallest of uint8, int16, int32 that holds them, or float32; library (n) float32;
    cells (n); genes (G); condition (n) into conditions (C, sorted, control included); members (C, P) into
    perturbations (T), -1 = none.
    """
    screen = read_screen(h5ad)
    control, separator = screen.uns["control"], screen.uns["separator"]
    perturbations = list(screen.uns["perturbations"].index)
    number = {name: t for t, name in enumerate(perturbations)}
    label = screen.obs["condition"].astype(str).to_numpy()
    conditions, condition = np.unique(label, return_inverse=True)
    each = [[number[name] for name in members(c, separator, control)] for c in conditions]
    width = max(map(len, each))
    x = screen.X
    if sp.issparse(x):
        top = x.max()
        small = next(t for t in (np.uint8, np.int16, np.int32) if top <= np.iinfo(t).max)
        x = x.astype(small).toarray()
    with atomic(npz) as aside, open(aside, "wb") as file:
        np.savez(
            file,
            counts=x,
            library=screen.obs["library_size"].to_numpy(np.float32),
            cells=screen.obs_names.to_numpy(str),
            genes=screen.var_names.to_numpy(str),
            condition=condition.astype(np.int32),
            conditions=conditions.astype(str),
            members=np.array([m + [-1] * (width - len(m)) for m in each], np.int32),
            perturbations=np.array(perturbations, str),
        )


def read_uns(path: str | Path, key: str, default: object = None):
    """One entry of a screen's uns, without the counts; ``default`` where there is none."""
    with open_h5ad(path) as file:
        return read_elem(file["uns"][key]) if key in file["uns"] else default


def read_perturbations(path: str | Path) -> pd.DataFrame:
    """The table of a screen's perturbations: gene, pathway, n_cells."""
    return read_uns(path, "perturbations")


def reference_of(path: str | Path) -> str:
    """The condition that effects are against: the control, or a simulation's reference; '' for neither."""
    return str(read_uns(path, "reference", "") or read_uns(path, "control", ""))

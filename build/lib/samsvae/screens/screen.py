"""The format of a processed screen (h5ad), shared by all steps of the workflow: build, check, write and read.

X: CSR int32 counts, or dense float32 in a real-valued simulation. obs: `condition` and `library_size`. uns: `control`,
`separator`, `perturbations` (gene, pathway, n_cells; sorted by name) and `provenance`; also `controls`, with all labels
of the control, if the source has several, and `covariates`, the columns of obs that are covariates, if any.
Letters: n cells, G genes, T single perturbations, C conditions, P largest number of perturbations in one condition.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem, write_elem
from pandas.api.types import infer_dtype, is_numeric_dtype

from samsvae.config.screens import NO_CHECKSUM
from samsvae.errors import DataError, some
from samsvae.files import atomic, recorded_checksum
from samsvae.screens.counts import integer_counts, read_table
from samsvae.screens.hdf5 import create_hdf5, open_h5ad, read_anndata, reading

CHUNK = 1 << 18  # values per chunk of an HDF5 file: 1 MiB of int32

GZIP = {"compression": "gzip", "compression_opts": 1}

#: anndata writes the row names under this name and refuses a column of that name.
RESERVED = "_index"

#: The entries of uns that a screen needs, with the type of each and its name in messages.
ENTRIES: Mapping[str, tuple[type, str]] = {
    "control": (str, "text"),
    "separator": (str, "text"),
    "perturbations": (pd.DataFrame, "a table"),
    "provenance": (Mapping, "entries by name"),
}

#: Possible types of the counts for training, smallest first.
COUNT_TYPES = (np.uint8, np.int16, np.int32)


def members(condition: str, separator: str, control: str) -> tuple[str, ...]:
    """The single perturbations of a condition, in the order of its label; () for the control.

    >>> members("AHR+KLF1", "+", "control"), members("AHR+KLF1", "", "control"), members("ctrl", "+", "ctrl")
    (('AHR', 'KLF1'), ('AHR+KLF1',), ())
    """
    if condition == control:
        return ()
    parts = condition.split(separator) if separator else [condition]
    return tuple(part for part in parts if part != control)


def text_of(labels: pd.Series) -> pd.Series:
    """Labels (n) as text, as `astype(str)` gives them; memory does not grow with n times the longest label."""
    if not isinstance(labels.dtype, pd.CategoricalDtype):
        return labels.astype(str)
    names = np.array([*labels.cat.categories.astype(str), "nan"], object)  # a missing label has the code -1
    return pd.Series(names[labels.cat.codes], labels.index, name=labels.name)


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
    """The origin of a processed file, for uns['provenance']. `facts`: further numbers or sentences.

    `checksum`: the verified one of the source; 'none' stands for the one that its first download recorded. Only the
    file name of `source` is recorded, not its folder, so the same input gives the same bytes everywhere.
    """
    packages = ("anndata", "h5py", "numpy", "pandas", "scipy")
    return {
        "source": Path(source).name,
        "checksum": recorded_checksum(source) if checksum == NO_CHECKSUM else checksum,
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


def source_columns(table: pd.DataFrame, reserved: Collection[str]) -> list[str]:
    """The names of the columns, with 'source_' before `reserved` ones, repeated until the name is not taken.

    >>> source_columns(pd.DataFrame(columns=["condition", "source_condition", "batch"]), ["condition"])
    ['source_source_condition', 'source_condition', 'batch']
    """
    taken, names = set(table.columns), []
    for name in table.columns:
        if name in reserved:
            while name in taken:
                name = f"source_{name}"
            taken.add(name)
        names.append(name)
    return names


def _without_ambiguous_name(table: pd.DataFrame) -> pd.DataFrame:
    """The table, without the name of its index if a column has this name too: anndata refuses to write both."""
    name = table.index.name
    if name in table and not (table[name] == table.index).all():
        return table.rename_axis(index=None)
    return table


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
    """Build a screen in the format of this module (`write_screen` checks it again).

    counts (n, G): dense or sparse counts; real values if `real_valued`; None if `write_screen` gets the counts block
    by block. condition (n): labels. library_size (n): by default the sum of a cell's counts, 1 in a real-valued screen,
    or NaN until `write_screen` has seen the blocks. gene_of: perturbation -> target gene (default: itself).
    pathway_of: gene or perturbation -> pathway. Existing columns `condition` and `library_size` of obs are renamed to
    `source_condition` and `source_library_size`, and `_index`, which anndata cannot write, to `source__index`
    (`source_columns`).

    DataError if `counts` holds a value that is not a count.
    """
    gene_of, pathway_of = gene_of or {}, pathway_of or {}
    if real_valued:
        counts = np.asarray(counts, np.float32)
    elif counts is not None and not (sp.issparse(counts) and counts.format == "csr" and counts.dtype == np.int32):
        counts = integer_counts(counts, obs.index, var.index, "the counts")
    if library_size is None:
        if counts is None:
            library_size = np.full(len(obs), np.nan)
        else:
            library_size = np.ones(len(obs)) if real_valued else np.asarray(counts.sum(1)).ravel()
    obs = obs.copy(deep=False)  # columns are added and renamed, but none is modified
    obs.columns = source_columns(obs, ("condition", "library_size", RESERVED))
    var = var.set_axis(source_columns(var, (RESERVED,)), axis=1) if RESERVED in var else var
    if not isinstance(condition, pd.Categorical):
        condition = pd.Categorical(np.array([str(label) for label in condition], object))
    obs["condition"] = condition
    obs["library_size"] = np.asarray(library_size, float)
    obs, var = _without_ambiguous_name(obs), _without_ambiguous_name(var)

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


def check_screen(screen: ad.AnnData, what: str | Path, *, real_valued: bool = False, complete: bool = True) -> None:
    """DataError if `screen` breaks the format of this module; the message names `what`, the file.

    ``complete``: False if perturbed cells may be missing.
    """
    _check_tables(screen, what, complete=complete)
    _check_library(screen, what)
    x = screen.X
    if real_valued:
        fits = isinstance(x, np.ndarray) and x.dtype == np.float32
        require(fits, what, "X must be a dense float32 array, because the screen is declared real-valued.")
        require(bool(np.isfinite(x).all()), what, "X has values that are not finite.")
    else:
        fits = sp.issparse(x) and x.format == "csr" and x.dtype == np.int32
        require(fits, what, "X must be CSR int32 counts (declare real values with real_valued=True).")
        require(not (x.data < 0).any(), what, "X has negative counts.")
        _check_sums(screen, what, np.asarray(x.sum(1)).ravel())


def require(condition: bool, what: str | Path, sentence: str) -> None:
    """DataError with the file `what` and the sentence unless the condition holds."""
    if not condition:
        raise DataError(f"{what}: {sentence}")


def _check_tables(screen: ad.AnnData, what: str | Path, *, complete: bool = True) -> None:
    """Check the tables: everything except X and the library size."""
    for names, kind in ((screen.obs_names, "cell"), (screen.var_names, "gene")):
        twice = names[names.duplicated()].unique()
        require(not len(twice), what, f"{kind} names must be unique, but these occur more than once: {some(twice)}.")
    for column in ("condition", "library_size"):
        require(column in screen.obs, what, f"obs has no column {column!r}, which a screen needs.")
    for key, (needed, called) in ENTRIES.items():
        require(key in screen.uns, what, f"uns has no {key!r}, which a screen needs.")
        require(isinstance(screen.uns[key], needed), what, f"uns[{key!r}] must be {called}.")

    condition = screen.obs["condition"]
    texts = all(isinstance(name, str) for name in condition.dropna().unique())
    require(texts, what, "obs column 'condition' must hold text.")
    require(not (condition.isna() | (condition == "")).any(), what, "obs column 'condition' has empty labels.")
    control, table = screen.uns["control"], screen.uns["perturbations"]
    present = condition.astype("category").cat.remove_unused_categories().cat.categories
    require(not control or control in present, what, f"obs column 'condition' has no control cell ({control!r}).")
    singles = {name for label in present for name in members(label, screen.uns["separator"], control)}
    require(bool(singles) or not complete, what, "obs column 'condition' has no perturbed cell.")
    listed = list(table.index) == sorted(singles)
    require(listed, what, "uns['perturbations'] must list the perturbations in obs, sorted.")
    for name in covariates_of(screen):
        filled = name in screen.obs and not screen.obs[name].isna().any()
        require(filled, what, f"obs has no column {name!r} without missing values, which uns['covariates'] lists.")


def _check_library(screen: ad.AnnData, what: str | Path) -> None:
    column = screen.obs["library_size"]
    require(is_numeric_dtype(column), what, f"obs column 'library_size' must hold numbers, not {column.dtype}.")
    size = column.to_numpy(float)
    bad = screen.obs_names[~(np.isfinite(size) & (size > 0))]
    wrong = f"{len(bad)} cells have other values: {some(bad)}"
    require(not len(bad), what, f"obs column 'library_size' must be above 0, but {wrong}.")


def _check_sums(screen: ad.AnnData, what: str | Path, sums: np.ndarray) -> None:
    """Check X by the sums of its rows: one row per cell, and no cell without counts."""
    require(len(sums) == screen.n_obs, what, f"X has {len(sums)} rows, but obs has {screen.n_obs} cells.")
    empty = screen.obs_names[sums == 0]
    require(not len(empty), what, f"{len(empty)} cells have zero counts in the genes kept: {some(empty)}.")


def write_screen(
    screen: ad.AnnData,
    path: str | Path,
    *,
    blocks: Iterable[sp.csr_matrix] | None = None,
    real_valued: bool = False,
) -> None:
    """Check and write a screen; the bytes are the same whether its counts are in memory or come in blocks.

    blocks: the counts of a screen whose X is None, as CSR int32 blocks of rows in order. They are written one by one,
    so only one is in memory. If the library size is not yet known (all NaN), it becomes the row sums.

    DataError if the screen breaks the format of this module; nothing is written then.
    """
    if blocks is None:
        check_screen(screen, path, real_valued=real_valued)
    else:
        _check_tables(screen, path)
    with atomic(path) as temporary, create_hdf5(temporary) as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        if real_valued:
            write_elem(file, "X", screen.X, dataset_kwargs=GZIP)
        else:
            sums = _write_counts(file, [screen.X] if blocks is None else blocks, screen.n_vars)
        if blocks is not None:
            _check_sums(screen, path, sums)
            if screen.obs["library_size"].isna().all():
                screen.obs["library_size"] = sums.astype(float)
            _check_library(screen, path)
        screen.strings_to_categoricals()
        for kind, table in (("obs", screen.obs), ("var", screen.var)):
            _make_storable(table, kind, path)
        parts = {"obs": screen.obs, "var": screen.var, "obsm": dict(screen.obsm), "uns": screen.uns}
        for name, part in parts.items():
            write_elem(file, name, part, dataset_kwargs=GZIP)


def _make_storable(table: pd.DataFrame, kind: str, what: str | Path) -> None:
    """Give columns of Python objects other than text a type that h5ad has; DataError if their values have no one type.

    True and False with a gap, for instance, are such a column.
    """
    for name in table.columns[[isinstance(dtype, pd.StringDtype) for dtype in table.dtypes]]:
        table[name] = table[name].astype(object)
    for name in table.select_dtypes(object).columns:
        found = infer_dtype(table[name], skipna=True)
        if found == "boolean":
            table[name] = table[name].astype("boolean")
        elif found in ("integer", "floating", "mixed-integer-float", "empty"):
            table[name] = pd.to_numeric(table[name])
        elif found != "string":
            types = some(sorted({type(value).__name__ for value in table[name].dropna()}))
            raise DataError(f"{what}: {kind} column {name!r} has values of the types {types}. Make all of them text.")


def _write_counts(file: h5py.File, blocks: Iterable[sp.csr_matrix], n_genes: int) -> np.ndarray:
    """Write blocks of rows as the csr_matrix X of an h5ad; return the sum of every row (n)."""
    x = file.create_group("X")
    values, genes = _GrowingDataset(x, "data"), _GrowingDataset(x, "indices")
    sums, ends, filled = [np.zeros(0, np.int64)], [np.zeros(1, np.int64)], 0
    for block in blocks:
        values.append(block.data)
        genes.append(block.indices)
        sums.append(np.asarray(block.sum(1)).ravel())
        ends.append(block.indptr[1:] + np.int64(filled))
        filled += block.nnz
    starts = np.concatenate(ends)
    small = filled <= np.iinfo(np.int32).max
    x.create_dataset("indptr", data=starts.astype(np.int32 if small else np.int64), shuffle=True, **GZIP)
    for column in (values, genes):
        column.close()
    shape = np.array([len(starts) - 1, n_genes], np.int64)
    x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
    return np.concatenate(sums)


class _GrowingDataset:
    """An int32 dataset that grows by complete chunks, so that no chunk is compressed twice."""

    def __init__(self, group: h5py.Group, name: str):
        self.data = group.create_dataset(name, (0,), np.int32, maxshape=(None,), chunks=(CHUNK,), shuffle=True, **GZIP)
        self.rest = np.empty(0, np.int32)

    def append(self, values: np.ndarray) -> None:
        values = np.concatenate([self.rest, values])
        complete = len(values) // CHUNK * CHUNK
        self._write(values[:complete])
        self.rest = values[complete:].copy()  # a view would keep the complete array in memory

    def close(self) -> None:
        self._write(self.rest)

    def _write(self, values: np.ndarray) -> None:
        n = len(self.data)
        self.data.resize((n + len(values),))
        self.data[n:] = values


def read_screen(path: str | Path) -> ad.AnnData:
    """Read and check a screen; a dense X means that it is real-valued. DataError if it is missing, damaged or wrong."""
    screen = read_anndata(path)
    check_screen(screen, path, real_valued=isinstance(screen.X, np.ndarray))
    return _with_controls(screen)


def read_tables(path: str | Path) -> ad.AnnData:
    """Read and check a screen without its counts (X is None), which takes little memory for a file of any size."""
    with open_h5ad(path) as file:
        for key in ENTRIES:
            require("uns" in file and key in file["uns"], path, f"uns has no {key!r}, which a screen needs.")
        obs, var = read_table(file["obs"]), read_table(file["var"])
        with reading(f"{path}: uns", file["uns"]):
            screen = ad.AnnData(None, obs, var, uns=read_elem(file["uns"]))
    _check_tables(screen, path)
    _check_library(screen, path)
    return _with_controls(screen)


def _with_controls(screen: ad.AnnData) -> ad.AnnData:
    """The screen itself, with its `controls_of` and `covariates_of` in obs.attrs, where splits look for them."""
    screen.obs.attrs["controls"] = controls_of(screen)
    screen.obs.attrs["covariates"] = covariates_of(screen)
    return screen


def controls_of(screen: ad.AnnData) -> list[str]:
    """The labels that mean the control, its name first; [] without a control."""
    control = screen.uns["control"]
    return [control, *(name for name in screen.uns.get("controls", ()) if name != control)] if control else []


def covariates_of(screen: ad.AnnData) -> list[str]:
    """The columns of obs that are covariates."""
    return [str(name) for name in screen.uns.get("covariates", ())]


def read_uns(path: str | Path, key: str, default: object = None):
    """Read one entry of a screen's uns, without the counts; ``default`` if there is none."""
    with open_h5ad(path) as file, reading(f"{path}: uns"):
        return read_elem(file["uns"][key]) if key in file["uns"] else default


def read_perturbations(path: str | Path) -> pd.DataFrame:
    """Read the table of a screen's perturbations: gene, pathway, n_cells."""
    return read_uns(path, "perturbations")


def reference_of(path: str | Path) -> str:
    """The condition that effects are relative to: the reference of a simulation, else the control, else ''."""
    return str(read_uns(path, "reference", "") or read_uns(path, "control", ""))

"""Your own Perturb-seq: an h5ad, a 10x .h5 or a 10x .mtx folder, and a few words on where things are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.data.counts import integer_counts
from samsvae.data.screen import assemble, members, provenance, write_screen
from samsvae.errors import ConfigError, DataError, nearest, some


def filter_screen(
    source: str | Path,
    target: str | Path,
    *,
    perturbation_column: str,
    control: str | Sequence[str],
    separator: str = "",
    counts: str = "X",
    genes: str | int | Sequence[str] = "all",
    library_size: str = "kept",
    min_cells: int = 1,
    rare: str = "error",
    zero_cells: str = "error",
    annotation: str | Path | None = None,
    cell_table: str | Path | None = None,
    keep_obs: Sequence[str] | None = None,
    checksum: str = "",
) -> ad.AnnData:
    """Filter the source to the screen `target`, which is returned as well.

    perturbation_column: the obs column of labels. control: its control label(s); the first names the control
    in the screen. separator: joins the single perturbations of a combination ('' = labels are never split);
    parts equal to a control label are dropped and the rest sorted, so 'B+ctrl+A' is 'A+B'.
    counts: 'X', 'layer:NAME' or 'raw'. genes: 'all', a list of names, or the n most variable (scanpy's
    seurat_v3 on the counts, with a wider span where its fit is singular). library_size: 'kept' (sum over the
    genes kept), 'all' (over all genes) or the name of an obs column; the last two are scaled by one factor so that
    they sum to the counts kept, since the model's expected counts of a cell sum to its library size.
    min_cells: fewest cells of a condition; rare and zero_cells ('error' or 'drop'): what to do with the cells
    of rarer conditions, and with cells that have no count in the genes kept.
    annotation: a .tsv or .csv with columns perturbation and pathway. cell_table: a .tsv or .csv of cells
    (first column = cell name) whose columns are added to obs, for the 10x forms, which carry no labels.
    keep_obs: columns of obs to keep (default: all). DataError names the file, the column and the offending
    values; ConfigError an option that is not allowed.
    """
    for name, value in (("rare", rare), ("zero_cells", zero_cells)):
        if value not in ("error", "drop"):
            raise ConfigError(f"{name}: {value!r} is not allowed.{nearest(value, ('error', 'drop'))}")
    controls = [control] if isinstance(control, str) else list(control)
    if not controls or "" in controls:
        raise ConfigError(f"control: {control!r} is not allowed; give one or more labels.")

    x, obs, var = _parts(_read(source), counts, source)
    if cell_table is not None:
        obs = _joined(obs, cell_table, source)
    for names, kind in ((obs.index, "cell"), (var.index, "gene")):
        if names.has_duplicates:
            twice = names[names.duplicated()].unique()
            raise DataError(f"{source}: {len(twice)} {kind} names occur more than once: {some(twice)}.")
    shape = x.shape
    counts_of = f"{source}: {counts}"
    x = integer_counts(x, obs.index, var.index, counts_of)
    kept_obs = _kept_columns(obs, keep_obs, source)
    total = np.asarray(x.sum(1)).ravel()
    if library_size not in ("kept", "all"):
        total = _library(obs, library_size, source)

    label = _column(obs, perturbation_column, source)
    if empty := list(obs.index[label.isna() | (label.astype(str).str.strip() == "")]):
        raise DataError(
            f"{source}: obs column {perturbation_column!r} has no label in {len(empty)} cells: {some(empty)}."
        )
    label = label.astype(str)
    names = {c: _canonical(c, separator, controls) for c in label.unique()}
    condition = label.map(names).to_numpy(object)
    where = f"{source}: obs column {perturbation_column!r}"
    if controls[0] not in condition:
        hint = nearest(controls[0], sorted(names))
        raise DataError(f"{where} has no control cell ({some(controls)}).{hint}")

    cols = _genes(x, obs, var, genes, source)
    x = x[:, cols]
    zero = np.asarray(x.sum(1)).ravel() == 0
    if zero.any() and zero_cells == "error":
        raise DataError(
            f"{counts_of} has {int(zero.sum())} cells with zero counts in the {len(cols)} genes kept: "
            f"{some(obs.index[zero])}. Keep more genes, or set zero_cells: drop."
        )

    sizes = pd.Series(pd.Categorical(condition)[~zero]).value_counts().sort_index()
    few = sizes[sizes < min_cells]
    if len(few) and (rare == "error" or controls[0] in few.index):
        listed = some(f"{name} ({n})" for name, n in few.items())
        raise DataError(
            f"{where} has {len(few)} labels with fewer than min_cells = {min_cells} cells: {listed}. "
            "Lower min_cells, or set rare: drop (the control cannot be dropped)."
        )
    rare_cells = np.isin(condition, list(few.index)) & ~zero
    rows = np.flatnonzero(~(rare_cells | zero))
    x = x[rows]
    library = None if library_size == "kept" else total[rows] * (x.sum() / total[rows].sum())
    parameters = {
        "perturbation_column": perturbation_column,
        "control": controls,
        "separator": separator,
        "counts": counts,
        "genes": genes if isinstance(genes, (str, int)) else list(genes),
        "library_size": library_size,
        "min_cells": min_cells,
        "rare": rare,
        "zero_cells": zero_cells,
    }
    facts = provenance(
        source,
        checksum=checksum,
        filter="custom",
        parameters=parameters,
        source_shape=shape,
        kept_shape=x.shape,
        dropped_rare_conditions=len(few),
        dropped_rare_cells=int(rare_cells.sum()),
        dropped_zero_cells=int(zero.sum()),
    )
    screen = assemble(
        x,
        kept_obs.iloc[rows],
        var.iloc[cols],
        condition=condition[rows],
        control=controls[0],
        separator=separator,
        provenance=facts,
        library_size=library,
        pathway_of=_annotation(annotation) if annotation is not None else None,
    )
    if annotation is not None and not (screen.uns["perturbations"]["pathway"] != "").any():
        raise DataError(f"{annotation}: column 'perturbation' has none of the perturbations in {source}.")
    write_screen(screen, target)
    return screen


def _read(source: str | Path) -> ad.AnnData:
    source = Path(source)
    if not source.exists():
        raise DataError(f"{source}: no such file.")
    if source.suffix not in (".h5ad", ".h5") and not source.is_dir():
        raise DataError(f"{source}: not a known form; allowed: .h5ad, 10x .h5, a 10x folder with matrix.mtx.")
    try:
        if source.suffix == ".h5ad":
            with warnings.catch_warnings():  # names that occur twice are our own, clearer error
                warnings.filterwarnings("ignore", message=".*names are not unique.*")
                return ad.read_h5ad(source)
        import scanpy  # slow to import, and needed by the 10x forms alone

        return scanpy.read_10x_mtx(source) if source.is_dir() else scanpy.read_10x_h5(source)
    except Exception as error:  # the readers raise many kinds on a damaged file
        raise DataError(f"{source}: cannot be read ({error}).") from error


def _parts(adata: ad.AnnData, counts: str, source: str | Path) -> tuple:
    """The count matrix, obs and the var that belongs to it."""
    if counts == "raw":
        if adata.raw is None:
            raise DataError(f"{source}: counts: 'raw' is asked for, but the file has no raw.")
        return adata.raw.X, adata.obs, adata.raw.var
    if counts.startswith("layer:"):
        name = counts.removeprefix("layer:")
        if name not in adata.layers:
            raise DataError(f"{source}: no layer {name!r}.{nearest(name, adata.layers)}")
        return adata.layers[name], adata.obs, adata.var
    if counts != "X":
        raise ConfigError(f"counts: {counts!r} is not allowed; allowed: 'X', 'layer:NAME', 'raw'.")
    if adata.X is None:
        raise DataError(f"{source}: the file has no X.{nearest('X', [f'layer:{n}' for n in adata.layers])}")
    return adata.X, adata.obs, adata.var


def _column(obs: pd.DataFrame, name: str, source: str | Path, *also: str) -> pd.Series:
    """A column of obs; `also`: words that would be allowed in place of its name."""
    if name not in obs:
        raise DataError(f"{source}: obs has no column {name!r}.{nearest(name, [*also, *obs.columns])}")
    return obs[name]


def _kept_columns(obs: pd.DataFrame, keep: Sequence[str] | None, source: str | Path) -> pd.DataFrame:
    if keep is None:
        return obs
    for name in keep:
        _column(obs, name, source)
    return obs[list(keep)]


def _library(obs: pd.DataFrame, name: str, source: str | Path) -> np.ndarray:
    value = pd.to_numeric(_column(obs, name, source, "kept", "all"), errors="coerce").to_numpy(float)
    if bad := list(obs.index[~(np.isfinite(value) & (value > 0))]):
        raise DataError(f"{source}: obs column {name!r} is not above 0 in {len(bad)} cells: {some(bad)}.")
    return value


def _canonical(label: str, separator: str, controls: Sequence[str]) -> str:
    """One name per condition: control labels dropped, single perturbations stripped, sorted, each once."""
    if label in controls:
        return controls[0]
    parts = {part.strip() for part in members(label, separator, "")} - {*controls, ""}
    return separator.join(sorted(parts)) or controls[0]


def _genes(x, obs: pd.DataFrame, var: pd.DataFrame, genes: str | int | Sequence[str], source: str | Path):
    """Sorted column numbers of the genes to keep."""
    if isinstance(genes, str) and genes == "all":
        return np.arange(x.shape[1])
    if isinstance(genes, (str, bool)) or (isinstance(genes, int) and genes < 1):
        raise ConfigError(f"genes: {genes!r} is not allowed; allowed: 'all', a list, a number from 1 up.")
    if not isinstance(genes, int):
        if missing := [g for g in genes if g not in var.index]:
            hint = nearest(missing[0], var.index)
            raise DataError(f"{source}: has no gene {some(missing)} of those asked for.{hint}")
        return np.sort(var.index.get_indexer(list(dict.fromkeys(genes))))
    varying = int((x.max(0).toarray() != x.min(0).toarray()).sum())
    if genes > varying:
        raise DataError(f"{source}: genes: {genes} asked for, but only {varying} genes vary between cells.")
    import scanpy  # slow to import, and needed here alone

    small = ad.AnnData(x.astype(np.float32), obs[[]], var[[]])
    for span in (0.3, 0.5, 1.0):  # scanpy's own is 0.3; its loess fit is singular on some panels of few or rare genes
        try:
            options = {"flavor": "seurat_v3", "n_top_genes": genes, "span": span, "inplace": False}
            table = scanpy.pp.highly_variable_genes(small, **options)
            break
        except ValueError as error:
            reason = error
    else:
        raise DataError(f"{source}: genes: {genes}: seurat_v3 failed ({reason}); give a list or 'all'.") from reason
    return np.flatnonzero(table["highly_variable"].to_numpy())


def _read_table(path: str | Path) -> pd.DataFrame:
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file.")
    return pd.read_csv(path, sep="," if Path(path).suffix == ".csv" else "\t", dtype={0: str})


def _joined(obs: pd.DataFrame, cell_table: str | Path, source: str | Path) -> pd.DataFrame:
    """obs with the columns of a table of cells; every cell of the source must be in it."""
    table = _read_table(cell_table)
    table = table.set_index(table.columns[0])
    table.index = table.index.astype(str)
    if table.index.has_duplicates:
        twice = table.index[table.index.duplicated()].unique()
        raise DataError(f"{cell_table}: cells occur more than once: {some(twice)}.")
    if lost := [cell for cell in obs.index if cell not in table.index]:
        raise DataError(f"{cell_table}: {len(lost)} cells of {source} are missing: {some(lost)}.")
    return pd.concat([obs.drop(columns=[c for c in table if c in obs]), table.loc[obs.index]], axis=1)


def _annotation(path: str | Path) -> Mapping[str, str]:
    table = _read_table(path)
    for column in ("perturbation", "pathway"):
        if column not in table:
            raise DataError(f"{path}: no column {column!r}.{nearest(column, table.columns)}")
    table = table.dropna(subset=["perturbation", "pathway"]).astype(str)
    twice = table["perturbation"][table["perturbation"].duplicated()].unique()
    if len(twice):
        raise DataError(f"{path}: column 'perturbation' has names more than once: {some(twice)}.")
    return dict(zip(table["perturbation"], table["pathway"], strict=True))

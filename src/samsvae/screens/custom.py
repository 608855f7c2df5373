"""Your own Perturb-seq: an h5ad, a 10x .h5 or a 10x .mtx folder, and a few words on where things are.

Counts are read in tiles of rows (dense, CSR) or of columns (CSC), and written as they come, so that an h5ad is never
held whole. Letters: n cells, G genes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem

from samsvae.config.screens import CustomOptions
from samsvae.config.validate import build
from samsvae.errors import ConfigError, DataError, nearest, some
from samsvae.screens.counts import BLOCK_BYTES, Counts, most_variable, named, open_h5ad, read_names
from samsvae.screens.labels import conditions_of, obs_column
from samsvae.screens.screen import assemble, check_screen, provenance, write_screen
from samsvae.screens.splits import hand_table, make_split

log = logging.getLogger(__name__)


def filter_screen(
    source: str | Path, target: str | Path, *, checksum: str = "", block_bytes: int = BLOCK_BYTES, **options
) -> ad.AnnData:
    """Filter the source to the screen `target`; the screen without its counts is returned.

    checksum: of the source, as it was verified. options: those of `CustomOptions` (docs/own-data.md). DataError names
    the file, the column and the offending values; ConfigError an option that is not allowed.
    """
    chosen = checked(options)
    with _opened(source, chosen.counts, block_bytes) as (data, obs, var):
        screen, rows, cols = select(data, obs, var, source, chosen, checksum=checksum)
        write_screen(screen, target, blocks=data.blocks(rows, cols))
    return screen


def screen_of(adata: ad.AnnData, **options) -> ad.AnnData:
    """The screen of an AnnData in memory, which is left as it is; `options`: those of `CustomOptions`."""
    source, chosen = "the AnnData", checked(options)
    adata = adata.to_memory() if adata.isbacked else adata
    places = {} if adata.X is None else {"X": adata.X}
    places |= {f"layer:{name}": x for name, x in adata.layers.items()}
    places |= {} if adata.raw is None else {"raw": adata.raw.X}
    x = _named(places, chosen.counts, source)
    x = x.tocsr() if sp.issparse(x) else np.asarray(x)
    var = adata.raw.var if chosen.counts == "raw" else adata.var
    data = Counts(x, adata.obs_names.astype(str), var.index.astype(str), f"{source}: {chosen.counts}")
    screen, rows, cols = select(data, adata.obs.copy(), var, source, chosen)
    screen.X = data.read(rows, cols)
    check_screen(screen, source)
    return screen


def checked(options: Mapping) -> CustomOptions:
    """Options as the workflow checks them; values of numpy, pandas and pathlib may stand for plain ones."""
    plain = {key: _plain(value) for key, value in options.items()}
    control = plain.get("control", [])
    if isinstance(control, int | list):  # labels may be numbers
        plain["control"] = [str(label) for label in (control if isinstance(control, list) else [control])]
    return build(CustomOptions, plain, "options")


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | pd.Index | pd.Series | list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def select(
    data: Counts,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    source: str | Path,
    options: CustomOptions,
    *,
    checksum: str = "",
) -> tuple[ad.AnnData, np.ndarray, np.ndarray]:
    """The screen without its counts, and the sorted numbers of the rows and columns of `data` that are kept.

    Of several control labels the first names the control in the screen. Parts of a combination that are equal to a
    control label are dropped and the rest sorted, so 'B+ctrl+A' is 'A+B'. A library size other than 'kept' is scaled
    by one factor so that it sums to the counts kept, since the model's expected counts of a cell sum to its library
    size. With genes_split the split is written to obs['split'].
    """
    controls, separator = list(options.control), options.separator
    if not controls or "" in controls:
        raise ConfigError(f"control: {controls!r} is not allowed; give one or more labels.")
    genes = _asked(options.genes)
    if options.genes_split is not None and not isinstance(genes, int):
        raise ConfigError(f"genes_split: only with genes: NUMBER is there something to choose, not with {genes!r}.")

    if options.cell_table is not None:
        obs = _joined(obs, options.cell_table, source)
    for names, kind in ((obs.index, "cell"), (var.index, "gene")):
        if names.has_duplicates:
            twice = names[names.duplicated()].unique()
            raise DataError(f"{source}: {len(twice)} {kind} names occur more than once: {some(twice)}.")
    kept_obs = _kept_columns(obs, options.keep_obs, source)
    rows, condition = conditions_of(obs, options, source)
    where = f"{source}: obs column {options.perturbation_column!r}"
    no_label = len(obs) - len(rows)

    # A measured size is checked in the cells that count; sums over all genes cost a pass over the file.
    total = None
    if options.library_size not in ("kept", "all"):
        total = _library(obs.iloc[rows], options.library_size, source)

    chosen_on = rows
    if options.genes_split is not None:
        split = make_split(obs.iloc[rows].assign(condition=condition), separator=separator, **vars(options.genes_split))
        label = split["split"].to_numpy()
        chosen_on = rows[label == "train"]
        kept_obs = kept_obs.rename(columns={"split": "source_split"})
        kept_obs["split"] = pd.Series(label, obs.index[rows]).reindex(obs.index, fill_value="none")
    cols = _columns(data, chosen_on, genes, source)
    kept = data.totals(rows, cols)
    if options.library_size == "all":
        total = kept if len(cols) == len(var) else data.totals(rows, np.arange(len(var)))

    zero = kept == 0
    if zero.all():
        raise DataError(f"{data.what}: no cell has counts ({len(rows)} cells with a label, {len(cols)} genes kept).")
    if zero.any() and options.zero_cells == "error":
        raise DataError(
            f"{data.what} has {int(zero.sum())} cells with zero counts in the {len(cols)} genes kept: "
            f"{some(obs.index[rows[zero]])}. Keep more genes, or set zero_cells: drop."
        )
    sizes = pd.Series(pd.Categorical(condition)[~zero]).value_counts().sort_index()
    few = _too_few(sizes, controls[0], options, where)
    rare_cells = np.isin(condition, few) & ~zero
    keep = ~(rare_cells | zero)
    rows, condition, kept = rows[keep], condition[keep], kept[keep]
    library = kept if total is None else total[keep] * (kept.sum() / total[keep].sum())
    parameters = asdict(options) | {"genes": genes}
    for name in ("annotation", "cell_table", "keep_obs"):  # what they hold is in the screen
        del parameters[name]
    facts = provenance(
        source,
        checksum=checksum,
        filter="custom",
        parameters=parameters,
        source_shape=(len(obs), len(var)),
        kept_shape=(len(rows), len(cols)),
        genes_chosen_on_cells=len(chosen_on) if isinstance(genes, int) else 0,
        dropped_unlabelled_cells=no_label,
        dropped_rare_conditions=len(few),
        dropped_rare_cells=int(rare_cells.sum()),
        dropped_zero_cells=int(zero.sum()),
    )
    screen = assemble(
        None,
        kept_obs.iloc[rows],
        var.iloc[cols],
        condition=condition,
        control=controls[0],
        separator=separator,
        provenance=facts,
        library_size=library,
        pathway_of=_annotation(options.annotation) if options.annotation is not None else None,
        uns={"controls": controls} if len(controls) > 1 else None,
    )
    if options.annotation is not None and not (screen.uns["perturbations"]["pathway"] != "").any():
        raise DataError(f"{options.annotation}: column 'perturbation' has none of the perturbations in {source}.")
    log.info("%s: kept %d of %d cells, %d of %d genes", source, len(rows), len(obs), len(cols), len(var))
    return screen, rows, cols


def _too_few(sizes: pd.Series, control: str, options: CustomOptions, where: str) -> list[str]:
    """Conditions with fewer cells than min_cells, to be dropped; DataError where they may not or too little is left."""
    few = sizes[sizes < options.min_cells]
    if len(few) and options.rare == "error":
        listed = some(f"{name} ({n})" for name, n in few.items())
        raise DataError(
            f"{where} has {len(few)} labels with fewer than min_cells = {options.min_cells} cells: {listed}. "
            "Lower min_cells, or set rare: drop (the control cannot be dropped)."
        )
    if control in few.index:
        raise DataError(
            f"{where} has {few[control]} cells of the control {control!r}, fewer than min_cells = "
            f"{options.min_cells}; the control cannot be dropped. Lower min_cells."
        )
    perturbed = sizes.drop(control)
    if not len(perturbed):
        raise DataError(f"{where} has no perturbed cell: every label is the control's.")
    if len(few) == len(perturbed):
        raise DataError(
            f"{where} has no perturbed condition with min_cells = {options.min_cells} cells or more; the largest is "
            f"{perturbed.idxmax()!r} ({perturbed.max()}). Lower min_cells."
        )
    return list(few.index)


@contextmanager
def _opened(source: str | Path, counts: str, block_bytes: int) -> Iterator[tuple[Counts, pd.DataFrame, pd.DataFrame]]:
    """The counts that an option names, obs, and the var that belongs to them."""
    source = Path(source)
    if not source.exists():
        raise DataError(f"{source}: no such file.")
    if source.suffix == ".h5ad" and not source.is_dir():
        with open_h5ad(source) as file:
            layers = {f"layer:{name}": f"layers/{name}" for name in file.get("layers", ())}
            places = {"X": "X", **layers, "raw": "raw/X"}
            place = _named({name: place for name, place in places.items() if place in file}, counts, source)
            obs, var = (_frame(file[table], source) for table in ("obs", "raw/var" if counts == "raw" else "var"))
            data = Counts(file[place], obs.index, var.index, f"{source}: {counts}", block_bytes)
            data.check()
            yield data, obs, var
        return
    if source.suffix != ".h5" and not source.is_dir():
        raise DataError(f"{source}: not a known form; allowed: .h5ad, 10x .h5, a 10x folder with matrix.mtx.")
    if counts != "X":
        raise ConfigError(f"counts: {counts!r} is not allowed for a 10x source; allowed: 'X'.")
    adata = _read_10x(source)
    yield Counts(adata.X.tocsr(), adata.obs_names, adata.var_names, f"{source}: X"), adata.obs, adata.var


def _read_10x(source: Path) -> ad.AnnData:
    import warnings

    import scanpy  # slow to import, and needed by the 10x forms alone

    try:
        with warnings.catch_warnings():  # the symbols of every 10x reference repeat
            warnings.filterwarnings("ignore", message=".*names are not unique.*")
            adata = scanpy.read_10x_mtx(source) if source.is_dir() else scanpy.read_10x_h5(source)
    except Exception as error:  # the readers raise many kinds on a damaged file
        raise DataError(f"{source}: cannot be read ({error}).") from error
    adata.var_names_make_unique()
    return adata


def _named(places: Mapping[str, Any], counts: str, source: str | Path) -> Any:
    """The place of the counts among those that are there, by the names that the option `counts` may take."""
    if counts in places:
        return places[counts]
    if counts not in ("X", "raw") and not counts.startswith("layer:"):
        raise ConfigError(f"counts: {counts!r} is not allowed; allowed: 'X', 'layer:NAME', 'raw'.")
    raise DataError(f"{source}: there is no {counts!r}, where counts are asked for.{nearest(counts, places)}")


def _frame(element: h5py.Group, source: str | Path) -> pd.DataFrame:
    """obs or var; the names of rows as text."""
    if not isinstance(element, h5py.Group):
        raise DataError(
            f"{source}: {element.name[1:]} is in a form of anndata before 0.7; write the file anew with "
            "anndata.read_h5ad(FILE).write_h5ad(NEW)."
        )
    try:
        frame = read_elem(element)
    except Exception as error:  # anndata and h5py raise many kinds on a damaged file
        raise DataError(f"{source}: {element.name[1:]} cannot be read ({error}).") from error
    frame.index = frame.index.astype(str)
    return frame


def _kept_columns(obs: pd.DataFrame, keep: Sequence[str] | None, source: str | Path) -> pd.DataFrame:
    if keep is None:
        return obs
    for name in keep:
        obs_column(obs, name, source)
    return obs[list(keep)]


def _library(obs: pd.DataFrame, name: str, source: str | Path) -> np.ndarray:
    value = pd.to_numeric(obs_column(obs, name, source, "kept", "all"), errors="coerce").to_numpy(float)
    if bad := list(obs.index[~(np.isfinite(value) & (value > 0))]):
        raise DataError(f"{source}: obs column {name!r} is not above 0 in {len(bad)} cells: {some(bad)}.")
    return value


def _asked(genes: str | int | Sequence[str]) -> str | int | list[str]:
    """'all', a number, or the names of a list or of a file with a name on each line."""
    genes = int(genes) if isinstance(genes, np.integer) else genes
    genes = genes if isinstance(genes, int | str) else list(genes)
    if isinstance(genes, bool) or genes == [] or (isinstance(genes, int) and genes < 1):
        raise ConfigError(f"genes: {genes!r} is not allowed; allowed: 'all', a list, its file, a number from 1 up.")
    if isinstance(genes, int) or genes == "all":
        return genes
    return read_names(genes) if isinstance(genes, str) else list(dict.fromkeys(genes))


def _columns(data: Counts, rows: np.ndarray, genes: str | int | list[str], source: str | Path) -> np.ndarray:
    """Sorted column numbers of the genes to keep; a number is chosen on `rows`."""
    if genes == "all":
        return np.arange(len(data.genes))
    if not isinstance(genes, int):
        return named(genes, data.genes, source)
    every = len(rows) == len(data.cells)
    note = " (all of them: test cells are looked at; genes_split avoids that)" if every else ""
    log.info("%s: the %d most variable genes of %d cells%s", source, genes, len(rows), note)
    return most_variable(data, rows, genes)


def _joined(obs: pd.DataFrame, cell_table: str | Path, source: str | Path) -> pd.DataFrame:
    """obs with the columns of a table of cells; every cell of the source must be in it."""
    # text as it stands: a label may be None or NA
    table = hand_table(cell_table, dtype={0: str}, keep_default_na=False, na_values=[""])
    table = table.set_index(table.columns[0])
    table.index = table.index.astype(str)
    if table.index.has_duplicates:
        twice = table.index[table.index.duplicated()].unique()
        raise DataError(f"{cell_table}: cells occur more than once: {some(twice)}.")
    if lost := [cell for cell in obs.index if cell not in table.index]:
        raise DataError(f"{cell_table}: {len(lost)} cells of {source} are missing: {some(lost)}.")
    return pd.concat([obs.drop(columns=[c for c in table if c in obs]), table.loc[obs.index]], axis=1)


def _annotation(path: str | Path) -> Mapping[str, str]:
    table = hand_table(path, dtype=str, keep_default_na=False, na_values=[""])
    for column in ("perturbation", "pathway"):
        if column not in table:
            raise DataError(f"{path}: no column {column!r}.{nearest(column, table.columns)}")
    table = table.dropna(subset=["perturbation", "pathway"]).astype(str)
    twice = table["perturbation"][table["perturbation"].duplicated()].unique()
    if len(twice):
        raise DataError(f"{path}: column 'perturbation' has names more than once: {some(twice)}.")
    return dict(zip(table["perturbation"], table["pathway"], strict=True))

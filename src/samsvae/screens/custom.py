"""Your own Perturb-seq: an h5ad, a 10x .h5 or a 10x .mtx folder, and a few words on where things are.

Counts are read in tiles of rows (dense, CSR) or of columns (CSC), and written as they come, so that an h5ad is never
held whole. Letters: n cells, G genes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem

from samsvae.config.study import CustomOptions
from samsvae.config.validate import build
from samsvae.errors import ConfigError, DataError, nearest, some
from samsvae.screens.counts import BLOCK_BYTES, count_blocks, integer_counts, open_h5ad, sparse_indices, sparse_starts
from samsvae.screens.screen import assemble, check_screen, members, provenance, write_screen
from samsvae.screens.splits import hand_table, make_split

log = logging.getLogger(__name__)

#: What a label that was missing may have become on its way through text.
NO_LABEL = {"nan", "none", "na", "n/a", "<na>", "null"}


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
    rows, condition = _conditions(obs, options, source)
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


# ---- counts in a file or in memory ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """Counts (n, G) that are not read yet: dense, CSR or CSC, of an open HDF5 file or in memory."""

    x: h5py.Dataset | h5py.Group | sp.spmatrix | np.ndarray
    cells: pd.Index
    genes: pd.Index
    what: str  # "FILE: X", for messages
    block_bytes: int = BLOCK_BYTES

    @property
    def by_columns(self) -> bool:
        kind = self.x.attrs.get("encoding-type", self.x.attrs.get("h5sparse_format")) if self.in_file else ""
        return kind in ("csc_matrix", "csc")

    @property
    def in_file(self) -> bool:
        return isinstance(self.x, h5py.Dataset | h5py.Group)

    def check(self) -> None:
        """DataError where the matrix has another shape than its names (a file that was put together by hand)."""
        group = isinstance(self.x, h5py.Group)
        shape = self.x.attrs.get("shape", self.x.attrs.get("h5sparse_shape")) if group else self.x.shape
        names = len(self.cells), len(self.genes)
        if shape is None or tuple(shape) != names:
            raise DataError(f"{self.what} has the shape {shape}, but there are {names[0]} cells and {names[1]} genes.")

    def tiles(self, rows: np.ndarray, cols: np.ndarray) -> Iterator[tuple[slice, slice, sp.csr_matrix]]:
        """Some rows and columns (sorted positions) as CSR int32 in tiles: (which of `rows`, which of `cols`, counts).

        DataError where they are no counts. Memory: a tile.
        """
        if self.by_columns:
            for at, block in self._column_tiles(rows, cols):
                yield slice(None), at, block
            return
        start = 0
        for block in self.blocks(rows, cols):
            yield slice(start, start + block.shape[0]), slice(None), block
            start += block.shape[0]

    def blocks(self, rows: np.ndarray, cols: np.ndarray) -> Iterator[sp.csr_matrix]:
        """The same in whole rows, in order; of a CSC matrix, and in memory, in one block."""
        names = {"cells": self.cells[rows], "genes": self.genes[cols], "what": self.what}
        if not self.in_file:
            return iter([integer_counts(self.x[rows][:, cols], **names)])
        if self.by_columns:
            return iter([sp.hstack([block for _, block in self._column_tiles(rows, cols)], "csr", np.int32)])
        return count_blocks(self.x, rows, cols, block_bytes=self.block_bytes, **names)

    def read(self, rows: np.ndarray, cols: np.ndarray) -> sp.csr_matrix:
        """The same as one matrix."""
        blocks = list(self.blocks(rows, cols))
        return blocks[0] if len(blocks) == 1 else sp.vstack(blocks, "csr")

    def totals(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Sums of rows over some columns."""
        total = np.zeros(len(rows))
        for at, _, block in self.tiles(rows, cols):
            total[at] += np.asarray(block.sum(1)).ravel()
        return total

    def _column_tiles(self, rows: np.ndarray, cols: np.ndarray) -> Iterator[tuple[slice, sp.csr_matrix]]:
        """Of a CSC matrix in a file: (which of `cols`, their counts), as many columns as a block may have entries."""
        starts = sparse_starts(self.x, len(self.genes), "genes", self.what)
        most = max(1, self.block_bytes // 16)  # a value and its row are up to 16 bytes
        low = 0
        while low < len(cols):
            high = low + 1
            while high < len(cols) and starts[cols[high] + 1] - starts[cols[low]] <= most:
                high += 1
            first, last = cols[low], cols[high - 1] + 1
            a, b = starts[first], starts[last]
            try:
                cell = sparse_indices(self.x, a, b, len(self.cells), "cells", self.what)
                pieces = (self.x["data"][a:b], cell, starts[first : last + 1] - a)
            except OSError as error:
                raise DataError(f"{self.what} cannot be read ({error}).") from error
            block = sp.csc_matrix(pieces, shape=(len(self.cells), last - first))[:, cols[low:high] - first].tocsr()
            block = block if len(rows) == len(self.cells) else block[rows]
            yield slice(low, high), integer_counts(block, self.cells[rows], self.genes[cols[low:high]], self.what)
            low = high


def most_variable(counts: Counts, rows: np.ndarray, n: int) -> np.ndarray:
    """Sorted numbers of the n genes that vary most in some rows, by the rule that scanpy calls 'seurat_v3'.

    The variance of each gene, its counts clipped at sqrt(n cells) standard deviations, over the variance that a loess
    of log variance on log mean expects. Two passes over the tiles, so that the counts are never held as a whole
    (scanpy needs them in memory, more than twice). scanpy's span is 0.3; its fit is singular on some panels of few or
    rare genes, where a wider one is taken.
    """
    from skmisc.loess import loess  # needed here alone

    every = np.arange(len(counts.genes))
    sums, squares = np.zeros((2, len(every)))
    for _, at, block in counts.tiles(rows, every):
        values = block.astype(np.float64)
        sums[at] += np.asarray(values.sum(0)).ravel()
        squares[at] += np.asarray(values.power(2).sum(0)).ravel()
    cells = len(rows)
    mean = sums / cells
    variance = (squares / cells - mean**2) * cells / max(cells - 1, 1)
    varies = variance > 1e-12  # a constant gene may be off by rounding
    if n > varies.sum():
        found = f"only {int(varies.sum())} genes vary between the {cells} cells they are chosen on"
        raise DataError(f"{counts.what}: genes: {n} asked for, but {found}.")
    for span in (0.3, 0.5, 1.0):
        try:
            fit = loess(np.log10(mean[varies]), np.log10(variance[varies]), span=span, degree=2)
            fit.fit()
            break
        except ValueError as error:
            reason = error
    else:
        raise DataError(f"{counts.what}: genes: {n}: seurat_v3 failed ({reason}); give a list or 'all'.") from reason
    expected = np.ones_like(mean)
    expected[varies] = 10**fit.outputs.fitted_values
    top = mean + np.sqrt(expected * cells)

    sums, squares = np.zeros((2, len(every)))
    for _, at, block in counts.tiles(rows, every):
        values = block.astype(np.float64)
        values.data = np.minimum(values.data, top[at][values.indices])
        sums[at] += np.asarray(values.sum(0)).ravel()
        squares[at] += np.asarray(values.power(2).sum(0)).ravel()
    score = (cells * mean**2 + squares - 2 * sums * mean) / ((cells - 1) * expected)
    return np.sort(np.argsort(-np.where(varies, score, -1.0), kind="stable")[:n])


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


# ---- options -------------------------------------------------------------------------------------------------------


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


def _conditions(obs: pd.DataFrame, options: CustomOptions, source: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the cells with a label, and their conditions."""
    column, controls, separator = options.perturbation_column, options.control, options.separator
    label = _column(obs, column, source)
    where = f"{source}: obs column {column!r}"
    label, missing = label.astype(str).str.strip(), label.isna().to_numpy()
    missing |= (label == "").to_numpy()
    if missing.any() and options.unlabelled == "error":
        raise DataError(
            f"{where} has no label in {int(missing.sum())} cells: {some(obs.index[missing])}. "
            "Label them, or set unlabelled: drop."
        )
    rows = np.flatnonzero(~missing)
    label = label.iloc[rows]
    pieces = {name: name.split(separator) if separator else [name] for name in label.unique()}
    split = {name: [part.strip() for part in parts] for name, parts in pieces.items()}
    if odd := sorted(name for name, parts in split.items() if name not in controls and "" in parts):
        raise DataError(f"{where} has combinations with an empty part (separator {separator!r}): {some(odd)}.")
    names = {name: _canonical(name, parts, separator, controls) for name, parts in split.items()}
    condition = label.map(names).to_numpy(object)
    if unused := [name for name in controls if name not in names]:
        log.warning("%s: no cell has the control label %s", where, some(unused))
    if controls[0] not in condition:
        raise DataError(f"{where} has no control cell ({some(controls)}).{nearest(controls[0], sorted(names))}")

    _doubtful(label.value_counts(), split, controls, where)
    if separator and not any(separator in name for name in split):
        log.warning("%s: no label contains the separator %r: there are no combinations", where, separator)
    found = [members(name, separator, controls[0]) for name in set(names.values())]
    alone = {parts[0] for parts in found if len(parts) == 1}
    if never := sorted({part for parts in found if len(parts) > 1 for part in parts} - alone):
        log.warning(
            "%s: %d perturbations occur in combinations only: %s. If these are pieces of names, the separator %r is "
            "part of the names as well: rename the labels, or leave separator empty",
            *(where, len(never), some(never), separator),
        )
    return rows, condition


def _doubtful(cells_of: pd.Series, split: Mapping[str, Sequence[str]], controls: Sequence[str], where: str) -> None:
    """Warn of names that look like a missing label, or like a control but for upper and lower case.

    cells_of: cells of each label; split: the names in each label.
    """
    cells: Counter[str] = Counter()
    for label, n in cells_of.items():
        if label not in controls:
            cells.update({name: n for name in set(split[label]) - set(controls)})
    for alike, what in (
        (NO_LABEL, "a missing label that was written as text"),
        ({name.lower() for name in controls}, "a control in other upper and lower case"),
    ):
        if found := [f"{name} ({n} cells)" for name, n in sorted(cells.items()) if name.lower() in alike]:
            log.warning("%s: %s: a perturbation here, but it looks like %s", where, some(found), what)


def _canonical(label: str, parts: Sequence[str], separator: str, controls: Sequence[str]) -> str:
    """One name per condition: control labels dropped, single perturbations sorted, each once."""
    if label in controls:
        return controls[0]
    return separator.join(sorted(set(parts) - set(controls))) or controls[0]


def _asked(genes: str | int | Sequence[str]) -> str | int | list[str]:
    """'all', a number, or the names of a list or of a file with a name on each line."""
    genes = int(genes) if isinstance(genes, np.integer) else genes
    genes = genes if isinstance(genes, int | str) else list(genes)
    if isinstance(genes, bool) or genes == [] or (isinstance(genes, int) and genes < 1):
        raise ConfigError(f"genes: {genes!r} is not allowed; allowed: 'all', a list, its file, a number from 1 up.")
    if isinstance(genes, int) or genes == "all":
        return genes
    return read_names(genes) if isinstance(genes, str) else list(dict.fromkeys(genes))


def read_names(path: str | Path) -> list[str]:
    """The distinct names in a text file, one on each line."""
    if not Path(path).is_file():
        raise ConfigError(
            f"genes: {str(path)!r} is not allowed: no such file. Allowed: 'all', a list, its file, a number."
        )
    lines = (line.strip() for line in Path(path).read_text().splitlines())
    return list(dict.fromkeys(line for line in lines if line))


def named(names: Sequence[str], var: pd.Index, source: str | Path) -> np.ndarray:
    """Sorted column numbers of genes by name; DataError for one that is not there."""
    at = var.get_indexer(list(names))
    if (at < 0).any() or not len(at):
        missing = [name for name, i in zip(names, at, strict=True) if i < 0]
        hint = nearest(missing[0] if missing else "", var)
        raise DataError(f"{source}: has no gene {some(missing)} of those asked for.{hint}")
    return np.sort(at)


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

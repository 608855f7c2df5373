"""Filter for your own Perturb-seq data: a source (`samsvae.screens.sources`), and options that describe it.

Counts are read in tiles of rows (dense, CSR) or of columns (CSC) and written tile by tile, so memory never holds a
complete h5ad. Letters: n cells, G genes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.config.first_fit import GENES
from samsvae.config.screens import PERTURBATION_COLUMN, CustomOptions
from samsvae.config.validate import build
from samsvae.config.vocabulary import UNPERTURBED
from samsvae.errors import ConfigError, DataError, nearest, quoted, some
from samsvae.screens.counts import BLOCK_BYTES, Counts
from samsvae.screens.covariates import checked_covariates
from samsvae.screens.genes import gene_positions, most_variable, read_names
from samsvae.screens.labels import conditions_of, obs_column
from samsvae.screens.perturbation_matrix import joined_lists, labels_of_matrix
from samsvae.screens.screen import assemble, check_screen, members, provenance, source_columns, write_screen
from samsvae.screens.sources import Source, open_source, parts_of
from samsvae.screens.splits import make_split
from samsvae.screens.targets import read_table, targets_of
from samsvae.screens.user_tables import join_cell_table, read_annotation

log = logging.getLogger(__name__)

#: Options that concern only a matrix of perturbations, and are not recorded without one.
MATRIX = ("perturbations", "perturbation_names", "threshold")


def filter_screen(
    source: str | Path, target: str | Path, *, checksum: str = "", block_bytes: int = BLOCK_BYTES, **options
) -> ad.AnnData:
    """Filter the source to the screen `target`; return the screen without its counts.

    checksum: the verified checksum of the source. options: see `CustomOptions` and docs/own-data.md. DataError names
    the file, the column and the offending values; ConfigError names an option that is not allowed.
    """
    chosen = check_options(options)
    with open_source(source, chosen.counts, block_bytes) as data:
        screen, rows, cols = select(data, source, chosen, checksum=checksum)
        write_screen(screen, target, blocks=data.counts.blocks(rows, cols))
    return screen


def screen_of(adata: ad.AnnData, *, genes_on: np.ndarray | None = None, complete: bool = True, **options) -> ad.AnnData:
    """The screen of an AnnData in memory, which is not modified; `options` as in `CustomOptions`.

    `genes_on` (n,) bool: the cells on which genes are selected, by default those of genes_split, or else all.
    `complete`: False if control cells or perturbed ones may be missing. DataError and ConfigError as in
    `filter_screen`.
    """
    check_adata(adata)
    source, chosen = "the AnnData", check_options(options)
    adata = adata.to_memory() if adata.isbacked else adata
    data = parts_of(adata, chosen.counts, source)
    screen, rows, cols = select(data, source, chosen, genes_on=genes_on, complete=complete)
    screen.X = data.counts.read(rows, cols)
    check_screen(screen, source, complete=complete)
    return screen


def check_adata(adata: object) -> None:
    """ConfigError if this is no AnnData, such as the path of one."""
    if not isinstance(adata, ad.AnnData):
        read = f"anndata.read_h5ad({quoted(str(adata))})" if isinstance(adata, str | Path) else "an AnnData"
        raise ConfigError(f"adata: {quoted(adata)} is not an AnnData in memory; pass {read}.")


def check_options(options: Mapping) -> CustomOptions:
    """Check options as the workflow does; numpy, pandas and pathlib values are accepted in place of plain ones.

    ConfigError for an option or value that is not allowed.
    """
    plain = {key: _plain(value) for key, value in options.items()}
    control = plain.get("control", [])  # None stays None
    if isinstance(control, int | float | list):  # a label may be a number
        plain["control"] = [str(label) for label in (control if isinstance(control, list) else [control])]
    return build(CustomOptions, plain, "options")


def option_of(perturbation: str) -> dict[str, Any]:
    """The option that an argument ``perturbation`` stands for: a matrix if it is obsm:KEY, else an obs column."""
    return {"perturbations" if perturbation.startswith("obsm:") else "perturbation_column": perturbation}


def _plain(value: Any) -> Any:
    """A value as plain Python, as a configuration file would give it."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | pd.Index | pd.Series | list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def select(
    parts: Source,
    source: str | Path,
    options: CustomOptions,
    *,
    checksum: str = "",
    genes_on: np.ndarray | None = None,
    complete: bool = True,
) -> tuple[ad.AnnData, np.ndarray, np.ndarray]:
    """The screen without its counts, and the sorted positions of the rows and columns of the source that it keeps.

    If there are several control labels, the first one names the control in the screen. In a combination, parts equal
    to a control label are dropped and the rest are sorted, so 'B+ctrl+A' becomes 'A+B'. A library size other than
    'kept' is scaled by one factor so that it sums to the kept counts, because the model's expected counts of a cell
    sum to its library size. With genes_split the split is written to obs['split']. A screen without control cells has
    the control '', and, if the options name none, the reference UNPERTURBED. The rest as in `screen_of`.
    """
    data, var, obs = parts.counts, parts.var, join_cell_table(parts.obs, options, source)
    _check_unique(obs.index, var.index, source)
    genes = _check_selection(options)
    parameters = _recorded(options, genes)
    kept_obs = _select_obs_columns(obs, options, source)
    table = read_table(parts, options, source)
    label, where, options = _labels(parts, obs, options, table, source, complete)
    rows, condition = conditions_of(label, options, where, complete=complete, table=table)
    unlabelled = len(obs) - len(rows)
    # Only labelled cells need a measured size. Sums over all genes wait: they cost one more pass over the file.
    measured = options.library_size not in ("kept", "all")
    total = _measured_library(obs.iloc[rows], options.library_size, source) if measured else None
    chosen_on = rows if genes_on is None else rows[genes_on[rows]]
    if options.genes_split is not None:
        split = _split_for_genes(obs.iloc[rows].assign(condition=condition), options)
        chosen_on = rows[split["split"].to_numpy() == "train"]
        kept_obs = _add_split(kept_obs, rows, split)
    cols, n_chosen_on = _select_genes(data, chosen_on, genes, source)
    kept = data.totals(rows, cols)
    if options.library_size == "all":
        total = kept if len(cols) == len(var) else data.totals(rows, np.arange(len(var)))
    zero = kept == 0
    _check_zero_cells(zero, obs.index[rows], len(cols), options, data.what)
    rare, n_rare = _rare_cells(condition, zero, options, where, complete=complete)
    keep = ~(rare | zero)
    rows, condition, library = rows[keep], condition[keep], _library(kept[keep], None if total is None else total[keep])
    facts = provenance(
        source,
        checksum=checksum,
        filter="custom",
        parameters=parameters,
        source_shape=(len(obs), len(var)),
        kept_shape=(len(rows), len(cols)),
        genes_chosen_on_cells=n_chosen_on,
        dropped_unlabelled_cells=unlabelled,
        dropped_rare_conditions=n_rare,
        dropped_rare_cells=int(rare.sum()),
        dropped_zero_cells=int(zero.sum()),
    )
    tables = kept_obs.iloc[rows], var.iloc[cols]
    screen = _assemble(condition, library, *tables, facts, options, source, table, complete=complete)
    log.info("%s: kept %d of %d cells and %d of %d genes", source, len(rows), len(obs), len(cols), len(var))
    return screen, rows, cols


def _library(kept: np.ndarray, total: np.ndarray | None) -> np.ndarray:
    """The library sizes (n): the counts kept, or measured totals scaled so that they sum to these."""
    return kept if total is None else total * (kept.sum() / total.sum())


def _labels(
    parts: Source,
    obs: pd.DataFrame,
    options: CustomOptions,
    table: Mapping[str, str],
    source: str | Path,
    complete: bool,
) -> tuple[pd.Series, str, CustomOptions]:
    """The label of each cell (n), where labels come from in words, and the options under which they are read."""
    if (column := options.perturbation_column) is not None:
        if column == PERTURBATION_COLUMN and column not in obs:
            raise DataError(
                f"{source}: obs has no column {column!r}, the default of perturbation_column.{nearest(column, obs)} "
                "Set perturbation_column to the column with the labels, or perturbations to a matrix, such as obsm:KEY."
            )
        where = f"{source}: obs column {column!r}"
        label, options = joined_lists(obs_column(obs, column, source), options, where)
        return label, where, options
    label, options = labels_of_matrix(parts, options, table, source, complete=complete)
    return label, f"{source}: {options.perturbations}", options


def _check_selection(options: CustomOptions) -> str | int | list[str]:
    """The option genes as in `_check_genes`; ConfigError for options that do not go together."""
    genes = _check_genes(options.genes)
    if options.genes_split is not None and genes != "auto" and not isinstance(genes, int):
        raise ConfigError(
            f"genes_split: allowed only when genes is 'auto' or a number, but genes is {genes!r}. Remove genes_split, "
            "or set genes to the number of genes to choose."
        )
    return genes


def _split_for_genes(labelled: pd.DataFrame, options: CustomOptions) -> pd.DataFrame:
    """The split on whose training cells genes are selected, of the cells with a label."""
    assert options.genes_split is not None  # the caller has checked
    labelled.attrs["controls"] = list(options.controls)
    labelled.attrs["covariates"] = list(options.covariates)
    return make_split(labelled, separator=options.separator, **options.genes_split.of_cells())


def _add_split(obs: pd.DataFrame, rows: np.ndarray, split: pd.DataFrame) -> pd.DataFrame:
    """obs with the split of the cells `rows` in the column split; other cells are 'none'."""
    obs = obs.set_axis(source_columns(obs, ("split",)), axis=1)
    obs["split"] = pd.Series(split["split"].to_numpy(), obs.index[rows]).reindex(obs.index, fill_value="none")
    return obs


def _check_unique(cells: pd.Index, genes: pd.Index, source: str | Path) -> None:
    for names, kind in ((cells, "cell"), (genes, "gene")):
        if names.has_duplicates:
            twice = names[names.duplicated()].unique()
            raise DataError(f"{source}: {len(twice)} {kind} names occur more than once: {some(twice)}.")


def _check_zero_cells(zero: np.ndarray, cells: pd.Index, n_genes: int, options: CustomOptions, where: str) -> None:
    """DataError if all labelled cells are empty, or if some are and the options do not allow dropping them."""
    if zero.all():
        raise DataError(f"{where}: no cell has counts ({len(zero)} cells with a label, {n_genes} genes kept).")
    if zero.any() and options.zero_cells == "error":
        raise DataError(
            f"{where} has {int(zero.sum())} cells with zero counts in the {n_genes} genes kept: "
            f"{some(cells[zero])}. Keep more genes, or set zero_cells: drop."
        )


def _recorded(options: CustomOptions, genes: str | int | list[str]) -> dict[str, Any]:
    """The options to record in the provenance, without those whose content is in the screen itself."""
    parameters = asdict(options) | {"genes": genes}
    unused = [
        *(["perturbation_column"] if options.perturbations else MATRIX),
        *([] if options.guides == "keep" else ["guides"]),
    ]
    for name in ("annotation", "cell_table", "targets", "keep_obs", "covariates", *unused):
        del parameters[name]
    if split := parameters["genes_split"]:  # without these, screens of older versions keep their bytes
        for name in ("stratified", "context_column", "context"):
            if not split[name]:
                del split[name]
    return parameters


def _assemble(
    condition: np.ndarray,
    library: np.ndarray,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    facts: Mapping[str, object],
    options: CustomOptions,
    source: str | Path,
    table: Mapping[str, str],
    *,
    complete: bool,
) -> ad.AnnData:
    """The screen without its counts, from the tables of the kept cells and genes."""
    is_control = condition == (options.controls[0] if options.controls else UNPERTURBED)
    covariates = checked_covariates(obs, options.covariates, is_control, source, complete=complete)
    controls = list(options.controls) if set(options.controls[:1]) <= set(condition) else []
    more: dict[str, Any] = {"controls": controls} if len(controls) > 1 else {}
    more |= {} if options.controls else {"reference": UNPERTURBED}
    more |= {"covariates": list(options.covariates)} if options.covariates else {}
    screen = assemble(
        None,
        obs.assign(**covariates),
        var,
        condition=condition,
        control=controls[0] if controls else "",
        separator=options.separator,
        provenance=facts,
        library_size=library,
        pathway_of=read_annotation(options.annotation) if options.annotation is not None else None,
        gene_of=_genes_of(condition, options, source, table),
        uns=more,
    )
    if options.annotation is not None and not (screen.uns["perturbations"]["pathway"] != "").any():
        raise DataError(f"{options.annotation}: column 'perturbation' has none of the perturbations in {source}.")
    return screen


def _genes_of(
    condition: np.ndarray, options: CustomOptions, source: str | Path, table: Mapping[str, str]
) -> Mapping[str, str]:
    """guide -> target, if the options keep guides; {} if they merge them, or if there are no targets."""
    if options.guides == "target":
        return {}
    control = options.controls[0] if options.controls else ""
    names = {name for label in set(condition) for name in members(label, options.separator, control)}
    return targets_of(sorted(names), options, str(source), table)


def _rare_cells(
    condition: np.ndarray, zero: np.ndarray, options: CustomOptions, where: str, *, complete: bool
) -> tuple[np.ndarray, int]:
    """The nonempty cells (n) of conditions with fewer than min_cells of them, to drop, and the number of conditions.

    DataError if the options do not allow dropping them, if the control is one of them, or if nothing else is left.
    """
    sizes = pd.Series(pd.Categorical(condition)[~zero]).value_counts().sort_index()
    control = options.controls[0] if options.controls else UNPERTURBED
    few = sizes[sizes < options.min_cells]
    if len(few) and options.rare == "error":
        listed = some(f"{name} ({n})" for name, n in few.items())
        raise DataError(
            f"{where} has {len(few)} labels with fewer than min_cells = {options.min_cells} cells: {listed}. "
            "Lower min_cells, or set rare: drop (the control cannot be dropped)."
        )
    if control in few.index:
        raise DataError(
            f"{where} has {few[control]} cells of the control {quoted(control)}, fewer than min_cells = "
            f"{options.min_cells}; the control cannot be dropped. Lower min_cells."
        )
    perturbed = sizes.drop(control, errors="ignore")
    if not len(perturbed) and complete:
        raise DataError(f"{where} has no perturbed cell: every label is the control's.")
    if len(few) and len(few) == len(perturbed):
        raise DataError(
            f"{where} has no perturbed condition with min_cells = {options.min_cells} cells or more; the largest is "
            f"{quoted(str(perturbed.idxmax()))} ({perturbed.max()}). Lower min_cells."
        )
    return np.isin(condition, list(few.index)) & ~zero, len(few)


def _select_obs_columns(obs: pd.DataFrame, options: CustomOptions, source: str | Path) -> pd.DataFrame:
    """The columns of obs to keep, the covariates among them: all of them without keep_obs."""
    asked = list(dict.fromkeys((*(options.keep_obs or ()), *options.covariates)))
    for name in asked:
        obs_column(obs, name, source)
    return obs if options.keep_obs is None else obs[asked]


def _measured_library(obs: pd.DataFrame, name: str, source: str | Path) -> np.ndarray:
    """The library sizes in a column of obs (n); DataError for values that are not above 0."""
    value = pd.to_numeric(obs_column(obs, name, source, "kept", "all"), errors="coerce").to_numpy(float)
    if bad := list(obs.index[~(np.isfinite(value) & (value > 0))]):
        raise DataError(
            f"{source}: obs column {name!r} must be above 0, but {len(bad)} cells have other values: {some(bad)}."
        )
    return value


def _check_genes(genes: str | int | Sequence[str]) -> str | int | list[str]:
    """The option genes as 'auto', 'all', a number or a list of names, which may come from a file."""
    genes = int(genes) if isinstance(genes, np.integer) else genes
    genes = genes if isinstance(genes, int | str) else list(genes)
    if isinstance(genes, bool) or genes == [] or (isinstance(genes, int) and genes < 1):
        raise ConfigError(
            f"genes: {genes!r} is not allowed; allowed: 'auto', 'all', a list, a file, a number of 1 or more."
        )
    if isinstance(genes, int) or genes in ("auto", "all"):
        return genes
    return read_names(genes) if isinstance(genes, str) else list(dict.fromkeys(genes))


def _select_genes(
    data: Counts, rows: np.ndarray, genes: str | int | list[str], source: str | Path
) -> tuple[np.ndarray, int]:
    """Sorted column positions of the genes to keep, and the number of cells that they were chosen on (0: none).

    If `genes` is a number, they are the most variable ones in `rows`; 'auto' is GENES of them if there are more.
    """
    auto = genes == "auto"
    if genes == "all" or (auto and len(data.genes) <= GENES):
        return np.arange(len(data.genes)), 0
    genes = GENES if auto else genes
    if not isinstance(genes, int):
        return gene_positions(genes, data.genes, source), 0
    every = len(rows) == len(data.cells)
    note = " (all cells, so test cells influence the choice; set genes_split to avoid this)" if every else ""
    log.info("%s: choosing the %d most variable genes on %d cells%s", source, genes, len(rows), note)
    return most_variable(data, rows, genes, at_most=auto), len(rows)

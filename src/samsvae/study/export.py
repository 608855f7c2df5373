"""The results of finished runs in formats that other tools read: long Parquet tables, and AnnData of mean profiles.

Written next to the results and read by nothing here, so no job waits for them and no run is trained again.
Letters: C conditions, G genes, T perturbations, L latents.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.config.grid import Run
from samsvae.config.study import Study
from samsvae.config.validate import build
from samsvae.errors import ConfigError, DataError
from samsvae.evaluation.masks import latent_names
from samsvae.files import atomic
from samsvae.matrices import read_h5ad, write_h5ad
from samsvae.screens.screen import read_tables
from samsvae.study.plan import Plan
from samsvae.study.preview import is_finished

log = logging.getLogger(__name__)

#: Columns of a screen's var that hold gene symbols, the best first; else the names of the genes are taken.
SYMBOLS = ("gene_symbol", "gene_symbols", "symbol", "gene_name", "feature_name")

#: Columns with few different values, which Parquet stores as a dictionary.
NAMES = ("run", "model", "condition", "gene", "symbol", "split", "perturbation", "target", "pathway", "latent")


def write_export(config: Mapping, experiments: Sequence[str] = ()) -> list[Path]:
    """Export the finished runs of some experiments (by default all) and return the folders (RESULTS/EXPERIMENT/export).

    ``config``: the merged configuration, whose paths start in the current folder. A folder gets effects.parquet,
    perturbations.parquet (if a run has masks or embeddings) and means/RUN.h5ad. ConfigError for an unknown
    experiment or if pyarrow is not installed; DataError if no run has finished.
    """
    _parquet()  # before any work
    folders = build(Study, config).pathvars
    plan = Plan(config, results=folders.folder("results"), benchmarks=folders.folder("benchmarks"))
    out = []
    for name in experiments or plan.runs:
        found = [run for run in plan.experiment(name).values() if is_finished(plan, run)]
        log.info("%s: %d of %d runs have finished", name, len(found), len(plan.experiment(name)))
        if found:
            out.append(plan.results / name / "export")
            _export(plan, found, out[-1])
    if not out:
        raise DataError(f"{plan.results}: no run has finished, so there is nothing to export yet.")
    return out


def _export(plan: Plan, found: Sequence[Run], folder: Path) -> None:
    """Write the files of one experiment."""
    screens = {run.dataset: read_tables(plan.data_file(run.dataset, "screen.h5ad")) for run in found}
    _write((effect_rows(plan, run, screens[run.dataset]) for run in found), folder / "effects.parquet")
    latents = [rows for run in found if (rows := perturbation_rows(plan, run, screens[run.dataset])) is not None]
    if latents:
        _write(latents, folder / "perturbations.parquet")
    for run in found:
        write_h5ad(profiles(plan, run, screens[run.dataset]), folder / "means" / f"{run.id}.h5ad")


def effect_rows(plan: Plan, run: Run, screen: ad.AnnData) -> pd.DataFrame:
    """The effects of a run in long form: one row per condition and gene (C x G rows)."""
    predicted = read_h5ad(plan.run_file(run, "effects.h5ad"))
    data = read_h5ad(plan.split_file(run, "effects.h5ad"))[predicted.obs_names]
    cells = data.obs[["n_train", "n_test"]]
    _, genes = predicted.shape
    return pd.DataFrame(
        {
            "run": run.id,
            "model": run.row,
            "condition": np.repeat(predicted.obs_names.to_numpy(str), genes),
            "gene": np.tile(predicted.var_names.to_numpy(str), len(predicted)),
            "symbol": np.tile(symbols(screen), len(predicted)),
            "effect": np.asarray(predicted.X, np.float32).ravel(),
            "observed": np.asarray(data.X, np.float32).ravel(),
            **{name: np.repeat(cells[name].to_numpy(np.int32), genes) for name in cells},
        }
    )


def perturbation_rows(plan: Plan, run: Run, screen: ad.AnnData) -> pd.DataFrame | None:
    """Masks and embeddings of a run in long form, one row per perturbation and latent (T x L); None if it has none."""
    tables = read_h5ad(plan.run_file(run, "perturbations.h5ad"))
    if not tables.obsm:
        return None
    n, latents = len(tables), next(iter(tables.obsm.values())).shape[1]
    names = tables.obs_names.to_numpy(str)
    known = screen.uns["perturbations"].reindex(names)
    rows = {"run": run.id, "model": run.row, "perturbation": np.repeat(names, latents)}
    for column, source in (("target", "gene"), ("pathway", "pathway")):
        rows[column] = np.repeat(known[source].fillna("").to_numpy(str), latents)
    rows["latent"] = np.tile(latent_names(latents), n)
    for name in ("mask_probability", "embedding"):
        values = tables.obsm.get(name)
        rows[name] = np.full(n * latents, np.nan, np.float32) if values is None else np.float32(values).ravel()
    return pd.DataFrame(rows)


def profiles(plan: Plan, run: Run, screen: ad.AnnData) -> ad.AnnData:
    """The mean expression that a run predicts for each condition and the reference: X (C + 1, G).

    X is in the unit of scanpy, the mean of the natural logarithm of 1 + counts per 10,000; for real values, their mean.
    DataError if the file of the run is older than profiles.
    """
    path = plan.run_file(run, "effects.h5ad")
    predicted, data = read_h5ad(path), read_h5ad(plan.split_file(run, "effects.h5ad"))
    if "reference_mean" not in predicted.var:
        raise DataError(f"{path}: has no means of the reference, since an older version wrote it. Score the run again.")
    counts = data.uns["transform"] == "log2"
    unit, word = (math.log(2.0), "ln(1 + counts per 10,000)") if counts else (1.0, "value")
    reference = str(data.uns["reference"])
    mean = predicted.var["reference_mean"].to_numpy()
    effects = np.vstack([predicted.X, np.zeros(predicted.n_vars)])
    names = [*predicted.obs_names, reference or "mean of all conditions"]
    obs = pd.DataFrame({"condition": names, "is_reference": [False] * len(predicted) + [True]}, index=names)
    var = pd.DataFrame({"symbol": symbols(screen)}, index=predicted.var_names)
    uns = {"run": run.id, "model": run.row, "reference": reference, "unit": word}
    return ad.AnnData(((effects + mean) * unit).astype(np.float32), obs, var, uns=uns)


def symbols(screen: ad.AnnData) -> np.ndarray:
    """The symbols of the genes (G) of a screen; their names if it has no symbols."""
    column = next((name for name in SYMBOLS if name in screen.var), None)
    return (screen.var_names if column is None else screen.var[column]).to_numpy(str)


def _write(tables: Iterable[pd.DataFrame], path: Path) -> None:
    """Write tables with the same columns one after another to one Parquet file, in the memory of one."""
    arrow, parquet = _parquet()
    with atomic(path) as aside:
        writer = None
        try:
            for table in _categories(tables):
                content = arrow.Table.from_pandas(table, preserve_index=False)
                writer = writer or parquet.ParquetWriter(aside, content.schema)
                writer.write_table(content.cast(writer.schema))
        finally:
            if writer is not None:
                writer.close()


def _categories(tables: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """The tables with their names as categories."""
    for table in tables:
        yield table.astype({name: "category" for name in NAMES if name in table})


def _parquet() -> tuple[Any, Any]:
    """pyarrow and its Parquet; ConfigError if they are not installed, since only this module needs them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigError("samsvae export needs pyarrow, which is not installed: pip install pyarrow.") from None
    return pyarrow, pyarrow.parquet

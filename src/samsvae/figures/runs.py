"""Which run of a setting a figure shows, and the files of that run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.errors import DataError
from samsvae.evaluation.metrics.selection import PLACE, of_best_settings, shown
from samsvae.figures.style import look


def models_only(scores: pd.DataFrame) -> pd.DataFrame:
    """The published protocol's scores of models, without the baselines and the columns that name files."""
    rows = scores[(scores["protocol"] == "published") & (scores["method"] != "baseline")]
    return rows.drop(columns=[c for c in PLACE if c in rows])


def of_table_1(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores that Table 1 and the figures beside it are about: 100 latents, where the grid has them."""
    rows = models_only(scores)
    published_size = rows["n_latent"] == 100 if "n_latent" in rows else pd.Series(False, rows.index)
    return rows[published_size] if published_size.any() else rows


def shown_runs(scores: pd.DataFrame) -> dict[str, str]:
    """Model -> its run to show: of the settings that are best on validation data, the first seed."""
    return shown(of_best_settings(scores)).set_index("model")["run"].to_dict()


def best_run(scores: pd.DataFrame, model: str) -> str:
    """The run of a model that the figures beside Table 1 show."""
    rows = of_table_1(scores)
    return shown_runs(rows[rows["model"] == model])[model]


def of_run(paths: Iterable[str], run: str) -> str:
    """The file of a run among those of many (``.../runs/RUN/file``)."""
    for path in paths:
        if Path(path).parent.name == run:
            return path
    raise DataError(f"No file of the run {run!r} is among the inputs.")


def frame(matrix: ad.AnnData, layer: str | None = None) -> pd.DataFrame:
    """A matrix with its names."""
    values = matrix.X if layer is None else matrix.layers[layer]
    return pd.DataFrame(np.asarray(values), matrix.obs_names, matrix.var_names)


def short_names(gene: pd.Series) -> dict[str, str]:
    """Perturbation -> its target gene; 'GENE #2' for the second of a gene, and so on."""
    number = gene.groupby(gene).cumcount() + 1
    return dict(zip(gene.index, gene.where(number == 1, gene + " #" + number.astype(str)), strict=True))


def or_empty(table: pd.DataFrame | None) -> pd.DataFrame:
    """A table, or one without rows where there is nothing to show."""
    return pd.DataFrame(columns=["name"]) if table is None else table


def label(model: str) -> str:
    """A model's name as figures write it."""
    return look(model).label

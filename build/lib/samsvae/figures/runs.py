"""Runs of a figure: their scores, which one is shown, and its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from samsvae.config.vocabulary import AMOUNT_AXES, SEED_AXES
from samsvae.errors import DataError, nearest
from samsvae.evaluation.selection import PLACE, best_settings, chosen, of_best_settings, shown
from samsvae.figures import style

if TYPE_CHECKING:  # most figures read no matrix, and importing anndata takes as long as drawing one of them
    import anndata as ad

#: Axes of a grid that set how much data a run sees, with the words for one of their values.
AMOUNTS = dict(zip(AMOUNT_AXES, ("fraction {:g}", "{:g} cells per perturbation"), strict=True))

#: Axes of a grid whose values are replicates, with the word for one of them.
REPLICATES = {axis: axis.replace("_", " ") for axis in SEED_AXES}


class Shown(NamedTuple):
    """The run that a figure of one run shows, and a sentence that says how it was chosen."""

    model: str
    run: str
    sentence: str


def models_only(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of models under the published protocol, without the columns that name files."""
    rows = scores[(scores["protocol"] == "published") & (scores["method"] != "baseline")]
    return rows.drop(columns=[c for c in PLACE if c in rows])


def restricted(scores: pd.DataFrame, compared: Mapping[str, object]) -> pd.DataFrame:
    """The scores with these values of axes of the grid (setting ``compared``); an axis that no score has is ignored."""
    for axis, value in compared.items():
        if axis in scores:
            scores = scores[scores[axis] == value]
    return scores


def of_largest_amount(scores: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The scores of the runs that saw the most data, and the words for that amount ('' if all saw the same)."""
    words = []
    for axis, text in AMOUNTS.items():
        if axis in scores and scores[axis].nunique() > 1:
            most = scores[axis].max()
            scores = scores[scores[axis] == most]
            words.append(text.format(most))
    return scores, ", ".join(words)


def replicates(runs: pd.DataFrame) -> str:
    """How the runs of one setting differ: 'seed', 'split seed' or 'data seed'; 'run' if by several of these."""
    found = [word for axis, word in REPLICATES.items() if axis in runs and runs[axis].nunique() > 1]
    return found[0] if len(found) == 1 else "run" if found else "seed"


def shown_runs(scores: pd.DataFrame) -> dict[str, str]:
    """Model -> the run to show: the first seed of the settings with the best mean validation IWELBO."""
    return shown(of_best_settings(scores)).set_index("model")["run"].to_dict()


def shown_run(scores: pd.DataFrame, model: str = "") -> Shown:
    """The run that a figure of one run shows, among the candidates in `scores` (models_only).

    The model is `model` if it is a candidate, else the one with the best mean validation IWELBO. The run is the first
    seed of the model's settings with the best mean validation IWELBO.
    """
    scores = style.need(scores, ["model", "run", "metric", "split", "value"], "scores of the candidates")
    best = best_settings(scores, ["model"]).sort_values("mean", ascending=False, kind="stable")
    runs = shown_runs(scores)
    found = model if model in runs else str(best["model"].iloc[0])
    several = int(best.set_index("model").loc[found, "n"])
    seed = f"the first of {several} seeds" if several > 1 else "one seed"
    why = f"best validation IWELBO of {len(runs)} models, " if found != model and len(runs) > 1 else ""
    sentence = f"Shown: {style.label(found)}, run {runs[found]} ({why}{seed}; settings chosen on validation data)."
    return Shown(found, runs[found], sentence)


def of_settings(scores: pd.DataFrame, by: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each model's best settings on validation data (best_settings, pooled over replicates), and their scores."""
    best = best_settings(scores, by, tuple(REPLICATES))
    return best, chosen(scores, best.drop(columns=["mean", "sd", "n"]))


def of_every_condition(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table of the honest protocol that are about all its conditions, seen and unseen.

    These are the rows of the set ``all``, which is left out where it would repeat the only other set.
    """
    every = table["set"] == "all"
    return table[every] if every.any() else table


def of_run(paths: Iterable[str], run: str) -> str:
    """The file of one run in a list of files (``.../runs/RUN/file``)."""
    for path in paths:
        if Path(path).parent.name == run:
            return path
    raise DataError(f"No file of the run {run!r} is among the inputs.")


def of_split(paths: Sequence[str], scores: pd.DataFrame, run: str) -> str:
    """The file of a run's split in a list of files (``.../DATASET/SPLIT/file``)."""
    place = scores[scores["run"] == run].iloc[0]
    wanted = (str(place["dataset"]), str(place["split_name"]))
    for path in paths:
        if Path(path).parts[-3:-1] == wanted:
            return path
    there = ["/".join(Path(path).parts[-3:-1]) for path in paths]
    raise DataError(f"No file of the split {'/'.join(wanted)!r} is among the inputs.{nearest('/'.join(wanted), there)}")


def frame(matrix: ad.AnnData, layer: str | None = None) -> pd.DataFrame:
    """A matrix with its row and column names."""
    values = matrix.X if layer is None else matrix.layers[layer]
    return pd.DataFrame(np.asarray(values), matrix.obs_names, matrix.var_names)


def ate_unit(effects: ad.AnnData) -> str:
    """The unit of observed effects for the label of an axis: ' (log2)', '' for differences of real values."""
    return " (log2)" if str(effects.uns.get("transform", "log2")) == "log2" else ""


def short_names(perturbations: pd.DataFrame) -> dict[str, str]:
    """Perturbation -> its target gene, 'GENE #2' for the second of a gene and so on; its own name without a gene.

    perturbations: the screen's table (read_perturbations), with a column gene.
    """
    gene = perturbations["gene"].astype(str)
    gene = gene.where(gene != "", gene.index.astype(str))
    number = gene.groupby(gene).cumcount() + 1
    return dict(zip(gene.index, gene.where(number == 1, gene + " #" + number.astype(str)), strict=True))

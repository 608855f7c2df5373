"""The masks of an experiment: do seeds find the same ones, and do perturbations of one gene share one (S11)?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.evaluation.metrics.mask_stability import mask_stability, sibling_rank
from samsvae.matrices import read_h5ad
from samsvae.screens.screen import read_perturbations

#: Columns of the table of masks after those of the grid: ``n`` is the number of seeds, or of perturbations with a
#: sibling; ``reason`` says why a value is undefined.
COLUMNS = ("run", "metric", "value", "n", "reason")

#: A perturbation acts on a latent if the probability of its mask is above.
ACTIVE = 0.5

#: Metrics of the masks of several seeds, by their names in `MaskStability.scores`.
STABILITY = {
    "jaccard": "mask_jaccard",
    "null": "mask_jaccard_null",
    "excess": "mask_excess",
    "gram": "mask_gram",
    "density": "mask_density",
    "active_latents": "mask_active_latents",
}

#: Why a metric is undefined although there are several seeds.
EMPTY = "the masks of two seeds are empty"
REASONS = {
    "jaccard": EMPTY,
    "null": EMPTY,
    "excess": "masks with permuted perturbations agree completely, as masks of ones do",
    "gram": "in a mask, all perturbations are equally similar, as in masks of ones and in empty ones",
}


def latent_names(n: int) -> list[str]:
    """The names of n latents in tables and figures: z0, z1 and so on."""
    return [f"z{number}" for number in range(n)]


def collect_masks(grid: pd.DataFrame, perturbations: Iterable[str], screens: Iterable[str]) -> pd.DataFrame:
    """Scores of masks: a row per metric, for each group of runs that differ in the seed alone, and for each run.

    ``perturbations``: files of masked runs (``.../runs/RUN/file``). ``screens``: the screens of their data sets
    (``.../DATASET/file``). Perturbations without training cells are left out. Columns: those of the grid that say which
    run it is, without the seed; then COLUMNS. Rows of a group have no run. Rows of runs (sibling_rank) exist if the
    screen has several perturbations of a gene.
    """
    masks = {Path(path).parent.name: _mask(path) for path in perturbations}
    genes = {Path(path).parent.name: read_perturbations(path)["gene"].astype(str) for path in screens}
    known = grid[grid["run"].isin(masks)]
    place = [column for column in grid if column not in ("run", "seed", "checkpoint")]  # imported runs are replicates
    rows: list[dict[str, object]] = []
    for values, runs in known.groupby(place, dropna=False, sort=False):
        group = dict(zip(place, values, strict=True))
        found = {run: masks[run] for run in runs["run"]}
        every = [*stability(list(found.values())), *siblings(found, genes[str(group["dataset"])])]
        rows += [{**group, **row} for row in every]
    return pd.DataFrame(rows, columns=[*place, *COLUMNS])


def stability(masks: list[pd.DataFrame]) -> Iterator[dict[str, object]]:
    """Rows of COLUMNS for the masks (T, L) of seeds, of the perturbations that all of them have."""
    shared = masks[0].index[np.all([masks[0].index.isin(mask.index) for mask in masks], axis=0)]
    values = mask_stability([mask.loc[shared].to_numpy() for mask in masks]).scores()
    why = REASONS | {"excess": EMPTY} if np.isnan(values["jaccard"]) else REASONS
    for name, metric in STABILITY.items():
        yield _row("", metric, values[name], len(masks), why.get(name, "") if len(masks) > 1 else "one seed")


def siblings(masks: dict[str, pd.DataFrame], gene: pd.Series) -> Iterator[dict[str, object]]:
    """Rows of COLUMNS for every run whose screen has several perturbations of a gene (``gene``: by perturbation)."""
    gene = gene[gene != ""]
    if not gene.duplicated().any():
        return
    for run, mask in masks.items():
        known = mask.loc[mask.index.isin(gene.index)]
        found = sibling_rank(known.to_numpy(), gene[known.index].to_numpy(str))
        reason = "no gene has several perturbations with training cells"
        for metric, value in (("", found.rank), ("_null", found.null), ("_p", found.p)):
            yield _row(run, f"sibling_rank{metric}", value, found.n_guides, reason)


def _row(run: str, metric: str, value: float, n: int, reason: str) -> dict[str, object]:
    return dict(zip(COLUMNS, (run, metric, value, n, reason if np.isnan(value) else ""), strict=True))


def _mask(path: str) -> pd.DataFrame:
    """The mask (T, L) of a run as booleans, without the rows of perturbations that have no training cells."""
    perturbations = read_h5ad(path)
    probability = np.asarray(perturbations.obsm["mask_probability"])
    trained = ~np.isnan(probability).any(1)
    return pd.DataFrame(probability[trained] > ACTIVE, perturbations.obs_names[trained])

"""Scores of new perturbations without a model: the training cells' mean profile, and a perturbation's own profile.

They depend on the split alone, and are written next to it. Letters: n cells, C conditions, k cells of a perturbation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from samsvae.config.transfer import ALL_CELLS, TransferConfig
from samsvae.data.arrays import Screen, read_screen
from samsvae.evaluation.metrics.effects import pearson
from samsvae.evaluation.metrics.likelihood import (
    InterceptNB,
    fit_intercept_nb,
    intercept_nb_log_likelihood,
    own_profile,
)
from samsvae.evaluation.pools import Number, Pools, observed_effects, read_pools
from samsvae.evaluation.transfer_tables import COLUMNS, tidy, together
from samsvae.tables import write

#: The baselines, as they are called in the columns run and model.
TRAIN_MEAN, OWN_PROFILE = "train_mean", "own_profile"


def baseline_table(screen: Screen, pools: Pools, settings: TransferConfig) -> pd.DataFrame:
    """Rows of both baselines for every variant and number of cells: run, model, variant, stage, ..., value."""
    profiles = _Profiles(screen, pools) if screen.transform == "log2" else None
    parts = []
    for variant in settings.variants:
        released = variant == "as_released"
        scored = pools.every if released else pools.test
        numbers: list[Number] = [ALL_CELLS] if released else [n for n in settings.cells if n != 0]
        asked: list[tuple[str, Number]] = [(TRAIN_MEAN, 0), *((OWN_PROFILE, number) for number in numbers)]
        observed = observed_effects(screen, pools, scored)
        mean = profiles.train_mean(scored) if profiles else {}
        for name, number in asked:
            codes = pools.new if released else pools.enough(number)
            read_cells = pools.every if released else pools.first(number)
            found: dict[str, np.ndarray] = {}
            if profiles:
                inll = mean if name == TRAIN_MEAN else profiles.own(scored, read_cells, codes)
                found["inll"] = np.array([inll[c] for c in codes])
                found["gain"] = np.array([mean[c] for c in codes]) - found["inll"]
            if name == OWN_PROFILE:
                effects = observed_effects(screen, pools, read_cells)
                found["effect_pearson"] = pearson(effects[codes], observed[codes])
            rows = tidy(found, screen.conditions[codes].tolist(), particles=None)
            numbers_of = together(n_scored=len(codes), n_left_out=len(pools.new) - len(codes))
            adapt = "none" if name == TRAIN_MEAN else "profile"
            columns = {"run": name, "model": name, "variant": variant, "stage": 0, "adapt": adapt, "cells": number}
            parts += [table.assign(**columns) for table in (rows, numbers_of)]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


class _Profiles:
    """The two likelihoods: negative log-likelihoods of conditions in nats per cell, by code."""

    def __init__(self, screen: Screen, pools: Pools):
        self.screen, self.pools, old = screen, pools, pools.old("train")
        counts, self.library = screen.counts[old], screen.library[old]
        self.pooled = fit_intercept_nb(counts, self.library)
        self.within = fit_intercept_nb(counts, self.library, group=screen.condition[old])

    def train_mean(self, scored: np.ndarray) -> dict[int, float]:
        """Under the pooled profile of the old training cells, for all new conditions."""
        return dict(self._scores(((c, self.pooled) for c in self.pools.new), scored))

    def own(self, scored: np.ndarray, read_cells: np.ndarray, codes: np.ndarray) -> dict[int, float]:
        """Under the profiles of the cells that were read of each condition."""
        return dict(self._scores(((c, self._profile(self.pools.of(read_cells, [c]))) for c in codes), scored))

    def _profile(self, cells: np.ndarray) -> InterceptNB:
        mean = float(np.mean(self.library, dtype=float))
        return own_profile(self.screen.counts[cells], self.screen.library[cells], self.within, mean_library=mean)

    def _scores(self, fits: Iterator[tuple[int, InterceptNB]], scored: np.ndarray) -> Iterator[tuple[int, float]]:
        for code, fit in fits:
            at = self.pools.of(scored, [code])
            yield code, -float(intercept_nb_log_likelihood(fit, self.screen.counts[at], self.screen.library[at]).mean())


def write_baselines(
    arrays: str | Path, split: str | Path, out: str | Path, *, settings: Mapping[str, Any], names: Mapping[str, str]
) -> None:
    """Write the baselines of a split (TSV), from files to a file.

    ``settings``: a TransferConfig as a dict. ``names``: dataset, split_name and held_out, as in the table.
    """
    screen = read_screen(arrays)
    table = baseline_table(screen, read_pools(split, screen), TransferConfig(**settings)).assign(**names)
    write(table.reindex(columns=list(COLUMNS)), out)

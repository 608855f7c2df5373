"""The transfer of a trained run to new perturbations, from files to files: every stage, and its scores.

Letters: C conditions (by code), T perturbations, L latents.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.config.evaluation import EvaluationConfig
from samsvae.config.training import TrainingConfig
from samsvae.config.transfer import ALL_CELLS, TransferConfig
from samsvae.data.arrays import Screen, read_screen
from samsvae.data.cells import Cells, Dosage, cells_of, encode
from samsvae.errors import some
from samsvae.evaluation.pools import Number, Pools, read_pools
from samsvae.evaluation.screen_names import check_names
from samsvae.evaluation.transfer_scores import Target, model_scores, shift_scores, target_of
from samsvae.evaluation.transfer_tables import COLUMNS, read_transfer, tidy, together
from samsvae.files import write_json
from samsvae.matrices import read_h5ad, write_h5ad
from samsvae.models.model import Model
from samsvae.models.perturbations import reset_perturbations
from samsvae.study.refit_run import check_untrained, untrained_rows
from samsvae.tables import read_json, write
from samsvae.training.checkpoint import Checkpoint, load
from samsvae.training.transfer import GRADIENT, adapt, adapt_as_released, default_way

log = logging.getLogger(__name__)


class Adapted(NamedTuple):
    """A model after a stage, and the new conditions ``codes`` that it is scored on."""

    variant: str
    stage: int
    adapt: str
    cells: Number
    model: Model
    codes: np.ndarray


@dataclass(frozen=True)
class Source:
    """A trained run: its model after stage 1, those after stage 2 by variant, and its cells."""

    checkpoint: Checkpoint
    refits: Mapping[str, Model]
    screen: Screen
    pools: Pools
    dosage: Dosage

    @cached_property
    def untrained(self) -> list[int]:
        return untrained_rows(self.screen, self.pools.split, self.dosage)

    @property
    def training(self) -> TrainingConfig:
        return TrainingConfig(**self.checkpoint.facts["training"])

    def cells(self, which: np.ndarray) -> Cells:
        """Some cells (n,) bool on the device of the model."""
        return cells_of(self.screen, which, self.dosage, self.checkpoint.model.input_mean.device)

    def new_rows(self, codes: np.ndarray) -> list[int]:
        """The perturbations of the model in some conditions, as positions, that no training saw."""
        rows = set(self.dosage.members[codes].flatten().tolist())
        return [row for row in self.untrained if row in rows]

    def adaptable(self, number: Number) -> np.ndarray:
        """The new conditions with so many cells in their pool and with a perturbation that no training saw, as codes.

        In the summed encoding a combination may have none: then there is nothing to adapt.
        """
        codes = self.pools.enough(number)
        return codes[[bool(self.new_rows(codes[i : i + 1])) for i in range(len(codes))]]


def stages(
    source: Source, settings: TransferConfig, *, variants: tuple[str, ...], new_cells: Number
) -> Iterator[Adapted]:
    """The models to score, stage by stage. ``new_cells``: how many the training has seen, for the upper bound."""
    first, new = source.checkpoint.model, source.pools.new
    if new_cells:
        codes = source.pools.enough(new_cells)
        yield Adapted("ours", 1, "refit", new_cells, first, codes)
        for model in source.refits.values():
            yield Adapted("ours", 2, "refit", new_cells, model, codes)
        return
    for variant in variants:
        yield Adapted(variant, 1, "none", 0, first, new)
        model = source.refits.get(variant, first)
        if model is not first:
            yield Adapted(variant, 2, "none", 0, model, new)
        elif model.config.effect != "none":  # undo what the first stage did to the new perturbations
            start = reset_perturbations(model, source.new_rows(new))
            yield Adapted(variant, 3, "none", 0, start, new)
        yield from _released(source, model) if variant == "as_released" else _ours(source, model, settings)


def _ours(source: Source, model: Model, settings: TransferConfig) -> Iterator[Adapted]:
    for number in (number for number in settings.cells if number != 0):
        codes = source.adaptable(number)
        if model.config.effect == "none":  # the same model again: nothing of it is adapted
            yield Adapted("ours", 3, "closed_form", number, model, codes)
            continue
        by_gradient = default_way(model.config) == GRADIENT
        for way in (GRADIENT,) if by_gradient else settings.adapt:
            if len(codes):
                options = {"steps": settings.adapt_steps} if by_gradient else {}
                cells = source.cells(source.pools.of(source.pools.first(number), codes))
                new = source.new_rows(codes)
                adapted = adapt(model, cells, way, new=new, config=source.training, **options)
            yield Adapted("ours", 3, way, number, adapted if len(codes) else model, codes)


def _released(source: Source, model: Model) -> Iterator[Adapted]:
    both = adapt_as_released(model, source.cells(source.pools.every), source.training)
    for variant, adapted in (("as_released", both.model), ("statistics_kept", both.statistics_kept)):
        yield Adapted(variant, 3, "adam", ALL_CELLS, adapted, source.pools.new)


class _Results:
    """Scores and latents of the models of one run, collected model by model."""

    def __init__(self, source: Source, how: TransferConfig, evaluation: EvaluationConfig, truth: ad.AnnData | None):
        self.source, self.how, self.evaluation, self.truth = source, how, evaluation, truth
        self.tables: list[pd.DataFrame] = []
        self.latents: list[ad.AnnData] = []
        self.last: tuple[Model | None, dict[int, dict[str, float]]] = None, {}

    def add(self, each: Adapted, target: Target) -> None:
        """Score a model and keep the latents of its new perturbations."""
        scored = {name: getattr(each, name) for name in ("variant", "stage", "adapt", "cells")}
        known, left_out = len(each.codes), len(self.source.pools.new) - len(each.codes)
        parts = [together(n_scored=known, n_left_out=left_out)]
        if known:
            names = self.source.screen.conditions[each.codes].tolist()
            parts.append(tidy(self._scores(each, target), names, particles=self.how.particles))
            if each.adapt == "sparse" and self.truth is not None:
                parts.append(together(**shift_scores(each.model, target, each.codes, self.truth)))
            if each.adapt != "none":
                self.latents += self._latents(each, scored)
        self.tables.append(pd.concat(parts, ignore_index=True).assign(**scored))

    def _scores(self, each: Adapted, target: Target) -> dict[str, np.ndarray]:
        """The scores of the conditions, computed once for a model that comes several times in a row."""
        model, by_condition = self.last
        if each.model is not model or not set(each.codes) <= by_condition.keys():
            found = model_scores(
                each.model, target, each.codes, particles=self.how.particles, evaluation=self.evaluation
            )
            by_condition = {
                code: {metric: values[i] for metric, values in found.items()} for i, code in enumerate(each.codes)
            }
            self.last = each.model, by_condition
        chosen = [by_condition[code] for code in each.codes]
        return {metric: np.array([scores[metric] for scores in chosen]) for metric in chosen[0]}

    def _latents(self, each: Adapted, scored: Mapping[str, object]) -> list[ad.AnnData]:
        """The embedding of the new perturbations, and their mask probabilities if there are any; [] without both."""
        tables = {name: table.cpu().numpy() for name, table in each.model.perturbation_tables().items()}
        if not tables:
            return []
        rows = [row for row in np.unique(self.source.dosage.members[each.codes]) if row < len(self.source.dosage.names)]
        names = [self.source.dosage.names[row] for row in rows]
        keys = ["/".join([*map(str, scored.values()), name]) for name in names]
        obs = pd.DataFrame(
            {**scored, "cells": str(each.cells), "perturbation": names}, index=pd.Index(keys, dtype=object)
        )
        embedding = tables.pop("embedding")
        return [ad.AnnData(embedding[rows], obs, layers={name: table[rows] for name, table in tables.items()})]


def transfer_run(
    inputs: Mapping[str, str | Path],
    refits: Mapping[str, str | Path],
    out: Mapping[str, str | Path],
    *,
    settings: Mapping[str, Any],
    split: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    device: str,
) -> None:
    """Adapt one run to new perturbations and score it after every stage, from files to files.

    ``inputs``: model, arrays, split, baselines (`transfer_baselines`) and, for a simulation, screen. ``refits``: the
    checkpoints after stage 2 by variant. ``out``: transfer (TSV, docs/outputs.md), adapted (h5ad: the latents of the
    new perturbations) and transfer_record (JSON: settings, and seconds with those of the second trainings).
    ``settings``: a TransferConfig as a dict. ``split``: dataset, split_name, held_out and new_cells. CheckpointError if
    the model has been trained on a new perturbation.
    """
    start = time.perf_counter()
    how = TransferConfig(**settings)
    source = read_source(inputs, refits, device)
    run, model = source.checkpoint.facts["run"], source.checkpoint.facts["model"]
    variants = how.variants_of(model)
    if left := sorted(set(how.variants) - set(variants)):
        log.info("%s: %s is left out, because there is no released transfer code for %s", run, some(left), model)
    baselines = read_transfer(inputs["baselines"])
    targets = {v: target_of(source.screen, source.pools, source.dosage, baselines, v) for v in variants}
    truth = read_h5ad(inputs["screen"]) if "screen" in inputs else None
    results = _Results(source, how, EvaluationConfig(**evaluation), truth)
    for each in stages(source, how, variants=variants, new_cells=split["new_cells"]):
        results.add(each, targets[each.variant if each.variant in targets else "as_released"])
        log.info("%s: stage %d, %s, %s, cells: %s", run, each.stage, each.variant, each.adapt, each.cells)
    names = {name: split[name] for name in ("dataset", "split_name", "held_out")}
    table = pd.concat(results.tables, ignore_index=True)
    table = table.assign(run=run, model=model, seed=source.training.seed, **names)
    write(table.reindex(columns=list(COLUMNS)), out["transfer"])
    write_h5ad(ad.concat(results.latents) if results.latents else ad.AnnData(np.empty((0, 0))), out["adapted"])
    # the second trainings belong to it: each has a record next to its weights
    again = sum(read_json(Path(path).with_name("run.json"))["seconds"] for path in refits.values())
    seconds = round(again + time.perf_counter() - start, 3)
    write_json({"run": run, "transfer": dict(settings), "seconds": seconds}, out["transfer_record"])


def read_source(inputs: Mapping[str, str | Path], refits: Mapping[str, str | Path], device: str) -> Source:
    """A trained run and its cells; CheckpointError if a perturbation is new to the split but not to the model."""
    checkpoint, screen = load(inputs["model"], device), read_screen(inputs["arrays"])
    check_names(checkpoint, screen)
    pools, dosage = read_pools(inputs["split"], screen), encode(screen, checkpoint.facts["encoding"])
    models = {variant: load(path, device).model for variant, path in refits.items()}
    source = Source(checkpoint, models, screen, pools, dosage)
    check_untrained(checkpoint, source.new_rows(pools.new))
    return source

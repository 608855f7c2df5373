"""The runs of a grid and their ids.

An experiment is a screen, a split and a grid of runs. In a block of the grid a list is an axis, whose values become
part of each run's id, and a scalar is a setting of the whole block.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import typing
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from samsvae.config.model import ModelConfig
from samsvae.config.screens import SCALAR, ScreenConfig, SplitConfig
from samsvae.config.study import Study
from samsvae.config.training import TrainingConfig
from samsvae.config.validate import build, checked, checked_fields, field_names, plain
from samsvae.config.vocabulary import ENCODINGS
from samsvae.config.zoo import row
from samsvae.errors import ConfigError, nearest


@dataclass(frozen=True)
class Run:
    """One training: its id, what it reads and its full settings. ``axes`` are the values the id is made of.

    ``checkpoint``: a file of the SAMS-VAE release whose weights are taken in place of a training.
    """

    id: str
    experiment: str
    row: str
    dataset: str
    split: str
    encoding: str
    model: ModelConfig
    training: TrainingConfig
    screen: ScreenConfig
    split_config: SplitConfig
    axes: dict[str, SCALAR]
    checkpoint: str | None = None


# ---- runs of a grid ------------------------------------------------------------------------------------------------

#: Axes in the order of a run's id, with the word that stands for each; any other axis goes by its own name.
WORDS = {
    "checkpoint": "from_",
    "n_layers": "layers",
    "n_latent": "latents",
    "mask_prior": "alpha",
    "beta_b": "b",
    "mask_penalty": "lambda",
    "kl_weight": "beta",
    "encoding": "",
    "cells": "cells",
    "data_seed": "draw",
    "split_seed": "split",
    "fraction": "frac",
    "seed": "seed",
}


def _word(key: str, value: SCALAR, where: str) -> str:
    if key == "checkpoint":
        return f"{WORDS[key]}{re.sub(r'[^A-Za-z0-9_.]+', '_', PurePath(str(value)).stem)}"
    if "/" in str(value):
        raise ConfigError(
            f"{where}.{key}: {value!r} is not allowed in a grid, whose values become parts of file names."
        )
    return f"{WORDS.get(key, key)}{value}"


def _ordered(keys: typing.Iterable[str]) -> list[str]:
    order = list(WORDS)
    return sorted(keys, key=lambda key: (order.index(key) if key in order else -1, key))


def runs(study: Study, name: str) -> list[Run]:
    """Every run of an experiment, in the order of its grid; ConfigError for an unknown axis or a run named twice."""
    experiment, found = study.settings[name], {}
    screen = study.screens[experiment.screen]
    homes = {
        "options": field_names(type(screen.options)),
        "split": field_names(SplitConfig) - {"kind", "conditions", "combinations_of", "path"},
        "model": field_names(ModelConfig),
        "training": field_names(TrainingConfig),
    }
    known = {"model", "encoding", "checkpoint"}.union(*homes.values())
    checked_fields(ModelConfig, experiment.model, f"settings.{name}.model")
    checked_fields(TrainingConfig, experiment.training, f"settings.{name}.training")
    if not experiment.grid:
        raise ConfigError(f"settings.{name}.grid: it is empty. Needed: blocks, each with a model or a list of models.")
    for number, block in enumerate(experiment.grid):
        where = f"settings.{name}.grid[{number}]"
        for key in block:
            if key not in known:
                raise ConfigError(f"{where}: unknown axis {key!r}.{nearest(key, sorted(known))}")
            if isinstance(block[key], list | tuple) and not block[key]:
                raise ConfigError(f"{where}.{key}: the list is empty, so that the block has no run.")
        if "model" not in block:
            raise ConfigError(f"{where}: no 'model'; give a model or a list of models.")
        axes = {key: value for key, value in block.items() if isinstance(value, list | tuple)}
        axes.setdefault("model", [block["model"]])
        if "checkpoint" in block:  # always in the id, which tells imported weights from trained ones
            axes["checkpoint"] = checked(block["checkpoint"], tuple[str, ...], f"{where}.checkpoint")
        fixed = {key: value for key, value in block.items() if key not in axes}
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            if "checkpoint" in axes and "seed" not in block:  # replicates of a setting, as seeds are
                chosen["seed"] = axes["checkpoint"].index(chosen["checkpoint"])
            run = _run(study, name, where, chosen, fixed, homes)
            if run.id in found:
                raise ConfigError(f"{where}: the run {run.id!r} is there twice; make the blocks differ in an axis.")
            found[run.id] = run
    if len({run.checkpoint is None for run in found.values()}) > 1:
        raise ConfigError(
            f"settings.{name}.grid: some runs have a checkpoint and others are trained, and tables would pool them. "
            "Give those with a checkpoint an experiment of their own."
        )
    return list(found.values())


def _run(study: Study, name: str, where: str, chosen: dict, fixed: dict, homes: dict[str, set[str]]) -> Run:
    experiment = study.settings[name]
    screen = study.screens[experiment.screen]
    every = {**fixed, **chosen}
    named = checked(every["model"], str, f"{where}.model")
    try:
        model = row(named)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None

    def picked(home: str) -> dict:
        return {key: value for key, value in every.items() if key in homes[home] and key != "model"}

    options = build(type(screen.options), {**plain(screen.options), **picked("options")}, where)
    split = build(SplitConfig, {**plain(experiment.split), **picked("split")}, where)
    encoding = every.get("encoding", "sum")
    if encoding not in ENCODINGS:
        raise ConfigError(f"{where}.encoding: {encoding!r} is not known.{nearest(encoding, ENCODINGS)}")
    axes = {key: chosen[key] for key in _ordered(chosen) if key != "model"}
    words = [_word(key, value, where) for key, value in axes.items()]
    # files of one name have one content, so that a block's single values are in the names of data and splits too
    data_words, split_words = (
        [_word(key, every[key], where) for key in _ordered(every) if key in homes[home]]
        for home in ("options", "split")
    )
    return Run(
        id="-".join([every["model"], *words]),
        experiment=name,
        row=every["model"],
        dataset="-".join([experiment.screen, *data_words]),
        split="-".join([split.kind, *split_words]),
        encoding=encoding,
        model=build(ModelConfig, {**experiment.model, **model.model, **picked("model")}, where),
        training=build(TrainingConfig, {**experiment.training, **model.training, **picked("training")}, where),
        screen=replace(screen, options=plain(options)),
        split_config=split,
        axes=axes,
        checkpoint=chosen.get("checkpoint"),
    )


def batches(found: typing.Iterable[Run], size: int) -> dict[str, list[Run]]:
    """Runs that read the same data and split, at most ``size`` together, by a name. {} where ``size`` is 1.

    In the order of the grid, so that runs of one model come together.
    """
    if size == 1:
        return {}
    alike: dict[tuple[str, str], list[Run]] = {}
    for run in found:
        if run.checkpoint is None:
            alike.setdefault((run.dataset, run.split), []).append(run)
    return {
        f"{dataset}.{split}.{at // size}": same[at : at + size]
        for (dataset, split), same in alike.items()
        for at in range(0, len(same), size)
    }


def grid_table(runs: list[Run]) -> list[dict[str, SCALAR]]:
    """A row per run: id, model, method, inference, the axes of the whole experiment, dataset and split."""
    keys = _ordered({key for run in runs for key in run.axes} | {"encoding"})
    rows = []
    for run in runs:
        settings = {**plain(run.screen.options), **plain(run.split_config), **plain(run.training)}
        settings |= {**plain(run.model), "encoding": run.encoding, "checkpoint": run.checkpoint}
        named = {"run": run.id, "model": run.row, "method": row(run.row).method, "inference": row(run.row).inference}
        rows.append({**named, **{key: settings[key] for key in keys}, "dataset": run.dataset, "split_name": run.split})
    return rows


def run_settings(run: Run) -> dict[str, Any]:
    """What the training of a run depends on, as plain values: the params of its rule."""
    own = {"run": run.id, "model": run.row, "encoding": run.encoding}
    return own | {"config": dataclasses.asdict(run.model), "training": dataclasses.asdict(run.training)}

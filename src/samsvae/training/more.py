"""More training of a trained model: from its weights, with a new optimiser and new noise."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from samsvae.config.training import TrainingConfig
from samsvae.config.validate import build, checked_fields
from samsvae.data.arrays import Screen
from samsvae.errors import ConfigError
from samsvae.training.checkpoint import HISTORY, Checkpoint
from samsvae.training.loop import train
from samsvae.training.new_cells import cells_for
from samsvae.training.state import Trained
from samsvae.training.verdict import verdict

log = logging.getLogger("samsvae")


def train_more(
    checkpoint: Checkpoint, screen: Screen, parts: np.ndarray, *, report_every: float = 10.0, **settings: Any
) -> Checkpoint:
    """A checkpoint trained further on the cells of a screen; the given one is not changed.

    ``parts`` (n,): 'train' or 'val' for each cell; others are not used. ``settings`` replace those of the earlier
    training; ``steps`` counts the new steps. Weights, moments of the encoder's input and settings are kept. The moments
    of Adam start at 0, the noise is new, and there is no warm-up. The weights kept are the best of the new steps.

    ConfigError if the checkpoint has no settings of a training, or for a setting that is not allowed; DataError if the
    screen has other genes, or perturbations that the model does not know.
    """
    facts = checkpoint.facts
    if (before := facts.get("training")) is None:
        raise ConfigError(
            "the model has no settings of a training (imported weights), so it cannot be trained further."
        )
    history = facts.get("history", {name: [] for name in HISTORY})
    steps, epochs = (int(max(history[name], default=0)) for name in ("step", "epoch"))
    new = {"warmup_epochs": 0, "seed": (before["seed"] + steps) % 2**32}
    new |= {"epochs": None} if "steps" in settings else {}
    config = build(
        TrainingConfig, {**before, **new, **checked_fields(TrainingConfig, settings, "settings")}, "training"
    )
    train_cells, val_cells = (cells_for(checkpoint, screen, parts == name) for name in ("train", "val"))
    model = copy.deepcopy(checkpoint.model)
    genes = np.array(checkpoint.genes)
    result = train(model, train_cells, val_cells, config, genes=genes, report_every=report_every)

    received = torch.bincount(train_cells.index.flatten(), minlength=model.n_perturbations + 1)[:-1].tolist()
    cells = dict(zip(checkpoint.perturbations, received, strict=True))
    earlier = facts.get("training_cells", {})
    cells = {name: max(n, earlier.get(name, 0)) for name, n in cells.items()}
    result = _after(result, history, steps, epochs)
    found = verdict(model, result, train_cells, val_cells, cells)
    for sentence in found.words():
        log.info("%s", sentence)
    if result.best_loss > facts.get("validation_loss", np.inf):
        log.warning(
            "the best validation loss of the new steps, %.3f, is above the earlier one, %.3f",
            result.best_loss, facts["validation_loss"],
        )  # fmt: skip
    changed = {
        "training": vars(config) | {"seed": before["seed"]},  # the seed also made the split
        "training_cells": cells,
        "best_step": result.best_step,
        "validation_loss": result.best_loss,
        "fit": found.as_dict(),
        "history": {name: [row[name] for row in result.history] for name in HISTORY},
    }
    return Checkpoint(model, checkpoint.genes, checkpoint.perturbations, facts | changed)


def _after(result: Trained, history: dict[str, list], steps: int, epochs: int) -> Trained:
    """The result with the earlier history before its own, whose steps and epochs go on counting."""
    earlier = [dict(zip(HISTORY, row, strict=True)) for row in zip(*(history[name] for name in HISTORY), strict=True)]
    own = [row | {"step": row["step"] + steps, "epoch": row["epoch"] + epochs} for row in result.history]
    return replace(result, history=earlier + own, best_step=result.best_step + steps)

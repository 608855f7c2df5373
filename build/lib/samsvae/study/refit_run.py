"""The second training of a run before a transfer (docs/model.md, stage 2), from files to files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from samsvae.config.training import TrainingConfig
from samsvae.data.arrays import Screen, read_screen, read_split
from samsvae.data.cells import Dosage, encode
from samsvae.errors import CheckpointError
from samsvae.study.records import write_run
from samsvae.study.train_run import part
from samsvae.training.checkpoint import Checkpoint, load
from samsvae.training.state import Keep
from samsvae.training.transfer import refit

log = logging.getLogger(__name__)


def refit_run(
    settings: Mapping[str, Any],
    model: str | Path,
    arrays: str | Path,
    split: str | Path,
    device: str,
    *,
    released: bool,
    epochs: int | None,
    out: Mapping[str, Path | str],
    keep: Keep | None = None,
) -> None:
    """Train a run again with fixed masks and write ``out``: model, history, run (as `train_run.fit`).

    ``settings``: of the run. ``model``: its checkpoint. ``released``: as in the authors' code. ``epochs``: default, as
    many as before. Errors as for `refit`.
    """
    screen = read_screen(arrays)
    parts = read_split(split, screen.cells)
    checkpoint = load(model, device)
    dosage = encode(screen, checkpoint.facts["encoding"])
    train_cells, val_cells = (part(screen, parts, name, dosage, device, split) for name in ("train", "val"))
    config = TrainingConfig(**checkpoint.facts["training"])
    config = config if epochs is None else replace(config, epochs=epochs)
    new = untrained_rows(screen, parts, dosage)
    how = "as released" if released else "ours"
    log.info("%s: trained again with fixed masks before the transfer (%s)", settings["run"], how)
    hard, result = refit(checkpoint.model, new, train_cells, val_cells, config, released=released, keep=keep)
    known = {name: fact for name, fact in checkpoint.facts.items() if name != "fit"}
    known |= {"best_step": result.best_step, "validation_loss": result.best_loss}
    write_run(settings, Checkpoint(hard, checkpoint.genes, checkpoint.perturbations, known), result, device, out)


def untrained_rows(screen: Screen, split: np.ndarray, dosage: Dosage) -> list[int]:
    """The perturbations of the model, as positions, that no cell of training or validation received."""
    seen = dosage.members[np.unique(screen.condition[np.isin(split, ("train", "val"))])]
    return sorted(set(range(len(dosage.names))) - set(seen.flatten().tolist()))


def check_untrained(checkpoint: Checkpoint, rows: list[int]) -> None:
    """CheckpointError if the training of a model received a perturbation that should be new to it."""
    received = checkpoint.facts.get("training_cells", {})
    names = [checkpoint.perturbations[row] for row in rows]
    if seen := {name: received[name] for name in names if received.get(name)}:
        name, number = next(iter(seen.items()))
        raise CheckpointError(
            f"{name!r} is not new to this model, which was trained on {number} of its cells"
            f"{f' (and on {len(seen) - 1} others)' if len(seen) > 1 else ''}. Train it on a split without them."
        )

"""Train one run of a grid, from files to files: read arrays and split, train, write checkpoint, history and record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from samsvae.config.first_fit import build_configs, by_size
from samsvae.data.arrays import Screen, read_screen, read_split
from samsvae.data.cells import Cells, Dosage, cells_of, encode
from samsvae.errors import DataError
from samsvae.models.model import Model
from samsvae.models.start import initialise
from samsvae.study.records import write_run
from samsvae.training.checkpoint import Checkpoint, facts, screen_facts
from samsvae.training.covariates import levels_in
from samsvae.training.loop import train
from samsvae.training.state import Keep
from samsvae.training.verdict import verdict

log = logging.getLogger(__name__)


def part(screen: Screen, split: np.ndarray, name: str, dosage: Dosage, device: str, path: Path | str) -> Cells:
    """The cells of one split on a device; DataError if the split table at ``path`` has none."""
    if not (split == name).any():
        raise DataError(f"{path}: no cell has the split {name!r}; training needs cells with 'train' and with 'val'.")
    return cells_of(screen, split == name, dosage, device)


def fit(
    settings: Mapping,
    arrays: Path | str,
    split: Path | str,
    device: str,
    *,
    out: Mapping[str, Path | str],
    keep: Keep | None = None,
) -> None:
    """Train one run and write ``out``: model (checkpoint), history (TSV), run (JSON: versions, device, time).

    ``keep``: where the state of the training is saved, so that an interrupted training resumes instead of starting
    over. DataError if the split has no training or no validation cells.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()  # else it would include earlier runs of this process
    screen = read_screen(arrays)
    parts = read_split(split, screen.cells)
    dosage = encode(screen, settings["encoding"])
    train_cells, val_cells = (part(screen, parts, name, dosage, device, split) for name in ("train", "val"))
    sizes = by_size(
        cells=len(train_cells),
        perturbations=len(dosage.names),
        counts_per_cell=train_cells.library.mean().item(),
        received=train_cells.received,
        batch_size=settings["training"]["batch_size"],
    )
    config, training = build_configs(settings["config"], settings["training"], sizes)
    names = screen_facts(screen, dosage, train_cells)
    sizes_of = len(screen.genes), len(dosage.names)
    model = Model(config, *sizes_of, levels=levels_in(names), seed=training.seed).to(device)
    initialise(model, train_cells, seed=training.seed, received=train_cells.received)
    n_parameters = sum(p.numel() for p in model.parameters())
    log.info(
        "%s: %d training and %d validation cells, %d genes, %d perturbations, %d parameters, on %s",
        settings["run"], len(train_cells), len(val_cells), len(screen.genes), len(dosage.names), n_parameters, device,
    )  # fmt: skip
    result = train(model, train_cells, val_cells, training, genes=screen.genes, keep=keep)
    used = dict(settings) | {"training": asdict(training)}
    found = verdict(model, result, train_cells, val_cells, names["training_cells"])
    for sentence in found.words():
        log.info("%s: %s", settings["run"], sentence)
    best = {"best_step": result.best_step, "validation_loss": result.best_loss, "kernel": result.kernel}
    known = facts(used, names, **best, fit=found.as_dict(), history=result.history)
    write_run(settings, Checkpoint(model, tuple(screen.genes.tolist()), dosage.names, known), result, device, out)

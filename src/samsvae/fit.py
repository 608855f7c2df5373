"""One run of a grid, from files to files: read the arrays and the split, train, write the checkpoint and history."""

from __future__ import annotations

import json
import logging
import platform
import time
from pathlib import Path

import numpy as np
import torch

import samsvae
from samsvae.checkpoint import Checkpoint, save
from samsvae.config import build
from samsvae.data.batch import Cells, Dosage, Screen, cells_of, encode, read_screen, read_split
from samsvae.errors import DataError
from samsvae.files import write_json, write_table
from samsvae.model import Model
from samsvae.settings import ModelConfig, TrainingConfig
from samsvae.training import train

log = logging.getLogger(__name__)


def part(screen: Screen, split: np.ndarray, name: str, dosage: Dosage, device: str) -> Cells:
    """The cells of one split on a device; DataError where it has none."""
    if not (split == name).any():
        raise DataError(f"The split has no {name!r} cells; needed are some for training and validation each.")
    return cells_of(screen, split == name, dosage, device)


def fit(settings: dict, arrays: Path | str, split: Path | str, device: str, *, out: dict[str, Path | str]) -> None:
    """Train one run and write ``out``: model (checkpoint), history (TSV), run (JSON: versions, device, time)."""
    screen = read_screen(arrays)
    parts = read_split(split, screen)
    dosage = encode(screen, settings["encoding"])
    training = build(TrainingConfig, settings["training"], "training")
    model = Model(
        build(ModelConfig, settings["config"], "model"), len(screen.genes), len(dosage.names), seed=training.seed
    ).to(device)
    train_cells, val_cells = (part(screen, parts, name, dosage, device) for name in ("train", "val"))
    model.fit_inputs(train_cells)
    n_parameters = sum(p.numel() for p in model.parameters())
    log.info(
        "%s: %d training and %d validation cells, %d genes, %d perturbations, %d parameters, on %s",
        settings["run"], len(train_cells), len(val_cells), len(screen.genes), len(dosage.names), n_parameters, device,
    )  # fmt: skip
    result = train(model, train_cells, val_cells, training, genes=screen.genes)
    facts = {key: settings[key] for key in ("run", "model", "encoding", "training")}
    facts |= {"best_step": result.best_step, "validation_loss": result.best_loss, "samsvae": samsvae.__version__}
    save(Checkpoint(model, tuple(screen.genes.tolist()), dosage.names, facts), out["model"])
    write_table([{"run": settings["run"], **row} for row in result.history], out["history"])
    write_json(_record(settings, result, device, n_parameters), out["run"])


def _record(settings: dict, result, device: str, n_parameters: int) -> dict:
    """What a run cost and what it ran on."""
    cuda = device.startswith("cuda")
    memory = torch.cuda.max_memory_allocated() if cuda else _peak_memory()
    return {
        **settings,
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "parameters": n_parameters,
        "peak_memory_mb": round(memory / 2**20, 1),
        "python": platform.python_version(),
        "samsvae": samsvae.__version__,
        "seconds": round(result.seconds, 3),
        "steps": result.steps,
        "steps_per_second": round(result.steps / max(result.seconds, 1e-9), 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _peak_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_record(path: Path | str) -> dict:
    """The record of a run as written by ``fit``."""
    return json.loads(Path(path).read_text())

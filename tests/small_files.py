"""A synthetic screen and a run of it as files, for tests from files to files; needs only numpy and torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
from small_model import SIZES

from samsvae.config.model import ModelConfig
from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import row
from samsvae.data.arrays import Screen

FAST = {"steps": 12, "batch_size": 32, "particles": 2, "validation_particles": 2, "learning_rate": 0.01}


def write_files(folder: Path, screen: Screen, split: np.ndarray | None = None) -> tuple[Path, Path]:
    """Write the arrays and split table of a screen; by default three of five cells are train, one val and one test."""
    if split is None:
        split = np.resize(["train", "train", "val", "train", "test"], len(screen.cells))
    np.savez(
        folder / "arrays.npz",
        **{name: getattr(screen, name) for name in Screen.__dataclass_fields__ if name != "covariates"},
    )
    lines = ["cell\tcondition\tsplit"]
    names = screen.conditions[screen.condition]
    lines += ["\t".join(row) for row in zip(screen.cells, names, split, strict=True)]
    (folder / "cells.tsv").write_text("\n".join(lines) + "\n")
    return folder / "arrays.npz", folder / "cells.tsv"


def settings(name: str = "sams_vae_corr", *, encoding: str = "sum", model=(), **training) -> dict:
    """The settings (``samsvae.config.grid.run_settings``) of a small, short run of a row of the zoo."""
    own = row(name)
    config = ModelConfig(**{**own.model, **SIZES, **dict(model)})
    train = TrainingConfig(**{**own.training, **FAST, **training})
    run = f"{name}-seed{train.seed}"
    return {"run": run, "model": name, "encoding": encoding, "config": asdict(config), "training": asdict(train)}


def outputs(folder: Path) -> dict[str, Path]:
    return {"model": folder / "model.pt", "history": folder / "history.tsv", "run": folder / "run.json"}

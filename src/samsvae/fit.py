"""One run of a grid, from files to files: read the arrays and the split, train, write the checkpoint and history."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import torch

import samsvae
from samsvae.checkpoint import Checkpoint, save
from samsvae.config import build
from samsvae.data.batch import Cells, Dosage, Screen, cells_of, encode, read_screen, read_split
from samsvae.errors import DataError
from samsvae.files import atomic, write_json, write_table
from samsvae.model import Model
from samsvae.settings import ModelConfig, TrainingConfig
from samsvae.training import Keep, Trained, train

log = logging.getLogger(__name__)


def part(screen: Screen, split: np.ndarray, name: str, dosage: Dosage, device: str, path: Path | str) -> Cells:
    """The cells of one split on a device; DataError where the table at ``path`` has none."""
    if not (split == name).any():
        raise DataError(f"{path}: no cell has the split {name!r}; training needs some 'train' and some 'val'.")
    return cells_of(screen, split == name, dosage, device)


def fit(
    settings: dict,
    arrays: Path | str,
    split: Path | str,
    device: str,
    *,
    out: dict[str, Path | str],
    code: str | None = None,
    keep_every: float = 300.0,
) -> None:
    """Train one run and write ``out``: model (checkpoint), history (TSV), run (JSON: versions, device, time).

    With ``code``, a digest of the training code, the files are kept in a hidden folder beside the model too, stamped
    with the code, the settings and the content of the inputs. A later job of equal stamp takes them from there: what
    follows the training can be done anew without it. The state of a training under way is kept in the same place every
    ``keep_every`` seconds and after a signal, so that an interrupted one goes on instead of beginning again.
    """
    files = {name: Path(out[name]) for name in ("model", "history", "run")}
    kept = files["model"].parent / ".trained"
    stamp = None if code is None else _stamp(code, settings, arrays, split, device)
    if stamp is not None and _stamped(kept, files) == stamp:
        log.info(
            "%s: trained before, by the same code on the same data; remove %s to train anew", settings["run"], kept
        )
        for name, path in files.items():
            _link(kept / f"{name}{path.suffix}", path)
        return
    keep = None if stamp is None else Keep(kept / "state.pt", stamp, keep_every)
    _fit(settings, arrays, split, device, files, keep)
    if stamp is not None:
        (kept / "stamp").unlink(missing_ok=True)  # from here to its return nothing is valid
        for name, path in files.items():
            _link(path, kept / f"{name}{path.suffix}")
        with atomic(kept / "stamp") as aside:
            aside.write_text(stamp)
        keep.drop()


def _fit(
    settings: dict, arrays: Path | str, split: Path | str, device: str, out: dict[str, Path], keep: Keep | None
) -> None:
    screen = read_screen(arrays)
    parts = read_split(split, screen.cells)
    dosage = encode(screen, settings["encoding"])
    training = build(TrainingConfig, settings["training"], "training")
    model = Model(
        build(ModelConfig, settings["config"], "model"), len(screen.genes), len(dosage.names), seed=training.seed
    ).to(device)
    train_cells, val_cells = (part(screen, parts, name, dosage, device, split) for name in ("train", "val"))
    model.fit_inputs(train_cells)
    n_parameters = sum(p.numel() for p in model.parameters())
    log.info(
        "%s: %d training and %d validation cells, %d genes, %d perturbations, %d parameters, on %s",
        settings["run"], len(train_cells), len(val_cells), len(screen.genes), len(dosage.names), n_parameters, device,
    )  # fmt: skip
    result = train(model, train_cells, val_cells, training, genes=screen.genes, keep=keep)
    facts = {key: settings[key] for key in ("run", "model", "encoding", "training")}
    facts |= {"best_step": result.best_step, "validation_loss": result.best_loss, "samsvae": samsvae.__version__}
    save(Checkpoint(model, tuple(screen.genes.tolist()), dosage.names, facts), out["model"])
    write_table([{"run": settings["run"], **row} for row in result.history], out["history"])
    write_json(record(settings, result, device, n_parameters), out["run"])


def _stamp(code: str, settings: dict, arrays: Path | str, split: Path | str, device: str) -> str:
    """What a training depends on, as one digest."""
    digest = hashlib.sha256(json.dumps([code, settings, device, torch.__version__], sort_keys=True).encode())
    for path in (arrays, split):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _stamped(kept: Path, files: dict[str, Path]) -> str | None:
    """The stamp of the files that are kept, if all of them are there."""
    whole = all((kept / f"{name}{path.suffix}").is_file() for name, path in files.items())
    return (kept / "stamp").read_text() if whole and (kept / "stamp").is_file() else None


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, at no cost of space; a copy where links are not to be had."""
    with atomic(target) as aside:
        try:
            os.link(source, aside)
        except OSError:
            shutil.copyfile(source, aside)


def record(settings: dict, result: Trained, device: str, n_parameters: int) -> dict:
    """What a run cost and what it ran on."""
    cuda = device.startswith("cuda")
    memory = torch.cuda.max_memory_allocated() if cuda else _peak_memory()
    return {
        **settings,
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "parameters": n_parameters,
        "peak_memory_mb": round(memory / 2**20, 1),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "samsvae": samsvae.__version__,
        "seconds": round(result.seconds, 3),
        "steps": result.steps,
        "steps_per_second": round(result.steps / max(result.seconds, 1e-9), 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _commit() -> str | None:
    """The commit of the checkout that the package lies in, with '-dirty' after an edit; None outside of one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git here: a record without it is still a record
        return None
    return done.stdout.strip() or None


def _peak_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

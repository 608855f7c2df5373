"""Weights in a file that carries what is needed to use them: configuration, genes, perturbations, encoding."""

from __future__ import annotations

import dataclasses
import io
import logging
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import samsvae
from samsvae.config.model import ModelConfig
from samsvae.config.validate import build
from samsvae.data.arrays import Screen
from samsvae.data.cells import Cells, Dosage
from samsvae.errors import CheckpointError, SamsvaeError, some
from samsvae.files import atomic
from samsvae.models.model import Model
from samsvae.ops.device import usable

log = logging.getLogger(__name__)

FORMAT = 1

#: The keys of a row of a training's history: steps and epochs done, mean loss of the epoch's batches, validation loss.
HISTORY = ("step", "epoch", "train_loss", "val_loss")


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with the names of its genes (G) and perturbations (T), and how it came about.

    ``facts``: row, encoding, best step and validation loss, training settings, how labels are read and how many
    training cells received each perturbation (``screen_facts``); plain values. Files of before lack some of them.
    """

    model: Model
    genes: tuple[str, ...]
    perturbations: tuple[str, ...]
    facts: dict

    @property
    def untrained(self) -> tuple[str, ...]:
        """The perturbations that no training cell received; () where the file does not say."""
        return tuple(name for name, n in self.facts.get("training_cells", {}).items() if n == 0)


def label_facts(screen: Screen) -> dict:
    """How a checkpoint reads the labels of its screen: ``control``, ``controls`` and ``separator``."""
    control = screen.controls[0] if screen.controls else ""
    return {"control": control, "controls": list(screen.controls), "separator": screen.separator}


def screen_facts(screen: Screen, dosage: Dosage, train_cells: Cells) -> dict:
    """What a checkpoint knows of its screen; the log warns of perturbations that no training cell received.

    Beside ``label_facts``, ``training_cells``: how many training cells received each perturbation of the model.
    """
    each = torch.bincount(train_cells.index.flatten(), minlength=len(dosage.names) + 1)[:-1].tolist()
    cells = dict(zip(dosage.names, each, strict=True))
    if never := [name for name, n in cells.items() if n == 0]:
        log.warning("no training cell received %s, whose effects the model cannot learn", some(never))
    return label_facts(screen) | {"training_cells": cells}


def facts(
    settings: Mapping[str, Any],
    screen: Mapping[str, Any],
    *,
    checkpoint: str | None = None,
    best_step: int | None = None,
    validation_loss: float | None = None,
) -> dict[str, Any]:
    """The facts of a `Checkpoint`; keys that are not given are left out.

    ``run``, ``model`` (row of the zoo), ``encoding`` and ``training`` (a TrainingConfig as a dict) come from
    ``settings``, which may have more keys. ``screen``: ``screen_facts`` or ``label_facts``. A training adds its
    ``best_step``, ``validation_loss`` and the version, ``samsvae``. Imported weights add ``checkpoint``, the name of
    their file.
    """
    found = {key: settings[key] for key in ("run", "model", "encoding", "training") if key in settings} | dict(screen)
    version = None if best_step is None else samsvae.__version__
    more = {"checkpoint": checkpoint, "best_step": best_step, "validation_loss": validation_loss, "samsvae": version}
    return found | {key: value for key, value in more.items() if value is not None}


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint: the same weights and facts give the same bytes."""
    content = {
        "format": FORMAT,
        "config": dataclasses.asdict(checkpoint.model.config),
        "genes": list(checkpoint.genes),
        "perturbations": list(checkpoint.perturbations),
        "facts": checkpoint.facts,
        "weights": {key: value.detach().cpu().contiguous() for key, value in checkpoint.model.state_dict().items()},
    }
    memory = io.BytesIO()  # torch writes the file's name into the archive: that of the temporary file must not be
    torch.save(_interned(content), memory)
    with atomic(path) as aside:
        aside.write_bytes(memory.getvalue())


def _interned(value: Any) -> Any:
    """The same value with equal texts as one object: a pickle tells apart what is equal from what is the same."""
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, dict):
        return {_interned(key): _interned(item) for key, item in value.items()}
    return type(value)(map(_interned, value)) if isinstance(value, list | tuple) else value


def read(
    path: str | Path, device: torch.device | str = "cpu", *, stand_in: Callable[[str], type | None] = lambda name: None
) -> dict:
    """The content of a file that torch has saved, without running any code from it; CheckpointError if damaged.

    ``stand_in``: for a class that the file names and that torch does not read by itself, by its full name, the class
    that is made in its place; None refuses the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the sums of what it reads
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("its parts are compressed, which torch does not do")
            if broken := archive.testzip():
                raise ValueError(f"in its part {broken!r}")
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        found = {name: stand_in(name) for name in names}
        if refused := sorted(name for name, cls in found.items() if cls is None):
            raise ValueError(f"it refers to {some(refused)}, which is not loaded for safety")
        with torch.serialization.safe_globals([(cls, name) for name, cls in found.items() if cls is not None]):
            content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except Exception as error:  # torch raises many kinds on a damaged or foreign file
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise CheckpointError(f"{path}: not a checkpoint, or damaged ({reason}).") from None
    if type(content) is not dict:
        raise CheckpointError(f"{path}: format {type(content).__name__!r} is not known. Allowed: {FORMAT}.")
    return content


def load(path: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint without running any code from it; CheckpointError where it is damaged or not of ours.

    ConfigError where ``device`` is none that torch can use here.
    """
    device = usable(device)
    content = read(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {content.get('format')!r} is not known. Allowed: {FORMAT}.")
    try:
        config = build(ModelConfig, content["config"], str(path))
        genes, perturbations, facts = tuple(content["genes"]), tuple(content["perturbations"]), content["facts"]
        model = Model(config, len(genes), len(perturbations))
        model.load_state_dict(content["weights"])
    except (KeyError, TypeError, RuntimeError, SamsvaeError) as error:
        raise CheckpointError(f"{path}: the weights do not fit their configuration ({error}).") from None
    return Checkpoint(model.to(device).eval(), genes, perturbations, facts)

"""Checkpoints: weights with everything needed to use them (configuration, genes, perturbations, encoding)."""

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

import numpy as np
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
    """A trained model, the names of its genes (G) and perturbations (T), and facts about its training.

    ``facts``: plain values with the row, the encoding, the best step and its validation loss, the training settings,
    how labels are read, and how many training cells received each perturbation (``screen_facts``). Older files lack
    some of them.
    """

    model: Model
    genes: tuple[str, ...]
    perturbations: tuple[str, ...]
    facts: dict

    @property
    def untrained(self) -> tuple[str, ...]:
        """The perturbations that no training cell received; () if the file has no such record."""
        return tuple(name for name, n in self.facts.get("training_cells", {}).items() if n == 0)

    def tables(self) -> dict[str, torch.Tensor]:
        """``Model.perturbation_tables`` (T, L), with NaN for the perturbations that no training cell received."""
        empty = [self.perturbations.index(name) for name in self.untrained]
        tables = {name: table.clone() for name, table in self.model.perturbation_tables().items()}
        for table in tables.values():
            table[empty] = torch.nan
        return tables


def label_facts(screen: Screen) -> dict:
    """How the labels of a screen are read (``control``, ``controls``, ``separator``), and its median ``library``."""
    control = screen.controls[0] if screen.controls else ""
    read_as = {"control": control, "controls": list(screen.controls), "separator": screen.separator}
    return read_as | {"library": float(np.median(screen.library))}


def screen_facts(screen: Screen, dosage: Dosage, train_cells: Cells) -> dict:
    """The facts of a checkpoint about its screen: ``label_facts`` and ``training_cells``.

    ``training_cells``: how many training cells received each perturbation of the model. A warning is logged if there
    are perturbations without training cells.
    """
    each = torch.bincount(train_cells.index.flatten(), minlength=len(dosage.names) + 1)[:-1].tolist()
    cells = dict(zip(dosage.names, each, strict=True))
    if never := [name for name, n in cells.items() if n == 0]:
        log.warning("no training cell received %s, so the model cannot learn their effects", some(never))
    return label_facts(screen) | {"training_cells": cells}


def facts(
    settings: Mapping[str, Any],
    screen: Mapping[str, Any],
    *,
    checkpoint: str | None = None,
    best_step: int | None = None,
    validation_loss: float | None = None,
    fit: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The facts of a `Checkpoint`; keys that are not given are left out.

    ``run``, ``model`` (row of the zoo), ``encoding`` and ``training`` (a TrainingConfig as a dict) come from
    ``settings``, which may have more keys. ``screen``: ``screen_facts`` or ``label_facts``. A training adds its
    ``best_step``, ``validation_loss``, how the ``fit`` went (``training.verdict``) and the version, ``samsvae``.
    Imported weights add ``checkpoint``, the name of their file.
    """
    found = {key: settings[key] for key in ("run", "model", "encoding", "training") if key in settings} | dict(screen)
    version = None if best_step is None else samsvae.__version__
    more: dict[str, Any] = {"checkpoint": checkpoint, "best_step": best_step, "validation_loss": validation_loss}
    more |= {"fit": None if fit is None else dict(fit), "samsvae": version}
    return found | {key: value for key, value in more.items() if value is not None}


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint. The same weights and facts give the same bytes."""
    content = {
        "format": FORMAT,
        "config": dataclasses.asdict(checkpoint.model.config),
        "genes": list(checkpoint.genes),
        "perturbations": list(checkpoint.perturbations),
        "facts": checkpoint.facts,
        "weights": {key: value.detach().cpu().contiguous() for key, value in checkpoint.model.state_dict().items()},
    }
    memory = io.BytesIO()  # torch would write the name of the temporary file into the archive
    torch.save(_intern(content), memory)
    with atomic(path) as aside:
        aside.write_bytes(memory.getvalue())


def _intern(value: Any) -> Any:
    """The same value with equal strings as one object, since a pickle depends on the identity of objects."""
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, dict):
        return {_intern(key): _intern(item) for key, item in value.items()}
    return type(value)(map(_intern, value)) if isinstance(value, list | tuple) else value


def read(
    path: str | Path, device: torch.device | str = "cpu", *, stand_in: Callable[[str], type | None] = lambda name: None
) -> dict:
    """Read a file saved by torch without running any code from it; CheckpointError if it is damaged.

    ``stand_in``: maps the full name of a class in the file that torch does not load by itself to the class used in its
    place; None rejects the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not verify checksums
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it has compressed parts, which torch never writes")
            if broken := archive.testzip():
                raise ValueError(f"wrong checksum of its part {broken!r}")
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        classes = {name: stand_in(name) for name in names}
        if rejected := sorted(name for name, cls in classes.items() if cls is None):
            raise ValueError(f"it refers to code that is not allowed: {some(rejected)}")
        with torch.serialization.safe_globals([(cls, name) for name, cls in classes.items() if cls is not None]):
            content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except Exception as error:  # torch raises many types of errors for a damaged or foreign file
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise CheckpointError(f"{path}: not a checkpoint, or damaged ({reason}).") from None
    if type(content) is not dict:
        raise CheckpointError(f"{path}: format {type(content).__name__!r} is not known. Allowed: {FORMAT}.")
    return content


def load(path: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint without running any code from it.

    CheckpointError if the file is damaged or is not a checkpoint of this package; ConfigError if torch cannot use
    ``device``.
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

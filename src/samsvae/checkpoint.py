"""Weights in a file that carries what is needed to use them: configuration, genes, perturbations, encoding."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path

import torch

from samsvae.config import build
from samsvae.errors import CheckpointError, SamsvaeError
from samsvae.files import atomic
from samsvae.model import Model
from samsvae.settings import ModelConfig

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with the names of its genes (G) and perturbations (T), and how it came about.

    ``facts``: row, encoding, best step and validation loss, training settings; plain values.
    """

    model: Model
    genes: tuple[str, ...]
    perturbations: tuple[str, ...]
    facts: dict


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
    torch.save(content, memory)
    with atomic(path) as aside:
        aside.write_bytes(memory.getvalue())


def load(path: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint without running any code from it; CheckpointError where it is damaged or not of ours."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except Exception as error:  # torch raises many kinds on a damaged or foreign file
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: not a checkpoint of samsvae, or damaged ({reason}).") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: format {found!r} is not known. Allowed: {FORMAT}.")
    try:
        config = build(ModelConfig, content["config"], str(path))
        genes, perturbations = tuple(content["genes"]), tuple(content["perturbations"])
        model = Model(config, len(genes), len(perturbations))
        model.load_state_dict(content["weights"])
    except (KeyError, TypeError, RuntimeError, SamsvaeError) as error:
        raise CheckpointError(f"{path}: the weights do not fit their configuration ({error}).") from None
    return Checkpoint(model.to(device).eval(), genes, perturbations, content["facts"])

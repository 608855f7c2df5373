"""Defaults for a screen of your own (``kind: custom`` and ``samsvae.fit``), under which a first fit needs no tuning.

The papers' settings are the defaults of all other screens. Whatever a row of the zoo or a person sets is used instead.
docs/own-data.md states the rules and what they were measured on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from samsvae.config.model import ModelConfig
from samsvae.config.training import TrainingConfig
from samsvae.config.validate import build

log = logging.getLogger(__name__)

#: Settings that do not depend on the screen. START replaces the start of a row of the zoo, too.
MODEL: dict[str, Any] = {"mask_prior": 0.05}
START: dict[str, Any] = {"start": "data"}
TRAINING: dict[str, Any] = {
    "steps": 10_000,
    "batch_size": 256,
    "rate_mask": 0.05,
    "rate_embedding": 0.03,
    "particles": 3,
    "validation_particles": 3,
}

#: Settings that `by_size` chooses when the training cells are known, with typical values, used to estimate times.
MODEL_BY_SIZE = {"n_latent": 30, "width": 128, "embedding_width": 128}
TRAINING_BY_SIZE = {"learning_rate": 3e-3, "validation_every": 1, "patience": 10}
TYPICAL: dict[str, int | float] = MODEL_BY_SIZE | TRAINING_BY_SIZE

#: Stands for the value of such a setting in the settings of a run.
AUTO = "auto"

#: Most genes that ``genes: auto`` keeps.
GENES = 5_000

#: The default model of ``samsvae.fit``, and that of a screen without a control. The embeddings of the first come from a
#: network, which learns slowly to tell apart what is added up in each cell.
DEFAULT, WITHOUT_CONTROL = "sams_vae_corr", "sams_vae_corr_z"

#: Average number of perturbations in a cell above which a fit starts where effects add up (`models.start`).
SEVERAL = 2.0

#: Steps between two validations, and steps without a better validation after which a training stops; rounded up to
#: epochs.
VALIDATE, PATIENCE = 50, 600


def validation_share(compared: bool) -> float:
    """The share of cells that a fit in Python keeps for validation; fewer if cells are not ``compared`` with controls.

    Then every cell informs about all of its perturbations, and a regression, which needs no validation, uses them all.
    """
    return 0.2 if compared else 0.1


def by_size(
    *, cells: int, perturbations: int, counts_per_cell: float, batch_size: int, received: float = 1.0
) -> dict[str, int | float]:
    """The settings that depend on the size of the training cells.

    Networks have 64 units below a million counts in all training cells, 128 below a hundred million, else 256. There
    are 30 latents below 200 perturbations, else 100; if cells ``received`` more than SEVERAL perturbations on average,
    there are at least 1.5 times as many as perturbations, up to 200, since effects must not share latents by chance,
    and the learning rate of networks is a third, since every cell informs about many effects, so that the noise of the
    last steps, not that of the cells, would limit their precision.
    ``validation_every`` and ``patience`` are in epochs.
    """
    counts = cells * counts_per_cell
    width = 64 if counts < 1e6 else 128 if counts < 1e8 else 256
    steps = math.ceil(cells / batch_size)  # of an epoch
    every = math.ceil(VALIDATE / steps)
    latents = 30 if perturbations < 200 else 100
    if received > SEVERAL:
        latents = max(latents, min(math.ceil(1.5 * perturbations), 200))
    return {
        "n_latent": latents,
        "width": width,
        "embedding_width": width,
        "learning_rate": 1e-3 if received > SEVERAL else 3e-3,
        "validation_every": every,
        "patience": every * math.ceil(PATIENCE / (every * steps)),
    }


def build_configs(
    model: Mapping[str, Any], training: Mapping[str, Any], sizes: Mapping[str, int | float] | None = None
) -> tuple[ModelConfig, TrainingConfig]:
    """The settings of a run. Those that are 'auto' are taken from ``sizes`` (`by_size`), or are typical ones.

    ConfigError if a value is not allowed.
    """
    known = TYPICAL if sizes is None else sizes
    auto = [
        {name: known[name] for name, value in settings.items() if value == AUTO and name in known}
        for settings in (model, training)
    ]
    if sizes is not None and any(auto):
        chosen = ", ".join(f"{name} {value}" for found in auto for name, value in found.items())
        log.info("chosen by the size of the training cells: %s", chosen)
    return build(ModelConfig, {**model, **auto[0]}, "model"), build(TrainingConfig, {**training, **auto[1]}, "training")

"""The settings of a training: plain, validated values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from samsvae.config.validate import at_least
from samsvae.errors import ConfigError


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; the defaults are those of the SAMS-VAE paper."""

    steps: int = 150_000
    epochs: int | None = None
    batch_size: int = 512
    last_batch: Literal["keep", "drop"] = "keep"
    drop_below: int | None = None
    learning_rate: float = 3e-4
    rate_mask: float | None = None
    rate_embedding: float | None = None
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    weight_decay: float = 1e-6
    weight_decay_on: Literal["all", "networks"] = "all"
    gradient_clip: float | None = None
    particles: int = 5
    validation_particles: int = 5
    validation_every: int = 1
    validation_terms: Literal["all", "cells"] = "all"
    objective: Literal["elbo", "iwelbo"] = "elbo"
    analytic_kl: bool = False
    kl_weight: float = 1.0
    warmup_epochs: int = 0
    weight_z: float = 1.0
    weight_embedding: float = 1.0
    weight_mask: float = 1.0
    weight_mask_prob: float = 1.0
    extra_share: float = 0.0
    mask_penalty: float = 0.0
    plate: Literal["epoch", "every_step"] = "epoch"
    loss_scale: Literal["one", "n_cells"] = "one"
    patience: int | None = None
    keep_weights: Literal["best", "last"] = "best"
    precision: Literal["float32", "tf32", "bf16"] = "tf32"
    kernel: Literal["auto", "plain", "compiled"] = "auto"
    capture: Literal["auto", "never"] = "auto"
    compile: bool = False
    seed: int = 0

    def cells_per_epoch(self, n: int) -> int:
        """How many of n training cells an epoch uses: all, or those before a last batch that is left out.

        With ``last_batch: drop`` a last batch that is not full is left out if it has fewer than ``drop_below`` cells
        (default: always). If all cells fit into one batch, that batch is the epoch and is used.
        """
        size = min(self.batch_size, n)
        last = n % size
        return n - last if self.last_batch == "drop" and last < (self.drop_below or size) else n

    def in_validation(self) -> TrainingConfig:
        """The settings with the weights that terms have in a validation loss.

        With ``validation_terms: cells`` only the reconstruction and the term of the cells' state are left, each with
        weight 1, so that validation losses do not depend on a penalty or a prior.
        """
        if self.validation_terms == "all":
            return self
        one = replace(self, kl_weight=1.0, weight_z=1.0)
        return replace(one, weight_embedding=0.0, weight_mask=0.0, weight_mask_prob=0.0, mask_penalty=0.0)

    def __post_init__(self):
        at_least(1, self, "steps", "batch_size", "particles", "validation_particles", "validation_every")
        at_least(1, self, "epochs", "patience")
        self._check_last_batch()
        if self.objective == "iwelbo" and self.analytic_kl:
            raise ConfigError("analytic_kl: true is not allowed with objective: iwelbo, which weights single draws.")
        if self.extra_share and self.plate == "every_step":
            raise ConfigError("extra_share: needs plate: epoch; with plate: every_step every cell has the weight 1/n.")
        for name in ("learning_rate", "adam_eps", "rate_mask", "rate_embedding", "gradient_clip"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise ConfigError(f"{name}: {value} is not allowed; it must be above 0.")
        weights = ("kl_weight", "weight_z", "weight_embedding", "weight_mask", "weight_mask_prob", "extra_share")
        at_least(0, self, "seed", "warmup_epochs")
        for name in (*weights, "weight_decay", "mask_penalty"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: {getattr(self, name)} is not allowed; it must be 0 or more.")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}: {getattr(self, name)} is not allowed; it must lie in [0, 1).")

    def _check_last_batch(self) -> None:
        least, most = self.drop_below, self.batch_size
        if least is None:
            return
        if self.last_batch != "drop":
            raise ConfigError("drop_below: needs last_batch: drop; with last_batch: keep no cell is left out.")
        if not 2 <= least <= most:
            raise ConfigError(f"drop_below: {least} is not allowed; it must lie in [2, batch_size = {most}].")

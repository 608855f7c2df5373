"""The settings of a model: plain, validated values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from samsvae.config.validate import at_least
from samsvae.config.vocabulary import FLOOR, MASKED
from samsvae.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """The four switches of the model family and the sizes; the defaults are those of the SAMS-VAE paper."""

    embedding: Literal["none", "random", "learned"] = "random"
    mask: Literal["none", "ones", "fixed", "bernoulli", "beta_bernoulli"] = "bernoulli"
    effect: Literal["none", "additive", "prior_mean", "decoder_input"] = "additive"
    guide_embedding: Literal["mean_field", "given_mask"] = "mean_field"
    encoder_reads: Literal["x", "x_offset", "x_dosage"] = "x"
    likelihood: Literal["nb", "normal", "normal_fixed", "poisson"] = "nb"
    mean_floor: float = FLOOR
    n_latent: int = 100
    n_layers: int = 1
    width: int = 400
    embedding_layers: int = 2
    embedding_width: int = 200
    mask_prior: float = 0.01
    embedding_scale: float = 1.0
    beta_a: float = 1.0
    beta_b: float = 2.0
    guide_mask_prob: Literal["point", "beta"] = "point"
    temperature: float = 1.0
    mask_logit_init: float = 0.0
    embedding_init: float = 0.1
    mask_per_cell: bool = False
    input: Literal["log_standardise", "standardise", "log", "none"] = "log_standardise"
    start: Literal["published", "data", "random"] = "published"
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    residual: bool = True
    batch_norm: bool = False
    dropout: float = 0.0
    covariate_effect: Literal["additive", "interacting", "none"] = "additive"

    def __post_init__(self):
        at_least(1, self, "n_latent", "n_layers", "width", "embedding_layers", "embedding_width")
        at_least(0, self, "embedding_init")
        for name in ("mean_floor", "embedding_scale", "beta_a", "beta_b", "temperature"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: {getattr(self, name)} is not allowed; it must be above 0.")
        if not 0.0 < self.mask_prior < 1.0:
            raise ConfigError(f"mask_prior: {self.mask_prior} is not allowed; it must lie inside (0, 1).")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout: {self.dropout} is not allowed; it must lie in [0, 1).")
        masked = self.mask in MASKED
        if self.mask_per_cell and self.mask != "beta_bernoulli":
            raise ConfigError(f"mask_per_cell: needs mask: beta_bernoulli, but the mask is {self.mask!r}.")
        if self.guide_mask_prob == "beta" and self.mask != "beta_bernoulli":
            raise ConfigError(f"guide_mask_prob: 'beta' needs mask: beta_bernoulli, but the mask is {self.mask!r}.")
        if self.guide_embedding == "given_mask" and not (masked and self.embedding == "random"):
            raise ConfigError(
                "guide_embedding: 'given_mask' needs embedding: random and mask: bernoulli or beta_bernoulli."
            )
        if self.guide_embedding == "given_mask" and self.mask_per_cell:
            raise ConfigError(
                "mask_per_cell: needs guide_embedding: mean_field, because 'given_mask' reads one mask for all cells."
            )
        if self.effect in ("additive", "prior_mean") and self.embedding == "none":
            raise ConfigError(f"effect: {self.effect!r} needs an embedding, but embedding is 'none'.")
        if self.effect in ("none", "decoder_input") and self.embedding != "none":
            raise ConfigError(
                f"embedding: {self.embedding!r} is not allowed with effect: {self.effect!r}; it must be 'none'."
            )
        if self.encoder_reads == "x_offset" and self.embedding == "none":
            raise ConfigError("encoder_reads: 'x_offset' needs an embedding, but embedding is 'none'.")

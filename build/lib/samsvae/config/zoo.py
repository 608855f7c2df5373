"""The table of models: one row of data per published method, no classes.

A row sets the switches of ``ModelConfig`` and, if its paper trains differently, of ``TrainingConfig``. Sizes and priors
are left to the experiment. Rows and their order follow Table 1 of the SAMS-VAE paper.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from samsvae.errors import ConfigError, nearest, quoted


@dataclass(frozen=True)
class Row:
    """A published method with one kind of inference: its names in the tables and its settings."""

    method: str
    inference: str
    model: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)


_CPA = {"mask": "ones"}

_SVAE_PLUS = {"embedding": "learned", "mask": "beta_bernoulli", "effect": "prior_mean"}

#: Networks and training of the SVAE+ paper, shared by the methods that it compares.
_LOPEZ_MODEL = {
    "n_layers": 2,
    "width": 128,
    "input": "log",
    "activation": "relu",
    "residual": False,
    "batch_norm": True,
    "dropout": 0.1,
    "embedding_init": 1.0,
    "mask_logit_init": 5.0,
    "start": "random",
    "mean_floor": 1e-8,
}

_LOPEZ_TRAINING = {
    "batch_size": 128,
    "particles": 1,
    "validation_particles": 1,
    "analytic_kl": True,
    "warmup_epochs": 50,
    "validation_terms": "cells",
    "learning_rate": 1e-3,
    "adam_eps": 0.01,
    "patience": 45,
    "last_batch": "drop",
    "drop_below": 3,
}

_NO_EFFECT = {"embedding": "none", "mask": "none", "effect": "none"}

_MASKED = {**_SVAE_PLUS, "mask_per_cell": True}

#: A flat prior of mask probabilities: sparsity comes from a penalty alone, or from nothing.
_FLAT = {"beta_a": 1.0, "beta_b": 1.0}


#: The inference of the methods of the SVAE+ paper, as it is called in tables.
_OF_LOPEZ = "SVAE+ paper"


def _lopez(name: str, model: dict, **training) -> Row:
    return Row(name, _OF_LOPEZ, {**_LOPEZ_MODEL, **model}, {**_LOPEZ_TRAINING, **training})


ROWS: dict[str, Row] = {
    "cond_vae": Row(
        "Conditional VAE",
        "amortized MF",
        {"embedding": "none", "mask": "none", "effect": "decoder_input", "encoder_reads": "x_dosage"},
    ),
    "svae_plus": Row("SVAE+", "amortized MF", _SVAE_PLUS),
    "cpa_vae_mf": Row("CPA-VAE", "amortized MF", _CPA),
    "cpa_vae_corr": Row("CPA-VAE", "corr. z_basal", {**_CPA, "encoder_reads": "x_offset"}),
    "sams_vae_mf": Row("SAMS-VAE", "amortized MF"),
    "sams_vae_corr_e": Row("SAMS-VAE", "corr. E", {"guide_embedding": "given_mask"}),
    "sams_vae_corr_z": Row("SAMS-VAE", "corr. z_basal", {"encoder_reads": "x_offset"}),
    "sams_vae_corr": Row(
        "SAMS-VAE", "corr. z_basal and E", {"guide_embedding": "given_mask", "encoder_reads": "x_offset"}
    ),
    "sams_vae_bb": Row(
        "SAMS-VAE Beta-Bernoulli",
        "corr. z_basal and E",
        {"mask": "beta_bernoulli", "guide_embedding": "given_mask", "encoder_reads": "x_offset"},
    ),
    "vae": _lopez("VAE", _NO_EFFECT),
    "beta_vae": _lopez("beta-VAE", _NO_EFFECT, kl_weight=2.0),
    "ivae": _lopez("iVAE", {"embedding": "learned", "mask": "ones", "effect": "prior_mean"}),
    "ivae_drawn": _lopez("iVAE, drawn mask", {**_MASKED, **_FLAT}),
    "svae": _lopez("sVAE", {**_MASKED, **_FLAT}, mask_penalty=100.0),
    "svae_plus_lopez": _lopez("SVAE+ (Lopez)", {**_MASKED, "beta_b": 10.0}, plate="every_step", loss_scale="n_cells"),
}

#: The eight rows of Table 1 of the SAMS-VAE paper, in its order.
TABLE_1 = tuple(list(ROWS)[:8])


def row(name: str) -> Row:
    """The row with this name; ConfigError suggests the closest name if there is none."""
    if not isinstance(name, str) or name not in ROWS:
        raise ConfigError(f"model: {quoted(name)} is not a known model.{nearest(name, ROWS)}")
    return ROWS[name]


def has_release(name: str) -> bool:
    """Whether a row is a method of the SVAE+ paper, whose authors released code for a transfer to new perturbations."""
    return row(name).inference == _OF_LOPEZ

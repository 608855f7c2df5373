"""The golden files of the SAMS-VAE reference as inputs of our model (names and shapes: their README)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from samsvae.data.batch import Batch
from samsvae.model import Model
from samsvae.networks import OneHot
from samsvae.settings import ModelConfig
from samsvae.zoo import row

ROW = {
    "cond_vae": "cond_vae",
    "svae_plus": "svae_plus",
    "cpa_mf": "cpa_vae_mf",
    "cpa_corr": "cpa_vae_corr",
    "sams_mf": "sams_vae_mf",
    "sams_corrE": "sams_vae_corr_e",
    "sams_corrz": "sams_vae_corr_z",
    "sams_corr": "sams_vae_corr",
}
LATENT = {"E": "embedding"}
LIKELIHOOD = {"normal": "normal", "normal_fixed_variance": "normal_fixed", "poisson": "poisson"}

#: (pattern of the reference's parameter, ours); {z} is z or z_basal
PARAMETERS = [
    (r"model\.decoder\.log_concentration", "likelihood.log_concentration"),
    (r"model\.decoder\.mlp\.layers\.(\d+)\.0\.(weight|bias)", r"decoder.layers.\1.\2"),
    (r"model\.decoder\.normalized_mean_decoder\.0\.(weight|bias)", r"likelihood.mean.\1"),
    (r"model\.decoder\.(?:mean_encoder|rate_decoder\.0)\.(weight|bias)", r"likelihood.mean.\1"),
    (r"model\.decoder\.log_var_encoder\.log_var", "likelihood.log_var"),
    (r"model\.decoder\.log_var_encoder\.(weight|bias)", r"likelihood.log_var.\1"),
    (r"model\.action_prior_mean", "latents.{embedding}.loc"),
    (r"guide\.param_dict\.q_mask_logits", "latents.{mask}.logits"),
    (r"guide\.param_dict\.q_E_loc", "latents.{embedding}.loc"),
    (r"guide\.param_dict\.q_E_log_scale", "latents.{embedding}.log_scale"),
    (
        r"guide\.embedding_encoder\.mlp\.layers\.(\d+)\.0\.(weight|bias)",
        r"latents.{embedding}.network.layers.\1.\2",
    ),
    (r"guide\.embedding_encoder\.mean_encoder\.(weight|bias)", r"latents.{embedding}.head.mean.\1"),
    (r"guide\.embedding_encoder\.log_var_encoder\.(weight|bias)", r"latents.{embedding}.head.log_var.\1"),
    (
        r"guide\.z(?:_basal)?_encoder\.mlp\.layers\.(\d+)\.0\.(weight|bias)",
        r"latents.{z}.network.layers.\1.\2",
    ),
    (r"guide\.z(?:_basal)?_encoder\.mean_encoder\.(weight|bias)", r"latents.{z}.head.mean.\1"),
    (r"guide\.z(?:_basal)?_encoder\.log_var_encoder\.(weight|bias)", r"latents.{z}.head.log_var.\1"),
    (r"guide\.normalization_module\.(?:log_)?mean", "input_mean"),
    (r"guide\.normalization_module\.(?:log_)?scale", "input_sd"),
]


def _positions(model: Model) -> dict[str, int]:
    at = {latent.name: i for i, latent in enumerate(model.latents)}
    return {"embedding": at.get("embedding"), "mask": at.get("mask_prob", at.get("mask")), "z": len(at) - 1}


def our_name(name: str, model: Model) -> str | None:
    for pattern, ours in PARAMETERS:
        match = re.fullmatch(pattern, name)
        if match:
            return re.sub(r"\{(\w+)\}", lambda m: str(_positions(model)[m[1]]), match.expand(ours))
    return None


class Golden:
    """A golden file: the model with its weights, the batch, the noise by our latents' names, and the arrays."""

    def __init__(self, path: Path):
        self.arrays = dict(np.load(path))
        name, depth = path.stem.rsplit("_L", 1)
        extra = name.removeprefix("extra_sams_corr_") if name.startswith("extra_") else None
        self.row = "sams_vae_corr" if extra else ROW[name]
        x, dose = self.tensor("in/X"), self.tensor("in/D")
        sizes = {
            "n_latent": next(v.shape[-1] for k, v in self.arrays.items() if k.startswith("sample/z")),
            "n_layers": int(depth),
            "width": self.arrays["param/model.decoder.mlp.layers.0.0.weight"].shape[0],
            "embedding_layers": 2,
            "embedding_width": 16,
            "mask_prior": float(self.arrays["in/mask_prior_prob"]),
            "beta_a": float(self.arrays["in/mask_beta_concentration"][0]),
            "beta_b": float(self.arrays["in/mask_beta_concentration"][1]),
            "likelihood": LIKELIHOOD[extra] if extra else "nb",
            "input": "standardise" if extra and extra.startswith("normal") else "log_standardise",
        }
        self.model = Model(ModelConfig(**row(self.row).model, **sizes), x.shape[1], dose.shape[1])
        state = {}
        for key in self.arrays:
            if key.startswith("param/") and (ours := our_name(key[6:], self.model)):
                state[ours] = self.tensor(key)
        self.unmapped = {k[6:] for k in self.arrays if k.startswith("param/") and not our_name(k[6:], self.model)}
        self.missing = self.model.load_state_dict(state, strict=False)
        counts = self.tensor("in/D_obs_counts").double()
        share = torch.where(counts > 0, 1.0 / counts.clamp(min=1), 0.0).float()
        index = torch.full((len(x), 2), dose.shape[1])
        for i, d in enumerate(dose):
            at = torch.nonzero(d)[:, 0]
            index[i, : len(at)] = at
        self.batch = Batch(x, self.tensor("in/library_size"), OneHot(index, (index < dose.shape[1]).float()), share)
        self.noise = {}
        for key in self.arrays:
            if match := re.fullmatch(r"noise/(.+)_(eps|logistic)", key):
                self.noise[LATENT.get(match[1], match[1])] = self.tensor(key)
        self.particles = int(self.arrays["in/n_particles"])

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

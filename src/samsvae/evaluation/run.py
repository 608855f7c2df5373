"""Scores of one trained run (published protocol), and its effects and masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.config.evaluation import EvaluationConfig
from samsvae.config.vocabulary import SPLITS
from samsvae.data.arrays import Screen, read_screen, read_split
from samsvae.data.cells import cells_of, encode
from samsvae.errors import CheckpointError, some
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.evaluation.model_effects import condition_means
from samsvae.evaluation.scores import per_condition, score
from samsvae.files import write_table
from samsvae.models.model import Model
from samsvae.tables import read_h5ad, write, write_h5ad
from samsvae.training.checkpoint import Checkpoint, load


def check_names(checkpoint: Checkpoint, screen: Screen) -> None:
    """CheckpointError where the weights are of other genes or perturbations than the screen."""
    names = encode(screen, checkpoint.facts["encoding"]).names
    for kind, ours, theirs in (
        ("genes", checkpoint.genes, tuple(screen.genes.tolist())),
        ("perturbations", checkpoint.perturbations, names),
    ):
        if ours != theirs:
            odd = sorted(set(ours) ^ set(theirs))
            raise CheckpointError(
                f"The {kind} of the weights are not those of the screen: {some(odd) or 'their order'}."
            )


def likelihood_scores(
    checkpoint: Checkpoint, screen: Screen, split: np.ndarray, config: EvaluationConfig, device: str
) -> Iterator[dict[str, object]]:
    """Predictive IWELBO of validation and test cells: mean over cells, in nats."""
    dosage = encode(screen, checkpoint.facts["encoding"])
    for name in SPLITS[1:]:
        if (split == name).any():
            cells = cells_of(screen, split == name, dosage, device)
            value = iwelbo(checkpoint.model, cells, particles=config.iwelbo_particles).mean().item()
            yield {"protocol": "published", "metric": "iwelbo", "split": name, "value": value}


def dosages(checkpoint: Checkpoint, screen: Screen, conditions: Sequence[str]) -> np.ndarray:
    """The rows of the model's perturbations (C, P) of conditions by name; T where there is none."""
    position = {name: i for i, name in enumerate(screen.conditions)}
    return encode(screen, checkpoint.facts["encoding"]).members[[position[name] for name in conditions]]


def model_effects(checkpoint: Checkpoint, screen: Screen, data: ad.AnnData, config: EvaluationConfig) -> ad.AnnData:
    """Effects of the conditions of ``data`` under the model, against the same reference: X (C, G)."""
    reference = str(data.uns["reference"])
    asked = [*data.obs_names, *([reference] if reference else [])]
    means = condition_means(
        checkpoint.model,
        dosages(checkpoint, screen, asked),
        samples=config.ate_samples,
        library=config.ate_library,
        transform=str(data.uns["transform"]),
        closed_form=config.ate_closed_form,
    )
    ate = means[:-1] - means[-1] if reference else means - means.mean(0)
    return ad.AnnData(ate, data.obs[["n_perturbations"]].copy(), data.var.copy(), uns={"reference": reference})


def perturbation_matrices(checkpoint: Checkpoint) -> ad.AnnData:
    """Mask probability and embedding of every perturbation (T, L), as far as the model has them, in obsm."""
    tables = {name: table.cpu().numpy() for name, table in checkpoint.model.perturbation_tables().items()}
    obs = pd.DataFrame(index=pd.Index(checkpoint.perturbations, dtype=object))
    return ad.AnnData(obs=obs, obsm=tables)


def recovery_scores(
    model: Model, screen: Screen, split: np.ndarray, truth: ad.AnnData, encoding: str, device: str
) -> Iterator[dict[str, object]]:
    """Recovery of a simulation's true masks and latents (its screen is ``truth``), on the test cells."""
    from samsvae.evaluation.metrics.recovery import all_ones_f1, latent_recovery, mask_recovery

    test = split == "test"
    z_true = np.asarray(truth.obsm["z_true"])[test]
    z_learned = model.posterior_mean(cells_of(screen, test, encode(screen, encoding), device)).cpu().numpy()
    found = latent_recovery(z_true, z_learned)
    tables = model.perturbation_tables()
    mask = np.asarray(truth.uns["truth"]["mask"])
    trained = np.bincount(screen.condition[split == "train"], minlength=len(screen.conditions)) > 0
    seen = trained[[list(screen.conditions).index(name) for name in screen.perturbations]]
    if "mask_probability" in tables:
        probability = tables["mask_probability"].cpu().numpy()
        found |= mask_recovery(mask[seen], probability[seen], z_true=z_true, z_learned=z_learned)
    found["mask_f1_all_ones"] = all_ones_f1(mask[seen])
    for metric, value in found.items():
        yield {"protocol": "published", "metric": metric, "split": "test", "value": value}


def evaluate(inputs: dict, outputs: dict, *, settings: dict, simulated: bool, device: str) -> None:
    """Score one run, from files to files.

    ``inputs``: model, arrays, screen, split, reference. ``outputs``: scores (tidy TSV), per_condition (TSV), effects
    and perturbations (h5ad). ``settings``: an EvaluationConfig as a dict.
    """
    config = EvaluationConfig(**settings)
    checkpoint, screen = load(inputs["model"], device), read_screen(inputs["arrays"])
    check_names(checkpoint, screen)
    split = read_split(inputs["split"], screen.cells)
    data = read_h5ad(inputs["reference"])
    predicted = model_effects(checkpoint, screen, data, config)
    rows = [*likelihood_scores(checkpoint, screen, split, config, device), *score(predicted.X, data)]
    if simulated:
        truth, encoding = read_h5ad(inputs["screen"]), checkpoint.facts["encoding"]
        rows += recovery_scores(checkpoint.model, screen, split, truth, encoding, device)
    run = checkpoint.facts["run"]
    write_table([{"run": run, **row} for row in rows], outputs["scores"])
    write(per_condition(predicted.X, data).assign(run=run), outputs["per_condition"])
    write_h5ad(predicted, outputs["effects"])
    write_h5ad(perturbation_matrices(checkpoint), outputs["perturbations"])

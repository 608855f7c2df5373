"""Evaluate one trained run: its scores, effects, masks and embeddings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.config.evaluation import EvaluationConfig
from samsvae.data.arrays import Screen, read_screen, read_split
from samsvae.data.cells import cells_of, encode
from samsvae.evaluation import honest
from samsvae.evaluation.added_effects import added_effect_draws, backgrounds_of
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.evaluation.matched_parts import held_out_context
from samsvae.evaluation.metrics.constants import EMPTY_MASK, FIT
from samsvae.evaluation.metrics.recovery import all_ones_f1, largest_entries, latent_recovery, mask_recovery
from samsvae.evaluation.model_bounds import model_bounds
from samsvae.evaluation.model_effects import condition_means, library_of
from samsvae.evaluation.scores import per_condition, score
from samsvae.evaluation.screen_names import check_names, dosages
from samsvae.evaluation.truth_file import read_truth
from samsvae.files import write_table
from samsvae.matrices import read_h5ad, write_h5ad
from samsvae.models.levels import Levels
from samsvae.models.model import Model
from samsvae.tables import PRECISE, write
from samsvae.training.checkpoint import Checkpoint, load

log = logging.getLogger(__name__)


def likelihood_scores(
    checkpoint: Checkpoint, screen: Screen, split: np.ndarray, config: EvaluationConfig, device: str
) -> tuple[list[dict[str, object]], pd.DataFrame]:
    """Predictive IWELBO (eq. 13) of validation and test cells: mean over cells, in nats.

    The second table is that of `bound.model_bounds` for the test cells.
    """
    cells_at = partial(cells_of, screen, dosage=encode(screen, checkpoint.facts["encoding"]), device=device)
    rows: list[dict[str, object]] = []

    def add(name: str, value: float) -> None:
        rows.append({"protocol": "published", "metric": "iwelbo", "split": name, "value": value})

    if (split == "val").any():
        add("val", iwelbo(checkpoint.model, cells_at(split == "val"), particles=config.iwelbo_particles).mean().item())
    value, bounds = model_bounds(checkpoint.model, split, cells_at, config)
    if value is not None:
        add("test", value)
    return rows, bounds


def fit_scores(checkpoint: Checkpoint) -> Iterator[dict[str, object]]:
    """How the fit went (`training.verdict`), as rows of the protocol ``fit``; none for imported weights."""
    fit = checkpoint.facts.get("fit", {})
    values = {
        "levelled_off": fit.get("levelled_off"),
        "gain_over_intercept_only": fit["intercept_only"] - fit["validation_loss"] if fit else None,
        "active_latents": fit.get("active_latents"),
        "masks_undecided": fit.get("masks_undecided"),
    }
    for metric, value in values.items():
        if value is not None:
            split = "train" if metric == "masks_undecided" else "val"
            yield {"protocol": FIT, "metric": metric, "split": split, "value": float(value)}


def model_effects(
    checkpoint: Checkpoint, screen: Screen, data: ad.AnnData, config: EvaluationConfig, levels: Levels | None = None
) -> ad.AnnData:
    """Effects that the model predicts for the conditions of ``data``, against the same reference: X (C, G).

    ``var["reference_mean"]``: the transformed mean of the reference, to which X adds up. ``levels``: of covariates, by
    default as in the training cells.
    """
    reference = str(data.uns["reference"])
    backgrounds = backgrounds_of(checkpoint)
    alone = [] if backgrounds is not None else [*data.obs_names]
    asked = [*alone, *([reference] if reference else [])]
    library = library_of(config, screen)
    log.info("effects: %d sampled cells per condition, with %.6g counts each", config.ate_samples, library)
    means = condition_means(
        checkpoint.model,
        dosages(checkpoint, screen, asked),
        samples=config.ate_samples,
        library=library,
        transform=str(data.uns["transform"]),
        closed_form=config.ate_closed_form,
        levels=levels,
    )
    base = means[-1] if reference else means.mean(0)
    ate = means[: len(data)] - base
    if backgrounds is not None:
        every = dosages(checkpoint, screen, data.obs_names.tolist())
        how = {"draws": config.effect_draws, "library": library, "transform": str(data.uns["transform"])}
        use = lambda _, drawn: drawn.mean(0)  # noqa: E731
        ate = np.stack(added_effect_draws(checkpoint.model, every, backgrounds=backgrounds, use=use, **how))
    uns = {"reference": reference, "library": library}
    return ad.AnnData(ate, data.obs[["n_perturbations"]].copy(), data.var.assign(reference_mean=base), uns=uns)


def context_levels(checkpoint: Checkpoint, screen: Screen, split: np.ndarray) -> Levels | None:
    """The levels of cells in the held-out context of a split; None if there is none, or the model reads none."""
    context = held_out_context(screen, split)
    if context is None or not checkpoint.model.levels or screen.covariates is None:
        return None
    return Levels.of(screen.covariates.sizes, screen.covariates.codes[context[1]])


def perturbation_matrices(checkpoint: Checkpoint) -> ad.AnnData:
    """obsm ``mask_probability`` and ``embedding`` (T, L) of the perturbations; a model may lack either.

    The row of a perturbation without training cells is NaN.
    """
    tables = {name: table.cpu().numpy() for name, table in checkpoint.tables().items()}
    obs = pd.DataFrame(index=pd.Index(checkpoint.perturbations, dtype=object))
    return ad.AnnData(obs=obs, obsm=tables)


def inferred_mask(model: Model) -> np.ndarray | None:
    """Mask probabilities (T, L), or for iVAE a mask of its largest embeddings; None for a model that has no targets."""
    tables = {name: table.cpu().numpy() for name, table in model.perturbation_tables().items()}
    if "mask_probability" in tables:
        return tables["mask_probability"]
    is_ivae = (model.config.embedding, model.config.mask, model.config.effect) == ("learned", "ones", "prior_mean")
    return largest_entries(tables["embedding"]) if is_ivae else None


def recovery_scores(
    model: Model, screen: Screen, split: np.ndarray, truth: ad.AnnData, encoding: str, device: str
) -> Iterator[dict[str, object]]:
    """Recovery of a simulation's true masks and latents, which its screen ``truth`` holds.

    Latents are compared in the test cells. Masks are compared for the perturbations that have training cells; those of
    iVAE are its largest embeddings (`inferred_mask`). A warning is logged if a mask is empty.
    """
    test = split == "test"
    z_true = np.asarray(truth.obsm["z_true"])[test]
    z_learned = model.posterior_mean(cells_of(screen, test, encode(screen, encoding), device)).cpu().numpy()
    found = latent_recovery(z_true, z_learned)
    mask = np.asarray(truth.uns["truth"]["mask"])
    in_training = np.bincount(screen.condition[split == "train"], minlength=len(screen.conditions)) > 0
    trained = in_training[[list(screen.conditions).index(name) for name in screen.perturbations]]
    if (inferred := inferred_mask(model)) is not None:
        found |= mask_recovery(mask[trained], inferred[trained], z_true=z_true, z_learned=z_learned)
        if found["mask_density"] < EMPTY_MASK:
            log.warning(
                "the inferred mask is empty: %d of %d entries are on, so its precision, recall and F1 mean little",
                (inferred[trained] > 0.5).sum(), inferred[trained].size,
            )  # fmt: skip
    found["mask_f1_all_ones"] = all_ones_f1(mask[trained])
    for metric, value in found.items():
        yield {"protocol": "published", "metric": metric, "split": "test", "value": value}


def evaluate(
    inputs: Mapping[str, Path | str],
    outputs: Mapping[str, Path | str],
    *,
    settings: Mapping[str, Any],
    simulated: bool,
    rules: str,
    device: str,
) -> None:
    """Score one run, from files to files.

    ``inputs``: model, arrays, split, reference (observed effects), truth (of the honest protocol) and, if
    ``simulated``, screen (with true masks and latents).
    ``outputs``: scores (TSV: run, protocol, metric, split, value, rules), per_condition (TSV), effects and
    perturbations (h5ad), bound (TSV: bounds and weights of the test cells), and the scores of the honest protocol,
    worth and worth_conditions (TSV). ``settings``: an EvaluationConfig as a dict. ``rules``: the digest of the scoring
    code that scores, bound and worth name. CheckpointError if the checkpoint does not fit the screen.
    """
    config = EvaluationConfig(**settings)
    checkpoint, screen = load(inputs["model"], device), read_screen(inputs["arrays"])
    check_names(checkpoint, screen)
    split = read_split(inputs["split"], screen.cells)
    data = read_h5ad(inputs["reference"])
    predicted = model_effects(checkpoint, screen, data, config, context_levels(checkpoint, screen, split))
    rows, bounds = likelihood_scores(checkpoint, screen, split, config, device)
    rows += [*score(predicted.X, data), *fit_scores(checkpoint)]
    if data.uns["transform"] == "log2":
        rows.append({"protocol": FIT, "metric": "ate_library", "split": "all", "value": predicted.uns["library"]})
    if simulated:
        truth, encoding = read_h5ad(inputs["screen"]), checkpoint.facts["encoding"]
        rows += recovery_scores(checkpoint.model, screen, split, truth, encoding, device)
    run = checkpoint.facts["run"]
    write_table([{"run": run, **row, "rules": rules} for row in rows], outputs["scores"])
    write(per_condition(predicted.X, data).assign(run=run), outputs["per_condition"])
    write_h5ad(predicted, outputs["effects"])
    write_h5ad(perturbation_matrices(checkpoint), outputs["perturbations"])
    truth = read_truth(inputs["truth"])
    names = screen.conditions if isinstance(truth, str) else truth.names
    every = np.zeros((0, 1), int) if isinstance(truth, str) else dosages(checkpoint, screen, names.tolist())
    added = backgrounds_of(checkpoint)
    worth, conditions = honest.model_tables(
        checkpoint.model, truth, every, draws=config.effect_draws, backgrounds=added
    )
    write(bounds.assign(run=run, rules=rules), outputs["bound"])
    write(worth.assign(run=run, rules=rules), outputs["worth"], digits=PRECISE)
    write(conditions.assign(run=run), outputs["worth_conditions"], digits=PRECISE)

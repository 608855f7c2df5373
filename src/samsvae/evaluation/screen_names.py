"""The names of a screen as a checkpoint has them: whether they match, and its conditions as dosages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samsvae.config.vocabulary import UNPERTURBED
from samsvae.data.arrays import Screen
from samsvae.data.cells import encode
from samsvae.errors import CheckpointError, some
from samsvae.training.checkpoint import Checkpoint


def check_names(checkpoint: Checkpoint, screen: Screen) -> None:
    """CheckpointError if genes, perturbations or covariates of the checkpoint, or their order, are not the screen's."""
    names = encode(screen, checkpoint.facts["encoding"]).names
    if checkpoint.covariates and (screen.covariates is None or screen.covariates.named != checkpoint.covariates):
        raise CheckpointError(
            f"The covariates of the checkpoint ({some(checkpoint.covariates)}), or their levels, do not match the "
            "screen. Use the screen that it was trained on."
        )
    for kind, ours, theirs in (
        ("genes", checkpoint.genes, tuple(screen.genes.tolist())),
        ("perturbations", checkpoint.perturbations, names),
    ):
        if ours != theirs:
            different = sorted(set(ours) ^ set(theirs))
            what = f"only one of the two has {some(different)}" if different else "their order differs"
            raise CheckpointError(
                f"The {kind} of the checkpoint do not match the screen: {what}. Use the screen that it was trained on."
            )


def dosages(checkpoint: Checkpoint, screen: Screen, conditions: Sequence[str]) -> np.ndarray:
    """Indices (C, P) of the model's perturbations in each named condition, padded with T.

    Conditions are those of the screen, or its single perturbations if effects are relative to the zero dosage.
    """
    if screen.by_dosage:
        codes = {name: t for t, name in enumerate([*checkpoint.perturbations, UNPERTURBED])}
        return np.array([[codes[name]] for name in conditions])
    position = {name: i for i, name in enumerate(screen.conditions)}
    return encode(screen, checkpoint.facts["encoding"]).members[[position[name] for name in conditions]]

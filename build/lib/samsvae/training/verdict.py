"""How a fit went, in numbers and in words that say what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from samsvae.data.cells import Cells
from samsvae.errors import some
from samsvae.models.model import Model
from samsvae.models.start import intercept_only
from samsvae.training.state import Trained

#: A loss has levelled off if the last fifth of the validations improved it by less than this share of its whole drop.
LEVEL = 1e-3

#: Fewest validations from which this can be told.
VALIDATIONS = 10

#: Mask probabilities in this range are undecided.
UNDECIDED = (0.25, 0.75)

#: A latent is active if its posterior mean varies over the validation cells by more than this (prior variance: 1).
ACTIVE = 0.01

#: Perturbations with fewer training cells are named.
FEW_CELLS = 20


@dataclass(frozen=True)
class Verdict:
    """How a fit went.

    ``levelled_off``: whether the validation loss has stopped improving; None after too few validations.
    ``improvement``: share of the loss's whole drop that the last fifth of the validations gained. ``validation_loss``
    and ``intercept_only``: loss per validation cell of the model, and of a model that knows only the mean of each gene.
    ``latents`` and ``active_latents``: how many there are, and how many vary over cells. ``masks_undecided``: share of
    mask probabilities between 0.25 and 0.75; None without masks. ``few_cells``: the perturbations with 1 to 19
    training cells.
    """

    levelled_off: bool | None
    improvement: float | None
    validation_loss: float
    intercept_only: float
    latents: int
    active_latents: int
    masks_undecided: float | None
    few_cells: dict[str, int]

    def words(self) -> list[str]:
        """One sentence for each finding, with advice if something is wrong."""
        found = (self._level(), self._baseline(), self._masks(), self._latents(), self._cells())
        return [sentence for sentence in found if sentence]

    def as_dict(self) -> dict[str, Any]:
        """The numbers and the words, as plain values."""
        return {**asdict(self), "words": self.words()}

    def _level(self) -> str:
        if self.improvement is None:
            return f"There were fewer than {VALIDATIONS} validations: too few to tell whether the loss levelled off."
        if self.levelled_off:
            return "The validation loss has levelled off."
        return (
            "The validation loss has not levelled off: the last fifth of the validations brought "
            f"{self.improvement:.1%} of its drop. Raise steps (and patience, if the training stopped early)."
        )

    def _baseline(self) -> str:
        ours, theirs = f"{self.validation_loss:.2f}", f"{self.intercept_only:.2f}"
        if self.validation_loss < self.intercept_only:
            return f"The validation loss, {ours} nats per cell, is below that of an intercept-only model, {theirs}."
        return (
            f"The validation loss, {ours} nats per cell, is not below that of an intercept-only model, {theirs}: the "
            "model knows no more than the mean of each gene. Use start: data, more steps or smaller networks."
        )

    def _masks(self) -> str:
        if self.masks_undecided is None or self.masks_undecided <= 0.1:
            return ""
        return (
            f"{self.masks_undecided:.0%} of the mask probabilities are between {UNDECIDED[0]} and {UNDECIDED[1]}, so "
            "the masks are undecided. Raise steps or rate_mask."
        )

    def _latents(self) -> str:
        counted = f"{self.active_latents} of {self.latents} latents are active."
        if self.active_latents == 0:
            return f"{counted} The model ignores them: train longer, or lower the learning rates."
        if self.active_latents == self.latents and self.masks_undecided is not None:
            return f"{counted} More of them (n_latent) may fit better."
        return counted

    def _cells(self) -> str:
        if not self.few_cells:
            return ""
        return (
            f"Perturbations with fewer than {FEW_CELLS} training cells: {some(self.few_cells)}. Their effects stay "
            "close to those of the prior, so do not read much into them."
        )


def verdict(
    model: Model, result: Trained, train_cells: Cells, val_cells: Cells, training_cells: Mapping[str, int]
) -> Verdict:
    """The verdict on a trained model. ``training_cells``: cells of each perturbation (``checkpoint.screen_facts``)."""
    losses = [row["val_loss"] for row in result.history]
    improvement = last_improvement(losses)
    with torch.no_grad():
        active = int((model.posterior_mean(val_cells).double().var(0, correction=0) > ACTIVE).sum())
    probability = model.perturbation_tables().get("mask_probability")
    undecided = None
    if probability is not None:
        inside = (probability > UNDECIDED[0]) & (probability < UNDECIDED[1])
        trained = torch.tensor([training_cells[name] > 0 for name in training_cells], device=inside.device)
        undecided = inside[trained].double().mean().item() if trained.any() else None
    config = model.config
    return Verdict(
        levelled_off=None if improvement is None else improvement < LEVEL,
        improvement=improvement,
        validation_loss=result.best_loss,
        intercept_only=-intercept_only(config.likelihood, train_cells, val_cells, floor=config.mean_floor),
        latents=config.n_latent,
        active_latents=active,
        masks_undecided=undecided,
        few_cells={name: n for name, n in training_cells.items() if 0 < n < FEW_CELLS},
    )


def last_improvement(losses: Sequence[float]) -> float | None:
    """Share of the drop from the first to the best loss that the last fifth of the validations gained.

    0 if the loss never dropped; None for fewer than `VALIDATIONS` losses.
    """
    if len(losses) < VALIDATIONS:
        return None
    before, best = min(losses[: len(losses) - len(losses) // 5]), min(losses)
    drop = losses[0] - best
    return max(0.0, before - best) / drop if drop > 0 else 0.0

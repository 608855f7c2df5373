"""The settings of a transfer to new perturbations (docs/model.md)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

from samsvae.config.validate import at_least
from samsvae.config.zoo import has_release
from samsvae.errors import ConfigError, some

#: The number of cells of each new perturbation that means all of its pool.
ALL_CELLS: Final = "all"


@dataclass(frozen=True)
class TransferConfig:
    """How trained models are adapted to the new perturbations of a split of kind 'transfer', and scored on them.

    ``variants``: 'ours', also 'as_released' for the methods of the SVAE+ paper. ``adapt``: how models with a learned
    embedding are adapted. ``cells``: how many cells of each new perturbation are read; 0 is always scored.
    ``particles``: K of the bound. ``stage2_epochs``: epochs of the second training (default: as many as of the first).
    ``adapt_steps``: steps of the other models, which are adapted by their training objective.
    """

    variants: tuple[Literal["ours", "as_released"], ...] = ("ours",)
    adapt: tuple[Literal["closed_form", "iwelbo", "sparse"], ...] = ("closed_form",)
    cells: tuple[int | Literal["all"], ...] = (0, 10, 30, 100, ALL_CELLS)
    particles: int = 1000
    stage2_epochs: int | None = None
    adapt_steps: int = 1000

    def __post_init__(self):
        at_least(1, self, "particles", "stage2_epochs", "adapt_steps")
        for name in ("variants", "adapt", "cells"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name}: {list(values)} is not allowed; give one or more values, each once.")
        if "ours" not in self.variants:
            raise ConfigError(f"variants: {list(self.variants)} is not allowed; 'ours' must be one of them.")
        if few := [number for number in self.cells if number != ALL_CELLS and number < 0]:
            raise ConfigError(f"cells: {few[0]} is not allowed. Allowed: 0 or more, or {ALL_CELLS!r}.")

    def variants_of(self, model: str) -> tuple[str, ...]:
        """The variants that a row of the zoo has."""
        return tuple(name for name in self.variants if name == "ours" or has_release(model))

    def refits_of(self, model: str, new_cells: int | str) -> tuple[str, ...]:
        """The variants in which a row is trained a second time before it is adapted.

        ``new_cells``: of the split. With new cells in the training there is nothing to adapt, and no release.
        """
        if not has_release(model):
            return ()
        return ("ours",) if new_cells else self.variants_of(model)

    def check_models(self, models: Collection[str], where: str) -> None:
        """ConfigError if none of the rows has one of the variants."""
        if "as_released" in self.variants and not any(map(has_release, models)):
            raise ConfigError(
                f"{where}.variants: 'as_released' is not allowed, because there is no released transfer code for "
                f"{some(sorted(models))}. Allowed: 'ours'; with a method of the SVAE+ paper in the grid also "
                "'as_released'."
            )

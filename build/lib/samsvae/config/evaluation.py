"""The settings for scoring a trained model: plain, validated values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from samsvae.config.vocabulary import LIBRARY
from samsvae.errors import ConfigError


@dataclass(frozen=True)
class EvaluationConfig:
    """How a trained model is scored; the defaults are the published protocol.

    ``ate_library``: counts of a sampled cell; 'median' is the median library size of the screen's cells. By default
    'median' for screens of kind custom, and 10,000 for the papers' (`for_kind`). ``bound_particles`` and
    ``bound_cells``: particles of the bound on a sample of the test cells, and its size (`evaluation.bound`).
    """

    iwelbo_particles: int = 100
    bound_particles: int = 10000
    bound_cells: int = 500
    ate_samples: int = 2500
    ate_library: float | Literal["median"] | None = None
    ate_closed_form: bool = False
    effect_draws: int = 100
    pathway_repeats: int = 10
    pathway_trees: int = 500
    pathway_permutations: int = 10
    de_conditions: int = 4
    de_cells: int = 200

    def __post_init__(self):
        if self.effect_draws < 2:
            raise ConfigError(f"effect_draws: {self.effect_draws} is not allowed; it must be 2 or more.")
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
                raise ConfigError(f"{item.name}: {value} is not allowed; it must be above 0.")

    def for_kind(self, kind: str) -> EvaluationConfig:
        """The settings for a kind of screen, with the default of ``ate_library``."""
        if self.ate_library is not None:
            return self
        return dataclasses.replace(self, ate_library="median" if kind == "custom" else LIBRARY)

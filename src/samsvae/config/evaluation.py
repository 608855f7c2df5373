"""How a trained model is scored: plain values, checked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from samsvae.config.vocabulary import LIBRARY
from samsvae.errors import ConfigError


@dataclass(frozen=True)
class EvaluationConfig:
    """How a trained model is scored (published protocol by default)."""

    iwelbo_particles: int = 100
    ate_samples: int = 2500
    ate_library: float = LIBRARY
    ate_closed_form: bool = False
    pathway_repeats: int = 10
    pathway_trees: int = 500
    pathway_permutations: int = 20
    de_conditions: int = 4
    de_cells: int = 200

    def __post_init__(self):
        for item in dataclasses.fields(self):
            if not isinstance(getattr(self, item.name), bool) and not getattr(self, item.name) > 0:
                raise ConfigError(f"{item.name}: {getattr(self, item.name)} is not allowed; it must be above 0.")

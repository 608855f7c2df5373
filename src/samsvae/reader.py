"""Cells of an AnnData as a trained model reads them.

Letters: n cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anndata as ad
import pandas as pd

from samsvae.data.cells import Cells
from samsvae.errors import ConfigError, nearest
from samsvae.screens.custom import option_of, screen_of
from samsvae.screens.pack import arrays_of
from samsvae.training.checkpoint import Checkpoint
from samsvae.training.new_cells import cells_for

#: Options of a screen that new cells may need.
CLEANING = ("library_size", "unlabelled", "zero_cells", "min_cells", "rare", "perturbation_names", "threshold")

#: Those that `fit` notes in the model, so that new cells are read as its training cells were.
READS: tuple[str, ...] = ("library_size", "unlabelled", "zero_cells", "perturbation_names", "threshold")
READS += ("targets", "target_pattern", "guides")


@dataclass(frozen=True)
class Reader:
    """Reads cells for a model. ``perturbation`` and ``layer`` ('X': X itself) say where; None: as in ``fit``."""

    checkpoint: Checkpoint
    perturbation: str | None
    layer: str | None

    @property
    def where(self) -> dict[str, str]:
        """Where perturbations and counts are, and the options of ``fit``; ConfigError if the model does not know."""
        given = {"perturbation": self.perturbation, "layer": self.layer}
        where = self.checkpoint.facts.get("reads", {}) | {key: text for key, text in given.items() if text is not None}
        if "perturbation" not in where:
            raise ConfigError("perturbation: the model does not know the obs column with the perturbations; pass it.")
        return where

    def screen(self, adata: ad.AnnData, options: Mapping[str, Any]) -> ad.AnnData:
        """Cells as a screen, whose controls may be missing; ConfigError for an option that does not concern cells."""
        if unknown := sorted(set(options) - set(CLEANING)):
            raise ConfigError(f"{unknown[0]!r} is not an option.{nearest(unknown[0], CLEANING)}")
        known, where = self.checkpoint.facts, self.where
        layer = where.get("layer", "X")
        noted = {key: text for key, text in where.items() if key in READS}
        return screen_of(
            adata, **option_of(where["perturbation"]), control=known.get("controls") or ["control"],
            separator=known.get("separator", ""), counts="X" if layer == "X" else f"layer:{layer}",
            genes=list(self.checkpoint.genes), covariates=list(self.checkpoint.covariates), complete=False,
            **{**noted, **options},
        )  # fmt: skip

    def cells(self, adata: ad.AnnData, options: Mapping[str, Any]) -> tuple[pd.Index, Cells]:
        """The names of the cells that the options keep (n), and the cells."""
        screen = self.screen(adata, options)
        return screen.obs_names, cells_for(self.checkpoint, arrays_of(screen))

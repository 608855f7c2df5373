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

#: Options of a screen that `fit` notes in the model, so that new cells are read as its training cells were.
READS = (
    *("library_size", "unlabelled", "zero_cells", "perturbation_names", "threshold"),
    *("targets", "target_pattern", "guides"),
)

#: All options that new cells may have in place of the noted ones.
OPTIONS = (*READS, "min_cells", "rare")


def library_scale(adata: ad.AnnData, screen: ad.AnnData, library_size: str, layer: str) -> float:
    """The factor between the library sizes of a screen and the measured ones, in a column or over all genes.

    It makes them sum to the counts of the cells of the screen, so that of a few new cells would be another one.
    """
    first = screen.obs_names[0]
    at = adata.obs_names.get_loc(first)
    counts = adata.X if layer == "X" else adata.layers[layer]
    total = counts[at].sum() if library_size == "all" else adata.obs[library_size].iloc[at]
    return float(screen.obs["library_size"].iloc[0]) / float(total)


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
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise ConfigError(f"{unknown[0]!r} is not an option.{nearest(unknown[0], OPTIONS)}")
        known, where = self.checkpoint.facts, self.where
        layer = where.get("layer", "X")
        chosen = {key: text for key, text in where.items() if key in READS} | dict(options)
        screen = screen_of(
            adata, **option_of(where["perturbation"]), control=known.get("controls") or ["control"],
            separator=known.get("separator", ""), counts="X" if layer == "X" else f"layer:{layer}",
            genes=list(self.checkpoint.genes), covariates=list(self.checkpoint.covariates), complete=False,
            **chosen,
        )  # fmt: skip
        if "library_scale" in where and chosen["library_size"] == where["library_size"]:
            here = library_scale(adata, screen, chosen["library_size"], layer)
            screen.obs["library_size"] *= float(where["library_scale"]) / here
        return screen

    def cells(self, adata: ad.AnnData, options: Mapping[str, Any]) -> tuple[pd.Index, Cells]:
        """The names of the cells that the options keep (n), and the cells."""
        screen = self.screen(adata, options)
        return screen.obs_names, cells_for(self.checkpoint, arrays_of(screen))

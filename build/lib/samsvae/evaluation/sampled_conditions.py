"""Simulated cells of a named condition as an AnnData.

Letters: n cells, G genes.
"""

from __future__ import annotations

from collections.abc import Mapping

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.config.validate import check_positive, check_whole
from samsvae.evaluation.model_effects import sample
from samsvae.evaluation.named_conditions import Condition, Label, Names, as_text
from samsvae.training.checkpoint import Checkpoint


def sample_condition(
    checkpoint: Checkpoint,
    condition: Condition,
    n: int,
    *,
    library: float,
    covariates: Mapping[str, Label] | None = None,
    seed: int = 0,
) -> ad.AnnData:
    """``n`` simulated cells that received ``condition``, with counts X (n, G); obs has the condition and covariates.

    ``library``: counts per cell. ``covariates``: the level of some; the others are as frequent as in training cells.
    ConfigError if a number is not allowed; DataError if the condition, a covariate or its level is unknown.
    """
    check_whole(n=n)
    check_positive(library=library)
    asked, names = as_text(condition), Names(checkpoint)
    levels = names.levels(covariates)
    x = sample(
        checkpoint.model, names.members([asked]), samples=n, library=library, levels=levels, seed=f"{seed}/{asked}"
    )[:, 0]
    obs: dict[str, object] = {"condition": names.label(asked)}
    if levels:
        codes = levels.spread(n)[:, 0].T
        known = checkpoint.covariates.items()
        obs |= {name: np.array(each)[at] for (name, each), at in zip(known, codes, strict=True)}
    table = pd.DataFrame(obs, index=[f"sample{i}" for i in range(n)])
    return ad.AnnData(x.cpu().numpy(), table, pd.DataFrame(index=pd.Index(checkpoint.genes)))

"""The covariates that a trained model reads: as facts of its checkpoint, and in the cells of another screen.

Letters: n cells, V covariates, J combinations of levels.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from samsvae.data.arrays import Covariates, Screen
from samsvae.data.cells import Cells
from samsvae.errors import DataError, nearest, some
from samsvae.models.levels import Levels

log = logging.getLogger(__name__)


def covariate_facts(screen: Screen, train_cells: Cells) -> dict[str, Any]:
    """Facts for a checkpoint: ``covariates``, the levels of each by name, and ``covariate_cells``; {} without any.

    ``covariate_cells`` (J, V + 1): the codes of each combination of levels in training cells, and how many have it. A
    warning is logged if a level has no training cells.
    """
    known = screen.covariates
    if known is None or train_cells.covariates is None:
        return {}
    found = Levels.of(known.sizes, train_cells.covariates.cpu().numpy())
    for v, (name, levels) in enumerate(known.named.items()):
        trained = {row[v] for row in found.combinations}
        if never := [level for code, level in enumerate(levels) if code not in trained]:
            log.warning("no training cell has %s of %r, so the model learns nothing about it", some(never), name)
    rows = [[*codes, int(n)] for codes, n in zip(found.combinations, found.cells, strict=True)]
    return {"covariates": known.named, "covariate_cells": rows}


def levels_in(facts: Mapping[str, Any]) -> Levels | None:
    """The levels that a model with these facts reads; None without covariates."""
    if "covariates" not in facts:
        return None
    rows = facts["covariate_cells"]
    sizes = tuple(map(len, facts["covariates"].values()))
    return Levels(sizes, tuple(tuple(row[:-1]) for row in rows), tuple(row[-1] for row in rows))


def are_levels(value: object) -> bool:
    """Whether a value is lists of text by the name of a covariate."""
    return isinstance(value, dict) and bool(value) and all(isinstance(each, list) and each for each in value.values())


def are_rows(value: object) -> bool:
    """Whether a value is rows of whole numbers of at least 0, and the last of each above 0."""
    if not isinstance(value, list) or not value:
        return False
    return all(
        isinstance(row, list) and row and all(type(n) is int and n >= 0 for n in row) and row[-1] > 0 for row in value
    )


def misfit(facts: Mapping[str, Any]) -> list[int] | None:
    """The first row of ``covariate_cells`` that has other covariates or levels than ``covariates``; None if all fit."""
    most = [*(len(levels) - 1 for levels in facts["covariates"].values()), sys.maxsize]
    for row in facts["covariate_cells"]:
        if len(row) != len(most) or any(n > top for n, top in zip(row, most, strict=True)):
            return row
    return None


def with_levels(screen: Screen, names: Mapping[str, Sequence[str]]) -> Screen:
    """The screen with the covariates of a model (their levels by name), coded as there.

    DataError if the screen lacks a covariate or has a new level.
    """
    known = screen.covariates
    if not names:
        return replace(screen, covariates=None)
    found = {} if known is None else dict(zip(known.names, known.codes.T, strict=True))
    if known is None or (missing := [name for name in names if name not in found]):
        raise DataError(
            f"covariates: the model reads {some(missing if found else names)}, which the cells do not have."
        )
    codes = []
    for name, levels in names.items():
        theirs = known.named[name]
        if new := [level for level in theirs if level not in levels]:
            raise DataError(
                f"covariates: {name!r} has the level {new[0]!r}, on which the model was not trained."
                f"{nearest(new[0], levels)}"
            )
        codes.append(np.array([levels.index(level) for level in theirs])[found[name]])
    return replace(screen, covariates=Covariates(tuple(names), tuple(map(tuple, names.values())), np.stack(codes, 1)))

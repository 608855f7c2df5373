"""The cells of a screen that effects are computed from: with covariates, matched to controls of their own level.

Letters: n cells, C conditions, V covariates, J combinations of levels, G genes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from samsvae.data.arrays import Screen
from samsvae.errors import some
from samsvae.evaluation.metrics.estimates import Weights
from samsvae.evaluation.metrics.matched import Matched

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObservedLevels:
    """The levels of the cells in which each condition is observed.

    ``combinations`` (J, V): codes of levels. ``cells``: for each condition, the combination of each of its cells.
    """

    combinations: np.ndarray
    cells: list[np.ndarray]


class Part(NamedTuple):
    """Some cells: ``X`` (n, G) and the ``method`` that transforms it, the ``rows`` (n,) bool to use, and the
    ``weights`` of controls; None without covariates."""

    X: np.ndarray | Matched
    method: str
    rows: np.ndarray
    weights: Weights | None


def part_of(screen: Screen, rows: np.ndarray, controls: np.ndarray, where: str = "") -> Part:
    """The cells ``rows`` (n,) bool, to be compared with ``controls`` (n,) bool of their own level.

    Cells of levels with fewer than 2 controls are left out; a warning says how many, and of which levels. ``where``:
    names the cells in it, '' for no warning.
    """
    if screen.covariates is None:
        return Part(screen.counts, screen.transform, rows, None)
    combinations, level = screen.covariates.strata()
    matched = Matched(screen.counts, level, controls, method=screen.transform)
    lost = rows & ~matched.usable
    if lost.any() and where:
        names = screen.covariates.levels
        missing = [
            "/".join(names[v][code] for v, code in enumerate(row)) for row in combinations[np.unique(level[lost])]
        ]
        log.warning(
            "effects in %s: %d of %d cells are left out, because fewer than 2 controls have their levels of %s: %s",
            where, lost.sum(), rows.sum(), "/".join(screen.covariates.names), some(missing),
        )  # fmt: skip
    used = rows & matched.usable
    return Part(matched, "mean", used, matched.weights(screen.condition, len(screen.conditions), used))


def matched_parts(screen: Screen, parts: Mapping[str, np.ndarray], tested: np.ndarray) -> dict[str, Part]:
    """The parts of a split by name, each with its own controls; ``tested`` (n,) bool: the controls of test cells.

    ``instead`` and ``val`` have these controls too, because they lend cells where there are no test cells.
    """
    at_control = screen.condition == screen.control
    found = {}
    for name, rows in parts.items():
        controls = tested if name in ("test", "instead", "val") else at_control & rows
        found[name] = part_of(screen, rows, controls, f"{name} cells" if name in ("train", "test") else "")
    return found


def observed_levels(screen: Screen, observed: np.ndarray) -> ObservedLevels | str:
    """The levels of the ``observed`` cells (n,) bool of every condition; '' without covariates."""
    if screen.covariates is None:
        return ""
    combinations, level = screen.covariates.strata()
    return ObservedLevels(
        combinations, [level[(screen.condition == c) & observed] for c in range(len(screen.conditions))]
    )

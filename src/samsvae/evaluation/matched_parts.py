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
from samsvae.evaluation.metrics.estimates import LEAST_FOR_VARIANCE, Weights, condition_moments
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


def held_out_context(screen: Screen, split: np.ndarray) -> tuple[int, np.ndarray] | None:
    """The covariate whose levels hold out a context, and the cells (n,) bool of its held-out levels; None without one.

    A context is held out if no level of a covariate has perturbed cells both in training and in test.
    """
    if screen.covariates is None or screen.control is None:
        return None
    perturbed = screen.condition != screen.control
    for v, code in enumerate(screen.covariates.codes.T):
        trained, tested = (set(code[perturbed & (split == name)].tolist()) for name in ("train", "test"))
        if trained and tested and trained.isdisjoint(tested):
            return v, np.isin(code, list(tested))
    return None


def effects_in_other_contexts(screen: Screen, split: np.ndarray) -> np.ndarray:
    """Mean over the contexts in training of the effects in each, (C, G), however many cells each has.

    Each effect is that of the training cells against training controls of the same level. NaN for a condition with
    fewer than two such cells in every context; (0, G) if no context is held out.
    """
    held_out = held_out_context(screen, split)
    if held_out is None or screen.covariates is None:
        return np.empty((0, len(screen.genes)))
    train, n_conditions = split == "train", len(screen.conditions)
    code = screen.covariates.codes[:, held_out[0]]
    every = part_of(screen, train, train & (screen.condition == screen.control))
    total, number = np.zeros((n_conditions, len(screen.genes))), np.zeros((n_conditions, 1))
    for level in np.unique(code[train & ~held_out[1]]):
        rows = every.rows & (code == level)
        found = condition_moments(every.X, screen.condition, n_conditions, cells=rows, method=every.method)
        enough = found.n[:, None] >= LEAST_FOR_VARIANCE
        total += np.where(enough, found.mean, 0.0)
        number += enough
    number[screen.control] = 0
    return np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)

"""Conditions as a person names them, and what they mean to a model.

A condition is a label as in the data ('A', 'A+B', the control's label) or a list of perturbations. Letters: C
conditions, P largest number of perturbations in a condition, T perturbations.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from samsvae.errors import DataError, nearest, quoted, some
from samsvae.models.levels import Levels
from samsvae.training.checkpoint import Checkpoint

log = logging.getLogger("samsvae")

#: A label as in the AnnData, where it may be a number.
Label = str | int | float
Condition = Label | Sequence[Label]
LABELS = (str, int, float, np.generic)


def as_text(condition: Condition) -> str | Sequence[str]:
    """A condition with its labels as text; DataError if it is neither a label nor a list of labels."""
    if isinstance(condition, LABELS):
        return str(condition)
    if not isinstance(condition, Iterable) or not all(isinstance(name, LABELS) for name in condition):
        raise DataError(f"condition: {quoted(condition)} is not allowed; pass a label or a list of perturbations.")
    if all(isinstance(name, str) for name in condition):
        return cast(Sequence[str], condition)  # as given, since the seed of a sample is made from it
    return [str(name) for name in condition]


@dataclass(frozen=True)
class Names:
    """The names that a trained model knows: its perturbations, its control, and the separator of combinations."""

    checkpoint: Checkpoint

    def label(self, condition: str | Sequence[str]) -> str:
        """The label of a condition, for tables."""
        if isinstance(condition, str):
            return condition
        joined = (self.checkpoint.facts.get("separator") or "+").join(condition) or self.control
        if len(condition) > 1 and (self.unique or joined in self.checkpoint.perturbations):
            return str(list(condition))  # the joined label would be another dosage: a perturbation of its own
        return joined

    @property
    def control(self) -> str:
        """The label of the control."""
        return self.checkpoint.facts.get("control") or "control"

    @property
    def unique(self) -> bool:
        """Whether a combination is a perturbation of its own."""
        return self.checkpoint.facts["encoding"] == "unique"

    def levels(self, covariates: Mapping[str, Label] | None) -> Levels | None:
        """The levels of predicted cells: those of the training cells, with some ``covariates`` at one level.

        None if the model reads no covariates. DataError for a covariate or a level that the model does not know.
        """
        known, found = self.checkpoint.covariates, self.checkpoint.model.levels
        if not covariates or found is None:
            if covariates:
                raise DataError(f"covariates: the model reads none, so {quoted(next(iter(covariates)))} has no effect.")
            return found
        if unknown := [name for name in covariates if name not in known]:
            raise DataError(f"covariates: the model reads no {quoted(unknown[0])}.{nearest(unknown[0], known)}")
        asked = {name: str(level) for name, level in covariates.items()}
        for name, level in asked.items():
            if level not in known[name]:
                raise DataError(
                    f"covariates: {quoted(name)} has no level {quoted(level)} in the training cells."
                    f"{nearest(level, known[name])}"
                )
        return found.fixed([known[name].index(asked[name]) if name in asked else None for name in known])

    def members(self, conditions: Sequence[str | Sequence[str]]) -> np.ndarray:
        """Indices of the perturbations of each condition (C, P), padded with T.

        A warning is logged for perturbations without training cells. DataError if a condition is unknown.
        """
        position = {name: t for t, name in enumerate(self.checkpoint.perturbations)}
        rows = [[self._position(name, position) for name in self._parts(c, position)] for c in conditions]
        several = [condition for condition, row in zip(conditions, rows, strict=True) if len(row) > 1]
        if several and self.checkpoint.model.config.effect == "prior_mean":
            raise DataError(
                f"condition: {quoted(several[0])} is not allowed: the model reads one perturbation per cell. Pass the "
                "label of a combination that it was trained on (in the unique encoding)."
            )
        asked = {name for row in rows for name in row}
        if untrained := [name for name in self.checkpoint.untrained if position[name] in asked]:
            log.warning("no training cell received %s: the model has not learnt its effects", some(untrained))
        width = max(1, *map(len, rows)) if rows else 1
        return np.array([row + [len(position)] * (width - len(row)) for row in rows]).reshape(-1, width)

    def _parts(self, condition: str | Sequence[str], position: dict[str, int]) -> Sequence[str]:
        if not isinstance(condition, str):
            if twice := sorted({name for name in condition if list(condition).count(name) > 1}):
                named = quoted(list(condition))
                raise DataError(f"condition: {named} names {some(twice)} more than once; name it once.")
            return condition
        separator, controls = self.checkpoint.facts.get("separator"), self.checkpoint.facts.get("controls", [])
        if condition in {self.control, *controls}:
            return []
        if condition in position or not separator:
            return [condition]
        parts = sorted({part.strip() for part in condition.split(separator)} - {self.control, *controls})
        if self.unique:
            return [separator.join(parts)]
        return parts

    def _position(self, name: str, position: dict[str, int]) -> int:
        if name not in position:
            raise DataError(f"condition: {quoted(name)} is not a perturbation of the model.{nearest(name, position)}")
        return position[name]

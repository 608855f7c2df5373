"""The truth of the honest protocol: observed effects under a split, and what training cells alone predict (S1, S4).

Letters: n cells, C conditions (rows by code, NaN where undefined), G genes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from samsvae.data.arrays import Screen
from samsvae.errors import DataError
from samsvae.evaluation.cell_truth import CellTruth, cell_truth, target_of
from samsvae.evaluation.matched_parts import (
    ObservedLevels,
    effects_in_other_contexts,
    held_out_context,
    matched_parts,
    observed_levels,
)
from samsvae.evaluation.metrics import baselines
from samsvae.evaluation.metrics.estimates import (
    LEAST_FOR_VARIANCE,
    Effects,
    condition_moments,
    detected,
    effects,
    scored_sets,
)
from samsvae.evaluation.pairs import Pairs, cells_of_untested_singles, observed_pairs


@dataclass(frozen=True)
class Truth:
    """Observed effects of a screen under one split.

    ``test``, ``train`` and ``every``: effects from these cells, each against its own controls. ``sets``: the scored
    conditions of ``seen``, ``unseen`` and ``all``, (C,) bool; a set of fewer than 3 conditions is missing. ``genes``
    (G,) bool: detected in training controls. ``targets``: genes that the panel targets. ``pairs``: interactions of
    scored pairs. ``libraries``: the library sizes of the cells in which every condition, and the control, is observed;
    these are test cells, or for some singles and controls validation cells. ``cells``: the test cells of scored
    conditions as cells, or the reason why cells are not scored. ``levels``: the covariates of the cells of
    ``libraries``, or '' in a screen without them; with them, all effects are matched to controls of the same level.
    ``no_control``: why scores against the control are undefined, or ''.
    ``other_contexts`` (C, G): mean effects in the other contexts, if one is held out; else (0, G).
    """

    names: np.ndarray
    members: np.ndarray
    test: Effects
    train: Effects
    every: Effects
    sets: dict[str, np.ndarray]
    genes: np.ndarray
    targets: np.ndarray
    pairs: Pairs
    libraries: list[np.ndarray]
    control: int
    cells: CellTruth | str
    levels: ObservedLevels | str
    no_control: str = ""
    other_contexts: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def rows(self) -> np.ndarray:
        """The conditions that some set scores, as codes."""
        return np.flatnonzero(np.any(list(self.sets.values()), axis=0))

    @property
    def needed(self) -> np.ndarray:
        """The conditions whose effects scores need, as codes: the scored ones, and the singles of scored pairs."""
        return np.union1d(self.rows, self.pairs.observed.singles)

    @cached_property
    def baselines(self) -> dict[str, np.ndarray]:
        """Effects (C, G) predicted from training cells alone (S4); NaN where a baseline is silent."""
        train = np.isfinite(self.train.delta).all(1)
        delta, shape = self.train.delta, self.train.delta.shape
        if not train.any():
            return {"no_change": baselines.no_change(shape)}
        found = {
            "no_change": baselines.no_change(shape),
            "mean_of_perturbations": baselines.mean_of_perturbations(delta, train),
            "train_mean": delta,
            "shrunk": baselines.shrunk(delta, self.train.se2, train),
            "ridge_pc": baselines.ridge_pc(delta, self.members, train),
        }
        if len(self.other_contexts):
            found["other_contexts"] = self.other_contexts
        if self.members.shape[1] > 1:
            found["additive"] = baselines.additive(delta, self.members)
            found["matching_mean"] = baselines.matching_mean(delta, self.members, train)
        return found


def truth_of(screen: Screen, split: np.ndarray) -> Truth:
    """The observed effects of a screen under a split (n,).

    DataError, in one sentence, if the split has no effects to score: no control, or fewer than two cells of it in
    training or in test and validation, no gene that training controls express, or fewer than 3 conditions with 10 test
    cells.
    """
    control, n_conditions = screen.control, len(screen.conditions)
    if control is None or screen.by_dosage:
        raise DataError("the screen has no control cells, against which effects are measured.")
    parts = {**{s: split == s for s in ("train", "val", "test")}, "every": split != ""}
    parts["instead"] = cells_of_untested_singles(screen.condition, screen.conditions, screen.members, split)
    at_control = screen.condition == control
    context = held_out_context(screen, split)
    inside = np.ones(len(split), bool) if context is None else context[1]
    parts["every"] &= inside
    controls = "test" if (at_control & parts["test"]).sum() >= LEAST_FOR_VARIANCE else "val"
    matched = matched_parts(screen, parts, at_control & parts[controls])
    moments = {
        name: condition_moments(cells.X, screen.condition, n_conditions, cells=cells.rows, method=cells.method)
        for name, cells in matched.items()
    }
    parts = {name: cells.rows for name, cells in matched.items()}
    weights = {name: cells.weights for name, cells in matched.items() if cells.weights is not None}
    sets = scored_sets(moments["train"].n, moments["test"].n, control=control)
    if not sets:
        raise DataError("fewer than 3 conditions have 10 test cells.")
    if any((rows == sets["all"]).all() for name, rows in sets.items() if name != "all"):
        del sets["all"]  # the same rows under another name
    tested = np.where(at_control, parts[controls], parts["test"])
    observed = np.where((moments["instead"].n > 0)[screen.condition], parts["instead"], tested)
    # real values have no depth
    library = screen.library if screen.transform == "log2" else np.ones(len(split))
    own_controls = at_control & parts["train"] & inside
    genes = detected(screen.counts, own_controls) if screen.transform == "log2" else np.ones(len(screen.genes), bool)
    test = effects(moments["test"], control=control, controls=moments[controls], weights=weights.get("test"))
    train, every = (effects(moments[name], control=control, weights=weights.get(name)) for name in ("train", "every"))
    if not genes.any():
        raise DataError("no gene has counts in 3 of the training controls.")
    rows, targets = np.flatnonzero(np.any(list(sets.values()), axis=0)), target_of(screen)
    train_cells = own_controls | (parts["train"] & ~at_control)
    return Truth(
        names=screen.conditions,
        members=screen.members,
        test=test,
        train=train,
        every=every,
        sets=sets,
        genes=genes,
        targets=np.unique(targets[targets >= 0]),
        pairs=observed_pairs(
            moments, screen.members, rows, control=control, controls=moments[controls], weights=weights
        ),
        libraries=[library[(screen.condition == c) & observed] for c in range(n_conditions)],
        levels=observed_levels(screen, observed),
        other_contexts=effects_in_other_contexts(screen, split),
        control=control,
        cells=cell_truth(screen, rows=rows, control=control, train=train_cells, test=tested, genes=genes),
    )

"""The truth of the honest protocol: observed effects under a split, and what training cells alone predict (S1, S4).

Letters: n cells, C conditions (rows by code, NaN where undefined), G genes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from samsvae.data.arrays import Screen
from samsvae.errors import DataError
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
    these are test cells, or for some singles and controls validation cells.
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
        if self.members.shape[1] > 1:
            found["additive"] = baselines.additive(delta, self.members)
            found["matching_mean"] = baselines.matching_mean(delta, self.members, train)
        return found


def truth_of(screen: Screen, split: np.ndarray) -> Truth:
    """The observed effects of a screen under a split (n,).

    DataError, in one sentence, if the split has no effects to score: no control, or fewer than two cells of it in
    training or in test and validation, or fewer than 3 conditions with 10 test cells.
    """
    untreated = np.flatnonzero((screen.members < 0).all(1))
    if not len(untreated):
        raise DataError("the screen has no control cells, against which effects are measured.")
    control, n_conditions = int(untreated[0]), len(screen.conditions)
    parts = {**{s: split == s for s in ("train", "val", "test")}, "every": split != ""}
    parts["instead"] = cells_of_untested_singles(screen.condition, screen.conditions, screen.members, split)
    moments = {
        name: condition_moments(screen.counts, screen.condition, n_conditions, cells=cells, method=screen.transform)
        for name, cells in parts.items()
    }
    tested = moments["test"] if moments["test"].n[control] >= LEAST_FOR_VARIANCE else moments["val"]
    sets = scored_sets(moments["train"].n, moments["test"].n, control=control)
    if not sets:
        raise DataError("fewer than 3 conditions have 10 test cells.")
    if any((rows == sets["all"]).all() for name, rows in sets.items() if name != "all"):
        del sets["all"]  # the same rows under another name
    every_set = np.any(list(sets.values()), axis=0)
    at_control = screen.condition == control
    observed_in = {c: parts["instead" if moments["instead"].n[c] else "test"] for c in range(n_conditions)}
    observed_in[control] = parts["test" if tested is moments["test"] else "val"]
    # real values have no depth
    library = screen.library if screen.transform == "log2" else np.ones(len(split))
    libraries = [library[(screen.condition == c) & cells] for c, cells in observed_in.items()]
    if screen.transform == "log2":
        genes = detected(screen.counts, at_control & (split == "train"))
    else:
        genes = np.ones(len(screen.genes), bool)
    return Truth(
        names=screen.conditions,
        members=screen.members,
        test=effects(moments["test"], control=control, controls=tested),
        train=effects(moments["train"], control=control),
        every=effects(moments["every"], control=control),
        sets=sets,
        genes=genes,
        targets=target_genes(screen),
        pairs=observed_pairs(moments, screen.members, np.flatnonzero(every_set), control=control, controls=tested),
        libraries=libraries,
        control=control,
    )


def truth_or_reason(screen: Screen, split: np.ndarray) -> Truth | str:
    """`truth_of`, or one sentence that says why the split has no effects to score."""
    try:
        return truth_of(screen, split)
    except DataError as error:
        return str(error)


def target_genes(screen: Screen) -> np.ndarray:
    """Indices of the genes that perturbations target: those with the name of one, or with its part before a '_'."""
    position = {name: g for g, name in enumerate(screen.genes.tolist())}
    found = (position.get(name, position.get(name.partition("_")[0], -1)) for name in screen.perturbations.tolist())
    return np.unique([g for g in found if g >= 0]).astype(int)

"""The truth of the honest protocol for screens without a control, whose cells received several perturbations.

Conditions are single perturbations, with the zero dosage last. Their effects are coefficients of a regression on
dosages, in test and in training cells. Letters: T perturbations, G genes.
"""

from __future__ import annotations

import numpy as np

from samsvae.config.vocabulary import UNPERTURBED
from samsvae.data.arrays import Screen
from samsvae.errors import DataError
from samsvae.evaluation.cell_truth import target_of
from samsvae.evaluation.metrics.estimates import detected, scored_sets
from samsvae.evaluation.metrics.interactions import Interactions
from samsvae.evaluation.pairs import Pairs
from samsvae.evaluation.regression import dosages, effects, level_columns, regress
from samsvae.evaluation.truth import Truth

#: Why scores against a control, and of cells, are undefined.
NO_CONTROL = "the screen has no control"
NO_CELLS = "the cells of a single perturbation received others too"


def truth_by_dosage(screen: Screen, split: np.ndarray) -> Truth:
    """The observed effects of single perturbations under a split (n,), with a last row for the zero dosage.

    DataError, in one sentence, if the split has no effects to score: too few cells for the regression, no gene that
    training cells express, or fewer than 3 perturbations with 10 test cells.
    """
    dosage, n_perturbations = dosages(screen), len(screen.perturbations)
    more = level_columns(screen)
    cells = {"train": split == "train", "test": split == "test", "every": np.ones(len(split), bool)}
    found = {
        name: regress(screen.counts, dosage, np.flatnonzero(at), more=more, method=screen.transform)
        for name, at in cells.items()
    }
    n = {name: np.append(np.where(each.undetermined, 0, each.n), 0) for name, each in found.items()}
    sets = scored_sets(n["train"], n["test"], control=n_perturbations)
    if not sets:
        raise DataError("fewer than 3 perturbations have 10 test cells.")
    if any((rows == sets["all"]).all() for name, rows in sets.items() if name != "all"):
        del sets["all"]  # the same rows under another name
    genes = detected(screen.counts, cells["train"]) if screen.transform == "log2" else np.ones(len(screen.genes), bool)
    if not genes.any():
        raise DataError("no gene has counts in 3 of the training cells.")
    library = screen.library if screen.transform == "log2" else np.ones(len(split))
    received = dosage[cells["test"]].tocsc()
    of_cells = library[cells["test"]]
    libraries = [
        of_cells[received.indices[a:b]] for a, b in zip(received.indptr[:-1], received.indptr[1:], strict=True)
    ]
    targets = target_of(screen)
    no_pairs = Interactions(np.zeros(0, int), np.zeros((0, 2), int), *(np.zeros((0, len(genes))) for _ in range(2)))
    return Truth(
        names=np.append(screen.perturbations, UNPERTURBED),
        members=np.append(np.arange(n_perturbations), -1)[:, None],
        test=effects(found["test"]),
        train=effects(found["train"]),
        every=effects(found["every"]),
        sets=sets,
        genes=genes,
        targets=np.unique(targets[targets >= 0]),
        pairs=Pairs(no_pairs, no_pairs),
        libraries=[*libraries, of_cells],
        control=n_perturbations,
        cells=NO_CELLS,
        levels="",
        no_control=NO_CONTROL,
    )

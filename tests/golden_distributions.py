"""Rows of the golden tables of the honest protocol, sections S6, S7, S8, S10 and S11, from our public functions.

Each function of SECTIONS takes the arrays of a NAME.input.npz and returns {(section, metric, reference, predictor, set,
condition): value} in the words of NAME.expected.tsv; a section that the file has no arrays for has no rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy import sparse, stats

from samsvae.evaluation.metrics.average_precision import average_precision
from samsvae.evaluation.metrics.coverage import coverage, posterior_intervals
from samsvae.evaluation.metrics.distributions import components, energies, variance_ratio
from samsvae.evaluation.metrics.expression_agreement import (
    ExpressionTests,
    expression_agreement,
    expression_tests,
)
from samsvae.evaluation.metrics.importance_weights import importance_weights
from samsvae.evaluation.metrics.mask_stability import mask_stability, matched_jaccard

Arrays = Mapping[str, np.ndarray]
Rows = dict[tuple[str, str, str, str, str, str], float]

TRAIN, VALIDATION, TEST = 0, 1, 2


def counts(arrays: Arrays) -> sparse.csr_matrix:
    parts = (arrays["data"].astype(float), arrays["indices"], arrays["indptr"])
    return sparse.csr_matrix(parts, tuple(arrays["shape"]))


def log_counts(X: sparse.csr_matrix) -> sparse.csr_matrix:
    """S1's y, the product first."""
    Y = X.copy()
    Y.data = np.log2(1 + (1e4 * Y.data) / np.repeat(np.asarray(X.sum(1)).ravel(), np.diff(X.indptr)))
    return Y


def sides(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The cells of the truth, for which validation controls stand in if no control was tested, and training cells."""
    split, control = arrays["split"], arrays["condition"] == 0
    tested = split == TEST
    if not (tested & control).any():
        tested = tested | ((split == VALIDATION) & control)
    return tested, split == TRAIN


def seen_conditions(arrays: Arrays) -> np.ndarray:
    """Conditions with at least two test cells and two training cells, in order."""
    n = len(arrays["conditions"])
    numbers = [np.bincount(arrays["condition"][cells], minlength=n) for cells in sides(arrays)]
    return 1 + np.flatnonzero((numbers[0][1:] > 1) & (numbers[1][1:] > 1))


def detected(arrays: Arrays) -> np.ndarray:
    X = counts(arrays)[(arrays["split"] == TRAIN) & (arrays["condition"] == 0)]
    return np.flatnonzero(np.asarray((X > 0).sum(0)).ravel() >= max(3, 0.01 * X.shape[0]))


def tests(arrays: Arrays) -> tuple[ExpressionTests, ExpressionTests]:
    """Tests of the detected genes by the truth and by training cells, of all conditions."""
    Y, n = log_counts(counts(arrays))[:, detected(arrays)], len(arrays["conditions"])
    one, other = (expression_tests(Y[cells], arrays["condition"][cells], n) for cells in sides(arrays))
    return one, other


def expression(arrays: Arrays) -> Rows:
    if "label" in arrays:
        return {("S6", "auprc", "", "", "", ""): average_precision(arrays["label"], arrays["score"])}
    if "split" not in arrays:
        return {}
    genes = detected(arrays)
    members, target = arrays["members"], arrays["target"]
    targets = np.where(members >= 0, target[members], -1)[1:]  # (C - 1, P)
    left_out = (targets[:, :, None] == genes).any(1)
    scores = expression_agreement(*tests(arrays), left_out)
    rows: Rows = {}
    seen = seen_conditions(arrays)
    for name, values in scores.items():
        values = values[seen - 1]
        known = np.isfinite(values)
        rows["S6", f"{name}_n", "", "train cells", "seen", ""] = float(known.sum())
        if known.any():
            rows["S6", name, "", "train cells", "seen", ""] = float(values[known].mean())
        for c, value in zip(seen, values, strict=True):
            rows["S6", name, "", "train cells", "seen", str(arrays["conditions"][c])] = float(value)
    return rows


def distributions(arrays: Arrays) -> Rows:
    if "split" not in arrays:
        return {}
    Y, condition, n = log_counts(counts(arrays)), arrays["condition"], len(arrays["conditions"])
    tested, trained = sides(arrays)
    found = components(Y[trained])
    ours, theirs = found.scores(Y[trained]), found.scores(Y[tested])
    our, their = condition[trained], condition[tested]
    seen = seen_conditions(arrays)
    control = ours[our == 0]
    energy = energies(
        ours[np.isin(our, seen)], our[np.isin(our, seen)], theirs[np.isin(their, seen)], their[np.isin(their, seen)],
        control, n,
    )  # fmt: skip
    variances = [
        np.stack([Y[cells & (condition == c)].toarray().var(0, ddof=1) for c in seen]) for cells in (trained, tested)
    ]
    ratio = variance_ratio(*variances)
    rows: Rows = {
        ("S7", "energy_share", "", "train cells", "seen", ""): energy.energy_share,
        ("S7", "log2_variance_ratio", "", "train cells", "seen", ""): float(np.log2(ratio).mean()),
    }
    for i, c in enumerate(seen):
        values = {
            "energy": energy.energy[c - 1],
            "energy_of_control": energy.energy_of_control[c - 1],
            "variance_ratio": ratio[i],
        }
        for name, value in values.items():
            rows["S7", name, "", "train cells", "seen", str(arrays["conditions"][c])] = float(value)
    return rows


def intervals(arrays: Arrays) -> Rows:
    if "draws" not in arrays:
        return {}
    found = coverage(posterior_intervals(arrays["draws"], arrays["observed"], arrays["se2"]))
    return {("S8", name, "", "", "", ""): value for name, value in found.items()}


def weights(arrays: Arrays) -> Rows:
    if "logw" not in arrays:
        return {}
    found = importance_weights(arrays["logw"])
    # x = z + noise in two dimensions, both standard normal
    evidence = stats.norm.logpdf(arrays["x"], scale=np.sqrt(2)).sum(1).mean()
    rows: Rows = {("S10", "evidence", "", "", "", ""): float(evidence)}
    for size, bound in found.bounds.items():
        rows["S10", f"iwelbo_{size}", "", "", "", ""] = bound.value
        rows["S10", f"iwelbo_{size}_se", "", "", "", ""] = bound.error
    cells = {"ess": found.ess, "pareto_k": found.pareto_k, "iwelbo_all": found.log_evidence}
    for name, values in cells.items():
        rows |= {("S10", name, "", "", "", str(i)): float(value) for i, value in enumerate(values)}
    return rows


def masks(arrays: Arrays) -> Rows:
    if "masks" not in arrays:
        return {}
    found = arrays["masks"]
    scores = mask_stability(list(found)).scores()
    ones = np.ones_like(found[0])
    values = {name: scores[name] for name in ("jaccard", "null", "excess", "gram")} | {
        "matched_jaccard_01": matched_jaccard(found[0], found[1]),
        "empty": matched_jaccard(~ones, ~ones),
        "ones": matched_jaccard(ones, ones),
    }
    return {("S11", name, "", "", "", ""): value for name, value in values.items()}


#: Rows of the files, by section and metric, that we no longer compute.
NO_LONGER = {("S7", "bandwidth"), ("S7", "mmd2")}

SECTIONS: dict[str, Callable[[Arrays], Rows]] = {
    "S6": expression,
    "S7": distributions,
    "S8": intervals,
    "S10": weights,
    "S11": masks,
}


def scores_of_seen(arrays: Arrays) -> ExpressionTests:
    """Tests of the truth for the seen conditions, in order."""
    truth, seen = tests(arrays)[0], seen_conditions(arrays) - 1
    return ExpressionTests(truth.z[seen], truth.q[seen], truth.difference[seen])


ARRAYS: dict[str, Callable[[Arrays], np.ndarray]] = {
    "z_test": lambda arrays: scores_of_seen(arrays).z,
    "q_test": lambda arrays: scores_of_seen(arrays).q,
}

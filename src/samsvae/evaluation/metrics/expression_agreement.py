"""Differential expression by held-out cells, and how a prediction's cells agree with it (S6 of docs/evaluation.md).

Letters: n cells, D tested genes, C conditions (0 is the control). Rows of results are the conditions
1 to C - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse, special

from samsvae.errors import DataError
from samsvae.evaluation.metrics.average_precision import average_precision
from samsvae.evaluation.metrics.checked import checked, checked_codes
from samsvae.evaluation.metrics.checked_cells import checked_cells
from samsvae.evaluation.metrics.constants import OVERLAPS
from samsvae.evaluation.metrics.estimates import LogCounts
from samsvae.evaluation.metrics.false_discovery import false_discovery_rates
from samsvae.evaluation.metrics.rank_sums import rank_scores

#: A gene whose q (Benjamini-Hochberg) is smaller is significant.
ALPHA = 0.05

#: Significant genes that ``sign`` needs.
SIGN_GENES = 10

#: The scores of `expression_agreement`, in its order.
EXPRESSION_SCORES = (
    *(f"overlap{k}" for k in OVERLAPS),
    *("n_significant", "auprc", "auprc_chance", "sign", "jaccard", "mcc"),
)

_BLOCK = 2**21  # values tested at a time, to save memory


@dataclass(frozen=True)
class ExpressionTests:
    """Tests of conditions 1 to C - 1 against control, each (C - 1, D); a row is NaN if its condition was not tested."""

    z: np.ndarray  #: Wilcoxon's score, positive where the condition is higher
    q: np.ndarray  #: Benjamini-Hochberg within the condition, over the tested genes
    difference: np.ndarray  #: of the means of y, in log2


def expression_tests(
    Y: np.ndarray | sparse.spmatrix | LogCounts, condition: np.ndarray, n_conditions: int
) -> ExpressionTests:
    """Test D genes of every condition against control by Wilcoxon's rank sum (S6).

    Y (n, D): y of the tested genes, float64, dense or sparse, or LogCounts; equal proportions must be equal numbers, so
    compute y as log2(1 + (1e4 x) / s), the product first. ``condition`` (n,): codes, 0 the control. The variance is
    corrected for ties, without continuity correction; z is 0 and p is 1 where it is 0.

    Conditions with fewer than two cells are not tested: their rows are NaN. DataError if the control has fewer than
    two cells, or if shapes, codes or values are impossible.
    """
    Y = Y if isinstance(Y, LogCounts) else checked_cells("Y", Y, "D")
    n, n_genes = Y.shape
    condition = checked_codes("condition", condition, n, n_conditions)
    size = np.bincount(condition, minlength=n_conditions)
    if size[0] < 2:
        raise DataError(f"Differential expression needs at least two control cells, but there are {size[0]}.")
    tested = np.flatnonzero(size[1:] > 1) + 1
    z, q, difference = (np.full((n_conditions - 1, n_genes), np.nan) for _ in range(3))
    if not len(tested):
        return ExpressionTests(z, q, difference)
    group = np.full(n_conditions, -1)
    group[[0, *tested]] = np.arange(len(tested) + 1)
    group = group[condition]
    used = np.flatnonzero(group >= 0)
    group, number = group[used], size[[0, *tested]].astype(float)
    indicator = sparse.csr_matrix((np.ones(len(used)), (group, np.arange(len(used)))), (len(number), len(used)))
    Y = Y if isinstance(Y, np.ndarray | LogCounts) else Y.tocsc()
    step = max(1, _BLOCK // n)
    for start in range(0, n_genes, step):
        at = slice(start, start + step)
        block = (Y[:, at] if isinstance(Y, np.ndarray | LogCounts) else Y[:, at].toarray())[used]
        mean = (indicator @ block) / number[:, None]
        difference[tested - 1, at] = mean[1:] - mean[0]
        z[tested - 1, at] = np.nan_to_num(rank_scores(block, group, number).T, nan=0.0)
    q[tested - 1] = false_discovery_rates(2 * special.ndtr(-np.abs(z[tested - 1])))
    return ExpressionTests(z, q, difference)


def expression_agreement(
    truth: ExpressionTests, prediction: ExpressionTests, left_out: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Agreement of the tests of predicted cells with those of held-out cells, per condition (S6).

    ``left_out`` (C - 1, D) bool: genes that do not count, the targets of the condition; they are left out after BH.
    Returns the scores of `EXPRESSION_SCORES`, each (C - 1,):

    * ``overlapK``: share of the K genes of largest \\|z\\| that both have (ties by gene order); NaN with fewer genes;
    * ``n_significant``: significant genes by the truth;
    * ``auprc``: average precision of the predicted \\|z\\| for the significant genes; NaN if none or all are;
    * ``auprc_chance``: its value for random scores, the share of significant genes; NaN without a gene;
    * ``sign``: share of the significant genes whose difference has the truth's sign; NaN below 10 significant genes;
    * ``jaccard`` of the two significant sets, 1 if both are empty;
    * ``mcc`` of the two significant sets; NaN where a set is empty or complete.

    All are NaN for a condition that one of the two did not test. DataError if shapes differ.
    """
    shape = np.shape(truth.z)
    for name, tests in (("truth", truth), ("prediction", prediction)):
        for part in ("z", "q", "difference"):
            checked(f"{name}.{part}", getattr(tests, part), (*shape,), finite=False)
    kept = np.ones(shape, bool) if left_out is None else ~checked("left_out", left_out, (*shape,)).astype(bool)
    scores = {name: np.full(shape[0], np.nan) for name in EXPRESSION_SCORES}
    for c in np.flatnonzero(np.isfinite(truth.z).all(1) & np.isfinite(prediction.z).all(1)):
        genes = np.flatnonzero(kept[c])
        one, other = (
            ExpressionTests(tests.z[c, genes], tests.q[c, genes], tests.difference[c, genes])
            for tests in (truth, prediction)
        )
        for name, value in _scores(one, other).items():
            scores[name][c] = value
    return scores


def _scores(truth: ExpressionTests, prediction: ExpressionTests) -> dict[str, float]:
    """The scores of one condition, from tests (D,) without the genes that are left out."""
    true, found = truth.q < ALPHA, prediction.q < ALPHA
    n_genes, n_true, n_found, hits = len(true), int(true.sum()), int(found.sum()), int((true & found).sum())
    union = n_true + n_found - hits
    spread = float(n_true) * n_found * (n_genes - n_true) * (n_genes - n_found)
    same = np.sign(truth.difference[true]) == np.sign(prediction.difference[true])
    ranked = [np.argsort(-np.abs(tests.z), kind="stable") for tests in (truth, prediction)]
    overlaps = {
        f"overlap{k}": len(np.intersect1d(ranked[0][:k], ranked[1][:k])) / k if n_genes >= k else np.nan
        for k in OVERLAPS
    }
    return overlaps | {
        "n_significant": n_true,
        "auprc": average_precision(true, np.abs(prediction.z)),
        "auprc_chance": n_true / n_genes if n_genes else np.nan,
        "sign": float(same.mean()) if n_true >= SIGN_GENES else np.nan,
        "jaccard": hits / union if union else 1.0,
        "mcc": (hits * n_genes - n_true * n_found) / np.sqrt(spread) if spread else np.nan,
    }

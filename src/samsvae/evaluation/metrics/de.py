"""Differential expression of each condition against control, and its agreement between a model and the data.

Letters: n cells, G genes (g in a block), C conditions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from scipy import sparse, special

from samsvae.config.vocabulary import LIBRARY
from samsvae.errors import DataError, nearest, quoted, some
from samsvae.evaluation.metrics.average_precision import average_precision
from samsvae.evaluation.metrics.constants import OVERLAPS
from samsvae.evaluation.metrics.false_discovery import false_discovery_rates
from samsvae.evaluation.metrics.rank_sums import rank_scores

METHODS = ("wilcoxon", "t-test")

COLUMNS = ["condition", "gene", "method", "score", "log_fold_change", "pvalue", "padj"]

_BLOCK = 2**21  # values tested at a time, to save memory


def differential_expression(
    X: np.ndarray,
    condition: np.ndarray,
    genes: Collection[str] | np.ndarray,
    *,
    control: str,
    methods: Sequence[str] = METHODS,
    conditions: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Test every gene of every condition against control, on log1p of counts per 1e4.

    X (n, G): counts, dense or sparse. ``condition`` (n,): names. ``conditions``: which to test, by default all except
    control. The numbers equal those of scanpy's rank_genes_groups. Wilcoxon corrects for ties, which are frequent in
    counts (scanpy's default does not); the t-test is Welch's.

    Columns: condition, gene, method, score, log_fold_change (log2 of the ratio of expm1 of the means), pvalue, padj
    (Benjamini-Hochberg within a condition and method). Rows are sorted by condition, then in the order of ``methods``
    and ``genes``. Conditions with fewer than two cells cannot be tested and have no rows. A gene that is constant in
    both groups has score 0 and p 1, for Wilcoxon only if the constants are equal.

    DataError if control has fewer than two cells, or if ``conditions`` names the control or a condition without cells.
    ValueError for an unknown method.
    """
    sizes = pd.Series(condition).value_counts()
    if sizes.get(control, 0) < 2:
        raise DataError(
            f"Differential expression needs at least two cells of the control {quoted(control)}."
            f"{nearest(control, sizes.index)}"
        )
    named = sorted(set(sizes.index) - {control}) if conditions is None else list(conditions)
    if control in named:
        raise DataError(
            f"conditions: {quoted(control)} is the control, which cannot be tested against itself; leave it out."
        )
    if unknown := [name for name in named if name not in sizes.index]:
        raise DataError(
            f"conditions: no cell has the condition {some(unknown)}.{nearest(unknown[0], sorted(sizes.index))}"
        )
    tested = [name for name in named if sizes.get(name, 0) > 1]
    if not tested:
        return pd.DataFrame(columns=COLUMNS)
    group = pd.Index([control, *tested]).get_indexer(condition)
    used = np.flatnonzero(group >= 0)
    Y, group = _log_normalised(X[used]), group[used]
    number = np.bincount(group).astype(float)  # (C + 1,), control first
    step = max(1, _BLOCK // len(used))
    parts = []
    for start in range(0, len(genes), step):
        block = Y[:, start : start + step]
        parts.append(_tests(block if isinstance(block, np.ndarray) else block.toarray(), group, number, methods))
    found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}  # (G, C) each
    tables = []
    for c, name in enumerate(tested):
        for method in methods:
            score, p = found[method][:, c], found[f"{method} p"][:, c]
            columns = (score, found["log_fold_change"][:, c], p, false_discovery_rates(p))
            tables.append(
                pd.DataFrame(
                    {"condition": name, "gene": list(genes), "method": method}
                    | dict(zip(COLUMNS[3:], columns, strict=True))
                )
            )
    return pd.concat(tables, ignore_index=True).sort_values("condition", kind="stable", ignore_index=True)


def _log_normalised(X: np.ndarray | sparse.spmatrix) -> np.ndarray | sparse.csc_matrix:
    """log(1 + 1e4 x_g / sum_g x), float32 (n, G); equal values stay equal, so that ties are exact."""
    scale = np.asarray(X.sum(1), np.float32).reshape(-1, 1) / np.float32(LIBRARY)
    scale[scale == 0] = 1
    if isinstance(X, np.ndarray):
        return np.log1p(X.astype(np.float32) / scale)
    Y = sparse.csr_matrix(X, dtype=np.float32, copy=True)
    Y.data = np.log1p(Y.data / np.repeat(scale[:, 0], np.diff(Y.indptr)))
    return Y.tocsc()


def _tests(Y: np.ndarray, group: np.ndarray, number: np.ndarray, methods: Sequence[str]) -> dict[str, np.ndarray]:
    """Test genes (n, g) in groups 1 to C against group 0: fold changes, scores and p of each method, (g, C) each."""
    indicator = sparse.csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))), (len(number), len(group)))
    Z = Y.astype(float)
    mean = (indicator @ Z).T / number  # (g, C + 1)
    ratio = (np.expm1(mean[:, 1:]) + 1e-9) / (np.expm1(mean[:, :1]) + 1e-9)
    found = {"log_fold_change": np.log2(ratio)}
    for method in methods:
        with np.errstate(invalid="ignore", divide="ignore"):
            if method == "t-test":
                score, p = _welch(Z, indicator, mean, number)
            elif method == "wilcoxon":
                score = rank_scores(Y, group, number)
                p = 2 * special.ndtr(-np.abs(score))
            else:
                raise ValueError(f"method {method!r}; allowed: {', '.join(METHODS)}.")
        # both groups constant (for the t-test also at different values): no evidence
        undefined = np.isnan(score) | np.isnan(p)
        found[method], found[f"{method} p"] = np.where(undefined, 0.0, score), np.where(undefined, 1.0, p)
    return found


def _welch(
    Z: np.ndarray, indicator: sparse.csr_matrix, mean: np.ndarray, number: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and p values of Welch's t-test of groups 1 to C against group 0, (g, C) each; NaN if both are constant."""
    centre = Z.mean(0)  # subtracted first, so that no large numbers cancel
    shift = number * (mean - centre[:, None]) ** 2
    square = (indicator @ (Z - centre) ** 2).T - shift
    square = np.where(square > 1e-12 * shift, square, 0.0)  # smaller values are rounding errors of a constant
    error = square / (number - 1) / number
    score = (mean[:, 1:] - mean[:, :1]) / np.sqrt(error[:, 1:] + error[:, :1])
    freedom = (error[:, 1:] + error[:, :1]) ** 2 / (
        error[:, 1:] ** 2 / (number[1:] - 1) + error[:, :1] ** 2 / (number[0] - 1)
    )
    return score, 2 * special.stdtr(freedom, -np.abs(score))


def de_agreement(
    data: pd.DataFrame, model: pd.DataFrame, *, top: Sequence[int] = OVERLAPS, alpha: float = 0.05
) -> pd.DataFrame:
    """Compare two tables of differential_expression: columns condition, method, metric, value.

    ``de_overlap<k>``, for each k in ``top`` below the number of genes: share of the data's k genes with the largest
    absolute score that are also among the model's k. ``de_sign_accuracy``: share of the data's significant genes
    (padj < alpha) whose fold change has the same sign in the model. ``de_auprc``: average precision of the model's
    absolute score for the data's significant genes. The last two are NaN if no gene is significant, ``de_auprc`` also
    if all are. Conditions, methods and genes that only one table has are left out.
    """
    both = data.merge(model, on=["condition", "gene", "method"], suffixes=("", "_model"))
    rows = []
    for (condition, method), table in both.groupby(["condition", "method"], sort=False):
        size, size_model = table["score"].abs().to_numpy(), table["score_model"].abs().to_numpy()
        order, order_model = (np.argsort(-s, kind="stable") for s in (size, size_model))
        found = {f"de_overlap{k}": len(np.intersect1d(order[:k], order_model[:k])) / k for k in top if k < len(table)}
        significant = (table["padj"] < alpha).to_numpy()
        signs = np.sign(table["log_fold_change"]) == np.sign(table["log_fold_change_model"])
        found["de_sign_accuracy"] = signs[significant].mean() if significant.any() else np.nan
        found["de_auprc"] = average_precision(significant, size_model)
        rows += [(condition, method, metric, value) for metric, value in found.items()]
    return pd.DataFrame(rows, columns=["condition", "method", "metric", "value"])

"""Differential expression of each condition against control, and how far a model's agrees with the data's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from samsvae.errors import DataError, nearest

METHODS = ("wilcoxon", "t-test")
COLUMNS = ["condition", "gene", "method", "score", "log_fold_change", "pvalue", "padj"]


def differential_expression(
    X: np.ndarray,
    condition: np.ndarray,
    genes: Sequence[str],
    *,
    control: str,
    methods: Sequence[str] = METHODS,
    conditions: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Test every gene of every condition against control, by scanpy's rank_genes_groups on log1p of counts per 1e4.

    X (n, G) counts, dense or sparse; condition (n,) names. ``conditions``: those to test (all but control).
    Wilcoxon corrects for ties, which rule in counts (scanpy's default does not). Columns: condition, gene,
    method, score, log_fold_change (log2, as scanpy has it), pvalue, padj (Benjamini-Hochberg within a
    condition); rows in the order condition, method, gene of the arguments. Conditions with fewer than two
    cells cannot be tested and have no rows. DataError without two control cells.
    """
    import anndata as ad
    import scanpy as sc

    sizes = pd.Series(condition).value_counts()
    if sizes.get(control, 0) < 2:
        raise DataError(f"Differential expression needs two cells of {control!r}.{nearest(control, sizes.index)}")
    named = sorted(set(sizes.index) - {control}) if conditions is None else list(conditions)
    tested = [name for name in named if sizes.get(name, 0) > 1]
    if not tested:
        return pd.DataFrame(columns=COLUMNS)
    keep = np.isin(condition, [*tested, control])
    cells = ad.AnnData(
        X[keep].astype(np.float32),
        pd.DataFrame({"condition": pd.Categorical(np.asarray(condition)[keep])}, index=keep.nonzero()[0].astype(str)),
        pd.DataFrame(index=list(genes)),
    )
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    tables = []
    for method in methods:
        sc.tl.rank_genes_groups(
            cells,
            "condition",
            groups=tested,
            reference=control,
            method=method,
            corr_method="benjamini-hochberg",
            tie_correct=method == "wilcoxon",
        )
        found = cells.uns["rank_genes_groups"]
        for name in tested:
            columns = ("scores", "logfoldchanges", "pvals", "pvals_adj")
            values = pd.DataFrame({c: found[c][name] for c in columns}, index=found["names"][name]).loc[list(genes)]
            tables.append(
                pd.DataFrame(
                    {"condition": name, "gene": list(genes), "method": method}
                    | dict(zip(COLUMNS[3:], values.to_numpy(float).T, strict=True))
                )
            )
    return pd.concat(tables, ignore_index=True).sort_values("condition", kind="stable", ignore_index=True)


def de_agreement(
    data: pd.DataFrame, model: pd.DataFrame, *, top: Sequence[int] = (20, 50, 100), alpha: float = 0.05
) -> pd.DataFrame:
    """Compare two tables of differential_expression: columns condition, method, metric, value.

    ``de_overlap<k>``: share of the data's k genes of largest absolute score that are among the model's k
    (only where k is less than the number of genes); ``de_sign_accuracy``: share of the data's significant
    genes (padj < alpha) whose fold change has the same sign; ``de_auprc``: average precision of the model's
    absolute score for the data's significant genes. The last two are NaN where no gene (the last: or every
    gene) is significant. Conditions, methods and genes of one table alone are left out.
    """
    from sklearn.metrics import average_precision_score

    both = data.merge(model, on=["condition", "gene", "method"], suffixes=("", "_model"))
    rows = []
    for (condition, method), table in both.groupby(["condition", "method"], sort=False):
        size, size_model = table["score"].abs().to_numpy(), table["score_model"].abs().to_numpy()
        order, order_model = (np.argsort(-s, kind="stable") for s in (size, size_model))
        found = {f"de_overlap{k}": len(np.intersect1d(order[:k], order_model[:k])) / k for k in top if k < len(table)}
        significant = (table["padj"] < alpha).to_numpy()
        signs = np.sign(table["log_fold_change"]) == np.sign(table["log_fold_change_model"])
        found["de_sign_accuracy"] = signs[significant].mean() if significant.any() else np.nan
        mixed = significant.any() and not significant.all()
        found["de_auprc"] = average_precision_score(significant, size_model) if mixed else np.nan
        rows += [(condition, method, metric, value) for metric, value in found.items()]
    return pd.DataFrame(rows, columns=["condition", "method", "metric", "value"])

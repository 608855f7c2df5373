"""Differential expression compared with scipy's tests, and agreement with tables computed by hand."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse, stats

from samsvae.errors import DataError
from samsvae.evaluation.metrics.de import COLUMNS, de_agreement, differential_expression
from samsvae.evaluation.metrics.false_discovery import false_discovery_rates

RNG = np.random.default_rng(0)
GENES = [f"g{i}" for i in range(30)]


def labelled(condition):
    """obs of cells with these conditions, as scanpy needs it."""
    names = [f"cell{i}" for i in range(len(condition))]
    return pd.DataFrame({"condition": pd.Categorical(condition)}, index=names)


@pytest.fixture(scope="module")
def screen():
    condition = np.repeat(["ctrl", "B", "A", "lone"], [60, 40, 50, 1])
    rate = np.full((151, 30), 3.0)
    rate[condition == "A", :5] *= 3
    rate[condition == "B", 5:8] /= 4
    return RNG.multinomial(100, rate / rate.sum(1, keepdims=True)).astype(np.int32), condition  # equal sums


@pytest.fixture(scope="module")
def table(screen):
    return differential_expression(sparse.csr_matrix(screen[0]), screen[1], GENES, control="ctrl")


def test_shape_and_order(table):
    assert list(table.columns) == COLUMNS
    assert list(table["condition"].unique()) == ["A", "B"]  # one cell cannot be tested
    assert len(table) == 2 * 2 * 30 and list(table["gene"][:30]) == GENES
    assert not table.isna().any(axis=None)


def test_p_values_equal_scipys(screen, table):
    x, condition = screen
    y = np.log1p(1e4 * x / x.sum(1, keepdims=True))
    for name in ("A", "B"):
        rows = table[table["condition"] == name].set_index("method")
        a, b = y[condition == name], y[condition == "ctrl"]
        wilcoxon = stats.mannwhitneyu(a, b, use_continuity=False, method="asymptotic").pvalue
        np.testing.assert_allclose(rows.loc["wilcoxon", "pvalue"], wilcoxon, rtol=1e-3)
        welch = stats.ttest_ind(a, b, equal_var=False)
        np.testing.assert_allclose(rows.loc["t-test", "pvalue"], welch.pvalue, rtol=2e-2)
        np.testing.assert_allclose(rows.loc["t-test", "score"], welch.statistic, rtol=1e-2, atol=1e-3)
        for method in ("wilcoxon", "t-test"):
            p = rows.loc[method, "pvalue"]
            np.testing.assert_allclose(rows.loc[method, "padj"], stats.false_discovery_control(p), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (30,), (4, 30)])
def test_false_discovery_rates_equal_scipys(shape):
    p = RNG.random(shape).round(1) ** 2  # with ties, 0 and 1
    np.testing.assert_array_equal(false_discovery_rates(p), stats.false_discovery_control(p, axis=-1))


def test_all_numbers_equal_scanpys(screen, table, monkeypatch):
    """Also if genes are tested in blocks. One gene has no counts, and one is equal in all cells."""
    x, condition = screen[0].copy(), screen[1]
    x[:, 0] += x[:, 3] + x[:, 4]  # equal sums, so that ties do not depend on rounding
    x[:, 3], x[:, 4] = 0, 2
    cells = ad.AnnData(x.astype(np.float32), labelled(condition))
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    monkeypatch.setattr("samsvae.evaluation.metrics.de._BLOCK", 7 * 150)
    ours = differential_expression(x, condition, GENES, control="ctrl").set_index(["condition", "method"])
    packed = differential_expression(sparse.csc_matrix(x), condition, GENES, control="ctrl")
    pd.testing.assert_frame_equal(packed.set_index(["condition", "method"]), ours)
    ours = ours.sort_index(kind="stable")
    for method in ("wilcoxon", "t-test"):
        with np.errstate(invalid="ignore"):  # scanpy divides 0 by 0 for the gene without counts
            sc.tl.rank_genes_groups(
                cells, "condition", groups=["A", "B"], reference="ctrl", method=method, tie_correct=method == "wilcoxon"
            )
        for name in ("A", "B"):
            theirs = sc.get.rank_genes_groups_df(cells, name).set_index("names").loc[list(cells.var_names)]
            rows = ours.xs((name, method))
            for a, b in (("score", "scores"), ("log_fold_change", "logfoldchanges"), ("pvalue", "pvals")):
                np.testing.assert_allclose(rows[a], theirs[b], rtol=2e-5, atol=2e-6)
            np.testing.assert_allclose(rows["padj"], theirs["pvals_adj"], rtol=1e-4)
            assert (rows["pvalue"].iloc[3:5] == 1).all() and (rows["score"].iloc[3:5] == 0).all()


def test_planted_genes_are_found(table):
    wilcoxon = table[table["method"] == "wilcoxon"]
    found = wilcoxon[wilcoxon["padj"] < 1e-3].groupby("condition")["gene"].agg(set)
    assert found["A"] >= set(GENES[:5]) and found["B"] >= set(GENES[5:8])
    up = wilcoxon[(wilcoxon["condition"] == "A") & wilcoxon["gene"].isin(GENES[:5])]
    assert (up["log_fold_change"] > 0.5).all() and (up["score"] > 0).all()


def test_chosen_conditions_and_methods_do_not_change_the_rows(screen, table):
    one = differential_expression(*screen, GENES, control="ctrl", conditions=["B"], methods=("t-test",))
    rows = table[(table["condition"] == "B") & (table["method"] == "t-test")].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, rows)
    assert differential_expression(*screen, GENES, control="ctrl", conditions=["lone"]).empty


def test_control_is_needed(screen):
    with pytest.raises(DataError, match=r"'ctr'.*Did you mean 'ctrl'"):
        differential_expression(*screen, GENES, control="ctr")


@pytest.mark.parametrize("control", [3, 101])  # with 101, the sums of squares do not cancel exactly
def test_groups_that_are_constant_but_differ(control):
    """Without spread in both groups, Welch's t is undefined (as in scanpy), but the rank test is not."""
    x = np.array([[5, 0, 5]] * control + [[0, 5, 5]] * 2 + [[2, 1, 7]])
    condition = ["ctrl"] * control + ["A"] * 2 + ["lone"]
    found = differential_expression(x, np.array(condition), GENES[:3], control="ctrl").set_index("method")
    cells = ad.AnnData(x[:-1].astype(np.float32), labelled(condition[:-1]))
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.tl.rank_genes_groups(cells, "condition", groups=["A"], reference="ctrl", method="t-test")
    theirs = sc.get.rank_genes_groups_df(cells, "A").set_index("names").loc[list(cells.var_names)]
    ours = found.loc["t-test"]
    for a, b in (
        ("score", "scores"),
        ("log_fold_change", "logfoldchanges"),
        ("pvalue", "pvals"),
        ("padj", "pvals_adj"),
    ):
        np.testing.assert_allclose(ours[a], theirs[b], rtol=1e-5)
    assert ours["score"].tolist() == [0, 0, 0] and ours["padj"].tolist() == [1, 1, 1]
    exact = stats.mannwhitneyu(x[control:-1], x[:control], use_continuity=False, method="asymptotic").pvalue
    np.testing.assert_allclose(found.loc["wilcoxon", "pvalue"][:2], exact[:2])
    assert np.isfinite(found.drop(columns=["condition", "gene"])).all(axis=None)


def test_conditions_that_cannot_be_tested_are_named(screen):
    with pytest.raises(DataError, match=r"no cell has the condition 'b', 'C'\..*Allowed: A, B, ctrl, lone\."):
        differential_expression(*screen, GENES, control="ctrl", conditions=["b", "A", "C"])
    with pytest.raises(DataError, match="'ctrl' is the control"):
        differential_expression(*screen, GENES, control="ctrl", conditions=["A", "ctrl"])


def tables(scores, padj, fold=None):
    fold = scores if fold is None else fold
    genes = [f"g{i}" for i in range(len(scores))]
    return pd.DataFrame(
        {"condition": "A", "gene": genes, "method": "t-test", "score": scores, "log_fold_change": fold, "padj": padj}
    )


def agreement(data, model, **options):
    return de_agreement(data, model, **options).set_index("metric")["value"]


def test_agreement_by_hand():
    data = tables([9.0, -8, 3, 1, 0.5], [0.001, 0.01, 0.04, 0.5, 0.9])
    model = tables([7.0, 2, -1, -9, 0.1], [1.0] * 5)
    got = agreement(data, model, top=(2, 3, 5))
    assert got["de_overlap2"] == 1 / 2  # {0, 1} and {3, 0}
    assert got["de_overlap3"] == 2 / 3  # {0, 1, 2} and {3, 0, 1}
    assert "de_overlap5" not in got  # there are only five genes
    assert got["de_sign_accuracy"] == pytest.approx(1 / 3)  # signs + - + in the data, + + - in the model
    assert got["de_auprc"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3)  # significant genes have ranks 2, 3, 4


def test_agreement_if_none_or_all_are_significant():
    none = agreement(tables([1.0, 2], [1.0, 1.0]), tables([1.0, 2], [1.0, 1.0]))
    assert np.isnan(none["de_auprc"]) and np.isnan(none["de_sign_accuracy"])
    every = agreement(tables([1.0, 2], [0.0, 0.0]), tables([-1.0, 2], [0.0, 0.0]))
    assert np.isnan(every["de_auprc"]) and every["de_sign_accuracy"] == 1 / 2


def test_agreement_with_itself(table):
    got = de_agreement(table, table, top=(5, 20))
    assert got["value"].to_numpy() == pytest.approx(1) and len(got) == 2 * 2 * 4

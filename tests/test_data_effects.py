"""Observed effects, scores and baselines, compared with loops over cells in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import nbinom, pearsonr
from sklearn.metrics import r2_score
from small_model import screen

from samsvae.data.arrays import Screen
from samsvae.errors import DataError
from samsvae.evaluation.baselines import baseline_tables, baselines, likelihood_baseline
from samsvae.evaluation.data_effects import effects
from samsvae.evaluation.metrics.likelihood import fit_intercept_nb
from samsvae.evaluation.scores import per_condition, score

# three genes; two perturbations, alone and together, and control
COUNTS = np.array(
    [
        [5, 3, 2],  # 0 control
        [1, 1, 8],  # 1 control
        [4, 4, 0],  # 2 control
        [10, 0, 0],  # 3 a
        [6, 2, 2],  # 4 a
        [0, 10, 10],  # 5 a
        [0, 0, 20],  # 6 b
        [3, 3, 14],  # 7 b
        [8, 1, 1],  # 8 a+b
        [20, 10, 10],  # 9 a+b
        [2, 2, 2],  # 10 b
        [7, 1, 2],  # 11 c
    ],
    np.uint8,
)
LABELS = ["control"] * 3 + ["a"] * 3 + ["b"] * 2 + ["a+b"] * 2 + ["b", "c"]
SPLIT = np.array(["train", "val", "test", "train", "train", "test", "train", "val", "test", "none", "none", "none"])


def hand(counts=COUNTS, labels=LABELS) -> Screen:
    conditions = ["a", "a+b", "b", "c", "control"]
    return Screen(
        counts=counts,
        library=counts.sum(1).astype(np.float32),
        cells=np.array([f"cell{i}" for i in range(len(counts))]),
        genes=np.array(["g1", "g2", "g3"]),
        condition=np.array([conditions.index(label) for label in labels]),
        conditions=np.array(conditions),
        members=np.array([[0, -1], [0, 1], [1, -1], [2, -1], [-1, -1]]),
        perturbations=np.array(["a", "b", "c"]),
    )


def mean_of(condition: str, splits=("train", "val", "test", "none"), counts=COUNTS) -> np.ndarray:
    """Mean of log2(1 + 1e4 x_g / sum x) over the cells of a condition in some splits."""
    rows = []
    for x, label, split in zip(counts, LABELS, SPLIT, strict=True):
        if label == condition and split in splits:
            rows.append([math.log2(1 + 1e4 * int(v) / int(sum(map(int, x)))) for v in x])
    return np.mean(rows, axis=0) if rows else np.full(3, np.nan)


def test_effects_by_hand():
    data = effects(hand(), SPLIT, reference="control")
    # 'c' has no cell in any split, and the reference has no row
    assert data.obs_names.tolist() == ["a", "a+b", "b"] and data.var_names.tolist() == ["g1", "g2", "g3"]
    assert data.obs[["n_cells", "n_train", "n_val", "n_test", "n_perturbations"]].to_numpy().tolist() == [
        [3, 2, 0, 1, 1], [2, 0, 0, 1, 2], [3, 1, 1, 0, 1],
    ]  # fmt: skip
    assert data.uns["reference"] == "control" and data.uns["transform"] == "log2"
    assert data.uns["members"].tolist() == [[0, -1], [0, 1], [1, -1]]
    for i, name in enumerate(["a", "a+b", "b"]):
        np.testing.assert_allclose(data.X[i], mean_of(name) - mean_of("control"), rtol=1e-12)
        for layer, split in (("train", "train"), ("held_out", "test")):
            expected = mean_of(name, [split]) - mean_of("control", [split])
            np.testing.assert_allclose(data.layers[layer][i], expected, rtol=1e-12)
    assert np.isnan(data.layers["train"][1]).all() and np.isnan(data.layers["held_out"][2]).all()


@pytest.mark.parametrize(("absent", "layer"), [("test", "held_out"), ("train", "train")])
def test_validation_controls_replace_missing_controls_of_a_split(absent, layer):
    split = SPLIT.copy()
    split[(split == absent) & (np.array(LABELS) == "control")] = "none"
    data = effects(hand(), split, reference="control")
    expected = mean_of("a", [absent]) - mean_of("control", ["val"])
    np.testing.assert_allclose(data.layers[layer][0], expected, rtol=1e-12)
    np.testing.assert_allclose(data.X[0], mean_of("a") - mean_of("control"), rtol=1e-12)  # all cells, as before


def test_a_reference_with_training_cells_only():
    """As in the split by hand of docs/own-data.md."""
    split = np.where(np.array(LABELS) == "control", "train", SPLIT)
    data = effects(hand(), split, reference="control")
    control = mean_of("control")
    np.testing.assert_allclose(data["a"].layers["held_out"][0], mean_of("a", ("test",)) - control, rtol=1e-6)
    np.testing.assert_allclose(data["a"].layers["train"][0], mean_of("a", ("train",)) - control, rtol=1e-6)
    with pytest.raises(DataError, match="'control' has no cell in training or validation"):
        effects(hand(), np.where(np.array(LABELS) == "control", "test", SPLIT), reference="control")


def test_no_reference_cell_in_any_split():
    split = np.where(np.array(LABELS) == "control", "none", SPLIT)
    with pytest.raises(DataError, match="'control' has no cell"):
        effects(hand(), split, reference="control")


def test_without_a_reference_effects_are_relative_to_the_mean_of_the_scored_conditions():
    """Conditions without cells in a split do not count, because the model does not predict them."""
    labels = ["c" if label == "control" else label for label in LABELS]  # 'c' differs most from the others
    split = np.where(np.array(labels) == "c", "none", SPLIT)
    data = effects(hand(labels=labels), split, reference="")
    assert data.obs_names.tolist() == ["a", "a+b", "b"] and data.uns["reference"] == ""
    means = np.array([mean_of(name) for name in data.obs_names])
    np.testing.assert_allclose(data.X, means - means.mean(0), rtol=1e-9, atol=1e-12)
    train = np.array([mean_of(name, ["train"]) for name in ("a", "b")])  # 'a+b' has no training cell
    np.testing.assert_allclose(data.layers["train"][[0, 2]], train - train.mean(0), rtol=1e-9, atol=1e-12)
    assert np.isnan(data.layers["train"][1]).all()


def test_real_values_are_not_transformed():
    values = np.random.default_rng(0).normal(size=COUNTS.shape).astype(np.float32)
    data = effects(hand(counts=values), SPLIT, reference="control")
    control, a = values[:3].astype(float).mean(0), values[3:6].astype(float).mean(0)
    assert data.uns["transform"] == "mean"
    np.testing.assert_allclose(data.X[0], a - control, rtol=1e-6)


def test_a_perturbation_can_be_the_reference():
    data = effects(hand(), SPLIT, reference="a")
    assert data.obs_names.tolist() == ["a+b", "b", "control"]
    np.testing.assert_allclose(data.X[1], mean_of("b") - mean_of("a"), rtol=1e-12)
    np.testing.assert_allclose(data.layers["train"][2], mean_of("control", ["train"]) - mean_of("a", ["train"]))


# ---- scores --------------------------------------------------------------------------------------------------------


def scored(predicted, data) -> dict:
    rows = list(score(predicted, data))
    found = {(row["protocol"], row["metric"], row["split"]): row["value"] for row in rows}
    assert len(found) == len(rows)
    return found


def test_scores_by_independent_code():
    made = screen(300, 30, seed=3)
    rng = np.random.default_rng(1)
    split = rng.choice(["train", "val", "test"], 300)
    split[(made.condition == 4) & (split == "train")] = "val"  # 'a+c' is not trained on
    split[(made.condition == 2) & (split == "test")] = "val"  # 'c' is not tested
    data = effects(made, split, reference="control")
    predicted = data.X + rng.normal(size=data.X.shape)
    predicted[1] = np.nan  # no prediction for 'b'
    found = scored(predicted, data)
    names = data.obs_names.tolist()
    assert names == ["a", "b", "c", "d", "a+c"]

    def expected(truth, conditions):
        at = [names.index(c) for c in conditions]
        t, p = truth[at], predicted[at]
        most = [sorted(range(30), key=lambda g, row=row: -abs(row[g]))[:20] for row in t]
        top = [(t[i][g], p[i][g]) for i, genes in enumerate(most) for g in genes]
        tt, pt = np.array(top).T
        return {
            "ate_pearson": pearsonr(t.ravel(), p.ravel())[0],
            "ate_r2": r2_score(t.ravel(), p.ravel()),
            "ate_pearson_top20": pearsonr(tt, pt)[0],
            "ate_r2_top20": r2_score(tt, pt),
        }

    asked = {
        ("published", "all"): expected(data.X, ["a", "c", "d", "a+c"]),
        ("published", "train"): expected(data.X, ["a", "c", "d"]),
        ("published", "val"): expected(data.X, ["a", "c", "d", "a+c"]),
        ("published", "test"): expected(data.X, ["a", "d", "a+c"]),
        ("held-out", "test"): expected(data.layers["held_out"], ["a", "d", "a+c"]),
    }
    tested = [names.index(c) for c in ("a", "d", "a+c")]
    each = [pearsonr(data.layers["held_out"][i], predicted[i])[0] for i in tested]
    asked["held-out", "test"]["ate_pearson_per_condition"] = np.mean(each)
    wanted = {(protocol, metric, split): v for (protocol, split), m in asked.items() for metric, v in m.items()}
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=1e-9), key

    table = per_condition(predicted, data).set_index(["protocol", "condition"])
    assert set(table.loc["published"].index) == {"a", "c", "d", "a+c"}
    assert set(table.loc["held-out"].index) == {"a", "d", "a+c"}
    for protocol, truth in (("published", data.X), ("held-out", data.layers["held_out"])):
        for name, row in table.loc[protocol].iterrows():
            t, p = truth[names.index(name)], predicted[names.index(name)]
            assert row["ate_pearson"] == pytest.approx(pearsonr(t, p)[0], rel=1e-9)
            assert row["ate_r2"] == pytest.approx(r2_score(t, p), rel=1e-9)


def test_a_perfect_and_a_constant_prediction():
    data = effects(hand(), SPLIT, reference="control")
    found = scored(data.X, data)
    assert found["published", "ate_pearson", "all"] == pytest.approx(1)
    assert found["published", "ate_r2", "train"] == pytest.approx(1)
    assert found["held-out", "ate_pearson", "test"] < 0.99  # the prediction comes from other cells
    flat = scored(np.zeros_like(data.X), data)
    assert math.isnan(flat["published", "ate_pearson", "all"]) and flat["published", "ate_r2", "all"] <= 0
    assert ("held-out", "ate_pearson_per_condition", "test") not in flat  # the mean of nothing
    assert not scored(np.full_like(data.X, np.nan), data)
    assert per_condition(np.full_like(data.X, np.nan), data).empty


# ---- baselines -----------------------------------------------------------------------------------------------------


def test_baselines_by_hand():
    data = effects(hand(), SPLIT, reference="control")
    a, b = (mean_of(c, ["train"]) - mean_of("control", ["train"]) for c in "ab")
    made = baselines(data)
    assert set(made) == {"mean_of_perturbations", "train_mean", "additive"}
    np.testing.assert_allclose(
        made["mean_of_perturbations"], np.tile((a + b) / 2, (3, 1))
    )  # 'a+b' has no training cell
    np.testing.assert_allclose(made["train_mean"][[0, 2]], [a, b])
    assert np.isnan(made["train_mean"][1]).all()
    np.testing.assert_allclose(made["additive"], [a, a + b, b])


def test_baselines_do_not_see_test_cells():
    other = COUNTS.copy()
    other[SPLIT == "test"] = [[9, 9, 9]]
    made, changed = (baselines(effects(hand(counts=c), SPLIT, reference="control")) for c in (COUNTS, other))
    for name in made:
        np.testing.assert_array_equal(made[name], changed[name])


def test_a_sum_is_unknown_if_one_single_perturbation_has_no_training_cells():
    split = SPLIT.copy()
    split[6] = "val"  # the only training cell of 'b'
    made = baselines(effects(hand(), split, reference="control"))
    assert np.isnan(made["additive"][1:]).all() and np.isfinite(made["additive"][0]).all()
    only_singles = replace(hand(), members=np.array([[0], [3], [1], [2], [-1]]))
    assert "additive" not in baselines(effects(only_singles, SPLIT, reference="control"))


def test_the_likelihood_baseline_is_fitted_on_training_cells():
    made = screen(200, 6, seed=4)
    split = np.resize(["train", "train", "val", "test", "none"], 200)
    rows = {row["split"]: row for row in likelihood_baseline(made, split)}
    assert set(rows) == {"val", "test"}
    train = split == "train"
    fitted = fit_intercept_nb(made.counts[train], made.library[train])
    np.testing.assert_allclose(fitted.proportion, made.counts[train].sum(0) / made.library[train].sum())
    for name, row in rows.items():
        assert (row["protocol"], row["metric"]) == ("held-out", "log_likelihood")
        total = 0.0
        cells = np.flatnonzero(split == name)
        for i in cells:
            mean = made.library[i] * fitted.proportion.astype(float) + 1e-4
            total += nbinom.logpmf(made.counts[i], fitted.theta, fitted.theta / (fitted.theta + mean)).sum()
        assert row["value"] == pytest.approx(total / len(cells), rel=1e-6)
    assert not list(likelihood_baseline(replace(made, counts=made.counts.astype(np.float32)), split))


def test_tables_of_the_baselines():
    data = effects(hand(), SPLIT, reference="control")
    scores, each = baseline_tables(hand(), SPLIT, data)
    assert scores["model"].unique().tolist() == ["intercept_nb", "mean_of_perturbations", "train_mean", "additive"]
    assert list(scores.columns) == ["model", "protocol", "metric", "split", "value"]
    for name, predicted in baselines(data).items():
        mine = scores[scores["model"] == name].set_index(["protocol", "metric", "split"])["value"]
        assert mine.to_dict() == pytest.approx(scored(predicted, data), nan_ok=True)
        assert set(each[each["model"] == name]["condition"]) <= set(data.obs_names)
    # train_mean does not predict 'a+b', so it is scored on one of two test conditions, additive on both
    held = each[each["protocol"] == "held-out"].groupby("model")["condition"].agg(set)
    assert held["train_mean"] == {"a"} and held["additive"] == {"a", "a+b"}

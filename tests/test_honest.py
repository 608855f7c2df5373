"""The honest protocol against plain numpy, and the worked example of docs/evaluation.md by hand."""

from __future__ import annotations

import re
import zlib
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from small_model import model

from samsvae.data.arrays import Screen
from samsvae.data.cells import encode
from samsvae.errors import DataError
from samsvae.evaluation import effect_scores, honest, split_scores
from samsvae.evaluation.any_truth import truth_or_reason
from samsvae.evaluation.calibrations import calibrations
from samsvae.evaluation.effect_scores import coverage_rows
from samsvae.evaluation.metrics.agreement import nmse, nmse_terms, pearson
from samsvae.evaluation.metrics.constants import LEVELS
from samsvae.evaluation.metrics.coverage import COVERAGE_SCORES, coverage, normal_intervals
from samsvae.evaluation.metrics.discrimination import discrimination
from samsvae.evaluation.metrics.estimates import Effects, at_reference
from samsvae.evaluation.metrics.reliability import ceiling_perfect
from samsvae.evaluation.metrics.table import METRICS
from samsvae.evaluation.score_tables import CONDITIONS, SCORES, tables
from samsvae.evaluation.truth import Truth, truth_of
from samsvae.evaluation.truth_file import read_truth, write_truth

GENES = 40
CONTROL = 7
SEEN, UNSEEN = [0, 1, 2, 3], [4, 5, 6]
NAMES = ["gene3", "gene7_2", "elsewhere", "gene9_x_y", "gene3+gene7_2", "gene7_2+elsewhere", "gene3+gene9_x_y"]
AGREEMENT = ("pearson", "nmse", "cosine", "r2", "mse", "pearson_pooled")
EFFECTS = (*(f"{name}_{reference}" for name in AGREEMENT for reference in ("control", "centred")), "discrimination")
TOP = ("pearson_top20_control", "pearson_top20_centred")
INTERACTIONS = ("interaction_pearson", "interaction_nmse")


def screen(*, n: int = 40, seed: int = 0) -> Screen:
    """Four perturbations, three pairs of them and a control, n cells each, and a clear effect on 40 genes."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(8), n)
    members = np.array([[0, -1], [1, -1], [2, -1], [3, -1], [0, 1], [1, 2], [0, 3], [-1, -1]])
    shift = np.r_[rng.normal(0, 0.8, (4, GENES)), np.zeros((1, GENES))]
    rate = np.exp(rng.normal(1.2, 0.4, GENES) + shift[members].sum(1))
    counts = rng.poisson(rate[codes] * rng.gamma(8, 1 / 8, (8 * n, 1)))
    counts[:, 30] = 0  # a gene that no cell expresses
    return Screen(
        counts=counts,
        library=counts.sum(1).astype(np.float32),
        cells=np.array([f"cell{i}" for i in range(len(codes))]),
        genes=np.array([f"gene{g}" for g in range(GENES)]),
        condition=codes,
        conditions=np.array([*NAMES, "control"]),
        members=members,
        perturbations=np.array(NAMES[:4]),
        controls=("control",),
        separator="+",
    )


def split_of(made: Screen) -> np.ndarray:
    """Singles and control in all three splits, pairs in the test cells alone."""
    split = np.resize(["train", "train", "test", "val", "test"], len(made.condition)).astype(object)
    split[np.isin(made.condition, UNSEEN)] = "test"
    return split.astype(str)


MADE = screen()
SPLIT = split_of(MADE)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return truth_of(MADE, SPLIT)


@pytest.fixture(scope="module")
def of_split(truth) -> tuple[pd.DataFrame, pd.DataFrame]:
    return split_scores.split_tables(MADE, SPLIT, truth)


def by_hand(cells: np.ndarray, controls: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Effects, squared errors and the condition's part of them, (7, G) each, from these cells and control cells."""
    x = MADE.counts.astype(float)
    y = np.log2(1 + 1e4 * x / x.sum(1, keepdims=True))
    zero = y[(MADE.condition == CONTROL) & (cells if controls is None else controls)]
    rows = [y[(MADE.condition == c) & cells] for c in range(CONTROL)]
    delta = np.array([r.mean(0) - zero.mean(0) if len(r) > 1 else np.full(GENES, np.nan) for r in rows])
    own = np.array([r.var(0, ddof=1) / len(r) if len(r) > 1 else np.full(GENES, np.nan) for r in rows])
    return delta, own + zero.var(0, ddof=1) / len(zero), own


def plain_pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([stats.pearsonr(x, y).statistic for x, y in zip(a, b, strict=True)])


def scores_of(truth: Truth, predicted: np.ndarray) -> pd.DataFrame:
    return tables(truth.names, effect_scores.scores(truth, predicted))[0].set_index(["metric", "set"])


# ---- the truth


def test_effects_errors_and_sets_equal_plain_numpy(truth):
    for found, cells in ((truth.test, SPLIT == "test"), (truth.train, SPLIT == "train"), (truth.every, SPLIT != "")):
        for values, expected in zip(found, by_hand(cells), strict=True):
            np.testing.assert_allclose(values[:CONTROL], expected, rtol=0, atol=1e-9)
            assert np.isnan(values[CONTROL]).all()
    assert {name: np.flatnonzero(rows).tolist() for name, rows in truth.sets.items()} == {
        "seen": SEEN, "unseen": UNSEEN, "all": SEEN + UNSEEN,
    }  # fmt: skip
    assert truth.rows.tolist() == SEEN + UNSEEN and truth.control == CONTROL
    controls = MADE.counts[(MADE.condition == CONTROL) & (SPLIT == "train")]
    assert truth.genes.tolist() == ((controls > 0).sum(0) >= 3).tolist() and not truth.genes[30]
    for c, library in enumerate(truth.libraries):
        assert library.tolist() == MADE.counts[(MADE.condition == c) & (SPLIT == "test")].sum(1).tolist()


def test_validation_controls_stand_in_for_test_controls():
    split = SPLIT.copy()
    at = (MADE.condition == CONTROL) & (split == "test")
    split[at] = "train"
    split[np.flatnonzero(at)[0]] = "test"  # a single one has no variance
    truth = truth_of(MADE, split)
    expected = by_hand(split == "test", split == "val")
    for values, other in zip(truth.test, expected, strict=True):
        np.testing.assert_allclose(values[:CONTROL], other, rtol=0, atol=1e-9)
    assert len(truth.libraries[CONTROL]) == ((MADE.condition == CONTROL) & (split == "val")).sum()


def test_a_set_that_equals_all_is_not_repeated():
    singles = np.isin(MADE.condition, [*SEEN, CONTROL])
    found = truth_of(MADE, np.where(singles, SPLIT, "train"))
    assert list(found.sets) == ["seen"]


def few_conditions() -> tuple[Screen, np.ndarray]:
    split = SPLIT.copy()
    for c in range(2, CONTROL):
        split[np.flatnonzero((MADE.condition == c) & (split == "test"))[9:]] = "train"
    return MADE, split


def only(c: int, part: str, number: int) -> tuple[Screen, np.ndarray]:
    """All but ``number`` of the cells of a condition that are in this part go to validation."""
    split = SPLIT.copy()
    split[np.flatnonzero((MADE.condition == c) & (split == part))[number:]] = "val"
    return MADE, split


def no_control() -> tuple[Screen, np.ndarray]:
    keep = MADE.condition != CONTROL
    rows = {name: getattr(MADE, name)[keep] for name in ("counts", "library", "cells", "condition")}
    rest = {"conditions": MADE.conditions[:CONTROL], "members": MADE.members[:CONTROL], "controls": ()}
    return replace(MADE, **rows, **rest), SPLIT[keep]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (no_control(), "no control cells"),
        (only(CONTROL, "train", 0), "No training control cell"),
        (only(CONTROL, "train", 1), "control has 1 of the chosen cells"),
        (only(CONTROL, "train", 2), "no gene has counts in 3 of the training controls"),
        (few_conditions(), "fewer than 3 conditions have 10 test cells"),
    ],
    ids=["no control", "no training control", "one training control", "two training controls", "few conditions"],
)
def test_a_split_that_cannot_be_scored_has_one_row_with_its_reason(made, reason):
    data, split = made
    net = model("sams_vae_mf", GENES)
    why = truth_or_reason(data, split)
    for scores, conditions in (
        split_scores.split_tables(data, split, why),
        honest.model_tables(net, why, encode(data, "sum").members, draws=2, cells=2),
    ):
        assert len(scores) == 1 and len(conditions) == 0
        row = scores.iloc[0]
        assert reason in row["reason"] and row["reason"].endswith(".") and "\n" not in row["reason"]
        assert np.isnan([row["value"], row["low"], row["high"]]).all() and row["n_conditions"] == 0
        assert tuple(scores.columns)[:8] == SCORES and tuple(conditions.columns)[:5] == CONDITIONS


def test_target_genes(truth):
    """gene3 by its name, gene7_2 and gene9_x_y by the part before the first '_'; 'elsewhere' is no gene."""
    assert truth.targets.tolist() == [3, 7, 9]
    assert truth_of(replace(MADE, genes=np.char.add("g", MADE.genes)), SPLIT).targets.dtype.kind == "i"


@pytest.mark.parametrize("kind", ["effects", "reason"])
def test_the_truth_of_a_split_is_read_as_it_was_written(tmp_path, truth, kind):
    written = truth if kind == "effects" else truth_or_reason(*no_control())
    for name in ("one.npz", "other.npz"):
        write_truth(written, tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()
    found = read_truth(tmp_path / "one.npz")
    if isinstance(written, str):
        assert found == written and "no control cells" in written
    else:
        assert repr(found) == repr(written)  # the types too, and the order of sets
        np.testing.assert_equal(asdict(found), asdict(written))


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "another"])
def test_a_damaged_truth_is_named(tmp_path, truth, damage):
    path = tmp_path / "truth.npz"
    write_truth(truth, path)
    content = {"cut": path.read_bytes()[:-300], "empty": b""}
    path.unlink()
    if damage in content:
        path.write_bytes(content[damage])
    elif damage == "another":
        np.savez(path, delta=np.zeros(3))
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: not a file with the truth of a split"):
        read_truth(path)


# ---- scores


def test_known_predictions_have_known_scores(truth):
    names = {where: len(at) for where, at in (("seen", SEEN), ("unseen", UNSEEN), ("all", SEEN + UNSEEN))}
    perfect, nothing = scores_of(truth, truth.test.delta), scores_of(truth, np.zeros((8, GENES)))
    constant = scores_of(truth, np.full((8, GENES), 0.7))
    for where, n in names.items():
        for table in (perfect, nothing, constant):
            assert (table.loc[list(EFFECTS)].xs(where, level="set")["n_conditions"] == n).all()
        for reference in ("control", "centred"):
            assert perfect.loc[(f"pearson_{reference}", where), "value"] == pytest.approx(1, abs=1e-12)
            # the truth is no perfect prediction: the error of the test cells is in it, and is taken off
            delta, se2 = at_reference(truth.test, np.flatnonzero(truth.sets[where]), reference)
            expected = -se2.sum() / (delta**2 - se2).sum()
            assert perfect.loc[(f"nmse_{reference}", where), "value"] == pytest.approx(expected, abs=1e-12)
            assert nothing.loc[(f"pearson_{reference}", where), "value"] == 0
            assert nothing.loc[(f"nmse_{reference}", where), "value"] == pytest.approx(1, abs=1e-12)
            assert constant.loc[(f"pearson_{reference}", where), "value"] == 0
        assert perfect.loc[("discrimination", where), "value"] == 1
        for table in (nothing, constant):
            assert table.loc[("discrimination", where), "value"] == pytest.approx(0.5, abs=1e-12)
    listed = {(metric, where) for metric in EFFECTS for where in names} | {(metric, "seen") for metric in TOP}
    listed |= {(metric, where) for metric in INTERACTIONS for where in ("unseen", "all")}
    assert set(perfect.index) == listed


def test_scores_equal_plain_numpy(truth):
    predicted = np.random.default_rng(3).normal(size=(8, GENES)) + 0.4 * np.nan_to_num(truth.test.delta)
    delta, _, own = (values[UNSEEN] for values in by_hand(SPLIT == "test"))
    a, b = delta - delta.mean(0), predicted[UNSEEN] - predicted[UNSEEN].mean(0)
    se2 = own * (1 - 2 / 3) + own.sum(0) / 9
    found = scores_of(truth, predicted).xs("unseen", level="set")
    r = plain_pearson(a, b)
    assert found.loc["pearson_centred", "value"] == pytest.approx(r.mean(), abs=1e-9)
    drawn = r[np.random.default_rng(0).integers(0, 3, (1000, 3))].mean(1)
    np.testing.assert_allclose(found.loc["pearson_centred", ["low", "high"]].astype(float),
                               np.percentile(drawn, (2.5, 97.5)), atol=1e-9)  # fmt: skip
    expected = (((b - a) ** 2) - se2).sum() / (a**2 - se2).sum()
    assert found.loc["nmse_centred", "value"] == pytest.approx(expected, abs=1e-9)
    each = (b * a).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    assert found.loc["cosine_centred", "value"] == pytest.approx(each.mean(), abs=1e-9)
    assert found.loc["mse_centred", "value"] == pytest.approx(((a - b) ** 2).mean(), abs=1e-9)
    residual, total = ((a - b) ** 2).sum(1), ((a - a.mean(1)[:, None]) ** 2).sum(1)
    assert found.loc["r2_centred", "value"] == pytest.approx(1 - (residual / total).mean(), abs=1e-9)
    pooled = found.loc["pearson_pooled_control"]
    assert pooled["value"] == pytest.approx(np.corrcoef(delta.ravel(), predicted[UNSEEN].ravel())[0, 1], abs=1e-9)
    assert np.isnan([pooled["low"], pooled["high"]]).all() and pooled["n_conditions"] == 3
    keep = np.setdiff1d(np.arange(GENES), [3, 7, 9])
    cosine = np.array([[x @ y / np.sqrt((x @ x) * (y @ y)) for y in a[:, keep]] for x in b[:, keep]])
    rank = (cosine > np.diag(cosine)[:, None]).sum(1)
    assert found.loc["discrimination", "value"] == pytest.approx(1 - rank.mean() / 2, abs=1e-9)


def test_the_top_genes_are_chosen_by_training_cells(truth):
    """Only for seen conditions: by the size of the training effect over its error, whatever the test cells show."""
    predicted = np.random.default_rng(4).normal(size=(8, GENES))
    (delta, _, _), (train, se2, _) = by_hand(SPLIT == "test"), by_hand(SPLIT == "train")
    found = scores_of(truth, predicted)
    for name, a, b in (
        ("pearson_top20_control", delta[SEEN], predicted[SEEN]),
        ("pearson_top20_centred", delta[SEEN] - delta[SEEN].mean(0), predicted[SEEN] - predicted[SEEN].mean(0)),
    ):
        ratio = [abs(d) / np.sqrt(np.where(e > 0, e, 1)) for d, e in zip(train[SEEN], se2[SEEN], strict=True)]
        top = [sorted(range(GENES), key=lambda g, z=z: (-z[g], g))[:20] for z in ratio]
        r = [np.corrcoef(x[g], y[g])[0, 1] for x, y, g in zip(a, b, top, strict=True)]
        assert found.loc[(name, "seen"), "value"] == pytest.approx(np.mean(r), abs=1e-9)
        assert (name, "unseen") not in found.index and (name, "all") not in found.index


def test_a_set_is_scored_on_the_conditions_with_a_prediction(truth):
    predicted = truth.test.delta.copy()
    predicted[0] = np.nan
    found = scores_of(truth, predicted)
    assert found.loc[("pearson_control", "seen"), "n_conditions"] == 3
    predicted[1] = np.nan
    found = scores_of(truth, predicted)
    assert len(found) == 3 * len(EFFECTS) + len(TOP) + 2 * len(INTERACTIONS)
    assert (found.xs("seen", level="set")["reason"] == "fewer than 3 conditions are predicted").all()
    assert found.xs("seen", level="set")["value"].isna().all()


def test_baselines_and_ceilings(truth, of_split):
    scores, conditions = of_split
    assert set(scores["model"]) == {
        *("no_change", "mean_of_perturbations", "train_mean", "shrunk", "ridge_pc", "additive", "matching_mean"),
        *("ceiling", "technical_duplicate"),
    }
    train = by_hand(SPLIT == "train")[0]
    values = scores.set_index(["model", "metric", "set"])["value"]
    test, _, own = by_hand(SPLIT == "test")
    centre = test[SEEN] - test[SEEN].mean(0)
    r = plain_pearson(centre, train[SEEN] - train[SEEN].mean(0)).mean()
    assert values[("train_mean", "pearson_centred", "seen")] == pytest.approx(r, abs=1e-9)
    added = np.array([train[0] + train[1], train[1] + train[2], train[0] + train[3]])
    r = plain_pearson(test[UNSEEN], added).mean()
    assert values[("additive", "pearson_control", "unseen")] == pytest.approx(r, abs=1e-9)
    r = plain_pearson(test[UNSEEN], np.tile(train[SEEN].mean(0), (3, 1))).mean()
    assert values[("mean_of_perturbations", "pearson_control", "unseen")] == pytest.approx(r, abs=1e-9)
    assert values[("mean_of_perturbations", "nmse_centred", "all")] == pytest.approx(1, abs=1e-9)
    assert np.isnan(values[("train_mean", "pearson_centred", "unseen")])  # silent without training cells

    every, _, every_own = by_hand(SPLIT != "")
    n = len(SEEN)
    error, every_error = (q[SEEN] * (1 - 2 / n) + q[SEEN].sum(0) / n**2 for q in (own, every_own))
    d = every[SEEN] - every[SEEN].mean(0)
    signal = np.maximum(0, ((d - d.mean(1, keepdims=True)) ** 2).sum(1) - every_error.sum(1))
    ceiling = np.sqrt(signal / (signal + error.sum(1)))
    assert values[("ceiling", "pearson_centred", "seen")] == pytest.approx(ceiling.mean(), abs=1e-9)
    rows = conditions[(conditions[["model", "metric", "set"]] == ["ceiling", "pearson_centred", "seen"]).all(1)]
    assert rows["condition"].tolist() == NAMES[:4]
    np.testing.assert_allclose(rows["value"], ceiling, atol=1e-9)
    for where in ("seen", "unseen", "all"):
        assert values[("ceiling", "nmse_centred", where)] == 0 and values[("ceiling", "discrimination", where)] == 1


def test_discrimination_has_no_ceiling_without_a_gene_that_is_no_target(truth):
    only_targets = replace(truth, targets=np.arange(truth.test.delta.shape[1]))
    for found in (effect_scores.ceilings(only_targets), effect_scores.scores(only_targets, truth.test.delta)):
        reasons = {score.reason for metric, _, _, score in found if metric == "discrimination"}
        assert reasons == {"every gene is a target"}


def test_the_yardstick_is_the_training_effect_with_its_error(truth, of_split):
    scores, _ = of_split
    rows = scores[scores["metric"].isin(COVERAGE_SCORES)]
    assert set(rows["model"]) == {"train_mean"} and set(rows["metric"]) == set(COVERAGE_SCORES)
    (a, e, _), (b, f, _) = by_hand(SPLIT == "test"), by_hand(SPLIT == "train")
    a, e, b, f = (values[SEEN][:, truth.genes] for values in (a, e, b, f))
    u = stats.norm.cdf((a - b) / np.sqrt(e + f))
    for level in LEVELS:
        value = rows.set_index("metric").loc[f"coverage{level}", "value"]
        assert value == pytest.approx((np.abs(u - 0.5) <= level / 2).mean(), abs=1e-9)
        assert level - 0.15 < value < level + 0.12


# ---- interactions of pairs


def interacting() -> Screen:
    """MADE, whose pairs have effects of their own besides those of their singles."""
    rng = np.random.default_rng(5)
    shift = np.zeros((8, GENES))
    shift[UNSEEN] = rng.normal(0, 0.9, (3, GENES))
    counts = rng.poisson(MADE.counts * np.exp(shift)[MADE.condition])
    return replace(MADE, counts=counts, library=counts.sum(1).astype(np.float32))


def by_hand_interactions(made: Screen, of: dict[int, np.ndarray], triples: list) -> tuple[np.ndarray, np.ndarray]:
    """m_ab - m_a - m_b + m_0 and its squared error; ``of``: the cells of each condition."""
    x = made.counts.astype(float)
    y = np.log2(1 + 1e4 * x / x.sum(1, keepdims=True))
    mean = {c: y[cells & (made.condition == c)].mean(0) for c, cells in of.items()}
    own = {c: y[cells & (made.condition == c)].var(0, ddof=1) / (cells & (made.condition == c)).sum() for c, cells in
           of.items()}  # fmt: skip
    value = [mean[c] - mean[a] - mean[b] + mean[CONTROL] for c, a, b in triples]
    return np.array(value), np.array([own[c] + own[a] + own[b] + own[CONTROL] for c, a, b in triples])


@pytest.mark.parametrize("tested", [True, False], ids=["tested singles", "singles of validation cells"])
def test_interactions_have_their_own_singles(tested):
    made, split = interacting(), SPLIT.copy()
    if not tested:  # as in Norman's split, in which only pairs have test cells
        split[(split == "test") & (MADE.condition < 4)] = "train"
    triples = [(4, 0, 1), (5, 1, 2), (6, 0, 3)]
    of = {c: split == "test" for c in range(8)}
    for c in () if tested else range(4):
        cells = np.flatnonzero((split == "val") & (made.condition == c))
        order = np.random.default_rng([0, 0, zlib.crc32(NAMES[c].encode())]).permutation(len(cells))
        of[c] = np.isin(np.arange(len(split)), cells[order[: len(cells) // 2]])
    value, se2 = by_hand_interactions(made, of, triples)
    truth = truth_of(made, split)
    assert truth.pairs.observed.rows.tolist() == UNSEEN and truth.needed.tolist() == SEEN + UNSEEN
    assert truth.pairs.observed.singles.tolist() == [[0, 1], [1, 2], [0, 3]]
    np.testing.assert_allclose(truth.pairs.observed.value, value, atol=1e-9)
    np.testing.assert_allclose(truth.pairs.observed.se2, se2, atol=1e-9)
    for c, cells in of.items():
        assert truth.libraries[c].tolist() == made.counts[cells & (made.condition == c)].sum(1).tolist()

    predicted = np.random.default_rng(1).normal(size=(8, GENES))
    ours = np.array([predicted[c] - predicted[a] - predicted[b] for c, a, b in triples])
    found = scores_of(truth, predicted).xs("unseen", level="set")
    assert found.loc["interaction_pearson", "value"] == pytest.approx(plain_pearson(value, ours).mean(), abs=1e-9)
    error = ((ours - value) ** 2 - se2).sum() / (value**2 - se2).sum()
    assert found.loc["interaction_nmse", "value"] == pytest.approx(error, abs=1e-9)
    assert found.loc["interaction_nmse", "n_conditions"] == 3

    values = split_scores.split_tables(made, split, truth)[0].set_index(["model", "metric", "set"])["value"]
    for name in ("no_change", "additive"):  # no interaction
        assert values[(name, "interaction_nmse", "unseen")] == pytest.approx(1, abs=1e-12)
        assert values[(name, "interaction_pearson", "unseen")] == 0
    assert values[("ceiling", "interaction_nmse", "unseen")] == 0
    assert 0.5 < values[("ceiling", "interaction_pearson", "unseen")] < 1
    assert "seen" not in values.xs("interaction_nmse", level="metric").index.get_level_values("set")

    dosage = encode(made, "sum")
    net = model("sams_vae_corr", GENES, len(dosage.names)).eval()
    scores, each = honest.model_tables(net, truth, dosage.members, draws=4, cells=2)
    rows = scores[scores["metric"].str.startswith("interaction")]
    assert np.isfinite(rows["value"]).all() and set(rows["set"]) == ({"unseen", "all"} if tested else {"unseen"})
    assert set(each.loc[each["metric"] == "interaction_nmse", "condition"]) == set(NAMES[4:])


def test_undefined_interactions_have_their_reason(truth):
    found = scores_of(truth, np.zeros((8, GENES))).loc["interaction_nmse"]
    assert truth.pairs.observed.rows.tolist() == UNSEEN and found["value"].isna().all()
    assert found["reason"].str.fullmatch(r"the pooled reliability of the interactions is -?0\.\d\d, below 0\.1").all()
    few = truth_of(interacting(), np.where(np.isin(MADE.condition, [3, 6]) & (SPLIT != "train"), "none", SPLIT))
    found = scores_of(few, np.zeros((8, GENES))).loc[("interaction_pearson", "all"), "reason"]
    assert found.startswith("fewer than 3 pairs are observed and predicted")


# ---- models


@pytest.mark.parametrize(
    ("name", "encoding", "intervals"),
    [("sams_vae_corr", "sum", True), ("svae_plus", "unique", True), ("cond_vae", "sum", False)],
)
def test_the_tables_of_a_model_are_those_of_the_baselines(truth, of_split, name, encoding, intervals):
    dosage = encode(MADE, encoding)
    net = model(name, GENES, len(dosage.names)).eval()
    scores, conditions = honest.model_tables(net, truth, dosage.members, draws=6, cells=2)
    theirs, their_conditions = (table[table["model"] == "no_change"] for table in of_split)
    ours = scores[~scores["metric"].isin(COVERAGE_SCORES)]
    assert ours[["metric", "set", "n_conditions"]].values.tolist() == (
        theirs[["metric", "set", "n_conditions"]].values.tolist()
    )
    key = ["metric", "set", "condition"]
    assert conditions[key].values.tolist() == their_conditions[key].values.tolist()
    # the denominators of the error are those of the truth
    np.testing.assert_allclose(conditions["weight"], their_conditions["weight"], atol=1e-9)
    found = scores[scores["metric"].isin(COVERAGE_SCORES)]
    assert found["metric"].tolist() == (3 * list(COVERAGE_SCORES) if intervals else [])
    # these pairs have no interactions, and the screen has 40 genes
    undefined = scores["metric"].isin([*INTERACTIONS, "overlap50", "overlap100"])
    assert scores["value"].isna().equals(undefined) and set(scores["metric"]) <= set(METRICS)
    assert (scores["reason"] != "").equals(undefined)
    if intervals:
        number = found.drop_duplicates("set").set_index("set")["n_conditions"].to_dict()
        assert number == {"seen": 4, "unseen": 3, "all": 7}
    again = honest.model_tables(net, truth, dosage.members, draws=6, cells=2)
    for one, other in zip((scores, conditions), again, strict=True):
        assert one.to_csv().encode() == other.to_csv().encode()


# ---- the worked example of docs/evaluation.md


def test_the_worked_example(root):
    text = " ".join((root / "docs" / "evaluation.md").read_text().split())
    cells = re.findall(r"\| ([ABC]) \| (-?\d), (-?\d) \| (-?\d), (-?\d) \|", text)
    assert [row[0] for row in cells] == ["A", "B", "C"]
    observed, predicted = (np.array([row[i : i + 2] for row in cells], float) for i in (1, 3))
    own = np.full((3, 2), 0.3)
    truth = Effects(observed, own + 0.2, own)
    delta, se2 = at_reference(truth, np.arange(3), "centred")
    guess, mean = predicted - predicted.mean(0), np.zeros((3, 2))
    assert delta.tolist() == [[2, 0], [-1, 3], [-1, -3]] and guess.tolist() == [[1, 1], [0, 2], [-1, -3]]
    np.testing.assert_allclose(se2, 0.2)
    above, below = (terms.sum() for terms in nmse_terms(delta, se2, guess))
    assert (above, below) == (pytest.approx(2.8), pytest.approx(22.8))
    r = pearson(delta, guess)
    np.testing.assert_allclose(r, [0, 1, 1])
    ceiling = ceiling_perfect(delta, se2, se2)
    np.testing.assert_allclose(ceiling**2, [0.8, 0.95, 0.8])
    said = {
        "(4 - 1.2) / (24 - 1.2) = {}": nmse(delta, se2, guess),
        "(0 + 1 + 1) / 3 = {}": r.mean(),
        "the ceiling is {}": ceiling.mean(),
        "has an error of {}": nmse(delta, se2, mean),
        "a correlation of {}": pearson(delta, mean).mean(),
        "and a discrimination of {}": discrimination(delta, mean).mean(),
        "its discrimination is {}": discrimination(delta, guess).mean(),
    }
    one = normal_intervals(*(np.full((1, 1), value) for value in (2.0, 0.5, 3.0, 0.5)))
    said["below the observed effect with probability {}"] = one.u[0, 0]
    for sentence, value in said.items():
        assert sentence.format(f"{value:.3f}".rstrip("0").rstrip(".")) in text, (sentence, value)
    inside = coverage(one)
    assert (inside["coverage0.5"], inside["coverage0.8"]) == (0, 1)


def test_metrics_are_calibrated_on_halves_of_the_screen(truth, of_split):
    """A screen with clear effects: a replicate beats the mean effect by every metric."""
    found = calibrations(MADE, truth)
    each = {f"{m}_{r}" for m in ("pearson", "cosine", "r2", "mse") for r in ("control", "centred")}
    assert set(found) == {*each, "discrimination", "nmse_centred"}
    for name, one in found.items():
        assert one.ranks and one.bds > 0.9, name
    scores, _ = of_split
    known = scores.drop_duplicates("metric").set_index("metric")
    assert known.loc["nmse_centred", "drf"] == pytest.approx(found["nmse_centred"].drf)
    assert np.isnan(known.loc["nmse_control", "bds"])


def test_a_coverage_that_is_undefined_has_a_reason():
    nothing = np.full((2, 5), np.nan)
    table = coverage_rows(normal_intervals(nothing, nothing * 0 + 0.1, nothing, nothing), "seen")
    assert (table["reason"] != "").equals(table["value"].isna())
    assert set(table.loc[table["value"].isna(), "reason"]) == {"no gene has a standard error above 0"}

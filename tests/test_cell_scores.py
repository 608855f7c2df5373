"""Predicted cells in the honest protocol: a model that is the simulator, baselines, calibration and edge cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small_model import model

from samsvae.data.arrays import Screen
from samsvae.evaluation import honest, split_scores
from samsvae.evaluation.cell_baselines import cell_baselines, others
from samsvae.evaluation.cell_calibrations import cell_calibrations
from samsvae.evaluation.cell_scores import CELL_SCORES, EXPRESSION, cell_scores
from samsvae.evaluation.cell_truth import Cells, measured
from samsvae.evaluation.metrics.distributions import components, energies, variance_ratio
from samsvae.evaluation.metrics.expression_agreement import expression_agreement, expression_tests
from samsvae.evaluation.metrics.halves import halves
from samsvae.evaluation.model_effects import BUDGET
from samsvae.evaluation.sampled_cells import predicted_cells, sample_at_depth, sampled
from samsvae.evaluation.score_tables import tables
from samsvae.evaluation.truth import Truth, truth_of
from samsvae.models.model import Model
from samsvae.models.noise import Streams

GENES, PERTURBATIONS, CONTROL = 60, 5, 5
NAMES = np.array(["gene3", "b", "gene9_2", "d", "e", "control"])
SIZES = [60, 60, 60, 60, 60, 150]
PARTS = ["train", "train", "test", "val", "test"]
DOSAGE = np.arange(PERTURBATIONS + 1)[:, None]  # the control has none: PERTURBATIONS is the padding


def simulator() -> Model:
    """A model whose perturbations are known and have clear effects."""
    net = model("sams_vae_mf", GENES, PERTURBATIONS).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name == "latents.0.logits":
                value.fill_(20.0)
            elif name == "latents.1.loc":
                value.copy_(2.0 * torch.randn(value.shape, generator=generator))
            elif name == "latents.1.log_scale":
                value.fill_(-5.0)
            elif name.startswith(("decoder", "likelihood.mean.weight")):
                value.mul_(3.0)
            elif name == "likelihood.log_concentration":
                value.fill_(1.0)
    return net


NET, REAL = simulator(), model("sams_vae_mf", GENES, PERTURBATIONS, likelihood="normal")


def screen() -> Screen:
    """Cells of the simulator."""
    codes = np.repeat(np.arange(PERTURBATIONS + 1), SIZES)
    library = np.random.default_rng(0).integers(300, 900, len(codes)).astype(np.float32)
    counts = sample_at_depth(NET, DOSAGE[codes], library, Streams("data")).astype(np.int64)
    return Screen(
        counts=counts,
        library=counts.sum(1).astype(np.float32),
        cells=np.array([f"cell{i}" for i in range(len(codes))]),
        genes=np.array([f"gene{g}" for g in range(GENES)]),
        condition=codes,
        conditions=NAMES,
        members=np.array([[0], [1], [2], [3], [4], [-1]]),
        perturbations=NAMES[:PERTURBATIONS],
        controls=("control",),
    )


MADE = screen()
SPLIT = np.resize(PARTS, len(MADE.condition)).astype(str)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return truth_of(MADE, SPLIT)


def y_of(counts: np.ndarray) -> np.ndarray:
    x = np.asarray(counts, float)
    return np.log2(1 + (1e4 * x) / np.maximum(x.sum(1, keepdims=True), 1))


def scored(truth: Truth, found) -> tuple[pd.DataFrame, pd.DataFrame]:
    table, each = tables(truth.names, cell_scores(truth, found))
    return table.set_index(["metric", "set"]), each


def directly(truth: Truth, counts: np.ndarray, group: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of cells (group 0: the control, i + 1: condition i) from the golden-tested functions alone."""
    test = np.flatnonzero(SPLIT == "test")
    of_test = np.where(MADE.condition[test] == CONTROL, 0, MADE.condition[test] + 1)
    train = SPLIT == "train"
    y, y_test, y_train = y_of(counts), y_of(MADE.counts[test]), y_of(MADE.counts[train])
    axes, n = components(y_train), PERTURBATIONS + 1
    of_control = axes.scores(y_train[MADE.condition[train] == CONTROL])
    energy = energies(axes.scores(y), group, axes.scores(y_test), of_test, of_control, n)
    variance = [
        np.stack([values[codes == i].var(0, ddof=1) for i in range(1, n)])
        for values, codes in ((y, group), (y_test, of_test))
    ]
    expressed = (MADE.counts[train & (MADE.condition == CONTROL)] > 0).sum(0) >= 3
    tests = [expression_tests(a[:, expressed], b, n) for a, b in ((y_test, of_test), (y, group))]
    targets = np.zeros((PERTURBATIONS, GENES), bool)
    targets[0, 3] = targets[2, 9] = True
    found = expression_agreement(*tests, targets[:, expressed])
    return {
        "energy_share": energy.energy,
        "weight": energy.energy_of_control,
        "variance_ratio": np.log2(variance_ratio(*variance)),
        **{name: found[name] for name in EXPRESSION},
    }


def joined(parts: list[Cells]) -> tuple[np.ndarray, np.ndarray]:
    """The counts and groups of all parts, with one of the copies of the control."""
    kept = [slice(None) if i == 0 else part.group > 0 for i, part in enumerate(parts)]
    counts, group = (
        np.concatenate([values(part)[at] for part, at in zip(parts, kept, strict=True)])
        for values in (lambda part: part.X[part.rows], lambda part: part.group)
    )
    return counts, group


# ---- a model


def test_a_model_that_is_the_simulator_is_near_the_ceiling_and_its_control_is_not(truth):
    right, _ = scored(truth, predicted_cells(NET, truth, DOSAGE))
    copies, _ = scored(truth, predicted_cells(NET, truth, np.full_like(DOSAGE, PERTURBATIONS)))
    assert abs(right.loc[("energy_share", "seen"), "value"]) < 0.05
    assert copies.loc[("energy_share", "seen"), "value"] == pytest.approx(1, abs=0.1)
    assert abs(right.loc[("variance_ratio", "seen"), "value"]) < 0.4  # of 24 cells
    chance = right.loc[("auprc_chance", "seen"), "value"]
    assert right.loc[("auprc", "seen"), "value"] > 0.9 > chance + 0.2
    assert right.loc[("sign", "seen"), "value"] == 1 and right.loc[("mcc", "seen"), "value"] > 0.5
    assert copies.loc[("auprc", "seen"), "value"] < chance + 0.15 and abs(copies.loc[("mcc", "seen"), "value"]) < 0.1


def test_the_rows_of_a_model_are_the_golden_functions_on_its_cells(truth, monkeypatch):
    monkeypatch.setitem(BUDGET, "cpu", 40 * GENES)  # so that cells come in parts
    parts = list(sampled(NET, truth, DOSAGE))
    counts, group = joined(parts)
    assert len(parts) > 1 and np.bincount(group).tolist() == [60, 24, 24, 24, 24, 24]  # as the test cells
    for c, i in ((CONTROL, 0), (2, 3)):  # and with their library sizes
        drawn, library = counts[group == i].sum(1), truth.libraries[c]
        assert drawn.sum() == pytest.approx(library.sum(), rel=0.2)
        assert np.corrcoef(np.log(drawn), np.log(library))[0, 1] > 0.5
    expected = directly(truth, counts, group)
    table, each = honest.model_tables(NET, truth, DOSAGE, draws=2, cells=2)
    table = table.set_index(["metric", "set"])
    for name in CELL_SCORES:
        rows = each[each["metric"] == name]
        assert rows["condition"].tolist() == NAMES[:PERTURBATIONS].tolist()
        np.testing.assert_allclose(rows["value"], expected[name], rtol=0, atol=1e-9, err_msg=name)
        if name != "energy_share" and np.isfinite(expected[name]).sum() > 2:
            assert table.loc[(name, "seen"), "value"] == pytest.approx(np.nanmean(expected[name]), abs=1e-9)
    np.testing.assert_allclose(each.loc[each["metric"] == "energy_share", "weight"], expected["weight"], atol=1e-9)
    share = expected["energy_share"].sum() / expected["weight"].sum()
    assert table.loc[("energy_share", "seen"), "value"] == pytest.approx(share, abs=1e-9)
    assert (table.loc[list(CELL_SCORES), "reason"] != "").equals(table.loc[list(CELL_SCORES), "value"].isna())


def test_permuted_conditions_permute_the_rows(truth):
    order = np.array([3, 5, 0, 4, 2, 1])
    code = np.argsort(order)
    other = replace(MADE, condition=code[MADE.condition], conditions=NAMES[order], members=MADE.members[order])
    turned = truth_of(other, SPLIT)
    one, two = (
        scored(*arguments)[1].sort_values(["metric", "condition"], ignore_index=True)
        for arguments in (
            (truth, predicted_cells(NET, truth, DOSAGE)),
            (turned, predicted_cells(NET, turned, DOSAGE[order])),
        )
    )
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-9)


def test_another_seed_draws_other_cells(truth):
    first, second, again = (predicted_cells(NET, truth, DOSAGE, seed=seed).energy for seed in (0, 1, 0))
    assert first.tolist() == again.tolist() and not np.isclose(first, second).any()


# ---- cells without a model


def test_baselines_are_training_cells(truth):
    found = cell_baselines(MADE, SPLIT, truth)
    train = np.flatnonzero(SPLIT == "train")
    group = np.where(MADE.condition[train] == CONTROL, 0, MADE.condition[train] + 1)
    expected = directly(truth, MADE.counts[train], group)
    nothing, own = (scored(truth, found[name]) for name in ("no_change", "train_mean"))
    for name in CELL_SCORES:
        rows = own[1].loc[own[1]["metric"] == name, "value"]
        np.testing.assert_allclose(rows, expected[name], rtol=0, atol=1e-9, err_msg=name)
    assert nothing[0].loc[("energy_share", "seen"), "value"] == 1
    values = nothing[1].pivot(index="condition", columns="metric", values="value")
    np.testing.assert_allclose(values["auprc"], values["auprc_chance"], atol=1e-12)
    assert (values[["sign", "mcc"]] == 0).all(axis=None)  # and not skipped


def test_cells_of_other_perturbations_are_drawn_by_name(truth):
    train = np.flatnonzero((SPLIT == "train") & (MADE.condition != CONTROL))
    controls = np.flatnonzero((SPLIT == "train") & (MADE.condition == CONTROL))
    cells = others(MADE, truth, train, controls, [7, 500, 0, 1, 24])
    assert np.bincount(cells.group, minlength=6).tolist() == [60, 7, 96, 0, 1, 24]  # there are no 500
    assert cells.of(0).tolist() == controls.tolist()
    for c in range(PERTURBATIONS):
        rows = cells.of(c + 1)
        assert len(set(rows)) == len(rows) and set(rows) <= set(train) and c not in MADE.condition[rows]
    assert cells.of(1).tolist() != others(MADE, truth, train, controls, [7] * 5, repeat=1).of(1).tolist()


def test_a_condition_with_a_single_predicted_cell_is_not_scored(truth):
    counts, group = joined(list(sampled(NET, truth, DOSAGE)))
    kept = (group != 2) | (np.cumsum(group == 2) == 1)
    rows = np.flatnonzero(kept)
    table, each = scored(truth, measured(truth.cells, [Cells(counts, rows, group[rows])]))
    assert (table["n_conditions"] <= 4).all() and table.loc[("energy_share", "seen"), "n_conditions"] == 4
    assert "b" not in set(each["condition"])
    # the others are what they are without it, also if they come in parts
    whole, _ = scored(truth, measured(truth.cells, [Cells(counts, np.arange(len(group)), group)]))
    parts = [np.flatnonzero((group == 0) | np.isin(group, at)) for at in ([1, 4], [2, 5], [3])]
    found, _ = scored(truth, measured(truth.cells, [Cells(counts, rows, group[rows]) for rows in parts]))
    pd.testing.assert_frame_equal(whole, found, check_exact=True)
    few, _ = scored(truth, measured(truth.cells, [Cells(counts, parts[0], group[parts[0]])]))
    assert set(few["reason"]) == {"fewer than 3 conditions are predicted"} and few["value"].isna().all()


# ---- tables of a split


@pytest.fixture(scope="module")
def split_tables(truth) -> tuple[pd.DataFrame, pd.DataFrame]:
    return split_scores.split_tables(MADE, SPLIT, truth)


def test_the_tables_of_a_split_have_baselines_a_ceiling_and_a_duplicate(split_tables):
    table, each = split_tables
    cells = table[table["metric"].isin(CELL_SCORES)]
    names = ("no_change", "mean_of_perturbations", "train_mean")
    assert cells.groupby("model")["metric"].agg(set).to_dict() == {
        **{name: set(CELL_SCORES) for name in names},
        "ceiling": {"energy_share"},
        "technical_duplicate": set(EXPRESSION),
    }
    value = cells.set_index(["model", "metric"])["value"]
    assert value[("ceiling", "energy_share")] == 0 and value[("no_change", "energy_share")] == 1
    assert value[("train_mean", "energy_share")] < 0.1 < 0.5 < value[("mean_of_perturbations", "energy_share")]
    weights = each[each["metric"] == "energy_share"].groupby("condition")["weight"]
    assert (weights.nunique() == 1).all()  # the same denominators for all
    known = table.drop_duplicates("metric").set_index("metric")
    assert known.loc["energy_share", "bds"] == 1 and known.loc["energy_share", "drf"] == pytest.approx(1, abs=0.05)


def test_a_duplicate_is_one_half_of_all_cells_scored_against_the_other(truth):
    """In plain numpy from the halves, with their own control halves."""
    _, duplicate = cell_calibrations(MADE, truth)
    of = {metric: score.values for metric, _, _, score in duplicate}
    found = []
    for cut in halves(MADE.condition, NAMES, repeats=5):
        group = np.where(MADE.condition == CONTROL, 0, MADE.condition + 1)
        y = y_of(MADE.counts)[:, truth.genes]
        tests = [expression_tests(y[cut == half], group[cut == half], PERTURBATIONS + 1) for half in (0, 1)]
        found.append(expression_agreement(*tests, truth.cells.left_out))
    for name in ("auprc", "sign", "overlap20"):
        np.testing.assert_allclose(of[name], np.mean([each[name] for each in found], 0), atol=1e-12)


# ---- nothing to score


def real_values() -> Screen:
    return replace(MADE, counts=MADE.counts.astype(np.float32))


@pytest.mark.parametrize(
    ("made", "net", "reason"),
    [
        ((real_values(), SPLIT), NET, "the screen has real values, and only counts of cells are compared"),
        ((MADE, SPLIT), REAL, "the model predicts real values, and only counts of cells are compared"),
    ],
    ids=["real values", "a model of real values"],
)  # fmt: skip
def test_undefined_scores_of_cells_have_a_reason(made, net, reason):
    truth = truth_of(*made)
    table, _ = scored(truth, predicted_cells(net, truth, DOSAGE))
    assert table["value"].isna().all() and table["reason"].str.startswith(reason).all()
    assert table.index.get_level_values("metric").tolist() == list(CELL_SCORES)
    if isinstance(truth.cells, str):
        theirs = split_scores.split_tables(*made, truth)[0]
        theirs = theirs[theirs["metric"].isin(CELL_SCORES)]
        assert set(theirs["reason"]) == {reason} and set(theirs["model"]) >= {"no_change", "ceiling"}


def test_expression_that_is_undefined_says_why(truth):
    """Test cells that do not differ from controls, so that nothing is significant."""
    tests = replace(truth.cells.tests, q=np.ones_like(truth.cells.tests.q))
    same = replace(truth, cells=replace(truth.cells, tests=tests, energy_of_control=np.full(5, -0.01)))
    table, _ = scored(same, cell_baselines(MADE, SPLIT, truth)["train_mean"])
    found = table.xs("seen", level="set")["reason"]
    assert found["auprc"] == found["mcc"] and found["auprc"].startswith("fewer than 3 conditions have a gene that is")
    assert found["sign"] == "fewer than 3 conditions have 10 genes that are significant in the test cells"
    assert found["overlap100"] == "fewer than 3 conditions have 100 genes that are tested"
    assert found["energy_share"].startswith("the test cells are as close to each other as to the training controls")
    assert found["jaccard"] == "" and found["variance_ratio"] == ""

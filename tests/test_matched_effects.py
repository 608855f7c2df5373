"""Effects matched within levels of covariates: against plain loops, and against the truth of a simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import model

from samsvae.data.arrays import Covariates, Screen
from samsvae.evaluation.calibrations import calibrations
from samsvae.evaluation.data_effects import effects
from samsvae.evaluation.honest import model_tables
from samsvae.evaluation.matched_parts import part_of
from samsvae.evaluation.metrics.halves import half_effects, halves
from samsvae.evaluation.split_scores import split_tables
from samsvae.evaluation.truth import truth_of
from samsvae.evaluation.truth_file import read_truth, write_truth
from samsvae.models.levels import Levels
from samsvae.models.model import Model

SHARES = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4], [0.4, 0.3, 0.3], [1 / 3] * 3]


def log2(x: np.ndarray) -> np.ndarray:
    return np.log2(1 + 1e4 * x / x.sum(1, keepdims=True))


def batches(n: int = 1200, genes: int = 30, *, shift: float = 1.0, depth: float = 3000.0, seed: int = 0):
    """A screen whose four perturbations and one pair are spread unevenly over three batches, and the log rates.

    Returns the screen, the split, and the log shift of every condition, (C, G), and of every batch, (3, G).
    """
    rng = np.random.default_rng(seed)
    names = np.array(["a", "b", "c", "d", "a+b", "control"])
    members = np.array([[0, -1], [1, -1], [2, -1], [3, -1], [0, 1], [-1, -1]])
    condition = rng.integers(6, size=n)
    batch = np.array([rng.choice(3, p=SHARES[c]) for c in condition])
    single = np.where(rng.random((4, genes)) < 0.3, rng.normal(0, 0.8, (4, genes)), 0.0)
    of_condition = np.stack([*single, single[0] + single[1], np.zeros(genes)])
    of_batch = shift * rng.normal(0, 0.7, (3, genes))
    rate = np.exp(rng.normal(0, 1, genes) + of_condition[condition] + of_batch[batch])
    counts = rng.poisson(depth * rate / rate.sum(1, keepdims=True)).astype(np.int16)
    counts[:, 0] += 1
    screen = Screen(
        counts=counts,
        library=counts.sum(1).astype(np.float32),
        cells=np.array([f"cell{i}" for i in range(n)]),
        genes=np.array([f"gene{g}" for g in range(genes)]),
        condition=condition,
        conditions=names,
        members=members,
        perturbations=names[:4],
        controls=("control",),
        separator="+",
        covariates=Covariates(("batch",), (("b1", "b2", "b3"),), batch[:, None]),
    )
    split = rng.choice(["train", "val", "test"], n, p=[0.5, 0.2, 0.3])
    return screen, split, of_condition, of_batch


def by_loops(screen: Screen, cells: np.ndarray, controls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matched effects (C, G) and their squared errors, one level at a time."""
    y, level = log2(screen.counts.astype(float)), screen.covariates.codes[:, 0]
    delta, se2 = np.full((2, len(screen.conditions), y.shape[1]), np.nan)
    for c in range(len(screen.conditions)):
        used = [cells & (screen.condition == c) & (level == b) for b in range(3)]
        mine = [controls & (level == b) for b in range(3)]
        pairs = [(u, m) for u, m in zip(used, mine, strict=True) if m.sum() > 1 and u.any()]
        n = sum(u.sum() for u, _ in pairs)
        if n < 2:
            continue
        delta[c] = sum(u.sum() / n * (y[u].mean(0) - y[m].mean(0)) for u, m in pairs)
        off = np.concatenate([y[u] - y[m].mean(0) for u, m in pairs])
        of_controls = sum((u.sum() / n) ** 2 * y[m].var(0, ddof=1) / m.sum() for u, m in pairs)
        se2[c] = off.var(0, ddof=1) / n + of_controls
    return delta, se2


def test_the_truth_is_matched_within_levels():
    screen, split, *_ = batches()
    truth, control = truth_of(screen, split), screen.condition == 5
    for found, part in ((truth.test, split == "test"), (truth.train, split == "train"), (truth.every, split != "")):
        delta, se2 = by_loops(screen, part, part & control)
        np.testing.assert_allclose(found.delta[:5], delta[:5], atol=1e-9)
        np.testing.assert_allclose(found.se2[:5], se2[:5], rtol=1e-9)
    pairs = truth.pairs.observed
    delta, _ = by_loops(screen, split == "test", (split == "test") & control)
    np.testing.assert_allclose(pairs.value, [delta[4] - delta[0] - delta[1]], atol=1e-9)


def test_with_one_level_nothing_changes():
    screen, split, *_ = batches()
    plain = truth_of(replace(screen, covariates=None), split)
    one = replace(screen, covariates=Covariates(("b",), (("x",),), np.zeros((len(split), 1), int)))
    found = truth_of(one, split)
    for name in ("test", "train", "every"):
        for ours, theirs in zip(getattr(found, name), getattr(plain, name), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-9)
    for ours, theirs in zip(found.pairs.observed, plain.pairs.observed, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    both = [effects(s, split, reference="control") for s in (one, replace(screen, covariates=None))]
    np.testing.assert_allclose(both[0].X, both[1].X, atol=1e-9)
    for layer in ("train", "held_out"):
        np.testing.assert_allclose(both[0].layers[layer], both[1].layers[layer], atol=1e-9)
    ours, theirs = (calibrations(s, t) for s, t in ((one, found), (replace(screen, covariates=None), plain)))
    assert ours.keys() == theirs.keys()
    for name, each in ours.items():
        np.testing.assert_allclose(each.drf, theirs[name].drf, atol=1e-9)


def test_matching_removes_the_shift_of_batches():
    """The error against the simulated effects in expected cells: without matching, batches add theirs."""
    screen, split, of_condition, _ = batches(4000)
    _, _, same, _ = batches(4000, shift=0.0)
    np.testing.assert_array_equal(of_condition, same)
    still, flat, *_ = batches(4000, shift=0.0)
    expected = truth_of(replace(still, covariates=None), flat).every.delta[:5]  # no batch effect at all
    with_them = truth_of(screen, split).every.delta[:5]
    without = truth_of(replace(screen, covariates=None), split).every.delta[:5]
    error = [np.sqrt(((found - expected) ** 2).mean()) for found in (with_them, without)]
    assert error[0] < 0.5 * error[1]


def test_standard_errors_are_those_of_repeated_screens():
    """The squared error of a matched effect against its spread over screens with new cells."""
    found = []
    for seed in range(100):
        screen, split, *_ = batches(600, seed=0)
        rng = np.random.default_rng(seed)
        rate = screen.counts[screen.condition == 5].mean(0) + 0.5
        counts = rng.poisson(np.exp(0.5 * screen.covariates.codes) * rate).astype(np.int16)
        truth = truth_of(replace(screen, counts=counts), split)
        found.append((truth.test.delta[:5], truth.test.se2[:5]))
    delta, se2 = (np.stack(each) for each in zip(*found, strict=True))
    ratio = delta.var(0, ddof=1).mean(1) / se2.mean((0, 2))
    np.testing.assert_allclose(ratio, 1, atol=0.2)


def test_a_level_without_controls_is_left_out_and_counted(caplog):
    screen, split, *_ = batches()
    lost = screen.covariates.codes[:, 0] == 2
    screen = replace(screen, condition=np.where(lost & (screen.condition == 5), 3, screen.condition))
    data = effects(screen, split, reference="control")
    n = np.bincount(screen.condition, minlength=6)[:5]
    assert data.obs["n_cells"].tolist() == n.tolist()
    assert data.obs["n_matched"].tolist() == (n - np.bincount(screen.condition[lost], minlength=6)[:5]).tolist()
    assert f"effects in all cells: {lost.sum()} of 1200 cells are left out" in caplog.text
    assert "fewer than 2 controls have their levels of batch: 'b3'" in caplog.text
    delta, _ = by_loops(screen, np.ones(1200, bool), screen.condition == 5)
    np.testing.assert_allclose(data.X, delta[:5], atol=1e-9)
    truth = truth_of(screen, split)
    assert [len(x) for x in truth.libraries] == [
        (~lost & (screen.condition == c) & (split == "test")).sum() for c in range(6)
    ]


def test_each_half_has_its_own_controls():
    screen, *_ = batches()
    every = part_of(screen, np.ones(1200, bool), screen.condition == 5)
    half = halves(screen.condition, screen.conditions, repeats=2)
    found = half_effects(every.X, screen.condition, 6, half, control=5, method="mean", level=every.X.level)
    for r, pair in enumerate(found):
        for side, ours in enumerate(pair):
            cells = half[r] == side
            delta, _ = by_loops(screen, cells, cells & (screen.condition == 5))
            np.testing.assert_allclose(ours.delta[:5], delta[:5], atol=1e-9)


def test_models_are_scored_in_the_levels_of_the_observed_cells(tmp_path):
    screen, split, *_ = batches()
    truth = truth_of(screen, split)
    write_truth(truth, tmp_path / "truth.npz")
    again = read_truth(tmp_path / "truth.npz")
    for c, cells in enumerate(again.levels.cells):
        at = (screen.condition == c) & (split == "test")
        np.testing.assert_array_equal(again.levels.combinations[cells], screen.covariates.codes[at])
    split_tables(screen, split, again)
    net = model("sams_vae_corr", genes=30)
    net = Model(net.config, 30, 4, levels=Levels((3,), ((0,), (1,), (2,)), (1, 1, 1))).eval()
    with torch.no_grad():  # offsets of levels start at 0
        net.level_offset.normal_(generator=torch.Generator().manual_seed(0))
    dosage = np.where(screen.members < 0, 4, screen.members)
    table, _ = model_tables(net, again, dosage, draws=4, cells=2)
    assert np.isfinite(table.loc[table["metric"] == "mse_control", "value"]).all()
    # the same cells in other levels give other scores
    turned = replace(again, levels=replace(again.levels, cells=[(c + 1) % 3 for c in again.levels.cells]))
    other, _ = model_tables(net, turned, dosage, draws=4, cells=2)
    assert not np.allclose(table["value"].dropna(), other["value"].dropna())


def test_without_a_reference_levels_are_centred():
    screen, split, *_ = batches()
    data = effects(screen, split, reference="")
    y, level = log2(screen.counts.astype(float)), screen.covariates.codes[:, 0]
    apart = y - np.stack([y[level == b].mean(0) for b in range(3)])[level]
    means = np.stack([apart[screen.condition == c].mean(0) for c in range(6)])
    np.testing.assert_allclose(data.X, means - means.mean(0), atol=1e-9)


@pytest.mark.parametrize("reference", ["control", ""])
def test_screens_without_covariates_have_no_matched_cells(reference):
    screen, split, *_ = batches()
    assert "n_matched" not in effects(replace(screen, covariates=None), split, reference=reference).obs

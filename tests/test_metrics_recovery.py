"""Recovery of masks and latents, compared with brute force, scikit-learn and scipy."""

import json
from itertools import permutations

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import precision_recall_fscore_support

from samsvae.evaluation.metrics.recovery import (
    absolute_correlation,
    all_ones_f1,
    largest_entries,
    latent_recovery,
    mask_recovery,
    match_by_correlation,
)

RNG = np.random.default_rng(0)
TRUE = RNG.random((30, 4)) < 0.3
FOUND = np.where(RNG.random((30, 4)) < 0.85, TRUE[:, [2, 0, 3, 1]], RNG.random((30, 4)) < 0.3)


def test_matching_by_true_positives_against_all_permutations():
    best = max(permutations(range(4)), key=lambda p: (TRUE & FOUND[:, p]).sum())
    expected = precision_recall_fscore_support(TRUE.ravel(), FOUND[:, best].ravel(), average="binary")[:3]
    got = mask_recovery(TRUE, FOUND.astype(float))
    assert got.pop("mask_density") == pytest.approx(FOUND.mean())
    assert list(got) == [f"mask_{name}/true-positives" for name in ("precision", "recall", "f1")]
    np.testing.assert_allclose(list(got.values()), expected)


def test_matching_by_correlation_ignores_signs_and_order():
    z = RNG.standard_normal((200, 4))
    learned = -3 * z[:, [1, 3, 0, 2]] + 0.1 * RNG.standard_normal((200, 4))
    rows, columns = match_by_correlation(z, learned)
    assert list(columns[rows.argsort()]) == [2, 0, 3, 1]
    got = mask_recovery(TRUE, 0.9 * TRUE[:, [1, 3, 0, 2]], z_true=z, z_learned=learned)
    assert got["mask_f1/correlation"] == got["mask_f1/true-positives"] == 1


def test_the_two_largest_entries_of_every_row():
    embedding = RNG.standard_normal((20, 5))
    embedding[3] = 0.0  # a tie
    found = largest_entries(embedding)
    for row, size in zip(found, np.abs(embedding), strict=True):
        assert row.sum() == 2 and size[row == 1].min() >= size[row == 0].max()
    assert found[3].tolist() == [1, 1, 0, 0, 0] and largest_entries(embedding[:, :1]).tolist() == [[1]] * 20


def test_targets_of_ivae_on_the_reference_fit(shared):
    """The published numbers of this fit, after its second stage (32 interventions that were trained)."""
    folder = shared / "data" / "golden_svae"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} (golden files of the SVAE+ paper)")
    fit, sim = np.load(folder / "transfer_small.npz"), np.load(folder / "sim_small_1.npz")
    (row,) = [
        row
        for row in json.loads((folder / "reference_small_1.json").read_text())["rows"]
        if (row["name"], row["seed"]) == ("ivae", 0)
    ]
    seen = sim["seen"]
    got = mask_recovery(sim["shift"][seen] != 0, largest_entries(fit["ivae/param/mu"][seen]))
    scores = [got[f"mask_{name}/true-positives"] for name in ("precision", "recall", "f1")]
    assert scores == pytest.approx(row["stage2"]["top2_tp_seen"], abs=1e-4)
    assert got["mask_density"] == row["stage2"]["top2_density_seen"]


def test_the_two_rules_can_differ():
    """Matching by true positives hides a swap of masks relative to latents, matching by correlation does not."""
    z, mask = RNG.standard_normal((50, 2)), np.array([[1, 0], [1, 0], [0, 1]])
    got = mask_recovery(mask, mask[:, ::-1], z_true=z, z_learned=z)
    assert got["mask_f1/true-positives"] == 1 and got["mask_f1/correlation"] == 0


def test_surplus_and_missing_latents():
    """One true latent with 2 positives. Found: this latent and a surplus one with 3 positives; or nothing."""
    true = np.array([[1], [1], [0], [0]])
    found = np.array([[0, 1], [1, 1], [1, 0], [1, 0]])  # matched: column 1
    got = mask_recovery(true, found)
    assert got["mask_precision/true-positives"] == 2 / 5 and got["mask_recall/true-positives"] == 1
    back = mask_recovery(found, true)
    assert back["mask_precision/true-positives"] == 1 and back["mask_recall/true-positives"] == 2 / 5
    assert set(mask_recovery(true, np.zeros((4, 2))).values()) == {0}
    assert mask_recovery(true, np.full((4, 1), 0.5))["mask_recall/true-positives"] == 0  # 0.5 is not above 0.5


def test_all_ones_line():
    assert all_ones_f1(TRUE) == pytest.approx(
        precision_recall_fscore_support(TRUE.ravel(), np.ones(TRUE.size, bool), average="binary")[2]
    )
    assert all_ones_f1(np.arange(15) < 2) == pytest.approx(4 / 17)  # the design's 0.24 at 2/15


def test_mcc_against_brute_force():
    z, noise = RNG.standard_normal((100, 3)), RNG.standard_normal((100, 3))
    learned = np.exp(z[:, [2, 0, 1]] + noise)
    got = latent_recovery(z, learned)
    for name, correlate in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        best = max(
            np.mean([abs(correlate(z[:, i], learned[:, p[i]])[0]) for i in range(3)]) for p in permutations(range(3))
        )
        assert got[f"mcc_{name}"] == pytest.approx(best)
    assert got["latent_r2"] == pytest.approx(LinearRegression().fit(learned, z).score(learned, z))


def test_fewer_learned_latents_and_constant_ones():
    z = RNG.standard_normal((100, 4))
    assert latent_recovery(z, z[:, :1])["mcc_pearson"] == pytest.approx(1 / 4)
    collapsed = np.column_stack([z[:, :2], np.zeros((100, 2))])
    assert (absolute_correlation(z, collapsed)[:, 2:] == 0).all()
    got = latent_recovery(z, collapsed)
    assert got["mcc_spearman"] == pytest.approx(1 / 2)
    assert got["latent_r2"] == pytest.approx(LinearRegression().fit(collapsed, z).score(collapsed, z))
    assert latent_recovery(z, z @ RNG.standard_normal((4, 4)) + 7)["latent_r2"] == pytest.approx(1)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="30 perturbations"):
        mask_recovery(TRUE, FOUND[:5])
    with pytest.raises(ValueError, match="different numbers of latents"):
        mask_recovery(TRUE, FOUND, z_true=np.zeros((5, 4)), z_learned=np.zeros((5, 3)))

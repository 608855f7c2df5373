"""Agreement of masks over seeds and over guides: against brute force, and in cases with known answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from samsvae.errors import DataError
from samsvae.evaluation.metrics.mask_stability import mask_stability, matched_jaccard, row_jaccards, sibling_rank


@pytest.fixture(scope="module")
def mask():
    return np.random.default_rng(0).random((20, 4)) < 0.3


def test_the_match_has_the_largest_overlap_of_all(mask):
    other = np.random.default_rng(1).random((20, 4)) < 0.4
    best = max(int((mask & other[:, order]).sum()) for order in itertools.permutations(range(4)))
    assert matched_jaccard(mask, other) == best / (mask.sum() + other.sum() - best)
    assert matched_jaccard(other, mask) == matched_jaccard(mask, other)
    assert matched_jaccard(mask, mask[:, [2, 0, 3, 1]]) == 1
    assert matched_jaccard(mask, np.zeros((20, 6))) == 0
    assert np.isnan(matched_jaccard(mask & False, mask & False))


def test_row_jaccards_equal_sklearns(mask):
    found = row_jaccards(mask)
    for i, j in itertools.product(range(6), repeat=2):
        assert found[i, j] == pytest.approx(jaccard_score(mask[i], mask[j], zero_division=0))


def test_equal_and_independent_masks(mask):
    equal = mask_stability([mask, mask[:, [1, 0, 3, 2]], mask]).scores()
    assert equal["jaccard"] == equal["excess"] == 1 and equal["gram"] == pytest.approx(1)
    assert equal["null"] < 0.6
    assert equal["density"] == mask.mean() and equal["active_latents"] == 4
    rng = np.random.default_rng(1)
    independent = mask_stability([rng.random((80, 10)) < 0.2 for _ in range(4)]).scores()
    assert abs(independent["excess"]) < 0.03 and abs(independent["gram"]) < 0.05


def test_latents_may_be_permuted_and_added(mask):
    other = np.concatenate([mask, np.zeros((20, 3), bool)], 1)
    found = mask_stability([mask, other])
    assert found.jaccards.tolist() == [1] and found.active_latents.tolist() == [4, 4]
    assert found.density[1] == pytest.approx(mask.sum() / 140)
    again = mask_stability([mask, other[:, np.random.default_rng(0).permutation(7)]])
    np.testing.assert_allclose(again.nulls, found.nulls)
    np.testing.assert_allclose(again.grams, found.grams)


def test_probabilities_are_cut(mask):
    assert mask_stability([mask * 0.4 + 0.3, mask]).jaccards[0] == 1
    assert matched_jaccard(np.full((3, 2), 0.5), np.ones((3, 2))) == 0


def test_masks_that_say_nothing(mask):
    ones = mask_stability([np.ones((5, 3)), np.ones((5, 3))]).scores()
    assert ones["jaccard"] == ones["null"] == 1 and np.isnan(ones["excess"]) and np.isnan(ones["gram"])
    empty = mask_stability([np.zeros((5, 3))] * 2).scores()
    assert all(np.isnan(empty[name]) for name in ("jaccard", "null", "excess", "gram"))
    assert empty["density"] == empty["active_latents"] == 0
    single = mask_stability([mask]).scores()
    assert np.isnan(single["jaccard"]) and single["density"] == mask.mean()


def test_impossible_masks_end_in_one_sentence(mask):
    with pytest.raises(DataError, match=r"masks have \[19, 20\] perturbations"):
        mask_stability([mask, mask[1:]])
    with pytest.raises(DataError, match="There is no mask"):
        mask_stability([])
    with pytest.raises(DataError, match=r"masks\[1\] has 1 values that are not finite, the first at \(0, 0\)"):
        mask_stability([mask, np.where(np.arange(80).reshape(20, 4) == 0, np.nan, 1)])
    with pytest.raises(DataError, match=r"other has the shape \(19, 4\), but it must be \(20, L\)"):
        matched_jaccard(mask, mask[1:])
    with pytest.raises(DataError, match="gene has 3 entries, but the mask has 20 guides"):
        sibling_rank(mask, ["A", "B", "C"])


def by_hand(mask: np.ndarray, gene: np.ndarray) -> float:
    """The rank as its definition says it."""
    similar, values = row_jaccards(mask), []
    for t in range(len(gene)):
        siblings = [u for u in range(len(gene)) if u != t and gene[u] == gene[t]]
        others = [u for u in range(len(gene)) if gene[u] != gene[t]]
        if siblings and others:
            wins = [(similar[t, u] > similar[t, v]) + (similar[t, u] == similar[t, v]) / 2
                    for u in siblings for v in others]  # fmt: skip
            values.append(np.mean(wins))
    return float(np.mean(values))


def test_siblings_by_hand(mask):
    gene = np.array(list("AABBCCCDDDDEFGHIJKLM"))
    found = sibling_rank(mask, gene, permutations=20)
    assert found.rank == pytest.approx(by_hand(mask, gene), rel=1e-12)
    assert found.n_guides == 11
    rng = np.random.default_rng(0)
    # the guides are permuted, which is the same as permuting genes
    expected = [by_hand(mask[rng.permutation(20)], gene) for _ in range(20)]
    assert found.null == pytest.approx(np.mean(expected), rel=1e-12)
    assert found.p == (1 + sum(value >= found.rank - 1e-12 for value in expected)) / 21


def test_siblings_that_share_a_mask_and_that_do_not():
    rng = np.random.default_rng(0)
    gene = np.arange(60) // 2
    same = (rng.random((30, 20)) < 0.3)[gene]
    found = sibling_rank(same, gene, permutations=200)
    assert found.rank > 0.98 and found.p == 1 / 201 and found.null == pytest.approx(0.5, abs=0.02)
    assert sibling_rank(rng.random((60, 20)) < 0.3, gene, permutations=200).p > 0.01
    constant = sibling_rank(np.ones((60, 20)), gene, permutations=50)
    assert constant.rank == pytest.approx(0.5) and constant.p == 1


def test_guides_without_siblings(mask):
    for gene in (np.arange(20), np.zeros(20)):
        found = sibling_rank(mask, gene)
        assert np.isnan(found.rank) and np.isnan(found.p) and found.n_guides == 0

"""Pathway accuracy: finds a planted signal, finds none in noise, and never splits a target gene."""

import numpy as np
import pandas as pd
import pytest

from samsvae.errors import DataError
from samsvae.evaluation.metrics.pathways import pathway_accuracy, permutation_null, permuted_labels

RNG = np.random.default_rng(0)
GENE = np.repeat([f"g{i}" for i in range(25)], 2)  # two guides of each gene
PATHWAY = np.repeat(["P", "Q", "R"], [20, 16, 14])
FAST = {"repeats": 3, "trees": 20}


def planted(strength):
    own = np.repeat(np.eye(3), [20, 16, 14], axis=0)
    return np.clip(0.1 + strength * np.hstack([own] * 4) + 0.1 * RNG.standard_normal((50, 12)), 0, 1)


def get(table, classifier, metric="accuracy"):
    return table.set_index(["classifier", "metric"])["mean"][classifier, metric]


def test_planted_pathways_are_found_and_the_majority_is_reported():
    table = pathway_accuracy(planted(0.8), PATHWAY, GENE, **FAST)
    assert list(table.columns) == ["classifier", "metric", "mean", "sd", "n", "folds"]
    for classifier in ("logistic", "forest", "knn"):
        assert get(table, classifier) > 0.95 and get(table, classifier, "balanced_accuracy") > 0.95
    assert get(table, "majority") == 0.4 and get(table, "majority", "balanced_accuracy") == pytest.approx(1 / 3)
    assert (table["n"] == [3] * 6 + [1] * 2).all() and (table["folds"] == 5).all()


def test_guides_of_a_gene_are_in_one_fold():
    """Features that only identify the gene say nothing about the pathway, unless training saw its other guide."""
    features = np.repeat(np.eye(25), 2, axis=0)
    table = pathway_accuracy(features, PATHWAY, GENE, **FAST)
    leaked = pathway_accuracy(features, PATHWAY, np.arange(50), **FAST)
    assert get(table, "logistic") < 0.55 and get(leaked, "logistic") > 0.7
    assert get(table, "logistic", "balanced_accuracy") < 0.5


def test_balanced_accuracy_of_a_constant_prediction():
    """With constant features every classifier predicts one class, so balanced accuracy is 1/3 for any class size."""
    table = pathway_accuracy(np.zeros((50, 3)), PATHWAY, GENE, repeats=1, trees=5)
    assert get(table, "logistic") == pytest.approx(0.4)
    assert get(table, "logistic", "balanced_accuracy") == pytest.approx(1 / 3)


def test_permuted_labels_are_equal_within_a_gene():
    labels = permuted_labels(PATHWAY, GENE, n=6, seed=1)
    assert labels.shape == (6, 50) and (labels[:, ::2] == labels[:, 1::2]).all()
    assert all(sorted(row) == sorted(PATHWAY) for row in labels)
    assert len({tuple(row) for row in labels}) == 6
    np.testing.assert_array_equal(labels, permuted_labels(PATHWAY, GENE, n=6, seed=1))
    with pytest.raises(ValueError, match="several pathways"):
        permuted_labels(PATHWAY, np.roll(GENE, 1))


def test_null_is_near_chance():
    null = permutation_null(planted(0.8), permuted_labels(PATHWAY, GENE, n=10), GENE, trees=10)
    balanced = null[null["metric"] == "balanced_accuracy"]
    assert (null["n"] == 10).all() and set(null["classifier"]) == {"logistic", "forest", "knn"}
    assert ((balanced["mean"] - 1 / 3).abs() < 0.15).all()


def test_deterministic_and_without_forest():
    tables = [pathway_accuracy(planted_once, PATHWAY, GENE, repeats=2, trees=5, seed=4) for planted_once in [X4, X4]]
    pd.testing.assert_frame_equal(*tables)
    assert set(pathway_accuracy(X4, PATHWAY, GENE, repeats=1, trees=0)["classifier"]) == {"logistic", "knn", "majority"}


X4 = planted(0.2)


def test_real_features_do_not_depend_on_scale():
    features = RNG.standard_normal((50, 6))
    options = {"repeats": 2, "trees": 0, "masks": False}
    scaled = pathway_accuracy(features * np.logspace(-3, 3, 6) + 5, PATHWAY, GENE, **options)
    pd.testing.assert_frame_equal(pathway_accuracy(features, PATHWAY, GENE, **options), scaled)


def test_fewer_folds_for_small_pathways():
    small = PATHWAY.copy()
    small[:6] = "S"  # three genes
    assert set(pathway_accuracy(X4, small, GENE, repeats=1, trees=0)["folds"]) == {3}
    small[:6] = ["S"] * 2 + ["P"] * 4
    with pytest.raises(DataError, match="S 1"):
        pathway_accuracy(X4, small, GENE, repeats=1, trees=0)


def test_two_pathways_of_two_genes_are_enough():
    """The smallest annotation that can be scored: a fold then trains on two rows, fewer than k-NN's five neighbours."""
    pathway, gene = np.repeat(["A", "B"], 2), np.array(list("abcd"))
    features = np.repeat(np.eye(2), 2, axis=0)
    table = pathway_accuracy(features, pathway, gene, repeats=2, trees=3)
    assert (table["folds"] == 2).all() and get(table, "logistic") == 1.0
    null = permutation_null(features, permuted_labels(pathway, gene, n=3), gene, trees=3)
    assert null["mean"].between(0, 1).all()

"""Predict the pathways of perturbations from their masks, or from other features.

The papers' classifier is not public, so this is our own protocol: three classifiers predict the pathway of a
perturbation from its row of features. In cross-validation, all perturbations of a target gene are in the same fold.
Letters: N annotated perturbations, L features.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from samsvae.errors import DataError
from samsvae.evaluation.metrics.constants import MAJORITY

#: Neighbours of the k-NN classifier; fewer if a fold has fewer training rows.
NEIGHBOURS = 5


def pathway_accuracy(
    features: np.ndarray,
    pathway: np.ndarray,
    gene: np.ndarray,
    *,
    repeats: int = 10,
    trees: int = 500,
    seed: int = 0,
    masks: bool = True,
    folds: int = 5,
) -> pd.DataFrame:
    """Cross-validated accuracy of the three classifiers, and of always predicting the largest pathway.

    ``features`` (N, L): with ``masks``, mask probabilities, which logistic regression and forest read as they are and
    k-NN as > 0.5 with Hamming distance; otherwise real values, which are standardised in each fold and compared by
    Euclidean distance. ``pathway``, ``gene`` (N,): labels and target genes. ``trees`` = 0 leaves out the forest. Each
    repeat shuffles the folds again and scores its out-of-fold predictions together. There are at most ``folds`` folds,
    and no more than the smallest pathway has genes.

    Columns: classifier (logistic, forest, knn, majority), metric (accuracy, balanced_accuracy), mean, sd (over
    repeats), n (repeats), folds. DataError if there is only one pathway, or a pathway with only one gene.
    """
    features, pathway, gene = np.asarray(features, float), np.asarray(pathway), np.asarray(gene)
    folds = _folds(pathway, gene, folds)
    rows = [
        (name, metric, value)
        for repeat in range(repeats)
        for name, metric, value in _one_repeat(features, pathway, gene, folds, trees, [seed, repeat], masks)
    ]
    table = _summary(rows)
    counts = pd.Series(pathway).value_counts()
    majority = {"accuracy": counts.iloc[0] / len(pathway), "balanced_accuracy": 1 / len(counts)}
    table = pd.concat(
        [
            table,
            pd.DataFrame(
                {"classifier": MAJORITY, "metric": list(majority), "mean": list(majority.values()), "sd": 0.0, "n": 1}
            ),
        ],
        ignore_index=True,
    )
    return table.assign(folds=folds)


def permuted_labels(pathway: np.ndarray, gene: np.ndarray, *, n: int = 20, seed: int = 0) -> np.ndarray:
    """n permutations of the labels, (n, N), equal for all runs.

    Pathways are permuted among *genes*, because all perturbations of a gene share a pathway. ValueError if they do not.
    """
    pathway, gene = np.asarray(pathway), np.asarray(gene)
    genes, first, of = np.unique(gene, return_index=True, return_inverse=True)
    labels = pathway[first]
    if (labels[of] != pathway).any():
        raise ValueError(
            "The perturbations of one gene are in several pathways, so pathways cannot be permuted among genes."
        )
    rng = np.random.default_rng(seed)
    return np.stack([labels[rng.permutation(len(genes))][of] for _ in range(n)])


def permutation_null(
    features: np.ndarray,
    permuted: np.ndarray,
    gene: np.ndarray,
    *,
    trees: int = 500,
    seed: int = 0,
    masks: bool = True,
    folds: int = 5,
) -> pd.DataFrame:
    """Accuracies on permuted labels (n, N), one repeat each: the columns of pathway_accuracy, without majority."""
    features, gene = np.asarray(features, float), np.asarray(gene)
    folds = _folds(permuted[0], gene, folds)  # equal for all: permuting keeps the number of genes per pathway
    rows = [
        row
        for i, labels in enumerate(permuted)
        for row in _one_repeat(features, labels, gene, folds, trees, [seed, i], masks)
    ]
    return _summary(rows).assign(folds=folds)


def _folds(pathway: np.ndarray, gene: np.ndarray, most: int) -> int:
    n_genes = pd.Series(gene).groupby(pathway).nunique()
    if len(n_genes) < 2 or n_genes.min() < 2:
        raise DataError(
            "Pathway accuracy needs at least two pathways with at least two target genes each; genes per pathway: "
            + ", ".join(f"{name} {number}" for name, number in n_genes.items())
            + "."
        )
    return int(min(most, n_genes.min()))


def _one_repeat(
    features: np.ndarray,
    pathway: np.ndarray,
    gene: np.ndarray,
    folds: int,
    trees: int,
    seed: list[int],
    masks: bool,
) -> Iterator[tuple[str, str, float]]:
    """Rows classifier, metric, value for one shuffle of the folds."""
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=state)
    splits = list(splitter.split(features, pathway, gene))
    models = _classifiers(trees, min(NEIGHBOURS, *(len(train) for train, _ in splits)), state, masks)
    predicted = {name: np.empty_like(pathway) for name in models}
    for train, test in splits:
        scaler = None if masks else StandardScaler().fit(features[train])
        x = features if scaler is None else scaler.transform(features)
        for name, model in models.items():
            seen = x > 0.5 if masks and name == "knn" else x
            predicted[name][test] = model.fit(seen[train], pathway[train]).predict(seen[test])
    for name, labels in predicted.items():
        yield name, "accuracy", accuracy_score(pathway, labels)
        yield name, "balanced_accuracy", balanced_accuracy_score(pathway, labels)


def _classifiers(trees: int, neighbours: int, state: int, masks: bool) -> dict[str, ClassifierMixin]:
    models = {"logistic": LogisticRegression(max_iter=1000)}
    if trees:
        models["forest"] = RandomForestClassifier(trees, random_state=state)
    return models | {"knn": KNeighborsClassifier(neighbours, metric="hamming" if masks else "euclidean")}


def _summary(rows: list[tuple[str, str, float]]) -> pd.DataFrame:
    """Mean, sd and number of values of each classifier and metric, in the order of the rows."""
    table = pd.DataFrame(rows, columns=["classifier", "metric", "value"])
    grouped = table.groupby(["classifier", "metric"], sort=False)["value"]
    return grouped.agg(mean="mean", sd="std", n="size").reset_index()

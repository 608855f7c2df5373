"""Distances and variances of cells: against scipy and scikit-learn, and in cases with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats
from scipy.spatial.distance import cdist, pdist
from sklearn.decomposition import PCA

from samsvae.errors import DataError
from samsvae.evaluation.metrics import distributions as module
from samsvae.evaluation.metrics.distributions import (
    components,
    energies,
    energy_distance,
    mean_distance,
    mean_distance_within,
    variance_ratio,
)


def test_components_are_those_of_sklearn(monkeypatch):
    rng = np.random.default_rng(0)
    Y = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 30)) + rng.normal(size=(80, 30)) + 3
    other = rng.normal(size=(25, 30))
    pca = PCA(5, svd_solver="full").fit(Y)
    monkeypatch.setattr(module, "_BLOCK", 30 * 17)
    for cells in (Y, sparse.csr_matrix(Y)):
        found = components(cells, 5)
        np.testing.assert_allclose(cdist(*2 * (found.scores(other),)), cdist(*2 * (pca.transform(other),)), atol=1e-9)
        np.testing.assert_allclose(found.scores(sparse.csr_matrix(other)), found.scores(other), atol=1e-12)
    assert components(Y[:4]).vectors.shape == (30, 4)
    with pytest.raises(DataError, match=r"Y has the shape \(25, 29\), but it must be \(n, 30\)"):
        found.scores(other[:, 1:])


def test_energy_distance_by_hand(monkeypatch):
    # between: 0, 3, 2, 1 on a line; within: 2 and 3
    a, b = np.array([[0.0], [2.0]]), np.array([[0.0], [3.0]])
    assert energy_distance(a, b) == pytest.approx(2 * 1.5 - 2 - 3)
    assert np.isnan(energy_distance(a[:1], b))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(20, 4))
    monkeypatch.setattr(module, "_BLOCK", 50)
    assert mean_distance(x, y) == pytest.approx(cdist(x, y).mean(), rel=1e-12)
    assert mean_distance_within(x) == pytest.approx(pdist(x).mean(), rel=1e-12)


def test_energy_distance_is_unbiased_and_agrees_with_scipy():
    rng = np.random.default_rng(0)
    same = [energy_distance(rng.normal(size=(12, 3)), rng.normal(size=(9, 3))) for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20 and min(same) < 0
    a, b = rng.normal(size=(400, 1)), rng.normal(1, size=(400, 1))
    # scipy gives the root of the biased distance in one dimension
    biased = stats.energy_distance(a[:, 0], b[:, 0]) ** 2
    correction = (mean_distance_within(a) + mean_distance_within(b)) / 400
    assert energy_distance(a, b) == pytest.approx(biased - correction, rel=1e-9)


@pytest.fixture(scope="module")
def four_conditions():
    rng = np.random.default_rng(0)
    code = np.repeat([0, 1, 2, 3], [30, 40, 40, 1])
    shift = np.array([0, 2, -3, 5])[code, None]
    return rng.normal(size=(111, 3)) + shift, rng.normal(size=(111, 3)) + shift, code, rng.normal(size=(50, 3))


def test_energies_of_conditions(four_conditions):
    predicted, observed, code, control = four_conditions
    found = energies(predicted, code, observed, code, control, 5)
    for c in (1, 2):
        expected = energy_distance(predicted[code == c], observed[code == c])
        assert found.energy[c - 1] == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert found.energy_of_control[c - 1] == pytest.approx(energy_distance(control, observed[code == c]), rel=1e-12)
    assert np.isnan(found.energy[2:]).all() and np.isnan(found.energy_of_control[2:]).all()
    assert found.n_conditions == 2
    assert found.energy_share == pytest.approx(found.energy[:2].sum() / found.energy_of_control[:2].sum())
    assert abs(found.energy_share) < 0.05
    order = np.random.default_rng(1).permutation(111)
    again = energies(predicted[order], code[order], observed, code, control, 5)
    np.testing.assert_allclose(again.energy, found.energy, atol=1e-12)
    as_control = energies(np.concatenate([control, control]), np.repeat([1, 2], 50), observed, code, control, 5)
    assert as_control.energy_share == pytest.approx(1)


def test_a_share_of_nothing_is_undefined(four_conditions):
    predicted, observed, code, control = four_conditions
    assert np.isnan(energies(predicted, code, observed, np.zeros(111), control, 5).energy_share)
    found = energies(predicted, code, observed, code, control, 5)
    object.__setattr__(found, "energy_of_control", -found.energy_of_control)
    assert np.isnan(found.energy_share)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control": np.zeros((1, 3))}, "at least two training controls"),
        ({"observed": np.zeros((111, 2))}, r"observed has the shape \(111, 2\), but it must be \(m, 3\)"),
        ({"predicted_condition": np.full(111, -1)}, "predicted_condition has the code -1"),
        ({"predicted": np.full((111, 3), np.nan)}, "predicted has 333 values that are not finite"),
    ],
)
def test_impossible_energies_end_in_one_sentence(four_conditions, change, message):
    predicted, observed, code, control = four_conditions
    given = {
        "predicted": predicted,
        "predicted_condition": code,
        "observed": observed,
        "observed_condition": code,
        "control": control,
    }
    with pytest.raises(DataError, match=message):
        energies(**(given | change), n_conditions=5)


def test_variance_ratio():
    found = variance_ratio(np.array([[1.0, 3], [1, 1], [np.nan, 1]]), np.array([[1.0, 1], [0, 0], [1, 1]]))
    np.testing.assert_array_equal(found, [2, np.nan, np.nan])
    with pytest.raises(DataError, match="negative"):
        variance_ratio(np.array([[-1.0]]), np.array([[1.0]]))

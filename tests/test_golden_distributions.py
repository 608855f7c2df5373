"""Our sections S6, S7, S8, S10 and S11 against the golden values of an independent reference."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from golden_distributions import NO_LONGER, SECTIONS, detected, seen_conditions
from golden_distributions import tests as expression_of

NAMES = ("norman", "norman_no_test_control", "papalexi", "units")


@pytest.mark.parametrize("name", NAMES)
def test_every_golden_row_is_reproduced(shared, name):
    folder = shared / "data" / "golden_evaluation"
    arrays = dict(np.load(folder / f"{name}.input.npz"))
    with open(folder / f"{name}.expected.tsv", newline="") as file:
        expected = {
            (row["section"], row["metric"], row["reference"], row["predictor"], row["set"], row["condition"]): float(
                row["value"]
            )
            for row in csv.DictReader(file, delimiter="\t")
            if row["section"] in SECTIONS and (row["section"], row["metric"]) not in NO_LONGER
        }
    assert expected
    found = {key: value for section in SECTIONS.values() for key, value in section(arrays).items()}
    missing = [key for key in expected if key not in found]
    assert not missing
    wrong = [
        (key, found[key], value)
        for key, value in expected.items()
        if not same(found[key], value, 1e-6 if key[0] == "S10" else 1e-9)
    ]
    assert not wrong


def same(found: float, expected: float, tolerance: float) -> bool:
    if math.isnan(found) or math.isnan(expected):
        return math.isnan(found) and math.isnan(expected)
    return abs(found - expected) <= tolerance * max(abs(expected), 1e-12)


@pytest.mark.parametrize("name", NAMES[:3])
def test_golden_tests_of_expression(shared, name):
    folder = shared / "data" / "golden_evaluation"
    arrays, expected = dict(np.load(folder / f"{name}.input.npz")), np.load(folder / f"{name}.arrays.npz")
    assert np.array_equal(detected(arrays), expected["genes_detected"])
    truth, seen = expression_of(arrays)[0], seen_conditions(arrays)
    np.testing.assert_allclose(truth.z[seen - 1], expected["z_test"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(truth.q[seen - 1], expected["q_test"], rtol=1e-9)

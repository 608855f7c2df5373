"""Paired comparisons of transfers and the verdict on the claim: worked examples."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from samsvae.evaluation.transfer_verdicts import (
    BETTER,
    FAILS,
    HOLDS,
    ONLY_RELEASED,
    UNDECIDED,
    WORSE,
    Comparison,
    compare,
    sign_test,
    verdict,
)


def differences(of_seeds: list[float], of_perturbations: list[float]) -> pd.DataFrame:
    """Differences whose means over seeds and over perturbations deviate from their common mean as given."""
    seeds, others = np.asarray(of_seeds, float), np.asarray(of_perturbations, float)
    values = seeds[:, None] + others[None] - others.mean()
    names = pd.MultiIndex.from_product([range(len(seeds)), [f"P{i}" for i in range(len(others))]])
    return pd.Series(values.ravel(), names.set_names(["seed", "perturbation"])).rename("value").reset_index()


def found(outcome: str, seeds: int = 5) -> Comparison:
    return Comparison(1.0, seeds, 20, 0.01, 0.01, outcome)


def test_a_comparison_worked_out_by_hand():
    """t = 3 / sqrt(2.5 / 5) = 4.243 with 4 degrees of freedom: p = 0.01324. Eight of eight signs: p = 2 / 2^8."""
    each = compare(differences([1, 2, 3, 4, 5], [-1, 0, 1, 0, 0, 0.5, -0.5, 0]))
    assert each.difference == pytest.approx(3) and (each.seeds, each.perturbations) == (5, 8)
    assert each.p_seeds == pytest.approx(0.01324, abs=5e-5) and each.p_perturbations == pytest.approx(2 / 256)
    assert each.outcome == BETTER
    assert compare(differences([-1, -2, -3, -4, -5], [0] * 8)).outcome == WORSE


def test_a_tie_is_undecided():
    each = compare(differences([0, 0, 0, 0, 0], [0] * 8))
    assert (each.difference, each.p_seeds, each.p_perturbations, each.outcome) == (0, 1, 1, UNDECIDED)
    assert compare(differences([-2, -1, 0, 1, 2], [0] * 8)).outcome == UNDECIDED


def test_both_tests_must_agree():
    seeds = [2.0, 2.1, 2.2, 1.9, 1.8]
    one_strong = compare(differences(seeds, [80, *[0] * 19]))  # one perturbation of twenty makes the mean
    assert one_strong.p_seeds < 0.05 and one_strong.difference > 0 and one_strong.outcome == UNDECIDED
    few = compare(differences(seeds, [0] * 5))  # five signs: p = 2 / 2^5
    assert few.p_perturbations == pytest.approx(0.0625) and few.outcome == UNDECIDED
    noisy = compare(differences([9, -7, 9, -7, 8], [0] * 20))
    assert noisy.p_perturbations < 0.05 < noisy.p_seeds and noisy.outcome == UNDECIDED


def test_a_score_without_perturbations_has_one_test():
    each = compare(pd.DataFrame({"seed": range(5), "value": [1.0, 2, 3, 4, 5]}))
    assert each.outcome == BETTER and each.perturbations == 0 and np.isnan(each.p_perturbations)


def test_equal_values_do_not_count_as_signs():
    assert sign_test(np.array([1.0, 2.0, 0.0, 0.0, np.nan])) == pytest.approx(0.5)


@pytest.mark.parametrize(("seeds", "words"), [(0, "0 seeds"), (1, "1 seed"), (4, "4 seeds")])
def test_fewer_than_five_seeds_decide_nothing(seeds, words):
    said = f"undecided: {words}, 5 are needed"
    if seeds:
        assert compare(differences([50.0 + i for i in range(seeds)], [0] * 20)).outcome == said
    for outcome in (BETTER, WORSE):
        one = {"vae": found(outcome), "ivae": found(outcome, seeds)}
        assert verdict(one, {"vae": found(BETTER), "ivae": found(BETTER)}) == said
    assert verdict({}, {}) == "undecided: 0 seeds, 5 are needed"


B, W, U = BETTER, WORSE, UNDECIDED
VERDICTS = {  # against ivae and vae in ours, as released
    "better than both": (B, B, B, B, HOLDS),
    "also if it is not as released": (B, B, W, U, HOLDS),
    "better than both as released alone": (W, B, B, B, ONLY_RELEASED),
    "a tie that the release decides": (U, U, B, B, ONLY_RELEASED),
    "worse than one": (W, B, U, B, FAILS),
    "worse than one as released": (U, B, W, B, UNDECIDED),
    "a tie with one": (U, B, U, B, UNDECIDED),
    "a tie with both": (U, U, U, U, UNDECIDED),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_the_verdict_on_the_claim(case):
    *outcomes, expected = VERDICTS[case]
    ours, released = (dict(zip(("ivae", "vae"), map(found, two), strict=True)) for two in (outcomes[:2], outcomes[2:]))
    assert verdict(ours, released) == expected


def test_the_release_must_be_compared_with_all_and_with_enough_seeds():
    ours = {"ivae": found(WORSE), "vae": found(BETTER)}
    assert verdict(ours, {"ivae": found(BETTER)}) == FAILS
    assert verdict(ours, {"ivae": found("undecided: 3 seeds, 5 are needed", 3), "vae": found(BETTER)}) == FAILS

"""Effects with errors, reliability, agreement, baselines, discrimination, calibration and interactions by hand."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from samsvae.errors import DataError
from samsvae.evaluation.metrics import agreement, baselines, calibration, estimates, halves, interactions, intervals
from samsvae.evaluation.metrics import reliability as rel
from samsvae.evaluation.metrics.discrimination import discrimination
from samsvae.evaluation.metrics.effects import interactions as excess
from samsvae.evaluation.metrics.estimates import Effects, Moments

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def cells() -> tuple[np.ndarray, np.ndarray]:
    """Counts (240, 12) and condition codes: 6 conditions, 0 the control."""
    rng = np.random.default_rng(1)
    condition = np.repeat(np.arange(6), 40)
    rate = rng.gamma(2, 1, 12) * np.exp(0.5 * rng.standard_normal((6, 12)))
    order = rng.permutation(240)
    return rng.poisson(rate[condition])[order], condition[order]


# ---- S1


def test_equal_proportions_stay_equal():
    x = np.array([[1, 2], [3, 6], [7, 14], [0, 0]])
    y = estimates.log2_counts(x)
    assert (y[0] == y[1]).all() and (y[0] == y[2]).all() and (y[3] == 0).all()
    np.testing.assert_allclose(y[0], np.log2([1 + 1e4 / 3, 1 + 2e4 / 3]), rtol=1e-15)
    for bad in ([[1.0, np.nan]], [[1.0, -1.0]]):
        with pytest.raises(DataError, match="finite and not negative"):
            estimates.log2_counts(np.array(bad))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
@pytest.mark.parametrize("block", [24, 2**22])
def test_moments_against_numpy(cells, form, block, monkeypatch):
    monkeypatch.setattr(estimates, "_BLOCK", block)
    x, condition = cells
    chosen = RNG.random(240) < 0.5
    chosen[condition == 4] = False
    got = estimates.condition_moments(form(x.astype(np.uint8)), condition, 6, cells=chosen)
    y = np.log2(1 + 1e4 * x / x.sum(1, keepdims=True))
    for c in range(6):
        rows = y[chosen & (condition == c)]
        assert got.n[c] == len(rows)
        if len(rows):
            np.testing.assert_allclose(got.mean[c], rows.mean(0), rtol=1e-13)
            np.testing.assert_allclose(got.variance[c], rows.var(0, ddof=1), rtol=1e-12)
        else:
            assert np.isnan(got.mean[c]).all() and np.isnan(got.variance[c]).all()


def test_effects_by_hand():
    x = np.array([[0.0], [2.0], [5.0], [7.0], [100.0], [1.0], [1.0], [4.0]])
    condition = np.array([0, 0, 1, 1, 2, 3, 3, 3])
    moments = estimates.condition_moments(x, condition, 4, method="mean")
    got = estimates.effects(moments)
    np.testing.assert_allclose(got.delta[:, 0], [np.nan, 5, np.nan, 1])  # one cell has no error, so no effect
    np.testing.assert_allclose(got.own[:, 0], [np.nan, 1, np.nan, 1])  # 2 / 2, 3 / 3
    np.testing.assert_allclose(got.se2[:, 0], [np.nan, 2, np.nan, 2])
    without = estimates.condition_moments(x, condition, 4, cells=condition > 0, method="mean")
    with pytest.raises(DataError, match="control has 0 of the chosen cells"):
        estimates.effects(without)
    np.testing.assert_array_equal(estimates.effects(without, controls=moments).se2, got.se2)


def test_the_centred_reference_has_the_error_of_its_own_means():
    """d'_c is a weighted sum of independent means, so its variance is the sum of squared weights times theirs."""
    own = RNG.random((4, 3))
    delta = RNG.standard_normal((4, 3))
    weights = np.eye(4) - 1 / 4
    got = estimates.at_reference(Effects(delta, own + 7, own), np.arange(4), "centred")
    np.testing.assert_allclose(got[0], delta - delta.mean(0))
    np.testing.assert_allclose(got[1], weights**2 @ own)
    np.testing.assert_array_equal(
        estimates.at_reference(Effects(delta, own + 7, own), np.arange(4), "control")[1], own + 7
    )
    with pytest.raises(DataError, match="2 conditions to score; at least 3"):
        estimates.at_reference(Effects(delta, own, own), np.arange(2), "centred")
    with pytest.raises(DataError, match="allowed: control, centred"):
        estimates.at_reference(Effects(delta, own, own), np.arange(4), "systema")
    with pytest.raises(DataError, match=r"Row 1 .*not finite"):
        estimates.at_reference(
            Effects(np.where(np.eye(4, 3, -1) > 0, np.nan, delta), own, own), np.arange(4), "control"
        )


def test_scored_sets():
    n_train, n_test = np.array([50, 20, 20, 20, 0, 0, 1, 20]), np.array([50, 10, 12, 30, 10, 10, 10, 9])
    sets = estimates.scored_sets(n_train, n_test)
    assert list(sets) == ["seen", "all"]  # two unseen conditions are too few
    assert np.flatnonzero(sets["seen"]).tolist() == [1, 2, 3]
    assert np.flatnonzero(sets["all"]).tolist() == [1, 2, 3, 4, 5, 6]  # one training cell: neither seen nor unseen
    few = estimates.scored_sets(n_train, n_test, least_cells=2, least_conditions=2)
    assert np.flatnonzero(few["seen"]).tolist() == [1, 2, 3, 7] and np.flatnonzero(few["unseen"]).tolist() == [4, 5]


def test_gene_sets():
    x = np.zeros((701, 4), int)
    x[:7, 0], x[:6, 1], x[:700, 2] = 1, 9, 1
    controls = np.arange(701) < 700
    for form in (np.asarray, sparse.csr_matrix):
        assert estimates.detected(form(x), controls).tolist() == [True, False, True, False]
    assert estimates.detected(x[:, [0]], np.arange(701) < 3).tolist() == [True]  # 3 of 3
    with pytest.raises(DataError, match="No training control"):
        estimates.detected(x, ~controls & False)
    delta, se2 = np.array([[1.0, -2.0, 0.0, 2.0]]), np.array([[0.25, 1.0, 0.0, 1.0]])
    assert estimates.top_train(delta, se2, top=3).tolist() == [[0, 1, 3]]  # three ratios of 2, in the order of genes


# ---- S2


def test_reliability_by_hand():
    delta, se2 = np.array([[0.0, 2.0], [4.0, 2.0], [1.0, 1.0]]), np.full((3, 2), 0.25)
    np.testing.assert_allclose(rel.reliability(delta, se2), [1 - 0.5 / 2, 1 - 0.5 / 2, np.nan])
    assert rel.reliability_pooled(delta, se2) == pytest.approx(1 - 1.5 / ((delta - delta.mean()) ** 2).sum())
    assert rel.reliability(delta, 4 * se2)[0] == 0 and rel.reliability(delta, 8 * se2)[0] == -1
    # signal 2 - .5 = 1.5; test error 2 * .75 = 1.5, train error 2 * .25 = .5
    ceiling = rel.ceiling_perfect(delta, se2, 3 * se2)
    np.testing.assert_allclose(ceiling, [np.sqrt(0.5), np.sqrt(0.5), 0])
    np.testing.assert_allclose(rel.share_of_signal(delta, se2, se2)[0], 0.75)
    assert rel.fraction_of_range(0.3, 0.1, 0.5) == pytest.approx(0.5)
    assert rel.fraction_of_range(0.7, 0.1, 0.5) == pytest.approx(1.5)  # not clipped
    assert np.isnan(rel.fraction_of_range(0.3, 0.1, 0.1))
    with pytest.raises(DataError, match="one shape"):
        rel.reliability(delta, se2[:2])


def test_a_right_reliability_is_the_correlation_of_replicates():
    """The closed form against replicates of known signal and noise; so is the ceiling."""
    rng = np.random.default_rng(3)
    signal = rng.standard_normal((4, 20_000))
    test, train, whole = (signal + sd * rng.standard_normal(signal.shape) for sd in (1.0, 0.5, 0.4))
    errors = [np.full(signal.shape, sd**2) for sd in (1.0, 0.5, 0.4)]
    np.testing.assert_allclose(rel.reliability(test, errors[0]), 0.5, atol=0.03)
    perfect = rel.ceiling_perfect(whole, errors[2], errors[0])
    np.testing.assert_allclose(perfect, agreement.pearson(test, signal), atol=0.03)
    reached = perfect * rel.ceiling_perfect(whole, errors[2], errors[1])  # by the training mean
    np.testing.assert_allclose(reached, agreement.pearson(test, train), atol=0.03)


def test_halves_follow_the_named_stream():
    condition = np.array([1, 0, 1, 1, 0, 1, 1, 1])
    got = halves.halves(condition, ["ctrl", "a+b"], cells=np.arange(8) < 7, repeats=2, seed=5)
    for r in range(2):
        order = np.random.default_rng([5, r, zlib.crc32(b"a+b")]).permutation(5)
        rows = np.array([0, 2, 3, 5, 6])
        assert set(np.flatnonzero((got[r] == 0) & (condition == 1))) == set(rows[order[:2]])
        assert set(np.flatnonzero((got[r] == 1) & (condition == 1))) == set(rows[order[2:4]])
        assert got[r, rows[order[4]]] == -1 == got[r, 7]  # the odd cell, and one that was not chosen


def test_half_effects_against_numpy(cells, monkeypatch):
    monkeypatch.setattr(estimates, "_BLOCK", 60)
    x, condition = cells
    half = halves.halves(condition, list("abcdef"), repeats=3)
    pairs = list(halves.half_effects(sparse.csr_matrix(x), condition, 6, half))
    y = np.log2(1 + 1e4 * x / x.sum(1, keepdims=True))
    for r, pair in enumerate(pairs):
        for side, got in enumerate(pair):
            rows = [y[(half[r] == side) & (condition == c)] for c in range(6)]
            delta = np.array([k.mean(0) - rows[0].mean(0) for k in rows])
            np.testing.assert_allclose(got.delta[1:], delta[1:], atol=1e-12)
            np.testing.assert_allclose(got.own[1:], [k.var(0, ddof=1) / 20 for k in rows[1:]], rtol=1e-11)
    with pytest.raises(DataError, match="control has 0"):
        next(halves.half_effects(x[condition > 0], condition[condition > 0], 6, half[:, condition > 0]))
    with pytest.raises(DataError, match="repeats, cells"):
        next(halves.half_effects(x, condition, 6, half[:, :-1]))


def test_bootstrap_intervals():
    values = RNG.standard_normal(9)
    drawn = np.random.default_rng(0).integers(0, 9, (1000, 9))
    got = intervals.bootstrap(values)
    np.testing.assert_allclose(got, [values.mean(), *np.percentile(values[drawn].mean(1), [2.5, 97.5]), 9])
    below = RNG.random(9) + 1
    ratio = intervals.bootstrap(values, over=below)
    means = values[drawn].sum(1) / below[drawn].sum(1)
    np.testing.assert_allclose(ratio, [values.sum() / below.sum(), *np.percentile(means, [2.5, 97.5]), 9])
    assert intervals.bootstrap(np.append(values, np.nan)) == got  # a constant truth leaves
    assert np.isnan(intervals.bootstrap(values[:2])[:3]).all() and intervals.bootstrap(values[:2]).n == 2
    assert np.isnan(intervals.bootstrap(values, over=-below).mean)
    assert intervals.paired_difference(values, values - 1)[:3] == pytest.approx((1, 1, 1))
    with pytest.raises(DataError, match="same conditions"):
        intervals.paired_difference(values, np.where(values == values[0], np.nan, values))


# ---- S3


def test_agreement_against_scipy_and_sklearn():
    truth, guess = RNG.standard_normal((5, 30)), RNG.standard_normal((5, 30))
    guess += truth
    rows = list(zip(truth, guess, strict=True))
    np.testing.assert_allclose(agreement.pearson(truth, guess), [stats.pearsonr(*r)[0] for r in rows])
    np.testing.assert_allclose(agreement.r2(truth, guess), [r2_score(*r) for r in rows])
    np.testing.assert_allclose(agreement.mse(truth, guess), ((truth - guess) ** 2).mean(1))
    cosines = [a @ b / np.sqrt(a @ a * (b @ b)) for a, b in rows]
    np.testing.assert_allclose(agreement.cosine(truth, guess), cosines)
    assert agreement.pearson_pooled(truth, guess) == pytest.approx(stats.pearsonr(truth.ravel(), guess.ravel())[0])


def test_predicting_nothing_never_helps():
    truth, guess = RNG.standard_normal((5, 30)), RNG.standard_normal((5, 30))
    truth[1], guess[2], guess[3] = 0.1, 0.3, 0
    guess[2, 4] += 1e-14  # constant up to rounding
    got = agreement.pearson(truth, guess)
    assert np.isnan(got[1]) and got[2] == got[3] == 0
    assert np.isnan(agreement.pearson(truth, np.zeros_like(truth)))[1]  # NaN for every predictor alike
    assert agreement.cosine(truth, guess)[3] == 0 and np.isnan(agreement.cosine(0 * truth, guess)).all()
    assert np.isnan(agreement.r2(truth, guess)[1]) and np.isfinite(agreement.r2(truth, guess)[[0, 2, 3, 4]]).all()
    with pytest.raises(DataError, match=r"Row 0 .*not finite.*not predicted"):
        agreement.pearson(truth, np.full_like(truth, np.nan))


def test_nmse_by_hand_and_its_rule():
    truth, se2 = np.array([[3.0, -1.0], [0.0, 2.0], [1.0, -1.0]]), np.full((3, 2), 0.5)
    assert agreement.nmse(truth, se2, np.zeros((3, 2))) == 1  # no effect
    assert agreement.nmse(truth, se2, truth) == pytest.approx(-3 / (16 - 3))  # a copy of the noise looks too good
    noisy = np.full((3, 2), 3.0)  # no measurable effect
    assert np.isnan(agreement.nmse(truth, noisy, truth))
    assert agreement.nmse(truth, noisy, truth, least_reliability=None) == pytest.approx(-18 / (16 - 18))
    top, bottom = agreement.nmse_terms(truth, se2, truth)
    assert top.tolist() == [-1, -1, -1] and bottom.tolist() == [9, 3, 1]
    with pytest.raises(DataError, match="at least 3"):
        agreement.nmse(truth[:2], se2[:2], truth[:2])


def test_a_perfect_prediction_has_no_error_on_average():
    rng = np.random.default_rng(4)
    signal = rng.standard_normal((50, 200))
    truth = signal + 0.7 * rng.standard_normal(signal.shape)
    assert agreement.nmse(truth, np.full(signal.shape, 0.49), signal) == pytest.approx(0, abs=0.02)


def test_all_scores_of_a_prediction():
    delta = np.vstack([np.full((1, 6), np.nan), RNG.standard_normal((4, 6))])
    own = np.full(delta.shape, 0.01)
    got = agreement.agreement(Effects(delta, 2 * own, own), delta + 5, np.arange(5) > 0, "centred")
    assert got.conditions["pearson"] == pytest.approx(np.ones(4))  # each side minus its own mean
    assert got.pooled["pearson_pooled"] == pytest.approx(1) and got.pooled["nmse"] < 0.01
    with pytest.raises(DataError, match="not predicted"):
        agreement.agreement(Effects(delta, own, own), np.where(np.eye(5, 6) > 0, np.nan, delta), [1, 2, 3], "control")


# ---- S4

MEMBERS = np.array([[-1, -1], [0, -1], [1, -1], [2, -1], [0, 1], [0, 3], [4, -1]])
TRAIN = np.array([0, 1, 1, 1, 1, 0, 0], bool)


def trained(seed: int = 0) -> np.ndarray:
    effects = np.random.default_rng(seed).standard_normal((7, 15))
    effects[~TRAIN] = np.nan
    return effects


def test_shrunk_by_hand():
    effects = np.array([[np.nan] * 2, [2.0, 0.0], [-2.0, 0.0], [0.0, 0.0]])
    se2 = np.array([[np.nan] * 2, [1.0, 1.0], [3.0, 3.0], [1.0, 1.0]])
    got = baselines.shrunk(effects, se2, np.arange(4) > 0)
    np.testing.assert_array_equal(got, [[np.nan] * 2, [1, 0], [0, 0], [0, 0]])  # b = 1/2, 0 (not -1/2), 0
    with pytest.raises(DataError, match="0 of 4"):
        baselines.shrunk(effects, se2, np.zeros(4, bool))
    with pytest.raises(DataError, match="not finite"):
        baselines.shrunk(effects, se2, np.ones(4, bool))


def test_matching_mean():
    effects = trained()
    mu = effects[TRAIN].mean(0)
    got = baselines.matching_mean(effects, MEMBERS, TRAIN)
    assert np.isnan(got[0]).all()
    np.testing.assert_allclose(got[1:4], effects[1:4])
    np.testing.assert_allclose(got[4], (effects[1] + effects[2]) / 2)
    np.testing.assert_allclose(got[5], (effects[1] + mu) / 2)
    np.testing.assert_allclose(got[6], mu)


def test_ridge_pc_against_sklearn():
    effects = trained()
    mu = effects[TRAIN].mean(0)
    dosage = np.array([[(row == p).sum() for p in range(5)] for row in MEMBERS])
    for components in (2, 10):
        U, s, Vt = np.linalg.svd(effects[TRAIN] - mu, full_matrices=False)
        k = min(components, 3)  # four rows minus their mean have rank 3
        ridge = Ridge(alpha=0.1, fit_intercept=False).fit(dosage[TRAIN], U[:, :k] * s[:k])
        got = baselines.ridge_pc(effects, MEMBERS, TRAIN, components=components)
        np.testing.assert_allclose(got[1:6], mu + ridge.predict(dosage)[1:6] @ Vt[:k], atol=1e-10)
        assert np.isnan(got[[0, 6]]).all()  # the control, and a perturbation that was never trained
    same = np.where(TRAIN[:, None], 1.0, np.nan) * np.ones(15)
    np.testing.assert_array_equal(baselines.ridge_pc(same, MEMBERS, TRAIN)[1], 1)


# ---- S5


def test_discrimination_by_hand():
    truth = np.eye(4, 5)
    guess = np.array([[1.0, 0, 0, 0, 0], [1, 0.5, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]])
    # 1: right. 2: gene 0 is closer. 3: all equal, k = 3 / 2. 4: three are closer.
    np.testing.assert_allclose(discrimination(truth, guess), [1, 2 / 3, 0.5, 0])
    np.testing.assert_allclose(discrimination(truth, guess, targets=np.array([0, -1])), [0.5, 1, 0.5, 1 / 6])
    assert discrimination(truth, np.tile(RNG.random(5), (4, 1)), measure="l2").mean() == pytest.approx(0.5)
    np.testing.assert_array_equal(discrimination(truth, truth, measure="l1"), np.ones(4))


def test_discrimination_against_loops():
    truth, guess = RNG.integers(-1, 2, (6, 4)).astype(float), RNG.integers(-1, 2, (6, 4)).astype(float)
    for measure, distance in (
        ("l1", lambda a, b: np.abs(a - b).sum()),
        ("l2", lambda a, b: np.sqrt(((a - b) ** 2).sum())),
    ):
        table = np.array([[distance(a, b) for b in truth] for a in guess])
        expected = [1 - (stats.rankdata(row.round(9))[p] - 1) / 5 for p, row in enumerate(table)]
        np.testing.assert_allclose(discrimination(truth, guess, measure=measure), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measure": "dot"}, "cosine, l1, l2"),
        ({"targets": np.arange(5)}, "none is left"),
        ({"targets": np.array([9])}, "gene 9"),
        ({"predicted": np.full((4, 5), np.nan)}, "not finite"),
        ({"truth": np.eye(2, 5), "predicted": np.eye(2, 5)}, "at least 3"),
    ],
)
def test_discrimination_errors(arguments, message):
    with pytest.raises(DataError, match=message):
        discrimination(**({"truth": np.eye(4, 5), "predicted": np.eye(4, 5)} | arguments))


# ---- S9


def test_calibration_by_hand():
    positive, negative = (
        np.array([[0.8, 0.4, np.nan], [0.6, 0.0, 0.5]]),
        np.array([[0.0, 0.2, np.nan], [0.5, 0.2, 0.0]]),
    )
    got = calibration.calibration(positive, negative, higher_is_better=True)
    pos, neg = np.array([0.2, 0.6, 0.4, 1.0, 0.5]), np.array([1.0, 0.8, 0.5, 0.8, 1.0])
    assert got.drf == pytest.approx((neg.mean() - pos.mean()) / neg.mean()) and got.bds == 4 / 5 and got.n == 3
    each = [(0.8 + 0.2) / 2, (0.25 - 0.25) / 2, 0.5]
    assert got.drf_median == pytest.approx(np.median(each))
    assert got.ranks and not got._replace(bds=0.7).ranks and not got._replace(drf=0.05).ranks
    error = calibration.calibration(np.array([[-0.1, 0.5]]), np.array([[1.0, 1.0]]), higher_is_better=False)
    assert error.drf == pytest.approx(0.8)  # an unbiased error may be below 0
    nothing = np.full((1, 2), np.nan)
    assert calibration.calibration(nothing, nothing, higher_is_better=True).n == 0
    with pytest.raises(DataError, match="or for neither"):
        calibration.calibration(positive, np.zeros((2, 3)), higher_is_better=True)


def test_a_metric_without_signal_has_no_range():
    rng = np.random.default_rng(6)

    def pairs(signal: float) -> list:
        size = (40, 30)
        mean = signal * rng.standard_normal(size)
        sides = [mean + rng.standard_normal(size) for _ in range(6)]
        return [tuple(Effects(d, d, d) for d in sides[i : i + 2]) for i in (0, 2, 4)]

    rows = np.arange(40)
    for signal, ranks in ((0.0, False), (1.5, True)):
        got = calibration.calibrate(pairs(signal), rows, agreement.pearson, reference="centred", higher_is_better=True)
        assert got.ranks is ranks and got.n == 40


# ---- S12


def test_pair_interactions_by_hand():
    moments = Moments(
        np.array([4, 2, 2, 1, 2, 5, 3]),
        np.array([[1.0], [2.0], [4.0], [8.0], [9.0], [5.0], [1.0]]),
        np.array([[4.0], [2.0], [2.0], [1.0], [6.0], [1.0], [1.0]]),
    )
    got = interactions.pair_interactions(moments, MEMBERS)
    assert got.rows.tolist() == [4] and got.singles.tolist() == [[1, 2]]
    assert got.value.tolist() == [[9 - 2 - 4 + 1]] and got.se2.tolist() == [[3 + 1 + 1 + 1]]
    with pytest.raises(DataError, match="control has 1"):
        interactions.pair_interactions(moments._replace(n=np.ones(7, int)), MEMBERS)


def test_shared_singles_make_noise_correlate():
    """Why each side takes its own: without any interaction, "no change" correlates if the singles are shared."""
    rng = np.random.default_rng(7)
    noise = [rng.standard_normal((3, 5000)) for _ in range(2)]
    members = np.array([[0, -1], [1, -1], [0, 1]])
    own = [x[2] - x[0] - x[1] for x in noise]
    shared = [x[2] - noise[0][0] - noise[0][1] for x in (noise[0], np.zeros((3, 5000)))]
    assert abs(agreement.pearson(own[0][None], own[1][None])[0]) < 0.05
    assert agreement.pearson(shared[0][None], shared[1][None])[0] > 0.7
    np.testing.assert_allclose(excess(noise[0], members)[2], own[0], atol=1e-12)


def test_gi_fit():
    a, b = RNG.standard_normal((2, 3, 20))
    got = interactions.gi_fit(3 * a - 4 * b, a, b)
    np.testing.assert_allclose(got, np.tile([[3], [-4], [5], [1]], (1, 3)))
    noise = RNG.standard_normal((3, 20))
    got = interactions.gi_fit(a + noise, a, b)
    expected = np.linalg.solve(
        np.array([[a[0] @ a[0], a[0] @ b[0]], [a[0] @ b[0], b[0] @ b[0]]]), np.stack([a[0], b[0]]) @ (a + noise)[0]
    )
    np.testing.assert_allclose([got.c1[0], got.c2[0]], expected)
    assert np.isnan(interactions.gi_fit(0 * a, a, b).explained).all()
    with pytest.raises(DataError, match="one shape"):
        interactions.gi_fit(a[:2], a, b)
    with pytest.raises(DataError, match="finite"):
        interactions.gi_fit(a * np.nan, a, b)

"""Where a training starts: the formulas against plain numpy and scipy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from scipy import stats
from small_model import model, screen

from samsvae.config.model import ModelConfig
from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import ROWS, TABLE_1
from samsvae.data.arrays import Covariates
from samsvae.data.cells import cells_of, encode
from samsvae.models import start
from samsvae.models.levels import Levels
from samsvae.models.model import Model
from samsvae.models.noise import Streams
from samsvae.models.start import initialise, intercept_only, level_profiles


@pytest.fixture
def made():
    return screen(300)


@pytest.fixture
def cells(made):
    return cells_of(made, np.arange(200), encode(made, "sum"))


def moments(made):
    """Counts, library sizes and proportions of the training cells."""
    x, library = made.counts[:200].astype(float), made.library[:200].astype(float)
    return x, library, (x.sum(0) + 0.5) / (library.sum() + 0.5 * x.shape[1])


def test_counts_start_at_the_mean_profile_and_at_theta_by_moments(made, cells, monkeypatch):
    monkeypatch.setattr(start, "CHUNK", 9 * 70)  # three chunks
    net = model("sams_vae_corr", start="data")
    initialise(net, cells)
    x, library, p = moments(made)
    mu = library[:, None] * p
    bias = net.likelihood.mean.bias.detach().numpy()
    np.testing.assert_allclose(np.exp(bias) / np.exp(bias).sum(), p / p.sum(), rtol=1e-5)
    assert abs(bias.mean()) < 1e-5
    excess = ((x - mu) ** 2).mean(0) - mu.mean(0)
    with np.errstate(divide="ignore"):
        theta = np.where(excess > 0, (mu**2).mean(0) / excess, 1e3).clip(1e-2, 1e3)
    np.testing.assert_allclose(np.exp(net.likelihood.log_concentration.detach().numpy()), theta, rtol=1e-4)


def test_published_start_leaves_the_likelihood_alone(cells):
    net, again = model("sams_vae_corr"), model("sams_vae_corr")
    initialise(net, cells)
    for key, value in net.likelihood.state_dict().items():
        assert torch.equal(value, again.likelihood.state_dict()[key])
    assert not torch.equal(net.input_mean, again.input_mean)


def test_only_the_methods_of_the_svae_plus_paper_start_at_random_and_have_their_floor():
    found = {name: ModelConfig(**row.model) for name, row in ROWS.items()}
    theirs = {name for name, row in ROWS.items() if row.inference == "SVAE+ paper"}
    assert {"vae", "beta_vae", "ivae", "svae", "svae_plus_lopez"} <= theirs and not theirs & {*TABLE_1, "sams_vae_bb"}
    for name in theirs:  # batch norm drops batches of one or two cells
        training = TrainingConfig(**ROWS[name].training)
        assert [training.cells_per_epoch(n) for n in (256, 257, 258, 259, 2)] == [256, 256, 256, 259, 2]
    for name, config in found.items():
        assert (config.start, config.mean_floor) == (("random", 1e-8) if name in theirs else ("published", 1e-4)), name


def test_random_start_draws_log_theta_from_a_standard_normal(cells):
    drawn = []
    for seed in (1, 1, 2):
        net = model("svae_plus", genes=9, start="random")
        before = torch.get_rng_state()
        initialise(net, cells, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(net.likelihood.log_concentration.detach().numpy())
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    wide = model("svae_plus", genes=4000, start="random")
    wide.config = ModelConfig(start="random", input="none")
    initialise(wide, cells, seed=3)
    assert stats.kstest(wide.likelihood.log_concentration.detach().numpy(), "norm").pvalue > 0.01
    other = model("svae_plus", start="random", likelihood="poisson")
    initialise(other, cells)
    assert torch.equal(other.likelihood.mean.bias, model("svae_plus", likelihood="poisson").likelihood.mean.bias)


@pytest.mark.parametrize("kind", ["poisson", "normal", "normal_fixed"])
def test_other_likelihoods_start_at_the_mean_and_the_variance(made, cells, kind):
    net = model("sams_vae_corr", likelihood=kind, start="data")
    initialise(net, cells)
    for parameter in net.likelihood.mean.weight, *([net.likelihood.log_var.weight] if kind == "normal" else []):
        torch.nn.init.zeros_(parameter)
    found = net.likelihood(torch.zeros(1, 1, 16), torch.ones(1))
    x = made.counts[:200].astype(float)
    np.testing.assert_allclose(found.mean.detach().numpy().ravel(), x.mean(0).clip(1e-4), rtol=1e-5, atol=2e-4)
    if kind != "poisson":
        np.testing.assert_allclose(found.scale.detach().numpy().ravel() ** 2, x.var(0).clip(1e-4) + 1e-4, rtol=1e-4)


@pytest.mark.parametrize("floor", [1e-4, 0.5])
def test_intercept_only_is_the_likelihood_of_the_mean_profile(made, cells, floor):
    rest = cells_of(made, np.arange(200, 300), encode(made, "sum"))
    net = model("sams_vae_corr", start="data")
    initialise(net, cells)
    theta = np.exp(net.likelihood.log_concentration.detach().numpy().astype(float))
    _, _, p = moments(made)
    mean = made.library[200:, None] * (p / p.sum()) + floor
    expected = stats.nbinom.logpmf(made.counts[200:], theta, theta / (theta + mean)).sum(1).mean()
    assert intercept_only("nb", cells, rest, floor=floor) == pytest.approx(expected, rel=1e-5)


def test_a_short_training_from_the_data_beats_a_longer_one_from_the_published_start(made, cells):
    from samsvae.config.training import TrainingConfig
    from samsvae.training.loop import train

    rest = cells_of(made, np.arange(200, 300), encode(made, "sum"))
    losses = []
    for begin, steps in (("data", 20), ("published", 60)):
        net = model("sams_vae_corr", start=begin)
        initialise(net, cells)
        config = TrainingConfig(steps=steps, batch_size=100, learning_rate=1e-3, particles=2)
        losses.append(train(net, cells, rest, config).best_loss)
    assert losses[0] < losses[1]


@pytest.mark.parametrize("name", ["sams_vae_corr_z", "sams_vae_corr"])
def test_cells_with_many_perturbations_start_where_effects_add_up(cells, name):
    """The decoder is linear in z, its output at z = 0 is the mean profile, and embeddings hardly vary."""
    net = model(name, start="data")
    initialise(net, cells, received=5.0)
    one, two = 0.3 * torch.randn(2, 50, net.config.n_latent, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        at = [net.likelihood.mean(net.decoder(z)) for z in (torch.zeros_like(one), one, two, one + two)]
    torch.testing.assert_close(at[3] - at[0], (at[1] - at[0]) + (at[2] - at[0]), atol=1e-4, rtol=1e-4)
    fewer = model(name, start="data")
    initialise(fewer, cells, received=2.0)
    start.start_from_data(fewer.likelihood, cells)
    torch.testing.assert_close(at[0][0], fewer.likelihood.mean.bias, atol=1e-4, rtol=1e-4)
    draw = net.draw_shared(Streams(0), 200)
    assert draw.guides["embedding"].scale.mean() < 0.2
    assert (fewer.decoder.layers[0].bias != start.LINEAR).all()


def test_the_number_of_perturbations_of_a_cell(made, cells):
    assert cells.received == pytest.approx((made.members[made.condition[:200]] >= 0).sum(1).mean())


def levels_of(made, sizes, *, seed=5):
    """The screen with covariates whose levels are spread at random over its cells."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(size, size=len(made.counts)) for size in sizes], 1)
    levels = tuple(tuple(map(str, range(size))) for size in sizes)
    return replace(made, covariates=Covariates(tuple("ab"[: len(sizes)]), levels, codes))


def test_levels_start_at_the_main_effects_of_a_poisson_regression(made, monkeypatch):
    """Against statsmodels, in the unperturbed cells: with many counts and large effects nothing is shrunk."""
    monkeypatch.setattr(start, "CHUNK", 9 * 70)
    made = levels_of(made, (3, 2))
    a, b = made.covariates.codes.T
    rng = np.random.default_rng(1)
    effects = rng.normal(0, 1, (3, 9))[a] + rng.normal(0, 1, (2, 9))[b]
    counts = rng.poisson(np.exp(6 + effects)).astype(np.int32)
    made = replace(made, counts=counts, library=counts.sum(1).astype(np.float32))
    dosage = encode(made, "sum")
    cells = cells_of(made, np.arange(300), dosage)
    offset = level_profiles(cells, (3, 2), torch.full((9,), 1e6)).numpy()
    plain = (cells.index == 4).all(1).numpy()
    assert 20 < plain.sum() < 280
    columns = np.column_stack([np.ones(300), a == 1, a == 2, b == 1])[plain]
    log_library = np.log(counts.sum(1))[plain]
    for g in range(9):
        fit = sm.GLM(counts[plain, g], columns, family=sm.families.Poisson(), offset=log_library).fit()
        found = offset[1, g] - offset[0, g], offset[2, g] - offset[0, g], offset[4, g] - offset[3, g]
        np.testing.assert_allclose(found, fit.params[1:], atol=5e-3)


def test_levels_start_as_close_to_zero_as_their_noise_demands(made):
    made = levels_of(made, (4,))
    cells = cells_of(replace(made, condition=np.zeros_like(made.condition)), np.arange(300), encode(made, "sum"))
    theta = torch.linspace(0.5, 4.0, 9)
    x, library = made.counts.astype(float), made.library.astype(float)
    codes = made.covariates.codes[:, 0]
    counts = np.stack([x[codes == level].sum(0) for level in range(4)])
    each, n = np.bincount(codes, library), np.bincount(codes)[:, None]
    p = (counts.sum(0) + 0.5) / (library.sum() + 4.5)
    b = np.log((counts + 0.5) / (each[:, None] * p + 0.5))
    for scale in (1.0, 30.0):  # chance alone, and far more than chance
        v = 1 / (counts + 0.5) + 1 / (n * theta.numpy() * scale)
        t = max(0.0, (b**2 / v - 1).sum() / (1 / v).sum())
        found = level_profiles(cells, (4,), theta * scale).numpy()
        np.testing.assert_allclose(found, b * t / (t + v), rtol=1e-5, atol=1e-9)
    # a level without unperturbed cells stays at 0
    held = replace(cells, covariates=torch.where(cells.covariates == 3, 2, cells.covariates))
    assert not level_profiles(held, (4,), theta)[3].any()


def test_only_a_start_from_data_knows_the_levels(made):
    made = levels_of(made, (3,))
    cells = cells_of(made, np.arange(200), encode(made, "sum"))
    levels = Levels.of((3,), made.covariates.codes[:200])
    for name, how, known in (
        ("sams_vae_corr", "data", True), ("sams_vae_corr", "published", False), ("sams_vae_corr", "random", False),
    ):  # fmt: skip
        net = model(name, start=how)
        net = Model(net.config, 9, 4, levels=levels)
        initialise(net, cells)
        theta = torch.exp(net.likelihood.log_concentration)
        expected = level_profiles(cells, (3,), theta) if known else torch.zeros(3, 9)
        torch.testing.assert_close(net.level_offset.detach(), expected.float())

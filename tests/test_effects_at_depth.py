"""Effects at the depths of observed cells: against sampled cells, and properties that must hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_model import model, screen

from samsvae.data.cells import encode
from samsvae.errors import DataError
from samsvae.evaluation.effects_at_depth import _quantiles, effect_draws_at_depth
from samsvae.evaluation.model_effects import sample

RNG = np.random.default_rng(0)
LIBRARY = [RNG.lognormal(5.5, 0.4, 90), RNG.lognormal(4.5, 0.4, 60), RNG.lognormal(5.0, 0.5, 200)]


def trained_like(name: str, **changes):
    """A model with the effects and the spread of a trained one."""
    net = model(name, genes=60, **changes).eval()
    generator = torch.Generator().manual_seed(1)
    for key, parameter in net.named_parameters():
        torch.nn.init.normal_(parameter, 0, 0.4 if key.startswith("decoder") else 0.7, generator=generator)
        if "log_concentration" in key:
            torch.nn.init.constant_(parameter, 1.5)
    return net


def draws_of(net, number: int = 2, **options) -> np.ndarray:
    members = encode(screen(pairs=False), "sum").members
    return np.stack(
        effect_draws_at_depth(
            net, members[:number], LIBRARY[:number], control=members[-1], control_libraries=LIBRARY[2],
            use=lambda c, effects: effects, **options,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "floor"),
    [("sams_vae_corr", 1e-4), ("cpa_vae_mf", 1e-4), ("cond_vae", 1e-4), ("svae_plus", 1e-8), ("svae_plus", 2.0)],
)
def test_the_mean_is_that_of_sampled_cells_with_these_library_sizes(name, floor):
    net = trained_like(name, mean_floor=floor)
    members = encode(screen(pairs=False), "sum").members
    draws = draws_of(net, draws=400, cells=20)
    found, spread = draws.mean(1), draws.var(1) / 400

    def mean(row: np.ndarray, libraries: np.ndarray, samples: int = 600) -> tuple[np.ndarray, np.ndarray]:
        y = []
        for i, size in enumerate(np.quantile(libraries, (np.arange(25) + 0.5) / 25)):
            x = sample(net, row[None], samples=samples, library=size, seed=i)[:, 0].numpy()
            y.append(np.log2(1 + 1e4 * x / np.maximum(x.sum(1, keepdims=True), 1)))
        y = np.concatenate(y)
        return y.mean(0), y.var(0) / len(y)

    control, error = mean(members[-1], LIBRARY[2])
    for c in range(2):
        condition, own_error = mean(members[c], LIBRARY[c])
        z = (found[c] - (condition - control)) / np.sqrt(error + own_error + spread[c])
        assert np.quantile(np.abs(z), 0.9) < 2.5 and np.abs(z).max() < 5.0


def test_a_condition_does_not_depend_on_the_others_and_seeds_count():
    net = trained_like("sams_vae_corr")
    both, alone, other = draws_of(net), draws_of(net, 1), draws_of(net, 1, seed=1)
    np.testing.assert_allclose(both[0], alone[0], atol=2e-3)  # the grid of depths is shared, the noise is equal
    assert both.dtype == np.float32 and both.shape == (2, 100, 60)
    assert not np.allclose(alone, other, atol=1e-2)


def test_models_without_latents_of_perturbations_have_equal_draws_but_for_cells():
    """The conditional VAE: the spread of draws is only that of cells, and shrinks with their number."""
    few, many = (draws_of(trained_like("cond_vae"), cells=cells).std(1).mean() for cells in (2, 40))
    assert many < 0.5 * few


@pytest.mark.parametrize("kind", ["poisson", "normal"])
def test_other_likelihoods(kind):
    options = {"input": "standardise"} if kind == "normal" else {}
    net = trained_like("cpa_vae_corr", likelihood=kind, **options)
    assert np.isfinite(draws_of(net)).all()


def test_depths_are_quantiles_with_the_right_mean():
    library = np.array([100.0, 200.0, 400.0, 800.0])
    depths = _quantiles(library, 50, 8)
    assert np.unique(np.exp(depths)).min() > 80 and np.exp(depths).max() < 1000
    assert depths.mean() == pytest.approx(np.log(library).mean(), abs=0.02)
    halves = depths.reshape(50, 2, 4).mean((0, 2))  # a cell and its mirror image are equally deep on average
    assert halves[0] == pytest.approx(halves[1], abs=0.2)


def test_what_is_refused():
    net = trained_like("sams_vae_corr")
    with pytest.raises(DataError, match="cells: 3 is not allowed; it must be even"):
        draws_of(net, cells=3)
    for bad in (np.array([]), np.array([3.0, 0.0])):
        with pytest.raises(DataError, match="library sizes: every condition, and the control, needs at least one"):
            effect_draws_at_depth(
                net, np.array([[0]]), [bad], control=np.array([4]), control_libraries=LIBRARY[2], use=lambda *x: x
            )

"""Every distribution against its counterpart in scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats

from samsvae.models.distributions import Bernoulli, Beta, NegativeBinomial, Normal, Point, Poisson
from samsvae.models.noise import standard_noise
from samsvae.models.softmax_nb import SoftmaxNegativeBinomial

RNG = np.random.default_rng(0)
f = torch.float64


def tensor(array):
    return torch.tensor(array, dtype=f)


def test_normal():
    loc, scale, x = RNG.normal(size=50), RNG.uniform(0.1, 3, 50), RNG.normal(size=50)
    ours = Normal(tensor(loc), tensor(scale)).log_prob(tensor(x))
    np.testing.assert_allclose(ours, stats.norm(loc, scale).logpdf(x), rtol=1e-12)


def test_bernoulli():
    logits = RNG.normal(0, 3, 40)
    for value in (0.0, 1.0):
        ours = Bernoulli(tensor(logits)).log_prob(tensor(np.full(40, value)))
        np.testing.assert_allclose(ours, stats.bernoulli(1 / (1 + np.exp(-logits))).logpmf(value), rtol=1e-9)


def test_beta():
    a, b, x = RNG.uniform(0.3, 9, 40), RNG.uniform(0.3, 9, 40), RNG.uniform(0.01, 0.99, 40)
    np.testing.assert_allclose(Beta(tensor(a), tensor(b)).log_prob(tensor(x)), stats.beta(a, b).logpdf(x), rtol=1e-10)


@pytest.mark.parametrize(("a", "b"), [(0.4, 0.7), (1.0, 1.0), (2.0, 5.0), (30.0, 80.0)])
def test_beta_draws_and_their_gradients(a, b):
    """Draws by a Kolmogorov-Smirnov test; gradients by differences of scipy's quantiles at the same probability."""
    noise = torch.randn(100_000, *Beta.noise_shape, generator=torch.Generator().manual_seed(2), dtype=f)
    first, second = (tensor(np.full(100_000, v)).requires_grad_() for v in (a, b))
    x = Beta(first, second).draw(noise)
    assert stats.kstest(x.detach().numpy(), stats.beta(a, b).cdf).pvalue > 1e-3
    x.sum().backward()
    some, h = x.detach().numpy()[:300], 1e-5
    u = stats.beta(a, b).cdf(some)
    for grad, (da, db) in ((first.grad, (h, 0)), (second.grad, (0, h))):
        exact = (stats.beta(a + da, b + db).ppf(u) - stats.beta(a - da, b - db).ppf(u)) / (2 * h)
        np.testing.assert_allclose(grad.numpy()[:300], exact, rtol=2e-3, atol=2e-4)
    mean_a, mean_b = b / (a + b) ** 2, -a / (a + b) ** 2  # d E[x] / da, d E[x] / db
    assert first.grad.mean().item() == pytest.approx(mean_a, rel=0.02)
    assert second.grad.mean().item() == pytest.approx(mean_b, rel=0.02)


def test_beta_draws_broadcast_and_stay_inside():
    a = torch.tensor(1e-3).expand(4, 3).clone().requires_grad_()
    x = Beta(a, torch.tensor(2.0)).draw(torch.randn(5, 4, 3, *Beta.noise_shape))
    assert x.shape == (5, 4, 3) and (x > 0).all() and (x < 1).all()
    x.sum().backward()
    assert a.grad.shape == (4, 3) and torch.isfinite(a.grad).all()


def test_closed_kl_of_betas_equals_an_integral():
    p, q = stats.beta(2.5, 0.8), stats.beta(1.0, 5.0)
    exact = p.expect(lambda x: p.logpdf(x) - q.logpdf(x))
    ours = Beta(tensor(2.5), tensor(0.8)).kl(Beta(tensor(1.0), tensor(5.0)))
    assert ours.item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("theta", [0.05, 1.0, 30.0, 1e4])
def test_negative_binomial(theta):
    mean, x = RNG.uniform(0.01, 60, 200), RNG.poisson(9, 200)
    ours = NegativeBinomial(tensor(mean), tensor(np.full(200, theta))).log_prob(tensor(x))
    np.testing.assert_allclose(ours, stats.nbinom(theta, theta / (theta + mean)).logpmf(x), rtol=1e-8, atol=1e-10)


def softmax_case(particles, n, genes, *, most, whole=True):
    """Logits, library, theta and counts in float64, including counts around the end of the table."""
    logits, library = tensor(RNG.normal(0, 2, (particles, n, genes))), tensor(RNG.uniform(20, 900, n))
    x = RNG.integers(0, most + 1, (n, genes)).astype(float)
    x.flat[:4] = 63, 64, 65, 400
    return logits, library, tensor(RNG.uniform(0.2, 5, genes)), tensor(x if whole else x + 0.25)


@pytest.mark.parametrize("floor", [1e-4, 1e-8, 0.3])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("most", [6, 90])
def test_softmax_negative_binomial_sums_the_densities_of_its_counts(most, whole, floor):
    logits, library, theta, x = softmax_case(3, 5, 7, most=most, whole=whole)
    mean = special.softmax(logits.numpy(), -1) * library.numpy()[:, None] + floor
    p = theta.numpy() / (theta.numpy() + mean)
    x, t = x.numpy(), theta.numpy()
    terms = special.gammaln(x + t) - special.gammaln(t) - special.gammaln(x + 1) + t * np.log(p) + x * np.log1p(-p)
    ours = SoftmaxNegativeBinomial(logits, library, theta, floor)
    np.testing.assert_allclose(ours.log_likelihood(tensor(x)), terms.sum(-1), rtol=1e-11)
    np.testing.assert_allclose(ours.log_prob(tensor(x)), terms, rtol=1e-9, atol=1e-11)
    single = SoftmaxNegativeBinomial(logits.float(), library.float(), theta.float(), floor)
    # lgamma(400) is 2000, so that float32 loses some 1e-4 of each of its terms
    np.testing.assert_allclose(single.log_likelihood(tensor(x).float()), terms.sum(-1), rtol=3e-6, atol=4e-4)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("block", [1, 40, 2**17])
def test_softmax_negative_binomial_has_the_gradients_of_its_sum(monkeypatch, block, whole):
    monkeypatch.setattr("samsvae.models.softmax_nb._MeanTerms.BLOCK", block)
    logits, library, theta, x = softmax_case(2, 5, 4, most=70, whole=whole)

    def total(logits, theta):
        return SoftmaxNegativeBinomial(logits, library, theta, 0.3).log_likelihood(x)

    assert torch.autograd.gradcheck(total, (logits.requires_grad_(), theta.requires_grad_()))
    assert torch.autograd.gradcheck(total, (logits[0], theta))  # without particles
    assert torch.autograd.gradcheck(total, (logits.detach(), theta))
    assert torch.autograd.gradcheck(total, (logits, theta.detach()))


def test_softmax_negative_binomial_in_float32_keeps_the_poisson_limit():
    logits, library, theta, x = softmax_case(1, 6, 50, most=60)
    theta = torch.full_like(theta, 1e5)
    exact = SoftmaxNegativeBinomial(logits, library, theta).log_likelihood(x)
    single = SoftmaxNegativeBinomial(logits.float(), library.float(), theta.float()).log_likelihood(x.float())
    # the gamma functions of the one count above the table lose 0.1; for all counts they would lose ten times more
    assert (single - exact).abs().max() < 0.3


def test_negative_binomial_in_float32_keeps_the_poisson_limit():
    mean, x = RNG.uniform(0.5, 20, 200).astype("f4"), RNG.poisson(5, 200).astype("f4")
    single = NegativeBinomial(torch.tensor(mean), torch.tensor(1e4)).log_prob(torch.tensor(x))
    exact = stats.nbinom(1e4, 1e4 / (1e4 + mean.astype(float))).logpmf(x)
    assert np.abs(single.numpy() - exact).max() < 0.03  # lgamma(x + 1e4) alone loses this much in float32


def test_negative_binomial_sampling_moments():
    mean, theta, n = torch.tensor([0.3, 4.0, 50.0]), torch.tensor([0.5, 2.0, 8.0]), 200_000
    draws = NegativeBinomial(mean.expand(n, 3), theta).sample(torch.Generator().manual_seed(1)).double()
    variance = mean + mean**2 / theta
    error = torch.sqrt(variance / n)
    assert ((draws.mean(0) - mean).abs() < 5 * error).all()
    assert ((draws.var(0) / variance - 1).abs() < 0.06).all()


def test_poisson():
    rate, x = RNG.uniform(0.01, 30, 100), RNG.poisson(5, 100)
    np.testing.assert_allclose(Poisson(tensor(rate)).log_prob(tensor(x)), stats.poisson(rate).logpmf(x), rtol=1e-10)


def test_noise_is_standard():
    g = torch.Generator().manual_seed(0)
    assert stats.kstest(standard_noise("normal", (20_000,), g).numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(standard_noise("logistic", (20_000,), g).numpy(), "logistic").pvalue > 1e-3


def test_straight_through_value_is_hard_and_gradient_relaxed():
    logits = torch.linspace(-3, 3, 7, requires_grad=True)
    noise = standard_noise("logistic", (7,), torch.Generator().manual_seed(3))
    value = Bernoulli(logits, temperature=0.7).draw(noise)
    assert set(value.tolist()) <= {0.0, 1.0}
    value.sum().backward()
    soft = torch.sigmoid((logits.detach() + noise) / 0.7)
    torch.testing.assert_close(logits.grad, soft * (1 - soft) / 0.7)


def test_closed_kl_equals_monte_carlo():
    g = torch.Generator().manual_seed(5)
    p, q = Normal(torch.tensor(0.4), torch.tensor(0.7)), Normal(torch.tensor(-0.2), torch.tensor(1.3))
    x = p.draw(torch.randn(400_000, generator=g))
    assert abs(p.kl(q) - (p.log_prob(x) - q.log_prob(x)).mean()) < 5e-3
    p, q = Bernoulli(torch.tensor(0.5)), Bernoulli(torch.tensor(-2.0))
    exact = sum(
        stats.bernoulli(p.mean.item()).pmf(v)
        * (p.log_prob(torch.tensor(float(v))) - q.log_prob(torch.tensor(float(v))))
        for v in (0, 1)
    )
    assert p.kl(q).item() == pytest.approx(exact.item(), rel=1e-5)


def test_a_point_mass_has_log_probability_zero():
    point = Point(torch.rand(3, 2))
    assert (point.log_prob(point.draw(None)) == 0).all()

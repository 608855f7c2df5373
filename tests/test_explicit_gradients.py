"""Explicit gradients agree with numerical derivatives, values with torch's modules and distributions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.distributions import Normal

from samsvae.models.distributions import Bernoulli
from samsvae.models.networks import MLP, GaussianHead
from samsvae.ops.explicit_gradients import bernoulli_log_ratio, gaussian_head, normal_log_ratio, residual_network
from samsvae.ops.precision import precision


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.requires_grad_()


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("slope", [0.01, 0.0])
@pytest.mark.parametrize("n_layers", [0, 1, 3])
def test_networks(residual, slope, n_layers):
    """Of a start for each row, an input for all particles and one for each; against modules of torch."""
    start, shared, each = numbers(4, 5), numbers(4, 3, seed=1), numbers(2, 4, 2, seed=2)
    first = numbers(5, seed=30)
    inputs = [(shared, numbers(5, 3, seed=3)), (each, numbers(5, 2, seed=4))]
    layers = [(numbers(5, 5, seed=5 + j), numbers(5, seed=15 + j)) for j in range(n_layers)]
    flat = [tensor for pair in (*inputs, *layers) for tensor in pair]

    def run(bias, start, *flat):
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        return residual_network(bias, start, pairs[:2], pairs[2:], slope=slope, residual=residual)

    act = nn.LeakyReLU(slope)
    h = act(first + start + shared @ inputs[0][1].T + each @ inputs[1][1].T)
    for weight, bias in layers:
        h = act(h @ weight.T + bias) + (h if residual else 0.0)
    torch.testing.assert_close(run(first, start, *flat), h)
    assert gradcheck(run, (first, start, *flat))


def test_an_input_that_needs_no_gradient_gets_none():
    constant, weight, bias = numbers(4, 3).detach(), numbers(5, 3, seed=1), numbers(5, seed=2)
    residual_network(bias, None, [(constant, weight)], [], slope=0.0, residual=True).sum().backward()
    assert constant.grad is None and weight.grad is not None and bias.grad is not None


def test_gaussian_heads():
    h, *heads = (numbers(*shape, seed=i) for i, shape in enumerate([(2, 4, 5), (3, 5), (3,), (3, 5), (3,)]))
    loc, scale = gaussian_head(h, tuple(heads[:2]), tuple(heads[2:]), 0.1)
    torch.testing.assert_close(loc, h @ heads[0].T + heads[1])
    torch.testing.assert_close(scale**2, torch.exp(h @ heads[2].T + heads[3]) + 0.1)
    assert gradcheck(lambda h, *x: gaussian_head(h, x[:2], x[2:], 0.1), (h, *heads))


@pytest.mark.parametrize("size", [(), (4, 3), (2, 4, 3)])
def test_log_ratios_of_normals(size):
    """The value is a draw, so its gradient and that of the mean of q are one."""
    noise, q_loc, p_loc = numbers(2, 4, 3).detach(), numbers(*(size or (3,)), seed=1), numbers(*size, seed=2)
    q_scale = (numbers(*(size or (4, 3)), seed=3).detach().exp() + 0.1).requires_grad_()
    p_scale = torch.tensor(1.7, dtype=torch.float64)

    def ratio(q_loc, p_loc, q_scale):
        return normal_log_ratio(q_loc + q_scale * noise, noise, (p_loc, p_scale), q_scale)

    value = q_loc + q_scale * noise
    expected = (Normal(p_loc, p_scale).log_prob(value) - Normal(q_loc, q_scale).log_prob(value)).sum(-1)
    torch.testing.assert_close(ratio(q_loc, p_loc, q_scale), expected)
    assert gradcheck(ratio, (q_loc, p_loc, q_scale))
    weights = numbers(2, 4, seed=4).detach()
    found, exact = (
        torch.autograd.grad((term * weights).sum(), (q_loc, p_loc, q_scale), retain_graph=True)
        for term in (ratio(q_loc, p_loc, q_scale), expected)
    )
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("size", [(4, 3), (2, 4, 3)])
def test_log_ratios_of_bernoullis(size):
    """Linear in the value, also between 0 and 1."""
    value, q, p = numbers(2, 4, 3).detach().sigmoid().requires_grad_(), numbers(*size, seed=1), numbers(seed=2).detach()
    expected = sum(s * (value * x.sigmoid().log() + (1 - value) * (-x).sigmoid().log()) for s, x in ((1, p), (-1, q)))
    torch.testing.assert_close(bernoulli_log_ratio(value, p, q), expected.sum(-1))
    assert gradcheck(lambda value, q: bernoulli_log_ratio(value, p, q), (value, q))


@pytest.mark.parametrize("shape", [(40, 30, 15), (30, 40, 15), (6, 30, 50)])
def test_narrow_products_are_products(shape):
    """Also of an input with particles; the weight's gradient is contiguous, as the weight is."""
    n, h, i = shape
    x, weight, bias = numbers(2, n, i), numbers(h, i, seed=1), numbers(h, seed=2)
    found = residual_network(bias, None, [(x, weight)], [], slope=0.01, residual=True)
    exact = nn.functional.leaky_relu(x @ weight.T + bias)
    ours, theirs = (torch.autograd.grad(out.sin().sum(), (x, weight, bias)) for out in (found, exact))
    torch.testing.assert_close(ours, theirs)
    assert all(part.is_contiguous() for part in ours)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("size", [(4, 3), (2, 4, 3)])
def test_drawn_masks_are_rounded_and_have_the_gradient_of_the_relaxed_value(size, temperature):
    logits, noise, weight = numbers(*size), 5.0 * numbers(2, 4, 3, seed=1).detach(), numbers(2, 4, 3, seed=2).detach()
    mask = Bernoulli(logits, temperature)
    drawn, soft = mask.draw(noise), torch.sigmoid((logits + noise) / temperature)
    assert torch.equal(drawn, (soft > 0.5).double()) and 0 < drawn.mean() < 1
    found, exact = (torch.autograd.grad((value * weight).sum(), logits)[0] for value in (drawn, soft))
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize(("name", "error"), [("float32", 1e-6), ("bf16", 0.0)])
def test_networks_have_the_gradients_of_plain_operations(monkeypatch, name, error):
    """Plain operations are those that torch.compile reads. In bf16 they are always used."""
    torch.manual_seed(0)
    network, head = MLP((6, 4), 16, 3), GaussianHead(16, 5)
    x, offset = torch.randn(7, 6), torch.randn(3, 7, 4, requires_grad=True)
    weights = [*network.parameters(), *head.parameters(), offset]
    found = []
    for plain in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda plain=plain: plain)
        with precision(name, torch.device("cpu")):
            q = head(network(x, offset))
            loss = (q.loc.sin() / q.scale).sum()
            found.append([loss, *torch.autograd.grad(loss, weights)])
    for ours, exact in zip(*found, strict=True):
        assert ((ours - exact).norm() / exact.norm()).item() <= error

"""Networks, log ratios and drawn masks with explicit gradients: the numbers of plain operations, from fewer of them.

A step of a small model, or one on a GPU, spends its time on starting operations, and torch's record of plain operations
starts twice as many. These functions cannot be compiled or mapped (`torch.vmap`), nor their gradients differentiated
again.
Letters: H hidden units, I inputs, L latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import has_torch_function

from samsvae.ops.onednn import onednn_multiplies

#: MKL takes up to twice as long for a product with at most so many columns as for its transpose.
NARROW = 32

#: Two tensors: a weight (H, I) and its input (..., I) or its bias (H,); or the mean and the sd of a normal.
Pair = tuple[Tensor, Tensor]


def usable(tensor: Tensor, *, products: bool = True) -> bool:
    """Whether a computation with this tensor can use explicit gradients; with ``products`` not in bf16."""
    replaced = products and has_torch_function((tensor,))  # linear maps are, by `precision` in bf16
    return not (replaced or torch.compiler.is_compiling())


def residual_network(
    start: Tensor, inputs: Sequence[Pair], layers: Sequence[Pair], *, slope: float, residual: bool
) -> Tensor:
    """h = a(start + sum_i v_i W_i^T), then h = h + a(h W^T + b) for every layer (a(h W^T + b) if not ``residual``).

    a is the leaky ReLU with this ``slope``, or the ReLU (slope 0). ``start`` (..., H) and ``inputs`` (v_i, W_i), whose
    leading dimensions broadcast; ``layers`` (W, b). Returns (..., H).
    """
    flat = [tensor for pair in (*inputs, *layers) for tensor in pair]
    return _ResidualNetwork.apply(slope, residual, len(inputs), start, *flat)


class _ResidualNetwork(torch.autograd.Function):
    @staticmethod
    def forward(ctx, slope: float, residual: bool, n_inputs: int, start: Tensor, *flat: Tensor) -> Tensor:
        pairs = _pairs(flat)
        h = start
        for part, weight in pairs[:n_inputs]:
            h = F.linear(part, weight, h) if h.ndim == 1 else _add(F.linear(part, weight), h)
        hidden, steps = [F.leaky_relu_(h, slope) if n_inputs else F.leaky_relu(h, slope)], []
        for weight, bias in pairs[n_inputs:]:
            steps.append(F.leaky_relu_(F.linear(hidden[-1], weight, bias), slope))
            hidden.append(hidden[-1] + steps[-1] if residual else steps[-1])
        ctx.slope, ctx.residual, ctx.n_inputs, ctx.start = slope, residual, n_inputs, start.shape
        ctx.save_for_backward(*flat, *hidden, *steps)
        return hidden[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        n_layers = (len(ctx.needs_input_grad) - 4) // 2 - ctx.n_inputs
        split = 2 * (ctx.n_inputs + n_layers)
        pairs, hidden = _pairs(ctx.saved_tensors[:split]), ctx.saved_tensors[split:]
        found: list[Tensor | None] = []
        for j in reversed(range(n_layers)):
            d = torch.ops.aten.leaky_relu_backward(grad, hidden[n_layers + 1 + j], ctx.slope, True)
            found = [*_of_layer(d, hidden[j]), *found]
            below, weight = d.flatten(0, -2), pairs[ctx.n_inputs + j][0]
            below = torch.addmm(grad.flatten(0, -2), below, weight) if ctx.residual else below @ weight
            grad = below.view_as(d)
        d = torch.ops.aten.leaky_relu_backward(grad, hidden[0], ctx.slope, True)
        first: list[Tensor | None] = []
        for i, (part, weight) in enumerate(pairs[: ctx.n_inputs]):
            own = d.sum_to_size(*part.shape[:-1], d.shape[-1])
            first.append(_product(own, weight) if ctx.needs_input_grad[4 + 2 * i] else None)
            first.append(_of_weight(own, part))
        return None, None, None, d.sum_to_size(ctx.start), *first, *found


def _pairs(flat: Sequence[Tensor]) -> list[Pair]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product of a (..., I) and b (I, J)."""
    if b.shape[-1] > NARROW or b.device.type != "cpu" or onednn_multiplies():
        return a @ b
    return (b.T @ a.flatten(0, -2).T).T.contiguous().view(*a.shape[:-1], b.shape[-1])


def _add(new: Tensor, h: Tensor) -> Tensor:
    """new + h, in place if it has the shape of ``new``, which comes first so that the sum has its memory layout."""
    return new.add_(h) if new.shape[-h.ndim :] == h.shape else new + h


def _of_weight(d: Tensor, inputs: Tensor) -> Tensor:
    """The gradient of a weight, from that of the outputs of its layer (..., H) and the layer's inputs (..., I)."""
    return _product(d.flatten(0, -2).T, inputs.flatten(0, -2))


def _of_layer(d: Tensor, inputs: Tensor) -> Pair:
    """The gradients of a weight and a bias."""
    return _of_weight(d, inputs), d.flatten(0, -2).sum(0)


def gaussian_head(h: Tensor, mean: Pair, log_var: Pair, floor: float) -> Pair:
    """The mean h W^T + b and the sd sqrt(exp(h W'^T + b') + floor), (..., L) each, by a single product."""
    return _GaussianHead.apply(floor, h, *mean, *log_var)


class _GaussianHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, floor: float, h: Tensor, *heads: Tensor) -> Pair:
        weight = torch.cat(heads[::2])
        loc, log_var = F.linear(h, weight, torch.cat(heads[1::2])).chunk(2, -1)
        variance = log_var.exp()
        scale = (variance + floor).sqrt_()
        ctx.save_for_backward(h, weight, variance, scale)
        return loc, scale

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loc: Tensor, d_scale: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, variance, scale = ctx.saved_tensors
        d = torch.cat([d_loc, (variance / scale).mul_(0.5).mul_(d_scale)], -1)
        (mean, log_var), (mean_bias, log_var_bias) = (found.chunk(2) for found in _of_layer(d, h))
        return None, d @ weight, mean, mean_bias, log_var, log_var_bias


def normal_log_ratio(value: Tensor, noise: Tensor, p: Pair, q_scale: Tensor) -> Tensor:
    """log N(value; p) - log q(value), summed over L, for value = mean of q + ``q_scale`` x noise.

    log q(value) = -log q_scale - noise^2 / 2 + constant, whatever the mean of q. The parameters broadcast; the sd of p
    and the noise are constants.
    """
    return _NormalLogRatio.apply(value, noise, *p, q_scale)


class _NormalLogRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, noise: Tensor, p_loc: Tensor, p_scale: Tensor, q_scale: Tensor) -> Tensor:
        from_p = (value - p_loc).div_(p_scale)
        ctx.save_for_backward(from_p, p_scale, q_scale)
        ctx.size = p_loc.shape
        ratio = torch.log(q_scale / p_scale)
        return torch.addcmul(ratio, noise, noise, value=0.5).addcmul_(from_p, from_p, value=-0.5).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        from_p, p_scale, q_scale = ctx.saved_tensors
        at_p = from_p * (grad[..., None] / p_scale)
        p_loc = at_p.sum_to_size(ctx.size) if ctx.needs_input_grad[2] else None
        return at_p.neg(), None, p_loc, None, (grad[..., None] / q_scale).sum_to_size(q_scale.shape)


def bernoulli_log_ratio(value: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """log Bern(value; p) - log Bern(value; q), summed over L, for logits that broadcast; those of p are constants.

    log Bern(v; q) = v q - log(1 + e^q), linear in the value.
    """
    return _BernoulliLogRatio.apply(value, p, q)


class _BernoulliLogRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, p: Tensor, q: Tensor) -> Tensor:
        gap = p - q
        ctx.save_for_backward(value, gap, q)
        return torch.addcmul(F.softplus(q) - F.softplus(p), value, gap).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, gap, q = ctx.saved_tensors
        d_q = (torch.sigmoid(q) - value).mul_(grad[..., None]).sum_to_size(q.shape)
        return gap * grad[..., None], None, d_q


def straight_through(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """round(s) for s = sigmoid((logits + noise) / temperature), with the gradient of s; ``noise`` gets none."""
    return _StraightThrough.apply(logits, noise, temperature)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
        soft = logits + noise
        soft = (soft if temperature == 1.0 else soft.div_(temperature)).sigmoid_()
        ctx.save_for_backward(soft)
        ctx.size, ctx.temperature = logits.shape, temperature
        return torch.round(soft)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (soft,) = ctx.saved_tensors
        d_logits = torch.ops.aten.sigmoid_backward(grad, soft).sum_to_size(ctx.size)
        return d_logits if ctx.temperature == 1.0 else d_logits.div_(ctx.temperature), None, None

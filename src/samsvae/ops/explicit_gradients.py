"""Networks, log ratios and drawn masks with explicit gradients: the numbers of plain operations, from fewer of them.

A step of a small model, or one on a GPU, spends its time on starting operations, and torch's record of plain operations
starts twice as many. On a GPU, `samsvae.ops.fused_latents` computes what is not a product. These functions cannot be
compiled or mapped (`torch.vmap`), nor their gradients differentiated again.
Letters: H hidden units, I inputs, L latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import has_torch_function

from samsvae.ops import fused_latents
from samsvae.ops.fused_latents import fused, number, repeat
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
    bias: Tensor, start: Tensor | None, inputs: Sequence[Pair], layers: Sequence[Pair], *, slope: float, residual: bool
) -> Tensor:
    """h = a(bias + start + sum_i v_i W_i^T), then h = h + a(h W^T + b) for every layer; not ``residual``: a(h W^T + b).

    a is the leaky ReLU with this ``slope``, or the ReLU (slope 0). ``bias`` (H,), ``start`` (..., H) or None, and
    ``inputs`` (v_i, W_i), one or more, whose leading dimensions broadcast; ``layers`` (W, b). Returns (..., H).
    """
    flat = [tensor for pair in (*inputs, *layers) for tensor in pair]
    return _ResidualNetwork.apply(slope, residual, len(inputs), bias, start, *flat)


class _ResidualNetwork(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, slope: float, residual: bool, n_inputs: int, bias: Tensor, start: Tensor | None, *flat: Tensor
    ) -> Tensor:
        pairs = _pairs(flat)
        h = start
        for i, (part, weight) in enumerate(pairs[:n_inputs]):
            new = F.linear(part, weight, None if i else bias)
            h = _activated(new, h, slope) if i == n_inputs - 1 else _add(new, h)
        assert h is not None  # there is an input
        hidden, steps = [h], []
        for weight, bias in pairs[n_inputs:]:
            new = F.linear(h, weight, bias)
            if residual and fused(new, h):
                step, h = fused_latents.residual(new, slope, other=h)
            else:
                step = F.leaky_relu_(new, slope)
                h = h + step if residual else step
            steps.append(step)
            hidden.append(h)
        ctx.slope, ctx.residual, ctx.n_inputs = slope, residual, n_inputs
        ctx.start = None if start is None else start.shape
        ctx.save_for_backward(*flat, *hidden, *steps)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        n_layers = (len(ctx.needs_input_grad) - 5) // 2 - ctx.n_inputs
        split = 2 * (ctx.n_inputs + n_layers)
        pairs, hidden = _pairs(ctx.saved_tensors[:split]), ctx.saved_tensors[split:]
        found: list[Tensor | None] = []
        for j in reversed(range(n_layers)):
            d = torch.ops.aten.leaky_relu_backward(grad, hidden[n_layers + 1 + j], ctx.slope, True)
            found = [*_of_layer(d, hidden[j]), *found]
            below, weight = d.flatten(0, -2), pairs[ctx.n_inputs + j][0]
            below = torch.addmm(grad.flatten(0, -2), below, weight) if ctx.residual else below @ weight
            grad = below.view_as(d)
        sizes = [(*part.shape[:-1], grad.shape[-1]) for part, _ in pairs[: ctx.n_inputs]]
        small = min(sizes if ctx.start is None else [*sizes, ctx.start], key=math.prod)
        d, shared = _before_activation(grad, hidden[0], ctx.slope, small)
        first: list[Tensor | None] = []
        for i, (part, weight) in enumerate(pairs[: ctx.n_inputs]):
            own = shared if sizes[i] == small else d.sum_to_size(sizes[i])
            first.append(_product(own, weight) if ctx.needs_input_grad[5 + 2 * i] else None)
            first.append(_of_weight(own, part))
        start = None if ctx.start is None else shared if ctx.start == small else d.sum_to_size(ctx.start)
        return None, None, None, shared.flatten(0, -2).sum(0), start, *first, *found


def _pairs(flat: Sequence[Tensor]) -> list[Pair]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product of a (..., I) and b (I, J)."""
    if b.shape[-1] > NARROW or b.device.type != "cpu" or onednn_multiplies():
        return a @ b
    return (b.T @ a.flatten(0, -2).T).T.contiguous().view(*a.shape[:-1], b.shape[-1])


def _add(new: Tensor, h: Tensor | None) -> Tensor:
    """new + h, in place if it has the shape of ``new``, which comes first so that the sum has its memory layout."""
    if h is None:
        return new
    return new.add_(h) if new.shape[-h.ndim :] == h.shape else new + h


def _activated(new: Tensor, h: Tensor | None, slope: float) -> Tensor:
    """a(new + h)."""
    if h is not None and fused(new, h) and repeat(new, h):
        return fused_latents.activation(new, slope, other=h)
    return F.leaky_relu_(_add(new, h), slope)


def _before_activation(grad: Tensor, h: Tensor, slope: float, size: tuple[int, ...]) -> Pair:
    """The gradient of the argument of an activation h, and its sum to a size (..., H)."""
    if fused(grad) and size != grad.shape and size == grad.shape[grad.ndim - len(size) :]:
        d, total = fused_latents.activation_backward(grad, h, slope, math.prod(size[:-1]))
        return d, total.view(size)
    d = torch.ops.aten.leaky_relu_backward(grad, h, slope, True)
    return d, d.sum_to_size(size)


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
        product = F.linear(h, weight, torch.cat(heads[1::2]))
        loc, log_var = product.chunk(2, -1)
        if fused(product):
            scale = fused_latents.sd(product, floor)
            ctx.save_for_backward(h, weight, product)
        else:
            variance = log_var.exp()
            scale = (variance + floor).sqrt_()
            ctx.save_for_backward(h, weight, variance, scale)
        ctx.floor = floor
        return loc, scale

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loc: Tensor, d_scale: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, *kept = ctx.saved_tensors
        if len(kept) == 1:
            d = fused_latents.sd_backward(d_loc, d_scale, *kept, ctx.floor)
        else:
            variance, scale = kept
            d = torch.cat([d_loc, (variance / scale).mul_(0.5).mul_(d_scale)], -1)
        (mean, log_var), (mean_bias, log_var_bias) = (found.chunk(2) for found in _of_layer(d, h))
        return None, d @ weight, mean, mean_bias, log_var, log_var_bias


def normal_log_ratio(value: Tensor, noise: Tensor, p: Pair, q_scale: Tensor) -> Tensor:
    """log N(value; p) - log q(value), summed over L, for value = mean of q + ``q_scale`` x noise.

    log q(value) = -log q_scale - noise^2 / 2 + constant, for any mean of q. The parameters broadcast; the sd of p and
    the noise are constants.
    """
    return _NormalLogRatio.apply(value, noise, *p, q_scale)


class _NormalLogRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, noise: Tensor, p_loc: Tensor, p_scale: Tensor, q_scale: Tensor) -> Tensor:
        ctx.size = p_loc.shape
        ctx.fused = fused(value, q_scale) and repeat(value, p_loc, p_scale, q_scale) and q_scale.ndim > 0
        if ctx.fused:
            p_loc, p_scale = number(p_loc), number(p_scale)
            ctx.save_for_backward(value, p_loc, p_scale, q_scale)
            return fused_latents.normal_log_ratio(value, noise, p_loc, p_scale, q_scale)
        from_p = (value - p_loc).div_(p_scale)
        ctx.save_for_backward(from_p, p_scale, q_scale)
        ratio = torch.log(q_scale / p_scale)
        return torch.addcmul(ratio, noise, noise, value=0.5).addcmul_(from_p, from_p, value=-0.5).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.fused:
            d_value, d_q_scale = fused_latents.normal_log_ratio_backward(grad, *ctx.saved_tensors)
        else:
            from_p, p_scale, q_scale = ctx.saved_tensors
            d_value = (from_p * (grad[..., None] / p_scale)).neg_()
            d_q_scale = (grad[..., None] / q_scale).sum_to_size(q_scale.shape)
        p_loc = d_value.sum_to_size(ctx.size).neg() if ctx.needs_input_grad[2] else None
        return d_value, None, p_loc, None, d_q_scale


def bernoulli_log_ratio(value: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """log Bern(value; p) - log Bern(value; q), summed over L, for logits that broadcast; those of p are constants.

    log Bern(v; q) = v q - log(1 + e^q), linear in the value.
    """
    return _BernoulliLogRatio.apply(value, p, q)


class _BernoulliLogRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, p: Tensor, q: Tensor) -> Tensor:
        ctx.fused = fused(value, q) and repeat(value, p, q) and q.ndim > 0
        if ctx.fused:
            ctx.save_for_backward(value, p, q)
            return fused_latents.bernoulli_log_ratio(value, p, q)
        gap = p - q
        ctx.save_for_backward(value, gap, q)
        return torch.addcmul(F.softplus(q) - F.softplus(p), value, gap).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.fused:
            d_value, d_q = fused_latents.bernoulli_log_ratio_backward(grad, *ctx.saved_tensors)
            return d_value, None, d_q
        value, gap, q = ctx.saved_tensors
        d_q = (torch.sigmoid(q) - value).mul_(grad[..., None]).sum_to_size(q.shape)
        return gap * grad[..., None], None, d_q


def straight_through(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """round(s) for s = sigmoid((logits + noise) / temperature), with the gradient of s; ``noise`` gets none."""
    return _StraightThrough.apply(logits, noise, temperature)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
        ctx.size, ctx.temperature = logits.shape, temperature
        if fused(noise, logits) and repeat(noise, logits):
            ctx.save_for_backward(logits, noise)
            return fused_latents.drawn_mask(logits, noise, temperature)
        soft = logits + noise
        soft = (soft if temperature == 1.0 else soft.div_(temperature)).sigmoid_()
        ctx.save_for_backward(soft)
        return torch.round(soft)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        first, *noise = ctx.saved_tensors  # the logits and their noise, or the relaxed value
        if noise:
            return fused_latents.drawn_mask_backward(grad, first, *noise, ctx.temperature), None, None
        d_logits = torch.ops.aten.sigmoid_backward(grad, first).sum_to_size(ctx.size)
        return d_logits if ctx.temperature == 1.0 else d_logits.div_(ctx.temperature), None, None

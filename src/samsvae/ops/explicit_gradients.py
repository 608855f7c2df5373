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
            h = F.linear(part, weight, h) if h.ndim == 1 else h + F.linear(part, weight)
        hidden, steps = [F.leaky_relu(h, slope)], []
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
            below = d @ pairs[ctx.n_inputs + j][0]
            grad = below.add_(grad) if ctx.residual else below
        d = torch.ops.aten.leaky_relu_backward(grad, hidden[0], ctx.slope, True)
        first: list[Tensor | None] = []
        for i, (part, weight) in enumerate(pairs[: ctx.n_inputs]):
            own = d.sum_to_size(*part.shape[:-1], d.shape[-1])
            first.append(own @ weight if ctx.needs_input_grad[4 + 2 * i] else None)
            first.append(_of_weight(own, part))
        return None, None, None, d.sum_to_size(ctx.start), *first, *found


def _pairs(flat: Sequence[Tensor]) -> list[Pair]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _of_weight(d: Tensor, inputs: Tensor) -> Tensor:
    """The gradient of a weight, from that of the outputs of its layer (..., H) and the layer's inputs (..., I)."""
    return d.flatten(0, -2).T @ inputs.flatten(0, -2)


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
        return loc.contiguous(), scale

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loc: Tensor, d_scale: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, variance, scale = ctx.saved_tensors
        d = torch.cat([d_loc, (variance / scale).mul_(0.5).mul_(d_scale)], -1)
        (mean, log_var), (mean_bias, log_var_bias) = (found.chunk(2) for found in _of_layer(d, h))
        return None, d @ weight, mean, mean_bias, log_var, log_var_bias


def normal_log_ratio(value: Tensor, p: Pair, q: Pair) -> Tensor:
    """log N(value; p) - log N(value; q), summed over L. The parameters broadcast; the sd of p is a constant."""
    return _NormalLogRatio.apply(value, *p, *q)


class _NormalLogRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, p_loc: Tensor, p_scale: Tensor, q_loc: Tensor, q_scale: Tensor) -> Tensor:
        from_p, from_q = (value - p_loc).div_(p_scale), (value - q_loc).div_(q_scale)
        ctx.save_for_backward(from_p, from_q, p_scale, q_scale)
        ctx.sizes = p_loc.shape, q_loc.shape, q_scale.shape
        ratio = torch.log(q_scale / p_scale)
        return torch.addcmul(ratio, from_q, from_q, value=0.5).addcmul_(from_p, from_p, value=-0.5).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        from_p, from_q, p_scale, q_scale = ctx.saved_tensors
        weight = grad[..., None] / q_scale
        at_p, at_q = from_p * (grad[..., None] / p_scale), weight * from_q
        d_scale = weight.addcmul_(at_q, from_q, value=-1.0)
        p_loc, q_loc, q_scale = (d.sum_to_size(size) for d, size in zip((at_p, at_q, d_scale), ctx.sizes, strict=True))
        return at_q - at_p, p_loc, None, q_loc.neg(), q_scale


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

"""The GPU code of ``samsvae.ops.fused_latents``, imported at first use if Triton is installed.

Names that end in ``_at`` are addresses of contiguous float32 arrays. An array with fewer rows than the value, or a
single number, repeats: element i of the value reads element i % size of it. Sums have a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samsvae.ops.triton_softmax_nb import log, log1p


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _in_row(start, cols, BLOCK: tl.constexpr):
    """Places of a block of columns in the row of this program, and which of them are in the row."""
    column = start + tl.arange(0, BLOCK)
    return tl.program_id(0) * cols + column, column < cols


@triton.jit
def _in_block(size, BLOCK: tl.constexpr):
    """Places of the block of this program, and which of them are in an array of this size."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return at, at < size


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def normal_log_ratio(
    value_at, noise_at, loc_at, scale_at, q_scale_at, out_at, cols, loc_size, scale_size, q_size, BLOCK: tl.constexpr
):
    """A row of log N(value; loc, scale) - log q(value), summed over its columns."""
    row = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, cols, BLOCK):
        at, there = _in_row(start, cols, BLOCK)
        noise = tl.load(noise_at + at, mask=there, other=0.0)
        scale = tl.load(scale_at + at % scale_size, mask=there, other=1.0)
        q_scale = tl.load(q_scale_at + at % q_size, mask=there, other=1.0)
        from_p = tl.load(value_at + at, mask=there, other=0.0) - tl.load(loc_at + at % loc_size, mask=there, other=0.0)
        from_p /= scale
        total += log(q_scale / scale) + 0.5 * (noise * noise - from_p * from_p)
    tl.store(out_at + row, tl.sum(total, 0))


@triton.jit
def normal_log_ratio_backward(
    grad_at, value_at, loc_at, scale_at, q_scale_at, d_value_at, d_q_scale_at,
    repeats, cols, loc_size, scale_size, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row of q's sd, for all rows of the value that read it."""
    row = tl.program_id(0)
    for start in range(0, cols, BLOCK):
        at, there = _in_row(start, cols, BLOCK)
        total = 0.0
        for i in range(repeats):
            here = i * tl.num_programs(0)
            grad = tl.load(grad_at + here + row)
            here = here * cols + at
            scale = tl.load(scale_at + here % scale_size, mask=there, other=1.0)
            away = tl.load(value_at + here, mask=there) - tl.load(loc_at + here % loc_size, mask=there)
            tl.store(d_value_at + here, -grad * away / (scale * scale), mask=there)
            total += grad
        tl.store(d_q_scale_at + at, total / tl.load(q_scale_at + at, mask=there, other=1.0), mask=there)


@triton.jit
def bernoulli_log_ratio(value_at, p_at, q_at, out_at, cols, p_size, q_size, BLOCK: tl.constexpr):
    """A row of log Bern(value; p) - log Bern(value; q), summed over its columns."""
    row = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, cols, BLOCK):
        at, there = _in_row(start, cols, BLOCK)
        p = tl.load(p_at + at % p_size, mask=there, other=0.0)
        q = tl.load(q_at + at % q_size, mask=there, other=0.0)
        total += _softplus(q) - _softplus(p) + tl.load(value_at + at, mask=there, other=0.0) * (p - q)
    tl.store(out_at + row, tl.sum(total, 0))


@triton.jit
def bernoulli_log_ratio_backward(
    grad_at, value_at, p_at, q_at, d_value_at, d_q_at, repeats, cols, p_size, BLOCK: tl.constexpr
):
    """A row of q's logits, for all rows of the value that read it."""
    row = tl.program_id(0)
    for start in range(0, cols, BLOCK):
        at, there = _in_row(start, cols, BLOCK)
        q = tl.load(q_at + at, mask=there, other=0.0)
        share = _sigmoid(q)
        d_q = tl.zeros([BLOCK], tl.float32)
        for i in range(repeats):
            here = i * tl.num_programs(0)
            grad = tl.load(grad_at + here + row)
            here = here * cols + at
            tl.store(d_value_at + here, (tl.load(p_at + here % p_size, mask=there) - q) * grad, mask=there)
            d_q += (share - tl.load(value_at + here, mask=there)) * grad
        tl.store(d_q_at + at, d_q, mask=there)


@triton.jit
def drawn_mask(logits_at, noise_at, out_at, total, size, temperature, BLOCK: tl.constexpr):
    at, there = _in_block(total, BLOCK)
    x = tl.load(logits_at + at % size, mask=there) + tl.load(noise_at + at, mask=there)
    tl.store(out_at + at, (_sigmoid(x / temperature) > 0.5).to(tl.float32), mask=there)


@triton.jit
def drawn_mask_backward(grad_at, logits_at, noise_at, d_logits_at, size, repeats, temperature, BLOCK: tl.constexpr):
    at, there = _in_block(size, BLOCK)
    logits = tl.load(logits_at + at, mask=there)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(repeats):
        here = i * size + at
        soft = _sigmoid((logits + tl.load(noise_at + here, mask=there)) / temperature)
        total += tl.load(grad_at + here, mask=there) * (1.0 - soft) * soft
    tl.store(d_logits_at + at, total / temperature, mask=there)


@triton.jit
def sd(product_at, out_at, total, cols, floor, BLOCK: tl.constexpr):
    """From rows of a mean and a log variance, ``cols`` numbers each."""
    at, there = _in_block(total, BLOCK)
    log_var = tl.load(product_at + at + (at // cols + 1) * cols, mask=there)
    tl.store(out_at + at, tl.sqrt(tl.exp(log_var) + floor), mask=there)


@triton.jit
def sd_backward(d_mean_at, d_sd_at, product_at, out_at, total, cols, floor, BLOCK: tl.constexpr):
    at, there = _in_block(total, BLOCK)
    mean_at = at + at // cols * cols
    variance = tl.exp(tl.load(product_at + mean_at + cols, mask=there))
    d_log_var = 0.5 * variance / tl.sqrt(variance + floor) * tl.load(d_sd_at + at, mask=there)
    tl.store(out_at + mean_at, tl.load(d_mean_at + at, mask=there), mask=there)
    tl.store(out_at + mean_at + cols, d_log_var, mask=there)


@triton.jit
def activation(
    new_at, other_at, out_at, sum_at, total, size, cols, row_stride, col_stride, slope,
    RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """a(new + other), or a(new) and its sum with the other, whose rows repeat and have any strides."""
    at, there = _in_block(total, BLOCK)
    place = at % size
    new = tl.load(new_at + at, mask=there)
    other = tl.load(other_at + place // cols * row_stride + place % cols * col_stride, mask=there)
    h = new if RESIDUAL else new + other
    h = tl.where(h > 0.0, h, slope * h)
    tl.store(out_at + at, h, mask=there)
    if RESIDUAL:
        tl.store(sum_at + at, h + other, mask=there)


@triton.jit
def activation_backward(grad_at, h_at, d_at, sum_at, size, repeats, slope, BLOCK: tl.constexpr):
    """The gradient of the argument, from an activation h, and its sum over the repeats."""
    at, there = _in_block(size, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(repeats):
        here = i * size + at
        d = tl.load(grad_at + here, mask=there)
        d = tl.where(tl.load(h_at + here, mask=there) > 0.0, d, slope * d)
        tl.store(d_at + here, d, mask=there)
        total += d
    tl.store(sum_at + at, total, mask=there)


@triton.jit
def normalised(x_at, mean_at, sd_at, out_at, total, genes, BLOCK: tl.constexpr):
    at, there = _in_block(total, BLOCK)
    gene = at % genes
    value = log1p(tl.load(x_at + at, mask=there, other=0.0)) - tl.load(mean_at + gene, mask=there)
    tl.store(out_at + at, value / tl.load(sd_at + gene, mask=there, other=1.0), mask=there)

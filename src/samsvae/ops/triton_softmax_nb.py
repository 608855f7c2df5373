"""The GPU code of ``samsvae.ops.softmax_nb``, imported at first use if Triton is installed.

Names that end in ``_at`` are addresses of contiguous arrays with the shapes in ``samsvae.ops.softmax_nb``. Arithmetic
limits the speed, not memory, hence a single division per element and a custom logarithm.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _exponent(w):
    """The power of two that scales w > 0 into [0.75, 1.5), as the bits to subtract from the bits of a float."""
    return (w.to(tl.int32, bitcast=True) - 0x3F400000) & -0x800000


@triton.jit
def _from_reduced(f, exponent):
    """log((1 + f) 2^k) for f in [-0.25, 0.5), with relative error 1e-7, also near log 1 = 0, unlike the GPU's log2."""
    q = -0.04507450386881828
    q = 0.10463005304336548 + f * q
    q = -0.13161203265190125 + f * q
    q = 0.14478401839733124 + f * q
    q = -0.1664731204509735 + f * q
    q = 0.19990861415863037 + f * q
    q = -0.2500009536743164 + f * q
    q = 0.3333345055580139 + f * q
    return exponent.to(tl.float32) * (0.6931471805599453 / 8388608) + (f + f * f * (f * q - 0.5))


@triton.jit
def log(w):
    """Natural logarithm of a normal (not denormal) float w > 0."""
    exponent = _exponent(w)
    scale = (0x3F800000 - exponent).to(tl.float32, bitcast=True)
    return _from_reduced(w * scale - 1.0, exponent)


@triton.jit
def log1p(u):
    """log(1 + u) for u >= 0, without losing the digits of u that 1 + u rounds away."""
    exponent = _exponent(1.0 + u)
    scale = (0x3F800000 - exponent).to(tl.float32, bitcast=True)
    return _from_reduced(u * scale + (scale - 1.0), exponent)


@triton.jit
def _stirling(inverse):
    """log Gamma(z) - ((z - 1/2) log z - z + log(2 pi) / 2) for z = 1 / inverse >= 4."""
    square = inverse * inverse
    return inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680))))


@triton.jit
def _gamma_terms(x, theta):
    """log Gamma(x + theta) - log Gamma(theta) - x log theta - log x!, from the series at arguments that are 4 larger.

    Terms of the size of theta log theta cancel on paper, not in the sum: theta may be a million.
    """
    a = x + theta
    steps = ((a + 1.0) / (theta + 1.0)) * ((a + 2.0) / (theta + 2.0)) * ((a + 3.0) / (theta + 3.0))
    rising = (a + 3.5) * log1p(x / (theta + 4.0)) + x * log1p(4.0 / theta) - x - log1p(x / theta) - log(steps)
    rising += _stirling(1.0 / (a + 4.0)) - _stirling(1.0 / (theta + 4.0))
    z = x + 5.0
    factorial = (z - 0.5) * log(z) - z + 0.9189385332046727 + _stirling(1.0 / z)
    return rising - factorial + log((x + 1.0) * (x + 2.0) * (x + 3.0) * (x + 4.0))


@triton.jit
def _below_log(inverse):
    """log z - 1 / (2 z) - digamma(z) for z = 1 / inverse >= 4."""
    square = inverse * inverse
    return square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square * (1 / 240))))


@triton.jit
def _digamma_terms(x, theta, inverse):
    """digamma(x + theta) - digamma(theta), with inverse = 1 / theta."""
    a = x + theta
    found = (x / a) * inverse + x / ((a + 1.0) * (theta + 1.0)) + x / ((a + 2.0) * (theta + 2.0))
    found += x / ((a + 3.0) * (theta + 3.0))
    of_a, of_theta = 1.0 / (a + 4.0), 1.0 / (theta + 4.0)
    return found + log1p(x * of_theta) + 0.5 * x * of_a * of_theta + _below_log(of_theta) - _below_log(of_a)


@triton.jit
def gammas(theta_at, x_at, out_at, cells, genes, BLOCK: tl.constexpr):
    """The terms without the mean of one cell of one run, which all particles share."""
    row = tl.program_id(0).to(tl.int64)
    theta_at += row // cells * genes
    value = tl.zeros([BLOCK], tl.float32)
    for start in range(0, genes, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_at + row * genes + at, mask=at < genes, other=0).to(tl.float32)
        theta = tl.load(theta_at + at, mask=at < genes, other=1.0)
        value += tl.where(x != 0.0, _gamma_terms(x, theta), 0.0)  # exactly 0 at 0, which most counts are
    tl.store(out_at + row, tl.sum(value, 0))


@triton.jit
def forward(
    product_at, bias_at, library_at, theta_at, x_at, constant_at, out_at, lse_at, dot_at,
    particles, cells, genes, floor, BLOCK: tl.constexpr,
):  # fmt: skip
    """One particle of one cell of one run: a running log sum exp, then the sums over genes."""
    row = tl.program_id(0).to(tl.int64)
    run = row // (particles * cells)
    cell = run * cells + row % cells
    theta_at += run * genes
    bias_at += run * genes
    library = tl.load(library_at + cell)
    top = -float("inf")
    total = 0.0
    for start in range(0, genes, BLOCK):
        at = start + tl.arange(0, BLOCK)
        a = tl.load(product_at + row * genes + at, mask=at < genes, other=-float("inf")).to(tl.float32)
        a += tl.load(bias_at + at, mask=at < genes, other=0.0)
        higher = tl.maximum(top, tl.max(a, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(a - higher), 0)
        top = higher
    lse = top + tl.log(total)
    value = tl.zeros([BLOCK], tl.float32)
    dot = tl.zeros([BLOCK], tl.float32)
    for start in range(0, genes, BLOCK):
        at = start + tl.arange(0, BLOCK)
        there = at < genes
        a = tl.load(product_at + row * genes + at, mask=there, other=-float("inf")).to(tl.float32)
        a += tl.load(bias_at + at, mask=there, other=0.0)
        x = tl.load(x_at + cell * genes + at, mask=there, other=0).to(tl.float32)
        theta = tl.load(theta_at + at, mask=there, other=1.0)
        p = tl.exp(a - lse)
        m = library * p + floor
        value += tl.where(there, x * log(m) - (x + theta) * log1p(m / theta), 0.0)
        dot += p * (theta * (x - m) / (m * (m + theta)))  # p is 0 past the last gene
    tl.store(out_at + row, tl.sum(value, 0) + tl.load(constant_at + cell))
    tl.store(lse_at + row, lse)
    tl.store(dot_at + row, tl.sum(dot, 0))


@triton.jit
def backward(
    grad_at, product_at, bias_at, library_at, theta_at, x_at, lse_at, dot_at, d_product_at, d_genes_at,
    particles, cells, genes, stride, floor, CELLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of genes in a group of cells of one run, for all particles. ``stride``: between rows of d_product."""
    group = tl.program_id(0).to(tl.int64)
    run = tl.program_id(2).to(tl.int64)
    library_at += run * cells
    x_at += run * cells * genes
    theta_at += run * genes
    bias_at += run * genes
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = at < genes
    theta = tl.load(theta_at + at, mask=there, other=1.0)
    bias = tl.load(bias_at + at, mask=there, other=0.0)
    inverse = 1.0 / theta
    d_bias = tl.zeros([BLOCK], tl.float32)
    d_theta = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(CELLS):
        cell = group * CELLS + i
        if cell < cells:
            library = tl.load(library_at + cell)
            x = tl.load(x_at + cell * genes + at, mask=there, other=0).to(tl.float32)
            total = 0.0
            for particle in range(particles):
                row = cell + (run * particles + particle) * cells
                grad = tl.load(grad_at + row)
                a = tl.load(product_at + row * genes + at, mask=there, other=-float("inf")).to(tl.float32) + bias
                p = tl.exp(a - tl.load(lse_at + row))
                m = library * p + floor
                slope = theta * (x - m) / (m * (m + theta))
                d_logits = (grad * library) * p * (slope - tl.load(dot_at + row))
                tl.store(d_product_at + row * stride + at, d_logits, mask=there)
                u = m * inverse
                d_bias += d_logits
                d_theta -= grad * (slope * u + log1p(u))
                total += grad
            d_theta += total * _digamma_terms(x, theta, inverse)
    d_genes_at += (run * tl.num_programs(0) + group) * 2 * genes
    tl.store(d_genes_at + at, d_bias, mask=there)
    tl.store(d_genes_at + genes + at, d_theta, mask=there)

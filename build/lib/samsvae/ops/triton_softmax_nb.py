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
def forward(
    logits_at, library_at, theta_at, x_at, out_at, lse_at, dot_at,
    particles, cells, genes, floor, BLOCK: tl.constexpr,
):  # fmt: skip
    """One particle of one cell of one run: a running log sum exp, then the sums over genes."""
    row = tl.program_id(0).to(tl.int64)
    run = row // (particles * cells)
    cell = run * cells + row % cells
    theta_at += run * genes
    library = tl.load(library_at + cell)
    top = -float("inf")
    total = 0.0
    for start in range(0, genes, BLOCK):
        at = start + tl.arange(0, BLOCK)
        a = tl.load(logits_at + row * genes + at, mask=at < genes, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(a, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(a - higher), 0)
        top = higher
    lse = top + tl.log(total)
    value = tl.zeros([BLOCK], tl.float32)
    dot = tl.zeros([BLOCK], tl.float32)
    for start in range(0, genes, BLOCK):
        at = start + tl.arange(0, BLOCK)
        there = at < genes
        a = tl.load(logits_at + row * genes + at, mask=there, other=-float("inf")).to(tl.float32)
        x = tl.load(x_at + cell * genes + at, mask=there, other=0).to(tl.float32)
        theta = tl.load(theta_at + at, mask=there, other=1.0)
        p = tl.exp(a - lse)
        m = library * p + floor
        value += tl.where(there, x * log(m) - (x + theta) * log1p(m / theta), 0.0)
        dot += p * (theta * (x - m) / (m * (m + theta)))  # p is 0 past the last gene
    tl.store(out_at + row, tl.sum(value, 0))
    tl.store(lse_at + row, lse)
    tl.store(dot_at + row, tl.sum(dot, 0))


@triton.jit
def backward(
    grad_at, logits_at, library_at, theta_at, x_at, lse_at, dot_at, d_logits_at, d_theta_at,
    particles, cells, genes, floor, CELLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of genes in a group of cells of one run, for all particles."""
    group = tl.program_id(0).to(tl.int64)
    run = tl.program_id(2).to(tl.int64)
    library_at += run * cells
    x_at += run * cells * genes
    theta_at += run * genes
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = at < genes
    theta = tl.load(theta_at + at, mask=there, other=1.0)
    inverse = 1.0 / theta
    d_theta = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(CELLS):
        cell = group * CELLS + i
        if cell < cells:
            library = tl.load(library_at + cell)
            x = tl.load(x_at + cell * genes + at, mask=there, other=0).to(tl.float32)
            for particle in range(particles):
                row = cell + (run * particles + particle) * cells
                grad = tl.load(grad_at + row)
                a = tl.load(logits_at + row * genes + at, mask=there, other=-float("inf")).to(tl.float32)
                p = tl.exp(a - tl.load(lse_at + row))
                m = library * p + floor
                slope = theta * (x - m) / (m * (m + theta))
                d_logits = (grad * library) * p * (slope - tl.load(dot_at + row))
                tl.store(d_logits_at + row * genes + at, d_logits, mask=there)
                u = m * inverse
                d_theta += grad * (x * inverse - slope * u - log1p(u))
    tl.store(d_theta_at + (run * tl.num_programs(0) + group) * genes + at, d_theta, mask=there)

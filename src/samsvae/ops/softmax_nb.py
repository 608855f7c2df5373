"""Fused GPU kernels for the decoder's softmax and its negative binomial likelihood, forward and backward.

Letters: S runs, K particles, n cells, G genes. Plain operations write arrays of (K, n, G), such as the mean and its
logarithm, to memory and read them back. The kernels read the logits twice in the forward pass (the second time from the
cache) and once in the backward pass. Triton is imported at first use. Without Triton or without a GPU, torch's own
operations compute the same function.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from samsvae.ops.triton_trial import has_triton, trial, try_out

#: These kernels, in messages (``samsvae.ops.triton_trial``).
KERNELS = "the fused likelihood"

#: Largest number of genes that a program reads at a time (forward, backward), and the number of cells over which the
#: backward pass sums the gradients of theta.
FORWARD_GENES, BACKWARD_GENES, CELLS = 1024, 256, 2

#: Values per thread (forward, backward, gamma terms): the fewer programs there are, the more threads each needs. The
#: gamma terms have a program per cell, the forward pass one per cell and particle.
FORWARD_VALUES, BACKWARD_VALUES, GAMMA_VALUES = 4, 2, 1

#: Threads of a warp on an NVIDIA GPU.
WARP = 32

#: Rows of the gradient of the product start at multiples of so many numbers (16 bytes in bfloat16): the products of the
#: backward pass, which read it, use their fast kernels only on aligned rows. 1,187 genes would not be.
ALIGNED = 8


def softmax_nb(product: Tensor, bias: Tensor, library: Tensor, theta: Tensor, x: Tensor, floor: float) -> Tensor:
    """log NB(x; l softmax(product + bias) + floor, theta), summed over genes (eq. 2).

    Parameters
    ----------
    product
        (..., n, G), float32 or bfloat16, computed in float32; or float64, computed in float64.
    bias, library, theta, x
        (G,), (n,), (G,) and (n, G); x may hold integers or floats. ``product``, ``bias`` and ``theta`` get gradients.

    Returns
    -------
    Tensor
        (..., n), in the dtype of ``theta``.
    """
    kind = torch.promote_types(product.dtype, theta.dtype)
    if not torch.compiler.is_compiling():
        try_out(product.device)
    if kind == torch.float32 and has_triton(product.device.type, KERNELS):
        rows = product.reshape(1, math.prod(product.shape[:-2]), *product.shape[-2:])
        parts = (rows, bias[None], library[None], theta[None], x[None])
        out, _, _ = _forward(*(part.contiguous() for part in parts), floor)
        return out.view(product.shape[:-1])
    x = x.to(theta.dtype)
    mean = library[:, None] * torch.softmax(product + bias, -1, dtype=kind) + floor
    terms = x * torch.log(mean) - (x + theta) * torch.log1p(mean / theta)
    return terms.sum(-1) + gamma_terms(theta, x).sum(-1)


def gamma_terms(theta: Tensor, x: Tensor) -> Tensor:
    """The terms of log NB(x; m, theta) without the mean m, which are the same for all particles (n, G)."""
    return torch.lgamma(x + theta) - torch.lgamma(theta) - x * torch.log(theta) - torch.lgamma(x + 1.0)


@trial(KERNELS)
def _trial(device: torch.device) -> tuple[Tensor, ...]:
    shapes = ((1, 2, 3, 5), (1, 5), (1, 3), (1, 5), (1, 3, 5))
    parts = [torch.ones(shape, device=device, dtype=torch.float32) for shape in shapes]
    out, lse, dot = _forward(*parts, 1e-4)
    return out, *_backward(torch.ones_like(out), *parts, lse, dot, 1e-4)


# Custom operators, so that torch.compile does not look inside them. The forward pass saves two numbers per row besides
# the product: log sum exp, and s for the backward pass. With p = softmax, digamma function psi, and
# c_g = x / m - (x + theta) / (m + theta) = theta (x - m) / (m (m + theta)), the derivative in m:
# d/dlogits_g = l p_g (c_g - s), s = sum_g p_g c_g;
# d/dtheta_g = psi(x + theta) - psi(theta) - c_g m / theta - log(1 + m / theta).


@torch.library.custom_op("samsvae::softmax_nb", mutates_args=())
def _forward(
    product: Tensor, bias: Tensor, library: Tensor, theta: Tensor, x: Tensor, floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, log sum exp and s, each (S, K, n), of product (S, K, n, G), bias and theta (S, G) and x (S, n, G)."""
    from samsvae.ops import triton_softmax_nb

    _, particles, cells, genes = product.shape
    out, lse, dot = (theta.new_empty(product.shape[:-1]) for _ in range(3))
    constant = torch.empty_like(library)
    block, warps = geometry(genes, FORWARD_GENES, FORWARD_VALUES)
    size, more = geometry(genes, FORWARD_GENES, GAMMA_VALUES)
    if out.numel():
        with torch.cuda.device_of(product):  # Triton launches on the current GPU
            triton_softmax_nb.gammas[(constant.numel(),)](theta, x, constant, cells, genes, size, num_warps=more)
            triton_softmax_nb.forward[(out.numel(),)](
                product, bias, library, theta, x, constant, out, lse, dot,
                particles, cells, genes, floor, block, num_warps=warps,
            )  # fmt: skip
    return out, lse, dot


@torch.library.custom_op("samsvae::softmax_nb_backward", mutates_args=())
def _backward(
    grad: Tensor, product: Tensor, bias: Tensor, library: Tensor, theta: Tensor, x: Tensor, lse: Tensor, dot: Tensor,
    floor: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of the product (S, K, n, G), and of bias and theta together (S, 2, G)."""
    from samsvae.ops import triton_softmax_nb

    runs, particles, cells, genes = product.shape
    (block, warps), groups = geometry(genes, BACKWARD_GENES, BACKWARD_VALUES), -(-cells // CELLS)
    d_product = _aligned(product)
    d_genes = theta.new_empty(runs, groups, 2, genes)  # one row per group of cells, summed below in a fixed order
    if lse.numel():
        with torch.cuda.device_of(product):
            triton_softmax_nb.backward[(groups, -(-genes // block), runs)](
                grad, product, bias, library, theta, x, lse, dot, d_product, d_genes,
                particles, cells, genes, d_product.stride(-2), floor, CELLS, block, num_warps=warps,
            )  # fmt: skip
    else:
        d_genes.zero_()
    return d_product, d_genes.sum(1)


def _aligned(product: Tensor) -> Tensor:
    """Memory for the gradient of a product: the same shape, with aligned rows."""
    *leading, genes = product.shape
    return product.new_empty(*leading, -(-genes // ALIGNED) * ALIGNED)[..., :genes]


@_forward.register_fake
def _(product, bias, library, theta, x, floor):
    return tuple(theta.new_empty(product.shape[:-1]) for _ in range(3))


@_backward.register_fake
def _(grad, product, bias, library, theta, x, lse, dot, floor):
    runs, *_, genes = product.shape
    return _aligned(product), theta.new_empty(runs, 2, genes)


def _save_for_backward(ctx, inputs, output) -> None:
    *tensors, ctx.floor = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # they would be filled with zeros


def _gradients(ctx, grad, *_):
    d_product, d_genes = _backward(grad.contiguous(), *ctx.saved_tensors, ctx.floor)
    return d_product, d_genes[:, 0], None, d_genes[:, 1], None, None


_forward.register_autograd(_gradients, setup_context=_save_for_backward)


@_forward.register_vmap
def _(info, dims, *given):
    """Under torch.func.vmap, one launch for all runs. Gradients are taken outside of it, for the stack of all runs."""
    *parts, floor = given
    each = (part[None] if at is None else part.movedim(at, 0) for part, at in zip(parts, dims[:-1], strict=True))
    runs = (part.expand(info.batch_size, *part.shape[1:]).flatten(0, 1).contiguous() for part in each)
    return tuple(part.unflatten(0, (info.batch_size, -1)) for part in _forward(*runs, floor)), (0, 0, 0)


def geometry(genes: int, most: int, values: int) -> tuple[int, int]:
    """Genes that a program reads at a time (a power of two up to ``most``), and its warps.

    Of the blocks with two warps or more, the one that leaves the fewest threads idle, on a tie the largest. Genes that
    fit into half of it get the smallest block that holds them.
    """
    least = 2 * WARP * values
    sizes = [size for size in (most, most // 2, most // 4) if size >= least]
    block = min(sizes, key=lambda size: -(-genes // size) * size)
    while block // 2 >= max(genes, WARP):
        block //= 2
    return block, max(block // (WARP * values), 1)

"""A fused GPU kernel for the decoder's softmax and its negative binomial likelihood, forward and backward.

Letters: S runs, K particles, n cells, G genes. Plain operations write arrays of (K, n, G), such as the mean and its
logarithm, to memory and read them back. The kernel reads the logits twice in the forward pass (the second time from the
cache) and once in the backward pass. Triton comes with the CUDA builds of torch and is imported at first use. Without
Triton or without a GPU, torch's own operations compute the same function.
"""

from __future__ import annotations

import importlib.util
import logging
import os

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_HAS_TRITON = importlib.util.find_spec("triton") is not None

#: Device types that can run the kernels: GPUs with Triton, and CPUs under Triton's interpreter.
_USABLE = {"cuda": _HAS_TRITON, "cpu": _HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"}

#: Device types on which a kernel was launched to see whether it compiles.
_TRIED: set[str] = set()

#: Largest number of genes that a program reads at a time (forward, backward), and the number of cells over which the
#: backward pass sums the gradients of theta.
FORWARD_GENES, BACKWARD_GENES, CELLS = 1024, 256, 2

#: Values per thread (forward, backward): the backward pass has fewer programs, so it needs more threads in each.
FORWARD_VALUES, BACKWARD_VALUES = 4, 2

#: Threads of a warp on an NVIDIA GPU.
WARP = 32


def softmax_nb(logits: Tensor, library: Tensor, theta: Tensor, x: Tensor, floor: float) -> Tensor:
    """The terms of log NB(x; m, theta) that contain the mean m = l softmax(logits) + floor, summed over genes (eq. 2).

    sum_g x_g log m_g - (x_g + theta_g) log(1 + m_g / theta_g). The caller adds the gamma terms
    lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) - x log theta, which are the same for all particles.

    Parameters
    ----------
    logits
        (..., n, G), float32 or bfloat16, computed in float32; or float64, computed in float64.
    library, theta, x
        (n,), (G,) and (n, G); x may hold integers or floats. ``logits`` and ``theta`` get gradients.

    Returns
    -------
    Tensor
        (..., n), in the dtype of ``theta``.
    """
    kind = torch.promote_types(logits.dtype, theta.dtype)
    if not torch.compiler.is_compiling():
        try_out(logits.device)
    if kind == torch.float32 and has_triton(logits.device.type):
        rows = logits.reshape(1, -1, *logits.shape[-2:])
        out, _, _ = _forward(*(part.contiguous() for part in (rows, library[None], theta[None], x[None])), floor)
        return out.view(logits.shape[:-1])
    mean = library[:, None] * torch.softmax(logits, -1, dtype=kind) + floor
    return (x * torch.log(mean) - (x + theta) * torch.log1p(mean / theta)).sum(-1)


def has_triton(device: str) -> bool:
    """Whether the kernels run on a type of device, as far as is known (``try_out``)."""
    return _USABLE.get(device, False)


def try_out(device: torch.device) -> None:
    """Launch both kernels once per process to see whether they compile and run on this device.

    Triton needs a C compiler and Python's headers.
    """
    kind = device.type
    if kind in _TRIED or not has_triton(kind):
        return
    _TRIED.add(kind)
    try:
        shapes = ((1, 2, 3, 5), (1, 3), (1, 5), (1, 3, 5))
        parts = [torch.ones(shape, device=device, dtype=torch.float32) for shape in shapes]
        out, lse, dot = _forward(*parts, 1e-4)
        gradients = _backward(torch.ones_like(out), *parts, lse, dot, 1e-4)
        if not all(torch.isfinite(part).all() for part in (out, *gradients)):  # also waits for the kernels
            raise RuntimeError("its results are not finite")
    except Exception as error:  # a compiler can raise anything
        _USABLE[kind] = False
        log.warning("the fused likelihood does not run here; using torch's slower operations instead: %s", error)


# Custom operators, so that torch.compile does not look inside them. The forward pass saves two numbers per row besides
# the logits: log sum exp, and s for the backward pass. With p = softmax and
# c_g = x / m - (x + theta) / (m + theta) = theta (x - m) / (m (m + theta)), the derivative in m:
# d/dlogits_g = l p_g (c_g - s), s = sum_g p_g c_g; d/dtheta_g = x / theta - c_g m / theta - log(1 + m / theta).


@torch.library.custom_op("samsvae::softmax_nb", mutates_args=())
def _forward(logits: Tensor, library: Tensor, theta: Tensor, x: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Value, log sum exp and s, each (S, K, n), of logits (S, K, n, G), theta (S, G) and x (S, n, G)."""
    from samsvae.ops import triton_softmax_nb

    _, particles, cells, genes = logits.shape
    out, lse, dot = (theta.new_empty(logits.shape[:-1]) for _ in range(3))
    block, warps = geometry(genes, FORWARD_GENES, FORWARD_VALUES)
    if out.numel():
        with torch.cuda.device_of(logits):  # Triton launches on the current GPU
            triton_softmax_nb.forward[(out.numel(),)](
                logits, library, theta, x, out, lse, dot, particles, cells, genes, floor, block, num_warps=warps
            )
    return out, lse, dot


@torch.library.custom_op("samsvae::softmax_nb_backward", mutates_args=())
def _backward(
    grad: Tensor, logits: Tensor, library: Tensor, theta: Tensor, x: Tensor, lse: Tensor, dot: Tensor, floor: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits (S, K, n, G) and of theta (S, G)."""
    from samsvae.ops import triton_softmax_nb

    runs, particles, cells, genes = logits.shape
    (block, warps), groups = geometry(genes, BACKWARD_GENES, BACKWARD_VALUES), -(-cells // CELLS)
    d_logits = torch.empty_like(logits)
    d_theta = theta.new_empty(runs, groups, genes)  # one row per group of cells, summed below in a fixed order
    if lse.numel():
        with torch.cuda.device_of(logits):
            triton_softmax_nb.backward[(groups, -(-genes // block), runs)](
                grad, logits, library, theta, x, lse, dot, d_logits, d_theta,
                particles, cells, genes, floor, CELLS, block, num_warps=warps,
            )  # fmt: skip
    else:
        d_theta.zero_()
    return d_logits, d_theta.sum(1)


@_forward.register_fake
def _(logits, library, theta, x, floor):
    return tuple(theta.new_empty(logits.shape[:-1]) for _ in range(3))


@_backward.register_fake
def _(grad, logits, library, theta, x, lse, dot, floor):
    return torch.empty_like(logits), torch.empty_like(theta)


def _save_for_backward(ctx, inputs, output) -> None:
    *tensors, ctx.floor = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx, grad, *_):
    d_logits, d_theta = _backward(grad.contiguous(), *ctx.saved_tensors, ctx.floor)
    return d_logits, None, d_theta, None, None


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

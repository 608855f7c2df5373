"""A fused kernel for cards: the softmax of the decoder and the negative binomial of it, forwards and backwards.

Letters: S runs, K particles, n cells, G genes. Plain operations write the mean, its logarithm and more at (K, n, G) to
memory, and read them back; here the logits are read twice forwards (the second time from the cache) and once
backwards. Triton comes with the CUDA builds of torch and is imported at the first use; without it, or off a card, the
same function is made of torch's own operations.
"""

from __future__ import annotations

import importlib.util
import logging
import os

import torch
from torch import Tensor

log = logging.getLogger(__name__)

#: Kinds of device that the kernels are for: cards with Triton, and CPUs under its interpreter.
_HAS_TRITON = importlib.util.find_spec("triton") is not None

_USABLE = {"cuda": _HAS_TRITON, "cpu": _HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"}

_TRIED: set[str] = set()

#: Most genes that a program reads at a time, forwards and backwards, and cells whose gradients in theta it adds up.
FORWARD_GENES, BACKWARD_GENES, CELLS = 1024, 256, 2


def softmax_nb(logits: Tensor, library: Tensor, theta: Tensor, x: Tensor, floor: float) -> Tensor:
    """What the mean has a part in of log NB(x; m, theta), summed over genes, at m = l softmax(logits) + floor (eq. 2).

    sum_g x_g log m_g - (x_g + theta_g) log(1 + m_g / theta_g): to be added to the gamma terms
    lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) - x log theta, which no particle changes.

    Parameters
    ----------
    logits
        (..., n, G), float32 or bfloat16; the arithmetic is float32 (float64 where they are).
    library, theta, x
        (n,), (G,) and (n, G), x of integers or of floats. Gradients go to ``logits`` and ``theta``.

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
    """Whether the kernels run on a kind of device, as far as is known (``try_out``)."""
    return _USABLE.get(device, False)


def try_out(device: torch.device) -> None:
    """Launch a kernel once in a process, to know whether it can be: Triton needs a C compiler and Python's headers."""
    kind = device.type
    if kind in _TRIED or not has_triton(kind):
        return
    _TRIED.add(kind)
    try:
        _forward(*(torch.ones(shape, device=device) for shape in ((1, 1, 1, 1), (1, 1), (1, 1), (1, 1, 1))), 1e-4)
    except Exception as error:  # whatever a compiler may say
        _USABLE[kind] = False
        log.warning("the fused likelihood cannot be compiled here, torch's operations do it, more slowly: %s", error)


# Operators of their own, so that torch.compile takes them as they are. Forwards leaves two numbers a row beside the
# logits: log sum exp, and s of the backward pass. With p = softmax and
# c_g = x / m - (x + theta) / (m + theta) = theta (x - m) / (m (m + theta)), the derivative in m:
# d/dlogits_g = l p_g (c_g - s), s = sum_g p_g c_g; d/dtheta_g = x / theta - c_g m / theta - log(1 + m / theta).


@torch.library.custom_op("samsvae::softmax_nb", mutates_args=())
def _forward(logits: Tensor, library: Tensor, theta: Tensor, x: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Value, log sum exp and s, each (S, K, n), of logits (S, K, n, G), theta (S, G) and x (S, n, G)."""
    from samsvae.ops import triton_softmax_nb

    _, particles, cells, genes = logits.shape
    out, lse, dot = (theta.new_empty(logits.shape[:-1]) for _ in range(3))
    block = _block(genes, FORWARD_GENES)
    if out.numel():
        triton_softmax_nb.forward[(out.numel(),)](
            logits, library, theta, x, out, lse, dot, particles, cells, genes, floor, block, num_warps=_warps(block)
        )
    return out, lse, dot


@torch.library.custom_op("samsvae::softmax_nb_backward", mutates_args=())
def _backward(
    grad: Tensor, logits: Tensor, library: Tensor, theta: Tensor, x: Tensor, lse: Tensor, dot: Tensor, floor: float
) -> tuple[Tensor, Tensor]:
    """Gradients in the logits (S, K, n, G) and in theta (S, G)."""
    from samsvae.ops import triton_softmax_nb

    runs, particles, cells, genes = logits.shape
    block, groups = _block(genes, BACKWARD_GENES), -(-cells // CELLS)
    d_logits = torch.empty_like(logits)
    d_theta = theta.new_empty(runs, groups, genes)  # a row per group of cells: added up below, in one order
    if lse.numel():
        triton_softmax_nb.backward[(groups, -(-genes // block), runs)](
            grad, logits, library, theta, x, lse, dot, d_logits, d_theta,
            particles, cells, genes, floor, CELLS, block, num_warps=_warps(block),
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


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.floor = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx, grad, *_):
    d_logits, d_theta = _backward(grad.contiguous(), *ctx.saved_tensors, ctx.floor)
    return d_logits, None, d_theta, None, None


_forward.register_autograd(_gradients, setup_context=_keep)


@_forward.register_vmap
def _(info, dims, *given):
    """Under torch.func.vmap: one launch for all runs. Gradients are asked for outside of it, of the longer stack."""
    *parts, floor = given
    each = (part[None] if at is None else part.movedim(at, 0) for part, at in zip(parts, dims[:-1], strict=True))
    runs = (part.expand(info.batch_size, *part.shape[1:]).flatten(0, 1).contiguous() for part in each)
    return tuple(part.unflatten(0, (info.batch_size, -1)) for part in _forward(*runs, floor)), (0, 0, 0)


def _block(genes: int, most: int) -> int:
    """The block size that leaves the fewest lanes idle, the larger of equals."""
    return min((most, most // 2, most // 4), key=lambda block: -(-genes // block) * block)


def _warps(block: int) -> int:
    """Warps of a program: four values a thread."""
    return max(block // 128, 1)

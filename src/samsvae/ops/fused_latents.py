"""Fused GPU kernels for latents and networks: what torch does in up to seven operations, in one.

They are used by ``samsvae.ops.explicit_gradients``, which says what they compute, if ``fused`` says so. Arguments that
belong to a value may have fewer rows, which repeat, or be a single number (``repeat``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from samsvae.ops.triton_trial import has_triton, trial, try_out

#: These kernels, in messages (``samsvae.ops.triton_trial``).
KERNELS = "the fused arithmetic of latents and networks"

#: Numbers per program, without sums over columns; most columns that a program reads at a time; numbers per warp.
FLAT, COLUMNS, PER_WARP = 512, 1024, 128


def fused(*tensors: Tensor) -> bool:
    """Whether the kernels can compute with these tensors, the largest of them first."""
    device = tensors[0].device
    if not has_triton(device.type, KERNELS) or torch.compiler.is_compiling():
        return False
    try_out(device)
    small = tensors[0].numel() < 2**31  # they count in int32
    return small and has_triton(device.type, KERNELS) and all(part.dtype == torch.float32 for part in tensors)


def repeat(value: Tensor, *parameters: Tensor) -> bool:
    """Whether every parameter is a number, or has the last dimensions of the value."""
    return all(p.ndim == 0 or p.shape == value.shape[value.ndim - p.ndim :] for p in parameters)


def number(parameter: Tensor) -> Tensor:
    """The single number of a parameter that was expanded from one; any other parameter as it is."""
    return parameter if any(parameter.stride()) or not parameter.numel() else parameter[(0,) * parameter.ndim]


def _operator(launch: Callable) -> Callable:
    """A custom operator, which torch counts and captures as one; its tensors are made contiguous.

    A matrix that is given by name keeps its strides. Nothing is launched for tensors without numbers (``meta``).
    """
    operator = torch.library.custom_op(f"samsvae::{launch.__name__}", mutates_args=())(launch)
    operator.register_fake(launch)

    @wraps(launch)
    def call(*arguments, **strided):
        strided = {name: part if part.ndim < 3 else part.contiguous() for name, part in strided.items()}
        return operator(*(a.contiguous() if isinstance(a, Tensor) else a for a in arguments), **strided)

    return call


def _launch(kernel: str, programs: int, block: int, *arguments) -> None:
    if programs and not arguments[0].is_meta:
        from samsvae.ops import triton_latents

        with torch.cuda.device_of(arguments[0]):  # Triton launches on the current GPU
            getattr(triton_latents, kernel)[(programs,)](*arguments, block, num_warps=max(block // PER_WARP, 1))


def _by_row(kernel: str, rows: int, cols: int, *arguments) -> None:
    _launch(kernel, rows, min(max(1 << (cols - 1).bit_length(), 32), COLUMNS), *arguments)


def _flat(kernel: str, numbers: int, *arguments) -> None:
    _launch(kernel, -(-numbers // FLAT), FLAT, *arguments)


@_operator
def normal_log_ratio(value: Tensor, noise: Tensor, p_loc: Tensor, p_scale: Tensor, q_scale: Tensor) -> Tensor:
    out, cols = value.new_empty(value.shape[:-1]), value.shape[-1]
    sizes = (part.numel() for part in (p_loc, p_scale, q_scale))
    _by_row("normal_log_ratio", out.numel(), cols, value, noise, p_loc, p_scale, q_scale, out, cols, *sizes)
    return out


@_operator
def normal_log_ratio_backward(
    grad: Tensor, value: Tensor, p_loc: Tensor, p_scale: Tensor, q_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of the value and of q's sd."""
    out, (rows, repeats, cols) = (torch.empty_like(value), torch.empty_like(q_scale)), _rows_of(value, q_scale)
    inputs = (grad, value, p_loc, p_scale, q_scale)
    _by_row("normal_log_ratio_backward", rows, cols, *inputs, *out, repeats, cols, p_loc.numel(), p_scale.numel())
    return out


@_operator
def bernoulli_log_ratio(value: Tensor, p: Tensor, q: Tensor) -> Tensor:
    out, cols = value.new_empty(value.shape[:-1]), value.shape[-1]
    _by_row("bernoulli_log_ratio", out.numel(), cols, value, p, q, out, cols, p.numel(), q.numel())
    return out


@_operator
def bernoulli_log_ratio_backward(grad: Tensor, value: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the value and of q's logits."""
    out, (rows, repeats, cols) = (torch.empty_like(value), torch.empty_like(q)), _rows_of(value, q)
    _by_row("bernoulli_log_ratio_backward", rows, cols, grad, value, p, q, *out, repeats, cols, p.numel())
    return out


def _rows_of(value: Tensor, parameter: Tensor) -> tuple[int, int, int]:
    """The rows of a parameter, how often the value repeats them, and the columns."""
    return parameter.numel() // parameter.shape[-1], value.numel() // max(parameter.numel(), 1), value.shape[-1]


@_operator
def drawn_mask(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    out = torch.empty_like(noise)
    _flat("drawn_mask", noise.numel(), logits, noise, out, noise.numel(), logits.numel(), temperature)
    return out


@_operator
def drawn_mask_backward(grad: Tensor, logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    out, size = torch.empty_like(logits), logits.numel()
    _flat("drawn_mask_backward", size, grad, logits, noise, out, size, noise.numel() // max(size, 1), temperature)
    return out


@_operator
def sd(product: Tensor, floor: float) -> Tensor:
    """The second half of the columns as sd."""
    cols = product.shape[-1] // 2
    out = product.new_empty(*product.shape[:-1], cols)
    _flat("sd", out.numel(), product, out, out.numel(), cols, floor)
    return out


@_operator
def sd_backward(d_mean: Tensor, d_sd: Tensor, product: Tensor, floor: float) -> Tensor:
    """The gradient of the product."""
    out = torch.empty_like(product)
    _flat("sd_backward", d_sd.numel(), d_mean, d_sd, product, out, d_sd.numel(), d_sd.shape[-1], floor)
    return out


@_operator
def activation(new: Tensor, slope: float, other: Tensor) -> Tensor:
    """a(new + other)."""
    out = torch.empty_like(new)
    _flat("activation", new.numel(), new, other, out, out, *_strides(new, other), slope, False)
    return out


@_operator
def residual(new: Tensor, slope: float, other: Tensor) -> tuple[Tensor, Tensor]:
    """a(new), and a(new) + other."""
    out = torch.empty_like(new), torch.empty_like(new)
    _flat("activation", new.numel(), new, other, *out, *_strides(new, other), slope, True)
    return out


def _strides(value: Tensor, other: Tensor) -> tuple[int, ...]:
    """Numbers of the value and of the other, columns, and the strides of the other's rows and columns."""
    return value.numel(), other.numel(), value.shape[-1], other.stride(-2) if other.ndim > 1 else 0, other.stride(-1)


@_operator
def activation_backward(grad: Tensor, h: Tensor, slope: float, rows: int) -> tuple[Tensor, Tensor]:
    """The gradient of the argument, and its sum (rows, H) over particles."""
    out, size = (torch.empty_like(h), h.new_empty(rows, h.shape[-1])), rows * h.shape[-1]
    _flat("activation_backward", size, grad, h, *out, size, h.numel() // max(size, 1), slope)
    return out


@_operator
def normalised(x: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """(log(1 + x) - mean) / sd, for x >= 0."""
    out = torch.empty_like(x)
    _flat("normalised", x.numel(), x, mean, sd, out, x.numel(), mean.numel())
    return out


@trial(KERNELS)
def _trial(device: torch.device) -> list[Tensor]:
    value, grad, row = (torch.ones(shape, device=device, dtype=torch.float32) for shape in ((2, 3, 4), (2, 3), (3, 4)))
    return [
        normal_log_ratio(value, value, row, row, row),
        *normal_log_ratio_backward(grad, value, row, row, row),
        bernoulli_log_ratio(value, row, row),
        *bernoulli_log_ratio_backward(grad, value, row, row),
        drawn_mask(row, value, 1.0),
        drawn_mask_backward(value, row, value, 1.0),
        sd(value, 1e-4),
        sd_backward(value[..., :2], value[..., :2], value, 1e-4),
        activation(value, 0.1, other=row),
        *residual(value, 0.1, other=value),
        *activation_backward(value, value, 0.1, 3),
        normalised(value, row, row),
    ]

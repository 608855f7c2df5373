"""Precision of the matrix products in a training."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

log = logging.getLogger(__name__)

#: tf32 is used up to this mean relative error of a product of positive numbers. Rounding its operands to 10 bits leaves
#: less than 1e-5; cutting the other bits off leaves 7e-4, always downwards (docs/gpu.md).
MOST_BIAS = 1e-4

#: Sizes (n, k, m) of the products that are tried: with rows of 16 bytes and without, for which GPUs have other code.
TRIED = ((2560, 400, 1184), (2560, 400, 1187))


def product(input: Tensor, weight: Tensor) -> Tensor:
    """input weight^T, in the dtype in which it is computed: bfloat16 under ``bf16``, else float32."""
    if has_torch_function((input, weight)):  # true within `_Bfloat16Linear`
        return handle_torch_function(product, (input, weight), input, weight)
    return F.linear(input, weight)


class _Bfloat16Linear(TorchFunctionMode):
    """Computes linear maps in bfloat16, forward and backward, with float32 results; changes nothing else."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def rough(input: Tensor, weight: Tensor) -> Tensor:
            return F.linear(input.to(torch.bfloat16), weight.to(torch.bfloat16))

        def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            found = rough(input, weight).to(weight.dtype)
            return found if bias is None else found + bias

        return {product: rough, F.linear: linear}.get(func, func)(*args, **(kwargs or {}))


@contextlib.contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Within the block, matrix products use the precision with this ``name``.

    ``float32``; ``tf32`` for products on GPUs that round (`used_precision`); ``bf16`` for all linear maps. Everything
    else, above all the likelihood, stays in float32.
    """
    if name == "bf16":
        with _Bfloat16Linear():
            yield
    elif device.type != "cuda":
        yield
    else:
        with _products("tf32" if used_precision(name, device) == "tf32" else "ieee"):
            yield


@contextlib.contextmanager
def _products(arithmetic: str) -> Iterator[None]:
    """Within the block, float32 products on GPUs use torch's ``ieee`` or ``tf32``."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, arithmetic
    try:
        yield
    finally:
        matmul.fp32_precision = before


def used_precision(name: str, device: torch.device) -> str:
    """The precision that a setting gives on this device.

    ``tf32`` is ``float32`` on CPUs, and on GPUs that cut bits off instead of rounding.
    """
    if name != "tf32" or (device.type == "cuda" and tf32_bias(device) < MOST_BIAS):
        return name
    return "float32"


@cache
@torch.no_grad()
def tf32_bias(device: torch.device) -> float:
    """The largest mean relative error of a tf32 product of positive numbers on this GPU, tried once per process."""
    stream, worst = torch.Generator().manual_seed(0), 0.0
    for n, k, m in TRIED:
        a, b = (torch.rand(size, generator=stream).add_(1.0).to(device) for size in ((n, k), (k, m)))
        with _products("tf32"):
            found = torch.mm(a, b).double()
        exact = torch.mm(a.double(), b.double())
        worst = max(worst, (found / exact - 1.0).mean().abs().item())
    if worst >= MOST_BIAS:
        log.warning("tf32 products have a relative error of %.0e on average here; using float32 instead", worst)
    return worst

"""Precision of the matrix products in a training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function


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

    ``float32``; ``tf32`` for products on GPUs (elsewhere float32); ``bf16`` for all linear maps. Everything else, above
    all the likelihood, stays in float32.
    """
    if name == "bf16":
        with _Bfloat16Linear():
            yield
        return
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32" if name == "tf32" else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before

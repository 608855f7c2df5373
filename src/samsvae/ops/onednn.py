"""What torch does not do by itself to be fast on a CPU: exact products by oneDNN, and memory kept between steps."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, wraps

import torch


def fast_cpu(work: Callable) -> Callable:
    """Decorates a function of a model, which goes first: where the model is on a CPU, all of this module is used."""

    @wraps(work)
    def fast(model, *args, **kwargs):
        with fast_products() if model.input_mean.device.type == "cpu" else nullcontext():
            return work(model, *args, **kwargs)

    return fast


@contextmanager
def fast_products() -> Iterator[None]:
    """While it holds, oneDNN multiplies float32 matrices on a CPU, in place of MKL, where that is exact.

    torch gives the products to oneDNN under the setting that allows it bf16. Many CPUs compute in float32 all the
    same, in half of MKL's time; where one does not, the setting is left.
    """
    keep_memory()
    if not exact_products():
        yield
        return
    with _bf16_allowed():
        yield


@contextmanager
def _bf16_allowed() -> Iterator[None]:
    """Allow oneDNN bf16 in matrix products within the block."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # torch's stubs lack it
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


@cache
def exact_products(limit: float = 1e-6) -> bool:
    """Whether oneDNN's products are float32's under that setting: measured against float64, once in a process.

    In the three layouts of a linear layer: forward, and the gradients of its input and of its weight.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(256, 256, generator=generator) for _ in range(3))
    with _bf16_allowed():
        found = [(torch.addmm(c, a, b.T), c + a.double() @ b.T.double()), (a @ b, a.double() @ b.double())]
        found.append((a.T @ b, a.T.double() @ b.double()))
    return all(((ours - exact).norm() / exact.norm()).item() < limit for ours, exact in found)


@cache
def keep_memory() -> None:
    """Have the C library keep the memory that a step frees for the next step.

    By its defaults (glibc) arrays of megabytes go back to the system, and come again as thousands of empty pages.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    with suppress(AttributeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)

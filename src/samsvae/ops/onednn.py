"""CPU speed-ups that torch does not enable by itself: exact oneDNN products, and memory reused between steps."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, wraps
from pathlib import Path
from typing import Literal

import torch

#: From this number of weights between the widest layer and the genes, oneDNN multiplies faster than MKL, on most CPUs
#: and on those of `halved_by_mkl`. Below it is up to 1.5 and 2.6 times slower (benchmarks/RESULTS.md).
LEAST_WEIGHTS, LEAST_IF_HALVED = 2**14, 2**12


def fast_cpu(work: Callable) -> Callable:
    """Decorator for a function whose first argument is a model.

    On a CPU it runs in `fast_products` if `library_of_products` says so, and memory is reused as in `keep_memory`.
    """

    @wraps(work)
    def wrapper(model, *args, **kwargs):
        if model.input_mean.device.type != "cpu":
            return work(model, *args, **kwargs)
        keep_memory()
        onednn = library_of_products(model.config.width, len(model.input_mean)) == "oneDNN"
        with fast_products() if onednn else nullcontext():
            return work(model, *args, **kwargs)

    return wrapper


def library_of_products(width: int, n_genes: int) -> Literal["oneDNN", "MKL"]:
    """The library that multiplies the float32 matrices of a model on this CPU.

    Only the sizes of the model, the kind of CPU and the exactness of oneDNN decide, never a timing: the same model on
    the same CPU always has the same bits.
    """
    least = LEAST_IF_HALVED if halved_by_mkl() else LEAST_WEIGHTS
    return "oneDNN" if width * n_genes >= least and exact_products() else "MKL"


@cache
def halved_by_mkl(info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether MKL uses half of the vector units: they have 512 bits on AMD's CPUs from Zen 5 on (family 26), and MKL
    uses 256 on all of AMD's. False where Linux does not say what CPU it is."""
    with suppress(OSError, ValueError):
        pairs = (line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        facts = {name.strip(): value.strip() for name, value in pairs}
        return facts.get("vendor_id") == "AuthenticAMD" and int(facts.get("cpu family", "0")) >= 26
    return False


@contextmanager
def fast_products() -> Iterator[None]:
    """Within the block, oneDNN multiplies float32 matrices on the CPU instead of MKL, if its products are exact.

    torch uses oneDNN only under the setting that allows bf16. Many CPUs still compute in float32 under it, and large
    products take less time than MKL's. On a CPU that does not, the setting is left unchanged.
    """
    if not exact_products():
        yield
        return
    with _bf16_allowed():
        yield


class _Blocks:
    """The blocks that need the setting now, in all threads, which share it; and the setting before the first."""

    lock = threading.Lock()
    open = 0
    before = ""


@contextmanager
def _bf16_allowed() -> Iterator[None]:
    """Allow oneDNN bf16 in matrix products within the block; the last of the blocks of all threads restores it."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # torch's stubs lack it
    with _Blocks.lock:
        if not _Blocks.open:
            _Blocks.before, settings.fp32_precision = settings.fp32_precision, "bf16"
        _Blocks.open += 1
    try:
        yield
    finally:
        with _Blocks.lock:
            _Blocks.open -= 1
            if not _Blocks.open:
                settings.fp32_precision = _Blocks.before


def onednn_multiplies() -> bool:
    """Whether oneDNN multiplies now, in all threads."""
    return _Blocks.open > 0


@cache
def exact_products(limit: float = 1e-6) -> bool:
    """Whether oneDNN's products have float32 accuracy if bf16 is allowed: checked against float64, once per process.

    The relative error must stay below ``limit`` for the three products of a linear layer: forward, and the gradients of
    its input and its weight.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(256, 256, generator=generator, dtype=torch.float32) for _ in range(3))
    with _bf16_allowed():
        pairs = [(torch.addmm(c, a, b.T), c + a.double() @ b.T.double()), (a @ b, a.double() @ b.double())]
        pairs.append((a.T @ b, a.T.double() @ b.double()))
    return all(((ours - exact).norm() / exact.norm()).item() < limit for ours, exact in pairs)


@cache
def keep_memory() -> None:
    """Make the C library reuse the memory that a step frees for the next step.

    By default glibc returns arrays of megabytes to the system, which then provides thousands of empty pages again.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    with suppress(AttributeError, OSError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)

"""Compiled C code for counts on a CPU (``cpu_negative_binomial.c``): their likelihood and its gradients, and draws.

Plain operations for the likelihood write ten arrays of (K, n, G) to memory and read them back. The kernel reads
the logits twice, the second time from the cache, and takes a third of their time. Letters: K particles, n cells, G
genes.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from subprocess import SubprocessError
from typing import Literal

import torch
from torch import Tensor

from samsvae.errors import ConfigError
from samsvae.ops.c_code import build
from samsvae.ops.softmax_nb import softmax_nb as plain

log = logging.getLogger(__name__)

#: Fewest logits for which a thread is worth starting.
PER_THREAD = 2**16

_CHOSEN: ContextVar[str] = ContextVar("kernel", default="auto")


def resolve_kernel(setting: str) -> Literal["plain", "compiled"]:
    """The kernel for a setting: for 'auto', the compiled one if it works here. ConfigError if 'compiled' does not."""
    if setting == "plain":
        return "plain"
    code, problem = _code()
    if setting == "compiled" and code is None:
        raise ConfigError(f"kernel: 'compiled' does not work here ({problem}). Allowed: auto, plain.")
    return "plain" if code is None else "compiled"


@contextmanager
def kernel(name: str) -> Iterator[None]:
    """Within the block, this thread computes the likelihood of counts on a CPU by this kernel."""
    token = _CHOSEN.set(name)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def is_compiled() -> bool:
    """Whether this thread uses the compiled kernel; outside of `kernel`, if it works."""
    return resolve_kernel(_CHOSEN.get()) == "compiled"


def fits(product: Tensor, theta: Tensor, x: Tensor) -> bool:
    """Whether the compiled kernel is chosen and made for these arrays: float32, and whole counts up to 2^22."""
    single = product.dtype in (torch.float32, torch.bfloat16) and theta.dtype == x.dtype == torch.float32
    code, _ = _code() if single and is_compiled() else (None, "")
    x = x.contiguous()
    return code is not None and bool(code.samsvae_whole(_at(x), ctypes.c_int64(x.numel())))


def softmax_nb(product: Tensor, bias: Tensor, library: Tensor, theta: Tensor, x: Tensor, floor: float) -> Tensor:
    """log NB(x; l softmax(product + bias) + floor, theta) summed over genes (..., n), in float32, for what `fits`.

    Shapes: ``product`` (..., n, G), whose gradient has its dtype; ``bias`` and ``theta`` (G,); ``library`` l (n,);
    ``x`` (n, G). Gradients of ``product``, ``bias`` and ``theta``. The number of threads does not change the result.
    """
    flat = product if product.ndim == 3 else product.reshape(-1, *product.shape[-2:])
    return _SoftmaxNB.apply(flat, bias, library, theta, x, floor, _code()[0]).view(product.shape[:-1])


def draw_by_inversion(mean: Tensor, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Negative binomial counts (n, g) by inversion of the distribution function; only if `is_compiled`.

    ``mean`` (n, g), up to 80, and ``theta`` (g,), float32 and contiguous.
    """
    x = torch.rand(mean.shape, generator=generator, dtype=mean.dtype)
    code, problem = _code()
    if code is None:
        raise ConfigError(f"the compiled code does not work here ({problem})")
    draw, genes = code.samsvae_draw, ctypes.c_int64(mean.shape[1])
    _in_parts(
        lambda start, stop: draw(_at(mean), _at(theta), _at(x), genes, ctypes.c_int64(start), ctypes.c_int64(stop)),
        len(mean), mean.numel(),
    )  # fmt: skip
    return x


class _SoftmaxNB(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, product: Tensor, bias: Tensor, library: Tensor, theta: Tensor, x: Tensor, floor: float, code: ctypes.CDLL
    ) -> Tensor:
        given = [part.contiguous() for part in (product, bias, library, theta, x)]
        value, lse, dot = (theta.new_empty(product.shape[:-1]) for _ in range(3))
        _run(code.samsvae_values, given, floor, product.shape[1], (value, lse, dot))
        ctx.floor, ctx.code = floor, code
        ctx.save_for_backward(*given, lse, dot)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        *given, lse, dot = ctx.saved_tensors
        product, bias, _, theta, _ = given
        found = torch.empty_like(product), torch.empty_like(bias), torch.empty_like(theta)
        more = (grad.contiguous(), lse, dot, *found)
        _run(ctx.code.samsvae_gradients, given, ctx.floor, product.shape[2], more)
        return found[0], found[1], None, found[2], None, None, None


def _run(function, given: list[Tensor], floor: float, items: int, more: tuple[Tensor, ...]) -> None:
    """Call a C function for parts of the cells or genes (``items``), one part per thread of torch."""
    product = given[0]
    sizes = map(ctypes.c_int64, product.shape)
    first = [ctypes.c_int(product.dtype == torch.bfloat16), *map(_at, given), ctypes.c_float(floor), *sizes]
    last = [*map(_at, more)]

    def part(start: int, stop: int) -> None:
        if function(*first, ctypes.c_int64(start), ctypes.c_int64(stop), *last):
            raise MemoryError("not enough memory for the likelihood of counts")

    _in_parts(part, items, product.numel())


def _in_parts(part: Callable[[int, int], object], items: int, size: int) -> None:
    """Call ``part(start, stop)`` for parts of the items, one for each thread of torch; ``size``: numbers in all."""
    threads = max(1, min(torch.get_num_threads(), size // PER_THREAD, items))
    if threads == 1:
        part(0, items)
        return
    edges = [items * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:  # ctypes releases Python's lock
        list(pool.map(part, edges[:-1], edges[1:]))


@cache
def _code() -> tuple[ctypes.CDLL | None, str]:
    """The compiled code, or None and the reason. It must agree with torch's operations, checked once per process."""
    try:
        code = build(Path(__file__).with_suffix(".c"))
    except (OSError, SubprocessError) as error:
        problem = " ".join(str(error).split())
    else:
        wrong = _error(code)
        if wrong < 1e-5:
            return code, ""
        problem = f"its results are wrong by {wrong:.0e}"
    log.info("the likelihood of counts uses torch's operations, which take longer: %s", problem)
    return None, problem


@torch.enable_grad()
def _error(code: ctypes.CDLL) -> float:
    """Largest relative error of the value and the gradients on a small problem, against torch's float64."""
    stream = torch.Generator().manual_seed(0)
    product, bias, r = (torch.randn(size, generator=stream) for size in ((2, 3, 37), (37,), (37,)))
    library, x = torch.tensor([0.0, 50.0, 5000.0]), torch.arange(3.0 * 37).view(3, 37) % 80
    ours = [part.requires_grad_() for part in (product, bias, r.exp())]
    exact = [part.detach().double().requires_grad_() for part in ours]
    single = _SoftmaxNB.apply(*ours[:2], library, ours[2], x, 1e-4, code)
    double = plain(exact[0], exact[1], library.double(), exact[2], x, 1e-4)
    pairs = zip(
        (single, *torch.autograd.grad(single.sum(), ours)),
        (double, *torch.autograd.grad(double.sum(), exact)),
        strict=True,
    )
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs)


def _at(values: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.data_ptr())

"""Whether the Triton kernels run on a type of device: each set is launched once per process to see.

Triton comes with the CUDA builds of torch. It needs a C compiler and Python's headers. A set that does not run is
replaced by torch's own operations, which compute the same.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_HAS_TRITON = importlib.util.find_spec("triton") is not None

#: Device types that can run kernels: GPUs with Triton, and CPUs under Triton's interpreter.
_USABLE = {"cuda": _HAS_TRITON, "cpu": _HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"}

#: Device types on which all sets of kernels were launched, and the sets that failed there.
_TRIED: set[str] = set()
_FAILED: set[tuple[str, str]] = set()

#: Launches all kernels of a set on a device and returns their results, by the name of the set.
Trial = Callable[[torch.device], Sequence[Tensor]]
_TRIALS: dict[str, Trial] = {}


def trial(kernels: str) -> Callable[[Trial], Trial]:
    """Register the trial of a set of kernels, named as in messages."""

    def register(run: Trial) -> Trial:
        _TRIALS[kernels] = run
        return run

    return register


def has_triton(device: str, kernels: str) -> bool:
    """Whether a set of kernels runs on a type of device, as far as is known (``try_out``)."""
    return _USABLE.get(device, False) and (device, kernels) not in _FAILED


def try_out(device: torch.device) -> None:
    """Launch all kernels once per process to see whether they compile and run on this device."""
    kind = device.type
    if kind in _TRIED or not _USABLE.get(kind, False):
        return
    _TRIED.add(kind)
    for kernels, run in _TRIALS.items():
        try:
            if not all(torch.isfinite(part).all() for part in run(device)):  # also waits for the kernels
                raise RuntimeError("its results are not finite")
        except Exception as error:  # a compiler can raise anything
            _FAILED.add((kind, kernels))
            log.warning("%s does not run here; using torch's slower operations instead: %s", kernels, error)

"""Names of torch devices, and the errors of their memory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from samsvae.errors import ConfigError

#: Parts of torch's messages for an array that does not fit into memory, or whose size does not fit into a number.
TOO_LARGE: tuple[str, ...] = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
TOO_LARGE += ("Overflow when unpacking long", "calculation overflowed")


def usable(device: object) -> str:
    """The name of a torch device. ConfigError lists the available devices if torch cannot use this one."""
    import torch  # imported late, because CUDA reads its environment variables only once

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    allowed = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    if str(device) not in allowed:
        reason = "" if gpus or not str(device).startswith("cuda") else " (torch sees no GPU here)"
        raise ConfigError(f"device: {str(device)!r} is not allowed{reason}. Allowed: {', '.join(allowed)}.")
    return str(device)


@contextlib.contextmanager
def memory_for(work: str, advice: str) -> Iterator[None]:
    """Within the block, an array too large for the memory of the CPU or the GPU is a ConfigError with this advice."""
    try:
        yield
    except (RuntimeError, TypeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError) and not any(part in str(error) for part in TOO_LARGE):
            raise
        size = re.search(r"allocate ([\d.]+ ?\w+)", str(error))
        array = f" for an array of {size[1]}" if size else ""
        raise ConfigError(f"{work}: there is not enough memory{array}. {advice}") from None

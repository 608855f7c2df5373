"""Names of torch devices."""

from __future__ import annotations

from samsvae.errors import ConfigError


def usable(device: object) -> str:
    """The name of a torch device. ConfigError lists the available devices if torch cannot use this one."""
    import torch  # imported late, because CUDA reads its environment variables only once

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    allowed = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    if str(device) not in allowed:
        reason = "" if gpus or not str(device).startswith("cuda") else " (torch sees no GPU here)"
        raise ConfigError(f"device: {str(device)!r} is not allowed{reason}. Allowed: {', '.join(allowed)}.")
    return str(device)

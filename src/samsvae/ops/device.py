"""The device of torch that a name stands for."""

from __future__ import annotations

from samsvae.errors import ConfigError


def usable(device: object) -> str:
    """The name of a device of torch; ConfigError, with what is allowed here, where torch cannot use it."""
    import torch  # only now: CUDA reads its environment once

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    allowed = ["cpu", *(["cuda"] if cards else []), *(f"cuda:{card}" for card in range(cards))]
    if str(device) not in allowed:
        why = "" if cards or not str(device).startswith("cuda") else " (torch sees no card here)"
        raise ConfigError(f"device: {str(device)!r} is not allowed{why}. Allowed: {', '.join(allowed)}.")
    return str(device)

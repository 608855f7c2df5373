"""Noise as an argument: named random streams, or given tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor


def standard_noise(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard noise: ``normal`` N(0, 1), or ``logistic`` with location 0 and scale 1."""
    device = generator.device
    if kind == "normal":
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
    if kind == "logistic":
        eps = torch.finfo(torch.float32).eps
        u = torch.rand(shape, generator=generator, device=device, dtype=torch.float32)
        if u.is_cuda:
            return u.logit_(eps)  # the same up to rounding, by one kernel
        u.clamp_(eps, 1.0 - eps)
        return torch.log(u) - torch.log1p(-u)
    raise ValueError(f"unknown kind of noise {kind!r}. Allowed: 'normal', 'logistic'.")


#: (name of the latent, kind of noise, shape) -> standard noise
Noise = Callable[[str, str, tuple[int, ...]], Tensor]


class Streams:
    """Named noise streams: every latent draws from its own generator, seeded by (seed, name).

    Adding a latent to a model, or drawing it more often, does not change the noise of the other latents.
    """

    def __init__(self, seed: int | str, device: torch.device | str = "cpu"):
        self.seed = seed
        self.device = torch.device(device)
        self.generators: dict[str, torch.Generator] = {}

    def generator(self, name: str) -> torch.Generator:
        if name not in self.generators:
            digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
            generator = torch.Generator(self.device)
            generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            self.generators[name] = generator
        return self.generators[name]

    def __call__(self, name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
        return standard_noise(kind, shape, self.generator(name))


def given(noise: dict[str, Tensor]) -> Noise:
    """Noise that returns given tensors, by the name of the latent; ValueError for a missing one or a wrong shape."""

    def stream(name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
        if name not in noise:
            raise ValueError(f"no noise is given for {name!r}; it needs the shape {tuple(shape)}")
        if tuple(noise[name].shape) != tuple(shape):
            raise ValueError(f"noise of {name!r} has the shape {tuple(noise[name].shape)}; needed: {tuple(shape)}")
        return noise[name]

    return stream


def stream_states(noise: Streams) -> dict[str, Tensor]:
    """The state of each stream."""
    return {name: stream.get_state() for name, stream in noise.generators.items()}


def set_stream_states(noise: Streams, states: dict[str, Tensor]) -> None:
    """Set the streams to the given states, and streams without a state to their beginning.

    The generators stay the same objects, because captured steps draw from them.
    """
    start = Streams(noise.seed, noise.device)
    for name in {*noise.generators, *states}:
        noise.generator(name).set_state(states[name].cpu() if name in states else start.generator(name).get_state())

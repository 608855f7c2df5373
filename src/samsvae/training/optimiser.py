"""Adam, and the parameters with separate learning rates."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from samsvae.config.training import TrainingConfig
from samsvae.models.latents import Embedding, LearnedEmbedding, Mask, MaskProbability
from samsvae.models.model import Model


class _Group(NamedTuple):
    """Parameters with one learning rate and weight decay, their Adam moments, and the steps so far, the same tensor for
    all of them: one kernel launch on a GPU."""

    parameters: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    rate: float
    decay: float


class Adam:
    """Adam with L2 weight decay inside the gradient, as published.

    This is torch's fused step without its optimiser class, whose first use spends a second on importing a compiler, and
    whose step counts for every parameter take longer than the step of a small model.
    """

    def __init__(self, model: Model, config: TrainingConfig):
        self.config = config
        alike: dict[tuple[float, float], list[Tensor]] = {}
        for group in parameter_groups(model, config):
            alike.setdefault((group["lr"], group["weight_decay"]), []).extend(group["params"])
        self.groups: list[_Group] = []
        for (rate, decay), parameters in alike.items():
            means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
            steps = [torch.zeros((), device=parameters[0].device, dtype=torch.float32)] * len(parameters)
            self.groups.append(_Group(parameters, means, squares, steps, rate, decay))

    @torch.no_grad()
    def step(self, skip: Tensor | None = None) -> None:
        """One step along the gradients, which are not cleared; no step if ``skip``, a scalar tensor, is 1."""
        for parameters, means, squares, steps, rate, decay in self.groups:
            steps[0].add_(1.0)
            torch._fused_adam_(
                parameters,
                [p.grad for p in parameters],  # type: ignore[misc]  # after a backward pass every gradient is there
                means,
                squares,
                [],
                steps,
                found_inf=skip,
                amsgrad=False,
                beta1=self.config.adam_beta1,
                beta2=self.config.adam_beta2,
                lr=rate,
                weight_decay=decay,
                eps=self.config.adam_eps,
                maximize=False,
            )
            if skip is not None:
                steps[0].sub_(skip)

    def clear(self) -> None:
        """Drop the gradients."""
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None


def parameter_groups(model: Model, config: TrainingConfig) -> list[dict[str, Any]]:
    """Groups of parameters: networks, and the free parameters of masks and embeddings, which may have other rates.

    Frozen parameters, which need no gradient, are in none of them.
    """
    kinds: dict[str, list[Tensor]] = {"mask": [], "embedding": []}
    for latent in model.latents:
        if isinstance(latent, MaskProbability | Mask):
            kinds["mask"].extend(latent.parameters(recurse=False))
        elif isinstance(latent, Embedding | LearnedEmbedding):
            kinds["embedding"].extend(latent.parameters(recurse=False))
    free = {id(p) for group in kinds.values() for p in group}
    networks: list[Tensor] = [p for p in model.parameters() if id(p) not in free]
    decay = config.weight_decay if config.weight_decay_on == "all" else 0.0
    rates = {"mask": config.rate_mask, "embedding": config.rate_embedding}
    every = [(networks, config.learning_rate, config.weight_decay)]
    for kind, parameters in kinds.items():
        rate = rates[kind]
        every.append((parameters, config.learning_rate if rate is None else rate, decay))
    groups = [
        {"params": [p for p in parameters if p.requires_grad], "lr": rate, "weight_decay": weight}
        for parameters, rate, weight in every
    ]
    return [group for group in groups if group["params"]]

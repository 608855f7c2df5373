"""Several runs of one shape as a single stack: the first axis of each weight is the run, and one step trains all runs.

Each run has its own seed, starting weights, batches and buffers (its priors); sizes and training settings are shared.
A step is `torch.func.vmap` of the objective: S matrix products become one batched product, so work that is too small
to fill a GPU grows S times. One Adam updates all runs.
"""

from __future__ import annotations

import copy
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from samsvae.config.training import TrainingConfig
from samsvae.data.cells import Cells
from samsvae.models.model import Model
from samsvae.models.noise import Streams, given
from samsvae.ops.cuda_graphs import Steps, graphs
from samsvae.training.objective import objective
from samsvae.training.optimiser import Adam
from samsvae.training.steps import noise_requests


class Stacked:
    """Runs of several models on the same cells; each run draws the noise that it would draw alone under its seed.

    Row s of every weight, gradient and buffer of ``model`` belongs to run s. A loss that is not finite stops all runs.
    """

    def __init__(self, models: list[Model], seeds: list[int], cells: Cells, config: TrainingConfig):
        self.config, self.device = config, cells.device
        self.streams = [Streams(seed, self.device) for seed in seeds]
        some = cells.batch(torch.arange(config.batch_size, device=self.device))
        self.asked = noise_requests(models[0], some, config.particles)
        self.model = copy.deepcopy(models[0])
        weights, buffers = stack_module_state(models)
        for name, value in weights.items():
            self.model.get_parameter(name).data = value.detach()
        for name, value in buffers.items():
            self.model.get_buffer(name).data = value
        self.optimiser = Adam(self.model, config)
        loss = _Loss(self.model, cells, config)
        state = dict(loss.named_parameters()) | dict(loss.named_buffers())
        self.losses = partial(vmap(lambda state, *given: functional_call(loss, state, given)), state)
        self.bad = torch.zeros((), device=self.device)
        self.advance = Steps(self._step, self, graphs(self.device) if config.capture == "auto" else None)

    @property
    def generators(self) -> dict[str, torch.Generator]:
        """The generators of all runs, for a capture."""
        return {f"{run}/{name}": g for run, own in enumerate(self.streams) for name, g in own.generators.items()}

    def _step(self, at: Tensor) -> Tensor:
        """One step on the cells at the given positions (S, n); returns losses (S,). For one run: `samsvae.training`."""
        noise = {name: torch.stack([own(name, *rest) for own in self.streams]) for name, *rest in self.asked}
        losses = self.losses(at, noise)
        with torch.no_grad():
            torch.maximum(self.bad, (losses - losses).ne(0.0).any(), out=self.bad)
        self.model.zero_grad(set_to_none=True)
        losses.sum().backward()
        if self.config.gradient_clip is not None:
            for run in range(len(at)):
                own = [p.grad[run] for p in self.model.parameters()]
                norm = torch.nn.utils.get_total_norm(own)
                torch._foreach_mul_(own, (self.config.gradient_clip / (norm + 1e-6)).clamp(max=1.0))
        self.optimiser.step(self.bad)
        return losses.detach()


class _Loss(nn.Module):
    """The objective as a module, so that functional_call can pass the weights of a run."""

    def __init__(self, model: Model, cells: Cells, config: TrainingConfig):
        super().__init__()
        self.model, self.cells, self.config = model, cells, config

    def forward(self, at: Tensor, noise: dict[str, Tensor]) -> Tensor:
        batch = self.cells.batch(at)
        # vmap has no rule for explicit gradients and the CPU's likelihood kernel, and torch.compile does not read them
        with patch("torch.compiler.is_compiling", return_value=True):
            draw = self.model.draw(batch, given(noise), self.config.particles)
            return objective(self.model, batch, draw, self.config, n_cells=len(self.cells))[0]

"""The state of a training: everything that the next step depends on, saved so that a training can resume."""

from __future__ import annotations

import copy
import io
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samsvae.config.training import TrainingConfig
from samsvae.data.cells import Cells
from samsvae.errors import CheckpointError, ConfigError, NumericalError
from samsvae.files import atomic
from samsvae.models.model import Model
from samsvae.models.noise import Streams, set_stream_states, stream_states
from samsvae.ops.cpu_negative_binomial import resolve_kernel
from samsvae.ops.cuda_graphs import Steps, graphs
from samsvae.training.checkpoint import HISTORY, read
from samsvae.training.diagnosis import culprit
from samsvae.training.optimiser import Adam
from samsvae.training.steps import training_step
from samsvae.training.validation import validation_loss, validation_step

log = logging.getLogger(__name__)

#: The state of the noise streams is recorded every so many steps, so that a later step can be repeated from there.
NOISE_EVERY = 64

#: The name, among the noise streams of a training, of the generator that dropout draws from.
DROPOUT = "dropout"


def draws_from_torch(model: Model, config: TrainingConfig) -> bool:
    """Whether dropout draws from torch's own generator: compiled networks cannot draw from another."""
    return config.compile and model.config.dropout > 0.0


def torch_generator(device: torch.device) -> torch.Generator:
    """Torch's own generator for a device."""
    if device.type != "cuda":
        return torch.default_generator
    torch.cuda.init()  # there are no generators before
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


@dataclass
class Trained:
    """The result of a training, besides the weights in the model; ``history`` has one row per validation.

    ``best_step``, ``best_loss``: of the best validation, also if the model keeps its last weights. ``kernel``: how the
    likelihood of counts was computed, 'plain' or 'compiled'; None for other likelihoods and on a GPU.
    """

    best_step: int
    best_loss: float
    steps: int
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)
    kernel: str | None = None


class TrainingState:
    """A training in progress: everything that the next step depends on, and the results so far.

    On a GPU, steps are launched one after another, and their losses are read together later. If a loss is not finite,
    the GPU makes no updates from that step on, so that the weights that caused it can still be examined.
    """

    def __init__(
        self, model: Model, config: TrainingConfig, cells: Cells, val_cells: Cells, genes: np.ndarray | None = None
    ):
        self.model, self.config, self.cells, self.device, self.genes = model, config, cells, cells.device, genes
        self.optimiser = Adam(model, config)
        self.noise, self.order = Streams(config.seed, self.device), Streams(config.seed, "cpu").generator("order")
        if draws_from_torch(model, config):
            self.noise.generators[DROPOUT] = torch_generator(self.device).manual_seed(config.seed)
        elif model.config.dropout:
            self.noise.generators[DROPOUT] = torch.Generator(self.device).manual_seed(config.seed)
        if config.compile:
            torch.compiler.reset()  # drops the code compiled for earlier runs, since torch caches only a few functions
        make = graphs(self.device) if config.capture == "auto" else None
        self.reads_at_once = make is None and self.device.type != "cuda"  # whether every loss is read at its step
        self.val_cells, self.val_noise = val_cells, Streams("", self.device)
        self.val_steps = Steps(
            validation_step(model, val_cells, config, self.val_noise, len(cells)), self.val_noise, make
        )
        self.bad = torch.zeros((), device=self.device, dtype=torch.float32)  # 1 after the first loss that is not finite
        self.warmup: Tensor | float = 1.0
        if config.warmup_epochs:
            self.warmup = torch.ones((), dtype=torch.float64, device=self.device)
        step = training_step(model, cells, config, self.optimiser, self.noise, self.bad, self.warmup)
        self.steps = Steps(step, self.noise, make)
        self.unread: list[Tensor] = []  # losses that were not read yet
        self.before: dict[str, Tensor] = {}  # state of the noise before a step at or before the first of them
        self.since: list[Tensor] = []  # positions of the cells for each step from that one on
        self.permutation: Tensor | None = None  # order of the cells in the current epoch; len(losses) batches are done
        self.losses: list[float] = []
        self.step = self.epoch = self.stale = 0
        self.done = False
        self.best: dict[str, Tensor] = {}
        counts = model.config.likelihood == "nb" and self.device.type == "cpu"
        kernel = resolve_kernel(config.kernel) if counts else None
        self.result = Trained(best_step=0, best_loss=math.inf, steps=0, seconds=0.0, kernel=kernel)

    def warm_up(self) -> bool:
        """Set the warm-up weight for the epoch; return whether it is 1."""
        if not isinstance(self.warmup, Tensor):
            return True
        warmup = min(1.0, self.epoch / self.config.warmup_epochs)
        self.warmup.fill_(warmup)
        return warmup == 1.0

    def advance(self, at: Tensor, *counts: Tensor) -> None:
        """Take the next step; on a CPU without graphs its loss is read at once."""
        if not self.since or (len(self.since) >= NOISE_EVERY and not self.unread):
            self.before, self.since = stream_states(self.noise), []
        self.unread.append(self.steps(at, *counts))
        self.since.append(at)
        self.step += 1
        if self.reads_at_once:
            self.read()

    def read(self) -> None:
        """Wait for the steps so far and read their losses; NumericalError for the first one that is not finite."""
        if not self.unread:
            return
        losses = torch.stack(self.unread).tolist()
        for number, loss in enumerate(losses, start=1 - len(losses)):
            if not math.isfinite(loss):
                set_stream_states(self.noise, self.before)
                parts = self.since[: len(self.since) + number]
                step = self.step + number
                cause = culprit(
                    self.model, self.cells, parts, self.config, self.noise, self.genes,
                    warmup=self.warmup, trained=step > 1,
                )  # fmt: skip
                raise NumericalError(f"Step {step}: {cause}")
        self.losses += losses
        self.unread = []

    def validate(self, between: Callable[[], None]) -> float:
        """The validation loss of the current weights, with noise that depends only on the seed and the step."""
        self.val_noise.seed = f"{self.config.seed}/validation/{self.step}"
        set_stream_states(self.val_noise, {})
        return validation_loss(
            self.model, self.val_cells, self.config, self.val_noise,
            n_cells=len(self.cells), between=between, steps=self.val_steps,
        )  # fmt: skip

    def end_epoch(self, loss: float | None = None, *, full: bool = True) -> None:
        """Finish the epoch. ``loss``: its validation loss, if any; ``full``: whether the warm-up weight was 1."""
        mean = sum(self.losses) / len(self.losses)
        self.losses, self.permutation = [], None
        self.epoch += 1
        if loss is None:
            return
        self.result.history.append(dict(zip(HISTORY, (self.step, self.epoch, mean, loss), strict=True)))
        if loss < self.result.best_loss:
            self.result.best_step, self.result.best_loss, self.stale = self.step, loss, 0
            self.best = copy.deepcopy(self.model.state_dict())
        else:
            self.stale += self.config.validation_every if full else 0
            self.done = self.config.patience is not None and self.stale >= self.config.patience
        if self.done:
            log.info("stopped early at step %d: no better validation loss for %d epochs", self.step, self.stale)

    def state(self) -> dict:
        """Everything that `restore` needs, as tensors and plain values."""
        return {
            **{name: getattr(self, name) for name in ("permutation", "losses", "step", "epoch", "stale", "best")},
            "weights": self.model.state_dict(),
            "moments": [tensors for group in self.optimiser.groups for tensors in group[1:4]],
            "noise": stream_states(self.noise),
            "order": self.order.get_state(),
            "result": vars(self.result),
        }

    def restore(self, state: dict) -> None:
        """Continue from a saved `state`."""
        for name in ("permutation", "losses", "step", "epoch", "stale", "best"):
            setattr(self, name, state[name])
        if self.permutation is not None:
            self.permutation = self.permutation.cpu()  # the complete state was read onto the device
        self.model.load_state_dict(state["weights"])
        moments = [tensors for group in self.optimiser.groups for tensors in group[1:4]]
        for tensors, values in zip(moments, state["moments"], strict=True):
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        set_stream_states(self.noise, state["noise"])
        self.order.set_state(state["order"].cpu())
        self.result = Trained(**state["result"])


@dataclass(frozen=True)
class Keep:
    """The file in which a training saves its state, so that it can resume after an interruption.

    ``stamp``: identifies the code, settings and data of the training; a state with another stamp is ignored.
    """

    path: Path
    stamp: str
    every: float = 300.0  # seconds between saves

    def save(self, run: TrainingState) -> None:
        memory = io.BytesIO()
        torch.save({"stamp": self.stamp, **run.state()}, memory)
        with atomic(self.path) as aside:
            aside.write_bytes(memory.getvalue())
        log.info("step %d: state saved in %s", run.step, self.path)

    def load(self, run: TrainingState) -> bool:
        """Restore a saved state and return True; return False if it is missing, damaged or has another stamp.

        ConfigError if it was saved with a kernel that does not work here or that the settings do not allow.
        """
        if not self.path.is_file():
            return False
        try:
            state = read(self.path, run.device)
        except CheckpointError as error:
            log.warning("%s Training from the start.", error)
            return False
        if state.get("stamp") != self.stamp:
            log.info("%s was saved with other code, settings or data; training from the start", self.path)
            return False
        saved, setting = state["result"]["kernel"], run.config.kernel
        if saved not in (run.result.kernel, "plain" if setting == "auto" else None):
            raise ConfigError(
                f"{self.path} was saved with kernel: {saved}, but here kernel: {setting} gives {run.result.kernel}; "
                "continue on a machine and with settings that give the same kernel, or delete the file to train from "
                "the start."
            )
        run.restore(state)
        return True

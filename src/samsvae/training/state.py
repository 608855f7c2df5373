"""A training under way: everything the next step depends on, kept so that an interrupted one can resume."""

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
from samsvae.errors import CheckpointError, NumericalError
from samsvae.files import atomic
from samsvae.models.model import Model
from samsvae.models.noise import Streams, set_stream_states, stream_states
from samsvae.ops.cuda_graphs import Steps, graphs
from samsvae.training.checkpoint import HISTORY, read
from samsvae.training.diagnosis import culprit
from samsvae.training.optimiser import Adam
from samsvae.training.steps import training_step
from samsvae.training.validation import validation_loss, validation_step

log = logging.getLogger(__name__)

#: Steps after which the place of the streams of noise is noted anew, from where a step can be drawn again.
NOISE_EVERY = 64


@dataclass
class Trained:
    """What a training leaves behind: the model holds the best weights; ``history`` one row per validation."""

    best_step: int
    best_loss: float
    steps: int
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)


class TrainingState:
    """A training on its way: all that the next step depends on, and what is known of it so far.

    On a card steps are launched one after another and their losses read together, when somebody asks. A loss that is
    not finite stops all updates from its own step on, on the card, so that the weights behind it are there to be
    looked at when it is found.
    """

    def __init__(
        self, model: Model, config: TrainingConfig, cells: Cells, val_cells: Cells, genes: np.ndarray | None = None
    ):
        self.model, self.config, self.cells, self.device, self.genes = model, config, cells, cells.device, genes
        self.optimiser = Adam(model, config)
        self.noise, self.order = Streams(config.seed, self.device), Streams(config.seed, "cpu").generator("order")
        if config.compile:
            torch.compiler.reset()  # drops what earlier runs of the process compiled, of which it takes a few only
        make = graphs(self.device) if config.capture == "auto" else None
        self.at_once = make is None and self.device.type != "cuda"  # whether a loss is read as soon as it is there
        self.val_cells, self.val_noise = val_cells, Streams("", self.device)
        self.val_steps = Steps(
            validation_step(model, val_cells, config, self.val_noise, len(cells)), self.val_noise, make
        )
        self.bad = torch.zeros((), device=self.device)  # 1 from the first loss on that is not finite
        self.warmup: Tensor | float = 1.0
        if config.warmup_epochs:
            self.warmup = torch.ones((), dtype=torch.float64, device=self.device)
        step = training_step(model, cells, config, self.optimiser, self.noise, self.bad, self.warmup)
        self.steps = Steps(step, self.noise, make)
        self.unread: list[Tensor] = []  # losses since the last reading
        self.before: dict[str, Tensor] = {}  # the noise at some step at or before the first of them
        self.since: list[Tensor] = []  # positions of the cells of each step from that one on
        self.permutation: Tensor | None = None  # of the epoch under way, of which len(losses) batches are done
        self.losses: list[float] = []
        self.step = self.epoch = self.stale = 0
        self.done = False
        self.best: dict[str, Tensor] = {}
        self.result = Trained(best_step=0, best_loss=math.inf, steps=0, seconds=0.0)
        torch.manual_seed(config.seed)  # dropout draws from torch's own generator

    def warm_up(self) -> bool:
        """Set the weight of the terms for the epoch; whether it is the full one."""
        if not isinstance(self.warmup, Tensor):
            return True
        warmup = min(1.0, self.epoch / self.config.warmup_epochs)
        self.warmup.fill_(warmup)
        return warmup == 1.0

    def advance(self, at: Tensor, *counts: Tensor) -> None:
        """The next step; where nothing is won by waiting, it is read at once."""
        if not self.since or (len(self.since) >= NOISE_EVERY and not self.unread):
            self.before, self.since = self._noise(), []
        self.unread.append(self.steps(at, *counts))
        self.since.append(at)
        self.step += 1
        if self.at_once:
            self.read()

    def read(self) -> None:
        """Wait for the steps so far and note their losses; NumericalError at the first that is not finite."""
        if not self.unread:
            return
        losses = torch.stack(self.unread).tolist()
        for number, loss in enumerate(losses, start=1 - len(losses)):
            if not math.isfinite(loss):
                self._set_noise(self.before)
                parts = self.since[: len(self.since) + number]
                what = culprit(self.model, self.cells, parts, self.config, self.noise, self.genes, warmup=self.warmup)
                raise NumericalError(f"Step {self.step + number}: {what}")
        self.losses += losses
        self.unread = []

    def validate(self, between: Callable[[], None]) -> float:
        """The validation loss of the weights as they are, by noise that depends on the step alone."""
        self.val_noise.seed = f"{self.config.seed}/validation/{self.step}"
        set_stream_states(self.val_noise, {})
        return validation_loss(
            self.model, self.val_cells, self.config, self.val_noise,
            n_cells=len(self.cells), between=between, steps=self.val_steps,
        )  # fmt: skip

    def end_epoch(self, loss: float | None = None, *, full: bool = True) -> None:
        """Go on to the next epoch. ``loss``: of a validation; ``full``: terms had their full weight in the epoch."""
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
            log.info("stopped at step %d: no better validation loss for %d epochs", self.step, self.stale)

    def _noise(self) -> dict[str, Tensor]:
        """Where the streams of noise are: those of the latents, and torch's own under the name ``torch``."""
        cuda = self.device.type == "cuda"
        own = torch.cuda.get_rng_state(self.device) if cuda else torch.get_rng_state()
        return stream_states(self.noise) | {"torch": own}

    def _set_noise(self, states: dict[str, Tensor]) -> None:
        set_stream_states(self.noise, {name: state for name, state in states.items() if name != "torch"})
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states["torch"].cpu(), self.device)
        else:
            torch.set_rng_state(states["torch"].cpu())

    def state(self) -> dict:
        """Everything, as tensors and plain values."""
        return {
            **{name: getattr(self, name) for name in ("permutation", "losses", "step", "epoch", "stale", "best")},
            "weights": self.model.state_dict(),
            "moments": [tensors for group in self.optimiser.groups for tensors in group[1:4]],
            "noise": self._noise(),
            "order": self.order.get_state(),
            "result": vars(self.result),
        }

    def restore(self, state: dict) -> None:
        for name in ("permutation", "losses", "step", "epoch", "stale", "best"):
            setattr(self, name, state[name])
        if self.permutation is not None:
            self.permutation = self.permutation.cpu()  # all of a state is read onto the device
        self.model.load_state_dict(state["weights"])
        own = [tensors for group in self.optimiser.groups for tensors in group[1:4]]
        for tensors, kept in zip(own, state["moments"], strict=True):
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)
        self._set_noise(state["noise"])
        self.order.set_state(state["order"].cpu())
        self.result = Trained(**state["result"])


@dataclass(frozen=True)
class Keep:
    """Where the state of a training is kept, every so many seconds, for one that is interrupted to go on from.

    ``stamp`` says what the training depends on: a state of another stamp is not taken.
    """

    path: Path
    stamp: str
    every: float = 300.0

    def save(self, run: TrainingState) -> None:
        memory = io.BytesIO()
        torch.save({"stamp": self.stamp, **run.state()}, memory)
        with atomic(self.path) as aside:
            aside.write_bytes(memory.getvalue())
        log.info("step %d: state kept in %s", run.step, self.path)

    def load(self, run: TrainingState) -> bool:
        """Whether there was a state to go on from; one that is damaged or of another stamp is passed over."""
        if not self.path.is_file():
            return False
        try:
            state = read(self.path, run.device)
        except CheckpointError as error:
            log.warning("%s Training from the start.", error)
            return False
        if state.get("stamp") != self.stamp:
            log.info("%s is of other code, settings or data; training from the start", self.path)
            return False
        run.restore(state)
        return True

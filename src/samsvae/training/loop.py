"""The training loop: batches on the device, validation between epochs, and the weights of the best validation.

The counts stay on the device, and a batch only indexes them; x is never sampled. Equation numbers: docs/model.md.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from samsvae.config.training import TrainingConfig
from samsvae.data.cells import Cells
from samsvae.data.streaming import batches
from samsvae.errors import ConfigError, Interrupted
from samsvae.models.model import Model
from samsvae.models.networks import dropout_from
from samsvae.ops.cpu_negative_binomial import kernel
from samsvae.ops.cuda_graphs import NotCaptured, on_one_stream
from samsvae.ops.device import memory_for
from samsvae.ops.onednn import fast_cpu
from samsvae.ops.precision import precision
from samsvae.ops.triton_trial import try_out
from samsvae.signals import stop_signals
from samsvae.text import span
from samsvae.training.diagnosis import check_inputs
from samsvae.training.state import DROPOUT, Keep, Trained, TrainingState, draws_from_torch

log = logging.getLogger(__name__)


@fast_cpu
def train(
    model: Model,
    train_cells: Cells,
    val_cells: Cells,
    config: TrainingConfig,
    *,
    genes: np.ndarray | None = None,
    keep: Keep | None = None,
    evaluation_mode: bool = False,
    report_every: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Trained:
    """Train a model in place; afterwards it has the weights with the best validation loss, or the last ones
    (``keep_weights: last``). Parameters that need no gradient are frozen.

    The same seed, CPU and number of threads give the same bytes, also if the training was resumed from ``keep``.
    Torch's own generator is neither read nor changed; with ``compile`` and dropout it is used and then set back.
    ``evaluation_mode``: without dropout, and with the running statistics of batch norm, which stay the same.
    ``report_every``: seconds between log lines. ConfigError if the settings do not fit the cells or the model;
    NumericalError if a loss is not finite; Interrupted after a stop signal, once the state is saved in ``keep``.
    """
    check_inputs(model, train_cells, val_cells)
    if config.mask_penalty and model.config.mask != "beta_bernoulli":
        raise ConfigError(f"mask_penalty: needs mask: beta_bernoulli, but the mask is {model.config.mask!r}.")
    if not evaluation_mode:
        _check_batch_norm(model, len(train_cells), config)
    model.train(not evaluation_mode)
    initial = copy.deepcopy(model.state_dict())
    device = train_cells.device
    advice = f"Lower particles ({config.particles}) or batch_size ({config.batch_size}); on a GPU also jobs_per_gpu."
    with (
        memory_for("training", advice),
        torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=draws_from_torch(model, config)),
    ):
        try:
            return _train(model, train_cells, val_cells, config, genes, keep, report_every, clock)
        except NotCaptured as error:
            log.warning("%s Starting again with capture: never, as all later trainings of this process do.", error)
        model.load_state_dict(initial)
        model.train(not evaluation_mode)  # a validation may have been interrupted
        never = replace(config, capture="never")
        return _train(model, train_cells, val_cells, never, genes, keep, report_every, clock)


def _check_batch_norm(model: Model, n: int, config: TrainingConfig) -> None:
    """ConfigError if a model with batch norm would train on a batch of one cell, which has no variance."""
    if not model.config.batch_norm:
        return
    if min(n, config.batch_size) == 1:
        given = "only one training cell" if n == 1 else "batch_size: 1"
        raise ConfigError(f"batch_norm: needs two or more cells per step, but there is {given}.")
    if config.cells_per_epoch(n) % config.batch_size == 1:
        raise ConfigError(
            f"batch_size: {config.batch_size} leaves a last batch of one of the {n} training cells, which is too small "
            "for batch_norm. Choose another batch size, or set last_batch: drop."
        )


def _train(
    model: Model,
    train_cells: Cells,
    val_cells: Cells,
    config: TrainingConfig,
    genes: np.ndarray | None,
    keep: Keep | None,
    report_every: float,
    clock: Callable[[], float],
) -> Trained:
    """The training of ``train``; NotCaptured if its steps cannot be captured."""
    device = train_cells.device
    if device.type == "cuda":
        try_out(device)  # must happen before a step is compiled or captured
    n, size = len(train_cells), min(config.batch_size, len(train_cells))
    used = config.cells_per_epoch(n)
    steps = config.steps if config.epochs is None else config.epochs * math.ceil(used / size)
    run = TrainingState(model, config, train_cells, val_cells, genes)
    if keep is not None and keep.load(run):
        log.info("resumed at step %d of %d", run.step, steps)
    dropout = None if draws_from_torch(model, config) else run.noise.generators.get(DROPOUT)
    with (
        stop_signals() as signals,
        precision(config.precision, device),
        on_one_stream(device),
        dropout_from(model, dropout),
        kernel(run.result.kernel or config.kernel),
    ):
        monitor = _Monitor(run, steps, signals, keep, report_every, clock)
        while (run.step < steps or run.permutation is not None) and not run.done:
            full = run.warm_up()
            if run.permutation is None:
                run.permutation = torch.randperm(n, generator=run.order)
            for inputs in batches(train_cells, run.permutation[:used], size, start=len(run.losses)):
                if run.step == steps:
                    break
                run.advance(*inputs)
                monitor.after_step()
            run.read()
            if (run.epoch + 1) % config.validation_every and run.step < steps:
                run.end_epoch()
                continue
            loss = run.validate(between=monitor.stop_after_signal)
            run.end_epoch(loss, full=full)
    if config.keep_weights == "best":
        model.load_state_dict(run.best)
    model.zero_grad(set_to_none=True)
    model.eval()
    monitor.finish()
    return run.result


class _Monitor:
    """Acts between the steps of a training: logs progress, saves the state and stops after a signal."""

    def __init__(
        self,
        run: TrainingState,
        steps: int,
        signals: list[str],  # names of the stop signals received so far
        keep: Keep | None,
        report_every: float,
        clock: Callable[[], float],
    ):
        self.run, self.steps, self.signals = run, steps, signals
        self.keep, self.report_every, self.clock = keep, report_every, clock
        self.start = self.reported = self.saved = clock()
        self.earlier_seconds, self.first_step = run.result.seconds, run.step

    def stop_after_signal(self) -> None:
        """Save the state and raise Interrupted if a stop signal was received."""
        if not self.signals:
            return
        self.run.read()
        if self.keep is not None:
            self._save(self.keep, self.clock())
        message = f"stopped by {self.signals[0]} at step {self.run.step} of {self.steps}"
        raise Interrupted(message, saved=self.keep is not None)

    def after_step(self) -> None:
        """Stop after a signal; log progress and save the state when it is time."""
        self.stop_after_signal()
        now = self.clock()
        if now - self.reported >= self.report_every:
            self.reported = now
            self.run.read()
            log_progress(self.run, self.steps, self._speed(now))
        if self.keep is not None and now - self.saved >= self.keep.every:
            self.saved = now
            self.run.read()
            self._save(self.keep, now)

    def finish(self) -> None:
        """Record the number of steps and the seconds, and log the end."""
        self.run.result.steps = self.run.step
        self.run.result.seconds = self.earlier_seconds + self.clock() - self.start
        log_progress(self.run, self.run.step, self._speed(self.clock()))

    def _save(self, keep: Keep, now: float) -> None:
        self.run.result.seconds = self.earlier_seconds + now - self.start
        keep.save(self.run)

    def _speed(self, now: float) -> float:
        """Steps per second since the start or the resumption."""
        return (self.run.step - self.first_step) / max(now - self.start, 1e-9)


def log_progress(run: TrainingState, steps: int, speed: float) -> None:
    """Log the step, the losses and the time left; ``samsvae.study.progress`` reads this line."""
    left = span((steps - run.step) / max(speed, 1e-9))
    loss = run.losses[-1] if run.losses else run.result.history[-1]["train_loss"]
    result = run.result
    best = f"best validation loss {result.best_loss:.3f} at step {result.best_step}  " if result.history else ""
    log.info("step %d/%d  %.1f steps/s  loss %.3f  %stime left %s", run.step, steps, speed, loss, best, left)

"""One training loop: device-resident batches, validation every epoch, the weights of the best validation kept.

The counts stay on the device and batches are index reads; x is never sampled. Equation numbers: docs/model.md.
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
from samsvae.ops.cuda_graphs import NotCaptured, on_one_stream
from samsvae.ops.onednn import fast_cpu
from samsvae.ops.precision import precision
from samsvae.signals import stop_signals
from samsvae.text import span
from samsvae.training.diagnosis import check_inputs
from samsvae.training.state import Keep, Trained, TrainingState

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
    report_every: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Trained:
    """Train a model in place and leave it with the weights of the best validation loss.

    The same seed on the same CPU and thread count gives the same bytes, in one go or resumed from ``keep``.
    NumericalError where a loss is not finite; Interrupted after a signal, when the state is kept.
    """
    check_inputs(model, train_cells, val_cells)
    if config.mask_penalty and model.config.mask != "beta_bernoulli":
        raise ConfigError(f"mask_penalty: needs mask: beta_bernoulli; the mask here is {model.config.mask!r}.")
    if model.config.batch_norm and len(train_cells) % config.batch_size == 1:
        raise ConfigError(
            f"batch_size: {config.batch_size} leaves a last batch of one of the {len(train_cells)} training cells, "
            "which batch_norm cannot read; take another."
        )
    beginning = copy.deepcopy(model.state_dict())
    try:
        return _train(model, train_cells, val_cells, config, genes, keep, report_every, clock)
    except NotCaptured as error:
        log.warning("%s Beginning anew without (capture: never), which is slower and gives the same.", error)
    model.load_state_dict(beginning)
    never = replace(config, capture="never")
    return _train(model, train_cells, val_cells, never, genes, keep, report_every, clock)


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
    """The training of ``train``; NotCaptured where its steps should be captured and cannot be."""
    device = train_cells.device
    if device.type == "cuda":
        from samsvae.ops.softmax_nb import try_out

        try_out(device)  # before a step is compiled or captured
    n, size = len(train_cells), min(config.batch_size, len(train_cells))
    steps = config.steps if config.epochs is None else config.epochs * math.ceil(n / size)
    run = TrainingState(model, config, train_cells, val_cells, genes)
    if keep is not None and keep.load(run):
        log.info("resumed at step %d of %d", run.step, steps)
    result, start = run.result, clock()
    told = saved = start
    before, first = result.seconds, run.step

    def leave_if_asked() -> None:
        """Between two batches: end here where a signal came."""
        if stopped:
            run.read()
            if keep is not None:
                result.seconds = before + clock() - start
                keep.save(run)
            raise Interrupted(f"stopped by {stopped[0]} at step {run.step} of {steps}", kept=keep is not None)

    model.train()
    with stop_signals() as stopped, precision(config.precision, device), on_one_stream(device):
        while (run.step < steps or run.permutation is not None) and not run.done:
            full = run.warm_up()
            if run.permutation is None:
                run.permutation = torch.randperm(n, generator=run.order)
            for inputs in batches(train_cells, run.permutation, size, start=len(run.losses)):
                if run.step == steps:
                    break
                run.advance(*inputs)
                leave_if_asked()
                now = clock()
                if now - told >= report_every:
                    told = now
                    run.read()
                    _tell(run, steps, (run.step - first) / max(now - start, 1e-9))
                if keep is not None and now - saved >= keep.every:
                    run.read()
                    result.seconds, saved = before + now - start, now
                    keep.save(run)
            run.read()
            if (run.epoch + 1) % config.validation_every and run.step < steps:
                run.end_epoch()
                continue
            loss = run.validate(between=leave_if_asked)
            run.end_epoch(loss, full=full)
    model.load_state_dict(run.best)
    model.zero_grad(set_to_none=True)
    model.eval()
    result.steps, result.seconds = run.step, before + clock() - start
    _tell(run, run.step, (run.step - first) / max(clock() - start, 1e-9))
    return result


def _tell(run: TrainingState, steps: int, speed: float) -> None:
    left = span((steps - run.step) / max(speed, 1e-9))
    loss = run.losses[-1] if run.losses else run.result.history[-1]["train_loss"]
    log.info(
        "step %d/%d  %.1f steps/s  loss %.3f  best validation loss %.3f at step %d  time left %s",
        run.step, steps, speed, loss, run.result.best_loss, run.result.best_step, left,
    )  # fmt: skip

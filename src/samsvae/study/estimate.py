"""Estimate the time of a study before it runs, by timing steps and scores of every model shape on this machine.

For each shape a step, a validation and the scores are timed once on synthetic counts. The rates are cached in
RESULTS/.rates.json, and the estimated time of every training is written for the last line of the study
(`study.times`). The actual time of finished runs is shown as well, and corrects the estimate for the remaining runs of
their experiment.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samsvae.config.evaluation import EvaluationConfig
from samsvae.config.grid import Run, run_settings, runs
from samsvae.config.study import Study
from samsvae.config.training import TrainingConfig
from samsvae.config.transfer import TransferConfig
from samsvae.data.arrays import Screen
from samsvae.data.cells import Cells, cells_of, encode
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.evaluation.model_effects import condition_means
from samsvae.files import write_json
from samsvae.models.model import Model
from samsvae.models.noise import Streams
from samsvae.ops.cpu_negative_binomial import kernel
from samsvae.ops.cuda_graphs import WARM, Steps, graphs, on_one_stream
from samsvae.ops.precision import precision
from samsvae.study.progress import aligned
from samsvae.study.records import cpu_model
from samsvae.study.sizes import Size, size_of
from samsvae.study.times import ESTIMATES, read_estimates, seconds_of, training_key
from samsvae.text import span
from samsvae.training.adapt_rows import CELLS as GRADIENT_CELLS
from samsvae.training.adapt_rows import PARTICLES as GRADIENT_PARTICLES
from samsvae.training.loop import train
from samsvae.training.transfer import EPOCHS, GRADIENT, default_way
from samsvae.training.validation import validation_loss, validation_step

#: Settings of a model that change its numbers but not its work.
PRIORS = ("mask_prior", "embedding_scale", "beta_a", "beta_b", "temperature", "mask_logit_init", "embedding_init")

#: Settings of a training that change the work of a step.
WORK: tuple[str, ...] = ("batch_size", "particles", "validation_particles", "objective", "analytic_kl")

WORK += ("precision", "kernel", "capture", "compile")

Rate = dict[str, float]


def work_of(run: Run, size: Size) -> tuple[int, int]:
    """Steps of a training and number of cells that its validations read. Patience may end it earlier."""
    return _work(run.training, size)


def _work(training: TrainingConfig, size: Size) -> tuple[int, int]:
    epoch = math.ceil(training.cells_per_epoch(size.train) / training.batch_size)
    steps = training.steps if training.epochs is None else training.epochs * epoch
    validations = math.ceil(math.ceil(steps / epoch) / training.validation_every)  # the last epoch always has one
    return steps, validations * size.val


def seconds_of_transfer(run: Run, size: Size, how: TransferConfig, rate: Rate, evaluation: EvaluationConfig) -> float:
    """Seconds that the second trainings, the adaptation and the scores of new perturbations take.

    Half of the new cells are scored, all of them as released. Adapting by gradient takes steps of at most 512 cells.
    """
    refits = how.refits_of(run.row, run.split_config.new_cells)
    epochs = run.training.epochs if how.stage2_epochs is None else how.stage2_epochs
    steps, validated = _work(dataclasses.replace(run.training, epochs=epochs), size)
    again = len(refits) * (steps * rate["step"] + validated * rate["validation"])
    numbers = len([number for number in how.cells if number != 0])
    stages = 1 + bool(refits or not run.split_config.new_cells)  # without a second stage, the start of the third
    if run.split_config.new_cells or run.model.effect == "none":  # nothing is adapted
        passes, adapting = stages / 2, 0.0
    elif default_way(run.model) != GRADIENT:
        passes, adapting = (stages + numbers * len(how.adapt)) / 2, 0.0
    else:
        share = GRADIENT_CELLS * GRADIENT_PARTICLES / (run.training.batch_size * run.training.particles)
        passes, adapting = (stages + numbers) / 2, numbers * how.adapt_steps * share * rate["step"]
    if "as_released" in refits:
        batches = math.ceil(size.new_cells / run.training.batch_size)
        adapting += (run.training.epochs or EPOCHS) * batches * rate["step"] * (run.model.effect != "none")
        passes += 4
    cell = rate["cell"] * how.particles / evaluation.iwelbo_particles
    return again + adapting + passes * (size.new_cells * cell + 2 * size.new * rate["condition"])


def shape_of(run: Run, size: Size, evaluation: EvaluationConfig) -> dict[str, Any]:
    """Everything that the rate of a run depends on, except the machine."""
    model = {name: value for name, value in dataclasses.asdict(run.model).items() if name not in PRIORS}
    perturbations = size.perturbations if run.encoding == "sum" else size.conditions
    return {
        "genes": size.genes,
        "perturbations": perturbations,
        "model": model,
        "training": {name: getattr(run.training, name) for name in WORK},
        "evaluation": [evaluation.iwelbo_particles, evaluation.ate_samples, evaluation.ate_closed_form],
    }


class _Timer:
    """Measures seconds of work by a clock: wall time on a GPU, process time on a CPU, which other processes share."""

    def __init__(self, on_gpu: bool, clock: Callable[[], float] | None):
        self.clock = clock or (time.perf_counter if on_gpu else time.process_time)

    def __call__(self, work: Callable[[], object]) -> float:
        start = self.clock()
        work()
        return self.clock() - start


def measure(
    run: Run, shape: dict[str, Any], device: str, *, steps: int = 4, clock: Callable[[], float] | None = None
) -> Rate:
    """Seconds for a step, for the validation and the IWELBO of a cell, and for the effect of a condition.

    Measured on synthetic counts of this shape. Everything runs once before it is timed. Steps and validations are
    medians of three.
    """
    seconds = _Timer(device == "cuda", clock)
    screen = _synthetic_screen(run, shape["genes"], shape["perturbations"])
    n, dosage = len(screen.cells), encode(screen, "sum")
    cells = cells_of(screen, np.arange(n), dosage, device)
    few = cells_of(screen, np.arange(min(n, 32)), dosage, device)
    model = Model(run.model, shape["genes"], shape["perturbations"]).to(device)
    step = _seconds_of_step(run, model, cells, few, steps, seconds)
    validation = _seconds_of_validation(run, model, cells, seconds)
    model.eval()

    particles, samples, closed = shape["evaluation"]
    k, s = min(particles, 64), min(samples, 1000)
    iwelbo(model, few, particles=2)
    bound = seconds(lambda: iwelbo(model, few, particles=k)) / len(few) * particles / k
    real = _has_real_values(run)
    if not real:  # give genes different means, as in a screen: the time to draw a count depends on its mean
        own = torch.Generator(device).manual_seed(0)  # the caller's generator is left alone
        torch.nn.init.normal_(model.likelihood.mean.bias, 0.0, 2.0, generator=own)
    transform = "mean" if real else "log2"
    means = partial(condition_means, model, dosage.members[:1], closed_form=closed, transform=transform)
    means(samples=2)
    effect = seconds(lambda: means(samples=s)) * samples / s
    return {"step": max(step, 0.0), "validation": validation, "cell": bound, "condition": effect}


def _has_real_values(run: Run) -> bool:
    """Whether the data of a run are real numbers, as in simulations with a normal likelihood, and not counts."""
    return run.model.likelihood in ("normal", "normal_fixed")


def _synthetic_screen(run: Run, genes: int, perturbations: int) -> Screen:
    """Random data with at least as many cells as a validation reads at a time, in full batches."""
    n = run.training.batch_size * max(2, math.ceil(512 / run.training.batch_size))
    rng = np.random.default_rng(0)
    names = np.array([f"p{t}" for t in range(perturbations)])
    if _has_real_values(run):
        counts = rng.normal(size=(n, genes)).astype(np.float32)
    else:
        counts = rng.poisson(2.0, (n, genes)).astype(np.int16)
    return Screen(
        counts=counts,
        library=np.full(n, 2.0 * genes, np.float32),
        cells=np.arange(n).astype(str),
        genes=np.arange(genes).astype(str),
        condition=(np.arange(n) % perturbations).astype(np.int32),
        conditions=names,
        members=np.arange(perturbations, dtype=np.int32)[:, None],
        perturbations=names,
    )


def _seconds_of_step(run: Run, model: Model, cells: Cells, few: Cells, steps: int, seconds: _Timer) -> float:
    """Seconds of a training step: a longer minus a shorter training, divided by the difference of their steps."""

    def trained(number: int) -> float:
        training = dataclasses.replace(run.training, steps=number, epochs=None, validation_every=10**9)
        return seconds(lambda: train(model, cells, few, training))

    # on a GPU the first steps and their capture are not typical, and many more steps fit into the same time
    least, more = (1 + WARM, 50 * steps) if cells.device.type == "cuda" else (1, steps)

    def difference() -> float:
        first = trained(least)
        return trained(least + more) - first

    train(model, cells, few, dataclasses.replace(run.training, steps=1, epochs=None))
    return statistics.median([difference() for _ in range(3)]) / more


def _seconds_of_validation(run: Run, model: Model, cells: Cells, seconds: _Timer) -> float:
    """Seconds that the validation of one cell takes."""
    n = len(cells)
    make = graphs(cells.device) if run.training.capture == "auto" else None
    noise = Streams("validation", cells.device)
    captured = Steps(validation_step(model, cells, run.training, noise, n), noise, make)
    validate = partial(validation_loss, model, cells, run.training, noise, n_cells=n, steps=captured)
    with precision(run.training.precision, cells.device), kernel(run.training.kernel), on_one_stream(cells.device):
        for _ in range(1 + WARM if cells.device.type == "cuda" else 1):
            validate()
        return statistics.median([seconds(validate) for _ in range(3)]) / n


def machine(device: str) -> str:
    """The machine that a rate was measured on: GPU or CPU, threads and torch version."""
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_model()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


@dataclass(frozen=True)
class Estimate:
    """Times of an experiment in seconds.

    ``trainings``, and how many are ``done``; ``steps`` of all trainings; estimated ``training`` and ``scoring`` time
    of all runs; estimated and actual training time of the done runs (``done_estimated``, ``done_actual``);
    estimated time of ``transfer``, with its further trainings.
    """

    experiment: str
    trainings: int
    done: int
    steps: int
    training: float
    scoring: float
    done_estimated: float
    done_actual: float
    transfer: float = 0.0

    @property
    def left(self) -> float:
        """Seconds left, scaled by actual over estimated time of the runs that are done."""
        factor = self.done_actual / self.done_estimated if self.done_estimated and self.done_actual else 1.0
        share = 1.0 - self.done_estimated / self.training if self.training else 0.0
        return share * ((self.training + self.transfer) * factor + self.scoring)


def estimate(
    study: Study, *, device: str, rate: Callable[[Run, dict[str, Any], str], Rate] = measure
) -> tuple[list[Estimate], list[str]]:
    """An estimate per experiment, and the names of the experiments whose data or splits have no known size yet."""
    results = Path(study.pathvars.folder("results"))
    cache = results / ".rates.json"
    try:
        rates: dict[str, Rate] = json.loads(cache.read_text())
    except (OSError, ValueError):
        rates = {}

    def rate_of(run: Run, shape: dict[str, Any]) -> Rate:
        key = json.dumps({"machine": machine(device), **shape}, sort_keys=True)
        if key not in rates:
            rates[key] = rate(run, shape, device)
            write_json(rates, cache)
        return rates[key]

    estimates, unknown = [], []
    of_runs = read_estimates(results)
    for name in study.experiments:
        trained = [run for run in runs(study, name) if run.checkpoint is None]
        splits = {(run.dataset, run.split): run for run in trained}
        sizes = {key: size for key, run in splits.items() if (size := size_of(run, results)) is not None}
        if len(sizes) < len(splits):
            unknown.append(name)
            continue
        steps, done = 0, 0
        training = scoring = done_estimated = done_actual = transferring = 0.0
        evaluation, transfer = study.settings[name].evaluation, study.settings[name].transfer
        for run in trained:
            size = sizes[run.dataset, run.split]
            own = rate_of(run, shape_of(run, size, evaluation))
            number, validated = work_of(run, size)
            needed = number * own["step"] + validated * own["validation"]
            steps += number
            training += needed
            of_runs[training_key(name, run_settings(run))] = needed
            sample = min(size.test, evaluation.bound_cells) * evaluation.bound_particles / evaluation.iwelbo_particles
            scoring += (size.val + size.test + sample) * own["cell"] + size.conditions * own["condition"]
            if transfer:
                transferring += seconds_of_transfer(run, size, transfer, own, evaluation)
            took = seconds_of(results / name / "runs" / run.id / "run.json", run_settings(run))
            if took is not None:
                done, done_estimated, done_actual = done + 1, done_estimated + needed, done_actual + took
        times = (training, scoring, done_estimated, done_actual, transferring)
        estimates.append(Estimate(name, len(trained), done, steps, *times))
    if of_runs:
        write_json(of_runs, results / ESTIMATES)
    return estimates, unknown


def estimate_report(estimates: Sequence[Estimate], unknown: Sequence[str], *, device: str, jobs: int) -> str:
    """A table of times (H:MM:SS) by experiment, and the time left for the study with ``jobs`` trainings at a time."""
    columns = ("training", "scoring", "transfer", "done: estimated", "done: actual")
    rows: list[tuple[str, ...]] = [("experiment", "trainings", "done", "ms/step", *columns)]
    for x in estimates:
        times = map(span, (x.training, x.scoring, x.transfer, x.done_estimated, x.done_actual))
        rows.append((x.experiment, str(x.trainings), str(x.done), f"{1e3 * x.training / max(x.steps, 1):.1f}", *times))
    lines = aligned(rows)
    lines += [f"{name}: unknown until its data and splits exist" for name in unknown]
    if not estimates:
        return "\n".join([*lines, "time left: unknown"])
    left = sum(x.left for x in estimates)
    together = f"; {span(left / jobs)} with {jobs}" if jobs > 1 else ""
    some = ", the unknown experiments not included" if unknown else ""
    lines.append(f"time left: {span(left)} with 1 training at a time{together}{some}")
    lines.append(f"({machine(device)}; without downloads, figures and the slowdown of jobs that share a machine)")
    return "\n".join(lines)


def study_estimate(study: Study, jobs: int) -> str:
    """The estimate report of a study, measured on the device that its configuration asks for."""
    device = "cuda" if study.device != "cpu" and torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)  # as in the trainings of the workflow
    estimates, unknown = estimate(study, device=device)
    return estimate_report(estimates, unknown, device=device, jobs=jobs)

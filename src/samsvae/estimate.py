"""How long a study will take, before it is run: steps and scores of every shape of model tried on this machine.

    python -m samsvae.progress --estimate --configfile config/core.yaml

A step and the scores of each shape are timed once on made counts and kept in RESULTS/.rates.json. What finished runs
took in truth stands beside, and corrects what is said of the rest of their experiment.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from samsvae.config import EvaluationConfig, Run, Study, runs
from samsvae.data.batch import Screen, cells_of, encode
from samsvae.effects import condition_means
from samsvae.files import write_json
from samsvae.model import Model
from samsvae.scoring import iwelbo
from samsvae.training import train

#: Settings of a model that change numbers, not the work.
PRIORS = ("mask_prior", "embedding_scale", "beta_a", "beta_b", "temperature", "mask_logit_init", "embedding_init")

#: Settings of a training that change the work of a step.
WORK = ("batch_size", "particles", "objective", "analytic_kl")

Rate = dict[str, float]


@dataclass(frozen=True)
class Size:
    """Of a screen: n cells, G genes, C conditions and T perturbations of the sum encoding."""

    cells: int
    genes: int
    conditions: int
    perturbations: int


def size_of(run: Run, results: Path) -> Size | None:
    """The size of a run's screen: of its arrays if they are there, else as published or asked for; None: not known."""
    try:
        with np.load(results / "data" / run.dataset / "arrays.npz", allow_pickle=False) as file:
            names = ("library", "genes", "conditions", "perturbations")
            return Size(*(len(file[name]) for name in names))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pass
    options, source = run.screen.options, run.screen.source
    if source is not None and source.sort == "miniature":
        return None
    if run.screen.kind == "replogle":
        return Size(118_641, 1187, 681, 680) if options.published_counts else None
    if run.screen.kind == "norman":
        return Size(105_528, 5000, 237, 105)
    if run.screen.kind.startswith("simulate"):
        each = options.cells + options.val_cells + options.test_cells
        return Size(
            each * options.n_perturbations, options.n_features, options.n_perturbations, options.n_perturbations
        )
    return None


def steps_of(run: Run, size: Size) -> int:
    """Steps of a training, at most: patience may end it before."""
    training, split = run.training, run.split_config
    if training.epochs is None:
        return training.steps
    share = (1 - split.test_fraction) * (1 - split.val_fraction) if split.kind == "random" else 1.0
    return training.epochs * math.ceil(round(share * size.cells) / training.batch_size)


def shape_of(run: Run, size: Size, evaluation: EvaluationConfig) -> dict:
    """All that the rate of a run depends on, but for the machine."""
    model = {name: value for name, value in dataclasses.asdict(run.model).items() if name not in PRIORS}
    perturbations = size.perturbations if run.encoding == "sum" else size.conditions
    return {
        "genes": size.genes,
        "perturbations": perturbations,
        "model": model,
        "training": {name: getattr(run.training, name) for name in WORK},
        "evaluation": [evaluation.iwelbo_particles, evaluation.ate_samples, evaluation.ate_closed_form],
    }


def measure(run: Run, shape: dict, device: str, *, steps: int = 4, clock: Callable[[], float] | None = None) -> Rate:
    """Seconds of a step, of the bound of a cell and of the effect of a condition, on made counts of this shape.

    Of process time on the CPU, where other work would count otherwise.
    """
    clock = clock or (time.perf_counter if device == "cuda" else time.process_time)
    genes, perturbations = shape["genes"], shape["perturbations"]
    n = 2 * run.training.batch_size
    rng = np.random.default_rng(0)
    names = np.array([f"p{t}" for t in range(perturbations)])
    real = run.model.likelihood in ("normal", "normal_fixed")
    counts = rng.normal(size=(n, genes)).astype(np.float32) if real else rng.poisson(2.0, (n, genes)).astype(np.int16)
    screen = Screen(
        counts=counts,
        library=np.full(n, 2.0 * genes, np.float32),
        cells=np.arange(n).astype(str),
        genes=np.arange(genes).astype(str),
        condition=(np.arange(n) % perturbations).astype(np.int32),
        conditions=names,
        members=np.arange(perturbations, dtype=np.int32)[:, None],
        perturbations=names,
    )
    dosage = encode(screen, "sum")
    cells = cells_of(screen, np.arange(n), dosage, device)
    few = cells_of(screen, np.arange(min(n, 32)), dosage, device)
    model = Model(run.model, genes, perturbations).to(device)

    def trained(number: int) -> float:
        training = dataclasses.replace(run.training, steps=number, epochs=None, validation_every=10**9)
        start = clock()
        train(model, cells, few, training)
        return clock() - start

    def scored(work: Callable[[], object]) -> float:
        start = clock()
        work()
        return clock() - start

    trained(1)
    first = trained(1)
    step = (trained(1 + steps) - first) / steps
    particles, samples, closed = shape["evaluation"]
    k, s = min(particles, 64), min(samples, 1000)
    scored(lambda: iwelbo(model, few, particles=2))
    bound = scored(lambda: iwelbo(model, few, particles=k)) / len(few) * particles / k
    chosen = dosage.members[:1]
    effect = (
        scored(lambda: condition_means(model, chosen, samples=s, closed_form=closed, transform="mean")) * samples / s
    )
    return {"step": max(step, 0.0), "cell": bound, "condition": effect}


def machine(device: str) -> str:
    """What a rate was measured on."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


@dataclass(frozen=True)
class Line:
    """An experiment: its trainings and those done, seconds foreseen of all and of those done, and what these took."""

    experiment: str
    trainings: int
    done: int
    steps: int
    training: float
    scoring: float
    foreseen: float
    actual: float

    @property
    def left(self) -> float:
        """Seconds of what is to be done, as much off as what is done was."""
        factor = self.actual / self.foreseen if self.foreseen and self.actual else 1.0
        share = 1.0 - self.foreseen / self.training if self.training else 0.0
        return share * (self.training * factor + self.scoring)


def estimate(
    study: Study, *, device: str, rate: Callable[[Run, dict, str], Rate] = measure
) -> tuple[list[Line], list[str]]:
    """A line per experiment, and the names of those whose data have no known size yet."""
    results = Path(study.pathvars.get("results", "results"))
    kept = results / ".rates.json"
    try:
        rates: dict[str, Rate] = json.loads(kept.read_text())
    except (OSError, ValueError):
        rates = {}
    lines, unknown = [], []
    for name in study.experiments:
        trained = [run for run in runs(study, name) if run.checkpoint is None]
        sizes = {run.dataset: size_of(run, results) for run in trained}
        if None in sizes.values():
            unknown.append(name)
            continue
        steps, done = 0, 0
        training = scoring = foreseen = actual = 0.0
        for run in trained:
            size, evaluation = sizes[run.dataset], study.settings[name].evaluation
            shape = shape_of(run, size, evaluation)
            key = json.dumps({"machine": machine(device), **shape}, sort_keys=True)
            if key not in rates:
                rates[key] = rate(run, shape, device)
                write_json(rates, kept)
            own, number = rates[key], steps_of(run, size)
            split = run.split_config
            held_out = 1 - (1 - split.test_fraction) * (1 - split.val_fraction)
            steps += number
            training += number * own["step"]
            scoring += held_out * size.cells * own["cell"] + size.conditions * own["condition"]
            took = _seconds(results / name / "runs" / run.id / "run.json")
            if took is not None:
                done, foreseen, actual = done + 1, foreseen + number * own["step"], actual + took
        lines.append(Line(name, len(trained), done, steps, training, scoring, foreseen, actual))
    return lines, unknown


def _seconds(record: Path) -> float | None:
    try:
        return float(json.loads(record.read_text())["seconds"])
    except (OSError, ValueError, KeyError):
        return None


def report(lines: Sequence[Line], unknown: Sequence[str], *, device: str, jobs: int) -> str:
    """A table in hours, and the whole with so many trainings at a time."""
    rows = [("experiment", "trainings", "done", "ms a step", "training h", "scoring h", "done: foreseen", "actual h")]
    for x in lines:
        hours = (x.training, x.scoring, x.foreseen, x.actual)
        step = 1e3 * x.training / max(x.steps, 1)
        rows.append((x.experiment, str(x.trainings), str(x.done), f"{step:.1f}", *(f"{h / 3600:.2f}" for h in hours)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    out = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    out += [f"{name}: not known before its data are there" for name in unknown]
    left = sum(x.left for x in lines)
    out.append(f"left: {left / 3600:.1f} h one after the other; {left / 3600 / jobs:.1f} h with {jobs} at a time")
    out.append(f"({machine(device)}; downloads, figures and what jobs that share a machine lose to each other aside)")
    return "\n".join(out)


def told(study: Study, jobs: int) -> str:
    """The estimate of a study on the device that its configuration asks for."""
    device = "cuda" if study.device != "cpu" and torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)  # as the workflow's trainings
    lines, unknown = estimate(study, device=device)
    return report(lines, unknown, device=device, jobs=jobs)

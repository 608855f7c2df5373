"""How long a study will take, before it is run: steps and scores of every shape of model tried on this machine.

    python -m samsvae.study.progress --estimate --configfile config/core.yaml

A step, a validation and the scores of each shape are timed once on made counts and kept in RESULTS/.rates.json. What
finished runs took in truth stands beside, and corrects what is said of the rest of their experiment.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from samsvae.config.evaluation import EvaluationConfig
from samsvae.config.grid import Run, run_settings, runs
from samsvae.config.study import Study
from samsvae.config.vocabulary import SPLITS
from samsvae.data.arrays import Screen
from samsvae.data.cells import cells_of, encode
from samsvae.errors import ConfigError, DataError
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.evaluation.model_effects import condition_means
from samsvae.files import write_json
from samsvae.models.model import Model
from samsvae.models.noise import Streams
from samsvae.ops.cuda_graphs import WARM, Steps, graphs, on_one_stream
from samsvae.ops.precision import precision
from samsvae.screens.splits import make_split, summary
from samsvae.study.records import cpu_model, seconds_of
from samsvae.text import span
from samsvae.training.loop import train
from samsvae.training.validation import validation_loss, validation_step

#: Settings of a model that change numbers, not the work.
PRIORS = ("mask_prior", "embedding_scale", "beta_a", "beta_b", "temperature", "mask_logit_init", "embedding_init")

#: Settings of a training that change the work of a step.
WORK = ("batch_size", "particles", "validation_particles", "objective", "analytic_kl")

WORK += ("precision", "capture", "compile")

#: Cells of the Norman screen as published, and how many of them are foreseen to have one of its 131 pairs: that number
#: is no published one, and the files, once they are there, stand in its place.
NORMAN, PAIRS = 111_255, 41_759

Rate = dict[str, float]


@dataclass(frozen=True)
class Size:
    """Of a screen and its split: train, val and test cells, G genes, C conditions, T perturbations (sum encoding)."""

    train: int
    val: int
    test: int
    genes: int
    conditions: int
    perturbations: int


def size_of(run: Run, results: Path) -> Size | None:
    """The size of a run's screen and split: of its files if they are there, else as published or asked for.

    A split that is not there yet is made of the cells that are known. None: not known.
    """
    found = None
    if not run.screen.kind.startswith("simulate"):  # whose options say all, the split too
        found = _there(results / "data" / run.dataset / "arrays.npz")
    found = found or _foreseen(run)
    if found is None:
        return None
    obs, *sizes = found
    table = results / run.experiment / "splits" / run.dataset / run.split / "summary.tsv"
    try:
        cells = pd.read_csv(table, sep="\t", index_col="split")["cells"]
    except (OSError, ValueError, KeyError):
        separator = "+" if run.screen.kind == "norman" else getattr(run.screen.options, "separator", "")
        try:
            cells = summary(make_split(obs, separator=separator, **vars(run.split_config))).set_index("split")["cells"]
        except (ConfigError, DataError):  # it names conditions or cells that are not known before the screen is there
            return None
    return Size(*(int(cells[name]) for name in SPLITS), *sizes)


Known = tuple[pd.DataFrame, int, int, int]  # obs as splits read it, G, C, T


def _there(arrays: Path) -> Known | None:
    try:
        with np.load(arrays, allow_pickle=False) as file:
            names, members, code = file["conditions"], file["members"], file["condition"]
            obs = _obs(names[code], (members >= 0).sum(1)[code], index=file["cells"])
            return obs, len(file["genes"]), len(names), len(file["perturbations"])
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile):
        return None


def _foreseen(run: Run) -> Known | None:
    options, source = run.screen.options, run.screen.source
    if run.screen.kind.startswith("simulate"):
        T, each = options.n_perturbations, (options.cells, options.val_cells, options.test_cells)
        controls, out = getattr(options, "n_controls", 0), getattr(options, "n_held_out", 0)
        code = np.repeat(np.arange(T), sum(each))
        split = np.tile(np.repeat(SPLITS, each), T).astype(object)
        split[code >= T - out] = "none"
        ends = np.cumsum(each[:2]) * controls // sum(each)
        split = np.append(split, np.repeat(SPLITS, np.diff([0, *ends, controls])))
        code = np.append(code, np.full(controls, T))
        return _obs(code, code < T, split=split), options.n_features, T + (controls > 0), T
    if source.sort == "miniature":
        return None
    if run.screen.kind == "replogle" and options.published_counts:
        return _obs(np.arange(118_641) % 681, 1), 1187, 681, 680
    if run.screen.kind == "norman":
        others = NORMAN - PAIRS
        code = np.append(np.arange(others) % 106, 106 + np.arange(PAIRS) % 131)
        return _obs(code, np.repeat([1, 2], [others, PAIRS])), 5000, 237, 105
    return None


def _obs(condition: np.ndarray, n_targets: np.ndarray | int, *, index: np.ndarray | None = None, **columns):
    names = condition.astype(str)
    return pd.DataFrame({"condition": names, "guide_identity": names, "n_targets": n_targets} | columns, index=index)


def work_of(run: Run, size: Size) -> tuple[int, int]:
    """Steps of a training, and cells that its validations go through, at most: patience may end it before."""
    training = run.training
    epoch = math.ceil(size.train / training.batch_size)
    steps = training.steps if training.epochs is None else training.epochs * epoch
    validations = math.ceil(math.ceil(steps / epoch) / training.validation_every)  # the last epoch has one always
    return steps, validations * size.val


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
    """Seconds of a step, of a cell's validation and bound and of a condition's effect, on made counts of this shape.

    Of process time on the CPU, where other work would count otherwise. Everything is done once before it is timed; a
    step and a validation are medians of three.
    """
    card = device == "cuda"
    clock = clock or (time.perf_counter if card else time.process_time)
    genes, perturbations = shape["genes"], shape["perturbations"]
    n = max(2 * run.training.batch_size, 512)  # a whole batch of a validation
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

    def seconds(work: Callable[[], object]) -> float:
        start = clock()
        work()
        return clock() - start

    def trained(number: int) -> float:
        training = dataclasses.replace(run.training, steps=number, epochs=None, validation_every=10**9)
        return seconds(lambda: train(model, cells, few, training))

    # a card's first steps and their capture are no part of a step, of which it does many in the time of one here
    least, more = (1 + WARM, 50 * steps) if card else (1, steps)

    def longer() -> float:
        first = trained(least)
        return trained(least + more) - first

    train(model, cells, few, dataclasses.replace(run.training, steps=1, epochs=None))
    step = statistics.median([longer() for _ in range(3)]) / more

    make = graphs(cells.device) if run.training.capture == "auto" else None
    noise = Streams("validation", cells.device)
    captured = Steps(validation_step(model, cells, run.training, noise, n), noise, make)
    validate = partial(validation_loss, model, cells, run.training, noise, n_cells=n, steps=captured)
    with precision(run.training.precision, cells.device), on_one_stream(cells.device):
        for _ in range(1 + WARM if card else 1):
            validate()
        validation = statistics.median([seconds(validate) for _ in range(3)]) / n
    model.eval()

    particles, samples, closed = shape["evaluation"]
    k, s = min(particles, 64), min(samples, 1000)
    iwelbo(model, few, particles=2)
    bound = seconds(lambda: iwelbo(model, few, particles=k)) / len(few) * particles / k
    if not real:  # as unequal as the genes of a screen: what a count costs to draw depends on its mean
        torch.nn.init.normal_(model.likelihood.mean.bias, 0.0, 2.0)
    transform = "mean" if real else "log2"
    means = partial(condition_means, model, dosage.members[:1], closed_form=closed, transform=transform)
    means(samples=2)
    effect = seconds(lambda: means(samples=s)) * samples / s
    return {"step": max(step, 0.0), "validation": validation, "cell": bound, "condition": effect}


def machine(device: str) -> str:
    """What a rate was measured on."""
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_model()
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
    """A line per experiment, and the names of those whose data or splits have no known size yet."""
    results = Path(study.pathvars.folder("results"))
    kept = results / ".rates.json"
    try:
        rates: dict[str, Rate] = json.loads(kept.read_text())
    except (OSError, ValueError):
        rates = {}
    lines, unknown = [], []
    for name in study.experiments:
        trained = [run for run in runs(study, name) if run.checkpoint is None]
        splits = {(run.dataset, run.split): run for run in trained}
        sizes = {key: size_of(run, results) for key, run in splits.items()}
        if None in sizes.values():
            unknown.append(name)
            continue
        steps, done = 0, 0
        training = scoring = foreseen = actual = 0.0
        for run in trained:
            size, evaluation = sizes[run.dataset, run.split], study.settings[name].evaluation
            shape = shape_of(run, size, evaluation)
            key = json.dumps({"machine": machine(device), **shape}, sort_keys=True)
            if key not in rates:
                rates[key] = rate(run, shape, device)
                write_json(rates, kept)
            own, (number, validated) = rates[key], work_of(run, size)
            needed = number * own["step"] + validated * own["validation"]
            steps += number
            training += needed
            scoring += (size.val + size.test) * own["cell"] + size.conditions * own["condition"]
            took = seconds_of(results / name / "runs" / run.id / "run.json", run_settings(run))
            if took is not None:
                done, foreseen, actual = done + 1, foreseen + needed, actual + took
        lines.append(Line(name, len(trained), done, steps, training, scoring, foreseen, actual))
    return lines, unknown


def report(lines: Sequence[Line], unknown: Sequence[str], *, device: str, jobs: int) -> str:
    """A table in hours, minutes and seconds, and the whole with so many trainings at a time."""
    rows = [("experiment", "trainings", "done", "ms a step", "training", "scoring", "done: foreseen", "actual")]
    for x in lines:
        times = map(span, (x.training, x.scoring, x.foreseen, x.actual))
        rows.append((x.experiment, str(x.trainings), str(x.done), f"{1e3 * x.training / max(x.steps, 1):.1f}", *times))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    out = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    out += [f"{name}: not known before its data and splits are there" for name in unknown]
    left = sum(x.left for x in lines)
    out.append(f"left: {span(left)} one after the other; {span(left / jobs)} with {jobs} at a time")
    out.append(f"({machine(device)}; downloads, figures and what jobs that share a machine lose to each other aside)")
    return "\n".join(out)


def told(study: Study, jobs: int) -> str:
    """The estimate of a study on the device that its configuration asks for."""
    device = "cuda" if study.device != "cpu" and torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)  # as the workflow's trainings
    lines, unknown = estimate(study, device=device)
    return report(lines, unknown, device=device, jobs=jobs)

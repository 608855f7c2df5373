"""Hours that the trainings of a study take on a GPU, computed from counted operations. No GPU is used or timed.

    PYTHONPATH=src python benchmarks/study_hours.py config/core.yaml                     # a minute on one core
    PYTHONPATH=src python benchmarks/study_hours.py config/core.yaml config/fast.yaml

One step of every shape runs without numbers, on torch's device `meta`, and takes the GPU's path. Every operation counts
as the longest of its launch inside a CUDA graph, its bytes at the memory's rate, its matrix product at the arithmetic's
rate. Second trainings of transfers and validations (a third of a step for each cell) are included; scores, adaptation,
start-up, and trainings that patience ends earlier are not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from shapes import Shape, synthetic_screen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from samsvae.config.grid import Run, runs
from samsvae.config.study import Study
from samsvae.data.cells import cells_of, encode
from samsvae.models.model import Model
from samsvae.ops import triton_trial
from samsvae.study import estimate
from samsvae.study.configuration import read_study
from samsvae.study.sizes import Size, size_of
from samsvae.training.optimiser import Adam
from samsvae.training.steps import training_step

#: Seconds of a launch, bytes per second, and operations per second of products, assumed to be reached: 70 % of the
#: memory's rate, 75 % of the peak in float32, and 40 % in tf32, whose operands would have to be aligned.
LAUNCH = 1.5e-6
GPUS = {"H100": (0.7 * 3.35e12, 0.75 * 67e12, 0.4 * 495e12), "H200": (0.7 * 4.8e12, 0.75 * 67e12, 0.4 * 495e12)}

PRODUCTS = ("aten.mm.default", "aten.addmm.default", "aten.bmm.default")
FREE = ("detach", "empty", "_local_scalar", "set_", "resize", "_unsafe_view", "promote_types")

#: Operators of two kernels: the gamma terms and the rest; the gradients and their sum over groups of cells.
SEVERAL = {"samsvae.softmax_nb.default": 2, "samsvae.softmax_nb_backward.default": 2}


class Count(TorchDispatchMode):
    """Collects (bytes, arithmetic of a product) of every operation that is a kernel on a GPU."""

    def __init__(self):
        super().__init__()
        self.kernels: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not any(name in str(func) for name in FREE):
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            flops = 2 * out.numel() * tensors[-2].shape[-2] if str(func) in PRODUCTS else 0
            self.kernels.append((sum(t.numel() * t.element_size() for t in tensors), flops))
            self.kernels += [(0, 0)] * (SEVERAL.get(str(func), 1) - 1)
        return out

    def seconds(self, memory: float, arithmetic: float) -> float:
        return sum(max(LAUNCH, size / memory, flops / arithmetic) for size, flops in self.kernels)


def noise(latent: str, kind: str, shape: tuple[int, ...]) -> Tensor:
    """Noise without numbers, by as many operations as on a GPU (`samsvae.models.noise.standard_noise`)."""
    drawn = torch.rand(shape, device="meta")
    return drawn.logit_(1e-6) if kind == "logistic" else drawn


def count_step(run: Run, genes: int, perturbations: int) -> Count:
    """The kernels of one step of a run, but not of its first."""
    n = 2 * run.training.batch_size
    screen = synthetic_screen(Shape(genes, perturbations, n))
    cells = cells_of(screen, np.arange(n), encode(screen, "sum"))
    cells = replace(cells, **{key: v.to("meta") for key, v in vars(cells).items() if isinstance(v, Tensor)})
    model, warmup = Model(run.model, genes, perturbations).to("meta"), 1.0
    if run.training.warmup_epochs:
        warmup = torch.ones((), dtype=torch.float64, device="meta")
    bad = torch.zeros((), device="meta")
    step = training_step(model, cells, run.training, Adam(model, run.training), noise, bad, warmup)
    at = torch.arange(run.training.batch_size, device="meta")
    with patch.dict(triton_trial._USABLE, meta=True), patch.object(triton_trial, "_TRIED", {"meta"}):
        step(at)  # what all later steps read is made once
        with Count() as count:
            step(at)
    return count


Counter = Callable[[Run, dict], Count]


def hours(study: Study, name: str, counted: Counter, rates: list[tuple[float, float]]) -> list[float]:
    """Trainings, millions of steps, and hours at each rate, of an experiment."""
    settings, total = study.settings[name], np.zeros(2 + len(rates))
    sizes: dict[tuple[str, str], Size | None] = {}
    for run in runs(study, name):
        key = (run.dataset, run.split)
        if key not in sizes:
            sizes[key] = size_of(run, Path("no-results"))
        size = sizes[key]
        assert size is not None, f"{name}: the size of {run.split} is unknown"
        steps, validated = estimate.work_of(run, size)
        how = settings.transfer
        again = 1 + len(how.refits_of(run.row, run.split_config.new_cells)) if how else 1
        work = again * (steps + validated / run.training.batch_size / 3)
        count = counted(run, estimate.shape_of(run, size, settings.evaluation))
        total += [1, again * steps / 1e6, *(work * count.seconds(*rate) / 3600 for rate in rates)]
    return total.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configfile", nargs="*", type=Path, help="configuration files over config/config.yaml")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(__file__).resolve().parents[1]
    study = read_study([root / "config" / "config.yaml", *options.configfile])
    found: dict[str, Count] = {}

    def counted(run: Run, shape: dict) -> Count:
        if (key := repr(shape)) not in found:
            found[key] = count_step(run, shape["genes"], shape["perturbations"])
        return found[key]

    columns = {f"{gpu}, {kind}": (memory, rate) for gpu, (memory, *both) in GPUS.items()
               for kind, rate in zip(("float32", "tf32"), both, strict=True)}  # fmt: skip
    print(f"| experiment | trainings | million steps | {' | '.join(columns)} |\n|{'---|' * (3 + len(columns))}")
    total = np.zeros(2 + len(columns))
    for name in study.experiments:
        row = np.array(hours(study, name, counted, list(columns.values())))
        total += row
        print(f"| {name} | {row[0]:,.0f} | {row[1]:.1f} | {' | '.join(f'{h:.1f}' for h in row[2:])} |", flush=True)
    print(f"| all | {total[0]:,.0f} | {total[1]:.1f} | {' | '.join(f'{h:.1f}' for h in total[2:])} |")


if __name__ == "__main__":
    main()

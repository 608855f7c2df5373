"""Two trainings in one process, the evaluation of a trained model, and the kernels of a step, on a GPU.

    PYTHONPATH=src python benchmarks/gpu_runs.py                          # the Replogle shape
    PYTHONPATH=src python benchmarks/gpu_runs.py --shape norman --steps 500
    PYTHONPATH=src python benchmarks/gpu_runs.py --parts kernels
    PYTHONPATH=src python benchmarks/gpu_runs.py --shape toy --device cpu # to check that it runs

Needs torch and numpy only. The second training shows what a job of several runs saves: libraries are loaded and kernels
are compiled. It uses another seed, so the losses differ; what matters is that both are finite (PASS or FAIL, and exit
status 1 after a FAIL) and that the second training captures its steps too. Kernels are counted by torch.profiler over
steps after the capture.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from checks import check, status
from gpu import MODEL, advance, model_of, started
from shapes import SHAPES, synthetic_screen
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from samsvae.config.training import TrainingConfig
from samsvae.data.cells import Cells, cells_of, encode
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.evaluation.model_effects import condition_means
from samsvae.models.model import Model
from samsvae.ops.cuda_graphs import on_one_stream
from samsvae.ops.precision import precision
from samsvae.training.loop import train

#: Steps that are profiled, after those that run before the capture.
PROFILED = 10


def timed(label: str, work, device: torch.device):
    """Run some work once, print its wall time, and return its result."""
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"{label}: {time.perf_counter() - start:.2f} s", flush=True)
    return result


#: What can be measured.
PARTS = ("trainings", "evaluation", "kernels")


def check_finite(name: str, values: np.ndarray | float) -> None:
    check(f"{name}, numbers that are not finite", np.count_nonzero(~np.isfinite(values)), 0)


def trainings(name: str, cells: Cells, few: Cells, config: TrainingConfig, number: int) -> Model:
    """Train some models one after the other, validating on a few cells; returns the last."""
    for seed in range(number):
        model = model_of(name, cells, seed)
        label = f"training {seed + 1} of {number}, {config.steps:,} steps in {config.precision}"
        trained = timed(label, lambda: train(model, cells, few, replace(config, seed=seed)), cells.device)  # noqa: B023
        print(f"  {trained.steps / trained.seconds:.0f} steps per second, best validation loss {trained.best_loss:.4f}")
        check_finite(f"training {seed + 1}", trained.best_loss)
    return model.eval()


def evaluate(model: Model, cells: Cells) -> None:
    """Time the bound of some cells (K = 100) and the effects of up to 100 perturbations (2,500 samples each)."""
    bound = timed(f"IWELBO, K = 100, {len(cells):,} cells", lambda: iwelbo(model, cells, particles=100), cells.device)
    print(f"  mean {bound.double().mean().item():.4f}")
    check_finite("IWELBO", bound.cpu().numpy())
    members = np.arange(min(100, model.n_perturbations))[:, None]
    label = f"effects of {len(members)} perturbations x 2,500 samples"
    means = timed(label, lambda: condition_means(model, members), cells.device)
    check_finite("effects", means)


def kernels(name: str, cells: Cells, config: TrainingConfig) -> None:
    """Print the number of kernels per step and the kernels that take the most time."""
    run = started(name, cells, config)
    advance(run, 4)
    run.read()
    cuda = cells.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as profiler:
        advance(run, PROFILED)
        run.read()
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    count = sum(event.count for event in profiler.key_averages() if event.device_type == kind)
    print(f"\n{name}, {config.precision}: {count / PROFILED:.0f} {'kernels' if cuda else 'operations'} per step")
    sort = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=sort, row_limit=20, max_name_column_width=80))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="replogle")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--precision", choices=("float32", "tf32", "bf16"), default="tf32")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS)
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    device = torch.device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{time.strftime('%Y-%m-%d')}  {where}, torch {torch.__version__}; {options.shape}, {MODEL}")
    shape = SHAPES[options.shape]
    screen = synthetic_screen(shape, min(shape.whole, 20_480), pool=2000)
    dosage, n = encode(screen, "sum"), len(screen.cells)
    cells, few = (cells_of(screen, np.arange(size), dosage, device) for size in (n, min(n, 1000)))
    config = replace(shape.settings(MODEL)[1], precision=options.precision, steps=options.steps)
    if {"trainings", "evaluation"} & set(options.parts):
        model = trainings(options.shape, cells, few, config, 2 if "trainings" in options.parts else 1)
        if "evaluation" in options.parts:
            evaluate(model, few)
    if "kernels" in options.parts:
        with on_one_stream(device), precision(config.precision, device):
            kernels(options.shape, cells, config)
    return status()


if __name__ == "__main__":
    sys.exit(main())

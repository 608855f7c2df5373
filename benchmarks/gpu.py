"""The cost of a training step on a GPU, part by part: `PYTHONPATH=src python benchmarks/gpu.py` prints it.

Needs torch (a CUDA build, which includes Triton) and numpy. It first checks the fused likelihood against float64, the
gradients of a step with all kernels against torch's operations, and captured steps against eager ones, and prints PASS
or FAIL with each error. It then prints times in either case: medians of CUDA events over rounds of replays. The exit
status is 1 if a check failed. `--parts` chooses what is measured: `kernel`, `step`, `compiled` (steps under
torch.compile), and `together` (several runs share the GPU: as processes, on streams of one process, and stacked into
one step). `--shape toy --device cpu` takes the same path at a small size, to check correctness only.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch
from checks import check, status
from shapes import SHAPES, synthetic_screen
from stacked import Stacked

from samsvae.config.training import TrainingConfig
from samsvae.config.vocabulary import FLOOR
from samsvae.data.cells import Cells, cells_of, encode
from samsvae.models.model import Model
from samsvae.models.noise import Streams
from samsvae.ops import softmax_nb as kernels
from samsvae.ops import triton_trial
from samsvae.ops.cuda_graphs import on_one_stream
from samsvae.ops.precision import precision, tf32_bias, used_precision
from samsvae.training.state import TrainingState
from samsvae.training.steps import batch_loss

MODEL = "sams_vae_corr"

#: The longest that a step should take, in microseconds.
GOALS = {"replogle": 250.0, "norman": 600.0}

#: What can be measured; the first two by default.
PARTS = ("kernel", "step", "compiled", "together")


def synthetic_cells(name: str, device: torch.device) -> Cells:
    """Cells of a shape; 2,000 of them are distinct."""
    screen = synthetic_screen(SHAPES[name], min(SHAPES[name].whole, 20_480), pool=2000)
    return cells_of(screen, np.arange(len(screen.cells)), encode(screen, "sum"), device)


def timed(work, device: torch.device, *, rounds: int = 15, calls: int = 20) -> float:
    """Microseconds per call: the median over rounds."""
    times = []
    if device.type != "cuda":
        rounds, calls = 1, 5
    for _ in range(rounds):
        if device.type != "cuda":
            start = time.process_time()
            for _ in range(calls):
                work()
            times.append((time.process_time() - start) / calls * 1e6)
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls * 1e3)
    return statistics.median(times)


def replayed(work, device: torch.device):
    """Work on fixed tensors as a CUDA graph, so that only the GPU's time counts. Off a GPU: the work itself."""
    work()
    if device.type != "cuda":
        return work
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        work()
    return graph.replay


# ---- the kernel ----------------------------------------------------------------------------------------------------


def likelihood(cells: Cells, n: int, particles: int, kind: torch.dtype, function):
    """Work that computes the likelihood of n cells and its gradients, with a product of a ``kind``, by a function."""
    device, genes = cells.device, cells.counts.shape[1]
    stream = torch.Generator(device).manual_seed(1)
    product = torch.randn(particles, n, genes, generator=stream, device=device) * 2.0
    bias = torch.randn(genes, generator=stream, device=device)
    theta = 10.0 ** (6.0 * torch.rand(genes, generator=stream, device=device) - 2.0)
    exact = torch.float64 if kind == torch.float64 else torch.float32
    a, b, c = given = [p.requires_grad_() for p in (product.to(kind), bias.to(exact), theta.to(exact))]
    x, library = cells.counts[:n], cells.library[:n].to(exact)

    def work():
        value = function(a, b, library, c, x, FLOOR)
        return value.detach(), *torch.autograd.grad(value.sum(), given)

    return work


def plain(*arguments):
    """The likelihood by torch's own operations."""
    with only_torch():
        return kernels.softmax_nb(*arguments)


#: The ways to compute the likelihood: dtype of the product, and the function.
WAYS = {
    "torch operations, float32": (torch.float32, plain),
    "kernel, float32": (torch.float32, kernels.softmax_nb),
    "kernel, product in bf16": (torch.bfloat16, kernels.softmax_nb),
}


def ways(device: torch.device) -> dict[str, tuple]:
    """The ways to compute the likelihood on a device."""
    return {name: way for name, way in WAYS.items() if way[1] is plain or likelihood_runs(device)}


def likelihood_runs(device: torch.device) -> bool:
    return triton_trial.has_triton(device.type, kernels.KERNELS)


def check_kernel(name: str, cells: Cells, config: TrainingConfig) -> None:
    """Check values and gradients against float64."""
    sizes = config.batch_size, config.particles
    for label, (kind, function) in ways(cells.device).items():
        exact = likelihood(cells, *sizes, torch.float64, rounded(plain) if kind == torch.bfloat16 else plain)()
        found = likelihood(cells, *sizes, kind, function)()
        for part, a, b in zip(("value", "d product", "d bias", "d theta"), found, exact, strict=True):
            error = ((a.double() - b).norm() / b.norm()).item()
            check(f"{name}, {label}, {part} against float64", error, 0.01 if kind == torch.bfloat16 else 1e-4)


def time_kernel(name: str, cells: Cells, config: TrainingConfig) -> None:
    """Print the time of a value with its gradients."""
    device, sizes = cells.device, (config.batch_size, config.particles)
    print(f"\n{name}: softmax and negative binomial, {sizes[1]} x {sizes[0]} x {cells.counts.shape[1]}")
    for label, (kind, function) in ways(device).items():
        us = timed(replayed(likelihood(cells, *sizes, kind, function), device), device)
        print(f"{label:34}{us:10.1f} us", flush=True)
    if likelihood_runs(device) and device.type == "cuda":
        work = likelihood(cells, *sizes, torch.float32, kernels.softmax_nb)
        sweep(work, device, {"FORWARD_GENES": (512, 1024, 2048), "FORWARD_VALUES": (2, 4, 8)})
        sweep(work, device, {"GAMMA_VALUES": (1, 2, 4)})
        sweep(work, device, {"BACKWARD_GENES": (128, 256, 512), "BACKWARD_VALUES": (1, 2, 4), "CELLS": (1, 2, 4)})


def rounded(function):
    return lambda product, *rest: function(product.bfloat16().double() + 0.0 * product, *rest)


def only_torch():
    return patch.dict(triton_trial._USABLE, dict.fromkeys(triton_trial._USABLE, False))


def check_gradients(name: str, cells: Cells, config: TrainingConfig) -> None:
    """Check loss and gradients of a batch with all kernels, those of latents too, against torch's operations."""
    found, at = [], torch.arange(config.batch_size, device=cells.device)
    for way in (contextlib.nullcontext, only_torch):
        model, noise = model_of(name, cells), Streams(0, cells.device)
        sizes = {"particles": config.particles, "size": config.batch_size, "n_cells": len(cells)}
        with way():
            loss = batch_loss(model, cells, config, noise, **sizes)(at)
            loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    errors = torch.stack([(ours - exact).norm() / exact.norm() for ours, exact in zip(*found, strict=True)])
    check(f"{name}, kernels against torch's operations, loss and gradients of a batch", errors.max().item(), 1e-4)


def sweep(work, device: torch.device, choices: dict[str, tuple[int, ...]]) -> None:
    """Time the kernels under other blocks and warps and print the three fastest."""
    before, found = {name: getattr(kernels, name) for name in choices}, {}
    for values in itertools.product(*choices.values()):
        for name, value in zip(choices, values, strict=True):
            setattr(kernels, name, value)
        found[values] = timed(replayed(work, device), device, rounds=5)
    for name, value in before.items():
        setattr(kernels, name, value)
    best = "; ".join(f"{values} {found[values]:.1f} us" for values in sorted(found, key=found.get)[:3])
    print(f"  {', '.join(choices)} = {tuple(before.values())}; fastest: {best}", flush=True)


# ---- the step ------------------------------------------------------------------------------------------------------


def model_of(name: str, cells: Cells, seed: int = 0) -> Model:
    shape = SHAPES[name]
    model = Model(shape.settings(MODEL)[0], shape.genes, shape.perturbations, seed=seed).to(cells.device)
    model.fit_inputs(cells)
    return model.train()


def started(name: str, cells: Cells, config: TrainingConfig) -> TrainingState:
    return TrainingState(model_of(name, cells, config.seed), config, cells, cells)


def advance(run: TrainingState, steps: int) -> None:
    n, size = len(run.cells), run.config.batch_size
    for number in range(steps):
        start = number * size % (n - size + 1)
        run.advance(torch.arange(start, start + size, device=run.device))


def after_ten(name: str, cells: Cells, config: TrainingConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """All weights after ten steps, and the losses of the steps."""
    with precision(config.precision, cells.device):
        run = started(name, cells, config)
        advance(run, 10)
        run.read()
    weights = torch.cat([p.detach().double().flatten() for p in run.model.parameters()])
    return weights, torch.tensor(run.losses, dtype=torch.float64)


def check_captured(name: str, cells: Cells, config: TrainingConfig) -> None:
    """Check the weights after ten captured steps against those after ten eager steps.

    A GPU adds up some gradients in no fixed order, and Adam magnifies the difference where a gradient is near 0. So ten
    times the difference of two eager runs is allowed too.
    """
    eager = replace(config, capture="never")
    exact, again, found = (after_ten(name, cells, each)[0] for each in (eager, eager, config))
    difference, noise = (((weights - exact).norm() / exact.norm()).item() for weights in (found, again))
    way = "captured" if cells.device.type == "cuda" else "a second run"
    check(f"{name}, {way} against eager, weights after ten steps", difference, max(1e-4, 10.0 * noise))


def check_compiled(name: str, cells: Cells, config: TrainingConfig) -> None:
    """Check the losses of ten compiled steps against those of eager steps, in the precision that is timed."""
    for changes in rows(cells.device.type == "cuda", compiled=True).values():
        compiled = replace(config, **changes)
        eager = replace(compiled, compile=False, capture="never")
        (_, exact), (_, found) = (after_ten(name, cells, each) for each in (eager, compiled))
        error = ((found - exact).abs() / exact.abs()).max().item()
        check(f"{name}, compiled against eager in {compiled.precision}, losses of ten steps", error, 1e-3)


def step(name: str, cells: Cells, config: TrainingConfig, variants: dict[str, dict]) -> None:
    print(f"\n{name}: a step of {MODEL}, batch {config.batch_size}, K = {config.particles}")
    print(f"{'':34}{'us':>10}{'of goal':>10}{'MiB':>10}{'start s':>10}")
    for label, changes in variants.items():
        us, memory, start = measured(name, cells, replace(config, **changes))
        print(f"{label:34}{us:10.1f}{us / GOALS.get(name, math.nan):10.2f}{memory:10.0f}{start:10.1f}", flush=True)


def rows(cuda: bool, compiled: bool) -> dict[str, dict]:
    """Changes to the training settings for each row of times. Off a GPU nothing is captured and tf32 is float32."""
    way, names = ("captured", ("tf32", "bf16")) if cuda else ("eager", ("bf16",))
    if compiled:
        return {f"{way}, {names[0]}, compiled": {"precision": names[0], "compile": True}}
    return {"eager": {"capture": "never"}, way: {}} | {f"{way}, {name}": {"precision": name} for name in names}


def measured(name: str, cells: Cells, config: TrainingConfig) -> tuple[float, float, float]:
    """Microseconds per step, peak memory in MiB, and seconds until the fourth step has ended."""
    device, cuda = cells.device, cells.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with precision(config.precision, device):
        start = time.perf_counter()
        run = started(name, cells, config)
        advance(run, 4)
        run.read()
        start = time.perf_counter() - start
        at = torch.arange(config.batch_size, device=device)
        us = timed(lambda: run.advance(at), device)
        run.read()
    return us, torch.cuda.max_memory_allocated() / 2**20 if cuda else float("nan"), start


# ---- several runs on one GPU ---------------------------------------------------------------------------------------


def rate(work: Callable[[], object], seconds: float, device: torch.device) -> float:
    """How many times per second some work is done."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        work()
        done += 1
    wait()
    return done / (time.perf_counter() - start)


def some_cells(cells: Cells, config: TrainingConfig, number: int) -> torch.Tensor:
    """Random positions of one batch per run."""
    return torch.stack([torch.randperm(len(cells))[: config.batch_size] for _ in range(number)]).to(cells.device)


def in_processes(name: str, cells: Cells, config: TrainingConfig, number: int, seconds: float) -> float:
    """Steps per second of all processes together; they start counting once all are ready."""
    command = [sys.executable, __file__, "--device", cells.device.type, "--worker", f"{name} {seconds}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def read_lines() -> list[str]:
        lines = [worker.stdout.readline() for worker in workers]
        if not all(lines):
            raise RuntimeError("a process has ended; its error is printed above")
        return lines

    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(number)]
        read_lines()
        for worker in workers:
            print(file=worker.stdin, flush=True)
        return sum(map(float, read_lines()))


def worker(device: torch.device, name: str, seconds: float) -> None:
    """Print "ready", wait for a line on stdin, then print the steps per second."""
    cells, config = synthetic_cells(name, device), shared(name, device)
    with precision(config.precision, device):
        run = started(name, cells, config)
        advance(run, 4)
        run.read()
        print("ready", flush=True)
        if sys.stdin.readline():
            print(20 * rate(lambda: advance(run, 20), seconds, device), flush=True)


def on_streams(name: str, cells: Cells, config: TrainingConfig, number: int, seconds: float) -> float:
    """Steps per second of several runs in one process, each on its own stream, launched in turn."""
    at, runs = some_cells(cells, config, number), []
    for seed in range(number):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            runs.append((started(name, cells, replace(config, seed=seed)), stream))
            advance(runs[-1][0], 4)

    def one_of_each() -> None:
        for own, (run, stream) in zip(at, runs, strict=True):
            with torch.cuda.stream(stream):
                run.advance(own)

    return number * rate(one_of_each, seconds, cells.device)


def stacked(name: str, cells: Cells, config: TrainingConfig, number: int, seconds: float) -> float:
    """Steps per second of several runs that are stacked into one step."""
    models = [model_of(name, cells, seed) for seed in range(number)]
    run, at = Stacked(models, list(range(number)), cells, config), some_cells(cells, config, number)
    for _ in range(4):
        run.advance(at)
    return number * rate(lambda: run.advance(at), seconds, cells.device)


def together(name: str, cells: Cells, config: TrainingConfig) -> None:
    """Try every way to share the GPU; print the reason in place of a number where one fails."""
    print(
        f"\n{name}, several runs at once, {config.precision}: steps per second of all runs together "
        f"(runs of {config.steps:,} steps per hour)"
    )
    ways = {"processes": in_processes, "streams of one process": on_streams, "stacked": stacked}
    if cells.device.type != "cuda":
        del ways["streams of one process"]
    toy, found = name == "toy", {}
    for number in (1, 2) if toy else (1, 2, 4, 8):  # what was printed before a time limit is kept
        results = []
        for way, measure in ways.items():
            try:
                gc.collect()
                torch.cuda.empty_cache()  # leave the memory to the processes
                with precision(config.precision, cells.device):
                    each = measure(name, cells, config, number, 0.2 if toy else 2.0)
            except Exception as error:  # out of memory, an unsupported operation, a driver error
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                results.append(f"{way}: failed ({reason})")
                continue
            found[f"{number} {way}"] = each
            results.append(f"{way}: {each:.0f} ({each * 3600 / config.steps:.1f})")
        print(f"{number:4}  " + "   ".join(results), flush=True)
    print(f"  fastest: {max(found, key=found.get, default='none')}")


def shared(name: str, device: torch.device) -> TrainingConfig:
    """The training settings of runs that share a device."""
    return replace(SHAPES[name].settings(MODEL)[1], precision="tf32" if device.type == "cuda" else "float32")


def measure_shape(name: str, device: torch.device, parts: list[str], *, only_check: bool) -> None:
    """All checks of a shape, then all its times."""
    cells, config, cuda = synthetic_cells(name, device), SHAPES[name].settings(MODEL)[1], device.type == "cuda"
    if "kernel" in parts:
        check_kernel(name, cells, config)
        check_gradients(name, cells, config)
    if "step" in parts:
        check_captured(name, cells, config)
    if "compiled" in parts:
        check_compiled(name, cells, config)
    if only_check:
        return
    if "kernel" in parts:
        time_kernel(name, cells, config)
    for part in ("step", "compiled"):
        if part in parts:
            step(name, cells, config, rows(cuda, part == "compiled"))
    if "together" in parts:
        together(name, cells, shared(name, device))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=["replogle", "norman", "simulation"])
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=["kernel", "step"])
    parser.add_argument("--check", action="store_true", help="run only the checks")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    with on_one_stream(device):
        if options.worker:
            name, seconds = options.worker.split()
            worker(device, name, float(seconds))
            return 0
        triton_trial.try_out(device)
        for each in triton_trial._TRIALS:
            if not triton_trial.has_triton(device.type, each):
                print(f"{each} does not run here: torch's operations are measured", flush=True)
        where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        print(f"{time.strftime('%Y-%m-%d')}  {where}, torch {torch.__version__}")
        if device.type == "cuda":
            used = used_precision("tf32", device)
            print(f"tf32 products are off by {tf32_bias(device):.0e} on average; precision: tf32 computes in {used}")
        for name in options.shape:
            measure_shape(name, device, options.parts, only_check=options.check)
    return status()


if __name__ == "__main__":
    sys.exit(main())

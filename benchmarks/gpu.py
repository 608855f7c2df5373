"""The cost of a training step on a GPU, part by part: `PYTHONPATH=src python benchmarks/gpu.py` prints it.

Needs torch (a CUDA build, which includes Triton) and numpy. It first checks the fused kernel against float64, and
captured steps against eager ones. It then prints times: medians of CUDA events over rounds of replays. A check that
fails is printed with its error; the times are still taken, and the exit status is 1. `--together` lets several runs
share the GPU: as processes, on streams of one process, and stacked into one step. `--toy --device cpu` takes the same
path at a small size, to check correctness only.
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

import numpy as np
import torch
from shapes import SHAPES, synthetic_screen
from stacked import Stacked

from samsvae.config.training import TrainingConfig
from samsvae.config.vocabulary import FLOOR
from samsvae.data.cells import Cells, cells_of, encode
from samsvae.models.model import Model
from samsvae.ops import softmax_nb as kernels
from samsvae.ops.cuda_graphs import on_one_stream
from samsvae.ops.precision import precision
from samsvae.training.state import TrainingState

MODEL = "sams_vae_corr"

#: The longest that a step should take, in microseconds.
GOALS = {"replogle": 250.0, "norman": 600.0}

#: The checks that failed, in words.
FAILED: list[str] = []


def check(passed: bool, text: str) -> None:
    """Print a failed check and remember it; it does not stop the timings."""
    if not passed:
        FAILED.append(text)
        print(f"CHECK FAILED: {text}", flush=True)


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


def likelihood(name: str, cells: Cells, n: int, particles: int) -> None:
    """Print errors against float64, and the time of the value with its gradients."""
    device, genes = cells.device, cells.counts.shape[1]
    stream = torch.Generator(device).manual_seed(1)
    logits = torch.randn(particles, n, genes, generator=stream, device=device) * 2.0
    theta = 10.0 ** (6.0 * torch.rand(genes, generator=stream, device=device) - 2.0)
    x, library = cells.counts[:n], cells.library[:n]

    def both(kind: torch.dtype, function):
        a, b = logits.to(kind).requires_grad_(), theta.clone().requires_grad_()
        if kind == torch.float64:
            b = theta.double().requires_grad_()

        def work():
            value = function(a, library.to(b.dtype), b, x, FLOOR)
            return value.detach(), *torch.autograd.grad(value.sum(), (a, b))

        return work

    def plain(*arguments):
        with only_torch():
            return kernels.softmax_nb(*arguments)

    in_float64 = both(torch.float64, plain)()
    print(f"\n{name}: softmax and negative binomial, {particles} x {n} x {genes}")
    print(f"{'':34}{'value':>10}{'d logits':>10}{'d theta':>10}{'us':>10}   relative errors against float64; time")
    variants = [("torch operations, float32", torch.float32, plain), ("kernel, float32", torch.float32, None)]
    variants += [("kernel, bf16 logits", torch.bfloat16, None)]
    for label, kind, function in variants:
        if function is None and not kernels.has_triton(device.type):
            print(f"{label:34}{'Triton is not available':>40}")
            continue
        work = both(kind, function or kernels.softmax_nb)
        found = work()
        exact = in_float64 if kind != torch.bfloat16 else both(torch.float64, rounded(plain))()
        errors = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]
        bound = 0.01 if kind == torch.bfloat16 else 1e-4
        check(max(errors) < bound, f"{name}, {label}: relative error {max(errors):.1e}, allowed is {bound:.0e}")
        print(
            f"{label:34}"
            + "".join(f"{error:10.1e}" for error in errors)
            + f"{timed(replayed(work, device), device):10.1f}"
        )
    if kernels.has_triton(device.type) and device.type == "cuda":
        sweep(both(torch.float32, kernels.softmax_nb), device)


def rounded(function):
    return lambda logits, *rest: function(logits.bfloat16().double() + 0.0 * logits, *rest)


@contextlib.contextmanager
def only_torch():
    before, kernels.has_triton = kernels.has_triton, lambda device: False
    try:
        yield
    finally:
        kernels.has_triton = before


def sweep(work, device: torch.device) -> None:
    """Time the kernel under other block sizes and print the three fastest."""
    names = ("FORWARD_GENES", "BACKWARD_GENES", "CELLS")
    before, found = [getattr(kernels, name) for name in names], {}
    for values in itertools.product((512, 1024, 2048), (256, 512, 1024), (1, 2, 4)):
        for name, value in zip(names, values, strict=True):
            setattr(kernels, name, value)
        found[values] = timed(replayed(work, device), device, rounds=5)
    for name, value in zip(names, before, strict=True):
        setattr(kernels, name, value)
    best = sorted(found, key=found.get)[:3]
    print(f"  {', '.join(names)} = {tuple(before)}; fastest: " + "; ".join(f"{b} {found[b]:.1f} us" for b in best))


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


def same(name: str, cells: Cells, config: TrainingConfig) -> str:
    """Compare the weights after ten captured steps with those after ten eager steps."""
    weights = []
    for capture in ("auto", "never"):
        run = started(name, cells, replace(config, capture=capture))
        advance(run, 10)
        run.read()
        weights.append(torch.cat([p.detach().double().flatten() for p in run.model.parameters()]))
    difference = ((weights[0] - weights[1]).norm() / weights[1].norm()).item()
    check(difference < 1e-4, f"{name}, captured against eager: relative difference {difference:.1e}, allowed is 1e-04")
    return "the same bytes" if difference == 0 else f"relative difference {difference:.1e}"


def step(name: str, cells: Cells, config: TrainingConfig, variants: dict[str, dict]) -> None:
    print(f"\n{name}: a step of {MODEL}, batch {config.batch_size}, K = {config.particles}")
    both = "captured against eager" if cells.device.type == "cuda" else "eager, run twice"
    print(f"  {both}, after ten steps: {same(name, cells, config)}")
    print(f"{'':34}{'us':>10}{'of goal':>10}{'MiB':>10}{'start s':>10}")
    for label, changes in variants.items():
        us, memory, start = measured(name, cells, replace(config, **changes))
        print(f"{label:34}{us:10.1f}{us / GOALS.get(name, math.nan):10.2f}{memory:10.0f}{start:10.1f}")


def rows(cuda: bool, compiled: bool) -> dict[str, dict]:
    """Changes to the training settings for each row of times. Off a GPU nothing is captured and tf32 is float32."""
    way, names = ("captured", ("tf32", "bf16")) if cuda else ("eager", ("bf16",))
    found = {"eager": {"capture": "never"}, way: {}} | {f"{way}, {name}": {"precision": name} for name in names}
    for label in [label for label in found if compiled and label.startswith(way)]:
        found[f"{label}, compiled"] = found[label] | {"compile": True}
    return found


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
    for number in (1, 2) if toy else (1, 2, 4, 8):
        results = []
        for way, measure in ways.items():
            try:
                gc.collect()
                torch.cuda.empty_cache()  # leave the memory to the processes
                with precision(config.precision, cells.device):
                    each = measure(name, cells, config, number, 0.5 if toy else 4.0)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="a small size, to check correctness only")
    parser.add_argument("--compile", action="store_true", help="also time steps under torch.compile (minutes)")
    parser.add_argument("--together", action="store_true", help="also let several runs share the GPU (minutes)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    with on_one_stream(device):
        if options.worker:
            name, seconds = options.worker.split()
            worker(device, name, float(seconds))
            return 0
        where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        print(f"{time.strftime('%Y-%m-%d')}  {where}, torch {torch.__version__}")
        for name in [name for name in SHAPES if (name == "toy") == options.toy]:
            cells, config = synthetic_cells(name, device), SHAPES[name].settings(MODEL)[1]
            likelihood(name, cells, config.batch_size, config.particles)
            step(name, cells, config, rows(device.type == "cuda", options.compile))
            if options.together:
                together(name, cells, shared(name, device))
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())

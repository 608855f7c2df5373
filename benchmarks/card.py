"""What a step costs on a graphics card, part by part: `PYTHONPATH=src python benchmarks/card.py` prints it all.

Needs torch (a CUDA build, which brings Triton) and numpy. First the fused kernel is held against float64 and captured
steps against steps as they come; then times, as medians of CUDA events over rounds of replays. `--toy --device cpu`
goes the same way at a small size, for correctness alone.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from samsvae import kernels
from samsvae.capture import on_one_stream
from samsvae.data.batch import Cells
from samsvae.model import Model
from samsvae.precision import precision
from samsvae.settings import ModelConfig, TrainingConfig
from samsvae.training import _Run
from samsvae.zoo import row


@dataclass(frozen=True)
class Shape:
    name: str
    genes: int
    perturbations: int
    received: int  # most in a cell
    clip: float | None
    goal: float  # us
    cells: int = 20_480


SHAPES = (Shape("Replogle", 1187, 680, 1, None, 250.0), Shape("Norman", 5000, 105, 2, 100.0, 600.0))
TOY = (Shape("toy", 60, 8, 2, 100.0, float("nan"), cells=320),)


def made(shape: Shape, device: torch.device) -> Cells:
    """Cells of made counts, overdispersed and mostly small, as those of a screen."""
    rng = np.random.default_rng(0)
    level = rng.gamma(0.3, 1.0, size=shape.genes)
    depth = rng.gamma(4.0, 10_000.0 / level.sum() / 4.0, size=(shape.cells, 1))
    counts = np.empty((shape.cells, shape.genes), np.int16)
    for part in np.array_split(np.arange(shape.cells), 20):
        counts[part] = np.minimum(rng.poisson(depth[part] * level), 30_000)
    counts[:, 0] += 1
    index = np.sort(rng.integers(0, shape.perturbations + 1, size=(shape.cells, shape.received)), axis=1)
    number = np.bincount(index.ravel(), minlength=shape.perturbations + 1)[: shape.perturbations]
    return Cells(
        counts=torch.from_numpy(counts).to(device),
        library=torch.from_numpy(counts.sum(1, dtype=np.float32)).to(device),
        index=torch.from_numpy(index).to(device),
        n_perturbations=shape.perturbations,
        names=np.arange(shape.cells).astype(str),
        share=torch.from_numpy(np.where(number, 1.0 / np.maximum(number, 1), 0.0).astype(np.float32)).to(device),
    )


def timed(work, device: torch.device, *, rounds: int = 15, calls: int = 20) -> float:
    """Microseconds of one call: the median over rounds."""
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
    """Some work on fixed tensors as a graph, so that the time is the card's; as it is elsewhere."""
    work()
    if device.type != "cuda":
        return work
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        work()
    return graph.replay


# ---- the kernel ----------------------------------------------------------------------------------------------------


def likelihood(shape: Shape, cells: Cells, n: int, particles: int) -> None:
    """Errors against float64, and times of value and gradients."""
    device = cells.device
    stream = torch.Generator(device).manual_seed(1)
    logits = torch.randn(particles, n, shape.genes, generator=stream, device=device) * 2.0
    theta = 10.0 ** (6.0 * torch.rand(shape.genes, generator=stream, device=device) - 2.0)
    x, library = cells.counts[:n], cells.library[:n]

    def both(kind: torch.dtype, function):
        a, b = logits.to(kind).requires_grad_(), theta.clone().requires_grad_()
        if kind == torch.float64:
            b = theta.double().requires_grad_()

        def work():
            value = function(a, library.to(b.dtype), b, x)
            return value.detach(), *torch.autograd.grad(value.sum(), (a, b))

        return work

    def plain(*arguments):
        with only_torch():
            return kernels.softmax_nb(*arguments)

    true = both(torch.float64, plain)()
    print(f"\n{shape.name}: softmax and negative binomial, {particles} x {n} x {shape.genes}")
    print(f"{'':34}{'value':>10}{'d logits':>10}{'d theta':>10}{'us':>10}   relative errors against float64; time")
    variants = [("torch's operations, float32", torch.float32, plain), ("kernel, float32", torch.float32, None)]
    variants += [("kernel, bf16 logits", torch.bfloat16, None)]
    for name, kind, function in variants:
        if function is None and not kernels.has_triton(device.type):
            print(f"{name:34}{'no Triton here':>40}")
            continue
        work = both(kind, function or kernels.softmax_nb)
        found = work()
        exact = true if kind != torch.bfloat16 else both(torch.float64, rounded(plain))()
        errors = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]
        assert all(error < (0.01 if kind == torch.bfloat16 else 1e-4) for error in errors), (name, errors)
        print(
            f"{name:34}"
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
    """The kernel's own settings, best first."""
    names = ("FORWARD_GENES", "BACKWARD_GENES", "CELLS")
    before, found = [getattr(kernels, name) for name in names], {}
    for values in itertools.product((512, 1024, 2048), (256, 512, 1024), (1, 2, 4)):
        for name, value in zip(names, values, strict=True):
            setattr(kernels, name, value)
        found[values] = timed(replayed(work, device), device, rounds=5)
    for name, value in zip(names, before, strict=True):
        setattr(kernels, name, value)
    best = sorted(found, key=found.get)[:3]
    print(f"  {', '.join(names)} = {tuple(before)}; the best: " + "; ".join(f"{b} {found[b]:.1f} us" for b in best))


# ---- the step ------------------------------------------------------------------------------------------------------


def started(shape: Shape, cells: Cells, config: TrainingConfig) -> _Run:
    model = Model(ModelConfig(**row("sams_vae_corr").model), shape.genes, shape.perturbations, seed=0).to(cells.device)
    model.fit_inputs(cells)
    model.train()
    return _Run(model, config, cells, cells)


def advance(run: _Run, steps: int) -> None:
    n, size = len(run.cells), run.config.batch_size
    for number in range(steps):
        start = number * size % (n - size + 1)
        run.advance(torch.arange(start, start + size, device=run.device))


def same(shape: Shape, cells: Cells, config: TrainingConfig) -> str:
    """Weights of ten captured steps beside those of ten as they come."""
    weights = []
    for capture in ("auto", "never"):
        run = started(shape, cells, replace(config, capture=capture))
        advance(run, 10)
        run.read()
        weights.append(torch.cat([p.detach().double().flatten() for p in run.model.parameters()]))
    difference = ((weights[0] - weights[1]).norm() / weights[1].norm()).item()
    assert difference < 1e-4, difference
    return "the same bytes" if difference == 0 else f"relative difference {difference:.1e}"


def step(shape: Shape, cells: Cells, config: TrainingConfig, variants: dict[str, dict]) -> None:
    print(f"\n{shape.name}: a step of sams_vae_corr, batch {config.batch_size}, K = {config.particles}")
    print(f"  captured against as they come, after ten steps: {same(shape, cells, config)}")
    print(f"{'':34}{'us':>10}{'of goal':>10}{'MB':>10}{'start s':>10}")
    for name, changes in variants.items():
        us, memory, start = measured(shape, cells, replace(config, **changes))
        print(f"{name:34}{us:10.1f}{us / shape.goal:10.2f}{memory:10.0f}{start:10.1f}")


def measured(shape: Shape, cells: Cells, config: TrainingConfig) -> tuple[float, float, float]:
    """Microseconds of a step, the most memory in MB, and seconds to the fourth step."""
    device, cuda = cells.device, cells.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with precision(config.precision, device):
        start = time.perf_counter()
        run = started(shape, cells, config)
        advance(run, 4)
        run.read()
        start = time.perf_counter() - start
        at = torch.arange(config.batch_size, device=device)
        us = timed(lambda: run.advance(at), device)
        run.read()
    return us, torch.cuda.max_memory_allocated() / 2**20 if cuda else float("nan"), start


# ---- several runs on one card --------------------------------------------------------------------------------------


def on_streams(shape: Shape, cells: Cells, config: TrainingConfig, number: int, seconds: float) -> float:
    """Steps a second of several runs of one process, each on a stream of its own, launched in turn."""
    streams = [torch.cuda.Stream() for _ in range(number)]
    runs = []
    for seed, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            runs.append(started(shape, cells, replace(config, seed=seed)))
            advance(runs[-1], 4)
    at = torch.arange(config.batch_size, device=cells.device)
    torch.cuda.synchronize()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for run, stream in zip(runs, streams, strict=True):
            with torch.cuda.stream(stream):
                run.advance(at)
        done += number
    torch.cuda.synchronize()
    return done / (time.perf_counter() - start)


def in_processes(options: argparse.Namespace, shape: Shape, number: int, seconds: float) -> float:
    """Steps a second of as many processes, that begin to count at the same moment."""
    begin = time.time() + 30.0 + 15.0 * number if options.device == "cuda" else time.time() + 15.0
    command = [sys.executable, __file__, "--device", options.device, "--worker", f"{shape.name} {begin} {seconds}"]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(number)]
    said = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit(f"{number} processes: one of them failed, or was late")
    return sum(map(float, said))


def worker(options: argparse.Namespace) -> float:
    """Steps a second of this process, from a moment on."""
    name, begin, seconds = options.worker.split()
    shape = next(shape for shape in (*SHAPES, *TOY) if shape.name == name)
    device = torch.device(options.device)
    config = replace(configuration(shape), precision="tf32")
    with on_one_stream(device), precision(config.precision, device):
        cells = made(replace(shape, cells=4 * config.batch_size), device)
        run = started(shape, cells, config)
        advance(run, 4)
        run.read()
        if (late := time.time() - float(begin)) > 0:
            raise SystemExit(f"not ready in time, by {late:.0f} s")
        time.sleep(-late)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < float(seconds):
            advance(run, 20)
            done += 20
        run.read()
        return done / (time.perf_counter() - start)


def together(options: argparse.Namespace, shape: Shape, cells: Cells, config: TrainingConfig) -> None:
    print(f"\n{shape.name}: runs at once, tf32, steps of all in a second (runs of 30,000 steps an hour)")
    seconds = 0.5 if options.toy else 4.0
    for number in (1, 2) if options.toy else (1, 2, 4, 8):
        ways = {"processes": in_processes(options, shape, number, seconds)}
        if cells.device.type == "cuda":
            with precision("tf32", cells.device):
                ways["streams of one process"] = on_streams(shape, cells, config, number, seconds)
        print(f"{number:4}  " + "   ".join(f"{way}: {rate:.0f} ({rate * 0.12:.0f})" for way, rate in ways.items()))


def configuration(shape: Shape) -> TrainingConfig:
    toy = shape in TOY
    return TrainingConfig(batch_size=32 if toy else 512, particles=2 if toy else 5, gradient_clip=shape.clip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="a small size")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile (minutes)")
    parser.add_argument("--together", action="store_true", help="also several runs on the card (minutes)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(worker(options))
        return
    device = torch.device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{time.strftime('%Y-%m-%d')}  {where}, torch {torch.__version__}")
    variants = {"as they come": {"capture": "never"}, "captured": {}}
    variants |= {f"captured, {name}": {"precision": name} for name in ("tf32", "bf16")}
    if options.compile:
        variants |= {"captured, compiled": {"compile": True}}
        variants |= {f"captured, compiled, {name}": {"compile": True, "precision": name} for name in ("tf32", "bf16")}
    with on_one_stream(device):
        for shape in TOY if options.toy else SHAPES:
            cells = made(shape, device)
            config = configuration(shape)
            likelihood(shape, cells, config.batch_size, config.particles)
            step(shape, cells, config, variants)
            if options.together:
                together(options, shape, cells, replace(config, precision="tf32"))


if __name__ == "__main__":
    main()

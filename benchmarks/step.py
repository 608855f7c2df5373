"""Cost of a training step: samsvae against plain PyTorch (plain.py), after a check that both compute the same.

    python benchmarks/step.py                                    # the Replogle shape, CPU, one thread
    python benchmarks/step.py --shape norman --repeats 5
    python benchmarks/step.py --device cuda --record

Runs from a checkout with torch and numpy only. (1) Check under the same weights, batch and noise: PASS or FAIL is
printed for the relative errors of the loss (up to 1e-4 is allowed) and of the gradients (1e-3). Times follow in either
case, and the exit status is 1 if a check failed. The errors of bf16 against float32 are also printed. (2) Calibration
by one float32 product. (3) Times of interleaved repeats: CPU time of the process, or the time between CUDA events; peak
memory of each variant, on a CPU in a process of its own.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import plain  # noqa: E402
from checks import check, status  # noqa: E402

#: where torch stores the arithmetic of float32 products, by device
HOLDERS = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}


def arithmetic(device: str) -> str:
    """The current arithmetic of float32 products: none, ieee, tf32 or bf16."""
    return HOLDERS[device].matmul.fp32_precision


def set_arithmetic(device: str, value: str | None) -> None:
    if value is not None:
        HOLDERS[device].matmul.fp32_precision = value


DEFAULT = {device: arithmetic(device) for device in HOLDERS}  # read before the import of samsvae, which may change it

from shapes import SHAPES, Shape, synthetic_screen  # noqa: E402

from samsvae.config.training import TrainingConfig  # noqa: E402
from samsvae.config.zoo import TABLE_1  # noqa: E402
from samsvae.data.arrays import Screen  # noqa: E402
from samsvae.data.cells import Cells, cells_of, encode  # noqa: E402
from samsvae.models.model import Model  # noqa: E402
from samsvae.models.noise import Streams, given  # noqa: E402
from samsvae.ops.precision import precision  # noqa: E402
from samsvae.training.loop import train  # noqa: E402
from samsvae.training.objective import objective  # noqa: E402
from samsvae.training.optimiser import Adam  # noqa: E402

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
HEADING = "## The training step: `step.py`"
LOSS, GRADIENT = 1e-4, 1e-3  # the largest relative errors allowed
ARITHMETIC = {"cpu": ("ieee", "tf32", "bf16"), "cuda": ("ieee", "tf32")}  # cuBLAS has no bf16 for float32
PRODUCT = (2560, 400, 1187)  # the calibration: particles x cells, width, genes of the Replogle shape
VARIANTS = {
    "plain": "plain PyTorch",
    "train": "samsvae, `train()`",
    "plain kernel": "samsvae, `train()`, `kernel: plain`",
    "tf32": "samsvae, `train()`, tf32",
    "bf16": "samsvae, `train()`, bf16",
}
MODELS = TABLE_1[1:]  # plain.py has no conditional VAE


# ---- data and models -----------------------------------------------------------------------------------------------


def screen_of(shape: Shape, model: str) -> Screen:
    """Synthetic cells; without pairs for SVAE+, which reads one perturbation per cell."""
    return synthetic_screen(replace(shape, pairs=0) if model == "svae_plus" else shape)


def dense(screen: Screen) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts (n, G) and dosages (n, T) in float32."""
    dosage = np.zeros((len(screen.cells), len(screen.perturbations) + 1), np.float32)
    np.put_along_axis(dosage, screen.members[screen.condition], 1.0, axis=1)  # -1 is the last column
    return torch.from_numpy(screen.counts.astype(np.float32)), torch.from_numpy(dosage[:, :-1].copy())


def product_model(shape: Shape, model: str, cells: Cells) -> Model:
    made = Model(shape.settings(model)[0], shape.genes, shape.perturbations).to(cells.device)
    made.fit_inputs(cells)
    return made


def plain_model(shape: Shape, model: str, x: torch.Tensor, d: torch.Tensor) -> plain.VAE:
    config = shape.settings(model)[0]
    log = torch.log1p(x)
    sd = log.std(0)
    moments = log.mean(0), torch.where(sd == 0, 1.0, sd), d.sum(0)
    sizes = {name: getattr(config, name) for name in ("n_latent", "width", "n_layers", "temperature")}
    if model == "svae_plus":
        return plain.SVAEPlus(*moments, **sizes, beta_a=config.beta_a, beta_b=config.beta_b)
    for name in ("embedding_width", "embedding_layers", "mask_prior", "embedding_scale"):
        sizes[name] = getattr(config, name)
    return plain.SAMSVAE(
        *moments,
        **sizes,
        mask=config.mask == "bernoulli",
        correlated_e=config.guide_embedding == "given_mask",
        correlated_z=config.encoder_reads == "x_offset",
    )


# ---- the check -----------------------------------------------------------------------------------------------------


def plain_names(model: Model) -> dict[str, str]:
    """Map the name of each weight in samsvae to its name in plain.py."""
    learned = model.config.embedding == "learned"
    own = {
        "mask.logits": "mask_logits",
        "mask_prob.logits": "mask_logits",
        "embedding.loc": "embedding" if learned else "embedding_loc",
        "embedding.log_scale": "embedding_log_scale",
    }
    begins = {
        "embedding.network.": "embedding_network.network.",
        "embedding.head.": "embedding_network.",
        "z.network.": "encoder.network.",
        "z.head.": "encoder.",
        "z_basal.network.": "encoder.network.",
        "z_basal.head.": "encoder.",
        "decoder.": "decoder.network.",
        "likelihood.mean.": "decoder.out.",
        "likelihood.": "decoder.",
    }
    names = {}
    for name in model.state_dict():
        plainly = name
        if name.startswith("latents."):
            _, at, rest = name.split(".", 2)
            plainly = f"{model.names[int(at)]}.{rest}"
        start = next((s for s in begins if plainly.startswith(s)), None)
        names[name] = own.get(plainly, plainly if start is None else begins[start] + plainly.removeprefix(start))
    return names


def noise_of(model: Model, config: TrainingConfig, n: int, device: str) -> dict[str, torch.Tensor]:
    """Standard noise of every latent, by name: (K, T, L), or (K, n, L) for a latent of cells."""
    stream, noise = Streams("check", device), {}
    for latent in model.latents:
        kind = "logistic" if latent.name == "mask" else "normal"
        rows = n if latent.plate == "cell" else model.n_perturbations
        noise[latent.name] = stream(latent.name, kind, (config.particles, rows, model.config.n_latent))
    return noise


def errors(shape: Shape, model: str, device: str = "cpu", chosen: str | None = None) -> dict[str, float]:
    """Relative errors of samsvae against plain.py under the same weights, batch and noise.

    Keys: ``loss``; each weight, for its gradient, |g - g'| / |g'|; ``update``, the largest error of an Adam update from
    the same gradient. The weights are moved away from their starting values, where some gradients vanish. ``chosen``:
    arithmetic of float32 products for samsvae; by default its own choice.
    """
    own = arithmetic(device)
    screen = screen_of(shape, model)
    cells = cells_of(screen, np.arange(shape.cells), encode(screen, "sum"), device)
    x, d = dense(screen)
    ours, theirs = product_model(shape, model, cells), plain_model(shape, model, x, d).to(device)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in ours.named_parameters():
            free = name.endswith(("logits", ".loc", "log_scale", "log_concentration"))
            p += ((0.5 if free else 0.01) * torch.randn(p.shape, generator=generator)).to(device)
    names = plain_names(ours)
    moments = [theirs.input_mean.clone(), theirs.input_sd.clone()]
    theirs.load_state_dict({names[k]: v for k, v in ours.state_dict().items()}, strict=False)
    found = {
        "input_mean": _relative(ours.input_mean, moments[0]),
        "input_sd": _relative(ours.input_sd, moments[1]),
    }

    config = shape.settings(model)[1]
    at = torch.randperm(shape.cells, generator=generator)[: config.batch_size]
    noise = noise_of(ours, config, len(at), device)
    batch = cells.batch(at.to(device))

    def of_batch(name: str, kind: str, needed: tuple[int, ...]) -> torch.Tensor:
        """The noise of the perturbations in the batch."""
        every = noise[name]
        return every if every.shape == needed else every[:, batch.rows]

    set_arithmetic(device, chosen or own)
    loss, _ = objective(ours, batch, ours.draw(batch, of_batch, config.particles), config, n_cells=shape.cells)
    loss.backward()
    set_arithmetic(device, DEFAULT[device])
    expected = theirs.loss(x[at].to(device), d[at].to(device), config.particles, noise)
    expected.backward()
    set_arithmetic(device, own)
    found["loss"] = _relative(loss, expected)
    weights, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    if {names[name] for name in weights} != set(other):
        raise SystemExit(f"weights differ: {sorted({names[name] for name in weights} ^ set(other))}")
    for name, p in weights.items():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        found[names[name]] = _relative(p.grad, other[names[name]].grad)
        other[names[name]].grad = p.grad.clone()  # Adam would magnify small differences of gradients near 0
    before = {name: p.detach().clone() for name, p in weights.items()}
    Adam(ours, config).step()
    plain.optimiser(theirs, config.learning_rate, config.weight_decay).step()
    changes = [(p - before[name], other[names[name]] - before[name]) for name, p in weights.items()]
    found["update"] = max(_relative(*change) for change in changes)
    return found


def rough_errors(shape: Shape, model: str, rough: str, device: str = "cpu", steps: int = 40) -> dict[str, float]:
    """Relative errors of the loss and of every gradient in a ``rough`` precision, against float32 on the same noise.

    Measured on the cells of one batch, after ``steps`` training steps.
    """
    screen, config = screen_of(shape, model), shape.settings(model)[1]
    cells, few = (cells_of(screen, np.arange(n), encode(screen, "sum"), device) for n in (shape.cells, 2))
    made = product_model(shape, model, cells)
    train(made, cells, few, replace(config, steps=steps, validation_every=10**9))
    batch = cells.batch(torch.arange(config.batch_size, device=device))
    noise, found = noise_of(made, config, config.batch_size, device), []
    for name in ("float32", rough):
        with precision(name, batch.x.device):
            draw = made.draw(batch, given(noise), config.particles)
            loss, _ = objective(made, batch, draw, config, n_cells=len(cells))
            found.append((loss, *torch.autograd.grad(loss, list(made.parameters()))))
    names = ["loss", *(plain_names(made)[name] for name, _ in made.named_parameters())]
    return {name: _relative(ours, exact) for name, exact, ours in zip(names, *found, strict=True)}


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


def check_errors(where: str, found: dict[str, float]) -> bool:
    """Check the loss, the worst gradient or moment, and Adam's update."""
    worst = max((name for name in found if name not in ("loss", "update")), key=lambda name: _or_inf(found[name]))
    bounds = {"loss": LOSS, worst: GRADIENT, "update": GRADIENT}
    return all([check(f"{where}, relative error, {name}", found[name], bound) for name, bound in bounds.items()])


def _or_inf(error: float) -> float:
    return math.inf if math.isnan(error) else error


def described(found: dict[str, float]) -> str:
    worst = max((name for name in found if name not in ("loss", "update")), key=found.get)
    text = f"relative error of the loss {found['loss']:.1e}, of a gradient {found[worst]:.1e} or less ({worst})"
    return f"{text}, of Adam's update {found['update']:.1e}" if "update" in found else text


# ---- variants ------------------------------------------------------------------------------------------------------


def plain_steps(shape: Shape, model: str, device: str) -> Callable[[int], None]:
    """A function that runs some steps of plain.py, including the reading of batches."""
    x, d = dense(screen_of(shape, model))
    config = shape.settings(model)[1]
    made = plain_model(shape, model, x, d).to(device)
    stream = plain.steps(
        made,
        plain.loader(x, d, config.batch_size, pin_memory=device == "cuda"),
        particles=config.particles,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        gradient_clip=config.gradient_clip,
    )

    def take(count: int) -> None:
        for _ in range(count):
            next(stream)

    return take


def train_steps(shape: Shape, model: str, device: str, **settings: str) -> Callable[[int], None]:
    """A function that calls `train` for some steps; the cost outside the steps does not depend on their number."""
    screen = screen_of(shape, model)
    dosage = encode(screen, "sum")
    cells, few = (cells_of(screen, np.arange(n), dosage, device) for n in (shape.cells, 2))
    config = replace(shape.settings(model)[1], validation_every=10**9, **settings)
    made = product_model(shape, model, cells)
    return lambda count: train(made, cells, few, replace(config, steps=count))


STEPS = {
    "plain": plain_steps,
    "train": train_steps,
    "plain kernel": partial(train_steps, kernel="plain"),
    "tf32": partial(train_steps, precision="tf32"),
    "bf16": partial(train_steps, precision="bf16"),
}


def variants(device: str) -> list[str]:
    """The names in STEPS that differ on a device: a GPU has kernels of its own, and a CPU has no tf32."""
    return [name for name in STEPS if name != ("tf32" if device == "cpu" else "plain kernel")]


# ---- measuring -----------------------------------------------------------------------------------------------------


def cost(work: Callable[[], object], device: str) -> float:
    """Milliseconds of some work: CPU time of the process, or the time between CUDA events."""
    if device == "cpu":
        start = time.process_time()
        work()
        return (time.process_time() - start) * 1e3
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    work()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after)


def calibrate(device: str, repeats: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of one float32 product and its relative error against float64, for each arithmetic."""
    m, k, n = PRODUCT
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(m, k, generator=generator).to(device), torch.randn(k, n, generator=generator).to(device)
    exact = a.double() @ b.double()
    own, found, times = arithmetic(device), {}, {}
    kinds = {"default": DEFAULT[device], **{kind: kind for kind in ARITHMETIC[device]}}
    count = 1 if device == "cpu" else 200

    def multiply() -> None:
        for _ in range(count):
            a @ b

    for _ in range(repeats + 1):  # interleaved; the first of each is a warm-up
        for kind, value in kinds.items():
            set_arithmetic(device, value)
            times.setdefault(kind, []).append(cost(multiply, device) / count)
    for kind, value in kinds.items():
        set_arithmetic(device, value)
        found[kind] = statistics.median(times[kind][1:]), _relative(a @ b, exact)
    set_arithmetic(device, own)
    return found


def gflop(shape: Shape, model: str) -> float:
    """GFLOP of the matrix products that every step needs, forward and backward.

    x enters the encoder once per batch, one-hot inputs are read as rows, and the embedding network sees only the
    perturbations in the batch.
    """
    config, training = shape.settings(model)
    screen = screen_of(replace(shape, genes=2), model)
    groups = screen.members[screen.condition].reshape(shape.cells // training.batch_size, -1)
    present = float(np.mean([len(set(group) - {-1}) for group in groups]))
    n, width, latent = training.batch_size, config.width, config.n_latent
    each = training.particles * n
    deep = (config.n_layers - 1) * width
    read = each if config.encoder_reads == "x_offset" else n
    # (rows, inputs, outputs, products): forward, gradient of the weight and, if needed, gradient of the input
    products = [(n, shape.genes, width, 2), (read, width, deep + 2 * latent, 3)]
    products += [(each, latent, width, 3)] * (2 if read == each else 1) + [(each, width, deep + shape.genes, 3)]
    if config.guide_embedding == "given_mask":
        drawn, hidden = training.particles * present, config.embedding_width
        outputs = (config.embedding_layers - 1) * hidden + 2 * latent
        products += [(drawn, latent, hidden, 3), (drawn, hidden, outputs, 3)]
    return sum(2 * a * b * c * times for a, b, c, times in products) / 1e9


def measure(shape: Shape, model: str, device: str, repeats: int, least: float, chosen: str | None) -> dict[str, list]:
    """Milliseconds per step of every variant, from interleaved repeats of ``least`` seconds or more."""
    works = {name: STEPS[name](shape, model, device) for name in variants(device)}
    own = dict.fromkeys(works, chosen or arithmetic(device)) | {"plain": DEFAULT[device]}
    found = {name: [] for name in works}

    def run(name: str, count: int) -> float:
        """Time steps under the arithmetic of the variant, which may change it; for a training, only the steps."""
        set_arithmetic(device, own[name])
        outside = cost(lambda: works[name](1), device) if name != "plain" else 0.0
        ms = cost(lambda: works[name](count + (name != "plain")), device)
        own[name] = own[name] if chosen else arithmetic(device)
        return ms - outside

    counts = dict.fromkeys(works, 2)
    for name in works:
        run(name, 1)
        while run(name, counts[name]) < 1e3 * least:
            counts[name] *= 2
    for repeat in range(repeats):
        for name in list(works)[:: 1 if repeat % 2 else -1]:
            found[name].append(run(name, counts[name]) / counts[name])
    return found


def alone(variant: str, options: argparse.Namespace) -> float:
    """Peak memory (MiB) of a few steps of a variant: allocated on the GPU, or resident in a process of its own."""
    if options.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return _alone(variant, SHAPES[options.shape], options.model, options.device, options.matmul)
    command = [sys.executable, __file__, "--alone", variant, "--shape", options.shape, "--model", options.model]
    command += ["--device", options.device, "--threads", str(options.threads)]
    command += ["--matmul", options.matmul] if options.matmul else []
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _alone(variant: str, shape: Shape, model: str, device: str, chosen: str | None) -> float:
    before = arithmetic(device)
    take = STEPS[variant](shape, model, device)
    set_arithmetic(device, DEFAULT[device] if variant == "plain" else chosen)
    take(4)
    set_arithmetic(device, before)
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) / 2**10


# ---- the report ----------------------------------------------------------------------------------------------------


def machine(device: str, threads: int) -> str:
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    name = facts.get("model name", "unknown CPU").strip()
    detail = ", ".join(f"{key} {facts[key].strip()}" for key in ("cpu family", "model") if key in facts)
    threads = f"{threads} thread{'s' if threads > 1 else ''}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({detail}), {capability}, {threads}, torch {torch.__version__}"


def table(found: dict[str, list[float]], memory: dict[str, float], floor: float) -> str:
    base = statistics.median(found["plain"])
    lines = [
        "| variant | ms per step, median | quartiles | plain / variant | of the floor | peak, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in found.items():
        middle = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (middle,) * 3
        lines.append(
            f"| {VARIANTS[name]} | {middle:.4g} | {low:.4g} - {high:.4g} | {base / middle:.2f} | {floor / middle:.2f} "
            f"| {memory[name]:.0f} |"
        )
    return "\n".join([*lines, f"| floor | {floor:.4g} | | {base / floor:.2f} | 1 | |"])


def record(text: str, results: Path = RESULTS) -> None:
    """Insert a section below the heading of this benchmark, newest first."""
    before = results.read_text() if results.is_file() else "# Results\n"
    if HEADING not in before:
        before = f"{before.rstrip()}\n\n{HEADING}\n"
    head, rest = before.split(HEADING + "\n", 1)
    results.write_text(f"{head}{HEADING}\n\n{text.strip()}\n" + (f"\n{rest.lstrip()}" if rest.strip() else ""))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="replogle")
    parser.add_argument("--model", choices=MODELS, default=MODELS[-1])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--least", type=float, default=0.2, help="seconds that a repeat takes at least")
    parser.add_argument(
        "--matmul",
        choices=("ieee", "tf32", "bf16"),
        help="torch's fp32_precision for samsvae on a CPU (plain PyTorch: torch's default); by default samsvae chooses",
    )
    parser.add_argument("--check", action="store_true", help="run only the check")
    parser.add_argument("--record", action="store_true", help="add the table to RESULTS.md")
    parser.add_argument("--alone", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.matmul and options.device != "cpu":
        parser.error("--matmul is for CPUs. On a GPU, float32, tf32 and bf16 are measured in any case.")
    torch.set_num_threads(options.threads)
    shape, device = SHAPES[options.shape], options.device
    chosen = options.matmul
    if options.alone:
        print(_alone(options.alone, shape, options.model, device, chosen))
        return 0

    found = errors(shape, options.model, device)
    passed = check_errors(f"{options.shape}, {options.model}", found)
    rough = [
        f"{kind} against float32, after 40 steps: {described(rough_errors(shape, options.model, kind, device))}."
        for kind in variants(device)
        if kind in ("tf32", "bf16")
    ]
    print(*rough, sep="\n", flush=True)
    if options.check:
        return status()
    lines = [
        f"### {options.shape}, {options.model}: {datetime.date.today()}, {machine(device, options.threads)}\n",
        f"{shape.genes:,} genes, {shape.perturbations} perturbations, {shape.cells:,} synthetic cells. "
        f"Check: {described(found)}. {' '.join(rough)}",
    ]
    if chosen:
        off = described(errors(shape, options.model, device, chosen))
        lines.append(f"Float32 products of samsvae in {chosen}: {off}.")
    rates = calibrate(device, options.repeats)
    # a GPU offers tf32 for float32; on a CPU only true float32 counts
    best = min((x for x in rates if device == "cuda" or rates[x][1] < 2e-6), key=lambda x: rates[x][0])
    work = 2 * math.prod(PRODUCT) / 1e9
    floor = gflop(shape, options.model) / work * rates[best][0]
    lines.append(
        f"One product {PRODUCT[0]} x {PRODUCT[1]} x {PRODUCT[2]} ({work:.2f} GFLOP): "
        + ", ".join(f"{kind} {ms:.3g} ms (error {error:.0e})" for kind, (ms, error) in rates.items())
        + f". The floor is {gflop(shape, options.model):.3g} GFLOP at the rate of {best}.\n"
    )
    memory = {name: alone(name, options) for name in variants(device)}
    times = measure(shape, options.model, device, options.repeats, options.least, chosen)
    lines.append(table(times, memory, floor))
    print("\n".join(lines))
    if options.record and passed:
        record("\n".join(lines))
    return status()


if __name__ == "__main__":
    sys.exit(main())

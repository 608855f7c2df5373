"""CPU time of evaluation at the papers' sizes: the bound, effects, tests of expression, loading, imports.

    python benchmarks/evaluation.py                   # the Replogle shape
    python benchmarks/evaluation.py --shape norman
    python benchmarks/evaluation.py --shape toy       # checks only, in seconds

Needs torch and numpy only; rows that need scipy or scikit-learn are left out if those are missing. The bound and the
sampler are first checked against plain versions: PASS or FAIL is printed, times follow in either case, and the exit
status is 1 if a check failed. Times are process times of one thread, medians of
interleaved repeats. `product` is one float32 product (2560 x 400) @ (400 x 1187), for comparing machines.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from checks import check, status
from shapes import SHAPES, Shape, synthetic_screen

from samsvae import data
from samsvae.data.arrays import FIELDS, Screen
from samsvae.data.cells import Cells, cells_of, encode
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.evaluation.model_effects import condition_means
from samsvae.models.model import Model
from samsvae.ops.negative_binomial_draws import negative_binomial


def model_of(shape: Shape, screen: Screen, cells: Cells) -> Model:
    """A SAMS-VAE (corr. z_basal and E) whose genes have the means of the screen and whose masks are mostly off."""
    model = Model(shape.settings("sams_vae_corr")[0], shape.genes, shape.perturbations)
    with torch.no_grad():
        profile = torch.from_numpy(screen.counts.mean(0) + 1e-3)
        model.likelihood.mean.bias.copy_(torch.log(profile / profile.sum()))
        model.likelihood.log_concentration.normal_(0.5, 0.5, generator=torch.Generator().manual_seed(0))
        model.latents[0].logits.fill_(-3.0)
    model.fit_inputs(cells)
    return model.eval()


@torch.no_grad()
def check_against_plain(model: Model, cells: Cells, members: np.ndarray) -> None:
    """Check the means of the bound and the effects against plain torch.distributions."""
    n, particles, times = min(200, len(cells)), 10, 20
    found = torch.stack([iwelbo(model, cells, particles=particles, seed=s)[:n].mean() for s in range(times)]).double()
    batch, generator = cells.batch(slice(0, n)), torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    weights = []
    for _ in range(particles * times):
        mask = torch.bernoulli(torch.sigmoid(model.latents[0].logits), generator=generator)
        everyone = model.no_cells()
        guide = model.latents[1].guide({"mask": mask}, everyone)
        table = mask * torch.distributions.Normal(guide.loc, guide.scale).sample()
        dense = torch.zeros(n, model.n_perturbations + 1).scatter_add_(1, batch.dosage.index, batch.dosage.dose)[:, :-1]
        values = {"mask": mask, "embedding": table / mask.clamp(min=0.5)}
        guide = model.latents[2].guide(values, batch, model.inputs(batch))
        q = torch.distributions.Normal(guide.loc, guide.scale)
        z = q.sample()
        likelihood = model.likelihood(model.decoder(z + dense @ table), batch.library)
        theta = likelihood.concentration
        p = torch.distributions.NegativeBinomial(theta, logits=torch.log(likelihood.mean) - torch.log(theta))
        weight = p.log_prob(batch.x).sum(-1) + (torch.distributions.Normal(0, 1).log_prob(z) - q.log_prob(z)).sum(-1)
        weights.append(weight.double())
    weights = torch.stack(weights).unflatten(0, (times, particles))
    plain = (torch.logsumexp(weights, 1) - np.log(particles)).mean(1)
    error = torch.sqrt((found.var() + plain.var()) / times)
    check("bound against the plain version, in standard errors", (abs(found.mean() - plain.mean()) / error).item(), 5)

    mean = torch.full((4000, model.n_genes), 1.0) * model.likelihood.mean.bias.softmax(0) * 1e4
    theta = model.likelihood.log_concentration.exp()
    x = negative_binomial(mean, theta, torch.Generator().manual_seed(2)).double()
    error = torch.sqrt((mean[0] + mean[0] ** 2 / theta) / len(mean)) + 1e-3
    worst = ((x.mean(0) - mean[0]).abs() / error).max().item()
    check("means of sampled counts against the expected ones, largest, in standard errors", worst, 6)
    for transform in ("mean", "log2"):
        options = {"samples": 500, "transform": transform}
        sampled, closed = (condition_means(model, members, **options, closed_form=c) for c in (False, True))
        check(f"sampled against closed-form {transform} means", np.abs(sampled - closed).mean() / closed.mean(), 0.1)


def cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def fresh(code: str) -> tuple[float, float]:
    """CPU seconds and peak memory (MiB) of a fresh process."""
    tail = "import time; print(time.process_time(), *(x.split()[1] for x in open('/proc/self/status') if 'VmHWM' in x))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{tail}"], capture_output=True, text=True, check=True)
    seconds, kibibytes = map(float, done.stdout.split()[-2:])
    return seconds, kibibytes / 1024


def weights(model: Model, cells: Cells) -> Callable[[], object] | None:
    try:
        from samsvae.evaluation.model_bounds import weighed
    except ImportError:
        return None
    return lambda: weighed(model, cells, 100)


def expression(screen: Screen, conditions: int, cells: int) -> Callable[[], object] | None:
    try:
        from samsvae.evaluation.metrics.de import differential_expression
    except ImportError:
        return None
    counts = screen.counts[np.resize(np.arange(len(screen.counts)), (conditions + 1) * cells)]
    labels = np.tile(["control", *(f"c{i}" for i in range(conditions))], cells)
    return lambda: differential_expression(counts, labels, screen.genes, control="control")


def pathways(screen: Screen, latents: int) -> Callable[[], object] | None:
    try:
        from samsvae.evaluation.metrics.pathways import pathway_accuracy
    except ImportError:
        return None
    n = min(345, len(screen.perturbations) // 8 * 8)
    features, labels = np.random.default_rng(0).random((n, latents)), np.arange(n) % 8
    return lambda: pathway_accuracy(features, labels, np.arange(n), repeats=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="replogle")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    shape = SHAPES[given.shape]
    genes, perturbations, n = shape.genes, shape.perturbations, shape.whole
    screen = synthetic_screen(shape, n, pool=4000)
    dosage = encode(screen, "sum")
    cells = cells_of(screen, np.arange(min(1000, n)), dosage)
    model = model_of(shape, screen, cells)
    check_against_plain(model, cells_of(screen, np.arange(200), dosage), dosage.members[:3])
    share, latents = (screen.counts[:1000] > 0).mean(), model.config.n_latent
    print(
        f"{given.shape}: {genes} genes, {perturbations} perturbations, {latents} latents; {share:.0%} of counts not 0"
    )
    if given.shape == "toy":
        return status()

    some = dosage.members[: min(perturbations, 10)]
    scale = perturbations / len(some)
    weight, hidden = torch.randn(1187, 400), torch.randn(2560, 400)
    every = cells_of(screen, np.arange(n), dosage)
    rows: dict[str, tuple[float, Callable[[], object] | None, str]] = {
        "product": (1.0, lambda: torch.nn.functional.linear(hidden, weight), ""),
        "IWELBO, K = 100, per 1,000 cells": (1000 / len(cells), lambda: iwelbo(model, cells, particles=100), "3 s"),
        "the same with the statistics of its weights": (1000 / len(cells), weights(model, cells), "4 s"),
        f"ATE, {perturbations} perturbations x 2,500": (scale, lambda: condition_means(model, some), "60 s"),
        "the same, closed form": (scale, lambda: condition_means(model, some, closed_form=True), ""),
        f"moments of the input, {n:,} cells": (1.0, lambda: model.fit_inputs(every), ""),
        "tests of 4 conditions x 200 cells": (1.0, expression(screen, 4, 200), ""),
        "tests of 20 conditions x 2,500 cells": (1.0, expression(screen, 20, 2500), ""),
        "pathway accuracy, 1 repeat": (1.0, pathways(screen, latents), ""),
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(given.repeats):
        for name, (factor, work, _goal) in rows.items():
            if work is not None:
                times[name].append(factor * cpu(work))
    print("| work | CPU s | goal |\n|---|---|---|")
    for name, (_factor, work, goal) in rows.items():
        if work is not None:
            print(f"| {name} | {statistics.median(times[name]):.3g} | {goal} |")

    with tempfile.TemporaryDirectory() as folder:
        path, table = Path(folder) / "arrays.npz", Path(folder) / "cells.tsv"
        np.savez(path, **{name: getattr(screen, name) for name in FIELDS})
        split = np.resize(["train", "val", "test", "train", "train"], n)
        table.write_text("cell\tsplit\n" + "".join(f"{c}\t{s}\n" for c, s in zip(screen.cells, split, strict=True)))
        modules = (
            "training.loop",
            "training.checkpoint",
            "evaluation.iwelbo",
            "evaluation.model_effects",
            "config.zoo",
        )
        core = "\n".join(f"import samsvae.{module}" for module in modules)
        load = f"{core}\nfrom samsvae.data.cells import *\ns = read_screen({str(path)!r})\n"
        load += f"p = read_split({str(table)!r}, s.cells)\nd = encode(s, 'sum')\n"
        load += "c = [cells_of(s, p == x, d) for x in ('train', 'val', 'test')]"
        first, start, again = fresh(load), fresh(core), fresh(load)
        print(f"| import of the core | {start[0]:.3g} | 2 s |")
        print(f"| import and loading of {screen.counts.nbytes / 2**20:.0f} MiB, first | {first[0]:.3g} | |")
        print(f"| the same, again | {again[0]:.3g} | 3 s |")
        print(f"\npeaks: {start[1]:.0f} MiB with the core, {again[1]:.0f} with all splits loaded, "
              f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} here")  # fmt: skip
    print(f"torch {torch.__version__}, {data.__name__.split('.')[0]} in {Path(data.__file__).parent.parent}")
    return status()


if __name__ == "__main__":
    sys.exit(main())

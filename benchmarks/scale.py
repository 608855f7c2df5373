"""Time and memory of a training step as cells, genes, perturbations or particles grow.

    python benchmarks/scale.py OUT                       # OUT.tsv, OUT.md and, with matplotlib, OUT.png; all axes
    python benchmarks/scale.py OUT --axis perturbations
    python benchmarks/scale.py OUT --toy                 # two tiny points per axis, to check correctness only

Needs torch and numpy only. One size changes at a time, starting from the Replogle shape. Every point runs in a process
of its own, on a GPU if torch finds one. Milliseconds are process time of one thread on a CPU and wall time on a GPU.
`memory` is the peak of the process (on a GPU: of the memory that torch allocated) above that after the imports; `data`
is the size of the counts; `dense` is the size that a float32 matrix of dosages, cells x perturbations, would have: the
code never builds one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from shapes import Shape, synthetic_screen

from samsvae.config.model import ModelConfig
from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import row
from samsvae.data.cells import cells_of, encode
from samsvae.models.model import Model
from samsvae.training.loop import train

BASE = {"cells": 100_000, "genes": 1187, "perturbations": 680, "particles": 5}
AXES = {
    "cells": (10_000, 30_000, 100_000, 300_000, 1_000_000, 2_000_000),
    "genes": (1_000, 2_000, 5_000, 10_000),
    "perturbations": (100, 300, 1_000, 3_000, 10_000),
    "particles": (1, 2, 5, 10, 20),
}
TOY = {"cells": 300, "genes": 20, "perturbations": 8, "particles": 2}
COLUMNS = ("axis", "cells", "genes", "perturbations", "particles", "ms", "memory_mb", "data_mb", "dense_mb", "device")


def peak(device: str) -> float:
    """Peak memory in MiB: of the process, or allocated by torch on the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def point(sizes: dict[str, int], *, batch: int, few: int, many: int) -> dict[str, object]:
    """One row. The difference between a short and a long training leaves out the work that is done once."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    before = peak(device)
    genes, perturbations = sizes["genes"], sizes["perturbations"]
    shape = Shape(genes, perturbations, sizes["cells"], library=genes)  # counts that fit into a byte
    screen = synthetic_screen(shape, pool=1000, dtype=np.uint8)
    dosage = encode(screen, "sum")
    validation = np.zeros(sizes["cells"], bool)
    validation[:: max(1, sizes["cells"] // batch)] = True
    train_cells, val_cells = (cells_of(screen, rows, dosage, device) for rows in (~validation, validation))
    sizes_of = {} if genes > 100 else {"n_latent": 4, "width": 16, "embedding_width": 8}
    config = ModelConfig(**{**row("sams_vae_corr").model, **sizes_of})
    model = Model(config, genes, perturbations).to(device)
    model.fit_inputs(train_cells)
    clock = time.perf_counter if device == "cuda" else time.process_time
    taken = []
    for steps in (1, few, many):  # the first is a warm-up
        training = TrainingConfig(
            steps=steps, batch_size=batch, particles=sizes["particles"], validation_every=10**6, validation_particles=1
        )
        start = clock()
        found = train(model, train_cells, val_cells, training)
        taken.append(clock() - start)
        assert np.isfinite(found.best_loss)
    return {
        **sizes,
        "ms": round(1e3 * (taken[2] - taken[1]) / (many - few), 3),
        "memory_mb": round(peak(device) - before),
        "data_mb": round(screen.counts.nbytes / 2**20),
        "dense_mb": round(4 * sizes["cells"] * sizes["perturbations"] / 2**20),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def draw(rows: list[dict], path: Path) -> None:
    """Plot milliseconds and memory along each axis, log-log; do nothing without matplotlib."""
    try:
        import matplotlib.pyplot as plt
        from matplotlib.ticker import LogLocator
    except ImportError:
        return
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure, panels = plt.subplots(2, len(axes), figsize=(3 * len(axes), 5), squeeze=False, layout="constrained")
    for column, axis in zip(panels.T, axes, strict=True):
        own = [row for row in rows if row["axis"] == axis]
        for panel, value, label in zip(column, ("ms", "memory_mb"), ("ms per step", "MiB"), strict=True):
            panel.loglog([row[axis] for row in own], [row[value] for row in own], "o-", color="black")
            panel.set(xlabel=axis, ylabel=label if axis == axes[0] else "")
            panel.set_ylim(bottom=min(row[value] for row in rows) / 2, top=max(row[value] for row in rows) * 2)
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            panel.yaxis.set_major_formatter("{x:,g}")
            panel.yaxis.set_minor_formatter("")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--axis", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--most", type=int, default=2**63, help="skip points with more counts than this (n x G)")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        print(json.dumps(point(**given.point)))
        return
    base = TOY if given.toy else BASE
    options = {"batch": 32, "few": 2, "many": 4} if given.toy else {"batch": 512, "few": 3, "many": 23}
    if not torch.cuda.is_available():
        options["many"] = min(options["many"], 9)
    rows = []
    for axis in given.axis:
        for value in (base[axis], 2 * base[axis]) if given.toy else AXES[axis]:
            sizes = base | {axis: value}
            if sizes["cells"] * sizes["genes"] > given.most:
                continue
            asked = json.dumps({"sizes": sizes, **options})
            command = [sys.executable, __file__, "x", "--point", asked]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{sizes}: {done.stderr}")
            rows.append({"axis": axis} | json.loads(done.stdout.splitlines()[-1]))
            print("\t".join(str(rows[-1][column]) for column in COLUMNS), flush=True)
    table = [COLUMNS, *([row[column] for column in COLUMNS] for row in rows)]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in table))
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in table]
    given.out.with_suffix(".md").write_text("\n".join([lines[0], "|---" * len(COLUMNS) + "|", *lines[1:]]) + "\n")
    draw(rows, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()

"""How many steps the fast schedule (config/fast.yaml) needs to reach the loss that the published one ends with.

    PYTHONPATH=src python benchmarks/schedules.py miniature --steps 12000 3000            # 2.5 minutes on one core
    PYTHONPATH=src python benchmarks/schedules.py papalexi.h5ad --column perturbation --control control

Both schedules are those of the experiment `replogle`, with these numbers of steps and without patience. Networks are
smaller than published (width 128, 30 latents), batches have 256 cells and two particles. The split is random: 64 % of
the cells for training, 16 % for validation, 20 % for the effects of the honest protocol.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata as ad
import numpy as np
import torch

from samsvae.config.model import ModelConfig
from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import row
from samsvae.data.arrays import Screen
from samsvae.data.cells import cells_of, encode
from samsvae.evaluation.any_truth import truth_or_reason
from samsvae.evaluation.honest import model_tables
from samsvae.models.model import Model
from samsvae.models.start import initialise
from samsvae.screens.custom import screen_of
from samsvae.screens.miniature import replogle_source
from samsvae.screens.pack import arrays_of
from samsvae.screens.replogle import filter_screen, read_genes, read_pathways
from samsvae.study.configuration import read_study
from samsvae.training.loop import train

ROOT = Path(__file__).resolve().parents[1]

MODEL = {"n_latent": 30, "width": 128, "embedding_width": 128}
TRAINING = {"batch_size": 256, "particles": 2, "validation_particles": 2, "patience": None}


def miniature() -> Screen:
    """80 targets in about 8,000 cells with 400 genes, in the format of the Replogle file."""
    listed = ROOT / "resources/replogle"
    perturbed, measured = (read_genes(listed / f"{kind}_genes.tsv") for kind in ("perturbed", "measured"))
    sizes = {"n_targets": 80, "cells_per_perturbation": 110, "n_genes": 600, "n_measured": 400}
    with TemporaryDirectory() as folder:
        source, screen = Path(folder, "source.h5ad"), Path(folder, "screen.h5ad")
        names = {"labels": ROOT / "resources/miniature/replogle_labels.tsv", "measured_genes": measured}
        replogle_source(source, other_genes=perturbed, seed=5, n_controls_in_file=800, **names, **sizes)
        lists = {"perturbed_genes": perturbed, "measured_genes": measured}
        lists["pathways"] = read_pathways(listed / "pathways.tsv")
        return arrays_of(filter_screen(source, screen, n_controls=700, **lists))


def parts_of(n: int) -> np.ndarray:
    """The split of every cell (n,)."""
    order, parts = np.random.default_rng(0).permutation(n), np.full(n, "train", dtype="<U5")
    parts[order[: n // 5]], parts[order[n // 5 : n // 5 + n * 16 // 100]] = "test", "val"
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("screen", help="'miniature', or an .h5ad with counts")
    parser.add_argument("--column", default="perturbation", help="the obs column of the perturbations")
    parser.add_argument("--control", default="control", help="the label of the control in it")
    parser.add_argument("--separator", default="", help="joins the parts of a combination")
    parser.add_argument("--model", default="sams_vae_corr")
    parser.add_argument("--steps", nargs=2, type=int, default=[15000, 3000], help="published and fast")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.screen == "miniature":
        screen = miniature()
    else:
        labels = {"perturbation_column": options.column, "control": [options.control], "separator": options.separator}
        screen = arrays_of(screen_of(ad.read_h5ad(options.screen), zero_cells="drop", **labels))
    parts, dosage = parts_of(len(screen.cells)), encode(screen, "sum")
    cells, rest = (cells_of(screen, parts == name, dosage, "cpu") for name in ("train", "val"))
    truth = truth_or_reason(screen, parts)
    every = max(1, round(50 / (len(cells) / TRAINING["batch_size"])))  # epochs: a validation every 50 steps
    print(
        "| schedule | steps | loss of the published one at step | best loss | r pooled | r centred | mask on | CPU s |"
    )
    print(f"|{'---|' * 8}")
    losses: list[float] = []
    for name, files, steps in (("published", [], options.steps[0]), ("fast", ["fast.yaml"], options.steps[1])):
        own = read_study([ROOT / "config" / file for file in ("config.yaml", *files)]).settings["replogle"]
        model = Model(ModelConfig(**row(options.model).model | own.model | MODEL), len(screen.genes), len(dosage.names))
        initialise(model, cells, received=cells.received)
        how = own.training | TRAINING | {"steps": steps, "validation_every": every}
        start = time.process_time()
        result = train(model, cells, rest, TrainingConfig(**how))
        seconds, table = time.process_time() - start, model_tables(model, truth, dosage.members, draws=40)[0]
        losses.append(result.best_loss)
        reached = (each["step"] for each in result.history if each["val_loss"] <= losses[0])
        r = (table.loc[table["metric"] == f"pearson_pooled_{kind}", "value"].iloc[0] for kind in ("control", "centred"))
        mask = model.perturbation_tables().get("mask_probability", torch.empty(0))
        numbers = (*(f"{value:.3f}" for value in r), f"{100 * (mask > 0.5).float().mean():.0f} %", f"{seconds:.0f}")
        print(
            f"| {name} | {steps} | {next(reached, 'never')} | {result.best_loss:.2f} | {' | '.join(numbers)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

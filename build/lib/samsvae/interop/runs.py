"""Weights of the release as a checkpoint of samsvae or as a run of the workflow."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from samsvae.config.training import TrainingConfig
from samsvae.config.validate import build
from samsvae.data.arrays import Screen, read_screen, read_split
from samsvae.data.cells import Cells, cells_of, encode
from samsvae.errors import CheckpointError, some
from samsvae.interop.lightning import load_checkpoint
from samsvae.interop.weights import from_reference, reordered, row_of
from samsvae.models.model import Model
from samsvae.models.noise import Streams
from samsvae.study.records import write_run
from samsvae.study.train_run import part
from samsvae.training.checkpoint import HISTORY, Checkpoint, checked_names, facts, label_facts, save, screen_facts
from samsvae.training.state import Trained
from samsvae.training.validation import validation_loss

log = logging.getLogger(__name__)


def named_checkpoint(path: str | Path, screen: Screen, encoding: str, *, config: Mapping | None = None) -> Checkpoint:
    """The model of a Lightning checkpoint with the genes and perturbations of a screen, in the order of the screen.

    The weights contain no names. Genes and perturbations are assumed to be in the order of the screen, unless the files
    PATH.genes.txt and PATH.perturbations.txt next to the checkpoint list them in another order (one name per line).
    CheckpointError says what does not match.
    """
    try:
        state = load_checkpoint(path)
        model = from_reference(state, config=config)
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    ours_of = {"genes": screen.genes.tolist(), "perturbations": encode(screen, encoding).names}
    names = {kind: checked_names(ours, kind) for kind, ours in ours_of.items()}
    sizes = {"genes": model.n_genes, "perturbations": model.n_perturbations}
    orders = {}
    for kind, ours in names.items():
        if sizes[kind] != len(ours):
            raise CheckpointError(f"{path}: the weights have {sizes[kind]:,} {kind}, the screen has {len(ours):,}.")
        listed = order_file(path, kind)
        if listed.is_file():
            theirs = [line for line in listed.read_text(errors="replace").splitlines() if line]
            if sorted(theirs) != sorted(ours):
                odd = sorted(set(theirs) ^ set(ours))
                differ = f"only one of them has {some(odd)}" if odd else "some are listed twice"
                raise CheckpointError(f"{listed}: the {kind} differ from those of the screen: {differ}.")
            position = {name: i for i, name in enumerate(theirs)}
            orders[kind] = [position[name] for name in ours]
    return Checkpoint(reordered(model, **orders), names["genes"], names["perturbations"], {"encoding": encoding})


def order_file(path: str | Path, kind: str) -> Path:
    """The file next to a checkpoint that lists its ``genes`` or ``perturbations`` in the order of its weights."""
    return Path(f"{path}.{kind}.txt")


def check_moments(model: Model, cells: Cells, genes: Sequence[str], path: str | Path) -> None:
    """CheckpointError if the mean of a gene that the weights contain differs from its mean over these training cells.

    Means over two draws of n cells differ by about sd sqrt(2 / n). A difference ten times as large means another gene.
    """
    if model.config.input not in ("log_standardise", "standardise"):
        return
    own = Model(model.config, model.n_genes, model.n_perturbations).to(cells.device)
    own.fit_inputs(cells)
    ours, theirs, sd = (x.double().cpu() for x in (own.input_mean, model.input_mean, own.input_sd))
    off = (ours - theirs).abs() / (sd * (2.0 / len(cells)) ** 0.5)
    if (odd := off > 10.0).any():
        raise CheckpointError(
            f"{path}: the mean differs from that of the training cells for {int(odd.sum()):,} of {len(odd):,} genes "
            f"({some(np.asarray(genes)[odd.numpy()], 3)}), so the genes are different or in another order. List the "
            f"genes of the weights in {order_file(path, 'genes')}, one per line."
        )
    largest = (ours - theirs).abs().max()
    log.info("%s: the means of the genes are within %.2g of those of the training cells", path, largest)


def import_checkpoint(
    settings: Mapping,
    path: str | Path,
    arrays: str | Path,
    split: str | Path,
    device: str,
    *,
    out: Mapping[str, str | Path],
) -> None:
    """Write the files of a run with the weights of a Lightning checkpoint instead of trained ones.

    ``settings``: the settings of the run. CheckpointError if the weights do not match them or the screen.
    """
    screen = read_screen(arrays)
    imported = named_checkpoint(path, screen, settings["encoding"], config=settings["config"])
    training, dosage = build(TrainingConfig, settings["training"], "training"), encode(screen, settings["encoding"])
    parts, model = read_split(split, screen.cells), imported.model.to(device)
    train_cells, val_cells = (part(screen, parts, name, dosage, device, split) for name in ("train", "val"))
    check_moments(model, train_cells, imported.genes, path)
    losses = {
        f"{name}_loss": validation_loss(model, cells, training, Streams(f"{training.seed}/{name}", device))
        for name, cells in (("train", train_cells), ("val", val_cells))
    }
    model.eval()
    names = screen_facts(screen, dosage, replace(train_cells, covariates=None))  # the release knows no covariates
    known = facts(settings, names, checkpoint=Path(path).name, validation_loss=losses["val_loss"])
    history = [dict(zip(HISTORY, (0, 0, losses["train_loss"], losses["val_loss"]), strict=True))]
    trained = Trained(best_step=0, best_loss=losses["val_loss"], steps=0, seconds=0.0, history=history)
    write_run(settings, Checkpoint(model, imported.genes, imported.perturbations, known), trained, device, out)


def convert_checkpoint(path: str | Path, arrays: str | Path, out: str | Path, *, encoding: str = "sum") -> None:
    """Convert a Lightning checkpoint to a checkpoint that ``samsvae.load`` reads.

    ``arrays``: arrays.npz of the screen that the checkpoint was trained on. ``encoding``: how the model encodes a
    combination, ``sum`` (the sum of its parts) or ``unique`` (a perturbation of its own). CheckpointError if the
    weights do not match the screen.
    """
    screen = read_screen(arrays)
    imported = named_checkpoint(path, screen, encoding)
    every = cells_of(screen, np.arange(len(screen.cells)), encode(screen, encoding))
    check_moments(imported.model, every, imported.genes, path)
    settings = imported.facts | {"run": Path(path).stem, "model": row_of(vars(imported.model.config))}
    known = facts(settings, label_facts(screen), checkpoint=Path(path).name)
    save(Checkpoint(imported.model, imported.genes, imported.perturbations, known), out)

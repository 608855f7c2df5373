"""Weights of the release as a run of the workflow."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from samsvae.config.training import TrainingConfig
from samsvae.config.validate import build
from samsvae.config.vocabulary import ENCODINGS
from samsvae.data.arrays import Screen, read_screen, read_split
from samsvae.data.cells import Cells, cells_of, encode
from samsvae.errors import CheckpointError, SamsvaeError, some
from samsvae.interop.lightning import load_checkpoint
from samsvae.interop.weights import from_reference, reordered, row_of
from samsvae.models.model import Model
from samsvae.models.noise import Streams
from samsvae.study.records import write_run
from samsvae.study.train_run import part
from samsvae.training.checkpoint import HISTORY, Checkpoint, facts, label_facts, save, screen_facts
from samsvae.training.state import Trained
from samsvae.training.validation import validation_loss

log = logging.getLogger(__name__)


def named_checkpoint(path: str | Path, screen: Screen, encoding: str, *, config: Mapping | None = None) -> Checkpoint:
    """The model of a Lightning checkpoint with the genes and perturbations of a screen, in the screen's order.

    The weights carry no names. They are taken to be in the order of the screen, or in that of the files PATH.genes.txt
    and PATH.perturbations.txt beside them (one name a line). CheckpointError names what does not fit.
    """
    try:
        state = load_checkpoint(path)
        model = from_reference(state, config=config)
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    names = {"genes": tuple(screen.genes.tolist()), "perturbations": encode(screen, encoding).names}
    sizes = {"genes": model.n_genes, "perturbations": model.n_perturbations}
    orders = {}
    for kind, ours in names.items():
        if sizes[kind] != len(ours):
            raise CheckpointError(f"{path}: the weights are of {sizes[kind]:,} {kind}, the screen has {len(ours):,}.")
        listed = order_file(path, kind)
        if listed.is_file():
            theirs = [line for line in listed.read_text(errors="replace").splitlines() if line]
            if sorted(theirs) != sorted(ours):
                odd = sorted(set(theirs) ^ set(ours)) or "some twice"
                raise CheckpointError(f"{listed}: the {kind} are not those of the screen: {some(odd)}.")
            position = {name: i for i, name in enumerate(theirs)}
            orders[kind] = [position[name] for name in ours]
    return Checkpoint(reordered(model, **orders), names["genes"], names["perturbations"], {"encoding": encoding})


def order_file(path: str | Path, kind: str) -> Path:
    """The file beside a checkpoint that lists its ``genes`` or ``perturbations`` in the order of its weights."""
    return Path(f"{path}.{kind}.txt")


def check_moments(model: Model, cells: Cells, genes: Sequence[str], path: str | Path) -> None:
    """CheckpointError where the mean of a gene, as the weights know it, is not that of these training cells.

    Two draws of n cells differ by some sd sqrt(2 / n); ten times that is another gene.
    """
    if model.config.input not in ("log_standardise", "standardise"):
        return
    own = Model(model.config, model.n_genes, model.n_perturbations).to(cells.device)
    own.fit_inputs(cells)
    ours, theirs, sd = (x.double().cpu() for x in (own.input_mean, model.input_mean, own.input_sd))
    off = (ours - theirs).abs() / (sd * (2.0 / len(cells)) ** 0.5)
    if (odd := off > 10.0).any():
        raise CheckpointError(
            f"{path}: its mean is not that of the training cells for {int(odd.sum()):,} of {len(odd):,} genes "
            f"({some(np.asarray(genes)[odd.numpy()], 3)}), so these are others or in another order. List its genes in "
            f"{order_file(path, 'genes')}, one a line."
        )
    log.info("%s: mean of the genes at most %.2g from that of the training cells", path, (ours - theirs).abs().max())


def import_checkpoint(
    settings: Mapping,
    path: str | Path,
    arrays: str | Path,
    split: str | Path,
    device: str,
    *,
    out: Mapping[str, str | Path],
) -> None:
    """Write the files of a training, with the weights of a Lightning checkpoint in its place.

    ``settings``: those of the run; CheckpointError where the weights say otherwise.
    """
    screen = read_screen(arrays)
    made = named_checkpoint(path, screen, settings["encoding"], config=settings["config"])
    training, dosage = build(TrainingConfig, settings["training"], "training"), encode(screen, settings["encoding"])
    parts, model = read_split(split, screen.cells), made.model.to(device)
    train_cells, val_cells = (part(screen, parts, name, dosage, device, split) for name in ("train", "val"))
    check_moments(model, train_cells, made.genes, path)
    losses = {
        f"{name}_loss": validation_loss(model, cells, training, Streams(f"{training.seed}/{name}", device))
        for name, cells in (("train", train_cells), ("val", val_cells))
    }
    model.eval()
    names = screen_facts(screen, dosage, train_cells)
    known = facts(settings, names, checkpoint=Path(path).name, validation_loss=losses["val_loss"])
    history = [dict(zip(HISTORY, (0, 0, losses["train_loss"], losses["val_loss"]), strict=True))]
    trained = Trained(best_step=0, best_loss=losses["val_loss"], steps=0, seconds=0.0, history=history)
    write_run(settings, Checkpoint(model, made.genes, made.perturbations, known), trained, device, out)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: a Lightning checkpoint to a checkpoint of ours."""
    parser = argparse.ArgumentParser("python -m samsvae.interop.runs", description=main.__doc__)
    parser.add_argument("checkpoint", help="the .ckpt file")
    parser.add_argument("arrays", help="arrays.npz of the screen that it was trained on (results/data/SCREEN/)")
    parser.add_argument("out", help="the file to write, for samsvae.training.checkpoint.load")
    parser.add_argument("--encoding", choices=ENCODINGS, default="sum", help="unique: a combination is one of its own")
    given = parser.parse_args(arguments)
    try:
        screen = read_screen(given.arrays)
        made = named_checkpoint(given.checkpoint, screen, given.encoding)
        every = cells_of(screen, np.arange(len(screen.cells)), encode(screen, given.encoding))
        check_moments(made.model, every, made.genes, given.checkpoint)
        path = Path(given.checkpoint)
        settings = made.facts | {"run": path.stem, "model": row_of(vars(made.model.config))}
        known = facts(settings, label_facts(screen), checkpoint=path.name)
        save(Checkpoint(made.model, made.genes, made.perturbations, known), given.out)
    except (SamsvaeError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()

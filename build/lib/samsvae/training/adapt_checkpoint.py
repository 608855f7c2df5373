"""New perturbations added to a trained model by name: its tables grow, and their rows are fitted to their cells.

Letters: n cells, P largest number of perturbations in a cell, T perturbations, G genes, C conditions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from samsvae.config.training import TrainingConfig
from samsvae.config.validate import build
from samsvae.data.arrays import Screen
from samsvae.data.cells import Dosage, cells_of, encode
from samsvae.errors import ConfigError, DataError, nearest, some
from samsvae.models.perturbations import add_perturbations
from samsvae.training.checkpoint import Checkpoint
from samsvae.training.covariates import with_levels
from samsvae.training.transfer import adapt

log = logging.getLogger("samsvae")


def adapt_checkpoint(
    checkpoint: Checkpoint,
    screen: Screen,
    new: Sequence[str] | None = None,
    how: str | None = None,
    *,
    seed: int = 0,
    **options: float,
) -> Checkpoint:
    """A checkpoint with new perturbations, fitted to their cells in ``screen``; all that it had is the same bits.

    ``new``: names, by default all that the model was not trained on. A name that the model has, but no training cell
    of, keeps its position; the others follow the trained ones. Combinations with trained perturbations are used in the
    sum encoding. Controls are not, because they say nothing about a new perturbation. ``how``, ``seed`` and
    ``options`` as in `samsvae.training.transfer.adapt`, with the settings of the model's training.

    DataError if the genes are not those of the model, if a covariate of the model is missing or has a new level, for a
    new name that was trained or has no cell, and, if ``new`` is not given, for cells without a new perturbation.
    ConfigError for a model without effects.
    """
    model = checkpoint.model
    if model.config.effect == "none":
        row = checkpoint.facts.get("model", "without a name")
        raise ConfigError(f"the model {row!r} has no effects of perturbations, so no perturbation can be added to it.")
    screen = with_levels(in_order(screen, checkpoint.genes), checkpoint.covariates)
    dosage = encode(screen, checkpoint.facts["encoding"])
    names = _new_names(checkpoint, screen, dosage, new)
    every = checkpoint.perturbations + tuple(name for name in names if name not in checkpoint.perturbations)
    members, used = _members(dosage, every, set(every) - set(checkpoint.untrained) | set(names), names)
    cells = cells_of(screen, used[screen.condition], Dosage(every, members), model.input_mean.device)
    received = {name: int((cells.index == every.index(name)).any(1).sum()) for name in names}
    if empty := [name for name, n in received.items() if not n]:
        raise DataError(f"new: every cell of {some(empty)} also received a perturbation without training cells.")
    training = checkpoint.facts.get("training")
    config = None if training is None else build(TrainingConfig, training, "training")
    grown = add_perturbations(model, len(every) - len(checkpoint.perturbations))
    positions = [every.index(name) for name in names]
    adapted = adapt(grown, cells, how, new=positions, config=config, seed=seed, **options)
    log.info("added %s", ", ".join(f"{name!r} ({n} cells)" for name, n in received.items()))
    return Checkpoint(adapted, checkpoint.genes, every, _facts(checkpoint, received))


def in_order(screen: Screen, genes: Sequence[str]) -> Screen:
    """The screen with the genes of the model, in their order; DataError if it has others."""
    position = {name: at for at, name in enumerate(screen.genes.tolist())}
    if odd := sorted(position.keys() ^ set(genes)):
        raise DataError(f"genes: the model was trained on {len(genes)} genes; the new cells differ in {some(odd)}.")
    at = np.array([position[name] for name in genes])
    return replace(screen, counts=screen.counts[:, at], genes=screen.genes[at])


def _trained(checkpoint: Checkpoint) -> set[str]:
    """The perturbations that a training saw: not those without training cells, nor those that were added later."""
    return set(checkpoint.perturbations) - set(checkpoint.untrained) - set(checkpoint.facts.get("added", ()))


def _new_names(checkpoint: Checkpoint, screen: Screen, dosage: Dosage, new: Sequence[str] | None) -> list[str]:
    """The names to add, in the order of the screen; DataError if there is none, or if one is trained or has no cell."""
    trained = _trained(checkpoint)
    rows = [[dosage.names[t] for t in row if t < len(dosage.names)] for row in dosage.members]
    if new is None:
        known = [str(screen.conditions[c]) for c, row in enumerate(rows) if row and trained.issuperset(row)]
        if known:
            raise DataError(
                f"new: cells with {some(known)} have no perturbation that is new to the model. Remove these cells, or "
                "name the perturbations to add."
            )
        if not dosage.names:
            raise DataError("new: no cell received a perturbation.")
        return [name for name in dosage.names if name not in trained]
    if old := [name for name in new if name in trained]:
        raise DataError(f"new: the model was trained on {some(old)}, and adapting changes no trained perturbation.")
    if missing := [name for name in new if name not in dosage.names]:
        raise DataError(f"new: no cell received {some(missing)}.{nearest(missing[0], dosage.names)}")
    if not new:
        raise DataError("new: the list is empty; name the perturbations to add.")
    return [name for name in dosage.names if name in new]


def _members(
    dosage: Dosage, every: Sequence[str], known: set[str], new: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The perturbations of each condition as positions in ``every`` (C, P), and which conditions are used (C,).

    Used are those with a new perturbation, if all the others are known.
    """
    position = {name: at for at, name in enumerate(every)}
    place = np.array([position.get(name, len(every)) for name in dosage.names] + [len(every)])
    usable = np.array([name in known for name in dosage.names] + [True])
    is_new = np.array([name in new for name in dosage.names] + [False])
    return place[dosage.members], usable[dosage.members].all(1) & is_new[dosage.members].any(1)


def _facts(checkpoint: Checkpoint, received: dict[str, int]) -> dict:
    """The facts of the checkpoint, with the number of cells of each new perturbation, and their names."""
    facts = dict(checkpoint.facts)
    if "training_cells" in facts:
        facts["training_cells"] = {**facts["training_cells"], **received}
    facts["added"] = [*(name for name in facts.get("added", ()) if name not in received), *received]
    return facts

"""Checkpoints: weights with everything needed to use them (configuration, genes, perturbations, encoding)."""

from __future__ import annotations

import dataclasses
import io
import logging
import reprlib
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import samsvae
from samsvae.config.model import ModelConfig
from samsvae.config.validate import build
from samsvae.config.vocabulary import ENCODINGS
from samsvae.data.arrays import Screen
from samsvae.data.cells import Cells, Dosage
from samsvae.errors import CheckpointError, ConfigError, some
from samsvae.files import atomic
from samsvae.models.levels import Levels
from samsvae.models.model import Model
from samsvae.ops.device import usable
from samsvae.training.covariates import are_levels, are_rows, covariate_facts, levels_in, misfit

log = logging.getLogger(__name__)

#: Training cells to whose perturbations others are added, in screens without a control.
BACKGROUNDS = 24

FORMAT = 1

#: The keys of a row of a training's history: steps and epochs done, mean loss of the epoch's batches, validation loss.
HISTORY = ("step", "epoch", "train_loss", "val_loss")


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, the names of its genes (G) and perturbations (T), and facts about its training.

    ``facts``: plain values with the row, the encoding, the best step and its validation loss, the training settings,
    how labels are read, how many training cells received each perturbation, and the covariates (``screen_facts``).
    ``added``: the perturbations that were added later, to cells of their own. ``history``: the columns of the
    training's history. ``reads``: where ``samsvae.fit`` found labels and counts. Older files lack some of them.
    """

    model: Model
    genes: tuple[str, ...]
    perturbations: tuple[str, ...]
    facts: dict

    @property
    def untrained(self) -> tuple[str, ...]:
        """The perturbations that no training cell received; () if the file has no such record."""
        return tuple(name for name, n in self.facts.get("training_cells", {}).items() if n == 0)

    @property
    def covariates(self) -> dict[str, list[str]]:
        """The levels of each covariate that the model reads, by its name; {} if it reads none."""
        return dict(self.facts.get("covariates", {})) if self.model.levels else {}

    def tables(self) -> dict[str, torch.Tensor]:
        """``Model.perturbation_tables`` (T, L), with NaN for the perturbations that no training cell received."""
        empty = [self.perturbations.index(name) for name in self.untrained]
        tables = {name: table.clone() for name, table in self.model.perturbation_tables().items()}
        for table in tables.values():
            table[empty] = torch.nan
        return tables


def label_facts(screen: Screen) -> dict:
    """How the labels of a screen are read (``control``, ``controls``, ``separator``), and its median ``library``."""
    control = screen.controls[0] if screen.controls else ""
    read_as = {"control": control, "controls": list(screen.controls), "separator": screen.separator}
    return read_as | {"library": float(np.median(screen.library))}


def screen_facts(screen: Screen, dosage: Dosage, train_cells: Cells) -> dict:
    """The facts of a checkpoint about its screen: ``label_facts``, ``training_cells`` and its `covariate_facts`.

    ``training_cells``: how many training cells received each perturbation of the model. ``backgrounds``: perturbations
    of some training cells, to which others are added, if effects are relative to the zero dosage. A warning is logged
    if there are perturbations without training cells. ConfigError if combinations are perturbations of their own in a
    screen whose effects are relative to the zero dosage.
    """
    if screen.by_dosage and dosage.names != tuple(screen.perturbations.tolist()):
        raise ConfigError("encoding: 'unique' is not allowed for a screen without a control. Allowed: 'sum'.")
    each = torch.bincount(train_cells.index.flatten(), minlength=len(dosage.names) + 1)[:-1].tolist()
    cells = dict(zip(dosage.names, each, strict=True))
    if never := [name for name, n in cells.items() if n == 0]:
        log.warning("no training cell received %s, so the model cannot learn their effects", some(never))
    found = label_facts(screen) | {"training_cells": cells} | covariate_facts(screen, train_cells)
    return found | ({"backgrounds": _backgrounds(dosage, train_cells)} if screen.by_dosage else {})


def _backgrounds(dosage: Dosage, train_cells: Cells) -> list[list[str]]:
    """What BACKGROUNDS training cells received, chosen at random."""
    n = len(train_cells)
    chosen = np.sort(np.random.default_rng(0).choice(n, min(n, BACKGROUNDS), replace=False))
    rows = train_cells.index[torch.from_numpy(chosen).to(train_cells.index.device)].tolist()
    return [[dosage.names[t] for t in row if t < len(dosage.names)] for row in rows]


def facts(
    settings: Mapping[str, Any],
    screen: Mapping[str, Any],
    *,
    checkpoint: str | None = None,
    best_step: int | None = None,
    validation_loss: float | None = None,
    kernel: str | None = None,
    fit: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """The facts of a `Checkpoint`; keys that are not given are left out.

    ``run``, ``model`` (row of the zoo), ``encoding``, ``training`` (a TrainingConfig as a dict) and ``reads`` come from
    ``settings``, which may have more keys. ``screen``: ``screen_facts`` or ``label_facts``. A training adds its
    ``best_step``, ``validation_loss``, the ``kernel`` of the likelihood, how the ``fit`` went (``training.verdict``),
    the rows of its ``history`` and the version, ``samsvae``. Imported weights add ``checkpoint``, their file's name.
    """
    found = {key: settings[key] for key in ("run", "model", "encoding", "training", "reads") if key in settings}
    found |= screen
    version = None if best_step is None else samsvae.__version__
    more: dict[str, Any] = {"checkpoint": checkpoint, "best_step": best_step, "validation_loss": validation_loss}
    more |= {"kernel": kernel, "fit": None if fit is None else dict(fit), "samsvae": version}
    more["history"] = None if history is None else {key: [row[key] for row in history] for key in HISTORY}
    return found | {key: value for key, value in more.items() if value is not None}


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint. The same weights and facts give the same bytes."""
    content = {
        "format": FORMAT,
        "config": dataclasses.asdict(checkpoint.model.config),
        "genes": list(checkpoint.genes),
        "perturbations": list(checkpoint.perturbations),
        "facts": checkpoint.facts,
        "weights": {key: value.detach().cpu().contiguous() for key, value in checkpoint.model.state_dict().items()},
    }
    memory = io.BytesIO()  # torch would write the name of the temporary file into the archive
    torch.save(_intern(content), memory)
    with atomic(path) as aside:
        aside.write_bytes(memory.getvalue())


def _intern(value: Any) -> Any:
    """The same value with equal strings as one object, since a pickle depends on the identity of objects."""
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, dict):
        return {_intern(key): _intern(item) for key, item in value.items()}
    return type(value)(map(_intern, value)) if isinstance(value, list | tuple) else value


def read(
    path: str | Path, device: torch.device | str = "cpu", *, stand_in: Callable[[str], type | None] = lambda name: None
) -> dict:
    """Read a file saved by torch without running any code from it; CheckpointError if it is damaged.

    ``stand_in``: maps the full name of a class in the file that torch does not load by itself to the class used in its
    place; None rejects the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not verify checksums
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it has compressed parts, which torch never writes")
            if broken := archive.testzip():
                raise ValueError(f"wrong checksum of its part {broken!r}")
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        classes = {name: stand_in(name) for name in names}
        if rejected := sorted(name for name, cls in classes.items() if cls is None):
            raise ValueError(f"it refers to code that is not allowed: {some(rejected)}")
        with torch.serialization.safe_globals([(cls, name) for name, cls in classes.items() if cls is not None]):
            content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except Exception as error:  # torch raises many types of errors for a damaged or foreign file
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise CheckpointError(f"{path}: not a checkpoint, or damaged ({reason}).") from None
    if type(content) is not dict:
        raise CheckpointError(f"{path}: format {type(content).__name__!r} is not known. Allowed: {FORMAT}.")
    return content


def load(path: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint without running any code from it. Its sizes are checked before memory is used for them.

    CheckpointError if the file is damaged or is not a checkpoint of this package; ConfigError if torch cannot use
    ``device``.
    """
    device = usable(device)
    content = read(path)
    kind = content.get("format")
    if type(kind) is not int or kind != FORMAT:
        raise CheckpointError(f"{path}: format {_brief(reprlib.repr(kind))} is not known. Allowed: {FORMAT}.")
    if missing := [key for key in ("config", "weights", "genes", "perturbations", "facts") if key not in content]:
        raise CheckpointError(f"{path}: not a complete checkpoint; it has no {some(missing)}.")
    try:
        genes, perturbations = (checked_names(content[key], key) for key in ("genes", "perturbations"))
        facts = _checked_facts(content["facts"], perturbations)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    try:
        config = build(ModelConfig, content["config"], "config")
        model = fitted(config, len(genes), len(perturbations), content["weights"], levels_in(facts))
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        reason = _brief(str(error)).rstrip(".")
        raise CheckpointError(f"{path}: the weights do not fit their configuration ({reason}).") from None
    return Checkpoint(model.to(device).eval(), genes, perturbations, facts)


def fitted(
    config: ModelConfig,
    n_genes: int,
    n_perturbations: int,
    weights: Mapping[str, Any],
    levels: Levels | None = None,
) -> Model:
    """The model with these weights, by the names of its state; memory is used only once everything has been checked.

    CheckpointError for weights with other names, shapes or types than the model's, and for values that are not finite.
    """
    model = outline(config, n_genes, n_perturbations, weights, levels)
    needed = model.state_dict()
    for problem, odd in (("Missing", set(needed) - set(weights)), ("Unexpected", set(weights) - set(needed))):
        if odd:
            raise CheckpointError(f"{problem} key: {some(sorted(map(str, odd)))}.")
    check_tensors(weights, needed)
    model = Model(config, n_genes, n_perturbations, levels=levels)
    model.load_state_dict(weights)
    return model


def outline(
    config: ModelConfig, n_genes: int, n_perturbations: int, weights: object, levels: Levels | None = None
) -> Model:
    """The model without memory for its weights (on torch's meta device), to compare with weights from a file.

    CheckpointError if the weights are no dictionary, or too few for the layers of the model.
    """
    if not isinstance(weights, Mapping):
        raise CheckpointError("the weights are not a dictionary of tensors by name.")
    layers = config.n_layers + (config.embedding_layers if config.guide_embedding == "given_mask" else 0)
    if layers > len(weights):
        raise CheckpointError(f"the settings ask for {layers:,} layers, but the file has {len(weights):,} tensors.")
    try:
        with torch.device("meta"):
            return Model(config, n_genes, n_perturbations, levels=levels)
    except (RuntimeError, TypeError, OverflowError):  # of torch, for sizes that are negative or have too many digits
        sizes = f"{n_genes} genes, {n_perturbations} perturbations, {config.n_latent} latents, width {config.width}"
        raise CheckpointError(f"no model has these sizes: {sizes}.") from None


def check_tensors(weights: Mapping[str, Any], needed: Mapping[str, torch.Tensor]) -> None:
    """CheckpointError unless each of the weights is a dense, finite tensor with the shape and type of the needed one.

    ``needed``: tensors by the names of the weights, which may be on the meta device.
    """
    stored: dict[int, int] = {}
    for name, like in needed.items():
        value = weights[name]
        if not is_dense(value):
            raise CheckpointError(f"The parameter {name!r} is not a dense tensor.")
        if value.shape != like.shape:
            shapes = f"has the shape {tuple(value.shape)}; allowed: {tuple(like.shape)}"
            raise CheckpointError(f"The parameter {name!r} {shapes} (size mismatch).")
        if value.dtype != like.dtype:
            types = f"has the type {_type(value)}; allowed: {_type(like)}"
            raise CheckpointError(f"The parameter {name!r} {types}.")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"The parameter {name!r} has values that are not finite.")
        storage = value.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
    if sum(like.nbytes for like in needed.values()) > sum(stored.values()):
        raise CheckpointError("The parameters repeat the same stored values, so the file claims more than it holds.")


def is_dense(value: object) -> bool:
    """Whether a value is a tensor that holds as many values as its shape says."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    # with strides of 0, a tiny file could claim a huge shape
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def _type(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def checked_names(names: object, key: str) -> tuple[str, ...]:
    """Names of genes or perturbations; CheckpointError unless they are a list of distinct texts."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise CheckpointError(f"{key!r} is not a list of names (text that is not empty).")
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise CheckpointError(f"{key!r} has names more than once: {some(twice)}.")
    return tuple(names)


#: What each fact must be; a file need not have all of them.
FACTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("run", "control", "separator", "samsvae", "checkpoint", "kernel"), ("text", lambda x: isinstance(x, str))
    ),
    "model": ("text or nothing", lambda x: x is None or isinstance(x, str)),
    "encoding": (" or ".join(ENCODINGS), lambda x: isinstance(x, str) and x in ENCODINGS),
    **dict.fromkeys(
        ("controls", "added"),
        ("a list of text", lambda x: isinstance(x, list) and all(isinstance(item, str) for item in x)),
    ),
    "training": ("settings by name", lambda x: isinstance(x, dict)),
    "history": (f"columns of equal length with the names {', '.join(HISTORY)}", lambda x: _is_history(x)),
    "reads": (
        "text by name",
        lambda x: isinstance(x, dict) and all(isinstance(text, str) for item in x.items() for text in item),
    ),
    "best_step": ("a whole number of at least 0", lambda x: type(x) is int and x >= 0),
    "validation_loss": ("a number", lambda x: type(x) in (int, float)),
    "training_cells": (
        "a whole number of at least 0 for each perturbation",
        lambda x: isinstance(x, dict) and all(type(n) is int and n >= 0 for n in x.values()),
    ),
    "backgrounds": (
        "lists of text",
        lambda x: (
            isinstance(x, list) and all(isinstance(each, list) and all(isinstance(t, str) for t in each) for each in x)
        ),
    ),
    "covariates": ("lists of levels by the name of a covariate", are_levels),
    "covariate_cells": ("rows of whole numbers, the last of each above 0", are_rows),
}


def _is_history(value: object) -> bool:
    """Whether a value is columns of numbers, all of one length, with the names `HISTORY`."""
    if not isinstance(value, dict) or set(value) != set(HISTORY):
        return False
    columns = list(value.values())
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return False
    return all(type(number) in (int, float) for column in columns for number in column)


def _checked_facts(facts: object, perturbations: Sequence[str]) -> dict:
    """The facts of a checkpoint; CheckpointError if one of them is not what this package writes."""
    if not isinstance(facts, dict):
        raise CheckpointError("'facts' is not a dictionary.")
    for name, (allowed, fits) in FACTS.items():
        if name in facts and not fits(facts[name]):
            raise CheckpointError(f"the fact {name!r} is {_brief(reprlib.repr(facts[name]))}; allowed: {allowed}.")
    if unknown := {name for each in facts.get("backgrounds", ()) for name in each} - set(perturbations):
        raise CheckpointError(f"the fact 'backgrounds' has names that 'perturbations' lacks: {some(sorted(unknown))}.")
    if "encoding" not in facts:
        raise CheckpointError(f"the fact 'encoding' is missing; allowed: {' or '.join(ENCODINGS)}.")
    if (cells := facts.get("training_cells")) is not None and cells.keys() != set(perturbations):
        raise CheckpointError(
            f"the fact 'training_cells' has other names than 'perturbations': "
            f"{some(sorted(map(str, cells.keys() ^ set(perturbations))))}."
        )
    if ("covariates" in facts) != ("covariate_cells" in facts):
        raise CheckpointError("the facts 'covariates' and 'covariate_cells' need each other.")
    if "covariates" in facts and (row := misfit(facts)) is not None:
        raise CheckpointError(
            f"the fact 'covariate_cells' has the row {_brief(reprlib.repr(row))}, which fits no levels."
        )
    return facts


def _brief(text: str) -> str:
    """A text from a file on one line of at most 300 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]}..."

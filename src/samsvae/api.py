"""Fit a model to an AnnData in a notebook, or load one: effects with intervals, masks, embeddings, samples.

from samsvae import fit

fitted = fit(adata, perturbation="guide", control="non-targeting", separator="+")
fitted.effects(["A", "A+B"])
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

from samsvae.config import first_fit
from samsvae.config.model import ModelConfig
from samsvae.config.screens import CustomOptions
from samsvae.config.training import TrainingConfig
from samsvae.config.validate import checked_fields
from samsvae.config.vocabulary import ENCODINGS
from samsvae.config.zoo import Row, row
from samsvae.data.cells import cells_of, encode
from samsvae.errors import ConfigError, nearest
from samsvae.fit_progress import show_progress
from samsvae.fitted import Fitted
from samsvae.models.model import Model
from samsvae.models.start import initialise
from samsvae.ops.device import usable
from samsvae.reader import READS, library_scale
from samsvae.screens.custom import check_adata, check_options, option_of, screen_of
from samsvae.screens.pack import arrays_of
from samsvae.screens.splits import check_parts, column_split
from samsvae.training import checkpoint
from samsvae.training.checkpoint import Checkpoint, facts, screen_facts
from samsvae.training.covariates import levels_in
from samsvae.training.loop import train
from samsvae.training.verdict import verdict

__all__ = ["fit", "load"]

log = logging.getLogger("samsvae")


# longer than 60 lines because every argument is documented
def fit(
    adata: ad.AnnData,
    model: str | None = None,
    *,
    perturbation: str,
    control: str | Sequence[str] | None,
    layer: str | None = None,
    separator: str = "",
    encoding: str = "sum",
    split: str | None = None,
    device: str | None = None,
    covariates: str | Sequence[str] = (),
    progress: bool = True,
    **settings,
) -> Fitted:
    """Train a model of the zoo (a row of ``samsvae.config.zoo``) on an AnnData, which is not changed.

    Parameters
    ----------
    adata
        Cells with raw counts.
    model
        Name of the row. Default: ``sams_vae_corr``, or ``sams_vae_corr_z`` without a control.
    perturbation
        The obs column with the perturbation of each cell; or 'obsm:KEY', a matrix (cells x guides; 0 and 1, or counts
        with the setting ``threshold``) with the names of guides as its columns or in uns['KEY_names'].
    control
        Label(s) of unperturbed cells in this column, or names of control guides in this matrix. None if there are none:
        effects are then relative to a cell without perturbations, as the model knows it from cells that differ in how
        many they received.
    layer
        Layer of the counts (default: X).
    separator
        Text that joins the parts of a combination in a label ('' if there are no combinations).
    encoding
        ``sum`` adds up the parts of a combination; ``unique`` makes it a perturbation of its own.
    split
        An obs column with 'train' and 'val'; cells with 'test' or 'none' are not used. Default: the split of
        ``genes_split`` if that setting is passed, else a random 20 % of the cells are used for validation (without a
        control 10 %).
    device
        For example 'cuda'. Default: a GPU if torch sees one.
    progress
        Show the progress on stderr: a bar in terminals and notebooks, lines elsewhere.
    covariates
        obs columns with categories of cells that are no perturbation, such as a batch or a donor: the encoder and the
        decoder read them, and ``Fitted.effects`` averages over them or takes one level.
    settings
        Any setting of ``ModelConfig``, of ``TrainingConfig`` and of the options of a custom screen
        (``CustomOptions``: ``genes``, ``min_cells``, ``zero_cells`` ...). The defaults suit a first fit on a laptop
        (``samsvae.config.first_fit``): networks by the size of the screen, a start from the data, and at most 10,000
        steps, fewer if the validation loss no longer improves.

    Raises
    ------
    ConfigError
        If a setting is unknown or not allowed.
    DataError
        If the AnnData lacks a column, layer or label, or has no training or no validation cells.

    Examples
    --------
    >>> fit(adata, "cpa_vae_corr", perturbation="guide", control="control", separator="+", steps=20, progress=False)
    Fitted(cpa_vae_corr: 20 genes, 3 perturbations, encoding 'sum')
    """
    reads = {"perturbation": perturbation, "layer": layer or "X"}
    reads |= {key: str(settings[key]) for key in READS if settings.get(key) is not None}
    if encoding not in ENCODINGS:
        raise ConfigError(f"encoding: {encoding!r} is not known.{nearest(encoding, ENCODINGS)}")
    compared = bool(check_options({**option_of(perturbation), "control": control}).controls)
    if model is None:
        model = first_fit.DEFAULT if compared else first_fit.WITHOUT_CONTROL
    chosen = row(model)
    if split is not None and settings.get("genes_split") is not None:
        raise ConfigError("split and genes_split: pass only one; the split of genes_split is also used for training.")
    model_settings, training_settings, options = _sort_settings(chosen, settings)
    seed = training_settings.get("seed", TrainingConfig.seed)
    device = usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    check_adata(adata)
    with show_progress(progress) as report_every:
        parts = (
            None
            if options.get("genes_split")
            else column_split(adata.obs, split, seed, first_fit.validation_share(compared))
        )
        screen = screen_of(
            adata, **option_of(perturbation), control=control, separator=separator,
            counts="X" if layer is None else f"layer:{layer}", genes_on=None if parts is None else parts == "train",
            covariates=covariates, **options,
        )  # fmt: skip
        if settings.get("library_size", "kept") != "kept":
            reads["library_scale"] = str(library_scale(adata, screen, reads["library_size"], reads["layer"]))
        if parts is None:
            parts = screen.obs["split"].to_numpy(str)
        else:
            parts = parts[adata.obs_names.get_indexer(screen.obs_names)]
        check_parts(parts)
        _warn_without_controls(screen, parts)
        arrays = arrays_of(screen)
        dosage = encode(arrays, encoding)
        train_cells, val_cells = (cells_of(arrays, parts == name, dosage, device) for name in ("train", "val"))
        sizes = first_fit.by_size(
            cells=len(train_cells), perturbations=len(dosage.names),
            counts_per_cell=train_cells.library.mean().item(),
            received=train_cells.received, batch_size=training_settings["batch_size"],
        )  # fmt: skip
        config, training = first_fit.build_configs(model_settings, training_settings, sizes)
        names = screen_facts(arrays, dosage, train_cells)
        shape = len(arrays.genes), len(dosage.names)
        net = Model(config, *shape, levels=levels_in(names), seed=training.seed).to(device)
        initialise(net, train_cells, seed=training.seed, received=train_cells.received)
        result = train(net, train_cells, val_cells, training, genes=arrays.genes, report_every=report_every)
        found = verdict(net, result, train_cells, val_cells, names["training_cells"])
        for sentence in found.words():
            log.info("%s", sentence)
    named = {"run": model, "model": model, "encoding": encoding, "training": vars(training), "reads": reads}
    best = {"best_step": result.best_step, "validation_loss": result.best_loss, "kernel": result.kernel}
    described = facts(named, names, **best, fit=found.as_dict(), history=result.history)
    return Fitted(Checkpoint(net, tuple(arrays.genes.tolist()), dosage.names, described))


def _sort_settings(chosen: Row, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The settings of the model and of the training, 'auto' if the screen decides, and the options of the screen."""
    homes = [{item.name for item in fields(cls)} for cls in (ModelConfig, TrainingConfig)]
    own = [{key: value for key, value in settings.items() if key in home} for home in homes]
    model = first_fit.MODEL | dict.fromkeys(first_fit.MODEL_BY_SIZE, first_fit.AUTO) | chosen.model | first_fit.START
    training = first_fit.TRAINING | dict.fromkeys(first_fit.TRAINING_BY_SIZE, first_fit.AUTO) | chosen.training
    # checked before the screen is read
    model |= checked_fields(ModelConfig, own[0], "settings")
    training |= checked_fields(TrainingConfig, own[1], "settings")
    first_fit.build_configs(model, training)
    options = {key: value for key, value in settings.items() if not any(key in home for home in homes)}
    known = {item.name for item in fields(CustomOptions)} - {
        "perturbation_column",
        "perturbations",
        "counts",
        "cell_table",
    }
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"{unknown[0]!r} is not a setting.{nearest(unknown[0], sorted(set.union(known, *homes)))}")
    return model, training, options


def load(path: str | Path, device: str = "cpu") -> Fitted:
    """Load a model that ``Fitted.save`` or a run of the workflow (``runs/RUN/model.pt``) has written.

    Everything works as before it was saved. The model of a run does not know ``perturbation`` and ``layer``: pass them
    to methods that read cells. No code from the file is run. CheckpointError if the file is damaged or is not such a
    model; ConfigError if torch cannot use the device.

    >>> fitted.save("model.pt")
    >>> load("model.pt").perturbations
    ('A', 'B', 'C')
    """
    return Fitted(checkpoint.load(path, device))


def _warn_without_controls(screen: ad.AnnData, parts: np.ndarray) -> None:
    """Warn if no training cell is the control that the screen has."""
    control = screen.uns["control"]
    if control and not (screen.obs["condition"].to_numpy(str)[parts == "train"] == control).any():
        log.warning("no training cell is a control (%r), so the model cannot learn effects against it", control)

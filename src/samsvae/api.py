"""Fit a model to an AnnData in a notebook: effects with intervals, masks, embeddings, samples, save and load.

    from samsvae import fit

    fitted = fit(adata, perturbation="guide", control="non-targeting", separator="+")
    fitted.effects(["A", "A+B"])

Letters: n cells, G genes, T perturbations, L latents.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import anndata as ad
import numpy as np
import pandas as pd
import torch

from samsvae.config import first_fit
from samsvae.config.model import ModelConfig
from samsvae.config.screens import CustomOptions
from samsvae.config.training import TrainingConfig
from samsvae.config.validate import check_positive, check_whole, checked_fields
from samsvae.config.vocabulary import ENCODINGS, LIBRARY
from samsvae.config.zoo import Row, row
from samsvae.data.cells import cells_of, encode
from samsvae.errors import ConfigError, DataError, nearest
from samsvae.evaluation import model_effects as effects
from samsvae.evaluation.named_conditions import LABELS, Condition, Label, Names, as_text
from samsvae.models.model import Model
from samsvae.models.start import initialise
from samsvae.ops.device import usable
from samsvae.screens.custom import check_adata, screen_of
from samsvae.screens.pack import arrays_of
from samsvae.screens.splits import column_split
from samsvae.training import checkpoint
from samsvae.training.adapt_checkpoint import adapt_checkpoint
from samsvae.training.checkpoint import HISTORY, Checkpoint, facts, screen_facts
from samsvae.training.loop import train
from samsvae.training.verdict import verdict

__all__ = ["Fitted", "fit", "load"]

log = logging.getLogger("samsvae")

#: Options of a screen that new cells may need, and options of a fit to them that are whole numbers.
CLEANING = ("library_size", "unlabelled", "zero_cells", "min_cells", "rare")
WHOLE = ("steps", "particles", "rounds")


@dataclass(frozen=True, repr=False)
class Fitted:
    """A trained model with the names of its genes and perturbations.

    A condition is a label ('A', 'A+B', the control's label) or a list of perturbations. A label means the same as in
    the AnnData: the order of its parts does not matter, and control labels among them are dropped. A label that is a
    number there may be passed as a number: 1 means '1'. A list is a dosage: its perturbations (each once) are added up,
    in the unique encoding too. Models that read one perturbation per cell (SVAE+, sVAE, iVAE) accept only dosages of
    one perturbation. For perturbations without training cells a warning is logged.

    ``history``: losses by step (step, epoch, train_loss, val_loss); no rows after ``load``.
    """

    checkpoint: Checkpoint
    history: pd.DataFrame

    def __repr__(self) -> str:
        facts = self.checkpoint.facts
        sizes = f"{len(self.genes)} genes, {len(self.perturbations)} perturbations"
        return f"Fitted({facts.get('model', 'unnamed model')}: {sizes}, encoding {facts['encoding']!r})"

    @property
    def perturbations(self) -> tuple[str, ...]:
        """The names (T) of the perturbations."""
        return self.checkpoint.perturbations

    @property
    def genes(self) -> tuple[str, ...]:
        """The names (G) of the genes."""
        return self.checkpoint.genes

    @property
    def library(self) -> float:
        """Counts per simulated cell: the median library size of the screen; 10,000 if an older file lacks it."""
        return float(self.checkpoint.facts.get("library", LIBRARY))

    @property
    def verdict(self) -> list[str]:
        """How the fit went, in sentences; empty for weights that were not trained here."""
        return list(self.checkpoint.facts.get("fit", {}).get("words", ()))

    @property
    def mask_probability(self) -> pd.DataFrame:
        """Probability that a perturbation acts on a latent (T, L); DataError for a model without masks.

        The row of a perturbation without training cells is NaN: the model has learned nothing about it.
        """
        return self._table("mask_probability")

    @property
    def embedding(self) -> pd.DataFrame:
        """Mean embedding of every perturbation (T, L); DataError for a model without embeddings.

        The row of a perturbation without training cells is NaN.
        """
        return self._table("embedding")

    def effects(
        self,
        conditions: Label | Sequence[Condition] | None = None,
        *,
        level: float = 0.9,
        draws: int = 100,
        cells: int = 25,
        library: float | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Effects against control with intervals: a table of condition, gene, effect, low, high.

        ``conditions`` is a list: ['A', 'B'] means A and B separately; ['A+B'] or [['A', 'B']] means both in one cell.
        (``sample`` takes one condition, so there ['A', 'B'] means both in one cell.) Default: every perturbation. The
        effect of a condition does not depend on the other conditions in the list.

        An effect is a difference of means of log2(1 + counts per 10,000). The interval contains the share ``level`` of
        the effects under ``draws`` draws of the perturbation latents from the approximate posterior, each computed from
        ``cells`` cells. It reflects the uncertainty of the approximate posterior, not how well the model fits. For a
        model without perturbation latents (the conditional VAE) it only reflects the simulation error.

        ``library``: counts per simulated cell; by default the median of the screen (``Fitted.library``). ConfigError
        if a number is not allowed; DataError if a condition is unknown.
        """
        library = self.library if library is None else library
        check_positive(level=level)
        if level >= 1.0:
            raise ConfigError(f"level: {level!r} is not allowed; it must lie inside (0, 1).")
        check_whole(draws=draws, cells=cells)
        check_positive(library=library)
        if conditions is None:
            conditions = self.perturbations
        if isinstance(conditions, LABELS) or not isinstance(conditions, Iterable):
            conditions = [cast(Label, conditions)]
        asked = [as_text(each) for each in conditions]
        if not asked:
            raise ConfigError("conditions: the list is empty; pass labels or lists of perturbations.")
        names = Names(self.checkpoint)
        *members, control = names.members([*asked, []])

        def mean_and_interval(drawn: np.ndarray) -> np.ndarray:
            return np.stack([drawn.mean(0), *np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)])

        found = effects.effect_draws(
            self.checkpoint.model, members, against=control, draws=draws, cells=cells, library=library, seed=seed,
            summary=mean_and_interval,
        )  # fmt: skip
        rows = {"condition": np.repeat([names.label(condition) for condition in asked], len(self.genes))}
        rows["gene"] = np.tile(self.genes, len(asked))
        return pd.DataFrame(rows | dict(zip(("effect", "low", "high"), found.reshape(3, -1), strict=True)))

    def sample(self, condition: Condition, n: int = 100, *, library: float | None = None, seed: int = 0) -> ad.AnnData:
        """``n`` simulated cells that received ``condition`` ([] or the control's label: none), with counts X (n, G).

        ``condition`` is one condition: ['A', 'B'] simulates cells that received both. (``effects`` takes a list of
        conditions, so there it means two.) ``library``: counts per cell; by default the median of the screen
        (``Fitted.library``). ConfigError if a number is not allowed; DataError if the condition is unknown.
        """
        library = self.library if library is None else library
        check_whole(n=n)
        check_positive(library=library)
        asked, names = as_text(condition), Names(self.checkpoint)
        x = effects.sample(
            self.checkpoint.model, names.members([asked]), samples=n, library=library, seed=f"{seed}/{asked}"
        )[:, 0]
        obs = pd.DataFrame({"condition": names.label(asked)}, index=[f"sample{i}" for i in range(n)])
        return ad.AnnData(x.cpu().numpy(), obs, pd.DataFrame(index=pd.Index(self.genes)))

    # longer than 60 lines because every argument is documented
    def adapt(
        self,
        adata: ad.AnnData,
        *,
        perturbation: str,
        new: Sequence[str] | None = None,
        layer: str | None = None,
        how: str | None = None,
        seed: int = 0,
        progress: bool = True,
        **options,
    ) -> Fitted:
        """The model with new perturbations added, fitted to the cells of an AnnData; this model is not changed.

        Only what belongs to the new perturbations is fitted (docs/model.md, "Transfer"); all else stays the same bits.
        Effects, samples, masks and embeddings work for the new names, and for combinations of new and trained ones.

        Parameters
        ----------
        adata
            Cells with raw counts of all genes of the model, and maybe others, in any order. Controls are not used.
        perturbation
            The obs column with the perturbation of each cell. Controls and combinations are written as in training.
        new
            The perturbations to add. Default: all that the model was not trained on; then cells of others are an error.
        layer
            Layer of the counts (default: X).
        how
            ``gradient``: by the objective of the model. For SVAE+, sVAE and iVAE also ``closed_form`` (their default),
            ``sparse`` and ``iwelbo`` (``samsvae.training.transfer``).
        seed
            Of the noise, where there is any.
        progress
            Log the progress on stderr.
        options
            Of the function that ``how`` names (``gradient``: ``steps``, ``rate``), and, as in ``fit``,
            ``library_size``, ``unlabelled``, ``zero_cells``, ``min_cells`` and ``rare``.

        Raises
        ------
        ConfigError
            If the model has no effects of perturbations (VAE), or an option is unknown or not allowed.
        DataError
            If the genes are others, counts are no counts, a new name was trained, or no cell received it.
        """
        known = self.checkpoint.facts
        cleaning = {key: options.pop(key) for key in CLEANING if key in options}
        check_positive(**options)
        check_whole(**{key: value for key, value in options.items() if key in WHOLE})
        chosen = None if new is None else [str(name) for name in ([new] if isinstance(new, LABELS) else new)]
        with _log_on_stderr(progress):
            screen = screen_of(
                adata, perturbation_column=perturbation, control=known.get("controls") or ["control"],
                separator=known.get("separator", ""), counts="X" if layer is None else f"layer:{layer}",
                genes=list(self.genes), complete=False, **cleaning,
            )  # fmt: skip
            found = adapt_checkpoint(self.checkpoint, arrays_of(screen), chosen, how, seed=seed, **options)
        return Fitted(found, self.history)

    def save(self, path: str | Path) -> None:
        """Write weights, names and settings to a file that ``load`` reads."""
        checkpoint.save(self.checkpoint, path)

    def _table(self, name: str) -> pd.DataFrame:
        tables = self.checkpoint.tables()
        if name not in tables:
            available = f" It has: {', '.join(tables)}." if tables else ""
            raise DataError(f"{name}: the model {self.checkpoint.facts.get('model')!r} has none.{available}")
        return pd.DataFrame(tables[name].cpu().numpy(), index=pd.Index(self.perturbations, name="perturbation"))


# longer than 60 lines because every argument is documented
def fit(
    adata: ad.AnnData,
    model: str = "sams_vae_corr",
    *,
    perturbation: str,
    control: str | Sequence[str],
    layer: str | None = None,
    separator: str = "",
    encoding: str = "sum",
    split: str | None = None,
    device: str | None = None,
    progress: bool = True,
    **settings,
) -> Fitted:
    """Train a model of the zoo (a row of ``samsvae.config.zoo``) on an AnnData, which is not changed.

    Parameters
    ----------
    adata
        Cells with raw counts.
    model
        Name of the row.
    perturbation
        The obs column with the perturbation of each cell.
    control
        Label(s) of unperturbed cells in this column.
    layer
        Layer of the counts (default: X).
    separator
        Text that joins the parts of a combination in a label ('' if there are no combinations).
    encoding
        ``sum`` adds up the parts of a combination; ``unique`` makes it a perturbation of its own.
    split
        An obs column with 'train' and 'val'; cells with 'test' or 'none' are not used. Default: the split of
        ``genes_split`` if that setting is passed, else a random 20 % of the cells are used for validation.
    device
        For example 'cuda'. Default: a GPU if torch sees one.
    progress
        Log the progress on stderr.
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
    """
    if encoding not in ENCODINGS:
        raise ConfigError(f"encoding: {encoding!r} is not known.{nearest(encoding, ENCODINGS)}")
    chosen = row(model)
    if split is not None and settings.get("genes_split") is not None:
        raise ConfigError("split and genes_split: pass only one; the split of genes_split is also used for training.")
    model_settings, training_settings, options = _sort_settings(chosen, settings)
    seed = training_settings.get("seed", TrainingConfig.seed)
    device = usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    check_adata(adata)
    with _log_on_stderr(progress):
        parts = None if options.get("genes_split") else column_split(adata.obs, split, seed)
        screen = screen_of(
            adata, perturbation_column=perturbation, control=control, separator=separator,
            counts="X" if layer is None else f"layer:{layer}", genes_on=None if parts is None else parts == "train",
            **options,
        )  # fmt: skip
        if parts is None:
            parts = screen.obs["split"].to_numpy(str)
        else:
            parts = parts[adata.obs_names.get_indexer(screen.obs_names)]
        _check_parts(parts, screen)
        arrays = arrays_of(screen)
        dosage = encode(arrays, encoding)
        train_cells, val_cells = (cells_of(arrays, parts == name, dosage, device) for name in ("train", "val"))
        sizes = first_fit.by_size(
            cells=len(train_cells), perturbations=len(dosage.names),
            counts_per_cell=train_cells.library.mean().item(), batch_size=training_settings["batch_size"],
        )  # fmt: skip
        config, training = first_fit.build_configs(model_settings, training_settings, sizes)
        net = Model(config, len(arrays.genes), len(dosage.names), seed=training.seed).to(device)
        initialise(net, train_cells, seed=training.seed)
        names = screen_facts(arrays, dosage, train_cells)
        result = train(net, train_cells, val_cells, training, genes=arrays.genes)
        found = verdict(net, result, train_cells, val_cells, names["training_cells"])
        for sentence in found.words():
            log.info("%s", sentence)
    named = {"run": model, "model": model, "encoding": encoding, "training": vars(training)}
    best = {"best_step": result.best_step, "validation_loss": result.best_loss}
    described = facts(named, names, **best, fit=found.as_dict())
    trained = Checkpoint(net, tuple(arrays.genes.tolist()), dosage.names, described)
    return Fitted(trained, pd.DataFrame(result.history, columns=list(HISTORY)))


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
    known = {item.name for item in fields(CustomOptions)} - {"perturbation_column", "counts", "cell_table"}
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"{unknown[0]!r} is not a setting.{nearest(unknown[0], sorted(set.union(known, *homes)))}")
    return model, training, options


def load(path: str | Path, device: str = "cpu") -> Fitted:
    """Load a model that ``Fitted.save`` or a run of the workflow (``runs/RUN/model.pt``) has written.

    CheckpointError if the file is damaged or is not such a model; ConfigError if torch cannot use the device.
    """
    return Fitted(checkpoint.load(path, device), pd.DataFrame(columns=list(HISTORY)))


def _check_parts(parts: np.ndarray, screen: ad.AnnData) -> None:
    """DataError if no cell is 'train' or 'val'; a warning if no training cell is a control."""
    for name in ("train", "val"):
        if not (parts == name).any():
            raise DataError(f"split: no cell is {name!r}; training needs cells with 'train' and with 'val'.")
    control = screen.uns["control"]
    if not (screen.obs["condition"].to_numpy(str)[parts == "train"] == control).any():
        log.warning("no training cell is a control (%r), so the model cannot learn effects against it", control)


@contextmanager
def _log_on_stderr(progress: bool) -> Iterator[None]:
    """Print the log of the package on stderr during the block, if ``progress``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = log.level
    if progress:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)

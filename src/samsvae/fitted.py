"""A fitted model for notebooks: effects with intervals, masks, embeddings, samples, new perturbations, save.

Letters: n cells, G genes, T perturbations, L latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.config.validate import check_positive, check_whole
from samsvae.config.vocabulary import LIBRARY
from samsvae.errors import ConfigError, DataError
from samsvae.evaluation import model_effects as effects
from samsvae.evaluation.named_conditions import LABELS, Condition, Label, Names, as_text
from samsvae.fit_progress import log_on_stderr
from samsvae.screens.custom import screen_of
from samsvae.screens.pack import arrays_of
from samsvae.training import checkpoint
from samsvae.training.adapt_checkpoint import adapt_checkpoint
from samsvae.training.checkpoint import Checkpoint

__all__ = ["Fitted"]

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
        with log_on_stderr(progress):
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

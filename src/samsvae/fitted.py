"""A fitted model for notebooks: effects with intervals, masks, embeddings, samples, new perturbations, save.

Letters: n cells, G genes, T perturbations, L latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.config.first_fit import validation_share
from samsvae.config.validate import check_positive, check_whole
from samsvae.config.vocabulary import LIBRARY
from samsvae.errors import ConfigError, DataError
from samsvae.evaluation.cell_states import counterfactual, latent_means
from samsvae.evaluation.effect_tables import effect_table, mean_and_interval, signs
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.evaluation.latent_genes import latent_effects
from samsvae.evaluation.masks import latent_names
from samsvae.evaluation.named_conditions import LABELS, Condition, Label, Names, as_text
from samsvae.evaluation.sampled_conditions import sample_condition
from samsvae.fit_progress import show_progress
from samsvae.reader import OPTIONS, Reader
from samsvae.screens.pack import arrays_of
from samsvae.screens.splits import check_parts, column_split
from samsvae.training import checkpoint
from samsvae.training.adapt_checkpoint import adapt_checkpoint
from samsvae.training.checkpoint import HISTORY, Checkpoint
from samsvae.training.more import train_more

__all__ = ["Fitted"]

#: Options of a fit to new perturbations that are whole numbers.
WHOLE = ("steps", "particles", "rounds")


@dataclass(frozen=True, repr=False)
class Fitted:
    """A trained model with the names of its genes and perturbations.

    A condition is a label ('A', 'A+B', the control's label) or a list of perturbations. A label means the same as in
    the AnnData: the order of its parts does not matter, and control labels among them are dropped. A label that is a
    number there may be passed as a number: 1 means '1'. A list is a dosage: its perturbations (each once) are added up,
    in the unique encoding too. Models that read one perturbation per cell (SVAE+, sVAE, iVAE) accept only dosages of
    one perturbation. For perturbations without training cells a warning is logged.

    Methods that read cells take an AnnData with raw counts of all genes of the model, and maybe others, in any order.
    ``perturbation`` and ``layer`` say where they are; by default where ``fit`` found them ('X' is X itself). Further
    keywords are options of a screen: ``library_size``, ``unlabelled``, ``zero_cells``, ``min_cells``, ``rare``, and of
    guides (``targets``, ``target_pattern``, ``guides``, ``threshold``, ``perturbation_names``); by default those of
    ``fit``, except ``min_cells`` and ``rare``. DataError if genes are missing, counts are no counts, or the model does
    not know a perturbation.
    """

    checkpoint: Checkpoint

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
    def covariates(self) -> dict[str, list[str]]:
        """The levels of each covariate that the model reads, by its name; {} if it reads none."""
        return self.checkpoint.covariates

    @property
    def library(self) -> float:
        """Counts per simulated cell: the median library size of the screen; 10,000 if an older file lacks it."""
        return float(self.checkpoint.facts.get("library", LIBRARY))

    @property
    def verdict(self) -> list[str]:
        """How the fit went, in sentences; empty for weights that were not trained here."""
        return list(self.checkpoint.facts.get("fit", {}).get("words", ()))

    @property
    def history(self) -> pd.DataFrame:
        """Losses by step (step, epoch, train_loss, val_loss), in nats per cell; no rows if the file has none."""
        return pd.DataFrame(self.checkpoint.facts.get("history"), columns=list(HISTORY))

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
        covariates: Mapping[str, Label] | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Effects against control, or against the zero dosage without one: condition, gene, effect, low, high.

        ``conditions`` is a list: ['A', 'B'] means A and B separately; ['A+B'] or [['A', 'B']] means both in one cell.
        (``sample`` takes one condition, so there ['A', 'B'] means both in one cell.) Default: every perturbation. The
        effect of a condition does not depend on the other conditions in the list.

        An effect is a difference of means of log2(1 + counts per 10,000). The interval contains the share ``level`` of
        the effects under ``draws`` draws of the perturbation latents from the approximate posterior, each computed from
        ``cells`` cells. It reflects the uncertainty of the approximate posterior, not how well the model fits. For a
        model without perturbation latents (the conditional VAE) it only reflects the simulation error.

        ``library``: counts per simulated cell; by default the median of the screen (``Fitted.library``).
        ``covariates``: the level of some covariates, such as {'batch': 'b1'}; over the others the effect is averaged,
        each level as often as in the training cells. The control has the same levels. ConfigError if a number is not
        allowed; DataError if a condition, a covariate or its level is unknown.

        >>> fitted.effects(["A", "A+B"]).columns.tolist()
        ['condition', 'gene', 'effect', 'low', 'high']
        """
        check_positive(level=level)
        if level >= 1.0:
            raise ConfigError(f"level: {level!r} is not allowed; it must lie inside (0, 1).")
        return effect_table(
            self.checkpoint, conditions, ("effect", "low", "high"), mean_and_interval(level),
            draws=draws, cells=cells, library=self.library if library is None else library, covariates=covariates,
            seed=seed,
        )  # fmt: skip

    def differential_expression(
        self,
        conditions: Label | Sequence[Condition] | None = None,
        *,
        delta: float = 0.25,
        draws: int = 400,
        cells: int = 25,
        library: float | None = None,
        covariates: Mapping[str, Label] | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Genes that a condition changes: a table of condition, gene, effect, sd, probability, lfsr.

        ``effect`` (log2) is as in ``effects``, and ``sd`` its standard deviation over ``draws`` from the approximate
        posterior. ``probability`` is the share of draws with |effect| > ``delta``. ``lfsr``, the local false sign rate,
        is the smaller of the shares with effect <= 0 and effect >= 0; draws with all masks off count for both. The two
        come in steps of 1 / ``draws``. They reflect the approximate posterior, not how well the model fits.

        DataError for a model without random perturbation latents (conditional VAE, VAE, iVAE), which has no posterior
        of its effects. Other arguments and errors as in ``effects``.

        >>> table = fitted.differential_expression("A")
        >>> table[table["probability"] > 0.95].nlargest(3, "effect")["gene"].sort_values().tolist()
        ['g0', 'g1', 'g2']
        """
        check_positive(delta=delta)
        if not self.checkpoint.model.draws_perturbations():
            name = self.checkpoint.facts.get("model", "without a name")
            raise DataError(
                f"differential_expression: the model {name!r} has no posterior of its effects. Use effects."
            )
        return effect_table(
            self.checkpoint, conditions, ("effect", "sd", "probability", "lfsr"), signs(delta),
            draws=draws, cells=cells, library=self.library if library is None else library, covariates=covariates,
            seed=seed,
        )  # fmt: skip

    def latent_genes(
        self, *, step: float = 1.0, draws: int = 200, library: float | None = None, seed: int = 0
    ) -> pd.DataFrame:
        """What each latent does to each gene: log2 fold changes of mean expression, a table of latents x genes (L, G).

        The latent is raised by ``step`` in ``draws`` unperturbed cells; 1 is one standard deviation of the basal state
        under its prior. ``.loc["z3"].nlargest(10)`` are the genes that latent z3 raises most. The sign of a latent
        means nothing by itself: multiply by a perturbation's embedding. For real-valued models: differences of means.
        ConfigError if a number is not allowed.

        >>> fitted.latent_genes().shape
        (6, 20)
        """
        library = self.library if library is None else library
        check_whole(draws=draws)
        check_positive(step=step, library=library)
        found = latent_effects(self.checkpoint.model, library=library, step=step, draws=draws, seed=seed)
        return pd.DataFrame(found, pd.Index(latent_names(len(found)), name="latent"), pd.Index(self.genes, name="gene"))

    def latents(
        self,
        adata: ad.AnnData,
        *,
        perturbation: str | None = None,
        layer: str | None = None,
        key_added: str = "X_samsvae",
        **options: Any,
    ) -> None:
        """Write the latent states of cells to an AnnData, in place, as scanpy's tools do.

        ``obsm[key_added]`` (n, L): the state z of every cell, for instance for ``scanpy.pp.neighbors(adata,
        use_rep=key_added)``. ``obsm[key_added + "_basal"]`` (n, L): its state without the effect of its perturbations.
        Both are posterior means. ``uns[key_added]``: the model, and how cells were read. Cells that the options drop
        have NaN.

        >>> fitted.latents(adata)
        >>> adata.obsm["X_samsvae"].shape, adata.obsm["X_samsvae_basal"].shape
        ((900, 6), (900, 6))
        """
        reader = Reader(self.checkpoint, perturbation, layer)
        names, cells = reader.cells(adata, options)
        at, (z, basal) = adata.obs_names.get_indexer(names), latent_means(self.checkpoint.model, cells)
        for key, values in ((key_added, z), (f"{key_added}_basal", basal)):
            every = np.full((adata.n_obs, values.shape[1]), np.nan, np.float32)
            every[at] = values.cpu().numpy()
            adata.obsm[key] = every
        adata.uns[key_added] = {"model": str(self.checkpoint.facts.get("model")), **reader.where}

    def score(
        self,
        adata: ad.AnnData,
        *,
        particles: int = 100,
        perturbation: str | None = None,
        layer: str | None = None,
        seed: int = 0,
        **options: Any,
    ) -> pd.Series:
        """The predictive IWELBO of every cell (n,), in nats (docs/model.md, eq. 13): higher is better.

        A lower bound of the cell's log-likelihood given its perturbations and library size, which rises with
        ``particles``. Cells that the options drop have NaN.

        >>> adata.obs["iwelbo"] = fitted.score(adata, particles=10)
        """
        check_whole(particles=particles)
        names, cells = Reader(self.checkpoint, perturbation, layer).cells(adata, options)
        bounds = iwelbo(self.checkpoint.model, cells, particles=particles, seed=seed).cpu().numpy()
        return pd.Series(bounds, names, name="iwelbo").reindex(adata.obs_names)

    def predict(
        self,
        adata: ad.AnnData,
        condition: Condition,
        *,
        draws: int = 20,
        sample: bool = False,
        perturbation: str | None = None,
        layer: str | None = None,
        seed: int = 0,
        **options: Any,
    ) -> ad.AnnData:
        """The same cells as if they had received ``condition`` instead ([] or the control's label: nothing).

        The basal state of each cell is inferred from its counts and its own perturbations, which are then exchanged.
        X (n, G), float32: expected counts at the cell's own library size, averaged over ``draws`` from the approximate
        posterior; with ``sample``, counts of one draw. Normalise X as you do your data. Cells that the options drop
        are left out. ConfigError if a number is not allowed; DataError if the condition is unknown.

        >>> controls = adata[adata.obs["guide"] == "control"]
        >>> treated, same = fitted.predict(controls, "A"), fitted.predict(controls, [])
        >>> bool(treated[:, "g0"].X.mean() > same[:, "g0"].X.mean())
        True
        """
        check_whole(draws=draws)
        asked, names = as_text(condition), Names(self.checkpoint)
        members = names.members([asked])[0]
        rows, cells = Reader(self.checkpoint, perturbation, layer).cells(adata, options)
        x = counterfactual(self.checkpoint.model, cells, members, draws=draws, sample=sample, seed=seed)
        obs = pd.DataFrame({"condition": names.label(asked)}, index=rows)
        return ad.AnnData(x, obs, pd.DataFrame(index=pd.Index(self.genes)))

    def sample(
        self,
        condition: Condition,
        n: int = 100,
        *,
        library: float | None = None,
        covariates: Mapping[str, Label] | None = None,
        seed: int = 0,
    ) -> ad.AnnData:
        """``n`` simulated cells that received ``condition`` ([] or the control's label: none), with counts X (n, G).

        ``condition`` is one condition: ['A', 'B'] simulates cells that received both. (``effects`` takes a list of
        conditions, so there it means two.) ``library``: counts per cell; by default the median of the screen
        (``Fitted.library``). ``covariates`` as in ``effects``; obs has the levels of every cell. ConfigError if a
        number is not allowed; DataError if the condition, a covariate or its level is unknown.

        >>> fitted.sample(["A", "C"], n=50).shape
        (50, 20)
        """
        library = self.library if library is None else library
        return sample_condition(self.checkpoint, condition, n, library=library, covariates=covariates, seed=seed)

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

        ``new``: the perturbations to add; by default all that the model was not trained on, and then cells of others
        are an error. Controls are not used. ``layer``: of the counts (default: X). ``how``: ``gradient``, by the
        objective of the model; for SVAE+, sVAE and iVAE also ``closed_form`` (their default), ``sparse`` and ``iwelbo``
        (``samsvae.training.transfer``), whose options may be passed (``gradient``: ``steps``, ``rate``), as may options
        of a screen. ``seed``: of the noise, where there is any.

        ConfigError if the model has no effects of perturbations (VAE), or an option is unknown or not allowed;
        DataError, besides that of all cells, if a new name was trained or no cell received it, or if a covariate of the
        model is missing or has a new level.

        >>> d = adata[adata.obs["guide"] == "C"].copy()
        >>> d.obs["guide"] = "D"
        >>> fitted.adapt(d, perturbation="guide", steps=5, progress=False).perturbations
        ('A', 'B', 'C', 'D')
        """
        cleaning = {key: options.pop(key) for key in OPTIONS if key in options}
        check_positive(**options)
        check_whole(**{key: value for key, value in options.items() if key in WHOLE})
        chosen = None if new is None else [str(name) for name in ([new] if isinstance(new, LABELS) else new)]
        with show_progress(progress):
            screen = Reader(self.checkpoint, perturbation, layer or "X").screen(adata, cleaning)
            found = adapt_checkpoint(self.checkpoint, arrays_of(screen), chosen, how, seed=seed, **options)
        return Fitted(found)

    def train_more(
        self,
        adata: ad.AnnData,
        *,
        split: str | None = None,
        perturbation: str | None = None,
        layer: str | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> Fitted:
        """The model trained further, on the same or on other cells; this model is not changed.

        ``settings`` are those of a training (``TrainingConfig``), by default the earlier ones; ``steps`` counts the new
        steps. Options of a screen may be among them. ``split`` as in ``fit``: the same AnnData gives the same random
        validation cells. The weights go on; Adam's moments, the noise and the warm-up do not. The result has the best
        weights of the new steps, and a history that goes on counting.

        ConfigError if a setting is not allowed, or the model was imported without settings; DataError as for all cells.

        >>> int(fitted.train_more(adata, steps=20, progress=False).history["step"].iloc[-1])
        420
        """
        options = {key: settings.pop(key) for key in OPTIONS if key in settings}
        seed = self.checkpoint.facts.get("training", {}).get("seed", 0)
        with show_progress(progress) as report_every:
            parts = column_split(adata.obs, split, seed, validation_share("backgrounds" not in self.checkpoint.facts))
            screen = Reader(self.checkpoint, perturbation, layer).screen(adata, options)
            parts = parts[adata.obs_names.get_indexer(screen.obs_names)]
            check_parts(parts)
            arrays = arrays_of(screen)
            found = train_more(self.checkpoint, arrays, parts, report_every=report_every, **settings)
        return Fitted(found)

    def save(self, path: str | Path) -> None:
        """Write weights, names and settings to a file that ``load`` reads."""
        checkpoint.save(self.checkpoint, path)

    def _table(self, name: str) -> pd.DataFrame:
        tables = self.checkpoint.tables()
        if name not in tables:
            available = f" It has: {', '.join(tables)}." if tables else ""
            raise DataError(f"{name}: the model {self.checkpoint.facts.get('model')!r} has none.{available}")
        values = tables[name].cpu().numpy()
        columns = pd.Index(latent_names(values.shape[1]), name="latent")
        return pd.DataFrame(values, pd.Index(self.perturbations, name="perturbation"), columns)

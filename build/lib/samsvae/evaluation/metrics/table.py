"""The one table of metrics: a row for every name in the column ``metric`` of a score table.

To add a metric, compute it in a module of this folder, add its row here, and call it where its kind of score is written
(CONTRIBUTING.md lists the places).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from samsvae.errors import DataError, nearest
from samsvae.evaluation.metrics.constants import (
    CLASSIFIERS,
    FEATURES,
    FIT,
    HONEST,
    LEVELS,
    MAJORITY,
    MATCHES,
    OVERLAPS,
    PROTOCOLS,
    TOP,
    TRANSFER,
)
from samsvae.evaluation.metrics.importance_weights import HEAVY


@dataclass(frozen=True)
class Metric:
    """One metric.

    ``name``: as in the column ``metric``. ``label``: for an axis, with the unit in brackets. ``protocols``: the values
    that the column ``protocol`` can have for it; () if its table has no such column. ``better``: the direction of
    improvement; '' for a reference line that does not depend on the model. ``unit``: '' for a plain number.
    ``low``, ``high``: smallest and largest possible value; None without a bound. ``sentence``: describes it.
    """

    name: str
    label: str
    protocols: tuple[str, ...]
    better: Literal["higher", "lower", ""]
    unit: str
    low: float | None
    high: float | None
    sentence: str


NATS = "nats per cell"

_PUBLISHED = PROTOCOLS[:1]
_HELD_OUT = PROTOCOLS[1:]


def _likelihood() -> list[Metric]:
    def row(name: str, label: str, protocols: tuple[str, ...], sentence: str) -> Metric:
        return Metric(name, f"{label} ({NATS})", protocols, "higher", NATS, None, None, sentence)

    return [
        row(
            "iwelbo",
            "IWELBO",
            (*_PUBLISHED, HONEST),
            "Mean over cells of the importance-weighted lower bound of the log-likelihood.",
        ),
        row(
            "iwelbo_relative",
            "IWELBO relative to the reference",
            _PUBLISHED,
            "IWELBO minus that of a reference model on the same split.",
        ),
        row(
            "log_likelihood",
            "log-likelihood",
            _HELD_OUT,
            "Mean log-likelihood of held-out cells under a negative binomial that knows only each gene's mean and "
            "dispersion.",
        ),
    ]


def _weights() -> list[Metric]:
    ess = "effective sample size of a cell's importance weights"
    return [
        Metric("ess_median", "effective sample size, median", (HONEST,), "higher", "", 1.0, None,
               f"Median over cells of the {ess}."),
        Metric("ess_5", "effective sample size, 5 % quantile", (HONEST,), "higher", "", 1.0, None,
               f"Quantile over cells, at 5 %, of the {ess}."),
        Metric("ess_below_10", "cells with an effective sample size below 10", (HONEST,), "lower", "", 0.0, 1.0,
               "Share of the cells with an effective sample size below 10."),
        Metric(f"pareto_above_{HEAVY}", "cells with heavy weights", (HONEST,), "lower", "", 0.0, 1.0,
               f"Share of the cells whose importance weights have a Pareto k above {HEAVY}: a few weights dominate."),
    ]  # fmt: skip


def _effects() -> list[Metric]:
    pooled = "over all conditions and genes"
    top = f"over the {TOP} genes with the largest effects in the data, for each condition"
    return [
        Metric("ate_pearson", "ATE-Pearson", PROTOCOLS, "higher", "", -1.0, 1.0,
               f"Pearson correlation of predicted and observed average treatment effects {pooled}."),
        Metric("ate_r2", "ATE-R²", PROTOCOLS, "higher", "", None, 1.0,
               f"Coefficient of determination of predicted average treatment effects {pooled}."),
        Metric(f"ate_pearson_top{TOP}", f"ATE-Pearson, top {TOP} genes", PROTOCOLS, "higher", "", -1.0, 1.0,
               f"Pearson correlation of predicted and observed average treatment effects {top}."),
        Metric(f"ate_r2_top{TOP}", f"ATE-R², top {TOP} genes", PROTOCOLS, "higher", "", None, 1.0,
               f"Coefficient of determination of predicted average treatment effects {top}."),
        Metric("ate_pearson_per_condition", "ATE-Pearson, mean of conditions", _HELD_OUT, "higher", "", -1.0, 1.0,
               "Mean over conditions of the Pearson correlation over genes of predicted and observed average treatment "
               "effects."),
    ]  # fmt: skip


def _recovery() -> list[Metric]:
    def row(name: str, label: str, sentence: str, better: Literal["higher", ""] = "higher") -> Metric:
        return Metric(name, label, _PUBLISHED, better, "", 0.0, 1.0, sentence)

    rules = dict(zip(MATCHES, ("for the most true positives", "for the highest correlation"), strict=True))
    scores = {
        "precision": ("mask precision", "Share of the inferred mask entries that are true"),
        "recall": ("mask recall", "Share of the true mask entries that are inferred"),
        "f1": ("mask F1", "Harmonic mean of precision and recall of the inferred mask entries"),
    }
    masks = [
        row(f"mask_{name}/{rule}", label, f"{sentence}, with latents matched {how}.")
        for rule, how in rules.items()
        for name, (label, sentence) in scores.items()
    ]
    return [
        row("mcc_pearson", "MCC (Pearson)", "Mean absolute Pearson correlation of true and matched learned latents."),
        row("mcc_spearman", "MCC (Spearman)", "Mean absolute rank correlation of true and matched learned latents."),
        row("latent_r2", "latent R²", "Mean R² of linear regressions of each true latent on all learned ones."),
        *masks,
        row(
            "mask_density",
            "mask density",
            "Share of ones in the inferred mask; a mask below 1 % is called empty, because its scores mean little.",
            "",
        ),
        row(
            "mask_f1_all_ones",
            "mask F1, all ones",
            "F1 of a mask of ones: the line that an inferred mask must beat.",
            "",
        ),
    ]


def _pathways() -> list[Metric]:
    scores = {
        "accuracy": ("pathway accuracy", "Share of perturbations whose pathway is predicted correctly"),
        "balanced_accuracy": (
            "pathway balanced accuracy",
            "Mean over pathways of the share of perturbations whose pathway is predicted correctly",
        ),
    }
    features = {
        "mask": "their mask probabilities",
        "embedding": "their embeddings (before the mask)",
        "effects": "their effects, as the model or a baseline predicts them,",
    }
    how = {
        "logistic": "by logistic regression",
        "forest": "by a random forest",
        "knn": "by the 5 nearest neighbours",
    }
    rows = [
        Metric(f"{name}_pathway_{metric}/{classifier}", f"{name} {label}", _PUBLISHED, "higher", "", 0.0, 1.0,
               f"{sentence} from {'their masks' if (name, classifier) == ('mask', 'knn') else features[name]} "
               f"{how[classifier]}.")
        for name in FEATURES
        for classifier in CLASSIFIERS
        if name == "mask" or classifier != "forest"
        for metric, (label, sentence) in scores.items()
    ]  # fmt: skip
    always = "by always naming the largest pathway: the line that a mask must beat."
    return rows + [
        Metric(f"mask_pathway_{metric}/{MAJORITY}", f"mask {label}", _PUBLISHED, "", "", 0.0, 1.0,
               f"{sentence} {always}")
        for metric, (label, sentence) in scores.items()
    ]  # fmt: skip


def _masks() -> list[Metric]:
    def row(
        name: str, label: str, better: Literal["higher", "lower", ""], low: float | None, high: float | None, text: str
    ) -> Metric:
        return Metric(name, label, (), better, "", low, high, text)

    pairs = "Mean over pairs of seeds of"
    rank = "the rank of another perturbation of the same gene by the similarity of their masks"
    return [
        row("mask_jaccard", "Jaccard of masks", "", 0.0, 1.0,
            f"{pairs} the share of mask entries in both of two seeds among those in either, latents matched; a mask of "
            "ones has 1."),
        row("mask_jaccard_null", "Jaccard of permuted masks", "", 0.0, 1.0,
            "The same with the perturbations of one of the two masks permuted."),
        row("mask_excess", "Jaccard of masks beyond chance", "higher", None, 1.0,
            "The Jaccard of masks on a scale from permuted perturbations (0) to equal masks (1)."),
        row("mask_gram", "stability of masks", "higher", -1.0, 1.0,
            f"{pairs} the correlation of how much every two perturbations share a mask; latents need no matching."),
        row("mask_active_latents", "active latents of masks", "", 0.0, None,
            "Mean over seeds of the number of latents with a mask entry above 0.5 for at least one perturbation."),
        row("sibling_rank", "rank of siblings", "higher", 0.0, 1.0,
            f"Mean over perturbations of {rank}, among all perturbations of other genes: 1 is the most similar, 0.5 is "
            "chance."),
        row("sibling_rank_null", "rank of siblings, permuted", "", 0.0, 1.0,
            "The same with genes permuted over perturbations."),
        row("sibling_rank_p", "p of the rank of siblings", "lower", 0.0, 1.0,
            "Share of permutations with at least this rank, the data counted as one."),
    ]  # fmt: skip


def _expression() -> list[Metric]:
    def row(name: str, label: str, sentence: str) -> Metric:
        return Metric(name, label, (), "higher", "", 0.0, 1.0, sentence)

    overlaps = [
        row(f"de_overlap{k}", f"overlap of the top {k} DE genes",
            f"Share of the data's {k} most differentially expressed genes that are among the model's {k}.")
        for k in OVERLAPS
    ]  # fmt: skip
    return [
        *overlaps,
        row("de_sign_accuracy", "DE sign accuracy",
            "Share of the data's significant genes whose predicted fold change has the same sign."),
        row("de_auprc", "DE average precision",
            "Average precision of the model's absolute test scores for the data's significant genes."),
    ]  # fmt: skip


def _fit() -> list[Metric]:
    return [
        Metric("levelled_off", "validation loss has levelled off", (FIT,), "", "", 0.0, 1.0,
               "Whether (1) the last fifth of the validations brought less than 0.1 % of the loss's drop, or not (0)."),
        Metric("gain_over_intercept_only", f"gain over an intercept-only model ({NATS})", (FIT,), "higher", NATS, None,
               None, "Validation loss of a model that knows only the mean of each gene, minus that of the model."),
        Metric("active_latents", "active latents", (FIT,), "", "", 0.0, None,
               "Latents whose posterior mean varies over the validation cells (variance above 0.01)."),
        Metric("masks_undecided", "undecided mask entries", (FIT,), "lower", "", 0.0, 1.0,
               "Share of the mask probabilities between 0.25 and 0.75."),
        Metric("ate_library", "depth of a sampled cell (counts)", (FIT,), "", "counts", 0.0, None,
               "Counts of the sampled cells from which the model's average treatment effects were computed."),
    ]  # fmt: skip


def _honest() -> list[Metric]:
    against = {"control": "against control", "centred": "minus the mean effect of the scored conditions"}
    effects = [
        metric
        for reference, words in against.items()
        for metric in (
            Metric(f"nmse_{reference}", f"error of effects, {reference}", (HONEST,), "lower", "", None, None,
                   f"Squared error of the effects of test cells, {words}, without their sampling error, relative to "
                   "their own size: 0 is perfect, 1 is no better than no effect."),
            Metric(f"pearson_{reference}", f"Pearson r of effects, {reference}", (HONEST,), "higher", "", -1.0, 1.0,
                   f"Mean over conditions of the Pearson correlation over genes of effects of test cells, {words}."),
            Metric(f"pearson_top{TOP}_{reference}", f"Pearson r, top {TOP} genes, {reference}", (HONEST,), "higher", "",
                   -1.0, 1.0, f"The same over the {TOP} genes of each condition with the clearest effects in training "
                   "cells."),
            Metric(f"pearson_pooled_{reference}", f"pooled Pearson r, {reference}", (HONEST,), "higher", "", -1.0, 1.0,
                   f"Pearson correlation over all conditions and genes of effects of test cells, {words}."),
            Metric(f"cosine_{reference}", f"cosine of effects, {reference}", (HONEST,), "higher", "", -1.0, 1.0,
                   f"Mean over conditions of the cosine over genes of effects of test cells, {words}."),
            Metric(f"r2_{reference}", f"R² of effects, {reference}", (HONEST,), "higher", "", None, 1.0,
                   f"Mean over conditions of R² over genes of effects of test cells, {words}; their sampling error "
                   "lowers it."),
            Metric(f"mse_{reference}", f"mean squared error of effects, {reference}", (HONEST,), "lower", "", 0.0, None,
                   f"Mean squared error over conditions and genes of effects of test cells, {words}; their sampling "
                   "error is part of it."),
        )
    ]  # fmt: skip
    levels = [
        Metric(f"{name}{level}", f"{words}, {level:.0%}", (HONEST,), "", "", 0.0, 1.0, f"{sentence} of {level:.0%}.")
        for name, words, sentence in (
            ("coverage", "coverage", "Share of the effects of test cells inside the predictive interval"),
            ("coverage_top", "coverage, top 20 genes", "The same for the 20 genes of each condition with the largest "
             "posterior mean, with an interval"),
            ("naive", "naive coverage", "Share inside the interval of the posterior alone, without the error of the "
             "test cells, with an interval"),
        )
        for level in LEVELS
    ]  # fmt: skip
    return [
        *effects,
        Metric("discrimination", "discrimination", (HONEST,), "higher", "", 0.0, 1.0,
               "Rank of the right condition by cosine distance to each prediction, target genes left out: 1 is the "
               "closest, 0.5 says nothing."),
        Metric("interaction_pearson", "Pearson r of interactions", (HONEST,), "higher", "", -1.0, 1.0,
               "Mean over pairs of the Pearson correlation over genes of their interactions, each side with its own "
               "single effects."),
        Metric("interaction_nmse", "error of interactions", (HONEST,), "lower", "", None, None,
               "Squared error of the interactions of pairs, without their sampling error, relative to their own size: "
               "0 is perfect, 1 is no better than adding the single effects."),
        *levels,
        Metric("pit_mean", "mean of the predictive CDF", (HONEST,), "", "", 0.0, 1.0,
               "Mean of the predictive distribution function at the effects of test cells; 0.5 without bias."),
        Metric("posterior_share", "share of the posterior in the variance", (HONEST,), "", "", 0.0, 1.0,
               "Posterior variance over that variance plus the squared error of test cells: near 0, coverage tests "
               "the error, not the model."),
        Metric("n", "effects in the coverage", (HONEST,), "", "", 0.0, None, "Number of conditions times genes."),
        Metric("n_top", "effects in the coverage of the top genes", (HONEST,), "", "", 0.0, None,
               "Number of conditions times their top genes."),
    ]  # fmt: skip


def _cells() -> list[Metric]:
    def row(name: str, label: str, sentence: str, low: float = 0.0, better: Literal["higher", ""] = "higher") -> Metric:
        return Metric(name, f"{label}, test cells", (HONEST,), better, "", low, 1.0, sentence)

    return [
        Metric("energy_share", "energy distance of cells, relative to control", (HONEST,), "lower", "", None, None,
               "Energy distance of predicted to test cells, relative to that of training controls: 0 is perfect, 1 is "
               "no better than control cells."),
        Metric("variance_ratio", "variance of cells (log2 of a ratio)", (HONEST,), "", "log2 of a ratio", None, None,
               "Mean over conditions of log2 of the variance of predicted cells over that of test cells; 0 is right."),
        row("auprc", "DE average precision",
            "Average precision of the test scores of predicted cells for the genes that are significant in test "
            "cells."),
        row("auprc_chance", "DE average precision of chance",
            "Share of genes that are significant in test cells: the average precision of random scores.", better=""),
        row("sign", "DE sign accuracy",
            "Share of the genes that are significant in test cells whose difference has the same sign in predicted "
            "cells."),
        row("mcc", "DE Matthews correlation",
            "Matthews correlation of the genes that are significant in predicted and in test cells.", -1.0),
        row("jaccard", "overlap of DE genes",
            "Genes that are significant in predicted and in test cells, over all that are significant in either."),
        *(row(f"overlap{k}", f"overlap of the top {k} DE genes",
              f"Share of the {k} genes with the largest test scores in test cells that are among those of predicted "
              "cells.") for k in OVERLAPS),
    ]  # fmt: skip


def _transfer() -> list[Metric]:
    def shift(name: str, label: str, sentence: str) -> Metric:
        return Metric(f"shift_{name}", label, (TRANSFER,), "higher", "", 0.0, 1.0, sentence)

    found = "entries of the embeddings of new perturbations that are not 0 (`sparse`)"
    return [
        Metric("inll", f"minus the IWELBO ({NATS})", (TRANSFER,), "lower", NATS, None, None,
               "Minus the importance-weighted bound of cells of new perturbations; of a baseline, minus their "
               "log-likelihood."),
        Metric("nelbo", f"minus the ELBO of cells ({NATS})", (TRANSFER,), "lower", NATS, None, None,
               "Minus the log-likelihood given the state of a cell, plus the KL of the state."),
        Metric("gain", f"gain over the training mean ({NATS})", (TRANSFER,), "higher", NATS, None, None,
               "The `inll` of the training cells' mean profile minus that of the model, on the same cells."),
        Metric("effect_pearson", "Pearson r of effects of new perturbations", (TRANSFER,), "higher", "", -1.0, 1.0,
               "Pearson correlation over genes of the predicted effect and that of scored cells, against control or "
               "the mean of the old perturbations; of `own_profile`: of the effect in its own cells."),
        shift("precision", "precision of targets", f"Share of the {found} that are true targets."),
        shift("recall", "recall of targets", f"Share of the true targets of a simulation among the {found}."),
        shift("f1", "F1 of targets", f"Harmonic mean of precision and recall of the {found}."),
        Metric("n_scored", "new perturbations scored", (TRANSFER,), "", "", 0.0, None,
               "Number of new perturbations that were scored."),
        Metric("n_left_out", "new perturbations left out", (TRANSFER,), "", "", 0.0, None,
               "Number of new perturbations that were not scored: too few cells, or nothing to adapt (combinations of "
               "trained perturbations)."),
    ]  # fmt: skip


#: Every metric by name, in the order of the documentation.
METRICS: dict[str, Metric] = {
    row.name: row
    for rows in (
        *(_likelihood, _weights, _effects, _recovery, _pathways, _masks, _expression, _fit, _honest, _cells, _transfer),
    )
    for row in rows()
}


def metric(name: str) -> Metric:
    """The row of a metric; DataError with the nearest name for an unknown one."""
    if name not in METRICS:
        raise DataError(f"metric {name!r} is not known.{nearest(name, METRICS)}")
    return METRICS[name]


def axis_label(name: str) -> str:
    """The label of an axis that shows a metric: the quantity and its unit; DataError for an unknown name."""
    return metric(name).label

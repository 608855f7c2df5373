"""The table of figures: one row per figure, which every experiment gets if its data allow it.

The rules, targets, report, README and tests read this table. A figure called NAME is drawn by
``samsvae.figures.NAME``: its ``tables`` reads the files, its ``draw`` draws what ``tables`` returns, and its ``SAVED``
says which tables are written next to the figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: What an experiment may have, with the words for it (``samsvae.study.figure_plan`` decides it from the configuration alone).
FEATURES = {
    "masks": "a model that infers masks",
    "combinations": "a screen with combinations",
    "control": "control cells",
    "counts": "integer counts",
    "truth": "simulated data with known masks and latents",
    "training": "a training, rather than imported weights alone",
}


@dataclass(frozen=True)
class FigureRow:
    """One figure.

    ``needs``: features without which it is not drawn. ``inputs``: the arguments of its ``tables``, each with the
    name under which samsvae.study.figure_plan finds its files. ``settings``: its other arguments.
    ``saved``: the tables written next to it ('' is FIGURE.tsv, others FIGURE.NAME.tsv). ``caption``: paragraphs of
    plain text with ``**bold**`` and ``*italic*``.
    """

    name: str
    title: str
    inputs: Mapping[str, str]
    saved: tuple[str, ...]
    caption: str
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


ROWS = (
    FigureRow(
        "data_card",
        "Data card",
        {"screen": "screen", "split": "split"},
        ("facts", "conditions", "counts", "genes", "splits"),
        settings=("dataset", "split_name"),
        caption="""\
What the screen holds and how it is split. Left: numbers, where the data come from, and what the filter
dropped. **a**, cells by their counts in the genes kept. **b**, cells per condition, by kind of condition, sorted.
**c**, the share of cells in which each gene is detected, against its mean. **d**, cells used for training, validation
and testing, and those left out ("none"). If the experiment has several data sets or splits, this is the first; the
rows *data set* and *split* say which one, and the `summary.tsv` of each split has its numbers.""",
    ),
    FigureRow(
        "scores",
        "Scores",
        {
            "scores": "score_table",
            "per_condition": "ample_per_condition",
            "baseline_conditions": "ample_baseline_conditions",
            "published": "published_scores",
        },
        ("", "runs", "baselines", "per_condition"),
        settings=("comparable", "compared"),
        caption="""\
*Published protocol: effects of the data from all cells.* One row per model: test IWELBO
(higher is better), accuracy of predicting a perturbation's annotation from its mask (if the screen is annotated), and
the Pearson correlation of the average treatment effects (ATE) of model and data over all perturbations and genes.
Settings are those with the best mean validation IWELBO over seeds; thick bars show one standard deviation over seeds,
thin bars two. *Best test* is the papers' rule for the ATE: the one run with the best *test* IWELBO, which is not a
held-out number. A negative binomial per gene that knows nothing about perturbations or cell states is named at the
edge of the likelihood axis: a model below it has learned nothing.

Hollow diamonds are published means, if the screen has some: a filled circle says that the published mean lies within
our mean ± 2 sd, an open circle that it does not. The papers' annotation classifier is not public; ours is a
cross-validated logistic regression that keeps the guides of one gene together, so that column compares less strictly.
On a miniature screen the published numbers are printed for orientation only.

The last panel is of the *held-out protocol* (effects of the data from test cells): Pearson correlation over genes for
each perturbation, sorted by the best model. Grey: predicting the mean of all perturbations for each of them. A
perturbation at or below the grey line is not told apart from the others.""",
    ),
    FigureRow(
        "masks",
        "Masks",
        {
            "grid": "grid",
            "scores": "masked_scores",
            "perturbations": "masked_perturbations",
            "pathways": "masked_pathways",
            "screen": "screen",
        },
        ("mask_probability", "embedding", "accuracy", "pathway"),
        needs=("masks",),
        settings=("shown",),
        caption="""\
Which perturbations share latents. Masks of the model named in the title: the masked model, and its settings, with
the best mean validation IWELBO, first seed. **a**, posterior probability that a perturbation (row) acts on a latent
(column). **b**, the same times the embedding: size and sign of the shift. Rows are grouped by annotation and clustered
within it (rows without an annotation are left out), or all clustered if the screen has no annotation. Columns are
clustered by a; latents in which no perturbation reaches a probability of 0.5 are to the right of the dashed line. An
annotated group with a latent of its own shows as a block.

**c**, for annotated screens: accuracy of predicting the annotation from the mask probabilities, by classifier and
model; mean ± sd over seeds (over repeats if there is one seed). Folds are stratified and keep the guides of one gene
together. Grey: the same with labels permuted over genes, mean ± 2 sd. Dashed: always naming the largest group.""",
    ),
    FigureRow(
        "effects",
        "Effects",
        {
            "grid": "grid",
            "scores": "single_scores",
            "effects": "single_effects",
            "references": "references",
            "screen": "screen",
        },
        ("data", "model"),
        settings=("shown",),
        caption="""\
*Published protocol: effects of the data from all cells.*
The model is named in the title: settings of best mean validation IWELBO, first seed. **a**, **b**, average treatment
effect (ATE: mean of log2(1 + counts per 10,000) minus that of the control) of perturbations (rows; those with an
annotation, if there are any) on genes (columns), in the same order and on the same colour scale, both set by the data.
**c**, every perturbation and gene, model against data, with Pearson's r over all of them; dashed: identity. **d**,
Pearson's r over genes for each perturbation. A cloud flatter than the identity means that the model shrinks effects; a
high r in c with a low one in d means that it mostly separates strong perturbations from weak ones.""",
    ),
    FigureRow(
        "expression",
        "Differential expression",
        {
            "grid": "grid",
            "scores": "compared_scores",
            "effects": "compared_effects",
            "tests": "compared_tests",
            "agreement": "compared_agreement",
            "data": "data_tests",
            "references": "references",
            "screen": "screen",
        },
        ("overlap", "tests", "model_tests", "data_effects", "model_effects"),
        needs=("counts", "control"),
        settings=("shown",),
        caption="""\
*Published protocol: tests and effects of the data from all cells.* One column for
each of the perturbations with the most significant genes. Upper row: ATE of the model named on the axis against the
data's, one point per gene. Lower row: volcano plot of the data against control cells; p-values of 0 are drawn at the
smallest other one, and the most significant genes are named. Colour: significant (Wilcoxon, Benjamini-Hochberg, padj <
0.05) in the data, in cells sampled from the model (as many of each perturbation as of control), in both, or in neither.
Last panel: the share of the data's k genes with the largest absolute Wilcoxon score that are among the model's k; mean
and quartiles over the perturbations with the most significant genes. Dashed: what chance gives, k over the number of
genes.""",
    ),
    FigureRow(
        "combinations",
        "Combinations",
        {
            "grid": "grid",
            "scores": "every_compared_scores",
            "baselines": "every_baselines",
            "effects": "every_compared_effects",
            "references": "every_reference",
            "screen": "screen",
            "published": "published_combinations",
        },
        ("scores", "interactions", "published"),
        needs=("combinations",),
        settings=("comparable",),
        caption="""\
How well combinations of perturbations are predicted. *Published protocol: effects of the data from all cells.*
Scores of the combinations in the test split; bars show the mean ± sd over split seeds. In Norman's first task the test
pairs are never seen below a fraction of 1, and all are seen at 1; in the second task every pair is seen, in a fraction
of its training cells. **a**, test IWELBO relative to the reference named on the axis, because absolute values differ
more between splits than between models. **b**, Pearson correlation of the ATE of model and data over combinations and
genes; lines are baselines that need no model, from the training cells and scored by the same code. Hollow diamonds:
published means, if the screen is the published one. In SVAE+ a combination is a perturbation of its own, so it cannot
predict an unseen one.

**c** and on: interaction of test combinations (effect of the combination minus the sum of its single effects),
predicted against observed; hexagons count combinations × genes. The titles say whether these combinations were in the
training data. A model that adds single effects in log space predicts 0 everywhere; r says how much of the
non-additive part is reproduced.""",
    ),
    FigureRow(
        "recovery",
        "Recovery",
        {"grid": "grid", "scores": "score_table"},
        ("",),
        needs=("truth",),
        caption="""\
Are the true masks, latents and effects recovered? Mean ± sd over data seeds, against the number of training cells
per perturbation or by method. The inferred mask is a probability above 0.5; learned latents are matched to true ones by
true positives (the rule of the SAMS-VAE paper; the table also holds matching by correlation). Dashed: the mask of ones,
whose F1 a mask must beat to mean anything. MCC: mean absolute correlation of true and learned latents under the best
matching. R²: effects of the model against the data's (all cells), relative to the control or, without control cells, to
the mean of all perturbations. A dash: the method has no mask. The papers publish no settings of the eight rows of the
SAMS-VAE table for these simulations; ours are in the configuration.""",
    ),
    FigureRow(
        "curves",
        "Training curves",
        {"grid": "grid", "histories": "history_table"},
        ("",),
        needs=("training",),
        caption="""\
Validation loss (negative ELBO per cell) against the training step, one line per run; colour is the
method, dashes the inference; paler lines saw less data. The y-axis leaves out the steep first part. Scores use the
weights of the lowest validation loss: a curve that rises at its end costs nothing; one that still falls means that the
run was too short. Losses of runs with another KL weight or penalty (β-VAE, sVAE) are not comparable with the rest.""",
    ),
)

#: The figures by name, in reading order.
FIGURES = {row.name: row for row in ROWS}

"""The table of figures: one row per figure, which every experiment gets if its data allow it.

The rules, targets, report, README and tests read this table. A figure called NAME is drawn by
``samsvae.figures.NAME``: its ``tables`` reads the files, its ``draw`` draws what ``tables`` returns, and its ``SAVED``
says which tables are written next to the figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Features that an experiment may have, in words (``samsvae.study.figure_plan`` derives them from the configuration).
FEATURES = {
    "masks": "a model that infers masks",
    "combinations": "a screen with combinations",
    "control": "control cells",
    "reference": "control cells, or cells that differ in how many perturbations they received",
    "counts": "integer counts",
    "truth": "simulated data with known masks and latents",
    "training": "a training, rather than imported weights alone",
    "test": "test cells of perturbations that are trained on",
    "transfer": "a transfer to new perturbations",
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
        ("facts", "conditions", "counts", "genes", "splits", "findings"),
        settings=("dataset", "split_name"),
        caption="""\
What the screen holds and how it is split. Left: numbers, the origin of the data, and what the filter dropped. **a**,
cells by their counts in the genes kept. **b**, cells per condition, by kind of condition, sorted; without a control,
cells per perturbation, so that a cell counts for each that it received. **c**, the share of cells in which each gene is
detected, against its mean. **d**, cells used for training, validation and testing, in the colours of b; without a
control, by how many perturbations they received. If the experiment has several data sets or splits, one of them is
shown; the rows *data set* and *split* name it. The `summary.tsv` of each split has its numbers.""",
    ),
    FigureRow(
        "scores",
        "Scores",
        {
            "scores": "score_table",
            "per_condition": "ample_conditions",
            "baseline_conditions": "ample_baseline_conditions",
            "published": "published_scores",
        },
        ("", "runs", "fits", "baselines", "per_condition"),
        needs=("test",),
        settings=("comparable", "compared"),
        caption="""\
*Published protocol: effects of the data from all cells.* One row per model: test IWELBO (higher is better), accuracy
of predicting the annotation of a perturbation from its mask (if the screen is annotated), and the Pearson correlation
of the average treatment effects (ATE) of model and data over all perturbations and genes. Each model is shown with the
settings of its best mean validation IWELBO. If a model has several runs, the marker is their mean, the thick bar one
and the thin bar two standard deviations, and each small dot is a run. Baselines are named below the axis, with an
arrow if they lie beyond its edge: a negative binomial per gene that knows nothing about perturbations or cell states,
and the mean of all perturbations. A model below them has learned nothing. If the grid varies the amount of data, only
runs with the most data are used.

For the screens that the paper covers, its numbers stand next to ours. *Best test* is the paper's rule for the ATE:
the one run with the best *test* IWELBO, so it is not a held-out number. Hollow diamonds are published means: a filled
circle says that the published mean lies within our mean ± 2 sd, an open circle that it does not. The paper's
classifier is not public; ours is a cross-validated logistic regression that keeps the guides of one gene together, so
that column compares less strictly. On a miniature screen the published numbers are printed for orientation only.

Lower panel, *honest protocol*: Pearson correlation over genes of the effects of test cells, minus their mean over the
conditions; predicting that mean scores 0. Black line: the ceiling, which a perfect prediction would reach, by which
the conditions are sorted. Grey lines: the training mean of each condition, shrunk towards the mean of all
perturbations, and ridge regression on the perturbations, which also predicts conditions without training cells. A
model below them has learned less than these baselines. The figure *worth* has intervals and verdicts.""",
    ),
    FigureRow(
        "worth",
        "What the scores are worth",
        {"scores": "score_table", "worth": "worth_table", "conditions": "worth_conditions_table"},
        ("", "conditions", "verdicts", "coverage"),
        needs=("counts", "reference", "test"),
        settings=("compared",),
        caption="""\
*Honest protocol: effects of test cells against test controls; without a control, by a regression on what test cells
received. Models predict cells as deep as these; baselines read training cells alone.* **a**, the headline scores of
every model and baseline, with 95 % intervals over conditions. The band reaches from predicting the mean of all
perturbations for each of them to the ceiling: what a perfect prediction would score, given the error of the test cells.
All three score effects minus their mean over the conditions, so that only differences between conditions count: the
squared error without the error of the test cells (0 is perfect, 1 is the mean), the Pearson correlation over genes, and
the rank of the right condition among all. The note states in words whether each model beats every baseline, by paired
differences over conditions.

**b**, the correlation of each condition for the best model, against the ceiling of that condition; grey, the training
mean shrunk towards the mean of all perturbations. A condition at the left has no measurable effect. **c**, how often
the effects of test cells lie inside the intervals of a model (with the error of the test cells), against the nominal
share. The training mean with its own standard error is the yardstick. A model that draws no latents of perturbations
has no intervals.""",
    ),
    FigureRow(
        "bound",
        "Likelihood bound",
        {"scores": "score_table", "bound": "bound_table"},
        ("", "verdicts"),
        needs=("test",),
        settings=("compared",),
        caption="""\
*Honest protocol.* Likelihood of test cells under each model. The IWELBO is a lower bound of the log-likelihood that
rises with the number of particles, so bounds are compared at equal numbers only. **a**, a fixed sample of the test
cells, the same for all models of a split, with many particles; **b**, all test cells, up to the published number of
particles (absolute values differ, because the cells do). Bars are errors over disjoint blocks of particles; the
perturbations' latents are drawn once per particle for all cells. Each model is shown with its best settings on
validation data, averaged over runs. The error is that of the bound alone: seeds vary more.

**c**, the sample's bound minus that of the best model, at the largest number of particles with 10 blocks. Hollow
markers: undecided, because the difference is below twice its error or the weights are too heavy. **d**, how
many equal weights the importance weights of a cell are worth; few (left of the dashed line, 10) mean that the
approximate posterior is far from the true one. **e**, the share of cells whose weights have a tail so heavy (Pareto k
above 0.7) that their sum cannot be trusted; beyond the dashed line, 10 %, a bound is not compared.""",
    ),
    FigureRow(
        "masks",
        "Masks",
        {
            "grid": "grid",
            "scores": "masked_scores",
            "perturbations": "masked_perturbations",
            "pathways": "masked_pathways",
            "baselines": "masked_baselines",
            "screen": "screen",
        },
        ("mask_probability", "embedding", "accuracy", "pathway", "stability"),
        needs=("masks", "test"),
        settings=("shown",),
        caption="""\
Which perturbations share latents. The note above the panels names the model and run shown. **a**, posterior
probability that a perturbation (row) acts on a latent (column). **b**, the same times the embedding: size and sign of
the shift. Rows are grouped by annotation and clustered within it (rows without an annotation are left out); if the
screen has no annotation, all rows are clustered. Columns are clustered by a; latents in which no perturbation reaches
a probability of 0.5 are to the right of the dashed line. An annotated group with a latent of its own shows as a
block.

**c**, for annotated screens: accuracy of predicting the annotation, by classifier, for every model with masks. Filled
markers: from the mask probabilities; mean ± sd over runs (over repeats if there is one run). Hollow markers: from the
embedding, which is the shift before the mask. Short lines: from the effects that the model predicts. Long lines: from
the mean effects of the training cells, without any model; masks below this line have lost what the data say about the
annotation. The random forest reads masks alone. Folds are stratified and keep the guides of one gene together. Grey:
masks with labels permuted over genes, mean ± 2 sd. Dashed: always naming the largest group.

Last panel, one row per model: *stability over seeds*, the correlation between two seeds of how much every two
perturbations share a mask (1: the same relations in both); *overlap beyond chance*, entries that two seeds share after
their latents were matched (0: as with permuted perturbations, 1: the same masks); *share of entries on* and *active
latents*, for a probability above 0.5; and, if the screen has several perturbations of a gene, their rank in each
other's similarity among the perturbations of other genes (mean over seeds, with the largest p of a permutation
test).""",
    ),
    FigureRow(
        "effects",
        "Effects",
        {
            "grid": "grid",
            "scores": "single_scores",
            "effects": "single_effects",
            "references": "references",
            "per_condition": "single_conditions",
            "baseline_conditions": "single_baseline_conditions",
            "screen": "screen",
        },
        ("data", "model", "conditions"),
        needs=("test",),
        settings=("shown",),
        caption="""\
*Published protocol: effects of the data from all cells.* The note above the panels names the model and run shown.
**a**, **b**, average treatment effect (ATE: mean of log2(1 + counts per 10,000) minus that of the control; without a
control, what a perturbation adds, in the data by a regression on what cells received) of perturbations (rows; those
with an annotation, if there are any) on genes (columns), for the data and for the model, in the same order and on the
same colour scale, both set by the data. **c**, every perturbation and gene, model against data, with Pearson's r over
all of them; dashed: identity. A cloud flatter than the identity means that the model shrinks effects.

**d**, *honest protocol*: Pearson's r over genes for each perturbation with 10 test cells, of effects minus their mean
over the perturbations. Lines are means: of the model; of the training mean shrunk towards the mean of all and of ridge
regression (grey); and of the ceiling (black), which a perfect prediction would reach. A high r in c with a low one in
d means that the model mostly separates strong perturbations from weak ones, or predicts what all of them share.""",
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
        needs=("counts", "control", "test"),
        settings=("shown",),
        caption="""\
*Published protocol: tests and effects of the data from all cells.* One column for each of the (at most three)
perturbations with the most significant genes. Upper row: ATE of the model named on the axis against the data's, one
point per gene. Lower row: volcano plot of the data against control cells; p-values of 0 are drawn at the smallest
other one, and the most significant genes are named. Colour: significant (Wilcoxon, Benjamini-Hochberg, padj < 0.05)
in the data, in cells sampled from the model (as many per perturbation as for control), in both, or in neither.
Last panel: the share of the data's k genes with the largest absolute Wilcoxon score that are among the model's k;
mean and quartiles over the perturbations with the most significant genes. Dashed: expected by chance, k over the
number of genes.""",
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
            "worth": "every_compared_worth",
            "baseline_worth": "every_baseline_worth",
            "screen": "screen",
            "published": "published_combinations",
        },
        ("scores", "interactions", "published"),
        needs=("combinations", "test"),
        settings=("comparable",),
        caption="""\
How well combinations of perturbations are predicted. *Published protocol: effects of the data from all cells.* **a**,
test IWELBO relative to the reference named on the axis, because absolute values differ more between splits than
between models. **b**, Pearson correlation of the ATE of model and data over the combinations with test cells and over
genes; lines are baselines that need no model, computed from the training cells and scored by the same code. Bars are
by the fraction of combinations, or of their cells, seen in training, if the grid has that axis; with several split
seeds they show mean ± sd. Hollow diamonds: published means, if the screen is the published one. In SVAE+ a
combination is a perturbation of its own, so it cannot predict an unseen one.

**c**, *honest protocol*: Pearson's r over genes of the effects of test cells, minus their mean over the conditions; the
mean over conditions. Models predict cells as deep as the test cells. Lines are baselines from training cells (the sum
of single effects, the training mean shrunk towards the mean of all, and ridge regression), and the ceiling, which a
perfect prediction would reach.

Lower panels: interactions (the effect of a combination minus the sum of its single effects), predicted against
observed; hexagons count combinations × genes. The combinations shown are unseen ones, at the largest fraction that
leaves them unseen; the titles say how many there are, or that all were seen. A model that adds single effects
predicts an interaction of about 0 everywhere; r says how much of the non-additive part is reproduced.""",
    ),
    FigureRow(
        "recovery",
        "Recovery",
        {"grid": "grid", "scores": "score_table"},
        ("",),
        needs=("truth", "test"),
        caption="""\
Are the true masks, latents and effects recovered? Against the number of training cells per perturbation if the grid has
that axis, by method otherwise; mean ± sd if there are several data seeds. The inferred mask is a probability above 0.5,
for iVAE the two largest absolute values of each embedding; learned latents are matched to true ones by true positives
(the rule of the SAMS-VAE paper; `scores.tsv` of the experiment also holds matching by correlation). The label next to
each bar of F1 is the share of entries that are on, or says that the mask is empty. Dashed: the mask of ones, whose F1 a
mask must beat to mean anything. MCC: mean absolute correlation of true and learned latents under the best matching. R²:
effects of the model against the data's (all cells), relative to the control or, without control cells, to the mean of
all perturbations. A dash: the method has no mask. The papers publish no settings for the eight rows of the SAMS-VAE
table on these simulations; ours are in the configuration.""",
    ),
    FigureRow(
        "transfer",
        "Transfer to new perturbations",
        {"scores": "score_table", "transfer": "transfer_table", "screen": "screen"},
        ("", "perturbations", "latents", "comparisons", "verdicts"),
        needs=("transfer",),
        settings=("compared",),
        caption="""\
*Honest protocol: test cells of perturbations that no training saw.* The claim of the SVAE+ paper is that models with
the sparse-mechanism-shift prior recover latents better in simulation and beat the others on transfer to unseen
interventions. The note says what we see, with a verdict: holds, holds only as released, does not hold, or undecided. It
takes five seeds and two paired tests that agree: a t test of the means of seeds (training runs; if there are five
simulated data sets, these), and a sign test of the means of perturbations, both with p < 0.05. The claim holds for a
method that is better than each method without the prior; it does not hold for one that is worse than any. The table
*verdicts* has the sentences, *comparisons* all tests. A panel without data is left out.

**a**, what each stage fits (colour) and what it leaves (grey). Only the last one sees cells of new perturbations.
**b**, recovery of the simulated latents (MCC), a dot per run. For the claim: sVAE and SVAE+ to the right of the others;
against it: mixed dots. **c**, the gain in log-likelihood over the profile of the training cells, by the number of cells
of the new perturbation; mean ± sd over seeds. Numbers in brackets: perturbations with at least that many cells. Dashed:
the profile of these cells alone, which needs no model. Dotted: trained again with these cells, an upper bound. For the
claim: sVAE and SVAE+ above iVAE and the VAEs by more than the bars; against it: lines within the bars. A method below
the dashed line predicts a new perturbation worse than its own cells do.

**d**, a method with the prior minus one without it, for every new perturbation with all cells of its pool (mean over
seeds); bars: means. The sign test is over perturbations alone; the verdict also needs that over seeds. For the claim:
dots to the right of 0; against it: on both sides, or to the left. **e**, the gain as released (fitted to the cells that
are scored, in training mode), with the statistics of batch norm kept, and in our variant (scored on other cells). For
the claim: sVAE and SVAE+ on top in all three; against it: lines that cross, because then the order comes from batch
norm. **f**, the gain by what was held out; the number is the rank in the row. For the claim: sVAE and SVAE+ have rank 1
throughout; against it: ranks that change, or rank 1 for the own profile. **g**, Pearson correlation over genes with the
effect in the test cells: of the effect that a model predicts from few cells, and of the mean of the same cells. For the
use of a model: dots above the dashed line; against it: dots below, where the cells' own mean is better.""",
    ),
    FigureRow(
        "curves",
        "Training curves",
        {"grid": "grid", "histories": "history_table"},
        ("",),
        needs=("training",),
        caption="""\
Validation loss (negative ELBO per cell) against the training step, one line per run; colour is the method, dashes the
inference; paler lines saw less data. The y-axis leaves out the steep first part, and a last validation that follows
the one before it within half the usual interval is not drawn (the table has it). Scores use the weights of the lowest
validation loss, so a curve that rises at the end does no harm; one that still falls means that the run was too short.
Losses of runs with a different KL weight or penalty (β-VAE, sVAE) are not comparable with the rest.""",
    ),
)

#: The figures by name, in reading order.
FIGURES = {row.name: row for row in ROWS}

"""The words that make up names of metrics. `table.py` lists the complete names."""

from __future__ import annotations

#: ``published``: as in the papers. ``held-out``: against held-out cells alone.
PROTOCOLS = ("published", "held-out")

#: The protocol of rows that say how a run was fitted (`training.verdict`) and scored; they are no scores themselves.
FIT = "fit"

#: The protocol that gives every score a baseline, a ceiling and an interval (`evaluation.honest`), in its own tables.
HONEST = "honest"

#: The protocol of scores of new perturbations, which have a table of their own (`evaluation.transfer_tables`).
TRANSFER = "transfer"

#: Genes per condition, those with the largest absolute effects in the data, in metrics of effects called ``_top20``.
TOP = 20

#: Nominal coverages of intervals.
LEVELS = (0.5, 0.8, 0.95)

#: Genes per condition in the overlaps of differential expression.
OVERLAPS = (TOP, 50, 100)

#: Rules that match learned latents to true ones.
MATCHES = ("true-positives", "correlation")

#: Targets that are read from each embedding of a model that infers no mask (iVAE): its largest absolute values.
TARGETS = 2

#: An inferred mask with a smaller density counts as empty: there is nothing whose precision and recall would matter.
EMPTY_MASK = 0.01

#: What pathways are predicted from: what a masked model learnt about a perturbation, and the effects that it predicts.
FEATURES = ("mask", "embedding", "effects")

#: Classifiers that predict pathways; all read masks, and all but the forest read the other features.
CLASSIFIERS = ("logistic", "forest", "knn")

#: The classifier that always names the largest pathway.
MAJORITY = "majority"

#: Fewest scored conditions of a set.
LEAST_CONDITIONS = 3

#: The least share of right orders (BDS) and dynamic range (DRF) of a metric that ranks models.
LEAST_BDS, LEAST_DRF = 0.8, 0.1

"""Names and constants that all layers share."""

from __future__ import annotations

SPLITS = ("train", "val", "test")

#: The values of the column split of a table of cells; cells with the last are unused.
SPLIT_LABELS = (*SPLITS, "none")

#: The values of the column transfer: cells of new interventions, to adapt to and to test on.
NEW_ADAPT, NEW_TEST = "new_adapt", "new_test"

ENCODINGS = ("sum", "unique")

#: Without a control, the label of cells that received no perturbation; their dosage, zero, is the reference of effects.
UNPERTURBED = "(none)"

#: Values of a model's setting ``mask`` under which masks are inferred: these models have masks to show.
MASKED = ("bernoulli", "beta_bernoulli")

#: Counts per cell to which counts are scaled, as in log2(1 + LIBRARY x / l); also the default library of sampled cells.
LIBRARY = 1e4

#: Added to every variance, and by default to the mean of the negative binomial (`ModelConfig.mean_floor`).
FLOOR = 1e-4

#: Axes of a grid that set how much data a run sees, and axes whose values are replicates.
AMOUNT_AXES = ("fraction", "cells")
SEED_AXES = ("seed", "split_seed", "data_seed")

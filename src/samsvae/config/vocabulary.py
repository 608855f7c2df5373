"""Names and constants that all layers share."""

from __future__ import annotations

SPLITS = ("train", "val", "test")

ENCODINGS = ("sum", "unique")

#: Values of a model's setting ``mask`` under which masks are inferred: these models have masks to show.
MASKED = ("bernoulli", "beta_bernoulli")

#: Counts per cell to which counts are scaled, as in log2(1 + LIBRARY x / l); also the default library of sampled cells.
LIBRARY = 1e4

#: Added to every variance and to the mean of the negative binomial.
FLOOR = 1e-4

"""Words and constants that every layer shares."""

from __future__ import annotations

SPLITS = ("train", "val", "test")

ENCODINGS = ("sum", "unique")

#: The values of ``mask`` in a model's settings with which masks are inferred.
MASKED = ("bernoulli", "beta_bernoulli")

#: Counts per cell to which counts are scaled, as in log2(1 + LIBRARY x / l); also the default library of sampled cells.
LIBRARY = 1e4

#: Added to every variance and to the mean of the negative binomial.
FLOOR = 1e-4

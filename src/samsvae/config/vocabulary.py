"""Words and constants that every layer shares."""

from __future__ import annotations

SPLITS = ("train", "val", "test")

ENCODINGS = ("sum", "unique")

#: Added to every variance and to the mean of the negative binomial.
FLOOR = 1e-4

#: Kinds of mask that are inferred: models with one of them have masks to show.
MASKED = ("bernoulli", "beta_bernoulli")

"""Names and constants that all layers share."""

from __future__ import annotations

SPLITS = ("train", "val", "test")

ENCODINGS = ("sum", "unique")

#: Added to every variance and to the mean of the negative binomial.
FLOOR = 1e-4

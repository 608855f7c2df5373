"""The id of a run: its model, then each axis of its grid as a word and a value (sams_vae_corr-alpha0.1-seed0)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath

from samsvae.config.screens import SCALAR
from samsvae.errors import ConfigError, quoted

#: Axes in the order of a run's id, each with its word in the id. Any other axis comes first, under its own name.
WORDS = {
    "checkpoint": "from_",
    "n_layers": "layers",
    "n_latent": "latents",
    "mask_prior": "alpha",
    "beta_b": "b",
    "mask_penalty": "lambda",
    "kl_weight": "beta",
    "encoding": "",
    "cells": "cells",
    "data_seed": "draw",
    "split_seed": "split",
    "fraction": "frac",
    "seed": "seed",
}

#: The longest name in bytes; file systems allow 255 with the endings of our files.
LONGEST = 200


def make_id(first: str, values: Mapping[str, SCALAR], where: str) -> str:
    """``first``, then a word and a value for each axis, joined by '-': the id of a run, or the name of its data.

    ConfigError if a value cannot be part of a file name.
    """
    made = "-".join([first, *(_part(key, values[key], where) for key in order_axes(values))])
    if len(made.encode()) > LONGEST:
        raise ConfigError(f"{where}: the name {quoted(made)} is too long for a file. Use shorter values or fewer axes.")
    return made


def order_axes(axes: Iterable[str]) -> list[str]:
    """Axes in the order of WORDS; others come first, alphabetically."""
    order = list(WORDS)
    return sorted(axes, key=lambda axis: (order.index(axis) if axis in order else -1, axis))


def _part(axis: str, value: SCALAR, where: str) -> str:
    if axis == "checkpoint":
        return f"{WORDS[axis]}{re.sub(r'[^A-Za-z0-9_.]+', '_', PurePath(str(value)).stem)}"
    if not re.fullmatch(r"[\w.,:+-]*", str(value)):
        raise ConfigError(
            f"{where}.{axis}: {quoted(value)} is not allowed in a grid, because its values become parts of file names. "
            "Allowed: letters, digits and _ . , : + -."
        )
    return f"{WORDS.get(axis, axis)}{value}"

"""The targets of guides: guides of one target are merged, or listed with it."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from samsvae.config.screens import CustomOptions
from samsvae.errors import DataError, some
from samsvae.screens.sources import Source
from samsvae.screens.user_tables import pairs_in, read_targets

log = logging.getLogger(__name__)


def read_table(data: Source, options: CustomOptions, source: str | Path) -> Mapping[str, str]:
    """guide -> target, from the option targets: a table, or uns:KEY (a table, or a dictionary); {} without it."""
    place = options.targets
    if place is None:
        return {}
    if not place.startswith("uns:"):
        return read_targets(place)
    found = data.read(place)
    if isinstance(found, Mapping):
        return {str(guide): str(target) for guide, target in found.items()}
    if not isinstance(found, pd.DataFrame):
        raise DataError(f"{source}: {place} must be a table with the columns 'guide' and 'target', or a dictionary.")
    return pairs_in(found.astype(str), f"{source}: {place}", "guide", "target")


def targets_of(
    guides: Collection[str], options: CustomOptions, where: str, table: Mapping[str, str] | None
) -> Mapping[str, str]:
    """guide -> target, as the options say; {} if labels name targets already. ``table``: that of the option targets.

    A label in ``control`` needs no target. DataError if the table lacks another one. A label that the pattern does not
    match is logged as a warning and stays as it is.
    """
    guides = [guide for guide in guides if guide not in options.controls]
    if options.targets is not None:
        target_of = table or {}
        if missing := [guide for guide in guides if guide not in target_of]:
            raise DataError(
                f"{options.targets}: column 'guide' lacks {len(missing)} labels of {where}: {some(missing)}. Add them, "
                "or list those of control cells in control."
            )
        return target_of
    if options.target_pattern is None:
        return {}
    matches = {guide: re.fullmatch(options.target_pattern, guide) for guide in guides}
    target_of = {guide: match[1] for guide, match in matches.items() if match and match[1]}
    if others := [guide for guide in guides if guide not in target_of]:
        log.warning("%s: %s: no match of target_pattern, so these labels stay as they are", where, some(others))
    return target_of

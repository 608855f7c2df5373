"""The sizes of screens and splits before they exist: as published, as configured, or from files that exist already."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from samsvae.config.grid import Run
from samsvae.config.screens import Expected
from samsvae.config.splits import SplitConfig
from samsvae.config.vocabulary import NEW_ADAPT, NEW_TEST, SPLITS
from samsvae.errors import ConfigError, DataError
from samsvae.screens.replogle import PUBLISHED, PUBLISHED_PAIRS
from samsvae.screens.splits import find_condition, given, make_split, split_old, summary
from samsvae.screens.transfer_split import add_new

#: Cells of the Norman screen as published, and the expected number of them with one of its 131 pairs. The second
#: number is not published. Both are replaced by the numbers in the files as soon as those exist.
NORMAN, PAIRS = 111_255, 41_759

#: obs as splits read it, and the numbers G, C and T.
Known = tuple[pd.DataFrame, int, int, int]


@dataclass(frozen=True)
class Size:
    """Cells of a split (train, val, test), and genes, conditions and perturbations (sum encoding) of its screen.

    ``new``: new conditions of a split of kind 'transfer', and ``new_cells``: all their cells.
    """

    train: int
    val: int
    test: int
    genes: int
    conditions: int
    perturbations: int
    new: int = 0
    new_cells: int = 0


def size_of(run: Run, results: Path) -> Size | None:
    """The size of a run's screen and split: from its files if they exist, else as published or as configured.

    A split that has no file yet is drawn here from the known cells. None: unknown.
    """
    found = None
    if not run.screen.kind.startswith("simulate"):  # the options of a simulation determine its size and split
        found = _size_from_file(results / "data" / run.dataset / "arrays.npz")
    found = found or _size_from_config(run)
    if found is None:
        return None
    obs, *sizes = found
    how = _split_of(run)
    separator = "+" if run.screen.kind == "norman" else getattr(run.screen.options, "separator", "")
    folder = results / run.experiment / "splits" / run.dataset / run.split
    try:
        cells = pd.read_csv(folder / "summary.tsv", sep="\t", index_col="split")["cells"]
        number = _number(pd.read_csv(folder / "cells.tsv", sep="\t", dtype=str)) if how.kind == "transfer" else []
    except (OSError, ValueError, KeyError):
        try:
            split = _drawn(obs, how, separator)
        except (ConfigError, DataError):  # the split names conditions or cells that are unknown without the screen
            return None
        cells = summary(split).set_index("split")["cells"]
        number = _number(split) if how.kind == "transfer" else []
    return Size(*(int(cells[name]) for name in SPLITS), *sizes, *number)


def _split_of(run: Run) -> SplitConfig:
    """The split of a run; the filter may have made it."""
    return getattr(run.screen.options, "genes_split", None) or run.split_config


def _number(split: pd.DataFrame) -> list[int]:
    """How many new conditions a split has, and how many cells of theirs."""
    new = split["condition"][split["transfer"].isin([NEW_ADAPT, NEW_TEST])]
    return [new.nunique(), len(new)]


def _drawn(obs: pd.DataFrame, how: SplitConfig, separator: str) -> pd.DataFrame:
    """A split of the known cells. Where the names of new conditions are unknown, the last ones stand for them."""
    if how.kind != "transfer":
        return make_split(obs, separator=separator, **how.of_cells())
    known = list(dict.fromkeys(obs["condition"]))
    if how.conditions:
        new = [find_condition(name, known, separator, (), known) for name in how.conditions]
    else:
        share = PUBLISHED_PAIRS.get(str(how.pathway), 0) / (PUBLISHED["guide pairs"] + 1)
        number = how.last or how.strongest or round(share * len(known))
        if not 0 < number < len(known):
            raise ConfigError(f"pathway: the number of perturbations in {how.pathway!r} is unknown.")
        new = known[-number:]
    old = ~obs["condition"].isin(new).to_numpy()
    split = given(obs) if "split" in obs else split_old(obs, old, how.test_fraction, how.val_fraction, how.split_seed)
    return add_new(split, new, new_cells=how.new_cells, seed=how.split_seed)


def _size_from_file(arrays: Path) -> Known | None:
    try:
        # opened here, because numpy leaves a damaged archive open
        with open(arrays, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            names, members, code = file["conditions"], file["members"], file["condition"]
            obs = _obs(names[code], (members >= 0).sum(1)[code], index=file["cells"])
            return obs, len(file["genes"]), len(names), len(file["perturbations"])
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile):
        return None


def _size_from_config(run: Run) -> Known | None:
    options: Any = run.screen.options
    if run.screen.kind.startswith("simulate"):
        T, each = options.n_perturbations, (options.cells, options.val_cells, options.test_cells)
        controls, out = getattr(options, "n_controls", 0), getattr(options, "n_held_out", 0)
        code = np.repeat(np.arange(T), sum(each))
        split = np.tile(np.repeat(SPLITS, each), T).astype(object)
        split[code >= T - out] = "none"
        ends = np.cumsum(each[:2]) * controls // sum(each)
        split = np.append(split, np.repeat(SPLITS, np.diff([0, *ends, controls])))
        code = np.append(code, np.full(controls, T))
        return _obs(code, code < T, split=split), options.n_features, T + (controls > 0), T
    if run.screen.expected is not None:
        return _size_expected(run.screen.expected, _split_of(run).conditions)
    if run.screen.source is not None and run.screen.source.sort == "miniature":
        return None
    if run.screen.kind == "replogle" and options.published_counts:
        pairs = PUBLISHED["guide pairs"]  # each is a perturbation, and a condition like the control
        return _obs(np.arange(PUBLISHED["cells"]) % (pairs + 1), 1), PUBLISHED["genes"], pairs + 1, pairs
    if run.screen.kind == "norman":
        others = NORMAN - PAIRS
        code = np.append(np.arange(others) % 106, 106 + np.arange(PAIRS) % 131)
        return _obs(code, np.repeat([1, 2], [others, PAIRS])), 5000, 237, 105
    return None


def _size_expected(known: Expected, named: Sequence[str]) -> Known:
    """Conditions of one size: the control, singles, and combinations, the last of which have the names in ``named``."""
    conditions = 1 + known.perturbations + known.combinations
    names = np.arange(conditions).astype(object)
    if named:
        names[-len(named) :] = named[-conditions:]
    code = np.arange(known.cells) % conditions
    targets = (code > 0).astype(int) + (code > known.perturbations)  # a sum of bools would be a bool
    return _obs(names[code].astype(str), targets), known.genes, conditions, known.perturbations


def _obs(condition: np.ndarray, n_targets: np.ndarray | int, *, index: np.ndarray | None = None, **columns):
    names = condition.astype(str)
    return pd.DataFrame({"condition": names, "guide_identity": names, "n_targets": n_targets} | columns, index=index)

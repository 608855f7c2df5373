"""The inputs of a job, from a synthetic screen, for the tests of jobs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from small_files import write_files
from small_model import screen

from samsvae.config.evaluation import EvaluationConfig
from samsvae.data.arrays import read_screen, read_split
from samsvae.evaluation.any_truth import truth_or_reason
from samsvae.evaluation.data_effects import effects
from samsvae.evaluation.truth_file import write_truth
from samsvae.matrices import write_h5ad
from samsvae.study.jobs import SCORED, TRAINED, Data, Place

PLACE = Place("cpu", 1, 300.0)
SCORES = asdict(EvaluationConfig(iwelbo_particles=3, bound_particles=3, bound_cells=3, ate_samples=20, effect_draws=2))
FILES = [*TRAINED.values(), *SCORED.values()]
SAME = [name for name in FILES if name != "run.json"]  # run.json contains times


def data(folder: Path, cells_of_screen=None, split=None, *, reference: str = "control", **changes) -> Data:
    """The files of a synthetic screen, and how its runs are scored."""
    arrays, cells = write_files(folder, screen() if cells_of_screen is None else cells_of_screen, split)
    found = read_screen(arrays)
    of_cell = read_split(cells, found.cells)
    write_h5ad(effects(found, of_cell, reference=reference), folder / "reference.h5ad")
    write_truth(truth_or_reason(found, of_cell), folder / "truth.npz")
    files = {"arrays": str(arrays), "split": str(cells), "screen": "", "reference": str(folder / "reference.h5ad")}
    files["truth"] = str(folder / "truth.npz")
    codes = {"training": "t", "scoring": "s", "rules": "0123456789ab"}
    return Data(**files, evaluation=SCORES, simulated=False, codes=codes, **changes)

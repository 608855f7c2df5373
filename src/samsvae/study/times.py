"""How long trainings took, next to their estimates: the last line of a study. Needs neither torch nor pandas."""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Mapping
from pathlib import Path

from samsvae.config.grid import run_settings
from samsvae.study.plan import RUN_FILES, Plan
from samsvae.text import in_words

#: The file in the folder of results with the estimated seconds of every training, by `training_key`.
ESTIMATES = ".estimates.json"


def seconds_of(record: Path, settings: Mapping) -> float | None:
    """Seconds that a run took, from its run.json; None if the file is missing, damaged or has other settings."""
    try:
        found = json.loads(record.read_text())
        same = all(found[key] == value for key, value in settings.items())
        return float(found["seconds"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def training_key(experiment: str, settings: Mapping) -> str:
    """A digest of an experiment and the settings of a run: an estimate of other settings is none of this training."""
    return hashlib.sha256(json.dumps([experiment, settings], sort_keys=True).encode()).hexdigest()[:16]


def read_estimates(results: Path) -> dict[str, float]:
    """Estimated seconds by `training_key`; {} if there are none, or the file is damaged."""
    try:
        found = json.loads((results / ESTIMATES).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def last_line(plan: Plan, started: float) -> str:
    """One line for the end of a call of Snakemake that began at ``started`` (time.monotonic): how long it took.

    It also says how long the trainings took that are done with the current settings, whichever call they ran in; all
    parts of a resumed training count. Their estimate is left out unless `samsvae estimate` has one for each of them.
    """
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(each.ru_utime + each.ru_stime for each in usage)
    line = f"This call took {in_words(time.monotonic() - started)} ({cpu:,.0f} CPU s on this machine)."
    trained = [run for found in plan.runs.values() for run in found.values() if run.checkpoint is None]
    took: dict[str, float] = {}
    for run, settings in ((run, run_settings(run)) for run in trained):
        seconds = seconds_of(Path(plan.run_file(run, RUN_FILES["run"])), settings)
        if seconds is not None:
            took[training_key(run.experiment, settings)] = seconds
    if not took:
        return line
    line += f" {len(took):,} of {len(trained):,} trainings are done; they took {in_words(sum(took.values()))}"
    told = read_estimates(plan.results)
    return line + (f", estimated: {in_words(sum(told[key] for key in took))}." if took.keys() <= told.keys() else ".")

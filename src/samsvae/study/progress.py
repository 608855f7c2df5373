"""Progress of a study: which runs are done, outdated, running, stopped, failed or waiting, and the time left.

Only the configuration, the logs and the files of the runs are read, so this works while Snakemake is running. A run is
outdated if it was trained with settings other than the current ones. Changes of its data, its evaluation or the code
are not checked, because that would mean reading all of them. ``snakemake --dry-run`` checks them, and may plan to rerun
a run that counts as done here.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samsvae.config.grid import Run, run_settings, runs
from samsvae.config.study import Study
from samsvae.config.transfer import TransferConfig
from samsvae.study.times import seconds_of
from samsvae.text import span

STATES = ("done", "outdated", "running", "stopped", "failed", "waiting")

#: A training writes to its log at least this often (seconds); scoring may take longer.
SILENT = 300.0

#: The end of the note in the log of a failed run (samsvae.study.jobs.retry_note), with the command that reruns it.
RETRY = re.compile(r"To rerun it alone.*")

STEP = re.compile(r"step (\d+)/(\d+)  ([\d.]+) steps/s")


@dataclass(frozen=True)
class RunStatus:
    """State of a run, the seconds it took or has left (None: unknown), why it failed and how to rerun it."""

    experiment: str
    run: str
    state: str
    seconds: float | None = None
    reason: str = ""
    retry: str = ""


def run_status(run: Run, results: Path, logs: Path, *, now: float, transfer: TransferConfig | None = None) -> RunStatus:
    """The status of one run, from its folder and its log. ``now``: seconds since the epoch. ``transfer``: what follows
    its training, if anything.
    """
    name, folder = run.experiment, results / run.experiment / "runs" / run.id
    scored = (folder / "scores.tsv").is_file()
    took = [seconds_of(folder / "run.json", run_settings(run))]
    if transfer:
        settings = {"transfer": json.loads(json.dumps(vars(transfer)))}
        took.append(seconds_of(folder / "transfer.json", settings))
    if scored and None not in took:
        return RunStatus(name, run.id, "done", sum(filter(None, took)))
    paths = [logs / name / kind / f"{run.id}.log" for kind in ("train", "together", "import")]
    log = max((path for path in paths if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)
    # Snakemake deletes old outputs before a run's own job, but not before a job that trains several runs together
    if scored and (log is None or log.parent.name != "together"):
        return RunStatus(name, run.id, "outdated")
    if log is None:
        return RunStatus(name, run.id, "waiting")
    lines = log.read_text(errors="replace").splitlines()
    if errors := [line for line in lines if " ERROR " in line]:
        reason = errors[-1].partition(" ERROR ")[2]
        state = "stopped" if reason.startswith("stopped by") else "failed"
        retries = [match[0] for line in lines if (match := RETRY.search(line))]
        return RunStatus(name, run.id, state, reason=reason, retry=retries[-1] if retries else "")
    if now - log.stat().st_mtime > SILENT:
        return RunStatus(name, run.id, "stopped")
    steps = [match for line in lines if (match := STEP.search(line))]
    left = (int(steps[-1][2]) - int(steps[-1][1])) / max(float(steps[-1][3]), 1e-9) if steps else None
    return RunStatus(name, run.id, "running", left)


def time_left(statuses: Sequence[RunStatus]) -> float | None:
    """Seconds until all trainings are done if as many run at a time as now; None before the first one is done.

    A run that has not started is assumed to take the median time of the done runs of its experiment, or of all done
    runs if its experiment has none.
    """
    every = [x.seconds for x in statuses if x.state == "done" and x.seconds]
    if not every:
        return None
    usual: dict[str, float] = {}
    for name in {x.experiment for x in statuses}:
        own = [x.seconds for x in statuses if (x.experiment, x.state) == (name, "done") and x.seconds]
        usual[name] = statistics.median(own or every)
    to_do = [x for x in statuses if x.state != "done"]
    work = sum(usual[x.experiment] if x.seconds is None else x.seconds for x in to_do)
    return work / max(1, sum(x.state == "running" for x in statuses))


def progress_report(statuses: Sequence[RunStatus]) -> str:
    """A table of states by experiment, the failed runs with reason and retry command, and the time left."""
    names = list(dict.fromkeys(x.experiment for x in statuses))
    rows: list[tuple[str, ...]] = [("experiment", *STATES, "all")]
    for name in [*names, "all"] if len(names) > 1 else names:
        count = Counter(x.state for x in statuses if name in (x.experiment, "all"))
        rows.append((name, *(str(count[state]) for state in STATES), str(count.total())))
    lines = aligned(rows)
    if any(x.state == "outdated" for x in statuses):
        lines.append("outdated: trained with settings other than the current ones; the next Snakemake call reruns them")
    for x in statuses:
        if x.state == "failed":
            lines.append(f"failed: {x.experiment}/runs/{x.run}: {x.reason}")
            lines += [f"  {x.retry}"] if x.retry else []
    if any(x.state != "done" for x in statuses):
        left = time_left(statuses)
        known = "unknown until a training is done" if left is None else f"{span(left)} (training only)"
        lines.append(f"time left: {known}")
    return "\n".join(lines)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table: the first column is aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def study_progress(study: Study) -> str:
    """The progress report of a study. Folders of the study that are relative start at the current folder."""
    results, logs = (Path(study.pathvars.folder(kind)) for kind in ("results", "logs"))
    now = time.time()
    return progress_report(
        [
            run_status(run, results, logs, now=now, transfer=study.settings[name].transfer)
            for name in study.experiments
            for run in runs(study, name)
        ]
    )

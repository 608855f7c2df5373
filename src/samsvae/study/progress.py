"""How far a study is: which trainings are done, outdated, running, stopped or failed, and the time left.

    python -m samsvae.study.progress --configfile config/core.yaml
    python -m samsvae.study.progress --configfile config/core.yaml --estimate --jobs 8    # before it is begun

Reads the configuration and the files of the runs only, so that it can be asked while Snakemake works. A run is
outdated where its own settings were others than today's. Whether its data, its evaluation or the code have changed is
not looked at, which would mean to read them all: `snakemake -n` knows, and may plan a run anew that is done here.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samsvae.config.grid import Run, run_settings, runs
from samsvae.config.study import Study
from samsvae.config.validate import build
from samsvae.errors import SamsvaeError
from samsvae.study.records import seconds_of
from samsvae.text import span

STATES = ("done", "outdated", "running", "stopped", "failed", "waiting")

#: A training writes to its log at least this often (seconds), evaluation aside.
SILENT = 300.0

#: What a failed run says of itself (samsvae.study.jobs), with the command of the call that it belonged to.
AGAIN = re.compile(r"To try it again by itself.*")

STEP = re.compile(r"step (\d+)/(\d+)  ([\d.]+) steps/s")


@dataclass(frozen=True)
class Standing:
    """Where a run stands: its state, the seconds it took or has left (None: not known), why it failed, what to do."""

    experiment: str
    run: str
    state: str
    seconds: float | None = None
    reason: str = ""
    again: str = ""


def standing(run: Run, results: Path, logs: Path, *, now: float) -> Standing:
    """The state of one run, from its folder and its log."""
    name, folder = run.experiment, results / run.experiment / "runs" / run.id
    scored = (folder / "scores.tsv").is_file()
    if scored and (took := seconds_of(folder / "run.json", run_settings(run))) is not None:
        return Standing(name, run.id, "done", took)
    found = [logs / name / kind / f"{run.id}.log" for kind in ("train", "together", "import")]
    log = max((path for path in found if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)
    # a job of its own begins by deleting what was there; one with others leaves it till they are all done
    if scored and (log is None or log.parent.name != "together"):
        return Standing(name, run.id, "outdated")
    if log is None:
        return Standing(name, run.id, "waiting")
    lines = log.read_text(errors="replace").splitlines()
    if errors := [line for line in lines if " ERROR " in line]:
        reason = errors[-1].partition(" ERROR ")[2]
        state = "stopped" if reason.startswith("stopped by") else "failed"
        again = [match[0] for line in lines if (match := AGAIN.search(line))]
        return Standing(name, run.id, state, reason=reason, again=again[-1] if again else "")
    if now - log.stat().st_mtime > SILENT:
        return Standing(name, run.id, "stopped")
    steps = [match for line in lines if (match := STEP.search(line))]
    left = (int(steps[-1][2]) - int(steps[-1][1])) / max(float(steps[-1][3]), 1e-9) if steps else None
    return Standing(name, run.id, "running", left)


def time_left(found: Sequence[Standing]) -> float | None:
    """Seconds until all trainings are done, as many at a time as are running now; None before the first is done.

    A run that has not begun takes as long as the median of its experiment's finished ones (or of all).
    """
    every = [x.seconds for x in found if x.state == "done" and x.seconds]
    if not every:
        return None
    usual: dict[str, float] = {}
    for name in {x.experiment for x in found}:
        own = [x.seconds for x in found if (x.experiment, x.state) == (name, "done") and x.seconds]
        usual[name] = statistics.median(own or every)
    to_do = [x for x in found if x.state != "done"]
    work = sum(usual[x.experiment] if x.seconds is None else x.seconds for x in to_do)
    return work / max(1, sum(x.state == "running" for x in found))


def report(found: Sequence[Standing]) -> str:
    """A table of states by experiment, the failed runs, each with its reason and how to try it again, the time left."""
    names = list(dict.fromkeys(x.experiment for x in found))
    rows = [("experiment", *STATES, "all")]
    for name in [*names, "all"] if len(names) > 1 else names:
        count = Counter(x.state for x in found if name in (x.experiment, "all"))
        rows.append((name, *(str(count[state]) for state in STATES), str(count.total())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    if any(x.state == "outdated" for x in found):
        lines.append("outdated: made with other settings than today's; the next call makes them anew")
    for x in found:
        if x.state == "failed":
            lines.append(f"failed: {x.experiment}/runs/{x.run}: {x.reason}")
            lines += [f"  {x.again}"] if x.again else []
    if any(x.state != "done" for x in found):
        left = time_left(found)
        told = "not known before a training is done" if left is None else f"{span(left)} (trainings alone)"
        lines.append(f"time left: {told}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how far a study is."""
    import yaml
    from snakemake.utils import update_config

    parser = argparse.ArgumentParser("python -m samsvae.study.progress", description=main.__doc__)
    parser.add_argument("--configfile", nargs="+", default=[], help="as given to snakemake, after config/config.yaml")
    parser.add_argument(
        "--base", default="config/config.yaml", help="the configuration that the others are merged over"
    )
    parser.add_argument("--estimate", action="store_true", help="how long it will take, by trial")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, for --estimate")
    given = parser.parse_args(arguments)
    merged: dict = {}
    try:
        for path in [given.base, *given.configfile]:
            update_config(merged, yaml.safe_load(Path(path).read_text()))
        study = build(Study, merged)
        if given.estimate:
            from samsvae.study.estimate import told  # torch, which the rest does without

            print(told(study, max(1, given.jobs)))
            return
        results, logs = (Path(study.pathvars.folder(kind)) for kind in ("results", "logs"))
        every = [run for name in study.experiments for run in runs(study, name)]
        found = [standing(run, results, logs, now=time.time()) for run in every]
    except (SamsvaeError, OSError, yaml.YAMLError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(report(found))


if __name__ == "__main__":
    main()

"""The jobs that train and score runs, one run or several in a process. Cached results are not recomputed.

torch is imported only if there is something to train or to score, and only after a GPU was chosen.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from samsvae.errors import Interrupted, SamsvaeError
from samsvae.files import any_length, remove_left, write_table
from samsvae.study.cache import Cache, stamp_of
from samsvae.study.gpus import hold_device
from samsvae.study.script import retry_command

log = logging.getLogger(__name__)

#: Name of the file with the state of an unfinished training, in the cache of the training.
STATE = "state.pt"

TRAINED = {"model": "model.pt", "history": "history.tsv", "run": "run.json"}

SCORED = {
    "scores": "scores.tsv",
    "per_condition": "per_condition.tsv",
    "bound": "bound.tsv",
    "worth": "worth.tsv",
    "worth_conditions": "worth_conditions.tsv",
    "effects": "effects.h5ad",
    "perturbations": "perturbations.h5ad",
}


@dataclass(frozen=True)
class Data:
    """The files that a run reads and how it is scored.

    ``codes``: digests of the code that trains (``training``) and of the code that scores (``scoring``), and the one
    that tables name (``rules``).
    """

    arrays: str
    split: str
    screen: str
    reference: str
    truth: str
    evaluation: Mapping
    simulated: bool
    codes: Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """Where a training may run and every how many seconds it saves its state. A change of these retrains nothing."""

    device: str
    jobs_per_gpu: int
    save_every: float


@dataclass(frozen=True)
class CachedRun:
    """A run, the caches of its training and of its scores, and the output files of both, by name."""

    settings: Mapping
    trained: Cache
    scored: Cache
    trained_files: Mapping[str, Path]
    scored_files: Mapping[str, Path]

    @property
    def name(self) -> str:
        return self.settings["run"]

    def is_trained(self) -> bool:
        return self.trained.is_complete(self.trained_files)

    def is_complete(self) -> bool:
        """Whether training and scores are both in the cache."""
        return self.is_trained() and self.scored.is_complete(self.scored_files)

    def link_outputs(self) -> None:
        self.trained.link_to(self.trained_files)
        self.scored.link_to(self.scored_files)


def cached_run(settings: Mapping, data: Data, folder: str | Path) -> CachedRun:
    """A run with its caches in ``folder``, next to the outputs. Their stamps cover everything that a run reads."""
    folder = Path(folder)
    stamp = stamp_of([data.codes["training"], settings, version("torch")], data.arrays, data.split)
    simulation = [data.screen] if data.simulated else []
    values = [data.codes["scoring"], dict(data.evaluation), data.simulated, stamp]
    return CachedRun(
        settings,
        Cache(folder / ".trained", stamp),
        Cache(folder / ".scored", stamp_of(values, data.reference, data.truth, *simulation)),
        {name: folder / file for name, file in TRAINED.items()},
        {name: folder / file for name, file in SCORED.items()},
    )


def run_one(settings: Mapping, data: Data, folder: str | Path, place: Place) -> None:
    """Write the files of one run (TRAINED and SCORED) to its folder, from the cache if possible."""
    run = cached_run(settings, data, folder)
    with retry_note(run):
        if run.is_trained():
            log.info("%s: already trained on the same data; delete %s to train it again", run.name, run.trained.folder)
            _remove_state(run.trained)
        if not run.is_complete():
            with hold_device(place.device, place.jobs_per_gpu) as device:
                train_and_score(run, data, device, place.save_every)
        run.link_outputs()


def take_one(settings: Mapping, data: Data, folder: str | Path, mark: str | Path) -> None:
    """Write the files of one run to its folder from the cache that `run_together` filled.

    ``mark``: the table that `run_together` wrote. SamsvaeError if the run failed there or its cache is incomplete.
    """
    run = cached_run(settings, data, folder)
    with retry_note(run):
        if run.name in (failed := failed_in(mark)):
            raise SamsvaeError(f"failed when it was trained together with other runs: {failed[run.name]}")
        if not run.is_complete():
            raise SamsvaeError(f"{run.trained.folder}: the cache is incomplete or damaged. Delete {mark} to refill it.")
        log.info("%s: trained together with other runs (%s); taken from the cache", run.name, mark)
        run.link_outputs()


def failed_in(mark: str | Path) -> dict[str, str]:
    """Run id -> reason, for the runs that failed in `run_together`, from the table it wrote; {} if there is none."""
    try:
        with open(mark, newline="") as file, any_length():
            rows = list(csv.DictReader(file, delimiter="\t"))
    except FileNotFoundError:
        return {}
    return {row["run"]: row["reason"] for row in rows if row.get("state") == "failed"}


def run_together(
    runs: Sequence[Mapping],
    data: Data,
    folders: Mapping[str, str | Path],
    logs: Mapping[str, str | Path],
    place: Place,
    out: str | Path,
) -> None:
    """Train and score several runs of the same data in one process and leave the results in their caches.

    ``folders`` and ``logs``: by the id of the run. ``out``: a table (TSV: run, state, reason). A run that fails is
    noted there and does not stop the others.
    """
    reasons: dict[str, str] = {}
    todo = []
    for settings in runs:
        run = cached_run(settings, data, folders[settings["run"]])
        try:
            complete = run.is_complete()
        except OSError:  # concerns this run only, and is raised again below, where it is reported
            complete = False
        if complete:
            log.info("%s: taken from the cache", run.name)
        else:
            todo.append(run)
    todo.sort(key=lambda run: run.trained.was_interrupted)  # last: the run that may have killed the process before
    if todo:
        with hold_device(place.device, place.jobs_per_gpu) as device:
            for run in todo:
                reasons[run.name] = _run_or_reason(run, data, logs[run.name], device, place.save_every)
    # neither times nor cache hits are written: the table must be the same with and without an interruption
    rows = [(settings["run"], reasons.get(settings["run"], "")) for settings in runs]
    write_table([{"run": run, "state": "failed" if why else "done", "reason": why} for run, why in rows], out)


def _run_or_reason(run: CachedRun, data: Data, log_file: str | Path, device: str, save_every: float) -> str:
    """Train and score one run; return '' or the reason why it failed."""
    reason = ""
    with _log_file(log_file):
        try:
            with retry_note(run):
                train_and_score(run, data, device, save_every)
        except Interrupted as error:
            log.error("%s", error)
            raise
        except Exception as error:  # any error: the other runs continue
            if type(error).__name__ == "AcceleratorError":  # except that this process has lost its GPU
                raise
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, SamsvaeError):
                log.error("%s", error)
                log.info("%s", *error.__notes__)
            else:
                log.exception("%s", error)
    log.info("%s: %s", run.name, reason or "done")
    return reason


def train_and_score(run: CachedRun, data: Data, device: str, save_every: float) -> None:
    """Train the run unless its training is cached, then score it; both fill the caches."""
    from samsvae.evaluation.run import evaluate
    from samsvae.study.train_run import fit
    from samsvae.training.state import Keep

    if not run.is_trained():
        state = Keep(run.trained.folder / STATE, f"{run.trained.stamp} {device}", save_every)
        run.trained.fill(
            run.trained_files,
            lambda out: fit(run.settings, data.arrays, data.split, device, out=out, keep=state),
        )
        _remove_state(run.trained)
    inputs: dict = {name: getattr(data, name) for name in ("arrays", "split", "screen", "reference", "truth")}
    inputs["model"] = run.trained.folder / TRAINED["model"]
    settings = dict(data.evaluation)
    run.scored.fill(
        run.scored_files,
        lambda out: evaluate(
            inputs, out, settings=settings, simulated=data.simulated, rules=data.codes["rules"], device=device
        ),
    )


@contextmanager
def retry_note(run: CachedRun) -> Iterator[None]:
    """Add a note to any exception: the folder of the run, its resume step and the command that reruns it alone."""
    try:
        yield
    except Interrupted:  # its own message says how to continue
        raise
    except Exception as error:
        scores = run.scored_files["scores"]
        error.add_note(f"{scores.parent} failed. To rerun it alone{_resume_step(run.trained)}: {retry_command(scores)}")
        raise


def _resume_step(trained: Cache) -> str:
    """', from step N on' if there is a saved state that the next try would resume from, else ''."""
    if not (trained.folder / STATE).is_file():
        return ""
    from samsvae.training.checkpoint import read

    try:
        state = read(trained.folder / STATE)
        # the stamp of a state is the stamp of the training followed by the device
        return f", from step {state['step']} on" if state["stamp"].startswith(f"{trained.stamp} ") else ""
    except Exception:  # must not replace the error that the note is for
        return ""


def _remove_state(trained: Cache) -> None:
    """Remove the state of a finished training, which may have been killed just before it removed the state itself."""
    (trained.folder / STATE).unlink(missing_ok=True)
    remove_left(trained.folder / STATE)


@contextmanager
def _log_file(path: str | Path) -> Iterator[None]:
    """Write the log to a second file as well."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()

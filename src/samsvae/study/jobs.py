"""The jobs of runs: train and score one, or several in one process. What was made before is taken, not made again.

torch is imported only where there is something to train or to score, and after the choice of a card.
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
from samsvae.files import remove_left, write_table
from samsvae.study.cache import Kept, stamp_of
from samsvae.study.gpus import hold_device
from samsvae.study.script import again

log = logging.getLogger(__name__)

#: Where the state of a training under way is kept, beside what it will make.
STATE = "state.pt"

TRAINED = {"model": "model.pt", "history": "history.tsv", "run": "run.json"}

SCORED = {
    "scores": "scores.tsv",
    "per_condition": "per_condition.tsv",
    "effects": "effects.h5ad",
    "perturbations": "perturbations.h5ad",
}


@dataclass(frozen=True)
class Data:
    """The files that a run reads, and how it is scored. ``codes``: digests of the code that trains and that scores."""

    arrays: str
    split: str
    screen: str
    reference: str
    evaluation: Mapping
    simulated: bool
    codes: Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """Where a training may run, and how often it keeps its state: no reason to train again."""

    device: str
    jobs_per_gpu: int
    keep_every: float


def run_one(settings: Mapping, data: Data, folder: str | Path, place: Place) -> None:
    """The files of one run in its folder: TRAINED and SCORED, made or taken from what is kept."""
    trained, scored, files = _kept(settings, data, Path(folder))
    with _told(trained, files):
        if trained.whole(files["trained"]):
            log.info("%s: trained before, on the same data; remove %s to train anew", settings["run"], trained.folder)
            _drop_state(trained)
        if not (trained.whole(files["trained"]) and scored.whole(files["scored"])):
            with hold_device(place.device, place.jobs_per_gpu) as device:
                _make(settings, data, trained, scored, files, device, place.keep_every)
        trained.take(files["trained"])
        scored.take(files["scored"])


def take_one(settings: Mapping, data: Data, folder: str | Path, mark: str | Path) -> None:
    """The files of one run in its folder from what `run_together` has kept of it; SamsvaeError where it failed.

    ``mark``: the table that `run_together` wrote.
    """
    trained, scored, files = _kept(settings, data, Path(folder))
    with _told(trained, files):
        if settings["run"] in (failed := failed_in(mark)):
            raise SamsvaeError(f"failed where it was trained together with others: {failed[settings['run']]}")
        if not (trained.whole(files["trained"]) and scored.whole(files["scored"])):
            raise SamsvaeError(f"{trained.folder}: not whole any more. Remove {mark}, so that it is made again.")
        log.info("%s: taken as it was trained together with others (%s)", settings["run"], mark)
        trained.take(files["trained"])
        scored.take(files["scored"])


def failed_in(mark: str | Path) -> dict[str, str]:
    """The runs that failed in `run_together`, with the reasons, by the table that it wrote; {} before there is one."""
    try:
        with open(mark, newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except FileNotFoundError:
        return {}
    return {row["run"]: row["reason"] for row in rows if row.get("state") == "failed"}


def run_together(
    runs: Sequence[Mapping],
    data: Data,
    folders: Mapping[str, str],
    logs: Mapping[str, str],
    place: Place,
    out: str | Path,
) -> None:
    """Train and score several runs of the same data in one process, and keep the results in the folders of the runs.

    ``folders`` and ``logs``: by the id of the run. A run that fails is written to ``out`` (TSV: run, state, reason) and
    leaves the others alone.
    """
    reasons: dict[str, str] = {}
    todo = []
    for settings in runs:
        trained, scored, files = _kept(settings, data, Path(folders[settings["run"]]))
        try:
            done = trained.whole(files["trained"]) and scored.whole(files["scored"])
        except OSError:  # of this run alone: it comes again where it is told
            done = False
        if done:
            log.info("%s: kept from before", settings["run"])
        else:
            todo.append((settings, trained, scored, files))
    todo.sort(key=lambda each: each[1].begun)  # one that takes the process down shall not do so before the others
    if todo:
        with hold_device(place.device, place.jobs_per_gpu) as device:
            for settings, *rest in todo:
                reasons[settings["run"]] = _one_of_several(settings, *rest, data, logs, device, place.keep_every)
    # no times, and not who was kept: the same after a kill as without
    told = [(settings["run"], reasons.get(settings["run"], "")) for settings in runs]
    write_table([{"run": run, "state": "failed" if why else "done", "reason": why} for run, why in told], out)


def _one_of_several(settings, trained, scored, files, data, logs, device, keep_every) -> str:
    """Make one run; the reason if it fails, else ''."""
    reason = ""
    with _logged(logs[settings["run"]]):
        try:
            with _told(trained, files):
                _make(settings, data, trained, scored, files, device, keep_every)
        except Interrupted as error:
            log.error("%s", error)
            raise
        except Exception as error:  # whatever it is, the other runs go on
            if type(error).__name__ == "AcceleratorError":  # but on a card that is lost to this process
                raise
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, SamsvaeError):
                log.error("%s", error)
                log.info("%s", *error.__notes__)
            else:
                log.exception("%s", error)
    log.info("%s: %s", settings["run"], reason or "done")
    return reason


def _kept(settings: Mapping, data: Data, folder: Path) -> tuple[Kept, Kept, dict[str, dict[str, Path]]]:
    """What is kept of a run's training and of its scores, and the files of both in its folder."""
    files = {
        part: {name: folder / file for name, file in names.items()}
        for part, names in (("trained", TRAINED), ("scored", SCORED))
    }
    stamp = stamp_of([data.codes["training"], settings, version("torch")], data.arrays, data.split)
    trained = Kept(folder / ".trained", stamp)
    truth = [data.screen] if data.simulated else []
    values = [data.codes["scoring"], dict(data.evaluation), data.simulated, stamp]
    return trained, Kept(folder / ".scored", stamp_of(values, data.reference, *truth)), files


def _make(settings, data: Data, trained: Kept, scored: Kept, files: dict, device: str, keep_every: float) -> None:
    """Train where there is no training of this stamp, then score."""
    from samsvae.evaluation.run import evaluate
    from samsvae.study.train_run import fit
    from samsvae.training.state import Keep

    if not trained.whole(files["trained"]):
        keep = Keep(trained.folder / STATE, f"{trained.stamp} {device}", keep_every)
        trained.fill(files["trained"], lambda out: fit(settings, data.arrays, data.split, device, out=out, keep=keep))
        _drop_state(trained)
    inputs = {name: getattr(data, name) for name in ("arrays", "split", "screen", "reference")}
    inputs["model"] = trained.folder / TRAINED["model"]
    scored.fill(
        files["scored"],
        lambda out: evaluate(inputs, out, settings=data.evaluation, simulated=data.simulated, device=device),
    )


@contextmanager
def _told(trained: Kept, files: Mapping[str, Mapping[str, Path]]) -> Iterator[None]:
    """Whatever fails gets a note: which run it is, from where it would go on, and how to try it again by itself."""
    try:
        yield
    except Interrupted:  # says so itself
        raise
    except Exception as error:
        scores = files["scored"]["scores"]
        error.add_note(f"{scores.parent} failed. To try it again by itself{_from_where(trained)}: {again(scores)}")
        raise


def _from_where(trained: Kept) -> str:
    """What is kept of a training that has not ended, in words."""
    if not (trained.folder / STATE).is_file():
        return ""
    from samsvae.training.checkpoint import read

    try:
        state = read(trained.folder / STATE)
        # the stamp of a state has the device behind that of the training
        return f", from step {state['step']} on" if state["stamp"].startswith(f"{trained.stamp} ") else ""
    except Exception:  # this is about another error: it must not take its place
        return ""


def _drop_state(trained: Kept) -> None:
    """Remove the state of a training that has ended, also where a kill came between its end and this."""
    (trained.folder / STATE).unlink(missing_ok=True)
    remove_left(trained.folder / STATE)


@contextmanager
def _logged(path: str | Path) -> Iterator[None]:
    """The log of the package in a file of its own as well."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()

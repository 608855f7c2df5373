"""The jobs of runs: train and score one, or several in one process. What was made before is taken, not made again.

torch is imported only where there is something to train or to score, and after the choice of a card.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from samsvae.devices import hold_device
from samsvae.errors import Interrupted
from samsvae.files import remove_left, write_table
from samsvae.kept import Kept, stamp_of

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
    if trained.whole(files["trained"]):
        log.info("%s: trained before, on the same data; remove %s to train anew", settings["run"], trained.folder)
        _drop_state(trained)
    if not (trained.whole(files["trained"]) and scored.whole(files["scored"])):
        with hold_device(place.device, place.jobs_per_gpu) as device:
            _make(settings, data, trained, scored, files, device, place.keep_every)
    trained.take(files["trained"])
    scored.take(files["scored"])


def run_together(
    runs: Sequence[Mapping],
    data: Data,
    folders: Mapping[str, str],
    logs: Mapping[str, str],
    place: Place,
    out: str | Path,
) -> None:
    """Train and score several runs of the same data in one process, and keep the results in the folders of the runs.

    ``folders`` and ``logs``: by the id of the run. A run that fails is written to ``out`` (TSV: run, state, seconds,
    reason) and leaves the others alone; its own job then fails with its own message.
    """
    rows = []
    todo = []
    for settings in runs:
        trained, scored, files = _kept(settings, data, Path(folders[settings["run"]]))
        done = trained.whole(files["trained"]) and scored.whole(files["scored"])
        if done:
            rows.append({"run": settings["run"], "state": "kept", "seconds": 0.0, "reason": ""})
        else:
            todo.append((settings, trained, scored, files))
    if todo:
        with hold_device(place.device, place.jobs_per_gpu) as device:
            rows += [_one_of_several(*each, data, logs, device, place.keep_every) for each in todo]
    write_table(rows, out)


def _one_of_several(settings, trained, scored, files, data, logs, device, keep_every) -> dict[str, object]:
    """A row of what became of a run."""
    start, state, reason = time.perf_counter(), "done", ""
    with _logged(logs[settings["run"]]):
        try:
            _make(settings, data, trained, scored, files, device, keep_every)
        except Interrupted:
            raise
        except Exception as error:  # whatever it is, the other runs go on; the run's own job says it again
            state, reason = "failed", f"{type(error).__name__}: {error}"
            log.error("%s", error)
    log.info("%s: %s %s", settings["run"], state, reason)
    return {"run": settings["run"], "state": state, "seconds": time.perf_counter() - start, "reason": reason}


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
    from samsvae.evaluation import evaluate
    from samsvae.fit import fit
    from samsvae.training import Keep

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


def _drop_state(trained: Kept) -> None:
    """Remove the state of a training that has ended, also where a kill came between its end and this."""
    (trained.folder / STATE).unlink(missing_ok=True)
    remove_left(trained.folder / STATE)


@contextmanager
def _logged(path: str | Path):
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

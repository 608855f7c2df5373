"""The jobs that train, score and transfer runs, one run or several in a process. Cached results are not recomputed.

torch is imported only if there is something to train or to score, and only after a GPU was chosen.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from samsvae.config.transfer import TransferConfig
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

#: Further files of a run whose experiment has the setting ``transfer``.
TRANSFERRED = {"transfer": "transfer.tsv", "adapted": "transfer.h5ad", "transfer_record": "transfer.json"}


@dataclass(frozen=True)
class Data:
    """The files that a run reads and how it is scored.

    ``codes``: digests of the code that trains (``training``), scores (``scoring``), trains again before a transfer
    (``refit``) and transfers (``transfer``), and the one that tables name (``rules``). ``transfer``: None, or the
    settings of the transfer and of the split (`study.plan.Plan.transfer`); then ``baselines`` has one file.
    """

    arrays: str
    split: str
    screen: str
    reference: str
    truth: str
    evaluation: Mapping
    simulated: bool
    codes: Mapping[str, str]
    transfer: Mapping[str, Mapping] | None = None
    baselines: Sequence[str] = ()

    @classmethod
    def of(cls, found: Any, params: Any) -> Data:
        """The data of a job, from the input and the params that Snakemake gives to its script."""
        return cls(
            arrays=found.arrays,
            split=found.split,
            screen=found.screen,
            reference=found.reference,
            truth=found.truth,
            evaluation=params.evaluation,
            simulated=params.simulated,
            codes=params.codes,
            transfer=params.transfer,
            baselines=list(found.baselines),
        )


@dataclass(frozen=True)
class Place:
    """Where a training may run and every how many seconds it saves its state. A change of these retrains nothing."""

    device: str
    jobs_per_gpu: int
    save_every: float


@dataclass(frozen=True)
class CachedRun:
    """A run and its caches: of the training, of the scores, and of a transfer if there is one.

    ``refits``: caches of the second training before the transfer, by variant; their files are no outputs.
    """

    settings: Mapping
    trained: Cache
    scored: Cache
    transferred: Cache | None = None
    refits: Mapping[str, Cache] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.settings["run"]

    @property
    def trainings(self) -> list[Cache]:
        return [self.trained, *self.refits.values()]

    @property
    def results(self) -> list[Cache]:
        """The caches whose files are outputs."""
        return [self.trained, self.scored, *([self.transferred] if self.transferred else [])]

    def is_complete(self) -> bool:
        """Whether all outputs are in the caches."""
        return all(cache.is_complete() for cache in self.results)

    def link_outputs(self) -> None:
        for cache in self.results:
            cache.link()


def cached_run(settings: Mapping, data: Data, folder: str | Path) -> CachedRun:
    """A run with its caches in ``folder``, next to the outputs. Their stamps cover everything that a run reads."""
    folder, codes = Path(folder), data.codes

    def cache(name: str, stamp: str, files: Mapping[str, str]) -> Cache:
        return Cache(folder / name, stamp, {key: folder / file for key, file in files.items()})

    stamp = stamp_of([codes["training"], settings, version("torch")], data.arrays, data.split)
    simulation = [data.screen] if data.simulated else []
    values = [codes["scoring"], dict(data.evaluation), data.simulated, stamp]
    scored = stamp_of(values, data.reference, data.truth, *simulation)
    transferred, refits = None, {}
    if data.transfer:
        how, split = (data.transfer[name] for name in ("settings", "split"))
        for variant in TransferConfig(**how).refits_of(settings["model"], split["new_cells"]):
            values = [codes["refit"], how["stage2_epochs"], variant, stamp]
            refits[variant] = cache(f".refit_{variant}", stamp_of(values), TRAINED)
        values = [codes["transfer"], codes["refit"], how, split, dict(data.evaluation), stamp]
        transferred = cache(".transferred", stamp_of(values, *data.baselines, *simulation), TRANSFERRED)
    return CachedRun(settings, cache(".trained", stamp, TRAINED), cache(".scored", scored, SCORED), transferred, refits)


def run_one(settings: Mapping, data: Data, folder: str | Path, place: Place) -> None:
    """Write the files of one run to its folder (TRAINED, SCORED, and TRANSFERRED with a transfer), from the cache if
    possible.
    """
    run = cached_run(settings, data, folder)
    with retry_note(run):
        for cache in run.trainings:
            if cache.is_complete():
                log.info("%s: already trained on the same data; delete %s to train it again", run.name, cache.folder)
                _remove_state(cache)
        if not run.is_complete():
            with hold_device(place.device, place.jobs_per_gpu) as device:
                fill_caches(run, data, device, place.save_every)
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
    # last: the run that may have killed the process before
    todo.sort(key=lambda run: any(cache.was_interrupted for cache in run.trainings))
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
                fill_caches(run, data, device, save_every)
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


def fill_caches(run: CachedRun, data: Data, device: str, save_every: float) -> None:
    """Fill the caches of a run that are not complete: train it, score it, and transfer it to new perturbations.

    What follows a training is computed again after it, because another GPU may have trained it.
    """
    from samsvae.evaluation.run import evaluate
    from samsvae.study.train_run import fit

    fresh = _train(
        run.trained, device, save_every, lambda **to: fit(run.settings, data.arrays, data.split, device, **to)
    )
    inputs: dict = {name: getattr(data, name) for name in ("arrays", "split", "screen", "reference", "truth")}
    inputs["model"], rules = run.trained.files["model"], data.codes["rules"]
    if fresh or not run.scored.is_complete():
        settings = dict(data.evaluation)
        run.scored.fill(
            lambda out: evaluate(inputs, out, settings=settings, simulated=data.simulated, rules=rules, device=device)
        )
    if run.transferred and (fresh or not run.transferred.is_complete()):
        _transfer(run, run.transferred, data, device, save_every, fresh)


def _transfer(run: CachedRun, cache: Cache, data: Data, device: str, save_every: float, fresh: bool) -> None:
    """Fill the caches of the second trainings of a run, unless they are complete, and that of its transfer."""
    from samsvae.study.refit_run import refit_run
    from samsvae.study.transfer_run import transfer_run

    assert data.transfer is not None
    how, split = (data.transfer[name] for name in ("settings", "split"))
    model = run.trained.files["model"]
    for variant, refit in run.refits.items():
        released, epochs = variant == "as_released", how["stage2_epochs"]
        train = partial(refit_run, run.settings, model, data.arrays, data.split, device)
        _train(refit, device, save_every, partial(train, released=released, epochs=epochs), again=fresh)
    inputs: dict = {"model": model, "arrays": data.arrays, "split": data.split, "baselines": data.baselines[0]}
    inputs |= {"screen": data.screen} if data.simulated else {}
    refits = {variant: refit.files["model"] for variant, refit in run.refits.items()}
    evaluation = dict(data.evaluation)
    cache.fill(
        lambda out: transfer_run(inputs, refits, out, settings=how, split=split, evaluation=evaluation, device=device)
    )


def _train(cache: Cache, device: str, save_every: float, write: Callable[..., None], *, again: bool = False) -> bool:
    """Fill the cache of a training unless it is complete; return whether it was filled.

    ``write``: gets the files, ``out``, and where it saves its state, ``keep``. ``again``: from the start in any case.
    """
    from samsvae.training.state import Keep

    if again and cache.was_interrupted:
        _remove_state(cache)
    elif not again and cache.is_complete():
        return False
    keep = Keep(cache.folder / STATE, f"{cache.stamp} {device}", save_every)
    cache.fill(lambda out: write(out=out, keep=keep))
    _remove_state(cache)
    return True


@contextmanager
def retry_note(run: CachedRun) -> Iterator[None]:
    """Add a note to any exception: the folder of the run, its resume step and the command that reruns it alone."""
    try:
        yield
    except Interrupted:  # its own message says how to continue
        raise
    except Exception as error:
        scores = run.scored.outputs["scores"]
        step = next(filter(None, map(_resume_step, run.trainings)), "")
        error.add_note(f"{scores.parent} failed. To rerun it alone{step}: {retry_command(scores)}")
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
    """Remove the state of a training. A finished one may have been killed just before it removed the state itself."""
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

"""What every script of the workflow needs around its one call: a log file, and one-sentence messages for errors."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from samsvae.errors import SamsvaeError
from samsvae.files import NO_ROOM, forget, no_room, record, verify
from samsvae.signals import stop_signals

#: The environment variable from which jobs read how Snakemake was called, without its targets.
CALL = "SAMSVAE_CALL"

#: Python collects garbage whenever the number of objects has grown by this. With its default of 700, a job spends a
#: tenth of a second or more on the objects of its imports, none of which is garbage.
NEW_OBJECTS = 10_000


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """The `session` of a job: its inputs are verified before, and the digests of its outputs recorded at the end.

    ``snakemake``: the object that Snakemake gives to a script.
    """
    gc.set_threshold(NEW_OBJECTS)
    with session(snakemake.log[0]):
        forget(snakemake.output)
        verify(snakemake.input)
        yield
        record(snakemake.output)
    gc.freeze()  # otherwise Python searches all modules for garbage once more before it exits


@contextmanager
def session(log: str | Path) -> Iterator[None]:
    """Log to a file, and end the process with one sentence and exit status 1 for errors that are not bugs.

    These are a SamsvaeError, a stop signal and a full disk. The sentence goes to the log and to stderr. Any other
    error is logged with its traceback and raised again.
    """
    with stop_signals(interrupt=True) as received:
        try:
            _log_to(Path(log))
            _hide_full_disk_tracebacks()
            yield
        except SamsvaeError as error:
            _exit_with(type(error).__name__, str(error), *getattr(error, "__notes__", ()))
        except BaseException as error:
            if received:  # a library may have turned the signal into an error of its own
                _exit_with("Interrupted", f"stopped by {received[0]}; no partial file is left.")
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                file = error.filename or "a file"
                sentence = f"{file}: {NO_ROOM[error.errno]}; no partial file is left. Free some space and rerun."
                _exit_with("OSError", sentence, *getattr(error, "__notes__", ()))
            logging.exception("unexpected error; please report it")
            raise


def _log_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    logging.raiseExceptions = False  # else a full disk prints a traceback for every line that cannot be logged
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=[logging.FileHandler(log, mode="w")],
    )
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it logs a hundred lines for each font of a PDF
    logging.captureWarnings(True)


def _hide_full_disk_tracebacks() -> None:
    """Print no tracebacks for a full disk: HDF5 reports each object it cannot close twice, and raises an error too."""
    shown, ignored = sys.excepthook, sys.unraisablehook
    sys.excepthook = lambda kind, error, trace: None if no_room(error) else shown(kind, error, trace)
    sys.unraisablehook = lambda raised: None if no_room(raised.exc_value) else ignored(raised)


def _exit_with(kind: str, sentence: str, *notes: str) -> None:
    """Print and log the sentence, then end the process at once: open files must not be written or reported."""
    logging.error("%s", sentence)
    for note in notes:
        logging.info("%s", note)
    logging.shutdown()
    with suppress(OSError):
        print("\n".join([f"{kind}: {sentence}", *notes]), file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(1)


def call_of(arguments: Sequence[str]) -> str:
    """The Snakemake command for these arguments, without targets and options for one call only (``--forceall``)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    single = [("--workflow-profile",), ("--profile",), ("--snakefile", "-s"), ("--directory", "-d")]
    for names in [*single, ("--executor", "-e"), ("--cores", "-c"), ("--jobs", "-j")]:
        parser.add_argument(*names, nargs="?")
    several = [("--resources", "--res"), ("--configfile", "--configfiles"), ("--config", "-C")]
    for names in [*several, ("--sdm", "--software-deployment-method", "--deployment-method", "--deployment")]:
        parser.add_argument(*names, nargs="*")
    before_targets = list(arguments)[: arguments.index("--")] if "--" in arguments else arguments
    given = {name: value for name, value in vars(parser.parse_known_args(before_targets)[0]).items() if value}
    if not {"cores", "jobs", "profile", "workflow_profile"} & set(given):
        given["cores"] = "1"
    words = ["snakemake"]
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", *([value] if isinstance(value, str) else value)]
    return shlex.join(words)


def retry_command(target: str | Path) -> str:
    """The command that makes one target, with the settings of the Snakemake call that this job belongs to."""
    return f"{os.environ.get(CALL, call_of([]))} -- {shlex.quote(str(target))}"

"""What every script of the workflow needs around its one call: a log file, and one sentence where it has to stop."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from samsvae.errors import SamsvaeError
from samsvae.files import NO_ROOM, no_room
from samsvae.signals import stop_signals

#: The environment variable that tells jobs how Snakemake was called, but for its targets.
CALL = "SAMSVAE_CALL"


@contextmanager
def session(log: str | Path) -> Iterator[None]:
    """Log to a file; what is no fault of the code is one sentence, in the log and on the screen, and exit status 1.

    That is a SamsvaeError, a signal to stop, and a disk that takes no more. Anything else has its traceback.
    """
    with stop_signals(interrupt=True) as came:
        try:
            _log_to(Path(log))
            _hush()
            yield
        except SamsvaeError as error:
            _leave(type(error).__name__, str(error), *getattr(error, "__notes__", ()))
        except BaseException as error:
            if came:  # whatever a library has made of it
                _leave("Interrupted", f"stopped by {came[0]}; no half file is left.")
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                file = error.filename or "a file"
                sentence = f"{file}: {NO_ROOM[error.errno]}; no half file is left. Make room and start again."
                _leave("OSError", sentence, *getattr(error, "__notes__", ()))
            logging.exception("not expected; please report this")
            raise


def _log_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    logging.raiseExceptions = False  # no traceback on the screen for every line that a full disk does not take
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=[logging.FileHandler(log, mode="w")],
    )
    logging.captureWarnings(True)


def _hush() -> None:
    """On a full disk HDF5 tells of each object that it cannot close, twice, though the error itself is raised too."""
    shown, ignored = sys.excepthook, sys.unraisablehook
    sys.excepthook = lambda kind, error, trace: None if no_room(error) else shown(kind, error, trace)
    sys.unraisablehook = lambda raised: None if no_room(raised.exc_value) else ignored(raised)


def _leave(kind: str, sentence: str, *notes: str) -> None:
    """End the process, at once: what is still open is not to be written, and not to be told of."""
    logging.error("%s", sentence)
    for note in notes:
        logging.info("%s", note)
    logging.shutdown()
    with suppress(OSError):
        print("\n".join([f"{kind}: {sentence}", *notes]), file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(1)


def call_of(arguments: Sequence[str]) -> str:
    """A call of Snakemake, without its targets and whatever else is about one call only, such as ``--forceall``."""
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


def again(target: str | Path) -> str:
    """The command that makes one target, with the settings of the call that this job belongs to."""
    return f"{os.environ.get(CALL, call_of([]))} -- {shlex.quote(str(target))}"

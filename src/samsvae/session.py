"""What every script of the workflow needs around its one call: a log file, and one sentence where it has to stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from samsvae.errors import SamsvaeError
from samsvae.files import NO_ROOM, no_room

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def session(log: str | Path) -> Iterator[None]:
    """Log to a file; what is no fault of the code is one sentence, in the log and on the screen, and exit status 1.

    That is a SamsvaeError, a signal to stop, and a disk that takes no more. Anything else has its traceback.
    """
    with _stops() as came:
        try:
            _log_to(Path(log))
            _hush()
            yield
        except SamsvaeError as error:
            _leave(type(error).__name__, str(error))
        except BaseException as error:
            if came:  # whatever a library has made of it
                _leave("Interrupted", f"stopped by {came[0]}; no half file is left.")
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                file = error.filename or "a file"
                _leave("OSError", f"{file}: {NO_ROOM[error.errno]}; no half file is left. Make room and start again.")
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


def _leave(kind: str, sentence: str) -> None:
    """End the process, at once: what is still open is not to be written, and not to be told of."""
    logging.error("%s", sentence)
    logging.shutdown()
    with suppress(OSError):
        print(f"{kind}: {sentence}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(1)


@contextmanager
def _stops() -> Iterator[list[str]]:
    """Names of the signals to stop that came; each raises KeyboardInterrupt, so that what is open is closed."""
    came: list[str] = []

    def stop(number: int, frame: object) -> None:
        came.append(signal.Signals(number).name)
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():  # Python lets no other set handlers
        before = {number: signal.getsignal(number) for number in STOP}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as in a background job of a shell
            signal.signal(number, stop)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

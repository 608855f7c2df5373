"""What every script of the workflow needs around its one call: a log file, and one sentence for a user's error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from samsvae.errors import SamsvaeError


@contextmanager
def session(log: str | Path, *, append: bool = False) -> Iterator[None]:
    """Log to a file; a SamsvaeError becomes its sentence, in the log and on the screen, and exit status 1.

    ``append``: to what the file holds already.
    """
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log, mode="a" if append else "w")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", handlers=[handler]
    )
    logging.captureWarnings(True)
    try:
        yield
    except SamsvaeError as error:
        logging.error("%s", error)
        sys.exit(f"{type(error).__name__}: {error}")
    except BaseException:
        logging.exception("not expected; please report this")
        raise

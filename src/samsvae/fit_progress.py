"""How a fit in a notebook shows its progress."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("samsvae")


@contextmanager
def log_on_stderr(progress: bool) -> Iterator[None]:
    """Print the log of the package on stderr during the block, if ``progress``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = log.level
    if progress:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)

"""How a fit shows its progress: a bar in terminals and notebooks, lines of the log elsewhere, or nothing."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

log = logging.getLogger("samsvae")

#: Seconds between two reports of a training: for a bar, and for lines of a log.
BAR, LINES = 0.5, 10.0

#: How the lines begin that `samsvae.training.loop.log_progress` logs, with their arguments: step, steps, speed, loss.
STEPS = "step %d/%d "


@contextmanager
def show_progress(progress: bool) -> Iterator[float]:
    """Show the log of the package on stderr during the block, if ``progress``; gives the seconds between two reports.

    In a terminal or a notebook the reports of a training move a bar, and all other lines stand above it.
    """
    bar = progress and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    handler = _Bar() if bar else logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = log.level
    if progress:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        yield BAR if bar else LINES
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
        handler.close()


class _Bar(logging.Handler):
    """Moves a bar for every report of a training; writes other records above it."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without ipywidgets gets a bar of text
            from tqdm.auto import tqdm
        self.make: Any = tqdm
        self.bar: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not str(record.msg).startswith(STEPS) or not isinstance(record.args, tuple):
                self.make.write(self.format(record), file=sys.stderr)
                return
            step, steps, loss = (cast(float, record.args[at]) for at in (0, 1, 3))
            if self.bar is None:
                self.bar = self.make(total=steps, unit="step", file=sys.stderr)
            self.bar.total = steps  # fewer, if the training stopped early
            self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            self.bar.update(step - self.bar.n)
            self.bar.refresh()
            if step == steps:
                self._end()
        except Exception:  # as every handler of a log does
            self.handleError(record)

    def close(self) -> None:
        self._end()
        super().close()

    def _end(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None

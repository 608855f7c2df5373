"""The one handler of signals to stop (SIGTERM, SIGINT, SIGHUP), for trainings and for the scripts of the workflow."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def stop_signals(*, interrupt: bool = False) -> Iterator[list[str]]:
    """Within the block, collect the names of the signals to stop that arrive, in place of ending the process.

    A loop looks at the list between its steps. With ``interrupt`` each signal also raises KeyboardInterrupt where the
    program stands, so that open files are closed. A signal that the process ignores, as a background job of a shell
    ignores SIGINT, stays ignored. Outside the main thread, where Python allows no handlers, nothing is collected.
    """
    came: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def stop(number: int, frame: object) -> None:
        came.append(signal.Signals(number).name)
        if interrupt:
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in STOP}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

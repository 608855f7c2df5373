"""The only handler of stop signals (SIGTERM, SIGINT, SIGHUP), for trainings and for the workflow scripts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def stop_signals(*, interrupt: bool = False) -> Iterator[list[str]]:
    """Within the block, collect the names of the stop signals that arrive, instead of ending the process.

    A loop checks the list between its steps. With ``interrupt``, each signal also raises KeyboardInterrupt at once, so
    that open files are closed. A signal that the process already ignores stays ignored (a shell's background job
    ignores SIGINT). Outside the main thread Python allows no handlers, so nothing is collected.
    """
    received: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def stop(number: int, frame: object) -> None:
        received.append(signal.Signals(number).name)
        if interrupt:
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in STOP}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

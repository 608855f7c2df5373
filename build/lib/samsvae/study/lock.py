"""Locks on files. The kernel releases them when the process that holds them ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
import shlex
import stat
import time
from pathlib import Path

from samsvae.errors import ConfigError, SamsvaeError

log = logging.getLogger(__name__)


def open_lock(path: Path, mode: int, *, folder: int | None = None) -> int:
    """Open a lock file, or create it with ``mode``, and return its descriptor, which child programs do not inherit.

    Its content stays. ``folder``: the descriptor of its folder, if that is open. ConfigError if the path is a symbolic
    link or no regular file; a FIFO is refused without waiting for its other end.
    """
    try:
        name = path if folder is None else path.name
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, mode, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise ConfigError(f"{path}: not a regular file, so it cannot be a lock. Delete it.") from None
    if not stat.S_ISREG(os.fstat(lock).st_mode):
        os.close(lock)
        raise ConfigError(f"{path}: not a regular file, so it cannot be a lock. Delete it.")
    return lock


def try_lock(lock: int) -> bool:
    """Take the exclusive lock of an open file; False if another process has it. OSError without support for locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class StudyLock:
    """The lock of a folder of results, held by the one Snakemake that works in it: ``RESULTS/.lock``.

    It is held until `release`, or until the object is gone or the process ends. The jobs of this Snakemake neither take
    it nor wait for it.
    """

    def __init__(self, results: str | Path):
        self.path = Path(results) / ".lock"
        self._lock: int | None = None

    def take(self, arguments: list[str]) -> None:
        """Take the lock, and write this process and its ``arguments`` (of Snakemake) to it.

        SamsvaeError that names the holder if there is one. Where the file system has no locks, one warning is logged.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = open_lock(self.path, 0o666)
        except OSError as error:
            self._warn(error)
            return
        try:
            free = try_lock(lock)
        except OSError as error:
            os.close(lock)
            self._warn(error)
            return
        if not free:
            with open(lock, encoding="utf-8", errors="replace") as file:
                holder = " ".join(file.read(4096).split()) or "another process"
            raise SamsvaeError(
                f"{self.path.parent}: another Snakemake works in this folder of results: {holder}. "
                "Wait until it ends or stop it, then rerun the same command; or choose another folder of results."
            )
        self._lock = lock
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        command = shlex.join(["snakemake", *arguments])
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {platform.node()}, since {since}: {command}\n".encode(), 0)

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    __del__ = release

    def _warn(self, error: OSError) -> None:
        log.warning(
            "%s: cannot be locked (%s), so do not start a second Snakemake with this folder of results.",
            self.path,
            error.strerror,
        )

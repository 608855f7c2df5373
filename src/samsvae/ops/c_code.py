"""Builds C code of the package at its first use, and keeps the result in the user's cache for later processes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from samsvae.files import atomic

#: Vector instructions of this CPU. Loops may not change the result by exceptions that nobody reads, so they vectorise;
#: infinities and NaN are respected.
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math")

#: Threads of a process would write the same temporary file.
_BUILDING = threading.Lock()


def build(source: Path, info: Path = Path("/proc/cpuinfo")) -> ctypes.CDLL:
    """The library made from a C file.

    It is read from the cache if this source was compiled before with the same flags on the same CPU (``info``); then no
    compiler is needed. A file appears there complete or not at all, and processes may build it at the same time.
    Without a cache folder that only the user can write, it is built for this process alone. OSError with the reason if
    there is no compiler or it fails.
    """
    cpu = platform.processor()
    with suppress(OSError):
        lines = info.read_text().splitlines()
        cpu = " ".join(sorted({line for line in lines if line.startswith(("model", "flags", "Features", "CPU part"))}))
    key = repr((source.read_text(), FLAGS, platform.machine(), cpu, platform.libc_ver()))
    name = f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    with _BUILDING:
        try:
            return _load(source, _private_folder() / name)
        except (OSError, RuntimeError):  # no cache, or a file in it that cannot be loaded
            with tempfile.TemporaryDirectory() as folder:
                return _load(source, Path(folder) / name)


def _private_folder() -> Path:
    """The cache of the package, ``$XDG_CACHE_HOME/samsvae`` or ``~/.cache/samsvae``: code is loaded from it."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samsvae"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"others can write to {folder}")
    return folder


def _load(source: Path, target: Path) -> ctypes.CDLL:
    if not target.exists():
        with suppress(FileNotFoundError), atomic(target) as aside:  # another process was faster
            _compile(source, aside)
    return ctypes.CDLL(str(target))


def _compile(source: Path, target: Path) -> None:
    name, *options = shlex.split(os.environ.get("CC", "")) or ["cc"]
    compiler = shutil.which(name)
    if compiler is None:
        raise OSError(f"no C compiler {name!r} was found; $CC names another")
    command = [compiler, *options, *FLAGS, "-shared", "-fPIC", str(source), "-o", str(target), "-lm"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
        raise OSError(f"{compiler} failed with exit status {done.returncode}: {reason.strip()}")

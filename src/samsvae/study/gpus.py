"""Give each training a GPU of its own, no matter who started it.

Snakemake counts GPUs but does not say which one a job has, and it counts only if the user passes
`--resources gpu=...`. So the training process locks a GPU itself, before CUDA starts::

    with hold_device("auto") as device:  # "cuda" or "cpu"
        import torch
        ...

The lock is a flock: the kernel releases it when the process ends, however it ends. torch is imported only after a GPU
is locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path

from samsvae.errors import ConfigError, nearest

log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda")

NO_GPU = ("", "-1", "NoDevFiles")  # values by which Slurm and users say "none"


@contextlib.contextmanager
def hold_device(device: str = "auto", jobs_per_gpu: int = 1) -> Iterator[str]:
    """Yield "cuda" while holding one GPU, or yield "cpu".

    The block should last as long as the process, because torch does not return GPU memory before the process ends.

    Parameters
    ----------
    device
        "cpu" never touches a GPU. "cuda" waits for a free GPU and is an error if the process may use none.
        "auto" waits for a free GPU too, but falls back to the CPU with a warning if the process may use none.
    jobs_per_gpu
        Number of processes that may share a GPU.

    Raises
    ------
    ConfigError
        If `device` is not one of the three, or is "cuda" and torch cannot use a GPU.
    """
    if device not in DEVICES:
        raise ConfigError(f"device: {device!r} is not a device.{nearest(device, DEVICES)}")
    if device == "cpu":
        yield "cpu"
        return
    with contextlib.ExitStack() as hold:
        gpus = hold.enter_context(hold_gpus(1, jobs_per_gpu))
        if gpus and _torch_has_cuda():
            yield "cuda"
            return
    # the lock is released by now: another process may be able to use the GPU that this torch cannot use
    missing = f"torch cannot use GPU {gpus[0]}, perhaps because it is a CPU build" if gpus else "no GPU is visible"
    if device == "cuda":
        raise ConfigError(f"device: 'cuda', but {missing}. Set it to 'auto' or 'cpu' to run without a GPU.")
    log.warning("device 'auto': %s, so this runs on the CPU", missing)
    yield "cpu"


@contextlib.contextmanager
def hold_gpus(
    count: int = 1, jobs_per_gpu: int = 1, poll: float = 1.0, folder: str | Path | None = None
) -> Iterator[list[str]]:
    """Hold `count` GPUs during the block and yield their names; yield [] if no GPU is visible.

    If too few are free, this waits and looks again every `poll` seconds. If there are more than `count`,
    `CUDA_VISIBLE_DEVICES` is narrowed to the GPUs held and stays narrowed: CUDA reads it once per process, so a
    second call in the same process can only hold the same GPUs.

    Parameters
    ----------
    count
        Number of GPUs. They are taken all at once or not at all, so that two processes never wait for each other.
    jobs_per_gpu
        Number of processes that may share a GPU. Idle GPUs are filled first.
    poll
        Seconds between two attempts.
    folder
        Folder of the lock files. Default: below the system's temporary folder, one for each user and Slurm job.
        All processes that share GPUs must use the same folder.

    Raises
    ------
    ConfigError
        If `count` is more than this process may use, or if `count` or `jobs_per_gpu` is below 1.
    """
    if count < 1 or jobs_per_gpu < 1:
        raise ConfigError(f"count and jobs_per_gpu must be at least 1, not {count} and {jobs_per_gpu}.")
    gpus = granted(os.environ, _uuids())
    if not gpus:
        yield []
        return
    if count > len(gpus):
        raise ConfigError(f"{count} GPUs are requested, but this process may use {len(gpus)}.")
    folder = Path(folder) if folder is not None else _lock_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    held = _try_hold(gpus, count, jobs_per_gpu, folder)
    if not held:
        limit = len(gpus) * jobs_per_gpu // count
        log.warning("waiting: all %d GPUs are in use (did you pass --resources gpu=%d?)", len(gpus), limit)
    while not held:
        time.sleep(poll)
        held = _try_hold(gpus, count, jobs_per_gpu, folder)
    try:
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # nvidia-smi numbers GPUs in this order
        if len(held) < len(gpus):
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
        yield list(held)
    finally:
        for lock in held.values():
            os.close(lock)


def notice(device: str = "auto", jobs_per_gpu: int = 1) -> str:
    """One sentence for the start of a workflow: which GPUs its trainings will use."""
    gpus = granted(os.environ, _uuids()) if device != "cpu" else {}
    if not gpus:
        reason = "the configuration says device: cpu" if device == "cpu" else "none is visible here"
        return f"No GPU is used ({reason}): training runs on the CPU."
    visible = f"{len(gpus)} GPUs are" if len(gpus) > 1 else "1 GPU is"
    return f"{visible} visible: pass --resources gpu={len(gpus) * jobs_per_gpu}, so that no training waits for a GPU."


def granted(env: Mapping[str, str], uuids: Mapping[str, str]) -> dict[str, str]:
    """Name for CUDA_VISIBLE_DEVICES -> name of the lock, for each GPU that this process may use.

    If Slurm or the user has set CUDA_VISIBLE_DEVICES, no GPU outside it is ever taken. Like CUDA, this reads it up to
    the first name that stands for no GPU. Locks are named by UUID, because two Slurm jobs may both call their GPU "0".

    Parameters
    ----------
    env
        The environment variables.
    uuids
        Index (as a string) -> UUID, for each GPU of the machine.
    """
    names = env.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return {uuid: uuid for uuid in uuids.values()}
    gpus = takewhile(lambda name: name not in NO_GPU, (name.strip() for name in names.split(",")))
    return {name: uuids.get(name, name) for name in gpus}


def _uuids() -> dict[str, str]:
    """Index -> UUID of the GPUs that the driver shows to this process; {} if there are none."""
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.replace(" ", "").split(",") for line in answer.splitlines() if line.count(",") == 1)


def _lock_folder() -> Path:
    # inside a Slurm job, only the processes of that job compete for its GPUs
    scope = os.environ.get("SLURM_JOB_ID", "local")
    return Path(tempfile.gettempdir()) / f"samsvae-gpus-{os.getuid()}-{scope}"


def _try_hold(gpus: Mapping[str, str], count: int, jobs_per_gpu: int, folder: Path) -> dict[str, int]:
    """Name -> file descriptor of the lock, for `count` GPUs; {} if fewer are free."""
    held: dict[str, int] = {}
    with open(folder / "choosing", "w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)  # one process chooses at a time
        for slot in range(jobs_per_gpu):
            for name, lock_name in gpus.items():
                if len(held) < count and name not in held:
                    lock = _try_lock(folder / f"{lock_name}.{slot}")
                    if lock is not None:
                        held[name] = lock
        if len(held) < count:
            while held:
                os.close(held.popitem()[1])
    return held


def _try_lock(path: Path) -> int | None:
    # os.open makes the file close-on-exec, so that programs started later do not inherit the lock
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _torch_has_cuda() -> bool:
    import torch  # only now, because CUDA reads its environment variables once

    return torch.cuda.is_available()

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
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from samsvae.errors import ConfigError, nearest
from samsvae.study.lock import open_lock, try_lock

log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda")

#: What is wrong with a folder of locks that others can use, and what to do.
NOT_OURS = "the folder of GPU locks is not a folder that you alone can use"
INSTEAD = "Delete it, or set TMPDIR to a folder of your own for all your trainings on this machine."

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
        All processes that share GPUs must use the same folder. XDG_RUNTIME_DIR is not used, because a login shell has
        it while a job of a cluster or of cron often does not, and the two would then take the same GPU.

    Raises
    ------
    ConfigError
        If `count` is more than this process may use, if `count` or `jobs_per_gpu` is below 1, or if the folder is not
        one that this user alone can use.
    """
    if count < 1 or jobs_per_gpu < 1:
        raise ConfigError(f"count and jobs_per_gpu must be at least 1, not {count} and {jobs_per_gpu}.")
    gpus = granted(os.environ, _uuids())
    if not gpus:
        yield []
        return
    if count > len(gpus):
        raise ConfigError(f"{count} GPUs are requested, but this process may use {len(gpus)}.")
    path = Path(folder) if folder is not None else _lock_folder()
    with _open_folder(path) as opened:
        held = _try_hold(gpus, count, jobs_per_gpu, path, opened)
        if not held:
            limit = len(gpus) * jobs_per_gpu // count
            log.warning("waiting: all %d GPUs are in use (did you pass --resources gpu=%d?)", len(gpus), limit)
        while not held:
            time.sleep(poll)
            held = _try_hold(gpus, count, jobs_per_gpu, path, opened)
    try:
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # nvidia-smi numbers GPUs in this order
        if len(held) < len(gpus) or "CUDA_VISIBLE_DEVICES" in os.environ:  # where a GPU may be named twice
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
    the first name that stands for no GPU, or for several, and logs a warning about that name. Locks are named by the
    complete UUID, because two Slurm jobs may both call their GPU "0", and a UUID may be abbreviated. A GPU that is
    named twice counts once.

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
    gpus: dict[str, str] = {}
    for name in (name.strip() for name in names.split(",")):
        if name in NO_GPU:
            break
        found = _matching(name, uuids)
        if len(found) != 1:
            what = f"names {len(found)} GPUs ({', '.join(found)})" if found else "names no GPU of this machine"
            log.warning("CUDA_VISIBLE_DEVICES: %r %s. As in CUDA, it ends the list of GPUs.", name, what)
            break
        if found[0] not in gpus.values():
            gpus[name] = found[0]
    return gpus


def _matching(name: str, uuids: Mapping[str, str]) -> list[str]:
    """The UUIDs that a name in CUDA_VISIBLE_DEVICES may stand for: an index, or the beginning of a UUID.

    A slice of a GPU (MIG), and any name on a machine without nvidia-smi, stands for itself.
    """
    if name in uuids:
        return [uuids[name]]
    if name.upper().startswith("MIG-") or not uuids:
        return [name]
    is_uuid = name.upper().startswith("GPU-") and len(name) > len("GPU-")
    return [uuid for uuid in uuids.values() if is_uuid and uuid.lower().startswith(name.lower())]


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


@contextlib.contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    """Create a folder for this user alone and yield its descriptor; ConfigError if others can use it.

    Its name is predictable, so anyone could have made it first, with links to files of this user.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"{path}: {NOT_OURS} ({error.strerror}). {INSTEAD}") from None
    try:
        state = os.fstat(folder)
        if state.st_uid != os.geteuid() or stat.S_IMODE(state.st_mode) & 0o077:
            mode = f"it belongs to user {state.st_uid} and has the mode {stat.S_IMODE(state.st_mode):o}, not 700"
            raise ConfigError(f"{path}: {NOT_OURS} ({mode}). {INSTEAD}")
        yield folder
    finally:
        os.close(folder)


def _try_hold(gpus: Mapping[str, str], count: int, jobs_per_gpu: int, path: Path, folder: int) -> dict[str, int]:
    """Name -> file descriptor of the lock, for `count` GPUs; {} if fewer are free. The folder: its path, descriptor."""
    held: dict[str, int] = {}
    gate = open_lock(path / "choosing", 0o600, folder=folder)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)  # one process chooses at a time
        for slot in range(jobs_per_gpu):
            for name, lock_name in gpus.items():
                if len(held) < count and name not in held:
                    # quoted, because the name of a slice of a GPU may contain slashes
                    lock = open_lock(path / f"{quote(lock_name, safe='')}.{slot}", 0o600, folder=folder)
                    if try_lock(lock):
                        held[name] = lock
                    else:
                        os.close(lock)
        return held if len(held) == count else {}
    finally:
        if len(held) < count:
            for lock in held.values():
                os.close(lock)
        os.close(gate)


def _torch_has_cuda() -> bool:
    import torch  # only now, because CUDA reads its environment variables once

    return torch.cuda.is_available()

"""Which graphics card a training holds: one of its own, whoever started it.

Snakemake counts cards but does not say which one a job has, and its count is off unless the user passes
`--resources gpu=...`. So the training process itself takes a lock on a card, before CUDA starts::

    with hold_device("auto") as device:  # "cuda" or "cpu"
        import torch
        ...

The lock is a flock: the kernel drops it when the process dies, by whatever means. torch is imported only once
a card is held.
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

NO_CARD = ("", "-1", "NoDevFiles")  # what Slurm and users put for "none"


@contextlib.contextmanager
def hold_device(device: str = "auto", jobs_per_gpu: int = 1) -> Iterator[str]:
    """Yield "cuda" while holding one card, or "cpu".

    Let the block last as long as the process: what torch has taken of a card's memory it keeps until then.

    Parameters
    ----------
    device
        "cpu" never touches a card. "cuda" waits for a card, and is an error where there is none to wait for.
        "auto" waits for a card too, and takes the CPU, with a line in the log, where there is none.
    jobs_per_gpu
        Processes that may share a card.

    Raises
    ------
    ConfigError
        If `device` is none of the three, or "cuda" where torch can use no card.
    """
    if device not in DEVICES:
        raise ConfigError(f"device: {device!r} is not a device.{nearest(device, DEVICES)}")
    if device == "cpu":
        yield "cpu"
        return
    with contextlib.ExitStack() as hold:
        cards = hold.enter_context(hold_gpus(1, jobs_per_gpu))
        if cards and _torch_has_cuda():
            yield "cuda"
            return
    # here any lock is released: a card that this torch cannot use may serve another process
    missing = f"torch cannot use card {cards[0]}, maybe as a CPU build" if cards else "no card is visible"
    if device == "cuda":
        raise ConfigError(f"device: 'cuda', but {missing}; 'auto' or 'cpu' run without a card.")
    log.warning("device 'auto': %s, so this runs on the CPU", missing)
    yield "cpu"


@contextlib.contextmanager
def hold_gpus(
    count: int = 1, jobs_per_gpu: int = 1, poll: float = 1.0, folder: str | Path | None = None
) -> Iterator[list[str]]:
    """Hold `count` cards for the length of the block and yield their names; [] where none is visible.

    While all are taken this waits, looking again every `poll` seconds. Where there was a choice,
    `CUDA_VISIBLE_DEVICES` is narrowed to the cards held and stays so: CUDA reads it once in the life of a
    process, so a second hold in the same process may only have the same cards.

    Parameters
    ----------
    count
        Cards wanted: all of them at once or none, so that two processes never wait for each other.
    jobs_per_gpu
        Processes that may share a card; idle cards are filled first.
    poll
        Seconds.
    folder
        Where the locks are; by default below the system's temporary folder, one for each user and Slurm job.
        All processes that share cards must agree on it.

    Raises
    ------
    ConfigError
        If more cards are wanted than this process may use, or fewer than one job shares a card.
    """
    if count < 1 or jobs_per_gpu < 1:
        raise ConfigError(f"count and jobs_per_gpu must be at least 1, not {count} and {jobs_per_gpu}.")
    cards = granted(os.environ, _uuids())
    if not cards:
        yield []
        return
    if count > len(cards):
        raise ConfigError(f"{count} cards are wanted, but this process may use {len(cards)}.")
    folder = Path(folder) if folder is not None else _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    held = _try_hold(cards, count, jobs_per_gpu, folder)
    if not held:
        limit = len(cards) * jobs_per_gpu // count
        log.warning("waiting: all %d cards are taken (was --resources gpu=%d passed?)", len(cards), limit)
    while not held:
        time.sleep(poll)
        held = _try_hold(cards, count, jobs_per_gpu, folder)
    try:
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order in which nvidia-smi counts
        if len(held) < len(cards):
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
        yield list(held)
    finally:
        for lock in held.values():
            os.close(lock)


def notice(device: str = "auto", jobs_per_gpu: int = 1) -> str:
    """One sentence for the start of a workflow: which cards its trainings will use."""
    cards = list(granted(os.environ, _uuids())) if device != "cpu" else []
    if not cards:
        reason = "the configuration says device: cpu" if device == "cpu" else "none is visible here"
        return f"No GPU is used ({reason}): training runs on the CPU."
    many = f"{len(cards)} GPUs are" if len(cards) > 1 else "1 GPU is"
    wanted = f"--resources gpu={len(cards) * jobs_per_gpu}"
    return f"{many} visible: pass {wanted}, so that no more trainings start than find a card."


def granted(env: Mapping[str, str], uuids: Mapping[str, str]) -> dict[str, str]:
    """Name for CUDA_VISIBLE_DEVICES -> name of the lock, for each card that this process may use.

    A CUDA_VISIBLE_DEVICES that is set is a grant of Slurm's or a wish of the user's: nothing outside it is
    ever taken. Like CUDA, this reads it up to the first name that is no card. Locks go by UUID, since two
    Slurm jobs may both call their own card "0".

    Parameters
    ----------
    env
        The environment variables.
    uuids
        Index of each card of the machine, as a string, -> its UUID.
    """
    names = env.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return {uuid: uuid for uuid in uuids.values()}
    cards = takewhile(lambda name: name not in NO_CARD, (name.strip() for name in names.split(",")))
    return {name: uuids.get(name, name) for name in cards}


def _uuids() -> dict[str, str]:
    """Index -> UUID of the cards that the driver shows to this process; {} where there are none."""
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.replace(" ", "").split(",") for line in answer.splitlines() if line.count(",") == 1)


def _folder() -> Path:
    # Inside a Slurm job only the processes of that job compete for its cards.
    scope = os.environ.get("SLURM_JOB_ID", "local")
    return Path(tempfile.gettempdir()) / f"samsvae-gpus-{os.getuid()}-{scope}"


def _try_hold(cards: Mapping[str, str], count: int, jobs_per_gpu: int, folder: Path) -> dict[str, int]:
    """Name -> file descriptor of the lock, for `count` cards; {} where fewer are free."""
    held: dict[str, int] = {}
    with open(folder / "choosing", "w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)  # one process chooses at a time
        for slot in range(jobs_per_gpu):
            for name, card in cards.items():
                if len(held) < count and name not in held:
                    lock = _try_lock(folder / f"{card}.{slot}")
                    if lock is not None:
                        held[name] = lock
        if len(held) < count:
            while held:
                os.close(held.popitem()[1])
    return held


def _try_lock(path: Path) -> int | None:
    # os.open closes the file in programs started later: they do not inherit the lock
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _torch_has_cuda() -> bool:
    import torch  # only now: CUDA reads its environment once

    return torch.cuda.is_available()

"""The files of a run, and the record of its cost and of the machine and versions that it ran with."""

from __future__ import annotations

import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import samsvae
from samsvae.files import write_json, write_table
from samsvae.ops.onednn import library_of_products
from samsvae.ops.precision import used_precision
from samsvae.training.checkpoint import Checkpoint, save
from samsvae.training.state import Trained


@cache
def cpu_model(info: Path = Path("/proc/cpuinfo")) -> str:
    """The model name of this machine's CPU, from Linux's ``info``; its architecture if that is missing."""
    with suppress(OSError):
        if named := re.search(r"^model name\s*:\s*(\S.*)$", info.read_text(), re.MULTILINE):
            return named[1].strip()
    return platform.processor() or platform.machine()


def write_run(
    settings: Mapping[str, Any], checkpoint: Checkpoint, result: Trained, device: str, out: Mapping[str, str | Path]
) -> None:
    """Write the files of a run: its checkpoint (``out["model"]``), history (TSV) and record (``out["run"]``, JSON).

    The record also has ``products``: on a GPU the precision of its matrix products, on a CPU their library, and there
    also the ``kernel`` of the likelihood; and, if the checkpoint's facts have it, how the fit went, ``fit``.
    """
    save(checkpoint, out["model"])
    write_table([{"run": settings["run"], **row} for row in result.history], out["history"])
    n_parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    fit = {"fit": checkpoint.facts["fit"]} if "fit" in checkpoint.facts else {}
    how = {} if result.kernel is None else {"kernel": result.kernel}
    if device.startswith("cuda"):
        how["products"] = used_precision(settings["training"]["precision"], torch.device(device))
    else:
        how["products"] = library_of_products(checkpoint.model.config.width, len(checkpoint.genes))
    write_json(record(settings, result, device, n_parameters) | how | fit, out["run"])


def record(settings: Mapping[str, Any], result: Trained, device: str, n_parameters: int) -> dict[str, Any]:
    """The record of a run: its settings, cost (time, memory), device and versions."""
    cuda = device.startswith("cuda")
    memory = torch.cuda.max_memory_allocated() if cuda else _peak_memory()
    return {
        **settings,
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if cuda else cpu_model(),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "parameters": n_parameters,
        "peak_memory_mb": round(memory / 2**20, 1),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "samsvae": samsvae.__version__,
        "seconds": round(result.seconds, 3),
        "steps": result.steps,
        "steps_per_second": round(result.steps / max(result.seconds, 1e-9), 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _commit() -> str | None:
    """The commit of the checkout that holds the package, with '-dirty' after edits; None outside a checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git: the record is still useful
        return None
    return done.stdout.strip() or None


def _peak_memory() -> int:
    """Bytes of the largest resident memory of this process so far; Linux counts in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

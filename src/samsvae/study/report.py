"""Snakemake's own report of the results, as one self-contained HTML page."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from samsvae.errors import SamsvaeError
from samsvae.files import atomic

log = logging.getLogger(__name__)


def write_report(snakefile: str | Path, config: str | Path, targets: Sequence[str], path: str | Path) -> None:
    """Ask a Snakemake of its own for the report of some targets, under the configuration in a file.

    It may run inside a running workflow, which holds the lock. SamsvaeError with its last lines where it fails.
    """
    with atomic(path) as aside:
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), "--configfile", str(config)]
        command += ["--nolock", "--cores", "1", "--report", str(aside), "--", *targets]
        done = subprocess.run(command, capture_output=True, text=True)
        log.info("%s", done.stderr)
        if done.returncode:
            raise SamsvaeError(f"{path}: the report failed: {' '.join(done.stderr.splitlines()[-5:])}")

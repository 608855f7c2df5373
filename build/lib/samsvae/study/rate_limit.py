"""Snakemake's limit on the number of jobs that start per second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

OPTION = "--max-jobs-per-timespan"


def lift_rate_limit(scheduler: Any, arguments: Sequence[str]) -> None:
    """Remove the limit of 100 jobs per second from Snakemake's scheduler, unless OPTION is among the ``arguments``.

    While there is a limit, Snakemake 9 plans again every second for each job that has run: an eighth of the demo's CPU
    time, and more in a larger study. See pull request 3744 of snakemake/snakemake.
    """
    if not any(argument.split("=")[0] == OPTION for argument in arguments):
        scheduler.job_rate_limiter = None

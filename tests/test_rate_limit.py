"""Snakemake's limit on job starts is removed, but not the user's own."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
from snakemake.scheduling.job_scheduler import JobScheduler

from samsvae.study.rate_limit import lift_rate_limit


@pytest.mark.parametrize(
    ("arguments", "lifted"),
    [
        (["--cores", "2", "--", "all"], True),
        (["--max-jobs-per-timespan", "5/1m"], False),
        (["--max-jobs-per-timespan=5/1m"], False),
    ],
)
def test_only_the_default_limit_is_lifted(arguments, lifted):
    scheduler = SimpleNamespace(job_rate_limiter="limit")
    lift_rate_limit(scheduler, arguments)
    assert (scheduler.job_rate_limiter is None) == lifted


def test_snakemake_plans_on_a_timer_only_with_a_limit():
    """Fails when Snakemake renames the attribute or no longer needs this: then remove the module."""
    source = inspect.getsource(JobScheduler.schedule)
    assert "if self.job_rate_limiter is not None:\n" in source
    assert "self._schedule_reevalutation(self.job_rate_limiter.timespan)" in source

"""The last line of a study: what it took and what was estimated, from records written by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samsvae.config.grid import run_settings
from samsvae.study.plan import Plan
from samsvae.study.times import ESTIMATES, last_line, read_estimates, training_key
from samsvae.text import in_words


@pytest.fixture
def plan(tmp_path) -> Plan:
    """Three trainings, and one run with imported weights in another experiment."""
    grids = {"a": [{"model": "vae", "seed": [0, 1, 2]}], "b": [{"model": "sams_vae_corr", "checkpoint": ["c.ckpt"]}]}
    settings = {name: {"screen": "sim", "grid": grid} for name, grid in grids.items()}
    config = {"experiments": ["a", "b"], "screens": {"sim": {"kind": "simulate_sams"}}, "settings": settings}
    return Plan(config, results=tmp_path, benchmarks="b")


def write_record(plan: Plan, run: str, seconds: float, **changes) -> None:
    found = plan.runs["a" if run.startswith("vae") else "b"][run]
    path = Path(plan.run_file(found, "run.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run_settings(found) | {"seconds": seconds} | changes))


def told(plan: Plan, seconds: dict[str, float]) -> None:
    of_runs = {training_key("a", run_settings(plan.runs["a"][run])): value for run, value in seconds.items()}
    (plan.results / ESTIMATES).write_text(json.dumps(of_runs))


def after(plan: Plan, took: float = 192.0) -> list[str]:
    """The sentences of the line after a call of so many seconds, without its CPU time."""
    first, _, rest = last_line(plan, time.monotonic() - took).partition(" CPU s on this machine).")
    assert first.startswith("This call took 3 min 12 s (")
    return [sentence for sentence in rest.strip().split(". ") if sentence]


def test_the_trainings_of_all_calls_next_to_their_estimates(plan):
    assert after(plan) == []  # nothing is trained yet: only a figure was asked for
    for seed, seconds in enumerate((100.0, 20.0)):  # of this call or an earlier one, resumed or taken from the cache
        write_record(plan, f"vae-seed{seed}", seconds)
    told(plan, {"vae-seed0": 90.0, "vae-seed1": 25.0, "vae-seed2": 999.0})
    assert after(plan) == ["2 of 3 trainings are done; they took 2 min 0 s, estimated: 1 min 55 s."]
    (imported,) = plan.runs["b"]
    write_record(plan, imported, 7.0)  # imported, not trained
    write_record(plan, "vae-seed1", 20.0, encoding="unique")  # with other settings: to be trained again
    assert after(plan) == ["1 of 3 trainings are done; they took 1 min 40 s, estimated: 1 min 30 s."]


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "3", '{"x": 1}'])
def test_without_an_estimate_of_every_training_there_is_none(plan, content):
    write_record(plan, "vae-seed0", 100.0)
    if content is not None:
        (plan.results / ESTIMATES).write_text(content)
    assert read_estimates(plan.results) == ({"x": 1} if content == '{"x": 1}' else {})
    assert after(plan) == ["1 of 3 trainings are done; they took 1 min 40 s."]


def test_estimates_of_other_settings_are_not_shown(plan):
    """The steps were changed after `samsvae estimate`."""
    told(plan, {"vae-seed0": 90.0})
    config = json.loads(json.dumps(plan.config))
    config["settings"]["a"]["grid"][0]["steps"] = 10
    shorter = Plan(config, results=plan.results, benchmarks="b")
    write_record(shorter, "vae-seed0", 5.0)
    assert after(shorter) == ["1 of 3 trainings are done; they took 5 s."]


def test_damaged_records_do_not_matter(plan):
    write_record(plan, "vae-seed0", 5.0)
    Path(plan.run_file(plan.runs["a"]["vae-seed0"], "run.json")).write_text('{"run": ')
    assert after(plan) == []


def test_spans_in_words():
    assert [in_words(s) for s in (0.4, 59.4, 59.6, 192, 3599.6, 7530, 360_000)] == [
        "0 s", "59 s", "1 min 0 s", "3 min 12 s", "1 h 0 min", "2 h 6 min", "100 h 0 min",
    ]  # fmt: skip


def test_the_line_needs_no_heavy_package(root):
    """It is part of every call of Snakemake."""
    code = "import sys, samsvae.study.times; print(sorted({'torch', 'pandas', 'anndata'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The computed hours of a study: counts of a step against numbers from elsewhere, and sums by hand."""

from __future__ import annotations

import math

import pytest

from samsvae.config.grid import runs
from samsvae.config.study import Study
from samsvae.config.validate import build


@pytest.fixture(scope="module")
def study_hours(benchmark_named):
    return benchmark_named("study_hours")


def test_a_step_at_the_papers_size_has_the_arithmetic_of_its_benchmark(study_hours, configuration):
    """Products by hand: (rows, inputs, outputs, forward and gradients). docs/gpu.md has the number of operations."""
    study = build(Study, configuration("config.yaml", "core.yaml"))
    run = next(run for run in runs(study, "replogle") if run.row == "sams_vae_corr")
    count = study_hours.count_step(run, 1187, 680)
    encoder = [(512, 1187, 400, 2), (2560, 100, 400, 3), (2560, 400, 200, 3)]
    decoder = [(2560, 100, 400, 3), (2560, 400, 1187, 3)]
    embedding = [(3400, 100, 200, 3), (3400, 200, 200, 3), (3400, 200, 200, 3)]  # of all perturbations, on a GPU
    products = 2 * sum(math.prod(sizes) for sizes in encoder + decoder + embedding)
    assert sum(flops for _, flops in count.kernels) == pytest.approx(products, rel=1e-6)
    assert len(count.kernels) == 116


def test_hours_by_hand(study_hours):
    """Two seeds. A method of the SVAE+ paper is trained again for each of the two variants."""
    grid = [{"model": ["sams_vae_mf", "svae_plus_lopez"], "seed": [0, 1], "epochs": 2}]
    how = {"screen": "sim", "split": {"kind": "transfer", "last": 20}, "grid": grid}
    config = {"experiments": ["e"], "screens": {"sim": {"kind": "simulate_sparse_shift"}}}
    config["settings"] = {"e": how | {"transfer": {"variants": ["ours", "as_released"]}}}
    study = build(Study, config)
    count = study_hours.Count()
    count.kernels = [(0, 0), (8_000_000, 0), (0, 2_000_000)]  # a launch, 8 us and 2 us at these rates
    trainings, steps, hours = study_hours.hours(study, "e", lambda *_: count, [(1e12, 1e12)])
    # 32,000 training cells in batches of 512 and 128; 4,000 validation cells after each of the two epochs
    work = {"sams_vae_mf": 2 * 63 + 2 * 4000 / 512 / 3, "svae_plus_lopez": 3 * (2 * 250 + 2 * 4000 / 128 / 3)}
    assert trainings == 4 and steps == pytest.approx(2 * (2 * 63 + 3 * 2 * 250) / 1e6)
    assert hours == pytest.approx(2 * sum(work.values()) * 11.5e-6 / 3600)

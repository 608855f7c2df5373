"""The examples in the docstrings of the library run, on a small simulated screen and a model of it."""

from __future__ import annotations

import doctest

import matplotlib.pyplot as plt
import pytest
from simulated_cells import SHORT, simulated

from samsvae import api, fitted, pl


@pytest.fixture(scope="module")
def names() -> dict:
    adata = simulated()
    how = {"perturbation": "guide", "control": "control", "separator": "+", "progress": False}
    return {"adata": adata, "fitted": api.fit(adata, **how, **SHORT)}


def examples() -> list[doctest.DocTest]:
    found = [test for module in (api, fitted, pl) for test in doctest.DocTestFinder().find(module)]
    return [test for test in found if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda test: test.name)
def test_an_example_runs(example, names, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    example.globs |= names
    try:
        assert doctest.DocTestRunner(verbose=False).run(example).failed == 0
    finally:
        plt.close("all")


def test_every_method_that_takes_cells_or_draws_has_an_example():
    have = {test.name for test in examples()}
    cells = ["adapt", "latents", "predict", "score", "train_more"]
    methods = [*cells, "differential_expression", "effects", "latent_genes", "sample"]
    needed = {f"samsvae.fitted.Fitted.{name}" for name in methods} | {"samsvae.api.fit", "samsvae.api.load"}
    assert have >= needed | {f"samsvae.pl.{name}" for name in pl.__all__}

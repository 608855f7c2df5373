"""The likelihood bound by number of particles: the loop, the table of a run, verdicts, and the figure."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import sem
from small_model import model, screen

from samsvae.config.evaluation import EvaluationConfig
from samsvae.data.cells import cells_of, encode
from samsvae.evaluation import iwelbo as scoring
from samsvae.evaluation.bound import HEAVY_METRIC, SAMPLE, TABLE, TEST, collect_bounds, verdicts
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.evaluation.metrics.importance_weights import importance_weights
from samsvae.evaluation.model_bounds import NO_CELLS, model_bounds, sampled, weighed
from samsvae.figures.bound import draw, tables
from samsvae.models.model import Draw
from samsvae.study.report_tables import verdict_sentences
from samsvae.tables import read, write

MADE = screen(200)
SPLIT = np.resize(["train", "test", "val", "test"], 200)
CELLS = partial(cells_of, MADE, dosage=encode(MADE, "sum"))
SMALL = EvaluationConfig(iwelbo_particles=20, bound_particles=130, bound_cells=15)


class Known:
    """A model whose log weights (K, n) are given: particles are numbered by their draws, cells by their library."""

    def __init__(self, weights: np.ndarray, genes: int = 9):
        self.weights, self.drawn, self.input_mean = torch.from_numpy(weights).float(), 0, torch.zeros(genes)
        self.n_perturbations, self.n_genes, self.config = 4, genes, SimpleNamespace(n_latent=4, width=1)

    def draw_shared(self, noise, particles: int) -> Draw:
        self.drawn += particles
        return Draw({"particle": torch.arange(self.drawn - particles, self.drawn)}, {})

    def log_weights(self, batch, noise, particles: int, shared: Draw, *, joint: bool) -> torch.Tensor:
        return self.weights[shared.values["particle"]][:, batch.library.long()]


def numbered(n: int):
    """Cells whose library size is their number."""
    cells = CELLS(np.arange(n))
    cells.library.copy_(torch.arange(n))
    return cells


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(0).normal(-300, 3, (130, 15)).astype(np.float32).astype(float)


# ---- the loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [2**20, 64 * 9 * 4, 9 * 7, 9])
def test_bounds_are_those_of_the_complete_matrix_for_any_blocks(weights, monkeypatch, budget):
    """By scipy from all weights at once; the loop sees blocks of up to 64, 7 or 1 particles and 1 to 15 cells."""
    monkeypatch.setitem(scoring.BUDGET, "cpu", budget)
    published, found = weighed(Known(weights), numbered(15), 130)
    assert list(found.bounds) == [1, 10, 100, 130]
    for size, bound in found.bounds.items():
        parts = weights[: 130 // size * size].reshape(-1, size, 15)
        means = (logsumexp(parts, 1) - np.log(size)).mean(1)
        assert bound.value == pytest.approx(means.mean(), rel=1e-12) and bound.blocks == len(means) == 130 // size
        assert bound.error == pytest.approx(sem(means) if len(means) > 1 else np.nan, rel=1e-9, nan_ok=True)
    assert published == pytest.approx(found.bounds[130].value, rel=1e-6)
    relative = np.exp(weights - weights.max(0))
    np.testing.assert_allclose(found.ess, relative.sum(0) ** 2 / (relative**2).sum(0), rtol=1e-9)
    np.testing.assert_array_equal(found.pareto_k, importance_weights(weights).pareto_k)


@pytest.mark.parametrize("name", ["sams_vae_corr", "cpa_vae_mf", "svae_plus", "cond_vae"])
def test_the_published_bound_is_the_same_with_and_without_its_weights(name):
    net, cells = model(name).eval(), CELLS(SPLIT == "test")
    blocks: list[np.ndarray] = []
    with_weights = iwelbo(net, cells, particles=100, on_weights=blocks.append)
    assert torch.equal(with_weights, iwelbo(net, cells, particles=100))
    assert [len(block) for block in blocks] == [64, 36]  # memory does not grow with the particles
    every = np.concatenate(blocks).astype(float)
    np.testing.assert_allclose(with_weights.numpy(), logsumexp(every, 0) - np.log(100), rtol=1e-6)


@pytest.mark.parametrize("particles", [1, 7])
def test_the_last_bound_on_all_test_cells_is_the_published_one(particles):
    net = model("sams_vae_corr").eval()
    config = EvaluationConfig(iwelbo_particles=particles, bound_particles=30, bound_cells=5)
    published, table = model_bounds(net, SPLIT, CELLS, config)
    assert published == iwelbo(net, CELLS(SPLIT == "test"), particles=particles).mean().item()
    rows = table[(table["cells"] == TEST) & (table["metric"] == "iwelbo")]
    assert rows["particles"].tolist() == sorted({1, particles}) and rows["value"].iloc[-1] == published


# ---- the table of a run --------------------------------------------------------------------------------------------


def test_the_sample_depends_on_the_split_alone():
    found = sampled(SPLIT, 15)
    assert len(found) == 15 and (SPLIT[found] == "test").all() and (np.diff(found) > 0).all()
    assert set(sampled(SPLIT, 7)) < set(found)
    np.testing.assert_array_equal(sampled(SPLIT, 10**6), np.flatnonzero(SPLIT == "test"))


def test_the_table_of_a_run():
    net = model("sams_vae_corr").eval()
    _, table = model_bounds(net, SPLIT, CELLS, SMALL)
    assert tuple(table.columns) == TABLE and (table["reason"] == "").all()
    bounds = table[table["metric"] == "iwelbo"].set_index(["cells", "particles"])
    assert bounds["n_cells"].to_dict() == dict.fromkeys([(TEST, k) for k in (1, 10, 20)], 100) | dict.fromkeys(
        [(SAMPLE, k) for k in (1, 10, 100, 130)], 15
    )
    assert bounds["blocks"].tolist() == [20, 2, 1, 130, 13, 1, 1]
    blocks: list[np.ndarray] = []
    iwelbo(net, CELLS(sampled(SPLIT, 15)), particles=130, on_weights=blocks.append)
    expected = importance_weights(np.concatenate(blocks))
    assert bounds.loc[(SAMPLE, 10), "value"] == pytest.approx(expected.bounds[10].value, rel=1e-12)
    scores = table[(table["cells"] == SAMPLE) & (table["metric"] != "iwelbo")]
    assert scores["particles"].eq(130).all()
    assert scores.set_index("metric")["value"].to_dict() == pytest.approx(expected.scores(), rel=1e-9)


def test_a_split_without_test_cells_has_a_reason():
    published, table = model_bounds(model("cond_vae"), np.full(200, "train"), CELLS, SMALL)
    assert published is None and table["reason"].tolist() == [NO_CELLS] and table["value"].isna().all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_are_not_numbers_leave_the_published_bound_and_a_reason(weights, wrong):
    broken = weights.copy()
    broken[70, 3] = wrong
    value, found = weighed(Known(broken), numbered(15), 130)
    assert found == (f"log_weights is {wrong} at particle 70 of cell 3; a log weight must be finite or minus infinity.")
    assert not np.isfinite(value)


def test_weights_of_zero_are_weights(weights):
    broken = weights.copy()
    broken[:, 3] = -np.inf
    _, found = weighed(Known(broken), numbered(15), 130)
    assert found.bounds[10].value == -np.inf and np.isnan(found.bounds[10].error)
    assert found.scores()["ess_median"] > 1


# ---- verdicts ------------------------------------------------------------------------------------------------------


def rows(
    run: str,
    value: float,
    error: float = 0.1,
    heavy: float = 0.0,
    *,
    particles: int = 1000,
    model: str = "cond_vae",
    split: str = "s0",
    reason: str = "",
) -> pd.DataFrame:
    """The rows of a run whose bound with 100 particles is ``value`` (10 blocks); with 1,000 it is 50 higher."""
    sizes = [size for size in (1, 10, 100, 1000) if size <= particles]
    found = [
        ("iwelbo", SAMPLE, 50, size, value + {100: 0, 1000: 50}.get(size, -9), error, particles // size, "")
        for size in sizes
    ]
    found += [("iwelbo", TEST, 90, size, value - 7, error, 100 // size, "") for size in (1, 10, 100)]
    found += [(HEAVY_METRIC, SAMPLE, 50, particles, heavy, None, None, "")]
    found += [(HEAVY_METRIC, TEST, 90, 100, 0.9, None, None, ""), ("ess_5", SAMPLE, 50, particles, 5.0, None, None, "")]
    found += [("ess_median", SAMPLE, 50, particles, 40.0, None, None, "")]
    if reason:
        found = [("iwelbo", SAMPLE, 50, particles, None, None, None, reason)]
    table = pd.DataFrame([("honest", *row) for row in found], columns=list(TABLE))
    numbers = ["value", "error", "blocks"]
    table[numbers] = table[numbers].astype(float)
    return table.assign(run=run, model=model, dataset="d", split_name=split)


def judged(*runs: pd.DataFrame) -> pd.DataFrame:
    table = pd.concat(runs, ignore_index=True)
    return table.join(verdicts(table), how="inner").set_index("run")


def test_verdicts_at_the_largest_number_of_particles_with_ten_blocks():
    """Errors 0.3 and 0.4 make 0.5: a difference of 0.9 is undecided, one of 1.1 is not."""
    found = judged(rows("a", -10.0, 0.3), rows("b", -11.1, 0.4), rows("c", -30.0, 0.4))
    assert found["particles"].eq(100).all() and found["cells"].eq(SAMPLE).all()
    assert found["verdict"].tolist() == ["best", "below a", "below a"]
    assert found["relative"].tolist() == pytest.approx([0.0, -1.1, -20.0])
    assert found["relative_error"].tolist()[1:] == pytest.approx([0.5, 0.5])
    assert found["against"].tolist()[1:] == ["a", "a"]
    found = judged(rows("a", -10.0, 0.3), rows("b", -10.9, 0.4), rows("c", -30.0, 0.4))
    assert found["verdict"].tolist() == [
        "undecided: the difference to b is below twice its error",
        "undecided: the difference to a is below twice its error",
        "below a",
    ]


def test_splits_are_judged_on_their_own():
    found = judged(rows("a", -10.0), rows("b", -11.0, split="s1"), rows("c", -12.0), rows("d", -20.0, split="s1"))
    assert found["verdict"].to_dict() == {"a": "best", "c": "below a", "b": "best", "d": "below b"}


def test_heavy_weights_decide_nothing():
    """A tenth of the cells is allowed. All test cells, which have fewer particles, do not count."""
    assert judged(rows("a", -10.0, heavy=0.1), rows("b", -20.0))["verdict"].tolist() == ["best", "below a"]
    said = "undecided: Pareto k is above 0.7 in 20% of the cells of {}"
    assert judged(rows("a", -10.0, heavy=0.2), rows("b", -20.0))["verdict"].tolist() == [said.format("a")] * 2
    found = judged(rows("a", -10.0), rows("b", -20.0, heavy=0.2), rows("c", -30.0))
    assert found["verdict"].tolist() == [said.format("b"), said.format("b"), "below a"]
    found = judged(rows("a", -10.0, heavy=np.nan), rows("b", -20.0))
    assert found["verdict"].tolist() == ["undecided: Pareto k is not defined for a"] * 2


def test_what_cannot_be_compared_says_why():
    assert judged(rows("a", -1.0))["verdict"].tolist() == ["undecided: nothing else of this split has a bound"]
    found = judged(rows("a", -1.0, particles=9), rows("b", -2.0, particles=9))
    assert found["verdict"].tolist() == ["undecided: it needs 10 blocks of particles"] * 2
    found = judged(rows("a", -1.0), rows("b", -np.inf, np.nan), rows("c", -9.0), rows("d", 0, reason="it is nan."))
    assert found["verdict"].tolist() == [
        "best",
        "undecided: its bound is not finite",
        "below a",
        "undecided: it is nan",
    ]
    # fewer particles in one run: all are compared where it has 10 blocks
    found = judged(rows("a", -1.0), rows("b", -2.0, particles=100))
    assert found["particles"].eq(10).all() and found["verdict"].tolist() == ["best", "below a"]


# ---- from files to files -------------------------------------------------------------------------------------------


class Folder:
    """The tables of runs, and the experiment's own."""

    def __init__(self, path: Path):
        self.path, self.grid, self.paths = path, [], []

    def add(self, run: str, model: str, table: pd.DataFrame, *, seed: int = 0, split: str = "s0", val: float = 0.0):
        self.grid.append({"run": run, "model": model, "dataset": "d", "split_name": split, "seed": seed, "_val": val})
        self.paths.append(str(self.path / "runs" / run / "bound.tsv"))
        write(table.drop(columns=["model", "dataset", "split_name"]), self.paths[-1])

    def collect(self) -> pd.DataFrame:
        return collect_bounds(pd.DataFrame(self.grid), self.paths)

    def inputs(self) -> dict[str, object]:
        bound, scores = self.path / "bound.tsv", self.path / "scores.tsv"
        write(self.collect(), bound)
        row = {"method": "M", "protocol": "published", "metric": "iwelbo", "split": "val"}
        write(pd.DataFrame([{**run, **row, "value": run["_val"]} for run in self.grid]).drop(columns="_val"), scores)
        return {"scores": str(scores), "bound": str(bound), "compared": {}}


@pytest.fixture
def folder(tmp_path) -> Folder:
    """Two seeds of two models on one split; a third model has weights that are not numbers."""
    found = Folder(tmp_path)
    for seed, value in ((0, -10.0), (1, -12.0)):
        found.add(f"a{seed}", "sams_vae_corr", rows(f"a{seed}", value, 0.3), seed=seed)
        found.add(f"b{seed}", "cond_vae", rows(f"b{seed}", value - 4, 0.4, heavy=0.05), seed=seed)
    return found


def test_the_table_of_an_experiment(folder):
    folder.add("n", "svae_plus", rows("n", 0, reason="log_weights is nan."), seed=0)
    folder.add("t", "cpa_vae_mf", rows("t", 0, reason=NO_CELLS).assign(cells=TEST), split="s1")
    table = folder.collect()
    judged = table[table["verdict"].notna()].set_index("run")
    assert judged["verdict"].to_dict() == {
        "a0": "best", "a1": "below a0", "b0": "below a0", "b1": "below a0", "n": "undecided: log_weights is nan",
    }  # fmt: skip
    assert judged["particles"].to_dict() == {"a0": 100, "a1": 100, "b0": 100, "b1": 100, "n": 1000}
    assert len(table) == 4 * len(rows("a", 0.0)) + 2 and table["model"].notna().all()


def test_tables_of_the_figure_average_the_runs_of_a_model(folder):
    found = tables(**folder.inputs())
    assert found["models"] == ["cond_vae", "sams_vae_corr"] and found["reason"] == "" == found["amount"]
    bounds = found["bounds"].set_index(["model", "metric", "cells", "particles"])
    row = bounds.loc[("cond_vae", "iwelbo", SAMPLE, 100)]
    assert (row["value"], row["error"], row["blocks"]) == (-15.0, pytest.approx(0.4 / np.sqrt(2)), 10)
    assert bounds.loc[("cond_vae", HEAVY_METRIC, SAMPLE, 1000), "value"] == 0.05
    verdict = found["verdicts"].set_index("model")
    assert verdict["verdict"].to_dict() == {"sams_vae_corr": "best", "cond_vae": "below sams_vae_corr"}
    assert verdict.loc["cond_vae", "relative"] == pytest.approx(-4.0)
    assert verdict.loc["cond_vae", "relative_error"] == pytest.approx(0.5 / np.sqrt(2))


def test_the_figure_shows_the_settings_of_best_validation(tmp_path):
    folder = Folder(tmp_path)
    for run, prior, value, val in (("x", 0.1, -10.0, -5.0), ("y", 0.2, -20.0, -3.0)):
        folder.add(run, "sams_vae_corr", rows(run, value), val=val)
        folder.grid[-1]["mask_prior"] = prior
    bounds = tables(**folder.inputs())["bounds"].set_index(["metric", "cells", "particles"])
    assert bounds.loc[("iwelbo", SAMPLE, 100), "value"] == -20.0


def test_only_splits_that_all_models_have_are_averaged(folder):
    """Bounds of another split are far higher, and would favour the model that was trained on it."""
    for seed in (0, 1):
        folder.add(f"c{seed}", "cond_vae", rows(f"c{seed}", 900.0, split="s1"), seed=seed, split="s1")
    bounds = tables(**folder.inputs())["bounds"].set_index(["model", "metric", "cells", "particles"])
    assert bounds.loc[("cond_vae", "iwelbo", SAMPLE, 100), "value"] == -15.0


def test_a_run_without_a_bound_is_not_left_out_of_the_mean(folder):
    folder.add("a2", "sams_vae_corr", rows("a2", 0, reason="log_weights is nan."), seed=2)
    folder.add("b2", "cond_vae", rows("b2", -14.0, 0.4), seed=2)
    found = tables(**folder.inputs())
    bounds = found["bounds"].set_index(["model", "metric", "cells", "particles"])["value"]
    assert np.isnan(bounds["sams_vae_corr", "iwelbo", SAMPLE, 100]) and bounds["cond_vae", "iwelbo", SAMPLE, 100] < 0
    assert found["verdicts"].set_index("model").loc["sams_vae_corr", "verdict"] == "undecided: its bound is not finite"
    draw(**found).canvas.draw()


def axes_of(fig) -> dict[str, object]:
    fig.canvas.draw()
    return {ax.get_label(): ax for ax in fig.axes}


def test_the_figure_draws_the_numbers_of_its_tables(folder):
    fig = draw(**tables(**folder.inputs()))
    axes = axes_of(fig)
    assert list(axes) == [f"bound {SAMPLE}", f"bound {TEST}", "differences", "effective sample size", "heavy weights"]
    curves = {len(line.get_xdata()): line for line in axes[f"bound {SAMPLE}"].lines}
    np.testing.assert_allclose(curves[4].get_xdata().astype(float), [1, 10, 100, 1000])
    assert -15.0 in [y for line in axes[f"bound {SAMPLE}"].lines for y in line.get_ydata()]
    assert -22.0 in [y for line in axes[f"bound {TEST}"].lines for y in line.get_ydata()]
    points = [float(line.get_xdata()[0]) for line in axes["differences"].lines if line.get_marker() in "oD"]
    assert sorted(points) == [-4.0, 0.0]
    assert axes["heavy weights"].lines[0].get_xdata()[0] == 0.1
    said = " ".join(fig.get_suptitle().split())
    assert "With 100 particles on the sample: SAMS-VAE, corr. $z_b$, $E$: best. Conditional VAE: below SAMS-VAE" in said


def test_an_undecided_difference_is_hollow(tmp_path):
    folder = Folder(tmp_path)
    folder.add("a", "sams_vae_corr", rows("a", -10.0, 1.0))
    folder.add("b", "cond_vae", rows("b", -10.1, 1.0))
    fig = draw(**tables(**folder.inputs()))
    marks = [line for line in axes_of(fig)["differences"].lines if line.get_marker() in "oD"]
    assert [line.get_markerfacecolor() for line in marks] == ["white", "white"]
    assert "undecided (the difference to Conditional VAE is below twice its error)" in " ".join(
        fig.get_suptitle().split()
    )


def test_the_report_states_the_verdicts_with_the_names_of_models(folder):
    verdicts = tables(**folder.inputs())["verdicts"]
    ((heading, sentence),) = verdict_sentences(verdicts)
    assert heading == "IWELBO (nats per cell)"
    best = "SAMS-VAE (corr. z_basal and E)"
    assert sentence == f"{best}: best; Conditional VAE (amortized MF): below {best}."


def test_one_verdict_on_all_models_is_said_once(tmp_path):
    folder = Folder(tmp_path)
    for i, name in enumerate(("sams_vae_corr", "cond_vae", "cpa_vae_mf")):
        folder.add(name, name, rows(name, -10.0 - i, heavy=0.5))
    said = " ".join(draw(**tables(**folder.inputs())).get_suptitle().split())
    assert said.endswith("sample: all models: undecided (Pareto k is above 0.7 in 50% of the cells of "
                         "SAMS-VAE, corr. $z_b$, $E$).")  # fmt: skip


@pytest.mark.parametrize("reason", [NO_CELLS, "log_weights is nan."])
def test_a_reason_is_printed_instead_of_panels(tmp_path, reason):
    folder = Folder(tmp_path)
    folder.add("a", "cond_vae", rows("a", 0, reason=reason))
    fig = draw(**tables(**folder.inputs()))
    assert list(axes_of(fig)) == ["no bound"]
    assert f"there is no bound to show, because {reason}" in " ".join(fig.get_suptitle().split())


def test_one_run_is_drawn(tmp_path):
    folder = Folder(tmp_path)
    folder.add("a", "cond_vae", rows("a", -3.0, particles=9))
    assert read(folder.inputs()["bound"])["verdict"].dropna().tolist() == ["undecided: it needs 10 blocks of particles"]
    assert len(axes_of(draw(**tables(**folder.inputs())))) == 5

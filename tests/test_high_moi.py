"""A simulated screen of high MOI: effects of the default fit against the true ones and against a regression."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from test_workflow import snakemake

from samsvae import fit
from samsvae.evaluation.dosage_truth import NO_CELLS, NO_CONTROL
from samsvae.evaluation.regression import dosages, regress
from samsvae.figures.registry import FIGURES
from samsvae.matrices import read_h5ad
from samsvae.screens.custom import screen_of
from samsvae.screens.pack import arrays_of
from samsvae.tables import read


def simulate(
    seed: int,
    *,
    cells: int = 1500,
    perturbations: int = 40,
    genes: int = 100,
    share: float = 0.2,
    depth: float = 1000.0,
) -> tuple[ad.AnnData, np.ndarray]:
    """Negative binomial counts with sparse effects on the log rate, and these effects (T, G) in log2(1 + 1e4 p).

    A cell receives each perturbation with probability ``share``; a perturbation changes a tenth of the genes.
    """
    rng = np.random.default_rng(seed)
    received = (rng.random((cells, perturbations)) < share).astype(int)
    effects = rng.normal(0, 0.5, (perturbations, genes)) * (rng.random((perturbations, genes)) < 0.1)
    base = rng.normal(0, 1, genes)
    rate = np.exp(base + received @ effects)
    mean = rate / rate.sum(1, keepdims=True) * rng.lognormal(np.log(depth), 0.3, (cells, 1))
    x = rng.poisson(mean * rng.gamma(2.0, 0.5, mean.shape))
    adata = ad.AnnData(x.astype(np.float32), pd.DataFrame(index=[f"c{i}" for i in range(cells)]))
    names = [f"p{t:02}" for t in range(perturbations)]
    adata.obsm["guides"] = pd.DataFrame(received, adata.obs_names, names)

    def profile(log: np.ndarray) -> np.ndarray:
        return np.log2(1 + 1e4 * np.exp(log) / np.exp(log).sum(-1, keepdims=True))

    return adata, profile(base + effects) - profile(base)


def scores(seed: int, **sizes) -> tuple[float, float]:
    """Pearson correlation with the true effects, pooled: of the default fit, and of a regression on all cells."""
    adata, true = simulate(seed, **sizes)
    fitted = fit(adata, perturbation="obsm:guides", control=None, seed=seed, progress=False)
    table = fitted.effects(draws=50).pivot(index="condition", columns="gene", values="effect")
    screen = arrays_of(screen_of(adata, perturbations="obsm:guides", control=None))
    least_squares = regress(screen.counts, dosages(screen), np.arange(len(screen.cells))).effect
    model = table.loc[list(screen.perturbations), list(screen.genes)].to_numpy()
    return tuple(float(np.corrcoef(each.ravel(), true.ravel())[0, 1]) for each in (model, least_squares))


@pytest.mark.slow
def test_effects_of_the_default_fit_are_the_true_ones():
    """40 perturbations at 20 % each, 1,500 cells: benchmarks/RESULTS.md has three seeds and other depths."""
    model, least_squares = scores(0)
    assert model > 0.9 and model > least_squares


@pytest.mark.slow
def test_from_yaml_to_the_report(root, tmp_path):
    """One command. Effects agree with the simulated ones, scores that need a control or its cells say so."""
    adata, true = simulate(0, cells=800, perturbations=12, genes=40, depth=2000)
    adata.write_h5ad(tmp_path / "moi.h5ad")
    config = {
        "experiments": ["moi"],
        "pathvars": {"results": "results"},
        "runs_per_job": 2,
        "screens": {
            "moi": {
                "kind": "custom", "source": "moi.h5ad", "options": {"perturbations": "obsm:guides", "control": "none"}
            }
        },
        "settings": {
            "moi": {
                "screen": "moi",
                "training": {"steps": 400},
                "grid": [{"model": ["sams_vae_corr_z", "cond_vae"], "seed": [0]}],
                "evaluation": {"ate_samples": 200, "iwelbo_particles": 5, "bound_particles": 20, "bound_cells": 50},
            }
        },
    }  # fmt: skip
    (tmp_path / "moi.yaml").write_text(yaml.safe_dump(config))
    snakemake(root, tmp_path, "--", "all", "report", config=tmp_path / "moi.yaml")
    results = tmp_path / "results"
    figures = {path.stem for path in (results / "figures" / "moi").glob("*.png")}
    assert figures == {"data_card", "scores", "worth", "bound", "masks", "effects", "curves"}
    page = (results / "report.html").read_text()
    assert all(f"figures/moi/{name}.pdf" in page and FIGURES[name].title in page for name in figures)

    for run in ("sams_vae_corr_z-seed0", "cond_vae-seed0"):
        predicted = read_h5ad(results / "moi" / "runs" / run / "effects.h5ad")
        assert predicted.obs_names.tolist() == adata.obsm["guides"].columns.tolist()
        assert np.corrcoef(predicted.X.ravel(), true.ravel())[0, 1] > 0.85, run
        agreement = read(results / "moi/scores.tsv").query(f"run == '{run}' and metric == 'ate_pearson'")
        assert len(agreement) == 2 and agreement["value"].min() > 0.6
        worth = read(results / "moi" / "worth.tsv").query(f"run == '{run}'").set_index("metric")
        assert worth.loc["pearson_centred", "value"] > 0.5 and worth.loc["pearson_centred", "verdict"]
        for metric in worth.index[worth.index.str.endswith("_control")]:
            assert np.isnan(worth.loc[metric, "value"]) and worth.loc[metric, "reason"] == NO_CONTROL
            assert pd.isna(worth.loc[metric, "verdict"])
        assert worth.loc["energy_share", "reason"] == NO_CELLS


if __name__ == "__main__":
    for depth, genes in ((1000.0, 100), (3000.0, 200)):
        found = np.array([scores(seed, depth=depth, genes=genes) for seed in range(3)])
        print(f"depth {depth:,.0f}, {genes} genes: model, regression", found.round(3).tolist(), np.median(found, 0))

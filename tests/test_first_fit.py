"""The defaults for a screen of one's own: the rules, where they hold, and fits of real cells with nothing else set."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae.api import fit
from samsvae.config.first_fit import build_configs, by_size
from samsvae.config.grid import run_settings, runs
from samsvae.config.study import Study
from samsvae.config.validate import build
from samsvae.evaluation.baselines import baselines
from samsvae.evaluation.data_effects import effects
from samsvae.screens.custom import screen_of
from samsvae.screens.pack import arrays_of
from samsvae.study.plan import Plan


def study(*experiments: dict, options: dict | None = None, kind: str = "custom") -> Study:
    """A study of experiments e0, e1 ... on one screen."""
    names = [f"e{i}" for i in range(len(experiments))]
    source = {} if kind.startswith("simulate") else {"source": {"path": "s.h5ad"}}
    grid = [{"model": ["sams_vae_corr"], "seed": [0]}]
    return build(
        Study,
        {
            "experiments": names,
            "screens": {"s": {"kind": kind, **source, "options": options or {}}},
            "settings": {
                name: {"screen": "s", "grid": grid} | given for name, given in zip(names, experiments, strict=True)
            },
        },
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # 9,000 counts in all, 3 steps in an epoch: every 17th epoch is validated, and 12 times 51 steps are 612
        ((600, 25, 15.0), (30, 64, 17, 204)),
        ((16_583, 25, 188.0), (30, 128, 1, 10)),  # 65 steps in an epoch
        ((94_912, 680, 12_000.0), (100, 256, 1, 2)),  # 371 steps
    ],
)
def test_rules_by_size(size, expected):
    cells, perturbations, counts = size
    found = by_size(cells=cells, perturbations=perturbations, counts_per_cell=counts, batch_size=256)
    assert tuple(found[k] for k in ("n_latent", "width", "validation_every", "patience")) == expected
    assert found["embedding_width"] == found["width"]
    assert found["patience"] % found["validation_every"] == 0


def test_cells_with_many_perturbations_get_more_latents_than_perturbations():
    sizes = {"cells": 1000, "counts_per_cell": 10.0, "batch_size": 256}
    for perturbations, expected in ((10, 30), (40, 60), (1000, 200)):
        assert by_size(**sizes, perturbations=perturbations, received=8.0)["n_latent"] == expected
        assert by_size(**sizes, perturbations=perturbations, received=2.0)["n_latent"] in (30, 100)


def test_defaults_hold_for_custom_screens_alone_and_give_way_to_what_is_set():
    own = runs(study({"model": {"width": 32}, "training": {"patience": 3}}), "e0")[0]
    assert (own.model.start, own.model.width, own.training.learning_rate) == ("data", 32, 3e-3)
    settings = run_settings(own)
    assert settings["config"]["n_latent"] == settings["training"]["validation_every"] == "auto"
    assert (settings["config"]["width"], settings["training"]["patience"]) == (32, 3)
    sizes = by_size(cells=1000, perturbations=300, counts_per_cell=10.0, batch_size=256)
    model, training = build_configs(settings["config"], settings["training"], sizes)
    assert (model.n_latent, model.width, model.embedding_width, training.validation_every) == (100, 32, 64, 13)
    paper = runs(study({}, kind="replogle"), "e0")[0]
    assert (paper.model.start, paper.model.width, paper.training.steps) == ("published", 400, 150_000)
    assert "auto" not in {*run_settings(paper)["config"].values()} and paper.training.patience is None


def test_the_library_of_sampled_cells_is_the_median_of_a_custom_screen():
    class E0:
        experiment = "e0"

    def library(given: dict, kind: str) -> object:
        config = study({"evaluation": given}, kind=kind)
        plan = Plan.__new__(Plan)
        plan.study = config
        return plan.evaluation(E0)["ate_library"]

    assert library({}, "custom") == "median" and library({}, "replogle") == 10_000.0
    assert library({"ate_library": 500}, "custom") == 500.0 and library({"ate_library": "median"}, "norman") == "median"


def test_the_filter_splits_cells_if_genes_are_chosen_automatically():
    held_out = {"split": {"kind": "held_out", "conditions": ["A"]}}
    run = runs(study(held_out), "e0")[0]
    assert (run.split, run.split_config.kind) == ("held_out", "given")
    assert run.screen.options.genes_split.conditions == ("A",)
    # not for other genes, for a split that needs other columns, for several splits of a screen, or for axes of splits
    for given, options in (
        ([held_out], {"genes": "all"}),
        ([{"split": {"kind": "given"}}], {}),
        ([held_out, {}], {}),
        ([{"grid": [{"model": "cond_vae", "split_seed": [0, 1]}]}], {}),
    ):
        run = runs(study(*given, options=options), "e0")[0]
        assert run.screen.options.genes_split is None


def many_genes() -> ad.AnnData:
    """60 cells with 5,200 genes; the first 200 do not vary in training cells, and most of all in validation cells."""
    rng = np.random.default_rng(0)
    part = np.resize(["train", "train", "train", "val"], 60)
    x = rng.poisson(2.0, (60, 5200))
    x[part == "train", :200] = 2
    x[part == "val", :200] = 1000 * rng.poisson(1.0, (15, 200))
    obs = pd.DataFrame({"guide": np.resize(["ctrl", "A", "B"], 60), "part": part}, [f"c{i}" for i in range(60)])
    return ad.AnnData(sp.csr_matrix(x.astype(np.float32)), obs, pd.DataFrame(index=[f"g{i}" for i in range(5200)]))


def test_genes_are_chosen_on_training_cells_above_5000():
    fitted = fit(many_genes(), perturbation="guide", control="ctrl", split="part", steps=1, progress=False)
    assert fitted.genes == tuple(f"g{i}" for i in range(200, 5200))
    assert fitted.library > 5000 and fitted.checkpoint.facts["control"] == "ctrl"


REAL = {
    "papalexi2021_thp1_crisprko_20729x299_counts.h5ad": {"perturbation": "perturbation", "control": "control"},
    "norman2019_k562_crispra_3375x500_counts.h5ad": {
        "perturbation": "condition", "control": "control", "separator": "+",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("file", REAL)
def test_a_fit_with_nothing_set_is_sound_on_real_cells(shared, file):
    cells = ad.read_h5ad(shared / "data" / "real" / file)
    part = np.random.default_rng(0).choice(["train", "val", "test"], len(cells), p=[0.64, 0.16, 0.2])
    cells.obs["part"] = part
    how = REAL[file]
    fitted = fit(cells, **how, split="part", progress=False)
    known = fitted.checkpoint.facts["fit"]
    assert known["levelled_off"] and known["validation_loss"] < known["intercept_only"] - 2.0
    options = {"perturbation_column" if key == "perturbation" else key: value for key, value in how.items()}
    data = effects(arrays_of(screen_of(cells, **options)), part, reference="control")
    predicted = fitted.effects(list(data.obs_names), draws=40)["effect"].to_numpy().reshape(data.shape)
    truth = data.layers["held_out"]

    def pooled(prediction: np.ndarray) -> float:
        return float(np.corrcoef(truth.ravel(), prediction.ravel())[0, 1])

    expected = {name: pooled(each) for name, each in baselines(data).items() if np.isfinite(each).all()}
    assert pooled(predicted) > expected["mean_of_perturbations"] + 0.1
    if "papalexi" in file:
        assert pooled(predicted) > expected["train_mean"] - 0.03

"""config/fast.yaml: the same study with other trainings, which are never taken for the published ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from samsvae.config.grid import run_settings, runs
from samsvae.config.model import ModelConfig
from samsvae.config.study import Study
from samsvae.config.training import TrainingConfig
from samsvae.config.validate import build
from samsvae.config.zoo import ROWS, TABLE_1, row
from samsvae.data.cells import cells_of, encode
from samsvae.models.model import Model
from samsvae.models.start import initialise
from samsvae.screens.pack import arrays_of
from samsvae.screens.simulate import sparse_shift
from samsvae.study.figure_plan import FigurePlan
from samsvae.study.plan import Plan
from samsvae.training.loop import train

#: The only settings that fast.yaml may change.
CHANGED = {"start", "steps", "learning_rate", "rate_mask", "rate_embedding", "patience", "validation_every"}

FILES = {"core": ("config.yaml", "core.yaml"), "complete": ("config.yaml",)}


@pytest.mark.parametrize("files", FILES.values(), ids=FILES.keys())
def test_the_fast_study_differs_in_the_training_of_the_eight_models_alone(configuration, files):
    config, fast_config = configuration(*files), configuration(*files, "fast.yaml")
    published, fast = build(Study, config), build(Study, fast_config)
    kept = ("experiments", "screens", "device", "jobs_per_gpu", "runs_per_job", "container")
    assert [getattr(published, name) for name in kept] == [getattr(fast, name) for name in kept]
    for name in published.experiments:
        theirs, ours = (dataclasses.replace(study.settings[name], model={}, training={}) for study in (published, fast))
        assert theirs == ours
        pairs = list(zip(runs(published, name), runs(fast, name), strict=True))
        for before, after in pairs:
            assert (before.id, before.dataset, before.split) == (after.id, after.dataset, after.split)
            old, new = run_settings(before), run_settings(after)
            differ = {key for part in ("config", "training") for key in old[part] if old[part][key] != new[part][key]}
            assert differ <= CHANGED and {**old, "config": 0, "training": 0} == {**new, "config": 0, "training": 0}
            if name in ("simulation_svae", "simulation_transfer"):
                assert not differ
            elif after.row in TABLE_1:  # what run.json of every such run says
                assert "start" in differ and new["config"]["start"] == "data"
                assert new["training"]["steps"] < old["training"]["steps"]
            else:  # trained for epochs, so that steps are not read
                assert ROWS[after.row].training and differ <= {"steps"} and new["training"]["epochs"]
    plans = [FigurePlan(Plan(c, results="r", benchmarks="b"), resources="s") for c in (config, fast_config)]
    assert plans[0].every() == plans[1].every() and plans[0].files() == plans[1].files()


def test_the_fast_study_is_labelled_and_in_a_folder_of_its_own(configuration):
    config = configuration("config.yaml", "core.yaml", "fast.yaml")
    study = build(Study, config)
    assert study.pathvars.results == "results/fast" and "not the published" in study.title
    plan = FigurePlan(Plan(config, results="r", benchmarks="b"), resources="s")
    assert {source["not_comparable"] for source in plan.reproductions()} == {"other training"}
    assert plan.settings("replogle", "scores")["comparable"] is False
    said = {each["name"]: each["screen"] for each in plan.contents()}
    for name in ("replogle", "norman_ood", "norman_efficiency", "replogle_transfer", "norman_transfer"):
        assert "This is not the published training: start data, steps " in said[name], name


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({}, {}),
        ({"precision": "tf32", "kernel": "plain", "capture": "never", "compile": True, "seed": 3}, {}),
        ({"steps": 9}, {"steps": 9}),
        ({"patience": 5, "particles": 1}, {"particles": 1, "patience": 5}),
    ],
)
def test_any_other_training_on_a_published_screen_is_named(configuration, changes, differs):
    config = configuration("config.yaml", "core.yaml")
    config["settings"]["replogle"]["training"] |= changes
    plan = FigurePlan(Plan(config, results="r", benchmarks="b"), resources="s")
    words = ", ".join(f"{name} {value}" for name, value in differs.items())
    assert plan.describe_training("replogle") == (f"This is not the published training: {words}." if differs else "")
    assert plan.describe_training("norman_ood") == plan.describe_training("simulation_sams") == ""


def test_a_fast_training_reaches_the_loss_of_a_published_one_in_fewer_steps(configuration):
    """On 30 simulated perturbations, in a hundredth and a fiftieth of the steps that the files allow."""
    settings = [
        build(Study, configuration(*FILES["core"], *more)).settings["replogle"] for more in ((), ("fast.yaml",))
    ]
    simulated = sparse_shift(seed=1, n_perturbations=30, n_held_out=0, n_genes=60, cells=(40, 20, 0))
    screen, split = arrays_of(simulated), np.asarray(simulated.obs["split"])
    dosage = encode(screen, "sum")
    cells, rest = (cells_of(screen, split == name, dosage, "cpu") for name in ("train", "val"))
    small = {"n_latent": 8, "width": 32, "embedding_width": 16, "mask_prior": 0.1}
    found = []
    for own, steps in zip(settings, (1500, 300), strict=True):
        model = Model(ModelConfig(**row("sams_vae_corr").model | own.model | small), 60, 30)
        initialise(model, cells)
        how = {"steps": steps, "batch_size": 128, "particles": 2, "validation_particles": 2, "validation_every": 5}
        found.append(train(model, cells, rest, TrainingConfig(**own.training | how)))
    published, fast = found
    reached = next(each["step"] for each in fast.history if each["val_loss"] <= published.best_loss)
    assert reached <= published.best_step / 5

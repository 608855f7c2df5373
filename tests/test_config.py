"""The configuration: the grids of the papers, names of runs, precedence, and helpful errors."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import json
import operator
import re
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import yaml
from snakemake.utils import update_config

from samsvae.config.evaluation import EvaluationConfig
from samsvae.config.grid import batches, grid_table, run_settings, runs
from samsvae.config.model import ModelConfig
from samsvae.config.screens import OPTIONS, NormanMiniature, ReplogleMiniature
from samsvae.config.splits import SplitConfig
from samsvae.config.study import PathVars, Study
from samsvae.config.training import TrainingConfig
from samsvae.config.validate import build
from samsvae.config.zoo import TABLE_1
from samsvae.errors import ConfigError
from samsvae.screens.miniature import norman_source, replogle_source


def small(**changes) -> dict:
    """A configuration with one experiment; ``changes`` replace top-level keys."""
    return {
        "experiments": ["e"],
        "screens": {
            "sim": {"kind": "simulate_sams", "options": {"n_perturbations": 5}},
            "own": {"kind": "custom", "source": {"path": "x.h5ad"}},
        },
        "settings": {"e": {"screen": "sim", "grid": [{"model": ["sams_vae_corr"], "seed": [0, 1]}]}},
    } | changes


def gridded(*blocks: dict, **experiment) -> dict:
    """The same configuration with these blocks as its grid, and other settings of the experiment."""
    return small(settings={"e": {"screen": "sim", "grid": list(blocks)} | experiment})


def runs_of(config: dict, name: str = "e") -> dict:
    return {run.id: run for run in runs(build(Study, config), name)}


# ---- the grids -----------------------------------------------------------------------------------------------------

WHOLE = {
    "replogle": 180,
    "norman_ood": 1125,
    "norman_efficiency": 1125,
    "simulation_sams": 8 * 5 * 5,  # rows x cells per perturbation x data seeds
    "simulation_svae": (2 + 2 + 3 + 3 + 8) * 5,
    # rows and settings x data seeds x seeds, and the upper bounds of three of them with two numbers of cells
    "simulation_transfer": (3 + 2 + 3 + 3 + 8 + 2 * 3) * 5 * 5,
    "replogle_transfer": (4 + 2 + 8) * 8 * 5,  # rows x pathways x seeds
    "norman_transfer": (5 + 8) * 5,
}
CORE = {**WHOLE, "replogle": 90, "norman_ood": 225, "norman_efficiency": 225}
CORE |= {"simulation_transfer": (5 + 8 + 2 * 3) * 25, "replogle_transfer": (5 + 4) * 40, "norman_transfer": 45}


@pytest.mark.parametrize(
    ("files", "expected"), [(["config.yaml"], WHOLE), (["config.yaml", "core.yaml"], CORE)], ids=["whole", "core"]
)
def test_the_grids_have_the_runs_of_the_papers(configuration, files, expected):
    study = build(Study, configuration(*files))
    found = {name: runs(study, name) for name in study.experiments}
    assert {name: len(of) for name, of in found.items()} == expected
    for of in found.values():
        trainings = {(json.dumps(run_settings(run) | {"run": ""}), run.dataset, run.split) for run in of}
        assert len(trainings) == len(of)  # no training has two names


def test_the_core_is_part_of_the_complete_grid(configuration):
    """core.yaml has fewer runs than config.yaml, with the same settings."""
    whole, core = (build(Study, configuration(*f)) for f in (["config.yaml"], ["config.yaml", "core.yaml"]))
    smaller = [name for name in core.experiments if CORE[name] < WHOLE[name]]
    assert len(smaller) == 6
    for name in smaller:
        settings = [
            {(json.dumps(run_settings(run) | {"run": ""}), run.split_config) for run in runs(study, name)}
            for study in (whole, core)
        ]
        assert settings[1] < settings[0]


def test_settings_of_the_papers(configuration):
    """grid.md, read by hand."""
    study = build(Study, configuration("config.yaml"))
    replogle = {run.id: run for run in runs(study, "replogle")}
    run = replogle["sams_vae_corr-latents200-alpha0.001-seed3"]
    assert (run.model.n_latent, run.model.mask_prior, run.training.seed) == (200, 0.001, 3)
    assert (run.model.width, run.model.n_layers, run.model.likelihood, run.model.input) == (
        400, 1, "nb", "log_standardise",
    )  # fmt: skip
    assert (run.training.steps, run.training.batch_size, run.training.particles) == (150_000, 512, 5)
    assert (run.training.learning_rate, run.training.weight_decay, run.training.gradient_clip) == (3e-4, 1e-6, None)
    assert (run.model.embedding_layers, run.model.embedding_width) == (2, 200)
    assert {r.split for r in replogle.values()} == {"random"}
    for name, kind in (("norman_ood", "norman_ood"), ("norman_efficiency", "norman_efficiency")):
        run = {run.id: run for run in runs(study, name)}["cpa_vae_corr-layers4-unique-split2-frac0.25"]
        assert (run.model.n_latent, run.model.n_layers, run.model.embedding_layers) == (200, 4, 4)
        assert (run.training.steps, run.training.gradient_clip, run.training.seed) == (30_000, 100.0, 0)
        assert (run.split_config.kind, run.split_config.split_seed, run.split_config.fraction) == (kind, 2, 0.25)
        assert {r.encoding for r in runs(study, name) if r.row == "svae_plus"} == {"unique"}
    assert study.settings["replogle"].evaluation == EvaluationConfig(iwelbo_particles=100, ate_samples=2500)


def test_transfers_of_the_papers(configuration):
    study = build(Study, configuration("config.yaml"))
    assert {name for name in study.experiments if study.settings[name].transfer} == {
        "simulation_transfer", "replogle_transfer", "norman_transfer",
    }  # fmt: skip
    for name, held_out in (("simulation_transfer", {"last 20"}), ("norman_transfer", {"strongest 30"})):
        assert {run.split_config.held_out for run in runs(study, name)} == held_out
    replogle = {run.id: run for run in runs(study, "replogle_transfer")}
    run = replogle["ivae-pathwayEXOSOME-seed2"]
    assert (run.model.n_latent, run.model.width, run.model.n_layers) == (15, 128, 2)
    assert (run.training.epochs, run.training.warmup_epochs, run.training.patience) == (50, 10, 45)
    assert (run.split, run.split_config.held_out) == ("transfer-pathwayEXOSOME", "EXOSOME")
    assert not run.split_config.has_test_cells(simulated=False)
    run = replogle["sams_vae_corr-pathwayEXOSOME-seed2"]
    assert (run.model.n_latent, run.training.steps, run.training.batch_size) == (100, 150_000, 512)
    bound = {run.id: run for run in runs(study, "simulation_transfer")}["vae-new_cells10-draw1-seed0"]
    assert (bound.split_config.new_cells, bound.dataset) == (10, "simulation_svae-draw1")
    assert {run.encoding for run in runs(study, "norman_transfer")} == {"unique"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cells": []}, r"transfer: cells: \[\] is not allowed; give one or more values"),
        ({"cells": [10, 10]}, r"cells: \[10, 10\] is not allowed; give one or more values, each once"),
        ({"cells": [-1]}, "cells: -1 is not allowed. Allowed: 0 or more, or 'all'"),
        ({"cells": ["some"]}, r"cells\[0\]: 'some' is not allowed"),
        ({"variants": ["as_released"]}, "'ours' must be one of them"),
        ({"adapt": ["closed"]}, "Did you mean 'closed_form'"),
        ({"particles": 0}, "particles: 0 is not allowed; it must be 1 or more"),
        ({"stage2_epochs": 0}, "stage2_epochs: 0 is not allowed"),
        ({"epochs": 1}, "unknown key 'epochs'"),
    ],
)
def test_settings_of_a_transfer_that_are_not_allowed(change, said):
    split = {"kind": "transfer", "last": 2}
    with pytest.raises(ConfigError, match=said):
        runs_of(gridded({"model": "ivae"}, split=split, transfer=change))


def test_a_transfer_needs_new_perturbations_and_models_that_have_its_variants():
    block, split = {"model": ["sams_vae_corr", "cond_vae"]}, {"kind": "transfer", "last": 2}
    released = {"variants": ["ours", "as_released"]}
    with pytest.raises(ConfigError, match=r"transfer: not allowed with a split of kind 'random'.*'transfer'"):
        runs_of(gridded(block, transfer={}))
    with pytest.raises(
        ConfigError, match=r"settings.e.transfer.variants: 'as_released' is not allowed, because .*'ours'"
    ):
        runs_of(gridded(block, split=split, transfer=released))
    assert len(runs_of(gridded(block, {"model": "vae"}, split=split, transfer=released))) == 3
    assert len(runs_of(gridded(block, split=split, transfer={}))) == 2
    with pytest.raises(ConfigError, match=r"settings.e.transfer: not allowed with 'a.ckpt' in the grid"):
        runs_of(gridded({"model": "sams_vae_corr", "checkpoint": ["a.ckpt"]}, split=split, transfer={}))


@pytest.mark.parametrize(
    "files", [["config.yaml"], ["config.yaml", "demo.yaml"], ["config.yaml", "custom.example.yaml"]]
)
def test_names_of_runs_are_unique_and_can_be_read(configuration, files):
    """An id is the model, then word and value of every axis, which is enough to recognise the settings."""
    study = build(Study, configuration(*files))
    for name in study.experiments:
        found = runs(study, name)
        assert len({run.id for run in found}) == len(found)
        for run in found:
            model, *words = run.id.split("-")
            assert model == run.row and len(words) == len(run.axes) and re.fullmatch(r"[\w.-]+", run.id)
            for word, value in zip(words, run.axes.values(), strict=True):
                assert re.fullmatch(r"[a-z_]*", word.removesuffix(str(value)))


def test_examples_of_names(configuration):
    study = build(Study, configuration("config.yaml"))
    for experiment, name, dataset, split in (
        ("replogle", "sams_vae_corr-latents100-alpha0.1-seed0", "replogle", "random"),
        ("replogle", "svae_plus-latents200-b10-seed4", "replogle", "random"),
        ("norman_ood", "sams_vae_mf-layers2-alpha0.01-sum-split3-frac0.5", "norman", "norman_ood-split3-frac0.5"),
        ("simulation_sams", "cond_vae-cells30-draw2", "simulation_sams-cells30-draw2", "given"),
        ("simulation_svae", "svae-lambda1000-draw0", "simulation_svae-draw0", "given"),
    ):
        run = {run.id: run for run in runs(study, experiment)}[name]
        assert (run.dataset, run.split) == (dataset, split)


def test_a_list_is_an_axis_and_a_scalar_a_setting():
    found = runs_of(gridded({"model": "sams_vae_corr", "n_latent": 7, "mask_prior": [0.1, 0.2], "epochs": 3}))
    assert list(found) == ["sams_vae_corr-alpha0.1", "sams_vae_corr-alpha0.2"]
    assert [run.model.mask_prior for run in found.values()] == [0.1, 0.2]
    assert {(run.model.n_latent, run.training.epochs) for run in found.values()} == {(7, 3)}
    # a list of one value is also an axis, so that values can be added later
    assert list(runs_of(gridded({"model": ["vae"], "n_latent": [7]}))) == ["vae-latents7"]


def test_the_order_of_keys_in_a_block_does_not_matter():
    block = {"model": ["vae", "ivae"], "seed": [0, 1], "n_latent": [5, 6], "learning_rate": [0.1, 0.2], "cells": [3]}
    names = [set(runs_of(gridded(dict(order)))) for order in itertools.permutations(block.items())]
    assert all(found == names[0] for found in names)
    assert "ivae-learning_rate0.1-latents5-cells3-seed1" in names[0]


def test_adding_a_value_to_an_axis_renames_no_other_run(configuration):
    config = configuration("config.yaml", "core.yaml")
    more = {"model": "sams_vae_bb", "encoding": None, "mask_prior": 0.5, "fraction": 0.125, "pathway": "X"}
    for name in set(config["experiments"]) - {"simulation_transfer"}:  # 475 runs whose axes occur elsewhere too
        before = runs_of(config, name)
        for number, block in enumerate(config["settings"][name]["grid"]):
            for key, values in block.items():
                if not isinstance(values, list) or more.get(key, 17) is None:
                    continue
                longer = copy.deepcopy(config)
                # at the front, to make it harder
                longer["settings"][name]["grid"][number][key] = [more.get(key, 17), *values]
                after = runs_of(longer, name)
                assert len(after) > len(before) and all(after[run] == before[run] for run in before)


def test_rows_of_the_grid_table(configuration):
    study = build(Study, configuration("config.yaml", "core.yaml"))
    table = {row["run"]: row for row in grid_table(runs(study, "norman_ood"))}
    # axes of other blocks have the values that hold for this run
    assert table["cond_vae-layers1-sum-split0-frac1"] == {
        "run": "cond_vae-layers1-sum-split0-frac1",
        "model": "cond_vae",
        "method": "Conditional VAE",
        "inference": "amortized MF",
        "n_layers": 1,
        "mask_prior": 0.01,
        "beta_b": 2.0,
        "encoding": "sum",
        "split_seed": 0,
        "fraction": 1.0,
        "dataset": "norman",
        "split_name": "norman_ood-split0-frac1",
    }
    assert len({tuple(row) for row in table.values()}) == 1


def test_settings_of_a_run_reach_its_script_unchanged(configuration):
    """Snakemake passes them as plain values; the script builds the same settings from them."""
    for run in runs(build(Study, configuration("config.yaml", "demo.yaml")), "simulation_svae"):
        plain = json.loads(json.dumps(run_settings(run)))
        assert build(ModelConfig, plain["config"]) == run.model
        assert build(TrainingConfig, plain["training"]) == run.training
        assert (plain["run"], plain["model"], plain["encoding"]) == (run.id, run.row, run.encoding)


def test_data_and_splits_with_different_settings_have_different_names():
    """Also if a block sets them as scalars, because files with one name must have one content."""
    found = runs_of(
        gridded(
            {"model": ["vae"], "cells": 10, "split_seed": 5},
            {"model": ["ivae"], "cells": 20, "split_seed": 0},
            {"model": ["cond_vae"]},
            {"model": ["svae"], "cells": [10], "split_seed": [5]},
        )
    ).values()
    for name, settings in (("dataset", "screen"), ("split", "split_config")):
        content: dict = {}
        for run in found:
            assert content.setdefault(getattr(run, name), getattr(run, settings)) == getattr(run, settings)
        assert len(content) == 3


def test_precedence_experiment_then_row_then_block():
    own = {"model": {"width": 100, "n_latent": 5}, "training": {"learning_rate": 0.1, "batch_size": 64, "steps": 9}}
    found = runs_of(
        gridded({"model": ["vae", "cond_vae"]}, {"model": ["ivae"], "width": 7, "learning_rate": 0.2}, **own)
    )
    plain, row, block = (found[name] for name in ("cond_vae", "vae", "ivae"))
    assert (plain.model.width, plain.training.learning_rate, plain.training.batch_size) == (100, 0.1, 64)
    assert (row.model.width, row.training.learning_rate, row.training.batch_size) == (128, 1e-3, 128)  # the row's own
    assert (block.model.width, block.training.learning_rate, block.training.batch_size) == (7, 0.2, 128)
    assert {(r.model.n_latent, r.training.steps) for r in found.values()} == {(5, 9)}  # no row sets these
    screen = small()["screens"]["sim"]["options"] | {"cells": 30}
    config = gridded({"model": ["vae"]}, {"model": ["vae"], "cells": [40]}) | {
        "screens": {"sim": {"kind": "simulate_sams", "options": screen}}
    }
    found = runs_of(config)
    assert [run.screen.options.cells for run in found.values()] == [30, 40]
    assert {run.screen.options.n_perturbations for run in found.values()} == {5}


def test_an_axis_belongs_to_one_place_only():
    """A key of a block belongs to the data, the split, the model or the training, never to two of them."""
    for options in OPTIONS.values():
        every = [f.name for cls in (options, SplitConfig, ModelConfig, TrainingConfig) for f in fields(cls)]
        every += ["model", "encoding"]
        assert len(set(every)) == len(every)


# ---- values of YAML ------------------------------------------------------------------------------------------------


def test_yaml_text_that_is_a_number():
    """YAML 1.1 reads 1e-4, without a point, as text."""
    text = "{model: sams_vae_corr, learning_rate: [1e-4, 1.0e-3], weight_decay: 1e-6, mask_prior: .5}"
    block = yaml.safe_load(text)
    assert block["learning_rate"][0] == "1e-4"
    found = list(runs_of(gridded(block)).values())
    assert [run.training.learning_rate for run in found] == [1e-4, 1e-3]
    assert {run.training.weight_decay for run in found} == {1e-6}
    assert all(isinstance(row["learning_rate"], float) for row in grid_table(found))


def test_numbers_and_arrays_of_numpy():
    """They become plain values, because settings are written to files."""
    found = build(TrainingConfig, {"seed": np.int64(3), "learning_rate": np.float32(0.25), "compile": np.False_})
    assert found == TrainingConfig(seed=3, learning_rate=0.25, compile=False)
    assert (type(found.seed), type(found.learning_rate), type(found.compile)) == (int, float, bool)
    assert build(SplitConfig, {"split_seed": np.array(2), "kind": np.str_("random")}) == SplitConfig(
        split_seed=2, kind="random"
    )
    for value in (np.True_, np.float64(2.0), np.array([1, 2])):
        with pytest.raises(ConfigError, match=r"steps: .* is not allowed\. Allowed: a whole number"):
            build(TrainingConfig, {"steps": value})


def test_one_value_where_a_list_of_names_is_meant():
    assert build(Study, small(experiments="e")).experiments == ("e",)
    own = build(Study, small()).screens["own"]
    assert own.options.control == ("control",)


# ---- errors --------------------------------------------------------------------------------------------------------

URLS = {"urls": ["https://x.org/a.h5ad"]}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (small(titel="x"), ["'titel'", "Did you mean 'title'"]),
        (small(pathvars={"result": "results/bb"}), ["config.pathvars", "'result'", "Did you mean 'results'"]),
        (small(pathvars={"scratch": "x"}), ["config.pathvars", "'scratch'", "Allowed: benchmarks, logs, results"]),
        (small(pathvars={"results": ""}), ["config.pathvars", "results: ''", "folder"]),
        (small(device="gpu"), ["device", "'gpu'", "auto, cpu, cuda"]),
        (small(jobs_per_gpu="two"), ["jobs_per_gpu", "'two'", "whole number"]),
        (small(experiments=["f"]), ["experiments", "no settings for 'f'", "Allowed: e"]),
        (small(experiments=["ee"]), ["'ee'", "Did you mean 'e'"]),
        (small(experiments=[]), ["experiments", "none"]),
        (small(settings={"e": {"screen": "sin", "grid": []}}), ["settings.e.screen", "'sin'", "Did you mean 'sim'"]),
        (
            small(
                screens={"own": {"kind": "custom", "source": "x.h5ad", "options": {"control": None}}},
                settings={"e": {"screen": "own", "grid": [], "split": {"kind": "transfer", "conditions": ["a"]}}},
            ),
            ["settings.e.split", "'transfer' is not possible with the screen 'own', which has no control"],
        ),
        (small(settings={"e": {"grid": []}}), ["settings.e", "'screen' is missing"]),
        (small(settings={"e": {"screen": "sim"}}), ["settings.e", "'grid' is missing"]),
        (small(settings=["e"]), ["settings", "['e']"]),
        (small(settings={"e": 3}), ["settings.e", "3"]),
        (gridded({"model": ["sams_vae_cor"]}),
         ["settings.e.grid[0].model", "'sams_vae_cor'", "Did you mean 'sams_vae_corr'"]),
        (gridded({"model": [["vae"]]}), ["model", "['vae']"]),
        (gridded({"model": {"name": "vae"}}), ["model", "{'name': 'vae'}"]),
        (gridded({"modle": ["vae"]}), ["settings.e.grid[0]", "'modle'", "Did you mean 'model'"]),
        (gridded({"seed": [0]}), ["settings.e.grid[0]", "no 'model'"]),
        (gridded({"model": []}), ["settings.e.grid[0]", "model", "empty"]),
        (gridded({"model": ["vae"], "seed": []}), ["settings.e.grid[0]", "seed", "empty"]),
        (gridded(), ["settings.e.grid", "empty"]),
        (gridded(["vae"]), ["settings.e.grid[0]", "['vae']"]),
        (gridded({"model": ["vae"], "n_latnet": [3]}), ["grid[0]", "'n_latnet'", "Did you mean 'n_latent'"]),
        (gridded({"model": ["vae"], "n_genes": [3]}), ["grid[0]", "'n_genes'"]),  # an option of no such screen
        (gridded({"model": ["vae"], "n_latent": ["many"]}), ["grid[0].n_latent", "'many'", "whole number"]),
        (gridded({"model": ["vae"], "n_latent": 1.5}), ["grid[0].n_latent", "1.5", "whole number"]),
        (gridded({"model": ["vae"], "n_latent": True}), ["grid[0].n_latent", "True", "whole number"]),
        (gridded({"model": ["vae"], "residual": 1}), ["grid[0].residual", "1", "true or false"]),
        (gridded({"model": ["vae"], "width": [[8, 16]]}), ["grid[0].width", "[8, 16]", "whole number"]),
        (gridded({"model": ["vae"], "learning_rate": "fast"}), ["grid[0].learning_rate", "'fast'", "number"]),
        (gridded({"model": ["vae"], "learning_rate": "nan"}), ["grid[0].learning_rate", "nan", "number"]),
        (gridded({"model": ["vae"], "learning_rate": ".inf"}), ["grid[0].learning_rate", "inf", "number"]),
        (gridded({"model": ["vae"], "patience": "x"}), ["grid[0].patience", "'x'", "a whole number or nothing"]),
        (gridded({"model": ["vae"], "likelihood": "nbb"}), ["likelihood", "'nbb'", "Did you mean 'nb'"]),
        (gridded({"model": ["vae"], "encoding": "uniqe"}), ["encoding", "'uniqe'", "Did you mean 'unique'"]),
        (gridded({"model": ["vae"], "encoding": ["sum", 1]}), ["encoding", "1", "Allowed: sum, unique"]),
        (gridded({"model": ["vae"], "fraction": [1.5]}), ["grid[0]", "fraction", "1.5", "0 to 1"]),
        (gridded({"model": ["vae"], "fraction": [0.5]}), ["grid[0]", "fraction", "'random'", "'norman_efficiency'"]),
        (gridded({"model": ["vae"]}, split={"kind": "norman_efficiency", "test_pairs": 0.5}),
         ["settings.e.split", "test_pairs", "'norman_efficiency'", "with 'norman_ood'"]),
        (gridded({"model": ["vae"], "seed": [-1]}), ["settings.e.grid[0]", "seed: -1", "0 or more"]),
        (gridded({"model": ["vae"], "cells": [0]}), ["settings.e.grid[0]", "cells: 0", "1 or more"]),
        (gridded({"model": ["vae"], "sim_mask_prob": 2}), ["settings.e.grid[0]", "sim_mask_prob: 2", "0 to 1"]),
        (gridded({"model": ["vae"]}, split={"test_fraction": -0.1}), ["settings.e.split", "test_fraction", "-0.1"]),
        (gridded({"model": ["vae"]}, split={"test_fracton": 0}), ["settings.e.split", "Did you mean 'test_fraction'"]),
        (gridded({"model": ["vae"]}, split={"kind": "radnom"}), ["settings.e.split.kind", "Did you mean 'random'"]),
        (gridded({"model": ["vae"]}, split={"kind": "file"}), ["settings.e.split", "path", "'file'"]),
        (gridded({"model": ["vae"]}, split={"kind": "held_out"}), ["settings.e.split", "conditions", "'held_out'"]),
        (gridded({"model": ["vae"]}, split={"conditions": ["A"]}), ["settings.e.split", "conditions", "'held_out'"]),
        (gridded({"model": ["vae"]}, model={"n_latnet": 3}), ["settings.e.model", "Did you mean 'n_latent'"]),
        (gridded({"model": ["vae"]}, model={"n_latent": [3]}), ["settings.e.model.n_latent", "[3]"]),
        (gridded({"model": ["vae"]}, training={"step": 3}), ["settings.e.training", "Did you mean 'steps'"]),
        (gridded({"model": ["vae"]}, training={"steps": 0}), ["steps", "0 is not allowed", "1 or more"]),
        (gridded({"model": ["vae"]}, evaluation={"ate_samples": 0}), ["settings.e.evaluation", "ate_samples", "0"]),
        (gridded({"model": ["vae", "vae"]}), ["grid[0]", "'vae' appears twice"]),
        (gridded({"model": ["vae"], "seed": [0]}, {"model": ["vae"], "seed": [1, 0]}), ["grid[1]", "'vae-seed0'"]),
        (gridded({"model": ["vae"], "n_latent": 3}, {"model": ["vae"], "n_latent": 4}), ["grid[1]", "'vae'", "axis"]),
        (small(screens={"sim": {"kind": "simulate_svae"}}), ["screens.sim.kind", "'simulate_svae'", "simulate_sams"]),
        (small(screens={"sim": {"kind": "simulate_sams", "options": {"cell": 3}}}), ["'cell'", "Did you mean 'cells'"]),
        (small(screens={"sim": {"kind": "simulate_sams", "source": URLS | {"size": 1, "checksum": f"md5:{0:032}"}}}),
         ["screens.sim", "source", "not allowed", "simulate_sams"]),
        (small(screens={"sim": {"kind": "norman"}}), ["screens.sim", "source", "needed", "norman"]),
        (small(screens={"sim": {"kind": "norman", "source": {}}}), ["screens.sim.source", "path, urls or miniature"]),
        (small(screens={"sim": {"kind": "norman", "source": URLS}}), ["screens.sim.source", "size", "checksum"]),
        (small(screens={"sim": {"kind": "norman", "source": URLS | {"size": 5}}}), ["screens.sim.source", "checksum"]),
        (
            small(screens={"sim": {"kind": "norman", "source": {"path": "a", "size": 1, "checksum": "md5:12"}}}),
            ["source", "'md5:12'", "32 digits"],
        ),
        (
            small(screens={"sim": {"kind": "norman", "source": {"path": "a", "checksum": f"md5:{0:032}"}}}),
            ["source", "size"],
        ),
        (small(screens={"sim": {"kind": "norman", "source": URLS | {"size": -5}}}), ["screens.sim.source", "size: -5"]),
        (small(screens={"sim": {"kind": "norman", "source": {"miniature": {"n_targets": 5}}}}),
         ["screens.sim: source.miniature", "'n_targets'", "cells_per_condition"]),
        (small(screens={"sim": {"kind": "replogle", "source": {"miniature": {"n_target": 5}}}}),
         ["screens.sim: source.miniature", "'n_target'", "Did you mean 'n_targets'"]),
        (small(screens={"sim": {"kind": "replogle", "source": {"miniature": {"n_genes": "many"}}}}),
         ["source.miniature.n_genes", "'many'", "whole number"]),
        (small(screens={"sim": {"kind": "custom", "source": {"miniature": {}}}}),
         ["screens.sim", "source.miniature", "'custom'", "replogle and norman"]),
        (small(screens={"sim": {"kind": "custom", "source": {"path": "a"}, "options": {"genes": -3}}}),
         ["screens.sim", "options", "genes: -3"]),
        (small(screens={"sim": {"kind": "norman", "source": {"pth": "a"}}}),
         ["screens.sim.source", "'pth'", "Did you mean 'path'"]),
    ],
)  # fmt: skip
def test_errors_name_key_value_and_what_is_allowed(config, said):
    with pytest.raises(ConfigError) as error:
        runs_of(config)
    for part in said:
        assert part in str(error.value)


@pytest.mark.parametrize("value", ["a/b.tsv", ["a/b.tsv", "c.tsv"]])
def test_a_value_that_cannot_be_part_of_a_file_name_is_rejected(value):
    config = small(settings={"e": {"screen": "own", "grid": [{"model": ["vae"], "annotation": value}]}})
    with pytest.raises(ConfigError, match=r"settings\.e\.grid\[0\]\.annotation: 'a/b\.tsv'.*file names"):
        runs_of(config)


#: Keys in the files of the test below that accept any text.
FREE = r"title|pathvars|urls|path|control|perturbation_column|counts|genes|library_size"


def places(part, path=()):
    """The path to every key and value of a configuration; for a list, to the first two items."""
    for key in part if isinstance(part, dict) else range(min(len(part), 2)):
        yield (*path, key)
        if isinstance(part[key], dict | list):
            yield from places(part[key], (*path, key))


def wrongs(value, path) -> list:
    """Wrong values: text for a flag; text, a flag or a negative number for a number; another word for a word."""
    if isinstance(value, bool):
        return ["yes"]
    if isinstance(value, int | float):
        return ["many", True, -value or -1]
    return [f"{value}x", True] if isinstance(value, str) and value and not re.search(FREE, str(path)) else []


@pytest.mark.parametrize("name", ["demo.yaml", "custom.example.yaml"])
def test_no_typo_passes(configuration, name):
    """An extra letter in any key and a wrong value for any key raise an error that names the key."""
    whole, passed = configuration("config.yaml"), []
    for *way, last in places(file := configuration(name)):
        of = functools.reduce(operator.getitem, way, file)
        changes = [(last, wrong) for wrong in wrongs(of[last], (*way, last))]
        changes += [(f"{last}x", of[last])] if isinstance(last, str) else []
        for key, value in changes:
            over, merged = configuration(name), copy.deepcopy(whole)
            at = functools.reduce(operator.getitem, way, over)
            if key != last:
                del at[last]
            at[key] = value
            update_config(merged, over)
            try:
                study = build(Study, merged)
                for experiment in study.experiments:
                    runs(study, experiment)
                passed.append((*way, key, value))
            except ConfigError as error:
                assert [name for name in (*way, key) if isinstance(name, str)][-1] in str(error)
    assert passed == []


def test_settings_of_a_miniature_are_the_arguments_of_its_function():
    for kind, of in ((ReplogleMiniature, replogle_source), (NormanMiniature, norman_source)):
        known = {item.name: (item.type, item.default) for item in fields(kind)}
        arguments = inspect.signature(of).parameters.values()
        assert known == {a.name: (a.annotation, a.default) for a in arguments if a.default is not a.empty}


def test_a_miniature_keeps_only_the_given_settings():
    """A default that a later version adds must not rerun the rule. YAML 1.1 reads 2e3 as text."""
    mini = {"seed": 3, "median_umi": "2e3"}
    study = build(Study, small(screens={"sim": {"kind": "norman", "source": {"miniature": mini}}}))
    assert study.screens["sim"].source.miniature == {"seed": 3, "median_umi": 2000.0}


def test_folders():
    assert [PathVars().folder(name) for name in ("results", "logs")] == ["results", "results/logs"]
    other = build(Study, small(pathvars={"results": "a", "benchmarks": "b/<results>"})).pathvars
    assert [other.folder(name) for name in ("logs", "benchmarks")] == ["a/logs", "b/a"]


# ---- imports -------------------------------------------------------------------------------------------------------


def python(code: str, root) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(root / "src")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_configuration_is_read_without_torch(root):
    python("import sys, samsvae.config.study; assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)", root)


def bare(modules: list[str], root) -> None:
    """Import modules as if only torch and numpy were installed."""
    absent = [
        "pandas",
        "anndata",
        "scanpy",
        "scipy",
        "sklearn",
        "matplotlib",
        "h5py",
        "seaborn",
        "yaml",
        "requests",
        "snakemake",
        "jsonschema",
    ]
    code = f"""
import importlib, sys

class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Bare())
for name in {modules!r}:
    importlib.import_module(f"samsvae.{{name}}")
"""
    python(code, root)


def test_the_core_needs_only_torch_and_numpy(root):
    package = root / "src" / "samsvae"
    core = [
        path for folder in ("ops", "config", "models", "data", "training") for path in package.glob(f"{folder}/*.py")
    ]
    names = [path.relative_to(package).with_suffix("").as_posix().replace("/", ".") for path in core]
    names = [name for name in names if not name.endswith(("__init__", "triton_softmax_nb", "triton_latents"))]
    bare(["errors", "files", "signals", "text", *names, "evaluation.iwelbo", "evaluation.model_effects"], root)
    bare(["study.gpus", "study.script", "study.jobs", "study.train_run"], root)
    with pytest.raises(AssertionError, match="is not installed here"):  # the check itself works
        bare(["tables"], root)


def test_table_1_is_what_the_simulations_call_the_eight_rows(configuration):
    for name in ("simulation_sams", "simulation_svae"):
        blocks = configuration("config.yaml")["settings"][name]["grid"]
        assert set(blocks[-1]["model"]) == set(TABLE_1)


# ---- weights of the release ----------------------------------------------------------------------------------------


def test_a_checkpoint_is_an_axis_with_the_name_of_its_file_as_word():
    grid = [{"model": ["cpa_vae_mf"], "checkpoint": ["a/seed 0.ckpt", "b/seed1.ckpt"]}]
    grid += [{"model": ["sams_vae_mf"], "mask_prior": [0.1], "checkpoint": "c/x.ckpt"}]
    study = build(Study, small(settings={"e": {"screen": "sim", "grid": grid}}))
    found = runs(study, "e")
    assert [run.id for run in found] == [
        "cpa_vae_mf-from_seed_0-seed0", "cpa_vae_mf-from_seed1-seed1", "sams_vae_mf-from_x-alpha0.1-seed0"
    ]  # fmt: skip
    assert [run.checkpoint for run in found] == ["a/seed 0.ckpt", "b/seed1.ckpt", "c/x.ckpt"]
    assert [row["checkpoint"] for row in grid_table(found)] == [run.checkpoint for run in found]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ([{"model": ["cpa_vae_mf"], "checkpoint": "a.ckpt"}, {"model": ["cond_vae"]}], "to a separate experiment"),
        ([{"model": ["cpa_vae_mf"], "checkpoint": c} for c in ("a/x.ckpt", "b/x.ckpt")], "appears twice"),
        ([{"model": ["cpa_vae_mf"], "checkpoint": 3}], "checkpoint: 3"),
    ],
)
def test_checkpoints_that_would_be_mixed_up(grid, said):
    with pytest.raises(ConfigError, match=said):
        runs(build(Study, small(settings={"e": {"screen": "sim", "grid": grid}})), "e")


# ---- runs that share a process -------------------------------------------------------------------------------------


def test_batches_have_the_same_data_and_split_and_a_maximum_size():
    grid = [{"model": ["cpa_vae_mf", "cond_vae"], "seed": [0, 1, 2], "cells": [10, 30]}]
    found = runs(build(Study, small(settings={"e": {"screen": "sim", "grid": grid}})), "e")
    made = batches(found, 4)
    assert sorted(len(together) for together in made.values()) == [2, 2, 4, 4]
    assert sorted(run.id for together in made.values() for run in together) == sorted(run.id for run in found)
    assert all(len({(run.dataset, run.split) for run in together}) == 1 for together in made.values())
    assert batches(found, 1) == {}
    assert sorted(len(together) for together in batches(found, 5).values()) == [1, 1, 5, 5]
    first = next(iter(made.values()))
    assert [run.row for run in first] == ["cpa_vae_mf"] * 3 + ["cond_vae"]


@pytest.mark.parametrize("name", ["runs_per_job", "jobs_per_gpu", "checkpoint_minutes"])
def test_numbers_that_must_be_positive(name):
    with pytest.raises(ConfigError, match=f"{name}: 0"):
        build(Study, small(**{name: 0}))

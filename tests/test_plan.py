"""The plan of a study, without Snakemake: which figures there are, from which files, and under which names."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from samsvae.errors import ConfigError
from samsvae.figures.registry import FEATURES, FIGURES
from samsvae.study.figure_plan import FILES, RESERVED, SETTINGS, FigurePlan
from samsvae.study.plan import Plan

OWN = {"kind": "custom", "source": {"path": "cells.h5ad"}}
SEEDS = [{"model": ["sams_vae_corr", "cond_vae"], "seed": [0, 1]}]


def planned(config: dict, results: str | Path = "results") -> FigurePlan:
    return FigurePlan(Plan(config, results=results, benchmarks="b"), resources="resources")


def own(grid: list | None = None, *, options: dict | None = None, name: str = "thp1", **settings) -> FigurePlan:
    """The plan of one screen of the user's own."""
    screens = {"cells": {**OWN, "options": options or {}}}
    experiment = {"screen": "cells", "grid": SEEDS if grid is None else grid, **settings}
    return planned({"experiments": [name], "screens": screens, "settings": {name: experiment}})


def pictures(files: list[str]) -> list[str]:
    return [file for file in files if file.endswith(".png")]


# ---- which figures -------------------------------------------------------------------------------------------------


def test_figures_follow_from_what_the_data_have():
    assert own().figures("thp1") == [
        "data_card",
        "scores",
        "worth",
        "bound",
        "masks",
        "effects",
        "expression",
        "curves",
    ]
    assert "combinations" in own(options={"separator": "+"}).figures("thp1")
    assert "masks" not in own([{"model": "cond_vae"}]).figures("thp1")
    imported = own([{"model": "sams_vae_corr", "checkpoint": ["a.ckpt"]}])
    assert "curves" not in imported.figures("thp1") and "masks" in imported.figures("thp1")


def test_simulations_have_a_truth_and_no_tests_without_counts_and_controls(configuration):
    plan = planned(configuration("config.yaml"))
    assert "recovery" in plan.figures("simulation_sams") and "recovery" not in plan.figures("replogle")
    assert "expression" not in plan.figures("simulation_sams")  # real values
    assert "expression" not in plan.figures("simulation_svae")  # no control cells
    assert "combinations" in plan.figures("norman_ood") and "combinations" not in plan.figures("replogle")


def test_a_transfer_has_the_figures_that_need_no_test_cells(configuration):
    """New perturbations are scored in a table of their own, and old ones have test cells only on request."""
    plan = planned(configuration("config.yaml"))
    for name in ("simulation_transfer", "replogle_transfer", "norman_transfer"):
        assert {"data_card", "curves"} <= set(plan.figures(name)) <= {"data_card", "curves", "transfer"}
        assert "transfer" in plan.features(name) and plan.pathway_files(name) == []
    with_test = own(split={"kind": "transfer", "conditions": ["a"]}, transfer={})
    assert {"scores", "worth", "masks"} <= set(with_test.figures("thp1"))
    without = own(split={"kind": "transfer", "conditions": ["a"], "test_fraction": 0}, transfer={})
    assert "scores" not in without.figures("thp1")
    # Table 1 is not repeated where a pathway is held out
    assert [each["experiment"] for each in plan.reproductions() if each["task"] == "replogle"] == ["replogle"]


def test_every_need_is_a_feature():
    assert {need for row in FIGURES.values() for need in row.needs} <= set(FEATURES)


@pytest.mark.parametrize("figure", FIGURES)
def test_a_row_of_the_registry_is_what_its_module_takes_and_saves(figure):
    row, module = FIGURES[figure], importlib.import_module(f"samsvae.figures.{figure}")
    assert set(inspect.signature(module.tables).parameters) == {*row.inputs, *row.settings}
    assert tuple(module.SAVED) == row.saved
    assert set(row.inputs.values()) <= set(FILES) and set(row.settings) <= set(SETTINGS)


def test_every_file_and_setting_is_used():
    assert set(FILES) == {kind for row in FIGURES.values() for kind in row.inputs.values()}
    assert set(SETTINGS) == {name for row in FIGURES.values() for name in row.settings}


# ---- names ---------------------------------------------------------------------------------------------------------


def test_two_own_screens_in_one_study():
    screens = {"a": OWN, "b": {**OWN, "options": {"separator": "+"}}}
    settings = {"thp1": {"screen": "a", "grid": SEEDS}, "my-k562": {"screen": "b", "grid": SEEDS}}
    plan = planned({"experiments": ["thp1", "my-k562"], "screens": screens, "settings": settings})
    targets = plan.targets()
    assert targets["thp1"][0] == "results/figures/thp1/data_card.png"
    assert "results/figures/my-k562/combinations.png" in targets["my-k562"]
    assert pictures(targets["training_curves"]) == [
        f"results/figures/{name}/curves.png" for name in ("thp1", "my-k562")
    ]
    assert len(plan.pictures()) == len(set(plan.pictures())) == 17


@pytest.mark.parametrize("name", ["../x", "/x", "a b", "a.b", "", "-a", "a/b", "x{y}", "a\nb", "é"])
def test_a_name_that_cannot_be_a_file_is_an_error(name):
    with pytest.raises(ConfigError, match="is not allowed as a name"):
        own(name=name)


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "-a", "x{y}"])
def test_a_screen_that_cannot_be_a_folder_is_refused(name):
    settings = {"thp1": {"screen": name, "grid": SEEDS}}
    with pytest.raises(ConfigError, match=r"screens: .* is not allowed as a name"):
        planned({"experiments": ["thp1"], "screens": {name: OWN}, "settings": settings})


def test_a_name_that_yaml_reads_as_a_number():
    config = {"experiments": ["7"], "screens": {"cells": OWN}, "settings": {7: {"screen": "cells", "grid": SEEDS}}}
    config["settings"]["other"] = config["settings"][7]
    plan = planned(config).plan
    assert list(plan.runs) == ["7"] and list(json.loads(plan.config_in_force())["settings"]) == ["7", "other"]


@pytest.mark.parametrize("name", ["data", "figures", "report", "all", "training_curves", "replogle_table1", "preview"])
def test_a_name_that_is_taken_is_an_error(name):
    with pytest.raises(ConfigError, match=f"'{name}' is already the name of"):
        own(name=name)


def test_an_experiment_is_not_called_like_a_figure_of_another():
    settings = {name: {"screen": "a", "grid": SEEDS} for name in ("thp1", "thp1_masks")}
    with pytest.raises(ConfigError, match="'thp1_masks' is already the name"):
        planned({"experiments": list(settings), "screens": {"a": OWN}, "settings": settings})


@pytest.mark.parametrize("name", ["model", "reference", "training"])
def test_a_figure_is_not_called_like_a_rule_or_target(name):
    with pytest.raises(ConfigError, match=f"'{name}' is not allowed as a name, because its figure would be called"):
        own(name=name)


def test_no_two_targets_have_one_name(configuration):
    config = configuration("config.yaml")
    config["experiments"] = ["simulation"]
    config["settings"]["simulation"] = config["settings"]["simulation_sams"]
    with pytest.raises(ConfigError, match="would be called 'simulation_recovery'"):
        planned(config)


def test_names_of_rules_and_folders_are_reserved(root):
    named = set()
    for path in (root / "Snakefile", *(root / "rules").glob("*.smk")):
        named |= set(re.findall(r"^rule (\w+):", path.read_text(), flags=re.M))
    assert named <= set(RESERVED)
    assert {"data", "sources", "figures", "logs", "benchmarks", "preview"} <= set(RESERVED)


#: Target names that the README promised before figures belonged to every experiment.
PROMISED = (
    *("replogle_masks", "replogle_effects", "replogle_table1", "replogle_de", "norman_ood", "norman_efficiency"),
    *("simulation_recovery", "training_curves", "data_cards"),
)


@pytest.mark.parametrize("config", ["config.yaml", "core.yaml", "demo.yaml"])
def test_targets_of_earlier_versions_still_work(configuration, config):
    plan = planned(configuration("config.yaml", config))
    figures = {f"{experiment}_{figure}" for experiment, figure in plan.every()}
    assert set(PROMISED) <= figures | set(plan.targets())
    assert pictures(plan.targets()["replogle_table1"]) == ["results/figures/replogle/scores.png"]
    assert len(pictures(plan.targets()["simulation_recovery"])) == 2


def test_results_of_an_earlier_version_are_named(tmp_path):
    plan = Plan({"experiments": ["thp1"], "screens": {"a": OWN}, "settings": {"thp1": {"screen": "a", "grid": SEEDS}}},
                results=tmp_path, benchmarks="b")  # fmt: skip
    assert FigurePlan(plan, resources="r").old_layout() == ""
    (tmp_path / "figures" / "thp1").mkdir(parents=True)
    (tmp_path / "figures" / "thp1" / "scores.png").touch()
    assert FigurePlan(plan, resources="r").old_layout() == ""
    (tmp_path / "figures" / "replogle_masks.png").touch()
    said = FigurePlan(plan, resources="r").old_layout()
    assert "replogle_masks.png" in said and "--touch --forceall" in said and f"{tmp_path}/thp1/scores.tsv" in said


# ---- runs and files of figures -------------------------------------------------------------------------------------


def ids(found: list) -> list[str]:
    return [run.id for run in found]


def test_figures_of_one_run_take_the_most_data_and_the_first_split(configuration):
    plan = planned(configuration("config.yaml", "core.yaml"))
    assert {run.split for run in plan.pinned("norman_ood")} == {"norman_ood-split0-frac1"}
    assert {run.dataset for run in plan.pinned("simulation_sams")} == {"simulation_sams-cells500-draw0"}
    assert {run.axes["split_seed"] for run in plan.ample("norman_ood")} == {0, 1, 2, 3, 4}
    assert len(plan.pinned("replogle")) == 90


def test_figures_compare_what_the_configuration_says(configuration):
    config = configuration("config.yaml")
    plan = planned(config)
    assert {run.model.n_latent for run in plan.restricted("replogle")} == {100}
    assert {run.model.n_layers for run in plan.restricted("norman_ood")} == {1}
    config["settings"]["replogle"]["compared"] = {"n_latent": 99}
    with pytest.raises(ConfigError, match=r"settings.replogle.compared.n_latent: no run has 99.*100, 200"):
        planned(config)
    config["settings"]["replogle"]["compared"] = {"n_latnt": 100}
    with pytest.raises(ConfigError, match=r"settings.replogle.compared: unknown axis 'n_latnt'.*'n_latent'"):
        planned(config)
    grid = [{"model": "cond_vae", "n_latent": [3, 4]}, {"model": "sams_vae_corr", "mask_prior": [0.1], "n_latent": [4]}]
    with pytest.raises(ConfigError, match=r"compared.mask_prior: no run has 0.2"):
        own(grid, compared={"n_latent": 4, "mask_prior": 0.2})


def test_a_setting_that_is_no_axis_of_the_grid_restricts_nothing():
    assert len(own(compared={"n_latent": 100}).restricted("thp1")) == 4


def test_a_fixed_setting_counts_where_another_block_has_an_axis():
    """The table of scores has a column of the axis, with the value of every run; all figures restrict by it."""
    grid = [{"model": "cond_vae", "n_latent": [3, 4]}, {"model": "cpa_vae_corr", "n_latent": 5}]
    assert ids(own(grid, compared={"n_latent": 4}).restricted("thp1")) == ["cond_vae-latents4"]


@pytest.mark.parametrize(
    ("grid", "compared"),
    [
        ([{"model": "cond_vae", "n_latent": [3, 4]}, {"model": "sams_vae_corr", "n_latent": [4]}], {"n_latent": 3}),
        ([{"model": "cond_vae", "test_fraction": 0.1}, {"model": "sams_vae_corr", "test_fraction": 0.2}], {}),
    ],
)
def test_masks_need_a_model_with_masks_among_the_runs_that_figures_show(grid, compared):
    plan = own(grid, compared=compared)
    assert "masks" not in plan.figures("thp1")
    assert all(plan.inputs("thp1", figure) for figure in plan.figures("thp1"))


def test_at_most_four_methods_are_compared(configuration):
    plan = planned(configuration("config.yaml", "core.yaml"))
    rows = {run.row for run in plan.compared(plan.pinned("replogle"))}
    assert rows == {"sams_vae_corr", "cpa_vae_corr", "cond_vae", "svae_plus"}
    three = own([{"model": ["vae", "ivae", "svae"]}])
    assert {run.row for run in three.compared(three.pinned("thp1"))} == {"vae", "ivae", "svae"}
    five = own([{"model": ["vae", "ivae", "svae", "beta_vae", "cpa_vae_mf"]}])
    assert len({run.row for run in five.compared(five.pinned("thp1"))}) == 4


def test_a_figure_reads_the_first_seed_of_every_setting():
    grid = [
        {"model": "sams_vae_corr", "mask_prior": [0.1], "seed": [0, 1]},
        {"model": "sams_vae_corr", "mask_prior": [0.2], "seed": [3, 2]},
        {"model": "sams_vae_mf", "mask_prior": [0.1], "seed": [0]},
    ]
    plan = own(grid, shown="sams_vae_corr")
    effects = plan.inputs("thp1", "effects")
    first = ["sams_vae_corr-alpha0.1-seed0", "sams_vae_corr-alpha0.2-seed2"]
    assert effects["effects"] == [f"results/thp1/runs/{run}/effects.h5ad" for run in first]
    assert len(effects["scores"]) == 4  # which setting is shown, the scores of all its seeds decide
    masks = plan.inputs("thp1", "masks")
    assert len(masks["scores"]) == len(masks["perturbations"]) == 5  # all seeds: do they find the same masks?
    assert len(own(grid).inputs("thp1", "effects")["effects"]) == 3  # without `shown` every model is a candidate


def test_annotation_is_scored_if_there_is_one():
    annotated = own(options={"annotation": "pathways.tsv"})
    assert annotated.pathway_files("thp1") == [f"results/thp1/pathways/sams_vae_corr-seed{seed}.tsv" for seed in (0, 1)]
    assert annotated.pathway_baselines("thp1") == ["results/thp1/splits/cells/random/pathways.tsv"]
    assert own().pathway_files("thp1") == own().pathway_baselines("thp1") == []


def test_expression_is_tested_for_the_runs_that_train_together(configuration):
    """A job per batch, for the runs that the figure may show: the first seed of each setting."""
    config = configuration("config.yaml", "demo.yaml")
    config["settings"]["replogle"] |= {"grid": [{"model": ["sams_vae_corr", "cond_vae", "svae_plus"], "seed": [0, 1]}]}
    for size, found in ((1, [["a"], ["b"], ["c"]]), (4, [["a", "b"], ["c"]])):
        names = {"a": "sams_vae_corr-seed0", "b": "cond_vae-seed0", "c": "svae_plus-seed0"}
        expected = [[names[letter] for letter in batch] for batch in found]
        plan = planned(config | {"runs_per_job": size})
        batches = [f"replogle.random.{i}" for i in (0, 1)] if size > 1 else list(names.values())
        files = plan.inputs("replogle", "expression")
        for kind in ("tests", "agreement"):
            assert files[kind] == [f"results/replogle/expression/{kind}/{name}.tsv" for name in batches]
        tested = [plan.tested(SimpleNamespace(experiment="replogle", batch=name)) for name in batches]
        assert [[run.id for run in runs] for runs in tested] == expected
    with pytest.raises(ConfigError, match=r"shows the expression of no batch 'replogle\.random\.7'\. Did you mean"):
        plan.tested(SimpleNamespace(experiment="replogle", batch="replogle.random.7"))


def test_pathways_are_predicted_for_the_runs_that_train_together(configuration):
    """A job per batch; a run that is in none has one of its own. Runs without masks are left out."""
    grid = [{"model": ["vae", "sams_vae_corr", "svae_plus"], "seed": [0, 1]}]
    config = configuration("config.yaml", "demo.yaml")
    config["settings"]["replogle"]["grid"] = grid
    plan = planned(config | {"runs_per_job": 4})
    names = [f"results/replogle/pathways/replogle.random.{i}.tsv" for i in (0, 1)]
    assert plan.pathway_files("replogle") == names
    look_up = plan.plan.each_masked("effects.h5ad")
    runs = [look_up(SimpleNamespace(experiment="replogle", batch=f"replogle.random.{i}")) for i in (0, 1)]
    assert [[Path(path).parent.name for path in paths] for paths in runs] == [
        ["sams_vae_corr-seed0", "sams_vae_corr-seed1"],
        ["svae_plus-seed0", "svae_plus-seed1"],
    ]
    assert look_up(SimpleNamespace(experiment="replogle")) == runs[0] + runs[1]
    with pytest.raises(ConfigError, match=r"has no masked runs in a batch 'replogle\.random\.7'\. Did you mean"):
        look_up(SimpleNamespace(experiment="replogle", batch="replogle.random.7"))


def test_published_numbers_belong_only_to_the_papers_screens(configuration):
    plan = planned(configuration("config.yaml", "core.yaml"))
    assert plan.inputs("replogle", "scores")["published"] == ["resources/published/replogle_table1.tsv"]
    assert plan.inputs("norman_ood", "combinations")["published"] == ["resources/published/norman_ood.csv"]
    efficiency = plan.inputs("norman_efficiency", "combinations")["published"]
    assert efficiency == ["resources/published/norman_data_efficiency.csv"]
    assert plan.settings("replogle", "scores")["comparable"] is True
    demo = planned(configuration("config.yaml", "demo.yaml"))
    assert demo.settings("replogle", "scores")["comparable"] is False  # a miniature
    assert demo.settings("norman_ood", "combinations")["comparable"] is False
    assert own(options={"separator": "+"}).inputs("thp1", "combinations")["published"] == []


def test_outputs_are_next_to_the_picture():
    found = own().outputs("thp1", "scores")
    assert found == {
        "pdf": "results/figures/thp1/scores.pdf",
        "data": "results/figures/thp1/scores.tsv",
        "data_runs": "results/figures/thp1/scores.runs.tsv",
        "data_fits": "results/figures/thp1/scores.fits.tsv",
        "data_baselines": "results/figures/thp1/scores.baselines.tsv",
        "data_per_condition": "results/figures/thp1/scores.per_condition.tsv",
    }


def test_targets_ask_for_every_file_of_a_figure():
    plan = own()
    files = plan.files()
    assert set(files) == {*plan.pictures(), *(f for each in plan.every() for f in plan.outputs(*each).values())}
    assert plan.targets()["thp1"] == files and len(files) == len(set(files))


# ---- look-ups of the rules -----------------------------------------------------------------------------------------


def test_inputs_of_a_run(configuration):
    plan = planned(configuration("config.yaml")).plan
    wildcards = SimpleNamespace(experiment="norman_ood", run="cond_vae-layers1-sum-split2-frac0.5")
    assert plan.arrays(wildcards) == "results/data/norman/arrays.npz"
    assert plan.split(wildcards) == "results/norman_ood/splits/norman/norman_ood-split2-frac0.5/cells.tsv"
    assert plan.together(wildcards) == [] and not plan.is_simulated(wildcards)
    assert plan.training(wildcards)["config"]["n_layers"] == 1


def test_an_unknown_name_is_an_error_that_names_the_nearest(configuration):
    plan = planned(configuration("config.yaml")).plan
    with pytest.raises(ConfigError, match=r"'replogel' is not listed.*Did you mean 'replogle'"):
        plan.experiment("replogel")
    with pytest.raises(ConfigError, match=r"has no run 'cond_vae-latents100-seed9'.*Did you mean"):
        plan.run(SimpleNamespace(experiment="replogle", run="cond_vae-latents100-seed9"))
    with pytest.raises(ConfigError, match="has no split 'norman/x'"):
        plan.split_settings(SimpleNamespace(experiment="norman_ood", dataset="norman", split="x"))


def test_runs_of_a_batch_share_their_data_and_failed_ones_get_a_job_of_their_own(configuration, tmp_path):
    config = configuration("config.yaml", "demo.yaml")
    plan = planned(config, tmp_path).plan
    name, found = next(iter(plan.batches["norman_ood"].items()))
    assert len({(run.dataset, run.split) for run in found}) == 1 and len(found) <= 8
    assert plan.trained_alone() == "(?!)"  # nothing has failed so far
    mark = plan.mark("norman_ood", name)
    mark.parent.mkdir(parents=True)
    mark.write_text(f"run\tstate\treason\n{found[0].id}\tfailed\tno luck\n")
    assert re.fullmatch(plan.trained_alone(), found[0].id)
    assert not re.fullmatch(plan.trained_alone(), found[1].id)


def test_a_transfer_adds_files_tables_and_parameters(configuration):
    plan = planned(configuration("config.yaml")).plan
    run = SimpleNamespace(experiment="replogle_transfer", run="ivae-pathwayEXOSOME-seed0")
    split = "results/replogle_transfer/splits/replogle/transfer-pathwayEXOSOME"
    assert plan.baselines(run) == [f"{split}/transfer.tsv"]
    found = plan.transfer(run)
    assert found["split"] == {
        "dataset": "replogle", "split_name": "transfer-pathwayEXOSOME", "held_out": "EXOSOME", "new_cells": 0,
    }  # fmt: skip
    assert found["settings"]["cells"] == (0, 10, 30, 100, "all")
    by_split = SimpleNamespace(experiment=run.experiment, dataset="replogle", split="transfer-pathwayEXOSOME")
    assert plan.transfer(by_split) == found
    other = SimpleNamespace(experiment="replogle", run="cond_vae-latents100-seed0")
    assert plan.transfer(other) is None and plan.baselines(other) == []
    assert plan.transfer_tables() == [
        f"results/{name}/transfer.tsv" for name in ("simulation_transfer", "replogle_transfer", "norman_transfer")
    ]
    assert len(plan.files_of(plan.run(run))) == len(plan.files_of(plan.run(other))) + 3
    names = plan.with_transfer().split("|"), plan.with_transfer(False).split("|")
    assert sorted(names[0] + names[1]) == sorted(plan.runs) and "norman_transfer" in names[0]

"""The workflow, run by Snakemake: plans of the papers, a complete study at the smallest size, reruns, own screens."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from samsvae.cli import main
from samsvae.evaluation.transfer_tables import read_transfer
from samsvae.interop.weights import to_reference
from samsvae.tables import read
from samsvae.training.checkpoint import load

EXPERIMENTS = ("replogle", "norman_ood", "norman_efficiency", "simulation_sams", "simulation_svae")
#: What the smoke study draws.
COMMON = ("data_card", "scores", "bound", "masks", "effects", "curves")
FIGURES = {
    "replogle": (*COMMON, "worth", "expression"),
    "norman_ood": (*COMMON, "worth", "expression", "combinations"),
    "norman_efficiency": (*COMMON, "worth", "expression", "combinations"),
    "simulation_sams": (*COMMON, "recovery"),
    "simulation_svae": (*COMMON, "recovery"),
    "replogle_transfer": ("data_card", "transfer", "curves"),
}
JOBS = [f"{experiment}_{figure}" for experiment, figures in FIGURES.items() for figure in figures]


#: Rules that run where Snakemake runs.
LOCAL = (
    "all",
    "take",
    "take_with_transfer",
    "write_grid",
    "write_config",
    "cost_table",
    "published",
    "report",
    "provenance",
    "download_source",
)


def snakemake(root: Path, where: Path, *arguments: str, config: Path | None = None, ok: bool = True) -> str:
    """Run Snakemake in a folder and return all that it printed."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile"), "--cores", "2"]
    command += ["--workflow-profile", str(root / "profiles" / "default")]
    command += ["--configfile", str(config)] if config else []
    done = subprocess.run([*command, *arguments], cwd=where, capture_output=True, text=True, timeout=500)
    text = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, text[-4000:]
    return text


def planned(text: str) -> dict[str, int]:
    """Number of jobs of each rule in a dry run; {} if there is nothing to be done."""
    table = text.rpartition("Job stats:")[2].partition("total")[0] if "Job stats:" in text else ""
    return {name: int(count) for name, count in re.findall(r"^([\w-]+)\s+(\d+)$", table, flags=re.M)}


# ---- plans ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "trainings", "replogle", "transfers"),
    [
        ("config.yaml", 180 + 2 * 1125 + 200 + 90, 180, 625 + 560 + 65),
        ("core.yaml", 90 + 2 * 225 + 290, 90, 475 + 360 + 45),
    ],
)
def test_the_papers_are_planned_completely(root, tmp_path, config, trainings, replogle, transfers):
    plan = planned(snakemake(root, tmp_path, "--dry-run", config=root / "config" / config))
    assert plan["train"] == trainings and plan["train_with_transfer"] == transfers
    # splits: five data seeds with 0, 10 and all new cells in the training, eight pathways, Norman
    assert plan["transfer_baselines"] == 15 + 8 + 1 and plan["collect_transfer"] == 3
    assert plan["download_source"] == 2 and plan["filter_replogle"] == plan["filter_norman"] == 1
    assert plan["simulate_sams"] == 25 and plan["simulate_sparse_shift"] == 5
    assert all(plan[figure] == 1 for figure in JOBS)
    masked = {180: 30 * 5, 90: 15 * 5}[replogle]
    assert plan["pathway_accuracy"] == masked and plan["pathway_baseline"] == 1
    assert plan["model_expression"] == 8 + 2 * 7  # the first seeds of the methods compared
    one = planned(snakemake(root, tmp_path, "--dry-run", "--", "replogle_table1", config=root / "config" / config))
    assert one["train"] == replogle


def test_only_trainings_request_a_gpu(root, tmp_path):
    text = snakemake(root, tmp_path, "--dry-run", config=root / "tests" / "smoke.yaml")
    rules = {rule for rule, body in re.findall(r"^rule (\w+):\n((?:    .*\n)+)", text, flags=re.M) if "gpu=1" in body}
    assert rules == {"train", "train_with_transfer"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"experiments": ["replogel"]}, "Did you mean 'replogle'"),
        ({"settings": {"replogle": {"grid": [{"model": ["sams_vae_cor"]}]}}}, "Did you mean 'sams_vae_corr'"),
        ({"settings": {"replogle": {"traning": {}}}}, "Did you mean 'training'"),
        ({"settings": {"norman_ood": {"split": {"test_pairs": 1.5}}}}, "test_pairs: 1.5 is not a fraction"),
        ({"settings": {"replogle": {"model": {"n_latent": "many"}}}}, "n_latent: 'many'"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(root, tmp_path, change, said):
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(change))
    text = snakemake(root, tmp_path, "--dry-run", config=tmp_path / "wrong.yaml", ok=False)
    assert said in text and "Traceback" not in text


def test_a_fault_that_snakemake_does_not_see_is_one_sentence_with_its_line(root, tmp_path):
    """Snakemake itself would take the last of two equal keys."""
    (tmp_path / "twice.yaml").write_text("title: a\ndevice: cpu\ntitle: b\n")
    text = snakemake(root, tmp_path, "--dry-run", config=tmp_path / "twice.yaml", ok=False)
    assert "twice.yaml, line 3: the key 'title' is given twice (also in line 1)" in text and "Traceback" not in text


def test_a_new_address_does_not_download_a_source_again(root, tmp_path):
    """A mirror added after the download changes nothing; a new checksum means a new file."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.h5ad").write_bytes(b"a source")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/a.h5ad"
    target, config = "results/sources/norman.h5ad", tmp_path / "c.yaml"

    def write(urls: list[str], checksum: str) -> None:
        source = {"size": 8, "checksum": checksum, "urls": urls}
        config.write_text(yaml.safe_dump({"screens": {"norman": {"source": source}}, "experiments": ["norman_ood"]}))

    right = f"md5:{hashlib.md5(b'a source').hexdigest()}"
    write([address], right)
    snakemake(root, tmp_path, "--", target, config=config)
    server.shutdown()
    server.server_close()
    assert (tmp_path / target).read_bytes() == b"a source"
    write(["http://127.0.0.1:9/mirror", address], right)
    assert planned(snakemake(root, tmp_path, "--dry-run", "--", target, config=config)) == {}
    write([address], f"md5:{0:032}")
    plan = planned(snakemake(root, tmp_path, "--dry-run", "--", target, config=config))
    assert plan == {"download_source": 1}


def jobs_of(text: str, rule: str) -> set[str]:
    """The runs or batches for which a dry run has jobs of a rule."""
    bodies = re.findall(rf"^rule {rule}:\n((?:    .*\n)+)", text, flags=re.M)
    return {re.search(r"wildcards: .*(?:run|batch)=(\S+)", body).group(1) for body in bodies}


def test_a_figure_needs_the_first_seed_of_every_setting(root, tmp_path):
    """Only training decides which setting is shown, so every setting gets the files, for its first seed."""
    config = yaml.safe_load((root / "tests" / "smoke.yaml").read_text())
    config["settings"]["replogle"]["grid"] = [
        {"model": "sams_vae_corr", "mask_prior": [0.1], "seed": [0, 1]},
        {"model": "sams_vae_corr", "mask_prior": [0.2], "seed": [3, 2]},
        {"model": "sams_vae_mf", "mask_prior": [0.1], "seed": [0]},
    ]
    (tmp_path / "seeds.yaml").write_text(yaml.safe_dump(config))
    text = snakemake(root, tmp_path, "--dry-run", "--", "replogle_de", config=tmp_path / "seeds.yaml")
    expected = {"sams_vae_corr-alpha0.1-seed0", "sams_vae_corr-alpha0.2-seed2", "sams_vae_mf-alpha0.1-seed0"}
    assert jobs_of(text, "model_expression") == expected
    text = snakemake(root, tmp_path, "--dry-run", "--", "replogle_effects", config=tmp_path / "seeds.yaml")
    assert len(jobs_of(text, "train")) == 4 and "collect" not in planned(text)  # not for the score table
    (tmp_path / "seeds.yaml").write_text(yaml.safe_dump(config | {"runs_per_job": 4}))
    text = snakemake(root, tmp_path, "--dry-run", "--", "replogle_de", config=tmp_path / "seeds.yaml")
    assert jobs_of(text, "model_expression") == {"replogle.random.0", "replogle.random.1"}  # four runs, and one


def test_the_target_of_an_experiment_is_all_its_figures(root, tmp_path):
    text = snakemake(root, tmp_path, "--dry-run", "--", "norman_ood", config=root / "tests" / "smoke.yaml")
    plan = planned(text)
    assert all(plan[f"norman_ood_{figure}"] == 1 for figure in FIGURES["norman_ood"])
    assert plan["collect"] == 1 and not any(name.startswith("replogle_") for name in plan)


def test_two_own_screens_are_two_experiments(root, tmp_path):
    """Each gets the figures that its data allow, and a figure of one does not train the other."""
    grid = [{"model": ["sams_vae_corr", "cond_vae"], "seed": [0]}]
    config = {"experiments": ["thp1", "my-k562"], "pathvars": {"results": "own"}}
    config["settings"] = {name: {"screen": name, "grid": grid} for name in config["experiments"]}
    config["screens"] = {"thp1": {"kind": "custom", "source": {"path": "a.h5ad"}}}
    config["screens"]["my-k562"] = {
        "kind": "custom", "source": {"path": "b.h5ad"}, "options": {"separator": "+"},
    }  # fmt: skip
    for name in "ab":
        (tmp_path / f"{name}.h5ad").touch()
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    plan = planned(snakemake(root, tmp_path, "--dry-run", config=tmp_path / "own.yaml"))
    assert {name for name in plan if name.startswith("thp1_")} == {
        f"thp1_{f}" for f in (*COMMON, "worth", "expression")
    }
    assert plan["my-k562_combinations"] == plan["my-k562_masks"] == 1 and plan["train"] == 4
    text = snakemake(root, tmp_path, "--dry-run", "--", "my-k562_combinations", config=tmp_path / "own.yaml")
    assert jobs_of(text, "train") == {"sams_vae_corr-seed0", "cond_vae-seed0"}
    assert planned(text)["filter_custom"] == 1


def test_the_slurm_profile_plans_every_job_with_its_resources(root, tmp_path):
    profile = ["--workflow-profile", str(root / "profiles" / "slurm"), "--executor", "dryrun"]
    text = snakemake(root, tmp_path, "--dry-run", *profile, config=root / "tests" / "smoke.yaml")
    found = re.findall(r"^(?:local)?rule ([\w-]+):\n((?:    .*\n)+)", text, flags=re.M)
    assert {name for name, _ in found} >= {"train_together", "take", "replogle_masks", "norman_ood_combinations"}
    for name, body in found:
        if name not in LOCAL:
            assert "mem_mb=" in body and "runtime=" in body, name
        assert ("gpu=1" in body) == (name == "train_together"), name


def test_an_unknown_run_is_an_error_that_names_the_nearest(root, tmp_path):
    target = "results/replogle/runs/sams_vae_corr-latents100-alpha0.01-seed7/model.pt"
    text = snakemake(root, tmp_path, "--dry-run", "--", target, ok=False)
    assert "has no run 'sams_vae_corr-latents100-alpha0.01-seed7'" in text and "Did you mean" in text


# ---- a complete study ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(root, tmp_path_factory) -> Path:
    """A copy of the checkout that tests may edit."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("rules", "workflow", "config", "profiles", "envs", "resources", "src", "tests"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(root / "Snakefile", copy)
    return copy


@pytest.fixture(scope="module")
def study(checkout, tmp_path_factory) -> Path:
    """The folder of a finished smoke study."""
    where = tmp_path_factory.mktemp("study")
    text = snakemake(checkout, where, "--", "all", "report", config=checkout / "tests" / "smoke.yaml")
    assert "100%" in text and text.count("No GPU") == 1  # printed once, not by every training
    line = r"This call took [\d hmins]+ \([\d,]+ CPU s on this machine\)\. (\d+) of (\d+) trainings are done"
    [(done, every)] = re.findall(line, text)
    assert done == every != "0"
    return where


def plan_of(checkout: Path, study: Path, *arguments: str, config: Path | None = None) -> dict[str, int]:
    config = config or checkout / "tests" / "smoke.yaml"
    plan = planned(snakemake(checkout, study, "--dry-run", *arguments, "--", "all", config=config))
    return {name: count for name, count in plan.items() if name != "all"}


@pytest.mark.slow
def test_every_figure_has_png_pdf_and_data(study):
    for experiment, figures in FIGURES.items():
        folder = study / "results" / "figures" / experiment
        assert {path.stem for path in folder.glob("*.png")} == set(figures)
        for figure in figures:
            assert (folder / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
            assert (folder / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
            data = list(folder.glob(f"{figure}*.tsv"))
            empty = {path.name for path in data if len(path.read_text().splitlines()) < 2}
            # a miniature has no published numbers, only Replogle's screen has an annotation, nothing is wrong with
            # these screens, and they have fewer than 10 test cells per condition
            allowed = {"combinations.published.tsv", "masks.accuracy.tsv", "masks.pathway.tsv"}
            allowed |= {"data_card.findings.tsv", *(path.name for path in folder.glob("worth*.tsv"))}
            allowed |= {"scores.per_condition.tsv", "effects.conditions.tsv"}
            # the only method of the SVAE+ paper has no claim, and a screen no true latents
            allowed |= {"transfer.verdicts.tsv", "transfer.latents.tsv"}
            assert data and empty <= allowed, figure


@pytest.mark.slow
def test_tables_are_complete_and_finite(study):
    for name in EXPERIMENTS:
        folder = study / "results" / name
        grid, scores = read(folder / "grid.tsv"), read(folder / "scores.tsv")
        runs = scores[scores["method"] != "baseline"]
        assert set(runs["run"]) == set(grid["run"])
        likelihood = runs[runs["metric"] == "iwelbo"]
        assert set(likelihood["split"]) == {"val", "test"} and np.isfinite(likelihood["value"]).all()
        assert set(read(folder / "histories.tsv")["run"]) == set(grid["run"]) == set(read(folder / "cost.tsv")["run"])
    metrics = set(read(study / "results" / "simulation_sams" / "scores.tsv")["metric"])
    assert {"mask_f1/true-positives", "mask_f1/correlation", "mcc_pearson", "latent_r2", "ate_pearson"} <= metrics
    assert "mask_pathway_accuracy/logistic" in set(read(study / "results" / "replogle" / "scores.tsv")["metric"])


@pytest.mark.slow
def test_the_transfer_of_a_study(study):
    folder = study / "results" / "replogle_transfer"
    table, grid = read_transfer(folder / "transfer.tsv"), read(folder / "grid.tsv")
    assert set(table["run"]) == {*grid["run"], "train_mean", "own_profile"}
    assert set(table["variant"]) == {"ours", "as_released", "statistics_kept"}
    assert set(table["held_out"]) == {"SPLICEOSOME"} and set(table["cells"]) == {"0", "10", "all"}
    means = table[table["perturbation"] == "(mean)"]
    assert np.isfinite(means[means["metric"].isin(["nelbo", "inll", "gain"])]["value"]).all()
    worth = read(folder / "worth.tsv")
    assert worth["reason"].notna().all() and len(worth[worth["run"].isin(grid["run"])]) == len(grid)
    assert set(read(folder / "scores.tsv").query("metric == 'iwelbo'")["split"]) == {"val"}


@pytest.mark.slow
def test_published_numbers_are_not_compared_with_a_miniature(study):
    table = read(study / "results" / "published.tsv")
    assert set(table["verdict"]) == {"not comparable: miniature screen"} and table["difference"].isna().all()
    assert len(table) == 21 + 2 * 270 and {"replogle", "norman_ood", "norman_efficiency"} == set(table["experiment"])
    assert table["mean"].notna().any()


@pytest.mark.slow
def test_score_tables_contain_the_baselines(study):
    scores = read(study / "results" / "norman_ood" / "scores.tsv")
    base = scores[scores["method"] == "baseline"]
    assert {"mean_of_perturbations", "additive", "intercept_nb"} <= set(base["model"])
    assert base["fraction"].notna().all() and base["split_seed"].notna().all()


@pytest.mark.slow
def test_the_report_contains_every_figure(study):
    page = (study / "results" / "report.html").read_text()
    for experiment, figures in FIGURES.items():
        for figure in figures:
            assert f"figures/{experiment}/{figure}.pdf" in page
    assert page.count("data:image/png;base64,") == len(JOBS)
    assert "provenance.html" in page and (study / "results" / "provenance.html").stat().st_size > 100_000


@pytest.mark.slow
def test_a_preview_shows_what_has_finished(checkout, study, tmp_path):
    """The page shows the finished runs and says so; the figures of the study do not change."""
    results = tmp_path / "results"
    shutil.copytree(study / "results", results, ignore=shutil.ignore_patterns(".trained", ".scored"))
    for run in ("cond_vae-seed0", "sams_vae_corr-alpha0.1-seed1"):
        shutil.rmtree(results / "replogle" / "runs" / run)
    shutil.rmtree(results / "simulation_sams" / "runs")
    before = {path: path.read_bytes() for path in (results / "figures").rglob("*") if path.is_file()}
    config = ["--configfile", str(checkout / "tests" / "smoke.yaml"), "--directory", str(tmp_path)]
    assert main(["preview", *config]) == 0
    page = (results / "preview" / "report.html").read_text()
    n = 5 + 3 + 3 + 2 + 3 + 2
    assert f"PREVIEW: {n - 4} of {n} trainings have finished" in page
    assert (results / "preview" / "figures" / "replogle" / "masks.png").is_file()
    assert not (results / "preview" / "figures" / "simulation_sams").exists()
    assert "cond_vae" not in (results / "preview" / "replogle" / "scores.tsv").read_text()
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_a_data_card_names_its_split(study):
    facts = read(study / "results/figures/norman_ood/data_card.facts.tsv").set_index("item")["value"]
    assert facts["data set"] == "norman" and facts["split"] == "norman_ood-split0-frac0"


@pytest.mark.slow
def test_nothing_is_done_twice(checkout, study):
    assert plan_of(checkout, study) == {}


@pytest.mark.slow
def test_a_table_of_a_figure_that_was_deleted_is_written_again(checkout, study):
    path = study / "results/figures/replogle/scores.runs.tsv"
    path.rename(path.with_suffix(".aside"))
    assert plan_of(checkout, study) == {"replogle_scores": 1}
    text = snakemake(checkout, study, "--dry-run", "--", "replogle", config=checkout / "tests" / "smoke.yaml")
    assert planned(text)["replogle_scores"] == 1
    path.with_suffix(".aside").rename(path)


@pytest.mark.slow
def test_a_damaged_table_is_named_and_can_be_repaired(checkout, study, tmp_path):
    """The jobs that read it fail with a sentence, and what that sentence says to do restores the same bytes."""
    shutil.copytree(study, tmp_path / "copy")
    folder = tmp_path / "copy" / "results" / "simulation_svae"
    damaged = folder / "runs" / "vae-draw0" / "scores.tsv"
    before = {path: path.read_bytes() for path in (damaged, folder / "scores.tsv")}
    damaged.write_bytes(b"".join(before[damaged].splitlines(keepends=True)[:-2]))
    command = ["--", "results/simulation_svae/scores.tsv"]
    text = snakemake(checkout, tmp_path / "copy", *command, config=checkout / "tests" / "smoke.yaml", ok=False)
    said = "results/simulation_svae/runs/vae-draw0/scores.tsv: the content does not match what was written"
    assert f"DataError: {said}" in text and not (folder / "scores.tsv").exists()
    damaged.unlink()
    snakemake(checkout, tmp_path / "copy", *command, config=checkout / "tests" / "smoke.yaml")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_one_figure_by_name_is_one_job(checkout, study):
    config = checkout / "tests" / "smoke.yaml"
    plan = planned(snakemake(checkout, study, "--dry-run", "--force", "--", "replogle_masks", config=config))
    assert plan == {"replogle_masks": 1}


@pytest.mark.slow
def test_a_changed_setting_reruns_only_what_depends_on_it(checkout, study, tmp_path):
    changed = yaml.safe_load((checkout / "tests" / "smoke.yaml").read_text())
    changed["settings"]["replogle"]["grid"][1]["seed"] = [0, 2]
    (tmp_path / "seed.yaml").write_text(yaml.safe_dump(changed))
    plan = plan_of(checkout, study, config=tmp_path / "seed.yaml")
    assert plan["train"] == 1 and plan["pathway_accuracy"] == 1 and "filter_replogle" not in plan
    assert not any(name.startswith(("norman_", "simulation_")) for name in plan)


@pytest.mark.slow
def test_an_edit_reruns_only_what_depends_on_it(checkout, study):
    figure = checkout / "src" / "samsvae" / "figures" / "masks.py"
    before = figure.read_text()
    figure.write_text(before + "\n# a comment changes nothing\n")
    assert plan_of(checkout, study) == {}
    figure.write_text(before + "\nEDITED = True\n")
    plan = plan_of(checkout, study)
    figure.write_text(before)
    assert "train" not in plan and plan["replogle_masks"] == 1

    scoring = checkout / "src" / "samsvae" / "evaluation" / "iwelbo.py"
    before = scoring.read_text()
    scoring.write_text(before + "\nEDITED = True\n")
    run = "results/simulation_sams/runs/sams_vae_corr-cells20-draw0"
    weights = (study / run / "model.pt").read_bytes()
    snakemake(checkout, study, "--", f"{run}/scores.tsv", config=checkout / "tests" / "smoke.yaml")
    log = (study / "results/logs/simulation_sams/train/sams_vae_corr-cells20-draw0.log").read_text()
    scoring.write_text(before)
    assert "already trained" in log and "steps/s" not in log  # scored again, not trained again
    assert (study / run / "model.pt").read_bytes() == weights


@pytest.mark.slow
def test_svae_plus_with_pairs_in_the_sum_encoding_is_an_error(checkout, study, tmp_path):
    changed = yaml.safe_load((checkout / "tests" / "smoke.yaml").read_text())
    changed["settings"]["norman_ood"]["grid"] = [
        {"model": ["svae_plus"], "encoding": ["sum"], "split_seed": [0], "fraction": [0, 1]}
    ]
    (tmp_path / "sum.yaml").write_text(yaml.safe_dump(changed))
    target = "results/norman_ood/runs/svae_plus-sum-split0-frac1/model.pt"
    text = snakemake(checkout, study, "--", target, config=tmp_path / "sum.yaml", ok=False)
    assert "ConfigError: encoding: 'sum' is not allowed" in text and "Allowed: 'unique'" in text


@pytest.mark.slow
def test_runs_that_share_a_process_equal_runs_in_separate_jobs(checkout, study, tmp_path):
    """The tables have the same bytes, with one start instead of several; a new seed trains only its own run."""
    config = yaml.safe_load((checkout / "tests" / "smoke.yaml").read_text())
    config |= {"runs_per_job": 3, "experiments": ["replogle"], "pathvars": {"results": "batched"}}
    path = tmp_path / "batched.yaml"
    path.write_text(yaml.safe_dump(config))
    target = "batched/replogle/scores.tsv"
    plan = planned(snakemake(checkout, study, "--dry-run", "--", target, config=path))
    assert plan["train_together"] == 2 and plan["take"] == 5 and "train" not in plan
    snakemake(checkout, study, "--", target, config=path)
    assert (study / target).read_bytes() == (study / "results/replogle/scores.tsv").read_bytes()
    states = pd.concat([read(file) for file in (study / "batched/replogle/together").glob("*.tsv")])
    assert len(states) == 5 and set(states["state"]) == {"done"}
    weights = study / "batched/replogle/runs/svae_plus-b5-seed0/.trained/model.pt"
    before = weights.stat().st_ino  # not its time, which Snakemake sets with that of the linked output
    config["settings"]["replogle"]["grid"][2]["seed"] = [0, 1]
    path.write_text(yaml.safe_dump(config))
    snakemake(checkout, study, "--", target, config=path)
    assert weights.stat().st_ino == before
    logs = study / "batched/logs/replogle"
    said = "".join(file.read_text() for file in (logs / "together").glob("*.0.log"))
    said += "".join(file.read_text() for file in (logs / "together").glob("*.1.log"))
    assert said.count("taken from the cache") == 2 and said.count(": done") == 4
    assert "best validation loss" in (logs / "together/svae_plus-b5-seed1.log").read_text()
    assert "trained together with other runs" in (logs / "train/svae_plus-b5-seed1.log").read_text()
    cost = read(study / "batched/replogle/cost.tsv").set_index("run")
    assert cost["job"].nunique() == 2 and cost.loc["svae_plus-b5-seed1", "job"].startswith("together/")
    assert (cost["job_seconds"] > cost["seconds"]).all()
    # a run that failed there is trained by the next call in a job of its own
    mark = next((study / "batched/replogle/together").glob("*.1.tsv"))
    state = mark.stat()
    mark.write_text(mark.read_text().replace("svae_plus-b5-seed1\tdone", "svae_plus-b5-seed1\tfailed"))
    os.utime(mark, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert planned(snakemake(checkout, study, "--dry-run", "--", target, config=path)) == {}
    run = "batched/replogle/runs/svae_plus-b5-seed1/scores.tsv"
    (study / run).unlink()
    assert planned(snakemake(checkout, study, "--dry-run", "--", run, config=path)) == {"train": 1}
    run = "batched/replogle/runs/svae_plus-b5-seed0/scores.tsv"
    (study / run).unlink()
    assert planned(snakemake(checkout, study, "--dry-run", "--", run, config=path)) == {"take": 1}


@pytest.mark.slow
def test_weights_of_the_release_get_the_scores_of_trained_ones(checkout, study, tmp_path):
    """The same weights in the format of the release get the same scores and a place in tables and figures."""
    rows = {"sams_vae_corr": {"mask_prior": 0.1}, "cpa_vae_corr": {}, "svae_plus": {"beta_b": 5}}
    first = {"sams_vae_corr": "sams_vae_corr-alpha0.1-seed0", "cpa_vae_corr": "cpa_vae_corr-seed0"}
    first["svae_plus"] = "svae_plus-b5-seed0"
    grid = []
    for row, settings in rows.items():
        model = load(study / "results/replogle/runs" / first[row] / "model.pt").model
        path = tmp_path / f"{row} best.ckpt"
        torch.save({"state_dict": {f"loss_module.{k}": v for k, v in to_reference(model).items()}}, path)
        grid.append({"model": [row], "checkpoint": str(path), **settings})
    config = yaml.safe_load((checkout / "tests" / "smoke.yaml").read_text())
    config["experiments"] = ["release"]
    config["settings"] = {"release": {**config["settings"]["replogle"], "screen": "replogle", "grid": grid}}
    (tmp_path / "release.yaml").write_text(yaml.safe_dump(config))
    snakemake(checkout, study, "--", "all", config=tmp_path / "release.yaml")
    columns = ["protocol", "metric", "split", "value"]
    ours, theirs = (read(study / "results" / name / "scores.tsv") for name in ("replogle", "release"))
    for row in rows:
        run = f"{row}-from_{row}_best-seed0"
        # imported weights have no fit to speak of
        found, wanted = (
            t.loc[(t["run"] == r) & (t["protocol"] != "fit"), columns] for t, r in ((theirs, run), (ours, first[row]))
        )
        assert len(found) > 10
        pd.testing.assert_frame_equal(found.reset_index(drop=True), wanted.reset_index(drop=True))
    config["experiments"], config["settings"] = ["replogle"], {"replogle": config["settings"]["release"]}
    (tmp_path / "release.yaml").write_text(yaml.safe_dump(config))
    plan = plan_of(checkout, study, config=tmp_path / "release.yaml")
    assert plan["import_checkpoint"] == 3 and "train" not in plan and plan["replogle_expression"] == 1
    figures = ["replogle_table1", "replogle_masks", "replogle_effects"]
    config["pathvars"] = {"results": "release"}
    (tmp_path / "release.yaml").write_text(yaml.safe_dump(config))
    snakemake(checkout, study, "--", *figures, config=tmp_path / "release.yaml")
    drawn = [study / "release/figures/replogle" / f"{name}.png" for name in ("scores", "masks", "effects")]
    assert all(path.stat().st_size > 20_000 for path in drawn)
    config["pathvars"] = {"results": "results"}
    config["settings"]["replogle"]["grid"][0]["mask_prior"] = 0.2
    (tmp_path / "release.yaml").write_text(yaml.safe_dump(config))
    target = "results/replogle/runs/sams_vae_corr-from_sams_vae_corr_best-seed0/model.pt"
    text = snakemake(checkout, study, "--", target, config=tmp_path / "release.yaml", ok=False)
    assert "sams_vae_corr best.ckpt: mask_prior is 0.1 in the weights, but 0.2 is expected" in text


# ---- real cells ----------------------------------------------------------------------------------------------------

#: Short trainings; the tests below hold for these steps and this seed.
REAL = {
    "experiments": ["custom"],
    "pathvars": {"results": "results"},
    "settings": {
        "custom": {
            "model": {"n_latent": 20, "width": 64, "embedding_layers": 2, "embedding_width": 64},
            "training": {
                "steps": 1000, "batch_size": 256, "learning_rate": 0.003, "rate_mask": 0.05, "rate_embedding": 0.02,
                "particles": 2, "validation_particles": 2, "validation_every": 4,
            },
            "evaluation": {"iwelbo_particles": 10, "bound_particles": 200, "bound_cells": 50, "ate_samples": 500},
            "grid": [
                {"model": ["sams_vae_corr"], "mask_prior": [0.1], "seed": [0]},
                {"model": ["svae_plus"], "beta_b": [5], "encoding": "unique", "seed": [0]},
            ],
        }
    },
}  # fmt: skip


def own_screen(root: Path, where: Path, source: Path, options: dict) -> Path:
    """Run the example's configuration on a screen, with short trainings; return the folder of results."""
    example = yaml.safe_load((root / "config" / "custom.example.yaml").read_text())
    config = {
        **example,
        **REAL,
        "settings": {"custom": {**example["settings"]["custom"], **REAL["settings"]["custom"]}},
    }
    config["screens"]["custom"] = {"kind": "custom", "source": {"path": str(source)}, "options": options}
    (where / "own.yaml").write_text(yaml.safe_dump(config))
    snakemake(root, where, config=where / "own.yaml")
    folder = where / "results" / "figures" / "custom"
    expected = {*COMMON, "worth", "expression", *(["combinations"] if options.get("separator") else [])}
    assert {path.stem for path in folder.glob("*.png")} == expected
    assert all(path.stat().st_size > 20_000 for path in folder.glob("*.png"))
    return where / "results"


def scores_of(results: Path) -> pd.DataFrame:
    scores = read(results / "custom" / "scores.tsv")
    assert np.isfinite(scores["value"]).all()
    return scores.set_index(["model", "protocol", "metric", "split"])["value"]


@pytest.mark.slow
def test_papalexi_end_to_end(root, tmp_path, shared):
    source = shared / "data/real/papalexi2021_thp1_crisprko_20729x299_counts.h5ad"
    example = yaml.safe_load((root / "config" / "custom.example.yaml").read_text())
    results = own_screen(root, tmp_path, source, example["screens"]["custom"]["options"])
    scores = scores_of(results)
    table = read(results / "figures" / "custom" / "scores.per_condition.tsv").pivot(
        index="condition", columns="model", values="value"
    )
    for model in ("sams_vae_corr", "svae_plus"):
        iwelbo = scores[model, "published", "iwelbo", "test"]
        assert iwelbo > scores["intercept_nb", "held-out", "log_likelihood", "test"]
        strong = table.loc[["IFNGR1", "IFNGR2", "JAK2", "STAT1"]]
        assert (strong[model] > 0.8 * strong["ceiling"]).all(), strong


@pytest.mark.slow
def test_norman_pairs_end_to_end(root, tmp_path, shared):
    source = shared / "data/real/norman2019_k562_crispra_3375x500_counts.h5ad"
    options = {
        "perturbation_column": "condition", "control": ["control"], "separator": "+", "library_size": "total_counts",
        "min_cells": 20, "zero_cells": "drop",
    }  # fmt: skip
    results = own_screen(root, tmp_path, source, options)
    scores = scores_of(results)
    for model in ("sams_vae_corr", "svae_plus"):
        iwelbo = scores[model, "published", "iwelbo", "test"]
        assert iwelbo > scores["intercept_nb", "held-out", "log_likelihood", "test"]
        pearson = scores[model, "held-out", "ate_pearson", "test"]
        assert pearson > scores["mean_of_perturbations", "held-out", "ate_pearson", "test"]
    record = json.loads((results / "custom/runs/sams_vae_corr-alpha0.1-seed0/run.json").read_text())
    assert record["steps"] == 1000 and record["device"]


@pytest.mark.slow
def test_a_wrong_column_names_the_nearest(root, tmp_path, shared):
    source = shared / "data/real/norman2019_k562_crispra_3375x500_counts.h5ad"
    config = {
        "experiments": ["custom"],
        "screens": {
            "custom": {
                "kind": "custom",
                "source": {"path": str(source)},
                "options": {"perturbation_column": "conditon"},
            }
        },
        "settings": {"custom": {"screen": "custom", "grid": [{"model": ["cpa_vae_mf"], "seed": [0]}]}},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    text = snakemake(root, tmp_path, "--", "results/data/custom/screen.h5ad", config=tmp_path / "own.yaml", ok=False)
    assert re.search(r"DataError: .*norman2019.*'conditon'.*Did you mean 'condition'", text)

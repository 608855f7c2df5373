"""The preview of a study: which runs and figures it shows. A preview of real runs is in test_workflow."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from samsvae.cli import main
from samsvae.config.grid import run_settings
from samsvae.errors import DataError
from samsvae.files import write_table
from samsvae.study.code_digest import scoring_rules
from samsvae.study.cost import COST
from samsvae.study.plan import RUN_FILES, Plan
from samsvae.study.preview import write_preview
from samsvae.tables import read, write

CONFIG = {
    "experiments": ["thp1"],
    "screens": {"cells": {"kind": "custom", "source": {"path": "cells.h5ad"}}},
    "settings": {
        "thp1": {
            "screen": "cells",
            "grid": [{"model": "cond_vae", "n_latent": [3, 4]}],
            "compared": {"n_latent": 3},
        }
    },
}


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Plan:
    """The plan of a study in the current folder, without any results."""
    monkeypatch.chdir(tmp_path)
    return Plan(CONFIG, results="results", benchmarks="results/benchmarks")


def finish(plan: Plan, run_id: str, **changed) -> None:
    """Write the files of a run that scores, curves and tables read, and of its split; the others are empty."""
    run = plan.runs["thp1"][run_id]
    paths = {name: plan.results.absolute() / "thp1" / "runs" / run_id / file for name, file in RUN_FILES.items()}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    scores = (("iwelbo", "val"), ("iwelbo", "test"), ("ate_pearson", "all"))
    head = {"run": run_id, "protocol": "published"}
    write_table([{**head, "metric": metric, "split": split, "value": 1.0} for metric, split in scores], paths["scores"])
    bound = {"cells": "sample", "n_cells": 9, "particles": 10, "value": -3.0, "error": 0.1, "blocks": 10, "reason": ""}
    write_table([{"run": run_id, "protocol": "honest", "metric": "iwelbo", **bound}], paths["bound"])
    effect = {"metric": "pearson_centred", "set": "all", "condition": "A", "value": 0.5, "weight": 1.0}
    write_table([{"run": run_id, **effect}], paths["worth_conditions"])
    write_table([{"model": "shrunk", **effect}], plan.split_file(run, "worth_conditions.tsv"))
    write_table([{"run": run_id, "step": step, "val_loss": 9.0 - step} for step in (1, 2)], paths["history"])
    cost = dict.fromkeys(COST, 1) | {"device": "cpu", "torch": "2"}
    paths["run"].write_text(json.dumps({**cost, **run_settings(run), **changed}))


def drawn(plan: Plan) -> set[str]:
    """Write the preview and return the names of its pictures; the page shows the same."""
    page = write_preview(CONFIG, resources="resources")
    found = {path.stem for path in (page.parent / "figures").rglob("*.png")}
    assert page.read_text().count("data:image/png;base64,") == len(found)
    return found


def test_a_preview_without_a_finished_run_is_refused(plan):
    with pytest.raises(DataError, match="none of the 2 runs has finished"):
        write_preview(CONFIG, resources="resources")


def test_a_figure_is_drawn_once_the_runs_it_compares_have_finished(plan, caplog):
    caplog.set_level(logging.INFO, "samsvae")
    finish(plan, "cond_vae-latents4")
    assert drawn(plan) == set()
    assert "thp1: no figures yet: none of the runs that they compare has finished" in caplog.text
    finish(plan, "cond_vae-latents3")
    assert drawn(plan) == {"scores", "bound", "curves"}
    assert "thp1_effects: not drawn yet: the files of its references do not exist yet" in caplog.text


def test_runs_that_are_outdated_or_lack_a_file_are_not_shown(plan):
    finish(plan, "cond_vae-latents4")
    finish(plan, "cond_vae-latents3")
    assert "2 of 2 trainings" in write_preview(CONFIG, resources="resources").read_text()
    finish(plan, "cond_vae-latents3", encoding="unique")
    assert drawn(plan) == set()  # not even those of the preview before
    finish(plan, "cond_vae-latents3")
    (plan.results / "thp1/runs/cond_vae-latents3/history.tsv").unlink()
    assert "1 of 2 trainings" in write_preview(CONFIG, resources="resources").read_text()


def test_runs_that_older_code_scored_wait_for_the_current_code(plan, caplog):
    """After an update the workflow scores runs one after the other; scores by different rules are not compared."""
    caplog.set_level(logging.INFO, "samsvae")
    for run_id, rules in (("cond_vae-latents3", scoring_rules()), ("cond_vae-latents4", "older0000000")):
        finish(plan, run_id)
        path = Path(plan.run_file(plan.runs["thp1"][run_id], "scores.tsv"))
        write(read(path).assign(rules=rules), path)
    assert "1 of 2 trainings" in write_preview(CONFIG, resources="resources").read_text()
    assert "thp1: 1 runs are left out until the current code has scored them" in caplog.text
    write(read(path).assign(rules=scoring_rules()), path)
    assert "2 of 2 trainings" in write_preview(CONFIG, resources="resources").read_text()


def test_runs_without_a_score_by_the_current_code_are_no_preview(plan):
    """After an update the splits are scored before the runs."""
    finish(plan, "cond_vae-latents3")
    run = plan.runs["thp1"]["cond_vae-latents3"]
    scores, baselines = plan.run_file(run, "scores.tsv"), plan.split_file(run, "baselines.tsv")
    for path, rules in ((scores, "older0000000"), (baselines, scoring_rules())):
        write(read(scores).assign(rules=rules), path)
    with pytest.raises(DataError, match="runs have finished, but the current code has scored none of them yet"):
        drawn(plan)


def test_from_another_folder_the_command_prints_where_the_page_is(plan, tmp_path, monkeypatch, capsys):
    finish(plan, "cond_vae-latents3")
    (tmp_path / "own.yaml").write_text(json.dumps(CONFIG))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["preview", "--configfile", "../own.yaml", "--directory", ".."]) == 0
    page = capsys.readouterr().out.strip()
    assert Path(page).is_absolute() and Path(page).samefile(tmp_path / "results" / "preview" / "report.html")

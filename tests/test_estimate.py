"""The time of a study foretold: sums by hand, from rates that are given; and rates of a tiny shape."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from small import screen
from small_files import write_files

from samsvae import estimate as estimates
from samsvae.config import Study, build, runs
from samsvae.estimate import Line, Size, estimate, measure, report, shape_of, size_of, steps_of
from samsvae.progress import main

RATE = {"step": 0.01, "cell": 0.002, "condition": 0.5}


def study(results: Path, **changes) -> Study:
    """Six trainings of a simulation of 100 perturbations x (400 + 50 + 50) cells: 3 seeds x 2 priors of one shape."""
    block = {"model": "sams_vae_mf", "mask_prior": [0.1, 0.01], "seed": [0, 1, 2]} | changes
    return build(
        Study,
        {
            "experiments": ["sim"],
            "device": "cpu",
            "pathvars": {"results": str(results)},
            "screens": {"simulated": {"kind": "simulate_sparse_shift"}},
            "settings": {
                "sim": {"screen": "simulated", "training": {"steps": 1000, "batch_size": 32}, "grid": [block]}
            },
        },
    )


def test_sums_by_hand_and_a_shape_is_tried_once(tmp_path):
    tried = []

    def rate(run, shape, device):
        tried.append(shape)
        return RATE

    [line], unknown = estimate(study(tmp_path), device="cpu", rate=rate)
    assert unknown == [] and len(tried) == 1
    assert (tried[0]["genes"], tried[0]["perturbations"]) == (100, 100)
    assert (line.trainings, line.done, line.steps) == (6, 0, 6000)
    assert line.training == pytest.approx(6 * 1000 * 0.01)
    # a fifth to test, and of the rest a fifth to validate: 36 % of 50,000 cells
    assert line.scoring == pytest.approx(6 * (0.36 * 50_000 * 0.002 + 100 * 0.5))
    assert line.left == pytest.approx(line.training + line.scoring)
    again = estimate(study(tmp_path), device="cpu", rate=lambda *_: pytest.fail("tried again"))
    assert again == ([line], [])


def test_what_is_done_corrects_the_rest(tmp_path):
    for run in runs(study(tmp_path), "sim")[:2]:
        record = tmp_path / "sim" / "runs" / run.id / "run.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"seconds": 15.0}))
    [line], _ = estimate(study(tmp_path), device="cpu", rate=lambda *_: RATE)
    assert (line.done, line.foreseen, line.actual) == (2, pytest.approx(20.0), pytest.approx(30.0))
    assert line.left == pytest.approx(4 * 10 * 1.5 + line.scoring * 4 / 6)
    assert Line("e", 1, 1, 10, 5.0, 1.0, 5.0, 9.0).left == 0


def test_what_changes_the_work_is_a_shape_of_its_own(tmp_path):
    tried = []
    grid = {"model": ["sams_vae_mf", "sams_vae_corr"], "n_latent": [5, 10], "particles": [1, 2]}
    estimate(study(tmp_path, **grid), device="cpu", rate=lambda run, *_: tried.append(run) or RATE)
    assert len(tried) == 8


def test_sizes(root, tmp_path):
    base = build(Study, yaml.safe_load((root / "config" / "config.yaml").read_text()))
    sizes = {name: size_of(runs(base, name)[0], tmp_path) for name in base.experiments}
    assert sizes["replogle"] == Size(118_641, 1187, 681, 680) and sizes["norman_ood"].genes == 5000
    run = runs(study(tmp_path), "sim")[0]
    folder = tmp_path / "data" / run.dataset
    folder.mkdir(parents=True)
    write_files(folder, screen())
    assert size_of(run, tmp_path) == Size(120, 9, 6, 4)  # what is there counts
    [epochs] = {steps_of(run, Size(1000, 9, 6, 4)) for run in runs(study(tmp_path, epochs=3), "sim")}
    assert epochs == 3 * 20  # 640 cells in batches of 32


def test_data_of_unknown_size_are_named(tmp_path, root, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimates, "measure", None)  # nothing is tried
    demo = yaml.safe_load((root / "config" / "demo.yaml").read_text()) | {"experiments": ["replogle"]}
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(demo))
    main(["--base", str(root / "config" / "config.yaml"), "--configfile", "demo.yaml", "--estimate", "--jobs", "4"])
    said = capsys.readouterr().out
    assert "replogle: not known before its data are there" in said and "0.0 h with 4 at a time" in said


@pytest.mark.parametrize("name", ["sams_vae_corr", "svae_plus_lopez", "cond_vae"])
def test_rates_of_a_tiny_shape(tmp_path, name):
    """Three calls of a clock that ticks once each: the difference of two trainings, by steps, and so on."""
    own = study(tmp_path, model=name, mask_prior=0.1, seed=0, n_latent=3, width=8, embedding_width=8)
    [run], ticks = runs(own, "sim"), iter(np.cumsum([0, 9, 0, 5, 0, 7, 0, 9, 0, 3, 0, 2]).tolist())
    shape = shape_of(run, Size(500, 12, 7, 6), own.settings["sim"].evaluation)
    shape["evaluation"][1] = 20
    found = measure(run, shape, "cpu", steps=2, clock=lambda: next(ticks))
    assert found == {"step": (7 - 5) / 2, "cell": 3 / 32 * 100 / 64, "condition": 2.0}


def test_the_report():
    lines = [Line("a", 10, 2, 1000, 7200.0, 3600.0, 1440.0, 1440.0), Line("b", 1, 0, 0, 0.0, 0.0, 0.0, 0.0)]
    said = report(lines, ["c"], device="cpu", jobs=4).splitlines()
    assert said[1].split() == ["a", "10", "2", "7200.0", "2.00", "1.00", "0.40", "0.40"]
    assert said[3].startswith("c: not known") and said[4].startswith("left: 2.4 h") and "0.6 h with 4" in said[4]

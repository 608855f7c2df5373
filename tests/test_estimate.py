"""The estimated time of a study: sums by hand from given rates, and measured rates of a tiny shape."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_files import write_files
from small_model import model, screen

from samsvae.cli import main
from samsvae.config.grid import run_settings, runs
from samsvae.config.study import Study
from samsvae.config.validate import build
from samsvae.data.cells import cells_of, encode
from samsvae.errors import ConfigError
from samsvae.screens.simulate import sparse_shift
from samsvae.study import estimate as estimates
from samsvae.study.estimate import Estimate, estimate, estimate_report, measure, shape_of, work_of
from samsvae.study.sizes import Size, size_of
from samsvae.study.times import read_estimates, training_key
from samsvae.training.loop import train

RATE = {"step": 0.01, "validation": 0.0001, "cell": 0.002, "condition": 0.5}


def study(
    results: Path, *, split: dict | None = None, screen: dict | None = None, transfer: dict | None = None, **changes
) -> Study:
    """Six trainings of a simulation of 100 perturbations x (400 + 50 + 50) cells, of which the last 20 are held out:
    3 seeds x 2 priors of one shape."""
    block = {"model": "sams_vae_mf", "mask_prior": [0.1, 0.01], "seed": [0, 1, 2]} | changes
    return build(
        Study,
        {
            "experiments": ["sim"],
            "device": "cpu",
            "pathvars": {"results": str(results)},
            "screens": {"simulated": screen or {"kind": "simulate_sparse_shift"}},
            "settings": {
                "sim": {
                    "screen": "simulated",
                    "split": split or {"kind": "given"},
                    "transfer": transfer,
                    "training": {"steps": 1000, "batch_size": 32},
                    "grid": [block],
                }
            },
        },
    )


def test_sums_by_hand_and_a_shape_is_timed_once(tmp_path):
    tried = []

    def rate(run, shape, device):
        tried.append(shape)
        return RATE

    [found], unknown = estimate(study(tmp_path), device="cpu", rate=rate)
    assert unknown == [] and len(tried) == 1
    assert (tried[0]["genes"], tried[0]["perturbations"]) == (100, 100)
    assert (found.trainings, found.done, found.steps) == (6, 0, 6000)
    # 32,000 cells are 1,000 batches: one epoch, and one validation of 4,000 cells
    assert found.training == pytest.approx(6 * (1000 * 0.01 + 4000 * 0.0001))
    assert found.scoring == pytest.approx(6 * (8000 * 0.002 + 500 * 100 * 0.002 + 100 * 0.5))
    assert found.left == pytest.approx(found.training + found.scoring)
    again = estimate(study(tmp_path), device="cpu", rate=lambda *_: pytest.fail("timed again"))
    assert again == ([found], [])
    of_runs = [read_estimates(tmp_path)[training_key("sim", run_settings(run))] for run in runs(study(tmp_path), "sim")]
    assert of_runs == [pytest.approx(found.training / 6)] * 6  # for the last line of the study


def test_done_runs_correct_the_estimate_of_the_rest(tmp_path):
    for number, run in enumerate(runs(study(tmp_path), "sim")[:3]):
        record = tmp_path / "sim" / "runs" / run.id / "run.json"
        record.parent.mkdir(parents=True)
        other = {"encoding": "unique"} if number == 2 else {}  # other settings than the current ones: to be rerun
        record.write_text(json.dumps(run_settings(run) | other | {"seconds": 15.0}))
    [found], _ = estimate(study(tmp_path), device="cpu", rate=lambda *_: RATE)
    assert (found.done, found.done_estimated, found.done_actual) == (2, pytest.approx(20.8), pytest.approx(30.0))
    assert found.left == pytest.approx(4 * 15.0 + found.scoring * 4 / 6)
    assert Estimate("e", 1, 1, 10, 5.0, 1.0, 5.0, 9.0).left == 0


def test_settings_that_change_the_work_give_another_shape(tmp_path):
    tried = []
    grid = {"model": ["sams_vae_mf", "sams_vae_corr"], "n_latent": [5, 10], "particles": [1, 2]}
    estimate(study(tmp_path, **grid), device="cpu", rate=lambda run, *_: tried.append(run) or RATE)
    assert len(tried) == 8


def test_sizes_of_the_papers(root, tmp_path):
    """A quarter of the 131 pairs with equal shares of 41,759 cells, and so on, except for rounding."""
    base = build(Study, yaml.safe_load((root / "config" / "config.yaml").read_text()))
    first = {name: size_of(runs(base, name)[0], tmp_path) for name in base.experiments}
    # 80 % of 118,641 are 94,912 (rounded down); of them 75,929
    assert first["replogle"] == Size(75_929, 18_983, 23_729, 1187, 723, 722)
    assert first["simulation_sams"] == Size(1000, 10_000, 10_000, 100, 100, 100)  # 10 cells each to train on
    assert first["simulation_svae"] == Size(32_000, 4000, 4000, 100, 100, 100)
    assert first["simulation_transfer"] == Size(32_000, 4000, 4000, 100, 100, 100, new=20, new_cells=10_000)
    exosome, norman = first["replogle_transfer"], first["norman_transfer"]
    assert exosome.new == 20 and norman.new == 30
    assert exosome.new_cells == pytest.approx(118_641 * 20 / 723, rel=0.01) and exosome.test == norman.test == 0
    assert exosome.train == pytest.approx(0.9 * (118_641 - exosome.new_cells), abs=1)
    single, pair, share = 111_255 - 41_759, 41_759, 33 / 131
    for name, fraction, of_train, of_val, of_test in (
        ("norman_ood", 0, 0, 0, share),
        ("norman_ood", 0.5, 65 / 131, 65 / 131, share),
        ("norman_ood", 1, 1, 1, share),
        ("norman_efficiency", 0, 0, 1, 1),
        ("norman_efficiency", 0.25, 0.25, 1, 1),
    ):
        run = next(run for run in runs(base, name) if run.split_config.fraction == fraction)
        found = size_of(run, tmp_path)
        assert (found.genes, found.conditions, found.perturbations) == (5000, 237, 105)
        assert found.train == pytest.approx(0.8 * single + 0.64 * pair * of_train, rel=2e-3)
        assert found.val == pytest.approx(0.2 * single + 0.16 * pair * of_val, rel=5e-3)
        assert found.test == pytest.approx(0.2 * pair * of_test, rel=0.03)


NEW = {"kind": "transfer", "last": 20}


@pytest.mark.parametrize(
    ("model", "split", "transfer", "seconds"),
    [
        # 10,000 new cells, half of them scored with K = 1,000, and 20 effects twice: 220 s for all
        # scored as trained and from the start values; by gradient 4 x 1,000 steps of 512 cells instead of 32
        ("sams_vae_mf", NEW, {}, (2 + 4) / 2 * 220 + 4 * 1000 * 16 * 0.01),
        ("svae_plus", NEW, {"adapt": ["closed_form", "sparse"]}, (2 + 8) / 2 * 220),
        # a training of 1,000 steps and 4 validations of 4,000 cells again, twice; as released 300 epochs of 79 batches
        ("svae_plus_lopez", NEW, {"variants": ["ours", "as_released"]}, 2 * 11.6 + (6 / 2 + 4) * 220 + 300 * 79 * 0.01),
        ("vae", NEW, {"cells": [0]}, 11.6 + 2 / 2 * 220),
        ("svae_plus_lopez", NEW | {"new_cells": 10}, {"variants": ["ours", "as_released"]}, 11.6 + 2 / 2 * 220),
    ],
)
def test_the_time_of_a_transfer_by_hand(tmp_path, model, split, transfer, seconds):
    own = study(tmp_path, split=split, transfer=transfer, model=model, mask_prior=0.1, seed=0)
    [found], _ = estimate(own, device="cpu", rate=lambda *_: RATE)
    assert found.transfer == pytest.approx(seconds, rel=0.01)
    assert found.left == pytest.approx(found.training + found.scoring + found.transfer)


def test_sizes_of_simulations_match_the_simulated_data(tmp_path):
    options = {"cells": 7, "val_cells": 3, "test_cells": 2, "n_perturbations": 6, "n_held_out": 2, "n_controls": 31}
    [run, *_] = runs(study(tmp_path, screen={"kind": "simulate_sparse_shift", "options": options}), "sim")
    synthetic = sparse_shift(cells=(7, 3, 2), n_perturbations=6, n_held_out=2, n_controls=31).obs
    number = synthetic["split"].value_counts()
    assert size_of(run, tmp_path) == Size(
        number["train"], number["val"], number["test"], 100, synthetic["condition"].nunique(), 6
    )
    [run, *_] = runs(study(tmp_path, split={"kind": "random", "test_fraction": 0.5, "val_fraction": 0.1}), "sim")
    assert size_of(run, tmp_path) == Size(22_500, 2500, 25_000, 100, 100, 100)


CUSTOM = {"kind": "custom", "source": {"path": "x.h5ad"}, "options": {"separator": "+"}}


def test_a_screen_that_is_not_there_has_the_expected_size(tmp_path):
    """120 cells of a control, four singles and a pair: twenty each."""
    expected = {"cells": 120, "genes": 9, "perturbations": 4, "combinations": 1}
    known = CUSTOM | {"expected": expected}
    [run, *_] = runs(study(tmp_path, screen=known, split={"kind": "random"}), "sim")
    assert size_of(run, tmp_path) == Size(76, 20, 24, 9, 6, 4)
    split = {"kind": "held_out", "conditions": ["c+a"], "test_fraction": 0}
    [run, *_] = runs(study(tmp_path, screen=known, split=split), "sim")
    assert size_of(run, tmp_path) == Size(80, 20, 20, 9, 6, 4)
    [run, *_] = runs(study(tmp_path, screen=known, split=split | {"conditions": ["a"] * 9}), "sim")
    assert size_of(run, tmp_path) is None, "more names than conditions"
    with pytest.raises(ConfigError, match="expected: cells: 0 is not allowed"):
        study(tmp_path, screen=CUSTOM | {"expected": expected | {"cells": 0}})


def test_the_demo_has_a_size_before_its_screens_are_simulated(root, tmp_path, configuration):
    """Those of a finished demo: 2,600 and 1,420 cells."""
    demo = build(Study, configuration("config.yaml", "demo.yaml"))
    first = {name: size_of(runs(demo, name)[0], tmp_path) for name in demo.experiments}
    assert first["replogle"] == Size(1664, 416, 520, 120, 53, 52)
    pairs = first["norman_ood"]  # of 16 pairs, four are tested, and the singles and the control are in training
    assert (pairs.genes, pairs.conditions, pairs.perturbations) == (150, 29, 12) and pairs.test > 0
    assert first["replogle_transfer"].new == 3


def test_existing_files_determine_the_size(tmp_path):
    """First the arrays, with a split drawn from them; then the table of the split."""
    [run, *_] = runs(study(tmp_path, screen=CUSTOM, split={"kind": "random"}), "sim")
    assert size_of(run, tmp_path) is None
    folder = tmp_path / "data" / run.dataset
    folder.mkdir(parents=True)
    synthetic = screen()
    write_files(folder, synthetic)
    assert size_of(run, tmp_path) == Size(76, 20, 24, 9, 6, 4)  # of 120 cells 96, of these 76
    with_a = (synthetic.members == 0).any(1)[synthetic.condition].sum()
    split = {"kind": "held_out", "conditions": ["a", "c+a"], "test_fraction": 0}
    [run, *_] = runs(study(tmp_path, screen=CUSTOM, split=split), "sim")
    assert size_of(run, tmp_path).test == with_a > 20
    [run, *_] = runs(study(tmp_path, screen=CUSTOM, split={"kind": "given"}), "sim")
    assert size_of(run, tmp_path) is None  # the arrays do not contain the split
    table = tmp_path / "sim" / "splits" / run.dataset / run.split / "summary.tsv"
    table.parent.mkdir(parents=True)
    table.write_text("split\tcells\tconditions\ntrain\t50\t6\nval\t40\t6\ntest\t20\t6\nnone\t10\t6\n")
    assert size_of(run, tmp_path) == Size(50, 40, 20, 9, 6, 4)


@pytest.mark.parametrize(
    ("settings", "steps", "validations"),
    [
        ({"epochs": 3}, 60, 3),  # 640 cells in batches of 32: 20 an epoch
        ({"epochs": 7, "validation_every": 3}, 140, 3),  # after 3, 6 and at the end
        ({"steps": 41}, 41, 3),  # two epochs and a step
        ({"steps": 40, "validation_every": 2}, 40, 1),
        ({"epochs": 3, "batch_size": 150}, 15, 3),  # four batches, and one of 40 cells
        ({"epochs": 3, "batch_size": 150, "last_batch": "drop"}, 12, 3),
        ({"epochs": 3, "batch_size": 150, "last_batch": "drop", "drop_below": 40}, 15, 3),
    ],
)
def test_work_by_hand_and_as_trained(tmp_path, settings, steps, validations):
    [run, *_] = runs(study(tmp_path, **settings), "sim")
    assert work_of(run, Size(640, 100, 0, 9, 6, 4)) == (steps, 100 * validations)
    synthetic, own = screen(740), model("cond_vae")
    parts, dosage = np.split(np.arange(740), [640]), encode(synthetic, "sum")
    cells, held_out = (cells_of(synthetic, rows, dosage, "cpu") for rows in parts)
    done = train(own, cells, held_out, replace(run.training, particles=1, validation_particles=1))
    assert (done.steps, len(done.history)) == (steps, validations)


def test_experiments_of_unknown_size_are_named(tmp_path, root, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimates, "measure", None)  # nothing is timed
    demo = yaml.safe_load((root / "config" / "demo.yaml").read_text()) | {"experiments": ["replogle"]}
    del demo["screens"]["replogle"]["expected"]
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(demo))
    assert main(["estimate", "--configfile", "demo.yaml", "--jobs", "4"]) == 0
    said = capsys.readouterr().out
    assert "replogle: unknown until its data and splits exist" in said and said.endswith("time left: unknown\n")


@pytest.mark.parametrize("name", ["sams_vae_corr", "svae_plus_lopez", "cond_vae"])
def test_rates_of_a_tiny_shape(tmp_path, name):
    """A fake clock sets how long each piece of work took: pairs of trainings, validations, IWELBO and effect."""
    own = study(tmp_path, model=name, mask_prior=0.1, seed=0, n_latent=3, width=8, embedding_width=8)
    took = [5, 9, 5, 7, 5, 105, 4, 1, 90, 3, 2]  # the medians: 9 - 5 and 4
    [run], ticks = runs(own, "sim"), iter(np.cumsum([each for time in took for each in (1, time)]).tolist())
    shape = shape_of(run, Size(400, 50, 50, 12, 7, 6), own.settings["sim"].evaluation)
    shape["evaluation"][1] = 20
    found = measure(run, shape, "cpu", steps=2, clock=lambda: next(ticks))
    assert found == {"step": (9 - 5) / 2, "validation": 4 / 512, "cell": 3 / 32 * 100 / 64, "condition": 2.0}
    assert next(ticks, None) is None


def test_everything_runs_once_before_it_is_timed(tmp_path, monkeypatch):
    done = []
    for name in ("train", "validation_loss", "iwelbo", "condition_means"):
        work = getattr(estimates, name)
        monkeypatch.setattr(estimates, name, lambda *a, n=name, w=work, **k: (done.append(n), w(*a, **k))[1])

    def clock():
        done.append("clock")
        return 0.0

    [run] = runs(own := study(tmp_path, mask_prior=0.1, seed=0), "sim")
    shape = shape_of(run, Size(400, 50, 50, 12, 7, 6), own.settings["sim"].evaluation)
    shape["evaluation"][1] = 20
    measure(run, shape, "cpu", steps=1, clock=clock)
    for name, timed in (("train", 6), ("validation_loss", 3), ("iwelbo", 1), ("condition_means", 1)):
        at = done.index(name)
        assert done[at + 1 : at + 4] == ["clock", name, "clock"] and done.count(name) == 1 + timed


def test_the_report():
    lines = [
        Estimate("a", 10, 2, 1000, 7200.0, 3600.0, 1440.0, 1440.0, 3600.0),
        Estimate("b", 1, 0, 0, 0.0, 0.0, 0.0, 0.0),
    ]
    said = estimate_report(lines, ["c"], device="cpu", jobs=4).splitlines()
    assert said[1].split() == ["a", "10", "2", "7200.0", "2:00:00", "1:00:00", "1:00:00", "0:24:00", "0:24:00"]
    assert said[3].startswith("c: unknown until")
    assert said[4] == (
        "time left: 3:12:00 with 1 training at a time; 0:48:00 with 4, the unknown experiments not included"
    )
    alone = estimate_report(lines, [], device="cpu", jobs=1).splitlines()
    assert alone[3] == "time left: 3:12:00 with 1 training at a time"
    assert estimate_report([], ["c"], device="cpu", jobs=1).splitlines()[-1] == "time left: unknown"

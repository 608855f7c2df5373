"""Formatted times, the record of a run, and the name of its CPU."""

from __future__ import annotations

import json
import logging
import platform
from types import SimpleNamespace

import pytest
from small_files import outputs
from small_model import model

from samsvae.study.cost import COST
from samsvae.study.estimate import machine
from samsvae.study.records import cpu_model, record, write_run
from samsvae.study.times import seconds_of
from samsvae.text import span
from samsvae.training.checkpoint import HISTORY, Checkpoint, facts, load
from samsvae.training.loop import log_progress
from samsvae.training.state import Trained


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (30 * 3600, "30:00:00"), (1e7, "2,777:46:40")],
)
def test_hours_are_not_wrapped_into_days(seconds, said):
    assert span(seconds) == said


def test_a_training_of_more_than_a_day_says_so(caplog):
    run = SimpleNamespace(step=0, losses=[1.0], result=SimpleNamespace(best_loss=1.0, best_step=0, history=[{}]))
    with caplog.at_level(logging.INFO):
        log_progress(run, 108_000, 1.0)
    assert caplog.text.endswith("time left 30:00:00\n")


@pytest.mark.parametrize(
    ("written", "took"),
    [
        ({"run": "a", "training": {"steps": 5, "rate": 0.1}, "seconds": 3, "device": "x"}, 3.0),
        ({"run": "a", "training": {"steps": 6, "rate": 0.1}, "seconds": 3}, None),
        ({"run": "a", "training": {"steps": 5}, "seconds": 3}, None),  # a setting is new
        ({"run": "a", "seconds": 3}, None),
        ({"run": "a", "training": {"steps": 5, "rate": 0.1}}, None),
        ([1], None),
        (None, None),
    ],
)
def test_a_record_counts_only_for_its_settings(tmp_path, written, took):
    if written is not None:
        (tmp_path / "run.json").write_text(json.dumps(written))
    assert seconds_of(tmp_path / "run.json", {"run": "a", "training": {"steps": 5, "rate": 0.1}}) == took


def test_the_name_of_the_cpu(tmp_path):
    """CPU models of one architecture differ in late digits and in speed."""
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor\t: 0\nmodel\t\t: 85\nmodel name\t: A CPU @ 2.5GHz\nprocessor\t: 1\nmodel name\t: other\n"
    )
    assert cpu_model(info) == "A CPU @ 2.5GHz"
    info = tmp_path / "other_architecture"
    info.write_text("processor\t: 0\nCPU part\t: 0xd0c\n")
    for path in (info, tmp_path / "none"):
        assert cpu_model(path) == (platform.processor() or platform.machine())


def test_the_cost_table_reads_keys_that_a_record_has():
    trained = Trained(best_step=1, best_loss=1.0, steps=1, seconds=1.0)
    assert set(COST) <= set(record({"run": "a"}, trained, "cpu", 3))


def test_the_files_and_facts_of_a_run(tmp_path):
    """Facts come in a fixed order, because it decides the bytes of a checkpoint."""
    settings = {"run": "r", "config": {}, "model": "m", "encoding": "sum", "training": {"steps": 5}}
    known = facts(settings, {"control": "c"}, best_step=3, validation_loss=0.5)
    assert list(known) == ["run", "model", "encoding", "training", "control", "best_step", "validation_loss", "samsvae"]
    imported = facts(settings, {"control": "c"}, checkpoint="x.ckpt", validation_loss=0.5)
    assert list(imported) == ["run", "model", "encoding", "training", "control", "checkpoint", "validation_loss"]
    assert facts({"encoding": "sum", "model": None}, {}) == {"model": None, "encoding": "sum"}

    net = model("cond_vae")
    history = [dict(zip(HISTORY, (2, 1, 0.75, 1 / 3), strict=True))]
    trained = Trained(best_step=2, best_loss=1 / 3, steps=2, seconds=1.0, history=history)
    out = outputs(tmp_path)
    write_run(settings, Checkpoint(net, tuple("ghijklmno"), ("a", "b", "c", "d"), known), trained, "cpu", out)
    assert load(out["model"]).facts == known
    assert out["history"].read_text() == "run\tstep\tepoch\ttrain_loss\tval_loss\nr\t2\t1\t0.75\t0.333333333\n"
    found = json.loads(out["run"].read_text())
    assert found["parameters"] == sum(p.numel() for p in net.parameters()) and found["steps"] == 2
    assert seconds_of(out["run"], settings) == 1.0


def test_rates_and_records_name_the_cpu():
    done = record({"run": "a"}, Trained(best_step=1, best_loss=1.0, steps=1, seconds=1.0), "cpu", 3)
    assert done["device"] == cpu_model() and machine("cpu").startswith(f"{cpu_model()}, ")

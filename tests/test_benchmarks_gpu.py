"""The GPU benchmark, run on a CPU: stacked runs equal single runs, and every way to share a device runs."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from fake_cuda_graph import Tape

from samsvae.training import steps


@pytest.fixture(scope="module")
def gpu(benchmark_named):
    return benchmark_named("gpu")


@pytest.mark.parametrize("clip", [None, 20.0])
def test_stacked_runs_equal_runs_trained_one_by_one(gpu, clip, monkeypatch):
    # stacked runs draw noise for all perturbations
    monkeypatch.setattr(steps, "only_own_perturbations", lambda cells, config: False)
    cells = gpu.synthetic_cells("toy", torch.device("cpu"))
    config = replace(gpu.shared("toy", cells.device), gradient_clip=clip, rate_mask=0.01)
    models = [gpu.model_of("toy", cells, seed) for seed in range(3)]
    for model, prior in zip(models, (-4.0, -2.0, 1.0), strict=True):
        model.latents[0].prior_logit.fill_(prior)
    stack = gpu.Stacked(models, [5, 6, 7], cells, config)
    alone = [
        gpu.TrainingState(model, replace(config, seed=seed), cells, cells)
        for model, seed in zip(models, (5, 6, 7), strict=True)
    ]
    before = {name: p.clone() for name, p in stack.model.named_parameters()}
    for at in torch.stack([torch.randperm(len(cells)) for _ in models])[:, : 6 * config.batch_size].chunk(6, 1):
        losses = stack.advance(at)
        for run, own in zip(alone, at, strict=True):
            run.advance(own)
        assert losses.tolist() == pytest.approx([run.losses[-1] for run in alone], rel=1e-6)
    assert len({run.losses[-1] for run in alone}) == 3
    for row, run in enumerate(alone):
        for name, p in run.model.named_parameters():
            moved = p - before[name][row]
            assert moved.norm() > 0
            assert (stack.model.get_parameter(name)[row] - p).norm() < 1e-3 * moved.norm(), name


def test_captured_stacked_steps_equal_eager_ones(gpu, monkeypatch):
    cells = gpu.synthetic_cells("toy", torch.device("cpu"))
    config, weights = gpu.shared("toy", cells.device), []
    at = [gpu.some_cells(cells, config, 2) for _ in range(6)]
    for make in (None, Tape):
        monkeypatch.setattr(sys.modules["stacked"], "graphs", lambda device, make=make: make)
        stack = gpu.Stacked([gpu.model_of("toy", cells, seed) for seed in range(2)], [0, 1], cells, config)
        losses = [stack.advance(each).tolist() for each in at]
        weights.append((losses, [p.tolist() for p in stack.model.parameters()]))
    assert len(stack.advance.captured) == 1 and Tape.made[-1].replays == 4
    assert weights[0] == weights[1]


def test_a_loss_that_is_not_finite_changes_no_weight(gpu):
    cells = gpu.synthetic_cells("toy", torch.device("cpu"))
    models = [gpu.model_of("toy", cells, seed) for seed in range(2)]
    stack = gpu.Stacked(models, [0, 1], cells, gpu.shared("toy", cells.device))
    stack.model.latents[0].prior_logit[1] = torch.nan
    before = [p.clone() for p in stack.model.parameters()]
    stack.advance(gpu.some_cells(cells, stack.config, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, stack.model.parameters(), strict=True))


def test_the_reason_is_printed_where_a_way_to_share_fails(gpu, monkeypatch, capsys):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("there is no room\nfor this")

    cells = gpu.synthetic_cells("toy", torch.device("cpu"))
    config = gpu.shared("toy", cells.device)
    monkeypatch.setattr(gpu, "stacked", out_of_memory)
    gpu.together("toy", cells, config)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:2] == ["1", "processes:"] and float(lines[2].split()[2]) > 0
    assert all(line.endswith("stacked: failed (there is no room)") for line in lines[2:4])
    assert lines[4].endswith("processes")
    monkeypatch.undo()
    assert gpu.stacked("toy", cells, config, 2, 0.1) > 0


def test_runs_on_streams_take_turns(gpu, monkeypatch):
    """With stand-ins for streams that only count."""
    streams = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda: streams.append(MagicMock()) or streams[-1])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "main")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(stream.entered()))
    cells = gpu.synthetic_cells("toy", torch.device("cpu"))
    assert gpu.on_streams("toy", cells, gpu.shared("toy", cells.device), 2, 0.1) > 0
    turns = [stream.entered.call_count for stream in streams]
    assert len(turns) == 2 and turns[0] == turns[1] > 1


def test_a_process_that_fails_raises(gpu):
    cells = gpu.synthetic_cells("toy", torch.device("cpu"))
    with pytest.raises(RuntimeError, match="its error is printed above"):
        gpu.in_processes("none", cells, gpu.shared("toy", cells.device), 2, 0.1)


def test_rows_name_the_changed_settings(gpu):
    assert list(gpu.rows(cuda=False, compiled=False)) == ["eager", "eager, bf16"]
    found = gpu.rows(cuda=True, compiled=True)
    assert list(found)[:4] == ["eager", "captured", "captured, tf32", "captured, bf16"]
    assert found["captured, bf16, compiled"] == {"precision": "bf16", "compile": True} and len(found) == 7


def test_a_failed_check_is_printed_and_does_not_stop(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "FAILED", [])
    gpu.check(True, "right")
    gpu.check(False, "wrong")
    assert gpu.FAILED == ["wrong"] and capsys.readouterr().out == "CHECK FAILED: wrong\n"


def test_two_trainings_their_evaluation_and_the_kernels(benchmark_named, capsys):
    runs = benchmark_named("gpu_runs")
    assert runs.main(["--shape", "toy", "--device", "cpu", "--precision", "float32", "--steps", "20"]) == 0
    text = capsys.readouterr().out
    assert "training 2 of 2" in text and "all finite: True" in text and "operations per step" in text


def test_every_command_of_the_gpu_day_exists(root):
    text = (root / "benchmarks" / "gpu_day.sh").read_text()
    named = set(re.findall(r"benchmarks/(\w+\.py)", text))
    assert named == {"step.py", "gpu.py", "gpu_runs.py"}
    for name in named:
        script = (root / "benchmarks" / name).read_text()
        used = [line for line in text.splitlines() if name in line or ("${step[@]}" in line and name == "step.py")]
        options = set(re.findall(r"--[a-z]+", " ".join(used)))
        assert [option for option in options if f'"{option}"' not in script] == [], name

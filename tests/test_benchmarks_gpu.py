"""The GPU benchmarks, run on a CPU: checks, stacked runs, every way to share a device, and the script that runs all."""

from __future__ import annotations

import os
import re
import subprocess
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


def test_the_reason_is_printed_if_a_way_to_share_fails(gpu, monkeypatch, capsys):
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
    """The streams are stand-ins that only count."""
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
    assert list(gpu.rows(cuda=True, compiled=False)) == ["eager", "captured", "captured, tf32", "captured, bf16"]
    assert gpu.rows(cuda=True, compiled=True) == {"captured, tf32, compiled": {"precision": "tf32", "compile": True}}


@pytest.fixture
def checks(gpu, benchmark_named, monkeypatch):
    made = benchmark_named("checks")
    monkeypatch.setattr(made, "FAILED", [])
    return made


def test_a_check_prints_its_number_and_does_not_stop(checks, capsys):
    assert checks.check("right", 1e-5, 1e-4) and checks.status() == 0
    assert not checks.check("wrong", 2e-4, 1e-4) and not checks.check("no number", float("nan"), 1e-4)
    assert checks.status() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["PASS  right: 1.0e-05, allowed is 1e-04", "FAIL  wrong: 2.0e-04, allowed is 1e-04"]
    assert lines[3:] == lines[1:3] and lines[2].startswith("FAIL  no number: nan")


@pytest.mark.parametrize("wrong", [False, True])
def test_checks_come_first_and_times_follow_in_either_case(gpu, checks, wrong, monkeypatch, capsys):
    softmax_nb = gpu.kernels.softmax_nb

    def other(product, *rest):
        return softmax_nb(product, *rest) + (product.sum(-1) if product.dtype == torch.float32 else 0.0)

    if wrong:
        monkeypatch.setattr(gpu.kernels, "softmax_nb", other)
    monkeypatch.setattr(gpu, "timed", lambda work, device, **options: float(work() is not None))
    assert gpu.main(["--shape", "toy", "--device", "cpu"]) == int(wrong)
    lines = capsys.readouterr().out.splitlines()
    at = [number for number, line in enumerate(lines) if line.startswith(("PASS", "FAIL"))]
    times = [number for number, line in enumerate(lines) if line.startswith(("torch operations", "eager"))]
    failed = [line for line in lines if line.startswith("FAIL")]
    assert len(times) == 3 and sum(number < min(times) for number in at) == 6
    assert len(failed) == 2 * len(checks.FAILED) and bool(failed) == wrong


def test_a_captured_step_that_differs_fails_its_check(gpu, checks, monkeypatch):
    cells = gpu.synthetic_cells("toy", torch.device("cpu"))
    config = gpu.shared("toy", cells.device)
    gpu.check_captured("toy", cells, config)
    assert checks.FAILED == []
    after_ten = gpu.after_ten
    monkeypatch.setattr(
        gpu, "after_ten", lambda name, cells, c: (after_ten(name, cells, c)[0] + (c.capture == "auto"), None)
    )
    gpu.check_captured("toy", cells, config)
    assert len(checks.FAILED) == 1 and "a second run against eager" in checks.FAILED[0]


def test_compiled_steps_are_checked(gpu, checks, monkeypatch):
    """The check fails if the compiled loss is another one."""
    cells = gpu.synthetic_cells("toy", torch.device("cpu"))
    config, scale = gpu.shared("toy", cells.device), [1.0]
    monkeypatch.setattr(torch, "compile", lambda f, **options: lambda *a: f(*a) * scale[0])
    gpu.check_compiled("toy", cells, config)
    assert checks.FAILED == []
    scale[0] = 1.01
    gpu.check_compiled("toy", cells, config)
    assert len(checks.FAILED) == 1


@pytest.mark.slow
def test_the_gpu_day_at_a_small_size(root, tmp_path):
    """All commands on a CPU, in their order: they pass, and everything that they print is kept."""
    script = ["bash", str(root / "benchmarks" / "gpu_day.sh")]
    environment = os.environ | {"TOY": "1", "OUT": str(tmp_path / "out"), "PYTHON": sys.executable}
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    started = re.findall(r"== (\w+) \(at most", done.stdout)
    names = ["check", "check_gpu", "step_replogle", "together", "compile", "trainings", "evaluation", "kernels", "gpu"]
    assert started == names
    assert (tmp_path / "out" / "summary.txt").read_text() == done.stdout
    logs = {name: (tmp_path / "out" / f"{name}.log").read_text() for name in names}
    assert all(log in done.stdout for log in logs.values())
    assert "FAIL" not in done.stdout
    assert [name for name in names if "PASS" not in logs[name]] == ["together", "kernels"]
    rows = [line for line in logs["step_replogle"].splitlines() if line.startswith("| ")]
    ours = [f"samsvae, `train()`{how}" for how in ("", ", `kernel: plain`", ", bf16")]
    first = ["variant", "plain PyTorch", *ours, "floor"]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == first
    assert all(float(row.split(" | ")[5].strip("| ")) > 0 for row in rows[1:-1])
    assert "training 2 of 2" in logs["trainings"] and "IWELBO, K = 100" in logs["evaluation"]
    assert "operations per step" in logs["kernels"] and "stacked" in logs["together"]


def test_the_gpu_day_takes_nine_minutes_at_most(root, tmp_path):
    text = (root / "benchmarks" / "gpu_day.sh").read_text()
    limits = [int(limit) for limit in re.findall(r"measure \w+ (\d+) ", text)]
    budget = int(re.search(r"BUDGET:-(\d+)", text)[1])
    assert len(limits) == 11 and sum(limits) <= budget == 540


def test_a_command_of_the_gpu_day_that_fails_or_hangs_does_not_stop_the_rest(root, tmp_path):
    """The stand-in for Python fails for one script and hangs for another one."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\ncase "$*" in *step.py*) exit 3;; *trainings*) sleep 60;; esac\n')
    python.chmod(0o755)
    script = tmp_path / "benchmarks" / "gpu_day.sh"
    script.parent.mkdir()
    text = (root / "benchmarks" / "gpu_day.sh").read_text()
    script.write_text(text.replace("measure trainings 35", "measure trainings 1").replace("-lt 5 ]", "-lt 1 ]"))
    environment = os.environ | {"OUT": str(tmp_path / "out"), "PYTHON": str(python)}
    command = ["bash", script, "check", "trainings", "kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    ends = re.findall(r"== (\w+): exit status (\d+)", done.stdout)
    assert ends == [("check", "3"), ("trainings", "124"), ("kernels", "0")]
    assert "--parts kernels" in (tmp_path / "out" / "kernels.log").read_text()


def test_every_command_of_the_gpu_day_exists(root):
    text = (root / "benchmarks" / "gpu_day.sh").read_text()
    named = set(re.findall(r"benchmarks/(\w+\.py)", text))
    assert named == {"step.py", "gpu.py", "gpu_runs.py"}
    for name in named:
        script = (root / "benchmarks" / name).read_text()
        array = name.removesuffix(".py").replace("gpu_runs", "runs")
        used = [line for line in text.splitlines() if name in line or f"${{{array}[@]}}" in line]
        assert len(used) > 3
        options = set(re.findall(r"--[a-z]+", " ".join(used)))
        assert [option for option in options if f'"{option}"' not in script] == [], name

"""The benchmark of the training step: both sides compute the same. Times are not tested."""

import ast

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def step(benchmark_named):
    return benchmark_named("step")


@pytest.mark.parametrize("name", ["sams_vae_corr", "sams_vae_mf", "cpa_vae_corr", "cpa_vae_mf", "svae_plus"])
def test_samsvae_and_plain_pytorch_have_the_same_loss_and_gradients(step, name):
    found = step.errors(step.SHAPES["toy"], name)
    assert found.pop("update") < 1e-4  # a small change of a weight: its last digits are lost
    weights = [key for key in found if key not in ("loss", "input_mean", "input_sd")]
    assert len(weights) > 10 and "decoder.log_concentration" in weights
    assert max(found.values()) < 2e-6


def test_bf16_is_rough_in_the_gradients_and_not_in_the_loss(step):
    found = step.rough_errors(step.SHAPES["toy"], "sams_vae_corr", "bf16")
    assert found.pop("loss") < 1e-3
    assert 1e-4 < max(found.values()) < 0.1 and "decoder.out.weight" in found


@pytest.fixture
def checks(step, benchmark_named, monkeypatch):
    made = benchmark_named("checks")
    monkeypatch.setattr(made, "FAILED", [])
    return made


def test_a_difference_is_printed_and_the_exit_status_is_1(step, checks, monkeypatch, capsys, tmp_path):
    arguments = ["--shape", "toy", "--check"]
    assert step.main(arguments) == 0
    assert capsys.readouterr().out.count("PASS") == 3
    objective = step.objective
    monkeypatch.setattr(step, "objective", lambda *a, **k: (objective(*a, **k)[0] * 1.001, {}))
    assert step.main(arguments) == 1
    text = capsys.readouterr().out
    assert text.startswith("FAIL  toy, sams_vae_corr, relative error, loss: 1.0e-03, allowed is 1e-04\n")


def test_times_follow_a_failed_check_and_are_not_recorded(step, checks, monkeypatch, capsys):
    monkeypatch.setattr(step, "errors", lambda *a: {"loss": 1e-3, "a": 1e-6, "update": 0.0})
    monkeypatch.setattr(step, "rough_errors", lambda *a: {"loss": 0.0, "a": 0.0})
    monkeypatch.setattr(step, "calibrate", lambda *a: {"default": (1.0, 0.0)})
    monkeypatch.setattr(step, "alone", lambda *a: 1.0)
    monkeypatch.setattr(step, "measure", lambda *a: {name: [2.0, 3.0] for name in step.variants("cpu")})
    recorded = []
    monkeypatch.setattr(step, "record", recorded.append)
    assert step.main(["--shape", "toy", "--record"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAIL") and lines[-1] == lines[0] and "| plain PyTorch | 2.5" in "\n".join(lines)
    assert recorded == []


def test_a_single_wrong_gradient_fails_the_check(step, checks):
    found = {"loss": 1e-7, "a": 1e-7, "b": 2e-3, "update": 0.0}
    assert not step.check_errors("here", found) and step.check_errors("here", found | {"b": 1e-6})
    assert not step.check_errors("here", found | {"b": float("nan")})
    assert not step.check_errors("here", found | {"b": 0.0, "loss": float("nan")})
    assert not step.check_errors("here", found | {"b": 0.0, "update": 0.1})


def test_plain_pytorch_imports_only_torch(root):
    tree = ast.parse((root / "benchmarks" / "plain.py").read_text())
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {name.split(".")[0] for name in names} == {"__future__", "collections", "torch"}


def test_plain_pytorch_learns_on_its_own_noise(step):
    torch.manual_seed(0)
    shape = step.SHAPES["toy"]
    x, d = step.dense(step.screen_of(shape, "sams_vae_corr"))
    model = step.plain_model(shape, "sams_vae_corr", x, d)
    losses = step.plain.steps(model, step.plain.loader(x, d, 24), learning_rate=0.01)
    losses = [next(losses) for _ in range(200)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 1.0


def test_synthetic_counts_resemble_a_screen(step):
    shape = step.SHAPES["replogle"]
    screen = step.synthetic_screen(shape, 1024)
    assert 0.36 < (screen.counts > 0).mean() < 0.44
    assert 8_000 < np.median(screen.library) < 12_000
    _, d = step.dense(step.screen_of(step.SHAPES["toy"], "sams_vae_corr"))
    assert set(d.sum(1).unique().tolist()) == {0.0, 1.0, 2.0} and d.max() == 1.0
    again = step.synthetic_screen(shape, 300, pool=100, dtype=np.uint8)
    assert again.counts.dtype == np.uint8 and (again.counts[:100] == again.counts[200:]).all()
    assert (again.library == again.counts.sum(1)).all() and len(set(again.condition)) > 100


def test_the_floor_equals_a_count_by_hand(step):
    # Replogle, all products of a step counted by hand: 11.8 GFLOP with 358 of 680 perturbations in a batch
    x = 2 * 512 * 1187 * 400 * 2
    cells = 2 * 2560 * 400 * (100 + 200 + 100 + 1187) * 3
    perturbations = 2 * 5 * 358 * 200 * (100 + 200 + 200) * 3
    assert step.gflop(step.SHAPES["replogle"], "sams_vae_corr") * 1e9 == pytest.approx(
        x + cells + perturbations, rel=0.01
    )


def test_a_record_goes_first_and_leaves_the_rest_unchanged(step, tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n\n## Another\n\ntext\n")
    step.record("### one", path)
    step.record("### two", path)
    assert path.read_text() == f"# Results\n\n## Another\n\ntext\n\n{step.HEADING}\n\n### two\n\n### one\n"

"""The benchmark of the training step: that what it compares is the same. No time is tested."""

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
    found = step.bf16_errors(step.SHAPES["toy"], "sams_vae_corr")
    assert found.pop("loss") < 1e-3
    assert 1e-4 < max(found.values()) < 0.1 and "decoder.out.weight" in found


def test_the_command_stops_where_they_differ(step, monkeypatch, capsys):
    arguments = ["--shape", "toy", "--check"]
    assert step.main(arguments) == 0
    objective = step.objective
    monkeypatch.setattr(step, "objective", lambda *a, **k: (objective(*a, **k)[0] * 1.001, {}))
    assert step.main(arguments) == 1
    assert "nothing is timed" in capsys.readouterr().err


def test_a_wrong_gradient_alone_is_not_within_what_is_allowed(step):
    found = {"loss": 1e-7, "a": 1e-7, "b": 2e-3}
    assert not step.within(found) and step.within(found | {"b": 1e-6}) and not step.within({"loss": float("nan")})


def test_plain_pytorch_imports_torch_alone(root):
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


def test_made_counts_are_like_those_of_a_screen(step):
    shape = step.SHAPES["replogle"]
    screen = step.synthetic_screen(shape, 1024)
    assert 0.36 < (screen.counts > 0).mean() < 0.44
    assert 8_000 < np.median(screen.library) < 12_000
    _, d = step.dense(step.screen_of(step.SHAPES["toy"], "sams_vae_corr"))
    assert set(d.sum(1).unique().tolist()) == {0.0, 1.0, 2.0} and d.max() == 1.0
    again = step.synthetic_screen(shape, 300, pool=100, dtype=np.uint8)
    assert again.counts.dtype == np.uint8 and (again.counts[:100] == again.counts[200:]).all()
    assert (again.library == again.counts.sum(1)).all() and len(set(again.condition)) > 100


def test_the_floor_is_that_of_the_design(step):
    # Replogle, all products of a step counted by hand: 11.8 GFLOP with 358 of 680 perturbations in a batch
    x = 2 * 512 * 1187 * 400 * 2
    cells = 2 * 2560 * 400 * (100 + 200 + 100 + 1187) * 3
    perturbations = 2 * 5 * 358 * 200 * (100 + 200 + 200) * 3
    assert step.gflop(step.SHAPES["replogle"], "sams_vae_corr") * 1e9 == pytest.approx(
        x + cells + perturbations, rel=0.01
    )


def test_records_are_newest_first_and_leave_the_rest(step, tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n\n## Another\n\ntext\n")
    step.record("### one", path)
    step.record("### two", path)
    assert path.read_text() == f"# Results\n\n## Another\n\ntext\n\n{step.HEADING}\n\n### two\n\n### one\n"


@pytest.mark.slow
def test_the_whole_command_prints_a_table(step, capsys):
    assert step.main(["--shape", "toy", "--repeats", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == ["variant", *step.VARIANTS.values(), "floor"]
    assert all(float(row.split(" | ")[5].strip("| ")) > 0 for row in rows[1:4])

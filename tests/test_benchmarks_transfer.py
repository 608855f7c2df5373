"""The benchmark of the transfer on a tiny simulation: its table has all columns, and its checks can fail."""

from __future__ import annotations

import sys

import numpy as np
import pytest


@pytest.fixture
def file(tmp_path):
    """Six perturbations, two of them new, with 60 cells each."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(6), 60)
    part = np.where(y < 4, np.where(np.arange(360) % 10 > 0, "train", "val"), "adapt")
    part[(y >= 4) & (np.arange(360) % 6 == 0)] = "test"
    x = rng.poisson(rng.gamma(2.0, 3.0, (6, 12))[y]).astype(np.int32)
    np.savez(tmp_path / "sim.npz", x=x, y=y, seen=np.arange(6) < 4, part=part)
    return tmp_path / "sim.npz"


def test_the_table_and_its_checks(benchmark_named, monkeypatch, file, capsys):
    module, checks = benchmark_named("transfer"), benchmark_named("checks")
    monkeypatch.setattr(checks, "FAILED", [])
    command = ["transfer.py", str(file), "--seeds", "0", "--rows", "vae", "ivae", "svae_plus"]
    command += ["--epochs", "2", "1", "2"]
    monkeypatch.setattr(sys, "argv", command)
    assert module.main() == 1  # two epochs teach too little to gain anything
    out = capsys.readouterr().out
    vae, ivae = (line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith(("| vae", "| ivae")))
    assert len(ivae) == 11 and all(float(value) < 0 for value in ivae[2:])
    assert [float(value) < 0 for value in vae[2:3]] == [True] and len(vae) < len(ivae)
    (svae_plus,) = (line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| svae_plus"))
    assert all(float(value) < 0 for value in svae_plus[2:6]) and "PASS  svae_plus, seed 0: ten cells minus fifty" in out
    assert "PASS  ivae, seed 0: fifty cells minus ten" in out
    assert "FAIL  ivae, seed 0: gain of ten cells is 7 to 16" in out
    assert out.count("own profile, k = ") == 3

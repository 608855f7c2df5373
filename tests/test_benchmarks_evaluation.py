"""The benchmarks of evaluation and of scale at a toy size: their checks pass and their tables have rows."""

from __future__ import annotations

import csv
import subprocess
import sys

from samsvae.evaluation.iwelbo import iwelbo


def test_the_evaluation_benchmark_passes_its_checks(root):
    command = [sys.executable, str(root / "benchmarks" / "evaluation.py"), "--shape", "toy"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PASS") == 4 and "FAIL" not in done.stdout


def test_an_evaluation_that_differs_fails_its_checks(benchmark_named, monkeypatch, capsys):
    module, checks = benchmark_named("evaluation"), benchmark_named("checks")
    monkeypatch.setattr(checks, "FAILED", [])
    monkeypatch.setattr(module, "iwelbo", lambda *a, **k: iwelbo(*a, **k) + 2.0)
    monkeypatch.setattr(sys, "argv", ["evaluation.py", "--shape", "toy"])
    assert module.main() == 1
    assert capsys.readouterr().out.startswith("FAIL  bound against the plain version, in standard errors: ")


def test_the_scale_benchmark_writes_its_table(root, tmp_path):
    out = tmp_path / "new" / "scale"
    command = [sys.executable, str(root / "benchmarks" / "scale.py"), str(out), "--toy", "--axis", "perturbations"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(out.with_suffix(".tsv").read_text().splitlines(), delimiter="\t"))
    assert [row["perturbations"] for row in rows] == ["8", "16"] and all(int(row["memory_mb"]) > 0 for row in rows)
    assert len(out.with_suffix(".md").read_text().splitlines()) == 4

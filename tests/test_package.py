"""The wheel and the source distribution: what they hold, and that a fit works without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

#: setuptools changes sys.argv, so the folder is read first.
BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]
build_meta.build_sdist(folder), build_meta.build_wheel(folder)
"""
FIT = """
import sys
sys.path[:0] = [sys.argv[1]]
import anndata as ad, numpy as np, pandas as pd
import samsvae
assert samsvae.__file__.startswith(sys.argv[1]), samsvae.__file__
rng = np.random.default_rng(0)
labels = np.repeat(["control", "A", "B"], 20)
counts = rng.poisson(4.0, (60, 8)) + 6 * (labels == "A")[:, None] * (np.arange(8) < 2)
adata = ad.AnnData(counts.astype("float32"), pd.DataFrame({"guide": labels}, index=[f"c{i}" for i in range(60)]))
fitted = samsvae.fit(adata, perturbation="guide", control="control", steps=20, progress=False)
fitted.save("model.pt")
print(samsvae.__version__, samsvae.load("model.pt").effects(draws=2, cells=2).shape)
"""


def run(*command: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def tracked(root):
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    return [name for name in listed.stdout.splitlines() if (root / name).is_file()]


@pytest.fixture(scope="module")
def built(root, tracked, tmp_path_factory):
    """The folder of the two files, built from a copy of the tracked files."""
    folder, copy = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("copy")
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((root / name).read_bytes())
    run("-c", BUILD, str(folder), cwd=copy)
    return folder


def test_the_source_distribution_holds_the_workflow(built, tracked):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    missing = [name for name in tracked if name not in held]
    assert all(name.startswith(".") for name in missing), missing


def test_the_wheel_holds_the_package_only(built, tracked):
    (path,) = built.glob("*.whl")
    held = {name for name in zipfile.ZipFile(path).namelist() if ".dist-info/" not in name}
    assert held == {name.removeprefix("src/") for name in tracked if name.startswith("src/")}


def test_an_installed_wheel_fits_saves_and_loads(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    target = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=tmp_path)
    assert run("-c", FIT, str(target), cwd=tmp_path).split("\n")[-2] == "0.1.0 (16, 5)"
    assert (target / "bin/samsvae").is_file()

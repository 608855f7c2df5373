"""The library and the workflow avoid or guard what only Linux has, so that they run on macOS."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from samsvae.errors import ConfigError
from samsvae.ops.device import usable
from samsvae.study import records

#: What macOS lacks, and the modules that guard it, which the tests below run without it.
LINUX = {"sched_getaffinity", "posix_fadvise", "prctl", "memfd_create", "SIGPWR", "SIGSTKFLT", "mallopt", "pidfd_open"}
GUARDED = {
    ("ops/c_code.py", "/proc/cpuinfo"),
    ("ops/onednn.py", "/proc/cpuinfo"),
    ("ops/onednn.py", "mallopt"),
    ("study/records.py", "/proc/cpuinfo"),
}


def linux_only(text: str) -> set[str]:
    """Names and paths in a module that only Linux has."""
    tree = ast.parse(text)
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    texts = {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return found & LINUX | {text for text in texts if text.startswith(("/proc", "/dev/shm", "/sys/"))}


def test_what_only_linux_has_is_guarded(root):
    package = root / "src" / "samsvae"
    texts = {path.relative_to(package).as_posix(): path.read_text() for path in package.rglob("*.py")}
    found = {(name, odd) for name, text in texts.items() for odd in linux_only(text)}
    assert found == GUARDED
    scripts = {name for path in (root / "workflow").rglob("*.py") for name in linux_only(path.read_text())}
    rules = [*(root / "rules").glob("*.smk"), root / "Snakefile", root / "Makefile"]
    assert not scripts and not [path for path in rules if "/proc" in path.read_text() or "nproc" in path.read_text()]


def test_the_search_finds_them():
    assert linux_only("import os\nos.sched_getaffinity(0)\nopen('/proc/self/maps')") == {
        "sched_getaffinity",
        "/proc/self/maps",
    }
    assert linux_only("from signal import SIGPWR") == {"SIGPWR"}


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("linux", 1024)])
def test_the_unit_of_peak_memory(platform, unit, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert kib * unit <= records._peak_memory() <= 1.5 * kib * unit


#: A fit, a file and its model on a system that has nothing of the above.
WITHOUT = """
import ctypes, os, signal, sys
import matplotlib, torch, anndata, scipy.sparse
matplotlib.use("Agg")
from simulated_cells import SHORT, simulated
for module in (os, signal):
    for name in {names!r}:
        if hasattr(module, name):
            delattr(module, name)
class NoLibrary:
    pass
load_library = ctypes.CDLL
ctypes.CDLL = lambda name: load_library(name) if name else NoLibrary()
sys.platform = "darwin"
from samsvae import fit, load, pl
adata = simulated(200)
fitted = fit(adata, perturbation="guide", control="control", separator="+", progress=False, **SHORT | {{"steps": 5}})
fitted.latents(adata)
fitted.save("model.pt")
pl.masks(load("model.pt"))
from samsvae.study.records import cpu_model
from pathlib import Path
assert cpu_model(Path("no such file"))
print("done")
"""


def test_a_fit_without_what_only_linux_has(root, tmp_path):
    env = {"PYTHONPATH": f"{root / 'src'}:{root / 'tests'}", "HOME": str(Path.home())}
    code = WITHOUT.format(names=sorted(LINUX))
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True)
    assert done.stdout.decode().strip() == "done", done.stderr.decode()


def test_the_gpu_of_a_mac_is_not_used():
    with pytest.raises(ConfigError, match=r"device: 'mps' is not allowed\. Allowed: cpu"):
        usable("mps")

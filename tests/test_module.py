"""The workflow as a module of another one, in another folder, from a clone and from a hosting service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from samsvae.tables import read

LOCAL = """
module samsvae:
    snakefile: "{root}/Snakefile"
    config: config["samsvae"]
"""
HOSTED = """
module samsvae:
    snakefile: github("someone/samsvae", path="workflow/Snakefile", tag="v1")
    config: config["samsvae"]
"""
OTHER = """
configfile: "config.yaml"
{module}
use rule * from samsvae as samsvae_*

rule count:
    input: "made/simulation_sams/scores.tsv"
    output: "lines.txt"
    default_target: True
    shell: "wc -l < {{input}} > {{output}}"
"""


@pytest.fixture
def other(root, tmp_path):
    """A folder with a workflow that uses this one; its configuration names one small experiment."""

    def make(module: str, **more) -> Path:
        config = yaml.safe_load((root / "tests/smoke.yaml").read_text())
        config |= {"experiments": ["simulation_sams"], "pathvars": {"results": "made"}} | more
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"samsvae": config, "mine": 1}))
        (tmp_path / "Snakefile").write_text(OTHER.format(module=module.format(root=root)))
        return tmp_path

    return make


def snakemake(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_a_module_from_a_clone(other, root):
    folder = other(LOCAL)
    done = snakemake(folder, "--", "count", "samsvae_report")
    assert done.returncode == 0, done.stderr[-3000:]
    scores = read(folder / "made/simulation_sams/scores.tsv")
    assert int((folder / "lines.txt").read_text()) == len(scores) + 1
    assert (folder / "made/report.html").stat().st_size > 10_000
    assert "simulation_sams" in (folder / "made/provenance.html").read_text()
    again = snakemake(folder, "--", "count", "samsvae_report")
    assert "Nothing to be done" in again.stderr


@pytest.mark.slow
def test_a_module_from_a_hosting_service(other, root, tmp_path):
    """git reads the address of the service from a folder; the module is unpacked into Snakemake's cache."""
    hosted = tmp_path / "service/someone/samsvae"
    environment = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{tmp_path}/service/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("needs a git checkout")
    hosted.mkdir(parents=True)
    for name in tracked.stdout.split("\n"):
        if name and (root / name).is_file():
            (hosted / name).parent.mkdir(parents=True, exist_ok=True)
            (hosted / name).write_bytes((root / name).read_bytes())
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(hosted)]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"], ["tag", "v1"]):
        subprocess.run([*git, *arguments], check=True)
    folder = other(HOSTED)
    done = snakemake(folder, "--", "count", **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "lines.txt").is_file()
    unpacked = list((tmp_path / "cache").rglob("samsvae.*/src/samsvae/__init__.py"))
    assert len(unpacked) == 1


@pytest.mark.parametrize(
    ("module", "more", "said"),
    [
        (LOCAL + '    prefix: "below"\n', {}, "prefix: not allowed for the module samsvae. Set pathvars: results"),
        (LOCAL, {"experiments": ["simulation"]}, "experiments: no settings for 'simulation'"),
    ],
)
def test_a_wrong_module_is_one_sentence(other, module, more, said):
    done = snakemake(other(module, **more), "--dry-run")
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr

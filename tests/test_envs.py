"""The lock for pip, the conda environment and pyproject.toml agree."""

import re
import tomllib

import pytest

yaml = pytest.importorskip("yaml")
requirements = pytest.importorskip("packaging.requirements")

CONDA_NAMES = {"torch": "pytorch"}


@pytest.fixture(scope="module")
def direct(root):
    """Direct requirements by name, in normal form: (base and study, all)."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    study, dev = (
        {req.name: req for req in map(requirements.Requirement, lines)}
        for lines in (project["dependencies"] + extras["study"], extras["dev"])
    )
    return study, study | dev


@pytest.fixture(scope="module")
def lock(root):
    """The lines of the lock without comments."""
    lines = (root / "envs/requirements.lock").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


@pytest.fixture(scope="module")
def pinned(lock):
    """Name in normal form -> version."""
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (x.split("==") for x in lock)}


def test_lock_has_exact_public_versions_only(lock):
    """No path, URL, local build ("+cpu") or option, which would not work on other machines."""
    odd = [line for line in lock if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]
    assert odd == []


def test_lock_is_sorted_as_pip_sorts(lock):
    names = [line.partition("==")[0].lower() for line in lock]
    assert names == sorted(set(names))


def test_lock_fits_every_build_of_torch(pinned):
    assert [name for name in pinned if name.startswith(("nvidia", "cuda", "triton"))] == []
    assert pinned["torch"] == "2.13.0"


def test_lock_satisfies_pyproject(direct, pinned):
    wrong = {name: pinned.get(name) for name, req in direct[1].items() if pinned.get(name) not in req.specifier}
    assert wrong == {}


def test_conda_has_the_versions_of_the_lock(root, direct, pinned):
    env = yaml.safe_load((root / "envs/samsvae.yaml").read_text())
    conda = dict(package.split("=") for package in env["dependencies"])
    assert conda.pop("python") == "3.11"
    assert conda == {CONDA_NAMES.get(name, name): pinned[name] for name in direct[0]}


def test_containers_have_the_python_and_the_lock_of_the_venv(root):
    for recipe, base in (("Dockerfile", "FROM"), ("samsvae.def", "From:")):
        text = (root / "envs" / recipe).read_text()
        assert re.findall(rf"^{base} *(\S+)$", text, re.M) == ["python:3.11-slim-bookworm"]
        assert re.search(r"^[^#]*pip install .*--requirement \S*requirements.lock$", text, re.M), recipe

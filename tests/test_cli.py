"""The command samsvae: its options, its errors, and that it works from any folder."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from samsvae import cli
from samsvae.cli import main
from samsvae.version import VERSION

DEMO_RUNS = ["0", "0", "0", "0", "0", "65", "65"]


def printed(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and printed(capsys) == [f"samsvae {VERSION}"]


@pytest.mark.parametrize("arguments", [[], ["progres"], ["estimate", "--jobs", "many"], ["import", "a.ckpt"]])
def test_wrong_arguments_print_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("usage: samsvae")


def test_the_study_is_found_from_any_folder(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demo = str(root / "config" / "demo.yaml")
    for more in ([], ["--snakefile", str(root / "Snakefile")]):
        assert main(["progress", "--configfile", demo, *more]) == 0
        assert printed(capsys)[7].split() == ["all", *DEMO_RUNS]


def test_results_are_relative_to_the_directory_and_configurations_to_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "study"
    log = study / "out" / "logs" / "simulation_svae" / "train" / "vae-draw0.log"
    log.parent.mkdir(parents=True)
    log.write_text("10:00:00 ERROR no\n")
    grid = {"simulation_svae": {"grid": [{"model": "vae", "data_seed": [0]}]}}
    for name, content in (
        ("a.yaml", {"experiments": ["simulation_svae"], "pathvars": {"results": "else"}, "settings": grid}),
        ("b.yaml", {"pathvars": {"results": "out"}}),
    ):
        (tmp_path / name).write_text(yaml.safe_dump(content))
    for files in (["--configfile", "a.yaml", "b.yaml"], ["--configfile", "a.yaml", "--configfile", "b.yaml"]):
        assert main(["progress", *files, "--directory", "study"]) == 0
        lines = printed(capsys)
        assert lines[1].split() == ["simulation_svae", "0", "0", "0", "0", "1", "0", "1"]
        assert lines[2] == "failed: simulation_svae/runs/vae-draw0: no"
    assert main(["progress", "--configfile", "a.yaml", "b.yaml"]) == 0
    assert printed(capsys)[1].split()[1:] == ["0", "0", "0", "0", "0", "1", "1"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("experiments: [replogel]", "ConfigError: .*Did you mean 'replogle'"),
        ("experiments: [replogle", r"ConfigError: .*a\.yaml: not valid YAML \(.*line 1"),
        ("- replogle", r"ConfigError: .*a\.yaml: must hold a mapping of keys to values, not 'list'"),
        (None, r"FileNotFoundError: .*a\.yaml"),
    ],
)
@pytest.mark.parametrize("command", ["progress", "estimate"])
def test_an_error_of_the_configuration_is_one_sentence(tmp_path, monkeypatch, capfd, command, content, said):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "a.yaml").write_text(content)
    assert main([command, "--configfile", "a.yaml"]) == 1
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and re.match(said, err)


def test_a_package_outside_a_checkout_needs_the_snakefile(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "CHECKOUT", tmp_path)
    assert main(["progress"]) == 1
    assert "The installed package is not in a checkout. Pass --snakefile" in capsys.readouterr().err
    assert main(["progress", "--snakefile", "absent"]) == 1
    assert "ConfigError: absent: no such file. Pass --snakefile" in capsys.readouterr().err


def test_the_command_imports_heavy_packages_only_when_needed(root):
    code = "import sys, samsvae.cli; print([m for m in ('numpy', 'torch', 'pandas', 'snakemake') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(root / "src")}, capture_output=True)
    assert done.stdout.decode().strip() == "[]", done.stderr


def test_the_console_script_is_this_function(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"samsvae": "samsvae.cli:main"}

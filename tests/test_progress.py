"""How far a study is, from made folders and logs."""

from __future__ import annotations

import json
import os
import time
import traceback

import pytest
import yaml
from snakemake.utils import update_config

from samsvae.config.grid import Run, run_settings, runs
from samsvae.config.study import Study
from samsvae.config.validate import build
from samsvae.errors import DataError
from samsvae.study.cache import Kept
from samsvae.study.jobs import _told
from samsvae.study.progress import SILENT, Standing, main, report, standing, time_left
from samsvae.study.script import CALL


def run_of(**changes) -> Run:
    """A run of the experiment e, called vae."""
    block = {"model": ["vae"], "steps": 1000} | changes
    config = {"experiments": ["e"], "screens": {"sim": {"kind": "simulate_sams"}}}
    return runs(build(Study, config | {"settings": {"e": {"screen": "sim", "grid": [block]}}}), "e")[0]


def stands(root, run: Run | None = None) -> Standing:
    return standing(run or run_of(), root, root / "logs", now=time.time())


def made(root, *, log: str | None = None, age: float = 0.0, seconds: float | None = None, kind: str = "train"):
    """The state of a run by its folder and log, as its job leaves them."""
    folder = root / "e" / "runs" / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    if log is not None:
        path = root / "logs" / "e" / kind / "vae.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(log)
        os.utime(path, (time.time() - age,) * 2)
    if seconds is not None:
        (folder / "run.json").write_text(json.dumps(run_settings(run_of()) | {"seconds": seconds}))
        (folder / "scores.tsv").write_text("run\n")
    return stands(root)


STEPS = "10:00:00 INFO step 100/1000  10.0 steps/s  loss 3.000\n10:00:10 INFO step 200/1000  10.0 steps/s  loss 2.900\n"


@pytest.mark.parametrize(
    ("how", "state", "seconds", "reason"),
    [
        ({}, "waiting", None, ""),
        ({"log": ""}, "running", None, ""),
        ({"log": STEPS}, "running", 80.0, ""),
        ({"log": STEPS, "age": SILENT + 60}, "stopped", None, ""),
        ({"log": STEPS, "seconds": 42.0}, "done", 42.0, ""),
        ({"log": STEPS + "10:00:11 ERROR Step 7: not finite\n"}, "failed", None, "Step 7: not finite"),
        ({"log": STEPS + "10:00:11 ERROR stopped by SIGTERM\n"}, "stopped", None, "stopped by SIGTERM"),
        ({"log": STEPS + "10:00:11 ERROR no\n10:00:11 INFO e/r failed.\n"}, "failed", None, "no"),
    ],
)  # fmt: skip
def test_the_state_of_a_run(tmp_path, how, state, seconds, reason):
    assert made(tmp_path, **how) == Standing("e", "vae", state, seconds, reason)


def test_a_run_of_other_settings_is_outdated(tmp_path):
    """Also one without a record; not one that is trained anew with others, which leave its files till they are done."""
    other = run_of(steps=999)
    assert made(tmp_path, log=STEPS, age=60.0, seconds=42.0).state == "done"
    assert stands(tmp_path, other) == Standing("e", "vae", "outdated")
    made(tmp_path, log=STEPS, kind="together")
    assert stands(tmp_path, other) == Standing("e", "vae", "running", 80.0) and stands(tmp_path).state == "done"
    made(tmp_path, log="10:00:00 INFO vae: taken as it was trained together\n")
    assert stands(tmp_path, other).state == "outdated"
    (tmp_path / "e" / "runs" / "vae" / "run.json").unlink()
    assert stands(tmp_path).state == "outdated"


def test_a_failed_run_says_how_to_try_it_again(tmp_path, monkeypatch, capsys):
    """What its job has written is what is shown, also at the end of a traceback."""
    monkeypatch.setenv(CALL, "snakemake --cores 8 --configfile config/core.yaml")
    log, kept = tmp_path / "logs" / "e" / "train" / "vae.log", Kept(tmp_path / "e" / "runs" / "vae" / ".trained", "s")
    command = f"snakemake --cores 8 --configfile config/core.yaml -- {tmp_path}/e/runs/vae/scores.tsv"
    for error in (DataError("bad."), KeyError("lost")):
        with pytest.raises(type(error)), _told(kept, {"scored": {"scores": kept.folder.parent / "scores.tsv"}}):
            raise error
        text = f"10:00:01 ERROR not expected\n{''.join(traceback.format_exception(error))}"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(
            text if isinstance(error, KeyError) else f"10:00:01 ERROR bad.\n10:00:01 INFO {error.__notes__[0]}\n"
        )
        found = stands(tmp_path)
        assert found.state == "failed" and found.again == f"To try it again by itself: {command}"
        assert report([found]).splitlines()[3] == f"  To try it again by itself: {command}"


def test_time_left_by_hand():
    """Two at a time: 80 s of one, a median of 20 s for the other, 20 s each for two that wait: 140 s by two."""
    done = [Standing("e", str(i), "done", seconds) for i, seconds in enumerate((10.0, 20.0, 30.0))]
    rest = [Standing("e", "a", "running", 80.0), Standing("e", "b", "running")]
    rest += [Standing("e", "c", "waiting"), Standing("e", "d", "failed", reason="x")]
    assert time_left(done + rest) == pytest.approx((80 + 20 + 20 + 20) / 2)
    assert time_left(rest) is None
    other = [Standing("f", "z", "waiting")]  # no run of its own is done: the median of all
    assert time_left(done + other) == pytest.approx(20.0)


def test_the_report_counts_and_says_why():
    found = [
        Standing("e", "a", "done", 5.0),
        Standing("e", "b", "failed", reason="no such file"),
        Standing("f", "c", "waiting"),
    ]
    lines = report(found).splitlines()
    assert lines[0].split() == ["experiment", "done", "outdated", "running", "stopped", "failed", "waiting", "all"]
    assert [line.split() for line in lines[1:4]] == [
        ["e", "1", "0", "0", "0", "1", "0", "2"],
        ["f", "0", "0", "0", "0", "0", "1", "1"],
        ["all", "1", "0", "0", "0", "1", "1", "3"],
    ]  # fmt: skip
    assert lines[4] == "failed: e/runs/b: no such file" and lines[5].startswith("time left: 0:00:10")
    assert "time left" not in report(found[:1])


def test_the_command_reads_the_configuration(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = str(root / "config" / "config.yaml")
    main(["--base", base, "--configfile", str(root / "config" / "demo.yaml")])
    said = capsys.readouterr().out
    assert said.splitlines()[6].split() == ["all", "0", "0", "0", "0", "0", "61", "61"]
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({"experiments": ["replogel"]}))
    with pytest.raises(SystemExit, match="Did you mean 'replogle'"):
        main(["--base", base, "--configfile", "wrong.yaml"])
    with pytest.raises(SystemExit, match=r"none\.yaml"):
        main(["--base", base, "--configfile", "none.yaml"])


def test_the_log_written_last_counts(tmp_path):
    """A run that failed in its own job and is now trained in a batch again."""
    assert made(tmp_path, log="10:00:11 ERROR no\n", age=60.0).state == "failed"
    assert made(tmp_path, log=STEPS, kind="together").state == "running"


def test_what_the_command_says_of_other_settings_and_folders(root, tmp_path, monkeypatch, capsys):
    """Two runs of a simulation, two more, then all with other settings; logs elsewhere, as pathvars allow."""
    monkeypatch.chdir(tmp_path)
    grid = [{"model": ["vae", "ivae"], "data_seed": [0], "epochs": 5}]
    config = {"experiments": ["simulation_svae"], "pathvars": {"results": "made", "logs": "told/<results>"}}
    config["settings"] = {"simulation_svae": {"grid": grid, "training": {"steps": 10}}}
    for found in runs(build(Study, _merged(root, config)), "simulation_svae"):
        folder = tmp_path / "made" / "simulation_svae" / "runs" / found.id
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(run_settings(found) | {"seconds": 5.0}))
        (folder / "scores.tsv").write_text("run\n")
    log = tmp_path / "told" / "made" / "simulation_svae" / "train" / "vae-draw1.log"
    log.parent.mkdir(parents=True)
    log.write_text(STEPS)

    def said() -> list[str]:
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
        main(["--base", str(root / "config" / "config.yaml"), "--configfile", "a.yaml"])
        return capsys.readouterr().out.splitlines()

    assert [line.split()[1:] for line in said()[1:]] == [["2", "0", "0", "0", "0", "0", "2"]]
    grid[0]["data_seed"] = [0, 1]
    assert said()[1].split()[1:] == ["2", "0", "1", "0", "0", "1", "4"]
    config["settings"]["simulation_svae"]["training"]["steps"] = 999
    lines = said()
    assert lines[1].split()[1:] == ["0", "2", "1", "0", "0", "1", "4"]
    assert lines[2] == "outdated: made with other settings than today's; the next call makes them anew"
    assert lines[3] == "time left: not known before a training is done"


def _merged(root, config: dict) -> dict:
    """A configuration over config/config.yaml."""
    merged = yaml.safe_load((root / "config" / "config.yaml").read_text())
    update_config(merged, config)
    return merged

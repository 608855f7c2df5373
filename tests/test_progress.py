"""Progress of a study, from synthetic folders and logs."""

from __future__ import annotations

import json
import os
import time
import traceback

import pytest
import yaml
from snakemake.utils import update_config

from samsvae.cli import main
from samsvae.config.grid import Run, run_settings, runs
from samsvae.config.study import Study
from samsvae.config.transfer import TransferConfig
from samsvae.config.validate import build
from samsvae.errors import DataError
from samsvae.study.cache import Cache
from samsvae.study.jobs import CachedRun, retry_note
from samsvae.study.progress import SILENT, RunStatus, progress_report, run_status, time_left
from samsvae.study.script import CALL


def run_of(**changes) -> Run:
    """A run of the experiment e, called vae."""
    block = {"model": ["vae"], "steps": 1000} | changes
    config = {"experiments": ["e"], "screens": {"sim": {"kind": "simulate_sams"}}}
    return runs(build(Study, config | {"settings": {"e": {"screen": "sim", "grid": [block]}}}), "e")[0]


def status(root, run: Run | None = None) -> RunStatus:
    return run_status(run or run_of(), root, root / "logs", now=time.time())


def write_run(root, *, log: str | None = None, age: float = 0.0, seconds: float | None = None, kind: str = "train"):
    """Write a folder and a log as the job of a run leaves them; return the status."""
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
    return status(root)


STEPS = "10:00:00 INFO step 100/1000  10.0 steps/s  loss 3.000\n10:00:10 INFO step 200/1000  10.0 steps/s  loss 2.900\n"


def test_a_run_with_a_transfer_is_done_when_that_is_done_with_these_settings(tmp_path):
    how = TransferConfig(cells=(0, "all"))

    def state(transfer: TransferConfig = how) -> tuple[str, float | None]:
        found = run_status(run_of(), tmp_path, tmp_path / "logs", now=time.time(), transfer=transfer)
        return found.state, found.seconds

    write_run(tmp_path, seconds=5.0)
    assert state() == ("outdated", None)  # trained before the setting was added
    record = {"run": "vae", "transfer": vars(how), "seconds": 7.0}
    (tmp_path / "e" / "runs" / "vae" / "transfer.json").write_text(json.dumps(record))
    assert state() == ("done", 12.0) and state(TransferConfig(cells=(0,))) == ("outdated", None)


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
    assert write_run(tmp_path, **how) == RunStatus("e", "vae", state, seconds, reason)


def test_a_run_with_other_settings_is_outdated(tmp_path):
    """So is a run without a record, but not a run that is being retrained together with others: its old files stay."""
    other = run_of(steps=999)
    assert write_run(tmp_path, log=STEPS, age=60.0, seconds=42.0).state == "done"
    assert status(tmp_path, other) == RunStatus("e", "vae", "outdated")
    write_run(tmp_path, log=STEPS, kind="together")
    assert status(tmp_path, other) == RunStatus("e", "vae", "running", 80.0) and status(tmp_path).state == "done"
    write_run(tmp_path, log="10:00:00 INFO vae: trained together with other runs (x.tsv); taken from the cache\n")
    assert status(tmp_path, other).state == "outdated"
    (tmp_path / "e" / "runs" / "vae" / "run.json").unlink()
    assert status(tmp_path).state == "outdated"


def test_a_failed_run_shows_its_retry_command(tmp_path, monkeypatch, capsys):
    """The report shows what the job has logged, also at the end of a traceback."""
    monkeypatch.setenv(CALL, "snakemake --cores 8 --configfile config/core.yaml")
    log, folder = tmp_path / "logs" / "e" / "train" / "vae.log", tmp_path / "e" / "runs" / "vae"
    caches = Cache(folder / ".trained", "s", {}), Cache(folder / ".scored", "s", {"scores": folder / "scores.tsv"})
    run = CachedRun({"run": "vae"}, *caches)
    command = f"snakemake --cores 8 --configfile config/core.yaml -- {folder}/scores.tsv"
    for error in (DataError("bad."), KeyError("lost")):
        with pytest.raises(type(error)), retry_note(run):
            raise error
        text = f"10:00:01 ERROR not expected\n{''.join(traceback.format_exception(error))}"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(
            text if isinstance(error, KeyError) else f"10:00:01 ERROR bad.\n10:00:01 INFO {error.__notes__[0]}\n"
        )
        found = status(tmp_path)
        assert found.state == "failed" and found.retry == f"To rerun it alone: {command}"
        assert progress_report([found]).splitlines()[3] == f"  To rerun it alone: {command}"


def test_time_left_by_hand():
    """Two at a time: one has 80 s left, the other a median of 20 s, and two waiting ones take 20 s each: 140 s / 2."""
    done = [RunStatus("e", str(i), "done", seconds) for i, seconds in enumerate((10.0, 20.0, 30.0))]
    rest = [RunStatus("e", "a", "running", 80.0), RunStatus("e", "b", "running")]
    rest += [RunStatus("e", "c", "waiting"), RunStatus("e", "d", "failed", reason="x")]
    assert time_left(done + rest) == pytest.approx((80 + 20 + 20 + 20) / 2)
    assert time_left(rest) is None
    other = [RunStatus("f", "z", "waiting")]  # its experiment has no done run: the median of all
    assert time_left(done + other) == pytest.approx(20.0)


def test_the_report_counts_states_and_gives_reasons():
    found = [
        RunStatus("e", "a", "done", 5.0),
        RunStatus("e", "b", "failed", reason="no such file"),
        RunStatus("f", "c", "waiting"),
    ]
    lines = progress_report(found).splitlines()
    assert lines[0].split() == ["experiment", "done", "outdated", "running", "stopped", "failed", "waiting", "all"]
    assert [line.split() for line in lines[1:4]] == [
        ["e", "1", "0", "0", "0", "1", "0", "2"],
        ["f", "0", "0", "0", "0", "0", "1", "1"],
        ["all", "1", "0", "0", "0", "1", "1", "3"],
    ]  # fmt: skip
    assert lines[4] == "failed: e/runs/b: no such file" and lines[5].startswith("time left: 0:00:10")
    assert "time left" not in progress_report(found[:1])


def test_the_log_written_last_counts(tmp_path):
    """A run that failed in its own job and is now being trained together with others."""
    assert write_run(tmp_path, log="10:00:11 ERROR no\n", age=60.0).state == "failed"
    assert write_run(tmp_path, log=STEPS, kind="together").state == "running"


def test_the_command_with_other_settings_and_folders(root, tmp_path, monkeypatch, capsys):
    """Two runs of a simulation, two more, then all with other settings; logs in a folder of their own (pathvars)."""
    monkeypatch.chdir(tmp_path)
    grid = [{"model": ["vae", "ivae"], "data_seed": [0], "epochs": 5}]
    config = {"experiments": ["simulation_svae"], "pathvars": {"results": "out", "logs": "log/<results>"}}
    config["settings"] = {"simulation_svae": {"grid": grid, "training": {"steps": 10}}}
    for found in runs(build(Study, _merged(root, config)), "simulation_svae"):
        folder = tmp_path / "out" / "simulation_svae" / "runs" / found.id
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(run_settings(found) | {"seconds": 5.0}))
        (folder / "scores.tsv").write_text("run\n")
    log = tmp_path / "log" / "out" / "simulation_svae" / "train" / "vae-draw1.log"
    log.parent.mkdir(parents=True)
    log.write_text(STEPS)

    def printed() -> list[str]:
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
        assert main(["progress", "--configfile", "a.yaml"]) == 0
        return capsys.readouterr().out.splitlines()

    assert [line.split()[1:] for line in printed()[1:]] == [["2", "0", "0", "0", "0", "0", "2"]]
    grid[0]["data_seed"] = [0, 1]
    assert printed()[1].split()[1:] == ["2", "0", "1", "0", "0", "1", "4"]
    config["settings"]["simulation_svae"]["training"]["steps"] = 999
    lines = printed()
    assert lines[1].split()[1:] == ["0", "2", "1", "0", "0", "1", "4"]
    assert (
        lines[2] == "outdated: trained with settings other than the current ones; the next Snakemake call reruns them"
    )
    assert lines[3] == "time left: unknown until a training is done"


def _merged(root, config: dict) -> dict:
    """A configuration over config/config.yaml."""
    merged = yaml.safe_load((root / "config" / "config.yaml").read_text())
    update_config(merged, config)
    return merged

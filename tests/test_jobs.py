"""The jobs of runs: cached results are reused, several runs share a process, an interrupted job loses only time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_files import settings
from small_jobs import FILES, PLACE, SAME, SCORES, data
from small_model import screen

from samsvae.errors import ConfigError, SamsvaeError
from samsvae.study import jobs as job_module
from samsvae.study.cache import Cache, stamp_of
from samsvae.study.jobs import TRAINED, Data, failed_in, run_one, run_together, take_one
from samsvae.study.script import CALL
from samsvae.tables import read
from samsvae.training import steps


def job(asked: dict, found: Data, folder: Path, caplog) -> tuple[bool, bool]:
    """Whether a job trained, and whether it scored. Its outputs are deleted before, as Snakemake does."""
    before = {name: os.stat(folder / name).st_ino for name in FILES if (folder / name).exists()}
    cached = [folder / ".trained" / "model.pt", folder / ".scored" / "scores.tsv"]
    times = [path.stat().st_mtime_ns if path.exists() else 0 for path in cached]
    for name in before:
        (folder / name).unlink()
    run_one(asked, found, folder, PLACE)
    assert all((folder / name).is_file() for name in FILES)
    return tuple(path.stat().st_mtime_ns != time for path, time in zip(cached, times, strict=True))


def test_a_job_recomputes_what_has_changed_and_reuses_the_rest(tmp_path, caplog):
    """It trains if code, settings, cells or split have changed; it scores then, or if the scoring has changed."""
    synthetic, folder = screen(), tmp_path / "run"
    found, asked = data(tmp_path, synthetic), settings()
    assert job(asked, found, folder, caplog) == (True, True)
    first = {name: (folder / name).read_bytes() for name in FILES}
    assert job(asked, found, folder, caplog) == (False, False)
    assert {name: (folder / name).read_bytes() for name in FILES} == first

    def twice(asked, found) -> tuple[bool, bool]:
        recomputed = job(asked, found, folder, caplog)
        assert job(asked, found, folder, caplog) == (False, False)
        return recomputed

    assert twice(asked, replace(found, codes={**found.codes, "training": "t2"})) == (True, True)
    assert twice(settings(seed=1), found) == (True, True)
    assert (folder / "model.pt").read_bytes() != first["model.pt"]
    assert twice(settings(seed=1), replace(found, codes={**found.codes, "scoring": "s2"})) == (False, True)
    assert twice(settings(seed=1), replace(found, evaluation={**SCORES, "ate_samples": 30})) == (False, True)
    assert twice(asked, data(tmp_path, replace(synthetic, counts=synthetic.counts + 1))) == (True, True)
    assert twice(asked, data(tmp_path, synthetic, np.resize(["train", "val"], 120))) == (True, True)
    assert twice(asked, data(tmp_path, synthetic)) == (True, True)
    assert {name: (folder / name).read_bytes() for name in SAME} == {name: first[name] for name in SAME}


def test_outputs_are_hard_links_to_the_cache(tmp_path, caplog):
    job(settings(), data(tmp_path), tmp_path / "run", caplog)
    for name in FILES:
        cached = tmp_path / "run" / (".trained" if name in TRAINED.values() else ".scored") / name
        assert cached.samefile(tmp_path / "run" / name)


@pytest.mark.parametrize("damage", ["stamp", "file", "both", "output"])
def test_a_damaged_cache_is_not_used(tmp_path, caplog, damage):
    found, folder = data(tmp_path), tmp_path / "run"
    job(settings(), found, folder, caplog)
    if damage in ("stamp", "both"):
        (folder / ".trained" / "stamp").write_text("")
    if damage in ("file", "both"):
        (folder / ".trained" / "history.tsv").unlink()
    if damage == "output":  # a hard link to the cached file, overwritten in place
        os.truncate(folder / "model.pt", 100)
    assert job(settings(), found, folder, caplog)[0]


def test_a_job_that_fails_leaves_the_cache(tmp_path, caplog):
    found, folder = data(tmp_path), tmp_path / "run"
    job(settings(), found, folder, caplog)
    first = (folder / "model.pt").read_bytes()
    with pytest.raises(ConfigError, match="encoding: 'sum'"):
        run_one(settings("svae_plus"), found, folder, PLACE)
    assert job(settings(), found, folder, caplog)[0]  # its stamp is gone, because another training had started
    assert (folder / "model.pt").read_bytes() == first


def test_a_failed_run_names_its_retry_command_and_resume_step(tmp_path, caplog, monkeypatch):
    """The GPU fails at step 5; the state of step 4 is saved."""
    monkeypatch.setenv(CALL, "snakemake --cores 8 --configfile config/core.yaml")
    found, folder = data(tmp_path), tmp_path / "run"
    real, calls = steps.objective, []

    def fails(model, *arguments, **named):
        calls.append(model.training)
        if sum(calls) == 5:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return real(model, *arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="illegal memory access") as raised:
        patch.setattr(steps, "objective", fails)
        run_one(settings(), found, folder, replace(PLACE, save_every=1e-9))
    (note,) = raised.value.__notes__
    assert note == (
        f"{folder} failed. To rerun it alone, from step 4 on: "
        f"snakemake --cores 8 --configfile config/core.yaml -- {folder}/scores.tsv"
    )
    with pytest.raises(ConfigError) as raised:  # with other settings the state is of no use
        run_one(settings("svae_plus"), found, folder, PLACE)
    assert raised.value.__notes__ == [note.replace(", from step 4 on", "")]
    caplog.set_level("INFO")
    run_one(settings(), found, folder, PLACE)
    assert "resumed at step 4 of" in caplog.text


def test_runs_in_one_process_equal_runs_in_separate_jobs(tmp_path, caplog):
    """The bytes are the same. A run that fails is reported and does not stop the others."""
    caplog.set_level("INFO")
    found, names = data(tmp_path), ("sams_vae_corr", "svae_plus", "cpa_vae_mf")
    runs = [settings(name) for name in names]  # svae_plus does not accept pairs in the summed encoding
    ids = [asked["run"] for asked in runs]
    folders = {run: tmp_path / "together" / "runs" / run for run in ids}
    logs = {run: tmp_path / "logs" / f"{run}.log" for run in ids}
    assert failed_in(tmp_path / "batch.tsv") == {}
    run_together(runs, found, folders, logs, PLACE, tmp_path / "batch.tsv")
    table = read(tmp_path / "batch.tsv").set_index("run")
    assert table["state"].to_dict() == dict(zip(ids, ("done", "failed", "done"), strict=True))
    assert "ConfigError: encoding: 'sum' is not allowed" in table.loc[ids[1], "reason"]
    assert "ERROR encoding: 'sum'" in logs[ids[1]].read_text()
    assert f"To rerun it alone: snakemake --cores 1 -- {folders[ids[1]]}/scores.tsv" in logs[ids[1]].read_text()
    assert "best validation loss" in logs[ids[0]].read_text() and "svae_plus" not in logs[ids[0]].read_text()
    assert failed_in(tmp_path / "batch.tsv") == {ids[1]: table.loc[ids[1], "reason"]}
    for asked in (runs[0], runs[2]):
        run = asked["run"]
        assert not (folders[run] / "model.pt").exists()  # outputs are written by another job
        take_one(asked, found, folders[run], tmp_path / "batch.tsv")
        assert job(asked, found, folders[run], caplog) == (False, False)
        assert job(asked, found, tmp_path / "alone" / run, caplog) == (True, True)
        for name in SAME:
            assert (folders[run] / name).read_bytes() == (tmp_path / "alone" / run / name).read_bytes(), name
    with pytest.raises(SamsvaeError, match=r"failed when it was trained together with other runs: .*encoding: 'sum'"):
        take_one(runs[1], found, folders[ids[1]], tmp_path / "batch.tsv")
    os.truncate(folders[ids[0]] / ".trained" / "model.pt", 100)
    with pytest.raises(SamsvaeError, match=r"\.trained: the cache is incomplete or damaged\. Delete .*batch\.tsv"):
        take_one(runs[0], found, folders[ids[0]], tmp_path / "batch.tsv")
    # a new seed is added: the others are not trained again
    more = [runs[0], settings(seed=4), runs[2]]
    folders["sams_vae_corr-seed4"] = tmp_path / "together" / "runs" / "new"
    logs["sams_vae_corr-seed4"] = tmp_path / "logs" / "new.log"
    caplog.clear()
    run_together(more, found, folders, logs, PLACE, tmp_path / "batch.tsv")
    assert set(read(tmp_path / "batch.tsv")["state"]) == {"done"}
    cached = [record.args[0] for record in caplog.records if record.msg == "%s: taken from the cache"]
    assert cached == [ids[2]]  # the cache of the first was damaged above
    first = (tmp_path / "batch.tsv").read_bytes()
    run_together(more, found, folders, logs, PLACE, tmp_path / "batch.tsv")
    assert (tmp_path / "batch.tsv").read_bytes() == first


def test_a_run_whose_folder_cannot_be_used_does_not_stop_the_others(tmp_path):
    found, runs = data(tmp_path), [settings("sams_vae_corr"), settings("cpa_vae_mf")]
    ids = [asked["run"] for asked in runs]
    folders, logs = {run: tmp_path / run for run in ids}, {run: tmp_path / f"{run}.log" for run in ids}
    folders[ids[0]].mkdir()
    (folders[ids[0]] / ".trained").touch()
    run_together(runs, found, folders, logs, PLACE, tmp_path / "batch.tsv")
    assert read(tmp_path / "batch.tsv")["state"].to_list() == ["failed", "done"]
    with pytest.raises(SamsvaeError, match=r"together with other runs: NotADirectoryError: .*\.trained"):
        take_one(runs[0], found, folders[ids[0]], tmp_path / "batch.tsv")


def test_an_interrupted_run_comes_last_in_the_next_try(tmp_path, monkeypatch):
    """It may be the run that kills the process each time; the others are then done by the second try."""
    found, runs = data(tmp_path), [settings("sams_vae_corr"), settings("cpa_vae_mf")]
    ids = [asked["run"] for asked in runs]
    folders, logs = {run: tmp_path / run for run in ids}, {run: tmp_path / f"{run}.log" for run in ids}
    real = job_module.fill_caches

    class Down(BaseException):
        """Like a kill: no handler in the process runs."""

    def fill_caches(run, *rest):
        real(run, *rest)
        if run.settings is runs[0]:
            (folders[ids[0]] / ".trained" / "stamp").unlink()
            raise Down

    monkeypatch.setattr(job_module, "fill_caches", fill_caches)
    for _ in range(2):
        with pytest.raises(Down):
            run_together(runs, found, folders, logs, PLACE, tmp_path / "batch.tsv")
    assert not (tmp_path / "batch.tsv").exists() and (folders[ids[1]] / ".scored" / "stamp").is_file()
    monkeypatch.undo()
    run_together(runs, found, folders, logs, PLACE, tmp_path / "batch.tsv")
    table = read(tmp_path / "batch.tsv")
    assert table[["run", "state"]].to_numpy().tolist() == [[ids[0], "done"], [ids[1], "done"]]


def test_a_stamp_depends_on_values_and_content(tmp_path):
    path = tmp_path / "a"
    path.write_text("1")
    first = stamp_of({"b": 1, "a": 2}, path)
    assert first == stamp_of({"a": 2, "b": 1}, path)
    os.utime(path, ns=(1, 1))
    assert first == stamp_of({"a": 2, "b": 1}, path)
    path.write_text("2")
    assert first != stamp_of({"a": 2, "b": 1}, path) and first != stamp_of({"a": 3, "b": 1}, path)


def test_an_interrupted_fill_is_not_complete(tmp_path):
    cache = Cache(tmp_path / "cache", "s", {"a": tmp_path / "a.txt"})
    cache.fill(lambda files: files["a"].write_text("first"))
    assert cache.is_complete() and not replace(cache, stamp="t").is_complete() and not cache.was_interrupted

    def interrupted(files):
        files["a"].write_text("sec")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cache.fill(interrupted)
    assert not cache.is_complete() and cache.was_interrupted


def test_a_job_with_nothing_to_do_does_not_import_torch(tmp_path, caplog):
    found, folder = data(tmp_path), tmp_path / "run"
    job(settings(), found, folder, caplog)
    order = json.dumps([settings(), vars(found), str(folder)])
    code = (
        "import json, sys\nfrom samsvae.study.jobs import Data, Place, run_one\n"
        "asked, found, folder = json.loads(sys.argv[1])\nrun_one(asked, Data(**found), folder, Place('cuda', 1, 1.0))\n"
        "print([name for name in ('torch', 'numpy', 'anndata') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, order], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# ---- interruption --------------------------------------------------------------------------------------------------

PROCESS = """
import json, sys
from samsvae.study.jobs import Data, Place, run_one
asked, found, folder = json.loads(sys.argv[1])
run_one(asked, Data(**found), folder, Place("cpu", 1, 1e-9))  # save the state of every step
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_and_restarted_process_ends_with_the_same_bytes(tmp_path, caplog, number):
    asked, found = settings(steps=100), data(tmp_path)
    run_one(asked, found, tmp_path / "whole", PLACE)
    folder = tmp_path / "run"
    state = folder / ".trained" / "state.pt"
    order = json.dumps([asked, vars(found), str(folder)])
    for kills in (True, True, False):
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", PROCESS, order], stderr=subprocess.PIPE, text=True)
        while kills and process.poll() is None:
            if state.exists() and state.stat().st_mtime_ns > before:
                process.send_signal(number)
                break
        said = process.communicate(timeout=120)[1]
        assert (process.returncode == 0) is not kills and (folder / "model.pt").exists() is not kills, said
        assert not kills or number == signal.SIGKILL or "Interrupted: stopped by SIGTERM at step" in said
    for name in SAME:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not state.exists()

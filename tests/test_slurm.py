"""The workflow on a real Slurm of one node with stand-ins for GPUs (tests/slurm): jobs that fail, stop and resume.

All tests share one cluster. The studies run at the same time, each in its own folder, from the same data.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

from samsvae.tables import read

sys.path.insert(0, str(Path(__file__).parent / "slurm"))
import cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(cluster.missing()), reason=f"Slurm is not installed: no {', '.join(cluster.missing())}"),
]

RUNS = Path("results/simulation_sams/runs")
CONFIG = {
    "checkpoint_minutes": 0.005,
    "title": "Slurm",
    "experiments": ["simulation_sams"],
    "pathvars": {"results": "results"},
    "screens": {
        "simulation_sams": {"options": {"n_perturbations": 8, "n_features": 20, "val_cells": 6, "test_cells": 6}}
    },
    "settings": {
        "simulation_sams": {
            "model": {"n_latent": 6, "width": 16, "embedding_width": 16},
            "training": {"steps": 60, "batch_size": 64, "particles": 2, "validation_particles": 2},
            "evaluation": {"iwelbo_particles": 5, "bound_particles": 5, "bound_cells": 5, "ate_samples": 40},
        }
    },
}
SHORT = [{"model": ["cond_vae", "sams_vae_corr"], "cells": [20], "data_seed": [0]}]
#: About 10 s of one core: long enough to be interrupted.
LONG = [{"model": ["sams_vae_corr"], "cells": [20], "data_seed": [0], "steps": [1500], "validation_every": [100]}]
SETTLED = ("model.pt", "history.tsv", "scores.tsv", "per_condition.tsv", "effects.h5ad")


class Site:
    """A cluster, a copy of the checkout, the profile as users of the cluster would adapt it, and folders of studies."""

    def __init__(self, root: Path, folder: Path, env: dict[str, str]):
        self.folder, self.env, self.checkout = folder, env, folder / "checkout"
        for name in ("rules", "workflow", "config", "profiles", "envs", "resources", "src"):
            shutil.copytree(root / name, self.checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(root / "Snakefile", self.checkout)
        self.data: Path | None = None

    def study(self, name: str, grid: list[dict], **profile: int | str) -> Path:
        """A folder with a configuration, a profile with these settings changed, and the data, if they exist already."""
        where = self.folder / name
        shutil.copytree(self.data, where) if self.data else where.mkdir()
        config = {**CONFIG, "settings": {"simulation_sams": {**CONFIG["settings"]["simulation_sams"], "grid": grid}}}
        (where / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (where / "profile").mkdir(exist_ok=True)
        (where / "profile" / "profile.yaml").write_text(yaml.safe_dump(self.profile(**profile)))
        return where

    def profile(self, *, together: int = 6, minutes: int = 30) -> dict:
        """profiles/slurm with the lines of a site, which looks at the jobs every few seconds."""
        text = (self.checkout / "profiles" / "slurm" / "profile.yaml").read_text()
        for line in ("slurm-status-command: squeue", "slurm_partition: cpu", "SITE: slurm_partition: gpu"):
            assert text.count(f"# {line}\n") == (3 if line.startswith("SITE") else 1)  # once for each rule that trains
            text = text.replace(f"# {line}\n", line.removeprefix("SITE: ") + "\n")
        found = yaml.safe_load(text)
        train = found["set-resources"]["train"]
        assert train["runtime"] == "attempt * 30" and found["retries"] == 2 and found["config"] == ["runs_per_job=6"]
        train["runtime"], found["config"] = f"attempt * {minutes}", [f"runs_per_job={together}"]
        found |= {"slurm-init-seconds-before-status-checks": 4, "seconds-between-status-checks": 1, "latency-wait": 10}
        return found

    def start(self, where: Path, *arguments: str, local: bool = False) -> subprocess.Popen:
        """Start Snakemake in the folder of a study; its output goes to a file there."""
        profile = self.checkout / "profiles" / "default" if local else where / "profile"
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(self.checkout / "Snakefile")]
        command += ["--workflow-profile", str(profile), "--configfile", "config.yaml", *arguments]
        with open(where / "output", "w") as out:
            return subprocess.Popen(command, cwd=where, env=os.environ if local else self.env, stdout=out, stderr=out)

    def run(self, where: Path, *arguments: str, ok: bool = True, local: bool = False) -> str:
        """Run Snakemake to its end and return its output."""
        return self.end(where, self.start(where, *arguments, local=local), ok=ok)

    def end(self, where: Path, process: subprocess.Popen, *, ok: bool = True) -> str:
        code = process.wait(280)
        text = (where / "output").read_text()
        assert (code == 0) == ok, text[-4000:]
        return text

    def ask(self, *command: str) -> str:
        return subprocess.run(command, env=self.env, check=True, capture_output=True, text=True, timeout=60).stdout

    def jobs(self, where: Path) -> list[dict[str, str]]:
        """The Slurm jobs that train runs of a study, in the order of their submission."""
        names = ("jobid", "workdir", "comment", "state", "timelimit", "minmemory", "tres-per-job", "partition")
        text = self.ask("squeue", "--noheader", "--states=all", "--sort=i", "-O", ",".join(f"{n}:200" for n in names))
        rows = [dict(zip(names, line.split(), strict=True)) for line in text.splitlines()]
        return [row for row in rows if row["workdir"] == str(where) and "train" in row["comment"]]

    def training(self, where: Path) -> int:
        """The process id of the running training in the folder of a study, once there is one."""

        def found() -> int | None:
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if process.joinpath("cwd").readlink() == where and re.search(
                        rb"\.train(_together)?\.py", (process / "cmdline").read_bytes()
                    ):
                        return int(process.name)
                except OSError:  # the process has ended
                    continue
            return None

        until(lambda: "state saved" in log_of(where))  # it takes steps, and reacts to signals between them
        return until(found)


def until(found: Callable, seconds: float = 200):
    """Wait until a function returns something, and return it."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)
    return value


def log_of(where: Path, run: str = "*-steps1500-*") -> str:
    """The log of a training, in a job of its own or with others; '' if there is none yet."""
    return "".join(path.read_text() for path in (where / "results/logs/simulation_sams").glob(f"t*/{run}.log"))


def settled(where: Path) -> dict[str, bytes]:
    """The files of the long training that depend only on its settings."""
    (folder,) = (where / RUNS).glob("*-steps1500-*")
    return {name: (folder / name).read_bytes() for name in SETTLED}


# ---- studies, all at the same time -----------------------------------------------------------------------------------

SCORES = "results/simulation_sams/scores.tsv"
LONG_RUN = "results/simulation_sams/runs/sams_vae_corr-steps1500-validation_every100-cells20-draw0/scores.tsv"


def complete(site: Site) -> tuple[Path, str]:
    where = site.study("complete", SHORT)
    shutil.rmtree(where / "results")
    return where, site.run(where, "--", SCORES)


def undisturbed(site: Site) -> Path:
    where = site.study("undisturbed", LONG)
    site.run(where, "--cores", "1", "--", LONG_RUN, local=True)
    return where


def failed(site: Site) -> tuple[Path, str, dict[Path, int], str]:
    """One of three runs fails: a file is in the place of its cache. After the fix, the same command runs again."""
    where = site.study("failed", [*SHORT, {**SHORT[0], "model": ["cpa_vae_mf"]}])
    runs = [where / RUNS / f"{model}-cells20-draw0" for model in ("cond_vae", "sams_vae_corr", "cpa_vae_mf")]
    runs[2].mkdir(parents=True)
    (runs[2] / ".trained").touch()
    targets = [str(run.relative_to(where) / "scores.tsv") for run in runs]
    early = site.run(where, "--", *targets, ok=False)
    (runs[2] / ".trained").unlink()
    others = {path: path.stat().st_mtime_ns for run in runs for path in run.glob("*.*")}
    return where, early, others, site.run(where, "--", *targets)


def over_time(site: Site) -> tuple[Path, str]:
    where = site.study("over_time", LONG, together=1, minutes=1)
    process = site.start(where, "--", LONG_RUN)
    os.kill(site.training(where), signal.SIGSTOP)  # so that it never finishes in time
    return where, site.end(where, process)


def requeued(site: Site) -> tuple[Path, str]:
    where = site.study("requeued", LONG)
    process = site.start(where, "--", LONG_RUN)
    site.training(where)
    site.ask("scontrol", "requeue", site.jobs(where)[0]["jobid"])
    return where, site.end(where, process)


def killed(site: Site) -> tuple[Path, str, str]:
    """Snakemake is killed, restarted while its job still runs, and restarted again after the job has ended."""
    where = site.study("killed", LONG, together=1)
    process = site.start(where, "--", LONG_RUN)
    training = site.training(where)
    os.kill(training, signal.SIGSTOP)  # so that it still runs when Snakemake is restarted
    process.kill()
    process.wait()
    early = site.run(where, "--", LONG_RUN, ok=False)
    os.kill(training, signal.SIGCONT)
    until(lambda: site.jobs(where)[0]["state"] == "COMPLETED")
    site.run(where, "--unlock")
    return where, early, site.run(where, "--", LONG_RUN)


@pytest.fixture(scope="module")
def site(root, tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("slurm")
    command = [sys.executable, str(root / "tests" / "slurm" / "cluster.py"), str(folder / "cluster")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        answer = process.stdout.readline()  # its stdin is ours: when this process dies, the cluster ends
        if not answer.startswith("export "):
            pytest.fail("no Slurm: see the message above")
        yield Site(root, folder, cluster.environment(folder / "cluster"))
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="module")
def results_of(site) -> Iterator[dict[str, Callable]]:
    """For each study, a function that waits for its result. All start from the same data, created here."""
    data = site.study("data", LONG)
    effects = "results/simulation_sams/splits/simulation_sams-cells20-draw0/given/effects.h5ad"
    site.run(data, "--cores", "2", "--", effects, local=True)
    site.data = data
    studies = (over_time, requeued, killed, failed, undisturbed, complete)
    with ThreadPoolExecutor(len(studies)) as pool:
        yield {study.__name__: pool.submit(study, site).result for study in studies}


@pytest.fixture(scope="module")
def reference(results_of) -> dict[str, bytes]:
    return settled(results_of["undisturbed"]())


def test_a_study_from_end_to_end(site, results_of):
    where, text = results_of["complete"]()
    assert "100%" in text
    scores = read(where / "results/simulation_sams/scores.tsv")
    assert {"cond_vae-cells20-draw0", "sams_vae_corr-cells20-draw0"} <= set(scores["run"])
    (job,) = site.jobs(where)  # the two trainings share it: one GPU, and the time limit for six
    assert (job["tres-per-job"], job["timelimit"], job["minmemory"]) == ("gres:gpu:1", "3:00:00", "16000M")
    assert job["partition"] == "gpu" and job["state"] == "COMPLETED"


def test_a_run_that_fails_among_several_names_the_reason_and_is_retried_alone(site, results_of):
    """The other runs have their results at once; after the fix, the same command trains only the failed one."""
    where, early, others, late = results_of["failed"]()
    first, second = site.jobs(where)
    assert "rule_train_together_" in first["comment"] and "rule_train_wildcards_" in second["comment"]
    assert (first["state"], second["state"]) == ("COMPLETED", "COMPLETED")
    assert (second["tres-per-job"], second["timelimit"]) == ("gres:gpu:1", "30:00")
    assert "failed when it was trained together with other runs: NotADirectoryError" in early
    (again,) = set(re.findall(r"cpa_vae_mf-cells20-draw0 failed. To rerun it alone: (.+)", early))
    assert again.endswith(f"--configfile config.yaml -- {RUNS}/cpa_vae_mf-cells20-draw0/scores.tsv")
    assert f"snakemake --workflow-profile {where}/profile" in again
    # the log of the submission names it too, although Snakemake had other arguments there
    assert again in log_of(where, "cpa_vae_mf-*")
    assert "1 of 1 steps (100%) done" in late
    done = {path.parent.name for path in others if path.name == "scores.tsv"}
    assert done == {"cond_vae-cells20-draw0", "sams_vae_corr-cells20-draw0"}
    assert others == {path: path.stat().st_mtime_ns for path in others}  # their files were not rewritten
    assert (where / RUNS / "cpa_vae_mf-cells20-draw0" / "scores.tsv").is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-ins have the numbers of real GPUs")
def test_a_training_uses_the_gpu_of_its_job(site, results_of):
    """One warning in the log of the shared job, and one in the log of the run with a job of its own."""
    where, *_ = results_of["failed"]()
    for run in ("simulation_sams-cells20-draw0.given.0", "cpa_vae_mf-*"):
        assert len(re.findall(r"torch cannot use GPU \d,", log_of(where, run))) == 1, run


def test_a_gpu_is_chosen_from_those_that_slurm_grants(site, root, tmp_path):
    """Two jobs with one GPU each and a job with two GPUs for its two processes, all at the same time."""
    hold = (
        "import os, sys, time; sys.path.insert(0, 'src'); from samsvae.study.gpus import hold_gpus\n"
        "with hold_gpus() as gpus:\n"
        "    print(gpus[0], os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\n"
        "    while not os.path.exists(sys.argv[1]): time.sleep(0.1)"
    )
    steps = [["--gpus=1"], ["--gpus=1"], ["--gpus=2", "--ntasks=2"]]
    commands = [["srun", "--mem=500", *step, sys.executable, "-c", hold, str(tmp_path / "go")] for step in steps]
    with contextlib.ExitStack() as running:
        jobs = [
            running.enter_context(subprocess.Popen(c, env=site.env, cwd=root, stdout=subprocess.PIPE, text=True))
            for c in commands
        ]
        printed = [job.stdout.readline().split() for job in (*jobs, jobs[-1])]  # the last has two processes
        (tmp_path / "go").touch()
        assert [job.wait(100) for job in jobs] == [0, 0, 0]
    assert all(held == visible for held, visible in printed)
    one, other, *both = (held for held, _ in printed)
    # Slurm uses the machine's numbers of GPUs, because nothing hides the other GPUs from a job here
    assert len({one, other, *both}) == 4


def test_a_training_at_its_time_limit_saves_its_state_and_the_retry_resumes(site, results_of, reference):
    where, text = results_of["over_time"]()
    first, second = site.jobs(where)
    assert (first["state"], first["timelimit"], first["minmemory"]) == ("TIMEOUT", "1:00", "16000M")
    assert (second["state"], second["timelimit"], second["minmemory"]) == ("COMPLETED", "2:00", "32000M")
    (stopped,) = re.findall(r"^\S+ ERROR stopped by SIGTERM at step (\d+) of 1500", text, flags=re.M)
    assert 0 < int(stopped) < 1500 and f"resumed at step {stopped} of 1500" in log_of(where)
    assert settled(where) == reference


def test_a_requeued_job_resumes(site, results_of, reference):
    where, text = results_of["requeued"]()
    (job,) = site.jobs(where)
    assert job["state"] == "COMPLETED" and "Error" not in text
    assert re.search(r"resumed at step [1-9]\d* of 1500", log_of(where))
    assert settled(where) == reference


def test_snakemake_killed_and_restarted_trains_nothing_twice(site, results_of, reference):
    where, early, late = results_of["killed"]()
    assert "locked" in early  # it starts no second job while the first one runs
    assert "Nothing to be done" in late and len(site.jobs(where)) == 1
    assert settled(where) == reference

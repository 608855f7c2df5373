"""One Snakemake at a time works in a folder of results."""

from __future__ import annotations

import errno
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from samsvae.errors import SamsvaeError
from samsvae.study import lock as module
from samsvae.study.lock import StudyLock

HOLDER = """
import subprocess, sys
from samsvae.study.lock import StudyLock
lock = StudyLock(sys.argv[1])
lock.take(["--cores", "2", "all the rest"])
child = subprocess.Popen(["sleep", "60"])  # a job, which may live longer than its Snakemake
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_second_holder_is_told_who_the_first_is(tmp_path, caplog):
    first, second = StudyLock(tmp_path / "results"), StudyLock(tmp_path / "results")
    first.take(["--cores", "8", "--", "all"])
    with pytest.raises(SamsvaeError) as raised:
        second.take([])
    assert re.fullmatch(
        rf"{tmp_path}/results: another Snakemake works in this folder of results: process {os.getpid()} on \S+, "
        r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d: snakemake --cores 8 -- all\. Wait until it ends or stop it, then "
        r"rerun the same command; or choose another folder of results\.",
        str(raised.value),
    )
    StudyLock(tmp_path / "other").take([])
    first.release()
    second.take(["-c1"])
    assert (tmp_path / "results" / ".lock").read_text().endswith(": snakemake -c1\n")
    second.release()
    first.take([])
    assert caplog.text == ""


def test_the_lock_is_free_when_its_holder_is_killed(tmp_path, root):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(
        command, env={"PYTHONPATH": str(root / "src"), "PATH": os.environ["PATH"]}, **pipes
    ) as holder:
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(SamsvaeError, match=rf"process {holder.pid} on .*snakemake --cores 2 'all the rest'"):
                StudyLock(tmp_path).take([])
            holder.kill()
            holder.wait()
            os.kill(child, 0)  # its job is alive
            StudyLock(tmp_path).take([])
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_is_one_warning(tmp_path, caplog, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(module.fcntl, "flock", unsupported)
    StudyLock(tmp_path).take([])
    (said,) = (record.getMessage() for record in caplog.records)
    assert said == (
        f"{tmp_path}/.lock: cannot be locked (No locks available), "
        "so do not start a second Snakemake with this folder of results."
    )


@pytest.mark.parametrize("planted", ["link", "FIFO", "folder"])
def test_something_else_in_place_of_the_lock_is_refused(tmp_path, planted):
    path, victim = tmp_path / ".lock", tmp_path / "victim"
    victim.write_text("precious")
    {"link": lambda: path.symlink_to(victim), "FIFO": lambda: os.mkfifo(path), "folder": path.mkdir}[planted]()
    with pytest.raises(SamsvaeError, match=r"\.lock: not a regular file, so it cannot be a lock"):
        StudyLock(tmp_path).take([])
    assert victim.read_text() == "precious"


class Waiting(http.server.BaseHTTPRequestHandler):
    """Answers no request before `go`; `asked` says that one has come."""

    asked, go = threading.Event(), threading.Event()

    def do_GET(self):
        self.asked.set()
        self.go.wait(60)
        self.send_error(503)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_two_snakemakes_with_one_folder_of_results(root, tmp_path):
    """From two working folders. The first waits for a download; the second must not start a job until it is gone."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Waiting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = {"size": 8, "checksum": f"md5:{0:032}", "urls": [f"http://127.0.0.1:{server.server_port}/a"]}
    config = {"screens": {"norman": {"source": source}}, "experiments": ["norman_ood"], "device": "cpu"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config | {"pathvars": {"results": str(tmp_path / "results")}}))
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    profile = ["--workflow-profile", str(root / "profiles" / "default"), "--configfile", str(tmp_path / "c.yaml")]
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile"), "--cores", "1", *profile]
    grid = str(tmp_path / "results" / "norman_ood" / "grid.tsv")

    clean = {name: value for name, value in os.environ.items() if name != "SAMSVAE_CALL"}

    def second(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [*command, *arguments], cwd=folders[1], capture_output=True, text=True, timeout=100, env=clean
        )
        return done.returncode, done.stdout + done.stderr

    target = str(tmp_path / "results" / "sources" / "norman.h5ad")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(
        [*command, "--", target], cwd=folders[0], env=clean, start_new_session=True, **pipes
    ) as first:
        try:
            assert Waiting.asked.wait(60)
            for idle in (["--dry-run", "--", grid], ["--unlock"]):  # these run no jobs
                assert second(*idle)[0] == 0, idle
            status, said = second("--", grid)
            assert status == 1 and "Traceback" not in said
            assert (
                f"{tmp_path}/results: another Snakemake works in this folder of results: process {first.pid} " in said
            )
            assert f"--configfile {tmp_path}/c.yaml -- {target}. Wait until it ends" in said
            assert not Path(grid).exists()
            first.kill()
            first.wait()
            status, said = second("--", grid)  # although the job of the killed Snakemake is still waiting
            assert status == 0 and Path(grid).is_file(), said
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            Waiting.go.set()
            server.shutdown()
            server.server_close()

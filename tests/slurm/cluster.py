"""A Slurm cluster of one node on this machine, with stand-ins for GPUs. It runs as long as stdin is open.

    python tests/slurm/cluster.py FOLDER     # prints the variables to export; Ctrl-D or Ctrl-C ends it

It needs the programs of Slurm and munge (Debian: slurmctld slurmd slurm-client munge) and nothing else of the system:
no init, no cgroups, no file outside FOLDER, no fixed port, no root. So it does not interfere with another Slurm. The
process that starts it holds the other end of stdin: when that process dies, for any reason, the cluster ends too.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
#: Some distributions install daemons in folders that are not in a user's PATH.
SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
GPUS = 8


def missing() -> list[str]:
    """The required programs that are not installed."""
    return [name for name in (*DAEMONS, "sbatch", "srun", "squeue") if not shutil.which(name, path=SEARCH)]


def free_ports(count: int) -> list[int]:
    """Distinct ports that no process listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def environment(folder: Path) -> dict[str, str]:
    """The environment in which sbatch, squeue and Snakemake talk to the cluster in a folder."""
    names = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    path = names.get("PATH", os.defpath)
    return {**names, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder / 'bin'}{os.pathsep}{path}"}


def write_files(folder: Path) -> None:
    """Write the configuration, the key and the stand-ins for GPUs."""
    for name in ("bin", "gpus", "munge", "slurmctld", "slurmd"):
        (folder / name).mkdir(parents=True, mode=0o755)
    key = folder / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    # Slurm assigns GPUs by number only if each is a character device; any device will do.
    for number in range(GPUS):
        (folder / "gpus" / f"gpu{number}").symlink_to(os.devnull)
    host = socket.gethostname().partition(".")[0]
    slurmctld, slurmd = free_ports(2)
    values = {"host": host, "user": getpass.getuser(), "folder": folder, "gpus": GPUS, "last": GPUS - 1}
    values |= {"slurmctld": slurmctld, "slurmd": slurmd}
    for name in ("slurm.conf", "gres.conf"):
        text = (Path(__file__).parent / f"{name}.in").read_text()
        (folder / name).write_text(text.format(**values))
    # The plugin removes SLURM_CONF before it calls srun in a job; this wrapper sets it again.
    srun = shutil.which("srun", path=SEARCH)
    (folder / "bin" / "srun").write_text(f'#!/bin/sh\nSLURM_CONF={folder / "slurm.conf"} exec {srun} "$@"\n')
    (folder / "bin" / "srun").chmod(0o755)


def start(folder: Path, name: str, *arguments: str) -> subprocess.Popen:
    """Start a daemon in the foreground, as a child of this process."""
    with open(folder / f"{name}.out", "ab") as out:
        return subprocess.Popen(
            [shutil.which(name, path=SEARCH), *arguments],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment(folder), cwd=folder,
        )  # fmt: skip


def ask(folder: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=30)


def wait(folder: Path, daemons: list[subprocess.Popen], what: str, *command: str, answer: str = "") -> None:
    """Wait until a command succeeds with an answer. RuntimeError with the logs after 30 s or if a daemon dies."""
    deadline = time.monotonic() + 30
    while (done := ask(folder, *command)).returncode or answer not in done.stdout:
        dead = [daemon.args[0] for daemon in daemons if daemon.poll() is not None]
        if dead or time.monotonic() > deadline:
            logs = "".join(f"--- {path.name}\n{path.read_text()[-1500:]}\n" for path in folder.glob("*.out"))
            raise RuntimeError(f"{what} does not answer; dead: {dead}; {done.stdout}{done.stderr}\n{logs}")
        time.sleep(0.1)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Run a cluster and yield the environment for its users; at the end, stop all of its jobs and daemons."""
    write_files(folder)
    daemons: list[subprocess.Popen] = []
    munge = folder / "munge"
    try:
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "seed", "log")]
        daemons.append(start(folder, "munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files))
        wait(folder, daemons, "munged", "munge", "--no-input", f"--socket={munge / 'socket'}")
        daemons.append(start(folder, "slurmctld", "-D"))
        wait(folder, daemons, "slurmctld", "squeue")
        daemons.append(start(folder, "slurmd", "-D"))
        wait(folder, daemons, "slurmd", "sinfo", "--noheader", "--format=%t", answer="idle")
        yield environment(folder)
    finally:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            end_jobs(folder)
        for daemon in reversed(daemons):
            end(daemon)
        end_leftovers(folder)


def end_jobs(folder: Path) -> None:
    """Cancel all jobs and give them ten seconds to end."""
    ask(folder, "scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}")
    ask(folder, "scancel", f"--user={getpass.getuser()}")
    deadline = time.monotonic() + 10
    while ask(folder, "squeue", "--noheader", "--states=RUNNING,COMPLETING").stdout and time.monotonic() < deadline:
        time.sleep(0.2)


def end(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def end_leftovers(folder: Path) -> None:
    """Kill the processes that daemons or jobs left behind: those with this cluster's configuration."""
    mark = os.fsencode(f"{folder}{os.sep}")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


def main() -> None:
    if missing():
        sys.exit(
            f"Not installed: {', '.join(missing())} (Debian: apt-get install slurmctld slurmd slurm-client munge)."
        )
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).absolute()
    if folder.exists():
        sys.exit(f"{folder} exists; name a new folder.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt), cluster(folder) as env:
        print(f"export SLURM_CONF={env['SLURM_CONF']} PATH={folder / 'bin'}:$PATH", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()

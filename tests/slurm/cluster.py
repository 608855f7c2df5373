"""A Slurm of one node on this machine, with stand-ins for graphics cards, for as long as stdin is open.

    python tests/slurm/cluster.py FOLDER     # prints what to export; Ctrl-D or Ctrl-C ends it

It needs the programs of Slurm and munge (Debian: slurmctld slurmd slurm-client munge) and nothing of the system:
no init, no cgroups, no file outside FOLDER, no fixed port, no root. So it stands beside any other Slurm. Whoever
starts it holds the other end of stdin: when that process dies, by whatever means, the cluster ends too.
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
#: Some distributions keep daemons where a user's PATH does not look.
SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
CARDS = 8


def missing() -> list[str]:
    """The programs that are needed and not installed."""
    return [name for name in (*DAEMONS, "sbatch", "srun", "squeue") if not shutil.which(name, path=SEARCH)]


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def environment(folder: Path) -> dict[str, str]:
    """What makes sbatch, squeue and Snakemake talk to the cluster in a folder."""
    names = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    path = names.get("PATH", os.defpath)
    return {**names, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder / 'bin'}{os.pathsep}{path}"}


def write_files(folder: Path) -> None:
    """Configuration, key and stand-ins of the cards."""
    for name in ("bin", "cards", "munge", "slurmctld", "slurmd"):
        (folder / name).mkdir(parents=True, mode=0o755)
    key = folder / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    # Slurm gives out cards by number only where each is a character device; any will do.
    for number in range(CARDS):
        (folder / "cards" / f"card{number}").symlink_to(os.devnull)
    host = socket.gethostname().partition(".")[0]
    slurmctld, slurmd = free_ports(2)
    values = {"host": host, "user": getpass.getuser(), "folder": folder, "cards": CARDS, "last": CARDS - 1}
    values |= {"slurmctld": slurmctld, "slurmd": slurmd}
    for name in ("slurm.conf", "gres.conf"):
        text = (Path(__file__).parent / f"{name}.in").read_text()
        (folder / name).write_text(text.format(**values))
    # The plugin takes SLURM_CONF from the srun of a job; this one puts it back.
    srun = shutil.which("srun", path=SEARCH)
    (folder / "bin" / "srun").write_text(f'#!/bin/sh\nSLURM_CONF={folder / "slurm.conf"} exec {srun} "$@"\n')
    (folder / "bin" / "srun").chmod(0o755)


def start(folder: Path, name: str, *arguments: str) -> subprocess.Popen:
    """A daemon in the foreground, as a child of this process."""
    with open(folder / f"{name}.out", "ab") as out:
        return subprocess.Popen(
            [shutil.which(name, path=SEARCH), *arguments],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment(folder), cwd=folder,
        )  # fmt: skip


def ask(folder: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=30)


def wait(folder: Path, daemons: list[subprocess.Popen], what: str, *command: str, answer: str = "") -> None:
    """Until a command succeeds with an answer; RuntimeError with the logs after 30 s or the death of a daemon."""
    deadline = time.monotonic() + 30
    while (done := ask(folder, *command)).returncode or answer not in done.stdout:
        dead = [daemon.args[0] for daemon in daemons if daemon.poll() is not None]
        if dead or time.monotonic() > deadline:
            logs = "".join(f"--- {path.name}\n{path.read_text()[-1500:]}\n" for path in folder.glob("*.out"))
            raise RuntimeError(f"{what} does not answer; dead: {dead}; {done.stdout}{done.stderr}\n{logs}")
        time.sleep(0.1)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A running cluster; yields the environment for its users. Ends all of its jobs and daemons."""
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
    """Cancel all jobs and give them some seconds to go."""
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
    """Kill what a daemon or a job left behind: the processes that were started with this cluster's configuration."""
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
        sys.exit(f"{folder} exists; name a folder to make.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt), cluster(folder) as env:
        print(f"export SLURM_CONF={env['SLURM_CONF']} PATH={folder / 'bin'}:$PATH", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()

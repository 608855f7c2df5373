"""A process that is killed at any moment, or whose disk is full, ends with the same bytes after a restart.

tests/kill_loop.py does the same with complete studies; it is run by hand.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_files import settings
from small_jobs import SAME, data

from samsvae.files import atomic, no_room
from samsvae.study.jobs import Place, run_one

WANTED = (*SAME, ".trained/model.pt", ".trained/history.tsv", ".trained/stamp", ".scored/stamp")


def started(*arguments: object, root: Path, **options) -> subprocess.Popen:
    """Start this file as a script that calls a function with these arguments."""
    path = os.pathsep.join([str(root / "src"), str(root / "tests")])
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


def finished(*arguments: object, root: Path, **options) -> tuple[int, str]:
    """Exit status and output."""
    process = started(*arguments, root=root, **options)
    screen = process.communicate(timeout=300)[0]
    return process.returncode, screen


def until(found, seconds: float = 60.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


# ---- one file ------------------------------------------------------------------------------------------------------


def write_and_wait(path: str) -> None:
    with atomic(path) as aside:
        aside.write_text("half")
        time.sleep(60)


def test_the_next_write_removes_what_a_killed_process_left(tmp_path, root):
    path = tmp_path / "a.b.tsv"
    for name in (".a.7.tsv", ".a.b.c.7.tsv", ".a.b.tsv", ".a.b.7.json"):  # of other paths
        (tmp_path / name).write_text("another's")
    others = {p.name for p in tmp_path.iterdir()}
    process = started("write_and_wait", path, root=root)
    until(lambda: len(list(tmp_path.iterdir())) == len(others) + 1)
    process.kill()
    process.communicate()
    assert {p.name for p in tmp_path.iterdir()} == others | {f".a.b.{process.pid}.tsv"}
    with atomic(path) as aside:
        aside.write_text("whole")
    assert {p.name for p in tmp_path.iterdir()} == others | {"a.b.tsv"} and path.read_text() == "whole"


def test_the_later_of_two_writers_of_a_path_wins(tmp_path, monkeypatch):
    """As when only Snakemake was killed: its script continues while the next one starts."""
    path = tmp_path / "a.tsv"
    with pytest.raises(FileNotFoundError), atomic(path) as first:
        first.write_text("first")
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with atomic(path) as second:
            assert not first.exists() and second != first
            second.write_text("second")
    assert path.read_text() == "second" and list(tmp_path.iterdir()) == [path]


# ---- a full disk ---------------------------------------------------------------------------------------------------


def behind(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EDQUOT, "whatever"), errno.EDQUOT),
        (RuntimeError("cannot close (errno = 28, error message = 'No space left on device', buf = 0x5)"), errno.ENOSPC),
        (behind(AttributeError("fileno"), OSError(errno.ENOSPC, "whatever")), errno.ENOSPC),
        (OSError(errno.EACCES, "Permission denied"), None),
        (behind(ValueError("odd"), KeyError("x")), None),
        (None, None),
    ],
)
def test_a_full_disk_is_recognised_in_any_error(error, number):
    assert no_room(error) == number


def write_big(kind: str, path: str, log: str) -> None:
    """Write about 4 MB by one of the writers of the workflow, in a session like a script."""
    from samsvae.study.script import session

    with session(log):
        import numpy as np

        noise = np.random.default_rng(0).random((700, 700))
        if kind == "counts":
            import h5py

            from samsvae.screens.screen import _write_counts

            with atomic(path) as aside, h5py.File(aside, "w") as file:
                _write_counts(file, [_counts(noise)] * 20, 700)
        elif kind == "h5ad":
            import anndata as ad

            from samsvae.matrices import write_h5ad

            write_h5ad(ad.AnnData(noise, layers={"a": noise, "b": noise}), path)
        elif kind == "figure":
            import pandas as pd
            from matplotlib.figure import Figure

            from samsvae.figures.style import save

            figure = Figure((20, 20))
            figure.subplots().imshow(noise, interpolation="nearest")
            save(figure, path[:-4], {"": pd.DataFrame({"a": [1]})})
        else:
            import pandas as pd

            from samsvae.tables import write

            write(pd.DataFrame(noise), path)


def _counts(noise):
    import numpy as np
    import scipy.sparse as sp

    return sp.csr_matrix((noise * 2**30).astype(np.int32))


BIG = {"counts": "h5ad", "h5ad": "h5ad", "figure": "png", "table": "tsv"}


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("kind", list(BIG))
def test_a_full_disk_is_one_sentence_and_leaves_no_partial_file(small_disk, root, kind):
    for path in small_disk.iterdir():
        path.unlink()
    path = small_disk / f"a.{BIG[kind]}"
    path.write_text("old")
    status, screen = finished("write_big", kind, path, small_disk / "a.log", root=root)
    assert (status, screen) == (
        1,
        f"OSError: {path}: the disk is full; no partial file is left. Free some space and rerun.\n",
    )
    assert path.read_text() == "old" and {p.name for p in small_disk.iterdir()} <= {path.name, "a.log"}


def test_a_limit_on_the_file_size_is_one_sentence_too(tmp_path, root):
    path, most = tmp_path / "a.h5ad", 1 << 20
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # noqa: E731
    status, screen = finished("write_big", "h5ad", path, tmp_path / "a.log", root=root, preexec_fn=limit)
    assert status == 1 and screen.startswith(f"OSError: {path}: it exceeds the largest file size allowed here; ")
    assert screen.count("\n") == 1 and [p.name for p in tmp_path.iterdir()] == ["a.log"]


# ---- one training --------------------------------------------------------------------------------------------------


def train(folder: Path, found, *, seed: int = 0, last: int | None = None, every: float = 300.0) -> bool:
    """Whether a training in a child process finished. It is killed at its call number `last` that touches a file."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    import io

    left = [last]

    def counted(real):
        def call(*args, **options):
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    for module, names in ((os, ("replace", "link", "unlink", "fsync")), (io, ("open",))):
        for name in names:
            setattr(module, name, counted(getattr(module, name)))
    run_one(settings(seed=seed, steps=3), found, folder, Place("cpu", 1, every))
    os._exit(0)


def content(folder: Path) -> dict[str, bytes]:
    """The bytes that must be the same. Only the first line of a stamp counts: the others cover a record of times."""
    return {
        name: data.split(b"\n")[0] if name.endswith("stamp") else data
        for name, data in ((name, (folder / name).read_bytes()) for name in WANTED)
    }


def every_moment(here: str) -> None:
    """Kill a training at every call that touches a file, then restart it. Its folder holds a run of another seed.

    The restart must leave the same files as an undisturbed training, even if the saved state has lost bytes. The same
    holds if the restart has the other seed.
    """

    here, sizes = Path(here), [0, 1000]
    files = data(here)
    whole, other, folder, again = (here / name for name in ("whole", "other", "killed", "again"))
    # children inherit what is imported and warmed up here, so that each needs a seventh of a second
    run_one(settings(seed=2, steps=3), files, here / "first", Place("cpu", 1, 300.0))
    assert train(whole, files) and train(other, files, seed=1)
    assert content(whole) != content(other)
    wanted = {path.relative_to(whole) for path in whole.rglob("*")}
    moment, finished, saved = 0, False, 0
    while not finished:
        shutil.copytree(other, folder)
        finished = train(folder, files, last=moment, every=1e-9)
        if (folder / "model.pt").read_bytes() != (other / "model.pt").read_bytes():
            shutil.copytree(folder, again)
            assert train(again, files, seed=1) and content(again) == content(other), moment
            shutil.rmtree(again)
        state = folder / ".trained" / "state.pt"
        if state.is_file():
            saved += 1
            os.truncate(state, sizes.pop() if sizes else state.stat().st_size)
        assert train(folder, files), moment
        assert content(folder) == content(whole), moment
        for path in {path.relative_to(folder) for path in folder.rglob("*")} - wanted:
            print("left:", path)
        shutil.rmtree(folder)
        moment += 1
    assert moment > 30 and saved > 10 and not sizes


@pytest.fixture(scope="module")
def moments(root, tmp_path_factory) -> tuple[int, str]:
    return finished("every_moment", tmp_path_factory.mktemp("moments"), root=root)


@pytest.mark.slow
def test_a_training_killed_at_any_moment_ends_with_the_same_bytes(moments):
    status, screen = moments
    assert status == 0, screen


@pytest.mark.slow
def test_a_killed_training_leaves_no_extra_files(moments):
    assert "left:" not in moments[1]


# ---- one rule ------------------------------------------------------------------------------------------------------

MADE = "results/data/simulation_sams-cells20-draw0/screen.h5ad"


def snakemake(root: Path, where: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile"), "--cores", "1"]
    command += ["--workflow-profile", str(root / "profiles/default"), "--configfile", str(root / "tests/smoke.yaml")]
    where.mkdir(exist_ok=True)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *arguments], cwd=where, start_new_session=True, **streams)


@pytest.mark.slow
def test_a_file_that_snakemake_has_not_recorded_is_remade(root, tmp_path):
    """Snakemake is killed after a file is written and before it is recorded. The file is not trusted, even if empty."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    said = snakemake(root, whole, "--", MADE).communicate()[0]
    assert (whole / MADE).is_file(), said
    process = snakemake(root, killed, "--", MADE)
    until((killed / MADE).is_file)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    os.truncate(killed / MADE, 0)
    snakemake(root, killed, "--unlock").communicate()
    said = snakemake(root, killed, "--", MADE).communicate()[0]
    assert (killed / MADE).read_bytes() == (whole / MADE).read_bytes(), said


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])

"""Damaged files are not used: the digests of what a job has written, and the shape of tables without a digest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from small_files import write_files
from small_model import screen

from samsvae.data.arrays import read_screen, read_split
from samsvae.errors import DataError
from samsvae.evaluation.collect import collect_histories, collect_scores
from samsvae.files import DIGESTS, digest_of, forget, record, verify, write_json, write_table
from samsvae.matrices import read_h5ad, write_h5ad
from samsvae.screens.pack import write_arrays
from samsvae.study.cost import COST, collect_cost
from samsvae.study.script import NEW_OBJECTS
from samsvae.tables import read, read_json

RUNS = ("vae-seed0", "vae-seed1")


def write_run(folder: Path, run: str, shift: float) -> None:
    """The files of a run that its experiment is collected from, and the record of the job that wrote them."""
    folder.mkdir(parents=True)
    metrics = [("iwelbo", "val"), ("iwelbo", "test"), ("ate_r2", "all"), ("ate_pearson", "all")]
    scores = [
        {"run": run, "protocol": "published", "metric": metric, "split": split, "value": 0.125 + i + shift}
        for i, (metric, split) in enumerate(metrics)
    ]
    write_table(scores, folder / "scores.tsv")
    steps = [{"run": run, "step": s, "epoch": s, "train_loss": 9.5 - s, "val_loss": 9.75 - s} for s in range(1, 7)]
    write_table(steps, folder / "history.tsv")
    conditions = [{"condition": f"g{i}", "ate_r2": 0.5 + i / 64, "run": run} for i in range(6)]
    write_table(conditions, folder / "per_condition.tsv")
    write_json(dict.fromkeys(COST, 1) | {"run": run, "seconds": 12.5 + shift}, folder / "run.json")
    matrix = ad.AnnData(
        obs=pd.DataFrame(index=["a", "b"]), obsm={"mask_probability": np.full((2, 300), 0.25 + shift, np.float32)}
    )
    write_h5ad(matrix, folder / "perturbations.h5ad")
    record(sorted(folder.glob("*.*")))


@pytest.fixture
def experiment(tmp_path) -> Path:
    for number, run in enumerate(RUNS):
        write_run(tmp_path / "e" / "runs" / run, run, number / 8)
    grid = [{"run": run, "model": "vae", "method": "VAE", "inference": "", "seed": i} for i, run in enumerate(RUNS)]
    write_table([*grid, {**grid[0], "run": "vae-seed2", "seed": 2}], tmp_path / "e" / "grid.tsv")
    record([tmp_path / "e" / "grid.tsv"])
    return tmp_path / "e"


def lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[bytes], bytes]:
    return lambda content: b"".join(change(content.splitlines(keepends=True)))


def swapped(content: bytes) -> bytes:
    """The last two columns in the other order, with or without their names."""
    rows = [line.split(b"\t") for line in content.splitlines()]
    return b"".join(b"\t".join([*row[:-2], row[-1], row[-2]]) + b"\n" for row in rows)


def values_swapped(content: bytes) -> bytes:
    return content.splitlines(keepends=True)[0] + b"".join(swapped(content).splitlines(keepends=True)[1:])


def digit_flipped(content: bytes) -> bytes:
    """The last digit of the middle line is another digit."""
    at = len(content) // 2 + content[len(content) // 2 :].index(b"\n") - 1
    while not content[at : at + 1].isdigit():
        at -= 1
    return content[:at] + bytes([ord("0") + (content[at] - ord("0") + 1) % 10]) + content[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "half, at the end of a line": lines(lambda found: found[: len(found) // 2]),
    "half, within a line": lambda content: content[: len(content) // 2 + 1],
    "without its last line": lines(lambda found: found[:-1]),
    "without its last line end": lambda content: content[:-1],
    "without a line": lines(lambda found: [*found[:2], *found[3:]]),
    "a line twice": lines(lambda found: [*found, found[-1]]),
    "two lines swapped": lines(lambda found: [found[0], found[2], found[1], *found[3:]]),
    "another digit": digit_flipped,
    "a minus": lambda content: content[:-4] + b"-" + content[-3:],
    "columns swapped": swapped,
    "values swapped": values_swapped,
    "zeroed at its end": lambda content: content[:-10] + bytes(10),
    "zeroed": lambda content: bytes(len(content)),
    "empty": lambda content: b"",
    "the header only": lines(lambda found: found[:1]),
    "another character": lambda content: content.replace(b"e", b"f", 1),
    "Windows line ends": lambda content: content.replace(b"\n", b"\r\n"),
}
TABLES = ("runs/vae-seed0/scores.tsv", "runs/vae-seed0/history.tsv", "runs/vae-seed0/per_condition.tsv", "grid.tsv")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_not_read(experiment, name, damage):
    path = experiment / name
    assert len(read(path)) >= 3
    content = path.read_bytes()
    damaged = DAMAGES[damage](content)
    assert damaged != content
    path.write_bytes(damaged)
    with pytest.raises(DataError) as raised:
        read(path)
    assert str(raised.value) == (
        f"{path}: the content does not match what was written (damaged, or edited by hand). "
        "Delete it and rerun the same command."
    )
    path.write_bytes(content)
    assert len(read(path)) >= 3


@pytest.mark.parametrize("name", ["scores.tsv", "history.tsv", "per_condition.tsv", "run.json", "perturbations.h5ad"])
def test_the_file_of_another_run_is_not_read(experiment, name):
    path = experiment / "runs" / RUNS[0] / name
    shutil.copyfile(experiment / "runs" / RUNS[1] / name, path)
    with pytest.raises(DataError, match=f"{name}: the content does not match"):
        {"tsv": read, "json": read_json, "h5ad": read_h5ad}[path.suffix[1:]](path)


@pytest.mark.parametrize("name", ["run.json", "perturbations.h5ad"])
def test_one_flipped_bit_is_noticed(experiment, name):
    path = experiment / "runs" / RUNS[0] / name
    content = path.read_bytes()
    reader = read_json if name.endswith("json") else read_h5ad
    for at in np.linspace(0, len(content) - 1, 20).astype(int):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(DataError, match=f"{name}: the content does not match"):
            reader(path)
    path.write_bytes(content)
    reader(path)


def test_splits_and_screens_are_verified_by_their_readers_too(tmp_path):
    """Commands and notebooks use them as well. An npz file has checksums of its own."""
    arrays, cells = write_files(tmp_path, screen())
    names = read_screen(arrays).cells
    shutil.copyfile(cells, tmp_path / "screen.h5ad")
    record([cells, tmp_path / "screen.h5ad"])
    for path, reader in (
        (cells, lambda path: read_split(path, names)),
        (tmp_path / "screen.h5ad", lambda path: write_arrays(path, tmp_path / "out.npz")),
    ):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b"\1")
        with pytest.raises(DataError, match=f"{path.name}: the content does not match"):
            reader(path)


def test_a_changed_large_file_is_noticed(tmp_path):
    """A process reads a large file once, until its time or size changes."""
    path = tmp_path / "big"
    path.write_bytes(bytes(2**20))
    os.utime(path, ns=(1, 1))
    record([path])
    verify([path])
    with open(path, "r+b") as file:
        file.seek(2**19)
        file.write(b"x")
    with pytest.raises(DataError, match="big: the content"):
        verify([path])


def test_several_damaged_files_are_named_in_one_sentence(experiment):
    found = sorted((experiment / "runs").glob("*/*.tsv"))
    for path in found:
        path.write_text("x\n")
    with pytest.raises(DataError, match=rf"^6 files \({found[0]}, .* and 1 more\): .* Delete them and rerun"):
        verify([*found, experiment / "grid.tsv"])


def test_files_without_a_record_and_missing_files_are_left_to_the_reader(experiment):
    (experiment / "grid.tsv").unlink()
    (experiment / "mine.tsv").write_text("a\n1\n")
    (experiment / "folder").mkdir()
    verify([experiment / "grid.tsv", experiment / "mine.tsv", experiment / "folder", experiment / "none" / "x.tsv"])
    with pytest.raises(DataError, match="not a readable table"):
        read(experiment / "grid.tsv")


def test_a_record_is_what_sha256sum_reads_and_belongs_to_one_job(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    record([tmp_path / "a", tmp_path / "b"])
    record([tmp_path / "c"])
    text = (tmp_path / DIGESTS / "a").read_text()
    assert text == f"{digest_of(tmp_path / 'a')}  a\n{digest_of(tmp_path / 'b')}  b\n"
    assert digest_of(tmp_path / "a") == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    (tmp_path / "b").write_text("new")
    with pytest.raises(DataError, match="b: the content"):
        verify([tmp_path / "a", tmp_path / "b"])
    forget([tmp_path / "b"])  # as a job does that is going to write b
    assert [path.name for path in (tmp_path / DIGESTS).iterdir()] == ["c"]
    verify([tmp_path / "b"])


@pytest.mark.parametrize("text", ["", "ca97", "\0" * 70, f"{'0' * 64}  a", f"{'0' * 64}  a\nhalf"])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "a").write_text("1")
    record([tmp_path / "a"])
    (tmp_path / DIGESTS / "a").write_text(text)
    with pytest.raises(DataError, match=rf"{DIGESTS}/a: the record of digests is damaged. Delete it and rerun"):
        verify([tmp_path / "a"])
    forget([tmp_path / "a"])  # the job that writes the file again writes the record again
    record([tmp_path / "a"])
    verify([tmp_path / "a"])


# ---- without a record: results that were copied without their hidden folders ----------------------------------------


def without_records(experiment: Path) -> tuple[pd.DataFrame, list[Path]]:
    for folder in experiment.rglob(DIGESTS):
        shutil.rmtree(folder)
    return read(experiment / "grid.tsv"), [experiment / "runs" / run for run in RUNS]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: "", "not a readable table"),
        (lambda text: text.splitlines()[0] + "\n", "one run of the grid that no other file holds, not no run"),
        (lambda text: text.replace("vae-seed0", "vae-seed1"), "no other file holds, not 'vae-seed1'"),
        (lambda text: text.replace("vae-seed0", "vae-seed9"), "no other file holds, not 'vae-seed9'"),
        (lambda text: text.replace("vae-seed0", "vae-seed2", 1), "not 'vae-seed2', 'vae-seed0'"),
        (lambda text: text + text.splitlines()[-1] + "\n", "two rows have run 'vae-seed0'"),
        (lambda text: text.replace("run\t", "rum\t", 1), "no column 'run'"),
        (lambda text: text[:-4] + "?" + text[-3:], r"must hold numbers, not '\d*\.?\d*\?"),
        (lambda text: text[:-4] + "\0\0\0\0", "a zero byte"),
        (lambda text: text[:-4] + "\0\0\0\n", "a zero byte"),
        (lambda text: text[:-2], "no line end"),
        (lambda text: text[: text.rindex("vae-seed0") + 9] + "\n", "has empty fields"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["scores.tsv", "history.tsv"])
def test_tables_without_a_record_must_have_their_shape(experiment, name, damage, said):
    grid, folders = without_records(experiment)
    paths = [str(folder / name) for folder in folders]

    def collected():
        return collect_histories(grid, paths) if name == "history.tsv" else collect_scores(grid, paths, [], [])

    assert set(collected()["run"]) == set(RUNS)
    (folders[0] / name).write_text(damage((folders[0] / name).read_text()))
    with pytest.raises(DataError, match=said) as raised:
        collected()
    assert str(raised.value).startswith(f"{folders[0]}/{name}: ") or str(raised.value).startswith(
        f"{folders[1]}/{name}: "
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: "", "not a readable JSON file"),
        (lambda text: text[:-3], "not a readable JSON file"),
        (lambda text: "[1]", "must hold an object, not 'list'"),
        (lambda text: text.replace("seconds", "sfconds", 1), "no 'seconds'"),
        (lambda text: text.replace("vae-seed0", "vae-seed9"), "its run 'vae-seed9' is not one of the grid"),
        (lambda text: text.replace("vae-seed0", "vae-seed1"), "its run 'vae-seed1' is that of another file too"),
    ],
)
def test_run_records_without_a_digest_must_have_their_shape(experiment, damage, said):
    grid, folders = without_records(experiment)
    paths = [str(folder / "run.json") for folder in folders]
    assert collect_cost(grid, paths, {})["seconds"].to_list() == [12.5, 12.625]
    (folders[0] / "run.json").write_text(damage((folders[0] / "run.json").read_text()))
    with pytest.raises(DataError, match=said):
        collect_cost(grid, paths, {})


# ---- jobs ----------------------------------------------------------------------------------------------------------

JOB = """
import json, sys
from types import SimpleNamespace
from samsvae.study.script import job
with job(SimpleNamespace(**json.loads(sys.argv[1]))):
    open("out.tsv", "w").write("written")
"""


def run_job(folder: Path) -> tuple[int, str]:
    files = {"log": ["job.log"], "input": ["data/a.tsv", "data/b.npz"], "output": ["out.tsv"]}
    done = subprocess.run(
        [sys.executable, "-c", JOB, json.dumps(files)], cwd=folder, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr


def test_a_job_verifies_its_inputs_first_and_records_its_outputs(tmp_path):
    """Every file of any kind, whether the script has a reader of ours for it or not."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.tsv").write_text("a\n1\n")
    (tmp_path / "data" / "b.npz").write_bytes(bytes(9))
    record([tmp_path / "data" / "b.npz"])
    assert run_job(tmp_path) == (0, "")
    verify([tmp_path / "out.tsv"])
    assert (tmp_path / DIGESTS / "out.tsv").is_file()
    (tmp_path / "out.tsv").unlink()  # as Snakemake does
    (tmp_path / "data" / "b.npz").write_bytes(bytes(8) + b"1")
    status, said = run_job(tmp_path)
    assert (status, said) == (
        1,
        "DataError: data/b.npz: the content does not match what was written (damaged, or edited by hand). "
        "Delete it and rerun the same command.\n",
    )
    assert not (tmp_path / "out.tsv").exists() and not (tmp_path / DIGESTS / "out.tsv").exists()


def test_a_job_spends_little_time_on_garbage_and_none_at_its_end(tmp_path):
    """Its many modules are not searched once more before it ends."""
    files = {"log": ["job.log"], "input": [], "output": ["out.tsv"]}
    code = f"{JOB}\nimport gc\nprint(gc.get_threshold()[0], gc.get_freeze_count() > 1000)"
    command = [sys.executable, "-c", code, json.dumps(files)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(NEW_OBJECTS), "True"]

"""A training from files to files: the same bytes each time, and a clear error for files that do not match."""

from __future__ import annotations

import csv
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_files import outputs, settings, write_files
from small_model import screen

from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import ROWS
from samsvae.data.arrays import read_screen, read_split
from samsvae.data.cells import cells_of, encode
from samsvae.errors import ConfigError, DataError
from samsvae.models.noise import Streams
from samsvae.ops.cpu_negative_binomial import resolve_kernel
from samsvae.study.train_run import fit
from samsvae.training.checkpoint import load
from samsvae.training.validation import validation_loss

SINGLE = [name for name in ROWS if ROWS[name].model.get("effect") == "prior_mean"]


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path, screen())


def trained(files, folder, name="sams_vae_corr", **changes):
    """The files of one run, by name."""
    changes.setdefault("encoding", "unique" if name in SINGLE else "sum")
    out = outputs(folder)
    fit(settings(name, **changes), *files, "cpu", out=out)
    return out


def test_the_files_of_a_run(files, tmp_path):
    out = trained(files, tmp_path / "run", steps=9, seed=3)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["history.tsv", "model.pt", "run.json"]

    history = list(csv.DictReader(out["history"].read_text().splitlines(), delimiter="\t"))
    assert list(history[0]) == ["run", "step", "epoch", "train_loss", "val_loss"]
    # 72 training cells in batches of 32 are three steps an epoch
    assert [(row["step"], row["epoch"]) for row in history] == [("3", "1"), ("6", "2"), ("9", "3")]
    assert {row["run"] for row in history} == {"sams_vae_corr-seed3"}
    losses = [float(row["val_loss"]) for row in history]

    found = load(out["model"])
    assert found.genes == tuple(f"gene{g}" for g in range(9)) and found.perturbations == ("a", "b", "c", "d")
    asked = settings(steps=9, seed=3)
    assert {key: found.facts[key] for key in ("run", "model", "encoding", "training")} == {
        key: asked[key] for key in ("run", "model", "encoding", "training")
    }
    assert found.facts["validation_loss"] == pytest.approx(min(losses), rel=1e-8)
    assert found.facts["controls"] == ["control"] and found.facts["control"] == "control"
    assert sum(found.facts["training_cells"].values()) >= 40
    assert found.facts["best_step"] == 3 * (1 + int(np.argmin(losses)))

    record = json.loads(Path(out["run"]).read_text())
    assert record == json.loads(out["run"].read_text()) and record.items() >= asked.items()
    weights = {k: v for k, v in found.model.state_dict().items() if not k.startswith("input_")}
    assert record["parameters"] == sum(v.numel() for v in weights.values())
    assert (record["steps"], record["torch"]) == (9, torch.__version__)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert (record["commit"] or "").removesuffix("-dirty") == head.stdout.strip()
    assert record["numpy"] == np.__version__
    assert 10 < record["peak_memory_mb"] < 1e5 and record["threads"] >= 1 and record["device"]
    assert record["products"] == "MKL"  # a small model
    assert record["kernel"] == found.facts["kernel"] == resolve_kernel("auto")
    assert record["steps_per_second"] == pytest.approx(9 / record["seconds"], rel=0.1)


def test_training_and_validation_cells_are_those_of_the_table(files, tmp_path):
    """By hand: input moments come from the training cells, the loss in the checkpoint from the validation cells."""
    found = load(trained(files, tmp_path / "run")["model"])
    synthetic = screen()
    place = np.arange(120) % 5
    train, val = np.isin(place, (0, 1, 3)), place == 2
    logs = np.log1p(synthetic.counts[train].astype(float))
    np.testing.assert_allclose(found.model.input_mean, logs.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.model.input_sd[1:], logs.std(0, ddof=1)[1:], rtol=1e-5)
    config = TrainingConfig(**found.facts["training"])
    noise = Streams(f"0/validation/{found.facts['best_step']}")
    loss = validation_loss(found.model, cells_of(synthetic, val, encode(synthetic, "sum")), config, noise)
    assert loss == pytest.approx(found.facts["validation_loss"], rel=1e-6)


@pytest.mark.parametrize("name", ["sams_vae_corr", "sams_vae_bb", "svae_plus", "svae_plus_lopez", "vae"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(files, tmp_path, name):
    """Also if networks have dropout, and for any earlier state of torch's own generator."""
    runs = []
    for number, seed in enumerate((3, 3, 4)):
        torch.manual_seed(number)
        out = trained(files, tmp_path / str(number), name, seed=seed)
        runs.append([out[key].read_bytes() for key in ("model", "history")])
    assert runs[0] == runs[1]
    weights = [load(tmp_path / number / "model.pt").model.state_dict() for number in "12"]
    assert all((a != b).any() for a, b in zip(*map(dict.values, weights), strict=True) if a.numel() > 100)


def test_the_order_of_the_rows_of_a_split_table_does_not_matter(files, tmp_path):
    arrays, split = files
    first = trained(files, tmp_path / "first")
    lines = split.read_text().splitlines()
    (tmp_path / "turned.tsv").write_text("\n".join([lines[0], *lines[:0:-1]]))
    second = trained((arrays, tmp_path / "turned.tsv"), tmp_path / "second")
    assert first["model"].read_bytes() == second["model"].read_bytes()


def test_cells_that_are_neither_train_nor_val_change_nothing(tmp_path):
    """Test cells and cells of split 'none' are not read."""
    synthetic, split = screen(), np.resize(["train", "none", "val", "train", "test"], 120)
    other = synthetic.counts.copy()
    other[np.isin(split, ("none", "test"))] += 7
    (tmp_path / "changed").mkdir()
    files = (
        write_files(tmp_path, synthetic, split),
        write_files(tmp_path / "changed", replace(synthetic, counts=other), split),
    )
    runs = [trained(of, tmp_path / str(i))["model"].read_bytes() for i, of in enumerate(files)]
    assert runs[0] == runs[1]


def test_perturbations_without_training_cells_are_kept_with_a_warning(tmp_path, caplog):
    synthetic = replace(screen(), controls=("control", "NT"), separator="+")
    split = np.where(np.isin(synthetic.condition, (1, 4)), "val", np.resize(["train", "val", "test"], 120))
    found = load(trained(write_files(tmp_path, synthetic, split), tmp_path / "run")["model"])
    assert found.untrained == ("b",) and "no training cell received 'b'" in caplog.text
    train = synthetic.members[synthetic.condition[split == "train"]]
    assert found.facts["training_cells"] == {name: int((train == t).sum()) for t, name in enumerate("abcd")}
    assert {key: found.facts[key] for key in ("control", "controls", "separator")} == {
        "control": "control", "controls": ["control", "NT"], "separator": "+",
    }  # fmt: skip


def test_arrays_of_an_older_version_without_facts_about_labels(files, tmp_path):
    for name in ("controls", "separator"):
        without(files[0], name)
    found = read_screen(files[0])
    assert (found.controls, found.separator) == (("control",), "")
    assert load(trained(files, tmp_path / "run")["model"]).facts["control"] == "control"


def test_the_unique_encoding_has_a_perturbation_per_condition(files, tmp_path):
    found = load(trained(files, tmp_path / "run", "cpa_vae_mf", encoding="unique")["model"])
    assert found.perturbations == ("a", "b", "c", "d", "a+c")
    with pytest.raises(ConfigError, match="unique"):
        trained(files, tmp_path / "other", "svae_plus", encoding="sum")
    assert not (tmp_path / "other").exists()


# ---- files that do not match ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_split_without_training_or_validation_cells(tmp_path, name):
    split = np.resize([*sorted({"train", "val"} - {name}), "test"], 120)
    files = write_files(tmp_path, screen(), split)
    with pytest.raises(DataError, match=rf"cells\.tsv.*'{name}'"):
        trained(files, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def edit(path: Path, change) -> None:
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n" if lines else "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines.pop(4), ["'cell3'", "no row"]),
        (lambda lines: lines.append("cell120\ta\ttrain"), ["'cell120'", "not in the screen"]),
        (lambda lines: lines.__setitem__(4, "cell3\ta\tvalid"), ["'split'", "'valid'", "Did you mean 'val'"]),
        (lambda lines: lines.__setitem__(4, "cell3\ta\t"), ["'split'", "''", "train, val, test, none"]),
        (lambda lines: lines.__setitem__(0, "cell\tcondition\tspilt"), ["'split'", "Did you mean 'spilt'"]),
        (lambda lines: lines.__setitem__(0, "cells\tcondition\tsplit"), ["'cell'", "Did you mean 'cells'"]),
        (lambda lines: lines.clear(), ["'cell'"]),
        pytest.param(lambda lines: lines.__setitem__(4, "cell3"), ["line 5"]),
        pytest.param(lambda lines: lines.append(lines[4]), ["'cell3'"]),
    ],
)
def test_a_split_table_that_does_not_match(files, tmp_path, change, said):
    edit(files[1], change)
    with pytest.raises(DataError, match=r"cells\.tsv") as error:
        trained(files, tmp_path / "run")
    for part in said:
        assert part in str(error.value)


def test_a_missing_split_table(files, tmp_path):
    with pytest.raises((DataError, FileNotFoundError), match=r"absent\.tsv"):
        trained((files[0], tmp_path / "absent.tsv"), tmp_path / "run")


def without(path: Path, name: str) -> None:
    with np.load(path) as file:
        kept = {key: file[key] for key in file.files if key != name}
    np.savez(path, **kept)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(b""), "arrays"),
        (lambda path: path.write_bytes(b"text"), "arrays"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: without(path, "members"), "members"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:1000]), "arrays"),
        pytest.param(lambda path: flip(path), "arrays"),
        pytest.param(lambda path: replace_by_array(path), "arrays"),
    ],
)  # fmt: skip
def test_arrays_that_are_damaged(files, tmp_path, damage, said):
    damage(files[0])
    with pytest.raises(DataError, match=rf"arrays\.npz: .*{said}") as error:
        trained(files, tmp_path / "run")
    assert "counts, library" in str(error.value)  # what is needed


def replace_by_array(path: Path) -> None:
    """One array instead of an archive of arrays."""
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


def flip(path: Path) -> None:
    """Flip a bit of the counts, which come first."""
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(bytes(data))


def test_arrays_are_read_as_they_were_written(files):
    synthetic, found = screen(), read_screen(files[0])
    for name in vars(synthetic):
        np.testing.assert_array_equal(getattr(found, name), getattr(synthetic, name))
    assert read_split(files[1], found.cells).tolist() == ["train", "train", "val", "train", "test"] * 24

"""The golden files of the honest protocol, and that damaged ones are noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import golden_evaluation
import numpy as np
import pytest

from samsvae.errors import DataError

#: Sections whose functions exist. The script itself compares every section of a folder.
SECTIONS = set(golden_evaluation.functions()[0])


@pytest.fixture(scope="module")
def folder(shared) -> Path:
    found = shared / "data" / "golden_evaluation"
    if not found.is_dir():
        pytest.skip(f"no folder {found} (golden files of the evaluation)")
    return found


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A folder with one screen and its small sections, to damage."""
    for path in folder.glob("papalexi.*"):
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def test_every_value_is_within_its_tolerance(folder, capsys):
    done = golden_evaluation.compare(folder, SECTIONS)
    assert done.failures == []
    assert {"S2", "S3", "S4", "S5", "S9", "S12", "arrays"} <= set(done.number)
    assert done.number["S3"] > 1000 and done.number["arrays"] > 100_000
    done.print()
    assert capsys.readouterr().out.endswith("Every value is within its tolerance.\n")


def damage(folder: Path, change) -> None:
    path = folder / "papalexi.expected.tsv"
    lines = path.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("S4\tsum_of_squares\t\tshrunk"))
    lines[at : at + 1] = change(lines[at])
    path.write_text("\n".join(lines) + "\n")


def with_value(line: str, change) -> str:
    before, _, value = line.rpartition("\t")
    return f"{before}\t{change(float(value))!r}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: [with_value(line, lambda value: value * (1 + 1e-8))], "difference"),
        (lambda line: [], "missing in the file"),
        (lambda line: [with_value(line, lambda value: float("nan"))], "NaN on one side only"),
        (lambda line: [line, line.replace("shrunk", "shrunken")], "unknown to us"),
    ],
)  # fmt: skip
def test_a_changed_table_fails(copy, change, message):
    damage(copy, change)
    (failure,) = golden_evaluation.compare(copy, {"S4"}).failures
    assert "papalexi S4 sum_of_squares shrun" in failure and message in failure


def test_a_changed_or_missing_array_fails(copy):
    arrays = dict(np.load(copy / "papalexi.arrays.npz"))
    arrays["delta_test"][3, 5] += 1e-6
    del arrays["se2_test"]
    np.savez(copy / "papalexi.arrays.npz", **arrays)
    changed, missing = golden_evaluation.compare(copy, {"S4"}).failures
    assert "delta_test: relative difference" in changed and "se2_test: missing" in missing


def test_damaged_input_ends_in_one_sentence(copy, capsys):
    def outcome() -> str:
        assert golden_evaluation.main([str(copy)]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    source = copy / "papalexi.input.npz"
    good = dict(np.load(source))
    np.savez(source, **(good | {"condition": good["condition"] + 30}))
    assert "do not fit together" in outcome()
    np.savez(source, **{name: value for name, value in good.items() if name != "members"})
    assert "has no array 'members'" in outcome()
    np.savez(source, **(good | {"split": np.maximum(good["split"], 1)}))
    assert "The control has 0 of the chosen cells" in outcome()
    source.write_bytes(source.read_bytes()[:5000])
    assert "cannot be read as npz" in outcome()
    np.savez(source, **good)
    damage(copy, lambda line: [line, line])
    assert "stands there twice" in outcome()
    (copy / "papalexi.expected.tsv").write_text("section\tmetric\n")
    assert "must name the columns" in outcome()
    (copy / "papalexi.expected.tsv").unlink()
    assert "cannot be read" in outcome()
    source.unlink()
    assert "holds no NAME.input.npz" in outcome()


def test_a_twisted_file_of_values_is_an_error(tmp_path):
    path = tmp_path / "x.expected.tsv"
    path.write_text("\t".join(golden_evaluation.COLUMNS) + "\nS4\tn\t\tmean\t\t\tseven\n")
    with pytest.raises(DataError, match=r"line 2.*seven"):
        golden_evaluation.read_expected(path)

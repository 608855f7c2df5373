import csv
import hashlib
import tracemalloc
from itertools import pairwise
from math import ceil, floor

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

from samsvae import tables
from samsvae.config.splits import SplitConfig
from samsvae.config.vocabulary import SPLIT_LABELS
from samsvae.data.arrays import read_split
from samsvae.errors import ConfigError, DataError
from samsvae.screens import splits
from samsvae.screens.norman import label_conditions


def digest(rows):
    return hashlib.md5(np.asarray(rows, np.int64).tobytes()).hexdigest()[:12]


def test_the_published_replogle_split():
    train, val, test = splits.three_ways(np.arange(118_641), 0.2, 0.2, 0)
    assert [len(part) for part in (train, val, test)] == [75_929, 18_983, 23_729]
    assert [digest(part) for part in (train, val, test)] == ["f2b08d613010", "b51dcc19ab91", "753ef0443a3d"]
    obs = pd.DataFrame({"condition": "x"}, index=np.arange(118_641).astype(str))
    table = splits.random_split(obs)
    for name, rows in (("train", train), ("val", val), ("test", test)):
        np.testing.assert_array_equal(np.flatnonzero(table["split"] == name), np.sort(rows))


@pytest.mark.parametrize(("n", "fraction"), [(2, 0.5), (11, 0.2), (100, 0.2), (997, 0.37)])
def test_random_cuts_are_those_of_scikit_learn(n, fraction):
    train, val, test = splits.three_ways(np.arange(n), fraction, 0, seed=n)
    kept, cut = train_test_split(np.arange(n), train_size=floor(round((1 - fraction) * n, 9)), random_state=n)
    np.testing.assert_array_equal(test, cut)
    np.testing.assert_array_equal(train, kept)
    assert not len(val)


@pytest.fixture(scope="module")
def norman():
    """Thirteen pairs of 20 to 40 cells, nine single genes, controls, and some cells with three targets."""
    rng = np.random.default_rng(3)
    genes = [f"G{i}" for i in range(9)]
    conditions = ["control"] * 80 + [g for g in genes for _ in range(15)]
    for i in range(13):
        conditions += [f"G{i % 8}+{genes[(i * 5 + 1 + i // 8) % 9]}"] * int(rng.integers(20, 40))
    conditions += ["G0+G1+G2"] * 5
    conditions = rng.permutation(conditions)
    n_targets = [0 if c == "control" else c.count("+") + 1 for c in conditions]
    identity = [c.replace("+", "_") + "__x" for c in conditions]
    table = {"condition": conditions, "n_targets": n_targets, "guide_identity": identity}
    return pd.DataFrame(table, index=[f"c{i}" for i in range(len(conditions))])


def sets(table):
    return {name: set(table["cell"][table["split"] == name]) for name in SPLIT_LABELS}


FRACTIONS = (0, 0.25, 0.5, 0.75, 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("make", [splits.norman_ood, splits.norman_efficiency])
def test_a_larger_fraction_only_adds_cells(norman, make, seed):
    grown = [sets(make(norman, fraction=f, seed=seed)) for f in FRACTIONS]
    for smaller, larger in pairwise(grown):
        assert smaller["train"] < larger["train"]
        assert smaller["val"] <= larger["val"]
        assert smaller["test"] == larger["test"]
    pairs = set(norman.index[norman["n_targets"] == 2])
    assert not grown[0]["train"] & pairs
    assert all(grown[0][name] for name in ("train", "val", "test"))
    assert grown[-1]["test"] <= pairs, "no single gene or control is a test cell"
    three = set(norman.index[norman["n_targets"] == 3])
    assert all(three <= parts["none"] for parts in grown)


@pytest.mark.parametrize("seed", range(5))
def test_ood_follows_the_description_of_the_task(norman, seed):
    """Pairs are sorted and shuffled, the first for training, the last for testing; cells are split before that."""
    cells = np.flatnonzero(norman["n_targets"] == 2)
    pairs = sorted(set(norman["guide_identity"].iloc[cells]))
    np.random.default_rng(seed).shuffle(pairs)
    condition_of = norman.set_index("guide_identity")["condition"]
    assert len(pairs) == 13
    everything = splits.three_ways(cells, 0.2, 0.2, seed)
    for f in FRACTIONS:
        table = splits.norman_ood(norman, fraction=f, seed=seed)
        double = table[norman["n_targets"].to_numpy() == 2]
        of = {name: set(double["condition"][double["split"] == name]) for name in SPLIT_LABELS}
        assert of["train"] == {condition_of.loc[[p]].iloc[0] for p in pairs[: floor(f * 13)]}
        assert of["test"] == {condition_of.loc[[p]].iloc[0] for p in pairs[13 - ceil(0.25 * 13) :]}
        assert not (of["train"] & of["test"]) or f == 1
        for name, rows in zip(("train", "val", "test"), everything, strict=True):
            assert set(double["cell"][double["split"] == name]) <= set(norman.index[rows])


@pytest.mark.parametrize("seed", range(5))
def test_efficiency_keeps_validation_and_test(norman, seed):
    tables = [sets(splits.norman_efficiency(norman, fraction=f, seed=seed)) for f in FRACTIONS]
    assert all(t["val"] == tables[0]["val"] and t["test"] == tables[0]["test"] for t in tables)
    train, _, _ = splits.three_ways(np.flatnonzero(norman["n_targets"] == 2), 0.2, 0.2, seed)
    quarter = tables[1]["train"] - tables[0]["train"]
    assert quarter == set(norman.index[train[: floor(len(train) / 4)]])


def test_cells_with_one_target_or_none_are_split_equally_in_both_tasks(norman):
    few = norman.index[norman["n_targets"] < 2]
    a = sets(splits.norman_ood(norman, fraction=0.5, seed=1))
    b = sets(splits.norman_efficiency(norman, fraction=0, seed=1))
    assert a["train"] & set(few) == b["train"] & set(few)
    assert len(b["train"] & set(few)) == floor(0.8 * len(few))


def test_held_out_conditions_are_all_test(norman):
    out = ["G0", "G3"]
    table = splits.held_out(norman, out, test_fraction=0)
    assert set(table["split"][table["condition"].isin(out)]) == {"test"}
    assert set(table["split"][~table["condition"].isin(out)]) == {"train", "val"}
    more = splits.held_out(norman, out, test_fraction=0.2)
    assert sets(table)["test"] < sets(more)["test"]
    with pytest.raises(ConfigError, match=r"'G33'.*Did you mean 'G3'"):
        splits.held_out(norman, ["G33"])


@pytest.mark.parametrize(("name", "meant"), [("A2+ctrl", "A"), ("ctrl+A2", "A"), ("ctr", None), ("A2", "A")])
def test_no_suggestion_holds_out_the_control(name, meant):
    obs = pd.DataFrame({"condition": ["ctrl", "A", "A+B", "Q"] * 5}, index=[f"c{i}" for i in range(20)])
    obs.attrs["controls"] = ["ctrl", "NT"]
    with pytest.raises(ConfigError, match="no cell has the condition") as error:
        splits.make_split(obs, kind="held_out", conditions=[name], separator="+")
    assert "ctrl" not in str(error.value).removeprefix(f"no cell has the condition {name!r}.")
    assert (f"Did you mean {meant!r}?" in str(error.value)) == (meant is not None)


def test_held_out_combinations_of_a_perturbation(norman):
    pairs = sorted({c for c in norman["condition"] if "G1" in c.split("+") and c != "G1"})
    assert len(pairs) > 2
    table = splits.held_out(norman, combinations_of=["G1"], separator="+", test_fraction=0)
    assert set(table["condition"][table["split"] == "test"]) == set(pairs)
    assert set(table["split"][table["condition"] == "G1"]) == {"train", "val"}, "the single stays in training"
    both = splits.held_out(norman, ["G1"], combinations_of=["G1"], separator="+", test_fraction=0)
    assert set(both["condition"][both["split"] == "test"]) == {*pairs, "G1"}
    with pytest.raises(ConfigError, match=r"no combination contains 'G77'. Did you mean 'G7'"):
        splits.held_out(norman, combinations_of=["G77"], separator="+")
    with pytest.raises(ConfigError, match=r"not allowed, because the screen has no combinations"):
        splits.held_out(norman, combinations_of=["G1"], separator="")


def test_the_parts_of_a_held_out_condition_may_have_any_order():
    obs = pd.DataFrame({"condition": ["A+B"] * 4 + ["ctrl"] * 40}, index=[f"c{i}" for i in range(44)])
    table = splits.make_split(obs, kind="held_out", conditions=["B+A"], separator="+")
    assert set(table["split"][:4]) == {"test"}


@pytest.mark.parametrize("name", ["A+ctrl", "ctrl+A", "NT + A", "A+NT+ctrl", "A"])
def test_control_labels_in_a_condition_are_dropped(tmp_path, name):
    conditions = ["A"] * 4 + ["A+B"] * 4 + ["B"] * 4 + ["ctrl"] * 40
    obs = pd.DataFrame({"condition": conditions}, index=[f"c{i}" for i in range(52)])
    obs.attrs["controls"] = ["ctrl", "NT"]
    table = splits.make_split(obs, kind="held_out", conditions=[name], separator="+", test_fraction=0.0)
    assert table["cell"][table["split"] == "test"].tolist() == ["c0", "c1", "c2", "c3"]
    path = write(tmp_path, f"condition,split\n{name},test\nNT+ctrl,train\nB+NT+A,val\n", "c.csv")
    by_hand = splits.make_split(obs, kind="file", path=path, separator="+")
    assert by_hand["split"].tolist() == ["test"] * 4 + ["val"] * 4 + ["none"] * 4 + ["train"] * 40


@pytest.mark.parametrize("name", ["A+C", "C+ctrl", "A+B+ctrl"])
def test_only_control_labels_are_dropped(name):
    obs = pd.DataFrame({"condition": ["A", "B", "ctrl"] * 20}, index=[f"c{i}" for i in range(60)])
    obs.attrs["controls"] = ["ctrl"]
    with pytest.raises(ConfigError, match=f"no cell has the condition {name!r}".replace("+", r"\+")):
        splits.make_split(obs, kind="held_out", conditions=[name], separator="+")
    obs.attrs.clear()
    with pytest.raises(ConfigError, match=r"no cell has the condition 'A\+ctrl'"):
        splits.make_split(obs, kind="held_out", conditions=["A+ctrl"], separator="+")


@pytest.mark.parametrize("given_to", ["test", "none"])
def test_a_control_without_training_and_validation_cells_is_refused(given_to):
    split = ["train", "val", "test", given_to]
    obs = pd.DataFrame({"condition": ["A", "A", "A", "ctrl"], "split": split}, index=["a", "b", "c", "d"])
    obs.attrs["controls"] = ["ctrl"]
    with pytest.raises(DataError, match="leaves no 'train' or 'val' cell of the control 'ctrl'"):
        splits.make_split(obs, kind="given")
    for allowed in ("train", "val"):
        obs["split"] = ["train", "val", "test", allowed]
        assert splits.make_split(obs, kind="given")["split"].tolist() == obs["split"].tolist()


# ---- tables written by a user --------------------------------------------------------------------------------------

OBS = pd.DataFrame({"condition": ["A", "A", "A+B", "A+B", "ctrl", "ctrl"]}, index=["c0", "c1", "c2", "c3", "c4", "c5"])


def write(folder, text, name="mine.tsv"):
    (folder / name).write_bytes(text.encode())
    return folder / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "cell\tsplit\nc4\tval\nc0\ttrain\nc3\ttest\n"),
        ("b.csv", "note,split,cell\nx, val ,c4\n,train,c0\ny,test,c3\n"),
        ("c.csv", "\ufeffcell,split\r\nc0,train\r\nc3,test\r\nc4,val\r\n"),
        ("d.tsv", "cell\tcondition\tsplit\nc4\twhatever\tval\nc0\t\ttrain\nc3\tA\ttest\nc1\tA\tnone\n"),
    ],
)
def test_a_table_of_cells(tmp_path, name, text, caplog):
    split = splits.make_split(OBS, kind="file", path=write(tmp_path, text, name))
    assert split["split"].tolist() == ["train", "none", "none", "test", "val", "none"]
    assert split["cell"].tolist() == OBS.index.tolist() and split["condition"].tolist() == OBS["condition"].tolist()
    assert f"does not list {2 if name == 'd.tsv' else 3} of 6 cells" in caplog.text


def test_a_table_of_conditions(tmp_path):
    path = write(tmp_path, "condition,split\nB+A,test\nctrl,val\nA,train\n", "c.csv")
    split = splits.make_split(OBS, kind="file", path=path, separator="+")
    assert split["split"].tolist() == ["train", "train", "test", "test", "val", "val"]


def test_cells_that_the_filter_dropped_are_counted(tmp_path, caplog):
    path = write(tmp_path, "cell\tsplit\nc0\ttrain\nc9\ttrain\nc2\ttest\nc4\tval\n")
    assert (splits.from_file(OBS, path)["split"] == "train").sum() == 1
    assert "1 of the cells it lists are not in the screen" in caplog.text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "cells\tsplit\nc0\ttrain\n",
            r"the columns 'split' and 'cell' \(or 'condition'\) are needed, but it has 'cells'",
        ),
        ("cell;split\nc0;train\n", r"the columns 'split' and 'cell' \(or 'condition'\) are needed"),
        ("cell\nc0\n", r"the columns 'split' and 'cell' \(or 'condition'\) are needed"),
        (
            "cell\tsplit\nc0\tvalid\nc1\t\n",
            r"column 'split' has the values '', 'valid'; allowed: train, val, test, none",
        ),
        ("cell\tsplit\nc0\ttrain\nc0\tval\n", r"column 'cell' lists more than once: 'c0'"),
        ("cell\tsplit\nx0\ttrain\nx1\tval\n", r"none of the 6 cells.* lists 'x0', 'x1'; the screen has 'c0', 'c1'"),
        ("condition\tsplit\nAB\ttrain\n", r"column 'condition': no cell has the condition 'AB'"),
        ("condition\tsplit\nA+B\ttrain\nB+A\ttest\n", r"column 'condition' lists more than once: 'A\+B'"),
        ("cell\tsplit\nc0\ttrain\nc1\tval\tx\ty\n", r"not a readable table"),
        ("", r"not a readable table"),
        ("cell\tsplit\nc0\ttrain\nc1\tval\n", r"leaves no 'test' cell; add some to the table"),
    ],
)
def test_a_bad_table_gives_one_line(tmp_path, text, sentence):
    with pytest.raises(DataError, match=sentence) as error:
        splits.make_split(OBS, kind="file", path=write(tmp_path, text), separator="+")
    assert "\n" not in str(error.value).strip()


def test_a_missing_table_and_a_file_that_is_not_one(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.tsv: no such file"):
        splits.from_file(OBS, tmp_path / "nowhere.tsv")
    (tmp_path / "x.tsv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(DataError, match=r"x\.tsv: not a readable table"):
        splits.from_file(OBS, tmp_path / "x.tsv")


def test_an_unused_split_in_the_screen_is_warned_about(norman, caplog):
    splits.make_split(norman.assign(split="train"), kind="random")
    assert "obs has a column 'split', but a split of kind 'random' ignores it" in caplog.text


def test_perturbations_without_training_cells_are_warned_about(norman, caplog):
    """A held-out combination gives no warning as long as each of its parts has training cells."""
    pair = next(name for name in norman["condition"] if name.count("+") == 1)
    splits.make_split(norman, kind="held_out", conditions=[pair], separator="+")
    assert not caplog.text
    combinations = [name for name in set(norman["condition"]) if "G3" in name.split("+")]
    splits.make_split(norman, kind="held_out", conditions=combinations, separator="+")
    assert "the split 'held_out' has no training cells for 'G3'; no model can learn their effects" in caplog.text


def test_given(norman):
    obs = norman.assign(split=np.where(norman["n_targets"] == 2, "test", "train"))
    assert splits.given(obs)["split"].tolist() == obs["split"].tolist()
    with pytest.raises(DataError, match=r"no column 'split'"):
        splits.given(norman)
    with pytest.raises(DataError, match=r"'validation'; allowed: train, val, test, none"):
        splits.given(norman.assign(split="validation"))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_fractions_outside_0_to_1(norman, value):
    for make, name in (
        (splits.norman_ood, "fraction"),
        (splits.norman_ood, "test_pairs"),
        (splits.norman_efficiency, "fraction"),
    ):
        with pytest.raises(ConfigError, match=rf"{name}: .* a number from 0 to 1"):
            make(norman, **({"fraction": 0.5, "seed": 0} | {name: value}))
    with pytest.raises(ConfigError, match=r"val_fraction"):
        splits.random_split(norman, val_fraction=value)


def test_cuts_with_an_empty_part():
    cells = np.arange(10)
    train, val, test = splits.three_ways(cells, 0, 0, 0)
    assert (train.tolist(), len(val), len(test)) == (cells.tolist(), 0, 0)
    train, val, test = splits.three_ways(cells, 1, 0.5, 0)
    assert (len(train), len(val), test.tolist()) == (0, 0, cells.tolist())
    assert [len(part) for part in splits.three_ways(np.arange(30), 0.1, 0.0, 0)] == [27, 0, 3]  # 0.1 * 30 > 3


def test_every_cell_is_listed_once_and_the_table_can_be_read_again(norman, tmp_path):
    table = splits.norman_ood(norman, fraction=0.25, seed=0)
    assert table["cell"].tolist() == norman.index.tolist()
    assert table["condition"].tolist() == norman["condition"].tolist()
    splits.write_split(table, tmp_path / "split.tsv")
    written = pd.read_csv(tmp_path / "split.tsv", sep="\t", dtype=str)
    pd.testing.assert_frame_equal(written, table, check_dtype=False)
    pd.testing.assert_frame_equal(splits.from_file(norman, tmp_path / "split.tsv"), table)
    counted = splits.summary(table).set_index("split")
    assert list(counted.index) == list(SPLIT_LABELS)
    assert counted["cells"].to_dict() == {name: len(part) for name, part in sets(table).items()}
    assert counted["cells"].sum() == len(norman)
    assert counted.loc["test", "conditions"] == ceil(0.25 * 13)


#: Characters at which some reader of text ends a line, a field or a quotation, or starts a comment.
ODD = ["\n", "\r", "\r\n", "\t", "\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029", '"', "'", "$", "#", "\\"]


def test_every_label_and_cell_name_survives_the_split_table(tmp_path):
    names = [name for odd in ODD for name in (f"drug A{odd}(10 uM)", f"{odd}A{odd}", f"{odd}{odd}A", f"A{odd}")]
    names += ['plate "0"', '"', '""', '"A" b', "A, B", "NA", "None", "000", "1e5"]
    split = ["train", "val", "test", "none"] * (len(names) // 4) + ["train"] * (len(names) % 4)
    obs = pd.DataFrame({"condition": names[::-1], "split": split}, index=names)
    table, path = splits.given(obs), tmp_path / "split.tsv"
    splits.write_split(table, path)
    assert read_split(path, names).tolist() == split
    assert read_split(path, names[::-1]).tolist() == split[::-1], "rows may have any order"
    again = tables.read(path)
    assert again["cell"].tolist() == names and again["condition"].tolist() == names[::-1]


def test_a_label_of_any_length_survives_the_split_table(tmp_path):
    """The csv module reads fields of at most 131,072 letters by itself; its limit is that of the whole process."""
    limit, label = csv.field_size_limit(), "A" * 200_000
    obs = pd.DataFrame({"condition": [label, "ctrl"], "split": ["train", "val"]}, index=[label, "c"])
    splits.write_split(splits.given(obs), tmp_path / "split.tsv")
    assert read_split(tmp_path / "split.tsv", [label, "c"]).tolist() == ["train", "val"]
    assert csv.field_size_limit() == limit


def test_memory_does_not_grow_with_cells_times_the_longest_label():
    long = "+".join(f"GENE{i}" for i in range(700))
    label = pd.Categorical(["a+b", long, *["c"] * 19_998])
    obs = pd.DataFrame({"condition": label, "guide_identity": label, "n_targets": 2})
    tracemalloc.start()
    splits.norman_ood(obs, fraction=0.5, seed=0)
    label_conditions(obs["condition"], "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # 20,000 x 6,000 letters would be 480 MB


def test_a_split_table_of_plain_labels_has_no_quotes(tmp_path):
    obs = pd.DataFrame({"condition": ["ctrl", "A+B"], "split": ["train", "test"]}, index=["c 1", "c'2"])
    splits.write_split(splits.given(obs), tmp_path / "split.tsv")
    assert (tmp_path / "split.tsv").read_bytes() == b"cell\tcondition\tsplit\nc 1\tctrl\ttrain\nc'2\tA+B\ttest\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'cell\tsplit\n"a\ttrain\n', "not a readable table"),  # cut off inside quotes
        (b"cell\tsplit\n\xff\ttrain\n", "not a readable table"),
        (b'cell\tsplit\n"a\nb"\ttrain\nc\n', "line 4 has 1 fields; needed: 2"),
        (b"", "no column 'cell'"),
    ],
)
def test_a_damaged_split_table_gives_one_line(tmp_path, content, sentence):
    (tmp_path / "split.tsv").write_bytes(content)
    with pytest.raises(DataError, match=sentence) as error:
        read_split(tmp_path / "split.tsv", ["a"])
    assert "\n" not in str(error.value)


def test_a_stratified_split_has_the_same_fractions_of_every_condition_and_level():
    rng = np.random.default_rng(0)
    n = 2000
    obs = pd.DataFrame(
        {
            "condition": rng.choice(["a", "b", "control"], n, p=[0.7, 0.28, 0.02]),
            "batch": rng.choice([1, 2, 3], n, p=[0.8, 0.15, 0.05]),
        },
        index=[f"c{i}" for i in range(n)],
    )
    obs.attrs["covariates"] = ["batch"]
    how = {"kind": "random", "test_fraction": 0.25, "val_fraction": 0.2, "stratified": True}
    split = splits.make_split(obs, **how, split_seed=3)
    assert split["split"].value_counts().to_dict() == {"train": 1200, "test": 500, "val": 300}
    groups = split.groupby([split["condition"], obs["batch"].to_numpy()])["split"]
    for name, share in (("test", 0.25), ("val", 0.15)):
        expected = share * groups.size()
        assert (groups.agg(lambda x, name=name: (x == name).sum()) - expected).abs().max() <= 1
    again = splits.make_split(obs, **how, split_seed=3)
    other = splits.make_split(obs, **how, split_seed=4)
    assert again.equals(split) and not other.equals(split)
    with pytest.raises(ConfigError, match="stratified: a split of kind 'held_out' does not use it"):
        SplitConfig(kind="held_out", conditions=("a",), stratified=True)

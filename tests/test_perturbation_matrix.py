"""A matrix of perturbations (cells x guides) gives the same screen as the labels it stands for, or one sentence."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae.config.screens import CustomOptions
from samsvae.config.validate import build
from samsvae.config.vocabulary import UNPERTURBED
from samsvae.data.arrays import Screen, read_screen
from samsvae.data.cells import cells_of, encode
from samsvae.errors import ConfigError, DataError
from samsvae.screens.custom import filter_screen, screen_of
from samsvae.screens.pack import arrays_of, write_arrays
from samsvae.screens.screen import read_screen as read_h5ad_screen
from samsvae.screens.screen import reference_of
from samsvae.training.checkpoint import screen_facts

GUIDES = ["A1", "A2", "B", "C"]
RECEIVED = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
BASE = {"perturbations": "obsm:guides", "control": None}


def cells(matrix=RECEIVED, names=GUIDES, kind=pd.DataFrame) -> ad.AnnData:
    x = np.random.default_rng(0).poisson(3, (len(matrix), 5)) + 1.0
    index = [f"c{i}" for i in range(len(matrix))]
    adata = ad.AnnData(x.astype(np.float32), pd.DataFrame(index=index), pd.DataFrame(index=list("ghijk")))
    if kind is pd.DataFrame:
        adata.obsm["guides"] = pd.DataFrame(np.asarray(matrix), index, names)
    else:
        adata.obsm["guides"] = kind(np.asarray(matrix, np.float32))
        if names is not None:
            adata.uns["guides_names"] = np.array(names, object)
    return adata


def dosage(screen: Screen) -> np.ndarray:
    """What every cell received, as a matrix (n, T), by another way than the code under test."""
    found = np.zeros((len(screen.cells), len(screen.perturbations)), int)
    for i, c in enumerate(screen.condition):
        found[i, [t for t in screen.members[c] if t >= 0]] = 1
    return found


def explicit_zeros(matrix) -> sp.csr_matrix:
    """Every entry is stored, also those that are 0."""
    n, t = matrix.shape
    return sp.csr_matrix((matrix.ravel(), np.tile(np.arange(t), n), np.arange(n + 1) * t), matrix.shape)


def boolean(matrix) -> np.ndarray:
    return matrix > 0


@pytest.mark.parametrize(
    "kind", [pd.DataFrame, np.asarray, boolean, sp.csr_matrix, sp.csc_matrix, sp.csr_array, explicit_zeros]
)
def test_the_dosages_are_the_matrix_in_memory_and_from_a_file(tmp_path, kind):
    adata = cells(kind=kind)
    before = adata.copy()
    screen = screen_of(adata, **BASE)
    arrays = arrays_of(screen)
    assert arrays.perturbations.tolist() == GUIDES
    np.testing.assert_array_equal(dosage(arrays), RECEIVED)
    assert (screen.uns["control"], screen.uns["reference"], arrays.controls) == ("", UNPERTURBED, ())
    assert arrays.by_dosage and arrays.control is not None and arrays.conditions[arrays.control] == UNPERTURBED
    unlike = adata.obsm["guides"] != before.obsm["guides"]
    assert not unlike.sum().sum()  # the AnnData is not changed

    adata.write_h5ad(tmp_path / "in.h5ad")
    filter_screen(tmp_path / "in.h5ad", tmp_path / "out.h5ad", **BASE)
    write_arrays(tmp_path / "out.h5ad", tmp_path / "out.npz")
    again = read_screen(tmp_path / "out.npz")
    np.testing.assert_array_equal(dosage(again), RECEIVED)
    assert again.by_dosage and reference_of(tmp_path / "out.h5ad") == UNPERTURBED
    assert encode(again, "sum").names == tuple(GUIDES)
    dosages = encode(again, "unique")
    with pytest.raises(ConfigError, match="'unique' is not allowed for a screen without a control"):
        screen_facts(again, dosages, cells_of(again, np.arange(6), dosages))


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
def test_a_zarr_store_and_a_dense_matrix_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("samsvae.screens.perturbation_matrix._BLOCK", 8)  # two cells at a time
    adata = cells(kind=np.asarray)
    adata.write_zarr(tmp_path / "in.zarr")
    filter_screen(tmp_path / "in.zarr", tmp_path / "out.h5ad", **BASE)
    np.testing.assert_array_equal(dosage(arrays_of(read_h5ad_screen(tmp_path / "out.h5ad"))), RECEIVED)


def test_the_same_screen_as_joined_labels():
    adata = cells()
    adata.obs["label"] = ["ctrl", "A1", "A2+B", "A1+A2+C", "B+C", "C"]
    by_label = screen_of(adata, perturbation_column="label", separator="+", control="ctrl")
    by_matrix = screen_of(adata, perturbations="obsm:guides", control="ctrl")
    assert by_matrix.obs["condition"].tolist() == by_label.obs["condition"].tolist()
    pd.testing.assert_frame_equal(by_matrix.uns["perturbations"], by_label.uns["perturbations"])
    assert (
        by_matrix.uns["control"] == "ctrl" and "reference" not in by_matrix.uns and not arrays_of(by_matrix).by_dosage
    )
    without = screen_of(adata, perturbation_column="label", separator="+", control=[])
    assert "ctrl" in without.uns["perturbations"].index  # without a control it is a label like any other


def test_labels_without_a_control_called_none():
    adata = cells()
    adata.obs["label"] = ["A1+B", "A1", "A2+B", "A1+A2+C", "B+C", "C"]
    how = {"perturbation_column": "label", "separator": "+"}
    with pytest.raises(DataError, match=r"has no control cell \('none'\)..* If there is none, write control: null."):
        screen_of(adata, **how, control="none")
    assert screen_of(adata, **how, control=None).uns["reference"] == UNPERTURBED


def test_a_column_of_lists():
    adata = cells()
    adata.obs["received"] = [[g for g, there in zip(GUIDES, row, strict=True) if there] for row in RECEIVED]
    how = {"perturbation_column": "received"}
    np.testing.assert_array_equal(dosage(arrays_of(screen_of(adata, **how, control=None))), RECEIVED)
    assert screen_of(adata, **how, control="C").obs["condition"].tolist() == ["C", "A1", "A2+B", "A1+A2", "B", "C"]
    adata.obs["received"] = ["A1", *adata.obs["received"].iloc[1:]]
    with pytest.raises(DataError, match=r"has lists in some cells, but not in 'c0'"):
        screen_of(adata, **how, control=None)


def test_counts_above_a_threshold():
    counts = RECEIVED * np.array([1, 2, 3, 9])
    for threshold, kept in ((1, GUIDES), (2, ["A2", "B", "C"]), (2.5, ["B", "C"])):
        found = arrays_of(screen_of(cells(counts), **BASE, threshold=threshold))
        assert found.perturbations.tolist() == kept
        np.testing.assert_array_equal(dosage(found), RECEIVED[:, [GUIDES.index(name) for name in kept]])


def test_names_with_every_usual_separator_are_not_split():
    names = ["a+b", "c|d&e", "f;g/h", "i~j"]
    screen = screen_of(cells(names=names), **BASE)
    assert screen.uns["perturbations"].index.tolist() == sorted(names)
    assert screen.uns["separator"] == "++"


def test_fractions_below_the_threshold_are_named(caplog):
    """Probabilities are no counts: with threshold 1, nearly all are lost."""
    screen_of(cells(np.where(RECEIVED, 0.9, 0) + np.eye(6, 4)), **BASE)
    assert "obsm:guides: 7 values are fractions below threshold = 1, so they count as not received" in caplog.text
    caplog.clear()
    found = arrays_of(screen_of(cells(np.where(RECEIVED, 0.9, 0)), **BASE, threshold=0.5))
    np.testing.assert_array_equal(dosage(found), RECEIVED)
    screen_of(cells(RECEIVED * 3), **BASE, threshold=2)
    assert not caplog.text


def test_the_guides_of_a_real_screen(shared):
    """Every cell of THP-1 received the target that its most frequent guide has by the table of the cells."""
    adata = ad.read_h5ad(shared / "data/real/papalexi2021_thp1_crisprko_20729x299_counts.h5ad")
    how = {"perturbations": "obsm:grna_counts", "perturbation_names": "uns:grna_names", "threshold": 10}
    screen = screen_of(adata, **how, target_pattern="(.+)g[0-9]+", control="NT")
    sure = ((adata.obs["guide_umi"] >= 10) & (adata.obs["gene"] != "non-targeting")).to_numpy()
    received = screen.obs["condition"].astype(str).str.split("+")
    assert sure.sum() > 15_000
    assert all(gene in parts for gene, parts in zip(adata.obs["gene"][sure], received[sure], strict=True))
    single = (received.map(len) == 1).to_numpy()
    assert 0.9 < single[sure].mean() < 1  # some cells received two


def test_missing_and_repeated_names_in_memory():
    """They cannot be written to a file."""
    for names in (["A", None, "B", "C"], ["A", np.nan, "B", "C"]):
        adata = cells(kind=np.asarray)
        adata.uns["guides_names"] = np.array(names, object)
        for bad in (adata, cells(names=names)):
            with pytest.raises(DataError, match="1 of 4 names of guides are missing"):
                screen_of(bad, **BASE)
    with pytest.raises(DataError, match="the AnnData: obsm:guides: 1 names of guides occur more than once: 'A'"):
        screen_of(cells(names=["A", "A", "B", "C"]), **BASE)


def test_control_guides_are_no_perturbation():
    screen = screen_of(cells(), perturbations="obsm:guides", control="C")
    assert screen.obs["condition"].tolist() == ["C", "A1", "A2+B", "A1+A2", "B", "C"]


def test_targets_merge_guides_or_are_listed(tmp_path):
    table = pd.DataFrame({"guide": GUIDES, "target": ["A", "A", "B", "C"]})
    table.to_csv(tmp_path / "targets.tsv", sep="\t", index=False)
    adata = cells()
    adata.uns["table"] = table
    for targets in (str(tmp_path / "targets.tsv"), "uns:table"):
        kept = screen_of(adata, **BASE, targets=targets, guides="keep")
        assert kept.uns["perturbations"]["gene"].to_dict() == dict(zip(GUIDES, "AABC", strict=True))
        merged = arrays_of(screen_of(adata, **BASE, targets=targets))
        assert merged.perturbations.tolist() == ["A", "B", "C"]
        expected = np.column_stack([RECEIVED[:, :2].any(1), RECEIVED[:, 2], RECEIVED[:, 3]])
        np.testing.assert_array_equal(dosage(merged), expected)
    adata.obs["label"] = ["none", "A1", "A2+B", "A1+A2+C", "B+C", "C"]
    how = {"perturbation_column": "label", "separator": "+", "control": "none", "targets": "uns:table"}
    screen = screen_of(adata, **how)
    assert screen.obs["condition"].tolist() == ["none", "A", "A+B", "A+C", "B+C", "C"]
    with pytest.raises(DataError, match=r"uns:short: column 'guide' lacks 1 labels of .*: 'C'"):
        adata.uns["short"] = {"A1": "A", "A2": "A", "B": "B"}
        screen_of(adata, **(how | {"targets": "uns:short"}))


def test_rare_guides_leave_but_their_cells_stay(caplog):
    with pytest.raises(DataError, match=r"3 perturbations with fewer than min_cells = 3 cells: 'A1 \(2\)'"):
        screen_of(cells(), **BASE, min_cells=3)
    screen = screen_of(cells(), **BASE, min_cells=3, rare="drop")
    assert screen.uns["perturbations"].index.tolist() == ["C"] and screen.n_obs == 6
    adata = cells(np.column_stack([RECEIVED, np.zeros(6)]), [*GUIDES, "never"])
    assert screen_of(adata, **BASE).uns["perturbations"].index.tolist() == GUIDES
    assert "no cell received 'never'; left out" in caplog.text


def frame(adata, **changes) -> pd.DataFrame:
    return adata.obsm["guides"].assign(**changes)


BAD = {
    "no names": (lambda: cells(kind=np.asarray, names=None), {}, "its 4 columns have no names"),
    "3 names": (lambda: cells(kind=np.asarray, names=["a", "b", "c"]), {}, "has 3 names, but the matrix .* has 4"),
    "NaN": (lambda: cells(np.where(RECEIVED, RECEIVED, np.nan)), {}, "cell 'c0', guide 'A1' is nan"),
    "negative": (lambda: cells(RECEIVED - 1), {}, r"cell 'c0', guide 'A1' is -1\.0"),
    "zero": (lambda: cells(RECEIVED * 0), {}, "no cell received a guide"),
    "threshold": (lambda: cells(), {"threshold": 2}, r"no value of threshold = 2 or more \(the largest is 1\)"),
    "probabilities": (lambda: cells(RECEIVED * 0.9, kind=np.asarray), {}, r"the largest is 0\.9\), .* Lower threshold"),
    "infinite": (lambda: cells(np.where(RECEIVED, np.inf, 0), kind=sp.csr_matrix), {}, "cell 'c1', guide 'A1' is inf"),
    "complex": (lambda: cells(kind=lambda x: x.astype(complex)), {}, "must hold numbers, .* the type complex128"),
    "text without names": (lambda: cells(kind=lambda x: x.astype(str)), {}, "must hold numbers, .* the type "),
    "a table as names": (lambda: cells(kind=np.asarray, names=None), {"perturbation_names": "uns:t"}, "uns has no 't'"),
    "twice": (
        lambda: cells(kind=np.asarray, names=["A", "A", "B", "C"]),
        {},
        "1 names of guides occur more than once: 'A'",
    ),
    "text": (lambda: cells(RECEIVED.astype(str)), {}, "the columns .* hold no numbers"),
    "no such key": (lambda: cells(), {"perturbations": "obsm:guide"}, "obsm has no 'guide'. Did you mean 'guides'"),
    "no such names": (lambda: cells(), {"perturbation_names": "uns:names"}, "uns has no 'names'"),
    "all alike": (lambda: cells(np.eye(4)), {}, "every cell received 1 perturbation"),
    "no control": (lambda: cells(RECEIVED[1:]), {"control": "control"}, "no control cell .*set control: none"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("file", [False, True])
def test_a_bad_matrix_gets_one_sentence(tmp_path, name, file):
    make, options, sentence = BAD[name]
    adata = make()
    with pytest.raises(DataError, match=sentence):
        if file:
            adata.write_h5ad(tmp_path / "in.h5ad")
            filter_screen(tmp_path / "in.h5ad", tmp_path / "out.h5ad", **(BASE | options))
        else:
            screen_of(adata, **(BASE | options))


def test_cells_in_another_order_or_number_in_a_file(tmp_path):
    """anndata refuses such tables in memory, but another program may have written the file."""
    import h5py

    adata = cells()
    for order, sentence in (
        (["c1", "c0", *(f"c{i}" for i in range(2, 6))], "but in another order"),
        ([f"d{i}" for i in range(6)], "the names of the rows are not those of the cells"),
    ):
        adata.write_h5ad(tmp_path / "in.h5ad")
        with h5py.File(tmp_path / "in.h5ad", "r+") as file:
            group = file["obsm/guides"]
            group[group.attrs["_index"]][...] = np.array(order, object)
        with pytest.raises(DataError, match=sentence):
            filter_screen(tmp_path / "in.h5ad", tmp_path / "out.h5ad", **BASE)
    cells(kind=np.asarray).write_h5ad(tmp_path / "in.h5ad")
    with h5py.File(tmp_path / "in.h5ad", "r+") as file:
        values, attributes = file["obsm/guides"][:5], dict(file["obsm/guides"].attrs)
        del file["obsm/guides"]
        file["obsm/guides"] = values
        file["obsm/guides"].attrs.update(attributes)
    with pytest.raises(DataError, match="has 5 rows, but there are 6 cells"):
        filter_screen(tmp_path / "in.h5ad", tmp_path / "out.h5ad", **BASE)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"perturbations": "guides"}, r"perturbations: 'guides' is not allowed. Allowed: obsm:KEY"),
        ({"perturbations": "obsm:"}, r"Allowed: obsm:KEY"),
        (
            {"perturbations": "obsm:g", "perturbation_column": "x"},
            "perturbation_column: 'x' is not allowed together with perturbations: 'obsm:g'",
        ),
        ({"perturbations": "obsm:g", "perturbation_column": "perturbation"}, "is not allowed together with"),
        ({"perturbation_names": "uns:x"}, "allowed only with perturbations"),
        ({"threshold": 0}, "threshold: .* must be above 0"),
        ({"guides": "keep"}, "'keep' is allowed only with targets"),
        ({"control": [""]}, "control: "),
    ],
)
def test_options_that_do_not_go_together(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build(CustomOptions, options)


def test_neither_a_column_nor_a_matrix():
    """The column called perturbation, if there is one; otherwise both possibilities are named."""
    adata = cells()
    adata.obs["label"] = ["ctrl", "A1", "A2+B", "A1+A2+C", "B+C", "C"]
    with pytest.raises(
        DataError, match=r"no column 'perturbation', the default.* Allowed: label.* perturbations to a matrix"
    ):
        screen_of(adata, control="ctrl")
    adata.obs["perturbation"] = adata.obs["label"]
    assert screen_of(adata, control="ctrl").obs["condition"].tolist()[0] == "ctrl"


def test_no_control_in_yaml():
    """`control: none` is a text in YAML, `null` and `[]` are not."""
    for value in ("none", ["none"], None, []):
        assert build(CustomOptions, {"perturbations": "obsm:g", "control": value}).controls == ()
    assert build(CustomOptions, {"control": "none"}).controls == ("none",)  # a label of this name

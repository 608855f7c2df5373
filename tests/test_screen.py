import doctest
import tracemalloc

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae.errors import DataError
from samsvae.files import atomic
from samsvae.screens import screen as screens
from samsvae.screens.counts import count_blocks, integer_counts, read_table
from samsvae.screens.pack import write_arrays
from samsvae.screens.screen import assemble, check_screen, members, read_screen, read_tables, write_screen


def stacked(x, rows, cols, **settings) -> sp.csr_matrix:
    """All blocks of rows as one matrix."""
    return sp.vstack([sp.csr_matrix((0, len(cols)), dtype=np.int32), *count_blocks(x, rows, cols, **settings)], "csr")


def small_screen(counts=None, condition=("ctrl", "B+A", "A", "C", "C"), **options):
    counts = np.array([[1, 0, 2], [0, 3, 0], [5, 1, 1], [300, 0, 1], [0, 0, 9]]) if counts is None else counts
    obs = pd.DataFrame({"batch": list("xyxyx")}, index=[f"cell{i}" for i in range(5)])
    var = pd.DataFrame(index=["g1", "g2", "g3"])
    options = {"control": "ctrl", "separator": "+", "provenance": {"source": "synthetic"}} | options
    return assemble(counts, obs, var, condition=condition, **options)


def test_docstring_examples():
    assert doctest.testmod(screens).failed == 0


def test_atomic_puts_in_place_or_leaves_as_it_was(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic(path) as temporary:
        assert temporary.parent == path.parent and not path.exists()
        temporary.write_text("first")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("second")
        raise RuntimeError
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize(
    ("condition", "separator", "control", "expected"),
    [
        ("A+B", "+", "ctrl", ("A", "B")),
        ("A+ctrl", "+", "ctrl", ("A",)),
        ("A+B", "", "ctrl", ("A+B",)),
        ("non-targeting", "-", "non-targeting", ()),  # the separator may occur in the control's name
        ("0", "", "", ("0",)),
    ],
)
def test_members(condition, separator, control, expected):
    assert members(condition, separator, control) == expected


def test_assemble_counts_cells_of_single_perturbations():
    screen = small_screen(gene_of={"A": "GA"}, pathway_of={"GA": "one", "B": "two"})
    table = screen.uns["perturbations"]
    assert list(table.index) == ["A", "B", "C"]
    assert table["n_cells"].tolist() == [2, 1, 2]
    assert table["gene"].tolist() == ["GA", "B", "C"]
    assert table["pathway"].tolist() == ["one", "two", ""]
    assert screen.obs["library_size"].tolist() == [3, 3, 7, 301, 9]


def test_existing_columns_of_the_same_name_are_renamed():
    obs = pd.DataFrame({"condition": ["x", "y"]}, index=["a", "b"])
    screen = assemble(
        np.ones((2, 1)),
        obs,
        pd.DataFrame(index=["g"]),
        condition=["ctrl", "A"],
        control="ctrl",
        separator="",
        provenance={},
    )
    assert screen.obs["condition"].tolist() == ["ctrl", "A"]
    assert screen.obs["source_condition"].tolist() == ["x", "y"]


def test_write_and_read_again_with_the_same_bytes(tmp_path):
    one, two = tmp_path / "one.h5ad", tmp_path / "two.h5ad"
    write_screen(small_screen(), one)
    write_screen(small_screen(), two)
    assert one.read_bytes() == two.read_bytes()
    back = read_screen(one)
    assert back.X.dtype == np.int32 and back.X.format == "csr"
    np.testing.assert_array_equal(back.X.toarray(), small_screen().X.toarray())
    pd.testing.assert_frame_equal(back.uns["perturbations"], small_screen().uns["perturbations"])
    assert back.obs["batch"].tolist() == list("xyxyx")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([True, False, None, True, np.nan], object), "boolean"),
        (np.array([True, False, True, True, False], object), "boolean"),
        (np.array([1, 2, None, 4, 5], object), "float64"),
        (np.array([1, 2, 3, 4, 5], object), "int64"),
        (np.array([1, 2.5, None, 4, 5], object), "float64"),
        (np.array([None] * 5, object), "float64"),
        (pd.array(list("abcde"), "string"), "object"),
        (pd.array(["a", None, "c", "d", "e"], "string"), "category"),
    ],
)
def test_columns_of_python_objects_are_stored(tmp_path, values, dtype):
    screen = small_screen()
    screen.obs["own"] = values
    write_screen(screen, tmp_path / "a.h5ad")
    column = read_screen(tmp_path / "a.h5ad").obs["own"]
    assert column.dtype == dtype
    assert column.isna().tolist() == pd.isna(values).tolist()
    assert column.dropna().tolist() == [value for value in values if not pd.isna(value)]


@pytest.mark.parametrize("kind", ["obs", "var"])
def test_a_column_of_several_types_is_named(tmp_path, kind):
    screen = small_screen()
    table = getattr(screen, kind)
    table["own"] = np.array([1, "x", None, 4, 5][: len(table)], object)
    with pytest.raises(DataError, match=rf"a\.h5ad: {kind} column 'own' has values of the types 'int', 'str'\. Make"):
        write_screen(screen, tmp_path / "a.h5ad")
    assert list(tmp_path.iterdir()) == []


def in_blocks(screen, *stops):
    """The same screen without its counts, and its counts in blocks of rows."""
    head = ad.AnnData(None, screen.obs.assign(library_size=np.nan), screen.var, uns=screen.uns)
    return head, (screen.X[a:b] for a, b in zip((0, *stops), (*stops, screen.n_obs), strict=True))


@pytest.mark.parametrize("stops", [(), (1, 4), (2, 2, 3)])
@pytest.mark.parametrize("chunk", [1, 3, 1 << 18])
def test_counts_in_blocks_give_the_bytes_of_counts_in_memory(tmp_path, monkeypatch, stops, chunk):
    monkeypatch.setattr(screens, "CHUNK", chunk)
    whole, streamed = tmp_path / "whole.h5ad", tmp_path / "streamed.h5ad"
    write_screen(small_screen(), whole)
    head, blocks = in_blocks(small_screen(), *stops)
    write_screen(head, streamed, blocks=blocks)
    assert whole.read_bytes() == streamed.read_bytes()
    with h5py.File(streamed) as file:
        assert file["X/data"].chunks == file["X/indices"].chunks == (chunk,)
    back = read_screen(streamed)
    np.testing.assert_array_equal(back.X.toarray(), small_screen().X.toarray())
    assert back.obs["library_size"].tolist() == [3, 3, 7, 301, 9]


def test_a_given_library_size_is_kept_when_counts_come_in_blocks(tmp_path):
    head, blocks = in_blocks(small_screen(), 2)
    head.obs["library_size"] = [9.5, 1, 2, 3, 4]
    write_screen(head, tmp_path / "s.h5ad", blocks=blocks)
    assert read_screen(tmp_path / "s.h5ad").obs["library_size"].tolist() == [9.5, 1, 2, 3, 4]
    head, blocks = in_blocks(small_screen(), 2)
    head.obs["library_size"] = [9.5, 1, np.nan, 3, 0]
    with pytest.raises(DataError, match=r"bad.h5ad: .*'library_size' must be above 0, but 2 cells have other values"):
        write_screen(head, tmp_path / "bad.h5ad", blocks=blocks)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda blocks: [sp.csr_matrix((5, 3), dtype=np.int32)], "5 cells have zero counts"),
        (lambda blocks: list(blocks)[:1], "X has 2 rows, but obs has 5 cells"),
    ],
)
def test_blocks_that_do_not_fit_are_named_and_leave_no_file(tmp_path, spoil, sentence):
    head, blocks = in_blocks(small_screen(), 2)
    with pytest.raises(DataError, match=rf"bad.h5ad: .*{sentence}"):
        write_screen(head, tmp_path / "bad.h5ad", blocks=spoil(blocks))
    assert not any(tmp_path.iterdir())


def test_streaming_holds_a_block_not_the_matrix(tmp_path):
    """The counts take 34 MB as sparse blocks and 32 MB as read; memory never holds all of them at once."""
    cells, genes, step = 20_000, 400, 500
    counts = np.random.default_rng(0).poisson(0.7, (step, genes)).astype(np.float32)
    counts[:, 0] += 1
    with h5py.File(tmp_path / "x.h5", "w") as file:
        x = file.create_dataset("x", (cells, genes), np.float32)
        for start in range(0, cells, step):
            x[start : start + step] = counts
    obs = pd.DataFrame(index=[f"c{i}" for i in range(cells)])
    head = assemble(
        None,
        obs,
        pd.DataFrame(index=[f"g{i}" for i in range(genes)]),
        condition=np.resize(["ctrl", "A"], cells),
        control="ctrl",
        separator="",
        provenance={},
    )
    rows, cols = np.arange(cells), np.arange(genes)
    tracemalloc.start()
    with h5py.File(tmp_path / "x.h5") as file:
        names = {"cells": head.obs_names, "genes": head.var_names, "what": "x"}
        blocks = count_blocks(file["x"], rows, cols, block_bytes=step * genes * 4, **names)
        write_screen(head, tmp_path / "s.h5ad", blocks=blocks)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    write_arrays(tmp_path / "s.h5ad", tmp_path / "s.npz", block_bytes=step * genes * 4)
    packed = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(np.load(tmp_path / "s.npz")["counts"], np.tile(counts, (cells // step, 1)))
    assert written < 16e6 and packed < 16e6


def _spoiled(how):
    screen = small_screen()
    if how == "cell names":
        screen.obs_names = ["a", "a", "b", "c", "d"]
    elif how == "gene names":
        screen.var_names = ["g1", "g1", "g2"]
    elif how == "float":
        screen.X = screen.X.astype(np.float32)
    elif how == "negative":
        screen.X.data[0] = -1
    elif how == "zero cell":
        screen.X[2] = 0
    elif how == "library":
        screen.obs["library_size"] = 0.0
    elif how == "no library":
        del screen.obs["library_size"]
    elif how == "no control":
        screen.uns["control"] = "absent"
    elif how == "no table":
        del screen.uns["perturbations"]
    elif how == "table":
        screen.uns["perturbations"] = screen.uns["perturbations"].iloc[::-1]
    return screen


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("cell names", "cell names must be unique.*'a'"),
        ("gene names", "gene names must be unique.*'g1'"),
        ("float", "X must be CSR int32"),
        ("negative", "negative"),
        ("zero cell", "1 cells have zero counts in the genes kept: 'cell2'"),
        ("library", "'library_size' must be above 0, but 5 cells have other values"),
        ("no library", "no column 'library_size'"),
        ("no control", "no control cell.*'absent'"),
        ("no table", "uns has no 'perturbations'"),
        ("table", "must list the perturbations in obs"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*names are not unique.*", "ignore::scipy.sparse.SparseEfficiencyWarning")
def test_a_broken_format_is_named_and_nothing_is_written(tmp_path, how, sentence):
    path = tmp_path / "bad.h5ad"
    with pytest.raises(DataError, match=rf"bad.h5ad: .*{sentence}"):
        write_screen(_spoiled(how), path)
    assert not any(tmp_path.iterdir())


def test_real_values_must_be_declared(tmp_path):
    values = np.linspace(-1, 1, 15).reshape(5, 3)
    screen = small_screen(values, control="", condition=list("01234"), real_valued=True)
    with pytest.raises(DataError, match=r"real_valued"):
        check_screen(screen, "x.h5ad")
    write_screen(screen, tmp_path / "real.h5ad", real_valued=True)
    write_arrays(tmp_path / "real.h5ad", tmp_path / "real.npz")
    arrays = np.load(tmp_path / "real.npz")
    assert arrays["counts"].dtype == np.float32
    np.testing.assert_array_equal(arrays["counts"], values.astype(np.float32))
    np.testing.assert_array_equal(arrays["members"], np.arange(5)[:, None])
    assert not len(arrays["controls"])


@pytest.mark.parametrize("content", [None, b"", b"not HDF5"])
def test_unreadable_files_are_named(tmp_path, content):
    path = tmp_path / "x.h5ad"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"x.h5ad: (no such file|not a readable)"):
        read_screen(path)


@pytest.mark.parametrize(("top", "dtype"), [(255, np.uint8), (256, np.int16), (40_000, np.int32)])
def test_arrays(tmp_path, top, dtype):
    counts = np.array([[1, 0, 2], [0, 3, 0], [5, 1, 1], [top, 0, 1], [0, 0, 9]])
    write_screen(small_screen(counts), tmp_path / "s.h5ad")
    write_arrays(tmp_path / "s.h5ad", tmp_path / "s.npz")
    write_arrays(tmp_path / "s.h5ad", tmp_path / "again.npz")
    assert (tmp_path / "s.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    arrays = np.load(tmp_path / "s.npz", allow_pickle=False)
    assert arrays["counts"].dtype == dtype
    np.testing.assert_array_equal(arrays["counts"], counts)
    np.testing.assert_array_equal(arrays["library"], counts.sum(1).astype(np.float32))
    assert arrays["conditions"].tolist() == ["A", "B+A", "C", "ctrl"]
    assert arrays["conditions"][arrays["condition"]].tolist() == ["ctrl", "B+A", "A", "C", "C"]
    assert arrays["perturbations"].tolist() == ["A", "B", "C"]
    assert arrays["members"].tolist() == [[0, -1], [1, 0], [2, -1], [-1, -1]]
    assert arrays["cells"].tolist() == [f"cell{i}" for i in range(5)]
    assert arrays["genes"].tolist() == ["g1", "g2", "g3"]
    assert (arrays["controls"].tolist(), str(arrays["separator"])) == (["ctrl"], "+")
    np.savez(tmp_path / "numpy.npz", **arrays)
    assert (tmp_path / "numpy.npz").read_bytes() == (tmp_path / "s.npz").read_bytes()


def test_an_indptr_beyond_int32_keeps_its_type(tmp_path):
    """A file with more than 2^31 values has an int64 indptr."""
    write_screen(small_screen(), tmp_path / "s.h5ad")
    write_arrays(tmp_path / "s.h5ad", tmp_path / "s.npz")
    with h5py.File(tmp_path / "s.h5ad", "a") as file:
        starts = file["X/indptr"][:].astype(np.int64)
        del file["X/indptr"]
        file["X/indptr"] = starts
    write_arrays(tmp_path / "s.h5ad", tmp_path / "wide.npz")
    assert (tmp_path / "s.npz").read_bytes() == (tmp_path / "wide.npz").read_bytes()
    np.testing.assert_array_equal(read_screen(tmp_path / "s.h5ad").X.toarray(), small_screen().X.toarray())


def test_tables_alone(tmp_path):
    write_screen(small_screen(), tmp_path / "s.h5ad")
    tables = read_tables(tmp_path / "s.h5ad")
    assert tables.X is None and tables.shape == (5, 3)
    pd.testing.assert_frame_equal(tables.obs, read_screen(tmp_path / "s.h5ad").obs)
    with h5py.File(tmp_path / "s.h5ad", "a") as file:
        del file["uns/control"]
    with pytest.raises(DataError, match=r"s.h5ad: uns has no 'control'"):
        read_tables(tmp_path / "s.h5ad")


@pytest.mark.parametrize("names", [3, 1000])
def test_rows_of_a_table_equal_those_that_anndata_reads(tmp_path, monkeypatch, names):
    monkeypatch.setattr("samsvae.screens.counts.NAMES", names)
    n = 10
    table = pd.DataFrame(
        {
            "number": np.linspace(0, 1, n),
            "flag": np.arange(n) % 3 == 0,
            "text": [f"é{i}" for i in range(n)],
            "label": pd.Categorical(["b", "a", None, "b", "c"] * 2, categories=["c", "b", "a", "unused"]),
            "grade": pd.Categorical(["low", "high"] * 5, categories=["low", "high"], ordered=True),
            "some": pd.array([1, None] * 5, dtype="Int64"),
        },
        index=pd.Index([f"cell{i}" for i in range(n)], name="barcode"),
    )
    with h5py.File(tmp_path / "t.h5", "w") as file:
        ad.io.write_elem(file, "obs", table)
        whole = ad.io.read_elem(file["obs"])
        for rows in ([], [0], [2, 3, 9], range(n)):
            rows = np.array(rows, int)
            pd.testing.assert_frame_equal(read_table(file["obs"], rows), whole.iloc[rows])
        pd.testing.assert_frame_equal(read_table(file["obs"]), whole)


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf, 2.0**31])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_values_that_are_not_counts_are_named(value, form):
    x = np.arange(12, dtype=float).reshape(3, 4)
    x[1, 2] = value
    with pytest.raises(DataError, match=r"f.h5ad: X must hold counts.*cell 'b', gene 'g2'.*\(1 such"):
        integer_counts(form(x), list("abc"), ["g0", "g1", "g2", "g3"], "f.h5ad: X")


@pytest.mark.parametrize("form", ["contiguous", "chunked", "tall chunks", "csr", "double"])
@pytest.mark.parametrize("block_rows", [1, 3, 7, 1000])
def test_blocks_equal_one_slice(tmp_path, form, block_rows):
    rng = np.random.default_rng(5)
    x = rng.poisson(0.7, (53, 11)).astype(np.float32)
    rows = np.flatnonzero(rng.random(53) < 0.3)
    rows = rows[(rows < 20) | (rows > 35)]  # a stretch without a requested row
    cols = np.array([0, 3, 4, 10])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        if form == "csr":
            ad.io.write_elem(file, "x", sp.csr_matrix(x))
        else:
            chunks = {"chunked": (4, 5), "tall chunks": (50, 2)}.get(form)
            file.create_dataset("x", data=x.astype(float) if form == "double" else x, chunks=chunks)
        names = [f"c{i}" for i in rows], [f"g{i}" for i in cols]
        got = stacked(file["x"], rows, cols, cells=names[0], genes=names[1], what="x", block_bytes=block_rows * 11 * 4)
    assert got.dtype == np.int32 and got.has_canonical_format
    np.testing.assert_array_equal(got.toarray(), x[np.ix_(rows, cols)])


def test_all_rows_some_rows_and_no_rows(tmp_path):
    x = np.random.default_rng(5).poisson(0.7, (13, 6))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["dense"] = x
        ad.io.write_elem(file, "csr", sp.csr_matrix(x))
        for name in ("dense", "csr"):
            for rows in (np.arange(13), np.array([1, 2, 3, 11]), np.array([], int)):
                names = {"cells": rows, "genes": range(6), "what": "x", "block_bytes": 5 * 6 * 8}
                np.testing.assert_array_equal(stacked(file[name], rows, np.arange(6), **names).toarray(), x[rows])


@pytest.mark.parametrize(
    ("part", "values", "sentence"),
    [
        ("indices", [0, 1, 3], "indices outside 0 to 2, the range for 3 genes"),
        ("indices", [0, 1, -1], "indices outside 0 to 2, the range for 3 genes"),
        ("indptr", [0, 2, 1, 3], "indptr does not fit 3 cells"),
        ("indptr", [0, 1, 2], "indptr does not fit 3 cells"),
        ("indptr", [0, 1, 2, 9], "indptr does not fit 3 cells and 3 values"),
    ],
)
def test_a_damaged_row_matrix_is_named(tmp_path, part, values, sentence):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        ad.io.write_elem(file, "x", sp.csr_matrix(np.eye(3)))
        del file[f"x/{part}"]
        file[f"x/{part}"] = np.array(values)
        with pytest.raises(DataError, match=sentence):
            stacked(file["x"], np.arange(3), np.arange(3), cells="abc", genes="def", what="x")


def test_a_column_matrix_is_rejected(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        ad.io.write_elem(file, "x", sp.csc_matrix(np.eye(3)))
        with pytest.raises(DataError, match=r"stored as csc_matrix; allowed"):
            stacked(file["x"], np.arange(3), np.arange(3), cells="abc", genes="def", what="x")

import bz2
import gzip
import io

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae.errors import DataError
from samsvae.screens import splits
from samsvae.screens.custom import filter_screen
from samsvae.screens.genes import read_names
from samsvae.screens.screen import read_screen
from samsvae.screens.user_tables import read_list, read_user_table, typed

BASE = {"perturbation_column": "guide", "control": "ctrl", "separator": "+"}
LABELS = ["ctrl"] * 4 + ["A"] * 3 + ["A+B"] * 3
CELLS = [f"c{i}" for i in range(10)]


@pytest.fixture
def joined(tmp_path):
    """The screen of ten cells without labels, and of the bytes of a table of cells."""
    x = np.random.default_rng(0).poisson(3, (10, 4)).astype(np.float32) + 1
    adata = ad.AnnData(sp.csr_matrix(x), pd.DataFrame(index=CELLS), pd.DataFrame(index=[f"g{i}" for i in range(4)]))
    adata.write_h5ad(tmp_path / "in.h5ad")

    def run(table: str | bytes, name="cells.tsv", **options):
        (tmp_path / name).write_bytes(table.encode() if isinstance(table, str) else table)
        options = BASE | {"cell_table": tmp_path / name} | options
        filter_screen(tmp_path / "in.h5ad", tmp_path / "out.h5ad", **options)
        return read_screen(tmp_path / "out.h5ad")

    return run


def rows(*columns, header="cell\tguide", cells=CELLS):
    lines = ["\t".join(map(str, row)) for row in zip(cells, *columns, strict=True)]
    return "\n".join([header, *lines]) + "\n"


TABLE = rows(LABELS)
COMMAS = TABLE.replace("\t", ",")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cells.csv", COMMAS.encode()),
        ("cells.CSV", COMMAS.encode()),
        ("cells.csv.gz", gzip.compress(COMMAS.encode(), mtime=0)),
        ("cells.tsv.gz", gzip.compress(TABLE.encode(), mtime=0)),
        ("cells.csv.bz2", bz2.compress(COMMAS.encode())),
        ("cells.txt", gzip.compress(TABLE.encode(), mtime=0)),  # renamed
        ("cells.tsv.gz", TABLE.encode()),  # unzipped by a browser
        ("cells.csv", b"\xef\xbb\xbf" + COMMAS.replace("\n", "\r\n").encode()),
        ("cells.csv.gz", gzip.compress(b"\xef\xbb\xbf" + COMMAS.replace("\n", "\r\n").encode(), mtime=0)),
        ("cells.txt", TABLE.replace("\n", "\r\n").encode("utf-16")),  # 'Unicode text' of a spreadsheet
        ("cells.tsv", TABLE.removeprefix("cell\t").encode()),  # R's write.table
        ("cells.csv", ('"",' + COMMAS.removeprefix("cell,")).encode()),  # R's write.csv
    ],
)
def test_a_table_of_cells_in_any_form(joined, name, content):
    screen = joined(content, name)
    assert screen.obs["guide"].tolist() == LABELS
    assert screen.obs["condition"].value_counts().to_dict() == {"ctrl": 4, "A": 3, "A+B": 3}


@pytest.mark.parametrize(
    "labels",
    [
        ["000", "007", "07"],
        ["1.1", "1.10", "1.100"],
        ["0", "1", "2"],
        ["1e3", "1000", "0"],
        ["NA", "None", "nan"],
        ["TRUE", "True", "FALSE"],
        ["True", "False", "x"],
        ["1.50", "2.50", "0"],
        ["12345678901234567890123", "12345678901234567890124", "0"],
    ],
)
def test_labels_stay_as_they_are_written(joined, labels):
    written = [*labels * 3, labels[0]]
    screen = joined(rows(written), control=labels[0], separator="")
    assert screen.obs["condition"].tolist() == written
    assert screen.obs["guide"].astype(str).tolist() == written


def test_labels_that_look_like_numbers_stay_if_some_cells_have_none(joined):
    screen = joined(rows(["0", "", "1", "0", "2", "1", "", "2", "2", "0"]), control="0", unlabelled="drop")
    assert screen.obs["condition"].tolist() == ["0", "1", "0", "2", "1", "2", "2", "0"]


def test_a_table_that_pandas_reads_in_parts(joined, tmp_path):
    """Without low_memory=False, '0417' was 417 in the first part alone."""
    n = 60_000
    x = sp.csr_matrix((np.ones(n, np.float32), np.zeros(n, int), np.arange(n + 1)), shape=(n, 2))
    cells = [f"c{i}" for i in range(n)]
    ad.AnnData(x, pd.DataFrame(index=cells), pd.DataFrame(index=["g0", "g1"])).write_h5ad(tmp_path / "in.h5ad")
    guide = ["0417"] * 40_000 + ["control"] * 20_000
    table = pd.DataFrame({"cell": cells, "guide": guide} | {f"q{k}": 0.5 for k in range(14)})
    screen = joined(table.to_csv(sep="\t", index=False), control="control")
    assert screen.obs["condition"].value_counts().to_dict() == {"0417": 40_000, "control": 20_000}
    assert (screen.obs["q13"] == 0.5).all()


def test_cells_that_a_table_of_labels_leaves_out_have_no_label(joined, caplog):
    depth = [2**60 + i for i in range(8)]
    table = rows(LABELS[:8], depth, header="cell\tguide\tdepth", cells=CELLS[:8])
    screen = joined(table, unlabelled="drop")
    assert screen.obs_names.tolist() == CELLS[:8]
    assert screen.obs["depth"].tolist() == depth
    assert screen.uns["provenance"]["dropped_unlabelled_cells"] == 2
    assert "lacks 2 cells of" in caplog.text
    numbered = rows(["0", "0", "1", ""], cells=CELLS[:4])
    assert joined(numbered, unlabelled="drop", control="0").obs["guide"].tolist() == ["0", "0", "1"]


@pytest.mark.parametrize("name", [None, "barcode"])
def test_the_index_of_the_source_keeps_its_name(tmp_path, joined, name):
    adata = ad.read_h5ad(tmp_path / "in.h5ad")
    adata.obs.index.name = name
    adata.write_h5ad(tmp_path / "in.h5ad")
    assert joined(TABLE).obs.index.name == name


def test_a_table_must_list_every_cell_otherwise(joined):
    short = rows(LABELS[:8], cells=CELLS[:8])
    with pytest.raises(DataError, match=r"cells\.tsv: column 'cell' lacks 2 cells of .*in\.h5ad: 'c8', 'c9'"):
        joined(short)
    with pytest.raises(DataError, match=r"lacks 10 cells of"):
        joined(short.replace("\nc", "\nx"), unlabelled="drop")
    with pytest.raises(DataError, match=r"lacks 2 cells of"):
        joined(short.replace("guide", "batch"), unlabelled="drop")


def test_true_and_false_with_a_gap(joined):
    doublet = ["True", "False", "", *["True"] * 7]
    column = joined(rows(LABELS, doublet, header="cell\tguide\tdoublet")).obs["doublet"]
    assert column.isna().tolist() == [value == "" for value in doublet]
    assert column.dropna().tolist() == [value == "True" for value in doublet if value]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (rows(LABELS, [""] * 10), r"cells\.tsv: the first line has 2 names .*one field more, which is empty"),
        (rows(LABELS, LABELS, LABELS), r"cells\.tsv: the first line has 2 names .*the rows have 4 fields"),
    ],
)
def test_a_header_that_does_not_fit(joined, text, sentence):
    with pytest.raises(DataError, match=sentence):
        joined(text)


@pytest.mark.parametrize("name", ["cells.tsv.gz", "cells.tsv.bz2", "cells.tsv.xz", "cells.tsv.zip"])
def test_a_damaged_file(tmp_path, name):
    whole = gzip.compress(TABLE.encode(), mtime=0)
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{name}: not a readable table"):
        read_user_table(tmp_path / name)


def test_a_compression_that_is_not_read_says_how_to_unpack(tmp_path):
    path = tmp_path / "cells.csv.zst"
    path.write_bytes(bytes.fromhex("28b52ffd0400090000610a47e5a2"))
    for read, kind in ((read_user_table, "table"), (read_list, "list")):
        with pytest.raises(DataError, match=rf"cells\.csv\.zst: not a readable {kind} .*unpack it first: zstd -d FILE"):
            read(path)


COLUMNS = [
    ["1", "2", "-3"],
    ["1", "", "3"],
    ["1", "2", ""],
    ["", "", ""],
    ["0.1", "1e-3", "2.50"],
    ["0.30000000000000004", "12345.678901234567", "1.7976931348623157e308"],
    ["inf", "-Inf", "1"],
    ["nan", "1", "2"],
    ["NA", "1", "2"],
    ["True", "FALSE", "true"],
    ["True", "1", "x"],
    ["9223372036854775808", "1", "2"],
    ["99999999999999999999", "1", "2"],
    ["1_0", "2", "3"],
    ["x", "", "y"],
]


@pytest.mark.parametrize("column", COLUMNS, ids=",".join)
def test_other_columns_have_the_types_that_pandas_gives_them(column):
    text = io.StringIO("\n".join(["k\tx", *(f"r\t{value}" for value in column)]))
    expected = pd.read_csv(text, sep="\t", keep_default_na=False, na_values=[""])["x"]
    pd.testing.assert_series_equal(typed(pd.Series(column, name="x", dtype=object)), expected, check_exact=True)


@pytest.mark.parametrize(
    "column", [["007", "07"], ["1.1", "1.10"], ["1", "1.0"], ["0417", "5"], ["True", "1"], ["1\n", "2"]]
)
def test_numbers_that_would_lose_text_stay_text(column):
    assert typed(pd.Series(column)).tolist() == column


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfg0\r\n\r\ng3\r\ng0\r\n",
        gzip.compress(b"\xef\xbb\xbf g0\ng3 \n", mtime=0),
        "g0\r\ng3\r\n".encode("utf-16"),
    ],
)
def test_a_list_of_genes_in_any_form(tmp_path, content):
    (tmp_path / "genes.txt").write_bytes(content)
    assert read_names(tmp_path / "genes.txt") == ["g0", "g3"]


def test_a_list_in_another_compression(tmp_path):
    (tmp_path / "genes.txt.bz2").write_bytes(bz2.compress(b"g0\ng3\n"))
    assert read_names(tmp_path / "genes.txt.bz2") == ["g0", "g3"]
    (tmp_path / "genes.txt").write_bytes(bytes(range(128, 256)))
    with pytest.raises(DataError, match=r"genes\.txt: not a readable list"):
        read_names(tmp_path / "genes.txt")


OBS = pd.DataFrame({"condition": ["0", "07", "007"]}, index=["01", "1", "001"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.csv.gz", gzip.compress(b"cell,split\n001,test\n01,train\n1,val\n", mtime=0)),
        ("s.tsv.gz", gzip.compress(b"condition\tsplit\r\n007\ttest\r\n0\ttrain\r\n07\tval\r\n", mtime=0)),
        ("s.tsv", b"condition\tsplit\n1\t007\ttest\n2\t0\ttrain\n3\t07\tval\n"),  # R's write.table
    ],
)
def test_a_split_in_any_form(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert splits.from_file(OBS, tmp_path / name)["split"].tolist() == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv.gz", gzip.compress(b"\xef\xbb\xbfperturbation,pathway\r\nA,007\r\nB,\r\n", mtime=0)),
        ("p.tsv", b"perturbation\tpathway\n1\tA\t007\n2\tB\t\n"),  # R's write.table
    ],
)
def test_an_annotation_in_any_form(joined, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    screen = joined(TABLE, annotation=tmp_path / name)
    assert screen.uns["perturbations"]["pathway"].to_dict() == {"A": "007", "B": ""}

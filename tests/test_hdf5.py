"""HDF5 files that are damaged or hostile: each reader gives the right content or one sentence that names the file."""

import random

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata.io import write_elem

from samsvae.errors import DataError
from samsvae.matrices import read_h5ad, write_h5ad
from samsvae.screens import norman, replogle
from samsvae.screens.custom import filter_screen, screen_of
from samsvae.screens.data_card import data_card
from samsvae.screens.pack import write_arrays
from samsvae.screens.screen import read_perturbations, read_screen, read_tables
from samsvae.tables import write

OPTIONS = {"perturbation_column": "guide", "control": "ctrl"}
COUNTS = np.random.default_rng(0).poisson(2, (24, 8)) + 1


def source(path, kind=sp.csr_matrix, **options):
    """A file that every reader of sources accepts, written by anndata: metadata without checksums."""
    guide = np.repeat(["ctrl", "A", "B"], 8)
    obs = pd.DataFrame({"guide": pd.Categorical(guide), "n": np.arange(24.0)}, [f"c{i}" for i in range(24)])
    obs["gene"], obs["guide_id"] = np.where(guide == "ctrl", "non-targeting", guide), guide
    obs["sgID_AB"], obs["perturbation"] = obs["gene"] + "_1", np.where(guide == "ctrl", "control", guide)
    genes = [f"g{i}" for i in range(8)]
    adata = ad.AnnData(kind(COUNTS.astype(np.float32)), obs, pd.DataFrame({"gene_name": genes}, genes))
    adata.uns["note"] = {"a": np.arange(3), "b": "text"}
    adata.write_h5ad(path, **options)
    return path


def screen(path):
    filter_screen(source(path.with_name("source.h5ad")), path, **OPTIONS)
    return path


def table(path):
    names = [f"p{i}" for i in range(5)]
    write_h5ad(ad.AnnData(np.ones((5, 3)), pd.DataFrame(index=names), obsm={"mask": np.eye(5)}), path)
    return path


def tenx(path):
    x = sp.csc_matrix(COUNTS.T)
    names = {"id": "E", "name": "g", "feature_type": "Gene Expression", "genome": "x"}
    with h5py.File(path, "w") as file:
        for name, values in {"data": x.data, "indices": x.indices, "indptr": x.indptr, "shape": x.shape}.items():
            file[f"matrix/{name}"] = np.asarray(values, np.int64)
        file["matrix/barcodes"] = np.array([f"c{i}" for i in range(24)], "S8")
        for name, text in names.items():
            row = [text if len(text) > 1 and name != "id" else f"{text}{i}" for i in range(8)]
            file[f"matrix/features/{name}"] = np.array(row, "S20")
    return path


def content(adata):
    x = adata.X.toarray() if sp.issparse(adata.X) else adata.X
    return adata.obs.to_csv(), adata.var.to_csv(), None if x is None else x.tolist()


def read_custom(path):
    out = path.with_name("out.h5ad")
    filter_screen(path, out, **OPTIONS)
    return content(ad.read_h5ad(out))


def read_norman(path):
    out, genes = path.with_name("out.h5ad"), path.with_name("genes.txt")
    genes.write_text("g1\ng3\n")
    norman.filter_screen(path, out, genes=genes)
    return content(ad.read_h5ad(out))


def read_replogle(path):
    out = path.with_name("out.h5ad")
    genes = {"perturbed_genes": ["A"], "measured_genes": ["g1", "g3"], "pathways": {"P": ["A"]}}
    replogle.filter_tables(path, out, n_controls=4, **genes)
    return content(ad.read_h5ad(out))


def read_tenx(path):
    from samsvae.screens.sources import open_source

    with open_source(path, "X", 1 << 20) as source:
        counts = source.counts.read(np.arange(24), np.arange(8))
        return counts.toarray().tolist(), source.obs.to_csv(), source.var.to_csv()


def read_arrays(path):
    write_arrays(path, path.with_name("arrays.npz"))
    with np.load(path.with_name("arrays.npz")) as arrays:
        return {name: array.tolist() for name, array in arrays.items()}


def read_card(path):
    split = path.with_name("split.tsv")
    write(pd.DataFrame({"cell": [f"c{i}" for i in range(24)], "split": "train"}), split)
    return [frame.to_csv() for frame in vars(data_card(path, split)).values()]


def read_all_tables(path):
    return *content(read_tables(path)), read_perturbations(path).to_csv()


#: Reader -> how its file is made. The bytes of `CHECKED` have checksums, or those of gzip.
READERS = {
    "custom": (read_custom, source),
    "custom, CSC": (read_custom, lambda path: source(path, sp.csc_matrix)),
    "custom, dense": (read_custom, lambda path: source(path, np.asarray, compression="gzip")),
    "norman": (read_norman, source),
    "replogle": (read_replogle, source),
    "10x": (read_tenx, tenx),
    "screen": (lambda path: content(read_screen(path)), screen),
    "tables": (read_all_tables, screen),
    "arrays": (read_arrays, screen),
    "data card": (read_card, screen),
    "results": (lambda path: content(read_h5ad(path)), table),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_sector_gives_the_right_content_or_one_sentence(reader, tmp_path):
    read, make = READERS[reader]
    path = make(tmp_path / f"bad{'.h5' if reader == '10x' else '.h5ad'}")
    whole, expected, chance = path.read_bytes(), read(path), random.Random(reader)
    refused = wrong = 0
    for trial in range(12):
        data, size = bytearray(whole), chance.choice([64, 512, 4096])
        at = chance.randrange(len(data) // 64) * 64
        new = [bytes(size), b"\xff" * size, bytes(b ^ 1 << chance.randrange(8) for b in data[at : at + 1])][trial % 3]
        data[at : at + len(new)] = new
        path.write_bytes(data[: len(whole)])
        try:
            wrong += read(path) != expected
        except DataError as error:
            refused += 1
            assert "bad.h5" in str(error) or "out.h5ad" in str(error)
            assert "\n" not in str(error) and len(str(error)) < 700
    assert refused >= 3
    assert wrong <= 2 and (make is not screen or not wrong)  # sources may have bytes without checksums


# ---- what a file claims --------------------------------------------------------------------------------------------


def refused(path, said, read=read_custom):
    with pytest.raises(DataError) as error:
        read(path)
    found = str(error.value)
    assert path.name in found and said in found and "\n" not in found


def virtual(file):
    layout = h5py.VirtualLayout((24, 8), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "X", (24, 8))
    del file["X"]
    file.create_virtual_dataset("X", layout)


def external(file):
    del file["X"]
    file.create_dataset("X", (24, 8), "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def replaced(place, **made):
    """Put a dataset in place of another."""

    def change(file):
        del file[place]
        file.create_dataset(place, **made)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f["uns"].update({"other": h5py.ExternalLink("other.h5", "/X")}), "uns/other is a link to another"),
        (virtual, "X is stored in another file"),
        (external, "X is stored in another file"),
        (lambda f: f["uns"].update({"note/all": h5py.SoftLink("/")}), "the group contains itself"),
        (lambda f: f["uns"].update({"note/up": f["uns"]}), "uns/note/up is damaged: the group contains itself"),
        (
            lambda f: f["uns"].update({"one": h5py.SoftLink("/uns/two"), "two": h5py.SoftLink("/uns/one")}),
            "uns/one cannot be read",
        ),
        (lambda f: f["uns"].update({"none": h5py.SoftLink("/nothing")}), "uns/none cannot be read"),
        (replaced("obs/n", shape=2**60, dtype="f8", chunks=(2**20,)), "obs/n is damaged: it claims 1,152,921,504"),
        (replaced("X", shape=(2**40, 8), dtype="f4", chunks=(2**10, 8)), "X is damaged: it claims 8,796,093,022,208"),
        (replaced("obs/n", shape=24, dtype="f8", chunks=(8,)), "obs/n is damaged: it has 0 of its 3 chunks"),
        (replaced("obs/n", data=np.arange(23.0)), "obs cannot be read"),
        (replaced("obs/guide", data=np.zeros((24, 2))), "obs cannot be read"),
        (replaced("obs/guide/codes", data=np.full(24, 9, "i1")), "obs cannot be read"),
        (replaced("var", data=np.arange(8)), "var has the format of anndata before 0.7"),
        (lambda f: f["obs"].attrs.update({"_index": "nothing"}), "obs cannot be read"),
        (lambda f: f["obs"].attrs.update({"column-order": ["n", "x"]}), "obs cannot be read"),
        (replaced("X", data=np.full((24, 8), "text", h5py.string_dtype())), "X must hold counts"),
        (replaced("X", data=np.ones((24, 8), complex)), "X must hold counts"),
        (replaced("X", data=np.ones((24, 8), [("a", "i4")])), "X "),
        (replaced("X", data=np.ones((24, 7))), "X has the shape (24, 7), but there are 24 cells and 8 genes"),
        (replaced("X", data=np.ones(24)), "X has the shape (24,)"),
        (replaced("X", data=3), "X has the shape ()"),
        (replaced("X", data=np.where(COUNTS > 2, -1.0, 1.0)), "is -1 ("),
        (replaced("X", data=np.where(COUNTS > 2, np.nan, 1.0)), "is nan ("),
        (replaced("X", data=np.where(COUNTS > 2, np.inf, 1.0)), "is inf ("),
        (replaced("X", data=np.full((24, 8), 2.0**31)), "is 2147483648 ("),
        (replaced("X", data=np.full((24, 8), 1.5)), "is 1.5 ("),
    ],
)
def test_odd_content_ends_in_one_sentence(change, said, tmp_path):
    path = source(tmp_path / "odd.h5ad", np.asarray)
    with h5py.File(path, "r+") as file:
        change(file)
    refused(path, said)


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("indices", lambda x: x + 100, "has indices outside 0 to"),
        ("indices", lambda x: x - 1, "has indices outside 0 to"),
        ("indices", lambda x: x.astype(float), "type of its indices is float64; allowed: whole numbers"),
        ("indices", lambda x: x[:-1], "values, but 191 indices"),
        ("indptr", lambda x: x[::-1], "its indptr does not fit"),
        ("indptr", lambda x: x[:-1], "its indptr does not fit"),
        ("indptr", lambda x: np.where(x == x[3], x[5], x), "its indptr does not fit"),
        ("indptr", lambda x: x.astype(complex), "type of its indptr is complex128"),
        ("indptr", lambda x: x * 1.0 * np.nan, "type of its indptr is float64"),
        ("data", lambda x: x.astype(complex), "must hold counts"),
        ("data", lambda x: x[:-1], "its indptr does not fit"),
        ("data", lambda x: -x, "must hold counts"),
        ("data", lambda x: x * np.nan, "must hold counts"),
        ("data", lambda x: x.astype("S5"), "X "),
        ("data", lambda x: x.reshape(2, -1), "X "),
    ],
)
def test_a_damaged_sparse_matrix_ends_in_one_sentence(kind, part, change, said, tmp_path):
    path = source(tmp_path / "odd.h5ad", kind)
    with h5py.File(path, "r+") as file:
        values = file[f"X/{part}"][:]
        del file[f"X/{part}"]
        file[f"X/{part}"] = change(values)
    refused(path, said)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("indices", lambda x: x + 100, "matrix is damaged: it has indices outside 0 to 7"),
        ("indptr", lambda x: x[::-1], "matrix is damaged: its indptr does not fit 24 cells"),
        ("shape", lambda x: x * 2**50, "matrix is damaged: its indptr does not fit"),
        ("features/name", lambda x: x[:-1], "cannot be read"),
        ("barcodes", lambda x: x[:-1], "cannot be read"),
    ],
)
def test_a_damaged_10x_file_ends_in_one_sentence(part, change, said, tmp_path):
    path = tenx(tmp_path / "odd.h5")
    with h5py.File(path, "r+") as file:
        values = file[f"matrix/{part}"][:]
        del file[f"matrix/{part}"]
        file[f"matrix/{part}"] = change(values)
    refused(path, said, read_tenx)


def test_an_index_out_of_range_in_memory_is_refused(tmp_path):
    """scipy would read past its arrays."""
    adata = ad.read_h5ad(source(tmp_path / "in.h5ad"))
    adata.X.indices[0] = 1000
    with pytest.raises(DataError, match="the AnnData: X cannot be read"):
        screen_of(adata, **OPTIONS)


@pytest.mark.parametrize("read", ["screen", "results"])
def test_an_index_out_of_range_in_a_file_of_ours_is_refused(read, tmp_path):
    path = screen(tmp_path / "odd.h5ad")
    with h5py.File(path, "r+") as file:
        file["X/indices"][0] = 1000
    refused(path, "odd.h5ad", READERS[read][0])


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("uns/control", np.arange(3), "uns['control'] must be text"),
        ("uns/separator", 3, "uns['separator'] must be text"),
        ("uns/perturbations", np.arange(3), "uns['perturbations'] must be a table"),
        ("uns/provenance", "x", "uns['provenance'] must be entries by name"),
        ("obs/condition", np.arange(24), "obs column 'condition' must hold text"),
        ("obs/library_size", np.array(["x"] * 24, object), "obs column 'library_size' must hold numbers"),
        ("X", np.full((24, 8), np.nan, np.float32), "X has values that are not finite"),
        ("X", np.full((24, 8), "x", h5py.string_dtype()), "X"),
        ("X", np.ones((24, 7), np.float32), "X"),
    ],
)
@pytest.mark.parametrize("read", ["screen", "tables", "arrays", "data card"])
def test_odd_content_of_a_screen_ends_in_one_sentence(read, place, value, said, tmp_path):
    path = screen(tmp_path / "odd.h5ad")
    with h5py.File(path, "r+") as file:
        del file[place]
        write_elem(file, place, value)
    if (read, place) != ("tables", "X"):
        refused(path, said, READERS[read][0])


@pytest.mark.parametrize("size", [0, 2**64 - 16, 2**64 - 24])
def test_a_text_that_never_ends_is_refused(size, tmp_path):
    """HDF5 follows the objects of a collection of text by their sizes, without an end if one leads back."""
    path = source(tmp_path / "endless.h5ad")
    data = bytearray(path.read_bytes())
    at = data.index(b"GCOL") + 16
    data[at : at + 16] = bytes([size > 0]) + bytes(7) + size.to_bytes(8, "little")
    path.write_bytes(data)
    refused(path, f"endless.h5ad: the text at byte {at - 16:,} is damaged")


def test_text_of_a_claimed_length_takes_no_memory(tmp_path):
    path = tmp_path / "long.h5ad"
    with h5py.File(path, "w") as file:
        file["obs"] = np.array(["one", "two"], object)
        start = file["obs"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[start : start + 4] = (2**32 - 1).to_bytes(4, "little")
    path.write_bytes(data)
    refused(path, "obs is damaged: it claims 4,294,967,298 bytes of text", read_tables)


def test_a_file_written_in_one_session_and_changed_in_another_is_read(tmp_path):
    """Freed space may hold remains of old collections of text."""
    path = source(tmp_path / "again.h5ad")
    with h5py.File(path, "r+") as file:
        for turn in range(3):
            for place in ("var/_index", "uns/note/b"):
                value = file[place][()]
                del file[place]
                file.create_dataset(place, data=value, dtype=h5py.string_dtype()).attrs["more"] = "text" * turn
        file["var/_index"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        file["uns/note/b"].attrs.update({"encoding-type": "string", "encoding-version": "0.2.0"})
    assert read_custom(path)[2] == COUNTS.tolist()


def test_a_screen_has_metadata_with_checksums_and_the_same_bytes_twice(tmp_path):
    """Superblock version 3 is the first with checksums for everything in it; HDF5 1.10 and later read it."""
    one, two = screen(tmp_path / "one.h5ad"), tmp_path / "two.h5ad"
    assert one.read_bytes()[8] == 3
    filter_screen(tmp_path / "source.h5ad", two, **OPTIONS)
    assert one.read_bytes() == two.read_bytes()

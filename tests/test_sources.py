"""Sources of your own screen in the forms that other programs write them."""

import gzip

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from samsvae import fit
from samsvae.errors import DataError
from samsvae.screens.counts import read_labels, read_table
from samsvae.screens.custom import filter_screen, screen_of
from samsvae.screens.hdf5 import open_h5ad
from samsvae.screens.screen import read_screen
from samsvae.screens.sources import open_source

OPTIONS = {"perturbation_column": "guide", "control": "ctrl", "separator": "+"}
LABELS = ["ctrl"] * 5 + ["A"] * 5 + ["B"] * 5 + ["A+B"] * 5


def small():
    x = np.random.default_rng(0).poisson(3, (20, 6)) + 1
    obs = pd.DataFrame({"guide": LABELS}, index=[f"c{i}" for i in range(20)])
    return ad.AnnData(sp.csr_matrix(x.astype(np.float32)), obs, pd.DataFrame(index=[f"g{i}" for i in range(6)]))


def written(adata, folder):
    adata.write_h5ad(folder / "in.h5ad")
    return folder / "in.h5ad"


def filtered(source, folder, **options):
    filter_screen(source, folder / "out.h5ad", **(OPTIONS | options))
    return read_screen(folder / "out.h5ad")


def assert_complete(screen, genes=tuple(f"g{i}" for i in range(6))):
    """The screen has all counts of `small`, and its labels."""
    np.testing.assert_array_equal(screen.X.toarray(), small().X.toarray())
    assert screen.obs["condition"].tolist() == LABELS
    assert screen.obs_names.tolist() == small().obs_names.tolist()
    assert tuple(screen.var_names) == genes


# ---- h5ad ----------------------------------------------------------------------------------------------------------


def fix_lengths(path):
    """Write every attribute that is text with a fixed length, as Julia and R do; h5py reads it as bytes."""
    with h5py.File(path, "r+") as file:
        places = [file]
        file.visititems(lambda name, item: places.append(item))
        for place in places:
            for key, value in list(place.attrs.items()):
                if isinstance(value, str):
                    del place.attrs[key]
                    place.attrs[key] = np.bytes_(value.encode())
        for table in ("obs", "var"):
            order = [str(name) for name in file[table].attrs["column-order"]]
            file[table].attrs["column-order"] = np.array(order, "S") if order else np.empty(0, "S1")


@pytest.mark.parametrize("stored", [sp.csr_matrix, sp.csc_matrix, lambda x: x.toarray()])
def test_attributes_of_fixed_length(tmp_path, stored):
    adata = small()
    adata.X = stored(adata.X)
    fix_lengths(written(adata, tmp_path))
    assert_complete(filtered(tmp_path / "in.h5ad", tmp_path))


def test_tables_with_attributes_of_fixed_length(tmp_path):
    """The readers of single rows and columns, which Replogle's filter uses."""
    fix_lengths(written(small(), tmp_path))
    with open_h5ad(tmp_path / "in.h5ad") as file:
        table = read_table(file["obs"], np.array([4, 5]))
        assert table["guide"].tolist() == ["ctrl", "A"] and table.index.tolist() == ["c4", "c5"]
        assert list(table) == ["guide"] and table.index.name is None
        assert read_labels(file["obs"], "guide").tolist() == LABELS


def test_counts_in_a_layer_without_x(tmp_path):
    adata = small()
    adata.layers["counts"], adata.X = adata.X.copy(), None
    source = written(adata, tmp_path)
    assert_complete(filtered(source, tmp_path, counts="layer:counts"))
    assert_complete(screen_of(adata, counts="layer:counts", **OPTIONS))
    for refused in (lambda: filtered(source, tmp_path), lambda: screen_of(adata, **OPTIONS)):
        with pytest.raises(DataError, match=r"has no 'X', which the option counts requests\. Allowed: layer:counts"):
            refused()
    with h5py.File(source, "r+") as file:
        file["X"] = h5py.Empty("f4")
        del file["layers/counts"]
    with pytest.raises(DataError, match=r"has no 'X', which the option counts requests, and no other matrix"):
        filtered(source, tmp_path)


@pytest.mark.parametrize(
    ("value", "shown"), [(3 - 1e-6, "2.999999"), (1.5, "1.5"), (-3, "-3"), (np.nan, "nan"), (2.0**31, "2147483648")]
)
def test_a_value_that_is_not_a_count_is_shown_exactly(tmp_path, value, shown):
    adata = small()
    x = adata.X.toarray()
    x[2, 3] = value
    adata.X = x
    with pytest.raises(DataError, match=rf"cell 'c2', gene 'g3' is {shown} \(1 such"):
        filtered(written(adata, tmp_path), tmp_path)


def test_counts_that_are_complex_numbers(tmp_path):
    adata = small()
    adata.X = adata.X.astype(complex)
    with pytest.raises(DataError, match=r"in\.h5ad: X must hold counts .* its type is complex128"):
        filtered(written(adata, tmp_path), tmp_path)


def test_two_columns_of_one_name_are_refused():
    adata = small()
    adata.obs = pd.concat([adata.obs, adata.obs], axis=1)
    sentence = r"the AnnData: obs has 2 columns called 'guide'\. Rename or remove all but one"
    with pytest.raises(DataError, match=sentence):
        screen_of(adata, **OPTIONS)
    with pytest.raises(DataError, match=sentence):
        fit(adata, perturbation="guide", control="ctrl", separator="+")
    adata = small()
    adata.obs[["depth", "again"]] = 1.0
    adata.obs.columns = ["guide", "depth", "depth"]
    with pytest.raises(DataError, match=r"obs has 2 columns called 'depth'"):
        screen_of(adata, library_size="depth", **OPTIONS)


def test_a_screen_may_be_filtered_again(tmp_path):
    adata = small()
    adata.obs["condition"] = "treated"
    filtered(written(adata, tmp_path), tmp_path).write_h5ad(tmp_path / "again.h5ad")
    screen = filtered(tmp_path / "again.h5ad", tmp_path)
    assert_complete(screen)
    assert screen.obs["source_source_condition"].tolist() == LABELS
    assert set(screen.obs["source_condition"]) == {"treated"}
    assert screen.obs["source_library_size"].tolist() == screen.obs["library_size"].tolist()
    assert screen.obs.columns.is_unique


def test_a_second_split_for_choosing_genes(tmp_path):
    adata = small()
    adata.obs["split"], adata.obs["source_split"] = "second", "first"
    screen = filtered(written(adata, tmp_path), tmp_path, genes=3, genes_split={"kind": "random"})
    assert set(screen.obs["source_source_split"]) == {"second"} and set(screen.obs["source_split"]) == {"first"}
    assert set(screen.obs["split"]) == {"train", "val", "test"}


def test_a_column_called_index(tmp_path):
    """SeuratDisk writes one into raw/var; anndata reads it, but refuses to write it."""
    adata = small()
    adata.raw = adata.copy()
    with h5py.File(written(adata, tmp_path), "r+") as file:
        for name in ("obs", "raw/var"):
            table = file[name]
            names = table[table.attrs["_index"]][:]
            table.move(table.attrs["_index"], "features")
            table["_index"] = names
            table["_index"].attrs.update(table["features"].attrs)
            table.attrs["_index"] = "features"
            table.attrs["column-order"] = np.array([*table.attrs["column-order"], "_index"], object)
    screen = filtered(tmp_path / "in.h5ad", tmp_path, counts="raw")
    assert_complete(screen)
    assert screen.var["source__index"].tolist() == screen.var_names.tolist()
    assert screen.obs["source__index"].tolist() == screen.obs_names.tolist()


def test_names_of_cells_under_the_name_of_a_column(tmp_path):
    """anndata refuses to write a table if its index and another column have one name."""
    adata = small()
    adata.obs.index.name = "condition"
    assert_complete(filtered(written(adata, tmp_path), tmp_path))


@pytest.mark.parametrize("stored", [sp.csr_matrix, sp.csc_matrix, lambda x: x.toarray()])
@pytest.mark.parametrize("part", ["data", "indptr", "codes"])
def test_a_compression_that_is_not_installed(tmp_path, stored, part):
    """A chunk claims to be compressed by zstd (filter 32015)."""
    adata = small()
    adata.X = stored(adata.X)
    with h5py.File(written(adata, tmp_path), "r+") as file:
        matrix = f"X/{part}" if isinstance(file["X"], h5py.Group) else "X"
        place = "obs/guide/codes" if part == "codes" else matrix
        values, attributes = file[place][:], dict(file[place].attrs)
        del file[place]
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk(values.shape)
        created.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        kind, space = h5py.h5t.py_create(values.dtype), h5py.h5s.create_simple(values.shape)
        h5py.h5d.create(file.id, place.encode(), kind, space, created).write_direct_chunk(
            (0,) * values.ndim, values.tobytes(), 0
        )
        file[place].attrs.update(attributes)
    what = "obs" if part == "codes" else "X"
    with pytest.raises(DataError, match=rf"in\.h5ad: {what} is compressed with HDF5 filter 32015.*hdf5plugin"):
        filtered(tmp_path / "in.h5ad", tmp_path)


# ---- zarr ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
def test_a_zarr_store_is_read(tmp_path):
    adata = small()
    adata.write_zarr(tmp_path / "in.zarr")
    assert_complete(filtered(tmp_path / "in.zarr", tmp_path))
    adata.layers["umi"], adata.X = adata.X.copy(), adata.X * 0.5
    adata.write_zarr(tmp_path / "folder")
    assert_complete(filtered(tmp_path / "folder", tmp_path, counts="layer:umi"))
    with pytest.raises(DataError, match=r"folder: has no 'layer:umis'.*Did you mean 'layer:umi'"):
        filtered(tmp_path / "folder", tmp_path, counts="layer:umis")


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_a_zarr_store_is_read_in_blocks(tmp_path, kind):
    adata = small()
    adata.X = kind(adata.X.toarray())
    adata.raw = adata
    adata.write_zarr(tmp_path / "in.zarr")
    with open_source(tmp_path / "in.zarr", "raw", 500) as source:
        counts, obs = source.counts, source.obs
        blocks = list(counts.tiles(np.arange(1, 20), np.arange(6)))
        assert len(blocks) > (kind is not np.asarray) and counts.by_columns == (kind is sp.csc_matrix)
        np.testing.assert_array_equal(counts.read(np.arange(1, 20), np.arange(6)).toarray(), small().X.toarray()[1:])
    assert obs["guide"].tolist() == LABELS
    assert_complete(filtered(tmp_path / "in.zarr", tmp_path, counts="raw"))
    for chunk in (tmp_path / "in.zarr/raw/X").rglob("0*"):
        chunk.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"in\.zarr: raw cannot be read"):
        filtered(tmp_path / "in.zarr", tmp_path, counts="raw")


@pytest.mark.parametrize("name", ["in.zarr", "folder"])
def test_a_zarr_store_of_something_else(tmp_path, name):
    (tmp_path / name).mkdir()
    for mark in ("zarr.json", ".zgroup"):
        (tmp_path / name / mark).write_text("{}")
    with pytest.raises(DataError, match=rf"{name}: not a readable zarr store of an AnnData .*\.h5ad"):
        filtered(tmp_path / name, tmp_path)


# ---- 10x folders ---------------------------------------------------------------------------------------------------


def tenx(folder, *, prefix="", zipped=True, columns=3, features="features", kinds=("Gene Expression",) * 6):
    adata = small()
    folder.mkdir(exist_ok=True)
    end, open_file = (".gz", gzip.open) if zipped else ("", open)
    with open_file(folder / f"{prefix}matrix.mtx{end}", "wb") as file:
        scipy.io.mmwrite(file, adata.X.T.astype(int).tocoo())
    rows = ["\t".join([f"ENSG{i}", f"g{i}", kinds[i]][:columns]) for i in range(6)]
    for kind, lines in ((features, rows), ("barcodes", adata.obs_names)):
        with open_file(folder / f"{prefix}{kind}.tsv{end}", "wb") as file:
            file.write(("\n".join(lines) + "\n").encode())
    adata.obs.rename_axis("cell").to_csv(folder.parent / "cells.tsv", sep="\t")
    return folder


def replaced(path, old, new):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(old, new)))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["", "GSM1_"])
@pytest.mark.parametrize("features", ["features", "genes"])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_10x_folders(tmp_path, zipped, prefix, features, columns):
    folder = tenx(tmp_path / "tenx", prefix=prefix, zipped=zipped, features=features, columns=columns)
    screen = filtered(folder, tmp_path, cell_table=str(tmp_path / "cells.tsv"))
    assert_complete(screen, tuple(f"ENSG{i}" if columns == 1 else f"g{i}" for i in range(6)))
    assert screen.var["gene_ids"].tolist() == [f"ENSG{i}" for i in range(6)]


def test_a_10x_folder_keeps_gene_expression_as_scanpy_does(tmp_path):
    import scanpy

    kinds = ["Gene Expression", "Antibody Capture", "Gene Expression", "Custom", "Gene Expression", "Gene Expression"]
    folder = tenx(tmp_path / "tenx", kinds=kinds)
    replaced(folder / "features.tsv.gz", b"g2", b"g1")  # the second feature of this name gets -1
    expected = scanpy.read_10x_mtx(folder)
    screen = filtered(folder, tmp_path, cell_table=str(tmp_path / "cells.tsv"))
    np.testing.assert_array_equal(screen.X.toarray(), expected.X.toarray())
    assert screen.var_names.tolist() == expected.var_names.tolist() == ["g0", "g1-1", "g4", "g5"]
    assert screen.var.astype(str).equals(expected.var.astype(str))


def test_a_gene_called_na(tmp_path):
    folder = tenx(tmp_path / "tenx")
    replaced(folder / "features.tsv.gz", b"g3", b"NA")
    screen = filtered(folder, tmp_path, cell_table=str(tmp_path / "cells.tsv"))
    assert_complete(screen, ("g0", "g1", "g2", "NA", "g4", "g5"))


def test_10x_folders_that_cannot_be_read(tmp_path):
    def refuse(folder, sentence):
        with pytest.raises(DataError, match=sentence):
            filtered(folder, tmp_path, cell_table=str(tmp_path / "cells.tsv"))

    two = tenx(tenx(tmp_path / "two", prefix="GSM1_"), prefix="GSM2_")
    refuse(two, r"two: has the files of 2 samples \('GSM1_', 'GSM2_'\)\. Put each in a folder of its own")
    lacks = tenx(tmp_path / "lacks", prefix="GSM1_")
    (lacks / "GSM1_barcodes.tsv.gz").unlink()
    refuse(
        lacks, r"lacks: .* has no GSM1_barcodes\.tsv, zipped or not; its files are 'GSM1_features\.tsv\.gz', 'GSM1_m"
    )
    (lacks / "GSM1_matrix.mtx.gz").unlink()
    refuse(lacks, r"has no matrix\.mtx or matrix\.mtx\.gz; its files are 'GSM1_features\.tsv\.gz'")
    (lacks / "GSM1_matrix.mtx.zst").write_bytes(b"x")
    refuse(lacks, r"'GSM1_matrix\.mtx\.zst'\. Only gzip is read: unpack the others first")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", r"empty: .* has no matrix\.mtx .* it has no files")
    short = tenx(tmp_path / "short")
    (short / "barcodes.tsv.gz").write_bytes(gzip.compress(b"c0\nc1\n"))
    refuse(short, r"6 rows \(genes\) and 20 columns \(cells\), but features\.tsv\.gz has 6 .* barcodes\.tsv\.gz has 2")
    refuse(
        tenx(tmp_path / "other", kinds=["Custom"] * 6), r"features\.tsv\.gz: column 3 has the types 'Custom', but no"
    )
    huge = tenx(tmp_path / "huge")
    whole = gzip.decompress((huge / "matrix.mtx.gz").read_bytes())
    for sizes, said in (
        (b"\n6 20 9999999999999\n", r"matrix\.mtx\.gz is damaged: it claims 9,999,999,999,999 entries"),
        (b"\n6 99999999999 120\n", "has 6 rows .* and 99999999999 columns"),
    ):
        (huge / "matrix.mtx.gz").write_bytes(gzip.compress(whole.replace(b"\n6 20 120\n", sizes)))
        refuse(huge, said)
    cut = tenx(tmp_path / "cut")
    (cut / "matrix.mtx.gz").write_bytes((cut / "matrix.mtx.gz").read_bytes()[:100])
    refuse(cut, r"cut: cannot be read")

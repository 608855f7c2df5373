import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from samsvae.data.custom import filter_screen
from samsvae.data.screen import write_arrays
from samsvae.errors import ConfigError, DataError

LABELS = ["ctrl", "NT", "A", "A", "A+B", "B+A", "B+ctrl", "ctrl+B", " C ", "C"]
BASE = {"perturbation_column": "target", "control": ["ctrl", "NT"], "separator": "+"}


def small():
    rng = np.random.default_rng(0)
    counts = rng.poisson(2, (10, 6)).astype(np.float32) + np.eye(10, 6, dtype=np.float32)
    obs = pd.DataFrame({"target": LABELS, "depth": np.arange(1, 11) * 10.0}, index=[f"c{i}" for i in range(10)])
    return ad.AnnData(sp.csr_matrix(counts), obs, pd.DataFrame(index=[f"g{i}" for i in range(6)]))


def run(adata, folder, **options):
    adata.write_h5ad(folder / "in.h5ad")
    return filter_screen(folder / "in.h5ad", folder / "out.h5ad", **(BASE | options))


def test_conditions_have_one_name_each(tmp_path):
    screen = run(small(), tmp_path)
    assert screen.obs["condition"].tolist() == ["ctrl", "ctrl", "A", "A", "A+B", "A+B", "B", "B", "C", "C"]
    assert screen.uns["control"] == "ctrl"
    assert screen.uns["perturbations"]["n_cells"].to_dict() == {"A": 4, "B": 4, "C": 2}
    assert screen.obs["target"].tolist() == LABELS
    np.testing.assert_array_equal(screen.X.toarray(), small().X.toarray())


def test_labels_are_not_split_without_a_separator(tmp_path):
    screen = run(small(), tmp_path, separator="")
    assert {"A+B", "B+A"} < set(screen.uns["perturbations"].index)


@pytest.mark.parametrize("place", ["X", "layer:umi", "raw"])
def test_counts_may_be_in_three_places(tmp_path, place):
    adata = small()
    if place == "layer:umi":
        adata.layers["umi"], adata.X = adata.X.copy(), adata.X * 0.5
    if place == "raw":
        adata.raw = adata.copy()
        adata = adata[:, :2].copy()  # raw keeps all genes
        adata.X = adata.X * 0.5
    screen = run(adata, tmp_path, counts=place)
    np.testing.assert_array_equal(screen.X.toarray(), small().X.toarray())
    assert screen.var_names.tolist() == [f"g{i}" for i in range(6)]


def test_genes_and_library_size(tmp_path):
    counts = small().X.toarray()
    kept = {"genes": ["g4", "g0", "g1"], "zero_cells": "drop"}
    rows = counts[:, [0, 1, 4]].sum(1) > 0
    for library, expected in (
        ("kept", counts[:, [0, 1, 4]].sum(1)),
        ("all", counts.sum(1)),
        ("depth", np.arange(1, 11) * 10.0),
    ):
        screen = run(small(), tmp_path, library_size=library, **kept)
        assert screen.var_names.tolist() == ["g0", "g1", "g4"]
        factor = counts[:, [0, 1, 4]].sum() / expected[rows].sum()  # 1 for the genes kept
        np.testing.assert_allclose(screen.obs["library_size"], expected[rows] * factor)
        assert screen.obs["library_size"].sum() == pytest.approx(screen.X.sum())


def test_most_variable_genes_are_scanpys(tmp_path):
    import scanpy

    rng = np.random.default_rng(1)
    mean = rng.gamma(1, 4, 200)
    counts = rng.poisson(rng.gamma(1, mean, (150, 200)))
    counts[:, 7] = 0  # a gene that nobody has
    obs = pd.DataFrame({"target": ["ctrl", "A", "B"] * 50}, index=[f"c{i}" for i in range(150)])
    adata = ad.AnnData(counts.astype(np.float32), obs, pd.DataFrame(index=[f"g{i}" for i in range(200)]))
    screen = run(adata, tmp_path, genes=30)
    scanpy.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=30)
    assert screen.var_names.tolist() == adata.var_names[adata.var["highly_variable"]].tolist()
    assert screen.n_vars == 30
    with pytest.raises(DataError, match=r"200 asked for, but only 199 genes vary"):
        run(adata, tmp_path, genes=200)


def test_rare_conditions_and_empty_cells_may_be_dropped(tmp_path):
    adata = small()
    adata.X = adata.X.toarray()
    adata.X[3] = 0
    with pytest.raises(DataError, match=r"1 cells with zero counts in the 6 genes kept: 'c3'"):
        run(adata, tmp_path)
    screen = run(adata, tmp_path, zero_cells="drop", min_cells=2, rare="drop")
    assert "c3" not in screen.obs_names
    assert "A" not in set(screen.obs["condition"]), "A has one cell that is not empty, fewer than two"
    facts = screen.uns["provenance"]
    assert (facts["dropped_zero_cells"], facts["dropped_rare_cells"], facts["dropped_rare_conditions"]) == (1, 1, 1)
    with pytest.raises(DataError, match=r"1 labels with fewer than min_cells = 2 cells: 'A .1.'"):
        run(adata, tmp_path, zero_cells="drop", min_cells=2)
    with pytest.raises(DataError, match=r"the control cannot be dropped"):
        run(adata, tmp_path, zero_cells="drop", min_cells=3, rare="drop")


def test_annotation(tmp_path):
    table = tmp_path / "pathways.csv"
    table.write_text("perturbation,pathway\nA,glycolysis\nZ,other\n")
    screen = run(small(), tmp_path, annotation=table)
    assert screen.uns["perturbations"]["pathway"].to_dict() == {"A": "glycolysis", "B": "", "C": ""}
    table.write_text("perturbation,pathway\nX,glycolysis\n")
    with pytest.raises(DataError, match=r"pathways.csv: .* none of the perturbations in .*in\.h5ad"):
        run(small(), tmp_path, annotation=table)
    table.write_text("gene,pathway\nX,glycolysis\n")
    with pytest.raises(DataError, match=r"no column 'perturbation'"):
        run(small(), tmp_path, annotation=table)
    with pytest.raises(DataError, match=r"nowhere\.tsv: no such file"):
        run(small(), tmp_path, annotation=tmp_path / "nowhere.tsv")


def test_kept_columns(tmp_path):
    assert list(run(small(), tmp_path, keep_obs=["depth"]).obs) == ["depth", "condition", "library_size"]
    with pytest.raises(DataError, match=r"no column 'dept'. Did you mean 'depth'"):
        run(small(), tmp_path, keep_obs=["dept"])


def test_a_10x_folder_with_a_table_of_cells(tmp_path):
    adata, folder = small(), tmp_path / "tenx"
    folder.mkdir()
    scipy.io.mmwrite(folder / "matrix.mtx", adata.X.T.astype(int))
    (folder / "genes.tsv").write_text("".join(f"ENSG{i}\t{g}\n" for i, g in enumerate(adata.var_names)))
    (folder / "barcodes.tsv").write_text("".join(f"{c}\n" for c in adata.obs_names))
    adata.obs.iloc[::-1].rename_axis("cell").to_csv(tmp_path / "cells.tsv", sep="\t")
    screen = filter_screen(folder, tmp_path / "out.h5ad", cell_table=tmp_path / "cells.tsv", **BASE)
    np.testing.assert_array_equal(screen.X.toarray(), adata.X.toarray())
    assert screen.obs["target"].tolist() == LABELS
    adata.obs.iloc[2:].rename_axis("cell").to_csv(tmp_path / "cells.tsv", sep="\t")
    with pytest.raises(DataError, match=r"cells\.tsv: 2 cells of .*tenx are missing: 'c0', 'c1'"):
        filter_screen(folder, tmp_path / "out.h5ad", cell_table=tmp_path / "cells.tsv", **BASE)


def spoiled(how):
    adata = small()
    if how == "negative":
        adata.X[4, 2] = -3
    elif how == "fraction":
        adata.X[4, 2] = 1.5
    elif how == "cells":
        adata.obs_names = ["c0", "c0", *adata.obs_names[2:]]
    elif how == "genes":
        adata.var_names = ["g0", "g1", "g1", "g3", "g4", "g5"]
    elif how == "missing label":
        adata.obs.loc["c2", "target"] = None
    elif how == "blank label":
        adata.obs.loc["c2", "target"] = " "
    elif how == "no depth":
        adata.obs.loc["c2", "depth"] = np.nan
    return adata


@pytest.mark.parametrize(
    ("how", "options", "sentence"),
    [
        ("", {"perturbation_column": "targets"}, "obs has no column 'targets'. Did you mean 'target'"),
        ("", {"control": "controll"}, "'target' has no control cell .'controll'.. Did you mean 'ctrl'"),
        ("", {"counts": "layer:umi"}, "no layer 'umi'"),
        ("", {"counts": "raw"}, "the file has no raw"),
        ("", {"genes": ["g1", "g9"]}, "has no gene 'g9' of those asked for. Did you mean"),
        ("", {"library_size": "depht"}, "no column 'depht'. Did you mean 'depth'"),
        ("", {"library_size": "target"}, "'target' is not above 0 in 10 cells"),
        ("", {"min_cells": 3}, "5 labels with fewer than min_cells = 3 cells: 'A .2.'"),
        ("negative", {}, "X must hold counts.*cell 'c4', gene 'g2' is -3"),
        ("fraction", {}, "X must hold counts.*cell 'c4', gene 'g2' is 1.5"),
        ("cells", {}, "1 cell names occur more than once: 'c0'"),
        ("genes", {}, "1 gene names occur more than once: 'g1'"),
        ("missing label", {}, "'target' has no label in 1 cells: 'c2'"),
        ("blank label", {}, "'target' has no label in 1 cells: 'c2'"),
        ("no depth", {"library_size": "depth"}, "'depth' is not above 0 in 1 cells: 'c2'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*names are not unique.*", "ignore::scipy.sparse.SparseEfficiencyWarning")
def test_each_bad_input_gets_one_sentence(tmp_path, how, options, sentence):
    with pytest.raises(DataError, match=rf"in\.h5ad: .*({sentence})") as told:
        run(spoiled(how), tmp_path, **options)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out.h5ad").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rare": "dropp"}, "rare: 'dropp' is not allowed. Did you mean 'drop'"),
        ({"zero_cells": "keep"}, "zero_cells: 'keep'"),
        ({"counts": "layers"}, "counts: 'layers' is not allowed"),
        ({"genes": "some"}, "genes: 'some' is not allowed"),
        ({"genes": 0}, "genes: 0 is not allowed"),
        ({"control": []}, "control"),
    ],
)
def test_options_that_are_not_allowed(tmp_path, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        run(small(), tmp_path, **options)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "x.h5ad").write_bytes(b"no")
    (tmp_path / "x.txt").write_bytes(b"no")
    for name, sentence in (("x.h5ad", "cannot be read"), ("x.txt", "not a known form"), ("y.h5ad", "no such file")):
        with pytest.raises(DataError, match=rf"{name}: {sentence}"):
            filter_screen(tmp_path / name, tmp_path / "out.h5ad", **BASE)


def test_real_norman_counts(shared, tmp_path):
    source = shared / "data" / "real" / "norman2019_k562_crispra_3375x500_counts.h5ad"
    screen = filter_screen(
        source,
        tmp_path / "s.h5ad",
        perturbation_column="condition",
        control="control",
        separator="+",
        library_size="total_counts",
        min_cells=50,
    )
    assert screen.shape == (3_375, 500), "the 250 genes without a count are kept"
    labels = ad.read_h5ad(source).obs["condition"].astype(str)
    assert set(screen.uns["perturbations"].index) == set("+".join(labels).split("+")) - {"control"}
    assert screen.obs["condition"].nunique() == 18 + 15 + 1
    total = screen.obs["total_counts"].to_numpy(float)
    np.testing.assert_allclose(screen.obs["library_size"], total * screen.X.sum() / total.sum())
    write_arrays(tmp_path / "s.h5ad", tmp_path / "s.npz")
    arrays = np.load(tmp_path / "s.npz")
    assert arrays["members"].shape == (34, 2)
    options = {"perturbation_column": "condition", "control": "control", "separator": "+", "genes": 100}
    with pytest.raises(DataError, match=r"25 cells with zero counts in the 100 genes kept"):
        filter_screen(source, tmp_path / "v.h5ad", **options)
    fewer = filter_screen(source, tmp_path / "v.h5ad", zero_cells="drop", **options)
    assert fewer.shape == (3_375 - 25, 100) and (fewer.X.sum(0) > 0).all()


def test_real_papalexi_counts(shared, tmp_path):
    source = shared / "data" / "real" / "papalexi2021_thp1_crisprko_20729x299_counts.h5ad"
    screen = filter_screen(
        source, tmp_path / "s.h5ad", perturbation_column="gene", control="non-targeting", keep_obs=["bio_rep"]
    )
    assert screen.n_obs == 20_729 and len(screen.uns["perturbations"]) == 25
    assert (screen.obs["condition"] == "non-targeting").sum() == 2_386

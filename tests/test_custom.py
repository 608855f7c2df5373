import gzip
import tracemalloc

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from samsvae.data import arrays
from samsvae.errors import ConfigError, DataError
from samsvae.screens import splits
from samsvae.screens.counts import Counts
from samsvae.screens.custom import filter_screen
from samsvae.screens.genes import most_variable
from samsvae.screens.pack import write_arrays
from samsvae.screens.screen import read_screen

LABELS = ["ctrl", "NT", "A", "A", "A+B", "B+A", "B+ctrl", "ctrl+B", " C ", "C"]
BASE = {"perturbation_column": "target", "control": ["ctrl", "NT"], "separator": "+"}


def small():
    rng = np.random.default_rng(0)
    counts = rng.poisson(2, (10, 6)).astype(np.float32) + np.eye(10, 6, dtype=np.float32)
    obs = pd.DataFrame({"target": LABELS, "depth": np.arange(1, 11) * 10.0}, index=[f"c{i}" for i in range(10)])
    return ad.AnnData(sp.csr_matrix(counts), obs, pd.DataFrame(index=[f"g{i}" for i in range(6)]))


def run(adata, folder, **options):
    adata.write_h5ad(folder / "in.h5ad")
    return filtered(folder / "in.h5ad", folder / "out.h5ad", **(BASE | options))


def filtered(source, target, **options):
    filter_screen(source, target, **options)
    return read_screen(target)


def test_each_condition_has_one_name(tmp_path):
    screen = run(small(), tmp_path)
    assert screen.obs["condition"].tolist() == ["ctrl", "ctrl", "A", "A", "A+B", "A+B", "B", "B", "C", "C"]
    assert screen.uns["control"] == "ctrl"
    assert screen.uns["perturbations"]["n_cells"].to_dict() == {"A": 4, "B": 4, "C": 2}
    assert screen.obs["target"].tolist() == LABELS
    np.testing.assert_array_equal(screen.X.toarray(), small().X.toarray())


def test_memory_does_not_grow_with_cells_times_the_longest_label(tmp_path):
    """20,000 cells, ten of them with a label of 4,000 letters: 80 MB a time if every label were padded."""
    n, long = 20_000, "_".join(f"chr{i}.{i}_top_two" for i in range(300))[:4000]
    labels = ["ctrl"] * (n // 2) + ["A"] * (n // 2 - 10) + [long] * 10
    x = sp.csr_matrix((np.ones(n, np.float32), np.zeros(n, int), np.arange(n + 1)), shape=(n, 2))
    for column in (labels, pd.Categorical(labels)):
        obs = pd.DataFrame({"target": column}, index=[f"c{i}" for i in range(n)])
        ad.AnnData(x, obs, pd.DataFrame(index=["g0", "g1"])).write_h5ad(tmp_path / "in.h5ad")
        tracemalloc.start()
        filter_screen(tmp_path / "in.h5ad", tmp_path / "out.h5ad", **(BASE | {"separator": ""}))
        screen = read_screen(tmp_path / "out.h5ad")
        splits.write_split(splits.make_split(screen.obs, kind="held_out", conditions=[long]), tmp_path / "split.tsv")
        write_arrays(tmp_path / "out.h5ad", tmp_path / "out.npz")
        split = arrays.read_split(tmp_path / "split.tsv", screen.obs_names)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40 * 2**20
        assert (split == "test").sum() >= 10 and screen.obs["condition"].tolist() == labels


def test_labels_are_not_split_without_a_separator(tmp_path):
    screen = run(small(), tmp_path, separator="")
    assert {"A+B", "B+A"} < set(screen.uns["perturbations"].index)


@pytest.mark.parametrize("place", ["X", "layer:umi", "raw"])
def test_counts_may_be_in_any_of_three_places(tmp_path, place):
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
    counts[:, 7] = 0  # a gene without counts
    counts[3, 100:] += 300  # a cell whose counts are clipped
    obs = pd.DataFrame({"target": ["ctrl", "A", "B"] * 50}, index=[f"c{i}" for i in range(150)])
    adata = ad.AnnData(counts.astype(np.float32), obs, pd.DataFrame(index=[f"g{i}" for i in range(200)]))
    screen = run(adata, tmp_path, genes=30)
    scanpy.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=30)
    assert screen.var_names.tolist() == adata.var_names[adata.var["highly_variable"]].tolist()
    assert screen.n_vars == 30
    for stored in (sp.csr_matrix, sp.csc_matrix, np.asarray):  # reading in tiles gives the same genes
        again = ad.AnnData(stored(counts.astype(np.float32)), obs, adata.var[[]])
        assert run(again, tmp_path, genes=30, block_bytes=2_000).var_names.tolist() == screen.var_names.tolist()
    with pytest.raises(DataError, match=r"200 requested, but only 199 genes vary"):
        run(adata, tmp_path, genes=200)


def two_halves(n=400, genes=80, seed=3):
    """Cells in two halves: some genes vary only in the first half, others only in the second."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(2, 3, genes), (n, genes))
    half = np.arange(n) < n // 2
    counts[np.ix_(half, np.arange(20))] *= rng.integers(0, 4, (n // 2, 20))
    counts[np.ix_(~half, np.arange(20, 40))] *= rng.integers(0, 4, (n - n // 2, 20))
    names = [f"c{i}" for i in range(n)]
    obs = pd.DataFrame({"target": np.resize(["ctrl", "A", "B"], n), "batch": np.arange(n)}, index=names)
    return ad.AnnData(
        sp.csr_matrix(counts.astype(np.float32)), obs, pd.DataFrame(index=[f"g{i}" for i in range(genes)])
    )


def test_genes_selected_on_training_cells_only(tmp_path, caplog):
    import scanpy

    adata = two_halves()
    part = np.where(np.arange(400) < 200, "train", np.resize(["val", "test"], 400))
    lines = "".join(f"{cell}\t{name}\n" for cell, name in zip(adata.obs_names, part, strict=True))
    (tmp_path / "mine.tsv").write_text("cell\tsplit\n" + lines)
    by_hand = {"kind": "file", "path": str(tmp_path / "mine.tsv")}
    screen = run(adata, tmp_path, genes=20, genes_split=by_hand)
    assert "all cells" not in caplog.text
    train = adata[part == "train"].copy()
    scanpy.pp.highly_variable_genes(train, flavor="seurat_v3", n_top_genes=20, span=0.5)
    assert screen.var_names.tolist() == train.var_names[train.var["highly_variable"]].tolist()
    assert screen.obs["split"].tolist() == part.tolist()
    assert splits.make_split(screen.obs, kind="given")["split"].tolist() == part.tolist()
    assert screen.uns["provenance"]["genes_chosen_on_cells"] == 200

    # The other cells have no influence; without the split they do, and the log says so.
    shuffled = adata.copy()
    shuffled.X = sp.vstack([adata.X[:200], adata.X[200:][:, np.random.default_rng(0).permutation(80)]], "csr")
    again = run(shuffled, tmp_path, genes=20, genes_split=by_hand)
    assert again.var_names.tolist() == screen.var_names.tolist()
    caplog.set_level("INFO")
    assert run(adata, tmp_path, genes=20).var_names.tolist() != screen.var_names.tolist()
    assert "test cells influence the choice" in caplog.text


def test_the_split_for_choosing_genes_is_written_for_the_kept_cells(tmp_path):
    adata = two_halves()
    adata.obs["split"], adata.obs["condition"] = "theirs", "theirs"
    adata.obs.loc["c7", "target"] = None
    screen = run(adata, tmp_path, genes=20, genes_split={"kind": "random", "split_seed": 4}, unlabelled="drop")
    rest = adata[adata.obs["target"].notna()].obs
    expected = splits.random_split(rest, seed=4).set_index("cell")["split"]
    assert screen.obs["split"].tolist() == expected[screen.obs_names].tolist()
    assert set(screen.obs["source_split"]) == set(screen.obs["source_condition"]) == {"theirs"}
    with pytest.raises(ConfigError, match=r"genes_split: allowed only when genes is 'auto' or a number, but genes is"):
        run(adata, tmp_path, genes="all", genes_split={"kind": "random"})
    with pytest.raises(ConfigError, match=r"no cell has the condition 'D'"):
        options = {"unlabelled": "drop", "genes_split": {"kind": "held_out", "conditions": ["D"]}}
        run(adata, tmp_path, genes=20, **options)


def test_most_variable_genes_if_counts_are_tied():
    counts = sp.csr_matrix(np.eye(30, 40, dtype=int) + np.r_[[np.arange(40) % 3 * 7]] * (np.arange(30)[:, None] % 2))
    data = Counts(counts, pd.Index(range(30)).astype(str), pd.Index(range(40)).astype(str), "x")
    found = most_variable(data, np.arange(30), 5)
    assert len(found) == 5 and (np.diff(found) > 0).all()


def test_a_list_of_genes_may_be_a_file(tmp_path):
    (tmp_path / "genes.txt").write_text("g4\n\n g0 \ng4\n")
    assert run(small(), tmp_path, genes=str(tmp_path / "genes.txt"), zero_cells="drop").var_names.tolist() == [
        "g0",
        "g4",
    ]


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
    with pytest.raises(
        DataError, match=r"2 cells of the control 'ctrl', fewer than min_cells = 3; .*cannot be dropped"
    ):
        run(adata, tmp_path, zero_cells="drop", min_cells=3, rare="drop")


def test_a_filter_that_leaves_nothing_names_the_source(tmp_path):
    """The message names the source, not the file to write, and the number to change."""
    many = small()
    many.obs["target"] = ["ctrl"] * 5 + ["A"] * 3 + ["B"] * 2
    with pytest.raises(DataError, match=r"in\.h5ad: .*'target' has no perturbed .*min_cells = 4 .*'A' \(3\)"):
        run(many, tmp_path, min_cells=4, rare="drop")
    many.obs["target"] = "ctrl"
    with pytest.raises(DataError, match=r"in\.h5ad: .*'target' has no perturbed cell"):
        run(many, tmp_path)
    empty = small()
    empty.X = empty.X * 0
    with pytest.raises(DataError, match=r"in\.h5ad: X: no cell has counts"):
        run(empty, tmp_path, zero_cells="drop")


def test_labels_that_may_be_mistakes_are_warned_about(tmp_path, caplog):
    adata = small()
    adata.obs["target"] = ["ctrl", "ctrl", "Ctrl", "nan", "A+nan", "NA", "A", "A", "CTRL+A", "A"]
    screen = run(adata, tmp_path)
    assert {"nan", "NA", "Ctrl", "CTRL"} < set(screen.uns["perturbations"].index), "warned about, not fixed"
    assert "'NA (1 cells)', 'nan (2 cells)': treated as a perturbation, but looks like a missing label" in caplog.text
    assert "'CTRL (1 cells)', 'Ctrl (1 cells)': treated as a perturbation, but looks like a control" in caplog.text
    caplog.clear()
    adata.obs["target"] = ["none"] * 5 + ["A"] * 5
    run(adata, tmp_path, control="none")
    assert "looks like" not in caplog.text


def test_a_control_that_no_cell_has_is_said_once(tmp_path, caplog):
    with pytest.raises(DataError, match=r"has no control cell .'controll'.. Did you mean 'ctrl'"):
        run(small(), tmp_path, control="controll")
    assert "controll" not in caplog.text
    run(small(), tmp_path, control=["ctrl", "controll"])
    assert "no cell has the control label 'controll'" in caplog.text


def test_every_label_of_the_control_is_kept(tmp_path):
    """A user may ask a trained model for the control by another of its labels."""
    run(small(), tmp_path)
    write_arrays(tmp_path / "out.h5ad", tmp_path / "out.npz")
    found = arrays.read_screen(tmp_path / "out.npz")
    assert (found.controls, found.separator) == (("ctrl", "NT"), "+")


GUIDES = ["NTg1", "NTg2", "Ag1", "Ag2", "Ag1+Bg1", "Bg2+Ag2", "Bg1+ctrl", "Bg1", " Cg1 ", "ctrl"]
TARGETS = pd.DataFrame({"guide": ["Ag1", "Ag2", "Bg1", "Bg2", "Cg1", "NTg1", "NTg2"], "target": [*"AABBC", "NT", "NT"]})


def test_guides_become_their_targets(tmp_path):
    """By a table and by a pattern, as in a screen whose labels are targets."""
    screen = small()
    screen.obs["target"] = ["NT", "NT", "A", "A", "A+B", "B+A", "B+ctrl", "B", " C ", "ctrl"]
    expected = run(screen, tmp_path)
    screen.obs["target"] = GUIDES
    TARGETS.to_csv(tmp_path / "guides.tsv", sep="\t", index=False)
    for options in ({"targets": str(tmp_path / "guides.tsv")}, {"target_pattern": "(.+)g[0-9]+"}):
        got = run(screen, tmp_path, **options)
        assert got.obs["condition"].tolist() == expected.obs["condition"].tolist()
        assert got.obs["target"].tolist() == GUIDES, "the guides stay in obs"
        pd.testing.assert_frame_equal(got.uns["perturbations"], expected.uns["perturbations"])


def test_a_guide_may_have_two_targets(tmp_path):
    screen = small()
    screen.obs["target"] = ["ctrl"] * 4 + ["both"] * 3 + ["Bg1+both"] * 3
    pd.DataFrame({"guide": ["both", "Bg1"], "target": ["B+A", "B"]}).to_csv(tmp_path / "guides.csv", index=False)
    got = run(screen, tmp_path, targets=str(tmp_path / "guides.csv"), control="ctrl")
    assert got.obs["condition"].tolist() == ["ctrl"] * 4 + ["A+B"] * 6


def test_controls_by_their_targets_alone_are_not_missed(tmp_path, caplog):
    """No label is NT itself; the guides NTg1 and NTg2 are."""
    screen = small()
    screen.obs["target"] = GUIDES
    got = run(screen, tmp_path, target_pattern="(.+)g[0-9]+", control=["NT", "ctrl"])
    assert (got.obs["condition"] == "NT").sum() == 3 and "control label" not in caplog.text
    assert "no match" not in caplog.text, "a control label needs no target"


def test_targets_that_do_not_fit_the_labels(tmp_path, caplog):
    screen, table = small(), tmp_path / "guides.tsv"
    screen.obs["target"] = GUIDES
    TARGETS.iloc[1:-1].to_csv(table, sep="\t", index=False)
    with pytest.raises(DataError, match=r"guides\.tsv: column 'guide' lacks 2 labels of .*: 'Ag1', 'NTg2'\. Add them"):
        run(screen, tmp_path, targets=str(table))
    pd.concat([TARGETS, TARGETS]).to_csv(table, sep="\t", index=False)
    with pytest.raises(DataError, match="column 'guide' has names more than once: 'Ag1'"):
        run(screen, tmp_path, targets=str(table))
    TARGETS.rename(columns={"target": "gene"}).to_csv(table, sep="\t", index=False)
    with pytest.raises(DataError, match="no column 'target'"):
        run(screen, tmp_path, targets=str(table))
    run(screen, tmp_path, target_pattern="([AB]|NT)g[0-9]+")
    assert "'Cg1': no match of target_pattern, so these labels stay as they are" in caplog.text
    for options, said in (
        ({"target_pattern": "(.+", "targets": None}, "target_pattern: '\\(.\\+' is not valid"),
        ({"target_pattern": ".+g"}, "has 0 groups. Needed: one group"),
        ({"target_pattern": "(.+)(g)"}, "has 2 groups"),
        ({"target_pattern": "(.+)g", "targets": "a.tsv"}, "targets and target_pattern: give one of them"),
    ):
        with pytest.raises(ConfigError, match=said):
            run(screen, tmp_path, **options)


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
    assert list(run(small(), tmp_path, keep_obs="depth").obs) == ["depth", "condition", "library_size"]
    with pytest.raises(DataError, match=r"no column 'dept'. Did you mean 'depth'"):
        run(small(), tmp_path, keep_obs=["dept"])


def test_a_10x_folder_with_a_table_of_cells(tmp_path):
    adata, folder = small(), tmp_path / "tenx"
    folder.mkdir()
    scipy.io.mmwrite(folder / "matrix.mtx", adata.X.T.astype(int))
    (folder / "genes.tsv").write_text("".join(f"ENSG{i}\t{g}\n" for i, g in enumerate(adata.var_names)))
    (folder / "barcodes.tsv").write_text("".join(f"{c}\n" for c in adata.obs_names))
    adata.obs.iloc[::-1].rename_axis("cell").to_csv(tmp_path / "cells.tsv", sep="\t")
    screen = filtered(folder, tmp_path / "out.h5ad", cell_table=tmp_path / "cells.tsv", **BASE)
    np.testing.assert_array_equal(screen.X.toarray(), adata.X.toarray())
    assert screen.obs["target"].tolist() == LABELS
    adata.obs.iloc[2:].rename_axis("cell").to_csv(tmp_path / "cells.tsv", sep="\t")
    with pytest.raises(DataError, match=r"cells\.tsv: column 'cell' lacks 2 cells of .*tenx: 'c0', 'c1'"):
        filter_screen(folder, tmp_path / "out.h5ad", cell_table=tmp_path / "cells.tsv", **BASE)


def test_a_10x_folder_as_cell_ranger_zips_it(tmp_path):
    adata, folder = small(), tmp_path / "tenx"
    folder.mkdir()
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, adata.X.T.astype(int))
    symbols = ["g0", "g1", "g1", "g3", "g4", "g5"]  # the symbols of a reference repeat
    lines = "".join(f"ENSG{i}\t{g}\tGene Expression\n" for i, g in enumerate(symbols))
    (folder / "features.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress("".join(f"{c}\n" for c in adata.obs_names).encode()))
    adata.obs.rename_axis("cell").to_csv(tmp_path / "cells.csv")
    screen = filtered(folder, tmp_path / "out.h5ad", cell_table=tmp_path / "cells.csv", **BASE)
    np.testing.assert_array_equal(screen.X.toarray(), adata.X.toarray())
    assert screen.var_names.tolist() == ["g0", "g1", "g1-1", "g3", "g4", "g5"]
    with pytest.raises(ConfigError, match=r"counts: 'raw' is not allowed for a 10x source"):
        filter_screen(folder, tmp_path / "out.h5ad", counts="raw", **BASE)
    (folder / "barcodes.tsv.gz").unlink()
    with pytest.raises(DataError, match=r"tenx: cannot be read"):
        filter_screen(folder, tmp_path / "out.h5ad", **BASE)


def test_a_10x_h5(tmp_path):
    adata = small()
    columns = sp.csc_matrix(adata.X.T.astype(np.int32))
    with h5py.File(tmp_path / "counts.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["data"], matrix["indices"], matrix["indptr"] = columns.data, columns.indices, columns.indptr
        matrix["shape"], matrix["barcodes"] = columns.shape, np.array(adata.obs_names, "S")
        features = {"id": [f"E{i}" for i in range(6)], "name": ["g0", "g0", "g2", "g3", "g4", "g5"]}
        features |= {"feature_type": ["Gene Expression"] * 6, "genome": ["x"] * 6}
        for name, values in features.items():
            matrix[f"features/{name}"] = np.array(values, "S")
    adata.obs.rename_axis("cell").to_csv(tmp_path / "cells.tsv", sep="\t")
    screen = filtered(tmp_path / "counts.h5", tmp_path / "out.h5ad", cell_table=tmp_path / "cells.tsv", **BASE)
    np.testing.assert_array_equal(screen.X.toarray(), adata.X.toarray())
    assert screen.var_names[1] == "g0-1"


# ---- file formats --------------------------------------------------------------------------------------------------


def wide(x):
    """A CSR matrix with 64-bit indices, as in large files."""
    x = sp.csr_matrix(x)
    x.indices, x.indptr = x.indices.astype(np.int64), x.indptr.astype(np.int64)
    return x


@pytest.mark.parametrize("block_bytes", [100, 64 << 20])
@pytest.mark.parametrize("genes", ["all", ["g4", "g0", "g1"]])
@pytest.mark.parametrize(
    "stored",
    [
        lambda x: x.astype(np.float64),
        lambda x: x.toarray(),
        lambda x: x.toarray().astype(np.uint8),
        lambda x: sp.csc_matrix(x),
        lambda x: wide(x),
    ],
)
@pytest.mark.parametrize("place", ["X", "layer:umi", "raw"])
def test_all_storage_formats_of_counts(tmp_path, stored, place, genes, block_bytes):
    adata = small()
    x = stored(adata.X)
    if place == "X":
        adata.X = x
    elif place == "raw":
        adata.X = x
        adata.raw = adata.copy()
        adata = adata[:, :2].copy()
        adata.X = adata.X * 0.5
    else:
        adata.layers["umi"], adata.X = x, None
        adata.X = np.zeros(adata.shape, np.float32)
    options = {"counts": place, "genes": genes, "zero_cells": "drop", "block_bytes": block_bytes}
    for library, total in (("kept", None), ("all", small().X.toarray().sum(1))):
        screen = run(adata, tmp_path, library_size=library, **options)
        columns = [0, 1, 4] if genes != "all" else list(range(6))
        expected = small().X.toarray()[:, columns]
        keep = expected.sum(1) > 0
        np.testing.assert_array_equal(screen.X.toarray(), expected[keep])
        total = expected.sum(1) if total is None else total
        np.testing.assert_allclose(screen.obs["library_size"], total[keep] * expected.sum() / total[keep].sum())


def test_labels_may_be_categories_numbers_or_text(tmp_path):
    adata = small()
    adata.obs["target"] = pd.Categorical(adata.obs["target"], [*sorted(set(LABELS)), "never used"])
    assert "never used" not in set(run(adata, tmp_path).uns["perturbations"].index)
    adata.obs["target"] = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    screen = run(adata, tmp_path, control="0")
    assert screen.obs["condition"].tolist() == list("0011223344")
    adata.obs["target"] = ["ctrl", "ctrl", *(["drug at 5 uM"] * 4), *(["drug at 5 uM + A"] * 4)]
    assert set(run(adata, tmp_path).obs["condition"]) == {"ctrl", "drug at 5 uM", "A+drug at 5 uM"}


@pytest.mark.parametrize("stored", [sp.csr_matrix, sp.csc_matrix])
def test_cells_without_a_label_may_be_dropped(tmp_path, stored):
    adata = small()
    adata.X = stored(adata.X)
    adata.obs.loc[["c2", "c4"], "target"] = [None, "  "]
    adata.obs.loc["c2", "depth"] = np.nan  # a dropped cell needs no depth
    screen = run(adata, tmp_path, unlabelled="drop", library_size="depth")
    assert screen.obs_names.tolist() == ["c0", "c1", "c3", "c5", "c6", "c7", "c8", "c9"]
    np.testing.assert_array_equal(screen.X.toarray(), adata[screen.obs_names].X.toarray())
    assert screen.uns["provenance"]["dropped_unlabelled_cells"] == 2
    assert screen.uns["provenance"]["dropped_cells"] == 2


def test_a_separator_inside_names_is_warned_about(tmp_path, caplog):
    adata = small()
    adata.obs["target"] = ["ctrl"] * 4 + ["HLA_A"] * 3 + ["B"] * 3
    run(adata, tmp_path, separator="_")
    assert "2 perturbations occur only in combinations: 'A', 'HLA'" in caplog.text
    assert "separator '_' also occurs inside names" in caplog.text
    caplog.clear()
    run(small(), tmp_path)
    assert "only in combinations" not in caplog.text
    run(small(), tmp_path, separator=",")
    assert "no label contains the separator ','" in caplog.text


def test_a_matrix_that_does_not_fit_its_names(tmp_path):
    adata = small()
    adata.X = adata.X.toarray()
    adata.write_h5ad(tmp_path / "in.h5ad")
    with h5py.File(tmp_path / "in.h5ad", "r+") as file:
        del file["X"]
        file["X"] = np.zeros((9, 6), np.float32)
    with pytest.raises(DataError, match=r"X has the shape \(9, 6\), but there are 10 cells and 6 genes"):
        filter_screen(tmp_path / "in.h5ad", tmp_path / "out.h5ad", **BASE)


def test_a_file_that_is_damaged_inside(tmp_path):
    adata = small()
    adata.write_h5ad(tmp_path / "in.h5ad", compression="gzip")
    with h5py.File(tmp_path / "in.h5ad") as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    content = bytearray((tmp_path / "in.h5ad").read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    (tmp_path / "in.h5ad").write_bytes(content)
    with pytest.raises(DataError, match=r"in\.h5ad: .*cannot be read"):
        filter_screen(tmp_path / "in.h5ad", tmp_path / "out.h5ad", **BASE)
    (tmp_path / "in.h5ad").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"in\.h5ad: not a readable HDF5 file"):
        filter_screen(tmp_path / "in.h5ad", tmp_path / "out.h5ad", **BASE)


def test_tables_from_a_very_old_anndata(tmp_path):
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["X"] = np.ones((2, 2), np.float32)
        for name in ("obs", "var"):
            file[name] = np.array([("a", 1), ("b", 2)], dtype=[("index", "S1"), ("n", int)])
    with pytest.raises(DataError, match=r"old.h5ad: obs has the format of anndata before 0\.7\. Rewrite the file"):
        filter_screen(tmp_path / "old.h5ad", tmp_path / "out.h5ad", **BASE)


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
    elif how == "empty part":
        adata.obs.loc["c2", "target"] = "A+"
    elif how == "no depth":
        adata.obs.loc["c2", "depth"] = np.nan
    return adata


@pytest.mark.parametrize(
    ("how", "options", "sentence"),
    [
        ("", {"perturbation_column": "targets"}, "obs has no column 'targets'. Did you mean 'target'"),
        ("", {"control": "controll"}, "'target' has no control cell .'controll'.. Did you mean 'ctrl'"),
        ("", {"counts": "layer:umi"}, "has no 'layer:umi'.*Allowed: X"),
        ("", {"counts": "raw"}, "has no 'raw'"),
        ("", {"genes": ["g1", "g9"]}, "has no gene 'g9', which the option genes requests. Did you mean"),
        ("", {"library_size": "depht"}, "no column 'depht'. Did you mean 'depth'"),
        ("", {"library_size": "target"}, "'target' must be above 0, but 10 cells have other values"),
        ("", {"min_cells": 3}, "5 labels with fewer than min_cells = 3 cells: 'A .2.'"),
        ("negative", {}, "X must hold counts.*cell 'c4', gene 'g2' is -3"),
        ("fraction", {}, "X must hold counts.*cell 'c4', gene 'g2' is 1.5"),
        ("cells", {}, "1 cell names occur more than once: 'c0'"),
        ("genes", {}, "1 gene names occur more than once: 'g1'"),
        ("missing label", {}, "'target' has no label in 1 cells: 'c2'"),
        ("blank label", {}, "'target' has no label in 1 cells: 'c2'.*unlabelled: drop"),
        ("empty part", {}, "combinations with an empty part .separator '.'.: 'A.'"),
        ("no depth", {"library_size": "depth"}, "'depth' must be above 0, but 1 cells have other values: 'c2'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*names are not unique.*", "ignore::scipy.sparse.SparseEfficiencyWarning")
def test_each_bad_input_gets_one_sentence(tmp_path, how, options, sentence):
    with pytest.raises(DataError, match=rf"in\.h5ad: .*({sentence})") as error:
        run(spoiled(how), tmp_path, **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.h5ad").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rare": "dropp"}, "rare: 'dropp' is not allowed. Did you mean 'drop'"),
        ({"zero_cells": "keep"}, "zero_cells: 'keep'"),
        ({"counts": "layers"}, "counts: 'layers' is not allowed"),
        ({"unlabelled": "dorp"}, "unlabelled: 'dorp' is not allowed. Did you mean 'drop'"),
        ({"genes": "some"}, "genes: 'some' is not allowed: no such file"),
        ({"genes": True}, "genes: True is not allowed"),
        ({"genes": 0}, "genes: 0 is not allowed"),
        ({"control": [""]}, "control"),
        ({"min_cells": "many"}, "min_cells: 'many' is not allowed. Allowed: a whole number"),
        ({"genes": 1.5}, "genes: 1.5 is not allowed"),
        ({"genes": 3, "genes_split": {"kindd": "random"}}, "genes_split: unknown key 'kindd'. Did you mean 'kind'"),
        ({"min_cell": 3}, "unknown key 'min_cell'. Did you mean 'min_cells'"),
    ],
)
def test_options_that_are_not_allowed(tmp_path, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        run(small(), tmp_path, **options)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "x.h5ad").write_bytes(b"no")
    (tmp_path / "x.txt").write_bytes(b"no")
    for name, sentence in (("x.h5ad", "not a readable"), ("x.txt", "not a known format"), ("y.h5ad", "no such file")):
        with pytest.raises(DataError, match=rf"{name}: {sentence}"):
            filter_screen(tmp_path / name, tmp_path / "out.h5ad", **BASE)


def test_real_norman_counts(shared, tmp_path):
    source = shared / "data" / "real" / "norman2019_k562_crispra_3375x500_counts.h5ad"
    screen = filtered(
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
    with pytest.raises(DataError, match=r"24 cells with zero counts in the 100 genes kept"):
        filter_screen(source, tmp_path / "v.h5ad", **options)
    fewer = filtered(source, tmp_path / "v.h5ad", zero_cells="drop", **options)
    assert fewer.shape == (3_375 - 24, 100) and (fewer.X.sum(0) > 0).all()


def test_real_papalexi_counts(shared, tmp_path):
    source = shared / "data" / "real" / "papalexi2021_thp1_crisprko_20729x299_counts.h5ad"
    screen = filtered(
        source, tmp_path / "s.h5ad", perturbation_column="gene", control="non-targeting", keep_obs=["bio_rep"]
    )
    assert screen.n_obs == 20_729 and len(screen.uns["perturbations"]) == 25
    assert (screen.obs["condition"] == "non-targeting").sum() == 2_386


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("indices", lambda v: np.where(np.arange(len(v)) == 5, 10**7, v), "indices outside 0 to"),
        ("indices", lambda v: np.where(np.arange(len(v)) == 5, -1, v), "indices outside 0 to"),
        ("indices", lambda v: v[:-1], "indices"),
        ("indptr", lambda v: np.where(np.arange(len(v)) == 3, 10**9, v), "indptr does not fit"),
        ("indptr", lambda v: v[::-1].copy(), "indptr does not fit"),
    ],
)
def test_a_damaged_column_matrix_is_named(tmp_path, part, change, sentence):
    """scipy would read and write past its arrays."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"received": ["ctrl", "A"] * 20}, index=[f"c{i}" for i in range(40)])
    x = sp.csc_matrix(rng.poisson(2.0, (40, 7)).astype(np.float32))
    ad.AnnData(x, obs, pd.DataFrame(index=[f"g{i}" for i in range(7)])).write_h5ad(tmp_path / "in.h5ad")
    with h5py.File(tmp_path / "in.h5ad", "a") as file:
        values = file[f"X/{part}"][:].astype(np.int64)
        del file[f"X/{part}"]
        file[f"X/{part}"] = change(values)
    with pytest.raises(DataError, match=sentence):
        filter_screen(tmp_path / "in.h5ad", tmp_path / "out.h5ad", perturbation_column="received", control="ctrl")

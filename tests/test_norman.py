import shutil

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae.errors import ConfigError, DataError
from samsvae.screens import splits
from samsvae.screens.miniature import norman_source
from samsvae.screens.norman import filter_screen, guide_conditions, label_conditions
from samsvae.screens.pack import write_arrays
from samsvae.screens.replogle import read_genes
from samsvae.screens.screen import read_screen


def filtered(source, target, **options):
    filter_screen(source, target, **options)
    return read_screen(target)


@pytest.fixture(scope="module")
def source(root, tmp_path_factory):
    path = tmp_path_factory.mktemp("norman") / "source.h5ad"
    names = read_genes(root / "resources" / "replogle" / "measured_genes.tsv")
    norman_source(path, gene_names=names, cells_per_condition=8, n_controls=20, n_genes=60, n_variable=40)
    return path


def test_equal_to_brute_force(source, tmp_path):
    full = ad.read_h5ad(source)
    expected = full[:, full.var["highly_variable"].to_numpy()]
    screen = filtered(source, tmp_path / "s.h5ad", block_bytes=7 * 60 * 4)
    x = expected.layers["counts"].toarray()
    np.testing.assert_array_equal(screen.X.toarray(), x)
    np.testing.assert_array_equal(screen.obs["library_size"], x.sum(1))
    assert screen.obs_names.tolist() == full.obs_names.tolist()
    assert screen.var_names.tolist() == expected.var_names.tolist()
    # The source has its own condition names, in the order of the guides, which is alphabetical here.
    assert screen.obs["condition"].tolist() == full.obs["perturbation_name"].tolist()
    assert screen.obs["guide_identity"].tolist() == full.obs["guide_identity"].tolist()
    singles = full.obs[[c for c in full.obs if c.startswith("guide_") and c not in ("guide_identity", "guide_ids")]]
    assert screen.obs["n_targets"].tolist() == singles.sum(axis=1).tolist()
    table = screen.uns["perturbations"]
    assert table["n_cells"].to_dict() == {c.removeprefix("guide_"): n for c, n in singles.sum().items()}
    assert (screen.uns["control"], screen.uns["separator"]) == ("control", "+")
    assert screen.uns["provenance"]["dropped_genes"] == 20


def test_the_truth_of_a_synthetic_source_is_kept(source, tmp_path):
    filter_screen(source, tmp_path / "s.h5ad")
    screen, full = read_screen(tmp_path / "s.h5ad"), ad.read_h5ad(source)
    for key in ("miniature_truth", "miniature_effects"):
        pd.testing.assert_frame_equal(screen.uns[key], full.uns[key][screen.var_names], check_names=False)


def test_conditions_of_guides_are_sorted_and_joined():
    obs = pd.DataFrame(
        {"guide_identity": "x", "guide_ids": "y", "guide_KLF1": [1, 0, 0, 1], "guide_AHR": [1.0, 0, 1, 0]}
    )
    condition, n = guide_conditions(obs, "f")
    assert condition.tolist() == ["AHR+KLF1", "control", "AHR", "KLF1"]
    assert n.tolist() == [2, 0, 1, 1]
    with pytest.raises(DataError, match=r"f: obs columns 'guide_KLF1' must hold only 0 and 1"):
        guide_conditions(obs.assign(guide_KLF1=2), "f")
    with pytest.raises(DataError, match=r"no column guide_<gene>"):
        guide_conditions(obs[["guide_ids"]], "f")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda a: a.layers.pop("counts"), "no layer 'counts'"),
        (lambda a: a.layers.update(counts=a.X), "layers/counts must hold counts"),
        (lambda a: a.var.pop("highly_variable"), "var has no column 'highly_variable'"),
        (lambda a: a.var.update(a.var[["highly_variable"]] & False), "marks no gene"),
        (lambda a: a.obs.pop("guide_identity"), "neither known format.* guide_identity .* guide_id and perturbation"),
        (lambda a: a.obs.insert(0, "guide_X", 1), "no control cell"),
    ],
)
def test_missing_parts_are_named(source, tmp_path, spoil, sentence):
    adata = ad.read_h5ad(source)
    spoil(adata)
    adata.write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(DataError, match=rf"bad.h5ad: .*{sentence}"):
        filter_screen(tmp_path / "bad.h5ad", tmp_path / "s.h5ad")
    assert not (tmp_path / "s.h5ad").exists()


# ---- scPerturb's file ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second(source, tmp_path_factory):
    """The same cells in the format of scPerturb: another order, two more cells, CSC counts, other columns."""
    first = ad.read_h5ad(source)
    order = np.random.default_rng(5).permutation([*range(first.n_obs), 0, 1])
    label = first.obs["perturbation_name"].astype(str)
    reverse = {name: "_".join(reversed(name.split("+"))) for name in label.unique()}
    obs = pd.DataFrame(
        {
            "guide_id": first.obs["guide_identity"].astype(str),
            "gemgroup": first.obs["gemgroup"],
            "perturbation": pd.Categorical(label.map(reverse)),
            "nperts": label.map(lambda name: 0 if name == "control" else name.count("+") + 1),
        }
    ).iloc[order]
    obs.index = [f"{name}{'x' * int(twice)}" for name, twice in zip(obs.index, obs.index.duplicated(), strict=True)]
    counts = sp.csc_matrix(first.layers["counts"])[order].astype(np.float32)
    path = tmp_path_factory.mktemp("second") / "scperturb.h5ad"
    ad.AnnData(counts.tocsc(), obs, first.var[[]].assign(ensemble_id="x")).write_h5ad(path)
    return path


@pytest.mark.parametrize("block_bytes", [1 << 10, 64 << 20])
def test_the_second_source_gives_the_same_cells(source, second, tmp_path, block_bytes):
    first = filtered(source, tmp_path / "1.h5ad")
    listed = tmp_path / "genes.txt"
    listed.write_text("\n".join(reversed(first.var_names)) + "\n")
    other = filtered(second, tmp_path / "2.h5ad", genes=listed, block_bytes=block_bytes)
    assert set(other.obs["condition"]) == set(first.obs["condition"])
    both = other[first.obs_names]
    np.testing.assert_array_equal(both[:, first.var_names].X.toarray(), first.X.toarray())
    for column in ("condition", "guide_identity", "n_targets"):
        assert both.obs[column].tolist() == first.obs[column].tolist(), column
    assert other.n_obs == first.n_obs + 2
    assert "assign individual cells differently" in other.uns["provenance"]["not_as_published"]
    assert "genes were chosen" not in other.uns["provenance"]["not_as_published"]
    assert first.uns["provenance"]["not_as_published"] == ""


@pytest.mark.parametrize("seed", range(3))
def test_both_sources_test_the_same_pairs(source, second, tmp_path, seed):
    listed = tmp_path / "genes.txt"
    listed.write_text("\n".join(ad.read_h5ad(second).var_names[:40]))
    first, other = filtered(source, tmp_path / "1.h5ad"), filtered(second, tmp_path / "2.h5ad", genes=listed)
    identity_of = first.obs[first.obs["n_targets"] == 2].groupby("condition", observed=True)["guide_identity"].first()
    pairs = sorted(identity_of)
    np.random.default_rng(seed).shuffle(pairs)
    for screen in (first, other):
        ood = splits.make_split(screen.obs, kind="norman_ood", fraction=0.5, split_seed=seed)
        is_pair = (screen.obs["n_targets"] == 2).to_numpy()
        part = {name: set(ood["condition"][is_pair & (ood["split"] == name)]) for name in ("train", "test")}
        # a pair has eight cells, and by chance none of them may be a test cell
        assert {identity_of[name] for name in part["train"]} <= set(pairs[:8]) and len(part["train"]) > 6
        assert {identity_of[name] for name in part["test"]} <= set(pairs[12:]) and len(part["test"]) > 1
        few = splits.make_split(screen.obs, kind="norman_efficiency", fraction=0.25, split_seed=seed)
        assert set(few["split"]) == {"train", "val", "test", "none"}


def test_both_encodings_of_the_second_source(second, tmp_path):
    from samsvae.data.arrays import read_screen as read_arrays
    from samsvae.data.cells import encode

    filter_screen(second, tmp_path / "s.h5ad", n_genes=30)
    write_arrays(tmp_path / "s.h5ad", tmp_path / "s.npz")
    arrays = read_arrays(tmp_path / "s.npz")
    assert len(encode(arrays, "sum").names) == 12 and len(encode(arrays, "unique").names) == 12 + 16


def test_genes_of_the_second_source_are_scanpys(second, tmp_path, caplog):
    import scanpy

    full = ad.read_h5ad(second)
    cells = np.asarray((full.X > 0).sum(0)).ravel()
    least = int(np.sort(cells)[20])
    screen = filtered(second, tmp_path / "s.h5ad", n_genes=30, min_cells=least)
    seen = full[:, cells >= least].copy()
    assert 30 < seen.n_vars < full.n_vars
    scanpy.pp.normalize_total(seen, target_sum=1e4)
    scanpy.pp.log1p(seen)
    scanpy.pp.highly_variable_genes(seen, n_top_genes=30)
    assert screen.var_names.tolist() == seen.var_names[seen.var["highly_variable"]].tolist()
    assert "may differ from the published 5,000" in caplog.text
    with pytest.raises(DataError, match=r"5000 genes are needed, but only \d+ are seen in 20 cells"):
        filter_screen(second, tmp_path / "s.h5ad")


def test_labels_with_either_separator():
    label = pd.Series(["KLF1_AHR", "AHR+KLF1", "control", "AHR", "control_AHR", "C3orf72_FOXL2"])
    condition, n = label_conditions(label, "f")
    assert condition.tolist() == ["AHR+KLF1", "AHR+KLF1", "control", "AHR", "AHR", "C3orf72+FOXL2"]
    assert n.tolist() == [2, 2, 0, 1, 1, 2]
    with pytest.raises(DataError, match=r"f: .*'perturbation' has no label in 1 cells: '1'"):
        label_conditions(pd.Series(["A", None]), "f")
    with pytest.raises(DataError, match=r"empty part: 'A_'"):
        label_conditions(pd.Series(["A_", "B"]), "f")


def test_errors_in_the_second_source_are_named(second, tmp_path):
    adata = ad.read_h5ad(second)
    adata.X = adata.X.multiply(0.5).tocsc()
    adata.write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(DataError, match=r"bad.h5ad: X must hold counts.* is \d+\.5"):
        filter_screen(tmp_path / "bad.h5ad", tmp_path / "s.h5ad", n_genes=30)
    (tmp_path / "genes.txt").write_text("NOGENE\n")
    with pytest.raises(DataError, match=r"has no gene 'NOGENE'"):
        filter_screen(second, tmp_path / "s.h5ad", genes=tmp_path / "genes.txt")
    with pytest.raises(ConfigError, match=r"nowhere.txt.*no such file"):
        filter_screen(second, tmp_path / "s.h5ad", genes=tmp_path / "nowhere.txt")


def test_a_table_that_cannot_be_read_is_named(source, tmp_path):
    bad = tmp_path / "bad.h5ad"
    shutil.copy(source, bad)
    with h5py.File(bad, "r+") as file:
        del file["var"]
        file["var"] = np.array([("a", 1)], dtype=[("index", "S1"), ("n", int)])
    with pytest.raises(DataError, match=r"bad\.h5ad: var has the format of anndata before 0\.7"):
        filter_screen(bad, tmp_path / "s.h5ad")
    with h5py.File(bad, "r+") as file:
        del file["obs"].attrs["column-order"]
    with pytest.raises(DataError, match=r"bad\.h5ad: obs cannot be read"):
        filter_screen(bad, tmp_path / "s.h5ad")

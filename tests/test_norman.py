import anndata as ad
import numpy as np
import pandas as pd
import pytest

from samsvae.data.miniature import norman_source
from samsvae.data.norman import filter_screen, guide_conditions
from samsvae.data.replogle import read_genes
from samsvae.data.screen import read_screen
from samsvae.errors import DataError


@pytest.fixture(scope="module")
def source(root, tmp_path_factory):
    path = tmp_path_factory.mktemp("norman") / "source.h5ad"
    names = read_genes(root / "resources" / "replogle" / "measured_genes.tsv")
    norman_source(path, gene_names=names, cells_per_condition=8, n_controls=20, n_genes=60, n_variable=40)
    return path


def test_equal_to_brute_force(source, tmp_path):
    full = ad.read_h5ad(source)
    expected = full[:, full.var["highly_variable"].to_numpy()]
    screen = filter_screen(source, tmp_path / "s.h5ad", block_bytes=7 * 60 * 4)
    x = expected.layers["counts"].toarray()
    np.testing.assert_array_equal(screen.X.toarray(), x)
    np.testing.assert_array_equal(screen.obs["library_size"], x.sum(1))
    assert screen.obs_names.tolist() == full.obs_names.tolist()
    assert screen.var_names.tolist() == expected.var_names.tolist()
    # The source names its conditions itself, in the order of the guides: here alphabetical.
    assert screen.obs["condition"].tolist() == full.obs["perturbation_name"].tolist()
    assert screen.obs["guide_identity"].tolist() == full.obs["guide_identity"].tolist()
    singles = full.obs[[c for c in full.obs if c.startswith("guide_") and c not in ("guide_identity", "guide_ids")]]
    assert screen.obs["n_targets"].tolist() == singles.sum(axis=1).tolist()
    table = screen.uns["perturbations"]
    assert table["n_cells"].to_dict() == {c.removeprefix("guide_"): n for c, n in singles.sum().items()}
    assert (screen.uns["control"], screen.uns["separator"]) == ("control", "+")
    assert screen.uns["provenance"]["dropped_genes"] == 20


def test_the_truth_of_a_made_source_is_carried_along(source, tmp_path):
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
    with pytest.raises(DataError, match=r"f: obs columns 'guide_KLF1' must hold 0 or 1"):
        guide_conditions(obs.assign(guide_KLF1=2), "f")
    with pytest.raises(DataError, match=r"no column guide_<gene>"):
        guide_conditions(obs[["guide_ids"]], "f")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda a: a.layers.pop("counts"), "no layer 'counts'"),
        (lambda a: a.layers.update(counts=a.X), r"layers\['counts'\] must hold counts"),
        (lambda a: a.var.pop("highly_variable"), "var has no column 'highly_variable'"),
        (lambda a: a.var.update(a.var[["highly_variable"]] & False), "marks no gene"),
        (lambda a: a.obs.pop("guide_identity"), "no column 'guide_identity'"),
        (lambda a: a.obs.insert(0, "guide_X", 1), "no control cell"),
    ],
)
def test_what_is_missing_is_named(source, tmp_path, spoil, sentence):
    adata = ad.read_h5ad(source)
    spoil(adata)
    adata.write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(DataError, match=rf"bad.h5ad: .*{sentence}"):
        filter_screen(tmp_path / "bad.h5ad", tmp_path / "s.h5ad")
    assert not (tmp_path / "s.h5ad").exists()

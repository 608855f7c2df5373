"""The synthetic sources have the format of the published ones, and their true effects are correct."""

import anndata as ad
import h5py
import numpy as np
import pytest

from samsvae.errors import ConfigError
from samsvae.screens import norman, replogle
from samsvae.screens.miniature import NORMAN_GENES, NORMAN_PAIRS, norman_source, replogle_source

# The columns of the published Replogle file.
# fmt: off
OBS = [
    "gem_group", "gene", "gene_id", "transcript", "gene_transcript", "sgID_AB", "mitopercent", "UMI_count",
    "z_gemgroup_UMI", "core_scale_factor", "core_adjusted_UMI_count",
]
VAR = [
    "gene_name", "chr", "start", "end", "class", "strand", "length", "in_matrix", "mean", "std", "cv", "fano",
]
# fmt: on


@pytest.fixture(scope="module")
def lists(root):
    folder = root / "resources" / "replogle"
    return {name: replogle.read_genes(folder / f"{name}.tsv") for name in ("perturbed_genes", "measured_genes")}


@pytest.fixture(scope="module")
def make_replogle(root, lists):
    def make(path, **options):
        labels = root / "resources" / "miniature" / "replogle_labels.tsv"
        replogle_source(
            path,
            labels=labels,
            measured_genes=lists["measured_genes"],
            other_genes=lists["perturbed_genes"],
            **options,
        )
        return path

    return make


@pytest.fixture(scope="module")
def replogle_file(make_replogle, tmp_path_factory):
    return make_replogle(tmp_path_factory.mktemp("synthetic") / "replogle.h5ad")


@pytest.fixture(scope="module")
def norman_file(lists, tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "norman.h5ad"
    norman_source(path, gene_names=lists["measured_genes"])
    return path


def effects(counts, condition, control):
    """Mean log2(1 + CP10K) of each condition minus that of the control."""
    y = np.log2(1 + 1e4 * counts / counts.sum(1, keepdims=True))
    return {c: y[condition == c].mean(0) - y[condition == control].mean(0) for c in set(condition) - {control}}


def test_replogle_has_the_published_format(replogle_file, lists):
    with h5py.File(replogle_file) as file:
        assert isinstance(file["X"], h5py.Dataset) and file["X"].dtype == np.float32
    source = ad.read_h5ad(replogle_file)
    assert source.obs.index.name == "cell_barcode" and source.var.index.name == "gene_id"
    assert list(source.obs) == OBS
    assert list(source.var) == VAR
    assert source.obs_names.is_unique and source.var_names.is_unique
    np.testing.assert_array_equal(source.X, np.round(source.X))
    np.testing.assert_array_equal(source.obs["UMI_count"], source.X.sum(1))
    genes = set(source.obs["gene"])
    assert len(genes & set(lists["perturbed_genes"])) == 50
    assert len(genes - set(lists["perturbed_genes"]) - {"non-targeting"}) > 0
    assert source.var["gene_name"].isin(lists["measured_genes"]).sum() == 200
    assert source.var["gene_name"].duplicated().sum() == 1
    assert 1_500 < source.obs["UMI_count"].median() < 2_500


def test_perturbations_of_a_pathway_are_alike(replogle_file, lists, root, tmp_path):
    """Measured effects correlate more within pathways than between them, apart from weak guides."""
    pathways = replogle.read_pathways(root / "resources" / "replogle" / "pathways.tsv")
    screen = replogle.filter_screen(replogle_file, tmp_path / "s.h5ad", pathways=pathways, **lists)
    table = screen.uns["perturbations"]
    table = table[table["pathway"] != ""]
    assert table["pathway"].nunique() == 8 and table["n_cells"].min() >= 25
    effect = effects(screen.X.toarray(), screen.obs["condition"].to_numpy(str), "non-targeting")
    r = np.corrcoef([effect[name] for name in table.index])
    same = table["pathway"].to_numpy()[:, None] == table["pathway"].to_numpy()
    other = ~np.eye(len(table), dtype=bool)
    assert np.median(r[same & other]) > np.median(r[~same]) + 0.3
    nearest = np.where(other, r, -2).argmax(1)
    assert np.mean(same[np.arange(len(table)), nearest]) > 0.75


def test_norman_has_the_published_format(norman_file):
    source = ad.read_h5ad(norman_file)
    counts = source.layers["counts"].toarray()
    np.testing.assert_allclose(source.X.toarray(), np.log1p(1e4 * counts / counts.sum(1, keepdims=True)), rtol=1e-6)
    assert source.var["highly_variable"].sum() == 250
    assert len(NORMAN_GENES) == 12 and len(NORMAN_PAIRS) == 16
    cells = source.obs["perturbation_name"].value_counts().to_dict()
    assert cells == {"control": 300} | dict.fromkeys([*NORMAN_GENES, *NORMAN_PAIRS], 40)
    pair = source.obs[source.obs["perturbation_name"] == "FOXA1+FOXF1"].iloc[0]
    assert (pair["guide_identity"], pair["guide_ids"]) == ("FOXA1_FOXF1__FOXA1_FOXF1", "FOXA1,FOXF1")
    indicators = [c for c in source.obs if "guide_" in c and c not in norman.NOT_INDICATORS]
    assert indicators == [f"guide_{gene}" for gene in NORMAN_GENES]


def test_the_stored_interactions_are_the_simulated_ones(norman_file):
    source = ad.read_h5ad(norman_file)
    truth, effect = source.uns["miniature_truth"], source.uns["miniature_effects"]
    assert truth.index.tolist() == list(NORMAN_PAIRS)
    for i, pair in enumerate(NORMAN_PAIRS):
        a, b = pair.split("+")
        np.testing.assert_allclose(effect.loc[pair] - effect.loc[a] - effect.loc[b], truth.loc[pair], atol=1e-9)
        assert (np.abs(truth.loc[pair]).max() > 0.5) == (i % 2 == 0), "every second pair interacts"
    condition = source.obs["perturbation_name"].to_numpy(str)
    seen = effects(source.layers["counts"].toarray(), condition, "control")
    assert np.median([np.corrcoef(seen[c], effect.loc[c])[0, 1] for c in effect.index]) > 0.8
    deviation = {p: seen[p] - sum(seen[g] for g in p.split("+")) for p in NORMAN_PAIRS}
    assert np.median([np.corrcoef(deviation[p], truth.loc[p])[0, 1] for p in NORMAN_PAIRS[::2]]) > 0.5


def test_same_bytes_for_a_seed_and_others_for_another(make_replogle, replogle_file, norman_file, lists, tmp_path):
    assert make_replogle(tmp_path / "again.h5ad").read_bytes() == replogle_file.read_bytes()
    other = ad.read_h5ad(make_replogle(tmp_path / "other.h5ad", seed=1))
    assert other.X[:10].tolist() != ad.read_h5ad(replogle_file).X[:10].tolist()
    norman_source(tmp_path / "norman.h5ad", gene_names=lists["measured_genes"])
    assert (tmp_path / "norman.h5ad").read_bytes() == norman_file.read_bytes()


def test_sizes_that_the_lists_cannot_provide(make_replogle, tmp_path):
    with pytest.raises(ConfigError, match=r"n_targets: 500"):
        make_replogle(tmp_path / "x.h5ad", n_targets=500)
    with pytest.raises(ConfigError, match=r"n_measured: 5000"):
        make_replogle(tmp_path / "x.h5ad", n_genes=5100, n_measured=5000)
    with pytest.raises(ConfigError, match=r"n_genes: 400 .* only 3 gene names"):
        norman_source(tmp_path / "x.h5ad", gene_names=["A", "B", "C"])

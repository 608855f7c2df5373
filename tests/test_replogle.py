import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae.errors import DataError
from samsvae.screens.miniature import replogle_source
from samsvae.screens.replogle import (
    PUBLISHED,
    PUBLISHED_PAIRS,
    PUBLISHED_SOURCE,
    choose_cells,
    conditions,
    filter_published,
    filter_screen,
    filter_tables,
    gene_names,
    published_differences,
    read_genes,
    read_pathways,
)
from samsvae.screens.screen import read_screen


@pytest.fixture(scope="module")
def lists(root):
    folder = root / "resources" / "replogle"
    return {
        "perturbed_genes": read_genes(folder / "perturbed_genes.tsv"),
        "measured_genes": read_genes(folder / "measured_genes.tsv"),
        "pathways": read_pathways(folder / "pathways.tsv"),
    }


@pytest.fixture(scope="module")
def source(root, lists, tmp_path_factory):
    path = tmp_path_factory.mktemp("replogle") / "source.h5ad"
    replogle_source(
        path,
        labels=root / "resources" / "miniature" / "replogle_labels.tsv",
        measured_genes=lists["measured_genes"],
        other_genes=lists["perturbed_genes"],
        n_targets=20,
        cells_per_perturbation=12,
        n_controls_in_file=90,
    )
    return path


def test_the_tracked_lists_have_the_published_sizes(lists):
    assert len(lists["perturbed_genes"]) == 681
    assert len(lists["measured_genes"]) == 1_186
    assert {name: len(genes) for name, genes in lists["pathways"].items()} == {
        "EXOSOME": 20,
        "SPLICEOSOME": 34,  # 35 entries, LSM5 twice
        "MEDIATOR_COMPLEX": 26,
        "NUCLEOTIDE_EXCISION_REPAIR": 23,
        "S40_RIBOSOMAL_UNIT": 97,
        "S39_RIBOSOMAL_UNIT": 43,
        "S60_RIBOSOMAL_UNIT": 53,
        "MT_PROTEIN_TRANSLOCATION": 40,
    }


def brute_force(source, lists, n_controls):
    """The filter in memory, written as the paper describes it."""
    full = ad.read_h5ad(source)
    controls = [i for i, gene in enumerate(full.obs["gene"]) if gene == "non-targeting"]
    np.random.RandomState(0).shuffle(controls)
    kept = set(controls[:n_controls])
    rows = [i for i, g in enumerate(full.obs["gene"]) if g in set(lists["perturbed_genes"]) or i in kept]
    cols = [j for j, g in enumerate(full.var["gene_name"]) if g in set(lists["measured_genes"])]
    return full[rows, cols]


@pytest.mark.parametrize("form", ["dense", "csr"])
@pytest.mark.parametrize("block_rows", [7, 100_000])
def test_equal_to_brute_force(source, lists, tmp_path, form, block_rows):
    full = ad.read_h5ad(source)
    if form == "csr":
        full.X = sp.csr_matrix(full.X)
        source = tmp_path / "csr.h5ad"
        full.write_h5ad(source)
    expected = brute_force(source, lists, 50)
    screen = filter_screen(source, tmp_path / "s.h5ad", n_controls=50, block_bytes=block_rows * 4 * 400, **lists)
    x = expected.X.toarray() if form == "csr" else expected.X
    np.testing.assert_array_equal(screen.X.toarray(), x)
    assert screen.obs_names.tolist() == expected.obs_names.tolist()
    pair = expected.obs["sgID_AB"].astype(str)
    assert screen.obs["condition"].tolist() == ["non-targeting" if "non-targeting" in p else p for p in pair]
    np.testing.assert_array_equal(screen.obs["library_size"], x.sum(1))
    assert screen.obs["gene"].tolist() == expected.obs["gene"].tolist()

    table = screen.uns["perturbations"]
    target = expected.obs[expected.obs["gene"] != "non-targeting"].astype(str).groupby("sgID_AB")["gene"]
    assert table["gene"].to_dict() == target.first().to_dict()
    assert table["n_cells"].to_dict() == target.size().to_dict()
    home = {gene: name for name, genes in lists["pathways"].items() for gene in genes}
    assert table["pathway"].tolist() == [home.get(gene, "") for gene in table["gene"]]

    facts = screen.uns["provenance"]
    assert (facts["source_cells"], facts["kept_cells"]) == (full.n_obs, len(x))
    assert facts["dropped_cells"] == full.n_obs - len(x) > 0
    assert facts["dropped_genes"] == 200
    assert (facts["source_control_cells"], facts["kept_control_cells"]) == (90, 50)
    assert facts["missing_perturbed_genes"] == 681 - table["gene"].nunique()
    assert facts["missing_measured_genes"] == 1_186 - 199  # one symbol labels two of the 200
    back = read_screen(tmp_path / "s.h5ad")
    assert back.uns["pathways"]["EXOSOME"].tolist() == lists["pathways"]["EXOSOME"]


@pytest.mark.parametrize("keep", ["listed", "all"])
def test_the_same_bytes_from_every_form_of_the_source(source, lists, tmp_path, keep):
    full = ad.read_h5ad(source)
    found = set()
    for form in ("original", "again", "gzip", "csr", "anndata 0.7"):
        path = tmp_path / form / "source.h5ad"  # the file's name is in the provenance
        path.parent.mkdir()
        if form == "csr":
            ad.AnnData(sp.csr_matrix(full.X), full.obs, full.var).write_h5ad(path)
        elif form == "gzip":
            full.write_h5ad(path, compression="gzip")
        else:
            path.write_bytes(source.read_bytes())
        if form == "anndata 0.7":
            as_anndata_07(path, full.obs)
        block_bytes = 1 << 26 if form == "again" else 9 * 4 * 400
        filter_tables(path, tmp_path / "s.h5ad", keep=keep, block_bytes=block_bytes, checksum="md5:1", **lists)
        found.add((tmp_path / "s.h5ad").read_bytes())
    assert len(found) == 1


def as_anndata_07(path, obs):
    """Rewrite obs as in the published file: codes that refer to lists of names in a group next to them."""
    with h5py.File(path, "a") as file:
        del file["obs"]
        group = file.create_group("obs")
        lists = group.create_group("__categories")
        group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0", "_index": obs.index.name})
        group.attrs["column-order"] = np.array(list(obs), object)
        group.create_dataset(obs.index.name, data=obs.index.to_numpy(object), dtype=h5py.string_dtype())
        for name, column in obs.items():
            if column.dtype == "category":
                lists.create_dataset(name, data=column.cat.categories.to_numpy(object), dtype=h5py.string_dtype())
                group.create_dataset(name, data=column.cat.codes.to_numpy(np.int16))
                group[name].attrs["categories"] = lists[name].ref
            else:
                group.create_dataset(name, data=column.to_numpy())


def test_a_file_of_scperturb_gives_the_same_screen(source, lists, tmp_path):
    """Other column names; genes indexed by symbol, with the id appended if a symbol occurs twice."""
    full = ad.read_h5ad(source)
    expected = filter_screen(source, tmp_path / "s.h5ad", n_controls=50, **lists)
    names = {"sgID_AB": "guide_id", "gem_group": "batch", "mitopercent": "percent_mito"}
    full.obs = full.obs.rename(columns=names).assign(perturbation="x", nperts=1)
    symbol, ids = full.var["gene_name"].astype(str), full.var_names
    full.var = full.var.drop(columns="gene_name").assign(ensembl_id=ids)
    full.var_names = np.where(symbol.duplicated(keep=False), symbol + "_" + ids, symbol)
    full.write_h5ad(tmp_path / "other.h5ad", compression="gzip")
    got = filter_screen(tmp_path / "other.h5ad", tmp_path / "o.h5ad", n_controls=50, **lists)
    np.testing.assert_array_equal(got.X.toarray(), expected.X.toarray())
    pd.testing.assert_frame_equal(got.obs[list(expected.obs)], expected.obs)
    assert got.var_names.tolist() == expected.var_names.tolist()
    assert got.var["gene_id"].tolist() == expected.var["gene_id"].tolist()
    pd.testing.assert_frame_equal(got.uns["perturbations"], expected.uns["perturbations"])


def test_all_keeps_every_cell_and_gene(source, lists, tmp_path):
    full = ad.read_h5ad(source)
    screen = filter_screen(source, tmp_path / "s.h5ad", keep="all", **lists)
    np.testing.assert_array_equal(screen.X.toarray(), full.X)
    assert screen.obs_names.tolist() == full.obs_names.tolist()
    assert screen.var["gene_id"].tolist() == full.var_names.tolist()
    assert screen.var_names.is_unique
    pair = full.obs["sgID_AB"].astype(str)
    control = pair.str.contains("non-targeting").to_numpy()
    assert (screen.obs["condition"] == "non-targeting").tolist() == control.tolist() and control.sum() == 90
    assert screen.obs["condition"][~control].tolist() == pair[~control].tolist()
    assert screen.uns["perturbations"].index.tolist() == sorted(set(pair[~control]))
    facts = screen.uns["provenance"]
    assert facts["dropped_cells"] == facts["dropped_genes"] == 0
    assert "n_controls" not in facts["parameters"] and "missing_measured_genes" not in facts


def test_labels_that_contain_non_targeting_are_the_control():
    pair = pd.Categorical(["B|B", "non-targeting_1|A", "A|A", "non-targeting", "A|non-targeting_2"])
    found = conditions(pair)
    assert found.tolist() == ["B|B", "non-targeting", "A|A", "non-targeting", "non-targeting"]
    assert found.categories.tolist() == ["A|A", "B|B", "non-targeting"]


def test_choice_of_controls():
    gene = np.array(["A", "non-targeting", "B", "non-targeting", "non-targeting", "A"])
    order = [1, 3, 4]
    np.random.RandomState(0).shuffle(order)
    assert choose_cells(gene, ["A"], 1, 0).tolist() == sorted([0, 5, order[0]])
    assert choose_cells(gene, ["B"], 10, 0).tolist() == [1, 2, 3, 4]


def test_symbols_that_label_two_genes_get_their_id():
    var = pd.DataFrame({"gene_name": ["A", "HSPA14", "HSPA14"]}, index=["ENSG1", "ENSG2", "ENSG3"])
    assert gene_names(var).tolist() == ["A", "HSPA14_ENSG2", "HSPA14_ENSG3"]


def test_missing_parts_are_named(source, lists, tmp_path):
    full = ad.read_h5ad(source)
    target = tmp_path / "s.h5ad"

    def run(changed, **options):
        changed.write_h5ad(tmp_path / "changed.h5ad")
        filter_screen(tmp_path / "changed.h5ad", target, **(lists | options))

    with pytest.raises(DataError, match=r"obs has no column 'sgID_AB'. Did you mean 'sgid_AB'"):
        changed = full.copy()
        changed.obs = changed.obs.rename(columns={"sgID_AB": "sgid_AB"})
        run(changed)
    with pytest.raises(DataError, match=r"no cell 'non-targeting'"):
        run(full[(full.obs["gene"] != "non-targeting").to_numpy()].copy())
    with pytest.raises(DataError, match=r"obs column 'gene' has none of the 1 listed genes .'XYZ'"):
        run(full, perturbed_genes=["XYZ"])
    with pytest.raises(DataError, match=r"var column 'gene_name' has none of the 1 listed genes .'XYZ'"):
        run(full, measured_genes=["XYZ"])
    with pytest.raises(DataError, match=r"changed.h5ad: X must hold counts.* is 0.5"):
        changed = full.copy()
        column = np.flatnonzero(full.var["gene_name"].isin(lists["measured_genes"]))[0]
        changed.X[:, column] = 0.5
        run(changed)
    with pytest.raises(DataError, match=r"nowhere.h5ad: no such file"):
        filter_screen(tmp_path / "nowhere.h5ad", target, **lists)
    (tmp_path / "half.h5ad").write_bytes(source.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"half.h5ad: not a readable HDF5 file"):
        filter_screen(tmp_path / "half.h5ad", target, **lists)
    with pytest.raises(DataError, match=r"'gene' and 'sgID_AB' have no label in 1 cells: '" + full.obs_names[3]):
        changed = full.copy()
        changed.obs.loc[changed.obs_names[3], "gene"] = np.nan
        run(changed, keep="all")
    (tmp_path / "changed.h5ad").unlink()
    (tmp_path / "half.h5ad").unlink()
    assert not any(tmp_path.iterdir()), "no partial file is left"


def test_a_damaged_source_is_named(source, lists, tmp_path):
    path = tmp_path / "bad.h5ad"

    def fails(sentence):
        with pytest.raises(DataError, match=rf"bad.h5ad: .*{sentence}"):
            filter_tables(path, tmp_path / "s.h5ad", **lists)
        assert [p.name for p in tmp_path.iterdir()] == ["bad.h5ad"]

    full = ad.read_h5ad(source)
    full.write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        at, size = file["X"].id.get_chunk_info(0).byte_offset, file["X"].id.get_chunk_info(0).size
    content = bytearray(path.read_bytes())
    content[at : at + size] = b"\x55" * size
    path.write_bytes(content)
    fails("X cannot be read")

    for name, damage, sentence in (
        ("X", lambda file: file.create_dataset("X", data=full.X[1:]), r"X is \(.*obs and var are"),
        ("obs/gene/codes", lambda file: file["obs/gene"].create_dataset("codes", data=[9_999]), "obs is damaged"),
        ("obs", lambda file: file.create_dataset("obs", data=np.zeros(3, [("a", "i4")])), "obs is damaged"),
    ):
        path.write_bytes(source.read_bytes())
        with h5py.File(path, "a") as file:
            del file[name]
            damage(file)
        fails(sentence)


def test_published_counts_are_compared(source, lists, tmp_path):
    screen = filter_screen(source, tmp_path / "s.h5ad", n_controls=50, **lists)
    differences = published_differences(screen)
    assert f"cells: 118,641 published, {screen.n_obs} here" in differences
    assert f"guide pairs: 722 published, {len(screen.uns['perturbations'])} here" in differences
    assert "cells of PSMG3: 791 published, 0 here" in differences
    assert any(line.startswith("cells of the source: 1,989,578 published") for line in differences)
    facts = screen.uns["provenance"]
    facts["source_cells"], facts["source_genes"] = PUBLISHED_SOURCE
    facts["source_control_cells"] = 75_328
    fewer = published_differences(screen)
    assert len(fewer) == len(differences) - 3, "equal counts are not listed"
    assert published_differences(screen, "all") == [], "for an unfiltered screen only the source is compared"


def test_differences_are_warned_about_and_missing_genes_are_logged(source, lists, tmp_path, caplog):
    caplog.set_level("INFO")
    filter_published(source, tmp_path / "s.h5ad", published_counts=True, **lists)
    log = caplog.text
    assert "differs from the published data: cells: 118,641 published" in log
    assert "differs from the published counts" in log
    assert "of the 681 listed genes" in log and "'gene_name' lacks 987 of the 1186 listed genes" in log


def test_published_counts_agree_among_themselves():
    assert sum(PUBLISHED_PAIRS.values()) == PUBLISHED["guide pairs with a pathway"]

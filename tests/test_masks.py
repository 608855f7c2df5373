"""The table of masks of an experiment: groups of seeds, worked examples, and why a value is undefined."""

from __future__ import annotations

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from samsvae.evaluation.masks import COLUMNS, STABILITY, collect_masks
from samsvae.evaluation.metrics.table import METRICS
from samsvae.matrices import write_h5ad
from samsvae.screens.screen import assemble, write_screen
from samsvae.tables import read, write

NAMES = [f"g{i}_{guide}" for i in range(20) for guide in "ab"]


@pytest.fixture
def write_run(tmp_path):
    """Write the mask (T, L) of a run and return its path."""

    def written(run: str, mask: np.ndarray, names: list[str] = NAMES) -> str:
        path = tmp_path / "runs" / run / "perturbations.h5ad"
        matrices = {"mask_probability": np.asarray(mask, float)}
        write_h5ad(ad.AnnData(obs=pd.DataFrame(index=names), obsm=matrices), path)
        return str(path)

    return written


@pytest.fixture
def screen(tmp_path) -> str:
    """A screen with two guides for each of 20 genes, called d."""
    labels = [*NAMES, "ctrl"]
    made = assemble(
        np.ones((len(labels), 1), int), pd.DataFrame(index=[f"c{i}" for i in range(len(labels))]),
        pd.DataFrame(index=["x"]), condition=labels, control="ctrl", separator="", provenance={},
        gene_of={name: name.partition("_")[0] for name in NAMES},
    )  # fmt: skip
    write_screen(made, tmp_path / "d" / "screen.h5ad")
    return str(tmp_path / "d" / "screen.h5ad")


def grid(*rows: tuple[str, float, int]) -> pd.DataFrame:
    """A grid of runs: id, mask prior, seed."""
    table = pd.DataFrame(rows, columns=["run", "mask_prior", "seed"])
    same = {"model": "sams_vae_corr", "method": "SAMS-VAE", "inference": "", "dataset": "d", "split_name": "s"}
    return table.assign(**same)


def scores(found: pd.DataFrame, run: str = "") -> pd.DataFrame:
    return found[found["run"] == run].set_index("metric")


def of_seeds(masks, write_run, screen) -> pd.DataFrame:
    """The rows of a group of seeds with these masks."""
    runs = [f"r{i}" for i in range(len(masks))]
    table = grid(*((run, 0.1, i) for i, run in enumerate(runs)))
    files = [write_run(run, mask) for run, mask in zip(runs, masks, strict=True)]
    return scores(collect_masks(table, files, [screen]))


def random_mask(seed: int, latents: int = 10, density: float = 0.2) -> np.ndarray:
    return np.random.default_rng(seed).random((len(NAMES), latents)) < density


def test_runs_that_differ_in_the_seed_alone_are_a_group(write_run, screen, tmp_path):
    runs = grid(("a0", 0.1, 0), ("b0", np.nan, 0), ("a1", 0.1, 1), ("b1", np.nan, 1), ("unmasked", 0.1, 2))
    one, other = random_mask(0), random_mask(1)
    files = [write_run(run, mask) for run, mask in (("a0", one), ("a1", one), ("b0", one), ("b1", other))]
    write(collect_masks(runs, files, [screen]), tmp_path / "masks.tsv")
    found = read(tmp_path / "masks.tsv").fillna({"run": "", "reason": ""})
    assert list(found.columns) == ["mask_prior", "model", "method", "inference", "dataset", "split_name", *COLUMNS]
    same, different = (scores(found[at]) for at in (found["mask_prior"] == 0.1, found["mask_prior"].isna()))
    assert list(same.index) == list(different.index) == list(STABILITY.values())
    assert same["value"][["mask_jaccard", "mask_excess", "mask_gram"]].tolist() == pytest.approx([1, 1, 1])
    assert same["value"]["mask_density"] == pytest.approx(one.mean()) and same["value"]["mask_active_latents"] == 10
    assert abs(different["value"]["mask_excess"]) < 0.1 and abs(different["value"]["mask_gram"]) < 0.1
    assert (same["n"] == 2).all() and (same["reason"] == "").all()
    assert set(found["run"]) == {"", "a0", "a1", "b0", "b1"}


def test_the_order_of_the_latents_of_a_seed_changes_nothing(write_run, screen):
    one, other = random_mask(0), random_mask(0) ^ random_mask(1, density=0.1)
    expected = of_seeds([one, other], write_run, screen)
    shuffled = of_seeds([one, other[:, np.random.default_rng(0).permutation(10)]], write_run, screen)
    pd.testing.assert_frame_equal(shuffled, expected, rtol=1e-12)
    assert 0.3 < expected["value"]["mask_excess"] < 0.9  # neither equal nor independent


def test_a_worked_example(write_run, screen):
    """Two seeds with two of four entries in common: 2 of the 6 entries that either has."""
    one, other = np.zeros((2, len(NAMES), 3))
    one[[0, 1, 2, 3], 0] = 1
    other[[2, 3, 4, 5], 2] = 1
    found = of_seeds([one, other], write_run, screen)["value"]
    assert found["mask_jaccard"] == pytest.approx(1 / 3)
    assert found["mask_density"] == pytest.approx(4 / 120) and found["mask_active_latents"] == 1
    # of 780 pairs, each seed says that 6 share their mask; both say so of one
    pairs = list(itertools.combinations(range(len(NAMES)), 2))
    shares = [[float({i, j} <= of) for i, j in pairs] for of in ({0, 1, 2, 3}, {2, 3, 4, 5})]
    assert found["mask_gram"] == pytest.approx(np.corrcoef(shares)[0, 1], rel=1e-12)


def test_why_a_value_is_undefined(write_run, screen):
    undefined = ["mask_jaccard", "mask_jaccard_null", "mask_excess", "mask_gram"]
    alone = of_seeds([random_mask(0)], write_run, screen)
    assert alone.index[alone["value"].isna()].tolist() == undefined and (alone["n"] == 1).all()
    assert alone["reason"].tolist() == ["one seed"] * 4 + ["", ""]
    ones = of_seeds([np.ones((len(NAMES), 3))] * 2, write_run, screen)
    assert ones["value"][undefined[:2]].tolist() == [1, 1] and ones["value"][undefined[2:]].isna().all()
    assert "masks of ones" in ones["reason"]["mask_excess"] and "masks of ones" in ones["reason"]["mask_gram"]
    empty = of_seeds([np.zeros((len(NAMES), 3))] * 2, write_run, screen)
    assert (empty["reason"][undefined[:3]] == "the masks of two seeds are empty").all()
    assert "empty" in empty["reason"]["mask_gram"]
    assert empty["value"][["mask_density", "mask_active_latents"]].tolist() == [0, 0]


def test_perturbations_without_training_cells_are_left_out(write_run, screen):
    one, other = random_mask(0), random_mask(1)
    for number, mask in enumerate((one, other)):  # in one seed each: neither counts
        mask[number] = True
    gaps = [mask.astype(float) for mask in (one, other)]
    gaps[0][0] = gaps[1][1] = np.nan
    found = of_seeds(gaps, write_run, screen)["value"]
    cut = of_seeds([np.where(np.isnan(gaps).any((0, 2))[:, None], np.nan, mask) for mask in (one, other)],
                   write_run, screen)["value"]  # fmt: skip
    assert found.tolist() == cut.tolist()


def test_guides_of_a_gene_that_share_a_mask_have_the_rank_one(write_run, screen):
    """Every gene has a latent of its own, which both guides read: no other guide is as similar."""
    own = np.repeat(np.eye(20), 2, axis=0)
    found = collect_masks(grid(("r", 0.1, 0)), [write_run("r", own)], [screen])
    rank = scores(found, "r")
    assert rank["value"]["sibling_rank"] == 1 and rank["value"]["sibling_rank_p"] == 1 / 1001
    assert rank["value"]["sibling_rank_null"] == pytest.approx(0.5, abs=0.02) and (rank["n"] == 40).all()
    assert set(rank.index) <= set(METRICS)
    guides = np.where(np.arange(40)[:, None] % 2, np.nan, own)  # one guide of each gene has training cells
    alone = scores(collect_masks(grid(("r", 0.1, 0)), [write_run("r", guides)], [screen]), "r")
    assert alone["value"].isna().all() and (alone["n"] == 0).all()
    assert set(alone["reason"]) == {"no gene has several perturbations with training cells"}


def test_a_screen_with_one_perturbation_per_gene_has_no_ranks(write_run, tmp_path):
    names = NAMES[::2]
    made = assemble(
        np.ones((len(names) + 1, 1), int), pd.DataFrame(index=[f"c{i}" for i in range(len(names) + 1)]),
        pd.DataFrame(index=["x"]), condition=[*names, "ctrl"], control="ctrl", separator="", provenance={},
    )  # fmt: skip
    write_screen(made, tmp_path / "d" / "screen.h5ad")
    path = write_run("r", random_mask(0)[::2], names)
    found = collect_masks(grid(("r", 0.1, 0)), [path], [str(tmp_path / "d" / "screen.h5ad")])
    assert set(found["run"]) == {""}


def test_no_masks_give_a_table_without_rows(tmp_path):
    found = collect_masks(grid(("r", 0.1, 0)), [], [])
    write(found, tmp_path / "masks.tsv")
    assert list(read(tmp_path / "masks.tsv").columns[-5:]) == list(COLUMNS)

"""The data card against numbers counted by hand, and its figure."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae.errors import DataError
from samsvae.figures.data_card import draw as draw_data_card
from samsvae.screens import splits
from samsvae.screens.custom import screen_of
from samsvae.screens.data_card import data_card, findings
from samsvae.screens.screen import assemble, provenance, write_screen

LABELS = ["ctrl"] * 4 + ["A"] * 3 + ["B"] * 2 + ["A+B"]


@pytest.fixture
def files(tmp_path):
    """A screen of ten cells and three genes, the last gene never seen, and a split for it."""
    counts = np.array([[i + 1, i % 2, 0] for i in range(10)])
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(10)])
    facts = provenance(
        "here/raw.h5ad", checksum="md5:0123", filter="custom", parameters={"min_cells": 2, "genes": ["x", "y"]},
        source_shape=(12, 7), kept_shape=(10, 3), dropped_rare_cells=2, dropped_zero_cells=0,
    )  # fmt: skip
    var = pd.DataFrame(index=["x", "y", "z"])
    screen = assemble(
        sp.csr_matrix(counts), obs, var, condition=LABELS, control="ctrl", separator="+", provenance=facts
    )
    write_screen(screen, tmp_path / "screen.h5ad")
    table = pd.DataFrame({"cell": obs.index, "condition": LABELS, "split": list("ttvnttvttt")})
    table["split"] = table["split"].map({"t": "train", "v": "val", "n": "none"})
    splits.write_split(table.iloc[::-1], tmp_path / "cells.tsv")
    return tmp_path / "screen.h5ad", tmp_path / "cells.tsv", counts


def test_a_data_card_matches_numbers_counted_by_hand(files):
    screen, split, counts = files
    found = data_card(screen, split, name="mine", split_name="random (first of 2)")
    facts = dict(zip(found.facts["item"], found.facts["value"], strict=True))
    assert facts["data set"] == "mine" and facts["split"] == "random (first of 2)"
    assert facts["cells"] == "10" and facts["genes"] == "3"
    assert facts["perturbations"] == "2" and facts["combinations"] == "1" and facts["control cells"] == "4"
    assert facts["cells per condition"] == "median 2, from 1 to 3"
    assert facts["counts per cell"] == "median 6, from 1 to 11"
    assert facts["share of zeros"] == f"{(counts == 0).mean():.1%}" == "50.0%"
    assert facts["split: train"] == "7 cells" and facts["split: none"] == "1 cells" and "split: test" not in facts
    assert facts["cells dropped"] == "2 of 12" and facts["genes dropped"] == "4 of 7"
    assert facts["dropped rare cells"] == "2" and "dropped zero cells" not in facts
    assert facts["source"] == "raw.h5ad" and facts["checksum"] == "md5:0123" and facts["option: genes"] == "x, y"
    assert found.conditions.values.tolist() == [
        ["ctrl", "control", 4], ["A", "single", 3], ["B", "single", 2], ["A+B", "combination", 1]
    ]  # fmt: skip
    np.testing.assert_allclose(found.genes["mean"], counts.mean(0))
    np.testing.assert_allclose(found.genes["detected"], (counts > 0).mean(0))
    assert found.counts["cells"].sum() == 10
    inside = [((row.low <= counts.sum(1)) & (counts.sum(1) < row.high)).sum() for row in found.counts.itertuples()]
    inside[-1] += 1  # the largest lies on the last edge
    assert found.counts["cells"].tolist() == inside
    sizes = found.splits.set_index(["split", "kind"])["cells"]
    assert sizes["train", "control"] == 2 and sizes["val", "single"] == 1 and sizes["none", "control"] == 1
    assert sizes["train", "combination"] == 1 and sizes.sum() == 10


def test_a_data_card_names_the_levels_of_covariates(tmp_path):
    obs = pd.DataFrame({"guide": LABELS, "batch": list("aaabbbbbbc")}, index=[f"cell{i}" for i in range(10)])
    adata = ad.AnnData(np.ones((10, 3), np.float32), obs)
    screen = screen_of(adata, perturbation_column="guide", control="ctrl", separator="+", covariates="batch")
    write_screen(screen, tmp_path / "screen.h5ad")
    splits.write_split(pd.DataFrame({"cell": obs.index, "condition": LABELS, "split": "train"}), tmp_path / "cells.tsv")
    facts = data_card(tmp_path / "screen.h5ad", tmp_path / "cells.tsv").facts.set_index("item")["value"]
    assert facts["covariate: batch"] == "3 levels: b (6), a (3), c (1)"


def test_a_real_valued_screen_has_a_data_card(files, tmp_path):
    values = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    counted = ad.read_h5ad(files[0])
    screen = assemble(
        values, counted.obs[[]], counted.var, condition=LABELS, control="ctrl", separator="+", real_valued=True,
        provenance=counted.uns["provenance"],
    )  # fmt: skip
    write_screen(screen, tmp_path / "real.h5ad", real_valued=True)
    found = data_card(tmp_path / "real.h5ad", files[1])
    np.testing.assert_allclose(found.genes["mean"], values.astype(float).mean(0))
    assert found.counts["cells"].sum() == 10
    draw_data_card(**vars(found))


def test_a_split_for_other_cells_is_rejected(files, tmp_path):
    table = pd.read_csv(files[1], sep="\t").iloc[1:]
    splits.write_split(table, tmp_path / "short.tsv")
    with pytest.raises(DataError, match=r"short\.tsv: .*no row for 'cell9'"):
        data_card(files[0], tmp_path / "short.tsv")


def test_the_figure_shows_every_panel(files):
    found = vars(data_card(*files[:2]))
    fig = draw_data_card(**found)
    fig.canvas.draw()
    axes = {ax.get_label(): ax for part in fig.subfigs for ax in part.axes}
    assert set(axes) == {"facts", "counts", "conditions", "genes", "splits"}
    assert len(axes["facts"].texts) >= 2 * 15
    assert {text.get_text() for text in axes["splits"].texts} == {"7", "2", "1"}
    assert [text.get_text() for text in axes["conditions"].get_legend().get_texts()] == [
        "control (1)", "singles (2)", "combination (1)"
    ]  # fmt: skip
    for name in ("counts", "conditions", "genes", "splits"):
        assert axes[name].has_data() and axes[name].get_xlabel() + axes[name].get_ylabel()


def test_labels_with_dollars_are_drawn_as_they_stand(files):
    found = vars(data_card(*files[:2]))
    odd = {"item": ["option: p$x_{$", "option: control"], "value": ["a$x_{$\nb", "p$x_{$\u2028c"]}
    found["facts"] = pd.concat([pd.DataFrame(odd), found["facts"]])
    for table, column in (("conditions", "condition"), ("genes", "gene")):
        found[table] = found[table].assign(**{column: "p$x_{$"})
    fig = draw_data_card(**found)
    fig.canvas.draw()
    shown = [text.get_text() for text in fig.subfigs[0].axes[0].texts]
    assert shown[:4] == [r"option: p\$x_{\$", r"a\$x_{\$ b", "option: control", r"p\$x_{\$ c"]


def test_a_long_data_card_ends_with_an_ellipsis(files):
    found = vars(data_card(*files[:2]))
    found["facts"] = pd.concat([found["facts"]] * 8, ignore_index=True)
    facts = draw_data_card(**found).subfigs[0].axes[0]
    assert facts.texts[-1].get_text() == "…" and max(text.get_position()[1] for text in facts.texts) <= 75


def test_a_data_card_grows_with_its_facts(files):
    found = vars(data_card(*files[:2]))
    found["facts"] = pd.concat([found["facts"]] * 2, ignore_index=True)
    assert len(found["facts"]) > 30
    fig = draw_data_card(**found)
    facts = fig.subfigs[0].axes[0]
    assert len(facts.texts) >= 2 * len(found["facts"]) and "…" not in {text.get_text() for text in facts.texts}
    fig.canvas.draw()
    boxes = [text.get_window_extent() for text in facts.texts]
    assert min(box.y0 for box in boxes) >= 0 and max(box.y1 for box in boxes) <= fig.bbox.y1


def test_conditions_of_equal_size_do_not_hide_each_other(files):
    found = vars(data_card(*files[:2]))
    conditions = [("c", "control", 9), ("A", "single", 5), ("B", "single", 5), ("A+B", "combination", 5)]
    found["conditions"] = pd.DataFrame(conditions, columns=["condition", "kind", "cells"])
    fig = draw_data_card(**found)
    fig.canvas.draw()
    (ax,) = (ax for part in fig.subfigs for ax in part.axes if ax.get_label() == "conditions")
    assert [line.get_xdata().tolist() for line in ax.lines] == [[1], [2, 3], [4]]
    assert all(float(tick).is_integer() for tick in ax.get_xticks())


def test_nothing_to_draw_is_named(files):
    found = vars(data_card(*files[:2]))
    with pytest.raises(DataError, match="conditions: the table has no rows"):
        draw_data_card(**{**found, "conditions": found["conditions"].iloc[:0]})


def findings_of(**changes) -> list[str]:
    """The findings of a screen without faults, with some of its facts changed."""
    facts = {"control": 300, "small": 40, "counts": 1000.0, "share": 0.05, "cells": 1000} | changes
    kinds, cells = ["control", "single", "single"], [facts["control"], facts["small"], 500]
    conditions = pd.DataFrame({"condition": ["control", "A", "B"], "kind": kinds, "cells": cells})
    total = np.full(facts["cells"], facts["counts"])
    rest = (1 - facts["share"]) / 99
    mean = facts["counts"] * np.array([facts["share"], *[rest] * 99])
    genes = pd.DataFrame({"gene": [f"g{i}" for i in range(100)], "mean": mean})
    return findings(conditions, total, genes)


def test_findings_name_what_may_spoil_a_fit():
    assert findings_of() == []
    for change, words in (
        ({"share": 0.4}, "The gene 'g0' holds 40% of all counts"),
        ({"counts": 12.0}, "The median cell has 12 counts in the genes kept"),
        ({"control": 99}, "Only 99 of 1,000 cells are controls."),
        ({"control": 192, "cells": 6934}, "Only 192 of 6,934 cells are controls."),
        ({"small": 19}, "Conditions with fewer than 20 cells: 'A'."),
    ):
        (found,) = findings_of(**change)
        assert found.startswith(words), found


def test_findings_are_drawn_and_saved(files):
    found = vars(data_card(*files[:2]))
    found["findings"] = pd.DataFrame({"finding": ["One $gene$ holds it all.", "Two."]})
    fig = draw_data_card(**found)
    assert fig.get_suptitle() == r"One \$gene\$ holds it all. Two."

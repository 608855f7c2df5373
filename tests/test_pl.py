"""Plots for notebooks: they return their axes, draw the numbers of the model, and leave matplotlib as it was."""

from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from simulated_cells import SHORT, simulated

from samsvae import Fitted, fit, pl
from samsvae.errors import DataError

HOW = {"perturbation": "guide", "control": "control", "separator": "+", "progress": False}
DRAW = {"masks": (), "effects": (), "curves": (), "volcano": ("A",)}


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return fit(simulated(), **HOW, **SHORT)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", DRAW)
def test_a_plot_returns_axes_and_changes_no_setting(fitted, name, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    before = dict(mpl.rcParams)
    ax = getattr(pl, name)(fitted, *DRAW[name])
    assert ax.figure.get_axes()[0] is ax and plt.fignum_exists(ax.figure.number) and not shown
    mine = plt.subplots(1, 2)[1][1]
    assert getattr(pl, name)(fitted, *DRAW[name], ax=mine, show=True) is mine and shown == [1]
    ax.figure.canvas.draw()
    assert dict(mpl.rcParams) == before


def rows_of(ax) -> list[str]:
    return [text.get_text() for text in ax.get_yticklabels()]


def columns_of(ax) -> list[str]:
    return [text.get_text() for text in ax.get_xticklabels()]


def test_masks_are_those_of_the_model(fitted):
    ax = pl.masks(fitted)
    drawn = fitted.mask_probability.loc[rows_of(ax), columns_of(ax)]
    np.testing.assert_array_equal(ax.images[0].get_array(), drawn)
    assert sorted(rows_of(ax)) == ["A", "B", "C"] and len(columns_of(ax)) == 6


def test_effects_are_those_of_the_model(fitted):
    ax = pl.effects(fitted, ["A", "A+B"], genes=4)
    table = fitted.effects(["A", "A+B"]).pivot(index="condition", columns="gene", values="effect")
    np.testing.assert_array_equal(ax.images[0].get_array(), table.loc[rows_of(ax), columns_of(ax)])
    assert set(columns_of(ax)) == set(table.abs().max().nlargest(4).index) and set(rows_of(ax)) == {"A", "A+B"}
    assert columns_of(pl.effects(fitted, "A", genes=["g7", "g1"])) == ["g7", "g1"]
    with pytest.raises(DataError, match=r"genes: the model has no gene 'g77'\. Did you mean 'g7'"):
        pl.effects(fitted, genes=["g77"])


def test_curves_are_the_history(fitted):
    ax = pl.curves(fitted)
    training, validation = ax.get_lines()[:2]
    np.testing.assert_array_equal(training.get_ydata(), fitted.history["train_loss"])
    np.testing.assert_array_equal(validation.get_xydata(), fitted.history[["step", "val_loss"]])
    assert ax.get_lines()[2].get_xdata()[0] == fitted.checkpoint.facts["best_step"]
    facts = {key: value for key, value in fitted.checkpoint.facts.items() if key != "history"}
    with pytest.raises(DataError, match="no history"):
        pl.curves(Fitted(replace(fitted.checkpoint, facts=facts)))


def test_a_volcano_colours_and_names_what_changes(fitted):
    ax = pl.volcano(fitted, "B", delta=0.5, names=3)
    table = fitted.differential_expression("B", delta=0.5)
    changed = table[(table["effect"].abs() > 0.5) & (table["lfsr"] < 0.05)]
    down = next(points for points in ax.collections if (points.get_facecolor() == to_rgba(pl.DOWN)).all())
    expected = changed[changed["effect"] < 0][["effect"]].to_numpy()
    np.testing.assert_allclose(np.sort(down.get_offsets()[:, 0]), np.sort(expected[:, 0]))
    sizes = (table["effect"].abs() / table["sd"]).to_numpy()
    np.testing.assert_allclose(sorted(y for p in ax.collections for y in p.get_offsets()[:, 1]), np.sort(sizes))
    assert {text.get_text() for text in ax.texts} == {"g5", "g6", "g7"} and ax.get_title("left") == "B"

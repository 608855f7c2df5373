"""Figures: their panels, order, legibility and data; and the published numbers next to them."""

import csv
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import figure_tables as tables
import numpy as np
import pandas as pd
import pytest
from matplotlib.legend import Legend
from matplotlib.text import Text
from test_worth import MODEL, VALUES, everything

from samsvae.config.zoo import ROWS, TABLE_1
from samsvae.errors import DataError
from samsvae.evaluation.selection import best_settings
from samsvae.figures import heatmaps, published, registry, score_table, style
from samsvae.figures.bound import draw as draw_bound
from samsvae.figures.combinations import draw as draw_combinations
from samsvae.figures.curves import draw as draw_curves
from samsvae.figures.curves import without_short_end
from samsvae.figures.data_card import draw as draw_data_card
from samsvae.figures.effects import draw as draw_effects
from samsvae.figures.expression import draw as draw_expression
from samsvae.figures.expression import overlap_table, strongest
from samsvae.figures.masks import draw as draw_masks
from samsvae.figures.masks import latent_order
from samsvae.figures.recovery import draw as draw_recovery
from samsvae.figures.score_table import build_table, settings_text
from samsvae.figures.scores import draw as draw_scores
from samsvae.figures.transfer import arguments as transfer_arguments
from samsvae.figures.transfer import draw as draw_transfer
from samsvae.figures.worth import draw as draw_worth

SIMULATED = (*TABLE_1, "vae", "beta_vae", "ivae", "ivae_drawn", "svae", "svae_plus_lopez")


@pytest.fixture(scope="module")
def numbers(root, request):
    """The folder of published numbers: the tracked one, or else the one next to the checkout."""
    tracked = root / "resources" / "published"
    return tracked if tracked.is_dir() else request.getfixturevalue("shared") / "data" / "published"


@pytest.fixture(scope="module")
def table1(numbers):
    scores = tables.replogle_scores()
    return build_table(scores, best_settings(scores, ["model"]), published.replogle_table1(numbers))


def draw(name, table1):
    """Draw one of the figures at the size of the demo."""
    mask, embedding, pathway, data, model = tables.screen()
    de, model_de = tables.de_tables(data.iloc[:8], model.iloc[:8])
    drawings = {
        "scores": lambda: draw_scores(table1),
        "scores_miniature": lambda: draw_scores(table1, comparable=False),
        "scores_plain": lambda: plain_scores(table1, data.index),
        "masks": lambda: draw_masks(mask, embedding, pathway, tables.accuracy(), tables.stability()),
        "masks_plain": lambda: draw_masks(mask, embedding, None, None, tables.stability(1)),
        "effects": lambda: draw_effects(data, model, pathway, tables.per_condition(data.index), shown="sams_vae_corr"),
        "expression": lambda: draw_expression(de, data, model, tables.overlap(data.index), model_de=model_de),
        "combinations": lambda: draw_combinations(tables.norman_summary(), tables.interactions()),
        "combinations_efficiency": lambda: draw_combinations(tables.norman_summary((0, 1)), kind="norman_efficiency"),
        "recovery": lambda: draw_recovery(tables.simulation_scores(seeds=2)),
        "recovery_bars": lambda: draw_recovery(bars()),
        "curves": lambda: draw_curves(tables.histories(seeds=1), name="replogle"),
        "worth": lambda: draw_worth(*everything(VALUES), models=[MODEL]),
        "bound": lambda: draw_bound(*tables.bounds(), models=list(TABLE_1)),
        "transfer": lambda: transfers(SIMULATED[9:], refit=True, perturbations=20),
        "transfer_pathways": lambda: transfers(SIMULATED[9:], held_out=tables.PATHWAYS, effects=True),
    }
    return drawings[name]()


def plain_scores(table1, conditions):
    """The scores of an experiment without published numbers, with baselines and held-out conditions."""
    published_only = [c for c in table1 if c.startswith(("published", "difference", "inside")) or "rule" in c]
    each = tables.per_condition(conditions, TABLE_1)
    return draw_scores(table1.drop(columns=published_only), tables.single_runs(), tables.baselines(), each)


def transfers(models, **options):
    """The figure of transfers from random tables."""
    table, scores = tables.transfers(models, **options)
    return draw_transfer(**transfer_arguments(scores, table, separator="", compared={}))


def bars(seeds=2):
    """Scores of a simulation without the axis of cells."""
    return tables.simulation_scores(SIMULATED, (500,), seeds=seeds).drop(columns="cells")


NAMES = {  # figure: number of panels (colour bars and pathway strips left out)
    "scores": 15,
    "scores_miniature": 12,
    "scores_plain": 9,
    "masks": 4,
    "masks_plain": 3,
    "effects": 4,
    "expression": 7,
    "combinations": 7,
    "combinations_efficiency": 3,
    "recovery": 6,
    "recovery_bars": 6,
    "curves": 1,
    "worth": 6,
    "bound": 5,
    "transfer": 5,
    "transfer_pathways": 6,
}


def panels(fig):
    """Panels by label, without colour bars and the pathway strip."""
    return {a.get_label(): a for a in fig.axes if a.get_label() not in ("<colorbar>", "pathways")}


def texts(fig):
    return [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()]


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_exists_with_titles_content_and_legible_text(name, table1, monkeypatch):
    fig = draw(name, table1)
    found = panels(fig)
    assert len(found) == NAMES[name]
    for label, ax in found.items():
        assert not label.startswith("_child"), "every panel has a label"
        assert ax.has_data() or ax.texts, f"{label} is empty"
    if not name.startswith("scores"):  # a table has column heads instead
        for label, ax in found.items():
            assert ax.get_title(loc="left"), f"{label} has no title"
            assert ax.get_xlabel() or ax.get_xticklabels(), f"{label} has no x label"

    drawn = []
    draw_text = Text.draw
    monkeypatch.setattr(Text, "draw", lambda text, *args: drawn.append(text) or draw_text(text, *args))
    fig.canvas.draw()
    width, height = fig.bbox.size
    for text in drawn:
        if text.get_visible() and text.get_text().strip():
            assert text.get_fontsize() >= 7, f"{text.get_text()!r} is too small"
            box = text.get_window_extent()
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
            assert inside, f"{text.get_text()!r} is cut off"


@pytest.mark.parametrize("perturbations", [20, 50, 345])
def test_pathway_names_do_not_overlap(perturbations):
    mask, embedding, pathway, *_ = tables.screen(perturbations)
    fig = draw_masks(mask, embedding, pathway, tables.accuracy())
    fig.canvas.draw()
    ax = next(a for a in fig.axes if a.get_label() == "pathways")
    boxes = sorted((t.get_window_extent() for t in ax.texts), key=lambda b: b.y0)
    assert len(boxes) == pathway.nunique()
    assert all(lower.y1 <= upper.y0 + 2 for lower, upper in pairwise(boxes))


def test_rows_are_ordered_by_pathway_and_inactive_latents_are_right():
    mask, embedding, pathway, *_ = tables.screen(unannotated=5)
    rows = heatmaps.row_order(mask, pathway)
    assert sorted(rows) == sorted(mask.index)
    groups = pathway[rows].tolist()
    assert [g for i, g in enumerate(groups) if i == 0 or groups[i - 1] != g] == [*sorted(set(groups) - {""}), ""]
    latents, active = latent_order(mask)
    assert (mask[latents[:active]].max() > 0.5).all() and not (mask[latents[active:]].max() > 0.5).any()
    shown = panels(draw_masks(mask, embedding, pathway, None))["mask probability"].images[0].get_array()
    assert shown.shape == (45, 30)  # the five without a pathway are left out
    annotated = mask[pathway != ""]
    assert np.allclose(np.sort(shown, axis=None), np.sort(annotated.to_numpy(), axis=None))


def test_clustering_puts_similar_rows_together():
    a, b = np.array([0.0, 0, 1]), np.array([5.0, 5, 5])
    order = heatmaps.cluster(np.stack([a, b, a + 0.1, b + 0.1, a + 0.2]))
    kinds = [i in (1, 3) for i in order]
    assert sorted(order) == [0, 1, 2, 3, 4] and sum(x != y for x, y in pairwise(kinds)) == 1


def texts_of(ax):
    return [text.get_text() for text in ax.texts]


def test_masks_are_drawn_next_to_what_else_predicts_pathways():
    mask, embedding, pathway, *_ = tables.screen()
    accuracy = tables.accuracy()
    ax = panels(draw_masks(mask, embedding, pathway, accuracy, tables.stability()))["accuracy"]
    levels = [segment[0, 1] for lines in ax.collections for segment in lines.get_segments() if segment[0, 1] == 0.9]
    assert len(levels) == 2  # the training means, for every classifier that reads them
    drawn = {round(y, 9) for line in ax.lines for y in np.atleast_1d(line.get_ydata())}
    of_models = accuracy[accuracy["model"] != "train_mean"]
    assert drawn >= set(of_models["mean"].round(9))
    assert [text.get_text() for text in ax.get_legend().get_texts()][:4] == [
        "mask (markers as in d)", "embedding, before the mask", "effects that the model predicts",
        "mean effects of training cells",
    ]  # fmt: skip


def test_the_table_of_masks_has_a_row_per_model():
    mask, embedding, *_ = tables.screen()
    fig = draw_masks(mask, embedding, None, None, tables.stability())
    ax = panels(fig)["stability"]
    names = [style.label(model) for model in style.models_in(tables.MASKED)]
    assert [text.get_text() for text in ax.get_yticklabels()] == names
    assert texts_of(ax)[:6] == ["2", "0.50", "0.00", "0.10", "19.5", "0.60 (p 0.030)"]
    assert "has no stability" not in fig.get_suptitle()
    alone = draw_masks(mask, embedding, None, None, tables.stability(1).assign(sibling_rank=np.nan))
    assert texts_of(panels(alone)["stability"])[:5] == ["1", "–", "–", "0.10", "19.5"]
    assert len(panels(alone)["stability"].get_xticklabels()) == 5  # no column without a rank
    assert "c: one seed has no stability over seeds." in alone.get_suptitle().replace("\n", " ")


def test_pathway_names_read_as_words():
    names = ["S40_RIBOSOMAL_UNIT", "MT_PROTEIN_TRANSLOCATION", "EXOSOME", "my_Pathway"]
    assert [heatmaps.pathway_name(n) for n in names] == [
        "40S ribosomal unit",
        "MT protein translocation",
        "Exosome",
        "my Pathway",
    ]


def test_effects_of_data_and_model_share_order_and_limits():
    *_, pathway, data, model = tables.screen()
    left, right = (panels(draw_effects(data, model, pathway))[f"effects {n}"].images[0] for n in ("data", "model"))
    assert left.get_clim() == right.get_clim() and left.get_clim()[0] == -left.get_clim()[1]
    # one permutation maps both matrices to their pictures
    flat = np.argsort(data.to_numpy().ravel())
    drawn = np.argsort(np.asarray(left.get_array()).ravel())
    assert np.array_equal(np.asarray(right.get_array()).ravel()[drawn], model.to_numpy().ravel()[flat])


def test_effects_say_how_many_perturbations_each_panel_shows():
    *_, pathway, data, model = tables.screen(unannotated=5)
    found = panels(draw_effects(data, model, pathway, tables.per_condition(data.index), shown="cond_vae"))
    assert found["effects data"].get_xlabel() == "45 with a pathway × 120 genes"
    assert "all 50 perturbations" in found["agreement"].get_title(loc="left")
    assert "50 perturbations (honest protocol)" in found["per condition"].get_title(loc="left")
    assert "per condition" not in panels(draw_effects(data, model, pathway))


def test_effects_lie_between_the_baseline_and_the_ceiling():
    """Lines of the histogram are means over conditions."""
    *_, data, model = tables.screen()
    each = tables.per_condition(data.index, ("cond_vae",))
    ax = panels(draw_effects(data, model, each=each, shown="cond_vae"))["per condition"]
    (legend,) = ax.findobj(Legend)
    means = each.groupby("model")["value"].mean()
    order = ["cond_vae", "shrunk", "ridge_pc", "ceiling"]
    said = [t.get_text() for t in legend.get_texts()]
    assert said == [f"{style.label(name)} (mean {means[name]:.2f})" for name in order]
    assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx([means[name] for name in order])
    assert sum(bar.get_height() for bar in ax.patches) == len(data)


def test_agreement_prints_pearson():
    *_, data, model = tables.screen()
    fig = draw_effects(data, model)
    r = np.corrcoef(data.to_numpy().ravel(), model.to_numpy().ravel())[0, 1]
    assert f"r = {r:.3f}" in [t.get_text() for t in panels(fig)["agreement"].texts]


# the table of Replogle


def test_table1_shows_the_chosen_runs(table1, numbers):
    assert list(table1["model"]) == list(TABLE_1)
    scores = tables.replogle_scores()
    row = table1.set_index("model").loc["sams_vae_corr"]
    assert row["settings"] == "α = 0.01, 100 latents" and row["n_runs"] == 5  # the better setting by construction
    of = scores[(scores["model"] == "sams_vae_corr") & (scores["mask_prior"] == 0.01)]
    test = of[(of["metric"] == "iwelbo") & (of["split"] == "test")]["value"].to_numpy()
    assert row["test_iwelbo"] == pytest.approx(test.mean())
    assert row["test_iwelbo_sd"] == pytest.approx(np.sqrt(((test - test.mean()) ** 2).sum() / 4))
    assert row["difference_test_iwelbo"] == pytest.approx(test.mean() - -1756.27)
    assert row["inside_seed_interval_test_iwelbo"] == (abs(test.mean() + 1756.27) <= 2 * test.std(ddof=1))
    every = scores[scores["model"] == "sams_vae_corr"]
    best = every[(every["metric"] == "iwelbo") & (every["split"] == "test")].sort_values("value").iloc[-1]["run"]
    rule = every[(every["run"] == best) & (every["metric"] == "ate_pearson")]["value"].item()
    assert row["ate_pearson_published_rule"] == rule
    assert (
        table1.set_index("model")
        .loc["cond_vae", ["mask_pathway_accuracy", "published_mask_pathway_accuracy"]]
        .isna()
        .all()
    )


def test_table1_of_single_runs_has_no_seed_interval(numbers):
    scores = tables.replogle_scores(seeds=1)
    table = build_table(scores, best_settings(scores, ["model"]), published.replogle_table1(numbers))
    assert table["inside_seed_interval_test_iwelbo"].isna().all() and table["test_iwelbo_sd"].isna().all()
    draw_scores(table)


def test_table1_has_no_differences_if_nothing_may_be_compared(table1, numbers):
    scores = tables.replogle_scores()
    best, theirs = best_settings(scores, ["model"]), published.replogle_table1(numbers)
    table = build_table(scores, best, theirs, comparable=False)
    empty = [c for c in table if c.startswith(("difference", "inside"))]
    assert len(empty) == 6 and table[empty].isna().all(None) and table1[empty].notna().any().all()
    pd.testing.assert_frame_equal(table.drop(columns=empty), table1.drop(columns=empty))


def test_table1_figure_keeps_the_order_and_says_when_nothing_may_be_compared(table1):
    shuffled = table1.sample(frac=1, random_state=0)
    fig = draw_scores(shuffled)
    shown = [t.get_text() for t in panels(fig)["model"].texts if t.get_fontweight() == "bold"]
    assert shown == [ROWS[m].method for m in TABLE_1]
    said = " ".join(t.get_text() for t in texts(fig))
    assert "−1756.27" in said and "difference" in said and "must not be compared" not in said
    miniature = draw_scores(table1, comparable=False)
    said = " ".join(t.get_text() for t in texts(miniature))
    assert "−1756.27" in said and "difference" not in said and "must not be compared" in said


def test_settings_text_names_only_what_the_model_reads():
    row = pd.Series({"mask_prior": 0.01, "beta_b": 5.0, "n_latent": 100})
    said = [
        settings_text(pd.concat([row, pd.Series({"model": m})])) for m in ("svae_plus", "sams_vae_mf", "cpa_vae_mf")
    ]
    assert said == ["b = 5, 100 latents", "α = 0.01, 100 latents", "100 latents"]


# the other figures


def test_norman_draws_one_encoding_baselines_and_published_values(numbers):
    summary = tables.norman_summary()
    fig = draw_combinations(summary, published=published.norman(numbers, "ood"))
    ax = panels(fig)["ate_pearson"]
    heights = sorted(p.get_height() for p in ax.patches)
    wanted = summary[
        (summary["metric"] == "ate_pearson") & ~summary["model"].isin(["additive", "mean_of_perturbations"])
    ]
    wanted = wanted[(wanted["encoding"] == "sum") | (wanted["model"] == "svae_plus")]
    assert np.allclose(heights, sorted(wanted["mean"]))
    theirs = sorted(y for line in ax.lines if line.get_marker() == "D" for y in line.get_ydata())
    assert len(theirs) == 20 and np.isclose(theirs, 0.681648).any()  # SAMS-VAE corr. at 0
    labels = [t.get_text() for legend in fig.findobj(Legend) for t in legend.get_texts()]
    assert {"additive", "mean of perturbations", "published"} <= set(labels)
    shown = draw_combinations(summary, encoding="unique")
    assert len(panels(shown)["ate_pearson"].patches) == 10  # CPA-VAE and SVAE+ have that encoding


def test_combinations_have_an_honest_panel_with_its_own_lines():
    """Published and honest scores are in panels of their own; without honest ones, interactions are panel c."""
    summary, pairs = tables.norman_summary(), tables.interactions()
    found = panels(draw_combinations(summary, pairs))
    for metric in ("ate_pearson", "pearson_centred"):
        base = summary[
            (summary["metric"] == metric) & summary["model"].isin(style.models_in(summary["model"], baselines=True))
        ]
        drawn = sorted(float(line.get_ydata()[0]) for line in found[metric].lines if len(line.get_xdata()) == 2)
        expected = sorted([*base["mean"].dropna(), 0.0])  # and the axis
        np.testing.assert_allclose(drawn, expected)
    assert found["interaction cond_vae"].get_title(loc="left").startswith("$\\bf{d}$")
    without = panels(draw_combinations(summary[summary["metric"] != "pearson_centred"], pairs))
    assert "pearson_centred" not in without
    assert without["interaction cond_vae"].get_title(loc="left").startswith("$\\bf{c}$")


def test_norman_interaction_correlations():
    pairs = tables.interactions()
    fig = draw_combinations(tables.norman_summary(), pairs)
    of = pairs[pairs["model"] == "cpa_vae_corr"]
    r = np.corrcoef(of["observed"], of["predicted"])[0, 1]
    assert f"r = {r:.3f}" in [t.get_text() for t in panels(fig)["interaction cpa_vae_corr"].texts]


def test_interactions_say_whether_their_combinations_were_in_training():
    pairs = tables.interactions().replace({"fraction": {1.0: 0.75}})
    pairs.loc[pairs["model"] == "cond_vae", "seen"] = False
    pairs.loc[pairs["model"] == "svae_plus", "seen"] = pairs["pair"].isin(["p0", "p1"])
    pairs.loc[pairs["model"] == "cpa_vae_corr", "fraction"] = np.nan
    found = panels(draw_combinations(tables.norman_summary(), pairs))
    said = {
        model: found[f"interaction {model}"].get_title(loc="left").split("\n")[1] for model in pairs["model"].unique()
    }
    assert said["cond_vae"] == "33 unseen at fraction 0.75"
    assert said["sams_vae_corr"] == "all 33 seen at fraction 0.75"
    assert said["svae_plus"] == "2 of 33 seen at fraction 0.75"
    assert said["cpa_vae_corr"] == "all 33 seen"  # a grid without fractions


def test_combinations_without_fractions_are_one_group_of_bars_and_name_the_reference():
    summary = tables.norman_summary((1,)).replace({"metric": {"iwelbo_relative": "iwelbo_relative_to_best"}})
    fig = draw_combinations(summary.assign(fraction=np.nan), kind="random", reference="CPA-VAE on the same split")
    found = panels(fig)
    assert list(found) == ["iwelbo_relative_to_best", "ate_pearson", "pearson_centred"]
    ax = found["iwelbo_relative_to_best"]
    assert ax.get_ylabel() == "test IWELBO relative to\nCPA-VAE on the same split (nats per cell)"
    assert len(ax.patches) == 4 and ax.get_xlabel() == "model" and not ax.get_xticklabels()


def test_combinations_without_test_cells_give_one_sentence():
    fig = draw_combinations(None, message="No combination has test cells.")
    assert [t.get_text() for t in texts(fig)] == ["No combination has test cells."] and len(fig.axes) == 1


def test_norman_marks_the_reference_whose_bar_has_no_height():
    summary = tables.norman_summary()
    at = (summary["model"] == "sams_vae_corr") & (summary["fraction"] == 0) & (summary["metric"] == "iwelbo_relative")
    summary.loc[at, ["mean", "sd"]] = 0.0
    ax = panels(draw_combinations(summary))["iwelbo_relative"]
    marks = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert len(marks) == 1 and marks[0].get_color() == style.look("sams_vae_corr").colour
    (bar,) = [bar for bar in ax.patches if bar.get_height() == 0]
    assert marks[0].get_xdata()[0] == pytest.approx(bar.get_x() + bar.get_width() / 2)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"masks_plain"}))
def test_every_figure_says_which_protocol_it_follows(name, table1):
    said = " ".join(t.get_text() for t in texts(draw(name, table1))).lower()
    said = said.replace("\n", " ")
    honest = ("worth", "bound", "transfer", "transfer_pathways")
    protocol = {"curves": "protocol"}.get(name, "honest protocol" if name in honest else "published protocol")
    assert protocol in said
    also = {"scores_plain", "effects", "combinations", "combinations_efficiency"}
    assert ("honest protocol" in said) == (name in (*also, *honest))


def test_mask_of_ones_line():
    """A mask of ones has the density of the true mask as its precision, and a recall of 1: F1 = 2 d / (1 + d)."""
    found = panels(draw("recovery", None))
    density = 2 / 15
    for metric, wanted in (("f1", 2 * density / (1 + density)), ("precision", density), ("recall", 1.0)):
        ax = found[f"mask_{metric}/true-positives"]
        lines = [line.get_ydata()[0] for line in ax.lines if line.get_color() == style.INK]
        assert lines == [pytest.approx(wanted)]


def test_empty_masks_are_named():
    """sVAE has a density of 0.4 %, all others 30 %."""
    by_method, ax = draw("recovery_bars", None), panels(draw("recovery_bars", None))["mask_f1/true-positives"]
    assert [t.get_text() for t in ax.texts if t.get_text() == "empty"] == ["empty"]
    assert sum(t.get_text() == "30 % on" for t in ax.texts) > 3
    assert "Empty masks (under 1 % of the entries are on), whose scores mean little: sVAE." in said(by_method)
    assert "Empty masks" not in said(draw("recovery", None))
    curves = draw_recovery(tables.simulation_scores(("svae", "sams_vae_corr"), (10, 100), seeds=1))
    assert "mean little: sVAE at 10, 100 cells." in said(curves)


def said(fig) -> str:
    """The note above the panels, as one line."""
    return " ".join(fig.get_suptitle().split())


def test_simulation_draws_the_primary_rule_only():
    scores = tables.simulation_scores(cells=(10, 100), seeds=2)
    other = scores["metric"].str.endswith("/correlation")
    same = draw_recovery(scores[~other])
    fig = draw_recovery(scores.assign(value=scores["value"].where(~other, 99.0)))
    for label, ax in panels(fig).items():
        assert ax.get_ylim() == panels(same)[label].get_ylim()


def test_recovery_has_only_the_panels_that_have_values():
    scores = tables.simulation_scores(("cond_vae", "cpa_vae_mf"), seeds=1)
    fig = draw_recovery(scores)
    assert list(panels(fig)) == ["mcc_pearson", "ate_r2", "iwelbo"]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == [style.label(m) for m in ("cond_vae", "cpa_vae_mf")]


def test_simulation_panels_name_units_matching_rule_and_kind_of_mcc():
    curves, by_method = panels(draw("recovery", None)), panels(draw("recovery_bars", None))
    for label, said in {
        "mask_recall/true-positives": "true positives",
        "mcc_pearson": "Pearson",
        "iwelbo": "nats",
    }.items():
        assert said in curves[label].get_ylabel() and said in by_method[label].get_xlabel()


def test_training_curves_limits_are_robust():
    """A first value that is 5,000 above the rest must not flatten the curves; all runs are drawn."""
    histories = tables.histories(seeds=2)
    ax = panels(draw_curves(histories, name="replogle"))["replogle"]
    low, high = ax.get_ylim()
    assert low < histories["val_loss"].min() and high < histories["val_loss"].median() + 400
    assert sum(len(c.get_segments()) for c in ax.collections) == histories["run"].nunique()


def test_training_curves_distinguish_amounts_of_data():
    histories = tables.histories(seeds=2).query("model == 'cond_vae'")
    amount = histories["run"].str[-1].map({"0": "fraction 0", "1": "fraction 1"})
    fig = draw_curves(histories.assign(amount=amount), name="norman_ood")
    ax = panels(fig)["norman_ood"]
    assert ax.get_title(loc="left").startswith("norman_ood")
    (pale, full) = ax.collections[0].get_colors()[:, :3]
    assert (pale > full).all() or (pale.sum() > full.sum() and (pale >= full).all())
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["Conditional VAE", "fraction 0", "fraction 1"]
    assert [t.get_text() for t in draw_curves(histories).legends[0].get_texts()] == ["Conditional VAE"]


def test_training_curves_end_at_the_last_regular_validation():
    """The last step is validated too; right after another validation, its noise would bend the curve."""
    line = np.column_stack([[27.0, 54, 81, 83], [9.0, 8, 7, 8]])
    assert without_short_end(line).tolist() == line[:3].tolist()
    late = np.column_stack([[27.0, 54, 81, 95], [9.0, 8, 7, 8]])  # more than half the usual 27 steps
    assert without_short_end(late).tolist() == late.tolist()
    assert without_short_end(line[2:]).tolist() == line[2:].tolist()  # two points have no usual interval
    history = pd.DataFrame(line, columns=["step", "val_loss"]).assign(run="a", model="cond_vae")
    ax = panels(draw_curves(history, name="x"))["x"]
    assert ax.collections[0].get_segments()[0].tolist() == line[:3].tolist()


def test_training_curves_name_only_models_with_a_visible_line():
    """A run with one validation is a marker; a model far above the others is counted in the note, not in the legend."""
    histories = tables.histories(seeds=1)
    high = histories[histories["model"] == "cond_vae"].head(1).assign(model="vae", run="far", val_loss=1e6, step=2000)
    one = histories[histories["model"] == "cond_vae"].tail(1).assign(model="ivae", run="one")
    fig = draw_curves(pd.concat([histories, high, one], ignore_index=True), name="x")
    named = [t.get_text() for t in fig.legends[0].get_texts()]
    assert "VAE" not in named and "iVAE" in named and len(named) == len(TABLE_1) + 1
    assert "1 run lies above the axis" in fig.get_suptitle().replace("\n", " ")
    assert [line.get_marker() for line in panels(fig)["x"].lines if len(line.get_xdata()) == 1][-1] == "h"


def test_de_colours_and_default_conditions():
    *_, data, model = tables.screen()
    de, _ = tables.de_tables(data, model)
    counts = (de[de["padj"] < 0.05]).groupby("condition").size()
    chosen = strongest(de)
    assert counts[chosen].min() >= counts.drop(chosen).max()
    fig = draw_expression(
        de, data, model, tables.overlap(data.index), conditions=[chosen[0]], names={chosen[0]: "A nice name"}
    )
    ax = panels(fig)[f"scatter {chosen[0]}"]
    assert "A nice name" in ax.get_title(loc="left")
    drawn = {
        tuple(np.round(c.get_facecolor()[0], 3)): len(c.get_offsets()) for c in ax.collections if len(c.get_offsets())
    }
    assert counts[chosen[0]] in drawn.values() and sum(drawn.values()) == data.shape[1]
    with pytest.raises(DataError, match="no condition 'nobody'"):
        draw_expression(de, data, model, tables.overlap(data.index), conditions=["nobody"])


def test_names_of_de_genes_do_not_touch_the_axis_or_the_points():
    *_, data, model = tables.screen()
    data = data.rename(columns={g: f"SYM{i}_ENSG00000{i}" for i, g in enumerate(data.columns)})
    model.columns = data.columns
    de, _ = tables.de_tables(data, model)
    fig = draw_expression(de, data, model, tables.overlap(data.index[:8]))
    fig.canvas.draw()
    found = panels(fig)
    for label, ax in found.items():
        if label.startswith("volcano"):
            left, right = ax.bbox.x0 + 1, ax.bbox.x1 - 1
            named = [t for t in ax.texts if t.get_text().startswith("SYM")]
            assert named and not any("ENSG" in t.get_text() or "…" in t.get_text() for t in named)
            for text in named:
                box = Text.get_window_extent(text)  # its line is not drawn
                assert left < box.x0 and box.x1 < right
                point = ax.transData.transform(text.xy)[0]
                assert box.x1 < point or box.x0 > point
    assert found["overlap"].get_xlabel() == "mean and quartiles over\n8 perturbations"


def test_expression_without_an_overlap_has_no_panel_for_it():
    """A screen may have fewer genes than the smallest number of top genes."""
    *_, data, model = tables.screen()
    de, _ = tables.de_tables(data, model)
    few, all_ = (panels(draw_expression(de, data, model, tables.overlap(data.index).head(n))) for n in (0, 99))
    assert set(all_) - set(few) == {"overlap"} and len(few) == 6


def test_overlap_table_of_agreement():
    rows = [("m", "a", "wilcoxon", "de_overlap20", 0.5), ("m", "a", "t-test", "de_overlap20", 0.1)]
    rows += [("m", "a", "wilcoxon", "de_auprc", 0.7), ("m", "a", "wilcoxon", "de_overlap100", 0.8)]
    table = overlap_table(pd.DataFrame(rows, columns=["model", "condition", "method", "metric", "value"]))
    assert table.to_dict("list") == {"model": ["m"] * 2, "condition": ["a"] * 2, "k": [20, 100], "overlap": [0.5, 0.8]}


def test_conditions_are_sorted_by_the_ceiling(table1):
    *_, data, _ = tables.screen()
    scores = tables.per_condition(data.index)
    fig = draw_scores(table1, per_condition=scores)
    ax = panels(fig)["conditions"]
    best = scores[scores["model"] == "ceiling"].set_index("condition")["value"].sort_values(ascending=False)
    assert [t.get_text() for t in ax.get_xticklabels()] == list(best.index)
    shrunk, ridge, ceiling = (ln.get_ydata() for ln in ax.lines if ln.get_drawstyle() == "steps-mid")
    np.testing.assert_array_equal(ceiling, best)
    theirs = scores[scores["model"] == "shrunk"].set_index("condition")["value"]
    np.testing.assert_array_equal(shrunk, theirs[best.index])
    assert np.isnan(ridge).sum() == 0
    labels = [t.get_text() for legend in fig.findobj(Legend) for t in legend.get_texts()]
    assert f"shrunk training mean (mean {theirs.mean():.2f})" in labels
    assert f"ceiling (mean {best.mean():.2f})" in labels


def test_many_conditions_have_no_names(table1):
    ax = panels(draw_scores(table1, per_condition=tables.per_condition([f"c{i}" for i in range(282)])))["conditions"]
    assert not ax.get_xticklabels() and ax.get_xlabel().startswith("282 conditions, sorted by")


def test_a_baseline_does_not_stretch_the_axis_but_is_named_at_its_edge(table1):
    """The limits span the models; a baseline outside them has an arrow, one inside has a line."""
    base = tables.baselines()
    near, far = panels(draw_scores(table1)), panels(draw_scores(table1, baselines=base))
    for metric in ("test_iwelbo", "ate_pearson"):
        assert far[metric].get_xlim() == near[metric].get_xlim()
    said = [t.get_text() for t in far["test_iwelbo"].texts]
    assert "◂ intercept only (NB)\n−2800.00" in said
    (line,) = [ln for ln in far["ate_pearson"].lines if list(ln.get_xdata()) == [0.5, 0.5]]
    assert line.get_color() == style.look("mean_of_perturbations").colour
    assert "mean of perturbations\n0.500" in [t.get_text() for t in far["ate_pearson"].texts]


def test_scores_that_hardly_differ_have_plain_ticks(table1):
    """Matplotlib would write -0.04 and, over the baselines, -1.7e3."""
    close = table1.assign(test_iwelbo=np.linspace(-1766.24, -1766.20, len(table1)), test_iwelbo_sd=np.nan)
    fig = draw_scores(close, comparable=False)
    fig.canvas.draw()
    ax = panels(fig)["test_iwelbo"]
    assert ax.xaxis.get_offset_text().get_text() == ""
    assert all(t.get_text().startswith("−1766.") for t in ax.get_xticklabels())


def test_scores_say_one_seed_and_name_the_amount_of_data(table1):
    single = table1.assign(n_runs=1)
    said = " ".join(t.get_text() for t in draw_scores(single, amount="fraction 1").texts).replace("\n", " ")
    assert "one seed" in said and "mean ± sd" not in said and "Only runs with fraction 1" in said
    said = " ".join(t.get_text() for t in draw_scores(table1, unit="split seed").texts).replace("\n", " ")
    assert "mean ± sd over 5 split seeds" in said


def test_spread_in_words():
    assert style.spread([1, 1]) == "one seed" and style.spread([5, 5], "data seed") == "mean ± sd over 5 data seeds"
    assert style.spread([3, 5, 5]) == "mean ± sd over 3 to 5 seeds" and style.spread([]) == "one seed"


def test_names_from_the_data_are_not_read_as_mathematics():
    assert style.plain("a$b$c") == r"a\$b\$c" and style.plain("x" * 30, 10) == "x" * 9 + "…"
    mask, embedding, *_ = tables.screen(9)
    names = [f"$gene_{i}$_with_a_rather_long_name" for i in range(9)]
    fig = draw_masks(mask.set_axis(names), embedding.set_axis(names), None, None)
    fig.canvas.draw()
    assert all("…" in t.get_text() for t in panels(fig)["mask probability"].get_yticklabels())


def test_labels_with_dollars_and_line_breaks_are_drawn_as_they_stand(table1):
    """'p$x_{$' is not valid mathematics, so a figure that reads it as such cannot be drawn."""
    names = [f"p$x_{{${i}" for i in range(11)] + ["a\nb\tc\u2028d"]
    mask, embedding, pathway, data, model = tables.screen(12, genes=12)
    pathway = pd.Series(["S$x_{$", ""] * 6, index=names)
    mask, embedding, data, model = (table.set_axis(names) for table in (mask, embedding, data, model))
    data, model = data.set_axis(names, axis=1), model.set_axis(names, axis=1)
    de, model_de = tables.de_tables(data, model)
    pairs = tables.interactions()
    pairs["pair"] = [f"{name}$x_{{$" for name in pairs["pair"]]
    drawn = {
        "scores": plain_scores(table1, data.index),
        "effects": draw_effects(data, model),
        "effects of pathways": draw_effects(data, model, pathway),
        "masks": draw_masks(mask, embedding, None, None),
        "masks of pathways": draw_masks(mask, embedding, pathway, tables.accuracy()),
        "combinations": draw_combinations(tables.norman_summary(), pairs),
        "expression": draw_expression(
            de, data, model, tables.overlap(data.index), conditions=names[9:], model_de=model_de
        ),
    }
    for name, fig in drawn.items():
        fig.canvas.draw()
        shown = "\n".join(t.get_text() for t in texts(fig))
        if "of pathways" in name:
            assert r"S\$x {\$" in shown, name
        elif name != "combinations":  # which names no condition
            assert r"p\$x_{\$" in shown and "a b c d" in shown, name


@pytest.mark.parametrize("rows", [9, 282])
def test_matrices_are_drawn_without_interpolation(rows):
    mask, embedding, _, data, model = tables.screen(rows)
    for fig in (draw_masks(mask, embedding, None, None), draw_effects(data, model)):
        images = [image for ax in panels(fig).values() for image in ax.images]
        assert len(images) == 2 and {image.get_interpolation() for image in images} == {"nearest"}
        assert all(image.get_array().shape[0] == rows for image in images)


def test_names_of_sixty_rows_do_not_overlap():
    mask, embedding, _, data, model = tables.screen(60)
    for fig, label in (
        (draw_masks(mask, embedding, None, None), "mask probability"),
        (draw_effects(data, model), "effects data"),
    ):
        fig.canvas.draw()
        boxes = sorted((t.get_window_extent() for t in panels(fig)[label].get_yticklabels()), key=lambda b: b.y0)
        assert len(boxes) == 60 and all(lower.y1 <= upper.y0 + 1.5 for lower, upper in pairwise(boxes))


def test_masks_say_when_no_latent_is_active():
    mask, embedding, *_ = tables.screen(20)
    fig = draw_masks(mask * 0.4, embedding, None, None)
    ax = panels(fig)["mask probability"]
    assert "no latent is active" in ax.get_title(loc="left") and "none active" in ax.get_xlabel() and not ax.lines
    assert "No latent is active: no mask probability is above 0.5." in fig.get_suptitle()
    active = draw_masks(mask, embedding, None, None)
    assert "No latent" not in active.get_suptitle() and len(panels(active)["mask probability"].lines) == 1


# errors and files


@pytest.mark.parametrize(
    "call",
    [
        lambda e, m: draw_scores(e),
        lambda e, m: build_table(e, e, e),
        lambda e, m: draw_masks(e, e, None, None),
        lambda e, m: draw_masks(m, m, None, e),
        lambda e, m: draw_effects(e, e),
        lambda e, m: draw_effects(m, m.iloc[1:]),
        lambda e, m: draw_effects(m, m.iloc[::-1]),
        lambda e, m: draw_expression(e, m, m, e),
        lambda e, m: draw_combinations(e),
        lambda e, m: draw_combinations(tables.norman_summary(), e),
        lambda e, m: draw_combinations(tables.norman_summary().iloc[:0]),
        lambda e, m: draw_recovery(e),
        lambda e, m: draw_recovery(tables.simulation_scores(seeds=1).iloc[:0]),
        lambda e, m: draw_curves(e),
        lambda e, m: draw_curves(tables.histories(1).assign(val_loss=np.nan)),
        lambda e, m: style.save(style.figure(1, 1), "nowhere/x", {}),
    ],
)
def test_nothing_to_draw_is_a_data_error(call):
    with pytest.raises(DataError):
        call(pd.DataFrame(), pd.DataFrame(np.eye(3), index=list("abc"), columns=list("xyz")))


def test_unknown_model_is_named_with_its_nearest():
    with pytest.raises(DataError, match="Did you mean 'sams_vae_corr'"):
        draw_curves(tables.histories(1).replace("sams_vae_corr", "sams_vae_cor"))


def test_every_row_of_the_zoo_has_a_distinct_look():
    assert set(ROWS) <= set(style.LOOKS)
    looks = [(style.look(m).colour, style.look(m).marker) for m in ROWS]
    assert len(set(looks)) == len(ROWS) == len({style.look(m).label for m in ROWS})
    assert style.models_in(["vae", "sams_vae_corr", "additive", "cond_vae"]) == ["cond_vae", "sams_vae_corr", "vae"]
    assert style.models_in(["vae", "additive"], baselines=True) == ["additive"]


def test_an_absent_table_is_written_without_rows(tmp_path):
    path = style.save(
        style.figure(1, 1), tmp_path / "f", {"gone": None, "names": pd.Series({"a": "x"}, name="pathway")}
    )
    assert path[-2].read_text() == "name\n" and path[-1].read_text() == "name\tpathway\na\tx\n"


@pytest.mark.parametrize("name", ["combinations", "masks"])
def test_two_saves_are_the_same_bytes(name, table1, tmp_path):
    data = {"summary": tables.norman_summary(), "matrix": tables.screen()[0]}
    first = style.save(draw(name, table1), tmp_path / "a" / name, data)
    second = style.save(draw(name, table1), tmp_path / "b" / name, data)
    assert [p.name for p in first] == [f"{name}.{e}" for e in ("png", "pdf", "summary.tsv", "matrix.tsv")]
    assert [p.name for p in first] == sorted(
        [p.name for p in (tmp_path / "a").iterdir()], key=[p.name for p in first].index
    )
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name
    assert b"/CreationDate" not in first[1].read_bytes()


@pytest.mark.parametrize("name", ["effects", "masks"])
def test_positions_are_rounded(name, table1):
    """The solver of the layout follows addresses in memory, so its last digits differ from run to run."""
    fig = draw(name, table1)
    fig.draw_without_rendering()
    parts = [part.bbox_relative.get_points() for part in fig.subfigs]
    places = np.array(parts + [ax.get_position(original=True).get_points() for ax in fig.axes])
    assert len(places) > 5 and not (np.signbit(places) & (places == 0)).any()  # no -0
    np.testing.assert_array_equal(places, np.round(places, 9))


def draw_all(folder, numbers, turn):
    """Save every figure of the registry; ``turn`` changes where its objects lie in memory."""
    scores = tables.replogle_scores()
    rows = build_table(scores, best_settings(scores, ["model"]), published.replogle_table1(numbers))
    sizes = pd.DataFrame({"condition": ["ctrl", "A"], "kind": ["control", "single"], "cells": [9, 5]})
    card = {
        "facts": pd.DataFrame({"item": ["cells"], "value": ["14"]}),
        "conditions": sizes,
        "counts": pd.DataFrame({"low": [1.0, 2.0], "high": [2.0, 3.0], "cells": [4, 10]}),
        "genes": pd.DataFrame({"gene": ["x", "y"], "mean": [0.1, 2.0], "detected": [0.1, 0.8]}),
        "splits": pd.DataFrame({"split": ["train", "test"], "kind": ["single", "single"], "cells": [3, 2]}),
    }
    moved = []
    for row in registry.ROWS:
        moved.append([bytearray(100 + 37 * i) for i in range(turn * 500)])
        fig = draw_data_card(**card) if row.name == "data_card" else draw(row.name, rows)
        style.save(fig, Path(folder) / row.name, {"": sizes})


@pytest.mark.slow
def test_every_figure_has_the_same_bytes_in_two_processes(numbers, tmp_path):
    code = "import sys, test_figures; test_figures.draw_all(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / str(turn), numbers, str(turn)],
            env=os.environ | {"PYTHONHASHSEED": str(turn), "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for turn in (1, 2)
    ]
    assert [process.wait() for process in running] == [0, 0]
    first = sorted((tmp_path / "1").glob("*.p*"))
    assert len(first) == 2 * len(registry.ROWS) > 10
    for path in first:
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes(), path.name


def test_data_is_written_next_to_the_figure(tmp_path):
    matrix = tables.screen()[0]
    fig = style.figure(1, 1)
    path = style.save(fig, tmp_path / "fig.1", {"": matrix})[-1]
    assert path.name == "fig.1.tsv"
    back = pd.read_csv(path, sep="\t", index_col=0)
    assert list(back.index) == list(matrix.index) and np.allclose(back, matrix, rtol=1e-5)
    table = tables.accuracy()
    path = style.save(fig, tmp_path / "fig.2", {"only": table})[-1]
    assert list(pd.read_csv(path, sep="\t")) == list(table)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    fig, data = style.figure(1, 1), {"t": tables.accuracy()}
    png = style.save(fig, tmp_path / "f", data)[0]
    before = png.read_bytes()

    def broken(path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr(fig, "savefig", broken)
    with pytest.raises(OSError, match="no space"):
        style.save(fig, tmp_path / "f", data)
    assert png.read_bytes() == before and len(list(tmp_path.iterdir())) == 3


def test_drawing_leaves_the_callers_settings(table1):
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 23.0}):
        draw("combinations_efficiency", table1)
        assert mpl.rcParams["font.size"] == 23.0


# published numbers


def test_published_replogle(numbers):
    table = published.replogle_table1(numbers)
    assert list(dict.fromkeys(table["model"])) == list(TABLE_1)
    cells = table.set_index(["model", "metric"])
    assert tuple(cells.loc[("sams_vae_corr_z", "mask_pathway_accuracy"), ["mean", "sd"]]) == (0.87, 0.02)
    assert cells.loc[("cpa_vae_corr", "iwelbo"), "mean"] == -1756.57
    assert cells.loc[("sams_vae_mf", "ate_pearson"), "mean"] == 0.302
    assert ("cond_vae", "mask_pathway_accuracy") not in cells.index


@pytest.mark.parametrize(("task", "file"), [("ood", "norman_ood.csv"), ("efficiency", "norman_data_efficiency.csv")])
def test_published_norman(numbers, task, file):
    table = published.norman(numbers, task)
    assert len(table) == 45 * 6 and (table["n"] == 5).all() and not table.duplicated(list(table)[:5]).any()
    # 0 by definition for the reference at fraction 0, which identifies the rows
    zero = table[(table["metric"] == "iwelbo_relative") & (table["fraction"] == 0) & (table["mean"] == 0)]
    assert set(zip(zero["model"], zero["encoding"], strict=True)) == {("sams_vae_corr", "sum")}
    assert set(table.loc[table["model"] == "svae_plus", "encoding"]) == {"unique"}
    with open(numbers / file) as lines:
        rows = [r for r in csv.DictReader(lines) if r["guide"] == "SAMSVAEMeanFieldNormalGuide"]
    wanted = sorted(float(r["test/IWELBO|mean"]) for r in rows if r["encode_unique"] == "False")
    of = table[(table["model"] == "sams_vae_corr_z") & (table["encoding"] == "sum") & (table["metric"] == "iwelbo")]
    assert sorted(of.loc[of["split"] == "test", "mean"]) == wanted


def test_published_errors(tmp_path):
    with pytest.raises(DataError, match=r"replogle_table1\.tsv: no such file"):
        published.replogle_table1(tmp_path)
    with pytest.raises(DataError, match="Did you mean 'efficiency'"):
        published.norman(tmp_path, "eficiency")
    columns = "model\tinference\ttest_iwelbo\tmask_pathway_accuracy\tate_pearson\n"
    (tmp_path / "replogle_table1.tsv").write_text(columns + "SAMS\tcorr. E\t1\t1\t1\n")
    with pytest.raises(DataError, match="is no row of the zoo"):
        published.replogle_table1(tmp_path)


def test_the_scores_say_how_deep_cells_are_and_which_fits_are_unsound():
    rows = [
        ("sams_vae_corr", "a", "levelled_off", 0.0), ("sams_vae_corr", "b", "levelled_off", 1.0),
        ("cond_vae", "c", "levelled_off", 1.0), ("cond_vae", "c", "gain_over_intercept_only", -0.5),
        ("cond_vae", "c", "ate_library", 186.0), ("sams_vae_corr", "a", "ate_library", 186.0),
    ]  # fmt: skip
    text = score_table.fit_sentences(pd.DataFrame(rows, columns=["model", "run", "metric", "value"]))
    assert text == (
        "Sampled cells have 186 counts. The validation loss had not levelled off (train longer): "
        f"{style.label('sams_vae_corr')} (1 of 2 runs). No better than an intercept-only model: "
        f"{style.label('cond_vae')} (1 of 1 runs)."
    )

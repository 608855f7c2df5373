"""Figures: what is on them, in which order, legible, from which data; and the papers' numbers beside them."""

import csv
from itertools import pairwise

import figure_tables as tables
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from samsvae.figures.own_screen import draw as draw_own_screen

from samsvae.config.zoo import ROWS, TABLE_1
from samsvae.errors import DataError
from samsvae.evaluation.metrics.selection import best_settings
from samsvae.figures import heatmaps, published, style
from samsvae.figures.combinations import draw as draw_combinations
from samsvae.figures.curves import draw as draw_curves
from samsvae.figures.effects import draw as draw_effects
from samsvae.figures.expression import draw as draw_expression
from samsvae.figures.expression import overlap_table, strongest
from samsvae.figures.masks import draw as draw_masks
from samsvae.figures.masks import latent_order
from samsvae.figures.recovery import DENSITY
from samsvae.figures.recovery import draw as draw_recovery
from samsvae.figures.scores import build_replogle_table1, settings_text
from samsvae.figures.scores import draw as draw_scores

SIMULATED = (*TABLE_1, "vae", "beta_vae", "ivae", "svae", "svae_plus_lopez")


@pytest.fixture(scope="module")
def numbers(root, request):
    """The folder of published numbers: tracked, or else beside the checkout."""
    tracked = root / "resources" / "published"
    return tracked if tracked.is_dir() else request.getfixturevalue("shared") / "data" / "published"


@pytest.fixture(scope="module")
def table1(numbers):
    scores = tables.replogle_scores()
    return build_replogle_table1(scores, best_settings(scores, ["model"]), published.replogle_table1(numbers))


def draw(name, table1):
    """One of the figures, at the demo's size."""
    mask, embedding, pathway, data, model = tables.screen()
    de, model_de = tables.de_tables(data.iloc[:8], model.iloc[:8])
    drawings = {
        "replogle_table1": lambda: draw_scores(table1),
        "replogle_table1_miniature": lambda: draw_scores(table1, comparable=False),
        "replogle_masks": lambda: draw_masks(mask, embedding, pathway, tables.accuracy()),
        "replogle_masks_plain": lambda: draw_masks(mask, embedding, None, None),
        "replogle_effects": lambda: draw_effects(data, model, pathway, name="SAMS-VAE"),
        "replogle_de": lambda: draw_expression(de, data, model, tables.overlap(data.index), model_de=model_de),
        "norman_ood": lambda: draw_combinations(tables.norman_summary(), tables.interactions()),
        "norman_efficiency": lambda: draw_combinations(tables.norman_summary((0, 1)), task="efficiency"),
        "simulation_recovery": lambda: draw_recovery(
            tables.simulation_scores(seeds=2), tables.simulation_scores(SIMULATED, (500,), seeds=2)
        ),
        "training_curves": lambda: draw_curves(tables.histories(seeds=1)),
        "custom": lambda: draw_own_screen(
            tables.custom_scores(),
            data,
            model,
            tables.per_condition(data.index, TABLE_1),
            mask_probability=mask,
            pathway=pathway,
        ),
        "custom_plain": lambda: draw_own_screen(tables.custom_scores(), data, model, tables.per_condition(data.index)),
    }
    return drawings[name]()


NAMES = {  # figure: number of panels (colour bars and pathway strips left out)
    "replogle_table1": 15,
    "replogle_table1_miniature": 12,
    "replogle_masks": 3,
    "replogle_masks_plain": 2,
    "replogle_effects": 4,
    "replogle_de": 7,
    "norman_ood": 6,
    "norman_efficiency": 2,
    "simulation_recovery": 12,
    "training_curves": 5,
    "custom": 5,
    "custom_plain": 4,
}


def panels(fig):
    """Panels by label, without colour bars and the pathway strip."""
    return {a.get_label(): a for a in fig.axes if a.get_label() not in ("<colorbar>", "pathways")}


def texts(fig):
    return [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()]


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_is_there_named_filled_and_legible(name, table1, monkeypatch):
    fig = draw(name, table1)
    found = panels(fig)
    assert len(found) == NAMES[name]
    for label, ax in found.items():
        assert not label.startswith("_child"), "every panel says what it is"
        assert ax.has_data() or ax.texts, f"{label} is empty"
    if not name.startswith("replogle_table1"):  # a table has column heads instead
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


def test_clustering_puts_like_rows_together():
    a, b = np.array([0.0, 0, 1]), np.array([5.0, 5, 5])
    order = heatmaps.cluster(np.stack([a, b, a + 0.1, b + 0.1, a + 0.2]))
    kinds = [i in (1, 3) for i in order]
    assert sorted(order) == [0, 1, 2, 3, 4] and sum(x != y for x, y in pairwise(kinds)) == 1


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
    # the same permutation leads from either matrix to its picture
    flat = np.argsort(data.to_numpy().ravel())
    drawn = np.argsort(np.asarray(left.get_array()).ravel())
    assert np.array_equal(np.asarray(right.get_array()).ravel()[drawn], model.to_numpy().ravel()[flat])


def test_effects_say_how_many_perturbations_each_panel_shows():
    *_, pathway, data, model = tables.screen(unannotated=5)
    found = panels(draw_effects(data, model, pathway))
    assert found["effects data"].get_xlabel() == "45 with a pathway × 120 genes"
    assert "all 50 perturbations" in found["agreement"].get_title(loc="left")
    assert "50 perturbations (median" in found["per perturbation"].get_title(loc="left")


def test_agreement_prints_pearson():
    *_, data, model = tables.screen()
    fig = draw_effects(data, model)
    r = np.corrcoef(data.to_numpy().ravel(), model.to_numpy().ravel())[0, 1]
    assert f"r = {r:.3f}" in [t.get_text() for t in panels(fig)["agreement"].texts]
    each = [np.corrcoef(data.loc[c], model.loc[c])[0, 1] for c in data.index]
    assert np.allclose(heatmaps.correlations(data, model), each)
    assert heatmaps.correlations(data, model * 0).isna().all()


# the table of Replogle


def test_table1_is_made_from_the_chosen_runs(table1, numbers):
    assert list(table1["model"]) == list(TABLE_1)
    scores = tables.replogle_scores()
    row = table1.set_index("model").loc["sams_vae_corr"]
    assert row["settings"] == "α = 0.01, 100 latents" and row["n_runs"] == 5  # made to be the better of the two
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
    table = build_replogle_table1(scores, best_settings(scores, ["model"]), published.replogle_table1(numbers))
    assert table["inside_seed_interval_test_iwelbo"].isna().all() and table["test_iwelbo_sd"].isna().all()
    draw_scores(table)


def test_table1_has_no_difference_where_nothing_may_be_compared(table1, numbers):
    scores = tables.replogle_scores()
    best, theirs = best_settings(scores, ["model"]), published.replogle_table1(numbers)
    table = build_replogle_table1(scores, best, theirs, comparable=False)
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
    labels = [t.get_text() for legend in fig.findobj(type(fig.legends[0])) for t in legend.get_texts()]
    assert {"additive", "mean of perturbations", "published"} <= set(labels)
    shown = draw_combinations(summary, encoding="unique")
    assert len(panels(shown)["ate_pearson"].patches) == 10  # CPA-VAE and SVAE+ have that encoding


def test_norman_interaction_correlations():
    pairs = tables.interactions()
    fig = draw_combinations(tables.norman_summary(), pairs)
    of = pairs[pairs["model"] == "cpa_vae_corr"]
    r = np.corrcoef(of["observed"], of["predicted"])[0, 1]
    assert f"r = {r:.3f}" in [t.get_text() for t in panels(fig)["interaction cpa_vae_corr"].texts]


def test_norman_interactions_say_whether_their_pairs_were_in_training():
    pairs = tables.interactions().replace({"fraction": {1.0: 0.75}})
    pairs.loc[pairs["model"] == "cond_vae", "seen"] = False
    pairs.loc[pairs["model"] == "svae_plus", "seen"] = pairs["pair"].isin(["p0", "p1"])
    found = panels(draw_combinations(tables.norman_summary(), pairs))
    said = {
        model: found[f"interaction {model}"].get_title(loc="left").split("\n")[1] for model in pairs["model"].unique()
    }
    assert said["cond_vae"] == "fraction 0.75: no pair seen"
    assert said["sams_vae_corr"] == "fraction 0.75: all pairs seen"
    assert said["svae_plus"] == "fraction 0.75: 2 of 33 pairs seen"


def test_norman_marks_the_reference_whose_bar_has_no_height():
    summary = tables.norman_summary()
    at = (summary["model"] == "sams_vae_corr") & (summary["fraction"] == 0) & (summary["metric"] == "iwelbo_relative")
    summary.loc[at, ["mean", "sd"]] = 0.0
    ax = panels(draw_combinations(summary))["iwelbo_relative"]
    marks = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert len(marks) == 1 and marks[0].get_color() == style.look("sams_vae_corr").colour
    (bar,) = [bar for bar in ax.patches if bar.get_height() == 0]
    assert marks[0].get_xdata()[0] == pytest.approx(bar.get_x() + bar.get_width() / 2)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"custom_plain", "replogle_masks_plain"}))
def test_every_figure_says_which_protocol_it_follows(name, table1):
    said = " ".join(t.get_text() for t in texts(draw(name, table1))).lower()
    kind = "held-out protocol" if name == "custom" else "published protocol"
    assert kind in said or (name == "training_curves" and "protocol" in said)


def test_mask_of_ones_line():
    """Of masks drawn as in simulation.md; the line is the F1 that all ones has there."""
    rng = np.random.default_rng(0)
    svae = np.zeros((20000, 15), bool)
    for row in svae:
        row[rng.integers(15, size=rng.integers(1, 4))] = True
    assert DENSITY["svae"] == pytest.approx(svae.mean(), abs=2e-3)
    fig = draw("simulation_recovery", None)
    ax = panels(fig)["sams mask_f1/true-positives"]
    lines = [line.get_ydata()[0] for line in ax.lines if line.get_color() == style.INK]
    assert lines == [pytest.approx(2 * (2 / 15) / (2 / 15 + 1))]


def test_simulation_draws_the_primary_rule_only():
    sams = tables.simulation_scores(cells=(10, 100), seeds=2)
    other = sams["metric"].str.endswith("/correlation")
    same = draw_recovery(sams[~other], sams[~other])
    fig = draw_recovery(sams.assign(value=sams["value"].where(~other, 99.0)), sams)
    for label, ax in panels(fig).items():
        assert ax.get_ylim() == panels(same)[label].get_ylim()


def test_simulation_panels_name_units_matching_rule_and_kind_of_mcc():
    found = panels(draw("simulation_recovery", None))
    for label, said in {
        "mask_recall/true-positives": "true positives",
        "mcc_pearson": "Pearson",
        "iwelbo": "nats",
    }.items():
        assert said in found[f"sams {label}"].get_ylabel() and said in found[f"svae {label}"].get_xlabel()


def test_training_curves_limits_are_robust():
    """A first value of 5,000 above the rest must not flatten the curves; all runs are drawn."""
    histories = tables.histories(seeds=2)
    fig = draw_curves(histories)
    ax = panels(fig)["replogle"]
    part = histories[histories["experiment"] == "replogle"]
    low, high = ax.get_ylim()
    assert low < part["val_loss"].min() and high < part["val_loss"].median() + 400
    assert sum(len(c.get_segments()) for c in ax.collections) == part["run"].nunique()


def test_training_curves_tell_amounts_of_data_apart():
    histories = tables.histories(seeds=2).query("model == 'cond_vae' and experiment == 'norman_ood'")
    amount = histories["run"].str[-1].map({"0": "fraction 0", "1": "fraction 1"})
    ax = panels(draw_curves(histories.assign(amount=amount)))["norman_ood"]
    assert ax.get_title(loc="left").startswith("norman_ood")
    (pale, full) = ax.collections[0].get_colors()[:, :3]
    assert (pale > full).all() or (pale.sum() > full.sum() and (pale >= full).all())
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["fraction 0", "fraction 1"]
    assert panels(draw_curves(histories))["norman_ood"].get_legend() is None


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


def test_de_names_of_genes_stay_clear_of_the_axis_and_of_the_points():
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
                box = Text.get_window_extent(text)  # without its line
                assert left < box.x0 and box.x1 < right
                point = ax.transData.transform(text.xy)[0]
                assert box.x1 < point or box.x0 > point
    assert found["overlap"].get_xlabel() == "mean and quartiles over\n8 perturbations"


def test_overlap_table_of_agreement():
    rows = [("m", "a", "wilcoxon", "de_overlap20", 0.5), ("m", "a", "t-test", "de_overlap20", 0.1)]
    rows += [("m", "a", "wilcoxon", "de_auprc", 0.7), ("m", "a", "wilcoxon", "de_overlap100", 0.8)]
    table = overlap_table(pd.DataFrame(rows, columns=["model", "condition", "method", "metric", "value"]))
    assert table.to_dict("list") == {"model": ["m"] * 2, "condition": ["a"] * 2, "k": [20, 100], "overlap": [0.5, 0.8]}


def test_custom_sorts_perturbations_by_the_best_model():
    *_, data, model = tables.screen()
    scores = tables.per_condition(data.index)
    ax = panels(draw_own_screen(tables.custom_scores(), data, model, scores))["conditions"]
    means = scores[scores["model"] != "mean_of_perturbations"].groupby("model")["value"].mean()
    best = scores[scores["model"] == means.idxmax()].set_index("condition")["value"]
    shown = [t.get_text() for t in ax.get_xticklabels()]
    assert shown == list(best.sort_values(ascending=False).index)


def test_custom_masks_stand_in_the_order_of_the_effects_beside_them_and_say_whose_they_are():
    mask, _, _, data, model = tables.screen(20)
    scores = tables.per_condition(data.index)

    def names(mask, **more):
        found = panels(draw_own_screen(tables.custom_scores(), data, model, scores, mask_probability=mask, **more))
        ax = found["mask probability"]
        shown = [t.get_text() for t in ax.get_yticklabels()]
        latents, _ = latent_order(mask)
        assert np.allclose(ax.images[0].get_array(), mask.loc[shown, latents])  # a row is what its name says
        return ax, shown, [t.get_text() for t in found["effects data"].get_yticklabels()]

    ax, shown, beside = names(mask.iloc[::-1], mask_name="SVAE+")
    assert shown == beside and ax.get_title(loc="left").endswith("SVAE+")
    _, shown, beside = names(mask.iloc[3:9])  # combinations have effects, but no row of a mask
    assert shown == [row for row in beside if row in mask.index[3:9]]
    _, shown, beside = names(mask.rename(index={mask.index[0]: "other"}))
    assert sorted(shown) == sorted(["other", *mask.index[1:]])


# errors and files


@pytest.mark.parametrize(
    "call",
    [
        lambda e, m: draw_scores(e),
        lambda e, m: build_replogle_table1(e, e, e),
        lambda e, m: draw_masks(e, e, None, None),
        lambda e, m: draw_masks(m, m, None, e),
        lambda e, m: draw_effects(e, e),
        lambda e, m: draw_effects(m, m.iloc[1:]),
        lambda e, m: draw_effects(m, m.iloc[::-1]),
        lambda e, m: draw_expression(e, m, m, e),
        lambda e, m: draw_combinations(e),
        lambda e, m: draw_combinations(tables.norman_summary(), e),
        lambda e, m: draw_combinations(tables.norman_summary(), task="cat"),
        lambda e, m: draw_combinations(tables.norman_summary().iloc[:0]),
        lambda e, m: draw_recovery(e, e),
        lambda e, m: draw_recovery(tables.simulation_scores(seeds=1).iloc[:0], e),
        lambda e, m: draw_curves(e),
        lambda e, m: draw_curves(tables.histories(1).assign(val_loss=np.nan)),
        lambda e, m: draw_own_screen(e, m, m, e),
        lambda e, m: style.save(style.figure(1, 1), "nowhere/x", {}),
    ],
)
def test_nothing_to_draw_is_a_data_error(call):
    with pytest.raises(DataError):
        call(pd.DataFrame(), pd.DataFrame(np.eye(3), index=list("abc"), columns=list("xyz")))


def test_unknown_model_is_named_with_its_nearest():
    with pytest.raises(DataError, match="Did you mean 'sams_vae_corr'"):
        draw_curves(tables.histories(1).replace("sams_vae_corr", "sams_vae_cor"))


def test_every_row_of_the_zoo_has_a_look_of_its_own():
    assert set(ROWS) <= set(style.LOOKS)
    looks = [(style.look(m).colour, style.look(m).marker) for m in ROWS]
    assert len(set(looks)) == len(ROWS) == len({style.look(m).label for m in ROWS})
    assert style.models_in(["vae", "sams_vae_corr", "additive", "cond_vae"]) == ["cond_vae", "sams_vae_corr", "vae"]
    assert style.models_in(["vae", "additive"], baselines=True) == ["additive"]


@pytest.mark.parametrize("name", ["norman_ood", "replogle_masks"])
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


def test_data_is_written_beside_the_figure(tmp_path):
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
        draw("norman_efficiency", table1)
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
    # by definition 0 at fraction 0 for the reference, which settles which row is which
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
    with pytest.raises(DataError, match="no row of ours"):
        published.replogle_table1(tmp_path)

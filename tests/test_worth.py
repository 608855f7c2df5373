"""Verdicts of the honest protocol: comparisons with baselines, the tables of an experiment, and their figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from samsvae.errors import DataError
from samsvae.evaluation.metrics.constants import LEVELS
from samsvae.evaluation.score_tables import CONDITIONS, SCORES
from samsvae.evaluation.worth import HEADLINE, VERDICT, collect_worth, compare
from samsvae.figures.worth import draw, tables
from samsvae.tables import read, write

NAMES = [f"c{i}" for i in range(8)]
NOISE = np.array([0.02, -0.02, 0.01, -0.01, 0.02, -0.02, 0.01, -0.01])  # its mean is 0
MODEL, OTHER = "sams_vae_corr", "cond_vae"


def rows(values, *, metric: str = "pearson_centred", where: str = "seen", weight=1.0, **more) -> pd.DataFrame:
    """Scores by condition, of the conditions c0, c1 and so on."""
    values = np.atleast_1d(np.asarray(values, float))
    return pd.DataFrame(
        {"metric": metric, "set": where, "condition": NAMES[: len(values)], "value": values, "weight": weight, **more}
    )


def baselines(**values) -> pd.DataFrame:
    return pd.concat([rows(value, model=model) for model, value in values.items()], ignore_index=True)


def full(value: float) -> np.ndarray:
    return np.full(8, value)


# ---- compare


@pytest.mark.parametrize(
    ("ours", "against", "verdict"),
    [
        (full(0.5) + NOISE, "shrunk", "better than every baseline"),
        (full(0.3) + NOISE, "shrunk", "below shrunk"),
        (full(0.4) + NOISE, "shrunk", "not distinguishable from shrunk"),
        (full(0.4), "shrunk", "not distinguishable from shrunk"),  # no difference at all
    ],
)
def test_verdicts(ours, against, verdict):
    found = compare("pearson_centred", rows(ours), baselines(no_change=full(0), shrunk=full(0.4)))
    assert (found["against"], found["verdict"]) == (against, verdict)
    difference = ours - 0.4
    assert found["difference"] == pytest.approx(difference.mean())
    drawn = difference[np.random.default_rng(0).integers(0, 8, (1000, 8))].mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert (found["difference_low"], found["difference_high"]) == (pytest.approx(low), pytest.approx(high))


def test_a_verdict_holds_for_every_baseline_and_not_only_for_the_closest():
    wide = np.tile([1.0, -1.0], 4)
    ours = full(0.5)
    # ridge_pc is surely better by a little; train_mean is better by more on average, with a wide interval
    found = compare("pearson_centred", rows(ours), baselines(train_mean=ours + 0.1 + wide, ridge_pc=ours + 0.05))
    assert (found["against"], found["verdict"]) == ("ridge_pc", "below ridge_pc")
    # the smallest difference is a sure one, but the larger one may be 0
    found = compare("pearson_centred", rows(ours), baselines(train_mean=ours - 0.2 + wide, ridge_pc=ours - 0.1))
    assert (found["against"], found["verdict"]) == ("train_mean", "not distinguishable from train_mean")


def test_undecided_with_fewer_than_three_common_conditions():
    gaps = np.r_[0.4, 0.4, np.full(6, np.nan)]
    for theirs in (baselines(shrunk=gaps), baselines(shrunk=[0.4, 0.4]), baselines(shrunk=full(0.4)).iloc[:0]):
        found = compare("pearson_centred", rows(full(0.5)), theirs)
        assert found == {"against": "", "verdict": "undecided: no interval of a difference is defined"}
    # a baseline that is silent does not hide the others
    found = compare("pearson_centred", rows(full(0.5)), baselines(additive=gaps, shrunk=full(0.4)))
    assert found["against"] == "shrunk" and found["verdict"] == "better than every baseline"


def test_the_error_is_a_ratio_of_sums_and_lower_is_better():
    weight = np.array([10, 1, 1, 1, 1, 1, 1, 1.0])
    ours, theirs = 0.3 * weight, 0.8 * weight
    ours[0] = 4.0
    found = compare("nmse_centred", rows(ours, metric="nmse_centred", weight=weight), baselines(shrunk=theirs))
    assert found["difference"] == pytest.approx((theirs - ours).sum() / weight.sum())
    assert found["difference"] > 0 and found["verdict"] == "better than every baseline"
    found = compare("nmse_centred", rows(theirs, metric="nmse_centred", weight=weight), baselines(shrunk=ours))
    assert found["difference"] < 0 and found["verdict"] == "below shrunk"


def test_runs_are_averaged_by_condition():
    twice = pd.concat([rows(full(0.3)), rows(full(0.7))])
    assert compare("pearson_centred", twice, baselines(shrunk=full(0.4)))["difference"] == pytest.approx(0.1)


# ---- the tables of an experiment


def scored(value: float, *, metric: str = "pearson_centred", where: str = "seen", reason: str = "", **more):
    values = ("honest", metric, where, value, value - 0.1, value + 0.1, 8, reason)
    return pd.DataFrame([dict(zip(SCORES, values, strict=True)) | more])


class Folder:
    """Files of runs and splits as the workflow writes them."""

    def __init__(self, path: Path):
        self.path, self.grid, self.files = path, [], [[], [], [], []]

    def add(self, number: int, name: str, table: pd.DataFrame) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(table, path)
        self.files[number].append(str(path))

    def run(self, run: str, split: str, scores: pd.DataFrame, conditions: pd.DataFrame, model: str = MODEL) -> None:
        self.grid.append({"run": run, "model": model, "dataset": "d", "split_name": split, "seed": 0})
        self.add(0, f"runs/{run}/worth.tsv", scores.assign(run=run))
        self.add(1, f"runs/{run}/worth_conditions.tsv", conditions.assign(run=run))

    def split(
        self, split: str, scores: pd.DataFrame, conditions: pd.DataFrame, drf: float = 0.5, bds: float = 0.9
    ) -> None:
        self.add(2, f"splits/d/{split}/worth.tsv", scores.assign(drf=drf, bds=bds))
        self.add(3, f"splits/d/{split}/worth_conditions.tsv", conditions)

    def collect(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return collect_worth(pd.DataFrame(self.grid), *self.files)


@pytest.fixture
def folder(tmp_path) -> Folder:
    """Three runs: two of one split and one of another, whose baselines are much better and much worse."""
    found = Folder(tmp_path)
    covered = [scored(0.8, metric=f"coverage{level}", where="all") for level in LEVELS]
    found.run("r1", "s1", pd.concat([scored(0.5), *covered]), rows(full(0.5) + NOISE))
    found.run("r2", "s1", scored(0.3), rows(full(0.3) + NOISE), OTHER)
    found.run("r3", "s2", scored(0.5), rows(full(0.5) + NOISE))
    for split, value in (("s1", 0.4), ("s2", 0.9)):
        both = [scored(value, model="shrunk"), scored(0.95, model="ceiling")]
        each = [rows(full(value), model="shrunk"), rows(full(0.95), model="ceiling")]
        found.split(split, pd.concat(both), pd.concat(each))
    return found


def test_every_run_is_compared_with_the_baselines_of_its_own_split(folder):
    worth, conditions = folder.collect()
    assert list(worth.columns) == [*SCORES, "run", "model", "dataset", "split_name", *VERDICT, "drf", "bds"]
    headline = worth[worth["metric"] == "pearson_centred"].set_index("run")
    assert headline.loc[["r1", "r2", "r3"], "verdict"].tolist() == [
        "better than every baseline", "below shrunk", "below shrunk",
    ]  # fmt: skip
    assert headline.loc[["r1", "r2", "r3"], "difference"].tolist() == pytest.approx([0.1, -0.1, -0.4])
    # nothing is compared with the ceiling, and rows without scores by condition have no verdict
    assert set(headline["against"].dropna()) == {"shrunk"}
    assert worth.loc[worth["metric"].str.startswith("coverage") | worth["model"].isin(["shrunk", "ceiling"]),
                     list(VERDICT)].isna().all(axis=None)  # fmt: skip
    assert headline.loc["shrunk", "split_name"].tolist() == ["s1", "s2"]
    assert set(conditions.columns) == {*CONDITIONS, "run", "model", "dataset", "split_name"}
    assert len(conditions) == 7 * 8 and worth["run"].notna().all()


def test_scores_by_different_rules_are_not_compared(tmp_path):
    same = Folder(tmp_path / "same")
    same.run("r1", "s1", scored(0.5, rules="a"), rows(full(0.5)))
    same.split("s1", scored(0.4, model="shrunk", rules="a"), rows(full(0.4), model="shrunk"))
    assert set(same.collect()[0]["rules"]) == {"a"}
    same.add(2, "splits/d/s2/worth.tsv", scored(0.4, model="ridge_pc", rules="b"))
    with pytest.raises(DataError, match=r"'r1' and 'ridge_pc' were made by different rules \(a and b\)"):
        same.collect()


def test_a_run_without_baselines_of_its_split_is_undecided(folder):
    folder.run("r4", "s3", scored(0.5), rows(full(0.5)))
    worth, _ = folder.collect()
    (verdict,) = worth.loc[worth["run"] == "r4", "verdict"]
    assert verdict == "undecided: no interval of a difference is defined"


def nothing(**more) -> tuple[pd.DataFrame, pd.DataFrame]:
    reason = "fewer than 3 conditions have 10 test cells."
    return scored(np.nan, metric="", where="", reason=reason, **more), rows([]).assign(**dict.fromkeys(more, ""))


def test_the_reason_of_an_undefined_split_survives(tmp_path):
    folder = Folder(tmp_path)
    folder.run("r1", "s1", *nothing())
    folder.split("s1", *nothing(model="ceiling"))
    worth, conditions = folder.collect()
    assert len(worth) == 2 and not len(conditions) and worth["reason"].str.startswith("fewer than 3").all()
    assert worth["value"].isna().all() and worth["verdict"].isna().all()


# ---- the figure


def everything(metric_values: dict[str, tuple[float, float, float, float]]) -> tuple[pd.DataFrame, ...]:
    """Tables of draw from values of a model, the mean baseline, shrunk and the ceiling by metric."""
    models = (MODEL, "mean_of_perturbations", "shrunk", "ceiling")
    scores = pd.concat(
        [scored(v, metric=m, model=who) for m, vs in metric_values.items() for who, v in zip(models, vs, strict=True)]
    )
    conditions = pd.concat([rows(v + NOISE, model=who) for who, v in zip(models, (0.4, 0.0, 0.3, 0.8), strict=True)])
    verdicts = pd.DataFrame(
        {"model": MODEL, "metric": list(metric_values), "set": "seen", "verdict": "not distinguishable from ridge_pc",
         "against": "ridge_pc"}
    )  # fmt: skip
    coverage = pd.DataFrame(
        [
            {"model": who, "run": who, "metric": f"{name}{level}", "set": "seen", "value": level - 0.05}
            for who in (MODEL, "train_mean")
            for name in ("coverage", "coverage_top")
            for level in LEVELS
        ]
    )
    return scores, conditions, verdicts, coverage


VALUES = {
    "nmse_centred": (0.4, 1.0, 0.5, 0.0),
    "pearson_centred": (0.4, 0.0, 0.3, 0.8),
    "discrimination": (0.8, 0.5, 0.7, 1.0),
    "energy_share": (0.3, 1.1, 0.9, 0.0),
}


def axes_of(fig: Figure) -> dict[str, object]:
    fig.canvas.draw()
    return {ax.get_label(): ax for ax in fig.axes}


def words(fig: Figure) -> str:
    return " ".join(fig.get_suptitle().split())


def test_the_figure_has_a_line_for_each_metric_and_its_values():
    fig = draw(*everything(VALUES), models=[MODEL])
    axes = axes_of(fig)
    assert set(axes) == {*(f"{name} seen" for name in HEADLINE), "conditions", "coverage"}
    for name, (model, *_, ceiling) in VALUES.items():
        ax = axes[f"{name} seen"]
        assert model in [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
        (band,) = ax.patches
        assert {band.get_x(), band.get_x() + band.get_width()} == {VALUES[name][1], ceiling}
        assert len(ax.get_yticklabels()) == 3  # the model and two baselines
    points = axes["conditions"].lines[0]
    np.testing.assert_allclose(points.get_xdata(), 0.8 + NOISE)
    np.testing.assert_allclose(points.get_ydata(), 0.4 + NOISE)
    assert len(axes["coverage"].lines) == 3  # the diagonal, the model and its yardstick
    assert "not distinguishable from ridge on components" in words(fig)


def test_no_change_is_a_baseline_of_cells_and_a_prediction_of_effects_has_no_line_for_them():
    table, *others = everything(VALUES)
    table = pd.concat([table, *(scored(1.0, metric=name, model="no_change") for name in VALUES)])
    labels = {name: [text.get_text() for text in ax.get_yticklabels()] for name, ax in
              axes_of(draw(table, *others, models=[MODEL])).items()}  # fmt: skip
    assert "no change" in labels["energy_share seen"] and "no change" not in labels["nmse_centred seen"]
    effects = table[~((table["model"] == MODEL) & (table["metric"] == "energy_share"))]
    assert "energy_share seen" not in axes_of(draw(effects, *others, models=[MODEL]))


def test_a_metric_without_a_better_direction_has_no_verdict(folder):
    folder.run("r5", "s1", scored(0.1, metric="variance_ratio"), rows(full(0.1), metric="variance_ratio"))
    worth = folder.collect()[0].set_index("run")
    assert worth.loc[["r5"], ["against", "difference", "verdict"]].isna().all(axis=None)


def test_a_technical_duplicate_is_no_baseline(folder):
    folder.run("r6", "s4", scored(0.5, metric="auprc"), rows(full(0.5) + NOISE, metric="auprc"))
    names = {"no_change": 0.1, "technical_duplicate": 0.9}
    split = [scored(value, metric="auprc", model=name) for name, value in names.items()]
    each = [rows(full(value), metric="auprc", model=name) for name, value in names.items()]
    folder.split("s4", pd.concat(split), pd.concat(each))
    worth = folder.collect()[0].set_index("run")
    assert worth.loc["r6", "verdict"] == "better than every baseline"


def test_a_model_without_intervals_has_no_curve():
    scores, conditions, verdicts, coverage = everything(VALUES)
    coverage.loc[coverage["model"] == MODEL, "value"] = np.nan
    lines = axes_of(draw(scores, conditions, verdicts, coverage, models=[MODEL]))["coverage"].lines[1:]
    assert [np.isfinite(line.get_ydata().astype(float)).all() for line in lines if len(line.get_ydata())].count(
        True
    ) == 1
    none = axes_of(draw(scores, conditions, verdicts, coverage.iloc[:0], models=[MODEL]))["coverage"]
    assert len(none.lines) == 1


def test_a_reason_is_printed_instead_of_panels():
    empty = [table.iloc[:0] for table in everything(VALUES)]
    fig = draw(*empty, models=[MODEL], reason="fewer than 3 conditions have 10 test cells.")
    assert "no effect is scored, because fewer than 3 conditions have 10 test cells." in words(fig)
    assert list(axes_of(fig)) == ["nothing to score"]
    assert "no score is defined" in words(draw(*empty, models=[MODEL]))


def saved(folder: Folder) -> dict[str, str]:
    """Files of the experiment: its scores on validation data, and both tables of the honest protocol."""
    paths = {name: str(folder.path / f"{name}.tsv") for name in ("scores", "worth", "conditions")}
    for name, table in zip(("worth", "conditions"), folder.collect(), strict=True):
        write(table, paths[name])
    score = {"method": "M", "protocol": "published", "metric": "iwelbo", "split": "val", "value": -1.0}
    write(pd.DataFrame([{**row, **score} for row in folder.grid]), paths["scores"])
    return paths


def test_tables_of_the_figure(folder):
    found = tables(**saved(folder), compared={})
    assert found["models"] == [OTHER, MODEL] and found["reason"] == "" and found["amount"] == ""
    values = found["scores"].set_index("model")["value"]
    assert values[MODEL] == pytest.approx(0.5) and values["shrunk"] == pytest.approx((0.4 + 0.9) / 2)
    verdicts = found["verdicts"].set_index("model")
    assert set(verdicts["metric"]) <= set(HEADLINE)
    # over both splits the model has 0.5, the baseline 0.65
    assert verdicts.loc[MODEL, "verdict"] == "below shrunk"
    assert verdicts.loc[MODEL, "difference"] == pytest.approx(-0.15)
    assert len(found["coverage"]) == 3
    axes_of(draw(**found))


def test_tables_of_the_figure_restricted_to_one_split(folder):
    paths = saved(folder)
    scores = read(paths["scores"])
    write(scores[scores["run"] != "r3"], paths["scores"])
    found = tables(**paths, compared={})
    assert found["scores"].set_index("model")["value"]["shrunk"] == pytest.approx(0.4)
    assert found["verdicts"].set_index("model").loc[MODEL, "verdict"] == "better than every baseline"


def test_the_fraction_of_the_range_from_the_mean_effect_to_the_ceiling(folder):
    """The mean effect scores 0.1 and the ceiling is 0.95 in both splits; the model has 0.5, the baseline 0.65."""
    for name, value in (("s1", 0.4), ("s2", 0.9)):
        values = {"mean_of_perturbations": 0.1, "ceiling": 0.95, "shrunk": value}
        both = pd.concat([scored(v, model=model) for model, v in values.items()])
        folder.split(name, both, rows(full(value), model="shrunk"))
    found = tables(**saved(folder), compared={})["scores"].set_index("model")["fraction_of_range"]
    assert found[MODEL] == pytest.approx(0.4 / 0.85) and found["shrunk"] == pytest.approx(0.55 / 0.85)
    assert found["mean_of_perturbations"] == 0 and found["ceiling"] == 1


def test_tables_of_the_figure_with_a_reason(tmp_path):
    folder = Folder(tmp_path)
    folder.run("r1", "s1", *nothing())
    folder.split("s1", *nothing(model="ceiling"))
    found = tables(**saved(folder), compared={})
    assert found["reason"] == "fewer than 3 conditions have 10 test cells."
    axes_of(draw(**found))


@pytest.mark.parametrize(("drf", "bds", "decided"), [(0.1, 0.8, True), (0.09, 1.0, False), (0.5, 0.79, False)])
def test_a_metric_that_cannot_tell_signal_from_noise_decides_nothing(folder, drf, bds, decided):
    both = [scored(0.1, model="shrunk"), scored(0.95, model="ceiling")]
    each = [rows(full(0.1), model="shrunk"), rows(full(0.95), model="ceiling")]
    folder.run("r4", "s3", scored(0.5), rows(full(0.5) + NOISE))
    folder.split("s3", pd.concat(both), pd.concat(each), drf, bds)
    worth = folder.collect()[0].set_index("run")
    verdict = worth.loc["r4", "verdict"]
    if decided:
        assert verdict == "better than every baseline"
    else:
        assert verdict == f"undecided: the metric does not tell signal from noise here (DRF {drf:.2f}, BDS {bds:.2f})"


def test_an_undecided_metric_is_grey_and_named():
    scores, conditions, verdicts, coverage = everything(VALUES)
    verdicts["ranks"] = verdicts["metric"] != "discrimination"
    axes = axes_of(draw(scores, conditions, verdicts, coverage, models=[MODEL]))
    assert axes["discrimination seen"].get_title(loc="left").endswith("does not tell signal from noise here")
    assert not axes["nmse_centred seen"].get_title(loc="left").endswith("here")

"""The numbers of the figure of transfers: scores after the last stage, their means, comparisons and verdicts."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from samsvae.config.transfer import ALL_CELLS
from samsvae.config.vocabulary import SEED_AXES
from samsvae.evaluation.transfer_tables import ALL, MEAN, SD
from samsvae.evaluation.transfer_verdicts import (
    BETTER,
    LEAST_SEEDS,
    OTHERS,
    SPARSE,
    UNDECIDED,
    WORSE,
    Comparison,
    compare,
    verdict,
)

#: The baselines, as they are called in the column model.
TRAIN_MEAN, OWN_PROFILE = "train_mean", "own_profile"

OURS, RELEASED, KEPT = "ours", "as_released", "statistics_kept"

#: The way to adapt that stands for a method; the others are variations of the first.
WAYS = ("none", "closed_form", "gradient", "adam", "profile", "refit")

#: What identifies a score of one run, and what a predictor without seeds shares with it.
PLACE = ["dataset", "split_name", "held_out", "perturbation"]

CLAIMS = {
    "transfer": "models with the sparse-mechanism-shift prior beat the others on transfer to unseen interventions",
    "latents": "models with the sparse-mechanism-shift prior recover latents better in simulation",
}

FEW = "few cells"  # the question of a biologist, next to the claims of the paper


def last_stage(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The scores of single perturbations after the last stage: gain and effect_pearson, by run.

    table: a table of a transfer. runs: the runs to keep, as `with_seeds` returns them. Baselines have no seed ('').
    """
    rows = table[table["adapt"].isin(WAYS) & table["metric"].isin(["gain", "effect_pearson"])]
    baseline = rows["model"] == OWN_PROFILE
    first = ~baseline & (rows["variant"] != OURS) & (rows["stage"] < 3)
    single = ~rows["perturbation"].isin([MEAN, SD, ALL])
    rows = rows[single & ~first & (baseline | rows["run"].isin(runs["run"]))]
    group = ["run", "dataset", "split_name", "variant", "cells", "adapt"]
    rows = rows[rows["stage"] == rows.groupby(group)["stage"].transform("max")].drop(columns="seed")
    rows = rows.merge(runs[["run", "seed", "training"]], on="run", how="left").fillna({"seed": "", "training": ""})
    return rows[["model", "variant", "adapt", "cells", *PLACE, "run", "seed", "training", "metric", "value"]]


def with_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with the columns training and seed as text: what pairs two methods, and the unit of tests over seeds.

    runs: run, dataset and the axes of seeds. A training is named by its data set, split seed and training seed. It is
    the unit too, unless there are LEAST_SEEDS data sets: then each of these is one, and its trainings are averaged.
    Trainings with other perturbations held out are averaged in either case.
    """
    runs = runs.drop_duplicates("run")
    names = runs[["dataset", *(axis for axis in SEED_AXES if axis in runs)]].astype(str).agg("/".join, axis=1)
    many = runs["dataset"].nunique() >= LEAST_SEEDS
    return runs[["run", "model", "dataset"]].assign(training=names, seed=runs["dataset"] if many else names)


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and sd over seeds of the gain: model, variant, adapt, cells, held_out, mean, sd, seeds, perturbations.

    held_out '(all)': over all perturbations; other rows only if there are several.
    """
    gain = rows[rows["metric"] == "gain"]
    several = gain["held_out"].nunique() > 1
    parts = [gain.assign(held_out=ALL), *([gain] if several else [])]
    by = ["model", "variant", "adapt", "cells", "held_out"]
    found = []
    for part in parts:
        each = part.groupby([*by, "seed"], sort=False)["value"].mean().groupby(by, sort=False)
        numbers = part.drop_duplicates([*by, "dataset", "perturbation"]).groupby(by, sort=False).size()
        found.append(each.agg(mean="mean", sd="std", seeds="count").assign(perturbations=numbers).reset_index())
    return pd.concat(found, ignore_index=True)


def by_perturbation(rows: pd.DataFrame) -> pd.DataFrame:
    """The means over runs of each perturbation's scores: model, variant, adapt, cells, its place, metric, value."""
    by = ["model", "variant", "adapt", "cells", *(c for c in PLACE if c != "split_name"), "metric"]
    return rows.groupby(by, sort=False)["value"].mean().reset_index()


def few_of(numbers: Iterable[str]) -> str:
    """The number of cells that stands for few: 10, or else the smallest above 0; '' without one."""
    known = [number for number in set(numbers) - {"0", ALL_CELLS} if number.isdigit()]
    return "10" if "10" in known else min(known, key=int, default="")


def paired(rows: pd.DataFrame, model: str, other: str, *, cells: str, variant: str = OURS) -> pd.DataFrame:
    """Gains of one model minus those of another on the same cells: seed, perturbation and value.

    Trainings are paired by their seed. `other` may be a baseline, which has no seed.
    """
    at = rows[
        (rows["metric"] == "gain")
        & (rows["variant"] == variant)
        & (rows["cells"] == cells)
        & (rows["adapt"] != "refit")
    ]
    ours, theirs = (at[at["model"] == name] for name in (model, other))
    on = PLACE if other == OWN_PROFILE else [*PLACE, "seed", "training"]
    both = ours.merge(theirs[[*on, "value"]], on=on, suffixes=("", "_other"))
    names = both["dataset"] + "/" + both["held_out"] + "/" + both["perturbation"]
    return pd.DataFrame({"seed": both["seed"], "perturbation": names, "value": both["value"] - both["value_other"]})


def comparisons(rows: pd.DataFrame, latents: pd.DataFrame, models: list[str]) -> pd.DataFrame:
    """All paired comparisons: claim, variant, cells, model, against, and the fields of a Comparison.

    latents: model, seed, training and value (MCC) of every run; without rows there is no comparison of them.
    """
    sparse, others = ([m for m in names if m in models] for names in (SPARSE, OTHERS))
    found: list[dict[str, object]] = []

    def add(claim: str, variant: str, cells: str, model: str, against: str, differences: pd.DataFrame) -> None:
        if len(differences):
            row: dict[str, object] = {"claim": claim, "variant": variant, "cells": cells, "model": model}
            found.append(row | {"against": against} | compare(differences)._asdict())

    for model in sparse:
        for other in others:
            for variant in (OURS, RELEASED):
                differences = paired(rows, model, other, cells=ALL_CELLS, variant=variant)
                add("transfer", variant, ALL_CELLS, model, other, differences)
            both = latents[latents["model"] == model].merge(latents[latents["model"] == other], on=["seed", "training"])
            add("latents", OURS, "", model, other, both.assign(value=both["value_x"] - both["value_y"]))
    few = few_of(rows["cells"])
    for model in models:
        add(FEW, OURS, few, model, OWN_PROFILE, paired(rows, model, OWN_PROFILE, cells=few))
    columns = ["claim", "variant", "cells", "model", "against", *Comparison._fields]
    return pd.DataFrame(found, columns=columns)


def verdicts(compared: pd.DataFrame) -> pd.DataFrame:
    """A verdict for each claim and sparse model: claim, model, verdict, seeds, perturbations, sees (in words).

    compared: as `comparisons` returns it.
    """
    found = []
    for claim in CLAIMS:
        for model, rows in compared[compared["claim"] == claim].groupby("model", sort=False):
            ours, released = (_by_other(rows[rows["variant"] == variant]) for variant in (OURS, RELEASED))
            if ours:
                seeds = min(each.seeds for each in ours.values())
                most = max(each.perturbations for each in ours.values())
                row = {"claim": CLAIMS[claim], "model": model, "verdict": verdict(ours, released), "seeds": seeds}
                found.append(row | {"perturbations": most, "sees": _sees(ours, released)})
    return pd.DataFrame(found, columns=["claim", "model", "verdict", "seeds", "perturbations", "sees"])


def _by_other(rows: pd.DataFrame) -> dict[str, Comparison]:
    fields = rows[list(Comparison._fields)].itertuples(index=False, name=None)
    return {str(other): Comparison(*values) for other, values in zip(rows["against"], fields, strict=True)}


def _sees(ours: dict[str, Comparison], released: dict[str, Comparison]) -> str:
    """The comparisons in words: 'better than vae +3.70; undecided: ivae -1.82; as released, better than ...'."""
    words = _in_words(ours)
    return f"{words}; as released, {_in_words(released)}" if released else words


def _in_words(compared: dict[str, Comparison]) -> str:
    """The other methods with the differences to them, by outcome; only these where there are too few seeds."""
    of: dict[str, list[str]] = {}
    for name, each in compared.items():
        of.setdefault(each.outcome, []).append(f"{name} {each.difference:+.2f}")
    words = {BETTER: "better than", WORSE: "worse than", UNDECIDED: "undecided:"}
    return "; ".join(f"{words.get(outcome, 'minus')} {', '.join(names)}" for outcome, names in of.items())

"""From the files of runs to the tables that a figure draws: choose the run to show, read, arrange."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from samsvae.errors import DataError
from samsvae.evaluation.metrics.effects import interactions
from samsvae.evaluation.metrics.selection import PLACE, best_settings, of_best_settings, relative_to, shown, summary
from samsvae.figures import published
from samsvae.figures.norman import core
from samsvae.figures.replogle_de import overlap_table
from samsvae.figures.replogle_table1 import build_replogle_table1
from samsvae.figures.style import look
from samsvae.screens.screen import read_uns
from samsvae.tables import of_experiments, read, read_h5ad


def models_only(scores: pd.DataFrame) -> pd.DataFrame:
    """The published protocol's scores of models, without the baselines and the columns that name files."""
    rows = scores[(scores["protocol"] == "published") & (scores["method"] != "baseline")]
    return rows.drop(columns=[c for c in PLACE if c in rows])


def of_table_1(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores that Table 1 and the figures beside it are about: 100 latents, where the grid has them."""
    rows = models_only(scores)
    published_size = rows["n_latent"] == 100 if "n_latent" in rows else pd.Series(False, rows.index)
    return rows[published_size] if published_size.any() else rows


def shown_runs(scores: pd.DataFrame) -> dict[str, str]:
    """Model -> its run to show: of the settings that are best on validation data, the first seed."""
    return shown(of_best_settings(scores)).set_index("model")["run"].to_dict()


def best_run(scores: pd.DataFrame, model: str) -> str:
    """The run of a model that the figures beside Table 1 show."""
    rows = of_table_1(scores)
    return shown_runs(rows[rows["model"] == model])[model]


def of_run(paths: Iterable[str], run: str) -> str:
    """The file of a run among those of many (``.../runs/RUN/file``)."""
    for path in paths:
        if Path(path).parent.name == run:
            return path
    raise DataError(f"No file of the run {run!r} is among the inputs.")


def frame(matrix: ad.AnnData, layer: str | None = None) -> pd.DataFrame:
    """A matrix with its names."""
    values = matrix.X if layer is None else matrix.layers[layer]
    return pd.DataFrame(np.asarray(values), matrix.obs_names, matrix.var_names)


def short_names(gene: pd.Series) -> dict[str, str]:
    """Perturbation -> its target gene; 'GENE #2' for the second of a gene, and so on."""
    number = gene.groupby(gene).cumcount() + 1
    return dict(zip(gene.index, gene.where(number == 1, gene + " #" + number.astype(str)), strict=True))


def or_empty(table: pd.DataFrame | None) -> pd.DataFrame:
    """A table, or one without rows where there is nothing to show."""
    return pd.DataFrame(columns=["name"]) if table is None else table


def label(model: str) -> str:
    """A model's name as figures write it."""
    return look(model).label


# ---- Replogle ------------------------------------------------------------------------------------------------------


def replogle_table1(scores: pd.DataFrame, folder: str | Path, *, comparable: bool) -> pd.DataFrame:
    """Table 1: chosen settings, our means and sds over seeds, the published numbers beside them.

    ``comparable``: whether the screen is the published one, so that there are differences to print.
    """
    rows = of_table_1(scores)
    best = best_settings(rows, ["model"])
    return build_replogle_table1(rows, best, published.replogle_table1(folder), comparable=comparable)


def masks(
    scores: pd.DataFrame, perturbations: Iterable[str], pathways: Iterable[str], screen: str, *, model: str
) -> dict[str, object]:
    """Arguments of the masks figure: matrices of the run shown, and the accuracy of every masked model."""
    run = best_run(scores, model)
    matrices = read_h5ad(of_run(perturbations, run))
    latents = [f"z{i}" for i in range(matrices.obsm["embedding"].shape[1])]
    tables = {
        name: pd.DataFrame(np.asarray(matrices.obsm[name]), matrices.obs_names, latents)
        for name in ("mask_probability", "embedding")
    }
    table = read_uns(screen, "perturbations")
    names = short_names(table["gene"].astype(str))
    pathway = table["pathway"].astype(str).rename(names)
    tables = {name: matrix.rename(index=names) for name, matrix in tables.items()}
    best = of_best_settings(of_table_1(scores))
    runs = best[["model", "run"]].drop_duplicates().set_index("run")["model"]
    found = pd.concat(
        [read(p).assign(model=runs[Path(p).parent.name]) for p in pathways if Path(p).parent.name in runs]
    )
    return {**tables, "pathway": pathway, "accuracy": accuracy_table(found), "name": label(model)}


def accuracy_table(found: pd.DataFrame) -> pd.DataFrame:
    """Plain accuracy by classifier and model: mean and sd over runs (over repeats where there is one run)."""
    plain = found[found["metric"] == "accuracy"]
    majority = plain.loc[plain["classifier"] == "majority", "mean"].iloc[0]
    rows = plain[plain["classifier"] != "majority"].groupby(["classifier", "model"], sort=False)
    table = rows.agg(
        mean=("mean", "mean"),
        between=("mean", "std"),
        within=("sd", "mean"),
        null_mean=("null_mean", "mean"),
        null_sd=("null_sd", "mean"),
    ).reset_index()
    return table.assign(sd=table["between"].fillna(table["within"]), majority=majority).drop(
        columns=["between", "within"]
    )


def effects(scores: pd.DataFrame, files: Iterable[str], reference: str, screen: str, *, model: str) -> dict:
    """Arguments of the effects figure: ATE of the data (all cells) and of the run shown."""
    run = best_run(scores, model)
    data, predicted = read_h5ad(reference), read_h5ad(of_run(files, run))
    pathway = read_uns(screen, "perturbations")["pathway"].astype(str)
    return {
        "data": frame(data),
        "model": frame(predicted).loc[data.obs_names, data.var_names],
        "pathway": pathway.reindex(data.obs_names).fillna(""),
        "name": label(model),
    }


def expression(
    scores: pd.DataFrame,
    effects_files: Iterable[str],
    tests: Sequence[str],
    agreement: Sequence[str],
    data_tests: str,
    reference: str,
    screen: str,
    *,
    model: str,
) -> dict:
    """Arguments of the DE figure: tests of data and model, effects, overlap of the best run of every model."""
    run = best_run(scores, model)
    data, predicted = read_h5ad(reference), read_h5ad(of_run(effects_files, run))
    models = {best_run(scores, name): name for name in models_only(scores)["model"].unique()}
    overlaps = pd.concat(
        [read(path).assign(model=models[name]) for path in agreement if (name := Path(path).parent.name) in models]
    )
    return {
        "data_de": read(data_tests),
        "data_effects": frame(data),
        "model_effects": frame(predicted).loc[data.obs_names, data.var_names],
        "overlap": overlap_table(overlaps),
        "model_de": read(of_run(tests, run)),
        "names": read_uns(screen, "perturbations")["gene"].astype(str).to_dict(),
        "model_name": label(model),
    }


# ---- Norman --------------------------------------------------------------------------------------------------------

NORMAN_REFERENCE = {"model": "sams_vae_corr", "encoding": "sum", "fraction": 0}


def norman_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """The models' scores, under the settings of each model and encoding that are best over all splits and fractions."""
    return of_best_settings(models_only(scores), ["model", "encoding"], ["seed", "split_seed", "fraction"])


def norman_summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Relative IWELBO and ATE-Pearson of the test cells by model, encoding and fraction: mean and sd over splits.

    Of several settings of a model the best on validation data count.
    """
    rows = norman_rows(scores)
    relative = relative_to(rows, NORMAN_REFERENCE, ["split_seed"])
    base = scores[(scores["protocol"] == "published") & (scores["method"] == "baseline")]
    ate = pd.concat([rows, base], ignore_index=True).query("metric == 'ate_pearson'")
    rows = pd.concat([relative[relative["split"] == "test"], ate[ate["split"] == "test"]], ignore_index=True)
    rows["encoding"] = rows["encoding"].fillna("sum")
    return summary(rows, ["model", "encoding", "fraction", "metric"])


def norman_interactions(
    scores: pd.DataFrame, files: Sequence[str], references: Sequence[str], screen: str
) -> pd.DataFrame:
    """Interactions of the test pairs, observed in all cells and predicted by a run of each model.

    An interaction is the effect of a pair minus the sum of its single effects, each side by its own singles. The run
    shown is of the model's best settings, its largest fraction and first split. Columns: model, run, fraction, pair,
    seen (whether the pair has training cells), gene, observed, predicted, and ``made``, what was put in, where the
    screen is a miniature. ``references``: the effects of the data for every split.
    """
    place = scores.drop_duplicates("run").set_index("run")["split_name"]
    rows = core(norman_rows(scores))
    most = rows["fraction"] == rows.groupby("model")["fraction"].transform("max")
    made = read_uns(screen, "miniature_truth")
    tables = []
    for model, run, fraction in shown(rows[most], ["split_seed", "seed"])[["model", "run", "fraction"]].values:
        data = read_h5ad(of_run(references, place[run]))
        members = np.asarray(data.uns["members"])
        pairs = (data.obs["n_test"] > 0).to_numpy() & ((members >= 0).sum(1) == 2)
        observed = pd.DataFrame(interactions(data.X, members), data.obs_names, data.var_names)[pairs]
        effect = frame(read_h5ad(of_run(files, run))).loc[data.obs_names, data.var_names].to_numpy()
        predicted = pd.DataFrame(interactions(effect, members), data.obs_names, data.var_names)[pairs]
        table = pd.DataFrame({"observed": observed.stack(), "predicted": predicted.stack()})
        if made is not None:
            table["made"] = made.reindex(index=observed.index, columns=observed.columns).stack()
        table = table.rename_axis(["pair", "gene"]).reset_index()
        seen = table["pair"].map(data.obs["n_train"] > 0)
        tables.append(table.assign(model=model, run=run, fraction=fraction, seen=seen))
    return pd.concat(tables, ignore_index=True)


def norman_published(folder: str | Path, task: str, *, comparable: bool) -> pd.DataFrame | None:
    """The published numbers of a task, where the screen is the published one."""
    return published.norman(folder, task) if comparable else None


# ---- simulations, curves, own screens ------------------------------------------------------------------------------


def one_setting(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of the published protocol under each model's best settings on validation data.

    Data seeds are replicates; cells per perturbation are kept apart.
    """
    rows = models_only(scores)
    return of_best_settings(rows, ["model", *([c] if (c := "cells") in rows else [])], ["seed", "data_seed"])


#: Axes that say how much data a run saw, with the word for one of their values.
AMOUNTS = {"fraction": "fraction {:g}", "cells": "{:g} cells each"}


def curves(histories: Iterable[str], grids: Iterable[str]) -> pd.DataFrame:
    """The histories of experiments, with ``amount``: how much data a run saw, where that differs; least first."""
    tables = []
    for history, grid in zip(histories, grids, strict=True):
        table, runs = of_experiments([history]), read(grid).set_index("run")
        axis = next((name for name in AMOUNTS if name in runs and runs[name].nunique() > 1), None)
        if axis is not None:
            table = table.assign(order=table["run"].map(runs[axis])).sort_values("order", kind="stable")
            table["amount"] = table.pop("order").map(AMOUNTS[axis].format)
        tables.append(table if axis else table.assign(amount=""))
    return pd.concat(tables, ignore_index=True)


def own_screen(
    scores: pd.DataFrame,
    per_condition: Sequence[str],
    effects_files: Sequence[str],
    perturbations: Sequence[str],
    baseline_conditions: str,
    reference: str,
    screen: str,
) -> dict:
    """Arguments of the figure of an own screen: all held-out, each model under its best settings on validation data.

    Effects are of the model of best mean validation IWELBO, masks of the best one that has some; the run of either is
    its first seed.
    """
    best = of_best_settings(models_only(scores))
    val = best[(best["metric"] == "iwelbo") & (best["split"] == "val")].groupby("model", sort=False)["value"].mean()
    order, runs = val.sort_values(ascending=False, kind="stable").index, shown_runs(models_only(scores))
    data, predicted = read_h5ad(reference), read_h5ad(of_run(effects_files, runs[order[0]]))
    of = best.drop_duplicates("run").set_index("run")["model"]
    each = [read(p).assign(model=of[run], run=run) for p in per_condition if (run := Path(p).parent.name) in of]
    each = pd.concat([*each, read(baseline_conditions)], ignore_index=True)
    each = each[each["protocol"].eq("held-out") & ~each["model"].isin(["train_mean", "additive"])]
    held_out = frame(data, "held_out").dropna()
    tables = ((model, read_h5ad(of_run(perturbations, runs[model]))) for model in order)
    masked, found = next(((model, t) for model, t in tables if "mask_probability" in t.obsm), (None, None))
    table = read_uns(screen, "perturbations")
    drawn = scores[scores["run"].isin([*of.index, "intercept_nb"])]
    return {
        "scores": drawn.replace({"metric": {"log_likelihood": "iwelbo"}}).reset_index(drop=True),
        "data_effects": held_out,
        "model_effects": frame(predicted).loc[held_out.index, held_out.columns],
        "per_condition": each.rename(columns={"ate_pearson": "value"})[
            ["model", "run", "condition", "value"]
        ].reset_index(drop=True),
        "mask_probability": None
        if masked is None
        else pd.DataFrame(np.asarray(found.obsm["mask_probability"]), found.obs_names),
        "pathway": table["pathway"].astype(str) if (table["pathway"] != "").any() else None,
        "name": label(order[0]),
        "mask_name": "" if masked is None else label(masked),
    }

"""From the files of runs to the tables that a figure draws: choose the run to show, read, arrange."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from samsvae import published
from samsvae.data.screen import read_uns
from samsvae.errors import DataError
from samsvae.figures.replogle_de import overlap_table
from samsvae.figures.replogle_table1 import build_replogle_table1
from samsvae.figures.style import look
from samsvae.metrics.effects import interactions
from samsvae.metrics.selection import best_settings, chosen, relative_to, summary
from samsvae.tables import collect_scores, read, read_h5ad

#: Columns of a grid that are no setting to choose by.
PLACE = ("dataset", "split_name")


def models_only(scores: pd.DataFrame) -> pd.DataFrame:
    """The published protocol's scores of models, without the baselines and the columns that name files."""
    rows = scores[(scores["protocol"] == "published") & (scores["method"] != "baseline")]
    return rows.drop(columns=[c for c in PLACE if c in rows])


def of_table_1(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores that Table 1 and the figures beside it are about: 100 latents, where the grid has them."""
    rows = models_only(scores)
    published_size = rows["n_latent"] == 100 if "n_latent" in rows else pd.Series(False, rows.index)
    return rows[published_size] if published_size.any() else rows


def best_run(scores: pd.DataFrame, model: str) -> str:
    """The run of a model to show: of the settings that are best on validation data, the first seed."""
    rows = of_table_1(scores)
    rows = rows[rows["model"] == model]
    best = chosen(rows, best_settings(rows, ["model"]).drop(columns=["mean", "sd", "n"]))
    return best.sort_values("seed", kind="stable")["run"].iloc[0] if "seed" in best else best["run"].iloc[0]


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


def replogle_table1(scores: pd.DataFrame, folder: str | Path) -> pd.DataFrame:
    """Table 1: chosen settings, our means and sds over seeds, the published numbers beside them."""
    rows = of_table_1(scores)
    return build_replogle_table1(rows, best_settings(rows, ["model"]), published.replogle_table1(folder))


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
    rows = of_table_1(scores)
    best = chosen(rows, best_settings(rows, ["model"]).drop(columns=["mean", "sd", "n"]))
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
    shown = {best_run(scores, name): name for name in models_only(scores)["model"].unique()}
    overlaps = pd.concat(
        [read(path).assign(model=shown[name]) for path in agreement if (name := Path(path).parent.name) in shown]
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


def norman_summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Relative IWELBO and ATE-Pearson of the test cells by model, encoding and fraction: mean and sd over splits.

    Of several settings of a model the best on validation data count.
    """
    rows = models_only(scores)
    best = best_settings(rows, ["model", "encoding"], over=["split_seed", "fraction"])
    rows = chosen(rows, best.drop(columns=["mean", "sd", "n"]))
    relative = relative_to(rows, NORMAN_REFERENCE, ["split_seed"])
    base = scores[(scores["protocol"] == "published") & (scores["method"] == "baseline")]
    ate = pd.concat([rows, base], ignore_index=True).query("metric == 'ate_pearson'")
    rows = pd.concat([relative[relative["split"] == "test"], ate[ate["split"] == "test"]], ignore_index=True)
    rows["encoding"] = rows["encoding"].fillna("sum")
    return summary(rows, ["model", "encoding", "fraction", "metric"])


def norman_interactions(files: Iterable[str], models: Sequence[str], reference: str, screen: str) -> pd.DataFrame:
    """Interactions of the test pairs, observed in all cells and predicted: model, pair, gene, observed, predicted.

    An interaction is the effect of a pair minus the sum of its single effects, each side by its own singles. Where
    the screen is a miniature, ``made`` is what was put in.
    """
    data = read_h5ad(reference)
    members = np.asarray(data.uns["members"])
    pairs = (data.obs["n_test"] > 0).to_numpy() & (members >= 0).sum(1).__eq__(2)
    observed = pd.DataFrame(interactions(data.X, members), data.obs_names, data.var_names)[pairs]
    made = read_uns(screen, "miniature_truth")
    tables = []
    for path, model in zip(files, models, strict=True):
        effect = frame(read_h5ad(path)).loc[data.obs_names, data.var_names].to_numpy()
        predicted = pd.DataFrame(interactions(effect, members), data.obs_names, data.var_names)[pairs]
        table = pd.DataFrame({"observed": observed.stack(), "predicted": predicted.stack()})
        if made is not None:
            table["made"] = made.reindex(index=observed.index, columns=observed.columns).stack()
        tables.append(table.rename_axis(["pair", "gene"]).reset_index().assign(model=model))
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
    by = ["model", *([c] if (c := "cells") in rows else [])]
    best = best_settings(rows, by, over=["data_seed"])
    return chosen(rows, best.drop(columns=["mean", "sd", "n"]))


def own_screen(
    grid: pd.DataFrame,
    score_files: Sequence[str],
    per_condition: Sequence[str],
    effects_files: Sequence[str],
    perturbations: Sequence[str],
    baselines: str,
    baseline_conditions: str,
    reference: str,
    screen: str,
) -> dict:
    """Arguments of the figure of an own screen: all held-out, the run of best validation IWELBO shown.

    The masks are those of the best run that has some.
    """
    scores = collect_scores(grid, score_files, [], [])
    means = models_only(scores)
    best = means[(means["metric"] == "iwelbo") & (means["split"] == "val")].sort_values("value", kind="stable")
    run, model = best.iloc[-1][["run", "model"]]
    data, predicted = read_h5ad(reference), read_h5ad(of_run(effects_files, run))
    base = read(baselines).replace({"metric": {"log_likelihood": "iwelbo"}})
    names = grid.set_index("run")["model"]
    each = [read(path).assign(model=names[Path(path).parent.name]) for path in per_condition]
    each = pd.concat([*each, read(baseline_conditions)], ignore_index=True)
    each = each[each["protocol"].eq("held-out") & ~each["model"].isin(["train_mean", "additive"])]
    held_out = frame(data, "held_out").dropna()
    tables = [read_h5ad(of_run(perturbations, name)) for name in reversed(best["run"].tolist())]
    masked = next((t for t in tables if "mask_probability" in t.obsm), None)
    table = read_uns(screen, "perturbations")
    return {
        "scores": pd.concat([scores, base[base["model"] == "intercept_nb"]], ignore_index=True),
        "data_effects": held_out,
        "model_effects": frame(predicted).loc[held_out.index, held_out.columns],
        "per_condition": each.rename(columns={"ate_pearson": "value"})[["model", "condition", "value"]].reset_index(
            drop=True
        ),
        "mask_probability": None
        if masked is None
        else pd.DataFrame(np.asarray(masked.obsm["mask_probability"]), masked.obs_names),
        "pathway": table["pathway"].astype(str) if (table["pathway"] != "").any() else None,
        "name": label(model),
    }

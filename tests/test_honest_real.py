"""The workflow's worth tables of two real screens, against plain numpy written from the equations S1 to S12.

Only files are read through the package. Everything else is computed here: no function of the package has a part in
the expected values.
"""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from plain_cells import CELL_METRICS, EXPRESSION, PlainCells, with_weight
from scipy.stats import norm

from samsvae.tables import read

GRID = [{"model": "sams_vae_corr", "seed": [0]}]

#: The screens: source, options, and a split with seen conditions, or with seen, unseen and all.
SCREENS = {
    "papalexi": (
        "papalexi2021_thp1_crisprko_20729x299_counts.h5ad",
        {"perturbation_column": "perturbation", "control": ["control"]},
        {"kind": "random", "test_fraction": 0.2, "val_fraction": 0.2, "split_seed": 0},
    ),
    "norman_subset": (
        "norman2019_k562_crispra_3375x500_counts.h5ad",
        {"perturbation_column": "condition", "control": ["control"], "separator": "+", "zero_cells": "drop"},
        {"kind": "held_out", "combinations_of": ["KLF1", "MAPK1"], "test_fraction": 0.3},
    ),
}

#: Scores at each reference.
MEASURES = ("pearson", "pearson_top20", "pearson_pooled", "nmse", "cosine", "r2", "mse")

Expected = dict[tuple[str, str, str], tuple[float, float, float, int]]


class Moments(NamedTuple):
    """Of each condition: number of cells (C,), mean (C, G), and variance over number (C, G)."""

    n: np.ndarray
    mean: np.ndarray
    q: np.ndarray


class Cells(NamedTuple):
    """y (n, G), condition of each cell, conditions (the control first), their perturbations, split of each cell."""

    y: np.ndarray
    codes: np.ndarray
    names: list[str]
    parts: list[list[str]]
    genes: list[str]
    split: np.ndarray
    train_counts: np.ndarray  # of the training controls

    def moments(self, chosen: np.ndarray) -> Moments:
        groups = [self.y[chosen & (self.codes == c)] for c in range(len(self.names))]
        nothing = np.full(self.y.shape[1], np.nan)
        return Moments(
            np.array([len(g) for g in groups]),
            np.array([g.mean(0) if len(g) else nothing for g in groups]),
            np.array([g.var(0, ddof=1) / len(g) if len(g) > 1 else nothing for g in groups]),
        )


def cells_of(source: Path, options: dict, table: pd.DataFrame) -> Cells:
    """S1: the transform, from the file of counts."""
    adata = ad.read_h5ad(source)[table["cell"]]
    separator = options.get("separator")
    label = adata.obs[options["perturbation_column"]].astype(str)
    if separator:
        label = label.map(lambda name: separator.join(sorted(name.split(separator))))
    names = ["control", *sorted(set(label) - {"control"})]
    x = adata.X.toarray().astype(float)
    split = table["split"].to_numpy()
    return Cells(
        y=np.log2(1 + 1e4 * x / x.sum(1, keepdims=True)),
        codes=np.array([names.index(one) for one in label]),
        names=names,
        parts=[[], *(name.split(separator) if separator else [name] for name in names[1:])],
        genes=list(adata.var_names),
        split=split,
        train_counts=x[(label == "control") & (split == "train")],
    )


# ---- S1 and S2: effects and ceilings -------------------------------------------------------------------------------


def against_control(m: Moments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """d, e^2 and q of every condition."""
    return m.mean - m.mean[0], m.q + m.q[0], m.q


def at(effects: tuple[np.ndarray, ...], rows: np.ndarray, reference: str) -> tuple[np.ndarray, np.ndarray]:
    d, e2, q = (values[rows] for values in effects)
    if reference == "control":
        return d, e2
    n = len(rows)
    return d - d.sum(0) / n, q * (1 - 2 / n) + q.sum(0) / n**2


def sets_of(train: Moments, test: Moments) -> dict[str, np.ndarray]:
    scored = (test.n >= 10) & (np.arange(len(test.n)) > 0)
    found = {"seen": scored & (train.n >= 2), "unseen": scored & (train.n == 0), "all": scored}
    rows = {name: np.flatnonzero(flags) for name, flags in found.items() if flags.sum() >= 3}
    if any(np.array_equal(rows["all"], rows[name]) for name in ("seen", "unseen") if name in rows):
        del rows["all"]
    return rows


def ceiling(
    every: tuple[np.ndarray, ...], test: tuple[np.ndarray, ...], rows: np.ndarray, reference: str
) -> np.ndarray:
    d, e2 = at(every, rows, reference)
    signal = np.maximum(0, ((d - d.mean(1)[:, None]) ** 2).sum(1) - e2.sum(1))
    return np.sqrt(signal / (signal + at(test, rows, reference)[1].sum(1)))


# ---- S3 and S5: scores ---------------------------------------------------------------------------------------------


def pearson(d: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Over genes; 0 for a constant prediction."""
    constant = p.max(1) - p.min(1) <= 1e-12 * np.maximum(1, np.abs(p).max(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(d, p, strict=True)])
    return np.where(constant, 0.0, r)


def discrimination(d: np.ndarray, p: np.ndarray, keep: np.ndarray) -> np.ndarray:
    n, ranks = len(d), []
    for i in range(n):
        delta = []
        for j in range(n):
            a, b = p[i, keep], d[j, keep]
            small = min(np.linalg.norm(a), np.linalg.norm(b)) <= 1e-12
            delta.append(1.0 if small else 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        apart = np.array(delta) - delta[i]
        equal = np.abs(apart) <= 1e-12 * max(1, abs(delta[i]))
        ranks.append(((apart < 0) & ~equal).sum() + (equal.sum() - 1) / 2)
    return 1 - np.array(ranks) / (n - 1)


def mean_with_interval(values: np.ndarray, over: np.ndarray | None = None) -> tuple[float, float, float, int]:
    """S2: conditions resampled 1,000 times; ``over``: denominators of a ratio of sums."""
    n = len(values)
    over = np.ones(n) if over is None else over
    drawn = np.random.default_rng(0).integers(0, n, (1000, n))
    means = values[drawn].sum(1) / over[drawn].sum(1)
    return values.sum() / over.sum(), *np.percentile(means, (2.5, 97.5)), n


def simple_scores(d: np.ndarray, p: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of each condition that are averaged."""
    sizes = np.linalg.norm(d, axis=1), np.linalg.norm(p, axis=1)
    there = np.minimum(*sizes) > 1e-12  # a mean minus itself is rounding
    cosine = np.where(there, (d * p).sum(1) / np.where(there, sizes[0] * sizes[1], 1), 0)
    total = ((d - d.mean(1)[:, None]) ** 2).sum(1)
    r2 = 1 - ((d - p) ** 2).sum(1) / total
    return {"pearson": pearson(d, p), "cosine": cosine, "r2": r2, "mse": ((d - p) ** 2).mean(1)}


def scores(d: np.ndarray, e2: np.ndarray, p: np.ndarray) -> dict[str, tuple]:
    """Scores by condition: (values,) for a mean over conditions, (numerators, denominators) for a ratio of sums."""
    found: dict[str, tuple] = {name: (values,) for name, values in simple_scores(d, p).items()}
    if 1 - e2.sum() / ((d - d.mean()) ** 2).sum() >= 0.1:
        found["nmse"] = (((p - d) ** 2 - e2).sum(1), (d**2 - e2).sum(1))
    return found


def top_of_train(d: np.ndarray, e2: np.ndarray) -> np.ndarray:
    """The 20 genes of largest |d| / e of training cells, ties by gene order: (S, G) bool."""
    ratio = np.abs(d) / np.sqrt(np.where(e2 > 0, e2, 1))
    chosen = np.zeros(d.shape, bool)
    np.put_along_axis(chosen, np.argsort(-ratio, axis=1, kind="stable")[:, :20], True, 1)
    return chosen


# ---- S4: baselines -------------------------------------------------------------------------------------------------


def baselines(cells: Cells, train: Moments) -> dict[str, np.ndarray]:
    d, e2, _ = against_control(train)
    trained = [c for c in range(1, len(cells.names)) if train.n[c] >= 2]
    mu = np.mean([d[c] for c in trained], 0)
    nothing = np.full(d.shape, np.nan)
    alone = {cells.parts[c][0]: d[c] for c in trained if len(cells.parts[c]) == 1}
    found = {"no_change": np.zeros(d.shape), "mean_of_perturbations": np.tile(mu, (len(d), 1))}
    found["train_mean"], found["shrunk"] = nothing.copy(), nothing.copy()
    for c in trained:
        found["train_mean"][c] = d[c]
        b = min(1, max(0, 1 - e2[c].sum() / ((d[c] - mu) ** 2).sum()))
        found["shrunk"][c] = mu + b * (d[c] - mu)

    perturbations = sorted({part for parts in cells.parts for part in parts})
    phi = np.array([[float(part in parts) for part in perturbations] for parts in cells.parts])
    U, s, Vt = np.linalg.svd(np.array([d[c] - mu for c in trained]), full_matrices=False)
    k = min(10, int((s >= 1e-10 * s[0]).sum()))
    F = phi[trained]
    W = np.linalg.inv(F.T @ F + 0.1 * np.eye(len(perturbations))) @ F.T @ U[:, :k] @ np.diag(s[:k])
    known = phi @ F.sum(0) > 0
    found["ridge_pc"] = np.where(known[:, None], mu + phi @ W @ Vt[:k], np.nan)
    if max(map(len, cells.parts)) > 1:
        found["additive"], found["matching_mean"] = nothing.copy(), nothing.copy()
        for c, parts in enumerate(cells.parts[1:], 1):
            if all(part in alone for part in parts):
                found["additive"][c] = np.sum([alone[part] for part in parts], 0)
            found["matching_mean"][c] = np.mean([alone.get(part, mu) for part in parts], 0)
    return found


# ---- all rows ------------------------------------------------------------------------------------------------------


def expected_rows(cells: Cells) -> tuple[Expected, dict[tuple[str, str, str, str], tuple[float, float]]]:
    """(model, metric, set) -> mean, low, high, n; and with the condition -> value, weight."""
    train, test = (cells.moments(cells.split == name) for name in ("train", "test"))
    effects, every = against_control(test), against_control(cells.moments(cells.split != ""))
    keep = np.array([gene not in {part for parts in cells.parts for part in parts} for gene in cells.genes])
    trained = against_control(train)[:2]
    rows: Expected = {}
    each = {}

    def add(model: str, metric: str, where: str, here: np.ndarray, values: np.ndarray, over=None) -> None:
        rows[model, metric, where] = mean_with_interval(values, over)
        weights = np.ones(len(here)) if over is None else over
        for c, value, weight in zip(here, values, weights, strict=True):
            each[model, metric, where, cells.names[c]] = value, weight

    for where, scored in sets_of(train, test).items():
        for model, predicted in baselines(cells, train).items():
            here = np.array([c for c in scored if np.isfinite(predicted[c]).all()], int)
            if len(here) < 3:
                continue
            for reference in ("control", "centred"):
                d, e2 = at(effects, here, reference)
                p = predicted[here] - (predicted[here].mean(0) if reference == "centred" else 0)
                for metric, found in scores(d, e2, p).items():
                    add(model, f"{metric}_{reference}", where, here, *found)
                pooled = pearson(d.reshape(1, -1), p.reshape(1, -1))[0]
                rows[model, f"pearson_pooled_{reference}", where] = pooled, np.nan, np.nan, len(here)
                if where == "seen":
                    top = top_of_train(*(values[here] for values in trained))
                    over = [pearson(d[i : i + 1, top[i]], p[i : i + 1, top[i]])[0] for i in range(len(here))]
                    add(model, f"pearson_top20_{reference}", where, here, np.array(over))
            add(model, "discrimination", where, here, discrimination(d, p, keep))
        for reference in ("control", "centred"):
            add("ceiling", f"pearson_{reference}", where, scored, ceiling(every, effects, scored, reference))
            d, e2 = at(effects, scored, reference)
            if "nmse" in scores(d, e2, d):
                add("ceiling", f"nmse_{reference}", where, scored, np.zeros(len(scored)))
        add("ceiling", "discrimination", where, scored, np.ones(len(scored)))
        for model, pairs, d, e2, p, best in interactions(cells, scored, train):
            r = best if model == "ceiling" else pearson(d, p)
            error = np.zeros(len(d)) if model == "ceiling" else ((p - d) ** 2 - e2).sum(1)
            add(model, "interaction_pearson", where, pairs, r)
            over = None if model == "ceiling" else (d**2 - e2).sum(1)
            add(model, "interaction_nmse", where, pairs, error, over)
    return rows, each


def interactions(cells: Cells, scored: np.ndarray, train: Moments) -> Iterator[tuple]:
    """S12: model, pairs, observed, e^2 and predicted interactions and their ceilings, where they are reliable.

    Each side has its own singles and control. Here every single has test cells.
    """
    test, every = cells.moments(cells.split == "test"), cells.moments(cells.split != "")
    single = {parts[0]: c for c, parts in enumerate(cells.parts) if len(parts) == 1}
    triples = [(c, *(single.get(part, -1) for part in cells.parts[c])) for c in scored if len(cells.parts[c]) == 2]
    triples = [(c, a, b) for c, a, b in triples if min(a, b) >= 0]

    def of(m: Moments, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        c, a, b = rows.T
        return m.mean[c] - m.mean[a] - m.mean[b] + m.mean[0], m.q[c] + m.q[a] + m.q[b] + m.q[0]

    for model, predicted in {**baselines(cells, train), "ceiling": np.zeros(test.mean.shape)}.items():
        rows = np.array([t for t in triples if all(np.isfinite(predicted[c]).all() for c in t)], int).reshape(-1, 3)
        d, e2 = of(test, rows)
        if len(rows) < 3 or 1 - e2.sum() / ((d - d.mean()) ** 2).sum() < 0.1:
            continue
        c, a, b = rows.T
        whole, error = of(every, rows)
        signal = np.maximum(0, ((whole - whole.mean(1)[:, None]) ** 2).sum(1) - error.sum(1))
        yield model, c, d, e2, predicted[c] - predicted[a] - predicted[b], np.sqrt(signal / (signal + e2.sum(1)))


def yardstick(cells: Cells) -> dict[str, float]:
    """S8: coverage of the train mean with its own standard error, over detected genes with an error of the truth."""
    train, test = (cells.moments(cells.split == name) for name in ("train", "test"))
    rows = sets_of(train, test)["seen"]
    number = (cells.train_counts > 0).sum(0)
    genes = number >= max(3, 0.01 * len(cells.train_counts))
    (m, s2, _), (d, e2, _) = (tuple(v[rows][:, genes] for v in against_control(x)) for x in (train, test))
    there = e2 > 0
    u = norm.cdf((d - m) / np.sqrt(np.where(there, s2 + e2, 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = norm.cdf(np.where(d == m, 0, (d - m) / np.sqrt(s2)))
    top = np.zeros(there.shape, bool)  # chosen by the posterior alone, without a look at the error of the truth
    for i, order in enumerate(np.argsort(-np.abs(m), axis=1, kind="stable")[:, :20]):
        top[i, order] = there[i, order]
    found = {"pit_mean": u[there].mean(), "posterior_share": s2[there].sum() / (s2 + e2)[there].sum()}
    for level in (0.5, 0.8, 0.95):
        inside = np.abs(u - 0.5) <= level / 2
        found[f"coverage{level}"], found[f"coverage_top{level}"] = inside[there].mean(), inside[top].mean()
        found[f"naive{level}"] = (np.abs(alone - 0.5) <= level / 2)[there].mean()
    return found


def calibrations(cells: Cells) -> dict[str, tuple[float, float]]:
    """S9: DRF and BDS of the headline metrics from halves of all cells, 5 repeats."""
    train, test = (cells.moments(cells.split == name) for name in ("train", "test"))
    scored = np.unique(np.concatenate(list(sets_of(train, test).values())))
    keep = np.array([gene not in {part for parts in cells.parts for part in parts} for gene in cells.genes])
    positive: dict[str, list] = {}
    negative: dict[str, list] = {}
    for r in range(5):
        half = np.full(len(cells.codes), -1)
        for c, name in enumerate(cells.names):
            here = np.flatnonzero(cells.codes == c)
            order = np.random.default_rng([0, r, zlib.crc32(name.encode())]).permutation(len(here))
            half[here[order[: len(here) // 2]]] = 0
            half[here[order[len(here) // 2 : 2 * (len(here) // 2)]]] = 1
        a, b = (against_control(cells.moments(half == h)) for h in (0, 1))
        for reference in ("control", "centred"):
            (d, e2), (p, own) = (at(each, scored, reference) for each in (a, b))
            mean = np.tile(p.mean(0), (len(p), 1)) if reference == "control" else np.zeros(p.shape)
            for found, other in ((positive, p), (negative, mean)):
                for name, values in simple_scores(d, other).items():
                    losses = values if name == "mse" else 1 - values
                    found.setdefault(f"{name}_{reference}", []).extend(losses)
        positive.setdefault("discrimination", []).extend(1 - discrimination(d, p, keep))
        # the replicate's own error is no part of what it predicts
        positive.setdefault("nmse_centred", []).append(((p - d) ** 2 - e2 - own).sum() / (d**2 - e2).sum())
    negative |= {"discrimination": [0.5], "nmse_centred": [1.0]}
    found = {}
    for name, pos in positive.items():
        neg = np.broadcast_to(negative[name], len(pos)) if len(negative[name]) == 1 else np.array(negative[name])
        found[name] = 1 - np.mean(pos) / neg.mean(), (np.array(pos) < neg).mean()
    return found


@pytest.fixture(scope="module")
def written(root, shared, tmp_path_factory) -> Path:
    """The folder in which the workflow filtered, packed and split both screens and computed their tables."""
    where = tmp_path_factory.mktemp("real")
    config: dict = {"experiments": list(SCREENS), "pathvars": {"results": "results"}, "screens": {}, "settings": {}}
    for name, (source, options, split) in SCREENS.items():
        path = str(shared / "data" / "real" / source)
        config["screens"][name] = {"kind": "custom", "source": {"path": path}, "options": options}
        config["settings"][name] = {"screen": name, "split": split, "grid": GRID}
    (where / "real.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile"), "--cores", "2"]
    command += ["--configfile", "real.yaml", "--", *(table_path(name, "worth.tsv") for name in SCREENS)]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return where


def table_path(name: str, file: str) -> str:
    return f"results/{name}/splits/{name}/{SCREENS[name][2]['kind']}/{file}"


@pytest.mark.slow  # eight jobs of the workflow
@pytest.mark.parametrize("name", list(SCREENS))
def test_the_workflow_agrees_with_plain_numpy_on_a_real_screen(written, shared, name):
    source, options, _ = SCREENS[name]
    table, conditions, split = (
        read(written / table_path(name, file)) for file in ("worth.tsv", "worth_conditions.tsv", "cells.tsv")
    )
    cells = cells_of(shared / "data" / "real" / source, options, split)
    rows, each = expected_rows(cells)
    metrics = {metric for _, metric, _ in rows}
    pairs = {"interaction_pearson", "interaction_nmse"} if name == "norman_subset" else set()
    assert metrics == {"discrimination", *(f"{m}_{r}" for m in MEASURES for r in ("control", "centred")), *pairs}
    assert {where for _, _, where in rows} == ({"seen"} if name == "papalexi" else {"seen", "unseen", "all"})

    ours = table[table["metric"].isin(metrics)].set_index(["model", "metric", "set"])
    defined = ours[ours["value"].notna()]
    assert set(defined.index) == set(rows) and (ours[ours["value"].isna()]["reason"] != "").all()
    found = defined[["value", "low", "high", "n_conditions"]]
    np.testing.assert_allclose(found, [rows[key] for key in found.index], rtol=1e-9, atol=1e-9)

    ours = conditions[conditions["metric"].isin(metrics) & conditions["value"].notna()]
    ours = ours.set_index(["model", "metric", "set", "condition"])[["value", "weight"]]
    assert set(ours.index) == set(each)
    np.testing.assert_allclose(ours, [each[key] for key in ours.index], rtol=1e-9, atol=1e-9)

    cover = table[(table["model"] == "train_mean") & (table["set"] == "seen")].set_index("metric")["value"]
    for metric, value in yardstick(cells).items():
        assert cover[metric] == pytest.approx(value, abs=1e-9), metric
    known = table.groupby("metric")[["drf", "bds"]].first()
    for metric, values in calibrations(cells).items():
        np.testing.assert_allclose(known.loc[metric], values, rtol=1e-9, atol=1e-9, err_msg=metric)


def mean_of_known(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


@pytest.mark.slow  # it reads the tables that the test above has the workflow write
@pytest.mark.parametrize("name", list(SCREENS))
def test_scores_of_cells_agree_with_plain_numpy_on_a_real_screen(written, shared, name):
    source, options, _ = SCREENS[name]
    table, conditions, split = (
        read(written / table_path(name, file)) for file in ("worth.tsv", "worth_conditions.tsv", "cells.tsv")
    )
    cells = cells_of(shared / "data" / "real" / source, options, split)
    targets = [[cells.genes.index(part) for part in parts if part in cells.genes] for parts in cells.parts]
    plain = PlainCells(cells.y, cells.codes, cells.names, targets, cells.split)
    sets = sets_of(*(cells.moments(cells.split == part) for part in ("train", "test")))
    scored = np.unique(np.concatenate(list(sets.values())))
    each = plain.baselines(scored)
    # the halves of Papalexi's cells would take a minute here
    halves = plain.halves(scored) if name == "norman_subset" else {}
    for c, scores in halves.items():
        known = each["no_change", c]  # a duplicate has the scores that predictions have
        means = {metric: mean_of_known(scores[metric][:, 0]) for metric in EXPRESSION}
        each["technical_duplicate", c] = with_weight(
            {metric: mean if np.isfinite(known[metric][0]) else np.nan for metric, mean in means.items()}
        )

    ours = conditions[conditions["metric"].isin(CELL_METRICS)]
    ours = ours.set_index(["model", "metric", "set", "condition"])[["value", "weight"]]
    for where, here in sets.items():
        for (model, c), scores in ((place, scores) for place, scores in each.items() if place[1] in here):
            for metric, pair in scores.items():
                found = ours.loc[(model, metric, where, cells.names[c])]
                np.testing.assert_allclose(found, pair, rtol=1e-9, atol=1e-9, err_msg=f"{model} {metric}")
    rows = table[table["metric"].isin(CELL_METRICS)].set_index(["model", "metric", "set"])
    for (model, metric, where), row in rows.iterrows():
        if model == "technical_duplicate" and not halves:
            continue
        pairs = np.array([each[model, c][metric] for c in sets[where] if (model, c) in each]).reshape(-1, 2)
        value, weight = pairs[np.isfinite(pairs[:, 0])].T
        if len(value) < 3:
            assert np.isnan(row["value"]) and row["reason"]
            continue
        over = weight if metric == "energy_share" else None
        found = row[["value", "low", "high", "n_conditions"]].astype(float)
        np.testing.assert_allclose(found, mean_with_interval(value, over), rtol=1e-9, atol=1e-9)
    known = table.groupby("metric")[["drf", "bds"]].first()
    for metric in ("energy_share", "auprc", "sign", "overlap20") if halves else ():
        pairs = np.concatenate([scores[metric] for scores in halves.values()])
        pairs = pairs[np.isfinite(pairs).all(1)] if metric == "energy_share" else 1 - pairs[np.isfinite(pairs).all(1)]
        expected = 1 - pairs[:, 0].mean() / pairs[:, 1].mean(), (pairs[:, 0] < pairs[:, 1]).mean()
        np.testing.assert_allclose(known.loc[metric], expected, rtol=1e-9, atol=1e-9, err_msg=metric)

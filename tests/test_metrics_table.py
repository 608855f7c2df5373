"""Every function that writes scores agrees with the table of metrics: names, protocols and ranges."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from small_files import settings, write_files
from small_model import model, screen
from test_pathways import masks

from samsvae.config.evaluation import EvaluationConfig
from samsvae.config.transfer import TransferConfig
from samsvae.data.arrays import read_split
from samsvae.data.cells import encode
from samsvae.errors import DataError
from samsvae.evaluation.baselines import baseline_tables
from samsvae.evaluation.collect import collect_scores
from samsvae.evaluation.data_effects import effects
from samsvae.evaluation.honest import model_tables
from samsvae.evaluation.masks import siblings, stability
from samsvae.evaluation.metrics.constants import CLASSIFIERS, FIT, HONEST, LEVELS, MATCHES, PROTOCOLS, TOP, TRANSFER
from samsvae.evaluation.metrics.de import de_agreement, differential_expression
from samsvae.evaluation.metrics.table import METRICS, axis_label, metric
from samsvae.evaluation.pathways import run_pathways
from samsvae.evaluation.pools import Pools
from samsvae.evaluation.run import fit_scores, likelihood_scores, recovery_scores
from samsvae.evaluation.scores import per_condition, score
from samsvae.evaluation.selection import relative_to
from samsvae.evaluation.transfer_baselines import baseline_table
from samsvae.evaluation.transfer_scores import model_scores, shift_scores, target_of
from samsvae.evaluation.transfer_tables import tidy, together
from samsvae.evaluation.truth import truth_of
from samsvae.screens.pack import arrays_of
from samsvae.screens.simulate import sams, sparse_shift
from samsvae.tables import write
from samsvae.training.checkpoint import Checkpoint

COLUMNS = ["protocol", "metric", "split", "value"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> pd.DataFrame:
    """Scores of a model, the baselines and the masks, collected as in the scores.tsv of an experiment."""
    folder = tmp_path_factory.mktemp("scores")
    made = screen(200, 30)
    split = read_split(write_files(folder, made)[1], made.cells)
    data = effects(made, split, reference="control")
    net = model("sams_vae_corr", genes=30)
    fit = {"levelled_off": True, "validation_loss": 5.0, "intercept_only": 6.0, "active_latents": 2}
    fit["masks_undecided"] = 0.5
    weights = Checkpoint(net, tuple(made.genes), tuple(made.perturbations), {"encoding": "sum", "fit": fit})
    config = EvaluationConfig(iwelbo_particles=3, bound_particles=40, bound_cells=20)
    predicted = data.X + np.random.default_rng(0).normal(size=data.shape)
    library = {"protocol": FIT, "metric": "ate_library", "split": "all", "value": 186.0}
    likelihood, bounds = likelihood_scores(weights, made, split, config, "cpu")
    rows = pd.DataFrame([library, *likelihood, *score(predicted, data), *fit_scores(weights)])
    run = settings()["run"]
    paths = [folder / "runs" / run / name for name in ("scores.tsv", "pathways.tsv")]
    baselines = folder / "d" / "s" / "baselines.tsv"
    write(pd.concat([rows, recovery()]).assign(run=run), paths[0])
    write(run_pathways(*masks(True), pathway_settings()).assign(run=run), paths[1])
    write(baseline_tables(made, split, data)[0], baselines)
    grid = pd.DataFrame([{"run": run, "model": "m", "method": "M", "inference": "", "dataset": "d", "split_name": "s"}])
    found = collect_scores(grid, paths[:1], paths[1:], [baselines])
    relative = relative_to(found[found["model"] == "m"], {"model": "m"}, [])
    new = transfer_scores().assign(protocol=TRANSFER)
    return pd.concat([found, relative, honest_scores(), bounds.assign(split="test"), new], ignore_index=True)


def transfer_scores() -> pd.DataFrame:
    """The scores of new perturbations of a simulation, by a model and by the baselines."""
    truth = sparse_shift(n_perturbations=6, n_genes=12, cells=(20, 6, 6), n_held_out=2, n_latent=3)
    made, how, codes = arrays_of(truth), TransferConfig(cells=(4,)), np.array([4, 5])
    rank = np.where(np.isin(made.condition, codes), np.arange(len(made.cells)) % 32, 0)
    pools = Pools(made.condition, truth.obs["split"].to_numpy(str), np.where(rank > 16, 0, rank), rank > 16)
    baselines = baseline_table(made, pools, how)
    target = target_of(made, pools, encode(made, "sum"), baselines, "ours")
    net = model("svae_plus", 12, 6).eval()
    config = EvaluationConfig(ate_samples=10)
    scores = model_scores(net, target, codes, particles=2, evaluation=config)
    own = tidy(scores, made.conditions[codes].tolist(), particles=2)
    return pd.concat([baselines, own, together(**shift_scores(net, target, codes, truth))], ignore_index=True)


def honest_scores() -> pd.DataFrame:
    """The scores of the honest protocol of a model, as those of a run, on a screen with three pairs."""
    made = screen(900, 120)
    codes = made.condition.copy()
    codes[np.flatnonzero(codes == 3)[::2]] = 6
    members = np.array([[0, -1], [1, -1], [2, -1], [0, 1], [0, 2], [-1, -1], [1, 2]])
    names = np.array(["a", "b", "c", "a+b", "a+c", "control", "b+c"])
    made = replace(made, condition=codes, members=members, conditions=names)
    split = np.resize(["train", "train", "val", "test"], 900)
    dosage = encode(made, "sum").members
    truth = truth_of(made, split)
    worth, _ = model_tables(model("sams_vae_corr", genes=120).eval(), truth, dosage, draws=4, cells=2)
    return worth.assign(split=worth["set"])


def pathway_settings() -> dict:
    return {"pathway_repeats": 1, "pathway_trees": 5, "pathway_permutations": 1}


def recovery() -> pd.DataFrame:
    truth = sams(seed=1, n_latent=3, n_perturbations=8, n_features=12, cells=(10, 3, 4), mask_prob=0.4)
    arrays = arrays_of(truth)
    n_perturbations = len(encode(arrays, "sum").names)
    net = model("sams_vae_corr", 12, n_perturbations, likelihood="normal", input="standardise")
    split = truth.obs["split"].to_numpy(str)
    return pd.DataFrame(list(recovery_scores(net, arrays, split, truth, "sum", "cpu")))


@pytest.fixture(scope="module")
def agreed() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    labels = np.repeat(["control", "a"], 60)
    genes = [f"gene{g}" for g in range(120)]
    rate = np.where((np.arange(120) < 40) & (labels == "a")[:, None], 6.0, 2.0)
    data, other = (differential_expression(rng.poisson(rate), labels, genes, control="control") for _ in range(2))
    return de_agreement(data, other)


@pytest.fixture(scope="module")
def of_masks() -> pd.DataFrame:
    """The rows of two seeds and of their runs in the table of masks."""
    rng = np.random.default_rng(0)
    names = [f"g{i}" for i in range(20)]
    found = {run: pd.DataFrame(rng.random((20, 5)) < 0.3, names) for run in "ab"}
    gene = pd.Series([f"g{i // 2}" for i in range(20)], names)
    return pd.DataFrame([*stability(list(found.values())), *siblings(found, gene)])


def test_every_score_is_in_the_table_and_in_its_range(scored, agreed, of_masks):
    for row in scored.itertuples():
        assert row.protocol in metric(row.metric).protocols, row
    for row in [*scored.itertuples(), *agreed.itertuples(), *of_masks.itertuples()]:
        listed = metric(row.metric)
        low = -math.inf if listed.low is None else listed.low
        high = math.inf if listed.high is None else listed.high
        assert math.isnan(row.value) or low - 1e-9 <= row.value <= high + 1e-9, row
    assert "protocol" not in agreed and not any(metric(name).protocols for name in agreed["metric"])


def test_every_row_of_the_table_occurs(scored, agreed, of_masks):
    found = set(zip(scored["metric"], scored["protocol"], strict=True))
    assert found == {(row.name, protocol) for row in METRICS.values() for protocol in row.protocols}
    without = {*agreed["metric"], *of_masks["metric"]} - {"mask_density"}  # simulations have this score too
    assert without == {row.name for row in METRICS.values() if not row.protocols}
    values = pd.concat([scored, agreed, of_masks]).groupby("metric")["value"]
    assert (values.count() > 0).all()  # some value is not NaN


def test_the_columns_of_scores_by_condition_are_metrics():
    made = screen(200, 30)
    data = effects(made, np.resize(["train", "val", "test"], 200), reference="control")
    table = per_condition(data.X, data)
    assert set(table["protocol"]) == set(PROTOCOLS)
    for name in set(table.columns) - {"condition", "protocol"}:
        assert metric(name).protocols == PROTOCOLS


def test_rows_are_complete():
    for name, row in METRICS.items():
        assert row.name == name and row.label and set(row.protocols) <= {*PROTOCOLS, FIT, HONEST, TRANSFER}
        assert row.sentence[0].isupper() and row.sentence.endswith(".")
        assert row.label.endswith(f" ({row.unit})") if row.unit else True
        assert row.better in ("higher", "lower", "")
        assert row.low is None or row.high is None or row.low < row.high
    assert {name for name, row in METRICS.items() if not row.better} == {
        "levelled_off", "active_latents", "ate_library", "pit_mean", "posterior_share", "n", "n_top",
            "variance_ratio", "auprc_chance", "n_scored", "n_left_out",
        *(f"{name}{level}" for name in ("coverage", "coverage_top", "naive") for level in LEVELS),
        "mask_density", "mask_jaccard", "mask_jaccard_null", "mask_active_latents", "sibling_rank_null",
        "mask_f1_all_ones", "mask_pathway_accuracy/majority",
        "mask_pathway_balanced_accuracy/majority",
    }  # fmt: skip
    for classifier in CLASSIFIERS:
        assert f"mask_pathway_accuracy/{classifier}" in METRICS
    for rule in MATCHES:
        assert f"mask_f1/{rule}" in METRICS
    assert f"ate_pearson_top{TOP}" in METRICS


def test_labels_and_unknown_names():
    assert axis_label("iwelbo") == "IWELBO (nats per cell)" and axis_label("ate_pearson") == "ATE-Pearson"
    assert metric("ate_r2").high == 1.0 and metric("ate_r2").low is None
    for look_up in (metric, axis_label):
        with pytest.raises(DataError, match=r"metric 'iwelb' is not known. Did you mean 'iwelbo'\? Allowed: iwelbo, "):
            look_up("iwelb")

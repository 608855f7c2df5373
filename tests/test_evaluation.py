"""Scores of a run from files to files, compared with a loop over particles in numpy and scipy."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logsumexp
from scipy.stats import nbinom, norm
from small_files import outputs, settings, write_files
from small_model import model, screen

from samsvae.config.evaluation import EvaluationConfig
from samsvae.data.arrays import read_screen, read_split
from samsvae.data.cells import cells_of, encode
from samsvae.errors import CheckpointError
from samsvae.evaluation.any_truth import truth_or_reason
from samsvae.evaluation.data_effects import effects
from samsvae.evaluation.expression import expression_of_runs, model_expression
from samsvae.evaluation.metrics.de import differential_expression
from samsvae.evaluation.run import evaluate, recovery_scores
from samsvae.evaluation.screen_names import check_names
from samsvae.evaluation.truth_file import write_truth
from samsvae.matrices import read_h5ad, write_h5ad
from samsvae.models.noise import Streams
from samsvae.screens.pack import arrays_of, write_arrays
from samsvae.screens.screen import reference_of, write_screen
from samsvae.screens.simulate import sams, sparse_shift
from samsvae.screens.splits import make_split, write_split
from samsvae.study.train_run import fit
from samsvae.tables import read
from samsvae.training.checkpoint import load, save

RULES = "000000012345"  # all digits: read as text

SMALL = asdict(
    EvaluationConfig(
        iwelbo_particles=7, bound_particles=30, bound_cells=9, ate_samples=20, de_conditions=2, de_cells=25
    )
)


def run(folder, arrays, split, *, reference="control", screen_file=None, name="sams_vae_corr", **changes) -> dict:
    """Train a run and score it; returns the paths of its inputs and outputs."""
    made = read_screen(arrays)
    of_cell = read_split(split, made.cells)
    write_h5ad(effects(made, of_cell, reference=reference), folder / "reference.h5ad")
    write_truth(truth_or_reason(made, of_cell), folder / "truth.npz")
    inputs = {"arrays": arrays, "split": split, "reference": folder / "reference.h5ad", "screen": screen_file}
    inputs["truth"] = folder / "truth.npz"
    out = outputs(folder)
    out |= {name: folder / f"{name}.tsv" for name in ("scores", "per_condition", "bound", "worth", "worth_conditions")}
    out |= {name: folder / f"{name}.h5ad" for name in ("effects", "perturbations")}
    fit(settings(name, **changes), arrays, split, "cpu", out=out)
    how = {"settings": SMALL, "simulated": screen_file is not None, "rules": RULES, "device": "cpu"}
    evaluate(inputs | {"model": out["model"]}, out, **how)
    return inputs | out


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A run on counts with pairs and controls, trained long enough to move every weight from its start."""
    folder = tmp_path_factory.mktemp("counted")
    return run(folder, *write_files(folder, screen()), steps=30)


def scores_of(files) -> dict:
    table = read(files["scores"])
    assert table["run"].nunique() == 1
    found = table.set_index(["protocol", "metric", "split"])["value"]
    assert found.index.is_unique
    return found.to_dict()


def test_tables_name_the_rules_that_made_them(counted):
    """By condition the rows are many, and the table next to them names the rules."""
    for name in ("scores", "worth"):
        assert set(read(counted[name])["rules"]) == {RULES}
    for name in ("per_condition", "worth_conditions"):
        assert "rules" not in read(counted[name])


# ---- an independent forward pass: SAMS-VAE with correlated z_basal and E (docs/model.md) --------------------------


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.01 * x)


def gaussian_head(w: dict, name: str, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = h @ w[f"{name}.mean.weight"].T + w[f"{name}.mean.bias"]
    return mean, np.sqrt(np.exp(h @ w[f"{name}.log_var.weight"].T + w[f"{name}.log_var.bias"]) + 1e-4)


def layer(w: dict, name: str, v: np.ndarray) -> np.ndarray:
    return leaky(v @ w[f"{name}.weight"].T + w[f"{name}.bias"])


def weights_by_hand(net, x: np.ndarray, dosage: np.ndarray, particles: int) -> np.ndarray:
    """log p(x | .) + log p(z) - log q(z | .) of every particle and cell, one particle at a time, in float64."""
    w = {name: tensor.double().numpy() for name, tensor in net.state_dict().items()}
    noise = Streams("0/iwelbo")
    logistic = noise("mask", "logistic", (particles, 4, 4)).double().numpy()
    embedding_noise = noise("embedding", "normal", (particles, 4, 4)).double().numpy()
    z_noise = noise("z_basal", "normal", (particles, len(x), 4)).double().numpy()
    normalised = (np.log1p(x) - w["input_mean"]) / w["input_sd"]
    theta = np.exp(w["likelihood.log_concentration"])
    out = []
    for k in range(particles):
        mask = (w["latents.0.logits"] + logistic[k] > 0).astype(float)
        h = layer(w, "latents.1.network.layers.0", np.hstack([mask, np.eye(4)]))
        h = h + layer(w, "latents.1.network.layers.1", h)
        mean, sd = gaussian_head(w, "latents.1.head", h)
        offset = dosage @ (mask * (mean + sd * embedding_noise[k]))
        h = layer(w, "latents.2.network.layers.0", np.hstack([normalised, offset]))
        mean, sd = gaussian_head(w, "latents.2.head", h)
        z = mean + sd * z_noise[k]
        h = layer(w, "decoder.layers.0", z + offset)
        logits = h @ w["likelihood.mean.weight"].T + w["likelihood.mean.bias"]
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        m = x.sum(1, keepdims=True) * share + 1e-4
        log_x = nbinom.logpmf(x, theta, theta / (theta + m)).sum(1)
        out.append(log_x + (norm.logpdf(z) - norm.logpdf(z, mean, sd)).sum(1))
    return np.array(out)


def test_the_bound_of_held_out_cells_by_hand(counted):
    net, made = load(counted["model"]).model, screen()
    dosage = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
    found = scores_of(counted)
    for name, place in (("val", 2), ("test", 4)):
        at = np.arange(120) % 5 == place
        weights = weights_by_hand(net, made.counts[at].astype(float), dosage[made.condition[at]], 7)
        expected = (logsumexp(weights, axis=0) - np.log(7)).mean()
        assert found["published", "iwelbo", name] == pytest.approx(expected, rel=1e-5)
    assert ("published", "iwelbo", "train") not in found


def test_the_bound_with_all_particles_is_the_published_score(counted):
    """To the last digit; the sample has other cells."""
    bound, scores = (pd.read_csv(counted[name], sep="\t", dtype=str) for name in ("bound", "scores"))
    assert bound["run"].unique().tolist() == ["sams_vae_corr-seed0"] and (bound["rules"] == RULES).all()
    at = bound[bound["metric"] == "iwelbo"].set_index(["cells", "particles"])
    (published,) = scores.loc[(scores["metric"] == "iwelbo") & (scores["split"] == "test"), "value"]
    assert at.loc[("test", "7"), "value"] == published
    assert at["n_cells"].to_dict() == {("test", "1"): "24", ("test", "7"): "24"} | {
        ("sample", size): "9" for size in ("1", "10", "30")
    }


def test_scores_of_effects_are_those_of_the_files(counted):
    """The correlations, pooled and per condition, recomputed from the matrices that the run writes."""
    data, predicted = read_h5ad(counted["reference"]), read_h5ad(counted["effects"])
    assert predicted.shape == data.shape == (5, 9)
    assert predicted.obs_names.tolist() == data.obs_names.tolist() == ["a", "b", "c", "d", "a+c"]
    assert predicted.var_names.tolist() == data.var_names.tolist() and predicted.uns["reference"] == "control"
    found = scores_of(counted)
    both = np.corrcoef(data.X.ravel(), predicted.X.ravel())
    assert found["published", "ate_pearson", "all"] == pytest.approx(both[0, 1], rel=1e-6)
    tested = (data.obs["n_test"] > 0).to_numpy()
    assert 1 < tested.sum() < 5
    both = np.corrcoef(data.layers["held_out"][tested].ravel(), predicted.X[tested].ravel())
    assert found["held-out", "ate_pearson", "test"] == pytest.approx(both[0, 1], rel=1e-6)
    assert np.isfinite(list(found.values())).all()
    names = ["ate_pearson", "ate_pearson_top20", "ate_r2", "ate_r2_top20"]
    for split in ("all", "train", "val", "test"):
        assert all(("published", metric, split) in found for metric in names)
    table = read(counted["per_condition"]).set_index(["protocol", "condition"])
    assert len(table) == 5 + tested.sum() and set(table["run"]) == {"sams_vae_corr-seed0"}
    one = np.corrcoef(data.X[3], predicted.X[3])[0, 1]
    assert table.loc[("published", "d"), "ate_pearson"] == pytest.approx(one, rel=1e-6)


def test_masks_and_embeddings_of_the_run(counted):
    found = read_h5ad(counted["perturbations"])
    logits = load(counted["model"]).model.latents[0].logits.detach().double().numpy()
    assert found.obs_names.tolist() == ["a", "b", "c", "d"]
    np.testing.assert_allclose(found.obsm["mask_probability"], expit(logits), rtol=1e-5)
    assert found.obsm["embedding"].shape == (4, 4)


def test_the_same_scores_again(counted, tmp_path):
    again = run(tmp_path, counted["arrays"], counted["split"], steps=30)
    for name in ("model", "scores", "per_condition", "effects", "perturbations"):
        assert again[name].read_bytes() == counted[name].read_bytes(), name


def test_a_model_with_large_effects_predicts_them(tmp_path):
    """Each perturbation increases one gene tenfold; after a short training the model predicts which."""
    rng = np.random.default_rng(0)
    made = screen(400, 12, pairs=False)
    profile = np.full((5, 12), 1 / 12)
    for t in range(4):
        profile[t, 2 * t + 1] *= 10
    counts = rng.poisson(600 * (profile / profile.sum(1, keepdims=True))[made.condition]).astype(np.int16)
    made = replace(made, counts=counts, library=counts.sum(1).astype(np.float32))
    files = run(tmp_path, *write_files(tmp_path, made), name="cpa_vae_corr", steps=250, batch_size=64)
    predicted = read_h5ad(files["effects"])
    assert predicted.X.argmax(1).tolist() == [1, 3, 5, 7]
    found = scores_of(files)
    assert found["published", "ate_pearson", "all"] > 0.9 and found["held-out", "ate_r2", "test"] > 0.7


@pytest.mark.parametrize("name", ["svae_plus", "cond_vae"])
def test_other_rows_and_the_unique_encoding(tmp_path, name):
    files = run(tmp_path, *write_files(tmp_path, screen()), name=name, encoding="unique")
    assert load(files["model"]).perturbations == ("a", "b", "c", "d", "a+c")
    assert np.isfinite(list(scores_of(files).values())).all()
    tables = read_h5ad(files["perturbations"]).obsm
    assert set(tables) == ({"mask_probability", "embedding"} if name == "svae_plus" else set())


def test_weights_of_other_genes_or_perturbations_are_refused(counted):
    made, weights = screen(), load(counted["model"])
    check_names(weights, made)
    for changes, said in (
        ({"genes": np.array([*made.genes[:-1], "other"])}, "genes.*'gene8', 'other'"),
        ({"genes": made.genes[::-1]}, "genes.*their order differs"),
        ({"perturbations": np.array(["a", "b", "c", "e"])}, "perturbations.*'d', 'e'"),
    ):
        with pytest.raises(CheckpointError, match=said):
            check_names(weights, replace(made, **changes))
    unique = replace(weights, facts=weights.facts | {"encoding": "unique"})
    with pytest.raises(CheckpointError, match=r"perturbations.*'a\+c'"):
        check_names(unique, made)


# ---- simulations ---------------------------------------------------------------------------------------------------


def simulated(folder, made, name, *, real_valued: bool, **model) -> dict:
    write_screen(made, folder / "screen.h5ad", real_valued=real_valued)
    write_arrays(folder / "screen.h5ad", folder / "arrays.npz")
    write_split(make_split(made.obs, kind="given"), folder / "cells.tsv")
    reference = reference_of(folder / "screen.h5ad")
    paths = {"reference": reference, "screen_file": folder / "screen.h5ad"}
    return run(folder, folder / "arrays.npz", folder / "cells.tsv", name=name, model=model, steps=60, **paths)


RECOVERY = ["mcc_pearson", "mcc_spearman", "latent_r2", "mask_f1_all_ones"]
MASK = [f"mask_{m}/{rule}" for m in ("precision", "recall", "f1") for rule in ("true-positives", "correlation")]


def test_recovery_of_a_simulation_by_brute_force(tmp_path):
    made = sams(seed=1, n_latent=3, n_perturbations=8, n_features=12, cells=(25, 6, 8), mask_prob=0.4)
    files = simulated(tmp_path, made, "sams_vae_corr", real_valued=True, likelihood="normal", input="standardise")
    found = scores_of(files)
    assert all(np.isfinite(found["published", metric, "test"]) for metric in [*RECOVERY, *MASK])
    assert {"published", "held-out", "fit"} == {protocol for protocol, _, _ in found}
    assert read_h5ad(files["effects"]).obs_names.tolist() == [f"{t:03d}" for t in range(1, 8)]  # '000' is the reference

    # masks: every assignment of 3 of the 4 learned latents to the true ones
    true = np.asarray(made.uns["truth"]["mask"], bool)
    learned = np.asarray(read_h5ad(files["perturbations"]).obsm["mask_probability"]) > 0.5
    most = max((true & learned[:, list(order)]).sum() for order in itertools.permutations(range(4), 3))
    assert found["published", "mask_precision/true-positives", "test"] == pytest.approx(most / max(learned.sum(), 1))
    assert found["published", "mask_recall/true-positives", "test"] == pytest.approx(most / true.sum())
    assert found["published", "mask_f1/true-positives", "test"] == pytest.approx(
        2 * most / (true.sum() + learned.sum())
    )
    density = true.mean()
    assert found["published", "mask_f1_all_ones", "test"] == pytest.approx(2 * density / (1 + density))

    # latents of the test cells
    test = (made.obs["split"] == "test").to_numpy()
    stored = read_screen(files["arrays"])
    z = load(files["model"]).model.posterior_mean(cells_of(stored, test, encode(stored, "sum"))).numpy()
    correlation = np.abs(np.corrcoef(made.obsm["z_true"][test].T, z.T)[:3, 3:])
    best = max(correlation[[0, 1, 2], list(order)].mean() for order in itertools.permutations(range(4), 3))
    assert found["published", "mcc_pearson", "test"] == pytest.approx(best, rel=1e-4)


def test_interventions_held_out_from_all_splits(tmp_path):
    """Without control and reference, effects are relative to the mean of the scored conditions."""
    made = sparse_shift(seed=0, n_latent=3, n_perturbations=6, n_genes=10, cells=(20, 5, 6), n_held_out=2)
    files = simulated(tmp_path, made, "svae_plus", real_valued=False)
    data, predicted = read_h5ad(files["reference"]), read_h5ad(files["effects"])
    assert predicted.obs_names.tolist() == ["000", "001", "002", "003"]
    for matrix in (data.X, predicted.X, data.layers["held_out"], data.layers["train"]):
        np.testing.assert_allclose(np.asarray(matrix).mean(0), 0, atol=1e-6)
    found = scores_of(files)
    assert np.isfinite(list(found.values())).all()
    # only masks of interventions with training cells count
    true = np.asarray(made.uns["truth"]["mask"], bool)[:4]
    assert found["published", "mask_f1_all_ones", "test"] == pytest.approx(2 * true.mean() / (1 + true.mean()))
    learned = np.asarray(read_h5ad(files["perturbations"]).obsm["mask_probability"])[:4] > 0.5
    most = max((true & learned[:, list(order)]).sum() for order in itertools.permutations(range(4), 3))
    assert found["published", "mask_recall/true-positives", "test"] == pytest.approx(most / true.sum())


@pytest.mark.parametrize(
    ("name", "targets"), [("ivae", 2), ("ivae_drawn", 4), ("vae", None), ("cpa_vae_mf", None), ("svae_plus", 0)]
)
def test_what_is_read_as_targets(name, targets, caplog):
    """iVAE: the two largest embeddings. A drawn mask: as it is. A mask without ones is called empty in the log."""
    made = sparse_shift(seed=0, n_latent=3, n_perturbations=6, n_genes=10, cells=(10, 4, 6), n_held_out=0)
    stored = arrays_of(made)
    net = model(name, 10, 6, **({"mask_logit_init": -9.0} if name == "svae_plus" else {})).eval()
    split = made.obs["split"].to_numpy(str)
    found = {row["metric"]: row["value"] for row in recovery_scores(net, stored, split, made, "sum", "cpu")}
    assert ("mask_f1/correlation" in found) == (targets is not None)
    assert found.get("mask_density") == (None if targets is None else targets / 4)
    assert ("the inferred mask is empty: 0 of 24 entries are on" in caplog.text) == (targets == 0)


# ---- differential expression of the model --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expressed(counted):
    made = screen()
    labels = made.conditions[made.condition]
    data = differential_expression(made.counts, labels, made.genes, control="control")
    return data, *model_expression(counted["model"], counted["arrays"], data, settings=SMALL)


def test_expression_is_tested_for_the_conditions_with_most_genes(expressed):
    data, tests, agreement = expressed
    counts = {c: 0 for c in data["condition"]}
    for row in data.itertuples():
        counts[row.condition] += row.method == "wilcoxon" and row.padj < 0.05
    two = sorted(counts, key=lambda c: -counts[c])[:2]
    assert max(counts.values()) > 0 and set(tests["condition"]) == set(agreement["condition"]) == set(two)
    assert len(tests) == 2 * 2 * 9  # conditions, methods, genes
    assert set(tests["run"]) == set(agreement["run"]) == {"sams_vae_corr-seed0"}
    assert tests["pvalue"].between(0, 1).all() and (tests["padj"] >= tests["pvalue"]).all()


def test_agreement_of_expression_by_hand(expressed):
    data, tests, agreement = expressed
    for (condition, method), rows in agreement.groupby(["condition", "method"]):
        ours, theirs = (
            t[(t["condition"] == condition) & (t["method"] == method)].set_index("gene") for t in (tests, data)
        )
        significant = theirs.index[theirs["padj"] < 0.05]
        same = [np.sign(ours["log_fold_change"][g]) == np.sign(theirs["log_fold_change"][g]) for g in significant]
        value = rows.set_index("metric")["value"]
        assert set(value.index) == {"de_sign_accuracy", "de_auprc"}  # nine genes are too few for the top 20
        expected = np.mean(same) if same else np.nan
        assert value["de_sign_accuracy"] == pytest.approx(expected, nan_ok=True)


def test_sampled_expression_follows_the_model(counted, tmp_path):
    """The perturbation 'b' increases gene 4 in this model, and the tests in its samples find that gene."""
    made, weights = screen(), load(counted["model"])
    net = weights.model
    state = {name: np.zeros_like(t.numpy()) for name, t in net.state_dict().items()}
    state["input_sd"] += 1
    state["latents.0.logits"] += 30  # masks of ones
    state["likelihood.log_concentration"] += 3
    for name in ("latents.1.head.log_var.bias", "latents.2.head.log_var.bias"):
        state[name] -= 9
    # E of 'b' moves the first latent by 40, which moves gene 4; all leaky ReLUs are on their positive side
    state["latents.1.network.layers.0.weight"][0, 4 + 1] = 1.0
    state["latents.1.head.mean.weight"][0, 0] = 40.0
    state["decoder.layers.0.weight"][0, 0] = 1.0
    state["likelihood.mean.weight"][4, 0] = 0.05
    net.load_state_dict({name: net.state_dict()[name].new_tensor(value) for name, value in state.items()})
    save(weights, tmp_path / "model.pt")
    labels = made.conditions[made.condition]
    data = differential_expression(made.counts, labels, made.genes, control="control", conditions=["b"])
    tests, _ = model_expression(tmp_path / "model.pt", counted["arrays"], data, settings=SMALL)
    for method in ("wilcoxon", "t-test"):
        rows = tests[tests["method"] == method].set_index("gene")
        assert rows["score"].idxmax() == "gene4" and rows["padj"]["gene4"] < 1e-3
        assert rows["log_fold_change"]["gene4"] > 1


def test_expression_of_several_runs_is_that_of_each(counted, expressed):
    data, *alone = expressed
    twice = expression_of_runs([counted["model"]] * 2, counted["arrays"], data, settings=SMALL)
    for one, both in zip(alone, twice, strict=True):
        pd.testing.assert_frame_equal(pd.concat([one, one], ignore_index=True), both)


def test_conditions_without_significant_genes_can_be_requested(counted):
    """Conditions with most significant genes come first; if none has any, the order of the table stays."""
    made = screen()
    data = differential_expression(made.counts, made.conditions[made.condition], made.genes, control="control")
    data = data.assign(padj=1.0)
    tests, agreement = model_expression(counted["model"], counted["arrays"], data, settings=SMALL)
    assert set(tests["condition"]) == set(pd.unique(data["condition"])[:2])
    assert agreement["value"].isna().all()

"""What covariates are worth on simulated screens whose effects are known: fits of a minute of CPU time in all."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from test_contexts import HOW, OPTIONS, contexts

from samsvae.api import fit
from samsvae.data.cells import encode
from samsvae.evaluation.honest import model_tables
from samsvae.evaluation.metrics.effects import pearson
from samsvae.evaluation.truth import truth_of
from samsvae.screens.custom import screen_of
from samsvae.screens.pack import arrays_of
from samsvae.screens.splits import make_split

PERTURBATIONS, GENES, DEPTH = 8, 60, 2000.0


def simulate(shift: float, n: int = 900, seed: int = 0, *, spared: bool = False) -> tuple[ad.AnnData, np.ndarray]:
    """A screen whose perturbations are spread unevenly over three batches, and its true effects (P, G) in log2.

    ``shift``: the size of what batches do to genes. ``spared``: the first half of the perturbations do nothing in the
    third batch. The true effects are means over many cells, as many in each batch.
    """
    rng = np.random.default_rng(seed)
    programs = rng.normal(0, 0.8, (4, GENES)) * (rng.random((4, GENES)) < 0.25)
    size = rng.uniform(0.6, 1.4, (PERTURBATIONS, 1))
    shifts = np.vstack([size * np.eye(4)[np.arange(PERTURBATIONS) % 4] @ programs, np.zeros(GENES)])
    shares = np.vstack([rng.dirichlet(np.full(3, 0.5), PERTURBATIONS), np.full(3, 1 / 3)])
    of_batch, base = shift * rng.normal(0, 0.6, (3, GENES)), rng.normal(0, 1, GENES)
    loadings = rng.normal(0, 0.25, (2, GENES))

    def counts(code: np.ndarray, batch: np.ndarray) -> np.ndarray:
        none = spared & (batch == 2) & (code < PERTURBATIONS // 2)
        rate = np.exp(
            base + shifts[code] * ~none[:, None] + of_batch[batch] + rng.normal(size=(len(code), 2)) @ loadings
        )
        return rng.poisson(DEPTH * rate / rate.sum(1, keepdims=True))

    code = np.where(rng.random(n) < 0.25, PERTURBATIONS, rng.integers(PERTURBATIONS, size=n))
    batch = np.array([rng.choice(3, p=shares[c]) for c in code])
    names = np.array([*(f"p{i}" for i in range(PERTURBATIONS)), "control"])
    obs = pd.DataFrame({"guide": names[code], "batch": batch}, index=[f"c{i}" for i in range(n)])
    obs["split"] = rng.choice(["train", "val", "test"], n, p=[0.6, 0.15, 0.25])
    data = ad.AnnData(counts(code, batch).astype(np.float32), obs, pd.DataFrame(index=[f"g{i}" for i in range(GENES)]))
    means = []
    for c in range(PERTURBATIONS + 1):
        x = counts(np.full(900, c), np.arange(900) % 3)
        means.append(np.log2(1 + 1e4 * x / x.sum(1, keepdims=True)).mean(0))
    return data, np.stack(means[:-1]) - means[-1]


def scores(data: ad.AnnData, truth: np.ndarray, covariates: list[str], **more) -> tuple[float, float, float]:
    """IWELBO of test cells in nats, Pearson correlation and root mean square error of effects with the true ones."""
    fitted = fit(
        data, perturbation="guide", control="control", split="split", covariates=covariates, steps=700, progress=False,
        **more,
    )  # fmt: skip
    effects = fitted.effects([f"p{i}" for i in range(PERTURBATIONS)], draws=50, cells=10)["effect"].to_numpy()
    bound = fitted.score(data[data.obs["split"] == "test"].copy(), particles=20).mean()
    apart = truth.ravel() - effects
    return float(bound), float(pearson(truth.ravel(), effects)), float(np.sqrt((apart**2).mean()))


def test_a_batch_effect_costs_likelihood_and_effects_unless_it_is_a_covariate():
    data, truth = simulate(shift=1.0)
    without, with_batch = scores(data, truth, []), scores(data, truth, ["batch"])
    assert with_batch[0] > without[0] + 1.5  # nats per cell
    assert with_batch[1] > 0.97 > without[1] + 0.05
    assert with_batch[2] < 0.5 * without[2]


def test_without_a_batch_effect_a_covariate_costs_next_to_nothing():
    data, truth = simulate(shift=0.0)
    without, with_batch = scores(data, truth, []), scores(data, truth, ["batch"])
    assert abs(with_batch[0] - without[0]) < 0.4  # of 180 nats per cell; seeds differ by 0.1
    assert with_batch[1] > without[1] - 0.01 and with_batch[1] > 0.97


def test_effects_that_depend_on_the_level_need_levels_that_interact():
    """Half of the perturbations do nothing in the third batch."""
    data, _ = simulate(shift=1.0, n=1500, spared=True)
    found = {}
    for how in ("additive", "interacting"):
        fitted = fit(
            data, perturbation="guide", control="control", split="split", covariates=["batch"], covariate_effect=how,
            steps=700, progress=False,
        )  # fmt: skip
        names = [f"p{i}" for i in range(PERTURBATIONS)]
        effects = [
            fitted.effects(names, draws=50, cells=10, covariates={"batch": batch})["effect"].to_numpy()
            for batch in ("0", "2")
        ]
        first, third = (each.reshape(PERTURBATIONS, GENES)[: PERTURBATIONS // 2] for each in effects)
        found[how] = np.sqrt((third**2).mean() / (first**2).mean())
    assert found["interacting"] < 0.75 < 0.9 < found["additive"]


def test_effects_and_cells_of_a_context_of_which_only_controls_were_seen():
    data, _ = contexts(n=1200)
    screen = screen_of(data, **OPTIONS)
    screen.obs.attrs |= {"controls": ["control"], "covariates": OPTIONS["covariates"]}
    data.obs["split"] = make_split(screen.obs, **HOW)["split"].to_numpy()
    arrays = arrays_of(screen)
    truth = truth_of(arrays, data.obs["split"].to_numpy())
    found = {}
    for covariates in (OPTIONS["covariates"], []):
        fitted = fit(
            data, "cond_vae", perturbation="gene", control="control", split="split", covariates=covariates, steps=700,
            progress=False,
        )  # fmt: skip
        table, _ = model_tables(fitted.checkpoint.model, truth, encode(arrays, "sum").members, draws=10, cells=6)
        found[bool(covariates)] = table[table["set"] == "seen"].set_index("metric")["value"]
    assert found[True]["pearson_centred"] > 0.94
    # cells are where those of the context are only if the model knows the context
    assert found[True]["energy_share"] < 0.2 < 1 < found[False]["energy_share"]

"""The two published simulations, in which the true mechanism is known (numpy only; the result is a filtered screen).

Letters: n cells, T perturbations, L latents, G features. The result depends only on the arguments: the same seed gives
the same bytes. The mechanism, the decoder and the cells have separate random streams, so the true mechanism of a seed
does not change with the number of cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.config.vocabulary import SPLITS
from samsvae.errors import ConfigError, nearest
from samsvae.screens.screen import assemble, provenance

INITS = ("orthogonal", "kaiming_normal", "sparse")

NORMALISATIONS = ("published", "per_cell")

CONTROL = "control"


def sams(
    *,
    seed: int = 0,
    n_latent: int = 15,
    n_perturbations: int = 100,
    n_features: int = 100,
    cells: Sequence[int] = (500, 100, 100),
    mask_prob: float = 2 / 15,
    effect_mean: float = 5.0,
    effect_sd: float = 0.5,
    n_layers: int = 4,
    n_hidden: int = 50,
    slope: float = 0.2,
    init: str = "orthogonal",
    sparsity: float = 0.5,
    exponentiate: bool = False,
    noise_share: float = 0.2,
) -> ad.AnnData:
    """The simulation of the SAMS-VAE paper: real-valued, for the likelihood ``normal``, with the authors' defaults.

    z = z_b + M * E with M ~ Bern(mask_prob), |E| ~ N(effect_mean, effect_sd) with a random sign (probability 1/2), and
    z_b ~ N(0, I). The decoder has no biases. Its output is divided by the sd of each feature over all cells and
    optionally exponentiated; then normal noise is added, with a share ``noise_share`` of the feature's total variance.

    ``cells``: train, validation and test cells per perturbation. ``init``: orthogonal, kaiming_normal or sparse
    weights. ``sparsity``: for sparse weights, the share of zeros in the outgoing weights of each unit (our choice of
    value). The weights need no overall scale, because the division by the sd cancels it.

    X (n, G) is float32. library_size is 1, because a total of real values has no meaning. There are no control cells:
    effects are relative to perturbation '000', uns['reference']. ConfigError for a parameter outside its range.
    """
    parameters = dict(locals())
    _check_at_least(1, n_latent=n_latent, n_perturbations=n_perturbations, n_features=n_features, n_hidden=n_hidden)
    _check_at_least(0, n_layers=n_layers, effect_sd=effect_sd)
    _check_share(mask_prob=mask_prob, noise_share=noise_share, sparsity=sparsity)
    _check_one_of("init", init, INITS)
    mechanism, decoder, noise = _streams(seed)

    mask = mechanism.random((n_perturbations, n_latent)) < mask_prob
    effect = _signed(mechanism, mask.shape, effect_mean, effect_sd)
    split = np.tile(np.repeat(SPLITS, _check_cells(cells)), n_perturbations)
    code = np.repeat(np.arange(n_perturbations), sum(cells))

    z = noise.standard_normal((len(code), n_latent)) + (mask * effect)[code]  # (n, L)
    widths = [n_latent, *[n_hidden] * n_layers, n_features]
    weights = [_weights(decoder, i, o, init, sparsity) for i, o in pairwise(widths)]
    mean = _decode(z, weights, slope)
    mean /= _sd(mean)
    if exponentiate:
        mean = np.exp(mean)
    noise_sd = mean.std(0) * np.sqrt(noise_share / (1 - noise_share))  # noise / (signal + noise) = share
    x = (mean + noise_sd * noise.standard_normal(mean.shape)).astype(np.float32)

    names = _numbered("", n_perturbations)
    obs, truth = {"condition": names[code], "split": split}, {"mask": mask, "effect": effect}
    screen = _screen("sams", parameters, x, obs, z, truth)
    screen.uns["reference"] = names[0]
    return screen


def sparse_shift(
    *,
    seed: int = 0,
    n_latent: int = 15,
    n_perturbations: int = 100,
    n_genes: int = 100,
    cells: Sequence[int] = (400, 50, 50),
    n_held_out: int = 20,
    n_controls: int = 0,
    most_targets: int = 3,
    effect_mean: float = 5.0,
    effect_sd: float = 0.5,
    n_layers: int = 3,
    n_hidden: int = 40,
    slope: float = 0.2,
    normalisation: str = "published",
    depth: float = 1e6,
    library_size: float = 2000.0,
) -> ad.AnnData:
    """The simulation of SVAE+ (Lopez et al. 2023, "sparse shift"): counts, with the paper's defaults.

    Each intervention shifts k ~ uniform{1 .. most_targets} latents, drawn *with replacement* (duplicates collapse, so
    1.9 targets on average), by N(effect_mean, effect_sd) with a random sign (probability 1/2); z ~ N(shift, I). The
    logits come from a decoder without biases, whose weight matrices (in, out) have orthonormal rows scaled as
    published, and are divided by their overall sd.

    ``normalisation`` 'published': the rate of every *gene* is divided by its sum over cells and counts ~ Poisson(depth
    * that), so the mean count falls as cells are added. 'per_cell': counts ~ Poisson(library_size * softmax over
    genes), as in the text of the paper (2,000 is the mean depth that the published normalisation gives 50,000 cells). A
    cell that draws no molecule gets one, of a gene drawn in proportion to its rates, so no cell has library size 0.

    ``cells``: train, validation and test cells per intervention. The last ``n_held_out`` interventions are held out
    ('held_out' in obs and uns['perturbations']); their cells have split 'none'. ``n_controls`` adds unshifted cells,
    split in the proportions of ``cells``. X (n, G) is CSR int32. ConfigError for a parameter outside its range.
    """
    # Longer than 60 lines because it lists the paper's parameters, its protocol and its steps in one place.
    parameters = dict(locals())
    _check_at_least(1, n_latent=n_latent, n_perturbations=n_perturbations, n_genes=n_genes, n_hidden=n_hidden)
    _check_at_least(1, most_targets=most_targets)
    _check_at_least(0, n_held_out=n_held_out, n_controls=n_controls, n_layers=n_layers, effect_sd=effect_sd)
    if n_held_out >= n_perturbations:
        raise ConfigError(
            f"n_held_out: {n_held_out} is not allowed with {n_perturbations} perturbations; allowed: at most "
            f"{n_perturbations - 1}, so that one is left to train on."
        )
    if min(depth, library_size) <= 0:
        raise ConfigError(f"depth: {depth} and library_size: {library_size} must both be above 0.")
    _check_one_of("normalisation", normalisation, NORMALISATIONS)
    mechanism, decoder, noise = _streams(seed)

    mask = _targets(mechanism, n_perturbations, n_latent, most_targets)
    effect = _signed(mechanism, mask.shape, effect_mean, effect_sd)
    code, split = _design(cells, n_perturbations, n_controls)
    held_out = code >= n_perturbations - n_held_out
    split[held_out] = "none"

    shift = np.vstack([mask * effect, np.zeros(n_latent)])  # the last row is the control, code -1
    z = noise.standard_normal((len(code), n_latent)) + shift[code]  # (n, L)
    widths = [n_latent, *[n_hidden] * n_layers, n_genes]
    gain = np.sqrt(2 / (1 + slope**2))
    weights = [_orthogonal(decoder, i, o) * gain * np.sqrt(2 / (i + o)) for i, o in pairwise(widths)]
    logits = _decode(z, weights, slope)
    rate = np.exp(logits / logits.std())
    rate *= depth / rate.sum(0) if normalisation == "published" else library_size / rate.sum(1, keepdims=True)
    counts = _draw_counts(noise, rate)

    names = _numbered("", n_perturbations)
    obs, truth = {"condition": np.append(names, CONTROL)[code], "split": split}, {"mask": mask, "effect": effect}
    control = CONTROL if n_controls else ""
    screen = _screen("sparse_shift", parameters, sparse.csr_matrix(counts), obs, z, truth, control)
    screen.obs["held_out"] = held_out
    screen.uns["perturbations"]["held_out"] = np.arange(n_perturbations) >= n_perturbations - n_held_out
    return screen


def _targets(rng: np.random.Generator, n_perturbations: int, n_latent: int, most_targets: int) -> np.ndarray:
    """The mask (T, L): 1 to `most_targets` draws of a latent per intervention, with replacement."""
    mask = np.zeros((n_perturbations, n_latent), bool)
    targets = rng.integers(n_latent, size=(n_perturbations, most_targets))
    drawn = np.arange(most_targets) < rng.integers(1, most_targets + 1, n_perturbations)[:, None]
    mask[np.nonzero(drawn)[0], targets[drawn]] = True  # a latent drawn twice is one target
    return mask


def _design(cells: Sequence[int], n_perturbations: int, n_controls: int) -> tuple[np.ndarray, np.ndarray]:
    """The intervention of every cell (n; -1 for a control) and its split (n)."""
    each = sum(_check_cells(cells))
    code = np.concatenate([np.repeat(np.arange(n_perturbations), each), np.full(n_controls, -1)])
    ends = np.cumsum(cells[:2]) * n_controls // each  # where the train and val controls end
    controls_split = np.repeat(SPLITS, np.diff([0, *ends, n_controls]))
    return code, np.concatenate([np.tile(np.repeat(SPLITS, cells), n_perturbations), controls_split])


def _draw_counts(rng: np.random.Generator, rate: np.ndarray) -> np.ndarray:
    """Poisson counts (n, G), int32; an empty cell gets one molecule of a gene drawn in proportion to its rates."""
    counts = rng.poisson(rate).astype(np.int32)
    for cell in np.flatnonzero(counts.sum(1) == 0):
        counts[cell, rng.choice(rate.shape[1], p=rate[cell] / rate[cell].sum())] = 1
    return counts


def _streams(seed: int) -> list[np.random.Generator]:
    """Separate generators for the mechanism, the decoder and the cells."""
    _check_at_least(0, seed=seed)
    return [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]


def _signed(rng: np.random.Generator, shape: tuple[int, ...], mean: float, sd: float) -> np.ndarray:
    """N(mean, sd) times a random sign (probability 1/2)."""
    return rng.normal(mean, sd, shape) * rng.choice([-1.0, 1.0], shape)


def _orthogonal(rng: np.random.Generator, n_in: int, n_out: int) -> np.ndarray:
    """Haar-distributed (in, out) matrix with orthonormal rows (columns if out < in)."""
    q, r = np.linalg.qr(rng.standard_normal((max(n_in, n_out), min(n_in, n_out))))
    q *= np.sign(np.diag(r))
    return q if n_in >= n_out else q.T


def _weights(rng: np.random.Generator, n_in: int, n_out: int, init: str, sparsity: float) -> np.ndarray:
    """A weight matrix (in, out), up to a factor."""
    if init == "orthogonal":
        return _orthogonal(rng, n_in, n_out)
    weights = rng.standard_normal((n_in, n_out)) / np.sqrt(n_in)
    if init == "sparse":
        zeros = round(sparsity * n_out)
        weights[rng.random(weights.shape).argsort(1) < zeros] = 0  # this many in each row
    return weights


def _decode(z: np.ndarray, weights: Sequence[np.ndarray], slope: float) -> np.ndarray:
    """Leaky-ReLU network without biases and with a linear last layer: (n, L) to (n, G)."""
    h = z @ weights[0]
    for w in weights[1:]:
        h = np.where(h > 0, h, slope * h) @ w
    return h


def _sd(x: np.ndarray) -> np.ndarray:
    """The sd of every column; 1 for a constant column."""
    sd = x.std(0)
    return np.where(sd > 0, sd, 1.0)


def _screen(
    simulation: str,
    parameters: dict,
    x: np.ndarray | sparse.csr_matrix,
    obs: dict[str, np.ndarray],
    z: np.ndarray,
    truth: dict[str, np.ndarray],
    control: str = "",
) -> ad.AnnData:
    """The filtered screen of a simulation; `obs` has the columns condition and split."""
    n, n_features = x.shape
    screen = assemble(
        x,
        pd.DataFrame({"split": pd.Categorical(obs["split"])}, index=_numbered("cell", n)),
        pd.DataFrame(index=_numbered("gene", n_features)),
        condition=obs["condition"],
        control=control,
        separator="",
        real_valued=not sparse.issparse(x),
        uns={"truth": {"mask": truth["mask"].astype(np.uint8), "effect": truth["effect"].astype(np.float32)}},
        provenance=provenance(
            f"{__name__}.{simulation}", filter="none", parameters=parameters, source_shape=x.shape, kept_shape=x.shape
        ),
    )
    screen.obsm["z_true"] = z.astype(np.float32)
    return screen


def _numbered(prefix: str, n: int) -> np.ndarray:
    """Names that sort in numeric order, with at least three digits: '000', '001', ..."""
    return np.array([f"{prefix}{i:0{max(3, len(str(n - 1)))}d}" for i in range(n)], object)


def _check_cells(cells: Sequence[int]) -> Sequence[int]:
    if len(cells) != 3 or min(cells) < 0 or cells[0] < 1:
        raise ConfigError(
            f"cells: {list(cells)} is not allowed; allowed: three numbers, train (at least 1), validation and test."
        )
    return cells


def _check_at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise ConfigError(f"{name}: {value} is not allowed; allowed: {least} or more.")


def _check_share(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{name}: {value} is not allowed; allowed: a share from 0 to below 1.")


def _check_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}: {value!r} is not allowed.{nearest(value, allowed)}")

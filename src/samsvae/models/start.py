"""Where a training starts: the decoder's output bias and the spread of the likelihood (docs/model.md, eq. 2).

``published`` keeps the random bias of the layer and a concentration of 1. ``data`` sets both from the training cells,
so that a training does not have to learn the mean of every gene first. ``random`` draws log theta from N(0, 1), and
equals ``published`` for likelihoods without theta.
Letters: n cells, G genes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from samsvae.config.first_fit import SEVERAL
from samsvae.config.vocabulary import FLOOR
from samsvae.models.batch import Batch, CellTable
from samsvae.models.latents import Embedding
from samsvae.models.levels import one_hot
from samsvae.models.model import Model
from samsvae.models.networks import Likelihood

#: Range of the concentrations that `start_from_data` sets.
CONCENTRATIONS = (1e-2, 1e3)

#: The bias and the standard deviation of `start_linear`.
LINEAR, QUIET = 5.0, 0.1

#: Least mean and variance of a gene whose logarithm is taken.
LEAST = 1e-4

#: How often the levels of several covariates are fitted in turn.
SWEEPS = 10

#: Number of counts that are read at once.
CHUNK = 2**22


@torch.no_grad()
def initialise(model: Model, cells: CellTable, *, seed: int = 0, received: float = 1.0) -> None:
    """Prepare a new model for its training cells: the moments of its input (eq. 10) and its setting ``start``.

    ``seed`` is used by ``start: random`` alone. ``received``: how many perturbations a cell received on average; with
    more than SEVERAL, ``start: data`` also is a `start_linear`.
    """
    model.fit_inputs(cells)
    if model.config.start == "data":
        start_from_data(model.likelihood, cells)
        if model.level_offset is not None and model.config.likelihood == "nb":
            theta = torch.exp(model.likelihood.log_concentration)
            model.level_offset.copy_(level_profiles(cells, model.covariates, theta))
        if model.config.effect == "additive" and received > SEVERAL:
            start_linear(model)
    elif model.config.start == "random" and model.config.likelihood == "nb":
        r = model.likelihood.log_concentration
        r.copy_(torch.randn(r.shape, generator=torch.Generator().manual_seed(seed), dtype=r.dtype))


@torch.no_grad()
def start_linear(model: Model) -> None:
    """Start where effects add up: for cells that received many perturbations at a time.

    Every hidden unit of the decoder's first layer starts with the bias LINEAR, far from its kink, so that the decoder
    is linear at first; the output bias makes up for it. Embeddings start with the standard deviation QUIET, since the
    noise of all perturbations of a cell adds up.
    """
    first, out = model.decoder.layers[0], model.likelihood.mean
    if len(model.decoder.layers) == 1:
        first.bias.fill_(LINEAR)
        out.bias.sub_(LINEAR * out.weight.sum(1))
    for latent in model.latents:
        if isinstance(latent, Embedding):
            latent.start_quiet(QUIET)


@torch.no_grad()
def start_from_data(likelihood: Likelihood, cells: CellTable) -> None:
    """Set the output bias and the concentration or variance of every gene (G,) from the training cells.

    With X_g the sum of a gene's counts and L the sum of the library sizes, the proportion of the gene is
    p_g = (X_g + 1/2) / (L + G/2), and mu = l p_g. ``nb``: the bias is log p_g minus its mean over genes, and theta_g is
    E[mu^2] / (E[(x - mu)^2] - E[mu]), or 1000 if the denominator is not positive. ``poisson``: softplus of the bias is
    the mean. ``normal`` and ``normal_fixed``: the bias is the mean, and the variance that of the cells.
    """
    sizes = torch.zeros(2, dtype=torch.float64, device=likelihood.mean.bias.device)  # sums of l and l^2
    sums = sizes.new_zeros(3, len(likelihood.mean.bias))  # sums of x, x^2 and l x
    for batch in _batches(cells, sums.shape[1]):
        x, library = batch.x.double(), batch.library.double()
        sizes += torch.stack([library.sum(), library.square().sum()])
        sums += torch.stack([x.sum(0), x.square().sum(0), library @ x])
    n, (total, squares, products), (size, size_squares) = len(cells), sums, sizes
    mean = (total / n).clamp(min=LEAST)
    if likelihood.kind == "nb":
        p = (total + 0.5) / (size + 0.5 * len(total))
        likelihood.mean.bias.copy_(torch.log(p) - torch.log(p).mean())
        expected = p.square() * size_squares / n
        excess = squares / n - 2.0 * p * products / n + expected - p * size / n
        theta = torch.where(excess > 0, expected / excess, CONCENTRATIONS[1]).clamp(*CONCENTRATIONS)
        likelihood.log_concentration.copy_(torch.log(theta))
    elif likelihood.kind == "poisson":
        likelihood.mean.bias.copy_(mean + torch.log(-torch.expm1(-mean)))  # the inverse of softplus
    else:
        likelihood.mean.bias.copy_(total / n)
        log_var = likelihood.log_var.bias if isinstance(likelihood.log_var, nn.Linear) else likelihood.log_var
        log_var.copy_(torch.log((squares / n - (total / n).square()).clamp(min=LEAST)))


@torch.no_grad()
def level_profiles(cells: CellTable, sizes: Sequence[int], theta: Tensor) -> Tensor:
    """How the log proportions of genes in unperturbed cells differ between the levels of covariates (S, G).

    All cells are used if none is unperturbed. The differences are the main effects of a Poisson regression on all
    covariates at once, by proportional fitting: with m_jg the expected counts in the cells with the j-th combination of
    levels, every level in turn gets log((sum_j x_jg + 1/2) / (sum_j m_jg + 1/2)) added, where j runs over the
    combinations with this level. Then empirical Bayes (eq. 19): a difference b from n cells and x counts has the
    sampling variance v = 1 / (x + 1/2) + 1 / (n theta) and is multiplied by t / (t + v), where t, the variance of the
    covariate's true differences, is sum (b^2 / v - 1) / sum (1 / v), or 0 if this is negative. So a covariate without
    an effect starts near 0, and a level without cells at 0.
    ``sizes`` (V,): the number of levels of each covariate, as in the codes of the cells. ``theta`` (G,):
    concentrations.
    """
    assert cells.covariates is not None  # a model with levels is trained on cells that have them
    combinations, of = torch.unique(cells.covariates, dim=0, return_inverse=True)
    n_genes = len(theta)
    # columns: counts of the genes, library size and number of cells; of unperturbed and of other cells
    sums = torch.zeros(2, len(combinations), n_genes + 2, dtype=torch.float64, device=of.device)
    start = 0
    for batch in _batches(cells, n_genes):
        j, perturbed = of[start : start + len(batch.x)], (batch.dosage.dose != 0).any(-1).long()
        values = torch.cat([batch.x, batch.library[:, None], torch.ones_like(batch.library)[:, None]], 1)
        sums.flatten(0, 1).index_add_(0, perturbed * len(combinations) + j, values.double())
        start += len(j)
    counts, library, n = (sums[0] if sums[0, :, -1].any() else sums.sum(0)).split([n_genes, 1, 1], 1)
    p = (counts.sum(0) + 0.5) / (library.sum() + 0.5 * n_genes)
    ones = one_hot(combinations, sizes).double()
    offset = counts.new_zeros(sum(sizes), n_genes)
    each = torch.arange(sum(sizes)).split(list(sizes))
    for _ in range(SWEEPS if len(sizes) > 1 else 1):
        for level in each:
            expected = library * p * torch.exp(ones @ offset)
            here = ones[:, level].T
            offset[level] += torch.log((here @ counts + 0.5) / (here @ expected + 0.5))
    precision = 1.0 / (1.0 / (ones.T @ counts + 0.5) + 1.0 / (ones.T @ n * theta.double()))
    for level in each:
        weight = precision[level]  # 0 without cells
        t = ((offset[level].square() * weight - (weight > 0).double()).sum() / weight.sum()).clamp(min=0.0)
        offset[level] *= t * weight / (t * weight + 1.0)
    return offset


@torch.no_grad()
def intercept_only(kind: str, train_cells: CellTable, cells: CellTable, *, floor: float = FLOOR) -> float:
    """Mean log-likelihood per cell, in nats, if every cell has the mean profile of the training cells.

    ``kind``: the likelihood, whose parameters `start_from_data` sets on ``train_cells``; ``cells`` are scored.
    ``floor``: of the mean of ``nb``.
    It is cheap enough for every training and needs torch alone; `samsvae.evaluation` fits the same model by scipy.
    """
    first = train_cells.batch(slice(0, 1))
    head = Likelihood(kind, 1, first.x.shape[1], floor=floor).to(first.x.device)
    for parameter in head.parameters():
        parameter.zero_()
    start_from_data(head, train_cells)
    total = 0.0
    for batch in _batches(cells, first.x.shape[1]):
        h = batch.x.new_zeros(1, len(batch.x), 1)
        total += head(h, batch.library).log_likelihood(batch.x).double().sum().item()
    return total / len(cells)


def _batches(cells: CellTable, n_genes: int) -> Iterator[Batch]:
    rows = max(1, CHUNK // n_genes)
    return (cells.batch(slice(start, start + rows)) for start in range(0, len(cells), rows))

"""The KL terms of the ELBO (eq. 11, 12): log p - log q of every latent, or minus its KL in closed form.

Letters: K particles, n cells, R perturbations drawn, L latents.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from samsvae.models.batch import Batch, MultiHot
from samsvae.models.distributions import Bernoulli, Beta, Distribution, Normal, Point
from samsvae.models.latents import Draw, Latent
from samsvae.ops.explicit_gradients import bernoulli_log_ratio, normal_log_ratio, usable


def kl_terms(
    latents: Iterable[Latent],
    draw: Draw,
    batch: Batch,
    *,
    analytic_kl: bool,
    plate: float | None,
    extra_share: float,
) -> dict[str, Tensor]:
    """The term of every latent that has a guide and a prior, by its name: (K, n) or broadcastable to it.

    The options are those of ``Model.terms``. A mask whose probability was drawn has no term: its prior is its guide.
    """
    terms, values = {}, draw.known
    for latent in latents:
        guide = draw.guides.get(latent.name)
        if guide is None or (prior := latent.prior(values, batch)) is None:
            continue
        if analytic_kl and (kl := closed_kl(guide, prior)) is not None:
            term = -kl.sum(-1)
        else:
            term = log_ratio(prior, guide, values[latent.name], draw.noise.get(latent.name))
        if latent.plate == "perturbation" and plate is not None:
            term = plate * term.sum(-1, keepdim=True)
        terms[latent.name] = term
    names = [latent.name for latent in latents if latent.plate == "perturbation" and latent.name in terms]
    if plate is None and names:  # all at once, because each would take as many operations
        every = torch.stack(torch.broadcast_tensors(*(terms[name] for name in names)))
        terms |= zip(names, _to_cells(every, batch, extra_share), strict=True)
    return terms


def log_ratio(prior: Distribution, guide: Distribution, value: Tensor, noise: Tensor | None) -> Tensor:
    """log p(value) - log q(value), summed over L; ``noise``: that of a normal draw, if the value was drawn."""
    if usable(value, products=False):
        if noise is not None and isinstance(guide, Normal) and isinstance(prior, Normal):
            return normal_log_ratio(value, noise, (prior.loc, prior.scale), guide.scale)
        if isinstance(guide, Bernoulli) and isinstance(prior, Bernoulli):
            return bernoulli_log_ratio(value, prior.logits, guide.logits)
    own = prior.log_prob(value)
    return (own if isinstance(guide, Point) else own - guide.log_prob(value)).sum(-1)


def closed_kl(guide: Distribution, prior: Distribution) -> Tensor | None:
    """KL(guide || prior), elementwise, in closed form (eq. 12); None for a pair that has none."""
    if isinstance(guide, Normal) and isinstance(prior, Normal):
        return guide.kl(prior)
    if isinstance(guide, Bernoulli) and isinstance(prior, Bernoulli):
        return guide.kl(prior)
    if isinstance(guide, Beta) and isinstance(prior, Beta):
        return guide.kl(prior)
    return None


def _to_cells(term: Tensor, batch: Batch, extra: float) -> Tensor:
    """Distribute the perturbations' terms (..., R) over the cells: (..., n), sum_t 1[d_t != 0] (1 / n_t + w) term_t."""
    weight = batch.plate_weight
    weight = weight + extra * (weight > 0) if extra else weight
    return MultiHot(batch.dosage.index, weight).gather(term[..., None]).squeeze(-1)

"""The yardstick: a training step of SAMS-VAE, CPA-VAE and SVAE+ in plain PyTorch, straight from the mathematics.

`torch.distributions`, `nn.Linear`, dense one-hot dosages, a `DataLoader`, `torch.optim.Adam`, and no tricks. It imports
nothing from samsvae, so that samsvae can be compared with it. Equation numbers: docs/model.md.

Letters: K particles, n cells, T perturbations, L latents, G genes. ``noise`` is None (the distributions draw for
themselves) or a dictionary of standard noise by the name of the latent: logistic ``mask`` (K, T, L), normal
``embedding`` (K, T, L), normal ``z_basal`` or ``z`` (K, n, L).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Beta, NegativeBinomial, Normal, RelaxedBernoulli
from torch.utils.data import DataLoader, TensorDataset

Noise = dict[str, Tensor] | None


class MLP(nn.Module):
    """Residual MLP (eq. 3)."""

    def __init__(self, n_in: int, width: int, n_layers: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(n_in, width)] + [nn.Linear(width, width) for _ in range(n_layers - 1)])

    def forward(self, v: Tensor) -> Tensor:
        h = F.leaky_relu(self.layers[0](v), 0.01)
        for layer in self.layers[1:]:
            h = h + F.leaky_relu(layer(h), 0.01)
        return h


class GaussianNetwork(nn.Module):
    """An MLP with a mean and a log-variance head (eq. 7)."""

    def __init__(self, n_in: int, width: int, n_layers: int, n_out: int):
        super().__init__()
        self.network = MLP(n_in, width, n_layers)
        self.mean = nn.Linear(width, n_out)
        self.log_var = nn.Linear(width, n_out)

    def forward(self, v: Tensor) -> Normal:
        h = self.network(v)
        return Normal(self.mean(h), torch.sqrt(torch.exp(self.log_var(h)) + 1e-4))


class Decoder(nn.Module):
    """p(x | z): negative binomial with mean l softmax(W h + c) + 1e-4 and a concentration per gene (eq. 2)."""

    def __init__(self, n_latent: int, width: int, n_layers: int, n_genes: int):
        super().__init__()
        self.network = MLP(n_latent, width, n_layers)
        self.out = nn.Linear(width, n_genes)
        self.log_concentration = nn.Parameter(torch.zeros(n_genes))

    def forward(self, z: Tensor, library: Tensor) -> NegativeBinomial:
        mean = library * torch.softmax(self.out(self.network(z)), dim=-1) + 1e-4
        # torch's parameters: total_count is the concentration, and the mean is total_count * exp(logits)
        return NegativeBinomial(torch.exp(self.log_concentration), logits=torch.log(mean) - self.log_concentration)


def draw_normal(q: Normal, name: str, noise: Noise, shape: tuple[int, ...] = ()) -> Tensor:
    return q.rsample(shape) if noise is None else q.loc + q.scale * noise[name]


def draw_mask(logits: Tensor, temperature: Tensor, noise: Noise, shape: tuple[int, ...] = ()) -> Tensor:
    """Straight-through binary concrete: 0 or 1 forwards, the gradient of the soft value backwards (eq. 6)."""
    if noise is None:
        soft = RelaxedBernoulli(temperature, logits=logits).rsample(shape)
    else:
        soft = torch.sigmoid((logits + noise["mask"]) / temperature)
    return soft.round().detach() + (soft - soft.detach())


class VAE(nn.Module):
    """What the methods share: the encoder's input (eq. 10) and the decoder.

    ``input_mean``, ``input_sd`` (G,): moments of log(1 + x); ``n_cells`` (T,): training cells of each perturbation.
    """

    def __init__(
        self, input_mean: Tensor, input_sd: Tensor, n_cells: Tensor, *, n_latent: int, width: int, n_layers: int
    ):
        super().__init__()
        self.n_genes, self.n_perturbations, self.n_latent = len(input_mean), len(n_cells), n_latent
        self.register_buffer("input_mean", input_mean)
        self.register_buffer("input_sd", input_sd)
        self.register_buffer("n_cells", n_cells)
        self.decoder = Decoder(n_latent, width, n_layers, self.n_genes)

    def inputs(self, x: Tensor) -> Tensor:
        return (torch.log1p(x) - self.input_mean) / self.input_sd

    def shares(self, d: Tensor) -> Tensor:
        """1[d != 0] / n_t (n, T), and 0 where n_t is 0 (eq. 11)."""
        return torch.where(self.n_cells > 0, (d != 0) / self.n_cells.clamp(min=1.0), 0.0)


class SAMSVAE(VAE):
    """SAMS-VAE, additive, with any of its guides; CPA-VAE without ``mask`` (eqs. 1-9).

    ``correlated_e``: q(E) reads the mask just drawn; ``correlated_z``: q(z_basal) also reads the offset.
    """

    def __init__(
        self,
        *moments: Tensor,
        n_latent: int,
        width: int,
        n_layers: int,
        embedding_width: int,
        embedding_layers: int,
        mask: bool = True,
        correlated_e: bool = True,
        correlated_z: bool = True,
        mask_prior: float = 0.01,
        embedding_scale: float = 1.0,
        temperature: float = 1.0,
    ):
        super().__init__(*moments, n_latent=n_latent, width=width, n_layers=n_layers)
        self.correlated_z = correlated_z
        size = (self.n_perturbations, n_latent)
        self.mask_logits = nn.Parameter(torch.zeros(size)) if mask else None
        self.embedding_network = None
        if correlated_e:
            n_in = n_latent + self.n_perturbations
            self.embedding_network = GaussianNetwork(n_in, embedding_width, embedding_layers, n_latent)
        else:
            self.embedding_loc = nn.Parameter(torch.zeros(size))
            self.embedding_log_scale = nn.Parameter(torch.zeros(size))
        self.encoder = GaussianNetwork(self.n_genes + correlated_z * n_latent, width, n_layers, n_latent)
        self.register_buffer("temperature", torch.tensor(temperature))
        self.register_buffer("mask_prior", torch.tensor(mask_prior))
        self.register_buffer("embedding_scale", torch.tensor(embedding_scale))

    def loss(self, x: Tensor, d: Tensor, particles: int, noise: Noise = None) -> Tensor:
        """Minus the ELBO per cell, mean over particles and cells (eq. 11). x: (n, G); d: (n, T)."""
        shared = 0.0
        if self.mask_logits is not None:
            q_mask, p_mask = Bernoulli(logits=self.mask_logits), Bernoulli(self.mask_prior)
            mask = draw_mask(self.mask_logits, self.temperature, noise, (particles,))  # (K, T, L)
            shared = shared + (p_mask.log_prob(mask) - q_mask.log_prob(mask)).sum(-1)

        if self.embedding_network is not None:
            onehot = torch.eye(self.n_perturbations, device=x.device).expand(particles, -1, -1)
            q_embedding = self.embedding_network(torch.cat([mask, onehot], dim=-1))
            embedding = draw_normal(q_embedding, "embedding", noise)
        else:
            q_embedding = Normal(self.embedding_loc, torch.exp(self.embedding_log_scale) + 1e-4)
            embedding = draw_normal(q_embedding, "embedding", noise, (particles,))
        p_embedding = Normal(0.0, self.embedding_scale)
        shared = shared + (p_embedding.log_prob(embedding) - q_embedding.log_prob(embedding)).sum(-1)  # (K, T)

        offset = d @ (embedding * mask if self.mask_logits is not None else embedding)  # (K, n, L)
        if self.correlated_z:
            q_z = self.encoder(torch.cat([self.inputs(x).expand(particles, -1, -1), offset], dim=-1))
            z = draw_normal(q_z, "z_basal", noise)
        else:
            q_z = self.encoder(self.inputs(x))
            z = draw_normal(q_z, "z_basal", noise, (particles,))
        kl_z = (q_z.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(-1)

        log_likelihood = self.decoder(z + offset, x.sum(-1, keepdim=True)).log_prob(x).sum(-1)  # (K, n)
        return -(log_likelihood - kl_z + shared @ self.shares(d).T).mean()


class SVAEPlus(VAE):
    """SVAE+ with the networks and training of the SAMS-VAE paper: a learned E, a point pi, z ~ N(o, I) (eqs. 4, 5)."""

    def __init__(
        self,
        *moments: Tensor,
        n_latent: int,
        width: int,
        n_layers: int,
        beta_a: float = 1.0,
        beta_b: float = 2.0,
        temperature: float = 1.0,
    ):
        super().__init__(*moments, n_latent=n_latent, width=width, n_layers=n_layers)
        self.mask_logits = nn.Parameter(torch.zeros(self.n_perturbations, n_latent))
        self.embedding = nn.Parameter(0.1 * torch.randn(self.n_perturbations, n_latent))
        self.encoder = GaussianNetwork(self.n_genes, width, n_layers, n_latent)
        self.register_buffer("temperature", torch.tensor(temperature))
        self.register_buffer("beta", torch.tensor([beta_a, beta_b]))

    def loss(self, x: Tensor, d: Tensor, particles: int, noise: Noise = None) -> Tensor:
        """Minus the ELBO per cell, mean over particles and cells (eq. 11). x: (n, G); d: (n, T)."""
        # M is drawn from its prior given pi, so that its terms cancel
        shared = Beta(*self.beta).log_prob(torch.sigmoid(self.mask_logits)).sum(-1)  # (T,)
        mask = draw_mask(self.mask_logits, self.temperature, noise, (particles,))
        offset = d @ (self.embedding * mask)  # (K, n, L)
        q_z = self.encoder(self.inputs(x))
        z = draw_normal(q_z, "z", noise, (particles,))
        kl_z = (q_z.log_prob(z) - Normal(offset, 1.0).log_prob(z)).sum(-1)
        log_likelihood = self.decoder(z, x.sum(-1, keepdim=True)).log_prob(x).sum(-1)  # (K, n)
        return -(log_likelihood - kl_z + shared @ self.shares(d).T).mean()


def loader(x: Tensor, d: Tensor, batch_size: int, *, pin_memory: bool = False) -> DataLoader:
    """Shuffled batches of counts x (n, G) and dosages d (n, T), float32."""
    return DataLoader(TensorDataset(x, d), batch_size=batch_size, shuffle=True, pin_memory=pin_memory)


def optimiser(model: VAE, learning_rate: float, weight_decay: float) -> torch.optim.Adam:
    """Adam with L2 weight decay inside the gradient."""
    return torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=weight_decay)


def steps(
    model: VAE,
    batches: DataLoader,
    *,
    particles: int = 5,
    learning_rate: float = 3e-4,
    weight_decay: float = 1e-6,
    gradient_clip: float | None = None,
) -> Iterator[float]:
    """Train endlessly; yield the loss of every step."""
    device = next(model.parameters()).device
    adam = optimiser(model, learning_rate, weight_decay)
    while True:
        for x, d in batches:
            adam.zero_grad()
            loss = model.loss(x.to(device), d.to(device), particles)
            loss.backward()
            if gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
            adam.step()
            yield loss.item()

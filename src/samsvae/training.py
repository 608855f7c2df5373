"""One training loop: device-resident batches, validation every epoch, the weights of the best validation kept.

The counts stay on the device and batches are index reads; x is never sampled. Equation numbers: docs/model.md.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.optim.adam import adam

from samsvae.data.batch import Batch, Cells
from samsvae.errors import ConfigError, NumericalError, some
from samsvae.latents import Embedding, LearnedEmbedding, Mask, MaskProbability
from samsvae.model import Draw, Model, Noise, Streams
from samsvae.settings import TrainingConfig

log = logging.getLogger(__name__)


@dataclass
class Trained:
    """What a training leaves behind: the model holds the best weights; ``history`` one row per validation."""

    best_step: int
    best_loss: float
    steps: int
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)


def check(model: Model, *splits: Cells) -> None:
    """ConfigError where a model cannot read the dosages of the cells."""
    if model.config.effect != "prior_mean":
        return
    for cells in splits:
        several = ((cells.index < cells.n_perturbations).sum(-1) > 1).cpu().numpy()
        if several.any():
            raise ConfigError(
                f"encoding: 'sum' is not allowed for this model (SVAE+, sVAE, iVAE): it accepts one perturbation "
                f"a cell, and {several.sum()} cells received several ({some(cells.names[several], 3)}). "
                "Allowed: 'unique'."
            )


def objective(
    model: Model, batch: Batch, draw: Draw, config: TrainingConfig, *, n_cells: int, warmup: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a batch per cell under given draws (eq. 11, or eq. 15 for ``iwelbo``), and the terms it is made of.

    Minus the mean over particles and cells. ``n_cells``: size of the split, by which ``plate: every_step`` shares out.
    """
    plate = 1.0 / n_cells if config.plate == "every_step" else None
    options = {"analytic_kl": config.analytic_kl, "plate": plate, "extra_share": config.extra_share}
    terms = model.terms(batch, draw, **options)
    total = sum(term * _weight(name, config, warmup) for name, term in terms.items())
    if config.objective == "iwelbo":
        total = torch.logsumexp(total, dim=0) - math.log(total.shape[0])
    loss = -total.mean()
    if config.mask_penalty:
        loss = loss + config.mask_penalty * draw.guides["mask_prob"].mean.mean()
    return loss, terms


def _weight(term: str, config: TrainingConfig, warmup: float) -> float:
    """What a term of the ELBO counts: 1 for the reconstruction, for a latent its own weight times that of all."""
    if term == "reconstruction":
        return 1.0
    weights = {"mask_prob": config.weight_mask_prob, "embedding": config.weight_embedding}
    weights |= dict.fromkeys(("mask", "cell_mask"), config.weight_mask)
    return config.kl_weight * warmup * weights.get(term, config.weight_z)


def train(
    model: Model,
    train_cells: Cells,
    val_cells: Cells,
    config: TrainingConfig,
    *,
    genes: np.ndarray | None = None,
    report_every: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Trained:
    """Train a model in place and leave it with the weights of the best validation loss.

    The same seed on the same CPU and thread count gives the same bytes. NumericalError where a loss is not finite.
    """
    check(model, train_cells, val_cells)
    if config.mask_penalty and model.config.mask != "beta_bernoulli":
        raise ConfigError(f"mask_penalty: needs mask: beta_bernoulli; the mask here is {model.config.mask!r}.")
    if model.config.batch_norm and len(train_cells) % config.batch_size == 1:
        raise ConfigError(
            f"batch_size: {config.batch_size} leaves a last batch of one of the {len(train_cells)} training cells, "
            "which batch_norm cannot read; take another."
        )
    device = train_cells.counts.device
    noise, order = Streams(config.seed, device), Streams(config.seed, "cpu").generator("order")
    optimiser = Adam(model, config)
    n, size = len(train_cells), min(config.batch_size, len(train_cells))
    steps = config.steps if config.epochs is None else config.epochs * math.ceil(n / size)
    scale = float(n) if config.loss_scale == "n_cells" else 1.0  # matters to Adam through its eps and weight decay
    result = Trained(best_step=0, best_loss=math.inf, steps=0, seconds=0.0)
    best: dict[str, Tensor] = {}
    torch.manual_seed(config.seed)  # dropout draws from torch's own generator
    start = told = clock()
    step = epoch = stale = 0
    model.train()
    while step < steps:
        warmup = min(1.0, epoch / config.warmup_epochs) if config.warmup_epochs else 1.0
        losses: list[float] = []
        for at in torch.randperm(n, generator=order).to(device).split(size):
            batch = train_cells.batch(at)
            draw = model.draw(batch, noise, config.particles)
            loss, terms = objective(model, batch, draw, config, n_cells=n, warmup=warmup)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                what = diagnose(model, batch, draw, terms, train_cells.names[at.cpu()], genes)
                raise NumericalError(f"Step {step + 1}: {what}")
            model.zero_grad(set_to_none=True)
            (loss * scale).backward()
            if config.gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
            optimiser.step()
            step += 1
            if clock() - told >= report_every:
                told = clock()
                _tell(step, steps, told - start, losses[-1], result)
            if step == steps:
                break
        epoch += 1
        if epoch % config.validation_every and step < steps:
            continue
        val_loss = validation_loss(
            model, val_cells, config, Streams(f"{config.seed}/validation/{step}", device), n_cells=n
        )
        result.history.append(
            {"step": step, "epoch": epoch, "train_loss": sum(losses) / len(losses), "val_loss": val_loss}
        )
        if val_loss < result.best_loss:
            result.best_step, result.best_loss, stale = step, val_loss, 0
            best = copy.deepcopy(model.state_dict())
        else:
            stale += config.validation_every if warmup == 1.0 else 0
            if config.patience is not None and stale >= config.patience:
                log.info("stopped at step %d: no better validation loss for %d epochs", step, stale)
                break
    model.load_state_dict(best)
    model.eval()
    result.steps, result.seconds = step, clock() - start
    _tell(step, step, result.seconds, result.history[-1]["train_loss"], result)
    return result


@torch.no_grad()
def validation_loss(
    model: Model, cells: Cells, config: TrainingConfig, noise: Noise, *, n_cells: int | None = None
) -> float:
    """Mean over cells of the training objective, with fresh noise, in evaluation mode, at full weight of the terms.

    ``n_cells``: of the training, by which ``plate: every_step`` shares out (default: the cells at hand).
    """
    model.eval()
    total = 0.0
    for at in torch.arange(len(cells), device=cells.counts.device).split(max(config.batch_size, 512)):
        batch = cells.batch(at)
        draw = model.draw(batch, noise, config.validation_particles)
        loss, terms = objective(model, batch, draw, config, n_cells=n_cells or len(cells))
        if not torch.isfinite(loss):
            raise NumericalError("In validation: " + diagnose(model, batch, draw, terms, cells.names[at.cpu()], None))
        total += loss.item() * len(at)
    model.train()
    return total / len(cells)


class Adam:
    """Adam with L2 weight decay inside the gradient, as published.

    The library's own fused step without its optimiser class, whose first use imports a compiler for a second.
    """

    def __init__(self, model: Model, config: TrainingConfig):
        self.config = config
        self.groups = []
        for group in parameter_groups(model, config):
            parameters = group["params"]
            state = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
            steps = [torch.zeros((), device=p.device) for p in parameters]
            self.groups.append((parameters, *state, steps, group["lr"], group["weight_decay"]))

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients, which are left in place."""
        for parameters, means, squares, steps, rate, decay in self.groups:
            adam(
                parameters,
                [p.grad for p in parameters],
                means,
                squares,
                [],
                steps,
                fused=True,
                amsgrad=False,
                beta1=self.config.adam_beta1,
                beta2=self.config.adam_beta2,
                lr=rate,
                weight_decay=decay,
                eps=self.config.adam_eps,
                maximize=False,
            )


def parameter_groups(model: Model, config: TrainingConfig) -> list[dict]:
    """Parameters by kind: the free ones of masks and of embeddings may have rates of their own; networks the rest."""
    kinds = {"mask": [], "embedding": []}
    for latent in model.latents:
        kind = {MaskProbability: "mask", Mask: "mask", Embedding: "embedding", LearnedEmbedding: "embedding"}
        kinds.get(kind.get(type(latent)), []).extend(latent.parameters(recurse=False))
    free = {id(p) for group in kinds.values() for p in group}
    networks = [p for p in model.parameters() if id(p) not in free]
    decay = config.weight_decay if config.weight_decay_on == "all" else 0.0
    rates = {"mask": config.rate_mask, "embedding": config.rate_embedding}
    groups = [{"params": networks, "lr": config.learning_rate, "weight_decay": config.weight_decay}]
    for kind, parameters in kinds.items():
        rate = config.learning_rate if rates[kind] is None else rates[kind]
        groups += [{"params": parameters, "lr": rate, "weight_decay": decay}] if parameters else []
    return groups


def diagnose(
    model: Model,
    batch: Batch,
    draw: Draw,
    terms: dict[str, Tensor],
    cells: np.ndarray,
    genes: np.ndarray | None,
) -> str:
    """One sentence that names the term of a loss that is not finite, and the cell, gene or weight behind it."""
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        return f"the weights {some(broken, 3)} are not finite (a gradient of the step before was not); lower the rates."
    for name, term in terms.items():
        bad = ~torch.isfinite(term.detach())
        if not bad.any():
            continue
        where = some(cells[bad.expand(-1, len(cells)).any(0).cpu().numpy()], 3) if bad.ndim == 2 else "all cells"
        if name == "reconstruction":
            with torch.no_grad():
                scores = model.decode(draw.values, batch).log_prob(batch.x)
            columns = (~torch.isfinite(scores)).flatten(0, -2).any(0).cpu().numpy()
            named = some(np.flatnonzero(columns) if genes is None else genes[columns], 3)
            return f"the term 'reconstruction' is not finite for gene {named}, cell {where}."
        return f"the term {name!r} is not finite for cell {where}."
    return "the sum of the terms is not finite, though each term is."


def _tell(step: int, steps: int, seconds: float, loss: float, result: Trained) -> None:
    speed = step / max(seconds, 1e-9)
    left = time.strftime("%H:%M:%S", time.gmtime((steps - step) / speed))
    log.info(
        "step %d/%d  %.1f steps/s  loss %.3f  best validation loss %.3f at step %d  time left %s",
        step, steps, speed, loss, result.best_loss, result.best_step, left,
    )  # fmt: skip

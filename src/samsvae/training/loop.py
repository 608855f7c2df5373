"""One training loop: device-resident batches, validation every epoch, the weights of the best validation kept.

The counts stay on the device and batches are index reads; x is never sampled. Equation numbers: docs/model.md.
"""

from __future__ import annotations

import copy
import io
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.adam import adam

from samsvae.config.model import TrainingConfig
from samsvae.data.cells import Cells
from samsvae.data.streaming import batches
from samsvae.errors import CheckpointError, ConfigError, Interrupted, NumericalError, some
from samsvae.files import atomic
from samsvae.models.batch import Batch
from samsvae.models.latents import Embedding, LearnedEmbedding, Mask, MaskProbability
from samsvae.models.model import Draw, Model
from samsvae.models.noise import Noise, Streams, given, set_stream_states, stream_states
from samsvae.ops.cuda_graphs import NotCaptured, Steps, graphs, on_one_stream
from samsvae.ops.onednn import fast_cpu
from samsvae.ops.precision import precision
from samsvae.signals import stop_signals
from samsvae.text import span
from samsvae.training.checkpoint import read

log = logging.getLogger(__name__)

#: Steps after which the place of the streams of noise is noted anew, from where a step can be drawn again.
NOISE_EVERY = 64


@dataclass
class Trained:
    """What a training leaves behind: the model holds the best weights; ``history`` one row per validation."""

    best_step: int
    best_loss: float
    steps: int
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)


def check(model: Model, *splits: Cells) -> None:
    """ConfigError where a model cannot read the dosages of the cells, or is not one of counts where they are."""
    if model.config.likelihood.startswith("normal") and not all(x.counts.dtype.is_floating_point for x in splits):
        raise ConfigError(
            f"likelihood: {model.config.likelihood!r} is not allowed for counts, whose effects are taken of "
            "log2(1 + counts per 10,000), which its values may have none of. Allowed: 'nb', 'poisson'."
        )
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
    model: Model, batch: Batch, draw: Draw, config: TrainingConfig, *, n_cells: int, warmup: float | Tensor = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a batch per cell under given draws (eq. 11, or eq. 15 for ``iwelbo``), and the terms it is made of.

    Minus the mean over particles and cells. ``n_cells``: size of the split, by which ``plate: every_step`` shares out.
    ``warmup``: a number, or a scalar of float64 that a captured step reads anew.
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


def _weight(term: str, config: TrainingConfig, warmup: float | Tensor) -> float | Tensor:
    """What a term of the ELBO counts: 1 for the reconstruction, for a latent its own weight times that of all."""
    if term == "reconstruction":
        return 1.0
    weights = {"mask_prob": config.weight_mask_prob, "embedding": config.weight_embedding}
    weights |= dict.fromkeys(("mask", "cell_mask"), config.weight_mask)
    return config.kl_weight * warmup * weights.get(term, config.weight_z)


@fast_cpu
def train(
    model: Model,
    train_cells: Cells,
    val_cells: Cells,
    config: TrainingConfig,
    *,
    genes: np.ndarray | None = None,
    keep: Keep | None = None,
    report_every: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Trained:
    """Train a model in place and leave it with the weights of the best validation loss.

    The same seed on the same CPU and thread count gives the same bytes, in one go or resumed from ``keep``.
    NumericalError where a loss is not finite; Interrupted after a signal, when the state is kept.
    """
    check(model, train_cells, val_cells)
    if config.mask_penalty and model.config.mask != "beta_bernoulli":
        raise ConfigError(f"mask_penalty: needs mask: beta_bernoulli; the mask here is {model.config.mask!r}.")
    if model.config.batch_norm and len(train_cells) % config.batch_size == 1:
        raise ConfigError(
            f"batch_size: {config.batch_size} leaves a last batch of one of the {len(train_cells)} training cells, "
            "which batch_norm cannot read; take another."
        )
    beginning = copy.deepcopy(model.state_dict())
    try:
        return _train(model, train_cells, val_cells, config, genes, keep, report_every, clock)
    except NotCaptured as error:
        log.warning("%s Beginning anew without (capture: never), which is slower and gives the same.", error)
    model.load_state_dict(beginning)
    never = replace(config, capture="never")
    return _train(model, train_cells, val_cells, never, genes, keep, report_every, clock)


def _train(
    model: Model,
    train_cells: Cells,
    val_cells: Cells,
    config: TrainingConfig,
    genes: np.ndarray | None,
    keep: Keep | None,
    report_every: float,
    clock: Callable[[], float],
) -> Trained:
    """The training of ``train``; NotCaptured where its steps should be captured and cannot be."""
    device = train_cells.device
    if device.type == "cuda":
        from samsvae.ops.softmax_nb import try_out

        try_out(device)  # before a step is compiled or captured
    n, size = len(train_cells), min(config.batch_size, len(train_cells))
    steps = config.steps if config.epochs is None else config.epochs * math.ceil(n / size)
    run = _Run(model, config, train_cells, val_cells, genes)
    if keep is not None and keep.load(run):
        log.info("resumed at step %d of %d", run.step, steps)
    result, start = run.result, clock()
    told = saved = start
    before, first = result.seconds, run.step

    def leave_if_asked() -> None:
        """Between two batches: end here where a signal came."""
        if stopped:
            run.read()
            if keep is not None:
                result.seconds = before + clock() - start
                keep.save(run)
            raise Interrupted(f"stopped by {stopped[0]} at step {run.step} of {steps}", kept=keep is not None)

    model.train()
    with stop_signals() as stopped, precision(config.precision, device), on_one_stream(device):
        while (run.step < steps or run.permutation is not None) and not run.done:
            full = run.warm_up()
            if run.permutation is None:
                run.permutation = torch.randperm(n, generator=run.order)
            for inputs in batches(train_cells, run.permutation, size, start=len(run.losses)):
                if run.step == steps:
                    break
                run.advance(*inputs)
                leave_if_asked()
                now = clock()
                if now - told >= report_every:
                    told = now
                    run.read()
                    _tell(run, steps, (run.step - first) / max(now - start, 1e-9))
                if keep is not None and now - saved >= keep.every:
                    run.read()
                    result.seconds, saved = before + now - start, now
                    keep.save(run)
            run.read()
            if (run.epoch + 1) % config.validation_every and run.step < steps:
                run.end_epoch()
                continue
            loss = run.validate(between=leave_if_asked)
            run.end_epoch(loss, full=full)
    model.load_state_dict(run.best)
    model.zero_grad(set_to_none=True)
    model.eval()
    result.steps, result.seconds = run.step, before + clock() - start
    _tell(run, run.step, (run.step - first) / max(clock() - start, 1e-9))
    return result


class _Run:
    """A training on its way: all that the next step depends on, and what is known of it so far.

    On a card steps are launched one after another and their losses read together, when somebody asks. A loss that is
    not finite stops all updates from its own step on, on the card, so that the weights behind it are there to be
    looked at when it is found.
    """

    def __init__(
        self, model: Model, config: TrainingConfig, cells: Cells, val_cells: Cells, genes: np.ndarray | None = None
    ):
        self.model, self.config, self.cells, self.device, self.genes = model, config, cells, cells.device, genes
        self.optimiser = Adam(model, config)
        self.noise, self.order = Streams(config.seed, self.device), Streams(config.seed, "cpu").generator("order")
        if config.compile:
            torch.compiler.reset()  # drops what earlier runs of the process compiled, of which it takes a few only
        make = graphs(self.device) if config.capture == "auto" else None
        self.at_once = make is None and self.device.type != "cuda"  # whether a loss is read as soon as it is there
        self.val_cells, self.val_noise = val_cells, Streams("", self.device)
        self.val_steps = Steps(
            validation_step(model, val_cells, config, self.val_noise, len(cells)), self.val_noise, make
        )
        self.bad = torch.zeros((), device=self.device)  # 1 from the first loss on that is not finite
        self.warmup = torch.ones((), dtype=torch.float64, device=self.device) if config.warmup_epochs else 1.0
        step = _training_step(model, cells, config, self.optimiser, self.noise, self.bad, self.warmup)
        self.steps = Steps(step, self.noise, make)
        self.unread: list[Tensor] = []  # losses since the last reading
        self.before: dict[str, Tensor] = {}  # the noise at some step at or before the first of them
        self.since: list[Tensor] = []  # positions of the cells of each step from that one on
        self.permutation: Tensor | None = None  # of the epoch under way, of which len(losses) batches are done
        self.losses: list[float] = []
        self.step = self.epoch = self.stale = 0
        self.done = False
        self.best: dict[str, Tensor] = {}
        self.result = Trained(best_step=0, best_loss=math.inf, steps=0, seconds=0.0)
        torch.manual_seed(config.seed)  # dropout draws from torch's own generator

    def warm_up(self) -> bool:
        """Set the weight of the terms for the epoch; whether it is the full one."""
        if not self.config.warmup_epochs:
            return True
        warmup = min(1.0, self.epoch / self.config.warmup_epochs)
        self.warmup.fill_(warmup)
        return warmup == 1.0

    def advance(self, at: Tensor, *counts: Tensor) -> None:
        """The next step; where nothing is won by waiting, it is read at once."""
        if not self.since or (len(self.since) >= NOISE_EVERY and not self.unread):
            self.before, self.since = self._noise(), []
        self.unread.append(self.steps(at, *counts))
        self.since.append(at)
        self.step += 1
        if self.at_once:
            self.read()

    def read(self) -> None:
        """Wait for the steps so far and note their losses; NumericalError at the first that is not finite."""
        if not self.unread:
            return
        losses = torch.stack(self.unread).tolist()
        for number, loss in enumerate(losses, start=1 - len(losses)):
            if not math.isfinite(loss):
                self._set_noise(self.before)
                parts = self.since[: len(self.since) + number]
                what = culprit(self.model, self.cells, parts, self.config, self.noise, self.genes, warmup=self.warmup)
                raise NumericalError(f"Step {self.step + number}: {what}")
        self.losses += losses
        self.unread = []

    def validate(self, between: Callable[[], None]) -> float:
        """The validation loss of the weights as they are, by noise that depends on the step alone."""
        self.val_noise.seed = f"{self.config.seed}/validation/{self.step}"
        set_stream_states(self.val_noise, {})
        return validation_loss(
            self.model, self.val_cells, self.config, self.val_noise,
            n_cells=len(self.cells), between=between, steps=self.val_steps,
        )  # fmt: skip

    def end_epoch(self, loss: float | None = None, *, full: bool = True) -> None:
        """Go on to the next epoch. ``loss``: of a validation; ``full``: terms had their full weight in the epoch."""
        mean = sum(self.losses) / len(self.losses)
        self.losses, self.permutation = [], None
        self.epoch += 1
        if loss is None:
            return
        self.result.history.append({"step": self.step, "epoch": self.epoch, "train_loss": mean, "val_loss": loss})
        if loss < self.result.best_loss:
            self.result.best_step, self.result.best_loss, self.stale = self.step, loss, 0
            self.best = copy.deepcopy(self.model.state_dict())
        else:
            self.stale += self.config.validation_every if full else 0
            self.done = self.config.patience is not None and self.stale >= self.config.patience
        if self.done:
            log.info("stopped at step %d: no better validation loss for %d epochs", self.step, self.stale)

    def _noise(self) -> dict[str, Tensor]:
        """Where the streams of noise are: those of the latents, and torch's own under the name ``torch``."""
        cuda = self.device.type == "cuda"
        own = torch.cuda.get_rng_state(self.device) if cuda else torch.get_rng_state()
        return stream_states(self.noise) | {"torch": own}

    def _set_noise(self, states: dict[str, Tensor]) -> None:
        set_stream_states(self.noise, {name: state for name, state in states.items() if name != "torch"})
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states["torch"].cpu(), self.device)
        else:
            torch.set_rng_state(states["torch"].cpu())

    def state(self) -> dict:
        """Everything, as tensors and plain values."""
        return {
            **{name: getattr(self, name) for name in ("permutation", "losses", "step", "epoch", "stale", "best")},
            "weights": self.model.state_dict(),
            "moments": [tensors for group in self.optimiser.groups for tensors in group[1:4]],
            "noise": self._noise(),
            "order": self.order.get_state(),
            "result": vars(self.result),
        }

    def restore(self, state: dict) -> None:
        for name in ("permutation", "losses", "step", "epoch", "stale", "best"):
            setattr(self, name, state[name])
        if self.permutation is not None:
            self.permutation = self.permutation.cpu()  # all of a state is read onto the device
        self.model.load_state_dict(state["weights"])
        own = [tensors for group in self.optimiser.groups for tensors in group[1:4]]
        for tensors, kept in zip(own, state["moments"], strict=True):
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)
        self._set_noise(state["noise"])
        self.order.set_state(state["order"].cpu())
        self.result = Trained(**state["result"])


@dataclass(frozen=True)
class Keep:
    """Where the state of a training is kept, every so many seconds, for one that is interrupted to go on from.

    ``stamp`` says what the training depends on: a state of another stamp is not taken.
    """

    path: Path
    stamp: str
    every: float = 300.0

    def save(self, run: _Run) -> None:
        memory = io.BytesIO()
        torch.save({"stamp": self.stamp, **run.state()}, memory)
        with atomic(self.path) as aside:
            aside.write_bytes(memory.getvalue())
        log.info("step %d: state kept in %s", run.step, self.path)

    def load(self, run: _Run) -> bool:
        """Whether there was a state to go on from; one that is damaged or of another stamp is passed over."""
        if not self.path.is_file():
            return False
        try:
            state = read(self.path, run.device)
        except CheckpointError as error:
            log.warning("%s Training from the start.", error)
            return False
        if state.get("stamp") != self.stamp:
            log.info("%s is of other code, settings or data; training from the start", self.path)
            return False
        run.restore(state)
        return True


def _own(cells: Cells, config: TrainingConfig) -> bool:
    """Whether batches leave out the perturbations that none of their cells received.

    Exact where the loss reads no term of them. Not where steps are captured or compiled, for one shape each.
    """
    host = cells.device.type == "cpu" and not config.compile
    return host and config.plate != "every_step" and not config.mask_penalty


def _loss(
    model: Model,
    cells: Cells,
    config: TrainingConfig,
    noise: Streams,
    *,
    particles: int,
    size: int,
    n_cells: int,
    warmup: float | Tensor = 1.0,
) -> Callable[..., Tensor]:
    """The loss of the cells at some positions, as a function of these (and of their counts, where they are at hand).

    Where ``compile`` is set, batches of the full ``size`` go through fewer and larger kernels. Their noise is drawn
    beforehand, of the same streams in the same order.
    """

    def given_noise(at: Tensor, counts: tuple[Tensor, ...], noise: Noise) -> Tensor:
        batch = cells.batch(at, *counts, own=_own(cells, config))
        draw = model.draw(batch, noise, particles)
        return objective(model, batch, draw, config, n_cells=n_cells, warmup=warmup)[0]

    if not config.compile:
        return lambda at, *counts: given_noise(at, counts, noise)
    fused = torch.compile(
        lambda at, counts, values: given_noise(at, counts, given(values)), dynamic=False, fullgraph=True
    )
    asked: list[tuple[str, str, tuple[int, ...]]] = []

    def loss(at: Tensor, *counts: Tensor) -> Tensor:
        if len(at) < size:
            return given_noise(at, counts, noise)
        if not asked:
            asked.extend(_asked(model, cells.batch(at, *counts), particles))
        return fused(at, counts, {name: noise(name, kind, shape) for name, kind, shape in asked})

    return loss


def _training_step(
    model: Model,
    cells: Cells,
    config: TrainingConfig,
    optimiser: Adam,
    noise: Streams,
    bad: Tensor,
    warmup: float | Tensor,
) -> Callable[..., Tensor]:
    """A step of the training on the cells at some positions, which gives its loss.

    ``bad`` becomes 1 where the loss is not finite; while it is 1 no step changes a weight.
    """
    # the scale matters to Adam through its eps and weight decay
    scale = float(len(cells)) if config.loss_scale == "n_cells" else 1.0
    sizes = {"size": min(config.batch_size, len(cells)), "n_cells": len(cells), "particles": config.particles}
    loss_of = _loss(model, cells, config, noise, **sizes, warmup=warmup)

    def step(at: Tensor, *counts: Tensor) -> Tensor:
        loss = loss_of(at, *counts)
        with torch.no_grad():
            torch.maximum(bad, (loss - loss).ne(0.0), out=bad)  # inf - inf and nan are not 0
        model.zero_grad(set_to_none=True)
        (loss * scale).backward()
        if config.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimiser.step(bad)
        return loss.detach()

    return step


def validation_step(
    model: Model, cells: Cells, config: TrainingConfig, noise: Streams, n_cells: int
) -> Callable[..., Tensor]:
    """The loss of a validation's cells at some positions, as a function of these; to be called without gradients."""
    size = min(_validation_size(config), len(cells))
    return _loss(model, cells, config, noise, particles=config.validation_particles, size=size, n_cells=n_cells)


def _validation_size(config: TrainingConfig) -> int:
    return max(config.batch_size, 512)


@torch.no_grad()
def _asked(model: Model, batch: Batch, particles: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """The name, kind and shape of the noise that the model asks for, in order; no stream is drawn from."""
    asked = []

    def nothing(name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
        asked.append((name, kind, tuple(shape)))
        return torch.zeros(shape, device=batch.x.device)

    mode = model.training
    model.eval()  # no dropout, and no moments of batch norm are moved
    model.draw(batch, nothing, particles)
    model.train(mode)
    return asked


@torch.no_grad()
def validation_loss(
    model: Model,
    cells: Cells,
    config: TrainingConfig,
    noise: Streams,
    *,
    n_cells: int | None = None,
    between: Callable[[], None] = lambda: None,
    steps: Steps | None = None,
) -> float:
    """Mean over cells of the training objective, with fresh noise, in evaluation mode, at full weight of the terms.

    ``n_cells``: of the training, by which ``plate: every_step`` shares out (default: the cells at hand). ``between``
    is called after every batch. ``steps``: what gives the loss of a batch under this noise, where it is captured.
    """
    model.eval()
    n_cells = len(cells) if n_cells is None else n_cells
    steps = Steps(validation_step(model, cells, config, noise, n_cells), noise) if steps is None else steps
    before = stream_states(noise)
    parts, losses = [], []
    for at, *counts in batches(cells, torch.arange(len(cells)), _validation_size(config)):
        parts.append(at)
        losses.append(steps(at, *counts))
        between()
    total = 0.0
    for number, (at, loss) in enumerate(zip(parts, torch.stack(losses).tolist(), strict=True)):
        if not math.isfinite(loss):
            set_stream_states(noise, before)
            config = replace(config, particles=config.validation_particles)
            raise NumericalError(
                "In validation: " + culprit(model, cells, parts[: number + 1], config, noise, None, n_cells=n_cells)
            )
        total += loss * len(at)
    model.train()
    return total / len(cells)


class Adam:
    """Adam with L2 weight decay inside the gradient, as published.

    The library's own fused step without its optimiser class, whose first use imports a compiler for a second.
    """

    def __init__(self, model: Model, config: TrainingConfig):
        self.config = config
        alike: dict[tuple[float, float], list[Tensor]] = {}
        for group in parameter_groups(model, config):
            alike.setdefault((group["lr"], group["weight_decay"]), []).extend(group["params"])
        self.groups = []
        for (rate, decay), parameters in alike.items():  # one launch each on a card
            state = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
            steps = [torch.zeros((), device=p.device) for p in parameters]
            self.groups.append((parameters, *state, steps, rate, decay))

    @torch.no_grad()
    def step(self, skip: Tensor | None = None) -> None:
        """One step along the gradients, which are left in place; none where ``skip``, a scalar, is 1."""
        for parameters, means, squares, steps, rate, decay in self.groups:
            adam(
                parameters,
                [p.grad for p in parameters],
                means,
                squares,
                [],
                steps,
                fused=True,
                found_inf=skip,
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


@torch.no_grad()
def culprit(
    model: Model,
    cells: Cells,
    parts: list[Tensor],
    config: TrainingConfig,
    noise: Noise,
    genes: np.ndarray | None,
    *,
    n_cells: int | None = None,
    warmup: float | Tensor = 1.0,
) -> str:
    """What ``diagnose`` says of the last of some batches, the noise being that before the first of them."""
    for at in parts:
        batch = cells.batch(at, own=_own(cells, config))
        draw = model.draw(batch, noise, config.particles)
        _, terms = objective(model, batch, draw, config, n_cells=n_cells or len(cells), warmup=warmup)
    return diagnose(model, batch, draw, terms, cells.names[parts[-1].cpu()], genes)


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


def _tell(run: _Run, steps: int, speed: float) -> None:
    left = span((steps - run.step) / max(speed, 1e-9))
    loss = run.losses[-1] if run.losses else run.result.history[-1]["train_loss"]
    log.info(
        "step %d/%d  %.1f steps/s  loss %.3f  best validation loss %.3f at step %d  time left %s",
        run.step, steps, speed, loss, run.result.best_loss, run.result.best_step, left,
    )  # fmt: skip

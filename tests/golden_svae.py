"""Compare the methods of the SVAE+ paper with golden files: python tests/golden_svae.py FOLDER

FOLDER holds METHOD_L1.npz, METHOD_L2.npz, ... of every method, and it may hold transfer_NAME.npz with its cells in
sim_NAME*.npz (the README there describes them). Every array of the methods is compared in float64 and in float32. The
exit status is 1 if a file or an array is missing, unknown, or differs.
"""

from __future__ import annotations

import copy
import math
import re
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from golden_evaluation import read_arrays
from torch import Tensor

from samsvae.config.model import ModelConfig
from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import row
from samsvae.data.cells import Cells
from samsvae.errors import DataError
from samsvae.evaluation.transfer import bounds, by_perturbation
from samsvae.evaluation.transfer_tables import over_perturbations
from samsvae.models.batch import plate_weights
from samsvae.models.distributions import Bernoulli
from samsvae.models.model import Model, add_up
from samsvae.models.networks import dropout_from
from samsvae.models.noise import given
from samsvae.training.objective import objective
from samsvae.training.optimiser import Adam
from samsvae.training.steps import training_step
from samsvae.training.transfer import adapt, adapt_settings, embedding_of, harden

#: Name in the golden files -> row of the zoo.
METHODS = {name: name for name in ("vae", "beta_vae", "ivae", "ivae_drawn", "svae")} | {"svae_plus": "svae_plus_lopez"}

#: Largest error of values and of gradients, relative to the largest value of an array.
TOLERANCE = {torch.float64: (1e-7, 1e-7), torch.float32: (1e-5, 1e-4)}

#: Of transfer_NAME.npz: largest error of mu; a mean over perturbations may differ by so many sd of the golden one.
MU, SDS = 1e-4, 4.0

#: Least sd of an IWELBO with so many particles between draws: that of three golden draws may be small by chance, and
#: there is one golden draw of 1,000 particles.
SD = {100: 0.07, 1000: 0.15}

#: What an array of a golden file is to us, by the start of its name: an input, which we read, or a result.
INPUTS = ("in/", "param/", "buffer/", "noise/", "iwelbo/noise_", "transfer/x", "transfer/intervention",
          "transfer/noise_z", "transfer/dropout_keep")  # fmt: skip

#: Name of an array -> our value.
Found = Iterator[tuple[str, Tensor | np.ndarray | float]]


class Case:
    """A golden file of a method, whose model and cells can be made in any precision."""

    def __init__(self, path: Path, method: str):
        self.path, self.method, self.arrays = path, method, read_arrays(path)
        self.row = row(METHODS[method])
        try:
            self.n_perturbations, self.n_latent = self.arrays["param/mu"].shape
            self.layers, self.width = int(self.arrays["in/layers"]), len(self.arrays["param/encoder/0/bias"])
            self.n_cells, self.warmup = int(self.arrays["in/n_cells"]), float(self.arrays["in/warmup"])
            own = {"kl_weight": float(self.arrays["in/beta"])}
            own |= {"mask_penalty": float(self.arrays["in/penalty"])} if method == "svae" else {}
            self.config = TrainingConfig(**{**self.row.training, **own})
        except KeyError as error:
            raise DataError(f"{path}: has no array {error}.") from None
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: its arrays do not fit together ({error}).") from None

    def get(self, name: str, kind: torch.dtype) -> Tensor:
        if name not in self.arrays:
            raise DataError(f"{self.path}: has no array {name!r}.")
        value = torch.from_numpy(np.array(self.arrays[name]))
        return value.to(kind) if value.is_floating_point() else value

    def model(self, kind: torch.dtype, *, dropout: float = 0.1) -> Model:
        sizes = {"n_latent": self.n_latent, "n_layers": self.layers, "width": self.width, "dropout": dropout}
        sizes |= {"beta_b": float(self.get("in/beta_b", kind))} if self.method == "svae_plus" else {}
        net = Model(ModelConfig(**{**self.row.model, **sizes}), self.get("in/x", kind).shape[-1], self.n_perturbations)
        put(net.to(kind), lambda name: self.get(name, kind), self.path)
        return net

    def cells(self, kind: torch.dtype, of: str = "in") -> Cells:
        return cells_of(self.get(f"{of}/x", kind), self.get(f"{of}/intervention", kind), self.n_perturbations)

    def noise(self, kind: torch.dtype, start: str = "noise/") -> dict[str, Tensor]:
        """Noise by the names of our latents, with axes of particles and of the one perturbation of a cell."""
        z, mask = (self.get(f"{start}{name}", kind) for name in ("z", "mask"))
        z, mask = (value if value.ndim == 3 else value[None] for value in (z, mask))
        return {"z": z, "cell_mask": mask[:, :, None]}


def cells_of(x: Tensor, perturbation: Tensor, n_perturbations: int) -> Cells:
    """Cells of one perturbation each, in the precision of their counts."""
    perturbation = perturbation.long()
    return Cells(
        counts=x,
        library=x.sum(-1),
        index=perturbation[:, None],
        n_perturbations=n_perturbations,
        names=np.array([f"cell{i}" for i in range(len(x))]),
        share=plate_weights(torch.bincount(perturbation, minlength=n_perturbations), x.dtype),
    )


def names(net: Model) -> dict[str, str]:
    """Name in the golden files -> name of the parameter or buffer of our model."""
    at = {latent.name: f"latents.{i}" for i, latent in enumerate(net.latents)}
    found = {}
    for theirs, ours in (("encoder", f"{at['z']}.network"), ("decoder", "decoder")):
        for j in range(net.config.n_layers):
            for part in ("weight", "bias"):
                found[f"param/{theirs}/{j}/{part}"] = f"{ours}.layers.{j}.{part}"
            for part, own in (("bn_scale", "weight"), ("bn_shift", "bias")):
                found[f"param/{theirs}/{j}/{part}"] = f"{ours}.norms.{j}.{own}"
            for part, own in (("bn_mean", "running_mean"), ("bn_var", "running_var")):
                found[f"buffer/{theirs}/{j}/{part}"] = f"{ours}.norms.{j}.{own}"
    for part in ("weight", "bias"):
        found |= {f"param/encoder/{head}/{part}": f"{at['z']}.head.{head}.{part}" for head in ("mean", "log_var")}
        found[f"param/decoder/gene/{part}"] = f"likelihood.mean.{part}"
    found["param/log_theta"] = "likelihood.log_concentration"
    if "embedding" in at:
        found["param/mu"] = f"{at['embedding']}.loc"
    if "mask_prob" in at:
        found["param/mask_logit"] = f"{at['mask_prob']}.logits"
    return found


def put(net: Model, get, path: Path) -> None:
    """Load the weights and the statistics of batch norm."""
    try:
        net.load_state_dict(net.state_dict() | {ours: get(theirs) for theirs, ours in names(net).items()})
    except RuntimeError as error:  # of torch, for a wrong shape
        raise DataError(f"{path}: its arrays do not fit together ({str(error).splitlines()[-1].strip()}).") from None


# ---- stage 1 -------------------------------------------------------------------------------------------------------


def mode(case: Case, name: str, kind: torch.dtype) -> Found:
    """The arrays of one mode: terms, loss, gradients, statistics of batch norm, and a step of Adam."""
    net = case.model(kind, dropout=0.1 if name == "train_dropout" else 0.0).train(name != "eval")
    batch, config = case.cells(kind).batch(slice(None)), case.config
    with dropout_from(net, iter(case.get("noise/dropout_keep", kind))):
        draw = net.draw(batch, given(case.noise(kind)), 1)
    sizes = {"n_cells": case.n_cells, "warmup": case.warmup}
    loss, terms = objective(net, batch, draw, config, **sizes)
    after = {ours: value.clone() for ours, value in net.state_dict().items()}
    scale = case.n_cells if config.loss_scale == "n_cells" else 1
    (loss * scale).backward()

    observed = net.decode(draw.values, batch)
    free = net.terms(batch, draw)  # the KL at the drawn z
    q = draw.guides["z"]
    yield from (("out/q_mean", q.loc), ("out/q_sd", q.scale), ("out/z", draw.values["z"]))
    yield from (("out/rho", torch.softmax(observed.logits, -1)), ("out/mean", observed.mean))
    yield from (("out/log_prob", observed.log_prob(batch.x)), ("out/reconstruction", terms["reconstruction"]))
    yield from (("out/kl", -terms["z"]), ("out/log_weight", free["reconstruction"] + free["z"]))
    latents = {latent.name: latent for latent in net.latents}
    yield "out/prior_mean", latents["z"].prior(draw.values, batch).loc
    if "cell_mask" in latents:
        mask = draw.guides["cell_mask"]
        assert isinstance(mask, Bernoulli)
        yield "out/mask_soft", mask.relaxed(case.noise(kind)["cell_mask"])[:, :, 0]
        yield "out/mask", draw.values["cell_mask"][:, :, 0]

    penalty = config.mask_penalty * draw.guides["mask_prob"].mean.mean() if config.mask_penalty else 0.0
    prior = terms["mask_prob"].mean() if config.plate == "every_step" else 0.0
    yield "loss/local", loss - penalty + config.kl_weight * case.warmup * prior
    yield "loss/total", loss * scale
    yield "loss/validation", objective(net, batch, draw, config.in_validation(), n_cells=case.n_cells)[0]
    if config.mask_penalty:
        yield "loss/penalty", penalty
    if config.plate == "every_step":
        yield "loss/global_term", -case.n_cells * prior
    parameters = dict(net.named_parameters())
    ours = {theirs.partition("/")[2]: name for theirs, name in names(net).items() if theirs.startswith("param/")}
    yield from ((f"grad/{theirs}", parameters[name].grad) for theirs, name in ours.items())
    if name == "eval":
        return
    for theirs, own in names(net).items():
        if theirs.startswith("buffer/"):
            yield f"buffer_after/{theirs.removeprefix('buffer/')}", after[own]
    if name == "train":
        Adam(net, config).step()
        yield from ((f"adam1/{theirs}", parameters[name]) for theirs, name in ours.items())


@torch.no_grad()
def importance(case: Case, kind: torch.dtype) -> Found:
    """IWELBO in evaluation mode, with a mask of its own for every particle and cell."""
    net, cells, noise = case.model(kind).eval(), case.cells(kind), case.noise(kind, "iwelbo/noise_")
    particles, batch = len(noise["z"]), cells.batch(slice(None))
    weights = net.log_weights(batch, given(noise), particles, net.draw_shared(given(noise), particles))
    value = torch.logsumexp(weights, 0) - math.log(particles)
    yield from (("iwelbo/log_weight", weights), ("iwelbo/value", value))
    yield "iwelbo/macro", over_perturbations(by_perturbation(value, cells))[0]


# ---- stages 2 and 3 ------------------------------------------------------------------------------------------------


def transfer(case: Case, kind: torch.dtype) -> Found:
    """Before and after the closed form, and steps of Adam in evaluation and in training mode."""
    cells = case.cells(kind, "transfer")
    hard = harden(case.model(kind), sorted(set(cells.index.flatten().tolist()))).eval()
    noise = given({"z": case.get("transfer/noise_z", kind)[None]})
    if hard.config.effect != "none":
        values = hard.draw_shared(noise, 1).values
        yield "transfer/mu_start", values["embedding"]
        yield "transfer/fixed_mask", values.get("mask", torch.ones_like(values["embedding"]))
    yield from scores(hard, cells, noise, "before")
    if hard.config.effect == "none":
        return
    best = adapt(hard, cells)
    yield "transfer/optimum/mu", embedding_of(best).loc
    yield from scores(best, cells, noise, "optimum")
    keep = case.get("transfer/dropout_keep", kind)
    for name in ("ours", "as_released"):
        net = copy.deepcopy(hard).train(name == "as_released")
        mu = embedding_of(net).loc
        for parameter in net.parameters():
            parameter.requires_grad_(parameter is mu)
        config = adapt_settings(case.config)
        step = training_step(net, cells, config, Adam(net, config), noise, torch.zeros((), dtype=torch.float32), 1.0)
        with dropout_from(net, cycle(keep)):
            for number in range(1, 11):
                loss = step(torch.arange(len(cells)))
                if number == 1:
                    yield from ((f"transfer/{name}/loss", loss), (f"transfer/{name}/grad_mu", mu.grad))
                if number in (1, 10):
                    yield f"transfer/{name}/mu_after_{number}", mu.detach().clone()


@torch.no_grad()
def scores(net: Model, cells: Cells, noise, when: str) -> Found:
    batch = cells.batch(slice(None))
    draw = net.draw(batch, noise, 1)
    bound = -add_up(net.terms(batch, draw, analytic_kl=True).values())[0]
    yield f"transfer/{when}/nelbo", bound
    yield f"transfer/{when}/log_weight", add_up(net.terms(batch, draw).values())
    yield f"transfer/{when}/nelbo_macro", over_perturbations(by_perturbation(bound, cells))[0]


def results(case: Case, kind: torch.dtype) -> Found:
    """Every array of a golden file that is not an input, by its name."""
    try:
        for name in ("eval", "train", "train_dropout"):
            yield from ((f"{name}/{key}", value) for key, value in mode(case, name, kind))
        yield from importance(case, kind)
        yield from transfer(case, kind)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        text = str(error).splitlines()[0]
        raise DataError(f"{case.path}: its arrays do not fit together ({text}).") from error


# ---- the transfer of fitted networks -------------------------------------------------------------------------------


class Fits:
    """A file transfer_NAME.npz with networks after stage 2, and the cells of its sim_NAME*.npz."""

    def __init__(self, path: Path):
        self.path, self.arrays = path, read_arrays(path)
        name = path.stem.removeprefix("transfer_")
        if len(found := sorted(path.parent.glob(f"sim_{name}*.npz"))) != 1:
            raise DataError(f"{path}: needs one file sim_{name}*.npz beside it, but there are {len(found)}.")
        sim = read_arrays(found[0])
        try:
            self.x, self.y, self.part = torch.from_numpy(sim["x"]).float(), sim["y"].astype(int), sim["part"]
            self.new = np.flatnonzero(~sim["seen"])
        except KeyError as error:
            raise DataError(f"{found[0]}: has no array {error}.") from None
        self.rows = sorted({key.partition("/")[0] for key in self.arrays})
        if not len(self.x) == len(self.y) == len(self.part) or self.y.max() >= len(sim["seen"]):
            raise DataError(
                f"{found[0]}: its arrays do not fit together; shapes and codes must be those of the README."
            )

    def get(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise DataError(f"{self.path}: has no array {name!r}.")
        return self.arrays[name]

    def cells(self, part: str, most: int | None = None) -> Cells:
        at = [np.flatnonzero((self.y == t) & (self.part == part))[:most] for t in self.new]
        rows = np.concatenate(at)
        n_perturbations = len(self.get(f"{self.rows[0]}/param/mu"))
        return cells_of(self.x[rows], torch.from_numpy(self.y[rows]), n_perturbations)

    def model(self, name: str) -> Model:
        """The hardened model of a row, from its weights alone."""
        mu, kind = self.get(f"{name}/param/mu"), "vae" if name.startswith(("vae", "beta_vae")) else "ivae"
        layers = sum(bool(re.fullmatch(rf"{name}/param/encoder/\d+/bias", key)) for key in self.arrays)
        sizes = {"n_latent": mu.shape[1], "n_layers": layers, "width": len(self.get(f"{name}/param/encoder/0/bias"))}
        mask = {"mask": "fixed"} if kind == "ivae" else {}
        net = Model(ModelConfig(**{**row(kind).model, **mask, **sizes}), self.x.shape[1], len(mu))
        put(net, lambda key: torch.from_numpy(self.get(f"{name}/{key}")), self.path)
        if mask:
            fixed = {"latents.0.values": torch.from_numpy(self.get(f"{name}/fixed_mask")).float()}
            net.load_state_dict(net.state_dict() | fixed)
        return net.eval()

    def results(self) -> Iterator[tuple[str, Tensor | float, np.ndarray, float]]:
        """Name, our value, the golden value and the largest difference: mu and both bounds, by number of cells."""
        test = self.cells("test")
        for name in self.rows:
            net = self.model(name)
            for k in sorted({int(m[1]) for key in self.arrays if (m := re.match(rf"{name}/k(\d+)/", key))}):
                where, fitted = f"{name}/k{k}", adapt(net, self.cells("adapt", k)) if k else net
                if net.config.effect != "none":
                    yield f"{where}/mu_new", embedding_of(fitted).loc[self.new], self.get(f"{where}/mu_new"), MU
                for particles, seeds in ((100, 3), (1000, 1)):
                    if particles > 100 and f"{where}/iwelbo{particles}" not in self.arrays:
                        continue
                    found = [bounds(fitted, test, particles=particles, seed=seed) for seed in range(seeds)]
                    value = -np.mean([over_perturbations(each["inll"])[0] for each in found])
                    theirs = self.get(f"{where}/iwelbo{particles}").mean()
                    sd = max(float(self.get(f"{where}/iwelbo100_macro_sd")), SD[particles])
                    yield f"{where}/iwelbo{particles}", value, theirs, SDS * sd
                value, theirs = over_perturbations(found[0]["nelbo"])[0], self.get(f"{where}/nelbo").mean()
                yield f"{where}/nelbo", value, theirs, SDS * float(self.get(f"{where}/nelbo_macro_sd"))


# ---- the comparison ------------------------------------------------------------------------------------------------


class Comparison:
    """What was compared: the worst difference of each file as a share of its tolerance, and failures as text."""

    def __init__(self):
        self.number: dict[str, int] = {}
        self.worst: dict[str, tuple[float, str]] = {}
        self.failures: list[str] = []

    def add(self, file: str, label: str, ours: Tensor | np.ndarray | float, theirs: np.ndarray, most: float) -> None:
        """``most``: the largest difference that is allowed."""
        ours = ours.detach().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
        theirs = np.asarray(theirs, float)
        if ours.ndim == theirs.ndim + 1 and len(ours) == 1:
            ours = ours[0]  # one particle
        self.number[file] = self.number.get(file, 0) + theirs.size
        if ours.shape != theirs.shape:
            self.failures.append(f"{file} {label}: has shape {theirs.shape}, ours {ours.shape}")
            return
        if (np.isnan(ours) != np.isnan(theirs)).any():
            self.failures.append(f"{file} {label}: NaN on one side only")
            return
        worst = float(np.nanmax(np.abs(ours.astype(float) - theirs), initial=0.0))
        if worst / most >= self.worst.get(file, (-1.0, ""))[0]:
            self.worst[file] = (worst / most, f"{label}, difference {worst:.1e}")
        if not worst <= most:
            self.failures.append(f"{file} {label}: difference {worst:.1e}, allowed {most:.1e}")

    def print(self) -> None:
        for file, number in self.number.items():
            share, label = self.worst.get(file, (math.nan, ""))
            print(f"{file}: {number} values, worst {share:.2g} of what is allowed ({label})")
        for line in self.failures[:40]:
            print(f"FAILED {line}")
        if len(self.failures) > 40:
            print(f"... and {len(self.failures) - 40} more")
        print(f"{len(self.failures)} failures" if self.failures else "Every value is within its tolerance.")


def allowed(label: str, case: Case, kind: torch.dtype) -> float:
    """The largest difference of an array.

    The gradient of a bias before batch norm is 0 but for rounding, which comes from the gradient of the weights beside
    it; a step of Adam divides it by eps.
    """
    value, gradient = TOLERANCE[kind]
    size = largest(case.arrays[label])
    found = re.fullmatch(r"(.+)/(grad|adam1)/((?:encoder|decoder)/\d+)/bias", label)
    weights = case.arrays.get(f"{found[1]}/grad/{found[3]}/weight") if found else None
    if found is None or weights is None:
        return (size or 1.0) * (gradient if "/grad" in label else value)
    rounding = max(10.0 * torch.finfo(kind).eps, 1e-12) * largest(weights)
    step = case.config.learning_rate * rounding / case.config.adam_eps
    return max(size * gradient, rounding) if found[2] == "grad" else size * value + step


def largest(values: np.ndarray) -> float:
    return float(np.nanmax(np.abs(values), initial=0.0))


def compare_method(case: Case, done: Comparison) -> None:
    file, known = case.path.name, set()
    for kind in TOLERANCE:
        for label, ours in results(case, kind):
            known.add(label)
            if label not in case.arrays:
                done.failures.append(f"{file} {label}: missing in the file")
                continue
            theirs, most = case.arrays[label], allowed(label, case, kind)
            done.add(file, f"{label} ({str(kind).removeprefix('torch.')})", ours, theirs, most)
    for label in case.arrays:
        # a VAE has no mu and no mask
        unused = case.method in ("vae", "beta_vae") and label in ("transfer/mu_start", "transfer/fixed_mask")
        if label not in known and not label.startswith(INPUTS) and not unused:
            done.failures.append(f"{file} {label}: unknown to us")


def compare(folder: Path) -> Comparison:
    """Compare every file of a folder."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*_L*.npz")):
        method, _, layers = path.stem.rpartition("_L")
        found.setdefault(layers, {})[method] = path
    if not found:
        raise DataError(f"{folder}: holds no METHOD_L1.npz.")
    done = Comparison()
    for layers, files in found.items():
        for method in METHODS.keys() | files.keys():
            if method not in METHODS or method not in files:
                reason = "unknown to us" if method in files else "missing in the folder"
                done.failures.append(f"{method}_L{layers}.npz: {reason}")
        for method, path in files.items():
            if method in METHODS:
                compare_method(Case(path, method), done)
    fits = sorted(folder.glob("transfer_*.npz"))
    for path in fits:
        for label, ours, theirs, most in Fits(path).results():
            done.add(path.name, label, ours, theirs, most)
    if not fits and any(folder.glob("sim_*.npz")):
        done.failures.append("transfer_*.npz: missing in the folder")
    return done


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python tests/golden_svae.py FOLDER", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    try:
        done = compare(Path(arguments[0]))
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    done.print()
    return 1 if done.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

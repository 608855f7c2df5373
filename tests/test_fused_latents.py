"""The fused kernels of latents and networks, in Triton's interpreter, against torch's operations in float64."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_model import model, screen
from torch import Tensor

from samsvae.config.training import TrainingConfig
from samsvae.data.cells import cells_of, encode
from samsvae.models.noise import Streams
from samsvae.ops import explicit_gradients as explicit
from samsvae.ops import fused_latents, triton_trial
from samsvae.training.optimiser import Adam
from samsvae.training.steps import training_step

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def network(bias, start, x, w, y, v, *layers, residual=True, slope=0.01):
    pairs = list(zip(layers[::2], layers[1::2], strict=True))
    return explicit.residual_network(bias, start, [(x, w), (y, v)], pairs, slope=slope, residual=residual)


def plain_network(*given):
    return network(*given, residual=False, slope=0.0)


def one_input(bias, start, x, w):
    """A start whose rows and columns are swapped in memory, as of a one-hot input."""
    return explicit.residual_network(bias, start.T, [(x, w)], [], slope=0.01, residual=True)


def head(h, *pairs):
    return explicit.gaussian_head(h, pairs[:2], pairs[2:], 1e-4)


def normal(value, noise, loc, scale, q_scale):
    return explicit.normal_log_ratio(value, noise, (loc, scale), q_scale)


def mask(logits, noise):
    return explicit.straight_through(logits, noise, 0.7)


def expanded(value, noise, loc, scale, q_scale):
    return normal(value, noise, loc.expand(value.shape[1:]), scale, q_scale)


LAYERS = [(9, 9), (9,), (9, 9), (9,)]

#: Function, shapes of its arguments (K, n, L), which are sd (positive), and which get no gradient.
CASES = {
    "network": (network, [(9,), (5, 9), (5, 7), (9, 7), (3, 5, 2), (9, 2), *LAYERS], (), ()),
    "network without residuals": (plain_network, [(9,), (5, 9), (5, 7), (9, 7), (3, 5, 2), (9, 2), *LAYERS], (), ()),
    "network, a start of its own": (network, [(9,), (3, 5, 9), (5, 7), (9, 7), (3, 5, 2), (9, 2)], (), ()),
    "network of large layers": (one_input, [(300,), (300, 5), (3, 5, 2), (300, 2)], (), ()),
    "network, no rows": (network, [(9,), (0, 9), (0, 7), (9, 7), (3, 0, 2), (9, 2), *LAYERS], (), ()),
    "head": (head, [(3, 5, 4), (33, 4), (33,), (33, 4), (33,)], (), ()),
    "head, no rows": (head, [(3, 0, 4), (33, 4), (33,), (33, 4), (33,)], (), ()),
    "normal, numbers": (normal, [(3, 5, 33), (3, 5, 33), (), (), (3, 5, 33)], (3, 4), (1, 2, 3)),
    "normal, an expanded number": (expanded, [(3, 5, 33), (3, 5, 33), (), (), (3, 5, 33)], (3, 4), (1, 2, 3)),
    "normal, rows for all": (normal, [(3, 5, 7), (3, 5, 7), (5, 7), (7,), (5, 7)], (3, 4), (1, 3)),
    "normal, a row for all": (normal, [(3, 5, 7), (3, 5, 7), (3, 5, 7), (), (7,)], (3, 4), (1, 3)),
    "normal, many columns": (normal, [(2, 2, 1100), (2, 2, 1100), (), (), (2, 1100)], (3, 4), (1, 2, 3)),
    "normal, other broadcasts": (normal, [(3, 5, 7), (3, 5, 7), (3, 1, 7), (), (3, 1, 7)], (3, 4), (1, 3)),
    "normal, no rows": (normal, [(3, 0, 7), (3, 0, 7), (), (), (0, 7)], (3, 4), (1, 2, 3)),
    "bernoulli, a number": (explicit.bernoulli_log_ratio, [(3, 5, 33), (), (5, 33)], (), (1,)),
    "bernoulli, rows": (explicit.bernoulli_log_ratio, [(3, 5, 7), (5, 7), (3, 5, 7)], (), (1,)),
    "bernoulli, many columns": (explicit.bernoulli_log_ratio, [(2, 1, 1100), (), (1, 1100)], (), (1,)),
    "bernoulli, no rows": (explicit.bernoulli_log_ratio, [(3, 0, 7), (), (0, 7)], (), (1,)),
    "mask": (mask, [(5, 33), (3, 5, 33)], (), (1,)),
    "mask of each particle": (mask, [(3, 5, 333), (3, 5, 333)], (), (1,)),
    "mask, no rows": (mask, [(0, 33), (3, 0, 33)], (), (1,)),
}

#: Cases that torch's operations compute, as nothing in the models is shaped like this.
PLAIN = {"normal, other broadcasts"}

KERNELS = {name.removesuffix("_backward") for name, part in vars(fused_latents).items() if hasattr(part, "__wrapped__")}


def results(name: str, kind: torch.dtype) -> list[Tensor]:
    """Values and gradients of a case."""
    function, shapes, positive, constant = CASES[name]
    stream = torch.Generator().manual_seed(len(name))
    given = [torch.randn(shape, generator=stream) * 2.0 for shape in shapes]
    given = [part.abs().clamp(min=0.01) if i in positive else part for i, part in enumerate(given)]
    given = [part.to(kind).requires_grad_(i not in constant) for i, part in enumerate(given)]
    out = function(*given)
    out = out if isinstance(out, tuple) else (out,)
    total = sum((part * torch.randn(part.shape, generator=stream)).sum() for part in out)
    asked = [part for part in given if part.requires_grad]
    return [*(part.detach() for part in out), *torch.autograd.grad(total, asked)]


def gradients(steps: int = 2) -> dict[str, Tensor]:
    """Losses and gradients of steps of a small model; masks, embeddings and cells are all drawn."""
    made, net = screen(40), model("sams_vae_corr", seed=5)
    config = TrainingConfig(steps=steps, batch_size=20)
    cells = cells_of(made, torch.arange(40).numpy(), encode(made, "sum"))
    net.fit_inputs(cells)
    step = training_step(net, cells, config, Adam(net, config), Streams(0), torch.zeros(()), 1.0)
    losses = [step(torch.arange(20) + 20 * (i % 2)) for i in range(steps)]
    return {"losses": torch.stack(losses)} | {name: p.grad for name, p in net.named_parameters()}


def interpret(folder: Path) -> None:
    """In a process with Triton's interpreter: save all results, and the kernels that were launched for each."""
    found, launch = {}, fused_latents._launch
    assert fused_latents.fused(torch.ones(1))
    for name in (*CASES, "step"):
        launched: set[str] = set()

        def recorded(kernel, *rest, launched=launched):
            launched.add(kernel)
            launch(kernel, *rest)

        fused_latents._launch = recorded
        found[name] = (gradients() if name == "step" else results(name, torch.float32), launched)
    x = torch.tensor([[0.0, 1.0, 2.5], [1e-3, 30_000.0, 7.0]])
    found["normalised"] = fused_latents.normalised(x, torch.ones(3), torch.full((3,), 0.5)), {"normalised"}
    torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    paths = [str(Path(__file__).parent), *(p for p in sys.path if p)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    code = f"import pathlib, test_fused_latents as t; t.interpret(pathlib.Path({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "found.pt")


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_the_kernels_against_torch_in_float64(interpreted, name):
    found, launched = interpreted[name]
    assert bool(launched) == (name not in PLAIN)
    for ours, exact in zip(found, results(name, torch.float64), strict=True):
        assert ours.shape == exact.shape and ours.dtype == torch.float32
        assert (ours.double() - exact).norm() <= 2e-6 * exact.norm()


@needs_triton
def test_normalised_inputs(interpreted):
    x = torch.tensor([[0.0, 1.0, 2.5], [1e-3, 30_000.0, 7.0]], dtype=torch.float64)
    exact = (torch.log1p(x) - 1.0) / 0.5
    torch.testing.assert_close(interpreted["normalised"][0].double(), exact, rtol=1e-6, atol=1e-6)


@needs_triton
def test_a_step_with_kernels_has_the_gradients_of_a_step_without(interpreted):
    found, launched = interpreted["step"]
    assert {name.removesuffix("_backward") for name in launched} == KERNELS - {"residual"}  # an activation of its own
    for name, exact in gradients().items():
        assert (found[name] - exact).norm() <= 1e-5 * exact.norm(), name


def test_what_does_not_fit_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(triton_trial, "_USABLE", {"cpu": True, "meta": True})
    monkeypatch.setattr(triton_trial, "_TRIED", {"cpu", "meta"})
    value = torch.ones(3)
    assert fused_latents.fused(value) and not fused_latents.fused(value, value.double())
    assert not fused_latents.fused(torch.ones(2**31, device="meta"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not fused_latents.fused(value)


def test_kernels_that_fail_leave_the_others_in_use(monkeypatch, caplog):
    def broken(device):
        raise OSError("no compiler")

    def odd(device):
        return (torch.tensor(math.nan),)

    monkeypatch.setattr(triton_trial, "_USABLE", {"cpu": True})
    monkeypatch.setattr(triton_trial, "_TRIED", set())
    monkeypatch.setattr(triton_trial, "_FAILED", set())
    trials = {"broken": broken, "odd": odd, "good": lambda device: (torch.ones(1),)}
    monkeypatch.setattr(triton_trial, "_TRIALS", trials)
    for _ in range(2):
        triton_trial.try_out(torch.device("cpu"))
    assert [triton_trial.has_triton("cpu", name) for name in trials] == [False, False, True]
    assert [record.args[0] for record in caplog.records] == ["broken", "odd"]


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from samsvae.ops import fused_latents, triton_latents

kernels = {name: part for name, part in vars(triton_latents).items() if hasattr(part, "arg_names") and name[0] != "_"}
for name in ("log", "log1p"):
    del kernels[name]
print(*kernels)
for name, kernel in kernels.items():
    names = kernel.arg_names
    kinds = {part: "*fp32" if part.endswith("_at") else "i32" for part in names}
    kinds |= {part: "fp32" for part in ("floor", "slope", "temperature") if part in names}
    ones = {part: 1 for part in ("loc_size", "scale_size", "p_size", "repeats", "col_stride")}  # a launch fixes those
    for fixed in ({"BLOCK": 512, "RESIDUAL": False}, {"BLOCK": 128, "RESIDUAL": True} | ones):
        fixed = {part: value for part, value in fixed.items() if part in names}
        warps = fixed["BLOCK"] // fused_latents.PER_WARP
        source = ASTSource(kernel, kinds | dict.fromkeys(fixed, "constexpr"), constexprs=fixed)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        assert made.metadata.num_warps == warps and "sm_90" in made.asm["ptx"] and made.asm["cubin"]
"""


@needs_triton
def test_the_kernels_compile_for_a_gpu_on_a_machine_without_one(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {name.removesuffix("_backward") for name in done.stdout.split()} == KERNELS - {"residual"}
